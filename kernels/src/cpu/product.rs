//! Matrix products of activations with packed matrices.
//!
//! A packed matrix lies in panels as wide as one tile of the register kernel, so that the inner
//! loop reads it front to back. Linear layers pack their weights once, at load; attention packs
//! keys and values per head. Every result element is one chain of multiply-adds over the inner
//! dimension in a fixed order, whatever else is computed beside it: that is what makes a sequence's
//! embedding independent of its batch and of the number of threads.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::buffer::Buffer;
use super::elementary::gelu;
use super::{brain, split, stacked};
use crate::ops::{Epilogue, LinearRows};

/// Activations hold a multiple of this many rows, so that every tile is full: the least common
/// multiple of the tile heights in [`tile_rows`].
pub(super) const ROW_QUANTUM: usize = 8;

/// Inner dimension of one block: a panel of it (123 kB at most), the next one and the rows that
/// meet it stay in the second-level cache while all tiles of a row block pass over it.
pub(super) const DEPTH: usize = 640;

/// Vectors in the width of a full tile.
///
/// Three vectors and few rows, rather than two and many: a step of 24 multiply-adds then loads 11
/// times instead of 14, which shows where another thread shares the core, and only 8 rows compete
/// for the sets of the first-level cache when they lie a multiple of 4 kB apart.
pub(super) const TILE_VECTORS: usize = 3;

/// Rows of a tile: as many as the accumulators leave registers for.
///
/// 32 registers (AVX-512, NEON): 8 rows × 3 vectors. 16 registers (AVX2): 4 × 3.
pub(super) const fn tile_rows(lanes: usize) -> usize {
    match lanes {
        8 => 4,
        _ => 8,
    }
}

/// `f32` lanes of a vector with the best instructions of this machine.
pub(super) fn lanes(arch: Arch) -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    arch.dispatch(Lanes)
}

/// Steps of the inner loop that are written out: they share the rows' addresses.
const UNROLLED: usize = 4;

/// Rows that share a base address.
const BASE_ROWS: usize = 4;

/// Numbers in a cache line.
pub(super) const LINE: usize = 16;

/// Inputs of a row of weights that are packed at once.
const PACKED_STEPS: usize = 64;

/// Asks for the line at `place`, which is read soon, into the second-level cache. Never faults.
#[inline(always)]
pub(super) fn prefetch(place: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is harmless, and every x86-64 processor has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Asks for the line at `place`, which is written soon. Never faults.
#[inline(always)]
fn prefetch_to_write(place: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is harmless; processors without PREFETCHW skip it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_ET0>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Where the numbers of a tile's left side lie: number `step` of row `row` is at
/// `row · row_stride + step · step_stride`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) values: &'a [f32],
    pub(super) row_stride: usize,
    pub(super) step_stride: usize,
}

/// What a tile prefetches.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// The first line.
    place: *const f32,
    /// How far it goes on every [`UNROLLED`] steps, at most a line.
    pace: usize,
}

/// Computes a tile: `ROWS` (at most 16) rows of `left` times one panel, over `depth`.
///
/// `panel`: [depth, VECTORS · lanes].
#[inline(always)]
pub(super) fn tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    left: Left<'_>,
    depth: usize,
    panel: &[f32],
    ahead: Option<Ahead>,
) -> [[S::f32s; VECTORS]; ROWS] {
    let Left { values, row_stride, step_stride } = left;
    assert!(ROWS <= 4 * BASE_ROWS && depth > 0);
    assert!(values.len() > (ROWS - 1) * row_stride + (depth - 1) * step_stride);
    let base = |index: usize| values.as_ptr().wrapping_add(index * BASE_ROWS * row_stride);
    let mut bases = [base(0), base(1), base(2), base(3)];
    let (vectors, _) = S::as_simd_f32s(panel);
    let steps = &vectors.as_chunks::<VECTORS>().0[..depth];
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
    let (blocks, rest) = steps.as_chunks::<UNROLLED>();
    let mut ahead = ahead;
    for block in blocks {
        for (step, b) in block.iter().enumerate() {
            for row in 0..ROWS {
                let place = bases[row / BASE_ROWS];
                let place = place.wrapping_add(row % BASE_ROWS * row_stride + step * step_stride);
                // SAFETY: `row` < ROWS, and the bases have advanced by the steps already taken, so
                // this is within `values` by the assertion above.
                let x = simd.splat_f32s(unsafe { *place });
                for vector in 0..VECTORS {
                    sums[row][vector] = simd.mul_add_e_f32s(x, b[vector], sums[row][vector]);
                }
            }
        }
        if let Some(Ahead { place, pace }) = &mut ahead {
            prefetch(*place);
            *place = place.wrapping_add(*pace);
        }
        bases = bases.map(|base| base.wrapping_add(UNROLLED * step_stride));
    }
    // The same again for the last steps: a closure or function for both would keep the sums in
    // memory.
    for (step, b) in (depth - rest.len()..).zip(rest) {
        for row in 0..ROWS {
            let x = simd.splat_f32s(values[row * row_stride + step * step_stride]);
            for vector in 0..VECTORS {
                sums[row][vector] = simd.mul_add_e_f32s(x, b[vector], sums[row][vector]);
            }
        }
    }
    sums
}

