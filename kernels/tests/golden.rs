//! The CPU engine against float64 values of an independent reference.
//!
//! `tests/golden` at the repository's root (tiny weights) is always checked; the published 8M
//! shape is checked where `GOLDEN_DIR` names a folder that has it. Tolerances are the manifest's.

#![expect(clippy::unwrap_used, reason = "tests")]

mod reference;

use std::collections::HashMap;
use std::io::Write;

use kernels::cpu::CpuEngine;
use kernels::{Batch, Embeddings, Engine, EngineOptions, Model, ModelPath, Pooling, Precision, Progress};

use reference::{Golden, Tolerance, assert_close, fp32, npy, repository};

fn options(layer: usize, pooling: Pooling, threads: usize) -> EngineOptions {
    EngineOptions { layer, pooling, precision: Precision::Fp32, threads }
}

fn engine(model: &Model, pooling: Pooling, threads: usize) -> CpuEngine {
    engine_in(Way::Best(Precision::Fp32), model, pooling, threads)
}

fn engine_in(way: Way, model: &Model, pooling: Pooling, threads: usize) -> CpuEngine {
    let options =
        EngineOptions { precision: way.precision(), ..options(model.config().layers, pooling, threads) };
    match way {
        Way::Best(_) => CpuEngine::load(model, options).unwrap(),
        Way::MultiplyAdds => CpuEngine::load_without_tiles(model, options).unwrap(),
    }
}

/// A way in which the CPU engine computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Best(Precision),
    /// In f32 without tiles, as on processors that have none.
    MultiplyAdds,
}

impl Way {
    fn precision(self) -> Precision {
        match self {
            Self::Best(precision) => precision,
            Self::MultiplyAdds => Precision::Fp32,
        }
    }
}

/// How the CPU engine of this machine computes.
fn ways() -> Vec<Way> {
    let mut ways: Vec<_> = precisions().into_iter().map(Way::Best).collect();
    if kernels::cpu::fp32_instructions() != kernels::cpu::instructions() {
        ways.push(Way::MultiplyAdds);
    }
    ways
}

/// What the CPU engine of this machine computes in.
fn precisions() -> Vec<Precision> {
    let mut precisions = vec![Precision::Fp32];
    match kernels::cpu::bf16_instructions() {
        Some(_) => precisions.push(Precision::Bf16),
        None => {
            let line = b"skipped: bf16 on the CPU (this processor has neither AMX nor AMD's AVX512_BF16)\n";
            std::io::stderr().write_all(line).unwrap();
        }
    }
    match kernels::cpu::int8_instructions() {
        Some(_) => precisions.push(Precision::Int8),
        None => {
            let line = b"skipped: int8 on the CPU (this processor has neither AMX nor AVX512_VNNI)\n";
            std::io::stderr().write_all(line).unwrap();
        }
    }
    precisions
}

fn run(engine: &mut CpuEngine, batch: &Batch) -> Embeddings {
    engine.run(batch, &Progress::default()).unwrap()
}

fn tolerance(golden: &Golden, way: Way) -> Tolerance {
    match way.precision() {
        Precision::Fp32 => fp32(golden),
        // Tighter than the manifest's: our residual stream, norms, softmax and sums stay in f32.
        Precision::Bf16 => Tolerance { min_cos: 0.9998, ..golden.manifest.tolerances["bf16"] },
        Precision::Fp16 => golden.manifest.tolerances["fp16"],
        // Measured: 0.02 and 0.07 (tiny), 0.028 and 0.17 (8M), least cosine 0.99960.
        Precision::Int8 => Tolerance { rel_l2: 0.032, max_abs: 0.25, min_cos: 0.9995 },
    }
}

fn all_in_all_ways() -> Vec<(Golden, Way)> {
    let all = ways().into_iter().flat_map(|way| Golden::all().into_iter().map(move |golden| (golden, way)));
    // Multiply-adds take the longest.
    all.filter(|(golden, way)| *way != Way::MultiplyAdds || golden.model == "tiny").collect()
}

