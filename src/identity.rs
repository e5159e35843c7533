//! What makes two runs the same: every setting, digest and shape that changes values.
//!
//! The manifest keeps it; a run with another identity never adds to a result folder.

use std::collections::BTreeMap;

use actors::fasta::FileDigest;
use config::{Float, Gaps, Job, OnBadRecord, TooLong};
use kernels::{Pooling, Precision};

use crate::preparation::Compute;

/// Raised when a change of the program changes stored values, segments or columns.
const VALUES_VERSION: &str = "2";

/// What the identity calls the digest of an input.
pub(crate) fn input_key(number: usize) -> String {
    format!("input.sha256[{number}]")
}

/// The identity of a run.
pub(crate) fn identity(
    job: &Job,
    compute: &Compute,
    model_sha256: &str,
    inputs: &[FileDigest],
) -> BTreeMap<String, String> {
    let mut identity = BTreeMap::new();
    let mut set = |key: &str, value: String| {
        identity.insert(key.to_owned(), value);
    };
    set("values_version", VALUES_VERSION.to_owned());
    set("model.sha256", model_sha256.to_owned());
    set("model.hidden", compute.model.hidden.to_string());
    if let Some(config) = compute.model.config() {
        set("model.layer_norm_eps", config.layer_norm_eps.to_string());
        set("model.token_dropout", config.token_dropout.to_string());
        set("model.heads", config.heads.to_string());
    }
    set("model.layer", compute.layer.to_string());
    set("model.pooling", pooling(compute.pooling).to_owned());
    set("model.precision", precision(compute.precision).to_owned());
    set("input.max_residues", job.input.max_residues.map_or(0, |max| max.get()).to_string());
    set(
        "input.too_long",
        match job.input.too_long {
            TooLong::Truncate => "truncate",
            TooLong::PoolFirst => "pool-first",
            TooLong::Stop => "stop",
            TooLong::Skip => "skip",
        }
        .to_owned(),
    );
    set(
        "input.gaps",
        match job.input.gaps {
            Gaps::Keep => "keep",
            Gaps::Remove => "remove",
        }
        .to_owned(),
    );
    set(
        "input.on_bad_record",
        match job.input.on_bad_record {
            OnBadRecord::Stop => "stop",
            OnBadRecord::Skip => "skip",
        }
        .to_owned(),
    );
    set("output.segment_sequences", job.output.segment_sequences.to_string());
    set(
        "output.float",
        match job.output.float {
            Float::F32 => "f32",
            Float::F16 => "f16",
        }
        .to_owned(),
    );
    set("input.files", inputs.len().to_string());
    for (number, input) in inputs.iter().enumerate() {
        set(&input_key(number), input.sha256.clone());
    }
    identity
}

/// The name of a pooling in the job file.
pub(crate) fn pooling(pooling: Pooling) -> &'static str {
    match pooling {
        Pooling::Mean => "mean",
        Pooling::Bos => "bos",
        Pooling::Max => "max",
        Pooling::None => "none",
    }
}

/// The name of a precision in the job file.
pub(crate) fn precision(precision: Precision) -> &'static str {
    match precision {
        Precision::Fp32 => "fp32",
        Precision::Bf16 => "bf16",
        Precision::Fp16 => "fp16",
        Precision::Int8 => "int8",
    }
}
