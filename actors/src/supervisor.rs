//! The supervisor actor: starts the others, restarts devices, and decides how the run ends.
//!
//! Every actor is linked to it. A device that fails is started again as its next generation, by
//! [`crate::restart`]; the failure of any other actor ends the run resumably. It never touches sequences.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernels::{EngineDescription, EngineOptions};
use ractor::{
    Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, RactorErr, SpawnErr, SupervisionEvent,
};
use tokio::sync::{oneshot, watch};

use crate::fasta::InputError;
use crate::identity::{DeviceIndex, Generation, Worker};
use crate::inference::{
    Departure, Inference, InferenceArguments, InferenceMessage, WorkerCommand, WorkerLimits,
};
use crate::journal::JournalPlace;
use crate::monitor::{GpuWatch, Monitor, MonitorArguments, MonitorMessage};
use crate::order::{Answer, AnswerTo, Order, Refused};
use crate::packer::{Packer, PackerArguments, PackerDevice, PackerMessage, Standing};
use crate::protocol::{Assignment, EngineChoice, VERSION};
use crate::reader::{Reader, ReaderArguments};
use crate::restart::{RestartDecision, RestartHistory, RestartPolicy};
use crate::run::RunPlan;
use crate::telemetry::{
    DeviceState, EventLevel, Happening, Reporter, Snapshot, Telemetry, TelemetryArguments, TelemetryMessage,
};
use crate::watchdog::{Look, Watchdog, holdups};
use crate::writer::{SharedCommits, WriteError, Writer, WriterArguments, WriterMessage};

/// How long a part of the pipeline may take to stop. The writer may be syncing a part, which must not be cut
/// short; but a file system that never answers must not keep a cluster's node busy for ever.
const STOP_MAX: Duration = Duration::from_secs(60);
/// Why a device is retired that did not fail.
const DISMISSED: &str = "retired from outside";
/// Longest time between two tries of a retired device.
const READMIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// Every record is committed or listed as failed.
    Finished,
    /// Ended before that; the same command goes on.
    Stopped(StopReason),
    /// The input turned out bad.
    InputFailed(InputError),
    /// The results could not be written.
    WriteFailed(WriteError),
    /// The model can never work on any of the devices.
    ModelUnusable(String),
}

/// Why a run stopped before its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// A signal, by name.
    #[error("stopped by {0}")]
    Signal(&'static str),
    /// Somebody asked the running program.
    #[error("stopped by `virnucpro-orch stop`")]
    Asked,
    /// No device is left.
    #[error("all devices were lost: {0}")]
    AllDevicesLost(String),
    /// A part of the program failed.
    #[error("the {actor} failed: {error}")]
    ActorFailed {
        /// Which.
        actor: &'static str,
        /// Why.
        error: String,
    },
}

/// A device of the run.
#[derive(Clone, Debug)]
pub struct DevicePlan {
    /// Its name: `cpu`, `sim:3`.
    pub name: String,
    /// Its engine.
    pub engine: EngineChoice,
    /// Layer, pooling, precision, threads.
    pub options: EngineOptions,
    /// The NVIDIA GPU behind it, by a name that its driver knows whatever the environment says.
    pub gpu: Option<String>,
    /// Variables that its worker gets besides ours: which GPU it may see.
    pub environment: Vec<(String, String)>,
    /// Most tokens that it is lent at once, where that is known beforehand to be less than the job's budget.
    pub tokens_max: Option<u32>,
}

