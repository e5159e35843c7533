//! Standard error: words for people, who may have left; that never decides how a run ends.

use std::io::Write;

/// Says one line (or several) on standard error, wherever that still leads.
pub(crate) fn say(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
