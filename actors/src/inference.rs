//! The inference actor of a device: owns one worker process, feeds it batches, returns its answers.
//!
//! One actor per generation: it spawns the process, speaks the protocol, and ends when the process is
//! gone, having told the supervisor why. It never blocks (the start of the process has a thread of its own;
//! socket, process and stderr have tasks) and never decides what happens to a batch or a device.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use kernels::{Batch, EngineDescription, EngineError};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::mpsc;

use crate::bounds::{self, SLOTS_MAX};
use crate::identity::{BatchId, Worker};
use crate::launch::launch;
use crate::ledger::Completion;
use crate::packer::PackerMessage;
use crate::protocol::{self, Assignment, FromWorker, HEARTBEAT_INTERVAL_MS, ToWorker};
use crate::supervisor::SupervisorMessage;
use crate::telemetry::{Reporter, TelemetryMessage};

/// How often deadlines are looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(HEARTBEAT_INTERVAL_MS);
/// Progress is heard of with the heartbeats: a few of them must have gone by before their silence means a hang,
/// however short `hang_ms` is.
const HANG_MIN: Duration = Duration::from_millis(5 * HEARTBEAT_INTERVAL_MS);
/// Most that one look at a deadline counts: what goes beyond it, the orchestrator itself was suspended or
/// short of processor time, and the worker is not to blame.
const LOOK_MAX: Duration = Duration::from_millis(3 * HEARTBEAT_INTERVAL_MS);
/// How long a worker that failed may take to leave by itself before it is killed; drivers clean up on exit.
const LEAVE_GRACE: Duration = Duration::from_millis(200);
/// How long a worker that was told to leave, or whose socket closed, may take to exit.
const EXIT_GRACE: Duration = Duration::from_secs(5);
/// How long after the kill the socket may take to say that nothing more comes. It never does while the process does
/// not die, or another one has a copy of it.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// How the worker process is started: this executable with the hidden command `worker`.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    /// The program.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// Time limits of a worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkerLimits {
    pub(crate) load_max: Duration,
    pub(crate) hang_max: Duration,
}

/// How long `kill -9` may take: a process inside a driver that is stuck dies only when that lets go.
const KILL_MAX: Duration = Duration::from_secs(10);

/// Longest line of a worker's log.
const LOG_LINE_BYTES_MAX: u64 = 64 << 10;

/// What an inference actor is told.
pub(crate) enum InferenceMessage {
    /// From the packer: run this batch.
    Run { batch: BatchId, sequences: Batch, exact: bool },
    /// From the supervisor: leave, whatever it holds.
    Shutdown,
    /// From the packer: no further batch follows; leave once those that are held are answered.
    Leave,
    /// From the supervisor: the worker answers nonsense, end it.
    GiveUp(String),
    /// From the thread that starts the process: here it is, before `Disconnected` tells that it is gone. What it
    /// says may come first.
    Started(io::Result<Child>),
    /// From the socket task: the worker said something.
    Said(FromWorker, Vec<f32>),
    /// From the socket task: the worker's end of the socket is closed. From itself: enough of waiting for that.
    Disconnected(Option<String>),
    /// From itself: the worker had its time to leave.
    Kill,
    /// From the process task.
    Exited(Option<ExitStatus>),
    /// Look at the deadlines.
    Watch,
}

/// What an inference actor starts with.
pub(crate) struct InferenceArguments {
    pub(crate) assignment: Assignment,
    pub(crate) command: WorkerCommand,
    /// Variables for the process, besides ours.
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) limits: WorkerLimits,
    pub(crate) packer: ActorRef<PackerMessage>,
    pub(crate) supervisor: ActorRef<SupervisorMessage>,
    pub(crate) telemetry: Reporter,
}

/// Why a worker is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Departure {
    /// It was told to.
    Asked,
    /// It or its engine failed.
    Failed(String),
    /// Its model can never work on this device.
    Unusable(String),
}

pub(crate) struct Inference;

