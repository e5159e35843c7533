//! The command `completions`.

use clap::CommandFactory;

use crate::cli::{Cli, CompletionsArguments};
use crate::failure::{Exit, Failure};

pub(crate) fn completions(arguments: &CompletionsArguments) -> Result<Exit, Failure> {
    let mut command = Cli::command();
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "virnucpro-orch", &mut script);
    crate::stdout::print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}
