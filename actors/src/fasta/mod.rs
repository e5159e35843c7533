//! FASTA input: from files as they come to canonical records, in input order, in bounded memory.
//!
//! `source` opens and digests one input, `reader` cuts it into raw records, `clean` turns one into
//! canonical residues, `stream` chains all inputs under the job's policy, `survey` reads everything once
//! before a run, `stdin` makes standard input a file. The planner and the reader actor use it; it knows
//! neither batches nor devices, and it never prints.

mod clean;
mod duplicates;
mod error;
mod reader;
mod source;
mod stdin;
mod stream;
mod survey;

pub use error::{DuplicateId, InputError, Place};
pub use source::{FileDigest, FileStamp, Source};
pub use stdin::spool_stdin;
pub use stream::{InputCounts, Item, Record, RecordStream, Rejected};
pub use survey::{LengthBin, LengthHistogram, Longest, Survey, survey};
