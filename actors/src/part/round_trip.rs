//! What the writer wrote, the reader reads; what was damaged since is refused, never read as good.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use config::Float;
use half::f16;
use proptest::prelude::*;

use super::{PartError, PartReader, PartRow, PartSchema, read_footer, write_part};

/// One record of its own.
#[derive(Clone, Debug, PartialEq)]
struct Record {
    index: u64,
    id: String,
    length: u32,
    embedding: Vec<f32>,
}

impl Record {
    fn row(&self) -> PartRow<'_> {
        PartRow { index: self.index, id: &self.id, length: self.length, embedding: &self.embedding }
    }
}

fn read(path: &Path) -> Result<Vec<Record>, PartError> {
    let mut reader = PartReader::open(path)?;
    let mut records = Vec::new();
    while let Some(row) = reader.next_row()? {
        let PartRow { index, id, length, embedding } = row;
        records.push(Record { index, id: id.to_owned(), length, embedding: embedding.to_vec() });
    }
    Ok(records)
}

/// Compares bit by bit, so that NaN equals itself and 0 does not equal -0.
fn same(a: &[Record], b: &[Record]) -> bool {
    let bits = |record: &Record| record.embedding.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|(a, b)| (a.index, &a.id, a.length, bits(a)) == (b.index, &b.id, b.length, bits(b)))
}

fn write(path: &Path, schema: &PartSchema, records: &[Record]) {
    let metadata = BTreeMap::from([
        ("virnucpro.layer".to_owned(), "6".to_owned()),
        ("virnucpro.pooling".to_owned(), "mean".to_owned()),
    ]);
    let summary = write_part(path, schema, &metadata, records.iter().map(Record::row)).unwrap();
    assert_eq!(summary.rows, records.len() as u64);
    let footer = read_footer(path).unwrap();
    assert_eq!(footer.rows, records.len() as u64);
    assert_eq!(footer.schema, *schema);
    assert_eq!(footer.metadata, metadata);
}

/// Any part of few records: any number type, pooled or not, any bits that its number type can hold.
fn any_part() -> impl Strategy<Value = (PartSchema, Vec<Record>)> {
    let schema = (1usize..9, any::<bool>(), any::<bool>()).prop_map(|(hidden, half, per_residue)| {
        PartSchema { hidden, float: if half { Float::F16 } else { Float::F32 }, per_residue }
    });
    schema.prop_flat_map(|schema| {
        let value = any::<u32>().prop_map(move |bits| match schema.float {
            Float::F32 => f32::from_bits(bits),
            // A signalling NaN turns quiet in a conversion; every other f16 stays itself.
            Float::F16 => match f16::from_bits(bits as u16) {
                stored if stored.is_nan() => f32::NAN,
                stored => stored.to_f32(),
            },
        });
        let vectors = if schema.per_residue { 0..6usize } else { 1..2 };
        let embedding =
            vectors.prop_flat_map(move |n| prop::collection::vec(value.clone(), n * schema.hidden));
        let record = (1u64..1 << 40, "\\PC{0,12}", any::<u32>(), embedding);
        prop::collection::vec(record, 0..40).prop_map(move |records| {
            let mut index = 0;
            let records = records
                .into_iter()
                .map(|(step, id, length, embedding)| {
                    index += step;
                    Record { index, id, length, embedding }
                })
                .collect();
            (schema, records)
        })
    })
}

proptest! {
    #[test]
    fn every_row_reads_back_as_written((schema, records) in any_part()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part-00000.parquet");
        write(&path, &schema, &records);
        let found = read(&path).unwrap();
        prop_assert!(same(&found, &records), "{found:?}\n{records:?}");
    }
}

