//! The books behind the snapshot: every figure is made of what the others report, with the moments at which it
//! happened.
//!
//! Pure: no clock, channel or actor. The telemetry actor hands in messages and asks for a [`Snapshot`].
//!
//! What is counted as what:
//! - **Busy** is the reader between the request for a segment and its delivery, the packer within its handler, a
//!   device within its engine (as the worker measured it; a batch that is still computed counts from the moment at
//!   which its device could begin it), the writer's thread while it writes.
//! - **Starved** is who waits for the stage before: the packer for a segment while no batch is left, a device without
//!   a batch while a segment is read, the writer without a complete segment.
//! - **Blocked** is who waits for the stage after: the reader that is not asked, the packer with batches that no
//!   device has room for, a device without a batch while the writer holds all segments that may be open, the writer
//!   on a full disk.
//! - None of these is a stage that is paused, done or not begun. Shares are of the whole session's time, those of
//!   devices of all devices' time.

use std::time::{Duration, Instant};

use super::events::Events;
use super::pace::Pace;
use super::snapshot::{DeviceState, Snapshot, Stage, StageView};
use super::timeline::{Timeline, WINDOW};
use super::verdict::{Idle, Situation, verdict};
use super::waits::WaitTally;
use super::{BatchReport, Doing, PackerReport, StageReport, Supply, TelemetryMessage};
use crate::bounds::{SEGMENTS_OPEN_MAX, SEGMENTS_SEALED};
use crate::identity::Generation;

/// Segments that the packer asks for at once.
const SEGMENTS_ASKED_AT_ONCE: u64 = 1;

/// The books of one session.
pub(super) struct Account {
    /// What was said last, and what never changes.
    snapshot: Snapshot,
    started: Instant,
    pace: Pace,
    tokens: Timeline,
    sequences: Timeline,
    reader: StageClock,
    packer: StageClock,
    writer: StageClock,
    read_waits: WaitTally,
    pack_waits: WaitTally,
    compute_waits: WaitTally,
    write_waits: WaitTally,
    devices: Vec<DeviceAccount>,
    idle: IdleClock,
    /// When it was last seen paused, or with a full disk.
    stood_until: Option<Instant>,
    queues: Option<PackerReport>,
    events: Events,
}

/// What is known of a device beside its view.
struct DeviceAccount {
    ready_since: Option<Instant>,
    /// Batches that it holds.
    held: u32,
    /// Since when its engine can have been at the batch that it is at.
    running_since: Option<Instant>,
    /// Whether it was ever lent a batch.
    was_lent: bool,
    heard_at: Option<Instant>,
    /// Seconds in the engine.
    busy: Timeline,
    tokens: Timeline,
}

/// What a stage with one worker did with its time.
struct StageClock {
    doing: Doing,
    since: Instant,
    busy: Duration,
    starved: Duration,
    blocked: Duration,
    recent_busy: Timeline,
}

/// What devices without a batch waited for, in seconds of all together.
struct IdleClock {
    /// How many have none, and what for.
    devices: usize,
    supply: Supply,
    since: Instant,
    starved_s: f64,
    blocked_s: f64,
    read: Timeline,
    pack: Timeline,
    write: Timeline,
    others: Timeline,
}

impl Account {
    /// Begins with what is known before the first batch.
    pub(super) fn new(first: Snapshot, started: Instant) -> Self {
        let line = || Timeline::new(started);
        let clock = || StageClock {
            doing: Doing::Nothing,
            since: started,
            busy: Duration::ZERO,
            starved: Duration::ZERO,
            blocked: Duration::ZERO,
            recent_busy: line(),
        };
        let device = || DeviceAccount {
            ready_since: None,
            held: 0,
            running_since: None,
            was_lent: false,
            heard_at: None,
            busy: line(),
            tokens: line(),
        };
        Self {
            devices: first.devices.iter().map(|_| device()).collect(),
            snapshot: first,
            started,
            pace: Pace::default(),
            tokens: line(),
            sequences: line(),
            reader: clock(),
            packer: clock(),
            writer: clock(),
            read_waits: WaitTally::default(),
            pack_waits: WaitTally::default(),
            compute_waits: WaitTally::default(),
            write_waits: WaitTally::default(),
            idle: IdleClock {
                devices: 0,
                supply: Supply::Nothing,
                since: started,
                starved_s: 0.0,
                blocked_s: 0.0,
                read: line(),
                pack: line(),
                write: line(),
                others: line(),
            },
            stood_until: None,
            queues: None,
            events: Events::default(),
        }
    }

