//! A report as one self-contained HTML page: style and charts inside, no script, nothing fetched.
//!
//! Whatever comes from outside (ids, paths, reasons) passes through the template, which escapes it.

use std::path::Path;

use actors::DeviceState;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use super::chart::{self, Bar, percent, short};
use super::content::{DevicePart, Ending, FillPart, Report};
use crate::progress::{duration, grouped};
use crate::result_folder::utc;

/// The page's style; nothing in it comes from outside.
const STYLE: &str = include_str!("style.css");
/// Bins of lengths that a chart has room for labels at.
const LABELS: usize = 10;

/// Writes the page.
pub(super) fn html(report: &Report) -> String {
    let name = Path::new(&report.job.folder).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="generator" content=(super::GENERATOR);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (name) " · " (status(report.result.status)) " · virnucpro-orch" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    (head(report, &name))
                    (tiles(report))
                    (over_time(report))
                    (devices(report))
                    div class="pair" { (lengths(report)) (fill(&report.fill)) }
                    (stages(report))
                    (troubles(report))
                    (failed(report))
                    (sessions(report))
                    (what_ran(report))
                    (configuration(report))
                    footer {
                        "Made by virnucpro-orch " (env!("CARGO_PKG_VERSION")) ". The same figures for machines: "
                        code { "report.json" } ". What they mean: docs/MONITORING.md of the program."
                    }
                }
            }
        }
    };
    page.into_string() + "\n"
}

fn status(ending: Ending) -> &'static str {
    match ending {
        Ending::Done => "done",
        Ending::Stopped => "stopped",
        Ending::Failed => "failed",
        Ending::Killed => "killed",
        Ending::Running => "running",
    }
}

fn head(report: &Report, name: &str) -> Markup {
    let result = &report.result;
    html! {
        header {
            p class="over" { "virnucpro-orch · " (report.job.folder) }
            h1 { (name) span class={ "badge " (status(result.status)) } { (status(result.status)) } }
            p class="sentence" { (result.sentence) }
            @if let Some(command) = &result.command {
                pre {
                    @if let Some(folder) = result.working_folder.as_deref().filter(|folder| !folder.is_empty()) {
                        "cd " (crate::run::quoted(folder)) "\n"
                    }
                    (command)
                }
            }
        }
    }
}

fn tiles(report: &Report) -> Markup {
    let figures = &report.figures;
    let tile = |value: String, what: &str| html! { div class="tile" { b { (value) } span { (what) } } };
    html! {
        div class="tiles" {
            (tile(grouped(figures.rows), &format!("embeddings of {} records", grouped(figures.records))))
            (tile(short(figures.residues_committed as f64), &format!("residues of {}", short(figures.residues as f64))))
            (tile(grouped(figures.tokens_per_s as u64), "tokens/s, loading included"))
            (tile(duration(figures.elapsed_s), &format!("in {}", counted(report.sessions.len() as u64, "session"))))
            (tile(report.fill.mean.map_or("–".to_owned(), percent), "of the batches' room filled"))
            (tile(counted(report.devices.len() as u64, "device"), &counted(figures.restarts, "restart")))
            (tile(grouped(figures.failed), "records failed"))
            (tile(bytes(figures.output_bytes), &format!("in {}", counted(figures.segments as u64, "part"))))
        }
    }
}

fn over_time(report: &Report) -> Markup {
    let timeline = &report.timeline;
    html! {
        section {
            h2 { "Throughput, tokens/s" }
            @if timeline.tokens_per_s.is_empty() {
                (missing("No time series was recorded."))
            } @else {
                (chart::throughput(timeline))
                @if timeline.sessions_start_s.len() > 1 {
                    p class="note" { "Dashed lines: a session begins. The time between sessions is left out." }
                }
            }
        }
    }
}

fn missing(text: &str) -> Markup {
    html! { p class="note" { (text) } }
}

