//! Going on from an earlier result: what is whole is kept, what is damaged is computed again, what belongs
//! to another job is refused.

use std::fs;
use std::path::Path;

use crate::job::JobFolder;
use crate::outcome::committed_files;
use crate::process::{program, run};
use crate::proteins::fasta;

fn job() -> JobFolder {
    JobFolder::new(fasta(41, 300, 20..200))
}

fn flip_bit(path: &Path, position: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[position] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

fn cut(path: &Path, to: usize) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..to]).unwrap();
}

#[test]
fn a_damaged_part_is_found_reported_and_computed_again() {
    let job = job();
    let whole = job.done_into("results");
    let size = whole.parts["part-00002.parquet"].len();
    let part = job.at("results/embeddings/part-00002.parquet");
    type Damage = Box<dyn Fn(&Path)>;
    let damages: [(&str, Damage); 6] = [
        ("truncated by a byte", Box::new(move |path| cut(path, size - 1))),
        ("truncated to nothing", Box::new(|path| cut(path, 0))),
        ("a bit in a page", Box::new(move |path| flip_bit(path, size / 2))),
        ("a bit in the first byte", Box::new(|path| flip_bit(path, 0))),
        ("a bit in the footer", Box::new(move |path| flip_bit(path, size - 6))),
        ("deleted", Box::new(|path| fs::remove_file(path).unwrap())),
    ];
    for (what, damage) in damages {
        damage(&part);
        let mut others = committed_files_but(job.at("results").as_path(), "embeddings/part-00002.parquet");
        let finished = job.run_into("results").expect(0);
        finished.says([
            "committed part is damaged and will be computed again",
            "segment=2",
            "resuming segments=4",
        ]);
        job.outcome("results").assert_same(&whole, what);
        let after = committed_files(&job.at("results"));
        others.retain(|part, identity| after[part] != *identity);
        assert!(others.is_empty(), "{what}: written again: {others:?}");
    }
    job.run_into("results").expect(0).says(["nothing to do"]);
}

fn committed_files_but(folder: &Path, damaged: &str) -> std::collections::BTreeMap<String, (u64, i64, i64)> {
    let moved = folder.join(damaged);
    // The damaged part may be gone: stand in for it while the others are looked at.
    let absent = !moved.exists();
    if absent {
        fs::write(&moved, "").unwrap();
    }
    let mut files = committed_files(folder);
    if absent {
        fs::remove_file(&moved).unwrap();
    }
    files.remove(damaged);
    files
}

#[test]
fn an_input_that_was_moved_is_the_same_input() {
    let job = job();
    let whole = job.done_into("results");
    let moved = |from: &str, to: &str| {
        fs::rename(job.at(from), job.at(to)).unwrap();
        fs::remove_file(job.at("results/embeddings/part-00002.parquet")).unwrap();
        let name = format!("input.fasta={}", job.at(to).display());
        run(job.command_into("results").arg("--set").arg(name)).expect(0).says(["resuming segments=4"]);
        job.outcome("results").assert_same(&whole, to);
        let manifest = fs::read_to_string(job.at("results/run.json")).unwrap();
        assert!(manifest.contains(to), "{manifest}");
    };
    moved("proteins.fasta", "moved.fasta");
    // A digit of what is said about it, which is not what identifies the job.
    let manifest = fs::read_to_string(job.at("results/run.json")).unwrap();
    let at = manifest.find("\"bytes\": ").unwrap() + "\"bytes\": ".len();
    let mut damaged = manifest.into_bytes();
    damaged[at] = if damaged[at] == b'9' { b'8' } else { damaged[at] + 1 };
    fs::write(job.at("results/run.json"), damaged).unwrap();
    moved("moved.fasta", "moved-again.fasta");
}

#[test]
fn a_lost_list_of_failed_records_is_made_again() {
    let job = job().simulating("fault=nan@ordinal:70;fault=nan@ordinal:200");
    job.run_into("results").expect(3);
    let whole = job.outcome("results");
    fs::remove_file(job.at("results/.state/failed-00001.tsv")).unwrap();
    job.run_into("results").expect(3).says(["failed records of its segment: it is gone"]);
    job.outcome("results").assert_same(&whole, "after its list was deleted");
}

