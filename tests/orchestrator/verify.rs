//! `verify`: 0 when the result is whole, 4 when it is not, and what is wrong with it.

use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::job::JobFolder;
use crate::outcome::segments_committed;
use crate::process::{Finished, PROGRAM, Running, program, run, without_settings};
use crate::proteins::fasta;

fn verify(job: &JobFolder) -> Finished {
    run(program(["verify", "results"]).current_dir(job.path()))
}

#[track_caller]
fn incomplete(job: &JobFolder, problem: &str) {
    let finished = verify(job).expect(4);
    assert!(finished.stdout.contains(problem), "{problem:?} is not in:\n{}", finished.stdout);
    assert!(finished.stdout.contains("incomplete: "), "{}", finished.stdout);
}

fn job() -> JobFolder {
    JobFolder::new(fasta(71, 200, 20..100))
}

#[test]
fn a_whole_result_is_complete() {
    let job = job();
    job.done_into("results");
    let finished = verify(&job).expect(0);
    assert_eq!(finished.stdout, "complete: 200 records, 200 embeddings, 0 failed, 4 parts\n");
    assert_eq!(finished.stderr, "");

    let job = job.simulating("fault=nan@ordinal:150");
    run(job.command_into("results").arg("--fresh")).expect(3);
    let finished = verify(&job).expect(0);
    assert_eq!(finished.stdout, "complete: 200 records, 199 embeddings, 1 failed, 4 parts\n");
}

#[test]
fn a_missing_part_is_told_and_run_mends_it() {
    let job = job();
    let whole = job.done_into("results");
    fs::remove_file(job.at("results/embeddings/part-00001.parquet")).unwrap();
    incomplete(&job, "part-00001.parquet");
    incomplete(&job, "incomplete: 200 records, 136 embeddings, 0 failed, 3 parts");
    job.run_into("results").expect(0);
    verify(&job).expect(0);
    job.outcome("results").assert_same(&whole, "mended");
}

#[test]
fn a_flipped_bit_anywhere_is_told() {
    let job = job();
    let whole = job.done_into("results");
    let path = job.at("results/embeddings/part-00003.parquet");
    let bytes = &whole.parts["part-00003.parquet"];
    for position in [0, 5, bytes.len() / 3, bytes.len() / 2, bytes.len() - 9, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[position] ^= 1;
        fs::write(&path, damaged).unwrap();
        incomplete(&job, "part-00003.parquet");
    }
    fs::write(&path, bytes).unwrap();
    verify(&job).expect(0);
}

#[test]
fn a_foreign_part_is_told() {
    let job = job();
    job.done_into("results");
    fs::copy(
        job.at("results/embeddings/part-00000.parquet"),
        job.at("results/embeddings/part-00009.parquet"),
    )
    .unwrap();
    incomplete(&job, "`embeddings/part-00009.parquet` is not part of this result");
    verify(&job).says(["hint: the `run` command"]);
    job.run_into("results").expect(0).says(["nothing to do"]);
    verify(&job).expect(0);
}

#[test]
fn a_file_that_is_no_part_is_warned_of_and_kept() {
    let job = job();
    job.done_into("results");
    let foreign = job.at("results/embeddings/foo.parquet");
    fs::copy(job.at("results/embeddings/part-00000.parquet"), &foreign).unwrap();
    fs::write(job.at("results/embeddings/_metadata"), "").unwrap();
    let warning = "WARN not of this result, but read by who takes its folder as one table";
    for again in [false, true] {
        if again {
            fs::remove_file(job.at("results/embeddings/part-00001.parquet")).unwrap();
        }
        let finished = job.run_into("results").expect(0).says([warning, "embeddings/foo.parquet"]);
        assert_eq!(finished.stderr.matches(warning).count(), 1, "{}", finished.stderr);
        assert!(foreign.exists());
    }
    incomplete(&job, "`embeddings/foo.parquet` is not part of this result");
    let told = verify(&job)
        .says(["hint: `run` leaves alone what it did not write: move `results/embeddings/foo.parquet` away"]);
    assert!(!told.stderr.contains("computes what is missing"), "{}", told.stderr);
    fs::remove_file(foreign).unwrap();
    verify(&job).expect(0);
}

#[test]
fn a_table_that_was_there_before_is_refused_at_the_start() {
    let job = job();
    let foreign = job.write("results/embeddings/mine.parquet", "x");
    for fresh in [false, true] {
        let mut command = job.command_into("results");
        if fresh {
            command.arg("--fresh");
        }
        let refused = run(&mut command).expect(2);
        refused.says(["embeddings/mine.parquet` exists and is not of an earlier run", "or move it away"]);
    }
    assert_eq!(fs::read_dir(job.at("results")).unwrap().count(), 1, "nothing is made");
    fs::remove_file(foreign).unwrap();
    job.run_into("results").expect(0);
    verify(&job).expect(0);
}

