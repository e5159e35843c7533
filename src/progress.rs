//! Progress for people: the dashboard or a bar on a terminal, otherwise a key=value line now and then.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use actors::packing::Fill;
use actors::{DeviceState, Snapshot, Stage, Stopper};
use config::{LogFormat, ProgressDisplay};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::watch;

use crate::dashboard::{self, Ending, screen};
use crate::failure::{Exit, Failure};

/// Time between two lines off a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Time between two redraws of the bar.
const BAR_INTERVAL: Duration = Duration::from_millis(200);

/// What shows how a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Display {
    Dashboard,
    Bar,
    Lines,
    Nothing,
}

impl Display {
    /// What a job wants, as far as this terminal can show it.
    ///
    /// # Errors
    /// If the dashboard is asked for by name and there is no terminal for it, or none that can show it.
    pub(crate) fn choose(telemetry: &config::Telemetry) -> Result<Self, Failure> {
        let moves = has_cursor();
        Ok(match telemetry.progress {
            ProgressDisplay::Lines => Self::Lines,
            ProgressDisplay::None => Self::Nothing,
            ProgressDisplay::Dashboard if !has_terminal() => {
                let text = "the dashboard needs a terminal at standard input, output and error";
                return Err(Failure::new(Exit::Usage, text).hint(
                    "leave telemetry.progress at \"auto\", or watch the job with `virnucpro-orch top`",
                ));
            }
            ProgressDisplay::Dashboard if !moves => {
                return Err(no_cursor("the dashboard")
                    .hint("leave telemetry.progress at \"auto\", which takes lines there"));
            }
            ProgressDisplay::Dashboard => Self::Dashboard,
            ProgressDisplay::Auto if telemetry.log_format == LogFormat::Json => Self::Lines,
            // A bar, too, is drawn on itself: such a terminal would show nothing at all.
            ProgressDisplay::Auto if !std::io::stderr().is_terminal() || !moves => Self::Lines,
            // A job in the background would be stopped for taking the terminal.
            ProgressDisplay::Auto if has_terminal() && screen::is_in_foreground() => Self::Dashboard,
            ProgressDisplay::Auto => Self::Bar,
        })
    }

    /// Whether a bar shows how far the input is read: the dashboard opens after that, so that flaws of the input are
    /// told on the ordinary screen.
    pub(crate) fn has_bar(self) -> bool {
        matches!(self, Self::Dashboard | Self::Bar)
    }
}

/// Whether this terminal can be drawn on again where it was drawn on before, as far as `TERM` says.
pub(crate) fn has_cursor() -> bool {
    moves_cursor(std::env::var_os("TERM").as_deref())
}

/// That a full screen cannot be shown here.
pub(crate) fn no_cursor(what: &str) -> Failure {
    let term = match std::env::var_os("TERM") {
        Some(term) if !term.is_empty() => format!("TERM is `{}`", term.to_string_lossy()),
        Some(_) | None => "TERM is not set".to_owned(),
    };
    Failure::new(Exit::Usage, format!("{what} needs a terminal whose cursor can be moved, and {term}"))
}

/// Whether a terminal of this `TERM` can be drawn on again where it was drawn on before.
fn moves_cursor(term: Option<&OsStr>) -> bool {
    term.is_some_and(|term| !term.is_empty() && term != "dumb")
}

/// Whether a full screen can be shown and keys read.
pub(crate) fn has_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal() && std::io::stderr().is_terminal()
}

/// The bar of the survey; hidden unless `shown`.
pub(crate) fn survey_bar(shown: bool) -> ProgressBar {
    bar(shown, "reading  [{bar:32}] {percent:>3} %  {binary_bytes} of {binary_total_bytes}")
}

/// The bytes of standard input that are stored; hidden unless `shown`.
pub(crate) fn storing_bar(shown: bool) -> ProgressBar {
    bar(shown, "storing standard input  {binary_bytes}")
}

