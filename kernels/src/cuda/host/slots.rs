//! What each batch under way has for itself: its input, its place for results, its events.
//!
//! The device computes one batch after the other; meanwhile the next one's input is copied to it and the results of
//! the one before are copied from it. Activations are shared, since one stream computes.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream};

use super::buffer::{DeviceBytes, PinnedBytes};
use super::error::{CudaError, During};
use super::graphs::tile_room;
use crate::Batch;
use crate::cuda::{EMPTY_TILE, rows_before, tiles};

/// Batches under way: one computes, one is copied to the device, one from it.
pub(super) const SLOTS: usize = 3;

/// Where the parts of a batch's input lie, one after the other in one copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InputLayout {
    /// [tiles] {i32, i32}.
    pub(super) tiles: usize,
    /// [tokens] u8.
    pub(super) tokens: usize,
    /// [sequences + 1] i32.
    pub(super) cu_seqlens: usize,
    /// [sequences] i32.
    pub(super) pooled: usize,
    /// [sequences] i32.
    pub(super) rows_before: usize,
    /// All of it.
    pub(super) bytes: usize,
}

impl InputLayout {
    fn new(tokens: usize, sequences: usize, tiles: usize) -> Self {
        /// Kernels read pairs and single numbers; this also keeps parts on cache lines of their own.
        const ALIGNMENT: usize = 128;
        let mut end = 0usize;
        let mut part = |bytes: usize| {
            let begin = end.next_multiple_of(ALIGNMENT);
            end = begin + bytes;
            begin
        };
        // What kernels of a graph read lies where the size alone says, however many sequences there are.
        let tiles = part(8 * tiles);
        let tokens = part(tokens);
        let cu_seqlens = part(4 * (sequences + 1));
        let pooled = part(4 * sequences);
        let rows_before = part(4 * sequences);
        Self { tiles, tokens, cu_seqlens, pooled, rows_before, bytes: end }
    }
}

/// A batch as the kernels read it.
#[derive(Clone, Debug)]
pub(super) struct Input<'a> {
    batch: &'a Batch,
    tiles: Vec<[i32; 2]>,
    /// Entries of the table of tiles, the empty ones included.
    tile_room: usize,
    pub(super) layout: InputLayout,
}

impl<'a> Input<'a> {
    /// `rows`: those that a graph computes; room for as many tokens is left then, and the table of tiles is filled
    /// up with empty ones.
    pub(super) fn new(batch: &'a Batch, rows: Option<usize>) -> Self {
        let tiles = tiles(&batch.cu_seqlens);
        let (tokens, tile_room) = match rows {
            Some(rows) => (rows.max(batch.token_count()), tile_room(tiles.len())),
            None => (batch.token_count(), tiles.len()),
        };
        let layout = InputLayout::new(tokens, batch.len(), tile_room);
        Self { batch, tiles, tile_room, layout }
    }

    /// Tiles of the batch itself.
    pub(super) fn tiles(&self) -> usize {
        self.tiles.len()
    }

    /// Tiles in the table.
    pub(super) fn tile_room(&self) -> usize {
        self.tile_room
    }

    /// Writes all parts to `to`, at least `layout.bytes` long.
    pub(super) fn write(&self, to: &mut [u8]) {
        let Self { batch, tiles, tile_room, layout } = self;
        let empty = std::iter::repeat_n(&EMPTY_TILE, tile_room - tiles.len());
        let mut put = |at: usize, numbers: &mut dyn Iterator<Item = i32>| {
            for (place, number) in to[at..].chunks_exact_mut(4).zip(numbers) {
                place.copy_from_slice(&number.to_le_bytes());
            }
        };
        // The batch was checked: its numbers are below the number of tokens, which the device's memory limits.
        put(layout.cu_seqlens, &mut batch.cu_seqlens.iter().map(|&limit| limit as i32));
        put(layout.tiles, &mut tiles.iter().chain(empty).flatten().copied());
        put(layout.pooled, &mut batch.pooled_residues.iter().map(|&residues| residues as i32));
        put(layout.rows_before, &mut rows_before(&batch.pooled_residues).into_iter());
        to[layout.tokens..][..batch.tokens.len()].copy_from_slice(&batch.tokens);
    }
}

