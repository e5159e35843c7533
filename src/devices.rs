//! Which devices a job gets: `devices.use` against what is installed, and the precision that all of them share.
//!
//! Decides over values, so that every machine can be tested on one without a GPU. Looking at the machine goes
//! through the driver's management library, which creates nothing on a GPU; only workers call CUDA.

use std::path::Path;

use config::{Device, DeviceChoice};
use kernels::Precision;
use kernels::cuda::CudaSupport;
use kernels::nvml::{InstalledGpu, Library, NvmlError, inventory};

use crate::failure::{Exit, Failure};
use crate::identity;

/// Environment variable by which CUDA's users choose GPUs.
pub(crate) const VISIBLE_VARIABLE: &str = "CUDA_VISIBLE_DEVICES";

/// Environment variable by which they choose how CUDA counts GPUs.
const ORDER_VARIABLE: &str = "CUDA_DEVICE_ORDER";

/// The value of it with which CUDA counts as the driver's management library does.
const BY_PCI: &str = "PCI_BUS_ID";

/// How to do without GPUs.
const USE_CPU: &str = "or set devices.use = \"cpu\", some hundred times slower";

/// What is known of the machine's GPUs.
pub(crate) struct Machine {
    /// Every GPU by number, as `nvidia-smi` counts, or why they are not known.
    pub(crate) gpus: Result<Vec<Result<InstalledGpu, NvmlError>>, NvmlError>,
    /// What the environment leaves visible.
    pub(crate) visible: Option<String>,
    /// How the environment has CUDA count.
    pub(crate) order: Option<String>,
    /// Whether the kernel has a driver for NVIDIA GPUs loaded.
    pub(crate) driver_loaded: bool,
    pub(crate) cuda: CudaSupport,
}

impl Machine {
    /// Looks at this machine.
    pub(crate) fn look() -> Self {
        let library = Library::from_environment();
        let driver_loaded =
            library == Library::Installed && Path::new("/proc/driver/nvidia/version").exists();
        let gpus = inventory(&library);
        let any = gpus.as_ref().is_ok_and(|gpus| !gpus.is_empty());
        // Half a gigabyte of libraries is not opened for nothing.
        let cuda = if any { CudaSupport::probe() } else { CudaSupport::NotBuilt };
        let variable = |name| std::env::var(name).ok();
        let (visible, order) = (variable(VISIBLE_VARIABLE), variable(ORDER_VARIABLE));
        Self { gpus, visible, order, driver_loaded, cuda }
    }
}

/// A device of a job.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Chosen {
    Cpu,
    Sim(u32),
    Gpu(Box<ChosenGpu>),
    /// The burn engine on the NVIDIA GPU with this index; `None`: on the CPU.
    Burn(Option<u16>),
}

/// A GPU of a job.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ChosenGpu {
    /// As it is called in this job: `cuda:0`.
    pub(crate) name: String,
    pub(crate) installed: InstalledGpu,
}

impl ChosenGpu {
    /// What shows a worker this GPU alone.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let index = || self.installed.index.to_string();
        let visible = self.installed.identity.uuid.clone().unwrap_or_else(index);
        let set = |name: &str, value: String| (name.to_owned(), value);
        // The order matters for a number alone: CUDA would count the fastest first.
        vec![set(VISIBLE_VARIABLE, visible), set(ORDER_VARIABLE, BY_PCI.to_owned())]
    }

    /// A name that the driver knows whatever the environment says.
    pub(crate) fn which(&self) -> String {
        let identity = &self.installed.identity;
        let name = identity.uuid.clone().or_else(|| identity.pci_bus_id.clone());
        name.unwrap_or_else(|| self.installed.index.to_string())
    }

    fn model(&self) -> &str {
        self.installed.identity.name.as_deref().unwrap_or("NVIDIA GPU")
    }
}

impl std::fmt::Display for Chosen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Sim(number) => write!(f, "sim:{number}"),
            Self::Gpu(gpu) => f.write_str(&gpu.name),
            Self::Burn(None) => Device::BurnCpu.fmt(f),
            Self::Burn(Some(index)) => Device::BurnCuda(*index).fmt(f),
        }
    }
}

/// The devices of a job, and what its operator should know about the others.
#[derive(Debug)]
pub(crate) struct Selection {
    pub(crate) devices: Vec<Chosen>,
    pub(crate) notes: Vec<String>,
}

