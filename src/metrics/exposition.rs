//! A snapshot in the text format of Prometheus, version 0.0.4, which every scraper reads.
//!
//! Names follow its conventions: base units, sums end in `_total`, shares are `_ratio`. What is not known is left
//! out, never 0. There is no label `job`: Prometheus gives each target one of its own.

use std::fmt::Write;

use actors::{DeviceState, DeviceView, Snapshot, Stage, StageView};

/// The format's media type.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Every state of a device, by its name.
const STATES: [(DeviceState, &str); 5] = [
    (DeviceState::Loading, "loading"),
    (DeviceState::Ready, "ready"),
    (DeviceState::Waiting, "waiting"),
    (DeviceState::Retired, "retired"),
    (DeviceState::Stopped, "stopped"),
];

/// Writes all metrics of a run.
pub(super) fn text(snapshot: &Snapshot) -> String {
    let mut metrics = Exposition::default();
    run(&mut metrics, snapshot);
    batches(&mut metrics, snapshot);
    for metric in STAGE_METRICS {
        metrics.family(metric.name, metric.kind, metric.help);
        for view in &snapshot.stages {
            metrics.sample(metric.name, &[("stage", view.stage.name())], (metric.value)(view));
        }
    }
    waits(&mut metrics, snapshot);
    bottleneck(&mut metrics, snapshot);
    devices(&mut metrics, snapshot);
    metrics.text
}

/// What a metric is to Prometheus.
#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Summary,
}

/// The text while it grows. A family without samples is not written.
#[derive(Default)]
struct Exposition {
    text: String,
    /// HELP and TYPE of the family, until its first sample.
    head: String,
}

impl Exposition {
    fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Summary => "summary",
        };
        self.head = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// Adds a value of the family begun last, unless it is not known.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: Option<f64>) {
        let Some(value) = value.filter(|value| value.is_finite()) else { return };
        self.text.push_str(&self.head);
        self.head.clear();
        self.text.push_str(name);
        for (number, (label, text)) in labels.iter().enumerate() {
            self.text.push(if number == 0 { '{' } else { ',' });
            let _ = write!(self.text, "{label}=\"{}\"", escaped(text));
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    /// A family of one value without labels.
    fn single(&mut self, name: &str, kind: Kind, help: &str, value: impl Into<Option<f64>>) {
        self.family(name, kind, help);
        self.sample(name, &[], value.into());
    }
}

fn escaped(label: &str) -> String {
    label.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n")
}

