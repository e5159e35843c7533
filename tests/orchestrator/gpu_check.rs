//! `gpu-check`, as far as it goes without a GPU: on the CPU, on an emulated CUDA, and where neither is.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use kernels::nvml::Library;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::emulation::EmulatedCuda;
use crate::nvidia::fake::FakeNvml;
use crate::process::{Finished, Running, program, run};

/// A GPU so small that a batch of its budget, which an engine computes when it starts, takes little time.
const SMALL_GPU: &str = "memory=186M";

fn gpu_check(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = program(["gpu-check"].iter().chain(arguments));
    command.arg("--json").arg(folder.join("report.json")).current_dir(folder);
    command
        .env("VIRNUCPRO_CACHE", folder.join("cache"))
        .env_remove("GOLDEN_DIR")
        .env_remove("CUDA_VISIBLE_DEVICES");
    command
}

fn report(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("report.json")).unwrap()).unwrap()
}

/// Checks by name: verdict and detail.
fn findings(report: &Value) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let findings = report["findings"].as_array().unwrap().iter();
    findings
        .map(|finding| (text(&finding["what"]), text(&finding["verdict"]), text(&finding["detail"])))
        .collect()
}

#[track_caller]
fn verdict<'a>(findings: &'a [(String, String, String)], what: &str) -> (&'a str, &'a str) {
    let found = findings.iter().find(|(name, ..)| name == what);
    let (_, verdict, detail) = found.unwrap_or_else(|| panic!("`{what}` is not in {findings:#?}"));
    (verdict, detail)
}

#[test]
fn without_a_gpu_it_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = gpu_check(folder.path(), &[]);
    // Where no library lies.
    command.env("VIRNUCPRO_CUDA", folder.path()).env("LD_LIBRARY_PATH", folder.path());
    let told = run(&mut command);
    assert_eq!(told.code(), 2, "{}", told.stderr);
    assert_eq!(told.stdout, "");
    let told = told.says(["error: device `cuda:0` cannot be used", "hint: "]);
    assert!(!told.stderr.contains("panicked"), "{}", told.stderr);
    assert!(!folder.path().join("report.json").exists());
    run(&mut gpu_check(folder.path(), &["--device", "gpu:0"])).expect(2).says(["`gpu:0` is no GPU"]);
    for arguments in [["--sizes", "9M"], ["--lengths", "0"], ["--seconds", "none"], ["--tokens", "1"]] {
        run(&mut gpu_check(folder.path(), &arguments)).expect(2).says(["invalid value"]);
    }
}

#[test]
fn on_the_cpu_every_check_that_needs_no_gpu_passes() {
    let folder = tempfile::tempdir().unwrap();
    let scratch = folder.path().join("scratch");
    let arguments = [
        ["--device", "cpu"],
        ["--seconds", "0.1"],
        ["--soak-seconds", "0.1"],
        ["--tokens", "300"],
        ["--lengths", "51,uniprot"],
        ["--peers-out", "peers"],
        ["--scratch", scratch.to_str().unwrap()],
    ];
    let told = run(&mut gpu_check(folder.path(), arguments.as_flattened())).expect(0);
    assert!(told.stdout.starts_with("# gpu-check\n"), "{}", told.stdout);
    assert!(told.stdout.contains("| device | the CPU ("), "{}", told.stdout);
    assert!(told.stderr.contains("passed     golden tiny fp32:"), "{}", told.stderr);

    let report = report(folder.path());
    let findings = findings(&report);
    for (what, verdict, detail) in &findings {
        let needs_a_gpu = verdict == "skipped" && (detail == "needs a GPU" || detail.contains("fp32 only"));
        assert!(verdict == "passed" || needs_a_gpu, "{what}: {verdict}, {detail}");
    }
    for what in [
        "golden tiny fp32",
        "golden tiny fp32: packed = alone",
        "golden tiny fp32: nothing leaks between sequences",
        "golden tiny fp32: pooling None as on the CPU",
        "recovery: a worker killed in a run",
        "soak tiny fp32",
        "speed tiny: load",
        "speed tiny 51",
        "speed tiny uniprot",
    ] {
        assert_eq!(verdict(&findings, what).0, "passed", "{what}");
    }
    let cells = report["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 2);
    assert!(cells.iter().all(|cell| cell["tokens_per_s"].as_f64().unwrap() > 0.0));

    // What the comparison with others needs: weights, sequences, an embedding of each.
    let tiny = folder.path().join("peers/tiny");
    for lengths in ["51", "uniprot"] {
        let sequences =
            std::fs::read_to_string(tiny.join(format!("{lengths}.fasta"))).unwrap().matches('>').count();
        assert_eq!(
            std::fs::metadata(tiny.join(format!("{lengths}.f32"))).unwrap().len(),
            4 * 64 * sequences as u64
        );
        assert!(sequences >= 1, "{lengths}");
    }
    assert!(tiny.join("config.json").exists() && tiny.join("model.safetensors").exists());
    // Nothing else is left.
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0);
}