/// What the supervisor is told.
pub(crate) enum SupervisorMessage {
    WorkerStarted {
        worker: Worker,
        process: Option<u32>,
    },
    WorkerReady {
        worker: Worker,
        description: EngineDescription,
    },
    WorkerGone {
        worker: Worker,
        departure: Departure,
    },
    DeviceProgressed(Worker),
    /// From an inference actor: its engine did some steps.
    WorkerTicked,
    /// From the packer: a worker did what any can do.
    TrialPassed(Worker),
    /// From the packer: a worker could not even do that.
    WorkerUnfit {
        worker: Worker,
        reason: String,
    },
    Respawn(DeviceIndex),
    /// A device that was given up is tried again.
    Readmit(DeviceIndex),
    /// Look whether anything happens.
    Patrol,
    /// From the packer: how things stand.
    Stood(Standing),
    InputFailed(InputError),
    WriteFailed(WriteError),
    /// From the packer, perhaps more than once: all is done.
    AllCommitted,
    /// From the packer, perhaps more than once: what could be finished after a stop is done.
    Drained,
    /// From outside: stop in order.
    Stop(StopReason),
    /// From outside: lend nothing, or lend again.
    Pause(bool),
    /// From outside: answered at once, or by whom it concerns.
    Order {
        order: Order,
        answer: AnswerTo,
    },
    GraceOver,
}

/// What the supervisor starts with.
pub(crate) struct SupervisorArguments {
    pub(crate) plan: RunPlan,
    pub(crate) snapshots: watch::Sender<Arc<Snapshot>>,
    pub(crate) first_snapshot: Snapshot,
    pub(crate) commits: SharedCommits,
    /// For the writer, which drops it when nothing more will be committed.
    pub(crate) writer_ended: oneshot::Sender<()>,
    pub(crate) outcome: oneshot::Sender<Outcome>,
}

pub(crate) struct Supervisor;

pub(crate) struct SupervisorState {
    devices: Vec<DeviceSlot>,
    roles: HashMap<ActorId, Role>,
    command: WorkerCommand,
    limits: WorkerLimits,
    policy: RestartPolicy,
    readmit_after: Option<Duration>,
    watchdog: Watchdog,
    grace: Duration,
    packer: ActorRef<PackerMessage>,
    writer: ActorRef<WriterMessage>,
    telemetry: Reporter,
    /// Stopped in this order: who feeds before who is fed.
    pipeline: Vec<ActorCell>,
    phase: Phase,
    outcome: Option<oneshot::Sender<Outcome>>,
}

/// Who an actor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Pipeline(&'static str),
    Inference(Worker),
    Monitor(DeviceIndex),
}

struct DeviceSlot {
    plan: DevicePlan,
    generation: Generation,
    history: RestartHistory,
    stage: Stage,
    /// Whether its worker has loaded the model.
    ready: bool,
    monitor: ActorRef<MonitorMessage>,
    last_error: Option<String>,
    /// Starting it again would change nothing.
    hopeless: bool,
    /// Times it was given up without having done anything since.
    retirements: u32,
    /// It was given up before and has not done anything since.
    on_probation: bool,
    /// A person has sent it away: it leaves with its last batch, and only a person takes it back.
    dismissed: bool,
}

enum Stage {
    /// A worker of the current generation lives.
    Live(ActorRef<InferenceMessage>),
    /// A restart is due.
    Pausing,
    Retired,
    Left,
}

#[derive(Debug)]
enum Phase {
    Running,
    /// Finishing what can be committed within the grace time.
    Stopping(StopReason),
    /// Waiting for the workers to leave.
    Ending(Box<Outcome>),
    Ended,
}