pub(crate) struct InferenceState {
    worker: Worker,
    device_name: String,
    limits: WorkerLimits,
    packer: ActorRef<PackerMessage>,
    supervisor: ActorRef<SupervisorMessage>,
    telemetry: Reporter,
    /// When the worker last said something.
    heard_at: Instant,
    process: Process,
    /// Frames to the socket task; at most one `Load`, [`SLOTS_MAX`] `Run`s and one `Shutdown`, so never full.
    /// Closing it closes our end of the socket, upon which a worker that can leaves at once.
    frames: Option<mpsc::Sender<Vec<u8>>>,
    /// Batches held by the worker, in the order in which it runs them.
    held: VecDeque<BatchId>,
    ready: bool,
    /// Nothing more will come; it leaves with its last answer.
    leaving: bool,
    /// It had its time to leave.
    killed: bool,
    /// The first cause known; later ones follow from it.
    departure: Option<Departure>,
    ticks: u64,
    /// Time without a step of the engine.
    silent: Duration,
    watched_at: Instant,
}

/// A worker's process.
enum Process {
    /// The system has not said yet that it is there.
    Starting,
    Running(Child),
    /// Its task waits for its end, or it never began.
    Ending,
}

impl Actor for Inference {
    type Msg = InferenceMessage;
    type State = InferenceState;
    type Arguments = InferenceArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: InferenceArguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let InferenceArguments { assignment, command, environment, limits, packer, supervisor, telemetry } =
            arguments;
        let (own_end, worker_end) = std::os::unix::net::UnixStream::pair()?;
        own_end.set_nonblocking(true)?;
        let mut process = Command::new(&command.program);
        process
            .arg0("virnucpro-orch")
            .args(&command.arguments)
            .envs(environment)
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(worker_end)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // A group of its own: what is typed in a terminal is for the orchestrator, which then decides.
            .process_group(0)
            .kill_on_drop(true);
        let (starting, failing) = (myself.clone(), myself.clone());
        // An actor that does not want the process any more drops it, which kills it.
        launch(
            process,
            move |started| drop(starting.cast(InferenceMessage::Started(started))),
            move |panic| drop(failing.cast(InferenceMessage::Started(Err(io::Error::other(panic))))),
        )?;
        let (read_half, write_half) = UnixStream::from_std(own_end)?.into_split();
        tokio::spawn(listen(read_half, myself.clone()));
        let (frames, outgoing) = mpsc::channel(bounds::FRAMES);
        tokio::spawn(speak(write_half, outgoing));
        myself.send_interval(WATCH_INTERVAL, || InferenceMessage::Watch);