/// Finds the devices that a job asks for. The machine is only looked at for GPUs.
///
/// # Errors
/// If one is not there or cannot be used, or `auto` would leave a GPU idle for want of a library.
pub(crate) fn select(choice: &DeviceChoice, look: impl FnOnce() -> Machine) -> Result<Selection, Failure> {
    match choice {
        DeviceChoice::Auto => select_auto(&look()),
        DeviceChoice::Listed(devices) => {
            check_burn(devices)?;
            let machine = devices.iter().any(|device| matches!(device, Device::Cuda(_))).then(look);
            let mut chosen: Vec<Chosen> = Vec::new();
            for device in devices {
                let next = match (device, &machine) {
                    (Device::Cuda(selector), Some(machine)) => {
                        Chosen::Gpu(Box::new(find(selector, machine)?))
                    }
                    (Device::Sim(number), _) => Chosen::Sim(*number),
                    (Device::BurnCpu, _) => Chosen::Burn(None),
                    (Device::BurnCuda(index), _) => Chosen::Burn(Some(*index)),
                    (Device::Cpu | Device::Cuda(_), _) => Chosen::Cpu,
                };
                if let Some(twin) = chosen.iter().find(|other| same_gpu(other, &next)) {
                    let text = format!("`{twin}` and `{next}` in devices.use are the same GPU");
                    return Err(
                        Failure::new(Exit::Usage, text).hint("name each GPU once: it runs one worker")
                    );
                }
                chosen.push(next);
            }
            Ok(Selection { devices: chosen, notes: Vec::new() })
        }
    }
}

/// Refuses burn devices that this build or this machine cannot use.
fn check_burn(devices: &[Device]) -> Result<(), Failure> {
    let is_burn = |device: &&Device| matches!(device, Device::BurnCpu | Device::BurnCuda(_));
    let on_gpu = |device: &&Device| matches!(device, Device::BurnCuda(_));
    let Some(first) = devices.iter().find(is_burn) else { return Ok(()) };
    if devices.iter().filter(is_burn).count() != devices.len() {
        let text = "burn devices and others cannot work on one job: their results differ in the last bits";
        return Err(Failure::new(Exit::Usage, text).hint("set devices.use to one kind"));
    }
    let gpu = devices.iter().find(on_gpu);
    if gpu.is_some() && !devices.iter().all(|device| on_gpu(&device)) {
        let text = "burn-cpu and burn-cuda cannot work on one job: their results differ in the last bits";
        return Err(Failure::new(Exit::Usage, text).hint("set devices.use to one kind"));
    }
    let lacking = |device: &Device, feature: &str| {
        let text = format!("device `{device}` cannot be used: the burn engine is not part of this build");
        let hint =
            format!("build it with `cargo build --release --features {feature}`, or use another device");
        Failure::new(Exit::Usage, text).hint(hint)
    };
    match gpu {
        None if cfg!(feature = "burn") => Ok(()),
        None => Err(lacking(first, "burn")),
        #[cfg(feature = "burn-cuda")]
        Some(gpu) => match kernels::burn::check_cuda() {
            Ok(()) => Ok(()),
            Err(problem) => {
                let text = format!("device `{gpu}` cannot be used: {problem}");
                Err(Failure::new(Exit::Usage, text).hint("or set devices.use = \"burn-cpu\""))
            }
        },
        #[cfg(not(feature = "burn-cuda"))]
        Some(gpu) => Err(lacking(gpu, "burn-cuda")),
    }
}

fn same_gpu(one: &Chosen, other: &Chosen) -> bool {
    match (one, other) {
        (Chosen::Gpu(one), Chosen::Gpu(other)) => one.which() == other.which(),
        _ => false,
    }
}

/// What CUDA would show, by CUDA's number.
fn visible(machine: &Machine) -> Result<Vec<Result<&InstalledGpu, &NvmlError>>, &NvmlError> {
    let gpus = machine.gpus.as_ref()?;
    let all = || gpus.iter().map(Result::as_ref);
    let Some(variable) = &machine.visible else { return Ok(all().collect()) };
    let mut seen = Vec::new();
    for entry in variable.split(',').map(str::trim) {
        let found = match entry.parse::<usize>() {
            Ok(number) => all().nth(number),
            Err(_) => {
                let mut named =
                    all().filter_map(Result::ok).flat_map(|gpu| std::iter::once(gpu).chain(&gpu.instances));
                named.find(|gpu| is_called(gpu, entry)).map(Ok)
            }
        };
        // So does CUDA: what follows an entry that it does not know is hidden.
        let Some(found) = found else { break };
        seen.push(found);
    }
    Ok(seen)
}

