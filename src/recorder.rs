//! `telemetry.jsonl`: how a run went over time, one JSON object per line, over all sessions.
//!
//! A thread of its own looks at the latest snapshot and appends what it says: often at first, ever more rarely as
//! the run grows older ([`interval`]), so that a week fits into a few megabytes. It only reads the `watch`; a disk
//! that is full, slow or gone costs lines of this file, never the run. The report reads it back ([`Series`]).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use actors::fasta::LengthHistogram;
use actors::manifest::{ResultFolder, RunStatus};
use actors::packing::Fill;
use actors::{DeviceState, EventLevel, EventView, JobView, Snapshot, Stage, bounds};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Version of the lines. Raise it when a field changes its meaning or goes.
pub(crate) const VERSION: u32 = 1;

/// Time between the first samples.
const INTERVAL_MIN_S: f64 = 1.0;
/// Later ones come each time the run has grown older by one part in so many: 500 samples for the first 500 s, then
/// 1,150 for each tenfold of that, 4,000 for a week.
const SAMPLES_PER_AGE: f64 = 500.0;
/// Longest time between two samples: what a file says of earlier sessions may be damaged.
const INTERVAL_MAX_S: f64 = 3600.0;
/// A larger file is thinned out: a week with eight devices stays below it.
const BYTES_MAX: usize = 8 << 20;
/// Most that is read back: the file is not always ours alone to write.
const BYTES_READ_MAX: u64 = 4 * BYTES_MAX as u64;
/// Latest moment of a session that is believed: three centuries.
const AT_MAX_S: f64 = 1e10;
/// Sessions and events that survive thinning out.
const SESSIONS_KEPT: usize = 500;
const EVENTS_KEPT: usize = 2000;
/// Longest text of an event, characters.
const EVENT_TEXT_MAX: usize = 500;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// [`VERSION`].
    pub(crate) version: u32,
    /// Number of the session, from 1.
    pub(crate) session: u32,
    /// Seconds since the session began.
    pub(crate) at_s: f64,
    /// What it tells.
    #[serde(flatten)]
    pub(crate) entry: Entry,
}

/// What a line tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Entry {
    /// A session begins.
    Session(Box<SessionStart>),
    /// How it stands.
    Sample(Box<Sample>),
    /// Something happened.
    Event {
        /// Grows by one with each event of the session.
        number: u64,
        /// How serious it is.
        level: EventLevel,
        /// The device that it is about.
        device: Option<String>,
        /// What happened, in one line.
        text: String,
    },
    /// The session ended in order; missing after a kill.
    End {
        /// How.
        status: RunStatus,
        /// Why it is not done.
        reason: Option<String>,
    },
}

/// What does not change within a session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SessionStart {
    /// The job, the program, and when the session began.
    pub(crate) job: JobView,
    /// The machine.
    pub(crate) host: Host,
    /// The command that goes on with the run.
    pub(crate) command: String,
    /// The folder in which it was typed.
    pub(crate) working_folder: String,
    /// The resolved job, as `plan --print-job` prints it.
    pub(crate) configuration: String,
    /// Input records of the whole run.
    pub(crate) records_total: u64,
    /// Residues of the whole run.
    pub(crate) residues_total: u64,
    /// Records settled by earlier sessions.
    pub(crate) records_resumed: u64,
    /// How long the sequences are.
    pub(crate) lengths: LengthHistogram,
}

/// The machine that a session runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Host {
    /// Its name.
    pub(crate) name: String,
    /// The system and its version.
    pub(crate) system: Option<String>,
    /// The processor's own name.
    pub(crate) processor: Option<String>,
    /// Threads that the program may use.
    pub(crate) threads: Option<usize>,
    /// Its memory.
    pub(crate) memory_bytes: Option<u64>,
}

impl Host {
    /// This machine.
    pub(crate) fn here(name: &str) -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let release = text("/proc/sys/kernel/osrelease");
        let after_colon = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = after_colon(&text("/proc/meminfo"), "MemTotal");
        let kibibytes = memory.and_then(|memory| memory.strip_suffix(" kB")?.trim().parse::<u64>().ok());
        Self {
            name: name.to_owned(),
            system: Some(release.trim()).filter(|text| !text.is_empty()).map(|text| format!("Linux {text}")),
            processor: after_colon(&text("/proc/cpuinfo"), "model name"),
            threads: std::thread::available_parallelism().ok().map(usize::from),
            memory_bytes: kibibytes.map(|kibibytes| kibibytes.saturating_mul(1024)),
        }
    }
}

