//! The packer actor: packs segments into batches and lends them to devices that ask.
//!
//! It owns the [`Ledger`] and is the only one that decides where a sequence is. Devices ask
//! ([`PackerMessage::WantBatch`]) when they have a free slot; the packer asks the reader when fewer than
//! [`SEGMENTS_OPEN_MAX`] segments are open, and a segment stays open until the writer has committed it. So
//! a slow disk slows the reader, and memory does not depend on the size of the input. It counts what it does and what
//! devices wait for, since nobody else knows both, and shows it to telemetry when asked.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernels::{Batch, EngineError};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use crate::bounds::SEGMENTS_OPEN_MAX;
use crate::failed::{FailedRecord, Stage};
use crate::hands::Hands;
use crate::identity::{BatchId, DeviceIndex, SegmentId, Worker};
use crate::inference::InferenceMessage;
use crate::journal::Recovered;
use crate::ledger::{Completion, Lease, Ledger, Verdict};
use crate::packing::{PackingPlan, pack};
use crate::reader::{ReadSegment, ReaderMessage};
use crate::segment::PreparedSegment;
use crate::shown::shown;
use crate::supervisor::SupervisorMessage;
use crate::telemetry::{
    BatchReport, Doing, EventLevel, Happening, PackerReport, Reporter, Supply, TelemetryMessage, WorkAccount,
};
use crate::writer::{OpenedSegment, WriterMessage};

/// What the packer is told.
pub(crate) enum PackerMessage {
    /// Where its partners are; the first message.
    Connect { reader: ActorRef<ReaderMessage>, writer: ActorRef<WriterMessage> },
    /// From the reader: the segment asked for.
    SegmentRead(ReadSegment),
    /// From the reader: there is no further segment.
    InputEnded,
    /// From a device: it has a free slot.
    WantBatch { worker: Worker, inference: ActorRef<InferenceMessage> },
    /// From a device: a batch is done, its embeddings are on their way.
    Computed { worker: Worker, batch: BatchId },
    /// From a device: embeddings.
    Completed { worker: Worker, batch: BatchId, values: Vec<f32>, completion: Completion },
    /// From a device: a batch failed, the device still works.
    Failed { worker: Worker, batch: BatchId, error: EngineError },
    /// From a device that is leaving: this batch was lent too late, its worker never gets it.
    HandedBack { worker: Worker, batch: BatchId },
    /// From the supervisor: this worker is no more.
    WorkerLost { worker: Worker, reason: String },
    /// From a device that became ready: its memory has room for so many tokens.
    DeviceLimited { device: DeviceIndex, tokens: u32 },
    /// From the supervisor: this device was given up.
    DeviceRetired(DeviceIndex),
    /// From the supervisor: this device gets nothing more; its worker leaves once it holds nothing.
    LetGo { device: DeviceIndex, inference: ActorRef<InferenceMessage> },
    /// From the supervisor: this device, given up before, is tried again.
    DeviceReadmitted(DeviceIndex),
    /// From the writer: the segment is safe on disk.
    SegmentCommitted(SegmentId),
    /// From the supervisor: finish what can be committed within this time, then say `Drained`.
    StopWithin(Duration),
    /// From the supervisor: lend nothing, or lend again.
    Pause(bool),
    /// From the supervisor: say what everybody waits for, by `Stood`.
    WhereDoesItStand,
    /// From telemetry: show what was done so far.
    ShowWork(oneshot::Sender<Box<WorkAccount>>),
}

/// How far the work is and who has it: what a watchdog needs.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    /// Grows with everything that is done.
    pub(crate) steps: u64,
    /// Batches lent and not answered, longest first: number, worker, segment, time since.
    pub(crate) lent: Vec<(BatchId, Worker, SegmentId, Duration)>,
    /// Batches that wait for a device.
    pub(crate) pending: usize,
    /// Since when the reader owes a segment.
    pub(crate) reading: Option<Duration>,
    /// The oldest segment that the writer has not committed, and since when it could.
    pub(crate) writing: Option<(SegmentId, Duration)>,
}

/// A device as the packer sees it.
#[derive(Clone, Debug)]
pub(crate) struct PackerDevice {
    pub(crate) name: String,
    /// Most tokens that it is lent at once, where that is less than the job's budget.
    pub(crate) tokens_max: Option<u32>,
    /// Its token budget at the end of an earlier session, if that was reduced.
    pub(crate) token_budget: Option<u32>,
}

