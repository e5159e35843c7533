//! Matrix products in bfloat16 ("brain float") with f32 sums: twice to sixteen times the speed of f32.
//!
//! Weights are rounded and packed once, at load; activations are rounded block by block on their way into a
//! product. Sums, bias, GELU and the residual stream stay in f32. As with f32, every result element is one
//! chain of additions in a fixed order, whatever else is computed beside it.
//!
//! The register kernel is chosen at run time: AMX tiles where the processor has them and the system grants
//! them, else `vdpbf16ps`. [`Kernel::Plain`] is their twin in plain code, for tests.

use bytemuck::Zeroable;
use half::bf16;
use pulp::{Arch, Simd, WithSimd};

use super::buffer::Buffer;
use super::product::{Ending, finish};
use crate::ops::Epilogue;

/// Rows of a tile: two AMX tiles.
pub(super) const TILE_ROWS: usize = 32;
/// Columns of a tile: two AMX tiles, or two vectors.
const TILE_COLUMNS: usize = 32;
/// Inner dimension of one step of a kernel: a row of an AMX tile.
const STEP: usize = 32;
/// Inner dimension of one block: a panel of weights (32 kB) stays in the first-level cache while all tiles of
/// a row block pass over it.
const DEPTH: usize = 512;

/// Rows of an AMX tile.
const AMX_ROWS: usize = 16;

/// One cache line: a row of an AMX tile. Loads that cross lines would take twice as long.
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
pub(super) struct Line([u16; STEP]);

/// How a tile is computed.
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

impl Kernel {
    /// The fastest kernel of this machine; `None` where bfloat16 would be slower than f32.
    pub(super) fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            // The conversion of activations is AVX512_BF16 in either case; every processor with AMX has it.
            let converts = std::arch::is_x86_feature_detected!("avx512f")
                && std::arch::is_x86_feature_detected!("avx512bw")
                && std::arch::is_x86_feature_detected!("avx512bf16");
            if !converts {
                return None;
            }
            Some(if x86::amx_is_granted() { Self::Amx } else { Self::Dot })
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

    /// Rounds `x`, to nearest, ties to even, into every [`AMX_ROWS`]th line of `out`; zeros follow the last.
    fn round(self, x: &[f32], out: &mut [Line]) {
        assert!(out.len() > (x.len().div_ceil(STEP) - 1) * AMX_ROWS);
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: both kernels are only made where AVX512_BF16 was detected.
            Self::Amx | Self::Dot => unsafe { x86::round(x, out) },
            Self::Plain => {
                for (x, out) in x.chunks(STEP).zip(out.iter_mut().step_by(AMX_ROWS)) {
                    *out = Line::zeroed();
                    for (out, x) in out.0.iter_mut().zip(x) {
                        *out = bf16::from_f32(*x).to_bits();
                    }
                }
            }
        }
    }

    /// Computes a tile: [`TILE_ROWS`] rows of `a` times one panel.
    ///
    /// `a`: [2, `steps`, [`AMX_ROWS`]] lines. `panel`: [inner dimension / 2, [`TILE_COLUMNS`], 2].
    /// `sums`: [[`TILE_ROWS`], [`TILE_COLUMNS`]].
    #[inline]
    fn tile(self, a: &[Line], panel: &[Line], steps: usize, sums: &mut [f32; TILE_ROWS * TILE_COLUMNS]) {
        let lines = steps * TILE_ROWS;
        assert!(a.len() >= lines && panel.len() >= lines && steps > 0);
        let (a, panel) = (a.as_ptr().cast::<bf16>(), panel.as_ptr().cast::<bf16>());
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: made only where the processor has it; `Configured` has set the tiles up; the lengths were
            // asserted.
            Self::Amx => unsafe { x86::amx_tile(a, panel, steps, sums.as_mut_ptr()) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: made only where the processor has it; the lengths were asserted.
            Self::Dot => unsafe { x86::dot_tile(a, panel, steps, sums.as_mut_ptr()) },
            Self::Plain => {
                // SAFETY: the lengths were asserted.
                let (a, panel) = unsafe {
                    let numbers = lines * STEP;
                    (std::slice::from_raw_parts(a, numbers), std::slice::from_raw_parts(panel, numbers))
                };
                for (row, sums) in sums.chunks_exact_mut(TILE_COLUMNS).enumerate() {
                    for (column, sum) in sums.iter_mut().enumerate() {
                        *sum = 0.0;
                        for inner in 0..steps * STEP {
                            let weight = panel[(inner / 2 * TILE_COLUMNS + column) * 2 + inner % 2];
                            let line = (row / AMX_ROWS * steps + inner / STEP) * AMX_ROWS + row % AMX_ROWS;
                            *sum += a[line * STEP + inner % STEP].to_f32() * weight.to_f32();
                        }
                    }
                }
            }
        }
    }
}

