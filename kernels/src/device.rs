//! What this machine offers to engines, for `doctor`.
//!
//! Reads the operating system's own accounts and the NVIDIA driver's; starts no engine and changes nothing. Every
//! fact that cannot be had is `None`, never a guess.

use crate::cpu;
use crate::cuda::CudaSupport;
use crate::nvml::{Driver, GpuIdentity, GpuSample, Library, Nvml, NvmlError};

/// Facts about this machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// The processor's own name.
    pub cpu_model: Option<String>,
    /// The instructions that the CPU engine uses here in fp32.
    pub cpu_instructions: &'static str,
    /// Instruction sets that matter to an engine, now or later.
    pub cpu_features: Vec<&'static str>,
    /// Threads that this process may use (affinity and container limits counted).
    pub threads: Option<usize>,
    /// Memory of the machine, bytes.
    pub memory_bytes: Option<u64>,
    /// Memory that can be had without swapping, bytes.
    pub memory_available_bytes: Option<u64>,
    /// Whether NVIDIA devices can be used, and why not.
    pub cuda: CudaSupport,
    /// What the NVIDIA driver says, or why it says nothing.
    pub nvidia: Result<Nvidia, NvmlError>,
}

/// The NVIDIA part of a machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Nvidia {
    /// Its driver.
    pub driver: Driver,
    /// Every GPU that this process may see, by index, and how it fares; or why one cannot be asked.
    pub gpus: Vec<Result<(GpuIdentity, GpuSample), NvmlError>>,
}

/// Looks at this machine.
pub fn probe() -> Machine {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    Machine {
        cpu_model: cpu_model(&cpuinfo),
        cpu_instructions: cpu::fp32_instructions(),
        cpu_features: cpu::features(),
        threads: std::thread::available_parallelism().ok().map(usize::from),
        memory_bytes: meminfo_bytes(&meminfo, "MemTotal"),
        memory_available_bytes: meminfo_bytes(&meminfo, "MemAvailable"),
        cuda: CudaSupport::probe(),
        nvidia: probe_nvidia(&Library::from_environment()),
    }
}

fn probe_nvidia(library: &Library) -> Result<Nvidia, NvmlError> {
    let nvml = Nvml::open(library)?;
    let gpus = nvml.gpus()?.into_iter().map(|gpu| {
        let mut gpu = gpu?;
        let sample = gpu.sample()?;
        Ok((gpu.identity().clone(), sample))
    });
    Ok(Nvidia { driver: nvml.driver(), gpus: gpus.collect() })
}

/// The name of the first processor in `/proc/cpuinfo`; ARM machines list none.
fn cpu_model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    let (_, name) = line.split_once(':')?;
    Some(name.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// A line of `/proc/meminfo` (in kB) as bytes.
fn meminfo_bytes(meminfo: &str, field: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accounts_of_the_system_are_read() {
        let cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC  9B45 \nmodel name\t: other\n";
        assert_eq!(cpu_model(cpuinfo).as_deref(), Some("AMD EPYC 9B45"));
        assert_eq!(cpu_model("processor : 0\nBogoMIPS : 50.00\n"), None);
        let meminfo = "MemTotal:       24577140 kB\nMemFree: 1 kB\nMemAvailable:   20000000 kB\n";
        assert_eq!(meminfo_bytes(meminfo, "MemTotal"), Some(24_577_140 * 1024));
        assert_eq!(meminfo_bytes(meminfo, "MemAvailable"), Some(20_000_000 * 1024));
        assert_eq!(meminfo_bytes(meminfo, "Mem"), None);
        assert_eq!(meminfo_bytes("MemTotal: lots\n", "MemTotal"), None);
    }

    #[test]
    fn this_machine_has_threads_and_an_engine() {
        let machine = probe();
        assert!(machine.threads.is_some_and(|threads| threads >= 1));
        assert!(!machine.cpu_instructions.is_empty());
    }
}
