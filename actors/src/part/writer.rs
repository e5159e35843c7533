//! Writes one part: rows in, one complete Parquet file or none out.
//!
//! Called by the writer actor's blocking side once a segment's rows are all there. The file depends on
//! nothing but the arguments: the same rows and metadata give the same bytes on every machine.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{
    ArrayRef, FixedSizeListArray, Float16Array, Float32Array, ListArray, RecordBatch, StringArray,
    UInt32Array, UInt64Array,
};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType, Field, SchemaRef};
use config::Float;
use half::f16;
use half::slice::HalfFloatSliceExt;
use parquet::arrow::{ARROW_SCHEMA_META_KEY, ArrowWriter};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::checksum::HashingWriter;
use super::schema::HIDDEN_MAX;
use super::{PartChecksum, PartError, PartSchema, PendingFile};

/// Rows of a row group at most: what viewers of large tables load at once.
pub const ROW_GROUP_ROWS_MAX: usize = 8_192;
/// Embedding bytes of a row group at most, before compression; one larger row stands alone. The writer
/// holds one compressed row group in memory, and viewers refuse groups above 300 MB.
pub const ROW_GROUP_BYTES_MAX: usize = 64 << 20;
/// Embedding bytes handed to the encoder at once; about one page.
const CHUNK_BYTES: usize = 1 << 20;
/// Bytes of one row at most: a row cannot straddle pages and a page's size is an i32.
pub(super) const ROW_BYTES_MAX: usize = 1 << 30;
/// zstd level 1: only the exponents of embeddings can be compressed, and their entropy is found at once. Level
/// 3 took 2.5 times as long for files 0.7 % larger (3,000 proteins, demo model).
const ZSTD_LEVEL: i32 = 1;
/// Names the layout, not the release: bytes change only when the layout does.
const CREATED_BY: &str = "virnucpro-orch version 1.1.0";

/// One record of a part.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PartRow<'a> {
    /// Ordinal of the record in the input.
    pub index: u64,
    /// First word of its header.
    pub id: &'a str,
    /// Residues of the cleaned record.
    pub length: u32,
    /// [hidden], or row-major [residues, hidden] per residue.
    pub embedding: &'a [f32],
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartSummary {
    /// Rows.
    pub rows: u64,
    /// Size of the file.
    pub bytes: u64,
    /// SHA-256 of the file.
    pub checksum: PartChecksum,
}

/// Writes `rows` to `path` under a temporary name, syncs it and renames it, replacing an older file.
///
/// `metadata` goes into the footer as it is, sorted by key. Values become f16 by rounding to nearest,
/// ties to even. Memory is bounded by one row group ([`ROW_GROUP_BYTES_MAX`]) whatever the number of rows.
///
/// # Errors
/// See [`PartError`]; on any of them neither `path` nor the temporary file has changed or remains.
pub fn write_part<'a>(
    path: &Path,
    schema: &PartSchema,
    metadata: &BTreeMap<String, String>,
    rows: impl IntoIterator<Item = PartRow<'a>>,
) -> Result<PartSummary, PartError> {
    encode_part(path, schema, metadata, rows)?.commit()
}

/// A part that is written, but neither synced nor under its name; dropped, it is removed.
#[derive(Debug)]
pub struct EncodedPart {
    pending: PendingFile,
    path: PathBuf,
    summary: PartSummary,
}

impl EncodedPart {
    /// Syncs it and gives it its name, replacing an older file.
    ///
    /// # Errors
    /// [`PartError`]; neither name has changed or remains then.
    pub fn commit(self) -> Result<PartSummary, PartError> {
        self.pending.commit().map_err(|source| PartError::writing(&self.path, source))?;
        Ok(self.summary)
    }
}

/// Writes `rows` to the temporary name of `path`: all of [`write_part`] that takes processor time.
///
/// # Errors
/// See [`PartError`]; the temporary name does not remain then.
pub fn encode_part<'a>(
    path: &Path,
    schema: &PartSchema,
    metadata: &BTreeMap<String, String>,
    rows: impl IntoIterator<Item = PartRow<'a>>,
) -> Result<EncodedPart, PartError> {
    let pending = PendingFile::create(path).map_err(|source| PartError::writing(path, source))?;
    let mut sink = HashingWriter::new(&pending);
    let rows = encode(path, schema, metadata, rows, ROW_GROUP_BYTES_MAX, &mut sink)?;
    let (bytes, checksum) = sink.finish();
    Ok(EncodedPart { pending, path: path.to_owned(), summary: PartSummary { rows, bytes, checksum } })
}

