//! What a running job tells of itself, and the orders that a person gives it: through the socket, as any viewer.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::job::JobFolder;
use crate::process::{Finished, Running, program, run};
use crate::proteins::fasta;

/// About four seconds of work on two devices.
fn job() -> JobFolder {
    JobFolder::new(fasta(101, 1000, 20..200)).simulating("latency_us_per_batch=70000")
}

fn command(name: &str, results: &Path, more: &[&str]) -> Finished {
    run(program([name]).arg(results).args(more))
}

/// The job's snapshot of this moment, or the last one.
fn snapshot(results: &Path) -> Value {
    let finished = command("status", results, &["--json"]).expect(0);
    let mut status: Value = serde_json::from_str(&finished.stdout).unwrap();
    status["snapshot"].take()
}

fn device<'a>(snapshot: &'a Value, name: &str) -> &'a Value {
    snapshot["devices"].as_array().unwrap().iter().find(|device| device["name"] == name).unwrap()
}

/// Looks at snapshots until one is as wanted.
#[track_caller]
fn wait_for(running: &mut Running, results: &Path, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    running.wait_until(what, |_| {
        std::thread::sleep(Duration::from_millis(50));
        last = snapshot(results);
        wanted(&last)
    });
    last
}

#[test]
fn devices_leave_and_come_back_on_a_persons_word() {
    let undisturbed = job().simulating("").done_into("undisturbed");
    let job = job().set("restart.shutdown_grace_ms", 10);
    let results = job.at("results");
    let mut running = job.start_into("results");
    running.wait_for("segment committed");
    command("readmit", &results, &["sim:1"]).expect(1).says(["`sim:1` is not retired"]);
    command("retire", &results, &["sim:7"]).expect(1).says(["no device `sim:7`, only sim:0, sim:1"]);
    let said = command("retire", &results, &["sim:1"]).expect(0);
    assert!(said.stdout.contains("`sim:1` gets no more batches"), "{}", said.stdout);
    let now =
        wait_for(&mut running, &results, "it has left", |now| device(now, "sim:1")["state"] == "retired");
    let tokens = |now: &Value, name| device(now, name)["tokens"].as_u64().unwrap();
    let left_with = tokens(&now, "sim:1");
    command("retire", &results, &["sim:1"]).expect(1).says(["`sim:1` is retired already"]);
    command("retire", &results, &["sim:0"]).expect(1).says(["`sim:0` is the last device"]);
    let now = wait_for(&mut running, &results, "the other goes on", |later| {
        tokens(later, "sim:0") > tokens(&now, "sim:0") + 2000
    });
    assert_eq!(tokens(&now, "sim:1"), left_with, "it gets nothing more");
    let said = command("readmit", &results, &["sim:1"]).expect(0);
    assert!(said.stdout.contains("`sim:1` is tried again"), "{}", said.stdout);
    wait_for(&mut running, &results, "it works again", |now| tokens(now, "sim:1") > left_with);
    running.finish().expect(0);
    // It finished what it held: no batch was repeated.
    assert_eq!(snapshot(&results)["sequences_computed"], 1000);
    job.outcome("results").assert_same(&undisturbed, "after a device left and came back");
}

#[test]
fn a_checkpoint_survives_a_kill() {
    let job = || {
        JobFolder::new(fasta(41, 600, 20..200))
            .set("output.segment_sequences", 1000)
            .simulating("latency_us_per_batch=60000")
    };
    let undisturbed = job().simulating("").done_into("undisturbed");
    let job = job();
    let results = job.at("results");
    let mut running = job.start_into("results");
    let computed = |now: &Value| now["sequences_computed"].as_u64().unwrap_or(0);
    wait_for(&mut running, &results, "something is computed", |now| computed(now) > 50);
    let first = command("checkpoint", &results, &[]).expect(0).stdout;
    let kept: u64 = first.split(' ').next().unwrap().parse().unwrap();
    assert!(kept > 50 && first.contains("sequences of 1 open segments are in the journal"), "{first}");
    // The journal goes on by itself; a second checkpoint has nothing to write anew.
    wait_for(&mut running, &results, "more is computed", |now| computed(now) > kept + 50);
    let second = command("checkpoint", &results, &[]).expect(0).stdout;
    let kept: u64 = second.split(' ').next().unwrap().parse().unwrap();
    running.kill();
    command("checkpoint", &results, &[]).expect(2).says(["no job is running in"]);
    let finished = job.run_into("results").expect(0).says(["taken from the journal"]);
    let taken = finished.stderr.split("sequences=").nth(1).unwrap();
    let taken: u64 = taken.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
    assert!(taken >= kept, "{taken} of {kept}");
    job.outcome("results").assert_same(&undisturbed, "after a checkpoint and a kill");
}
