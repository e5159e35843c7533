//! Why NVML does not answer, in sentences that say what to do.

use nvml_wrapper::error::NvmlError as Cause;

/// Why NVML does not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NvmlError {
    /// The library is not on this machine.
    #[error(
        "the NVIDIA management library ({names}) is not found: it comes with the NVIDIA driver (Debian: \
         libnvidia-ml1; Ubuntu: libnvidia-compute-<driver version>; RHEL: libnvidia-ml, or nvidia-driver-NVML before \
         driver 560), and into a container with `--gpus all` and NVIDIA_DRIVER_CAPABILITIES=compute,utility; \
         name its file in VIRNUCPRO_NVML if it is elsewhere"
    )]
    LibraryMissing {
        /// The names that were tried.
        names: String,
    },
    /// There is such a file, and it does not load or start.
    #[error(
        "the NVIDIA management library `{name}` cannot be used ({reason}): install the driver's packages again"
    )]
    LibraryUnusable {
        /// The file as it was asked for.
        name: String,
        /// What the loader or the library said.
        reason: String,
    },
    /// The library lacks functions that every supported driver has.
    #[error("the NVIDIA driver of `{name}` is too old: install driver 525 or later")]
    LibraryTooOld {
        /// The file as it was asked for.
        name: String,
    },
    /// The library is there, the kernel's part is not.
    #[error(
        "the NVIDIA driver is installed but not loaded: load it with `modprobe nvidia`, restart the machine after an \
         installation, and start a container with `--gpus all`"
    )]
    DriverNotLoaded,
    /// The driver was updated while its older self is still loaded.
    #[error(
        "the loaded NVIDIA driver and its libraries are of different versions, as after an update: restart the machine"
    )]
    VersionsDiffer,
    /// The operating system keeps this process from the driver.
    #[error(
        "this user may not talk to the NVIDIA driver: give access to /dev/nvidiactl and /dev/nvidia*, usually by the \
         groups `video` or `render`"
    )]
    NoPermission,
    /// It does not even say how many GPUs there are.
    #[error("the NVIDIA driver does not count its GPUs ({reason}): see what `nvidia-smi` says")]
    Uncounted {
        /// What it said instead.
        reason: String,
    },
    /// No GPU of this name.
    #[error("there is no GPU `{gpu}` here: `nvidia-smi -L` lists those there are")]
    NoSuchGpu {
        /// The name that was asked for.
        gpu: String,
    },
    /// The GPU was there and is no more.
    #[error(
        "GPU `{gpu}` is lost: {reason}; the kernel's log (`dmesg`, lines with NVRM) says why, and a reset or a \
             restart of the machine may bring it back"
    )]
    Lost {
        /// Its name.
        gpu: String,
        /// What the driver means.
        reason: &'static str,
    },
    /// Another answer that is none.
    #[error("the driver tells nothing about GPU `{gpu}`: {reason}")]
    Silent {
        /// Its name.
        gpu: String,
        /// What it said instead.
        reason: String,
    },
}

impl NvmlError {
    /// What an answer means that was given for this GPU.
    pub(super) fn of_gpu(gpu: &str, error: &Cause) -> Self {
        let gpu = gpu.to_owned();
        match error {
            Cause::NotFound | Cause::InvalidArg => Self::NoSuchGpu { gpu },
            Cause::NoPermission => Self::NoPermission,
            error => match loss(error) {
                Some(reason) => Self::Lost { gpu, reason },
                None => Self::Silent { gpu, reason: error.to_string() },
            },
        }
    }

    /// Whether the GPU was there and is no more.
    pub fn is_loss(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

/// Whether the driver has given the GPU up, and how it puts that.
pub(super) fn loss(error: &Cause) -> Option<&'static str> {
    match error {
        Cause::GpuLost => Some("it has fallen off the bus or does not answer"),
        Cause::ResetRequired => Some("it must be reset before it can be used again"),
        _ => None,
    }
}
