//! How a GPU fares at one moment.

use nvml_wrapper::Device;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{
    Clock, EccCounter, MemoryError, PcieUtilCounter, TemperatureSensor,
};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::{NvmlError as Cause, nvml_sym, nvml_try};
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use serde::{Deserialize, Serialize};

use super::gpu::Questions;

/// A GPU at one moment; each field `None` where the driver does not tell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuSample {
    /// Part of the last moments in which a kernel ran.
    pub busy_percent: Option<u32>,
    /// Part of the last moments in which its memory was read or written.
    pub memory_busy_percent: Option<u32>,
    /// Its memory.
    pub memory_total_bytes: Option<u64>,
    /// Memory that can still be had.
    pub memory_free_bytes: Option<u64>,
    /// Memory in use, that of other processes included.
    pub memory_used_bytes: Option<u64>,
    /// Share of the memory that cannot be had, 0..=1: what is in use and what the driver keeps for itself.
    pub memory_share: Option<f32>,
    /// Temperature of the chip, degrees Celsius.
    pub temperature_c: Option<u32>,
    /// Power that it draws.
    pub power_w: Option<f64>,
    /// Power that it may draw.
    pub power_limit_w: Option<f64>,
    /// Clock of the multiprocessors.
    pub clock_sm_mhz: Option<u32>,
    /// Clock of the memory.
    pub clock_memory_mhz: Option<u32>,
    /// Why the clocks are not as high as they could be; empty if they are.
    pub throttled_by: Option<Vec<String>>,
    /// Data to the GPU over PCIe.
    pub pcie_received_bytes_per_s: Option<u64>,
    /// Data from the GPU over PCIe.
    pub pcie_sent_bytes_per_s: Option<u64>,
    /// Whether its memory corrects errors.
    pub ecc: Option<bool>,
    /// Memory errors that were corrected since the driver was loaded.
    pub ecc_corrected: Option<u64>,
    /// Memory errors that were not, since the driver was loaded: data was wrong.
    pub ecc_uncorrected: Option<u64>,
    /// Memory errors that were corrected in the GPU's life.
    pub ecc_corrected_lifetime: Option<u64>,
    /// Memory errors that were not, in the GPU's life.
    pub ecc_uncorrected_lifetime: Option<u64>,
    /// Critical errors since the watch began.
    pub xid: Option<XidTally>,
    /// Processes that compute on it, as far as this one may see them.
    pub processes: Option<Vec<GpuProcess>>,
}

/// A process that computes on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuProcess {
    /// Its number; in a container that of the host.
    pub process: u32,
    /// Memory of the GPU that it uses.
    pub memory_bytes: Option<u64>,
}

/// Critical errors of a GPU, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XidTally {
    /// How many there were.
    pub count: u64,
    /// Number of the last, by NVIDIA's list; `None` if there was none or the driver does not know it.
    pub last: Option<u64>,
}

impl XidTally {
    pub(super) fn add(&mut self, error: Option<XidError>) {
        self.count += 1;
        self.last = match error {
            Some(XidError::Value(number)) => Some(number),
            Some(XidError::Unknown) | None => None,
        };
    }
}

/// What a critical error of this number usually means, for the common ones.
/// Source: NVIDIA, "XID Errors".
pub fn xid_meaning(number: u64) -> Option<&'static str> {
    Some(match number {
        13 => "a kernel failed, such as by an access out of bounds",
        31 => "a kernel used an address that is not mapped",
        43 => "a kernel was stopped after a fault",
        45 => "work was removed after an earlier error or the end of its process",
        48 => "a memory error could not be corrected",
        63 | 64 => "a faulty row of memory is being replaced",
        74 => "an NVLink connection failed",
        79 => "the GPU has fallen off the bus",
        92 => "many memory errors are being corrected",
        94 => "a memory error could not be corrected, one process is affected",
        95 => "a memory error could not be corrected, every process is affected",
        119 | 120 => "the GPU's own firmware does not answer",
        _ => return None,
    })
}

