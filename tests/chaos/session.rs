//! One start of the program under its faults, to its end, and whether it may have ended so.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use crate::schedule::{Act, Planned};
use crate::toll::Kind;
use crate::watching::{self, MARK};

/// How long a session may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines {
    /// From its start to its end, unless it is killed before.
    pub(crate) end: Duration,
    /// From its end to that of its last worker; none if that is looked at later.
    pub(crate) leave: Option<Duration>,
}

/// No session takes a third of it: past it the program hangs. Slow machines need the room.
pub(crate) const DEADLINES: Deadlines =
    Deadlines { end: Duration::from_secs(60), leave: Some(Duration::from_secs(15)) };
/// Time between two looks.
const POLL: Duration = Duration::from_millis(2);

/// A session that has ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stderr: String,
    /// What was done to it while it lived.
    pub(crate) struck: Vec<Kind>,
    /// Signals that it was sent.
    pub(crate) signals: Vec<Signal>,
}

/// A session that is going on; no process of it is left when it is dropped before its end.
struct Going<'a> {
    child: Child,
    mark: &'a str,
    has_ended: bool,
}

impl Drop for Going<'_> {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        for id in watching::living(self.mark) {
            watching::signal(id, self.mark, Signal::KILL);
        }
    }
}

/// Runs the program under these acts, its standard input that of `command`; what it says goes to the file `stderr`.
///
/// # Errors
/// It hangs, or leaves workers behind.
pub(crate) fn run(
    command: &mut Command,
    acts: &[Planned],
    usual: Duration,
    stderr: &Path,
    deadlines: Deadlines,
) -> Result<Ended, String> {
    let mark = stderr.display().to_string();
    command.env(MARK, &mark).stdout(Stdio::null()).stderr(File::create(stderr).unwrap());
    let started = Instant::now();
    let mut going = Going { child: command.spawn().unwrap(), mark: &mark, has_ended: false };
    let mut planned: Vec<(Duration, Act)> = acts.iter().map(|act| (act.moment(usual), act.act)).collect();
    planned.sort_by_key(|(moment, _)| *moment);
    let (mut struck, mut signals) = (Vec::new(), Vec::new());
    let mut next = planned.into_iter().peekable();
    let status = loop {
        if let Some(status) = going.child.try_wait().unwrap() {
            break status;
        }
        if let Some((_, act)) = next.next_if(|(moment, _)| started.elapsed() >= *moment) {
            if let Act::Signal(signal) = act {
                signals.push(signal);
            }
            struck.extend(going.strike(act, signals.len()));
            continue;
        }
        if started.elapsed() > deadlines.end {
            return Err(format!("it has not ended after {:?}", deadlines.end));
        }
        std::thread::sleep(POLL);
    };
    // A worker that is suspended cannot leave.
    going.continue_workers();
    if let Some(deadline) = deadlines.leave {
        wait_for_workers(&mark, deadline)?;
    }
    going.has_ended = true;
    let stderr = String::from_utf8_lossy(&std::fs::read(stderr).unwrap()).into_owned();
    Ok(Ended { status, stderr, struck, signals })
}

impl Going<'_> {
    fn id(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn workers(&self) -> Vec<u32> {
        let mut ids = watching::living(self.mark);
        ids.retain(|&id| id != self.child.id());
        ids
    }

    /// Acts; the kind of fault if anything was there to be struck. The child has not been waited for: its id
    /// is its own.
    fn strike(&self, act: Act, signals: usize) -> Option<Kind> {
        let to_orchestrator = |signal| rustix::process::kill_process(self.id(), signal).is_ok();
        let to_a_worker = |pick: u64, signal| {
            let workers = self.workers();
            let chosen = workers.get(pick as usize % workers.len().max(1));
            chosen.is_some_and(|&id| watching::signal(id, self.mark, signal))
        };
        let limit = |bytes| {
            let limit = Rlimit { current: bytes, maximum: None };
            let _ = prlimit(Some(self.id()), Resource::Fsize, limit);
        };
        match act {
            Act::KillOrchestrator => to_orchestrator(Signal::KILL).then_some(Kind::OrchestratorKilled),
            Act::Signal(signal) => to_orchestrator(signal).then_some(match signal {
                _ if signals > 1 => Kind::SecondSignal,
                Signal::TERM => Kind::Sigterm,
                Signal::INT => Kind::Sigint,
                Signal::HUP => Kind::Sighup,
                _ => Kind::Sigusr1,
            }),
            Act::SuspendOrchestrator => to_orchestrator(Signal::STOP).then_some(Kind::OrchestratorSuspended),
            Act::ContinueOrchestrator => {
                to_orchestrator(Signal::CONT);
                None
            }
            Act::KillWorker(pick) => to_a_worker(pick, Signal::KILL).then_some(Kind::WorkerKilled),
            Act::SuspendWorker(pick) => to_a_worker(pick, Signal::STOP).then_some(Kind::WorkerSuspended),
            Act::ContinueWorkers => {
                self.continue_workers();
                None
            }
            Act::LimitFiles(bytes) => {
                limit(Some(bytes));
                None
            }
            Act::LiftLimit => {
                limit(None);
                None
            }
        }
    }

    fn continue_workers(&self) {
        for id in self.workers() {
            watching::signal(id, self.mark, Signal::CONT);
        }
    }
}

