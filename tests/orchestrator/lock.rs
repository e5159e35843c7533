//! One run at a time on a result folder, and no dead one in the way.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::job::JobFolder;
use crate::outcome::segments_committed;
use crate::process::run;
use crate::proteins::fasta;

fn job() -> JobFolder {
    JobFolder::new(fasta(41, 300, 20..200))
}

fn owner(results: &Path) -> Value {
    serde_json::from_slice(&fs::read(results.join(".state/lock")).unwrap()).unwrap()
}

fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned()
}

#[test]
fn a_second_run_on_the_same_folder_is_kept_out() {
    let job = job().simulating("latency_us_per_batch=150000");
    let results = job.at("results");
    let mut first = job.start_into("results");
    first.wait_until("the first segment is committed", |_| segments_committed(&results) > 0);
    let process = format!("process {} on host `{}`, since 20", first.id(), host());
    let before = owner(&results);
    for fresh in [false, true] {
        let mut command = job.command_into("results");
        if fresh {
            command.arg("--fresh");
        }
        run(&mut command).expect(2).says(["another run is writing to", &process, "hint: wait for it"]);
    }
    assert_eq!(owner(&results), before);
    for (key, value) in [("pid", json!(first.id())), ("host", json!(host())), ("locked", json!(true))] {
        assert_eq!(before[key], value);
    }
    first.finish().expect(0);
    let alone = self::job().done_into("results");
    job.outcome("results").assert_same(&alone, "with a second run at the door");
    assert_eq!(fs::read_to_string(results.join(".state/lock")).unwrap(), "", "nobody owns it any more");
}

#[test]
fn the_root_of_the_file_system_is_no_folder_for_results() {
    let job = job();
    for root in ["/", "/usr/.."] {
        let mut command = job.command("run");
        command.arg("--set").arg(format!("output.directory={root}"));
        run(&mut command).expect(2).says(["is the root of the file system", "a folder of its own"]);
    }
    assert!(!Path::new("/embeddings").exists());
}

#[test]
fn the_lock_of_a_killed_run_is_taken_over_and_its_owner_named() {
    let undisturbed = job().done_into("results");
    let job = job().simulating("latency_us_per_batch=20000");
    let results = job.at("results");
    let mut first = job.start_into("results");
    first.wait_until("the first segment is committed", |_| segments_committed(&results) > 0);
    let process = format!("process {} on host `{}`, since 20", first.id(), host());
    first.kill();
    let message = "the lock is taken over from a run that died";
    job.run_into("results").expect(0).says([message, process.as_str(), "resuming"]);
    assert!(fs::read_to_string(results.join("run.log")).unwrap().contains(message));
    job.outcome("results").assert_same(&undisturbed, "taken over");
    // One that ended by itself leaves nothing to take over.
    let finished = job.run_into("results").expect(0);
    assert!(!finished.stderr.contains(message), "{}", finished.stderr);
}

#[test]
fn a_run_on_another_machine_is_respected_while_it_gives_signs_of_life() {
    let job = job();
    let whole = job.done_into("undisturbed");
    let lock = job.at("results/.state/lock");
    fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let owner = json!({
        "host": "node17", "boot_id": "0f0f0f0f-0000-4000-8000-000000000000", "pid_namespace": "pid:[4026531836]",
        "pid": 4711, "start_ticks": 1234, "started_unix_s": 951_868_800, "version": "0.1.0", "locked": true,
    });
    fs::write(&lock, owner.to_string()).unwrap();
    let words = "process 4711 on host `node17`, since 2000-03-01 00:00:00 UTC";
    let file = fs::File::options().write(true).open(&lock).unwrap();
    let seconds_ago = |seconds| {
        let time = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
        file.set_modified(time).unwrap();
    };
    let mut run = job.start_into("results");
    run.wait_for("waiting up to ");
    seconds_ago(1);
    run.finish().expect(2).says([words, "another run is writing to"]);
    // A job that is requeued after its machine died waits, and goes on by itself.
    seconds_ago(118);
    let message = "the lock is taken over from a run that died";
    job.run_into("results").expect(0).says(["waiting up to ", message, words]);
    job.outcome("results").assert_same(&whole, "taken over from another machine");
}

#[test]
fn a_run_that_ends_in_the_middle_of_things_gives_its_lock_back() {
    // Before the first batch, and by a second signal.
    let job = job().set("input.fasta", "-");
    let mut command = job.command_into("results");
    let mut run = crate::process::Running::start_stdin_open(&mut command);
    run.wait_until("the lock", |_| {
        !fs::read_to_string(job.at("results/.state/lock")).unwrap_or_default().is_empty()
    });
    run.wait_for("starting");
    let arriving = job.at("results/.state/stdin-new.fasta.partial");
    let bytes = |path| fs::metadata(path).map_or(0, |file| file.len());
    run.feed(b">a\nMKV");
    run.wait_until("standard input is received", |_| bytes(&arriving) == 6);
    run.signal(Signal::TERM);
    run.finish().expect(75);
    // It stays as a mark, without the room that it took.
    assert!(arriving.exists() && bytes(&arriving) == 0);
    assert_eq!(fs::read_to_string(job.at("results/.state/lock")).unwrap(), "");
    // What had arrived is not an empty input, however often it is tried.
    for _ in 0..2 {
        let finished = job.run_into("results").expect(5);
        finished.says(["never arrived whole", "pipe the whole input in again"]);
    }

    let job = self::job().simulating("fault=hang").set("restart.shutdown_grace_ms", 60_000);
    let mut run = job.start_into("results");
    run.wait_for("ready device");
    run.signal(Signal::TERM);
    run.wait_for("stopping");
    // At once it would be the first one still.
    std::thread::sleep(std::time::Duration::from_millis(300));
    run.signal(Signal::TERM);
    run.finish().expect(130);
    assert_eq!(fs::read_to_string(job.at("results/.state/lock")).unwrap(), "");
}

#[test]
fn a_stopped_run_gives_its_lock_back() {
    let job = job().simulating("latency_us_per_batch=20000").set("restart.shutdown_grace_ms", 100);
    let mut run = job.start_into("results");
    run.wait_for("ready device");
    run.signal(Signal::TERM);
    run.finish().expect(75);
    assert_eq!(fs::read_to_string(job.at("results/.state/lock")).unwrap(), "");
}
