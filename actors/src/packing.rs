//! Packs sequences into batches of at most a token budget: best-fit decreasing over windows, the
//! emptiest batch of a window carried into the next.
//!
//! Pure and deterministic: the batches depend on the lengths, the budget and the window alone, never
//! on timing or devices. The packer actor and `plan` call it.

use std::collections::BTreeSet;

/// How batches are formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackingPlan {
    /// Tokens per batch; only a single sequence that is longer alone exceeds it.
    pub token_budget: u32,
    /// Sequences looked at together.
    pub window_sequences: usize,
}

/// A batch under construction.
struct Bin {
    sequences: Vec<u32>,
    tokens: u64,
}

/// Packs sequences `0..lengths.len()` into batches.
///
/// `token_counts`: tokens of each sequence, BOS and EOS included. Returns the sequence numbers of each
/// batch. Every sequence is in exactly one batch.
///
/// # Panics
/// If the batches do not hold exactly the sequences given: a lost sequence must never go unnoticed.
pub fn pack(token_counts: &[u32], plan: PackingPlan) -> Vec<Vec<u32>> {
    let mut batches: Vec<Vec<u32>> = Vec::new();
    let mut carried: Vec<u32> = Vec::new();
    let mut next = 0;
    while next < token_counts.len() {
        let end = (next + plan.window_sequences.max(1)).min(token_counts.len());
        let mut window = std::mem::take(&mut carried);
        window.extend(next as u32..end as u32);
        next = end;
        let mut bins = best_fit_decreasing(window, token_counts, u64::from(plan.token_budget));
        if next < token_counts.len() {
            // The emptiest batch is filled up by the next window; without this, each window would
            // leave a part-filled batch behind (10 % of all tokens at 2,000 short sequences).
            let emptiest = (0..bins.len()).min_by_key(|&bin| (bins[bin].tokens, bin));
            if let Some(bin) = emptiest {
                carried = bins.remove(bin).sequences;
            }
        }
        batches.extend(bins.into_iter().map(|bin| bin.sequences));
    }
    check_conservation(&batches, token_counts.len());
    batches
}

fn best_fit_decreasing(mut window: Vec<u32>, token_counts: &[u32], budget: u64) -> Vec<Bin> {
    window.sort_by_key(|&sequence| (std::cmp::Reverse(token_counts[sequence as usize]), sequence));
    let mut bins: Vec<Bin> = Vec::new();
    // Bins by room left; the first with enough room is the best fit.
    let mut by_room: BTreeSet<(u64, usize)> = BTreeSet::new();
    for sequence in window {
        let tokens = u64::from(token_counts[sequence as usize]);
        let fit = by_room.range((tokens, 0)..).next().copied();
        let bin = match fit {
            Some(entry) => {
                by_room.remove(&entry);
                entry.1
            }
            None => {
                bins.push(Bin { sequences: Vec::new(), tokens: 0 });
                bins.len() - 1
            }
        };
        bins[bin].sequences.push(sequence);
        bins[bin].tokens += tokens;
        if let Some(room) = budget.checked_sub(bins[bin].tokens).filter(|&room| room > 0) {
            by_room.insert((room, bin));
        }
    }
    bins
}

fn check_conservation(batches: &[Vec<u32>], sequences: usize) {
    let mut seen = vec![false; sequences];
    for &sequence in batches.iter().flatten() {
        let slot = &mut seen[sequence as usize];
        assert!(!*slot, "packing placed sequence {sequence} twice");
        *slot = true;
    }
    assert!(seen.iter().all(|&placed| placed), "packing lost a sequence");
}

/// How well batches fill their budget, and what padding would have cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Fill {
    /// Batches counted.
    pub batches: u64,
    /// Tokens in them.
    pub tokens: u64,
    /// Tokens they had room for; a batch over the budget counts as full.
    pub capacity_tokens: u64,
    /// Tokens that batches padded to their longest sequence would have held.
    pub padded_tokens: u64,
    /// Batches by how full they are: entry i counts those from 5·i % on, the last one full ones too.
    pub histogram: [u64; FILL_STEPS],
    /// Batches that are judged by the following: all but those at the end of the input, for which there was not
    /// enough left.
    pub judged: u64,
    /// Those of them that are less than 80 % full.
    pub below_80: u64,
    /// Those of them that are less than 85 % full, the former included.
    pub below_85: u64,
    /// How full the emptiest of them is, 0..=1.
    pub minimum: Option<f64>,
}

/// How well batches are filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FillTier {
    /// At least 85 % on average.
    Good,
    /// 80 to 85 %.
    Mild,
    /// Less than 80 %.
    Poor,
}

/// Steps of [`Fill::histogram`].
pub const FILL_STEPS: usize = 20;

impl Fill {
    /// Counts one batch.
    ///
    /// `longest`: tokens of its longest sequence. `token_budget`: what it could have held, on the device that had
    /// it.
    pub fn add(&mut self, sequences: usize, tokens: u64, longest: u64, token_budget: u32) {
        let share = self.add_last(sequences, tokens, longest, token_budget);
        self.judged += 1;
        self.below_80 += u64::from(share < 0.8);
        self.below_85 += u64::from(share < 0.85);
        self.minimum = Some(self.minimum.map_or(share, |minimum| minimum.min(share)));
    }

