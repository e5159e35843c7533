//! The reader actor: owns the thread that reads FASTA and cuts it into segments.
//!
//! The packer asks for one segment at a time ([`ReaderMessage::ReadSegment`]); nothing is read that was
//! not asked for. Segments that are committed already are read past. The reader never looks at devices.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::bounds;
use crate::fasta::{FileDigest, FileStamp, InputCounts, InputError, RecordStream, Source};
use crate::identity::SegmentId;
use crate::journal::{JournalPlace, Recovered};
use crate::packer::PackerMessage;
use crate::segment::{PreparedSegment, SegmentCutter, SegmentLimits};
use crate::supervisor::SupervisorMessage;
use crate::telemetry::{Doing, Reporter, Stage};

/// A segment as the reader hands it over.
pub(crate) struct ReadSegment {
    pub(crate) prepared: Arc<PreparedSegment>,
    /// What an earlier session computed of it.
    pub(crate) recovered: Recovered,
}

/// What the reader is told.
pub(crate) enum ReaderMessage {
    /// Read the next segment that is not committed; answered by `SegmentRead` or `InputEnded`.
    ReadSegment,
    /// The thread panicked with this message.
    Panicked(String),
}

/// What the reader starts with.
pub(crate) struct ReaderArguments {
    pub(crate) input: config::Input,
    pub(crate) sources: Vec<Source>,
    /// Digests of the survey: the input must still be what it was.
    pub(crate) digests: Vec<FileDigest>,
    pub(crate) counts: InputCounts,
    /// Stamps from before the survey: told apart at every segment, so that no part is made of a file
    /// that was written to in between.
    pub(crate) stamps: Vec<FileStamp>,
    pub(crate) limits: SegmentLimits,
    /// Residues whose vectors fit into one row of the result.
    pub(crate) row_residues_max: u32,
    pub(crate) committed: BTreeSet<SegmentId>,
    /// Where earlier sessions left what they had of segments that they did not commit.
    pub(crate) journals: JournalPlace,
    pub(crate) packer: ActorRef<PackerMessage>,
    pub(crate) supervisor: ActorRef<SupervisorMessage>,
    pub(crate) telemetry: Reporter,
}

pub(crate) struct Reader;

pub(crate) struct ReaderState {
    /// Sent by the actor, received by the thread; one per segment asked for, so never more than the
    /// packer's segment limit. Closing it ends the thread.
    requests: Option<flume::Sender<()>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Actor for Reader {
    type Msg = ReaderMessage;
    type State = ReaderState;
    type Arguments = ReaderArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: ReaderArguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let (requests, received) = flume::bounded(bounds::SEGMENTS_ASKED);
        let stop = Arc::new(AtomicBool::new(false));
        let thread_stop = stop.clone();
        let thread = crate::thread::spawn_watched(
            "reader",
            move || read_on_request(arguments, &received, &thread_stop),
            move |message| {
                let _ = myself.cast(ReaderMessage::Panicked(message));
            },
        )?;
        Ok(ReaderState { requests: Some(requests), stop, thread: Some(thread) })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: ReaderMessage,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        crate::fault::point("reader");
        match message {
            ReaderMessage::ReadSegment => match &state.requests {
                Some(requests) => requests.try_send(()).map_err(Into::into),
                None => Ok(()),
            },
            ReaderMessage::Panicked(panic) => Err(format!("reader thread panicked: {panic}").into()),
        }
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<Self::Msg>,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        state.stop.store(true, Ordering::Relaxed);
        state.requests = None;
        crate::thread::join(state.thread.take()).await;
        Ok(())
    }
}

/// The thread's life: one segment per request, until the input or the requests end.
fn read_on_request(arguments: ReaderArguments, requests: &flume::Receiver<()>, stop: &AtomicBool) {
    let stopped = || stop.load(Ordering::Relaxed);
    let fail = |error: InputError| {
        let _ = arguments.supervisor.cast(SupervisorMessage::InputFailed(error));
    };
    let stream = match RecordStream::open(&arguments.input, &arguments.sources) {
        Ok(stream) => stream.with_row_residues_max(arguments.row_residues_max),
        Err(error) => return fail(error),
    };
    let mut cutter = SegmentCutter::new(stream, arguments.limits);
    let mut free_since = Instant::now();
    while requests.recv().is_ok() {
        arguments.telemetry.stage(Stage::Read, Doing::Busy, Some(free_since.elapsed()));
        crate::fault::point("reader-thread");
        let segment = loop {
            match cutter.next_segment(&stopped) {
                Ok(Some(segment)) if arguments.committed.contains(&segment.id) => {}
                Ok(segment) => break segment,
                Err(error) => return fail(error),
            }
        };
        if stopped() {
            return;
        }
        if let Some(error) = touched(&arguments) {
            return fail(error);
        }
        match segment {
            Some(segment) => {
                let prepared = Arc::new(PreparedSegment::new(segment));
                let recovered = arguments.journals.recover(&prepared);
                let _ =
                    arguments.packer.cast(PackerMessage::SegmentRead(ReadSegment { prepared, recovered }));
                free_since = Instant::now();
                // It is not asked for more than the packer has room for.
                arguments.telemetry.stage(Stage::Read, Doing::Blocked, None);
            }
            None => {
                let stream = cutter.items();
                if let Some(error) = changed(&arguments, stream.digests(), stream.counts()) {
                    return fail(error);
                }
                let _ = arguments.packer.cast(PackerMessage::InputEnded);
                arguments.telemetry.stage(Stage::Read, Doing::Nothing, None);
                return;
            }
        }
    }
}

/// Whether a file was replaced or written to since the survey began.
fn touched(arguments: &ReaderArguments) -> Option<InputError> {
    let same = |(source, stamp): &(&Source, &FileStamp)| source.stamp().is_ok_and(|now| now == **stamp);
    let files = arguments.sources.iter().zip(&arguments.stamps);
    files
        .filter(|file| !same(file))
        .map(|(source, _)| InputError::Changed { file: source.label().to_owned() })
        .next()
}

/// The input is read twice; both times it must be the same.
fn changed(arguments: &ReaderArguments, digests: &[FileDigest], counts: &InputCounts) -> Option<InputError> {
    let moved = arguments.digests.iter().zip(digests).find(|(before, now)| before != now);
    if let Some((before, _)) = moved {
        return Some(InputError::Changed { file: before.path.clone() });
    }
    (counts != &arguments.counts).then(|| InputError::Changed { file: "the list of inputs".to_owned() })
}