/// What the packer starts with.
pub(crate) struct PackerArguments {
    pub(crate) plan: PackingPlan,
    pub(crate) attempts_max: u32,
    pub(crate) devices: Vec<PackerDevice>,
    pub(crate) file_labels: Vec<String>,
    pub(crate) supervisor: ActorRef<SupervisorMessage>,
    pub(crate) telemetry: Reporter,
}

pub(crate) struct Packer;

pub(crate) struct PackerState {
    plan: PackingPlan,
    device_names: Vec<String>,
    file_labels: Vec<String>,
    supervisor: ActorRef<SupervisorMessage>,
    telemetry: Reporter,
    /// What telemetry is shown; `None` if nobody looks.
    work: Option<WorkAccount>,
    reader: Option<ActorRef<ReaderMessage>>,
    writer: Option<ActorRef<WriterMessage>>,
    ledger: Ledger,
    open: BTreeMap<SegmentId, OpenSegment>,
    /// Free slots of devices, in order of asking; at most [`crate::bounds::SLOTS_MAX`] per live worker.
    waiting: VecDeque<(Worker, ActorRef<InferenceMessage>)>,
    /// Devices that get nothing more; what they hold they may finish.
    let_go: BTreeSet<DeviceIndex>,
    /// Since when the reader owes a segment; it is never asked for two at once.
    reading: Option<Instant>,
    input_ended: bool,
    stopping: bool,
    /// Nothing is lent until somebody says otherwise.
    paused: bool,
    tokens_done: u64,
    first_lease: Option<Instant>,
    /// Batches, segments and verdicts so far.
    steps: u64,
    lent_at: BTreeMap<BatchId, Instant>,
    hands: Hands,
    /// Since when there is no batch to lend.
    dry_since: Option<Instant>,
    /// How long it had waited for the segment that this message brought.
    segment_wait: Option<Duration>,
    /// Batches of the segment that had most of them.
    batches_per_segment_max: usize,
}

/// What the packer keeps of a segment until it is committed.
struct OpenSegment {
    prepared: Arc<PreparedSegment>,
    sealed: Option<Instant>,
}

