//! AMX and AVX-512: what [`super::plain`] computes in plain code.
//!
//! Every function with `unsafe` asks for the instructions it is compiled with, and for the lengths that the
//! callers in [`super::Kernel`] assert.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::OnceLock;

use super::super::norm::Norm;
use super::super::rotary::Rotary;
use super::product::{Block, DEPTH_STEPS, Grid, Output};
use super::terms::{EXP2, LOGIT, LOGIT_LAST};
use super::{GROUP, Head, Line, STEP, Softmax, TILE_COLUMNS, TILE_ROWS, line_of, lines, value_lines};

/// Whether AVX-512 is there as far as everything that is no product takes it; every processor with AMX has it.
pub(in crate::cpu) fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

/// Whether Intel made the processor.
pub(super) fn is_intel() -> bool {
    let leaf = __cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}

/// Whether AMX multiplies integers as well, where [`amx_is_granted`].
pub(in crate::cpu) fn amx_has_integers() -> bool {
    // CPUID 7: AMX-INT8 is bit 25 of EDX.
    __cpuid_count(7, 0).edx & (1 << 25) != 0
}

/// Whether AMX is there and the system lets this process use it; asks for it the first time.
pub(super) fn amx_is_granted() -> bool {
    static GRANTED: OnceLock<bool> = OnceLock::new();
    *GRANTED.get_or_init(|| {
        // CPUID 7: AMX-BF16 is bit 22 of EDX, AMX-TILE bit 24. XCR0: the system saves tiles, bits 17 and 18.
        let leaf = __cpuid_count(7, 0);
        let has = leaf.edx & (1 << 22) != 0 && leaf.edx & (1 << 24) != 0;
        has && saved_by_the_system() && request_from_the_system()
    })
}

fn saved_by_the_system() -> bool {
    const TILES: u64 = 0b11 << 17;
    // CPUID 1: OSXSAVE is bit 27 of ECX; without it XGETBV would be an illegal instruction.
    if __cpuid(1).ecx & (1 << 27) == 0 {
        return false;
    }
    let (low, high): (u32, u32);
    // SAFETY: XGETBV exists by the check above and only reads a register.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
    (u64::from(high) << 32 | u64::from(low)) & TILES == TILES
}

/// Linux gives the tiles' state only to processes that ask for it.
#[cfg(target_os = "linux")]
fn request_from_the_system() -> bool {
    const SYS_ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let answer: i64;
    // SAFETY: a system call that takes two numbers and changes nothing but the right to use tiles.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_ARCH_PRCTL => answer,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _, out("r11") _,
            options(nostack)
        );
    }
    answer == 0
}

#[cfg(not(target_os = "linux"))]
fn request_from_the_system() -> bool {
    false
}

/// What LDTILECFG reads: eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileConfiguration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static TILES: TileConfiguration = TileConfiguration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Sets this thread's tiles up.
///
/// # Safety
/// [`amx_is_granted`] must have said yes.
pub(super) unsafe fn configure() {
    // SAFETY: by the caller's promise; the configuration is valid and lives for ever.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const TILES, options(nostack, readonly)) };
}

/// Gives this thread's tiles back.
///
/// # Safety
/// As of [`configure`].
pub(super) unsafe fn release() {
    // SAFETY: by the caller's promise.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// Defines `amx_step`, one step of a tile in tmm0 to tmm3: two AMX tiles of rows times two of weights, by the instruction
/// given.
///
/// Tiles keep their numbers from one block of assembly to the next: the compiler has no use for these registers.
macro_rules! define_amx_step {
    ($multiply:literal) => {
        /// One step of a tile in tmm0 to tmm3.
        ///
        /// # Safety
        /// Tiles must be set up by `configure`; 16 lines are read from `upper` and `lower`, 32 from `panel`.
        #[inline(always)]
        unsafe fn amx_step(upper: *const Line, lower: *const Line, panel: *const Line) {
            // SAFETY: by the caller's promise.
            unsafe {
                asm!(
                    "tileloadd tmm4, [{upper} + {line}*1]",
                    "tileloadd tmm6, [{panel} + {row}*1]",
                    "tileloadd tmm7, [{panel} + {row}*1 + 64]",
                    concat!($multiply, " tmm0, tmm4, tmm6"),
                    "tileloadd tmm5, [{lower} + {line}*1]",
                    concat!($multiply, " tmm1, tmm4, tmm7"),
                    concat!($multiply, " tmm2, tmm5, tmm6"),
                    concat!($multiply, " tmm3, tmm5, tmm7"),
                    upper = in(reg) upper,
                    lower = in(reg) lower,
                    panel = in(reg) panel,
                    line = in(reg) 64usize,
                    row = in(reg) 128usize,
                    options(nostack, readonly)
                );
            }
        }
    };
}
pub(in crate::cpu) use define_amx_step;

define_amx_step!("tdpbf16ps");

/// Clears tmm0 to tmm3.
///
/// # Safety
/// As of [`amx_step`].
#[inline(always)]
pub(in crate::cpu) unsafe fn amx_clear() {
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
    }
}