/// AMX tiles set up for this thread until dropped; for other kernels, nothing.
struct Configured(Kernel);

impl Configured {
    fn new(kernel: Kernel) -> Self {
        #[cfg(target_arch = "x86_64")]
        if kernel == Kernel::Amx {
            // SAFETY: made only where the system has granted AMX.
            unsafe { x86::configure() };
        }
        Self(kernel)
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.0 == Kernel::Amx {
            // SAFETY: as in `new`. An idle thread whose tiles are in use costs the system on every switch.
            unsafe { x86::release() };
        }
    }
}

/// A linear layer's weights, rounded, in panels, and its bias in f32.
pub(crate) struct BrainLinear {
    kernel: Kernel,
    inputs: usize,
    outputs: usize,
    /// Per depth block, per panel: [block depth / 2, [`TILE_COLUMNS`], 2]; inputs and columns beyond the
    /// layer's are zero.
    values: Vec<Line>,
    /// [outputs], then zeros to a whole panel.
    bias: Buffer,
}

impl BrainLinear {
    /// Packs rows of weights ([outputs, inputs] each, stacked); `None` when memory is short.
    pub(super) fn pack(kernel: Kernel, parts: &[(Vec<f32>, Vec<f32>)], inputs: usize) -> Option<Self> {
        let outputs: usize = parts.iter().map(|(_, bias)| bias.len()).sum();
        let panels = outputs.div_ceil(TILE_COLUMNS);
        let columns = panels * TILE_COLUMNS;
        let mut values = Vec::new();
        values.try_reserve_exact(columns * inputs.div_ceil(STEP)).ok()?;
        values.resize(columns * inputs.div_ceil(STEP), Line::zeroed());
        let packed: &mut [u16] = bytemuck::cast_slice_mut(&mut values);
        let mut bias = Buffer::zeroed(columns)?;
        let mut column = 0;
        for (weight, part_bias) in parts {
            bias.as_mut_slice()[column..column + part_bias.len()].copy_from_slice(part_bias);
            for row in weight.chunks_exact(inputs) {
                for (start, block) in (0..inputs).step_by(DEPTH).zip(row.chunks(DEPTH)) {
                    let depth = block.len().next_multiple_of(STEP);
                    let first = start * columns + column / TILE_COLUMNS * depth * TILE_COLUMNS;
                    for (inner, value) in block.iter().enumerate() {
                        let at = first + (inner / 2 * TILE_COLUMNS + column % TILE_COLUMNS) * 2 + inner % 2;
                        packed[at] = bf16::from_f32(*value).to_bits();
                    }
                }
                column += 1;
            }
        }
        Some(Self { kernel, inputs, outputs, values, bias })
    }

    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(super) fn bytes(&self) -> u64 {
        (size_of_val(self.values.as_slice()) + 4 * self.bias.as_slice().len()) as u64
    }

    /// Applies the layer to `x` [rows, inputs].
    ///
    /// `rounded`: scratch memory. `out`: [rows, outputs].
    pub(super) fn apply(
        &self,
        arch: Arch,
        x: &[f32],
        epilogue: Epilogue,
        rounded: &mut Vec<Line>,
        out: &mut [f32],
    ) {
        arch.dispatch(Apply { linear: self, x, epilogue, rounded, out });
    }
}

