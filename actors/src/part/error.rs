//! What can go wrong with a part, sorted by what the caller does next.

use std::io;
use std::path::{Path, PathBuf};

use parquet::errors::ParquetError;

use crate::shown::shown;

/// Why a part was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum PartError {
    /// No space, quota or file-size allowance is left: pause, report, try again.
    #[error("no space left to write `{}`", path.display())]
    DiskFull {
        /// The part.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The folder cannot be written to for now: pause, report, try again.
    #[error("not allowed to write `{}`", path.display())]
    ReadOnly {
        /// The part.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Writing failed for another reason of the system's.
    #[error("failed to write `{}`", path.display())]
    Write {
        /// The part.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The Parquet encoder refused.
    #[error("failed to encode `{}`", path.display())]
    Encode {
        /// The part.
        path: PathBuf,
        /// What the encoder said.
        #[source]
        source: ParquetError,
    },
    /// A finite value is too large for f16 storage.
    #[error("value {value} at position {position} of `{}` (record {index}) overflows f16: store f32", shown(.id))]
    Overflow {
        /// Ordinal of the record in the input.
        index: u64,
        /// Its id.
        id: String,
        /// Position in the embedding.
        position: usize,
        /// The value.
        value: f32,
    },
    /// An embedding has not the length that the schema says.
    #[error("embedding of `{}` (record {index}) holds {found} values, not {expected}", shown(.id))]
    Shape {
        /// Ordinal of the record in the input.
        index: u64,
        /// Its id.
        id: String,
        /// Values that the schema asks for.
        expected: usize,
        /// Values that came.
        found: usize,
    },
    /// An embedding is larger than one Parquet page can be.
    #[error(
        "embedding of `{}` (record {index}) takes {bytes} bytes, more than {bytes_max} for one row",
        shown(.id)
    )]
    RowTooLarge {
        /// Ordinal of the record in the input.
        index: u64,
        /// Its id.
        id: String,
        /// Bytes as stored, before compression.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// Rows did not come in input order, each once.
    #[error(
        "record {index} (`{}`) came after record {previous}: rows must follow the input order",
        shown(.id)
    )]
    OutOfOrder {
        /// Ordinal of the record in the input.
        index: u64,
        /// Its id.
        id: String,
        /// Ordinal of the row before it.
        previous: u64,
    },
    /// The width of an embedding is zero or too large.
    #[error("width {hidden} of an embedding is outside 1 to {hidden_max}")]
    Width {
        /// Width asked for.
        hidden: usize,
        /// The limit.
        hidden_max: usize,
    },
    /// A metadata key belongs to the file format.
    #[error("metadata key `{key}` is reserved by Arrow: choose another")]
    ReservedKey {
        /// The key.
        key: String,
    },
    /// The file cannot be opened or read.
    #[error("failed to read `{}`", path.display())]
    Read {
        /// The part.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is truncated or damaged: compute the part again.
    #[error("`{}` is damaged: {reason}", path.display())]
    Damaged {
        /// The part.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is sound Parquet, yet has not the columns of a part.
    #[error("`{}` is not a part of embeddings: {reason}", path.display())]
    NotAPart {
        /// The file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
}

impl PartError {
    /// True when space, a quota or a limit on file sizes is used up.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::DiskFull { .. })
    }

    /// The system's failure below it, if there is one.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::DiskFull { source, .. }
            | Self::ReadOnly { source, .. }
            | Self::Write { source, .. }
            | Self::Read { source, .. } => Some(source),
            Self::Encode { .. }
            | Self::Overflow { .. }
            | Self::Shape { .. }
            | Self::RowTooLarge { .. }
            | Self::OutOfOrder { .. }
            | Self::Width { .. }
            | Self::ReservedKey { .. }
            | Self::Damaged { .. }
            | Self::NotAPart { .. } => None,
        }
    }

    /// Sorts a failure of the system while writing `path`.
    pub(super) fn writing(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            // ENOSPC, EDQUOT and EFBIG.
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::DiskFull { path, source }
            }
            // EROFS, then EACCES and EPERM.
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                Self::ReadOnly { path, source }
            }
            _ => Self::Write { path, source },
        }
    }

    /// Sorts a failure of the encoder, which wraps those of the file below it.
    pub(super) fn encoding(path: &Path, source: ParquetError) -> Self {
        match source {
            ParquetError::External(inner) => match inner.downcast::<io::Error>() {
                Ok(inner) => Self::writing(path, *inner),
                Err(inner) => Self::Encode { path: path.to_owned(), source: ParquetError::External(inner) },
            },
            source => Self::Encode { path: path.to_owned(), source },
        }
    }

    /// Sorts a failure of the decoder: the system's, or damage.
    pub(super) fn decoding(path: &Path, source: ParquetError) -> Self {
        let path = path.to_owned();
        match source {
            ParquetError::External(inner) => match inner.downcast::<io::Error>() {
                // A short read is a file cut short; an error with a number is the system's.
                Ok(inner) if inner.raw_os_error().is_some() => Self::Read { path, source: *inner },
                Ok(inner) => Self::Damaged { path, reason: inner.to_string() },
                Err(inner) => Self::Damaged { path, reason: inner.to_string() },
            },
            source => Self::Damaged { path, reason: source.to_string() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno(number: i32) -> PartError {
        PartError::writing(Path::new("out/part-00003.parquet"), io::Error::from_raw_os_error(number))
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn every_errno_of_a_full_disk_is_recognised() {
        const EPERM: i32 = 1;
        const EIO: i32 = 5;
        const EACCES: i32 = 13;
        const EFBIG: i32 = 27;
        const ENOSPC: i32 = 28;
        const EROFS: i32 = 30;
        const EDQUOT: i32 = 122;
        for number in [ENOSPC, EDQUOT, EFBIG] {
            assert!(errno(number).is_disk_full(), "{number}");
        }
        for number in [EROFS, EACCES, EPERM] {
            assert!(matches!(errno(number), PartError::ReadOnly { .. }), "{number}");
        }
        assert!(matches!(errno(EIO), PartError::Write { .. }));
        assert!(!errno(EIO).is_disk_full());
    }

    #[test]
    fn a_full_disk_is_recognised_through_the_encoder() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert!(PartError::encoding(Path::new("p"), ParquetError::from(full)).is_disk_full());
        let other = PartError::encoding(Path::new("p"), ParquetError::General("no".to_owned()));
        assert!(matches!(other, PartError::Encode { .. }));
    }

    #[test]
    fn display_does_not_repeat_the_source() {
        let error = PartError::writing(Path::new("a"), io::Error::from(io::ErrorKind::StorageFull));
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(!error.to_string().contains(&source));
    }
}
