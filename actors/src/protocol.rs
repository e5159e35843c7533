//! What an inference actor and its worker process say to each other over a socket pair.
//!
//! A frame is:
//!
//! ```text
//! ┌────────────────┬─────────────────┬──────────────────┬───────────────────┐
//! │ header u32 LE  │ payload u32 LE  │ header: postcard │ payload: f32 LE   │
//! │ bytes          │ bytes           │ of one message   │ of the embeddings │
//! └────────────────┴─────────────────┴──────────────────┴───────────────────┘
//! ```
//!
//! Only [`FromWorker::Completed`] has a payload. The first message of either side carries
//! [`VERSION`]; both sides come from the same executable, so a mismatch means that it was replaced
//! while a run was going on.

use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::pin::Pin;

use bytemuck::AnyBitPattern;
use kernels::{Batch, EngineDescription, EngineError, EngineOptions};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use crate::identity::{BatchId, Worker};

/// Version of the messages below. Raise it with any change to them.
pub const VERSION: u32 = 4;

/// How often a worker reports its progress, milliseconds; far below any sensible `hang_ms`.
pub const HEARTBEAT_INTERVAL_MS: u64 = 200;

/// Longest header: a batch of 2^27 tokens. A longer one is a broken stream, not a message.
const HEADER_BYTES_MAX: u32 = 256 << 20;

/// Most numbers of an answer: its length in bytes is a u32.
pub const PAYLOAD_FLOATS_MAX: usize = u32::MAX as usize / 4;

/// Memory taken for a frame before its bytes are there: usual frames are smaller, and one that announces
/// gigabytes gets them only as they arrive.
const PIECE_BYTES: usize = 16 << 20;

/// Exit status of a worker whose device or engine is unusable in this process: a fresh one may cure it.
pub const EXIT_DEVICE_FAILED: i32 = 70;

/// Exit status of a worker whose engine panicked, as of a panicking main thread.
pub const EXIT_PANICKED: i32 = 101;

/// What a worker's exit status means, where it left without a word.
pub fn exit_meaning(status: i32) -> Option<&'static str> {
    match status {
        EXIT_DEVICE_FAILED => Some("its device failed and can only be used again by a new process"),
        EXIT_PANICKED => Some("its engine panicked"),
        _ => None,
    }
}

/// What the orchestrator tells a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Load a model; the first message.
    Load(Assignment),
    /// Run a batch.
    Run {
        /// Its number, to be returned with the answer.
        batch: BatchId,
        /// The sequences.
        sequences: Batch,
        /// Whether to run it in fp32 whatever the job's precision.
        exact: bool,
    },
    /// Nothing more comes: exit with status 0.
    Shutdown,
}

/// Everything a worker must know to load its engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// Which worker it is.
    pub worker: Worker,
    /// The device's name, for logs.
    pub device_name: String,
    /// Which engine to load.
    pub engine: EngineChoice,
    /// Layer, pooling, precision, threads.
    pub options: EngineOptions,
}

/// Which engine a worker loads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum EngineChoice {
    /// The CPU engine.
    Cpu {
        /// Its weights.
        weights: WeightsChoice,
    },
    /// An NVIDIA GPU, the only one that the worker sees.
    Cuda {
        /// Its weights.
        weights: WeightsChoice,
        /// Its UUID, where the driver tells it: CUDA must show the same one.
        uuid: Option<String>,
    },
    /// The burn engine.
    Burn {
        /// Index of its NVIDIA GPU; `None`: the CPU.
        gpu: Option<u16>,
        /// Its weights.
        weights: WeightsChoice,
    },
    /// A simulated device.
    Sim {
        /// Number of the simulated device.
        device: u32,
        /// Its programme, see [`kernels::sim`].
        program: String,
    },
}

/// Where a worker finds its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum WeightsChoice {
    /// The demonstration model inside the executable.
    Demo,
    /// A file or folder.
    Path {
        /// Where.
        path: kernels::ModelPath,
        /// The shape that the orchestrator read.
        config: kernels::ModelConfig,
        /// The weight files as the orchestrator digested them: a worker that starts later must find the
        /// same ones.
        stamps: Vec<crate::fasta::FileStamp>,
    },
}

/// What a worker tells the orchestrator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromWorker {
    /// The engine is loaded.
    Ready {
        /// [`VERSION`] of the sender.
        version: u32,
        /// What was loaded.
        description: EngineDescription,
    },
    /// The engine could not be loaded; the worker exits.
    LoadFailed(EngineError),
    /// Still there.
    Heartbeat {
        /// Steps of work done so far; a hung engine's stand still.
        ticks: u64,
    },
    /// A batch is computed; its embeddings are on their way. Should the worker die before they arrive, that batch
    /// is not to blame.
    Computed {
        /// The batch.
        batch: BatchId,
    },
    /// A batch's embeddings, in the payload: row-major [rows, hidden] f32.
    Completed {
        /// The batch.
        batch: BatchId,
        /// Time in the engine.
        compute_us: u64,
        /// Share of the device's memory in use at its fullest, 0..=1, where the device tells.
        memory: Option<f32>,
    },
    /// A batch that the engine could not complete.
    Failed {
        /// The batch.
        batch: BatchId,
        /// Why.
        error: EngineError,
    },
}

