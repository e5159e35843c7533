//! What a report says, as plain values: `report.json` is this, and the page shows it.
//!
//! Everything comes from the result folder (`run.json`, `telemetry.jsonl`, the last snapshot, the lists of failed
//! records), so that the report of a killed run is as good as that of one that ended in order.

use std::collections::BTreeMap;

use actors::fasta::{FileDigest, InputCounts, LengthHistogram};
use actors::identity::SegmentId;
use actors::manifest::{Manifest, ResultFolder, Session};
use actors::packing::{FILL_STEPS, Fill};
use actors::{Bottleneck, DeviceState, EventLevel, GpuView, Snapshot, Stage, Waits};
use serde::Serialize;
use serde_json::Value;

use super::timeline::Timeline;
use crate::progress::grouped;
use crate::recorder::{Host, Sample, Series};
use crate::summary;

/// Version of `report.json`. Raise it when a field changes its meaning or goes.
pub(super) const VERSION: u32 = 1;
/// Failed records that a report names; the others are in `failed.tsv`.
pub(super) const FAILED_MAX: usize = 100;
/// Events that a report tells, the latest.
pub(super) const EVENTS_MAX: usize = 200;
/// Longest text of an event, characters; the recorder cuts them shorter.
const EVENT_TEXT_MAX: usize = 600;
/// Bins of lengths at most: there are 62 different ones.
const BINS_MAX: usize = 100;
/// Longest text of a failed record's field, characters: an id may take 4,096 bytes.
const FIELD_MAX: usize = 300;

/// How a run ended, or did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ending {
    /// Every record is accounted for.
    Done,
    /// Stopped in order.
    Stopped,
    /// Ended by an error.
    Failed,
    /// Gone without a word.
    Killed,
    /// Going on.
    Running,
}

/// A run, as its report tells it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) generator: &'static str,
    /// [`VERSION`].
    pub(super) version: u32,
    pub(super) result: ResultPart,
    pub(super) job: JobPart,
    pub(super) host: Option<Host>,
    pub(super) figures: Figures,
    pub(super) sessions: Vec<SessionPart>,
    pub(super) timeline: Timeline,
    pub(super) devices: Vec<DevicePart>,
    /// `None` if no session has recorded it.
    pub(super) lengths: Option<LengthHistogram>,
    pub(super) fill: FillPart,
    pub(super) stages: Vec<StagePart>,
    /// Which stage set the pace, in one sentence; `None` where they were not measured.
    pub(super) verdict: Option<String>,
    /// As the last snapshot of the latest session has it.
    pub(super) bottleneck: Bottleneck,
    /// Warnings and errors, oldest first.
    pub(super) events: Vec<EventPart>,
    pub(super) failed: FailedPart,
}

/// How it went.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ResultPart {
    pub(super) status: Ending,
    pub(super) reason: Option<String>,
    /// All of it in one sentence.
    pub(super) sentence: String,
    /// The command that goes on; `None` once there is nothing to do.
    pub(super) command: Option<String>,
    /// Where to type it.
    pub(super) working_folder: Option<String>,
}

/// What was run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct JobPart {
    pub(super) file: String,
    pub(super) folder: String,
    /// Version of the program that wrote the manifest last.
    pub(super) program: String,
    pub(super) model: String,
    pub(super) model_sha256: String,
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) token_budget: u32,
    pub(super) input: Vec<FileDigest>,
    /// Every setting, digest and shape that changes values.
    pub(super) identity: BTreeMap<String, String>,
    /// The resolved job, as `run.json` has it.
    pub(super) resolved: Value,
    /// The same as a job file; empty if no session recorded it.
    pub(super) configuration: String,
}

/// The figures of a run, over all sessions.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    pub(super) records: u64,
    pub(super) records_committed: u64,
    /// Rows of the parts.
    pub(super) rows: u64,
    pub(super) failed: u64,
    pub(super) residues: u64,
    pub(super) residues_committed: u64,
    pub(super) tokens_computed: u64,
    /// Of all sessions together.
    pub(super) elapsed_s: f64,
    /// Tokens by the time of all sessions, loading included.
    pub(super) tokens_per_s: f64,
    pub(super) segments: usize,
    pub(super) output_bytes: u64,
    pub(super) restarts: u64,
    /// What was read and what cleaning changed.
    pub(super) input: InputCounts,
}

