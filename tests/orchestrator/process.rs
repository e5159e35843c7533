//! The program as a child of a test: started, watched, signalled, and killed should it hang.

use std::fmt::Debug;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};

/// The executable under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_virnucpro-orch");

/// No run of these tests takes a tenth of it: past it the program hangs. Slow machines need the room.
const DEADLINE: Duration = Duration::from_secs(300);
/// Time between two looks at a condition.
const POLL: Duration = Duration::from_millis(3);

/// A command line of the program.
pub(crate) fn program<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments);
    without_settings(&mut command);
    command
}

/// Keeps the tester's own environment and GPUs out: the one can set any key of a job, with the others it would
/// compute in another precision.
pub(crate) fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        // Backtraces of panics on purpose take longer to print than a run takes.
        if name.to_string_lossy().starts_with("VIRNUCPRO") || name == "RUST_BACKTRACE" {
            command.env_remove(name);
        }
    }
    command
        .env(kernels::nvml::Library::VARIABLE, "/nowhere/libnvidia-ml.so")
        .env_remove("CUDA_VISIBLE_DEVICES");
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Finished {
    Running::start(command).finish()
}

/// A process that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) elapsed: Duration,
}

impl Finished {
    /// The exit code; a process ended by a signal fails the test.
    #[track_caller]
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("ended by {}:\n{}", self.status, self.stderr))
    }

    /// Whether a signal, such as that of an abort, ended the process.
    pub(crate) fn was_ended_by_a_signal(&self) -> bool {
        self.status.code().is_none()
    }

    /// Fails the test unless the process ended with this code.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        let found = self.code();
        assert_eq!(
            found, code,
            "exit code; standard error:\n{}\nstandard output:\n{}",
            self.stderr, self.stdout
        );
        self
    }

    /// Fails the test unless standard error mentions each of these.
    #[track_caller]
    pub(crate) fn says<S: AsRef<str> + Debug>(self, texts: impl IntoIterator<Item = S>) -> Self {
        for text in texts {
            assert!(self.stderr.contains(text.as_ref()), "{text:?} is not in:\n{}", self.stderr);
        }
        self
    }
}