#[test]
fn f16_rounds_to_nearest_ties_to_even() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part-00000.parquet");
    let schema = PartSchema { hidden: 6, float: Float::F16, per_residue: false };
    // Between 2048 and 4096 the step of f16 is 2: odd integers are ties.
    let embedding = vec![2049.0, 2051.0, -2049.0, 2049.1, 65_519.0, 1e-9];
    write(&path, &schema, &[Record { index: 0, id: "P1".to_owned(), length: 3, embedding }]);
    assert_eq!(read(&path).unwrap()[0].embedding, [2048.0, 2052.0, -2048.0, 2050.0, 65_504.0, 0.0]);
}

/// A part of several row groups and many decoded batches.
fn large_part(path: &Path, per_residue: bool) -> Vec<Record> {
    let schema = PartSchema { hidden: 24, float: Float::F32, per_residue };
    let count = if per_residue { 2_000 } else { 10_000 };
    let records: Vec<Record> = (0..count)
        .map(|n: u64| {
            let vectors = if per_residue { n as usize % 97 } else { 1 };
            let embedding = (0..vectors * 24).map(|at| (at as f32 + n as f32 * 0.1).cos()).collect();
            Record { index: 3 * n, id: format!("sp|P{n:05}|X"), length: vectors as u32, embedding }
        })
        .collect();
    write(path, &schema, &records);
    records
}

#[test]
fn rows_survive_the_borders_of_groups_and_batches() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("part-00000.parquet");
    for per_residue in [false, true] {
        let records = large_part(&path, per_residue);
        assert!(same(&read(&path).unwrap(), &records), "per residue: {per_residue}");
    }
}

fn small_part(folder: &Path, per_residue: bool) -> (PathBuf, Vec<Record>) {
    let path = folder.join("part-00000.parquet");
    let schema = PartSchema { hidden: 8, float: Float::F32, per_residue };
    let records: Vec<Record> = (0..12)
        .map(|n: u64| {
            let vectors = if per_residue { 1 + n as usize % 3 } else { 1 };
            let embedding = (0..vectors * 8).map(|at| (at as f32 * 1.7 + n as f32).sin()).collect();
            Record { index: n, id: format!("P{n}"), length: 5, embedding }
        })
        .collect();
    write(&path, &schema, &records);
    (path, records)
}

#[test]
fn a_part_cut_short_anywhere_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = small_part(folder.path(), false);
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let error = read(&path).unwrap_err();
        assert!(matches!(error, PartError::Damaged { .. }), "{length}: {error:?}");
        assert!(error.to_string().contains("part-00000.parquet"), "{length}: {error}");
        assert!(read_footer(&path).is_err(), "{length}");
    }
}

#[test]
fn a_flipped_bit_never_panics_and_never_changes_the_checksum_unseen() {
    let folder = tempfile::tempdir().unwrap();
    for per_residue in [false, true] {
        let (path, records) = small_part(folder.path(), per_residue);
        let whole = fs::read(&path).unwrap();
        let sound = super::checksum(&path).unwrap();
        let mut refused = 0;
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&path, &damaged).unwrap();
            assert_ne!(super::checksum(&path).unwrap(), sound, "byte {at}");
            match read(&path) {
                Ok(found) if same(&found, &records) => {}
                // Floats carry no check of their own: this is what the checksum is for.
                Ok(_) => {}
                Err(error) => {
                    assert!(error.to_string().contains("part-00000.parquet"), "{at}: {error}");
                    refused += 1;
                }
            }
        }
        // Far more than the footer's magic and lengths must be noticed.
        assert!(refused > whole.len() / 4, "only {refused} of {} flips were noticed", whole.len());
    }
}

#[test]
fn other_files_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("proteins.fasta");
    assert!(matches!(read_footer(&path).unwrap_err(), PartError::Read { .. }));
    fs::write(&path, ">P1\nMKV\n").unwrap();
    let error = read_footer(&path).unwrap_err();
    assert!(error.to_string().contains("proteins.fasta` is damaged"), "{error}");
    assert!(PartReader::open(folder.path()).is_err());
}
