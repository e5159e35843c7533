//! The CPU engine allocates its memory with the first batch and uses it again.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use kernels::cpu::CpuEngine;
use kernels::{Batch, Engine, EngineOptions, Model, ModelPath, Pooling, Precision, Progress};

/// Counts what all threads ask for.
struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is that of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is that of `dealloc`.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The counters are those of the process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn batch(lengths: &[usize]) -> Batch {
    let mut batch = Batch::default();
    for (ordinal, &length) in (0..).zip(lengths) {
        let residues: Vec<u8> =
            b"MKVLAWGRNDCQEHIPFSTY".iter().copied().cycle().skip(ordinal as usize).take(length).collect();
        batch.push(ordinal, &residues, length as u32);
    }
    batch
}

/// The fewest allocations and bytes of one of several batches, once the memory is there.
fn per_batch(precision: Precision, layer: usize, lengths: &[usize]) -> (usize, usize) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests/golden/tiny");
    let model = Model::open(&ModelPath::Folder(folder)).unwrap();
    let options = EngineOptions { layer, pooling: Pooling::Mean, precision, threads: 2 };
    let mut engine = CpuEngine::load(&model, options).unwrap();
    let (batch, progress) = (batch(lengths), Progress::default());
    // Threads take turns as they please: each must have had its share of the largest kind.
    for _ in 0..20 {
        engine.run(&batch, &progress).unwrap();
    }
    let counts = (0..10).map(|_| {
        let (calls, bytes) = (CALLS.load(Ordering::Relaxed), BYTES.load(Ordering::Relaxed));
        engine.run(&batch, &progress).unwrap();
        (CALLS.load(Ordering::Relaxed) - calls, BYTES.load(Ordering::Relaxed) - bytes)
    });
    counts.min().unwrap()
}

/// Batches that threads share by sequences, and by operations.
const BATCHES: [&[usize]; 2] = [&[150; 20], &[700]];

/// What this machine computes in.
fn precisions() -> impl Iterator<Item = Precision> {
    let all = [Precision::Fp32, Precision::Bf16, Precision::Int8];
    all.into_iter().filter(|&precision| kernels::cpu::check_precision(precision).is_ok())
}

#[test]
fn no_layer_allocates() {
    let _alone = ALONE.lock().unwrap();
    for (precision, lengths) in precisions().flat_map(|one| BATCHES.map(|lengths| (one, lengths))) {
        let [(few, _), (many, _)] = [1, 2].map(|layer| per_batch(precision, layer, lengths));
        // Queues of the thread pool take a new block now and then; one buffer per layer and share would be
        // more.
        let shares = lengths.iter().sum::<usize>() / 384 + 1;
        assert!(
            many < few + shares.max(3),
            "{precision:?} {lengths:?}: {few} allocations with one layer, {many} with two"
        );
    }
}

#[test]
fn a_batch_allocates_little_beside_its_result() {
    let _alone = ALONE.lock().unwrap();
    for (precision, lengths) in precisions().flat_map(|one| BATCHES.map(|lengths| (one, lengths))) {
        let tokens = lengths.iter().map(|length| length + 2).sum::<usize>();
        let (calls, bytes) = per_batch(precision, 2, lengths);
        assert!(bytes < 64 * tokens, "{precision:?} {lengths:?}: {bytes} bytes in {calls} allocations");
    }
}
