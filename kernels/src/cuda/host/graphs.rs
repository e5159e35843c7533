//! CUDA graphs: the forward pass of a batch as one launch.
//!
//! Small models are launch-bound: a kernel is over before the host has started the next but one. A graph is the same
//! kernels, captured once and started together. It fixes every address and every number of blocks, so there is one for
//! each slot and size, and a batch fills its size up with rows and tiles that come to nothing.
//!
//! The work of a batch is first listed, then run, captured or replayed, whichever its turn is ([`Graphs::next`]). A
//! graph is launched only where the list is, step for step, the one that it was captured from: whatever moved meanwhile,
//! it never refers to what is not there any more. What has to wait for other streams is no part of it: the copy of the
//! input comes before, pooling and the copy of the rows behind it, whose place batches share.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use cudarc::driver::{CudaGraph, CudaStream, sys};

use super::error::{CudaError, During};
use super::gemm::{Descriptor, Operands};
use super::launch::Arg;
use super::plans::Shape;
use super::slots::SLOTS;
use crate::cuda::{Kernel, Launch};

/// Most graphs that are kept, of as many sizes in each slot: a job's batches are nearly all of one to four sizes, and
/// one of the 150M model's graphs takes about a megabyte.
pub(super) const GRAPHS_MAX: usize = 16 * SLOTS;

/// Sizes that are remembered to have run: more than a device's rows are rounded to.
const SIZES_MAX: usize = 256;

/// What decides whether graphs are used.
const VARIABLE: &str = "VIRNUCPRO_GRAPHS";

/// Whether graphs are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Where they are measured to be faster.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl Wanted {
    /// As `VIRNUCPRO_GRAPHS` says; the sentence that says what is wrong with it otherwise.
    pub(super) fn from_environment() -> Result<Self, String> {
        Self::parse(std::env::var_os(VARIABLE).map(|value| value.to_string_lossy().into_owned()).as_deref())
    }

    fn parse(value: Option<&str>) -> Result<Self, String> {
        match value {
            None | Some("" | "auto") => Ok(Self::Auto),
            Some("on") => Ok(Self::On),
            Some("off") => Ok(Self::Off),
            Some(value) => Err(format!("{VARIABLE}={value}: write auto, on or off")),
        }
    }
}

/// Whether an engine uses CUDA graphs, and what was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GraphUse {
    /// Whether batches are started as graphs.
    pub used: bool,
    /// Time of full batches in a row with graphs, as a part of the time without; `None` where it was not measured.
    pub ratio: Option<f32>,
}

/// Part of the time without that graphs must stay below to be used: less gain is noise.
pub(super) const WORTHWHILE: f32 = 0.98;

/// What a batch's graph depends on besides its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Size {
    /// Rows that products compute.
    pub(super) rows: usize,
    /// Tiles, the empty ones included.
    pub(super) tiles: usize,
    /// Whether the longest sequence is one whose keys are rotated beforehand, by a kernel more per layer.
    pub(super) long: bool,
}

/// A slot's graph of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) slot: usize,
    pub(super) size: Size,
}

/// One thing that the computing stream does.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Kernel {
        kernel: Kernel,
        geometry: Launch,
        args: Vec<Arg>,
    },
    Product {
        shape: Shape,
        descriptor: Arc<Descriptor>,
        operands: Operands,
        /// In the residual stream's type.
        bias: u64,
    },
    /// A layer's attention has run; only a batch without a graph tells of it.
    Layer,
}

impl PartialEq for Step {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Kernel { kernel, geometry, args },
                Self::Kernel { kernel: kernel_, geometry: geometry_, args: args_ },
            ) => kernel == kernel_ && geometry == geometry_ && args == args_,
            (
                Self::Product { shape, descriptor, operands, bias },
                Self::Product { shape: shape_, descriptor: descriptor_, operands: operands_, bias: bias_ },
            ) => {
                shape == shape_
                    && Arc::ptr_eq(descriptor, descriptor_)
                    && (operands, bias) == (operands_, bias_)
            }
            (Self::Layer, Self::Layer) => true,
            (Self::Kernel { .. } | Self::Product { .. } | Self::Layer, _) => false,
        }
    }
}

/// A captured graph, ready to be launched.
pub(super) struct Graph(CudaGraph);

// SAFETY: the driver's graphs are not bound to a thread, and this value is used by one at a time.
unsafe impl Send for Graph {}

impl Graph {
    /// Captures what `work` enqueues on `stream`: kernels alone, nothing that allocates or waits.
    pub(super) fn capture(
        stream: &Arc<CudaStream>,
        work: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<Self, CudaError> {
        // Thread-local: what other threads do with the driver meanwhile spoils nothing.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).during("capturing a CUDA graph")?;
        let enqueued = work();
        // Even where that failed: the stream must be itself again.
        let ended = stream.end_capture(sys::CUgraphInstantiate_flags(0)).during("capturing a CUDA graph");
        enqueued?;
        let empty = CudaError::Driver {
            doing: "capturing a CUDA graph",
            code: sys::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,
        };
        ended?.map(Self).ok_or(empty)
    }

    /// Starts all of it, in the order of the stream that it was captured on.
    pub(super) fn launch(&self) -> Result<(), CudaError> {
        self.0.launch().during("starting a CUDA graph")
    }
}

/// A graph and what it does.
struct Kept<G> {
    graph: G,
    work: Vec<Step>,
    used: u64,
}

/// What is next for a batch's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Each step is started by itself: the first batch of a size may be the only one, and libraries load code at the
    /// first use of it, which a capture does not bear.
    Run,
    /// It is worth a graph.
    Capture,
    /// There is one.
    Launch,
}

