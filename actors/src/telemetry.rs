//! The telemetry actor: gathers what the others report into one [`Snapshot`].
//!
//! Every display reads only the snapshot, through a `watch` that keeps the latest: no display can slow a
//! run. The actor decides nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernels::nvml::{GpuIdentity, GpuSample};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::identity::{DeviceIndex, Generation};
use crate::packing::Fill;

/// How often the snapshot is renewed.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(250);
/// Time over which the current rate is taken.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// Version of [`Snapshot`] as others read it. Raise it when a field changes its meaning or goes.
pub const SNAPSHOT_VERSION: u32 = 1;

/// A run at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`SNAPSHOT_VERSION`] of the program that made it.
    pub version: u32,
    /// Seconds since the session began.
    pub elapsed_s: f64,
    /// Input records of the whole run.
    pub records_total: u64,
    /// Residues of the whole run.
    pub residues_total: u64,
    /// Records settled by earlier sessions.
    pub records_resumed: u64,
    /// Residues settled by earlier sessions.
    pub residues_resumed: u64,
    /// Sequences computed in this session; equal ones count once.
    pub sequences_computed: u64,
    /// Tokens computed in this session.
    pub tokens_computed: u64,
    /// Tokens per second over the last ten seconds.
    pub tokens_per_s_now: f64,
    /// Tokens per second since the first batch was lent.
    pub tokens_per_s: f64,
    /// Records settled: in committed segments of all sessions.
    pub records_committed: u64,
    /// Residues in committed segments of all sessions.
    pub residues_committed: u64,
    /// Segments committed in this session.
    pub segments_committed: u64,
    /// Records listed in `failed.tsv` so far.
    pub failed: u64,
    /// How well batches are filled.
    pub fill: Fill,
    /// Batches waiting for a device.
    pub batches_queued: usize,
    /// Free slots waiting for a batch.
    pub slots_free: usize,
    /// Worker restarts in this session.
    pub restarts: u64,
    /// Whether writing waits for room on the disk.
    pub disk_full: bool,
    /// Whether somebody has paused the run: devices get no batches.
    pub paused: bool,
    /// Whether the run is being stopped.
    pub stopping: bool,
    /// Every device.
    pub devices: Vec<DeviceView>,
}

impl Snapshot {
    /// Seconds until the end at the rate so far, by residues; `None` before there is a rate.
    pub fn remaining_s(&self) -> Option<f64> {
        let computed = self.residues_computed();
        if computed == 0 || self.elapsed_s <= 0.0 {
            return None;
        }
        let left = self.residues_total.saturating_sub(self.residues_resumed + computed);
        Some(left as f64 / (computed as f64 / self.elapsed_s))
    }

    /// Residues computed in this session, BOS and EOS not counted.
    pub fn residues_computed(&self) -> u64 {
        self.tokens_computed.saturating_sub(2 * self.sequences_computed)
    }
}

/// A device at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DeviceView {
    /// Its name: `cpu`, `sim:3`.
    pub name: String,
    /// What it is doing.
    pub state: DeviceState,
    /// How often it was started, from 0.
    pub generation: u32,
    /// Tokens computed in this session.
    pub tokens: u64,
    /// Time in the engine, seconds.
    pub compute_s: f64,
    /// Processor time of the worker, in cores; `None` where it cannot be read.
    pub cpu_cores: Option<f64>,
    /// Resident memory of the worker; `None` where it cannot be read.
    pub resident_bytes: Option<u64>,
    /// How its GPU fares; `None` for a device that is none.
    pub gpu: Option<GpuView>,
    /// Why it last failed.
    pub last_error: Option<String>,
}

/// A GPU at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuView {
    /// What the driver calls it, as far as it has ever told.
    pub identity: GpuIdentity,
    /// Its latest sample; `None` while the GPU is lost or the driver cannot be asked.
    pub sample: Option<GpuSample>,
}

/// What a device is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// Its worker is loading the model.
    Loading,
    /// It takes batches.
    Ready,
    /// It failed and will be started again.
    Waiting,
    /// It was given up.
    Retired,
    /// Its worker has left after the work.
    Stopped,
}

/// One computed batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchReport {
    pub(crate) device: DeviceIndex,
    pub(crate) sequences: u64,
    pub(crate) tokens: u64,
    pub(crate) longest_tokens: u64,
    pub(crate) compute_us: u64,
}

