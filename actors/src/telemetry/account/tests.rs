//! The books under a clock of our own.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::identity::{DeviceIndex, Worker};
use crate::telemetry::{BatchReport, DeviceView, Doing, EventLevel, Happening, Supply, Tier};

struct Books {
    account: Account,
    /// The packer's.
    work: WorkAccount,
    start: Instant,
}

impl Books {
    /// Devices that are ready from the start.
    fn of(devices: usize) -> Self {
        let view = |number| DeviceView { name: format!("sim:{number}"), ..DeviceView::default() };
        let first = Snapshot {
            residues_total: 100_000,
            devices: (0..devices).map(view).collect(),
            ..Snapshot::default()
        };
        let start = Instant::now();
        let work = WorkAccount::new(devices, start);
        let mut books = Self { account: Account::new(first, start), work, start };
        for device in 0..devices {
            books.device(device, 0, DeviceState::Loading, 0);
            books.device(device, 0, DeviceState::Ready, 0);
        }
        books
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn take(&mut self, message: TelemetryMessage, ms: u64) {
        let now = self.at(ms);
        self.account.take(message, now);
    }

    fn view(&mut self, ms: u64) -> Snapshot {
        let now = self.at(ms);
        self.account.take_work(*self.work.shown(now));
        self.account.view(now)
    }

    fn device(&mut self, device: usize, generation: u32, state: DeviceState, ms: u64) {
        let (device, generation) = (DeviceIndex(device), Generation(generation));
        self.take(TelemetryMessage::Device { device, generation, state, error: None }, ms);
    }

    fn lent(&mut self, device: usize, ms: u64) {
        let at = self.at(ms);
        self.work.lent(DeviceIndex(device), Duration::ZERO, at);
    }

    fn completed(&mut self, device: usize, compute_ms: u64, ms: u64) {
        self.completed_with(1, device, compute_ms, ms);
    }

    /// Each sequence is that of so many records.
    fn completed_with(&mut self, records: u64, device: usize, compute_ms: u64, ms: u64) {
        let report = BatchReport {
            device: DeviceIndex(device),
            sequences: 10,
            tokens: 1000,
            residues: 980 * records,
            longest_tokens: 100,
            compute_us: compute_ms * 1000,
            budget_tokens: 1000,
            is_last: false,
            device_budget_tokens: 1000,
            at: self.at(ms),
        };
        self.work.completed(&report);
    }

    /// The packer handles a message from `began` to `ended`.
    fn packer(&mut self, began_ms: u64, ended_ms: u64, doing: Doing, supply: Supply, idle_devices: usize) {
        let report = PackerReport {
            began: self.at(began_ms),
            ended: self.at(ended_ms),
            doing,
            supply,
            idle_devices,
            ..quiet(self.start)
        };
        self.work.packed(report);
    }

    fn stage(&mut self, stage: Stage, doing: Doing, ms: u64) {
        let report = StageReport { stage, doing, at: self.at(ms), wait: None };
        self.take(TelemetryMessage::Stage(report), ms);
    }
}

fn quiet(start: Instant) -> PackerReport {
    PackerReport {
        began: start,
        ended: start,
        doing: Doing::Nothing,
        supply: Supply::Nothing,
        idle_devices: 0,
        segment_wait: None,
        asked: false,
        segments_open: 0,
        segments_sealed: 0,
        batches: 0,
        batches_max: 0,
        free_slots: 0,
        paused: false,
        stopping: false,
        is_tail: false,
    }
}

fn close(found: f64, wanted: f64) {
    assert!((found - wanted).abs() < 1e-3, "{found}, not {wanted}");
}

#[track_caller]
fn shares(snapshot: &Snapshot, stage: Stage, wanted: [f64; 3]) {
    let view = &snapshot.stages[stage as usize];
    assert_eq!(view.stage, stage);
    for (found, wanted) in [view.busy_share, view.starved_share, view.blocked_share].into_iter().zip(wanted) {
        assert!((found - wanted).abs() < 1e-3, "{stage:?}: {view:?}");
    }
}

#[test]
fn a_device_computes_once_whatever_it_holds() {
    let mut books = Books::of(2);
    // Two slots: both are lent at once, computed one after the other.
    books.lent(0, 0);
    books.lent(0, 0);
    books.completed(0, 2000, 2000);
    let now = books.view(3000);
    close(now.devices[0].busy_share_now.unwrap(), 1.0);
    assert_eq!(now.devices[1].busy_share_now, None);
    // The batch that is computed counts, though nobody has heard of it yet.
    shares(&now, Stage::Compute, [0.5, 0.0, 0.0]);
    close(now.stages[2].busy_s, 3.0);
    books.completed(0, 2000, 4000);
    let now = books.view(8000);
    close(now.devices[0].busy_share_now.unwrap(), 0.5);
    close(now.devices[0].compute_s, 4.0);
    shares(&now, Stage::Compute, [0.25, 0.0, 0.0]);
    close(now.bottleneck.utilisation.unwrap(), 0.25);
    close(now.devices[0].tokens_per_s_now, 250.0);
    close(now.sequences_per_s, 2.5);
}

#[test]
fn only_the_window_counts_for_now() {
    let mut books = Books::of(1);
    books.lent(0, 0);
    books.completed(0, 1000, 1000);
    let now = books.view(60_000);
    assert_eq!((now.tokens_per_s_now, now.devices[0].busy_share_now), (0.0, Some(0.0)));
    close(now.tokens_per_s, 1000.0 / 60.0);
    // A batch of a minute is computed all the time.
    books.lent(0, 60_000);
    let now = books.view(100_000);
    close(now.devices[0].busy_share_now.unwrap(), 1.0);
    books.completed(0, 60_000, 120_000);
    let now = books.view(120_000);
    close(now.devices[0].busy_share_now.unwrap(), 1.0);
    close(now.stages[2].busy_s, 61.0);
}

#[test]
fn every_stage_is_held_up_by_the_one_that_is_slow() {
    // The reader takes all the time.
    let mut books = Books::of(2);
    books.stage(Stage::Read, Doing::Busy, 0);
    books.stage(Stage::Write, Doing::Starved, 0);
    for second in 0..20 {
        let ms = second * 1000;
        books.packer(ms, ms + 1, Doing::Starved, Supply::Reader, 2);
        books.lent(0, ms + 500);
        books.completed(0, 50, ms + 550);
    }
    let now = books.view(20_000);
    shares(&now, Stage::Read, [1.0, 0.0, 0.0]);
    shares(&now, Stage::Pack, [0.001, 0.999, 0.0]);
    shares(&now, Stage::Compute, [0.025, 1.0 - 0.025, 0.0]);
    shares(&now, Stage::Write, [0.0, 1.0, 0.0]);
    assert_eq!((now.bottleneck.stage, now.bottleneck.tier), (Some(Stage::Read), Tier::Critical));
    assert!(now.bottleneck.sentence.contains("reading works 100 % of the time"), "{:?}", now.bottleneck);

    // The writer does.
    let mut books = Books::of(2);
    books.stage(Stage::Read, Doing::Blocked, 0);
    books.stage(Stage::Write, Doing::Busy, 0);
    books.packer(0, 0, Doing::Blocked, Supply::Writer, 2);
    for batch in 0..10 {
        books.lent(1, batch * 10);
        books.completed(1, 0, batch * 10);
    }
    let now = books.view(20_000);
    shares(&now, Stage::Read, [0.0, 0.0, 1.0]);
    shares(&now, Stage::Pack, [0.0, 0.0, 1.0]);
    shares(&now, Stage::Compute, [0.0, 0.0, 1.0]);
    shares(&now, Stage::Write, [1.0, 0.0, 0.0]);
    assert_eq!(now.bottleneck.stage, Some(Stage::Write), "{:?}", now.bottleneck);

    // Devices do.
    let mut books = Books::of(1);
    books.packer(0, 0, Doing::Blocked, Supply::Devices, 0);
    books.lent(0, 0);
    books.lent(0, 0);
    for batch in 1..=20 {
        books.completed(0, 970, batch * 1000);
        books.lent(0, batch * 1000);
    }
    let now = books.view(20_000);
    shares(&now, Stage::Compute, [0.97, 0.0, 0.0]);
    assert_eq!((now.bottleneck.stage, now.bottleneck.tier), (Some(Stage::Compute), Tier::Good));
}

#[test]
fn a_pause_and_the_end_are_nobodys_fault() {
    let mut books = Books::of(1);
    books.lent(0, 0);
    for batch in 1..=12 {
        books.completed(0, 100, batch * 100);
        books.lent(0, batch * 100);
    }
    books.completed(0, 100, 1300);
    assert!(books.view(1300).remaining.is_some());
    let paused = PackerReport {
        began: books.at(1300),
        ended: books.at(1300),
        paused: true,
        idle_devices: 1,
        ..quiet(books.start)
    };
    books.work.packed(paused);
    let now = books.view(60_000);
    assert_eq!((now.remaining, now.bottleneck.stage), (None, None));
    assert!(now.bottleneck.sentence.contains("paused"));
    assert_eq!(now.stages[2].starved_share + now.stages[2].blocked_share, 0.0);
    let tail = PackerReport { paused: false, is_tail: true, ..paused };
    books.work.packed(tail);
    let tail = books.view(60_000);
    assert!(tail.bottleneck.sentence.contains("the last ones"));
    assert!(tail.remaining.is_some());
    // The pause is still within what shares are of.
    books.work.packed(PackerReport { paused: false, ..paused });
    assert!(books.view(65_000).bottleneck.sentence.contains("just gone on"));
    assert!(!books.view(71_000).bottleneck.sentence.contains("just gone on"));
}

#[test]
fn equal_records_are_done_when_their_one_computation_is() {
    // Of 100,000 residues 5,000 are in a journal and 1,000 set aside; every other sequence is that of five records.
    let mut books = Books::of(1);
    books.work.settled(5_000);
    books.lent(0, 0);
    for batch in 1..=10 {
        books.completed_with(5, 0, 1000, batch * 1000);
        books.lent(0, batch * 1000);
    }
    books.work.settled(1_000);
    let now = books.view(10_000);
    assert_eq!((now.tokens_computed, now.residues_done), (10_000, 55_000));
    close(now.done_share(), 0.55);
    // 45,000 left, 49,000 of the input in ten seconds.
    close(now.remaining.unwrap().seconds, 10.0 * 45.0 / 49.0);
    // What is committed is done, whatever the packer's latest books say.
    books.take(TelemetryMessage::SegmentCommitted { records: 1, failed: 0, residues: 90_000 }, 10_000);
    assert_eq!(books.view(10_000).residues_done, 90_000);
    for batch in 11..=20 {
        books.completed_with(5, 0, 1000, batch * 1000);
    }
    let now = books.view(20_000);
    assert_eq!((now.residues_done, now.remaining.unwrap().seconds), (100_000, 0.0), "never more than all");
}

#[test]
fn a_lost_worker_computes_and_says_nothing_more() {
    let mut books = Books::of(2);
    let heard = |generation, at| TelemetryMessage::Heard {
        worker: Worker { device: DeviceIndex(0), generation: Generation(generation) },
        at,
    };
    books.lent(0, 0);
    let at = books.at(900);
    books.take(heard(0, at), 900);
    close(books.view(1000).devices[0].heartbeat_age_s.unwrap(), 0.1);
    books.device(0, 1, DeviceState::Waiting, 1000);
    // What it said last arrives after its end.
    books.take(heard(0, at), 1000);
    let now = books.view(3000);
    assert_eq!((now.devices[0].heartbeat_age_s, now.devices[0].restarts, now.restarts), (None, 1, 1));
    close(now.stages[2].busy_s, 0.0);
    // Only who is ready is judged.
    close(now.bottleneck.utilisation.unwrap(), 0.0);
    books.device(1, 0, DeviceState::Retired, 3000);
    assert_eq!(books.view(3000).bottleneck.utilisation, None);
    let last_word =
        TelemetryMessage::Heard { worker: Worker { device: DeviceIndex(1), generation: Generation(0) }, at };
    books.take(last_word, 3000);
    assert_eq!(books.view(3000).devices[1].heartbeat_age_s, None);
    books.device(0, 1, DeviceState::Loading, 4000);
    books.take(heard(0, at), 4000);
    close(books.view(4500).devices[0].heartbeat_age_s.unwrap(), 0.5);
}

#[test]
fn a_device_with_less_memory_is_judged_by_its_own_budget() {
    let mut books = Books::of(1);
    let report = BatchReport {
        device: DeviceIndex(0),
        sequences: 5,
        tokens: 490,
        residues: 480,
        longest_tokens: 100,
        compute_us: 1,
        budget_tokens: 500,
        is_last: false,
        device_budget_tokens: 250,
        at: books.start,
    };
    books.work.completed(&report);
    books.work.completed(&BatchReport { tokens: 10, is_last: true, ..report });
    let now = books.view(0);
    assert_eq!((now.fill.batches, now.fill.judged, now.fill.minimum), (2, 1, Some(0.98)));
    assert_eq!(now.devices[0].token_budget, 250);
    books.work.limited(DeviceIndex(0), 125);
    assert_eq!(books.view(0).devices[0].token_budget, 125);
}

#[test]
fn events_are_told_with_their_time() {
    let mut books = Books::of(1);
    books.take(TelemetryMessage::Event(Happening::new(EventLevel::Info, "paused")), 2500);
    let now = books.view(3000);
    assert_eq!((now.events[0].at_s, now.events[0].text.as_str()), (2.5, "paused"));
}

proptest! {
    /// Whatever is reported in whatever order: shares are shares.
    #[test]
    fn shares_are_never_more_than_the_whole(
        steps in prop::collection::vec((0u8..10, 0usize..3, 0u64..400, 0u64..3000), 1..200),
    ) {
        let mut books = Books::of(3);
        let mut ms = 0;
        for (what, device, passed, compute) in steps {
            ms += passed;
            let doing = [Doing::Busy, Doing::Starved, Doing::Blocked, Doing::Nothing][compute as usize % 4];
            let supply = [Supply::Reader, Supply::Packer, Supply::Writer, Supply::Devices, Supply::Nothing];
            match what {
                0 | 1 => books.lent(device, ms),
                2 | 3 => books.completed(device, compute.min(ms), ms),
                4 => books.packer(ms - passed / 2, ms, doing, supply[compute as usize % 5], device),
                5 => books.stage([Stage::Read, Stage::Pack, Stage::Write][device], doing, ms),
                6 => books.device(device, 1, DeviceState::Waiting, ms),
                7 => books.device(device, 1, DeviceState::Ready, ms),
                8 => {
                    let at = books.at(ms);
                    books.work.returned(DeviceIndex(device), at);
                }
                _ => books.work.all_returned(DeviceIndex(device)),
            }
            let now = books.view(ms);
            for stage in &now.stages {
                let all = [stage.busy_share, stage.starved_share, stage.blocked_share];
                prop_assert!(all.iter().all(|share| (0.0..=1.0).contains(share)), "{stage:?}");
                prop_assert!(all.iter().sum::<f64>() <= 1.0 + 1e-9, "{stage:?}");
            }
            for device in &now.devices {
                prop_assert!(device.busy_share_now.is_none_or(|share| (0.0..=1.0).contains(&share)));
            }
            prop_assert!(now.bottleneck.utilisation.is_none_or(|share| (0.0..=1.0).contains(&share)));
            prop_assert_eq!(now.tokens_computed, now.devices.iter().map(|device| device.tokens).sum::<u64>());
            if let Some(remaining) = now.remaining {
                prop_assert!(remaining.low_s <= remaining.seconds && remaining.seconds <= remaining.high_s);
                prop_assert!(remaining.high_s.is_finite());
            }
        }
    }
}

#[test]
fn what_was_set_aside_before_is_done_too() {
    let start = Instant::now();
    let first = Snapshot {
        records_total: 300,
        residues_total: 30_000,
        records_resumed: 100,
        records_committed: 100,
        residues_resumed: 4_000,
        residues_committed: 4_000,
        failed: 60,
        ..Snapshot::default()
    };
    let mut account = Account::new(first, start);
    // 40 rows have 4,000 residues: 60 more, 6,000.
    assert_eq!(account.view(start).residues_done, 10_000);
    account.take(TelemetryMessage::SegmentCommitted { records: 199, failed: 0, residues: 19_000 }, start);
    assert_eq!(account.view(start).residues_done, 23_000);
    account.take(TelemetryMessage::SegmentCommitted { records: 1, failed: 0, residues: 100 }, start);
    assert_eq!(account.view(start).residues_done, 30_000, "all is committed");
    // Nothing but failed records before, and nothing at all.
    for failed in [100, 0] {
        let first = Snapshot { records_resumed: failed, failed, residues_total: 1, ..Snapshot::default() };
        assert_eq!(Account::new(first, start).view(start).residues_done, 0);
    }
}
