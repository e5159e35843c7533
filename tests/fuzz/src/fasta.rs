//! FASTA files, plain and compressed: the record stream and the survey over it.
//!
//! Byte 0 chooses the policy, byte 1 what the rest is: a file as it lies on disk, or text that is compressed
//! here, whole or damaged, which random bytes would never become.

use std::io::Write;
use std::num::NonZeroU32;
use std::path::Path;

use actors::fasta::{Item, RecordStream, Source, survey};
use config::{Alphabet, DuplicateIds, Gaps, Input, OnBadRecord, TooLong};

/// Reads one input.
pub fn enter(bytes: &[u8]) -> bool {
    let [policy, container, rest @ ..] = bytes else { return false };
    let input = policy_of(*policy);
    match container % 4 {
        0 | 1 => read(&input, rest).is_ok(),
        2 => packed(&input, rest, gzip),
        _ => packed(&input, rest, zstd),
    }
}

fn policy_of(bits: u8) -> Input {
    let bit = |number: u8| bits >> number & 1 == 1;
    let too_long = [TooLong::Truncate, TooLong::PoolFirst, TooLong::Skip, TooLong::Stop];
    Input {
        fasta: Vec::new(),
        alphabet: Alphabet::Protein,
        on_bad_record: if bit(0) { OnBadRecord::Stop } else { OnBadRecord::Skip },
        duplicate_ids: if bit(1) { DuplicateIds::Stop } else { DuplicateIds::Keep },
        max_residues: if bit(2) { NonZeroU32::new(10) } else { None },
        too_long: too_long[usize::from(bits >> 3 & 3)],
        gaps: if bit(5) { Gaps::Remove } else { Gaps::Keep },
        max_record_bytes: if bit(6) { 64 } else { 1 << 20 },
    }
}

/// The items of a file, or the first error as text without its folder.
type Outcome = Result<Vec<Item>, String>;

fn read(input: &Input, file: &[u8]) -> Outcome {
    let folder = super::folder_with("in.fasta", file);
    let sources = [Source::file(folder.path().join("in.fasta"))];
    let text = |error: actors::fasta::InputError| {
        let _ = error.hint();
        actors::error_chain(&error).replace(&folder.path().display().to_string(), "")
    };
    let mut stream = RecordStream::open(input, &sources).map_err(text)?;
    let mut items = Vec::new();
    for item in stream.by_ref() {
        items.push(item.map_err(text)?);
    }
    check(input, &items, file.len(), &stream);
    // The survey may refuse what the stream takes (nucleotides, repeated ids), never the other way round.
    let surveyed = survey(input, &sources, u32::MAX, &folder.path().join("scratch"), &|_, _| {});
    if let Ok(surveyed) = surveyed {
        assert_eq!(surveyed.counts, *stream.counts());
        assert_eq!(surveyed.files, stream.digests());
        let binned: u64 = surveyed.lengths.bins.iter().map(|bin| bin.residues).sum();
        assert_eq!(binned, surveyed.counts.residues);
    }
    Ok(items)
}

/// What every record promises.
fn check(input: &Input, items: &[Item], file_bytes: usize, stream: &RecordStream) {
    let mut line_before = 0;
    for (number, item) in items.iter().enumerate() {
        let (ordinal, line) = match item {
            Item::Record(record) => {
                assert!(!record.id.is_empty() && !record.id.chars().any(char::is_control));
                assert!((1..=record.residues.len()).contains(&(record.pooled_residues as usize)));
                let canonical = |&letter: &u8| letter.is_ascii_uppercase() || b"*-.".contains(&letter);
                assert!(record.residues.iter().all(canonical));
                if let (Some(max), TooLong::Truncate) = (input.max_residues, input.too_long) {
                    assert!(record.residues.len() <= max.get() as usize);
                }
                (record.ordinal, record.line)
            }
            Item::Rejected(rejected) => (rejected.ordinal, rejected.line),
        };
        assert_eq!(ordinal, number as u64);
        assert!(line > line_before);
        line_before = line;
    }
    assert_eq!(stream.counts().records, items.len() as u64);
    assert_eq!(stream.bytes_read(), file_bytes as u64);
}

