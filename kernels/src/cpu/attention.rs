//! Attention of one sequence, head by head, in blocks that stay in cache.
//!
//! Scores never exist for more than a few query rows and [`KEYS`] keys at a time: the softmax is
//! computed online (running maximum and sum), so memory grows with a sequence's length, not with
//! its square.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::buffer::Buffer;
use super::elementary::exp;
use super::product::{TILE_VECTORS, tile, tile_rows};

/// Keys of one block: scores of a tile's rows against it take 24 kB, half of a first-level cache.
/// A multiple of every panel width.
const KEYS: usize = 512;

/// Cosine and sine of every rotary angle: [positions, head width / 2] each.
///
/// Frequencies are rounded to f32 as in the published checkpoints; angles are computed in f64,
/// since f32 would lose three digits at position 1,000.
#[derive(Default)]
pub(super) struct Rotary {
    frequencies: Vec<f32>,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Rotary {
    pub(super) fn new(head_width: usize) -> Self {
        Self { frequencies: rotary_frequencies(head_width), ..Self::default() }
    }

    /// Makes angles of `positions` positions available.
    pub(super) fn reserve(&mut self, positions: usize) {
        let pairs = self.frequencies.len();
        for position in self.cosines.len() / pairs..positions {
            for frequency in &self.frequencies {
                let angle = position as f64 * f64::from(*frequency);
                self.cosines.push(angle.cos() as f32);
                self.sines.push(angle.sin() as f32);
            }
        }
    }

    /// Rotates the head `x` of the token at `position`, times `scale`, into `out`.
    #[inline(always)]
    fn rotate(&self, x: &[f32], position: usize, scale: f32, out: &mut [f32]) {
        let pairs = self.frequencies.len();
        let angles = position * pairs..(position + 1) * pairs;
        let angles = self.cosines[angles.clone()].iter().zip(&self.sines[angles]);
        let (first, second) = x.split_at(pairs);
        let (first_out, second_out) = out.split_at_mut(pairs);
        let outs = first_out.iter_mut().zip(second_out);
        for (((a, b), (cosine, sine)), (first, second)) in first.iter().zip(second).zip(angles).zip(outs) {
            *first = (a * cosine - b * sine) * scale;
            *second = (b * cosine + a * sine) * scale;
        }
    }
}

/// `10000 ^ (-2 i / head_width)` for each pair i, with the roundings of the reference's f32 code.
pub(super) fn rotary_frequencies(head_width: usize) -> Vec<f32> {
    (0..head_width / 2)
        .map(|pair| {
            let exponent = (2 * pair) as f32 / head_width as f32;
            1.0 / (10_000f64.powf(f64::from(exponent)) as f32)
        })
        .collect()
}

/// Scratch memory of one thread, used again for every head.
#[derive(Default)]
pub(super) struct Scratch {
    /// Rotated keys: per panel of keys, [head width, panel].
    keys: Buffer,
    /// Values: per panel of head columns, [tokens, panel].
    values: Buffer,
    /// Rotated, scaled queries of one tile: [tile rows, head width].
    queries: Buffer,
    /// Scores of one tile against one block of keys: [tile rows, KEYS].
    scores: Buffer,
    /// Weighted values of one tile, not yet divided by the sum: [tile rows, head columns].
    sums: Buffer,
}

/// Attention of some heads and some query rows of one sequence.
pub(super) struct Attend<'a> {
    /// The sequence's rows, [tokens, 3·hidden].
    pub(super) qkv: &'a [f32],
    /// Width of the residual stream.
    pub(super) hidden: usize,
    /// Width of a head.
    pub(super) head_width: usize,
    /// Heads to attend.
    pub(super) heads: Range<usize>,
    /// Query rows to attend.
    pub(super) rows: Range<usize>,
    pub(super) rotary: &'a Rotary,
    pub(super) scratch: &'a mut Scratch,
    /// Where the sequence's output rows lie.
    pub(super) out: Target,
}

/// The output rows of one sequence, [tokens, hidden], shared by the tasks of its heads.
#[derive(Clone, Copy)]
pub(super) struct Target {
    start: *mut f32,
    floats: usize,
}

