//! Memory for vectors of `f32`, aligned to cache lines.
//!
//! A 64-byte load that crosses a cache line costs two: AVX-512 needs aligned weights to reach its
//! peak, and `Vec<f32>` promises 4 bytes only.

use bytemuck::Zeroable;

/// One cache line.
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

const LINE: usize = 16;

/// A zeroed array of `f32` that starts at a cache line.
#[derive(Default)]
pub(crate) struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

impl Buffer {
    /// Allocates `len` zeros; `None` when memory is short.
    pub(crate) fn zeroed(len: usize) -> Option<Self> {
        let lines_len = len.div_ceil(LINE);
        let mut lines = Vec::new();
        lines.try_reserve_exact(lines_len).ok()?;
        lines.resize(lines_len, Line::zeroed());
        Some(Self { lines, len })
    }

    /// Grows to at least `len` numbers, whatever they are; never shrinks.
    pub(crate) fn grow(&mut self, len: usize) {
        if self.len < len {
            self.lines.resize(len.div_ceil(LINE), Line::zeroed());
            self.len = len;
        }
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}
