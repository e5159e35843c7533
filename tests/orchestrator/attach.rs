//! Asking a running job, from another shell, and what is left of one that does not run.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::job::JobFolder;
use crate::process::{Running, program, run};
use crate::proteins::fasta;
use crate::terminal::Terminal;

/// About two seconds of work on two devices.
fn job() -> JobFolder {
    JobFolder::new(fasta(101, 500, 20..200)).simulating("latency_us_per_batch=70000")
}

fn status(folder: &Path) -> Value {
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
    assert_eq!((now["version"].as_u64(), now["recorded"].as_str()), (Some(2), Some("running")));
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
    // Each thread stops in its own time.
    running.wait_until("all of it is suspended", |running| running.is_suspended());
    let asked = run(program(["status", "--json"]).arg(&results)).expect(1);
    let kept: Value = serde_json::from_str(&asked.stdout).unwrap();
    assert_eq!((kept["live"].as_bool(), kept["answers"].as_bool()), (Some(true), Some(false)));
    assert_eq!(kept["status"], "no-answer");
    let process = format!("(process {} on ", running.id());
    asked.says(["runs and does not answer", &process, "kill -CONT"]);
    // What may take long is found out no later.
    let asked = Instant::now();
    run(program(["checkpoint"]).arg(&results)).expect(1).says(["runs and does not answer", &process]);
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    running.signal(Signal::CONT);
    running.finish().expect(0);
}

#[test]
fn a_job_whose_socket_is_gone_is_not_called_dead() {
    let job = job();
    let results = job.at("results");
    let mut running = job.start_into("results");
    running.wait_for("ready");
    std::fs::remove_file(results.join(".state/control.sock")).unwrap();
    let process = format!("(process {} on ", running.id());
    let asked = run(program(["status", "--json"]).arg(&results)).expect(1);
    let kept: Value = serde_json::from_str(&asked.stdout).unwrap();
    assert_eq!((kept["live"].as_bool(), kept["status"].as_str()), (Some(true), Some("no-answer")));
    asked.says(["runs and cannot be asked", &process, "control.sock", "SIGTERM"]);
    run(program(["stop"]).arg(&results)).expect(1).says(["runs and cannot be asked", &process]);
    running.finish().expect(0);
    run(program(["stop"]).arg(&results)).expect(2).says(["no job is running"]);
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
        assert_eq!((after["status"].as_str(), after["recorded"].as_str()), (Some("paused"), Some("running")));
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
    assert_eq!((left["live"].as_bool(), left["status"].as_str()), (Some(false), Some("killed")));
    assert_eq!(left["recorded"], "running");
    let words = run(program(["status"]).arg(&results)).expect(0).stdout;
    assert!(words.starts_with("not running: it was killed"), "{words}");
    run(program(["stop"]).arg(&results)).expect(2).says(["no job is running in", "tells what is left of it"]);
    // The socket that it left is in nobody's way.
    job.simulating("").run_into("results").expect(0);
}

#[test]
fn what_was_never_begun_is_told_as_that() {
    let job = JobFolder::new(fasta(102, 5000, 20..40));
    let asked = |command: &str, results: &Path| {
        let mut asking = program([command]);
        asking.arg(results).args(if command == "export" { &["--to", "npy"][..] } else { &[] });
        run(&mut asking).expect(2)
    };
    std::fs::create_dir(job.at("empty")).unwrap();
    let missing = job.at("missing");
    let does_not_exist = format!("`{}` does not exist", missing.display());
    for command in ["status", "stop", "pause", "checkpoint", "verify", "export", "report"] {
        let begin = "`virnucpro-orch run` begins one";
        asked(command, &missing).says([does_not_exist.as_str(), begin]);
        let told = asked(command, &job.at("empty"));
        assert!(!told.stderr.contains("tells what is left"), "{command}: {}", told.stderr);
        told.says([begin]);
    }
    // Begun, and nothing computed: while it runs, and after.
    let running = reading(&job);
    let results = job.at("results");
    for is_running in [true, false] {
        if !is_running {
            run(program(["stop"]).arg(&results)).expect(0);
        }
        for command in ["verify", "export", "report"] {
            // A run that was stopped takes a moment to leave.
            let told = asked(command, &results).says(["holds no result yet", "status"]);
            assert!(!is_running || told.stderr.contains("is being prepared (process "), "{}", told.stderr);
        }
    }
    running.finish().expect(75);
}

