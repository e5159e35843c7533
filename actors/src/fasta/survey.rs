//! `survey`: one pass over the whole input before anything is computed.
//!
//! `plan` prints it, `run` starts with it: digests, counts, lengths, and the checks that need all records
//! (nucleotides instead of proteins, repeated ids). It keeps no sequence and it changes nothing.

use std::path::Path;

use config::{Alphabet, DuplicateIds, Input};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::duplicates::{IdHash, IdHashes};
use super::error::InputError;
use super::source::{FileDigest, Source};
use super::stream::{InputCounts, Item, Record, RecordStream, Rejected};

/// What the input is, as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Survey {
    /// Every input in reading order.
    pub files: Vec<FileDigest>,
    /// Records, residues, what cleaning changed.
    pub counts: InputCounts,
    /// The first of the longest sequences; `None` without any sequence.
    pub longest: Option<Longest>,
    /// How long the sequences are.
    pub lengths: LengthHistogram,
    /// Records that repeat an earlier id, told by 64-bit hash; 0 under `duplicate_ids = "stop"`.
    pub repeated_ids: u64,
    /// The first rejected records, at most ten.
    pub first_rejected: Vec<Rejected>,
}

/// One long sequence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Longest {
    /// Its id.
    pub id: String,
    /// Its residues, after cleaning and truncation.
    pub residues: u64,
}

/// Sequences by length: 50 residues a bin up to 2000, then doubling.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LengthHistogram {
    /// The bins that hold a sequence, shortest first.
    pub bins: Vec<LengthBin>,
}

/// The sequences of similar length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LengthBin {
    /// Shortest length of the bin.
    pub residues_min: u64,
    /// Longest length of the bin.
    pub residues_max: u64,
    /// Sequences in it.
    pub sequences: u64,
    /// Residues of these sequences.
    pub residues: u64,
}

/// Rejected records kept as examples.
const REJECTED_TOLD_MAX: usize = 10;

/// Records between two reports of progress.
const PROGRESS_RECORDS: u64 = 4096;

/// Reads all of `sources` once and checks what only the whole input can tell.
///
/// `row_residues_max`: see [`RecordStream::with_row_residues_max`]. `scratch_dir`: where hashes of ids go once they are too many for memory; made when needed.
/// `progress`: called now and then with the bytes read and the bytes in all, as stored.
///
/// # Errors
/// What [`RecordStream`] returns; [`InputError::LooksLikeNucleotides`]; [`InputError::DuplicateIds`] under
/// `duplicate_ids = "stop"`; [`InputError::Scratch`].
pub fn survey(
    input: &Input,
    sources: &[Source],
    row_residues_max: u32,
    scratch_dir: &Path,
    progress: &dyn Fn(u64, u64),
) -> Result<Survey, InputError> {
    survey_with(input, sources, row_residues_max, scratch_dir, progress, xxh3_64)
}

fn survey_with(
    input: &Input,
    sources: &[Source],
    row_residues_max: u32,
    scratch_dir: &Path,
    progress: &dyn Fn(u64, u64),
    hash: IdHash,
) -> Result<Survey, InputError> {
    let open = || Ok(RecordStream::open(input, sources)?.with_row_residues_max(row_residues_max));
    let mut stream: RecordStream = open()?;
    let mut ids = IdHashes::new(scratch_dir, hash);
    let mut letters = LetterCensus::new(input.alphabet);
    let mut lengths = Lengths::default();
    let mut longest: Option<Longest> = None;
    let mut first_rejected = Vec::new();

    while let Some(item) = stream.next() {
        match item? {
            Item::Record(record) => {
                if record.file != letters.file {
                    letters.verdict(stream.label(letters.file))?;
                    letters.restart(record.file);
                }
                letters.add(&record, stream.label(record.file))?;
                ids.insert(&record.id)?;
                let residues = record.residues.len() as u64;
                lengths.add(residues);
                if longest.as_ref().is_none_or(|longest| residues > longest.residues) {
                    longest = Some(Longest { id: record.id, residues });
                }
            }
            Item::Rejected(rejected) => {
                if first_rejected.len() < REJECTED_TOLD_MAX {
                    first_rejected.push(rejected);
                }
            }
        }
        if stream.counts().records.is_multiple_of(PROGRESS_RECORDS) {
            progress(stream.bytes_read(), stream.bytes_total());
        }
    }
    if !sources.is_empty() {
        letters.verdict(stream.label(letters.file))?;
    }
    progress(stream.bytes_read(), stream.bytes_total());

    let repeated_ids = match input.duplicate_ids {
        DuplicateIds::Keep => ids.suspects(0)?.repeats,
        DuplicateIds::Stop => {
            let (duplicates, repeats) = ids.duplicates(open)?;
            if !duplicates.is_empty() {
                return Err(InputError::DuplicateIds { duplicates, repeats });
            }
            0
        }
    };
    Ok(Survey {
        files: stream.digests().to_vec(),
        counts: stream.counts().clone(),
        longest,
        lengths: lengths.histogram(),
        repeated_ids,
        first_rejected,
    })
}

