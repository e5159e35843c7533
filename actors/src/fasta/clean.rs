//! `clean`: a raw record to canonical residues, or what is wrong with it.
//!
//! A plain function that the stream calls for every record. It decides nothing about bad records and long
//! sequences beyond naming them: stopping and skipping are the stream's.

use config::{Gaps, Input, TooLong};
use memchr::memchr;

use super::error::printable;
use super::reader::{RawRecord, first_word};

/// The part of the job's input policy that changes residues.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) gaps: Gaps,
    /// `u32::MAX`: no limit but that of the residue count's type.
    pub(super) residues_max: u32,
    pub(super) too_long: TooLong,
    /// Residues whose vectors fit into one row of the result.
    pub(super) row_residues_max: u32,
}

impl Policy {
    pub(super) fn of(input: &Input) -> Policy {
        let residues_max = input.max_residues.map_or(u32::MAX, |max| max.get());
        Policy { gaps: input.gaps, residues_max, too_long: input.too_long, row_residues_max: u32::MAX }
    }
}

/// A record in canonical form.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cleaned {
    pub(super) id: String,
    /// Upper-case letters, inner `*`, kept gaps; at least one.
    pub(super) residues: Vec<u8>,
    /// How many leading residues are pooled, 1..=residues.len().
    pub(super) pooled_residues: u32,
    /// Residues before truncation.
    pub(super) residues_in_input: u32,
    pub(super) changes: Changes,
}

/// What cleaning changed in one record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) truncated: bool,
    /// Pooled over its first residues only.
    pub(super) pooled_first: bool,
    /// Residues that the vocabulary lacks (`<unk>`), after truncation.
    pub(super) unknown_letters: u64,
    pub(super) gap_letters_removed: u64,
    pub(super) stops_removed: u64,
    pub(super) lower_case_letters: u64,
}

/// Why a record cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Flaw {
    /// First word of the header, made printable if it is no proper id.
    pub(super) id: String,
    pub(super) kind: FlawKind,
}

/// What is wrong with a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FlawKind {
    /// Malformed, as this sentence says.
    Bad(String),
    /// More residues than allowed, under `stop` or `skip`.
    TooLong { residues: u64 },
}

/// Longest id, bytes: thousands of ids are held at a time, and every output row carries one.
const ID_BYTES_MAX: usize = 4096;

/// Turns a raw record into canonical residues.
///
/// # Errors
/// [`Flaw`]: no proper id, a byte that is no residue letter, no residue, too many residues for the policy or for a row.
pub(super) fn clean(raw: &RawRecord<'_>, policy: &Policy) -> Result<Cleaned, Flaw> {
    let id = match id_of(raw.header) {
        Ok(id) => id,
        Err(reason) => {
            return Err(Flaw { id: printable(first_word(raw.header)), kind: FlawKind::Bad(reason) });
        }
    };
    let mut changes = Changes::default();
    let residues = match residues_of(raw, policy.gaps, &mut changes) {
        Ok(residues) => residues,
        Err(reason) => return Err(Flaw { id, kind: FlawKind::Bad(reason) }),
    };
    limit(id, residues, changes, policy)
}

/// The id of a header: its first word, which must be text without control characters and separators of lines.
fn id_of(header: &[u8]) -> Result<String, String> {
    if memchr(b'\r', header).is_some() {
        return Err("a carriage return without line feed inside the header".to_owned());
    }
    let word = first_word(header);
    if word.is_empty() {
        return Err("no id: nothing follows `>`".to_owned());
    }
    if word.len() > ID_BYTES_MAX {
        return Err(format!("the id is {} bytes long, more than {ID_BYTES_MAX}", word.len()));
    }
    let Ok(id) = std::str::from_utf8(word) else {
        return Err("the id is not UTF-8 text".to_owned());
    };
    // Where ids are written one to a line, some readers take these for its end.
    let separates = |char| matches!(char, '\u{2028}' | '\u{2029}');
    match id.chars().find(|&char| char.is_control() || separates(char)) {
        Some(char) if separates(char) => {
            Err(format!("the id holds a separator of lines, U+{:04X}", char as u32))
        }
        Some(char) => Err(format!("the id holds a control character, U+{:04X}", char as u32)),
        None => Ok(id.to_owned()),
    }
}