/// Loads tmm0 to tmm3 from [32, 32] numbers.
///
/// # Safety
/// As of [`amx_step`]; `sums` must be that long.
#[inline(always)]
unsafe fn amx_load(sums: *const f32) {
    // SAFETY: by the caller's promise.
    unsafe {
        asm!(
            "tileloadd tmm0, [{sums} + {row}*1]",
            "tileloadd tmm1, [{sums} + {row}*1 + 64]",
            "tileloadd tmm2, [{sums} + {row}*1 + 2048]",
            "tileloadd tmm3, [{sums} + {row}*1 + 2112]",
            sums = in(reg) sums,
            row = in(reg) 128usize,
            options(nostack, readonly)
        );
    }
}

/// Stores tmm0 to tmm3 to 32 rows of 32 numbers, `stride` numbers apart.
///
/// # Safety
/// As of [`amx_step`]; `sums` must be that long.
#[inline(always)]
pub(in crate::cpu) unsafe fn amx_store(sums: *mut f32, stride: usize) {
    // SAFETY: by the caller's promise.
    unsafe {
        asm!(
            "tilestored [{upper} + {row}*1], tmm0",
            "tilestored [{upper} + {row}*1 + 64], tmm1",
            "tilestored [{lower} + {row}*1], tmm2",
            "tilestored [{lower} + {row}*1 + 64], tmm3",
            upper = in(reg) sums,
            lower = in(reg) sums.add(GROUP * stride),
            row = in(reg) 4 * stride,
            options(nostack)
        );
    }
}

/// See [`super::Kernel::tile`].
///
/// # Safety
/// Tiles must be set up by [`configure`]; lengths as asserted there.
pub(super) unsafe fn amx_tile(
    a: *const Line,
    panel: *const Line,
    steps: usize,
    sums: *mut f32,
    stride: usize,
) {
    // SAFETY: by the caller's promise.
    unsafe {
        amx_clear();
        for step in 0..steps {
            let upper = a.add(step * GROUP);
            amx_step(upper, upper.add(steps * GROUP), panel.add(step * TILE_COLUMNS));
        }
        amx_store(sums, stride);
    }
}

/// The same with a panel of 16 columns.
///
/// # Safety
/// As of [`amx_tile`].
pub(super) unsafe fn amx_narrow_tile(
    a: *const Line,
    panel: *const Line,
    steps: usize,
    sums: *mut f32,
    stride: usize,
) {
    // SAFETY: by the caller's promise.
    unsafe {
        asm!("tilezero tmm0", "tilezero tmm2", options(nostack, nomem));
        for step in 0..steps {
            let upper = a.add(step * GROUP);
            asm!(
                "tileloadd tmm6, [{panel} + {line}*1]",
                "tileloadd tmm4, [{upper} + {line}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{lower} + {line}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                upper = in(reg) upper,
                lower = in(reg) upper.add(steps * GROUP),
                panel = in(reg) panel.add(step * GROUP),
                line = in(reg) 64usize,
                options(nostack, readonly)
            );
        }
        asm!(
            "tilestored [{upper} + {row}*1], tmm0",
            "tilestored [{lower} + {row}*1], tmm2",
            upper = in(reg) sums,
            lower = in(reg) sums.add(GROUP * stride),
            row = in(reg) 4 * stride,
            options(nostack)
        );
    }
}

