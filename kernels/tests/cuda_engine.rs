//! The CUDA engine on an emulated CUDA: the same host code, kernels and libraries' calls as on a GPU.
//!
//! What the emulation shows is order and meaning: streams run late and in any order that events allow, memory that was
//! not written is not a number. It shows no speed, no rounding inside tensor cores and no race within a kernel.

#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "emulation/alone.rs"]
mod alone;
mod emulation;
#[expect(dead_code, reason = "these tests need a part of it")]
mod reference;

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use alone::alone;
use kernels::cpu::CpuEngine;
use kernels::cuda::host::WorkClass;
use kernels::cuda::{CudaEngine, Gpu};
use kernels::{
    Batch, Embeddings, Engine, EngineError, EngineOptions, Model, ModelPath, Pooling, Precision, Progress,
};
use reference::{Case, Golden, assert_close, repository};
use safetensors::tensor::{Dtype, TensorView};

/// A GPU with room for some thousand tokens of the tiny model, whose waves are 512 rows.
const SMALL: &str = "memory=188M";

fn golden() -> Golden {
    Golden::read(&folder(), "tiny")
}

fn folder() -> PathBuf {
    repository().join("tests/golden")
}

/// Cases of at most `tokens_max` tokens.
fn cases(golden: &Golden, tokens_max: usize) -> Vec<&Case> {
    golden.manifest.cases.iter().filter(|case| case.n_tokens <= tokens_max).collect()
}

fn batch_of(golden: &Golden, cases: &[&Case]) -> Batch {
    golden.batch(cases.iter().copied())
}

fn assert_golden(golden: &Golden, got: &[f32], case: &Case, tolerance: &str) {
    let expected = golden.expected_row(case.row);
    let what = format!("{tolerance} {}", case.id);
    assert_close(got, expected, golden.manifest.tolerances[tolerance], &what);
}

/// Where compiled kernels and timings are kept: in one place for all tests, as long as the emulation is the same.
fn keep_kernels(name: &str) {
    let library_path = std::env::var_os("LD_LIBRARY_PATH").unwrap();
    let libraries = std::env::split_paths(&library_path).next().unwrap();
    let folder = libraries.with_file_name(format!(
        "{}-{name}",
        libraries.file_name().unwrap().to_str().unwrap().replace("emulated-cuda", "kernels")
    ));
    // SAFETY: each test has a process of its own, and nothing else in it reads the environment now.
    unsafe { std::env::set_var("VIRNUCPRO_CACHE", folder) };
}

fn model() -> Model {
    Model::open(&ModelPath::Folder(folder().join("tiny"))).unwrap()
}

fn options(precision: Precision, pooling: Pooling) -> EngineOptions {
    EngineOptions { layer: 2, pooling, precision, threads: 1 }
}

fn try_engine(model: &Model, precision: Precision, pooling: Pooling) -> Result<CudaEngine, EngineError> {
    CudaEngine::load(Gpu::open("cuda:0").unwrap(), model, options(precision, pooling))
}

/// The tiny model, mean pooling.
fn engine(precision: Precision) -> CudaEngine {
    keep_kernels("shared");
    try_engine(&model(), precision, Pooling::Mean).unwrap()
}

