//! `InputError`: everything that can stop the reading of the input, each naming its file and line.
//!
//! Every part of `fasta` returns it; the caller maps [`InputError::is_bad_input`] to an exit code and prints
//! [`InputError::hint`] below the message. It never holds sequence data beyond a short excerpt.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::shown::{acts, shown};

/// Why the input could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The file could not be opened.
    #[error("failed to open input `{file}`")]
    Open {
        /// The input as named in the job.
        file: String,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The file could not be read to its end.
    #[error("failed to read input `{file}` after {bytes} bytes")]
    Read {
        /// The input as named in the job.
        file: String,
        /// Bytes of the file read before.
        bytes: u64,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// A folder, a pipe or a device was named where a file is needed.
    #[error("input `{file}` is not a regular file")]
    NotAFile {
        /// The input as named in the job.
        file: String,
    },
    /// Standard input could not be kept on disk.
    #[error("failed to write standard input to `{path}`")]
    Spool {
        /// The file written.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// Nothing can be piped in, nor was before.
    #[error("standard input is closed, or leads nowhere: there is nothing to read")]
    StdinClosed,
    /// Nothing was piped in, where an earlier run was stopped before all had arrived.
    #[error("standard input is empty, and what an earlier run was given through it never arrived whole")]
    StdinCutShort,
    /// A scratch file of the duplicate search failed.
    #[error("failed to use scratch files in `{path}`")]
    Scratch {
        /// The scratch folder.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// A compressed file ends before its end mark.
    #[error("input `{file}` is truncated: its {format} data ends early, after {bytes} bytes")]
    Truncated {
        /// The input as named in the job.
        file: String,
        /// `gzip`, `bgzip` or `zstd`.
        format: &'static str,
        /// Bytes of the file.
        bytes: u64,
    },
    /// A compressed file does not decompress.
    #[error("input `{file}` holds {format} data that is damaged near byte {bytes}")]
    Corrupt {
        /// The input as named in the job.
        file: String,
        /// `gzip` or `zstd`.
        format: &'static str,
        /// Bytes of the file read before.
        bytes: u64,
        /// The decompressor's reason.
        #[source]
        source: io::Error,
    },
    /// Something else stands behind the end of a compressed file.
    #[error(
        "input `{file}`: behind its {format} data, from byte {bytes} on, follows something that is not {format}"
    )]
    TrailingBytes {
        /// The input as named in the job.
        file: String,
        /// `gzip`.
        format: &'static str,
        /// Bytes of the file before it.
        bytes: u64,
    },
    /// More stands behind the zeros that pad the end of a compressed file, perhaps another such file.
    #[error("input `{file}`: behind the zeros that end its {format} data, more follows from byte {bytes} on")]
    BehindPadding {
        /// The input as named in the job.
        file: String,
        /// `gzip`.
        format: &'static str,
        /// Bytes of the file before it.
        bytes: u64,
    },
    /// A compression that is recognised but not read.
    #[error("input `{file}` is {format} data, which is not read")]
    UnsupportedCompression {
        /// The input as named in the job.
        file: String,
        /// What it is.
        format: &'static str,
    },
    /// Something packed where text should be: an archive, or packed data within packed data.
    #[error("input `{file}` holds {format} data where FASTA text should be")]
    StillPacked {
        /// The input as named in the job.
        file: String,
        /// What it is.
        format: &'static str,
    },
    /// The input is no longer what the survey read.
    #[error("input `{file}` has changed while the run was going on")]
    Changed {
        /// The input as named in the job.
        file: String,
    },
    /// UTF-16 text.
    #[error("input `{file}` is UTF-16 text, not plain FASTA")]
    Utf16 {
        /// The input as named in the job.
        file: String,
    },
    /// Reads with qualities instead of FASTA.
    #[error("{file}:{line}: the file starts with `@`: it is FASTQ (or SAM), not FASTA")]
    Fastq {
        /// The input as named in the job.
        file: String,
        /// Line, from 1.
        line: u64,
    },
    /// Something else than a header comes first.
    #[error("{file}:{line}: expected a header that starts with `>`, found `{found}`")]
    TextBeforeHeader {
        /// The input as named in the job.
        file: String,
        /// Line, from 1.
        line: u64,
        /// The beginning of that line.
        found: String,
    },
    /// Lines end with carriage returns alone.
    #[error("input `{file}` ends its lines with carriage returns alone")]
    CarriageReturns {
        /// The input as named in the job.
        file: String,
    },
    /// A record larger than the limit that keeps memory bounded.
    #[error("{file}:{line}: record `{id}` is larger than {bytes_max} bytes")]
    RecordTooLarge {
        /// The input as named in the job.
        file: String,
        /// Line of the header, from 1.
        line: u64,
        /// First word of the header.
        id: String,
        /// `max_record_bytes` of the job.
        bytes_max: u64,
    },
    /// A header line that goes on and on.
    #[error("{file}:{line}: the header of `{id}` is longer than {bytes_max} bytes")]
    HeaderTooLong {
        /// The input as named in the job.
        file: String,
        /// Line of the header, from 1.
        line: u64,
        /// First word of the header.
        id: String,
        /// The limit.
        bytes_max: usize,
    },
    /// A malformed record under `on_bad_record = "stop"`.
    #[error("{file}:{line}: bad record `{}`: {reason}", shown(.id))]
    BadRecord {
        /// The input as named in the job.
        file: String,
        /// Line of the header, from 1.
        line: u64,
        /// First word of the header, made printable.
        id: String,
        /// What is wrong, with line and column where that helps.
        reason: String,
    },
    /// A sequence longer than `max_residues` under `too_long = "stop"`.
    #[error(
        "{file}:{line}: record `{}` has {residues} residues, more than max_residues = {residues_max}",
        shown(.id)
    )]
    TooLong {
        /// The input as named in the job.
        file: String,
        /// Line of the header, from 1.
        line: u64,
        /// First word of the header.
        id: String,
        /// Residues after cleaning.
        residues: u64,
        /// `max_residues` of the job.
        residues_max: u32,
    },
    /// DNA or RNA where proteins are expected.
    #[error(
        "input `{file}` looks like nucleotides: {nucleotides} of {letters} letters in its first {records} records \
         are A, C, G, T, U or N"
    )]
    LooksLikeNucleotides {
        /// The input as named in the job.
        file: String,
        /// Records looked at.
        records: u64,
        /// Letters in them.
        letters: u64,
        /// Letters that are A, C, G, T, U or N.
        nucleotides: u64,
    },
    /// Ids that occur more than once under `duplicate_ids = "stop"`.
    #[error("{repeats} records repeat the id of an earlier record: {}", Listed(.duplicates, *.repeats))]
    DuplicateIds {
        /// The first of them, at most ten.
        duplicates: Vec<DuplicateId>,
        /// How many records repeat an id.
        repeats: u64,
    },
}