#[test]
fn an_interrupt_leaves_the_report() {
    for signal in [Signal::TERM, Signal::INT] {
        let folder = tempfile::tempdir().unwrap();
        let arguments =
            ["--device", "cpu", "--only", "soak,speed", "--soak-seconds", "400", "--tokens", "60"];
        let mut running = Running::start(&mut gpu_check(folder.path(), &arguments));
        // Written before the first step is over.
        running.wait_until("the report begins", |_| folder.path().join("report.json").exists());
        running.signal(signal);
        let told = running.finish().expect(130).says(["error: interrupted"]);
        assert!(told.stdout.contains("| soak | **not run** | interrupted"), "{}", told.stdout);
        assert!(told.stdout.contains("**Incomplete**"), "{}", told.stdout);
        let report = report(folder.path());
        let findings = findings(&report);
        assert_eq!(verdict(&findings, "soak").0, "not run");
        assert_eq!(verdict(&findings, "speed tiny 102"), ("not run", "interrupted before it began"));
        assert!(report["facts"].as_array().unwrap().iter().any(|fact| fact[0] == "took"), "{report}");
    }
}

#[test]
fn what_does_not_fit_into_the_time_is_not_run_and_no_pass() {
    let folder = tempfile::tempdir().unwrap();
    // Three cells of 2 s: the last does not fit however fast the machine is.
    let arguments =
        ["--device", "cpu", "--tokens", "60", "--seconds", "1.5", "--lengths", "20,30,40", "--within", "3.6"];
    let only = ["--only", "soak,speed"];
    let told = run(&mut gpu_check(folder.path(), &[&arguments[..], &only].concat())).expect(4);
    let told = told.says(["incomplete: ", "NOT RUN"]);
    assert!(told.elapsed < Duration::from_secs(30), "{:?}", told.elapsed);
    assert!(told.stdout.contains("**Incomplete**"), "{}", told.stdout);
    let report = report(folder.path());
    let findings = findings(&report);
    // 30 s of soak are not even begun; the speed table is, and is cut off.
    assert_eq!(verdict(&findings, "soak").0, "not run");
    assert!(verdict(&findings, "soak").1.starts_with("not begun"), "{findings:?}");
    assert_eq!(verdict(&findings, "speed tiny 40").0, "not run");
    for length in ["20", "30"] {
        assert!(["passed", "not run"].contains(&verdict(&findings, &format!("speed tiny {length}")).0));
    }
}

/// Runs steps on an emulated GPU, on short sequences: each of its threads is computed one after the other.
fn on_an_emulated_gpu(steps: &str) -> Option<Value> {
    let cuda = EmulatedCuda::built()?;
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        ["--sizes", "tiny"],
        ["--seconds", "0.8"],
        ["--soak-seconds", "0.1"],
        ["--tokens", "60"],
        ["--lengths", "51"],
        ["--product-size", "64"],
        ["--only", steps],
    ];
    let mut command = gpu_check(folder.path(), arguments.as_flattened());
    cuda.lend(&mut command, SMALL_GPU);
    if steps.contains("speed") {
        command.env("VIRNUCPRO_GRAPHS", "on");
    }
    let answers = "0.busy 93 40\n0.memory 186000000 86000000 100000000\n0.clock_sm 1755\n0.throttle 0x4";
    let nvml = FakeNvml::new(&format!("{}{answers}", crate::emulated_nvml::nvml_script(1, 186_000_000)));
    command.env(Library::VARIABLE, nvml.path());
    let told = run(&mut command);
    let report = report(folder.path());
    for (what, verdict, detail) in findings(&report) {
        // The engine's own tests look at its times.
        let passed = verdict == "passed" || what.ends_with("time by kind of kernel");
        assert!(passed, "{what}: {verdict}, {detail}\n{}", told.stderr);
    }
    assert!(told.stdout.contains("| device | Emulated GPU |"), "{}", told.stdout);
    Some(report)
}

#[test]
fn on_an_emulated_gpu_the_kernels_are_their_twins() {
    let Some(report) = on_an_emulated_gpu("kernels") else { return };
    let findings = findings(&report);
    assert_eq!(findings.len(), 25);
    verdict(&findings, "kernels: attention f16");
}

#[test]
fn on_an_emulated_gpu_embeddings_are_golden() {
    let Some(report) = on_an_emulated_gpu("golden") else { return };
    let findings = findings(&report);
    for what in [
        "golden tiny fp16",
        "golden tiny bf16: nothing leaks between sequences",
        "golden tiny fp16: repeated in fp32 on demand",
    ] {
        verdict(&findings, what);
    }
}

#[test]
fn an_emulated_gpu_is_soaked_and_timed() {
    let Some(report) = on_an_emulated_gpu("soak,speed") else { return };
    verdict(&findings(&report), "soak tiny fp16");
    let cell = &report["cells"][0];
    assert!(cell["tokens_per_s"].as_f64().unwrap() > 0.0, "{cell}");
    // As the management library tells.
    assert_eq!((&cell["busy_percent"], &cell["clock_mhz"]), (&json!(93.0), &json!(1755.0)), "{cell}");
    assert_eq!((&cell["memory_peak_bytes"], &cell["power_w"]), (&json!(86_000_000), &json!(null)), "{cell}");
    assert_eq!(cell["slowed_by"], json!(["power limit"]), "{cell}");
    let load = &report["loads"][0];
    assert!(load["product_peak_tflops"].as_f64().unwrap() > 0.0, "{report}");
    // As asked for: measuring takes an emulated GPU long.
    assert_eq!((&load["graphs"], &load["graph_ratio"]), (&json!(true), &json!(null)), "{load}");
}

