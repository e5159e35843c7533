//! The float64 reference values: where they are, and how near an engine must come.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use kernels::{Batch, Model, ModelPath};
use serde::Deserialize;

/// Tolerances and rows of a golden folder.
#[derive(Deserialize)]
pub(crate) struct Manifest {
    pub(crate) cases: Vec<Case>,
    pub(crate) tolerances: HashMap<String, Tolerance>,
    pub(crate) models: HashMap<String, ModelCase>,
}

#[derive(Deserialize)]
pub(crate) struct ModelCase {
    pub(crate) layers_case_row: usize,
}

#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) row: usize,
    pub(crate) set: String,
    pub(crate) id: String,
    pub(crate) variant: String,
    pub(crate) n_tokens: usize,
    pub(crate) pool_first: Option<u32>,
}

#[derive(Clone, Copy, Deserialize)]
pub(crate) struct Tolerance {
    pub(crate) rel_l2: f64,
    pub(crate) max_abs: f64,
    pub(crate) min_cos: f64,
}

pub(crate) struct Golden {
    pub(crate) folder: PathBuf,
    pub(crate) model: &'static str,
    pub(crate) manifest: Manifest,
    pub(crate) tokens: HashMap<String, Vec<u8>>,
    /// [rows, hidden].
    pub(crate) expected: Vec<f64>,
    pub(crate) hidden: usize,
}

impl Golden {
    pub(crate) fn read(folder: &Path, model: &'static str) -> Self {
        let manifest: Manifest =
            serde_json::from_slice(&std::fs::read(folder.join("manifest.json")).unwrap()).unwrap();
        let tokens = serde_json::from_slice(&std::fs::read(folder.join("tokens.json")).unwrap()).unwrap();
        let (shape, expected) = npy(&folder.join(format!("expected_{model}_f64.npy")));
        assert_eq!(shape[0], manifest.cases.len());
        Self { folder: folder.to_owned(), model, manifest, tokens, expected, hidden: shape[1] }
    }

    /// Tiny always; 8M where `GOLDEN_DIR` has it.
    pub(crate) fn all() -> Vec<Self> {
        let mut found = vec![Self::read(&repository().join("tests/golden"), "tiny")];
        match std::env::var_os("GOLDEN_DIR") {
            Some(folder) => found.push(Self::read(Path::new(&folder), "8m")),
            None => {
                // Past the test harness, which would hide it: a skipped check is never silent.
                let line = b"skipped: 8M golden values (set GOLDEN_DIR to the folder that has `8m/`)\n";
                std::io::stderr().write_all(line).unwrap();
            }
        }
        found
    }

    pub(crate) fn model(&self) -> Model {
        Model::open(&ModelPath::Folder(self.folder.join(self.model))).unwrap()
    }

    pub(crate) fn case_tokens(&self, case: &Case) -> &[u8] {
        let tokens = &self.tokens[&format!("{}|{}", case.id, case.variant)];
        assert_eq!(tokens.len(), case.n_tokens);
        tokens
    }

    /// All rows as one batch, in the order of `cases`.
    pub(crate) fn batch<'a>(&self, cases: impl IntoIterator<Item = &'a Case>) -> Batch {
        let mut batch = Batch::default();
        for case in cases {
            let tokens = self.case_tokens(case);
            let residues = tokens.len() as u32 - 2;
            let pooled = case.pool_first.unwrap_or(residues).min(residues);
            batch.push_tokens(case.row as u64, tokens, pooled);
        }
        batch
    }

    pub(crate) fn expected_row(&self, row: usize) -> &[f64] {
        &self.expected[row * self.hidden..][..self.hidden]
    }
}

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Shape and values of a float64 `.npy` file.
pub(crate) fn npy(path: &Path) -> (Vec<usize>, Vec<f64>) {
    let bytes = std::fs::read(path).unwrap();
    let file = npyz::NpyFile::new(bytes.as_slice()).unwrap();
    let shape = file.shape().iter().map(|&extent| extent as usize).collect();
    (shape, file.into_vec().unwrap())
}

/// Fails with the worst figure unless `got` is within `tolerance` of `expected`.
pub(crate) fn assert_close(got: &[f32], expected: &[f64], tolerance: Tolerance, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let (mut difference, mut got_norm, mut expected_norm, mut product, mut max_abs) =
        (0.0, 0.0, 0.0, 0.0, 0.0f64);
    for (&got, &expected) in got.iter().zip(expected) {
        let got = f64::from(got);
        difference += (got - expected).powi(2);
        got_norm += got * got;
        expected_norm += expected * expected;
        product += got * expected;
        max_abs = max_abs.max((got - expected).abs());
    }
    let rel_l2 = (difference / expected_norm).sqrt();
    let cosine = product / (got_norm * expected_norm).sqrt();
    assert!(
        rel_l2 <= tolerance.rel_l2 && max_abs <= tolerance.max_abs && cosine >= tolerance.min_cos,
        "{what}: relative L2 {rel_l2:e}, max abs {max_abs:e}, cosine {cosine}"
    );
}

pub(crate) fn fp32(golden: &Golden) -> Tolerance {
    golden.manifest.tolerances["fp32"]
}
