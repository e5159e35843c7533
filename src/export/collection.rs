//! The parts of one run seen as one table: rows known beforehand, read in order, checked to belong together.

use std::path::{Path, PathBuf};

use actors::part::{PartFooter, PartReader, PartRow, PartSchema, read_footer};

use super::ExportError;

/// Footer keys in which the parts of one run agree; others (a segment's range) may differ.
const RUN_KEYS: [&str; 3] = ["virnucpro.model_sha256", "virnucpro.layer", "virnucpro.pooling"];

/// Parts of one run, in input order.
pub(super) struct Collection {
    parts: Vec<(PathBuf, PartFooter)>,
    schema: PartSchema,
    rows: u64,
}

impl Collection {
    /// Reads the footers of `parts` and checks that they agree.
    pub(super) fn open(parts: &[PathBuf]) -> Result<Self, ExportError> {
        let parts = parts
            .iter()
            .map(|path| Ok((path.clone(), read_footer(path)?)))
            .collect::<Result<Vec<_>, ExportError>>()?;
        let Some((first, footer)) = parts.first() else { return Err(ExportError::NoParts) };
        for (other, footer_of_other) in &parts {
            let facts = facts(footer).into_iter().zip(facts(footer_of_other));
            for ((key, expected), (_, found)) in facts {
                if expected != found {
                    let (first, other) = (first.clone(), other.clone());
                    return Err(ExportError::Mixed { first, other, key, expected, found });
                }
            }
        }
        let schema = footer.schema;
        let rows = parts.iter().map(|(_, footer)| footer.rows).sum();
        Ok(Self { parts, schema, rows })
    }

    /// Returns the number of records.
    pub(super) fn rows(&self) -> u64 {
        self.rows
    }

    /// Returns the shape and number type that all parts share.
    pub(super) fn schema(&self) -> PartSchema {
        self.schema
    }

    /// Returns what the run says of itself, for formats that take key-value pairs.
    pub(super) fn run_metadata(&self) -> Vec<(&'static str, &str)> {
        let footer = &self.parts[0].1;
        RUN_KEYS.iter().filter_map(|key| Some((*key, footer.metadata.get(*key)?.as_str()))).collect()
    }

    /// Refuses parts of residues on behalf of a format that cannot hold them.
    pub(super) fn require_pooled(&self, format: &'static str) -> Result<(), ExportError> {
        if self.schema.per_residue { Err(ExportError::PerResidue { format }) } else { Ok(()) }
    }

    /// Hands every row to `take`, in input order.
    pub(super) fn for_each(
        &self,
        mut take: impl FnMut(PartRow<'_>) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let mut previous = None;
        for (path, _) in &self.parts {
            let mut reader = PartReader::open(path)?;
            while let Some(row) = reader.next_row()? {
                if let Some(previous) = previous.filter(|previous| *previous >= row.index) {
                    return Err(ExportError::OutOfOrder { path: path.clone(), index: row.index, previous });
                }
                previous = Some(row.index);
                take(row)?;
            }
        }
        Ok(())
    }
}

/// Returns what must be the same in every part, with its name.
fn facts(footer: &PartFooter) -> Vec<(&'static str, String)> {
    let schema = footer.schema;
    let mut facts = vec![
        ("width", schema.hidden.to_string()),
        ("number type", format!("{:?}", schema.float).to_lowercase()),
        ("one vector per", if schema.per_residue { "residue" } else { "record" }.to_owned()),
    ];
    for key in RUN_KEYS {
        facts.push((key, footer.metadata.get(key).map_or_else(|| "none".to_owned(), String::clone)));
    }
    facts
}

/// Refuses an id that would break the lines of the text file at `path`.
pub(super) fn check_line_id(row: &PartRow<'_>, path: &Path) -> Result<(), ExportError> {
    if row.id.contains(['\t', '\n', '\r']) {
        return Err(ExportError::Id { id: row.id.to_owned(), index: row.index, path: path.to_owned() });
    }
    Ok(())
}
