//! What the vector instructions of [`super::x86`] compute, in plain code.

use half::bf16;

use super::super::brain::{GROUP, STEP, TILE_COLUMNS, TILE_ROWS, line_of, lines, plain::gelu};
use super::{BYTES, Block, Form, Input, Line, Output, WORD, scale, steps};

pub(super) fn quantise(x: &Input<'_>, width: usize, out: &mut [Line], scales: &mut [f32]) {
    let (form, number): (_, &dyn Fn(usize, usize) -> f32) = match x {
        Input::Lines(x) => {
            let numbers: &[u16] = bytemuck::cast_slice(x);
            (Form::Lines, &move |row, column| {
                let line = line_of(row, column, lines(width));
                bf16::from_bits(numbers[line * STEP + column % STEP]).to_f32()
            })
        }
        Input::Rows(x) => (Form::Rows, &|row, column| x[row * width + column]),
    };
    let out: &mut [i8] = bytemuck::cast_slice_mut(out);
    for (row, row_scale) in scales.iter_mut().enumerate() {
        let mut largest = 0f32;
        for column in 0..width {
            let magnitude = number(row, column).abs();
            if magnitude > largest || magnitude.is_nan() {
                largest = magnitude;
            }
            if largest.is_nan() {
                break;
            }
        }
        let (scale, inverse) = scale(largest);
        *row_scale = scale;
        for step in 0..steps(width) {
            let line = (row / GROUP * steps(width) + step) * GROUP + row % GROUP;
            for byte in 0..BYTES {
                let column = step * BYTES + form.column(byte);
                out[line * BYTES + byte] =
                    if column < width { (number(row, column) * inverse).round_ties_even() as i8 } else { 0 };
            }
        }
    }
}

pub(super) fn multiply(block: &Block<'_>, out: &mut Output<'_>) {
    let (grid, ending) = (block.grid, block.ending);
    let weights: &[i8] = bytemuck::cast_slice(grid.weights);
    for row in 0..grid.tiles * TILE_ROWS {
        for column in 0..grid.panels * TILE_COLUMNS {
            let first = column / TILE_COLUMNS * grid.steps * BYTES * TILE_COLUMNS;
            let mut sum = 0i32;
            for step in 0..grid.steps {
                let groups = grid.groups(row / TILE_ROWS, step);
                let line = &groups[row % TILE_ROWS / GROUP][row % GROUP];
                let line: &[i8] = bytemuck::cast_slice(std::slice::from_ref(line));
                for (byte, x) in line.iter().enumerate() {
                    let word = step * (BYTES / WORD) + byte / WORD;
                    let at = first + (word * TILE_COLUMNS + column % TILE_COLUMNS) * WORD + byte % WORD;
                    sum += i32::from(*x) * i32::from(weights[at]);
                }
            }
            let value =
                (sum as f32 * ending.row_scales[row]).mul_add(ending.scales[column], ending.bias[column]);
            let value = if ending.gelu { gelu(value) } else { value };
            match out {
                Output::Lines(out) => {
                    let line = line_of(row, column, ending.panels);
                    let numbers: &mut [u16] = bytemuck::cast_slice_mut(out);
                    numbers[line * STEP + column % STEP] = bf16::from_f32(value).to_bits();
                }
                Output::Rows(out) if column < ending.outputs => out[row * ending.outputs + column] = value,
                Output::Residual(out) if column < ending.outputs => {
                    out[row * ending.outputs + column] += value;
                }
                Output::Rows(_) | Output::Residual(_) => {}
            }
        }
    }
}
