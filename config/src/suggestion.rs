//! "did you mean": the allowed word nearest to a typed one.

/// Returns the candidate nearest to `typed`, if it is near enough to be a typing mistake.
///
/// Near enough: equal but for case, `-` and `_`; or begun with `typed` (3 letters at least); or at most one
/// edit for words up to 4 letters, two up to 8, a third of the length beyond. More edits suggest unrelated words.
pub(crate) fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed = fold(typed);
    let letters = typed.chars().count();
    let edits_max = match letters {
        0..=1 => 0,
        2..=4 => 1,
        5..=8 => 2,
        _ => letters / 3,
    };
    candidates
        .into_iter()
        .filter_map(|candidate| {
            let folded = fold(candidate);
            let edits = if letters >= 3 && folded.starts_with(&typed) {
                0
            } else if folded.chars().count().abs_diff(letters) > edits_max {
                // As many edits at least: counting them takes the product of both lengths.
                return None;
            } else {
                strsim::damerau_levenshtein(&typed, &folded)
            };
            (edits <= edits_max).then_some((edits, candidate))
        })
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

fn fold(word: &str) -> String {
    word.trim().chars().map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_mistakes_find_their_word() {
        let words = ["mean", "bos", "max", "none"];
        assert_eq!(nearest("meen", words), Some("mean"));
        assert_eq!(nearest("Mean", words), Some("mean"));
        assert_eq!(nearest("amx", words), Some("max"));
        assert_eq!(nearest("tokenbudget", ["token_budget", "buffer_sequences"]), Some("token_budget"));
        assert_eq!(nearest("trunc", ["truncate", "pool-first"]), Some("truncate"));
        assert_eq!(nearest("pool_first", ["truncate", "pool-first"]), Some("pool-first"));
    }

    #[test]
    fn unrelated_words_find_nothing() {
        assert_eq!(nearest("attention", ["mean", "bos", "max", "none"]), None);
        assert_eq!(nearest("x", ["a", "b"]), None);
        assert_eq!(nearest("", ["a"]), None);
        // Would take minutes if edits were counted.
        assert_eq!(nearest(&"x".repeat(10 << 20), ["mean", "bos"]), None);
    }
}
