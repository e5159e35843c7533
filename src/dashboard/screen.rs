//! The terminal while a dashboard has it: taken, lent back for a suspension, given back however the program ends.
//!
//! Whoever is about to end the process or has something to say calls [`give_back`] or [`keep_words`]; only the
//! thread that took the screen draws on it. The terminal still turns Ctrl-C and Ctrl-Z into signals, so that
//! they work whatever the dashboard does.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crossterm::{cursor, queue, terminal};
use ratatui::backend::{Backend, ClearType, CrosstermBackend};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use rustix::termios::{OptionalActions, SpecialCodeIndex, Termios};

use super::keys::{Key, KeyReader};

/// Longest wait for a key, in tenths of a second as terminals count it.
const KEY_WAIT_TENTHS: u8 = 1;
const KEY_WAIT: Duration = Duration::from_millis(100 * KEY_WAIT_TENTHS as u64);
/// Lines kept to be said on the restored screen.
const WORDS_MAX: usize = 100;
/// How long the end of the program waits for a drawing that the terminal does not take.
const DRAWING_MAX: Duration = Duration::from_millis(500);
/// What a terminal that does not tell its size is taken for.
const SIZE_UNKNOWN: Rect = Rect { x: 0, y: 0, width: 80, height: 24 };

/// Asks the terminal to mark what is pasted, and no more: else a pasted text would be keys that stop the job.
const MARK_PASTES: &[u8] = b"\x1b[?2004h";
const MARK_NO_PASTES: &[u8] = b"\x1b[?2004l";

/// What the terminal was before; `None` while nobody has it.
static BEFORE: Mutex<Option<Before>> = Mutex::new(None);
/// Held by whoever writes to the terminal.
static WRITING: Mutex<()> = Mutex::new(());
/// What was to be said meanwhile.
static WORDS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Before {
    modes: Termios,
    owner: ThreadId,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps words for the restored screen; gives them back if nobody has the screen, to be said at once.
pub(crate) fn keep_words(text: String) -> Result<(), String> {
    // Asked and kept under one lock, so that no words arrive after they were said.
    let before = lock(&BEFORE);
    if before.is_none() {
        return Err(text);
    }
    let mut words = lock(&WORDS);
    if words.len() < WORDS_MAX {
        words.push(text);
    }
    Ok(())
}

/// Whether a dashboard has the screen.
pub(crate) fn is_taken() -> bool {
    lock(&BEFORE).is_some()
}

/// Gives the terminal back as it was, from any thread, and says what was kept; nothing if nobody has it.
pub(crate) fn give_back() {
    // Whoever comes second waits, so as not to speak before the screen is left.
    static LEAVING: Mutex<()> = Mutex::new(());
    let _leaving = lock_soon(&LEAVING);
    let Some(before) = lock(&BEFORE).take() else { return };
    // In the background it is somebody else's already, who has set it as they like.
    if is_in_foreground() {
        // First the modes: they take effect even if the terminal takes no more bytes.
        let _ = rustix::termios::tcsetattr(io::stdin(), OptionalActions::Now, &before.modes);
        if let Some(_writing) = lock_soon(&WRITING) {
            let mut bytes = MARK_NO_PASTES.to_vec();
            let _ = queue!(bytes, cursor::Show, terminal::LeaveAlternateScreen);
            let _ = own(io::stdout()).and_then(|mut terminal| terminal.write_all(&bytes));
        }
    }
    let words = std::mem::take(&mut *lock(&WORDS));
    for text in words {
        crate::stderr::say(text);
    }
    // A suspension, or another dashboard, may follow.
    crate::stderr::flush();
}

/// A lock, unless a terminal that takes no bytes keeps somebody else from giving it back.
fn lock_soon(mutex: &Mutex<()>) -> Option<MutexGuard<'_, ()>> {
    let began = Instant::now();
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if began.elapsed() > DRAWING_MAX => return None,
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Gives the terminal back when it is dropped, such as by a panic.
pub(crate) struct GiveBack;

impl Drop for GiveBack {
    fn drop(&mut self) {
        give_back();
        crate::logging::flush();
    }
}

/// A panic must not write over the screen: one that ends what is shown is told on the restored screen, any other
/// becomes a line of the log.
pub(crate) fn tell_panics_elsewhere() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let here = std::thread::current();
            let owner = lock(&BEFORE).as_ref().map(|before| before.owner);
            match owner {
                Some(owner) if owner != here.id() && here.name() != Some("main") => log_panic(info),
                Some(_) => {
                    give_back();
                    default(info);
                }
                None => default(info),
            }
        }));
    });
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let here = std::thread::current();
    let thread = here.name().unwrap_or("unnamed");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let text = info.payload_as_str().unwrap_or("no words");
    tracing::error!(thread, place, "panicked: {text}");
    let trace = std::backtrace::Backtrace::capture();
    if trace.status() == std::backtrace::BacktraceStatus::Captured {
        tracing::error!("{trace}");
    }
}