/// Encodes `rows` into `sink`; `path` is for messages only. Returns the rows.
fn encode<'a, W: Write + Send>(
    path: &Path,
    schema: &PartSchema,
    metadata: &BTreeMap<String, String>,
    rows: impl IntoIterator<Item = PartRow<'a>>,
    group_bytes_max: usize,
    sink: &mut W,
) -> Result<u64, PartError> {
    if !(1..=HIDDEN_MAX).contains(&schema.hidden) {
        return Err(PartError::Width { hidden: schema.hidden, hidden_max: HIDDEN_MAX });
    }
    if metadata.contains_key(ARROW_SCHEMA_META_KEY) {
        return Err(PartError::ReservedKey { key: ARROW_SCHEMA_META_KEY.to_owned() });
    }
    let failed = |source| PartError::encoding(path, source);
    let arrow_schema = Arc::new(schema.arrow());
    let properties = properties(schema, metadata).map_err(failed)?;
    let mut writer = ArrowWriter::try_new(sink, arrow_schema.clone(), Some(properties)).map_err(failed)?;

    let mut chunk: Chunk<'a> = Chunk::new(*schema);
    let mut group_rows = 0;
    let mut group_bytes = 0;
    let mut total = 0u64;
    let mut previous = None;
    for row in rows {
        let bytes = check_row(schema, &row, previous)?;
        previous = Some(row.index);
        if group_rows == ROW_GROUP_ROWS_MAX || (group_rows > 0 && group_bytes + bytes > group_bytes_max) {
            chunk.write_to(&mut writer, &arrow_schema).map_err(failed)?;
            writer.flush().map_err(failed)?;
            (group_rows, group_bytes) = (0, 0);
        }
        chunk.push(&row)?;
        group_rows += 1;
        group_bytes += bytes;
        total += 1;
        if chunk.values.bytes() >= CHUNK_BYTES {
            chunk.write_to(&mut writer, &arrow_schema).map_err(failed)?;
        }
    }
    chunk.write_to(&mut writer, &arrow_schema).map_err(failed)?;
    writer.finish().map_err(failed)?;
    // Not `into_inner`, which turns the system's error into text and so hides a full disk.
    writer.sync().map_err(|source| PartError::writing(path, source))?;
    Ok(total)
}

/// Returns the bytes that the row's embedding takes, or why it cannot be stored.
fn check_row(schema: &PartSchema, row: &PartRow<'_>, previous: Option<u64>) -> Result<usize, PartError> {
    let (index, id) = (row.index, || row.id.to_owned());
    if let Some(previous) = previous.filter(|previous| *previous >= index) {
        return Err(PartError::OutOfOrder { index, id: id(), previous });
    }
    let found = row.embedding.len();
    let vectors = if schema.per_residue { found.div_ceil(schema.hidden) } else { 1 };
    let expected = vectors * schema.hidden;
    if found != expected {
        return Err(PartError::Shape { index, id: id(), expected, found });
    }
    let bytes = vectors * schema.vector_bytes();
    if bytes > ROW_BYTES_MAX {
        return Err(PartError::RowTooLarge { index, id: id(), bytes, bytes_max: ROW_BYTES_MAX });
    }
    Ok(bytes)
}

/// Returns how each column is encoded.
fn properties(
    schema: &PartSchema,
    metadata: &BTreeMap<String, String>,
) -> Result<WriterProperties, ParquetError> {
    // A path given as one dotted string would name a column that does not exist, and be ignored.
    let floats = ColumnPath::new(schema.float_column());
    let index = ColumnPath::new(vec!["index".to_owned()]);
    let length = ColumnPath::new(vec!["length".to_owned()]);
    let ascending_index = SortingColumn { column_idx: 0, descending: false, nulls_first: false };
    let metadata = metadata.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect();
    Ok(WriterProperties::builder()
        .set_created_by(CREATED_BY.to_owned())
        .set_key_value_metadata(Some(metadata))
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS_MAX))
        // Ids are unique and floats nearly so: a dictionary would be built only to be thrown away.
        .set_dictionary_enabled(false)
        .set_column_encoding(index, Encoding::DELTA_BINARY_PACKED)
        .set_column_encoding(length, Encoding::DELTA_BINARY_PACKED)
        .set_column_encoding(floats.clone(), float_encoding(schema.float))
        // The least and greatest float of a page tell nobody anything; its offset is still indexed.
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_column_statistics_enabled(floats, EnabledStatistics::None)
        .set_sorting_columns(Some(vec![ascending_index]))
        .build())
}

