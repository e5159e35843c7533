//! Reads parts back: the footer alone, or every row in bounded memory.
//!
//! Exports and `verify` use it. It trusts nothing in the file: damage is an error that names the file.

use std::collections::BTreeMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray;
use arrow_array::types::{Float16Type, Float32Type, UInt32Type, UInt64Type};
use arrow_array::{Array, RecordBatch};
use config::Float;
use half::slice::HalfFloatSliceExt;
use parquet::arrow::ARROW_SCHEMA_META_KEY;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};

use super::bounds::{self, Excess};
use super::{PartError, PartRow, PartSchema};
use crate::files;

/// Embedding bytes decoded at once, if a row is not larger.
const BATCH_BYTES: usize = 4 << 20;
/// Rows decoded at once at most.
const BATCH_ROWS_MAX: usize = 8_192;

/// What a part says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartFooter {
    /// Rows.
    pub rows: u64,
    /// Shape and number type of the embeddings.
    pub schema: PartSchema,
    /// Key-value pairs given when it was written.
    pub metadata: BTreeMap<String, String>,
}

/// Reads the footer of the part at `path`, whatever the size of the part.
///
/// # Errors
/// [`PartError::Read`], [`PartError::Damaged`] or [`PartError::NotAPart`].
pub fn read_footer(path: &Path) -> Result<PartFooter, PartError> {
    let file =
        files::open_regular(path).map_err(|source| PartError::Read { path: path.to_owned(), source })?;
    footer(path, &load(path, &file)?)
}

/// Rows of one part, in their order.
///
/// A row borrows the reader, so this is not an [`Iterator`]: call [`PartReader::next_row`] until `None`.
pub struct PartReader {
    path: PathBuf,
    footer: PartFooter,
    batches: ParquetRecordBatchReader,
    batch: Option<RecordBatch>,
    /// Next row of `batch`.
    at: usize,
    rows_read: u64,
    previous: Option<u64>,
    /// Holds the row handed out when it is stored as f16.
    widened: Vec<f32>,
}

impl PartReader {
    /// Opens the part at `path` and reads its footer.
    ///
    /// # Errors
    /// As [`read_footer`].
    pub fn open(path: &Path) -> Result<Self, PartError> {
        let file =
            files::open_regular(path).map_err(|source| PartError::Read { path: path.to_owned(), source })?;
        let metadata = load(path, &file)?;
        let footer = footer(path, &metadata)?;
        bounds::check_pages(&file, metadata.metadata(), &footer.schema)
            .map_err(|excess| refused(path, excess))?;
        let rows = batch_rows(&metadata);
        let batches = ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata)
            .with_batch_size(rows)
            .build()
            .map_err(|source| PartError::decoding(path, source))?;
        Ok(Self {
            path: path.to_owned(),
            footer,
            batches,
            batch: None,
            at: 0,
            rows_read: 0,
            previous: None,
            widened: Vec::new(),
        })
    }

    /// Returns what the part says of itself.
    pub fn footer(&self) -> &PartFooter {
        &self.footer
    }

    /// Returns the next row, its embedding widened to f32, or `None` after the last.
    ///
    /// # Errors
    /// [`PartError::Read`] or [`PartError::Damaged`]; the rows before were sound.
    pub fn next_row(&mut self) -> Result<Option<PartRow<'_>>, PartError> {
        let batch = loop {
            match self.batch.take() {
                Some(batch) if self.at < batch.num_rows() => break self.batch.insert(batch),
                Some(_) | None => {}
            }
            self.at = 0;
            match contained(&self.path, || self.batches.next())? {
                Some(Ok(batch)) => self.batch = Some(batch),
                Some(Err(error)) => return Err(damaged(&self.path, error)),
                None if self.rows_read != self.footer.rows => {
                    let (found, promised) = (self.rows_read, self.footer.rows);
                    return Err(damaged(&self.path, format!("it holds {found} rows of {promised}")));
                }
                None => return Ok(None),
            }
        };
        let at = self.at;
        let index = batch.column(0).as_primitive::<UInt64Type>().value(at);
        let id = batch.column(1).as_string::<i32>().value(at);
        let length = batch.column(2).as_primitive::<UInt32Type>().value(at);
        if self.previous.is_some_and(|previous| previous >= index) {
            return Err(damaged(&self.path, format!("record {index} is out of order")));
        }
        let (vectors, rows) = if self.footer.schema.per_residue {
            let list = batch.column(3).as_list::<i32>();
            let offsets = list.value_offsets();
            (list.values().as_fixed_size_list(), offsets[at] as usize..offsets[at + 1] as usize)
        } else {
            (batch.column(3).as_fixed_size_list(), at..at + 1)
        };
        let hidden = self.footer.schema.hidden;
        let first = vectors.offset();
        let range = (first + rows.start) * hidden..(first + rows.end) * hidden;
        let embedding = match self.footer.schema.float {
            Float::F32 => vectors.values().as_primitive::<Float32Type>().values().get(range),
            Float::F16 => vectors.values().as_primitive::<Float16Type>().values().get(range).map(|stored| {
                self.widened.resize(stored.len(), 0.0);
                stored.convert_to_f32_slice(&mut self.widened);
                self.widened.as_slice()
            }),
        };
        let Some(embedding) = embedding else {
            return Err(damaged(&self.path, format!("record {index} has no whole embedding")));
        };
        self.at += 1;
        self.rows_read += 1;
        self.previous = Some(index);
        Ok(Some(PartRow { index, id, length, embedding }))
    }
}

