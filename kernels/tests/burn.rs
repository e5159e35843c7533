//! The burn engine against the float64 reference values, and what every engine promises.
//!
//! On the CPU backend, and on the first GPU where the build has burn-cuda and the machine a GPU. Tolerances are those
//! that the manifest of the golden values states for each precision; a sequence alone and in a batch agree within
//! fp32's. Equal bits are not promised: burn's matrix products choose their order of sums by the shape.

#![expect(clippy::unwrap_used, reason = "tests")]

mod reference;

use kernels::{
    Batch, Embeddings, Engine, EngineError, EngineOptions, Model, ModelPath, Pooling, Precision, Progress,
};

use reference::{Case, Golden, assert_close, fp32, npy, repository};

const POOLINGS: [Pooling; 4] = [Pooling::Mean, Pooling::Bos, Pooling::Max, Pooling::None];

fn engine(model: &Model, layer: usize, pooling: Pooling, precision: Precision) -> Box<dyn Engine> {
    kernels::burn::load_cpu(model, EngineOptions { layer, pooling, precision, threads: 2 }).unwrap()
}

fn run(engine: &mut dyn Engine, batch: &Batch) -> Embeddings {
    engine.run(batch, &Progress::default()).unwrap()
}

fn tiny() -> Golden {
    Golden::read(&repository().join("tests/golden"), "tiny")
}

/// Rows short enough for burn-flex as the tests' profile builds it, which is without optimisation.
fn short(golden: &Golden, tokens_max: usize) -> Vec<&Case> {
    let cases = golden.manifest.cases.iter().filter(|case| case.n_tokens <= tokens_max).collect::<Vec<_>>();
    assert!(cases.len() >= 24, "{} rows", cases.len());
    cases
}

/// Holds golden rows of at most `tokens_max` tokens to `precision`'s tolerance.
fn assert_golden(golden: &Golden, tokens_max: usize, engine: &mut dyn Engine, precision: &str) {
    let cases = short(golden, tokens_max);
    let got = run(engine, &golden.batch(cases.iter().copied()));
    assert_eq!(got.hidden, golden.hidden);
    let tolerance = golden.manifest.tolerances[precision];
    for (case, row) in cases.into_iter().zip(got.values.chunks_exact(got.hidden)) {
        let what = format!("{} {precision} {}: {}|{}", golden.model, case.set, case.id, case.variant);
        assert_close(row, golden.expected_row(case.row), tolerance, &what);
    }
}

#[test]
fn rows_of_every_variant_match_the_reference() {
    for golden in Golden::all() {
        let model = golden.model();
        let layers = model.config().layers;
        let tokens_max = if golden.model == "tiny" { 1_026 } else { 250 };
        assert_golden(
            &golden,
            tokens_max,
            &mut *engine(&model, layers, Pooling::Mean, Precision::Fp32),
            "fp32",
        );
    }
}

#[test]
fn every_layer_and_pooling_matches_the_reference() {
    for golden in Golden::all() {
        let model = golden.model();
        let case = &golden.manifest.cases[golden.manifest.models[golden.model].layers_case_row];
        let (shape, values) = npy(&golden.folder.join(format!("layers_{}_f64.npy", golden.model)));
        let [layers, tokens, hidden] = shape[..] else { panic!("{shape:?}") };
        assert_eq!(layers, model.config().layers + 1);
        for layer in 0..layers {
            let states = &values[layer * tokens * hidden..(layer + 1) * tokens * hidden];
            let residues = &states[hidden..(tokens - 1) * hidden];
            let column = |c: usize| residues.iter().skip(c).step_by(hidden).copied();
            for pooling in POOLINGS {
                let expected: Vec<f64> = match pooling {
                    Pooling::Mean => {
                        (0..hidden).map(|c| column(c).sum::<f64>() / (tokens - 2) as f64).collect()
                    }
                    Pooling::Max => {
                        (0..hidden).map(|c| column(c).fold(f64::NEG_INFINITY, f64::max)).collect()
                    }
                    Pooling::Bos => states[..hidden].to_vec(),
                    Pooling::None => residues.to_vec(),
                };
                let got = run(&mut *engine(&model, layer, pooling, Precision::Fp32), &golden.batch([case]));
                let what = format!("{} layer {layer}, {pooling:?}", golden.model);
                assert_close(&got.values, &expected, fp32(&golden), &what);
            }
        }
    }
}

