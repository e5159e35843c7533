//! Logs: to standard error as the job says, and to `run.log`; while a dashboard has the screen, to it instead of
//! standard error.
//!
//! Where standard error is the journal's, lines begin with their priority (`<4>` for a warning) in place of the time,
//! which the journal has of its own.
//!
//! Nobody who logs waits for a disk or a reader: both ways lead through an [`Outlet`].

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use actors::{EventLevel, bounds};
use indicatif::{MultiProgress, ProgressDrawTarget};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{EnvFilter, LevelFilter, filter_fn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{self, FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::dashboard::screen;
use crate::failure::{Exit, Failure};
use crate::outlet::Outlet;
use crate::progress::Display;
use crate::stderr;

/// The modules that log, as a filter may name them; those above them may be named, too.
const MODULES: [&str; 23] = [
    "actors::inference",
    "actors::journal",
    "actors::monitor::gpu",
    "actors::obstacle",
    "actors::packer",
    "actors::supervisor",
    "actors::writer",
    "kernels::cpu::threads",
    "virnucpro_orch::control",
    "virnucpro_orch::dashboard::live",
    "virnucpro_orch::dashboard::screen",
    "virnucpro_orch::metrics",
    "virnucpro_orch::outlet",
    "virnucpro_orch::preparation",
    "virnucpro_orch::progress",
    "virnucpro_orch::recorder",
    "virnucpro_orch::report",
    "virnucpro_orch::result_folder",
    "virnucpro_orch::result_folder::lock",
    "virnucpro_orch::run",
    "virnucpro_orch::signals",
    "virnucpro_orch::summary",
    "virnucpro_orch::worker",
];

/// The progress bars on standard error, so that log lines are written above them.
pub(crate) fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    BARS.get_or_init(|| {
        MultiProgress::with_draw_target(match io::IsTerminal::is_terminal(&io::stderr()) {
            true => {
                ProgressDrawTarget::term_like_with_hz(Box::new(stderr::Bars::default()), FRAMES_PER_S_MAX)
            }
            false => ProgressDrawTarget::hidden(),
        })
    })
}

/// Most frames of the bars in a second.
const FRAMES_PER_S_MAX: u8 = 20;

/// Standard error without tearing a progress bar.
#[derive(Clone, Copy)]
struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if screen::is_taken() {
            // The dashboard and `run.log` tell it.
        } else if bars().is_hidden() {
            stderr::log(bytes);
        } else {
            // Not `suspend`, which panics when the terminal is gone.
            let _ = bars().println(String::from_utf8_lossy(bytes).trim_end_matches('\n'));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for AboveBars {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        *self
    }
}

/// Checks the filter of a job before anything is begun; from here on errors are told as its log is.
///
/// # Errors
/// If it cannot be read, or names what never logs: it would let nothing through, and nobody would know why.
pub(crate) fn check(telemetry: &config::Telemetry) -> Result<(), Failure> {
    SPEAKS_JSON.store(telemetry.log_format == config::LogFormat::Json, Ordering::Relaxed);
    filter(&telemetry.log).map(drop)
}

fn filter(text: &str) -> Result<EnvFilter, Failure> {
    let allowed = || {
        let modules = MODULES.join(", ");
        format!(
            "levels are off, error, warn, info, debug and trace; modules are actors, kernels, virnucpro_orch, {modules}; \
             as in \"info,actors::packer=debug\""
        )
    };
    for directive in text.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        let module = directive.split(['=', '[']).next().unwrap_or_default().trim();
        if directive.parse::<LevelFilter>().is_err() && !module.is_empty() && !logs(module) {
            let text =
                format!("telemetry.log = {text:?}: `{module}` is neither a level nor a module that logs");
            return Err(Failure::new(Exit::Usage, text).hint(allowed()));
        }
    }
    // The actor framework wraps every line in a span of its own, which tells nobody anything.
    EnvFilter::builder()
        .parse(format!("{text},ractor=error"))
        .map_err(|error| Failure::because(Exit::Usage, &error).hint(allowed()))
}