/// Writes one frame.
///
/// # Errors
/// Those of `out`, and `InvalidInput` for a message beyond the limits of a frame.
pub fn write_frame(out: &mut impl Write, message: &impl Serialize, payload: &[f32]) -> io::Result<()> {
    out.write_all(&encode_prefix_and_header(message, payload)?)?;
    out.write_all(bytemuck::cast_slice(payload))?;
    out.flush()
}

/// Encodes a message without payload as one frame.
///
/// # Errors
/// `InvalidInput` for a message beyond the limits of a frame.
pub fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    encode_prefix_and_header(message, &[])
}

/// Reads one frame; `None` at a clean end of the stream.
///
/// # Errors
/// Those of `input`, `UnexpectedEof` inside a frame, `InvalidData` for a frame that is not one.
pub fn read_frame<M: DeserializeOwned>(input: &mut impl Read) -> io::Result<Option<(M, Vec<f32>)>> {
    let mut prefix = [0u8; 8];
    match input.read(&mut prefix[..1])? {
        0 => return Ok(None),
        _ => input.read_exact(&mut prefix[1..])?,
    }
    let (header_bytes, payload_floats) = decode_prefix(prefix)?;
    // Workers read this way. What they are told has no payload, so that filling its room with zeros costs nothing.
    let mut header: Vec<u8> = Vec::new();
    while let piece @ 1.. = make_room(&mut header, header_bytes) {
        let before = header.len();
        header.resize(before + piece, 0);
        input.read_exact(&mut header[before..])?;
    }
    // What is no message is refused before its payload is waited for.
    let message = decode_header(&header)?;
    let mut payload: Vec<f32> = Vec::new();
    while let piece @ 1.. = make_room(&mut payload, payload_floats) {
        let before = payload.len();
        payload.resize(before + piece, 0.0);
        input.read_exact(bytemuck::cast_slice_mut(&mut payload[before..]))?;
    }
    Ok(Some((message, payload)))
}

