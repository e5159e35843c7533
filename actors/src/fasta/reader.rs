//! `RecordReader`: cuts one decompressed input into raw records, with exact line numbers.
//!
//! The stream asks it for one record at a time and cleans what it lends out. Memory is bounded by the record
//! limit plus one read. It looks at headers and line starts only: what a residue is, it never asks.
//! Why it is not a library: `docs/adr/0002-fasta-parser.md`.

use memchr::{memchr, memchr_iter};

use super::error::{InputError, printable};
use super::source::{FileDigest, SourceReader, still_packed};

/// One record as it stands in the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RawRecord<'a> {
    /// Line of the header, from 1.
    pub(super) line: u64,
    /// The header after `>`, without line end.
    pub(super) header: &'a [u8],
    /// The lines below it as they are, from line `line + 1`.
    pub(super) body: &'a [u8],
}

/// Reads the records of one input in order.
pub(super) struct RecordReader {
    source: SourceReader,
    record_bytes_max: u64,
    buffer: Vec<u8>,
    /// Start of the next record in `buffer`.
    start: usize,
    /// Up to here the record at `start` is known to have no end.
    searched: usize,
    /// End of what was read into `buffer`.
    filled: usize,
    /// Line at `start`, from 1.
    line: u64,
    preamble_read: bool,
    ended: bool,
    /// Met while reading ahead; told once the records before it are out.
    failure: Option<InputError>,
}

/// Bytes asked of the source at a time: a few hundred proteins, so that moving the cut record is rare.
const READ_BYTES: usize = 256 << 10;

/// Largest buffer that is kept from one input to the next, bytes: a few reads.
const BUFFER_KEPT_BYTES_MAX: usize = 4 * READ_BYTES;

/// Longest header line with its `>`, bytes. One that lists every database entry of a sequence, as in NCBI's nr,
/// takes megabytes; more is a file without line ends, of which `max_record_bytes` alone would take gigabytes.
const HEADER_BYTES_MAX: usize = 16 << 20;

impl RecordReader {
    /// Reads from `source` into `buffer`, whose content and size do not matter; a record of more than
    /// `record_bytes_max` bytes is an error.
    pub(super) fn new(source: SourceReader, record_bytes_max: u64, buffer: Vec<u8>) -> RecordReader {
        RecordReader {
            source,
            record_bytes_max,
            buffer,
            start: 0,
            searched: 0,
            filled: 0,
            line: 1,
            preamble_read: false,
            ended: false,
            failure: None,
        }
    }

    /// Its buffer for the next input, since filling a new one costs more than reading a small file. One that a large
    /// record needed is given up.
    pub(super) fn into_buffer(self) -> Vec<u8> {
        if self.buffer.len() <= BUFFER_KEPT_BYTES_MAX { self.buffer } else { Vec::new() }
    }

    /// The name in messages.
    pub(super) fn label(&self) -> &str {
        self.source.label()
    }

