//! Keys: what a terminal sends, as bytes, into what was pressed.
//!
//! Read by ourselves, since a library that waits for keys must not spin or block once the terminal is gone.

/// What was pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
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

/// Collects bytes until they make a key.
#[derive(Default)]
pub(super) struct KeyReader {
    pending: Vec<u8>,
}

impl KeyReader {
    /// Takes bytes in; none means that nothing more came for a while, so that a lone ESC is the key.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Vec<Key> {
        if bytes.is_empty() {
            let lone = std::mem::take(&mut self.pending) == [ESC];
            return if lone { vec![Key::Esc] } else { Vec::new() };
        }
        self.pending.extend_from_slice(bytes);
        let mut keys = Vec::new();
        while let Some((used, key)) = first_key(&self.pending) {
            self.pending.drain(..used);
            keys.extend(key);
        }
        if self.pending.len() > SEQUENCE_BYTES_MAX {
            self.pending.clear();
        }
        keys
    }
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