/// A handle of our own, so that no lock of the standard library is held while the terminal is slow.
fn own(stream: impl AsFd) -> io::Result<File> {
    Ok(File::from(stream.as_fd().try_clone_to_owned()?))
}

/// Whether this process may take the terminal: one in the background would be stopped for it.
pub(crate) fn is_in_foreground() -> bool {
    // A terminal that does not control this session knows no background.
    rustix::termios::tcgetpgrp(io::stdin()).map_or(true, |group| group == rustix::process::getpgrp())
}

/// Raw but for signals: Ctrl-C and Ctrl-Z stay what they are.
fn raw(before: &Termios) -> Termios {
    let mut modes = before.clone();
    modes.make_raw();
    modes.local_modes |= rustix::termios::LocalModes::ISIG;
    // A core dump would leave the terminal as it is now.
    modes.special_codes[SpecialCodeIndex::VQUIT] = 0;
    // Reading waits for a key, but not for long.
    modes.special_codes[SpecialCodeIndex::VMIN] = 0;
    modes.special_codes[SpecialCodeIndex::VTIME] = KEY_WAIT_TENTHS;
    modes
}

/// Bytes for the terminal, written in one piece, and only while it is taken.
struct Ink {
    terminal: File,
    bytes: Vec<u8>,
}

impl Write for Ink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.bytes);
        let _writing = lock(&WRITING);
        // Somebody may have given the terminal back meanwhile: nothing of ours belongs on it any more.
        if is_taken() { self.terminal.write_all(&bytes) } else { Ok(()) }
    }
}

/// Signals of job control, noticed between two frames.
struct JobControl {
    /// SIGTSTP came.
    suspend: Arc<AtomicBool>,
    /// SIGCONT came.
    continued: Arc<AtomicBool>,
    /// Whether SIGTSTP stops the process at once, as it does where there is no dashboard.
    plain: Arc<AtomicBool>,
}

impl JobControl {
    /// Handlers stay for the life of the process; they are installed once.
    fn get() -> io::Result<&'static Self> {
        static ONLY: OnceLock<JobControl> = OnceLock::new();
        if let Some(only) = ONLY.get() {
            return Ok(only);
        }
        let new = || Arc::new(AtomicBool::new(false));
        let control = Self { suspend: new(), continued: new(), plain: new() };
        use signal_hook::consts::{SIGCONT, SIGTSTP};
        signal_hook::flag::register(SIGTSTP, control.suspend.clone())?;
        signal_hook::flag::register(SIGCONT, control.continued.clone())?;
        signal_hook::flag::register_conditional_default(SIGTSTP, control.plain.clone())?;
        Ok(ONLY.get_or_init(|| control))
    }
}

/// The terminal in full-screen mode; given back as it was when dropped, after a panic too.
///
/// `ratatui`'s own `Terminal` is not used: it asks the terminal where its cursor is, and waits for the answer.
pub(super) struct Screen {
    backend: CrosstermBackend<Ink>,
    /// What it shows.
    shown: Buffer,
    keyboard: File,
    keys: KeyReader,
    control: &'static JobControl,
    /// Suspended and not yet in the foreground again.
    away: bool,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// If it cannot be used.
    pub(super) fn open() -> io::Result<Self> {
        tell_panics_elsewhere();
        let control = JobControl::get()?;
        control.suspend.store(false, Ordering::SeqCst);
        control.continued.store(false, Ordering::SeqCst);
        control.plain.store(false, Ordering::SeqCst);
        let ink = Ink { terminal: own(io::stdout())?, bytes: Vec::new() };
        let mut screen = Self {
            backend: CrosstermBackend::new(ink),
            shown: Buffer::empty(size()),
            keyboard: own(io::stdin())?,
            keys: KeyReader::default(),
            control,
            away: false,
        };
        if is_in_foreground() {
            screen.take()?;
        } else {
            screen.away = true;
        }
        Ok(screen)
    }

