//! What the program makes of its input, good and bad.

use std::fs;
use std::io::Write;

use crate::job::JobFolder;
use crate::outcome::Outcome;
use crate::process::{Running, run};
use crate::proteins::{fasta, records};

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn ids(outcome: &Outcome) -> Vec<String> {
    outcome.rows().into_iter().map(|row| row.id).collect()
}

/// Good, bad, good, bad: a digit and a record without residues.
const SOME_BAD: &str = ">good1\nMKVL\n>digit\nMKV\nLA1GG\n>good2 with words\nmkvlaag*\n>empty\n>good3\nWWW";

#[test]
fn a_bad_record_stops_the_run_and_is_named() {
    let job = JobFolder::new(SOME_BAD);
    let file = job.at("proteins.fasta");
    let finished = job.run_into("results").expect(5);
    finished.says([
        &format!("{}:2: bad record `digit`", file.display()).replace(":2:", ":3:"),
        "on_bad_record = \"skip\"",
    ]);
    // Nothing was computed.
    assert_eq!(fs::read_dir(job.at("results/embeddings")).unwrap().count(), 0);
}

#[test]
fn bad_records_are_skipped_and_listed_if_asked() {
    let job = JobFolder::new(SOME_BAD).set("input.on_bad_record", "skip");
    job.run_into("results").expect(3).says(["2, listed in"]);
    let outcome = job.outcome("results");
    assert_eq!(ids(&outcome), ["good1", "good2", "good3"]);
    let indices: Vec<u64> = outcome.rows().iter().map(|row| row.index).collect();
    assert_eq!(indices, [0, 2, 4]);
    let failed = outcome.failed_records();
    let columns: Vec<_> = failed.iter().map(|line| (line[0], line[1], line[3], line[4])).collect();
    assert_eq!(columns, [("1", "digit", "3", "input"), ("3", "empty", "8", "input")]);
    assert!(failed.iter().all(|line| line[2] == job.at("proteins.fasta").display().to_string()));
    assert!(failed[0][5].contains("line 5") && failed[1][5].contains("no residues"), "{failed:?}");
    job.run_into("results").expect(3).says(["nothing to do"]);
}

#[test]
fn unusual_but_good_files_are_read() {
    let plain = JobFolder::new(">a\nMKVLAAGG\n>b\nWWYY\n").done_into("results");
    for text in [
        "\u{feff}>a words here\r\nMKVL\r\nAAGG\r\n>b\r\nWWYY\r\n",
        "\n\n>a\nMKVL\n\nAAGG\n\n>b\nWWYY",
        ">a\nmkvlaagg\n>b\nwwyy\n",
        ">a\nMKVLAAGG*\n>b\nWWYY**\n",
    ] {
        let other = JobFolder::new(text).done_into("results");
        assert_eq!(other.parts, plain.parts, "{text:?}");
    }
}

#[test]
fn repeated_ids_stop_the_run_unless_kept() {
    let text = ">a\nMKVL\n>b\nWW\n>a\nGGGG\n";
    let job = JobFolder::new(text);
    let file = job.at("proteins.fasta").display().to_string();
    job.run_into("results")
        .expect(5)
        .says([format!("`a` at {file}:1 and {file}:5"), "duplicate_ids = \"keep\"".to_owned()]);
    let kept = JobFolder::new(text).set("input.duplicate_ids", "keep").done_into("results");
    let rows = kept.rows();
    let columns: Vec<_> = rows.iter().map(|row| (row.index, row.id.as_str())).collect();
    assert_eq!(columns, [(0, "a"), (1, "b"), (2, "a")]);
    assert_ne!(rows[0].embedding, rows[2].embedding);
}