/// A tile with `vdpbf16ps`, of 16 columns per vector; `add`: on top of what `sums` hold.
///
/// # Safety
/// The processor must have the instructions; `upper` and `lower` hold the groups of rows; other lengths as
/// asserted by [`super::Kernel::tile`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn dot_tile<const VECTORS: usize>(
    upper: *const Line,
    lower: *const Line,
    panel: *const Line,
    steps: usize,
    sums: *mut f32,
    stride: usize,
    add: bool,
) {
    /// Rows at once: 16 sums, and as few loads of weights as registers allow.
    const ROWS: usize = 8;
    for first in (0..TILE_ROWS).step_by(ROWS) {
        let group = if first < GROUP { upper } else { lower };
        let mut totals = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        // SAFETY: by the caller's promise.
        unsafe {
            let sums = sums.add(first * stride);
            if add {
                for (row, totals) in totals.iter_mut().enumerate() {
                    for (vector, total) in totals.iter_mut().enumerate() {
                        *total = _mm512_loadu_ps(sums.add(row * stride + vector * 16));
                    }
                }
            }
            for pair in 0..steps * STEP / 2 {
                let weights = panel.add(pair * VECTORS);
                let weights = weights.cast::<[__m512bh; VECTORS]>().read();
                let rows = group.add(pair / 16 * GROUP + first % GROUP).cast::<i32>();
                for (row, totals) in totals.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(*rows.add(row * 16 + pair % 16));
                    let x: __m512bh = std::mem::transmute(x);
                    for (total, weights) in totals.iter_mut().zip(weights) {
                        *total = _mm512_dpbf16_ps(*total, x, weights);
                    }
                }
            }
            for (row, totals) in totals.into_iter().enumerate() {
                for (vector, total) in totals.into_iter().enumerate() {
                    _mm512_storeu_ps(sums.add(row * stride + vector * 16), total);
                }
            }
        }
    }
}

/// What is done with a tile's sums.
#[derive(Clone, Copy)]
struct Ending<'a> {
    bias: &'a [f32],
    out: *mut u8,
    outputs: usize,
    panels: usize,
}

const BIAS: u8 = 0;
const GELU: u8 = 1;
const RESIDUAL: u8 = 2;

impl<'a> Ending<'a> {
    fn new(block: &Block<'a>, out: &mut Output<'_>) -> (Self, u8) {
        let (out, kind) = match out {
            Output::Lines(out) => (out.as_mut_ptr().cast(), if block.gelu { GELU } else { BIAS }),
            Output::Residual(out) => (out.as_mut_ptr().cast(), RESIDUAL),
        };
        (Self { bias: block.bias, out, outputs: block.outputs, panels: block.grid.panels }, kind)
    }

    /// Ends row `row` of tile `tile` and of panel `panel`, whose sums are at `sums`.
    ///
    /// # Safety
    /// The tile must lie within the output that this was made of; the processor must have the instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    #[inline]
    unsafe fn row<const KIND: u8>(self, panel: usize, tile: usize, row: usize, sums: *const f32) {
        let column = panel * TILE_COLUMNS;
        // SAFETY: by the caller's promise; biases are filled to whole panels.
        unsafe {
            let bias = self.bias.as_ptr().add(column);
            let mut left = _mm512_add_ps(_mm512_load_ps(sums), _mm512_load_ps(bias));
            let mut right = _mm512_add_ps(_mm512_load_ps(sums.add(16)), _mm512_load_ps(bias.add(16)));
            if KIND == RESIDUAL {
                let out = self.out.cast::<f32>().add((tile * TILE_ROWS + row) * self.outputs + column);
                if column + TILE_COLUMNS <= self.outputs {
                    _mm512_storeu_ps(out, _mm512_add_ps(left, _mm512_loadu_ps(out)));
                    let out = out.add(16);
                    _mm512_storeu_ps(out, _mm512_add_ps(right, _mm512_loadu_ps(out)));
                } else {
                    for (first, sum) in [(0, left), (16, right)] {
                        let mask = mask(self.outputs - column, first);
                        let out = out.wrapping_add(first);
                        let sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, out));
                        _mm512_mask_storeu_ps(out, mask, sum);
                    }
                }
                return;
            }
            if KIND == GELU {
                left = gelu(left);
                right = gelu(right);
            }
            let line = ((tile * TILE_ROWS + row) / GROUP * self.panels + panel) * GROUP + row % GROUP;
            store(self.out.cast::<Line>().add(line), left, right);
        }
    }
}

/// The lanes from `first` on that are below `count`.
#[inline(always)]
pub(in crate::cpu) fn mask(count: usize, first: usize) -> __mmask16 {
    ((1u32 << count.saturating_sub(first).min(16)) - 1) as __mmask16
}