#[test]
fn what_the_user_deleted_from_a_finished_result_is_mended() {
    let job = job().simulating("fault=nan@ordinal:70");
    job.run_into("results").expect(3);
    let whole = job.outcome("results");
    fs::remove_file(job.at("results/failed.tsv")).unwrap();
    // A part of an earlier, longer result, say: `verify` calls it foreign and names `run` as the remedy.
    fs::copy(
        job.at("results/embeddings/part-00000.parquet"),
        job.at("results/embeddings/part-00077.parquet"),
    )
    .unwrap();
    job.run_into("results").expect(3);
    job.outcome("results").assert_same(&whole, "after failed.tsv was deleted");
}

#[test]
fn a_job_that_would_change_values_is_refused_and_names_the_key() {
    let job = job();
    let whole = job.done_into("results");
    let refused = |settings: &[(&str, &str)], simulation: &str, key: &str| {
        let mut command = job.command_into("results");
        for (name, value) in settings {
            command.arg("--set").arg(format!("{name}={value}"));
        }
        let finished = crate::process::run(command.env("VIRNUCPRO_SIM", simulation)).expect(2);
        finished.says([key, "holds the result of another job", "--fresh"]);
        job.outcome("results").assert_same(&whole, key);
    };
    refused(&[("model.layer", "3")], "", "model.layer was 0, now 3");
    refused(&[("model.pooling", "max")], "", "model.pooling was mean, now max");
    refused(&[("output.segment_sequences", "65")], "", "output.segment_sequences was 64, now 65");
    refused(&[("output.float", "f16")], "", "output.float was f32, now f16");
    refused(&[("input.max_residues", "50")], "", "input.max_residues was 0, now 50");
    refused(&[("input.gaps", "remove")], "", "input.gaps was keep, now remove");
    refused(&[("input.too_long", "skip")], "", "input.too_long was truncate, now skip");
    refused(&[("devices.use", "[\"cpu\"]")], "", "model.sha256 was sim, now");
    refused(&[], "hidden=32", "model.hidden was 64, now 32");

    // What changes no value is no other job.
    for (key, value) in
        [("packing.token_budget", "77"), ("devices.use", "[\"sim:3\"]"), ("restart.hang_ms", "5000")]
    {
        let mut command = job.command_into("results");
        crate::process::run(command.arg("--set").arg(format!("{key}={value}")))
            .expect(0)
            .says(["nothing to do"]);
    }

    // One more record, or one letter changed, is another input.
    let mut text = fasta(41, 300, 20..200);
    text.push_str(">one_more\nMKV\n");
    job.write("proteins.fasta", &text);
    refused(&[], "", "input.sha256[0]");
    job.write("proteins.fasta", fasta(41, 300, 20..200).replacen('A', "C", 1));
    refused(&[], "", "input.sha256[0]");
}

#[test]
fn other_weights_are_refused() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny");
    let job = JobFolder::new(fasta(42, 5, 20..60)).on_cpu();
    let tiny = format!("model.source={}", tiny.display());
    let mut command = job.command_into("results");
    crate::process::run(command.args(["--set", &tiny])).expect(0);
    job.run_into("results").expect(2).says(["model.sha256 was", "model.hidden was 64, now 128"]);
    let mut command = job.command_into("results");
    crate::process::run(command.args(["--set", &tiny])).expect(0).says(["nothing to do"]);
}

#[test]
fn fresh_deletes_the_earlier_result_and_nothing_else() {
    let job = job();
    job.done_into("results");
    let notes = job.write("results/notes.txt", "mine");
    let own = job.write("results/embeddings/mine.parquet", "mine");
    let fresh = |job: &JobFolder| crate::process::run(job.command_into("results").arg("--fresh")).expect(0);
    // Fewer parts than before: none of the old ones may remain.
    let job = job.set("output.segment_sequences", 200);
    fresh(&job);
    assert_eq!(fs::read_to_string(&notes).unwrap(), "mine");
    assert_eq!(fs::read_to_string(&own).unwrap(), "mine");
    fs::remove_file(own).unwrap();
    let outcome = job.outcome("results");
    assert_eq!(outcome.parts.len(), 2);
    outcome.assert_same(&job.done_into("other"), "fresh");
    assert_eq!(outcome.run["sessions"].as_array().unwrap().len(), 1);
}

#[test]
fn parts_without_a_manifest_are_not_overwritten() {
    let job = job();
    job.done_into("results");
    fs::remove_file(job.at("results/run.json")).unwrap();
    job.run_into("results").expect(2).says(["holds parts but no run.json", "--fresh"]);
    fs::write(job.at("results/run.json"), "{").unwrap();
    job.run_into("results").expect(1).says(["is not a run manifest", "--fresh"]);
    crate::process::run(job.command_into("results").arg("--fresh")).expect(0);
}

