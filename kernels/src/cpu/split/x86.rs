//! AMX and AVX-512: what [`super::plain`] computes in plain code.

use std::arch::asm;
use std::arch::x86_64::*;

use pulp::x86::V4;

use super::super::brain::x86::{amx_clear, amx_store, mask};
use super::super::brain::{GROUP, Line, STEP, TILE_COLUMNS, TILE_ROWS};
use super::super::elementary::gelu;
use super::{Block, PRODUCTS, STEP_LINES, Scratch};
use crate::ops::Epilogue;

/// Lines of a term in a step.
const TERM_LINES: usize = STEP_LINES / super::TERMS;

/// How far ahead of the weights that are split others are asked for, in numbers: some of the latency of the memory.
const AHEAD: usize = 2 * STEP * TILE_COLUMNS;

/// The three terms of 16 numbers in the low halves of words, of 16 others in the high halves: each the nearest to what
/// is left, halves away from zero.
///
/// The carry of a NaN may make its first two terms a zero; the third stays NaN.
#[target_feature(enable = "avx512f")]
#[inline]
fn split(low: __m512, high: __m512) -> [__m512i; 3] {
    let half = _mm512_set1_epi32(0x8000);
    let upper = _mm512_set1_epi32(0xffff_0000u32 as i32);
    let pack = |low: __m512i, high: __m512i| {
        // low, or high and upper.
        _mm512_ternarylogic_epi32::<0xf8>(_mm512_srli_epi32::<16>(low), high, upper)
    };
    let round = |x: __m512| _mm512_add_epi32(_mm512_castps_si512(x), half);
    let rest =
        |x: __m512, rounded: __m512i| _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_and_si512(rounded, upper)));
    let (low_term, high_term) = (round(low), round(high));
    let first = pack(low_term, high_term);
    let (low, high) = (rest(low, low_term), rest(high, high_term));
    let (low_term, high_term) = (round(low), round(high));
    let second = pack(low_term, high_term);
    let (low, high) = (rest(low, low_term), rest(high, high_term));
    // Eight digits are left, which need no rounding.
    [first, second, pack(_mm512_castps_si512(low), _mm512_castps_si512(high))]
}

/// Stores the terms' lines.
///
/// # Safety
/// `out` must be writable in the three terms of its step.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn store(out: *mut Line, terms: [__m512i; 3]) {
    for (index, term) in terms.into_iter().enumerate() {
        // SAFETY: by the caller's promise; lines are aligned.
        unsafe { _mm512_store_si512(out.add(index * TERM_LINES).cast(), term) };
    }
}

/// Splits `steps` steps of the rows of `x` [rows, inputs], from its first number on, of which `inputs_left` are the row's.
///
/// # Safety
/// The processor must have the instructions; `out` must hold [`STEP_LINES`] for each step and tile of rows.
#[target_feature(enable = "avx512f")]
unsafe fn split_rows(x: &[f32], inputs: usize, inputs_left: usize, steps: usize, out: *mut Line) {
    for (row, x) in x.chunks(inputs).enumerate() {
        for step in 0..steps {
            let load = |column: usize| {
                // SAFETY: a masked load touches only what is within the row.
                unsafe { _mm512_maskz_loadu_ps(mask(inputs_left, column), x.as_ptr().wrapping_add(column)) }
            };
            let terms = split(load(step * STEP), load(step * STEP + STEP / 2));
            let line = (row / TILE_ROWS * steps + step) * STEP_LINES + row % TILE_ROWS;
            // SAFETY: by the caller's promise.
            unsafe { store(out.add(line), terms) };
        }
    }
}

/// A panel of weights that is being split.
#[derive(Clone, Copy)]
struct Splitting {
    weights: *const f32,
    out: *mut Line,
    done: usize,
    lines: usize,
}

impl Splitting {
    /// # Safety
    /// `weights` must hold `steps` steps of a panel, `out` [`STEP_LINES`] for each.
    unsafe fn new(weights: *const f32, out: *mut Line, steps: usize) -> Self {
        Self { weights, out, done: 0, lines: steps * TERM_LINES }
    }