#[test]
fn narrow_products_stay_within_their_tolerances_and_exact_runs_are_fp32() {
    let golden = tiny();
    let model = golden.model();
    let layers = model.config().layers;
    let batch = golden.batch(short(&golden, 250));
    let exact = run(&mut *engine(&model, layers, Pooling::Mean, Precision::Fp32), &batch);
    for (precision, name) in [(Precision::Fp16, "fp16"), (Precision::Bf16, "bf16")] {
        let mut engine = engine(&model, layers, Pooling::Mean, precision);
        assert_golden(&golden, 250, &mut *engine, name);
        assert_ne!(run(&mut *engine, &batch), exact, "{name}");
        assert_eq!(engine.run_exact(&batch, &Progress::default()).unwrap(), exact, "{name}");
    }
}

/// Rows of `values`, one per sequence of `batch`.
fn rows<'a>(batch: &Batch, pooling: Pooling, got: &'a Embeddings) -> Vec<&'a [f32]> {
    let mut rest = got.values.as_slice();
    let rows =
        (0..batch.len()).map(|index| rest.split_off(..batch.rows(index, pooling) * got.hidden).unwrap());
    let rows = rows.collect();
    assert!(rest.is_empty());
    rows
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

#[test]
fn a_sequence_alone_is_the_sequence_in_any_batch() {
    for golden in Golden::all() {
        let model = golden.model();
        let step = if golden.model == "tiny" { 1 } else { 5 };
        let cases: Vec<&Case> = short(&golden, 250).into_iter().step_by(step).collect();
        for (layer, pooling) in [(model.config().layers, Pooling::Mean), (1, Pooling::None)] {
            let mut engine = engine(&model, layer, pooling, Precision::Fp32);
            let (there, back) =
                (golden.batch(cases.iter().copied()), golden.batch(cases.iter().rev().copied()));
            let (got, reversed) = (run(&mut *engine, &there), run(&mut *engine, &back));
            let (got, mut reversed) = (rows(&there, pooling, &got), rows(&back, pooling, &reversed));
            reversed.reverse();
            for (index, case) in cases.iter().enumerate() {
                let what = format!("{} {}|{}, {pooling:?}", golden.model, case.id, case.variant);
                let alone = wide(&run(&mut *engine, &golden.batch([*case])).values);
                assert_close(got[index], &alone, fp32(&golden), &format!("{what}, in a batch"));
                assert_close(reversed[index], &alone, fp32(&golden), &format!("{what}, in reverse order"));
            }
        }
    }
}

#[test]
fn changing_one_sequence_moves_no_other_row() {
    let golden = tiny();
    let model = golden.model();
    let mut engine = engine(&model, model.config().layers, Pooling::Mean, Precision::Fp32);
    let before = golden.batch(short(&golden, 250).into_iter().take(24));
    let first = run(&mut *engine, &before);
    for changed in [0, 7, 23] {
        let mut after = before.clone();
        let (start, end) = (after.cu_seqlens[changed] + 1, after.cu_seqlens[changed + 1] - 1);
        for token in &mut after.tokens[start as usize..end as usize] {
            *token = 4 + (*token + 7) % 20;
        }
        let second = run(&mut *engine, &after);
        let pairs = first.values.chunks_exact(first.hidden).zip(second.values.chunks_exact(first.hidden));
        for (index, (first, second)) in pairs.enumerate() {
            // The shapes are the same, so here the bits are.
            assert_eq!(first == second, index != changed, "row {index}, {changed} changed");
        }
    }
}