/// [`read_frame`] for an asynchronous stream. Not cancel-safe: give it a task of its own.
///
/// # Errors
/// Those of [`read_frame`].
pub async fn read_frame_async<M: DeserializeOwned>(
    input: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<(M, Vec<f32>)>> {
    let mut prefix = [0u8; 8];
    match input.read(&mut prefix[..1]).await? {
        0 => return Ok(None),
        _ => input.read_exact(&mut prefix[1..]).await?,
    };
    let (header_bytes, payload_floats) = decode_prefix(prefix)?;
    let header: Vec<u8> = receive(input, header_bytes).await?;
    let message = decode_header(&header)?;
    let payload: Vec<f32> = receive(input, payload_floats).await?;
    Ok(Some((message, payload)))
}

/// Makes room for the next piece of what a frame announced, once all before it has arrived, and returns its length;
/// 0 when `announced` items are there. Room doubles, so that a long frame is copied few times.
fn make_room<T>(arrived: &mut Vec<T>, announced: usize) -> usize {
    let before = arrived.len();
    let piece = (PIECE_BYTES / size_of::<T>()).max(before).min(announced - before);
    arrived.reserve_exact(piece);
    piece
}

/// Reads `announced` items into memory that was not filled with anything before: the embeddings of fast devices are
/// gigabytes a second.
async fn receive<T: AnyBitPattern>(
    input: &mut (impl AsyncRead + Unpin),
    announced: usize,
) -> io::Result<Vec<T>> {
    let mut arrived: Vec<T> = Vec::new();
    while let piece @ 1.. = make_room(&mut arrived, announced) {
        let room = &mut arrived.spare_capacity_mut()[..piece];
        let bytes = size_of_val(room);
        // SAFETY: the same memory, borrowed as long, seen as bytes that may be uninitialised, which any memory is.
        let room =
            unsafe { std::slice::from_raw_parts_mut(room.as_mut_ptr().cast::<MaybeUninit<u8>>(), bytes) };
        let mut room = ReadBuf::uninit(room);
        while room.remaining() > 0 {
            let before = room.filled().len();
            poll_fn(|context| Pin::new(&mut *input).poll_read(context, &mut room)).await?;
            if room.filled().len() == before {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let end = arrived.len() + piece;
        // SAFETY: `make_room` reserved the piece, `ReadBuf` says that all of its bytes were written, and any bytes
        // are a `T`.
        unsafe { arrived.set_len(end) };
    }
    Ok(arrived)
}

fn encode_prefix_and_header(message: &impl Serialize, payload: &[f32]) -> io::Result<Vec<u8>> {
    // Both ends run on one machine; the text above says LE, which every supported target is.
    const { assert!(cfg!(target_endian = "little")) };
    let frame = postcard::to_extend(message, vec![0u8; 8]).map_err(io::Error::other)?;
    let mut frame = frame;
    let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, "message too long for a frame");
    let header_bytes = u32::try_from(frame.len() - 8).map_err(too_long)?;
    let payload_bytes = u32::try_from(size_of_val(payload)).map_err(too_long)?;
    if header_bytes > HEADER_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message too long for a frame"));
    }
    frame[..4].copy_from_slice(&header_bytes.to_le_bytes());
    frame[4..8].copy_from_slice(&payload_bytes.to_le_bytes());
    Ok(frame)
}

fn decode_prefix(prefix: [u8; 8]) -> io::Result<(usize, usize)> {
    let [a, b, c, d, e, f, g, h] = prefix;
    let (header_bytes, payload_bytes) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
    let foreign = |problem: String| {
        let text = format!("not a frame of the worker protocol: {problem}");
        Err(io::Error::new(io::ErrorKind::InvalidData, text))
    };
    if header_bytes > HEADER_BYTES_MAX {
        return foreign(format!("a header of {header_bytes} bytes, more than {HEADER_BYTES_MAX}"));
    }
    if payload_bytes % 4 != 0 {
        return foreign(format!("a payload of {payload_bytes} bytes, not a multiple of 4"));
    }
    Ok((header_bytes as usize, payload_bytes as usize / 4))
}

fn decode_header<M: DeserializeOwned>(header: &[u8]) -> io::Result<M> {
    postcard::from_bytes(header).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_went() {
        let mut batch = Batch::default();
        batch.push(7, b"MKV", 3);
        let messages =
            [ToWorker::Run { batch: BatchId(3), sequences: batch, exact: true }, ToWorker::Shutdown];
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &messages[0], &[]).unwrap();
        write_frame(&mut bytes, &messages[1], &[1.5, -0.0, f32::MIN_POSITIVE]).unwrap();
        let mut input = bytes.as_slice();
        let (first, none): (ToWorker, _) = read_frame(&mut input).unwrap().unwrap();
        let (second, payload): (ToWorker, _) = read_frame(&mut input).unwrap().unwrap();
        assert_eq!([first, second], messages);
        assert!(none.is_empty());
        assert_eq!(payload, [1.5, -0.0, f32::MIN_POSITIVE]);
        assert!(read_frame::<ToWorker>(&mut input).unwrap().is_none());
    }

    #[test]
    fn a_stream_that_is_cut_or_foreign_is_an_error() {
        let bytes = encode(&ToWorker::Shutdown).unwrap();
        for cut in 1..bytes.len() {
            assert!(read_frame::<ToWorker>(&mut &bytes[..cut]).is_err());
        }
        let foreign = read_frame::<ToWorker>(&mut b"HTTP/1.1 400 Bad Request".as_slice()).unwrap_err();
        assert_eq!(foreign.kind(), io::ErrorKind::InvalidData);
        assert!(
            foreign.to_string().contains("a header of 1347703880 bytes, more than 268435456"),
            "{foreign}"
        );
    }

    #[test]
    fn room_grows_with_what_arrived() {
        let announced = u32::MAX as usize / 4;
        let mut arrived: Vec<f32> = Vec::new();
        for pieces in 0..4 {
            let piece = make_room(&mut arrived, announced);
            // 16 MiB at first, then as much as is there.
            assert_eq!(piece * 4, PIECE_BYTES << u32::saturating_sub(pieces, 1));
            assert!(arrived.capacity() * 4 <= PIECE_BYTES << pieces);
            arrived.resize(arrived.len() + piece, 0.0);
        }
        let mut small: Vec<u8> = Vec::new();
        assert_eq!(make_room(&mut small, 3), 3);
        small.resize(3, 0);
        assert_eq!(make_room(&mut small, 3), 0);
        assert_eq!(small.capacity(), 3);
    }

    #[test]
    fn frames_longer_than_a_piece_come_back_whole() {
        let values: Vec<f32> = (0..PIECE_BYTES as u32 / 4 * 2 + 5).map(|number| number as f32).collect();
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &ToWorker::Shutdown, &values).unwrap();
        let (_, payload) = read_frame::<ToWorker>(&mut bytes.as_slice()).unwrap().unwrap();
        assert!(payload == values);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (_, payload) =
            runtime.block_on(read_frame_async::<ToWorker>(&mut bytes.as_slice())).unwrap().unwrap();
        assert!(payload == values);
        bytes.pop();
        let cut = read_frame::<ToWorker>(&mut bytes.as_slice()).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
        let cut = runtime.block_on(read_frame_async::<ToWorker>(&mut bytes.as_slice())).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
    }

    /// A socket rarely gives all that is asked for, and never in whole numbers.
    #[test]
    fn a_payload_that_trickles_in_comes_back_whole() {
        let values: Vec<f32> = (0..1000).map(|number| number as f32 * 0.5).collect();
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &ToWorker::Shutdown, &values).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (mut near, mut far) = tokio::io::duplex(7);
        let sent = async { tokio::io::AsyncWriteExt::write_all(&mut near, &bytes).await };
        let (sent, read) =
            runtime.block_on(async { tokio::join!(sent, read_frame_async::<ToWorker>(&mut far)) });
        sent.unwrap();
        assert!(read.unwrap().unwrap().1 == values);
    }
}
