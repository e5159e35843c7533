//! A crash right after any operation on files: what is visible is whole, and the next run ends in the bytes
//! of an undisturbed one. A process that dies leaves what it wrote in the system's memory; that a power cut
//! cannot hurt either follows from the order of the operations, which is checked by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use actors::manifest::{Manifest, ResultFolder};

use crate::job::JobFolder;
use crate::outcome::{Outcome, manifest, segments_committed};
use crate::process::{Finished, run};
use crate::proteins::{Random, fasta};

const FAULTS: &str = "VIRNUCPRO_FAULTS";

/// Runs at a time: they mostly wait for processes and for the disk.
const AT_ONCE: usize = 4;

/// Three segments; record 4, in the second, fails. Embeddings so wide that a part takes several writes.
fn job() -> JobFolder {
    JobFolder::new(fasta(91, 9, 20..60))
        .set("output.segment_sequences", 3)
        .simulating("hidden=2048;fault=nan@ordinal:4")
}

/// Runs the job and has it end after operation `number` of this process.
fn crash_at(job: &JobFolder, number: usize) -> Finished {
    run(job.command_into("results").env(FAULTS, format!("file-operation:{number}=abort")))
}

/// The operations of one run, each with its paths relative to the result folder.
fn trace(job: &JobFolder, results: &str, more: &[&str]) -> Vec<Vec<String>> {
    let path = job.at("trace");
    let mut command = job.command_into(results);
    run(command.args(more).env(FAULTS, format!("file-trace={}", path.display()))).expect(3);
    let text = fs::read_to_string(&path).unwrap();
    fs::remove_file(path).unwrap();
    let prefix = format!("{}/", fs::canonicalize(job.path()).unwrap().join(results).display());
    let relative = |name: &str| {
        format!("{name}/").strip_prefix(&prefix).unwrap_or(name).trim_end_matches('/').to_owned()
    };
    text.lines().map(|line| line.split('\t').map(relative).collect()).collect()
}

/// What a crash left: nothing that can be seen is half a file, and what the manifest names is there.
fn assert_whole(results: &Path, whole: &Outcome, what: &str) {
    let Ok(entries) = fs::read_dir(results.join("embeddings")) else { return };
    for entry in entries {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if !name.starts_with('.') {
            let bytes = fs::read(entry.path()).unwrap();
            assert!(bytes == whole.parts[&name], "{what}: `{name}` is visible but not whole");
        }
    }
    if let Ok(text) = fs::read_to_string(results.join("failed.tsv")) {
        assert_eq!(text, whole.failed, "{what}: failed.tsv");
    }
    // Reading it panics on half a manifest.
    let Some(run) = manifest(results) else { return };
    let (mut records, mut failed) = (0, 0);
    for (number, entry) in run["segments"].as_object().unwrap() {
        assert_eq!(entry, &whole.run["segments"][number], "{what}: segment {number}");
        let part = entry["part"].as_str().unwrap();
        assert_eq!(
            fs::metadata(results.join(part)).unwrap().len(),
            entry["bytes"].as_u64().unwrap(),
            "{what}: {part}"
        );
        if entry["failed"] != 0 {
            let number: u32 = number.parse().unwrap();
            let list = fs::read_to_string(results.join(format!(".state/failed-{number:05}.tsv"))).unwrap();
            assert!(whole.failed.ends_with(&list) && list.lines().count() == 1, "{what}: {list}");
        }
        records += entry["records"].as_u64().unwrap();
        failed += entry["failed"].as_u64().unwrap();
    }
    assert_eq!(run["totals"]["records"], records, "{what}");
    assert_eq!(run["totals"]["failed"], failed, "{what}");
}

/// Goes on without faults and compares with an undisturbed run.
fn assert_resumed(job: &JobFolder, whole: &Outcome, what: &str) {
    assert_whole(&job.at("results"), whole, what);
    job.run_into("results").expect(3);
    job.outcome("results").assert_same(whole, what);
    assert_eq!(temporary_files(&job.at("results")), Vec::<String>::new(), "{what}");
}

fn temporary_files(results: &Path) -> Vec<String> {
    let folders = [results.to_owned(), results.join("embeddings"), results.join(".state")];
    let entries = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".tmp")).collect()
}

/// Splits `work` among threads, each with a job of its own that has run undisturbed.
fn for_each<T: Sync>(work: &[T], check: impl Fn(&JobFolder, &Outcome, &T) + Sync) {
    for_each_of(job, work, check);
}

fn for_each_of<T: Sync>(
    job: impl Fn() -> JobFolder + Sync,
    work: &[T],
    check: impl Fn(&JobFolder, &Outcome, &T) + Sync,
) {
    std::thread::scope(|scope| {
        for thread in 0..AT_ONCE {
            let (job, check) = (&job, &check);
            scope.spawn(move || {
                let job = job();
                job.run_into("undisturbed").expect(3);
                let whole = job.outcome("undisturbed");
                for one in work.iter().skip(thread).step_by(AT_ONCE) {
                    let _ = fs::remove_dir_all(job.at("results"));
                    check(&job, &whole, one);
                }
            });
        }
    });
}

