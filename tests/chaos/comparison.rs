//! Whether a result is that of an undisturbed run, and if not, where it differs.

use std::path::Path;

use crate::outcome::Outcome;

/// Where `found` differs from the undisturbed result; `None` if nowhere.
///
/// The reason of a record that no device could compute is that of its last failure, which may be another
/// fault's: every other column must agree.
pub(crate) fn difference(undisturbed: &Outcome, found: &Outcome) -> Option<String> {
    for name in undisturbed.parts.keys() {
        if !found.parts.contains_key(name) {
            return Some(format!("`{name}` is missing"));
        }
    }
    for (name, bytes) in &found.parts {
        match undisturbed.parts.get(name) {
            None => return Some(format!("`{name}` should not be there")),
            Some(expected) if expected != bytes => {
                let same = expected.iter().zip(bytes).take_while(|(a, b)| a == b).count();
                let (length, wanted) = (bytes.len(), expected.len());
                return Some(format!(
                    "`{name}` differs from byte {same} on ({length} bytes, expected {wanted})"
                ));
            }
            Some(_) => {}
        }
    }
    let (expected, listed) = (failed_lines(&undisturbed.failed), failed_lines(&found.failed));
    if expected != listed {
        return Some(format!("failed.tsv lists {listed:?}, expected {expected:?}"));
    }
    for key in ["totals", "counts", "segments", "identity"] {
        if undisturbed.run[key] != found.run[key] {
            return Some(format!(
                "{key} of run.json is {}, expected {}",
                found.run[key], undisturbed.run[key]
            ));
        }
    }
    (found.run["status"] != "done").then(|| format!("the status is {}", found.run["status"]))
}

/// Lines of a list of failed records, without the reason where the run and not the input was at fault.
fn failed_lines(text: &str) -> Vec<&str> {
    text.lines()
        .map(|line| match line.rsplit_once('\t') {
            Some((columns, reason)) if columns.ends_with("\tcompute") && !reason.is_empty() => columns,
            Some(_) | None => line,
        })
        .collect()
}

/// Files that are meaningless once a run has ended.
pub(crate) fn temporary_files(folder: &Path) -> Vec<String> {
    let is_temporary =
        |name: &str| name.ends_with(".tmp") || name.ends_with(".partial") || name == "stdin-new.fasta";
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(temporary_files(&entry.path()));
        } else if is_temporary(&entry.file_name().to_string_lossy()) {
            found.push(entry.path().display().to_string());
        }
    }
    found
}