/// One id that occurs twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DuplicateId {
    /// The id.
    pub id: String,
    /// Where it is first seen.
    pub first: Place,
    /// Where it is seen again.
    pub again: Place,
}

/// A line of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The input as named in the job.
    pub file: String,
    /// Line, from 1.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// The duplicates of one error as text.
struct Listed<'a>(&'a [DuplicateId], u64);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, duplicate) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { "; " };
            let DuplicateId { id, first, again } = duplicate;
            write!(f, "{separator}`{}` at {first} and {again}", printable(id.as_bytes()))?;
        }
        let more = self.1.saturating_sub(self.0.len() as u64);
        if more > 0 {
            write!(f, "; and {more} more")?;
        }
        Ok(())
    }
}

impl InputError {
    /// Whether the input itself is at fault; otherwise the file system or the machine is.
    pub fn is_bad_input(&self) -> bool {
        match self {
            InputError::Open { .. }
            | InputError::Read { .. }
            | InputError::NotAFile { .. }
            | InputError::Spool { .. }
            | InputError::Scratch { .. } => false,
            InputError::StdinClosed
            | InputError::StdinCutShort
            | InputError::Truncated { .. }
            | InputError::Corrupt { .. }
            | InputError::TrailingBytes { .. }
            | InputError::BehindPadding { .. }
            | InputError::UnsupportedCompression { .. }
            | InputError::StillPacked { .. }
            | InputError::Changed { .. }
            | InputError::Utf16 { .. }
            | InputError::Fastq { .. }
            | InputError::TextBeforeHeader { .. }
            | InputError::CarriageReturns { .. }
            | InputError::RecordTooLarge { .. }
            | InputError::HeaderTooLong { .. }
            | InputError::BadRecord { .. }
            | InputError::TooLong { .. }
            | InputError::LooksLikeNucleotides { .. }
            | InputError::DuplicateIds { .. } => true,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            InputError::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "check `fasta` under [input]; relative paths start at the job file's folder".to_owned()
            }
            InputError::Open { .. } | InputError::Read { .. } => return None,
            InputError::NotAFile { .. } => {
                "the input is read twice, so it must be a file; give a pipe as `-` (standard input)".to_owned()
            }
            InputError::StdinClosed => "pipe the input in; an empty one is given by `</dev/null`".to_owned(),
            InputError::StdinCutShort => "pipe the whole input in again".to_owned(),
            InputError::Spool { .. } | InputError::Scratch { .. } => {
                "check that the folder exists, may be written to and has free space".to_owned()
            }
            InputError::Corrupt { format, source, .. } if asks_for_too_much_memory(source) => {
                format!("it was compressed with a very large window; compress it again with {format}'s defaults")
            }
            InputError::Truncated { format, .. } | InputError::Corrupt { format, .. } => format!(
                "fetch or copy the file again; `{}` shows whether it is whole and free of trailing bytes",
                tester(format)
            ),
            InputError::TrailingBytes { bytes, .. } => format!(
                "were files of several kinds joined? Unpack them one by one; otherwise fetch the file again. head -c {bytes} keeps what comes before it and drops the rest"
            ),
            InputError::BehindPadding { format, bytes, .. } => format!(
                "such zeros are the end for {format} itself, which drops what follows. Were padded files joined? tail -c +{} shows the next one: unpack them one by one; otherwise fetch the file again",
                bytes + 1
            ),
            InputError::UnsupportedCompression { format, .. } => {
                format!("unpack the {format} data first, or pack it with gzip or zstd")
            }
            InputError::StillPacked { format: TAR, .. } => {
                "unpack it with tar -xf, and give the files in it".to_owned()
            }
            InputError::StillPacked { .. } => {
                "was it packed twice? Unpack it until it is text; gzip or zstd may then pack it, once".to_owned()
            }
            InputError::Changed { .. } => {
                "let nothing write to the input during a run; what this session made of it is not kept".to_owned()
            }
            InputError::Utf16 { file } => format!("convert it: iconv -f UTF-16 -t UTF-8 {file} > converted.fasta"),
            InputError::Fastq { .. } => {
                "protein FASTA is needed: assemble or translate the reads first".to_owned()
            }
            InputError::TextBeforeHeader { .. } => "each record starts with a line `>id`".to_owned(),
            InputError::CarriageReturns { file } => {
                format!("convert the line ends: tr '\\r' '\\n' < {file} > converted.fasta")
            }
            InputError::RecordTooLarge { .. } => {
                "is a line break before `>` missing? otherwise raise max_record_bytes under [input]".to_owned()
            }
            InputError::HeaderTooLong { .. } => {
                "is this FASTA text? a header is one line: `>`, an id, a description".to_owned()
            }
            InputError::BadRecord { .. } => {
                "correct the record, or set on_bad_record = \"skip\" under [input] to list such records in failed.tsv"
                    .to_owned()
            }
            InputError::TooLong { .. } => {
                "set too_long to \"truncate\", \"pool-first\" or \"skip\" under [input], or raise max_residues".to_owned()
            }
            InputError::LooksLikeNucleotides { .. } => {
                "nucleotides are not supported yet: translate them to proteins first".to_owned()
            }
            InputError::DuplicateIds { .. } => {
                "make the ids unique, or set duplicate_ids = \"keep\" under [input]; `index` then tells the rows apart"
                    .to_owned()
            }
        };
        Some(hint)
    }
}

