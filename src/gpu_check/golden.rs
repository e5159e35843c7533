//! Embeddings against float64 values of an independent reference, and against themselves: a sequence's
//! must depend on nothing but the sequence.
//!
//! `tests/golden/README.md` says where the values come from. The weights are made on the spot; where
//! `GOLDEN_DIR` names the folder that has them as files, those are read instead.

use std::collections::HashMap;
use std::path::Path;

use kernels::cpu::CpuEngine;
use kernels::model::Shape;
use kernels::{
    Batch, Embeddings, Engine, EngineError, EngineOptions, Model, ModelPath, Pooling, Precision, Progress,
};
use serde::Deserialize;

use super::agreement::{Agreement, Limits, bits};
use super::device::Device;
use super::flow::stream;
use super::report::{check, skip};
use super::weights::{self, Stored};

const MANIFEST: &[u8] = include_bytes!("../../tests/golden/manifest.json");
const TOKENS: &[u8] = include_bytes!("../../tests/golden/tokens.json");
const EXPECTED_TINY: &[u8] = include_bytes!("../../tests/golden/expected_tiny_f64.npy");
const EXPECTED_8M: &[u8] = include_bytes!("../../tests/golden/expected_8m_f64.npy");

/// Of the weights behind the golden values.
pub(super) const SEED: u64 = 1;

/// How far a sequence alone may be from the same in a batch: products of another size may be summed in
/// another order, and 16 bits round what differs.
fn alone_limits(precision: Precision) -> Limits {
    match precision {
        Precision::Fp32 => Limits { rel_l2: 1e-5, max_abs: 1e-4, min_cos: 0.999_999 },
        Precision::Fp16 => Limits { rel_l2: 1e-2, max_abs: 0.05, min_cos: 0.9999 },
        Precision::Bf16 => Limits { rel_l2: 0.03, max_abs: 0.2, min_cos: 0.9995 },
        Precision::Int8 => Limits { rel_l2: 0.05, max_abs: 0.4, min_cos: 0.999 },
    }
}

#[derive(Deserialize)]
struct Manifest {
    cases: Vec<Case>,
    tolerances: HashMap<String, Limits>,
}

#[derive(Deserialize)]
struct Case {
    row: usize,
    id: String,
    variant: String,
    pool_first: Option<u32>,
}

/// The golden rows of one model.
struct Golden {
    /// All rows, the ordinals theirs.
    batch: Batch,
    ids: Vec<String>,
    /// [rows, hidden].
    expected: Vec<f64>,
    hidden: usize,
    tolerances: HashMap<String, Limits>,
}

impl Golden {
    /// The rows of at most `tokens_max` tokens.
    fn read(expected: &[u8], tokens_max: usize) -> Result<Self, String> {
        let damaged = |error: serde_json::Error| format!("the golden data inside the program: {error}");
        let manifest: Manifest = serde_json::from_slice(MANIFEST).map_err(damaged)?;
        let tokens: HashMap<String, Vec<u8>> = serde_json::from_slice(TOKENS).map_err(damaged)?;
        let (rows, hidden, expected) = npy(expected)?;
        if rows != manifest.cases.len() {
            return Err(format!("{rows} golden rows for {} cases", manifest.cases.len()));
        }
        let mut batch = Batch::default();
        let (mut ids, mut kept) = (Vec::new(), Vec::new());
        for (row, case) in manifest.cases.iter().enumerate() {
            let id = format!("{}|{}", case.id, case.variant);
            let tokens = tokens.get(&id).ok_or_else(|| format!("no golden tokens of `{id}`"))?;
            let residues = tokens.len() as u32 - 2;
            if case.row != row {
                return Err(format!("golden case `{id}` is out of order"));
            }
            if tokens.len() > tokens_max {
                continue;
            }
            batch.push_tokens(row as u64, tokens, case.pool_first.unwrap_or(residues).min(residues));
            ids.push(id);
            kept.extend_from_slice(&expected[row * hidden..][..hidden]);
        }
        if batch.len() < 3 {
            return Err(format!(
                "{} golden sequences have at most {tokens_max} tokens: too few",
                batch.len()
            ));
        }
        Ok(Self { batch, ids, expected: kept, hidden, tolerances: manifest.tolerances })
    }

    fn agreement(&self, got: &[f32]) -> Agreement {
        let mut agreement = Agreement::NOTHING;
        if got.len() == self.expected.len() {
            for (got, expected) in got.chunks_exact(self.hidden).zip(self.expected.chunks_exact(self.hidden))
            {
                agreement.add(got, expected.iter().copied());
            }
        }
        agreement
    }

