//! The command `completions`.

use clap::{Command, CommandFactory};

use crate::cli::{Cli, CompletionsArguments};
use crate::failure::{Exit, Failure};

pub(crate) fn completions(arguments: &CompletionsArguments) -> Result<Exit, Failure> {
    let mut command = visible(&Cli::command());
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "virnucpro-orch", &mut script);
    crate::stdout::print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}

/// The command line without its hidden commands, which the generators would offer.
fn visible(all: &Command) -> Command {
    Command::new("virnucpro-orch")
        .version(env!("CARGO_PKG_VERSION"))
        .about(all.get_about().cloned().unwrap_or_default())
        .args(all.get_arguments().cloned())
        .subcommands(all.get_subcommands().filter(|command| !command.is_hide_set()).cloned())
}