    /// Takes down what somebody reports; `now` is when it arrives.
    pub(super) fn take(&mut self, message: TelemetryMessage, now: Instant) {
        match message {
            TelemetryMessage::BatchLent { device, wait, at } => {
                self.pace.begin(at);
                self.compute_waits.add(wait);
                self.devices[device.0].lent(at);
            }
            TelemetryMessage::TrialLent { device, at } => self.devices[device.0].lent(at),
            TelemetryMessage::BatchCompleted(report) => self.completed(&report),
            TelemetryMessage::BatchReturned { device, at } => self.devices[device.0].returned(at),
            TelemetryMessage::AllReturned { device } => self.devices[device.0].lost(),
            TelemetryMessage::Budget { device, tokens } => {
                self.snapshot.devices[device.0].token_budget = tokens;
            }
            TelemetryMessage::Packer(report) => self.packer_reported(report),
            TelemetryMessage::Stage(report) => self.stage_reported(report),
            TelemetryMessage::SegmentCommitted { records, failed, residues } => {
                let snapshot = &mut self.snapshot;
                snapshot.segments_committed += 1;
                snapshot.records_committed += records;
                snapshot.residues_committed += residues;
                snapshot.failed += failed;
            }
            TelemetryMessage::DiskFull(full) => self.snapshot.disk_full = full,
            TelemetryMessage::Device { device, generation, state, error } => {
                self.device_reported(device.0, generation, state, error, now);
            }
            TelemetryMessage::Heard { worker, at } => {
                if self.snapshot.devices[worker.device.0].generation == worker.generation.0 {
                    let heard_at = &mut self.devices[worker.device.0].heard_at;
                    // Not for a worker that is gone: its last words may come late.
                    *heard_at = heard_at.map(|_| at);
                }
            }
            TelemetryMessage::Sampled { device, cpu_cores, resident_bytes } => {
                let view = &mut self.snapshot.devices[device.0];
                (view.cpu_cores, view.resident_bytes) = (cpu_cores, resident_bytes);
            }
            TelemetryMessage::GpuSampled { device, view } => {
                self.snapshot.devices[device.0].gpu = Some(*view);
            }
            TelemetryMessage::Event(happening) => {
                self.events.add((now - self.started).as_secs_f64(), happening);
            }
            TelemetryMessage::Publish => {}
        }
    }

    fn completed(&mut self, report: &BatchReport) {
        let BatchReport { device, sequences, tokens, at, .. } = *report;
        let residues = tokens.saturating_sub(2 * sequences);
        self.pace.add(residues);
        self.tokens.put(at, tokens as f64);
        self.sequences.put(at, sequences as f64);
        let snapshot = &mut self.snapshot;
        snapshot.sequences_computed += sequences;
        snapshot.tokens_computed += tokens;
        let (count, longest) = (sequences as usize, report.longest_tokens);
        if report.is_last {
            snapshot.fill.add_last(count, tokens, longest, report.budget_tokens);
        } else {
            snapshot.fill.add(count, tokens, longest, report.budget_tokens);
        }
        let view = &mut snapshot.devices[device.0];
        view.tokens += tokens;
        view.compute_s += report.compute_us as f64 / 1e6;
        view.token_budget = report.device_budget_tokens;
        let account = &mut self.devices[device.0];
        let began = at.checked_sub(Duration::from_micros(report.compute_us)).unwrap_or(self.started);
        account.busy.spread(began, at, 1.0);
        account.tokens.put(at, tokens as f64);
        account.returned(at);
    }