/// Records of each input whose letters are looked at: an assembly shows itself in the first few.
const CENSUS_RECORDS: u64 = 100;

/// Fewer letters prove nothing: a handful of short peptides may well be all A and G.
const CENSUS_LETTERS_MIN: u64 = 200;

/// The letters in the first records of one input.
///
/// A, C, G, T, U and N are amino acids too, about a third of a usual protein. Nucleotides are
/// assumed only if they are more than 95 % of at least 200 letters and A, C, G and one of T and U all occur:
/// a low-complexity protein lacks one of the four. The job's `alphabet` does not change this, since either
/// value would send the same letters to a protein model.
struct LetterCensus {
    file: usize,
    records: u64,
    letters: u64,
    count_of: [u64; 256],
}

impl LetterCensus {
    fn new(alphabet: Alphabet) -> LetterCensus {
        match alphabet {
            Alphabet::Protein | Alphabet::Auto => {
                LetterCensus { file: 0, records: 0, letters: 0, count_of: [0; 256] }
            }
        }
    }

    fn restart(&mut self, file: usize) {
        *self = LetterCensus { file, records: 0, letters: 0, count_of: [0; 256] };
    }

    fn add(&mut self, record: &Record, label: &str) -> Result<(), InputError> {
        if self.records == CENSUS_RECORDS {
            return Ok(());
        }
        self.records += 1;
        for &letter in record.residues.iter().filter(|letter| letter.is_ascii_uppercase()) {
            self.count_of[usize::from(letter)] += 1;
            self.letters += 1;
        }
        if self.records == CENSUS_RECORDS { self.verdict(label) } else { Ok(()) }
    }

    fn verdict(&self, label: &str) -> Result<(), InputError> {
        let count = |letter: u8| self.count_of[usize::from(letter)];
        let thymine = count(b'T') + count(b'U');
        let four = [count(b'A'), count(b'C'), count(b'G'), thymine];
        let nucleotides = four.iter().sum::<u64>() + count(b'N');
        // Integers, so that the boundary is exact: nucleotides / letters > 95 / 100.
        let mostly = nucleotides * 100 > self.letters * 95;
        if self.letters >= CENSUS_LETTERS_MIN && mostly && four.iter().all(|&count| count > 0) {
            return Err(InputError::LooksLikeNucleotides {
                file: label.to_owned(),
                records: self.records,
                letters: self.letters,
                nucleotides,
            });
        }
        Ok(())
    }
}

/// Width of the even bins, residues.
const EVEN_WIDTH: u64 = 50;
/// Even bins; above them each bin is twice as long as all before it.
const EVEN_BINS: u64 = 40;
/// Longest length in an even bin.
const EVEN_MAX: u64 = EVEN_WIDTH * EVEN_BINS;

/// The histogram while it grows.
#[derive(Default)]
struct Lengths {
    /// Sequences and residues per bin, grown on demand (at most 62 bins, lengths fit in 32 bits).
    bins: Vec<(u64, u64)>,
}

impl Lengths {
    /// `residues`: at least 1.
    fn add(&mut self, residues: u64) {
        let bin = bin_of(residues);
        if self.bins.len() <= bin {
            self.bins.resize(bin + 1, (0, 0));
        }
        self.bins[bin].0 += 1;
        self.bins[bin].1 += residues;
    }

    fn histogram(&self) -> LengthHistogram {
        let occupied = self.bins.iter().enumerate().filter(|(_, (sequences, _))| *sequences > 0);
        let bins = occupied.map(|(bin, &(sequences, residues))| {
            let (residues_min, residues_max) = bounds_of(bin);
            LengthBin { residues_min, residues_max, sequences, residues }
        });
        LengthHistogram { bins: bins.collect() }
    }
}

fn bin_of(residues: u64) -> usize {
    let below = residues.saturating_sub(1);
    let bin =
        if below < EVEN_MAX { below / EVEN_WIDTH } else { EVEN_BINS + u64::from((below / EVEN_MAX).ilog2()) };
    bin as usize
}

