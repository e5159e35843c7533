//! `RecordStream`: all inputs as one sequence of records, under the job's policy.
//!
//! The survey and the reader actor iterate it. It numbers every record of the input, bad ones included, so
//! that ordinals do not depend on the policy; it counts what cleaning changed and digests what was read. It
//! holds one record at a time.

use config::{Input, OnBadRecord, TooLong};
use serde::{Deserialize, Serialize};

use super::clean::{Cleaned, Flaw, FlawKind, Policy, clean};
use super::error::InputError;
use super::reader::RecordReader;
use super::source::{FileDigest, Source};

/// One sequence ready for tokenising.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Position over all inputs, bad records counted, from 0.
    pub ordinal: u64,
    /// First word of the header.
    pub id: String,
    /// Upper-case residue letters, at least one; `-`, `.` and inner `*` may occur.
    pub residues: Vec<u8>,
    /// How many leading residues are pooled, 1..=residues.len().
    pub pooled_residues: u32,
    /// Residues before truncation to `max_residues`.
    pub residues_in_input: u32,
    /// Index of its input in the job.
    pub file: usize,
    /// Line of the header, from 1.
    pub line: u64,
}

/// A record left out, with the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Position over all inputs, from 0.
    pub ordinal: u64,
    /// First word of the header, made printable if it is no proper id; may be empty.
    pub id: String,
    /// The input as named in the job, `-` for standard input.
    pub file: String,
    /// Line of the header, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// What the input yields, record by record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A sequence to embed.
    Record(Record),
    /// A record left out.
    Rejected(Rejected),
}

/// What was read and what cleaning changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputCounts {
    /// Records in the input, rejected ones included: the next ordinal.
    pub records: u64,
    /// Records left out.
    pub rejected: u64,
    /// Residues of the records kept, after cleaning and truncation.
    pub residues: u64,
    /// Records cut to `max_residues`.
    pub truncated: u64,
    /// Records run whole and pooled over their first `max_residues`.
    pub pooled_first: u64,
    /// Residues kept that the vocabulary lacks (`<unk>`): J and inner `*`.
    pub unknown_letters: u64,
    /// `-` and `.` removed.
    pub gap_letters_removed: u64,
    /// Trailing `*` removed.
    pub stops_removed: u64,
    /// Letters that were lower-case.
    pub lower_case_letters: u64,
}

impl InputCounts {
    /// Records kept.
    pub fn accepted(&self) -> u64 {
        self.records - self.rejected
    }

    fn add(&mut self, cleaned: &Cleaned) {
        let changes = &cleaned.changes;
        self.residues += cleaned.residues.len() as u64;
        self.truncated += u64::from(changes.truncated);
        self.pooled_first += u64::from(changes.pooled_first);
        self.unknown_letters += changes.unknown_letters;
        self.gap_letters_removed += changes.gap_letters_removed;
        self.stops_removed += changes.stops_removed;
        self.lower_case_letters += changes.lower_case_letters;
    }
}

/// Reads the records of all inputs in order.
///
/// Iterate it to `None` or the first `Err`; after an `Err` it yields nothing more.
pub struct RecordStream {
    sources: Vec<Source>,
    policy: Policy,
    on_bad_record: OnBadRecord,
    record_bytes_max: u64,
    bytes_total: u64,
    /// Index of the input in `reader`, or of the next one to open.
    file: usize,
    reader: Option<RecordReader>,
    /// The buffer of the input before, while none is open.
    buffer: Vec<u8>,
    counts: InputCounts,
    digests: Vec<FileDigest>,
    failed: bool,
}

impl RecordStream {
    /// Prepares to read `sources` in order under the policy of `input` (whose own list is not looked at).
    ///
    /// # Errors
    /// [`InputError::Open`] and [`InputError::NotAFile`], before anything is read.
    pub fn open(input: &Input, sources: &[Source]) -> Result<RecordStream, InputError> {
        let mut bytes_total = 0;
        for source in sources {
            bytes_total += source.size_bytes()?;
        }
        Ok(RecordStream {
            sources: sources.to_vec(),
            policy: Policy::of(input),
            on_bad_record: input.on_bad_record,
            record_bytes_max: input.max_record_bytes,
            bytes_total,
            file: 0,
            reader: None,
            buffer: Vec::new(),
            counts: InputCounts::default(),
            digests: Vec::new(),
            failed: false,
        })
    }

