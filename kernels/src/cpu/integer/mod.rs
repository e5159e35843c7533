//! Linear layers in 8-bit integers: half the memory of bfloat16, and twice its products per instruction.
//!
//! Weights are rounded once, at load, each output's by a scale of its own. Activations are rounded where they
//! enter a layer, each token's by a scale that its own numbers give: no token depends on its neighbours. Sums are
//! exact, in 32-bit integers; scales, bias, GELU and the addition to the residual stream follow in f32. A token
//! that holds NaN or infinity has the scale NaN, so that its results show it.
//!
//! Activations come as the rest of the engine has them: in bfloat16 ([`super::brain`]) where the processor has
//! that, else in f32; norms, attention and the residual stream are theirs, and in bfloat16 queries, keys and
//! values as well ([`super::operations`]).
//!
//! The instructions are chosen at run time: AMX tiles or AVX-512's `vpdpbusd`. [`Kernel::Plain`] is their twin in
//! plain code, for tests.

mod plain;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use rayon::prelude::*;

use super::brain::{self, Grid, Line, TILE_COLUMNS, TILE_ROWS};
use super::buffer::Buffer;
use super::stacked::{self, Row};
use crate::ops::{Epilogue, LinearRows};

/// Numbers of a line: what one step of a kernel takes from each row.
const BYTES: usize = 64;
/// Numbers of a word: what one lane of a kernel multiplies at once.
const WORD: usize = 4;
/// The greatest magnitude: -128 is left out, so that both signs have as many numbers.
const LARGEST: f32 = 127.0;
/// Below this the numbers of a row count as zero: their scale, or its inverse, would not be a normal number.
const LEAST: f32 = 1e-30;

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    /// AMX tiles.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// `vpdpbusd`, whose left side has no sign: activations are stored with 128 added, and the sums begin with
    /// what takes that away.
    #[cfg(target_arch = "x86_64")]
    Dot,
    /// Plain code: for tests, and far too slow for anything else.
    #[cfg_attr(not(test), expect(dead_code, reason = "the twin of the others, for tests"))]
    Plain,
}

impl Kernel {
    /// The fastest kernel of this machine; `None` where integers would be slower than f32.
    pub(super) fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            if brain::Kernel::detect() == Some(brain::Kernel::Amx) && brain::x86::amx_has_integers() {
                return Some(Self::Amx);
            }
            let vectors = brain::x86::has_avx512() && std::arch::is_x86_feature_detected!("avx512vnni");
            vectors.then_some(Self::Dot)
        }
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// Its name, for people.
    pub(super) fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => "AMX_INT8",
            #[cfg(target_arch = "x86_64")]
            Self::Dot => "AVX512_VNNI",
            Self::Plain => "plain code",
        }
    }

    /// Whether activations are stored with 128 added.
    fn shifts(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => false,
            #[cfg(target_arch = "x86_64")]
            Self::Dot => true,
            Self::Plain => false,
        }
    }

    /// The kernel of bfloat16 that sets its tiles up.
    fn tiles(self) -> Option<brain::Kernel> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => Some(brain::Kernel::Amx),
            #[cfg(target_arch = "x86_64")]
            Self::Dot => None,
            Self::Plain => None,
        }
    }

    /// Rounds rows to integers and finds their scales.
    ///
    /// `x`: rows of `width`, a multiple of [`TILE_ROWS`] of them. `out`: [rows / 16, steps, 16] lines of
    /// [`BYTES`] numbers in the order of [`Form::column`]. `scales`: one per row.
    fn quantise(self, x: &Input<'_>, width: usize, out: &mut [Line], scales: &mut [f32]) {
        let rows = scales.len();
        assert!(rows.is_multiple_of(TILE_ROWS) && out.len() >= rows * steps(width));
        assert!(match x {
            Input::Lines(x) => x.len() >= rows * brain::lines(width),
            Input::Rows(x) => x.len() >= rows * width,
        });
        match (self, x) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: made only where the processor has the instructions; the lengths were asserted.
            (Self::Amx | Self::Dot, Input::Lines(x)) => unsafe {
                x86::quantise_lines(x, brain::lines(width), self.shifts(), out, scales);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            (Self::Amx | Self::Dot, Input::Rows(x)) => unsafe {
                x86::quantise_rows(x, width, self.shifts(), out, scales);
            },
            (Self::Plain, x) => plain::quantise(x, width, out, scales),
        }
    }
}

/// Steps of a row of `width` numbers.
fn steps(width: usize) -> usize {
    width.div_ceil(BYTES)
}

/// The scale of numbers of at most this magnitude, and the factor that makes integers of them.
fn scale(largest: f32) -> (f32, f32) {
    if !largest.is_finite() {
        (f32::NAN, 0.0)
    } else if largest < LEAST {
        (0.0, 0.0)
    } else {
        (largest / LARGEST, LARGEST / largest)
    }
}