/// Rounds two vectors into a line.
///
/// # Safety
/// The processor must have the instructions; `out` must be writable.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
pub(in crate::cpu) unsafe fn store(out: *mut Line, left: __m512, right: __m512) {
    // SAFETY: by the caller's promise; both types are plain bits.
    unsafe {
        let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(right, left));
        _mm512_store_si512(out.cast(), rounded);
    }
}

/// 2^x.
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn exp2(x: __m512) -> __m512 {
    const DOWN: i32 = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    let fraction = _mm512_reduce_ps::<DOWN>(x);
    let mut sum = _mm512_set1_ps(EXP2[3]);
    for term in [EXP2[2], EXP2[1], EXP2[0]] {
        sum = _mm512_fmadd_ps(sum, fraction, _mm512_set1_ps(term));
    }
    // Times 2^floor(x).
    _mm512_scalef_ps(sum, x)
}

/// See [`LOGIT`].
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
pub(in crate::cpu) fn gelu(x: __m512) -> __m512 {
    let square = _mm512_min_ps(_mm512_set1_ps(LOGIT_LAST), _mm512_mul_ps(x, x));
    let mut sum = _mm512_set1_ps(LOGIT[5]);
    for term in [LOGIT[4], LOGIT[3], LOGIT[2], LOGIT[1], LOGIT[0]] {
        sum = _mm512_fmadd_ps(sum, square, _mm512_set1_ps(term));
    }
    let power = exp2(_mm512_mul_ps(sum, x));
    _mm512_mul_ps(x, _mm512_rcp14_ps(_mm512_add_ps(power, _mm512_set1_ps(1.0))))
}

/// Multiplies with AMX. The previous tile's sums are ended between the steps of the next one: tiles are
/// multiplied beside the vector units, so that neither waits for the other.
///
/// # Safety
/// Tiles must be set up by [`configure`]; lengths as asserted by [`super::BrainLinear::apply`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn amx_multiply(block: Block<'_>, out: &mut Output<'_>) {
    let (ending, kind) = Ending::new(&block, out);
    // SAFETY: by the caller's promise.
    unsafe {
        match kind {
            BIAS => amx_multiply_then::<BIAS>(block, ending),
            GELU => amx_multiply_then::<GELU>(block, ending),
            _ => amx_multiply_then::<RESIDUAL>(block, ending),
        }
    }
}

/// # Safety
/// As of [`amx_multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn amx_multiply_then<const KIND: u8>(block: Block<'_>, ending: Ending<'_>) {
    // SAFETY: by the caller's promise.
    unsafe {
        amx_passes(
            block.grid,
            block.sums,
            |upper, lower, panel| amx_step(upper, lower, panel),
            |panel, tile, row, sums| ending.row::<KIND>(panel, tile, row, sums),
        );
    }
}

/// Passes the panels of weights over the tiles: `step` adds to tmm0 to tmm3 what two groups of rows and one step
/// of a panel come to, `end` ends a row of a tile: its panel, the tile, the row, its sums.
///
/// # Safety
/// Tiles must be set up by [`configure`]; the grid's lengths must be as it says, and `sums` as long.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
#[inline]
pub(in crate::cpu) unsafe fn amx_passes(
    grid: Grid<'_>,
    sums: &mut [f32],
    step_of: impl Fn(*const Line, *const Line, *const Line),
    end: impl Fn(usize, usize, usize, *const f32),
) {
    let Grid { tiles, steps, .. } = grid;
    let sums = sums.as_mut_ptr();
    let blocks = steps.div_ceil(DEPTH_STEPS);
    /// A tile whose sums are complete.
    #[derive(Clone, Copy)]
    struct Done {
        panel: usize,
        tile: usize,
        sums: *const f32,
    }
    let mut done: Option<Done> = None;
    for panel in 0..grid.panels {
        let weights = grid.weights.as_ptr().wrapping_add(panel * steps * TILE_COLUMNS);
        for first in (0..steps).step_by(DEPTH_STEPS) {
            let count = DEPTH_STEPS.min(steps - first);
            let last = first + count == steps;
            let rows_per_step = TILE_ROWS.div_ceil(count);
            for tile in 0..tiles {
                // SAFETY: by the caller's promise: all of this lies within the grid.
                unsafe {
                    let slot = if blocks == 1 { 0 } else { tile };
                    let sums = sums.add(slot * TILE_ROWS * TILE_COLUMNS);
                    if first == 0 {
                        amx_clear();
                    } else {
                        amx_load(sums);
                    }
                    let [upper, lower] = grid.groups(tile, first).map(<[Line]>::as_ptr);
                    let mut row = 0;
                    for step in 0..count {
                        step_of(
                            upper.add(step * GROUP),
                            lower.add(step * GROUP),
                            weights.add((first + step) * TILE_COLUMNS),
                        );
                        if let Some(done) = done {
                            let until = TILE_ROWS.min(row + rows_per_step);
                            while row < until {
                                end(done.panel, done.tile, row, done.sums.add(row * TILE_COLUMNS));
                                row += 1;
                            }
                        }
                    }
                    amx_store(sums, TILE_COLUMNS);
                    done = last.then_some(Done { panel, tile, sums });
                }
            }
        }
    }
    if let Some(done) = done {
        for row in 0..TILE_ROWS {
            // SAFETY: as above.
            unsafe { end(done.panel, done.tile, row, done.sums.add(row * TILE_COLUMNS)) };
        }
    }
}