    fn limits(&self, precision: Precision) -> Result<Limits, String> {
        let name = precision_name(precision);
        self.tolerances.get(name).copied().ok_or_else(|| format!("no golden tolerance for {name}"))
    }
}

/// Rows, columns and values of a two-dimensional float64 `.npy` file, version 1.
fn npy(bytes: &[u8]) -> Result<(usize, usize, Vec<f64>), String> {
    let parse = || {
        let length = u16::from_le_bytes(*bytes.get(8..)?.first_chunk()?);
        let (header, data) = bytes.get(10..)?.split_at_checked(usize::from(length))?;
        let header = std::str::from_utf8(header).ok()?;
        if !header.contains("'<f8'") || !header.contains("'fortran_order': False") {
            return None;
        }
        let (_, shape) = header.split_once("'shape': (")?;
        let (shape, _) = shape.split_once(')')?;
        let mut extents = shape.split(',').map(|extent| extent.trim().parse::<usize>().ok());
        let (rows, columns) = (extents.next()??, extents.next()??);
        let values: Vec<f64> =
            data.as_chunks::<8>().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect();
        (values.len() == rows.checked_mul(columns)?).then_some((rows, columns, values))
    };
    parse().ok_or_else(|| "golden values inside the program are damaged".to_owned())
}

pub(super) fn precision_name(precision: Precision) -> &'static str {
    match precision {
        Precision::Fp32 => "fp32",
        Precision::Fp16 => "fp16",
        Precision::Bf16 => "bf16",
        Precision::Int8 => "int8",
    }
}

/// The weights behind the golden values of `shape`.
fn model(shape: Shape, scratch: &Path) -> Result<Model, String> {
    match std::env::var_os("GOLDEN_DIR") {
        Some(golden) => {
            let folder = Path::new(&golden).join(shape.name.to_ascii_lowercase());
            Model::open(&ModelPath::Folder(folder)).map_err(|error| actors::error_chain(&error))
        }
        None => weights::model(scratch.join(shape.name), shape, SEED, Stored::F32),
    }
}

/// Makes every check of this step.
///
/// `tokens_max`: longer sequences are left out.
pub(super) fn golden(device: &Device, sizes: &[Shape], tokens_max: usize, scratch: &Path) {
    let golden = [("tiny", EXPECTED_TINY), ("8M", EXPECTED_8M)];
    for (name, expected) in golden {
        let Some(shape) = sizes.iter().copied().find(|shape| shape.name == name) else { continue };
        let mut prepared = None;
        check(&format!("golden {name}: values and weights"), || {
            let golden = Golden::read(expected, tokens_max)?;
            let model = model(shape, scratch)?;
            let detail = format!("{} sequences, {} tokens", golden.batch.len(), golden.batch.token_count());
            prepared = Some((golden, model));
            Ok(detail)
        });
        let Some((golden, model)) = prepared else { continue };
        for precision in [Precision::Fp32, Precision::Fp16, Precision::Bf16] {
            let what = format!("golden {name} {}", precision_name(precision));
            match device.supports(precision) {
                Ok(()) => one(device, &golden, &model, precision, &what),
                Err(why) => skip(&what, why),
            }
        }
        poolings(device, &golden, &model, name);
    }
}

fn one(device: &Device, golden: &Golden, model: &Model, precision: Precision, what: &str) {
    let mut engine = None;
    let mut packed = Vec::new();
    let progress = Progress::default();
    check(what, || {
        let mut loaded = device.load(model, Pooling::Mean, precision).map_err(words)?;
        packed = loaded.run(&golden.batch, &progress).map_err(words)?.values;
        let agreement = golden.agreement(&packed).held_to(golden.limits(precision)?);
        engine = Some(loaded);
        agreement
    });
    if let Some(mut engine) = engine {
        against_itself(&mut *engine, golden, &packed, precision, what);
    }
}

