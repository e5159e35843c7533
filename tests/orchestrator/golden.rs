//! The whole product against float64 values of an independent reference; see `tests/golden/README.md`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use half::f16;
use kernels::cpu::CpuEngine;
use kernels::{Batch, Engine, EngineOptions, Model, ModelPath, Pooling, Precision, Progress};
use serde::Deserialize;

use crate::job::JobFolder;
use crate::outcome::Outcome;
use crate::proteins;

/// The golden folder.
#[derive(Deserialize)]
pub(crate) struct Golden {
    cases: Vec<Case>,
    tolerances: HashMap<String, Tolerance>,
    #[serde(skip)]
    expected: Vec<f64>,
}

#[derive(Deserialize)]
struct Case {
    row: usize,
    id: String,
    variant: String,
}

#[derive(Clone, Copy, Deserialize)]
struct Tolerance {
    rel_l2: f64,
    max_abs: f64,
    min_cos: f64,
}

const HIDDEN: usize = 64;
/// The case whose every layer is kept.
const LAYERS_ID: &str = "sp_B0M3A8_FAR5_STRNA";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Shape and values of a float64 `.npy` file.
pub(crate) fn npy(path: &Path) -> (Vec<usize>, Vec<f64>) {
    let bytes = std::fs::read(path).unwrap();
    let file = npyz::NpyFile::new(bytes.as_slice()).unwrap();
    let shape = file.shape().iter().map(|&extent| extent as usize).collect();
    (shape, file.into_vec().unwrap())
}

/// Floats as bits: equality that knows no tolerance.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

impl Golden {
    /// Reads the manifest and the expected rows of the tiny model.
    pub(crate) fn read() -> Self {
        let text = std::fs::read(folder().join("manifest.json")).unwrap();
        let mut golden: Self = serde_json::from_slice(&text).unwrap();
        let (shape, expected) = npy(&folder().join("expected_tiny_f64.npy"));
        assert_eq!(shape, [golden.cases.len(), HIDDEN]);
        golden.expected = expected;
        golden
    }

    /// The FASTA text of a set.
    pub(crate) fn fasta(&self, set: &str) -> String {
        std::fs::read_to_string(folder().join(format!("{set}.fasta"))).unwrap()
    }

    /// Expected rows of one variant, by id.
    fn variant(&self, variant: &str) -> BTreeMap<&str, &[f64]> {
        let cases = self.cases.iter().filter(|case| case.variant == variant);
        cases.map(|case| (case.id.as_str(), &self.expected[case.row * HIDDEN..][..HIDDEN])).collect()
    }

    /// Fails the test unless `got` is within the manifest's tolerance for fp32.
    #[track_caller]
    pub(crate) fn assert_close(&self, got: &[f32], expected: &[f64], what: &str) {
        self.assert_near("fp32", got, expected, what);
    }

    /// Fails the test unless `got` is within the manifest's tolerance for `precision`.
    #[track_caller]
    fn assert_near(&self, precision: &str, got: &[f32], expected: &[f64], what: &str) {
        assert_eq!(got.len(), expected.len(), "{what}");
        let tolerance = self.tolerances[precision];
        let sum = |term: &dyn Fn(f64, f64) -> f64| -> f64 {
            got.iter().zip(expected).map(|(&got, &expected)| term(f64::from(got), expected)).sum()
        };
        let expected_norm = sum(&|_, expected| expected * expected).sqrt();
        let rel_l2 = sum(&|got, expected| (got - expected).powi(2)).sqrt() / expected_norm;
        let cosine = sum(&|got, expected| got * expected) / (sum(&|got, _| got * got).sqrt() * expected_norm);
        let differences = got.iter().zip(expected).map(|(&got, &expected)| (f64::from(got) - expected).abs());
        let max_abs = differences.fold(0.0, f64::max);
        assert!(
            rel_l2 <= tolerance.rel_l2 && max_abs <= tolerance.max_abs && cosine >= tolerance.min_cos,
            "{what}: relative L2 {rel_l2:e}, max abs {max_abs:e}, cosine {cosine}"
        );
    }

    /// A job over the plain proteins on the tiny model.
    fn job(&self) -> JobFolder {
        JobFolder::new(self.fasta("proteins"))
            .on_cpu()
            .set("model.source", folder().join("tiny").display())
            .set("packing.token_budget", 4096)
    }
}

