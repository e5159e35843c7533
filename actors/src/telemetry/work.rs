//! What the packer has lent, got back and waited for, counted where it happens.
//!
//! Pure: the packer adds to it, and telemetry gets a copy whenever it makes a snapshot. So a batch costs a few
//! additions and no message, however many there are in a second.

use std::time::{Duration, Instant};

use super::clock::{IdleClock, StageClock};
use super::pace::Pace;
use super::timeline::Timeline;
use super::waits::WaitTally;
use super::{BatchReport, Doing, PackerReport};
use crate::identity::DeviceIndex;
use crate::packing::Fill;

/// The packer's part of the books of one session.
#[derive(Clone, Debug)]
pub(crate) struct WorkAccount {
    started: Instant,
    pub(super) sequences_computed: u64,
    pub(super) tokens_computed: u64,
    /// Of records that are computed, taken from a journal or set aside.
    pub(super) residues_done: u64,
    pub(super) fill: Fill,
    pub(super) pace: Pace,
    pub(super) tokens: Timeline,
    pub(super) sequences: Timeline,
    pub(super) packer: StageClock,
    pub(super) pack_waits: WaitTally,
    pub(super) compute_waits: WaitTally,
    pub(super) idle: IdleClock,
    /// How things stood after the latest message.
    pub(super) queues: Option<PackerReport>,
    pub(super) devices: Vec<DeviceWork>,
}

/// What a device was lent and has computed.
#[derive(Clone, Debug)]
pub(super) struct DeviceWork {
    pub(super) computed_tokens: u64,
    /// Time in the engine.
    pub(super) compute_s: f64,
    /// Tokens that it is allowed at once, as far as the packer has said.
    pub(super) token_budget: Option<u32>,
    /// Batches that it holds.
    held: u32,
    /// Since when its engine can have been at the batch that it is at.
    running_since: Option<Instant>,
    /// Whether it was ever lent a batch.
    pub(super) was_lent: bool,
    /// Seconds in the engine.
    pub(super) busy: Timeline,
    pub(super) tokens: Timeline,
}

impl WorkAccount {
    /// Nothing is done yet.
    pub(crate) fn new(devices: usize, started: Instant) -> Self {
        let line = || Timeline::new(started);
        let device = || DeviceWork {
            computed_tokens: 0,
            compute_s: 0.0,
            token_budget: None,
            held: 0,
            running_since: None,
            was_lent: false,
            busy: line(),
            tokens: line(),
        };
        Self {
            started,
            sequences_computed: 0,
            tokens_computed: 0,
            residues_done: 0,
            fill: Fill::default(),
            pace: Pace::default(),
            tokens: line(),
            sequences: line(),
            packer: StageClock::new(started),
            pack_waits: WaitTally::default(),
            compute_waits: WaitTally::default(),
            idle: IdleClock::new(started),
            queues: None,
            devices: (0..devices).map(|_| device()).collect(),
        }
    }

    /// A device got a batch, after having had nothing to do for so long.
    pub(crate) fn lent(&mut self, device: DeviceIndex, wait: Duration, at: Instant) {
        self.pace.begin(at);
        self.compute_waits.add(wait);
        self.devices[device.0].lent(at);
    }

    /// A device got a batch without sequences.
    pub(crate) fn trial_lent(&mut self, device: DeviceIndex, at: Instant) {
        self.devices[device.0].lent(at);
    }

    /// A batch is computed.
    pub(crate) fn completed(&mut self, report: &BatchReport) {
        let BatchReport { device, sequences, tokens, residues, at, .. } = *report;
        // In residues of the input, as what is left is told: equal records cost nothing more.
        self.pace.add(residues);
        self.residues_done += residues;
        self.tokens.put(at, tokens as f64);
        self.sequences.put(at, sequences as f64);
        self.sequences_computed += sequences;
        self.tokens_computed += tokens;
        let (count, longest) = (sequences as usize, report.longest_tokens);
        if report.is_last {
            self.fill.add_last(count, tokens, longest, report.budget_tokens);
        } else {
            self.fill.add(count, tokens, longest, report.budget_tokens);
        }
        let compute = Duration::from_micros(report.compute_us);
        let began = at.checked_sub(compute).unwrap_or(self.started);
        let device = &mut self.devices[device.0];
        device.computed_tokens += tokens;
        device.compute_s += report.compute_us as f64 / 1e6;
        device.token_budget = Some(report.device_budget_tokens);
        device.busy.spread(began, at, 1.0);
        device.tokens.put(at, tokens as f64);
        device.returned(at);
    }

    /// Residues of records that need no computing any more: they cost no time of this session.
    pub(crate) fn settled(&mut self, residues: u64) {
        self.residues_done += residues;
    }

    /// A batch came back that brings nothing: it failed, or was a trial.
    pub(crate) fn returned(&mut self, device: DeviceIndex, at: Instant) {
        self.devices[device.0].returned(at);
    }

    /// A device holds nothing any more.
    pub(crate) fn all_returned(&mut self, device: DeviceIndex) {
        let device = &mut self.devices[device.0];
        (device.held, device.running_since) = (0, None);
    }

    /// A device may have so many tokens at once.
    pub(crate) fn limited(&mut self, device: DeviceIndex, tokens: u32) {
        self.devices[device.0].token_budget = Some(tokens);
    }

    /// The packer has handled a message.
    pub(crate) fn packed(&mut self, report: PackerReport) {
        self.packer.set(Doing::Busy, report.began);
        self.packer.set(report.doing, report.ended);
        if let Some(wait) = report.segment_wait {
            self.pack_waits.add(wait);
        }
        self.idle.packed(report.began, report.ended, report.idle_devices, report.supply);
        self.pace.pause(report.paused, report.ended);
        self.queues = Some(report);
    }

    /// What there is so far, for a snapshot.
    pub(crate) fn shown(&mut self, now: Instant) -> Box<Self> {
        self.pace.tick(now);
        Box::new(self.clone())
    }
}

impl DeviceWork {
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

    /// Its worker is gone: nothing is computed that was not answered.
    pub(super) fn stands_still(&mut self) {
        self.running_since = None;
    }

    /// How long its engine has been at the batch that is not done.
    pub(super) fn running(&self, now: Instant) -> Duration {
        self.running_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Share of the window, or of the time since then, that its engine computed.
    pub(super) fn busy_share(&mut self, since: Instant, now: Instant) -> f64 {
        let begin = self.busy.begin(now, since);
        let time = now.saturating_duration_since(begin).as_secs_f64();
        let running = self
            .running_since
            .map_or(0.0, |running| now.saturating_duration_since(running.max(begin)).as_secs_f64());
        if time > 0.0 { ((self.busy.sum(now) + running) / time).min(1.0) } else { 0.0 }
    }
}
