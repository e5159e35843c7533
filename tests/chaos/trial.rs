//! One seed: its sessions one after another on one result folder, and what must hold after each.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::comparison;
use crate::input::{Input, Undisturbed};
use crate::outcome::{Outcome, manifest};
use crate::schedule::{Schedule, Session};
use crate::session::{self, DEADLINES, Deadlines, End, Expectation};
use crate::toll::{Kind, Toll};

/// Whether a run that was killed while it started a worker never keeps its successor out. While it may, the
/// successor tries again for [`LINGERING_LOCK_MAX`].
const A_DEAD_RUN_NEVER_HOLDS_THE_LOCK: bool = true;
/// A process between its start and its program's lives only for a moment.
const LINGERING_LOCK_MAX: Duration = Duration::from_secs(5);
/// Lines of standard error that a failure shows.
const TAIL_LINES: usize = 40;

/// Carries out a schedule.
///
/// # Errors
/// A report for people: what went wrong, the schedule, how to see it again, what the program said.
pub(crate) fn run(schedule: &Schedule, inputs: &[Input], toll: &mut Toll) -> Result<(), String> {
    toll.seeds += 1;
    let input = &inputs[schedule.input];
    let name = format!("seed-{}", schedule.seed);
    let mut trial = caught(|| Ok(Trial::new(input, &name)))
        .map_err(|problem| format!("CHAOS: undisturbed run of input {}: {problem}", input.name))?;
    let folder = input.job.at(&name);
    for (number, session) in schedule.sessions.iter().enumerate() {
        let last = number + 1 == schedule.sessions.len();
        let stderr = input.job.at(&format!("{name}.{number}.stderr"));
        let verify = last && schedule.verify;
        let result = caught(|| {
            trial.session(session, &stderr, toll)?;
            if last { trial.finish(verify) } else { Ok(()) }
        });
        let Err(problem) = result else { continue };
        return Err(format!(
            "CHAOS: session {number} of seed {}: {problem}\n{schedule}  to see it again: CHAOS_SEED={} cargo test \
             --test chaos -- --nocapture runs_under\n  kept: {}\n  standard error of session {number}:\n{}",
            schedule.seed,
            schedule.seed,
            folder.display(),
            tail(&stderr)
        ));
    }
    fs::remove_dir_all(&folder).unwrap();
    for number in 0..schedule.sessions.len() {
        fs::remove_file(input.job.at(&format!("{name}.{number}.stderr"))).unwrap();
    }
    Ok(())
}

/// A failed assertion of what is shared with other tests must not lose the schedule.
fn caught<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(actors::panic_message(&*panic)))
}

fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// A result folder on its way.
pub(crate) struct Trial<'a> {
    input: &'a Input,
    undisturbed: &'a Undisturbed,
    name: &'a str,
    /// Files of standard error, the marks of the sessions so far.
    marks: Vec<String>,
    /// Parts that were damaged, or whose lists of failed records were, and that are not yet written again.
    damaged: BTreeSet<String>,
}

impl<'a> Trial<'a> {
    /// The result folder `name` of an input, which need not be there yet.
    pub(crate) fn new(input: &'a Input, name: &'a str) -> Self {
        Self { input, undisturbed: input.undisturbed(), name, marks: Vec::new(), damaged: BTreeSet::new() }
    }

