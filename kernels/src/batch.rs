//! A packed batch: the tokens of several sequences back to back, without padding.
//!
//! The packer builds it, the worker protocol carries it, an engine runs it.

use serde::{Deserialize, Serialize};

/// Sequences packed back to back, each as BOS, residues, EOS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Token ids, [tokens].
    #[serde(with = "serde_bytes")]
    pub tokens: Vec<u8>,
    /// Start of each sequence in `tokens` and, last, their total: [sequences + 1].
    pub cu_seqlens: Vec<u32>,
    /// How many leading residues of each sequence are pooled (or returned): [sequences].
    pub pooled_residues: Vec<u32>,
    /// Input ordinal of each sequence, its name in errors: [sequences].
    pub ordinals: Vec<u64>,
}

impl Batch {
    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.ordinals.len()
    }

    /// Whether the batch holds no sequence.
    pub fn is_empty(&self) -> bool {
        self.ordinals.is_empty()
    }

    /// Forgets every sequence and keeps the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.cu_seqlens.clear();
        self.pooled_residues.clear();
        self.ordinals.clear();
    }

    /// Number of tokens, BOS and EOS of every sequence included.
    pub fn token_count(&self) -> usize {
        self.tokens.len()
    }

    /// The tokens of sequence `index`, BOS and EOS included.
    pub fn sequence(&self, index: usize) -> &[u8] {
        &self.tokens[self.cu_seqlens[index] as usize..self.cu_seqlens[index + 1] as usize]
    }

    /// Tokens of the longest sequence.
    pub fn max_seqlen(&self) -> usize {
        self.cu_seqlens.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0)
    }

    /// Appends one sequence given as residue letters.
    ///
    /// `residues`: canonical letters (see [`crate::alphabet::tokenize_into`]), at least one.
    /// `pooled_residues`: how many leading residues are pooled, 1..=residues.len().
    pub fn push(&mut self, ordinal: u64, residues: &[u8], pooled_residues: u32) {
        debug_assert!(pooled_residues >= 1 && pooled_residues as usize <= residues.len());
        if self.cu_seqlens.is_empty() {
            self.cu_seqlens.push(0);
        }
        crate::alphabet::tokenize_into(residues, &mut self.tokens);
        self.cu_seqlens.push(u32::try_from(self.tokens.len()).expect("a batch holds fewer than 2^32 tokens"));
        self.pooled_residues.push(pooled_residues);
        self.ordinals.push(ordinal);
    }

    /// Appends one sequence given as tokens, BOS and EOS included.
    ///
    /// `pooled_residues`: as in [`Batch::push`].
    pub fn push_tokens(&mut self, ordinal: u64, tokens: &[u8], pooled_residues: u32) {
        if self.cu_seqlens.is_empty() {
            self.cu_seqlens.push(0);
        }
        self.tokens.extend_from_slice(tokens);
        self.cu_seqlens.push(u32::try_from(self.tokens.len()).expect("a batch holds fewer than 2^32 tokens"));
        self.pooled_residues.push(pooled_residues);
        self.ordinals.push(ordinal);
    }

    /// Checks that the parts agree: a batch also arrives from another process.
    ///
    /// # Errors
    /// A sentence that names the sequence and what does not fit; `vocab` is the number of tokens.
    pub fn check(&self, vocab: usize) -> Result<(), String> {
        if self.is_empty() && self.tokens.is_empty() && self.pooled_residues.is_empty() {
            return Ok(());
        }
        if self.cu_seqlens.len() != self.len() + 1 || self.pooled_residues.len() != self.len() {
            return Err(format!(
                "{} ordinals, {} sequence limits and {} pooled lengths do not fit together",
                self.len(),
                self.cu_seqlens.len(),
                self.pooled_residues.len()
            ));
        }
        if self.cu_seqlens[0] != 0 || self.cu_seqlens[self.len()] as usize != self.tokens.len() {
            return Err(format!("sequence limits do not span the batch's {} tokens", self.tokens.len()));
        }
        for (index, limits) in self.cu_seqlens.windows(2).enumerate() {
            let ordinal = self.ordinals[index];
            // BOS, at least one residue, EOS.
            if limits[1] < limits[0].saturating_add(3) {
                return Err(format!("sequence {ordinal} has no residue"));
            }
            let residues = limits[1] - limits[0] - 2;
            let pooled = self.pooled_residues[index];
            if pooled == 0 || pooled > residues {
                return Err(format!("sequence {ordinal} has {residues} residues, {pooled} are to be pooled"));
            }
        }
        match self.tokens.iter().find(|&&token| usize::from(token) >= vocab) {
            Some(token) => Err(format!("token {token} is outside the vocabulary of {vocab}")),
            None => Ok(()),
        }
    }

    /// Rows of output that sequence `index` yields: one if pooled, else one per returned residue.
    pub fn rows(&self, index: usize, pooling: crate::Pooling) -> usize {
        match pooling {
            crate::Pooling::Mean | crate::Pooling::Bos | crate::Pooling::Max => 1,
            crate::Pooling::None => self.pooled_residues[index] as usize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Batch {
        let mut batch = Batch::default();
        batch.push(7, b"MKV", 3);
        batch.push(9, b"LL", 1);
        batch
    }

    #[test]
    fn a_pushed_batch_holds_together() {
        let batch = two();
        assert_eq!(batch.check(33), Ok(()));
        assert_eq!(Batch::default().check(33), Ok(()));
        assert_eq!(batch.cu_seqlens, [0, 5, 9]);
        assert_eq!(batch.sequence(1), [0, 4, 4, 2]);
        assert_eq!(batch.max_seqlen(), 5);
        let mut tokens = Batch::default();
        tokens.push_tokens(7, batch.sequence(0), 3);
        tokens.push_tokens(9, batch.sequence(1), 1);
        assert_eq!(tokens, batch);
    }

    #[test]
    fn contradictions_are_named() {
        type Spoil = fn(&mut Batch);
        let cases: [(Spoil, &str); 8] = [
            (|b| b.ordinals.push(1), "3 ordinals"),
            (|b| b.pooled_residues.clear(), "0 pooled"),
            (|b| b.cu_seqlens[0] = 1, "do not span"),
            (|b| b.tokens.push(4), "do not span"),
            (|b| b.cu_seqlens[1] = 2, "sequence 7 has no residue"),
            (|b| b.cu_seqlens[1] = u32::MAX, "sequence 9 has no residue"),
            (|b| b.pooled_residues[1] = 3, "sequence 9 has 2 residues, 3"),
            (|b| b.tokens[2] = 33, "token 33"),
        ];
        for (spoil, expected) in cases {
            let mut batch = two();
            spoil(&mut batch);
            let error = batch.check(33).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