#[test]
fn what_was_never_kept_of_a_killed_or_silent_run_is_not_made_up() {
    let job = JobFolder::new(fasta(102, 500, 20..200)).simulating("latency_us_per_batch=20000000");
    let results = job.at("results");
    let words = |results: &Path| run(program(["status"]).arg(results)).expect(0).stdout;
    // Killed before anything but its beginning was kept.
    let mut running = job.start_into("results");
    running.wait_until("its first figures", |_| results.join(".state/snapshot.json").exists());
    running.kill();
    let left = words(&results);
    for text in
        ["not running: it was killed", "as of      20", "not known since", "nothing was computed by then"]
    {
        assert!(left.contains(text), "{text}: {left}");
    }
    assert!(!left.contains("0 tokens/s") && !left.contains("% full"), "{left}");
    let left = status(&results);
    let (made, now) = (left["snapshot_unix_s"].as_u64().unwrap(), std::time::SystemTime::now());
    assert!(now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() - made < 300, "{left}");

    // Suspended while it reads its input, in a folder with an older result.
    let job = job.simulating("");
    job.run_into("results").expect(0);
    let mut running = reading(&job);
    running.signal(Signal::STOP);
    running.wait_until("all of it is suspended", |running| running.is_suspended());
    let asked = run(program(["status"]).arg(&results)).expect(1);
    let left = asked.stdout.as_str();
    assert!(left.starts_with("no answer, and nothing is kept of it yet; of the result"), "{left}");
    assert!(left.contains("500 of 500 committed") && !left.contains("tokens"), "{left}");
    let asked = run(program(["status", "--json"]).arg(&results)).expect(1);
    let kept: Value = serde_json::from_str(&asked.stdout).unwrap();
    assert_eq!((kept["status"].as_str(), kept["recorded"].as_str()), (Some("no-answer"), Some("done")));
    assert!(kept["snapshot"].is_null() && kept["snapshot_unix_s"].is_null(), "{kept}");
    running.signal(Signal::CONT);
    run(program(["stop"]).arg(&results)).expect(0);
    running.finish().expect(75);
}

#[test]
fn standard_input_that_is_being_stored_is_told_by_its_bytes() {
    let job = JobFolder::new("").set("input.fasta", "-");
    let results = job.at("results");
    let text = fasta(104, 100, 20..200);
    let (first, rest) = text.split_at(text.len() / 2);
    let mut running = Running::start_stdin_open(&mut job.command_into("results"));
    running.feed(first.as_bytes());
    let socket = job.at("results/.state/control.sock");
    running.wait_until("its socket", |_| socket.exists());
    running.wait_until("what came is stored", |_| {
        status(&results)["snapshot"]["preparing"]["bytes_read"] == first.len()
    });
    let now = status(&results);
    assert_eq!(now["snapshot"]["preparing"]["step"], "storing-input");
    assert_eq!(
        (now["status"].as_str(), now["snapshot"]["preparing"]["bytes_total"].as_u64()),
        (Some("preparing"), Some(0))
    );
    let words = run(program(["status"]).arg(&results)).expect(0).stdout;
    assert!(
        words.starts_with("storing standard input\n") && words.contains(" bytes stored so far"),
        "{words}"
    );
    let mut top = Terminal::start(program(["top"]).arg(&results), 80, 24);
    top.wait_for("bytes of standard input stored");
    top.press("q");
    top.finish(0);
    running.feed(rest.as_bytes());
    running.close_stdin();
    running.finish().expect(0);
    assert_eq!(job.outcome("results").rows().len(), 100);
}