fn devices(report: &Report) -> Markup {
    html! {
        section {
            h2 { "Devices: share of the time that they computed" }
            @if !report.timeline.devices_busy.is_empty() {
                (chart::utilisation(&report.timeline))
            }
            @if report.devices.is_empty() {
                (missing("No device was recorded."))
            } @else {
                div class="scroll" {
                    table {
                        thead {
                            tr {
                                th { "device" } th class="num" { "computed" } th class="num" { "tokens" }
                                th class="num" { "tokens/s" } th class="num" { "restarts" } th class="num" { "memory" }
                                th { "state" } th { "last error" }
                            }
                        }
                        tbody { @for device in &report.devices { (device_row(device)) } }
                    }
                }
            }
        }
    }
}

fn device_row(device: &DevicePart) -> Markup {
    let rate = if device.compute_s > 0.0 { device.tokens as f64 / device.compute_s } else { 0.0 };
    let state = device.state.map(|state| match state {
        DeviceState::Loading => "loading",
        DeviceState::Ready => "ready",
        DeviceState::Waiting => "waiting",
        DeviceState::Retired => "retired",
        DeviceState::Stopped => "stopped",
    });
    let gpu = device.gpu.as_ref().and_then(|gpu| gpu.identity.name.clone());
    let mut peaks = Vec::new();
    peaks.extend(device.gpu_temperature_c_max.map(|celsius| format!("{celsius} °C")));
    peaks.extend(device.gpu_power_w_max.map(|watts| format!("{watts:.0} W")));
    let memory = device.gpu_memory_bytes_max.or(device.memory_bytes_max);
    html! {
        tr {
            td class="plain" {
                (device.name)
                @if let Some(gpu) = gpu { br; span class="note" { (gpu) } }
            }
            td class="num" { (percent(device.busy_share)) }
            td class="num" { (grouped(device.tokens)) }
            td class="num" { (grouped(rate as u64)) }
            td class="num" { (device.restarts) }
            td class="num" {
                (memory.map_or("–".to_owned(), bytes))
                @if !peaks.is_empty() { br; span class="note" { (peaks.join(", ")) } }
            }
            td class={ "plain " (if state == Some("retired") { "error" } else { "" }) } { (state.unwrap_or("–")) }
            td class="wide" { (device.last_error.as_deref().unwrap_or("–")) }
        }
    }
}

fn lengths(report: &Report) -> Markup {
    html! {
        section {
            h2 { "Sequence lengths, residues" }
            @if let Some(lengths) = &report.lengths {
                @let bars: Vec<Bar> = lengths.bins.iter().map(|bin| Bar {
                    label: bin.residues_min.saturating_sub(1).to_string(),
                    title: format!("{} to {} residues: {} sequences, {} residues", bin.residues_min, bin.residues_max,
                        grouped(bin.sequences), grouped(bin.residues)),
                    value: bin.sequences,
                    marked: false,
                }).collect();
                (chart::bars("sequences by length", &bars, bars.len().div_ceil(LABELS)))
                p class="note" { "Sequences by residues; lengths that do not occur have no bar, and from 2,000 on bins double." }
            } @else {
                (missing("No session recorded the lengths."))
            }
        }
    }
}

fn fill(fill: &FillPart) -> Markup {
    let steps = fill.histogram.len();
    let bars: Vec<Bar> = fill
        .histogram
        .iter()
        .enumerate()
        .map(|(step, &value)| {
            let (from, to) = (100 * step / steps, 100 * (step + 1) / steps);
            let title = format!("{from} to {to} % full: {} batches", grouped(value));
            Bar { label: from.to_string(), title, value, marked: to <= 80 }
        })
        .collect();
    html! {
        section {
            h2 { "Batches by how full they are, %" }
            @if let Some(mean) = fill.mean {
                (chart::bars("batches by how full they are", &bars, 4))
                p class="note" {
                    (grouped(fill.batches)) " batches, " (percent(mean)) " full"
                    @if let Some(below) = fill.below_80_share {
                        "; " (percent(below)) " below 80 %, those at the end of the input left out"
                    }
                    ". Padded to their longest sequence they would have held "
                    (percent(padding(fill))) " padding."
                }
            } @else {
                (missing("No batch was computed."))
            }
        }
    }
}

fn padding(fill: &FillPart) -> f64 {
    if fill.padded_tokens == 0 {
        0.0
    } else {
        (1.0 - fill.tokens as f64 / fill.padded_tokens as f64).max(0.0)
    }
}