#[test]
fn a_crash_after_any_operation_on_files_costs_nothing_that_was_committed() {
    let operations = trace(&job(), "results", &[]).len();
    // One past the last: that run ends by itself, so that none was left out.
    let numbers: Vec<usize> = (0..=operations).collect();
    for_each(&numbers, |job, whole, &number| {
        let crashed = crash_at(job, number);
        assert_eq!(crashed.was_ended_by_a_signal(), number < operations, "operation {number}: {crashed:?}");
        assert_resumed(job, whole, &format!("after operation {number}"));
    });
    println!("crashed after each of {operations} operations");
}

#[test]
fn a_crash_while_an_earlier_crash_is_mended_costs_nothing_either() {
    let operations = trace(&job(), "results", &[]).len() as u64;
    let mut random = Random::from_environment("crash while resuming");
    let crashes: Vec<[u64; 3]> = (0..12).map(|_| [(); 3].map(|()| random.within(0..operations))).collect();
    for_each(&crashes, |job, whole, numbers| {
        for &number in numbers {
            // A resumed run has less to do, and may be through before.
            crash_at(job, number as usize);
            assert_whole(&job.at("results"), whole, &format!("after operations {numbers:?}"));
        }
        assert_resumed(job, whole, &format!("after operations {numbers:?}"));
    });
}

/// What is committed, by `run.json` and what goes on from it; each part with its inode.
fn committed(results: &Path) -> BTreeMap<u32, (String, u64)> {
    use std::os::unix::fs::MetadataExt;
    let manifest = Manifest::read(&ResultFolder(results.to_owned())).unwrap();
    let segments = manifest.map(|manifest| manifest.segments).unwrap_or_default();
    segments
        .into_iter()
        .map(|(segment, entry)| {
            let inode = fs::metadata(results.join(&entry.part)).unwrap().ino();
            (segment, (entry.sha256, inode))
        })
        .collect()
}

#[test]
fn a_crash_among_many_segments_costs_none_that_was_committed() {
    let job = || {
        JobFolder::new(fasta(93, 40, 20..40))
            .set("output.segment_sequences", 1)
            .simulating("fault=nan@ordinal:37")
    };
    let traced = job();
    let operations = trace(&traced, "results", &[]);
    assert_ordered(&operations);
    assert_eq!(temporary_files(&traced.at("results")), Vec::<String>::new());
    assert!(!traced.at("results/.state/commits").exists(), "at the end `run.json` has everything");
    let is_of_commits = |operation: &Vec<String>| operation[1] == ".state/commits";
    let first = operations.iter().position(is_of_commits).unwrap();
    let last = operations.iter().rposition(is_of_commits).unwrap();
    let kinds: BTreeSet<&str> = operations
        .iter()
        .filter(|operation| is_of_commits(operation))
        .map(|operation| operation[0].as_str())
        .collect();
    assert_eq!(kinds, BTreeSet::from(["create", "remove", "sync", "write"]));

    let mut random = Random::from_environment("crash among many segments");
    let offset = random.within(0..3) as usize;
    let numbers: Vec<usize> = (first..operations.len().min(last + 8)).skip(offset).step_by(3).collect();
    let lacking = AtomicUsize::new(0);
    for_each_of(job, &numbers, |job, whole, &number| {
        let what = format!("after operation {number}");
        assert!(crash_at(job, number).was_ended_by_a_signal(), "{what}");
        let results = job.at("results");
        let before = committed(&results);
        assert!(before.len() >= 30, "{what}: {} segments", before.len());
        lacking.fetch_add(usize::from(before.len() > segments_committed(&results)), Ordering::Relaxed);
        assert_resumed(job, whole, &what);
        let after = committed(&results);
        for (segment, part) in &before {
            assert_eq!(after.get(segment), Some(part), "{what}: segment {segment} was made again");
        }
    });
    assert!(lacking.into_inner() > 0, "`run.json` lacked no commit: {numbers:?}");
}

/// The rules by which a power cut, too, leaves only whole files under their names: a name is given only to
/// what is on disk, and nothing is built upon a name before its folder is on disk. At most one renaming is
/// then in doubt at any moment, so that what a power cut leaves under final names is what a crash after
/// that operation or before it leaves.
fn assert_ordered(operations: &[Vec<String>]) {
    let folder = |path: &str| path.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_owned());
    let mut unsynced = BTreeSet::new();
    let mut unsettled: BTreeMap<String, String> = BTreeMap::new();
    for operation in operations {
        match operation.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["create" | "write", path] => {
                unsynced.insert(path.to_owned());
            }
            ["sync", path] => {
                unsynced.remove(path);
            }
            ["rename", from, to] => {
                assert!(!unsynced.contains(from), "{to} got its name before its content was on disk");
                assert!(
                    unsettled.is_empty(),
                    "{to} got its name while that of {unsettled:?} was not on disk"
                );
                assert_eq!(folder(from), folder(to), "a rename across folders needs two syncs");
                unsettled.insert(folder(to), to.to_owned());
            }
            ["sync-folder", path] => {
                unsettled.remove(path);
            }
            ["remove" | "create-folder", _] => {}
            ref other => panic!("unknown operation {other:?}"),
        }
    }
    assert!(unsynced.is_empty() && unsettled.is_empty(), "{unsynced:?} {unsettled:?}");
}

