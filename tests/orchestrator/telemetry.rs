//! What a running job tells of itself, and the orders that a person gives it: through the socket, as any viewer.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::job::JobFolder;
use crate::process::{Finished, Running, program, run};
use crate::proteins::{fasta, records};

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
    running.wait_for(" ready ");
    let computed = |now: &Value| now["sequences_computed"].as_u64().unwrap_or(0);
    wait_for(&mut running, &results, "something is computed", |now| computed(now) > 50);
    let first = command("checkpoint", &results, &[]).expect(0).stdout;
    let kept: u64 = first.split(' ').next().unwrap().parse().unwrap();
    assert!(kept > 50 && first.contains("sequences of 1 open segment in the journal, on disk"), "{first}");
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

fn stage<'a>(snapshot: &'a Value, name: &str) -> &'a Value {
    snapshot["stages"].as_array().unwrap().iter().find(|stage| stage["stage"] == name).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// What must hold at every moment of every run.
#[track_caller]
fn check_sums(now: &Value) {
    assert_eq!(now["version"], 2);
    let stages = now["stages"].as_array().unwrap();
    assert_eq!(stages.len(), 4);
    for stage in stages {
        let shares = ["busy_share", "starved_share", "blocked_share"].map(|share| number(&stage[share]));
        assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)), "{stage}");
        assert!(shares.iter().sum::<f64>() <= 1.0 + 1e-9, "{stage}");
        assert!(stage["queued"].as_u64().unwrap() <= stage["capacity"].as_u64().unwrap(), "{stage}");
        let waits = &stage["waits"];
        assert!(number(&waits["p50_ms"]) <= number(&waits["p95_ms"]), "{stage}");
        assert!(number(&waits["full_share"]) + number(&waits["starved_share"]) <= 1.0 + 1e-9, "{stage}");
    }
    let devices = now["devices"].as_array().unwrap();
    let tokens: u64 = devices.iter().map(|device| device["tokens"].as_u64().unwrap()).sum();
    assert_eq!(now["tokens_computed"].as_u64(), Some(tokens));
    assert_eq!(now["fill"]["tokens"].as_u64(), Some(tokens));
    let histogram = now["fill"]["histogram"].as_array().unwrap();
    let batches: u64 = histogram.iter().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(now["fill"]["batches"].as_u64(), Some(batches));
    for device in devices {
        let share = device["busy_share_now"].as_f64().unwrap_or(0.0);
        assert!((0.0..=1.0).contains(&share), "{device}");
    }
    let numbers: Vec<u64> =
        now["events"].as_array().unwrap().iter().map(|event| event["number"].as_u64().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{numbers:?}");
}

/// The first verdict that names a stage, and the moment it was said.
fn verdict(job: &JobFolder, faults: &str) -> (Value, Running) {
    let results = job.at("results");
    let mut running = Running::start(job.command_into("results").env("VIRNUCPRO_FAULTS", faults));
    running.wait_for("segment committed");
    let now = wait_for(&mut running, &results, "a verdict", |now| {
        check_sums(now);
        now["bottleneck"]["stage"].is_string()
    });
    (now, running)
}

#[test]
fn slow_devices_set_the_pace() {
    let job = job();
    let (now, running) = verdict(&job, "");
    assert_eq!(now["bottleneck"]["stage"], "compute", "{}", now["bottleneck"]);
    let compute = stage(&now, "compute");
    assert!(number(&compute["busy_share"]) > 0.3, "{compute}");
    assert!(compute["waits"]["count"].as_u64().unwrap() > 0, "{compute}");
    assert!(number(&stage(&now, "write")["starved_share"]) > 0.3, "{now}");
    assert!(number(&stage(&now, "pack")["blocked_share"]) > 0.3, "{now}");
    assert!(number(&device(&now, "sim:0")["busy_share_now"]) > 0.3, "{now}");
    assert!(number(&device(&now, "sim:0")["heartbeat_age_s"]) < 5.0, "{now}");
    let remaining = &now["remaining"];
    assert!(number(&remaining["low_s"]) <= number(&remaining["seconds"]), "{remaining}");
    assert!(number(&remaining["seconds"]) <= number(&remaining["high_s"]), "{remaining}");
    running.finish().expect(0);
    let last = snapshot(&job.at("results"));
    check_sums(&last);
    assert_eq!(last["sequences_computed"], 1000);
    assert_eq!(last["bottleneck"]["stage"], Value::Null);
    let events = last["events"].to_string();
    for text in ["started, loads the model", "ready", "everything is committed"] {
        assert!(events.contains(text), "{text}: {events}");
    }
}

#[test]
fn a_slow_input_starves_the_devices() {
    let job = job().simulating("latency_us_per_batch=1000");
    let (now, running) = verdict(&job, "reader-thread:0=delay-300");
    assert_eq!(now["bottleneck"]["stage"], "read", "{}", now["bottleneck"]);
    assert_eq!(now["bottleneck"]["tier"], "critical");
    assert!(number(&stage(&now, "read")["busy_share"]) > 0.3, "{now}");
    let waits = &stage(&now, "pack")["waits"];
    assert!(number(&waits["p95_ms"]) > 200.0 && number(&waits["starved_share"]) > 0.0, "{waits}");
    assert!(number(&stage(&now, "compute")["starved_share"]) > 0.1, "{now}");
    running.finish().expect(0);
}