/// Refuses numbers in the environment that CUDA and the management library may count differently.
///
/// Unless told otherwise, CUDA counts the fastest GPU first. Among equal GPUs that makes no difference to a job.
fn check_order(machine: &Machine) -> Result<(), Failure> {
    let Some(variable) = &machine.visible else { return Ok(()) };
    let numbered = variable.split(',').any(|entry| entry.trim().parse::<usize>().is_ok());
    if !numbered || machine.order.as_deref() == Some(BY_PCI) {
        return Ok(());
    }
    let known = machine.gpus.iter().flatten().filter_map(|gpu| gpu.as_ref().ok());
    let named = known.filter_map(|gpu| Some((gpu.index, gpu.identity.name.as_deref()?)));
    let named: Vec<(u32, &str)> = named.collect();
    if named.windows(2).all(|pair| pair[0].1 == pair[1].1) {
        return Ok(());
    }
    let list: Vec<String> = named.iter().map(|(index, name)| format!("{index} = {name}")).collect();
    let text = format!(
        "{VISIBLE_VARIABLE}={variable} does not say which GPUs it means: they differ ({}, as nvidia-smi counts), and \
         CUDA counts the fastest first",
        list.join(", ")
    );
    let hint = format!(
        "set {ORDER_VARIABLE}={BY_PCI} if the numbers are those of nvidia-smi, or write UUIDs (`nvidia-smi -L`) in \
         their place"
    );
    Err(Failure::new(Exit::Usage, text).hint(hint))
}

/// Whether a GPU has this UUID, or one that begins so.
fn is_called(gpu: &InstalledGpu, uuid: &str) -> bool {
    let named = uuid.starts_with("GPU-") || uuid.starts_with("MIG-");
    let matches = |full: &str| {
        full.len() >= uuid.len() && full.as_bytes()[..uuid.len()].eq_ignore_ascii_case(uuid.as_bytes())
    };
    named && uuid.len() > 4 && gpu.identity.uuid.as_deref().is_some_and(matches)
}

fn select_auto(machine: &Machine) -> Result<Selection, Failure> {
    check_order(machine)?;
    let cpu = |notes| Ok(Selection { devices: vec![Chosen::Cpu], notes });
    let seen = match visible(machine) {
        Ok(seen) => seen,
        Err(NvmlError::LibraryMissing { .. }) if !machine.driver_loaded => return cpu(Vec::new()),
        // Usual on machines of a cluster that share their software with those that have GPUs.
        Err(NvmlError::DriverNotLoaded) => return cpu(vec![NvmlError::DriverNotLoaded.to_string()]),
        Err(error) => {
            let text = format!("devices.use = \"auto\" cannot tell whether there are GPUs: {error}");
            return Err(Failure::new(Exit::Usage, text).hint(USE_CPU));
        }
    };
    if seen.is_empty() {
        let hidden = machine.gpus.as_ref().is_ok_and(|gpus| !gpus.is_empty());
        let variable = machine.visible.as_deref().unwrap_or_default();
        let note = format!("{VISIBLE_VARIABLE}={variable} hides every GPU: the CPU computes");
        return cpu(Vec::from_iter(hidden.then_some(note)));
    }
    // Before anything else: an unattended job would crawl for weeks where a package is missing.
    libraries(machine)?;
    let mut selection = Selection { devices: Vec::new(), notes: Vec::new() };
    for (number, gpu) in seen.into_iter().enumerate() {
        let name = format!("cuda:{number}");
        let candidates: Vec<(String, &InstalledGpu)> = match gpu {
            Ok(gpu) if gpu.identity.mig == Some(true) => gpu.instances.iter().filter_map(instance).collect(),
            Ok(gpu) => vec![(name.clone(), gpu)],
            Err(error) => {
                selection.notes.push(format!("{name} is not used: {error}"));
                continue;
            }
        };
        if candidates.is_empty() {
            selection.notes.push(format!("{name} is not used: it is divided (MIG) and has no instance"));
        }
        for (name, gpu) in candidates {
            match machine.cuda.objection(&gpu.identity) {
                Some(objection) => selection.notes.push(format!("{name} is not used: {objection}")),
                None => {
                    let chosen = Chosen::Gpu(Box::new(ChosenGpu { name, installed: gpu.clone() }));
                    if !selection.devices.iter().any(|other| same_gpu(other, &chosen)) {
                        selection.devices.push(chosen);
                    }
                }
            }
        }
    }
    if selection.devices.is_empty() {
        let text = format!("no GPU can be used: {}", selection.notes.join("; "));
        return Err(Failure::new(Exit::Usage, text).hint(USE_CPU));
    }
    Ok(selection)
}

