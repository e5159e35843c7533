//! Opening a result folder: locked against a second run, cleared or resumed.

mod lock;

use std::fs;
use std::path::{Path, PathBuf};

use actors::files;
use actors::identity::SegmentId;
use actors::manifest::{Manifest, ManifestError, ResultFolder, RunStatus};

pub(crate) use self::lock::{Holder, LastWord, at_work, give_lock_back, last_word, owner, owner_lives, utc};
use self::lock::{Lock, LockError};
use crate::failure::{Exit, Failure};

/// A result folder that no other run writes to while this value lives.
pub(crate) struct LockedFolder {
    pub(crate) folder: ResultFolder,
    lock: Lock,
}

impl LockedFolder {
    /// Creates the folder if need be and locks it.
    ///
    /// # Errors
    /// If it cannot be written to, or another run holds it.
    pub(crate) fn open(directory: &Path) -> Result<Self, Failure> {
        if directory.canonicalize().is_ok_and(|folder| folder.parent().is_none()) {
            let text = format!("output.directory = `{}` is the root of the file system", directory.display());
            return Err(Failure::new(Exit::Usage, text).hint("give the result a folder of its own"));
        }
        let folder = ResultFolder(directory.to_owned());
        let ours = folder.state().is_dir() || folder.manifest().is_file();
        let names = [folder.failed(), folder.log()].into_iter().chain(about_the_run(&folder));
        let names = names.chain(foreign_tables(&folder));
        if let Some(foreign) = names.into_iter().find(|path| !ours && path.exists()) {
            let text = format!("`{}` exists and is not of an earlier run", foreign.display());
            return Err(
                Failure::new(Exit::Usage, text).hint("choose another output.directory, or move it away")
            );
        }
        for path in [folder.log(), folder.lock()] {
            // Opened for writing, a pipe would make this run wait for ever.
            if fs::metadata(&path).is_ok_and(|metadata| !metadata.is_file()) {
                let text = format!("`{}` is not a regular file", path.display());
                return Err(
                    Failure::new(Exit::Usage, text).hint("move it away: a file of the run belongs there")
                );
            }
        }
        for path in [folder.embeddings(), folder.state()] {
            files::create_folder(&path).map_err(|error| failed("create", &path, &error))?;
        }
        let lock = Lock::take(&folder.lock()).map_err(|error| match error {
            LockError::Held { owner, hint } => {
                let text = format!("another run is writing to `{}` ({owner})", directory.display());
                Failure::new(Exit::Usage, text).hint(hint)
            }
            LockError::Io { operation, path, error } => failed(operation, &path, &error),
        })?;
        Ok(Self { folder, lock })
    }

    /// Says how the run ended, to whoever looks into the folder, where `run.json` cannot.
    pub(crate) fn leave(&mut self, last_word: LastWord) {
        self.lock.leave(last_word);
    }

    /// Logs from which dead run the folder was taken over, if it was; once there is a log.
    pub(crate) fn log_takeover(&self) {
        if let Some(owner) = &self.lock.taken_from {
            tracing::warn!(owner, "the lock is taken over from a run that died");
        }
    }