/// Whether a module, or one inside it, logs.
fn logs(module: &str) -> bool {
    let inside = |known: &str| {
        known.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    MODULES.iter().any(|known| inside(known))
}

/// Starts logging for a run.
///
/// On a terminal with a bar or a dashboard only warnings go to standard error; `run.log` gets everything that
/// the job's filter lets through.
pub(crate) fn start(telemetry: &config::Telemetry, log: &Path, display: Display) -> Result<(), Failure> {
    let file = File::options().create(true).append(true).open(log).and_then(log_outlet).map_err(|error| {
        Failure::new(Exit::Failed, format!("failed to open log `{}`: {error}", log.display()))
    })?;
    let to_file = fmt::layer().with_ansi(false).with_target(false).with_writer(move || file);
    let stderr_filter = if display.has_bar() { "warn" } else { &telemetry.log };
    let told = filter_fn(belongs_to_dashboard).with_max_level_hint(LevelFilter::WARN);
    let to_dashboard = (display == Display::Dashboard).then(|| ToDashboard.with_filter(told));
    let registry =
        tracing_subscriber::registry().with(to_file.with_filter(filter(&telemetry.log)?)).with(to_dashboard);
    let to_stderr = fmt::layer().with_target(false).with_writer(AboveBars);
    match telemetry.log_format {
        config::LogFormat::Text => {
            // The summary stands there in words.
            let stderr_filter = filter(&format!("{stderr_filter},virnucpro_orch::summary=off"))?;
            if is_journal() {
                let format = ForJournal(fmt::format().without_time().with_target(false));
                let to_stderr = to_stderr.with_ansi(false).event_format(format);
                registry.with(to_stderr.with_filter(stderr_filter)).init();
            } else {
                registry.with(to_stderr.with_ansi(is_colourful()).with_filter(stderr_filter)).init();
            }
        }
        config::LogFormat::Json => {
            registry.with(to_stderr.json().with_filter(filter(stderr_filter)?)).init();
        }
    }
    Ok(())
}

/// Whether standard error is a terminal that understands colours, and nobody minds them.
fn is_colourful() -> bool {
    let understands =
        std::env::var_os("TERM").is_some_and(|terminal| !terminal.is_empty() && terminal != "dumb");
    io::IsTerminal::is_terminal(&io::stderr()) && understands && std::env::var_os("NO_COLOR").is_none()
}

/// Whether everything on standard error is JSON lines from now on.
static SPEAKS_JSON: AtomicBool = AtomicBool::new(false);

/// Whether standard error is for machines.
pub(crate) fn speaks_json() -> bool {
    SPEAKS_JSON.load(Ordering::Relaxed)
}

/// A line as those of the log, for what is not logged but said.
pub(crate) fn json_line(level: &str, fields: &serde_json::Value) -> String {
    let mut timestamp = String::new();
    // A time that cannot be written is an empty one.
    let _ = SystemTime.format_time(&mut Writer::new(&mut timestamp));
    serde_json::json!({ "timestamp": timestamp, "level": level, "fields": fields }).to_string()
}

/// Whether standard error leads to the systemd journal: it says so by device and inode.
fn is_journal() -> bool {
    use std::os::unix::fs::MetadataExt;
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/proc/self/fd/2")
        .is_ok_and(|metadata| stream == format!("{}:{}", metadata.dev(), metadata.ino()))
}

/// Lines with their priority in front, which the journal takes off.
struct ForJournal<F>(F);

impl<S, N, F> FormatEvent<S, N> for ForJournal<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}

/// A line of the log, for a dashboard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogLine {
    pub(crate) level: EventLevel,
    pub(crate) device: Option<String>,
    pub(crate) text: String,
}

/// Lines that no dashboard has taken yet; of more than [`bounds::LOG_LINES`] the oldest go.
static LINES: Mutex<VecDeque<LogLine>> = Mutex::new(VecDeque::new());

/// Takes the lines since the last time.
pub(crate) fn take_lines() -> Vec<LogLine> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
}

/// The layer that collects warnings and errors for a dashboard.
struct ToDashboard;

/// What these modules warn of reaches the dashboard as events of the snapshot.
const TOLD_AS_EVENTS: [&str; 5] =
    ["actors::monitor::gpu", "actors::obstacle", "actors::packer", "actors::supervisor", "actors::writer"];

fn belongs_to_dashboard(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::WARN
        && ["actors", "virnucpro_orch"].iter().any(|ours| metadata.target().starts_with(ours))
        && !TOLD_AS_EVENTS.contains(&metadata.target())
}