#[test]
fn ids_are_shown_with_what_acts_in_them_written_out_and_kept_as_they_are() {
    let id = "sp|\u{202e}P1\u{200b}|X";
    let escaped = "sp|\\u{202e}P1\\u{200b}|X";
    let raw = |text: &str| text.contains(['\u{202e}', '\u{200b}']);
    let text = fasta(58, 20, 20..60) + &format!(">{id}\nMKVLAAGGWWYYHHKK\n");
    // Set aside by the devices: in the log, on standard error, in the list of events.
    let job = JobFolder::new(&text).simulating("fault=nan@ordinal:20");
    let finished = job.run_into("results").expect(3).says(["sequence quarantined"]);
    assert!(finished.stderr.contains(escaped) && !raw(&finished.stderr), "{}", finished.stderr);
    assert!(!raw(&job.log_of("results")) && job.log_of("results").contains(escaped));
    let status = run(crate::process::program(["status", "--json"]).arg(job.at("results"))).expect(0).stdout;
    assert!(status.contains("is set aside") && !raw(&status), "{status}");
    let page = fs::read_to_string(job.at("results/report.html")).unwrap();
    assert!(page.contains(escaped) && !raw(&page));
    let outcome = job.outcome("results");
    assert_eq!(outcome.failed_records()[0][1], id, "files keep it");
    // Computed.
    let job = JobFolder::new(&text);
    assert!(ids(&job.done_into("results")).contains(&id.to_owned()));
    let plan = JobFolder::new(format!(">{id}\nMKVLAAGGWWYYHHKK\n"));
    let plan = run(&mut plan.command("plan")).expect(0).stdout;
    assert!(plan.contains(escaped) && !raw(&plan), "{plan}");
    // Wrong.
    for (more, key, value) in [
        ("MK1\n", "input.alphabet", "protein"),
        ("MKVLAAGGWWYYHHKK\n", "input.too_long", "stop"),
        (&*format!("MKVL\n>{id}\nMKVL\n"), "input.alphabet", "protein"),
    ] {
        let job = JobFolder::new(format!(">{id}\n{more}")).set(key, value).set("input.max_residues", 10);
        let finished = job.run_into("results").expect(5);
        assert!(finished.stderr.contains(escaped) && !raw(&finished.stderr), "{}", finished.stderr);
    }
}

#[test]
fn equal_sequences_are_written_for_each_id() {
    let outcome = JobFolder::new(">a\nMKVL\n>b\nWW\n>c\nmkvl*\n").done_into("results");
    let embeddings = outcome.by_id();
    assert_eq!(embeddings["a"], embeddings["c"]);
    assert_ne!(embeddings["a"], embeddings["b"]);
    assert_eq!(outcome.run["totals"]["rows"], 3);
}

#[test]
fn nucleotides_given_as_proteins_are_refused_with_a_hint() {
    let dna: String = (0..20).map(|n| format!(">r{n}\n{}\n", "ACGTTGCAAN".repeat(6 + n % 3))).collect();
    for alphabet in ["protein", "auto"] {
        let job = JobFolder::new(&dna).set("input.alphabet", alphabet);
        job.run_into("results").expect(5).says([
            "looks like nucleotides",
            "hint: ",
            "translate them to proteins",
        ]);
    }
}

#[test]
fn long_sequences_follow_the_policy() {
    let text = ">short\nMKVLA\n>long\nMKVLAAGGWWYY\n>exact\nGGGGGGGG\n";
    let job = |policy: &str| JobFolder::new(text).set("input.max_residues", 8).set("input.too_long", policy);
    let whole = JobFolder::new(text).done_into("results").by_id();
    let cut = JobFolder::new(text.replace("WWYY", "")).done_into("results").by_id();

    let truncated = job("truncate").done_into("results");
    assert_eq!(truncated.by_id(), cut);
    assert_eq!(truncated.rows().iter().map(|row| row.length).collect::<Vec<_>>(), [5, 12, 8]);
    assert_eq!(truncated.run["counts"]["truncated"], 1);

    // Run whole, pooled over the first eight: neither the whole one's vector nor the cut one's.
    let pooled = job("pool-first").done_into("results").by_id();
    assert_eq!((&pooled["short"], &pooled["exact"]), (&whole["short"], &whole["exact"]));
    assert!(pooled["long"] != whole["long"] && pooled["long"] != cut["long"]);

    let stopping = job("stop");
    let file = stopping.at("proteins.fasta");
    let message = format!("{}:3: record `long` has 12 residues, more than max_residues = 8", file.display());
    stopping.run_into("results").expect(5).says([message.as_str(), "hint: set too_long"]);

    let skipping = job("skip");
    skipping.run_into("results").expect(3);
    let skipped = skipping.outcome("results");
    assert_eq!(ids(&skipped), ["short", "exact"]);
    let failed = skipped.failed_records();
    assert_eq!((failed.len(), failed[0][1], failed[0][4]), (1, "long", "input"));
    assert!(failed[0][5].contains("12"), "{failed:?}");
}