    /// Splits up to line `until`.
    ///
    /// # Safety
    /// The processor must have the instructions.
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn go_on(&mut self, until: usize) {
        let until = until.min(self.lines);
        for line in self.done..until {
            // Half a row of the panel, and its other number of the pair 16 rows below.
            let (step, pair, half) = (line / TERM_LINES, line % TERM_LINES / 2, line % 2);
            let place = (step * STEP + pair) * TILE_COLUMNS + half * GROUP;
            // SAFETY: within the panel, by the promise given to `new`; a prefetch never faults.
            unsafe {
                let low = self.weights.add(place);
                let high = low.add(STEP / 2 * TILE_COLUMNS);
                _mm_prefetch::<_MM_HINT_T0>(low.wrapping_add(AHEAD).cast());
                _mm_prefetch::<_MM_HINT_T0>(high.wrapping_add(AHEAD).cast());
                let terms = split(_mm512_load_ps(low), _mm512_load_ps(high));
                store(self.out.add(step * STEP_LINES + half * GROUP + pair), terms);
            }
        }
        self.done = until.max(self.done);
    }
}

/// Multiplies the terms in tmm4 and tmm5 (rows) with those in tmm6 and tmm7 (weights), after loading what is said: a
/// tile, from where, and how far behind in bytes.
macro_rules! amx_product {
    ($rows:expr, $weights:expr, $($tile:literal, $side:literal, $place:literal);+) => {
        asm!(
            $(concat!("tileloadd ", $tile, ", [{", $side, "} + {line}*1 + ", $place, "]"),)+
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "/* {rows} {weights} */",
            rows = in(reg) $rows,
            weights = in(reg) $weights,
            line = in(reg) size_of::<Line>(),
            options(nostack, readonly)
        )
    };
}

/// One step of a tile in tmm0 to tmm3: the [`super::PRODUCTS`] of two AMX tiles of rows with two of weights, with other
/// work `between` them.
///
/// # Safety
/// Tiles must be set up; [`STEP_LINES`] are read from `rows` and `weights`.
#[inline(always)]
unsafe fn amx_step(rows: *const Line, weights: *const Line, mut between: impl FnMut(usize)) {
    // SAFETY: by the caller's promise.
    unsafe {
        amx_product!(rows, weights, "tmm6", "weights", 0; "tmm4", "rows", 4096; "tmm7", "weights", 1024; "tmm5", "rows", 5120);
        between(0);
        amx_product!(rows, weights, "tmm4", "rows", 2048; "tmm5", "rows", 3072);
        between(1);
        amx_product!(rows, weights, "tmm6", "weights", 2048; "tmm7", "weights", 3072);
        between(2);
        amx_product!(rows, weights, "tmm4", "rows", 0; "tmm5", "rows", 1024);
        between(3);
        amx_product!(rows, weights, "tmm6", "weights", 4096; "tmm7", "weights", 5120);
        between(4);
        amx_product!(rows, weights, "tmm6", "weights", 0; "tmm7", "weights", 1024);
        between(5);
    }
}

/// A tile whose sums are complete, and where they go.
#[derive(Clone, Copy)]
struct Ending<'a> {
    bias: &'a [f32],
    /// The tile's first row.
    out: *mut f32,
    /// The tile's first column.
    column: usize,
    outputs: usize,
    /// On top of what `out` holds.
    add: bool,
    /// Whether the bias follows, and what it is followed by; `None`: another block of the inner dimension.
    epilogue: Option<Epilogue>,
}

impl Ending<'_> {
    /// Ends a row.
    ///
    /// # Safety
    /// The processor must have the instructions; the tile must lie within `out`, `sums` hold [`TILE_COLUMNS`].
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
    #[inline]
    unsafe fn row(&self, row: usize, sums: *const f32) {
        let Self { bias, outputs, column, add, epilogue, .. } = *self;
        if column + TILE_COLUMNS <= outputs && epilogue != Some(Epilogue::Gelu) {
            // SAFETY: by the caller's promise: the row is whole.
            unsafe {
                let out = self.out.add(row * outputs + column);
                for half in [0, GROUP] {
                    let mut value = _mm512_load_ps(sums.add(half));
                    if add {
                        value = _mm512_add_ps(value, _mm512_loadu_ps(out.add(half)));
                    }
                    if epilogue.is_some() {
                        value = _mm512_add_ps(value, _mm512_load_ps(bias.as_ptr().add(column + half)));
                    }
                    _mm512_storeu_ps(out.add(half), value);
                }
            }
            return;
        }
        for half in [0, GROUP] {
            let mask = mask(outputs - column, half);
            // SAFETY: by the caller's promise; masked loads and stores touch only what is within the row.
            unsafe {
                let out = self.out.wrapping_add(row * outputs + column + half);
                let mut value = _mm512_load_ps(sums.add(half));
                if add {
                    value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, out));
                }
                if let Some(epilogue) = epilogue {
                    value = _mm512_add_ps(value, _mm512_load_ps(bias.as_ptr().add(column + half)));
                    if epilogue == Epilogue::Gelu {
                        let simd = V4::new_unchecked();
                        value = pulp::cast(gelu(simd, pulp::cast(value)));
                    }
                }
                _mm512_mask_storeu_ps(out, mask, value);
            }
        }
    }

    /// Asks for the lines of a row, which is ended soon.
    fn prefetch(&self, row: usize) {
        let row = self.out.wrapping_add(row * self.outputs + self.column);
        for half in [0, GROUP] {
            // SAFETY: a prefetch of any address is harmless.
            unsafe { _mm_prefetch::<_MM_HINT_ET0>(row.wrapping_add(half).cast()) };
        }
    }
}

