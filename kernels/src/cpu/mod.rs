//! The CPU engine: f32, bfloat16 or 8-bit integers with the best instructions found at run time, no padding.
//!
//! Owns its threads. [`CpuOps`] implements the forward pass's operations; each splits the packed
//! tokens into row blocks or sequences that threads take in turn. No result depends on the split.

mod attention;
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "what its instructions take"))]
mod brain;
mod buffer;
mod elementary;
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "what its instructions take"))]
mod integer;
pub(crate) mod memory;
mod norm;
mod operations;
mod pooling;
mod product;
mod rotary;
mod shares;
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "what its instructions take"))]
mod split;
mod stacked;
mod threads;

use crate::encoder::{Encoder, workspace_floats_per_token};
use crate::model::{Model, ModelConfig};
use crate::{Batch, Embeddings, Engine, EngineDescription, EngineError, EngineOptions, Precision, Progress};

pub use operations::CpuOps;
pub use threads::auto as threads_auto;

/// A model on the CPU.
pub struct CpuEngine {
    encoder: Encoder<CpuOps>,
    lanes: shares::Lanes,
    config: ModelConfig,
    threads: usize,
    memory: memory::MemoryGauge,
    description: EngineDescription,
}

impl CpuEngine {
    /// Prepares `model` for `options.threads` threads of its own.
    ///
    /// # Errors
    /// [`EngineError::Model`] for a precision that this machine lacks or a layer beyond the model,
    /// [`EngineError::OutOfMemory`] and [`EngineError::Device`] when the machine lacks memory or
    /// threads.
    pub fn load(model: &Model, options: EngineOptions) -> Result<Self, EngineError> {
        Self::with_ops(CpuOps::new, model, options)
    }

    /// As [`CpuEngine::load`], but in f32 with multiply-adds even where tiles are faster: to compare them.
    ///
    /// # Errors
    /// As of [`CpuEngine::load`].
    pub fn load_without_tiles(model: &Model, options: EngineOptions) -> Result<Self, EngineError> {
        Self::with_ops(CpuOps::without_tiles, model, options)
    }

    fn with_ops(
        new_ops: fn(usize, usize, Precision) -> Result<CpuOps, EngineError>,
        model: &Model,
        options: EngineOptions,
    ) -> Result<Self, EngineError> {
        let config = model.config().clone();
        let (threads, precision) = (options.threads, options.precision);
        let ops = new_ops(config.head_width(), threads, precision)?;
        let encoder = Encoder::load(ops, model, options)?;
        let description = EngineDescription {
            name: format!(
                "cpu ({}, {threads} {})",
                match precision {
                    Precision::Bf16 => bf16_instructions().unwrap_or_default(),
                    Precision::Int8 => int8_instructions().unwrap_or_default(),
                    Precision::Fp32 | Precision::Fp16 => encoder.ops().fp32_instructions(),
                },
                if threads == 1 { "thread" } else { "threads" }
            ),
            hidden: config.hidden,
            weights_bytes: encoder.ops().weights_bytes(),
            bytes_per_token: bytes_per_token(&config),
            token_budget: None,
            slots: 2,
        };
        let lanes = shares::Lanes::new(&encoder);
        let memory = memory::MemoryGauge::new();
        Ok(Self { encoder, lanes, config, threads: threads.max(1), memory, description })
    }
}

impl Engine for CpuEngine {
    fn description(&self) -> &EngineDescription {
        &self.description
    }

    fn run(&mut self, batch: &Batch, progress: &Progress) -> Result<Embeddings, EngineError> {
        batch.check(self.config.vocab).map_err(EngineError::Batch)?;
        match shares::shares(batch, &self.config, self.threads) {
            Some(shares) => self.lanes.run(&self.encoder, batch, &shares, progress),
            None => self.encoder.run(batch, progress),
        }
    }

    fn memory_in_use(&mut self) -> Option<f32> {
        self.memory.share()
    }
}

/// Whether the engine computes in `precision` on this machine.
///
/// # Errors
/// A sentence that says why not and what to set instead.
pub fn check_precision(precision: Precision) -> Result<(), String> {
    match precision {
        Precision::Fp32 => Ok(()),
        Precision::Bf16 if bf16_instructions().is_some() => Ok(()),
        Precision::Bf16 => Err(
            "this processor has no AMX, nor an AVX512_BF16 that is faster than fp32 (Intel's is not), so \
             that the CPU engine would be slower in bf16: set `precision = \"fp32\"` or \"auto\""
                .to_owned(),
        ),
        Precision::Fp16 => {
            Err("the CPU engine computes in fp32, bf16 or int8, not in fp16: set `precision = \"fp32\"`, \
             \"bf16\", \"int8\" or \"auto\""
                .to_owned())
        }
        Precision::Int8 if int8_instructions().is_some() => Ok(()),
        Precision::Int8 => {
            Err("this processor has neither AMX nor AVX512_VNNI, without which the CPU engine \
             would be slower in int8 than in fp32: set `precision = \"fp32\"` or \"auto\""
                .to_owned())
        }
    }
}

