//! The commands `status`, `stop`, `pause`, `resume`, `retire`, `readmit` and `checkpoint`: they ask the job that runs in a result folder, and where
//! none runs, `status` tells what is left of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use actors::manifest::{Manifest, ResultFolder, RunStatus};
use actors::{DeviceState, Snapshot};
use serde::Serialize;

use crate::cli::StatusArguments;
use crate::control::{self, Answer, Request};
use crate::failure::{Exit, Failure};
use crate::progress::{duration, grouped};

/// How long a running job may take to take a request.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// Longest answer: a snapshot takes some hundred bytes for each device.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// What `status` tells.
#[derive(Serialize)]
struct Status {
    /// Whether a process is at work on it now.
    live: bool,
    /// Whether it said so itself: a suspended process says nothing.
    answers: bool,
    /// What `run.json` says of it.
    status: RunStatus,
    reason: Option<String>,
    records: u64,
    records_committed: u64,
    failed: u64,
    /// The state of this moment, or the last one known.
    snapshot: Option<Snapshot>,
}

/// Shows how a job stands, running or not.
pub(crate) fn status(arguments: &StatusArguments) -> Result<Exit, Failure> {
    let folder = ResultFolder(meant(&arguments.folder)?);
    let (live, silent) = match ask(&folder, &Request::Status) {
        Ok(live) => (live, None),
        Err(failure) => (None, Some(failure)),
    };
    let answers = live.is_some();
    let snapshot = match live {
        Some(Answer::Snapshot(snapshot)) => Some(*snapshot),
        Some(Answer::Done | Answer::Said(_) | Answer::Error(_)) | None => kept_snapshot(&folder),
    };
    let manifest = Manifest::read(&folder).map_err(|error| Failure::because(Exit::Failed, &error))?;
    let Some(manifest) = manifest else {
        return Err(no_run(&folder.0));
    };
    let status = Status {
        live: answers || silent.is_some(),
        answers,
        status: manifest.status,
        reason: manifest.reason.clone(),
        records: manifest.counts.records,
        records_committed: manifest.totals.records,
        failed: manifest.totals.failed,
        snapshot,
    };
    let text = if arguments.json {
        serde_json::to_string_pretty(&status).map_err(|error| Failure::because(Exit::Failed, &error))? + "\n"
    } else {
        in_words(&status)
    };
    crate::stdout::print(&text)?;
    silent.map_or(Ok(Exit::Done), Err)
}

/// The result folder that somebody means: what was typed, or that of the job whose file was typed.
///
/// # Errors
/// If it is another file, or the job file says nothing that can be done.
pub(crate) fn meant(typed: &Path) -> Result<PathBuf, Failure> {
    if !typed.is_file() {
        return Ok(typed.to_owned());
    }
    if typed.extension().is_some_and(|extension| extension == "toml") {
        return Ok(config::load(typed, &[])?.output.directory);
    }
    let failure = Failure::new(Exit::Usage, format!("`{}` is a file, not a result folder", typed.display()));
    // Such as run.json or run.log.
    let around =
        typed.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    let around = around.filter(|folder| ResultFolder(folder.to_path_buf()).manifest().is_file());
    Err(match around {
        Some(folder) => failure.hint(format!("give the folder that it is in: {}", folder.display())),
        None => failure.hint("give the folder named output.directory in the job, or the job file, job.toml"),
    })
}

/// Asks a running job for something, and prints what it says to that.
pub(crate) fn command(folder: &Path, request: &Request) -> Result<Exit, Failure> {
    let said = ask_for(&meant(folder)?, request)?;
    let words = said.as_deref().or(match request {
        Request::Pause => Some("paused: batches under way are finished, no more are lent"),
        Request::Resume => Some("goes on"),
        Request::Stop => Some("stops within its grace time"),
        _ => None,
    });
    if let Some(words) = words {
        crate::stdout::print(&format!("{words}\n"))?;
    }
    Ok(Exit::Done)
}

