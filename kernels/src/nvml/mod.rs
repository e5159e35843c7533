//! NVIDIA GPUs as the driver's management library (NVML) sees them: which there are and how they fare.
//!
//! The library is found at run time: a machine without it is the usual case and gets an ordinary answer.
//! `doctor` and the monitors ask. Every call may block, for long when a GPU is about to be lost, so callers
//! ask from a thread of their own. Nothing here changes a GPU or computes on it.

mod error;
mod gpu;
mod inventory;
mod library;
mod sample;

pub use error::NvmlError;
pub use gpu::{Capability, Gpu, GpuIdentity};
pub use inventory::{InstalledGpu, inventory};
#[cfg(feature = "cuda")]
pub(crate) use library::DRIVER_FOLDERS;
pub use library::Library;
pub use sample::{GpuProcess, GpuSample, XidTally, xid_meaning};

use serde::{Deserialize, Serialize};

/// The management library, started; stopped when dropped.
#[derive(Debug)]
pub struct Nvml {
    library: nvml_wrapper::Nvml,
}

/// Versions of the driver; each `None` where it does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Driver {
    /// The driver's own, such as `580.82.07`.
    pub version: Option<String>,
    /// Newest CUDA that it runs: major, minor.
    pub cuda: Option<(u32, u32)>,
}

impl Nvml {
    /// Loads and starts the library.
    ///
    /// # Errors
    /// If there is none or it does not start, in one sentence with what to do.
    pub fn open(library: &Library) -> Result<Self, NvmlError> {
        library.start().map(|library| Self { library })
    }

    /// What the driver says about itself.
    pub fn driver(&self) -> Driver {
        let cuda = self.library.sys_cuda_driver_version().ok();
        let cuda = cuda.and_then(|version| u32::try_from(version).ok());
        Driver {
            version: self.library.sys_driver_version().ok(),
            cuda: cuda.map(|version| (version / 1000, version % 1000 / 10)),
        }
    }

    /// Every GPU that this process may see, by index; one that is lost is an error in its place.
    ///
    /// # Errors
    /// If the library cannot count them.
    pub fn gpus(&self) -> Result<Vec<Result<Gpu<'_>, NvmlError>>, NvmlError> {
        let count = self.library.device_count();
        let count = count.map_err(|error| NvmlError::Uncounted { reason: error.to_string() })?;
        Ok((0..count).map(|index| self.gpu(&index.to_string())).collect())
    }

    /// One GPU by index (in the order of `nvidia-smi`), UUID, MIG UUID or PCI id (`[domain:]bus:device.function`).
    ///
    /// # Errors
    /// If there is no such GPU or it is lost.
    pub fn gpu(&self, which: &str) -> Result<Gpu<'_>, NvmlError> {
        let found = if let Ok(index) = which.parse::<u32>() {
            self.library.device_by_index(index)
        } else if which.starts_with("GPU-") || which.starts_with("MIG-") {
            self.library.device_by_uuid(which)
        } else if which.matches(':').count() == 1 {
            self.library.device_by_pci_bus_id(format!("0000:{which}"))
        } else {
            self.library.device_by_pci_bus_id(which)
        };
        Gpu::read(found.map_err(|error| NvmlError::of_gpu(which, &error))?, which)
    }
}
