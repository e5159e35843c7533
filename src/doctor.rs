//! The command `doctor`: what this machine offers, what is missing and how to get it.

use std::path::Path;

use kernels::Precision;
use kernels::cuda::{CudaLibraryReport, CudaSupport};
use kernels::device::{Machine, Nvidia, probe};
use kernels::nvml::{Capability, Driver, GpuIdentity, GpuSample};
use serde::Serialize;

use crate::cli::DoctorArguments;
use crate::failure::{Exit, Failure};

/// What `doctor` found, for `--json`.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    commit: &'static str,
    cpu_model: Option<String>,
    cpu_instructions: &'static str,
    /// What multiplies in bf16; null where bf16 is refused.
    cpu_bf16_instructions: Option<&'static str>,
    /// What multiplies in int8; null where int8 is refused.
    cpu_int8_instructions: Option<&'static str>,
    cpu_features: Vec<&'static str>,
    threads: Option<usize>,
    memory_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
    /// The libraries that the CUDA engine calls; `None`: this build has no such engine.
    cuda: Option<Vec<CudaLibraryReport>>,
    /// The driver that the kernel has loaded, by its own account.
    nvidia_driver: Option<String>,
    /// What the driver's library tells, or why it does not.
    nvidia: Result<NvidiaReport, String>,
    /// Which GPUs the environment leaves to CUDA.
    cuda_visible_devices: Option<String>,
    demo_model: Result<String, String>,
    hub_cache: Vec<String>,
}

#[derive(Serialize)]
struct NvidiaReport {
    driver: Driver,
    gpus: Vec<Result<GpuReport, String>>,
}

#[derive(Serialize)]
struct GpuReport {
    identity: GpuIdentity,
    sample: GpuSample,
    /// The precision that a job on this GPU alone computes in by itself, or why it cannot be used.
    auto_precision: Result<&'static str, String>,
}

/// Oldest CUDA that a driver must run, and the first driver that does.
const CUDA_MIN: (u32, u32) = (12, 0);
const CUDA_MIN_DRIVER: u32 = 525;

pub(crate) fn doctor(arguments: &DoctorArguments) -> Result<Exit, Failure> {
    let report = examine(probe());
    if arguments.json {
        let text =
            serde_json::to_string_pretty(&report).map_err(|error| Failure::because(Exit::Failed, &error))?;
        crate::stdout::print(&format!("{text}\n"))?;
    } else {
        crate::stdout::print(&describe(&report))?;
    }
    Ok(if report.demo_model.is_ok() { Exit::Done } else { Exit::Failed })
}

fn examine(machine: Machine) -> Report {
    let demo = kernels::Model::from_bytes(config::demo::CONFIG_JSON, config::demo::WEIGHTS);
    Report {
        version: env!("CARGO_PKG_VERSION"),
        commit: env!("VIRNUCPRO_COMMIT"),
        cpu_model: machine.cpu_model,
        cpu_instructions: machine.cpu_instructions,
        cpu_bf16_instructions: kernels::cpu::bf16_instructions(),
        cpu_int8_instructions: kernels::cpu::int8_instructions(),
        cpu_features: machine.cpu_features,
        threads: machine.threads,
        memory_bytes: machine.memory_bytes,
        memory_available_bytes: machine.memory_available_bytes,
        nvidia: machine
            .nvidia
            .map(|nvidia| nvidia_report(nvidia, &machine.cuda))
            .map_err(|error| error.to_string()),
        cuda: match machine.cuda {
            CudaSupport::NotBuilt => None,
            CudaSupport::Built(libraries) => Some(libraries),
        },
        nvidia_driver: nvidia_driver(),
        cuda_visible_devices: std::env::var("CUDA_VISIBLE_DEVICES").ok(),
        demo_model: demo
            .map(|model| format!("{} layers, width {}", model.config().layers, model.config().hidden))
            .map_err(|error| actors::error_chain(&error)),
        hub_cache: cached_models(),
    }
}

fn nvidia_report(nvidia: Nvidia, cuda: &CudaSupport) -> NvidiaReport {
    let gpus = nvidia.gpus.into_iter().map(|gpu| match gpu {
        Ok((identity, sample)) => {
            let auto_precision = auto_precision(&identity, cuda);
            Ok(GpuReport { identity, sample, auto_precision })
        }
        Err(error) => Err(error.to_string()),
    });
    NvidiaReport { driver: nvidia.driver, gpus: gpus.collect() }
}