/// Vectors so wide that 4,096 residues of them are the most of one row, 1 GiB.
#[test]
fn a_record_too_long_for_a_row_per_residue_is_found_before_anything_is_computed() {
    let text = format!(">short\nMKVLA\n>long\n{}\n>last\nGGGG\n", "MKVLAAGG".repeat(600));
    let job = || JobFolder::new(&text).set("model.pooling", "none").simulating("hidden=65536");
    let stopping = job();
    let file = stopping.at("proteins.fasta").display().to_string();
    let said =
        [format!("{file}:3: bad record `long`: 4800 residues, more than the 4096"), "hint: ".to_owned()];
    run(&mut stopping.command("plan")).expect(5).says(&said);
    stopping.run_into("results").expect(5).says(&said);
    assert_eq!(fs::read_dir(stopping.at("results/embeddings")).unwrap().count(), 0);
    let skipping = job().set("input.on_bad_record", "skip");
    skipping.run_into("results").expect(3);
    let outcome = skipping.outcome("results");
    assert_eq!(ids(&outcome), ["short", "last"]);
    assert_eq!(
        outcome.failed_records()[0][1..5],
        ["long", &skipping.at("proteins.fasta").display().to_string(), "3", "input"]
    );
    let cut = job().set("input.max_residues", 4).done_into("results");
    assert_eq!(ids(&cut), ["short", "long", "last"]);
    // One vector for all of it is another matter.
    JobFolder::new(&text).simulating("hidden=65536").set("packing.token_budget", 5000).done_into("results");
}

#[test]
fn gaps_are_kept_or_removed() {
    let text = ">a\nMK-VL.A\n>b\nWW\n";
    let kept = JobFolder::new(text).done_into("results");
    let removed = JobFolder::new(text).set("input.gaps", "remove").done_into("results");
    let without = JobFolder::new(">a\nMKVLA\n>b\nWW\n").done_into("results");
    assert_eq!(removed.parts, without.parts);
    assert_eq!(removed.run["counts"]["gap_letters_removed"], 2);
    assert_ne!(kept.by_id()["a"], without.by_id()["a"]);
    assert_eq!(kept.rows()[0].length, 7);
}

#[test]
fn an_empty_file_gives_an_empty_result() {
    let job = JobFolder::new("");
    job.run_into("results").expect(0).says(["no records"]);
    let outcome = job.outcome("results");
    assert_eq!((outcome.parts.len(), outcome.rows().len()), (1, 0));
    run(&mut crate::process::program(["verify".as_ref(), job.at("results").as_os_str()])).expect(0);
    job.run_into("results").expect(0).says(["nothing to do"]);
    fs::remove_file(job.at("results/embeddings/part-00000.parquet")).unwrap();
    job.run_into("results").expect(0);
    job.outcome("results").assert_same(&outcome, "made again");
}

#[test]
fn a_file_of_headers_alone_is_bad_input() {
    let job = JobFolder::new(">a\n>b\n");
    job.run_into("results").expect(5).says(["bad record `a`: no residues"]);
    let job = job.set("input.on_bad_record", "skip");
    job.run_into("skipped").expect(3);
    let outcome = job.outcome("skipped");
    assert_eq!((outcome.rows().len(), outcome.failed_records().len()), (0, 2));
    run(&mut crate::process::program(["verify".as_ref(), job.at("skipped").as_os_str()])).expect(0);
}

