use bytemuck::Zeroable;
use half::bf16;

use super::super::buffer::Buffer;
use super::*;
use crate::model::{StoredType, Tensor};
use crate::ops::{Epilogue, LinearRows};

/// The plain twin and whatever this machine has.
fn kernels() -> Vec<Kernel> {
    let mut kernels = vec![Kernel::Plain];
    kernels.extend(Kernel::detect());
    #[cfg(target_arch = "x86_64")]
    if Kernel::detect() == Some(Kernel::Amx) {
        kernels.push(Kernel::Dot);
    }
    kernels
}

fn numbers(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| (((i + seed) * 7_919 % 1_009) as f32 - 504.0) / 300.0).collect()
}

fn rounded(value: f32) -> f32 {
    bf16::from_f32(value).to_f32()
}

/// Rows of numbers as lines, with rows of zeros to a whole tile.
fn to_lines(x: &[f32], width: usize) -> Vec<Line> {
    let rows = (x.len() / width).next_multiple_of(TILE_ROWS);
    let mut out = vec![Line::zeroed(); rows * lines(width)];
    for (row, x) in x.chunks_exact(width).enumerate() {
        for (column, x) in x.iter().enumerate() {
            out[line_of(row, column, lines(width))].0[column % STEP] = bf16::from_f32(*x).to_bits();
        }
    }
    out
}

fn from_lines(x: &[Line], rows: usize, width: usize) -> Vec<f32> {
    let number =
        |row, column| bf16::from_bits(x[line_of(row, column, lines(width))].0[column % STEP]).to_f32();
    (0..rows).flat_map(|row| (0..width).map(move |column| (row, column))).map(|(r, c)| number(r, c)).collect()
}

fn gelu(x: f64) -> f64 {
    0.5 * x * libm::erfc(-x / std::f64::consts::SQRT_2)
}

/// Packs weights and biases.
fn pack(kernel: Kernel, parts: &[(Vec<f32>, Vec<f32>)], inputs: usize) -> Option<BrainLinear> {
    let tensor = |values: &[f32]| Tensor {
        stored: StoredType::F32,
        shape: &[],
        bytes: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    };
    let rows =
        |(weight, bias): &(Vec<f32>, Vec<f32>)| LinearRows { weight: tensor(weight), bias: tensor(bias) };
    let parts: Vec<_> = parts.iter().map(rows).collect();
    BrainLinear::pack(kernel, &parts, inputs)
}

/// Applies a layer to rows of numbers; what was not written keeps its 7.
fn apply(linear: &BrainLinear, x: &[f32], epilogue: Epilogue, outputs: usize) -> Vec<f32> {
    let x = to_lines(x, linear.inputs());
    let rows = x.len() / lines(linear.inputs());
    let mut sums = Buffer::default();
    if epilogue == Epilogue::Residual {
        let mut out = vec![3.0; rows * outputs];
        linear.apply(&x, epilogue, &mut sums, &mut Output::Residual(&mut out));
        return out;
    }
    let mut out = vec![Line([bf16::from_f32(7.0).to_bits(); STEP]); rows * lines(outputs)];
    linear.apply(&x, epilogue, &mut sums, &mut Output::Lines(&mut out));
    from_lines(&out, rows, outputs)
}

