//! What can go wrong with CUDA, and what the rest of the program does about it.

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::sys::cublasStatus_t;
use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;
use cudarc::nvrtc::result::NvrtcError;
use cudarc::nvrtc::sys::nvrtcResult;

use super::libraries::LibraryError;
use crate::EngineError;

/// Why something with CUDA failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// Libraries are missing or cannot be used.
    #[error("{}", sentences(.0))]
    Libraries(Vec<LibraryError>),
    /// No GPU of the name asked for.
    #[error("{selector}: {reason}")]
    NoSuchGpu {
        /// The GPU, as it was asked for.
        selector: String,
        /// Which there are, and how they are chosen.
        reason: String,
    },
    /// The GPU is there, and cannot do what was asked for.
    #[error("{gpu} {reason}")]
    Unsupported {
        /// The GPU's name.
        gpu: String,
        /// What it lacks, and what to do.
        reason: String,
    },
    /// A call to the driver failed.
    #[error("{doing} failed with {code:?}{}", words(*code))]
    Driver {
        /// What was tried.
        doing: &'static str,
        /// What the driver answered.
        code: CUresult,
    },
    /// A call to cuBLASLt failed.
    #[error("{doing} failed with {status:?}")]
    Blas {
        /// What was tried.
        doing: &'static str,
        /// What the library answered.
        status: cublasStatus_t,
    },
    /// A product was not started although the device works.
    #[error("{doing} was refused with {status:?}")]
    Refused {
        /// What was tried.
        doing: &'static str,
        /// What the library answered.
        status: cublasStatus_t,
    },
    /// A call to the run-time compiler failed, other than for what it compiled.
    #[error("{doing} failed with {status:?}")]
    Nvrtc {
        /// What was tried.
        doing: &'static str,
        /// What the compiler answered.
        status: nvrtcResult,
    },
    /// A kernel does not compile.
    #[error("{file} does not compile for {architecture} with NVRTC {}.{}:\n{log}", version.0, version.1)]
    Compile {
        /// The source.
        file: &'static str,
        /// The architecture compiled for.
        architecture: String,
        /// The compiler's version.
        version: (u32, u32),
        /// What the compiler wrote.
        log: String,
    },
    /// A kernel was asked for that was not loaded, a fault of this program.
    #[error("the kernel `{name}` is not among those that were loaded")]
    NotLoaded {
        /// Its name.
        name: String,
    },
}

fn sentences(errors: &[LibraryError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// What a failure of the driver means for the one who runs it, where its name does not tell.
fn words(code: CUresult) -> &'static str {
    use CUresult as C;
    match code {
        C::CUDA_ERROR_ECC_UNCORRECTABLE => {
            ": the GPU's memory is damaged; reset it (`nvidia-smi -r`) and see `nvidia-smi -q -d ECC,ROW_REMAPPER`"
        }
        C::CUDA_ERROR_ILLEGAL_ADDRESS
        | C::CUDA_ERROR_MISALIGNED_ADDRESS
        | C::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | C::CUDA_ERROR_INVALID_PC
        | C::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | C::CUDA_ERROR_HARDWARE_STACK_ERROR
        | C::CUDA_ERROR_ASSERT
        | C::CUDA_ERROR_LAUNCH_FAILED
        | C::CUDA_ERROR_TENSOR_MEMORY_LEAK => {
            ": a kernel was stopped; the kernel's log (`dmesg`, lines with NVRM: Xid) says whether the hardware is at \
             fault"
        }
        C::CUDA_ERROR_LAUNCH_TIMEOUT => {
            ": a kernel ran longer than the driver allows on a GPU with a display; use another GPU or fewer tokens"
        }
        C::CUDA_ERROR_NVLINK_UNCORRECTABLE | C::CUDA_ERROR_EXTERNAL_DEVICE => {
            ": a link of the GPU failed; see `nvidia-smi nvlink -e` and the kernel's log"
        }
        C::CUDA_ERROR_DEVICE_UNAVAILABLE => {
            ": another process holds the GPU for itself; see `nvidia-smi` for its processes and its compute mode"
        }
        C::CUDA_ERROR_NO_DEVICE => ": the driver sees no GPU; see `nvidia-smi -L` and CUDA_VISIBLE_DEVICES",
        C::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | C::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            ": the loaded driver and libcuda are of different versions; restart the machine, or take CUDA's \
             compatibility folder out of LD_LIBRARY_PATH"
        }
        C::CUDA_ERROR_SYSTEM_NOT_READY => {
            ": the machine's fabric manager is not running; start `nvidia-fabricmanager`"
        }
        C::CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER | C::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            ": the NVIDIA driver is too old; install a newer one"
        }
        C::CUDA_ERROR_STUB_LIBRARY => {
            ": libcuda is the toolkit's stub; take its folder `stubs` out of LD_LIBRARY_PATH"
        }
        C::CUDA_ERROR_NO_BINARY_FOR_GPU => {
            ": the kernels do not fit this GPU; delete the cache of kernels and install a newer NVRTC"
        }
        _ => "",
    }
}