/// Checks that what became of the whole batch, `packed`, depends on nothing but each sequence itself.
fn against_itself(
    engine: &mut dyn Engine,
    golden: &Golden,
    packed: &[f32],
    precision: Precision,
    what: &str,
) {
    check(&format!("{what}: packed = alone"), || packed_is_alone(engine, golden, packed, precision));
    check(&format!("{what}: order in the batch"), || order_is_nothing(engine, golden, packed, precision));
    check(&format!("{what}: nothing leaks between sequences"), || nothing_leaks(engine, golden, packed));
    let progress = Progress::default();
    check(&format!("{what}: the same batch twice"), || {
        let again = engine.run(&golden.batch, &progress).map_err(words)?.values;
        match same_rows(&again, packed, golden.hidden) {
            same if same == golden.batch.len() => Ok(format!("{same} rows equal bit for bit")),
            same => Err(format!("only {same} of {} rows equal bit for bit", golden.batch.len())),
        }
    });
    if precision != Precision::Fp32 {
        check(&format!("{what}: repeated in fp32 on demand"), || {
            let exact = engine.run_exact(&golden.batch, &progress).map_err(words)?.values;
            golden.agreement(&exact).held_to(golden.limits(Precision::Fp32)?)
        });
    }
    check(&format!("{what}: a batch that contradicts itself is refused"), || {
        let mut batch = golden.batch.clone();
        batch.pooled_residues[0] = u32::MAX;
        match engine.run(&batch, &progress) {
            Err(EngineError::Batch(text)) => Ok(text),
            other => Err(format!("{other:?}")),
        }
    });
}

fn packed_is_alone(
    engine: &mut dyn Engine,
    golden: &Golden,
    packed: &[f32],
    precision: Precision,
) -> Result<String, String> {
    // Through the engine's own queue, where it has one: each batch must get its own answer.
    let singles: Vec<Batch> = (0..golden.batch.len()).map(|row| some(&golden.batch, [row])).collect();
    let mut left = singles.iter();
    let mut alone = Vec::new();
    let keep = |_: &Batch, embeddings: Embeddings| {
        alone.extend(embeddings.values);
        Ok(())
    };
    stream(engine, || left.next(), keep).map_err(words)?;
    let same = same_rows(&alone, packed, golden.hidden);
    let agreement = Agreement::of(&alone, packed, golden.hidden).held_to(alone_limits(precision))?;
    Ok(format!("{agreement}, {same} equal bit for bit"))
}

fn order_is_nothing(
    engine: &mut dyn Engine,
    golden: &Golden,
    packed: &[f32],
    precision: Precision,
) -> Result<String, String> {
    let reversed = some(&golden.batch, (0..golden.batch.len()).rev());
    let values = engine.run(&reversed, &Progress::default()).map_err(words)?.values;
    let ordered: Vec<f32> = values.chunks_exact(golden.hidden).rev().flatten().copied().collect();
    let same = same_rows(&ordered, packed, golden.hidden);
    let agreement = Agreement::of(&ordered, packed, golden.hidden).held_to(alone_limits(precision))?;
    Ok(format!("{agreement}, {same} equal bit for bit"))
}

fn nothing_leaks(engine: &mut dyn Engine, golden: &Golden, packed: &[f32]) -> Result<String, String> {
    let last = golden.batch.len() - 1;
    for changed in [0, last / 3, last] {
        let mut batch = golden.batch.clone();
        let residues = batch.cu_seqlens[changed] as usize + 1..batch.cu_seqlens[changed + 1] as usize - 1;
        for token in &mut batch.tokens[residues] {
            *token = 4 + (*token + 7) % 20;
        }
        let values = engine.run(&batch, &Progress::default()).map_err(words)?.values;
        let rows = values.chunks_exact(golden.hidden).zip(packed.chunks_exact(golden.hidden));
        for (row, (now, before)) in rows.enumerate() {
            let (of, by) = (&golden.ids[row], &golden.ids[changed]);
            match (bits(now) == bits(before), row == changed) {
                (true, false) | (false, true) => {}
                (false, false) => return Err(format!("bits of `{of}` changed with `{by}`")),
                (true, true) => return Err(format!("`{of}` changed, its embedding did not")),
            }
        }
    }
    Ok(format!("3 sequences changed, the bits of the other {last} stayed each time"))
}

/// Every pooling in fp32 against the CPU engine on the same weights.
fn poolings(device: &Device, golden: &Golden, model: &Model, name: &str) {
    let few = some(&golden.batch, (0..golden.batch.len()).step_by(5));
    for pooling in [Pooling::Bos, Pooling::Max, Pooling::None] {
        check(&format!("golden {name} fp32: pooling {pooling:?} as on the CPU"), || {
            let options = EngineOptions {
                layer: model.config().layers,
                pooling,
                precision: Precision::Fp32,
                threads: kernels::cpu::threads_auto(),
            };
            let progress = Progress::default();
            let expected = CpuEngine::load(model, options)
                .and_then(|mut cpu| cpu.run(&few, &progress))
                .map_err(words)?;
            let mut engine = device.load(model, pooling, Precision::Fp32).map_err(words)?;
            let got = engine.run(&few, &progress).map_err(words)?;
            let limits = Limits { rel_l2: 1e-4, max_abs: 5e-4, min_cos: 0.999_999 };
            Agreement::of(&got.values, &expected.values, golden.hidden).held_to(limits)
        });
    }
}