impl Actor for Supervisor {
    type Msg = SupervisorMessage;
    type State = SupervisorState;
    type Arguments = SupervisorArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: SupervisorArguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let SupervisorArguments { plan, snapshots, first_snapshot, commits, writer_ended, outcome } =
            arguments;
        let link = || myself.get_cell();
        let telemetry_arguments = TelemetryArguments { first: first_snapshot, snapshots };
        let (telemetry_actor, _) = Actor::spawn_linked(None, Telemetry, telemetry_arguments, link()).await?;
        let telemetry = Reporter::new(telemetry_actor.clone());
        let packer_arguments = PackerArguments {
            plan: plan.packing,
            attempts_max: plan.attempts_per_batch_max,
            devices: plan
                .devices
                .iter()
                .map(|device| PackerDevice {
                    name: device.name.clone(),
                    tokens_max: device.tokens_max,
                    token_budget: plan.manifest.device_token_budgets.get(&device.name).copied(),
                })
                .collect(),
            file_labels: plan.sources.iter().map(|source| source.label().to_owned()).collect(),
            supervisor: myself.clone(),
            telemetry: telemetry.clone(),
        };
        let (packer, _) = Actor::spawn_linked(None, Packer, packer_arguments, link()).await?;
        let identity = plan.manifest.identity.iter();
        let journals = JournalPlace::new(plan.folder.clone(), identity, plan.schema);
        let committed = plan.manifest.segments.keys().map(|&id| crate::identity::SegmentId(id)).collect();
        let reader_arguments = ReaderArguments {
            input: plan.input,
            sources: plan.sources,
            digests: plan.manifest.input.clone(),
            counts: plan.manifest.counts.clone(),
            stamps: plan.stamps,
            limits: plan.segment_limits,
            row_residues_max: plan.schema.residues_max(),
            committed,
            journals: journals.clone(),
            packer: packer.clone(),
            supervisor: myself.clone(),
            telemetry: telemetry.clone(),
        };
        let writer_arguments = WriterArguments {
            folder: plan.folder,
            commits,
            schema: plan.schema,
            part_metadata: plan.part_metadata,
            journals,
            journal_after: plan.journal_after,
            packer: packer.clone(),
            supervisor: myself.clone(),
            telemetry: telemetry.clone(),
            ended: writer_ended,
        };
        let (writer, _) = Actor::spawn_linked(None, Writer, writer_arguments, link()).await?;
        let (reader, _) = Actor::spawn_linked(None, Reader, reader_arguments, link()).await?;
        packer.cast(PackerMessage::Connect { reader: reader.clone(), writer: writer.clone() })?;