impl Actor for Packer {
    type Msg = PackerMessage;
    type State = PackerState;
    type Arguments = PackerArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: PackerArguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let telemetry = arguments.telemetry;
        let mut work = telemetry.is_on().then(|| WorkAccount::new(arguments.devices.len(), Instant::now()));
        let mut ledger = Ledger::new(arguments.attempts_max, arguments.plan.token_budget);
        for (index, device) in arguments.devices.iter().enumerate() {
            let index = DeviceIndex(index);
            if let Some(tokens) = device.tokens_max {
                ledger.limit_device(index, tokens);
            }
            ledger.expect_device(index, device.token_budget);
            if let Some(work) = &mut work {
                work.limited(index, ledger.budget_of(index));
            }
        }
        telemetry.tell(TelemetryMessage::Packer(myself));
        Ok(PackerState {
            plan: arguments.plan,
            device_names: arguments.devices.into_iter().map(|device| device.name).collect(),
            file_labels: arguments.file_labels,
            supervisor: arguments.supervisor,
            telemetry,
            work,
            reader: None,
            writer: None,
            ledger,
            open: BTreeMap::new(),
            waiting: VecDeque::new(),
            let_go: BTreeSet::new(),
            reading: None,
            input_ended: false,
            stopping: false,
            paused: false,
            tokens_done: 0,
            first_lease: None,
            steps: 0,
            lent_at: BTreeMap::new(),
            hands: Hands::default(),
            dry_since: None,
            segment_wait: None,
            batches_per_segment_max: 0,
        })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: PackerMessage,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        crate::fault::point("packer");
        let began = Instant::now();
        match message {
            PackerMessage::Connect { reader, writer } => {
                state.reader = Some(reader);
                state.writer = Some(writer);
            }
            PackerMessage::SegmentRead(segment) => {
                state.segment_came(began);
                state.steps += 1;
                // A segment that arrives after the stop was not begun: the next run reads it again.
                if !state.stopping {
                    state.open_segment(segment)?;
                }
            }
            PackerMessage::InputEnded => {
                state.reading = None;
                state.input_ended = true;
                state.ledger.expect_no_more();
            }
            PackerMessage::WantBatch { worker, inference } => {
                if !state.let_go.contains(&worker.device) {
                    state.hands.asked(worker, began);
                    state.waiting.push_back((worker, inference));
                }
            }
            PackerMessage::Computed { worker, batch } => {
                state.ledger.computed(worker, batch);
                return Ok(());
            }
            PackerMessage::Completed { worker, batch, values, completion } => {
                state.completed(worker, batch, values, completion, began)?;
            }
            PackerMessage::Failed { worker, batch, error } => {
                tracing::warn!(device = state.name(worker), %batch, %error, "batch failed");
                match state.ledger.fail(worker, batch, &error) {
                    Ok(verdicts) => {
                        state.returned(worker, began);
                        state.carry_out(worker, verdicts)?;
                    }
                    Err(crate::ledger::Stale) => tracing::debug!(%batch, "late failure dropped"),
                }
            }
            PackerMessage::HandedBack { worker, batch } => {
                // What else it asked for it gets no more.
                state.waiting.retain(|(waiting, _)| *waiting != worker);
                if let Ok(verdict) = state.ledger.hand_back(worker, batch) {
                    state.returned(worker, began);
                    state.carry_out(worker, verdict.into_iter().collect())?;
                }
            }
            PackerMessage::WorkerLost { worker, reason } => {
                state.waiting.retain(|(waiting, _)| *waiting != worker);
                state.hands.gone(worker);
                if let Some(work) = &mut state.work {
                    work.all_returned(worker.device);
                }
                let verdicts = state.ledger.lose(worker, &reason);
                state.carry_out(worker, verdicts)?;
            }
            PackerMessage::DeviceLimited { device, tokens } => {
                if let Some(tokens) = state.ledger.limit_device(device, tokens) {
                    tracing::info!(
                        device = state.device_names[device.0],
                        tokens,
                        "token budget of the device"
                    );
                    if let Some(work) = &mut state.work {
                        work.limited(device, state.ledger.budget_of(device));
                    }
                }
                return Ok(());
            }
            PackerMessage::DeviceRetired(device) => state.ledger.retire_device(device),
            PackerMessage::LetGo { device, inference } => {
                state.ledger.retire_device(device);
                state.let_go.insert(device);
                let (leaving, staying): (VecDeque<_>, _) = std::mem::take(&mut state.waiting)
                    .into_iter()
                    .partition(|(waiting, _)| waiting.device == device);
                state.waiting = staying;
                for (worker, _) in leaving {
                    state.hands.gone(worker);
                }
                // Through here, so that it comes after every batch that was lent.
                let _ = inference.cast(InferenceMessage::Leave);
            }
            PackerMessage::DeviceReadmitted(device) => {
                state.let_go.remove(&device);
                state.ledger.readmit_device(device);
            }
            PackerMessage::Pause(paused) => {
                tracing::info!(paused, "asked from outside");
                state.paused = paused;
                state.hands.waiting_begins(began);
            }
            PackerMessage::WhereDoesItStand => {
                // Nobody holds up a run that was told to stand still.
                state.steps += u64::from(state.paused);
                let standing = state.standing();
                state.supervisor.cast(SupervisorMessage::Stood(standing))?;
                return Ok(());
            }
            PackerMessage::ShowWork(answer) => {
                if let Some(work) = &mut state.work {
                    let _ = answer.send(work.shown(began));
                }
                return Ok(());
            }
            PackerMessage::SegmentCommitted(segment) => {
                state.steps += 1;
                state.ledger.close_segment(segment);
                state.open.remove(&segment);
            }
            PackerMessage::StopWithin(grace) => state.stop_within(grace)?,
        }
        state.lend();
        state.ask_reader()?;
        state.report_end();
        state.report(began);
        Ok(())
    }
}

impl PackerState {
    fn writer(&self) -> Result<&ActorRef<WriterMessage>, ActorProcessingErr> {
        self.writer.as_ref().ok_or_else(|| "the packer is not connected to a writer".into())
    }