        let (worker, device_name) = (assignment.worker, assignment.device_name.clone());
        frames.try_send(protocol::encode(&ToWorker::Load(assignment))?)?;
        let now = Instant::now();
        Ok(InferenceState {
            worker,
            device_name,
            limits,
            packer,
            supervisor,
            telemetry,
            heard_at: now,
            process: Process::Starting,
            frames: Some(frames),
            held: VecDeque::new(),
            ready: false,
            leaving: false,
            killed: false,
            departure: None,
            ticks: 0,
            silent: Duration::ZERO,
            watched_at: now,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: InferenceMessage,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        crate::fault::point("inference");
        match message {
            InferenceMessage::Run { batch, .. } if state.takes_no_more() => {
                let worker = state.worker;
                state.packer.cast(PackerMessage::HandedBack { worker, batch })?;
            }
            InferenceMessage::Run { batch, sequences, exact } => {
                if state.held.is_empty() {
                    state.silent = Duration::ZERO;
                }
                state.held.push_back(batch);
                state.say(&ToWorker::Run { batch, sequences, exact })?;
            }
            InferenceMessage::Shutdown => {
                if state.ready && state.held.is_empty() {
                    state.part(&myself)?;
                } else {
                    // What it holds will not be committed in this session.
                    state.give_up(&myself, Departure::Asked);
                }
            }
            InferenceMessage::Leave => {
                state.leaving = true;
                if !state.ready {
                    state.give_up(&myself, Departure::Asked);
                }
                state.part_if_done(&myself)?;
            }
            InferenceMessage::GiveUp(reason) => state.give_up(&myself, Departure::Failed(reason)),
            InferenceMessage::Kill => {
                if let Process::Running(child) = &mut state.process {
                    let _ = child.start_kill();
                    state.killed = true;
                    myself.send_after(SILENCE_MAX, || InferenceMessage::Disconnected(None));
                }
            }
            InferenceMessage::Started(started) => state.started(&myself, started)?,
            InferenceMessage::Said(said, values) => {
                state.heard_at = Instant::now();
                state.heard(&myself, said, values)?;
            }
            InferenceMessage::Disconnected(error) => state.disconnected(&myself, error),
            InferenceMessage::Exited(status) => {
                let departure = state.final_departure(status);
                let worker = state.worker;
                state.supervisor.cast(SupervisorMessage::WorkerGone { worker, departure })?;
                myself.stop(None);
            }
            InferenceMessage::Watch => {
                let (worker, at) = (state.worker, state.heard_at);
                state.telemetry.tell(TelemetryMessage::Heard { worker, at });
                state.watch(&myself);
            }
        }
        Ok(())
    }
}

impl InferenceState {
    fn started(
        &mut self,
        myself: &ActorRef<InferenceMessage>,
        started: io::Result<Child>,
    ) -> Result<(), ActorProcessingErr> {
        match started {
            Ok(mut child) => {
                if let Some(stderr) = child.stderr.take() {
                    tokio::spawn(forward_logs(stderr, self.device_name.clone()));
                }
                let (worker, process) = (self.worker, child.id());
                self.process = Process::Running(child);
                self.supervisor.cast(SupervisorMessage::WorkerStarted { worker, process })?;
            }
            Err(error) => {
                self.give_up(myself, Departure::Failed(format!("worker could not be started: {error}")));
            }
        }
        Ok(())
    }

    fn heard(
        &mut self,
        myself: &ActorRef<InferenceMessage>,
        said: FromWorker,
        values: Vec<f32>,
    ) -> Result<(), ActorProcessingErr> {
        let worker = self.worker;
        match said {
            FromWorker::Ready { version, .. } if version != protocol::VERSION => {
                let text = "the worker speaks another version of the protocol: was the program replaced?";
                self.give_up(myself, Departure::Unusable(text.to_owned()));
            }
            FromWorker::Ready { version: _, description } => self.became_ready(myself, description)?,
            FromWorker::LoadFailed(EngineError::Model(reason)) => {
                self.give_up(myself, Departure::Unusable(reason));
            }
            FromWorker::LoadFailed(error) => self.give_up(myself, Departure::Failed(error.to_string())),
            FromWorker::Heartbeat { ticks } => {
                if ticks != self.ticks {
                    self.ticks = ticks;
                    self.silent = Duration::ZERO;
                    self.supervisor.cast(SupervisorMessage::WorkerTicked)?;
                }
            }
            FromWorker::Computed { batch } => {
                self.silent = Duration::ZERO;
                self.packer.cast(PackerMessage::Computed { worker, batch })?;
            }
            FromWorker::Completed { batch, compute_us, memory } => {
                self.returned(batch)?;
                let completion = Completion { compute_us, memory };
                self.packer.cast(PackerMessage::Completed { worker, batch, values, completion })?;
                self.want_batch(myself)?;
            }
            FromWorker::Failed { batch, error: EngineError::Device(reason) } => {
                // The batch stays held: losing the worker is what counts against it.
                tracing::debug!(%batch, reason, "device failed");
                self.give_up(myself, Departure::Failed(reason));
            }
            FromWorker::Failed { batch, error } => {
                self.returned(batch)?;
                self.packer.cast(PackerMessage::Failed { worker, batch, error })?;
                self.want_batch(myself)?;
            }
        }
        Ok(())
    }