/// The residues of a body: lines joined, upper-case, gaps by policy, trailing stops removed.
fn residues_of(raw: &RawRecord<'_>, gaps: Gaps, changes: &mut Changes) -> Result<Vec<u8>, String> {
    let mut residues = Vec::with_capacity(raw.body.len());
    let mut rest = raw.body;
    let mut line_number = raw.line;
    while !rest.is_empty() {
        line_number += 1;
        let line_end = memchr(b'\n', rest).unwrap_or(rest.len());
        let line = rest[..line_end].trim_ascii_end();
        rest = rest.get(line_end + 1..).unwrap_or_default();

        if only_capitals(line) {
            residues.extend_from_slice(line);
            continue;
        }
        let line_start = residues.len();
        residues.extend(line.iter().map(|&byte| CANONICAL[usize::from(byte)]));
        // The table's 0 marks what is no letter.
        if let Some(column) = memchr(0, &residues[line_start..]) {
            return Err(describe_byte(line[column], line_number, column + 1));
        }
        changes.lower_case_letters += line.iter().filter(|byte| byte.is_ascii_lowercase()).count() as u64;
    }
    match gaps {
        Gaps::Keep => {}
        Gaps::Remove => {
            let before = residues.len();
            residues.retain(|letter| !matches!(letter, b'-' | b'.'));
            changes.gap_letters_removed = (before - residues.len()) as u64;
        }
    }
    while residues.last() == Some(&b'*') {
        residues.pop();
        changes.stops_removed += 1;
    }
    if residues.is_empty() {
        return Err("no residues".to_owned());
    }
    Ok(residues)
}

/// Applies the length policy, then the limit of a row, and counts what the vocabulary lacks.
fn limit(id: String, mut residues: Vec<u8>, mut changes: Changes, policy: &Policy) -> Result<Cleaned, Flaw> {
    let max = policy.residues_max;
    let residues_in_input = u32::try_from(residues.len()).unwrap_or(u32::MAX);
    let pooled_residues = u32::try_from(residues.len()).unwrap_or(u32::MAX).min(max);
    if residues.len() as u64 > u64::from(max) {
        match policy.too_long {
            TooLong::Truncate => {
                residues.truncate(max as usize);
                changes.truncated = true;
            }
            TooLong::PoolFirst => changes.pooled_first = true,
            TooLong::Stop | TooLong::Skip => {
                let residues = residues.len() as u64;
                return Err(Flaw { id, kind: FlawKind::TooLong { residues } });
            }
        }
    }
    let row_max = policy.row_residues_max;
    if pooled_residues > row_max {
        let reason = format!(
            "{pooled_residues} residues, more than the {row_max} whose vectors fit into one row of the result; max_residues can cut it"
        );
        return Err(Flaw { id, kind: FlawKind::Bad(reason) });
    }
    changes.unknown_letters = residues.iter().filter(|&&letter| is_unknown(letter)).count() as u64;
    Ok(Cleaned { id, residues, pooled_residues, residues_in_input, changes })
}

/// Whether a line needs no change: nearly all do not. Without an early exit the loop becomes vector code.
fn only_capitals(line: &[u8]) -> bool {
    line.iter().fold(true, |so_far, byte| so_far & byte.is_ascii_uppercase())
}

/// Whether a canonical letter has no token of its own (`<unk>`); comparisons, since a table defeats vector code.
fn is_unknown(letter: u8) -> bool {
    letter == b'J' || letter == b'*'
}

/// Byte to canonical residue letter; 0 for what is none.
const CANONICAL: [u8; 256] = {
    let mut table = [0; 256];
    let mut letter = b'A';
    while letter <= b'Z' {
        table[letter as usize] = letter;
        table[letter.to_ascii_lowercase() as usize] = letter;
        letter += 1;
    }
    table[b'*' as usize] = b'*';
    table[b'-' as usize] = b'-';
    table[b'.' as usize] = b'.';
    table
};

/// Says which byte stands where, and what that usually means.
fn describe_byte(byte: u8, line: u64, column: usize) -> String {
    let name = match byte {
        b' ' => "a space".to_owned(),
        b'\t' => "a tab".to_owned(),
        b'\r' => "a carriage return without line feed".to_owned(),
        0x21..=0x7e => format!("`{}`", byte as char),
        _ => format!("the byte 0x{byte:02X}"),
    };
    let meaning = if byte == b'>' { " (is a line break missing before it?)" } else { "" };
    format!("{name} at line {line}, column {column} is not a residue letter{meaning}")
}

#[cfg(test)]
mod tests {
    use kernels::alphabet;

    use super::*;

    const KEEP: Policy = Policy {
        gaps: Gaps::Keep,
        residues_max: u32::MAX,
        too_long: TooLong::Stop,
        row_residues_max: u32::MAX,
    };
    const REMOVE: Policy = Policy { gaps: Gaps::Remove, ..KEEP };

