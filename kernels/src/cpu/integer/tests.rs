use bytemuck::Zeroable;
use half::bf16;

use super::super::brain::{STEP, line_of, lines};
use super::*;

/// The plain twin and whatever this machine has, with the forms in which it gets activations.
fn kernels() -> Vec<(Kernel, Form)> {
    let mut kernels = vec![(Kernel::Plain, Form::Lines), (Kernel::Plain, Form::Rows)];
    let mut found = Vec::from_iter(Kernel::detect());
    #[cfg(target_arch = "x86_64")]
    if found == [Kernel::Amx] && std::arch::is_x86_feature_detected!("avx512vnni") {
        found.push(Kernel::Dot);
    }
    for kernel in found {
        kernels.push((kernel, Form::Rows));
        if brain::Kernel::detect().is_some() {
            kernels.push((kernel, Form::Lines));
        }
    }
    kernels
}

/// Numbers of both signs that bfloat16 holds exactly.
fn numbers(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| bf16::from_f32(((i + seed) * 7_919 % 1_009) as f32 / 300.0 - 1.68).to_f32()).collect()
}

/// Whole numbers from -127 to 127, with 127 first in each row: their scale is 1.
fn integers(rows: usize, width: usize, seed: usize) -> Vec<f32> {
    let mut numbers: Vec<f32> =
        (0..rows * width).map(|i| ((i + seed) * 7_919 % 255) as f32 - 127.0).collect();
    for row in numbers.chunks_exact_mut(width) {
        row[0] = 127.0;
    }
    numbers
}

fn to_lines(x: &[f32], width: usize) -> Vec<Line> {
    let rows = x.len() / width;
    let mut out = vec![Line::zeroed(); rows * lines(width)];
    let numbers: &mut [u16] = bytemuck::cast_slice_mut(&mut out);
    for (row, x) in x.chunks_exact(width).enumerate() {
        for (column, x) in x.iter().enumerate() {
            numbers[line_of(row, column, lines(width)) * STEP + column % STEP] = bf16::from_f32(*x).to_bits();
        }
    }
    out
}

fn from_lines(x: &[Line], rows: usize, width: usize) -> Vec<f32> {
    let numbers: &[u16] = bytemuck::cast_slice(x);
    let number = |row, column| numbers[line_of(row, column, lines(width)) * STEP + column % STEP];
    (0..rows)
        .flat_map(|row| (0..width).map(move |column| (row, column)))
        .map(|(row, column)| bf16::from_bits(number(row, column)).to_f32())
        .collect()
}

/// What results are before something is added to them, or where nothing is written.
const BEFORE: f32 = 3.0;

/// Applies a layer to rows of numbers, zeros to a whole tile.
fn apply(linear: &IntegerLinear, x: &[f32], epilogue: Epilogue) -> Vec<f32> {
    let rows = x.len() / linear.inputs;
    let padded = rows.next_multiple_of(TILE_ROWS);
    let mut x = x.to_vec();
    x.resize(padded * linear.inputs, 0.0);
    let as_lines = to_lines(&x, linear.inputs);
    let input = match linear.form {
        Form::Lines => Input::Lines(&as_lines),
        Form::Rows => Input::Rows(&x),
    };
    let mut scratch = Scratch::default();
    let mut out = vec![BEFORE; padded * linear.outputs];
    match (epilogue, linear.form) {
        (Epilogue::Residual, _) => {
            linear.apply(&input, epilogue, &mut scratch, &mut Output::Residual(&mut out));
        }
        (_, Form::Rows) => linear.apply(&input, epilogue, &mut scratch, &mut Output::Rows(&mut out)),
        (_, Form::Lines) => {
            let mut as_lines = vec![Line::zeroed(); padded * lines(linear.outputs)];
            linear.apply(&input, epilogue, &mut scratch, &mut Output::Lines(&mut as_lines));
            out = from_lines(&as_lines, padded, linear.outputs);
        }
    }
    out.truncate(rows * linear.outputs);
    out
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (32, 64, 33),
    (33, 100, 47),
    (64, 513, 32),
    (97, 1_100, 65),
    (31, 512, 96),
    (17, 31, 16),
    (65, 2_600, 33),
    (40, 5_200, 20),
];

