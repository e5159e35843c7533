//! AMX and AVX-512: what [`super::plain`] computes in plain code.
//!
//! Every function with `unsafe` asks for the instructions it is compiled with, and for the lengths that the
//! callers in [`super::Kernel`] and [`super::IntegerLinear`] assert.

use std::arch::asm;
use std::arch::x86_64::*;

use super::super::brain::x86::{amx_passes, define_amx_step, gelu, mask, store};
use super::super::brain::{DEPTH_STEPS, GROUP, Grid, Line, TILE_COLUMNS, TILE_ROWS};
use super::{BYTES, Block, Ending, Output, WORD, scale, steps};

/// Adds 128 to 64 integers.
const SHIFT: i8 = i8::MIN;

/// See [`super::Kernel::quantise`]; `lines` of a row of `x`.
///
/// # Safety
/// The processor must have the instructions; lengths as asserted there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn quantise_lines(
    x: &[Line],
    lines: usize,
    shifted: bool,
    out: &mut [Line],
    scales: &mut [f32],
) {
    let steps = lines.div_ceil(2);
    let shift = _mm512_set1_epi8(if shifted { SHIFT } else { 0 });
    let magnitude = _mm512_set1_epi16(0x7fff);
    let odd = _mm512_set1_epi32(0xffff_0000u32 as i32);
    for (group, scales) in scales.chunks_exact_mut(GROUP).enumerate() {
        // SAFETY: the lines of the group are within `x` and `out` by the caller's promise.
        unsafe {
            let x = x.as_ptr().add(group * lines * GROUP);
            let out = out.as_mut_ptr().add(group * steps * GROUP);
            // As integers: NaN and infinity are greater than all numbers.
            let mut largest = [_mm512_setzero_si512(); GROUP];
            for line in 0..lines {
                for (row, largest) in largest.iter_mut().enumerate() {
                    let line = _mm512_load_si512(x.add(line * GROUP + row).cast());
                    *largest = _mm512_max_epu16(*largest, _mm512_and_si512(line, magnitude));
                }
            }
            let mut inverses = [0.0; GROUP];
            for ((largest, row_scale), inverse) in largest.iter().zip(scales).zip(&mut inverses) {
                let half = _mm256_max_epu16(
                    _mm512_castsi512_si256(*largest),
                    _mm512_extracti64x4_epi64::<1>(*largest),
                );
                let quarter =
                    _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
                // The least of the complements.
                let least = _mm_minpos_epu16(_mm_xor_si128(quarter, _mm_set1_epi8(-1)));
                let bits = !(_mm_cvtsi128_si32(least) as u16);
                (*row_scale, *inverse) = scale(f32::from_bits(u32::from(bits) << 16));
            }
            for step in 0..steps {
                for (row, inverse) in inverses.iter().enumerate() {
                    let inverse = _mm512_set1_ps(*inverse);
                    let integers = |line: __m512i| {
                        let even = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(line));
                        let odd = _mm512_castsi512_ps(_mm512_and_si512(line, odd));
                        let [even, odd] = [even, odd].map(|x| _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)));
                        _mm512_packs_epi32(even, odd)
                    };
                    let line = x.add(2 * step * GROUP + row);
                    let first = integers(_mm512_load_si512(line.cast()));
                    let second = if 2 * step + 1 < lines {
                        integers(_mm512_load_si512(line.add(GROUP).cast()))
                    } else {
                        _mm512_setzero_si512()
                    };
                    let packed = _mm512_xor_si512(_mm512_packs_epi16(first, second), shift);
                    _mm512_store_si512(out.add(step * GROUP + row).cast(), packed);
                }
            }
        }
    }
}

/// See [`super::Kernel::quantise`].
///
/// # Safety
/// The processor must have the instructions; lengths as asserted there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn quantise_rows(
    x: &[f32],
    width: usize,
    shifted: bool,
    out: &mut [Line],
    scales: &mut [f32],
) {
    let steps = steps(width);
    let shift = _mm512_set1_epi8(if shifted { SHIFT } else { 0 });
    let magnitude = _mm512_set1_epi32(i32::MAX);
    for (row, (x, row_scale)) in x.chunks_exact(width).zip(scales).enumerate() {
        // SAFETY: masked loads touch only what is within the row; the lines are those of the row.
        unsafe {
            let load =
                |column: usize| _mm512_maskz_loadu_ps(mask(width, column), x.as_ptr().wrapping_add(column));
            let mut largest = [_mm512_setzero_si512(); 4];
            for step in 0..steps {
                for (part, largest) in largest.iter_mut().enumerate() {
                    let bits = _mm512_castps_si512(load(step * BYTES + 16 * part));
                    *largest = _mm512_max_epi32(*largest, _mm512_and_si512(bits, magnitude));
                }
            }
            let [a, b, c, d] = largest;
            let largest = _mm512_max_epi32(_mm512_max_epi32(a, b), _mm512_max_epi32(c, d));
            let bits = _mm512_reduce_max_epi32(largest) as u32;
            let inverse;
            (*row_scale, inverse) = scale(f32::from_bits(bits));
            let inverse = _mm512_set1_ps(inverse);
            let out = out.as_mut_ptr().add(row / GROUP * steps * GROUP + row % GROUP);
            for step in 0..steps {
                let integers =
                    |part: usize| _mm512_cvtps_epi32(_mm512_mul_ps(load(step * BYTES + 16 * part), inverse));
                let first = _mm512_packs_epi32(integers(0), integers(1));
                let second = _mm512_packs_epi32(integers(2), integers(3));
                let packed = _mm512_xor_si512(_mm512_packs_epi16(first, second), shift);
                _mm512_store_si512(out.add(step * GROUP).cast(), packed);
            }
        }
    }
}

