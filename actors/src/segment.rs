//! Segments: runs of consecutive records, cut by the input alone, the unit of commit.
//!
//! The reader and `plan` cut the record stream with the same [`SegmentCutter`]; no timing, device or
//! batch can move a boundary, so a resumed run finds the same segments.

use std::collections::HashMap;

use crate::fasta::{InputError, Item, Record, Rejected};
use crate::identity::SegmentId;

/// Where segments end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentLimits {
    /// Input records in a segment, rejected ones counted.
    pub records_max: u32,
    /// Output rows in a segment; reached only by per-residue results.
    pub rows_max: u64,
    /// Residues in a segment: bounds the memory of an input of very long sequences.
    pub residues_max: u64,
}

/// Largest per-residue result of one segment, bytes: three segments are open at a time.
const SEGMENT_RESULT_BYTES_MAX: u64 = 256 << 20;
/// Most residues in one segment: at one byte each, small beside their embeddings.
const SEGMENT_RESIDUES_MAX: u64 = 64 << 20;

impl SegmentLimits {
    /// The limits for results of `hidden` numbers per row.
    pub fn new(records_max: u32, hidden: usize, pooling: kernels::Pooling) -> Self {
        let rows_max = match pooling {
            kernels::Pooling::Mean | kernels::Pooling::Bos | kernels::Pooling::Max => u64::MAX,
            kernels::Pooling::None => (SEGMENT_RESULT_BYTES_MAX / (4 * hidden.max(1) as u64)).max(1),
        };
        Self { records_max, rows_max, residues_max: SEGMENT_RESIDUES_MAX }
    }
}

/// A run of consecutive input records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its number.
    pub id: SegmentId,
    /// Ordinal of its first record.
    pub first_ordinal: u64,
    /// Records to embed.
    pub records: Vec<Record>,
    /// Records left out.
    pub rejected: Vec<Rejected>,
}

impl Segment {
    /// Input records, rejected ones counted.
    pub fn record_count(&self) -> u64 {
        (self.records.len() + self.rejected.len()) as u64
    }
}

/// A segment ready for work: records with equal residues share one sequence, which is computed once.
#[derive(Debug)]
pub struct PreparedSegment {
    /// The records.
    pub segment: Segment,
    /// For each record the number of its sequence.
    pub sequence_of: Vec<u32>,
    /// For each sequence, in order of appearance, the first record that has it.
    first_with: Vec<u32>,
    /// For each sequence, how many records have it.
    record_counts: Vec<u32>,
}

impl PreparedSegment {
    /// Groups the records of `segment` by their residues.
    pub fn new(segment: Segment) -> Self {
        let mut numbers: HashMap<(&[u8], u32), u32> = HashMap::with_capacity(segment.records.len());
        let mut sequence_of = Vec::with_capacity(segment.records.len());
        let mut first_with = Vec::new();
        let mut record_counts: Vec<u32> = Vec::new();
        for (position, record) in segment.records.iter().enumerate() {
            let key = (record.residues.as_slice(), record.pooled_residues);
            let sequence = *numbers.entry(key).or_insert_with(|| {
                first_with.push(position as u32);
                record_counts.push(0);
                first_with.len() as u32 - 1
            });
            record_counts[sequence as usize] += 1;
            sequence_of.push(sequence);
        }
        drop(numbers);
        Self { segment, sequence_of, first_with, record_counts }
    }

    /// Distinct sequences.
    pub fn sequence_count(&self) -> usize {
        self.first_with.len()
    }

    /// The first record with this sequence.
    pub fn record_with(&self, sequence: u32) -> &Record {
        &self.segment.records[self.first_with[sequence as usize] as usize]
    }

    /// Every record with this sequence.
    pub fn records_with(&self, sequence: u32) -> impl Iterator<Item = &Record> {
        let records = self.segment.records.iter().zip(&self.sequence_of);
        records.filter(move |(_, of)| **of == sequence).map(|(record, _)| record)
    }

    /// Residues of all records with this sequence: what is done of the input once it is.
    pub(crate) fn residues_with(&self, sequence: u32) -> u64 {
        let records = u64::from(self.record_counts[sequence as usize]);
        records * self.record_with(sequence).residues.len() as u64
    }

    /// Tokens of a sequence, BOS and EOS included.
    pub fn token_count(&self, sequence: u32) -> u32 {
        self.record_with(sequence).residues.len() as u32 + 2
    }

    /// Tokens of every sequence.
    pub fn token_counts(&self) -> Vec<u32> {
        (0..self.sequence_count() as u32).map(|sequence| self.token_count(sequence)).collect()
    }

