//! What the vector instructions of [`super::x86`] compute, in plain code.

use std::ops::Range;

use bytemuck::Zeroable;
use half::bf16;

use super::super::norm::Norm;
use super::super::rotary::Rotary;
use super::product::{Block, Grid, Output};
use super::terms::{EXP2, LOGIT, LOGIT_LAST};
use super::{GROUP, Head, Line, STEP, Softmax, TILE_COLUMNS, TILE_ROWS, line_of, lines, value_lines};

fn round(x: f32) -> u16 {
    bf16::from_f32(x).to_bits()
}

fn wide(x: u16) -> f32 {
    bf16::from_bits(x).to_f32()
}

fn polynomial(terms: &[f32], x: f32) -> f32 {
    terms.iter().rev().fold(0.0, |sum, term| sum * x + term)
}

/// 2^x.
pub(super) fn exp2(x: f32) -> f32 {
    if x == f32::NEG_INFINITY {
        return 0.0;
    }
    polynomial(&EXP2, x - x.floor()) * x.floor().exp2()
}

/// See [`LOGIT`].
pub(in crate::cpu) fn gelu(x: f32) -> f32 {
    x / (1.0 + exp2(x * polynomial(&LOGIT, (x * x).min(LOGIT_LAST))))
}

pub(super) fn normalise(norm: &Norm, x: &[f32], out: &mut [Line]) {
    let width = norm.scale.len();
    for (row, x) in x.chunks_exact(width).enumerate() {
        let mean = x.iter().sum::<f32>() / width as f32;
        let squares = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>();
        let inverse = 1.0 / (squares / width as f32 + norm.eps).sqrt();
        for column in 0..lines(width) * STEP {
            let line = &mut out[line_of(row, column, lines(width))].0;
            line[column % STEP] = x
                .get(column)
                .map_or(0, |x| round((x - mean) * inverse * norm.scale[column] + norm.shift[column]));
        }
    }
}

/// `add`: `sums` hold those of earlier steps.
pub(super) fn tile(
    groups: [&[Line]; 2],
    panel: &[Line],
    steps: usize,
    columns: usize,
    sums: &mut [f32],
    stride: usize,
    add: bool,
) {
    let panel: &[u16] = bytemuck::cast_slice(panel);
    for row in 0..TILE_ROWS {
        for column in 0..columns {
            let sum = &mut sums[row * stride + column];
            if !add {
                *sum = 0.0;
            }
            for inner in 0..steps * STEP {
                let weight = panel[(inner / 2 * columns + column) * 2 + inner % 2];
                let line = &groups[row / GROUP][inner / STEP * GROUP + row % GROUP].0;
                *sum += wide(line[inner % STEP]) * wide(weight);
            }
        }
    }
}

pub(super) fn multiply(block: Block<'_>, out: &mut Output<'_>) {
    let Block { grid, bias, outputs, gelu: with_gelu, .. } = block;
    let Grid { tiles, steps, weights, .. } = grid;
    let mut sums = [0.0; TILE_ROWS * TILE_COLUMNS];
    for (panel, weights) in weights.chunks_exact(steps * TILE_COLUMNS).enumerate() {
        for index in 0..tiles {
            tile(grid.groups(index, 0), weights, steps, TILE_COLUMNS, &mut sums, TILE_COLUMNS, false);
            for (at, sum) in sums.iter().enumerate() {
                let (row, column) =
                    (index * TILE_ROWS + at / TILE_COLUMNS, panel * TILE_COLUMNS + at % TILE_COLUMNS);
                let value = sum + bias[column];
                match out {
                    Output::Lines(out) => {
                        let value = if with_gelu { gelu(value) } else { value };
                        out[line_of(row, column, outputs.div_ceil(STEP))].0[column % STEP] = round(value);
                    }
                    Output::Residual(out) if column < outputs => out[row * outputs + column] += value,
                    Output::Residual(_) => {}
                }
            }
        }
    }
}

pub(super) fn rotate(head: &Head<'_>, tokens: Range<usize>, rotary: &Rotary, scale: f32, out: &mut [Line]) {
    let pairs = head.width / 2;
    for (row, token) in tokens.enumerate() {
        let (cosines, sines) = rotary.at(token);
        for pair in 0..pairs {
            let [a, b] = [pair, pair + pairs].map(|column| wide(head.number(token, column)));
            let (cosine, sine) = (cosines[pair], sines[pair]);
            for (column, value) in [(pair, a * cosine - b * sine), (pair + pairs, b * cosine + a * sine)] {
                out[line_of(row, column, lines(head.width))].0[column % STEP] = round(value * scale);
            }
        }
    }
}

pub(super) fn transpose(rows: &[Line], out: &mut [Line]) {
    for pair in 0..GROUP {
        for (row, line) in rows.iter().enumerate() {
            out[2 * pair].0[2 * row..2 * row + 2].copy_from_slice(&line.0[2 * pair..2 * pair + 2]);
        }
    }
}

pub(super) fn pack_values(head: &Head<'_>, tokens: Range<usize>, pairs: usize, out: &mut [Line]) {
    let narrow = value_lines(head.width) == 1;
    for token in tokens.start..tokens.start + TILE_ROWS {
        for column in 0..head.width {
            let value = if tokens.contains(&token) { head.number(token, column) } else { 0 };
            let line = if narrow {
                token / 2
            } else {
                (column / STEP * pairs + token / 2) * 2 + column % STEP / GROUP
            };
            out[line].0[column % GROUP * 2 + token % 2] = value;
        }
    }
}

pub(super) fn soften(
    scores: &mut [f32],
    stride: usize,
    keys: usize,
    softmax: &mut [Softmax],
    weights: &mut [Line],
) {
    for (row, (scores, softmax)) in scores.chunks(stride).zip(softmax).enumerate() {
        let highest = scores[..keys].iter().copied().fold(f32::NEG_INFINITY, f32::max);
        softmax.raise(highest);
        for key in 0..lines(keys) * STEP {
            let weight = if key < keys { exp2(scores[key] - softmax.maximum) } else { 0.0 };
            softmax.total += weight;
            weights[line_of(row, key, lines(keys))].0[key % STEP] = round(weight);
        }
    }
}

pub(super) fn divide(sums: &[f32], total: f32) -> Line {
    let mut line = Line::zeroed();
    for (out, sum) in line.0.iter_mut().zip(sums) {
        *out = round(sum * (1.0 / total));
    }
    line
}
