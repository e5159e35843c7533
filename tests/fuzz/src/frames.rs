//! The worker protocol, both directions: byte 0 chooses who speaks, the rest is the stream.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use actors::identity::BatchId;
use actors::protocol::{FromWorker, ToWorker, read_frame, read_frame_async, write_frame};
use kernels::{Batch, EngineDescription, EngineError};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads frames to the end of the stream or the first that is none; both readers agree.
pub fn enter(bytes: &[u8]) -> bool {
    let [side, stream @ ..] = bytes else { return false };
    if side % 2 == 0 { read_all::<ToWorker>(stream) } else { read_all::<FromWorker>(stream) }
}

/// What every message of the protocol is.
trait Message: Serialize + DeserializeOwned {}
impl<M: Serialize + DeserializeOwned> Message for M {}

/// Says whether the stream holds frames and nothing else.
fn read_all<M: Message>(stream: &[u8]) -> bool {
    let mut blocking = stream;
    let mut waiting = stream;
    loop {
        let read = read_frame::<M>(&mut blocking);
        let also = now(read_frame_async::<M>(&mut waiting));
        match (read, also) {
            (Ok(Some((message, payload))), Ok(Some((other, values)))) => {
                // Encoded, since a float in a message may be NaN.
                let once = encoded(&message, &payload);
                assert_eq!(once, encoded(&other, &values));
                let (again, floats) = read_frame::<M>(&mut once.as_slice()).expect("ours").expect("a frame");
                assert_eq!(once, encoded(&again, &floats));
            }
            (Ok(None), Ok(None)) => return true,
            (Err(_), Err(_)) => return false,
            _ => panic!("the two readers disagree"),
        }
    }
}

fn encoded<M: Message>(message: &M, payload: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, message, payload).expect("memory takes all");
    bytes
}

/// The result of a future that never waits.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => done,
        Poll::Pending => panic!("reading from memory waits for nothing"),
    }
}

/// Seeds: one frame of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut sequences = Batch::default();
    sequences.push(7, b"MKV", 3);
    sequences.push(9, b"LA", 1);
    let batch = BatchId(3);
    let description = EngineDescription {
        name: "cpu".to_owned(),
        hidden: 4,
        weights_bytes: 1,
        bytes_per_token: 2,
        token_budget: Some(64),
        slots: 2,
    };
    let seed = |side: u8, frames: &[Vec<u8>]| [&[side][..], &frames.concat()].concat();
    vec![
        seed(
            0,
            &[
                encoded(&ToWorker::Run { batch, sequences, exact: true }, &[]),
                encoded(&ToWorker::Shutdown, &[]),
            ],
        ),
        seed(
            1,
            &[
                encoded(&FromWorker::Ready { version: 1, description }, &[]),
                encoded(&FromWorker::Heartbeat { ticks: 300 }, &[]),
                encoded(
                    &FromWorker::Completed { batch, compute_us: 5, memory: Some(0.5) },
                    &[1.5, -0.0, f32::NAN],
                ),
                encoded(
                    &FromWorker::Failed { batch, error: EngineError::NonFinite { sequences: vec![1, 2] } },
                    &[],
                ),
                encoded(&FromWorker::LoadFailed(EngineError::Model("no".to_owned())), &[]),
            ],
        ),
        // Lengths that announce far more than comes.
        [&[1][..], &[0xff, 0xff, 0xff, 0x0f], &[0; 4], b"abc"].concat(),
        [&[1][..], &[2, 0, 0, 0], &[0xfc, 0xff, 0xff, 0xff], &[2, 1]].concat(),
    ]
}