#[test]
fn parts_changed_for_one_another_are_told() {
    let job = job();
    let whole = job.done_into("results");
    for (name, content) in
        [("part-00000.parquet", "part-00001.parquet"), ("part-00001.parquet", "part-00000.parquet")]
    {
        fs::write(job.at("results/embeddings").join(name), &whole.parts[content]).unwrap();
    }
    incomplete(&job, "part-00000.parquet");
}

#[test]
fn lists_of_failed_records_are_checked() {
    let job = job().simulating("fault=nan@ordinal:150");
    job.run_into("results").expect(3);
    let failed = job.at("results/failed.tsv");
    let text = fs::read_to_string(&failed).unwrap();
    fs::write(&failed, text.lines().next().unwrap()).unwrap();
    incomplete(&job, "failed.tsv` lists 0 records, expected 1");
    for (from, to) in [("150\t", "151\t"), ("\tcompute\t", "\tinput\t"), ("non-finite", "finite")] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text);
        fs::write(&failed, changed).unwrap();
        incomplete(&job, "failed.tsv`: line 2 is not that of its segment's list");
    }
    job.run_into("results").expect(3).says(["nothing to do"]);
    assert_eq!(fs::read_to_string(&failed).unwrap(), text, "the same command mends it");
    verify(&job).expect(0);
    fs::remove_file(job.at("results/.state/failed-00002.tsv")).unwrap();
    incomplete(&job, "failed records of its segment: it is gone");
}

#[test]
fn an_unfinished_result_is_incomplete() {
    let job = job().set("restart.restarts_per_device_max", 0).simulating("fault=exit@batch:6");
    job.run_into("results").expect(75);
    incomplete(&job, "the run is not done, its status is stopped: all devices were lost");
}

#[test]
fn a_job_that_runs_is_told_as_that_and_not_verified_or_exported() {
    let commands: [&[&str]; 2] = [&["verify", "results"], &["export", "results", "--to", "npy"]];
    let job = job().simulating("latency_us_per_batch=30000");
    let ask = |command: &[&str]| run(program(command).current_dir(job.path()));
    let results = job.at("results");
    // Before there is a run.json.
    let mut command = job.command_into("results");
    let mut preparing = Running::start_stdin_open(command.args(["--set", "input.fasta=-"]));
    preparing.wait_until("the lock", |_| {
        !fs::read_to_string(results.join(".state/lock")).unwrap_or_default().is_empty()
    });
    let process = format!("process {} on host `", preparing.id());
    for command in commands {
        ask(command).expect(2).says(["is being prepared", &process, "hint: wait for its end"]);
    }
    preparing.kill();
    for command in commands {
        let told = ask(command).expect(2).says(["holds no result yet", "the `run` command of its job"]);
        assert!(!told.stderr.contains("process"), "{}", told.stderr);
    }

    let mut running = job.start_into("results");
    running.wait_until("a segment is committed", |_| segments_committed(&results) > 0);
    let process = format!("process {} on host `", running.id());
    for command in commands {
        ask(command).expect(4).says(["is being computed", &process, "hint: wait for its end"]);
    }
    running.kill();
    incomplete(&job, "the run is not done, its status is running");
    // On another machine, and by its signs of life.
    let owner = json!({
        "host": "node17", "boot_id": "0f0f0f0f-0000-4000-8000-000000000000", "pid_namespace": "pid:[4026531836]",
        "pid": 4711, "start_ticks": 1234, "started_unix_s": 951_868_800, "version": "0.1.0", "locked": true,
    });
    let lock = results.join(".state/lock");
    fs::write(&lock, owner.to_string()).unwrap();
    for command in commands {
        ask(command).expect(4).says(["is being computed", "process 4711 on host `node17`"]);
    }
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    fs::File::options().write(true).open(&lock).unwrap().set_modified(long_ago).unwrap();
    incomplete(&job, "the run is not done, its status is running");
    job.run_into("results").expect(0);
    verify(&job).expect(0);
}

#[test]
fn another_folder_is_no_result() {
    let job = job();
    fs::create_dir(job.at("results")).unwrap();
    verify(&job).expect(2).says(["is not a result folder: it has no run.json", "hint: "]);
}

#[test]
fn a_long_list_of_failed_records_is_not_held_in_memory() {
    let bad = (0..4000).map(|number| format!(">bad{number}{}\nMKV1\n", "x".repeat(4000)));
    let job = JobFolder::new(bad.collect::<String>())
        .set("input.on_bad_record", "skip")
        .set("output.segment_sequences", 250);
    job.run_into("results").expect(3);
    assert!(fs::metadata(job.at("results/failed.tsv")).unwrap().len() > 16_000_000);
    let mut command = Command::new("sh");
    // Data, in KiB.
    command.args(["-c", "ulimit -d 12288 && exec \"$0\" \"$@\"", PROGRAM, "verify"]);
    without_settings(command.arg(job.at("results")));
    run(&mut command).expect(0);
}