/// Compressed text reads as the text itself; damaged, it reads the same or not at all.
fn packed(input: &Input, rest: &[u8], pack: fn(&[u8]) -> Vec<u8>) -> bool {
    let [kind, at_high, at_low, text @ ..] = rest else { return false };
    let whole = pack(text);
    let at = usize::from(u16::from_be_bytes([*at_high, *at_low])) % whole.len();
    // Without its mark the file is another one: plain text, perhaps even FASTA.
    const MARK_BYTES: usize = 4;
    let plain = || read(input, text).ok().map(records);
    match kind {
        0 => {
            // Compressed within, it would be unpacked twice on one side.
            let twice = text.starts_with(&[0x1f, 0x8b]) || text.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
            let skippable = text.get(1..4) == Some(&[0x2a, 0x4d, 0x18]);
            if !twice && !skippable {
                let packed = read(input, &whole).ok().map(records);
                // A mark of a refused format is none inside a container.
                if let Some(plain) = plain() {
                    assert_eq!(packed, Some(plain));
                    return true;
                }
            }
            false
        }
        1 => {
            let cut = read(input, &whole[..at]);
            assert!(at < MARK_BYTES || cut.is_err(), "a cut file passed for a whole one");
            false
        }
        flip => {
            let mut damaged = whole;
            damaged[at] ^= flip;
            let outcome = read(input, &damaged);
            let Ok(items) = outcome else { return false };
            assert!(at < MARK_BYTES || Some(records(items)) == plain(), "damage at {at} went unseen");
            true
        }
    }
}

/// What of the items does not depend on the file's name.
fn records(items: Vec<Item>) -> Vec<(u64, u64, String, Vec<u8>)> {
    let record = |item| match item {
        Item::Record(record) => (record.ordinal, record.line, record.id, record.residues),
        Item::Rejected(rejected) => {
            (rejected.ordinal, rejected.line, rejected.id, rejected.reason.into_bytes())
        }
    };
    items.into_iter().map(record).collect()
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text).expect("memory takes all");
    encoder.finish().expect("memory takes all")
}

fn zstd(text: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("level 1 exists");
    encoder.include_checksum(true).expect("checksums exist");
    encoder.write_all(text).expect("memory takes all");
    encoder.finish().expect("memory takes all")
}

/// Seeds: each kind of content in each container.
pub fn seeds(repository: &Path) -> Vec<Vec<u8>> {
    let odd = std::fs::read(repository.join("tests/golden/odd.fasta")).expect("the fixture exists");
    let texts: [&[u8]; 5] = [
        &odd,
        b">a x\nMK\n>b\r\nLA*\r\n\r\n>c d\nmk-l.v\n",
        b"\xef\xbb\xbf; comment\n\n>a\nMKVLAAGIVG\nMKVLAAGIVGMKV\n>a\nM1K\n>\nMK\n>last",
        b"@read\nACGT\n+\nIIII\n",
        b">n\nACGTACGTACGT\n",
    ];
    let mut seeds = Vec::new();
    for (number, text) in texts.into_iter().enumerate() {
        let policy = [0b0010_0000, 0, 0b0000_0111, 0b0100_0011, 0b0001_0100][number];
        for container in [0, 2, 3] {
            let head: &[u8] =
                if container == 0 { &[policy, 0] } else { &[policy, container, number as u8, 0, 40] };
            seeds.push([head, text].concat());
        }
    }
    seeds.push([&[0, 0][..], &gzip(texts[1])].concat());
    seeds.push([&[0, 0][..], &zstd(texts[1])].concat());
    for fixture in ["two_members.fasta.gz", "two_frames.fasta.zst"] {
        let stored = std::fs::read(repository.join("actors/tests/fasta").join(fixture));
        seeds.push([&[0, 0][..], &stored.expect("the fixture exists")].concat());
    }
    seeds
}
