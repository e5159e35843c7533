//! The telemetry actor: gathers what the others report into one [`Snapshot`].
//!
//! Every display reads only the snapshot, through a `watch` that keeps the latest: no display can slow a
//! run. The actor decides nothing, and keeps its books in an [`Account`], a plain value. What happens with every
//! batch it is not told: the packer counts that itself, in a [`WorkAccount`], and is asked for a copy before each
//! snapshot.

mod account;
mod clock;
mod events;
mod pace;
mod snapshot;
mod timeline;
mod verdict;
mod waits;
mod work;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{oneshot, watch};

use self::account::Account;
pub(crate) use self::events::Happening;
pub use self::snapshot::{
    Bottleneck, DeviceState, DeviceView, EventLevel, EventView, GpuView, JobView, PreparingStep,
    PreparingView, Remaining, SNAPSHOT_VERSION, Snapshot, Stage, StageView, Tier, Waits,
};
pub(crate) use self::work::WorkAccount;
use crate::identity::{DeviceIndex, Generation, Worker};
use crate::packer::PackerMessage;

/// How often the snapshot is renewed.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(250);
/// How long a snapshot waits for the packer, which may be packing a segment; then it shows what was known before.
const PACKER_ANSWER_MAX: Duration = Duration::from_millis(100);
/// How long the last one does.
const LAST_ANSWER_MAX: Duration = Duration::from_secs(1);

/// One computed batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchReport {
    pub(crate) device: DeviceIndex,
    pub(crate) sequences: u64,
    pub(crate) tokens: u64,
    /// Of all records with these sequences.
    pub(crate) residues: u64,
    pub(crate) longest_tokens: u64,
    pub(crate) compute_us: u64,
    /// Tokens that its device was allowed when it was lent.
    pub(crate) budget_tokens: u32,
    /// Whether there was not enough left to fill it.
    pub(crate) is_last: bool,
    /// Tokens that its device is allowed from now on.
    pub(crate) device_budget_tokens: u32,
    pub(crate) at: Instant,
}

/// What a stage does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    Busy,
    /// It waits for the stage before.
    Starved,
    /// It waits for the stage after.
    Blocked,
    /// It is not wanted: not begun, paused or done.
    Nothing,
}

/// What a device without a batch waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Supply {
    /// A segment that is being read.
    Reader,
    /// There are batches: the packer has still to lend them.
    Packer,
    /// A complete segment to be committed, so that another may be opened.
    Writer,
    /// Other devices: everything that may be open is lent.
    Devices,
    /// Nothing: the run is paused or stopped, or there is no more.
    Nothing,
}

/// What the packer did with one message, and how things stand after it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackerReport {
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    pub(crate) doing: Doing,
    pub(crate) supply: Supply,
    /// Devices that could compute and hold nothing.
    pub(crate) idle_devices: usize,
    /// How long it had waited for a segment, if it got one.
    pub(crate) segment_wait: Option<Duration>,
    /// Whether the reader owes a segment.
    pub(crate) asked: bool,
    /// Segments whose sequences are not all computed.
    pub(crate) segments_open: usize,
    /// Complete segments that are not committed.
    pub(crate) segments_sealed: usize,
    /// Batches waiting for a device.
    pub(crate) batches: usize,
    /// Most that could wait, had every open segment as many as the largest so far.
    pub(crate) batches_max: usize,
    pub(crate) free_slots: usize,
    pub(crate) paused: bool,
    pub(crate) stopping: bool,
    /// The input is read and every batch is lent.
    pub(crate) is_tail: bool,
}

/// What a stage does from now on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StageReport {
    pub(crate) stage: Stage,
    pub(crate) doing: Doing,
    pub(crate) at: Instant,
    /// How long it waited for what it begins, if it begins something.
    pub(crate) wait: Option<Duration>,
}

