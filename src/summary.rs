//! The last words of a run: what was done, how fast, where its time went, and where the result is.
//!
//! People get them as text on standard error; `run.log`, and standard error under `log_format = "json"`, as fields.

use std::path::Path;

use actors::manifest::{Manifest, ResultFolder};
use actors::{Snapshot, Stage, StageView};

use crate::logging;
use crate::progress::{duration, full, grouped};

/// Share of the time from which on devices count as busy throughout; the same as for a live run.
const DEVICES_BUSY: f64 = 0.8;
/// Share of the time from which on another stage counts as what they wait for.
const STAGE_BUSY: f64 = 0.5;

/// Says how a finished run went.
pub(crate) fn print_done(folder: &ResultFolder, manifest: &Manifest, snapshot: &Snapshot) {
    log(snapshot);
    if !logging::speaks_json() {
        print_result(folder, manifest, snapshot);
    }
}

/// Says what a run did that ended before its end, and where its time went; why it ended, its failure tells.
pub(crate) fn print_ended(snapshot: &Snapshot) {
    log(snapshot);
    if logging::speaks_json() {
        return;
    }
    crate::stderr::say(format_args!("so far"));
    let residues = snapshot.residues_committed.saturating_sub(snapshot.residues_resumed);
    let committed = snapshot.records_committed.saturating_sub(snapshot.records_resumed);
    let resumed = match snapshot.records_resumed {
        0 => String::new(),
        resumed => format!(" (and {} records in earlier sessions)", grouped(resumed)),
    };
    line("committed", format!("{} records, {} residues{resumed}", grouped(committed), grouped(residues)));
    line("speed", speed(snapshot));
    if snapshot.restarts > 0 {
        line("restarts", snapshot.restarts.to_string());
    }
    for text in stages(snapshot) {
        crate::stderr::say(text);
    }
}

fn line(name: &str, text: String) {
    crate::stderr::say(format_args!("  {name:<10} {text}"));
}

fn speed(snapshot: &Snapshot) -> String {
    format!(
        "{} tokens/s ({} tokens in {})",
        grouped(snapshot.tokens_per_s as u64),
        grouped(snapshot.tokens_computed),
        duration(snapshot.elapsed_s)
    )
}

/// The same as fields. Standard error gets them only where it speaks JSON; see `logging`.
fn log(snapshot: &Snapshot) {
    for StageView { stage, waits, busy_s, busy_share, starved_share, blocked_share, .. } in &snapshot.stages {
        tracing::info!(
            stage = stage.name(),
            busy_s,
            busy_share,
            starved_share,
            blocked_share,
            waits = waits.count,
            wait_p50_ms = waits.p50_ms,
            wait_p95_ms = waits.p95_ms,
            "stage timing"
        );
    }
    tracing::info!(
        elapsed_s = snapshot.elapsed_s,
        sequences = snapshot.sequences_computed,
        tokens = snapshot.tokens_computed,
        tokens_per_s = snapshot.tokens_per_s,
        batches = snapshot.fill.batches,
        fill = (snapshot.fill.batches > 0).then(|| snapshot.fill.mean()),
        restarts = snapshot.restarts,
        records_committed = snapshot.records_committed,
        failed = snapshot.failed,
        bottleneck = verdict(&shares(snapshot)),
        "summary"
    );
}

/// Where the time went: a line per stage, and what held the others up. Shares are of the session and of the stage's
/// workers together, so that the three of a stage make at most the whole and no second counts twice.
fn stages(snapshot: &Snapshot) -> Vec<String> {
    let mut lines = Vec::new();
    if snapshot.stages.is_empty() {
        return lines;
    }
    let row = |cells: [&str; 8]| {
        let [name, worked, busy, starved, blocked, waits, p50, p95] = cells;
        format!("  {name:<10} {worked:>11} {busy:>6} {starved:>8} {blocked:>8} {waits:>8} {p50:>9} {p95:>10}")
    };
    lines.push(row(["stages", "worked", "busy", "starved", "blocked", "waits", "half in", "95 % in"]));
    for view in &snapshot.stages {
        let percent = |share: f64| format!("{:.0} %", 100.0 * share);
        let wait = |ms: f64| if ms < 10_000.0 { format!("{ms:.1} ms") } else { duration(ms / 1000.0) };
        lines.push(row([
            &format!("  {}", view.stage.name()),
            &duration(view.busy_s),
            &percent(view.busy_share),
            &percent(view.starved_share),
            &percent(view.blocked_share),
            &grouped(view.waits.count),
            &wait(view.waits.p50_ms),
            &wait(view.waits.p95_ms),
        ]));
    }
    lines.extend(verdict(&shares(snapshot)).map(|verdict| format!("  {:<10} {verdict}", "bottleneck")));
    lines
}

/// How a stage spent its time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shares {
    pub(crate) stage: Stage,
    pub(crate) busy: f64,
    /// Its results had nowhere to go.
    pub(crate) blocked: f64,
}

fn shares(snapshot: &Snapshot) -> Vec<Shares> {
    let of =
        |view: &StageView| Shares { stage: view.stage, busy: view.busy_share, blocked: view.blocked_share };
    snapshot.stages.iter().map(of).collect()
}

