//! Each kind of fault, once: the run recovers and the bytes are those of an undisturbed run.

use std::net::Shutdown;
use std::time::Duration;

use rustix::process::Signal;

use crate::job::JobFolder;
use crate::process::program;
use crate::proteins::fasta;

const PROTEINS: usize = 300;

fn job() -> JobFolder {
    JobFolder::new(fasta(11, PROTEINS, 20..200))
}

/// As [`JobFolder::recovers`], and the device was started again, which `run.json` and the summary count.
#[track_caller]
fn restarts(job: JobFolder, program: &str, reason: &str) {
    // Slow enough that every device gets its share, and with it its fault.
    let (finished, outcome) = job.recovers(&format!("latency_us_per_batch=4000;{program}"));
    assert_eq!(outcome.restarts(), 1, "{program}:\n{}", finished.stderr);
    finished.says(["device failed, restarting", reason, "restarts   1"]);
}

#[test]
fn a_panic_in_the_engine_restarts_the_device() {
    restarts(
        job(),
        "fault=panic@device:1,generation:0,batch:2",
        "the engine panicked: simulated panic on device 1",
    );
}

#[test]
fn a_worker_that_exits_is_restarted() {
    restarts(job(), "fault=exit@device:0,generation:0,batch:1", "exit status: 1");
}

#[test]
fn a_worker_that_crashes_is_restarted() {
    restarts(job(), "fault=abort@device:1,generation:0,batch:0", "SIGABRT");
}

#[test]
fn a_lost_device_is_restarted() {
    restarts(job(), "fault=lost@device:0,generation:0,batch:3", "simulated device 0 is lost");
}

#[test]
fn a_hung_device_is_killed_and_restarted() {
    let job = job().set("restart.hang_ms", 700);
    restarts(job, "fault=hang@device:0,generation:0,batch:2", "no progress for");
}

#[test]
fn a_device_that_fails_to_load_is_loaded_again() {
    let slow = "latency_us_per_batch=20000;fault=load-fail@device:1,generation:0";
    restarts(job(), slow, "simulated device 1 failed to load");
}

#[test]
fn a_device_that_hangs_while_loading_is_killed_and_loaded_again() {
    let job = job().set("restart.load_ms_max", 400);
    // The other device is slow enough to leave work for the second start.
    let program = "latency_us_per_batch=40000;fault=load-hang@device:1,generation:0";
    restarts(job, program, "model not loaded for");
}

#[test]
fn a_slow_batch_is_no_hang() {
    // 30 ms a batch, one of them 40 times as long: it ticks, so its device is left alone.
    let job = JobFolder::new(fasta(12, 20, 20..100)).set("restart.hang_ms", 600);
    let (_, outcome) = job.recovers("latency_us_per_batch=30000;slow=40@device:0,batch:0");
    assert_eq!(outcome.restarts(), 0);
}

#[test]
fn the_shortest_hang_time_allowed_spares_a_healthy_device() {
    let job = JobFolder::new(fasta(12, 20, 20..100)).set("restart.hang_ms", 100);
    let (_, outcome) = job.recovers("latency_us_per_batch=400000");
    assert_eq!(outcome.restarts(), 0);
}

#[test]
fn batches_too_large_for_a_device_are_split() {
    let (finished, outcome) = job().recovers("oom_above_tokens=400");
    assert_eq!(outcome.restarts(), 0);
    finished.says(["out of memory for a batch of", "batch split"]);
}

#[test]
fn a_batch_that_fails_now_and_then_is_tried_again() {
    let (finished, outcome) = job().recovers("fault=error@device:0,batch:1;fault=oom@device:1,batch:2");
    assert_eq!(outcome.restarts(), 0);
    finished.says(["simulated failure of batch 1", "batch requeued"]);
}

#[test]
fn a_device_that_never_works_is_retired_and_the_others_finish() {
    let job = job().set("restart.restarts_per_device_max", 3);
    for kind in ["load-fail", "lost", "exit"] {
        let undisturbed = job.done_into("undisturbed");
        let mut command = job.command_into(kind);
        // Slow enough that the broken device has its chances before all is done.
        let program = format!("fault={kind}@device:1;latency_us_per_batch=15000");
        let finished = crate::process::run(command.env("VIRNUCPRO_SIM", program)).expect(0);
        let outcome = job.outcome(kind);
        outcome.assert_same(&undisturbed, kind);
        assert_eq!(outcome.restarts(), 3, "{kind}:\n{}", finished.stderr);
        finished.says(["device retired device=\"sim:1\""]);
        std::fs::remove_dir_all(job.at("undisturbed")).unwrap();
    }
}