#[test]
fn every_kernel_multiplies_integers_exactly() {
    for (rows, inputs, outputs) in SHAPES {
        let (x, weight) = (integers(rows, inputs, 1), integers(outputs, inputs, 2));
        let parts = [(weight.clone(), vec![0.0; outputs])];
        for (kernel, form) in kernels() {
            let linear = IntegerLinear::pack(kernel, form, &parts, inputs).unwrap();
            let out = apply(&linear, &x, Epilogue::Residual);
            for row in 0..rows {
                for column in 0..outputs {
                    let products =
                        (0..inputs).map(|i| (x[row * inputs + i] * weight[column * inputs + i]) as i64);
                    // Up to 84 million: beyond 2^24 a sum is rounded once where it becomes an f32, and once more
                    // where it is added.
                    let expected = products.sum::<i64>() as f32 + BEFORE;
                    assert_eq!(
                        out[row * outputs + column],
                        expected,
                        "{kernel:?} {form:?} {rows}x{inputs}x{outputs} [{row}, {column}]"
                    );
                }
            }
        }
    }
}

#[test]
fn every_kernel_rounds_and_scales_as_its_twin_does() {
    for (rows, inputs, outputs) in SHAPES {
        let (x, weight, bias) =
            (numbers(rows * inputs, 1), numbers(outputs * inputs, 2), numbers(outputs, 3));
        // Stacked, as queries, keys and values are.
        let cut = outputs / 2;
        let parts = [
            (weight[..cut * inputs].to_vec(), bias[..cut].to_vec()),
            (weight[cut * inputs..].to_vec(), bias[cut..].to_vec()),
        ];
        for (kernel, form) in kernels() {
            let linear = IntegerLinear::pack(kernel, form, &parts, inputs).unwrap();
            let twin = IntegerLinear::pack(Kernel::Plain, form, &parts, inputs).unwrap();
            for epilogue in [Epilogue::Bias, Epilogue::Residual, Epilogue::Gelu] {
                let (got, expected) = (apply(&linear, &x, epilogue), apply(&twin, &x, epilogue));
                let what = format!("{kernel:?} {form:?} {rows}x{inputs}x{outputs} {epilogue:?}");
                if epilogue != Epilogue::Gelu {
                    assert_eq!(bits(&got), bits(&expected), "{what}");
                    continue;
                }
                for (got, expected) in got.iter().zip(&expected) {
                    // One unit of bfloat16, where 1/x of the vector units rounds otherwise.
                    assert!(
                        (got - expected).abs() <= expected.abs() / 128.0 + 1e-6,
                        "{what}: {got}, {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn results_are_near_those_of_the_numbers() {
    for (rows, inputs, outputs) in SHAPES {
        let (x, weight, bias) =
            (numbers(rows * inputs, 1), numbers(outputs * inputs, 2), numbers(outputs, 3));
        let parts = [(weight.clone(), bias.clone())];
        for (kernel, form) in kernels() {
            let linear = IntegerLinear::pack(kernel, form, &parts, inputs).unwrap();
            let out = apply(&linear, &x, Epilogue::Residual);
            for row in 0..rows {
                for column in 0..outputs {
                    let products = (0..inputs)
                        .map(|i| f64::from(x[row * inputs + i]) * f64::from(weight[column * inputs + i]));
                    let expected = products.sum::<f64>() + f64::from(bias[column] + BEFORE);
                    // Each factor, up to 1.7, is off by up to half a 127th of that; of random signs for the most
                    // part.
                    let tolerance = 0.08 * (inputs as f64).sqrt();
                    let got = f64::from(out[row * outputs + column]);
                    assert!(
                        (got - expected).abs() < tolerance,
                        "{kernel:?} {form:?} {rows}x{inputs}x{outputs} [{row}, {column}]: {got}, expected {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn columns_beyond_the_layer_are_zero() {
    let parts = [(numbers(40 * 50, 2), numbers(40, 3))];
    let x = to_lines(&numbers(32 * 50, 1), 50);
    for (kernel, _) in kernels().into_iter().filter(|(_, form)| *form == Form::Lines) {
        let linear = IntegerLinear::pack(kernel, Form::Lines, &parts, 50).unwrap();
        for epilogue in [Epilogue::Bias, Epilogue::Gelu] {
            let mut out = to_lines(&[BEFORE; 32 * 64], 64);
            let mut scratch = Scratch::default();
            linear.apply(&Input::Lines(&x), epilogue, &mut scratch, &mut Output::Lines(&mut out));
            let whole = from_lines(&out, 32, 64);
            assert!(whole.chunks_exact(64).all(|row| row[40..] == [0.0; 24]), "{kernel:?} {epilogue:?}");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let (inputs, outputs) = (96, 40);
    let x = numbers(70 * inputs, 5);
    let parts = [(numbers(outputs * inputs, 2), numbers(outputs, 3))];
    for (kernel, form) in kernels() {
        let linear = IntegerLinear::pack(kernel, form, &parts, inputs).unwrap();
        let all = apply(&linear, &x, Epilogue::Bias);
        let mut poisoned = x.clone();
        poisoned[..20 * inputs].fill(f32::NAN);
        poisoned[20 * inputs..33 * inputs].fill(1e30);
        let what = format!("{kernel:?} {form:?}");
        let row = 33 * outputs..34 * outputs;
        assert_eq!(apply(&linear, &x[33 * inputs..34 * inputs], Epilogue::Bias), all[row], "{what}");
        let poisoned = apply(&linear, &poisoned, Epilogue::Bias);
        assert_eq!(poisoned[33 * outputs..], all[33 * outputs..], "{what}");
        assert!(poisoned[..20 * outputs].iter().all(|x| x.is_nan()), "{what}");
    }
}

#[test]
fn what_is_not_finite_shows_in_the_whole_row() {
    let (inputs, outputs) = (70, 34);
    let parts = [(numbers(outputs * inputs, 2), numbers(outputs, 3))];
    for (kernel, form) in kernels() {
        let linear = IntegerLinear::pack(kernel, form, &parts, inputs).unwrap();
        for epilogue in [Epilogue::Bias, Epilogue::Gelu, Epilogue::Residual] {
            for wrong in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for column in [0, 17, 31, 32, 63, 64, 69] {
                    let mut x = numbers(3 * inputs, 1);
                    x[inputs + column] = wrong;
                    let out = apply(&linear, &x, epilogue);
                    let what = format!("{kernel:?} {form:?} {epilogue:?} {wrong} at {column}");
                    assert!(out[outputs..2 * outputs].iter().all(|x| x.is_nan()), "{what}");
                    assert!(out[..outputs].iter().all(|x| x.is_finite()), "{what}");
                    assert!(out[2 * outputs..].iter().all(|x| x.is_finite()), "{what}");
                }
            }
        }
        // A weight spoils its own output.
        for wrong in [f32::NAN, f32::INFINITY] {
            let mut weight = numbers(outputs * inputs, 2);
            weight[20 * inputs + 3] = wrong;
            let parts = [(weight, numbers(outputs, 3))];
            let linear = IntegerLinear::pack(kernel, form, &parts, inputs).unwrap();
            let out = apply(&linear, &numbers(inputs, 1), Epilogue::Bias);
            for (column, value) in out.iter().enumerate() {
                assert_eq!(value.is_nan(), column == 20, "{kernel:?} {form:?} {wrong} {column}");
            }
        }
    }
}

#[test]
fn nothing_and_next_to_nothing_give_the_bias() {
    let (inputs, outputs) = (70, 34);
    let bias = numbers(outputs, 3);
    for (kernel, form) in kernels() {
        let parts = [(numbers(outputs * inputs, 2), bias.clone())];
        let linear = IntegerLinear::pack(kernel, form, &parts, inputs).unwrap();
        for x in [0.0, -0.0, 1e-38, -1e-38, 1e-44] {
            let out = apply(&linear, &vec![x; inputs], Epilogue::Bias);
            assert_eq!(out, bias, "{kernel:?} {form:?} {x}");
        }
        let linear =
            IntegerLinear::pack(kernel, form, &[(vec![1e-40; outputs * inputs], bias.clone())], inputs)
                .unwrap();
        assert_eq!(apply(&linear, &numbers(inputs, 1), Epilogue::Bias), bias, "{kernel:?} {form:?}");
    }
}

#[test]
fn whole_numbers_are_the_nearest_even_ones() {
    for step in -127 * 64..=127 * 64 {
        let x = step as f32 / 64.0;
        assert_eq!(nearest(x), x.round_ties_even(), "{x}");
    }
}