#[test]
fn every_form_of_the_weights_gives_the_reference_values() {
    let golden = Golden::read();
    let (full, odd) = (golden.variant("full"), golden.variant("upper_letter_unk"));
    let mut first: Option<Vec<Vec<u32>>> = None;
    for form in [
        "tiny",
        "tiny/model.published-keys.safetensors",
        "tiny/model.tf5-default.safetensors",
        "tiny/esm2_tiny.pt",
    ] {
        let job = JobFolder::new(golden.fasta("proteins")).on_cpu();
        let odd_file = job.write("odd.fasta", golden.fasta("odd"));
        let job = job
            .set("model.source", folder().join(form).display())
            .set("input.fasta", format!(r#"["proteins.fasta", "{}"]"#, odd_file.display()))
            .set("input.on_bad_record", "skip");
        job.run_into("results").expect(3);
        let outcome = job.outcome("results");
        let embeddings = outcome.by_id();
        for (id, expected) in &full {
            golden.assert_close(&embeddings[*id], expected, &format!("{form} {id}"));
        }
        let mut odd_seen = 0;
        for (id, expected) in &odd {
            match *id {
                // A digit and a question mark are no residue letters: these records are rejected.
                "odd_digit" | "odd_mixed_run" => assert!(!embeddings.contains_key(*id)),
                // A trailing stop is no residue of the protein: it is removed, and see below.
                "odd_stop_end" => {}
                id => {
                    golden.assert_close(&embeddings[id], expected, &format!("{form} {id}"));
                    odd_seen += 1;
                }
            }
        }
        assert_eq!((full.len(), odd_seen), (25, 9));
        let failed = outcome.failed_records();
        let columns: Vec<_> = failed.iter().map(|line| (line[1], line[4])).collect();
        assert_eq!(columns, [("odd_mixed_run", "input"), ("odd_digit", "input")]);
        assert!(failed[0][5].contains('?') && failed[1][5].contains('1'), "{failed:?}");

        let values: Vec<_> = embeddings.values().map(|values| bits(values)).collect();
        assert_eq!(first.get_or_insert_with(|| values.clone()), &values, "{form}");
    }
}

#[test]
fn bf16_on_the_cpu_is_near_the_reference_or_refused() {
    let golden = Golden::read();
    let job = golden.job().set("model.precision", "bf16");
    if kernels::cpu::bf16_instructions().is_none() {
        job.run_into("results").expect(2).says(["`bf16` cannot be used: `cpu` (fp32", "hint: "]);
        return;
    }
    let outcome = job.done_into("results");
    assert_eq!(outcome.run["identity"]["model.precision"], "bf16");
    let embeddings = outcome.by_id();
    let exact = golden.job().done_into("exact").by_id();
    for (id, expected) in golden.variant("full") {
        golden.assert_near("bf16", &embeddings[id], expected, id);
        assert_ne!(embeddings[id], exact[id], "{id} was computed in fp32");
    }
}

#[test]
fn int8_on_the_cpu_is_near_the_reference_and_kept_or_refused() {
    let mut golden = Golden::read();
    golden.tolerances.insert("int8".to_owned(), Tolerance { rel_l2: 0.032, max_abs: 0.25, min_cos: 0.9995 });
    let job = golden.job().set("model.precision", "int8");
    if kernels::cpu::int8_instructions().is_none() {
        job.run_into("results").expect(2).says(["`int8` cannot be used: `cpu` (fp32", "hint: "]);
        return;
    }
    let outcome = job.done_into("results");
    assert_eq!(outcome.run["identity"]["model.precision"], "int8");
    let embeddings = outcome.by_id();
    let mut others = vec!["fp32"];
    others.extend(kernels::cpu::bf16_instructions().map(|_| "bf16"));
    let others: Vec<_> =
        others.iter().map(|name| golden.job().set("model.precision", name).done_into(name).by_id()).collect();
    for (id, expected) in golden.variant("full") {
        golden.assert_near("int8", &embeddings[id], expected, id);
        for other in &others {
            assert_ne!(embeddings[id], other[id], "{id} was not computed in int8");
        }
    }
    // `auto` never chooses it, and goes on in it.
    let again = job.set("model.precision", "auto").done_into("results");
    assert_eq!(again.run["identity"]["model.precision"], "int8");
}

#[test]
fn a_trailing_stop_is_removed_and_one_inside_is_unknown() {
    let golden = Golden::read();
    let job = golden.job();
    job.write("proteins.fasta", golden.fasta("odd").replace("aJ*?T", "aJ*T").replace("N1R", "NR"));
    let embeddings = job.done_into("results").by_id();
    let model = Model::open(&ModelPath::Folder(folder().join("tiny"))).unwrap();
    let options = EngineOptions { layer: 2, pooling: Pooling::Mean, precision: Precision::Fp32, threads: 1 };
    let mut engine = CpuEngine::load(&model, options).unwrap();
    let mut embed = |residues: &str| {
        let mut batch = Batch::default();
        batch.push(0, residues.as_bytes(), residues.len() as u32);
        bits(&engine.run(&batch, &Progress::default()).unwrap().values)
    };
    let without = "STFFNRFFQFCNTFTFRRFFRRFQFRNRFFRRFNRFTFRRHRFRRFFNRFCQFCTFH";
    assert_eq!(bits(&embeddings["odd_stop_end"]), embed(without));
    let inside = golden.variant("upper_letter_unk")["odd_stop_inside"];
    golden.assert_close(&embeddings["odd_stop_inside"], inside, "odd_stop_inside");
}

#[test]
fn every_length_policy_gives_the_reference_values() {
    let golden = Golden::read();
    for (residues, policy, variant) in [
        (1022, "truncate", "trunc1022"),
        (1024, "truncate", "trunc1024"),
        (1024, "pool-first", "full_pool_first1024"),
    ] {
        let job = golden.job().set("input.max_residues", residues).set("input.too_long", policy);
        let outcome = job.done_into("results");
        let embeddings = outcome.by_id();
        let mut expected = golden.variant("full");
        let changed = golden.variant(variant);
        assert_eq!(changed.len(), 2, "{variant}");
        expected.extend(&changed);
        for (id, expected) in expected {
            golden.assert_close(&embeddings[id], expected, &format!("{id}|{variant}"));
        }
        // The column `length` keeps what was cut.
        let lengths: BTreeMap<_, _> = outcome.rows().into_iter().map(|row| (row.id, row.length)).collect();
        assert_eq!(lengths["gi_117492_sp_P07756.1_CPSM_RAT"], 1500);
        let counts = &outcome.run["counts"];
        let (truncated, pooled_first) = if policy == "truncate" { (2, 0) } else { (0, 2) };
        assert_eq!(
            (counts["truncated"].as_u64(), counts["pooled_first"].as_u64()),
            (Some(truncated), Some(pooled_first))
        );
    }
}

#[test]
fn every_layer_and_pooling_gives_the_reference_values() {
    let golden = Golden::read();
    let (shape, layers) = npy(&folder().join("layers_tiny_f64.npy"));
    let [layer_count, tokens, hidden] = shape[..] else { panic!("{shape:?}") };
    assert_eq!((layer_count, hidden), (3, HIDDEN));
    let job = golden.job();
    // The long ones have their own tests.
    let shorter =
        proteins::records(&golden.fasta("proteins")).into_iter().filter(|(_, residues)| residues.len() < 600);
    let shorter: String = shorter.map(|(id, residues)| format!(">{id}\n{residues}\n")).collect();
    for layer in 0..layer_count {
        let layer_name = if layer == 2 { "last".to_owned() } else { layer.to_string() };
        let run = |pooling: &str| {
            let job = golden.job().set("model.layer", &layer_name).set("model.pooling", pooling);
            job.write("proteins.fasta", &shorter);
            job.done_into("results").by_id()
        };
        let every_token = &layers[layer * tokens * hidden..][..tokens * hidden];
        let residues = &every_token[hidden..(tokens - 1) * hidden];
        let (per_residue, bos, max, mean) = (run("none"), run("bos"), run("max"), run("mean"));
        golden.assert_close(&per_residue[LAYERS_ID], residues, &format!("layer {layer}"));
        golden.assert_close(&bos[LAYERS_ID], &every_token[..hidden], &format!("layer {layer}, BOS"));
        for (id, vectors) in &per_residue {
            let column = |column: usize| vectors.iter().skip(column).step_by(hidden).copied();
            let expected: Vec<f32> =
                (0..hidden).map(|c| column(c).fold(f32::NEG_INFINITY, f32::max)).collect();
            assert_eq!(bits(&max[id]), bits(&expected), "layer {layer}, {id}: max");
            let rows = (vectors.len() / hidden) as f64;
            let expected: Vec<f64> =
                (0..hidden).map(|c| column(c).map(f64::from).sum::<f64>() / rows).collect();
            golden.assert_close(&mean[id], &expected, &format!("layer {layer}, {id}: mean"));
        }
    }
    // A layer that the model has not is refused before anything is read.
    let refused = job.set("model.layer", 3).run_into("results").expect(2);
    assert!(refused.stderr.contains("model.layer = 3"), "{}", refused.stderr);
}

#[test]
fn f16_results_are_the_f32_results_rounded() {
    let golden = Golden::read();
    for pooling in ["mean", "none"] {
        let job = golden.job().set("model.pooling", pooling);
        let wide = job.done_into("wide").rows();
        let narrow = job.set("output.float", "f16").done_into("narrow");
        assert!(narrow_is_half(&narrow));
        let narrow = narrow.rows();
        assert_eq!(wide.len(), narrow.len());
        for (wide, narrow) in wide.iter().zip(&narrow) {
            let rounded: Vec<f32> =
                wide.embedding.iter().map(|&value| f16::from_f32(value).to_f32()).collect();
            assert_eq!(bits(&narrow.embedding), bits(&rounded), "{}", wide.id);
        }
    }
}

fn narrow_is_half(outcome: &Outcome) -> bool {
    outcome.run["identity"]["output.float"] == "f16"
}
