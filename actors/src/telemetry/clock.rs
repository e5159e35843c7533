//! How long a stage was busy, starved or blocked, and what devices without a batch waited for.

use std::time::{Duration, Instant};

use super::timeline::Timeline;
use super::verdict::Idle;
use super::{Doing, Supply};

/// What a stage with one worker did with its time.
#[derive(Clone, Debug)]
pub(super) struct StageClock {
    doing: Doing,
    since: Instant,
    busy: Duration,
    starved: Duration,
    blocked: Duration,
    recent_busy: Timeline,
}

/// What devices without a batch waited for, in seconds of all together.
#[derive(Clone, Debug)]
pub(super) struct IdleClock {
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

impl StageClock {
    /// It has done nothing yet.
    pub(super) fn new(started: Instant) -> Self {
        Self {
            doing: Doing::Nothing,
            since: started,
            busy: Duration::ZERO,
            starved: Duration::ZERO,
            blocked: Duration::ZERO,
            recent_busy: Timeline::new(started),
        }
    }

    /// From `at` on it does this.
    pub(super) fn set(&mut self, doing: Doing, at: Instant) {
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
    pub(super) fn totals(&self, now: Instant) -> [f64; 3] {
        let passed = now.saturating_duration_since(self.since);
        let of = |doing, total: Duration| {
            (total + if self.doing == doing { passed } else { Duration::ZERO }).as_secs_f64()
        };
        [of(Doing::Busy, self.busy), of(Doing::Starved, self.starved), of(Doing::Blocked, self.blocked)]
    }

    /// Seconds busy within the window.
    pub(super) fn recent(&mut self, now: Instant) -> f64 {
        let running = match self.doing {
            Doing::Busy => now.saturating_duration_since(self.recent_busy.begin(now, self.since)),
            Doing::Starved | Doing::Blocked | Doing::Nothing => Duration::ZERO,
        };
        self.recent_busy.sum(now) + running.as_secs_f64()
    }
}

impl IdleClock {
    /// Nobody waits yet.
    pub(super) fn new(started: Instant) -> Self {
        let line = || Timeline::new(started);
        Self {
            devices: 0,
            supply: Supply::Nothing,
            since: started,
            starved_s: 0.0,
            blocked_s: 0.0,
            read: line(),
            pack: line(),
            write: line(),
            others: line(),
        }
    }

    /// The packer was at work between two moments; after that so many devices have no batch, for want of `supply`.
    pub(super) fn packed(&mut self, began: Instant, ended: Instant, devices: usize, supply: Supply) {
        self.pass(began);
        // While it was at work, those without a batch waited for it, whatever for before.
        if self.supply != Supply::Nothing {
            self.supply = Supply::Packer;
        }
        self.pass(ended);
        (self.devices, self.supply) = (devices, supply);
    }

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
    pub(super) fn totals(&self, now: Instant) -> (f64, f64) {
        let seconds = now.saturating_duration_since(self.since).as_secs_f64() * self.devices as f64;
        match self.supply {
            Supply::Nothing => (self.starved_s, self.blocked_s),
            Supply::Reader | Supply::Packer | Supply::Devices => (self.starved_s + seconds, self.blocked_s),
            Supply::Writer => (self.starved_s, self.blocked_s + seconds),
        }
    }

    /// Seconds within the window, by cause.
    pub(super) fn recent(&mut self, now: Instant) -> Idle {
        self.pass(now);
        Idle {
            read: self.read.sum(now),
            pack: self.pack.sum(now),
            write: self.write.sum(now),
            devices: self.others.sum(now),
        }
    }
}
