//! Every door takes its corpus and every former finding of the fuzzer: `tests/fuzz` says how they are found.

#![expect(clippy::unwrap_used, reason = "tests")]

#[expect(dead_code, reason = "only the fuzzer's crate writes seeds")]
#[expect(unreachable_pub, reason = "a crate of its own there")]
#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::path::{Path, PathBuf};

fn fuzz_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn replay(target: &str) {
    let (_, door) = fuzz::DOORS.into_iter().find(|(name, _)| *name == target).unwrap();
    let corpus = files(&fuzz_folder().join("corpus").join(target));
    assert!(!corpus.is_empty(), "no corpus for {target}");
    for file in corpus.iter().chain(&files(&fuzz_folder().join("regressions").join(target))) {
        let bytes = std::fs::read(file).unwrap();
        if std::panic::catch_unwind(|| door(&bytes)).is_err() {
            panic!("{} breaks a promise of `{target}`: the panic above says which", file.display());
        }
    }
}

#[test]
fn every_door_has_a_target() {
    let targets = files(&fuzz_folder().join("fuzz_targets"));
    let targets: Vec<_> = targets.iter().map(|file| file.file_stem().unwrap().to_str().unwrap()).collect();
    assert_eq!(targets, fuzz::DOORS.map(|(name, _)| name));
}

#[test]
fn checkpoint_takes_anything() {
    replay("checkpoint");
}

#[test]
fn fasta_takes_anything() {
    replay("fasta");
}

#[test]
fn frames_takes_anything() {
    replay("frames");
}

#[test]
fn job_takes_anything() {
    replay("job");
}

#[test]
fn manifest_takes_anything() {
    replay("manifest");
}

#[test]
fn part_takes_anything() {
    replay("part");
}

#[test]
fn safetensors_takes_anything() {
    replay("safetensors");
}
