//! The first thing a newcomer does: the demonstration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kernels::cpu::CpuEngine;
use kernels::{Batch, Engine, EngineOptions, Model, Pooling, Precision, Progress};

use crate::golden::{self, Golden};
use crate::job::JobFolder;
use crate::outcome::Outcome;
use crate::process::{program, run};
use crate::proteins;

fn demo_job() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo/job.toml")
}

fn run_demo(from: &Path, job: &Path, results: &Path) -> Outcome {
    let mut command = program(["run"]);
    command.current_dir(from).arg(job);
    command.arg("--set").arg(format!("output.directory={}", results.display()));
    let finished = run(&mut command).expect(0).says(["done", "sequences  300"]);
    assert_eq!(finished.stdout, "");
    Outcome::read(results)
}

/// The demo model run directly on each sequence, without packing, processes or files.
fn embedded_directly(records: &[(String, String)]) -> Vec<Vec<f32>> {
    let model = Model::from_bytes(config::demo::CONFIG_JSON, config::demo::WEIGHTS).unwrap();
    let layer = model.config().layers;
    let options = EngineOptions { layer, pooling: Pooling::Mean, precision: Precision::Fp32, threads: 1 };
    let mut engine = CpuEngine::load(&model, options).unwrap();
    let mut embed = |residues: &str| {
        let mut batch = Batch::default();
        batch.push(0, residues.as_bytes(), residues.len() as u32);
        engine.run(&batch, &Progress::default()).unwrap().values
    };
    records.iter().map(|(_, residues)| embed(residues)).collect()
}

#[test]
fn the_demo_embeds_its_300_proteins_in_order_from_any_folder() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = folder.path().join("else where");
    std::fs::create_dir(&elsewhere).unwrap();
    let outcome = run_demo(&elsewhere, &demo_job(), &folder.path().join("results"));

    let rows = outcome.rows();
    let records = proteins::records(config::demo::PROTEINS);
    assert_eq!((rows.len(), records.len()), (300, 300));
    for (number, (row, (id, residues))) in rows.iter().zip(&records).enumerate() {
        assert_eq!((row.index, &row.id, row.length as usize), (number as u64, id, residues.len()));
    }
    // One in ten is compared: packing, processes and files change no bit.
    let some: Vec<_> = records.into_iter().step_by(10).collect();
    for (row, embedding) in rows.iter().step_by(10).zip(embedded_directly(&some)) {
        assert_eq!(golden::bits(&row.embedding), golden::bits(&embedding), "{}", row.id);
    }
    assert_eq!(outcome.failed_records(), Vec::<Vec<&str>>::new());

    // The same job written by `init`, run in its own folder; its results go beside it.
    let inner = folder.path().join("a/b");
    run(program(["init", "--demo"]).arg(&inner)).expect(0);
    run(program(["run", "job.toml"]).current_dir(&inner)).expect(0);
    outcome.assert_same(&Outcome::read(&inner.join("results")), "written by init");
}

#[test]
fn the_demo_model_agrees_with_its_reference_values() {
    let golden = Golden::read();
    let job = JobFolder::new(golden.fasta("proteins")).on_cpu().set("model.source", "demo");
    let embeddings = job.done_into("results").by_id();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo/model");
    let (shape, expected) = golden::npy(&model.join("expected_f64.npy"));
    let ids = std::fs::read_to_string(model.join("expected_ids.txt")).unwrap();
    let ids: Vec<&str> = ids.lines().collect();
    assert_eq!(shape[0], ids.len());
    let expected: BTreeMap<&str, &[f64]> = ids.into_iter().zip(expected.chunks_exact(shape[1])).collect();
    assert!(expected.len() >= 16);
    for (id, expected) in expected {
        golden.assert_close(&embeddings[id], expected, id);
    }
}

#[test]
fn tiles_are_left_aside_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let with = |value: &str| {
        let mut command = program(["run"]);
        command.arg(demo_job()).env("VIRNUCPRO_FP32_TILES", value);
        command.arg("--set").arg(format!("output.directory={}", folder.path().join(value).display()));
        run(&mut command)
    };
    with("off").expect(0).says([format!("cpu ({}, ", kernels::cpu::instructions())]);
    let model = Model::from_bytes(config::demo::CONFIG_JSON, config::demo::WEIGHTS).unwrap();
    let layer = model.config().layers;
    let options = EngineOptions { layer, pooling: Pooling::Mean, precision: Precision::Fp32, threads: 1 };
    let mut engine = CpuEngine::load_without_tiles(&model, options).unwrap();
    let records = proteins::records(config::demo::PROTEINS);
    for (row, (id, residues)) in
        Outcome::read(&folder.path().join("off")).rows().iter().zip(records).step_by(30)
    {
        let mut batch = Batch::default();
        batch.push(0, residues.as_bytes(), residues.len() as u32);
        let embedding = engine.run(&batch, &Progress::default()).unwrap().values;
        assert_eq!(golden::bits(&row.embedding), golden::bits(&embedding), "{id}");
    }
    with("perhaps").expect(2).says(["VIRNUCPRO_FP32_TILES=perhaps", "write auto or off", "unset it"]);
}
