//! What keeps results from being written though nothing is wrong with them: it may pass while a run waits.
//!
//! The writer's thread asks and waits, and so does the end of a run. Whatever is not listed here ends the run.

use std::error::Error;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// Time between two tries while writing is paused: short enough to go on soon.
const RETRY: Duration = Duration::from_secs(2);
/// Time between two warnings of the same pause: it may last a night.
const WARNING: Duration = Duration::from_secs(60);
/// How often a waiting thread looks whether it shall stop.
const STOP_POLL: Duration = Duration::from_millis(100);

/// Writes to `folder`, again and again while something that may pass is in the way; `None` if told to `stop`
/// meanwhile. It blocks its thread.
///
/// `pausing` hears why a pause begins, now and then that it lasts, and when it is over (`None`).
///
/// # Errors
/// What `write` fails with, unless waiting may help.
pub fn write_when_possible<T, E: Error + 'static>(
    folder: &Path,
    stop: impl Fn() -> bool,
    mut pausing: impl FnMut(Option<&'static str>),
    mut write: impl FnMut() -> Result<T, E>,
) -> Result<Option<T>, E> {
    let folder = folder.display().to_string();
    let mut warned: Option<(Obstacle, Instant)> = None;
    loop {
        let error = match write() {
            Ok(written) => {
                if let Some((obstacle, _)) = warned {
                    tracing::warn!(folder, "{}", obstacle.over());
                    pausing(None);
                }
                return Ok(Some(written));
            }
            Err(error) => error,
        };
        let Some(obstacle) = Obstacle::behind(&error) else { return Err(error) };
        let known = |(before, at): (Obstacle, Instant)| before == obstacle && at.elapsed() < WARNING;
        if !warned.is_some_and(known) {
            tracing::warn!(folder, error = %crate::error_chain(&error), "{}", obstacle.paused());
            pausing(Some(obstacle.paused()));
            warned = Some((obstacle, Instant::now()));
        }
        let end = Instant::now() + RETRY;
        while Instant::now() < end {
            if stop() {
                return Ok(None);
            }
            std::thread::sleep(STOP_POLL);
        }
    }
}

/// Why writing has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    DiskFull,
    QuotaUsedUp,
    FileSizeLimit,
    ReadOnly,
    NotAllowed,
}

impl Obstacle {
    /// The obstacle at the root of an error; `None` where waiting does not help.
    fn behind(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(system) = error.downcast_ref::<io::Error>() {
                return Self::of(system);
            }
            cause = error.source();
        }
        None
    }

    /// The obstacle behind a failure of the system; `None` where waiting does not help.
    pub(crate) fn of(error: &io::Error) -> Option<Self> {
        use io::ErrorKind;
        match error.kind() {
            ErrorKind::StorageFull => Some(Self::DiskFull),
            ErrorKind::QuotaExceeded => Some(Self::QuotaUsedUp),
            ErrorKind::FileTooLarge => Some(Self::FileSizeLimit),
            ErrorKind::ReadOnlyFilesystem => Some(Self::ReadOnly),
            ErrorKind::PermissionDenied => Some(Self::NotAllowed),
            _ => None,
        }
    }

    /// What is wrong, and what makes the run go on.
    pub(crate) fn paused(self) -> &'static str {
        match self {
            Self::DiskFull => "disk full: writing is paused, free some space and it goes on",
            Self::QuotaUsedUp => {
                "quota used up: writing is paused, free some space or raise it and it goes on"
            }
            Self::FileSizeLimit => {
                "file size limit reached: writing is paused, raise it (prlimit) and it goes on"
            }
            Self::ReadOnly => "file system is read-only: writing is paused, remount it and it goes on",
            Self::NotAllowed => "not allowed to write: writing is paused, give back the right and it goes on",
        }
    }

    /// That it is over.
    pub(crate) fn over(self) -> &'static str {
        match self {
            Self::DiskFull | Self::QuotaUsedUp | Self::FileSizeLimit => {
                "there is room again: writing goes on"
            }
            Self::ReadOnly | Self::NotAllowed => "the folder can be written to again: writing goes on",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn every_errno_that_may_pass_is_told_and_no_other() {
        let of = |number| Obstacle::of(&io::Error::from_raw_os_error(number));
        // ENOSPC, EDQUOT, EFBIG, EROFS, EACCES, EPERM.
        assert_eq!(of(28), Some(Obstacle::DiskFull));
        assert_eq!(of(122), Some(Obstacle::QuotaUsedUp));
        assert_eq!(of(27), Some(Obstacle::FileSizeLimit));
        assert_eq!(of(30), Some(Obstacle::ReadOnly));
        assert_eq!([of(13), of(1)], [Some(Obstacle::NotAllowed); 2]);
        // ENOENT, EIO, ENOTDIR, EMFILE.
        assert_eq!([2, 5, 20, 24].map(of), [None; 4]);
    }

    #[test]
    fn waiting_ends_with_another_error_or_when_told_to_stop() {
        let folder = Path::new("results");
        let failing = |number| move || Err::<(), _>(io::Error::from_raw_os_error(number));
        // EIO is final; ENOSPC is waited for.
        assert_eq!(
            write_when_possible(folder, || true, |_| (), failing(5)).unwrap_err().raw_os_error(),
            Some(5)
        );
        assert_eq!(write_when_possible(folder, || true, |_| (), failing(28)).unwrap(), None);
        let (mut tries, mut pauses) = (0, Vec::new());
        let written = write_when_possible(
            folder,
            || false,
            |paused: Option<&str>| pauses.push(paused.is_some()),
            || {
                tries += 1;
                if tries == 1 { Err(io::Error::from_raw_os_error(28)) } else { Ok(tries) }
            },
        );
        assert_eq!(written.unwrap(), Some(2));
        assert_eq!(pauses, [true, false]);
    }

    #[test]
    fn an_obstacle_is_found_at_the_root_of_an_error() {
        let full = || io::Error::from_raw_os_error(28);
        let path = std::path::PathBuf::from("run.json");
        let error =
            crate::manifest::ManifestError::Io { operation: "write", path: path.clone(), source: full() };
        assert_eq!(Obstacle::behind(&crate::WriteError::from(error)), Some(Obstacle::DiskFull));
        let error = crate::WriteError::Failed { path: path.clone(), source: full() };
        assert_eq!(Obstacle::behind(&error), Some(Obstacle::DiskFull));
        let error = crate::part::PartError::DiskFull { path, source: full() };
        assert_eq!(Obstacle::behind(&crate::WriteError::from(error)), Some(Obstacle::DiskFull));
        let error = crate::manifest::ManifestError::TooLarge { path: "run.json".into(), bytes: 1 };
        assert_eq!(Obstacle::behind(&error), None);
    }
}