#[test]
fn a_slow_disk_blocks_the_devices() {
    let job = job().simulating("latency_us_per_batch=1000");
    let (now, running) = verdict(&job, "writer-thread:0=delay-300");
    assert_eq!(now["bottleneck"]["stage"], "write", "{}", now["bottleneck"]);
    assert!(number(&stage(&now, "write")["busy_share"]) > 0.3, "{now}");
    assert!(stage(&now, "write")["queued"].as_u64().unwrap() > 0, "{now}");
    assert!(number(&stage(&now, "compute")["blocked_share"]) > 0.1, "{now}");
    running.finish().expect(0);
}

#[test]
fn what_an_operator_must_know_is_an_event() {
    let job = JobFolder::new(fasta(7, 300, 20..200)).simulating(
        "latency_us_per_batch=20000;fault=exit@device:1,generation:0,batch:2;fault=nan@ordinal:17;memory_tokens=800",
    );
    let results = job.at("results");
    let mut running = job.start_into("results");
    running.wait_for("segment committed");
    run(program(["pause"]).arg(&results)).expect(0);
    run(program(["resume"]).arg(&results)).expect(0);
    running.finish().expect(3);
    let last = snapshot(&results);
    check_sums(&last);
    let events = last["events"].as_array().unwrap();
    let has = |level: &str, device: Option<&str>, text: &str| {
        events.iter().any(|event| {
            event["level"] == level
                && device.is_none_or(|device| event["device"] == device)
                && event["text"].as_str().unwrap().contains(text)
        })
    };
    assert!(has("warning", Some("sim:1"), "failed, started again in"), "{events:?}");
    assert!(has("warning", None, "short of memory"), "{events:?}");
    assert!(has("warning", None, "is split into 2"), "{events:?}");
    assert!(has("error", None, "is set aside: "), "{events:?}");
    assert!(
        has("info", None, "paused from outside") && has("info", None, "resumed from outside"),
        "{events:?}"
    );
    let restarted = device(&last, "sim:1");
    assert_eq!((&restarted["restarts"], &restarted["generation"]), (&1.into(), &1.into()), "{restarted}");
    assert!(device(&last, "sim:0")["token_budget"].as_u64().unwrap() < 1000, "{last}");
}

#[test]
fn status_reads_what_an_older_version_kept() {
    let job = JobFolder::new(fasta(3, 20, 20..60));
    job.run_into("results").expect(0);
    let results = job.at("results");
    let old = r#"{"version":1,"elapsed_s":2.5,"records_total":20,"residues_total":800,"records_resumed":0,
        "residues_resumed":0,"sequences_computed":20,"tokens_computed":840,"tokens_per_s_now":0.0,
        "tokens_per_s":336.0,"records_committed":20,"residues_committed":800,"segments_committed":1,"failed":0,
        "fill":{"batches":1,"tokens":840,"capacity_tokens":1000,"padded_tokens":900},"batches_queued":0,
        "slots_free":0,"restarts":0,"disk_full":false,"paused":false,"stopping":false,"devices":[{"name":"sim:0",
        "state":"stopped","generation":0,"tokens":840,"compute_s":0.1,"cpu_cores":null,"resident_bytes":null,
        "gpu":null,"last_error":null}]}"#;
    std::fs::write(results.join(".state/snapshot.json"), old).unwrap();
    assert_eq!(snapshot(&results)["tokens_computed"], 840);
    let words = command("status", &results, &[]).expect(0).stdout;
    assert!(words.starts_with("done\n") && words.contains("sim:0"), "{words}");
}

#[test]
fn equal_records_are_as_far_as_their_one_computation() {
    // Each sequence ten times over, one after the other.
    let distinct = records(&fasta(97, 60, 40..80));
    let text: String =
        (0..10 * distinct.len()).map(|number| format!(">r{number}\n{}\n", distinct[number / 10].1)).collect();
    // Of the first sequence nothing can be made; it is settled all the same.
    let job = JobFolder::new(text).simulating("fault=nan@ordinal:0");
    job.run_into("results").expect(3);
    let last = snapshot(&job.at("results"));
    assert!(last["sequences_computed"].as_u64().unwrap() < 600 / 5, "{last}");
    assert_eq!(last["residues_done"], last["residues_total"]);
    assert!(last["residues_committed"].as_u64() < last["residues_done"].as_u64(), "one is set aside");
    // Halfway through, one of the two figures is not ten times the other.
    let job = job.simulating("latency_us_per_batch=150000").set("packing.token_budget", 90);
    let mut running = job.start_into("slow");
    running.wait_for("segment committed");
    run(program(["pause"]).arg(job.at("slow"))).expect(0);
    let now = snapshot(&job.at("slow"));
    let number = |field: &str| now[field].as_u64().unwrap();
    assert!(number("residues_done") >= number("residues_committed"), "{now}");
    assert!(
        number("residues_done") > 5 * (number("tokens_computed") - 2 * number("sequences_computed")),
        "{now}"
    );
    run(program(["stop"]).arg(job.at("slow"))).expect(0);
    running.finish().expect(75);
}