        let mut roles = HashMap::from([
            (telemetry_actor.get_id(), Role::Pipeline("telemetry")),
            (packer.get_id(), Role::Pipeline("packer")),
            (writer.get_id(), Role::Pipeline("writer")),
            (reader.get_id(), Role::Pipeline("reader")),
        ]);
        let mut devices = Vec::new();
        for (index, device_plan) in plan.devices.into_iter().enumerate() {
            let device = DeviceIndex(index);
            let gpu = GpuWatch::of_device(&device_plan.name, device_plan.gpu.as_deref());
            let monitor_arguments = MonitorArguments { device, gpu, telemetry: telemetry.clone() };
            let (monitor, _) = Actor::spawn_linked(None, Monitor, monitor_arguments, link()).await?;
            roles.insert(monitor.get_id(), Role::Monitor(device));
            devices.push(DeviceSlot {
                plan: device_plan,
                generation: Generation(0),
                history: RestartHistory::default(),
                stage: Stage::Pausing,
                ready: false,
                monitor,
                last_error: None,
                hopeless: false,
                retirements: 0,
                on_probation: false,
                dismissed: false,
            });
            myself.cast(SupervisorMessage::Respawn(device))?;
        }
        let watchdog = Watchdog::new(plan.stall_max, Instant::now());
        myself.send_interval(watchdog.interval(), || SupervisorMessage::Patrol);
        Ok(SupervisorState {
            devices,
            roles,
            command: plan.worker_command,
            limits: WorkerLimits { load_max: plan.load_max, hang_max: plan.hang_max },
            policy: plan.restart,
            readmit_after: plan.readmit_after,
            watchdog,
            grace: plan.shutdown_grace,
            packer,
            writer: writer.clone(),
            telemetry,
            pipeline: vec![reader.get_cell(), writer.get_cell(), telemetry_actor.get_cell()],
            phase: Phase::Running,
            outcome: Some(outcome),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: SupervisorMessage,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        crate::fault::point("supervisor");
        match message {
            SupervisorMessage::WorkerStarted { worker, process } => {
                state.watch_process(worker.device, process);
            }
            SupervisorMessage::WorkerReady { worker, description } => {
                let slot = &mut state.devices[worker.device.0];
                slot.ready |= slot.generation == worker.generation;
                tracing::info!(
                    device = slot.plan.name,
                    generation = worker.generation.0,
                    engine = description.name,
                    "ready"
                );
                state.report(worker.device, DeviceState::Ready);
                state.device_event(EventLevel::Info, worker.device, "ready");
            }
            SupervisorMessage::WorkerGone { worker, departure } => state.lost(&myself, worker, departure)?,
            SupervisorMessage::DeviceProgressed(worker) => {
                let slot = &mut state.devices[worker.device.0];
                slot.history.progressed();
                slot.retirements = 0;
            }
            SupervisorMessage::WorkerTicked => state.watchdog.progressed(),
            SupervisorMessage::TrialPassed(worker) => state.trial_passed(worker),
            SupervisorMessage::WorkerUnfit { worker, reason } => state.unfit(worker, &reason),
            SupervisorMessage::Readmit(device) => state.readmit(&myself, device)?,
            SupervisorMessage::Patrol => state.patrol(),
            SupervisorMessage::Stood(standing) => state.stood(&standing),
            SupervisorMessage::Respawn(device) => state.respawn(&myself, device).await?,
            SupervisorMessage::InputFailed(error) => state.end(Outcome::InputFailed(error)),
            SupervisorMessage::WriteFailed(error) => state.end(Outcome::WriteFailed(error)),
            SupervisorMessage::AllCommitted => state.end(Outcome::Finished),
            SupervisorMessage::Drained | SupervisorMessage::GraceOver => {
                if let Phase::Stopping(reason) = &state.phase {
                    let reason = reason.clone();
                    state.end(Outcome::Stopped(reason));
                }
            }
            SupervisorMessage::Pause(paused) => {
                state.event(
                    EventLevel::Info,
                    if paused { "paused from outside" } else { "resumed from outside" },
                );
                state.tell_packer(PackerMessage::Pause(paused));
            }
            SupervisorMessage::Order { order, answer } => state.carry_out(&myself, &order, answer)?,
            SupervisorMessage::Stop(reason) => {
                if matches!(state.phase, Phase::Running) {
                    tracing::warn!(%reason, grace_ms = state.grace.as_millis() as u64, "stopping");
                    state.event(EventLevel::Warning, format!("{reason}: finishing what can be committed"));
                    state.phase = Phase::Stopping(reason);
                    state.tell_packer(PackerMessage::StopWithin(state.grace));
                    myself.send_after(state.grace, || SupervisorMessage::GraceOver);
                }
            }
        }
        state.end_when_alone(&myself).await;
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let (actor, error) = match &event {
            SupervisionEvent::ActorTerminated(actor, _, reason) => {
                (actor.get_id(), reason.clone().unwrap_or_else(|| "it stopped".to_owned()))
            }
            SupervisionEvent::ActorFailed(actor, error) => (actor.get_id(), error.to_string()),
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => return Ok(()),
        };
        match state.roles.remove(&actor) {
            Some(Role::Inference(worker)) => {
                // Supervision events overtake messages: what the actor itself said last is in the mailbox
                // already and comes first; after it this one finds a generation that is history.
                let departure = Departure::Failed(error);
                myself.cast(SupervisorMessage::WorkerGone { worker, departure })?;
            }
            Some(Role::Monitor(device)) => {
                tracing::warn!(device = state.devices[device.0].plan.name, error, "monitor failed");
                state.device_event(
                    EventLevel::Warning,
                    device,
                    format!("monitor failed, started again: {error}"),
                );
                state.restart_monitor(&myself, device).await;
            }
            Some(Role::Pipeline(actor)) => {
                let reason = StopReason::ActorFailed { actor, error };
                tracing::error!(%reason, "the run ends");
                state.end(Outcome::Stopped(reason));
            }
            None => {}
        }
        state.end_when_alone(&myself).await;
        Ok(())
    }
}

/// Why an actor could not be started; the framework calls an error on the way a panic.
fn why_not_started(error: &SpawnErr) -> String {
    match error {
        SpawnErr::StartupFailed(why) => why.to_string(),
        other => other.to_string(),
    }
}

impl SupervisorState {
    fn report(&self, device: DeviceIndex, now: DeviceState) {
        let slot = &self.devices[device.0];
        let (generation, error) = (slot.generation, slot.last_error.clone());
        self.telemetry.tell(TelemetryMessage::Device { device, generation, state: now, error });
    }

