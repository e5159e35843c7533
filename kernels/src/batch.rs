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

    /// Rows of output that sequence `index` yields: one if pooled, else one per returned residue.
    pub fn rows(&self, index: usize, pooling: crate::Pooling) -> usize {
        match pooling {
            crate::Pooling::Mean | crate::Pooling::Bos | crate::Pooling::Max => 1,
            crate::Pooling::None => self.pooled_residues[index] as usize,
        }
    }
}