/// Waits until the session whose standard error is the file `mark` has no process any more: once the orchestrator has
/// ended, its workers leave by themselves.
///
/// # Errors
/// They do not.
pub(crate) fn wait_for_workers(mark: &str, deadline: Duration) -> Result<(), String> {
    let started = Instant::now();
    loop {
        let workers = watching::living(mark);
        if workers.is_empty() {
            return Ok(());
        }
        if started.elapsed() > deadline {
            return Err(format!("workers outlive their orchestrator: {workers:?}"));
        }
        std::thread::sleep(POLL);
    }
}

/// What the end of a session is held against.
pub(crate) struct Expectation<'a> {
    /// Code of an undisturbed run.
    pub(crate) exit_code: i32,
    /// Kinds of fault that were planned.
    pub(crate) planned: &'a [Kind],
}

/// How a session may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With the code of an undisturbed run.
    Done,
    /// To be resumed.
    Cut,
}

/// Faults that end a session, resumable.
const FATAL: [Kind; 9] = [
    Kind::AllDevicesLost,
    Kind::SupervisorPanicked,
    Kind::ReaderPanicked,
    Kind::ReaderThreadPanicked,
    Kind::PackerPanicked,
    Kind::WriterPanicked,
    Kind::WriterThreadPanicked,
    Kind::TelemetryPanicked,
    Kind::InferencePanicked,
];

/// Whether a session may have ended as it did.
///
/// # Errors
/// Nothing that was done to it explains its end, or it panicked by itself.
pub(crate) fn judge(ended: &Ended, expectation: &Expectation<'_>) -> Result<End, String> {
    if let Some(line) = own_panic(&ended.stderr) {
        return Err(format!("it panicked by itself: {line}"));
    }
    let planned = |kind: Kind| expectation.planned.contains(&kind);
    let said = |text: &str| ended.stderr.contains(text);
    match (ended.status.code(), ended.status.signal()) {
        (Some(code), _) if code == expectation.exit_code => Ok(End::Done),
        (Some(75), _) if !ended.signals.is_empty() => Ok(End::Cut),
        (Some(75), _) if said("fault on purpose at") => Ok(End::Cut),
        (Some(75), _) if planned(Kind::AllDevicesLost) && said("all devices were lost") => Ok(End::Cut),
        // The limit on file sizes is on standard error too, a file here: what it had to say may be lost.
        (Some(75), _) if planned(Kind::DiskFull) && FATAL.into_iter().any(planned) => Ok(End::Cut),
        // Without room for the lock or the log of a session nothing begins.
        (Some(1), _) if planned(Kind::DiskFull) && !said(" ready ") => Ok(End::Cut),
        (Some(130), _) if ended.signals.len() > 1 => Ok(End::Cut),
        (_, Some(signal)) if signal == Signal::KILL.as_raw() => {
            let by_us = ended.struck.contains(&Kind::OrchestratorKilled);
            by_us.then_some(End::Cut).ok_or_else(|| "it was killed, not by this test".to_owned())
        }
        (_, Some(signal)) if signal == Signal::ABORT.as_raw() && planned(Kind::OrchestratorAborted) => {
            Ok(End::Cut)
        }
        // Before the program listens for signals they end it as they end any other.
        (_, Some(signal)) if ended.signals.iter().any(|sent| sent.as_raw() == signal) => Ok(End::Cut),
        _ => Err(format!("nothing explains that it ended with {}", ended.status)),
    }
}

/// A line of standard error about a panic that nobody asked for.
pub(crate) fn own_panic(stderr: &str) -> Option<&str> {
    const ON_PURPOSE: [&str; 4] =
        ["kernels/src/sim.rs:", "actors/src/fault.rs:", "simulated panic", "fault on purpose"];
    stderr.lines().find(|line| {
        let panicked = line.contains("panicked") || line.contains("this is a bug");
        panicked && !ON_PURPOSE.iter().any(|text| line.contains(text))
    })
}
