//! `~`, `${VAR}` and `${VAR:-default}` in typed text.
//!
//! The resolver expands every text that names a path, a model, a device or a log filter. `$${` stands for a
//! literal `${`; a `$` before anything else is a letter like others.

use std::collections::BTreeMap;

use crate::mistake::{Fault, Objection};
use crate::suggestion::nearest;

/// Expands variables in the value of `key`.
pub(crate) fn expand_variables(
    key: &str,
    typed: &str,
    variables: &BTreeMap<String, String>,
) -> Result<String, Objection> {
    let mut expanded = String::with_capacity(typed.len());
    let mut rest = typed;
    while let Some(dollar) = rest.find("${") {
        let (before, from_dollar) = rest.split_at(dollar);
        let after = &from_dollar[2..];
        if let Some(literal) = before.strip_suffix('$') {
            expanded.push_str(literal);
            expanded.push_str("${");
            rest = after;
            continue;
        }
        expanded.push_str(before);
        let malformed = |label: &str| {
            Objection::new(Fault::MalformedVariable { key: key.to_owned() }, label)
                .help("write ${NAME} or ${NAME:-default}; $${ stands for a literal ${")
        };
        let Some(close) = after.find('}') else {
            return Err(malformed("`${` is never closed by `}`"));
        };
        let inside = &after[..close];
        rest = &after[close + 1..];
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        if !is_name(name) {
            return Err(malformed(&format!("`{name}` is not a variable name")));
        }
        // As in the shell, `:-` also replaces an empty value.
        let value = variables.get(name).filter(|value| default.is_none() || !value.is_empty());
        match (value, default) {
            (Some(value), _) => expanded.push_str(value),
            (None, Some(default)) => expanded.push_str(default),
            (None, None) => return Err(undefined(key, name, variables)),
        }
    }
    expanded.push_str(rest);
    Ok(expanded)
}

/// Expands a leading `~` of a path. `~name` is left alone: it may be a file's name.
pub(crate) fn expand_home(
    key: &str,
    path: String,
    variables: &BTreeMap<String, String>,
) -> Result<String, Objection> {
    let Some(rest) = path.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/')) else {
        return Ok(path);
    };
    match variables.get("HOME").filter(|home| !home.is_empty()) {
        Some(home) => Ok(format!("{home}{rest}")),
        None => Err(undefined(key, "HOME", variables)),
    }
}

/// Writes text so that [`expand_variables`] gives it back unchanged.
pub(crate) fn escape(text: &str) -> String {
    text.replace("${", "$${")
}

fn is_name(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && name.bytes().next().is_some_and(|b| !b.is_ascii_digit())
}

fn undefined(key: &str, name: &str, variables: &BTreeMap<String, String>) -> Objection {
    let mut help = format!("set {name}, or give a default: ${{{name}:-default}}");
    if let Some(near) = nearest(name, variables.keys().map(String::as_str)) {
        help.push_str(&format!("; did you mean `{near}`?"));
    }
    Objection::new(
        Fault::UndefinedVariable { key: key.to_owned(), name: name.to_owned() },
        format!("`{name}` has no value"),
    )
    .help(help)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> BTreeMap<String, String> {
        [("HOME", "/home/ada"), ("SCRATCH", "/scratch"), ("EMPTY", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    fn expand(typed: &str) -> Result<String, Fault> {
        expand_variables("output.directory", typed, &variables())
            .and_then(|text| expand_home("output.directory", text, &variables()))
            .map_err(|objection| objection.fault)
    }

    #[test]
    fn variables_and_defaults_expand() {
        assert_eq!(expand("${SCRATCH}/x").unwrap(), "/scratch/x");
        assert_eq!(expand("a${SCRATCH}${SCRATCH}b").unwrap(), "a/scratch/scratchb");
        assert_eq!(expand("${RUN:-first}").unwrap(), "first");
        assert_eq!(expand("${RUN:-}x").unwrap(), "x");
        assert_eq!(expand("${EMPTY:-default}").unwrap(), "default");
        assert_eq!(expand("${EMPTY}x").unwrap(), "x");
        assert_eq!(expand("${SCRATCH:-default}").unwrap(), "/scratch");
        assert_eq!(expand("${RUN:-a:-b}").unwrap(), "a:-b");
        assert_eq!(expand("größe/${SCRATCH}/é").unwrap(), "größe//scratch/é");
    }

    #[test]
    fn dollars_that_are_not_variables_stay() {
        assert_eq!(expand("price$5").unwrap(), "price$5");
        assert_eq!(expand("$SCRATCH").unwrap(), "$SCRATCH");
        assert_eq!(expand("a$${SCRATCH}").unwrap(), "a${SCRATCH}");
        assert_eq!(expand(&escape("odd${name}$")).unwrap(), "odd${name}$");
    }

    #[test]
    fn home_expands_only_as_a_whole_first_part() {
        assert_eq!(expand("~").unwrap(), "/home/ada");
        assert_eq!(expand("~/x").unwrap(), "/home/ada/x");
        assert_eq!(expand("~grace/x").unwrap(), "~grace/x");
        assert_eq!(expand("x/~").unwrap(), "x/~");
        let nobody = expand_home("input.fasta", "~/x".into(), &BTreeMap::new()).unwrap_err();
        assert_eq!(nobody.fault, Fault::UndefinedVariable { key: "input.fasta".into(), name: "HOME".into() });
    }

    #[test]
    fn undefined_variables_are_named() {
        let key = "output.directory".to_owned();
        assert_eq!(expand("x/${SCRATCHH}"), Err(Fault::UndefinedVariable { key, name: "SCRATCHH".into() }));
        let objection = expand_variables("k", "${SCRATCHH}", &variables()).unwrap_err();
        assert!(objection.help.unwrap().contains("did you mean `SCRATCH`?"));
    }

    #[test]
    fn malformed_variables_are_refused() {
        for typed in ["${", "a${SCRATCH", "${}", "${1A}", "${A B}", "${:-x}", "${A-b}"] {
            assert!(matches!(expand(typed), Err(Fault::MalformedVariable { .. })), "{typed}");
        }
    }
}
