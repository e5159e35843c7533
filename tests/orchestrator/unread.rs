//! Whoever was to read standard error has stopped (`2>&1 | less`, a stalled ssh): the run goes on,
//! signals are heard, and the end comes.

use std::fs::File;
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::job::JobFolder;
use crate::outcome::{manifest, segments_committed};
use crate::process::{Running, program, run};
use crate::proteins::fasta;

const GRACE: Duration = Duration::from_secs(3);
/// What an end may take beyond the grace time: the patience with who reads nothing, and a busy machine.
const END_MAX: Duration = Duration::from_secs(10);

/// Eight segments, slow enough to be stopped in the middle, and a log of everything.
fn job() -> JobFolder {
    JobFolder::new(fasta(141, 500, 20..200))
        .set("restart.shutdown_grace_ms", GRACE.as_millis())
        .set("telemetry.log", "\"trace\"")
        .simulating("latency_us_per_batch=15000")
}

/// Writes until nothing more goes in. Returns how much that was.
fn fill(mut to: impl Write + AsFd) -> usize {
    let flags = fcntl_getfl(&to).unwrap();
    fcntl_setfl(&to, flags | OFlags::NONBLOCK).unwrap();
    let mut written = 0;
    for piece in [4096, 1] {
        loop {
            match to.write(&b".".repeat(piece)) {
                Ok(bytes) => written += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    fcntl_setfl(&to, flags).unwrap();
    written
}

/// A pipe that takes no byte more, and how many it holds.
fn full_pipe() -> (PipeReader, PipeWriter, usize) {
    let (reader, writer) = std::io::pipe().unwrap();
    let held = fill(&writer);
    (reader, writer, held)
}

/// A terminal that takes no byte more. Only its end in the program's hands is a terminal.
fn full_terminal() -> (OwnedFd, File) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let line = File::from(rustix::fs::open(&*name, flags, rustix::fs::Mode::empty()).unwrap());
    assert!(fill(&line) > 0);
    (master, line)
}

/// A run that is in the middle of things hears a signal and ends as ever.
#[track_caller]
fn is_stopped_in_order(job: &JobFolder, mut running: Running) {
    let results = job.at("results");
    running.wait_until("the first segment is committed", |_| segments_committed(&results) > 0);
    let asked = run(program(["status"]).arg(&results)).expect(0);
    assert!(asked.stdout.starts_with("running\n"), "{asked:?}");
    let signalled = Instant::now();
    running.signal(Signal::TERM);
    running.finish().expect(75);
    assert!(signalled.elapsed() < GRACE + END_MAX, "{:?}", signalled.elapsed());
    assert_eq!(manifest(&results).unwrap()["status"], "stopped");
    assert!(segments_committed(&results) < 8, "it was over already");
}

#[test]
fn a_run_that_nobody_reads_goes_on_and_hears_signals() {
    let job = job();
    let (_reader, writer, _) = full_pipe();
    let run = Running::start_unread(&mut job.command_into("results"), writer);
    is_stopped_in_order(&job, run);
    let log = job.log_of("results");
    assert!(log.contains("starting") && log.contains("stopped by SIGTERM"), "{log}");
}

#[test]
fn a_bar_on_a_terminal_that_takes_nothing_holds_nothing_up() {
    let job = job().set("telemetry.progress", "\"auto\"");
    let (_master, line) = full_terminal();
    let mut command = job.command_into("results");
    let run = Running::start_unread(command.env("TERM", "xterm"), line);
    is_stopped_in_order(&job, run);
}

#[test]
fn a_second_signal_is_heard_where_nobody_reads() {
    let job = job().simulating("load_ms=60000").set("restart.shutdown_grace_ms", 300_000);
    let (_reader, writer, _) = full_pipe();
    let mut run = Running::start_unread(&mut job.command_into("results"), writer);
    run.wait_until("workers", |run| run.workers().len() == 2);
    run.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(400));
    let signalled = Instant::now();
    run.signal(Signal::INT);
    run.finish();
    assert!(signalled.elapsed() < END_MAX, "{:?}", signalled.elapsed());
}

/// Everything that comes through a pipe, but the first `held` bytes.
fn read_on(mut reader: PipeReader, held: usize) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        String::from_utf8(bytes.split_off(held)).unwrap()
    })
}

#[test]
fn who_reads_again_is_told_everything_in_its_order() {
    let job = job();
    let results = job.at("results");
    let (reader, writer, held) = full_pipe();
    let mut run = Running::start_unread(&mut job.command_into("results"), writer);
    run.wait_until("the first segment is committed", |_| segments_committed(&results) > 0);
    let reading = read_on(reader, held);
    run.finish().expect(0);
    let text = reading.join().unwrap();
    // The summary stands there in words, and they come last.
    let (lines, words) = text.split_once("\ndone\n").unwrap();
    assert!(words.contains("\n  result ") && words.contains("\n  stages "), "{words}");
    // Threads may come to the one place and to the other in another order.
    let untimed = |line: &str| line.split_once(' ').unwrap().1.to_owned();
    let sorted = |mut lines: Vec<String>| {
        lines.sort();
        lines
    };
    let told: Vec<String> = lines.lines().map(untimed).collect();
    assert!(told[0].contains("starting"), "{told:?}");
    let log = job.log_of("results");
    let is_in_words = |line: &&str| line.contains("stage timing") || line.contains(" summary ");
    let logged: Vec<String> = log.lines().filter(|line| !is_in_words(line)).map(untimed).collect();
    assert_eq!(sorted(told), sorted(logged));
}

#[test]
fn what_found_no_room_is_counted() {
    const RECORDS: usize = actors::bounds::TEXTS + 50;
    // A line for each segment, more than may wait.
    let job = job().set("output.segment_sequences", 1).simulating("");
    job.write("proteins.fasta", fasta(142, RECORDS, 20..40));
    let results = job.at("results");
    let (reader, writer, held) = full_pipe();
    let mut run = Running::start_unread(&mut job.command_into("results"), writer);
    run.wait_until("more than may wait", |_| segments_committed(&results) >= RECORDS - 20);
    let reading = read_on(reader, held);
    run.finish().expect(0);
    let text = reading.join().unwrap();
    let seen = text.lines().filter(|line| line.contains("segment committed")).count();
    let told = text.lines().filter(|line| line.contains("left out of standard error"));
    let left_out: usize =
        told.map(|line| line.rsplit_once("lines=").unwrap().1.parse::<usize>().unwrap()).sum();
    assert!(left_out > 0 && seen + left_out >= RECORDS, "{seen} seen, {left_out} left out");
    assert!(text.contains("\ndone\n"), "{text}");
}
