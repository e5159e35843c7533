//! The seam between orchestration and compute: load weights once, then run batches.
//!
//! A worker process owns one engine on one thread. Engines know nothing of actors, leases or files
//! of results; orchestration knows nothing of kernels.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::Batch;

/// How the residues of a sequence become its embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Pooling {
    /// Mean over residues, BOS and EOS excluded.
    Mean,
    /// The vector of the BOS token.
    Bos,
    /// Element-wise maximum over residues, BOS and EOS excluded.
    Max,
    /// No pooling: one vector per residue.
    None,
}

/// Arithmetic of the forward pass; results leave every engine as f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Precision {
    /// 32-bit throughout.
    Fp32,
    /// bfloat16 products, 32-bit sums.
    Bf16,
    /// float16 products, 32-bit sums.
    Fp16,
    /// Products of 8-bit integers, exact sums; a scale per output of a layer and per token.
    Int8,
}

/// What a job asks of an engine besides the weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineOptions {
    /// Which hidden state is returned: 0 (embedding) to the number of layers (after the final layer norm).
    pub layer: usize,
    /// How residues are pooled.
    pub pooling: Pooling,
    /// Arithmetic.
    pub precision: Precision,
    /// CPU threads the engine may use; at least 1.
    pub threads: usize,
}

/// What an engine says of itself once loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineDescription {
    /// Engine and hardware, for people: `cpu (AVX-512, 2 threads)`.
    pub name: String,
    /// Width of an embedding.
    pub hidden: usize,
    /// Bytes held by the weights.
    pub weights_bytes: u64,
    /// Bytes of activations per token of a batch.
    pub bytes_per_token: u64,
    /// Most tokens of a batch that fit the device's memory; `None` where nothing limits them.
    pub token_budget: Option<u32>,
    /// Batches that a worker should hold, those that the device computes included, for it never to wait.
    pub slots: u32,
}

/// Embeddings of one batch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embeddings {
    /// Width of a row.
    pub hidden: usize,
    /// Row-major [rows, hidden]; the rows of sequence 0 first, then those of sequence 1, ….
    pub values: Vec<f32>,
}

/// Why an engine did not return a batch. Variants follow what the caller does next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum EngineError {
    /// The batch does not fit: split it.
    #[error("out of memory for a batch of {tokens} tokens")]
    OutOfMemory {
        /// Tokens of the batch that did not fit.
        tokens: usize,
    },
    /// Some sequences gave NaN or infinite values: run those alone, keep the others.
    #[error("non-finite values in {} of the batch's sequences", sequences.len())]
    NonFinite {
        /// Positions in the batch.
        sequences: Vec<u32>,
    },
    /// The batch failed; the engine is still usable: try again.
    #[error("batch failed: {0}")]
    Batch(String),
    /// The engine or its device is unusable: restart the worker.
    #[error("device failed: {0}")]
    Device(String),
    /// The weights or options can never work: stop.
    #[error("{0}")]
    Model(String),
}

/// Counts steps of work, so that a watchdog can tell a slow batch from a hung one.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Says that one more step was done.
    pub fn tick(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Steps done so far.
    pub fn ticks(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A loaded model on one device.
///
/// Every engine runs one batch at a time ([`Engine::run`]). One that computes asynchronously holds
/// several, up to [`Engine::depth`]: [`Engine::begin`] hands them over and returns while they compute,
/// [`Engine::finish`] waits for the oldest.
pub trait Engine: Send {
    /// What was loaded where.
    fn description(&self) -> &EngineDescription;

    /// Runs one batch.
    ///
    /// Ticks `progress` at least once per layer. Returns rows in the order of the batch.
    ///
    /// # Errors
    /// See [`EngineError`]; the caller decides between split, retry and restart.
    fn run(&mut self, batch: &Batch, progress: &Progress) -> Result<Embeddings, EngineError>;

    /// Runs one batch in fp32, whatever the precision asked for: its sequences overflowed in that one.
    ///
    /// An engine that computes in fp32, or in a precision with the range of fp32 (bf16; int8 with a scale for each row),
    /// need not do anything about it: what overflows there overflows in fp32 as well.
    ///
    /// # Errors
    /// As of [`Engine::run`].
    fn run_exact(&mut self, batch: &Batch, progress: &Progress) -> Result<Embeddings, EngineError> {
        self.run(batch, progress)
    }

    /// Batches that may have begun and not finished; 1 for an engine that only runs one at a time.
    fn depth(&self) -> usize {
        1
    }

    /// Hands over one batch and returns while it computes, in fp32 if `exact`; see [`Engine::run_exact`].
    ///
    /// For engines whose [`Engine::depth`] is above 1, while fewer batches than that have begun. An error
    /// means that this batch has not begun; those before it are not touched, except by
    /// [`EngineError::Device`], which ends them all.
    ///
    /// # Errors
    /// See [`EngineError`].
    fn begin(&mut self, batch: &Batch, exact: bool, progress: &Progress) -> Result<(), EngineError> {
        let _ = (batch, exact, progress);
        Err(EngineError::Batch("the engine runs one batch at a time".into()))
    }

    /// Waits for the oldest batch that has begun and takes its embeddings, rows in the order of the batch.
    ///
    /// Ticks `progress` only when the device has got further. After any error but
    /// [`EngineError::Device`] the batch is done with and the next may be finished.
    ///
    /// # Errors
    /// See [`EngineError`].
    fn finish(&mut self, progress: &Progress) -> Result<Embeddings, EngineError> {
        let _ = progress;
        Err(EngineError::Batch("no batch has begun".into()))
    }

    /// Share of the device's memory in use at its fullest, as far as the device tells, 0..=1.
    ///
    /// Asked for after each batch; must not take longer than a batch of one sequence.
    fn memory_in_use(&mut self) -> Option<f32> {
        None
    }
}
