//! What fits a device: the types that numbers are kept in, bytes of weights and activations, tokens of a batch.
//!
//! Plain arithmetic, free of any CUDA call.

use crate::cuda::Number;
use crate::{ModelConfig, Pooling, Precision};

/// Memory for the products' own use. On sm_90 cuBLASLt's manual asks for 32 MiB.
pub const WORKSPACE_BYTES: u64 = 32 << 20;

/// Most tokens of a batch, four waves of an H100: more makes no product faster, and a batch that fails or is
/// stopped costs more work.
pub const TOKENS_MAX: usize = 33_792;

/// Fewest tokens that a device must have room for: the longest sequence that ESM-2 was trained on, 1,022
/// residues with BOS and EOS.
pub const TOKENS_MIN: usize = 1_024;

/// Rows of a tile of a matrix product.
const TILE_ROWS: usize = 128;

/// Types that a forward pass keeps its numbers in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Numbers {
    /// Weights, and activations other than the residual stream.
    pub inside: Number,
    /// The residual stream.
    ///
    /// In fp16 it is f16 as well: in f32 it would add 12 bytes per column, token and layer to what norms and
    /// products move (about 10 of the 3B model's 230 ns on an H100), and f16's 11 bits are enough for a pooled
    /// cosine of 0.99999. bf16 has 8 bits, and a sum over dozens of layers loses digits that pooled vectors show:
    /// there it is f32.
    pub residual: Number,
}

impl Numbers {
    /// The types for `precision`.
    pub fn of(precision: Precision) -> Self {
        match precision {
            // In int8 no GPU computes: `Gpu::require` refuses it before anything is loaded.
            Precision::Fp32 | Precision::Int8 => Self { inside: Number::F32, residual: Number::F32 },
            Precision::Fp16 => Self { inside: Number::F16, residual: Number::F16 },
            Precision::Bf16 => Self { inside: Number::Bf16, residual: Number::F32 },
        }
    }
}

/// Bytes that the weights of the embedding and of `layers` layers take on the device.
pub fn weights_bytes(config: &ModelConfig, layers: usize, numbers: Numbers) -> u64 {
    let (hidden, intermediate) = (config.hidden as u64, config.intermediate as u64);
    let inside = numbers.inside.bytes() as u64;
    let residual = numbers.residual.bytes() as u64;
    let matrices = (4 * hidden * hidden + 2 * hidden * intermediate) * inside;
    let biases = (3 * hidden + intermediate) * inside + 2 * hidden * residual;
    let norms = 4 * hidden * 4;
    layers as u64 * (matrices + biases + norms) + config.vocab as u64 * hidden * inside + 2 * hidden * 4
}

/// Bytes of activations per token of a batch, and of its rows where each residue has one.
pub fn bytes_per_token(config: &ModelConfig, pooling: Pooling, numbers: Numbers) -> u64 {
    let hidden = config.hidden as u64;
    let wide = (3 * config.hidden).max(config.intermediate) as u64;
    let rows = match pooling {
        Pooling::None => 4 * hidden,
        Pooling::Mean | Pooling::Bos | Pooling::Max => 0,
    };
    hidden * numbers.residual.bytes() as u64 + (hidden + wide) * numbers.inside.bytes() as u64 + rows
}

/// Rows that products compute for a batch of `tokens`, `budget` being the device's.
///
/// Plans are kept per number of rows, so these are few: steps of a thirty-second of the next lower power of two,
/// at least one tile. At most a thirty-second is computed in vain, about a third of the narrowest product's last
/// wave at the budget. The budget itself, whole waves, is never passed.
pub fn rows(tokens: usize, budget: usize) -> usize {
    let step = (1usize << tokens.saturating_sub(1).max(1).ilog2()) / 32;
    let rows = tokens.next_multiple_of(step.max(TILE_ROWS));
    if tokens <= budget { rows.min(budget.next_multiple_of(TILE_ROWS)) } else { rows }
}

