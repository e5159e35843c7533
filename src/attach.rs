//! The commands `status`, `stop`, `pause`, `resume`, `retire`, `readmit` and `checkpoint`: they ask the job that runs in a result folder, and where
//! none runs, `status` tells what is left of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use actors::manifest::{ResultFolder, RunStatus};
use actors::{DeviceState, PreparingStep, PreparingView, Snapshot};
use serde::Serialize;

use crate::cli::StatusArguments;
use crate::control::{self, Answer, Request};
use crate::failure::{Exit, Failure};
use crate::progress::{duration, full, grouped};
use crate::result_folder::{self, Holder, utc};

/// What to do where no run was begun.
pub(crate) const GIVE_ONE_BEGUN: &str =
    "give the output.directory of a job that was begun, or its job file; `virnucpro-orch run` begins one";
/// How long a running job may take to take a request.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// A job that has not answered for so long is asked whether it is there at all, and given as long to say so.
const ANSWER_STEP: Duration = Duration::from_millis(2500);
/// Version of what `status --json` prints. 1 said in `status` what `run.json` says, which knows of no pause.
const STATUS_VERSION: u32 = 2;
/// Longest answer: a snapshot takes some hundred bytes for each device.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// What `status` tells.
#[derive(Serialize)]
struct Status {
    /// [`STATUS_VERSION`].
    version: u32,
    /// Whether a process is at work on it now.
    live: bool,
    /// Whether it said so itself: a suspended process says nothing.
    answers: bool,
    /// How it stands now.
    status: Standing,
    /// What `run.json` says of it; null before there is one.
    recorded: Option<RunStatus>,
    reason: Option<String>,
    records: u64,
    records_committed: u64,
    failed: u64,
    /// When the snapshot was made, seconds since 1970; null without one, or where it does not tell.
    snapshot_unix_s: Option<u64>,
    /// The state of this moment, or the last one that the latest session kept.
    snapshot: Option<Snapshot>,
    /// Whether the process that does not answer has not come to its own `run.json`: what is recorded is older.
    #[serde(skip)]
    is_recorded_before: bool,
    /// Whether its end could not be written down, and the latest figures with it.
    #[serde(skip)]
    is_cut_short: bool,
}

impl Status {
    /// Whether the snapshot is of a moment at which the job was at work, before the last that is known of it.
    fn is_overtaken(&self) -> bool {
        self.is_cut_short || matches!(self.status, Standing::Killed | Standing::NoAnswer)
    }
}

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Standing {
    /// Nothing is computed yet; the snapshot tells what is done instead.
    Preparing,
    Running,
    /// Devices get no batches until somebody lets them go on.
    Paused,
    /// The disk takes nothing for now.
    WritingPaused,
    Stopping,
    /// It runs and does not answer.
    NoAnswer,
    /// It ended without a word.
    Killed,
    Done,
    Stopped,
    Failed,
}

impl Standing {
    /// `live`: whether a process is at work on it. `answer`: what that says, if it does.
    fn of(live: bool, answer: Option<&Snapshot>, recorded: Option<RunStatus>) -> Self {
        match (live, answer, recorded) {
            (true, None, _) => Self::NoAnswer,
            (true, Some(snapshot), _) if snapshot.preparing.is_some() => Self::Preparing,
            (true, Some(snapshot), _) if snapshot.stopping => Self::Stopping,
            (true, Some(snapshot), _) if snapshot.disk_full => Self::WritingPaused,
            (true, Some(snapshot), _) if snapshot.paused => Self::Paused,
            (true, Some(_), _) => Self::Running,
            (false, _, Some(RunStatus::Running) | None) => Self::Killed,
            (false, _, Some(RunStatus::Done)) => Self::Done,
            (false, _, Some(RunStatus::Stopped)) => Self::Stopped,
            (false, _, Some(RunStatus::Failed)) => Self::Failed,
        }
    }
}

