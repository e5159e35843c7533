//! The writer actor: assembles each segment in input order and commits it as one part.
//!
//! The packer opens a segment, delivers embeddings and seals it; the actor keeps them in memory and hands
//! the sealed segment to its threads. Encoders write parts under temporary names, several at once, since encoding is
//! most of the work; one thread gives them their names, each followed by the manifest, in the order in which they
//! were sealed: a part counts only once it is whole. A full or read-only disk pauses that thread until it can write.
//! Invariant: a segment is committed only if each of its sequences was delivered or set aside, exactly once.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use crate::bounds;
use crate::commits::{Commit, Commits};
use crate::failed::{self, FailedRecord};
use crate::fasta::Record;
use crate::identity::SegmentId;
use crate::journal::{Journal, JournalPlace, Unfinished};
use crate::manifest::{Manifest, ManifestError, ResultFolder, SegmentEntry, write_whole};
use crate::obstacle::write_when_possible;
use crate::order::{AnswerTo, Refused};
use crate::packer::PackerMessage;
use crate::part::{self, EncodedPart, PartError, PartRow, PartSchema};
use crate::segment::PreparedSegment;
use crate::supervisor::SupervisorMessage;
use crate::telemetry::{Doing, EventLevel, Happening, Reporter, Stage, TelemetryMessage};

/// Time between two looks whether the journal's queue has room for a checkpoint.
const CHECKPOINT_RETRY: Duration = Duration::from_millis(50);
/// How long a checkpoint waits for that room.
const CHECKPOINT_ROOM_MAX: Duration = Duration::from_secs(30);
/// How long the end of a run waits for the writer's thread, which may be syncing a part: past it the file system
/// does not answer.
const THREAD_MAX: Duration = Duration::from_secs(30);

/// A segment before its embeddings arrive.
pub(crate) struct OpenedSegment {
    pub(crate) prepared: Arc<PreparedSegment>,
    /// Records left out by the reader.
    pub(crate) failed: Vec<FailedRecord>,
    /// How far the journal of an earlier session is good; 0: there is none.
    pub(crate) journal_bytes: u64,
}

/// What the writer is told.
pub(crate) enum WriterMessage {
    /// A segment begins.
    Open(OpenedSegment),
    /// Embeddings of these distinct sequences, rows back to back.
    Deliver { segment: SegmentId, sequences: Vec<u32>, values: Vec<f32> },
    /// What an earlier session computed of a segment, from its journal.
    Recovered { segment: SegmentId, sequences: Vec<u32>, values: Vec<f32> },
    /// The run is being stopped: keep what there is of open segments.
    KeepOpen,
    /// From the supervisor, and from itself while the journal's queue is full: keep what there is of open
    /// segments, synced, and say what that is.
    Checkpoint { answer: AnswerTo, since: Instant },
    /// This sequence will have no embedding.
    SetAside { segment: SegmentId, sequence: u32, failed: Vec<FailedRecord> },
    /// Nothing more comes: commit it. With it, for `run.json`, the token budgets of devices that get less
    /// than the job's.
    Seal { segment: SegmentId, token_budgets: BTreeMap<String, u32> },
    /// From the thread: committed.
    Committed { segment: SegmentId, rows: u64, records: u64, failed: u64, residues: u64 },
    /// From the thread: it cannot be committed.
    CommitFailed(WriteError),
    /// The thread panicked with this message.
    Panicked(String),
}

