//! Text of the input as people may see it: characters that act instead of being seen are written out.
//!
//! Whoever prints an id for people passes it through here; files keep it as it is. An id may hold marks that turn
//! the direction of a line around or have no width: printed raw, such a line reads as another one.

use std::fmt::{self, Display, Formatter, Write};

/// A text whose every character can be seen.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a>(&'a str);

/// Shows an id, or anything else from the input, to people.
pub fn shown(text: &str) -> Shown<'_> {
    Shown(text)
}

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|char| {
            if acts(char) { write!(f, "{}", char.escape_default()) } else { f.write_char(char) }
        })
    }
}

/// Whether a character does something to a terminal or to its neighbours, or cannot be seen at all.
pub fn acts(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            // Soft hyphen, Arabic letter mark, Mongolian vowel separator.
            '\u{ad}' | '\u{61c}' | '\u{180e}'
            // No width, direction marks; line and paragraph separators, embeddings and overrides; isolates.
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            // Byte order mark, annotations, tags.
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_is_written_out_and_the_rest_stays() {
        for (text, seen) in [
            ("sp|P1|A_B", "sp|P1|A_B"),
            ("naïve_蛋白質_β", "naïve_蛋白質_β"),
            ("a\u{202e}b", "a\\u{202e}b"),
            ("\u{2066}x\u{2069}", "\\u{2066}x\\u{2069}"),
            ("one\u{200b}two\u{feff}", "one\\u{200b}two\\u{feff}"),
            ("red\u{1b}[31m\t", "red\\u{1b}[31m\\t"),
            ("line\u{2028}line\u{9b}", "line\\u{2028}line\\u{9b}"),
        ] {
            assert_eq!(shown(text).to_string(), seen);
        }
    }
}
