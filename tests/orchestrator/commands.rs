//! The commands around `run`: plan, init, doctor, completions, version, and what goes to which stream.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Map, Value, json};

use crate::job::JobFolder;
use crate::process::{PROGRAM, program, run};
use crate::proteins::{fasta, records};

#[test]
fn plan_counts_what_run_will_do() {
    let text = fasta(91, 300, 20..200);
    let job = JobFolder::new(&text);
    let plan = run(job.command("plan").arg("--json")).expect(0);
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    let residues: usize = records(&text).iter().map(|(_, residues)| residues.len()).sum();
    assert_eq!(plan["survey"]["counts"]["records"], 300);
    assert_eq!(plan["survey"]["counts"]["residues"], residues);
    assert_eq!((&plan["segments"], &plan["sequences_computed"]), (&json!(5), &json!(300)));
    assert_eq!(plan["fill"]["tokens"], residues + 2 * 300);
    // Nothing is made by looking.
    assert!(!job.at("results").exists());

    let done = job.done_into("results");
    assert_eq!(done.parts.len(), 5);
    assert_eq!(done.run["sessions"][0]["tokens"], plan["fill"]["tokens"]);

    let told = run(&mut job.command("plan")).expect(0);
    for line in ["records      300, ", "lengths", "batches      ", "output       5 parts"] {
        assert!(told.stdout.contains(line), "{line:?} is not in:\n{}", told.stdout);
    }
    assert_eq!(told.stderr, "");
}