    fn event(&self, level: EventLevel, text: impl Into<String>) {
        self.telemetry.event(Happening::new(level, text));
    }

    fn device_event(&self, level: EventLevel, device: DeviceIndex, text: impl Into<String>) {
        let name = self.devices[device.0].plan.name.as_str();
        self.telemetry.event(Happening::of_device(level, name, text));
    }

    async fn respawn(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        device: DeviceIndex,
    ) -> Result<(), ActorProcessingErr> {
        let slot = &mut self.devices[device.0];
        if !matches!(slot.stage, Stage::Pausing) || matches!(self.phase, Phase::Ending(_) | Phase::Ended) {
            return Ok(());
        }
        let worker = Worker { device, generation: slot.generation };
        let arguments = InferenceArguments {
            assignment: Assignment {
                version: VERSION,
                worker,
                device_name: slot.plan.name.clone(),
                engine: slot.plan.engine.clone(),
                options: slot.plan.options.clone(),
            },
            command: self.command.clone(),
            environment: slot.plan.environment.clone(),
            limits: self.limits,
            packer: self.packer.clone(),
            supervisor: myself.clone(),
            telemetry: self.telemetry.clone(),
        };
        match Actor::spawn_linked(None, Inference, arguments, myself.get_cell()).await {
            Ok((inference, _)) => {
                self.roles.insert(inference.get_id(), Role::Inference(worker));
                slot.stage = Stage::Live(inference);
                slot.ready = false;
                self.report(device, DeviceState::Loading);
                self.device_event(EventLevel::Info, device, "started, loads the model");
                Ok(())
            }
            Err(error) => {
                let reason = format!("worker could not be started: {}", why_not_started(&error));
                self.device_failed(myself, worker, Departure::Failed(reason))
            }
        }
    }

    /// A worker is gone, whatever told us first.
    fn lost(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        worker: Worker,
        departure: Departure,
    ) -> Result<(), ActorProcessingErr> {
        if self.is_current(worker) { self.device_failed(myself, worker, departure) } else { Ok(()) }
    }

    fn device_failed(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        worker: Worker,
        departure: Departure,
    ) -> Result<(), ActorProcessingErr> {
        let device = worker.device;
        self.watch_process(device, None);
        let slot = &mut self.devices[device.0];
        if slot.dismissed {
            let reason = match departure {
                Departure::Asked => DISMISSED.to_owned(),
                Departure::Failed(reason) | Departure::Unusable(reason) => {
                    format!("{DISMISSED}; then {reason}")
                }
            };
            tracing::info!(device = slot.plan.name, reason, "device retired");
            slot.stage = Stage::Retired;
            slot.last_error = Some(reason.clone());
            self.report(device, DeviceState::Retired);
            self.device_event(EventLevel::Info, device, reason.clone());
            self.tell_packer(PackerMessage::WorkerLost { worker, reason });
            self.end_if_none_is_left();
            return Ok(());
        }
        let (reason, hopeless) = match departure {
            Departure::Asked => {
                slot.stage = Stage::Left;
                self.report(device, DeviceState::Stopped);
                return Ok(());
            }
            Departure::Failed(reason) => (reason, false),
            Departure::Unusable(reason) => (reason, true),
        };
        slot.last_error = Some(reason.clone());
        slot.hopeless = hopeless;
        let jitter =
            u64::from(std::process::id()) * 31 + device.0 as u64 * 389 + u64::from(worker.generation.0);
        let decision = if hopeless || std::mem::take(&mut slot.on_probation) {
            RestartDecision::Retire
        } else {
            slot.history.failed(self.policy, jitter)
        };
        let name = &slot.plan.name;
        match decision {
            RestartDecision::After(pause) => {
                tracing::warn!(
                    device = name,
                    reason,
                    pause_ms = pause.as_millis() as u64,
                    "device failed, restarting"
                );
                slot.generation = slot.generation.next();
                slot.stage = Stage::Pausing;
                myself.send_after(pause, move || SupervisorMessage::Respawn(device));
                self.report(device, DeviceState::Waiting);
                let text = format!("failed, started again in {} ms: {reason}", pause.as_millis());
                self.device_event(EventLevel::Warning, device, text);
            }
            RestartDecision::Retire => {
                tracing::error!(device = name, reason, "device retired");
                slot.stage = Stage::Retired;
                slot.retirements += 1;
                if let Some(pause) = self.readmit_after.filter(|_| !hopeless) {
                    let pause = pause.saturating_mul(1 << (slot.retirements - 1).min(16)).min(READMIT_MAX);
                    myself.send_after(pause, move || SupervisorMessage::Readmit(device));
                }
                self.tell_packer(PackerMessage::DeviceRetired(device));
                self.report(device, DeviceState::Retired);
                self.device_event(EventLevel::Error, device, format!("failed and is retired: {reason}"));
            }
        }
        self.tell_packer(PackerMessage::WorkerLost { worker, reason });
        self.end_if_none_is_left();
        Ok(())
    }