impl GpuSample {
    pub(super) fn read(questions: &mut Questions<'_, '_>) -> Self {
        let busy = questions.ask(Device::utilization_rates);
        let memory = Memory::read(questions);
        let watts = |milliwatts: u32| f64::from(milliwatts) / 1000.0;
        let limit = questions
            .ask(Device::enforced_power_limit)
            .or_else(|| questions.ask(Device::power_management_limit));
        let mut pcie = |counter| {
            // The driver counts in thousands of bytes.
            questions.ask(|device| device.pcie_throughput(counter)).map(|rate| u64::from(rate) * 1000)
        };
        let (received, sent) = (pcie(PcieUtilCounter::Receive), pcie(PcieUtilCounter::Send));
        let mut errors =
            |kind, span| questions.ask(|device: &Device<'_>| device.total_ecc_errors(kind, span));
        let (corrected, uncorrected) = (MemoryError::Corrected, MemoryError::Uncorrected);
        Self {
            ecc_corrected: errors(corrected, EccCounter::Volatile),
            ecc_uncorrected: errors(uncorrected, EccCounter::Volatile),
            ecc_corrected_lifetime: errors(corrected, EccCounter::Aggregate),
            ecc_uncorrected_lifetime: errors(uncorrected, EccCounter::Aggregate),
            ecc: questions.ask(Device::is_ecc_enabled).map(|state| state.currently_enabled),
            busy_percent: busy.as_ref().map(|busy| busy.gpu),
            memory_busy_percent: busy.as_ref().map(|busy| busy.memory),
            memory_total_bytes: memory.map(|memory| memory.total),
            memory_free_bytes: memory.map(|memory| memory.free),
            memory_used_bytes: memory.map(|memory| memory.used),
            memory_share: memory.and_then(Memory::share),
            temperature_c: questions.ask(|device| device.temperature(TemperatureSensor::Gpu)),
            power_w: questions.ask(Device::power_usage).map(watts),
            power_limit_w: limit.map(watts),
            clock_sm_mhz: questions.ask(|device| device.clock_info(Clock::SM)),
            clock_memory_mhz: questions.ask(|device| device.clock_info(Clock::Memory)),
            throttled_by: questions.ask(Device::current_throttle_reasons).map(throttle_words),
            pcie_received_bytes_per_s: received,
            pcie_sent_bytes_per_s: sent,
            xid: None,
            processes: processes(questions),
        }
    }
}

/// Bytes.
#[derive(Clone, Copy)]
pub(super) struct Memory {
    pub(super) total: u64,
    pub(super) free: u64,
    used: u64,
}

impl Memory {
    pub(super) fn read(questions: &mut Questions<'_, '_>) -> Option<Self> {
        let memory = questions.ask(Device::memory_info).map(|memory| Self {
            total: memory.total,
            free: memory.free,
            used: memory.used,
        });
        // Drivers before 510 know only the older question.
        memory.or_else(|| questions.ask(memory_before_510))
    }

    fn share(self) -> Option<f32> {
        let taken = self.total.saturating_sub(self.free);
        (self.total > 0).then(|| (taken as f64 / self.total as f64) as f32)
    }
}

fn memory_before_510(device: &Device<'_>) -> Result<Memory, Cause> {
    let function = nvml_sym(device.nvml().lib().nvmlDeviceGetMemoryInfo.as_ref())?;
    // SAFETY: the structure is three integers, valid as zeroes.
    let mut memory = unsafe { std::mem::zeroed() };
    // SAFETY: the handle is that of a device of this open library, the structure lives through the call.
    nvml_try(unsafe { function(device.handle(), &mut memory) })?;
    Ok(Memory { total: memory.total, free: memory.free, used: memory.used })
}

fn processes(questions: &mut Questions<'_, '_>) -> Option<Vec<GpuProcess>> {
    let found = questions.ask(Device::running_compute_processes)?;
    let process = |found: ProcessInfo| GpuProcess {
        process: found.pid,
        memory_bytes: match found.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        },
    };
    Some(found.into_iter().map(process).collect())
}

/// Reasons in an operator's words. Those that NVIDIA may add later are left out.
fn throttle_words(reasons: ThrottleReasons) -> Vec<String> {
    const WORDS: [(ThrottleReasons, &str); 9] = [
        (ThrottleReasons::GPU_IDLE, "idle"),
        (ThrottleReasons::APPLICATIONS_CLOCKS_SETTING, "clocks set by the operator"),
        (ThrottleReasons::SW_POWER_CAP, "power limit"),
        (ThrottleReasons::HW_SLOWDOWN, "hardware slowdown"),
        (ThrottleReasons::SYNC_BOOST, "slower GPU of its group"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "temperature"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "temperature (hardware)"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power supply"),
        (ThrottleReasons::DISPLAY_CLOCK_SETTING, "clocks set for a display"),
    ];
    WORDS
        .iter()
        .filter(|(reason, _)| reasons.contains(*reason))
        .map(|(_, words)| (*words).to_owned())
        .collect()
}
