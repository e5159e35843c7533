//! Mistakes in a job end with exit code 2 and name the key; `--set` overrides any key.

use crate::job::JobFolder;
use crate::process::{program, run};

fn job() -> JobFolder {
    JobFolder::new(">a\nMKVL\n")
}

#[test]
fn a_mistake_in_the_job_file_is_named_with_its_place() {
    for (line, mistakes) in [
        ("[model]\nlayr = 3", ["model.layr", "did you mean"]),
        ("[output]\ndirectory = \"x\"\nsegment_sequences = 0", ["output.segment_sequences", "1 to"]),
        ("[model]\npooling = \"average\"", ["model.pooling", "mean"]),
        ("[devices]\nuse = [\"gpu:0\"]", ["devices.use", "cuda:0"]),
        ("[modell]\nlayer = 1", ["modell", "did you mean"]),
        ("[restart]\nhang_ms = \"long\"", ["restart.hang_ms", "text"]),
        ("[model", ["job.toml", "TOML"]),
    ] {
        let job = job();
        let output = if line.contains("[output]") { "" } else { "[output]\ndirectory = \"results\"\n" };
        job.write("job.toml", format!("[input]\nfasta = [\"proteins.fasta\"]\n{output}{line}\n"));
        for command in ["run", "plan"] {
            let finished =
                run(program([command, "job.toml"]).current_dir(job.path())).expect(2).says(mistakes);
            assert_eq!(finished.stdout, "");
            assert!(finished.stderr.contains("job.toml"), "{}", finished.stderr);
        }
        assert!(!job.at("results").exists());
    }
}

#[test]
fn a_mistake_in_an_override_is_named() {
    for (setting, mistakes) in [
        ("model.layr=3", ["model.layr", "--set"]),
        ("packing.token_budget=1", ["packing.token_budget", "64 to"]),
        ("model.layer", ["model.layer", "--set key=value"]),
        ("input.fasta=absent.fasta", ["absent.fasta", "no such file"]),
    ] {
        let mut command = job().command("run");
        let job = job();
        command.current_dir(job.path());
        run(command.args(["--set", setting])).expect(2).says(mistakes);
    }
}

#[test]
fn several_mistakes_are_told_at_once() {
    let job = job().set("model.layer", -1).set("output.segment_sequences", 0).set("restart.hang_ms", 1);
    job.run_into("results").expect(2).says(["model.layer", "output.segment_sequences", "restart.hang_ms"]);
}

#[test]
fn an_override_wins_over_the_environment_and_both_over_the_file() {
    let job = job();
    let shown = |job: &JobFolder, variable: Option<&str>| {
        let mut command = job.command("plan");
        if let Some(value) = variable {
            command.env("VIRNUCPRO_ORCH_OUTPUT_SEGMENT_SEQUENCES", value);
        }
        run(command.arg("--print-job")).expect(0).stdout
    };
    assert!(shown(&job, None).contains("segment_sequences = 64"));
    assert!(shown(&job, Some("65")).contains("segment_sequences = 65"));
    let job = job.set("output.segment_sequences", 66);
    assert!(shown(&job, Some("65")).contains("segment_sequences = 66"));
    let outcome = job.done_into("results");
    assert_eq!(outcome.run["identity"]["output.segment_sequences"], "66");
}

#[test]
fn a_variable_that_names_no_key_is_refused_whatever_its_table() {
    for (variable, message) in [
        ("VIRNUCPRO_ORCH_FOO", "VIRNUCPRO_ORCH_MODEL_LAYER, for instance"),
        ("VIRNUCPRO_ORCH_DEVICE_THREADS", "did you mean `VIRNUCPRO_ORCH_DEVICES_THREADS`?"),
        ("VIRNUCPRO_ORCH_DEVICES_THREDS", "did you mean `VIRNUCPRO_ORCH_DEVICES_THREADS`?"),
    ] {
        let job = job();
        run(job.command_into("results").env(variable, "3")).expect(2).says([variable, message]);
        assert!(!job.at("results").exists());
    }
    use std::os::unix::ffi::OsStrExt;
    let value = std::ffi::OsStr::from_bytes(b"r\xff");
    let mut command = job().command("run");
    let job = job();
    command.current_dir(job.path()).env("VIRNUCPRO_ORCH_OUTPUT_DIRECTORY", value);
    run(&mut command).expect(2).says(["`VIRNUCPRO_ORCH_OUTPUT_DIRECTORY` is not UTF-8"]);
}

#[test]
fn what_this_build_cannot_do_is_refused_before_anything_is_written() {
    for (key, value, message) in [
        ("devices.use", r#"["cuda:0"]"#, "cuda:0: the NVIDIA management library"),
        ("devices.use", r#"["cpu", "sim:2"]"#, "simulated and real devices"),
        ("model.source", "facebook/esm2_t0_none_UR50D", "esm2_t0_none_UR50D"),
    ] {
        let job = job().on_cpu().set(key, value);
        job.run_into("results").expect(2).says([message, "hint: "]);
        assert!(!job.at("results").exists(), "{key}");
    }
    job().on_cpu().set("model.precision", "fp16").run_into("results").expect(2).says(["fp16", "hint: "]);
    job()
        .simulating("fault=bang")
        .run_into("results")
        .expect(2)
        .says(["unknown fault `bang`", "VIRNUCPRO_SIM"]);
}

#[test]
fn a_job_file_that_is_absent_or_unreadable_is_named() {
    let job = job();
    for command in ["run", "plan"] {
        run(program([command, "absent.toml"]).current_dir(job.path())).expect(2).says(["absent.toml"]);
        run(program([command, "."]).current_dir(job.path())).expect(2).says(["`.`"]);
    }
    run(&mut program(["run"])).expect(2).says(["<JOB>"]);
    run(&mut program(["rnu", "job.toml"])).expect(2);
}

#[test]
fn weights_that_are_damaged_or_foreign_are_named() {
    let job = job().on_cpu();
    job.write("model/config.json", "{}");
    job.write("model/model.safetensors", "not weights");
    let source = job.at("model");
    let job = job.set("model.source", source.display());
    job.run_into("results").expect(2).says(["config.json", "hint: model.source names the weights"]);
    let tiny = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny");
    std::fs::copy(tiny.join("config.json"), job.at("model/config.json")).unwrap();
    job.run_into("results").expect(2).says(["model.safetensors"]);
    // Cut short: the header promises more than there is.
    let weights = std::fs::read(tiny.join("model.safetensors")).unwrap();
    std::fs::write(job.at("model/model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    job.run_into("results").expect(2).says(["model.safetensors"]);
}
