//! Exports read back by readers that are not ours: npyz, safetensors, rust-hdf5's reading half.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use actors::part::{PartRow, PartSchema, temporary_path, write_part};
use config::Float;
use half::f16;
use npyz::NpyFile;
use rust_hdf5::H5File;
use tempfile::TempDir;

use super::{ExportError, ExportFormat, ExportSummary, export};

const HIDDEN: usize = 6;
const IDS: [&str; 5] = ["sp|P1|A", "P2/1", "P2_1", "P3", "sp|P1|A"];
const INDEX: [u64; 5] = [0, 1, 4, 5, 9];

/// Parts of five records, three in the first part and two in the second, and a folder for exports.
struct Run {
    folder: TempDir,
    parts: Vec<PathBuf>,
    embeddings: Vec<Vec<f32>>,
}

impl Run {
    fn new(float: Float, per_residue: bool) -> Self {
        // Multiples of 1/64 are exact in f16, so that one expectation serves both number types.
        let embeddings = (0..5)
            .map(|record| {
                let vectors = if per_residue { [3, 1, 0, 2, 4][record] } else { 1 };
                (0..vectors * HIDDEN).map(|at| (at * 7 + record) as f32 / 64.0 - 1.0).collect()
            })
            .collect();
        Self::of(float, per_residue, embeddings)
    }

