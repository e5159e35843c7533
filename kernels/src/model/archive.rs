//! The ZIP archive that a fair-esm checkpoint is: checked against its own size before anything is read from it.
//!
//! `pytorch-reader` checks what it reads, but takes pickles up to 100 MiB, compressed ones too: 100 kB on disk
//! become gigabytes of objects. `torch.save` writes an archive of one form only, so nothing else is taken:
//! entries stored as they are, one after the other, then their directory, then its end.

/// Entries of an archive: one per tensor and a few more; the largest ESM-2 has under a thousand.
const ENTRIES_MAX: u64 = 65_536;

/// Bytes of its pickle. ESM-2's largest is under 200 kB; parsed, each byte can take up to some hundred.
const PICKLE_BYTES_MAX: u64 = 1 << 20;

const END_BYTES: usize = 22;
const LOCATOR_BYTES: usize = 20;
const LONG_END_BYTES: usize = 56;
const ENTRY_BYTES: usize = 46;

/// Says what is wrong with the archive in `file`, if anything is.
pub(super) fn check(file: &[u8]) -> Result<(), String> {
    if !file.starts_with(b"PK\x03\x04") {
        return Err("it is not the ZIP archive that torch.save writes since 1.6: save it again".to_owned());
    }
    let end_at = file.len().saturating_sub(END_BYTES);
    let end = &file[end_at..];
    // No comment follows, so this is the only end that a reader can find.
    if !end.starts_with(b"PK\x05\x06") || end[20..] != [0, 0] {
        return Err(
            "it does not end as a ZIP archive: it was cut off or written to; fetch it again".to_owned()
        );
    }
    let short =
        Directory { entries: number(end, 10, 2), bytes: number(end, 12, 4), offset: number(end, 16, 4) };
    let locator = &file[end_at.saturating_sub(LOCATOR_BYTES)..end_at];
    if !locator.starts_with(b"PK\x06\x07") {
        return short.check(file, end_at);
    }
    let long_at = number(locator, 8, 8);
    let long_end = usize::try_from(long_at).ok().and_then(|at| file[..end_at].get(at..at + LONG_END_BYTES));
    let Some(long_end) = long_end.filter(|end| end.starts_with(b"PK\x06\x06")) else {
        return Err(format!("its ZIP64 end is not at byte {long_at}"));
    };
    let long = Directory {
        entries: number(long_end, 32, 8),
        bytes: number(long_end, 40, 8),
        offset: number(long_end, 48, 8),
    };
    // The short form holds the same, or all ones for what is too long for it.
    let agrees = |short: u64, long: u64, bytes: u32| short == long || short == (1 << (8 * bytes)) - 1;
    if !(agrees(short.entries, long.entries, 2)
        && agrees(short.bytes, long.bytes, 4)
        && agrees(short.offset, long.offset, 4))
    {
        return Err("its two ZIP directories contradict each other".to_owned());
    }
    long.check(file, long_at as usize)
}

/// Where an archive says that its entries are listed.
struct Directory {
    entries: u64,
    bytes: u64,
    offset: u64,
}

impl Directory {
    /// Checks each entry; the directory must end at `end`.
    fn check(&self, file: &[u8], end: usize) -> Result<(), String> {
        let Directory { entries, bytes, offset } = *self;
        if entries > ENTRIES_MAX {
            return Err(format!("its ZIP directory counts {entries} entries, more than {ENTRIES_MAX}"));
        }
        if offset.checked_add(bytes) != Some(end as u64) {
            return Err(format!("its ZIP directory of {bytes} bytes at {offset} does not end at {end}"));
        }
        let mut rest = &file[offset as usize..end];
        let mut stored_bytes = 0u64;
        for position in 0..entries {
            let entry =
                Entry::take(&mut rest).ok_or_else(|| format!("its ZIP entry {position} is damaged"))?;
            let name = String::from_utf8_lossy(entry.name);
            if entry.method != 0 || entry.bytes != entry.packed_bytes {
                return Err(format!("its entry `{name}` is compressed, which torch.save never does"));
            }
            stored_bytes = stored_bytes.saturating_add(entry.bytes);
            if entry.offset.saturating_add(entry.bytes) > offset || stored_bytes > offset {
                let bytes = entry.bytes;
                return Err(format!("its entry `{name}` of {bytes} bytes does not fit into the file"));
            }
            if entry.name.ends_with(b"data.pkl") && entry.bytes > PICKLE_BYTES_MAX {
                let bytes = entry.bytes;
                return Err(format!("its pickle `{name}` has {bytes} bytes, more than {PICKLE_BYTES_MAX}"));
            }
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err(format!("its ZIP directory goes on after {entries} entries"))
        }
    }
}

