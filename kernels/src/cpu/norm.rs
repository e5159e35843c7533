//! Layer norm of rows.

use pulp::{Simd, WithSimd};

/// Scale and shift of a layer norm, each [width].
pub(crate) struct Norm {
    pub(super) scale: Vec<f32>,
    pub(super) shift: Vec<f32>,
    pub(super) eps: f32,
}

/// Normalises the rows of `x` into `out`, both [rows, width].
pub(super) struct Normalise<'a> {
    pub(super) norm: &'a Norm,
    pub(super) x: &'a [f32],
    pub(super) out: &'a mut [f32],
}

impl WithSimd for Normalise<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { norm: Norm { scale, shift, eps }, x, out } = self;
        let width = scale.len();
        let (scales, scale_tail) = S::as_simd_f32s(scale);
        let (shifts, shift_tail) = S::as_simd_f32s(shift);
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let (values, tail) = S::as_simd_f32s(x);
            let zero = simd.splat_f32s(0.0);
            let (fours, rest) = values.as_chunks::<SUMS>();
            let mut sums = [zero; SUMS];
            for four in fours {
                for (sum, value) in sums.iter_mut().zip(four) {
                    *sum = simd.add_f32s(*sum, *value);
                }
            }
            for value in rest {
                sums[0] = simd.add_f32s(sums[0], *value);
            }
            let mean = (total(simd, sums) + tail.iter().sum::<f32>()) / width as f32;

            // A second pass over the row, in cache: the variance of centred values loses nothing.
            let centre = simd.splat_f32s(mean);
            let mut sums = [zero; SUMS];
            for four in fours {
                for (sum, value) in sums.iter_mut().zip(four) {
                    let centred = simd.sub_f32s(*value, centre);
                    *sum = simd.mul_add_e_f32s(centred, centred, *sum);
                }
            }
            for value in rest {
                let centred = simd.sub_f32s(*value, centre);
                sums[0] = simd.mul_add_e_f32s(centred, centred, sums[0]);
            }
            let mut squares = total(simd, sums);
            for value in tail {
                squares += (value - mean) * (value - mean);
            }
            let inverse = simd.splat_f32s(1.0 / (squares / width as f32 + eps).sqrt());

            let (targets, target_tail) = S::as_mut_simd_f32s(out);
            for (((target, value), scale), shift) in targets.iter_mut().zip(values).zip(scales).zip(shifts) {
                let unit = simd.mul_f32s(simd.sub_f32s(*value, centre), inverse);
                *target = simd.mul_add_e_f32s(unit, *scale, *shift);
            }
            if !tail.is_empty() {
                let unit = simd.mul_f32s(simd.sub_f32s(simd.partial_load_f32s(tail), centre), inverse);
                let (scale, shift) = (simd.partial_load_f32s(scale_tail), simd.partial_load_f32s(shift_tail));
                simd.partial_store_f32s(target_tail, simd.mul_add_e_f32s(unit, scale, shift));
            }
        }
    }
}

/// Sums side by side, which hide the latency of the additions. Each has a register: picked by a remainder
/// they lived in memory, at five times the cost.
const SUMS: usize = 4;

#[inline(always)]
fn total<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; SUMS]) -> f32 {
    simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_is_normalised_exactly_enough() {
        for width in [1, 2, 15, 16, 17, 33, 64, 100, 320] {
            let x: Vec<f32> = (0..3 * width).map(|i| 1_000.0 + (i as f32 * 0.7).sin()).collect();
            let scale: Vec<f32> = (0..width).map(|i| 1.0 + 0.01 * i as f32).collect();
            let shift: Vec<f32> = (0..width).map(|i| 0.1 * i as f32).collect();
            let norm = Norm { scale, shift, eps: 1e-5 };
            let mut best = vec![f32::NAN; x.len()];
            pulp::Arch::new().dispatch(Normalise { norm: &norm, x: &x, out: &mut best });
            let mut plain = vec![f32::NAN; x.len()];
            Normalise { norm: &norm, x: &x, out: &mut plain }.with_simd(pulp::Scalar);
            for out in [best, plain] {
                for (x, out) in x.chunks_exact(width).zip(out.chunks_exact(width)) {
                    let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / width as f64;
                    let variance =
                        x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / width as f64;
                    for column in 0..width {
                        let unit = (f64::from(x[column]) - mean) / (variance + 1e-5).sqrt();
                        let expected = unit * f64::from(norm.scale[column]) + f64::from(norm.shift[column]);
                        // The mean of values near 1,000 is known to 6e-5 in f32.
                        let error = (f64::from(out[column]) - expected).abs();
                        assert!(error < 5e-4 + 1e-5 * expected.abs(), "width {width}: {error}");
                    }
                }
            }
        }
    }
}
