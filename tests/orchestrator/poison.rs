//! A sequence that no device can compute ends alone in `failed.tsv`; every other one is embedded.

use std::collections::BTreeMap;

use crate::job::JobFolder;
use crate::outcome::committed_files;
use crate::process::run;
use crate::proteins::{Random, fasta, residues};

/// Input ordinal of the poison sequence.
const POISON: usize = 77;
/// Records with the same residues, in the same segment.
const DUPLICATES: [usize; 2] = [90, 101];

/// 200 proteins; three of them are the same.
fn proteins() -> String {
    let mut random = Random::new(21);
    let poison = residues(&mut random, 80..120);
    let records = (0..200).map(|number| {
        let residues = residues(&mut random, 20..200);
        let is_poison = number == POISON || DUPLICATES.contains(&number);
        format!(">p{number}\n{}\n", if is_poison { &poison } else { &residues })
    });
    records.collect()
}

fn poisoned_by(kind: &str, devices: usize, reason: &str) {
    let clean = JobFolder::new(proteins()).done_into("results");
    let job = JobFolder::new(proteins())
        .set("devices.use", format!(r#"["sim:{devices}"]"#))
        .set("restart.hang_ms", 600)
        // A hang takes its time to be noticed: fewer tries, then.
        .set("restart.attempts_per_batch_max", if kind == "hang" { 2 } else { 3 })
        .simulating(&format!("fault={kind}@ordinal:{POISON}"));
    job.run_into("results").expect(3).says(["sequence quarantined", "3, listed in"]);
    let outcome = job.outcome("results");

    let failed = outcome.failed_records();
    let listed: Vec<(usize, &str)> = failed.iter().map(|line| (line[0].parse().unwrap(), line[1])).collect();
    assert_eq!(listed, [(77, "p77"), (90, "p90"), (101, "p101")], "{kind}: {failed:?}");
    for (line, number) in failed.iter().zip([77, 90, 101]) {
        let file = job.at("proteins.fasta").canonicalize().unwrap();
        assert_eq!(std::path::Path::new(line[2]).canonicalize().unwrap(), file);
        assert_eq!(line[3], (2 * number + 1).to_string(), "line of the header");
        assert_eq!(line[4], "compute");
        assert!(line[5].contains(reason), "{kind}: {}", line[5]);
    }
    let mut expected = clean.by_id();
    expected.retain(|id, _| !listed.iter().any(|(_, failed)| failed == id));
    assert_eq!(outcome.by_id().into_iter().collect::<BTreeMap<_, _>>(), expected, "{kind}");
    assert_eq!(outcome.run["totals"]["rows"], 197);
    assert_eq!(outcome.run["totals"]["failed"], 3);

    // Nothing to do, and still three records short of all.
    job.run_into("results").expect(3).says(["nothing to do"]);
}

#[test]
fn a_sequence_that_gives_nan_ends_alone_in_failed_tsv() {
    poisoned_by("nan", 2, "non-finite values");
}

#[test]
fn a_sequence_that_crashes_the_worker_ends_alone_in_failed_tsv() {
    poisoned_by("crash", 2, "SIGABRT");
}

#[test]
fn a_sequence_that_crashes_the_only_device_ends_alone_in_failed_tsv() {
    poisoned_by("crash", 1, "SIGABRT");
}

#[test]
fn a_sequence_that_panics_the_engine_ends_alone_in_failed_tsv() {
    poisoned_by("panic", 3, "the engine panicked");
}

#[test]
fn a_sequence_that_fails_or_is_too_large_ends_alone_in_failed_tsv() {
    poisoned_by("error", 2, "simulated failure");
    poisoned_by("oom", 2, "out of memory");
}

#[test]
fn a_sequence_that_hangs_the_device_ends_alone_in_failed_tsv() {
    poisoned_by("hang", 3, "no progress");
}

#[test]
fn several_poison_sequences_are_all_found() {
    let ordinals = [0, 1, 63, 64, 150, 199];
    let text = fasta(22, 200, 20..200);
    let clean = JobFolder::new(&text).done_into("results");
    let faults = ordinals.map(|ordinal| format!("fault=nan@ordinal:{ordinal}"));
    let job = JobFolder::new(&text).simulating(&format!("{};fault=crash@ordinal:30", faults.join(";")));
    job.run_into("results").expect(3);
    let outcome = job.outcome("results");
    let listed: Vec<&str> = outcome.failed_records().iter().map(|line| line[0]).collect();
    assert_eq!(listed, ["0", "1", "30", "63", "64", "150", "199"]);
    assert_eq!(outcome.rows().len(), 193);
    let expected = clean.by_id();
    assert!(outcome.by_id().iter().all(|(id, embedding)| &expected[id] == embedding));
}

#[test]
fn what_no_device_could_compute_is_tried_again_when_asked() {
    let undisturbed = JobFolder::new(proteins()).done_into("results");
    let job = JobFolder::new(proteins()).simulating(&format!("fault=nan@ordinal:{POISON}"));
    job.run_into("results").expect(3);
    let before = committed_files(&job.at("results"));
    let retry = |job: &JobFolder| run(job.command_into("results").arg("--retry-failed"));
    // Still poisoned: tried, and listed again.
    retry(&job).expect(3).says(["records that failed are tried again", "sequence quarantined"]);
    assert_eq!(job.outcome("results").failed_records().len(), 3);

    let job = job.simulating("");
    // Without the word, a finished result is left alone.
    job.run_into("results").expect(3).says(["nothing to do", "3 of its records failed", "--retry-failed"]);
    retry(&job).expect(0).says(["records that failed are tried again with their segment"]);
    // The path of the input is in no line: none is left.
    let healed = job.outcome("results");
    for key in ["segments", "totals", "status"] {
        assert_eq!(healed.run[key], undisturbed.run[key], "{key}");
    }
    assert_eq!((healed.parts, healed.failed), (undisturbed.parts, undisturbed.failed));
    // Only the segment that listed them was computed again.
    let mut after = committed_files(&job.at("results"));
    let mut before = before;
    let part = "embeddings/part-00001.parquet";
    assert!(before.remove(part) != after.remove(part));
    assert_eq!(after, before);
    retry(&job).expect(0).says(["nothing to do"]);
    run(job.command_into("results").args(["--retry-failed", "--fresh"]))
        .expect(2)
        .says(["cannot be used with"]);
}

#[test]
fn a_record_that_cannot_be_used_is_not_tried_again() {
    let job = JobFolder::new(">a\nMKV\n>b\nMK1\n>c\nWWW\n").set("input.on_bad_record", "skip");
    job.run_into("results").expect(3);
    run(job.command_into("results").arg("--retry-failed")).expect(3).says(["nothing to do"]);
}