#[test]
fn what_is_not_fasta_is_refused() {
    let cases: [(&[u8], &str); 4] = [
        (b"@r1\nACGT\n+\nIIII\n", "FASTQ"),
        (b"MKVL\n>a\nMKVL\n", "expected a header"),
        (b">a\rMKVL\r>b\rMK\r", "carriage returns alone"),
        (b"BZh91AY&SYabcdefgh", "bzip2"),
    ];
    for (content, message) in cases {
        JobFolder::new(content).run_into("results").expect(5).says([message, "hint: "]);
    }
    let twice = gzip(&gzip(b">a\nMK\n"));
    JobFolder::new(twice).run_into("results").expect(5).says(["holds gzip data where FASTA", "hint: "]);
    let job = JobFolder::new("");
    let packed = std::process::Command::new("tar")
        .args(["-czf", "proteins.fasta", "job.toml"])
        .current_dir(job.path())
        .status();
    assert!(packed.unwrap().success());
    job.run_into("results").expect(5).says(["holds tar data where FASTA", "hint: unpack it with tar -xf"]);
}

#[test]
fn compressed_files_are_recognised_by_their_content() {
    let text = fasta(51, 100, 20..100);
    let plain = JobFolder::new(&text).done_into("results");
    let zstd = zstd::stream::encode_all(text.as_bytes(), 3).unwrap();
    for (what, content) in [("gzip", gzip(text.as_bytes())), ("zstd", zstd)] {
        // The name says nothing: it stays proteins.fasta.
        let packed = JobFolder::new(content).done_into("results");
        assert_eq!(packed.parts, plain.parts, "{what}");
    }
}

#[test]
fn a_truncated_gzip_file_is_bad_input() {
    let whole = gzip(fasta(52, 200, 20..100).as_bytes());
    for length in [whole.len() - 1, whole.len() / 2, 20] {
        let job = JobFolder::new(&whole[..length]);
        let file = job.at("proteins.fasta").display().to_string();
        job.run_into("results").expect(5).says([file.as_str(), "is truncated", "gzip -t"]);
        assert_eq!(fs::read_dir(job.at("results/embeddings")).unwrap().count(), 0);
    }
}

