//! Turns the parts of a finished run into the file that another tool reads.
//!
//! Parts stay as they are: an export is a copy, written under temporary names and renamed when whole, by one process
//! at a time. It never computes embeddings and never widens what was rounded.

mod collection;
mod error;
mod hdf5;
mod npy;
mod output;
mod safetensors;
mod tsv;

#[cfg(test)]
mod written;

use std::path::{Path, PathBuf};

use collection::Collection;
pub(crate) use error::ExportError;

/// What to export to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ExportFormat {
    /// NumPy: embeddings.npy [records, width] and ids.txt.
    Npy,
    /// Safetensors: embeddings.safetensors and ids.txt; per residue, one tensor per record.
    Safetensors,
    /// HDF5 as UniProt offers it: embeddings.h5, one float16 dataset per protein.
    Hdf5,
    /// Text: embeddings.tsv, one line per record.
    Tsv,
}

impl ExportFormat {
    /// Returns the name typed on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Npy => "npy",
            Self::Safetensors => "safetensors",
            Self::Hdf5 => "hdf5",
            Self::Tsv => "tsv",
        }
    }
}

/// What was exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExportSummary {
    /// Records.
    pub(crate) records: u64,
    /// Files written, the embeddings first.
    pub(crate) files: Vec<PathBuf>,
    /// What the user should know of them, one sentence each.
    pub(crate) notes: Vec<String>,
}

/// Exports `parts`, given in input order, into the folder `out_dir`, which is created if missing.
///
/// Rows are streamed: memory does not grow with the parts, except in [`ExportFormat::Hdf5`] and per
/// residue in [`ExportFormat::Safetensors`], which keep an entry per record.
///
/// # Errors
/// See [`ExportError`]. An existing file is refused unless `force`; on any error it is as it was.
pub(crate) fn export(
    parts: &[PathBuf],
    format: ExportFormat,
    out_dir: &Path,
    force: bool,
    model_name: &str,
) -> Result<ExportSummary, ExportError> {
    let collection = Collection::open(parts)?;
    match format {
        ExportFormat::Npy | ExportFormat::Tsv => collection.require_pooled(format.name())?,
        ExportFormat::Safetensors | ExportFormat::Hdf5 => {}
    }
    std::fs::create_dir_all(out_dir)
        .map_err(|source| ExportError::Write { path: out_dir.to_owned(), source })?;
    let (files, notes) = match format {
        ExportFormat::Npy => (npy::write(&collection, out_dir, force)?, Vec::new()),
        ExportFormat::Safetensors => {
            (safetensors::write(&collection, out_dir, force, model_name)?, Vec::new())
        }
        ExportFormat::Hdf5 => hdf5::write(&collection, out_dir, force, model_name)?,
        ExportFormat::Tsv => (tsv::write(&collection, out_dir, force)?, Vec::new()),
    };
    Ok(ExportSummary { records: collection.rows(), files, notes })
}
