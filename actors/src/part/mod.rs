//! Output parts: one Parquet file per segment, written once, complete or absent, and read back row by row.

mod bounds;
mod checksum;
mod error;
mod pending;
mod reader;
mod schema;
mod writer;

#[cfg(test)]
mod round_trip;

pub use checksum::{PartChecksum, checksum};
pub use error::PartError;
pub use pending::{PendingFile, temporary_path};
pub use reader::{PartFooter, PartReader, read_footer};
pub use schema::PartSchema;
pub use writer::{
    EncodedPart, PartRow, PartSummary, ROW_GROUP_BYTES_MAX, ROW_GROUP_ROWS_MAX, encode_part, write_part,
};
