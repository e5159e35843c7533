//! The command `top`: the dashboard of a job that runs in another process. Leaving it never touches the job.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use actors::manifest::{ResultFolder, RunStatus};
use actors::{Snapshot, bounds};
use tokio::sync::watch;

use super::model::{Ended, Home, Model};
use super::screen::{self, GiveBack};
use super::ui::{self, Job};
use crate::cli::FolderArguments;
use crate::control::{Answer, Request};
use crate::failure::{Exit, Failure};
use crate::{attach, progress, result_folder};

/// Longest line of a job: a snapshot takes some hundred bytes for each device.
const LINE_BYTES_MAX: u64 = 16 << 20;
/// How long a job that says nothing more may take to write down how it ended.
const LAST_WORD_MAX: Duration = Duration::from_secs(3);
/// Time between two looks for it.
const LAST_WORD_POLL: Duration = Duration::from_millis(100);

/// Shows a running job until the viewer leaves.
pub(crate) fn top(arguments: &FolderArguments) -> Result<Exit, Failure> {
    let folder = attach::meant(&arguments.folder)?;
    let shown = folder.display().to_string();
    if !progress::has_terminal() {
        return Err(Failure::new(Exit::Usage, "`top` needs a terminal")
            .hint(format!("virnucpro-orch status {shown} prints the same once")));
    }
    if !progress::has_cursor() {
        return Err(
            progress::no_cursor("`top`").hint(format!("virnucpro-orch status {shown} prints the same once"))
        );
    }
    let failed = |error: std::io::Error| Failure::because(Exit::Failed, &error);
    let folder = ResultFolder(folder);
    let Some(stream) = attach::open(&folder, &Request::Watch)? else {
        return Err(attach::no_job(&folder.0));
    };
    let left = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, left.clone()).map_err(failed)?;
    }
    let (snapshots, received) = watch::channel(Arc::new(Snapshot::default()));
    let ended = Arc::new(OnceLock::new());
    let setting = ended.clone();
    let asked_in = folder.0.clone();
    // Not joined: it reads until the job or this process ends.
    std::thread::Builder::new()
        .name("snapshots".to_owned())
        .spawn(move || {
            read(stream, &snapshots);
            let _ = setting.set(last_word(&folder));
        })
        .map_err(failed)?;
    let (answers, answered) = flume::bounded(bounds::DASHBOARD_ANSWERS);
    let job = Job {
        snapshots: received,
        ended: Some(ended),
        ask: Box::new(move |request| ask(asked_in.clone(), request, answers.clone())),
        answers: answered,
        heard_at: Some(Instant::now()),
        left,
    };
    let _restored = GiveBack;
    screen::tell_panics_elsewhere();
    ui::show(Model::new(Home::Elsewhere, shown), job)
        .map_err(|error| Failure::new(Exit::Failed, format!("the terminal cannot be used: {error}")))?;
    Ok(Exit::Done)
}

/// Passes snapshots on until the job sends no more.
fn read(stream: UnixStream, snapshots: &watch::Sender<Arc<Snapshot>>) {
    let mut lines = BufReader::new(stream);
    loop {
        let mut line = String::new();
        let read = (&mut lines).take(LINE_BYTES_MAX).read_line(&mut line);
        match (read, serde_json::from_str(&line)) {
            (Ok(1..), Ok(Answer::Snapshot(snapshot))) => drop(snapshots.send_replace(Arc::from(snapshot))),
            _ => return,
        }
    }
}

/// How a job that sends no more has ended.
fn last_word(folder: &ResultFolder) -> Ended {
    let began = Instant::now();
    loop {
        let manifest = result_folder::recorded(folder).ok().flatten();
        let status = manifest.as_ref().map(|manifest| manifest.status);
        // A job that was killed has left it at that.
        if status.is_some_and(|status| status != RunStatus::Running) || began.elapsed() > LAST_WORD_MAX {
            return Ended { status, reason: manifest.and_then(|manifest| manifest.reason) };
        }
        std::thread::sleep(LAST_WORD_POLL);
    }
}

/// Passes a wish on; a job may take a while to answer.
fn ask(folder: PathBuf, request: Request, answers: flume::Sender<ui::Asked>) {
    let spawned = std::thread::Builder::new().name("wish".to_owned()).spawn({
        let (request, answers) = (request.clone(), answers.clone());
        move || {
            let answer = attach::ask_for(&folder, &request).map_err(|failure| failure.line());
            let _ = answers.try_send((request, answer));
        }
    });
    if let Err(error) = spawned {
        let _ = answers.try_send((request, Err(error.to_string())));
    }
}
