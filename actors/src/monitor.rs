//! The monitor actor of a device: samples its worker once a second.
//!
//! That is the worker's processor time and memory, from `/proc`; for an NVIDIA GPU a thread of its own asks
//! the driver besides. It reports to telemetry and decides nothing.

mod gpu;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;

use std::time::{Duration, Instant};

use ractor::{Actor, ActorProcessingErr, ActorRef};

use self::gpu::GpuThread;
pub(crate) use self::gpu::GpuWatch;
use crate::identity::DeviceIndex;
use crate::telemetry::{Reporter, TelemetryMessage};

const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// What a monitor is told.
pub(crate) enum MonitorMessage {
    /// The device's worker is this process from now on; `None`: there is none.
    Watch(Option<u32>),
    /// Take a sample.
    Sample,
}

/// What a monitor starts with.
pub(crate) struct MonitorArguments {
    pub(crate) device: DeviceIndex,
    /// The GPU behind the device, if it is one.
    pub(crate) gpu: Option<GpuWatch>,
    pub(crate) telemetry: Reporter,
}

pub(crate) struct Monitor;

pub(crate) struct MonitorState {
    device: DeviceIndex,
    telemetry: Reporter,
    process: Option<u32>,
    previous: Option<(Instant, Duration)>,
    gpu: Option<GpuThread>,
}

impl Actor for Monitor {
    type Msg = MonitorMessage;
    type State = MonitorState;
    type Arguments = MonitorArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: MonitorArguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        myself.send_interval(SAMPLE_INTERVAL, || MonitorMessage::Sample);
        let MonitorArguments { device, gpu, telemetry } = arguments;
        let gpu = gpu.map(|gpu| gpu.start(device, telemetry.clone())).transpose()?;
        Ok(MonitorState { device, telemetry, process: None, previous: None, gpu })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: MonitorMessage,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        crate::fault::point("monitor");
        match message {
            MonitorMessage::Watch(process) => {
                state.process = process;
                state.previous = None;
            }
            MonitorMessage::Sample => {
                let usage = state.process.and_then(process_usage);
                let now = Instant::now();
                let cpu_cores = match (state.previous, &usage) {
                    (Some((at, before)), Some(usage)) if now > at => {
                        let busy = usage.processor_time.saturating_sub(before);
                        Some(busy.as_secs_f64() / (now - at).as_secs_f64())
                    }
                    _ => None,
                };
                state.previous = usage.as_ref().map(|usage| (now, usage.processor_time));
                let resident_bytes = usage.map(|usage| usage.resident_bytes);
                let device = state.device;
                state.telemetry.tell(TelemetryMessage::Sampled { device, cpu_cores, resident_bytes });
            }
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<Self::Msg>,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(gpu) = state.gpu.take() {
            gpu.stop().await;
        }
        Ok(())
    }
}

struct ProcessUsage {
    processor_time: Duration,
    resident_bytes: u64,
}

/// Reads `/proc/<id>/stat`; `None` if the process is gone or the system has no such file.
fn process_usage(process: u32) -> Option<ProcessUsage> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field, the command, may hold spaces and parentheses: fields are counted after it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok());
    let ticks = field(14)? + field(15)?;
    Some(ProcessUsage {
        processor_time: Duration::from_secs_f64(
            ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
        ),
        resident_bytes: field(24)? * rustix::param::page_size() as u64,
    })
}
