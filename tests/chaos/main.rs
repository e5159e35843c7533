//! Chaos: runs of the real executable under faults drawn from a seed, resumed until they are done, must leave
//! what an undisturbed run leaves.
//!
//! [`schedule`] draws, [`session`] carries out one start of the program and judges how it ended, [`trial`] strings
//! sessions together and judges the folder, [`comparison`] the result. `CHAOS_SEEDS=2000` tries more seeds,
//! `CHAOS_SEED=17` one alone, with its schedule printed.

#![expect(clippy::unwrap_used, reason = "tests")]

mod comparison;
mod damage;
mod input;
#[expect(dead_code, reason = "the orchestrator's tests use the rest")]
#[path = "../orchestrator/job.rs"]
mod job;
#[expect(dead_code, reason = "the orchestrator's tests use the rest")]
#[path = "../orchestrator/outcome.rs"]
mod outcome;
#[expect(dead_code, reason = "the orchestrator's tests use the rest")]
#[path = "../orchestrator/process.rs"]
mod process;
#[expect(dead_code, reason = "the orchestrator's tests use the rest")]
#[path = "../orchestrator/proteins.rs"]
mod proteins;
mod refusals;
mod schedule;
mod session;
mod toll;
mod trial;
mod watching;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::input::Input;
use crate::schedule::Schedule;
use crate::toll::Toll;

/// Seeds of an ordinary `cargo test`: enough for each kind of fault to strike a few times.
const SEEDS: u64 = 200;
/// Trials at a time: they mostly wait for simulated devices and for the disk.
const AT_ONCE: usize = 3;
/// More failures than these tell nothing new.
const FAILURES_MAX: usize = 5;
/// How often each kind of fault must have struck in so many trials; less shows nothing.
const STRUCK_MIN: u64 = 2;
/// Seeds tried beyond [`SEEDS`] while a kind has struck too rarely: on a busy machine many faults come too late.
const SEEDS_MORE: u64 = 100;

fn number_from(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}?")))
}

#[test]
fn runs_under_any_faults_end_in_the_result_of_an_undisturbed_one() {
    let alone = number_from("CHAOS_SEED");
    let seeds = match alone {
        Some(seed) => seed..seed + 1,
        None => 0..number_from("CHAOS_SEEDS").unwrap_or(SEEDS),
    };
    let must_strike = alone.is_none() && seeds.end >= SEEDS;
    let started = Instant::now();
    let inputs = Input::all();
    let next = AtomicU64::new(seeds.start);
    let toll = Mutex::new(Toll::default());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let is_wanted = seeds.contains(&seed)
                        || must_strike
                            && seed < seeds.end + SEEDS_MORE
                            && toll.lock().unwrap().lacks(STRUCK_MIN);
                    if !is_wanted || failures.lock().unwrap().len() >= FAILURES_MAX {
                        return;
                    }
                    let schedule = Schedule::draw(seed, &inputs);
                    if alone.is_some() {
                        println!("{schedule}");
                    }
                    let mut own = Toll::default();
                    if let Err(failure) = trial::run(&schedule, &inputs, &mut own) {
                        println!("{failure}");
                        failures.lock().unwrap().push(seed);
                    }
                    toll.lock().unwrap().add(&own);
                }
            });
        }
    });
    let (toll, failures) = (toll.into_inner().unwrap(), failures.into_inner().unwrap());
    println!("chaos: {toll}, {:.0} s", started.elapsed().as_secs_f64());
    if !failures.is_empty() {
        // Their folders stay.
        std::mem::forget(inputs);
        panic!("failed seeds: {failures:?}");
    }
    if must_strike {
        let rare = toll.rarer_than(STRUCK_MIN);
        assert!(rare.is_empty(), "struck less than {STRUCK_MIN} times: {rare:?}");
    }
}