/// Which stage set the pace, in one sentence, by how each spent the whole time: the verdict of the last snapshot is
/// about the last ten seconds, in which a run only ends.
pub(crate) fn verdict(stages: &[Shares]) -> Option<String> {
    let devices = stages.iter().find(|shares| shares.stage == Stage::Compute)?;
    let others = stages.iter().filter(|shares| shares.stage != Stage::Compute);
    let busiest = others.max_by(|one, other| one.busy.total_cmp(&other.busy));
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    let devices_busy = format!("{} of the time", percent(devices.busy));
    Some(match busiest {
        _ if devices.busy >= DEVICES_BUSY => {
            format!("the devices set the pace: they computed {devices_busy}")
        }
        Some(other) if other.busy >= STAGE_BUSY && other.busy > devices.busy => format!(
            "`{}` held the devices up, busy {} of the time; they computed {devices_busy}",
            other.stage.name(),
            percent(other.busy)
        ),
        // Most of what they did not compute: a disk that is full makes nobody busy.
        Some(_) | None if devices.blocked > 0.5 * (1.0 - devices.busy) => format!(
            "writing held the devices up {} of the time; they computed {devices_busy}",
            percent(devices.blocked)
        ),
        Some(_) | None => format!(
            "the devices computed {devices_busy}; loading, restarts and the end of the input took the rest"
        ),
    })
}

fn print_result(folder: &ResultFolder, manifest: &Manifest, snapshot: &Snapshot) {
    let totals = &manifest.totals;
    let counts = &manifest.counts;
    crate::stderr::say(format_args!("done"));
    let resumed = match snapshot.records_resumed {
        0 => String::new(),
        resumed => format!(" ({} from earlier sessions)", grouped(resumed)),
    };
    let residues = grouped(totals.residues);
    line("sequences", format!("{}, {residues} residues{resumed}", grouped(totals.rows)));
    line("speed", speed(snapshot));
    let fill = &snapshot.fill;
    if let Some(percent) = full(fill) {
        let avoided = 100.0 * fill.padding_avoided();
        let batches = grouped(fill.batches);
        line("batches", format!("{batches}, {percent:.1} % full, {avoided:.1} % padding avoided"));
    }
    if snapshot.restarts > 0 {
        line("restarts", snapshot.restarts.to_string());
    }
    if counts.truncated > 0 {
        line(
            "truncated",
            format!("{} sequences (column `length` exceeds max_residues)", grouped(counts.truncated)),
        );
    }
    if counts.pooled_first > 0 {
        line("pooled", format!("{} sequences over their first max_residues", grouped(counts.pooled_first)));
    }
    let cleaned = [
        (counts.unknown_letters, "unknown letters as <unk>"),
        (counts.stops_removed, "trailing * removed"),
        (counts.gap_letters_removed, "gap letters removed"),
        (counts.lower_case_letters, "lower-case letters"),
    ];
    let cleaned: Vec<String> = cleaned
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{} {what}", grouped(*count)))
        .collect();
    if !cleaned.is_empty() {
        line("letters", cleaned.join(", "));
    }
    line("failed", failed(folder, totals.failed));
    for text in stages(snapshot) {
        crate::stderr::say(text);
    }
    line("result", shown(&folder.embeddings()));
    let report = crate::report::page_path(folder);
    if report.is_file() {
        line("report", shown(&report));
    }
}

fn failed(folder: &ResultFolder, failed: u64) -> String {
    match failed {
        0 => "0".to_owned(),
        failed => format!("{}, listed in {}", grouped(failed), shown(&folder.failed())),
    }
}

/// A path as short as it can be typed here.
pub(crate) fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use actors::Waits;

    use super::*;

    #[test]
    fn each_stage_has_its_line_and_the_bottleneck_its_sentence() {
        let view = |stage| StageView {
            stage,
            queued: 0,
            capacity: 3,
            waits: Waits { count: 1234, p50_ms: 0.25, p95_ms: 61_000.0, ..Waits::default() },
            busy_share: 0.96,
            starved_share: 0.03,
            blocked_share: 0.0,
            busy_s: 3725.0,
        };
        let snapshot = Snapshot { stages: Stage::ALL.map(view).into(), ..Snapshot::default() };
        let lines = stages(&snapshot);
        assert_eq!(lines.len(), 6);
        assert_eq!(
            lines[3].split_whitespace().collect::<Vec<_>>().join(" "),
            "compute 1 h 02 min 96 % 3 % 0 % 1,234 0.2 ms 1 min 01 s"
        );
        assert_eq!(lines[5], "  bottleneck the devices set the pace: they computed 96 % of the time");
        assert!(lines.iter().all(|line| line.len() <= 80), "{lines:#?}");
        // A session that ended before anything was measured has no table.
        assert!(stages(&Snapshot::default()).is_empty());
    }

    #[test]
    fn the_verdict_names_who_was_waited_for() {
        let blocked = |compute, blocked| {
            let shares = |stage, busy, blocked| Shares { stage, busy, blocked };
            move |read, write| {
                let stages = [
                    shares(Stage::Read, read, 0.9),
                    shares(Stage::Compute, compute, blocked),
                    shares(Stage::Write, write, 0.0),
                ];
                verdict(&stages).unwrap()
            }
        };
        let of = |read, compute, write| blocked(compute, 0.0)(read, write);
        assert_eq!(
            blocked(0.7, 0.29)(0.1, 0.01),
            "writing held the devices up 29 % of the time; they computed 70 % of the time"
        );
        assert!(blocked(0.7, 0.1)(0.1, 0.01).starts_with("the devices computed 70 %"));
        assert_eq!(of(0.9, 0.85, 0.0), "the devices set the pace: they computed 85 % of the time");
        assert_eq!(
            of(0.1, 0.3, 0.95),
            "`write` held the devices up, busy 95 % of the time; they computed 30 % of the time"
        );
        assert!(of(0.1, 0.3, 0.2).starts_with("the devices computed 30 % of the time; loading"));
        assert_eq!(verdict(&[]), None);
    }
}