    /// Counts records of more residues among the bad ones: their vectors would not fit into one row of the result.
    pub fn with_row_residues_max(mut self, residues_max: u32) -> RecordStream {
        self.policy.row_residues_max = residues_max;
        self
    }

    /// What was read so far.
    pub fn counts(&self) -> &InputCounts {
        &self.counts
    }

    /// The digests of the inputs read to their end, in order; all of them once the stream has ended.
    pub fn digests(&self) -> &[FileDigest] {
        &self.digests
    }

    /// Bytes as stored, read so far.
    pub fn bytes_read(&self) -> u64 {
        let finished: u64 = self.digests.iter().map(|digest| digest.bytes).sum();
        finished + self.reader.as_ref().map_or(0, RecordReader::bytes_read)
    }

    /// Bytes as stored of all inputs when the stream was opened.
    pub fn bytes_total(&self) -> u64 {
        self.bytes_total
    }

    /// The name of input `file`, as in [`Record::file`].
    pub fn label(&self, file: usize) -> &str {
        self.sources[file].label()
    }

    fn advance(&mut self) -> Result<Option<Item>, InputError> {
        loop {
            let reader = match &mut self.reader {
                Some(reader) => reader,
                None => match self.sources.get(self.file) {
                    Some(source) => {
                        let buffer = std::mem::take(&mut self.buffer);
                        self.reader.insert(RecordReader::new(source.open()?, self.record_bytes_max, buffer))
                    }
                    None => return Ok(None),
                },
            };
            let Some(raw) = reader.next()? else {
                self.digests.push(reader.digest());
                self.buffer = self.reader.take().map_or_else(Vec::new, RecordReader::into_buffer);
                self.file += 1;
                continue;
            };

            let ordinal = self.counts.records;
            self.counts.records += 1;
            let line = raw.line;
            return match clean(&raw, &self.policy) {
                Ok(cleaned) => {
                    self.counts.add(&cleaned);
                    let Cleaned { id, residues, pooled_residues, residues_in_input, .. } = cleaned;
                    let file = self.file;
                    Ok(Some(Item::Record(Record {
                        ordinal,
                        id,
                        residues,
                        pooled_residues,
                        residues_in_input,
                        file,
                        line,
                    })))
                }
                Err(flaw) => self.reject(flaw, ordinal, line).map(|rejected| Some(Item::Rejected(rejected))),
            };
        }
    }

    /// Stops or rejects, as the policy says.
    fn reject(&mut self, flaw: Flaw, ordinal: u64, line: u64) -> Result<Rejected, InputError> {
        let file = self.sources[self.file].label().to_owned();
        let Flaw { id, kind } = flaw;
        let reason = match kind {
            FlawKind::Bad(reason) => match self.on_bad_record {
                OnBadRecord::Stop => return Err(InputError::BadRecord { file, line, id, reason }),
                OnBadRecord::Skip => reason,
            },
            FlawKind::TooLong { residues } => {
                let residues_max = self.policy.residues_max;
                match self.policy.too_long {
                    TooLong::Stop => {
                        return Err(InputError::TooLong { file, line, id, residues, residues_max });
                    }
                    TooLong::Skip | TooLong::Truncate | TooLong::PoolFirst => {
                        format!("{residues} residues, more than max_residues = {residues_max}")
                    }
                }
            }
        };
        self.counts.rejected += 1;
        Ok(Rejected { ordinal, id, file, line, reason })
    }
}

impl Iterator for RecordStream {
    type Item = Result<Item, InputError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.advance().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;
    use std::num::NonZeroU32;
    use std::path::Path;

    use config::{Alphabet, DuplicateIds, Gaps};
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    /// An input policy as the defaults of a job have it.
    pub(in crate::fasta) fn policy() -> Input {
        Input {
            fasta: Vec::new(),
            alphabet: Alphabet::Protein,
            on_bad_record: OnBadRecord::Stop,
            duplicate_ids: DuplicateIds::Stop,
            max_residues: None,
            too_long: TooLong::Truncate,
            gaps: Gaps::Keep,
            max_record_bytes: 1 << 20,
        }
    }

