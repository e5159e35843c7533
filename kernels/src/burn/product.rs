//! Matrix products in the precision asked for. Everything else is f32.

use burn_tensor::backend::Backend;
use burn_tensor::{FloatDType, Tensor};

/// How a product of two f32 matrices is computed; the result is f32 in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Products {
    /// As the backend does it: true f32 on a CPU.
    Plain,
    /// Of parts with 11 significant bits each, for backends whose f32 products round their inputs to TF32, as
    /// burn-cuda's do on tensor cores. Relative error of a term: 2^-21 at most, where TF32 alone has 2^-11.
    #[cfg_attr(not(any(feature = "burn-cuda", test)), expect(dead_code, reason = "for GPUs"))]
    Split,
    /// Of inputs rounded to float16.
    Fp16,
    /// Of inputs rounded to bfloat16.
    Bf16,
}

impl Products {
    /// `a` times `b`, [.., rows, inner] times [.., inner, columns].
    pub(super) fn of<B: Backend, const D: usize>(self, a: Tensor<B, D>, b: Tensor<B, D>) -> Tensor<B, D> {
        let narrow = |narrow: FloatDType, a: Tensor<B, D>, b: Tensor<B, D>| {
            a.cast(narrow).matmul(b.cast(narrow)).cast(FloatDType::F32)
        };
        match self {
            Self::Plain => a.matmul(b),
            Self::Split => {
                let ((a, a_rest), (b, b_rest)) = (split(a), split(b));
                // Smallest terms first. The product of the rests is below what f32 keeps.
                a_rest.matmul(b.clone()) + a.clone().matmul(b_rest) + a.matmul(b)
            }
            Self::Fp16 => narrow(FloatDType::F16, a, b),
            Self::Bf16 => narrow(FloatDType::BF16, a, b),
        }
    }
}

/// Splits each number into its first 11 significant bits and the rest, exactly (Veltkamp's method). Every operation
/// is a kernel of its own: no compiler sees that the difference of differences could be simplified away.
fn split<B: Backend, const D: usize>(x: Tensor<B, D>) -> (Tensor<B, D>, Tensor<B, D>) {
    const SHIFT: f32 = 8_193.0; // 2^13 + 1: 24 - 11 bits
    let shifted = x.clone() * SHIFT;
    let first = shifted.clone() - (shifted - x.clone());
    (first.clone(), x - first)
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use burn_tensor::TensorData;

    use super::*;

    const INNER: usize = 64;

    /// Numbers of both signs over many magnitudes, always the same.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state) / f64::from(u32::MAX) * 2.0 - 1.0
        };
        (0..count).map(|_| (next() * (next() * 6.0).exp2()) as f32).collect()
    }

    fn tensor(values: &[f32], shape: [usize; 2]) -> Tensor<Flex, 2> {
        Tensor::from_data(TensorData::new(values.to_vec(), shape), &FlexDevice)
    }

    /// The largest error of a product, relative to the sum of its terms' magnitudes.
    fn worst_error(products: Products) -> f64 {
        let (a, b) = (numbers(8 * INNER, 1), numbers(INNER * 8, 2));
        let got = products.of(tensor(&a, [8, INNER]), tensor(&b, [INNER, 8]));
        let got = got.into_data().to_vec::<f32>().unwrap();
        let mut worst = 0.0f64;
        for (place, got) in got.into_iter().enumerate() {
            let terms = (0..INNER)
                .map(|k| f64::from(a[place / 8 * INNER + k]) * f64::from(b[k * 8 + place % 8]))
                .collect::<Vec<_>>();
            let (exact, all) = (terms.iter().sum::<f64>(), terms.iter().map(|term| term.abs()).sum::<f64>());
            worst = worst.max((f64::from(got) - exact).abs() / all);
        }
        worst
    }

    #[test]
    fn each_precision_rounds_as_it_says() {
        let errors = [Products::Plain, Products::Split, Products::Fp16, Products::Bf16].map(worst_error);
        let [plain, split, fp16, bf16] = errors;
        assert!(plain < 1e-6 && split < 1e-6, "{errors:?}");
        assert!((1e-5..1e-3).contains(&fp16) && (1e-4..1e-2).contains(&bf16), "{errors:?}");
    }

    #[test]
    fn the_parts_of_a_number_fit_tf32_and_lose_nothing() {
        let x = numbers(1_000, 3);
        let (first, rest) = split(tensor(&x, [1, x.len()]));
        let [first, rest] = [first, rest].map(|part| part.into_data().to_vec::<f32>().unwrap());
        for ((x, first), rest) in x.iter().zip(first).zip(rest) {
            assert_eq!(first.to_bits() & 0x1fff, 0, "{x} starts with {first}");
            assert_eq!(f64::from(first) + f64::from(rest), f64::from(*x));
            assert!(rest.abs() <= x.abs() / 2_048.0, "{x} leaves {rest}");
        }
    }
}
