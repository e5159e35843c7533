use super::super::buffer::Buffer;
use super::*;

/// Numbers of both signs and many magnitudes, always the same.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..len).map(|_| (next() - 0.5) * (next() * 12.0 - 6.0).exp2()).collect()
}

/// A layer in the order in which weights are packed.
struct Layer {
    inputs: usize,
    outputs: usize,
    depth: usize,
    /// [outputs, inputs].
    rows: Vec<f32>,
    weights: Buffer,
    bias: Buffer,
}

impl Layer {
    fn new(inputs: usize, outputs: usize, depth: usize) -> Self {
        let columns = outputs.next_multiple_of(TILE_COLUMNS);
        let rows = numbers(outputs * inputs, 3);
        let mut weights = Buffer::zeroed(columns * inputs.next_multiple_of(STEP)).unwrap();
        for start in (0..inputs).step_by(depth) {
            let deep = depth.min(inputs - start).next_multiple_of(STEP);
            for input in start..inputs.min(start + depth) {
                for column in 0..outputs {
                    let panel = start * columns + column / TILE_COLUMNS * deep * TILE_COLUMNS;
                    let place = panel + (input - start) * TILE_COLUMNS + column % TILE_COLUMNS;
                    weights.as_mut_slice()[place] = rows[column * inputs + input];
                }
            }
        }
        let mut bias = Buffer::zeroed(columns).unwrap();
        bias.as_mut_slice()[..outputs].copy_from_slice(&numbers(outputs, 5));
        Self { inputs, outputs, depth, rows, weights, bias }
    }

    fn apply(&self, kernel: Kernel, x: &[f32], epilogue: Epilogue) -> Vec<f32> {
        let mut out = vec![3.0; x.len() / self.inputs * self.outputs];
        let block = Block {
            x,
            inputs: self.inputs,
            outputs: self.outputs,
            depth: self.depth,
            weights: self.weights.as_slice(),
            bias: self.bias.as_slice(),
            epilogue,
            out: &mut out,
        };
        kernel.multiply(block, &mut Scratch::default());
        out
    }

    /// The result at `row` and `column` in f64, without the GELU, and the sum of all magnitudes.
    fn exact(&self, x: &[f32], epilogue: Epilogue, row: usize, column: usize) -> (f64, f64) {
        let bias = f64::from(self.bias.as_slice()[column]);
        let old = if epilogue == Epilogue::Residual { 3.0 } else { 0.0 };
        let weights = &self.rows[column * self.inputs..][..self.inputs];
        let products = x[row * self.inputs..].iter().zip(weights).map(|(x, w)| f64::from(*x) * f64::from(*w));
        products.fold((bias + old, bias.abs() + old), |(sum, size), product| {
            (sum + product, size + product.abs())
        })
    }
}

fn kernels() -> impl Iterator<Item = Kernel> {
    [Some(Kernel::Plain), Kernel::detect()].into_iter().flatten()
}

#[test]
fn the_variable_says_auto_or_off() {
    for (value, asked) in [(None, true), (Some(""), true), (Some("auto"), true), (Some("off"), false)] {
        assert_eq!(asked_for(value), Ok(asked));
    }
    assert_eq!(asked_for(Some("no")), Err("VIRNUCPRO_FP32_TILES=no: write auto or off".to_owned()));
}

#[test]
fn three_terms_are_the_number() {
    let least = f32::from_bits(120 << 23);
    for x in numbers(100_000, 1).into_iter().chain([0.0, -0.0, 1.0, f32::EPSILON, 3.38e38, -3.38e38, least]) {
        let terms = plain::split(x);
        assert_eq!(terms.iter().map(|term| f64::from(*term)).sum::<f64>(), f64::from(x), "{x:e}: {terms:?}");
        for term in terms {
            assert_eq!(term.to_bits() & 0xffff, 0, "{x:e}: {terms:?}");
        }
        assert!(terms[1].abs() <= x.abs() * 2f32.powi(-8) && terms[2].abs() <= x.abs() * 2f32.powi(-16));
    }
    for x in [f32::NAN, f32::from_bits(0x7fff_ffff), f32::from_bits(u32::MAX), f32::INFINITY] {
        assert!(plain::split(x).iter().any(|term| term.is_nan()), "{x}");
    }
}

#[test]
fn products_are_those_of_f32() {
    // Inner dimensions below a step, beyond blocks and with odd ends; outputs that end inside a panel.
    for (inputs, outputs, depth, rows) in [
        (3, 5, 640, 32),
        (32, 32, 640, 64),
        (100, 70, 64, 96),
        (320, 320, 640, 32),
        (700, 33, 640, 64),
        (1_300, 40, 320, 32),
    ] {
        let layer = Layer::new(inputs, outputs, depth);
        let x = numbers(rows * inputs, 7);
        for epilogue in [Epilogue::Bias, Epilogue::Gelu, Epilogue::Residual] {
            for kernel in kernels() {
                let values = layer.apply(kernel, &x, epilogue);
                for (index, value) in values.into_iter().enumerate() {
                    let (row, column) = (index / outputs, index % outputs);
                    let (exact, size) = layer.exact(&x, epilogue, row, column);
                    let exact = match epilogue {
                        Epilogue::Gelu => 0.5 * exact * libm::erfc(-exact / std::f64::consts::SQRT_2),
                        Epilogue::Bias | Epilogue::Residual => exact,
                    };
                    let error = (f64::from(value) - exact).abs();
                    assert!(
                        error <= size * 3e-7,
                        "{kernel:?} {inputs}x{outputs} {epilogue:?} [{row}, {column}]: {value}, exactly {exact}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_result_among_any_others() {
    let Some(kernel) = Kernel::detect() else { return };
    let layer = Layer::new(700, 100, 640);
    let x = numbers(160 * 700, 11);
    let all = layer.apply(kernel, &x, Epilogue::Gelu);
    for first in (0..160).step_by(32) {
        let some = layer.apply(kernel, &x[first * 700..][..32 * 700], Epilogue::Gelu);
        assert!(some == all[first * 100..][..32 * 100], "rows from {first}");
    }
}

#[test]
fn rows_that_are_not_finite_say_so_and_spoil_no_others() {
    let layer = Layer::new(100, 40, 640);
    let good = numbers(32 * 100, 13);
    for kernel in kernels() {
        let expected = layer.apply(kernel, &good, Epilogue::Residual);
        for bad in [f32::NAN, -f32::NAN, f32::from_bits(0x7fff_ffff), f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = good.clone();
            x[5 * 100 + 42] = bad;
            let values = layer.apply(kernel, &x, Epilogue::Residual);
            for (row, (values, expected)) in values.chunks(40).zip(expected.chunks(40)).enumerate() {
                if row == 5 {
                    assert!(values.iter().all(|value| !value.is_finite()), "{kernel:?} {bad}");
                } else {
                    assert!(values == expected, "{kernel:?} {bad} row {row}");
                }
            }
        }
    }
}