/// A batch's own memory and events.
#[derive(Debug)]
pub(super) struct Slot {
    context: Arc<CudaContext>,
    input: Option<(PinnedBytes, DeviceBytes)>,
    /// Where the results of the batch under way come to lie; of [`Outputs`].
    pub(super) output: Option<PinnedBytes>,
    /// The input is on the device, and its pinned memory may be written again.
    pub(super) uploaded: CudaEvent,
    /// The rows are pooled and may be copied.
    pub(super) pooled: CudaEvent,
    /// The rows are on the host, and the device's memory for them may be written again.
    pub(super) done: CudaEvent,
    /// The attention of each layer has run: a watchdog is told of each.
    layers: Vec<CudaEvent>,
    recorded: usize,
    /// A batch has begun here whose results have not been taken.
    pub(super) busy: bool,
}

impl Slot {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, CudaError> {
        let event = || context.new_event(None).during("making an event");
        Ok(Self {
            context: context.clone(),
            input: None,
            output: None,
            uploaded: event()?,
            pooled: event()?,
            done: event()?,
            layers: Vec::new(),
            recorded: 0,
            busy: false,
        })
    }

    /// Starts to copy `input` to the device, where it returns the place.
    ///
    /// The slot must be free: then neither the device's copy nor the host's is in use.
    pub(super) fn upload(
        &mut self,
        input: &Input<'_>,
        copying: &CudaStream,
        computing: &Arc<CudaStream>,
    ) -> Result<u64, CudaError> {
        let bytes = input.layout.bytes;
        if self.input.as_ref().is_none_or(|(host, _)| host.len() < bytes) {
            self.input = None;
            let room = bytes.next_power_of_two();
            self.input = Some((PinnedBytes::new(&self.context, room)?, DeviceBytes::new(computing, room)?));
        }
        self.recorded = 0;
        let Some((host, device)) = &mut self.input else { unreachable!("allocated above") };
        input.write(host.as_mut_slice());
        host.upload(bytes, device.pointer(), copying)?;
        self.uploaded.record(copying).during("recording an event")?;
        computing.wait(&self.uploaded).during("waiting for a batch's input")?;
        Ok(device.pointer())
    }

    /// Tells that a layer has got here.
    pub(super) fn record_layer(&mut self, computing: &CudaStream) -> Result<(), CudaError> {
        if self.recorded == self.layers.len() {
            self.layers.push(self.context.new_event(None).during("making an event")?);
        }
        self.layers[self.recorded].record(computing).during("recording an event")?;
        self.recorded += 1;
        Ok(())
    }

    /// Layers that the device has passed, of those `known` not to be behind it, counted on from there.
    pub(super) fn layers_passed(&self, known: usize) -> Result<usize, CudaError> {
        let mut passed = known;
        while passed < self.recorded && self.layers[passed].try_is_complete().during("waiting for a batch")? {
            passed += 1;
        }
        Ok(passed)
    }

    /// Whether a batch's input needs more room than its place has, so that the place moves.
    pub(super) fn must_move(&self, input: &Input<'_>) -> bool {
        self.input.as_ref().is_some_and(|(host, _)| host.len() < input.layout.bytes)
    }
}

/// Places for results that no batch under way uses. Slots take them and give them back, so that there are never more
/// than slots, and large ones only for as many large batches as there ever were at once.
#[derive(Debug, Default)]
pub(super) struct Outputs(Vec<PinnedBytes>);

