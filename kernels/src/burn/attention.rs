//! Attention within each sequence of a packed batch, in padded groups of sequences of like length: burn has no
//! attention over packed sequences.

use burn_tensor::backend::Backend;
use burn_tensor::{Bool, Int, Tensor, TensorData, activation};

use super::product::Products;
use crate::{Batch, Progress};

/// Scores that exist at a time: 128 MiB in f32, of which burn keeps up to three copies.
const SCORES_MAX: usize = 1 << 25;

/// Sequences that are attended together.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    /// Positions in the batch, longest first.
    sequences: Vec<usize>,
    /// Tokens of the longest: the others are padded to it.
    length: usize,
}

/// Groups sequences of like length: none is padded by more than a third of its own tokens, and a group of more than
/// one sequence has at most `scores_max` scores.
fn groups(lengths: &[usize], heads: usize, scores_max: usize) -> Vec<Group> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&sequence| std::cmp::Reverse(lengths[sequence]));
    let mut groups: Vec<Group> = Vec::new();
    for sequence in order {
        match groups.last_mut() {
            Some(Group { sequences, length })
                if 4 * lengths[sequence] >= 3 * *length
                    && (sequences.len() + 1) * heads * *length * *length <= scores_max =>
            {
                sequences.push(sequence);
            }
            Some(_) | None => groups.push(Group { sequences: vec![sequence], length: lengths[sequence] }),
        }
    }
    groups
}

/// A group on the device.
struct Padded<B: Backend> {
    sequences: usize,
    length: usize,
    /// Row of the packed batch for each place, [sequences · length]. Padding repeats the sequence's own last token:
    /// another one's values, or NaN, never come near.
    rows: Tensor<B, 1, Int>,
    /// True at padding, [sequences, 1, 1, length]; `None` where there is none.
    mask: Option<Tensor<B, 4, Bool>>,
}

/// The shape of a batch on the device: which tokens see which.
pub(super) struct Layout<B: Backend> {
    groups: Vec<Padded<B>>,
    /// Place of each packed token among the groups' rows, one group after the other: [tokens].
    places: Tensor<B, 1, Int>,
}

impl<B: Backend> Layout<B> {
    pub(super) fn new(batch: &Batch, heads: usize, device: &B::Device) -> Self {
        let lengths: Vec<usize> = (0..batch.len()).map(|index| batch.sequence(index).len()).collect();
        Self::of_groups(batch, &groups(&lengths, heads, SCORES_MAX), device)
    }

    fn of_groups(batch: &Batch, groups: &[Group], device: &B::Device) -> Self {
        let mut places = vec![0i32; batch.token_count()];
        let mut place = 0;
        let groups = groups
            .iter()
            .map(|Group { sequences, length }| {
                let (mut rows, mut padding) = (Vec::new(), Vec::new());
                for &sequence in sequences {
                    let start = batch.cu_seqlens[sequence] as usize;
                    let tokens = batch.sequence(sequence).len();
                    for position in 0..*length {
                        let row = start + position.min(tokens - 1);
                        rows.push(row as i32);
                        padding.push(position >= tokens);
                        if position < tokens {
                            places[row] = place;
                        }
                        place += 1;
                    }
                }
                let mask = padding.contains(&true).then(|| {
                    Tensor::from_data(TensorData::new(padding, [sequences.len(), 1, 1, *length]), device)
                });
                let count = rows.len();
                let rows = Tensor::from_ints(TensorData::new(rows, [count]), device);
                Padded { sequences: sequences.len(), length: *length, rows, mask }
            })
            .collect();
        let places = Tensor::from_ints(TensorData::new(places, [batch.token_count()]), device);
        Self { groups, places }
    }

    /// Attends within each sequence.
    ///
    /// `query` (already scaled), `key` and `value`: [tokens, heads, head width]. Returns [tokens, hidden].
    pub(super) fn attend(
        &self,
        query: Tensor<B, 3>,
        key: Tensor<B, 3>,
        value: Tensor<B, 3>,
        products: Products,
        progress: &Progress,
    ) -> Tensor<B, 2> {
        self.attend_in_blocks(query, key, value, products, SCORES_MAX, progress)
    }