/// How the engine keeps activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// In bfloat16, as [`super::brain`] does.
    Lines,
    /// In f32, [rows, width].
    Rows,
}

impl Form {
    /// Which column of a step a byte of its line holds: the order in which vectors are packed with the fewest
    /// instructions. Weights are packed in the same order.
    fn column(self, byte: usize) -> usize {
        let (part, lane) = (byte / 4 % 4, byte / 16 * 4 + byte % 4);
        match self {
            // Even columns of the first line, odd ones, then those of the second.
            Self::Lines => part / 2 * brain::STEP + 2 * lane + part % 2,
            Self::Rows => part * 16 + lane,
        }
    }
}

/// Activations on their way into a layer.
pub(super) enum Input<'a> {
    /// [rows, inputs].
    Lines(&'a [Line]),
    /// [rows, inputs].
    Rows(&'a [f32]),
}

/// Where the results of some rows go.
pub(super) enum Output<'a> {
    /// Rounded to bfloat16, [rows, outputs].
    Lines(&'a mut [Line]),
    /// [rows, outputs].
    Rows(&'a mut [f32]),
    /// Added to the residual stream, [rows, outputs].
    Residual(&'a mut [f32]),
}

/// Scratch memory of one thread.
#[derive(Default)]
pub(super) struct Scratch {
    /// Integers, as [`Line`]s.
    x: Buffer,
    /// Scales of the rows.
    scales: Buffer,
    /// Sums, as `i32`.
    sums: Buffer,
}

/// A linear layer's weights in integers, in panels, and what turns sums into results.
pub(super) struct IntegerLinear {
    kernel: Kernel,
    form: Form,
    inputs: usize,
    outputs: usize,
    /// Per panel: [words of the inputs, [`TILE_COLUMNS`], [`WORD`]]; inputs and columns beyond the layer's are
    /// zero.
    values: Buffer,
    /// [outputs], then zeros to a whole panel.
    scales: Buffer,
    /// The same.
    bias: Buffer,
    /// What the sums of the columns begin with.
    starts: Vec<i32>,
}

/// The product of some rows with a layer.
struct Block<'a> {
    /// Rows and weights in integers.
    grid: Grid<'a>,
    /// What the sums of the columns begin with, but for AMX.
    starts: &'a [i32],
    ending: Ending<'a>,
    sums: &'a mut [f32],
}

/// What turns sums into results.
#[derive(Clone, Copy)]
struct Ending<'a> {
    /// Of the rows.
    row_scales: &'a [f32],
    /// [panels · [`TILE_COLUMNS`]].
    scales: &'a [f32],
    /// The same.
    bias: &'a [f32],
    panels: usize,
    outputs: usize,
    gelu: bool,
}

/// The nearest whole number of one between -128 and 127, the even one of two.
///
/// Without the function call that rounding is, and the checks that a conversion makes, where the compiler may not
/// assume more than SSE2: of such sums f32 keeps no fraction, and the last byte is the number.
#[inline(always)]
fn nearest(x: f32) -> i8 {
    const UNIT: f32 = 12_582_912.0;
    (x + UNIT).to_bits() as i8
}

impl IntegerLinear {
    /// Packs rows of weights ([outputs, inputs] each, stacked) for activations kept in this form, on all threads of
    /// the pool it is called in; `None` when memory is short.
    pub(super) fn pack(kernel: Kernel, form: Form, parts: &[LinearRows<'_>], inputs: usize) -> Option<Self> {
        let outputs = stacked::outputs(parts);
        let columns = outputs.next_multiple_of(TILE_COLUMNS);
        let panel_lines = steps(inputs) * TILE_COLUMNS;
        let mut values = Buffer::zeroed(columns * steps(inputs) * (size_of::<Line>() / size_of::<f32>()))?;
        let (mut scales, mut bias) = (Buffer::zeroed(columns)?, Buffer::zeroed(columns)?);
        let mut starts = vec![0; columns];
        let rows = stacked::rows(parts, inputs, bias.as_mut_slice())?;
        let panels: &mut [Line] = bytemuck::cast_slice_mut(values.as_mut_slice());
        panels
            .par_chunks_exact_mut(panel_lines)
            .zip(rows.par_chunks(TILE_COLUMNS))
            .zip(scales.as_mut_slice().par_chunks_mut(TILE_COLUMNS))
            .zip(starts.par_chunks_mut(TILE_COLUMNS))
            .for_each(|(((panel, rows), scales), starts)| {
                let inverses = measure(rows, inputs, scales);
                round(form, rows, inputs, &inverses, panel, starts);
                for start in starts {
                    *start = if kernel.shifts() { -128 * *start } else { 0 };
                }
            });
        Some(Self { kernel, form, inputs, outputs, values, scales, bias, starts })
    }

    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(super) fn bytes(&self) -> u64 {
        let columns = self.starts.len();
        (size_of_val(self.values.as_slice()) + columns * (2 * size_of::<f32>() + size_of::<i32>())) as u64
    }

    /// Applies the layer to `x` [rows, inputs], `rows` a multiple of [`TILE_ROWS`].
    ///
    /// `out` is of the form of the activations, but for [`Epilogue::Residual`].
    pub(super) fn apply(
        &self,
        x: &Input<'_>,
        epilogue: Epilogue,
        scratch: &mut Scratch,
        out: &mut Output<'_>,
    ) {
        let (inputs, steps) = (self.inputs, steps(self.inputs));
        let (form, rows) = match x {
            Input::Lines(x) => (Form::Lines, x.len() / brain::lines(inputs)),
            Input::Rows(x) => (Form::Rows, x.len() / inputs),
        };
        let panels = self.outputs.div_ceil(TILE_COLUMNS);
        let room = match out {
            Output::Lines(out) => out.len() >= rows * brain::lines(self.outputs),
            Output::Rows(out) | Output::Residual(out) => out.len() >= rows * self.outputs,
        };
        assert!(room && form == self.form && rows.is_multiple_of(TILE_ROWS));
        assert!(matches!(out, Output::Residual(_)) == (epilogue == Epilogue::Residual));

        let Scratch { x: integers, scales, sums } = scratch;
        let row_scales = scales.at_least(rows);
        let integers: &mut [Line] = bytemuck::cast_slice_mut(
            integers.at_least(rows * steps * (size_of::<Line>() / size_of::<f32>())),
        );
        self.kernel.quantise(x, inputs, integers, row_scales);

        let weights = bytemuck::cast_slice(self.values.as_slice());
        let grid = Grid { x: integers, tiles: rows / TILE_ROWS, steps, weights, panels };
        let ending = Ending {
            row_scales,
            scales: self.scales.as_slice(),
            bias: self.bias.as_slice(),
            panels,
            outputs: self.outputs,
            gelu: epilogue == Epilogue::Gelu,
        };
        let sums = sums.at_least(grid.sums_len());
        let block = Block { grid, starts: &self.starts, ending, sums };
        let configured = brain::Configured::new(self.kernel.tiles());
        match self.kernel {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: made only where the processor has it; the tiles are set up; the lengths were asserted.
            Kernel::Amx => unsafe { x86::amx_multiply(block, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: made only where the processor has it; the lengths were asserted; activations are kept in
            // lines only where the processor has bfloat16.
            Kernel::Dot => unsafe { x86::dot_multiply(block, out) },
            Kernel::Plain => plain::multiply(&block, out),
        }
        drop(configured);
    }
}

/// Finds the scale of each row, and the factors that make integers of their numbers.
fn measure(rows: &[Row<'_>], inputs: usize, scales: &mut [f32]) -> [f32; TILE_COLUMNS] {
    const READ: usize = 1_024;
    let (mut inverses, mut numbers) = ([0.0; TILE_COLUMNS], [0.0f32; READ]);
    for (((weight, first), row_scale), inverse) in rows.iter().zip(scales).zip(&mut inverses) {
        // Without their sign numbers compare as integers, infinity and then NaN above all others.
        let mut largest = 0;
        for start in (0..inputs).step_by(READ) {
            let numbers = &mut numbers[..READ.min(inputs - start)];
            weight.read(first + start, numbers);
            let magnitude = |number: &f32| number.abs().to_bits() as i32;
            largest = numbers.iter().map(magnitude).fold(largest, i32::max);
        }
        (*row_scale, *inverse) = scale(f32::from_bits(largest as u32));
    }
    inverses
}

/// Makes integers of up to [`TILE_COLUMNS`] rows, the columns of a `panel` of zeros; `totals` become their sums.
fn round(
    form: Form,
    rows: &[Row<'_>],
    inputs: usize,
    inverses: &[f32],
    panel: &mut [Line],
    totals: &mut [i32],
) {
    let columns: [usize; BYTES] = std::array::from_fn(|byte| form.column(byte));
    let mut numbers = [0.0; BYTES];
    // A step of all rows after the other: what is written lies together, and what is read was just read.
    for (step, words) in panel.chunks_exact_mut(TILE_COLUMNS).enumerate() {
        let words: &mut [[i8; WORD]] = bytemuck::cast_slice_mut(words);
        let start = step * BYTES;
        let numbers = &mut numbers[..BYTES.min(inputs - start)];
        for (column, ((weight, first), inverse)) in rows.iter().zip(inverses).enumerate() {
            // A row of next to nothing becomes zeros, and one with NaN, whose scale shows it.
            if *inverse == 0.0 {
                continue;
            }
            weight.read(first + start, numbers);
            let mut integers = [0; BYTES];
            for (integer, number) in integers.iter_mut().zip(numbers.iter()) {
                *integer = nearest(number * inverse);
            }
            totals[column] += integers.iter().map(|&integer| i32::from(integer)).sum::<i32>();
            for (word, columns) in columns.as_chunks::<WORD>().0.iter().enumerate() {
                words[word * TILE_COLUMNS + column] = columns.map(|column| integers[column]);
            }
        }
    }
}