/// The graphs of an engine.
pub(super) struct Graphs<G> {
    kept: HashMap<Key, Kept<G>>,
    /// That have run, the latest last.
    sizes: VecDeque<Size>,
    launches: u64,
}

impl<G> Graphs<G> {
    pub(super) fn new() -> Self {
        Self { kept: HashMap::new(), sizes: VecDeque::new(), launches: 0 }
    }

    /// Decides what becomes of a batch's work. Each answer counts as done.
    pub(super) fn next(&mut self, key: Key, work: &[Step]) -> Next {
        match self.kept.get(&key) {
            Some(kept) if kept.work == work => return Next::Launch,
            // Something has moved, which others may refer to as well.
            Some(_) => self.end_all(),
            None => {}
        }
        if self.sizes.contains(&key.size) {
            return Next::Capture;
        }
        if self.sizes.len() == SIZES_MAX {
            self.sizes.pop_front();
        }
        self.sizes.push_back(key.size);
        Next::Run
    }

    /// Keeps a graph; the one that was not used for longest goes if there are too many.
    pub(super) fn keep(&mut self, key: Key, graph: G, work: Vec<Step>) {
        if self.kept.len() >= GRAPHS_MAX {
            let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.used).map(|(&key, _)| key);
            // Its launches under way go on: the driver ends it behind them.
            oldest.and_then(|key| self.kept.remove(&key));
        }
        self.kept.insert(key, Kept { graph, work, used: self.launches });
    }

    /// The graph to be launched.
    pub(super) fn used(&mut self, key: Key) -> Option<&G> {
        self.launches += 1;
        let kept = self.kept.get_mut(&key)?;
        kept.used = self.launches;
        Some(&kept.graph)
    }

    /// Ends all graphs: a place that they may refer to moves.
    pub(super) fn end_all(&mut self) {
        self.kept.clear();
    }
}

/// Tiles that a batch of so many is filled up to: at most a sixteenth more, or sixteen.
///
/// An empty tile costs a thread block that returns at once; few sizes are what makes graphs fit the next batch.
pub(super) fn tile_room(tiles: usize) -> usize {
    /// Below this, the room of one step more is not worth another graph.
    const STEP_MIN: usize = 16;
    let step = (1usize << tiles.saturating_sub(1).max(1).ilog2()) / 16;
    tiles.next_multiple_of(step.max(STEP_MIN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::Number;

    fn key(slot: usize, rows: usize) -> Key {
        Key { slot, size: Size { rows, tiles: 16, long: false } }
    }

    fn work(place: u64) -> Vec<Step> {
        let args = vec![Arg::Pointer(place), Arg::Int(3)];
        vec![
            Step::Kernel { kernel: Kernel::Gelu(Number::F16), geometry: Launch::per_number(99), args },
            Step::Layer,
        ]
    }

    #[test]
    fn the_second_batch_of_a_size_is_captured_and_the_next_replayed_in_each_slot() {
        let mut graphs = Graphs::new();
        assert_eq!(graphs.next(key(0, 128), &work(1)), Next::Run);
        assert_eq!(graphs.next(key(1, 128), &work(2)), Next::Capture);
        graphs.keep(key(1, 128), "one", work(2));
        assert_eq!(graphs.next(key(0, 128), &work(1)), Next::Capture);
        assert_eq!(graphs.next(key(1, 128), &work(2)), Next::Launch);
        assert_eq!(graphs.used(key(1, 128)), Some(&"one"));
        assert_eq!(graphs.next(key(1, 256), &work(2)), Next::Run);
    }

    #[test]
    fn what_moved_ends_all_graphs() {
        let mut graphs = Graphs::new();
        graphs.next(key(0, 128), &work(1));
        for slot in 0..2 {
            graphs.keep(key(slot, 128), slot, work(1));
        }
        assert_eq!(graphs.next(key(0, 128), &work(2)), Next::Capture);
        assert_eq!(graphs.used(key(1, 128)), None);
    }

    #[test]
    fn no_more_than_so_many_are_kept_and_the_one_unused_for_longest_goes() {
        let mut graphs = Graphs::new();
        for rows in 0..GRAPHS_MAX {
            graphs.keep(key(0, rows), rows, work(1));
            graphs.used(key(0, rows));
        }
        graphs.used(key(0, 0));
        graphs.keep(key(0, GRAPHS_MAX), GRAPHS_MAX, work(1));
        assert_eq!(graphs.kept.len(), GRAPHS_MAX);
        assert_eq!(graphs.used(key(0, 1)), None);
        assert_eq!(graphs.used(key(0, 0)), Some(&0));
        for rows in 0..2 * SIZES_MAX {
            assert_eq!(graphs.next(key(0, 1_000 + rows), &work(1)), Next::Run);
        }
        assert_eq!(graphs.sizes.len(), SIZES_MAX);
    }

    #[test]
    fn sizes_are_few_and_waste_little() {
        let mut seen = std::collections::BTreeSet::new();
        for tiles in 1..=1_056 {
            let room = tile_room(tiles);
            assert!(room >= tiles && room - tiles < 16.max(tiles / 16), "{tiles}: {room}");
            seen.insert(room);
        }
        assert!(seen.len() <= 66, "{}", seen.len());
    }

    #[test]
    fn the_variable_says_auto_on_or_off() {
        for (value, wanted) in [
            (None, Wanted::Auto),
            (Some(""), Wanted::Auto),
            (Some("auto"), Wanted::Auto),
            (Some("on"), Wanted::On),
            (Some("off"), Wanted::Off),
        ] {
            assert_eq!(Wanted::parse(value), Ok(wanted));
        }
        assert_eq!(Wanted::parse(Some("yes")), Err("VIRNUCPRO_GRAPHS=yes: write auto, on or off".to_owned()));
    }
}
