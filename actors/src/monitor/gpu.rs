//! The monitor's thread of one NVIDIA GPU: asks the driver once a second, and says what an operator must know.
//!
//! Calls into the driver block, for seconds when a GPU is about to be lost, so they are made here and never in
//! an actor. What is worth a line in the log is decided by [`Account`], a plain value.

use std::thread::JoinHandle;
use std::time::Duration;

use kernels::nvml::{GpuIdentity, GpuSample, Library, Nvml, NvmlError, XidTally, xid_meaning};
use tokio::sync::oneshot;

use crate::bounds;
use crate::identity::DeviceIndex;
use crate::telemetry::{EventLevel, GpuView, Happening, Reporter, TelemetryMessage};

/// Time between two samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two tries while the GPU is lost or the driver does not answer: each may take seconds, and what
/// brings a GPU back is a person.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);
/// A call into a broken driver may never return: its thread is then left behind.
const STOP_MAX: Duration = Duration::from_secs(1);

/// Which GPU to watch, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GpuWatch {
    /// The device's name: `cuda:0`.
    pub(super) device_name: String,
    /// The GPU as the driver finds it: index, UUID or PCI id.
    pub(super) which: String,
    pub(super) library: Library,
    pub(super) sample_interval: Duration,
    pub(super) retry_interval: Duration,
}

impl GpuWatch {
    /// The GPU behind a device, by a name that the driver knows; `None` for a device that is no NVIDIA GPU.
    pub(crate) fn of_device(name: &str, which: Option<&str>) -> Option<Self> {
        Some(Self {
            device_name: name.to_owned(),
            which: which?.to_owned(),
            library: Library::from_environment(),
            sample_interval: SAMPLE_INTERVAL,
            retry_interval: RETRY_INTERVAL,
        })
    }

    /// Starts the thread; it reports to telemetry until it is told to stop or forgotten.
    pub(super) fn start(self, device: DeviceIndex, telemetry: Reporter) -> std::io::Result<GpuThread> {
        let (stop, stopped) = flume::bounded(bounds::MONITOR_WORDS);
        let (ended_sender, ended) = oneshot::channel();
        let (name, thread_name) = (self.device_name.clone(), format!("nvml {}", self.device_name));
        let thread = crate::thread::spawn_watched(
            &thread_name,
            move || {
                let report = |view| {
                    telemetry.tell(TelemetryMessage::GpuSampled { device, view: Box::new(view) });
                };
                self.watch(&stopped, &telemetry, report);
                drop(ended_sender);
            },
            move |panic| tracing::warn!(device = name, panic, "GPU is not watched any more"),
        )?;
        Ok(GpuThread { stop, ended, thread })
    }

    /// Samples until it is told to stop; whatever goes wrong is tried again, from the library on: a driver that
    /// was loaded anew answers only to those who start anew.
    fn watch(&self, stop: &flume::Receiver<()>, telemetry: &Reporter, mut report: impl FnMut(GpuView)) {
        let mut account = Account::default();
        while let Err(error) = self.sample_until_stopped(&mut account, stop, telemetry, &mut report) {
            self.log(&account, account.news_of_failure(&error), telemetry);
            account.failed(error);
            report(account.view.clone());
            if stopped_within(stop, self.retry_interval) {
                return;
            }
        }
    }

    /// `Ok` once it was told to stop.
    fn sample_until_stopped(
        &self,
        account: &mut Account,
        stop: &flume::Receiver<()>,
        telemetry: &Reporter,
        report: &mut impl FnMut(GpuView),
    ) -> Result<(), NvmlError> {
        let nvml = Nvml::open(&self.library)?;
        let mut gpu = nvml.gpu(&self.which)?;
        gpu.watch_xid();
        loop {
            let sampled = gpu.sample();
            // First: the error that took a GPU away is told with its last sample.
            let news = account.xid(gpu.xid());
            self.log(account, news, telemetry);
            let sample = sampled?;
            let news = account.heat(&sample);
            self.log(account, news, telemetry);
            let news = account.sampled(gpu.identity(), sample);
            self.log(account, news, telemetry);
            report(account.view.clone());
            if stopped_within(stop, self.sample_interval) {
                return Ok(());
            }
        }
    }

