//! A running job answers questions: a Unix socket in its result folder, for `status`, `stop`, `pause`, `resume`,
//! `retire`, `readmit` and `checkpoint` from any other shell of the same user.
//!
//! It is there from the moment at which the folder is locked. Until the run begins it tells how far the preparation is,
//! and stops it; there is nothing yet that could be paused or retired.
//! One request per connection, a line of JSON; one answer, a line of JSON, except that `watch` goes on
//! answering. It reads the snapshot and passes wishes on; it never decides anything, and a run does not mind
//! if the socket cannot be made (some network file systems have none) or nobody ever asks.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actors::manifest::ResultFolder;
use actors::{Refused, Snapshot, StopReason, bounds};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use crate::signals::Target;

/// Longest request.
const REQUEST_BYTES_MAX: u64 = 1024;
/// How long somebody who connected may take to say what they want, or to take an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time between two snapshots of a run that is being prepared, for those who watch it.
const PREPARING_INTERVAL: Duration = Duration::from_millis(250);
/// Pause after a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);
/// What is said to other wishes meanwhile.
const NOT_BEGUN: &str = "it has not begun: it still reads its input, and no device is at work";
/// Time between two snapshots kept on disk, for those who ask after a crash.
const KEEP_INTERVAL: Duration = Duration::from_secs(10);

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "request")]
pub(crate) enum Request {
    /// One snapshot.
    Status,
    /// Snapshots until the run ends.
    Watch,
    /// Stop in order, as by a signal.
    Stop,
    /// Lend no more batches.
    Pause,
    /// Lend again.
    Resume,
    /// Give this device no more batches, and let it go once it has finished those it holds.
    Retire {
        /// Its name.
        device: String,
    },
    /// Try a retired device again.
    Readmit {
        /// Its name.
        device: String,
    },
    /// Keep what is computed of open segments, synced.
    Checkpoint,
}

impl Request {
    /// How long to wait for the answer; longer than the run itself waits.
    pub(crate) fn answer_max(&self) -> Duration {
        match self {
            Self::Checkpoint => Duration::from_secs(60),
            Self::Status
            | Self::Watch
            | Self::Stop
            | Self::Pause
            | Self::Resume
            | Self::Retire { .. }
            | Self::Readmit { .. } => Duration::from_secs(5),
        }
    }
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// How the run stands.
    Snapshot(Box<Snapshot>),
    /// It is done, or begun.
    Done,
    /// It is done, or begun: how, in words.
    Said(String),
    /// The request was none, or it is not done: why.
    Error(String),
}

impl From<Result<String, Refused>> for Answer {
    fn from(answer: Result<String, Refused>) -> Self {
        match answer {
            Ok(words) => Self::Said(words),
            Err(Refused(words)) => Self::Error(words),
        }
    }
}

/// The socket of a run; gone when dropped.
pub(crate) struct Control {
    path: PathBuf,
    tasks: Vec<JoinHandle<()>>,
    /// Whether the last snapshot is on disk. Held while one is written: one at a time, and none after the last.
    ended: Arc<Mutex<bool>>,
}

impl Control {
    /// Listens in the folder of a run, be it one that is only being prepared.
    pub(crate) fn listen(folder: &ResultFolder, job: Target) -> Self {
        let path = folder.socket();
        let mut tasks = Vec::new();
        match bind(&path) {
            Ok(listener) => tasks.push(tokio::spawn(serve(listener, job))),
            Err(error) => {
                tracing::warn!(%error, "no socket for `status`, `stop` and `pause` in the result folder");
            }
        }
        Self { path, tasks, ended: Arc::default() }
    }

    /// Keeps the latest snapshot of the run in its folder from now on.
    pub(crate) fn keep(&mut self, folder: &ResultFolder, snapshots: watch::Receiver<Arc<Snapshot>>) {
        self.tasks.push(tokio::spawn(keep(folder.snapshot(), self.ended.clone(), snapshots)));
    }

    /// Ends it after the run, whose last snapshot stays on disk.
    pub(crate) fn close(self, last: &Snapshot, folder: &ResultFolder) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        write_snapshot(&folder.snapshot(), last);
        *ended = true;
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A socket for this user alone, under its name only once nobody else can connect.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let name = path.file_name().unwrap_or_default();
    let folder = short_name_of(path.parent().unwrap_or(Path::new(".")))?;
    let temporary = folder.path.join(format!(".{}.tmp", name.to_string_lossy()));
    let _ = std::fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary)?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&temporary, folder.path.join(name))?;
    Ok(listener)
}