/// Asks a running job for something; returns what it says to that, if anything.
pub(crate) fn ask_for(folder: &Path, request: &Request) -> Result<Option<String>, Failure> {
    match ask(&ResultFolder(folder.to_owned()), request)? {
        Some(Answer::Done | Answer::Snapshot(_)) => Ok(None),
        Some(Answer::Said(words)) => Ok(Some(words)),
        Some(Answer::Error(error)) => Err(Failure::new(Exit::Failed, format!("the job refused: {error}"))),
        None => Err(no_job(folder)),
    }
}

/// That no job runs in a folder.
pub(crate) fn no_job(folder: &Path) -> Failure {
    Failure::new(Exit::Usage, format!("no job is running in `{}`", folder.display()))
        .hint(format!("virnucpro-orch status {} tells what is left of it", folder.display()))
        .hint(
            "a job that has only begun can be asked once it has read its input; until then a signal stops it",
        )
}

/// Puts a request to the job that runs in a folder; `None` if none does.
pub(crate) fn open(folder: &ResultFolder, request: &Request) -> Result<Option<UnixStream>, Failure> {
    let Ok(mut stream) = control::connect(folder) else { return Ok(None) };
    let mut line = serde_json::to_string(request).map_err(|error| Failure::because(Exit::Failed, &error))?;
    line.push('\n');
    stream
        .set_write_timeout(Some(REQUEST_MAX))
        .and_then(|()| stream.write_all(line.as_bytes()))
        .map_err(|error| does_not_answer(folder, &error))?;
    Ok(Some(stream))
}

fn does_not_answer(folder: &ResultFolder, error: &std::io::Error) -> Failure {
    let folder_name = folder.0.display();
    if !is_timeout(error) {
        return Failure::new(Exit::Failed, format!("the job in `{folder_name}` does not answer: {error}"));
    }
    let who = kept_snapshot(folder).map(|snapshot| snapshot.job).filter(|job| job.process > 0);
    let (who, go_on) = match who {
        Some(job) => {
            (format!(" (process {} on {})", job.process, job.host), format!("`kill -CONT {}`", job.process))
        }
        None => (String::new(), "`kill -CONT`".to_owned()),
    };
    Failure::new(Exit::Failed, format!("the job in `{folder_name}`{who} runs and does not answer")).hint(
        format!(
            "it may be suspended (Ctrl-Z): `fg` there or {go_on} lets it go on, and then it may still do what it was asked"
        ),
    )
}

/// Whether a socket's time limit has passed.
fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

/// Asks the job that runs in a folder; `None` if none does.
fn ask(folder: &ResultFolder, request: &Request) -> Result<Option<Answer>, Failure> {
    let Some(stream) = open(folder, request)? else { return Ok(None) };
    let failed = |error: std::io::Error| does_not_answer(folder, &error);
    stream.set_read_timeout(Some(request.answer_max())).map_err(failed)?;
    let mut answer = String::new();
    BufReader::new(stream.take(ANSWER_BYTES_MAX)).read_line(&mut answer).map_err(failed)?;
    let answer = serde_json::from_str(&answer).map_err(|error| {
        Failure::new(
            Exit::Failed,
            format!("the job in `{}` answers something else: {error}", folder.0.display()),
        )
        .hint("is it of another version of the program?")
    })?;
    Ok(Some(answer))
}

fn kept_snapshot(folder: &ResultFolder) -> Option<Snapshot> {
    let file = actors::files::open_regular(&folder.snapshot()).ok()?;
    serde_json::from_reader(file.take(ANSWER_BYTES_MAX)).ok()
}

fn no_run(folder: &Path) -> Failure {
    Failure::new(Exit::Usage, format!("`{}` holds no run", folder.display()))
        .hint("name the output.directory of a job, after it has read its input")
}

