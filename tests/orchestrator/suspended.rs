//! Processes that are stopped and go on, and what a long night of restarts leaves behind.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::job::JobFolder;
use crate::process::{self, Running, is_suspended, program, wait_until_gone};
use crate::proteins::fasta;
use crate::terminal::Terminal;

/// About two seconds of work on two devices.
fn job() -> JobFolder {
    JobFolder::new(fasta(91, 400, 20..200))
        .set("restart.hang_ms", 1000)
        .set("restart.restarts_per_device_max", 2)
        .simulating("latency_us_per_batch=80000")
}

fn started(job: &JobFolder) -> Running {
    let mut run = job.start_into("results");
    run.wait_for("ready device=\"sim:0\"");
    run.wait_for("ready device=\"sim:1\"");
    run
}

#[test]
fn a_suspended_orchestrator_blames_no_device() {
    let undisturbed = job().simulating("").done_into("undisturbed");
    // Shorter and longer than the time after which a worker counts as hung.
    for pause_ms in [700, 2500] {
        let job = job();
        let mut run = started(&job);
        run.signal(Signal::STOP);
        std::thread::sleep(Duration::from_millis(pause_ms));
        run.signal(Signal::CONT);
        run.finish().expect(0);
        let outcome = job.outcome("results");
        outcome.assert_same(&undisturbed, "suspended");
        assert_eq!(outcome.restarts(), 0, "suspended for {pause_ms} ms");
    }
}

#[test]
fn a_worker_suspended_for_a_moment_goes_on() {
    let job = job();
    let undisturbed = job.done_into("undisturbed");
    let run = started(&job);
    let workers = run.workers();
    workers[0].signal(Signal::STOP);
    std::thread::sleep(Duration::from_millis(400));
    workers[0].signal(Signal::CONT);
    run.finish().expect(0);
    let outcome = job.outcome("results");
    outcome.assert_same(&undisturbed, "a suspended worker");
    assert_eq!(outcome.restarts(), 0);
}

#[test]
fn a_worker_suspended_for_good_is_killed_and_costs_one_restart() {
    let job = job();
    let undisturbed = job.done_into("undisturbed");
    let run = started(&job);
    let workers = run.workers();
    workers[0].signal(Signal::STOP);
    run.finish().expect(0).says(["worker hangs", "no progress for 1."]);
    wait_until_gone(&workers);
    let outcome = job.outcome("results");
    outcome.assert_same(&undisturbed, "a suspended worker");
    assert_eq!(outcome.restarts(), 1);
}

#[test]
fn a_killed_worker_whose_socket_stays_open_costs_one_restart() {
    // As of one inside a driver that is stuck, the socket never says that it is gone.
    let job = job();
    let undisturbed = job.done_into("undisturbed");
    let run = started(&job);
    let worker = run.workers()[0];
    let Some(_socket) = worker.socket() else { return };
    worker.signal(Signal::STOP);
    run.finish().expect(0).says(["worker hangs", "no progress for 1."]);
    let outcome = job.outcome("results");
    outcome.assert_same(&undisturbed, "a worker whose socket stays open");
    assert_eq!(outcome.restarts(), 1);
}

#[test]
fn a_killed_worker_whose_socket_stays_open_does_not_hold_up_the_end() {
    let job = job().set("restart.hang_ms", 600_000).set("restart.shutdown_grace_ms", 500);
    let mut run = started(&job);
    let worker = run.workers()[0];
    let Some(_socket) = worker.socket() else { return };
    worker.signal(Signal::STOP);
    let signalled = Instant::now();
    run.signal(Signal::TERM);
    run.finish().expect(75).says(["stopped by SIGTERM"]);
    assert!(signalled.elapsed() < Duration::from_secs(20), "{:?}", signalled.elapsed());
}