/// Connects to the socket of a run.
pub(crate) fn connect(folder: &ResultFolder) -> io::Result<std::os::unix::net::UnixStream> {
    let short = short_name_of(&folder.state())?;
    let name = folder.socket();
    std::os::unix::net::UnixStream::connect(short.path.join(name.file_name().unwrap_or_default()))
}

/// A folder under a name of a few letters: the system takes no more than 108 bytes for a socket.
struct ShortName {
    path: PathBuf,
    _folder: std::fs::File,
}

fn short_name_of(folder: &Path) -> io::Result<ShortName> {
    use std::os::fd::AsRawFd;
    let open = std::fs::File::open(folder)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
    let path = if short.is_dir() { short } else { folder.to_owned() };
    Ok(ShortName { path, _folder: open })
}

async fn serve(listener: UnixListener, job: Target) {
    let viewers = Arc::new(Semaphore::new(bounds::VIEWERS));
    loop {
        // For want of open files, as a rule, which others give back.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // Too many at once: this one is turned away by the closing of its connection.
        let Ok(place) = viewers.clone().try_acquire_owned() else { continue };
        let job = job.clone();
        tokio::spawn(async move {
            // Whoever asks and leaves has no answer to read.
            let _ = answer(stream, &job).await;
            drop(place);
        });
    }
}

async fn answer(stream: UnixStream, job: &Target) -> io::Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut line = String::new();
    let mut reading = BufReader::new(reading.take(REQUEST_BYTES_MAX));
    tokio::time::timeout(PATIENCE, reading.read_line(&mut line)).await??;
    let request = match serde_json::from_str::<Request>(&line) {
        Ok(request) => request,
        Err(error) => return say(&mut writing, &Answer::Error(error.to_string())).await,
    };
    let answer = match (&request, job.run()) {
        (Request::Status | Request::Watch, _) => {
            return show(&mut writing, job, request == Request::Watch).await;
        }
        (Request::Stop, _) => {
            // Said first: what is only being prepared ends at once.
            let said = say(&mut writing, &Answer::Done).await;
            job.stop(StopReason::Asked);
            return said;
        }
        (_, None) => Answer::Error(NOT_BEGUN.to_owned()),
        (Request::Pause | Request::Resume, Some((stopper, _))) => {
            stopper.pause(request == Request::Pause);
            Answer::Done
        }
        (Request::Retire { device }, Some((stopper, _))) => stopper.retire(device).await.into(),
        (Request::Readmit { device }, Some((stopper, _))) => stopper.readmit(device).await.into(),
        (Request::Checkpoint, Some((stopper, _))) => stopper.checkpoint().await.into(),
    };
    say(&mut writing, &answer).await
}

/// Says how it stands, once or until it ends.
async fn show(writing: &mut (impl AsyncWriteExt + Unpin), job: &Target, goes_on: bool) -> io::Result<()> {
    let mut snapshots = loop {
        if let Some((_, snapshots)) = job.run() {
            break snapshots;
        }
        say(writing, &Answer::Snapshot(Box::new(job.preparing()))).await?;
        if !goes_on {
            return Ok(());
        }
        tokio::time::sleep(PREPARING_INTERVAL).await;
    };
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        say(writing, &Answer::Snapshot(Box::new((*snapshot).clone()))).await?;
        if !goes_on || snapshots.changed().await.is_err() {
            return Ok(());
        }
    }
}

async fn say(writing: &mut (impl AsyncWriteExt + Unpin), answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    tokio::time::timeout(PATIENCE, writing.write_all(&line)).await?
}

/// Keeps the latest snapshot on disk.
async fn keep(path: PathBuf, ended: Arc<Mutex<bool>>, snapshots: watch::Receiver<Arc<Snapshot>>) {
    let mut interval = tokio::time::interval(KEEP_INTERVAL);
    loop {
        interval.tick().await;
        let (path, ended, snapshot) = (path.clone(), ended.clone(), snapshots.borrow().clone());
        let write = move || {
            let ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
            if !*ended {
                write_snapshot(&path, &snapshot);
            }
        };
        if tokio::task::spawn_blocking(write).await.is_err() {
            return;
        }
    }
}

/// Not synced and never waited for: it is a courtesy, not a result.
fn write_snapshot(path: &Path, snapshot: &Snapshot) {
    let temporary = actors::part::temporary_path(path);
    let written = serde_json::to_vec(snapshot)
        .map_err(io::Error::from)
        .and_then(|text| std::fs::write(&temporary, text))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
}
