//! Exit codes, and errors on their way to the operator.

use std::error::Error;
use std::process::ExitCode;

use actors::fasta::InputError;
use serde_json::json;

use crate::{logging, shortage};

/// How the program ends; the numbers are a promise to scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Rejected = 3,
    Incomplete = 4,
    BadInput = 5,
    Resumable = 75,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// An error, the exit code that it means, and what the operator can do.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    report: Report,
}

#[derive(Debug)]
enum Report {
    Config(Box<config::ConfigError>),
    Text { message: String, causes: Vec<String>, hints: Vec<String> },
}

impl Failure {
    /// A failure in words.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, report: Report::Text { message: message.into(), causes: Vec::new(), hints: Vec::new() } }
    }

    /// A failure with the causes of `error`.
    pub(crate) fn because(exit: Exit, error: &(dyn Error + 'static)) -> Self {
        let mut causes = Vec::new();
        let mut cause = error.source();
        while let Some(error) = cause {
            causes.push(error.to_string());
            cause = error.source();
        }
        Self { exit, report: Report::Text { message: error.to_string(), causes, hints: Vec::new() } }
    }

    /// Adds what the operator can do.
    pub(crate) fn hint(mut self, text: impl Into<String>) -> Self {
        if let Report::Text { hints, .. } = &mut self.report {
            hints.push(text.into());
        }
        self
    }

    /// The failure in one line, for the manifest and the log.
    pub(crate) fn line(&self) -> String {
        match &self.report {
            Report::Config(error) => error.to_string(),
            Report::Text { message, causes, .. } => {
                std::iter::once(message).chain(causes).cloned().collect::<Vec<_>>().join(": ")
            }
        }
    }

    /// What the operator can do: about a shortage of the system first, since the rest is of no use before.
    fn hints(&self) -> Vec<String> {
        let Report::Text { hints, .. } = &self.report else { return Vec::new() };
        let remedy = shortage::remedy(&self.line()).filter(|remedy| !hints.contains(remedy));
        remedy.into_iter().chain(hints.iter().cloned()).collect()
    }

    /// Prints it to standard error.
    pub(crate) fn print(&self) {
        if logging::speaks_json() {
            let hints = self.hints();
            let exit_code = self.exit as u8;
            let fields = json!({ "message": self.line(), "hints": hints, "exit_code": exit_code });
            return crate::stderr::write(logging::json_line("ERROR", &fields));
        }
        match &self.report {
            Report::Config(error) => crate::stderr::say(format_args!("{:?}", ConfigReport(error))),
            Report::Text { message, causes, .. } => {
                crate::stderr::say(format_args!("error: {message}"));
                for cause in causes {
                    crate::stderr::say(format_args!("  caused by: {cause}"));
                }
                for hint in self.hints() {
                    crate::stderr::say(format_args!("hint: {hint}"));
                }
            }
        }
    }
}

struct ConfigReport<'a>(&'a config::ConfigError);

impl std::fmt::Debug for ConfigReport<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use miette::ReportHandler;
        miette::MietteHandlerOpts::new().build().debug(self.0, f)
    }
}

impl From<config::ConfigError> for Failure {
    fn from(error: config::ConfigError) -> Self {
        Self { exit: Exit::Usage, report: Report::Config(Box::new(error)) }
    }
}

impl From<InputError> for Failure {
    fn from(error: InputError) -> Self {
        let exit = match error {
            InputError::NotAFile { .. } => Exit::Usage,
            _ if error.is_bad_input() => Exit::BadInput,
            _ => Exit::Failed,
        };
        let failure = Self::because(exit, &error);
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}