/// The published ESM-2 models that lie in the local caches.
fn cached_models() -> Vec<String> {
    const SIZES: [&str; 6] = ["t6_8M", "t12_35M", "t30_150M", "t33_650M", "t36_3B", "t48_15B"];
    let names = SIZES.iter().map(|size| format!("facebook/esm2_{size}_UR50D"));
    names.filter(|name| kernels::model::hub::resolve(name).is_ok()).collect()
}

/// First line of the loaded NVIDIA kernel driver's own account.
fn nvidia_driver() -> Option<String> {
    let text = std::fs::read_to_string(Path::new("/proc/driver/nvidia/version")).ok()?;
    text.lines().next().map(str::to_owned)
}

fn describe(report: &Report) -> String {
    let mut lines = String::new();
    let mut line = |name: &str, text: String| lines += &format!("{name:<10} {text}\n");
    let unknown = || "unknown".to_owned();
    let gibibytes = |bytes: Option<u64>| {
        bytes.map_or_else(unknown, |b| format!("{:.1} GiB", b as f64 / (1u64 << 30) as f64))
    };
    line("version", format!("{} (commit {})", report.version, report.commit));
    line("processor", report.cpu_model.clone().unwrap_or_else(unknown));
    line("threads", report.threads.map_or_else(unknown, |threads| threads.to_string()));
    line(
        "memory",
        format!(
            "{} available of {}",
            gibibytes(report.memory_available_bytes),
            gibibytes(report.memory_bytes)
        ),
    );
    line(
        "cpu",
        format!(
            "ready: fp32 with {}, {}, {} (found: {})",
            report.cpu_instructions,
            report
                .cpu_bf16_instructions
                .map_or_else(|| "no bf16".to_owned(), |name| format!("bf16 with {name}")),
            report
                .cpu_int8_instructions
                .map_or_else(|| "no int8".to_owned(), |name| format!("int8 with {name}")),
            report.cpu_features.join(", ")
        ),
    );
    for (name, text) in cuda_in_words(report.cuda.as_deref()) {
        line(name, text);
    }
    match (&report.nvidia, &report.nvidia_driver) {
        (Ok(nvidia), _) => {
            line("nvidia", driver_in_words(nvidia));
            for (index, gpu) in nvidia.gpus.iter().enumerate() {
                let name = format!("gpu {index}");
                match gpu {
                    Ok(gpu) => {
                        line(&name, identity_in_words(&gpu.identity));
                        line("", sample_in_words(&gpu.sample));
                        let auto = match &gpu.auto_precision {
                            Ok(precision) => format!(
                                "ready: computes in {precision} unless model.precision says otherwise"
                            ),
                            Err(reason) => format!("not usable: {reason}"),
                        };
                        line("", auto);
                    }
                    Err(error) => line(&name, error.clone()),
                }
            }
        }
        (Err(error), Some(loaded)) => {
            line("nvidia", format!("not usable: {error}; the kernel's driver is loaded: {loaded}"));
        }
        (Err(error), None) => line("nvidia", format!("none: {error}")),
    }
    if let Some(visible) = &report.cuda_visible_devices {
        line("", format!("CUDA_VISIBLE_DEVICES={visible} hides the other GPUs from CUDA"));
    }
    line("sim", "ready: simulated devices for tests (devices.use = \"sim:N\")".to_owned());
    match &report.demo_model {
        Ok(model) => line("demo", format!("ready: {model}")),
        Err(error) => line("demo", format!("damaged: {error}; build the program again")),
    }
    if report.hub_cache.is_empty() {
        let how =
            "none in the local caches; on a machine with internet: hf download facebook/esm2_t33_650M_UR50D";
        line("weights", how.to_owned());
    }
    for model in &report.hub_cache {
        line("weights", model.clone());
    }
    lines
}

/// For what a driver does not tell.
const ABSENT: &str = "N/A";

fn told<T>(fact: Option<T>, words: impl FnOnce(T) -> String) -> String {
    fact.map_or_else(|| ABSENT.to_owned(), words)
}

fn driver_in_words(nvidia: &NvidiaReport) -> String {
    let Driver { version, cuda } = &nvidia.driver;
    let mut words = format!(
        "driver {}, CUDA {}",
        version.as_deref().unwrap_or(ABSENT),
        told(*cuda, |(major, minor)| format!("{major}.{minor}"))
    );
    words += &match nvidia.gpus.len() {
        0 => ", no GPU visible: start a container with `--gpus all`, ask a scheduler for a GPU".to_owned(),
        1 => ", 1 GPU".to_owned(),
        count => format!(", {count} GPUs"),
    };
    if cuda.is_some_and(|cuda| cuda < CUDA_MIN) {
        words += &format!("; too old for CUDA {}: install driver {CUDA_MIN_DRIVER} or later", CUDA_MIN.0);
    }
    words
}