/// Whether what the environment says to the engine can be understood.
///
/// # Errors
/// A sentence that names the variable, its value and what it may be.
pub fn check_environment() -> Result<(), String> {
    split::Kernel::wanted().map(|_| ())
}

/// The instructions that the engine uses in bf16 on this machine; `None` where it refuses bf16.
pub fn bf16_instructions() -> Option<&'static str> {
    brain::Kernel::detect().map(brain::Kernel::name)
}

/// The instructions that multiply in int8 on this machine; `None` where the engine refuses int8.
pub fn int8_instructions() -> Option<&'static str> {
    integer::Kernel::detect().map(integer::Kernel::name)
}

/// The instructions that the engine uses in fp32 on this machine.
pub fn fp32_instructions() -> &'static str {
    // With a variable that says neither no engine is made.
    split::Kernel::wanted().ok().flatten().map_or_else(instructions, split::Kernel::name)
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
    #[cfg(target_arch = "x86_64")]
    {
        let vectors = [
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("fma", std::arch::is_x86_feature_detected!("fma")),
            ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
            ("avx512vnni", std::arch::is_x86_feature_detected!("avx512vnni")),
            ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
        ];
        vectors
            .into_iter()
            .filter(|(_, present)| *present)
            .map(|(name, _)| name)
            .chain(amx_features())
            .collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    if cfg!(target_arch = "aarch64") { vec!["neon"] } else { Vec::new() }
}

/// What the processor has of AMX; whether this process may use it is asked when it is to be used.
#[cfg(target_arch = "x86_64")]
fn amx_features() -> impl Iterator<Item = &'static str> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    // Leaf 0 says which leaf is the last; of leaf 7, EDX holds these bits.
    let bits = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).edx } else { 0 };
    let names = [("amx_bf16", 22), ("amx_tile", 24), ("amx_int8", 25)];
    names.into_iter().filter(move |(_, bit)| bits & (1 << bit) != 0).map(|(name, _)| name)
}

/// The rotary frequencies of a head `head_width` wide, rounded to f32 as in published files.
pub fn rotary_frequencies(head_width: usize) -> Vec<f32> {
    rotary::rotary_frequencies(head_width)
}

/// Bytes of activations that one token of a batch takes.
///
/// Attention takes, besides, about 8 bytes per token of the longest sequence and per column of a
/// head on each thread.
pub fn bytes_per_token(config: &ModelConfig) -> u64 {
    4 * workspace_floats_per_token(config) as u64
}

/// Tokens of a batch that suit `threads` threads.
///
/// Two thousand per thread: threads take shares of some 384 tokens, so that no larger budget changes what
/// stays in cache, and five shares each divide evenly enough. On a loaded machine the 8M model's speed was
/// the same, within the noise of 10 %, from 512 to 8,192 tokens on two threads. A large model gets fewer, so
/// that a batch takes seconds rather than minutes: the work lost by a failure and the wait for a stop are one
/// batch.
pub fn token_budget_auto(config: &ModelConfig, threads: usize) -> u32 {
    const TOKENS_PER_THREAD_MAX: u64 = 2_048;
    /// Ten seconds of a core that does 100 GFLOP/s.
    const FLOPS_PER_THREAD: u64 = 1_000_000_000_000;
    /// Below this, reading the weights from memory once per batch would show.
    const TOKENS_MIN: u64 = 1_024;
    const TOKENS_MAX: u64 = 16_384;
    let per_thread = (FLOPS_PER_THREAD / config.flops_per_token(128).max(1)).min(TOKENS_PER_THREAD_MAX);
    let tokens = per_thread.saturating_mul(threads.max(1) as u64).clamp(TOKENS_MIN, TOKENS_MAX);
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Shape;

    fn published(name: &str) -> ModelConfig {
        Shape::published(name).unwrap().config()
    }

    #[test]
    fn budgets_follow_threads_and_model() {
        let (small, large) = (published("8M"), published("3B"));
        assert_eq!(token_budget_auto(&small, 1), 2_048);
        assert_eq!(token_budget_auto(&small, 2), 4_096);
        assert_eq!(token_budget_auto(&small, 64), 16_384);
        assert_eq!(token_budget_auto(&large, 2), 1_024);
        assert_eq!(token_budget_auto(&small, 0), 2_048);
    }

    #[test]
    fn the_published_sizes_have_the_published_counts() {
        // 24 d² + 4 L d per layer: 15.74 MFLOP per token of the 8M model, 1.319 G of the 650M.
        assert_eq!(published("8M").flops_per_token(128) / 10_000, 1_572);
        assert_eq!(published("650M").flops_per_token(128) / 1_000_000, 1_319);
        assert_eq!(published("8M").parameters(), 6 * 1_232_960 + 33 * 320 + 2 * 320);
        assert_eq!(bytes_per_token(&published("650M")), 4 * 7 * 1_280 - 4 * 1_280);
    }
}
