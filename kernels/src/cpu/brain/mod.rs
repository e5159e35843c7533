//! Matrix products and attention in bfloat16 ("brain float") with f32 sums: several times the speed of f32.
//!
//! Weights are rounded and packed once, at load. Activations between operations are [`Line`]s, written by one
//! operation in the order in which the next one's tiles read them. The residual stream, norms, softmax, bias,
//! GELU and all sums stay in f32; each number is rounded once, where it leaves an operation. As with f32, every
//! result element is one chain of additions in a fixed order, whatever else is computed beside it.
//!
//! The instructions are chosen at run time: AMX tiles where the processor has them and the system grants them,
//! else `vdpbf16ps`, with AVX-512 for everything that is no product. [`Kernel::Plain`] is their twin in plain
//! code, for tests.

mod attention;
pub(super) mod plain;
mod product;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

use std::ops::Range;

pub(super) use attention::{Attend, Scratch, Target};
#[cfg(target_arch = "x86_64")]
pub(super) use product::DEPTH_STEPS;
pub(super) use product::{BrainLinear, Grid, Output};

use super::norm::Norm;
use super::rotary::Rotary;

/// Numbers of a line: what one step of a kernel takes from each row.
pub(super) const STEP: usize = 32;
/// Rows of an AMX tile.
pub(super) const GROUP: usize = 16;
/// Rows of a tile: two AMX tiles. Activations hold a multiple of this many rows.
pub(super) const TILE_ROWS: usize = 2 * GROUP;
/// Columns of a tile: two AMX tiles, or two vectors. Being a step too, a tile of one product's results is
/// whole lines of the next one's input.
pub(super) const TILE_COLUMNS: usize = 32;

/// One cache line, 32 numbers in bfloat16: a row of an AMX tile. Loads that cross lines would take twice as long.
///
/// Activations [rows, width] are lines [rows / 16, width / 32, 16], so that an AMX tile is one block of memory.
/// Numbers beyond the width are zero, unless their row holds NaN or infinity; they only ever meet zeros.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
pub(super) struct Line([u16; STEP]);

/// Lines of a row of `width` numbers.
pub(super) fn lines(width: usize) -> usize {
    width.div_ceil(STEP)
}