    /// Writes each content to a file `0.fasta`, `1.fasta`, … of `folder`.
    pub(in crate::fasta) fn files(folder: &Path, contents: &[&[u8]]) -> Vec<Source> {
        let write = |(number, content): (usize, &&[u8])| {
            let path = folder.join(format!("{number}.fasta"));
            std::fs::write(&path, content).unwrap();
            Source::file(path)
        };
        contents.iter().enumerate().map(write).collect()
    }

    /// A message without the folder of the test.
    pub(in crate::fasta) fn without_folder(message: &str, folder: &Path) -> String {
        message.replace(&format!("{}/", folder.display()), "")
    }

    fn read(input: &Input, contents: &[&[u8]]) -> (Vec<Item>, RecordStream) {
        let folder = tempfile::tempdir().unwrap();
        let sources = files(folder.path(), contents);
        let mut stream = RecordStream::open(input, &sources).unwrap();
        let items = stream.by_ref().collect::<Result<Vec<_>, _>>().unwrap();
        assert!(stream.next().is_none());
        (items, stream)
    }

    fn ids_and_residues(items: &[Item]) -> Vec<(u64, &str, &str)> {
        items
            .iter()
            .filter_map(|item| match item {
                Item::Record(record) => {
                    Some((record.ordinal, record.id.as_str(), std::str::from_utf8(&record.residues).unwrap()))
                }
                Item::Rejected(_) => None,
            })
            .collect()
    }

    fn stop_error(input: &Input, contents: &[&[u8]]) -> (String, InputError) {
        let folder = tempfile::tempdir().unwrap();
        let sources = files(folder.path(), contents);
        let mut stream = RecordStream::open(input, &sources).unwrap();
        let error = stream.by_ref().find_map(Result::err).unwrap();
        assert!(stream.next().is_none(), "nothing follows an error");
        (without_folder(&error.to_string(), folder.path()), error)
    }

    #[test]
    fn all_inputs_are_read_into_one_buffer() {
        let folder = tempfile::tempdir().unwrap();
        let sources = files(folder.path(), &[b">a\nMK\n", b">b\nMKV\n", b">c\nM\n"]);
        let mut stream = RecordStream::open(&policy(), &sources).unwrap();
        // Large enough for all of them.
        stream.buffer = vec![0; 1 << 20];
        let place = stream.buffer.as_ptr();
        assert_eq!(stream.by_ref().filter(Result::is_ok).count(), 3);
        assert_eq!(stream.buffer.as_ptr(), place);
    }

    #[test]
    fn records_of_all_inputs_are_numbered_through() {
        let contents: [&[u8]; 4] = [b">a x\nMK\n>b\nLA", b"", b"\n\n>c\nVVV", b"; only a comment\n"];
        let (items, stream) = read(&policy(), &contents);
        assert_eq!(ids_and_residues(&items), [(0, "a", "MK"), (1, "b", "LA"), (2, "c", "VVV")]);
        let places: Vec<_> = items
            .iter()
            .map(|item| match item {
                Item::Record(record) => (record.file, record.line, record.pooled_residues),
                Item::Rejected(rejected) => panic!("{rejected:?}"),
            })
            .collect();
        assert_eq!(places, [(0, 1, 2), (0, 3, 2), (2, 3, 3)]);
        assert_eq!(*stream.counts(), InputCounts { records: 3, residues: 7, ..InputCounts::default() });
        let sizes: Vec<_> = stream.digests().iter().map(|digest| digest.bytes).collect();
        assert_eq!(sizes, contents.map(|content| content.len() as u64));
        let total = contents.map(<[u8]>::len).iter().sum::<usize>() as u64;
        assert_eq!((stream.bytes_read(), stream.bytes_total()), (total, total));
        assert_eq!(stream.digests()[2].path, stream.label(2));
    }

    #[test]
    fn no_input_and_empty_inputs_are_zero_records() {
        let (items, stream) = read(&policy(), &[]);
        assert_eq!((items.len(), stream.digests().len()), (0, 0));
        let (items, stream) = read(&policy(), &[b"", b"\n"]);
        assert_eq!((items.len(), stream.digests().len()), (0, 2));
        assert_eq!(*stream.counts(), InputCounts::default());
    }

