//! Keys: what a terminal sends, as bytes, into what was pressed.
//!
//! Read by ourselves, since a library that waits for keys must not spin or block once the terminal is gone.

/// What was pressed, or pasted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// The first line of a pasted text, as far as it can be seen: no keys, whatever its letters are.
    Pasted(String),
    Char(char),
    Enter,
    Esc,
    Backspace,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
}

/// Longest sequence that may mean a key; what is longer is none.
const SEQUENCE_BYTES_MAX: usize = 32;
const ESC: u8 = 0x1b;
/// What a terminal puts around a text that is pasted, once it is asked to.
const PASTE_BEGINS: &[u8] = b"\x1b[200~";
const PASTE_ENDS: &[u8] = b"\x1b[201~";
/// Most of a pasted text that is kept: more than a search takes.
const PASTE_BYTES_MAX: usize = 1024;
/// Moments without a byte after which a paste counts as over: its end got lost, and keys must be keys again.
const PASTE_SILENCES_MAX: u32 = 50;

/// Collects bytes until they make a key.
#[derive(Default)]
pub(super) struct KeyReader {
    pending: Vec<u8>,
    paste: Option<Paste>,
}

/// A text that is being pasted.
#[derive(Default)]
struct Paste {
    /// Its beginning.
    kept: Vec<u8>,
    /// How often in a row nothing came.
    silences: u32,
}

impl Paste {
    fn keep(&mut self, bytes: &[u8]) {
        let room = PASTE_BYTES_MAX.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// The first line, without what acts instead of being seen.
    fn first_line(&self) -> String {
        let text = String::from_utf8_lossy(&self.kept);
        let line = text.lines().next().unwrap_or_default();
        // A paste that was cut may have lost a part of its last letter.
        line.trim_end_matches('\u{fffd}').chars().filter(|char| !actors::acts(*char)).collect()
    }
}

impl KeyReader {
    /// Takes bytes in; none means that nothing more came for a while, so that a lone ESC is the key.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Vec<Key> {
        if bytes.is_empty() {
            if let Some(paste) = &mut self.paste {
                paste.silences += 1;
                if paste.silences >= PASTE_SILENCES_MAX {
                    (self.paste, self.pending) = (None, Vec::new());
                }
                return Vec::new();
            }
            let lone = std::mem::take(&mut self.pending) == [ESC];
            return if lone { vec![Key::Esc] } else { Vec::new() };
        }
        self.pending.extend_from_slice(bytes);
        let mut keys = Vec::new();
        loop {
            if let Some(paste) = &mut self.paste {
                paste.silences = 0;
                let end = self.pending.windows(PASTE_ENDS.len()).position(|bytes| bytes == PASTE_ENDS);
                // What may be the beginning of the end stays until more has come.
                let text = end.unwrap_or_else(|| self.pending.len() - begun(&self.pending, PASTE_ENDS));
                paste.keep(&self.pending[..text]);
                self.pending.drain(..text);
                if end.is_none() {
                    return keys;
                }
                keys.push(Key::Pasted(paste.first_line()));
                self.pending.drain(..PASTE_ENDS.len());
                self.paste = None;
            }
            if self.pending.starts_with(PASTE_BEGINS) {
                self.pending.drain(..PASTE_BEGINS.len());
                self.paste = Some(Paste::default());
                continue;
            }
            let Some((used, key)) = first_key(&self.pending) else { break };
            self.pending.drain(..used);
            keys.extend(key);
        }
        if self.pending.len() > SEQUENCE_BYTES_MAX {
            self.pending.clear();
        }
        keys
    }
}

/// How many bytes at the end of `bytes` may be the beginning of `mark`.
fn begun(bytes: &[u8], mark: &[u8]) -> usize {
    (1..mark.len()).rev().find(|&length| bytes.ends_with(&mark[..length])).unwrap_or(0)
}

/// The first key of `bytes` and how many of them it takes; `None` if more must come. A sequence may mean nothing.
fn first_key(bytes: &[u8]) -> Option<(usize, Option<Key>)> {
    match *bytes {
        [] | [ESC] | [ESC, b'[' | b'O'] => None,
        [ESC, b'O', last, ..] => Some((3, named(&[], last))),
        [ESC, b'[', ref rest @ ..] => {
            let end = rest.iter().position(|byte| (0x40..=0x7e).contains(byte))?;
            Some((end + 3, named(&rest[..end], rest[end])))
        }
        // ESC twice: the first is the key.
        [ESC, ESC, ..] => Some((1, Some(Key::Esc))),
        // Alt with something.
        [ESC, _, ..] => Some((2, None)),
        [b'\r' | b'\n', ..] => Some((1, Some(Key::Enter))),
        [0x08 | 0x7f, ..] => Some((1, Some(Key::Backspace))),
        [byte @ 0x20..0x80, ..] => Some((1, Some(Key::Char(char::from(byte))))),
        [0..0x20, ..] => Some((1, None)),
        [first, ..] => {
            let length = match first {
                0xc0..0xe0 => 2,
                0xe0..0xf0 => 3,
                0xf0..0xf8 => 4,
                _ => 1,
            };
            let letter = bytes.get(..length)?;
            let key = std::str::from_utf8(letter).ok().and_then(|text| text.chars().next()).map(Key::Char);
            Some((if key.is_some() { length } else { 1 }, key))
        }
    }
}

