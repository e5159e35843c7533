//! What is kept of a segment that is not complete: sessions shorter than a segment get somewhere.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::job::JobFolder;
use crate::outcome::{computed_so_far, manifest, segments_committed, taken_from_journal};
use crate::process::Running;
use crate::proteins::fasta;

const SEQUENCES: usize = 600;

/// One segment of some 70 batches, two seconds of work on two devices.
fn job() -> JobFolder {
    JobFolder::new(fasta(41, SEQUENCES, 20..200))
        .set("output.segment_sequences", 1000)
        .set("restart.shutdown_grace_ms", 500)
        .simulating("latency_us_per_batch=60000")
}

fn journal(job: &JobFolder) -> std::path::PathBuf {
    job.at("results/.state/journal-00000")
}

fn bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

#[test]
fn sessions_shorter_than_a_segment_lose_only_what_is_in_flight() {
    let undisturbed = job().simulating("").done_into("undisturbed");
    let mut job = job();
    let mut sessions = 0;
    let finished = loop {
        sessions += 1;
        assert!(sessions < 60, "the sessions get nowhere");
        // The first session cannot end by itself: one sequence holds up whoever gets it.
        let held_up = if sessions == 1 { ";fault=hang@ordinal:555" } else { "" };
        job = job.simulating(&format!("latency_us_per_batch=60000{held_up}"));
        let was_kept = journal(&job).exists();
        let (mut run, began) = (job.start_into("results"), Instant::now());
        // However long a slow machine takes to start it, and to compute something.
        while !run.has_ended() && run.stderr().matches(" ready ").count() < 2 {
            assert!(began.elapsed() < Duration::from_secs(300), "not ready:\n{}", run.stderr());
            std::thread::sleep(Duration::from_millis(3));
        }
        std::thread::sleep(Duration::from_millis(600));
        run.signal(Signal::USR1);
        let finished = run.finish();
        if finished.code() == 0 {
            break finished;
        }
        let finished = finished.expect(75);
        assert_eq!(segments_committed(&job.at("results")), 0);
        if was_kept {
            finished.says(["taken from the journal"]);
        }
    };
    assert!(sessions > 1, "one session was enough:\n{}", finished.stderr);
    job.outcome("results").assert_same(&undisturbed, "after many short sessions");
    assert!(!journal(&job).exists());
    // No work was done twice, but for what was in flight: two batches for each device and session.
    let run = manifest(&job.at("results")).unwrap();
    let computed: u64 =
        run["sessions"].as_array().unwrap().iter().map(|session| session["tokens"].as_u64().unwrap()).sum();
    let needed = run["totals"]["residues"].as_u64().unwrap() + 2 * SEQUENCES as u64;
    assert!(computed >= needed && computed <= needed + sessions * 4 * 1000, "{computed} for {needed}");
}

#[test]
fn killed_runs_go_on_from_the_journal() {
    let undisturbed = job().simulating("").done_into("undisturbed");
    let job = job().set("output.journal_ms", 0);
    let mut kept = 0;
    for session in 0..3 {
        let mut run = job.start_into("results");
        run.wait_until("more is kept", |_| bytes(&journal(&job)) > kept + 20_000);
        kept = bytes(&journal(&job));
        run.kill();
        assert_eq!(segments_committed(&job.at("results")), 0, "session {session}");
    }
    job.run_into("results").expect(0).says(["taken from the journal"]);
    job.outcome("results").assert_same(&undisturbed, "after kill -9");
    assert!(!journal(&job).exists());
}

#[test]
fn a_damaged_journal_costs_time_and_nothing_else() {
    let undisturbed = job().simulating("").done_into("undisturbed");
    let job = job().set("output.journal_ms", 0);
    let mut run = job.start_into("results");
    run.wait_until("something is kept", |_| bytes(&journal(&job)) > 20_000);
    run.kill();
    let mut content = std::fs::read(journal(&job)).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(journal(&job), content).unwrap();
    job.run_into("results").expect(0);
    job.outcome("results").assert_same(&undisturbed, "after a damaged journal");

    // Nor does one that is not a journal at all.
    job.start_into("other").kill();
    std::fs::create_dir_all(job.at("other/.state")).unwrap();
    std::fs::write(job.at("other/.state/journal-00000"), "not a journal").unwrap();
    job.run_into("other").expect(0);
    job.outcome("other").assert_same(&undisturbed, "after a foreign journal");
}

