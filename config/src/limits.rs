//! The least and the most of every number in a job, each with its reason.
//!
//! The resolver checks against them, the schema shows them to editors.

use std::fmt;

/// The numbers a key takes, both ends included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) min: i64,
    pub(crate) max: i64,
}

impl Limit {
    const fn new(min: i64, max: i64) -> Self {
        Self { min, max }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", Grouped(self.min), Grouped(self.max))
    }
}

/// Writes a number as TOML takes it, in groups of three: `16_777_216`.
struct Grouped(i64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.unsigned_abs().to_string();
        if self.0 < 0 {
            f.write_str("-")?;
        }
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                f.write_str("_")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// Bytes of a job file. One that lists ten thousand inputs takes one million; whatever is larger was not meant (a
/// FASTA file named in its place), and the parser takes a hundred times the size of what is wrong throughout.
pub(crate) const JOB_FILE_BYTES_MAX: u64 = 4 << 20;
/// Inputs of a job. Each is named, with its digest, in `run.json`, which every commit writes anew.
pub(crate) const INPUT_FILES_MAX: usize = 100_000;
/// Devices of a job, each a process: more than any machine has.
pub(crate) const DEVICES_MAX: usize = 1_024;
/// Mistakes reported at once: nobody reads more, and each may hold a copy of the text.
pub(crate) const MISTAKES_MAX: usize = 20;
/// Names in a folder that are looked at for a likely meant one: a courtesy must not take minutes.
pub(crate) const NAMES_COMPARED_MAX: usize = 10_000;

/// A day: a longer pause or wait is a typing mistake (seconds taken for milliseconds and the like).
const DAY_MS: i64 = 86_400_000;

/// 0: no limit. The longest known protein has some 45,000 residues; the end matches the largest batch.
pub(crate) const MAX_RESIDUES: Limit = Limit::new(0, 16_777_216);
/// A header alone takes tens of bytes; 16 GiB is beyond any chromosome, let alone a protein.
pub(crate) const MAX_RECORD_BYTES: Limit = Limit::new(64, 17_179_869_184);
/// Far beyond any published model (48 layers); the model itself sets the real end.
pub(crate) const LAYER: Limit = Limit::new(0, 1_000);
/// Below 64 tokens nearly every protein stands alone; 16 Mi tokens exceed any device's memory.
pub(crate) const TOKEN_BUDGET: Limit = Limit::new(64, 16_777_216);
/// Sequences held in memory while packing; a million average proteins take half a gigabyte.
pub(crate) const BUFFER_SEQUENCES: Limit = Limit::new(1, 1_000_000);
/// Rows of one part file, lost and computed again after a crash: 1 Mi rows of 2,560 numbers are 10 GiB.
pub(crate) const SEGMENT_SEQUENCES: Limit = Limit::new(1, 1_048_576);
/// 0: every batch is kept at once, which costs as much writing again as the results.
pub(crate) const JOURNAL_MS: Limit = Limit::new(0, DAY_MS);
/// The largest machines have fewer hardware threads.
pub(crate) const THREADS: Limit = Limit::new(1, 4_096);
/// Simulated devices each take a process; more than 64 test nothing new.
pub(crate) const SIMULATED_DEVICES: Limit = Limit::new(1, 64);
/// 0 would restart a broken device in a tight loop.
pub(crate) const BACKOFF_MS: Limit = Limit::new(1, DAY_MS);
/// At least one try; beyond 100 a poison sequence holds the job up for nothing.
pub(crate) const ATTEMPTS_PER_BATCH: Limit = Limit::new(1, 100);
/// 0: a device that fails once is retired.
pub(crate) const RESTARTS_PER_DEVICE: Limit = Limit::new(0, 10_000);
/// Shorter than 100 ms would kill workers that are merely scheduled late.
pub(crate) const HANG_MS: Limit = Limit::new(100, DAY_MS);
/// The same reason as [`HANG_MS`].
pub(crate) const LOAD_MS: Limit = Limit::new(100, DAY_MS);
/// 0: never again. Shorter than a second would do little but load the model.
pub(crate) const READMIT_MS: Limit = Limit::new(0, DAY_MS);
/// Shorter would speak of every batch of a large model on a CPU.
pub(crate) const STALL_MS: Limit = Limit::new(100, DAY_MS);
/// 0: stop at once and leave what is in flight to the next run.
pub(crate) const SHUTDOWN_GRACE_MS: Limit = Limit::new(0, DAY_MS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_as_toml_takes_them() {
        assert_eq!(TOKEN_BUDGET.to_string(), "64 to 16_777_216");
        assert_eq!(Limit::new(-1234, 0).to_string(), "-1_234 to 0");
        assert_eq!(Limit::new(100, 1_000).to_string(), "100 to 1_000");
    }
}