/// See [`super::Kernel::multiply`].
///
/// The next panel of weights is split, and the previous tile ended, between the steps of a tile: tiles are multiplied
/// beside the vector units, so that neither waits for the other.
///
/// # Safety
/// Tiles must be set up; lengths as asserted there, and of `scratch` as it makes them.
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
pub(super) unsafe fn multiply(block: Block<'_>, scratch: &mut Scratch) {
    let Block { x, inputs, outputs, depth, weights, bias, epilogue, out } = block;
    let rows = out.len() / outputs;
    let tiles = rows / TILE_ROWS;
    let panels = outputs.div_ceil(TILE_COLUMNS);
    let out = out.as_mut_ptr();
    let left: *mut Line = scratch.left.as_mut_slice().as_mut_ptr().cast();
    let mut right = scratch.right.each_mut().map(|right| right.as_mut_slice().as_mut_ptr().cast::<Line>());
    let sums = scratch.sums.as_mut_slice().as_mut_ptr();
    let steps_from = |start: usize| depth.min(inputs.saturating_sub(start)).div_ceil(STEP);
    // Panels follow each other in memory, and so do blocks of the inner dimension.
    let mut next = weights.as_ptr();
    let mut done: Option<Ending<'_>> = None;
    // SAFETY: by the caller's promise: all of this lies within the weights, the rows and the scratch memory.
    unsafe {
        Splitting::new(next, right[0], steps_from(0)).go_on(usize::MAX);
        for start in (0..inputs).step_by(depth) {
            let steps = steps_from(start);
            split_rows(&x[start..], inputs, inputs - start, steps, left);
            let last = start + depth >= inputs;
            for panel in 0..panels {
                next = next.add(steps * STEP * TILE_COLUMNS);
                let next_steps = if panel + 1 < panels { steps } else { steps_from(start + depth) };
                let mut splitting = Splitting::new(next, right[1], next_steps);
                // Spread over the products, by turns lines of weights and rows of the tile before.
                let slots = steps * PRODUCTS.len() / 2;
                let rows_per_slot = TILE_ROWS.div_ceil(slots);
                let lines_per_slot = splitting.lines.div_ceil(tiles * slots);
                for tile in 0..tiles {
                    let ending = Ending {
                        bias,
                        out: out.add(tile * TILE_ROWS * outputs),
                        column: panel * TILE_COLUMNS,
                        outputs,
                        add: start > 0 || epilogue == Epilogue::Residual,
                        epilogue: last.then_some(epilogue),
                    };
                    amx_clear();
                    let mut row = 0;
                    for step in 0..steps {
                        amx_step(
                            left.add((tile * steps + step) * STEP_LINES),
                            right[0].add(step * STEP_LINES),
                            |product| {
                                if product % 2 == 0 {
                                    splitting.go_on(splitting.done + lines_per_slot);
                                    return;
                                }
                                let until = TILE_ROWS.min(row + rows_per_slot);
                                while row < until {
                                    ending.prefetch(row);
                                    if let Some(done) = &done {
                                        done.row(row, sums.add(row * TILE_COLUMNS));
                                    }
                                    row += 1;
                                }
                            },
                        );
                    }
                    amx_store(sums, TILE_COLUMNS);
                    done = Some(ending);
                }
                splitting.go_on(usize::MAX);
                right.swap(0, 1);
            }
        }
        if let Some(done) = done {
            for row in 0..TILE_ROWS {
                done.row(row, sums.add(row * TILE_COLUMNS));
            }
        }
    }
}