impl Ending<'_> {
    /// The two vectors of results of row `row` and of panel `panel`, whose sums are at `sums`.
    ///
    /// # Safety
    /// The row and the panel must be of the block that this was made of; the processor must have the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    unsafe fn values<const GELU: bool>(&self, panel: usize, row: usize, sums: *const f32) -> [__m512; 2] {
        let column = panel * TILE_COLUMNS;
        // SAFETY: by the caller's promise; scales and biases are filled to whole panels.
        unsafe {
            let row_scale = _mm512_set1_ps(*self.row_scales.as_ptr().add(row));
            [0, 16].map(|half| {
                let sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums.add(half).cast()));
                let scale = _mm512_load_ps(self.scales.as_ptr().add(column + half));
                let bias = _mm512_load_ps(self.bias.as_ptr().add(column + half));
                let value = _mm512_fmadd_ps(_mm512_mul_ps(sum, row_scale), scale, bias);
                if GELU { gelu(value) } else { value }
            })
        }
    }

    /// Ends a row in bfloat16: of `out`, all rows' lines.
    ///
    /// # Safety
    /// As of [`Ending::values`]; the row must lie within `out`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    #[inline]
    unsafe fn line<const GELU: bool>(&self, panel: usize, row: usize, sums: *const f32, out: *mut Line) {
        // SAFETY: by the caller's promise.
        unsafe {
            let [left, right] = self.values::<GELU>(panel, row, sums);
            store(out.add((row / GROUP * self.panels + panel) * GROUP + row % GROUP), left, right);
        }
    }

    /// Ends a row in f32: of `out`, [rows, outputs]; `ADD`: on top of what is there.
    ///
    /// # Safety
    /// As of [`Ending::values`]; the row must lie within `out`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    unsafe fn row<const GELU: bool, const ADD: bool>(
        &self,
        panel: usize,
        row: usize,
        sums: *const f32,
        out: *mut f32,
    ) {
        let column = panel * TILE_COLUMNS;
        // SAFETY: by the caller's promise; masked loads and stores touch only what is within the row.
        unsafe {
            let out = out.add(row * self.outputs + column);
            for (half, value) in self.values::<GELU>(panel, row, sums).into_iter().enumerate() {
                let out = out.wrapping_add(16 * half);
                let mask = mask(self.outputs - column, 16 * half);
                let value = if ADD { _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, out)) } else { value };
                _mm512_mask_storeu_ps(out, mask, value);
            }
        }
    }
}

define_amx_step!("tdpbssd");

/// Multiplies with AMX.
///
/// # Safety
/// Tiles must be set up; lengths as asserted by [`super::IntegerLinear::apply`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn amx_multiply(block: Block<'_>, out: &mut Output<'_>) {
    let Block { grid, ending, sums, .. } = block;
    // SAFETY: by the caller's promise.
    unsafe {
        let step = |upper: *const Line, lower: *const Line, panel: *const Line| amx_step(upper, lower, panel);
        match out {
            Output::Lines(out) => {
                let out = out.as_mut_ptr();
                if ending.gelu {
                    amx_passes(grid, sums, step, |panel, tile, row, sums| {
                        ending.line::<true>(panel, tile * TILE_ROWS + row, sums, out);
                    });
                } else {
                    amx_passes(grid, sums, step, |panel, tile, row, sums| {
                        ending.line::<false>(panel, tile * TILE_ROWS + row, sums, out);
                    });
                }
            }
            Output::Rows(out) => {
                let out = out.as_mut_ptr();
                if ending.gelu {
                    amx_passes(grid, sums, step, |panel, tile, row, sums| {
                        ending.row::<true, false>(panel, tile * TILE_ROWS + row, sums, out);
                    });
                } else {
                    amx_passes(grid, sums, step, |panel, tile, row, sums| {
                        ending.row::<false, false>(panel, tile * TILE_ROWS + row, sums, out);
                    });
                }
            }
            Output::Residual(out) => {
                let out = out.as_mut_ptr();
                amx_passes(grid, sums, step, |panel, tile, row, sums| {
                    ending.row::<false, true>(panel, tile * TILE_ROWS + row, sums, out);
                });
            }
        }
    }
}

