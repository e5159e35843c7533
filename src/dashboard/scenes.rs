//! Snapshots for tests: a job in each state that it can be in.

use std::sync::Arc;

use actors::packing::Fill;
use actors::{
    Bottleneck, DeviceState, DeviceView, EventLevel, EventView, JobView, Remaining, Snapshot, Stage,
    StageView, Tier, Waits,
};

use super::model::{Event, Home, Model};

pub(super) fn device(number: usize, state: DeviceState) -> DeviceView {
    DeviceView {
        name: format!("sim:{number}"),
        state,
        generation: 0,
        tokens: 65_000,
        compute_s: 70.0,
        cpu_cores: Some(0.5),
        resident_bytes: Some(200 << 20),
        gpu: None,
        token_budget: 16_384,
        tokens_per_s_now: if state == DeviceState::Ready { 900.0 } else { 0.0 },
        busy_share_now: (state == DeviceState::Ready).then_some(0.93),
        restarts: 0,
        heartbeat_age_s: (state == DeviceState::Ready).then_some(0.1),
        last_error: None,
    }
}

fn stage(stage: Stage, queued: u64, capacity: u64, [busy, starved, blocked]: [f64; 3]) -> StageView {
    let waits =
        Waits { count: 40, now_ms: 0.4, p50_ms: 0.3, p95_ms: 12.0, full_share: 0.8, starved_share: 0.05 };
    StageView {
        stage,
        queued,
        capacity,
        waits,
        busy_share: busy,
        starved_share: starved,
        blocked_share: blocked,
        busy_s: 75.0 * busy,
    }
}

fn event(number: u64, at_s: f64, level: EventLevel, device: Option<&str>, text: &str) -> EventView {
    EventView { number, at_s, level, device: device.map(str::to_owned), text: text.to_owned() }
}

/// Sixteen batches, one of them half empty.
fn fill() -> Fill {
    let mut fill = Fill::default();
    for batch in 0..16 {
        let tokens = [8_000, 15_000, 15_100].get(batch).copied().unwrap_or(16_300);
        fill.add(80, tokens, 300, 16_384);
    }
    fill
}

/// A run in the middle of its work.
pub(super) fn running(devices: usize) -> Snapshot {
    Snapshot {
        version: actors::SNAPSHOT_VERSION,
        job: JobView {
            model: "facebook/esm2_t33_650M_UR50D".to_owned(),
            precision: "fp32".to_owned(),
            pooling: "mean".to_owned(),
            token_budget: 16_384,
            host: "node7".to_owned(),
            ..JobView::default()
        },
        remaining: Some(Remaining { seconds: 225.0, low_s: 200.0, high_s: 260.0 }),
        elapsed_s: 75.0,
        records_total: 20_000,
        residues_total: 1_000_000,
        residues_done: 250_000,
        sequences_computed: 5_000,
        tokens_computed: 260_000,
        tokens_per_s_now: 3_600.0,
        tokens_per_s: 3_466.0,
        sequences_per_s_now: 72.0,
        sequences_per_s: 66.0,
        records_committed: 4_096,
        residues_committed: 204_800,
        segments_committed: 4,
        fill: fill(),
        batches_queued: 12,
        stages: vec![
            stage(Stage::Read, 0, 3, [0.06, 0.0, 0.94]),
            stage(Stage::Pack, 1, 3, [0.02, 0.05, 0.93]),
            stage(Stage::Compute, 12, 24, [0.93, 0.05, 0.02]),
            stage(Stage::Write, 1, 3, [0.08, 0.92, 0.0]),
        ],
        bottleneck: Bottleneck {
            stage: Some(Stage::Compute),
            tier: Tier::Good,
            utilisation: Some(0.93),
            sentence: "the devices set the pace: they compute 93 % of the time".to_owned(),
        },
        events: [
            event(1, 0.1, EventLevel::Info, None, "loading on every device"),
            event(2, 1.2, EventLevel::Info, Some("sim:0"), "ready"),
            event(3, 21.5, EventLevel::Info, None, "segment 00000 committed, 1,024 records"),
            event(4, 42.0, EventLevel::Info, None, "segment 00001 committed, 1,024 records"),
        ]
        .into(),
        devices: (0..devices).map(|number| device(number, DeviceState::Ready)).collect(),
        ..Snapshot::default()
    }
}

