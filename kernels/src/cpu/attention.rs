//! Attention of one sequence, head by head, in blocks that stay in cache.
//!
//! Scores never exist for more than two vectors of queries and [`KEYS`] keys at a time: the softmax
//! is computed online (running maximum and sum), so memory grows with a sequence's length, not with
//! its square. A lane of a vector is a query, so that maxima and sums run down the keys without
//! ever crossing lanes; keys and values need no transposing, queries do once.

use std::ops::Range;

use pulp::{Simd, WithSimd};

use super::buffer::Buffer;
use super::elementary::exp2;
use super::product::{LINE, Left, prefetch, tile};
use super::rotary::Rotary;

/// Keys of one block: their scores take 30 kB at most, so that they, the queries and a part of the
/// values stay in a first-level cache of 48 kB. A multiple of every tile height.
const KEYS: usize = 240;

/// Columns of queries, keys and values that are packed together, of several heads if they are narrow: a row's numbers
/// come as whole pieces of memory, in the order in which the processor expects them. One head at a time, a quarter of
/// attention was waiting for single lines a row apart.
const PACKED_COLUMNS: usize = 128;

/// How many rows ahead of the one that is packed its numbers are asked for: they lie kilobytes apart.
const ROWS_AHEAD: usize = 8;

/// Vectors of queries that are attended together.
const QUERY_VECTORS: usize = 2;

/// Scratch memory of one thread, used again for every [`PACKED_COLUMNS`].
#[derive(Default)]
pub(super) struct Scratch {
    /// Rotated keys: per head, [tokens to a whole tile, head width].
    keys: Buffer,
    /// Values: per head and panel of its columns, [tokens, panel].
    values: Buffer,
    /// One rotated, scaled query.
    query: Buffer,
    /// Rotated, scaled queries: per head and group of queries, [head width, queries].
    queries: Buffer,
    /// Scores of the queries against one block of keys, [KEYS, queries].
    scores: Buffer,
    /// Weighted values of the queries, not yet divided by the sum: [queries, head columns].
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

    /// Writes `values` · `factor` from float `at` on.
    ///
    /// # Safety
    /// The rows given to [`Target::new`] must still be borrowed for this purpose, and no other
    /// thread may touch the same places.
    #[inline(always)]
    unsafe fn store<S: Simd>(self, simd: S, at: usize, values: &[f32], factor: f32) {
        assert!(at + values.len() <= self.floats);
        // SAFETY: in bounds by the assertion; alive and unshared by the caller's promise.
        let places = unsafe { std::slice::from_raw_parts_mut(self.start.wrapping_add(at), values.len()) };
        let factor = simd.splat_f32s(factor);
        let (places, places_tail) = S::as_mut_simd_f32s(places);
        let (values, values_tail) = S::as_simd_f32s(values);
        for (place, value) in places.iter_mut().zip(values) {
            *place = simd.mul_f32s(*value, factor);
        }
        if !values_tail.is_empty() {
            let value = simd.mul_f32s(simd.partial_load_f32s(values_tail), factor);
            simd.partial_store_f32s(places_tail, value);
        }
    }
}

impl WithSimd for Attend<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // A narrow head would waste half of a two-vector tile. Registers limit the tiles' rows, and
        // those of the second kind divide the queries attended together.
        let narrow = self.head_width <= S::F32_LANES;
        match (S::F32_LANES, narrow) {
            (16, true) => self.run::<S, 12, 16, 1>(simd),
            (16, false) => self.run::<S, 12, 8, 2>(simd),
            (8, true) => self.run::<S, 6, 8, 1>(simd),
            (8, false) => self.run::<S, 6, 4, 2>(simd),
            (4, true) => self.run::<S, 12, 8, 1>(simd),
            (4, false) => self.run::<S, 12, 8, 2>(simd),
            (_, true) => self.run::<S, 6, 1, 1>(simd),
            (_, false) => self.run::<S, 6, 1, 2>(simd),
        }
    }
}

