//! The result does not depend on the devices: how many, how fast, how often they crash.

use kernels::{Batch, Engine, EngineOptions, Pooling, Precision, Progress, SimEngine, SimProgram};

use crate::golden::bits;
use crate::job::JobFolder;
use crate::proteins::{Random, fasta, records};

#[test]
fn any_number_of_devices_gives_the_same_bytes() {
    let job = |devices: usize| {
        JobFolder::new(fasta(1, 500, 20..200))
            .set("devices.use", format!(r#"["sim:{devices}"]"#))
            .simulating("latency_us_per_batch=300")
    };
    let one = job(1).done_into("results");
    assert_eq!(one.parts.len(), 8);
    for devices in [3, 8] {
        let many = job(devices).done_into("results");
        many.assert_same(&one, &format!("sim:{devices}"));
        assert_eq!(many.run["devices"].as_array().unwrap().len(), devices);
    }
}

#[test]
fn each_row_is_the_vector_of_its_own_sequence() {
    let text = fasta(2, 300, 1..300);
    let outcome = JobFolder::new(&text).set("devices.use", r#"["sim:3"]"#).done_into("results");
    let options = EngineOptions { layer: 0, pooling: Pooling::Mean, precision: Precision::Fp32, threads: 1 };
    let mut engine = SimEngine::load(SimProgram::default(), 0, 0, options).unwrap();
    let rows = outcome.rows();
    let records = records(&text);
    assert_eq!(rows.len(), records.len());
    for (number, (row, (id, residues))) in rows.iter().zip(&records).enumerate() {
        let mut batch = Batch::default();
        batch.push(0, residues.as_bytes(), residues.len() as u32);
        let expected = engine.run(&batch, &Progress::default()).unwrap().values;
        assert_eq!((row.index, &row.id, row.length as usize), (number as u64, id, residues.len()));
        assert_eq!(bits(&row.embedding), bits(&expected), "{id}");
    }
}

#[test]
fn random_speeds_and_crashes_change_no_byte() {
    let text = fasta(3, 400, 20..200);
    let undisturbed = JobFolder::new(&text).done_into("results");
    let mut random = Random::from_environment("random speeds and crashes");
    for round in 0..6 {
        let devices = random.within(1..5);
        let program = format!(
            "latency_us_per_batch={};latency_ns_per_token={};slow={}@device:0;slow=7@batch:3;crash_rate=0.0{};seed={}",
            random.within(0..3000),
            random.within(0..2000),
            random.within(1..6),
            random.within(1..9),
            random.next(),
        );
        println!("round {round}: sim:{devices}, {program}");
        let job = JobFolder::new(&text).simulating(&program);
        let outcome = job.set("devices.use", format!(r#"["sim:{devices}"]"#)).done_into("results");
        outcome.assert_same(&undisturbed, &program);
    }
}

#[test]
fn batch_size_and_window_change_no_value() {
    let text = fasta(4, 200, 20..200);
    let first = JobFolder::new(&text).done_into("results");
    for (tokens, window) in [(64, 1), (300, 7), (16_384, 2000)] {
        let job =
            JobFolder::new(&text).set("packing.token_budget", tokens).set("packing.buffer_sequences", window);
        job.done_into("results").assert_same(&first, &format!("{tokens} tokens, window {window}"));
    }
    // The real engine as well: a row is the same alone and in any batch.
    let text = fasta(4, 40, 20..200);
    let job = |tokens| JobFolder::new(&text).on_cpu().set("packing.token_budget", tokens);
    job(64).done_into("results").assert_same(&job(4096).done_into("results"), "cpu");
}