    fn open_segment(&mut self, read: ReadSegment) -> Result<(), ActorProcessingErr> {
        let ReadSegment { prepared, recovered } = read;
        let id = prepared.segment.id;
        let rejected = prepared
            .segment
            .rejected
            .iter()
            .map(|rejected| FailedRecord {
                index: rejected.ordinal,
                id: rejected.id.clone(),
                file: rejected.file.clone(),
                line: rejected.line,
                stage: Stage::Input,
                reason: rejected.reason.clone(),
            })
            .collect();
        let trusted_bytes = recovered.trusted_bytes;
        self.writer()?.cast(WriterMessage::Open(OpenedSegment {
            prepared: prepared.clone(),
            failed: rejected,
            journal_bytes: trusted_bytes,
        }))?;
        let token_counts = prepared.token_counts();
        let mut is_recovered = vec![false; token_counts.len()];
        for &sequence in &recovered.sequences {
            is_recovered[sequence as usize] = true;
        }
        // Packing numbers what it is given from 0.
        let left: Vec<u32> = (0..token_counts.len() as u32).filter(|&s| !is_recovered[s as usize]).collect();
        let left_counts: Vec<u32> = left.iter().map(|&s| token_counts[s as usize]).collect();
        let mut batches = pack(&left_counts, self.plan);
        for position in batches.iter_mut().flatten() {
            *position = left[*position as usize];
        }
        self.batches_per_segment_max = self.batches_per_segment_max.max(batches.len());
        self.ledger.open_segment(id, token_counts, batches);
        self.open.insert(id, OpenSegment { prepared, sealed: None });
        if let Some(work) = &mut self.work {
            let prepared = &self.open[&id].prepared;
            work.settled(recovered.sequences.iter().map(|&s| prepared.residues_with(s)).sum());
        }
        if !recovered.sequences.is_empty() {
            tracing::info!(segment = %id, sequences = recovered.sequences.len(), "taken from the journal");
            let Recovered { sequences, values, .. } = recovered;
            self.writer()?.cast(WriterMessage::Recovered { segment: id, sequences, values })?;
        }
        self.seal_if_settled(id)
    }

    fn completed(
        &mut self,
        worker: Worker,
        batch: BatchId,
        values: Vec<f32>,
        completion: Completion,
        now: Instant,
    ) -> Result<(), ActorProcessingErr> {
        let Ok((lease, verdict)) = self.ledger.complete(worker, batch, completion) else {
            tracing::debug!(%batch, device = self.name(worker), "late answer dropped");
            return Ok(());
        };
        self.lent_at.remove(&batch);
        let Lease { segment, sequences, budget_tokens, is_last, .. } = lease;
        self.carry_out(worker, verdict.into_iter().collect())?;
        if sequences.is_empty() {
            self.returned(worker, now);
            // A trial is no progress: it earns a device no restarts.
            self.supervisor.cast(SupervisorMessage::TrialPassed(worker))?;
            return Ok(());
        }
        self.steps += 1;
        let open = &self.open[&segment];
        let token_counts = sequences.iter().map(|&s| u64::from(open.prepared.token_count(s)));
        let report = BatchReport {
            device: worker.device,
            sequences: sequences.len() as u64,
            tokens: token_counts.clone().sum(),
            residues: sequences.iter().map(|&s| open.prepared.residues_with(s)).sum(),
            longest_tokens: token_counts.max().unwrap_or(0),
            compute_us: completion.compute_us,
            budget_tokens,
            is_last,
            device_budget_tokens: self.ledger.budget_of(worker.device),
            at: now,
        };
        self.tokens_done += report.tokens;
        self.hands.returned(worker, now);
        if let Some(work) = &mut self.work {
            work.completed(&report);
        }
        self.supervisor.cast(SupervisorMessage::DeviceProgressed(worker))?;
        self.writer()?.cast(WriterMessage::Deliver { segment, sequences, values })?;
        self.seal_if_settled(segment)
    }

    fn carry_out(&mut self, worker: Worker, verdicts: Vec<Verdict>) -> Result<(), ActorProcessingErr> {
        for verdict in verdicts {
            self.steps += 1;
            match verdict {
                Verdict::Requeued { batch, attempts } => tracing::info!(%batch, attempts, "batch requeued"),
                Verdict::Split { batch, into } => {
                    tracing::info!(%batch, into = into.len(), "batch split");
                    let text = format!("batch {batch} failed and is split into {}", into.len());
                    self.event(EventLevel::Warning, worker, text, "batches split");
                }
                Verdict::Quarantined { segment, sequence, reason } => {
                    self.quarantine(worker, segment, sequence, &reason)?;
                }
                Verdict::Unfit { reason } => {
                    self.supervisor.cast(SupervisorMessage::WorkerUnfit { worker, reason })?;
                }
                Verdict::Reduced { tokens } => {
                    tracing::warn!(device = self.name(worker), tokens, "token budget reduced");
                    let text = format!("short of memory: it gets at most {tokens} tokens at once");
                    self.event(EventLevel::Warning, worker, text, "budgets reduced");
                    if let Some(work) = &mut self.work {
                        work.limited(worker.device, tokens);
                    }
                }
            }
        }
        Ok(())
    }

