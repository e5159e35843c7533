//! A terminal for the program: a pseudo-terminal with a screen that can be read, keys, a size, and its modes.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::process::ProcessIdentity;

const DEADLINE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(5);
/// What enters and what leaves the alternate screen.
const ENTER: &[u8] = b"\x1b[?1049h";
const LEAVE: &[u8] = b"\x1b[?1049l";
/// What asks for marks around a pasted text, and for none.
const MARK_PASTES: &[u8] = b"\x1b[?2004h";
const MARK_NO_PASTES: &[u8] = b"\x1b[?2004l";
/// What shows the cursor.
const CURSOR: &[u8] = b"\x1b[?25h";

struct Shown {
    screen: vt100::Parser,
    bytes: Vec<u8>,
}

/// A program in a terminal of its own, which controls it; killed when dropped.
pub(crate) struct Terminal {
    child: Child,
    /// The terminal's end, and the thread that reads it.
    window: Option<(File, JoinHandle<()>)>,
    closing: Arc<AtomicBool>,
    /// The program's end, so that the modes can be looked at after it.
    line: File,
    before: Termios,
    shown: Arc<Mutex<Shown>>,
    started: Instant,
}

impl Terminal {
    /// Starts a command in a terminal of this size.
    pub(crate) fn start(command: &mut Command, columns: u16, rows: u16) -> Self {
        // A handle that the program inherits would keep its terminal from ever hanging up.
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let keyboard = File::from(master);
        tcsetwinsize(&keyboard, size(columns, rows)).unwrap();
        // Not by `File::options`, which would make it our own controlling terminal.
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        let line = File::from(rustix::fs::open(&*name, flags, rustix::fs::Mode::empty()).unwrap());
        let before = tcgetattr(&line).unwrap();
        // Unless the test has a terminal of its own in mind.
        if command.get_envs().all(|(name, _)| name != "TERM") {
            command.env("TERM", "xterm-256color");
        }
        command
            .env("LC_ALL", "C.UTF-8")
            .env_remove("NO_COLOR")
            .stdin(line.try_clone().unwrap())
            .stdout(line.try_clone().unwrap())
            .stderr(line.try_clone().unwrap());
        // SAFETY: between fork and exec only two system calls are made, which need no memory.
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(std::io::stdin())?;
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        let shown = Arc::new(Mutex::new(Shown {
            screen: vt100::Parser::new(letters(rows), letters(columns), 0),
            bytes: Vec::new(),
        }));
        // Not blocking, so that the window can be closed: a terminal hangs up with its last handle.
        rustix::fs::fcntl_setfl(&keyboard, rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK).unwrap();
        let closing = Arc::new(AtomicBool::new(false));
        let (mut reading, writing, closed) = (keyboard.try_clone().unwrap(), shown.clone(), closing.clone());
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while !closed.load(Ordering::Relaxed) {
                match reading.read(&mut piece) {
                    Ok(read @ 1..) => {
                        let mut shown = writing.lock().unwrap();
                        shown.bytes.extend_from_slice(&piece[..read]);
                        shown.screen.process(&piece[..read]);
                    }
                    Ok(0) => return,
                    Err(_) => std::thread::sleep(POLL),
                }
            }
        });
        let window = Some((keyboard, reader));
        Self { child, window, closing, line, before, shown, started: Instant::now() }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What the screen shows.
    pub(crate) fn screen(&self) -> String {
        self.shown.lock().unwrap().screen.screen().contents()
    }

    /// Everything that was ever written to it.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap().bytes).into_owned()
    }

    /// Whether the alternate screen is shown.
    pub(crate) fn is_full(&self) -> bool {
        self.shown.lock().unwrap().screen.screen().alternate_screen()
    }

    /// How often the alternate screen was entered.
    pub(crate) fn times_taken(&self) -> usize {
        let shown = self.shown.lock().unwrap();
        shown.bytes.windows(ENTER.len()).filter(|bytes| *bytes == ENTER).count()
    }

    #[track_caller]
    pub(crate) fn wait_until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        while !condition(self) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "ended ({ended:?}) before: {what}\n{}", self.text());
            assert!(self.started.elapsed() < DEADLINE, "never: {what}\n{}", self.screen());
            std::thread::sleep(POLL);
        }
    }

    /// Waits until the screen shows `text`.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, text: &str) {
        self.wait_until(text, |terminal| terminal.screen().contains(text));
    }

    /// Presses keys.
    pub(crate) fn press(&self, keys: &str) {
        (&self.window.as_ref().unwrap().0).write_all(keys.as_bytes()).unwrap();
    }

    /// Pastes a text, as a terminal that was asked to mark it.
    pub(crate) fn paste(&self, text: &str) {
        self.press(&format!("\x1b[200~{text}\x1b[201~"));
    }

    /// Changes the size, of which the system tells the program.
    pub(crate) fn resize(&mut self, columns: u16, rows: u16) {
        self.shown.lock().unwrap().screen.screen_mut().set_size(letters(rows), letters(columns));
        tcsetwinsize(&self.window.as_ref().unwrap().0, size(columns, rows)).unwrap();
    }

    /// Makes the terminal forget its size.
    pub(crate) fn without_size(&self) {
        tcsetwinsize(&self.window.as_ref().unwrap().0, size(0, 0)).unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn workers(&self) -> Vec<ProcessIdentity> {
        ProcessIdentity::children_of(self.id())
    }

    /// Whether its modes are those from before the program.
    pub(crate) fn is_restored(&self) -> bool {
        modes(&tcgetattr(&self.line).unwrap()) == modes(&self.before)
    }

    /// Whether the last thing that was done to the screens was to leave the alternate one, with a cursor.
    #[track_caller]
    pub(crate) fn assert_restored(&self) {
        assert!(self.is_restored(), "{:?}\nis not\n{:?}", tcgetattr(&self.line), self.before);
        let shown = self.shown.lock().unwrap();
        let last = |wanted: &[u8]| shown.bytes.windows(wanted.len()).rposition(|bytes| bytes == wanted);
        let text = String::from_utf8_lossy(&shown.bytes);
        assert!(
            last(ENTER).is_none() || last(ENTER) < last(LEAVE),
            "the alternate screen was not left\n{text}"
        );
        assert!(last(ENTER).is_none() || last(ENTER) < last(CURSOR), "the cursor is hidden\n{text}");
        assert!(last(MARK_PASTES) <= last(MARK_NO_PASTES), "pastes are still marked\n{text}");
    }

    /// Closes the window.
    pub(crate) fn hang_up(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        if let Some((_, reader)) = self.window.take() {
            reader.join().unwrap();
        }
    }

    /// Waits for the end of a program whose terminal is gone.
    #[track_caller]
    pub(crate) fn exit_code(mut self) -> Option<i32> {
        self.wait_to_end().code()
    }

    fn wait_to_end(&mut self) -> ExitStatus {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(self.started.elapsed() < DEADLINE, "it hangs:\n{}", self.screen());
            std::thread::sleep(POLL);
        }
    }

    /// Waits for the end, which must leave the terminal as it was. Returns what was written after the dashboard.
    #[track_caller]
    pub(crate) fn finish(mut self, code: i32) -> String {
        let status = self.wait_to_end();
        // What it wrote last may still be on its way to us.
        let mut length = 0;
        loop {
            std::thread::sleep(10 * POLL);
            let now = self.shown.lock().unwrap().bytes.len();
            if now == length {
                break;
            }
            length = now;
        }
        assert_eq!(status.code(), Some(code), "{status}:\n{}", self.text());
        self.assert_restored();
        let text = self.text();
        text.rsplit_once("\x1b[?1049l").map_or(text.clone(), |(_, after)| after.to_owned())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

fn letters(number: u16) -> NonZero<u16> {
    NonZero::new(number).unwrap()
}

/// What can be compared of modes.
fn modes(termios: &Termios) -> String {
    format!("{termios:?}")
}
