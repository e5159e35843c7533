//! Which GPUs are installed, and what a job must know of each before it uses it.

use nvml_wrapper::Device;

use super::gpu::{Gpu, GpuIdentity, Questions};
use super::sample::Memory;
use super::{Library, Nvml, NvmlError};

/// A GPU, or an instance of a divided one, as far as the driver tells.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InstalledGpu {
    /// Its number, as `nvidia-smi` counts; for an instance, within its GPU.
    pub index: u32,
    /// Who it is.
    pub identity: GpuIdentity,
    /// Bytes of memory that are free, and all there are.
    pub memory: Option<(u64, u64)>,
    /// Streaming multiprocessors.
    pub multiprocessors: Option<u32>,
    /// What it is divided into (MIG): these are used in its place.
    pub instances: Vec<InstalledGpu>,
}

/// Asks the driver for every GPU; one that is lost is an error in its place.
///
/// # Errors
/// If the driver cannot be asked.
pub fn inventory(library: &Library) -> Result<Vec<Result<InstalledGpu, NvmlError>>, NvmlError> {
    let nvml = Nvml::open(library)?;
    let gpus = nvml.gpus()?;
    Ok((0..).zip(gpus).map(|(index, gpu)| Ok(installed(index, &gpu?))).collect())
}

fn installed(index: u32, gpu: &Gpu<'_>) -> InstalledGpu {
    /// More than any GPU is divided into.
    const INSTANCES_MAX: u32 = 64;
    let identity = gpu.identity().clone();
    let mut questions = Questions::new(gpu.device());
    let count = if identity.mig == Some(true) { questions.ask(Device::mig_device_count) } else { None };
    let instance = |number: u32| {
        let device = gpu.device().mig_device_by_index(number).ok()?;
        let mut instance = installed(number, &Gpu::read(device, &format!("MIG instance {number}")).ok()?);
        // An instance is of its GPU's generation, whether the driver repeats that or not.
        instance.identity.capability = instance.identity.capability.or(identity.capability);
        Some(instance)
    };
    let cores = questions.ask(Device::num_cores);
    InstalledGpu {
        index,
        memory: Memory::read(&mut questions).map(|memory| (memory.free, memory.total)),
        multiprocessors: cores.and_then(|cores| {
            let capability = identity.capability?;
            // NVIDIA, "CUDA C++ Programming Guide", technical specifications per compute capability.
            let per_multiprocessor = match (capability.major, capability.minor) {
                (6, 0) | (7, _) | (8, 0) => 64,
                _ => 128,
            };
            Some(cores / per_multiprocessor).filter(|&count| count > 0)
        }),
        instances: (0..count.unwrap_or(0).min(INSTANCES_MAX)).filter_map(instance).collect(),
        identity,
    }
}