    fn end_if_none_is_left(&mut self) {
        if self.devices.iter().all(|slot| matches!(slot.stage, Stage::Retired)) {
            let errors = self.devices.iter().map(|slot| {
                format!("{}: {}", slot.plan.name, slot.last_error.as_deref().unwrap_or("unknown reason"))
            });
            let errors = errors.collect::<Vec<_>>().join("; ");
            let outcome = if self.devices.iter().all(|slot| slot.hopeless) {
                Outcome::ModelUnusable(errors)
            } else {
                Outcome::Stopped(StopReason::AllDevicesLost(errors))
            };
            self.end(outcome);
        }
    }

    fn carry_out(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        order: &Order,
        answer: AnswerTo,
    ) -> Result<(), ActorProcessingErr> {
        let answered = match (&self.phase, order) {
            (Phase::Ending(_) | Phase::Ended, _) => Err(Refused("the run is ending".to_owned())),
            (Phase::Stopping(_), Order::Retire(_) | Order::Readmit(_)) => {
                Err(Refused("the run is being stopped".to_owned()))
            }
            (Phase::Running, Order::Retire(name)) => self.dismiss(name),
            (Phase::Running, Order::Readmit(name)) => self.take_back(myself, name)?,
            (Phase::Running | Phase::Stopping(_), Order::Checkpoint) => {
                tracing::info!("checkpoint asked for from outside");
                self.event(EventLevel::Info, "checkpoint asked for from outside");
                // A writer that has failed drops the answer, which says enough.
                let _ = self.writer.cast(WriterMessage::Checkpoint { answer, since: Instant::now() });
                return Ok(());
            }
        };
        let _ = answer.send(answered);
        Ok(())
    }

    fn device_named(&self, name: &str) -> Result<DeviceIndex, Refused> {
        let found = self.devices.iter().position(|slot| slot.plan.name == name);
        found.map(DeviceIndex).ok_or_else(|| {
            let names: Vec<&str> = self.devices.iter().map(|slot| slot.plan.name.as_str()).collect();
            Refused(format!("this job has no device `{name}`, only {}", names.join(", ")))
        })
    }

    /// Sends a device away on a person's word.
    fn dismiss(&mut self, name: &str) -> Answer {
        let device = self.device_named(name)?;
        let others = self.devices.iter().filter(|slot| slot.plan.name != name);
        let is_last = others
            .filter(|slot| matches!(slot.stage, Stage::Live(_) | Stage::Pausing) && !slot.dismissed)
            .count()
            == 0;
        let slot = &mut self.devices[device.0];
        let is_gone = matches!(slot.stage, Stage::Retired | Stage::Left);
        if slot.dismissed {
            return Err(Refused(if is_gone {
                format!("`{name}` is retired already")
            } else {
                format!("`{name}` is being retired already")
            }));
        }
        if is_last && !is_gone {
            return Err(Refused(format!(
                "`{name}` is the last device: stop or pause the job instead, or readmit another device first"
            )));
        }
        slot.dismissed = true;
        let words = match &slot.stage {
            Stage::Live(inference) => {
                let inference = inference.clone();
                self.tell_packer(PackerMessage::LetGo { device, inference });
                format!("`{name}` gets no more batches and leaves when it has finished those it holds")
            }
            Stage::Pausing => {
                slot.stage = Stage::Retired;
                slot.last_error = Some(DISMISSED.to_owned());
                self.report(device, DeviceState::Retired);
                self.tell_packer(PackerMessage::DeviceRetired(device));
                format!("`{name}`, which was about to be restarted, is retired")
            }
            Stage::Retired | Stage::Left => {
                format!("`{name}` was retired before and will not be tried again by itself")
            }
        };
        tracing::info!(device = name, "retired from outside");
        self.device_event(EventLevel::Info, device, format!("asked from outside to retire: {words}"));
        Ok(words)
    }

