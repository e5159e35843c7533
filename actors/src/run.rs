//! A run from the outside: start it, watch it, stop it, learn how it ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorRef, SpawnErr};
use tokio::sync::{oneshot, watch};

use crate::fasta::{FileStamp, Source};
use crate::inference::WorkerCommand;
use crate::manifest::{Manifest, ResultFolder};
use crate::order::{CHECKPOINT_MAX, DEVICE_ORDER_MAX, Order, Refused};
use crate::packing::PackingPlan;
use crate::part::PartSchema;
use crate::restart::RestartPolicy;
use crate::segment::SegmentLimits;
use crate::supervisor::{
    DevicePlan, Outcome, StopReason, Supervisor, SupervisorArguments, SupervisorMessage,
};
use crate::telemetry::{DeviceState, DeviceView, JobView, SNAPSHOT_VERSION, Snapshot};
use crate::writer::SharedCommits;

/// Everything a run needs; nothing in it is validated again.
#[derive(Clone, Debug)]
pub struct RunPlan {
    /// What displays say of the job.
    pub job: JobView,
    /// Input policy.
    pub input: config::Input,
    /// Inputs in reading order, as surveyed.
    pub sources: Vec<Source>,
    /// The inputs' stamps from before the survey.
    pub stamps: Vec<FileStamp>,
    /// Where segments end.
    pub segment_limits: SegmentLimits,
    /// How batches are formed.
    pub packing: PackingPlan,
    /// Tries of one batch before it is halved.
    pub attempts_per_batch_max: u32,
    /// The devices, at least one.
    pub devices: Vec<DevicePlan>,
    /// How workers are started.
    pub worker_command: WorkerCommand,
    /// When failed devices are started again.
    pub restart: RestartPolicy,
    /// When a device that was given up is tried again; `None`: never.
    pub readmit_after: Option<Duration>,
    /// Time without progress after which the run says what holds it up.
    pub stall_max: Duration,
    /// Longest time to load a model.
    pub load_max: Duration,
    /// Longest time without progress.
    pub hang_max: Duration,
    /// Time to commit what is in flight after a stop.
    pub shutdown_grace: Duration,
    /// The result folder.
    pub folder: ResultFolder,
    /// A segment that has been open for so long is kept in a journal as well.
    pub journal_after: Duration,
    /// Columns of the parts.
    pub schema: PartSchema,
    /// What the footer of each part says.
    pub part_metadata: BTreeMap<String, String>,
    /// What is committed already, with the survey's digests and counts.
    pub manifest: Manifest,
}

/// A run that is going on.
pub struct Run {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    supervisor: ActorRef<SupervisorMessage>,
    supervisor_ended: ractor::concurrency::JoinHandle<()>,
    outcome: oneshot::Receiver<Outcome>,
    commits: SharedCommits,
    writer_ended: oneshot::Receiver<()>,
    manifest_before: Manifest,
    folder: ResultFolder,
}

/// Tells a run what to do from elsewhere, such as a signal task.
#[derive(Clone)]
pub struct Stopper(ActorRef<SupervisorMessage>);

impl Stopper {
    /// Asks the run to stop in order; a run that has ended does not mind.
    pub fn stop(&self, reason: StopReason) {
        let _ = self.0.cast(SupervisorMessage::Stop(reason));
    }

    /// Keeps batches from devices, or lets them go on; those that run are completed.
    pub fn pause(&self, paused: bool) {
        let _ = self.0.cast(SupervisorMessage::Pause(paused));
    }

    /// Gives this device no more batches and lets its worker go once it has finished those it holds. Says what
    /// happens.
    ///
    /// # Errors
    /// If there is no such device, it is retired already, or it is the last one.
    pub async fn retire(&self, device: &str) -> Result<String, Refused> {
        self.order(Order::Retire(device.to_owned()), DEVICE_ORDER_MAX).await
    }

    /// Tries a retired device again. Says what happens.
    ///
    /// # Errors
    /// If there is no such device, or it is not retired.
    pub async fn readmit(&self, device: &str) -> Result<String, Refused> {
        self.order(Order::Readmit(device.to_owned()), DEVICE_ORDER_MAX).await
    }

