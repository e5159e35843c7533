//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::gpu_check::{self, Arithmetic, Lengths, Part, Step};

const VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("VIRNUCPRO_COMMIT"), ", engines: cpu, sim)");

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed
  2    usage or configuration
  3    finished, with records rejected or quarantined (listed in failed.tsv)
  4    incomplete (verify, export, gpu-check)
  5    bad input
  75   stopped, or all devices lost: the same command goes on
  130  second interrupt";

const EXAMPLES: &str = "\
Examples:
  virnucpro-orch init                     write a commented job.toml
  virnucpro-orch plan job.toml            what would be done, without a model loaded
  virnucpro-orch run job.toml             do it; the same command resumes
  virnucpro-orch status results           how does it stand?
  virnucpro-orch report results           make its report again
  virnucpro-orch verify results           is the result whole?
  virnucpro-orch export results --to npy  for other tools";

/// Turns protein sequences into ESM-2 embeddings on any number of devices, exactly once, in input order.
#[derive(Parser)]
#[command(name = "virnucpro-orch", version = VERSION, after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Compute the embeddings of a job; a job that was stopped or killed goes on where it was
    #[command(after_help = EXIT_CODES)]
    Run(RunArguments),
    /// Show what a job would do: counts, lengths, batches, fill, memory
    Plan(PlanArguments),
    /// Write a commented job.toml to start from
    Init(InitArguments),
    /// Show devices, libraries and CPU features, and what is missing
    Doctor(DoctorArguments),
    /// Show how the job in a result folder stands, running or not
    Status(StatusArguments),
    /// Watch the job that runs in a result folder, live
    Top(FolderArguments),
    /// Stop the job that runs in a result folder, as SIGTERM does; the same command goes on later
    Stop(FolderArguments),
    /// Give the devices of a running job no more work until `resume`
    Pause(FolderArguments),
    /// Let a paused job go on
    Resume(FolderArguments),
    /// Let a device of a running job go, once it has finished what it holds; the job goes on with the others
    Retire(DeviceArguments),
    /// Let a running job try a retired device again
    Readmit(DeviceArguments),
    /// Bring to disk what a running job has computed of segments that are not complete
    Checkpoint(FolderArguments),
    /// Make report.html and report.json of a result folder again, whatever became of its run
    Report(FolderArguments),
    /// Check a result folder against its manifest
    Verify(VerifyArguments),
    /// Convert a result for other tools
    Export(ExportArguments),
    /// Check the engine on this machine's GPU, and measure it: needs nothing but this program and the driver
    GpuCheck(GpuCheckArguments),
    /// Print a completion script for a shell
    Completions(CompletionsArguments),
    /// One device's process, started by `run`
    #[command(hide = true)]
    Worker,
    /// One step's process, started by `gpu-check`
    #[command(hide = true)]
    GpuCheckPart(GpuCheckPartArguments),
}

/// Which job, and what to change in it.
#[derive(Args)]
pub(crate) struct JobArguments {
    /// The job file
    pub(crate) job: PathBuf,
    /// Override a key of the job file, such as `model.layer=3`; may repeat
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
}

#[derive(Args)]
pub(crate) struct RunArguments {
    #[command(flatten)]
    pub(crate) job: JobArguments,
    /// Delete an earlier result in the output folder and start again
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Compute again the segments with records that no device could compute (stage `compute` in failed.tsv)
    #[arg(long, conflicts_with = "fresh")]
    pub(crate) retry_failed: bool,
    /// What to show meanwhile [default: telemetry.progress of the job]
    #[arg(long, value_name = "DISPLAY")]
    pub(crate) progress: Option<ProgressArgument>,
}

/// `telemetry.progress` on the command line.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum ProgressArgument {
    /// On a terminal the dashboard, or a bar where only standard error is one; else lines
    Auto,
    /// The dashboard: needs a terminal
    Dashboard,
    /// One key=value line per interval
    Lines,
    /// Nothing
    None,
}

impl From<ProgressArgument> for config::ProgressDisplay {
    fn from(typed: ProgressArgument) -> Self {
        match typed {
            ProgressArgument::Auto => Self::Auto,
            ProgressArgument::Dashboard => Self::Dashboard,
            ProgressArgument::Lines => Self::Lines,
            ProgressArgument::None => Self::None,
        }
    }
}

