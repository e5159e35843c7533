//! No room, no right to write: the run waits or says so, and nothing half-written is ever visible.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use crate::job::JobFolder;
use crate::outcome::{Outcome, segments_committed};
use crate::process::{PROGRAM, Running, run, without_settings};
use crate::proteins::fasta;

/// Embeddings wide enough that a part is far larger than everything else.
const WIDE: &str = "hidden=512";

fn job() -> JobFolder {
    JobFolder::new(fasta(61, 300, 20..100)).simulating(WIDE)
}

/// Starts the job under a limit on the size of any file, in units of 512 bytes.
fn start_limited(job: &JobFolder, blocks: u32) -> Running {
    let mut command = Command::new("sh");
    // The soft limit: it can be raised again.
    command.args(["-c", &format!("ulimit -S -f {blocks} && exec \"$0\" \"$@\""), PROGRAM]);
    command.args(job.command_into("results").get_args()).current_dir(job.path());
    without_settings(&mut command);
    Running::start(command.env("VIRNUCPRO_SIM", WIDE))
}

/// What can be seen is whole, committed or not.
fn assert_only_whole_parts(results: &Path, whole: &Outcome) {
    for entry in fs::read_dir(results.join("embeddings")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if !name.starts_with('.') {
            assert!(
                fs::read(entry.path()).unwrap() == whole.parts[&name],
                "`{name}` is visible but not whole"
            );
        }
    }
}

#[test]
fn a_file_size_limit_pauses_the_run_until_it_is_raised() {
    let job = job();
    let undisturbed = job.done_into("undisturbed");
    let mut run = start_limited(&job, 64);
    run.wait_for("disk full: writing is paused");
    let results = job.at("results");
    assert_eq!(segments_committed(&results), 0);
    assert_only_whole_parts(&results, &undisturbed);
    let process = Pid::from_raw(run.id() as i32);
    prlimit(process, Resource::Fsize, Rlimit { current: None, maximum: None }).unwrap();
    run.finish().expect(0).says(["there is room again: writing goes on"]);
    job.outcome("results").assert_same(&undisturbed, "after the limit was raised");
}

#[test]
fn a_run_that_waits_for_room_can_be_stopped_and_goes_on_later() {
    let job = job().set("restart.shutdown_grace_ms", 300);
    let undisturbed = job.done_into("undisturbed");
    let mut run = start_limited(&job, 64);
    run.wait_for("disk full: writing is paused");
    run.signal(Signal::TERM);
    run.finish().expect(75).says(["stopped by SIGTERM"]);
    job.run_into("results").expect(0);
    job.outcome("results").assert_same(&undisturbed, "after it was stopped for want of room");
}

/// A file system in memory, with an end; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None`, with the reason on standard output, where mounting is not allowed.
    fn mount(at: &Path, options: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(at.to_owned())),
            Ok(output) => {
                println!("skipped: no mount here: {}", String::from_utf8_lossy(&output.stderr).trim());
                None
            }
            Err(error) => {
                println!("skipped: no mount here: {error}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(std::thread::panicking() || unmounted.unwrap().success());
    }
}

#[test]
fn a_full_disk_pauses_the_run_until_there_is_room() {
    let job = job();
    let undisturbed = job.done_into("undisturbed");
    let disk = job.at("results");
    let Some(_disk) = SmallDisk::mount(&disk, "size=2m") else { return };
    // Room for some parts of 130 KB, not for all five.
    let ballast = disk.join("ballast");
    fs::write(&ballast, vec![1u8; 1_600_000]).unwrap();
    let mut run = job.start_into("results");
    run.wait_for("disk full: writing is paused");
    let committed = segments_committed(&disk);
    assert!((1..5).contains(&committed), "{committed} segments");
    assert_only_whole_parts(&disk, &undisturbed);
    fs::remove_file(&ballast).unwrap();
    run.finish().expect(0).says(["there is room again: writing goes on"]);
    job.outcome("results").assert_same(&undisturbed, "after room was made");
}

#[test]
fn an_output_folder_that_cannot_be_written_is_an_error() {
    let job = job();
    // A file in the way, whoever runs the tests.
    job.write("occupied", "");
    job.run_into("occupied/results").expect(1).says([
        "failed to create `",
        "occupied/results",
        "output.directory",
    ]);
    job.run_into("occupied").expect(2).says(["output.directory", "not a folder"]);

    // A superuser may write anywhere but on a read-only disk.
    let folder = job.at("read-only");
    let _disk;
    if rustix::process::geteuid().is_root() {
        match SmallDisk::mount(&folder, "size=1m,ro") {
            Some(disk) => _disk = disk,
            None => return,
        }
    } else {
        use std::os::unix::fs::PermissionsExt;
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o555)).unwrap();
    }
    let name = folder.display().to_string();
    job.run_into("read-only").expect(1).says(["failed to create `", &name, "a folder that you may write to"]);
    run(&mut job.command("plan")).expect(0);
}
