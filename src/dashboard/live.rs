//! The dashboard of `run`: in the job's own process, which never waits for it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use actors::{Refused, Snapshot, StopReason, Stopper, bounds};
use tokio::sync::{oneshot, watch};

use super::model::{Home, Model};
use super::screen;
use super::ui::{self, Asked, Closed, Job};
use crate::control::Request;

/// How long the end of a run waits for a dashboard that a stuck terminal holds up.
const LEAVE_MAX: Duration = Duration::from_secs(2);

/// How a dashboard ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With the run.
    WithTheRun,
    /// The viewer wants no dashboard any more.
    Detached,
    /// There is no terminal any more.
    TerminalGone,
    /// It failed itself; the log says how.
    Failed,
}

/// Shows a run until it ends, or the viewer does not want to see it any more.
pub(crate) async fn show(
    folder: String,
    stopper: Stopper,
    snapshots: watch::Receiver<Arc<Snapshot>>,
) -> Ending {
    let (answers, received) = flume::bounded(bounds::DASHBOARD_ANSWERS);
    let runtime = tokio::runtime::Handle::current();
    let job = Job {
        snapshots: snapshots.clone(),
        ended: None,
        ask: Box::new(move |request| {
            let (stopper, answers) = (stopper.clone(), answers.clone());
            runtime.spawn(async move {
                // A dashboard that has left wants no answer.
                let _ = answers.try_send(carry_out(&stopper, request).await);
            });
        }),
        answers: received,
        heard_at: None,
        left: Arc::new(AtomicBool::new(false)),
    };
    let model = Model::new(Home::Job { outlives: crate::signals::is_hangup_ignored() }, folder);
    let (closed, mut closing) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("dashboard".to_owned())
        .spawn(move || drop(closed.send(ui::show(model, job))));
    let thread = match thread {
        Ok(thread) => thread,
        Err(error) => {
            tracing::warn!(%error, "no dashboard: no more threads may be had");
            return Ending::Failed;
        }
    };
    let closed = tokio::select! {
        closed = &mut closing => closed,
        () = end(snapshots) => match tokio::time::timeout(LEAVE_MAX, &mut closing).await {
            Ok(closed) => closed,
            Err(_) => {
                // The terminal takes nothing: the thread is left behind, as there is no way to end it.
                screen::give_back();
                return Ending::WithTheRun;
            }
        },
    };
    // It has said its last word, or panicked: this does not take long.
    let _ = thread.join();
    match closed {
        Ok(Ok(Closed::JobEnded | Closed::ScreenGone)) => Ending::WithTheRun,
        Ok(Ok(Closed::Left)) => Ending::Detached,
        Ok(Err(error)) => {
            tracing::warn!(%error, "the terminal is gone, and the dashboard with it");
            Ending::TerminalGone
        }
        Err(_) => {
            tracing::error!("the dashboard failed; the job goes on");
            Ending::Failed
        }
    }
}

/// The end of a run, as its snapshots cease.
async fn end(mut snapshots: watch::Receiver<Arc<Snapshot>>) {
    while snapshots.changed().await.is_ok() {}
}

async fn carry_out(stopper: &Stopper, request: Request) -> Asked {
    let answer = match &request {
        Request::Status | Request::Watch => Ok(None),
        Request::Stop => {
            stopper.stop(StopReason::Signal("the dashboard"));
            Ok(None)
        }
        Request::Pause | Request::Resume => {
            stopper.pause(request == Request::Pause);
            Ok(None)
        }
        Request::Retire { device } => stopper.retire(device).await.map(Some),
        Request::Readmit { device } => stopper.readmit(device).await.map(Some),
        Request::Checkpoint => stopper.checkpoint().await.map(Some),
    };
    (request, answer.map_err(|Refused(words)| words))
}
