//! What the instructions of [`super::x86`] compute, in plain code.

use super::super::brain::{STEP, TILE_COLUMNS};
use super::super::elementary::gelu;
use super::{Block, PRODUCTS, TERMS};
use crate::ops::Epilogue;

/// The three terms of `x`.
pub(super) fn split(x: f32) -> [f32; TERMS] {
    // To the nearest, halves away from zero.
    let nearest = |x: f32| f32::from_bits(x.to_bits().wrapping_add(0x8000) & 0xffff_0000);
    let first = nearest(x);
    let rest = x - first;
    let second = nearest(rest);
    // Eight digits are left, which need no rounding.
    [first, second, f32::from_bits((rest - second).to_bits() & 0xffff_0000)]
}

/// A number as the tiles read it: what is smaller than every normal number is zero.
fn normal(x: f32) -> f32 {
    if x.is_subnormal() { 0.0 } else { x }
}

pub(super) fn multiply(block: Block<'_>) {
    let Block { x, inputs, outputs, depth, weights, bias, epilogue, out } = block;
    let columns = bias.len();
    for (x, out) in x.chunks_exact(inputs).zip(out.chunks_exact_mut(outputs)) {
        for (column, out) in out.iter_mut().enumerate() {
            let mut total = if epilogue == Epilogue::Residual { *out } else { 0.0 };
            for start in (0..inputs).step_by(depth) {
                let steps = depth.min(inputs - start).div_ceil(STEP);
                let panel = &weights[start * columns + column / TILE_COLUMNS * steps * STEP * TILE_COLUMNS..];
                let mut sum = 0.0;
                for step in 0..steps {
                    for (left, right) in PRODUCTS {
                        // Both numbers of a pair have a sum of their own within a step.
                        let mut sums = [0.0; 2];
                        for (number, sums) in sums.iter_mut().enumerate() {
                            for pair in 0..STEP / 2 {
                                let input = step * STEP + number * STEP / 2 + pair;
                                let x = x.get(start + input).copied().unwrap_or(0.0);
                                let weight = panel[input * TILE_COLUMNS + column % TILE_COLUMNS];
                                let [x, weight] =
                                    [(x, left), (weight, right)].map(|(x, term)| normal(split(x)[term]));
                                *sums += x * weight;
                            }
                        }
                        sum += sums[0] + sums[1];
                    }
                }
                total += sum;
            }
            total += bias[column];
            *out = match epilogue {
                Epilogue::Gelu => gelu(pulp::Scalar, total),
                Epilogue::Bias | Epilogue::Residual => total,
            };
        }
    }
}
