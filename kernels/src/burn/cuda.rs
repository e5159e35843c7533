//! The burn engine on NVIDIA GPUs: what must be there before burn-cuda is called.
//!
//! burn-cuda panics on a thread of its own where a library, a header or a device is missing, which says little and
//! leaves its caller waiting: everything is looked for first.

use burn_cuda::{Cuda, CudaDevice};
use cudarc::driver::result;
use cudarc::driver::sys::CUdevice_attribute as Attribute;

use super::product::Products;
use super::{BurnEngine, NO_INT8};
use crate::model::Model;
use crate::{Engine, EngineError, EngineOptions, Precision};

/// Whether burn-cuda could work on this machine, without touching any device.
///
/// # Errors
/// A sentence that names what is missing and how to get it.
pub fn check() -> Result<(), String> {
    // SAFETY: loads the library, which runs the driver's own initialisers, and lets go of it.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        return Err("the NVIDIA driver's library `libcuda.so.1` was not found: install the driver".into());
    }
    // SAFETY: as above; NVRTC has no initialisers that touch a device.
    if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        return Err(
            "NVIDIA's run-time compiler `libnvrtc` was not found: install the CUDA toolkit, or put the \
                    folder of the library into LD_LIBRARY_PATH"
                .into(),
        );
    }
    // burn compiles kernels that include `cuda_runtime.h` and its neighbours.
    let headers = cubecl_cuda::install::cuda_path().map(|path| path.join("include/cuda_runtime.h"));
    match headers {
        Some(header) if header.is_file() => Ok(()),
        Some(header) => Err(format!(
            "CUDA's headers were not found (`{}`): install the CUDA toolkit, or set CUDA_PATH to its folder",
            header.display()
        )),
        None => {
            Err("CUDA's headers were not found: install the CUDA toolkit, or set CUDA_PATH to its folder"
                .into())
        }
    }
}

/// Prepares `model` on the GPU with the driver's `index`.
///
/// # Errors
/// [`EngineError::Model`] when a library, a header or the GPU is not there or cannot do the precision, and as
/// [`super::load_cpu`].
pub fn load(model: &Model, options: EngineOptions, index: u16) -> Result<Box<dyn Engine>, EngineError> {
    let missing = |problem: String| EngineError::Model(format!("device `burn-cuda:{index}`: {problem}"));
    check().map_err(missing)?;
    let failed = |error: cudarc::driver::DriverError| missing(format!("the NVIDIA driver says {error:?}"));
    result::init().map_err(failed)?;
    let count = result::device::get_count().map_err(failed)?;
    if i32::from(index) >= count {
        return Err(missing(format!("the driver has {count} devices, counted from 0")));
    }
    let device = result::device::get(i32::from(index)).map_err(failed)?;
    // SAFETY: `device` was given by the driver just now.
    let attribute = |what| unsafe { result::device::get_attribute(device, what) }.map_err(failed);
    let capability = (
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    let (name, least) = match options.precision {
        Precision::Fp32 => ("fp32", (5, 0)),
        Precision::Fp16 => ("fp16", (7, 0)),
        Precision::Bf16 => ("bf16", (8, 0)),
        Precision::Int8 => return Err(EngineError::Model(NO_INT8.to_owned())),
    };
    if capability < least {
        return Err(missing(format!(
            "its compute capability is {}.{}, and {name} needs {}.{}",
            capability.0, capability.1, least.0, least.1
        )));
    }
    let name = format!("burn (CUDA device {index}, {name})");
    let device = CudaDevice::new(usize::from(index));
    Ok(Box::new(BurnEngine::<Cuda>::load(model, options, device, Products::Split, name)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_and_nothing_panics() {
        // Where everything is there, the test of the engine itself says more.
        if let Err(problem) = check() {
            assert!(problem.contains("install"), "{problem}");
        }
    }
}
