//! A run at one moment, as every display, file and viewer gets it.
//!
//! Plain values with serde; [`super::Telemetry`] fills them in. Units are in the names of the fields, shares are
//! 0..=1, and what is not known is `None`, never a guess. What an older version did not write is empty when its file
//! is read.

use std::collections::VecDeque;

use kernels::nvml::{GpuIdentity, GpuSample};
use serde::{Deserialize, Serialize};

use crate::packing::Fill;

/// Version of [`Snapshot`] as others read it. Raise it when a field changes its meaning or goes.
pub const SNAPSHOT_VERSION: u32 = 2;

/// A run at one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// [`SNAPSHOT_VERSION`] of the program that made it.
    pub version: u32,
    /// What is run.
    pub job: JobView,
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
    /// Residues of records that are computed or set aside, committed or not, of all sessions; of records with equal
    /// residues each counts.
    pub residues_done: u64,
    /// Sequences computed in this session; equal ones count once.
    pub sequences_computed: u64,
    /// Tokens computed in this session.
    pub tokens_computed: u64,
    /// Tokens per second over the last ten seconds.
    pub tokens_per_s_now: f64,
    /// Tokens per second since the first batch was lent.
    pub tokens_per_s: f64,
    /// Sequences per second over the last ten seconds.
    pub sequences_per_s_now: f64,
    /// Sequences per second since the first batch was lent.
    pub sequences_per_s: f64,
    /// Time to the end; `None` before there is a rate.
    pub remaining: Option<Remaining>,
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
    /// What is done before the run begins; `None` from then on.
    pub preparing: Option<PreparingView>,
    /// Every stage of the pipeline, in the order of the flow.
    pub stages: Vec<StageView>,
    /// Which stage holds the others up.
    pub bottleneck: Bottleneck,
    /// What happened lately, oldest first; bounded.
    pub events: VecDeque<EventView>,
    /// Every device.
    pub devices: Vec<DeviceView>,
}

impl Snapshot {
    /// Seconds until the end at the rate so far, by residues; `None` before there is a rate.
    pub fn remaining_s(&self) -> Option<f64> {
        self.remaining.map(|remaining| remaining.seconds)
    }

    /// Residues done of the whole run, 0..=1; of a version that did not tell, those committed.
    pub fn done_share(&self) -> f64 {
        let done = self.residues_done.max(self.residues_committed);
        match self.residues_total {
            0 => 0.0,
            total => (done as f64 / total as f64).clamp(0.0, 1.0),
        }
    }
}

/// A run that has not begun: nothing is computed yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PreparingView {
    /// What is being done.
    pub step: PreparingStep,
    /// Bytes of the input that are read, as stored; of standard input first those that are stored.
    pub bytes_read: u64,
    /// Bytes of the input, as stored; 0 while that is not known, as of standard input before its end.
    pub bytes_total: u64,
}

/// What is done before a run begins, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PreparingStep {
    /// Standard input is stored, where that is the input.
    StoringInput,
    /// The whole input is read once.
    #[default]
    ReadingInput,
    /// The digest of the weights is made.
    ReadingWeights,
    /// What earlier sessions committed is checked.
    CheckingResult,
}

impl PreparingStep {
    /// The step in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::StoringInput => "storing standard input",
            Self::ReadingInput => "reading the input",
            Self::ReadingWeights => "reading the weights",
            Self::CheckingResult => "checking what is committed",
        }
    }
}

/// A device at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
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
    /// Tokens that it gets at once at most; less than the job's after it ran short of memory.
    pub token_budget: u32,
    /// Tokens per second over the last ten seconds.
    pub tokens_per_s_now: f64,
    /// Share of the last ten seconds that its engine computed; `None` before its first batch.
    pub busy_share_now: Option<f64>,
    /// Starts of its worker beyond the first in this session.
    pub restarts: u64,
    /// Seconds since its worker was last heard of; `None` while there is no worker.
    pub heartbeat_age_s: Option<f64>,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// Its worker is loading the model.
    #[default]
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

/// What is run: it does not change within a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobView {
    /// The job file.
    pub file: String,
    /// The result folder.
    pub folder: String,
    /// The model's source.
    pub model: String,
    /// Width of an embedding.
    pub hidden: u32,
    /// Layers of the model.
    pub layers: u32,
    /// Arithmetic: `fp32`, `fp16`, `bf16`, `int8`.
    pub precision: String,
    /// How residues are pooled: `mean`, `bos`, `max`, `none`.
    pub pooling: String,
    /// Most tokens of a batch.
    pub token_budget: u32,
    /// Version of the program.
    pub program: String,
    /// Name of the machine.
    pub host: String,
    /// The orchestrator's process.
    pub process: u32,
    /// When the session began, seconds since 1970.
    pub started_unix_s: u64,
}

/// Time to the end, by residues.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Remaining {
    /// At the rate of the whole session, seconds.
    pub seconds: f64,
    /// At the fastest rate seen lately.
    pub low_s: f64,
    /// At the slowest rate seen lately.
    pub high_s: f64,
}