/// What the directory says of one entry.
struct Entry<'a> {
    name: &'a [u8],
    method: u64,
    packed_bytes: u64,
    bytes: u64,
    offset: u64,
}

impl<'a> Entry<'a> {
    /// Takes the next entry off a directory.
    fn take(directory: &mut &'a [u8]) -> Option<Self> {
        let (fixed, rest) = directory.split_at_checked(ENTRY_BYTES)?;
        if !fixed.starts_with(b"PK\x01\x02") {
            return None;
        }
        let (name, rest) = rest.split_at_checked(number(fixed, 28, 2) as usize)?;
        let (extra, rest) = rest.split_at_checked(number(fixed, 30, 2) as usize)?;
        let (_comment, rest) = rest.split_at_checked(number(fixed, 32, 2) as usize)?;
        *directory = rest;
        let mut long = long_numbers(extra);
        // All ones: the number is in the extra field, in this order.
        let mut of = |at: usize| match number(fixed, at, 4) {
            0xffff_ffff => long.next(),
            short => Some(short),
        };
        let (bytes, packed_bytes, offset) = (of(24)?, of(20)?, of(42)?);
        Some(Self { name, method: number(fixed, 10, 2), packed_bytes, bytes, offset })
    }
}

/// The 64-bit numbers of an entry's extra fields.
fn long_numbers(mut extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut numbers: &[u8] = &[];
    while let Some((head, rest)) = extra.split_at_checked(4) {
        let Some((field, rest)) = rest.split_at_checked(number(head, 2, 2) as usize) else { break };
        if number(head, 0, 2) == 1 {
            numbers = field;
            break;
        }
        extra = rest;
    }
    numbers.as_chunks::<8>().0.iter().map(|&bytes| u64::from_le_bytes(bytes))
}