fn stages(report: &Report) -> Markup {
    html! {
        section {
            h2 { "Stages: what they did with their time" }
            @if report.stages.is_empty() {
                (missing("The stages were not measured."))
            } @else {
                p class="note" {
                    span class="key busy" {} "worked" span class="key starved" {} "had nothing to do"
                    span class="key blocked" {} "held up by the stages behind"
                }
                div class="scroll" {
                    table {
                        thead {
                            tr {
                                th { "stage" } th style="width: 34%" { "share of the time" } th class="num" { "worked" }
                                th class="num" { "busy" } th class="num" { "waits" } th class="num" { "half within" }
                                th class="num" { "95 % within" } th class="num" { "over 50 ms" }
                            }
                        }
                        tbody {
                            @for part in &report.stages {
                                @let waits = &part.waits;
                                tr {
                                    td { (part.stage.name()) }
                                    td {
                                        (chart::shares(&[("busy", part.busy_share), ("blocked", part.blocked_share),
                                            ("starved", part.starved_share)]))
                                    }
                                    td class="num" { (milliseconds(1000.0 * part.busy_s)) }
                                    td class="num" { (percent(part.busy_share)) }
                                    td class="num" { (grouped(waits.count)) }
                                    td class="num" { (milliseconds(waits.p50_ms)) }
                                    td class="num" { (milliseconds(waits.p95_ms)) }
                                    td class="num" { (percent(waits.starved_share)) }
                                }
                            }
                        }
                    }
                }
            }
            @if let Some(verdict) = &report.verdict { p class="note" { "Over all: " (verdict) "." } }
        }
    }
}

fn troubles(report: &Report) -> Markup {
    html! {
        section class="long" {
            h2 { "Warnings and errors" }
            @if report.events.is_empty() {
                (missing("None was recorded."))
            } @else {
                div class="scroll" {
                    table {
                        thead { tr { th { "session" } th class="num" { "after" } th { "device" } th { "what" } } }
                        tbody {
                            @for event in &report.events {
                                @let level = match event.level {
                                    actors::EventLevel::Info => "info",
                                    actors::EventLevel::Warning => "warning",
                                    actors::EventLevel::Error => "error",
                                };
                                tr {
                                    td { (event.session) }
                                    td class="num" { (duration(event.at_s.max(0.0))) }
                                    td class="plain" { (event.device.as_deref().unwrap_or("–")) }
                                    td class={ "wide " (level) } { (event.text) }
                                }
                            }
                        }
                    }
                }
                @if report.events.len() == super::content::EVENTS_MAX {
                    p class="note" { "The latest; all are in " code { "run.log" } "." }
                }
            }
        }
    }
}

fn failed(report: &Report) -> Markup {
    let failed = &report.failed;
    html! {
        @if failed.total > 0 {
            section class="long" {
                h2 { "Records without an embedding" }
                div class="scroll" {
                    table {
                        thead {
                            tr { th class="num" { "index" } th { "id" } th { "where" } th { "stage" } th { "reason" } }
                        }
                        tbody {
                            @for record in &failed.first {
                                tr {
                                    td class="num" { (record.index) }
                                    td class="wide mono" { (actors::shown(&record.id)) }
                                    td class="wide" { (file_name(&record.file)) ":" (record.line) }
                                    td { (record.stage) }
                                    td class="wide" { (record.reason) }
                                }
                            }
                        }
                    }
                }
                @if failed.total > failed.first.len() as u64 {
                    p class="note" {
                        "The first " (failed.first.len()) " of " (grouped(failed.total)) "; all are in "
                        code { (failed.list) } "."
                    }
                }
            }
        }
    }
}