    fn became_ready(
        &mut self,
        myself: &ActorRef<InferenceMessage>,
        description: EngineDescription,
    ) -> Result<(), ActorProcessingErr> {
        self.ready = true;
        self.silent = Duration::ZERO;
        let worker = self.worker;
        let slots = usize::try_from(description.slots).unwrap_or(SLOTS_MAX).clamp(1, SLOTS_MAX);
        if let Some(tokens) = description.token_budget {
            // Before the first batch is asked for, so that it fits.
            self.packer.cast(PackerMessage::DeviceLimited { device: worker.device, tokens })?;
        }
        self.supervisor.cast(SupervisorMessage::WorkerReady { worker, description })?;
        for _ in 0..slots {
            self.want_batch(myself)?;
        }
        Ok(())
    }

    /// Lets a worker that holds nothing go in good order.
    fn part(&mut self, myself: &ActorRef<InferenceMessage>) -> Result<(), ActorProcessingErr> {
        self.departure.get_or_insert(Departure::Asked);
        self.say(&ToWorker::Shutdown)?;
        myself.send_after(EXIT_GRACE, || InferenceMessage::Disconnected(None));
        Ok(())
    }

    fn part_if_done(&mut self, myself: &ActorRef<InferenceMessage>) -> Result<(), ActorProcessingErr> {
        let is_done = self.leaving && self.held.is_empty() && self.departure.is_none();
        if is_done { self.part(myself) } else { Ok(()) }
    }

    /// A worker that is leaving wants nothing more.
    fn want_batch(&mut self, myself: &ActorRef<InferenceMessage>) -> Result<(), ActorProcessingErr> {
        if self.leaving {
            return self.part_if_done(myself);
        }
        if self.departure.is_none() {
            let (worker, inference) = (self.worker, myself.clone());
            self.packer.cast(PackerMessage::WantBatch { worker, inference })?;
        }
        Ok(())
    }

    /// Whether a batch would be held against a worker's end that has nothing to do with it.
    fn takes_no_more(&self) -> bool {
        self.departure.is_some() || matches!(self.process, Process::Ending)
    }

    fn returned(&mut self, batch: BatchId) -> Result<(), ActorProcessingErr> {
        let position = self.held.iter().position(|&held| held == batch);
        let position =
            position.ok_or_else(|| format!("worker answered batch {batch}, which it does not hold"))?;
        self.held.remove(position);
        self.silent = Duration::ZERO;
        Ok(())
    }

    /// Says something to the worker. A closed channel means that the socket is broken; `Disconnected`
    /// follows.
    fn say(&mut self, message: &ToWorker) -> Result<(), ActorProcessingErr> {
        if let Some(frames) = &self.frames {
            let _ = frames.try_send(protocol::encode(message)?);
        }
        Ok(())
    }

    /// Notes why, lets go of the socket, upon which the process leaves in good order if it still can, and
    /// kills it soon after. What has not started yet is not waited for.
    ///
    /// The socket stands for SIGTERM, which a worker must ignore: clusters send that to every process of a
    /// job, and the orchestrator still wants the batches in flight.
    fn give_up(&mut self, myself: &ActorRef<InferenceMessage>, departure: Departure) {
        self.departure.get_or_insert(departure);
        if self.frames.take().is_none() {
            return;
        }
        match self.process {
            Process::Starting => {
                self.process = Process::Ending;
                let _ = myself.cast(InferenceMessage::Exited(None));
            }
            Process::Running(_) | Process::Ending => {
                myself.send_after(LEAVE_GRACE, || InferenceMessage::Kill);
            }
        }
    }