/// A stage of the pipeline, in the order of the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Reads, decompresses and cleans the input, a segment at a time.
    Read,
    /// Packs segments into batches and lends them.
    Pack,
    /// Devices compute batches.
    Compute,
    /// Encodes and commits complete segments.
    Write,
}

impl Stage {
    /// Every stage, in the order of the flow.
    pub const ALL: [Self; 4] = [Self::Read, Self::Pack, Self::Compute, Self::Write];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Pack => "pack",
            Self::Compute => "compute",
            Self::Write => "write",
        }
    }
}

/// A stage at one moment. The three shares are of the session's time so far and of the stage's workers together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageView {
    /// Which.
    pub stage: Stage,
    /// What waits in front of it: segments asked for (read), segments (pack, write), batches (compute).
    pub queued: u64,
    /// Most that may wait there.
    pub capacity: u64,
    /// How long the stage waited for each piece of its work.
    pub waits: Waits,
    /// Share of the time that it worked.
    pub busy_share: f64,
    /// Share of the time that it had nothing to do: the stages before it hold it up.
    pub starved_share: f64,
    /// Share of the time that it could not go on because the stages after it are not done.
    pub blocked_share: f64,
    /// Seconds that it worked in this session, all its workers together.
    pub busy_s: f64,
}

/// How long a stage waited for the pieces of its work, milliseconds. The shares are of the pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Waits {
    /// Pieces so far.
    pub count: u64,
    /// For the latest piece.
    pub now_ms: f64,
    /// Half of the recent pieces took no longer.
    pub p50_ms: f64,
    /// 95 % of the recent pieces took no longer.
    pub p95_ms: f64,
    /// Share of pieces that were there at once, within 1 ms.
    pub full_share: f64,
    /// Share of pieces that took more than 50 ms.
    pub starved_share: f64,
}

/// Which stage holds the others up, and how much that costs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bottleneck {
    /// The stage; `None` while nothing can be said.
    pub stage: Option<Stage>,
    /// How badly devices are used.
    pub tier: Tier,
    /// Mean share of time that devices compute, over the last ten seconds.
    pub utilisation: Option<f64>,
    /// The verdict in one plain sentence.
    pub sentence: String,
}

/// How well devices are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// Too early to tell.
    #[default]
    Unknown,
    /// At least 80 % of the time.
    Good,
    /// 50 to 80 % of the time.
    Mild,
    /// Less than half of the time.
    Critical,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventView {
    /// Grows by one with each event of the session: tells new ones from those already seen.
    pub number: u64,
    /// Seconds since the session began.
    pub at_s: f64,
    /// How serious it is.
    pub level: EventLevel,
    /// The device that it is about.
    pub device: Option<String>,
    /// What happened, in one line.
    pub text: String,
}

/// How serious an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventLevel {
    /// All is well.
    Info,
    /// Something went wrong and was put right.
    Warning,
    /// Something is lost: a device, a record.
    Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What version 1 of the snapshot kept in a result folder.
    const VERSION_1: &str = r#"{"version":1,"elapsed_s":2.5,"records_total":500,"residues_total":50000,
        "records_resumed":0,"residues_resumed":0,"sequences_computed":128,"tokens_computed":12800,
        "tokens_per_s_now":5000.0,"tokens_per_s":5120.0,"records_committed":64,"residues_committed":6400,
        "segments_committed":1,"failed":0,"fill":{"batches":14,"tokens":12800,"capacity_tokens":14000,
        "padded_tokens":25000},"batches_queued":3,"slots_free":0,"restarts":1,"disk_full":false,"paused":false,
        "stopping":false,"devices":[{"name":"sim:0","state":"ready","generation":1,"tokens":12800,
        "compute_s":2.0,"cpu_cores":0.5,"resident_bytes":1000,"gpu":null,"last_error":"worker ended"}]}"#;

    #[test]
    fn snapshots_of_older_versions_are_read() {
        let snapshot: Snapshot = serde_json::from_str(VERSION_1).unwrap();
        assert_eq!((snapshot.version, snapshot.tokens_computed, snapshot.fill.batches), (1, 12_800, 14));
        assert_eq!(
            (snapshot.remaining, snapshot.stages.len(), snapshot.bottleneck.tier),
            (None, 0, Tier::Unknown)
        );
        let device = &snapshot.devices[0];
        assert_eq!((device.state, device.generation, device.heartbeat_age_s), (DeviceState::Ready, 1, None));
        // Nor does one of a later version fail that has more.
        let more = VERSION_1.replacen("{", r#"{"of_tomorrow":[1],"#, 1);
        assert!(serde_json::from_str::<Snapshot>(&more).is_ok());
    }

    #[test]
    fn a_snapshot_survives_its_text() {
        let mut snapshot = Snapshot { version: SNAPSHOT_VERSION, ..Snapshot::default() };
        snapshot.devices.push(DeviceView::default());
        snapshot.remaining = Some(Remaining { seconds: 1.0, low_s: 0.5, high_s: 2.0 });
        let text = serde_json::to_string(&snapshot).unwrap();
        let again: Snapshot = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), text);
    }
}