    /// Keeps what is computed of open segments in their journals, synced. Says what is kept.
    ///
    /// # Errors
    /// If something could not be kept.
    pub async fn checkpoint(&self) -> Result<String, Refused> {
        self.order(Order::Checkpoint, CHECKPOINT_MAX).await
    }

    async fn order(&self, order: Order, patience: Duration) -> Result<String, Refused> {
        let (answer, answered) = oneshot::channel();
        let _ = self.0.cast(SupervisorMessage::Order { order, answer });
        match tokio::time::timeout(patience, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Refused("the run is ending".to_owned())),
            Err(_) => {
                let seconds = patience.as_secs();
                Err(Refused(format!("no answer within {seconds} s; it may still be done")))
            }
        }
    }
}

/// How a run ended, and what it leaves.
pub struct RunEnd {
    /// How it ended.
    pub outcome: Outcome,
    /// The manifest with everything committed; its status is still `running`.
    pub manifest: Manifest,
    /// The last snapshot.
    pub snapshot: Arc<Snapshot>,
}

impl Run {
    /// Starts the actors and with them the work.
    ///
    /// # Errors
    /// If an actor cannot be started, such as for want of threads.
    pub async fn start(plan: RunPlan) -> Result<Self, Box<SpawnErr>> {
        let (manifest_before, folder) = (plan.manifest.clone(), plan.folder.clone());
        let first_snapshot = Snapshot {
            version: SNAPSHOT_VERSION,
            job: plan.job.clone(),
            records_total: plan.manifest.counts.records,
            residues_total: plan.manifest.counts.residues,
            records_resumed: plan.manifest.totals.records,
            residues_resumed: plan.manifest.totals.residues,
            residues_done: plan.manifest.totals.residues,
            records_committed: plan.manifest.totals.records,
            residues_committed: plan.manifest.totals.residues,
            failed: plan.manifest.totals.failed,
            devices: plan
                .devices
                .iter()
                .map(|device| DeviceView {
                    name: device.name.clone(),
                    state: DeviceState::Loading,
                    generation: 0,
                    tokens: 0,
                    compute_s: 0.0,
                    cpu_cores: None,
                    resident_bytes: None,
                    gpu: None,
                    token_budget: plan.packing.token_budget,
                    tokens_per_s_now: 0.0,
                    busy_share_now: None,
                    restarts: 0,
                    heartbeat_age_s: None,
                    last_error: None,
                })
                .collect(),
            ..Snapshot::default()
        };
        let (publisher, snapshots) = watch::channel(Arc::new(first_snapshot.clone()));
        let commits = SharedCommits::new(folder.clone(), plan.manifest.clone());
        let (writer_ends, writer_ended) = oneshot::channel();
        let (outcome_sender, outcome) = oneshot::channel();
        let arguments = SupervisorArguments {
            plan,
            snapshots: publisher,
            first_snapshot,
            commits: commits.clone(),
            writer_ended: writer_ends,
            outcome: outcome_sender,
        };
        let (supervisor, supervisor_ended) =
            Actor::spawn(None, Supervisor, arguments).await.map_err(Box::new)?;
        Ok(Self {
            snapshots,
            supervisor,
            supervisor_ended,
            outcome,
            commits,
            writer_ended,
            manifest_before,
            folder,
        })
    }

    /// The state of the run, renewed several times a second.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// A way to stop it.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.supervisor.clone())
    }

    /// Waits for the end.
    pub async fn ended(self) -> RunEnd {
        let outcome = self.outcome.await.unwrap_or_else(|_| {
            let error = "it ended without a word".to_owned();
            Outcome::Stopped(StopReason::ActorFailed { actor: "supervisor", error })
        });
        let _ = self.supervisor_ended.await;
        let manifest = match self.commits.take(self.writer_ended).await {
            Some(manifest) => manifest,
            // What it had committed is in `run.json`.
            None => Manifest::read(&self.folder).ok().flatten().unwrap_or(self.manifest_before),
        };
        let snapshot = self.snapshots.borrow().clone();
        RunEnd { outcome, manifest, snapshot }
    }
}
