//! Signals: the first stops in order, the second at once. Who asks over the socket stops the same run.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actors::{
    JobView, PreparingStep, PreparingView, SNAPSHOT_VERSION, Snapshot, StopReason, Stopper, bounds,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::failure::Exit;

/// The same signal within this time is the first one once more: `timeout` sends it to the program, then to its group.
const SAME_SIGNAL: Duration = Duration::from_millis(200);

/// Lets a write beyond a limit on file sizes (`ulimit -f`, quotas of clusters) fail like one on a full disk;
/// by default the signal ends the process.
pub(crate) fn survive_file_size_limits() {
    // Without the handler such a limit is fatal, as it was before: no reason not to start.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

/// The run that signals and askers stop; none while it is being prepared.
#[derive(Clone, Default)]
pub(crate) struct Target(Arc<Mutex<Aim>>);

#[derive(Default)]
struct Aim {
    run: Option<(Stopper, watch::Receiver<Arc<Snapshot>>)>,
    /// From its first `run.json` on there is something to be ended in order.
    begins: bool,
    /// Why the run is to be stopped as soon as it is there.
    asked: Option<StopReason>,
    received: Option<&'static str>,
    job: JobView,
    /// How its preparation stands.
    preparing: PreparingView,
    /// When that began.
    began: Option<Instant>,
    /// The file that standard input is stored in, while it is.
    storing: Option<PathBuf>,
    /// The socket, which an end in the middle of things takes along.
    socket: Option<PathBuf>,
}

impl Target {
    /// From now on this job is being prepared.
    pub(crate) fn prepare(&self, job: JobView, socket: PathBuf) {
        let mut aim = self.aim();
        (aim.job, aim.socket, aim.began) = (job, Some(socket), Some(Instant::now()));
    }

    /// What is being done for it.
    pub(crate) fn prepares(&self, step: PreparingStep) {
        self.aim().preparing.step = step;
    }

    /// Standard input is being stored in this file.
    pub(crate) fn stores(&self, file: PathBuf) {
        let mut aim = self.aim();
        aim.preparing = PreparingView { step: PreparingStep::StoringInput, ..PreparingView::default() };
        aim.storing = Some(file);
    }

    /// Standard input is stored, where it was the input, and all of it is read.
    pub(crate) fn reads(&self) {
        let mut aim = self.aim();
        (aim.preparing, aim.storing) = (PreparingView::default(), None);
    }

    /// How much of the input is read.
    pub(crate) fn has_read(&self, bytes_read: u64, bytes_total: u64) {
        let mut aim = self.aim();
        (aim.preparing.bytes_read, aim.preparing.bytes_total) = (bytes_read, bytes_total);
    }

    /// How it stands before it is a run.
    pub(crate) fn preparing(&self) -> Snapshot {
        let aim = self.aim();
        Snapshot {
            version: SNAPSHOT_VERSION,
            job: aim.job.clone(),
            elapsed_s: aim.began.map_or(0.0, |began| began.elapsed().as_secs_f64()),
            preparing: Some(aim.preparing),
            ..Snapshot::default()
        }
    }

    /// The run, once there is one.
    pub(crate) fn run(&self) -> Option<(Stopper, watch::Receiver<Arc<Snapshot>>)> {
        self.aim().run.clone()
    }

    /// From now on a stop waits for the run, which says in `run.json` how it ended.
    pub(crate) fn begins(&self) {
        self.aim().begins = true;
    }

    /// Whether a stop waits for the run.
    pub(crate) fn is_awaited(&self) -> bool {
        self.aim().asked.is_some()
    }

    /// Carries out the stop that waits for a run, without it: nothing says yet that there is one.
    pub(crate) fn end_before_run(&self) -> ! {
        let mut aim = self.aim();
        let reason = aim.asked.take().unwrap_or(StopReason::Asked);
        end_before_run(&aim, &reason)
    }

    /// From now on a signal stops this run.
    pub(crate) fn set(&self, stopper: Stopper, snapshots: watch::Receiver<Arc<Snapshot>>) {
        let mut aim = self.aim();
        if let Some(reason) = aim.asked.take() {
            stopper.stop(reason);
        }
        aim.run = Some((stopper, snapshots));
    }

    /// The signal that came, if one did: what follows the run asks for itself.
    pub(crate) fn received(&self) -> Option<&'static str> {
        self.aim().received
    }

    fn aim(&self) -> MutexGuard<'_, Aim> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the run in order. One that is still being prepared ends at once, and this process with it.
    pub(crate) fn stop(&self, reason: StopReason) {
        let mut aim = self.aim();
        if let StopReason::Signal(name) = reason {
            aim.received = Some(name);
        }
        match &aim.run {
            Some((stopper, _)) => stopper.stop(reason),
            None if aim.begins => drop(aim.asked.get_or_insert(reason)),
            None => end_before_run(&aim, &reason),
        }
    }

    /// Leaves at once. What the end of a run would have told, `run.log` tells.
    fn leave(&self, name: &'static str) -> ! {
        // Before the terminal is given back: there it is said in fewer words.
        if let Some((_, snapshots)) = &self.aim().run {
            let snapshot = snapshots.borrow().clone();
            tracing::warn!(
                signal = name,
                records_committed = snapshot.records_committed,
                records = snapshot.records_total,
                "second signal: leaving at once. Left behind: batches under way, and of open segments what no \
                 journal keeps, to be computed again; run.json as of the last commit; no failed.tsv and no report \
                 of this session, which `virnucpro-orch report` makes"
            );
        }
        crate::dashboard::screen::give_back();
        crate::stderr::say(format_args!("second signal ({name}): leaving at once; the same command resumes"));
        crate::result_folder::give_lock_back();
        crate::logging::flush();
        std::process::exit(Exit::Interrupted as i32);
    }
}

