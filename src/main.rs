//! `virnucpro-orch`: parses the command line, runs one command, turns its result into an exit code.
//!
//! Only this file prints errors. Standard output carries data; everything said to people goes to standard
//! error.

mod attach;
mod cli;
mod completions;
mod control;
mod dashboard;
mod devices;
mod doctor;
mod export;
mod export_command;
mod failure;
mod gpu_check;
mod identity;
mod init;
mod logging;
mod metrics;
mod outlet;
mod plan;
mod preparation;
mod progress;
mod recorder;
mod report;
mod result_folder;
mod run;
mod shortage;
mod signals;
mod stderr;
mod stdout;
mod summary;
mod verify;
mod worker;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::control::Request;

fn main() -> ExitCode {
    signals::survive_file_size_limits();
    let command = Cli::parse().command;
    let result = match command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Plan(arguments) => plan::plan(&arguments),
        Command::Init(arguments) => init::init(&arguments),
        Command::Doctor(arguments) => doctor::doctor(&arguments),
        Command::Status(arguments) => attach::status(&arguments),
        Command::Top(arguments) => dashboard::top(&arguments),
        Command::Stop(arguments) => attach::command(&arguments.folder, &Request::Stop),
        Command::Pause(arguments) => attach::command(&arguments.folder, &Request::Pause),
        Command::Resume(arguments) => attach::command(&arguments.folder, &Request::Resume),
        Command::Retire(arguments) => {
            attach::command(&arguments.folder, &Request::Retire { device: arguments.device })
        }
        Command::Readmit(arguments) => {
            attach::command(&arguments.folder, &Request::Readmit { device: arguments.device })
        }
        Command::Checkpoint(arguments) => attach::command(&arguments.folder, &Request::Checkpoint),
        Command::Report(arguments) => report::report(&arguments),
        Command::Verify(arguments) => verify::verify(&arguments),
        Command::Export(arguments) => export_command::export(&arguments),
        Command::GpuCheck(arguments) => gpu_check::gpu_check(&arguments),
        Command::Completions(arguments) => completions::completions(&arguments),
        Command::GpuCheckPart(arguments) => gpu_check::part_of_it(arguments.part, &arguments.check),
        Command::Worker => worker::worker(),
    };
    let exit = result.unwrap_or_else(|failure| {
        failure.print();
        failure.exit
    });
    logging::flush();
    exit.into()
}