    fn of(float: Float, per_residue: bool, embeddings: Vec<Vec<f32>>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let schema = PartSchema { hidden: HIDDEN, float, per_residue };
        let parts = [0..3, 3..5].into_iter().enumerate().map(|(number, records)| {
            let path = folder.path().join(format!("part-{number:05}.parquet"));
            let rows = records.map(|at| PartRow {
                index: INDEX[at],
                id: IDS[at],
                length: 40 + at as u32,
                embedding: &embeddings[at],
            });
            write_part(&path, &schema, &metadata("6", number), rows).unwrap();
            path
        });
        Self { parts: parts.collect(), embeddings, folder }
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn export(&self, format: ExportFormat, force: bool) -> Result<ExportSummary, ExportError> {
        export(&self.parts, format, &self.out(), force, "esm2_tiny")
    }

    fn flat(&self) -> Vec<f32> {
        self.embeddings.concat()
    }
}

fn metadata(layer: &str, segment: usize) -> BTreeMap<String, String> {
    [("virnucpro.layer", layer.to_owned()), ("virnucpro.segment", segment.to_string())]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
}

/// Names in a folder, hidden ones included: no temporary file may stay.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn floats(bytes: &[u8], dtype: safetensors::Dtype) -> Vec<f32> {
    match dtype {
        safetensors::Dtype::F32 => {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        }
        safetensors::Dtype::F16 => {
            bytes.chunks_exact(2).map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn npy_holds_every_row_in_order() {
    for (float, descr) in [(Float::F32, "'<f4'"), (Float::F16, "'<f2'")] {
        let run = Run::new(float, false);
        let summary = run.export(ExportFormat::Npy, false).unwrap();
        assert_eq!(summary.records, 5);
        assert_eq!(summary.files, [run.out().join("embeddings.npy"), run.out().join("ids.txt")]);
        assert_eq!(names(&run.out()), ["embeddings.npy", "ids.txt"]);
        assert_eq!(fs::read_to_string(&summary.files[1]).unwrap(), IDS.join("\n") + "\n");

        let bytes = fs::read(&summary.files[0]).unwrap();
        let npy = NpyFile::new(&bytes[..]).unwrap();
        assert_eq!(npy.shape(), [5, HIDDEN as u64]);
        assert_eq!(npy.dtype().descr(), descr);
        let data = &bytes[bytes.len() - 5 * HIDDEN * if float == Float::F32 { 4 } else { 2 }..];
        let dtype = if float == Float::F32 { safetensors::Dtype::F32 } else { safetensors::Dtype::F16 };
        assert_eq!(floats(data, dtype), run.flat());
        if float == Float::F32 {
            assert_eq!(npy.into_vec::<f32>().unwrap(), run.flat());
        }
    }
}

#[test]
fn safetensors_holds_the_matrix_and_the_ordinals() {
    for float in [Float::F32, Float::F16] {
        let run = Run::new(float, false);
        let summary = run.export(ExportFormat::Safetensors, false).unwrap();
        let bytes = fs::read(&summary.files[0]).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let embeddings = tensors.tensor("embeddings").unwrap();
        assert_eq!(embeddings.shape(), [5, HIDDEN]);
        assert_eq!(floats(embeddings.data(), embeddings.dtype()), run.flat());
        let index = tensors.tensor("index").unwrap();
        assert_eq!(index.dtype(), safetensors::Dtype::U64);
        assert_eq!(index.data(), INDEX.map(u64::to_le_bytes).concat());
        assert_eq!(fs::read_to_string(&summary.files[1]).unwrap(), IDS.join("\n") + "\n");
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let pairs = header.metadata().as_ref().unwrap();
        assert_eq!(pairs["model_name"], "esm2_tiny");
        assert_eq!(pairs["virnucpro.layer"], "6");
    }
}

#[test]
fn safetensors_holds_one_tensor_per_record_of_residues() {
    for float in [Float::F32, Float::F16] {
        let run = Run::new(float, true);
        let summary = run.export(ExportFormat::Safetensors, false).unwrap();
        let bytes = fs::read(&summary.files[0]).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.len(), 6);
        for (index, expected) in INDEX.iter().zip(&run.embeddings) {
            let tensor = tensors.tensor(&index.to_string()).unwrap();
            assert_eq!(tensor.shape(), [expected.len() / HIDDEN, HIDDEN]);
            assert_eq!(&floats(tensor.data(), tensor.dtype()), expected);
        }
        assert_eq!(tensors.tensor("index").unwrap().data(), INDEX.map(u64::to_le_bytes).concat());
    }
}

#[test]
fn hdf5_holds_one_float16_dataset_per_protein() {
    for per_residue in [false, true] {
        let run = Run::new(Float::F32, per_residue);
        let summary = run.export(ExportFormat::Hdf5, false).unwrap();
        assert_eq!(names(&run.out()), ["embeddings.h5"]);
        assert_eq!(
            summary.notes,
            ["2 datasets were renamed because their name was taken, the first `P2_1` to `P2_1__2`: \
              the attribute original_id keeps the id"]
        );
        let file = H5File::open(&summary.files[0]).unwrap();
        assert_eq!(file.attr_string("model_name").unwrap(), "esm2_tiny");
        assert_eq!(file.dataset_names().len(), 5);
        let given = ["sp|P1|A", "P2_1", "P2_1__2", "P3", "sp|P1|A__2"];
        for ((name, id), expected) in given.iter().zip(IDS).zip(&run.embeddings) {
            let dataset = file.dataset(name).unwrap();
            assert_eq!(dataset.attr("original_id").unwrap().read_string().unwrap(), id);
            assert_eq!(dataset.datatype().unwrap(), rust_hdf5::DatatypeMessage::f16_type());
            let shape = if per_residue { vec![expected.len() / HIDDEN, HIDDEN] } else { vec![HIDDEN] };
            assert_eq!(dataset.shape(), shape);
            assert_eq!(&dataset.read_numeric_as::<f32>().unwrap(), expected, "{name}");
        }
    }
}

#[test]
fn hdf5_names_the_value_that_float16_cannot_hold() {
    let mut embeddings = Run::new(Float::F32, false).embeddings;
    embeddings[3][2] = -1e6;
    let run = Run::of(Float::F32, false, embeddings);
    let error = run.export(ExportFormat::Hdf5, false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "value -1000000 of `P3` (record 5) overflows float16: export npy or safetensors"
    );
    assert_eq!(names(&run.out()), [""; 0]);
}

#[test]
fn tsv_reads_back_to_the_same_numbers() {
    let mut embeddings = Run::new(Float::F32, false).embeddings;
    embeddings[1] = vec![1e-9, -0.1, f32::MAX, f32::MIN_POSITIVE, 16_777_216.0, 1.0 / 3.0];
    let run = Run::of(Float::F32, false, embeddings);
    let summary = run.export(ExportFormat::Tsv, false).unwrap();
    let text = fs::read_to_string(&summary.files[0]).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("id\tindex\tlength\te0\te1\te2\te3\te4\te5"));
    for (at, line) in lines.enumerate() {
        let fields: Vec<&str> = line.split('\t').collect();
        assert_eq!(fields[..3], [IDS[at], &INDEX[at].to_string(), &(40 + at).to_string()]);
        let values: Vec<f32> = fields[3..].iter().map(|field| field.parse().unwrap()).collect();
        assert_eq!(values, run.embeddings[at]);
    }
    assert!(text.contains("\t1e-9\t-0.1\t"), "{text}");
    assert_eq!(text.lines().count(), 6);
}

#[test]
fn formats_of_one_vector_per_record_refuse_residues() {
    let run = Run::new(Float::F32, true);
    for format in [ExportFormat::Npy, ExportFormat::Tsv] {
        let error = run.export(format, false).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "{} holds one vector per record, these parts one per residue: export safetensors or hdf5",
                format.name()
            )
        );
        assert!(!run.out().exists());
    }
}

