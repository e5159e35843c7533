//! Random batches for a while: whatever was run before, the same batch gives the same bits.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::time::{Duration, Instant};

use kernels::{Batch, Model, ModelPath, Pooling, Precision};

use super::device::Device;
use super::flow::stream;
use super::golden::{SEED, precision_name, words};
use super::random::Random;
use super::report::{check, skip};
use super::weights::{self, Shape, Stored};

/// Different batches: each is run many times, among others each time.
const BATCHES: usize = 48;

/// A batch of random sequences, the same for the same seed: few or many, short or long.
fn random_batch(seed: u64, tokens_max: usize) -> Batch {
    let mut random = Random::new(seed);
    let tokens = random.within(1..tokens_max.max(2));
    let longest = [40, 170, 600, 2_000][random.within(0..4)];
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
    let precisions: Vec<Precision> =
        [Precision::Fp16, Precision::Fp32].into_iter().filter(|&one| device.supports(one).is_ok()).collect();
    let Some(share) = duration.checked_div(precisions.len() as u32) else {
        skip("soak", "the device supports no precision");
        return;
    };
    for precision in precisions {
        check(&format!("soak {} {}", shape.name, precision_name(precision)), || {
            let folder = scratch.join(format!("soak-{}", shape.name));
            weights::write(&folder, shape, SEED, Stored::F32)
                .map_err(|error| format!("failed to write `{}`: {error}", folder.display()))?;
            let model =
                Model::open(&ModelPath::Folder(folder)).map_err(|error| actors::error_chain(&error))?;
            let mut engine = device.load(&model, Pooling::Mean, precision).map_err(words)?;
            let batches: Vec<Batch> =
                (0..BATCHES).map(|seed| random_batch(seed as u64, tokens_max)).collect();
            let mut first: HashMap<usize, u64> = HashMap::new();
            let (mut runs, mut tokens) = (0u64, 0u64);
            let mut wrong = Vec::new();
            let mut random = Random::new(SEED);
            let began = Instant::now();
            // Each once before the clock counts, so that however short it is there is something to compare.
            let mut order = (0..BATCHES).chain(0..BATCHES).collect::<Vec<_>>().into_iter();
            let next = || match order.next() {
                Some(index) => Some(&batches[index]),
                None if began.elapsed() < share => Some(&batches[random.within(0..BATCHES)]),
                None => None,
            };
            stream(&mut *engine, next, |batch, embeddings| {
                let index = batches.iter().position(|other| std::ptr::eq(other, batch)).unwrap_or(BATCHES);
                let digest = digest(&embeddings.values);
                if *first.entry(index).or_insert(digest) != digest {
                    wrong.push(index);
                }
                runs += 1;
                tokens += batch.token_count() as u64;
                Ok(())
            })
            .map_err(words)?;
            let told = format!("{runs} runs of {BATCHES} batches, {tokens} tokens");
            match wrong.as_slice() {
                [] => Ok(format!("{told}, the same bits each time")),
                [index, ..] => Err(format!(
                    "{told}; {} runs differ from the first, such as of batch {index}",
                    wrong.len()
                )),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_batches_are_whole_and_the_same_for_the_same_seed() {
        for seed in 0..BATCHES as u64 {
            let batch = random_batch(seed, 3_000);
            batch.check(33).unwrap();
            assert_eq!(batch, random_batch(seed, 3_000));
            assert!(batch.token_count() < 3_000 + 2_002);
        }
        assert_ne!(digest(&[0.0, 1.0]), digest(&[-0.0, 1.0]));
    }
}
