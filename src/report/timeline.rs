//! What a run did over time, all sessions one behind the other, in steps of equal length.
//!
//! Samples tell sums; a batch counts when it is done. So that a batch of ten seconds is no spike, what a device did
//! between two samples is spread over the time that it says it computed, back from the later one.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::recorder::{Series, SessionSeries};

/// Most steps: about as many as a chart has room for.
const STEPS_MAX: usize = 160;

/// Tokens per second and devices at work, step by step. Time between sessions is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Timeline {
    /// Length of a step.
    pub(super) step_s: f64,
    /// Time of all sessions together.
    pub(super) total_s: f64,
    /// Where sessions begin.
    pub(super) sessions_start_s: Vec<f64>,
    /// Tokens computed per second in each step.
    pub(super) tokens_per_s: Vec<f64>,
    /// Share of each step that a device computed, 0..=1, by its name.
    pub(super) devices_busy: BTreeMap<String, Vec<f64>>,
}

impl Timeline {
    /// Of everything that was recorded.
    pub(super) fn of(series: &Series) -> Self {
        let total_s: f64 = series.sessions.values().map(|session| session.elapsed_s()).sum();
        let between = |session: &SessionSeries| session.samples.len().saturating_sub(1);
        let samples: usize = series.sessions.values().map(between).sum();
        if total_s <= 0.0 || !total_s.is_finite() {
            return Self::default();
        }
        // No finer than what was looked at: between two samples nothing is known.
        let steps = samples.clamp(1, STEPS_MAX);
        let step_s = total_s / steps as f64;
        let mut tokens = Steps::new(steps, step_s);
        let mut busy: BTreeMap<String, Steps> = BTreeMap::new();
        let mut sessions_start_s = Vec::new();
        let mut start_s = 0.0;
        for session in series.sessions.values() {
            sessions_start_s.push(start_s);
            let mut before: BTreeMap<&str, (u64, f64)> = BTreeMap::new();
            let mut before_s = 0.0;
            for (at_s, sample) in &session.samples {
                for device in &sample.devices {
                    let (tokens_before, compute_before) =
                        before.insert(&device.name, (device.tokens, device.compute_s)).unwrap_or_default();
                    let gained = device.tokens.saturating_sub(tokens_before) as f64;
                    let computed = (device.compute_s - compute_before).max(0.0);
                    // Where no time is told, all between the two samples counts.
                    let from = if computed > 0.0 { (at_s - computed).max(0.0) } else { before_s };
                    tokens.add(gained, start_s + from, start_s + at_s);
                    let steps = busy
                        .entry(device.name.clone())
                        .or_insert_with(|| Steps::new(tokens.sums.len(), step_s));
                    steps.add(computed, start_s + from, start_s + at_s);
                }
                before_s = *at_s;
            }
            start_s += session.elapsed_s();
        }
        let per_second = |sum: &f64| sum / step_s;
        Self {
            step_s,
            total_s,
            sessions_start_s,
            tokens_per_s: tokens.sums.iter().map(per_second).collect(),
            devices_busy: busy
                .into_iter()
                .map(|(name, steps)| (name, steps.sums.iter().map(|sum| per_second(sum).min(1.0)).collect()))
                .collect(),
        }
    }
}

/// Sums by steps of time.
struct Steps {
    step_s: f64,
    sums: Vec<f64>,
}

impl Steps {
    fn new(steps: usize, step_s: f64) -> Self {
        Self { step_s, sums: vec![0.0; steps] }
    }

    /// Spreads an amount evenly over a stretch of time.
    fn add(&mut self, amount: f64, from_s: f64, to_s: f64) {
        let last = self.sums.len() - 1;
        let length = to_s - from_s;
        if amount <= 0.0 || !amount.is_finite() || !from_s.is_finite() || !to_s.is_finite() {
            return;
        }
        let step_of = |at_s: f64| ((at_s / self.step_s) as usize).min(last);
        let (first, end) = (step_of(from_s), step_of(to_s));
        if length <= 0.0 || first == end {
            self.sums[end] += amount;
            return;
        }
        for step in first..=end {
            let (step_from, step_to) = (step as f64 * self.step_s, (step + 1) as f64 * self.step_s);
            let to = if step == last { to_s } else { to_s.min(step_to) };
            self.sums[step] += amount * (to - from_s.max(step_from)).max(0.0) / length;
        }
    }
}

#[cfg(test)]
mod tests {
    use actors::DeviceState;

    use super::*;
    use crate::recorder::{DeviceSample, Sample};

    fn sample(tokens: u64, compute_s: f64) -> Sample {
        let device = DeviceSample {
            name: "sim:0".to_owned(),
            state: DeviceState::Ready,
            generation: 0,
            tokens,
            compute_s,
            restarts: 0,
            resident_bytes: None,
            gpu_busy: None,
            gpu_memory_bytes: None,
            gpu_temperature_c: None,
            gpu_power_w: None,
        };
        Sample { tokens, devices: vec![device], ..Sample::default() }
    }

    fn series(sessions: &[&[(f64, u64, f64)]]) -> Series {
        let session = |samples: &&[(f64, u64, f64)]| SessionSeries {
            samples: samples.iter().map(|&(at, tokens, compute)| (at, sample(tokens, compute))).collect(),
            ..SessionSeries::default()
        };
        Series { sessions: (1..).zip(sessions.iter().map(session)).collect() }
    }

    #[test]
    fn a_long_batch_counts_for_the_time_that_it_took() {
        // One batch of four seconds, seen when it was done.
        let timeline = Timeline::of(&series(&[&[
            (0.0, 0, 0.0),
            (1.0, 0, 0.0),
            (2.0, 0, 0.0),
            (3.0, 0, 0.0),
            (4.0, 0, 0.0),
            (5.0, 400, 4.0),
        ]]));
        assert_eq!(timeline.step_s, 1.0);
        assert_eq!(timeline.tokens_per_s, [0.0, 100.0, 100.0, 100.0, 100.0]);
        assert_eq!(timeline.devices_busy["sim:0"], [0.0, 1.0, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn sessions_stand_one_behind_the_other_and_nothing_is_lost() {
        let timeline =
            Timeline::of(&series(&[&[(0.0, 0, 0.0), (2.0, 1000, 1.5)], &[(1.0, 300, 0.7), (4.0, 500, 1.2)]]));
        assert_eq!(timeline.sessions_start_s, [0.0, 2.0]);
        assert_eq!(timeline.total_s, 6.0);
        let tokens: f64 = timeline.tokens_per_s.iter().map(|rate| rate * timeline.step_s).sum();
        assert!((tokens - 1500.0).abs() < 1e-6, "{tokens}");
        assert!(timeline.devices_busy["sim:0"].iter().all(|share| (0.0..=1.0).contains(share)));
    }

    #[test]
    fn a_run_without_time_has_no_timeline() {
        assert_eq!(Timeline::of(&Series::default()), Timeline::default());
        assert_eq!(Timeline::of(&series(&[&[(0.0, 5, 0.0)]])), Timeline::default());
    }

    #[test]
    fn a_long_run_has_no_more_steps_than_a_chart_has_room() {
        let samples: Vec<_> =
            (0..5000).map(|at| (f64::from(at), at as u64 * 10, f64::from(at) / 2.0)).collect();
        let timeline = Timeline::of(&series(&[&samples]));
        assert_eq!(timeline.tokens_per_s.len(), STEPS_MAX);
        assert!(timeline.tokens_per_s.iter().all(|rate| (rate - 10.0).abs() < 0.5));
    }
}