    /// Counts one batch at the end of the input, which could not be fuller; returns how full it is.
    pub fn add_last(&mut self, sequences: usize, tokens: u64, longest: u64, token_budget: u32) -> f64 {
        self.batches += 1;
        self.tokens += tokens;
        self.capacity_tokens += tokens.max(u64::from(token_budget));
        self.padded_tokens += longest * sequences as u64;
        let share = tokens as f64 / tokens.max(u64::from(token_budget)).max(1) as f64;
        self.histogram[((share * FILL_STEPS as f64) as usize).min(FILL_STEPS - 1)] += 1;
        share
    }

    /// Counts the batches of [`pack`].
    pub fn add_all(&mut self, batches: &[Vec<u32>], token_counts: &[u32], token_budget: u32) {
        for batch in batches {
            let tokens = batch.iter().map(|&sequence| u64::from(token_counts[sequence as usize]));
            let longest = tokens.clone().max().unwrap_or(0);
            self.add(batch.len(), tokens.sum(), longest, token_budget);
        }
    }

    /// Share of the capacity that holds tokens, 0..=1; 1 for no batch.
    pub fn mean(&self) -> f64 {
        if self.capacity_tokens == 0 { 1.0 } else { self.tokens as f64 / self.capacity_tokens as f64 }
    }

    /// Share of the batches that are less than 80 % full, those at the end of the input left out; `None` for none.
    pub fn below_80_share(&self) -> Option<f64> {
        (self.judged > 0).then(|| self.below_80 as f64 / self.judged as f64)
    }

    /// How good that is on average; `None` for no batch.
    pub fn tier(&self) -> Option<FillTier> {
        (self.batches > 0).then(|| match self.mean() {
            0.85.. => FillTier::Good,
            0.8.. => FillTier::Mild,
            _ => FillTier::Poor,
        })
    }

    /// Share of a padded run's tokens that would have been padding, 0..=1.
    pub fn padding_avoided(&self) -> f64 {
        if self.padded_tokens == 0 { 0.0 } else { 1.0 - self.tokens as f64 / self.padded_tokens as f64 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLAN: PackingPlan = PackingPlan { token_budget: 1000, window_sequences: 50 };

    proptest! {
        #[test]
        fn every_sequence_is_in_exactly_one_batch_within_the_budget(
            lengths in prop::collection::vec(3u32..1500, 0..400),
            window in 1usize..200,
        ) {
            let plan = PackingPlan { window_sequences: window, ..PLAN };
            let batches = pack(&lengths, plan);
            let mut seen: Vec<u32> = batches.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len() as u32).collect::<Vec<_>>());
            for batch in &batches {
                let tokens: u32 = batch.iter().map(|&s| lengths[s as usize]).sum();
                prop_assert!(tokens <= plan.token_budget || batch.len() == 1);
                prop_assert!(!batch.is_empty());
            }
        }

        #[test]
        fn packing_is_a_function_of_its_input(lengths in prop::collection::vec(3u32..1500, 0..200)) {
            prop_assert_eq!(pack(&lengths, PLAN), pack(&lengths, PLAN));
        }
    }

    #[test]
    fn short_open_reading_frames_fill_their_batches() {
        // 50 to 170 residues, the product's main input, at the defaults.
        let mut state = 1u64;
        let lengths: Vec<u32> = (0..16_384)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                52 + ((state >> 33) % 121) as u32
            })
            .collect();
        let plan = PackingPlan { token_budget: 16_384, window_sequences: 2000 };
        let mut fill = Fill::default();
        fill.add_all(&pack(&lengths, plan), &lengths, plan.token_budget);
        assert!(fill.mean() > 0.99, "{fill:?}");
    }

    #[test]
    fn only_a_last_batch_may_be_empty_unpunished() {
        let mut fill = Fill::default();
        assert_eq!((fill.tier(), fill.below_80_share(), fill.minimum), (None, None, None));
        for tokens in [790, 800, 849, 850, 2000] {
            fill.add(1, tokens, tokens, 1000);
        }
        fill.add_last(1, 10, 10, 1000);
        assert_eq!((fill.batches, fill.judged, fill.below_80, fill.below_85), (6, 5, 1, 3));
        assert_eq!((fill.below_80_share(), fill.minimum), (Some(0.2), Some(0.79)));
        assert_eq!((fill.histogram[15], fill.histogram[0], fill.histogram.iter().sum::<u64>()), (1, 1, 6));
        let tier = |tokens| {
            let mut fill = Fill::default();
            fill.add(1, tokens, tokens, 1000);
            fill.tier()
        };
        assert_eq!([850, 849, 799].map(tier), [FillTier::Good, FillTier::Mild, FillTier::Poor].map(Some));
    }

    #[test]
    fn a_sequence_over_the_budget_runs_alone() {
        let batches = pack(&[10, 5000, 10], PLAN);
        assert!(batches.contains(&vec![1]));
        assert_eq!(batches.len(), 2);
    }
}