/// Where the line with `column` of `row` lies among rows of `steps` lines.
#[inline(always)]
pub(super) fn line_of(row: usize, column: usize, steps: usize) -> usize {
    (row / GROUP * steps + column / STEP) * GROUP + row % GROUP
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kernel {
    /// AMX tiles.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// `vdpbf16ps`.
    #[cfg(target_arch = "x86_64")]
    Dot,
    /// Plain code: for tests, and far too slow for anything else.
    #[cfg_attr(not(test), expect(dead_code, reason = "the twin of the others, for tests"))]
    Plain,
}

/// Coefficients that all kernels share.
mod terms {
    /// 2^f for f in [0, 1), a minimax polynomial from the constant up: relative error 8e-5, a fiftieth of what
    /// rounding to bfloat16 may lose.
    #[expect(clippy::excessive_precision, reason = "as printed by the fit")]
    pub(super) const EXP2: [f32; 4] =
        [0.9999251961708069, 0.6958335638046265, 0.2260671705007553, 0.07802451401948929];

    /// -log2(e) · logit Φ(x) / x in powers of x² from the constant up, for x² up to [`LOGIT_LAST`].
    ///
    /// The GELU is x · Φ(x) with the normal distribution Φ, and Φ(x) = 1 / (1 + 2^(x · this)): relative error
    /// 3.4e-4, plus 1e-7 at most. Unlike a fit of erf it loses nothing where x is negative.
    #[expect(clippy::excessive_precision, reason = "as printed by the fit")]
    pub(super) const LOGIT: [f32; 6] = [
        -2.3004400730133057,
        -0.10695133358240128,
        0.0008572759688831866,
        3.885602200170979e-05,
        -2.0397640128066996e-06,
        2.8759167491898552e-08,
    ];
    /// Beyond |x| = 6 the last value is held: what is left of the GELU there is below 1e-8.
    pub(super) const LOGIT_LAST: f32 = 36.0;
}

impl Kernel {
    /// The fastest kernel of this machine; `None` where bfloat16 would be slower than f32.
    pub(super) fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            if !x86::has_avx512() || !std::arch::is_x86_feature_detected!("avx512bf16") {
                return None;
            }
            if x86::amx_is_granted() {
                return Some(Self::Amx);
            }
            // On a Sapphire Rapids, the only one of Intel's that was measured, it does half of what f32 multiply-adds do.
            (!x86::is_intel()).then_some(Self::Dot)
        }
        #[cfg(not(target_arch = "x86_64"))]
        None
    }

    /// Its name, for people.
    pub(super) fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx => "AMX",
            #[cfg(target_arch = "x86_64")]
            Self::Dot => "AVX512_BF16",
            Self::Plain => "plain code",
        }
    }

    /// Normalises the rows of `x` [rows, width] into `out`, rounded.
    pub(super) fn normalise(self, norm: &Norm, x: &[f32], out: &mut [Line]) {
        let width = norm.scale.len();
        let rows = x.len() / width;
        assert!(norm.shift.len() == width && rows.is_multiple_of(GROUP) && out.len() >= rows * lines(width));
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: made only where the processor has the instructions; the lengths were asserted.
            Self::Amx | Self::Dot => unsafe { x86::normalise(norm, x, out) },
            Self::Plain => plain::normalise(norm, x, out),
        }
    }

    /// Computes a tile: [`TILE_ROWS`] rows of `a` times one panel.
    ///
    /// `a`: [2, `steps`, [`GROUP`]] lines. `panel`: `steps` times [[`GROUP`], `columns`, 2] numbers. `sums`:
    /// [[`TILE_ROWS`], `columns`], the rows `stride` apart. `columns`: 16 or 32.
    #[inline]
    fn tile(self, a: &[Line], panel: &[Line], steps: usize, columns: usize, sums: &mut [f32], stride: usize) {
        assert!(steps > 0 && (columns == 16 || columns == 32) && stride >= columns);
        assert!(a.len() >= steps * TILE_ROWS && panel.len() >= steps * columns);
        assert!(sums.len() >= (TILE_ROWS - 1) * stride + columns);
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: made only where the processor has it; `Configured` has set the tiles up; the lengths were
            // asserted.
            Self::Amx => unsafe {
                let (a, panel, sums) = (a.as_ptr(), panel.as_ptr(), sums.as_mut_ptr());
                if columns == 32 {
                    x86::amx_tile(a, panel, steps, sums, stride);
                } else {
                    x86::amx_narrow_tile(a, panel, steps, sums, stride);
                }
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: made only where the processor has it; the lengths were asserted.
            Self::Dot => unsafe {
                let (upper, panel, sums) = (a.as_ptr(), panel.as_ptr(), sums.as_mut_ptr());
                let lower = upper.add(steps * GROUP);
                if columns == 32 {
                    x86::dot_tile::<2>(upper, lower, panel, steps, sums, stride, false);
                } else {
                    x86::dot_tile::<1>(upper, lower, panel, steps, sums, stride, false);
                }
            },
            Self::Plain => {
                let (upper, lower) = a.split_at(steps * GROUP);
                plain::tile([upper, lower], panel, steps, columns, sums, stride, false);
            }
        }
    }

    /// Rotates the head of some `tokens`, at most [`TILE_ROWS`], times `scale`, into `out`.
    ///
    /// `staged`: scratch memory. `out`: [2, lines of the head, [`GROUP`]].
    fn rotate(
        self,
        head: &Head<'_>,
        tokens: Range<usize>,
        rotary: &Rotary,
        scale: f32,
        staged: &mut [Line],
        out: &mut [Line],
    ) {
        let steps = lines(head.width);
        assert!(tokens.len() <= TILE_ROWS && head.holds(&tokens) && rotary.hold(tokens.end));
        assert!(staged.len() >= TILE_ROWS * steps && out.len() >= TILE_ROWS * steps);
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx | Self::Dot if head.width <= STEP || head.width.is_multiple_of(STEP) => {
                head.stage(&tokens, staged);
                // SAFETY: made only where the processor has the instructions; the lengths were asserted.
                unsafe { x86::rotate(head, tokens, rotary, scale, staged, out) }
            }
            _ => plain::rotate(head, tokens, rotary, scale, out),
        }
    }

    /// Transposes 16 rows of 16 pairs into 16 lines, each the second of `out` after the one before.
    fn transpose(self, rows: &[Line], out: &mut [Line]) {
        assert!(rows.len() == GROUP && out.len() > 2 * (GROUP - 1));
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: made only where the processor has the instructions; the lengths were asserted.
            Self::Amx | Self::Dot => unsafe { x86::transpose(rows.as_ptr(), out.as_mut_ptr()) },
            Self::Plain => plain::transpose(rows, out),
        }
    }

    /// Packs the head of `tokens`, which begin and end at an even token or the sequence's end.
    ///
    /// `staged`: scratch memory. `out`: per panel of head columns, [`pairs`, columns, 2]; pairs up to the next
    /// whole tile are filled with zeros.
    fn pack_values(
        self,
        head: &Head<'_>,
        tokens: Range<usize>,
        pairs: usize,
        staged: &mut [Line],
        out: &mut [Line],
    ) {
        assert!(tokens.len() <= TILE_ROWS && head.holds(&tokens) && tokens.start.is_multiple_of(TILE_ROWS));
        assert!(staged.len() >= TILE_ROWS * lines(head.width));
        assert!(pairs >= tokens.start / 2 + GROUP && out.len() >= value_lines(head.width) * pairs);
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx | Self::Dot => {
                head.stage(&tokens, staged);
                // SAFETY: made only where the processor has the instructions; the lengths were asserted.
                unsafe { x86::pack_values(head, tokens, pairs, staged, out) }
            }
            Self::Plain => plain::pack_values(head, tokens, pairs, out),
        }
    }

    /// Turns scores, in units of ln 2, into weights: 2^(score - highest score so far), rounded.
    ///
    /// `scores`: [`rows`, `keys`], the rows `stride` apart, with room to a multiple of [`STEP`]. `weights`: [2,
    /// lines of `keys`, [`GROUP`]]. The rows' `softmax` go on from block to block.
    fn soften(
        self,
        scores: &mut [f32],
        stride: usize,
        keys: usize,
        softmax: &mut [Softmax],
        weights: &mut [Line],
    ) {
        let rows = softmax.len();
        assert!(keys > 0 && stride >= keys.next_multiple_of(STEP) && rows <= TILE_ROWS);
        assert!(scores.len() >= rows * stride && weights.len() >= TILE_ROWS * lines(keys));
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: made only where the processor has the instructions; the lengths were asserted.
            Self::Amx | Self::Dot => unsafe { x86::soften(scores, stride, keys, softmax, weights) },
            Self::Plain => plain::soften(scores, stride, keys, softmax, weights),
        }
    }

    /// Divides `columns` numbers (16 or 32) by `total` and rounds them.
    #[inline]
    fn divide(self, sums: &[f32], total: f32, columns: usize) -> Line {
        assert!((columns == 16 || columns == 32) && sums.len() >= columns);
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: made only where the processor has the instructions; the length was asserted.
            Self::Amx | Self::Dot => unsafe { x86::divide(sums.as_ptr(), total, columns) },
            Self::Plain => plain::divide(&sums[..columns], total),
        }
    }
}