#[test]
fn every_kernel_multiplies_what_was_rounded() {
    for (rows, inputs, outputs) in [
        (1, 1, 1),
        (32, 64, 33),
        (33, 100, 47),
        (64, 513, 32),
        (97, 1_100, 65),
        (31, 512, 96),
        (17, 31, 16),
        (65, 1_400, 33),
    ] {
        let (x, weight, bias) =
            (numbers(rows * inputs, 1), numbers(outputs * inputs, 2), numbers(outputs, 3));
        let parts = [(weight.clone(), bias.clone())];
        let [x64, weight64] =
            [&x, &weight].map(|x| x.iter().map(|x| f64::from(rounded(*x))).collect::<Vec<_>>());
        for kernel in kernels() {
            let linear = pack(kernel, &parts, inputs).unwrap();
            for epilogue in [Epilogue::Bias, Epilogue::Gelu, Epilogue::Residual] {
                let out = apply(&linear, &x, epilogue, outputs);
                for row in 0..rows {
                    for column in 0..outputs {
                        let products =
                            (0..inputs).map(|i| x64[row * inputs + i] * weight64[column * inputs + i]);
                        let sum = products.sum::<f64>() + f64::from(bias[column]);
                        // Sums in f32 of up to a thousand products of up to 3.
                        let of_sums = 8e-5 * (inputs as f64).sqrt();
                        let (expected, tolerance) = match epilogue {
                            // Half a unit of bfloat16's eight digits.
                            Epilogue::Bias => (sum, sum.abs() / 256.0 + of_sums),
                            Epilogue::Gelu => (gelu(sum), gelu(sum).abs() * (0.75 / 128.0) + of_sums),
                            Epilogue::Residual => (sum + 3.0, of_sums),
                        };
                        let got = f64::from(out[row * outputs + column]);
                        assert!(
                            (got - expected).abs() <= tolerance,
                            "{kernel:?} {rows}x{inputs}x{outputs} {epilogue:?} [{row}, {column}]: {got}, expected {expected}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn columns_beyond_the_layer_are_zero() {
    let parts = [(numbers(40 * 50, 2), numbers(40, 3))];
    let x = to_lines(&numbers(32 * 50, 1), 50);
    for kernel in kernels() {
        let linear = pack(kernel, &parts, 50).unwrap();
        for epilogue in [Epilogue::Bias, Epilogue::Gelu] {
            let mut out = vec![Line([0x4040; STEP]); 32 * 2];
            linear.apply(&x, epilogue, &mut Buffer::default(), &mut Output::Lines(&mut out));
            let whole = from_lines(&out, 32, 64);
            assert!(whole.chunks_exact(64).all(|row| row[40..] == [0.0; 24]), "{kernel:?} {epilogue:?}");
        }
    }
}

#[test]
fn gelu_is_within_a_quarter_of_a_unit() {
    // One input that is the bias: the sums are exactly these. `Residual` shows them before they are rounded, but
    // has no GELU: so the rounding, half a unit, is allowed on top.
    let x: Vec<f32> = (-8_000..=8_000).map(|i| i as f32 * 1e-3).chain([-1e4, -30.0, 30.0, 1e4]).collect();
    let parts = [(vec![0.0; x.len()], x.clone())];
    for kernel in kernels() {
        let linear = pack(kernel, &parts, 1).unwrap();
        let out = apply(&linear, &[1.0], Epilogue::Gelu, x.len());
        for (&x, &y) in x.iter().zip(&out) {
            let exact = gelu(f64::from(x));
            let unit = 2f64.powi(exact.abs().log2().floor().max(-126.0) as i32 - 7);
            assert!(
                (f64::from(y) - exact).abs() <= 0.75 * unit + 1e-7,
                "{kernel:?}: gelu({x}) = {y}, exactly {exact}, unit {unit}"
            );
        }
        for x in [f32::NAN, f32::INFINITY] {
            let linear = pack(kernel, &[(vec![0.0], vec![x])], 1).unwrap();
            assert!(!apply(&linear, &[1.0], Epilogue::Gelu, 1)[0].is_finite(), "{kernel:?} {x}");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    let (inputs, outputs) = (96, 40);
    let x = numbers(70 * inputs, 5);
    let parts = [(numbers(outputs * inputs, 2), numbers(outputs, 3))];
    for kernel in kernels() {
        let linear = pack(kernel, &parts, inputs).unwrap();
        let apply = |x: &[f32]| apply(&linear, x, Epilogue::Bias, outputs);
        let all = apply(&x);
        let mut poisoned = x.clone();
        poisoned[..20 * inputs].fill(f32::NAN);
        assert_eq!(
            apply(&x[33 * inputs..34 * inputs])[..outputs],
            all[33 * outputs..34 * outputs],
            "{kernel:?}"
        );
        assert_eq!(apply(&poisoned)[20 * outputs..], all[20 * outputs..], "{kernel:?}");
        assert!(apply(&poisoned)[..20 * outputs].iter().all(|x| x.is_nan()), "{kernel:?}");
    }
}

#[test]
fn every_width_is_normalised_and_rounded_once() {
    for width in [1, 2, 15, 16, 17, 31, 32, 33, 64, 100, 320] {
        let x: Vec<f32> = (0..GROUP * width).map(|i| 10.0 + (i as f32 * 0.7).sin()).collect();
        let scale: Vec<f32> = (0..width).map(|i| 1.0 + 0.01 * i as f32).collect();
        let shift: Vec<f32> = (0..width).map(|i| 0.1 * i as f32).collect();
        let norm = Norm { scale, shift, eps: 1e-5 };
        for kernel in kernels() {
            let mut out = vec![Line([0x4040; STEP]); GROUP * lines(width)];
            kernel.normalise(&norm, &x, &mut out);
            let padded = lines(width) * STEP;
            let got = from_lines(&out, GROUP, padded);
            for (x, got) in x.chunks_exact(width).zip(got.chunks_exact(padded)) {
                let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / width as f64;
                let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / width as f64;
                for column in 0..width {
                    let unit = (f64::from(x[column]) - mean) / (variance + 1e-5).sqrt();
                    let expected = unit * f64::from(norm.scale[column]) + f64::from(norm.shift[column]);
                    let error = (f64::from(got[column]) - expected).abs();
                    assert!(error < 1e-4 + expected.abs() / 256.0 * 1.01, "{kernel:?} {width}: {error}");
                }
                assert!(got[width..].iter().all(|&x| x == 0.0), "{kernel:?} {width}");
            }
        }
    }
}

/// Queries, keys and values of sequences one after the other, [tokens, 3·hidden].
struct Case {
    head_width: usize,
    heads: usize,
    lengths: Vec<usize>,
    qkv: Vec<f32>,
}

impl Case {
    fn new(head_width: usize, heads: usize, lengths: &[usize]) -> Self {
        let tokens: usize = lengths.iter().sum();
        let qkv = (0..tokens * 3 * heads * head_width)
            .map(|i| rounded((i as f32 * 0.37).sin() * 2.0 + (i as f32 * 0.011).cos()))
            .collect();
        Self { head_width, heads, lengths: lengths.to_vec(), qkv }
    }

    fn hidden(&self) -> usize {
        self.heads * self.head_width
    }

    fn attend(&self, kernel: Kernel, scratch: &mut Scratch) -> Vec<f32> {
        let hidden = self.hidden();
        let tokens: usize = self.lengths.iter().sum();
        let qkv = to_lines(&self.qkv, 3 * hidden);
        let mut out = vec![Line::zeroed(); tokens.next_multiple_of(TILE_ROWS) * lines(hidden)];
        let target = Target::new(&mut out, hidden);
        let mut rotary = Rotary::new(self.head_width);
        rotary.reserve(self.lengths.iter().copied().max().unwrap());
        let mut first = 0;
        for length in &self.lengths {
            let attend = Attend {
                kernel,
                qkv: &qkv,
                sequence: first..first + length,
                hidden,
                head_width: self.head_width,
                heads: 0..self.heads,
                rows: 0..*length,
                rotary: &rotary,
                scratch: &mut *scratch,
                out: target,
            };
            attend.run();
            first += length;
        }
        from_lines(&out, tokens, hidden)
    }

    /// In f64.
    fn expected(&self) -> Vec<f64> {
        let (hidden, width) = (self.hidden(), self.head_width);
        let frequencies = super::super::rotary::rotary_frequencies(width);
        let mut out = Vec::new();
        let mut first = 0;
        for &length in &self.lengths {
            let number = |token: usize, part: usize, column: usize| {
                f64::from(self.qkv[(first + token) * 3 * hidden + part * hidden + column])
            };
            let mut rows = vec![0.0; length * hidden];
            for head in 0..self.heads {
                let at = head * width;
                let rotated = |part: usize| -> Vec<f64> {
                    (0..length)
                        .flat_map(|token| (0..width).map(move |column| (token, column)))
                        .map(|(token, column)| {
                            let pairs = width / 2;
                            let (sine, cosine) =
                                (token as f64 * f64::from(frequencies[column % pairs])).sin_cos();
                            let x = number(token, part, at + column);
                            if column < pairs {
                                x * cosine - number(token, part, at + column + pairs) * sine
                            } else {
                                x * cosine + number(token, part, at + column - pairs) * sine
                            }
                        })
                        .collect()
                };
                let (queries, keys) = (rotated(0), rotated(1));
                for token in 0..length {
                    let query = &queries[token * width..][..width];
                    let scores: Vec<f64> = keys
                        .chunks_exact(width)
                        .map(|key| {
                            key.iter().zip(query).map(|(a, b)| a * b).sum::<f64>() / (width as f64).sqrt()
                        })
                        .collect();
                    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for column in 0..width {
                        let sum: f64 =
                            (0..length).map(|key| weights[key] * number(key, 2, at + column)).sum();
                        rows[token * hidden + at + column] = sum / total;
                    }
                }
            }
            out.extend(rows);
            first += length;
        }
        out
    }
}

const BORDERS: [usize; 17] = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 511, 513, 1_025];

#[test]
fn attention_is_that_of_the_definition() {
    for (head_width, heads, lengths) in [
        (16, 2, &BORDERS[..]),
        (16, 3, &[40, 7]),
        (2, 3, &[33, 5]),
        (8, 4, &[31]),
        (20, 3, &[17, 33, 64]),
        (24, 4, &[1, 31, 65, 513]),
        (32, 2, &[15, 129]),
        (48, 2, &[33]),
        (64, 2, &[1, 63, 128]),
        (128, 1, &[16, 65]),
    ] {
        let case = Case::new(head_width, heads, lengths);
        let expected = case.expected();
        for kernel in kernels() {
            // The same memory for all: whatever one head leaves behind must not matter.
            let mut scratch = Scratch::default();
            let got = case.attend(kernel, &mut scratch);
            let (mut dot, mut a, mut b) = (0.0, 0.0, 0.0);
            for (index, (&x, &y)) in got.iter().zip(&expected).enumerate() {
                let x = f64::from(x);
                // Rounded queries and keys move a score by up to a hundredth.
                assert!(
                    (x - y).abs() < 0.06,
                    "{kernel:?} {head_width} {lengths:?} [{index}]: {x}, expected {y}"
                );
                (dot, a, b) = (dot + x * y, a + x * x, b + y * y);
            }
            let cosine: f64 = dot / (a * b).sqrt();
            assert!(cosine > 0.9999, "{kernel:?} {head_width} {lengths:?}: cosine {cosine}");
        }
    }
}

#[test]
fn a_sequence_attends_to_itself_only() {
    for (head_width, heads) in [(16, 4), (24, 4), (32, 1), (64, 1)] {
        for kernel in kernels() {
            let case = Case::new(head_width, heads, &[21, 43, 70]);
            let hidden = case.hidden();
            let together = case.attend(kernel, &mut Scratch::default());
            let mut poisoned = Case::new(head_width, heads, &[21, 43, 70]);
            let middle = 21..64;
            poisoned.qkv[..middle.start * 3 * hidden].fill(f32::NAN);
            poisoned.qkv[middle.end * 3 * hidden..].fill(f32::INFINITY);
            let mut scratch = Scratch::default();
            // Twice: the second time its memory is full of NaN.
            for _ in 0..2 {
                let got = poisoned.attend(kernel, &mut scratch);
                let what = format!("{kernel:?}, heads of {head_width}");
                let rows = middle.start * hidden..middle.end * hidden;
                assert_eq!(got[rows.clone()], together[rows.clone()], "{what}");
                assert!(got[..rows.start].iter().all(|x| x.is_nan()), "{what}");
                assert!(got[rows.end..].iter().all(|x| !x.is_finite()), "{what}");
            }
            let mut alone = Case::new(head_width, heads, &[21, 43, 70]);
            alone.lengths = vec![43];
            alone.qkv = alone.qkv[middle.start * 3 * hidden..middle.end * 3 * hidden].to_vec();
            let got = alone.attend(kernel, &mut scratch);
            assert_eq!(got, together[middle.start * hidden..middle.end * hidden], "{kernel:?}");
        }
    }
}

#[test]
fn one_wrong_row_spoils_its_own_sequence() {
    // NaN in one key: every row of the sequence shows it, none of the next one.
    let mut case = Case::new(16, 2, &[40, 40]);
    let hidden = case.hidden();
    case.qkv[17 * 3 * hidden + hidden..17 * 3 * hidden + 2 * hidden].fill(f32::NAN);
    for kernel in kernels() {
        let got = case.attend(kernel, &mut Scratch::default());
        assert!(got[..40 * hidden].iter().all(|x| x.is_nan()), "{kernel:?}");
        assert!(got[40 * hidden..].iter().all(|x| x.is_finite()), "{kernel:?}");
    }
}

#[test]
fn parts_of_the_rows_and_heads_are_those_of_the_whole() {
    let case = Case::new(16, 4, &[1_100]);
    let hidden = case.hidden();
    let qkv = to_lines(&case.qkv, 3 * hidden);
    let mut rotary = Rotary::new(16);
    rotary.reserve(1_100);
    for kernel in kernels() {
        if kernel == Kernel::Plain {
            continue;
        }
        let whole = case.attend(kernel, &mut Scratch::default());
        let mut out = vec![Line::zeroed(); 1_120 * lines(hidden)];
        let target = Target::new(&mut out, hidden);
        for head in (0..4).rev() {
            for rows in [1_024..1_100, 0..1_024] {
                let attend = Attend {
                    kernel,
                    qkv: &qkv,
                    sequence: 0..1_100,
                    hidden,
                    head_width: 16,
                    heads: head..head + 1,
                    rows,
                    rotary: &rotary,
                    scratch: &mut Scratch::default(),
                    out: target,
                };
                attend.run();
            }
        }
        assert_eq!(from_lines(&out, 1_100, hidden), whole, "{kernel:?}");
    }
}
