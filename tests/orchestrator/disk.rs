//! No room, no right to write: the run waits or says so, and nothing half-written is ever visible.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};

use crate::job::JobFolder;
use crate::outcome::{Outcome, computed_so_far, segments_committed, taken_from_journal};
use crate::process::{PROGRAM, ProcessIdentity, Running, program, run, without_settings};
use crate::proteins::fasta;

/// Embeddings wide enough that a part is far larger than everything else.
const WIDE: &str = "hidden=512";

fn job() -> JobFolder {
    JobFolder::new(fasta(61, 300, 20..100)).simulating(WIDE)
}

/// Of one device: it stands still when some of some twenty batches are computed, one or two of five segments, until
/// its worker is killed. What a test does meanwhile happens between two commits, however slow the machine is.
const STANDS_STILL: &str = "hidden=512;fault=hang@generation:0,batch:8";
const ONE_DEVICE: &str = r#"["sim:1"]"#;

/// Ends the standstill: the next generation computes the rest.
fn go_on(run: &Running) {
    run.workers().into_iter().for_each(ProcessIdentity::kill);
}

/// Starts the job under a limit on the size of any file, in units of 512 bytes.
fn start_limited(job: &JobFolder, blocks: u32) -> Running {
    start_limited_with(job, blocks, "")
}