    /// Deletes an earlier result, and nothing that this program did not write.
    ///
    /// # Errors
    /// If a file cannot be deleted.
    pub(crate) fn clear(&self) -> Result<(), Failure> {
        // The manifest first: without it nothing here counts as a result.
        for path in [self.folder.manifest(), self.folder.failed(), self.folder.snapshot()] {
            remove(&path)?;
            files::sync_folder_of(&path).map_err(|error| failed("sync the folder of", &path, &error))?;
        }
        for path in about_the_run(&self.folder) {
            remove(&path)?;
        }
        self.remove_parts_except(&[])?;
        for path in list(&self.folder.state())? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if ["failed-", ".failed-", "journal-"].iter().any(|of_segment| name.starts_with(of_segment))
                || path == self.folder.commits()
            {
                remove(&path)?;
            }
        }
        let exports = crate::export_command::default_folder(&self.folder);
        if fs::read_dir(&exports).is_ok_and(|mut entries| entries.next().is_some()) {
            tracing::warn!(
                folder = %exports.display(),
                "what was exported of the earlier result stays: export again with --force, or delete it"
            );
        }
        Ok(())
    }

    /// Deletes parts that the manifest does not name: what a killed run had not committed.
    ///
    /// # Errors
    /// If a file cannot be deleted.
    pub(crate) fn remove_uncommitted(&self, manifest: &Manifest) -> Result<(), Failure> {
        let committed: Vec<String> =
            manifest.segments.keys().map(|&id| ResultFolder::part_name(SegmentId(id))).collect();
        self.remove_temporary()?;
        self.remove_what_is_no_file()?;
        // A journal is of use until its segment is committed.
        for &id in manifest.segments.keys() {
            remove(&self.folder.journal_of(SegmentId(id)))?;
        }
        self.remove_parts_except(&committed)
    }

    /// Deletes what a killed run was writing under a temporary name.
    ///
    /// # Errors
    /// If a file cannot be deleted.
    pub(crate) fn remove_temporary(&self) -> Result<(), Failure> {
        for path in list(&self.folder.embeddings())? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if is_part(&path) && name.starts_with('.') {
                remove(&path)?;
            }
        }
        for folder in [self.folder.0.clone(), self.folder.state()] {
            for path in list(&folder)? {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let ours = [
                    "run.json",
                    "failed.tsv",
                    "failed-",
                    "journal-",
                    "stdin",
                    "snapshot.json",
                    "control.sock",
                    "telemetry.jsonl",
                    "report.html",
                    "report.json",
                ];
                let is_ours = name.strip_prefix('.').is_some_and(|rest| {
                    rest.ends_with(".tmp") && ours.iter().any(|ours| rest.starts_with(ours))
                });
                if is_ours || name == "stdin-new.fasta.partial" {
                    remove(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Deletes pipes and empty folders under the names of files that this run will read or write.
    fn remove_what_is_no_file(&self) -> Result<(), Failure> {
        let mut paths = list(&self.folder.state())?;
        paths.retain(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("failed-") || name.starts_with("journal-")
        });
        paths.push(self.folder.failed());
        for path in &paths {
            if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
                remove(path)?;
            }
        }
        Ok(())
    }

    /// Whether the folder holds parts.
    ///
    /// # Errors
    /// If it cannot be listed.
    pub(crate) fn has_parts(&self) -> Result<bool, Failure> {
        Ok(list(&self.folder.embeddings())?.iter().any(|path| is_part(path)))
    }

    fn remove_parts_except(&self, kept: &[String]) -> Result<(), Failure> {
        for path in list(&self.folder.embeddings())? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if is_part(&path) && !kept.contains(&format!("embeddings/{name}")) {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

/// The manifest of a folder, with how its last run ended even where that could not be written there. For those who
/// look, not for a run that goes on.
///
/// # Errors
/// As [`Manifest::read`].
pub(crate) fn recorded(folder: &ResultFolder) -> Result<Option<Manifest>, ManifestError> {
    let mut manifest = Manifest::read(folder)?;
    if let Some(manifest) = manifest.as_mut().filter(|manifest| manifest.status == RunStatus::Running)
        && let Some(LastWord { ended, reason }) = last_word(folder)
    {
        (manifest.status, manifest.reason) = (ended, reason);
    }
    Ok(manifest)
}

/// What tells how a run went, and is no part of its result.
fn about_the_run(folder: &ResultFolder) -> [PathBuf; 3] {
    [crate::recorder::path(folder), crate::report::page_path(folder), crate::report::json_path(folder)]
}

/// Tables beside the parts that are none of ours: `verify` never passes with them.
pub(crate) fn foreign_tables(folder: &ResultFolder) -> Vec<PathBuf> {
    let mut paths = list(&folder.embeddings()).unwrap_or_default();
    paths.retain(|path| !is_part(path) && path.to_string_lossy().ends_with(".parquet"));
    paths.sort();
    paths
}

/// Warns of files beside the parts, which are left alone: who reads the folder as one table reads them too.
pub(crate) fn warn_of_foreign_files(folder: &ResultFolder) {
    let Ok(paths) = list(&folder.embeddings()) else { return };
    for path in paths.iter().filter(|path| !is_part(path)) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Those that begin so are left out by readers of tables.
        if !name.starts_with(['.', '_']) {
            let file = path.display();
            tracing::warn!(%file, "not of this result, but read by who takes its folder as one table: move it away");
        }
    }
}

/// Whether this is a part, whole or under its temporary name.
pub(crate) fn is_part(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_prefix('.').unwrap_or(&name);
    let name = name.strip_suffix(".tmp").unwrap_or(name);
    name.strip_prefix("part-")
        .and_then(|rest| rest.strip_suffix(".parquet"))
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = fs::read_dir(folder).and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>()
    });
    entries.map_err(|error| failed("list", folder, &error))
}

/// Deletes a file, or an empty folder in its place; what somebody put into such a folder is not ours.
fn remove(path: &Path) -> Result<(), Failure> {
    let is_folder = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    if !is_folder {
        return files::remove(path).map_err(|error| failed("delete", path, &error));
    }
    fs::remove_dir(path).map_err(|error| {
        let text = format!("`{}` is a folder, where a file of the result belongs: {error}", path.display());
        Failure::new(Exit::Failed, text)
            .hint(format!("move it away or delete it: rm -r '{}'", path.display()))
    })
}

fn failed(operation: &str, path: &Path, error: &std::io::Error) -> Failure {
    let failure = Failure::new(Exit::Failed, format!("failed to {operation} `{}`: {error}", path.display()));
    if crate::shortage::remedy(&failure.line()).is_some() {
        // The folder is not at fault.
        return failure;
    }
    failure.hint("output.directory must be a folder that you may write to, on a disk with room")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parts_count_as_parts() {
        for name in ["part-00000.parquet", ".part-00012.parquet.tmp", "part-123456.parquet"] {
            assert!(is_part(Path::new(name)), "{name}");
        }
        for name in ["part-.parquet", "part-1.parquet.bak", "mine.parquet", "part-a.parquet", "part-00000"] {
            assert!(!is_part(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn a_second_run_is_kept_out_until_the_first_ends() {
        let directory = tempfile::tempdir().unwrap();
        let first = LockedFolder::open(directory.path()).unwrap();
        let refused = LockedFolder::open(directory.path()).err().unwrap();
        assert_eq!(refused.exit, Exit::Usage);
        assert!(refused.line().contains(&format!("process {}", std::process::id())), "{}", refused.line());
        drop(first);
        assert!(LockedFolder::open(directory.path()).is_ok());
    }
}