/// Before the first batch.
pub(super) fn loading() -> Snapshot {
    Snapshot {
        version: actors::SNAPSHOT_VERSION,
        elapsed_s: 0.75,
        records_total: 20_000,
        residues_total: 1_000_000,
        devices: (0..4).map(|number| device(number, DeviceState::Loading)).collect(),
        ..Snapshot::default()
    }
}

/// With devices that failed.
pub(super) fn degraded() -> Snapshot {
    let mut snapshot = running(4);
    let error = "no progress for 300.2 s, worker killed";
    snapshot.devices[1] = DeviceView {
        generation: 8,
        restarts: 8,
        last_error: Some(error.to_owned()),
        ..device(1, DeviceState::Retired)
    };
    snapshot.devices[2] = DeviceView {
        generation: 1,
        restarts: 1,
        cpu_cores: None,
        token_budget: 8_192,
        last_error: Some("out of memory".to_owned()),
        ..device(2, DeviceState::Waiting)
    };
    (snapshot.restarts, snapshot.failed) = (9, 3);
    snapshot.events.extend([
        event(
            5,
            60.0,
            EventLevel::Warning,
            Some("sim:2"),
            "out of memory: gets 8,192 tokens at once from now on",
        ),
        event(6, 71.0, EventLevel::Error, Some("sim:1"), error),
        event(
            7,
            72.0,
            EventLevel::Error,
            None,
            "record `tr|B1ER33|B1ER33_ESCAT` quarantined: non-finite values",
        ),
    ]);
    snapshot
}

/// Devices that wait for the reader.
pub(super) fn starved() -> Snapshot {
    let mut snapshot = Snapshot { batches_queued: 0, slots_free: 8, ..running(4) };
    snapshot.stages = vec![
        stage(Stage::Read, 2, 3, [0.98, 0.0, 0.02]),
        stage(Stage::Pack, 0, 3, [0.02, 0.98, 0.0]),
        stage(Stage::Compute, 0, 24, [0.31, 0.69, 0.0]),
        stage(Stage::Write, 0, 3, [0.08, 0.92, 0.0]),
    ];
    snapshot.bottleneck = Bottleneck {
        stage: Some(Stage::Read),
        tier: Tier::Critical,
        utilisation: Some(0.31),
        sentence: "reading holds the others up: devices compute 31 % of the time".to_owned(),
    };
    snapshot
}

/// Nobody is left to compute.
pub(super) fn all_lost() -> Snapshot {
    let mut snapshot = running(2);
    snapshot.devices = (0..2)
        .map(|number| DeviceView {
            last_error: Some("worker ended: signal: 9 (SIGKILL)".to_owned()),
            ..device(number, DeviceState::Retired)
        })
        .collect();
    snapshot
}

/// A model that has seen a job for a while.
pub(super) fn model(snapshot: Snapshot) -> Model {
    model_at(Home::Job { outlives: false }, snapshot)
}

pub(super) fn model_at(home: Home, snapshot: Snapshot) -> Model {
    let mut model = Model::new(home, "results/demo".to_owned());
    for step in 0..60 {
        let mut earlier =
            Snapshot { tokens_per_s_now: 1000.0 + f64::from(step % 20) * 150.0, ..snapshot.clone() };
        for (number, device) in earlier.devices.iter_mut().enumerate() {
            device.tokens_per_s_now *= f64::from((step + number as i32) % 7) / 6.0;
        }
        model.update(Event::Snapshot(Arc::new(earlier)));
    }
    model.update(Event::Snapshot(Arc::new(snapshot)));
    model
}
