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
        let lanes = S::F32_LANES;
        let zero = simd.splat_f32s(0.0);
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            // Four sums side by side hide the latency of the additions.
            let mut sums = [zero; 4];
            for (index, part) in x.chunks(lanes).enumerate() {
                sums[index % 4] = simd.add_f32s(sums[index % 4], simd.partial_load_f32s(part));
            }
            let mean = total(simd, sums) / width as f32;

            // A second pass over the row, in cache: the variance of centred values loses nothing.
            let centre = simd.splat_f32s(mean);
            let mut sums = [zero; 4];
            for (index, (part, out)) in x.chunks(lanes).zip(out.chunks_mut(lanes)).enumerate() {
                let centred = simd.sub_f32s(simd.partial_load_f32s(part), centre);
                simd.partial_store_f32s(out, centred);
                // Lanes beyond the row hold -mean; read back, they are zero.
                let centred = simd.partial_load_f32s(out);
                sums[index % 4] = simd.mul_add_e_f32s(centred, centred, sums[index % 4]);
            }
            let variance = total(simd, sums) / width as f32;

            let inverse = simd.splat_f32s(1.0 / (variance + eps).sqrt());
            let parts = out.chunks_mut(lanes).zip(scale.chunks(lanes)).zip(shift.chunks(lanes));
            for ((out, scale), shift) in parts {
                let unit = simd.mul_f32s(simd.partial_load_f32s(out), inverse);
                let value =
                    simd.mul_add_e_f32s(unit, simd.partial_load_f32s(scale), simd.partial_load_f32s(shift));
                simd.partial_store_f32s(out, value);
            }
        }
    }
}

#[inline(always)]
fn total<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> f32 {
    simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d)))
}
