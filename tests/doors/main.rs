//! Every door takes its corpus and every former finding of the fuzzer: `tests/fuzz` says how they are found.

#![expect(clippy::unwrap_used, reason = "tests")]

#[expect(unreachable_pub, reason = "the fuzzer's crate, where it is a library")]
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
    let mut sound = 0;
    for folder in ["corpus", "regressions"] {
        for file in files(&fuzz_folder().join(folder).join(target)) {
            let bytes = std::fs::read(&file).unwrap();
            match std::panic::catch_unwind(|| door(&bytes)) {
                Ok(taken) => sound += usize::from(taken),
                Err(_) => panic!("{} breaks a promise of `{target}`: see above", file.display()),
            }
        }
    }
    // Otherwise the corpus would test nothing behind the first check.
    assert!(sound > 0, "nothing in the corpus of {target} is sound");
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

/// Writes the seeds anew: `cargo test --test doors -- --ignored`. Then let the fuzzer choose (`cargo fuzz cmin`).
#[test]
#[ignore = "writes into the corpus"]
fn seeds_are_written() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let seeds = [
        ("checkpoint", fuzz::checkpoint::seeds()),
        ("fasta", fuzz::fasta::seeds(repository)),
        ("frames", fuzz::frames::seeds()),
        ("job", fuzz::job::seeds(repository)),
        ("manifest", fuzz::manifest::seeds()),
        ("part", fuzz::part::seeds()),
        ("safetensors", fuzz::safetensors::seeds()),
    ];
    for (target, seeds) in seeds {
        let folder = fuzz_folder().join("corpus").join(target);
        std::fs::create_dir_all(&folder).unwrap();
        for (number, seed) in seeds.into_iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number:02}")), seed).unwrap();
        }
    }
}
