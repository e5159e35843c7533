//! Signals and the end of the orchestrator: nothing lost, nobody left behind.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::job::JobFolder;
use crate::outcome::{manifest, segments_committed};
use crate::process::wait_until_gone;
use crate::proteins::fasta;

/// Eight segments of some 30 batches each, slow enough to be stopped in the middle.
fn slow_job() -> JobFolder {
    JobFolder::new(fasta(31, 500, 20..200))
        .set("restart.shutdown_grace_ms", 3000)
        .simulating("latency_us_per_batch=15000")
}

#[test]
fn a_signal_stops_within_the_grace_time_and_the_same_command_goes_on() {
    let undisturbed = slow_job().simulating("").done_into("results");
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT")] {
        let job = slow_job();
        let results = job.at("results");
        let mut run = job.start_into("results");
        run.wait_until("the first segment is committed", |_| segments_committed(&results) > 0);
        let workers = run.workers();
        assert_eq!(workers.len(), 2);
        let signalled = Instant::now();
        run.signal(signal);
        let finished = run.finish().expect(75);
        // Leaving takes the workers a moment more.
        assert!(signalled.elapsed() < Duration::from_millis(3000 + 1500), "{:?}", signalled.elapsed());
        wait_until_gone(&workers);
        assert_eq!(finished.stdout, "");
        finished.says([&format!("stopped by {name}"), "to go on: virnucpro-orch run job.toml"]);
        let run = manifest(&results).unwrap();
        assert_eq!(
            (run["status"].as_str(), run["reason"].as_str()),
            (Some("stopped"), Some(&*format!("stopped by {name}")))
        );
        let committed = segments_committed(&results);
        assert!(committed < undisturbed.parts.len(), "it was over already");

        let done = job.done_into("results");
        done.assert_same(&undisturbed, name);
        assert_eq!(done.run["sessions"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn what_can_be_finished_in_the_grace_time_is_committed() {
    let job = slow_job();
    let results = job.at("results");
    let mut run = job.start_into("results");
    run.wait_until("two segments are committed", |_| segments_committed(&results) >= 2);
    run.signal(Signal::TERM);
    run.finish().expect(75);
    // Three seconds are plenty for the segment that was begun: it is not thrown away.
    assert!(segments_committed(&results) >= 3, "{}", segments_committed(&results));
}

#[test]
fn a_stop_that_lets_everything_be_committed_is_the_end_of_the_job() {
    // As many full segments as may be open at once, so that nobody has seen the end of the input when the stop comes.
    let job = JobFolder::new(fasta(34, 150, 20..200))
        .set("output.segment_sequences", 50)
        .set("restart.shutdown_grace_ms", 120_000)
        .simulating("latency_us_per_batch=60000");
    let results = job.at("results");
    let mut run = job.start_into("results");
    run.wait_for("ready device=\"sim:0\"");
    run.wait_for("ready device=\"sim:1\"");
    assert_eq!(segments_committed(&results), 0, "too early for a segment");
    run.signal(Signal::TERM);
    run.finish().expect(0).says(["stopping", "done"]);
    assert_eq!(manifest(&results).unwrap()["status"], "done");
    crate::process::run(crate::process::program(["verify"]).arg(&results)).expect(0);
    let job = job.simulating("");
    let undisturbed = job.done_into("undisturbed");
    job.outcome("results").assert_same(&undisturbed, "stopped and done");
}

#[test]
fn a_signal_before_the_first_batch_stops_at_once() {
    let job = slow_job().simulating("load_ms=60000");
    let mut run = job.start_into("results");
    run.wait_until("workers", |run| run.workers().len() == 2);
    let workers = run.workers();
    let signalled = Instant::now();
    run.signal(Signal::TERM);
    run.finish().expect(75);
    assert!(signalled.elapsed() < Duration::from_millis(3000 + 1500), "{:?}", signalled.elapsed());
    wait_until_gone(&workers);
}

#[test]
fn a_stop_between_the_first_run_json_and_the_actors_is_written_down() {
    let job = slow_job().simulating("");
    let undisturbed = job.done_into("undisturbed");
    let mut command = job.command_into("traced");
    command.env("VIRNUCPRO_FAULTS", format!("file-trace={}", job.at("trace").display()));
    crate::process::run(&mut command).expect(0);
    let trace = std::fs::read_to_string(job.at("trace")).unwrap();
    let is_first = |line: &str| line.starts_with("rename\t") && line.ends_with("run.json");
    let number = trace.lines().position(is_first).unwrap();
    // Every operation from that one on takes its time: nobody is quicker than the signal.
    let mut command = job.command_into("results");
    command.env("VIRNUCPRO_FAULTS", format!("file-operation:{number}=delay-700"));
    let mut run = crate::process::Running::start(&mut command);
    let results = job.at("results");
    run.wait_until("its run.json", |_| manifest(&results).is_some());
    run.signal(Signal::TERM);
    run.finish().expect(75).says(["stopped by SIGTERM", "to go on: virnucpro-orch run job.toml"]);
    let recorded = manifest(&results).unwrap();
    assert_eq!(
        (recorded["status"].as_str(), recorded["reason"].as_str()),
        (Some("stopped"), Some("stopped by SIGTERM"))
    );
    job.done_into("results").assert_same(&undisturbed, "stopped as it began");
}

#[test]
fn a_hung_device_does_not_hold_up_the_end() {
    let job = slow_job().set("restart.shutdown_grace_ms", 300).simulating("fault=hang");
    let mut run = job.start_into("results");
    run.wait_for("ready device=\"sim:1\"");
    let workers = run.workers();
    let signalled = Instant::now();
    run.signal(Signal::TERM);
    run.finish().expect(75);
    assert!(signalled.elapsed() < Duration::from_millis(300 + 1500), "{:?}", signalled.elapsed());
    wait_until_gone(&workers);
}

#[test]
fn a_signal_that_comes_twice_is_one() {
    // As `timeout` sends it: to the program, then to its group.
    let job = slow_job().simulating("");
    let mut run = job.start_into("results");
    run.wait_for("ready device=\"sim:1\"");
    run.signal(Signal::TERM);
    // Both at once may arrive as one in any case.
    std::thread::sleep(Duration::from_millis(5));
    run.signal(Signal::TERM);
    let finished = run.finish().expect(75);
    assert!(!finished.stderr.contains("second signal"), "{}", finished.stderr);
    let undisturbed = slow_job().simulating("").done_into("results");
    job.done_into("results").assert_same(&undisturbed, "after a signal that came twice");
}

#[test]
fn a_second_signal_leaves_at_once() {
    let job = slow_job().set("restart.shutdown_grace_ms", 60_000).simulating("fault=hang@batch:5");
    let mut run = job.start_into("results");
    run.wait_for("ready device=\"sim:1\"");
    let workers = run.workers();
    run.signal(Signal::TERM);
    run.wait_for("stopping");
    run.signal(Signal::INT);
    run.finish().expect(130).says(["second signal (SIGINT)"]);
    wait_until_gone(&workers);
    let undisturbed = slow_job().simulating("").done_into("results");
    job.simulating("").done_into("results").assert_same(&undisturbed, "after a second signal");
}

#[test]
fn no_worker_outlives_its_orchestrator() {
    // At work, hanging, and still loading.
    for program in ["latency_us_per_batch=15000", "fault=hang", "fault=load-hang"] {
        let job = slow_job().simulating(program);
        let mut run = job.start_into("results");
        run.wait_until("two workers", |run| run.workers().len() == 2);
        if program == "fault=hang" {
            run.wait_for("ready device=\"sim:1\"");
        }
        let workers = run.workers();
        run.kill();
        wait_until_gone(&workers);
    }
    let job = JobFolder::new(fasta(32, 400, 300..400)).on_cpu();
    let mut run = job.start_into("results");
    run.wait_for("ready device=\"cpu\"");
    let workers = run.workers();
    run.kill();
    wait_until_gone(&workers);
}

#[test]
fn a_worker_started_by_hand_says_so() {
    let finished = crate::process::run(&mut crate::process::program(["worker"])).expect(2);
    finished.says(["`worker` is started by `run`"]);
}

#[test]
fn nohup_protects_a_run_from_its_terminal() {
    let job = JobFolder::new(fasta(33, 200, 20..200)).simulating("latency_us_per_batch=20000");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", crate::process::PROGRAM]);
    command.args(job.command_into("results").get_args()).current_dir(job.path());
    crate::process::without_settings(&mut command);
    let mut run = crate::process::Running::start(command.env("VIRNUCPRO_SIM", "latency_us_per_batch=20000"));
    run.wait_for("ready device");
    run.signal(Signal::HUP);
    run.finish().expect(0);
    job.outcome("results");
}

#[test]
fn a_terminal_that_goes_away_ends_nothing() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    let undisturbed = slow_job().simulating("").done_into("undisturbed");
    let job = slow_job().set("telemetry.progress", "auto");
    // A handle that the program inherits would keep its terminal from ever hanging up.
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let slave = std::fs::File::options().read(true).write(true).open(name).unwrap();
    let mut command = job.command_into("results");
    command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
    let mut child = command.spawn().unwrap();
    drop(command);
    let results = job.at("results");
    while segments_committed(&results) == 0 {
        assert!(child.try_wait().unwrap().is_none(), "ended early");
        std::thread::sleep(Duration::from_millis(5));
    }
    // A window that is closed, a connection that breaks: from now on every word to it fails.
    drop(master);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    job.outcome("results").assert_same(&undisturbed, "after the terminal went away");
}