/// What multiplies.
#[derive(Clone, Copy)]
pub(super) enum Multiplier {
    /// Vectors.
    Vectors(Arch),
    /// Tiles of terms.
    Split(split::Kernel),
}

/// A linear layer's weights in panels, and its bias.
pub(crate) struct PackedLinear {
    multiplier: Multiplier,
    inputs: usize,
    outputs: usize,
    /// Columns of a full panel; the last one is as many quanta narrower as it can be.
    panel: usize,
    /// `outputs`, rounded up to whole vectors or tiles.
    columns: usize,
    /// Per depth block, per panel: [block depth to whole steps, panel]; what is beyond the layer's is zero.
    values: Buffer,
    /// [columns], zeros beyond `outputs`.
    bias: Buffer,
}

impl PackedLinear {
    /// Packs rows of weights ([outputs, inputs] each, stacked), on all threads of the pool it is called in; `None`
    /// when memory is short.
    pub(super) fn pack(parts: &[LinearRows<'_>], inputs: usize, multiplier: Multiplier) -> Option<Self> {
        let outputs = stacked::outputs(parts);
        let (panel, quantum, step) = match multiplier {
            Multiplier::Vectors(arch) => (TILE_VECTORS * lanes(arch), lanes(arch), 1),
            Multiplier::Split(_) => (brain::TILE_COLUMNS, brain::TILE_COLUMNS, brain::STEP),
        };
        let columns = outputs.next_multiple_of(quantum);
        let mut values = Buffer::zeroed(columns * inputs.next_multiple_of(step))?;
        let mut bias = Buffer::zeroed(columns)?;
        let rows = stacked::rows(parts, inputs, bias.as_mut_slice())?;
        let mut rest = values.as_mut_slice();
        for start in (0..inputs).step_by(DEPTH) {
            let depth = DEPTH.min(inputs - start).next_multiple_of(step);
            let (block, after) = rest.split_at_mut(depth * columns);
            rest = after;
            block.par_chunks_mut(depth * panel).zip(rows.par_chunks(panel)).for_each(|(packed, rows)| {
                let width = packed.len() / depth;
                // A few lines of each row at a time: both sides stay in the first-level cache.
                let mut line = [0.0; PACKED_STEPS];
                for (lines, packed) in packed.chunks_mut(PACKED_STEPS * width).enumerate() {
                    let first_input = start + lines * PACKED_STEPS;
                    let line = &mut line[..(packed.len() / width).min(inputs - first_input)];
                    for (column, (weight, first)) in rows.iter().enumerate() {
                        weight.read(first + first_input, line);
                        for (step, value) in packed.chunks_exact_mut(width).zip(&*line) {
                            step[column] = *value;
                        }
                    }
                }
            });
        }
        Some(Self { multiplier, inputs, outputs, panel, columns, values, bias })
    }

    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(super) fn bytes(&self) -> u64 {
        4 * (self.values.as_slice().len() + self.bias.as_slice().len()) as u64
    }

    /// Applies the layer to `x` [rows, inputs], `rows` a multiple of [`ROW_QUANTUM`], or of a tile's.
    ///
    /// `scratch`: for what is split. `out`: [rows, outputs].
    pub(super) fn apply(&self, x: &[f32], epilogue: Epilogue, scratch: &mut split::Scratch, out: &mut [f32]) {
        match self.multiplier {
            Multiplier::Vectors(arch) => arch.dispatch(Apply { linear: self, x, epilogue, out }),
            Multiplier::Split(kernel) => {
                let Self { inputs, outputs, .. } = *self;
                let (weights, bias) = (self.values.as_slice(), self.bias.as_slice());
                kernel.multiply(
                    split::Block { x, inputs, outputs, depth: DEPTH, weights, bias, epilogue, out },
                    scratch,
                );
            }
        }
    }
}

struct Apply<'a> {
    linear: &'a PackedLinear,
    x: &'a [f32],
    epilogue: Epilogue,
    out: &'a mut [f32],
}

impl WithSimd for Apply<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match tile_rows(S::F32_LANES) {
            4 => self.run::<S, 4>(simd),
            _ => self.run::<S, 8>(simd),
        }
    }
}