fn run(metrics: &mut Exposition, snapshot: &Snapshot) {
    use Kind::{Counter, Gauge};
    let job = &snapshot.job;
    metrics.family("virnucpro_run_info", Gauge, "What is run; always 1.");
    metrics.sample(
        "virnucpro_run_info",
        &[
            ("version", &job.program),
            ("host", &job.host),
            ("job_file", &job.file),
            ("folder", &job.folder),
            ("model", &job.model),
            ("precision", &job.precision),
            ("pooling", &job.pooling),
        ],
        Some(1.0),
    );
    let flag = |flag: bool| f64::from(u8::from(flag));
    metrics.single(
        "virnucpro_session_start_time_seconds",
        Gauge,
        "When the session began, seconds since 1970.",
        job.started_unix_s as f64,
    );
    metrics.single(
        "virnucpro_session_elapsed_seconds",
        Gauge,
        "Time since the session began.",
        snapshot.elapsed_s,
    );
    metrics.single(
        "virnucpro_records",
        Gauge,
        "Input records of the whole run.",
        snapshot.records_total as f64,
    );
    metrics.single("virnucpro_residues", Gauge, "Residues of the whole run.", snapshot.residues_total as f64);
    metrics.single(
        "virnucpro_committed_records",
        Gauge,
        "Records in committed segments, of all sessions.",
        snapshot.records_committed as f64,
    );
    metrics.single(
        "virnucpro_committed_residues",
        Gauge,
        "Residues in committed segments, of all sessions.",
        snapshot.residues_committed as f64,
    );
    metrics.single(
        "virnucpro_done_residues",
        Gauge,
        "Residues of records computed or set aside, committed or not, of all sessions; equal records count each.",
        snapshot.residues_done as f64,
    );
    metrics.single(
        "virnucpro_failed_records",
        Gauge,
        "Records listed in failed.tsv, of all sessions.",
        snapshot.failed as f64,
    );
    metrics.single(
        "virnucpro_segments_committed_total",
        Counter,
        "Segments committed in this session.",
        snapshot.segments_committed as f64,
    );
    metrics.single(
        "virnucpro_sequences_computed_total",
        Counter,
        "Sequences computed in this session; equal ones count once.",
        snapshot.sequences_computed as f64,
    );
    metrics.single(
        "virnucpro_tokens_computed_total",
        Counter,
        "Tokens computed in this session: residues and two for each sequence.",
        snapshot.tokens_computed as f64,
    );
    let remaining = snapshot.remaining;
    metrics.family("virnucpro_remaining_seconds", Gauge, "Estimated time to the end, by residues.");
    let of = |estimate: fn(actors::Remaining) -> f64| remaining.map(estimate);
    for (estimate, value) in
        [("mean", of(|r| r.seconds)), ("low", of(|r| r.low_s)), ("high", of(|r| r.high_s))]
    {
        metrics.sample("virnucpro_remaining_seconds", &[("estimate", estimate)], value);
    }
    metrics.single(
        "virnucpro_worker_restarts_total",
        Counter,
        "Starts of workers beyond the first of each device.",
        snapshot.restarts as f64,
    );
    metrics.single(
        "virnucpro_writing_paused",
        Gauge,
        "Whether writing waits for the disk.",
        flag(snapshot.disk_full),
    );
    metrics.single("virnucpro_paused", Gauge, "Whether somebody has paused the run.", flag(snapshot.paused));
    metrics.single("virnucpro_stopping", Gauge, "Whether the run is being stopped.", flag(snapshot.stopping));
}

fn batches(metrics: &mut Exposition, snapshot: &Snapshot) {
    use Kind::{Counter, Gauge};
    let fill = &snapshot.fill;
    metrics.single(
        "virnucpro_batches_computed_total",
        Counter,
        "Batches computed in this session.",
        fill.batches as f64,
    );
    metrics.single(
        "virnucpro_batch_capacity_tokens_total",
        Counter,
        "Tokens that the computed batches had room for.",
        fill.capacity_tokens as f64,
    );
    metrics.single(
        "virnucpro_batch_padded_tokens_total",
        Counter,
        "Tokens that the computed batches would have held, padded to their longest sequence.",
        fill.padded_tokens as f64,
    );
    metrics.single(
        "virnucpro_batch_fill_ratio",
        Gauge,
        "Share of the computed batches' room that held tokens.",
        (fill.batches > 0).then(|| fill.mean()),
    );
    metrics.single(
        "virnucpro_batches_queued",
        Gauge,
        "Batches that wait for a device.",
        snapshot.batches_queued as f64,
    );
    metrics.single(
        "virnucpro_slots_free",
        Gauge,
        "Slots of devices that wait for a batch.",
        snapshot.slots_free as f64,
    );
}

/// One metric of every stage.
struct StageMetric {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    value: fn(&StageView) -> Option<f64>,
}