/// An instance of a divided GPU goes by its UUID: it has no number.
fn instance(gpu: &InstalledGpu) -> Option<(String, &InstalledGpu)> {
    Some((format!("cuda:{}", gpu.identity.uuid.as_deref()?), gpu))
}

fn libraries(machine: &Machine) -> Result<(), Failure> {
    let problems = machine.cuda.problems();
    if problems.is_empty() {
        return Ok(());
    }
    let failure = Failure::new(Exit::Usage, "there is a GPU, but what it needs is missing".to_owned());
    let failure = problems.into_iter().fold(failure, Failure::hint);
    Err(failure.hint(USE_CPU))
}

/// The GPU that `cuda:SELECTOR` means.
fn find(selector: &str, machine: &Machine) -> Result<ChosenGpu, Failure> {
    let name = format!("cuda:{selector}");
    let refused = |reason: String| Failure::new(Exit::Usage, format!("{name}: {reason}"));
    check_order(machine)?;
    let seen = visible(machine).map_err(|error| refused(error.to_string()).hint(USE_CPU))?;
    let found = if let Ok(number) = selector.parse::<usize>() {
        seen.get(number).copied()
    } else {
        let one = |gpu: &InstalledGpu| match selector.contains(':') {
            true => gpu.identity.pci_bus_id.as_deref().is_some_and(|id| same_address(id, selector)),
            false => is_called(gpu, selector),
        };
        let known = seen.iter().filter_map(|gpu| gpu.as_ref().ok());
        let mut named =
            known.flat_map(|gpu| std::iter::once(*gpu).chain(&gpu.instances)).filter(|gpu| one(gpu));
        let first = named.next();
        if let (Some(first), Some(second)) = (first, named.find(|gpu| Some(*gpu) != first)) {
            let names = [first, second].map(|gpu| gpu.identity.uuid.clone().unwrap_or_default());
            return Err(refused(format!("{} and {} begin so: write more of it", names[0], names[1])));
        }
        first.map(Ok)
    };
    let gpu = match found {
        Some(Ok(gpu)) => gpu,
        Some(Err(error)) => return Err(refused(error.to_string())),
        None => return Err(refused(in_words(&seen, machine))),
    };
    if gpu.identity.mig == Some(true)
        && !gpu.identity.uuid.as_deref().is_some_and(|uuid| uuid.starts_with("MIG-"))
    {
        let instances: Vec<String> =
            gpu.instances.iter().filter_map(instance).map(|(name, _)| name).collect();
        let text = "the GPU is divided into instances (MIG), of which one must be named".to_owned();
        let hint = match instances.is_empty() {
            true => "it has none yet: `nvidia-smi mig -cgi … -C` creates them".to_owned(),
            false => instances.join(", "),
        };
        return Err(refused(text).hint(hint));
    }
    libraries(machine)?;
    match machine.cuda.objection(&gpu.identity) {
        Some(objection) => Err(refused(objection)),
        None => Ok(ChosenGpu { name, installed: gpu.clone() }),
    }
}

/// Which GPUs there are, for somebody who asked for another.
fn in_words(seen: &[Result<&InstalledGpu, &NvmlError>], machine: &Machine) -> String {
    let one = |(number, gpu): (usize, &Result<&InstalledGpu, &NvmlError>)| match gpu {
        Ok(gpu) => format!(
            "{number} = {} ({})",
            gpu.identity.name.as_deref().unwrap_or("NVIDIA GPU"),
            gpu.identity.uuid.as_deref().unwrap_or("UUID unknown")
        ),
        Err(_) => format!("{number} = lost"),
    };
    let names: Vec<String> = seen.iter().enumerate().map(one).collect();
    let mut text = match names.len() {
        0 => "this machine has no GPU visible".to_owned(),
        1 => format!("this machine has 1 GPU visible: {}", names[0]),
        count => format!("this machine has {count} GPUs visible: {}", names.join(", ")),
    };
    if let Some(variable) = &machine.visible {
        text.push_str(&format!("; {VISIBLE_VARIABLE}={variable}"));
    }
    text
}

