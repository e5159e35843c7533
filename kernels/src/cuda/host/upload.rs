//! Weights from the mapped file to the device, without the whole model in the host's memory.
//!
//! A tensor passes through two pinned buffers in turn: while one is copied to the device, the other is filled from
//! the file. Numbers of another type than asked for land in a buffer of the device and are converted there while the
//! next ones are copied.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream};

use super::buffer::{DeviceBytes, PinnedBytes};
use super::compile::Modules;
use super::error::{CudaError, During};
use super::launch::{Arg, launch};
use crate::cuda::{Kernel, Launch, Number};
use crate::model::{StoredType, Tensor};

/// Bytes that are copied at once: enough for full speed on PCIe, and little beside a model.
const CHUNK_BYTES: usize = 16 << 20;

/// Threads that read the file: from the page cache one alone is slower than PCIe.
const READERS: usize = 4;

/// Fewest bytes that are worth a thread.
const READ_BYTES_MIN: usize = 1 << 20;

impl From<StoredType> for Number {
    fn from(stored: StoredType) -> Self {
        match stored {
            StoredType::F32 => Self::F32,
            StoredType::F16 => Self::F16,
            StoredType::Bf16 => Self::Bf16,
        }
    }
}

/// One of the two ways that chunks take in turn.
struct Lane {
    pinned: PinnedBytes,
    /// Made when a type has to be converted.
    staged: Option<DeviceBytes>,
    /// The pinned bytes are on the device.
    copied: CudaEvent,
    /// The staged bytes are converted.
    converted: CudaEvent,
}

/// Uploads weights; dropped once all are on the device.
pub(super) struct Uploader {
    copying: Arc<CudaStream>,
    computing: Arc<CudaStream>,
    lanes: Vec<Lane>,
    next: usize,
    /// i32, not 0 if a finite number became infinite.
    overflowed: DeviceBytes,
}

impl Uploader {
    pub(super) fn new(copying: &Arc<CudaStream>, computing: &Arc<CudaStream>) -> Result<Self, CudaError> {
        let context = computing.context();
        let lane = || {
            Ok::<_, CudaError>(Lane {
                pinned: PinnedBytes::new(context, CHUNK_BYTES)?,
                staged: None,
                copied: context.new_event(None).during("making an event")?,
                converted: context.new_event(None).during("making an event")?,
            })
        };
        Ok(Self {
            copying: copying.clone(),
            computing: computing.clone(),
            lanes: vec![lane()?, lane()?],
            next: 0,
            overflowed: DeviceBytes::zeroed(computing, 4)?,
        })
    }