    fn quarantine(
        &mut self,
        worker: Worker,
        segment: SegmentId,
        sequence: u32,
        reason: &str,
    ) -> Result<(), ActorProcessingErr> {
        let failed: Vec<FailedRecord> = self.open[&segment]
            .prepared
            .records_with(sequence)
            .map(|record| FailedRecord {
                index: record.ordinal,
                id: record.id.clone(),
                file: self.file_labels[record.file].clone(),
                line: record.line,
                stage: Stage::Compute,
                reason: reason.to_owned(),
            })
            .collect();
        for record in &failed {
            tracing::error!(id = record.id, index = record.index, reason, "sequence quarantined");
        }
        let residues = self.open[&segment].prepared.residues_with(sequence);
        if let Some(work) = &mut self.work {
            work.settled(residues);
        }
        if let Some(first) = failed.first() {
            let others = match failed.len() {
                1 => String::new(),
                count => format!(" and {} with the same sequence", count - 1),
            };
            let text = format!("record `{}`{others} is set aside: {reason}", shown(&first.id));
            self.event(EventLevel::Error, worker, text, "sequences set aside");
        }
        self.writer()?.cast(WriterMessage::SetAside { segment, sequence, failed })?;
        self.seal_if_settled(segment)
    }

    fn seal_if_settled(&mut self, segment: SegmentId) -> Result<(), ActorProcessingErr> {
        if self.ledger.is_settled(segment) && self.open[&segment].sealed.is_none() {
            self.open_mut(segment).sealed = Some(Instant::now());
            let budgets = self.ledger.reduced_budgets();
            let token_budgets =
                budgets.map(|(device, tokens)| (self.device_names[device.0].clone(), tokens)).collect();
            self.writer()?.cast(WriterMessage::Seal { segment, token_budgets })?;
        }
        Ok(())
    }

    /// Notes the segment that the reader owed, and how long there was nothing to lend for want of it.
    fn segment_came(&mut self, now: Instant) {
        if let Some(asked) = self.reading.take() {
            let dry = self.dry_since.map(|dry| now.saturating_duration_since(dry.max(asked)));
            self.segment_wait = Some(dry.unwrap_or_default());
        }
    }

    /// A batch came back without embeddings.
    fn returned(&mut self, worker: Worker, now: Instant) {
        self.hands.returned(worker, now);
        if let Some(work) = &mut self.work {
            work.returned(worker.device, now);
        }
    }

    /// Tells of something that may happen often.
    fn event(&self, level: EventLevel, worker: Worker, text: String, kind: &'static str) {
        self.telemetry.event(Happening::of_device(level, self.name(worker), text).often(kind));
    }

    /// Notes how things stand after a message.
    fn report(&mut self, began: Instant) {
        let ended = Instant::now();
        let batches = self.ledger.pending_len();
        self.dry_since = if batches == 0 { self.dry_since.or(Some(ended)) } else { None };
        let segment_wait = self.segment_wait.take();
        let Some(work) = &mut self.work else { return };
        let segments_sealed = self.open.values().filter(|open| open.sealed.is_some()).count();
        let is_held_up_by_writer = self.open.len() >= SEGMENTS_OPEN_MAX && segments_sealed > 0;
        let (doing, supply) = if self.paused || self.stopping {
            (Doing::Nothing, Supply::Nothing)
        } else if batches > 0 {
            // Whoever is without a batch now may have none of these: another device must judge them.
            (Doing::Blocked, Supply::Devices)
        } else if self.reading.is_some() {
            (Doing::Starved, Supply::Reader)
        } else if self.input_ended {
            (Doing::Nothing, Supply::Nothing)
        } else if is_held_up_by_writer {
            (Doing::Blocked, Supply::Writer)
        } else {
            (Doing::Blocked, Supply::Devices)
        };
        work.packed(PackerReport {
            began,
            ended,
            doing,
            supply,
            idle_devices: self.hands.empty(),
            segment_wait,
            asked: self.reading.is_some(),
            segments_open: self.open.len() - segments_sealed,
            segments_sealed,
            batches,
            batches_max: SEGMENTS_OPEN_MAX * self.batches_per_segment_max,
            free_slots: self.waiting.len(),
            paused: self.paused,
            stopping: self.stopping,
            is_tail: self.input_ended && batches == 0,
        });
    }

    fn name(&self, worker: Worker) -> &str {
        &self.device_names[worker.device.0]
    }