/// Some sequences of a batch, in the order given.
fn some(batch: &Batch, rows: impl IntoIterator<Item = usize>) -> Batch {
    let mut few = Batch::default();
    for row in rows {
        few.push_tokens(row as u64, batch.sequence(row), batch.pooled_residues[row]);
    }
    few
}

fn same_rows(one: &[f32], other: &[f32], hidden: usize) -> usize {
    one.chunks_exact(hidden)
        .zip(other.chunks_exact(hidden))
        .filter(|(one, other)| bits(one) == bits(other))
        .count()
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn words(error: EngineError) -> String {
    actors::error_chain(&error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is wrong with an engine.
    #[derive(Clone, Copy, PartialEq)]
    enum Wrong {
        Nothing,
        /// Bits of a neighbour reach the sequence after it.
        Leaks,
        /// Sequences alone come out otherwise.
        Alone,
        /// Every embedding is off by little.
        Values,
    }

    struct Faulty(CpuEngine, Wrong);

    impl Engine for Faulty {
        fn description(&self) -> &kernels::EngineDescription {
            self.0.description()
        }

        fn run(&mut self, batch: &Batch, progress: &Progress) -> Result<Embeddings, EngineError> {
            let mut embeddings = self.0.run(batch, progress)?;
            let hidden = embeddings.hidden;
            match self.1 {
                Wrong::Nothing => {}
                Wrong::Leaks if batch.len() > 1 => {
                    let neighbour = f32::from(batch.sequence(0)[1]);
                    let value = &mut embeddings.values[hidden];
                    *value = f32::from_bits(value.to_bits() ^ (neighbour as u32 & 1));
                }
                Wrong::Alone if batch.len() == 1 => embeddings.values[3] += 1e-3,
                Wrong::Values => embeddings.values.iter_mut().for_each(|value| *value += 1e-3),
                Wrong::Leaks | Wrong::Alone => {}
            }
            Ok(embeddings)
        }
    }

    #[test]
    fn an_engine_that_is_wrong_is_found() {
        let golden = Golden::read(EXPECTED_TINY, 60).unwrap();
        let folder = tempfile::tempdir().unwrap();
        weights::write(folder.path(), weights::TINY, SEED, Stored::F32).unwrap();
        let model = Model::open(&ModelPath::Folder(folder.path().to_owned())).unwrap();
        for wrong in [Wrong::Nothing, Wrong::Leaks, Wrong::Alone, Wrong::Values] {
            let options =
                EngineOptions { layer: 2, pooling: Pooling::Mean, precision: Precision::Fp32, threads: 1 };
            let mut engine = Faulty(CpuEngine::load(&model, options).unwrap(), wrong);
            let packed = engine.run(&golden.batch, &Progress::default()).unwrap().values;
            let values = golden.agreement(&packed).held_to(golden.limits(Precision::Fp32).unwrap());
            let alone = packed_is_alone(&mut engine, &golden, &packed, Precision::Fp32);
            let leaks = nothing_leaks(&mut engine, &golden, &packed);
            let found = [values.is_err(), alone.is_err(), leaks.is_err()];
            let expected = [wrong == Wrong::Values, wrong == Wrong::Alone, wrong == Wrong::Leaks];
            assert_eq!(found, expected, "{values:?} {alone:?} {leaks:?}");
        }
    }

    #[test]
    fn golden_values_inside_the_program_are_whole() {
        for (expected, hidden) in [(EXPECTED_TINY, 64), (EXPECTED_8M, 320)] {
            let golden = Golden::read(expected, usize::MAX).unwrap();
            assert_eq!((golden.hidden, golden.batch.len()), (hidden, golden.ids.len()));
            golden.batch.check(33).unwrap();
            let own: Vec<f32> = golden.expected.iter().map(|&value| value as f32).collect();
            assert!(golden.agreement(&own).held_to(golden.limits(Precision::Fp32).unwrap()).is_ok());
            for precision in [Precision::Fp16, Precision::Bf16] {
                golden.limits(precision).unwrap();
            }
        }
        let short = Golden::read(EXPECTED_TINY, 60).unwrap();
        assert_eq!((short.batch.len(), short.batch.token_count()), (18, 735));
        assert_eq!(short.expected.len(), 18 * 64);
        assert!(Golden::read(EXPECTED_TINY, 4).is_err());
        assert!(npy(&EXPECTED_TINY[..1000]).is_err());
        assert!(npy(b"").is_err());
    }
}
