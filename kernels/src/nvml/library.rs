//! Where the management library is looked for, and what it means when it does not open.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use nvml_wrapper::error::NvmlError as Cause;

use super::NvmlError;

/// Where the driver's libraries lie, below the root, when the loader is not told: containers, WSL and NixOS.
pub(crate) const DRIVER_FOLDERS: [&str; 4] =
    ["usr/local/nvidia/lib64", "usr/local/nvidia/lib", "usr/lib/wsl/lib", "run/opengl-driver/lib"];

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

    /// Names to try, best first: what the loader finds, then files that it does not. `root`: where `/usr` is, for
    /// tests.
    fn names(&self, root: &Path) -> Vec<OsString> {
        /// Drivers bring the first; the second is what development packages and some containers have.
        const NAMES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];
        match self {
            Self::Installed => {
                let files =
                    DRIVER_FOLDERS.iter().flat_map(|folder| NAMES.map(|name| root.join(folder).join(name)));
                let files = files.filter(|file| file.is_file()).map(PathBuf::into_os_string);
                NAMES.map(OsString::from).into_iter().chain(files).collect()
            }
            Self::At(path) => vec![path.clone().into_os_string()],
        }
    }

    /// Loads and starts the library.
    pub(super) fn start(&self) -> Result<nvml_wrapper::Nvml, NvmlError> {
        let names = self.names(Path::new("/"));
        let mut refused = None;
        for name in &names {
            match nvml_wrapper::Nvml::builder().lib_path(name).init() {
                Ok(library) => return Ok(library),
                Err(Cause::LibloadingError(error)) if is_absent(name, &error.to_string()) => {}
                // An image may bring a library of another driver than the one that is mounted into it.
                Err(error) => refused = refused.or_else(|| Some(refusal(name, &error))),
            }
        }
        if let Some(refused) = refused {
            return Err(refused);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mounted_driver_is_found_where_the_loader_does_not_look() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let names = |library: &Library| library.names(root);
        let bare = ["libnvidia-ml.so.1", "libnvidia-ml.so"].map(OsString::from);
        assert_eq!(names(&Library::Installed), bare);
        let files = [
            "usr/local/nvidia/lib64/libnvidia-ml.so.1",
            "usr/local/nvidia/lib/libnvidia-ml.so",
            "usr/lib/wsl/lib/libnvidia-ml.so.1",
        ]
        .map(|file| root.join(file));
        for file in &files {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, b"").unwrap();
        }
        let expected: Vec<OsString> = bare.into_iter().chain(files.map(PathBuf::into_os_string)).collect();
        assert_eq!(names(&Library::Installed), expected);
        assert_eq!(names(&Library::At("/there/nvml.so".into())), ["/there/nvml.so"]);
    }
}