    fn attend_in_blocks(
        &self,
        query: Tensor<B, 3>,
        key: Tensor<B, 3>,
        value: Tensor<B, 3>,
        products: Products,
        scores_max: usize,
        progress: &Progress,
    ) -> Tensor<B, 2> {
        let [_, heads, head_width] = query.dims();
        let mut attended = Vec::with_capacity(self.groups.len());
        for group in &self.groups {
            let Padded { sequences, length, .. } = *group;
            // [sequences, heads, length, head width].
            let padded = |x: &Tensor<B, 3>| {
                let rows = x.clone().select(0, group.rows.clone());
                rows.reshape([sequences, length, heads, head_width]).swap_dims(1, 2)
            };
            let (query, keys, value) = (padded(&query), padded(&key).swap_dims(2, 3), padded(&value));
            // A long sequence is attended some rows at a time: a row's result needs no other.
            let rows_max = (scores_max / (sequences * heads * length)).clamp(1, length);
            let mut blocks = Vec::new();
            for start in (0..length).step_by(rows_max) {
                let rows = rows_max.min(length - start);
                let scores = products.of(query.clone().narrow(2, start, rows), keys.clone());
                let scores = match &group.mask {
                    Some(mask) => {
                        let mask = mask.clone().expand([sequences, heads, rows, length]);
                        scores.mask_fill(mask, f32::NEG_INFINITY)
                    }
                    None => scores,
                };
                blocks.push(products.of(activation::softmax(scores, 3), value.clone()));
                progress.tick();
            }
            let whole = Tensor::cat(blocks, 2).swap_dims(1, 2);
            attended.push(whole.reshape([sequences * length, heads * head_width]));
        }
        Tensor::cat(attended, 0).select(0, self.places.clone())
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_sequence_is_in_one_group_and_little_is_padded(
            lengths in prop::collection::vec(3usize..2_000, 1..60),
            heads in 1usize..41,
        ) {
            let groups = groups(&lengths, heads, 1 << 20);
            let mut seen: Vec<usize> = groups.iter().flat_map(|group| group.sequences.clone()).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for Group { sequences, length } in groups {
                prop_assert_eq!(lengths[sequences[0]], length);
                prop_assert!(sequences.iter().all(|&s| 3 * length <= 4 * lengths[s] && lengths[s] <= length));
                prop_assert!(sequences.len() == 1 || sequences.len() * heads * length * length <= 1 << 20);
            }
        }
    }

    fn batch(lengths: &[usize]) -> Batch {
        let mut batch = Batch::default();
        for (ordinal, &length) in lengths.iter().enumerate() {
            batch.push(ordinal as u64, &vec![b'A'; length - 2], 1);
        }
        batch
    }

    /// Some numbers for [tokens, heads 2, head width 4].
    fn values(tokens: usize, seed: f32) -> Vec<f32> {
        (0..tokens * 8).map(|place| (place as f32 * seed).sin()).collect()
    }

    /// Attention from its definition, in f64, one sequence at a time.
    fn expected(batch: &Batch, query: &[f32], key: &[f32], value: &[f32]) -> Vec<f64> {
        let at =
            |x: &[f32], row: usize, head: usize, column: usize| f64::from(x[row * 8 + head * 4 + column]);
        let mut out = Vec::new();
        for limits in batch.cu_seqlens.windows(2) {
            let rows = limits[0] as usize..limits[1] as usize;
            for q in rows.clone() {
                for head in 0..2 {
                    let weights: Vec<f64> = rows
                        .clone()
                        .map(|k| {
                            (0..4).map(|c| at(query, q, head, c) * at(key, k, head, c)).sum::<f64>().exp()
                        })
                        .collect();
                    let sum: f64 = weights.iter().sum();
                    for c in 0..4 {
                        let weighted = rows.clone().zip(&weights).map(|(k, w)| w * at(value, k, head, c));
                        out.push(weighted.sum::<f64>() / sum);
                    }
                }
            }
        }
        out
    }

    /// Attends in groups of at most `scores_max` scores and in blocks of as many.
    fn attended(batch: &Batch, parts: &[Vec<f32>; 3], scores_max: usize) -> Vec<f32> {
        let lengths: Vec<usize> = (0..batch.len()).map(|index| batch.sequence(index).len()).collect();
        let groups = groups(&lengths, 2, scores_max);
        let layout = Layout::<Flex>::of_groups(batch, &groups, &FlexDevice);
        let [query, key, value] = parts.each_ref().map(|part| {
            let data = TensorData::new(part.clone(), [batch.token_count(), 2, 4]);
            Tensor::<Flex, 3>::from_data(data, &FlexDevice)
        });
        let got =
            layout.attend_in_blocks(query, key, value, Products::Plain, scores_max, &Progress::default());
        got.into_data().to_vec::<f32>().unwrap()
    }

    #[test]
    fn padded_groups_and_blocks_of_rows_give_the_attention_of_each_sequence() {
        let batch = batch(&[5, 40, 3, 33, 31, 4, 12, 5]);
        let parts = [0.37, 0.91, 1.7].map(|seed| values(batch.token_count(), seed));
        let expected = expected(&batch, &parts[0], &parts[1], &parts[2]);
        // From one row at a time to all sequences of a length at once.
        for scores_max in [1, 200, 3_000, 1 << 20] {
            for (place, (got, expected)) in
                attended(&batch, &parts, scores_max).iter().zip(&expected).enumerate()
            {
                assert!(
                    (f64::from(*got) - expected).abs() < 1e-6,
                    "{scores_max}, {place}: {got}, {expected}"
                );
            }
        }
    }

    #[test]
    fn nan_stays_in_its_sequence() {
        let batch = batch(&[5, 6, 5]);
        let mut parts = [0.37, 0.91, 1.7].map(|seed| values(batch.token_count(), seed));
        for part in &mut parts {
            part[6 * 8] = f32::NAN;
        }
        let got = attended(&batch, &parts, 1 << 20);
        for (row, values) in got.chunks_exact(8).enumerate() {
            assert_eq!(values.iter().any(|value| value.is_nan()), (5..11).contains(&row), "row {row}");
        }
    }
}