    /// Everything the worker said was heard, or it says no more: wait for the process to end, or end it.
    fn disconnected(&mut self, myself: &ActorRef<InferenceMessage>, error: Option<String>) {
        let process = std::mem::replace(&mut self.process, Process::Ending);
        let Process::Running(mut child) = process else {
            // A start that failed says so itself, and tells more than the socket that it left behind.
            self.process = process;
            return;
        };
        if let Some(error) = error {
            self.departure.get_or_insert(Departure::Failed(error));
        }
        let (myself, device) = (myself.clone(), self.device_name.clone());
        let grace = if self.killed { Duration::ZERO } else { EXIT_GRACE };
        tokio::spawn(async move {
            let status = match tokio::time::timeout(grace, child.wait()).await {
                Ok(status) => status,
                Err(_) => {
                    let _ = child.start_kill();
                    tokio::time::timeout(KILL_MAX, child.wait()).await.unwrap_or_else(|_| {
                        tracing::error!(device, "worker does not die, left behind: its driver is stuck");
                        Err(std::io::ErrorKind::TimedOut.into())
                    })
                }
            };
            let _ = myself.cast(InferenceMessage::Exited(status.ok()));
        });
    }

    fn final_departure(&mut self, status: Option<ExitStatus>) -> Departure {
        let ended = match status {
            Some(status) => match status.code().and_then(protocol::exit_meaning) {
                Some(meaning) => format!("worker ended: {meaning} ({status})"),
                None => format!("worker ended: {status}"),
            },
            None => "worker ended".to_owned(),
        };
        self.departure.take().unwrap_or(Departure::Failed(ended))
    }

    fn watch(&mut self, myself: &ActorRef<InferenceMessage>) {
        let now = Instant::now();
        self.silent += (now - self.watched_at).min(LOOK_MAX);
        self.watched_at = now;
        let silent = self.silent;
        let (limit, what) = match (self.ready, self.held.is_empty()) {
            (false, _) if matches!(self.process, Process::Starting) => {
                (self.limits.load_max, "process not started")
            }
            (false, _) => (self.limits.load_max, "model not loaded"),
            (true, false) => (self.limits.hang_max.max(HANG_MIN), "no progress"),
            (true, true) => {
                self.silent = Duration::ZERO;
                return;
            }
        };
        if silent > limit && self.departure.is_none() {
            let reason = format!("{what} for {:.1} s, worker killed", silent.as_secs_f64());
            tracing::warn!(device = self.device_name, reason, "worker hangs");
            self.give_up(myself, Departure::Failed(reason));
        }
    }
}

async fn listen(mut socket: OwnedReadHalf, inference: ActorRef<InferenceMessage>) {
    let error = loop {
        match protocol::read_frame_async(&mut socket).await {
            Ok(Some((said, values))) => {
                if inference.cast(InferenceMessage::Said(said, values)).is_err() {
                    return;
                }
            }
            Ok(None) => break None,
            // A killed process resets its socket: the exit status tells more.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => break Some(error.to_string()),
            Err(_) => break None,
        }
    };
    let _ = inference.cast(InferenceMessage::Disconnected(error));
}

async fn speak(mut socket: OwnedWriteHalf, mut frames: mpsc::Receiver<Vec<u8>>) {
    while let Some(frame) = frames.recv().await {
        if socket.write_all(&frame).await.is_err() {
            // The reading half notices as well and reports it.
            return;
        }
    }
}

/// A worker's log lines become ours, with the device's name. Level first, as `kernels` and the worker log.
async fn forward_logs(stderr: ChildStderr, device: String) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    // A library may write for ever without a line feed: what is too long for a line is several.
    while (&mut stderr).take(LOG_LINE_BYTES_MAX).read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0)
    {
        let text = String::from_utf8_lossy(&std::mem::take(&mut line)).into_owned();
        let line = text.trim();
        match line.split_once(' ') {
            Some(("ERROR", text)) => tracing::error!(device, "{text}"),
            Some(("WARN", text)) => tracing::warn!(device, "{text}"),
            Some(("INFO", text)) => tracing::info!(device, "{text}"),
            Some(("DEBUG" | "TRACE", text)) => tracing::debug!(device, "{text}"),
            _ if line.is_empty() => {}
            // Not ours: the panic hook or a library that writes to stderr.
            _ => tracing::warn!(device, "{line}"),
        }
    }
}
