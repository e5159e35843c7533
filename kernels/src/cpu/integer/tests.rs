use bytemuck::Zeroable;
use half::{bf16, f16};

use super::super::brain::{STEP, line_of, lines};
use super::*;
use crate::model::{StoredType, Tensor};

/// The plain twin and whatever this machine has, with the forms in which it gets activations.
fn kernels() -> Vec<(Kernel, Form)> {
    let mut kernels = vec![(Kernel::Plain, Form::Lines), (Kernel::Plain, Form::Rows)];
    #[cfg(target_arch = "x86_64")]
    let dot = Kernel::detect() == Some(Kernel::Amx) && std::arch::is_x86_feature_detected!("avx512vnni");
    #[cfg(target_arch = "x86_64")]
    let dot = dot.then_some(Kernel::Dot);
    #[cfg(not(target_arch = "x86_64"))]
    let dot = None;
    for kernel in Kernel::detect().into_iter().chain(dot) {
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

/// Numbers as a file stores them, rounded to that.
fn stored(numbers: &[f32], stored: StoredType) -> Tensor<'static> {
    let bytes = |number: &f32| match stored {
        StoredType::F32 => number.to_le_bytes().to_vec(),
        StoredType::F16 => f16::from_f32(*number).to_le_bytes().to_vec(),
        StoredType::Bf16 => bf16::from_f32(*number).to_le_bytes().to_vec(),
    };
    Tensor { stored, shape: &[], bytes: numbers.iter().flat_map(bytes).collect() }
}

/// Packs weights and biases.
fn pack(kernel: Kernel, form: Form, parts: &[(Vec<f32>, Vec<f32>)], inputs: usize) -> Option<IntegerLinear> {
    let tensor = |numbers: &[f32]| stored(numbers, StoredType::F32);
    let rows =
        |(weight, bias): &(Vec<f32>, Vec<f32>)| LinearRows { weight: tensor(weight), bias: tensor(bias) };
    let parts: Vec<_> = parts.iter().map(rows).collect();
    IntegerLinear::pack(kernel, form, &parts, inputs)
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
            let linear = pack(kernel, form, &parts, inputs).unwrap();
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
            let linear = pack(kernel, form, &parts, inputs).unwrap();
            let twin = pack(Kernel::Plain, form, &parts, inputs).unwrap();
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
            let linear = pack(kernel, form, &parts, inputs).unwrap();
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
        let linear = pack(kernel, Form::Lines, &parts, 50).unwrap();
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
        let linear = pack(kernel, form, &parts, inputs).unwrap();
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
        let linear = pack(kernel, form, &parts, inputs).unwrap();
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
            let linear = pack(kernel, form, &parts, inputs).unwrap();
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
        let linear = pack(kernel, form, &parts, inputs).unwrap();
        for x in [0.0, -0.0, 1e-38, -1e-38, 1e-44] {
            let out = apply(&linear, &vec![x; inputs], Epilogue::Bias);
            assert_eq!(out, bias, "{kernel:?} {form:?} {x}");
        }
        let linear = pack(kernel, form, &[(vec![1e-40; outputs * inputs], bias.clone())], inputs).unwrap();
        assert_eq!(apply(&linear, &numbers(inputs, 1), Epilogue::Bias), bias, "{kernel:?} {form:?}");
    }
}

/// Scales, then integers in the order of a panel, then what sums begin with: one number after the other.
fn packed_plainly(
    kernel: Kernel,
    form: Form,
    weight: &[f32],
    inputs: usize,
) -> (Vec<f32>, Vec<i8>, Vec<i32>) {
    let outputs = weight.len() / inputs;
    let (columns, words) = (outputs.next_multiple_of(TILE_COLUMNS), steps(inputs) * (BYTES / WORD));
    let (mut scales, mut starts) = (vec![0.0; columns], vec![0; columns]);
    let mut values = vec![0; columns * words * WORD];
    for (output, row) in weight.chunks_exact(inputs).enumerate() {
        let finite = row.iter().all(|weight| weight.is_finite());
        let largest = row.iter().map(|weight| weight.abs()).fold(0.0, f32::max);
        let (scale, inverse) = scale(if finite { largest } else { f32::NAN });
        scales[output] = scale;
        let mut total = 0;
        for byte in 0..words * WORD {
            let input = byte / BYTES * BYTES + form.column(byte % BYTES);
            let integer = row.get(input).map_or(0, |weight| (weight * inverse).round_ties_even() as i8);
            let word = output / TILE_COLUMNS * words + byte / WORD;
            values[(word * TILE_COLUMNS + output % TILE_COLUMNS) * WORD + byte % WORD] = integer;
            total += i32::from(integer);
        }
        starts[output] = if kernel.shifts() { -128 * total } else { 0 };
    }
    (scales, values, starts)
}

#[test]
fn weights_are_packed_as_one_number_after_the_other_would_be() {
    for (_, inputs, outputs) in SHAPES {
        let mut weight = numbers(outputs * inputs, 2);
        // Rows of zeros, of next to nothing, of ties, and such as are not finite.
        for (row, wrong) in [(3, 0.0), (5, -1e-40), (7, f32::NAN), (11, -f32::NAN), (13, f32::NEG_INFINITY)] {
            if let Some(row) = weight.chunks_exact_mut(inputs).nth(row) {
                row[inputs / 2] = wrong;
                if wrong.abs() < 1.0 {
                    row.fill(wrong);
                }
            }
        }
        if let Some(row) = weight.chunks_exact_mut(inputs).nth(9) {
            (0..).zip(row).for_each(|(i, weight): (i32, _)| *weight = (i % 255 - 127) as f32 / 2.0);
        }
        for kind in [StoredType::F32, StoredType::F16, StoredType::Bf16] {
            let bias = numbers(outputs, 3);
            let cut = outputs / 2;
            let part = |rows: std::ops::Range<usize>| LinearRows {
                weight: stored(&weight[rows.start * inputs..rows.end * inputs], kind),
                bias: stored(&bias[rows], StoredType::F32),
            };
            let parts = [part(0..cut), part(cut..outputs)];
            let exact: Vec<f32> = parts.iter().flat_map(|part| part.weight.to_f32()).collect();
            for (kernel, form) in kernels() {
                let linear = IntegerLinear::pack(kernel, form, &parts, inputs).unwrap();
                let (scales, values, starts) = packed_plainly(kernel, form, &exact, inputs);
                let what = format!("{kernel:?} {form:?} {inputs}x{outputs} {kind:?}");
                assert_eq!(bits(linear.scales.as_slice()), bits(&scales), "{what}");
                assert!(bytemuck::cast_slice::<_, i8>(linear.values.as_slice()) == values, "{what}");
                assert_eq!(linear.starts, starts, "{what}");
                assert_eq!(linear.bias.as_slice()[..outputs], bias, "{what}");
            }
        }
    }
}

#[test]
fn whole_numbers_are_the_nearest_even_ones() {
    for step in -127 * 64..=127 * 64 {
        let x = step as f32 / 64.0;
        assert_eq!(f32::from(nearest(x)), x.round_ties_even(), "{x}");
    }
}
