//! Divides a batch among threads that each take whole sequences through all layers.
//!
//! Threads that share every operation wait for each other at its end, seven times a layer, and hand
//! activations from cache to cache. With shares of their own they do neither, as long as the sequences
//! can be divided evenly. No result depends on the division.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::operations::CpuOps;
use crate::encoder::{Encoder, Lane};
use crate::model::ModelConfig;
use crate::{Batch, Embeddings, EngineError, Progress};

/// Tokens of a share: few enough that its activations stay near the core, many enough that reading the
/// weights for it takes far less time than the arithmetic.
const SHARE_TOKENS: usize = 384;
/// With fewer tokens for each thread they share every operation.
const SHARE_TOKENS_MIN: usize = 96;
/// Work of the busiest thread over the average, in percent, up to which a division is even.
const UNEVEN_PERCENT_MAX: u64 = 115;

/// Memory of the threads for their shares, one lane each: what a thread writes first lies near it ever after.
pub(super) struct Lanes(Vec<Mutex<Lane<CpuOps>>>);

impl Lanes {
    pub(super) fn new(encoder: &Encoder<CpuOps>) -> Self {
        let threads = encoder.ops().threads().current_num_threads();
        Self((0..threads).map(|_| Mutex::new(Lane::new(encoder.ops().beside()))).collect())
    }

    /// Runs `shares` of `batch`, ranges of sequences that follow each other.
    pub(super) fn run(
        &mut self,
        encoder: &Encoder<CpuOps>,
        batch: &Batch,
        shares: &[Range<usize>],
        progress: &Progress,
    ) -> Result<Embeddings, EngineError> {
        let next = AtomicUsize::new(0);
        let results = Mutex::new(Vec::new());
        encoder.ops().threads().broadcast(|thread| {
            let mut lane = self.0[thread.index()].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let mut part = Batch::default();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(share) = shares.get(index) else { break };
                part.clear();
                for sequence in share.clone() {
                    let pooled = batch.pooled_residues[sequence];
                    part.push_tokens(batch.ordinals[sequence], batch.sequence(sequence), pooled);
                }
                let result = encoder.run_in(&mut lane, &part, progress);
                results.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((index, result));
            }
        });
        let mut results = results.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        results.sort_unstable_by_key(|(index, _)| *index);
        let mut whole = Embeddings::default();
        let mut non_finite = Vec::new();
        for (index, result) in results {
            match result {
                Ok(Embeddings { hidden, mut values }) => {
                    whole.hidden = hidden;
                    whole.values.append(&mut values);
                }
                Err(EngineError::NonFinite { sequences }) => {
                    let first = shares[index].start as u32;
                    non_finite.extend(sequences.into_iter().map(|sequence| first + sequence));
                }
                Err(EngineError::OutOfMemory { .. }) => {
                    return Err(EngineError::OutOfMemory { tokens: batch.token_count() });
                }
                Err(error) => return Err(error),
            }
        }
        if non_finite.is_empty() { Ok(whole) } else { Err(EngineError::NonFinite { sequences: non_finite }) }
    }
}

/// Divides the sequences of `batch` into shares for `threads`; `None` where all threads had better work
/// on each operation: a single thread, few tokens, or a sequence that outweighs the others.
pub(super) fn shares(batch: &Batch, config: &ModelConfig, threads: usize) -> Option<Vec<Range<usize>>> {
    let tokens = batch.token_count();
    if batch.len() < threads || tokens < threads * SHARE_TOKENS_MIN {
        return None;
    }
    if threads == 1 && tokens <= SHARE_TOKENS {
        return None;
    }
    let cost = |sequence: usize| {
        let tokens = batch.sequence(sequence).len();
        tokens as u64 * config.flops_per_token(tokens)
    };
    let total: u64 = (0..batch.len()).map(cost).sum();
    let count = tokens.div_ceil(SHARE_TOKENS).next_multiple_of(threads);
    let mut shares = Vec::with_capacity(count);
    // What each thread does when it takes the next share whenever it is done.
    let mut busy = vec![0u64; threads];
    let (mut start, mut before) = (0, 0);
    for index in 0..count as u64 {
        let limit = u128::from(total) * u128::from(index + 1) / count as u128;
        let (mut end, mut done) = (start, before);
        while end < batch.len() && u128::from(done + cost(end) / 2) <= limit {
            done += cost(end);
            end += 1;
        }
        if start < end {
            shares.push(start..end);
            if let Some(least) = busy.iter_mut().min() {
                *least += done - before;
            }
        }
        (start, before) = (end, done);
    }
    if start < batch.len() {
        shares.push(start..batch.len());
        if let Some(least) = busy.iter_mut().min() {
            *least += total - before;
        }
    }
    let most = busy.into_iter().max().unwrap_or(0);
    let even = u128::from(most) * threads as u128 * 100 <= u128::from(total) * u128::from(UNEVEN_PERCENT_MAX);
    even.then_some(shares)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Shape;

    fn config() -> ModelConfig {
        Shape::published("8M").unwrap().config()
    }

    fn batch(lengths: impl IntoIterator<Item = usize>) -> Batch {
        let mut batch = Batch::default();
        for (ordinal, length) in (0..).zip(lengths) {
            batch.push(ordinal, &vec![b'A'; length], length as u32);
        }
        batch
    }

    #[test]
    fn every_sequence_is_in_one_share() {
        for threads in 1..9 {
            for lengths in [vec![126; 64], (1..120).collect(), (1..120).rev().collect(), vec![1; 2_000]] {
                let batch = batch(lengths);
                if let Some(shares) = shares(&batch, &config(), threads) {
                    let all: Vec<_> = shares.iter().cloned().flatten().collect();
                    assert_eq!(all, (0..batch.len()).collect::<Vec<_>>());
                    assert!(shares.iter().all(|share| !share.is_empty()));
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_divided_evenly_stays_whole() {
        let config = config();
        assert_eq!(shares(&batch([1_000]), &config, 2), None);
        assert_eq!(shares(&batch([1_000, 100]), &config, 2), None);
        assert_eq!(shares(&batch([60, 60]), &config, 2), None);
        assert_eq!(shares(&batch([100; 20]), &config, 64), None);
        assert_eq!(shares(&batch([100]), &config, 1), None);
        assert_eq!(shares(&batch([500, 500]), &config, 2), Some(vec![0..1, 1..2]));
        assert_eq!(shares(&batch([100, 100, 200]), &config, 2), Some(vec![0..2, 2..3]));
    }
}