/// Whether two PCI ids, `[domain:]bus:device.function`, are one: libraries differ in their number of digits.
fn same_address(one: &str, other: &str) -> bool {
    let parts = |text: &str| -> Option<Vec<u32>> {
        let fields: Vec<&str> = text.split([':', '.']).collect();
        let numbers: Option<Vec<u32>> =
            fields.iter().map(|field| u32::from_str_radix(field, 16).ok()).collect();
        let mut numbers = numbers?;
        if numbers.len() == 3 {
            numbers.insert(0, 0);
        }
        Some(numbers)
    };
    parts(one).is_some() && parts(one) == parts(other)
}

/// What the CPU engine computes in here.
fn cpu_precisions() -> &'static str {
    match (kernels::cpu::bf16_instructions(), kernels::cpu::int8_instructions()) {
        (None, None) => "fp32",
        (Some(_), None) => "fp32 and bf16",
        (None, Some(_)) => "fp32 and int8",
        (Some(_), Some(_)) => "fp32, bf16 and int8",
    }
}

/// Whether a device computes in a precision; the one place that knows.
fn computes(device: &Chosen, precision: Precision) -> bool {
    match device {
        Chosen::Cpu => kernels::cpu::check_precision(precision).is_ok(),
        Chosen::Sim(_) => true,
        Chosen::Burn(_) => precision != Precision::Int8,
        // A worker finds out about a GPU whose driver does not tell, and refuses.
        Chosen::Gpu(gpu) => {
            let capability = gpu.installed.identity.capability;
            precision != Precision::Int8 && capability.is_none_or(|capability| capability.supports(precision))
        }
    }
}

