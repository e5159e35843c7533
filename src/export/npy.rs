//! NumPy: `embeddings.npy`, [records, width] in the parts' number type, and `ids.txt`, one id per line.
//!
//! `numpy.load(path, mmap_mode="r")` maps it. The header is written here because it is one line whose
//! content is known before the first row; format: NEP 1, version 1.0.

use std::path::{Path, PathBuf};

use config::Float;

use super::ExportError;
use super::collection::{Collection, check_line_id};
use super::output::Output;

/// The data start at a multiple of this, so that a memory map of them is aligned.
const HEADER_ALIGNMENT: usize = 64;

/// Writes the export of pooled embeddings and returns its files.
pub(super) fn write(
    collection: &Collection,
    folder: &Path,
    force: bool,
) -> Result<Vec<PathBuf>, ExportError> {
    let schema = collection.schema();
    let mut embeddings = Output::create(folder, "embeddings.npy", force)?;
    let mut ids = Output::create(folder, "ids.txt", force)?;
    embeddings.push(&header(collection.rows(), schema.hidden, schema.float))?;
    collection.for_each(|row| {
        check_line_id(&row, ids.path())?;
        embeddings.push_floats(row.embedding, schema.float)?;
        ids.push(row.id.as_bytes())?;
        ids.push(b"\n")
    })?;
    Ok(vec![embeddings.commit()?, ids.commit()?])
}

/// Returns the bytes before the data: magic, version, length, and the dictionary padded to the alignment.
fn header(rows: u64, hidden: usize, float: Float) -> Vec<u8> {
    let descr = match float {
        Float::F32 => "<f4",
        Float::F16 => "<f2",
    };
    let mut dictionary =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({rows}, {hidden}), }}");
    let fixed = b"\x93NUMPY\x01\x00".len() + size_of::<u16>();
    let unpadded = fixed + dictionary.len() + 1;
    let padding = unpadded.next_multiple_of(HEADER_ALIGNMENT) - unpadded;
    dictionary.extend(std::iter::repeat_n(' ', padding));
    dictionary.push('\n');
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    // At most 118 bytes: two numbers of at most 20 digits in a fixed text.
    header.extend((dictionary.len() as u16).to_le_bytes());
    header.extend(dictionary.as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_what_numpy_writes() {
        // numpy.save of numpy.zeros((3, 320), "<f4"), NumPy 2.4.
        let mut expected = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        expected.extend(b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 320), }");
        expected.resize(127, b' ');
        expected.push(b'\n');
        assert_eq!(header(3, 320, Float::F32), expected);
    }

    #[test]
    fn data_are_aligned_whatever_the_shape() {
        for rows in [0, 9, 12_345_678_901, u64::MAX] {
            for hidden in [1, 320, usize::MAX] {
                assert_eq!(header(rows, hidden, Float::F16).len() % HEADER_ALIGNMENT, 0);
            }
        }
    }
}