struct Apply<'a> {
    linear: &'a BrainLinear,
    x: &'a [f32],
    epilogue: Epilogue,
    rounded: &'a mut Vec<Line>,
    out: &'a mut [f32],
}

/// Sums of one tile at the start of a cache line.
#[repr(align(64))]
struct Sums([f32; TILE_ROWS * TILE_COLUMNS]);

impl WithSimd for Apply<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { linear, x, epilogue, rounded, out } = self;
        let BrainLinear { kernel, inputs, outputs, .. } = *linear;
        let rows = out.len() / outputs;
        let panels = outputs.div_ceil(TILE_COLUMNS);
        let tiles_rows = rows.next_multiple_of(TILE_ROWS);
        let configured = Configured::new(kernel);
        let mut sums = Sums([0.0; TILE_ROWS * TILE_COLUMNS]);
        for start in (0..inputs).step_by(DEPTH) {
            let width = DEPTH.min(inputs - start);
            let depth = width.next_multiple_of(STEP);
            let steps = depth / STEP;
            // Rows beyond the last may hold anything: they meet no others, and are not stored.
            if rounded.len() < tiles_rows * steps {
                rounded.resize(tiles_rows * steps, Line::zeroed());
            }
            for (row, x) in x.chunks_exact(inputs).enumerate() {
                let first = row / AMX_ROWS * steps * AMX_ROWS + row % AMX_ROWS;
                kernel.round(&x[start..start + width], &mut rounded[first..]);
            }
            let block =
                &linear.values[start / STEP * panels * TILE_COLUMNS..][..panels * TILE_COLUMNS * steps];
            let add = start > 0 || epilogue == Epilogue::Residual;
            let ending = Ending::of(epilogue, start + width == inputs);
            for (index, weights) in block.chunks_exact(steps * TILE_COLUMNS).enumerate() {
                let column = index * TILE_COLUMNS;
                let (biases, _) = S::as_simd_f32s(&linear.bias.as_slice()[column..column + TILE_COLUMNS]);
                let columns = TILE_COLUMNS.min(outputs - column);
                for first in (0..rows).step_by(TILE_ROWS) {
                    kernel.tile(&rounded[first * steps..], weights, steps, &mut sums.0);
                    let count = TILE_ROWS.min(rows - first);
                    for (row, sums) in sums.0.chunks_exact(TILE_COLUMNS).take(count).enumerate() {
                        let (sums, _) = S::as_simd_f32s(sums);
                        let target = &mut out[(first + row) * outputs + column..][..columns];
                        let (whole, tail) = S::as_mut_simd_f32s(target);
                        for (target, (sum, bias)) in whole.iter_mut().zip(sums.iter().zip(biases)) {
                            *target = finish(simd, *sum, *target, add, *bias, ending);
                        }
                        if let (false, Some(sum), Some(bias)) =
                            (tail.is_empty(), sums.get(whole.len()), biases.get(whole.len()))
                        {
                            let old = simd.partial_load_f32s(tail);
                            simd.partial_store_f32s(tail, finish(simd, *sum, old, add, *bias, ending));
                        }
                    }
                }
            }
        }
        drop(configured);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;
    use std::sync::OnceLock;

    use half::bf16;

    use super::{AMX_ROWS, Line, STEP, TILE_COLUMNS, TILE_ROWS};

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

    /// A tile with AMX; see [`super::Kernel::tile`].
    ///
    /// # Safety
    /// Tiles must be set up by [`configure`]; `a`, `panel` and `steps` (at least 1) must have the lengths that
    /// `tile` asserts, `sums` 32 rows of 32 numbers.
    pub(super) unsafe fn amx_tile(a: *const bf16, panel: *const bf16, steps: usize, sums: *mut f32) {
        // SAFETY: by the caller's promise; each step reads two times 16 lines of `a` and 16 rows of 128 bytes of
        // the panel, the end writes 32 rows of 128 bytes.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{upper} + {line}*1]",
                "tileloadd tmm6, [{panel} + {row}*1]",
                "tileloadd tmm7, [{panel} + {row}*1 + 64]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{lower} + {line}*1]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {upper}, 1024",
                "add {lower}, 1024",
                "add {panel}, 2048",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {row}*1], tmm0",
                "tilestored [{sums} + {row}*1 + 64], tmm1",
                "tilestored [{sums} + {row}*1 + 2048], tmm2",
                "tilestored [{sums} + {row}*1 + 2112], tmm3",
                upper = inout(reg) a => _,
                lower = inout(reg) a.add(AMX_ROWS * STEP * steps) => _,
                panel = inout(reg) panel => _,
                steps = inout(reg) steps => _,
                line = in(reg) size_of::<Line>(),
                row = in(reg) TILE_COLUMNS * size_of::<f32>(),
                sums = in(reg) sums,
                options(nostack)
            );
        }
    }

    /// A tile with `vdpbf16ps`; see [`super::Kernel::tile`].
    ///
    /// # Safety
    /// The processor must have AVX512F and AVX512_BF16; lengths as of [`amx_tile`].
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) unsafe fn dot_tile(a: *const bf16, panel: *const bf16, steps: usize, sums: *mut f32) {
        /// Rows at once: 16 sums, and as few loads of weights as registers allow.
        const ROWS: usize = 8;
        for first in (0..TILE_ROWS).step_by(ROWS) {
            let rows = (first / AMX_ROWS * steps * AMX_ROWS + first % AMX_ROWS) * STEP;
            let mut totals = [[_mm512_setzero_ps(); 2]; ROWS];
            for pair in 0..steps * STEP / 2 {
                // SAFETY: by the caller's promise; both stay within the lengths given.
                unsafe {
                    let weights = panel.add(pair * 2 * TILE_COLUMNS);
                    let left: __m512bh = std::mem::transmute(_mm512_loadu_si512(weights.cast()));
                    let right: __m512bh =
                        std::mem::transmute(_mm512_loadu_si512(weights.add(TILE_COLUMNS).cast()));
                    for (row, totals) in totals.iter_mut().enumerate() {
                        let at = pair / AMX_ROWS * AMX_ROWS * STEP + row * STEP + pair % AMX_ROWS * 2;
                        let x = a.add(rows + at).cast::<i32>().read();
                        let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(x));
                        totals[0] = _mm512_dpbf16_ps(totals[0], x, left);
                        totals[1] = _mm512_dpbf16_ps(totals[1], x, right);
                    }
                }
            }
            for (row, totals) in totals.into_iter().enumerate() {
                // SAFETY: `sums` has 32 rows of 32 numbers.
                unsafe {
                    let target = sums.add((first + row) * TILE_COLUMNS);
                    _mm512_storeu_ps(target, totals[0]);
                    _mm512_storeu_ps(target.add(16), totals[1]);
                }
            }
        }
    }

    /// Rounds `x` into every 16th line of `out`, which must be long enough.
    ///
    /// # Safety
    /// The processor must have AVX512F, AVX512BW and AVX512_BF16.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(super) unsafe fn round(x: &[f32], out: &mut [Line]) {
        for (x, out) in x.chunks(STEP).zip(out.iter_mut().step_by(AMX_ROWS)) {
            let mask = |from: usize| ((1u32 << x.len().saturating_sub(from).min(16)) - 1) as u16;
            // SAFETY: masked loads touch only what is within `x`.
            let (left, right) = unsafe {
                (
                    _mm512_maskz_loadu_ps(mask(0), x.as_ptr()),
                    _mm512_maskz_loadu_ps(mask(16), x.as_ptr().wrapping_add(16)),
                )
            };
            let rounded = _mm512_cvtne2ps_pbh(right, left);
            // SAFETY: a line is 64 bytes, aligned; both types are plain bits.
            unsafe {
                _mm512_store_si512(
                    std::ptr::from_mut(out).cast(),
                    std::mem::transmute::<__m512bh, __m512i>(rounded),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernels() -> Vec<Kernel> {
        let mut kernels = vec![Kernel::Plain];
        kernels.extend(Kernel::detect());
        #[cfg(target_arch = "x86_64")]
        if Kernel::detect() == Some(Kernel::Amx) {
            kernels.push(Kernel::Dot);
        }
        kernels
    }

    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| (((i + seed) * 7_919 % 1_009) as f32 - 504.0) / 300.0).collect()
    }

    #[test]
    fn every_kernel_multiplies_what_was_rounded() {
        let mut rounded = Vec::new();
        for (rows, inputs, outputs) in
            [(1, 1, 1), (24, 64, 33), (33, 100, 47), (48, 513, 32), (40, 1_100, 65)]
        {
            let (x, weight, bias) =
                (numbers(rows * inputs, 1), numbers(outputs * inputs, 2), numbers(outputs, 3));
            let parts = [(weight.clone(), bias.clone())];
            let round = |value: f32| f64::from(bf16::from_f32(value).to_f32());
            for kernel in kernels() {
                let linear = BrainLinear::pack(kernel, &parts, inputs).unwrap();
                for epilogue in [Epilogue::Bias, Epilogue::Gelu, Epilogue::Residual] {
                    let mut out = vec![3.0; rows * outputs];
                    linear.apply(Arch::new(), &x, epilogue, &mut rounded, &mut out);
                    for row in 0..rows {
                        for column in 0..outputs {
                            let products = (0..inputs)
                                .map(|i| round(x[row * inputs + i]) * round(weight[column * inputs + i]));
                            let sum = products.sum::<f64>() + f64::from(bias[column]);
                            let expected = match epilogue {
                                Epilogue::Bias => sum,
                                Epilogue::Gelu => 0.5 * sum * libm::erfc(-sum / std::f64::consts::SQRT_2),
                                Epilogue::Residual => sum + 3.0,
                            };
                            let got = f64::from(out[row * outputs + column]);
                            assert!(
                                (got - expected).abs() < 2e-5 * (inputs as f64).sqrt() * 4.0,
                                "{kernel:?} {rows}x{inputs}x{outputs} {epilogue:?} [{row}, {column}]: {got}, expected {expected}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        let (inputs, outputs) = (96, 40);
        let x = numbers(70 * inputs, 5);
        let parts = [(numbers(outputs * inputs, 2), numbers(outputs, 3))];
        for kernel in kernels() {
            let linear = BrainLinear::pack(kernel, &parts, inputs).unwrap();
            let apply = |x: &[f32]| {
                let mut out = vec![0.0; x.len() / inputs * outputs];
                linear.apply(Arch::new(), x, Epilogue::Bias, &mut Vec::new(), &mut out);
                out
            };
            let all = apply(&x);
            let mut poisoned = x.clone();
            poisoned[..20 * inputs].fill(f32::NAN);
            assert_eq!(apply(&x[33 * inputs..34 * inputs]), all[33 * outputs..34 * outputs], "{kernel:?}");
            assert_eq!(apply(&poisoned)[20 * outputs..], all[20 * outputs..], "{kernel:?}");
        }
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        let x = [1.0, 1.003_906_3, 1.011_718_8, -2.5, f32::INFINITY, 0.0, 1e-3, 65_504.0];
        let long: Vec<f32> = x.iter().copied().cycle().take(37).collect();
        for kernel in kernels() {
            let mut out = [Line([7; STEP]); AMX_ROWS + 1];
            kernel.round(&long, &mut out);
            let mut expected: Vec<u16> = long.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
            expected.resize(2 * STEP, 0);
            assert_eq!(out[0].0, expected[..STEP], "{kernel:?}");
            assert_eq!(out[AMX_ROWS].0, expected[STEP..], "{kernel:?}");
            assert_eq!(out[1].0, [7; STEP], "{kernel:?}");
        }
    }
}