/// Lines of the values of two tokens: narrow heads have tiles of 16 columns.
fn value_lines(head_width: usize) -> usize {
    if head_width <= GROUP { 1 } else { 2 * lines(head_width) }
}

/// The softmax of one row so far.
#[derive(Clone, Copy)]
struct Softmax {
    maximum: f32,
    /// Sum of the weights, in units of 2^maximum.
    total: f32,
    /// What the sums of earlier blocks are to be multiplied with.
    fade: f32,
}

impl Softmax {
    const NONE: Self = Self { maximum: f32::NEG_INFINITY, total: 0.0, fade: 0.0 };

    /// Goes on to a block with this maximum; its total is still to be added.
    fn raise(&mut self, block: f32) {
        // Not `max`, which would swallow NaN; the weights show it, too.
        let maximum = if block > self.maximum || block.is_nan() { block } else { self.maximum };
        self.fade = if self.maximum == f32::NEG_INFINITY { 0.0 } else { (self.maximum - maximum).exp2() };
        self.total *= self.fade;
        self.maximum = maximum;
    }
}

/// The columns of one head, of queries, keys or values, of one sequence.
struct Head<'a> {
    lines: &'a [Line],
    /// Lines of a row.
    steps: usize,
    /// Row of the sequence's first token.
    first: usize,
    column: usize,
    width: usize,
}

