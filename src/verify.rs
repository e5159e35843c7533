//! The command `verify`: is a result folder whole, and is it what its manifest says?

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};

use actors::manifest::{Manifest, ResultFolder, RunStatus, SegmentEntry, Totals};
use actors::part::PartReader;

use crate::cli::VerifyArguments;
use crate::failure::{Exit, Failure};
use crate::progress::grouped;
use crate::{attach, result_folder};

/// Checks every part, row by row, and that `failed.tsv` is what the lists of the segments say.
pub(crate) fn verify(arguments: &VerifyArguments) -> Result<Exit, Failure> {
    let folder = ResultFolder(crate::attach::meant(&arguments.folder)?);
    let manifest = read_manifest(&folder)?;
    refuse_unfinished(&folder, &manifest)?;
    let mut problems = Vec::new();
    match manifest.status {
        RunStatus::Done => {}
        status @ (RunStatus::Running | RunStatus::Stopped | RunStatus::Failed) => {
            let why = manifest.reason.as_deref().map_or(String::new(), |reason| format!(": {reason}"));
            let status = format!("{status:?}").to_lowercase();
            problems.push(format!("the run is not done, its status is {status}{why}"));
        }
    }
    let mut next = 0;
    let mut whole = Totals::default();
    let mut parts = 0;
    for entry in manifest.segments.values() {
        if entry.first_index != next {
            problems.push(format!("records {next} to {} are missing", entry.first_index.saturating_sub(1)));
        }
        next = entry.first_index + entry.records;
        if let Err(fault) = entry.check(&folder) {
            problems.push(actors::error_chain(&fault));
        } else if let Err(problem) = check_rows(&folder, entry) {
            problems.push(problem);
        } else {
            whole.rows += entry.rows;
            whole.failed += entry.failed;
            parts += 1;
        }
    }
    if next != manifest.counts.records {
        problems.push(format!("records {next} to {} are missing", manifest.counts.records.saturating_sub(1)));
    }
    problems.extend(check_failed_list(&folder, &manifest));
    problems.extend(uncommitted_parts(&folder, &manifest));
    let is_for_run = !problems.is_empty();
    let foreign = result_folder::foreign_tables(&folder);
    problems.extend(foreign.iter().map(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        format!("`embeddings/{name}` is not part of this result")
    }));

    let verdict = if problems.is_empty() { "complete" } else { "incomplete" };
    let mut text: String = problems.iter().map(|problem| format!("problem: {problem}\n")).collect();
    text += &format!(
        "{verdict}: {} records, {} embeddings, {} failed, {} parts\n",
        grouped(manifest.counts.records),
        grouped(whole.rows),
        grouped(whole.failed),
        grouped(parts)
    );
    crate::stdout::print(&text)?;
    if problems.is_empty() {
        return Ok(Exit::Done);
    }
    if let Some(owner) = result_folder::at_work(&folder) {
        // It has begun meanwhile: what it is about to mend or to replace is no problem.
        crate::stderr::say(format_args!("hint: a run has begun in it ({owner}): {WAIT}"));
        return Ok(Exit::Incomplete);
    }
    if is_for_run {
        crate::stderr::say(format_args!(
            "hint: the `run` command that made it computes what is missing or damaged"
        ));
    }
    if let Some(path) = foreign.first() {
        let path = path.display();
        crate::stderr::say(format_args!(
            "hint: `run` leaves alone what it did not write: move `{path}` away"
        ));
    }
    Ok(Exit::Incomplete)
}

/// What to do about a result that a run is at work on.
const WAIT: &str = "wait for its end; `virnucpro-orch status` tells how far it is";

/// Refuses a result that a run is at work on.
///
/// # Errors
/// Who that is; exit code 4.
pub(crate) fn refuse_unfinished(folder: &ResultFolder, manifest: &Manifest) -> Result<(), Failure> {
    // One that is done may still write its report.
    let owner = if manifest.status == RunStatus::Done { None } else { result_folder::at_work(folder) };
    owner.map_or(Ok(()), |owner| {
        let text = format!("`{}` is being computed ({owner})", folder.0.display());
        Err(Failure::new(Exit::Incomplete, text).hint(WAIT))
    })
}