#[test]
fn lost_devices_stop_the_run_and_the_printed_command_goes_on() {
    for kind in ["exit", "load-fail", "lost"] {
        let undisturbed = job().done_into("undisturbed");
        // The first generation works for a while; then nothing ever works again.
        let faults: Vec<String> = match kind {
            "load-fail" => {
                (1..=4).map(|generation| format!("fault=load-fail@generation:{generation}")).collect()
            }
            kind => (1..=4).map(|generation| format!("fault={kind}@generation:{generation}")).collect(),
        };
        let program =
            format!("latency_us_per_batch=2000;fault=exit@generation:0,batch:9;{}", faults.join(";"));
        let job = job().set("restart.restarts_per_device_max", 2).simulating(&program);
        let finished = job.run_into("my results").expect(75);
        let results = job.at("my results");
        let committed = crate::outcome::segments_committed(&results);
        assert!(committed >= 1 && committed < undisturbed.parts.len(), "{kind}: {committed} segments");
        let run = crate::outcome::manifest(&results).unwrap();
        assert_eq!(run["status"], "stopped");
        assert!(run["reason"].as_str().unwrap().starts_with("all devices were lost"), "{run}");
        let finished = finished.says(["all devices were lost: sim:0:", "sim:1:"]);

        let (_, command) = finished.stderr.split_once("to go on: virnucpro-orch ").unwrap();
        let mut shell = std::process::Command::new("sh");
        let line = format!("'{}' {}", crate::process::PROGRAM, command.lines().next().unwrap());
        crate::process::without_settings(shell.args(["-c", &line]).current_dir(job.path()));
        crate::process::run(&mut shell).expect(0).says(["resuming"]);
        job.outcome("my results").assert_same(&undisturbed, kind);
    }
}

#[test]
fn lost_devices_make_no_sequence_a_poison_sequence() {
    // Each batch is one sequence, each segment one batch: nothing else can show who is to blame.
    let job = JobFolder::new(fasta(13, 12, 40..60))
        .set("packing.token_budget", 64)
        .set("output.segment_sequences", 1)
        .set("devices.use", r#"["sim:1"]"#);
    let undisturbed = job.done_into("undisturbed");
    let broken = job.command_into("results").env("VIRNUCPRO_SIM", "fault=exit").status().unwrap();
    assert_eq!(broken.code(), Some(75));
    job.run_into("results").expect(0);
    job.outcome("results").assert_same(&undisturbed, "after every device was lost");
}

#[test]
fn a_worker_that_died_idle_is_lent_nothing_that_counts() {
    // Each batch is one sequence, and failing once is enough to set it aside.
    let job = JobFolder::new(fasta(14, 40, 40..60))
        .set("packing.token_budget", 64)
        .set("output.segment_sequences", 1)
        .set("devices.use", r#"["sim:1"]"#)
        .set("restart.attempts_per_batch_max", 1);
    let undisturbed = job.done_into("undisturbed");
    let job = job.simulating("latency_us_per_batch=100000");
    let results = job.at("results");
    let mut run = job.start_into("results");
    run.wait_for("ready device=");
    crate::process::run(program(["pause"]).arg(&results)).expect(0);
    // What it held is computed.
    std::thread::sleep(Duration::from_millis(1500));
    let worker = run.workers()[0];
    let Some(socket) = worker.socket() else { return };
    // Its socket says that it is gone, and seconds pass until it is.
    worker.signal(Signal::STOP);
    socket.shutdown(Shutdown::Both).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    crate::process::run(program(["resume"]).arg(&results)).expect(0);
    run.finish().expect(0).says(["device failed, restarting"]);
    let outcome = job.outcome("results");
    outcome.assert_same(&undisturbed, "a worker that died idle");
    assert_eq!(outcome.restarts(), 1);
}