    const ODD: &[u8] = b">ok\nMK\n>empty\n>\nMK\n>digit x\nMK\nM1K\n>ok2\nLA\n>last";

    #[test]
    fn bad_records_are_skipped_but_numbered() {
        let input = Input { on_bad_record: OnBadRecord::Skip, ..policy() };
        let (items, stream) = read(&input, &[ODD, b">z\nM"]);
        assert_eq!(ids_and_residues(&items), [(0, "ok", "MK"), (4, "ok2", "LA"), (6, "z", "M")]);
        let rejected: Vec<_> = items
            .iter()
            .filter_map(|item| match item {
                Item::Record(_) => None,
                Item::Rejected(rejected) => {
                    assert_eq!(rejected.file, stream.label(0));
                    Some((rejected.ordinal, rejected.line, rejected.id.as_str(), rejected.reason.as_str()))
                }
            })
            .collect();
        assert_eq!(
            rejected,
            [
                (1, 3, "empty", "no residues"),
                (2, 4, "", "no id: nothing follows `>`"),
                (3, 6, "digit", "`1` at line 8, column 2 is not a residue letter"),
                (5, 11, "last", "no residues"),
            ]
        );
        assert_eq!(
            *stream.counts(),
            InputCounts { records: 7, rejected: 4, residues: 5, ..InputCounts::default() }
        );
        assert_eq!(stream.counts().accepted(), 3);
    }

    #[test]
    fn a_bad_record_stops_with_file_line_id_and_reason() {
        let cases: [(&[u8], &str); 5] = [
            (ODD, "1.fasta:3: bad record `empty`: no residues"),
            (b">a\nMK\n>\nMK", "1.fasta:3: bad record ``: no id: nothing follows `>`"),
            (
                b">a\nMK\n>b c\n\nM K",
                "1.fasta:3: bad record `b`: a space at line 5, column 2 is not a residue letter",
            ),
            (b">a\nMK\n>b", "1.fasta:3: bad record `b`: no residues"),
            (
                b"\xef\xbb\xbf\r\n>a\r\nMK\r\n>b\r\nM\x00\r\n",
                "1.fasta:4: bad record `b`: the byte 0x00 at line 5, column 2 is not a residue letter",
            ),
        ];
        for (content, expected) in cases {
            let (message, error) = stop_error(&policy(), &[b">first\nM\n", content]);
            assert_eq!(message, expected);
            assert!(error.is_bad_input());
            assert!(error.hint().unwrap().contains("on_bad_record"));
        }
    }

    #[test]
    fn long_sequences_stop_or_are_rejected_or_counted() {
        let content: &[u8] = b">a\nMK\n>b\nMKVL\n>c\nMKV";
        let with = |too_long| Input { max_residues: NonZeroU32::new(3), too_long, ..policy() };

        let (message, error) = stop_error(&with(TooLong::Stop), &[content]);
        assert_eq!(message, "0.fasta:3: record `b` has 4 residues, more than max_residues = 3");
        assert!(error.hint().unwrap().contains("too_long"));

        let (items, stream) = read(&with(TooLong::Skip), &[content]);
        assert_eq!(ids_and_residues(&items), [(0, "a", "MK"), (2, "c", "MKV")]);
        assert!(matches!(&items[1], Item::Rejected(rejected)
            if rejected.reason == "4 residues, more than max_residues = 3" && rejected.line == 3));
        assert_eq!(stream.counts().rejected, 1);

        let (items, stream) = read(&with(TooLong::Truncate), &[content]);
        assert_eq!(ids_and_residues(&items)[1], (1, "b", "MKV"));
        assert_eq!((stream.counts().truncated, stream.counts().residues), (1, 8));

        let (items, stream) = read(&with(TooLong::PoolFirst), &[content]);
        assert!(matches!(&items[1], Item::Record(record)
            if record.residues == b"MKVL" && record.pooled_residues == 3));
        assert_eq!((stream.counts().pooled_first, stream.counts().residues), (1, 9));
    }

