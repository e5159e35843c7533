//! A GPU, chosen by any of its names and opened.

use std::sync::Arc;

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};
use cudarc::driver::{CudaContext, result};

use super::error::{CudaError, During};
use super::libraries::{self, CudaLibrary};
use crate::Precision;
use crate::cuda::support::GET_12;
use crate::nvml::Capability;

/// What a GPU is called, in the order in which CUDA counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuNames {
    /// The model, such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// `GPU-…`, or `MIG-…` for an instance of one.
    pub uuid: String,
    /// `domain:bus:device.function`, as CUDA writes it.
    pub pci_bus_id: String,
}

/// Memory of a device, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    /// What can be had now.
    pub free: u64,
    /// All there is.
    pub total: u64,
}

/// An opened GPU: this process's context on it.
#[derive(Clone, Debug)]
pub struct Gpu {
    context: Arc<CudaContext>,
    names: GpuNames,
    capability: Capability,
    architecture: String,
    multiprocessors: u32,
}

impl Gpu {
    /// Opens the GPU of this name: its number among those visible, UUID (or its beginning), or PCI bus id.
    ///
    /// `selector` may begin with `cuda:`.
    ///
    /// # Errors
    /// If libraries are missing, there is no such GPU, or it is too old for the compiler or for this program.
    pub fn open(selector: &str) -> Result<Self, CudaError> {
        libraries::open()?;
        let all = visible(selector)?;
        let index = choose(selector, &all, std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref())?;
        let context = CudaContext::new(index).during("opening the GPU")?;
        let attribute = |attribute| {
            let value = context.attribute(attribute).during("asking for the GPU's properties")?;
            Ok::<_, CudaError>(u32::try_from(value).unwrap_or(0))
        };
        let capability = Capability {
            major: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        };
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let names = all.into_iter().nth(index).ok_or_else(|| no_such(selector, "it is gone".to_owned()))?;
        let version = libraries::version(CudaLibrary::Nvrtc).unwrap_or_default();
        let architecture = architecture(capability, &compiler_architectures(version), version)
            .map_err(|reason| CudaError::Unsupported { gpu: names.name.clone(), reason })?;
        Ok(Self { context, names, capability, architecture, multiprocessors })
    }

    /// The context that everything on this GPU lives in.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// The model, such as `NVIDIA H100 80GB HBM3`.
    pub fn name(&self) -> &str {
        &self.names.name
    }

    /// `GPU-…` or `MIG-…`.
    pub fn uuid(&self) -> &str {
        &self.names.uuid
    }

    /// `domain:bus:device.function`.
    pub fn pci_bus_id(&self) -> &str {
        &self.names.pci_bus_id
    }

    /// Compute capability.
    pub fn capability(&self) -> Capability {
        self.capability
    }

    /// What kernels are compiled for, such as `sm_90a`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Streaming multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Memory now.
    ///
    /// # Errors
    /// If the driver does not answer.
    pub fn memory(&self) -> Result<GpuMemory, CudaError> {
        let (free, total) = self.context.mem_get_info().during("asking for the GPU's memory")?;
        Ok(GpuMemory { free: free as u64, total: total as u64 })
    }

    /// Refuses a precision that this GPU cannot compute in.
    ///
    /// # Errors
    /// If it is too old for it, or no GPU computes in it.
    pub fn require(&self, precision: Precision) -> Result<(), CudaError> {
        if self.capability.supports(precision) {
            return Ok(());
        }
        let old = |what: &str, least: &str| {
            format!(
                "has compute capability {}, but {what} needs {least} or later: set model.precision to another one",
                self.capability
            )
        };
        let reason = match precision {
            Precision::Fp32 => old("fp32", "5.0"),
            Precision::Fp16 => old("fp16", "7.0"),
            Precision::Bf16 => old("bf16", "8.0"),
            Precision::Int8 => {
                "is not used in int8, which the CPU engine computes in: set model.precision to fp32, \
                                fp16, bf16 or auto"
                    .to_owned()
            }
        };
        Err(CudaError::Unsupported { gpu: self.names.name.clone(), reason })
    }
}

/// Every GPU that CUDA shows to this process.
fn visible(selector: &str) -> Result<Vec<GpuNames>, CudaError> {
    match result::init() {
        // So it answers where there is no GPU, and where CUDA_VISIBLE_DEVICES leaves none.
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => {
            let variable = std::env::var("CUDA_VISIBLE_DEVICES").ok();
            return Err(no_such(selector, available(&[], variable.as_deref())));
        }
        started => started.during("starting CUDA")?,
    }
    let count = result::device::get_count().during("counting GPUs")?;
    (0..count)
        .map(|ordinal| {
            let device = result::device::get(ordinal).during("finding a GPU")?;
            let uuid = result::device::get_uuid(device).during("asking for a GPU's UUID")?;
            Ok(GpuNames {
                name: result::device::get_name(device).during("asking for a GPU's name")?,
                uuid: format!("GPU-{}", hyphenated(uuid.bytes.map(|byte| byte as u8))),
                pci_bus_id: pci_bus_id(device)?,
            })
        })
        .collect()
}