#[test]
fn a_file_instead_of_the_folder_is_understood_or_told_what_to_give() {
    // Stopped long before its end.
    let job = job().simulating("latency_us_per_batch=400000");
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
    here(["status", "missing.toml"], ".").expect(2).says(["`missing.toml` does not exist"]);
    job.write("other.toml", "[input]\n");
    here(["status", "other.toml"], ".").expect(2);
    run(program(["stop"]).arg(job.at("job.toml"))).expect(0);
    running.finish().expect(75);
}

#[test]
fn what_is_neither_a_folder_nor_a_job_is_named_and_never_waited_for() {
    let job = job().simulating("");
    job.done_into("results");
    let made = std::process::Command::new("mkfifo").arg(job.at("pipe.toml")).status();
    assert!(made.unwrap().success());
    let here = |command: &str, folder: &str| {
        let mut asked = program([command, folder]);
        asked.args(if command == "export" { &["--to", "npy"][..] } else { &[] });
        run(asked.current_dir(job.path()))
    };
    for command in ["status", "top", "stop", "checkpoint", "verify", "report", "export"] {
        for (typed, what) in [
            ("pipe.toml", "`pipe.toml` is a pipe, not a result folder"),
            ("/dev/null", "`/dev/null` is a device, not a result folder"),
            ("proteins.fasta", "`proteins.fasta` is a file, not a result folder"),
            ("proteins.fasta/results", "`proteins.fasta/results` leads through a file, not a result folder"),
        ] {
            let refused = here(command, typed).expect(2).says([what, "hint: give the folder", "job.toml"]);
            assert!(!refused.stderr.contains("os error"), "{command} {typed}: {}", refused.stderr);
        }
        let hint = "hint: give the folder that it is in: results";
        here(command, "results/run.json").expect(2).says(["is a file, not a result folder", hint]);
    }
    // The job file stands for the folder that it names.
    for command in ["verify", "report", "export"] {
        here(command, "job.toml").expect(0);
    }
}

/// A job whose input does not come to its end: it has only begun.
fn reading(job: &JobFolder) -> Running {
    let mut command = job.command_into("results");
    command.env("VIRNUCPRO_FAULTS", "survey:0=delay-600000");
    let mut running = Running::start(&mut command);
    let socket = job.at("results/.state/control.sock");
    running.wait_until("its socket", |_| socket.exists());
    running.wait_until("some of the input is read", |_| {
        status(&job.at("results"))["snapshot"]["preparing"]["bytes_read"].as_u64().unwrap() > 0
    });
    running
}

#[test]
fn a_job_that_reads_its_input_tells_so_and_can_be_stopped() {
    let job = JobFolder::new(fasta(102, 5000, 20..40));
    let results = job.at("results");
    let running = reading(&job);
    let now = status(&results);
    assert_eq!((now["status"].as_str(), now["recorded"].as_str()), (Some("preparing"), None), "{now}");
    let preparing = &now["snapshot"]["preparing"];
    assert_eq!(preparing["step"], "reading-input");
    let (read, total) =
        (preparing["bytes_read"].as_u64().unwrap(), preparing["bytes_total"].as_u64().unwrap());
    assert!(0 < read && read <= total, "{preparing}");
    assert_eq!(total, std::fs::metadata(job.at("proteins.fasta")).unwrap().len());
    assert_eq!(now["snapshot"]["job"]["process"], running.id());
    let words = run(program(["status"]).arg(&results)).expect(0).stdout;
    assert!(words.starts_with("reading the input\n") && words.contains(" % of "), "{words}");
    for command in ["pause", "checkpoint"] {
        run(program([command]).arg(&results)).expect(1).says(["the job refused", "still reads its input"]);
    }
    let mut top = Terminal::start(program(["top"]).arg(&results), 80, 24);
    top.wait_for("preparing");
    top.wait_for("of the input read");
    run(program(["stop"]).arg(&results)).expect(0);
    let said = "stopped by `virnucpro-orch stop` before the first batch; the same command starts again";
    running.finish().expect(75).says([said]);
    top.wait_for("the job has ended");
    top.press("q");
    top.finish(0);
    let log = job.log_of("results");
    let last = log.lines().last().unwrap();
    for words in ["ended before the first batch", "reading the input", "virnucpro-orch stop", "bytes_read="] {
        assert!(last.contains(words), "{words} is not in: {last}");
    }
    assert!(!results.join(".state/control.sock").exists());
    let ended = "the run that was begun there ended before its first batch";
    run(program(["status"]).arg(&results)).expect(2).says(["holds no result", ended, "starts again"]);
    // The same, killed.
    let running = reading(&job);
    let process = format!("process {} on ", running.id());
    running.kill();
    run(program(["status"]).arg(&results)).expect(2).says([&process, "was killed before its first batch"]);
    // It goes on as if it had never been begun.
    let undisturbed = job.done_into("undisturbed");
    job.done_into("results").assert_same(&undisturbed, "stopped before it began");
}