    /// A digest of the sequences, in order.
    pub(crate) fn digest(&self) -> u128 {
        let records = (0..self.sequence_count() as u32).map(|sequence| self.record_with(sequence));
        crate::journal::digest_of(records.map(|record| (record.residues.as_slice(), record.pooled_residues)))
    }
}

/// Cuts a stream of records into segments.
pub struct SegmentCutter<I> {
    items: I,
    limits: SegmentLimits,
    carried: Option<Item>,
    next: u32,
}

impl<I: Iterator<Item = Result<Item, InputError>>> SegmentCutter<I> {
    /// Starts at the first record of `items`.
    pub fn new(items: I, limits: SegmentLimits) -> Self {
        Self { items, limits, carried: None, next: 0 }
    }

    /// The records as they come, for their totals after the end.
    pub fn items(&self) -> &I {
        &self.items
    }

    /// Reads the next segment; `None` at the end of the input.
    ///
    /// `stop` is asked before every record; when it says yes, what was read is dropped and `None` returned.
    ///
    /// # Errors
    /// Those of the record stream; the input cannot be read further.
    pub fn next_segment(&mut self, stop: &dyn Fn() -> bool) -> Result<Option<Segment>, InputError> {
        let mut segment =
            Segment { id: SegmentId(self.next), first_ordinal: 0, records: Vec::new(), rejected: Vec::new() };
        let (mut rows, mut residues) = (0u64, 0u64);
        while segment.record_count() < u64::from(self.limits.records_max) {
            if stop() {
                return Ok(None);
            }
            let item = match self.carried.take() {
                Some(item) => item,
                None => match self.items.next() {
                    Some(item) => item?,
                    None => break,
                },
            };
            let ordinal = match &item {
                Item::Record(record) => record.ordinal,
                Item::Rejected(rejected) => rejected.ordinal,
            };
            if segment.record_count() == 0 {
                segment.first_ordinal = ordinal;
            }
            match item {
                Item::Record(record) => {
                    rows += u64::from(record.pooled_residues);
                    residues += record.residues.len() as u64;
                    let full = rows > self.limits.rows_max || residues > self.limits.residues_max;
                    if full && segment.record_count() > 0 {
                        self.carried = Some(Item::Record(record));
                        break;
                    }
                    segment.records.push(record);
                }
                Item::Rejected(rejected) => segment.rejected.push(rejected),
            }
        }
        if segment.record_count() == 0 {
            return Ok(None);
        }
        self.next += 1;
        Ok(Some(segment))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(ordinal: u64, residues: &str) -> Record {
        Record {
            ordinal,
            id: format!("r{ordinal}"),
            residues: residues.into(),
            pooled_residues: residues.len() as u32,
            residues_in_input: residues.len() as u32,
            file: 0,
            line: 1,
        }
    }

    fn cut(limits: SegmentLimits, lengths: &[usize]) -> Vec<Vec<u64>> {
        let items = lengths
            .iter()
            .enumerate()
            .map(|(i, &length)| Ok(Item::Record(record(i as u64, &"A".repeat(length)))))
            .collect::<Vec<_>>();
        let mut cutter = SegmentCutter::new(items.into_iter(), limits);
        let mut segments = Vec::new();
        while let Some(segment) = cutter.next_segment(&|| false).unwrap() {
            assert_eq!(segment.id.0 as usize, segments.len());
            assert_eq!(segment.first_ordinal, segment.records[0].ordinal);
            segments.push(segment.records.iter().map(|record| record.ordinal).collect());
        }
        segments
    }

    #[test]
    fn segments_end_at_each_limit_and_lose_nothing() {
        let limits = SegmentLimits { records_max: 3, rows_max: 10, residues_max: 1000 };
        assert_eq!(cut(limits, &[1; 7]), [vec![0, 1, 2], vec![3, 4, 5], vec![6]]);
        assert_eq!(cut(limits, &[6, 6, 25, 1, 1]), [vec![0], vec![1], vec![2], vec![3, 4]]);
        assert_eq!(cut(limits, &[]), Vec::<Vec<u64>>::new());
    }

    #[test]
    fn equal_sequences_are_computed_once() {
        let records = vec![record(0, "MKV"), record(1, "AA"), record(2, "MKV")];
        let segment = Segment { id: SegmentId(0), first_ordinal: 0, records, rejected: vec![] };
        let prepared = PreparedSegment::new(segment);
        assert_eq!((prepared.sequence_of.as_slice(), prepared.sequence_count()), ([0, 1, 0].as_slice(), 2));
        assert_eq!(prepared.token_counts(), [5, 4]);
        let with = |sequence| prepared.records_with(sequence).map(|r| r.ordinal).collect::<Vec<_>>();
        assert_eq!((with(0), with(1)), (vec![0, 2], vec![1]));
    }
}
