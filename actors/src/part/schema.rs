//! The columns of a part: `index` u64, `id` utf8, `length` u32, `embedding` floats; none is ever null.
//!
//! Writer and reader both take the Arrow schema from here, so they cannot disagree.

use std::sync::Arc;

use arrow_schema::{DataType, Field, FieldRef, Schema};
use config::Float;

use super::writer::ROW_BYTES_MAX;

/// Widest embedding taken: far above any model (ESM-2 15B has 5,120), low enough that a damaged file
/// cannot ask for absurd memory.
pub(super) const HIDDEN_MAX: usize = 1 << 20;

/// Shape and number type of the embeddings of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartSchema {
    /// Width of one vector.
    pub hidden: usize,
    /// Stored number type.
    pub float: Float,
    /// False: one vector per record. True: one vector per residue.
    pub per_residue: bool,
}

impl PartSchema {
    /// Returns the Arrow schema: `embedding` is FixedSizeList<float>[hidden], or a List of these.
    pub(super) fn arrow(&self) -> Schema {
        let vector = DataType::FixedSizeList(self.float_field(), self.hidden as i32);
        let embedding = if self.per_residue { DataType::List(Arc::new(element(vector))) } else { vector };
        Schema::new(vec![
            Field::new("index", DataType::UInt64, false),
            Field::new("id", DataType::Utf8, false),
            Field::new("length", DataType::UInt32, false),
            Field::new("embedding", embedding, false),
        ])
    }

    /// Returns the path of the float column in the Parquet schema, one name per level.
    pub(super) fn float_column(&self) -> Vec<String> {
        let levels: &[&str] = if self.per_residue {
            &["embedding", "list", "element", "list", "element"]
        } else {
            &["embedding", "list", "element"]
        };
        levels.iter().map(|level| (*level).to_owned()).collect()
    }

    /// Returns the field of one number.
    pub(super) fn float_field(&self) -> FieldRef {
        Arc::new(element(match self.float {
            Float::F32 => DataType::Float32,
            Float::F16 => DataType::Float16,
        }))
    }

    /// Returns the bytes of one vector as stored, before compression.
    pub(super) fn vector_bytes(&self) -> usize {
        self.hidden * self.value_bytes()
    }

    /// Returns how many residues a record may have for its row to be stored.
    pub fn residues_max(&self) -> u32 {
        if !self.per_residue {
            return u32::MAX;
        }
        u32::try_from(ROW_BYTES_MAX / self.vector_bytes().max(1)).unwrap_or(u32::MAX)
    }

    /// Returns the bytes of one number as stored, before compression.
    pub(super) fn value_bytes(&self) -> usize {
        match self.float {
            Float::F32 => 4,
            Float::F16 => 2,
        }
    }

    /// Reads the schema of a part back, or says what is not as in a part.
    pub(super) fn from_arrow(schema: &Schema) -> Result<Self, String> {
        let embedding = match schema.fields().iter().find(|field| field.name() == "embedding") {
            Some(field) => field.data_type(),
            None => return Err("it has no column `embedding`".to_owned()),
        };
        let (vector, per_residue) = match embedding {
            DataType::List(vector) => (vector.data_type(), true),
            vector => (vector, false),
        };
        let parsed = match vector {
            DataType::FixedSizeList(float, hidden) => {
                let float = match float.data_type() {
                    DataType::Float32 => Some(Float::F32),
                    DataType::Float16 => Some(Float::F16),
                    _ => None,
                };
                let hidden = usize::try_from(*hidden).ok().filter(|n| (1..=HIDDEN_MAX).contains(n));
                float.zip(hidden)
            }
            _ => None,
        };
        let (float, hidden) = parsed.ok_or_else(|| format!("its column `embedding` has type {embedding}"))?;
        let part = Self { hidden, float, per_residue };
        for (expected, found) in part.arrow().fields().iter().zip(schema.fields()) {
            if expected != found {
                return Err(format!("its column `{}` has type {}", found.name(), found.data_type()));
            }
        }
        match schema.fields().len() {
            4 => Ok(part),
            n => Err(format!("it has {n} columns, not 4")),
        }
    }
}

/// A list's element, named as the Parquet specification wants it.
fn element(data_type: DataType) -> Field {
    Field::new("element", data_type, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schema_reads_back() {
        for float in [Float::F32, Float::F16] {
            for per_residue in [false, true] {
                let schema = PartSchema { hidden: 320, float, per_residue };
                assert_eq!(PartSchema::from_arrow(&schema.arrow()), Ok(schema));
            }
        }
    }

    #[test]
    fn other_columns_are_refused() {
        let schema = PartSchema { hidden: 8, float: Float::F32, per_residue: false }.arrow();
        let mut fields = schema.fields().to_vec();
        fields[0] = Arc::new(Field::new("index", DataType::Int64, false));
        let reason = PartSchema::from_arrow(&Schema::new(fields)).unwrap_err();
        assert_eq!(reason, "its column `index` has type Int64");
        let reason = PartSchema::from_arrow(&Schema::new(schema.fields()[..3].to_vec())).unwrap_err();
        assert_eq!(reason, "it has no column `embedding`");
        let nullable = Field::new("embedding", DataType::Utf8, true);
        let reason = PartSchema::from_arrow(&Schema::new(vec![nullable])).unwrap_err();
        assert_eq!(reason, "its column `embedding` has type Utf8");
    }
}