/// What telemetry is told.
pub(crate) enum TelemetryMessage {
    /// From the packer: here it is.
    Packer(ActorRef<PackerMessage>),
    /// From the threads of reader and writer.
    Stage(StageReport),
    SegmentCommitted {
        records: u64,
        failed: u64,
        residues: u64,
    },
    DiskFull(bool),
    Device {
        device: DeviceIndex,
        generation: Generation,
        state: DeviceState,
        error: Option<String>,
    },
    /// From an inference actor: when its worker last said something.
    Heard {
        worker: Worker,
        at: Instant,
    },
    Sampled {
        device: DeviceIndex,
        cpu_cores: Option<f64>,
        resident_bytes: Option<u64>,
    },
    GpuSampled {
        device: DeviceIndex,
        view: Box<GpuView>,
    },
    /// From anybody: an operator must know this.
    Event(Happening),
    Publish,
}

/// Tells telemetry things, unless a benchmark has switched it off.
#[derive(Clone)]
pub(crate) struct Reporter(Option<ActorRef<TelemetryMessage>>);

impl Reporter {
    pub(crate) fn new(telemetry: ActorRef<TelemetryMessage>) -> Self {
        Self(crate::fault::telemetry_is_on().then_some(telemetry))
    }

    /// Whether anybody listens.
    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Without telemetry the run ends anyway: its failure is on its way.
    pub(crate) fn tell(&self, message: TelemetryMessage) {
        if let Some(telemetry) = &self.0 {
            let _ = telemetry.cast(message);
        }
    }

    pub(crate) fn event(&self, happening: Happening) {
        self.tell(TelemetryMessage::Event(happening));
    }

    pub(crate) fn stage(&self, stage: Stage, doing: Doing, wait: Option<Duration>) {
        if self.is_on() {
            self.tell(TelemetryMessage::Stage(StageReport { stage, doing, at: Instant::now(), wait }));
        }
    }
}

/// What telemetry starts with.
pub(crate) struct TelemetryArguments {
    pub(crate) first: Snapshot,
    pub(crate) snapshots: watch::Sender<Arc<Snapshot>>,
}

pub(crate) struct Telemetry;

pub(crate) struct TelemetryState {
    account: Account,
    packer: Option<ActorRef<PackerMessage>>,
    /// Sent by the packer, once; closed without a word if it ends before.
    asked: Option<oneshot::Receiver<Box<WorkAccount>>>,
    snapshots: watch::Sender<Arc<Snapshot>>,
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
        if crate::fault::telemetry_is_on() {
            myself.send_interval(PUBLISH_INTERVAL, || TelemetryMessage::Publish);
        }
        let account = Account::new(arguments.first, Instant::now());
        Ok(TelemetryState { account, packer: None, asked: None, snapshots: arguments.snapshots })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: TelemetryMessage,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        crate::fault::point("telemetry");
        match message {
            TelemetryMessage::Publish => state.publish(PACKER_ANSWER_MAX).await,
            TelemetryMessage::Packer(packer) => state.packer = Some(packer),
            message => state.account.take(message, Instant::now()),
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<Self::Msg>,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        // What the packer was asked before may be older than what it did last.
        state.asked = None;
        state.publish(LAST_ANSWER_MAX).await;
        Ok(())
    }
}

impl TelemetryState {
    async fn publish(&mut self, patience: Duration) {
        if self.asked.is_none()
            && let Some(packer) = &self.packer
        {
            let (answer, asked) = oneshot::channel();
            self.asked = packer.cast(PackerMessage::ShowWork(answer)).is_ok().then_some(asked);
        }
        if let Some(asked) = &mut self.asked
            && let Ok(answer) = tokio::time::timeout(patience, asked).await
        {
            self.asked = None;
            // A packer that is gone leaves what it said last.
            if let Ok(work) = answer {
                self.account.take_work(*work);
            }
        }
        self.snapshots.send_replace(Arc::new(self.account.view(Instant::now())));
    }
}

#[cfg(test)]
mod tests;
