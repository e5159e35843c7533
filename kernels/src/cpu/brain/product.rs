//! Linear layers in bfloat16.

use half::bf16;
use rayon::prelude::*;

use super::super::buffer::Buffer;
use super::super::stacked;
use super::{Configured, GROUP, Kernel, Line, STEP, TILE_COLUMNS, TILE_ROWS, lines, plain};
use crate::ops::{Epilogue, LinearRows};

/// Inputs of a row of weights that are packed at once: whole lines.
const PACKED_STEPS: usize = 2 * STEP;

/// Steps of one block of the inner dimension: its part of a panel of weights (80 kB) and the tile's rows (as
/// much) pass from the second-level cache, which feeds the tiles fast enough; loading and storing the sums for
/// every 16 steps instead cost 10 %.
pub(in crate::cpu) const DEPTH_STEPS: usize = 40;

/// A linear layer's weights, rounded, in panels, and its bias in f32.
pub(in crate::cpu) struct BrainLinear {
    kernel: Kernel,
    inputs: usize,
    outputs: usize,
    /// Per panel: [inputs / 2, [`TILE_COLUMNS`], 2]; inputs and columns beyond the layer's are zero.
    values: Buffer,
    /// [outputs], then zeros to a whole panel.
    bias: Buffer,
}

/// Where the results of some rows go.
pub(in crate::cpu) enum Output<'a> {
    /// Rounded, [rows, outputs].
    Lines(&'a mut [Line]),
    /// Added to the residual stream, [rows, outputs].
    Residual(&'a mut [f32]),
}

/// The product of some rows with a layer's weights, whatever numbers the lines hold.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Grid<'a> {
    /// [2 · tiles, steps, [`GROUP`]].
    pub(in crate::cpu) x: &'a [Line],
    /// Tiles of rows.
    pub(in crate::cpu) tiles: usize,
    /// Lines of a row of `x`.
    pub(in crate::cpu) steps: usize,
    /// Per panel, [steps, [`TILE_COLUMNS`]] lines.
    pub(in crate::cpu) weights: &'a [Line],
    /// Panels of weights.
    pub(in crate::cpu) panels: usize,
}

/// The product of some rows with a layer.
pub(super) struct Block<'a> {
    pub(super) grid: Grid<'a>,
    /// [panels · [`TILE_COLUMNS`]].
    pub(super) bias: &'a [f32],
    pub(super) outputs: usize,
    pub(super) gelu: bool,
    /// As long as [`Grid::sums_len`] says.
    pub(super) sums: &'a mut [f32],
}

impl BrainLinear {
    /// Packs rows of weights ([outputs, inputs] each, stacked), on all threads of the pool it is called in;
    /// `None` when memory is short.
    pub(in crate::cpu) fn pack(kernel: Kernel, parts: &[LinearRows<'_>], inputs: usize) -> Option<Self> {
        let outputs = stacked::outputs(parts);
        let columns = outputs.next_multiple_of(TILE_COLUMNS);
        let panel = lines(inputs) * TILE_COLUMNS;
        let mut values = Buffer::zeroed(columns * lines(inputs) * (size_of::<Line>() / size_of::<f32>()))?;
        let mut bias = Buffer::zeroed(columns)?;
        let rows = stacked::rows(parts, inputs, bias.as_mut_slice())?;
        let packed: &mut [Line] = bytemuck::cast_slice_mut(values.as_mut_slice());
        packed.par_chunks_mut(panel).zip(rows.par_chunks(TILE_COLUMNS)).for_each(|(packed, rows)| {
            let pairs: &mut [[u16; 2]] = bytemuck::cast_slice_mut(packed);
            // A few lines of each row at a time: both sides stay in the first-level cache.
            let mut numbers = [0.0; PACKED_STEPS];
            for (index, pairs) in pairs.chunks_mut(PACKED_STEPS / 2 * TILE_COLUMNS).enumerate() {
                let first = index * PACKED_STEPS;
                let numbers = &mut numbers[..PACKED_STEPS.min(inputs - first)];
                for (column, (weight, row)) in rows.iter().enumerate() {
                    weight.read(row + first, numbers);
                    // All of them, then each pair to its place: the first takes vector instructions.
                    let mut rounded = [[0; 2]; PACKED_STEPS / 2];
                    for (target, number) in rounded.as_flattened_mut().iter_mut().zip(&*numbers) {
                        *target = bf16::from_f32(*number).to_bits();
                    }
                    for (pairs, rounded) in pairs.chunks_exact_mut(TILE_COLUMNS).zip(&rounded) {
                        pairs[column] = *rounded;
                    }
                }
            }
        });
        Some(Self { kernel, inputs, outputs, values, bias })
    }

    pub(in crate::cpu) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(in crate::cpu) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(in crate::cpu) fn bytes(&self) -> u64 {
        4 * (self.values.as_slice().len() + self.bias.as_slice().len()) as u64
    }

    /// Applies the layer to `x` [rows, inputs], `rows` a multiple of [`TILE_ROWS`].
    ///
    /// `sums`: scratch memory. `out`: lines, but for [`Epilogue::Residual`] rows, [rows, outputs].
    pub(in crate::cpu) fn apply(
        &self,
        x: &[Line],
        epilogue: Epilogue,
        sums: &mut Buffer,
        out: &mut Output<'_>,
    ) {
        let steps = lines(self.inputs);
        let panels = self.outputs.div_ceil(TILE_COLUMNS);
        let tiles = x.len() / (steps * TILE_ROWS);
        let grid = Grid { x, tiles, steps, weights: bytemuck::cast_slice(self.values.as_slice()), panels };
        let room = match out {
            Output::Lines(out) => out.len() >= tiles * TILE_ROWS * panels,
            Output::Residual(out) => out.len() >= tiles * TILE_ROWS * self.outputs,
        };
        assert!(room && x.len() == tiles * steps * TILE_ROWS);
        assert!(matches!(out, Output::Residual(_)) == (epilogue == Epilogue::Residual));
        let block = Block {
            grid,
            bias: self.bias.as_slice(),
            outputs: self.outputs,
            gelu: epilogue == Epilogue::Gelu,
            sums: sums.at_least(grid.sums_len()),
        };
        let configured = Configured::new(Some(self.kernel));
        match self.kernel {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: made only where the processor has it; the tiles are set up; the lengths were asserted.
            Kernel::Amx => unsafe { super::x86::amx_multiply(block, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: made only where the processor has it; the lengths were asserted.
            Kernel::Dot => unsafe { super::x86::dot_multiply(block, out) },
            Kernel::Plain => plain::multiply(block, out),
        }
        drop(configured);
    }
}

impl<'a> Grid<'a> {
    /// Sums that are kept: those of a tile, or of all tiles where the inner dimension takes several blocks.
    pub(in crate::cpu) fn sums_len(&self) -> usize {
        let kept = if self.steps > DEPTH_STEPS { self.tiles } else { 1 };
        kept * TILE_ROWS * TILE_COLUMNS
    }

    /// The two groups of a tile's rows, at a step.
    pub(in crate::cpu) fn groups(&self, tile: usize, step: usize) -> [&'a [Line]; 2] {
        [0, 1].map(|group| &self.x[((2 * tile + group) * self.steps + step) * GROUP..])
    }
}