/// One start of the program.
#[derive(Clone, Debug, Serialize)]
pub(super) struct SessionPart {
    pub(super) number: u32,
    pub(super) started_unix_s: u64,
    pub(super) elapsed_s: f64,
    pub(super) tokens: u64,
    pub(super) restarts: u64,
    pub(super) host: Option<String>,
    /// How it ended; `None` if it was killed, still runs, or was not recorded.
    pub(super) status: Option<String>,
    pub(super) reason: Option<String>,
}

/// What a device did, in all sessions that it took part in.
#[derive(Clone, Debug, Serialize)]
pub(super) struct DevicePart {
    pub(super) name: String,
    pub(super) tokens: u64,
    pub(super) compute_s: f64,
    /// Of the sessions that it took part in.
    pub(super) elapsed_s: f64,
    /// Share of that time that it computed, 0..=1.
    pub(super) busy_share: f64,
    pub(super) restarts: u64,
    /// In the latest session.
    pub(super) state: Option<DeviceState>,
    pub(super) last_error: Option<String>,
    pub(super) gpu: Option<GpuView>,
    pub(super) memory_bytes_max: Option<u64>,
    pub(super) gpu_memory_bytes_max: Option<u64>,
    pub(super) gpu_temperature_c_max: Option<u32>,
    pub(super) gpu_power_w_max: Option<f64>,
}

/// How well batches were filled, over all sessions.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct FillPart {
    pub(super) batches: u64,
    pub(super) tokens: u64,
    pub(super) capacity_tokens: u64,
    pub(super) padded_tokens: u64,
    /// Share of the room that held tokens; `None` without a batch.
    pub(super) mean: Option<f64>,
    /// Share of batches less than 80 % full, those at the end of the input left out; `None` without such a batch.
    pub(super) below_80_share: Option<f64>,
    /// Batches by how full they were, in steps of 5 %.
    pub(super) histogram: [u64; FILL_STEPS],
}

/// What a stage did. The three shares are of the time of all sessions.
#[derive(Clone, Debug, Serialize)]
pub(super) struct StagePart {
    pub(super) stage: Stage,
    pub(super) busy_s: f64,
    pub(super) busy_share: f64,
    pub(super) starved_share: f64,
    pub(super) blocked_share: f64,
    /// Of the latest session.
    pub(super) waits: Waits,
}

/// Something that went wrong.
#[derive(Clone, Debug, Serialize)]
pub(super) struct EventPart {
    pub(super) session: u32,
    pub(super) at_s: f64,
    pub(super) level: EventLevel,
    pub(super) device: Option<String>,
    pub(super) text: String,
}

/// Records without an embedding.
#[derive(Clone, Debug, Serialize)]
pub(super) struct FailedPart {
    pub(super) total: u64,
    /// The file that lists them all.
    pub(super) list: &'static str,
    /// The first.
    pub(super) first: Vec<FailedRecord>,
}

/// One line of `failed.tsv`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct FailedRecord {
    pub(super) index: String,
    pub(super) id: String,
    pub(super) file: String,
    pub(super) line: String,
    pub(super) stage: String,
    pub(super) reason: String,
}

