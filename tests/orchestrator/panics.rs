//! A part of the orchestrator itself fails: the run ends resumable, with the reason, and never hangs.

use std::time::Duration;

use crate::job::JobFolder;
use crate::process::{run, wait_until_gone};
use crate::proteins::fasta;

fn job() -> JobFolder {
    JobFolder::new(fasta(81, 400, 20..200)).simulating("latency_us_per_batch=3000")
}

/// A panic at this point of the orchestrator ends the run with 75 and this reason; the next run finishes.
#[track_caller]
fn ends_resumable(point: &str, reason: &str) {
    let undisturbed = job().done_into("undisturbed");
    for number in [0, 3] {
        let job = job();
        let mut command = job.command_into("results");
        let mut process = crate::process::Running::start(
            command.env("VIRNUCPRO_FAULTS", format!("{point}:{number}=panic")),
        );
        let mut workers = Vec::new();
        while !process.has_ended() {
            workers = if workers.is_empty() { process.workers() } else { workers };
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        process.finish().expect(75).says([reason, "to go on: virnucpro-orch run job.toml"]);
        wait_until_gone(&workers);
        let manifest = crate::outcome::manifest(&job.at("results")).unwrap();
        assert_eq!(manifest["status"], "stopped", "{point}:{number}");
        job.run_into("results").expect(0);
        job.outcome("results").assert_same(&undisturbed, point);
    }
}

#[test]
fn a_packer_that_panics_ends_the_run_resumable() {
    ends_resumable("packer", "the packer failed");
}

#[test]
fn a_writer_that_panics_ends_the_run_resumable() {
    ends_resumable("writer", "the writer failed");
    ends_resumable("writer-thread", "writer thread panicked: fault on purpose");
    ends_resumable("encoder", "writer thread panicked: fault on purpose");
}

#[test]
fn a_writer_that_never_returns_is_left_behind() {
    let undisturbed = job().done_into("undisturbed");
    let job = job();
    let mut command = job.command_into("results");
    // Its thread stands still before the first commit, as in a file system that does not answer.
    let faults = "writer-thread:0=delay-600000;encoder:1=panic";
    let finished = run(command.env("VIRNUCPRO_FAULTS", faults)).expect(75);
    assert!(finished.elapsed < Duration::from_secs(120), "{:?}", finished.elapsed);
    finished.says(["the writer failed", "left behind"]);
    assert_eq!(crate::outcome::manifest(&job.at("results")).unwrap()["status"], "stopped");
    job.run_into("results").expect(0);
    job.outcome("results").assert_same(&undisturbed, "a writer that never returned");
}

#[test]
fn a_reader_that_panics_ends_the_run_resumable() {
    ends_resumable("reader", "the reader failed");
    ends_resumable("reader-thread", "reader thread panicked: fault on purpose");
}

#[test]
fn a_telemetry_that_panics_ends_the_run_resumable() {
    ends_resumable("telemetry", "the telemetry failed");
}

#[test]
fn a_supervisor_that_panics_ends_the_run_resumable() {
    ends_resumable("supervisor", "the supervisor failed");
}

#[test]
fn an_inference_actor_that_panics_costs_one_restart() {
    let job = job();
    let undisturbed = job.done_into("undisturbed");
    run(job.command_into("results").env("VIRNUCPRO_FAULTS", "inference:9=panic"))
        .expect(0)
        .says(["device failed, restarting", "fault on purpose at inference 9"]);
    let outcome = job.outcome("results");
    outcome.assert_same(&undisturbed, "inference");
    assert_eq!(outcome.restarts(), 1);
}

#[test]
fn a_monitor_that_panics_costs_nothing() {
    let job = job();
    let undisturbed = job.done_into("undisturbed");
    run(job.command_into("results").env("VIRNUCPRO_FAULTS", "monitor:1=panic"))
        .expect(0)
        .says(["monitor failed"]);
    let outcome = job.outcome("results");
    outcome.assert_same(&undisturbed, "monitor");
    assert_eq!(outcome.restarts(), 0);
}
