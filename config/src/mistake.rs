//! What is wrong with a job, where it stands and what would be right: the only errors this crate returns.
//!
//! The parser, the decoder and the resolver raise them; `main` prints them with miette. Nothing here prints.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use miette::{Diagnostic, NamedSource, SourceSpan};
use thiserror::Error;

/// A job could not be loaded.
#[derive(Debug, Error, Diagnostic)]
pub enum ConfigError {
    /// The job file could not be opened or read.
    #[error("failed to read job file `{}`", path.display())]
    Unreadable {
        /// As given.
        path: PathBuf,
        /// What to do.
        #[help]
        help: Option<String>,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The current folder, against which relative paths resolve, is unknown.
    #[error("failed to find the current folder")]
    #[diagnostic(help("change to a folder that exists"))]
    CurrentFolder {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// One mistake in the job file, a `--set` or the environment.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Mistake(Box<Mistake>),
    /// Several mistakes at once.
    #[error("{} mistakes in job `{job}`", mistakes.len())]
    Mistakes {
        /// The job file as given.
        job: String,
        /// In the order of the job file's keys.
        #[related]
        mistakes: Vec<Mistake>,
    },
}

impl ConfigError {
    /// Returns the mistakes found, empty when the job file could not even be read.
    pub fn mistakes(&self) -> &[Mistake] {
        match self {
            ConfigError::Unreadable { .. } | ConfigError::CurrentFolder { .. } => &[],
            ConfigError::Mistake(mistake) => std::slice::from_ref(mistake),
            ConfigError::Mistakes { mistakes, .. } => mistakes,
        }
    }

    pub(crate) fn from_mistakes(job: &str, mut mistakes: Vec<Mistake>) -> Self {
        match mistakes.len() {
            1 => ConfigError::Mistake(Box::new(mistakes.remove(0))),
            _ => ConfigError::Mistakes { job: job.to_owned(), mistakes },
        }
    }
}

impl From<Box<Mistake>> for ConfigError {
    fn from(mistake: Box<Mistake>) -> Self {
        ConfigError::Mistake(mistake)
    }
}

/// One mistake at its place.
#[derive(Debug, Error, Diagnostic)]
#[error("{fault}")]
pub struct Mistake {
    /// What is wrong.
    pub fault: Fault,
    /// What would be right.
    #[help]
    pub help: Option<String>,
    /// The job file, the `--set` or the variable, whole.
    #[source_code]
    text: NamedSource<Arc<str>>,
    #[label("{label}")]
    span: SourceSpan,
    label: String,
}

impl Mistake {
    pub(crate) fn new(name: &str, text: &Arc<str>, span: Range<usize>, objection: Objection) -> Self {
        let start = span.start.min(text.len());
        let end = span.end.clamp(start, text.len());
        if has_long_line(text, start, end) {
            return Self::in_excerpt(name, text, start..end, objection);
        }
        // miette draws no label at the very end of a text: a last line break gives it room.
        let text = if text.ends_with('\n') { Arc::clone(text) } else { Arc::from(format!("{text}\n")) };
        Self {
            fault: objection.fault,
            help: objection.help,
            text: NamedSource::new(name, text),
            span: (start..end).into(),
            label: objection.label,
        }
    }

    /// Shows what stands around a place in a very long line, at the same line number.
    fn in_excerpt(name: &str, text: &str, span: Range<usize>, objection: Objection) -> Self {
        let line_start = text[..span.start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[span.start..].find('\n').map_or(text.len(), |at| span.start + at);
        let from = text.floor_char_boundary(span.start.saturating_sub(EXCERPT_BYTES)).max(line_start);
        let to = text.ceil_char_boundary(span.start.saturating_add(EXCERPT_BYTES)).min(line_end);
        let lines_before = text[..line_start].bytes().filter(|&byte| byte == b'\n').count();
        let mut excerpt = "\n".repeat(lines_before);
        let start = excerpt.len() + (span.start - from);
        excerpt.push_str(&text[from..to]);
        let end = (start + span.len()).min(excerpt.len());
        excerpt.push('\n');
        Self {
            fault: objection.fault,
            help: objection.help,
            text: NamedSource::new(name, Arc::from(excerpt)),
            span: (start..end).into(),
            label: objection.label,
        }
    }

    /// Name of the text that holds the mistake: the job file, `--set`, or `environment`.
    pub fn source_name(&self) -> &str {
        self.text.name()
    }

    /// The text pointed at.
    pub fn pointed_at(&self) -> &str {
        let start = self.span.offset();
        self.text.inner().get(start..start + self.span.len()).unwrap_or("")
    }
}

/// Longest line that is shown whole. miette 7.6 panics at a label in column 65,536 (it pads with a width, which is a
/// u16), and a tab counts as up to four columns; nobody reads such a line anyway.
const LINE_BYTES_MAX: usize = 10_000;
/// Bytes shown before and behind a place in a longer line.
const EXCERPT_BYTES: usize = 200;

/// Whether a line that would be shown with `start..end` is too long: one of its own, or one beside them.
fn has_long_line(text: &str, start: usize, end: usize) -> bool {
    let before = text[..start].rsplit('\n').take(2).map(str::len).sum::<usize>();
    let behind = text[end..].split('\n').take(2).map(str::len).sum::<usize>();
    before + behind + text[start..end].len() > LINE_BYTES_MAX
}

/// A mistake without its place, which the caller knows.
#[derive(Debug)]
pub(crate) struct Objection {
    pub(crate) fault: Fault,
    pub(crate) label: String,
    pub(crate) help: Option<String>,
}

impl Objection {
    pub(crate) fn new(fault: Fault, label: impl Into<String>) -> Self {
        Self { fault, label: label.into(), help: None }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// What can be wrong with a job.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Fault {
    /// The text is not TOML.
    #[error("invalid TOML: {reason}")]
    Syntax {
        /// In the parser's words.
        reason: String,
    },
    /// An override is not `key=value`.
    #[error("override `{typed}` has no value")]
    NoValue {
        /// As typed.
        typed: String,
    },
    /// No such key.
    #[error("unknown key `{key}`")]
    UnknownKey {
        /// Dotted.
        key: String,
    },
    /// A key that has no default was not given.
    #[error("`{key}` is missing")]
    Missing {
        /// Dotted.
        key: String,
    },
    /// Text where a number belongs, and so on.
    #[error("`{key}` cannot be {found}")]
    WrongType {
        /// Dotted.
        key: String,
        /// What was typed, in words.
        found: String,
    },
    /// A word that the key does not take.
    #[error("unknown value `{value}` for `{key}`")]
    UnknownValue {
        /// Dotted.
        key: String,
        /// As typed.
        value: String,
    },
    /// A number beyond the key's limits.
    #[error("`{key}` = {value} is out of range")]
    OutOfRange {
        /// Dotted.
        key: String,
        /// As typed.
        value: String,
    },
    /// Two keys that contradict each other.
    #[error("`{key}` = {value} is greater than `{other}` = {other_value}")]
    Greater {
        /// Dotted.
        key: String,
        /// Its value.
        value: i64,
        /// Dotted.
        other: String,
        /// Its value.
        other_value: i64,
    },
    /// Text that is not an address with a port.
    #[error("`{key}` = \"{value}\" is not an address with a port")]
    NotAnAddress {
        /// Dotted.
        key: String,
        /// As typed.
        value: String,
    },
    /// Empty text or an empty list.
    #[error("`{key}` is empty")]
    Empty {
        /// Dotted.
        key: String,
    },
    /// More of something than is taken.
    #[error("`{key}`: {what}, more than {max}")]
    TooMany {
        /// Dotted.
        key: String,
        /// What there is too much of, with its number.
        what: String,
        /// The limit.
        max: usize,
    },
    /// The same thing listed twice.
    #[error("{what} is listed twice in `{key}`")]
    Twice {
        /// Dotted.
        key: String,
        /// The thing.
        what: String,
    },
    /// `${NAME}` of a variable that is not set.
    #[error("environment variable `{name}` in `{key}` is not set")]
    UndefinedVariable {
        /// Dotted.
        key: String,
        /// Of the variable.
        name: String,
    },
    /// A variable that sets a key, with bytes that are no text.
    #[error("environment variable `{name}` is not UTF-8")]
    NotUtf8 {
        /// Of the variable, made readable.
        name: String,
    },
    /// `${` that cannot be read.
    #[error("malformed `${{…}}` in `{key}`")]
    MalformedVariable {
        /// Dotted.
        key: String,
    },
    /// A file that is not there.
    #[error("no such file `{}`", path.display())]
    NoSuchFile {
        /// Absolute.
        path: PathBuf,
    },
    /// A link to something that is not there.
    #[error("`{}` is a link to `{}`, which is not there", path.display(), target.display())]
    DanglingLink {
        /// Absolute.
        path: PathBuf,
        /// As the link has it.
        target: PathBuf,
    },
    /// A folder that is not there.
    #[error("no such folder `{}`", path.display())]
    NoSuchFolder {
        /// Absolute.
        path: PathBuf,
    },
    /// A file or folder that is there but cannot be used.
    #[error("cannot use `{}`: {reason}", path.display())]
    Unusable {
        /// Absolute.
        path: PathBuf,
        /// In words.
        reason: String,
    },
    /// A folder without a FASTA file.
    #[error("no FASTA file in folder `{}`", path.display())]
    NoFastaInFolder {
        /// Absolute.
        path: PathBuf,
    },
    /// A pattern without a match.
    #[error("no file matches `{pattern}`")]
    NoMatch {
        /// Absolute.
        pattern: String,
    },
    /// A pattern that cannot be read.
    #[error("malformed pattern `{pattern}`: {reason}")]
    MalformedPattern {
        /// As typed.
        pattern: String,
        /// In words.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistake(text: &str, span: Range<usize>) -> Mistake {
        let objection = Objection::new(Fault::Empty { key: "a".to_owned() }, "here");
        Mistake::new("job.toml", &Arc::from(text), span, objection)
    }

    #[test]
    fn places_in_very_long_lines_are_shown_in_an_excerpt() {
        let long = "é".repeat(100_000);
        let text = format!("first = 1\na = {long}X{long}\nlast = 2\n");
        let at = text.find('X').unwrap();
        for span in [at..at + 1, at..text.len()] {
            let mistake = mistake(&text, span);
            assert!(mistake.pointed_at().starts_with('X') && mistake.pointed_at().len() < 300);
            let report = format!("{:?}", miette::Report::new(mistake));
            assert!(
                report.contains("job.toml:2:") && report.contains('X') && report.len() < 5_000,
                "{report}"
            );
        }
        // A short line beside a long one, which would be shown with it.
        for text in [format!("{long}\nX = 1\n"), format!("X = 1\n{long}")] {
            let at = text.find('X').unwrap();
            let mistake = mistake(&text, at..at + 1);
            assert_eq!(mistake.pointed_at(), "X");
            assert!(format!("{:?}", miette::Report::new(mistake)).len() < 5_000);
        }
        // Ends of the text, and a span in the middle of nothing.
        for span in [0..0, 0..text.len(), text.len()..text.len()] {
            assert!(format!("{:?}", miette::Report::new(mistake(&text, span))).len() < 5_000);
        }
    }
}
