//! Matrix products of activations with packed matrices.
//!
//! A packed matrix lies in panels as wide as one tile of the register kernel, so that the inner
//! loop reads it front to back. Linear layers pack their weights once, at load; attention packs
//! keys and values per head. Every result element is one chain of multiply-adds over the inner
//! dimension in a fixed order, whatever else is computed beside it: that is what makes a sequence's
//! embedding independent of its batch and of the number of threads.

use pulp::{Arch, Simd, WithSimd};

use super::buffer::Buffer;
use super::elementary::gelu;
use crate::ops::Epilogue;

/// Activations hold a multiple of this many rows, so that every tile is full: the least common
/// multiple of the tile heights in [`tile_rows`].
pub(super) const ROW_QUANTUM: usize = 24;

/// Inner dimension of one block: a panel of it (96 kB at most) stays in the second-level cache
/// while all tiles of a row block pass over it.
const DEPTH: usize = 768;

/// Vectors in the width of a tile.
pub(super) const TILE_VECTORS: usize = 2;

/// Rows of a tile: as many as the accumulators leave registers for.
///
/// 32 registers (AVX-512): 12 rows × 2 vectors. 16 registers (AVX2): 6 × 2. NEON: 8 × 2.
pub(super) const fn tile_rows(lanes: usize) -> usize {
    match lanes {
        16 => 12,
        8 => 6,
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

/// Steps of the inner loop that are written out: they share the rows' addresses, of which AVX-512's
/// twelve rows would otherwise need a new one per multiply-add (6 to 8 % of the time).
const UNROLLED: usize = 4;

/// Rows that share a base address.
const BASE_ROWS: usize = 4;

/// Computes a tile: `ROWS` (at most 12) rows of `a`, `stride` apart, times one panel, over `depth`.
///
/// `panel`: [depth, VECTORS · lanes].
#[inline(always)]
pub(super) fn tile<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    a: &[f32],
    stride: usize,
    depth: usize,
    panel: &[f32],
) -> [[S::f32s; VECTORS]; ROWS] {
    assert!(ROWS <= 3 * BASE_ROWS && a.len() >= (ROWS - 1) * stride + depth);
    let mut bases = [0, BASE_ROWS, 2 * BASE_ROWS].map(|row| a.as_ptr().wrapping_add(row * stride));
    let (vectors, _) = S::as_simd_f32s(panel);
    let steps = &vectors.as_chunks::<VECTORS>().0[..depth];
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
    let (blocks, rest) = steps.as_chunks::<UNROLLED>();
    for block in blocks {
        for (step, b) in block.iter().enumerate() {
            for row in 0..ROWS {
                let x = bases[row / BASE_ROWS].wrapping_add(row % BASE_ROWS * stride + step);
                // SAFETY: `row` < ROWS, and the bases have advanced by the steps already taken, so
                // this is within `a` by the assertion above.
                let x = simd.splat_f32s(unsafe { *x });
                for vector in 0..VECTORS {
                    sums[row][vector] = simd.mul_add_e_f32s(x, b[vector], sums[row][vector]);
                }
            }
        }
        bases = bases.map(|base| base.wrapping_add(UNROLLED));
    }
    // The same again for the last steps: a closure or function for both would keep the sums in
    // memory.
    for (step, b) in (depth - rest.len()..).zip(rest) {
        for row in 0..ROWS {
            let x = simd.splat_f32s(a[row * stride + step]);
            for vector in 0..VECTORS {
                sums[row][vector] = simd.mul_add_e_f32s(x, b[vector], sums[row][vector]);
            }
        }
    }
    sums
}

/// A linear layer's weights in panels, and its bias.
pub(crate) struct PackedLinear {
    inputs: usize,
    outputs: usize,
    /// Columns of a panel.
    panel: usize,
    /// Per depth block, per panel: [block depth, panel]; columns beyond `outputs` are zero.
    values: Buffer,
    /// [outputs], then zeros to a whole panel.
    bias: Buffer,
}

impl PackedLinear {
    /// Packs rows of weights ([outputs, inputs] each, stacked) for tiles of `panel` columns;
    /// `None` when memory is short.
    pub(super) fn pack(parts: &[(Vec<f32>, Vec<f32>)], inputs: usize, panel: usize) -> Option<Self> {
        let outputs: usize = parts.iter().map(|(_, bias)| bias.len()).sum();
        let panels = outputs.div_ceil(panel);
        let mut values = Buffer::zeroed(panels * panel * inputs)?;
        let mut bias = Buffer::zeroed(panels * panel)?;
        let packed = values.as_mut_slice();
        let mut column = 0;
        for (weight, part_bias) in parts {
            bias.as_mut_slice()[column..column + part_bias.len()].copy_from_slice(part_bias);
            for row in weight.chunks_exact(inputs) {
                for (start, block) in (0..inputs).step_by(DEPTH).zip(row.chunks(DEPTH)) {
                    let first =
                        start * panels * panel + (column / panel) * block.len() * panel + column % panel;
                    for (step, value) in block.iter().enumerate() {
                        packed[first + step * panel] = *value;
                    }
                }
                column += 1;
            }
        }
        Some(Self { inputs, outputs, panel, values, bias })
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

    /// Applies the layer to `x` [rows, inputs], `rows` a multiple of [`ROW_QUANTUM`].
    ///
    /// `out`: [rows, outputs].
    pub(super) fn apply(&self, arch: Arch, x: &[f32], epilogue: Epilogue, out: &mut [f32]) {
        arch.dispatch(Apply { linear: self, x, epilogue, out });
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
            12 => self.run::<S, 12>(simd),
            6 => self.run::<S, 6>(simd),
            _ => self.run::<S, 8>(simd),
        }
    }
}

impl Apply<'_> {
    #[inline(always)]
    fn run<S: Simd, const ROWS: usize>(self, simd: S) {
        let Self { linear, x, epilogue, out } = self;
        let PackedLinear { inputs, outputs, panel, .. } = *linear;
        let rows = out.len() / outputs;
        debug_assert_eq!(panel, TILE_VECTORS * S::F32_LANES);
        debug_assert_eq!(rows % ROWS, 0);
        let panels = outputs.div_ceil(panel);
        for start in (0..inputs).step_by(DEPTH) {
            let depth = DEPTH.min(inputs - start);
            let block = &linear.values.as_slice()[start * panels * panel..][..panels * panel * depth];
            // The first block's sums replace what `out` holds, unless that is the residual; the
            // last block's get the bias and what follows it.
            let add = start > 0 || epilogue == Epilogue::Residual;
            let ending = Ending::of(epilogue, start + depth == inputs);
            for (index, weights) in block.chunks_exact(depth * panel).enumerate() {
                let column = index * panel;
                let (biases, _) = S::as_simd_f32s(&linear.bias.as_slice()[column..column + panel]);
                let width = panel.min(outputs - column);
                for first in (0..rows).step_by(ROWS) {
                    let sums = tile::<S, ROWS, TILE_VECTORS>(
                        simd,
                        &x[first * inputs + start..],
                        inputs,
                        depth,
                        weights,
                    );
                    for (row, sums) in sums.into_iter().enumerate() {
                        let target = &mut out[(first + row) * outputs + column..][..width];
                        let (whole, tail) = S::as_mut_simd_f32s(target);
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
