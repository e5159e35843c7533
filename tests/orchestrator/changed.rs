//! Files that change under a run, one bad device among good ones, and nobody who listens.

use std::fs::{self, File};
use std::process::Stdio;

use crate::job::JobFolder;
use crate::process::Running;
use crate::proteins::fasta;

#[test]
fn weights_replaced_during_a_run_are_never_used() {
    let job = JobFolder::new(fasta(81, 6000, 200..400)).on_cpu().set("output.segment_sequences", 64);
    let model = job.at("model");
    fs::create_dir(&model).unwrap();
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(format!("{tiny}/{name}"), model.join(name)).unwrap();
    }
    let job = job.set("model.source", "model").set("restart.backoff_ms_min", 10);
    let results = job.at("results");
    let mut running = job.start_into("results");
    running.wait_until("a segment is committed", |_| crate::outcome::segments_committed(&results) > 0);
    let mut other = fs::read(model.join("model.safetensors")).unwrap();
    let last = other.len() - 1;
    other[last] ^= 1;
    fs::write(model.join("other"), other).unwrap();
    fs::rename(model.join("other"), model.join("model.safetensors")).unwrap();
    running.workers()[0].kill();
    running.finish().expect(1).says(["has changed since the run began", "hint: "]);
}

#[test]
fn nothing_made_of_an_input_that_was_written_to_is_kept() {
    let text = fasta(82, 600, 50..90);
    let undisturbed = JobFolder::new(&text).set("output.segment_sequences", 16).done_into("results");
    let job =
        JobFolder::new(&text).set("output.segment_sequences", 16).simulating("latency_us_per_batch=20000");
    let results = job.at("results");
    let mut running = job.start_into("results");
    running.wait_until("a segment is committed", |_| crate::outcome::segments_committed(&results) > 0);
    // The same length: the last residue of every record becomes another.
    let edited: Vec<String> =
        text.lines()
            .map(|line| {
                if line.starts_with('>') { line.to_owned() } else { format!("{}W", &line[..line.len() - 1]) }
            })
            .collect();
    job.write("proteins.fasta", edited.join("\n") + "\n");
    running.finish().expect(5).says(["has changed while the run was going on"]);
    job.write("proteins.fasta", &text);
    assert_eq!(job.done_into("results").parts, undisturbed.parts);
}

#[test]
fn what_is_taken_from_a_run_after_its_commit_is_missed_at_the_end() {
    let text = fasta(84, 400, 50..90);
    let job = || JobFolder::new(&text).simulating("latency_us_per_batch=10000;fault=nan@ordinal:5");
    let whole = job();
    whole.run_into("results").expect(3);
    let whole = whole.outcome("results");
    let (part, list) = ("embeddings/part-00000.parquet", ".state/failed-00000.tsv");
    for (name, bytes_left, told) in [
        (part, None, "No such file or directory"),
        (part, Some(100), "`embeddings/part-00000.parquet` holds 100 bytes, expected"),
        (part, Some(0), "`embeddings/part-00000.parquet` holds 0 bytes, expected"),
        (list, None, "it is gone"),
        (list, Some(3), "it holds 1 lines"),
    ] {
        let job = job();
        let results = job.at("results");
        let mut running = job.start_into("results");
        running.wait_until("the first segment is committed", |_| {
            crate::outcome::manifest(&results).is_some_and(|run| !run["segments"]["0"].is_null())
        });
        match bytes_left {
            None => fs::remove_file(results.join(name)).unwrap(),
            Some(bytes) => {
                File::options().write(true).open(results.join(name)).unwrap().set_len(bytes).unwrap()
            }
        }
        running.finish().expect(75).says([name, told, "to go on: virnucpro-orch run job.toml"]);
        let run = crate::outcome::manifest(&results).unwrap();
        assert_eq!(
            (run["status"].as_str(), &run["segments"]["0"]),
            (Some("stopped"), &serde_json::Value::Null)
        );
        job.run_into("results").expect(3);
        let mended = job.outcome("results");
        assert_eq!(mended.parts, whole.parts, "{told}");
        assert_eq!(mended.failed_records().len(), 1, "{told}");
        assert_eq!(mended.run["segments"], whole.run["segments"], "{told}");
    }
}

/// A run that has committed a segment and has more to read.
fn halfway(job: &JobFolder) -> Running {
    let results = job.at("results");
    let mut running = job.start_into("results");
    running.wait_until("a segment is committed", |_| crate::outcome::segments_committed(&results) > 0);
    running
}

