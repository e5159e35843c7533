//! What keeps results from being written though nothing is wrong with them: it may pass while a run waits.
//!
//! The writer's thread asks and waits. Whatever is not listed here ends the run.

use std::io;

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
}
