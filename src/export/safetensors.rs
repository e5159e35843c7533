//! Safetensors: `embeddings.safetensors` and `ids.txt`, one id per line in the order of the tensor `index`.
//!
//! Pooled: `index` [records] u64 and `embeddings` [records, width]. Per residue: `index`, and for each
//! record a tensor [residues, width] named by its ordinal in the input, as in `index`.
//!
//! ```text
//! | u64 header length | header (JSON, padded with spaces) | index | embeddings, or one tensor per record |
//! ```

use std::path::{Path, PathBuf};

use actors::part::PartSchema;
use config::Float;
use serde_json::{Map, Value, json};

use super::ExportError;
use super::collection::{Collection, check_line_id};
use super::output::Output;

/// The longest header that readers accept (`safetensors` MAX_HEADER_SIZE).
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Ordinals gathered before they are written into their tensor.
const INDEX_ROWS_BUFFERED: usize = 1 << 16;

/// Writes the export and returns its files.
pub(super) fn write(
    collection: &Collection,
    folder: &Path,
    force: bool,
    model_name: &str,
) -> Result<Vec<PathBuf>, ExportError> {
    let schema = collection.schema();
    let rows = collection.rows();
    let mut layout = Layout { schema, rows, metadata: Map::new(), records: Vec::new() };
    // Other loaders take a file without this key to be of an unknown framework.
    layout.metadata.insert("format".to_owned(), json!("pt"));
    layout.metadata.insert("model_name".to_owned(), json!(model_name));
    for (key, value) in collection.run_metadata() {
        layout.metadata.insert(key.to_owned(), json!(value));
    }

    let header_bytes = layout.header_bytes()?;
    let index_start = 8 + header_bytes;
    let mut embeddings = Output::create(folder, "embeddings.safetensors", force)?;
    let mut ids = Output::create(folder, "ids.txt", force)?;
    embeddings.append_from(index_start + rows * 8)?;

    let mut index: Vec<u8> = Vec::new();
    let mut index_at = index_start;
    collection.for_each(|row| {
        check_line_id(&row, ids.path())?;
        embeddings.push_floats(row.embedding, schema.float)?;
        ids.push(row.id.as_bytes())?;
        ids.push(b"\n")?;
        if schema.per_residue {
            layout.records.push((row.index, (row.embedding.len() / schema.hidden) as u64));
        }
        index.extend(row.index.to_le_bytes());
        if index.len() >= INDEX_ROWS_BUFFERED * 8 {
            embeddings.write_at(&index, index_at)?;
            index_at += index.len() as u64;
            index.clear();
        }
        Ok(())
    })?;
    embeddings.write_at(&index, index_at)?;
    embeddings.write_at(&layout.header(header_bytes), 0)?;
    Ok(vec![embeddings.commit()?, ids.commit()?])
}

/// Where each tensor lies.
struct Layout {
    schema: PartSchema,
    rows: u64,
    metadata: Map<String, Value>,
    /// Ordinal and vectors of each record; filled per residue only.
    records: Vec<(u64, u64)>,
}

impl Layout {
    /// Returns the room to leave for the header. Per residue its content is known only after the last
    /// row, so the longest that it can be is left: the format lets a header end in spaces.
    fn header_bytes(&self) -> Result<u64, ExportError> {
        let mut longest = self.tensors(&[]).len() as u64;
        if self.schema.per_residue {
            let entry = self.entry(u64::MAX, u64::MAX / 4, u64::MAX / 4, 0);
            longest += self.rows.saturating_mul(entry.len() as u64);
        }
        let bytes = longest.next_multiple_of(8);
        if bytes > HEADER_BYTES_MAX {
            let (records, bytes_max) = (self.rows, HEADER_BYTES_MAX);
            return Err(ExportError::HeaderTooLarge { records, bytes, bytes_max });
        }
        Ok(bytes)
    }

    /// Returns the length and the header, padded to `bytes`.
    fn header(&self, bytes: u64) -> Vec<u8> {
        let text = self.tensors(&self.records);
        let mut header = bytes.to_le_bytes().to_vec();
        header.extend(text.as_bytes());
        header.resize(8 + bytes as usize, b' ');
        header
    }

    /// Returns the JSON that lists `index`, the pooled `embeddings`, or one tensor for each of `records`.
    fn tensors(&self, records: &[(u64, u64)]) -> String {
        let start = self.rows * 8;
        let metadata = Value::Object(self.metadata.clone());
        let index = json!({ "dtype": "U64", "shape": [self.rows], "data_offsets": [0, start] });
        let mut text = format!("{{\"__metadata__\":{metadata},\"index\":{index}");
        if self.schema.per_residue {
            let mut at = start;
            for (ordinal, vectors) in records {
                let end = at + vectors * self.vector_bytes();
                text.push_str(&self.entry(*ordinal, *vectors, at, end));
                at = end;
            }
        } else {
            let end = start + self.rows * self.vector_bytes();
            let shape = [self.rows, self.schema.hidden as u64];
            let embeddings = json!({ "dtype": self.dtype(), "shape": shape, "data_offsets": [start, end] });
            text.push_str(&format!(",\"embeddings\":{embeddings}"));
        }
        text.push('}');
        text
    }

    /// Returns the comma and entry of one record. A map of all entries would double the memory.
    fn entry(&self, ordinal: u64, vectors: u64, start: u64, end: u64) -> String {
        let (dtype, hidden) = (self.dtype(), self.schema.hidden);
        format!(
            ",\"{ordinal}\":{{\"dtype\":\"{dtype}\",\"shape\":[{vectors},{hidden}],\
             \"data_offsets\":[{start},{end}]}}"
        )
    }

    fn dtype(&self) -> &'static str {
        match self.schema.float {
            Float::F32 => "F32",
            Float::F16 => "F16",
        }
    }

    fn vector_bytes(&self) -> u64 {
        self.schema.hidden as u64
            * match self.schema.float {
                Float::F32 => 4,
                Float::F16 => 2,
            }
    }
}
