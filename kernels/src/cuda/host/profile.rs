//! Time of a batch by kind of work.

use cudarc::driver::{CudaEvent, CudaStream};

use super::error::{CudaError, During};
use super::time::{microseconds_between, timed_event};

/// Kinds of work on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WorkClass {
    /// Matrix products with bias and residual sum.
    Product,
    /// Attention.
    Attention,
    /// Layer norms.
    Norm,
    /// GELU.
    Gelu,
    /// Token embeddings.
    Embed,
    /// Pooling, or gathering residues.
    Pool,
    /// Copies to and from the device, which overlap other batches' work.
    Copy,
}

impl WorkClass {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::Product, Self::Attention, Self::Norm, Self::Gelu, Self::Embed, Self::Pool, Self::Copy];
}

/// Time of one batch, by the device's own clock.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// Microseconds of each kind.
    pub microseconds: Vec<(WorkClass, f32)>,
    /// Microseconds from the first kernel to the last.
    pub total_microseconds: f32,
}

impl Profile {
    /// Microseconds of one kind.
    pub fn of(&self, class: WorkClass) -> f32 {
        self.microseconds.iter().filter(|(kind, _)| *kind == class).map(|(_, time)| time).sum()
    }
}

/// Events between a batch's kinds of work. They take time themselves, a microsecond or two each.
#[derive(Default)]
pub(super) struct Recorder {
    spans: Vec<(WorkClass, CudaEvent, CudaEvent)>,
}

impl Recorder {
    /// Begins a span.
    pub(super) fn begin(stream: &CudaStream) -> Result<CudaEvent, CudaError> {
        let event = timed_event(stream)?;
        event.record(stream).during("recording an event")?;
        Ok(event)
    }

    /// Ends a span that began on the same stream.
    pub(super) fn end(
        &mut self,
        class: WorkClass,
        begin: CudaEvent,
        stream: &CudaStream,
    ) -> Result<(), CudaError> {
        let end = Self::begin(stream)?;
        self.spans.push((class, begin, end));
        Ok(())
    }

    /// Adds up, once the batch is done.
    pub(super) fn profile(&self) -> Result<Profile, CudaError> {
        let mut microseconds: Vec<(WorkClass, f32)> = WorkClass::ALL.map(|class| (class, 0.0)).to_vec();
        for (class, begin, end) in &self.spans {
            let time = microseconds_between(begin, end)?;
            if let Some((_, sum)) = microseconds.iter_mut().find(|(kind, _)| kind == class) {
                *sum += time;
            }
        }
        let computed = || self.spans.iter().filter(|(class, ..)| *class != WorkClass::Copy);
        let total_microseconds = match (computed().next(), computed().next_back()) {
            (Some((_, first, _)), Some((_, _, last))) => microseconds_between(first, last)?,
            _ => 0.0,
        };
        Ok(Profile { microseconds, total_microseconds })
    }
}
