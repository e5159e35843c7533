//! A real run whose worker is killed: it must go on by itself, and nothing of the result may change.
//!
//! This process does not open the GPU itself: one in exclusive compute mode would then refuse the run's worker.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::random::Random;
use super::report::check;

/// No run of this step takes a tenth of it.
const DEADLINE: Duration = Duration::from_secs(120);
/// Time between two looks at a process.
const POLL: Duration = Duration::from_millis(2);

/// Makes this check.
///
/// `tokens`: of a batch, and of the longest sequence; few where a device is so slow that a run is to be short, too.
pub(super) fn killed_worker(device: &str, tokens: Option<u32>, scratch: &Path) {
    check("recovery: a worker killed in a run", || worker_killed(device, tokens, scratch));
}

/// Kills the worker of a real run; the run must go on by itself and leave the bytes of an undisturbed one.
fn worker_killed(device: &str, tokens: Option<u32>, scratch: &Path) -> Result<String, String> {
    /// The second is enough for a CPU; a GPU needs more for the kill to find it at work.
    const SEQUENCES: [usize; 6] = [50, 1_000, 4_000, 16_000, 64_000, 256_000];
    let folder = scratch.join("kill");
    for sequences in SEQUENCES.into_iter().skip(usize::from(tokens.is_none())) {
        write_job(&folder, device, sequences, tokens)?;
        let mut run = Run::start(&folder, "killed")?;
        let Some(worker) = run.worker_at_work()? else {
            // It was over before anything could be killed: once more with more to do.
            continue;
        };
        // Our grandchild's, alive when last looked at: its id cannot be another's before its parent has waited for it.
        kill_process(worker, Signal::KILL).map_err(|error| format!("failed to kill the worker: {error}"))?;
        run.finish()?;
        let restarts = restarts(&folder.join("killed/run.json"))?;
        if restarts == 0 {
            continue;
        }
        Run::start(&folder, "undisturbed")?.finish()?;
        let parts = same_files(&folder.join("undisturbed/embeddings"), &folder.join("killed/embeddings"))?;
        return Ok(format!(
            "{sequences} sequences, {restarts} restart, {parts} parts equal byte for byte to an undisturbed run's"
        ));
    }
    Err("every run was over before its worker could be killed".to_owned())
}

fn write_job(folder: &Path, device: &str, sequences: usize, tokens: Option<u32>) -> Result<(), String> {
    const TOKENS: u32 = 4_000;
    /// The least that a job may ask for.
    const BUDGET_MIN: u32 = 64;
    const RESIDUES_MAX: usize = 200;
    let failed = |error: std::io::Error| format!("failed to write into `{}`: {error}", folder.display());
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(failed)?;
    }
    fs::create_dir_all(folder).map_err(failed)?;
    let mut random = Random::new(7);
    let mut fasta = String::new();
    let tokens = tokens.unwrap_or(TOKENS);
    let token_budget = tokens.max(BUDGET_MIN);
    let residues_max = RESIDUES_MAX.min(tokens as usize - 2);
    for ordinal in 0..sequences {
        let residues = random.within(residues_max / 10..residues_max);
        fasta += &format!(">{ordinal}\n{}\n", String::from_utf8_lossy(&random.protein(residues)));
    }
    fs::write(folder.join("proteins.fasta"), fasta).map_err(failed)?;
    let job = format!(
        "[input]\nfasta = [\"proteins.fasta\"]\n[packing]\ntoken_budget = {token_budget}\n[output]\ndirectory = \"results\"\n\
         segment_sequences = {}\n[devices]\nuse = [\"{}\"]\n[restart]\nbackoff_ms_min = 1\nbackoff_ms_max = 20\n\
         [telemetry]\nprogress = \"none\"\n",
        sequences / 10,
        device
    );
    fs::write(folder.join("job.toml"), job).map_err(failed)
}

/// A run of the job in a folder; killed when dropped.
struct Run {
    child: Child,
    results: PathBuf,
    log: PathBuf,
    began: Instant,
}

