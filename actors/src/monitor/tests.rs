//! Monitors, those of GPUs with the tests' own management library.

#[path = "../../../tests/fake_nvml/fake.rs"]
mod fake;

use std::sync::Arc;
use std::time::{Duration, Instant};

use fake::{FakeNvml, TWO_GPUS};
use kernels::nvml::{GpuIdentity, GpuSample, Library, NvmlError, XidTally};
use tokio::sync::watch;

use super::gpu::{Account, News};
use super::*;
use crate::telemetry::{DeviceState, DeviceView, GpuView, Snapshot, Telemetry, TelemetryArguments};

/// Nothing here takes a hundredth of it.
const DEADLINE: Duration = Duration::from_secs(20);

struct Watched {
    monitor: ActorRef<MonitorMessage>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

impl Watched {
    async fn start(device_name: &str, library: Library) -> Self {
        let view = DeviceView {
            name: device_name.to_owned(),
            state: DeviceState::Ready,
            generation: 0,
            tokens: 0,
            compute_s: 0.0,
            cpu_cores: None,
            resident_bytes: None,
            gpu: None,
            token_budget: 16_384,
            tokens_per_s_now: 0.0,
            busy_share_now: None,
            restarts: 0,
            heartbeat_age_s: None,
            last_error: None,
        };
        let first = Snapshot { devices: vec![view], ..Snapshot::default() };
        let (publisher, snapshots) = watch::channel(Arc::new(first.clone()));
        let arguments = TelemetryArguments { first, snapshots: publisher };
        let (telemetry, _) = Actor::spawn(None, Telemetry, arguments).await.unwrap();
        let gpu = GpuWatch::of_device(device_name, device_name.strip_prefix("cuda:")).map(|watch| GpuWatch {
            library,
            sample_interval: Duration::from_millis(5),
            retry_interval: Duration::from_millis(10),
            ..watch
        });
        let telemetry = Reporter::new(telemetry);
        let arguments = MonitorArguments { device: DeviceIndex(0), gpu, telemetry };
        let (monitor, _) = Actor::spawn(None, Monitor, arguments).await.unwrap();
        Self { monitor, snapshots }
    }