/// The manifest of a result folder that must have one.
pub(crate) fn read_manifest(folder: &ResultFolder) -> Result<Manifest, Failure> {
    match result_folder::recorded(folder) {
        Ok(Some(manifest)) => Ok(manifest),
        Ok(None) if !folder.0.exists() => Err(attach::missing(&folder.0)),
        // Whoever has locked it has begun something.
        Ok(None) if folder.lock().exists() => {
            let shown = folder.0.display();
            if let Some(owner) = result_folder::at_work(folder) {
                let text = format!("`{shown}` holds no result yet: its run is being prepared ({owner})");
                return Err(Failure::new(Exit::Usage, text).hint(WAIT));
            }
            let text = format!("`{shown}` holds no result yet: nothing is computed, there is no run.json");
            Err(Failure::new(Exit::Usage, text).hint(format!(
                "the `run` command of its job computes it; virnucpro-orch status {shown} tells whether it does"
            )))
        }
        Ok(None) => {
            let text = format!("`{}` is not a result folder: it has no run.json", folder.0.display());
            Err(Failure::new(Exit::Usage, text).hint(attach::GIVE_ONE_BEGUN))
        }
        Err(error) => Err(Failure::because(Exit::Failed, &error)),
    }
}

/// Reads every row: indices ascend within the segment, values are finite.
fn check_rows(folder: &ResultFolder, entry: &SegmentEntry) -> Result<(), String> {
    let path = folder.0.join(&entry.part);
    let mut reader = PartReader::open(&path).map_err(|error| actors::error_chain(&error))?;
    let mut previous = None;
    let range = entry.first_index..entry.first_index + entry.records;
    while let Some(row) = reader.next_row().map_err(|error| actors::error_chain(&error))? {
        if !range.contains(&row.index) || previous.is_some_and(|previous| previous >= row.index) {
            return Err(format!("`{}`: index {} is out of order", entry.part, row.index));
        }
        if !row.embedding.iter().all(|value| value.is_finite()) {
            return Err(format!(
                "`{}`: the embedding of `{}` is not finite",
                entry.part,
                actors::shown(row.id)
            ));
        }
        previous = Some(row.index);
    }
    Ok(())
}

fn check_failed_list(folder: &ResultFolder, manifest: &Manifest) -> Option<String> {
    let path = folder.failed();
    let open = || actors::files::open_regular(&path).map(|file| BufReader::new(file).lines());
    let unreadable = |error| Some(format!("`{}` cannot be read: {error}", path.display()));
    let counted = open().and_then(|mut lines| lines.try_fold(0, |count, line| line.map(|_| count + 1)));
    let lines = match counted {
        Ok(lines) => u64::saturating_sub(lines, 1),
        Err(error) => return unreadable(error),
    };
    if lines != manifest.totals.failed {
        return Some(format!(
            "`{}` lists {lines} records, expected {}",
            path.display(),
            manifest.totals.failed
        ));
    }
    let mut found = match open() {
        Ok(lines) => lines,
        Err(error) => return unreadable(error),
    };
    let mut number = 0;
    for piece in actors::failed::pieces(folder, manifest) {
        // A segment's list that cannot be read is a problem of its own, already told.
        for expected in piece.ok()?.lines() {
            number += 1;
            if found.next()?.is_ok_and(|found| found != expected) {
                let path = path.display();
                return Some(format!(
                    "`{path}`: line {number} is not that of its segment's list in `.state`"
                ));
            }
        }
    }
    None
}

/// Parts that the manifest does not name; `run` deletes them.
fn uncommitted_parts(folder: &ResultFolder, manifest: &Manifest) -> Vec<String> {
    let known: BTreeSet<&str> = manifest.segments.values().map(|entry| entry.part.as_str()).collect();
    let Ok(entries) = std::fs::read_dir(folder.embeddings()) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| result_folder::is_part(&entry.path()))
        .map(|entry| format!("embeddings/{}", entry.file_name().to_string_lossy()))
        .filter(|name| name.ends_with(".parquet") && !known.contains(name.as_str()))
        .collect();
    names.sort();
    names.into_iter().map(|name| format!("`{name}` is not part of this result")).collect()
}