    #[test]
    fn what_does_not_fit_into_a_row_is_a_bad_record_unless_it_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        let sources = files(folder.path(), &[b">a\nMKV\n>b\nMKVL\n"]);
        let read = |input: &Input| -> Result<Vec<Item>, InputError> {
            RecordStream::open(input, &sources).unwrap().with_row_residues_max(3).collect()
        };
        let error = read(&policy()).unwrap_err();
        assert!(
            matches!(&error, InputError::BadRecord { line: 3, id, reason, .. }
            if id == "b" && reason.starts_with("4 residues, more than the 3 whose")),
            "{error}"
        );
        let skipping = Input { on_bad_record: OnBadRecord::Skip, ..policy() };
        assert!(matches!(&read(&skipping).unwrap()[..], [Item::Record(_), Item::Rejected(_)]));
        for too_long in [TooLong::Truncate, TooLong::PoolFirst] {
            let cutting = Input { max_residues: NonZeroU32::new(3), too_long, ..policy() };
            assert!(matches!(&read(&cutting).unwrap()[..], [Item::Record(_), Item::Record(_)]));
        }
    }

    #[test]
    fn changes_are_counted_over_kept_records_only() {
        let input = Input { on_bad_record: OnBadRecord::Skip, gaps: Gaps::Remove, ..policy() };
        let (_, stream) = read(&input, &[b">a\nmk-J*\n>b\nM*K..\n>bad\nmk-J1*\n"]);
        assert_eq!(
            *stream.counts(),
            InputCounts {
                records: 3,
                rejected: 1,
                residues: 6,
                unknown_letters: 2,
                gap_letters_removed: 3,
                stops_removed: 1,
                lower_case_letters: 2,
                ..InputCounts::default()
            }
        );
    }

    #[test]
    fn an_input_that_is_missing_is_told_before_anything_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut sources = files(folder.path(), &[b">a\nMK"]);
        sources.push(Source::file(folder.path().join("gone.fasta")));
        let error = RecordStream::open(&policy(), &sources).err().unwrap();
        assert!(matches!(error, InputError::Open { .. }), "{error:?}");
        assert!(error.to_string().ends_with("gone.fasta`"), "{error}");
        assert!(!error.is_bad_input());
    }

    #[test]
    fn a_truncated_input_never_ends_the_stream_quietly() {
        let text: Vec<u8> = (0..60).flat_map(|n| format!(">p{n}\nMKVLAAG\n").into_bytes()).collect();
        let folder = tempfile::tempdir().unwrap();
        for whole in [gzip(&text), zstd::stream::encode_all(text.as_slice(), 3).unwrap()] {
            // No byte at all is an empty input, told apart by name only.
            for length in 1..=whole.len() {
                let sources = files(folder.path(), &[&whole[..length]]);
                let outcome: Result<Vec<_>, _> = RecordStream::open(&policy(), &sources).unwrap().collect();
                match outcome {
                    Ok(items) => assert_eq!((length, items.len()), (whole.len(), 60)),
                    Err(error) => assert!(error.is_bad_input() && length < whole.len(), "{error:?}"),
                }
            }
        }
    }

    #[test]
    fn files_of_the_usual_compressors_are_read() {
        // Digests as `sha256sum` prints them.
        let cases: [(&[u8], &str); 2] = [
            (
                include_bytes!("../../tests/fasta/two_members.fasta.gz"),
                "fd41a6bda88ac2ec1af71189f459077ccfaf8c35d57f50b80282fd815836f76b",
            ),
            (
                include_bytes!("../../tests/fasta/two_frames.fasta.zst"),
                "075f391e0fb84149bd8b35f73809db8f69467ab61bd112e24e4ffa4678fcb8cb",
            ),
        ];
        for (stored, sha256) in cases {
            let (items, stream) = read(&policy(), &[stored]);
            assert_eq!(ids_and_residues(&items), [(0, "a", "MKVLAAGIVG"), (1, "b", "LAMK")]);
            assert_eq!(stream.digests()[0].sha256, sha256);
        }
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    /// How one file of a property test is stored.
    #[derive(Clone, Copy, Debug)]
    enum Stored {
        Plain,
        Gzip,
        GzipMembers,
        Zstd,
        ZstdFrames,
    }

    impl Stored {
        fn pack(self, content: &[u8], cut: usize) -> Vec<u8> {
            let (front, back) = content.split_at(cut.min(content.len()));
            let zstd = |part: &[u8]| zstd::stream::encode_all(part, 1).unwrap();
            match self {
                Stored::Plain => content.to_vec(),
                Stored::Gzip => gzip(content),
                Stored::GzipMembers => [gzip(front), gzip(back)].concat(),
                Stored::Zstd => zstd(content),
                Stored::ZstdFrames => [zstd(front), zstd(back)].concat(),
            }
        }
    }

    #[derive(Clone, Debug)]
    struct Written {
        id: String,
        description: String,
        residues: String,
        stops: usize,
        width: usize,
        blank_lines: bool,
    }

    prop_compose! {
        fn written()(
            id in "[a-zA-Z0-9|._>äβ]{1,16}",
            description in "( [ -~]{0,30})?",
            residues in "[A-Z][A-Za-z*.-]{0,120}[A-Z]",
            stops in 0_usize..3,
            width in 1_usize..80,
            blank_lines: bool,
        ) -> Written {
            Written { id, description, residues, stops, width, blank_lines }
        }
    }

    proptest! {
        #[test]
        fn records_read_back_however_they_are_written(
            written in prop::collection::vec(written(), 0..12),
            crlf: bool,
            byte_order_mark: bool,
            leading in prop::sample::select(vec!["", "\n", " \n\n", "; c\n", "\n;x\n\n"]),
            last_line_end: bool,
            stored in prop::sample::select(vec![
                Stored::Plain, Stored::Gzip, Stored::GzipMembers, Stored::Zstd, Stored::ZstdFrames,
            ]),
            cut in 0_usize..2000,
        ) {
            let mut text = leading.to_owned();
            let mut lines = Vec::new();
            for record in &written {
                lines.push(text.matches('\n').count() as u64 + 1);
                text += &format!(">{}{}\n", record.id, record.description);
                let residues = record.residues.clone() + &"*".repeat(record.stops);
                for line in residues.as_bytes().chunks(record.width) {
                    text += std::str::from_utf8(line).unwrap();
                    text += if record.blank_lines { " \n\n" } else { "\n" };
                }
            }
            if !last_line_end {
                text.truncate(text.trim_end().len());
            }
            if crlf {
                text = text.replace('\n', "\r\n");
            }
            let mark: &[u8] = if byte_order_mark { b"\xef\xbb\xbf" } else { b"" };
            let content = stored.pack(&[mark, text.as_bytes()].concat(), cut);

            let (items, stream) = read(&policy(), &[&content]);
            let records: Vec<Record> = items
                .into_iter()
                .map(|item| match item {
                    Item::Record(record) => record,
                    Item::Rejected(rejected) => panic!("{rejected:?}"),
                })
                .collect();
            let expected: Vec<Record> = written
                .iter()
                .zip(lines)
                .enumerate()
                .map(|(ordinal, (record, line))| Record {
                    ordinal: ordinal as u64,
                    id: record.id.clone(),
                    residues: record.residues.to_ascii_uppercase().into_bytes(),
                    pooled_residues: record.residues.len() as u32,
                    residues_in_input: record.residues.len() as u32,
                    file: 0,
                    line,
                })
                .collect();
            prop_assert_eq!(records, expected);
            let stops: usize = written.iter().map(|record| record.stops).sum();
            prop_assert_eq!(stream.counts().stops_removed, stops as u64);
            prop_assert_eq!(stream.digests()[0].bytes, content.len() as u64);
        }

        #[test]
        fn any_bytes_give_records_or_an_error_and_no_panic(
            content in prop::collection::vec(
                prop::sample::select(b">>\n\n\n\r ;@AMKacgt*-.1\xff\0\t\x1f\x8b".to_vec()), 0..200),
            skip: bool,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let sources = files(folder.path(), &[&content]);
            let on_bad_record = if skip { OnBadRecord::Skip } else { OnBadRecord::Stop };
            let input = Input { on_bad_record, ..policy() };
            for (ordinal, item) in RecordStream::open(&input, &sources).unwrap().enumerate() {
                let Ok(item) = item else { break };
                let at = match item {
                    Item::Record(record) => {
                        prop_assert!(!record.residues.is_empty() && !record.id.is_empty());
                        record.ordinal
                    }
                    Item::Rejected(rejected) => {
                        prop_assert!(skip && !rejected.reason.is_empty());
                        rejected.ordinal
                    }
                };
                prop_assert_eq!(at, ordinal as u64);
            }
        }
    }
}
