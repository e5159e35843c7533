//! What the driver's management library says of the GPU while something is measured.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kernels::nvml::{GpuSample, Library, Nvml};

/// Time between two samples; the library's own share of busy time covers as much or more.
const PERIOD: Duration = Duration::from_millis(200);

/// Samples of one GPU on a thread of its own.
pub(super) struct Watch {
    samples: Arc<Mutex<Vec<GpuSample>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What was seen; `None` where the driver does not tell.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) busy_percent: Option<f64>,
    pub(super) clock_mhz: Option<f64>,
    pub(super) power_w: Option<f64>,
    pub(super) memory_peak_bytes: Option<u64>,
    pub(super) slowed_by: Vec<String>,
}

impl Watch {
    /// Begins; without a management library nothing will have been seen.
    ///
    /// `uuid`: as CUDA names the GPU; `None` for what is no GPU.
    pub(super) fn start(uuid: Option<String>) -> Self {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let ended = Arc::new(AtomicBool::new(false));
        let thread = uuid.and_then(|uuid| {
            let (samples, ended) = (samples.clone(), ended.clone());
            let work = move || {
                let Ok(nvml) = Nvml::open(&Library::from_environment()) else { return };
                let Ok(mut gpu) = nvml.gpu(&uuid) else { return };
                while !ended.load(Ordering::Relaxed) {
                    let Ok(sample) = gpu.sample() else { return };
                    samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                    std::thread::sleep(PERIOD);
                }
            };
            std::thread::Builder::new().name("watch".into()).spawn(work).ok()
        });
        Self { samples, ended, thread }
    }

    /// Forgets what was before: the measurement begins.
    pub(super) fn begin(&self) {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What was seen since [`Watch::begin`].
    pub(super) fn seen(&self) -> Seen {
        summarise(&self.samples.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn summarise(samples: &[GpuSample]) -> Seen {
    // The first still covers time before the measurement.
    let settled = if samples.len() > 2 { &samples[1..] } else { samples };
    let mean = |of: fn(&GpuSample) -> Option<f64>| {
        let told: Vec<f64> = settled.iter().filter_map(of).collect();
        (!told.is_empty()).then(|| told.iter().sum::<f64>() / told.len() as f64)
    };
    let mut slowed_by: Vec<String> = Vec::new();
    for reason in settled.iter().flat_map(|sample| sample.throttled_by.iter().flatten()) {
        if !slowed_by.contains(reason) {
            slowed_by.push(reason.clone());
        }
    }
    Seen {
        busy_percent: mean(|sample| sample.busy_percent.map(f64::from)),
        clock_mhz: mean(|sample| sample.clock_sm_mhz.map(f64::from)),
        power_w: mean(|sample| sample.power_w),
        memory_peak_bytes: settled.iter().filter_map(|sample| sample.memory_used_bytes).max(),
        slowed_by,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_up_and_what_is_not_told_stays_absent() {
        let sample = |busy, memory, reason: &str| GpuSample {
            busy_percent: Some(busy),
            memory_used_bytes: Some(memory),
            throttled_by: Some(vec![reason.to_owned()]),
            ..GpuSample::default()
        };
        let seen =
            summarise(&[sample(0, 9, "idle"), sample(90, 5, "power limit"), sample(100, 7, "power limit")]);
        assert_eq!(seen.busy_percent, Some(95.0));
        assert_eq!((seen.memory_peak_bytes, seen.power_w), (Some(7), None));
        assert_eq!(seen.slowed_by, ["power limit"]);
        assert_eq!(summarise(&[]), Seen::default());
    }

    #[test]
    fn what_is_no_gpu_is_not_watched() {
        let watch = Watch::start(None);
        watch.begin();
        assert_eq!(watch.seen(), Seen::default());
    }
}