impl Apply<'_> {
    #[inline(always)]
    fn run<S: Simd, const ROWS: usize>(self, simd: S) {
        let Self { linear, x, epilogue, out } = self;
        let PackedLinear { inputs, outputs, panel, columns, .. } = *linear;
        debug_assert_eq!(panel, TILE_VECTORS * S::F32_LANES);
        debug_assert_eq!(out.len() / outputs % ROWS, 0);
        for start in (0..inputs).step_by(DEPTH) {
            let depth = DEPTH.min(inputs - start);
            let block = &linear.values.as_slice()[start * columns..][..depth * columns];
            // The first block's sums replace what `out` holds, unless that is the residual; the
            // last block's get the bias and what follows it.
            let add = start > 0 || epilogue == Epilogue::Residual;
            let ending = Ending::of(epilogue, start + depth == inputs);
            for (index, weights) in block.chunks(depth * panel).enumerate() {
                let column = index * panel;
                let width = weights.len() / depth;
                let biases = &linear.bias.as_slice()[column..column + width];
                let place = Panel { x: &x[start..], inputs, depth, weights, biases, column, add, ending };
                match width / S::F32_LANES {
                    1 => place.pass::<S, ROWS, 1>(simd, outputs, out),
                    2 => place.pass::<S, ROWS, 2>(simd, outputs, out),
                    _ => place.pass::<S, ROWS, TILE_VECTORS>(simd, outputs, out),
                }
            }
        }
    }
}

/// One panel of weights, and what it is applied to.
#[derive(Clone, Copy)]
struct Panel<'a> {
    /// [rows, inputs], from the block's first input on.
    x: &'a [f32],
    inputs: usize,
    /// Of the block.
    depth: usize,
    /// [depth, panel].
    weights: &'a [f32],
    /// [panel].
    biases: &'a [f32],
    /// The panel's first column in `out`.
    column: usize,
    add: bool,
    ending: Ending,
}

impl Panel<'_> {
    /// Passes all row tiles over the panel.
    #[inline(always)]
    fn pass<S: Simd, const ROWS: usize, const VECTORS: usize>(
        self,
        simd: S,
        outputs: usize,
        out: &mut [f32],
    ) {
        let Self { x, inputs, depth, weights, biases, column, add, ending } = self;
        let width = (VECTORS * S::F32_LANES).min(outputs - column);
        let (biases, _) = S::as_simd_f32s(biases);
        // The next panel, or block, follows in memory; each tile asks for its share of it, no faster than it has
        // to: lines on their way from memory take up the buffers through which this panel comes.
        let next = weights.as_ptr_range().end;
        let strides = depth / UNROLLED;
        let tiles = out.len() / (ROWS * outputs);
        let pace = weights.len().div_ceil((tiles * strides).max(1)).min(LINE);
        let share = strides * pace;
        for (index, rows) in out.chunks_exact_mut(ROWS * outputs).enumerate() {
            for row in rows.chunks_exact(outputs) {
                let row = row[column..].as_ptr();
                for place in (0..width).step_by(LINE) {
                    prefetch_to_write(row.wrapping_add(place));
                }
            }
            let place = if index * share < weights.len() { next.wrapping_add(index * share) } else { next };
            let left = Left { values: &x[index * ROWS * inputs..], row_stride: inputs, step_stride: 1 };
            let sums = tile::<S, ROWS, VECTORS>(simd, left, depth, weights, Some(Ahead { place, pace }));
            for (row, sums) in rows.chunks_exact_mut(outputs).zip(sums) {
                let (whole, tail) = S::as_mut_simd_f32s(&mut row[column..column + width]);
                for (target, (sum, bias)) in whole.iter_mut().zip(sums.into_iter().zip(biases)) {
                    *target = finish(simd, sum, *target, add, *bias, ending);
                }
                if let (Some(sum), Some(bias)) = (sums.get(whole.len()), biases.get(whole.len())) {
                    let old = simd.partial_load_f32s(tail);
                    simd.partial_store_f32s(tail, finish(simd, *sum, old, add, *bias, ending));
                }
            }
        }
    }
}

/// What follows the addition of a block's sums.
#[derive(Clone, Copy)]
pub(super) enum Ending {
    /// Another block.
    More,
    Bias,
    Gelu,
}

impl Ending {
    /// What follows a block, which is the `last` one of its inner dimension or not.
    pub(super) fn of(epilogue: Epilogue, last: bool) -> Self {
        match (last, epilogue) {
            (false, _) => Self::More,
            (true, Epilogue::Bias | Epilogue::Residual) => Self::Bias,
            (true, Epilogue::Gelu) => Self::Gelu,
        }
    }
}

// A function rather than a closure: closures are compiled without vector instructions unless they
// happen to be inlined.
#[inline(always)]
pub(super) fn finish<S: Simd>(
    simd: S,
    sum: S::f32s,
    old: S::f32s,
    add: bool,
    bias: S::f32s,
    ending: Ending,
) -> S::f32s {
    let sum = if add { simd.add_f32s(sum, old) } else { sum };
    match ending {
        Ending::More => sum,
        Ending::Bias => simd.add_f32s(sum, bias),
        Ending::Gelu => gelu(simd, simd.add_f32s(sum, bias)),
    }
}
