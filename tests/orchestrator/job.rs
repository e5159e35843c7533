//! A job in a folder of its own, with as many result folders as a test wants.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::outcome::Outcome;
use crate::process::{self, Finished, Running};

/// Small segments, small batches and quick restarts, so that much happens in little time.
const JOB: &str = r#"[input]
fasta = ["proteins.fasta"]
[packing]
token_budget = 1000
[output]
directory = "results"
segment_sequences = 64
[devices]
use = ["sim:2"]
[restart]
backoff_ms_min = 1
backoff_ms_max = 20
[telemetry]
progress = "none"
"#;

/// A job file, its input, and what to change in it.
pub(crate) struct JobFolder {
    folder: TempDir,
    settings: Vec<String>,
    simulation: String,
}

impl JobFolder {
    /// A job that reads `fasta` and runs on two simulated devices.
    pub(crate) fn new(fasta: impl AsRef<[u8]>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("job.toml"), JOB).unwrap();
        std::fs::write(folder.path().join("proteins.fasta"), fasta).unwrap();
        Self { folder, settings: Vec::new(), simulation: String::new() }
    }

    /// Changes a key of the job, as `--set` does.
    pub(crate) fn set(mut self, key: &str, value: impl std::fmt::Display) -> Self {
        self.settings.push(format!("{key}={value}"));
        self
    }

    /// Runs on the CPU instead.
    pub(crate) fn on_cpu(self) -> Self {
        self.set("devices.use", r#"["cpu"]"#)
    }

    /// Gives the simulated devices a programme.
    pub(crate) fn simulating(mut self, program: &str) -> Self {
        program.clone_into(&mut self.simulation);
        self
    }

    /// The folder that holds the job file.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A path in that folder.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file in that folder, written.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.at(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    /// The command line `COMMAND job.toml`, run in the folder, with its settings.
    pub(crate) fn command(&self, command: &str) -> Command {
        let mut command = process::program([command, "job.toml"]);
        command.current_dir(self.folder.path()).env("VIRNUCPRO_SIM", &self.simulation);
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        command
    }

    /// The command line that runs the job into the result folder `name`.
    pub(crate) fn command_into(&self, name: &str) -> Command {
        let mut command = self.command("run");
        command.arg("--set").arg(format!("output.directory={name}"));
        command
    }

    /// Starts the job into the result folder `name`.
    pub(crate) fn start_into(&self, name: &str) -> Running {
        Running::start(&mut self.command_into(name))
    }

    /// Runs the job into the result folder `name`. Nothing may go to standard output.
    #[track_caller]
    pub(crate) fn run_into(&self, name: &str) -> Finished {
        let finished = self.start_into(name).finish();
        assert_eq!(finished.stdout, "", "run writes nothing to standard output");
        finished
    }

    /// Runs the job into the result folder `name`, which must succeed, and returns what it left.
    #[track_caller]
    pub(crate) fn done_into(&self, name: &str) -> Outcome {
        self.run_into(name).expect(0);
        self.outcome(name)
    }

    /// Runs with a programme and without; both must succeed with the same bytes.
    #[track_caller]
    pub(crate) fn recovers(self, program: &str) -> (Finished, Outcome) {
        let undisturbed = self.done_into("undisturbed");
        let job = self.simulating(program);
        let finished = job.run_into("results").expect(0);
        let outcome = job.outcome("results");
        outcome.assert_same(&undisturbed, program);
        (finished, outcome)
    }

    /// The log of the result folder `name` so far; empty while there is none.
    pub(crate) fn log_of(&self, name: &str) -> String {
        std::fs::read_to_string(self.at(name).join("run.log")).unwrap_or_default()
    }

    /// What the result folder `name` holds.
    #[track_caller]
    pub(crate) fn outcome(&self, name: &str) -> Outcome {
        Outcome::read(&self.at(name))
    }
}
