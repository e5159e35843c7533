//! `failed.tsv`: every record that has no embedding, and why.
//!
//! The writer keeps one file per segment, so that a resumed run has those of committed segments; at the
//! end of a session they are put together in input order.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use crate::files;
use crate::identity::SegmentId;
use crate::manifest::{Manifest, ResultFolder};
use crate::part::PendingFile;

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

/// The text of `failed.tsv` in pieces: its header, then the lists of the committed segments. No more than one is in
/// memory at a time, since all together may be as large as the input.
///
/// Yields the errors of the file system, and those of a missing list of a segment that has failed records.
pub fn pieces<'a>(
    folder: &'a ResultFolder,
    manifest: &'a Manifest,
) -> impl Iterator<Item = io::Result<String>> + 'a {
    let listing = manifest.segments.iter().filter(|(_, entry)| entry.failed > 0);
    let lists = listing.map(|(&segment, _)| files::read_text(&folder.failed_of(SegmentId(segment))));
    std::iter::once(Ok(HEADER.to_owned())).chain(lists)
}

/// Writes `failed.tsv`.
///
/// # Errors
/// As those that [`pieces`] yields.
pub fn assemble(folder: &ResultFolder, manifest: &Manifest) -> io::Result<()> {
    let pending = PendingFile::create(&folder.failed())?;
    for piece in pieces(folder, manifest) {
        (&pending).write_all(piece?.as_bytes())?;
    }
    pending.commit()
}
