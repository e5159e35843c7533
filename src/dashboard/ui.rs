//! The loop: what happened goes into the model, what changed goes onto the screen.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use actors::Snapshot;
use tokio::sync::watch;

use super::model::{Action, Ended, Event, Model};
use super::screen::Screen;
use super::view::{self, Look};
use crate::control::Request;
use crate::logging;

/// Least time between two frames: the screen is drawn at most ten times a second, and only when something changed.
const FRAME_INTERVAL: Duration = Duration::from_millis(100);

/// A job that has not sent a snapshot for so long says nothing: it sends four a second.
const SILENT_MIN: Duration = Duration::from_secs(3);

/// An answer to a wish.
pub(super) type Asked = (Request, Result<Option<String>, String>);

/// Where snapshots come from, and where wishes go.
pub(super) struct Job {
    pub(super) snapshots: watch::Receiver<Arc<Snapshot>>,
    /// How the job ended, set before the snapshots cease; `None` where the dashboard closes with the job.
    pub(super) ended: Option<Arc<OnceLock<Ended>>>,
    /// Takes a wish and returns at once.
    pub(super) ask: Box<dyn Fn(Request) + Send>,
    pub(super) answers: flume::Receiver<Asked>,
    /// When the last snapshot came; `None` where the job is this process, which is never silent on its own.
    pub(super) heard_at: Option<Instant>,
    /// Set by signals that end the dashboard alone.
    pub(super) left: Arc<AtomicBool>,
}

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    JobEnded,
    Left,
    /// Somebody gave the terminal back.
    ScreenGone,
}

/// Shows a job until it or the viewer leaves.
///
/// # Errors
/// If the terminal cannot be used (any more).
pub(super) fn show(mut model: Model, mut job: Job) -> io::Result<Closed> {
    let look = Look::of_environment();
    let mut screen = Screen::open()?;
    let mut drawn_at: Option<Instant> = None;
    let mut stale = true;
    job.snapshots.mark_changed();
    let mut keys = Vec::new();
    let mut silent_s = 0;
    loop {
        if job.left.load(Ordering::Relaxed) {
            return Ok(Closed::Left);
        }
        if !screen.is_ours() {
            return Ok(Closed::ScreenGone);
        }
        stale |= screen.mind_job_control()?;
        stale |= screen.mind_size()?;
        let mut happened: Vec<Event> = keys.into_iter().map(Event::Key).collect();
        if model.ended.is_none() && !job.look(&mut happened) {
            return Ok(Closed::JobEnded);
        }
        // Told once a second, not with every look.
        let silence = job.silence();
        if let Some(seconds) = silence.filter(|&seconds| model.ended.is_none() && seconds != silent_s) {
            happened.push(Event::Silent(seconds));
        }
        silent_s = silence.unwrap_or(0);
        for event in happened {
            stale = true;
            match model.update(event) {
                Action::Nothing => {}
                Action::Leave => return Ok(Closed::Left),
                Action::Ask(request) => (job.ask)(request),
            }
        }
        if stale && drawn_at.is_none_or(|at| at.elapsed() >= FRAME_INTERVAL) {
            actors::fault::point("dashboard");
            screen.draw(|buffer| view::draw(buffer.area, buffer, &model, look))?;
            (drawn_at, stale) = (Some(Instant::now()), false);
        }
        keys = screen.keys()?;
    }
}

impl Job {
    /// Seconds without a snapshot, where one is overdue.
    fn silence(&self) -> Option<u64> {
        let silent = self.heard_at?.elapsed();
        (silent >= SILENT_MIN).then_some(silent.as_secs())
    }

    /// Notes what is new of the job. Says whether there still is something to show.
    fn look(&mut self, happened: &mut Vec<Event>) -> bool {
        let lines = logging::take_lines();
        if !lines.is_empty() {
            happened.push(Event::Logged(lines));
        }
        happened.extend(self.answers.try_iter().map(|(request, answer)| Event::Asked(request, answer)));
        let changed = self.snapshots.has_changed();
        if changed.as_ref().map_or(true, |&changed| changed) {
            let snapshot = self.snapshots.borrow_and_update().clone();
            // What a viewer starts with is none yet.
            if snapshot.version > 0 {
                self.heard_at = self.heard_at.map(|_| Instant::now());
                happened.push(Event::Snapshot(snapshot));
            }
        }
        if changed.is_ok() {
            return true;
        }
        let Some(ended) = &self.ended else { return false };
        happened.push(Event::Ended(ended.get().cloned().unwrap_or_default()));
        true
    }
}