/// A model of the published 15B shape in a sparse file: its header is real, its 60 GB are holes.
fn write_model_too_large_to_load(folder: &Path) {
    let (layers, hidden, heads) = (48, 5120, 40);
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny");
    let config = fs::read(tiny.join("config.json")).unwrap();
    let mut config: Map<String, Value> = serde_json::from_slice(&config).unwrap();
    for (key, value) in [
        ("num_hidden_layers", layers),
        ("hidden_size", hidden),
        ("num_attention_heads", heads),
        ("intermediate_size", 4 * hidden),
    ] {
        config.insert(key.to_owned(), json!(value));
    }
    fs::write(folder.join("config.json"), Value::Object(config).to_string()).unwrap();

    let weights = fs::read(tiny.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let tiny: Map<String, Value> = serde_json::from_slice(&weights[8..8 + length]).unwrap();
    let (mut header, mut end) = (Map::new(), 0u64);
    for (name, tensor) in tiny.iter().filter(|(name, _)| *name != "__metadata__") {
        let shape: Vec<u64> =
            tensor["shape"].as_array().unwrap().iter().map(|extent| extent.as_u64().unwrap()).collect();
        let large = shape.iter().map(|extent| match extent {
            64 => hidden,
            256 => 4 * hidden,
            8 => hidden / heads / 2,
            other => *other,
        });
        let large: Vec<u64> = large.collect();
        let copies = if name.contains(".layer.1.") {
            0
        } else if name.contains(".layer.0.") {
            layers
        } else {
            1
        };
        for layer in 0..copies {
            let bytes = 4 * large.iter().product::<u64>();
            let entry = json!({"dtype": "F32", "shape": large, "data_offsets": [end, end + bytes]});
            header.insert(name.replace(".layer.0.", &format!(".layer.{layer}.")), entry);
            end += bytes;
        }
    }
    let header = Value::Object(header).to_string();
    let mut file = File::create(folder.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
    assert!(end > 55_000_000_000, "{end}");
}

#[test]
fn plan_needs_no_weights_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    write_model_too_large_to_load(folder.path());
    let job = JobFolder::new(fasta(92, 20, 20..200)).on_cpu().set("model.source", folder.path().display());
    // Reading 60 GB takes longer than any run of these tests may.
    let plan = run(job.command("plan").arg("--json")).expect(0);
    let plan: Value = serde_json::from_str(&plan.stdout).unwrap();
    assert_eq!((&plan["model"]["layers"], &plan["model"]["hidden"]), (&json!(48), &json!(5120)));
    assert!(plan["model"]["parameters"].as_u64().unwrap() > 15_000_000_000);
    assert!(plan["memory"]["worker_weights"].as_u64().unwrap() > 55_000_000_000);
}

#[test]
fn plan_shows_the_job_as_it_was_understood() {
    let job = JobFolder::new(">a\nMKV\n").set("model.layer", 3);
    let shown = run(job.command("plan").arg("--print-job")).expect(0).stdout;
    assert!(shown.contains("layer = 3") && shown.contains("segment_sequences = 64"), "{shown}");
    // What is shown is a job file that says the same.
    job.write("shown.toml", &shown);
    let again = run(program(["plan", "shown.toml", "--print-job"]).current_dir(job.path())).expect(0).stdout;
    assert_eq!(again, shown);
}

#[test]
fn the_template_written_by_init_plans_and_runs() {
    let folder = tempfile::tempdir().unwrap();
    let here = |arguments: &[&str]| run(program(arguments).current_dir(folder.path()));
    let finished = here(&["init", "mine"]).expect(0);
    assert_eq!(finished.stdout, "mine/job.toml\nmine/job.schema.json\n");
    here(&["init", "mine"]).expect(2).says(["`mine/job.toml` exists", "--force"]);
    // Its input is not there yet.
    here(&["plan", "mine/job.toml"]).expect(2).says(["proteins.fasta"]);
    fs::write(folder.path().join("mine/proteins.fasta"), fasta(93, 5, 20..60)).unwrap();
    here(&["plan", "mine/job.toml"]).expect(0);
    let finished = here(&["run", "mine/job.toml"]).expect(0);
    assert_eq!(finished.stdout, "");
    here(&["verify", "mine/results"]).expect(0);
    here(&["init", "mine", "--force"]).expect(0);
}

#[test]
fn doctor_finds_this_machine_fit() {
    let told = run(&mut program(["doctor"])).expect(0);
    assert!(told.stdout.contains("cpu"), "{}", told.stdout);
    let told = run(&mut program(["doctor", "--json"])).expect(0);
    let report = serde_json::from_str::<Value>(&told.stdout).unwrap();
    // As the system has it; a bit of the processor that a kernel hides is not there either.
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    let listed = report["cpu_features"].as_array().unwrap();
    for feature in ["avx2", "avx512f", "amx_bf16", "amx_tile", "amx_int8"] {
        if flags.split_whitespace().any(|flag| flag == feature) {
            assert!(listed.contains(&json!(feature)), "{feature} is not in {listed:?}");
        }
    }
}

#[test]
fn completions_are_scripts_of_their_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&mut program(["completions", shell])).expect(0);
        assert!(script.stdout.contains("virnucpro-orch") && script.stderr.is_empty(), "{shell}");
        assert!(script.stdout.contains("verify") && script.stdout.contains("retry-failed"), "{shell}");
        assert!(!script.stdout.contains("worker"), "{shell} offers a hidden command");
        if shell == "bash" && Command::new("bash").arg("--version").output().is_ok() {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), script.stdout).unwrap();
            run(Command::new("bash").arg("-n").arg(file.path())).expect(0);
        }
    }
}

#[test]
fn version_is_one_line() {
    let version = run(&mut program(["--version"])).expect(0);
    let start = format!("virnucpro-orch {} (commit ", env!("CARGO_PKG_VERSION"));
    assert!(version.stdout.starts_with(&start), "{}", version.stdout);
    assert!(version.stdout.trim_end().ends_with("cpu, sim)") && version.stdout.lines().count() == 1);
    assert_eq!(version.stderr, "");
}

#[test]
fn help_and_the_readme_say_the_same_of_exit_codes() {
    let help = run(&mut program(["--help"])).expect(0).stdout;
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let of_help = help.lines().find(|line| line.trim_start().starts_with("4  ")).unwrap();
    let of_readme = readme.lines().find(|line| line.starts_with("| 4 |")).unwrap();
    for command in ["verify", "export", "gpu-check"] {
        assert!(of_help.contains(command) && of_readme.contains(command), "{of_help}\n{of_readme}");
    }
}

/// Words between backquotes that look like paths of source files.
fn named_sources(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|word| {
        let is_path = word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_/.-".contains(&byte));
        is_path && word.contains('/') && [".rs", ".cu"].iter().any(|ending| word.ends_with(ending))
    })
}