/// The last part of a path: a table has no room for the rest.
fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn sessions(report: &Report) -> Markup {
    html! {
        section class="long" {
            h2 { "Sessions" }
            div class="scroll" {
                table {
                    thead {
                        tr {
                            th { "session" } th { "began" } th { "host" } th class="num" { "took" }
                            th class="num" { "tokens" } th class="num" { "tokens/s" } th class="num" { "restarts" }
                            th { "ended" }
                        }
                    }
                    tbody {
                        @for session in &report.sessions {
                            @let rate = if session.elapsed_s > 0.0 { session.tokens as f64 / session.elapsed_s } else { 0.0 };
                            @let ended = session.reason.as_deref().or(session.status.as_deref());
                            tr {
                                td { (session.number) }
                                td class="plain" { (utc(session.started_unix_s)) }
                                td class="wide" { (session.host.as_deref().unwrap_or("–")) }
                                td class="num" { (duration(session.elapsed_s)) }
                                td class="num" { (grouped(session.tokens)) }
                                td class="num" { (grouped(rate as u64)) }
                                td class="num" { (session.restarts) }
                                td class="wide" { (ended.unwrap_or("without a word")) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn what_ran(report: &Report) -> Markup {
    let job = &report.job;
    let setting = |key: &str| job.identity.get(key).cloned().unwrap_or_else(|| "–".to_owned());
    html! {
        section {
            h2 { "What ran" }
            dl {
                dt { "job" } dd class="mono" { (job.file) }
                dt { "program" } dd { "virnucpro-orch " (job.program) }
                dt { "model" } dd {
                    (job.model) ", " (counted(job.layers as u64, "layer")) ", width " (job.hidden) "; layer "
                    (setting("model.layer")) ", pooling " (setting("model.pooling")) ", " (setting("model.precision"))
                }
                dt { "weights" } dd class="mono" { "SHA-256 " (job.model_sha256) }
                @for input in &job.input {
                    dt { "input" } dd {
                        span class="mono" { (input.path) } ", " (bytes(input.bytes)) br;
                        span class="mono note" { "SHA-256 " (input.sha256) }
                    }
                }
                dt { "letters" } dd { (letters(report)) }
                dt { "batches" } dd { "at most " (grouped(job.token_budget.into())) " tokens" }
                @if let Some(host) = &report.host {
                    dt { "host" } dd {
                        (host.name)
                        @for text in [&host.system, &host.processor].into_iter().flatten() { ", " (text) }
                        @if let Some(threads) = host.threads { ", " (counted(threads as u64, "thread")) }
                        @if let Some(memory) = host.memory_bytes { ", " (bytes(memory)) " memory" }
                    }
                }
            }
        }
    }
}

/// What cleaning changed.
fn letters(report: &Report) -> String {
    let counts = &report.figures.input;
    let told = [
        (counts.truncated, "sequences truncated"),
        (counts.pooled_first, "pooled over their first residues"),
        (counts.unknown_letters, "unknown letters"),
        (counts.gap_letters_removed, "gap letters removed"),
        (counts.stops_removed, "trailing * removed"),
        (counts.lower_case_letters, "lower-case letters"),
    ];
    let told: Vec<String> =
        told.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{} {what}", grouped(*n))).collect();
    if told.is_empty() { "as they came".to_owned() } else { told.join(", ") }
}

fn configuration(report: &Report) -> Markup {
    let mut settings = Vec::new();
    flatten("", &report.job.resolved, &mut settings);
    html! {
        section class="long" {
            h2 { "Configuration" }
            pre {
                @if report.job.configuration.is_empty() {
                    @for (key, value) in &settings { (key) " = " (value) "\n" }
                } @else {
                    (report.job.configuration.trim_end())
                }
            }
        }
    }
}

/// The keys of a job, dotted, with their values as JSON.
fn flatten(key: &str, value: &Value, settings: &mut Vec<(String, String)>) {
    match value {
        Value::Object(entries) => {
            for (name, value) in entries {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flatten(&key, value, settings);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            settings.push((key.to_owned(), value.to_string()));
        }
    }
}

/// `1 restart`, `2 restarts`.
fn counted(number: u64, what: &str) -> String {
    format!("{} {what}{}", grouped(number), if number == 1 { "" } else { "s" })
}

fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 10_000.0 => format!("{ms:.0} ms"),
        ms => duration(ms / 1000.0),
    }
}

fn bytes(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        b if b < 1024.0 => format!("{b:.0} B"),
        b if b < 1024.0 * 1024.0 => format!("{:.0} KiB", b / 1024.0),
        b if b < 1024.0 * 1024.0 * 1024.0 => format!("{:.1} MiB", b / 1_048_576.0),
        b => format!("{:.1} GiB", b / 1_073_741_824.0),
    }
}
