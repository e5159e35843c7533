//! HDF5 as UniProt, ProtTrans and bio_embeddings offer it: `embeddings.h5` with one float16 dataset per
//! protein at the root, [width], or [residues, width] per residue.
//!
//! A dataset is named by its id with `/` replaced by `_`, because `/` separates groups; the attribute
//! `original_id` keeps the id. A name that is taken gets `__2`, `__3`, … and is mentioned: nothing is
//! lost and nothing overwritten. The root attribute `model_name` names the model.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use half::f16;
use half::slice::HalfFloatSliceExt;
use rust_hdf5::types::VarLenUnicode;
use rust_hdf5::{DatatypeMessage, H5File, Hdf5Error};

use super::ExportError;
use super::collection::Collection;
use super::output::Output;

/// Above this many datasets the encoder's time and memory, which holds an entry for each until the end,
/// outgrow those of the other formats: 100,000 of width 1,280 took 48 s and 295 MB on a busy machine of
/// two cores, where npy took 6 s and 41 MB; four times the datasets took six times as long.
const DATASETS_COMFORTABLE: u64 = 100_000;

/// Writes the export and returns its file and what to say about it.
pub(super) fn write(
    collection: &Collection,
    folder: &Path,
    force: bool,
    model_name: &str,
) -> Result<(Vec<PathBuf>, Vec<String>), ExportError> {
    let schema = collection.schema();
    let output = Output::create(folder, "embeddings.h5", force)?;
    let failed = |source: Hdf5Error| ExportError::Hdf5 { path: output.path().to_owned(), source };
    // The name is ours alone until it is renamed, and network file systems often cannot lock.
    let file = H5File::options().no_locking().create(output.temporary_path()).map_err(failed)?;
    file.set_attr_string("model_name", model_name).map_err(failed)?;

    let mut names = Names::default();
    let mut halves = Vec::new();
    let mut bytes = Vec::new();
    collection.for_each(|row| {
        halves.resize(row.embedding.len(), f16::ZERO);
        halves.convert_from_f32_slice(row.embedding);
        let overflow =
            halves.iter().zip(row.embedding).find(|(to, from)| to.is_infinite() && from.is_finite());
        if let Some((_, value)) = overflow {
            return Err(ExportError::Overflow { value: *value, id: row.id.to_owned(), index: row.index });
        }
        bytes.clear();
        bytes.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
        let shape = if schema.per_residue {
            vec![row.embedding.len() / schema.hidden, schema.hidden]
        } else {
            vec![schema.hidden]
        };
        let dataset = file
            .new_dataset::<u16>()
            .datatype(DatatypeMessage::f16_type())
            .shape(shape)
            .create(&names.take(row.id))
            .map_err(failed)?;
        // An empty dataset, [0, width], has no room allocated to write into.
        if !bytes.is_empty() {
            dataset.write_raw_bytes(&bytes).map_err(failed)?;
        }
        let attribute =
            dataset.new_attr::<VarLenUnicode>().shape(()).create("original_id").map_err(failed)?;
        attribute.write_string(row.id).map_err(failed)
    })?;
    file.close_no_sync().map_err(failed)?;

    let mut notes = Vec::new();
    if let Some((id, name)) = &names.first_renamed {
        let count = names.renamed;
        notes.push(format!(
            "{count} datasets were renamed because their name was taken, the first `{}` to `{}`: \
             the attribute original_id keeps the id",
            actors::shown(id),
            actors::shown(name)
        ));
    }
    if collection.rows() > DATASETS_COMFORTABLE {
        notes.push(format!(
            "{} datasets in one HDF5 file are slow to write and to open: npy or safetensors suit so many \
             better",
            collection.rows()
        ));
    }
    Ok((vec![output.commit()?], notes))
}

/// Names given to datasets so far.
#[derive(Default)]
struct Names {
    /// Each name, with the number to try first when it is asked for again.
    taken: HashMap<String, u64>,
    /// Names given a number because they were taken.
    renamed: u64,
    /// Id and name of the first of them.
    first_renamed: Option<(String, String)>,
}

impl Names {
    /// Returns a name of its own for `id`.
    fn take(&mut self, id: &str) -> String {
        let plain = match id {
            // HDF5 reads a lone dot as the group itself, and no name at all is no name.
            "" | "." => "_".to_owned(),
            id => id.replace('/', "_"),
        };
        let Some(first) = self.taken.get(&plain) else {
            self.taken.insert(plain.clone(), 2);
            return plain;
        };
        let mut number = *first;
        let mut name = format!("{plain}__{number}");
        while self.taken.contains_key(&name) {
            number += 1;
            name = format!("{plain}__{number}");
        }
        self.taken.insert(plain, number + 1);
        self.taken.insert(name.clone(), 2);
        self.renamed += 1;
        self.first_renamed.get_or_insert_with(|| (id.to_owned(), name.clone()));
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_deterministic() {
        let mut names = Names::default();
        let ids = ["P1", "a/b", "a_b", "P1", "P1__2", "P1", "", ".", ".."];
        let given: Vec<String> = ids.iter().map(|id| names.take(id)).collect();
        assert_eq!(given, ["P1", "a_b", "a_b__2", "P1__2", "P1__2__2", "P1__3", "_", "___2", ".."]);
        assert_eq!(names.renamed, 5);
        assert_eq!(names.first_renamed, Some(("a_b".to_owned(), "a_b__2".to_owned())));
    }
}
