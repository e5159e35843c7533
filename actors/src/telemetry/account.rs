//! The books behind the snapshot: every figure is made of what the others report, with the moments at which it
//! happened.
//!
//! Pure: no clock, channel or actor. The telemetry actor hands in messages and the packer's own books, a
//! [`WorkAccount`], and asks for a [`Snapshot`].
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

use std::time::Instant;

use super::clock::StageClock;
use super::events::Events;
use super::snapshot::{DeviceState, Snapshot, Stage, StageView};
use super::timeline::{Timeline, WINDOW};
use super::verdict::{Idle, Situation, verdict};
use super::waits::WaitTally;
use super::work::WorkAccount;
use super::{PackerReport, StageReport, TelemetryMessage};
use crate::bounds::{SEGMENTS_OPEN_MAX, SEGMENTS_SEALED};
use crate::identity::Generation;

/// Segments that the packer asks for at once.
const SEGMENTS_ASKED_AT_ONCE: u64 = 1;

/// The books of one session.
pub(super) struct Account {
    /// What was said last, and what never changes.
    snapshot: Snapshot,
    started: Instant,
    /// Residues that earlier sessions set aside, as far as can be told.
    set_aside_before: u64,
    /// The packer's books as they were when it was last asked.
    work: WorkAccount,
    reader: StageClock,
    writer: StageClock,
    read_waits: WaitTally,
    write_waits: WaitTally,
    devices: Vec<DeviceAccount>,
    /// When it was last seen paused, or with a full disk.
    stood_until: Option<Instant>,
    events: Events,
}

/// What is known of a device beside its view and what it has computed.
struct DeviceAccount {
    ready_since: Option<Instant>,
    heard_at: Option<Instant>,
}

impl Account {
    /// Begins with what is known before the first batch.
    pub(super) fn new(first: Snapshot, started: Instant) -> Self {
        // Nothing tells the residues of what earlier sessions set aside: as many as the other records have.
        let (failed, rows) = (
            u128::from(first.failed),
            u128::from(first.records_resumed - first.failed.min(first.records_resumed)),
        );
        let set_aside = u128::from(first.residues_resumed) * failed / rows.max(1);
        let device = |_| DeviceAccount { ready_since: None, heard_at: None };
        Self {
            work: WorkAccount::new(first.devices.len(), started),
            devices: first.devices.iter().map(device).collect(),
            set_aside_before: u64::try_from(set_aside).unwrap_or(u64::MAX),
            snapshot: first,
            started,
            reader: StageClock::new(started),
            writer: StageClock::new(started),
            read_waits: WaitTally::default(),
            write_waits: WaitTally::default(),
            stood_until: None,
            events: Events::default(),
        }
    }

    /// Takes over the packer's books as they are now.
    pub(super) fn take_work(&mut self, work: WorkAccount) {
        self.work = work;
    }

    /// Takes down what somebody reports; `now` is when it arrives.
    pub(super) fn take(&mut self, message: TelemetryMessage, now: Instant) {
        match message {
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
            TelemetryMessage::Packer(_) | TelemetryMessage::Publish => {}
        }
    }

    fn stage_reported(&mut self, report: StageReport) {
        let StageReport { stage, doing, at, wait } = report;
        let (clock, waits) = match stage {
            Stage::Read => (&mut self.reader, &mut self.read_waits),
            Stage::Write => (&mut self.writer, &mut self.write_waits),
            // The packer counts for itself and for the devices.
            Stage::Pack | Stage::Compute => return,
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
            DeviceState::Loading => account.heard_at = Some(now),
            DeviceState::Ready => account.ready_since = Some(now),
            DeviceState::Waiting | DeviceState::Retired | DeviceState::Stopped => {
                account.ready_since = None;
                account.heard_at = None;
            }
        }
    }

