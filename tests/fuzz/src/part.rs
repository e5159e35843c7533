//! Parts of embeddings: the footer and every row. A part is not trusted even where the manifest names it: what
//! was made elsewhere can be exported too.

use std::collections::BTreeMap;

use actors::part::{PartReader, PartRow, PartSchema, read_footer, write_part};
use config::Float;

/// Reads a part to its end or its first flaw.
pub fn enter(bytes: &[u8]) -> bool {
    let folder = super::folder_with("part-00000.parquet", bytes);
    let path = folder.path().join("part-00000.parquet");
    let footer = read_footer(&path);
    match PartReader::open(&path) {
        Ok(mut reader) => {
            assert_eq!(reader.footer(), footer.as_ref().expect("the same footer"));
            let mut previous = None;
            let mut rows = 0;
            loop {
                match reader.next_row() {
                    Ok(Some(row)) => {
                        assert!(previous.is_none_or(|previous| previous < row.index));
                        previous = Some(row.index);
                        rows += 1;
                    }
                    Ok(None) => {
                        assert_eq!(rows, reader.footer().rows);
                        return true;
                    }
                    Err(error) => {
                        assert!(!error.to_string().is_empty());
                        return false;
                    }
                }
            }
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

/// Seeds: small parts of every schema.
pub fn seeds() -> Vec<Vec<u8>> {
    let metadata = BTreeMap::from([("model".to_owned(), "demo".to_owned())]);
    let mut seeds = Vec::new();
    for (float, per_residue) in
        [(Float::F32, false), (Float::F16, false), (Float::F32, true), (Float::F16, true)]
    {
        for rows in [0, 3] {
            let values: Vec<f32> = (0..12).map(|number| number as f32 / 4.0).collect();
            let schema = PartSchema { hidden: 2, float, per_residue };
            let ids: Vec<String> = (0..rows).map(|row| format!("p{row}")).collect();
            let rows = ids.iter().enumerate().map(|(row, id)| {
                let length = row + 1;
                let numbers = if per_residue { 2 * length } else { 2 };
                PartRow { index: row as u64, id, length: length as u32, embedding: &values[..numbers] }
            });
            let folder = super::folder_with("unrelated", b"");
            let path = folder.path().join("part.parquet");
            write_part(&path, &schema, &metadata, rows).expect("the rows are sound");
            seeds.push(std::fs::read(&path).expect("the part was written"));
        }
    }
    seeds
}