/// Who has to do something about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Memory,
    Batch,
    Device,
    Installation,
}

impl CudaError {
    fn class(&self) -> Class {
        match self {
            Self::Libraries(_) | Self::Unsupported { .. } | Self::Compile { .. } | Self::NotLoaded { .. } => {
                Class::Installation
            }
            Self::NoSuchGpu { .. } => Class::Device,
            Self::Driver { code, .. } => driver_class(*code),
            Self::Blas { status, .. } => blas_class(*status),
            Self::Refused { .. } => Class::Batch,
            Self::Nvrtc { status: nvrtcResult::NVRTC_ERROR_OUT_OF_MEMORY, .. } => Class::Batch,
            Self::Nvrtc { .. } => Class::Installation,
        }
    }

    /// Whether the device has too little memory left.
    pub fn is_out_of_memory(&self) -> bool {
        self.class() == Class::Memory
    }

    /// Whether no call in this process can succeed any more.
    pub fn is_sticky(&self) -> bool {
        self.class() == Class::Device
    }

    /// Whether cuBLASLt refused an algorithm, which another one may put right.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
            || matches!(self, Self::Blas { .. } if self.class() == Class::Batch)
    }

    /// Whether cuBLASLt has no algorithm for what was asked.
    pub(super) fn is_unsupported(&self) -> bool {
        matches!(self, Self::Blas { status: cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED, .. })
    }

    /// What it means for an engine that was running a batch of `tokens`, 0 if it was not.
    pub fn into_engine_error(self, tokens: usize) -> EngineError {
        match self.class() {
            Class::Memory => EngineError::OutOfMemory { tokens },
            Class::Batch => EngineError::Batch(self.to_string()),
            Class::Device => EngineError::Device(self.to_string()),
            Class::Installation => EngineError::Model(self.to_string()),
        }
    }

    /// What it means while the GPU is opened or an engine is put on it.
    pub fn into_load_error(self) -> EngineError {
        short_of_memory(self.into_engine_error(0))
    }
}

/// Running out of memory while an engine is loaded, where there is no batch to split. Later there may be memory again.
pub(super) fn short_of_memory(error: EngineError) -> EngineError {
    match error {
        EngineError::OutOfMemory { .. } => EngineError::Device(
            "another process took the GPU's memory while the engine was loaded; see `nvidia-smi`".into(),
        ),
        error => error,
    }
}

fn driver_class(code: CUresult) -> Class {
    use CUresult as C;
    match code {
        C::CUDA_ERROR_OUT_OF_MEMORY => Class::Memory,
        // The context is lost with all that is in it, or the device cannot be had at all.
        C::CUDA_ERROR_NOT_INITIALIZED
        | C::CUDA_ERROR_DEINITIALIZED
        | C::CUDA_ERROR_DEVICE_UNAVAILABLE
        | C::CUDA_ERROR_NO_DEVICE
        | C::CUDA_ERROR_INVALID_DEVICE
        | C::CUDA_ERROR_DEVICE_NOT_LICENSED
        | C::CUDA_ERROR_INVALID_CONTEXT
        | C::CUDA_ERROR_ECC_UNCORRECTABLE
        | C::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | C::CUDA_ERROR_CONTAINED
        | C::CUDA_ERROR_OPERATING_SYSTEM
        | C::CUDA_ERROR_ILLEGAL_ADDRESS
        | C::CUDA_ERROR_LAUNCH_TIMEOUT
        | C::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | C::CUDA_ERROR_ASSERT
        | C::CUDA_ERROR_HARDWARE_STACK_ERROR
        | C::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | C::CUDA_ERROR_MISALIGNED_ADDRESS
        | C::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | C::CUDA_ERROR_INVALID_PC
        | C::CUDA_ERROR_LAUNCH_FAILED
        | C::CUDA_ERROR_TENSOR_MEMORY_LEAK
        | C::CUDA_ERROR_SYSTEM_NOT_READY
        | C::CUDA_ERROR_MPS_CONNECTION_FAILED
        | C::CUDA_ERROR_MPS_RPC_FAILURE
        | C::CUDA_ERROR_MPS_SERVER_NOT_READY
        | C::CUDA_ERROR_MPS_MAX_CLIENTS_REACHED
        | C::CUDA_ERROR_MPS_MAX_CONNECTIONS_REACHED
        | C::CUDA_ERROR_MPS_CLIENT_TERMINATED
        | C::CUDA_ERROR_EXTERNAL_DEVICE
        | C::CUDA_ERROR_UNKNOWN => Class::Device,
        // Another try on this machine cannot end otherwise.
        C::CUDA_ERROR_STUB_LIBRARY
        | C::CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER
        | C::CUDA_ERROR_NO_BINARY_FOR_GPU
        | C::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | C::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
        | C::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => Class::Installation,
        _ => Class::Batch,
    }
}