/// What telemetry is told.
pub(crate) enum TelemetryMessage {
    BatchCompleted(BatchReport),
    Queue { batches: usize, free_slots: usize, paused: bool, stopping: bool },
    SegmentCommitted { records: u64, failed: u64, residues: u64 },
    DiskFull(bool),
    Device { device: DeviceIndex, generation: Generation, state: DeviceState, error: Option<String> },
    Sampled { device: DeviceIndex, cpu_cores: Option<f64>, resident_bytes: Option<u64> },
    GpuSampled { device: DeviceIndex, view: Box<GpuView> },
    Publish,
}

/// What telemetry starts with.
pub(crate) struct TelemetryArguments {
    pub(crate) first: Snapshot,
    pub(crate) token_budget: u32,
    pub(crate) snapshots: watch::Sender<Arc<Snapshot>>,
}

pub(crate) struct Telemetry;

pub(crate) struct TelemetryState {
    snapshot: Snapshot,
    token_budget: u32,
    snapshots: watch::Sender<Arc<Snapshot>>,
    started: Instant,
    first_batch: Option<Instant>,
    /// Tokens computed, one entry per publishing, within [`RATE_WINDOW`].
    recent: VecDeque<(Instant, u64)>,
}

impl Actor for Telemetry {
    type Msg = TelemetryMessage;
    type State = TelemetryState;
    type Arguments = TelemetryArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: TelemetryArguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        myself.send_interval(PUBLISH_INTERVAL, || TelemetryMessage::Publish);
        Ok(TelemetryState {
            snapshot: arguments.first,
            token_budget: arguments.token_budget,
            snapshots: arguments.snapshots,
            started: Instant::now(),
            first_batch: None,
            recent: VecDeque::new(),
        })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: TelemetryMessage,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        crate::fault::point("telemetry");
        let snapshot = &mut state.snapshot;
        match message {
            TelemetryMessage::BatchCompleted(report) => {
                let began = Instant::now() - Duration::from_micros(report.compute_us);
                state.first_batch.get_or_insert(began);
                snapshot.sequences_computed += report.sequences;
                snapshot.tokens_computed += report.tokens;
                let (sequences, longest) = (report.sequences as usize, report.longest_tokens);
                snapshot.fill.add(sequences, report.tokens, longest, state.token_budget);
                let device = &mut snapshot.devices[report.device.0];
                device.tokens += report.tokens;
                device.compute_s += report.compute_us as f64 / 1e6;
            }
            TelemetryMessage::Queue { batches, free_slots, paused, stopping } => {
                snapshot.batches_queued = batches;
                snapshot.slots_free = free_slots;
                (snapshot.paused, snapshot.stopping) = (paused, stopping);
            }
            TelemetryMessage::SegmentCommitted { records, failed, residues } => {
                snapshot.segments_committed += 1;
                snapshot.records_committed += records;
                snapshot.residues_committed += residues;
                snapshot.failed += failed;
            }
            TelemetryMessage::DiskFull(full) => snapshot.disk_full = full,
            TelemetryMessage::Device { device, generation, state: now, error } => {
                let view = &mut snapshot.devices[device.0];
                snapshot.restarts += u64::from(generation.0 > view.generation);
                view.state = now;
                view.generation = generation.0;
                view.last_error = error.or_else(|| view.last_error.take());
            }
            TelemetryMessage::Sampled { device, cpu_cores, resident_bytes } => {
                let view = &mut snapshot.devices[device.0];
                (view.cpu_cores, view.resident_bytes) = (cpu_cores, resident_bytes);
            }
            TelemetryMessage::GpuSampled { device, view } => snapshot.devices[device.0].gpu = Some(*view),
            TelemetryMessage::Publish => state.publish(),
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<Self::Msg>,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        state.publish();
        Ok(())
    }
}

impl TelemetryState {
    fn publish(&mut self) {
        let now = Instant::now();
        let snapshot = &mut self.snapshot;
        snapshot.elapsed_s = (now - self.started).as_secs_f64();
        if let Some(first) = self.first_batch {
            snapshot.tokens_per_s = snapshot.tokens_computed as f64 / (now - first).as_secs_f64().max(1e-6);
        }
        self.recent.push_back((now, snapshot.tokens_computed));
        while self.recent.front().is_some_and(|&(at, _)| now - at > RATE_WINDOW) {
            self.recent.pop_front();
        }
        if let Some(&(since, tokens)) = self.recent.front().filter(|&&(since, _)| since < now) {
            let gained = (snapshot.tokens_computed - tokens) as f64;
            snapshot.tokens_per_s_now = gained / (now - since).as_secs_f64();
        }
        self.snapshots.send_replace(Arc::new(snapshot.clone()));
    }
}
