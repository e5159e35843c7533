//! Whatever a batch holds: rows that depend on nothing but their sequence, errors, never a panic.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use kernels::cpu::CpuEngine;
use kernels::{Batch, Engine, EngineError, EngineOptions, Model, ModelPath, Pooling, Precision, Progress};
use proptest::prelude::*;

fn engine(pooling: Pooling, threads: usize) -> CpuEngine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests/golden/tiny");
    let model = Model::open(&ModelPath::Folder(folder)).unwrap();
    let options =
        EngineOptions { layer: model.config().layers, pooling, precision: Precision::Fp32, threads };
    CpuEngine::load(&model, options).unwrap()
}

fn pooling() -> impl Strategy<Value = Pooling> {
    prop_oneof![Just(Pooling::Mean), Just(Pooling::Bos), Just(Pooling::Max), Just(Pooling::None)]
}

/// A sequence with how many of its residues are pooled.
fn sequence() -> impl Strategy<Value = (String, u32)> {
    "[A-Z.*-]{1,70}".prop_flat_map(|residues| {
        let length = residues.len() as u32;
        (Just(residues), 1..=length)
    })
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_row_depends_on_its_sequence_only(
        sequences in prop::collection::vec(sequence(), 1..12),
        pooling in pooling(),
        threads in 1usize..4,
    ) {
        let mut together = Batch::default();
        for (ordinal, (residues, pooled)) in (0..).zip(&sequences) {
            together.push(ordinal, residues.as_bytes(), *pooled);
        }
        let result = engine(pooling, threads).run(&together, &Progress::default()).unwrap();
        let mut rest = result.values.as_slice();
        let mut single = engine(pooling, 1);
        for (index, (residues, pooled)) in sequences.iter().enumerate() {
            let mut alone = Batch::default();
            alone.push(9, residues.as_bytes(), *pooled);
            let expected = single.run(&alone, &Progress::default()).unwrap();
            let (rows, after) = rest.split_at(together.rows(index, pooling) * result.hidden);
            prop_assert_eq!(bits(rows), bits(&expected.values));
            rest = after;
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn a_batch_that_contradicts_itself_is_an_error(
        tokens in prop::collection::vec(0u8..40, 0..30),
        cu_seqlens in prop::collection::vec(0u32..32, 0..6),
        pooled_residues in prop::collection::vec(0u32..20, 0..6),
        ordinals in prop::collection::vec(any::<u64>(), 0..6),
    ) {
        let batch = Batch { tokens, cu_seqlens, pooled_residues, ordinals };
        let result = engine(Pooling::Mean, 1).run(&batch, &Progress::default());
        match batch.check(33) {
            Ok(()) => prop_assert!(result.is_ok()),
            Err(_) => prop_assert!(matches!(result, Err(EngineError::Batch(_)))),
        }
    }
}

#[test]
fn a_very_long_protein_runs_in_parts_and_shows_progress() {
    // Longer than a block of keys and than a task's query rows, and no multiple of either. All
    // its scores at once would take 4 heads × 12,347² × 4 bytes = 2.4 GB.
    let residues: Vec<u8> = b"MKVLAWGRNDCQEHIPFSTY".iter().copied().cycle().take(12_345).collect();
    let mut batch = Batch::default();
    batch.push(1, b"MKV", 3);
    batch.push(2, &residues, 12_345);
    let progress = Progress::default();
    let together = engine(Pooling::Mean, 3).run(&batch, &progress).unwrap();
    assert!(progress.ticks() > 2 * 4 * 12, "{} ticks", progress.ticks());
    let mut alone = Batch::default();
    alone.push(2, &residues, 12_345);
    let expected = engine(Pooling::Mean, 1).run(&alone, &Progress::default()).unwrap();
    assert_eq!(bits(&together.values[64..]), bits(&expected.values));
}

#[test]
fn an_empty_batch_gives_no_rows() {
    let result = engine(Pooling::Mean, 1).run(&Batch::default(), &Progress::default()).unwrap();
    assert_eq!((result.hidden, result.values.len()), (64, 0));
}

#[test]
fn masked_tokens_change_the_scale_of_their_sequence_only() {
    // Layer 0 is the embedding itself: w·0.88 / (1 - masked share), and zero where masked.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests/golden/tiny");
    let model = Model::open(&ModelPath::Folder(folder)).unwrap();
    let table = model.tensor(kernels::model::Weight::Embedding).unwrap().to_f32();
    let options = EngineOptions { layer: 0, pooling: Pooling::None, precision: Precision::Fp32, threads: 1 };
    let mut engine = CpuEngine::load(&model, options).unwrap();
    let mut batch = Batch::default();
    batch.push_tokens(0, &[0, 4, 32, 2], 2);
    batch.push_tokens(1, &[0, 4, 5, 2], 2);
    let values = engine.run(&batch, &Progress::default()).unwrap().values;
    let scaled = |token: usize, scale: f64| -> Vec<f32> {
        table[token * 64..][..64].iter().map(|value| value * scale as f32).collect()
    };
    assert_eq!(values[..64], scaled(4, 0.88 / 0.75));
    assert!(values[64..128].iter().all(|&value| value == 0.0));
    assert_eq!(values[128..192], scaled(4, 0.88));
    assert_eq!(values[192..], scaled(5, 0.88));
}
