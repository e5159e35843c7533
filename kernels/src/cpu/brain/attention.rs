//! Attention of one sequence in bfloat16, head by head, in blocks that stay in cache.
//!
//! Scores are products of rotated, rounded queries and keys; their softmax is computed in f32, whole for up to
//! [`KEYS`] keys, else online from block to block; the weights are rounded and multiplied with the values.

use std::ops::Range;

use bytemuck::Zeroable;

use super::super::buffer::Buffer;
use super::super::rotary::Rotary;
use super::{Configured, GROUP, Head, Kernel, Line, STEP, Softmax, TILE_ROWS, line_of, lines, value_lines};

/// Keys of one block: the scores of a tile's rows take 64 kB at most, and mostly much less.
const KEYS: usize = 512;

/// A row of scores is this much longer than its keys: rows whole pages apart would share a few places in the
/// first-level cache.
const GAP: usize = 16;

/// Scratch memory of one thread, used again for every head.
#[derive(Default)]
pub(in crate::cpu) struct Scratch {
    /// Rotated keys: per 32 of them, [lines of the head · 16, 32 keys, 2].
    keys: Vec<Line>,
    /// Values: per panel of head columns, [keys / 2, columns, 2].
    values: Vec<Line>,
    /// Rotated rows of one tile: [2, lines of the head, [`GROUP`]].
    rotated: Vec<Line>,
    /// Rows of one tile as they are, where a head's columns cross lines.
    staged: Vec<Line>,
    /// Weights of one tile: [2, lines of a block of keys, [`GROUP`]].
    weights: Vec<Line>,
    /// Scores of one tile against one block of keys.
    scores: Buffer,
    /// Weighted values of one tile, not yet divided by the total: per panel of head columns, [32, columns].
    gathered: Buffer,
    /// The same of one block of keys.
    block: Buffer,
}

fn grow(lines: &mut Vec<Line>, len: usize) -> &mut [Line] {
    if lines.len() < len {
        lines.resize(len, Line::zeroed());
    }
    &mut lines[..len]
}

/// The output rows, [tokens, hidden] in lines, shared by the tasks of all sequences and heads.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Target {
    start: *mut Line,
    lines: usize,
    /// Lines of a row.
    steps: usize,
}

// SAFETY: a `Target` only writes, through `store`, whose callers promise disjoint places.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    pub(in crate::cpu) fn new(rows: &mut [Line], hidden: usize) -> Self {
        Self { start: rows.as_mut_ptr(), lines: rows.len(), steps: lines(hidden) }
    }

    /// Writes `count` numbers of `line` from `column` of `row` on.
    ///
    /// # Safety
    /// The rows given to [`Target::new`] must still be borrowed for this purpose, and no other thread may touch
    /// the same places.
    #[inline(always)]
    unsafe fn store(self, row: usize, column: usize, line: &Line, count: usize) {
        let at = line_of(row, column, self.steps);
        let offset = column % STEP;
        let here = count.min(STEP - offset);
        assert!(at < self.lines && (here == count || at + GROUP < self.lines));
        // SAFETY: in bounds by the assertion; alive and unshared by the caller's promise. The whole line and the
        // half are the common cases, and single stores.
        unsafe {
            let target = self.start.add(at).cast::<u16>().add(offset);
            match (here, offset) {
                (STEP, _) => self.start.add(at).write(*line),
                (GROUP, 0 | GROUP) => {
                    target.cast::<[u16; GROUP]>().write_unaligned(*line.0.as_ptr().cast());
                }
                _ => target.copy_from_nonoverlapping(line.0.as_ptr(), here),
            }
            if here < count {
                let next = self.start.add(at + GROUP).cast::<u16>();
                next.copy_from_nonoverlapping(line.0.as_ptr().add(here), count - here);
            }
        }
    }
}

/// Attention of some heads and some query rows of one sequence.
pub(in crate::cpu) struct Attend<'a> {
    pub(in crate::cpu) kernel: Kernel,
    /// All sequences' queries, keys and values, [rows, 3·hidden].
    pub(in crate::cpu) qkv: &'a [Line],
    /// Rows of the sequence.
    pub(in crate::cpu) sequence: Range<usize>,
    /// Width of the residual stream.
    pub(in crate::cpu) hidden: usize,
    /// Width of a head.
    pub(in crate::cpu) head_width: usize,
    /// Heads to attend.
    pub(in crate::cpu) heads: Range<usize>,
    /// Query rows to attend, counted from the sequence's start.
    pub(in crate::cpu) rows: Range<usize>,
    pub(in crate::cpu) rotary: &'a Rotary,
    pub(in crate::cpu) scratch: &'a mut Scratch,
    /// Where the output rows lie.
    pub(in crate::cpu) out: Target,
}

