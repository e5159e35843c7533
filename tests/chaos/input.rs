//! A handful of jobs, each with the result of an undisturbed run, computed once.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::job::JobFolder;
use crate::outcome::Outcome;
use crate::process::Running;
use crate::proteins::{Random, fasta, residues};

/// Moments are drawn in parts of a run's usual time; shorter runs are measured too roughly.
const USUAL_MIN: Duration = Duration::from_millis(100);

/// Runs of which the quickest tells how long a run takes; they must agree, too.
const USUAL_RUNS: u32 = 3;

/// A job, and what is wrong with its input for any device that tries: those sequences end in `failed.tsv`.
pub(crate) struct Input {
    pub(crate) name: &'static str,
    pub(crate) job: JobFolder,
    /// Part of every simulation programme: width and poison sequences.
    pub(crate) poison: &'static str,
    pub(crate) engine: InputEngine,
    /// A poison sequence ends the worker.
    pub(crate) is_lethal: bool,
    /// Its parts are far larger than every other file.
    pub(crate) is_wide: bool,
    /// It is the standard input.
    pub(crate) is_redirected: bool,
    undisturbed: OnceLock<Undisturbed>,
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InputEngine {
    Simulated,
    Cpu,
}

/// What a run without faults does.
pub(crate) struct Undisturbed {
    pub(crate) outcome: Outcome,
    pub(crate) exit_code: i32,
    pub(crate) usual: Duration,
}

/// Residues of the longest protein; two tokens more with the marks of its ends.
const RESIDUES_MAX: u64 = 120;
/// No sequence is larger than this many tokens, so that devices of this size can run everything.
pub(crate) const TOKENS_MAX: u64 = RESIDUES_MAX + 2;

impl Input {
    /// Every input; the last one is the real engine's.
    pub(crate) fn all() -> Vec<Self> {
        let lengths = 20..RESIDUES_MAX;
        let plain = Self::new("plain", fasta(101, 160, lengths.clone()), 32);
        let mut rejected = Self::new("nan-and-rejected", with_bad_records(), 24);
        rejected.job = rejected.job.set("input.on_bad_record", "skip");
        rejected.poison = "fault=nan@ordinal:7;fault=nan@ordinal:40;fault=nan@ordinal:95";
        let mut per_residue = Self::new("per-residue", fasta(103, 60, lengths.clone()), 12);
        per_residue.job = per_residue.job.set("model.pooling", "none");
        per_residue.poison = "hidden=8;fault=error@ordinal:3;fault=oom@ordinal:41";
        let mut crash = Self::new("crash", fasta(104, 80, lengths.clone()), 20);
        crash.poison = "fault=crash@ordinal:33";
        crash.is_lethal = true;
        let one_by_one = Self::new("one-by-one", fasta(105, 24, lengths.clone()), 1);
        let mut wide = Self::new("wide", fasta(106, 150, lengths.clone()), 30);
        wide.poison = "hidden=512";
        wide.is_wide = true;
        let mut redirected = Self::new("standard-input", fasta(108, 100, lengths), 20);
        redirected.job = redirected.job.set("input.fasta", r#"["-"]"#);
        redirected.poison = "fault=nan@ordinal:50";
        redirected.is_redirected = true;
        let mut cpu = Self::new("cpu", fasta(107, 40, 20..60), 8);
        cpu.job = cpu.job.on_cpu();
        cpu.engine = InputEngine::Cpu;
        vec![plain, rejected, per_residue, crash, one_by_one, wide, redirected, cpu]
    }

    fn new(name: &'static str, fasta: String, segment_sequences: u32) -> Self {
        let job = JobFolder::new(fasta)
            .set("devices.use", r#"["sim:4"]"#)
            .set("output.segment_sequences", segment_sequences)
            .set("packing.token_budget", 300)
            .set("restart.attempts_per_batch_max", 6);
        Self {
            name,
            job,
            poison: "",
            engine: InputEngine::Simulated,
            is_lethal: false,
            is_wide: false,
            is_redirected: false,
            undisturbed: OnceLock::new(),
        }
    }

    fn start(&self, command: &mut Command) -> Running {
        if self.is_redirected {
            Running::start_fed(command, &std::fs::read(self.fasta()).unwrap())
        } else {
            Running::start(command)
        }
    }

    /// Its sequences.
    pub(crate) fn fasta(&self) -> PathBuf {
        self.job.at("proteins.fasta")
    }

    /// What a run without faults does.
    pub(crate) fn undisturbed(&self) -> &Undisturbed {
        self.undisturbed.get_or_init(|| {
            let exit_code = if self.poison.contains("ordinal") { 3 } else { 0 };
            // The machine may be busy just now: the quickest counts.
            let usual = (0..USUAL_RUNS).map(|number| {
                let mut command = self.job.command_into(&format!("undisturbed-{number}"));
                command.env("VIRNUCPRO_SIM", format!("latency_us_per_batch=5000;{}", self.poison));
                self.start(&mut command).finish().expect(exit_code).elapsed
            });
            let usual = usual.min().unwrap_or_default().max(USUAL_MIN);
            let outcome = self.job.outcome("undisturbed-0");
            for number in 1..USUAL_RUNS {
                let again = self.job.outcome(&format!("undisturbed-{number}"));
                assert_eq!(crate::comparison::difference(&outcome, &again), None, "{}", self.name);
            }
            Undisturbed { outcome, exit_code, usual }
        })
    }
}

/// 120 records: some are no proteins, some are the same as others, one of these is poison.
fn with_bad_records() -> String {
    let mut random = Random::new(102);
    let poison = residues(&mut random, 40..80);
    let records = (0..120).map(|number| {
        let residues = match number {
            5 | 50 | 51 | 119 => String::new(),
            20 => "MKV123".to_owned(),
            40 | 42 | 44 => poison.clone(),
            _ => residues(&mut random, 20..RESIDUES_MAX),
        };
        format!(">p{number}\n{residues}\n")
    });
    records.collect()
}