    fn log(&self, account: &Account, news: Option<News>, telemetry: &Reporter) {
        let device = &self.device_name;
        let gpu = account.view.identity.name.as_deref().unwrap_or("NVIDIA GPU");
        if let Some(news) = &news {
            let (level, text) = news.in_words();
            telemetry.event(Happening::of_device(level, device.as_str(), text).often("events of GPUs"));
        }
        match news {
            None => {}
            Some(News::Hot(why)) => tracing::warn!(device, gpu, why, "GPU slows down by its temperature"),
            Some(News::Cool) => tracing::info!(device, gpu, "GPU is cool enough again"),
            Some(News::Lost(error)) => tracing::warn!(device, gpu, error, "GPU lost"),
            Some(News::Unwatched(error)) => tracing::warn!(device, gpu, error, "GPU is not watched"),
            Some(News::Back) => tracing::info!(device, gpu, "GPU is watched again"),
            Some(News::Xid { number, meaning }) => {
                tracing::warn!(device, gpu, xid = number, meaning, "GPU reports a critical error");
            }
        }
    }
}

/// Waits; whether the owner wants the thread to end.
fn stopped_within(stop: &flume::Receiver<()>, pause: Duration) -> bool {
    !matches!(stop.recv_timeout(pause), Err(flume::RecvTimeoutError::Timeout))
}

/// The thread, and the ways to end it; it also ends by itself once this is dropped.
pub(crate) struct GpuThread {
    /// Never sent on: closing it is the message.
    stop: flume::Sender<()>,
    /// Closed by the thread at its end.
    ended: oneshot::Receiver<()>,
    thread: JoinHandle<()>,
}

impl GpuThread {
    /// Ends the thread and waits for it, but not for ever.
    pub(super) async fn stop(self) {
        drop(self.stop);
        if tokio::time::timeout(STOP_MAX, self.ended).await.is_ok() {
            crate::thread::join(Some(self.thread)).await;
        }
    }
}

/// What is worth a line in the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    Lost(String),
    Unwatched(String),
    Back,
    Xid {
        number: Option<u64>,
        meaning: Option<&'static str>,
    },
    /// Its clocks are lowered, in the driver's reasons.
    Hot(String),
    Cool,
}

impl News {
    fn in_words(&self) -> (EventLevel, String) {
        match self {
            Self::Lost(error) => (EventLevel::Error, format!("GPU lost: {error}")),
            Self::Unwatched(error) => (EventLevel::Warning, format!("GPU is not watched: {error}")),
            Self::Back => (EventLevel::Info, "GPU is watched again".to_owned()),
            Self::Xid { number, meaning } => {
                let number = number.map_or("unknown".to_owned(), |number| number.to_string());
                let meaning = meaning.map(|meaning| format!(": {meaning}")).unwrap_or_default();
                (EventLevel::Error, format!("GPU reports a critical error (Xid {number}){meaning}"))
            }
            Self::Hot(why) => (EventLevel::Warning, format!("GPU is hot and slows down ({why})")),
            Self::Cool => (EventLevel::Info, "GPU is cool enough again".to_owned()),
        }
    }
}

/// What is known of the GPU, and what of it was said already.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) view: GpuView,
    failure: Option<NvmlError>,
    xid_told: u64,
    is_hot: bool,
}

/// How the reasons begin for which a GPU is slow because it is hot.
const HEAT: &str = "temperature";

impl Account {
    /// What to say about this failure: each is said once, until it changes or is over.
    pub(super) fn news_of_failure(&self, error: &NvmlError) -> Option<News> {
        if self.failure.as_ref() == Some(error) {
            return None;
        }
        let text = error.to_string();
        Some(if error.is_loss() { News::Lost(text) } else { News::Unwatched(text) })
    }

    pub(super) fn failed(&mut self, error: NvmlError) {
        self.failure = Some(error);
        self.view.sample = None;
        // Who starts anew counts anew.
        self.xid_told = 0;
    }

    pub(super) fn sampled(&mut self, identity: &GpuIdentity, sample: GpuSample) -> Option<News> {
        self.view = GpuView { identity: identity.clone(), sample: Some(sample) };
        self.failure.take().map(|_| News::Back)
    }

    /// Whether heat has begun or ceased to slow it down; to be asked before the sample is taken in.
    pub(super) fn heat(&mut self, sample: &GpuSample) -> Option<News> {
        let reasons = sample.throttled_by.as_ref()?;
        let reason = reasons.iter().find(|reason| reason.starts_with(HEAT));
        let was_hot = std::mem::replace(&mut self.is_hot, reason.is_some());
        match reason {
            Some(reason) if !was_hot => Some(News::Hot(match sample.temperature_c {
                Some(degrees) => format!("{reason}, {degrees} °C"),
                None => reason.clone(),
            })),
            None if was_hot => Some(News::Cool),
            Some(_) | None => None,
        }
    }

    pub(super) fn xid(&mut self, tally: Option<XidTally>) -> Option<News> {
        let tally = tally.filter(|tally| tally.count > self.xid_told)?;
        self.xid_told = tally.count;
        Some(News::Xid { number: tally.last, meaning: tally.last.and_then(xid_meaning) })
    }
}
