//! Which workers hold batches, and since when those without one wait for the next.
//!
//! Pure: the packer notes what it lends and gets back. A worker that holds one batch and asks for another does not
//! wait: it has something to do.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::identity::Worker;

/// The workers that have ever asked for a batch and still live.
#[derive(Debug, Default)]
pub(crate) struct Hands(BTreeMap<Worker, Hand>);

#[derive(Debug)]
struct Hand {
    held: u32,
    /// Since when it holds nothing, if it does not.
    free_since: Instant,
}

impl Hands {
    /// A worker has a free slot.
    pub(crate) fn asked(&mut self, worker: Worker, now: Instant) {
        self.0.entry(worker).or_insert(Hand { held: 0, free_since: now });
    }

    /// A worker gets a batch; returns how long it had nothing to do before.
    pub(crate) fn lent(&mut self, worker: Worker, now: Instant) -> Duration {
        let hand = self.0.entry(worker).or_insert(Hand { held: 0, free_since: now });
        hand.held += 1;
        if hand.held == 1 { now.saturating_duration_since(hand.free_since) } else { Duration::ZERO }
    }

    /// A worker has answered a batch, one way or another.
    pub(crate) fn returned(&mut self, worker: Worker, now: Instant) {
        if let Some(hand) = self.0.get_mut(&worker) {
            hand.held = hand.held.saturating_sub(1);
            hand.free_since = now;
        }
    }

    /// A worker is no more, or gets nothing more.
    pub(crate) fn gone(&mut self, worker: Worker) {
        self.0.remove(&worker);
    }

    /// Nobody was lent anything until now, which was nobody's fault.
    pub(crate) fn waiting_begins(&mut self, now: Instant) {
        for hand in self.0.values_mut() {
            hand.free_since = now;
        }
    }

    /// Workers that hold nothing.
    pub(crate) fn empty(&self) -> usize {
        self.0.values().filter(|hand| hand.held == 0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{DeviceIndex, Generation};

    #[test]
    fn only_a_worker_without_a_batch_waits() {
        let worker = |device| Worker { device: DeviceIndex(device), generation: Generation(0) };
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut hands = Hands::default();
        for _ in 0..2 {
            hands.asked(worker(0), at(0));
        }
        assert_eq!(hands.empty(), 1);
        assert_eq!(hands.lent(worker(0), at(30)), Duration::from_millis(30));
        assert_eq!((hands.lent(worker(0), at(90)), hands.empty()), (Duration::ZERO, 0));
        hands.returned(worker(0), at(100));
        assert_eq!(hands.lent(worker(0), at(500)), Duration::ZERO);
        for _ in 0..2 {
            hands.returned(worker(0), at(600));
        }
        assert_eq!(hands.empty(), 1);
        hands.waiting_begins(at(5000));
        assert_eq!(hands.lent(worker(0), at(5001)), Duration::from_millis(1));
        hands.gone(worker(0));
        assert_eq!(hands.empty(), 0);
        // An answer of one that is gone changes nothing.
        hands.returned(worker(0), at(6000));
        assert_eq!(hands.empty(), 0);
    }
}