/// Multiplies with `vdpbf16ps`.
///
/// # Safety
/// The processor must have the instructions; lengths as asserted by [`super::BrainLinear::apply`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn dot_multiply(block: Block<'_>, out: &mut Output<'_>) {
    let (ending, kind) = Ending::new(&block, out);
    let grid = block.grid;
    let Grid { tiles, steps, .. } = grid;
    let kept = steps > DEPTH_STEPS;
    let sums = block.sums.as_mut_ptr();
    for panel in 0..ending.panels {
        for first in (0..steps).step_by(DEPTH_STEPS) {
            let count = DEPTH_STEPS.min(steps - first);
            for tile in 0..tiles {
                let [upper, lower] = grid.groups(tile, first).map(<[Line]>::as_ptr);
                // SAFETY: by the caller's promise: all of this lies within the block.
                unsafe {
                    let weights = grid.weights.as_ptr().add((panel * steps + first) * TILE_COLUMNS);
                    let slot = if kept { tile } else { 0 };
                    let sums = sums.add(slot * TILE_ROWS * TILE_COLUMNS);
                    dot_tile::<2>(upper, lower, weights, count, sums, TILE_COLUMNS, first > 0);
                    if first + count < steps {
                        continue;
                    }
                    for row in 0..TILE_ROWS {
                        let sums = sums.add(row * TILE_COLUMNS);
                        match kind {
                            BIAS => ending.row::<BIAS>(panel, tile, row, sums),
                            GELU => ending.row::<GELU>(panel, tile, row, sums),
                            _ => ending.row::<RESIDUAL>(panel, tile, row, sums),
                        }
                    }
                }
            }
        }
    }
}

/// Sums side by side, which hide the latency of the additions.
const SUMS: usize = 4;

/// See [`super::Kernel::normalise`].
///
/// # Safety
/// The processor must have the instructions; lengths as asserted there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn normalise(norm: &Norm, x: &[f32], out: &mut [Line]) {
    let width = norm.scale.len();
    let total = |[a, b, c, d]: [__m512; SUMS]| {
        _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)))
    };
    for (row, x) in x.chunks_exact(width).enumerate() {
        // SAFETY: masked loads touch only what is within the row, the scales and the shifts; the lines are
        // those of the row.
        unsafe {
            let load = |from: *const f32, column: usize| {
                _mm512_maskz_loadu_ps(mask(width, column), from.wrapping_add(column))
            };
            let whole = width / 16 * 16;
            let mut sums = [_mm512_setzero_ps(); SUMS];
            for column in (0..whole).step_by(16) {
                let sum = &mut sums[column / 16 % SUMS];
                *sum = _mm512_add_ps(*sum, _mm512_loadu_ps(x.as_ptr().add(column)));
            }
            if whole < width {
                sums[0] = _mm512_add_ps(sums[0], load(x.as_ptr(), whole));
            }
            let mean = _mm512_set1_ps(total(sums) / width as f32);
            // A second pass over the row, in cache: the variance of centred values loses nothing.
            let mut sums = [_mm512_setzero_ps(); SUMS];
            for column in (0..whole).step_by(16) {
                let sum = &mut sums[column / 16 % SUMS];
                let centred = _mm512_sub_ps(_mm512_loadu_ps(x.as_ptr().add(column)), mean);
                *sum = _mm512_fmadd_ps(centred, centred, *sum);
            }
            if whole < width {
                let centred = _mm512_maskz_sub_ps(mask(width, whole), load(x.as_ptr(), whole), mean);
                sums[0] = _mm512_fmadd_ps(centred, centred, sums[0]);
            }
            let inverse = _mm512_set1_ps(1.0 / (total(sums) / width as f32 + norm.eps).sqrt());
            let first = out.as_mut_ptr().add(line_of(row, 0, lines(width)));
            let unit = |x: __m512| _mm512_mul_ps(_mm512_sub_ps(x, mean), inverse);
            for step in 0..width / STEP {
                let half = |column: usize| {
                    let scale = _mm512_loadu_ps(norm.scale.as_ptr().add(column));
                    let shift = _mm512_loadu_ps(norm.shift.as_ptr().add(column));
                    _mm512_fmadd_ps(unit(_mm512_loadu_ps(x.as_ptr().add(column))), scale, shift)
                };
                store(first.add(step * GROUP), half(step * STEP), half(step * STEP + 16));
            }
            if !width.is_multiple_of(STEP) {
                let step = width / STEP;
                let half = |column: usize| {
                    let scale = load(norm.scale.as_ptr(), column);
                    _mm512_fmadd_ps(unit(load(x.as_ptr(), column)), scale, load(norm.shift.as_ptr(), column))
                };
                store(first.add(step * GROUP), half(step * STEP), half(step * STEP + 16));
            }
        }
    }
}

