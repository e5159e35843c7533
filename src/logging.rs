//! Logs: to standard error as the job says, and to `run.log`.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, OnceLock};

use indicatif::MultiProgress;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::{self, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::failure::{Exit, Failure};

/// The progress bars on standard error, so that log lines are written above them.
pub(crate) fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    BARS.get_or_init(MultiProgress::new)
}

/// Standard error without tearing a progress bar.
#[derive(Clone, Copy)]
struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Nobody may be reading any more (`2>&1 | head`): a log line is no reason to end a run.
        let _ = bars().suspend(|| io::stderr().lock().write_all(bytes));
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

/// Starts logging for a run.
///
/// On a terminal with a progress bar only warnings go to standard error; `run.log` gets everything that
/// the job's filter lets through.
pub(crate) fn start(telemetry: &config::Telemetry, log: &Path, bar: bool) -> Result<(), Failure> {
    let filter = |text: &str| {
        // The actor framework wraps every line in a span of its own, which tells nobody anything.
        EnvFilter::builder().parse(format!("{text},ractor=error")).map_err(|error| {
            Failure::because(Exit::Usage, &error)
                .hint("telemetry.log takes a level (error, warn, info, debug, trace) or a tracing filter")
        })
    };
    let file = File::options().create(true).append(true).open(log).map_err(|error| {
        Failure::new(Exit::Failed, format!("failed to open log `{}`: {error}", log.display()))
    })?;
    let to_file = fmt::layer().with_ansi(false).with_target(false).with_writer(Mutex::new(LogFile(file)));
    let stderr_filter = if bar { "warn" } else { &telemetry.log };
    let registry = tracing_subscriber::registry().with(to_file.with_filter(filter(&telemetry.log)?));
    let to_stderr = fmt::layer().with_target(false).with_writer(AboveBars);
    match telemetry.log_format {
        config::LogFormat::Text => {
            let ansi = io::IsTerminal::is_terminal(&io::stderr()) && std::env::var_os("NO_COLOR").is_none();
            registry.with(to_stderr.with_ansi(ansi).with_filter(filter(stderr_filter)?)).init();
        }
        config::LogFormat::Json => registry.with(to_stderr.json().with_filter(filter(stderr_filter)?)).init(),
    }
    Ok(())
}

/// A full disk must not end the run through its log.
struct LogFile(File);

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
