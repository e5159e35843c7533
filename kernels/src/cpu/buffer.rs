//! Memory for vectors of `f32`, aligned to cache lines.
//!
//! A 64-byte load that crosses a cache line costs two: AVX-512 needs aligned weights to reach its
//! peak, and `Vec<f32>` promises 4 bytes only.

use bytemuck::Zeroable;
use memmap2::MmapMut;

/// One cache line.
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

const LINE: usize = 16;

/// From this size on, memory comes straight from the system, which has zeroed it: nobody does so twice, and
/// the thread that fills a part of it is the one that waits for its pages.
///
/// Huge pages are not asked for. Where the page cache has taken all memory, as after a model's file was read, the
/// system moves others' pages about for each of them: a fifth of the time of loading. The products walk through
/// weights in order and never noticed the difference.
const MAPPED_FLOATS_MIN: usize = 1 << 20;

/// A zeroed array of `f32` that starts at a cache line.
#[derive(Default)]
pub(crate) struct Buffer {
    memory: Memory,
    len: usize,
}

enum Memory {
    Lines(Vec<Line>),
    Mapped(MmapMut),
}

impl Default for Memory {
    fn default() -> Self {
        Self::Lines(Vec::new())
    }
}

impl Buffer {
    /// Allocates `len` zeros; `None` when memory is short.
    pub(crate) fn zeroed(len: usize) -> Option<Self> {
        if len >= MAPPED_FLOATS_MIN {
            let map = MmapMut::map_anon(len.checked_mul(size_of::<f32>())?).ok()?;
            return Some(Self { memory: Memory::Mapped(map), len });
        }
        let lines_len = len.div_ceil(LINE);
        let mut lines = Vec::new();
        lines.try_reserve_exact(lines_len).ok()?;
        lines.resize(lines_len, Line::zeroed());
        Some(Self { memory: Memory::Lines(lines), len })
    }

    /// Grows to at least `len` numbers, whatever they are; never shrinks.
    pub(crate) fn grow(&mut self, len: usize) {
        if self.len < len {
            let mut lines = Vec::new();
            lines.resize(len.div_ceil(LINE), Line::zeroed());
            *self = Self { memory: Memory::Lines(lines), len };
        }
    }

    /// The first `len` numbers, whatever they are; grows if there are not as many.
    pub(crate) fn at_least(&mut self, len: usize) -> &mut [f32] {
        self.grow(len);
        &mut self.as_mut_slice()[..len]
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        match &self.memory {
            Memory::Lines(lines) => &bytemuck::cast_slice(lines)[..self.len],
            Memory::Mapped(map) => &bytemuck::cast_slice(map)[..self.len],
        }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        match &mut self.memory {
            Memory::Lines(lines) => &mut bytemuck::cast_slice_mut(lines)[..self.len],
            Memory::Mapped(map) => &mut bytemuck::cast_slice_mut(map)[..self.len],
        }
    }
}