/// As [`start_limited`], with faults of the orchestrator.
fn start_limited_with(job: &JobFolder, blocks: u32, faults: &str) -> Running {
    let mut command = Command::new("sh");
    // The soft limit: it can be raised again.
    command.args(["-c", &format!("ulimit -S -f {blocks} && exec \"$0\" \"$@\""), PROGRAM]);
    let unlimited = job.command_into("results");
    command.args(unlimited.get_args()).current_dir(job.path());
    without_settings(&mut command);
    command.envs(unlimited.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Running::start(command.env("VIRNUCPRO_FAULTS", faults))
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
    run.wait_for("file size limit reached: writing is paused");
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
    run.wait_for("file size limit reached: writing is paused");
    run.signal(Signal::TERM);
    run.finish().expect(75).says(["stopped by SIGTERM"]);
    job.run_into("results").expect(0);
    job.outcome("results").assert_same(&undisturbed, "after it was stopped for want of room");
}

#[test]
fn a_part_of_the_program_that_panics_while_there_is_no_room_ends_the_run_resumable() {
    let job = job();
    let undisturbed = job.done_into("undisturbed");
    // The third segment, while the first waits for room.
    let run = start_limited_with(&job, 64, "encoder:2=panic");
    run.finish().expect(75).says(["writing is paused", "the writer failed"]);
    // Whenever that is: somebody asks until it has failed.
    let mut run = start_limited_with(&job, 64, "supervisor:60=panic");
    run.wait_for("file size limit reached: writing is paused");
    while !run.has_ended() {
        crate::process::run(program(["checkpoint"]).arg(job.at("results")));
    }
    run.finish().expect(75).says(["the supervisor failed"]);
    job.run_into("results").expect(0);
    job.outcome("results").assert_same(&undisturbed, "after panics without room");
}

#[test]
fn a_journal_that_found_no_room_for_a_while_is_whole_after_a_stop() {
    let job = job().set("output.segment_sequences", 1000);
    let undisturbed = job.done_into("undisturbed");
    // The session cannot end by itself: one sequence holds up whoever gets it.
    let job = job
        .set("output.journal_ms", 0)
        .set("restart.shutdown_grace_ms", 300)
        .simulating("hidden=512;latency_us_per_batch=50000;fault=hang@ordinal:155");
    let mut run = start_limited(&job, 64);
    run.wait_for("journal is not kept");
    let process = Pid::from_raw(run.id() as i32);
    prlimit(process, Resource::Fsize, Rlimit { current: None, maximum: None }).unwrap();
    let computed = || computed_so_far(&job.at("results"));
    run.wait_until("most is computed", |_| computed() > 250);
    let kept = computed();
    run.signal(Signal::TERM);
    run.finish().expect(75).says(["stopped by SIGTERM"]);
    assert_eq!(segments_committed(&job.at("results")), 0);
    let job = job.simulating(WIDE);
    let finished = job.run_into("results").expect(0);
    let taken = taken_from_journal(&finished.stderr);
    assert!(taken >= kept, "{taken} of {kept} kept");
    job.outcome("results").assert_same(&undisturbed, "after the journal found no room for a while");
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
fn a_stop_for_want_of_room_is_told_as_that_where_run_json_cannot_take_it() {
    let job = job().set("restart.shutdown_grace_ms", 300);
    let undisturbed = job.done_into("undisturbed");
    let disk = job.at("results");
    let mut run = start_limited(&job, 64);
    run.wait_for("file size limit reached: writing is paused");
    // From now on nothing can become longer than a line or two.
    let process = Pid::from_raw(run.id() as i32);
    prlimit(process, Resource::Fsize, Rlimit { current: Some(512), maximum: None }).unwrap();
    run.signal(Signal::TERM);
    run.finish().expect(75).says(["stopped by SIGTERM", "the end of the session could not be written down"]);
    assert_eq!(crate::outcome::manifest(&disk).unwrap()["status"], "running");
    let ask = |words: &[&str]| crate::process::run(program(words).arg(&disk));
    let told: serde_json::Value = serde_json::from_str(&ask(&["status", "--json"]).expect(0).stdout).unwrap();
    assert_eq!(
        (&told["status"], &told["recorded"], &told["live"]),
        (&"stopped".into(), &"stopped".into(), &false.into())
    );
    let reason = told["reason"].as_str().unwrap();
    for words in ["stopped by SIGTERM; run.json lacks it: ", "run.json", "File too large"] {
        assert!(reason.contains(words), "{words}: {reason}");
    }
    let words = ask(&["status"]).expect(0).stdout;
    assert!(words.starts_with("stopped; the same command goes on (stopped by SIGTERM; "), "{words}");
    assert!(ask(&["verify"]).expect(4).stdout.contains("its status is stopped: stopped by SIGTERM"));
    let finished = job.run_into("results").expect(0);
    assert!(!finished.stderr.contains("taken over"), "nobody died: {}", finished.stderr);
    job.outcome("results").assert_same(&undisturbed, "after a stop for want of room");
    assert!(fs::read(disk.join(".state/lock")).unwrap().is_empty());
}

#[test]
fn a_run_that_has_no_room_to_begin_is_stopped_at_once() {
    let job = job();
    let mut run = start_limited(&job, 2);
    run.wait_for("file size limit reached: writing is paused");
    run.signal(Signal::TERM);
    run.finish()
        .expect(75)
        .says(["stopped by SIGTERM before the first batch; the same command starts again"]);
    assert!(!job.at("results/run.json").exists());
    job.run_into("results").expect(0);
}

/// Most records cannot be used and have long ids: `failed.tsv`, which only the end of a run writes, is larger
/// than any file before it.
fn job_with_a_long_list() -> JobFolder {
    let records = fasta(62, 300, 20..100).replace("\n>", "\n\n>");
    let records = records.split("\n\n").enumerate().map(|(number, record)| {
        let bad = || format!(">bad{number}{}\nMKV1\n", "x".repeat(900));
        if number % 6 == 0 { format!("{record}\n") } else { bad() }
    });
    JobFolder::new(records.collect::<String>()).set("input.on_bad_record", "skip").simulating(WIDE)
}

#[test]
fn what_the_end_of_a_run_writes_waits_for_room_too() {
    let job = job_with_a_long_list();
    job.run_into("undisturbed").expect(3);
    let undisturbed = job.outcome("undisturbed");
    let results = job.at("results");
    for signalled in [false, true] {
        let _ = fs::remove_dir_all(&results);
        let mut run = start_limited(&job, 256);
        run.wait_for("file size limit reached: writing is paused");
        let manifest = crate::outcome::manifest(&results).unwrap();
        assert_eq!((segments_committed(&results), &manifest["status"]), (5, &"running".into()));
        if signalled {
            run.signal(Signal::TERM);
            run.finish().expect(75).says([
                "stopped by SIGTERM before the end of the run could be written down",
                "300 of 300 records are committed; to go on: virnucpro-orch run",
            ]);
            job.run_into("results").expect(3);
        } else {
            let process = Pid::from_raw(run.id() as i32);
            prlimit(process, Resource::Fsize, Rlimit { current: None, maximum: None }).unwrap();
            run.finish().expect(3).says(["there is room again: writing goes on"]);
        }
        job.outcome("results").assert_same(&undisturbed, "after the end had waited");
    }
}

#[test]
fn a_disk_that_fills_after_the_last_commit_pauses_the_end_of_the_run() {
    let job = job_with_a_long_list();
    job.run_into("undisturbed").expect(3);
    let undisturbed = job.outcome("undisturbed");
    let disk = job.at("results");
    let Some(_disk) = SmallDisk::mount(&disk, "size=4m") else { return };
    // Room for all but half of the list that comes last.
    let mut used = 0;
    for folder in ["undisturbed", "undisturbed/embeddings", "undisturbed/.state"] {
        let files = fs::read_dir(job.at(folder)).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
        used += files.filter(|file| file.is_file()).map(|file| file.len().div_ceil(4096) * 4096).sum::<u64>();
    }
    let ballast = disk.join("ballast");
    let bytes = (4 << 20) - used as usize + undisturbed.failed.len() / 2;
    fs::write(&ballast, vec![1u8; bytes]).unwrap();
    let mut run = job.start_into("results");
    run.wait_for("disk full: writing is paused");
    assert_eq!(segments_committed(&disk), 5);
    fs::remove_file(&ballast).unwrap();
    run.finish().expect(3).says(["there is room again: writing goes on"]);
    job.outcome("results").assert_same(&undisturbed, "after room was made");
}

/// A folder that cannot be written to by anybody, through a mount of its own; gone when dropped.
///
/// A file system with files open for writing, as the log of a run is, cannot be remounted; a view of one of
/// its folders can.
struct ReadOnlyView(PathBuf);

impl ReadOnlyView {
    /// `None`, with the reason on standard output, where mounting is not allowed.
    fn mount(at: &Path) -> Option<Self> {
        let mount = |arguments: &[&str]| Command::new("mount").args(arguments).arg(at).output();
        let bound = Command::new("mount").arg("--bind").args([at, at]).output();
        let view = match bound {
            Ok(output) if output.status.success() => Self(at.to_owned()),
            Ok(output) => {
                println!("skipped: no mount here: {}", String::from_utf8_lossy(&output.stderr).trim());
                return None;
            }
            Err(error) => {
                println!("skipped: no mount here: {error}");
                return None;
            }
        };
        // It is refused while a file is open for writing that was opened since the folder was bound.
        let mut last_words = String::new();
        for _ in 0..100 {
            let remounted = mount(&["-o", "remount,bind,ro"]).unwrap();
            if remounted.status.success() {
                return Some(view);
            }
            last_words = String::from_utf8_lossy(&remounted.stderr).into_owned();
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{last_words}");
    }
}

impl Drop for ReadOnlyView {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(std::thread::panicking() || unmounted.unwrap().success());
    }
}

#[test]
fn a_disk_that_turns_read_only_pauses_the_run_until_it_is_writable() {
    let undisturbed = job().done_into("undisturbed");
    // The parts, then the folder of the lists: in both the thread waits.
    for folder in ["embeddings", ".state"] {
        let job =
            job().set("devices.use", ONE_DEVICE).simulating(&format!("{STANDS_STILL};fault=nan@ordinal:299"));
        let results = job.at("results");
        let mut run = job.start_into("results");
        run.wait_until("a segment is committed", |_| segments_committed(&results) > 0);
        let Some(view) = ReadOnlyView::mount(&results.join(folder)) else { return };
        go_on(&run);
        run.wait_for("file system is read-only: writing is paused, remount it");
        if folder == "embeddings" {
            // Long enough for another try, which is not told again.
            let paused = Instant::now();
            run.wait_until("another try", |_| paused.elapsed() > Duration::from_millis(2500));
        }
        drop(view);
        let finished = run.finish().expect(3).says(["the folder can be written to again: writing goes on"]);
        assert_eq!(finished.stderr.matches("writing is paused").count(), 1, "{}", finished.stderr);
        assert!(!finished.stderr.contains("disk full"), "{}", finished.stderr);
        let outcome = job.outcome("results");
        assert_eq!(outcome.failed_records().len(), 1);
        for (name, bytes) in undisturbed.parts.iter().filter(|(name, _)| *name != "part-00004.parquet") {
            assert!(bytes == &outcome.parts[name], "{name}");
        }
    }
}

/// A user without rights, for tests that run as the superuser, who may write anywhere.
const NOBODY: u32 = 65_534;

/// Lets another user at a folder of ours.
fn give_to_nobody(path: &Path) {
    use std::os::unix::fs::{PermissionsExt, chown};
    if rustix::process::geteuid().is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_right_that_is_taken_away_pauses_the_run_until_it_is_given_back() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let job = job();
    let undisturbed = job.done_into("undisturbed");
    let job = job.set("devices.use", ONE_DEVICE).simulating(STANDS_STILL);
    fs::create_dir(job.at("results")).unwrap();
    give_to_nobody(job.path());
    give_to_nobody(&job.at("results"));
    let mut command = job.command_into("results");
    if rustix::process::geteuid().is_root() {
        // The program itself must be within that user's reach.
        let mut reaches = Command::new(PROGRAM);
        if let Err(error) = reaches.arg("--version").uid(NOBODY).gid(NOBODY).output() {
            println!("skipped: another user cannot start `{PROGRAM}`: {error}");
            return;
        }
        command.uid(NOBODY).gid(NOBODY);
    }
    let mut run = Running::start(&mut command);
    let results = job.at("results");
    run.wait_until("a segment is committed", |_| segments_committed(&results) > 0);
    let embeddings = results.join("embeddings");
    fs::set_permissions(&embeddings, fs::Permissions::from_mode(0o555)).unwrap();
    go_on(&run);
    run.wait_for("not allowed to write: writing is paused, give back the right");
    fs::set_permissions(&embeddings, fs::Permissions::from_mode(0o755)).unwrap();
    run.finish().expect(0).says(["the folder can be written to again: writing goes on"]);
    job.outcome("results").assert_same(&undisturbed, "after the right was given back");
}

#[test]
fn a_result_folder_that_is_taken_away_ends_the_run_and_the_next_makes_it_again() {
    let job = job().set("devices.use", ONE_DEVICE);
    let undisturbed = job.done_into("undisturbed");
    for (taken, reported) in [
        ("results/embeddings", Some("committed part is damaged and will be computed again")),
        // A list is written there; what it lists is known from the manifest.
        ("results/.state", None),
        // The manifest is gone with it: nothing is known of the run before.
        ("results", None),
    ] {
        let _ = fs::remove_dir_all(job.at("results"));
        let _ = fs::remove_dir_all(job.at("taken"));
        let failing = if taken.ends_with(".state") { ";fault=nan@ordinal:299" } else { "" };
        let mut command = job.command_into("results");
        command.env("VIRNUCPRO_SIM", format!("{STANDS_STILL}{failing}"));
        let mut run = Running::start(&mut command);
        let results = job.at("results");
        run.wait_until("a segment is committed", |_| segments_committed(&results) > 0);
        fs::rename(job.at(taken), job.at("taken")).unwrap();
        go_on(&run);
        let ended = run.finish().expect(75);
        ended.says([
            "No such file or directory",
            "what is gone is computed again",
            "to go on: virnucpro-orch",
        ]);
        let finished = job.run_into("results").expect(0);
        assert!(reported.is_none_or(|text| finished.stderr.contains(text)), "{}", finished.stderr);
        job.outcome("results").assert_same(&undisturbed, taken);
    }
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