#[test]
fn several_files_and_a_folder_are_read_in_order() {
    let text = fasta(53, 90, 20..60);
    let records: Vec<String> =
        text.split_inclusive('\n').collect::<Vec<_>>().chunks(2).map(|r| r.concat()).collect();
    let one = JobFolder::new(&text).done_into("results");
    let job = JobFolder::new(records[..20].concat());
    job.write("folder/2.faa", records[40..70].concat());
    job.write("folder/1.fasta.gz", gzip(records[20..40].concat().as_bytes()));
    job.write("folder/notes.txt", "not a protein");
    let last = job.write("last.fa", records[70..].concat());
    let inputs = format!(r#"["proteins.fasta", "folder", "{}"]"#, last.display());
    let many = job.set("input.fasta", inputs).done_into("results");
    assert_eq!(many.parts, one.parts);
    assert_eq!(many.run["input"].as_array().unwrap().len(), 4);
}

#[test]
fn a_file_and_a_link_to_it_are_both_named() {
    let job = JobFolder::new("");
    job.write("d/f0.fasta", ">a\nMK\n");
    std::os::unix::fs::symlink("f0.fasta", job.at("d/link.fasta")).unwrap();
    let refused = |items: &str| {
        let mut command = job.command("plan");
        let refused = run(command.arg("--set").arg(format!("input.fasta={items}"))).expect(2);
        // Lines are wrapped to the width of a terminal.
        refused.stderr.replace("│", "").split_whitespace().collect::<String>()
    };
    for items in [r#"["d"]"#, r#"["d/*"]"#] {
        let told = refused(items);
        assert!(told.contains("d/link.fasta`islistedtwice"), "{told}");
        assert!(told.contains("d/f0.fasta`isthesamefile"), "{told}");
        assert!(!told.contains("keeponeofthetwo"), "{told}");
    }
    let told = refused(r#"["d/f0.fasta", "d/link.fasta"]"#);
    assert!(
        told.contains("`d/f0.fasta`alreadystandsforit,as`") && told.contains("keeponeofthetwo"),
        "{told}"
    );
    let told = refused(r#"["d/f0.fasta", "d/./f0.fasta"]"#);
    assert!(told.contains("`d/f0.fasta`alreadystandsforit:keeponeofthetwo"), "{told}");
}

#[test]
fn what_is_left_out_of_a_folder_is_told() {
    let job = JobFolder::new("").set("input.fasta", "folder");
    job.write("folder/a.fasta", ">a\nMK\n");
    job.write("folder/e.FAA.GZ", gzip(b">e\nMKV\n"));
    for name in ["b.fasta.xz", "c.fasta.bz2", "d.pep", "h/f7.fa"] {
        job.write(&format!("folder/{name}"), "");
    }
    let left_out = "not those of FASTA files: `b.fasta.xz`, `c.fasta.bz2`, `d.pep`, `h/`";
    job.run_into("results").expect(0).says(["WARN not read in folder", left_out, "files=2"]);
    run(&mut job.command("plan")).expect(0).says(["warning: not read in folder", left_out]);

    let pipe = job.at("folder/i.fasta");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    job.run_into("pipe").expect(2).says(["folder/i.fasta", "is not a regular file"]);
    fs::remove_file(pipe).unwrap();
    std::os::unix::fs::symlink("gone.fasta", job.at("folder/g.fasta")).unwrap();
    for item in ["folder", "folder/*.fasta", "folder/g.fasta"] {
        let mut command = job.command_into("link");
        let refused = run(command.arg("--set").arg(format!("input.fasta={item}"))).expect(2);
        // Lines are wrapped to the width of a terminal.
        let told = refused.stderr.replace("\n  │ ", "").replace(['\n', ' '], "");
        assert!(told.contains("g.fasta`isalinkto`gone.fasta`,whichisnotthere"), "{}", refused.stderr);
        assert!(!refused.stderr.contains("did you mean"), "{}", refused.stderr);
    }
}

#[test]
fn standard_input_is_read_from_a_pipe_and_kept_for_resuming() {
    let text = fasta(54, 300, 20..200);
    let plain = JobFolder::new(&text).done_into("results");
    let job = JobFolder::new("").set("input.fasta", "-").simulating("latency_us_per_batch=10000");
    for stored in [text.clone().into_bytes(), gzip(text.as_bytes())] {
        let _ = fs::remove_dir_all(job.at("results"));
        let finished = Running::start_fed(&mut job.command_into("results"), &stored).finish().expect(0);
        assert_eq!(finished.stdout, "");
        assert_eq!(job.outcome("results").parts, plain.parts);
    }

    fs::remove_dir_all(job.at("results")).unwrap();
    let mut killed = Running::start_fed(&mut job.command_into("results"), text.as_bytes());
    let results = job.at("results");
    killed.wait_until("a segment is committed", |_| crate::outcome::segments_committed(&results) > 0);
    killed.kill();
    let resumed = Running::start_fed(&mut job.command_into("results"), text.as_bytes()).finish();
    resumed.expect(0).says(["resuming"]);
    assert_eq!(job.outcome("results").parts, plain.parts);
    // Other data on the pipe is another job.
    let other = Running::start_fed(&mut job.command_into("results"), b">other\nMKV\n").finish();
    other.expect(2).says(["input.sha256[0]"]);
    // Neither that nor an empty pipe (`</dev/null` of a batch job) touches what was kept.
    Running::start_fed(&mut job.command_into("results"), b"").finish().expect(0).says(["nothing to do"]);
    // What was kept is damaged: without the input nothing goes on, with it everything does, then and later.
    let kept = job.at("results/.state/stdin.fasta");
    for damage in ["", ">other\nMKVL\n", &text[..text.len() / 2]] {
        std::fs::write(&kept, damage).unwrap();
        let refused = Running::start_fed(&mut job.command_into("results"), b"").finish();
        refused.expect(2).says([
            "stdin.fasta",
            "no longer what the job had read",
            "pipe the same input in again",
        ]);
        let again = Running::start_fed(&mut job.command_into("results"), text.as_bytes()).finish();
        again.expect(0).says(["damaged and is replaced", "nothing to do"]);
        assert_eq!(std::fs::read_to_string(&kept).unwrap(), text);
        Running::start_fed(&mut job.command_into("results"), b"").finish().expect(0).says(["nothing to do"]);
    }
    let mut fresh = job.command_into("results");
    fresh.arg("--fresh");
    Running::start_fed(&mut fresh, b">other\nMKV\n").finish().expect(0).says(["1, 3 residues"]);
}

#[test]
fn a_closed_standard_input_is_no_empty_one() {
    let text = fasta(58, 20, 20..60);
    let job = JobFolder::new("").set("input.fasta", "-");
    let closed = |redirection: &str| {
        let command = job.command_into("results");
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &format!("exec \"$@\" {redirection}"), "sh"]);
        shell.arg(command.get_program()).args(command.get_args()).current_dir(job.path());
        crate::process::without_settings(&mut shell);
        run(&mut shell)
    };
    // As `nohup` opens it, too.
    for redirection in ["<&-", "0>/dev/null"] {
        closed(redirection).expect(5).says(["standard input is closed", "hint: pipe the input in"]);
    }
    Running::start_fed(&mut job.command_into("results"), text.as_bytes()).finish().expect(0);
    let whole = job.outcome("results");
    // What was kept is what is meant.
    for redirection in ["<&-", "0>/dev/null", "</dev/null"] {
        closed(redirection).expect(0).says(["nothing to do"]);
    }
    fs::remove_dir_all(job.at("results")).unwrap();
    closed("</dev/null").expect(0).says(["no records"]);

    let job = job.set("input.fasta", r#"["-", "proteins.fasta", "other.fasta"]"#);
    job.write("other.fasta", &text);
    job.run_into("several").expect(0).says(["WARN empty inputs hold no records inputs=2 first=\"-\""]);
    assert_eq!(job.outcome("several").rows().len(), whole.rows().len());
}

#[test]
fn what_is_piped_in_to_start_again_costs_nothing_before_it_is_read() {
    let text = fasta(59, 300, 20..200);
    let job = JobFolder::new("").set("input.fasta", "-").simulating("latency_us_per_batch=10000");
    let plain = JobFolder::new(&text).done_into("results");
    let results = job.at("results");
    let mut stopped = Running::start_fed(&mut job.command_into("results"), text.as_bytes());
    stopped.wait_until("a segment is committed", |_| crate::outcome::segments_committed(&results) > 0);
    stopped.kill();
    let fresh = || {
        let mut command = job.command_into("results");
        command.arg("--fresh");
        command
    };
    Running::start_fed(&mut fresh(), SOME_BAD.as_bytes()).finish().expect(5);
    // Good input, but the run is killed while it reads it.
    let mut killed = fresh();
    killed.env("VIRNUCPRO_FAULTS", "survey:0=abort");
    let other = b">other\nMKV\n";
    assert!(Running::start_fed(&mut killed, other).finish().was_ended_by_a_signal());
    Running::start_fed(&mut job.command_into("results"), b"").finish().expect(0).says(["resuming"]);
    assert_eq!(job.outcome("results").parts, plain.parts);
    Running::start_fed(&mut fresh(), other).finish().expect(0).says(["1, 3 residues"]);
    Running::start_fed(&mut job.command_into("results"), b"").finish().expect(0).says(["nothing to do"]);
    assert_eq!(job.outcome("results").rows().len(), 1);
}

#[test]
fn the_name_of_what_was_piped_in_is_on_disk_before_anything_is_made_of_it() {
    let job = JobFolder::new("").set("input.fasta", "-");
    let mut command = job.command_into("results");
    command.env("VIRNUCPRO_FAULTS", format!("file-trace={}", job.at("trace").display()));
    Running::start_fed(&mut command, fasta(56, 10, 20..60).as_bytes()).finish().expect(0);
    let trace = fs::read_to_string(job.at("trace")).unwrap();
    let state = format!("sync-folder\t{}", job.at("results/.state").canonicalize().unwrap().display());
    // No record failed, so that nothing else is written there.
    let synced = trace.lines().position(|line| line == state);
    let first = trace.lines().position(|line| line.starts_with("create\t"));
    assert!(synced.is_some() && synced < first, "{trace}");
}

#[test]
fn pipes_and_devices_cannot_be_named_as_files() {
    let job = JobFolder::new("");
    let made = std::process::Command::new("mkfifo").arg(job.at("pipe.fasta")).status();
    assert!(made.unwrap().success());
    for name in ["pipe.fasta", "/dev/null"] {
        for command in ["plan", "run"] {
            let mut command = job.command(command);
            run(command.arg("--set").arg(format!("input.fasta=[\"{name}\"]"))).expect(2).says([
                name,
                "is not a regular file",
                "give a pipe as `-`",
            ]);
        }
    }
}

/// A pipe ends the same way whether its writer was through or died: plain FASTA cut within the residues of a
/// record is whole FASTA. What can be told is told; what cannot is caught when the whole input comes.
#[test]
fn a_pipe_that_ends_early_is_told_where_it_can_be() {
    let text = ">first\nMKVLAAGG\n>second\nWWYYHHKK\n";
    let job = JobFolder::new("").set("input.fasta", "-");
    let feed = |input: &[u8]| {
        let _ = fs::remove_dir_all(job.at("results"));
        Running::start_fed(&mut job.command_into("results"), input).finish()
    };
    // Compressed data knows its end.
    let packed = gzip(text.as_bytes());
    let packed_zstd = zstd::stream::encode_all(text.as_bytes(), 3).unwrap();
    for whole in [&packed, &packed_zstd] {
        for length in [whole.len() - 1, whole.len() / 2] {
            feed(&whole[..length]).expect(5).says(["input `-` is truncated", "hint: "]);
        }
    }
    // A header without residues is no record.
    let header = text.find("second").unwrap() + 3;
    feed(&text.as_bytes()[..header]).expect(5).says(["-:3: bad record `sec`: no residues"]);
    // Within the residues: taken for what it is, counted and digested, and never mixed with the whole.
    feed(&text.as_bytes()[..text.len() - 4]).expect(0).says(["2, 13 residues"]);
    let cut = job.outcome("results");
    assert_eq!(cut.rows()[1].length, 5);
    let whole = Running::start_fed(&mut job.command_into("results"), text.as_bytes()).finish();
    whole.expect(2).says(["input.sha256[0] was", "--fresh"]);
    job.outcome("results").assert_same(&cut, "after the whole input was refused");
    feed(text.as_bytes()).expect(0).says(["2, 16 residues"]);
}

#[test]
fn a_record_beyond_the_limit_is_named() {
    let job = JobFolder::new(format!(">small\nMKV\n>large\n{}\n", "MKVLA".repeat(100)));
    let file = job.at("proteins.fasta");
    let message = format!("{}:3: record `large` is larger than 300 bytes", file.display());
    job.set("input.max_record_bytes", 300).run_into("results").expect(5).says([message.as_str(), "hint: "]);
}

#[test]
fn every_accepted_record_is_in_the_result_and_every_other_in_failed_tsv() {
    let mut text = fasta(55, 200, 1..60);
    for number in [3, 77, 120, 199] {
        text = text.replace(&format!(">p{number} random\n"), &format!(">p{number} random\n!"));
    }
    let job = JobFolder::new(&text).set("input.on_bad_record", "skip").simulating("fault=nan@ordinal:100");
    job.run_into("results").expect(3);
    let outcome = job.outcome("results");
    let failed: Vec<String> = outcome.failed_records().iter().map(|line| line[1].to_owned()).collect();
    assert_eq!(failed, ["p3", "p77", "p100", "p120", "p199"]);
    let mut expected: Vec<String> = records(&text).into_iter().map(|(id, _)| id).collect();
    expected.retain(|id| !failed.contains(id));
    assert_eq!(ids(&outcome), expected);
}

#[test]
fn what_follows_gzip_data_is_named_but_for_zeros() {
    let text = fasta(57, 50, 20..60);
    let undisturbed = JobFolder::new(&text).done_into("results");
    let job = JobFolder::new([gzip(text.as_bytes()), vec![0; 512]].concat());
    assert_eq!(job.done_into("results").parts, undisturbed.parts);
    let packed = gzip(text.as_bytes());
    let message = format!("from byte {} on, follows something that is not gzip", packed.len());
    let job = JobFolder::new([packed, b">b\nMK\n".to_vec()].concat());
    job.run_into("results").expect(5).says([message.as_str(), "hint: "]);
}
