//! The kernels of the CUDA engine as data, and what each computes in plain Rust.
//!
//! Compiled on every machine and free of any CUDA library: the sources are text, a launch is numbers,
//! a twin is a loop. What loads libraries, compiles and launches is in [`host`].

mod entry;
#[cfg(feature = "cuda")]
pub mod host;
mod launch;
mod sources;
mod support;
pub mod twin;

pub use entry::{Loaded, load, token_budget};
#[cfg(feature = "cuda")]
pub use host::{CudaEngine, Gpu, bench};

pub use launch::{
    EMPTY_TILE, Launch, ROTARY_HEAD_WIDTHS, ROTATED_BEYOND, TILE_ROWS, attention_scale, rotary_angles,
    rows_before, tiles,
};
pub use sources::{COMPILE_OPTIONS, Kernel, Number, Source};
pub use support::{CudaLibraryReport, CudaSupport};