// SAFETY: a `Target` only writes, through `store`, whose callers promise disjoint places.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    pub(super) fn new(rows: &mut [f32]) -> Self {
        Self { start: rows.as_mut_ptr(), floats: rows.len() }
    }

    /// The rows from `row` on, each `width` wide.
    pub(super) fn starting_at(self, row: usize, width: usize) -> Self {
        let skipped = row * width;
        assert!(skipped <= self.floats);
        Self { start: self.start.wrapping_add(skipped), floats: self.floats - skipped }
    }

    /// Writes `values` from float `at` on.
    ///
    /// # Safety
    /// The rows given to [`Target::new`] must still be borrowed for this purpose, and no other
    /// thread may touch the same places.
    #[inline(always)]
    unsafe fn store(self, at: usize, values: &[f32]) {
        assert!(at + values.len() <= self.floats);
        let start = self.start.wrapping_add(at);
        for (offset, value) in values.iter().enumerate() {
            // SAFETY: in bounds by the assertion; alive and unshared by the caller's promise.
            unsafe { *start.add(offset) = *value };
        }
    }
}

impl WithSimd for Attend<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // A narrow head would waste half of a two-vector tile.
        let narrow = self.head_width <= S::F32_LANES;
        match (tile_rows(S::F32_LANES), narrow) {
            (12, true) => self.run::<S, 12, 1>(simd),
            (12, false) => self.run::<S, 12, TILE_VECTORS>(simd),
            (6, true) => self.run::<S, 6, 1>(simd),
            (6, false) => self.run::<S, 6, TILE_VECTORS>(simd),
            (_, true) => self.run::<S, 8, 1>(simd),
            (_, false) => self.run::<S, 8, TILE_VECTORS>(simd),
        }
    }
}