impl Head<'_> {
    fn holds(&self, tokens: &Range<usize>) -> bool {
        let rows = (self.first + tokens.end).next_multiple_of(GROUP);
        self.column + self.width <= self.steps * STEP && rows * self.steps <= self.lines.len()
    }

    /// A number of the head.
    fn number(&self, token: usize, column: usize) -> u16 {
        let column = self.column + column;
        self.lines[line_of(self.first + token, column, self.steps)].0[column % STEP]
    }

    /// Whether 16 numbers of the head at a multiple of 16 always share a line.
    fn is_aligned(&self) -> bool {
        self.width.is_multiple_of(GROUP)
    }

    /// Copies a head that is not aligned to rows of whole lines.
    #[cfg(target_arch = "x86_64")]
    fn stage(&self, tokens: &Range<usize>, staged: &mut [Line]) {
        if self.is_aligned() {
            return;
        }
        // The largest pieces that never cross a line: heads begin at multiples of their width.
        match self.width % 8 {
            0 => self.stage_pieces::<8>(tokens, staged),
            4 => self.stage_pieces::<4>(tokens, staged),
            2 | 6 => self.stage_pieces::<2>(tokens, staged),
            _ => self.stage_pieces::<1>(tokens, staged),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn stage_pieces<const PIECE: usize>(&self, tokens: &Range<usize>, staged: &mut [Line]) {
        for (token, row) in tokens.clone().zip(staged.chunks_exact_mut(lines(self.width))) {
            let row: &mut [u16] = bytemuck::cast_slice_mut(row);
            let (pieces, _) = row[..self.width].as_chunks_mut::<PIECE>();
            for (index, piece) in pieces.iter_mut().enumerate() {
                let column = self.column + index * PIECE;
                let line = &self.lines[line_of(self.first + token, column, self.steps)].0;
                *piece = line.as_chunks::<PIECE>().0[column % STEP / PIECE];
            }
        }
    }
}

/// AMX tiles set up for this thread until dropped.
pub(super) struct Configured {
    #[cfg(target_arch = "x86_64")]
    tiles: bool,
}

impl Configured {
    /// `kernel` of `None`: one without tiles.
    pub(super) fn new(kernel: Option<Kernel>) -> Self {
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = kernel;
            Self {}
        }
        #[cfg(target_arch = "x86_64")]
        {
            let tiles = kernel == Some(Kernel::Amx);
            if tiles {
                // SAFETY: made only where the system has granted AMX.
                unsafe { x86::configure() };
            }
            Self { tiles }
        }
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.tiles {
            // SAFETY: as in `new`. An idle thread whose tiles are in use costs the system on every switch.
            unsafe { x86::release() };
        }
    }
}
