//! Standard error: words for people, who may have left; that never decides how a run ends. Once a run logs as JSON,
//! words are JSON lines too.

use std::io::Write;

use crate::dashboard::screen;
use crate::logging;

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
    if let Err(line) = screen::keep_words(line.to_string()) {
        let _ = writeln!(std::io::stderr().lock(), "{line}");
    }
}