/// Widens up to 16 numbers.
///
/// # Safety
/// The processor must have the instructions; the lanes of `mask` must be readable from `from` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
unsafe fn widen(mask: __mmask16, from: *const u16) -> __m512 {
    // SAFETY: by the caller's promise.
    let bits = unsafe { _mm256_maskz_loadu_epi16(mask, from.cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
}

/// Where the numbers of a head are read: in its lines, or where they were staged.
#[derive(Clone, Copy)]
struct Rows<'a> {
    head: &'a Head<'a>,
    first: usize,
    /// `None`: read the head's lines.
    staged: Option<*const u16>,
}

impl<'a> Rows<'a> {
    fn new(head: &'a Head<'a>, tokens: &Range<usize>, staged: &[Line]) -> Self {
        let staged = (!head.is_aligned()).then(|| staged.as_ptr().cast());
        Self { head, first: head.first + tokens.start, staged }
    }

    /// Sixteen numbers at a multiple of 16, or eight at a multiple of 8.
    ///
    /// # Safety
    /// Row and column must lie within the tokens that were staged and the head.
    #[inline(always)]
    unsafe fn at(self, row: usize, column: usize) -> *const u16 {
        let Self { head, first, staged } = self;
        // SAFETY: by the caller's promise.
        unsafe {
            match staged {
                Some(staged) => staged.add(row * lines(head.width) * STEP + column),
                None => {
                    let column = head.column + column;
                    let line = line_of(first + row, column, head.steps);
                    head.lines.as_ptr().add(line).cast::<u16>().add(column % STEP)
                }
            }
        }
    }
}

/// See [`super::Kernel::rotate`]; heads up to one line wide, or of whole lines.
///
/// # Safety
/// The processor must have the instructions; lengths as asserted there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn rotate(
    head: &Head<'_>,
    tokens: Range<usize>,
    rotary: &Rotary,
    scale: f32,
    staged: &[Line],
    out: &mut [Line],
) {
    let (pairs, steps) = (head.width / 2, lines(head.width));
    let rows = Rows::new(head, &tokens, staged);
    let scales = _mm512_set1_ps(scale);
    for (row, token) in tokens.enumerate() {
        let (cosines, sines) = rotary.at(token);
        // SAFETY: rows and columns are within the head, the angles and the tile's rows, which are asserted to
        // be long enough. An aligned head of 16 is read whole; others in pieces of at most 16 that lie within
        // one line: staged rows are whole lines, and so are all others.
        unsafe {
            if head.width == GROUP {
                // Both halves in one vector.
                let x = widen(u16::MAX, rows.at(row, 0));
                let swapped = _mm512_shuffle_f32x4::<0b0100_1110>(x, x);
                let cosines = _mm512_broadcast_f32x8(_mm256_loadu_ps(cosines.as_ptr()));
                let sines = _mm512_broadcast_f32x8(_mm256_loadu_ps(sines.as_ptr()));
                let swapped = _mm512_mask_sub_ps(swapped, 0xff, _mm512_setzero_ps(), swapped);
                let rotated = _mm512_fmadd_ps(x, cosines, _mm512_mul_ps(swapped, sines));
                let rounded = _mm512_cvtneps_pbh(_mm512_mul_ps(rotated, scales));
                let target = out.as_mut_ptr().add(line_of(row, 0, steps));
                _mm256_store_si256(target.cast(), std::mem::transmute::<__m256bh, __m256i>(rounded));
                continue;
            }
            for pair in (0..pairs).step_by(16) {
                let mask = mask(pairs, pair);
                let a = widen(mask, rows.at(row, pair));
                let b = widen(mask, rows.at(row, pairs + pair));
                let cosine = _mm512_maskz_loadu_ps(mask, cosines.as_ptr().add(pair));
                let sine = _mm512_maskz_loadu_ps(mask, sines.as_ptr().add(pair));
                let first = _mm512_fmsub_ps(a, cosine, _mm512_mul_ps(b, sine));
                let second = _mm512_fmadd_ps(b, cosine, _mm512_mul_ps(a, sine));
                for (column, rotated) in [(pair, first), (pairs + pair, second)] {
                    let rounded = _mm512_cvtneps_pbh(_mm512_mul_ps(rotated, scales));
                    let target = out.as_mut_ptr().add(line_of(row, column, steps)).cast::<i16>();
                    let rounded = std::mem::transmute::<__m256bh, __m256i>(rounded);
                    _mm256_mask_storeu_epi16(target.add(column % STEP), mask, rounded);
                }
            }
        }
    }
}

