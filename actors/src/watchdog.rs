//! Notices that a run makes no progress, whatever the cause, and says who holds it up.
//!
//! Pure but for the time it is given: the supervisor patrols with it and asks the packer how things stand.
//! It ends nothing by itself: hung workers have their own deadline, and a stalled disk may come back.

use std::time::{Duration, Instant};

use crate::packer::Standing;

/// Looks per stall time: the first word comes at most a quarter late.
const LOOKS: u32 = 4;
/// However short the stall time, an actor that has not taken a message for so long is stuck.
const DEAF_MIN: Duration = Duration::from_secs(60);

/// What a look at the run leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Ask the packer how things stand.
    Ask,
    /// Wait for its answer.
    Wait,
    /// It has not answered for too long: it is stuck.
    Deaf(Duration),
}

/// The watchdog of one run.
#[derive(Debug)]
pub(crate) struct Watchdog {
    stall_max: Duration,
    looked_at: Instant,
    steps: u64,
    silent: Duration,
    /// Times it has spoken since the last progress: each word comes after twice the time.
    spoken: u32,
    unanswered: Option<Duration>,
}

impl Watchdog {
    pub(crate) fn new(stall_max: Duration, now: Instant) -> Self {
        Self { stall_max, looked_at: now, steps: 0, silent: Duration::ZERO, spoken: 0, unanswered: None }
    }

    /// Time between two looks.
    pub(crate) fn interval(&self) -> Duration {
        self.stall_max / LOOKS
    }

    /// An engine did a step.
    pub(crate) fn progressed(&mut self) {
        (self.silent, self.spoken) = (Duration::ZERO, 0);
    }

    /// Takes a look.
    pub(crate) fn look(&mut self, now: Instant) -> Look {
        // A suspended orchestrator finds a gap: that was no time in which anybody could have worked.
        let passed = (now - self.looked_at).min(2 * self.interval());
        self.looked_at = now;
        self.silent += passed;
        match &mut self.unanswered {
            None => {
                self.unanswered = Some(Duration::ZERO);
                Look::Ask
            }
            Some(unanswered) => {
                *unanswered += passed;
                if *unanswered > DEAF_MIN.max(2 * self.stall_max) {
                    Look::Deaf(*unanswered)
                } else {
                    Look::Wait
                }
            }
        }
    }

    /// Takes the packer's answer; returns how long nothing has happened if it is time to say so.
    pub(crate) fn stood(&mut self, standing: &Standing) -> Option<Duration> {
        self.unanswered = None;
        if standing.steps != self.steps {
            self.steps = standing.steps;
            self.progressed();
            return None;
        }
        if self.silent < self.stall_max.saturating_mul(1 << self.spoken.min(16)) {
            return None;
        }
        self.spoken += 1;
        Some(self.silent)
    }
}

/// Who holds the run up, in words.
///
/// `device`: the name and, if it takes no batches, the state of a device.
pub(crate) fn holdups(standing: &Standing, devices: &[(String, &'static str)]) -> String {
    let seconds = |time: Duration| format!("{:.0} s", time.as_secs_f64());
    let mut holdups = Vec::new();
    if let Some((batch, worker, segment, since)) = standing.lent.iter().max_by_key(|lent| lent.3) {
        let name = &devices[worker.device.0].0;
        holdups.push(format!(
            "{name} (generation {}) has had batch {batch} of segment {segment} for {}",
            worker.generation.0,
            seconds(*since)
        ));
    } else if standing.pending > 0 {
        let states: Vec<String> = devices.iter().map(|(name, state)| format!("{name} is {state}")).collect();
        holdups.push(format!("{} batches wait for a device: {}", standing.pending, states.join(", ")));
    }
    if let Some(since) = standing.reading {
        holdups.push(format!("the reader has been at the next segment for {}", seconds(since)));
    }
    if let Some((segment, since)) = standing.writing {
        holdups.push(format!("the writer has been at segment {segment} for {}", seconds(since)));
    }
    if holdups.is_empty() { "nobody has anything to do".to_owned() } else { holdups.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{BatchId, DeviceIndex, Generation, SegmentId, Worker};

    const STALL: Duration = Duration::from_secs(40);

    fn standing(steps: u64) -> Standing {
        Standing { steps, lent: vec![], pending: 0, reading: None, writing: None }
    }

    /// Patrols for `seconds` with a packer that answers `steps`; returns the times it spoke at.
    fn patrol(watchdog: &mut Watchdog, start: Instant, seconds: u64, steps: impl Fn(u64) -> u64) -> Vec<u64> {
        let mut words = Vec::new();
        for second in (0..=seconds).step_by(10) {
            assert_eq!(watchdog.look(start + Duration::from_secs(second)), Look::Ask);
            if watchdog.stood(&standing(steps(second))).is_some() {
                words.push(second);
            }
        }
        words
    }

    #[test]
    fn it_speaks_when_nothing_happens_and_ever_more_seldom() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(STALL, start);
        assert_eq!(patrol(&mut watchdog, start, 400, |_| 0), [40, 80, 160, 320]);
    }

    #[test]
    fn progress_keeps_it_quiet() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(STALL, start);
        assert!(patrol(&mut watchdog, start, 400, |second| second / 30).is_empty());
    }

    #[test]
    fn a_suspended_orchestrator_is_no_stall() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(STALL, start);
        assert_eq!(watchdog.look(start + Duration::from_secs(3600)), Look::Ask);
        assert_eq!(watchdog.stood(&standing(0)), None);
    }

    #[test]
    fn a_packer_that_does_not_answer_is_found() {
        let start = Instant::now();
        let mut watchdog = Watchdog::new(STALL, start);
        assert_eq!(watchdog.look(start), Look::Ask);
        let looks: Vec<Look> = (1..=9).map(|n| watchdog.look(start + Duration::from_secs(10 * n))).collect();
        assert_eq!(looks[..8], [Look::Wait; 8]);
        assert_eq!(looks[8], Look::Deaf(Duration::from_secs(90)));
    }

    #[test]
    fn the_one_who_holds_things_up_is_named() {
        let worker =
            |device, generation| Worker { device: DeviceIndex(device), generation: Generation(generation) };
        let devices = [("sim:0".to_owned(), "loading"), ("sim:1".to_owned(), "ready")];
        let mut now = standing(3);
        now.lent = vec![
            (BatchId(7), worker(1, 2), SegmentId(4), Duration::from_secs(61)),
            (BatchId(9), worker(0, 0), SegmentId(4), Duration::from_secs(2)),
        ];
        now.writing = Some((SegmentId(3), Duration::from_secs(50)));
        assert_eq!(
            holdups(&now, &devices),
            "sim:1 (generation 2) has had batch 7 of segment 00004 for 61 s; the writer has been at segment \
             00003 for 50 s"
        );
        let waiting = Standing { pending: 5, ..standing(3) };
        assert_eq!(
            holdups(&waiting, &devices),
            "5 batches wait for a device: sim:0 is loading, sim:1 is ready"
        );
    }
}