/// The little-endian number of `count` bytes at `at`, which must be there.
fn number(bytes: &[u8], at: usize, count: usize) -> u64 {
    bytes[at..at + count].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Vec<u8> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tiny/esm2_tiny.pt");
        std::fs::read(path).unwrap()
    }

    /// The entries and the directory of `tiny`, and where the directory begins.
    fn without_end() -> (Vec<u8>, usize) {
        let mut file = tiny();
        let place = |file: &[u8], mark: &[u8]| file.windows(4).position(|window| window == mark).unwrap();
        let directory = place(&file, b"PK\x01\x02");
        file.truncate(place(&file, b"PK\x06\x06"));
        (file, directory)
    }

    fn numbers(numbers: &[u64], bytes: usize) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()[..bytes].to_vec()).collect()
    }

    /// `tiny` with an end of the short form alone.
    fn short(entries: u64) -> Vec<u8> {
        let (file, directory) = without_end();
        let place = [(file.len() - directory) as u64, directory as u64];
        [&file[..], b"PK\x05\x06\0\0\0\0", &numbers(&[entries, entries], 2), &numbers(&place, 4), &[0, 0]]
            .concat()
    }

    /// `tiny` with an end of the long form, to which the short one leaves everything.
    fn long(entries: u64) -> Vec<u8> {
        let (file, directory) = without_end();
        let at = file.len() as u64;
        let place = [entries, entries, at - directory as u64, directory as u64];
        let long_end = [&b"PK\x06\x06"[..], &numbers(&[44], 8), &[0; 12], &numbers(&place, 8)].concat();
        let locator = [&b"PK\x06\x07\0\0\0\0"[..], &numbers(&[at], 8), &[1, 0, 0, 0]].concat();
        let end = [&b"PK\x05\x06\0\0\0\0"[..], &[0xff; 12], &[0, 0]].concat();
        [file, long_end, locator, end].concat()
    }

    /// Entries of `tiny`.
    const ENTRIES: u64 = 48;

    #[test]
    fn what_torch_writes_passes() {
        assert_eq!(check(&tiny()), Ok(()));
    }

    #[test]
    fn archives_that_contradict_themselves_are_refused() {
        let sound = short(ENTRIES);
        assert_eq!(check(&sound), Ok(()));
        let (_, directory) = without_end();
        let end = sound.len() - END_BYTES;
        let cases: [(&str, usize, &[u8], &str); 8] = [
            ("method", directory + 10, &[8, 0], "is compressed"),
            ("unpacked size", directory + 24, &[0xff, 0xff, 0xff, 0x7f], "is compressed"),
            ("entry's offset", directory + 42, &[0xff, 0xff, 0xff, 0x7f], "does not fit"),
            ("name length", directory + 28, &[0xff, 0xff], "entry 0 is damaged"),
            ("entries", end + 10, &[1, 0], "goes on after 1 entries"),
            ("more entries", end + 10, &[0xfe, 0xff], "is damaged"),
            ("directory's offset", end + 16, &[0, 0, 0, 0], "does not end at"),
            ("comment", end + 20, &[1, 0], "does not end as a ZIP archive"),
        ];
        for (what, at, bytes, expected) in cases {
            let mut damaged = sound.clone();
            damaged[at..at + bytes.len()].copy_from_slice(bytes);
            let problem = check(&damaged).unwrap_err();
            assert!(problem.contains(expected), "{what}: {problem}");
        }
        assert!(check(b"\x80\x02}.").unwrap_err().contains("since 1.6"));
        for length in 0..END_BYTES + 4 {
            assert!(check(&sound[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn entries_that_share_bytes_are_refused() {
        // Each of them is as long as all before it: small on disk, without end when read.
        let mut file = b"PK\x03\x04".to_vec();
        file.resize(1_000, 0);
        let entry = [&b"PK\x01\x02"[..], &[0; 16], &numbers(&[600, 600], 4), &[0; 18]].concat();
        let directory = [entry.as_slice(), &entry].concat();
        let place = numbers(&[directory.len() as u64, 1_000], 4);
        let end = [&b"PK\x05\x06\0\0\0\0"[..], &numbers(&[2, 2], 2), &place, &[0, 0]].concat();
        let problem = check(&[file, directory, end].concat()).unwrap_err();
        assert_eq!(problem, "its entry `` of 600 bytes does not fit into the file");
    }

    #[test]
    fn long_directories_are_read_and_held_to_the_same() {
        assert_eq!(check(&long(ENTRIES)), Ok(()));
        assert!(check(&long(ENTRIES - 1)).unwrap_err().contains("goes on after"));
        assert!(check(&long(1 << 40)).unwrap_err().contains("counts 1099511627776 entries, more than 65536"));
        let mut astray = long(ENTRIES);
        let locator = astray.len() - END_BYTES - LOCATOR_BYTES;
        astray[locator + 8..locator + 16].fill(0xff);
        assert!(check(&astray).unwrap_err().contains("ZIP64 end"));
        let mut both = long(ENTRIES);
        let end = both.len() - END_BYTES;
        both[end + 10] = 7;
        assert!(check(&both).unwrap_err().contains("contradict"));
    }
}
