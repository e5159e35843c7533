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
fn commits_takes_anything() {
    replay("commits");
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

/// Replaces the only occurrence of `from`.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut places = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(from));
    let at = places.next().unwrap();
    assert!(places.next().is_none(), "{from:?} is there twice");
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

#[test]
fn checkpoints_that_ask_for_too_much_are_refused() {
    let sound = fuzz::checkpoint::pickle(true);
    assert_eq!(fuzz::checkpoint::error_of(&sound), None);
    let layer = |number: &str| replaced(&sound, &name_in_layer("0"), &name_in_layer(number));
    let cases = [
        // Embeddings of [20000, 20000] that repeat one stored number: 1.6 GB out of nothing.
        (
            replaced(&sound, b"(K\x21K\x04t(K\x04K\x01t", b"(M\x20\x4eM\x20\x4et(K\0K\0t"),
            "takes 1600000000 bytes",
        ),
        (layer("1000"), "beyond 1000"),
        (layer(&u64::MAX.to_string()), "beyond 1000"),
        (
            [b"\x80\x02".as_slice(), &b"N0".repeat(1 << 19), b"}."].concat(),
            "1048580 bytes, more than 1048576",
        ),
    ];
    for (pickle, expected) in cases {
        let error = fuzz::checkpoint::error_of(&pickle).unwrap();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

/// The name of a bias of layer `number` as a pickle has it.
fn name_in_layer(number: &str) -> Vec<u8> {
    let name = format!("encoder.sentence_encoder.layers.{number}.fc1.bias");
    [&b"X"[..], &(name.len() as u32).to_le_bytes(), name.as_bytes()].concat()
}

/// Writes the seeds anew: `cargo test --test doors -- --ignored`. Then let the fuzzer choose (`cargo fuzz cmin`).
#[test]
#[ignore = "writes into the corpus"]
fn seeds_are_written() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let seeds = [
        ("checkpoint", fuzz::checkpoint::seeds()),
        ("commits", fuzz::commits::seeds()),
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