/// Puts together what is known of the run in a folder.
pub(super) fn gather(
    folder: &ResultFolder,
    manifest: &Manifest,
    snapshot: Option<&Snapshot>,
    series: &Series,
    ending: Ending,
    reason: Option<String>,
) -> Report {
    let snapshot = snapshot.filter(|snapshot| is_of_last_session(snapshot, manifest));
    let last_start = series.sessions.values().rev().find_map(|session| session.start.as_ref());
    let sessions = sessions(manifest, series);
    let elapsed_s: f64 = sessions.iter().map(|session| session.elapsed_s).sum();
    let tokens_computed = sum(sessions.iter().map(|session| session.tokens));
    let stages = stages(series);
    let shares: Vec<summary::Shares> = stages
        .iter()
        .map(|part| summary::Shares { stage: part.stage, busy: part.busy_share, blocked: part.blocked_share })
        .collect();
    let resumable = ending != Ending::Done;
    let job_file = text_of(&manifest.job["file"]);
    let command = last_start
        .map(|start| start.command.clone())
        .filter(|command| !command.is_empty())
        .unwrap_or_else(|| format!("virnucpro-orch run {}", crate::run::quoted(&job_file)));
    Report {
        generator: super::GENERATOR,
        version: VERSION,
        result: ResultPart {
            status: ending,
            sentence: sentence(manifest, ending, reason.as_deref()),
            reason,
            command: resumable.then_some(command),
            working_folder: last_start.filter(|_| resumable).map(|start| start.working_folder.clone()),
        },
        job: JobPart {
            file: job_file,
            folder: folder.0.display().to_string(),
            program: manifest.version.clone(),
            model: manifest.model.source.clone(),
            model_sha256: manifest.model.sha256.clone(),
            layers: manifest.model.layers,
            hidden: manifest.model.hidden,
            token_budget: manifest.token_budget,
            input: manifest.input.clone(),
            identity: manifest.identity.clone(),
            resolved: manifest.job.clone(),
            configuration: last_start.map(|start| start.configuration.clone()).unwrap_or_default(),
        },
        host: last_start.map(|start| start.host.clone()),
        figures: Figures {
            records: manifest.counts.records,
            records_committed: manifest.totals.records,
            rows: manifest.totals.rows,
            failed: manifest.totals.failed,
            residues: manifest.counts.residues,
            residues_committed: manifest.totals.residues,
            tokens_computed,
            elapsed_s,
            tokens_per_s: if elapsed_s > 0.0 { tokens_computed as f64 / elapsed_s } else { 0.0 },
            segments: manifest.segments.len(),
            output_bytes: sum(manifest.segments.values().map(|entry| entry.bytes)),
            restarts: sum(sessions.iter().map(|session| session.restarts)),
            input: manifest.counts.clone(),
        },
        sessions,
        timeline: Timeline::of(series),
        devices: devices(series, snapshot),
        lengths: last_start
            .map(|start| start.lengths.clone())
            .filter(|lengths| !lengths.bins.is_empty())
            .map(|mut lengths| {
                lengths.bins.truncate(BINS_MAX);
                lengths
            }),
        fill: fill(series),
        verdict: summary::verdict(&shares),
        stages,
        bottleneck: snapshot.map(|snapshot| snapshot.bottleneck.clone()).unwrap_or_default(),
        events: events(series),
        failed: FailedPart {
            total: manifest.totals.failed,
            list: "failed.tsv",
            first: first_failed(folder, manifest),
        },
    }
}