/// How a session stands at one moment; all sums are of the session alone, unless they say so.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// The same moment in seconds since 1970.
    pub(crate) unix_s: f64,
    /// Records in committed segments of all sessions.
    pub(crate) records_committed: u64,
    /// Residues in committed segments of all sessions.
    pub(crate) residues_committed: u64,
    /// Segments committed.
    pub(crate) segments_committed: u64,
    /// Records listed in `failed.tsv` by all sessions.
    pub(crate) failed: u64,
    /// Sequences computed.
    pub(crate) sequences: u64,
    /// Tokens computed.
    pub(crate) tokens: u64,
    /// Tokens per second over the ten seconds before.
    pub(crate) tokens_per_s_now: f64,
    /// Estimated time to the end.
    pub(crate) remaining_s: Option<f64>,
    /// How well batches are filled.
    pub(crate) fill: Fill,
    /// Batches waiting for a device.
    pub(crate) batches_queued: usize,
    /// Free slots waiting for a batch.
    pub(crate) slots_free: usize,
    /// Worker restarts.
    pub(crate) restarts: u64,
    /// Whether writing waits for the disk.
    pub(crate) disk_full: bool,
    /// Whether somebody has paused the run.
    pub(crate) paused: bool,
    /// Every stage of the pipeline.
    pub(crate) stages: Vec<StageSample>,
    /// Every device.
    pub(crate) devices: Vec<DeviceSample>,
}

/// A stage at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StageSample {
    /// Which.
    pub(crate) stage: Stage,
    /// What waits in front of it.
    pub(crate) queued: u64,
    /// Seconds that it worked, all its workers together.
    pub(crate) busy_s: f64,
    /// Share of the time that it worked.
    pub(crate) busy: f64,
    /// Share of the time that it had nothing to do.
    pub(crate) starved: f64,
    /// Share of the time that the stages after it held it up.
    pub(crate) blocked: f64,
    /// Pieces of work it waited for.
    pub(crate) waits: u64,
    /// Half of the recent ones came within so long, milliseconds.
    pub(crate) wait_p50_ms: f64,
    /// 95 % of the recent ones came within so long, milliseconds.
    pub(crate) wait_p95_ms: f64,
    /// Share of them that were there at once.
    pub(crate) full: f64,
    /// Share of them that took more than 50 ms.
    pub(crate) late: f64,
}

/// A device at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DeviceSample {
    /// Its name.
    pub(crate) name: String,
    /// What it is doing.
    pub(crate) state: DeviceState,
    /// How often it was started, from 0.
    pub(crate) generation: u32,
    /// Tokens computed.
    pub(crate) tokens: u64,
    /// Time in the engine, seconds.
    pub(crate) compute_s: f64,
    /// Starts of its worker beyond the first.
    pub(crate) restarts: u64,
    /// Resident memory of its worker.
    pub(crate) resident_bytes: Option<u64>,
    /// What the driver says how busy the GPU is, 0..=1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gpu_busy: Option<f64>,
    /// Memory of the GPU in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gpu_memory_bytes: Option<u64>,
    /// Temperature of the GPU, degrees Celsius.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gpu_temperature_c: Option<u32>,
    /// Power that the GPU draws.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gpu_power_w: Option<f64>,
}

