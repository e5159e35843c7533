//! What the CUDA engine needs of its host: NVIDIA's libraries, an opened device, compiled kernels.
//!
//! Only this part of the program calls CUDA, and only after [`libraries::open`] has found what it calls: the
//! bindings would panic on a library that is missing. A machine without any NVIDIA library gets typed errors.

mod compile;
mod device;
mod error;
pub mod libraries;

pub use compile::{CacheWarning, Modules};
pub use device::{Gpu, GpuMemory, GpuNames};
pub use error::{CudaError, During};
pub use libraries::{CudaLibrary, FoundLibrary, LibraryError};
