//! Random batches for a while: whatever was run before, the same batch gives the same bits.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::time::{Duration, Instant};

use kernels::model::Shape;
use kernels::{Batch, Embeddings, Engine, Pooling, Precision};

use super::device::Device;
use super::flow::stream;
use super::golden::{SEED, precision_name, words};
use super::random::Random;
use super::report::{check, skip};
use super::weights::{self, Stored};

/// Different batches: each is run many times, among others each time.
///
/// Fewer where batches must be small, as on a device that is slow.
fn batch_count(tokens_max: usize) -> usize {
    (tokens_max / 8).clamp(8, 48)
}

/// A batch of random sequences, the same for the same seed: few or many, short or long.
fn random_batch(seed: u64, tokens_max: usize) -> Batch {
    let mut random = Random::new(seed);
    let tokens = random.within(1..tokens_max.max(2));
    let longest = [40, 170, 600, 2_000][random.within(0..4)].min(tokens_max.max(4));
    let mut batch = Batch::default();
    loop {
        let length = random.within(1..longest);
        let residues = random.protein(length);
        let pooled = random.within(1..residues.len() + 1) as u32;
        batch.push(batch.len() as u64, &residues, pooled);
        if batch.token_count() >= tokens {
            return batch;
        }
    }
}

fn digest(values: &[f32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    values.iter().for_each(|value| value.to_bits().hash(&mut hasher));
    hasher.finish()
}

/// Makes this step's checks, `duration` in all.
pub(super) fn soak(device: &Device, shape: Shape, duration: Duration, tokens_max: usize, scratch: &Path) {
    let count = batch_count(tokens_max);
    let precisions: Vec<Precision> =
        [Precision::Fp16, Precision::Fp32].into_iter().filter(|&one| device.supports(one).is_ok()).collect();
    let Some(share) = duration.checked_div(precisions.len() as u32) else {
        skip("soak", "the device supports no precision");
        return;
    };
    for precision in precisions {
        check(&format!("soak {} {}", shape.name, precision_name(precision)), || {
            let folder = scratch.join(format!("soak-{}", shape.name));
            let model = weights::model(folder, shape, SEED, Stored::F32)?;
            let mut engine = device.load(&model, Pooling::Mean, precision).map_err(words)?;
            let batches: Vec<Batch> = (0..count).map(|seed| random_batch(seed as u64, tokens_max)).collect();
            compare_for(&mut *engine, &batches, share)
        });
    }
}

/// Runs the batches in random order for a while and compares each with its first run.
fn compare_for(engine: &mut dyn Engine, batches: &[Batch], duration: Duration) -> Result<String, String> {
    let count = batches.len();
    let mut first: HashMap<usize, u64> = HashMap::new();
    let (mut runs, mut tokens) = (0u64, 0u64);
    let mut wrong = Vec::new();
    let mut random = Random::new(SEED);
    let began = Instant::now();
    // Each twice whatever the clock says, so that there is something to compare.
    let mut order = (0..count).chain(0..count).collect::<Vec<_>>().into_iter();
    let next = || match order.next() {
        Some(index) => Some(&batches[index]),
        None if began.elapsed() < duration => Some(&batches[random.within(0..count)]),
        None => None,
    };
    let compare = |batch: &Batch, embeddings: Embeddings| {
        let index = batches.iter().position(|other| std::ptr::eq(other, batch)).unwrap_or(count);
        let digest = digest(&embeddings.values);
        if *first.entry(index).or_insert(digest) != digest {
            wrong.push(index);
        }
        runs += 1;
        tokens += batch.token_count() as u64;
        Ok(())
    };
    stream(engine, next, compare).map_err(words)?;
    let told = format!("{runs} runs of {count} batches, {tokens} tokens");
    match wrong.as_slice() {
        [] => Ok(format!("{told}, the same bits each time")),
        [index, ..] => {
            Err(format!("{told}; {} runs differ from the first, such as of batch {index}", wrong.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use kernels::{EngineDescription, EngineError, Progress};

    use super::*;

    /// Answers each batch with its token count; `wrong`: this run apart.
    struct Counting(EngineDescription, u64, Option<u64>);

    impl Engine for Counting {
        fn description(&self) -> &EngineDescription {
            &self.0
        }

        fn run(&mut self, batch: &Batch, _: &Progress) -> Result<Embeddings, EngineError> {
            self.1 += 1;
            let value = batch.token_count() as f32 + if self.2 == Some(self.1) { 1e-3 } else { 0.0 };
            Ok(Embeddings { hidden: 1, values: vec![value] })
        }
    }

    #[test]
    fn one_run_that_differs_is_found() {
        let batches: Vec<Batch> = (0..4).map(|seed| random_batch(seed, 60)).collect();
        for (wrong, passes) in [(None, true), (Some(2), false), (Some(7), false)] {
            let description = EngineDescription {
                name: "test".into(),
                hidden: 1,
                weights_bytes: 0,
                bytes_per_token: 0,
                token_budget: None,
                slots: 1,
            };
            let mut engine = Counting(description, 0, wrong);
            let result = compare_for(&mut engine, &batches, Duration::ZERO);
            assert_eq!(result.is_ok(), passes, "{result:?}");
            assert_eq!(engine.1, 8);
        }
    }

    #[test]
    fn random_batches_are_whole_and_the_same_for_the_same_seed() {
        for (seed, tokens_max) in (0..48).zip([2, 60, 3_000, 20_000].into_iter().cycle()) {
            let batch = random_batch(seed, tokens_max);
            batch.check(33).unwrap();
            assert_eq!(batch, random_batch(seed, tokens_max));
            assert!(batch.token_count() < 2 * tokens_max.max(4) + 2);
        }
        assert_ne!(digest(&[0.0, 1.0]), digest(&[-0.0, 1.0]));
    }
}