impl Sample {
    /// What of a snapshot is kept over time.
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        let stages = snapshot.stages.iter().map(|view| StageSample {
            stage: view.stage,
            queued: view.queued,
            busy_s: rounded(view.busy_s),
            busy: rounded(view.busy_share),
            starved: rounded(view.starved_share),
            blocked: rounded(view.blocked_share),
            waits: view.waits.count,
            wait_p50_ms: rounded(view.waits.p50_ms),
            wait_p95_ms: rounded(view.waits.p95_ms),
            full: rounded(view.waits.full_share),
            late: rounded(view.waits.starved_share),
        });
        let devices = snapshot.devices.iter().map(|view| {
            let gpu = view.gpu.as_ref().and_then(|gpu| gpu.sample.as_ref());
            DeviceSample {
                name: view.name.clone(),
                state: view.state,
                generation: view.generation,
                tokens: view.tokens,
                compute_s: rounded(view.compute_s),
                restarts: view.restarts,
                resident_bytes: view.resident_bytes,
                gpu_busy: gpu.and_then(|gpu| gpu.busy_percent).map(|percent| f64::from(percent) / 100.0),
                gpu_memory_bytes: gpu.and_then(|gpu| gpu.memory_used_bytes),
                gpu_temperature_c: gpu.and_then(|gpu| gpu.temperature_c),
                gpu_power_w: gpu.and_then(|gpu| gpu.power_w).map(rounded),
            }
        });
        Self {
            unix_s: rounded(snapshot.job.started_unix_s as f64 + snapshot.elapsed_s),
            records_committed: snapshot.records_committed,
            residues_committed: snapshot.residues_committed,
            segments_committed: snapshot.segments_committed,
            failed: snapshot.failed,
            sequences: snapshot.sequences_computed,
            tokens: snapshot.tokens_computed,
            tokens_per_s_now: rounded(snapshot.tokens_per_s_now),
            remaining_s: snapshot.remaining_s().map(rounded),
            fill: snapshot.fill,
            batches_queued: snapshot.batches_queued,
            slots_free: snapshot.slots_free,
            restarts: snapshot.restarts,
            disk_full: snapshot.disk_full,
            paused: snapshot.paused,
            stages: stages.collect(),
            devices: devices.collect(),
        }
    }
}

/// To a thousandth: digits behind it would only fill the disk. What is no number becomes 0, which JSON can say.
fn rounded(number: f64) -> f64 {
    if number.is_finite() { (number * 1000.0).round() / 1000.0 } else { 0.0 }
}

/// Time to the next sample of a run that is so old, all sessions together, seconds.
fn interval(age_s: f64) -> Duration {
    Duration::from_secs_f64((age_s / SAMPLES_PER_AGE).clamp(INTERVAL_MIN_S, INTERVAL_MAX_S))
}

/// The file of a result folder.
pub(crate) fn path(folder: &ResultFolder) -> PathBuf {
    folder.0.join("telemetry.jsonl")
}

/// Records a session until it is closed.
pub(crate) struct Recorder {
    /// Sent by the run's end, received by the thread; bound [`bounds::RECORDER_WORDS`]. Closing it ends the thread.
    last: Option<flume::Sender<Last>>,
    thread: Option<JoinHandle<()>>,
}

/// What the run says when it has ended.
struct Last {
    snapshot: Arc<Snapshot>,
    status: RunStatus,
    reason: Option<String>,
}

impl Recorder {
    /// Begins session number `session` of a folder.
    pub(crate) fn start(
        folder: &ResultFolder,
        session: u32,
        start: SessionStart,
        snapshots: watch::Receiver<Arc<Snapshot>>,
    ) -> Self {
        let path = path(folder);
        let (last, ended) = flume::bounded(bounds::RECORDER_WORDS);
        let thread = std::thread::Builder::new().name("recorder".to_owned()).spawn(move || {
            let mut file = Recording::begin(path, session, start);
            let mut at_s = file.sample(&snapshots.borrow().clone());
            loop {
                match ended.recv_timeout(interval(file.age_before_s + at_s)) {
                    Err(flume::RecvTimeoutError::Timeout) => {
                        let snapshot = snapshots.borrow().clone();
                        at_s = file.sample(&snapshot);
                    }
                    Err(flume::RecvTimeoutError::Disconnected) => return,
                    Ok(Last { snapshot, status, reason }) => {
                        let at_s = file.sample(&snapshot);
                        return file.append(&[file.line(at_s, Entry::End { status, reason })]);
                    }
                }
            }
        });
        if let Err(error) = &thread {
            tracing::warn!(%error, "no thread to record how the run goes over time");
        }
        Self { last: Some(last), thread: thread.ok() }
    }

