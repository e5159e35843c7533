//! Too little memory, overflow, devices that come back: the answers that take a device's measure.

use crate::job::JobFolder;
use crate::proteins::fasta;

fn job() -> JobFolder {
    JobFolder::new(fasta(71, 600, 20..200))
}

#[test]
fn a_device_without_memory_gets_smaller_batches_and_run_json_remembers() {
    let job = job().set("devices.use", r#"["sim:1"]"#);
    let undisturbed = job.done_into("undisturbed");
    let job = job.simulating("oom_above_tokens=450");
    let finished = job.run_into("results").expect(0);
    let outcome = job.outcome("results");
    outcome.assert_same(&undisturbed, "small memory");
    let budget = outcome.run["device_token_budgets"]["sim:0"].as_u64().unwrap();
    assert!((200..=450).contains(&budget), "{}", outcome.run);
    let failures = finished.stderr.matches("out of memory").count();
    // Found by bisection and kept: without that, each of the 70 batches would fail.
    assert!((1..=12).contains(&failures), "{failures} failures:\n{}", finished.stderr);

    // The next session begins with it.
    std::fs::remove_file(job.at("results/embeddings/part-00003.parquet")).unwrap();
    let finished = job.run_into("results").expect(0);
    assert!(!finished.stderr.contains("out of memory"), "{}", finished.stderr);
    job.outcome("results").assert_same(&undisturbed, "resumed with a small memory");
}

#[test]
fn memory_pressure_shrinks_the_batches_before_one_fails() {
    let (finished, outcome) = job().recovers("memory_tokens=1020");
    let finished = finished.says(["token budget reduced"]);
    assert!(!finished.stderr.contains("out of memory"), "{}", finished.stderr);
    assert_eq!(outcome.restarts(), 0);
}

#[test]
fn sequences_that_overflow_are_repeated_in_fp32() {
    let faults = [3, 4, 250, 599].map(|ordinal| format!("fault=nan@ordinal:{ordinal},exact:false"));
    let (finished, outcome) = job().recovers(&faults.join(";"));
    assert_eq!(outcome.run["totals"]["failed"], 0);
    finished.says(["non-finite values in"]);
}

#[test]
fn a_device_that_fails_whatever_it_gets_is_started_again() {
    for kind in ["nan", "oom", "error"] {
        // Slow enough that the sick device gets something to fail.
        let program = format!("latency_us_per_batch=10000;fault={kind}@device:1,generation:0");
        let (finished, outcome) = job().recovers(&program);
        finished.says(["it fails whatever it gets"]);
        assert_eq!(outcome.restarts(), 1, "{kind}");
        assert_eq!(outcome.run["totals"]["failed"], 0, "{kind}");
    }
}

#[test]
fn the_only_device_that_fails_whatever_it_gets_condemns_nothing() {
    let job = job().set("devices.use", r#"["sim:1"]"#).set("restart.restarts_per_device_max", 2);
    let undisturbed = job.done_into("undisturbed");
    let job = job.simulating("fault=nan");
    job.run_into("results").expect(75).says(["all devices were lost", "it fails whatever it gets"]);
    assert_eq!(std::fs::read_dir(job.at("results/embeddings")).unwrap().count(), 0);
    let job = job.simulating("");
    job.run_into("results").expect(0);
    job.outcome("results").assert_same(&undisturbed, "after a sick device");
}

#[test]
fn a_retired_device_is_tried_again_and_taken_back() {
    let job = job().set("restart.restarts_per_device_max", 1).set("restart.readmit_ms", 150);
    // Generations 0 and 1 use up the restarts, 2 and 3 the first tries afterwards.
    let lost = [0, 1, 2, 3].map(|generation| format!("fault=lost@device:1,generation:{generation}"));
    let program = format!("latency_us_per_batch=25000;{}", lost.join(";"));
    let (finished, outcome) = job.recovers(&program);
    let finished = finished.says([
        "device retired device=\"sim:1\"",
        "retired device is tried again device=\"sim:1\"",
        "device works again and is taken back device=\"sim:1\"",
    ]);
    assert_eq!(finished.stderr.matches("device retired").count(), 3, "{}", finished.stderr);
    assert_eq!(outcome.restarts(), 4);
}

#[test]
fn a_run_whose_devices_are_all_retired_does_not_wait_for_them() {
    let job = job().set("restart.restarts_per_device_max", 1).set("restart.readmit_ms", 3_600_000);
    let finished = job.simulating("fault=lost").run_into("results").expect(75);
    finished.says(["all devices were lost"]);
}