impl Run {
    fn start(folder: &Path, results: &str) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| format!("this program is gone: {error}"))?;
        let log = folder.join(format!("{results}.log"));
        let stderr = fs::File::create(&log)
            .map_err(|error| format!("failed to write `{}`: {error}", log.display()))?;
        let child = Command::new(program)
            .args(["run", "job.toml", "--set", &format!("output.directory={results}")])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .map_err(|error| format!("failed to start a run: {error}"))?;
        Ok(Self { child, results: folder.join(results), log, began: Instant::now() })
    }

    fn has_ended(&mut self) -> Result<bool, String> {
        if self.began.elapsed() > DEADLINE {
            return Err(format!("a run takes longer than {} s: {}", DEADLINE.as_secs(), self.last_words()));
        }
        let status = self.child.try_wait().map_err(|error| format!("failed to wait for a run: {error}"))?;
        Ok(status.is_some())
    }

    /// The worker once a part is committed and others are not; `None` if the run ended first.
    fn worker_at_work(&mut self) -> Result<Option<Pid>, String> {
        while !self.has_ended()? {
            let parts = fs::read_dir(self.results.join("embeddings"));
            let committed = parts
                .into_iter()
                .flatten()
                .flatten()
                .any(|entry| entry.path().extension().is_some_and(|extension| extension == "parquet"));
            if committed && let Some(worker) = child_of(self.child.id()) {
                return Ok(Some(worker));
            }
            std::thread::sleep(POLL);
        }
        if self.child.wait().is_ok_and(|status| status.success()) {
            return Ok(None);
        }
        Err(format!("the run failed before anything was done to it: {}", self.last_words()))
    }

    fn finish(mut self) -> Result<(), String> {
        while !self.has_ended()? {
            std::thread::sleep(POLL);
        }
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("the run ended with {status}: {}", self.last_words())),
            Err(error) => Err(format!("failed to wait for a run: {error}")),
        }
    }

    fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("; ")
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child of process `parent`, by the system's own account.
pub(super) fn child_of(parent: u32) -> Option<Pid> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let child = ids.find(|id| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // The second field, the command, may hold spaces and parentheses; then state and parent follow.
        let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let state = fields.next();
        state.is_some_and(|state| state != "Z") && fields.next() == Some(&parent.to_string())
    })?;
    Pid::from_raw(child)
}

/// Restarts of devices in all sessions of a run.
fn restarts(manifest: &Path) -> Result<u64, String> {
    let failed = |error: &dyn std::fmt::Display| format!("`{}`: {error}", manifest.display());
    let text = fs::read(manifest).map_err(|error| failed(&error))?;
    let run: serde_json::Value = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
    let sessions = run["sessions"].as_array().ok_or_else(|| failed(&"it has no sessions"))?;
    Ok(sessions.iter().filter_map(|session| session["restarts"].as_u64()).sum())
}

/// How many files two folders have, if they are the same by name and content.
fn same_files(one: &Path, other: &Path) -> Result<usize, String> {
    let read = |folder: &Path| {
        let mut files = std::collections::BTreeMap::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            files.insert(entry.file_name(), fs::read(entry.path())?);
        }
        Ok::<_, std::io::Error>(files)
    };
    let failed = |error: std::io::Error| format!("failed to compare results: {error}");
    let (one, other) = (read(one).map_err(failed)?, read(other).map_err(failed)?);
    if !one.keys().eq(other.keys()) {
        return Err(format!("the parts are {:?}, undisturbed {:?}", other.keys(), one.keys()));
    }
    match one.iter().find(|(name, bytes)| other[*name] != **bytes) {
        Some((name, _)) => Err(format!("the bytes of {name:?} are not those of an undisturbed run")),
        None if one.is_empty() => Err("the run left no part".to_owned()),
        None => Ok(one.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_that_differ_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        for folder in [&one, &other] {
            fs::create_dir(folder).unwrap();
        }
        assert!(same_files(&one, &other).is_err(), "nothing is no result");
        fs::write(one.join("part"), "a").unwrap();
        assert!(same_files(&one, &other).is_err());
        fs::write(other.join("part"), "b").unwrap();
        assert!(same_files(&one, &other).unwrap_err().contains("part"));
        fs::write(other.join("part"), "a").unwrap();
        assert_eq!(same_files(&one, &other), Ok(1));
        assert!(same_files(&one, &folder.path().join("nowhere")).is_err());
    }

    #[test]
    fn children_are_found() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let found = child_of(std::process::id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.is_some());
    }
}
