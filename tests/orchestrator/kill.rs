//! `kill -9` at random moments, then the same command: the bytes of an undisturbed run.

use std::path::Path;
use std::time::Duration;

use crate::job::JobFolder;
use crate::outcome::{Outcome, committed_files, segments_committed};
use crate::process::wait_until_gone;
use crate::proteins::{Random, fasta};

/// Runs at a time: they mostly wait for simulated devices and for the disk.
const AT_ONCE: u64 = 4;

/// What happened in some disturbed runs; a test that killed nothing has shown nothing.
#[derive(Default)]
struct Toll {
    orchestrators: u64,
    workers: u64,
    /// Kills that came when some but not all segments were committed.
    halfway: u64,
}

/// Kills the run, or workers of it, at a random moment, perhaps repeatedly; returns its outcome.
fn disturbed(job: &JobFolder, random: &mut Random, usual: Duration, toll: &mut Toll) -> Outcome {
    let results = job.at("results");
    let segments = job.outcome("undisturbed").parts.len();
    let (mut kills, wanted) = (0, random.within(1..4));
    while kills < wanted {
        let mut run = job.start_into("results");
        run.run_for(usual.mul_f64(random.within(0..1000) as f64 / 1000.0));
        if run.has_ended() {
            if kills > 0 {
                break;
            }
            // Too late to disturb it: once more from the start.
            std::fs::remove_dir_all(&results).unwrap();
            continue;
        }
        kills += 1;
        let workers = run.workers();
        if random.within(0..10) < 4 && !workers.is_empty() {
            let victims = random.within(1..3);
            for _ in 0..victims {
                workers[random.within(0..workers.len() as u64) as usize].kill();
                toll.workers += 1;
            }
            run.finish().expect(0);
        } else {
            let committed = segments_committed(&results);
            run.kill();
            toll.orchestrators += 1;
            toll.halfway += u64::from(committed > 0 && committed < segments);
            wait_until_gone(&workers);
        }
    }
    // What is committed now stays as it is: the next run does not write it again.
    let committed = committed_files(&results);
    job.run_into("results").expect(0);
    let after = committed_files(&results);
    for (part, identity) in &committed {
        assert_eq!(after.get(part), Some(identity), "`{part}` was written again");
    }
    job.outcome("results")
}

fn kill_many(name: &str, runs: u64, make: impl Fn() -> JobFolder + Sync) {
    let mut random = Random::from_environment(name);
    let seeds: Vec<u64> = (0..AT_ONCE).map(|_| random.next()).collect();
    let toll = std::thread::scope(|scope| {
        let threads = seeds.iter().enumerate().map(|(thread, &seed)| {
            let make = &make;
            scope.spawn(move || {
                let mut random = Random::new(seed);
                let mut toll = Toll::default();
                let job = make();
                let usual = job.run_into("undisturbed").expect(0).elapsed;
                let undisturbed = job.outcome("undisturbed");
                for round in (thread as u64..runs).step_by(AT_ONCE as usize) {
                    let results = job.at("results");
                    let _ = std::fs::remove_dir_all(&results);
                    let outcome = disturbed(&job, &mut random, usual, &mut toll);
                    undisturbed.assert_same(&outcome, &format!("{name}, thread {thread}, round {round}"));
                    assert!(leftovers(&results).is_empty(), "{:?}", leftovers(&results));
                }
                toll
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).fold(Toll::default(), |sum, toll| Toll {
            orchestrators: sum.orchestrators + toll.orchestrators,
            workers: sum.workers + toll.workers,
            halfway: sum.halfway + toll.halfway,
        })
    });
    println!(
        "{name}: killed {} runs ({} halfway) and {} workers",
        toll.orchestrators, toll.halfway, toll.workers
    );
    assert!(toll.orchestrators + toll.workers >= runs);
    assert!(toll.orchestrators >= runs / 3 && toll.workers >= runs / 10 && toll.halfway >= runs / 10);
}

/// Temporary files that nobody will ever rename.
fn leftovers(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for folder in [folder.to_owned(), folder.join("embeddings"), folder.join(".state")] {
        let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        found.extend(
            names.map(|name| name.to_string_lossy().into_owned()).filter(|name| name.ends_with(".tmp")),
        );
    }
    found
}

#[test]
fn fifty_killed_runs_end_in_the_bytes_of_an_undisturbed_one() {
    kill_many("kill -9 on simulated devices", 50, || {
        JobFolder::new(fasta(7, 1000, 20..200))
            .set("devices.use", r#"["sim:3"]"#)
            .simulating("latency_us_per_batch=2000;load_ms=5")
    });
}

#[test]
fn killed_runs_on_the_cpu_end_in_the_bytes_of_an_undisturbed_one() {
    kill_many("kill -9 on the CPU", 8, || {
        JobFolder::new(fasta(8, 100, 20..80)).on_cpu().set("output.segment_sequences", 20)
    });
}