fn damaged(path: &Path, reason: impl ToString) -> PartError {
    PartError::Damaged { path: path.to_owned(), reason: reason.to_string() }
}

/// Runs a step of the decoder, whose array bounds are its last check of a damaged page: a flipped bit in
/// a value count panics in `parquet` 60.1 (`byte_stream_split_decoder`). What it was reading is not used
/// again after that, hence `AssertUnwindSafe`.
fn contained<T>(path: &Path, step: impl FnOnce() -> T) -> Result<T, PartError> {
    catch_unwind(AssertUnwindSafe(step)).map_err(|_| damaged(path, "a page contradicts its header"))
}

/// Refuses what is out of bounds.
fn refused(path: &Path, excess: Excess) -> PartError {
    match excess {
        Excess::Found(reason) => damaged(path, reason),
        Excess::Unreadable(source) => PartError::Read { path: path.to_owned(), source },
    }
}

fn load(path: &Path, file: &File) -> Result<ArrowReaderMetadata, PartError> {
    bounds::check_footer_length(file).map_err(|excess| refused(path, excess))?;
    let metadata = contained(path, || ArrowReaderMetadata::load(file, ArrowReaderOptions::new()))?
        .map_err(|source| PartError::decoding(path, source))?;
    let schema = schema(path, &metadata)?;
    bounds::check_footer(file, metadata.metadata(), &schema).map_err(|excess| refused(path, excess))?;
    Ok(metadata)
}

fn schema(path: &Path, metadata: &ArrowReaderMetadata) -> Result<PartSchema, PartError> {
    PartSchema::from_arrow(metadata.schema())
        .map_err(|reason| PartError::NotAPart { path: path.to_owned(), reason })
}

fn footer(path: &Path, metadata: &ArrowReaderMetadata) -> Result<PartFooter, PartError> {
    let schema = schema(path, metadata)?;
    let file = metadata.metadata().file_metadata();
    let rows = u64::try_from(file.num_rows())
        .map_err(|_| damaged(path, format!("its footer counts {} rows", file.num_rows())))?;
    let pairs = file.key_value_metadata().into_iter().flatten();
    let metadata = pairs
        .filter(|pair| pair.key != ARROW_SCHEMA_META_KEY)
        .map(|pair| (pair.key.clone(), pair.value.clone().unwrap_or_default()))
        .collect();
    Ok(PartFooter { rows, schema, metadata })
}

/// Returns how many rows to decode at once: rows of residues vary, so by the mean of the largest group.
fn batch_rows(metadata: &ArrowReaderMetadata) -> usize {
    let groups = metadata.metadata().row_groups().iter();
    let row_bytes = groups.filter_map(|group| {
        let values = u64::try_from(group.columns().get(3)?.num_values()).ok()?;
        let rows = u64::try_from(group.num_rows()).ok()?;
        Some(values.saturating_mul(4).checked_div(rows)?.max(1))
    });
    let largest = usize::try_from(row_bytes.max().unwrap_or(1)).unwrap_or(usize::MAX);
    (BATCH_BYTES / largest).clamp(1, BATCH_ROWS_MAX)
}