/// The precision of a job: one for all its devices, since values must not depend on which of them computes.
///
/// `earlier`: that of the result that the job goes on with.
///
/// # Errors
/// If a device cannot compute in it.
pub(crate) fn precision(
    wanted: config::Precision,
    devices: &[Chosen],
    earlier: Option<Precision>,
) -> Result<Precision, Failure> {
    let unable = |precision| {
        let unable = devices.iter().filter(|&device| !computes(device, precision));
        let named = unable.map(|device| match device {
            Chosen::Gpu(gpu) => {
                let capability = gpu.installed.identity.capability;
                let capability = capability.map_or_else(String::new, |capability| format!(", {capability}"));
                format!("`{device}` ({}{capability})", gpu.model())
            }
            Chosen::Cpu => format!("`{device}` ({})", cpu_precisions()),
            Chosen::Sim(_) | Chosen::Burn(_) => format!("`{device}`"),
        });
        named.collect::<Vec<_>>()
    };
    let explicit = match wanted {
        config::Precision::Auto => None,
        config::Precision::Fp32 => Some(Precision::Fp32),
        config::Precision::Bf16 => Some(Precision::Bf16),
        config::Precision::Fp16 => Some(Precision::Fp16),
        config::Precision::Int8 => Some(Precision::Int8),
    };
    if let Some(precision) = explicit {
        let names = unable(precision);
        if names.is_empty() {
            return Ok(precision);
        }
        let name = identity::precision(precision);
        let text = format!("precision `{name}` cannot be used: {} cannot compute in it", names.join(", "));
        let hint = "set model.precision = \"auto\" or \"fp32\", or name other devices in devices.use \
            (fp16 needs a GPU of compute capability 7.0 or later, bf16 8.0 or a CPU with AMX or AMD's AVX512_BF16, \
            int8 a CPU with AMX or AVX512_VNNI)";
        return Err(Failure::new(Exit::Usage, text).hint(hint));
    }
    if let Some(precision) = earlier {
        let names = unable(precision);
        if names.is_empty() {
            return Ok(precision);
        }
        let text = format!(
            "the result was begun in {}, which {} cannot compute in",
            identity::precision(precision),
            names.join(", ")
        );
        return Err(Failure::new(Exit::Usage, text)
            .hint("go on with devices that can (devices.use), choose another output.directory, or delete the earlier \
                result with --fresh"));
    }
    let all_gpus = devices.iter().all(|device| matches!(device, Chosen::Gpu(_)));
    Ok(if all_gpus && unable(Precision::Fp16).is_empty() { Precision::Fp16 } else { Precision::Fp32 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels::cuda::CudaLibraryReport;
    use kernels::nvml::{Capability, GpuIdentity};

    const A: &str = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6";
    const B: &str = "GPU-89aa0000-d72c-4106-c12f-20bd9faed9f6";
    const M: &str = "MIG-11110000-d72c-4106-c12f-20bd9faed9f6";

    fn gpu(index: u32, uuid: &str, pci: &str, capability: (u32, u32)) -> InstalledGpu {
        InstalledGpu {
            index,
            identity: GpuIdentity {
                name: Some(format!("NVIDIA {index}")),
                uuid: Some(uuid.to_owned()),
                pci_bus_id: Some(pci.to_owned()),
                capability: Some(Capability { major: capability.0, minor: capability.1 }),
                mig: Some(false),
            },
            ..InstalledGpu::default()
        }
    }

    fn libraries(problem: Option<&str>) -> CudaSupport {
        let library = |name: &str, problem: Option<&str>| CudaLibraryReport {
            name: name.to_owned(),
            path: None,
            version: Some((13, 0)),
            problem: problem.map(str::to_owned),
        };
        CudaSupport::Built(vec![library("libcuda", None), library("libnvrtc", problem)])
    }

    fn machine(gpus: Vec<InstalledGpu>, visible: Option<&str>) -> Machine {
        Machine {
            gpus: Ok(gpus.into_iter().map(Ok).collect()),
            visible: visible.map(str::to_owned),
            order: Some(BY_PCI.to_owned()),
            driver_loaded: true,
            cuda: libraries(None),
        }
    }

    fn two(visible: Option<&str>) -> Machine {
        machine(vec![gpu(0, A, "00000000:17:00.0", (9, 0)), gpu(1, B, "00000000:B3:00.0", (8, 0))], visible)
    }

    fn auto(machine: Machine) -> Result<Vec<String>, String> {
        let selected = select(&DeviceChoice::Auto, || machine);
        selected.map(|s| s.devices.iter().map(describe).collect()).map_err(|failure| failure.line())
    }

    fn listed(selectors: &[&str], machine: Machine) -> Result<Vec<String>, String> {
        let devices = selectors.iter().map(|&selector| Device::Cuda(selector.to_owned())).collect();
        let selected = select(&DeviceChoice::Listed(devices), || machine);
        selected.map(|s| s.devices.iter().map(describe).collect()).map_err(|failure| failure.line())
    }

    fn describe(device: &Chosen) -> String {
        match device {
            Chosen::Gpu(gpu) => format!("{device}={}", gpu.which()),
            Chosen::Cpu | Chosen::Sim(_) | Chosen::Burn(_) => device.to_string(),
        }
    }

    fn names(pairs: &[(&str, &str)]) -> Result<Vec<String>, String> {
        Ok(pairs.iter().map(|(name, uuid)| format!("{name}={uuid}")).collect())
    }

    #[test]
    fn each_name_of_a_gpu_finds_it() {
        for (selector, uuid) in [
            ("0", A),
            ("1", B),
            (A, A),
            ("GPU-89AA", B),
            ("00000000:B3:00.0", B),
            ("0000:b3:00.0", B),
            ("17:00.0", A),
        ] {
            assert_eq!(listed(&[selector], two(None)), names(&[(&format!("cuda:{selector}"), uuid)]));
        }
        let text = listed(&["2"], two(None)).unwrap_err();
        assert!(
            text.starts_with("cuda:2: this machine has 2 GPUs visible: 0 = NVIDIA 0 (GPU-8932"),
            "{text}"
        );
        let text = listed(&["GPU-89"], two(None)).unwrap_err();
        assert!(text.contains("write more of it"), "{text}");
    }

    #[test]
    fn numbers_count_within_what_the_environment_leaves_visible() {
        assert_eq!(listed(&["0"], two(Some("1"))), names(&[("cuda:0", B)]));
        assert_eq!(listed(&["1"], two(Some("1,0"))), names(&[("cuda:1", A)]));
        assert_eq!(listed(&["0"], two(Some("GPU-89aa"))), names(&[("cuda:0", B)]));
        assert_eq!(auto(two(Some("1"))), names(&[("cuda:0", B)]));
        assert_eq!(
            auto(two(Some("0,7,1"))),
            names(&[("cuda:0", A)]),
            "what follows an unknown entry is hidden"
        );
        for hidden in ["", "-1", "NoDevFiles"] {
            assert_eq!(auto(two(Some(hidden))), Ok(vec!["cpu".to_owned()]));
            let text = listed(&["0"], two(Some(hidden))).unwrap_err();
            assert!(text.ends_with(&format!("no GPU visible; CUDA_VISIBLE_DEVICES={hidden}")), "{text}");
        }
        let text = listed(&[A], two(Some("1"))).unwrap_err();
        assert!(text.contains("1 GPU visible: 0 = NVIDIA 1"), "{text}");
    }

    #[test]
    fn numbers_that_cuda_may_count_differently_are_refused() {
        let with = |visible: Option<&str>, order: Option<&str>| Machine {
            order: order.map(str::to_owned),
            ..two(visible)
        };
        for order in [None, Some("FASTEST_FIRST")] {
            for visible in ["1", "0, 1", "GPU-8932,1"] {
                for refused in [auto(with(Some(visible), order)), listed(&["0"], with(Some(visible), order))]
                {
                    let text = refused.unwrap_err();
                    let start = format!("CUDA_VISIBLE_DEVICES={visible} does not say which");
                    assert!(
                        text.starts_with(&start) && text.contains("0 = NVIDIA 0, 1 = NVIDIA 1"),
                        "{text}"
                    );
                }
            }
            let failure = select(&DeviceChoice::Auto, || with(Some("1"), order)).unwrap_err();
            let text = format!("{failure:?}");
            assert!(text.contains("CUDA_DEVICE_ORDER=PCI_BUS_ID") && text.contains("UUIDs"), "{text}");
            assert_eq!(auto(with(Some("GPU-89aa"), order)), names(&[("cuda:0", B)]));
            assert_eq!(auto(with(Some(""), order)), Ok(vec!["cpu".to_owned()]));
            assert_eq!(listed(&["1"], with(None, order)), names(&[("cuda:1", B)]));
            let mut equal = with(Some("1"), order);
            for gpu in equal.gpus.iter_mut().flatten().flatten() {
                gpu.identity.name = Some("NVIDIA H100".to_owned());
            }
            assert_eq!(auto(equal), names(&[("cuda:0", B)]));
        }
        assert_eq!(auto(with(Some("1"), Some("PCI_BUS_ID"))), names(&[("cuda:0", B)]));
    }

    #[test]
    fn two_names_of_one_gpu_are_refused() {
        for pair in [["0", A], [A, "17:00.0"], ["GPU-8932", A]] {
            let text = listed(&pair, two(None)).unwrap_err();
            assert!(text.contains("are the same GPU"), "{text}");
        }
        assert!(listed(&["0", "1"], two(None)).is_ok());
    }

    #[test]
    fn auto_takes_every_gpu_and_the_cpu_only_where_there_is_none() {
        assert_eq!(auto(two(None)), names(&[("cuda:0", A), ("cuda:1", B)]));
        assert_eq!(auto(machine(Vec::new(), None)), Ok(vec!["cpu".to_owned()]));
        let missing = || NvmlError::LibraryMissing { names: "libnvidia-ml.so.1".to_owned() };
        let none = Machine { gpus: Err(missing()), driver_loaded: false, ..two(None) };
        assert_eq!(auto(none), Ok(vec!["cpu".to_owned()]));
        let no_driver = Machine { gpus: Err(NvmlError::DriverNotLoaded), ..two(None) };
        assert_eq!(auto(no_driver), Ok(vec!["cpu".to_owned()]));
        // The driver is there, its library is not: there may be a GPU.
        for error in [missing(), NvmlError::VersionsDiffer, NvmlError::NoPermission] {
            let text = auto(Machine { gpus: Err(error), ..two(None) }).unwrap_err();
            assert!(text.contains("cannot tell whether there are GPUs"), "{text}");
        }
    }

    #[test]
    fn a_gpu_without_its_libraries_is_never_left_idle_in_silence() {
        let without =
            || Machine { cuda: libraries(Some("libnvrtc is not found: get it by pip")), ..two(None) };
        for refused in [auto(without()), listed(&["0"], without())] {
            assert!(refused.unwrap_err().contains("what it needs is missing"));
        }
        let failure = select(&DeviceChoice::Auto, without).unwrap_err();
        let text = format!("{failure:?}");
        assert!(text.contains("get it by pip") && text.contains("devices.use = \\\"cpu\\\""), "{text}");
    }

    #[test]
    fn gpus_that_cannot_be_used_are_noted_and_the_others_taken() {
        let lost = NvmlError::Lost { gpu: "0".to_owned(), reason: "it has fallen off the bus" };
        let mut with_lost = two(None);
        with_lost.gpus = with_lost.gpus.map(|mut gpus| {
            gpus[0] = Err(lost);
            gpus
        });
        let selection = select(&DeviceChoice::Auto, || with_lost).unwrap();
        assert_eq!(selection.devices.iter().map(describe).collect::<Vec<_>>(), [format!("cuda:1={B}")]);
        assert!(selection.notes[0].contains("fallen off the bus"), "{:?}", selection.notes);
        let old = machine(vec![gpu(0, A, "17:00.0", (6, 1))], None);
        let text = auto(old).unwrap_err();
        assert!(text.starts_with("no GPU can be used: cuda:0 is not used: compute capability 6.1"), "{text}");
    }

    #[test]
    fn a_divided_gpu_is_used_by_its_instances() {
        let mut divided = gpu(0, A, "17:00.0", (9, 0));
        divided.identity.mig = Some(true);
        let mut instance = gpu(0, M, "17:00.0", (9, 0));
        instance.identity.mig = None;
        divided.instances = vec![instance];
        let one = || machine(vec![divided.clone()], None);
        assert_eq!(auto(one()), names(&[(&format!("cuda:{M}"), M)]));
        assert_eq!(listed(&[M], one()), names(&[(&format!("cuda:{M}"), M)]));
        let failure = select(&DeviceChoice::Listed(vec![Device::Cuda("0".to_owned())]), one).unwrap_err();
        assert!(format!("{failure:?}").contains(M), "{failure:?}");
    }

    #[test]
    fn a_worker_is_shown_its_own_gpu_alone() {
        let Ok(Selection { devices, .. }) = select(&DeviceChoice::Auto, || two(Some("1"))) else { panic!() };
        let Chosen::Gpu(gpu) = &devices[0] else { panic!() };
        assert_eq!(gpu.environment()[0], (VISIBLE_VARIABLE.to_owned(), B.to_owned()));
    }

    #[test]
    fn all_devices_of_a_job_compute_in_one_precision() {
        let of = |capabilities: &[(u32, u32)], cpu: bool| {
            let gpus = capabilities.iter().zip(0..).map(|(&capability, index)| {
                let installed = gpu(index, &format!("GPU-{index}"), "1:0.0", capability);
                Chosen::Gpu(Box::new(ChosenGpu { name: format!("cuda:{index}"), installed }))
            });
            gpus.chain(cpu.then_some(Chosen::Cpu)).collect::<Vec<_>>()
        };
        let auto = |devices: &[Chosen], earlier| precision(config::Precision::Auto, devices, earlier);
        assert_eq!(auto(&of(&[(9, 0), (7, 5)], false), None).unwrap(), Precision::Fp16);
        assert_eq!(auto(&of(&[(9, 0)], true), None).unwrap(), Precision::Fp32);
        assert_eq!(auto(&of(&[(9, 0), (6, 1)], false), None).unwrap(), Precision::Fp32);
        assert_eq!(auto(&of(&[], true), None).unwrap(), Precision::Fp32);
        // A job goes on as it began.
        assert_eq!(auto(&of(&[(9, 0)], false), Some(Precision::Fp32)).unwrap(), Precision::Fp32);
        assert_eq!(auto(&of(&[(8, 0)], false), Some(Precision::Bf16)).unwrap(), Precision::Bf16);
        let text = auto(&of(&[(9, 0)], true), Some(Precision::Fp16)).unwrap_err().line();
        assert!(text.contains("begun in fp16, which `cpu`") && text.contains("cannot compute in"), "{text}");
        let refused =
            precision(config::Precision::Bf16, &of(&[(9, 0), (7, 5)], false), None).unwrap_err().line();
        assert!(refused.contains("`cuda:1` (NVIDIA 1, 7.5) cannot"), "{refused}");
        let refused = precision(config::Precision::Fp16, &of(&[(9, 0)], true), None).unwrap_err().line();
        assert!(refused.contains("`cpu` (fp32"), "{refused}");
        // bf16 on the CPU depends on the machine that tests.
        let with_cpu = precision(config::Precision::Bf16, &of(&[(9, 0)], true), None);
        assert_eq!(with_cpu.is_ok(), kernels::cpu::bf16_instructions().is_some());
        assert_eq!(precision(config::Precision::Fp16, &of(&[(7, 0)], false), None).unwrap(), Precision::Fp16);
        // int8 is for CPUs, and never chosen by itself.
        let on_gpu = precision(config::Precision::Int8, &of(&[(9, 0)], false), None).unwrap_err().line();
        assert!(on_gpu.contains("precision `int8` cannot be used") && on_gpu.contains("9.0"), "{on_gpu}");
        let with_cpu = precision(config::Precision::Int8, &of(&[], true), None);
        assert_eq!(with_cpu.is_ok(), kernels::cpu::int8_instructions().is_some());
        if with_cpu.is_ok() {
            assert_eq!(auto(&of(&[], true), Some(Precision::Int8)).unwrap(), Precision::Int8);
        }
    }
}
