//! Where the management library is looked for, and what it means when it does not open.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use nvml_wrapper::error::NvmlError as Cause;

use super::NvmlError;

/// The library to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Library {
    /// The one that belongs to the installed driver.
    Installed,
    /// This file and no other: a library in an unusual place, or a test's.
    At(PathBuf),
}

impl Library {
    /// Environment variable that names the library's file.
    pub const VARIABLE: &str = "VIRNUCPRO_NVML";

    /// The installed one, unless [`Library::VARIABLE`] names another.
    pub fn from_environment() -> Self {
        match std::env::var_os(Self::VARIABLE).filter(|path| !path.is_empty()) {
            Some(path) => Self::At(path.into()),
            None => Self::Installed,
        }
    }

    /// Names to try, best first. Drivers bring the first; the second is what development packages and some
    /// containers have.
    fn names(&self) -> Vec<OsString> {
        match self {
            Self::Installed => vec!["libnvidia-ml.so.1".into(), "libnvidia-ml.so".into()],
            Self::At(path) => vec![path.clone().into_os_string()],
        }
    }

    /// Loads and starts the library.
    pub(super) fn start(&self) -> Result<nvml_wrapper::Nvml, NvmlError> {
        let names = self.names();
        for name in &names {
            match nvml_wrapper::Nvml::builder().lib_path(name).init() {
                Ok(library) => return Ok(library),
                Err(Cause::LibloadingError(error)) if is_absent(name, &error.to_string()) => {}
                Err(error) => return Err(refusal(name, &error)),
            }
        }
        let names: Vec<_> = names.iter().map(|name| name.to_string_lossy()).collect();
        Err(NvmlError::LibraryMissing { names: names.join(", ") })
    }
}

/// Whether the loader says that this file is absent, and not one that it needs: it tells only in words.
fn is_absent(name: &OsStr, words: &str) -> bool {
    words.starts_with(&*name.to_string_lossy()) && words.contains("No such file")
}

/// What a library that was found means by not starting.
fn refusal(name: &OsStr, error: &Cause) -> NvmlError {
    let name = name.to_string_lossy().into_owned();
    match error {
        Cause::DriverNotLoaded => NvmlError::DriverNotLoaded,
        Cause::LibRmVersionMismatch => NvmlError::VersionsDiffer,
        Cause::NoPermission => NvmlError::NoPermission,
        Cause::FailedToLoadSymbol(_) | Cause::FunctionNotFound => NvmlError::LibraryTooOld { name },
        Cause::LibloadingError(error) => NvmlError::LibraryUnusable { name, reason: error.to_string() },
        error => NvmlError::LibraryUnusable { name, reason: error.to_string() },
    }
}
