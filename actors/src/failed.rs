//! `failed.tsv`: every record that has no embedding, and why.
//!
//! The writer keeps one file per segment, so that a resumed run has those of committed segments; at the
//! end of a session they are put together in input order.

use std::fmt::Write as _;
use std::io;

use crate::files;
use crate::identity::SegmentId;
use crate::manifest::{Manifest, ResultFolder, write_whole};

/// First line of `failed.tsv`.
pub const HEADER: &str = "index\tid\tfile\tline\tstage\treason\n";

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The record could not be used.
    Input,
    /// No device could compute it.
    Compute,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Compute => "compute",
        }
    }
}

/// A record without an embedding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedRecord {
    /// Input ordinal.
    pub index: u64,
    /// Its id; may be empty.
    pub id: String,
    /// Its file.
    pub file: String,
    /// Line of its header.
    pub line: u64,
    /// What failed.
    pub stage: Stage,
    /// Why.
    pub reason: String,
}

/// The lines of some records, in order of their index.
pub fn to_lines(mut records: Vec<FailedRecord>) -> String {
    records.sort_by_key(|record| record.index);
    let mut lines = String::new();
    for record in &records {
        let FailedRecord { index, id, file, line, stage, reason } = record;
        let stage = stage.name();
        let [id, file, reason] = [id, file, reason].map(|text| text.replace(['\t', '\n', '\r'], " "));
        writeln!(lines, "{index}\t{id}\t{file}\t{line}\t{stage}\t{reason}").expect("writing to a string");
    }
    lines
}

/// How many records of a committed segment failed at `stage`, by its list.
///
/// # Errors
/// Those of the file system.
pub fn count_at(folder: &ResultFolder, segment: SegmentId, stage: Stage) -> io::Result<usize> {
    let lines = files::read_text(&folder.failed_of(segment))?;
    Ok(lines.lines().filter(|line| line.split('\t').nth(4) == Some(stage.name())).count())
}

/// The text of `failed.tsv`, put together from the files of the committed segments.
///
/// # Errors
/// Those of the file system, and a missing file of a segment that has failed records.
pub fn joined(folder: &ResultFolder, manifest: &Manifest) -> io::Result<String> {
    let mut text = HEADER.to_owned();
    for (&segment, entry) in &manifest.segments {
        if entry.failed > 0 {
            text += &files::read_text(&folder.failed_of(SegmentId(segment)))?;
        }
    }
    Ok(text)
}

/// Writes `failed.tsv`.
///
/// # Errors
/// As [`joined`].
pub fn assemble(folder: &ResultFolder, manifest: &Manifest) -> io::Result<()> {
    write_whole(&folder.failed(), joined(folder, manifest)?.as_bytes())
}