#[test]
fn every_source_file_that_the_documents_name_is_found_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents: Vec<_> = ["README.md", "CONTRIBUTING.md"].into();
    documents.extend([
        "docs/ARCHITECTURE.md",
        "docs/FORMATS.md",
        "docs/MONITORING.md",
        "docs/RELIABILITY.md",
    ]);
    let records = fs::read_dir(root.join("docs/adr")).unwrap().map(|entry| entry.unwrap().path());
    let mut found = 0;
    for path in documents.iter().map(|name| root.join(name)).chain(records) {
        let text = fs::read_to_string(&path).unwrap();
        // In the code map a heading names the folder of what follows.
        let mut folder = root.to_owned();
        for line in text.lines() {
            if line.starts_with('#') {
                folder = root.join(line.trim_start_matches('#').trim().trim_matches('`'));
            }
            for name in named_sources(line) {
                let is_there = root.join(name).is_file() || folder.join(name).is_file();
                assert!(is_there, "{}: there is no `{name}`", path.display());
                found += 1;
            }
        }
    }
    assert!(found > 30, "{found}");
}

#[test]
fn a_result_folder_has_one_name_in_help_and_documents() {
    for command in [
        "status",
        "top",
        "stop",
        "pause",
        "resume",
        "retire",
        "readmit",
        "checkpoint",
        "report",
        "verify",
        "export",
    ] {
        let help = run(&mut program([command, "--help"])).expect(0).stdout;
        let usage = help.lines().find(|line| line.starts_with("Usage: ")).unwrap();
        assert!(usage.contains(" <RESULTS>") && !usage.contains("FOLDER"), "{usage}");
        let row = format!("`{command} RESULTS");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let readme = fs::read_to_string(root.join("README.md")).unwrap();
        assert!(readme.contains(&row), "{row} is not in the README");
    }
}

#[test]
fn help_names_every_exit_code() {
    let help = run(&mut program(["run", "--help"])).expect(0).stdout;
    for code in ["0 ", "1 ", "2 ", "3 ", "4 ", "5 ", "75 ", "130 "] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(code)), "{code} in:\n{help}");
    }
}

#[test]
fn logs_go_to_standard_error_and_to_the_folder() {
    let job = JobFolder::new(fasta(94, 20, 20..60));
    let finished =
        job.run_into("results").expect(0).says(["segment committed", "result     results/embeddings"]);
    assert!(!finished.stderr.contains('\u{1b}'), "no colour off a terminal");
    let log = fs::read_to_string(job.at("results/run.log")).unwrap();
    assert!(log.contains("starting") && log.contains("segment committed"), "{log}");

    let job = JobFolder::new(fasta(94, 20, 20..60)).set("telemetry.log_format", "json");
    let told = job.run_into("results").expect(0).stderr;
    let lines: Vec<&str> = told.lines().take_while(|line| *line != "done").collect();
    assert!(lines.len() >= 3, "{told}");
    for line in lines {
        assert!(serde_json::from_str::<Value>(line).unwrap().is_object(), "{line}");
    }
    // What ends before there is a log, too.
    let told = job.simulating("nonsense").run_into("elsewhere").expect(2).stderr;
    for line in told.lines() {
        assert!(serde_json::from_str::<Value>(line).unwrap().is_object(), "{line}");
    }
}

#[test]
fn a_log_filter_that_lets_nothing_through_is_refused_before_anything_is_made() {
    let job = JobFolder::new(fasta(94, 20, 20..60)).set("telemetry.log", "zzz");
    job.run_into("results").expect(2).says([
        "telemetry.log = \"zzz\": `zzz` is neither a level nor a module",
        "hint: levels are off, error, warn, info, debug and trace",
        "actors::packer",
    ]);
    assert!(!job.at("results").exists());
    let job = JobFolder::new(fasta(94, 20, 20..60)).set("telemetry.log", "error,actors::writer=info");
    let told = job.run_into("results").expect(0).stderr;
    assert!(told.contains("segment committed") && !told.contains("starting"), "{told}");
}

#[test]
fn a_reader_that_leaves_early_is_no_panic() {
    let job = JobFolder::new(fasta(95, 20, 20..60));
    for command in ["plan", "completions", "doctor"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut process = match command {
            "plan" => job.command("plan"),
            "completions" => program(["completions", "bash"]),
            command => program([command]),
        };
        let output = process.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!told.contains("panicked"), "{command}: {told}");
    }
    assert!(Path::new(PROGRAM).exists());
}