    /// Tries a retired device again on a person's word.
    fn take_back(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        name: &str,
    ) -> Result<Answer, ActorProcessingErr> {
        let device = match self.device_named(name) {
            Ok(device) => device,
            Err(refused) => return Ok(Err(refused)),
        };
        let slot = &mut self.devices[device.0];
        match &slot.stage {
            Stage::Retired => {}
            Stage::Live(_) if slot.dismissed => {
                let text = format!("`{name}` still finishes what it holds: ask again once it is retired");
                return Ok(Err(Refused(text)));
            }
            Stage::Live(_) | Stage::Pausing | Stage::Left => {
                return Ok(Err(Refused(format!("`{name}` is not retired"))));
            }
        }
        slot.dismissed = false;
        slot.hopeless = false;
        self.readmit(myself, device)?;
        Ok(Ok(format!("`{name}` is tried again; it gets sequences once it has passed a trial")))
    }

    /// A message to a packer that has failed is lost, and the run ends for that reason anyway.
    fn tell_packer(&self, message: PackerMessage) {
        let _ = self.packer.cast(message);
    }

    /// Without a monitor there are no samples, which costs nobody anything else.
    fn watch_process(&self, device: DeviceIndex, process: Option<u32>) {
        let _ = self.devices[device.0].monitor.cast(MonitorMessage::Watch(process));
    }

    async fn restart_monitor(&mut self, myself: &ActorRef<SupervisorMessage>, device: DeviceIndex) {
        let plan = &self.devices[device.0].plan;
        let gpu = GpuWatch::of_device(&plan.name, plan.gpu.as_deref());
        let arguments = MonitorArguments { device, gpu, telemetry: self.telemetry.clone() };
        if let Ok((monitor, _)) = Actor::spawn_linked(None, Monitor, arguments, myself.get_cell()).await {
            self.roles.insert(monitor.get_id(), Role::Monitor(device));
            self.devices[device.0].monitor = monitor;
        }
    }

    fn is_current(&self, worker: Worker) -> bool {
        let slot = &self.devices[worker.device.0];
        slot.generation == worker.generation && matches!(slot.stage, Stage::Live(_))
    }

    fn trial_passed(&mut self, worker: Worker) {
        if !self.is_current(worker) {
            return;
        }
        let slot = &mut self.devices[worker.device.0];
        if std::mem::take(&mut slot.on_probation) {
            slot.history.progressed();
            tracing::info!(device = slot.plan.name, "device works again and is taken back");
            self.device_event(EventLevel::Info, worker.device, "works again and is taken back");
        }
    }

    /// A worker that fails what any can do has a broken engine or device: a fresh process may cure it, and
    /// the restart budget ends it otherwise.
    fn unfit(&mut self, worker: Worker, reason: &str) {
        if self.is_current(worker)
            && let Stage::Live(inference) = &self.devices[worker.device.0].stage
        {
            let _ = inference.cast(InferenceMessage::GiveUp(format!("it fails whatever it gets: {reason}")));
        }
    }