#[test]
fn every_row_of_every_variant_matches_the_reference() {
    for golden in Golden::all() {
        let model = golden.model();
        let batch = golden.batch(&golden.manifest.cases);
        for way in ways() {
            let got = run(&mut engine_in(way, &model, Pooling::Mean, 2), &batch);
            assert_eq!(got.hidden, golden.hidden);
            for (case, row) in golden.manifest.cases.iter().zip(got.values.chunks_exact(got.hidden)) {
                let what = format!("{} {way:?} {}|{}", golden.model, case.id, case.variant);
                assert_close(row, golden.expected_row(case.row), tolerance(&golden, way), &what);
            }
        }
    }
}

#[test]
fn every_layer_matches_the_reference() {
    for golden in Golden::all() {
        let model = golden.model();
        let row = golden.manifest.models[golden.model].layers_case_row;
        let case = &golden.manifest.cases[row];
        let (shape, values) = npy(&golden.folder.join(format!("layers_{}_f64.npy", golden.model)));
        let [layers, tokens, hidden] = shape[..] else { panic!("{shape:?}") };
        assert_eq!(layers, model.config().layers + 1);
        let batch = golden.batch([case]);
        for layer in 0..layers {
            let mut engine = CpuEngine::load(&model, options(layer, Pooling::None, 2)).unwrap();
            let got = run(&mut engine, &batch);
            // Residues only: the reference has BOS and EOS as well.
            let expected = &values[(layer * tokens + 1) * hidden..((layer + 1) * tokens - 1) * hidden];
            assert_close(&got.values, expected, fp32(&golden), &format!("{} layer {layer}", golden.model));
            let mut engine = CpuEngine::load(&model, options(layer, Pooling::Bos, 2)).unwrap();
            let got = run(&mut engine, &batch);
            let bos = &values[layer * tokens * hidden..][..hidden];
            assert_close(&got.values, bos, fp32(&golden), &format!("{} layer {layer} BOS", golden.model));
        }
    }
}

#[test]
fn our_tokens_are_those_of_the_reference() {
    let golden = Golden::read(&repository().join("tests/golden"), "tiny");
    let mut sequences = HashMap::new();
    for set in ["proteins", "odd"] {
        let text = std::fs::read_to_string(golden.folder.join(format!("{set}.fasta"))).unwrap();
        for record in text.split('>').filter(|record| !record.is_empty()) {
            let (header, lines) = record.split_once('\n').unwrap();
            let id = header.split_whitespace().next().unwrap();
            sequences.insert((set, id.to_owned()), lines.split_whitespace().collect::<String>());
        }
    }
    let mut seen = 0;
    for case in &golden.manifest.cases {
        let letters = &sequences[&(case.set.as_str(), case.id.clone())];
        // Proteins are plain upper case, so `full` needs no folding; the reader upper-cases.
        let letters = match case.variant.as_str() {
            "full" => letters.clone(),
            "upper_letter_unk" => letters.to_ascii_uppercase(),
            _ => continue,
        };
        let mut tokens = Vec::new();
        kernels::alphabet::tokenize_into(letters.as_bytes(), &mut tokens);
        assert_eq!(tokens, golden.case_tokens(case), "{}|{}", case.id, case.variant);
        seen += 1;
    }
    assert!(seen >= 36, "only {seen} rows compared");
}

