//! Why an export was not written.

use std::io;
use std::path::PathBuf;

use actors::part::PartError;
use rust_hdf5::Hdf5Error;

/// Why an export was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportError {
    /// There is nothing to export.
    #[error("there are no parts to export")]
    NoParts,
    /// A part cannot be read.
    #[error(transparent)]
    Part(#[from] PartError),
    /// Parts of different runs.
    #[error("`{}` has {key} {found}, `{}` has {expected}: export parts of one run", other.display(), first.display())]
    Mixed {
        /// The first part.
        first: PathBuf,
        /// The part that differs.
        other: PathBuf,
        /// In what.
        key: &'static str,
        /// What the first part says.
        expected: String,
        /// What the other part says.
        found: String,
    },
    /// Parts overlap or were not given in input order.
    #[error("`{}` holds record {index} after record {previous}: give the parts in input order, each once", path.display())]
    OutOfOrder {
        /// The part.
        path: PathBuf,
        /// Ordinal of its record.
        index: u64,
        /// Ordinal of the record before it.
        previous: u64,
    },
    /// The format holds one vector per record only.
    #[error("{format} holds one vector per record, these parts one per residue: export safetensors or hdf5")]
    PerResidue {
        /// The format.
        format: &'static str,
    },
    /// The output is there already.
    #[error("`{}` exists: pass --force to replace it", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Another process is writing the output.
    #[error("another export is writing `{}`: wait for it, or choose another --output", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// An id would break the lines of a text file.
    #[error("id `{}` of record {index} does not fit on a line of `{}`: export hdf5", actors::shown(.id), path.display())]
    Id {
        /// The id.
        id: String,
        /// Ordinal of the record.
        index: u64,
        /// The text file.
        path: PathBuf,
    },
    /// A value does not fit float16, the only number type of the format.
    #[error("value {value} of `{}` (record {index}) overflows float16: export npy or safetensors", actors::shown(.id))]
    Overflow {
        /// The value.
        value: f32,
        /// Id of the record.
        id: String,
        /// Ordinal of the record.
        index: u64,
    },
    /// More tensors than a safetensors header can list.
    #[error(
        "{records} records need a safetensors header of up to {bytes} bytes, more than the format's \
         {bytes_max}: export hdf5"
    )]
    HeaderTooLarge {
        /// Records.
        records: u64,
        /// Bytes needed at most.
        bytes: u64,
        /// The format's limit.
        bytes_max: u64,
    },
    /// The system refused to write.
    #[error("failed to write `{}`", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The HDF5 encoder refused.
    #[error("failed to write `{}`", path.display())]
    Hdf5 {
        /// The file.
        path: PathBuf,
        /// What the encoder said.
        #[source]
        source: Hdf5Error,
    },
}