impl Attend<'_> {
    /// `ROWS`: query rows of a tile. `VECTORS`: vectors in a panel of head columns.
    #[inline(always)]
    fn run<S: Simd, const ROWS: usize, const VECTORS: usize>(self, simd: S) {
        let Self { qkv, hidden, head_width, heads, rows, rotary, scratch, out } = self;
        let stride = 3 * hidden;
        let tokens = qkv.len() / stride;
        let key_panel = TILE_VECTORS * S::F32_LANES;
        let key_panels = tokens.div_ceil(key_panel);
        let value_panel = VECTORS * S::F32_LANES;
        let value_panels = head_width.div_ceil(value_panel);
        let columns = value_panels * value_panel;
        let scale = (head_width as f32).powf(-0.5);

        let Scratch { keys, values, queries, scores, sums } = scratch;
        keys.grow(key_panels * key_panel * head_width);
        values.grow(tokens * columns);
        queries.grow(ROWS * head_width);
        scores.grow(ROWS * KEYS);
        sums.grow(ROWS * columns);
        let keys = keys.as_mut_slice();
        let values = values.as_mut_slice();
        let queries = &mut queries.as_mut_slice()[..ROWS * head_width];
        let scores = &mut scores.as_mut_slice()[..ROWS * KEYS];
        let sums = &mut sums.as_mut_slice()[..ROWS * columns];

        for head in heads {
            let at = head * head_width;
            for token in 0..tokens {
                let row = &qkv[token * stride..][..stride];
                // The tile of queries is not in use yet: its first row holds the rotated key.
                let key = &mut queries[..head_width];
                rotary.rotate(&row[hidden + at..][..head_width], token, 1.0, key);
                let panel = &mut keys[token / key_panel * key_panel * head_width..][token % key_panel..];
                for (target, value) in panel.iter_mut().step_by(key_panel).zip(key) {
                    *target = *value;
                }
                let row = &row[2 * hidden + at..][..head_width];
                for (panel, part) in row.chunks(value_panel).enumerate() {
                    let target = &mut values[(panel * tokens + token) * value_panel..][..value_panel];
                    let (target, _) = S::as_mut_simd_f32s(target);
                    let (whole, tail) = S::as_simd_f32s(part);
                    // Columns beyond the head must be zero: an earlier use of the memory may have
                    // left anything there, and 0 · NaN is NaN.
                    target.fill(simd.splat_f32s(0.0));
                    for (target, value) in target.iter_mut().zip(whole) {
                        *target = *value;
                    }
                    if let Some(target) = target.get_mut(whole.len()) {
                        *target = simd.partial_load_f32s(tail);
                    }
                }
            }
            for token in tokens..key_panels * key_panel {
                let panel = &mut keys[token / key_panel * key_panel * head_width..];
                for column in 0..head_width {
                    panel[column * key_panel + token % key_panel] = 0.0;
                }
            }

            for first in rows.clone().step_by(ROWS) {
                let count = ROWS.min(rows.end - first);
                queries.fill(0.0);
                for row in 0..count {
                    let query = &qkv[(first + row) * stride + at..][..head_width];
                    let target = &mut queries[row * head_width..][..head_width];
                    rotary.rotate(query, first + row, scale, target);
                }
                sums.fill(0.0);
                let mut maxima = [f32::NEG_INFINITY; ROWS];
                let mut totals = [0.0f32; ROWS];

                for start in (0..tokens).step_by(KEYS) {
                    let count = KEYS.min(tokens - start);
                    let panels = count.div_ceil(key_panel);
                    for panel in 0..panels {
                        let packed = &keys[(start / key_panel + panel) * key_panel * head_width..]
                            [..key_panel * head_width];
                        let products =
                            tile::<S, ROWS, TILE_VECTORS>(simd, queries, head_width, head_width, packed);
                        for row in 0..ROWS {
                            let target = &mut scores[row * KEYS + panel * key_panel..][..key_panel];
                            let (target, _) = S::as_mut_simd_f32s(target);
                            target.copy_from_slice(&products[row]);
                        }
                    }
                    let padded = panels * key_panel;
                    for row in 0..ROWS {
                        let line = &mut scores[row * KEYS..][..padded];
                        line[count..].fill(f32::NEG_INFINITY);
                        let (line, _) = S::as_mut_simd_f32s(line);
                        let mut highest = simd.splat_f32s(maxima[row]);
                        for value in line.iter() {
                            highest = simd.max_f32s(highest, *value);
                        }
                        let maximum = simd.reduce_max_f32s(highest);
                        let subtract = simd.splat_f32s(maximum);
                        let mut total = simd.splat_f32s(0.0);
                        for value in line.iter_mut() {
                            *value = exp(simd, simd.sub_f32s(*value, subtract));
                            total = simd.add_f32s(total, *value);
                        }
                        let fade = (maxima[row] - maximum).exp();
                        totals[row] = totals[row] * fade + simd.reduce_sum_f32s(total);
                        maxima[row] = maximum;
                        if start > 0 {
                            let (sums, _) = S::as_mut_simd_f32s(&mut sums[row * columns..][..columns]);
                            let fade = simd.splat_f32s(fade);
                            for sum in sums {
                                *sum = simd.mul_f32s(*sum, fade);
                            }
                        }
                    }
                    for panel in 0..value_panels {
                        let packed = &values[(panel * tokens + start) * value_panel..][..count * value_panel];
                        let products = tile::<S, ROWS, VECTORS>(simd, scores, KEYS, count, packed);
                        for row in 0..ROWS {
                            let target = &mut sums[row * columns + panel * value_panel..][..value_panel];
                            let (target, _) = S::as_mut_simd_f32s(target);
                            for vector in 0..VECTORS {
                                target[vector] = simd.add_f32s(target[vector], products[row][vector]);
                            }
                        }
                    }
                }

                for row in 0..count {
                    let line = &mut sums[row * columns..][..head_width];
                    let inverse = 1.0 / totals[row];
                    for value in line.iter_mut() {
                        *value *= inverse;
                    }
                    // SAFETY: tasks differ in sequence, heads or rows, so no other task writes
                    // these columns of this row; the engine keeps the rows borrowed meanwhile.
                    unsafe { out.store((first + row) * hidden + at, line) };
                }
            }
        }
    }
}