    /// Bytes of the file as stored, read so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.source.bytes_read()
    }

    /// The digest of the file; whole once [`RecordReader::next`] returned `None`.
    pub(super) fn digest(&self) -> FileDigest {
        self.source.digest()
    }

    /// The next record; `None` at the end of the input.
    ///
    /// # Errors
    /// What [`SourceReader::read`] returns, after every whole record before it; what is not FASTA;
    /// [`InputError::RecordTooLarge`], [`InputError::HeaderTooLong`]. After an error the reader is of no further use.
    pub(super) fn next(&mut self) -> Result<Option<RawRecord<'_>>, InputError> {
        if !self.preamble_read {
            self.read_preamble()?;
            self.preamble_read = true;
        }
        let end = loop {
            if let Some(end) = self.find_next_header() {
                break end;
            }
            if (self.filled - self.start) as u64 > self.record_bytes_max {
                return Err(self.too_large());
            }
            self.check_header(self.filled)?;
            if self.ended {
                break self.filled;
            }
            self.fill()?;
        };
        if end == self.start {
            return Ok(None);
        }
        if (end - self.start) as u64 > self.record_bytes_max {
            return Err(self.too_large());
        }
        self.check_header(end)?;

        let record = &self.buffer[self.start..end];
        let line = self.line;
        self.line += memchr_iter(b'\n', record).count() as u64;
        self.start = end;
        self.searched = end;
        let (header, body) = match memchr(b'\n', record) {
            Some(line_end) => (&record[1..line_end], &record[line_end + 1..]),
            None => (&record[1..], &record[record.len()..]),
        };
        Ok(Some(RawRecord { line, header: trim_carriage_returns(header), body }))
    }

    /// The position of the first `>` at a line start behind `start`, if it is in the buffer.
    fn find_next_header(&mut self) -> Option<usize> {
        let mut from = self.searched.max(self.start + 1);
        while from < self.filled {
            match memchr(b'>', &self.buffer[from..self.filled]) {
                Some(offset) if self.buffer[from + offset - 1] == b'\n' => return Some(from + offset),
                Some(offset) => from += offset + 1,
                None => from = self.filled,
            }
        }
        self.searched = self.filled;
        None
    }

    /// Reads on until [`READ_BYTES`] more are there or the input ends.
    ///
    /// # Errors
    /// The failure of this or an earlier read, once no new byte came before it.
    fn fill(&mut self) -> Result<(), InputError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.filled, 0);
            self.filled -= self.start;
            self.searched -= self.start;
            self.start = 0;
        }
        if self.buffer.len() < self.filled + READ_BYTES {
            // Doubling keeps a long record linear; past the limit no more than one read is ever needed.
            let limit = usize::try_from(self.record_bytes_max).unwrap_or(usize::MAX);
            let doubled = (self.filled * 2).min(limit.saturating_add(READ_BYTES));
            let grown = doubled.max(self.filled + READ_BYTES);
            self.buffer.reserve_exact(grown - self.buffer.len());
            self.buffer.resize(grown, 0);
        }
        let before = self.filled;
        while self.filled - before < READ_BYTES {
            let room = before + READ_BYTES;
            match self.source.read(&mut self.buffer[self.filled..room]) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(read) => self.filled += read,
                Err(failure) if self.filled == before => return Err(failure),
                Err(failure) => {
                    self.failure = Some(failure);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Skips byte order mark, blank lines and `;` lines, and checks that a header follows.
    fn read_preamble(&mut self) -> Result<(), InputError> {
        self.fill()?;
        if let Some(format) = still_packed(&self.buffer[..self.filled]) {
            return Err(InputError::StillPacked { file: self.label().to_owned(), format });
        }
        self.check_line_ends()?;
        match &self.buffer[..self.filled] {
            [0xef, 0xbb, 0xbf, ..] => self.start = 3,
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
                return Err(InputError::Utf16 { file: self.label().to_owned() });
            }
            _ => {}
        }
        let mut at_line_start = true;
        while let Some(byte) = self.peek()? {
            match byte {
                b'\n' => {
                    self.start += 1;
                    self.line += 1;
                    at_line_start = true;
                }
                b' ' | b'\t' | b'\r' => {
                    self.start += 1;
                    at_line_start = false;
                }
                b';' if at_line_start => self.skip_line()?,
                b'>' if at_line_start => break,
                b'@' if at_line_start => {
                    return Err(InputError::Fastq { file: self.label().to_owned(), line: self.line });
                }
                _ => return Err(self.text_before_header(at_line_start)),
            }
        }
        self.searched = self.start;
        Ok(())
    }

    /// The byte at `start`; `None` at the end of the input.
    fn peek(&mut self) -> Result<Option<u8>, InputError> {
        while self.start == self.filled && !self.ended {
            self.searched = self.start;
            self.fill()?;
        }
        Ok((self.start < self.filled).then(|| self.buffer[self.start]))
    }

    /// Moves `start` to the end of its line, before the line feed.
    fn skip_line(&mut self) -> Result<(), InputError> {
        while self.peek()?.is_some() {
            match memchr(b'\n', &self.buffer[self.start..self.filled]) {
                Some(offset) => {
                    self.start += offset;
                    break;
                }
                None => self.start = self.filled,
            }
        }
        Ok(())
    }

    /// Without this check a file of old Macintosh text would be one header and no residue.
    fn check_line_ends(&self) -> Result<(), InputError> {
        let mut text = &self.buffer[..self.filled];
        if self.filled < READ_BYTES {
            // The line feed of a last carriage return may be what a damaged file lacks.
            text = trim_carriage_returns(text);
        }
        if memchr(b'\n', text).is_none() && memchr(b'\r', text).is_some() {
            return Err(InputError::CarriageReturns { file: self.label().to_owned() });
        }
        Ok(())
    }

    fn text_before_header(&self, at_line_start: bool) -> InputError {
        let rest = &self.buffer[self.start..self.filled];
        let line = &rest[..memchr(b'\n', rest).unwrap_or(rest.len())];
        // An indented header would otherwise read as `expected >, found >`.
        let indent = if at_line_start { "" } else { " " };
        InputError::TextBeforeHeader {
            file: self.label().to_owned(),
            line: self.line,
            found: format!("{indent}{}", printable(trim_carriage_returns(line))),
        }
    }

    /// Refuses a header of more than [`HEADER_BYTES_MAX`] in the record that reaches up to `end`, so far.
    fn check_header(&self, end: usize) -> Result<(), InputError> {
        let record = &self.buffer[self.start..end];
        if record.len() <= HEADER_BYTES_MAX || memchr(b'\n', &record[..HEADER_BYTES_MAX + 1]).is_some() {
            return Ok(());
        }
        Err(InputError::HeaderTooLong {
            file: self.label().to_owned(),
            line: self.line,
            id: printable(first_word(&record[1..])),
            bytes_max: HEADER_BYTES_MAX,
        })
    }

    fn too_large(&self) -> InputError {
        let record = &self.buffer[self.start..self.filled];
        let header = &record[1..memchr(b'\n', record).unwrap_or(record.len())];
        InputError::RecordTooLarge {
            file: self.label().to_owned(),
            line: self.line,
            id: printable(first_word(header)),
            bytes_max: self.record_bytes_max,
        }
    }
}

