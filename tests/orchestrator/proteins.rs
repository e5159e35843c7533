//! Random proteins, the same for the same seed.

use std::fmt::Write;
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

/// SplitMix64.
pub(crate) struct Random(u64);

impl Random {
    /// Starts from a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Starts from `VIRNUCPRO_TEST_SEED`, else from the time; says which.
    pub(crate) fn from_environment(what: &str) -> Self {
        let given = std::env::var("VIRNUCPRO_TEST_SEED").ok().map(|text| text.parse().unwrap());
        let time = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = given.unwrap_or_else(time);
        println!("{what}: VIRNUCPRO_TEST_SEED={seed}");
        Self(seed)
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut state = self.0;
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    }

    /// A number within a range.
    pub(crate) fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }
}

/// Residues of one random protein.
pub(crate) fn residues(random: &mut Random, length: Range<u64>) -> String {
    let letters = b"ACDEFGHIKLMNPQRSTVWY";
    let length = random.within(length);
    (0..length).map(|_| char::from(letters[random.within(0..20) as usize])).collect()
}

/// FASTA of `count` random proteins `p0`, `p1`, …
pub(crate) fn fasta(seed: u64, count: usize, length: Range<u64>) -> String {
    let mut random = Random::new(seed);
    let mut text = String::new();
    for number in 0..count {
        writeln!(text, ">p{number} random\n{}", residues(&mut random, length.clone())).unwrap();
    }
    text
}

/// Ids and residues of a FASTA text whose sequences need no cleaning but joining and upper case.
pub(crate) fn records(fasta: &str) -> Vec<(String, String)> {
    let records = fasta.split('>').skip(1);
    records
        .map(|record| {
            let (header, lines) = record.split_once('\n').unwrap();
            let residues = lines.split_whitespace().collect::<String>().to_ascii_uppercase();
            (header.split_whitespace().next().unwrap().to_owned(), residues)
        })
        .collect()
}