/// A key by the end of its sequence.
fn named(parameters: &[u8], last: u8) -> Option<Key> {
    match (parameters, last) {
        (_, b'A') => Some(Key::Up),
        (_, b'B') => Some(Key::Down),
        (_, b'H') | ([b'1' | b'7'], b'~') => Some(Key::Home),
        (_, b'F') | ([b'4' | b'8'], b'~') => Some(Key::End),
        ([b'5'], b'~') => Some(Key::PageUp),
        ([b'6'], b'~') => Some(Key::PageDown),
        (_, b'M') if parameters.is_empty() => Some(Key::Enter),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(chunks: &[&[u8]]) -> Vec<Key> {
        let mut reader = KeyReader::default();
        chunks.iter().flat_map(|chunk| reader.take(chunk)).collect()
    }

    #[test]
    fn keys_are_told_however_their_bytes_arrive() {
        let whole: &[u8] = b"q\x1b[A\x1bOB\x1b[5~\r\x7f\xc3\xa4\x1b[1;5A?";
        let expected = [
            Key::Char('q'),
            Key::Up,
            Key::Down,
            Key::PageUp,
            Key::Enter,
            Key::Backspace,
            Key::Char('ä'),
            Key::Up,
            Key::Char('?'),
        ];
        assert_eq!(keys(&[whole]), expected);
        let single: Vec<&[u8]> = whole.chunks(1).collect();
        assert_eq!(keys(&single), expected);
    }

    #[test]
    fn a_paste_is_one_thing_however_its_bytes_arrive() {
        let whole: &[u8] = b"a\x1b[200~sy\x1b[Aq \xc3\xa4\xe2\x80\xae\ts\ny\n\x1b[201~b\x1b[200~\x1b[201~";
        let expected = [
            Key::Char('a'),
            Key::Pasted("sy[Aq \u{e4}s".to_owned()),
            Key::Char('b'),
            Key::Pasted(String::new()),
        ];
        assert_eq!(keys(&[whole]), expected);
        for size in 1..8 {
            let pieces: Vec<&[u8]> = whole.chunks(size).collect();
            assert_eq!(keys(&pieces), expected, "in pieces of {size}");
            // A slow connection: nothing for a moment between two pieces, but not within the marks.
            let slow: Vec<&[u8]> = vec![b"\x1b[200~sy", b"", b"s", b"", b"\x1b[201~"];
            assert_eq!(keys(&slow), [Key::Pasted("sys".to_owned())]);
        }
    }

    #[test]
    fn a_paste_of_any_length_takes_little_and_one_that_never_ends_is_given_up() {
        let mut reader = KeyReader::default();
        assert_eq!(reader.take(PASTE_BEGINS), []);
        for _ in 0..1000 {
            assert_eq!(reader.take(&[b's'; 1000]), []);
            assert!(reader.pending.len() < PASTE_ENDS.len());
        }
        assert_eq!(reader.take(b"\x1b[201~y"), [Key::Pasted("s".repeat(PASTE_BYTES_MAX)), Key::Char('y')]);
        assert_eq!(reader.take(b"\x1b[200~s"), []);
        for _ in 0..PASTE_SILENCES_MAX {
            assert_eq!(reader.take(b""), []);
        }
        assert_eq!(reader.take(b"y"), [Key::Char('y')]);
    }

    #[test]
    fn a_lone_escape_is_a_key_once_nothing_follows() {
        assert_eq!(keys(&[b"\x1b"]), []);
        assert_eq!(keys(&[b"\x1b", b""]), [Key::Esc]);
        assert_eq!(keys(&[b"\x1b\x1b", b""]), [Key::Esc, Key::Esc]);
        // Alt-x, a mouse report, a sequence that never ends, bytes that are no letter.
        assert_eq!(
            keys(&[b"\x1bx", b"\x1b[<0;3;4M", b"\x1b[", &[b'1'; 99], b"\xff\xfe", b"a"]),
            [Key::Char('a')]
        );
    }
}