/// What a job on this GPU alone would compute in.
fn auto_precision(identity: &GpuIdentity, cuda: &CudaSupport) -> Result<&'static str, String> {
    if !cuda.problems().is_empty() {
        return Err("libraries are missing, see cuda above".to_owned());
    }
    if let Some(objection) = cuda.objection(identity) {
        return Err(objection);
    }
    let fp16 = identity.capability.is_none_or(|capability| capability.supports(Precision::Fp16));
    Ok(if fp16 { "fp16" } else { "fp32" })
}

/// A line per library.
fn cuda_in_words(libraries: Option<&[CudaLibraryReport]>) -> Vec<(&'static str, String)> {
    let Some(libraries) = libraries else {
        return CudaSupport::NotBuilt
            .problems()
            .into_iter()
            .map(|text| ("cuda", format!("not usable: {text}")))
            .collect();
    };
    let found = |library: &CudaLibraryReport| match (&library.problem, library.version) {
        (None, version) => format!(
            "found: {} {}, {}",
            library.name,
            told(version, |(major, minor)| format!("{major}.{minor}")),
            library.path.as_deref().unwrap_or(ABSENT)
        ),
        (Some(problem), _) => format!("missing: {problem}"),
    };
    libraries
        .iter()
        .enumerate()
        .map(|(n, library)| (if n == 0 { "cuda" } else { "" }, found(library)))
        .collect()
}

fn identity_in_words(gpu: &GpuIdentity) -> String {
    let capability = |capability: Capability| {
        let precisions = [(Precision::Fp32, "fp32"), (Precision::Fp16, "fp16"), (Precision::Bf16, "bf16")];
        let supported = precisions.iter().filter(|(precision, _)| capability.supports(*precision));
        let names: Vec<&str> = supported.map(|&(_, name)| name).collect();
        format!("{capability} ({})", names.join(", "))
    };
    format!(
        "{}, compute capability {}, {}, PCI {}, MIG {}",
        gpu.name.as_deref().unwrap_or("name N/A"),
        told(gpu.capability, capability),
        gpu.uuid.as_deref().unwrap_or("UUID N/A"),
        gpu.pci_bus_id.as_deref().unwrap_or(ABSENT),
        told(gpu.mig, |on| on_or_off(on).to_owned()),
    )
}

fn sample_in_words(sample: &GpuSample) -> String {
    let gibibytes = |bytes: u64| format!("{:.1}", bytes as f64 / (1u64 << 30) as f64);
    let percent = |part: u32| format!("{part} %");
    let watts = |power: f64| format!("{power:.0}");
    let megahertz = |clock: u32| format!("{clock} MHz");
    let megabytes = |rate: u64| format!("{} MB/s", rate / 1_000_000);
    let slowed = |reasons: &Vec<String>| {
        if reasons.is_empty() { "nothing".to_owned() } else { reasons.join(" + ") }
    };
    let processes = |processes: &Vec<_>| processes.len().to_string();
    [
        format!(
            "memory {} of {} GiB in use ({} taken)",
            told(sample.memory_used_bytes, gibibytes),
            told(sample.memory_total_bytes, gibibytes),
            told(sample.memory_share, |share| format!("{:.0} %", share * 100.0)),
        ),
        format!("busy {}", told(sample.busy_percent, percent)),
        format!("memory busy {}", told(sample.memory_busy_percent, percent)),
        format!("temperature {}", told(sample.temperature_c, |celsius| format!("{celsius} °C"))),
        format!("{} of {} W", told(sample.power_w, watts), told(sample.power_limit_w, watts)),
        format!("clock {}", told(sample.clock_sm_mhz, megahertz)),
        format!("memory clock {}", told(sample.clock_memory_mhz, megahertz)),
        format!("slowed by {}", told(sample.throttled_by.as_ref(), slowed)),
        format!(
            "PCIe in {}, out {}",
            told(sample.pcie_received_bytes_per_s, megabytes),
            told(sample.pcie_sent_bytes_per_s, megabytes)
        ),
        format!(
            "ECC {} ({} errors uncorrected since the driver was loaded)",
            told(sample.ecc, |on| on_or_off(on).to_owned()),
            told(sample.ecc_uncorrected, |count| count.to_string()),
        ),
        format!("processes {}", told(sample.processes.as_ref(), processes)),
    ]
    .join(", ")
}

fn on_or_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}
