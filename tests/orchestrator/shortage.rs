//! Limits of the system on a process: what is said where they are reached, and that it is the truth.

use std::process::Command;

use crate::job::JobFolder;
use crate::process::{Finished, PROGRAM, run, without_settings};
use crate::proteins::fasta;

/// Runs a job under a limit, as `ulimit` sets it.
fn limited(job: &JobFolder, devices: u32, limit: &str) -> Finished {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\""), PROGRAM]);
    command.args(job.command_into("results").get_args()).current_dir(job.path());
    command.args(["--set", &format!("devices.use=[\"sim:{devices}\"]")]);
    without_settings(&mut command);
    run(&mut command)
}

fn job() -> JobFolder {
    JobFolder::new(fasta(171, 100, 20..60)).set("restart.restarts_per_device_max", 0)
}

#[test]
fn too_few_open_files_are_told_as_that_whatever_they_meet_first() {
    // A pipe of the runtime, the lock, the log, the manifest, the first workers.
    for files in [8, 9, 10, 12, 15, 20] {
        let job = job();
        let finished = limited(&job, 8, &format!("-n {files}"));
        assert!([1, 75].contains(&finished.code()), "{files}: {}", finished.stderr);
        let hints: Vec<&str> = finished.stderr.lines().filter(|line| line.starts_with("hint: ")).collect();
        let hint = format!("hint: this process may have {files} files open: raise that limit");
        assert!(
            hints[0].starts_with(&hint) && hints[0].contains("ulimit -n"),
            "{files}: {}",
            finished.stderr
        );
        assert!(!finished.stderr.contains("that you may write to"), "{files}: {}", finished.stderr);
        assert!(!finished.stderr.contains("panicked"), "{files}: {}", finished.stderr);
        // Where anything can be said beforehand it is.
        if let Some(begun) = finished.stderr.find(" starting ") {
            let told = finished.stderr.find("too few open files for this run").unwrap();
            let refused = finished.stderr.find("os error 24").unwrap();
            assert!(begun < told && told < refused, "{files}: {}", finished.stderr);
        }
    }
    // As many as the hint says.
    limited(&job(), 8, "-n 96").expect(0);
}

#[test]
fn too_little_memory_for_threads_is_told_with_its_limit() {
    let failed = (6..25).rev().map(|step| 10_000 * step).find_map(|kib| {
        let finished = limited(&job(), 2, &format!("-v {kib}"));
        (finished.was_ended_by_a_signal() || finished.code() != 0).then_some((kib, finished))
    });
    let (kib, finished) = failed.unwrap();
    let finished = finished.expect(1).says(["the run cannot start: no more threads or memory may be had"]);
    let hint =
        format!("hint: the memory of this process is limited to {kib} KiB: raise that limit (`ulimit -v`)");
    assert!(finished.stderr.contains(&hint) && !finished.stderr.contains("ulimit -u"), "{}", finished.stderr);
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
}
