//! What happened in the last ten seconds, in steps of a quarter of a second.

use std::time::{Duration, Instant};

/// Time that is looked back upon.
pub(super) const WINDOW: Duration = Duration::from_secs(10);
const STEP_US: u64 = 250_000;
/// Those of the window and the one that goes on.
const STEPS: usize = (WINDOW.as_micros() as u64 / STEP_US) as usize + 1;

/// An amount for each of the last moments: tokens, or seconds of work.
#[derive(Clone, Debug)]
pub(super) struct Timeline {
    origin: Instant,
    /// By number of the step, modulo their count.
    steps: [f64; STEPS],
    newest: u64,
}

impl Timeline {
    /// Nothing happened before `origin`.
    pub(super) fn new(origin: Instant) -> Self {
        Self { origin, steps: [0.0; STEPS], newest: 0 }
    }

    /// Something happened at a moment.
    pub(super) fn put(&mut self, at: Instant, amount: f64) {
        let step = self.advance(at);
        if step + STEPS as u64 > self.newest {
            self.steps[(step % STEPS as u64) as usize] += amount;
        }
    }

    /// Something went on between two moments, `times` at once: counts its seconds.
    pub(super) fn spread(&mut self, from: Instant, to: Instant, times: f64) {
        let last = self.advance(to);
        let (mut from_us, to_us) = (self.us(from).max(self.begin_us()), self.us(to));
        while from_us < to_us {
            let step = from_us / STEP_US;
            let end_us = ((step + 1) * STEP_US).min(to_us);
            if step <= last {
                self.steps[(step % STEPS as u64) as usize] += (end_us - from_us) as f64 / 1e6 * times;
            }
            from_us = end_us;
        }
    }

    /// The amount of the window that ends now.
    pub(super) fn sum(&mut self, now: Instant) -> f64 {
        self.advance(now);
        self.steps.iter().sum()
    }

    /// When the window that ends now begins, or `since` if that is later.
    pub(super) fn begin(&mut self, now: Instant, since: Instant) -> Instant {
        self.advance(now);
        since.max(self.origin + Duration::from_micros(self.begin_us()))
    }

    fn us(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.origin).as_micros() as u64
    }

    fn begin_us(&self) -> u64 {
        (self.newest + 1).saturating_sub(STEPS as u64) * STEP_US
    }

    /// Forgets what is too old; returns the step of this moment, which may be an older one.
    fn advance(&mut self, to: Instant) -> u64 {
        let step = self.us(to) / STEP_US;
        let forgotten = (step.saturating_sub(self.newest)).min(STEPS as u64);
        for number in 0..forgotten {
            self.steps[((step - number) % STEPS as u64) as usize] = 0.0;
        }
        self.newest = self.newest.max(step);
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut timeline = Timeline::new(start);
        timeline.put(at(100), 5.0);
        timeline.put(at(9_000), 7.0);
        assert_eq!(timeline.sum(at(9_500)), 12.0);
        assert_eq!(timeline.begin(at(9_500), start), start);
        assert_eq!(timeline.sum(at(12_000)), 7.0);
        assert_eq!(timeline.begin(at(12_000), start), at(2_000));
        assert_eq!(timeline.begin(at(12_000), at(11_000)), at(11_000));
        // Late news of a moment that is over, and of one within the window.
        timeline.put(at(500), 1.0);
        timeline.put(at(11_000), 2.0);
        assert_eq!(timeline.sum(at(12_000)), 9.0);
        assert_eq!(timeline.sum(at(120_000)), 0.0);
    }

    #[test]
    fn time_is_shared_out_over_its_moments() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut timeline = Timeline::new(start);
        // Only the window's part of a long batch counts.
        timeline.spread(start, at(30_000), 1.0);
        assert!((timeline.sum(at(30_000)) - 10.0).abs() < 1e-9, "{}", timeline.sum(at(30_000)));
        timeline.spread(at(30_000), at(30_100), 3.0);
        assert!((timeline.sum(at(30_100)) - 10.3).abs() < 1e-9);
        assert!((timeline.sum(at(35_000)) - 5.3).abs() < 1e-9, "{}", timeline.sum(at(35_000)));
        // Nothing for an end before the beginning.
        timeline.spread(at(35_000), at(34_000), 1.0);
        assert!((timeline.sum(at(35_000)) - 5.3).abs() < 1e-9);
    }
}