    fn session(&mut self, session: &Session, stderr: &Path, toll: &mut Toll) -> Result<(), String> {
        let folder = self.input.job.at(self.name);
        for damage in &session.damage {
            if let Some(part) = damage.strike(&folder) {
                toll.count(damage.kind());
                self.damaged.insert(part);
            }
        }
        let before = committed(&folder);
        let mut command = self.input.job.command_into(self.name);
        for (key, value) in &session.settings {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        command.env("VIRNUCPRO_SIM", format!("{};{}", session.simulation.join(";"), self.input.poison));
        command.env("VIRNUCPRO_FAULTS", &session.faults);
        let usual = self.undisturbed.usual;
        toll.sessions += 1;
        self.marks.push(stderr.display().to_string());
        let leave = DEADLINES.leave.filter(|_| !session.is_followed_at_once);
        let deadlines = Deadlines { leave, ..DEADLINES };
        let first_try = Instant::now();
        let ended = loop {
            command.stdin(self.standard_input(session));
            let ended = session::run(&mut command, &session.acts, usual, stderr, deadlines)?;
            let is_kept_out =
                ended.status.code() == Some(2) && ended.stderr.contains("another run is writing");
            let may_be = !A_DEAD_RUN_NEVER_HOLDS_THE_LOCK && first_try.elapsed() < LINGERING_LOCK_MAX;
            if !(is_kept_out && may_be) {
                break ended;
            }
        };
        let expectation = Expectation { exit_code: self.undisturbed.exit_code, planned: &session.kinds };
        let end = session::judge(&ended, &expectation)?;
        self.count(session, &ended, toll);
        let undisturbed = session.kinds.is_empty() && session.acts.is_empty();
        if undisturbed && end != End::Done {
            return Err(format!("without any fault it ended with {}", ended.status));
        }
        self.check(&before)
    }

    /// The sequences where they are expected there; nothing is enough once they are stored.
    fn standard_input(&self, session: &Session) -> Stdio {
        let is_stored = self.input.job.at(self.name).join("run.json").is_file();
        if self.input.is_redirected && !(is_stored && session.gives_nothing_again) {
            fs::File::open(self.input.fasta()).unwrap().into()
        } else {
            Stdio::null()
        }
    }

    fn count(&self, session: &Session, ended: &session::Ended, toll: &mut Toll) {
        for &kind in &ended.struck {
            toll.count(kind);
        }
        for &kind in &session.kinds {
            let by_poison = |text| self.poison_says(text);
            let struck = match kind.evidence() {
                Some(text) => ended.stderr.contains(text) && !by_poison(text),
                None => kind == Kind::OrchestratorAborted && ended.status.code().is_none(),
            };
            if struck {
                toll.count(kind);
            }
        }
    }

    /// Whether this trace may be that of a poison sequence.
    fn poison_says(&self, text: &str) -> bool {
        let traces = [
            ("fault=nan", Kind::EngineNan),
            ("fault=error", Kind::EngineError),
            ("fault=oom", Kind::EngineOom),
            ("fault=crash", Kind::EngineAbort),
        ];
        let poison = self.input.poison;
        traces.iter().any(|(fault, kind)| poison.contains(fault) && kind.evidence() == Some(text))
    }

    /// What must hold whenever no run is going on: what has a part's name is whole, what was committed stays.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn check(&mut self, before: &BTreeSet<String>) -> Result<(), String> {
        let folder = self.input.job.at(self.name);
        let Ok(entries) = fs::read_dir(folder.join("embeddings")) else { return Ok(()) };
        // One that is written again may not be committed yet.
        let excused = self.damaged.clone();
        for entry in entries {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if name.starts_with('.') {
                continue;
            }
            let expected = self.undisturbed.outcome.parts.get(&name);
            let expected = expected.ok_or_else(|| format!("`{name}` should not be there"))?;
            if fs::read(entry.path()).unwrap() == *expected {
                if self.has_its_failed_list(&name) {
                    self.damaged.remove(&name);
                }
            } else if !self.damaged.contains(&name) {
                return Err(format!("`{name}` has a part's name but is not that part"));
            }
        }
        let after = committed(&folder);
        let lost: Vec<&String> = before.difference(&after).filter(|part| !excused.contains(*part)).collect();
        if !lost.is_empty() {
            return Err(format!("committed before, no longer: {lost:?}"));
        }
        let missing = |part: &&String| !folder.join("embeddings").join(part).exists();
        match after.iter().filter(missing).find(|part| !self.damaged.contains(*part)) {
            Some(part) => Err(format!("`{part}` is committed but is not there")),
            None => Ok(()),
        }
    }

    /// Whether the list of failed records of a part is there, if it has any.
    fn has_its_failed_list(&self, part: &str) -> bool {
        let number = part.strip_prefix("part-").and_then(|rest| rest.strip_suffix(".parquet")).unwrap();
        let list = self.input.job.at(self.name).join(format!(".state/failed-{number}.tsv"));
        let segment = number.parse::<u32>().unwrap().to_string();
        list.exists() || self.undisturbed.outcome.run["segments"][segment]["failed"] == 0
    }

    /// What must hold in the end.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn finish(&self, verify: bool) -> Result<(), String> {
        for mark in &self.marks {
            session::wait_for_workers(mark, DEADLINES.leave.unwrap_or_default())?;
        }
        let folder = self.input.job.at(self.name);
        let left = comparison::temporary_files(&folder);
        if !left.is_empty() {
            return Err(format!("temporary files are left: {left:?}"));
        }
        if let Some(difference) = comparison::difference(&self.undisturbed.outcome, &Outcome::read(&folder)) {
            return Err(difference);
        }
        if verify {
            let finished = crate::process::run(crate::process::program(["verify"]).arg(&folder));
            if finished.code() != 0 {
                return Err(format!("verify: {}{}", finished.stdout, finished.stderr));
            }
        }
        Ok(())
    }
}

/// File names of the parts that the manifest names.
pub(crate) fn committed(folder: &Path) -> BTreeSet<String> {
    let Some(run) = manifest(folder) else { return BTreeSet::new() };
    let parts = run["segments"].as_object().unwrap().values().map(|entry| entry["part"].as_str().unwrap());
    parts.map(|part| part.strip_prefix("embeddings/").unwrap().to_owned()).collect()
}