#[test]
fn a_finished_run_says_that_there_is_nothing_to_do() {
    let job = job();
    let whole = job.done_into("results");
    let files = committed_files(&job.at("results"));
    job.run_into("results").expect(0).says(["nothing to do", "is complete"]);
    job.outcome("results").assert_same(&whole, "nothing to do");
    assert_eq!(committed_files(&job.at("results")), files);
}

#[test]
fn parts_that_changed_places_are_computed_again() {
    let job = job();
    let whole = job.done_into("results");
    let part = |number: u32| job.at(&format!("results/embeddings/part-{number:05}.parquet"));
    let aside = job.at("aside");
    fs::rename(part(1), &aside).unwrap();
    fs::rename(part(3), part(1)).unwrap();
    fs::rename(&aside, part(3)).unwrap();
    let damaged = "is not the file that was committed";
    job.run_into("results").expect(0).says(["segment=1", "segment=3", damaged, "resuming segments=3"]);
    job.outcome("results").assert_same(&whole, "after two parts changed places");
    // One part in the place of another, which is there twice then.
    fs::copy(part(0), part(2)).unwrap();
    job.run_into("results").expect(0).says(["segment=2", damaged, "resuming segments=4"]);
    job.outcome("results").assert_same(&whole, "after a part was copied over another");
}

#[test]
fn a_folder_of_parts_that_is_gone_is_made_again() {
    let job = job();
    let whole = job.done_into("results");
    fs::remove_dir_all(job.at("results/embeddings")).unwrap();
    let finished = job.run_into("results").expect(0);
    let again = finished.stderr.matches("committed part is damaged and will be computed again").count();
    assert_eq!(again, whole.parts.len());
    job.outcome("results").assert_same(&whole, "after embeddings/ was deleted");
}

#[test]
fn a_damaged_list_of_failed_records_is_made_again() {
    let job = job().simulating("fault=nan@ordinal:70;fault=nan@ordinal:71");
    job.run_into("results").expect(3);
    let whole = job.outcome("results");
    let list = job.at("results/.state/failed-00001.tsv");
    let text = fs::read_to_string(&list).unwrap();
    let other = text.replace("71\t", "70\t");
    for damaged in [&text[..text.len() - 1], text.split_inclusive('\n').next().unwrap(), "", &other] {
        fs::write(&list, damaged).unwrap();
        job.run_into("results").expect(3).says([
            "does not list the 2 failed records of its segment",
            "segment=1",
            "resuming segments=4",
        ]);
        job.outcome("results").assert_same(&whole, "after its list was damaged");
    }
}

#[test]
fn a_manifest_that_is_cut_foreign_or_contradicts_itself_is_refused_and_kept() {
    let job = job();
    let whole = job.done_into("results");
    let path = job.at("results/run.json");
    let text = fs::read_to_string(&path).unwrap();
    let (twice, once) = ("\"embeddings/part-00001.parquet\"", "\"embeddings/part-00000.parquet\"");
    let cases = [
        (text[..text.len() / 2].to_owned(), "is not a run manifest"),
        (text[..text.len() - 2].to_owned(), "is not a run manifest"),
        (String::new(), "is not a run manifest"),
        ("{\"name\": \"package.json of another program\"}".to_owned(), "is not a run manifest"),
        (text.replacen("\"format\": 1", "\"format\": 2", 1), "has layout 2"),
        (text.replacen(twice, once, 1), "names the part `embeddings/part-00000.parquet`"),
        (text.replacen("\"rows\": 64", "\"rows\": 63", 1), "contradicts itself"),
    ];
    for (damaged, message) in cases {
        assert_ne!(damaged, text);
        fs::write(&path, &damaged).unwrap();
        job.run_into("results").expect(1).says([message, "run.json", "--fresh"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), damaged, "a refused run changes nothing");
    }
    assert_eq!(fs::read_dir(job.at("results/embeddings")).unwrap().count(), whole.parts.len());
    fs::write(&path, text).unwrap();
    job.run_into("results").expect(0).says(["nothing to do"]);
}

