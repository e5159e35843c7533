//! Powers of two and GELU on SIMD lanes.

use pulp::Simd;

/// `2^x` for `x` ≤ 0, within 2 units in the last place; below -126 it stays at about 1e-38.
///
/// NaN stays NaN. Powers of two rather than of e: whoever needs the latter scales by log2 e where it scales
/// anyway, and the reduction to |r| ≤ 1/2 is exact.
#[inline(always)]
pub(super) fn exp2<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // 2^23 · 1.5: adding it leaves the rounded integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    // Of least relative error on [-1/2, 1/2]: 1.9e-9.
    #[expect(clippy::excessive_precision, reason = "as printed by the fit")]
    const TERMS: [f32; 7] = [
        0.00015345812161311629,
        0.0013399931177239738,
        0.009618488956331182,
        0.05550328777105325,
        0.24022646890645522,
        0.6931472057371958,
        1.0,
    ];

    // A comparison, since a maximum would swallow NaN on some machines.
    let bound = simd.splat_f32s(-126.0);
    let x = simd.select_f32s(simd.less_than_f32s(x, bound), bound, x);
    let rounded = simd.add_f32s(x, simd.splat_f32s(ROUND));
    let r = simd.sub_f32s(x, simd.sub_f32s(rounded, simd.splat_f32s(ROUND)));
    let mut sum = simd.splat_f32s(TERMS[0]);
    for term in &TERMS[1..] {
        sum = simd.mul_add_e_f32s(sum, r, simd.splat_f32s(*term));
    }
    // Adds the rounded part to the exponent field.
    let shifted = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(rounded), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(sum), shifted))
}

/// The exact GELU, `x/2 · (1 + erf(x/√2))`, with absolute error below 1e-7 per unit of x.
///
/// With a = |x|: gelu(x) = max(x, 0) - a/2 · erfc(a/√2), and erfc(a/√2) = exp(h(a) - a²/2), where
/// h = ln erfcx is so smooth that eleven terms suffice. Unlike 1 + erf it loses nothing for
/// negative x. The terms are a Chebyshev interpolation of h(a)/a on [0, 5.8] in 40 digits (error
/// of the result 5e-9), over ln 2; beyond, h is held, where the exponential leaves less than 1e-7.
#[inline(always)]
pub(super) fn gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const LAST: f32 = 5.8;
    #[expect(clippy::excessive_precision, reason = "as printed by the fit")]
    const TERMS: [f32; 11] = [
        3.0308928354032997e-09,
        -1.0988490977551647e-07,
        1.7696765404712601e-06,
        -1.6560521894426703e-05,
        9.690428803828908e-05,
        -0.0003251828102212751,
        6.07633841507368e-05,
        0.006900676894303739,
        -0.05242323568804874,
        0.2621238316682071,
        -1.15110413177855,
    ];
    let a = simd.abs_f32s(x);
    let near = simd.min_f32s(a, simd.splat_f32s(LAST));
    let mut sum = simd.splat_f32s(TERMS[0]);
    for term in &TERMS[1..] {
        sum = simd.mul_add_e_f32s(sum, near, simd.splat_f32s(*term));
    }
    let square = simd.mul_f32s(a, simd.mul_f32s(a, simd.splat_f32s(-0.5 * std::f32::consts::LOG2_E)));
    let logarithm = simd.mul_add_e_f32s(sum, near, square);
    let tail = simd.mul_f32s(simd.mul_f32s(a, simd.splat_f32s(0.5)), exp2(simd, logarithm));
    simd.sub_f32s(simd.max_f32s(x, simd.splat_f32s(0.0)), tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::{Arch, WithSimd};

    #[derive(Clone, Copy)]
    enum Function {
        Exp2,
        Gelu,
    }

    struct Apply<'a>(Function, &'a mut [f32]);

    impl WithSimd for Apply<'_> {
        type Output = ();
        fn with_simd<S: Simd>(self, simd: S) {
            for chunk in self.1.chunks_mut(S::F32_LANES) {
                let x = simd.partial_load_f32s(chunk);
                let y = match self.0 {
                    Function::Exp2 => exp2(simd, x),
                    Function::Gelu => gelu(simd, x),
                };
                simd.partial_store_f32s(chunk, y);
            }
        }
    }

    /// Applies with the best instructions of this machine and, second, without any.
    fn apply(function: Function, x: &[f32]) -> [Vec<f32>; 2] {
        let mut best = x.to_vec();
        Arch::new().dispatch(Apply(function, &mut best));
        let mut plain = x.to_vec();
        Apply(function, &mut plain).with_simd(pulp::Scalar);
        [best, plain]
    }

    #[test]
    fn gelu_is_libm_erf_within_1e_7() {
        let x: Vec<f32> =
            (-1_200_000..=1_200_000).map(|i| i as f32 * 1e-5).chain([-30.0, 30.0, -1e6, 1e6]).collect();
        for result in apply(Function::Gelu, &x) {
            for (&x, &y) in x.iter().zip(&result) {
                let exact = 0.5 * f64::from(x) * libm::erfc(-f64::from(x) / std::f64::consts::SQRT_2);
                let error = (f64::from(y) - exact).abs();
                assert!(error <= 1e-7 * f64::from(x).abs().max(1.0), "gelu({x}) = {y}, exactly {exact}");
                // What erf itself would be: 2 gelu(x) / x - 1.
                assert!(error <= 1e-7 * f64::from(x).abs().max(1e-30), "gelu({x}) = {y}, exactly {exact}");
            }
        }
    }

    #[test]
    fn exp2_is_libm_exp2_within_two_units() {
        let x: Vec<f32> = (0..=1_260_000).map(|i| i as f32 * -1e-4).collect();
        for result in apply(Function::Exp2, &x) {
            for (&x, &y) in x.iter().zip(&result) {
                let exact = f64::from(x).exp2();
                assert!((f64::from(y) - exact).abs() <= 2.0 * f64::from(f32::EPSILON) * exact, "2^{x} = {y}");
            }
        }
    }

    #[test]
    fn nothing_below_the_range_matters_and_nan_stays() {
        for result in apply(Function::Exp2, &[f32::NEG_INFINITY, -1e30, f32::NAN]) {
            assert!(result[0] < 1e-37 && result[1] < 1e-37, "{result:?}");
            assert!(result[2].is_nan());
        }
        for result in apply(Function::Gelu, &[f32::NAN, f32::INFINITY]) {
            assert!(!result[0].is_finite() && !result[1].is_finite(), "{result:?}");
        }
    }
}