    /// Writes the end of the session.
    pub(crate) fn close(mut self, snapshot: &Arc<Snapshot>, status: RunStatus, reason: Option<String>) {
        if let Some(last) = self.last.take() {
            let _ = last.send(Last { snapshot: snapshot.clone(), status, reason });
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The file while a session is recorded.
struct Recording {
    path: PathBuf,
    file: Option<File>,
    session: u32,
    /// How long the sessions before were, together.
    age_before_s: f64,
    bytes: usize,
    /// Number of the latest event written.
    event: Option<u64>,
    /// Time of the latest snapshot written: a telemetry that has not got round to another one shows it again.
    sampled_s: Option<f64>,
    /// Whether the last line may be torn.
    torn: bool,
    warned: bool,
}

impl Recording {
    fn begin(path: PathBuf, session: u32, start: SessionStart) -> Self {
        let earlier = Series::read(&path);
        let mut recording = Self {
            age_before_s: earlier.sessions.values().map(SessionSeries::elapsed_s).sum(),
            // A session that was killed may have left half a line.
            torn: true,
            path,
            file: None,
            session,
            bytes: 0,
            event: None,
            sampled_s: None,
            warned: false,
        };
        recording.append(&[recording.line(0.0, Entry::Session(Box::new(start)))]);
        recording
    }

    fn line(&self, at_s: f64, entry: Entry) -> Line {
        Line { version: VERSION, session: self.session, at_s: rounded(at_s), entry }
    }

    /// Writes how things stand and what is new; returns the time of the snapshot.
    fn sample(&mut self, snapshot: &Snapshot) -> f64 {
        let mut lines = Vec::new();
        for event in &snapshot.events {
            if self.event.is_none_or(|written| event.number > written) {
                self.event = Some(event.number);
                let EventView { number, at_s, level, device, mut text } = event.clone();
                if let Some((end, _)) = text.char_indices().nth(EVENT_TEXT_MAX) {
                    text.truncate(end);
                    text.push('…');
                }
                lines.push(self.line(at_s, Entry::Event { number, level, device, text }));
            }
        }
        if self.sampled_s.is_none_or(|before| rounded(snapshot.elapsed_s) > rounded(before)) {
            self.sampled_s = Some(snapshot.elapsed_s);
            lines.push(self.line(snapshot.elapsed_s, Entry::Sample(Box::new(Sample::of(snapshot)))));
        }
        self.append(&lines);
        snapshot.elapsed_s
    }

    fn append(&mut self, lines: &[Line]) {
        let mut text = String::new();
        for line in lines {
            text += &serde_json::to_string(line).expect("a line is plain data with text keys");
            text.push('\n');
        }
        if let Err(error) = self.write(&text) {
            self.torn = true;
            self.file = None;
            if !std::mem::replace(&mut self.warned, true) {
                let file = self.path.display();
                tracing::warn!(%file, %error, "how the run goes over time cannot be recorded; the run goes on");
            }
        }
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        if self.file.is_none() {
            let file = open_for_appending(&self.path)?;
            self.bytes = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
            self.file = Some(file);
        }
        if self.bytes.saturating_add(text.len()) > BYTES_MAX {
            self.file = None;
            thin_out(&self.path)?;
            let file = open_for_appending(&self.path)?;
            self.bytes = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
            self.file = Some(file);
            if self.bytes > BYTES_MAX {
                return Err(io::Error::other("it is too large"));
            }
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        if self.torn && self.bytes > 0 {
            file.write_all(b"\n")?;
            self.bytes += 1;
        }
        self.torn = false;
        self.bytes += text.len();
        file.write_all(text.as_bytes())
    }
}

/// Opens a regular file: a pipe under the name would make its writer wait for ever.
fn open_for_appending(path: &Path) -> io::Result<File> {
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    File::options().create(true).append(true).open(path)
}

/// Replaces the file by one with every second sample, as often as it takes to make room.
fn thin_out(path: &Path) -> io::Result<()> {
    let mut lines = read_lines(path)?;
    let mut text = written(&lines);
    // Each round halves the samples, of which a session keeps two.
    for _ in 0..usize::BITS {
        if text.len() <= BYTES_MAX / 4 * 3 {
            break;
        }
        lines = thinned(lines);
        text = written(&lines);
    }
    let temporary = actors::part::temporary_path(path);
    let replaced = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path));
    if replaced.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    replaced
}

fn written(lines: &[Line]) -> String {
    let line = |line: &Line| serde_json::to_string(line).expect("a line is plain data with text keys") + "\n";
    lines.iter().map(line).collect()
}

/// Drops every second sample of each session but its first and last, and what is older than what is kept.
fn thinned(lines: Vec<Line>) -> Vec<Line> {
    let mut samples: BTreeMap<u32, usize> = BTreeMap::new();
    let mut sessions: Vec<u32> = lines.iter().map(|line| line.session).collect();
    sessions.sort_unstable();
    sessions.dedup();
    let first_session = sessions[sessions.len().saturating_sub(SESSIONS_KEPT)..].first().copied();
    let mut events = 0;
    for line in &lines {
        match line.entry {
            Entry::Sample(_) => *samples.entry(line.session).or_default() += 1,
            Entry::Event { .. } => events += 1,
            Entry::Session(_) | Entry::End { .. } => {}
        }
    }
    let mut events_dropped = usize::saturating_sub(events, EVENTS_KEPT);
    let mut seen: BTreeMap<u32, usize> = BTreeMap::new();
    let mut lines = lines;
    lines.retain(|line| {
        if Some(line.session) < first_session {
            return false;
        }
        match line.entry {
            Entry::Session(_) | Entry::End { .. } => true,
            Entry::Event { .. } if events_dropped > 0 => {
                events_dropped -= 1;
                false
            }
            Entry::Event { .. } => true,
            Entry::Sample(_) => {
                let number = seen.entry(line.session).or_default();
                *number += 1;
                *number % 2 == 1 || *number == samples[&line.session]
            }
        }
    });
    lines
}

/// The lines of a file that can be read; one that is torn, or of another version, is left out.
fn read_lines(path: &Path) -> io::Result<Vec<Line>> {
    let mut bytes = Vec::new();
    actors::files::open_regular(path)?.take(BYTES_READ_MAX).read_to_end(&mut bytes)?;
    let lines = bytes.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    let whole = |line: &Line| line.version == VERSION && (0.0..AT_MAX_S).contains(&line.at_s);
    Ok(lines.filter(whole).collect())
}

/// What was recorded, session by session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series {
    /// By number.
    pub(crate) sessions: BTreeMap<u32, SessionSeries>,
}

/// What was recorded of one session.
#[derive(Clone, Debug, Default)]
pub(crate) struct SessionSeries {
    /// `None` if its line is missing.
    pub(crate) start: Option<SessionStart>,
    /// Samples with their times.
    pub(crate) samples: Vec<(f64, Sample)>,
    /// Its events.
    pub(crate) events: Vec<EventView>,
    /// How it ended; `None` if it was killed or still runs.
    pub(crate) end: Option<(RunStatus, Option<String>)>,
}

impl SessionSeries {
    /// How long it was, as far as it is known.
    pub(crate) fn elapsed_s(&self) -> f64 {
        self.samples.last().map_or(0.0, |&(at_s, _)| at_s.max(0.0))
    }
}

impl Series {
    /// Reads a file back; one that cannot be read is one without lines.
    pub(crate) fn read(path: &Path) -> Self {
        let mut series = Self::default();
        for line in read_lines(path).unwrap_or_default() {
            let session = series.sessions.entry(line.session).or_default();
            match line.entry {
                Entry::Session(start) => session.start = Some(*start),
                Entry::Sample(sample) => {
                    // Time only grows; what says otherwise was not written by one session.
                    if session.samples.last().is_none_or(|&(before, _)| line.at_s > before) {
                        session.samples.push((line.at_s, *sample));
                    }
                }
                Entry::Event { number, level, device, text } => {
                    session.events.push(EventView { number, at_s: line.at_s, level, device, text });
                }
                Entry::End { status, reason } => session.end = Some((status, reason)),
            }
        }
        series
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(elapsed_s: f64, events: std::ops::Range<u64>) -> Snapshot {
        let event = |number| EventView {
            number,
            at_s: number as f64,
            level: EventLevel::Warning,
            device: Some("sim:0".to_owned()),
            text: "x".repeat(1000),
        };
        Snapshot {
            elapsed_s,
            tokens_computed: (elapsed_s * 100.0) as u64,
            events: events.map(event).collect(),
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_week_takes_a_few_thousand_samples() {
        let (mut age_s, mut samples) = (0.0, 0);
        while age_s < 7.0 * 86_400.0 {
            age_s += interval(age_s).as_secs_f64();
            samples += 1;
        }
        assert!((3500..4500).contains(&samples), "{samples}");
        assert_eq!(interval(0.0), Duration::from_secs(1));
        assert_eq!(interval(50_000.0), Duration::from_secs(100));
        assert_eq!(interval(f64::MAX), Duration::from_secs(3600));
    }

    #[test]
    fn what_is_written_reads_back_and_each_event_is_written_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("telemetry.jsonl");
        let mut recording = Recording::begin(path.clone(), 3, SessionStart::default());
        recording.sample(&snapshot(1.0, 0..2));
        recording.sample(&snapshot(2.5, 0..4));
        let end = recording.line(2.5, Entry::End { status: RunStatus::Stopped, reason: None });
        recording.append(&[end]);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1 + 2 + 4 + 1);
        assert!(text.lines().all(|line| line.starts_with(r#"{"version":1,"session":3,"at_s":"#)), "{text}");
        let series = Series::read(&path);
        let session = &series.sessions[&3];
        assert!(session.start.is_some());
        assert_eq!(session.elapsed_s(), 2.5);
        assert_eq!(session.samples[1].1.tokens, 250);
        assert_eq!(session.events.iter().map(|event| event.number).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(session.events[0].text.chars().count(), EVENT_TEXT_MAX + 1);
        assert_eq!(session.end, Some((RunStatus::Stopped, None)));
    }

    #[test]
    fn a_torn_line_costs_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("telemetry.jsonl");
        Recording::begin(path.clone(), 1, SessionStart::default()).sample(&snapshot(4.0, 0..0));
        let mut text = fs::read(&path).unwrap();
        text.truncate(text.len() - 7);
        fs::write(&path, &text).unwrap();
        assert_eq!(Series::read(&path).sessions[&1].samples.len(), 0);
        let mut recording = Recording::begin(path.clone(), 2, SessionStart::default());
        recording.sample(&snapshot(1.0, 0..0));
        let series = Series::read(&path);
        assert!(series.sessions[&1].start.is_some() && series.sessions[&2].start.is_some());
        assert_eq!(series.sessions[&2].samples.len(), 1);
    }

    #[test]
    fn a_large_file_is_thinned_out_and_keeps_both_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("telemetry.jsonl");
        let mut recording = Recording::begin(path.clone(), 1, SessionStart::default());
        let mut lines = 0;
        while recording.bytes < BYTES_MAX - 2000 {
            lines += 1;
            recording.sample(&snapshot(f64::from(lines), 0..0));
        }
        let before = fs::metadata(&path).unwrap().len();
        for _ in 0..10 {
            lines += 1;
            recording.sample(&snapshot(f64::from(lines), 0..0));
        }
        let after = fs::metadata(&path).unwrap().len();
        assert!(after < before * 6 / 10, "{before} {after}");
        let series = Series::read(&path);
        let samples = &series.sessions[&1].samples;
        assert_eq!((samples[0].0, samples[samples.len() - 1].0), (1.0, f64::from(lines)));
        assert!(samples.len() > lines as usize / 3);
    }

    #[test]
    fn a_storm_of_events_and_sessions_stays_within_bounds() {
        let line = |session, number| {
            let text = "x".repeat(EVENT_TEXT_MAX);
            let entry = Entry::Event { number, level: EventLevel::Warning, device: None, text };
            Line { version: VERSION, session, at_s: 0.0, entry }
        };
        let lines = thinned((0..3000).map(|number| line(1, number)).collect());
        assert_eq!(lines.len(), EVENTS_KEPT);
        assert!(matches!(&lines[0].entry, Entry::Event { number: 1000, .. }));
        let lines = thinned((1..=800).map(|session| line(session, 0)).collect());
        assert_eq!((lines.len(), lines[0].session), (SESSIONS_KEPT, 301));
    }

    #[test]
    fn a_pipe_or_a_folder_in_its_place_is_no_reason_to_wait() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("telemetry.jsonl");
        fs::create_dir(&path).unwrap();
        let mut recording = Recording::begin(path, 1, SessionStart::default());
        recording.sample(&snapshot(1.0, 0..0));
        assert!(recording.warned);
    }
}
