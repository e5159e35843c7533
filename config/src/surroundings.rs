//! What a job file cannot say itself: the current folder and the environment variables.
//!
//! [`crate::load`] takes them from the process; tests make their own. Nothing else in this crate asks the
//! process for either.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::document::Source;
use crate::mistake::{ConfigError, Fault, Objection};
use crate::overrides::VARIABLE_PREFIX;

/// Folder and variables that a job is read among.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Absolute; paths typed on the command line or in the environment resolve against it.
    pub current_folder: PathBuf,
    /// Environment variables. One that is not UTF-8 counts as undefined, unless it would set a key.
    pub variables: BTreeMap<String, String>,
}

impl Surroundings {
    /// Takes both from the running process.
    ///
    /// # Errors
    /// The current folder was removed or may not be read; a variable that sets a key is not UTF-8.
    pub fn of_process() -> Result<Self, ConfigError> {
        let current_folder =
            std::env::current_dir().map_err(|source| ConfigError::CurrentFolder { source })?;
        let variables = texts(std::env::vars_os(), &current_folder)?;
        Ok(Self { current_folder, variables })
    }
}

/// Keeps the variables that are text.
fn texts(
    variables: impl Iterator<Item = (OsString, OsString)>,
    current_folder: &Path,
) -> Result<BTreeMap<String, String>, ConfigError> {
    let mut texts = BTreeMap::new();
    for (name, value) in variables {
        match (name.to_str(), value.to_str()) {
            (Some(name), Some(value)) => {
                texts.insert(name.to_owned(), value.to_owned());
            }
            _ if name.to_string_lossy().starts_with(VARIABLE_PREFIX) => {
                return Err(not_utf8(&name, &value, current_folder));
            }
            _ => {}
        }
    }
    Ok(texts)
}

fn not_utf8(name: &OsStr, value: &OsStr, current_folder: &Path) -> ConfigError {
    let name = name.to_string_lossy().into_owned();
    let text: Arc<str> = Arc::from(format!("{name}={}", value.to_string_lossy()));
    let source = Source { name: "environment".to_owned(), text, folder: current_folder.to_owned() };
    let objection = Objection::new(Fault::NotUtf8 { name }, "not UTF-8").help("a job is UTF-8 text");
    source.mistake(0..source.text.len(), objection).into()
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_variable_that_sets_a_key_must_be_text() {
        let variable = |name: &[u8], value: &[u8]| {
            let variable = (OsStr::from_bytes(name).to_owned(), OsStr::from_bytes(value).to_owned());
            texts([variable].into_iter(), Path::new("/"))
        };
        assert_eq!(variable(b"OTHER", b"\xff").unwrap().len(), 0);
        assert_eq!(variable(b"VIRNUCPRO_SIM", b"\xff").unwrap().len(), 0);
        assert_eq!(variable(b"VIRNUCPRO_ORCH_MODEL_LAYER", b"3").unwrap().len(), 1);
        for (name, value) in
            [(&b"VIRNUCPRO_ORCH_OUTPUT_DIRECTORY"[..], &b"r\xff"[..]), (b"VIRNUCPRO_ORCH_\xff", b"3")]
        {
            let error = variable(name, value).unwrap_err();
            assert!(matches!(error.mistakes()[0].fault, Fault::NotUtf8 { .. }), "{error}");
            assert!(error.to_string().contains("VIRNUCPRO_ORCH_"), "{error}");
        }
    }
}