    fn packer_reported(&mut self, report: PackerReport) {
        self.packer.set(Doing::Busy, report.began);
        self.packer.set(report.doing, report.ended);
        if let Some(wait) = report.segment_wait {
            self.pack_waits.add(wait);
        }
        self.idle.pass(report.began);
        // While it was at work, those without a batch waited for it, whatever for before.
        if self.idle.supply != Supply::Nothing {
            self.idle.supply = Supply::Packer;
        }
        self.idle.pass(report.ended);
        (self.idle.devices, self.idle.supply) = (report.idle_devices, report.supply);
        self.pace.pause(report.paused, report.ended);
        let snapshot = &mut self.snapshot;
        snapshot.batches_queued = report.batches;
        snapshot.slots_free = report.free_slots;
        (snapshot.paused, snapshot.stopping) = (report.paused, report.stopping);
        self.queues = Some(report);
    }

    fn stage_reported(&mut self, report: StageReport) {
        let StageReport { stage, doing, at, wait } = report;
        let (clock, waits) = match stage {
            Stage::Read => (&mut self.reader, &mut self.read_waits),
            Stage::Pack => (&mut self.packer, &mut self.pack_waits),
            Stage::Write => (&mut self.writer, &mut self.write_waits),
            // Devices have clocks of their own.
            Stage::Compute => return,
        };
        clock.set(doing, at);
        if let Some(wait) = wait {
            waits.add(wait);
        }
    }

    fn device_reported(
        &mut self,
        device: usize,
        generation: Generation,
        state: DeviceState,
        error: Option<String>,
        now: Instant,
    ) {
        let view = &mut self.snapshot.devices[device];
        let restarted = u64::from(generation.0 > view.generation);
        self.snapshot.restarts += restarted;
        view.restarts += restarted;
        view.state = state;
        view.generation = generation.0;
        view.last_error = error.or_else(|| view.last_error.take());
        let account = &mut self.devices[device];
        match state {
            DeviceState::Loading => {
                account.lost();
                account.heard_at = Some(now);
            }
            DeviceState::Ready => account.ready_since = Some(now),
            DeviceState::Waiting | DeviceState::Retired | DeviceState::Stopped => {
                account.lost();
                account.ready_since = None;
                account.heard_at = None;
            }
        }
    }

    /// The run as it is now.
    pub(super) fn view(&mut self, now: Instant) -> Snapshot {
        self.pace.tick(now);
        let mut snapshot = self.snapshot.clone();
        snapshot.elapsed_s = (now - self.started).as_secs_f64();
        if let Some(began) = self.pace.began() {
            let working_s = now.saturating_duration_since(began).as_secs_f64().max(1e-6);
            snapshot.tokens_per_s = snapshot.tokens_computed as f64 / working_s;
            snapshot.sequences_per_s = snapshot.sequences_computed as f64 / working_s;
            snapshot.tokens_per_s_now = rate(&mut self.tokens, began, now);
            snapshot.sequences_per_s_now = rate(&mut self.sequences, began, now);
        }
        let computed = snapshot.residues_resumed + snapshot.residues_computed();
        // Records with equal residues are computed once: what is committed may be more.
        let done = computed.max(snapshot.residues_committed);
        // While it does not go on as it did, nobody can say.
        let goes_on = !(snapshot.paused || snapshot.disk_full || snapshot.stopping);
        if snapshot.paused || snapshot.disk_full {
            self.stood_until = Some(now);
        }
        let left = snapshot.residues_total.saturating_sub(done);
        snapshot.remaining = self.pace.remaining(left, now).filter(|_| goes_on);
        let began = self.pace.began().unwrap_or(now);
        for (view, account) in snapshot.devices.iter_mut().zip(&mut self.devices) {
            view.tokens_per_s_now = rate(&mut account.tokens, began, now);
            view.busy_share_now = account.was_lent.then(|| account.busy_share(began, now));
            view.heartbeat_age_s = account.heard_at.map(|at| now.saturating_duration_since(at).as_secs_f64());
        }
        snapshot.stages = self.stages(&snapshot, now);
        snapshot.bottleneck = verdict(&self.situation(&snapshot, now));
        snapshot.events.clone_from(&self.events.latest);
        snapshot
    }