/// Why a segment could not be committed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The part.
    #[error(transparent)]
    Part(#[from] PartError),
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The list of failed records.
    #[error("failed to write `{}`", path.display())]
    Failed {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl WriteError {
    /// The system's failure below it, if there is one.
    fn io(&self) -> Option<&std::io::Error> {
        match self {
            Self::Part(error) => error.io(),
            Self::Manifest(ManifestError::Io { source, .. }) | Self::Failed { source, .. } => Some(source),
            Self::Manifest(
                ManifestError::Malformed { .. }
                | ManifestError::Format { .. }
                | ManifestError::Inconsistent { .. }
                | ManifestError::TooLarge { .. },
            ) => None,
        }
    }

    /// Whether the result folder, or one inside it, was removed: the next run makes it again.
    pub fn is_folder_gone(&self) -> bool {
        self.io().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    }
}

/// What the writer starts with.
pub(crate) struct WriterArguments {
    pub(crate) folder: ResultFolder,
    pub(crate) commits: SharedCommits,
    pub(crate) schema: PartSchema,
    pub(crate) part_metadata: BTreeMap<String, String>,
    pub(crate) journals: JournalPlace,
    /// When a segment's batches are kept in a journal as well.
    pub(crate) journal_after: Duration,
    pub(crate) packer: ActorRef<PackerMessage>,
    pub(crate) supervisor: ActorRef<SupervisorMessage>,
    pub(crate) telemetry: Reporter,
    /// Dropped when nothing more will be committed.
    pub(crate) ended: oneshot::Sender<()>,
}

/// What is committed. The writer's thread adds to it until the end of the run takes it, and with it the right to
/// write the manifest.
#[derive(Clone)]
pub(crate) struct SharedCommits(Arc<Mutex<Option<Commits>>>);

impl SharedCommits {
    pub(crate) fn new(folder: ResultFolder, manifest: Manifest) -> Self {
        Self(Arc::new(Mutex::new(Some(Commits::new(folder, manifest)))))
    }

    /// Says whether it was committed: the run may have ended without this segment.
    fn commit(&self, commit: Commit) -> Result<bool, ManifestError> {
        match self.0.lock().as_deref_mut() {
            Ok(Some(commits)) => commits.commit(commit).map(|()| true),
            Ok(None) | Err(_) => Ok(false),
        }
    }

    /// Waits for the writer's thread to say by `ended` that it is done, but not for ever, and takes the manifest.
    /// `None` if the thread panicked in the midst of a commit.
    pub(crate) async fn take(self, ended: oneshot::Receiver<()>) -> Option<Manifest> {
        if tokio::time::timeout(THREAD_MAX, ended).await.is_err() {
            let seconds = THREAD_MAX.as_secs();
            tracing::error!(
                seconds,
                "the writer's thread does not return, left behind: what it holds is computed again"
            );
        }
        // It may be in the midst of a commit: where that does not end, no other would.
        let taken = tokio::task::spawn_blocking(move || self.0.lock().ok()?.take());
        taken.await.ok().flatten().map(Commits::into_manifest)
    }
}

pub(crate) struct Writer;

pub(crate) struct WriterState {
    schema: PartSchema,
    open: HashMap<SegmentId, Assembly>,
    journal: Journal,
    journal_after: Duration,
    /// The run is being stopped: every open segment is kept.
    keeping: bool,
    /// Segments that are with the thread.
    committing: usize,
    packer: ActorRef<PackerMessage>,
    supervisor: ActorRef<SupervisorMessage>,
    telemetry: Reporter,
    /// To the threads; closing both queues ends them.
    sealed: Option<SealedQueues>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    encoders: Vec<JoinHandle<()>>,
}

/// Where sealed segments go. As many fit as can be open, so neither is ever full.
struct SealedQueues {
    to_encode: flume::Sender<ToEncode>,
    to_commit: flume::Sender<Sealed>,
}

impl SealedQueues {
    /// Whether the threads took it.
    fn send(&self, assembly: Assembly) -> bool {
        let assembly = Arc::new(assembly);
        let (encoded, part) = flume::bounded(bounds::PARTS_ENCODED);
        self.to_encode.try_send(ToEncode { assembly: assembly.clone(), encoded }).is_ok()
            && self.to_commit.try_send(Sealed { assembly, part }).is_ok()
    }
}

/// A segment for an encoder, which drops the sender if it fails in a way that nobody foresaw.
struct ToEncode {
    assembly: Arc<Assembly>,
    encoded: flume::Sender<Result<EncodedPart, PartError>>,
}

/// A segment for the thread that commits.
struct Sealed {
    assembly: Arc<Assembly>,
    part: flume::Receiver<Result<EncodedPart, PartError>>,
}

/// A segment under assembly.
struct Assembly {
    opened: OpenedSegment,
    hidden: usize,
    /// First value of each distinct sequence; one more at the end.
    starts: Vec<usize>,
    values: Vec<f32>,
    state: Vec<Delivery>,
    opened_at: Instant,
    /// Of devices that get less than the job's budget, when the segment was complete.
    token_budgets: BTreeMap<String, u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delivery {
    Awaited,
    Delivered,
    SetAside,
}

impl Actor for Writer {
    type Msg = WriterMessage;
    type State = WriterState;
    type Arguments = WriterArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: WriterArguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let WriterArguments {
            folder,
            commits,
            schema,
            part_metadata,
            journals,
            packer,
            supervisor,
            telemetry,
            ..
        } = arguments;
        let (to_commit, sealed) = flume::bounded::<Sealed>(bounds::SEGMENTS_SEALED);
        let (to_encode, unencoded) = flume::bounded::<ToEncode>(bounds::SEGMENTS_SEALED);
        let stop = Arc::new(AtomicBool::new(false));
        let layout = Arc::new(PartLayout { folder: folder.clone(), schema, metadata: part_metadata });
        let mut encoders = Vec::new();
        for _ in 0..bounds::PART_ENCODERS {
            let (layout, unencoded, owner) = (layout.clone(), unencoded.clone(), myself.clone());
            encoders.push(crate::thread::spawn_watched(
                "encoder",
                move || layout.encode_all(&unencoded),
                move |message| {
                    let _ = owner.cast(WriterMessage::Panicked(message));
                },
            )?);
        }
        let committer = Committer {
            commits,
            folder,
            layout,
            stop: stop.clone(),
            writer: myself.clone(),
            telemetry: telemetry.clone(),
            started: Instant::now(),
        };
        let ended = arguments.ended;
        let journal_owner = myself.clone();
        let journal = Journal::start(journals, move |message| {
            let _ = journal_owner.cast(WriterMessage::Panicked(message));
        })?;
        let thread = crate::thread::spawn_watched(
            "writer",
            move || {
                committer.commit_all(&sealed);
                drop(ended);
            },
            move |message| {
                let _ = myself.cast(WriterMessage::Panicked(message));
            },
        )?;
        Ok(WriterState {
            schema,
            open: HashMap::new(),
            journal,
            journal_after: arguments.journal_after,
            keeping: false,
            committing: 0,
            packer,
            supervisor,
            telemetry,
            sealed: Some(SealedQueues { to_encode, to_commit }),
            stop,
            thread: Some(thread),
            encoders,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: WriterMessage,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        crate::fault::point("writer");
        match message {
            WriterMessage::Open(opened) => {
                if opened.journal_bytes > 0 {
                    state.journal.continue_from(&opened.prepared, opened.journal_bytes);
                }
                let segment = opened.prepared.segment.id;
                state.open.insert(segment, Assembly::new(opened, &state.schema));
            }
            WriterMessage::Deliver { segment, sequences, values } => {
                state.assembly(segment)?.deliver(&sequences, &values)?;
                state.keep(segment, &sequences, &values);
            }
            WriterMessage::Recovered { segment, sequences, values } => {
                state.journal.recovered(segment, sequences.len());
                state.assembly(segment)?.deliver(&sequences, &values)?;
            }
            WriterMessage::KeepOpen => {
                state.keeping = true;
                let segments: Vec<SegmentId> = state.open.keys().copied().collect();
                for segment in segments {
                    state.keep(segment, &[], &[]);
                }
            }
            WriterMessage::Checkpoint { answer, since } => state.checkpoint(&myself, answer, since),
            WriterMessage::SetAside { segment, sequence, failed } => {
                state.assembly(segment)?.set_aside(sequence, failed)?;
            }
            WriterMessage::Seal { segment, token_budgets } => {
                let mut assembly =
                    state.open.remove(&segment).ok_or_else(|| format!("segment {segment} is not open"))?;
                assembly.check_complete()?;
                assembly.token_budgets = token_budgets;
                let Some(sealed) = &state.sealed else { return Ok(()) };
                if !sealed.send(assembly) {
                    return Err(format!("the writer's threads do not take segment {segment}").into());
                }
                state.committing += 1;
            }
            WriterMessage::Committed { segment, rows, records, failed, residues } => {
                tracing::info!(%segment, rows, failed, "segment committed");
                state.committing = state.committing.saturating_sub(1);
                state.journal.end(segment);
                // A packer that is gone is the supervisor's to notice; the journals are still to be brought up to date.
                let _ = state.packer.cast(PackerMessage::SegmentCommitted(segment));
                state.telemetry.tell(TelemetryMessage::SegmentCommitted { records, failed, residues });
            }
            WriterMessage::CommitFailed(error) => {
                state.supervisor.cast(SupervisorMessage::WriteFailed(error))?;
            }
            WriterMessage::Panicked(panic) => return Err(format!("writer thread panicked: {panic}").into()),
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<Self::Msg>,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        state.stop.store(true, Ordering::Relaxed);
        state.sealed = None;
        crate::thread::join(state.thread.take()).await;
        for encoder in state.encoders.drain(..) {
            crate::thread::join(Some(encoder)).await;
        }
        state.journal.close().await;
        let unfinished = state.unfinished();
        let open = state.open.keys().copied().collect();
        state.journal.stop(unfinished, &open).await;
        Ok(())
    }
}

impl Drop for WriterState {
    /// An actor that failed has no `post_stop`, and its thread may be waiting for a disk.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl WriterState {
    fn assembly(&mut self, segment: SegmentId) -> Result<&mut Assembly, ActorProcessingErr> {
        self.open.get_mut(&segment).ok_or_else(|| format!("segment {segment} is not open").into())
    }

    /// Open segments of which more was delivered than the journal has, however the session ends.
    fn unfinished(&self) -> Vec<Unfinished> {
        let lacks = |assembly: &&Assembly| assembly.delivered_count() > self.journal.kept(assembly.id());
        self.open.values().filter(lacks).map(Assembly::unfinished).collect()
    }

    /// Brings the journals of open segments up to date and to disk.
    ///
    /// Whatever a journal lacks, it is written anew, whole: which batches found no room in its queue nobody knows.
    fn checkpoint(&mut self, myself: &ActorRef<WriterMessage>, answer: AnswerTo, since: Instant) {
        if !self.journal.has_room() {
            if since.elapsed() < CHECKPOINT_ROOM_MAX {
                myself.send_after(CHECKPOINT_RETRY, move || WriterMessage::Checkpoint { answer, since });
            } else {
                let text = "the disk is too slow for the journal: nothing was kept beyond what it has";
                let _ = answer.send(Err(Refused(text.to_owned())));
            }
            return;
        }
        let sequences: usize = self.open.values().map(Assembly::delivered_count).sum();
        let segments = self.open.values().filter(|assembly| assembly.delivered_count() > 0).count();
        let mut words = match sequences {
            0 => "nothing is computed that is not in a committed segment".to_owned(),
            _ => {
                let segments = counted(segments, "open segment");
                format!("{} of {segments} in the journal, on disk", counted(sequences, "sequence"))
            }
        };
        if self.committing > 0 {
            words += &format!("; being written: {}", counted(self.committing, "complete segment"));
        }
        self.journal.checkpoint(self.unfinished(), words, answer);
    }

    /// Gives the journal what was just delivered; and what was before, if it is time to begin one.
    fn keep(&mut self, segment: SegmentId, sequences: &[u32], values: &[f32]) {
        let Some(assembly) = self.open.get(&segment) else { return };
        let prepared = &assembly.opened.prepared;
        if self.journal.keeps(segment) {
            if !sequences.is_empty() {
                self.journal.append(prepared, sequences, values);
            }
        } else if self.keeping || assembly.opened_at.elapsed() >= self.journal_after {
            let (sequences, values) = assembly.delivered();
            if !sequences.is_empty() {
                self.journal.append(prepared, &sequences, &values);
            }
        }
    }
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

impl Assembly {
    fn new(opened: OpenedSegment, schema: &PartSchema) -> Self {
        let sequences = opened.prepared.sequence_count();
        let mut starts = Vec::with_capacity(sequences + 1);
        let mut end = 0;
        starts.push(end);
        for sequence in 0..sequences as u32 {
            let pooled = opened.prepared.record_with(sequence).pooled_residues as usize;
            end += if schema.per_residue { pooled } else { 1 } * schema.hidden;
            starts.push(end);
        }
        Self {
            opened,
            hidden: schema.hidden,
            starts,
            values: vec![0.0; end],
            state: vec![Delivery::Awaited; sequences],
            opened_at: Instant::now(),
            token_budgets: BTreeMap::new(),
        }
    }

    fn id(&self) -> SegmentId {
        self.opened.prepared.segment.id
    }

    fn delivered_count(&self) -> usize {
        self.state.iter().filter(|&&state| state == Delivery::Delivered).count()
    }

    fn unfinished(&self) -> Unfinished {
        let (sequences, values) = self.delivered();
        Unfinished { prepared: self.opened.prepared.clone(), sequences, values }
    }

    /// Everything delivered so far: sequences and their rows, back to back.
    fn delivered(&self) -> (Vec<u32>, Vec<f32>) {
        let delivered = |sequence: &u32| self.state[*sequence as usize] == Delivery::Delivered;
        let sequences: Vec<u32> = (0..self.state.len() as u32).filter(delivered).collect();
        let places = sequences.iter().map(|&s| self.starts[s as usize]..self.starts[s as usize + 1]);
        let values = places.flat_map(|place| &self.values[place]).copied().collect();
        (sequences, values)
    }

    fn deliver(&mut self, sequences: &[u32], values: &[f32]) -> Result<(), String> {
        let mut rest = values;
        for &sequence in sequences {
            let place = self.starts[sequence as usize]..self.starts[sequence as usize + 1];
            let (own, others) = rest
                .split_at_checked(place.len())
                .ok_or_else(|| format!("segment {}: fewer values than rows", self.id()))?;
            self.values[place].copy_from_slice(own);
            rest = others;
            self.settle(sequence, Delivery::Delivered)?;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(format!("segment {}: more values than rows of {}", self.id(), self.hidden))
        }
    }

    fn set_aside(&mut self, sequence: u32, failed: Vec<FailedRecord>) -> Result<(), String> {
        self.opened.failed.extend(failed);
        self.settle(sequence, Delivery::SetAside)
    }

    fn settle(&mut self, sequence: u32, delivery: Delivery) -> Result<(), String> {
        let state = &mut self.state[sequence as usize];
        if *state != Delivery::Awaited {
            return Err(format!("segment {}: sequence {sequence} arrived twice", self.id()));
        }
        *state = delivery;
        Ok(())
    }

    fn check_complete(&self) -> Result<(), String> {
        match self.state.iter().position(|&state| state == Delivery::Awaited) {
            None => Ok(()),
            Some(sequence) => Err(format!("segment {}: sequence {sequence} never arrived", self.id())),
        }
    }

    /// Records with an embedding, each with its sequence.
    fn delivered_records(&self) -> impl Iterator<Item = (&Record, usize)> {
        let prepared = &self.opened.prepared;
        let records = prepared.segment.records.iter().zip(&prepared.sequence_of);
        records
            .map(|(record, &sequence)| (record, sequence as usize))
            .filter(|(_, sequence)| self.state[*sequence] == Delivery::Delivered)
    }

    fn rows(&self) -> impl Iterator<Item = PartRow<'_>> {
        self.delivered_records().map(|(record, sequence)| PartRow {
            index: record.ordinal,
            id: &record.id,
            length: record.residues_in_input,
            embedding: &self.values[self.starts[sequence]..self.starts[sequence + 1]],
        })
    }
}

/// What a part depends on besides its rows.
struct PartLayout {
    folder: ResultFolder,
    schema: PartSchema,
    metadata: BTreeMap<String, String>,
}

impl PartLayout {
    /// An encoder's life.
    fn encode_all(&self, sealed: &flume::Receiver<ToEncode>) {
        while let Ok(ToEncode { assembly, encoded }) = sealed.recv() {
            crate::fault::point("encoder");
            // Nobody waits for it once the run ends early; dropped, it is removed.
            let _ = encoded.send(self.encode(&assembly));
        }
    }

    fn encode(&self, assembly: &Assembly) -> Result<EncodedPart, PartError> {
        let path = self.folder.0.join(ResultFolder::part_name(assembly.id()));
        part::encode_part(&path, &self.schema, &self.metadata, assembly.rows())
    }
}

/// The writer thread's side: parts and manifest.
struct Committer {
    folder: ResultFolder,
    layout: Arc<PartLayout>,
    commits: SharedCommits,
    stop: Arc<AtomicBool>,
    writer: ActorRef<WriterMessage>,
    telemetry: Reporter,
    started: Instant,
}

impl Committer {
    /// Commits segments until there are no more.
    fn commit_all(&self, sealed: &flume::Receiver<Sealed>) {
        let mut free_since = Instant::now();
        self.telemetry.stage(Stage::Write, Doing::Starved, None);
        while let Ok(Sealed { assembly, part }) = sealed.recv() {
            self.telemetry.stage(Stage::Write, Doing::Busy, Some(free_since.elapsed()));
            crate::fault::point("writer-thread");
            // An encoder that panicked has said so.
            let Ok(part) = part.recv() else { break };
            let message = match self.commit_when_possible(&assembly, part) {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(error) => WriterMessage::CommitFailed(error),
            };
            let _ = self.writer.cast(message);
            free_since = Instant::now();
            self.telemetry.stage(Stage::Write, Doing::Starved, None);
        }
        self.telemetry.stage(Stage::Write, Doing::Nothing, None);
    }

    /// Commits one segment, waiting while something that may pass is in the way; `None` if told to stop
    /// while waiting, or left behind by the run.
    ///
    /// What an encoder could not write may have been in the way then only: it is encoded again.
    fn commit_when_possible(
        &self,
        assembly: &Assembly,
        part: Result<EncodedPart, PartError>,
    ) -> Result<Option<WriterMessage>, WriteError> {
        let mut part = part.ok();
        let (folder, stop, telemetry) = (self.folder.0.clone(), self.stop.clone(), self.telemetry.clone());
        let pausing = |paused: Option<&'static str>| {
            telemetry.tell(TelemetryMessage::DiskFull(paused.is_some()));
            if let Some(why) = paused {
                telemetry.stage(Stage::Write, Doing::Blocked, None);
                let told = Happening::new(EventLevel::Warning, why);
                telemetry.event(told.often("warnings that writing is paused"));
            } else {
                telemetry.stage(Stage::Write, Doing::Busy, None);
                telemetry.event(Happening::new(EventLevel::Info, "writing goes on"));
            }
        };
        let written = write_when_possible(
            &folder,
            || stop.load(Ordering::Relaxed),
            pausing,
            || {
                let part = part.take().map_or_else(|| self.layout.encode(assembly), Ok)?;
                self.commit(assembly, part)
            },
        );
        written.map(Option::flatten)
    }

    fn commit(&self, assembly: &Assembly, part: EncodedPart) -> Result<Option<WriterMessage>, WriteError> {
        let OpenedSegment { prepared, failed, .. } = &assembly.opened;
        let (segment, records) = (prepared.segment.id, &prepared.segment.records);
        let summary = part.commit()?;
        if !failed.is_empty() {
            let path = self.folder.failed_of(segment);
            write_whole(&path, failed::to_lines(failed.clone()).as_bytes())
                .map_err(|source| WriteError::Failed { path, source })?;
        }
        // Every record of the segment is a row or failed; the packer's rejected ones are in `failed`.
        let residues = assembly.delivered_records().map(|(record, _)| record.residues.len() as u64).sum();
        let set_aside = records.len() as u64 - summary.rows;
        let rejected = failed.len() as u64 - set_aside;
        let entry = SegmentEntry {
            first_index: prepared.segment.first_ordinal,
            records: records.len() as u64 + rejected,
            rows: summary.rows,
            failed: failed.len() as u64,
            residues,
            part: ResultFolder::part_name(segment),
            bytes: summary.bytes,
            sha256: summary.checksum.to_string(),
        };
        let message = WriterMessage::Committed {
            segment,
            rows: entry.rows,
            records: entry.records,
            failed: entry.failed,
            residues,
        };
        let is_committed = self.commits.commit(Commit {
            segment: segment.0,
            entry,
            device_token_budgets: assembly.token_budgets.clone(),
            elapsed_s: self.started.elapsed().as_secs_f64(),
        })?;
        Ok(is_committed.then_some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Segment;

    fn assembly() -> Assembly {
        let record = |ordinal, residues: &str| Record {
            ordinal,
            id: format!("r{ordinal}"),
            residues: residues.into(),
            pooled_residues: 3,
            residues_in_input: 3,
            file: 0,
            line: 1,
        };
        let records = vec![record(0, "MKV"), record(1, "AAA"), record(2, "MKV")];
        let segment = Segment { id: SegmentId(0), first_ordinal: 0, records, rejected: vec![] };
        let prepared = Arc::new(PreparedSegment::new(segment));
        let opened = OpenedSegment { prepared, failed: vec![], journal_bytes: 0 };
        Assembly::new(opened, &PartSchema { hidden: 2, float: config::Float::F32, per_residue: false })
    }

    #[test]
    fn rows_come_in_input_order_and_equal_sequences_share_a_vector() {
        let mut assembly = assembly();
        assembly.deliver(&[1, 0], &[1.0, 2.0, 3.0, 4.0]).unwrap();
        assembly.check_complete().unwrap();
        let rows: Vec<_> = assembly.rows().map(|row| (row.index, row.embedding.to_vec())).collect();
        assert_eq!(rows, [(0, vec![3.0, 4.0]), (1, vec![1.0, 2.0]), (2, vec![3.0, 4.0])]);
    }

    #[test]
    fn in_is_out_or_an_error() {
        let mut once = assembly();
        once.deliver(&[0], &[1.0, 2.0]).unwrap();
        assert!(once.check_complete().unwrap_err().contains("never arrived"));
        assert!(once.deliver(&[0], &[1.0, 2.0]).unwrap_err().contains("twice"));
        assert!(assembly().deliver(&[0], &[1.0]).unwrap_err().contains("fewer"));
        assert!(assembly().deliver(&[0], &[1.0; 3]).unwrap_err().contains("more"));
    }
}
