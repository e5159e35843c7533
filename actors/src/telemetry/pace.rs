//! How fast the run is, and how long it will take.
//!
//! The time to the end is what is left at the rate of the whole session; its range is that of the rates seen lately.
//! They are taken over slices of [`SLICE`] or more, until [`SLICE_BATCHES`] batches are in one, so that slow batches
//! make no false alarm, and the latest [`SLICES`] are remembered, five minutes or more. Time in which a person had
//! paused the run counts nowhere here.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::snapshot::Remaining;

/// Shortest time over which a rate says something.
const SLICE: Duration = Duration::from_secs(5);
/// Fewest batches over which a rate says something.
const SLICE_BATCHES: u64 = 4;
/// Slices that are remembered.
const SLICES: usize = 60;

/// The pace of one session; the clock runs from the first batch that was lent.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    began: Option<Instant>,
    /// Since when the run is paused.
    paused_since: Option<Instant>,
    /// Time of earlier pauses.
    paused: Duration,
    residues: u64,
    batches: u64,
    slice: Slice,
    /// Residues per second, oldest first.
    rates: VecDeque<f64>,
}

/// Where the slice that goes on began.
#[derive(Clone, Copy, Debug, Default)]
struct Slice {
    active: Duration,
    residues: u64,
    batches: u64,
}

impl Pace {
    /// A batch is lent.
    pub(super) fn begin(&mut self, at: Instant) {
        self.began.get_or_insert(at);
    }

    pub(super) fn began(&self) -> Option<Instant> {
        self.began
    }

    pub(super) fn pause(&mut self, paused: bool, at: Instant) {
        match (self.paused_since, paused) {
            (None, true) => self.paused_since = Some(at),
            (Some(since), false) => {
                let since = self.began.map_or(at, |began| since.max(began));
                self.paused += at.saturating_duration_since(since);
                self.paused_since = None;
            }
            (None, false) | (Some(_), true) => {}
        }
    }

    /// A batch is done.
    pub(super) fn add(&mut self, residues: u64) {
        self.residues += residues;
        self.batches += 1;
    }

    /// Time since the first batch in which the run was not paused.
    pub(super) fn active(&self, now: Instant) -> Duration {
        let Some(began) = self.began else { return Duration::ZERO };
        let end = self.paused_since.unwrap_or(now).max(began);
        end.saturating_duration_since(began).saturating_sub(self.paused)
    }

    /// Looks at the clock: ends the slice if it is long enough.
    pub(super) fn tick(&mut self, now: Instant) {
        let active = self.active(now);
        let Some(rate) = self.slice_rate(active).filter(|_| self.slice_is_full()) else { return };
        if self.rates.len() == SLICES {
            self.rates.pop_front();
        }
        self.rates.push_back(rate);
        self.slice = Slice { active, residues: self.residues, batches: self.batches };
    }

    fn slice_is_full(&self) -> bool {
        self.batches - self.slice.batches >= SLICE_BATCHES
    }

    /// The rate of the slice that goes on, if it is long enough.
    fn slice_rate(&self, active: Duration) -> Option<f64> {
        let time = active.saturating_sub(self.slice.active);
        let residues = self.residues - self.slice.residues;
        (time >= SLICE && residues > 0).then(|| residues as f64 / time.as_secs_f64())
    }

    /// Time until `left` residues are done; `None` before there is a rate.
    pub(super) fn remaining(&self, left: u64, now: Instant) -> Option<Remaining> {
        let active = self.active(now);
        if self.residues == 0 || active.is_zero() {
            return None;
        }
        let mean = self.residues as f64 / active.as_secs_f64();
        // One that got slow of late shows before its slice is full.
        let rates = self.rates.iter().copied().chain(self.slice_rate(active)).chain([mean]);
        let (slowest, fastest) =
            rates.fold((mean, mean), |(low, high), rate| (low.min(rate), high.max(rate)));
        let left = left as f64;
        Some(Remaining { seconds: left / mean, low_s: left / fastest, high_s: left / slowest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_range_is_that_of_the_rates_seen_lately() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.remaining(100, start), None);
        pace.begin(start);
        assert_eq!(pace.remaining(100, start + seconds(5)), None);
        // Ten seconds at 400 residues/s, ten at 100.
        for second in 1..=20 {
            for _ in 0..4 {
                pace.add(if second <= 10 { 100 } else { 25 });
            }
            pace.tick(start + seconds(second));
        }
        let remaining = pace.remaining(1000, start + seconds(20)).unwrap();
        assert_eq!(remaining, Remaining { seconds: 4.0, low_s: 2.5, high_s: 10.0 });
        assert_eq!(pace.remaining(0, start + seconds(20)).unwrap().high_s, 0.0);
    }

    #[test]
    fn a_pause_is_no_time() {
        let start = Instant::now();
        let mut pace = Pace::default();
        pace.pause(true, start);
        pace.begin(start + seconds(5));
        pace.pause(false, start + seconds(10));
        assert_eq!(pace.active(start + seconds(10)), seconds(0));
        pace.add(1000);
        let before = pace.remaining(500, start + seconds(20));
        pace.pause(true, start + seconds(20));
        pace.pause(true, start + seconds(30));
        assert_eq!(pace.active(start + seconds(500)), seconds(10));
        assert_eq!(pace.remaining(500, start + seconds(500)), before);
        pace.pause(false, start + seconds(500));
        assert_eq!(pace.active(start + seconds(501)), seconds(11));
    }

    #[test]
    fn slow_batches_make_no_false_range() {
        let start = Instant::now();
        let mut pace = Pace::default();
        pace.begin(start);
        // A batch each three seconds, looked at four times a second.
        for quarter in 1..=240u32 {
            if quarter % 12 == 0 {
                pace.add(300);
            }
            pace.tick(start + quarter * Duration::from_millis(250));
        }
        let remaining = pace.remaining(1000, start + seconds(60)).unwrap();
        assert!(remaining.high_s < 1.4 * remaining.seconds && remaining.low_s > 0.7 * remaining.seconds);
        assert_eq!(pace.rates.len(), 5, "twelve seconds for four batches");
    }

    #[test]
    fn a_burst_of_a_moment_is_no_rate() {
        let start = Instant::now();
        let mut pace = Pace::default();
        pace.begin(start);
        // A thousand batches in a second, none in the four that follow.
        for second in 1..=20 {
            if second % 5 == 1 {
                (0..1000).for_each(|_| pace.add(10));
            }
            pace.tick(start + seconds(second));
        }
        let remaining = pace.remaining(1000, start + seconds(20)).unwrap();
        assert_eq!(remaining, Remaining { seconds: 0.5, low_s: 0.5, high_s: 0.5 });
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let start = Instant::now();
        let mut pace = Pace::default();
        pace.begin(start);
        for slice in 1..=200u32 {
            (0..SLICE_BATCHES).for_each(|_| pace.add(10));
            pace.tick(start + slice * SLICE);
        }
        assert_eq!(pace.rates.len(), SLICES);
    }
}