fn run(engine: &mut CudaEngine, batch: &Batch) -> Embeddings {
    engine.run(batch, &Progress::default()).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn check_golden(precision: Precision, tolerance: &str) {
    let golden = golden();
    let mut engine = engine(precision);
    let began = Instant::now();
    let cases = cases(&golden, 300);
    let all = run(&mut engine, &batch_of(&golden, &cases));
    assert_eq!(all.hidden, golden.hidden);
    for (case, row) in cases.iter().zip(all.values.chunks_exact(golden.hidden)) {
        assert_golden(&golden, row, case, tolerance);
    }
    println!("{tolerance}: {} sequences in {:?}", cases.len(), began.elapsed());
}

#[test]
fn fp32_matches_the_golden_values() {
    if alone("fp32_matches_the_golden_values", SMALL) {
        check_golden(Precision::Fp32, "fp32");
    }
}

#[test]
fn fp16_matches_the_golden_values() {
    if alone("fp16_matches_the_golden_values", SMALL) {
        check_golden(Precision::Fp16, "fp16");
    }
}

#[test]
fn bf16_matches_the_golden_values() {
    if alone("bf16_matches_the_golden_values", SMALL) {
        check_golden(Precision::Bf16, "bf16");
    }
}

// ---- what a row depends on ----------------------------------------------------------------------------

/// Some short proteins of the golden set.
fn few(golden: &Golden, count: usize) -> Vec<&Case> {
    cases(golden, 80).into_iter().step_by(3).take(count).collect()
}

#[test]
fn a_sequence_alone_is_what_it_is_among_others_and_neighbours_change_no_bit() {
    let name = "a_sequence_alone_is_what_it_is_among_others_and_neighbours_change_no_bit";
    if !alone(name, SMALL) {
        return;
    }
    let golden = golden();
    let cases = few(&golden, 6);
    for precision in [Precision::Fp32, Precision::Fp16] {
        let mut engine = engine(precision);
        let before = batch_of(&golden, &cases);
        let together = run(&mut engine, &before);
        let rows: Vec<&[f32]> = together.values.chunks_exact(golden.hidden).collect();
        for (case, row) in cases.iter().zip(&rows) {
            let alone = run(&mut engine, &batch_of(&golden, &[case])).values;
            assert_eq!(bits(&alone), bits(row), "{precision:?} {}", case.id);
        }
        for changed in [0, 3, 5] {
            let mut after = before.clone();
            let (start, end) =
                (after.cu_seqlens[changed] as usize + 1, after.cu_seqlens[changed + 1] as usize - 1);
            for token in &mut after.tokens[start..end] {
                *token = 4 + (*token + 7) % 20;
            }
            let second = run(&mut engine, &after);
            for (index, (row, other)) in
                rows.iter().zip(second.values.chunks_exact(golden.hidden)).enumerate()
            {
                assert_eq!(bits(row) == bits(other), index != changed, "row {index}, {changed} changed");
            }
        }
    }
}

#[test]
fn every_way_of_pooling_and_every_layer_is_that_of_the_cpu() {
    if !alone("every_way_of_pooling_and_every_layer_is_that_of_the_cpu", SMALL) {
        return;
    }
    keep_kernels("shared");
    let (golden, model) = (golden(), model());
    let batch = batch_of(&golden, &few(&golden, 4));
    for (layer, pooling) in [
        (2, Pooling::None),
        (2, Pooling::Bos),
        (2, Pooling::Max),
        (1, Pooling::None),
        (1, Pooling::Mean),
        (0, Pooling::Mean),
    ] {
        let options = EngineOptions { layer, pooling, precision: Precision::Fp32, threads: 1 };
        let expected =
            CpuEngine::load(&model, options.clone()).unwrap().run(&batch, &Progress::default()).unwrap();
        let mut engine = CudaEngine::load(Gpu::open("0").unwrap(), &model, options).unwrap();
        let got = run(&mut engine, &batch);
        assert_eq!(got.values.len(), expected.values.len());
        for (got, expected) in got.values.iter().zip(&expected.values) {
            assert!((got - expected).abs() <= 1e-4, "layer {layer} {pooling:?}: {got}, expected {expected}");
        }
    }
    let options = EngineOptions { layer: 3, ..options(Precision::Fp32, Pooling::Mean) };
    let Err(EngineError::Model(text)) = CudaEngine::load(Gpu::open("0").unwrap(), &model, options) else {
        panic!("layer 3 of 2")
    };
    assert!(text.contains("layers 0 to 2"), "{text}");
}

#[test]
fn batches_under_way_give_the_bits_that_each_gives_alone_in_any_order() {
    let name = "batches_under_way_give_the_bits_that_each_gives_alone_in_any_order";
    for script in ["order=late", "order=early", "order=mixed; seed=2", "order=mixed; seed=3"] {
        if !alone(name, &format!("{SMALL}; {script}")) {
            continue;
        }
        let golden = golden();
        let cases = cases(&golden, 80);
        // Of several sizes, so that inputs and outputs grow on the way, too.
        let batches: Vec<Batch> = [1, 2, 1, 5, 3, 9, 2, 1]
            .iter()
            .enumerate()
            .map(|(at, &n)| batch_of(&golden, &cases[at..at + n]))
            .collect();
        for pooling in [Pooling::Mean, Pooling::None] {
            keep_kernels("shared");
            let mut engine = try_engine(&model(), Precision::Fp32, pooling).unwrap();
            assert_eq!(engine.depth(), 3);
            let expected: Vec<_> =
                batches.iter().map(|batch| bits(&run(&mut engine, batch).values)).collect();
            let progress = Progress::default();
            let mut finished = Vec::new();
            for (at, batch) in batches.iter().enumerate() {
                engine.begin(batch, false, &progress).unwrap();
                if at + 1 - finished.len() == engine.depth() {
                    let error = engine.begin(batch, false, &progress).unwrap_err();
                    assert!(matches!(error, EngineError::Batch(_)), "{error}");
                    finished.push(bits(&engine.finish(&progress).unwrap().values));
                }
            }
            while finished.len() < batches.len() {
                finished.push(bits(&engine.finish(&progress).unwrap().values));
            }
            assert!(matches!(engine.finish(&progress), Err(EngineError::Batch(_))));
            for (at, (finished, expected)) in finished.iter().zip(&expected).enumerate() {
                assert!(finished == expected, "batch {at}, {pooling:?}, {script}");
            }
        }
        return;
    }
}

#[test]
fn a_longer_sequence_than_any_before_joins_others_under_way() {
    if !alone("a_longer_sequence_than_any_before_joins_others_under_way", &format!("{SMALL}; order=late")) {
        return;
    }
    let golden = golden();
    let short = few(&golden, 3);
    // Beyond the positions that rotary angles are made for at first.
    let long: Vec<&Case> =
        golden.manifest.cases.iter().filter(|case| case.n_tokens > 1_026).take(1).collect();
    assert_eq!(long.len(), 1);
    let mut engine = engine(Precision::Fp16);
    let progress = Progress::default();
    let order = [&short, &long, &short];
    for cases in order {
        engine.begin(&batch_of(&golden, cases), false, &progress).unwrap();
    }
    for cases in order {
        let rows = engine.finish(&progress).unwrap().values;
        for (case, row) in cases.iter().zip(rows.chunks_exact(golden.hidden)) {
            assert_golden(&golden, row, case, "fp16");
        }
    }
}

#[test]
fn nothing_is_waited_for_or_allocated_while_batches_are_handed_over() {
    let trace = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_engine-calls");
    let script = format!("{SMALL}; order=late; trace={}", trace.display());
    let name = "nothing_is_waited_for_or_allocated_while_batches_are_handed_over";
    if std::env::var_os("VIRNUCPRO_EMULATED_CUDA").is_none() {
        let _ = std::fs::remove_file(&trace);
    }
    if !alone(name, &script) {
        return;
    }
    let golden = golden();
    let batch = batch_of(&golden, &few(&golden, 3));
    let mut engine = engine(Precision::Fp16);
    let progress = Progress::default();
    // After one round every slot has its memory, and every product its plan.
    for round in 0..3 {
        let before = std::fs::read_to_string(&trace).unwrap().lines().count();
        for _ in 0..engine.depth() {
            engine.begin(&batch, false, &progress).unwrap();
        }
        let text = std::fs::read_to_string(&trace).unwrap();
        let calls: Vec<&str> = text.lines().skip(before).collect();
        let of = |name: &str| calls.iter().filter(|call| call.contains(name)).count();
        if round > 0 {
            for name in ["Synchronize", "cuMemAlloc", "cuMemFree", "cuMemHostAlloc", "cuEventQuery", "run "] {
                assert_eq!(of(name), 0, "{name}: {calls:#?}");
            }
            // One upload and one download each; of two layers eight kernels each, products included; embedding, norm and pooling.
            assert_eq!((of("cuMemcpyHtoDAsync"), of("cuMemcpyDtoHAsync")), (3, 3));
            assert_eq!(of("cuLaunchKernel") + of("product "), 3 * (2 * 8 + 3), "{calls:#?}");
            assert_eq!(of("cuEventRecord"), 3 * (2 + 3));
        }
        for _ in 0..engine.depth() {
            engine.finish(&progress).unwrap();
        }
        let text = std::fs::read_to_string(&trace).unwrap();
        assert!(round == 0 || !text.lines().skip(before).any(|call| call.contains("Synchronize")));
    }
}

#[test]
fn an_exact_run_is_fp32_and_leaves_nothing_behind() {
    if !alone("an_exact_run_is_fp32_and_leaves_nothing_behind", SMALL) {
        return;
    }
    let golden = golden();
    let cases = few(&golden, 4);
    let batch = batch_of(&golden, &cases);
    let mut engine = engine(Precision::Fp16);
    let progress = Progress::default();
    let before = run(&mut engine, &batch);
    // Every slot has its memory then.
    (0..3).for_each(|_| drop(run(&mut engine, &batch)));
    let free = engine.gpu().memory().unwrap().free;
    engine.begin(&batch, false, &progress).unwrap();
    engine.begin(&batch, true, &progress).unwrap();
    engine.begin(&batch, false, &progress).unwrap();
    let first = engine.finish(&progress).unwrap();
    let exact = engine.finish(&progress).unwrap();
    let last = engine.finish(&progress).unwrap();
    for (case, row) in cases.iter().zip(exact.values.chunks_exact(golden.hidden)) {
        assert_golden(&golden, row, case, "fp32");
    }
    for other in [first, last] {
        assert_eq!(bits(&other.values), bits(&before.values));
    }
    assert_ne!(bits(&exact.values), bits(&before.values));
    assert_eq!(engine.gpu().memory().unwrap().free, free);
    let again = engine.run_exact(&batch, &progress).unwrap();
    assert_eq!(bits(&again.values), bits(&exact.values));
}

// ---- weights ------------------------------------------------------------------------------------------------

/// The tiny model with some tensors changed: name, type and bytes.
fn changed(change: impl Fn(&str, Vec<f32>) -> (Dtype, Vec<u8>)) -> (tempfile::TempDir, Model) {
    let original = std::fs::read(folder().join("tiny/model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&original).unwrap();
    let tensors: Vec<(String, Vec<usize>, Dtype, Vec<u8>)> = file
        .iter()
        .map(|(name, view)| {
            let numbers = view.data().as_chunks::<4>().0.iter().map(|&raw| f32::from_le_bytes(raw)).collect();
            let (dtype, bytes) = change(name, numbers);
            (name.to_owned(), view.shape().to_vec(), dtype, bytes)
        })
        .collect();
    let target = tempfile::tempdir().unwrap();
    let views = tensors.iter().map(|(name, shape, dtype, bytes)| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &target.path().join("model.safetensors")).unwrap();
    std::fs::copy(folder().join("tiny/config.json"), target.path().join("config.json")).unwrap();
    let model = Model::open(&ModelPath::Folder(target.path().to_owned())).unwrap();
    (target, model)
}

fn as_f32(numbers: &[f32]) -> (Dtype, Vec<u8>) {
    (Dtype::F32, numbers.iter().flat_map(|x| x.to_le_bytes()).collect())
}

#[test]
fn weights_of_any_stored_type_arrive_as_the_same_numbers() {
    if !alone("weights_of_any_stored_type_arrive_as_the_same_numbers", SMALL) {
        return;
    }
    let golden = golden();
    let batch = batch_of(&golden, &few(&golden, 3));
    let expected = run(&mut engine(Precision::Fp16), &batch);
    // Matrices as f16, but for keys: some are copied, some converted, and queries, keys and values are of two types.
    let (_folder, model) = changed(|name, numbers| {
        if !name.ends_with("weight") || name.contains("Norm") || name.contains("norm") || name.contains("key")
        {
            return as_f32(&numbers);
        }
        (Dtype::F16, numbers.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect())
    });
    let got = run(&mut try_engine(&model, Precision::Fp16, Pooling::Mean).unwrap(), &batch);
    assert_eq!(bits(&got.values), bits(&expected.values));
}

#[test]
fn sequences_that_become_not_finite_are_named_and_the_engine_goes_on() {
    if !alone("sequences_that_become_not_finite_are_named_and_the_engine_goes_on", SMALL) {
        return;
    }
    keep_kernels("shared");
    let golden = golden();
    // Tryptophan's embedding is broken.
    let (_folder, model) = changed(|name, mut numbers| {
        if name.ends_with("word_embeddings.weight") {
            let width = numbers.len() / 33;
            numbers[22 * width + 3] = f32::NAN;
        }
        as_f32(&numbers)
    });
    let mut engine = try_engine(&model, Precision::Fp16, Pooling::Mean).unwrap();
    let mut batch = Batch::default();
    for (ordinal, residues) in ["MKV", "MWV", "LLAGE", "W"].into_iter().enumerate() {
        batch.push(ordinal as u64, residues.as_bytes(), residues.len() as u32);
    }
    for exact in [false, true, false] {
        let run = match exact {
            true => engine.run_exact(&batch, &Progress::default()),
            false => engine.run(&batch, &Progress::default()),
        };
        assert_eq!(run, Err(EngineError::NonFinite { sequences: vec![1, 3] }));
    }
    let mut fine = Batch::default();
    fine.push(0, b"MKV", 3);
    run(&mut engine, &fine);
    let cases = cases(&golden, 5);
    assert!(run(&mut engine, &batch_of(&golden, &cases)).values.iter().all(|value| value.is_finite()));

    drop(engine);
    let (_folder, model) = changed(|name, mut numbers| {
        if name.ends_with("layer.1.intermediate.dense.weight") {
            numbers[5] = 1e6;
        }
        as_f32(&numbers)
    });
    let Err(EngineError::Model(text)) = try_engine(&model, Precision::Fp16, Pooling::Mean) else {
        panic!("a weight beyond f16")
    };
    assert!(text.contains("bf16"), "{text}");
    try_engine(&model, Precision::Bf16, Pooling::Mean).unwrap();
}

// ---- memory and faults ----------------------------------------------------------------------------------------

/// A batch of which the activations do not fit [`SMALL`].
fn huge() -> Batch {
    let mut batch = Batch::default();
    for ordinal in 0..400 {
        batch.push(ordinal, &[b'A'; 1_000], 1_000);
    }
    batch
}

#[test]
fn a_batch_that_does_not_fit_is_told_so_and_all_others_go_on() {
    if !alone("a_batch_that_does_not_fit_is_told_so_and_all_others_go_on", SMALL) {
        return;
    }
    let golden = golden();
    let batch = batch_of(&golden, &few(&golden, 4));
    let mut engine = engine(Precision::Fp16);
    let description = engine.description().clone();
    let budget = description.token_budget.unwrap() as usize;
    assert!(budget >= 1_024 && budget.is_multiple_of(512), "{budget}");
    assert_eq!(description.slots, 3);
    assert!(
        description.name.contains("Emulated GPU") && description.name.contains("fp16"),
        "{description:?}"
    );
    let used = engine.memory_in_use().unwrap();
    assert!((0.05..0.9).contains(&used), "{used}");

    let expected = run(&mut engine, &batch);
    let progress = Progress::default();
    let huge = huge();
    for exact in [false, true] {
        engine.begin(&batch, false, &progress).unwrap();
        let error = engine.begin(&huge, exact, &progress).unwrap_err();
        assert_eq!(error, EngineError::OutOfMemory { tokens: huge.token_count() });
        engine.begin(&batch, false, &progress).unwrap();
        for _ in 0..2 {
            assert_eq!(bits(&engine.finish(&progress).unwrap().values), bits(&expected.values));
        }
    }
    assert_eq!(bits(&run(&mut engine, &batch).values), bits(&expected.values));
    let contradiction = Batch { pooled_residues: Vec::new(), ..batch.clone() };
    assert!(matches!(engine.run(&contradiction, &progress), Err(EngineError::Batch(_))));
    assert!(run(&mut engine, &Batch::default()).values.is_empty());
}

#[test]
fn any_succession_of_batches_gives_what_each_gives_alone() {
    let name = "any_succession_of_batches_gives_what_each_gives_alone";
    for seed in [1u64, 2] {
        if !alone(name, &format!("{SMALL}; order=mixed; seed={seed}")) {
            continue;
        }
        let script = std::env::var("VIRNUCPRO_EMULATED_CUDA").unwrap();
        println!("{script}");
        let mut state = script.bytes().fold(seed, |state, byte| state.wrapping_mul(31) + u64::from(byte));
        let mut draw = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let golden = golden();
        let cases = cases(&golden, 80);
        let batches: Vec<Batch> = [1, 3, 2, 6].iter().map(|&n| batch_of(&golden, &cases[n..2 * n])).collect();
        let huge = huge();
        let progress = Progress::default();
        let mut engine = engine(Precision::Bf16);
        let expected: Vec<[Vec<u32>; 2]> = batches
            .iter()
            .map(|batch| {
                let exact = engine.run_exact(batch, &progress).unwrap();
                [bits(&run(&mut engine, batch).values), bits(&exact.values)]
            })
            .collect();
        let mut begun = std::collections::VecDeque::new();
        for step in 0..40 {
            if begun.len() == engine.depth() || (!begun.is_empty() && draw(3) == 0) {
                let (at, exact): (usize, usize) = begun.pop_front().unwrap();
                let got = bits(&engine.finish(&progress).unwrap().values);
                assert!(got == expected[at][exact], "step {step}: batch {at}, exact {exact}");
            } else if draw(6) == 0 {
                let error = engine.begin(&huge, draw(2) == 0, &progress).unwrap_err();
                assert_eq!(error, EngineError::OutOfMemory { tokens: huge.token_count() }, "step {step}");
            } else {
                let (at, exact) = (draw(batches.len() as u64) as usize, usize::from(draw(4) == 0));
                engine.begin(&batches[at], exact == 1, &progress).unwrap();
                begun.push_back((at, exact));
            }
        }
        return;
    }
}

#[test]
fn a_batch_that_fails_half_way_leaves_nothing_to_the_next() {
    // In fp32 nothing is converted, so that loading launches few kernels or none; a batch launches eleven.
    let script = format!("{SMALL}; order=late; fail=launch@65:launch_out_of_resources");
    if !alone("a_batch_that_fails_half_way_leaves_nothing_to_the_next", &script) {
        return;
    }
    let golden = golden();
    let (large, small) = (batch_of(&golden, &few(&golden, 6)), batch_of(&golden, &cases(&golden, 5)));
    let mut engine = engine(Precision::Fp32);
    let progress = Progress::default();
    let expected = bits(&run(&mut engine, &small).values);
    let mut failed = 0;
    // Which of the two is hit depends on whether products were timed before.
    for batch in [&large, &small].into_iter().cycle().take(17) {
        // What was enqueued of a batch that failed still runs, on its own input.
        match engine.begin(batch, false, &progress) {
            Ok(()) => {
                let values = engine.finish(&progress).unwrap().values;
                assert!(batch == &large || bits(&values) == expected);
            }
            Err(error) => {
                assert!(
                    matches!(&error, EngineError::Batch(text) if text.contains("OUT_OF_RESOURCES")),
                    "{error}"
                );
                failed += 1;
            }
        }
    }
    engine.begin(&small, false, &progress).unwrap();
    assert_eq!(bits(&engine.finish(&progress).unwrap().values), expected);
    assert_eq!(failed, 1);
}

#[test]
fn a_product_that_is_refused_is_computed_otherwise() {
    let name = "a_product_that_is_refused_is_computed_otherwise";
    // The first while algorithms are timed, the second in the midst of batches.
    for call in [3, 400] {
        let script = format!("{SMALL}; algorithms=1; fail=matmul@{call}:execution_failed");
        if !alone(name, &script) {
            continue;
        }
        keep_kernels("refused");
        let golden = golden();
        let batch = batch_of(&golden, &cases(&golden, 5));
        let mut engine = engine(Precision::Fp32);
        let expected = bits(&run(&mut engine, &batch).values);
        // Eight products each.
        for _ in 0..60 {
            assert_eq!(bits(&run(&mut engine, &batch).values), expected);
        }
    }
}

#[test]
fn a_model_that_does_not_fit_says_what_it_needs_and_what_there_is() {
    if !alone("a_model_that_does_not_fit_says_what_it_needs_and_what_there_is", "memory=1G; used=900M") {
        return;
    }
    keep_kernels("shared");
    let Err(EngineError::Model(text)) = try_engine(&model(), Precision::Fp16, Pooling::Mean) else {
        panic!("it fits")
    };
    assert!(
        text.contains("Emulated GPU") && text.contains("does not fit") && text.contains("0.1 GB are free"),
        "{text}"
    );
}

#[test]
fn a_gpu_too_old_for_a_precision_is_refused() {
    let script = format!("{SMALL}; capability=7.5");
    if alone("a_gpu_too_old_for_a_precision_is_refused", &script) {
        keep_kernels("shared");
        let Err(EngineError::Model(text)) = try_engine(&model(), Precision::Bf16, Pooling::Mean) else {
            panic!("bf16 on 7.5")
        };
        assert!(text.contains("bf16"), "{text}");
    }
}

#[test]
fn heads_of_a_width_without_a_kernel_are_refused_by_name() {
    if alone("heads_of_a_width_without_a_kernel_are_refused_by_name", SMALL) {
        keep_kernels("shared");
        let (folder, _) = changed(|_, numbers| as_f32(&numbers));
        let path = folder.path().join("config.json");
        let config = std::fs::read_to_string(&path).unwrap();
        let narrow = config.replace("\"num_attention_heads\": 4", "\"num_attention_heads\": 8");
        assert_ne!(narrow, config);
        std::fs::write(&path, narrow).unwrap();
        let model = Model::open(&ModelPath::Folder(folder.path().to_owned())).unwrap();
        let Err(EngineError::Model(text)) = try_engine(&model, Precision::Fp16, Pooling::Mean) else {
            panic!("heads 8 wide")
        };
        assert!(text.contains("heads 8 wide") && text.contains("cpu"), "{text}");
    }
}

// ---- graphs -------------------------------------------------------------------------------------------------

/// As [`engine`], with `VIRNUCPRO_GRAPHS` set to `graphs`.
fn engine_with(graphs: &str, precision: Precision, pooling: Pooling) -> CudaEngine {
    keep_kernels("shared");
    set_graphs(graphs);
    try_engine(&model(), precision, pooling).unwrap()
}

fn set_graphs(value: &str) {
    // SAFETY: as above.
    unsafe { std::env::set_var("VIRNUCPRO_GRAPHS", value) };
}

/// Made-up proteins of these lengths.
fn proteins(lengths: &[usize]) -> Batch {
    let mut batch = Batch::default();
    for (ordinal, &length) in (0u64..).zip(lengths) {
        let residue = |at: usize| b"LAGVSERTIDPKQNFYMHCW"[(7 * ordinal as usize + at * at + 3 * at) % 20];
        batch.push(ordinal, &(0..length).map(residue).collect::<Vec<u8>>(), length as u32);
    }
    batch
}

/// Runs batches as a worker does, as many begun as there may be; the bits of each one's values.
fn in_a_row(engine: &mut CudaEngine, batches: &[Batch], order: &[usize]) -> Vec<Vec<u32>> {
    let progress = Progress::default();
    let mut finished = Vec::new();
    for (at, &batch) in order.iter().enumerate() {
        if at - finished.len() == engine.depth() {
            finished.push(bits(&engine.finish(&progress).unwrap().values));
        }
        engine.begin(&batches[batch], false, &progress).unwrap();
    }
    while finished.len() < order.len() {
        finished.push(bits(&engine.finish(&progress).unwrap().values));
    }
    finished
}

/// The calls that the emulation has written down, from a line on; the file is that of the test's name.
fn calls(trace: &Path, from: usize) -> Vec<String> {
    let text = std::fs::read_to_string(trace).unwrap();
    text.lines().skip(from).map(|line| line.splitn(3, ' ').nth(2).unwrap().to_owned()).collect()
}

/// A file for the calls of a test, and the part of a script that has them written there.
fn traced(test: &str) -> (PathBuf, String) {
    let trace = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-calls"));
    if std::env::var_os("VIRNUCPRO_EMULATED_CUDA").is_none() {
        let _ = std::fs::remove_file(&trace);
    }
    let script = format!("trace={}", trace.display());
    (trace, script)
}

fn count(calls: &[String], name: &str) -> usize {
    calls.iter().filter(|call| call.as_str() == name).count()
}

#[test]
fn graphs_change_no_bit_and_each_size_is_captured_once_in_each_slot() {
    let name = "graphs_change_no_bit_and_each_size_is_captured_once_in_each_slot";
    let (trace, traced) = traced(name);
    if !alone(name, &format!("{SMALL}; order=mixed; seed=4; {traced}")) {
        return;
    }
    // Two sizes, the first of two batches with other sequences, longer and shorter, and other numbers of them.
    let batches = [proteins(&[30, 45]), proteins(&[5, 17, 40, 9, 1]), proteins(&[60, 80, 33])];
    assert!(batches[1].token_count() <= 128 && batches[2].token_count() > 128);
    let order = [0, 1, 0, 0, 1, 2, 2, 0, 1, 2, 2, 2, 1, 0, 1, 2, 0, 2, 2, 1];
    for (precision, pooling) in
        [(Precision::Fp16, Pooling::Mean), (Precision::Fp32, Pooling::None), (Precision::Bf16, Pooling::Max)]
    {
        let mut plain = engine_with("off", precision, pooling);
        let expected = in_a_row(&mut plain, &batches, &order);
        assert!(!plain.graphs().used);
        drop(plain);
        let mut engine = engine_with("on", precision, pooling);
        let from = calls(&trace, 0).len();
        let finished = in_a_row(&mut engine, &batches, &order);
        for (at, (got, expected)) in finished.iter().zip(&expected).enumerate() {
            assert!(got == expected, "batch {at} of {order:?}, {precision:?} {pooling:?}");
        }
        let calls = calls(&trace, from);
        // Three slots; what pools, and clears its flags, is outside.
        let (captured, replayed) = (count(&calls, "cuStreamBeginCapture"), count(&calls, "cuGraphLaunch"));
        assert_eq!(captured, 3 * 2, "{precision:?} {pooling:?}");
        // But for the first of each size.
        assert_eq!(replayed, order.len() - 2);
        let kernels = count(&calls, "cuLaunchKernel");
        // A layer's norms, attention and GELU; embedding and last norm; pooling.
        assert_eq!(kernels, (2 + captured) * (2 * 4 + 2) + order.len());
        assert_eq!(engine.warnings(), &[] as &[String]);
        assert!(engine.graphs().used);
    }
}

#[test]
fn batches_of_unusual_sizes_have_graphs_like_any_other() {
    let name = "batches_of_unusual_sizes_have_graphs_like_any_other";
    let (trace, traced) = traced(name);
    if !alone(name, &format!("{SMALL}; order=mixed; seed=9; {traced}")) {
        return;
    }
    // One residue; a tile and its next row; all rows of a tile of products, and one more; many sequences of a residue
    // each, whose tiles are more than those of any other batch; three of them, as many as there are slots.
    let lengths: [&[usize]; 7] = [&[1], &[62], &[63], &[126], &[127], &[1; 42], &[200, 1, 1]];
    let batches = lengths.map(proteins);
    // Every one in every slot: seven batches end in another slot than they began in.
    let in_turn: Vec<usize> = (0..3).flat_map(|_| 0..batches.len()).collect();
    let each: Vec<usize> = (0..batches.len()).flat_map(|batch| [batch; 4]).collect();
    let mut plain = engine_with("off", Precision::Fp16, Pooling::Mean);
    let expected: Vec<_> = batches.iter().map(|batch| bits(&run(&mut plain, batch).values)).collect();
    drop(plain);
    let mut engine = engine_with("on", Precision::Fp16, Pooling::Mean);
    for (order, captures) in [(&each, true), (&in_turn, true), (&in_turn, false)] {
        let from = calls(&trace, 0).len();
        for (&batch, got) in order.iter().zip(in_a_row(&mut engine, &batches, order)) {
            assert!(got == expected[batch], "{:?}", lengths[batch]);
        }
        let all = calls(&trace, from);
        // Once inputs have grown, each of the three sizes has a graph in each slot.
        assert!(captures || count(&all, "cuGraphLaunch") == order.len(), "{order:?}");
        assert!(captures || count(&all, "cuStreamBeginCapture") == 0, "{order:?}");
    }
    // An empty batch, and one that contradicts itself, in between.
    assert!(run(&mut engine, &Batch::default()).values.is_empty());
    let contradiction = Batch { pooled_residues: Vec::new(), ..batches[3].clone() };
    assert!(matches!(engine.run(&contradiction, &Progress::default()), Err(EngineError::Batch(_))));
    assert_eq!(bits(&run(&mut engine, &batches[3]).values), expected[3]);
    assert!(engine.graphs().used);
}

#[test]
fn what_grows_ends_graphs_and_profiles_and_exact_runs_have_none() {
    let name = "what_grows_ends_graphs_and_profiles_and_exact_runs_have_none";
    let (trace, traced) = traced(name);
    if !alone(name, &format!("{SMALL}; order=late; {traced}")) {
        return;
    }
    let (small, other) = (proteins(&[30, 45]), proteins(&[5, 17, 40, 9, 1]));
    let progress = Progress::default();
    let mut plain = engine_with("off", Precision::Fp16, Pooling::Mean);
    let budget = plain.description().token_budget.unwrap() as usize;
    // More tokens than activations were allocated for, and longer than rotary angles were made for at first.
    let mut beyond = Batch::default();
    while beyond.token_count() <= budget {
        beyond.push(beyond.len() as u64, &[b'A'; 700], 700);
    }
    let mut long = Batch::default();
    long.push(0, &[b'M'; 1_100], 1_100);
    let batches = [small.clone(), other, long, beyond];
    let order = [0, 0, 0, 0, 1, 2, 0, 0, 1, 0, 3, 0, 1, 0, 0, 0];
    let expected = in_a_row(&mut plain, &batches, &order);
    let exact = bits(&plain.run_exact(&small, &progress).unwrap().values);
    drop(plain);

    let mut engine = engine_with("on", Precision::Fp16, Pooling::Mean);
    let from = calls(&trace, 0).len();
    assert_eq!(in_a_row(&mut engine, &batches, &order), expected);
    let all = calls(&trace, from);
    let (captured, ended) = (count(&all, "cuStreamBeginCapture"), count(&all, "cuGraphExecDestroy"));
    // In all three slots anew after each of the two.
    assert!(captured >= 3 * 3 && ended >= 3 * 2 && captured - ended <= 3, "{captured}, {ended}");

    // None of these ends or makes one.
    (0..4).for_each(|_| drop(run(&mut engine, &small)));
    let from = calls(&trace, 0).len();
    assert_eq!(bits(&engine.run_exact(&small, &progress).unwrap().values), exact);
    assert!(engine.profile(&small).unwrap().of(WorkClass::Product) > 0.0);
    let all = calls(&trace, from);
    assert!(!all.iter().any(|call| call.contains("Graph") || call.contains("Capture")), "{all:?}");
    assert_eq!(bits(&run(&mut engine, &small).values), expected[0]);
    assert_eq!(calls(&trace, from).iter().filter(|call| call.contains("Capture")).count(), 0);
    assert_eq!(engine.warnings(), &[] as &[String]);
}

#[test]
fn graphs_that_fail_are_given_up_with_a_warning_and_no_batch_is_lost() {
    let name = "graphs_that_fail_are_given_up_with_a_warning_and_no_batch_is_lost";
    for fault in [
        "capture@1:stream_capture_unsupported",
        "capture@2:stream_capture_invalidated",
        "capture@4:out_of_memory",
        "instantiate@1:out_of_memory",
        "instantiate@3:not_supported",
        "graph@1:out_of_memory",
        "graph@5:launch_out_of_resources",
        // In the midst of the first capture: a batch launches eleven. The others have timed products before this one.
        "launch@16:launch_out_of_resources",
    ] {
        let kept = std::env::var("VIRNUCPRO_EMULATED_CUDA").unwrap_or_default();
        if !kept.is_empty() && !kept.contains(fault) {
            continue;
        }
        if !alone(name, &format!("{SMALL}; fail={fault}")) {
            continue;
        }
        let batches = [proteins(&[20, 31])];
        // In fp32 nothing is converted, so that loading launches no kernels once products were timed.
        drop(engine_with("off", Precision::Fp32, Pooling::Mean));
        let mut engine = engine_with("on", Precision::Fp32, Pooling::Mean);
        let finished = in_a_row(&mut engine, &batches, &[0; 12]);
        assert!(finished.windows(2).all(|pair| pair[0] == pair[1]), "{fault}");
        let [warning] = engine.warnings() else { panic!("{fault}: {:?}", engine.warnings()) };
        assert!(warning.contains("graphs are no longer used") && warning.contains("VIRNUCPRO_GRAPHS"));
        assert!(!engine.graphs().used);
        drop(engine);
        // As without any.
        let mut plain = engine_with("off", Precision::Fp32, Pooling::Mean);
        assert_eq!(in_a_row(&mut plain, &batches, &[0]), finished[..1], "{fault}");
        return;
    }
}

#[test]
fn a_graph_that_is_stopped_ends_the_engine() {
    let name = "a_graph_that_is_stopped_ends_the_engine";
    if !alone(name, &format!("{SMALL}; fail=graph@7:illegal_address")) {
        return;
    }
    let mut engine = engine_with("on", Precision::Fp32, Pooling::Mean);
    let progress = Progress::default();
    let EngineError::Device(text) = until_it_fails(&mut engine, &progress) else { panic!("another error") };
    assert!(text.contains("ILLEGAL_ADDRESS"), "{text}");
    let mut batch = Batch::default();
    batch.push(0, b"MKV", 3);
    assert_eq!(engine.begin(&batch, false, &progress), Err(EngineError::Device(text)));
}

#[test]
fn a_batch_that_does_not_fit_ends_no_graphs_of_others() {
    let name = "a_batch_that_does_not_fit_ends_no_graphs_of_others";
    if !alone(name, SMALL) {
        return;
    }
    let batches = [proteins(&[20, 31])];
    let mut engine = engine_with("on", Precision::Fp16, Pooling::Mean);
    let before = in_a_row(&mut engine, &batches, &[0; 7]);
    let progress = Progress::default();
    let huge = huge();
    for _ in 0..2 {
        engine.begin(&batches[0], false, &progress).unwrap();
        let error = engine.begin(&huge, false, &progress).unwrap_err();
        assert_eq!(error, EngineError::OutOfMemory { tokens: huge.token_count() });
        assert_eq!(bits(&engine.finish(&progress).unwrap().values), before[0]);
        assert!(in_a_row(&mut engine, &batches, &[0; 5]).iter().all(|got| *got == before[0]));
    }
    assert!(engine.graphs().used);
}

#[test]
fn graphs_are_used_where_they_are_measured_to_be_faster() {
    let name = "graphs_are_used_where_they_are_measured_to_be_faster";
    for (script, used) in [("graphs=90", true), ("graphs=99", false)] {
        let kept = std::env::var("VIRNUCPRO_EMULATED_CUDA").unwrap_or_default();
        if !kept.is_empty() && !kept.contains(script) {
            continue;
        }
        if !alone(name, &format!("memory=186M; {script}")) {
            continue;
        }
        let chosen = engine_with("auto", Precision::Fp16, Pooling::Mean).graphs();
        let ratio = chosen.ratio.unwrap();
        let expected = script.trim_start_matches("graphs=").parse::<f32>().unwrap() / 100.0;
        // What is outside of the graph takes as long as ever, and the emulation's clock counts the tiles that fill it
        // up, a sixteenth at most, as if they had rows.
        assert!((expected..expected * 1.0625).contains(&ratio), "{ratio}, {script}");
        assert_eq!(chosen.used, used, "{script}");
        set_graphs("perhaps");
        let Err(EngineError::Model(text)) = try_engine(&model(), Precision::Fp16, Pooling::Mean) else {
            panic!("perhaps")
        };
        assert!(text.contains("VIRNUCPRO_GRAPHS=perhaps") && text.contains("auto, on or off"), "{text}");
        return;
    }
}

#[test]
fn large_models_are_not_measured_with_graphs() {
    let name = "large_models_are_not_measured_with_graphs";
    // Products that take half a millisecond each, of which a layer has four.
    if !alone(name, "memory=186M; graphs=50; slow=matmul@1+:1") {
        return;
    }
    keep_kernels("slow");
    set_graphs("auto");
    let chosen = try_engine(&model(), Precision::Fp32, Pooling::Mean).unwrap().graphs();
    assert_eq!((chosen.used, chosen.ratio), (false, None));
}

// ---- what starting costs ---------------------------------------------------------------------------------------

#[test]
fn slow_products_are_timed_a_few_times_and_exact_runs_not_at_all() {
    let name = "slow_products_are_timed_a_few_times_and_exact_runs_not_at_all";
    let (trace, traced) = traced(name);
    if !alone(name, &format!("memory=186M; slow=matmul@1+:30; {traced}")) {
        return;
    }
    keep_kernels("slower");
    let folder = PathBuf::from(std::env::var_os("VIRNUCPRO_CACHE").unwrap()).join("kernels");
    for entry in std::fs::read_dir(&folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "plans") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let mut engine = try_engine(&model(), Precision::Fp16, Pooling::Mean).unwrap();
    let products =
        |from: usize| calls(&trace, from).iter().filter(|call| call.starts_with("product ")).count();
    // Four products of a layer, three algorithms each, twice; and the batch that comes before.
    assert_eq!(products(0), 4 * 3 * 2 + 2 * 4);
    let from = calls(&trace, 0).len();
    let mut batch = Batch::default();
    batch.push(0, b"MKV", 3);
    engine.run_exact(&batch, &Progress::default()).unwrap();
    assert_eq!(products(from), 2 * 4);
    assert_eq!(count(&calls(&trace, from), "cuEventElapsedTime"), 0);
}

#[test]
fn the_memory_in_use_is_looked_at_once_a_second_at_most() {
    let name = "the_memory_in_use_is_looked_at_once_a_second_at_most";
    let (trace, traced) = traced(name);
    if !alone(name, &format!("{SMALL}; {traced}")) {
        return;
    }
    let mut engine = engine(Precision::Fp16);
    let looks = || count(&calls(&trace, 0), "cuMemGetInfo");
    let before = (looks(), Instant::now());
    let first = engine.memory_in_use().unwrap();
    for _ in 0..300 {
        let used = engine.memory_in_use().unwrap();
        assert!(used > 0.05 && (used - first).abs() < 0.2, "{used} after {first}");
    }
    let most = before.1.elapsed().as_secs() as usize + 1;
    assert!(looks() - before.0 <= most, "{} in {most} s", looks() - before.0);
    std::thread::sleep(Duration::from_millis(1_050));
    let before = looks();
    engine.memory_in_use().unwrap();
    assert_eq!(looks(), before + 1);
}

#[test]
fn rows_of_residues_take_places_that_others_have_left() {
    let name = "rows_of_residues_take_places_that_others_have_left";
    let (trace, traced) = traced(name);
    if !alone(name, &format!("{SMALL}; order=late; {traced}")) {
        return;
    }
    keep_kernels("shared");
    let mut engine = try_engine(&model(), Precision::Fp16, Pooling::None).unwrap();
    let batch = |length: usize| {
        let mut batch = Batch::default();
        batch.push(0, &vec![b'L'; length], length as u32);
        batch
    };
    // Inputs have room for all of these from the first round on.
    for length in [400, 401, 402] {
        run(&mut engine, &batch(length));
    }
    let hosts = || count(&calls(&trace, 0), "cuMemHostAlloc");
    let before = hosts();
    // One after the other, each in another slot: one place is enough for all.
    for length in [400, 300, 200, 400, 100, 400] {
        run(&mut engine, &batch(length));
    }
    assert_eq!(hosts(), before);
    let order = [400, 300, 400, 200, 400, 400];
    let batches = order.map(batch);
    in_a_row(&mut engine, &batches, &[0, 1, 2, 3, 4, 5]);
    // Two more for three at once, of which one may have been too small at first.
    assert!((before + 2..=before + 3).contains(&hosts()), "{}", hosts() - before);
}

#[test]
fn without_products_that_add_a_bias_and_what_is_there_a_kernel_does() {
    let name = "without_products_that_add_a_bias_and_what_is_there_a_kernel_does";
    if !alone(name, &format!("{SMALL}; without=bias_sum")) {
        return;
    }
    keep_kernels("without");
    let golden = golden();
    let cases = few(&golden, 4);
    let batch = batch_of(&golden, &cases);
    for (precision, tolerance) in
        [(Precision::Fp32, "fp32"), (Precision::Fp16, "fp16"), (Precision::Bf16, "bf16")]
    {
        // Timed at the first start, remembered at the second; then in graphs.
        let mut before = None;
        for graphs in ["off", "off", "on"] {
            set_graphs(graphs);
            let mut engine = try_engine(&model(), precision, Pooling::Mean).unwrap();
            let [warning] = engine.warnings() else { panic!("{:?}", engine.warnings()) };
            assert!(warning.contains("cuBLASLt") && warning.contains("bias"), "{warning}");
            for _ in 0..4 {
                let rows = run(&mut engine, &batch).values;
                for (case, row) in cases.iter().zip(rows.chunks_exact(golden.hidden)) {
                    assert_golden(&golden, row, case, tolerance);
                }
                assert!(before.get_or_insert_with(|| bits(&rows)) == &bits(&rows), "{precision:?} {graphs}");
            }
            let exact = engine.run_exact(&batch, &Progress::default()).unwrap().values;
            for (case, row) in cases.iter().zip(exact.chunks_exact(golden.hidden)) {
                assert_golden(&golden, row, case, "fp32");
            }
        }
    }
}

/// Runs batches until one fails.
fn until_it_fails(engine: &mut CudaEngine, progress: &Progress) -> EngineError {
    let golden = golden();
    let batch = batch_of(&golden, &few(&golden, 2));
    for _ in 0..20 {
        for _ in 0..2 {
            if let Err(error) = engine.begin(&batch, false, progress) {
                return error;
            }
        }
        for _ in 0..2 {
            if let Err(error) = engine.finish(progress) {
                return error;
            }
        }
    }
    panic!("nothing failed")
}

#[test]
fn a_kernel_that_is_stopped_ends_the_engine() {
    let script = format!("{SMALL}; fail=launch@60:illegal_address");
    if !alone("a_kernel_that_is_stopped_ends_the_engine", &script) {
        return;
    }
    // In fp32 nothing is converted, so that loading launches few kernels or none.
    let mut engine = engine(Precision::Fp32);
    let progress = Progress::default();
    let EngineError::Device(text) = until_it_fails(&mut engine, &progress) else { panic!("another error") };
    assert!(text.contains("ILLEGAL_ADDRESS"), "{text}");
    let mut batch = Batch::default();
    batch.push(0, b"MKV", 3);
    assert_eq!(engine.begin(&batch, false, &progress), Err(EngineError::Device(text.clone())));
    assert_eq!(engine.finish(&progress), Err(EngineError::Device(text)));
    assert_eq!(engine.memory_in_use(), None);
}

#[test]
fn a_kernel_that_never_ends_stops_the_ticks() {
    let script = format!("{SMALL}; hang=launch@60");
    if !alone("a_kernel_that_never_ends_stops_the_ticks", &script) {
        return;
    }
    let mut engine = engine(Precision::Fp32);
    let progress = Progress::default();
    let (say, heard) = mpsc::channel();
    let ticking = progress.clone();
    std::thread::spawn(move || say.send(until_it_fails(&mut engine, &ticking)));
    // Whatever the machine's load, at some time the last tick has been; none follows.
    let (mut ticks, mut since) = (progress.ticks(), Instant::now());
    while since.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(20));
        if progress.ticks() != ticks {
            (ticks, since) = (progress.ticks(), Instant::now());
        }
    }
    assert!(ticks > 0);
    assert!(heard.try_recv().is_err(), "it came back");
    std::process::exit(match progress.ticks() == ticks {
        // As the harness would: the thread cannot be joined.
        true => {
            println!("test result: ok. 1 passed");
            0
        }
        false => 1,
    });
}

#[test]
fn each_layer_ticks_while_the_device_computes() {
    if !alone("each_layer_ticks_while_the_device_computes", &format!("{SMALL}; order=late")) {
        return;
    }
    let golden = golden();
    let mut engine = engine(Precision::Fp32);
    let progress = Progress::default();
    engine.begin(&batch_of(&golden, &few(&golden, 2)), false, &progress).unwrap();
    let enqueued = progress.ticks();
    assert!(enqueued >= 2 * 4, "{enqueued}");
    engine.finish(&progress).unwrap();
    assert!(progress.ticks() > enqueued);
}

#[test]
fn a_profile_names_every_kind_of_work() {
    if !alone("a_profile_names_every_kind_of_work", SMALL) {
        return;
    }
    let golden = golden();
    let batch = batch_of(&golden, &few(&golden, 2));
    let mut engine = engine(Precision::Fp16);
    let expected = run(&mut engine, &batch);
    let profile = engine.profile(&batch).unwrap();
    for class in WorkClass::ALL {
        assert!(profile.of(class) > 0.0, "{class:?} in {profile:?}");
    }
    let computed: f32 =
        WorkClass::ALL.iter().filter(|class| **class != WorkClass::Copy).map(|&c| profile.of(c)).sum();
    assert!(computed <= 1.01 * profile.total_microseconds, "{profile:?}");
    assert_eq!(bits(&run(&mut engine, &batch).values), bits(&expected.values));
}

#[test]
fn timings_are_kept_used_again_and_repeated_when_damaged() {
    let name = "timings_are_kept_used_again_and_repeated_when_damaged";
    const SCRIPT: &str = "VIRNUCPRO_EMULATED_CUDA";
    // Without its own estimates the library cannot be asked: only what was kept helps.
    let without = format!("{SMALL}; fail=heuristic@1+:not_supported");
    if let Ok(script) = std::env::var(SCRIPT) {
        keep_kernels("timed");
        let folder = PathBuf::from(std::env::var_os("VIRNUCPRO_CACHE").unwrap()).join("kernels");
        let plans = || {
            let files = std::fs::read_dir(&folder).into_iter().flatten().map(|entry| entry.unwrap().path());
            files.filter(|path| path.extension().is_some_and(|end| end == "plans")).collect::<Vec<_>>()
        };
        let load = || try_engine(&model(), Precision::Fp32, Pooling::Mean);
        match script.as_str() {
            // Keeps them, uses them, damages them.
            SMALL => {
                plans().iter().for_each(|path| std::fs::remove_file(path).unwrap());
                assert_eq!(load().unwrap().warnings(), &[] as &[String]);
                let [path] = &plans()[..] else { panic!("{:?}", plans()) };
                let kept = std::fs::read(path).unwrap();
                load().unwrap();
                assert_eq!(std::fs::read(path).unwrap(), kept);
                std::fs::write(path, &kept[..kept.len() / 2]).unwrap();
                load().unwrap();
                assert_ne!(std::fs::read(path).unwrap().len(), kept.len() / 2);
            }
            // They were kept by the process before.
            _ => {
                let mut engine = load().unwrap();
                let budget = engine.description().token_budget.unwrap() as usize;
                let mut batch = Batch::default();
                while batch.token_count() + 202 <= budget {
                    batch.push(batch.len() as u64, &[b'L'; 200], 200);
                }
                run(&mut engine, &batch);
                plans().iter().for_each(|path| std::fs::write(path, b"{}").unwrap());
                assert!(load().is_err());
            }
        }
    }
    if alone(name, SMALL) || alone(name, &without) {}
}