/// See [`super::Kernel::transpose`].
///
/// # Safety
/// The processor must have the instructions; `rows` are 16 lines, `out` 31.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn transpose(rows: *const Line, out: *mut Line) {
    // SAFETY: by the caller's promise.
    let x = unsafe { rows.cast::<[__m512i; GROUP]>().read() };
    // Pairs of rows, then pairs of those: y[4i + k] holds column 4j + k of rows 4i to 4i + 3 in its quarter j.
    let mut y = [_mm512_setzero_si512(); GROUP];
    for i in 0..4 {
        let (low, next_low) = (
            _mm512_unpacklo_epi32(x[4 * i], x[4 * i + 1]),
            _mm512_unpacklo_epi32(x[4 * i + 2], x[4 * i + 3]),
        );
        let (high, next_high) = (
            _mm512_unpackhi_epi32(x[4 * i], x[4 * i + 1]),
            _mm512_unpackhi_epi32(x[4 * i + 2], x[4 * i + 3]),
        );
        y[4 * i] = _mm512_unpacklo_epi64(low, next_low);
        y[4 * i + 1] = _mm512_unpackhi_epi64(low, next_low);
        y[4 * i + 2] = _mm512_unpacklo_epi64(high, next_high);
        y[4 * i + 3] = _mm512_unpackhi_epi64(high, next_high);
    }
    for k in 0..4 {
        // Quarters of four vectors: a 4 × 4 transposition.
        let ab = [_mm512_shuffle_i32x4::<0x88>(y[k], y[4 + k]), _mm512_shuffle_i32x4::<0xdd>(y[k], y[4 + k])];
        let cd = [
            _mm512_shuffle_i32x4::<0x88>(y[8 + k], y[12 + k]),
            _mm512_shuffle_i32x4::<0xdd>(y[8 + k], y[12 + k]),
        ];
        // ab[0]: quarters 0 and 2 of the first, then of the second; ab[1]: 1 and 3.
        let columns = [
            (k, _mm512_shuffle_i32x4::<0x88>(ab[0], cd[0])),
            (4 + k, _mm512_shuffle_i32x4::<0x88>(ab[1], cd[1])),
            (8 + k, _mm512_shuffle_i32x4::<0xdd>(ab[0], cd[0])),
            (12 + k, _mm512_shuffle_i32x4::<0xdd>(ab[1], cd[1])),
        ];
        for (column, vector) in columns {
            // SAFETY: by the caller's promise.
            unsafe { _mm512_store_si512(out.add(2 * column).cast(), vector) };
        }
    }
}