    /// The run as it is now.
    pub(super) fn view(&mut self, now: Instant) -> Snapshot {
        let mut snapshot = self.snapshot.clone();
        let work = &mut self.work;
        snapshot.elapsed_s = (now - self.started).as_secs_f64();
        (snapshot.sequences_computed, snapshot.tokens_computed) =
            (work.sequences_computed, work.tokens_computed);
        snapshot.fill = work.fill;
        if let Some(queues) = &work.queues {
            (snapshot.batches_queued, snapshot.slots_free) = (queues.batches, queues.free_slots);
            (snapshot.paused, snapshot.stopping) = (queues.paused, queues.stopping);
        }
        if let Some(began) = work.pace.began() {
            let working_s = now.saturating_duration_since(began).as_secs_f64().max(1e-6);
            snapshot.tokens_per_s = snapshot.tokens_computed as f64 / working_s;
            snapshot.sequences_per_s = snapshot.sequences_computed as f64 / working_s;
            snapshot.tokens_per_s_now = rate(&mut work.tokens, began, now);
            snapshot.sequences_per_s_now = rate(&mut work.sequences, began, now);
        }
        // What is committed may be known before the packer's latest books.
        let before = snapshot.residues_resumed.saturating_add(self.set_aside_before);
        let done = before.saturating_add(work.residues_done).max(snapshot.residues_committed);
        // What was set aside before is not known exactly; that all is committed is.
        let all = snapshot.records_total > 0 && snapshot.records_committed == snapshot.records_total;
        snapshot.residues_done = if all { u64::MAX } else { done }.min(snapshot.residues_total);
        // While it does not go on as it did, nobody can say.
        let goes_on = !(snapshot.paused || snapshot.disk_full || snapshot.stopping);
        if snapshot.paused || snapshot.disk_full {
            self.stood_until = Some(now);
        }
        let left = snapshot.residues_total - snapshot.residues_done;
        snapshot.remaining = work.pace.remaining(left, now).filter(|_| goes_on);
        let began = work.pace.began().unwrap_or(now);
        let devices = self.devices.iter().zip(&mut work.devices);
        for (view, (account, work)) in snapshot.devices.iter_mut().zip(devices) {
            if view.state != DeviceState::Ready {
                // The packer may not have heard yet that its worker is gone.
                work.stands_still();
            }
            (view.tokens, view.compute_s) = (work.computed_tokens, work.compute_s);
            view.token_budget = work.token_budget.unwrap_or(view.token_budget);
            view.tokens_per_s_now = rate(&mut work.tokens, began, now);
            view.busy_share_now = work.was_lent.then(|| work.busy_share(began, now));
            view.heartbeat_age_s = account.heard_at.map(|at| now.saturating_duration_since(at).as_secs_f64());
        }
        snapshot.stages = self.stages(&snapshot, now);
        snapshot.bottleneck = verdict(&self.situation(&snapshot, now));
        snapshot.events.clone_from(&self.events.latest);
        snapshot
    }

    fn stages(&self, snapshot: &Snapshot, now: Instant) -> Vec<StageView> {
        let session_s = snapshot.elapsed_s.max(1e-6);
        let work = &self.work;
        let queues = work.queues.as_ref();
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
        let running = work.devices.iter().map(|device| device.running(now).as_secs_f64()).sum::<f64>();
        let compute_s = snapshot.devices.iter().map(|device| device.compute_s).sum::<f64>() + running;
        let (idle_starved_s, idle_blocked_s) = work.idle.totals(now);
        let devices_s = session_s * work.devices.len().max(1) as f64;
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
                &work.pack_waits,
                work.packer.totals(now),
                session_s,
            ),
            view(
                Stage::Compute,
                queued(|report| report.batches as u64),
                queued(|report| report.batches_max.max(report.batches) as u64),
                &work.compute_waits,
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
        let devices = self.devices.iter().zip(&mut self.work.devices);
        for (view, (account, work)) in snapshot.devices.iter().zip(devices) {
            let Some(since) = account.ready_since.filter(|_| view.state == DeviceState::Ready) else {
                continue;
            };
            ready += 1;
            ready_s += (now.saturating_duration_since(work.busy.begin(now, since))).as_secs_f64();
            busy += work.busy_share(since, now);
        }
        let idle = self.work.idle.recent(now);
        let share = |seconds: f64| if ready_s > 0.0 { (seconds / ready_s).min(1.0) } else { 0.0 };
        let started = self.started;
        let window_s = now.saturating_duration_since(started).min(WINDOW).as_secs_f64().max(1e-6);
        let stage_busy = |clock: &mut StageClock| (clock.recent(now) / window_s).min(1.0);
        Situation {
            disk_full: snapshot.disk_full,
            stopping: snapshot.stopping,
            paused: snapshot.paused,
            has_just_gone_on: self.stood_until.is_some_and(|at| now.saturating_duration_since(at) < WINDOW),
            is_tail: self.work.queues.as_ref().is_some_and(|report| report.is_tail),
            devices_ready: ready,
            batches: snapshot.fill.batches,
            working: self.work.pace.active(now),
            utilisation: (ready > 0).then(|| busy / ready as f64),
            idle: Idle {
                read: share(idle.read),
                pack: share(idle.pack),
                write: share(idle.write),
                devices: share(idle.devices),
            },
            read_busy: stage_busy(&mut self.reader),
            pack_busy: stage_busy(&mut self.work.packer),
            write_busy: stage_busy(&mut self.writer),
        }
    }
}

/// An amount per second over the window that ends now, or since the first batch.
fn rate(timeline: &mut Timeline, began: Instant, now: Instant) -> f64 {
    let time = now.saturating_duration_since(timeline.begin(now, began)).as_secs_f64();
    if time > 0.0 { timeline.sum(now) / time } else { 0.0 }
}

#[cfg(test)]
mod tests;