/// The id of a header: its first word.
pub(super) fn first_word(header: &[u8]) -> &[u8] {
    header.split(|byte| byte.is_ascii_whitespace()).find(|word| !word.is_empty()).unwrap_or_default()
}

fn trim_carriage_returns(mut line: &[u8]) -> &[u8] {
    while let [rest @ .., b'\r'] = line {
        line = rest;
    }
    line
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read};

    use needletail::parser::{FastaReader, FastxReader};
    use proptest::prelude::*;

    use super::*;

    /// Hands out `content` in pieces of 1 to `piece_max` bytes, then fails if told to.
    struct Dripping {
        content: Vec<u8>,
        at: usize,
        piece_max: usize,
        fails_at_end: bool,
    }

    impl Read for Dripping {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.at == self.content.len() && self.fails_at_end {
                return Err(io::Error::other("the disk is gone"));
            }
            let piece = (self.at % self.piece_max + 1).min(buffer.len()).min(self.content.len() - self.at);
            buffer[..piece].copy_from_slice(&self.content[self.at..self.at + piece]);
            self.at += piece;
            Ok(piece)
        }
    }

    type Owned = (u64, Vec<u8>, Vec<u8>);

    fn reader(content: &[u8], piece_max: usize, record_bytes_max: u64) -> RecordReader {
        let dripping = Dripping { content: content.to_vec(), at: 0, piece_max, fails_at_end: false };
        let source = SourceReader::new("in.fasta".to_owned(), Box::new(dripping)).unwrap();
        RecordReader::new(source, record_bytes_max, Vec::new())
    }

    fn read_all(mut reader: RecordReader) -> (Vec<Owned>, Option<InputError>) {
        let mut records = Vec::new();
        loop {
            match reader.next() {
                Ok(Some(raw)) => records.push((raw.line, raw.header.to_vec(), raw.body.to_vec())),
                Ok(None) => return (records, None),
                Err(error) => return (records, Some(error)),
            }
        }
    }

    /// Reads `content` in pieces of every size from 1 to 7 and at once; all must agree.
    fn records(content: &[u8]) -> Vec<Owned> {
        let (whole, error) = read_all(reader(content, usize::MAX, 1 << 30));
        assert!(error.is_none(), "{error:?}");
        for piece_max in 1..=7 {
            let (dripped, error) = read_all(reader(content, piece_max, 1 << 30));
            assert!(error.is_none(), "{error:?}");
            assert_eq!(dripped, whole, "pieces of up to {piece_max} bytes");
        }
        whole
    }

    fn error(content: &[u8]) -> InputError {
        let (records, error) = read_all(reader(content, 3, 1 << 30));
        assert_eq!(records, []);
        error.unwrap()
    }

    fn owned(expected: &[(u64, &[u8], &[u8])]) -> Vec<Owned> {
        expected.iter().map(|(line, header, body)| (*line, header.to_vec(), body.to_vec())).collect()
    }

    #[test]
    fn records_are_cut_at_headers_with_exact_lines() {
        type Case = (&'static [u8], &'static [(u64, &'static [u8], &'static [u8])]);
        let cases: [Case; 20] = [
            (b"", &[]),
            (b"\n\r\n \t\n", &[]),
            (b"; a comment alone", &[]),
            (b"\xef\xbb\xbf", &[]),
            (b">a\nMK\n", &[(1, b"a", b"MK\n")]),
            (b">a\nMK", &[(1, b"a", b"MK")]),
            (b">a b c\nMK\nLA\n>b\nVV\n", &[(1, b"a b c", b"MK\nLA\n"), (4, b"b", b"VV\n")]),
            (b">a\r\nMK\r\n>b\r\nVV\r\n", &[(1, b"a", b"MK\r\n"), (3, b"b", b"VV\r\n")]),
            (b"\xef\xbb\xbf>a\nMK\n>b\nV", &[(1, b"a", b"MK\n"), (3, b"b", b"V")]),
            (b"\n\r\n  \n>a\nMK\n>b\nV", &[(4, b"a", b"MK\n"), (6, b"b", b"V")]),
            (b"\xef\xbb\xbf\n; old\n;style\r\n\n>a\nMK", &[(5, b"a", b"MK")]),
            (b">a\n\n\nMK\n\n>b\n\nV\n\n", &[(1, b"a", b"\n\nMK\n\n"), (6, b"b", b"\nV\n\n")]),
            (b">a\n>b\n>c", &[(1, b"a", b""), (2, b"b", b""), (3, b"c", b"")]),
            (b">a\n>b\nMK\n>c\n", &[(1, b"a", b""), (2, b"b", b"MK\n"), (4, b"c", b"")]),
            (b">a\nMK\n>b\r", &[(1, b"a", b"MK\n"), (3, b"b", b"")]),
            (b">", &[(1, b"", b"")]),
            (b">\nMK\n> \nV", &[(1, b"", b"MK\n"), (3, b" ", b"V")]),
            (b">>a>\nM>K\n>b", &[(1, b">a>", b"M>K\n"), (3, b"b", b"")]),
            (b">a\nMK\n;x\n@y\n+z\n", &[(1, b"a", b"MK\n;x\n@y\n+z\n")]),
            (b">a\rb\nMK\r", &[(1, b"a\rb", b"MK\r")]),
        ];
        for (content, expected) in cases {
            assert_eq!(records(content), owned(expected), "{:?}", String::from_utf8_lossy(content));
        }
    }

    #[test]
    fn what_is_not_fasta_is_refused_with_its_line() {
        let cases: [(&[u8], &str); 9] = [
            (b"MKV\n>a\nMK", "in.fasta:1: expected a header that starts with `>`, found `MKV`"),
            (b"\n\n; c\nMKV\r\n>a", "in.fasta:4: expected a header that starts with `>`, found `MKV`"),
            (b"\n  >a\nMK", "in.fasta:2: expected a header that starts with `>`, found ` >a`"),
            (b"\0\0\x01", "in.fasta:1: expected a header that starts with `>`, found `\\u{0}\\u{0}\\u{1}`"),
            (
                b"@r1\nACGT\n+\nIIII\n",
                "in.fasta:1: the file starts with `@`: it is FASTQ (or SAM), not FASTA",
            ),
            (b"\n\n@r1\n", "in.fasta:3: the file starts with `@`: it is FASTQ (or SAM), not FASTA"),
            (b">a\rMKV\r>b\rMK\r", "input `in.fasta` ends its lines with carriage returns alone"),
            (b"\r\r>a\rMKV", "input `in.fasta` ends its lines with carriage returns alone"),
            (b"\xff\xfe>\0a\0\n\0", "input `in.fasta` is UTF-16 text, not plain FASTA"),
        ];
        for (content, expected) in cases {
            let error = error(content);
            assert_eq!(error.to_string(), expected);
            assert!(error.is_bad_input());
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn what_is_still_packed_is_named() {
        let mut tar = vec![0; 1024];
        tar[..10].copy_from_slice(b"some.fasta");
        tar[257..265].copy_from_slice(b"ustar  \0");
        tar[512..518].copy_from_slice(b">a\nMK\n");
        let gzip = |content: &[u8]| {
            use std::io::Write;
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        };
        let zstd = zstd::stream::encode_all(&b">a\nMK\n"[..], 3).unwrap();
        for (content, format, hint) in [
            (tar.clone(), "tar", "tar -xf"),
            (gzip(&tar), "tar", "tar -xf"),
            (gzip(&gzip(b">a\nMK\n")), "gzip", "packed twice"),
            (gzip(&zstd), "zstd", "packed twice"),
            (gzip(b"BZh91AY&SY"), "bzip2", "packed twice"),
        ] {
            let error = error(&content);
            assert_eq!(
                error.to_string(),
                format!("input `in.fasta` holds {format} data where FASTA text should be")
            );
            assert!(error.is_bad_input() && error.hint().unwrap().contains(hint), "{:?}", error.hint());
        }
        let letters = [b">a\n", vec![b'A'; 254].as_slice(), b"ustar\n"].concat();
        assert_eq!(records(&letters).len(), 1);
    }

    #[test]
    fn records_up_to_the_limit_pass_and_longer_ones_are_named() {
        let content = b">a\nMK\n>bb c\nMKVLA\nMKVLA\n>d\nM\n";
        for piece_max in [1, 5, usize::MAX] {
            assert_eq!(read_all(reader(content, piece_max, 18)).0.len(), 3);
            let (records, error) = read_all(reader(content, piece_max, 17));
            assert_eq!(records, owned(&[(1, b"a", b"MK\n")]));
            let error = error.unwrap();
            assert_eq!(error.to_string(), "in.fasta:3: record `bb` is larger than 17 bytes");
            assert!(error.hint().unwrap().contains("max_record_bytes"));
        }
        // The limit holds for a last record and for a header alone.
        assert!(read_all(reader(b">a\nMKV", 1, 5)).1.is_some());
        assert!(read_all(reader(b">abcde", 1, 5)).1.is_some());
        assert!(read_all(reader(b">abcd", 1, 5)).1.is_none());
    }

    #[test]
    fn a_huge_record_fails_early_and_in_bounded_memory() {
        /// Yields `>big` and 200 MB of residues on one line, or as a header if `in_header`.
        struct Endless {
            left: usize,
            in_header: bool,
            begun: bool,
        }
        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                if !self.begun {
                    self.begun = true;
                    let start = if self.in_header { b">big " } else { b">big\n" };
                    return (&start[..]).read(buffer);
                }
                let read = buffer.len().min(self.left);
                buffer[..read].fill(b'A');
                self.left -= read;
                Ok(read)
            }
        }
        for in_header in [false, true] {
            let endless = Endless { left: 200_000_000, in_header, begun: false };
            let source = SourceReader::new("in.fasta".to_owned(), Box::new(endless)).unwrap();
            let mut reader = RecordReader::new(source, 1 << 20, Vec::new());
            let error = reader.next().unwrap_err();
            assert_eq!(error.to_string(), "in.fasta:1: record `big` is larger than 1048576 bytes");
            assert!(reader.bytes_read() <= (1 << 20) + 2 * READ_BYTES as u64);
            assert!(reader.buffer.capacity() <= (1 << 20) + 2 * READ_BYTES);
        }
    }

    #[test]
    fn a_header_has_a_bound_of_its_own() {
        let header = |bytes: usize| [b">id ", vec![b'A'; bytes - 4].as_slice(), b"\nMK\n"].concat();
        let (records, error) = read_all(reader(&header(HEADER_BYTES_MAX), usize::MAX, 1 << 30));
        assert_eq!((records.len(), error.is_none()), (1, true));
        // Told as soon as it is known, be the record whole or not.
        for body in [b"MK\n".to_vec(), b"MK\n".repeat(HEADER_BYTES_MAX)] {
            let content = [b">a\nMK\n", header(HEADER_BYTES_MAX + 1).as_slice(), &body].concat();
            let mut reader = reader(&content, usize::MAX, 1 << 30);
            assert!(reader.next().unwrap().is_some());
            let error = reader.next().unwrap_err();
            assert_eq!(error.to_string(), "in.fasta:3: the header of `id` is longer than 16777216 bytes");
            assert!(error.hint().is_some() && error.is_bad_input());
            assert!(reader.buffer.capacity() <= 2 * (HEADER_BYTES_MAX + 2 * READ_BYTES));
        }
    }

    #[test]
    fn what_unpacks_to_very_much_takes_bounded_memory() {
        use std::io::Write;
        let unpacked =
            b">bomb\n".iter().copied().chain(std::iter::repeat_n(b'A', 64 << 20)).collect::<Vec<_>>();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&unpacked).unwrap();
        let bombs = [gzip.finish().unwrap(), zstd::stream::encode_all(unpacked.as_slice(), 3).unwrap()];
        for bomb in bombs {
            assert!(bomb.len() < 100_000, "{}", bomb.len());
            let mut reader = reader(&bomb, usize::MAX, 1 << 20);
            let error = reader.next().unwrap_err();
            assert_eq!(error.to_string(), "in.fasta:1: record `bomb` is larger than 1048576 bytes");
            assert!(reader.buffer.capacity() <= (1 << 20) + 2 * READ_BYTES);
        }
    }

    #[test]
    fn the_buffer_stays_small_over_many_records() {
        let content = b">a\nMKVLA\n".repeat(1 << 20);
        let mut reader = reader(&content, usize::MAX, 1 << 30);
        let mut records = 0;
        while reader.next().unwrap().is_some() {
            records += 1;
        }
        assert_eq!(records, 1 << 20);
        assert!(reader.buffer.capacity() <= 3 * READ_BYTES);
    }

    #[test]
    fn a_used_buffer_serves_the_next_input_and_a_large_one_is_given_up() {
        for (residues, kept) in [(10, true), (READ_BYTES, true), (8 * READ_BYTES, false)] {
            let first = [b">first\n", b"W".repeat(residues).as_slice()].concat();
            let mut reader = reader(&first, usize::MAX, 1 << 30);
            while reader.next().unwrap().is_some() {}
            let buffer = reader.into_buffer();
            assert_eq!(!buffer.is_empty(), kept, "{residues}");
            let place = buffer.as_ptr();
            let content = io::Cursor::new(b">a\nMK\n".to_vec());
            let source = SourceReader::new("in.fasta".to_owned(), Box::new(content)).unwrap();
            let mut reader = RecordReader::new(source, 1 << 30, buffer);
            let raw = reader.next().unwrap().unwrap();
            assert_eq!((raw.line, raw.header, raw.body), (1, &b"a"[..], &b"MK\n"[..]));
            assert!(reader.next().unwrap().is_none());
            let again = reader.into_buffer();
            assert_eq!(again.as_ptr() == place, kept, "{residues}");
        }
    }

    #[test]
    fn whole_records_come_out_before_the_failure_behind_them() {
        let dripping = Dripping {
            content: b">a\nMK\n>b\nVV\n>c\nLA\n".to_vec(),
            at: 0,
            piece_max: 100,
            fails_at_end: true,
        };
        let source = SourceReader::new("in.fasta".to_owned(), Box::new(dripping)).unwrap();
        let (records, error) = read_all(RecordReader::new(source, 1 << 20, Vec::new()));
        // The last record may go on behind the failure, so it is not one of them.
        assert_eq!(records, owned(&[(1, b"a", b"MK\n"), (3, b"b", b"VV\n")]));
        let error = error.unwrap();
        assert!(matches!(error, InputError::Read { bytes: 18, .. }), "{error:?}");
        assert!(!error.is_bad_input());
    }

    #[test]
    fn long_comments_and_records_cross_read_boundaries() {
        let comment = [b";".repeat(READ_BYTES + 1), b"\n".to_vec()].concat();
        for length in [READ_BYTES - 4, READ_BYTES - 3, READ_BYTES - 2, READ_BYTES, 5 * READ_BYTES + 1] {
            let body = [b"A".repeat(length), b"\n".to_vec()].concat();
            let content = [&comment, &b">a\n"[..], &body, b">b\n", &body].concat();
            let (records, error) = read_all(reader(&content, usize::MAX, 1 << 30));
            assert!(error.is_none(), "{error:?}");
            assert_eq!(records, owned(&[(2, b"a", &body), (4, b"b", &body)]));
        }
    }

    prop_compose! {
        fn plain_record()(
            header in "[a-z0-9|]{1,12}( [A-Za-z=> ]{0,20})?",
            lines in prop::collection::vec("[A-Z]{1,30}", 1..6),
        ) -> (String, Vec<String>) {
            (header, lines)
        }
    }

    proptest! {
        #[test]
        fn plain_fasta_reads_as_needletail_reads_it(
            written in prop::collection::vec(plain_record(), 1..20),
            crlf: bool,
            last_line_end: bool,
            piece_max in 1_usize..40,
        ) {
            let line_end = if crlf { "\r\n" } else { "\n" };
            let mut content = String::new();
            for (header, lines) in &written {
                content += &format!(">{header}{line_end}");
                for line in lines {
                    content += &format!("{line}{line_end}");
                }
            }
            if !last_line_end {
                content.truncate(content.trim_end().len());
            }
            let (records, error) = read_all(reader(content.as_bytes(), piece_max, 1 << 20));
            prop_assert!(error.is_none());
            let mut oracle = FastaReader::new(content.as_bytes());
            for (line, header, body) in records {
                let expected = oracle.next().unwrap().unwrap();
                prop_assert_eq!(line, expected.start_line_number());
                prop_assert_eq!(&header, expected.id());
                let joined: Vec<u8> = body.into_iter().filter(|byte| !b"\r\n".contains(byte)).collect();
                prop_assert_eq!(&joined, &expected.seq().to_vec());
            }
            prop_assert!(oracle.next().is_none());
        }

        #[test]
        fn no_bytes_are_lost_or_invented(content in "[>;\\r\\n AB@]{0,60}", piece_max in 1_usize..8) {
            let content = content.into_bytes();
            let (records, error) = read_all(reader(&content, piece_max, 1 << 20));
            if error.is_none() {
                let headers = records.iter().map(|(line, ..)| *line).collect::<Vec<_>>();
                let lines = content.split(|&byte| byte == b'\n').enumerate();
                let expected = lines.filter(|(_, line)| line.starts_with(b">")).map(|(at, _)| at as u64 + 1);
                prop_assert_eq!(headers, expected.collect::<Vec<_>>());
            }
        }
    }
}