fn blas_class(status: cublasStatus_t) -> Class {
    use cublasStatus_t as S;
    match status {
        S::CUBLAS_STATUS_ALLOC_FAILED => Class::Memory,
        S::CUBLAS_STATUS_NOT_INITIALIZED
        | S::CUBLAS_STATUS_MAPPING_ERROR
        | S::CUBLAS_STATUS_EXECUTION_FAILED
        | S::CUBLAS_STATUS_INTERNAL_ERROR => Class::Device,
        S::CUBLAS_STATUS_ARCH_MISMATCH | S::CUBLAS_STATUS_LICENSE_ERROR => Class::Installation,
        S::CUBLAS_STATUS_SUCCESS | S::CUBLAS_STATUS_INVALID_VALUE | S::CUBLAS_STATUS_NOT_SUPPORTED => {
            Class::Batch
        }
    }
}

/// Says what was being done when a call failed.
pub trait During<T> {
    /// The same result, with `doing` ("copying tokens") in the error.
    ///
    /// # Errors
    /// As the call itself.
    fn during(self, doing: &'static str) -> Result<T, CudaError>;
}

impl<T> During<T> for Result<T, DriverError> {
    fn during(self, doing: &'static str) -> Result<T, CudaError> {
        self.map_err(|DriverError(code)| CudaError::Driver { doing, code })
    }
}

impl<T> During<T> for Result<T, CublasError> {
    fn during(self, doing: &'static str) -> Result<T, CudaError> {
        self.map_err(|CublasError(status)| CudaError::Blas { doing, status })
    }
}

impl<T> During<T> for Result<T, NvrtcError> {
    fn during(self, doing: &'static str) -> Result<T, CudaError> {
        self.map_err(|NvrtcError(status)| CudaError::Nvrtc { doing, status })
    }
}

impl From<DriverError> for CudaError {
    fn from(DriverError(code): DriverError) -> Self {
        Self::Driver { doing: "a call to the driver", code }
    }
}

impl From<CublasError> for CudaError {
    fn from(CublasError(status): CublasError) -> Self {
        Self::Blas { doing: "a matrix product", status }
    }
}

#[cfg(test)]
mod tests {
    use super::super::CudaLibrary;
    use super::*;

    fn driver(code: CUresult) -> CudaError {
        Err::<(), _>(DriverError(code)).during("copying tokens").unwrap_err()
    }

    #[test]
    fn memory_that_is_short_splits_the_batch() {
        let error = driver(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        assert!(error.is_out_of_memory() && !error.is_sticky());
        assert_eq!(error.into_engine_error(77), EngineError::OutOfMemory { tokens: 77 });
        let error = CudaError::from(CublasError(cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED));
        assert_eq!(error.into_engine_error(5), EngineError::OutOfMemory { tokens: 5 });
    }

    #[test]
    fn memory_that_is_short_while_loading_is_no_batch_to_split() {
        let error = driver(CUresult::CUDA_ERROR_OUT_OF_MEMORY).into_load_error();
        let EngineError::Device(text) = error else { panic!("{error:?}") };
        assert!(text.contains("another process") && text.contains("nvidia-smi"), "{text}");
        let error = driver(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU).into_load_error();
        assert!(matches!(error, EngineError::Model(_)), "{error:?}");
    }

    #[test]
    fn a_broken_context_ends_the_worker_and_says_what_broke_it() {
        for (code, word) in [
            (CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, "dmesg"),
            (CUresult::CUDA_ERROR_LAUNCH_FAILED, "Xid"),
            (CUresult::CUDA_ERROR_ECC_UNCORRECTABLE, "nvidia-smi -r"),
            (CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE, "compute mode"),
        ] {
            let error = driver(code);
            assert!(error.is_sticky());
            let EngineError::Device(text) = error.into_engine_error(1) else { panic!("{code:?}") };
            assert!(text.starts_with(&format!("copying tokens failed with {code:?}")), "{text}");
            assert!(text.contains(word), "{text}");
        }
        let error = CudaError::from(CublasError(cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED));
        assert!(matches!(error.into_engine_error(1), EngineError::Device(_)));
    }

    #[test]
    fn a_call_that_was_refused_fails_its_batch_alone() {
        for code in [CUresult::CUDA_ERROR_INVALID_VALUE, CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES] {
            assert!(matches!(driver(code).into_engine_error(1), EngineError::Batch(_)), "{code:?}");
        }
        let error = CudaError::from(CublasError(cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED));
        assert!(matches!(error.into_engine_error(1), EngineError::Batch(_)));
    }

    #[test]
    fn what_no_restart_can_mend_stops_the_job() {
        let missing = CudaLibrary::ALL.map(|library| LibraryError::Missing { library });
        let EngineError::Model(text) = CudaError::Libraries(missing.to_vec()).into_engine_error(1) else {
            panic!()
        };
        for name in ["libcuda", "libcublasLt", "libnvrtc"] {
            assert!(text.contains(name), "{text}");
        }
        assert!(matches!(
            driver(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU).into_engine_error(0),
            EngineError::Model(_)
        ));
    }
}
