//! The CPU engine: f32 with the best vector instructions found at run time, no padding.
//!
//! Owns its threads. [`CpuOps`] implements the forward pass's operations; each splits the packed
//! tokens into row blocks or sequences that threads take in turn. No result depends on the split.

mod attention;
mod buffer;
mod elementary;
mod norm;
mod operations;
mod pooling;
mod product;

use crate::encoder::{Encoder, workspace_floats_per_token};
use crate::model::{Model, ModelConfig};
use crate::{Batch, Embeddings, Engine, EngineDescription, EngineError, EngineOptions, Precision, Progress};

pub use operations::CpuOps;

/// A model on the CPU.
pub struct CpuEngine {
    encoder: Encoder<CpuOps>,
    description: EngineDescription,
}

impl CpuEngine {
    /// Prepares `model` for `options.threads` threads of its own.
    ///
    /// # Errors
    /// [`EngineError::Model`] for a precision other than f32 or a layer beyond the model,
    /// [`EngineError::OutOfMemory`] and [`EngineError::Device`] when the machine lacks memory or
    /// threads.
    pub fn load(model: &Model, options: EngineOptions) -> Result<Self, EngineError> {
        match options.precision {
            Precision::Fp32 => {}
            Precision::Bf16 | Precision::Fp16 => {
                return Err(EngineError::Model(format!(
                    "the CPU engine computes in fp32 only, not {:?}: set `precision = \"fp32\"` or \"auto\"",
                    options.precision
                )));
            }
        }
        let config = model.config().clone();
        let threads = options.threads;
        let ops = CpuOps::new(config.head_width(), threads)?;
        let encoder = Encoder::load(ops, model, options)?;
        let description = EngineDescription {
            name: format!(
                "cpu ({}, {threads} {})",
                instructions(),
                if threads == 1 { "thread" } else { "threads" }
            ),
            hidden: config.hidden,
            weights_bytes: encoder.ops().weights_bytes(),
            bytes_per_token: bytes_per_token(&config),
        };
        Ok(Self { encoder, description })
    }
}

impl Engine for CpuEngine {
    fn description(&self) -> &EngineDescription {
        &self.description
    }

    fn run(&mut self, batch: &Batch, progress: &Progress) -> Result<Embeddings, EngineError> {
        self.encoder.run(batch, progress)
    }
}

/// The vector instructions that the engine uses on this machine.
pub fn instructions() -> &'static str {
    match product::lanes(pulp::Arch::new()) {
        16 => "AVX-512",
        8 => "AVX2",
        4 => "NEON",
        _ => "no vector instructions",
    }
}

/// Instruction sets of this machine that matter to the engine, now or later.
pub fn features() -> Vec<&'static str> {
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "filled on x86-64 only"))]
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        for (name, present) in [
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("fma", std::arch::is_x86_feature_detected!("fma")),
            ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
            ("avx512vnni", std::arch::is_x86_feature_detected!("avx512vnni")),
            ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
        ] {
            if present {
                found.push(name);
            }
        }
    }
    #[cfg(target_arch = "aarch64")]
    return vec!["neon"];
    #[cfg(not(target_arch = "aarch64"))]
    found
}

/// The rotary frequencies of a head `head_width` wide, rounded to f32 as in published files.
pub fn rotary_frequencies(head_width: usize) -> Vec<f32> {
    attention::rotary_frequencies(head_width)
}

/// Bytes of activations that one token of a batch takes.
///
/// Attention takes, besides, about 8 bytes per token of the longest sequence and per column of a
/// head on each thread.
pub fn bytes_per_token(config: &ModelConfig) -> u64 {
    4 * workspace_floats_per_token(config) as u64
}

/// Tokens of a batch that suit `threads` threads.
pub fn token_budget_auto(_config: &ModelConfig, threads: usize) -> u32 {
    (1_024 * threads.max(1)).min(16_384) as u32
}