#[test]
fn a_fast_run_writes_no_journal_and_fresh_deletes_one() {
    let job = job().set("output.journal_ms", 0);
    let mut run = job.start_into("results");
    run.wait_until("something is kept", |_| bytes(&journal(&job)) > 20_000);
    run.kill();
    // It stands still before the segment is complete: one sequence holds up whoever gets it.
    let job = job.simulating("fault=hang@ordinal:555").set("output.journal_ms", 24 * 60 * 60 * 1000);
    let mut run = Running::start(job.command_into("results").arg("--fresh"));
    run.wait_until("most is computed", |_| computed_so_far(&job.at("results")) > 500);
    assert!(!journal(&job).exists());
    assert!(!run.stderr().contains("taken from the journal"), "{}", run.stderr());
    run.kill();
    let finished = job.simulating("").run_into("results").expect(0);
    assert!(!finished.stderr.contains("taken from the journal"), "{}", finished.stderr);
}

#[test]
fn a_stop_waits_for_what_the_writer_was_told_before() {
    let undisturbed = job().simulating("").done_into("undisturbed");
    let job = job();
    let mut command = job.command_into("results");
    // Batches come faster than the writer takes them.
    let mut run = Running::start(command.env("VIRNUCPRO_FAULTS", "writer:0=delay-60"));
    run.wait_until("a third is computed", |_| computed_so_far(&job.at("results")) > 200);
    run.signal(Signal::TERM);
    run.finish().expect(75).says(["stopped by SIGTERM"]);
    let computed = computed_so_far(&job.at("results"));
    let job = job.simulating("");
    let taken = taken_from_journal(&job.run_into("results").expect(0).stderr);
    assert!(computed > 200 && taken >= computed, "{taken} of {computed} kept");
    job.outcome("results").assert_same(&undisturbed, "after the writer lagged behind");
}

#[test]
fn poison_and_lost_devices_do_not_confuse_the_journal() {
    let poison = "fault=nan@ordinal:17;fault=crash@ordinal:400";
    let clean = job().simulating(poison);
    clean.run_into("undisturbed").expect(3);
    let undisturbed = clean.outcome("undisturbed");
    let disturbed = format!("latency_us_per_batch=30000;crash_rate=0.05;seed=3;{poison}");
    let mut job = clean.set("output.journal_ms", 0);
    let mut sessions = 0;
    loop {
        sessions += 1;
        // The first session cannot end by itself: one sequence holds up whoever gets it.
        job = match sessions {
            1 => job.simulating(&format!("{disturbed};fault=hang@ordinal:555")),
            _ => job.simulating(&disturbed),
        };
        let kept = bytes(&journal(&job));
        let (mut run, began) = (job.start_into("results"), Instant::now());
        // Each session gets somewhere, however slow the machine is; the last one gets to the end.
        while !run.has_ended() && bytes(&journal(&job)) < kept + 15_000 {
            assert!(began.elapsed() < Duration::from_secs(300), "nothing is kept:\n{}", run.stderr());
            std::thread::sleep(Duration::from_millis(3));
        }
        run.signal(Signal::TERM);
        let finished = run.finish();
        if finished.code() == 3 {
            break;
        }
        finished.expect(75);
        assert!(sessions < 30, "the sessions get nowhere");
    }
    assert!(sessions > 1);
    let mut outcome = job.outcome("results");
    // The reason is that of the last of four tries, and any of them may meet one of the crashes by chance.
    let crash = "device failed: worker ended: signal: 6";
    let (found, expected) = (outcome.failed_records(), undisturbed.failed_records());
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found[..5], expected[..5]);
        assert!(found[5] == expected[5] || found[5].starts_with(crash), "{found:?}");
    }
    outcome.failed.clone_from(&undisturbed.failed);
    outcome.assert_same(&undisturbed, "poison and crashes");
}

#[test]
fn the_loss_of_all_devices_keeps_what_they_computed() {
    let undisturbed = job().simulating("").done_into("undisturbed");
    let job = job()
        .set("restart.restarts_per_device_max", 0)
        .simulating("latency_us_per_batch=5000;fault=exit@batch:15");
    job.run_into("results").expect(75).says(["all devices were lost"]);
    assert!(bytes(&journal(&job)) > 20_000, "{}", bytes(&journal(&job)));
    let job = job.simulating("");
    job.run_into("results").expect(0).says(["taken from the journal"]);
    job.outcome("results").assert_same(&undisturbed, "after all devices were lost");
}
