//! Products of f32 numbers on AMX tiles, which multiply bfloat16: more than twice the speed of f32 multiply-adds.
//!
//! A number of f32 has 24 binary digits, one of bfloat16 has 8 and the same exponents. So every f32 number is
//! the sum of three of bfloat16, each the nearest to what the ones before it leave: `x = x₀ + x₁ + x₂`, exactly. Of
//! the nine products in `x · w` six are added up, in f32: `x₀w₀`, `x₀w₁`, `x₁w₀`, `x₁w₁`, `x₀w₂`, `x₂w₀`. The other
//! three are at most 2⁻²⁴ of `x · w`, no more than the rounding of a single multiplication in f32. All of the
//! sums' roundings are those of f32, and there are fewer than in a chain of multiply-adds: the tiles add two
//! products at a time, and 16 pairs before they touch the running sum.
//!
//! What differs from f32: numbers beyond 3.38e38 become NaN, as infinities do (both make a row that is not
//! finite, which is reported); terms below 1.2e-38 count as zero.
//!
//! Weights stay in memory as f32. Each task splits them on the way, a panel of the inner dimension at a time, between
//! the steps of the panel before, while the tiles multiply beside the vector units.
//!
//! [`Kernel::Plain`] is the twin of the instructions in plain code, for tests.

mod plain;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
use super::brain::{self, Line};
use super::brain::{STEP, TILE_COLUMNS, TILE_ROWS};
use super::buffer::Buffer;
use super::product::DEPTH;
use crate::ops::Epilogue;

/// Terms of a number.
const TERMS: usize = 3;

/// Lines that a step of a tile's rows, or of a panel of weights, has: [`TERMS`] times 32.
const STEP_LINES: usize = TERMS * TILE_ROWS;

/// Which terms of the left and of the right side are multiplied, the small products first; from each to the next one
/// side stays in its tiles.
const PRODUCTS: [(usize, usize); 6] = [(2, 0), (1, 0), (1, 1), (0, 1), (0, 2), (0, 0)];

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    /// AMX tiles.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// Plain code: for tests, and far too slow for anything else.
    #[cfg_attr(not(test), expect(dead_code, reason = "the twin of the other, for tests"))]
    Plain,
}

/// Scratch memory of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    /// Rows of a block of the inner dimension, split: per tile of rows and step, [`STEP_LINES`].
    left: Buffer,
    /// Two panels of weights, split: per step, [`STEP_LINES`].
    right: [Buffer; 2],
    /// Sums of a tile.
    sums: Buffer,
}

/// The product of some rows with a layer's weights.
pub(super) struct Block<'a> {
    /// [rows, inputs], a multiple of [`TILE_ROWS`] rows.
    pub(super) x: &'a [f32],
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Inputs of a block of the inner dimension but the last, whole steps.
    pub(super) depth: usize,
    /// Per block of the inner dimension, per panel: [inputs to whole steps, [`TILE_COLUMNS`]]; inputs and columns
    /// beyond the layer's are zero.
    pub(super) weights: &'a [f32],
    /// [outputs to whole panels].
    pub(super) bias: &'a [f32],
    pub(super) epilogue: Epilogue,
    /// [rows, outputs].
    pub(super) out: &'a mut [f32],
}

/// Bytes that a row of `inputs` takes when it is split, a block of the inner dimension at a time.
pub(super) fn row_bytes(inputs: usize) -> usize {
    TERMS * size_of::<u16>() * inputs.min(DEPTH)
}

/// What decides whether tiles are used where there are any.
const VARIABLE: &str = "VIRNUCPRO_FP32_TILES";

/// Whether tiles are asked for; the sentence that says what is wrong with the variable's value otherwise.
fn asked_for(value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("" | "auto") => Ok(true),
        Some("off") => Ok(false),
        Some(value) => Err(format!("{VARIABLE}={value}: write auto or off")),
    }
}

impl Kernel {
    /// The kernel of this machine, unless `VIRNUCPRO_FP32_TILES` says that there is to be none.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the variable's value.
    pub(super) fn wanted() -> Result<Option<Self>, String> {
        let value = std::env::var_os(VARIABLE).map(|value| value.to_string_lossy().into_owned());
        Ok(if asked_for(value.as_deref())? { Self::detect() } else { None })
    }

    /// The kernel of this machine; `None` where multiply-adds are faster.
    pub(super) fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            let tiles = brain::Kernel::detect() == Some(brain::Kernel::Amx);
            (tiles && pulp::x86::V4::is_available()).then_some(Self::Amx)
        }
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// Its name, with that of what computes beside it, for people.
    pub(super) fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => "AMX, AVX-512",
            Self::Plain => "plain code",
        }
    }

    /// Multiplies, adds the bias and what else the epilogue says.
    pub(super) fn multiply(self, block: Block<'_>, scratch: &mut Scratch) {
        let Block { x, inputs, outputs, depth, weights, bias, .. } = &block;
        let rows = block.out.len() / outputs;
        let columns = outputs.next_multiple_of(TILE_COLUMNS);
        assert!(
            rows.is_multiple_of(TILE_ROWS) && x.len() == rows * inputs && block.out.len() == rows * outputs
        );
        assert!(*depth > 0 && depth.is_multiple_of(STEP) && bias.len() == columns);
        assert!(weights.len() == inputs.next_multiple_of(STEP) * columns);
        #[cfg(not(target_arch = "x86_64"))]
        let _ = scratch;
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => {
                let steps = inputs.min(depth).div_ceil(STEP);
                let lines = steps * STEP_LINES * (size_of::<Line>() / size_of::<f32>());
                scratch.left.grow(rows / TILE_ROWS * lines);
                scratch.right.iter_mut().for_each(|right| right.grow(lines));
                scratch.sums.grow(TILE_ROWS * TILE_COLUMNS);
                let configured = brain::Configured::new(Some(brain::Kernel::Amx));
                // SAFETY: made only where the processor has it; the tiles are set up; the lengths were asserted,
                // those of the scratch memory given.
                unsafe { x86::multiply(block, scratch) };
                drop(configured);
            }
            Self::Plain => plain::multiply(block),
        }
    }
}