    /// The numbers of `parts`, one tensor after the other, as `to`. They are there for what the computing stream does
    /// next.
    pub(super) fn upload(
        &mut self,
        modules: &Modules,
        parts: &[&Tensor<'_>],
        to: Number,
    ) -> Result<DeviceBytes, CudaError> {
        let from = parts.first().map_or(StoredType::F32, |part| part.stored);
        let mixed = parts.iter().any(|part| part.stored != from);
        // Tensors of several types meet in f32, which holds each of their numbers.
        let widened: Vec<Vec<u8>> = match mixed {
            true => parts
                .iter()
                .map(|part| part.to_f32().into_iter().flat_map(f32::to_le_bytes).collect())
                .collect(),
            false => Vec::new(),
        };
        let from = if mixed { Number::F32 } else { Number::from(from) };
        let sources: Vec<&[u8]> = match mixed {
            true => widened.iter().map(Vec::as_slice).collect(),
            false => parts.iter().map(|part| &*part.bytes).collect(),
        };
        let count = sources.iter().map(|bytes| bytes.len()).sum::<usize>() / from.bytes();
        let target = DeviceBytes::new(&self.computing, count * to.bytes())?;
        let mut done = 0;
        let mut remaining = Remaining { sources: &sources, offset: 0 };
        while done < count {
            let numbers = (count - done).min(CHUNK_BYTES / 4);
            let place = target.pointer() + (done * to.bytes()) as u64;
            self.chunk(modules, &mut remaining, numbers, (from, to), place)?;
            done += numbers;
        }
        Ok(target)
    }

    fn chunk(
        &mut self,
        modules: &Modules,
        remaining: &mut Remaining<'_>,
        numbers: usize,
        (from, to): (Number, Number),
        place: u64,
    ) -> Result<(), CudaError> {
        let lane = &mut self.lanes[self.next];
        self.next = 1 - self.next;
        let bytes = numbers * from.bytes();
        lane.copied.synchronize().during("waiting for weights to be copied")?;
        remaining.fill(&mut lane.pinned.as_mut_slice()[..bytes]);
        if from == to {
            lane.pinned.upload(bytes, place, &self.copying)?;
        } else {
            if lane.staged.is_none() {
                lane.staged = Some(DeviceBytes::new(&self.computing, CHUNK_BYTES)?);
            }
            let Some(staged) = &lane.staged else { unreachable!("allocated above") };
            self.copying.wait(&lane.converted).during("waiting for weights to be converted")?;
            lane.pinned.upload(bytes, staged.pointer(), &self.copying)?;
        }
        lane.copied.record(&self.copying).during("recording an event")?;
        self.computing.wait(&lane.copied).during("waiting for weights to be copied")?;
        if from != to {
            let staged = lane.staged.as_ref().map_or(0, DeviceBytes::pointer);
            let args = [
                Arg::Pointer(staged),
                Arg::Pointer(place),
                Arg::Long(numbers as i64),
                Arg::Pointer(self.overflowed.pointer()),
            ];
            let function = modules.function(Kernel::Convert { from, to })?;
            launch(&self.computing, &function, Launch::per_number(numbers), &args)?;
            lane.converted.record(&self.computing).during("recording an event")?;
        }
        Ok(())
    }

    /// Waits until all is on the device; tells whether a finite number became infinite on the way.
    pub(super) fn finish(mut self) -> Result<bool, CudaError> {
        let lane = &mut self.lanes[0];
        lane.copied.synchronize().during("waiting for weights to be copied")?;
        lane.pinned.download(0, self.overflowed.pointer(), 4, &self.computing)?;
        self.computing.synchronize().during("waiting for weights to be converted")?;
        Ok(lane.pinned.as_slice()[..4] != [0; 4])
    }
}

/// Bytes that have not been copied yet.
struct Remaining<'a> {
    sources: &'a [&'a [u8]],
    /// In the first of `sources`.
    offset: usize,
}

impl Remaining<'_> {
    /// Takes the next bytes, as many as `to` has room for.
    fn fill(&mut self, mut to: &mut [u8]) {
        while let (false, Some(source)) = (to.is_empty(), self.sources.first()) {
            let bytes = to.len().min(source.len() - self.offset);
            let (head, tail) = to.split_at_mut(bytes);
            read(&source[self.offset..self.offset + bytes], head);
            to = tail;
            self.offset += bytes;
            if self.offset == source.len() {
                self.sources = &self.sources[1..];
                self.offset = 0;
            }
        }
    }
}

/// Copies by several threads: most of the time goes into mapping the file's pages.
fn read(from: &[u8], to: &mut [u8]) {
    let share = from.len().div_ceil(READERS).max(READ_BYTES_MIN);
    if from.len() <= share {
        to.copy_from_slice(from);
        return;
    }
    std::thread::scope(|scope| {
        for (from, to) in from.chunks(share).zip(to.chunks_mut(share)) {
            scope.spawn(move || to.copy_from_slice(from));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_follow_each_other_across_tensors() {
        let sources: Vec<Vec<u8>> = [5, 0, 1, 17, 3]
            .iter()
            .scan(0u8, |next, &length| {
                let begin = *next;
                *next += length;
                Some((begin..*next).collect())
            })
            .collect();
        let sources: Vec<&[u8]> = sources.iter().map(Vec::as_slice).collect();
        for chunk in 1..=30 {
            let mut remaining = Remaining { sources: &sources, offset: 0 };
            let mut all = Vec::new();
            while all.len() < 26 {
                let mut bytes = vec![0xee; chunk.min(26 - all.len())];
                remaining.fill(&mut bytes);
                all.extend(bytes);
            }
            assert_eq!(all, (0..26).collect::<Vec<u8>>(), "{chunk}");
        }
    }

    #[test]
    fn several_threads_copy_every_byte() {
        let from: Vec<u8> = (0..READ_BYTES_MIN * 3 + 17).map(|place| (place % 251) as u8).collect();
        let mut to = vec![0; from.len()];
        read(&from, &mut to);
        assert!(from == to);
    }
}