    fn raw<'a>(header: &'a [u8], body: &'a [u8]) -> RawRecord<'a> {
        RawRecord { line: 10, header, body }
    }

    fn residues(body: &[u8], policy: &Policy) -> (String, Changes) {
        let cleaned = clean(&raw(b"x", body), policy).unwrap();
        assert_eq!(cleaned.pooled_residues as usize, cleaned.residues.len());
        (String::from_utf8(cleaned.residues).unwrap(), cleaned.changes)
    }

    fn reason(header: &[u8], body: &[u8]) -> (String, String) {
        match clean(&raw(header, body), &KEEP).unwrap_err() {
            Flaw { id, kind: FlawKind::Bad(reason) } => (id, reason),
            flaw => panic!("{flaw:?}"),
        }
    }

    #[test]
    fn letters_are_joined_upper_cased_and_counted() {
        let none = Changes::default();
        assert_eq!(residues(b"MKV\nLA\n", &KEEP), ("MKVLA".to_owned(), none));
        assert_eq!(residues(b"MKV\r\nLA\r\n\r\n", &KEEP), ("MKVLA".to_owned(), none));
        assert_eq!(residues(b"MKV \t\n\n  \nLA", &KEEP), ("MKVLA".to_owned(), none));
        assert_eq!(
            residues(b"mKv\nla", &KEEP),
            ("MKVLA".to_owned(), Changes { lower_case_letters: 4, ..none })
        );
        let all = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ";
        assert_eq!(
            residues(all, &KEEP),
            (String::from_utf8(all.to_vec()).unwrap(), Changes { unknown_letters: 1, ..none })
        );
    }

    #[test]
    fn stops_and_gaps_follow_the_policy() {
        let none = Changes::default();
        assert_eq!(residues(b"MK*\n", &KEEP), ("MK".to_owned(), Changes { stops_removed: 1, ..none }));
        assert_eq!(residues(b"MK*\n**\n", &KEEP), ("MK".to_owned(), Changes { stops_removed: 3, ..none }));
        assert_eq!(
            residues(b"M*K*\n", &KEEP),
            ("M*K".to_owned(), Changes { stops_removed: 1, unknown_letters: 1, ..none })
        );
        assert_eq!(residues(b"-M.K-\n", &KEEP), ("-M.K-".to_owned(), none));
        assert_eq!(
            residues(b"-M.K-\n", &REMOVE),
            ("MK".to_owned(), Changes { gap_letters_removed: 3, ..none })
        );
        // A stop before trailing gaps is at the very end only once the gaps are gone.
        assert_eq!(residues(b"MK*-", &KEEP), ("MK*-".to_owned(), Changes { unknown_letters: 1, ..none }));
        assert_eq!(
            residues(b"MK*-", &REMOVE),
            ("MK".to_owned(), Changes { gap_letters_removed: 1, stops_removed: 1, ..none })
        );
    }

    #[test]
    fn a_byte_that_is_no_letter_is_named_with_line_and_column() {
        let cases: [(&[u8], &str); 10] = [
            (b"MK1", "`1` at line 11, column 3 is not a residue letter"),
            (b"MK\nA B", "a space at line 12, column 2 is not a residue letter"),
            (b"MK\r\n\r\nA\tB", "a tab at line 13, column 2 is not a residue letter"),
            (b" MK", "a space at line 11, column 1 is not a residue letter"),
            (b"MK\rAB", "a carriage return without line feed at line 11, column 3 is not a residue letter"),
            (b"MK\0", "the byte 0x00 at line 11, column 3 is not a residue letter"),
            (b"MK\xc3\xa4", "the byte 0xC3 at line 11, column 3 is not a residue letter"),
            (b"MK\x7f", "the byte 0x7F at line 11, column 3 is not a residue letter"),
            (b"MK;", "`;` at line 11, column 3 is not a residue letter"),
            (
                b"MK>y",
                "`>` at line 11, column 3 is not a residue letter (is a line break missing before it?)",
            ),
        ];
        for (body, expected) in cases {
            assert_eq!(reason(b"x", body), ("x".to_owned(), expected.to_owned()));
        }
    }

    #[test]
    fn every_byte_is_a_letter_or_refused() {
        for byte in 0..=255_u8 {
            let body = [b'M', byte, b'K'];
            let outcome = clean(&raw(b"x", &body), &KEEP);
            let accepted = byte.is_ascii_alphabetic() || matches!(byte, b'*' | b'-' | b'.' | b'\n');
            assert_eq!(outcome.is_ok(), accepted, "byte {byte:#x}");
        }
    }