impl Attend<'_> {
    /// `KEY_ROWS`: keys of a tile of scores. `ROWS`: queries of a tile of weighted values.
    /// `VECTORS`: vectors in a panel of head columns.
    #[inline(always)]
    fn run<S: Simd, const KEY_ROWS: usize, const ROWS: usize, const VECTORS: usize>(self, simd: S) {
        let Self { qkv, hidden, head_width, heads, rows, rotary, scratch, out } = self;
        let stride = 3 * hidden;
        let tokens = qkv.len() / stride;
        let padded = tokens.next_multiple_of(KEY_ROWS);
        let group = QUERY_VECTORS * S::F32_LANES;
        let value_panel = VECTORS * S::F32_LANES;
        let value_panels = head_width.div_ceil(value_panel);
        let columns = value_panels * value_panel;
        // Powers of two take the place of those of e.
        let scale = (head_width as f32).powf(-0.5) * std::f32::consts::LOG2_E;

        let together = (PACKED_COLUMNS / head_width).clamp(1, heads.len().max(1));
        let groups = rows.len().div_ceil(group);
        let (keys_len, values_len) = (padded * head_width, tokens * columns);
        let (queries_len, group_len) = (groups * group * head_width, group * head_width);
        let Scratch { keys, values, query, queries, scores, sums } = scratch;
        let keys = keys.at_least(together * keys_len);
        let values = values.at_least(together * values_len);
        let query = query.at_least(head_width);
        let queries = queries.at_least(together * queries_len);
        let scores = scores.at_least(KEYS * group);
        let sums = sums.at_least(group * columns);
        // Scores against rows beyond the last key, and of queries beyond the last, are computed and never looked at.
        for keys in keys.chunks_exact_mut(keys_len) {
            keys[tokens * head_width..].fill(0.0);
        }
        for queries in queries.chunks_exact_mut(queries_len) {
            queries[queries_len - group_len..].fill(0.0);
        }

        for first_head in heads.clone().step_by(together) {
            let together = together.min(heads.end - first_head);
            for (token, row) in qkv.chunks_exact(stride).enumerate() {
                for index in 0..3 {
                    let part = (token + ROWS_AHEAD) * stride + index * hidden + first_head * head_width;
                    for line in (0..together * head_width).step_by(LINE) {
                        prefetch(qkv.as_ptr().wrapping_add(part + line));
                    }
                }
                let part = |index: usize| {
                    let part = &row[index * hidden + first_head * head_width..][..together * head_width];
                    part.chunks_exact(head_width)
                };
                for (x, keys) in part(1).zip(keys.chunks_exact_mut(keys_len)) {
                    rotary.rotate(x, token, 1.0, &mut keys[token * head_width..][..head_width]);
                }
                for (x, values) in part(2).zip(values.chunks_exact_mut(values_len)) {
                    for (panel, part) in x.chunks(value_panel).enumerate() {
                        let target = &mut values[(panel * tokens + token) * value_panel..][..value_panel];
                        let (target, _) = S::as_mut_simd_f32s(target);
                        let (whole, tail) = S::as_simd_f32s(part);
                        for (index, target) in target.iter_mut().enumerate() {
                            // Columns beyond the head are zero: an earlier use of the memory may have
                            // left anything there.
                            *target = match whole.get(index) {
                                Some(value) => *value,
                                None if index == whole.len() => simd.partial_load_f32s(tail),
                                None => simd.splat_f32s(0.0),
                            };
                        }
                    }
                }
                if rows.contains(&token) {
                    let (index, lane) = ((token - rows.start) / group, (token - rows.start) % group);
                    for (x, queries) in part(0).zip(queries.chunks_exact_mut(queries_len)) {
                        rotary.rotate(x, token, scale, query);
                        let targets = queries[index * group_len + lane..].iter_mut().step_by(group);
                        for (target, value) in targets.zip(&*query) {
                            *target = *value;
                        }
                    }
                }
            }

            for (slot, first) in
                (0..together).flat_map(|slot| rows.clone().step_by(group).map(move |first| (slot, first)))
            {
                let at = (first_head + slot) * head_width;
                let keys = &keys[slot * keys_len..][..keys_len];
                let values = &values[slot * values_len..][..values_len];
                let queries = &queries[slot * queries_len + (first - rows.start) * head_width..][..group_len];
                let attended = group.min(rows.end - first);
                let mut maxima = [simd.splat_f32s(f32::NEG_INFINITY); QUERY_VECTORS];
                let mut totals = [simd.splat_f32s(0.0); QUERY_VECTORS];

                for start in (0..tokens).step_by(KEYS) {
                    let count = KEYS.min(tokens - start);
                    let mut highest = maxima;
                    for key in (0..count).step_by(KEY_ROWS) {
                        let left = Left {
                            values: &keys[(start + key) * head_width..],
                            row_stride: head_width,
                            step_stride: 1,
                        };
                        let products =
                            tile::<S, KEY_ROWS, QUERY_VECTORS>(simd, left, head_width, queries, None);
                        let (lines, _) = S::as_mut_simd_f32s(&mut scores[key * group..][..KEY_ROWS * group]);
                        for (row, line) in lines.chunks_exact_mut(QUERY_VECTORS).enumerate() {
                            line.copy_from_slice(&products[row]);
                            if key + row < count {
                                for (highest, score) in highest.iter_mut().zip(products[row]) {
                                    *highest = simd.max_f32s(*highest, score);
                                }
                            }
                        }
                    }

                    let mut block_totals = [simd.splat_f32s(0.0); QUERY_VECTORS];
                    let (lines, _) = S::as_mut_simd_f32s(&mut scores[..count * group]);
                    for line in lines.as_chunks_mut::<QUERY_VECTORS>().0 {
                        for vector in 0..QUERY_VECTORS {
                            let score = exp2(simd, simd.sub_f32s(line[vector], highest[vector]));
                            block_totals[vector] = simd.add_f32s(block_totals[vector], score);
                            line[vector] = score;
                        }
                    }
                    if start > 0 {
                        let mut fades = [0.0; QUERIES_MAX];
                        let (lanes, _) = S::as_mut_simd_f32s(&mut fades[..group]);
                        for vector in 0..QUERY_VECTORS {
                            let fade = exp2(simd, simd.sub_f32s(maxima[vector], highest[vector]));
                            totals[vector] = simd.mul_f32s(totals[vector], fade);
                            lanes[vector] = fade;
                        }
                        for (line, fade) in sums.chunks_exact_mut(columns).zip(fades) {
                            let fade = simd.splat_f32s(fade);
                            for sum in S::as_mut_simd_f32s(line).0 {
                                *sum = simd.mul_f32s(*sum, fade);
                            }
                        }
                    } else {
                        sums.fill(0.0);
                    }
                    maxima = highest;
                    for vector in 0..QUERY_VECTORS {
                        totals[vector] = simd.add_f32s(totals[vector], block_totals[vector]);
                    }

                    for panel in 0..value_panels {
                        let packed = &values[(panel * tokens + start) * value_panel..][..count * value_panel];
                        for row in (0..attended).step_by(ROWS) {
                            let left = Left { values: &scores[row..], row_stride: 1, step_stride: group };
                            let products = tile::<S, ROWS, VECTORS>(simd, left, count, packed, None);
                            for (offset, products) in products.into_iter().enumerate() {
                                let target = (row + offset) * columns + panel * value_panel;
                                let (target, _) = S::as_mut_simd_f32s(&mut sums[target..][..value_panel]);
                                for (target, product) in target.iter_mut().zip(products) {
                                    *target = simd.add_f32s(*target, product);
                                }
                            }
                        }
                    }
                }

                let mut inverses = [0.0; QUERIES_MAX];
                let (lanes, _) = S::as_mut_simd_f32s(&mut inverses[..group]);
                for (lane, total) in lanes.iter_mut().zip(totals) {
                    *lane = simd.div_f32s(simd.splat_f32s(1.0), total);
                }
                for (row, line) in sums.chunks_exact(columns).take(attended).enumerate() {
                    // SAFETY: tasks differ in sequence, heads or rows, so no other task writes
                    // these columns of this row; the engine keeps the rows borrowed meanwhile.
                    unsafe {
                        out.store(simd, (first + row) * hidden + at, &line[..head_width], inverses[row])
                    };
                }
            }
        }
    }
}

/// Most queries attended together: [`QUERY_VECTORS`] vectors of the widest kind.
const QUERIES_MAX: usize = QUERY_VECTORS * 16;
