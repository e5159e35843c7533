//! The start of a worker's process, by a thread of its own: no signal reaches the process before it is the worker, and
//! no actor waits for the system.
//!
//! A process begins as a copy of this one without its handlers, and whoever starts it waits until it is the worker's
//! program. Ctrl-Z at that moment would stop it for good: by then it has a process group of its own, which `fg` does
//! not wake. So the signals that terminals and clusters send to many processes at once are held back in the thread,
//! from which the worker inherits that. What else may hold a process up, such as a file system that does not answer,
//! costs this thread alone; the actor looks at the clock.

use std::io;
use std::os::raw::c_int;

use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

use crate::thread::spawn_watched;

/// What these mean is for the orchestrator to decide, from a worker's first moment to its last.
const HELD_BACK: [Signal; 8] = [
    Signal::INT,
    Signal::QUIT,
    Signal::HUP,
    Signal::TERM,
    Signal::USR1,
    // Of job control: a worker in the background of a terminal is nothing unusual.
    Signal::TSTP,
    Signal::TTIN,
    Signal::TTOU,
];

/// Starts a process; `started` gets it, on another thread and perhaps never.
///
/// The thread is not joined: it ends with its work, and where the system holds it up there is nothing to do about it.
/// The handles that `command` holds for the process are closed after `started` has returned.
///
/// # Errors
/// If no more threads may be had.
pub(crate) fn launch(
    mut command: Command,
    started: impl FnOnce(io::Result<Child>) + Send + 'static,
    on_panic: impl FnOnce(String) + Send + 'static,
) -> io::Result<()> {
    let runtime = Handle::current();
    let work = move || {
        let _runtime = runtime.enter();
        crate::fault::point("launch");
        started(hold_back(&HELD_BACK).and_then(|()| command.spawn()));
    };
    spawn_watched("launch", work, on_panic).map(drop)
}

/// Keeps signals from this thread, and from the processes that it starts.
fn hold_back(signals: &[Signal]) -> io::Result<()> {
    /// `sigset_t`, at its largest.
    #[repr(C, align(16))]
    struct Set([u8; 128]);
    unsafe extern "C" {
        fn sigemptyset(set: *mut Set) -> c_int;
        fn sigaddset(set: *mut Set, signal: c_int) -> c_int;
        fn pthread_sigmask(how: c_int, set: *const Set, before: *mut Set) -> c_int;
    }
    /// The same on all of Linux but MIPS and SPARC.
    const SIG_BLOCK: c_int = 0;
    let mut set = Set([0; 128]);
    // SAFETY: the signatures of POSIX; the set has room for that of every Linux, and no set is asked for in return.
    let error = unsafe {
        sigemptyset(&raw mut set);
        for signal in signals {
            sigaddset(&raw mut set, signal.as_raw());
        }
        pthread_sigmask(SIG_BLOCK, &raw const set, std::ptr::null_mut())
    };
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    async fn launched(command: Command) -> io::Result<Child> {
        let (sender, received) = oneshot::channel();
        launch(command, |started| drop(sender.send(started)), |panic| unreachable!("{panic}")).unwrap();
        tokio::time::timeout(Duration::from_secs(60), received).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn nothing_that_a_terminal_sends_stops_or_ends_what_is_launched() {
        let mut command = Command::new("sh");
        // Without its own handlers, as a process is until it is the worker.
        command.args(["-c", "for s in INT QUIT HUP TERM USR1 TSTP TTIN TTOU; do kill -$s $$; done; exit 7"]);
        command.process_group(0);
        let mut child = launched(command).await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(60), child.wait()).await.expect("it is stopped");
        let ended = ended.unwrap();
        assert_eq!((ended.signal(), ended.code()), (None, Some(7)));
    }

    #[tokio::test]
    async fn what_cannot_be_launched_is_an_error() {
        let error = launched(Command::new("/nowhere/worker")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
