//! What the CUDA engine needs of its host: NVIDIA's libraries, an opened device, compiled kernels.
//!
//! Only this part of the program calls CUDA, and only after [`libraries::open`] has found what it calls: the
//! bindings would panic on a library that is missing. A machine without any NVIDIA library gets typed errors.

pub mod bench;
mod buffer;
mod compile;
mod device;
mod engine;
mod error;
mod gemm;
mod graphs;
mod launch;
pub mod libraries;
pub mod memory;
mod ops;
mod plans;
mod profile;
mod slots;
mod time;
mod upload;

pub use buffer::DeviceBytes;
pub use compile::{CacheWarning, Modules};
pub use device::{Gpu, GpuMemory, GpuNames};
pub use engine::CudaEngine;
pub use error::{CudaError, During};
pub use graphs::GraphUse;
pub use launch::Arg;
pub use libraries::{CudaLibrary, FoundLibrary, LibraryError};
pub use profile::{Profile, WorkClass};