    fn standing(&mut self) -> Standing {
        let held = self.ledger.held();
        self.lent_at.retain(|batch, _| held.iter().any(|(held, _, _)| held == batch));
        let since = |batch: &BatchId| self.lent_at.get(batch).map_or(Duration::ZERO, Instant::elapsed);
        let sealed = self.open.iter().filter_map(|(&segment, open)| Some((segment, open.sealed?.elapsed())));
        Standing {
            steps: self.steps,
            lent: held
                .into_iter()
                .map(|(batch, worker, segment)| (batch, worker, segment, since(&batch)))
                .collect(),
            pending: self.ledger.pending_len(),
            reading: self.reading.map(|since| since.elapsed()),
            writing: sealed.max_by_key(|&(_, since)| since),
        }
    }

    fn open_mut(&mut self, segment: SegmentId) -> &mut OpenSegment {
        self.open.get_mut(&segment).expect("the ledger's open segments are the packer's")
    }

    /// Serves free slots while there are batches.
    fn lend(&mut self) {
        for (worker, inference) in std::mem::take(&mut self.waiting) {
            let Some(lease) = (!self.paused).then(|| self.ledger.lease(worker)).flatten() else {
                self.waiting.push_back((worker, inference));
                continue;
            };
            self.first_lease.get_or_insert_with(Instant::now);
            let open = &self.open[&lease.segment];
            let mut sequences = Batch::default();
            if lease.sequences.is_empty() {
                // A trial: the least that an engine takes.
                sequences.push(u64::MAX, b"M", 1);
            }
            for &sequence in &lease.sequences {
                let record = open.prepared.record_with(sequence);
                sequences.push(record.ordinal, &record.residues, record.pooled_residues);
            }
            let (at, device) = (Instant::now(), worker.device);
            self.lent_at.insert(lease.batch, at);
            let wait = self.hands.lent(worker, at);
            match &mut self.work {
                Some(work) if lease.sequences.is_empty() => work.trial_lent(device, at),
                Some(work) => work.lent(device, wait, at),
                None => {}
            }
            let Lease { batch, exact, .. } = lease;
            // To a device that has just died: `HandedBack` follows or, where its actor is gone, `WorkerLost`, which
            // is on its way and takes the lease back.
            let _ = inference.cast(InferenceMessage::Run { batch, sequences, exact });
        }
    }

    fn ask_reader(&mut self) -> Result<(), ActorProcessingErr> {
        let wanted = self.open.len() < SEGMENTS_OPEN_MAX
            && self.reading.is_none()
            && !self.input_ended
            && !self.stopping;
        if let Some(reader) = self.reader.as_ref().filter(|_| wanted) {
            reader.cast(ReaderMessage::ReadSegment)?;
            self.reading = Some(Instant::now());
        }
        Ok(())
    }

    fn report_end(&self) {
        let event = if self.input_ended && self.open.is_empty() && self.ledger.pending_len() == 0 {
            SupervisorMessage::AllCommitted
        } else if self.stopping && self.is_drained() {
            SupervisorMessage::Drained
        } else {
            return;
        };
        let _ = self.supervisor.cast(event);
    }

    /// After a stop: nothing is on its way to a device, from it, or to the disk as a part.
    fn is_drained(&self) -> bool {
        self.ledger.pending_len() == 0
            && self.ledger.lent_len() == 0
            && self.open.values().all(|open| open.sealed.is_none())
    }

    /// Keeps working only on segments that can be finished in time, oldest first. Of the others the journal
    /// keeps what there is, the batches in flight included.
    fn stop_within(&mut self, grace: Duration) -> Result<(), ActorProcessingErr> {
        self.stopping = true;
        self.writer()?.cast(WriterMessage::KeepOpen)?;
        let elapsed = self.first_lease.map_or(0.0, |start| start.elapsed().as_secs_f64());
        if self.tokens_done == 0 && !self.paused && self.first_lease.is_some() {
            // Nothing tells how long anything takes: the grace time decides.
            return Ok(());
        }
        let tokens_per_s = self.tokens_done as f64 / elapsed.max(1e-6);
        // Writing takes time as well: count on three quarters of the grace time.
        let mut affordable = tokens_per_s * grace.as_secs_f64() * 0.75;
        let open: Vec<(SegmentId, Vec<u32>)> = self.ledger.open_segments().collect();
        for (segment, unsettled) in open {
            let prepared = &self.open[&segment].prepared;
            let tokens: u64 = unsettled.iter().map(|&s| u64::from(prepared.token_count(s))).sum();
            affordable -= tokens as f64;
            if tokens > 0 && (affordable < 0.0 || self.paused) {
                self.ledger.pause_segment(segment);
            }
        }
        Ok(())
    }
}