    fn readmit(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        device: DeviceIndex,
    ) -> Result<(), ActorProcessingErr> {
        let slot = &mut self.devices[device.0];
        // A person may have been faster than the timer, either way.
        if !matches!(self.phase, Phase::Running) || !matches!(slot.stage, Stage::Retired) || slot.dismissed {
            return Ok(());
        }
        tracing::info!(device = slot.plan.name, "retired device is tried again");
        slot.generation = slot.generation.next();
        slot.stage = Stage::Pausing;
        slot.on_probation = true;
        self.tell_packer(PackerMessage::DeviceReadmitted(device));
        self.device_event(EventLevel::Info, device, "retired before, is tried again");
        myself.cast(SupervisorMessage::Respawn(device)).map_err(Into::into)
    }

    fn patrol(&mut self) {
        if !matches!(self.phase, Phase::Running | Phase::Stopping(_)) {
            return;
        }
        match self.watchdog.look(Instant::now()) {
            Look::Ask => self.tell_packer(PackerMessage::WhereDoesItStand),
            Look::Wait => {}
            Look::Deaf(time) => {
                let error = format!("it has not answered for {:.0} s", time.as_secs_f64());
                self.end(Outcome::Stopped(StopReason::ActorFailed { actor: "packer", error }));
            }
        }
    }

    fn stood(&mut self, standing: &Standing) {
        if let Some(silent) = self.watchdog.stood(standing) {
            let state = |slot: &DeviceSlot| match &slot.stage {
                Stage::Live(_) if slot.ready => "ready",
                Stage::Live(_) => "loading the model",
                Stage::Pausing => "about to be restarted",
                Stage::Retired => "retired",
                Stage::Left => "done",
            };
            let devices: Vec<_> =
                self.devices.iter().map(|slot| (slot.plan.name.clone(), state(slot))).collect();
            let waiting_for = holdups(standing, &devices);
            tracing::warn!(seconds = silent.as_secs(), waiting_for, "no progress");
            self.event(EventLevel::Warning, format!("no progress for {} s: {waiting_for}", silent.as_secs()));
        }
    }

    /// Begins the end; the first cause wins.
    fn end(&mut self, outcome: Outcome) {
        if matches!(self.phase, Phase::Ending(_) | Phase::Ended) {
            return;
        }
        match &outcome {
            Outcome::Finished => self.event(EventLevel::Info, "everything is committed"),
            Outcome::Stopped(StopReason::Signal(_) | StopReason::Asked) => {
                self.event(EventLevel::Info, "stopped: the same command goes on");
            }
            Outcome::Stopped(reason) => self.event(EventLevel::Error, reason.to_string()),
            Outcome::InputFailed(error) => self.event(EventLevel::Error, crate::error_chain(error)),
            Outcome::WriteFailed(error) => self.event(EventLevel::Error, crate::error_chain(error)),
            Outcome::ModelUnusable(error) => self.event(EventLevel::Error, error.clone()),
        }
        self.phase = Phase::Ending(Box::new(outcome));
        for slot in &mut self.devices {
            match &slot.stage {
                Stage::Live(inference) => {
                    let _ = inference.cast(InferenceMessage::Shutdown);
                }
                Stage::Pausing => slot.stage = Stage::Left,
                Stage::Retired | Stage::Left => {}
            }
        }
    }

    /// Once every worker has left: stops the pipeline, lets the writer finish, says how it ended.
    async fn end_when_alone(&mut self, myself: &ActorRef<SupervisorMessage>) {
        let alone = self.devices.iter().all(|slot| !matches!(slot.stage, Stage::Live(_)));
        if !alone || !matches!(self.phase, Phase::Ending(_)) {
            return;
        }
        let Phase::Ending(outcome) = std::mem::replace(&mut self.phase, Phase::Ended) else { return };
        self.roles.clear();
        for actor in self.pipeline.drain(..) {
            let name = actor.get_name().unwrap_or_default();
            // A stop would overtake what is in its mailbox: batches that the packer has delivered.
            if let Err(RactorErr::Timeout) = actor.drain_and_wait(Some(STOP_MAX)).await {
                tracing::error!(actor = name, seconds = STOP_MAX.as_secs(), "does not stop, left behind");
            }
        }
        self.packer.stop(None);
        if let Some(sender) = self.outcome.take() {
            let _ = sender.send(*outcome);
        }
        myself.stop(None);
    }
}
