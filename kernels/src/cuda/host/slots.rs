//! What each batch under way has for itself: its input, its place for results, its events.
//!
//! The device computes one batch after the other; meanwhile the next one's input is copied to it and the results of
//! the one before are copied from it. Activations are shared, since one stream computes.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream};

use super::buffer::{DeviceBytes, PinnedBytes};
use super::error::{CudaError, During};
use crate::Batch;
use crate::cuda::{rows_before, tiles};

/// Batches under way: one computes, one is copied to the device, one from it.
pub(super) const SLOTS: usize = 3;

/// Where the parts of a batch's input lie, one after the other in one copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InputLayout {
    /// [sequences + 1] i32.
    pub(super) cu_seqlens: usize,
    /// [tiles] {i32, i32}.
    pub(super) tiles: usize,
    /// [sequences] i32.
    pub(super) pooled: usize,
    /// [sequences] i32.
    pub(super) rows_before: usize,
    /// [tokens] u8.
    pub(super) tokens: usize,
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
        let cu_seqlens = part(4 * (sequences + 1));
        let tiles = part(8 * tiles);
        let pooled = part(4 * sequences);
        let rows_before = part(4 * sequences);
        let tokens = part(tokens);
        Self { cu_seqlens, tiles, pooled, rows_before, tokens, bytes: end }
    }
}

/// A batch as the kernels read it.
#[derive(Clone, Debug)]
pub(super) struct Input<'a> {
    batch: &'a Batch,
    tiles: Vec<[i32; 2]>,
    pub(super) layout: InputLayout,
}

impl<'a> Input<'a> {
    pub(super) fn new(batch: &'a Batch) -> Self {
        let tiles = tiles(&batch.cu_seqlens);
        let layout = InputLayout::new(batch.token_count(), batch.len(), tiles.len());
        Self { batch, tiles, layout }
    }

    pub(super) fn tiles(&self) -> usize {
        self.tiles.len()
    }

    /// Writes all parts to `to`, at least `layout.bytes` long.
    pub(super) fn write(&self, to: &mut [u8]) {
        let Self { batch, tiles, layout } = self;
        let mut put = |at: usize, numbers: &mut dyn Iterator<Item = i32>| {
            for (place, number) in to[at..].chunks_exact_mut(4).zip(numbers) {
                place.copy_from_slice(&number.to_le_bytes());
            }
        };
        // The batch was checked: its numbers are below the number of tokens, which the device's memory limits.
        put(layout.cu_seqlens, &mut batch.cu_seqlens.iter().map(|&limit| limit as i32));
        put(layout.tiles, &mut tiles.iter().flatten().copied());
        put(layout.pooled, &mut batch.pooled_residues.iter().map(|&residues| residues as i32));
        put(layout.rows_before, &mut rows_before(&batch.pooled_residues).into_iter());
        to[layout.tokens..layout.bytes].copy_from_slice(&batch.tokens);
    }
}

/// A batch's own memory and events.
#[derive(Debug)]
pub(super) struct Slot {
    context: Arc<CudaContext>,
    input: Option<(PinnedBytes, DeviceBytes)>,
    output: Option<PinnedBytes>,
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

    /// Makes room for `bytes` of results. The slot must be free.
    pub(super) fn reserve_output(&mut self, bytes: usize) -> Result<&mut PinnedBytes, CudaError> {
        if self.output.as_ref().is_none_or(|output| output.len() < bytes) {
            self.output = None;
            self.output = Some(PinnedBytes::new(&self.context, bytes.next_power_of_two())?);
        }
        let Some(output) = &mut self.output else { unreachable!("allocated above") };
        Ok(output)
    }

    /// The results, once `done` has passed.
    pub(super) fn output(&self) -> &[u8] {
        self.output.as_ref().map_or(&[], PinnedBytes::as_slice)
    }
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
        let input = Input::new(&batch);
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
        assert_eq!(bytes[layout.tokens..layout.bytes], batch.tokens);
        assert!(bytes[layout.bytes..].iter().all(|&byte| byte == 0xee), "nothing is written beyond the end");
        let parts = [layout.cu_seqlens, layout.tiles, layout.pooled, layout.rows_before, layout.tokens];
        assert!(parts.is_sorted() && parts.iter().all(|part| part % 128 == 0));
    }
}