/// The name of the archives of `tar`.
pub(super) const TAR: &str = "tar";

/// The command that checks a compressed file.
fn tester(format: &str) -> &'static str {
    if format == "zstd" { "zstd -t" } else { "gzip -t" }
}

/// Whether the zstd decoder refused the window size; it tells so by text alone.
fn asks_for_too_much_memory(error: &io::Error) -> bool {
    error.to_string().contains("too much memory")
}

/// Longest excerpt of the input in a message, characters: a line of a terminal must hold it.
const EXCERPT_CHARS_MAX: usize = 60;

/// The beginning of `bytes` as text that can be seen.
pub(super) fn printable(bytes: &[u8]) -> String {
    // Four bytes hold any character, so this much is enough of a header of any size.
    let head = &bytes[..bytes.len().min(EXCERPT_CHARS_MAX * 4)];
    let lossy = String::from_utf8_lossy(head);
    let mut text = String::new();
    let mut chars = lossy.chars();
    for char in chars.by_ref().take(EXCERPT_CHARS_MAX) {
        if acts(char) { text.extend(char.escape_default()) } else { text.push(char) }
    }
    if chars.next().is_some() || head.len() < bytes.len() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_are_short_and_without_control_characters() {
        assert_eq!(printable(b"sp|P1\tx\x1b[31m"), "sp|P1\\tx\\u{1b}[31m");
        assert_eq!(printable("a\u{202e}b".as_bytes()), "a\\u{202e}b");
        assert_eq!(printable(b"\xff"), "\u{fffd}");
        assert_eq!(printable(&[b'a'; 60]), "a".repeat(60));
        assert_eq!(printable(&[b'a'; 61]), format!("{}…", "a".repeat(60)));
        assert_eq!(printable(&[b'a'; 1 << 20]).chars().count(), 61);
    }

    #[test]
    fn duplicates_are_listed_with_both_places() {
        let place = |line| Place { file: "a.fasta".to_owned(), line };
        let duplicates = vec![
            DuplicateId { id: "x".to_owned(), first: place(1), again: place(5) },
            DuplicateId { id: "y".to_owned(), first: place(3), again: place(9) },
        ];
        let error = InputError::DuplicateIds { duplicates, repeats: 7 };
        assert_eq!(
            error.to_string(),
            "7 records repeat the id of an earlier record: `x` at a.fasta:1 and a.fasta:5; `y` at a.fasta:3 and \
             a.fasta:9; and 5 more"
        );
        assert!(error.is_bad_input());
    }
}