/// A process that is going on; killed when dropped.
pub(crate) struct Running {
    child: Child,
    started: Instant,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    stderr_thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts a command with nothing on its standard input.
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::start_with(command.stdin(Stdio::null()))
    }

    /// Starts a command and gives it `input` through a pipe.
    pub(crate) fn start_fed(command: &mut Command, input: &[u8]) -> Self {
        let mut running = Self::start_with(command.stdin(Stdio::piped()));
        let mut pipe = running.child.stdin.take().unwrap();
        let input = input.to_vec();
        // A thread, since a pipe holds less than a file; the program may leave without reading it.
        std::thread::spawn(move || {
            let _ = pipe.write_all(&input);
        });
        running
    }

    /// Starts a command whose standard input stays open and empty.
    pub(crate) fn start_stdin_open(command: &mut Command) -> Self {
        Self::start_with(command.stdin(Stdio::piped()))
    }

    /// Gives a command that was started so some input, which is not its end.
    pub(crate) fn feed(&mut self, input: &[u8]) {
        self.child.stdin.as_mut().unwrap().write_all(input).unwrap();
    }

    /// Starts a command whose standard error, here, is full already and not read.
    pub(crate) fn start_unread(command: &mut Command, stderr: impl Into<Stdio>) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
        // Else the command would keep it open.
        command.stderr(Stdio::null());
        let stderr = Arc::new(Mutex::new(Vec::new()));
        Self { child, started: Instant::now(), stdout: None, stderr, stderr_thread: None }
    }

    fn start_with(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        let stdout = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            out.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let mut err = child.stderr.take().unwrap();
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let shared = stderr.clone();
        let stderr_thread = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = err.read(&mut piece) {
                shared.lock().unwrap().extend_from_slice(&piece[..read]);
            }
        });
        let (stdout, stderr_thread) = (Some(stdout), Some(stderr_thread));
        Self { child, started: Instant::now(), stdout, stderr, stderr_thread }
    }

    /// Ends that input.
    pub(crate) fn close_stdin(&mut self) {
        self.child.stdin = None;
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard error so far.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().unwrap()).into_owned()
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until `condition` holds; fails the test if the process ends before or takes too long.
    #[track_caller]
    pub(crate) fn wait_until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        loop {
            let ended = self.has_ended();
            if condition(self) {
                return;
            }
            assert!(!ended, "ended before: {what}\n{}", self.stderr());
            assert!(self.started.elapsed() < DEADLINE, "never: {what}\n{}", self.stderr());
            std::thread::sleep(POLL);
        }
    }

    /// Waits until standard error mentions `text`.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, text: &str) {
        self.wait_until(text, |running| running.stderr().contains(text));
    }

    /// Waits until `moment` after its start, or its end if that comes first.
    pub(crate) fn run_for(&mut self, moment: Duration) {
        while self.started.elapsed() < moment && !self.has_ended() {
            std::thread::sleep(POLL.min(moment.saturating_sub(self.started.elapsed())));
        }
    }

    /// Sends a signal; a process that has ended does not mind.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if !self.has_ended() {
            kill_process(Pid::from_child(&self.child), signal).unwrap();
        }
    }

    /// Its worker processes.
    pub(crate) fn workers(&self) -> Vec<ProcessIdentity> {
        ProcessIdentity::children_of(self.id())
    }

    /// Its open files, sockets and pipes.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.id())).unwrap().count()
    }

    /// Its threads.
    pub(crate) fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.id())).unwrap().count()
    }

    /// Whether each of its threads is suspended.
    pub(crate) fn is_suspended(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.id())).unwrap().flatten();
        let mut ids = tasks.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
        ids.all(is_suspended)
    }

    /// Children that ended and were not waited for.
    pub(crate) fn zombies(&self) -> usize {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
        ids.filter_map(stat).filter(|stat| stat.parent == self.id() && stat.state == 'Z').count()
    }

    /// Waits for the end; fails the test if it takes too long.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Finished {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(self.started.elapsed() < DEADLINE, "it hangs:\n{}", self.stderr());
            std::thread::sleep(POLL);
        };
        let elapsed = self.started.elapsed();
        let stdout = self.stdout.take().map(|thread| thread.join().unwrap()).unwrap_or_default();
        let stdout = String::from_utf8(stdout).unwrap();
        if let Some(thread) = self.stderr_thread.take() {
            thread.join().unwrap();
        }
        Finished { status, stdout, stderr: self.stderr(), elapsed }
    }

    /// Ends it as `kill -9` does, and waits until it is gone.
    pub(crate) fn kill(mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process by id and start, since ids are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessIdentity {
    id: u32,
    started_ticks: u64,
}

impl ProcessIdentity {
    pub(crate) fn children_of(parent: u32) -> Vec<Self> {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
        let stats = ids.filter_map(|id: u32| Some((id, stat(id)?)));
        stats
            .filter(|(_, stat)| stat.parent == parent && stat.state != 'Z')
            .map(|(id, stat)| Self { id, started_ticks: stat.started_ticks })
            .collect()
    }

    pub(crate) fn id(self) -> u32 {
        self.id
    }

    /// Whether it still runs.
    pub(crate) fn lives(self) -> bool {
        stat(self.id).is_some_and(|stat| stat.started_ticks == self.started_ticks && stat.state != 'Z')
    }

    /// Ends it as `kill -9` does, if it still runs.
    pub(crate) fn kill(self) {
        self.signal(Signal::KILL);
    }

    /// A copy of the socket that is its standard input, which stays open when the process is gone. `None`, with the
    /// reason on standard output, where the system does not give it.
    pub(crate) fn socket(self) -> Option<UnixStream> {
        let process = pidfd_open(Pid::from_raw(self.id as i32).unwrap(), PidfdFlags::empty());
        match process.and_then(|process| pidfd_getfd(process, 0, PidfdGetfdFlags::empty())) {
            Ok(socket) => Some(socket.into()),
            Err(error) => {
                println!("skipped: no copy of another process's socket here: {error}");
                None
            }
        }
    }

    /// Sends a signal, if it still runs.
    pub(crate) fn signal(self, signal: Signal) {
        if self.lives() {
            // It may have ended in between.
            let _ = kill_process(Pid::from_raw(self.id as i32).unwrap(), signal);
        }
    }
}

struct Stat {
    state: char,
    parent: u32,
    started_ticks: u64,
}

/// Whether a process is suspended.
pub(crate) fn is_suspended(id: u32) -> bool {
    stat(id).is_some_and(|stat| stat.state == 'T')
}

/// Reads `/proc/<id>/stat`; `None` if there is no such process.
fn stat(id: u32) -> Option<Stat> {
    let text = std::fs::read_to_string(Path::new("/proc").join(id.to_string()).join("stat")).ok()?;
    // The second field, the command, may hold spaces and parentheses: fields are counted after it.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let state = field(3)?.chars().next()?;
    Some(Stat { state, parent: field(4)?.parse().ok()?, started_ticks: field(22)?.parse().ok()? })
}

/// Waits until none of these processes is left.
#[track_caller]
pub(crate) fn wait_until_gone(processes: &[ProcessIdentity]) {
    let start = Instant::now();
    while processes.iter().any(|process| process.lives()) {
        assert!(start.elapsed() < DEADLINE, "still there: {processes:?}");
        std::thread::sleep(POLL);
    }
}