    fn take(&mut self) -> io::Result<()> {
        // What was said before belongs on the ordinary screen.
        crate::stderr::flush();
        let modes = rustix::termios::tcgetattr(&self.keyboard)?;
        let ours = raw(&modes);
        *lock(&BEFORE) = Some(Before { modes, owner: std::thread::current().id() });
        rustix::termios::tcsetattr(&self.keyboard, OptionalActions::Now, &ours)?;
        self.begin_anew()
    }

    /// Whatever the terminal shows now, the next frame is drawn whole.
    fn begin_anew(&mut self) -> io::Result<()> {
        queue!(self.backend, terminal::EnterAlternateScreen, cursor::Hide)?;
        self.backend.write_all(MARK_PASTES)?;
        self.backend.clear_region(ClearType::All)?;
        Write::flush(&mut self.backend)?;
        self.shown = Buffer::empty(size());
        Ok(())
    }

    /// Whether nobody else has given the terminal back.
    pub(super) fn is_ours(&self) -> bool {
        self.away || is_taken()
    }

    /// Stops the process if that was asked for, and takes the terminal again afterwards. Says whether all must be
    /// drawn anew.
    pub(super) fn mind_job_control(&mut self) -> io::Result<bool> {
        if self.control.suspend.swap(false, Ordering::SeqCst) {
            if !self.away {
                give_back();
                self.away = true;
            }
            // Returns once somebody lets the process go on.
            signal_hook::low_level::raise(signal_hook::consts::SIGSTOP)?;
        }
        let continued = self.control.continued.swap(false, Ordering::SeqCst);
        if !(continued || self.away) {
            return Ok(false);
        }
        if !is_in_foreground() {
            self.away = true;
            // After a SIGSTOP it was never given back: now it is not ours any more.
            give_back();
            return Ok(false);
        }
        if self.away {
            self.away = false;
            self.take()?;
            return Ok(true);
        }
        // After a SIGSTOP, for which nobody can prepare, the shell has set the modes to its taste.
        let ours = lock(&BEFORE).as_ref().map(|before| raw(&before.modes));
        if let Some(ours) = ours {
            rustix::termios::tcsetattr(&self.keyboard, OptionalActions::Now, &ours)?;
        }
        self.begin_anew()?;
        Ok(true)
    }

    /// Takes over the size of the terminal. Says whether it has changed.
    pub(super) fn mind_size(&mut self) -> io::Result<bool> {
        let changed = !self.away && self.shown.area != size();
        if changed {
            self.begin_anew()?;
        }
        Ok(changed)
    }

    /// Draws a frame; nothing while the process is in the background.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Buffer)) -> io::Result<()> {
        if self.away {
            return Ok(());
        }
        let mut next = Buffer::empty(self.shown.area);
        draw(&mut next);
        self.backend.draw(self.shown.diff(&next).into_iter())?;
        Write::flush(&mut self.backend)?;
        self.shown = next;
        Ok(())
    }

    /// Waits a moment for keys.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub(super) fn keys(&mut self) -> io::Result<Vec<Key>> {
        if self.away {
            // Reading would stop a process in the background.
            std::thread::sleep(KEY_WAIT);
            return Ok(Vec::new());
        }
        let began = Instant::now();
        let mut bytes = [0; 256];
        let read = match self.keyboard.read(&mut bytes) {
            Ok(read) => read,
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => 0,
            Err(error) => return Err(error),
        };
        if read == 0 && began.elapsed() < KEY_WAIT / 2 {
            // Nothing, and at once: a terminal that hung up, unless somebody else has set its modes.
            rustix::termios::tcgetattr(&self.keyboard)?;
            std::thread::sleep(KEY_WAIT);
        }
        Ok(self.keys.take(&bytes[..read]))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.control.plain.store(true, Ordering::SeqCst);
        give_back();
    }
}

fn size() -> Rect {
    size_of(io::stdout())
}

/// The size of a terminal, in letters.
pub(crate) fn size_of(terminal: impl AsFd) -> Rect {
    match rustix::termios::tcgetwinsize(terminal) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Rect::new(0, 0, size.ws_col, size.ws_row),
        _ => SIZE_UNKNOWN,
    }
}