impl Outputs {
    /// A place with room for `bytes`: the smallest that has it, or one anew in place of the largest.
    pub(super) fn take(
        &mut self,
        context: &Arc<CudaContext>,
        bytes: usize,
    ) -> Result<PinnedBytes, CudaError> {
        self.0.sort_by_key(PinnedBytes::len);
        if let Some(position) = self.0.iter().position(|place| place.len() >= bytes) {
            return Ok(self.0.remove(position));
        }
        drop(self.0.pop());
        PinnedBytes::new(context, output_room(bytes))
    }

    pub(super) fn give(&mut self, place: PinnedBytes) {
        self.0.push(place);
    }
}

/// Bytes of a place for `bytes` of results: pinned memory is the host's, and a row for each residue of a full batch is
/// hundreds of megabytes, of which the next power of two may be twice as many.
fn output_room(bytes: usize) -> usize {
    const STEP: usize = 64 << 20;
    if bytes <= STEP { bytes.next_power_of_two() } else { bytes.next_multiple_of(STEP) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_batch_is_where_the_kernels_look_for_it() {
        let mut batch = Batch::default();
        batch.push(7, b"MKV", 2);
        batch.push(9, &[b'L'; 70], 70);
        batch.push(11, b"W", 1);
        let input = Input::new(&batch, None);
        let layout = input.layout;
        let mut bytes = vec![0xee; layout.bytes + 64];
        input.write(&mut bytes);
        let numbers = |at: usize, count: usize| -> Vec<i32> {
            bytes[at..at + 4 * count].as_chunks::<4>().0.iter().map(|&raw| i32::from_le_bytes(raw)).collect()
        };
        assert_eq!(numbers(layout.cu_seqlens, 4), [0, 5, 77, 80]);
        assert_eq!(input.tiles(), 4);
        assert_eq!(numbers(layout.tiles, 8), [1, 0, 1, 64, 0, 0, 2, 0]);
        assert_eq!(numbers(layout.pooled, 3), [2, 70, 1]);
        assert_eq!(numbers(layout.rows_before, 3), [0, 2, 72]);
        assert_eq!(bytes[layout.tokens..][..80], batch.tokens);
        assert!(bytes[layout.bytes..].iter().all(|&byte| byte == 0xee), "nothing is written beyond the end");
        let parts = [layout.tiles, layout.tokens, layout.cu_seqlens, layout.pooled, layout.rows_before];
        assert!(parts.is_sorted() && parts.iter().all(|part| part % 128 == 0));
    }

    #[test]
    fn batches_of_one_size_have_all_that_a_graph_reads_in_the_same_places() {
        let batch = |lengths: &[usize]| {
            let mut batch = Batch::default();
            for &length in lengths {
                batch.push(batch.len() as u64, &vec![b'L'; length], length as u32);
            }
            batch
        };
        let (one, other) = (batch(&[3, 70, 1]), batch(&[9; 10]));
        let (one, other) = (Input::new(&one, Some(128)), Input::new(&other, Some(128)));
        let places = |layout: InputLayout| [layout.tiles, layout.tokens, layout.cu_seqlens];
        assert_eq!(places(one.layout), places(other.layout));
        assert_eq!((one.tiles(), one.tile_room(), other.tiles(), other.tile_room()), (4, 16, 10, 16));
        let mut bytes = vec![0xee; one.layout.bytes];
        one.write(&mut bytes);
        let table = bytes[one.layout.tiles..][..8 * 16].as_chunks::<8>().0;
        let empty = EMPTY_TILE.map(i32::to_le_bytes);
        assert!(table[4..].iter().all(|entry| entry[..4] == empty[0] && entry[4..] == empty[1]));
        assert_ne!(table[3][4..], empty[1]);
    }

    #[test]
    fn large_places_for_results_grow_by_steps() {
        for (bytes, room) in [
            (1, 1),
            (1_000, 1_024),
            (64 << 20, 64 << 20),
            ((64 << 20) + 1, 128 << 20),
            // The 3B model's rows of 33,792 residues, which took 512 MiB.
            (346_030_080, 384 << 20),
        ] {
            assert_eq!(output_room(bytes), room, "{bytes}");
        }
    }
}
