//! Standard error: words for people, who may have left; that never decides how a run ends. Once a run logs as JSON,
//! words are JSON lines too.
//!
//! What is said during a run goes through an [`Outlet`], in one order with its log and its bars: whoever has stopped
//! reading (`2>&1 | less`, a stalled ssh) holds nothing up. Other commands write by themselves.

use std::io::{self, Write};
use std::sync::{Mutex, OnceLock, PoisonError};

use indicatif::TermLike;

use crate::dashboard::screen;
use crate::logging;
use crate::outlet::Outlet;

/// The way there during a run.
static OUTLET: OnceLock<&'static Outlet> = OnceLock::new();

/// From now on nobody waits for whoever reads, but for a moment at the end: see [`flush`].
///
/// # Errors
/// If the system gives no more threads.
pub(crate) fn start() -> io::Result<()> {
    // Nobody may be reading any more (`2>&1 | head`): that is no reason to end a run.
    let outlet = Outlet::start("standard error", "stderr", |text| drop(Unlocked.write_all(text)))?;
    OUTLET.get_or_init(|| outlet);
    Ok(())
}

/// Standard error without the lock of the standard library, which a write that hangs would hold.
struct Unlocked;

impl Write for Unlocked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(io::stderr(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until everything is written, unless nobody reads.
pub(crate) fn flush() {
    if let Some(outlet) = OUTLET.get() {
        outlet.flush();
    }
}

/// Says one line (or several) on standard error, wherever that still leads; once a dashboard has gone, if one has
/// the screen.
pub(crate) fn say(text: impl std::fmt::Display) {
    if logging::speaks_json() {
        write(logging::json_line("INFO", &serde_json::json!({ "message": text.to_string() })));
    } else {
        write(text);
    }
}

/// Writes a line as it is, as of [`say`].
pub(crate) fn write(line: impl std::fmt::Display) {
    let Err(line) = screen::keep_words(line.to_string()) else { return };
    match OUTLET.get() {
        Some(outlet) => outlet.say(line + "\n"),
        None => drop(writeln!(io::stderr().lock(), "{line}")),
    }
}

/// Writes what nobody misses: a line of the log, a frame of a bar.
pub(crate) fn log(text: &[u8]) {
    match OUTLET.get() {
        Some(outlet) => outlet.log(text),
        None => drop(io::stderr().lock().write_all(text)),
    }
}

/// The terminal at standard error, as the bars draw on it: a frame at a time.
#[derive(Debug, Default)]
pub(crate) struct Bars(Mutex<String>);

impl Bars {
    fn draw(&self, text: std::fmt::Arguments<'_>) -> io::Result<()> {
        let mut frame = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::fmt::Write::write_fmt(&mut *frame, text).map_err(io::Error::other)
    }

    /// Moves the cursor so many places: nowhere is not one place, as terminals take a zero.
    fn go(&self, places: usize, direction: char) -> io::Result<()> {
        if places == 0 { Ok(()) } else { self.draw(format_args!("\x1b[{places}{direction}")) }
    }
}

impl TermLike for Bars {
    fn width(&self) -> u16 {
        screen::size_of(io::stderr()).width
    }

    fn height(&self) -> u16 {
        screen::size_of(io::stderr()).height
    }

    fn move_cursor_up(&self, lines: usize) -> io::Result<()> {
        self.go(lines, 'A')
    }

    fn move_cursor_down(&self, lines: usize) -> io::Result<()> {
        self.go(lines, 'B')
    }

    fn move_cursor_right(&self, letters: usize) -> io::Result<()> {
        self.go(letters, 'C')
    }

    fn move_cursor_left(&self, letters: usize) -> io::Result<()> {
        self.go(letters, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.draw(format_args!("{text}\n"))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.draw(format_args!("{text}"))
    }

    fn clear_line(&self) -> io::Result<()> {
        self.draw(format_args!("\r\x1b[2K"))
    }

    fn flush(&self) -> io::Result<()> {
        let frame = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if !frame.is_empty() {
            log(frame.as_bytes());
        }
        Ok(())
    }
}