/// Ends the program where nothing was begun: there is nothing to commit.
fn end_before_run(aim: &Aim, reason: &StopReason) -> ! {
    let PreparingView { step, bytes_read, bytes_total } = aim.preparing;
    tracing::warn!(
        %reason,
        bytes_read,
        bytes_total,
        "ended before the first batch, while {}; the same command starts again",
        step.words()
    );
    crate::dashboard::screen::give_back();
    crate::stderr::say(format_args!("{reason} before the first batch; the same command starts again"));
    if let Some(file) = &aim.storing {
        // Of its bytes nothing can be made; that it is there says that they had not all come.
        let _ = std::fs::File::options().write(true).open(file).and_then(|file| file.set_len(0));
    }
    if let Some(socket) = &aim.socket {
        let _ = std::fs::remove_file(socket);
    }
    crate::result_folder::give_lock_back();
    crate::logging::flush();
    std::process::exit(Exit::Resumable as i32);
}

/// Whether whoever started the program wants it to outlive its terminal, as `nohup` does.
pub(crate) fn is_hangup_ignored() -> bool {
    const SIGHUP_BIT: u64 = 1;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & SIGHUP_BIT != 0)
}

/// Listens for SIGINT, SIGTERM, SIGHUP and SIGUSR1 (a cluster's warning before pre-emption).
///
/// # Errors
/// If the system refuses a handler.
pub(crate) fn listen(target: Target) -> std::io::Result<()> {
    let mut signals = vec![
        ("SIGINT", signal(SignalKind::interrupt())?),
        ("SIGTERM", signal(SignalKind::terminate())?),
        ("SIGUSR1", signal(SignalKind::user_defined1())?),
    ];
    if !is_hangup_ignored() {
        signals.push(("SIGHUP", signal(SignalKind::hangup())?));
    }
    let (sender, mut received) = tokio::sync::mpsc::channel(bounds::SIGNALS);
    for (name, mut signal) in signals.drain(..) {
        let sender = sender.clone();
        tokio::spawn(
            async move { while signal.recv().await.is_some() && sender.send(name).await.is_ok() {} },
        );
    }
    tokio::spawn(async move {
        let Some(first) = received.recv().await else { return };
        let at = Instant::now();
        target.stop(StopReason::Signal(first));
        while let Some(name) = received.recv().await {
            if name != first || at.elapsed() > SAME_SIGNAL {
                target.leave(name);
            }
        }
    });
    Ok(())
}
