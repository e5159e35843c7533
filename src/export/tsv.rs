//! Text: `embeddings.tsv`, tab-separated, first line `id index length e0 e1 …`, then one line per record.
//!
//! Numbers are the shortest text that reads back as the same f32.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::ExportError;
use super::collection::{Collection, check_line_id};
use super::output::Output;

/// Writes the export of pooled embeddings and returns its file.
pub(super) fn write(
    collection: &Collection,
    folder: &Path,
    force: bool,
) -> Result<Vec<PathBuf>, ExportError> {
    let mut output = Output::create(folder, "embeddings.tsv", force)?;
    let mut line = "id\tindex\tlength".to_owned();
    for column in 0..collection.schema().hidden {
        append(&mut line, format_args!("\te{column}"));
    }
    line.push('\n');
    output.push(line.as_bytes())?;
    collection.for_each(|row| {
        check_line_id(&row, output.path())?;
        line.clear();
        append(&mut line, format_args!("{}\t{}\t{}", row.id, row.index, row.length));
        for value in row.embedding {
            // Debug, unlike Display, writes 1e-9 rather than nine zeros.
            append(&mut line, format_args!("\t{value:?}"));
        }
        line.push('\n');
        output.push(line.as_bytes())
    })?;
    Ok(vec![output.commit()?])
}

fn append(line: &mut String, text: std::fmt::Arguments<'_>) {
    line.write_fmt(text).expect("writing into a String cannot fail");
}