#[test]
fn a_damaged_list_of_commits_costs_its_segments_and_is_told() {
    // A batch is a segment; of the first 34 the last two are in the list alone when the device hangs.
    let job = job().set("output.segment_sequences", 4).set("devices.use", r#"["sim:1"]"#);
    let undisturbed = job.done_into("undisturbed");
    let commits = job.at("results/.state/commits");
    type Damage = fn(Vec<u8>) -> Vec<u8>;
    let damages: [(Damage, &str); 3] = [
        (
            |mut bytes| {
                let second = bytes.iter().position(|&byte| byte == b'\n').unwrap() + 1;
                bytes[second + 40] ^= 1;
                bytes
            },
            "line 2 is damaged",
        ),
        (|bytes| vec![0x5a; bytes.len()], "it is no list of commits"),
        (
            |mut bytes| {
                // Another digest in its first line.
                let end = bytes.iter().position(|&byte| byte == b'\n').unwrap();
                bytes[end - 1] = if bytes[end - 1] == b'0' { b'1' } else { b'0' };
                bytes
            },
            "line 2 is damaged",
        ),
    ];
    for (damage, told) in damages {
        let _ = fs::remove_dir_all(job.at("results"));
        let mut command = job.command_into("results");
        let mut run = crate::process::Running::start(command.env("VIRNUCPRO_SIM", "fault=hang@batch:34"));
        let lines =
            || fs::read(&commits).map_or(0, |bytes| bytes.iter().filter(|&&byte| byte == b'\n').count());
        run.wait_until("two segments are in the list", |_| lines() == 3);
        run.kill();
        let bytes = fs::read(&commits).unwrap();
        fs::write(&commits, damage(bytes)).unwrap();
        let name = commits.display().to_string();
        job.run_into("results").expect(0).says([
            "segments that only this file names are computed again",
            name.as_str(),
            told,
            "resuming segments=32 ",
        ]);
        job.outcome("results").assert_same(&undisturbed, told);
        assert!(!commits.exists());
    }
}

/// Puts something in place of a file that would make its reader wait for ever.
fn pipe_at(path: &Path) {
    let _ = fs::remove_file(path);
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn a_pipe_in_place_of_a_file_of_the_result_hangs_nothing() {
    let job = JobFolder::new(fasta(96, 200, 20..60)).simulating("fault=nan@ordinal:5");
    job.run_into("results").expect(3);
    let whole = job.outcome("results");
    let command = |words: &[&str]| run(program(words).current_dir(job.path()));
    let told = |path: &str| [path.to_owned(), "it is not a regular file".to_owned()];
    for name in
        ["embeddings/part-00001.parquet", ".state/failed-00000.tsv", "failed.tsv", ".state/journal-00001"]
    {
        pipe_at(&job.at("results").join(name));
        if !name.contains("journal") {
            let found = command(&["verify", "results"]).expect(4);
            assert!(found.stdout.contains("not a regular file"), "{name}: {}", found.stdout);
        }
        let again = job.run_into("results").expect(3);
        job.outcome("results").assert_same(&whole, name);
        if name.contains("part") {
            again.says(told("part-00001.parquet"));
        }
        command(&["verify", "results"]).expect(0);
    }
    pipe_at(&job.at("results/embeddings/part-00001.parquet"));
    command(&["export", "results", "--to", "npy"]).expect(4).says(["part-00001.parquet", "hint: "]);
    job.run_into("results").expect(3);

    pipe_at(&job.at("results/.state/snapshot.json"));
    command(&["status", "results"]).expect(0);
    let manifest = fs::read(job.at("results/run.json")).unwrap();
    pipe_at(&job.at("results/run.json"));
    job.run_into("results").expect(1).says(told("run.json"));
    for words in [&["verify", "results"][..], &["status", "results"], &["export", "results", "--to", "npy"]] {
        command(words).expect(1).says(told("run.json"));
    }
    fs::remove_file(job.at("results/run.json")).unwrap();
    fs::write(job.at("results/run.json"), manifest).unwrap();
    pipe_at(&job.at("results/run.log"));
    job.run_into("results").expect(2).says(["run.log` is not a regular file", "move it away"]);
}

#[test]
fn a_folder_in_place_of_a_part_goes_or_is_named() {
    let job = JobFolder::new(fasta(97, 200, 20..60));
    let whole = job.done_into("results");
    let part = job.at("results/embeddings/part-00001.parquet");
    for path in [&part, &job.at("results/failed.tsv")] {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
        job.done_into("results").assert_same(&whole, "an empty folder");
    }
    fs::remove_file(&part).unwrap();
    fs::create_dir(&part).unwrap();
    fs::write(part.join("mine"), "kept").unwrap();
    let hint = format!("hint: move it away or delete it: rm -r '{}'", part.display());
    job.run_into("results").expect(1).says(["part-00001.parquet` is a folder", &hint]);
    assert_eq!(fs::read_to_string(part.join("mine")).unwrap(), "kept");
    fs::remove_dir_all(&part).unwrap();
    job.done_into("results").assert_same(&whole, "after it was moved away");
}