const STAGE_METRICS: [StageMetric; 6] = [
    StageMetric {
        name: "virnucpro_stage_queued",
        kind: Kind::Gauge,
        help: "What waits in front of the stage: segments, of compute batches.",
        value: |view| Some(view.queued as f64),
    },
    StageMetric {
        name: "virnucpro_stage_queue_capacity",
        kind: Kind::Gauge,
        help: "Most that may wait in front of the stage.",
        value: |view| Some(view.capacity as f64),
    },
    StageMetric {
        name: "virnucpro_stage_busy_seconds_total",
        kind: Kind::Counter,
        help: "Time that the stage worked in this session, all its workers together.",
        value: |view| Some(view.busy_s),
    },
    StageMetric {
        name: "virnucpro_stage_busy_ratio",
        kind: Kind::Gauge,
        help: "Share of the session that the stage worked.",
        value: |view| Some(view.busy_share),
    },
    StageMetric {
        name: "virnucpro_stage_starved_ratio",
        kind: Kind::Gauge,
        help: "Share of the session that the stage had nothing to do.",
        value: |view| Some(view.starved_share),
    },
    StageMetric {
        name: "virnucpro_stage_blocked_ratio",
        kind: Kind::Gauge,
        help: "Share of the session that the stages behind held the stage up.",
        value: |view| Some(view.blocked_share),
    },
];

fn waits(metrics: &mut Exposition, snapshot: &Snapshot) {
    const NAME: &str = "virnucpro_stage_wait_seconds";
    metrics.family(NAME, Kind::Summary, "How long the stage waited for a piece of its work, lately.");
    for view in &snapshot.stages {
        let (stage, waits) = (view.stage.name(), &view.waits);
        let quantile = |ms: f64| (waits.count > 0).then_some(ms / 1000.0);
        metrics.sample(NAME, &[("stage", stage), ("quantile", "0.5")], quantile(waits.p50_ms));
        metrics.sample(NAME, &[("stage", stage), ("quantile", "0.95")], quantile(waits.p95_ms));
        metrics.sample(&format!("{NAME}_count"), &[("stage", stage)], Some(waits.count as f64));
    }
}

fn bottleneck(metrics: &mut Exposition, snapshot: &Snapshot) {
    const NAME: &str = "virnucpro_bottleneck";
    let verdict = &snapshot.bottleneck;
    metrics.family(NAME, Kind::Gauge, "1 for the stage that holds the others up.");
    if let Some(slowest) = verdict.stage {
        for stage in Stage::ALL {
            let value = f64::from(u8::from(stage == slowest));
            metrics.sample(NAME, &[("stage", stage.name())], Some(value));
        }
    }
    metrics.single(
        "virnucpro_utilisation_ratio",
        Kind::Gauge,
        "Mean share of the last ten seconds that the devices that are ready computed.",
        verdict.utilisation,
    );
}

/// One metric of every device.
struct DeviceMetric {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    value: fn(&DeviceView) -> Option<f64>,
}

/// A value of the latest sample of a device's GPU.
macro_rules! gpu {
    ($sample:ident => $value:expr) => {
        |view| view.gpu.as_ref().and_then(|gpu| gpu.sample.as_ref()).and_then(|$sample| $value)
    };
}