/// Returns the encoding of the float column. f16 stays plain because DuckDB 2.0 splits the bytes of f32
/// but not those of f16, and refuses the file.
fn float_encoding(float: Float) -> Encoding {
    match float {
        Float::F32 => Encoding::BYTE_STREAM_SPLIT,
        Float::F16 => Encoding::PLAIN,
    }
}

/// Rows gathered for the encoder, about [`CHUNK_BYTES`] of embeddings.
struct Chunk<'a> {
    schema: PartSchema,
    index: Vec<u64>,
    id: Vec<&'a str>,
    length: Vec<u32>,
    /// Vectors of each row; read only per residue.
    vectors: Vec<usize>,
    values: Values,
}

/// Floats as stored.
enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
}

impl Values {
    fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(values.as_slice()),
            Self::F16(values) => size_of_val(values.as_slice()),
        }
    }
}

impl<'a> Chunk<'a> {
    fn new(schema: PartSchema) -> Self {
        Self {
            schema,
            index: Vec::new(),
            id: Vec::new(),
            length: Vec::new(),
            vectors: Vec::new(),
            values: match schema.float {
                Float::F32 => Values::F32(Vec::new()),
                Float::F16 => Values::F16(Vec::new()),
            },
        }
    }

    fn push(&mut self, row: &PartRow<'a>) -> Result<(), PartError> {
        match &mut self.values {
            Values::F32(values) => values.extend_from_slice(row.embedding),
            Values::F16(values) => {
                let start = values.len();
                values.resize(start + row.embedding.len(), f16::ZERO);
                let stored = &mut values[start..];
                stored.convert_from_f32_slice(row.embedding);
                let overflow = stored
                    .iter()
                    .zip(row.embedding)
                    .position(|(to, from)| to.is_infinite() && from.is_finite());
                if let Some(position) = overflow {
                    let value = row.embedding[position];
                    return Err(PartError::Overflow {
                        index: row.index,
                        id: row.id.to_owned(),
                        position,
                        value,
                    });
                }
            }
        }
        self.index.push(row.index);
        self.id.push(row.id);
        self.length.push(row.length);
        self.vectors.push(row.embedding.len() / self.schema.hidden);
        Ok(())
    }

    /// Encodes the rows and empties the chunk.
    fn write_to<W: Write + Send>(
        &mut self,
        writer: &mut ArrowWriter<W>,
        arrow_schema: &SchemaRef,
    ) -> Result<(), ParquetError> {
        if self.index.is_empty() {
            return Ok(());
        }
        let batch = self.take(arrow_schema)?;
        writer.write(&batch)
    }