fn bar(shown: bool, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
    let style = ProgressStyle::with_template(template).expect("the templates of this file are valid");
    bar.set_style(style.progress_chars("=> "));
    if shown { crate::logging::bars().add(bar) } else { bar }
}

/// Shows the run until its telemetry ends.
pub(crate) async fn show(
    display: Display,
    folder: String,
    stopper: Stopper,
    snapshots: watch::Receiver<Arc<Snapshot>>,
) {
    match display {
        Display::Dashboard => match dashboard::show(folder.clone(), stopper, snapshots.clone()).await {
            Ending::WithTheRun => {}
            Ending::Detached => {
                let words = format!("the job goes on; `virnucpro-orch top {folder}` shows it again");
                crate::stderr::say(words);
                show_bar(snapshots).await;
            }
            Ending::TerminalGone => show_lines(snapshots).await,
            Ending::Failed => show_bar(snapshots).await,
        },
        Display::Bar => show_bar(snapshots).await,
        Display::Lines => show_lines(snapshots).await,
        Display::Nothing => {}
    }
}

async fn show_bar(mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    let bar = bar(true, "{prefix:9} [{bar:20}] {percent:>3} %  {wide_msg}");
    bar.set_prefix("loading");
    loop {
        let ended = snapshots.changed().await.is_err();
        let snapshot = snapshots.borrow_and_update().clone();
        bar.set_length(snapshot.residues_total);
        bar.set_position(snapshot.residues_done);
        bar.set_prefix(activity(&snapshot));
        bar.set_message(format!(
            "{} tokens/s{}{}{}, {} of {} records committed",
            grouped(snapshot.tokens_per_s_now as u64),
            remaining(&snapshot),
            troubles(&snapshot),
            full(&snapshot.fill).map_or(String::new(), |percent| format!(", {percent:.1} % full")),
            grouped(snapshot.records_committed),
            grouped(snapshot.records_total),
        ));
        if ended {
            break;
        }
        tokio::time::sleep(BAR_INTERVAL).await;
    }
    bar.finish_and_clear();
}

async fn show_lines(mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    let mut interval = tokio::time::interval(LINE_INTERVAL);
    interval.tick().await;
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            ended = snapshots.changed() => match ended {
                Ok(()) => continue,
                Err(_) => return,
            },
        }
        let snapshot = snapshots.borrow_and_update().clone();
        let ready = snapshot.devices.iter().filter(|device| device.state == DeviceState::Ready).count();
        tracing::info!(
            records = snapshot.records_committed,
            of = snapshot.records_total,
            computed = snapshot.sequences_computed,
            tokens_per_s = snapshot.tokens_per_s_now as u64,
            fill_percent = full(&snapshot.fill).map(|percent| (10.0 * percent).round() / 10.0),
            eta_s = snapshot.remaining_s().map_or(-1, |seconds| seconds as i64),
            devices_ready = ready,
            devices = snapshot.devices.len(),
            restarts = snapshot.restarts,
            failed = snapshot.failed,
            writing_paused = snapshot.disk_full,
            paused = snapshot.paused,
            read_wait_ms = wait(&snapshot, Stage::Read),
            pack_wait_ms = wait(&snapshot, Stage::Pack),
            compute_wait_ms = wait(&snapshot, Stage::Compute),
            write_wait_ms = wait(&snapshot, Stage::Write),
            bottleneck = snapshot.bottleneck.stage.map(Stage::name),
            utilisation_percent = snapshot.bottleneck.utilisation.map(|share| (100.0 * share).round()),
            "progress"
        );
    }
}

/// How long 95 % of the pieces of a stage's work kept it waiting at most; left out before there is one.
fn wait(snapshot: &Snapshot, stage: Stage) -> Option<f64> {
    let view = snapshot.stages.iter().find(|view| view.stage == stage)?;
    (view.waits.count > 0).then(|| (10.0 * view.waits.p95_ms).round() / 10.0)
}