    #[test]
    fn unknown_letters_are_those_without_a_token() {
        for letter in CANONICAL.into_iter().filter(|&letter| letter != 0) {
            let has_no_token = alphabet::token(letter) == alphabet::UNK;
            assert_eq!(is_unknown(letter), has_no_token, "{}", letter as char);
        }
    }

    #[test]
    fn a_record_without_residues_or_id_is_named() {
        assert_eq!(reason(b"x", b"").1, "no residues");
        assert_eq!(reason(b"x", b"\n \r\n").1, "no residues");
        assert_eq!(reason(b"x", b"**\n*").1, "no residues");
        assert_eq!(clean(&raw(b"x", b"-.-"), &KEEP).unwrap().residues, b"-.-");
        let flaw = clean(&raw(b"x", b"-.-"), &REMOVE).unwrap_err();
        assert_eq!(flaw.kind, FlawKind::Bad("no residues".to_owned()));
        assert_eq!(reason(b"", b"MK"), (String::new(), "no id: nothing follows `>`".to_owned()));
        assert_eq!(reason(b"  \t", b"MK").1, "no id: nothing follows `>`");
        assert_eq!(
            reason(b"a\x01b c", b"MK"),
            ("a\\u{1}b".to_owned(), "the id holds a control character, U+0001".to_owned())
        );
        assert_eq!(reason("a\u{85}b".as_bytes(), b"MK").1, "the id holds a control character, U+0085");
        for separator in ['\u{2028}', '\u{2029}'] {
            let (id, reason) = reason(format!("a{separator}b").as_bytes(), b"MK");
            assert_eq!(id, format!("a{}b", separator.escape_default()));
            assert_eq!(reason, format!("the id holds a separator of lines, U+{:04X}", separator as u32));
        }
        assert_eq!(
            reason(b"a\xffb", b"MK"),
            ("a\u{fffd}b".to_owned(), "the id is not UTF-8 text".to_owned())
        );
        assert_eq!(reason(b"a b\rc", b"MK").1, "a carriage return without line feed inside the header");
        let long = vec![b'i'; ID_BYTES_MAX + 1];
        let (id, reason) = reason(&long, b"MK");
        assert!(id.chars().count() < 100);
        assert_eq!(reason, "the id is 4097 bytes long, more than 4096");
    }

    #[test]
    fn the_id_is_the_first_word() {
        let cases: [(&[u8], &str); 6] = [
            (b"x", "x"),
            (b"sp|P1|A_B some protein OS=x", "sp|P1|A_B"),
            (b"x\tmore", "x"),
            (b" x more", "x"),
            ("\u{e4}\u{3b2} \u{1}".as_bytes(), "\u{e4}\u{3b2}"),
            (b">x y", ">x"),
        ];
        for (header, id) in cases {
            assert_eq!(clean(&raw(header, b"MK"), &KEEP).unwrap().id, id);
        }
        let long = vec![b'i'; ID_BYTES_MAX];
        assert_eq!(clean(&raw(&long, b"MK"), &KEEP).unwrap().id.len(), ID_BYTES_MAX);
    }

    #[test]
    fn long_sequences_follow_the_policy() {
        let policy = |too_long| Policy { residues_max: 3, too_long, ..KEEP };
        for too_long in [TooLong::Truncate, TooLong::PoolFirst, TooLong::Stop, TooLong::Skip] {
            let fits = clean(&raw(b"x", b"MKJ*"), &policy(too_long)).unwrap();
            assert_eq!((fits.residues.as_slice(), fits.pooled_residues), (&b"MKJ"[..], 3));
            assert!(!fits.changes.truncated && !fits.changes.pooled_first);
        }
        let cut = clean(&raw(b"x", b"MKVJ"), &policy(TooLong::Truncate)).unwrap();
        assert_eq!((cut.residues.as_slice(), cut.pooled_residues), (&b"MKV"[..], 3));
        assert_eq!(cut.changes, Changes { truncated: true, ..Changes::default() });
        let whole = clean(&raw(b"x", b"MKVJ"), &policy(TooLong::PoolFirst)).unwrap();
        assert_eq!((whole.residues.as_slice(), whole.pooled_residues), (&b"MKVJ"[..], 3));
        assert_eq!(whole.changes, Changes { pooled_first: true, unknown_letters: 1, ..Changes::default() });
        for too_long in [TooLong::Stop, TooLong::Skip] {
            let flaw = clean(&raw(b"x", b"MKVJ"), &policy(too_long)).unwrap_err();
            assert_eq!(flaw, Flaw { id: "x".to_owned(), kind: FlawKind::TooLong { residues: 4 } });
        }
    }
}