    fn take(&mut self, arrow_schema: &SchemaRef) -> Result<RecordBatch, ParquetError> {
        let floats: ArrayRef = match &mut self.values {
            Values::F32(values) => Arc::new(Float32Array::from(std::mem::take(values))),
            Values::F16(values) => Arc::new(Float16Array::from(std::mem::take(values))),
        };
        let hidden = self.schema.hidden as i32;
        let vectors = FixedSizeListArray::try_new(self.schema.float_field(), hidden, floats, None)?;
        let counts = std::mem::take(&mut self.vectors);
        let embedding: ArrayRef = if self.schema.per_residue {
            let DataType::List(field) = arrow_schema.field(3).data_type() else {
                return Err(ParquetError::General("the schema of residues is no list".to_owned()));
            };
            let field: Arc<Field> = field.clone();
            Arc::new(ListArray::try_new(field, OffsetBuffer::from_lengths(counts), Arc::new(vectors), None)?)
        } else {
            Arc::new(vectors)
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from(std::mem::take(&mut self.index))),
            Arc::new(StringArray::from_iter_values(self.id.drain(..))),
            Arc::new(UInt32Array::from(std::mem::take(&mut self.length))),
            embedding,
        ];
        Ok(RecordBatch::try_new(arrow_schema.clone(), columns)?)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};

    use super::*;

    fn schema(hidden: usize, float: Float, per_residue: bool) -> PartSchema {
        PartSchema { hidden, float, per_residue }
    }

    /// Writes `count` rows of `hidden` values that differ everywhere, and returns the footer.
    fn write_rows(path: &Path, schema: &PartSchema, count: u64, vectors: usize) -> ParquetMetaData {
        let width = schema.hidden * vectors;
        let values: Vec<f32> = (0..width + count as usize).map(|n| (n as f32 * 0.37).sin()).collect();
        let rows = (0..count).map(|index| PartRow {
            index,
            id: "P1",
            length: vectors as u32,
            embedding: &values[index as usize..index as usize + width],
        });
        let metadata = BTreeMap::from([("virnucpro.layer".to_owned(), "6".to_owned())]);
        write_part(path, schema, &metadata, rows).unwrap();
        ParquetMetaDataReader::new()
            .with_page_index_policy(PageIndexPolicy::Required)
            .parse_and_finish(&std::fs::File::open(path).unwrap())
            .unwrap()
    }

    #[test]
    fn footer_names_the_encodings_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        for (float, encoding) in [(Float::F32, Encoding::BYTE_STREAM_SPLIT), (Float::F16, Encoding::PLAIN)] {
            for (per_residue, column) in
                [(false, "embedding.list.element"), (true, "embedding.list.element.list.element")]
            {
                let path = folder.path().join("part-00000.parquet");
                let footer = write_rows(&path, &schema(16, float, per_residue), 50, 1);
                let columns = footer.row_group(0).columns();
                let paths: Vec<String> = columns.iter().map(|c| c.column_path().string()).collect();
                assert_eq!(paths, ["index", "id", "length", column]);
                let encodings: Vec<Vec<Encoding>> = columns
                    .iter()
                    // RLE is how list levels are stored, in every nested column.
                    .map(|c| c.encodings().filter(|encoding| *encoding != Encoding::RLE).collect())
                    .collect();
                assert_eq!(
                    encodings,
                    [
                        [Encoding::DELTA_BINARY_PACKED],
                        [Encoding::PLAIN],
                        [Encoding::DELTA_BINARY_PACKED],
                        [encoding],
                    ]
                );
                for column in columns {
                    assert!(matches!(column.compression(), Compression::ZSTD(_)));
                    assert_eq!(column.dictionary_page_offset(), None);
                    assert!(column.offset_index_offset().is_some());
                }
                assert!(columns[0].column_index_offset().is_some());
                assert_eq!(footer.file_metadata().created_by(), Some(CREATED_BY));
                assert_eq!(footer.row_group(0).sorting_columns().unwrap()[0].column_idx, 0);
            }
        }
    }

    #[test]
    fn row_groups_are_capped_by_rows() {
        let folder = tempfile::tempdir().unwrap();
        let count = 2 * ROW_GROUP_ROWS_MAX as u64 + 1;
        let footer = write_rows(&folder.path().join("p.parquet"), &schema(4, Float::F32, false), count, 1);
        let rows: Vec<i64> = footer.row_groups().iter().map(|group| group.num_rows()).collect();
        assert_eq!(rows, [8_192, 8_192, 1]);
    }

    #[test]
    fn row_groups_are_capped_by_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.parquet");
        let values = [0.25; 30];
        // Of one vector of 3 × 4 bytes: two rows fit into 24 bytes, the third starts a group, and the
        // fourth, larger than any group, stands alone.
        let rows = [1, 1, 1, 10, 1].into_iter().enumerate().map(|(at, vectors)| PartRow {
            index: at as u64,
            id: "P1",
            length: 1,
            embedding: &values[..3 * vectors],
        });
        let mut file = std::fs::File::create(&path).unwrap();
        encode(&path, &schema(3, Float::F32, true), &BTreeMap::new(), rows, 24, &mut file).unwrap();
        let footer =
            ParquetMetaDataReader::new().parse_and_finish(&std::fs::File::open(&path).unwrap()).unwrap();
        let rows: Vec<i64> = footer.row_groups().iter().map(|group| group.num_rows()).collect();
        assert_eq!(rows, [2, 1, 1, 1]);
    }

    /// A disk that takes `room` bytes and then fails with `kind`.
    struct SmallDisk {
        room: usize,
        kind: io::ErrorKind,
    }

    impl Write for SmallDisk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(self.kind.into());
            }
            let taken = bytes.len().min(self.room);
            self.room -= taken;
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_fills_anywhere_is_reported_as_full() {
        let embedding: Vec<f32> = (0..1024).map(|n| (n as f32).sqrt()).collect();
        let path = Path::new("part-00007.parquet");
        let onto = |room, kind| {
            let rows = (0..64).map(|index| PartRow { index, id: "P1", length: 9, embedding: &embedding });
            let mut disk = SmallDisk { room, kind };
            let schema = schema(1024, Float::F32, false);
            encode(path, &schema, &BTreeMap::new(), rows, ROW_GROUP_BYTES_MAX, &mut disk).map(|_| disk.room)
        };
        let ample = 1 << 20;
        let bytes = ample - onto(ample, io::ErrorKind::Other).unwrap();
        for room in [0, 1, 4, bytes / 3, bytes / 2, bytes - 1] {
            let error = onto(room, io::ErrorKind::StorageFull).unwrap_err();
            assert!(error.is_disk_full(), "{room}: {error:?}");
            assert_eq!(error.to_string(), "no space left to write `part-00007.parquet`");
            let error = onto(room, io::ErrorKind::ReadOnlyFilesystem).unwrap_err();
            assert!(matches!(error, PartError::ReadOnly { .. }), "{room}: {error:?}");
        }
        assert_eq!(onto(bytes, io::ErrorKind::StorageFull).unwrap(), 0);
    }

    /// Writes two rows into an empty folder and returns the error; nothing may stay behind.
    fn refused(schema: PartSchema, rows: [PartRow<'_>; 2]) -> PartError {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part-00000.parquet");
        let error = write_part(&path, &schema, &BTreeMap::new(), rows).unwrap_err();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        error
    }

    #[test]
    fn refused_rows_are_named_and_leave_nothing() {
        let row = |index, id, embedding| PartRow { index, id, length: 2, embedding };
        let first = row(4, "P1", &[0.5, 1.0][..]);
        let pooled = schema(2, Float::F32, false);
        for (second, message) in [
            (row(5, "P2", &[1.0][..]), "embedding of `P2` (record 5) holds 1 values, not 2"),
            (row(5, "P2", &[][..]), "embedding of `P2` (record 5) holds 0 values, not 2"),
            (
                row(4, "P2", &[1.0, 2.0][..]),
                "record 4 (`P2`) came after record 4: rows must follow the input order",
            ),
        ] {
            assert_eq!(refused(pooled, [first, second]).to_string(), message);
        }
        let residues = schema(2, Float::F32, true);
        assert_eq!(
            refused(residues, [first, row(5, "P2", &[1.0, 2.0, 3.0])]).to_string(),
            "embedding of `P2` (record 5) holds 3 values, not 4"
        );
        // 65519.996 rounds to f16's largest, 65504; 65520 is the tie that rounds to infinity.
        let half = schema(2, Float::F16, false);
        assert_eq!(
            refused(half, [row(4, "P1", &[65_519.996, f32::INFINITY]), row(5, "P2", &[0.0, -65_520.0])])
                .to_string(),
            "value -65520 at position 1 of `P2` (record 5) overflows f16: store f32"
        );
        assert!(matches!(refused(schema(0, Float::F32, false), [first, first]), PartError::Width { .. }));
    }

    #[test]
    fn a_reserved_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let metadata = BTreeMap::from([("ARROW:schema".to_owned(), String::new())]);
        let schema = schema(2, Float::F32, false);
        let error = write_part(&folder.path().join("p"), &schema, &metadata, []).unwrap_err();
        assert_eq!(error.to_string(), "metadata key `ARROW:schema` is reserved by Arrow: choose another");
    }

    #[test]
    fn a_missing_folder_is_named() {
        let schema = schema(2, Float::F32, false);
        let error = write_part(Path::new("nowhere/p.parquet"), &schema, &BTreeMap::new(), []).unwrap_err();
        assert_eq!(error.to_string(), "failed to write `nowhere/p.parquet`");
        assert!(!error.is_disk_full());
    }

    #[test]
    fn the_same_rows_give_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        for (float, vectors) in [(Float::F32, 1), (Float::F16, 1), (Float::F32, 5)] {
            let schema = schema(8, float, vectors > 1);
            let paths = ["a", "b"].map(|name| folder.path().join(name));
            for path in &paths {
                write_rows(path, &schema, 9_000, vectors);
            }
            let [a, b] = paths.map(|path| std::fs::read(path).unwrap());
            assert!(a == b, "{schema:?}");
        }
    }

    #[test]
    fn the_layout_has_not_changed_unnoticed() {
        // A restarted job appends parts beside old ones and compares digests: when a new release of an
        // encoder changes these bytes, say so in the CHANGELOG and renew the digest.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part-00000.parquet");
        let embedding: Vec<f32> = (0..32).map(|n| n as f32 / 8.0).collect();
        let rows = (0..10).map(|index| PartRow { index, id: "P1", length: 7, embedding: &embedding });
        let summary = write_part(&path, &schema(32, Float::F32, false), &BTreeMap::new(), rows).unwrap();
        assert_eq!(summary.checksum, super::super::checksum(&path).unwrap());
        assert_eq!(summary.bytes, std::fs::metadata(&path).unwrap().len());
        assert_eq!(summary.rows, 10);
        assert_eq!(
            summary.checksum.to_string(),
            "58d2d3429cb19e4d73a6f26c8f31390bc51bd07c2ea24dac2ab92acacdca890b"
        );
    }
}
