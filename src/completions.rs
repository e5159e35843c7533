//! The command `completions`.

use clap::CommandFactory;

use crate::cli::{Cli, CompletionsArguments};
use crate::failure::{Exit, Failure};

pub(crate) fn completions(arguments: &CompletionsArguments) -> Result<Exit, Failure> {
    let mut command = Cli::command();
    clap_complete::generate(arguments.shell, &mut command, "virnucpro-orch", &mut std::io::stdout());
    Ok(Exit::Done)
}
