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
