//! The command `doctor`: what this machine offers, what is missing and how to get it.

use std::path::Path;

use kernels::device::{Machine, probe};
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
    cpu_features: Vec<&'static str>,
    threads: Option<usize>,
    memory_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
    cuda: String,
    nvidia_driver: Option<String>,
    demo_model: Result<String, String>,
    hub_cache: Vec<String>,
}

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
        cpu_features: machine.cpu_features,
        threads: machine.threads,
        memory_bytes: machine.memory_bytes,
        memory_available_bytes: machine.memory_available_bytes,
        cuda: machine.cuda.to_string(),
        nvidia_driver: nvidia_driver(),
        demo_model: demo
            .map(|model| format!("{} layers, width {}", model.config().layers, model.config().hidden))
            .map_err(|error| actors::error_chain(&error)),
        hub_cache: cached_models(),
    }
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
        format!("ready: fp32 with {} (found: {})", report.cpu_instructions, report.cpu_features.join(", ")),
    );
    match &report.nvidia_driver {
        Some(driver) => line("cuda", format!("not used: {}; this machine has one: {driver}", report.cuda)),
        None => line("cuda", format!("not used: {}; no NVIDIA driver is loaded here either", report.cuda)),
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