#[test]
fn every_name_is_given_after_its_content_and_before_what_relies_on_it() {
    let operations = trace(&job(), "results", &[]);
    assert_ordered(&operations);
    let renamed: Vec<&str> = operations
        .iter()
        .filter(|operation| operation[0] == "rename")
        .map(|operation| operation[2].as_str())
        .collect();
    assert_eq!(renamed.first(), Some(&"run.json"), "the manifest is there before the first part");
    assert_eq!(renamed[renamed.len() - 2..], ["failed.tsv", "run.json"]);
    // Each commit: its part, its list of failed records if any, then the manifest.
    let commits: Vec<&[&str]> =
        renamed[1..renamed.len() - 2].split_inclusive(|name| *name == "run.json").collect();
    let mut commits: Vec<Vec<&str>> = commits.into_iter().map(<[_]>::to_vec).collect();
    commits.sort();
    assert_eq!(
        commits,
        [
            vec!["embeddings/part-00000.parquet", "run.json"],
            vec!["embeddings/part-00001.parquet", ".state/failed-00001.tsv", "run.json"],
            vec!["embeddings/part-00002.parquet", "run.json"],
        ]
    );
    let part_written = |operation: &&Vec<String>| {
        operation[0] == "write" && operation[1] == "embeddings/.part-00000.parquet.tmp"
    };
    assert!(
        operations.iter().filter(part_written).count() > 1,
        "a crash between two writes is among those tried"
    );
    // The folders themselves were made and brought to disk before anything in them.
    let position = |wanted: &[&str]| operations.iter().position(|operation| operation == wanted).unwrap();
    assert!(position(&["create-folder", "embeddings"]) < position(&["sync-folder", ""]));
}

#[test]
fn a_crash_while_an_earlier_result_is_cleared_leaves_no_mixture() {
    let earlier = job();
    earlier.run_into("results").expect(3);
    let operations = trace(&earlier, "results", &["--fresh"]);
    // The manifest is gone for good before the first of its parts: without it nothing counts as a result.
    let position = |wanted: &[&str]| operations.iter().position(|operation| operation == wanted).unwrap();
    let first_part = operations.iter().position(|operation| operation[1].starts_with("embeddings/")).unwrap();
    assert!(position(&["remove", "run.json"]) < position(&["sync-folder", ""]));
    assert!(position(&["sync-folder", ""]) < first_part);
    let begun = operations.iter().position(|operation| operation[0] == "create").unwrap();
    assert!(begun > 6, "three parts, a list, the manifest and failed.tsv were removed: {operations:?}");

    let numbers: Vec<usize> = (0..begun + 3).collect();
    for_each(&numbers, |job, whole, &number| {
        // What is there before is of other proteins, and of more.
        let proteins = fs::read(job.at("proteins.fasta")).unwrap();
        job.write("proteins.fasta", fasta(92, 16, 20..60));
        job.run_into("results").expect(3);
        job.write("proteins.fasta", proteins);
        let mut command = job.command_into("results");
        command.arg("--fresh").env(FAULTS, format!("file-operation:{number}=abort"));
        assert!(run(&mut command).was_ended_by_a_signal());
        // Without the word it is refused for as long as something of before is there.
        let what = format!("fresh, after operation {number}");
        let plain = job.run_into("results");
        if plain.code() == 2 {
            plain.says(["holds parts but no run.json", "--fresh"]);
            run(job.command_into("results").arg("--fresh")).expect(3);
        }
        job.outcome("results").assert_same(whole, &what);
        assert_eq!(temporary_files(&job.at("results")), Vec::<String>::new(), "{what}");
    });
}

#[test]
fn a_crash_while_a_damaged_part_is_made_again_costs_nothing_either() {
    let damage = |job: &JobFolder| {
        let _ = fs::remove_dir_all(job.at("results"));
        job.run_into("results").expect(3);
        fs::write(job.at("results/embeddings/part-00001.parquet"), "no part").unwrap();
        fs::write(job.at("results/.state/failed-00001.tsv"), "no list").unwrap();
    };
    let damaged = job();
    damage(&damaged);
    let operations = trace(&damaged, "results", &[]);
    assert_ordered(&operations);
    let position = |wanted: &[&str]| operations.iter().position(|operation| operation == wanted).unwrap();
    let revoked = position(&["rename", ".run.json.tmp", "run.json"]);
    assert!(revoked < position(&["remove", "embeddings/part-00001.parquet"]), "{operations:?}");

    let numbers: Vec<usize> = (0..operations.len()).collect();
    for_each(&numbers, |job, whole, &number| {
        damage(job);
        assert!(crash_at(job, number).was_ended_by_a_signal());
        job.run_into("results").expect(3);
        job.outcome("results").assert_same(whole, &format!("mended after operation {number}"));
        assert_eq!(temporary_files(&job.at("results")), Vec::<String>::new(), "operation {number}");
    });
}
