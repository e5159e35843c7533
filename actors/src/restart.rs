//! When a failed device is started again, and when it is given up.
//!
//! Pure: the supervisor feeds it failures and progress and carries out what it decides.

use std::time::Duration;

/// Limits on restarts; from `[restart]` of the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPolicy {
    /// Pause before the first restart.
    pub backoff_min: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
    /// Restarts without a completed batch between them before the device is retired.
    pub restarts_max: u32,
}

/// What to do about a failed device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartDecision {
    /// Start it again after this pause.
    After(Duration),
    /// Give it up; the others go on.
    Retire,
}

/// Failures of one device since it last completed a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestartHistory {
    failures_without_progress: u32,
    restarts_total: u32,
}

impl RestartHistory {
    /// A batch was completed: the device earns back its whole restart budget.
    pub fn progressed(&mut self) {
        self.failures_without_progress = 0;
    }

    /// Restarts decided so far.
    pub fn restarts_total(&self) -> u32 {
        self.restarts_total
    }

    /// Decides about one more failure.
    ///
    /// The pause doubles with each failure; `jitter`, any number, shortens it by up to a quarter, so
    /// that devices that failed together do not start together.
    pub fn failed(&mut self, policy: RestartPolicy, jitter: u64) -> RestartDecision {
        self.failures_without_progress += 1;
        if self.failures_without_progress > policy.restarts_max {
            return RestartDecision::Retire;
        }
        self.restarts_total += 1;
        let doublings = (self.failures_without_progress - 1).min(31);
        let pause = policy.backoff_min.saturating_mul(1 << doublings).min(policy.backoff_max);
        let shortened_by = pause.mul_f64((jitter % 1024) as f64 / 4096.0);
        RestartDecision::After(pause - shortened_by)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: RestartPolicy = RestartPolicy {
        backoff_min: Duration::from_millis(500),
        backoff_max: Duration::from_secs(60),
        restarts_max: 8,
    };

    #[test]
    fn pauses_double_up_to_the_limit_and_then_the_device_is_retired() {
        let mut history = RestartHistory::default();
        let pauses: Vec<_> = (0..9).map(|_| history.failed(POLICY, 0)).collect();
        let millis = [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000];
        for (pause, millis) in pauses.iter().zip(millis) {
            assert_eq!(*pause, RestartDecision::After(Duration::from_millis(millis)));
        }
        assert_eq!(pauses[8], RestartDecision::Retire);
        assert_eq!(history.restarts_total(), 8);
    }

    #[test]
    fn progress_earns_the_budget_back() {
        let mut history = RestartHistory::default();
        for _ in 0..100 {
            assert_ne!(history.failed(POLICY, 7), RestartDecision::Retire);
            history.progressed();
        }
    }

    proptest! {
        #[test]
        fn a_device_is_retired_after_exactly_its_budget_whatever_came_before(
            restarts_max in 0u32..20,
            backoff_ms_min in 1u64..1000,
            factor in 1u64..100,
            events in prop::collection::vec((any::<bool>(), any::<u64>()), 0..200),
        ) {
            let policy = RestartPolicy {
                backoff_min: Duration::from_millis(backoff_ms_min),
                backoff_max: Duration::from_millis(backoff_ms_min * factor),
                restarts_max,
            };
            let mut history = RestartHistory::default();
            let mut failures = 0;
            for (progress, jitter) in events {
                if progress {
                    history.progressed();
                    failures = 0;
                    continue;
                }
                failures += 1;
                match history.failed(policy, jitter) {
                    RestartDecision::After(pause) => {
                        prop_assert!(failures <= restarts_max);
                        prop_assert!(pause <= policy.backoff_max);
                        prop_assert!(pause >= policy.backoff_min.mul_f64(0.75));
                    }
                    RestartDecision::Retire => prop_assert!(failures > restarts_max),
                }
            }
        }
    }

    #[test]
    fn jitter_shortens_by_at_most_a_quarter() {
        for jitter in 0..2048 {
            let RestartDecision::After(pause) = RestartHistory::default().failed(POLICY, jitter) else {
                panic!("retired at the first failure");
            };
            assert!(pause <= POLICY.backoff_min && pause >= POLICY.backoff_min.mul_f64(0.75));
        }
    }
}