const DEVICE_METRICS: [DeviceMetric; 19] = [
    DeviceMetric {
        name: "virnucpro_device_generation",
        kind: Kind::Gauge,
        help: "How often the device was started, from 0.",
        value: |view| Some(f64::from(view.generation)),
    },
    DeviceMetric {
        name: "virnucpro_device_restarts_total",
        kind: Kind::Counter,
        help: "Starts of the device's worker beyond the first in this session.",
        value: |view| Some(view.restarts as f64),
    },
    DeviceMetric {
        name: "virnucpro_device_tokens_total",
        kind: Kind::Counter,
        help: "Tokens computed by the device in this session.",
        value: |view| Some(view.tokens as f64),
    },
    DeviceMetric {
        name: "virnucpro_device_compute_seconds_total",
        kind: Kind::Counter,
        help: "Time that the device's engine computed in this session.",
        value: |view| Some(view.compute_s),
    },
    DeviceMetric {
        name: "virnucpro_device_busy_ratio",
        kind: Kind::Gauge,
        help: "Share of the last ten seconds that the device's engine computed.",
        value: |view| view.busy_share_now,
    },
    DeviceMetric {
        name: "virnucpro_device_token_budget",
        kind: Kind::Gauge,
        help: "Tokens that the device gets at once at most.",
        value: |view| Some(f64::from(view.token_budget)),
    },
    DeviceMetric {
        name: "virnucpro_device_heartbeat_age_seconds",
        kind: Kind::Gauge,
        help: "Time since the device's worker was last heard of.",
        value: |view| view.heartbeat_age_s,
    },
    DeviceMetric {
        name: "virnucpro_worker_cpu_cores",
        kind: Kind::Gauge,
        help: "Processor time that the device's worker takes, in cores.",
        value: |view| view.cpu_cores,
    },
    DeviceMetric {
        name: "virnucpro_worker_resident_bytes",
        kind: Kind::Gauge,
        help: "Resident memory of the device's worker.",
        value: |view| view.resident_bytes.map(|bytes| bytes as f64),
    },
    DeviceMetric {
        name: "virnucpro_gpu_busy_ratio",
        kind: Kind::Gauge,
        help: "Share of the last moments in which a kernel ran on the GPU.",
        value: gpu!(sample => sample.busy_percent.map(|percent| f64::from(percent) / 100.0)),
    },
    DeviceMetric {
        name: "virnucpro_gpu_memory_busy_ratio",
        kind: Kind::Gauge,
        help: "Share of the last moments in which the GPU's memory was read or written.",
        value: gpu!(sample => sample.memory_busy_percent.map(|percent| f64::from(percent) / 100.0)),
    },
    DeviceMetric {
        name: "virnucpro_gpu_memory_bytes",
        kind: Kind::Gauge,
        help: "Memory of the GPU.",
        value: gpu!(sample => sample.memory_total_bytes.map(|bytes| bytes as f64)),
    },
    DeviceMetric {
        name: "virnucpro_gpu_memory_used_bytes",
        kind: Kind::Gauge,
        help: "Memory of the GPU in use, by other programs too.",
        value: gpu!(sample => sample.memory_used_bytes.map(|bytes| bytes as f64)),
    },
    DeviceMetric {
        name: "virnucpro_gpu_temperature_celsius",
        kind: Kind::Gauge,
        help: "Temperature of the GPU's chip.",
        value: gpu!(sample => sample.temperature_c.map(f64::from)),
    },
    DeviceMetric {
        name: "virnucpro_gpu_power_watts",
        kind: Kind::Gauge,
        help: "Power that the GPU draws.",
        value: gpu!(sample => sample.power_w),
    },
    DeviceMetric {
        name: "virnucpro_gpu_power_limit_watts",
        kind: Kind::Gauge,
        help: "Power that the GPU may draw.",
        value: gpu!(sample => sample.power_limit_w),
    },
    DeviceMetric {
        name: "virnucpro_gpu_clock_hertz",
        kind: Kind::Gauge,
        help: "Clock of the GPU's multiprocessors.",
        value: gpu!(sample => sample.clock_sm_mhz.map(|mhz| f64::from(mhz) * 1e6)),
    },
    DeviceMetric {
        name: "virnucpro_gpu_throttled",
        kind: Kind::Gauge,
        help: "Whether something keeps the GPU's clocks down.",
        value: gpu!(sample => sample.throttled_by.as_ref().map(|reasons| f64::from(u8::from(!reasons.is_empty())))),
    },
    DeviceMetric {
        name: "virnucpro_gpu_memory_errors_total",
        kind: Kind::Counter,
        help: "Memory errors of the GPU that were not corrected since its driver was loaded.",
        value: gpu!(sample => sample.ecc_uncorrected.map(|errors| errors as f64)),
    },
];