/// See [`super::Kernel::pack_values`].
///
/// # Safety
/// The processor must have the instructions; lengths as asserted there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn pack_values(
    head: &Head<'_>,
    tokens: Range<usize>,
    pairs: usize,
    staged: &[Line],
    out: &mut [Line],
) {
    let rows = Rows::new(head, &tokens, staged);
    let narrow = value_lines(head.width) == 1;
    for index in 0..GROUP {
        let pair = tokens.start / 2 + index;
        for piece in 0..head.width.div_ceil(16) {
            let columns = mask(head.width, 16 * piece);
            let half = |row: usize| {
                let mask = if row < tokens.len() { columns } else { 0 };
                // SAFETY: rows beyond the last are not read; the pieces of a row lie within one line each.
                let bits = unsafe {
                    let from = rows.at(row.min(tokens.len() - 1), 16 * piece);
                    _mm256_maskz_loadu_epi16(mask, from.cast())
                };
                _mm512_cvtepu16_epi32(bits)
            };
            let both = _mm512_or_si512(half(2 * index), _mm512_slli_epi32::<16>(half(2 * index + 1)));
            let line = if narrow { pair } else { (piece / 2 * pairs + pair) * 2 + piece % 2 };
            // SAFETY: within `out` by the assertion.
            unsafe { _mm512_store_si512(out.as_mut_ptr().add(line).cast(), both) };
        }
    }
}

/// See [`super::Kernel::soften`].
///
/// # Safety
/// The processor must have the instructions; lengths as asserted there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn soften(
    scores: &mut [f32],
    stride: usize,
    keys: usize,
    softmax: &mut [Softmax],
    weights: &mut [Line],
) {
    let nothing = _mm512_set1_ps(f32::NEG_INFINITY);
    // At 2^-126 and below, results are denormal, and operations on them take a detour through microcode.
    let least = _mm512_set1_ps(-120.0);
    let steps = lines(keys);
    // Pass by pass over all rows, not row by row: the latency of one row's reductions then hides behind the
    // others'.
    let mut highest = [nothing; TILE_ROWS];
    let mut totals = [_mm512_setzero_ps(); TILE_ROWS];
    // SAFETY: rows are within the scores, with room for whole lines of keys; lines within the weights.
    unsafe {
        for (row, highest) in highest.iter_mut().enumerate().take(softmax.len()) {
            let scores = scores.as_mut_ptr().add(row * stride);
            for first in (keys / 16 * 16..steps * STEP).step_by(16) {
                _mm512_mask_storeu_ps(scores.add(first), !mask(keys, first), nothing);
            }
            let mut second = nothing;
            for step in 0..steps {
                let scores = scores.add(step * STEP);
                *highest = _mm512_max_ps(*highest, _mm512_load_ps(scores));
                second = _mm512_max_ps(second, _mm512_load_ps(scores.add(16)));
            }
            *highest = _mm512_max_ps(*highest, second);
        }
        for (softmax, highest) in softmax.iter_mut().zip(&highest) {
            softmax.raise(_mm512_reduce_max_ps(*highest));
        }
        for (row, (softmax, total)) in softmax.iter().zip(&mut totals).enumerate() {
            let scores = scores.as_ptr().add(row * stride);
            let target = weights.as_mut_ptr().add(line_of(row, 0, steps));
            let maximum = _mm512_set1_ps(softmax.maximum);
            let mut second = _mm512_setzero_ps();
            for step in 0..steps {
                let scores = scores.add(step * STEP);
                // The score comes second, so that NaN stays.
                let left = _mm512_max_ps(least, _mm512_sub_ps(_mm512_load_ps(scores), maximum));
                let right = _mm512_max_ps(least, _mm512_sub_ps(_mm512_load_ps(scores.add(16)), maximum));
                let (left, right) = (exp2(left), exp2(right));
                *total = _mm512_add_ps(*total, left);
                second = _mm512_add_ps(second, right);
                store(target.add(step * GROUP), left, right);
            }
            *total = _mm512_add_ps(*total, second);
        }
        for (softmax, total) in softmax.iter_mut().zip(&totals) {
            softmax.total += _mm512_reduce_add_ps(*total);
        }
    }
}

/// See [`super::Kernel::divide`].
///
/// # Safety
/// The processor must have the instructions; `sums` hold `columns` numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(super) unsafe fn divide(sums: *const f32, total: f32, columns: usize) -> Line {
    let inverse = _mm512_set1_ps(1.0 / total);
    let mut line = Line([0; STEP]);
    // SAFETY: by the caller's promise.
    unsafe {
        let left = _mm512_mul_ps(_mm512_loadu_ps(sums), inverse);
        let right = if columns == STEP { _mm512_loadu_ps(sums.add(16)) } else { _mm512_setzero_ps() };
        store(&raw mut line, left, _mm512_mul_ps(right, inverse));
    }
    line
}