    fn stages(&self, snapshot: &Snapshot, now: Instant) -> Vec<StageView> {
        let session_s = snapshot.elapsed_s.max(1e-6);
        let queues = self.queues.as_ref();
        let queued = |of: fn(&PackerReport) -> u64| queues.map_or(0, of);
        let view = |stage, queued, capacity: u64, waits: &WaitTally, seconds: [f64; 3], whole_s: f64| {
            let [busy_s, starved_s, blocked_s] = seconds;
            // Moments are told by several threads: rounding must not make more than the whole.
            let busy_share = (busy_s / whole_s).clamp(0.0, 1.0);
            let starved_share = (starved_s / whole_s).clamp(0.0, 1.0 - busy_share);
            let blocked_share = (blocked_s / whole_s).clamp(0.0, 1.0 - busy_share - starved_share);
            let waits = waits.view();
            StageView { stage, queued, capacity, waits, busy_share, starved_share, blocked_share, busy_s }
        };
        let running = self.devices.iter().map(|device| device.running(now).as_secs_f64()).sum::<f64>();
        let compute_s = snapshot.devices.iter().map(|device| device.compute_s).sum::<f64>() + running;
        let (idle_starved_s, idle_blocked_s) = self.idle.totals(now);
        let devices_s = session_s * self.devices.len().max(1) as f64;
        vec![
            view(
                Stage::Read,
                queued(|report| u64::from(report.asked)),
                SEGMENTS_ASKED_AT_ONCE,
                &self.read_waits,
                self.reader.totals(now),
                session_s,
            ),
            view(
                Stage::Pack,
                queued(|report| report.segments_open as u64),
                SEGMENTS_OPEN_MAX as u64,
                &self.pack_waits,
                self.packer.totals(now),
                session_s,
            ),
            view(
                Stage::Compute,
                queued(|report| report.batches as u64),
                queued(|report| report.batches_max.max(report.batches) as u64),
                &self.compute_waits,
                [compute_s, idle_starved_s, idle_blocked_s],
                devices_s,
            ),
            view(
                Stage::Write,
                queued(|report| report.segments_sealed as u64),
                SEGMENTS_SEALED as u64,
                &self.write_waits,
                self.writer.totals(now),
                session_s,
            ),
        ]
    }

    fn situation(&mut self, snapshot: &Snapshot, now: Instant) -> Situation {
        let (mut ready, mut busy, mut ready_s) = (0, 0.0, 0.0);
        for (view, account) in snapshot.devices.iter().zip(&mut self.devices) {
            let Some(since) = account.ready_since.filter(|_| view.state == DeviceState::Ready) else {
                continue;
            };
            ready += 1;
            ready_s += (now.saturating_duration_since(account.busy.begin(now, since))).as_secs_f64();
            busy += account.busy_share(since, now);
        }
        let idle = self.idle.recent(now);
        let share = |seconds: f64| if ready_s > 0.0 { (seconds / ready_s).min(1.0) } else { 0.0 };
        let started = self.started;
        let window_s = now.saturating_duration_since(started).min(WINDOW).as_secs_f64().max(1e-6);
        let stage_busy = |clock: &mut StageClock| (clock.recent(now) / window_s).min(1.0);
        Situation {
            disk_full: snapshot.disk_full,
            stopping: snapshot.stopping,
            paused: snapshot.paused,
            has_just_gone_on: self.stood_until.is_some_and(|at| now.saturating_duration_since(at) < WINDOW),
            is_tail: self.queues.as_ref().is_some_and(|report| report.is_tail),
            devices_ready: ready,
            batches: snapshot.fill.batches,
            working: self.pace.active(now),
            utilisation: (ready > 0).then(|| busy / ready as f64),
            idle: Idle {
                read: share(idle.read),
                pack: share(idle.pack),
                write: share(idle.write),
                devices: share(idle.devices),
            },
            read_busy: stage_busy(&mut self.reader),
            pack_busy: stage_busy(&mut self.packer),
            write_busy: stage_busy(&mut self.writer),
        }
    }
}

/// An amount per second over the window that ends now, or since the first batch.
fn rate(timeline: &mut Timeline, began: Instant, now: Instant) -> f64 {
    let time = now.saturating_duration_since(timeline.begin(now, began)).as_secs_f64();
    if time > 0.0 { timeline.sum(now) / time } else { 0.0 }
}