/// What a model takes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Bytes of the weights.
    pub weights_bytes: u64,
    /// Bytes of activations per token.
    pub bytes_per_token: u64,
    /// Most tokens of a batch.
    pub token_budget: usize,
}

/// A model that does not fit a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the model does not fit this GPU: weights, a sequence of {TOKENS_MIN} tokens and a reserve take {}, {} are free; \
     use a smaller model, fp16 or bf16, or a GPU that is not shared",
    gigabytes(*needed), gigabytes(*free)
)]
pub struct DoesNotFit {
    /// Bytes needed at least.
    pub needed: u64,
    /// Bytes that are free.
    pub free: u64,
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// Bytes that stay free.
///
/// An eighth of the device, so that full use stays below the nine tenths at which the orchestrator takes memory to
/// be short, and room for what is not counted: code, rotary tables, inputs and pooled rows.
fn reserve(total: u64) -> u64 {
    total / 8 + (128 << 20)
}

impl MemoryPlan {
    /// Plans for a device of which `free` of `total` bytes are free, nothing of the model being there yet.
    ///
    /// `multiprocessors`: a wave is a tile of 128 rows for each two of them, the other two dimensions being wide
    /// enough to share it out; the products of whole waves leave none idle.
    ///
    /// # Errors
    /// [`DoesNotFit`].
    pub fn new(
        config: &ModelConfig,
        layers: usize,
        pooling: Pooling,
        numbers: Numbers,
        (free, total): (u64, u64),
        multiprocessors: u32,
    ) -> Result<Self, DoesNotFit> {
        let weights_bytes = weights_bytes(config, layers, numbers);
        let bytes_per_token = bytes_per_token(config, pooling, numbers);
        let fixed = weights_bytes + WORKSPACE_BYTES + reserve(total);
        let needed = fixed + TOKENS_MIN as u64 * bytes_per_token;
        if free < needed {
            return Err(DoesNotFit { needed, free });
        }
        let room = ((free - fixed) / bytes_per_token).min(TOKENS_MAX as u64) as usize;
        let wave = (multiprocessors as usize / 2).max(1) * TILE_ROWS;
        let unit = if room >= wave { wave } else { TILE_ROWS };
        Ok(Self { weights_bytes, bytes_per_token, token_budget: room / unit * unit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Shape;

    const GIB: u64 = 1 << 30;

    fn published(name: &str) -> ModelConfig {
        Shape::published(name).unwrap().config()
    }

    fn plan(
        model: &str,
        precision: Precision,
        gibibytes: u64,
        multiprocessors: u32,
    ) -> Result<usize, DoesNotFit> {
        let total = gibibytes * GIB;
        // What the driver and the context take before anything else.
        let free = total - 600 * (1 << 20);
        let config = published(model);
        MemoryPlan::new(
            &config,
            config.layers,
            Pooling::Mean,
            Numbers::of(precision),
            (free, total),
            multiprocessors,
        )
        .map(|plan| plan.token_budget)
    }

    #[test]
    fn published_sizes_take_the_published_bytes() {
        let numbers = Numbers::of(Precision::Fp16);
        let per_token = |model, numbers| bytes_per_token(&published(model), Pooling::Mean, numbers);
        assert_eq!(per_token("3B", numbers), 30_720);
        assert_eq!(per_token("650M", numbers), 15_360);
        assert_eq!(per_token("15B", numbers), 61_440);
        assert_eq!(per_token("650M", Numbers::of(Precision::Fp32)), 2 * 15_360);
        assert_eq!(per_token("650M", Numbers::of(Precision::Bf16)), 15_360 + 2 * 1_280);
        let config = published("3B");
        let residues = bytes_per_token(&config, Pooling::None, numbers);
        assert_eq!(residues, 30_720 + 4 * 2_560);
        // Two bytes for each parameter, four for those of norms.
        let bytes = weights_bytes(&config, 36, numbers);
        let parameters = config.parameters();
        let norms = (36 * 4 + 2) * 2_560;
        assert_eq!(bytes, 2 * parameters + 2 * norms);
        assert_eq!(weights_bytes(&config, 36, Numbers::of(Precision::Fp32)), 4 * parameters);
    }

    #[test]
    fn budgets_are_whole_waves_of_what_is_free() {
        // H100: 132 multiprocessors, 8,448 rows a wave. A100: 108, 6,912. RTX 4090: 128, 8,192. L4: 58. T4: 40.
        for model in ["8M", "650M", "3B", "15B"] {
            assert_eq!(plan(model, Precision::Fp16, 80, 132), Ok(33_792), "{model:?}");
        }
        assert_eq!(plan("3B", Precision::Fp32, 80, 132), Ok(33_792));
        assert_eq!(plan("15B", Precision::Fp16, 40, 108), Ok(27_648));
        assert_eq!(plan("3B", Precision::Fp16, 40, 108), Ok(27_648));
        assert_eq!(plan("3B", Precision::Fp16, 24, 128), Ok(32_768));
        assert_eq!(plan("3B", Precision::Fp16, 16, 40), Ok(33_280));
        assert_eq!(plan("3B", Precision::Fp32, 16, 40), Ok(33_280));
        assert_eq!(plan("3B", Precision::Fp16, 8, 40), Ok(33_280));
        assert_eq!(plan("15B", Precision::Fp16, 34, 108), Ok(13_824));
        assert_eq!(plan("650M", Precision::Fp16, 8, 40), Ok(33_280));
        assert_eq!(plan("650M", Precision::Bf16, 8, 40), Ok(33_280));
    }

    #[test]
    fn less_than_a_wave_is_used_tile_by_tile_and_too_little_is_an_error() {
        // 7 GiB less 600 MiB, 5.7 GB of weights and the reserve leave a hundred megabytes.
        let tokens = plan("3B", Precision::Fp16, 7, 256).unwrap();
        assert!((TOKENS_MIN..16_384).contains(&tokens) && tokens.is_multiple_of(128), "{tokens}");
        for (precision, gibibytes) in [(Precision::Fp16, 24), (Precision::Fp32, 40)] {
            let error = plan("15B", precision, gibibytes, 128).unwrap_err();
            assert!(error.needed > error.free);
            let text = error.to_string();
            assert!(text.contains("does not fit") && text.contains("are free"), "{text}");
        }
        let weights = weights_bytes(&published("3B"), 36, Numbers::of(Precision::Fp16));
        let per_token = 30_720;
        let config = published("3B");
        let with = |free| {
            let numbers = Numbers::of(Precision::Fp16);
            MemoryPlan::new(&config, 36, Pooling::Mean, numbers, (free, 8 * GIB), 132)
        };
        let least = weights + WORKSPACE_BYTES + reserve(8 * GIB) + 1_024 * per_token;
        assert_eq!(with(least).unwrap().token_budget, 1_024);
        assert_eq!(with(least - 1), Err(DoesNotFit { needed: least, free: least - 1 }));
    }

    #[test]
    fn full_use_stays_below_nine_tenths() {
        for gibibytes in [8, 16, 24, 40, 80] {
            let total = gibibytes * GIB;
            assert!((total - reserve(total)) as f64 / (total as f64) < 0.89, "{gibibytes}");
        }
    }

    #[test]
    fn rows_are_few_and_waste_little() {
        let budget = 33_792;
        let mut seen = std::collections::BTreeSet::new();
        let mut before = 0;
        for tokens in 1..=budget {
            let rows = rows(tokens, budget);
            assert!(rows >= tokens && rows.is_multiple_of(128) && rows <= budget, "{tokens}: {rows}");
            assert!(rows >= before, "{tokens}: {rows} after {before}");
            assert!(rows - tokens < 128.max(tokens / 32), "{tokens}: {rows}");
            before = rows;
            seen.insert(rows);
        }
        assert!(seen.len() <= 130, "{}", seen.len());
        for waves in 1..=4 {
            assert_eq!(rows(waves * 8_448, waves * 8_448), waves * 8_448);
        }
        // A sequence longer than the budget is tried all the same.
        assert!(rows(40_000, budget) >= 40_000);
    }
}