fn pci_bus_id(device: sys::CUdevice) -> Result<String, CudaError> {
    let mut text = [0u8; 32];
    // SAFETY: the driver writes at most as many bytes as it is told there are, the final NUL among them.
    let code = unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), text.len() as i32 - 1, device) };
    code.result().during("asking for a GPU's PCI bus id")?;
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    Ok(String::from_utf8_lossy(&text[..end]).into_owned())
}

fn hyphenated(uuid: [u8; 16]) -> String {
    let mut text = String::new();
    for (position, byte) in uuid.into_iter().enumerate() {
        if matches!(position, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

fn no_such(selector: &str, reason: String) -> CudaError {
    CudaError::NoSuchGpu { selector: selector.to_owned(), reason }
}

/// The number of the GPU meant.
fn choose(selector: &str, gpus: &[GpuNames], variable: Option<&str>) -> Result<usize, CudaError> {
    let name = selector.strip_prefix("cuda:").unwrap_or(selector).trim();
    let matches: Vec<usize> = if let Ok(index) = name.parse::<usize>() {
        Vec::from_iter((index < gpus.len()).then_some(index))
    } else if let Some(uuid) = name.strip_prefix("GPU-").or_else(|| name.strip_prefix("MIG-")) {
        let uuid = uuid.to_ascii_lowercase();
        let of = |gpu: &GpuNames| gpu.uuid.split_once('-').map(|(_, uuid)| uuid.to_ascii_lowercase());
        let begins = |gpu: &GpuNames| !uuid.is_empty() && of(gpu).is_some_and(|full| full.starts_with(&uuid));
        (0..gpus.len()).filter(|&index| begins(&gpus[index])).collect()
    } else {
        let wanted = pci_parts(name);
        (0..gpus.len())
            .filter(|&index| wanted.is_some() && pci_parts(&gpus[index].pci_bus_id) == wanted)
            .collect()
    };
    match matches[..] {
        [index] => Ok(index),
        [] => Err(no_such(selector, available(gpus, variable))),
        _ => Err(no_such(selector, "several GPUs have a UUID that begins so: write more of it".to_owned())),
    }
}

/// The numbers of a PCI bus id, `[domain:]bus:device[.function]`: libraries write it with four or eight digits.
fn pci_parts(text: &str) -> Option<[u32; 4]> {
    let (address, function) = text.split_once('.').unwrap_or((text, "0"));
    let mut parts: Vec<&str> = address.split(':').collect();
    if parts.len() == 2 {
        parts.insert(0, "0");
    }
    let [domain, bus, device] = parts[..] else { return None };
    let number = |text: &str| u32::from_str_radix(text, 16).ok();
    Some([number(domain)?, number(bus)?, number(device)?, number(function)?])
}

fn available(gpus: &[GpuNames], variable: Option<&str>) -> String {
    let names: Vec<String> = gpus
        .iter()
        .enumerate()
        .map(|(index, gpu)| format!("{index} = {} ({})", gpu.name, gpu.uuid))
        .collect();
    let mut text = match names.len() {
        0 => "this machine has no GPU visible to CUDA".to_owned(),
        1 => format!("this machine has 1 GPU visible: {}", names[0]),
        count => format!("this machine has {count} GPUs visible: {}", names.join(", ")),
    };
    match variable {
        Some(variable) => text.push_str(&format!("; CUDA_VISIBLE_DEVICES={variable}")),
        None if gpus.is_empty() => text.push_str("; see what `nvidia-smi -L` says"),
        None => {}
    }
    text
}

/// The architectures that the compiler knows, such as 90 for `sm_90`.
fn compiler_architectures(version: (u32, u32)) -> Vec<u32> {
    type Count = unsafe extern "C" fn(*mut i32) -> i32;
    type List = unsafe extern "C" fn(*mut i32) -> i32;
    /// More than any version has.
    const ARCHITECTURES_MAX: i32 = 256;
    let ask = || {
        // SAFETY: the signatures of nvrtc.h since 11.2; the list has the length asked for.
        unsafe {
            let count = libraries::optional::<Count>(CudaLibrary::Nvrtc, "nvrtcGetNumSupportedArchs")?;
            let list = libraries::optional::<List>(CudaLibrary::Nvrtc, "nvrtcGetSupportedArchs")?;
            let mut number = 0;
            if count(&mut number) != 0 || !(1..=ARCHITECTURES_MAX).contains(&number) {
                return None;
            }
            let mut architectures = vec![0; number as usize];
            (list(architectures.as_mut_ptr()) == 0).then_some(architectures)
        }
    };
    let told = ask().unwrap_or_default();
    let mut told: Vec<u32> = told.into_iter().filter_map(|one| u32::try_from(one).ok()).collect();
    if told.is_empty() {
        // What its manual says, for a compiler that does not tell.
        told = match version.0 {
            ..=12 => vec![50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90],
            13.. => vec![75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121],
        };
    }
    told.sort_unstable();
    told
}

/// What to compile for: code for an architecture runs on later ones of the same major number, too.
fn architecture(capability: Capability, known: &[u32], version: (u32, u32)) -> Result<String, String> {
    /// Those of boards that are a computer of their own; other GPUs do not run their code.
    const BOARDS: [u32; 5] = [53, 62, 72, 87, 110];
    let Capability { major, minor } = capability;
    let exact = |one: u32| one == major * 10 + minor;
    let fits = |one: u32| one / 10 == major && one % 10 <= minor && (exact(one) || !BOARDS.contains(&one));
    let fitting = known.iter().copied().filter(|&one| fits(one)).max();
    match fitting {
        // The instructions that only 9.0 has.
        Some(90) if minor == 0 => Ok("sm_90a".to_owned()),
        Some(architecture) => Ok(format!("sm_{architecture}")),
        None => {
            let (first, second) = version;
            let newest = known.iter().max().is_some_and(|&newest| major * 10 + minor > newest);
            let remedy = if newest {
                "install a newer one (`pip install --upgrade nvidia-cuda-nvrtc`)"
            } else {
                GET_12
            };
            Err(format!(
                "has compute capability {capability}, for which the NVRTC {first}.{second} found here does not \
                 compile: {remedy}"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpus() -> Vec<GpuNames> {
        let gpu = |name: &str, uuid: &str, pci_bus_id: &str| GpuNames {
            name: name.to_owned(),
            uuid: uuid.to_owned(),
            pci_bus_id: pci_bus_id.to_owned(),
        };
        vec![
            gpu("NVIDIA A", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "0000:17:00.0"),
            gpu("NVIDIA B", "GPU-89aa0000-d72c-4106-c12f-20bd9faed9f6", "0000:B3:00.0"),
        ]
    }

    #[test]
    fn each_name_of_a_gpu_finds_it() {
        let gpus = gpus();
        for (selector, index) in [
            ("0", 0),
            ("cuda:1", 1),
            ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", 0),
            ("GPU-89AA", 1),
            ("cuda:GPU-893", 0),
            ("MIG-89aa", 1),
            ("0000:b3:00.0", 1),
            ("00000000:B3:00.0", 1),
            ("17:00.0", 0),
            ("b3:00", 1),
        ] {
            assert_eq!(choose(selector, &gpus, None), Ok(index), "{selector}");
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_answered_with_those_that_are() {
        let gpus = gpus();
        for selector in ["cuda:2", "GPU-77", "GPU-", "MIG-", "18:00.0", "nonsense", "", "-1"] {
            let text = choose(selector, &gpus, Some("3,5")).unwrap_err().to_string();
            assert!(
                text.starts_with(&format!("{selector}: this machine has 2 GPUs visible: 0 = NVIDIA A")),
                "{text}"
            );
            assert!(text.ends_with("CUDA_VISIBLE_DEVICES=3,5"), "{text}");
        }
        let text = choose("GPU-89", &gpus, None).unwrap_err().to_string();
        assert!(text.contains("write more of it"), "{text}");
        let text = choose("0", &[], None).unwrap_err().to_string();
        assert!(text.contains("no GPU visible") && text.contains("nvidia-smi -L"), "{text}");
    }

    #[test]
    fn kernels_are_compiled_for_the_real_architecture() {
        let known = [75, 80, 86, 87, 89, 90, 100, 120];
        let of = |major, minor| architecture(Capability { major, minor }, &known, (13, 0));
        assert_eq!(of(9, 0).as_deref(), Ok("sm_90a"));
        assert_eq!(of(8, 0).as_deref(), Ok("sm_80"));
        assert_eq!(of(8, 8).as_deref(), Ok("sm_86"));
        assert_eq!(of(8, 7).as_deref(), Ok("sm_87"));
        assert_eq!(of(12, 1).as_deref(), Ok("sm_120"));
        let old = of(7, 0).unwrap_err();
        assert!(old.contains("7.0") && old.contains("NVRTC 13.0") && old.contains("cu12"), "{old}");
        let new = of(13, 0).unwrap_err();
        assert!(new.contains("newer"), "{new}");
    }

    #[test]
    fn a_uuid_is_written_as_the_driver_does() {
        let bytes =
            [0x89, 0x32, 0xf9, 0x37, 0xd7, 0x2c, 0x41, 6, 0xc1, 0x2f, 0x20, 0xbd, 0x9f, 0xae, 0xd9, 0xf6];
        assert_eq!(hyphenated(bytes), "8932f937-d72c-4106-c12f-20bd9faed9f6");
    }

    #[test]
    fn without_libraries_opening_a_gpu_is_an_error() {
        // On a machine with all of them there may be a GPU, too.
        if libraries::open().is_err() {
            assert!(matches!(Gpu::open("cuda:0"), Err(CudaError::Libraries(_))));
        }
    }
}