#[test]
fn the_four_file_forms_agree_bit_for_bit() {
    let folder = repository().join("tests/golden/tiny");
    let golden = Golden::read(&repository().join("tests/golden"), "tiny");
    let batch = golden.batch(&golden.manifest.cases);
    let mut results = Vec::new();
    for path in [
        ModelPath::Folder(folder.clone()),
        ModelPath::Safetensors(folder.join("model.published-keys.safetensors")),
        ModelPath::Safetensors(folder.join("model.tf5-default.safetensors")),
        ModelPath::FairEsm(folder.join("esm2_tiny.pt")),
    ] {
        let model = Model::open(&path).unwrap();
        results.push((path, model.config().clone(), run(&mut engine(&model, Pooling::Mean, 1), &batch)));
    }
    for (path, config, result) in &results[1..] {
        assert_eq!(config, &results[0].1, "{path:?}");
        assert_eq!(bits(&result.values), bits(&results[0].2.values), "{path:?}");
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn a_row_is_the_same_alone_and_in_any_batch() {
    for (golden, way) in all_in_all_ways() {
        let model = golden.model();
        let cases = &golden.manifest.cases;
        let mut engine = engine_in(way, &model, Pooling::Mean, 2);
        let together = run(&mut engine, &golden.batch(cases));
        let row = |index: usize| bits(&together.values[index * golden.hidden..][..golden.hidden]);
        for (index, case) in cases.iter().enumerate() {
            let alone = run(&mut engine, &golden.batch([case]));
            assert_eq!(bits(&alone.values), row(index), "{} alone", case.id);
        }
        let reversed = run(&mut engine, &golden.batch(cases.iter().rev()));
        for (index, values) in reversed.values.chunks_exact(golden.hidden).rev().enumerate() {
            assert_eq!(bits(values), row(index), "{} in reverse order", cases[index].id);
        }
        for pair in cases.windows(7).step_by(7) {
            let few = run(&mut engine, &golden.batch(pair));
            for (case, values) in pair.iter().zip(few.values.chunks_exact(golden.hidden)) {
                assert_eq!(bits(values), row(case.row), "{} among seven", case.id);
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for (golden, way) in all_in_all_ways() {
        let model = golden.model();
        let batch = golden.batch(&golden.manifest.cases);
        for pooling in [Pooling::Mean, Pooling::Max, Pooling::None] {
            let one = run(&mut engine_in(way, &model, pooling, 1), &batch);
            for threads in [2, 3] {
                let more = run(&mut engine_in(way, &model, pooling, threads), &batch);
                assert_eq!(bits(&one.values), bits(&more.values), "{pooling:?}, {threads} threads");
            }
        }
    }
}

#[test]
fn changing_one_sequence_moves_no_other_row() {
    for (golden, way) in all_in_all_ways() {
        let model = golden.model();
        let mut engine = engine_in(way, &model, Pooling::Mean, 2);
        let cases = &golden.manifest.cases[..24];
        let before = golden.batch(cases);
        let first = run(&mut engine, &before);
        for changed in [0, 7, 23] {
            let mut after = before.clone();
            let start = after.cu_seqlens[changed] as usize + 1;
            let end = after.cu_seqlens[changed + 1] as usize - 1;
            for token in &mut after.tokens[start..end] {
                *token = 4 + (*token + 7) % 20;
            }
            let second = run(&mut engine, &after);
            let rows =
                first.values.chunks_exact(golden.hidden).zip(second.values.chunks_exact(golden.hidden));
            for (index, (first, second)) in rows.enumerate() {
                assert_eq!(bits(first) == bits(second), index != changed, "row {index}, {changed} changed");
            }
        }
    }
}

#[test]
fn the_demonstration_model_matches_its_reference() {
    let folder = repository().join("config/demo/model");
    let leak = |name: &str| &*std::fs::read(folder.join(name)).unwrap().leak();
    let model = Model::from_bytes(leak("config.json"), leak("model.safetensors")).unwrap();
    let from_folder = Model::open(&ModelPath::Folder(folder.clone())).unwrap();
    assert_eq!(model.sha256().unwrap(), from_folder.sha256().unwrap());

    let golden = Golden::read(&repository().join("tests/golden"), "tiny");
    let (shape, expected) = npy(&folder.join("expected_f64.npy"));
    let ids = std::fs::read_to_string(folder.join("expected_ids.txt")).unwrap();
    let cases: Vec<_> = ids
        .lines()
        .map(|id| golden.manifest.cases.iter().find(|case| case.id == id && case.variant == "full").unwrap())
        .collect();
    assert_eq!(shape, [cases.len(), model.config().hidden]);
    let batch = golden.batch(cases.iter().copied());
    let got = run(&mut engine(&model, Pooling::Mean, 2), &batch);
    for way in ways() {
        let got = run(&mut engine_in(way, &model, Pooling::Mean, 2), &batch);
        for (index, case) in cases.iter().enumerate() {
            let range = index * got.hidden..(index + 1) * got.hidden;
            let what = format!("{way:?} {}", case.id);
            assert_close(&got.values[range.clone()], &expected[range], tolerance(&golden, way), &what);
        }
    }
    assert_eq!(bits(&run(&mut engine(&from_folder, Pooling::Mean, 2), &batch).values), bits(&got.values));
}