impl Attend<'_> {
    pub(in crate::cpu) fn run(self) {
        let Self { kernel, qkv, sequence, hidden, head_width, heads, rows, rotary, scratch, out } = self;
        let tokens = sequence.len();
        let steps = lines(head_width);
        let tiles = tokens.div_ceil(TILE_ROWS);
        let pairs = tiles * GROUP;
        let key_panel = steps * TILE_ROWS;
        let value_columns = if value_lines(head_width) == 1 { GROUP } else { STEP };
        let value_panels = head_width.div_ceil(value_columns);
        let value_panel = pairs * value_columns / GROUP;
        let stride = KEYS.min(tiles * TILE_ROWS) + GAP;
        // Scores in units of ln 2: 2^x is cheaper than e^x.
        let scale = std::f32::consts::LOG2_E * (head_width as f32).powf(-0.5);
        let tile_sums = TILE_ROWS * value_columns;

        let keys = grow(&mut scratch.keys, tiles * key_panel);
        let values = grow(&mut scratch.values, value_panels * value_panel);
        let rotated = grow(&mut scratch.rotated, steps * TILE_ROWS);
        let staged = grow(&mut scratch.staged, steps * TILE_ROWS);
        let weights = grow(&mut scratch.weights, lines(KEYS.min(tiles * TILE_ROWS)) * TILE_ROWS);
        scratch.scores.grow(TILE_ROWS * stride);
        scratch.gathered.grow(value_panels * tile_sums);
        scratch.block.grow(tile_sums);
        let scores = &mut scratch.scores.as_mut_slice()[..TILE_ROWS * stride];
        let gathered = &mut scratch.gathered.as_mut_slice()[..value_panels * tile_sums];
        let block = &mut scratch.block.as_mut_slice()[..tile_sums];
        let configured = Configured::new(Some(kernel));

        for head in heads {
            let [queries_head, keys_head, values_head] = [0, 1, 2].map(|part| Head {
                lines: qkv,
                steps: lines(3 * hidden),
                first: sequence.start,
                column: part * hidden + head * head_width,
                width: head_width,
            });
            // Columns beyond the head must be zero, in queries and in keys; nothing writes them below.
            rotated.fill(Line::zeroed());
            for (tile, panel) in keys.chunks_exact_mut(key_panel).enumerate() {
                let tokens = tile * TILE_ROWS..tokens.min((tile + 1) * TILE_ROWS);
                // Keys beyond the last may hold anything: their scores are overwritten.
                kernel.rotate(&keys_head, tokens.clone(), rotary, 1.0, staged, rotated);
                for (index, rows) in rotated.chunks_exact(GROUP).enumerate() {
                    let (half, step) = (index / steps, index % steps);
                    kernel.transpose(rows, &mut panel[step * TILE_ROWS + half..]);
                }
                kernel.pack_values(&values_head, tokens, pairs, staged, values);
            }

            for first in rows.clone().step_by(TILE_ROWS) {
                let end = rows.end.min(first + TILE_ROWS);
                kernel.rotate(&queries_head, first..end, rotary, scale, staged, rotated);
                let softmax = &mut [Softmax::NONE; TILE_ROWS][..end - first];
                for start in (0..tokens).step_by(KEYS) {
                    let count = KEYS.min(tokens - start);
                    let block_steps = lines(count);
                    let panels = keys.chunks_exact(key_panel).skip(start / TILE_ROWS).take(block_steps);
                    for (panel, keys) in panels.enumerate() {
                        kernel.tile(rotated, keys, steps, STEP, &mut scores[panel * STEP..], stride);
                    }
                    kernel.soften(scores, stride, count, softmax, weights);
                    for (panel, gathered) in gathered.chunks_exact_mut(tile_sums).enumerate() {
                        let first = panel * value_panel + start / 2 * value_columns / GROUP;
                        let values = &values[first..][..block_steps * value_columns];
                        if start == 0 {
                            kernel.tile(weights, values, block_steps, value_columns, gathered, value_columns);
                            continue;
                        }
                        kernel.tile(weights, values, block_steps, value_columns, block, value_columns);
                        let rows = gathered.chunks_exact_mut(value_columns);
                        for ((row, block), softmax) in
                            rows.zip(block.chunks_exact(value_columns)).zip(softmax.iter())
                        {
                            for (sum, more) in row.iter_mut().zip(block) {
                                *sum = *sum * softmax.fade + more;
                            }
                        }
                    }
                }
                for (panel, gathered) in gathered.chunks_exact(tile_sums).enumerate() {
                    let within = panel * value_columns;
                    let count = value_columns.min(head_width - within);
                    let column = head * head_width + within;
                    let rows = gathered.chunks_exact(value_columns).zip(softmax.iter()).enumerate();
                    for (row, (sums, softmax)) in rows {
                        let line = kernel.divide(sums, softmax.total, value_columns);
                        // SAFETY: tasks differ in sequence, heads or rows, so no other task writes these columns
                        // of this row; the engine keeps the rows borrowed meanwhile.
                        unsafe { out.store(sequence.start + first + row, column, &line, count) };
                    }
                }
            }
        }
        drop(configured);
    }
}
