//! The telemetry actor: gathers what the others report into one [`Snapshot`].
//!
//! Every display reads only the snapshot, through a `watch` that keeps the latest: no display can slow a
//! run. The actor decides nothing.

mod snapshot;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;

use crate::identity::{DeviceIndex, Generation};

pub use self::snapshot::{
    Bottleneck, DeviceState, DeviceView, EventLevel, EventView, GpuView, JobView, Remaining,
    SNAPSHOT_VERSION, Snapshot, Stage, StageView, Tier, Waits,
};

/// How often the snapshot is renewed.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(250);
/// Time over which the current rate is taken.
const RATE_WINDOW: Duration = Duration::from_secs(10);

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
        snapshot.remaining = remaining(snapshot);
        self.snapshots.send_replace(Arc::new(snapshot.clone()));
    }
}

/// Time to the end at the rate so far, by residues; `None` before there is a rate.
fn remaining(snapshot: &Snapshot) -> Option<Remaining> {
    let computed = snapshot.residues_computed();
    if computed == 0 || snapshot.elapsed_s <= 0.0 {
        return None;
    }
    let left = snapshot.residues_total.saturating_sub(snapshot.residues_resumed + computed);
    let seconds = left as f64 / (computed as f64 / snapshot.elapsed_s);
    Some(Remaining { seconds, low_s: seconds, high_s: seconds })
}
