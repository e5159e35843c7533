//! The command `export`: a complete result in another tool's format.

use std::error::Error;
use std::path::PathBuf;

use actors::manifest::{ResultFolder, RunStatus};
use actors::part::PartError;

use crate::cli::ExportArguments;
use crate::export::ExportError;
use crate::failure::{Exit, Failure};
use crate::progress::grouped;
use crate::verify::{read_manifest, refuse_unfinished};

pub(crate) fn export(arguments: &ExportArguments) -> Result<Exit, Failure> {
    let folder = ResultFolder(crate::attach::meant(&arguments.folder)?);
    let manifest = read_manifest(&folder)?;
    refuse_unfinished(&folder, &manifest)?;
    if manifest.status != RunStatus::Done {
        let text = format!("`{}` is not complete", folder.0.display());
        return Err(Failure::new(Exit::Incomplete, text).hint("finish it with `run` first"));
    }
    let incomplete = |error: &(dyn Error + 'static)| {
        Failure::because(Exit::Incomplete, error)
            .hint("the `run` command that made it computes what is missing or damaged; `verify` lists it")
    };
    for entry in manifest.segments.values() {
        entry.check_size(&folder).map_err(|fault| incomplete(&fault))?;
    }
    let parts: Vec<_> = manifest.segments.values().map(|entry| folder.0.join(&entry.part)).collect();
    let output = arguments.output.clone().unwrap_or_else(|| default_folder(&folder));
    let summary =
        crate::export::export(&parts, arguments.to, &output, arguments.force, &manifest.model.source)
            .map_err(|error| match &error {
                ExportError::Part(PartError::Damaged { .. } | PartError::NotAPart { .. }) => {
                    incomplete(&error)
                }
                ExportError::Busy { .. } | ExportError::Exists { .. } | ExportError::PerResidue { .. } => {
                    Failure::because(Exit::Usage, &error)
                }
                _ => Failure::because(Exit::Failed, &error),
            })?;
    crate::stderr::say(format_args!(
        "exported {} records to {}",
        grouped(summary.records),
        arguments.to.name()
    ));
    for note in &summary.notes {
        crate::stderr::say(format_args!("note: {note}"));
    }
    for file in &summary.files {
        crate::stdout::print(&format!("{}\n", file.display()))?;
    }
    Ok(Exit::Done)
}

/// Where an export goes unless told otherwise.
pub(crate) fn default_folder(folder: &ResultFolder) -> PathBuf {
    folder.0.join("export")
}