fn devices(metrics: &mut Exposition, snapshot: &Snapshot) {
    const STATE: &str = "virnucpro_device_state";
    metrics.family(STATE, Kind::Gauge, "1 for the state that the device is in.");
    for view in &snapshot.devices {
        for (state, name) in STATES {
            let value = f64::from(u8::from(view.state == state));
            metrics.sample(STATE, &[("device", &view.name), ("state", name)], Some(value));
        }
    }
    for metric in DEVICE_METRICS {
        metrics.family(metric.name, metric.kind, metric.help);
        for view in &snapshot.devices {
            metrics.sample(metric.name, &[("device", &view.name)], (metric.value)(view));
        }
    }
    metrics.family("virnucpro_gpu_info", Kind::Gauge, "Which GPU the device is; always 1.");
    for view in &snapshot.devices {
        let Some(identity) = view.gpu.as_ref().map(|gpu| &gpu.identity) else { continue };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (name, uuid, pci) = (text(&identity.name), text(&identity.uuid), text(&identity.pci_bus_id));
        let labels = [("device", &*view.name), ("name", &name), ("uuid", &uuid), ("pci_bus_id", &pci)];
        metrics.sample("virnucpro_gpu_info", &labels, Some(1.0));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use actors::{Bottleneck, GpuView, JobView, Remaining, Tier, Waits};
    use kernels::nvml::GpuSample;

    use super::*;

    /// A run of which everything is known, a GPU among its devices.
    fn snapshot() -> Snapshot {
        let device = |name: &str| DeviceView {
            name: name.to_owned(),
            state: DeviceState::Ready,
            generation: 2,
            tokens: 1000,
            compute_s: 7.5,
            cpu_cores: Some(0.9),
            resident_bytes: Some(1 << 30),
            gpu: None,
            token_budget: 4096,
            tokens_per_s_now: 120.0,
            busy_share_now: Some(0.75),
            restarts: 2,
            heartbeat_age_s: Some(0.1),
            last_error: None,
        };
        let sample = GpuSample {
            busy_percent: Some(93),
            memory_busy_percent: Some(40),
            memory_total_bytes: Some(80 << 30),
            memory_used_bytes: Some(20 << 30),
            temperature_c: Some(61),
            power_w: Some(412.5),
            power_limit_w: Some(700.0),
            clock_sm_mhz: Some(1980),
            throttled_by: Some(vec!["power".to_owned()]),
            ecc_uncorrected: Some(0),
            ..GpuSample::default()
        };
        let stage = |stage| StageView {
            stage,
            queued: 1,
            capacity: 3,
            waits: Waits { count: 9, p50_ms: 1.5, p95_ms: 60.0, ..Waits::default() },
            busy_share: 0.5,
            starved_share: 0.25,
            blocked_share: 0.125,
            busy_s: 10.0,
        };
        Snapshot {
            job: JobView { file: "a \"b\"\\c\nd.toml".to_owned(), ..JobView::default() },
            tokens_computed: 12_345_678_901,
            remaining: Some(Remaining { seconds: 10.0, low_s: 8.0, high_s: 20.0 }),
            fill: actors::packing::Fill {
                batches: 4,
                tokens: 90,
                capacity_tokens: 100,
                ..Default::default()
            },
            stages: Stage::ALL.map(stage).into(),
            bottleneck: Bottleneck {
                stage: Some(Stage::Read),
                tier: Tier::Mild,
                utilisation: Some(0.6),
                sentence: String::new(),
            },
            devices: vec![
                device("sim:0"),
                DeviceView {
                    gpu: Some(GpuView { sample: Some(sample), ..GpuView::default() }),
                    ..device("cuda:0")
                },
            ],
            ..Snapshot::default()
        }
    }

    /// Names of the families, each with what it is.
    fn families(text: &str) -> Vec<(&str, &str)> {
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect()
    }

    #[test]
    fn names_follow_the_conventions() {
        let text = text(&snapshot());
        let families = families(&text);
        assert!(families.len() > 45, "{}", families.len());
        let names: BTreeSet<&str> = families.iter().map(|&(name, _)| name).collect();
        assert_eq!(names.len(), families.len(), "a family is written once");
        for (name, kind) in families {
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
            assert!(name.starts_with("virnucpro_"), "{name}");
            for abbreviation in ["_ms", "_mhz", "_percent", "_share", "_w", "_mb"] {
                assert!(!name.ends_with(abbreviation), "{name}: base units only");
            }
            assert!(text.contains(&format!("# HELP {name} ")), "{name}");
        }
    }

    #[test]
    fn every_line_is_a_comment_or_a_sample_of_the_family_before_it() {
        let text = text(&snapshot());
        let mut family = "";
        for line in text.lines() {
            if let Some(head) = line.strip_prefix("# TYPE ") {
                family = head.split(' ').next().unwrap();
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert!(name.split('{').next().unwrap().starts_with(family), "{line}");
                assert!(value.parse::<f64>().unwrap().is_finite(), "{line}");
            }
        }
    }

    #[test]
    fn values_are_those_of_the_snapshot() {
        let text = text(&snapshot());
        for line in [
            "virnucpro_tokens_computed_total 12345678901",
            "virnucpro_batch_fill_ratio 0.9",
            "virnucpro_remaining_seconds{estimate=\"high\"} 20",
            "virnucpro_stage_busy_seconds_total{stage=\"compute\"} 10",
            "virnucpro_stage_wait_seconds{stage=\"pack\",quantile=\"0.95\"} 0.06",
            "virnucpro_stage_wait_seconds_count{stage=\"pack\"} 9",
            "virnucpro_bottleneck{stage=\"read\"} 1",
            "virnucpro_bottleneck{stage=\"write\"} 0",
            "virnucpro_device_state{device=\"sim:0\",state=\"ready\"} 1",
            "virnucpro_device_state{device=\"sim:0\",state=\"retired\"} 0",
            "virnucpro_gpu_power_watts{device=\"cuda:0\"} 412.5",
            "virnucpro_gpu_clock_hertz{device=\"cuda:0\"} 1980000000",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.contains(r#"job_file="a \"b\"\\c\nd.toml""#), "{text}");
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let text = text(&Snapshot::default());
        for name in ["remaining_seconds", "batch_fill_ratio", "bottleneck", "gpu_", "utilisation", "stage_"] {
            assert!(!text.contains(&format!("virnucpro_{name}")), "{name}\n{text}");
        }
    }

    #[test]
    fn every_metric_is_explained_in_the_documentation() {
        let words = |c: char| !c.is_ascii_alphanumeric() && c != '_';
        let documentation = include_str!("../../docs/MONITORING.md");
        let explained: BTreeSet<&str> =
            documentation.split(words).map(|word| word.strip_prefix("virnucpro_").unwrap_or(word)).collect();
        let mut snapshot = snapshot();
        for device in &mut snapshot.devices {
            device.gpu.get_or_insert_default();
        }
        let text = text(&snapshot);
        let names = families(&text).into_iter().map(|(name, _)| name.strip_prefix("virnucpro_").unwrap());
        let missing: Vec<&str> = names.filter(|name| !explained.contains(name)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn the_grafana_dashboard_asks_only_for_what_is_exported() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/grafana/virnucpro-orch.json");
        let dashboard: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let text = text(&snapshot());
        let exported: BTreeSet<&str> = families(&text).into_iter().map(|(name, _)| name).collect();
        let mut asked = BTreeSet::new();
        let mut panels = 0;
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                panels += 1;
                let query = target["expr"].as_str().unwrap();
                let word = |c: char| !c.is_ascii_alphanumeric() && c != '_';
                let names = query.split(word).filter(|word| word.starts_with("virnucpro_"));
                asked.extend(names.map(str::to_owned));
            }
        }
        assert!(panels >= 12 && asked.len() >= 15, "{panels} {asked:?}");
        for name in asked {
            assert!(exported.contains(&*name), "{name} is asked for, but not exported");
        }
    }
}
