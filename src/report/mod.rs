//! The report of a run: `report.html` for people, `report.json` for machines, written at each end of a run and
//! again by the command `report`.
//!
//! It reads the result folder and writes those two files, nothing else. That they cannot be written is a warning,
//! never a failure of the run; files under their names that are no reports are left alone.

mod chart;
mod content;
mod page;
mod timeline;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use actors::Snapshot;
use actors::manifest::{Manifest, ResultFolder, RunStatus};

pub(crate) use self::content::Ending;
use crate::cli::FolderArguments;
use crate::failure::{Exit, Failure};
use crate::recorder::{self, Series};

/// What tells a report of ours from anything else.
const GENERATOR: &str = "virnucpro-orch";
/// Bytes of a file in which that must stand.
const HEAD_BYTES: u64 = 512;
/// Longest snapshot that is read.
const SNAPSHOT_BYTES_MAX: u64 = 16 << 20;

/// The page.
pub(crate) fn page_path(folder: &ResultFolder) -> PathBuf {
    folder.0.join("report.html")
}

/// The same for machines.
pub(crate) fn json_path(folder: &ResultFolder) -> PathBuf {
    folder.0.join("report.json")
}

/// Makes the report of a result folder again, whatever became of its run.
pub(crate) fn report(arguments: &FolderArguments) -> Result<Exit, Failure> {
    let folder = ResultFolder(crate::attach::meant(&arguments.folder)?);
    let manifest = crate::verify::read_manifest(&folder)?;
    let live = crate::control::connect(&folder).is_ok();
    let ending = match manifest.status {
        RunStatus::Running if live => Ending::Running,
        RunStatus::Running => Ending::Killed,
        RunStatus::Done => Ending::Done,
        RunStatus::Stopped => Ending::Stopped,
        RunStatus::Failed => Ending::Failed,
    };
    let snapshot = kept_snapshot(&folder);
    let reason = manifest.reason.clone();
    make(&folder, &manifest, snapshot.as_ref(), ending, reason).map_err(|(path, error)| {
        Failure::new(Exit::Failed, format!("failed to write `{}`: {error}", path.display()))
    })?;
    crate::stdout::print(&format!("{}\n", page_path(&folder).display()))?;
    Ok(Exit::Done)
}

/// Writes the report at the end of a run, or says why it cannot be.
pub(crate) fn write_at_end(
    folder: &ResultFolder,
    manifest: &Manifest,
    snapshot: &Snapshot,
    ending: Ending,
    reason: Option<String>,
) {
    if let Err((path, error)) = make(folder, manifest, Some(snapshot), ending, reason) {
        let file = path.display();
        tracing::warn!(%file, %error, "the report cannot be written; `virnucpro-orch report` makes it again");
    }
}

fn make(
    folder: &ResultFolder,
    manifest: &Manifest,
    snapshot: Option<&Snapshot>,
    ending: Ending,
    reason: Option<String>,
) -> Result<(), (PathBuf, io::Error)> {
    let series = Series::read(&recorder::path(folder));
    let report = content::gather(folder, manifest, snapshot, &series, ending, reason);
    let json = serde_json::to_string_pretty(&report).expect("a report is plain data with text keys") + "\n";
    for (path, text) in [(page_path(folder), page::html(&report)), (json_path(folder), json)] {
        replace(&path, &text).map_err(|error| (path, error))?;
    }
    Ok(())
}

/// Puts a text under a name at once; not synced: it can be made again.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    if path.symlink_metadata().is_ok() && !is_report(path)? {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no report is in its place"));
    }
    let temporary = actors::part::temporary_path(path);
    let replaced = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path));
    if replaced.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    replaced
}

/// Whether a file is a report of ours, or was about to become one.
fn is_report(path: &Path) -> io::Result<bool> {
    let mut head = Vec::new();
    actors::files::open_regular(path)?.take(HEAD_BYTES).read_to_end(&mut head)?;
    Ok(head.is_empty() || String::from_utf8_lossy(&head).contains(GENERATOR))
}

fn kept_snapshot(folder: &ResultFolder) -> Option<Snapshot> {
    let file = actors::files::open_regular(&folder.snapshot()).ok()?;
    serde_json::from_reader(file.take(SNAPSHOT_BYTES_MAX)).ok()
}