#[test]
fn an_existing_file_is_kept_unless_forced() {
    let run = Run::new(Float::F32, false);
    for (format, file) in [
        (ExportFormat::Npy, "embeddings.npy"),
        (ExportFormat::Npy, "ids.txt"),
        (ExportFormat::Safetensors, "embeddings.safetensors"),
        (ExportFormat::Hdf5, "embeddings.h5"),
        (ExportFormat::Tsv, "embeddings.tsv"),
    ] {
        fs::create_dir_all(run.out()).unwrap();
        let path = run.out().join(file);
        fs::write(&path, "mine").unwrap();
        let error = run.export(format, false).unwrap_err();
        assert_eq!(error.to_string(), format!("`{}` exists: pass --force to replace it", path.display()));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        assert_eq!(names(&run.out()), [file]);
        run.export(format, true).unwrap();
        assert_ne!(fs::read(&path).unwrap(), b"mine");
        fs::remove_dir_all(run.out()).unwrap();
    }
}

#[test]
fn the_same_parts_give_the_same_bytes() {
    let run = Run::new(Float::F16, false);
    for format in [ExportFormat::Npy, ExportFormat::Safetensors, ExportFormat::Hdf5, ExportFormat::Tsv] {
        let first = run.export(format, true).unwrap();
        let bytes: Vec<_> = first.files.iter().map(|path| fs::read(path).unwrap()).collect();
        fs::write(temporary_path(&first.files[0]), "what a killed export left, longer than the new one")
            .unwrap();
        let second = run.export(format, true).unwrap();
        let again: Vec<_> = second.files.iter().map(|path| fs::read(path).unwrap()).collect();
        assert!(bytes == again, "{format:?}");
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let run = Run::new(Float::F32, false);
    let none = export(&[], ExportFormat::Npy, &run.out(), false, "m").unwrap_err();
    assert!(matches!(none, ExportError::NoParts));

    let twice = [run.parts[0].clone(), run.parts[0].clone()];
    let error = export(&twice, ExportFormat::Npy, &run.out(), false, "m").unwrap_err();
    assert!(matches!(error, ExportError::OutOfOrder { index: 0, previous: 4, .. }), "{error}");
    assert_eq!(names(&run.out()), [""; 0]);

    let other = Run::new(Float::F16, false);
    let mixed = [run.parts[0].clone(), other.parts[1].clone()];
    let error = export(&mixed, ExportFormat::Npy, &run.out(), false, "m").unwrap_err();
    assert!(error.to_string().contains("has number type f16"), "{error}");

    let schema = PartSchema { hidden: HIDDEN, float: Float::F32, per_residue: false };
    write_part(&other.parts[1], &schema, &metadata("5", 1), []).unwrap();
    let error = export(&mixed, ExportFormat::Npy, &run.out(), false, "m").unwrap_err();
    assert!(error.to_string().contains("has virnucpro.layer 5"), "{error}");
}

#[test]
fn a_damaged_part_leaves_no_export() {
    let run = Run::new(Float::F32, false);
    let whole = fs::read(&run.parts[1]).unwrap();
    fs::write(&run.parts[1], &whole[..whole.len() / 2]).unwrap();
    for format in [ExportFormat::Npy, ExportFormat::Safetensors, ExportFormat::Hdf5, ExportFormat::Tsv] {
        let error = run.export(format, false).unwrap_err();
        assert!(error.to_string().contains("part-00001.parquet` is damaged"), "{error}");
    }
    assert!(!run.out().exists());
}

#[test]
fn an_id_that_breaks_a_line_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let part = folder.path().join("part-00000.parquet");
    let schema = PartSchema { hidden: 1, float: Float::F32, per_residue: false };
    let row = PartRow { index: 7, id: "a\nb", length: 1, embedding: &[0.5] };
    write_part(&part, &schema, &BTreeMap::new(), [row]).unwrap();
    for format in [ExportFormat::Npy, ExportFormat::Safetensors, ExportFormat::Tsv] {
        let error = export(std::slice::from_ref(&part), format, folder.path(), false, "m").unwrap_err();
        assert!(error.to_string().starts_with("id `a\\nb` of record 7 does not fit"), "{error}");
        assert_eq!(names(folder.path()), ["part-00000.parquet"]);
    }
}

#[test]
fn a_run_without_records_exports_as_empty() {
    let folder = tempfile::tempdir().unwrap();
    let part = folder.path().join("part-00000.parquet");
    let out = folder.path().join("out");
    for per_residue in [false, true] {
        let schema = PartSchema { hidden: HIDDEN, float: Float::F32, per_residue };
        write_part(&part, &schema, &BTreeMap::new(), []).unwrap();
        let parts = std::slice::from_ref(&part);
        for format in [ExportFormat::Safetensors, ExportFormat::Hdf5] {
            assert_eq!(export(parts, format, &out, true, "m").unwrap().records, 0);
        }
        let bytes = fs::read(out.join("embeddings.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.tensor("index").unwrap().shape(), [0]);
    }
}