/// How full batches are on the whole, per cent; `None` before there is one.
pub(crate) fn full(fill: &Fill) -> Option<f64> {
    (fill.batches > 0).then(|| 100.0 * fill.mean())
}

fn activity(snapshot: &Snapshot) -> &'static str {
    if snapshot.disk_full {
        // For what reason, the log says.
        "writing is paused"
    } else if snapshot.stopping {
        "stopping"
    } else if snapshot.paused {
        "paused"
    } else if snapshot.sequences_computed == 0 {
        "loading"
    } else {
        "running"
    }
}

fn remaining(snapshot: &Snapshot) -> String {
    snapshot.remaining_s().map_or(String::new(), |seconds| format!(", {} left", duration(seconds)))
}

fn troubles(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    if snapshot.restarts > 0 {
        text += &format!(", {} restarts", snapshot.restarts);
    }
    if snapshot.failed > 0 {
        text += &format!(", {} failed", snapshot.failed);
    }
    text
}

/// `1234567` as `1,234,567`.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Seconds as `12 s`, `3 min 20 s` or `5 h 07 min`.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 if seconds < 10.0 => format!("{seconds:.1} s"),
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        3600.. => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_told_whatever_its_reason() {
        let mut snapshot = Snapshot::default();
        assert_eq!(activity(&snapshot), "loading");
        snapshot.sequences_computed = 1;
        assert_eq!(activity(&snapshot), "running");
        snapshot.disk_full = true;
        assert_eq!(activity(&snapshot), "writing is paused");
        let paused = Snapshot { paused: true, ..Snapshot::default() };
        assert_eq!(activity(&paused), "paused");
        assert_eq!(activity(&Snapshot { stopping: true, ..paused }), "stopping");
    }

    #[test]
    fn no_batch_is_not_full() {
        let mut fill = Fill::default();
        assert_eq!(full(&fill), None);
        fill.add(1, 50, 50, 100);
        assert_eq!(full(&fill), Some(50.0));
    }

    #[test]
    fn a_terminal_that_cannot_move_its_cursor_gets_lines() {
        for (term, moves) in [(None, false), (Some(""), false), (Some("dumb"), false), (Some("xterm"), true)]
        {
            assert_eq!(moves_cursor(term.map(OsStr::new)), moves, "{term:?}");
        }
    }

    #[test]
    fn waits_are_told_once_there_are_any() {
        let mut view = actors::StageView {
            stage: Stage::Write,
            queued: 0,
            capacity: 3,
            waits: actors::Waits { p95_ms: 12.345, ..actors::Waits::default() },
            busy_share: 0.0,
            starved_share: 0.0,
            blocked_share: 0.0,
            busy_s: 0.0,
        };
        let mut snapshot = Snapshot { stages: vec![view.clone()], ..Snapshot::default() };
        assert_eq!(wait(&snapshot, Stage::Write), None);
        view.waits.count = 1;
        snapshot.stages = vec![view];
        assert_eq!((wait(&snapshot, Stage::Write), wait(&snapshot, Stage::Read)), (Some(12.3), None));
    }

    #[test]
    fn what_is_asked_for_by_name_is_shown() {
        let telemetry = |progress| config::Telemetry {
            progress,
            log: "info".to_owned(),
            log_format: LogFormat::Text,
            prometheus: None,
        };
        assert_eq!(Display::choose(&telemetry(ProgressDisplay::Lines)).unwrap(), Display::Lines);
        assert_eq!(Display::choose(&telemetry(ProgressDisplay::None)).unwrap(), Display::Nothing);
        let shows_bar =
            [Display::Dashboard, Display::Bar, Display::Lines, Display::Nothing].map(Display::has_bar);
        assert_eq!(shows_bar, [true, true, false, false]);
    }

    #[test]
    fn numbers_and_times_read_well() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [0.25, 59.4, 200.0, 18_420.0].map(duration),
            ["0.2 s", "59 s", "3 min 20 s", "5 h 07 min"]
        );
    }
}