/// Shows how a job stands, running or not.
pub(crate) fn status(arguments: &StatusArguments) -> Result<Exit, Failure> {
    let folder = ResultFolder(meant(&arguments.folder)?);
    let (live, silent) = match ask(&folder, &Request::Status) {
        Ok(live) => (live, None),
        Err(failure) => (None, Some(failure)),
    };
    let live_snapshot = match live {
        Some(Answer::Snapshot(snapshot)) => Some(*snapshot),
        Some(Answer::Done | Answer::Said(_) | Answer::Error(_)) | None => None,
    };
    let manifest =
        result_folder::recorded(&folder).map_err(|error| Failure::because(Exit::Failed, &error))?;
    // A job that has only begun has none.
    if manifest.is_none() && live_snapshot.is_none() {
        return Err(silent.unwrap_or_else(|| no_run(&folder.0)));
    }
    let answers = live_snapshot.is_some();
    let live = answers || silent.is_some();
    let recorded = manifest.as_ref().map(|manifest| manifest.status);
    let session = manifest.as_ref().and_then(|manifest| manifest.sessions.last());
    let session_unix_s = session.map(|session| session.started_unix_s);
    let holder = if live && !answers { result_folder::owner(&folder) } else { None };
    let snapshot = live_snapshot.clone().or_else(|| kept_snapshot(&folder, session_unix_s, holder.as_ref()));
    let (counts, totals) = manifest.as_ref().map(|manifest| (&manifest.counts, &manifest.totals)).unzip();
    let status = Status {
        version: STATUS_VERSION,
        live,
        answers,
        status: Standing::of(live, live_snapshot.as_ref(), recorded),
        recorded,
        reason: manifest.as_ref().and_then(|manifest| manifest.reason.clone()),
        records: counts.map_or(0, |counts| counts.records),
        records_committed: totals.map_or(0, |totals| totals.records),
        failed: totals.map_or(0, |totals| totals.failed),
        snapshot_unix_s: snapshot.as_ref().and_then(made_at),
        snapshot,
        is_cut_short: !live && result_folder::last_word(&folder).is_some(),
        is_recorded_before: holder.is_some_and(|holder| {
            // A quick session began and ended in the second in which this process began.
            let last = holder.started_unix_s + u64::from(recorded != Some(RunStatus::Running));
            session_unix_s.is_some_and(|began| began < last)
        }),
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
/// If it is another file, or no file at all, or the job file says nothing that can be done.
pub(crate) fn meant(typed: &Path) -> Result<PathBuf, Failure> {
    use std::os::unix::fs::FileTypeExt;
    const GIVE: &str = "give the folder named output.directory in the job, or the job file, job.toml";
    let is = |what: &str| {
        let text = format!("`{}` {what}, not a result folder", typed.display());
        Failure::new(Exit::Usage, text)
    };
    let kind = match typed.metadata() {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(is("leads through a file").hint(GIVE));
        }
        // What is not there is for those to tell who look into it.
        Err(_) => return Ok(typed.to_owned()),
    };
    if kind.is_dir() {
        return Ok(typed.to_owned());
    }
    if !kind.is_file() {
        let what = if kind.is_fifo() {
            "is a pipe"
        } else if kind.is_socket() {
            "is a socket"
        } else {
            "is a device"
        };
        return Err(is(what).hint(GIVE));
    }
    if typed.extension().is_some_and(|extension| extension == "toml") {
        return Ok(config::load(typed, &[])?.output.directory);
    }
    let failure = is("is a file");
    // Such as run.json or run.log.
    let around =
        typed.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    let around = around.filter(|folder| ResultFolder(folder.to_path_buf()).manifest().is_file());
    Err(match around {
        Some(folder) => failure.hint(format!("give the folder that it is in: {}", folder.display())),
        None => failure.hint(GIVE),
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
    if !folder.exists() {
        return missing(folder);
    }
    let failure = Failure::new(Exit::Usage, format!("no job is running in `{}`", folder.display()));
    if ResultFolder(folder.to_owned()).manifest().exists() {
        failure.hint(format!("virnucpro-orch status {} tells what is left of it", folder.display()))
    } else {
        failure.hint(GIVE_ONE_BEGUN)
    }
}

/// That nothing is there at all.
pub(crate) fn missing(folder: &Path) -> Failure {
    Failure::new(Exit::Usage, format!("`{}` does not exist", folder.display())).hint(GIVE_ONE_BEGUN)
}

/// Puts a request to the job that runs in a folder; `None` if none does.
pub(crate) fn open(folder: &ResultFolder, request: &Request) -> Result<Option<UnixStream>, Failure> {
    let mut stream = match control::connect(folder) {
        Ok(stream) => stream,
        // What a killed run left behind is closed to others as well.
        Err(error)
            if error.kind() == std::io::ErrorKind::PermissionDenied
                && result_folder::owner_lives(folder) != Some(false) =>
        {
            return Err(of_another_user(folder));
        }
        Err(error) if result_folder::owner_lives(folder) == Some(true) => {
            return Err(cannot_be_asked(folder, &error));
        }
        Err(_) => return Ok(None),
    };
    let mut line = serde_json::to_string(request).map_err(|error| Failure::because(Exit::Failed, &error))?;
    line.push('\n');
    stream
        .set_write_timeout(Some(REQUEST_MAX))
        .and_then(|()| stream.write_all(line.as_bytes()))
        .map_err(|error| does_not_answer(folder, &error))?;
    Ok(Some(stream))
}

/// Who holds a folder, in words that follow its name.
fn who(holder: Option<&Holder>) -> String {
    holder.map_or(String::new(), |Holder { process, host, .. }| {
        format!(" (process {process} on {})", actors::shown(host))
    })
}

fn of_another_user(folder: &ResultFolder) -> Failure {
    let (folder_name, who) = (folder.0.display(), who(result_folder::owner(folder).as_ref()));
    let text = format!("the job in `{folder_name}`{who} belongs to another user, whom alone it answers");
    Failure::new(Exit::Failed, text).hint("ask as that user; run.log and run.json tell how far it was")
}

fn cannot_be_asked(folder: &ResultFolder, error: &std::io::Error) -> Failure {
    let (folder_name, who) = (folder.0.display(), who(result_folder::owner(folder).as_ref()));
    let socket = folder.socket();
    let text =
        format!("the job in `{folder_name}`{who} runs and cannot be asked: `{}`: {error}", socket.display());
    Failure::new(Exit::Failed, text).hint(
        "if it has only just begun, ask again; run.log tells how far it is, and SIGTERM to that process stops it in order",
    )
}

fn does_not_answer(folder: &ResultFolder, error: &std::io::Error) -> Failure {
    let folder_name = folder.0.display();
    if !is_timeout(error) {
        return Failure::new(Exit::Failed, format!("the job in `{folder_name}` does not answer: {error}"));
    }
    let holder = result_folder::owner(folder);
    let who = who(holder.as_ref());
    let go_on = holder.map_or("`kill -CONT`".to_owned(), |holder| format!("`kill -CONT {}`", holder.process));
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
    let began = Instant::now();
    stream.set_read_timeout(Some(ANSWER_STEP)).map_err(failed)?;
    let mut lines = BufReader::new(stream.take(ANSWER_BYTES_MAX));
    let mut answer = Vec::new();
    while let Err(error) = lines.read_until(b'\n', &mut answer) {
        let patience = request.answer_max();
        let waits = is_timeout(&error) && began.elapsed() < patience;
        // What takes long is not to be told from what is suspended, except by another question.
        if !waits || (patience > REQUEST_MAX && !is_there(folder)) {
            return Err(failed(error));
        }
    }
    let answer = serde_json::from_slice(&answer).map_err(|error| {
        Failure::new(
            Exit::Failed,
            format!("the job in `{}` answers something else: {error}", folder.0.display()),
        )
        .hint("is it of another version of the program?")
    })?;
    Ok(Some(answer))
}

/// Whether the job that runs in a folder says anything at all.
fn is_there(folder: &ResultFolder) -> bool {
    let Ok(Some(stream)) = open(folder, &Request::Status) else { return false };
    let mut byte = [0];
    // A job that closes the connection, such as for too many viewers, is there too.
    stream.set_read_timeout(Some(ANSWER_STEP)).is_ok() && (&stream).read(&mut byte).is_ok()
}

/// The snapshot that the latest session has kept; one of an earlier session says nothing of it.
fn kept_snapshot(
    folder: &ResultFolder,
    session_unix_s: Option<u64>,
    holder: Option<&Holder>,
) -> Option<Snapshot> {
    let file = actors::files::open_regular(&folder.snapshot()).ok()?;
    let snapshot = serde_json::from_reader(file.take(ANSWER_BYTES_MAX)).ok()?;
    is_of_latest(&snapshot, session_unix_s, holder).then_some(snapshot)
}

/// Whether a snapshot is of the session that began then and, where one holds the folder, of that process.
fn is_of_latest(snapshot: &Snapshot, session_unix_s: Option<u64>, holder: Option<&Holder>) -> bool {
    let job = &snapshot.job;
    // Those of version 1 do not tell.
    if job.started_unix_s == 0 {
        return true;
    }
    let of_holder = holder
        .is_none_or(|holder| holder.process == job.process && holder.started_unix_s <= job.started_unix_s);
    of_holder && session_unix_s.is_none_or(|began| began == job.started_unix_s)
}

/// When a snapshot was made, by the clock of its machine.
fn made_at(snapshot: &Snapshot) -> Option<u64> {
    let started_unix_s = snapshot.job.started_unix_s;
    (started_unix_s > 0).then(|| started_unix_s.saturating_add(snapshot.elapsed_s as u64))
}

fn no_run(folder: &Path) -> Failure {
    if !folder.exists() {
        return missing(folder);
    }
    let results = ResultFolder(folder.to_owned());
    let nothing = |why: String| {
        Failure::new(Exit::Usage, format!("`{}` holds no result: {why}", folder.display()))
            .hint("the same command starts again; run.log tells how far it was")
    };
    match result_folder::owner(&results) {
        Some(Holder { process, host, started_unix_s })
            if result_folder::owner_lives(&results) == Some(false) =>
        {
            let (host, begun) = (actors::shown(&host), result_folder::utc(started_unix_s));
            nothing(format!("process {process} on {host}, begun {begun}, was killed before its first batch"))
        }
        None if results.log().is_file() && results.state().is_dir() => {
            nothing("the run that was begun there ended before its first batch".to_owned())
        }
        _ => Failure::new(Exit::Usage, format!("`{}` holds no run", folder.display())).hint(GIVE_ONE_BEGUN),
    }
}

fn in_words(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, words: String| text += &format!("  {name:<10} {words}\n");
    let preparing = status.snapshot.as_ref().filter(|_| status.live).and_then(|snapshot| snapshot.preparing);
    if let Some(PreparingView { step: PreparingStep::StoringInput, bytes_read, .. }) = preparing {
        line("input", format!("{} bytes stored so far", grouped(bytes_read)));
    } else if let Some(PreparingView { bytes_read, bytes_total, .. }) =
        preparing.filter(|view| view.bytes_total > 0)
    {
        let share = 100.0 * bytes_read as f64 / bytes_total as f64;
        line("input", format!("{share:.0} % of {} bytes read", grouped(bytes_total)));
    }
    if preparing.is_some() && status.recorded.is_none() {
        // Nothing is known of its records.
        return headline(status) + &text;
    }
    let committed = grouped(status.records_committed);
    let mut records = format!("{committed} of {} committed", grouped(status.records));
    if status.failed > 0 {
        records += &format!(", {} failed", grouped(status.failed));
    }
    line("records", records);
    if let Some(snapshot) = status.snapshot.as_ref().filter(|_| preparing.is_none()) {
        if status.is_overtaken() {
            let elapsed = duration(snapshot.elapsed_s);
            let when = made_at(snapshot).map_or(String::new(), |made| format!("{}, ", utc(made)));
            line("as of", format!("{when}{elapsed} after it began; not known since"));
        }
        line("speed", speed(snapshot, status));
        let full = full(&snapshot.fill).map_or(String::new(), |percent| format!(", {percent:.1} % full"));
        let queue = format!("; {} waiting, {} free slots", snapshot.batches_queued, snapshot.slots_free);
        let queue = if status.live { &queue } else { "" };
        line("batches", format!("{} done{full}{queue}", grouped(snapshot.fill.batches)));
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

/// How fast it is, or was in its latest session: of a job that does not say so itself there is no now.
fn speed(snapshot: &Snapshot, status: &Status) -> String {
    let whole = grouped(snapshot.tokens_per_s as u64);
    let time = duration(snapshot.elapsed_s);
    if status.is_overtaken() {
        return match snapshot.tokens_computed {
            0 => "not known: nothing was computed by then".to_owned(),
            _ => format!("{whole} tokens/s from its start until then"),
        };
    }
    if !status.live {
        return format!("{whole} tokens/s in the latest session, which took {time}");
    }
    let remaining =
        snapshot.remaining_s().map_or(String::new(), |seconds| format!(", about {} left", duration(seconds)));
    let now = grouped(snapshot.tokens_per_s_now as u64);
    format!("{now} tokens/s now, {whole} since the start {time} ago{remaining}")
}

fn headline(status: &Status) -> String {
    let step = || status.snapshot.as_ref().and_then(|snapshot| snapshot.preparing).unwrap_or_default().step;
    let now = match status.status {
        Standing::Preparing => step().words(),
        Standing::NoAnswer if status.is_recorded_before => {
            "no answer, and nothing is kept of it yet; of the result that was there before:"
        }
        Standing::NoAnswer => "no answer; when last heard of:",
        Standing::Stopping => "stopping",
        Standing::WritingPaused => "waiting: writing is paused",
        Standing::Paused => "paused",
        Standing::Running => "running",
        Standing::Killed => "not running: it was killed, or the machine went down; the same command goes on",
        Standing::Done => "done",
        Standing::Stopped => "stopped; the same command goes on",
        Standing::Failed => "failed",
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

    use actors::JobView;

    use super::*;

    #[test]
    fn only_a_job_that_runs_has_a_now() {
        let device = serde_json::json!({ "name": "sim:0", "state": "ready", "tokens": 1234 });
        let device = serde_json::from_value(device).unwrap();
        let job = JobView { started_unix_s: 1_795_283_526, ..JobView::default() };
        let snapshot = Snapshot { job, elapsed_s: 12.0, devices: vec![device], ..Snapshot::default() };
        let mut status = Status {
            version: STATUS_VERSION,
            live: true,
            answers: true,
            status: Standing::Running,
            recorded: Some(RunStatus::Running),
            reason: None,
            records: 10,
            records_committed: 5,
            failed: 0,
            snapshot_unix_s: made_at(&snapshot),
            snapshot: Some(snapshot),
            is_recorded_before: false,
            is_cut_short: false,
        };
        let words = in_words(&status);
        for text in ["running\n", "tokens/s now", " ago", "0 waiting", "ready, 1,234 tokens"] {
            assert!(words.contains(text), "{text}: {words}");
        }
        (status.answers, status.status) = (false, Standing::NoAnswer);
        assert!(in_words(&status).starts_with("no answer"));
        (status.live, status.status) = (false, Standing::Killed);
        let words = in_words(&status);
        for text in [" now", " ago", "waiting", "ready", "tokens/s", "full"] {
            assert!(!words.contains(text), "{text}: {words}");
        }
        for text in
            ["as of      2026-11-21 17:52:18 UTC, 12 s after it began", "nothing was computed by then"]
        {
            assert!(words.contains(text), "{text}: {words}");
        }
        let snapshot = status.snapshot.as_mut().unwrap();
        (snapshot.tokens_computed, snapshot.tokens_per_s) = (24_000, 2_000.0);
        assert!(in_words(&status).contains("2,000 tokens/s from its start until then"));
        status.status = Standing::Stopped;
        status.is_cut_short = true;
        assert!(in_words(&status).contains("2,000 tokens/s from its start until then"));
        status.is_cut_short = false;
        let words = in_words(&status);
        assert!(
            words.contains("in the latest session, which took 12 s") && !words.contains("as of"),
            "{words}"
        );
    }

    #[test]
    fn a_snapshot_of_an_earlier_session_says_nothing_of_this_one() {
        let holder = |process, started_unix_s| Holder { process, host: "node7".to_owned(), started_unix_s };
        let job = JobView { process: 7, started_unix_s: 1_000, ..JobView::default() };
        let snapshot = Snapshot { job, ..Snapshot::default() };
        let is = |session, holder: Option<Holder>| is_of_latest(&snapshot, session, holder.as_ref());
        assert!(is(Some(1_000), None) && is(Some(1_000), Some(holder(7, 998))));
        // Killed before it kept one.
        assert!(!is(Some(1_200), None));
        // Another process has the folder; in a container all have one number.
        assert!(!is(Some(1_000), Some(holder(8, 1_100))) && !is(Some(1_000), Some(holder(7, 1_100))));
        assert!(is_of_latest(&Snapshot::default(), Some(1_000), Some(&holder(7, 1_100))));
    }

    #[test]
    fn what_is_stored_of_standard_input_is_told() {
        let step = PreparingStep::StoringInput;
        let preparing = PreparingView { step, bytes_read: 1_234_567, bytes_total: 0 };
        let status = Status {
            version: STATUS_VERSION,
            live: true,
            answers: true,
            status: Standing::Preparing,
            recorded: None,
            reason: None,
            records: 0,
            records_committed: 0,
            failed: 0,
            snapshot_unix_s: None,
            snapshot: Some(Snapshot { preparing: Some(preparing), ..Snapshot::default() }),
            is_recorded_before: false,
            is_cut_short: false,
        };
        let words = in_words(&status);
        assert_eq!(words, "storing standard input\n  input      1,234,567 bytes stored so far\n");
    }

    #[test]
    fn a_job_stands_as_it_says_itself_while_it_runs_and_as_is_recorded_afterwards() {
        let answer = |change: fn(&mut Snapshot)| {
            let mut snapshot = Snapshot::default();
            change(&mut snapshot);
            Standing::of(true, Some(&snapshot), Some(RunStatus::Running))
        };
        assert_eq!(answer(|_| ()), Standing::Running);
        assert_eq!(answer(|snapshot| snapshot.paused = true), Standing::Paused);
        assert_eq!(answer(|snapshot| snapshot.disk_full = true), Standing::WritingPaused);
        assert_eq!(
            answer(|snapshot| (snapshot.paused, snapshot.stopping) = (true, true)),
            Standing::Stopping
        );
        assert_eq!(
            answer(|snapshot| snapshot.preparing = Some(PreparingView::default())),
            Standing::Preparing
        );
        assert_eq!(Standing::of(true, None, Some(RunStatus::Running)), Standing::NoAnswer);
        for (recorded, standing) in [
            (Some(RunStatus::Running), Standing::Killed),
            (Some(RunStatus::Done), Standing::Done),
            (Some(RunStatus::Stopped), Standing::Stopped),
            (Some(RunStatus::Failed), Standing::Failed),
        ] {
            assert_eq!(Standing::of(false, None, recorded), standing);
        }
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