#[test]
fn an_input_that_vanishes_grows_or_shrinks_ends_the_run_which_goes_on_once_it_is_back() {
    let text = fasta(87, 600, 50..90);
    let job = || JobFolder::new(&text).set("output.segment_sequences", 16);
    let undisturbed = job().done_into("results");
    type Change = fn(&std::path::Path);
    let changes: [(&str, Change); 4] = [
        ("vanishes", |path| fs::remove_file(path).unwrap()),
        ("grows", |path| {
            let mut file = File::options().append(true).open(path).unwrap();
            std::io::Write::write_all(&mut file, b">late\nMKVL\n").unwrap();
        }),
        ("shrinks", |path| File::options().write(true).open(path).unwrap().set_len(20_000).unwrap()),
        ("becomes a folder", |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
    ];
    for (what, change) in changes {
        let job = job().simulating("latency_us_per_batch=20000");
        let input = job.at("proteins.fasta");
        let running = halfway(&job);
        change(&input);
        let message = format!("input `{}` has changed while the run was going on", input.display());
        running.finish().expect(5).says([
            message.as_str(),
            "hint: ",
            "once the input is what it was, to go on: virnucpro-orch run job.toml",
            "to start again with the input as it is now: virnucpro-orch run job.toml",
            "--fresh\n",
        ]);
        let run = crate::outcome::manifest(&job.at("results")).unwrap();
        assert_eq!(run["status"], "failed", "{what}");
        assert_eq!(run["totals"]["records"], 0, "{what}: what this session made is not trusted");
        // Without it nothing starts; a longer or shorter one is another input.
        if !input.is_file() {
            let finished = job.run_into("results");
            let code = finished.code();
            let finished = finished.says([input.display().to_string()]);
            assert!(matches!(code, 1 | 2 | 5), "{what}: {finished:?}");
            let _ = fs::remove_dir(&input);
        } else {
            job.run_into("results").expect(2).says(["input.sha256[0] was", "--fresh"]);
        }
        job.write("proteins.fasta", &text);
        job.simulating("").done_into("results").assert_same(&undisturbed, what);
    }
}

#[test]
fn a_compressed_input_that_is_cut_during_the_run_ends_it() {
    let text = fasta(88, 600, 50..90);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut encoder, text.as_bytes()).unwrap();
    let packed = encoder.finish().unwrap();
    let job = JobFolder::new(&packed).set("output.segment_sequences", 16);
    let undisturbed = job.done_into("undisturbed");
    let job = job.simulating("latency_us_per_batch=20000");
    let input = job.at("proteins.fasta");
    let running = halfway(&job);
    File::options().write(true).open(&input).unwrap().set_len(packed.len() as u64 / 2).unwrap();
    let name = input.display().to_string();
    running.finish().expect(5).says([name.as_str(), "hint: "]);
    job.run_into("results").expect(5).says([name.as_str(), "is truncated"]);
    job.write("proteins.fasta", packed);
    job.done_into("results").assert_same(&undisturbed, "once the file was whole again");
}

#[test]
fn a_fresh_start_with_bad_input_leaves_the_earlier_result() {
    let job = JobFolder::new(fasta(83, 50, 20..60));
    let before = job.done_into("results");
    job.write("proteins.fasta", ">a\nMK1\n");
    Running::start(job.command_into("results").arg("--fresh")).finish().expect(5);
    assert_eq!(job.outcome("results").parts, before.parts);
}

#[test]
fn one_bad_device_condemns_no_sequence() {
    let text = fasta(84, 400, 20..60);
    let undisturbed = JobFolder::new(&text).done_into("results");
    for fault in ["nan", "oom", "error"] {
        let program = format!("latency_us_per_batch=2000;fault={fault}@device:1");
        let job = JobFolder::new(&text).set("devices.use", r#"["sim:3"]"#).simulating(&program);
        assert_eq!(job.done_into("results").parts, undisturbed.parts, "{fault}");
    }
}

#[test]
fn nobody_who_listens_changes_no_exit_code() {
    let job = JobFolder::new(fasta(85, 50, 20..60));
    let deaf = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    for expected in [0, 0] {
        let status = job.command_into("results").stdin(Stdio::null()).stderr(deaf()).status().unwrap();
        assert_eq!(status.code(), Some(expected));
    }
    let mut refused = job.command_into("results");
    refused.args(["--set", "model.layer=x"]).stdin(Stdio::null()).stderr(deaf());
    assert_eq!(refused.status().unwrap().code(), Some(2));
}

#[test]
fn a_checkpoint_that_can_never_be_loaded_ends_the_run_for_good() {
    let job = JobFolder::new(fasta(86, 20, 20..60)).on_cpu();
    let mut weights =
        fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny/esm2_tiny.pt")).unwrap();
    let middle = weights.len() / 2;
    weights[middle] ^= 0xff;
    job.write("damaged.pt", weights);
    let finished = job.set("model.source", "damaged.pt").run_into("results");
    assert!(matches!(finished.code(), 1 | 2), "{finished:?}");
}