    /// Waits until telemetry shows what is asked for.
    async fn shows(&mut self, what: &str, wanted: impl Fn(&GpuView) -> bool) -> GpuView {
        let shown = |snapshot: &Arc<Snapshot>| snapshot.devices[0].gpu.as_ref().is_some_and(&wanted);
        let found = tokio::time::timeout(DEADLINE, self.snapshots.wait_for(shown)).await;
        let snapshot = found.unwrap_or_else(|_| panic!("never shown: {what}")).unwrap();
        snapshot.devices[0].gpu.clone().unwrap()
    }
}

/// Whether this process has the file loaded.
fn is_loaded(library: &FakeNvml) -> bool {
    let path = library.path();
    std::fs::read_to_string("/proc/self/maps").unwrap().contains(path.to_str().unwrap())
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn this_process_uses_time_and_memory() {
    let usage = process_usage(std::process::id()).unwrap();
    assert!(usage.resident_bytes > 100_000, "{}", usage.resident_bytes);
    assert!(process_usage(u32::MAX).is_none());
}

#[tokio::test]
async fn a_gpu_is_sampled_again_and_again() {
    let fake = FakeNvml::new(TWO_GPUS);
    let mut watched = Watched::start("cuda:0", Library::At(fake.path())).await;
    let view = watched.shows("a sample", |view| view.sample.is_some()).await;
    assert_eq!(view.identity.name.as_deref(), Some("NVIDIA H100 80GB HBM3"));
    assert_eq!(view.sample.unwrap().memory_share, Some(0.925));
    fake.answers(&TWO_GPUS.replace("temperature 61", "temperature 88"));
    let temperature = |view: &GpuView| view.sample.as_ref().and_then(|sample| sample.temperature_c);
    watched.shows("the new temperature", |view| temperature(view) == Some(88)).await;
    // What displays and files get of it: absent fields as null.
    let snapshot = serde_json::to_value(&**watched.snapshots.borrow()).unwrap();
    let gpu = &snapshot["devices"][0]["gpu"];
    assert_eq!(gpu["sample"]["throttled_by"], serde_json::json!(["power limit", "temperature"]));
    assert_eq!(gpu["identity"]["capability"]["major"], 9);
    fake.answers("count 1\n0.name bare");
    let bare = watched.shows("a bare sample", |view| temperature(view).is_none()).await;
    assert_eq!(bare.sample.unwrap().memory_share, None);
    let snapshot = serde_json::to_value(&**watched.snapshots.borrow()).unwrap();
    assert!(snapshot["devices"][0]["gpu"]["sample"]["power_w"].is_null());
}

#[tokio::test]
async fn a_lost_gpu_keeps_its_name_and_is_shown_again_when_it_is_back() {
    let fake = FakeNvml::new(TWO_GPUS);
    let uuid = "GPU-8f6d5a1e-0000-1111-2222-333344445555";
    let mut watched = Watched::start(&format!("cuda:{uuid}"), Library::At(fake.path())).await;
    watched.shows("a sample", |view| view.sample.is_some()).await;
    fake.answers(&format!("{TWO_GPUS}\n0 !15"));
    let lost = watched.shows("the loss", |view| view.sample.is_none()).await;
    assert_eq!(lost.identity.uuid.as_deref(), Some(uuid));
    fake.answers(TWO_GPUS);
    watched.shows("the return", |view| view.sample.is_some()).await;
}

#[tokio::test]
async fn a_machine_without_the_library_costs_nothing_but_the_samples() {
    let mut watched = Watched::start("cuda:0", Library::At("/nowhere/libnvidia-ml.so.1".into())).await;
    let view = watched.shows("an empty view", |_| true).await;
    assert_eq!(view, GpuView::default());
    watched.monitor.cast(MonitorMessage::Watch(Some(std::process::id()))).unwrap();
    watched.monitor.cast(MonitorMessage::Sample).unwrap();
    let worker = |snapshot: &Arc<Snapshot>| snapshot.devices[0].resident_bytes.is_some();
    tokio::time::timeout(DEADLINE, watched.snapshots.wait_for(worker)).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_thread_ends_with_its_monitor() {
    for kill in [false, true] {
        let fake = FakeNvml::new(TWO_GPUS);
        let mut watched = Watched::start("cuda:0", Library::At(fake.path())).await;
        watched.shows("a sample", |view| view.sample.is_some()).await;
        assert!(is_loaded(&fake));
        if kill {
            watched.monitor.kill();
            eventually("the library is let go", || !is_loaded(&fake)).await;
        } else {
            watched.monitor.stop_and_wait(None, Some(DEADLINE)).await.unwrap();
            assert!(!is_loaded(&fake));
        }
    }
}

#[tokio::test]
async fn a_driver_that_hangs_does_not_keep_its_monitor() {
    let fake = FakeNvml::new(TWO_GPUS);
    let mut watched = Watched::start("cuda:0", Library::At(fake.path())).await;
    watched.shows("a sample", |view| view.sample.is_some()).await;
    fake.answers(&format!("{TWO_GPUS}\n0.hangs yes"));
    let sign = fake.path().with_extension("so.hangs");
    eventually("the call hangs", || sign.exists()).await;
    watched.monitor.stop_and_wait(None, Some(DEADLINE)).await.unwrap();
}

#[test]
fn only_nvidia_devices_have_a_gpu_to_watch() {
    for name in ["cpu", "sim:0"] {
        assert_eq!(GpuWatch::of_device(name, None), None);
    }
    // By a name that means the same in every environment.
    let watch = GpuWatch::of_device("cuda:0", Some("GPU-8f6d5a1e")).unwrap();
    assert_eq!((watch.device_name.as_str(), watch.which.as_str()), ("cuda:0", "GPU-8f6d5a1e"));
}

#[test]
fn a_loss_is_said_once_and_so_is_the_return() {
    let mut account = Account::default();
    let lost = NvmlError::Lost { gpu: "0".to_owned(), reason: "gone" };
    let silent = NvmlError::DriverNotLoaded;
    assert!(
        matches!(account.news_of_failure(&lost), Some(News::Lost(text)) if text.contains("GPU `0` is lost"))
    );
    account.failed(lost.clone());
    assert_eq!(account.news_of_failure(&lost), None);
    assert!(matches!(account.news_of_failure(&silent), Some(News::Unwatched(_))));
    account.failed(silent);
    let sample = || (GpuIdentity::default(), GpuSample::default());
    let (identity, first) = sample();
    assert_eq!(account.sampled(&identity, first), Some(News::Back));
    let (identity, second) = sample();
    assert_eq!(account.sampled(&identity, second), None);
    assert!(account.news_of_failure(&lost).is_some());
}

#[test]
fn a_critical_error_is_said_once() {
    let mut account = Account::default();
    let tally = |count, last| Some(XidTally { count, last });
    assert_eq!(account.xid(None), None);
    assert_eq!(account.xid(tally(0, None)), None);
    let Some(News::Xid { number: Some(79), meaning: Some(_) }) = account.xid(tally(1, Some(79))) else {
        panic!("not said");
    };
    assert_eq!(account.xid(tally(1, Some(79))), None);
    assert_eq!(account.xid(tally(3, None)), Some(News::Xid { number: None, meaning: None }));
    account.failed(NvmlError::DriverNotLoaded);
    assert!(account.xid(tally(1, Some(31))).is_some());
}

#[test]
fn heat_is_told_when_it_begins_and_when_it_ceases() {
    let sample = |reasons: &[&str]| GpuSample {
        temperature_c: Some(91),
        throttled_by: Some(reasons.iter().map(|reason| (*reason).to_owned()).collect()),
        ..GpuSample::default()
    };
    let mut account = Account::default();
    assert_eq!(account.heat(&sample(&["power limit"])), None);
    let hot = News::Hot("temperature (hardware), 91 °C".to_owned());
    assert_eq!(account.heat(&sample(&["power limit", "temperature (hardware)"])), Some(hot));
    assert_eq!(account.heat(&sample(&["temperature"])), None);
    // A driver that does not tell says nothing about heat.
    assert_eq!(account.heat(&GpuSample::default()), None);
    assert_eq!(account.heat(&sample(&[])), Some(News::Cool));
    assert_eq!(account.heat(&sample(&[])), None);
}