impl<S: tracing::Subscriber> Layer<S> for ToDashboard {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut words = Words::default();
        event.record(&mut words);
        let level =
            if *event.metadata().level() == Level::ERROR { EventLevel::Error } else { EventLevel::Warning };
        let Words { message, device, fields } = words;
        let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == bounds::LOG_LINES {
            lines.pop_front();
        }
        lines.push_back(LogLine { level, device, text: message + &fields });
    }
}

/// The fields of a log line as text.
#[derive(Default)]
struct Words {
    message: String,
    device: Option<String>,
    fields: String,
}

impl Visit for Words {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            "device" => self.device = Some(value.to_owned()),
            name => self.fields += &format!(" {name}={value}"),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

/// The way to `run.log` during a run.
static LOG: OnceLock<&'static Outlet> = OnceLock::new();

fn log_outlet(mut file: File) -> io::Result<&'static Outlet> {
    // A full disk must not end the run through its log.
    let outlet = Outlet::start("run.log", "log", move |line| drop(file.write_all(line)))?;
    Ok(LOG.get_or_init(|| outlet))
}

/// Waits until everything that was logged and said is written, unless nobody takes it: before each end of the process.
pub(crate) fn flush() {
    stderr::flush();
    if let Some(log) = LOG.get() {
        log.flush();
    }
}

/// Starts logging in a worker: level first, so that the orchestrator can pass the lines on.
pub(crate) fn start_in_worker() {
    tracing_subscriber::fmt()
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .with_writer(io::stderr)
        .init();
}

#[cfg(test)]
mod tests {
    use tracing::{error, info, warn};

    use super::*;

    #[test]
    fn a_dashboard_gets_warnings_that_no_event_tells_and_boundedly_many() {
        let layer = ToDashboard.with_filter(filter_fn(belongs_to_dashboard));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            take_lines();
            info!(target: "actors::inference", "nothing to worry about");
            warn!(target: "actors::packer", "told as an event");
            warn!(target: "actors::inference", device = "sim:3", tries = 2, "driver says {}", "no");
            error!(target: "virnucpro_orch::control", error = %"gone", "socket lost");
            let told = take_lines();
            let line = |level, device: Option<&str>, text: &str| LogLine {
                level,
                device: device.map(str::to_owned),
                text: text.to_owned(),
            };
            assert_eq!(
                told,
                [
                    line(EventLevel::Warning, Some("sim:3"), "driver says no tries=2"),
                    line(EventLevel::Error, None, "socket lost error=gone"),
                ]
            );
            for _ in 0..2 * bounds::LOG_LINES {
                warn!(target: "actors::inference", "again");
            }
            assert_eq!(take_lines().len(), bounds::LOG_LINES);
        });
    }

    /// The modules below `folder` whose source logs.
    fn logging_modules(folder: &Path, module: &str, found: &mut Vec<String>) {
        let macros = ["error!(", "warn!(", "info!(", "debug!(", "trace!("];
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap();
            let inside = match stem {
                "mod" | "lib" | "main" => module.to_owned(),
                stem => format!("{module}::{stem}"),
            };
            if path.is_dir() {
                logging_modules(&path, &inside, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let logs = |name: &str| text.contains(&["tracing::", name].concat());
                if macros.into_iter().any(logs) {
                    found.push(inside);
                }
            }
        }
    }

    #[test]
    fn every_module_that_logs_can_be_named_and_no_other() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut found = Vec::new();
        for (folder, module) in [
            ("src", "virnucpro_orch"),
            ("actors/src", "actors"),
            ("kernels/src", "kernels"),
            ("config/src", "config"),
        ] {
            logging_modules(&root.join(folder), module, &mut found);
        }
        found.sort();
        assert_eq!(found, MODULES);
    }

    #[test]
    fn filters_that_match_nothing_are_refused() {
        for text in [
            "info",
            "WARN",
            "off",
            "3",
            "info,actors=debug",
            "actors::packer=trace, warn",
            "virnucpro_orch",
            "[span]=debug",
        ] {
            assert!(filter(text).is_ok(), "{text}");
        }
        for (text, word) in [
            ("zzz", "zzz"),
            ("inf", "inf"),
            ("info,actor=debug", "actor"),
            ("info,actors::pack=debug", "actors::pack"),
            ("config=debug", "config"),
        ] {
            let failure = filter(text).unwrap_err();
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.line().contains(&format!("`{word}` is neither")), "{}", failure.line());
        }
        assert!(filter("actors=loud").is_err());
    }
}