/// A sum that ends at the largest number: the files that it is of may be damaged.
fn sum(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

fn is_of_last_session(snapshot: &Snapshot, manifest: &Manifest) -> bool {
    manifest.sessions.last().is_some_and(|session| session.started_unix_s == snapshot.job.started_unix_s)
}

fn text_of(value: &Value) -> String {
    value.as_str().map_or_else(String::new, str::to_owned)
}

fn sentence(manifest: &Manifest, ending: Ending, reason: Option<&str>) -> String {
    let records = grouped(manifest.counts.records);
    let committed = grouped(manifest.totals.records);
    let because = reason.map_or(String::new(), |reason| format!(" ({reason})"));
    match ending {
        Ending::Done if manifest.totals.failed == 0 => {
            format!("Done: each of {records} records has its embedding.")
        }
        Ending::Done => format!(
            "Done: {} of {records} records have their embedding; without one: {}, listed in failed.tsv.",
            grouped(manifest.totals.rows),
            grouped(manifest.totals.failed)
        ),
        Ending::Stopped => format!(
            "Stopped{because}: {committed} of {records} records are committed; the same command goes on."
        ),
        Ending::Failed => format!(
            "Failed{because}: {committed} of {records} records are committed; once the cause is mended, the same \
             command goes on."
        ),
        Ending::Killed => format!(
            "Not finished: the program was killed, or the machine went down; {committed} of {records} records are \
             committed, and the same command goes on."
        ),
        Ending::Running => format!("Going on: {committed} of {records} records are committed."),
    }
}

/// Every session, from the manifest, which has them all, and what was recorded, which is fresher after a kill.
fn sessions(manifest: &Manifest, series: &Series) -> Vec<SessionPart> {
    let part = |(number, session): (u32, &Session)| {
        let recorded = series.sessions.get(&number);
        let last = recorded.and_then(|recorded| recorded.samples.last());
        let end = recorded.and_then(|recorded| recorded.end.as_ref());
        let host = recorded.and_then(|recorded| recorded.start.as_ref()).map(|start| start.host.name.clone());
        SessionPart {
            number,
            started_unix_s: session.started_unix_s,
            elapsed_s: last.map_or(0.0, |&(at_s, _)| at_s).max(session.elapsed_s).max(0.0),
            tokens: last.map_or(0, |(_, sample)| sample.tokens).max(session.tokens),
            restarts: last.map_or(0, |(_, sample)| sample.restarts).max(session.restarts),
            host: host.filter(|host| !host.is_empty()),
            status: end.map(|(status, _)| format!("{status:?}").to_lowercase()),
            reason: end.and_then(|(_, reason)| reason.clone()),
        }
    };
    (1..).zip(&manifest.sessions).map(part).collect()
}

/// The last sample of each session, with its length.
fn last_samples(series: &Series) -> impl Iterator<Item = (f64, &Sample)> {
    series
        .sessions
        .values()
        .filter_map(|session| session.samples.last().map(|(at_s, sample)| (*at_s, sample)))
}

fn devices(series: &Series, snapshot: Option<&Snapshot>) -> Vec<DevicePart> {
    let mut devices: Vec<DevicePart> = Vec::new();
    for (elapsed_s, sample) in last_samples(series) {
        for device in &sample.devices {
            let position = devices.iter().position(|known| known.name == device.name);
            let position = position.unwrap_or_else(|| {
                devices.push(DevicePart {
                    name: device.name.clone(),
                    tokens: 0,
                    compute_s: 0.0,
                    elapsed_s: 0.0,
                    busy_share: 0.0,
                    restarts: 0,
                    state: None,
                    last_error: None,
                    gpu: None,
                    memory_bytes_max: None,
                    gpu_memory_bytes_max: None,
                    gpu_temperature_c_max: None,
                    gpu_power_w_max: None,
                });
                devices.len() - 1
            });
            let part = &mut devices[position];
            part.tokens = part.tokens.saturating_add(device.tokens);
            part.compute_s += device.compute_s.max(0.0);
            part.elapsed_s += elapsed_s;
            // The count of restarts is of the snapshot; what a generation tells is no less true.
            part.restarts = part.restarts.saturating_add(device.restarts.max(u64::from(device.generation)));
        }
    }
    for (_, sample) in series.sessions.values().flat_map(|session| &session.samples) {
        for device in &sample.devices {
            let Some(part) = devices.iter_mut().find(|part| part.name == device.name) else { continue };
            part.memory_bytes_max = part.memory_bytes_max.max(device.resident_bytes);
            part.gpu_memory_bytes_max = part.gpu_memory_bytes_max.max(device.gpu_memory_bytes);
            part.gpu_temperature_c_max = part.gpu_temperature_c_max.max(device.gpu_temperature_c);
            if device.gpu_power_w > part.gpu_power_w_max {
                part.gpu_power_w_max = device.gpu_power_w;
            }
        }
    }
    for part in &mut devices {
        if part.elapsed_s > 0.0 {
            part.busy_share = (part.compute_s / part.elapsed_s).min(1.0);
        }
    }
    for view in snapshot.iter().flat_map(|snapshot| &snapshot.devices) {
        if let Some(part) = devices.iter_mut().find(|part| part.name == view.name) {
            part.state = Some(view.state);
            part.last_error.clone_from(&view.last_error);
            part.gpu.clone_from(&view.gpu);
        }
    }
    devices
}

fn fill(series: &Series) -> FillPart {
    let mut whole = Fill::default();
    for (_, sample) in last_samples(series) {
        let Fill { batches, tokens, capacity_tokens, padded_tokens, histogram, judged, below_80, .. } =
            &sample.fill;
        whole.batches = whole.batches.saturating_add(*batches);
        whole.tokens = whole.tokens.saturating_add(*tokens);
        whole.capacity_tokens = whole.capacity_tokens.saturating_add(*capacity_tokens);
        whole.padded_tokens = whole.padded_tokens.saturating_add(*padded_tokens);
        whole.judged = whole.judged.saturating_add(*judged);
        whole.below_80 = whole.below_80.saturating_add(*below_80);
        for (sum, count) in whole.histogram.iter_mut().zip(histogram) {
            *sum = sum.saturating_add(*count);
        }
    }
    FillPart {
        batches: whole.batches,
        tokens: whole.tokens,
        capacity_tokens: whole.capacity_tokens,
        padded_tokens: whole.padded_tokens,
        mean: (whole.capacity_tokens > 0).then(|| whole.mean()),
        below_80_share: whole.below_80_share(),
        histogram: whole.histogram,
    }
}

fn stages(series: &Series) -> Vec<StagePart> {
    let mut parts = Vec::new();
    for stage in Stage::ALL {
        let mut part = StagePart {
            stage,
            busy_s: 0.0,
            busy_share: 0.0,
            starved_share: 0.0,
            blocked_share: 0.0,
            waits: Waits::default(),
        };
        let mut total_s = 0.0;
        for (elapsed_s, sample) in last_samples(series) {
            let Some(of_session) = sample.stages.iter().find(|sample| sample.stage == stage) else {
                continue;
            };
            total_s += elapsed_s;
            part.busy_s += of_session.busy_s;
            part.busy_share += of_session.busy * elapsed_s;
            part.starved_share += of_session.starved * elapsed_s;
            part.blocked_share += of_session.blocked * elapsed_s;
            // Quantiles of sessions have no sum.
            part.waits = Waits {
                count: of_session.waits,
                now_ms: 0.0,
                p50_ms: of_session.wait_p50_ms,
                p95_ms: of_session.wait_p95_ms,
                full_share: of_session.full,
                starved_share: of_session.late,
            };
        }
        if total_s > 0.0 {
            for share in [&mut part.busy_share, &mut part.starved_share, &mut part.blocked_share] {
                let mean = *share / total_s;
                // Numbers beyond all bounds come from a damaged file.
                *share = if mean.is_finite() { mean.clamp(0.0, 1.0) } else { 0.0 };
            }
            parts.push(part);
        }
    }
    parts
}

fn events(series: &Series) -> Vec<EventPart> {
    let mut events: Vec<EventPart> = Vec::new();
    for (&session, recorded) in &series.sessions {
        let serious = recorded.events.iter().filter(|event| event.level > EventLevel::Info);
        events.extend(serious.map(|event| EventPart {
            session,
            at_s: event.at_s,
            level: event.level,
            device: event.device.clone(),
            text: event.text.chars().take(EVENT_TEXT_MAX).collect(),
        }));
    }
    events.drain(..events.len().saturating_sub(EVENTS_MAX));
    events
}

/// The first failed records, from the lists of the committed segments: `failed.tsv` is not there after a kill.
fn first_failed(folder: &ResultFolder, manifest: &Manifest) -> Vec<FailedRecord> {
    let mut first = Vec::new();
    for (&segment, _) in manifest.segments.iter().filter(|(_, entry)| entry.failed > 0) {
        // A list that cannot be read is the next run's to find.
        let text = actors::files::read_text(&folder.failed_of(SegmentId(segment))).unwrap_or_default();
        for line in text.lines() {
            let field = |text: Option<&str>| text.unwrap_or_default().chars().take(FIELD_MAX).collect();
            let mut fields = line.splitn(6, '\t');
            first.push(FailedRecord {
                index: field(fields.next()),
                id: field(fields.next()),
                file: field(fields.next()),
                line: field(fields.next()),
                stage: field(fields.next()),
                reason: field(fields.next()),
            });
            if first.len() == FAILED_MAX {
                return first;
            }
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use actors::EventView;
    use actors::manifest::RunStatus;

    use super::*;
    use crate::recorder::{DeviceSample, SessionSeries, StageSample};

    fn manifest(sessions: usize) -> Manifest {
        let session =
            |number| Session { started_unix_s: 1000 + number as u64, elapsed_s: 1.0, tokens: 5, restarts: 0 };
        Manifest {
            format: actors::manifest::FORMAT,
            version: "0.1.0".to_owned(),
            status: RunStatus::Running,
            reason: None,
            identity: BTreeMap::new(),
            job: serde_json::json!({ "file": "/home/a da/job.toml" }),
            input: Vec::new(),
            counts: InputCounts { records: 10, ..InputCounts::default() },
            model: actors::manifest::ModelEntry {
                source: "sim".to_owned(),
                sha256: "sim".to_owned(),
                layers: 0,
                hidden: 4,
            },
            devices: Vec::new(),
            token_budget: 100,
            device_token_budgets: BTreeMap::new(),
            sessions: (0..sessions).map(session).collect(),
            totals: actors::manifest::Totals::default(),
            segments: BTreeMap::new(),
        }
    }

    fn sample(tokens: u64, busy_s: f64, busy: f64) -> Sample {
        let stage = StageSample {
            stage: Stage::Read,
            queued: 0,
            busy_s,
            busy,
            starved: 1.0 - busy,
            blocked: 0.0,
            waits: tokens,
            wait_p50_ms: busy_s,
            wait_p95_ms: 0.0,
            full: 0.0,
            late: 0.0,
        };
        let device = DeviceSample {
            name: "sim:0".to_owned(),
            state: DeviceState::Ready,
            generation: 1,
            tokens,
            compute_s: busy_s,
            restarts: 1,
            resident_bytes: Some(tokens),
            gpu_busy: None,
            gpu_memory_bytes: None,
            gpu_temperature_c: None,
            gpu_power_w: None,
        };
        let fill = Fill { batches: 1, tokens, capacity_tokens: tokens.saturating_mul(2), ..Fill::default() };
        Sample { tokens, restarts: 1, fill, stages: vec![stage], devices: vec![device], ..Sample::default() }
    }

    fn report(series: &Series, ending: Ending) -> Report {
        let folder = ResultFolder("/nowhere".into());
        gather(&folder, &manifest(2), None, series, ending, Some("stopped by SIGTERM".to_owned()))
    }

    #[test]
    fn sessions_add_up_and_shares_are_weighed_by_their_time() {
        let session =
            |at_s, sample| SessionSeries { samples: vec![(at_s, sample)], ..SessionSeries::default() };
        let (mut one, mut other) = (sample(100, 9.0, 0.9), sample(300, 3.0, 0.1));
        (one.fill.judged, one.fill.below_80) = (1, 1);
        (other.fill.judged, other.fill.below_80) = (2, 1);
        let series = Series { sessions: [(1, session(10.0, one)), (2, session(30.0, other))].into() };
        let report = report(&series, Ending::Stopped);
        assert_eq!((report.figures.tokens_computed, report.figures.elapsed_s), (400, 40.0));
        assert_eq!((report.figures.tokens_per_s, report.figures.restarts), (10.0, 2));
        let stage = &report.stages[0];
        assert_eq!((stage.busy_s, stage.waits.count, stage.waits.p50_ms), (12.0, 300, 3.0));
        assert!(
            (stage.busy_share - 0.3).abs() < 1e-9 && (stage.starved_share - 0.7).abs() < 1e-9,
            "{stage:?}"
        );
        let device = &report.devices[0];
        assert_eq!((device.tokens, device.compute_s, device.restarts), (400, 12.0, 2));
        assert!((device.busy_share - 0.3).abs() < 1e-9);
        assert_eq!(device.memory_bytes_max, Some(300));
        assert_eq!((report.fill.batches, report.fill.mean), (2, Some(0.5)));
        // By the definition of the live displays: of three of four batches it is said how full they should be.
        assert_eq!(report.fill.below_80_share, Some(2.0 / 3.0));
        assert_eq!(
            report.result.sentence,
            "Stopped (stopped by SIGTERM): 0 of 10 records are committed; the same command goes on."
        );
        // Without a line of the session that says more, the job file is what is known.
        assert_eq!(report.result.command.as_deref(), Some("virnucpro-orch run '/home/a da/job.toml'"));
    }

    #[test]
    fn sessions_that_were_not_recorded_are_known_from_the_manifest() {
        let report = report(&Series::default(), Ending::Killed);
        assert_eq!((report.sessions.len(), report.figures.tokens_computed), (2, 10));
        assert_eq!(report.fill.below_80_share, None);
        assert!(report.stages.is_empty() && report.devices.is_empty() && report.lengths.is_none());
        assert!(report.result.sentence.starts_with("Not finished: the program was killed"));
    }

    #[test]
    fn damaged_numbers_make_a_report_all_the_same() {
        let mut wild = sample(u64::MAX, f64::MAX, -7.0);
        wild.fill.histogram = [u64::MAX; FILL_STEPS];
        let session = || SessionSeries {
            samples: vec![(-5.0, wild.clone()), (f64::MAX, wild.clone())],
            events: vec![EventView {
                number: 0,
                at_s: f64::MIN,
                level: EventLevel::Error,
                device: None,
                text: "x".repeat(1 << 20),
            }],
            ..SessionSeries::default()
        };
        let series = Series { sessions: [(1, session()), (2, session()), (u32::MAX, session())].into() };
        let report = report(&series, Ending::Killed);
        let page = super::super::page::html(&report);
        assert!(page.len() < 100_000 && !page.contains("NaN"), "{}", page.len());
        assert!(
            report.stages.iter().all(|stage| (0.0..=1.0).contains(&stage.busy_share)),
            "{:?}",
            report.stages
        );
        serde_json::to_string(&report).unwrap();
    }
}
