//! Standard output: data for other programs, which may stop reading at any time.

use std::io::{ErrorKind, Write};

use crate::failure::{Exit, Failure};

/// Writes `text`; a reader that has gone (`| head`) is no failure.
///
/// # Errors
/// If it cannot be written for another reason, such as a full disk.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Failed, format!("failed to write to standard output: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
