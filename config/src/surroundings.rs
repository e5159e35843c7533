//! What a job file cannot say itself: the current folder and the environment variables.
//!
//! [`crate::load`] takes them from the process; tests make their own. Nothing else in this crate asks the
//! process for either.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::mistake::ConfigError;

/// Folder and variables that a job is read among.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Absolute; paths typed on the command line or in the environment resolve against it.
    pub current_folder: PathBuf,
    /// Environment variables. One that is not UTF-8 counts as undefined.
    pub variables: BTreeMap<String, String>,
}

impl Surroundings {
    /// Takes both from the running process.
    ///
    /// # Errors
    /// The current folder was removed or may not be read.
    pub fn of_process() -> Result<Self, ConfigError> {
        let current_folder =
            std::env::current_dir().map_err(|source| ConfigError::CurrentFolder { source })?;
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Ok(Self { current_folder, variables })
    }
}