/// Shortest and longest length of a bin.
fn bounds_of(bin: usize) -> (u64, u64) {
    let bin = bin as u64;
    if bin < EVEN_BINS {
        (bin * EVEN_WIDTH + 1, (bin + 1) * EVEN_WIDTH)
    } else {
        let start = EVEN_MAX << (bin - EVEN_BINS);
        (start + 1, start * 2)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::fmt::Write;
    use std::num::NonZeroU32;

    use config::{OnBadRecord, TooLong};

    use super::super::stream::tests::{files, policy, without_folder};
    use super::*;

    fn run_with(input: &Input, contents: &[&[u8]], hash: IdHash) -> Result<Survey, (String, InputError)> {
        let folder = tempfile::tempdir().unwrap();
        let sources = files(folder.path(), contents);
        survey_with(input, &sources, u32::MAX, &folder.path().join("scratch"), &|_, _| {}, hash)
            .map_err(|error| (without_folder(&error.to_string(), folder.path()), error))
    }

    fn run(input: &Input, contents: &[&[u8]]) -> Result<Survey, (String, InputError)> {
        run_with(input, contents, xxh3_64)
    }

    #[test]
    fn the_whole_input_is_described() {
        let input = Input {
            on_bad_record: OnBadRecord::Skip,
            max_residues: NonZeroU32::new(60),
            too_long: TooLong::Truncate,
            ..policy()
        };
        let long = [&b">long\n"[..], &b"M".repeat(70)].concat();
        let survey = run(&input, &[b">a\nMK\n>bad\n1\n>b\nMKV\n", &long, b">also\n", b">tie\nMKV*"]).unwrap();
        assert_eq!(survey.files.len(), 4);
        assert_eq!(survey.counts.records, 6);
        assert_eq!(survey.counts.rejected, 2);
        assert_eq!(survey.counts.truncated, 1);
        assert_eq!(survey.counts.residues, 2 + 3 + 60 + 3);
        assert_eq!(survey.longest, Some(Longest { id: "long".to_owned(), residues: 60 }));
        let bin = |residues_min, residues_max, sequences, residues| LengthBin {
            residues_min,
            residues_max,
            sequences,
            residues,
        };
        assert_eq!(survey.lengths.bins, [bin(1, 50, 3, 8), bin(51, 100, 1, 60)]);
        let rejected: Vec<_> =
            survey.first_rejected.iter().map(|rejected| (rejected.ordinal, rejected.id.as_str())).collect();
        assert_eq!(rejected, [(1, "bad"), (4, "also")]);
        assert_eq!(survey.repeated_ids, 0);

        let text = serde_json::to_string(&survey).unwrap();
        assert_eq!(serde_json::from_str::<Survey>(&text).unwrap(), survey);
    }

    #[test]
    fn nothing_is_described_as_nothing() {
        for contents in [&[][..], &[&b""[..]]] {
            let survey = run(&policy(), contents).unwrap();
            assert_eq!(survey.counts, InputCounts::default());
            assert_eq!((survey.longest, survey.lengths), (None, LengthHistogram::default()));
            assert_eq!(survey.files.len(), contents.len());
        }
    }

    #[test]
    fn progress_ends_at_the_total() {
        let folder = tempfile::tempdir().unwrap();
        let mut content = String::new();
        for number in 0..10_000 {
            write!(content, ">p{number}\nMKV\n").unwrap();
        }
        let sources = files(folder.path(), &[content.as_bytes(), b">last\nMK"]);
        let seen = RefCell::new(Vec::new());
        survey(&policy(), &sources, u32::MAX, folder.path(), &|read, total| {
            seen.borrow_mut().push((read, total))
        })
        .unwrap();
        let seen = seen.into_inner();
        let total = content.len() as u64 + 8;
        assert_eq!(seen.len(), 3);
        assert!(seen.is_sorted());
        assert!(seen.iter().all(|&(_, of)| of == total));
        assert_eq!(seen.last(), Some(&(total, total)));
    }

    #[test]
    fn repeated_ids_are_told_with_both_places() {
        let contents: [&[u8]; 2] = [b">a x\nMK\n>b\nMK\n\n>a y\nLA", b";\n>c\nM\n>b\nM\n>a\nM"];
        let (message, error) = run(&policy(), &contents).unwrap_err();
        assert_eq!(
            message,
            "3 records repeat the id of an earlier record: `a` at 0.fasta:1 and 0.fasta:6; `b` at 0.fasta:3 and \
             1.fasta:4; `a` at 0.fasta:1 and 1.fasta:6"
        );
        assert!(error.is_bad_input());
        assert!(error.hint().unwrap().contains("duplicate_ids"));

        let keep = Input { duplicate_ids: DuplicateIds::Keep, ..policy() };
        assert_eq!(run(&keep, &contents).unwrap().repeated_ids, 3);
    }

    #[test]
    fn only_the_first_ten_duplicates_are_told() {
        let mut content = String::new();
        for number in (0..30).chain(0..30) {
            write!(content, ">p{number}\nMKV\n").unwrap();
        }
        match run(&policy(), &[content.as_bytes()]).unwrap_err().1 {
            InputError::DuplicateIds { duplicates, repeats } => {
                assert_eq!((duplicates.len(), repeats), (10, 30));
                let ids: Vec<_> = duplicates.iter().map(|duplicate| duplicate.id.as_str()).collect();
                assert_eq!(ids, ["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9"]);
                assert_eq!((duplicates[0].first.line, duplicates[0].again.line), (1, 61));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ids_with_equal_hashes_are_no_duplicates() {
        let collide = |_: &[u8]| 7;
        assert_eq!(run_with(&policy(), &[b">a\nMK\n>b\nMK\n>c\nMK"], collide).unwrap().repeated_ids, 0);
        let (message, _) = run_with(&policy(), &[b">a\nMK\n>b\nMK\n>c\nMK\n>b\nM"], collide).unwrap_err();
        assert!(message.contains("`b` at 0.fasta:3 and 0.fasta:7"), "{message}");
        assert!(!message.contains("`a`"), "{message}");
    }

    #[test]
    fn the_id_of_a_rejected_record_is_no_duplicate() {
        let input = Input { on_bad_record: OnBadRecord::Skip, ..policy() };
        assert_eq!(run(&input, &[b">a\nMK\n>a\nM1\n"]).unwrap().counts.rejected, 1);
    }

    fn refused(content: &str) -> bool {
        match run(&policy(), &[content.as_bytes()]) {
            Ok(_) => false,
            Err((_, InputError::LooksLikeNucleotides { .. })) => true,
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn nucleotides_are_refused_and_proteins_are_not() {
        assert!(refused(&format!(">r\n{}", "ACGTN".repeat(40))));
        assert!(refused(&format!(">r\n{}", "acgu".repeat(50))));
        // One letter in twenty is the boundary: 95 % is still taken, more is not.
        assert!(!refused(&format!(">r\n{}", "ACGTACGTACGTACGTACGM".repeat(20))));
        assert!(refused(&format!(">r\n{}ACGT", "ACGTACGTACGTACGTACGM".repeat(20))));
        assert!(!refused(&format!(">r\n{}", "ACGT".repeat(49))), "fewer than 200 letters");
        assert!(!refused(&format!(">r\n{}", "G".repeat(300))), "one of the four alone");
        assert!(!refused(&format!(">r\n{}", "AG".repeat(5000))), "no C and no T");
        assert!(!refused(&format!(">r\n{}", "TAA".repeat(5000))), "no C and no G");
        assert!(!refused(">p\nMKVLAAGIVGTTNQCQLENKKPTWAYSDFHRE\n"));
        for alphabet in [Alphabet::Protein, Alphabet::Auto] {
            let input = Input { alphabet, ..policy() };
            let content = format!(">r\n{}", "ACGT".repeat(100));
            assert!(run(&input, &[content.as_bytes()]).is_err());
        }
    }

    #[test]
    fn nucleotides_are_found_in_any_input_by_its_first_records() {
        let protein = b">p\nMKVLAAGIVGTTNQCQLENKKPTWAYSDFHRE\n".as_slice();
        let mut reads = String::new();
        for number in 0..150 {
            write!(reads, ">r{number}\nACGTACGTAC\n").unwrap();
        }
        let (message, error) = run(&policy(), &[protein, reads.as_bytes()]).unwrap_err();
        assert_eq!(
            message,
            "input `1.fasta` looks like nucleotides: 1000 of 1000 letters in its first 100 records are A, C, G, T, \
             U or N"
        );
        assert!(error.hint().unwrap().contains("translate"));
        let (message, _) = run(&policy(), &[reads.as_bytes(), protein]).unwrap_err();
        assert!(message.starts_with("input `0.fasta`"), "{message}");
        // What comes behind the first hundred records does not count.
        let mixed = format!("{}{}", ">p\nMKVLW\n".repeat(100).replace(">p", ">q"), reads);
        let keep = Input { duplicate_ids: DuplicateIds::Keep, ..policy() };
        assert!(run(&keep, &[mixed.as_bytes()]).is_ok());
    }

    #[test]
    fn bins_cover_every_length_once() {
        let mut next = 1;
        for bin in 0..62 {
            let (min, max) = bounds_of(bin);
            assert_eq!(min, next);
            assert_eq!((bin_of(min), bin_of(max)), (bin, bin));
            next = max + 1;
        }
        assert!(next > u64::from(u32::MAX));
        assert_eq!(bounds_of(bin_of(1022)), (1001, 1050));
        assert_eq!(bounds_of(bin_of(2001)), (2001, 4000));
        assert_eq!(bounds_of(bin_of(35_991)), (32_001, 64_000));
    }
}
