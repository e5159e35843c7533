//! How long a stage waited for the pieces of its work.

use std::collections::VecDeque;
use std::time::Duration;

use super::snapshot::Waits;
use crate::bounds::RECENT_WAITS;

/// A piece that took no longer was there at once.
const FULL: Duration = Duration::from_millis(1);
/// A stage that waits longer starves.
const STARVED: Duration = Duration::from_millis(50);

/// Every piece is counted, the latest [`RECENT_WAITS`] are remembered.
#[derive(Clone, Debug, Default)]
pub(super) struct WaitTally {
    recent: VecDeque<Duration>,
    count: u64,
    full: u64,
    starved: u64,
}

impl WaitTally {
    pub(super) fn add(&mut self, wait: Duration) {
        if self.recent.len() == RECENT_WAITS {
            self.recent.pop_front();
        }
        self.recent.push_back(wait);
        self.count += 1;
        self.full += u64::from(wait < FULL);
        self.starved += u64::from(wait > STARVED);
    }

    pub(super) fn view(&self) -> Waits {
        let Some(&latest) = self.recent.back() else { return Waits::default() };
        let mut sorted: Vec<Duration> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        let ms = |wait: Duration| wait.as_secs_f64() * 1e3;
        // The smallest that so many of a hundred do not exceed.
        let percentile = |percent: usize| ms(sorted[(sorted.len() * percent).div_ceil(100) - 1]);
        Waits {
            count: self.count,
            now_ms: ms(latest),
            p50_ms: percentile(50),
            p95_ms: percentile(95),
            full_share: self.full as f64 / self.count as f64,
            starved_share: self.starved as f64 / self.count as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_exact_and_the_shares_are_of_all_pieces() {
        assert_eq!(WaitTally::default().view(), Waits::default());
        let mut tally = WaitTally::default();
        for ms in (1..=100).rev() {
            tally.add(Duration::from_millis(ms));
        }
        tally.add(Duration::from_micros(500));
        let view = tally.view();
        assert_eq!((view.count, view.now_ms, view.p50_ms, view.p95_ms), (101, 0.5, 50.0, 95.0));
        assert_eq!((view.full_share, view.starved_share), (1.0 / 101.0, 50.0 / 101.0));
    }

    #[test]
    fn old_pieces_are_forgotten_but_counted() {
        let mut tally = WaitTally::default();
        tally.add(Duration::from_secs(9));
        for _ in 0..RECENT_WAITS {
            tally.add(Duration::ZERO);
        }
        assert_eq!(tally.recent.len(), RECENT_WAITS);
        let view = tally.view();
        assert_eq!((view.p95_ms, view.count), (0.0, RECENT_WAITS as u64 + 1));
        assert!(view.starved_share > 0.0);
    }
}
