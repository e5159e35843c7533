//! Sequences to embed: of one length, or with the lengths of real proteins.

use std::fmt;
use std::str::FromStr;

use actors::packing::{PackingPlan, pack};
use kernels::Batch;

use super::random::Random;

/// How long the sequences of a measurement are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lengths {
    /// All of so many residues.
    Equal(usize),
    /// Those of UniProt.
    Uniprot,
}

/// Residues of real proteins; the file says which.
fn uniprot() -> Vec<usize> {
    let lines = include_str!("uniprot_lengths.txt").lines().filter(|line| !line.starts_with('#'));
    lines.flat_map(str::split_whitespace).filter_map(|word| word.parse().ok()).collect()
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        /// Beyond the longest protein known.
        const RESIDUES_MAX: usize = 100_000;
        match text.parse() {
            _ if text.eq_ignore_ascii_case("uniprot") => Ok(Self::Uniprot),
            Ok(residues @ 1..=RESIDUES_MAX) => Ok(Self::Equal(residues)),
            _ => Err(format!("`{text}` is neither a number of residues, 1 to {RESIDUES_MAX}, nor `uniprot`")),
        }
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Equal(residues) => residues.fmt(f),
            Self::Uniprot => f.write_str("uniprot"),
        }
    }
}

/// Sequences and the batches they are run in.
pub(super) struct Workload {
    /// Residues, in the order of their ordinals.
    pub(super) sequences: Vec<Vec<u8>>,
    pub(super) batches: Vec<Batch>,
}

impl Workload {
    /// Random sequences that fill about `batches` batches of `token_budget`.
    pub(super) fn new(lengths: Lengths, seed: u64, token_budget: u32, batches: usize) -> Self {
        let mut random = Random::new(seed);
        let budget = token_budget as usize;
        let sequences: Vec<Vec<u8>> = match lengths {
            Lengths::Equal(residues) => {
                let count = batches * (budget / (residues + 2)).max(1);
                (0..count).map(|_| random.protein(residues)).collect()
            }
            Lengths::Uniprot => {
                let mut left = batches * budget;
                let lengths = uniprot().into_iter().cycle().take_while(|residues| {
                    let fits = left > 0;
                    left = left.saturating_sub(residues + 2);
                    fits
                });
                lengths.map(|residues| random.protein(residues)).collect()
            }
        };
        let counts: Vec<u32> = sequences.iter().map(|residues| residues.len() as u32 + 2).collect();
        // As a run packs them, but all looked at together.
        let plan = PackingPlan { token_budget, window_sequences: counts.len() };
        let batches = pack(&counts, plan).into_iter().map(|members| {
            let mut batch = Batch::default();
            for member in members {
                let residues = &sequences[member as usize];
                batch.push(u64::from(member), residues, residues.len() as u32);
            }
            batch
        });
        let batches = batches.collect();
        Self { sequences, batches }
    }

    /// The batches that are as full as those in the middle of a long run.
    pub(super) fn full_batches(&self) -> Vec<&Batch> {
        let most = self.batches.iter().map(Batch::token_count).max().unwrap_or(0);
        self.batches.iter().filter(|batch| batch.token_count() * 10 >= most * 9).collect()
    }

    /// The sequences as FASTA, their ordinals for names.
    pub(super) fn fasta(&self) -> String {
        let mut text = String::new();
        for (ordinal, residues) in self.sequences.iter().enumerate() {
            text += &format!(">{ordinal}\n{}\n", String::from_utf8_lossy(residues));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_lengths_is_whole() {
        let lengths = uniprot();
        assert_eq!((lengths.len(), lengths.iter().sum::<usize>()), (1_000, 476_759));
    }

    #[test]
    fn workloads_fill_their_batches() {
        let equal = Workload::new(Lengths::Equal(102), 1, 1_100, 4);
        assert_eq!((equal.sequences.len(), equal.batches.len(), equal.full_batches().len()), (40, 4, 4));
        let real = Workload::new(Lengths::Uniprot, 1, 20_000, 3);
        let tokens: usize = real.batches.iter().map(Batch::token_count).sum();
        assert_eq!(tokens, real.sequences.iter().map(|residues| residues.len() + 2).sum::<usize>());
        assert!((60_000..68_000).contains(&tokens), "{tokens}");
        assert!(real.full_batches().len() >= 2);
        // A budget below the length of a sequence still gives batches.
        assert_eq!(Workload::new(Lengths::Equal(500), 1, 100, 2).batches.len(), 2);
    }

    #[test]
    fn lengths_are_read() {
        assert_eq!("51".parse(), Ok(Lengths::Equal(51)));
        assert_eq!("UniProt".parse(), Ok(Lengths::Uniprot));
        for text in ["", "0", "-1", "many", "100001"] {
            assert!(text.parse::<Lengths>().is_err(), "{text}");
        }
    }
}
