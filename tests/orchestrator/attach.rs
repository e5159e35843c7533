//! Asking a running job, from another shell, and what is left of one that does not run.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::job::JobFolder;
use crate::process::{program, run};
use crate::proteins::fasta;

/// About two seconds of work on two devices.
fn job() -> JobFolder {
    JobFolder::new(fasta(101, 500, 20..200)).simulating("latency_us_per_batch=70000")
}

fn status(folder: &std::path::Path) -> Value {
    let finished = run(program(["status", "--json"]).arg(folder)).expect(0);
    serde_json::from_str(&finished.stdout).unwrap()
}

#[test]
fn a_running_job_tells_how_it_stands() {
    let job = job();
    let results = job.at("results");
    let mut running = job.start_into("results");
    running.wait_for("segment committed");
    let now = status(&results);
    assert_eq!((now["live"].as_bool(), now["status"].as_str()), (Some(true), Some("running")));
    assert_eq!(now["records"], 500);
    assert_eq!(now["snapshot"]["version"], 2);
    assert_eq!(now["snapshot"]["devices"].as_array().unwrap().len(), 2);
    assert!(now["snapshot"]["tokens_computed"].as_u64().unwrap() > 0, "{now}");
    let words = run(program(["status"]).arg(&results)).expect(0).stdout;
    for text in ["running\n", "of 500 committed", "sim:1", "ready", "left"] {
        assert!(words.contains(text), "{text}: {words}");
    }
    // For this user alone.
    let mode = std::fs::metadata(results.join(".state/control.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    running.finish().expect(0);
    let done = status(&results);
    assert_eq!((done["live"].as_bool(), done["status"].as_str()), (Some(false), Some("done")));
    assert_eq!(done["snapshot"]["records_committed"], 500);
    assert!(!results.join(".state/control.sock").exists());
}

#[test]
fn a_suspended_job_is_shown_as_it_was_and_named() {
    let job = job();
    let results = job.at("results");
    let mut running = job.start_into("results");
    running.wait_for("ready");
    running.signal(Signal::STOP);
    let asked = run(program(["status", "--json"]).arg(&results)).expect(1);
    let kept: Value = serde_json::from_str(&asked.stdout).unwrap();
    assert_eq!((kept["live"].as_bool(), kept["answers"].as_bool()), (Some(true), Some(false)));
    asked.says(["runs and does not answer", "(process ", "kill -CONT"]);
    running.signal(Signal::CONT);
    running.finish().expect(0);
}

#[test]
fn a_paused_job_stands_still_until_it_is_told_to_go_on() {
    let undisturbed = job().simulating("").done_into("undisturbed");
    let job = job().set("restart.stall_ms", 200);
    let results = job.at("results");
    let mut running = job.start_into("results");
    running.wait_for("segment committed");
    run(program(["pause"]).arg(&results)).expect(0);
    // What runs is completed: two batches for each device at most.
    running.wait_until("it stands still", |_| {
        let before = status(&results);
        std::thread::sleep(Duration::from_millis(400));
        let after = status(&results);
        assert_eq!(after["snapshot"]["paused"], true);
        before["snapshot"]["tokens_computed"] == after["snapshot"]["tokens_computed"]
    });
    assert!(!running.stderr().contains("no progress"), "{}", running.stderr());
    assert!(run(program(["status"]).arg(&results)).expect(0).stdout.starts_with("paused\n"));
    run(program(["resume"]).arg(&results)).expect(0);
    running.finish().expect(0);
    job.outcome("results").assert_same(&undisturbed, "after a pause");
}

#[test]
fn a_job_is_stopped_from_another_shell_and_goes_on_later() {
    let undisturbed = job().simulating("").done_into("undisturbed");
    for paused in [false, true] {
        let job = job().set("restart.shutdown_grace_ms", 5000);
        let results = job.at("results");
        let mut running = job.start_into("results");
        running.wait_for("segment committed");
        if paused {
            run(program(["pause"]).arg(&results)).expect(0);
        }
        run(program(["stop"]).arg(&results)).expect(0);
        let finished = running.finish().expect(75).says(["stopped by `virnucpro-orch stop`"]);
        assert!(finished.elapsed < Duration::from_secs(15));
        let left = status(&results);
        assert_eq!((left["live"].as_bool(), left["status"].as_str()), (Some(false), Some("stopped")));
        let job = job.simulating("");
        job.run_into("results").expect(0);
        job.outcome("results").assert_same(&undisturbed, "stopped from another shell");
    }
}

#[test]
fn what_is_left_of_a_killed_job_is_told() {
    let job = job();
    let results = job.at("results");
    let mut running = job.start_into("results");
    running.wait_for("segment committed");
    running.kill();
    let left = status(&results);
    assert_eq!((left["live"].as_bool(), left["status"].as_str()), (Some(false), Some("running")));
    let words = run(program(["status"]).arg(&results)).expect(0).stdout;
    assert!(words.starts_with("not running: it was killed"), "{words}");
    run(program(["stop"]).arg(&results)).expect(2).says(["no job is running in"]);
    run(program(["status"]).arg(job.at("elsewhere"))).expect(2).says(["holds no run"]);
    // The socket that it left is in nobody's way.
    job.simulating("").run_into("results").expect(0);
}

#[test]
fn a_file_instead_of_the_folder_is_understood_or_told_what_to_give() {
    let job = job();
    let mut running = job.start_into("results");
    running.wait_for("segment committed");
    // The job file names the same folder.
    let words = run(program(["status"]).arg(job.at("job.toml"))).expect(0).stdout;
    assert!(words.starts_with("running\n"), "{words}");
    let here = |arguments: [&str; 2], folder: &str| run(program(arguments).current_dir(job.at(folder)));
    here(["status", "results/run.json"], ".").expect(2).says(["is a file", "folder that it is in: results"]);
    here(["status", "run.log"], "results").expect(2).says(["is a file", "folder that it is in: ."]);
    here(["stop", "proteins.fasta"], ".").expect(2).says(["is a file", "output.directory", "job.toml"]);
    here(["top", "results/run.json"], ".").expect(2).says(["is a file", "folder that it is in: results"]);
    here(["status", "missing.toml"], ".").expect(2).says(["`missing.toml` holds no run"]);
    job.write("other.toml", "[input]\n");
    here(["status", "other.toml"], ".").expect(2);
    run(program(["stop"]).arg(job.at("job.toml"))).expect(0);
    running.finish().expect(75);
}

#[test]
fn a_folder_of_any_length_has_its_socket() {
    let deep = format!("{}/results", "a-folder-with-a-long-name/".repeat(6));
    let job = job();
    let results = job.at(&deep);
    assert!(results.as_os_str().len() > 150);
    let mut running = job.start_into(&deep);
    running.wait_for("segment committed");
    assert_eq!(status(&results)["live"], true);
    run(program(["stop"]).arg(&results)).expect(0);
    running.finish().expect(75);
}

#[test]
fn a_dashboard_needs_a_terminal_and_says_what_does_without() {
    let job = job();
    run(program(["top"]).arg(job.at("results"))).expect(2).says(["needs a terminal", "status"]);
}