#[test]
fn sequences_with_values_that_are_not_finite_are_named() {
    let folder = repository().join("tests/golden/tiny");
    let mut weights = std::fs::read(folder.join("model.safetensors")).unwrap();
    let tryptophan = usize::from(kernels::alphabet::token(b'W'));
    let start = {
        let parsed = safetensors::SafeTensors::deserialize(&weights).unwrap();
        let (_, table) =
            parsed.iter().find(|(name, _)| name.ends_with("embeddings.word_embeddings.weight")).unwrap();
        assert_eq!((table.shape()[1], table.dtype()), (64, safetensors::Dtype::F32));
        table.data().as_ptr() as usize - weights.as_ptr() as usize + tryptophan * 64 * 4
    };
    weights[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let model = Model::from_bytes(config.leak(), weights.leak()).unwrap();
    let mut batch = Batch::default();
    for (ordinal, residues) in ["MKV", "MKVWL", "MKVAL", "WAAAAAAAAAAAAAAAAAAA", "LL"].iter().enumerate() {
        batch.push(ordinal as u64, residues.as_bytes(), residues.len() as u32);
    }
    for pooling in POOLINGS {
        let error =
            engine(&model, 2, pooling, Precision::Fp32).run(&batch, &Progress::default()).unwrap_err();
        assert_eq!(error, EngineError::NonFinite { sequences: vec![1, 3] }, "{pooling:?}");
    }
}

#[test]
fn what_cannot_be_computed_is_an_error_and_an_empty_batch_has_no_rows() {
    let model = tiny().model();
    let options = EngineOptions { layer: 3, pooling: Pooling::Mean, precision: Precision::Fp32, threads: 1 };
    let Err(EngineError::Model(text)) = kernels::burn::load_cpu(&model, options) else { panic!("it loads") };
    assert!(text.contains("layer 3") && text.contains("0 to 2"), "{text}");

    let mut engine = engine(&model, 2, Pooling::Mean, Precision::Fp32);
    let empty = run(&mut *engine, &Batch::default());
    assert_eq!((empty.hidden, empty.values.len()), (64, 0));
    let mut batch = Batch::default();
    batch.push(4, b"MKV", 3);
    batch.pooled_residues[0] = 9;
    let error = engine.run(&batch, &Progress::default()).unwrap_err();
    assert!(matches!(&error, EngineError::Batch(text) if text.contains("sequence 4")), "{error:?}");
}

#[test]
fn a_long_protein_runs_in_blocks_and_every_layer_shows_progress() {
    // All scores at once would be 4 · 3,002² of them, more than may exist at a time.
    let residues: Vec<u8> = b"MKVLAWGRNDCQEHIPFSTY".iter().copied().cycle().take(3_000).collect();
    let mut batch = Batch::default();
    batch.push(1, b"MKV", 3);
    batch.push(2, &residues, 3_000);
    let model = Model::open(&ModelPath::Folder(repository().join("tests/golden/tiny"))).unwrap();
    let mut engine = engine(&model, 2, Pooling::Mean, Precision::Fp32);
    let progress = Progress::default();
    let got = engine.run(&batch, &progress).unwrap();
    // Embedding and results; in each layer four products, the short protein, and the long one's two blocks.
    assert_eq!(progress.ticks(), 3 + 2 * (4 + 1 + 2));
    let options = EngineOptions { layer: 2, pooling: Pooling::Mean, precision: Precision::Fp32, threads: 2 };
    let mut other = kernels::cpu::CpuEngine::load(&model, options).unwrap();
    let expected = wide(&run(&mut other, &batch).values);
    assert_close(&got.values, &expected, fp32(&tiny()), "the CPU engine");
    assert_eq!(engine.description().name, "burn (flex, 2 threads)");
    // Every parameter of the tiny network, in f32.
    assert_eq!(engine.description().weights_bytes, 4 * model.config().parameters());
}

#[test]
fn int8_is_refused() {
    let options = EngineOptions { layer: 0, pooling: Pooling::Mean, precision: Precision::Int8, threads: 1 };
    let Err(EngineError::Model(why)) = kernels::burn::load_cpu(&tiny().model(), options) else {
        panic!("accepted")
    };
    assert!(why.contains("not in int8") && why.contains("precision = \"fp32\""), "{why}");
}

/// On the first GPU; fp32 there is made of TF32 parts, see `docs/adr/0010-burn-engine.md`.
#[cfg(feature = "burn-cuda")]
#[test]
fn the_gpu_matches_the_reference() {
    use std::io::Write;
    if let Err(problem) = kernels::burn::check_cuda() {
        let line = format!("skipped: the burn engine on a GPU: {problem}\n");
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        return;
    }
    for golden in Golden::all() {
        let model = golden.model();
        let layer = model.config().layers;
        for (precision, name) in
            [(Precision::Fp32, "fp32"), (Precision::Fp16, "fp16"), (Precision::Bf16, "bf16")]
        {
            let options = EngineOptions { layer, pooling: Pooling::Mean, precision, threads: 1 };
            assert_golden(
                &golden,
                usize::MAX,
                &mut *kernels::burn::load_cuda(&model, options, 0).unwrap(),
                name,
            );
        }
    }
}