/// What one part of the command says on an emulated GPU, in a folder of its own.
fn part_on_an_emulated_gpu(cuda: &EmulatedCuda, part: &str, script: &str) -> Finished {
    let folder = tempfile::tempdir().unwrap();
    let mut command = program(["gpu-check-part", part, "--sizes", "tiny"]);
    command.env("VIRNUCPRO_CACHE", folder.path().join("cache"));
    cuda.lend(&mut command, &format!("{SMALL_GPU};{script}"));
    run(&mut command)
}

#[track_caller]
fn assert_passed(told: Finished, what: &str) {
    let event: Value = serde_json::from_str(told.expect(0).stdout.trim()).unwrap();
    let finding = &event["finding"];
    assert_eq!((&finding["what"], &finding["verdict"]), (&what.into(), &"passed".into()), "{finding}");
}

#[test]
fn a_batch_beyond_an_emulated_gpus_memory_costs_nothing_but_itself() {
    let Some(cuda) = EmulatedCuda::built() else { return };
    let told = part_on_an_emulated_gpu(cuda, "out-of-memory", "");
    assert_passed(told, "recovery: a batch beyond the device's memory");
}

#[test]
fn an_engine_notices_a_kernel_that_wrote_out_of_bounds() {
    let Some(cuda) = EmulatedCuda::built() else { return };
    // Really done, it ends this process as any other: the emulated GPU's memory is the process's own.
    let trace = tempfile::NamedTempFile::new().unwrap();
    let died = part_on_an_emulated_gpu(cuda, "sticky", &format!("trace={}", trace.path().display()));
    assert!(died.was_ended_by_a_signal() && died.stderr.contains("gelu_f32 touches"), "{}", died.stderr);
    // So the same launch, the last one, fails as on a GPU instead.
    let trace = std::fs::read_to_string(trace.path()).unwrap();
    let launches = trace.lines().filter(|line| line.ends_with(" cuLaunchKernel")).count();
    let told = part_on_an_emulated_gpu(cuda, "sticky", &format!("fail=launch@{launches}:illegal_address"));
    assert_passed(told, "recovery: a kernel that writes out of bounds");
    assert_passed(part_on_an_emulated_gpu(cuda, "fresh", ""), "recovery: the next process after that");
}

#[test]
fn a_run_on_an_emulated_gpu_survives_its_worker() {
    let Some(cuda) = EmulatedCuda::built() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut command = program(["gpu-check-part", "killed-worker", "--tokens", "60", "--scratch"]);
    command.arg(folder.path()).env("VIRNUCPRO_CACHE", folder.path().join("cache"));
    // The demo model takes more than the tiny one.
    cuda.lend(&mut command, "memory=194M");
    let nvml = FakeNvml::new(&crate::emulated_nvml::nvml_script(1, 1 << 30));
    command.env(Library::VARIABLE, nvml.path());
    let mut running = Running::start(&mut command);
    let parts = folder.path().join("kill/killed/embeddings");
    // An early end is told by what it says.
    while !parts.exists() && !running.has_ended() {
        std::thread::sleep(Duration::from_millis(2));
    }
    // In exclusive compute mode a context of its own would keep the worker from the GPU.
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", running.id())).unwrap_or_default();
    assert!(!maps.contains("libcuda"), "{maps}");
    assert_passed(running.finish(), "recovery: a worker killed in a run");
    let manifest = std::fs::read(folder.path().join("kill/killed/run.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&manifest).unwrap()["devices"], json!(["cuda:0"]));
}

#[test]
fn a_process_that_dies_is_a_failed_check_and_stops_no_other() {
    let Some(cuda) = EmulatedCuda::built() else { return };
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        ["--sizes", "tiny"],
        ["--tokens", "60"],
        ["--lengths", "51"],
        ["--seconds", "0.1"],
        ["--product-size", "64"],
        ["--only", "golden,speed"],
    ];
    let mut command = gpu_check(folder.path(), arguments.as_flattened());
    // The first process that loads a module, that of the golden step, dies of it.
    let once = folder.path().join("once");
    cuda.lend(&mut command, &format!("{SMALL_GPU};abort=load@1:once={}", once.display()));
    let told = run(&mut command).expect(1);
    let report = report(folder.path());
    let findings = findings(&report);
    let (verdict_of_golden, detail) = verdict(&findings, "golden");
    assert_eq!(verdict_of_golden, "failed");
    assert!(detail.contains("signal: 6"), "{detail}");
    assert_eq!(verdict(&findings, "speed tiny 51").0, "passed");
    assert!(told.stdout.contains("| golden | **failed** |"), "{}", told.stdout);
}