#[derive(Args)]
pub(crate) struct PlanArguments {
    #[command(flatten)]
    pub(crate) job: JobArguments,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Print the resolved job instead
    #[arg(long, conflicts_with = "json")]
    pub(crate) print_job: bool,
}

#[derive(Args)]
pub(crate) struct InitArguments {
    /// Folder that gets job.toml and job.schema.json
    #[arg(default_value = ".")]
    pub(crate) folder: PathBuf,
    /// Write the demonstration: 300 proteins and a job that runs as it is
    #[arg(long)]
    pub(crate) demo: bool,
    /// Overwrite existing files
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Args)]
pub(crate) struct DoctorArguments {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct StatusArguments {
    /// The result folder, or the job file that names it
    #[arg(value_name = "RESULTS")]
    pub(crate) folder: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct FolderArguments {
    /// The result folder, or the job file that names it
    #[arg(value_name = "RESULTS")]
    pub(crate) folder: PathBuf,
}

#[derive(Args)]
pub(crate) struct DeviceArguments {
    /// The result folder, or the job file that names it
    #[arg(value_name = "RESULTS")]
    pub(crate) folder: PathBuf,
    /// The device, as `status` names it
    pub(crate) device: String,
}

#[derive(Args)]
pub(crate) struct VerifyArguments {
    /// The result folder, or the job file that names it
    #[arg(value_name = "RESULTS")]
    pub(crate) folder: PathBuf,
}

#[derive(Args)]
pub(crate) struct ExportArguments {
    /// The result folder, or the job file that names it
    #[arg(value_name = "RESULTS")]
    pub(crate) folder: PathBuf,
    /// Format to write
    #[arg(long, value_name = "FORMAT")]
    pub(crate) to: crate::export::ExportFormat,
    /// Folder to write into [default: RESULTS/export]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) output: Option<PathBuf>,
    /// Overwrite existing files
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Args)]
pub(crate) struct GpuCheckArguments {
    /// The GPU: its number, UUID or PCI id
    #[arg(long, value_name = "DEVICE", default_value = "cuda:0")]
    pub(crate) device: String,
    /// Only these steps
    #[arg(long, value_name = "STEP", value_delimiter = ',')]
    pub(crate) only: Vec<Step>,
    /// Model sizes of the speed table [default: 8M,35M,150M,650M,3B]
    #[arg(long, value_name = "SIZE", value_delimiter = ',', value_parser = gpu_check::parse_size)]
    pub(crate) sizes: Vec<String>,
    /// Residues of the sequences in the speed table [default: 51,102,166,400,1024,uniprot]
    #[arg(long, value_name = "RESIDUES", value_delimiter = ',', value_parser = gpu_check::parse_lengths)]
    pub(crate) lengths: Vec<Lengths>,
    /// Time of each measurement of the speed table
    #[arg(long, default_value = "3", value_parser = gpu_check::parse_seconds)]
    pub(crate) seconds: Duration,
    /// Time of the soak
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = gpu_check::parse_seconds)]
    pub(crate) soak_seconds: Duration,
    /// End after this time at the latest; what did not fit is reported as not run
    #[arg(long, value_name = "SECONDS", default_value = "570", value_parser = gpu_check::parse_seconds)]
    pub(crate) within: Duration,
    /// Arithmetic of the speed table [default: fp16 where the GPU has it]
    #[arg(long)]
    pub(crate) precision: Option<Arithmetic>,
    /// Tokens per batch, and of the longest sequence of any check [default: as a run would choose, and all]
    #[arg(long, value_parser = clap::value_parser!(u32).range(16..))]
    pub(crate) tokens: Option<u32>,
    /// Write everything that was found as JSON, too, anew after each finding
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Keep the weights, sequences and embeddings of the speed table, for benches/gpu_peers.py
    #[arg(long, value_name = "FOLDER")]
    pub(crate) peers_out: Option<PathBuf>,
    /// Folder for what is needed on the way: 6 GB for 3B [default: the system's]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) scratch: Option<PathBuf>,
    /// Rows, columns and depth of the products that the GPU's own speed is measured by
    #[arg(long, value_name = "NUMBERS", default_value = "8192")]
    pub(crate) product_size: usize,
}

#[derive(Args)]
pub(crate) struct GpuCheckPartArguments {
    /// Which
    pub(crate) part: Part,
    #[command(flatten)]
    pub(crate) check: GpuCheckArguments,
}

#[derive(Args)]
pub(crate) struct CompletionsArguments {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