impl DeviceAccount {
    fn lent(&mut self, at: Instant) {
        self.was_lent = true;
        self.held += 1;
        if self.held == 1 {
            self.running_since = Some(at);
        }
    }

    fn returned(&mut self, at: Instant) {
        self.held = self.held.saturating_sub(1);
        self.running_since = (self.held > 0).then_some(at);
    }

    fn lost(&mut self) {
        (self.held, self.running_since) = (0, None);
    }

    /// How long its engine has been at the batch that is not done.
    fn running(&self, now: Instant) -> Duration {
        self.running_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Share of the window, or of the time since then, that its engine computed.
    fn busy_share(&mut self, since: Instant, now: Instant) -> f64 {
        let begin = self.busy.begin(now, since);
        let time = now.saturating_duration_since(begin).as_secs_f64();
        let running = self
            .running_since
            .map_or(0.0, |running| now.saturating_duration_since(running.max(begin)).as_secs_f64());
        if time > 0.0 { ((self.busy.sum(now) + running) / time).min(1.0) } else { 0.0 }
    }
}

impl StageClock {
    fn set(&mut self, doing: Doing, at: Instant) {
        let passed = at.saturating_duration_since(self.since);
        match self.doing {
            Doing::Busy => {
                self.busy += passed;
                self.recent_busy.spread(self.since, at, 1.0);
            }
            Doing::Starved => self.starved += passed,
            Doing::Blocked => self.blocked += passed,
            Doing::Nothing => {}
        }
        (self.doing, self.since) = (doing, self.since.max(at));
    }

    /// Seconds busy, starved and blocked.
    fn totals(&self, now: Instant) -> [f64; 3] {
        let passed = now.saturating_duration_since(self.since);
        let of = |doing, total: Duration| {
            (total + if self.doing == doing { passed } else { Duration::ZERO }).as_secs_f64()
        };
        [of(Doing::Busy, self.busy), of(Doing::Starved, self.starved), of(Doing::Blocked, self.blocked)]
    }

    /// Seconds busy within the window.
    fn recent(&mut self, now: Instant) -> f64 {
        let running = match self.doing {
            Doing::Busy => now.saturating_duration_since(self.recent_busy.begin(now, self.since)),
            Doing::Starved | Doing::Blocked | Doing::Nothing => Duration::ZERO,
        };
        self.recent_busy.sum(now) + running.as_secs_f64()
    }
}

impl IdleClock {
    /// Counts the time up to now.
    fn pass(&mut self, now: Instant) {
        let (since, devices) = (self.since, self.devices as f64);
        let seconds = now.saturating_duration_since(since).as_secs_f64() * devices;
        self.since = since.max(now);
        if seconds == 0.0 {
            return;
        }
        let timeline = match self.supply {
            Supply::Nothing => return,
            Supply::Reader => &mut self.read,
            Supply::Packer => &mut self.pack,
            Supply::Writer => &mut self.write,
            Supply::Devices => &mut self.others,
        };
        timeline.spread(since, now, devices);
        match self.supply {
            Supply::Writer => self.blocked_s += seconds,
            Supply::Reader | Supply::Packer | Supply::Devices => self.starved_s += seconds,
            Supply::Nothing => {}
        }
    }

    /// Seconds starved and blocked.
    fn totals(&self, now: Instant) -> (f64, f64) {
        let seconds = now.saturating_duration_since(self.since).as_secs_f64() * self.devices as f64;
        match self.supply {
            Supply::Nothing => (self.starved_s, self.blocked_s),
            Supply::Reader | Supply::Packer | Supply::Devices => (self.starved_s + seconds, self.blocked_s),
            Supply::Writer => (self.starved_s, self.blocked_s + seconds),
        }
    }

    /// Seconds within the window, by cause.
    fn recent(&mut self, now: Instant) -> Idle {
        self.pass(now);
        Idle {
            read: self.read.sum(now),
            pack: self.pack.sum(now),
            write: self.write.sum(now),
            devices: self.others.sum(now),
        }
    }
}

#[cfg(test)]
mod tests;
