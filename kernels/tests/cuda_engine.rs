//! The CUDA engine on an emulated CUDA: the same host code, kernels and libraries' calls as on a GPU.
//!
//! What the emulation shows is order and meaning: streams run late and in any order that events allow, memory that was
//! not written is not a number. It shows no speed, no rounding inside tensor cores and no race within a kernel.

#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "emulation/alone.rs"]
mod alone;
mod emulation;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use alone::alone;
use kernels::cuda::host::WorkClass;
use kernels::cuda::{CudaEngine, Gpu};
use kernels::{
    Batch, Embeddings, Engine, EngineError, EngineOptions, Model, ModelPath, Pooling, Precision, Progress,
};
use serde::Deserialize;

/// A GPU with room for some thousand tokens of the tiny model, whose waves are 512 rows.
const SMALL: &str = "memory=188M";

#[derive(Deserialize)]
struct Manifest {
    cases: Vec<Case>,
    tolerances: HashMap<String, Tolerance>,
}

#[derive(Deserialize)]
struct Case {
    row: usize,
    id: String,
    variant: String,
    n_tokens: usize,
    pool_first: Option<u32>,
}

#[derive(Clone, Copy, Deserialize)]
struct Tolerance {
    rel_l2: f64,
    max_abs: f64,
    min_cos: f64,
}

/// Weights and float64 results of an independent reference; see `golden.rs`.
struct Golden {
    manifest: Manifest,
    tokens: HashMap<String, Vec<u8>>,
    expected: Vec<f64>,
    hidden: usize,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests/golden")
}

impl Golden {
    fn read() -> Self {
        let file = |name: &str| std::fs::read(folder().join(name)).unwrap();
        let npy = file("expected_tiny_f64.npy");
        let npy = npyz::NpyFile::new(npy.as_slice()).unwrap();
        let hidden = npy.shape()[1] as usize;
        Self {
            manifest: serde_json::from_slice(&file("manifest.json")).unwrap(),
            tokens: serde_json::from_slice(&file("tokens.json")).unwrap(),
            expected: npy.into_vec().unwrap(),
            hidden,
        }
    }

    /// Cases of at most `tokens_max` tokens.
    fn cases(&self, tokens_max: usize) -> Vec<&Case> {
        self.manifest.cases.iter().filter(|case| case.n_tokens <= tokens_max).collect()
    }

    fn batch<'a>(&self, cases: impl IntoIterator<Item = &'a &'a Case>) -> Batch {
        let mut batch = Batch::default();
        for case in cases {
            let tokens = &self.tokens[&format!("{}|{}", case.id, case.variant)];
            let residues = tokens.len() as u32 - 2;
            batch.push_tokens(case.row as u64, tokens, case.pool_first.unwrap_or(residues).min(residues));
        }
        batch
    }

    fn assert_close(&self, got: &[f32], case: &Case, tolerance: &str) {
        let expected = &self.expected[case.row * self.hidden..][..self.hidden];
        let Tolerance { rel_l2, max_abs, min_cos } = self.manifest.tolerances[tolerance];
        let pairs = || got.iter().zip(expected).map(|(&got, &expected)| (f64::from(got), expected));
        let sum = |of: fn((f64, f64)) -> f64| pairs().map(of).sum::<f64>();
        let (got_norm, expected_norm) = (sum(|(g, _)| g * g), sum(|(_, e)| e * e));
        let l2 = (sum(|(g, e)| (g - e).powi(2)) / expected_norm).sqrt();
        let cosine = sum(|(g, e)| g * e) / (got_norm * expected_norm).sqrt();
        let abs = pairs().map(|(g, e)| (g - e).abs()).fold(0.0, f64::max);
        assert!(
            l2 <= rel_l2 && abs <= max_abs && cosine >= min_cos,
            "{tolerance} {}: relative L2 {l2:e}, max abs {abs:e}, cosine {cosine}",
            case.id
        );
    }
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
    let golden = Golden::read();
    let mut engine = engine(precision);
    let began = Instant::now();
    let cases = golden.cases(300);
    let all = run(&mut engine, &golden.batch(&cases));
    assert_eq!(all.hidden, golden.hidden);
    for (case, row) in cases.iter().zip(all.values.chunks_exact(golden.hidden)) {
        golden.assert_close(row, case, tolerance);
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