/// Multiplies with `vpdpbusd`.
///
/// # Safety
/// The processor must have the instructions, and bfloat16 where `out` is of lines; lengths as asserted by
/// [`super::IntegerLinear::apply`].
pub(super) unsafe fn dot_multiply(block: Block<'_>, out: &mut Output<'_>) {
    let Block { grid, starts, ending, sums } = block;
    let Grid { tiles, steps, .. } = grid;
    let kept = steps > DEPTH_STEPS;
    let sums = sums.as_mut_ptr();
    for panel in 0..grid.panels {
        for first in (0..steps).step_by(DEPTH_STEPS) {
            let count = DEPTH_STEPS.min(steps - first);
            for tile in 0..tiles {
                let [upper, lower] = grid.groups(tile, first).map(<[Line]>::as_ptr);
                // SAFETY: by the caller's promise: all of this lies within the block.
                unsafe {
                    let weights = grid.weights.as_ptr().add((panel * steps + first) * TILE_COLUMNS);
                    let slot = if kept { tile } else { 0 };
                    let sums = sums.add(slot * TILE_ROWS * TILE_COLUMNS);
                    let starts = (first == 0).then(|| starts.as_ptr().add(panel * TILE_COLUMNS));
                    dot_tile([upper, lower], weights, count, sums.cast(), starts);
                    if first + count < steps {
                        continue;
                    }
                    match (&mut *out, ending.gelu) {
                        (Output::Lines(out), false) => end_lines::<false>(&ending, panel, tile, sums, out),
                        (Output::Lines(out), true) => end_lines::<true>(&ending, panel, tile, sums, out),
                        (Output::Rows(out), false) => {
                            end_rows::<false, false>(&ending, panel, tile, sums, out)
                        }
                        (Output::Rows(out), true) => end_rows::<true, false>(&ending, panel, tile, sums, out),
                        (Output::Residual(out), _) => {
                            end_rows::<false, true>(&ending, panel, tile, sums, out)
                        }
                    }
                }
            }
        }
    }
}

/// # Safety
/// As of [`dot_multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn end_lines<const GELU: bool>(
    ending: &Ending<'_>,
    panel: usize,
    tile: usize,
    sums: *const f32,
    out: &mut [Line],
) {
    for row in 0..TILE_ROWS {
        // SAFETY: by the caller's promise.
        unsafe {
            let sums = sums.add(row * TILE_COLUMNS);
            ending.line::<GELU>(panel, tile * TILE_ROWS + row, sums, out.as_mut_ptr());
        }
    }
}

/// # Safety
/// As of [`dot_multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn end_rows<const GELU: bool, const ADD: bool>(
    ending: &Ending<'_>,
    panel: usize,
    tile: usize,
    sums: *const f32,
    out: &mut [f32],
) {
    for row in 0..TILE_ROWS {
        // SAFETY: by the caller's promise.
        unsafe {
            let sums = sums.add(row * TILE_COLUMNS);
            ending.row::<GELU, ADD>(panel, tile * TILE_ROWS + row, sums, out.as_mut_ptr());
        }
    }
}

/// A tile with `vpdpbusd`: sums begin with `starts`, of the panel's columns, or else go on from `sums`.
///
/// # Safety
/// The processor must have the instructions; `groups` hold `steps` times 16 lines each, `panel` `steps` times 32,
/// `sums` the tile.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn dot_tile(
    groups: [*const Line; 2],
    panel: *const Line,
    steps: usize,
    sums: *mut i32,
    starts: Option<*const i32>,
) {
    /// Rows at once: 16 sums, and as few loads of weights as registers allow.
    const ROWS: usize = 8;
    const WORDS: usize = BYTES / WORD;
    for first in (0..TILE_ROWS).step_by(ROWS) {
        let group = groups[first / GROUP];
        let mut totals = [[_mm512_setzero_si512(); 2]; ROWS];
        // SAFETY: by the caller's promise.
        unsafe {
            let sums = sums.add(first * TILE_COLUMNS);
            for (row, totals) in totals.iter_mut().enumerate() {
                for (vector, total) in totals.iter_mut().enumerate() {
                    let from = starts.unwrap_or(sums.add(row * TILE_COLUMNS).cast_const());
                    *total = _mm512_loadu_si512(from.add(vector * 16).cast());
                }
            }
            for word in 0..steps * WORDS {
                let weights = panel.add(word * 2).cast::<[__m512i; 2]>().read();
                let rows = group.add(word / WORDS * GROUP + first % GROUP).cast::<i32>();
                for (row, totals) in totals.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(*rows.add(row * WORDS + word % WORDS));
                    for (total, weights) in totals.iter_mut().zip(weights) {
                        *total = _mm512_dpbusd_epi32(*total, x, weights);
                    }
                }
            }
            for (row, totals) in totals.into_iter().enumerate() {
                for (vector, total) in totals.into_iter().enumerate() {
                    _mm512_storeu_si512(sums.add(row * TILE_COLUMNS + vector * 16).cast(), total);
                }
            }
        }
    }
}
