//! Exponential and GELU on SIMD lanes.

use pulp::Simd;

/// `exp(x)` for `x` ≤ 0, within 2 units in the last place; below -87 it stays at about 1e-38.
///
/// NaN stays NaN.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // 2^23 · 1.5: adding it leaves the rounded integer in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // exp(r) on [-ln 2 / 2, ln 2 / 2], the Taylor terms from r^7/7! down: the eighth is under 6e-9.
    const TERMS: [f32; 8] = [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];

    // A comparison, since a maximum would swallow NaN on some machines.
    let bound = simd.splat_f32s(-87.0);
    let x = simd.select_f32s(simd.less_than_f32s(x, bound), bound, x);
    let rounded = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), simd.splat_f32s(ROUND));
    let power = simd.sub_f32s(rounded, simd.splat_f32s(ROUND));
    let r = simd.mul_add_e_f32s(power, simd.splat_f32s(-LN2_HIGH), x);
    let r = simd.mul_add_e_f32s(power, simd.splat_f32s(-LN2_LOW), r);
    let mut sum = simd.splat_f32s(TERMS[0]);
    for term in &TERMS[1..] {
        sum = simd.mul_add_e_f32s(sum, r, simd.splat_f32s(*term));
    }
    // Adds `power` to the exponent field.
    let shifted = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(rounded), simd.splat_u32s(23));
    simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(sum), shifted))
}

/// The exact GELU, `x/2 · (1 + erf(x/√2))`, with absolute error below 1e-7 per unit of x.
///
/// With a = |x|: gelu(x) = max(x, 0) - a/2 · erfc(a/√2), and erfc(a/√2) = exp(h(a) - a²/2), where
/// h = ln erfcx is so smooth that eleven terms suffice. Unlike 1 + erf it loses nothing for
/// negative x. The terms are a Chebyshev interpolation of h(a)/a on [0, 5.8] in 40 digits (error
/// of the result 5e-9); beyond, h is held, where the exponential leaves less than 1e-7.
#[inline(always)]
pub(super) fn gelu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const LAST: f32 = 5.8;
    #[expect(clippy::excessive_precision, reason = "as printed by the fit")]
    const TERMS: [f32; 11] = [
        2.1008548234391355e-09,
        -7.616641539698321e-08,
        1.2266463045307319e-06,
        -1.1478879059723113e-05,
        6.716893403790891e-05,
        -0.00022539954807143658,
        4.211796840536408e-05,
        0.0047831847332417965,
        -0.03633701801300049,
        0.18169039487838745,
        -0.7978845834732056,
    ];
    let a = simd.abs_f32s(x);
    let near = simd.min_f32s(a, simd.splat_f32s(LAST));
    let mut sum = simd.splat_f32s(TERMS[0]);
    for term in &TERMS[1..] {
        sum = simd.mul_add_e_f32s(sum, near, simd.splat_f32s(*term));
    }
    let half_a = simd.mul_f32s(a, simd.splat_f32s(0.5));
    let square = simd.mul_f32s(half_a, a);
    let logarithm = simd.sub_f32s(simd.mul_f32s(sum, near), square);
    let tail = simd.mul_f32s(half_a, exp(simd, logarithm));
    simd.sub_f32s(simd.max_f32s(x, simd.splat_f32s(0.0)), tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::{Arch, WithSimd};

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Gelu,
    }

    struct Apply<'a>(Function, &'a mut [f32]);

    impl WithSimd for Apply<'_> {
        type Output = ();
        fn with_simd<S: Simd>(self, simd: S) {
            for chunk in self.1.chunks_mut(S::F32_LANES) {
                let x = simd.partial_load_f32s(chunk);
                let y = match self.0 {
                    Function::Exp => exp(simd, x),
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
    fn exp_is_libm_exp_within_two_units() {
        let x: Vec<f32> = (0..=870_000).map(|i| i as f32 * -1e-4).collect();
        for result in apply(Function::Exp, &x) {
            for (&x, &y) in x.iter().zip(&result) {
                let exact = f64::from(x).exp();
                assert!(
                    (f64::from(y) - exact).abs() <= 2.0 * f64::from(f32::EPSILON) * exact,
                    "exp({x}) = {y}"
                );
            }
        }
    }

    #[test]
    fn nothing_below_the_range_matters_and_nan_stays() {
        for result in apply(Function::Exp, &[f32::NEG_INFINITY, -1e30, f32::NAN]) {
            assert!(result[0] < 1e-37 && result[1] < 1e-37, "{result:?}");
            assert!(result[2].is_nan());
        }
        for result in apply(Function::Gelu, &[f32::NAN, f32::INFINITY]) {
            assert!(!result[0].is_finite() && !result[1].is_finite(), "{result:?}");
        }
    }
}