fn in_words(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, words: String| text += &format!("  {name:<10} {words}\n");
    let committed = grouped(status.records_committed);
    let mut records = format!("{committed} of {} committed", grouped(status.records));
    if status.failed > 0 {
        records += &format!(", {} failed", grouped(status.failed));
    }
    line("records", records);
    if let Some(snapshot) = &status.snapshot {
        line("speed", speed(snapshot, status.live));
        let queue = format!("; {} waiting, {} free slots", snapshot.batches_queued, snapshot.slots_free);
        line(
            "batches",
            format!(
                "{} done, {:.1} % full{}",
                grouped(snapshot.fill.batches),
                100.0 * snapshot.fill.mean(),
                if status.live { &queue } else { "" },
            ),
        );
        for device in &snapshot.devices {
            // Of a job that does not run only what cannot have changed since.
            let state = match device.state {
                DeviceState::Retired => Some(DeviceState::Retired),
                state => Some(state).filter(|_| status.live),
            };
            let state = state.map_or(String::new(), |state| format!("{}, ", state_name(state)));
            let mut words = format!("{state}{} tokens", grouped(device.tokens));
            match device.restarts {
                0 => {}
                1 => words += ", 1 restart",
                restarts => words += &format!(", {restarts} restarts"),
            }
            if let Some(error) = &device.last_error {
                words += &format!(", last error: {error}");
            }
            line(&device.name, words);
        }
    }
    headline(status) + &text
}

/// How fast it is, or was in its latest session: of a job that does not run there is no now.
fn speed(snapshot: &Snapshot, live: bool) -> String {
    let whole = grouped(snapshot.tokens_per_s as u64);
    let time = duration(snapshot.elapsed_s);
    if !live {
        return format!("{whole} tokens/s in the latest session, which took {time}");
    }
    let remaining =
        snapshot.remaining_s().map_or(String::new(), |seconds| format!(", about {} left", duration(seconds)));
    let now = grouped(snapshot.tokens_per_s_now as u64);
    format!("{now} tokens/s now, {whole} since the start {time} ago{remaining}")
}

fn headline(status: &Status) -> String {
    let snapshot = status.snapshot.as_ref();
    let now = match (status.live, status.status) {
        (true, _) if !status.answers => "no answer; when last heard of:",
        (true, _) if snapshot.is_some_and(|snapshot| snapshot.stopping) => "stopping",
        (true, _) if snapshot.is_some_and(|snapshot| snapshot.disk_full) => "waiting: writing is paused",
        (true, _) if snapshot.is_some_and(|snapshot| snapshot.paused) => "paused",
        (true, _) => "running",
        (false, RunStatus::Running) => {
            "not running: it was killed, or the machine went down; the same command goes on"
        }
        (false, RunStatus::Done) => "done",
        (false, RunStatus::Stopped) => "stopped; the same command goes on",
        (false, RunStatus::Failed) => "failed",
    };
    match &status.reason {
        Some(reason) if !status.live => format!("{now} ({reason})\n"),
        Some(_) | None => format!("{now}\n"),
    }
}

fn state_name(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Loading => "loading",
        DeviceState::Ready => "ready",
        DeviceState::Waiting => "about to be restarted",
        DeviceState::Retired => "retired",
        DeviceState::Stopped => "stopped",
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn only_a_job_that_runs_has_a_now() {
        let device = serde_json::json!({ "name": "sim:0", "state": "ready", "tokens": 1234 });
        let device = serde_json::from_value(device).unwrap();
        let snapshot = Snapshot { elapsed_s: 12.0, devices: vec![device], ..Snapshot::default() };
        let mut status = Status {
            live: true,
            answers: true,
            status: RunStatus::Running,
            reason: None,
            records: 10,
            records_committed: 5,
            failed: 0,
            snapshot: Some(snapshot),
        };
        let words = in_words(&status);
        for text in ["running\n", "tokens/s now", " ago", "0 waiting", "ready, 1,234 tokens"] {
            assert!(words.contains(text), "{text}: {words}");
        }
        status.answers = false;
        assert!(in_words(&status).starts_with("no answer"));
        status.live = false;
        let words = in_words(&status);
        for text in [" now", " ago", "waiting", "ready"] {
            assert!(!words.contains(text), "{text}: {words}");
        }
        assert!(words.contains("in the latest session, which took 12 s"), "{words}");
    }

    #[test]
    fn a_job_that_may_be_suspended_is_told_so() {
        let folder = ResultFolder("no-such-folder".into());
        let suspended = does_not_answer(&folder, &io::Error::from(io::ErrorKind::WouldBlock));
        assert_eq!(suspended.line(), "the job in `no-such-folder` runs and does not answer");
        let gone = does_not_answer(&folder, &io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(gone.line(), "the job in `no-such-folder` does not answer: broken pipe");
    }
}