#[test]
fn what_a_terminal_sends_does_not_reach_workers_that_are_only_beginning() {
    // Ctrl-Z again and again while 32 processes start one after the other: a process that is not the worker yet has
    // no handler and would be stopped for good. The run itself has no shell that could wake it, and is not stopped.
    let job = JobFolder::new(fasta(93, 30_000, 20..200))
        .set("devices.use", r#"["sim:32"]"#)
        .simulating("latency_us_per_batch=200000");
    let mut terminal = Terminal::start(&mut job.command_into("results"), 80, 24);
    // The terminal echoes the key into the midst of lines, so the log is asked.
    let log = || std::fs::read_to_string(job.at("results/run.log")).unwrap_or_default();
    terminal.wait_until("all are ready", |terminal| {
        terminal.press("\x1a");
        log().matches(" ready device=").count() == 32
    });
    let workers = terminal.workers();
    assert_eq!(workers.len(), 32);
    assert!(workers.iter().all(|worker| !is_suspended(worker.id())));
    terminal.press("\x03");
    terminal.finish(75);
    assert!(log().contains("stopped by SIGINT") && !log().contains("device failed"), "{}", log());
    wait_until_gone(&workers);
}

#[test]
fn a_worker_that_the_system_does_not_start_holds_up_nobody() {
    let undisturbed = job().simulating("").done_into("undisturbed");
    let job = job().set("restart.load_ms_max", 1000).simulating("latency_us_per_batch=160000");
    let mut command = job.command_into("results");
    let run = Running::start(command.env("VIRNUCPRO_FAULTS", "launch:1=delay-600000"));
    run.finish().expect(0).says(["process not started for 1.", "device retired"]);
    let outcome = job.outcome("results");
    outcome.assert_same(&undisturbed, "a worker that never started");
    assert_eq!(outcome.restarts(), 2);
}

#[test]
fn workers_that_the_system_does_not_start_do_not_hold_up_the_end() {
    for ending in ["signal", "stop"] {
        let job = job();
        let mut command = job.command_into("results");
        let mut run = Running::start(command.env("VIRNUCPRO_FAULTS", "launch:0=delay-600000"));
        run.wait_until("it runs", |_| job.at("results/.state/snapshot.json").exists());
        let asked = Instant::now();
        if ending == "signal" {
            run.signal(Signal::INT);
        } else {
            process::run(program(["stop"]).arg(job.at("results"))).expect(0);
        }
        run.finish().expect(75).says(["stopped by"]);
        assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    }
}

#[test]
fn a_start_that_panics_costs_one_restart() {
    let job = job();
    let mut command = job.command_into("results");
    let run = Running::start(command.env("VIRNUCPRO_FAULTS", "launch:1=panic"));
    run.finish().expect(0).says(["worker could not be started: fault on purpose at launch"]);
    assert_eq!(job.outcome("results").restarts(), 1);
}

#[test]
fn a_hundred_restarts_leave_nothing_behind() {
    // Every generation dies after a few batches.
    let job = JobFolder::new(fasta(92, 900, 20..200))
        .set("packing.token_budget", 300)
        .set("restart.attempts_per_batch_max", 100)
        .simulating("latency_us_per_batch=1000;crash_rate=0.3;seed=5");
    let mut run = job.start_into("results");
    run.wait_until("ten restarts", |run| run.stderr().matches("restarting").count() >= 10);
    let (descriptors, threads) = (run.descriptors(), run.threads());
    run.wait_until("a hundred restarts", |run| run.stderr().matches("restarting").count() >= 100);
    // A worker more or less may be about to start: three descriptors, two tasks' threads.
    assert!(run.descriptors() <= descriptors + 8, "{descriptors} became {} open files", run.descriptors());
    assert!(run.threads() <= threads + 4, "{threads} became {} threads", run.threads());
    assert!(run.zombies() <= 2, "{} zombies", run.zombies());
    run.finish().expect(0);
    // `assert_same` would find a temporary file among the parts; the folder of state holds no more than it should.
    let job = job.simulating("");
    let undisturbed = job.done_into("undisturbed");
    job.outcome("results").assert_same(&undisturbed, "after a hundred restarts");
    let mut state: Vec<_> = std::fs::read_dir(job.at("results/.state"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    state.sort();
    assert_eq!(state, ["lock", "snapshot.json"]);
}

#[test]
fn a_run_that_stands_still_says_who_holds_it_up() {
    let job = job().set("restart.stall_ms", 300).set("restart.hang_ms", 60_000);
    let job = job.simulating("fault=hang@device:1,generation:0,batch:1;fault=hang@device:0,batch:40");
    let mut run = job.start_into("results");
    run.wait_for("no progress");
    let started = Instant::now();
    run.wait_until("a name", |run| {
        run.stderr().lines().any(|line| {
            line.contains("no progress")
                && line.contains("sim:1 (generation 0) has had batch ")
                && line.contains("of segment ")
        })
    });
    assert!(started.elapsed() < Duration::from_secs(20));
    run.signal(Signal::TERM);
    run.signal(Signal::TERM);
    let code = run.finish().code();
    assert!([75, 130].contains(&code), "{code}");
}

#[test]
fn every_signal_of_a_cluster_stops_resumable() {
    let undisturbed = job().simulating("").done_into("undisturbed");
    for (signal, name) in [(Signal::HUP, "SIGHUP"), (Signal::USR1, "SIGUSR1")] {
        let job = job().set("restart.shutdown_grace_ms", 2000);
        let mut run = started(&job);
        run.signal(signal);
        run.finish().expect(75).says([format!("stopped by {name}")]);
        let job = job.simulating("");
        job.run_into("results").expect(0);
        job.outcome("results").assert_same(&undisturbed, name);
    }
}
