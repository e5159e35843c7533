//! An outlet for text that must not hold anybody up: standard error, which a pager or a stalled terminal may take no
//! more of, and `run.log`, whose disk may hang.
//!
//! A thread of its own writes; at most [`bounds::TEXTS`] texts wait before it. A line of the log that finds no room is
//! left out, and that is told afterwards. Words for people wait for room while somebody reads. Nobody joins the
//! thread, since nothing ends a write that hangs: who ends the process calls [`Outlet::flush`], whose wait has an end.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use actors::bounds;

/// Who takes nothing for so long is not waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Who takes something now and then is waited for so long.
const PATIENCE_MAX: Duration = Duration::from_secs(10);

/// Enough for writing and for a line of the log; the memory of a process may be limited.
const STACK_BYTES: usize = 256 << 10;

/// A place for text, for as long as the process lives.
pub(crate) struct Outlet {
    /// What it leads to, in words.
    name: &'static str,
    state: Mutex<State>,
    /// Any change of the state.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    texts: VecDeque<Vec<u8>>,
    /// The thread is at work on what it took from there.
    writing: bool,
    /// Texts written so far, by which a slow reader differs from none.
    written: u64,
    /// Lines left out that nobody was told of.
    left_out: usize,
    /// Somebody waited in vain, and nothing was taken since.
    stalled: bool,
}

impl State {
    fn is_idle(&self) -> bool {
        self.texts.is_empty() && self.left_out == 0 && !self.writing
    }

    fn has_room(&self) -> bool {
        self.texts.len() < bounds::TEXTS
    }

    fn take(&mut self, text: Vec<u8>) {
        if self.has_room() {
            self.texts.push_back(text);
        } else {
            // A frame of a bar has no end of line, and no worth once it is late.
            self.left_out += text.iter().filter(|&&byte| byte == b'\n').count();
        }
    }
}

impl Outlet {
    /// Starts the thread `thread`, which calls `write` with each text in turn.
    ///
    /// # Errors
    /// If the system gives no more threads.
    pub(crate) fn start(
        name: &'static str,
        thread: &str,
        write: impl FnMut(&[u8]) + Send + 'static,
    ) -> io::Result<&'static Self> {
        let outlet: &'static Self =
            Box::leak(Box::new(Self { name, state: Mutex::default(), changed: Condvar::new() }));
        let builder = std::thread::Builder::new().name(thread.to_owned()).stack_size(STACK_BYTES);
        builder.spawn(move || outlet.drain(write))?;
        Ok(outlet)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Text that is left out if there is no room.
    pub(crate) fn log(&self, text: &[u8]) {
        self.state().take(text.to_vec());
        self.changed.notify_all();
    }

    /// Text that waits for room while somebody reads.
    pub(crate) fn say(&self, text: String) {
        self.wait_until(State::has_room).take(text.into_bytes());
        self.changed.notify_all();
    }

    /// Waits until everything is written, while somebody reads.
    pub(crate) fn flush(&self) {
        drop(self.wait_until(State::is_idle));
    }

    /// Waits for `condition`, but not long for who reads nothing.
    fn wait_until(&self, condition: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let mut state = self.state();
        let began = Instant::now();
        let (mut written, mut since) = (state.written, began);
        while !condition(&state) && !state.stalled && began.elapsed() < PATIENCE_MAX {
            let left = PATIENCE.saturating_sub(since.elapsed());
            state.stalled = left.is_zero();
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            if written != state.written {
                (written, since) = (state.written, Instant::now());
            }
        }
        state
    }

    /// The thread's life.
    fn drain(&self, mut write: impl FnMut(&[u8])) {
        let mut state = self.state();
        loop {
            if let Some(text) = state.texts.pop_front() {
                state.writing = true;
                drop(state);
                write(&text);
                state = self.state();
                (state.writing, state.stalled) = (false, false);
                state.written += 1;
            } else if state.left_out > 0 {
                let lines = std::mem::take(&mut state.left_out);
                state.writing = true;
                drop(state);
                tracing::warn!(lines, "left out of {}, which took nothing for a while", self.name);
                state = self.state();
                state.writing = false;
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            self.changed.notify_all();
        }
    }
}

/// Lines of the log on their way to an outlet.
impl Write for &Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.log(bytes);
        Ok(bytes.len())
    }

    /// Nobody who logs waits.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc;

    use super::*;

    /// An outlet that writes one text for each permit, and all of them once there are no more permits to come.
    fn outlet() -> (&'static Outlet, mpsc::Sender<()>, Arc<Mutex<String>>) {
        let (permits, permitted) = mpsc::channel();
        let read = Arc::new(Mutex::new(String::new()));
        let written = read.clone();
        let write = move |text: &[u8]| {
            let _ = permitted.recv();
            written.lock().unwrap().push_str(std::str::from_utf8(text).unwrap());
        };
        (Outlet::start("a test", "outlet", write).unwrap(), permits, read)
    }

    /// Fills it; the first text is the one being written.
    fn fill(outlet: &Outlet) {
        for number in 0..=bounds::TEXTS {
            outlet.log(format!("{number}\n").as_bytes());
            while number == 0 && !outlet.state().writing {
                std::thread::yield_now();
            }
        }
    }

    fn counted() -> String {
        (0..=bounds::TEXTS).map(|number| format!("{number}\n")).collect()
    }

    #[test]
    fn who_logs_never_waits_and_what_is_left_out_is_counted_in_lines() {
        let (outlet, _permits, _) = outlet();
        fill(outlet);
        assert_eq!(outlet.state().left_out, 0);
        outlet.log(b"two\nlines\n");
        outlet.log(b"\ra bar");
        assert_eq!(outlet.state().left_out, 2);
    }

    #[test]
    fn everything_is_written_in_its_order_to_a_slow_reader() {
        let (outlet, permits, read) = outlet();
        fill(outlet);
        let slow = std::thread::spawn(move || {
            for _ in 0..3 {
                std::thread::sleep(PATIENCE * 2 / 3);
                permits.send(()).unwrap();
            }
        });
        outlet.say("last words\n".to_owned());
        outlet.flush();
        slow.join().unwrap();
        assert_eq!(*read.lock().unwrap(), counted() + "last words\n");
    }

    #[test]
    fn nobody_waits_twice_for_who_reads_nothing() {
        let (outlet, permits, read) = outlet();
        fill(outlet);
        let began = Instant::now();
        outlet.flush();
        assert!(began.elapsed() >= PATIENCE);
        let waited = Instant::now();
        for _ in 0..100 {
            outlet.say("nobody hears it\n".to_owned());
            outlet.flush();
        }
        assert!(waited.elapsed() < 20 * PATIENCE, "{:?}", waited.elapsed());
        // Once somebody reads again, everybody waits again.
        drop(permits);
        while !outlet.state().is_idle() {
            std::thread::yield_now();
        }
        outlet.say("welcome back\n".to_owned());
        outlet.flush();
        assert_eq!(*read.lock().unwrap(), counted() + "welcome back\n");
    }
}