#[test]
fn a_signal_before_the_run_begins_is_in_the_log() {
    let job = JobFolder::new(fasta(102, 5000, 20..40));
    let mut running = reading(&job);
    running.signal(Signal::TERM);
    running.finish().expect(75).says(["stopped by SIGTERM before the first batch"]);
    let log = job.log_of("results");
    let last = log.lines().last().unwrap();
    assert!(last.contains("ended before the first batch") && last.contains("stopped by SIGTERM"), "{log}");
    assert!(!job.at("results/.state/control.sock").exists());
    // Nobody holds the folder any more.
    job.run_into("results").expect(0);
}

#[test]
fn a_folder_of_any_length_has_its_socket() {
    let deep = format!("{}/results", "a-folder-with-a-long-name/".repeat(6));
    // Stopped long before its end.
    let job = job().simulating("latency_us_per_batch=400000");
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

#[test]
fn another_user_is_told_whose_job_it_is() {
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65_534;
    if !rustix::process::getuid().is_root() {
        println!("skipped: a job of another user (needs root)");
        return;
    }
    let job = job();
    std::fs::set_permissions(job.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let results = job.at("results");
    let mut running = job.start_into("results");
    running.wait_for("segment committed");
    let ask = |command: &str| {
        let mut asking = program([command, results.to_str().unwrap()]);
        asking.current_dir("/").uid(NOBODY).gid(NOBODY);
        asking.output()
    };
    let Ok(status) = ask("status") else {
        println!("skipped: a job of another user (the program lies where nobody else may go)");
        return;
    };
    for output in [status, ask("stop").unwrap()] {
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(words.contains("belongs to another user"), "{words}");
    }
    // Dead, it is as dead for others.
    running.kill();
    let status = ask("status").unwrap();
    let words = String::from_utf8(status.stdout).unwrap();
    assert!(words.starts_with("not running: it was killed"), "{words}");
}

#[test]
fn too_few_open_files_for_a_moment_do_not_end_the_socket() {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    // Nothing else opens files meanwhile.
    let job = job().simulating("load_ms=60000").set("restart.shutdown_grace_ms", 3000);
    let results = job.at("results");
    let mut running = job.start_into("results");
    running.wait_until("workers", |running| running.workers().len() == 2);
    assert_eq!(status(&results)["status"], "running");
    let process = Pid::from_raw(running.id() as i32);
    let before = getrlimit(Resource::Nofile);
    let none = Rlimit { current: Some(3), maximum: before.maximum };
    prlimit(process, Resource::Nofile, none).unwrap();
    let unanswered = run(program(["status", "--json"]).arg(&results)).expect(1);
    assert!(unanswered.stdout.contains("no-answer"), "{unanswered:?}");
    prlimit(process, Resource::Nofile, before).unwrap();
    assert_eq!(status(&results)["status"], "running");
    run(program(["stop"]).arg(&results)).expect(0);
    running.finish().expect(75);
}
