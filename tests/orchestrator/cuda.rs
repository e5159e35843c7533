//! The product on NVIDIA GPUs, which are emulated: the real engine and host code on libraries of our own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use kernels::nvml::Library;

use crate::emulated_nvml as nvml;
use crate::emulation::EmulatedCuda;
use crate::job::JobFolder;
use crate::nvidia::fake::FakeNvml;
use crate::outcome::Outcome;
use crate::process::{Finished, Running, program, run, wait_until_gone};
use crate::proteins::fasta;

/// Bytes of each emulated GPU: few tokens, so that an engine starts quickly.
const MEMORY: &str = "194M";

/// A machine with GPUs.
struct GpuMachine {
    cuda: &'static EmulatedCuda,
    nvml: FakeNvml,
    gpus: usize,
}

/// Kernels are compiled and products timed once for all these tests, and not into the tester's own cache.
fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulated-cuda-cache")
}

impl GpuMachine {
    /// `None` where no emulation can be built; a line on standard error says so.
    fn with(gpus: usize) -> Option<Self> {
        let machine = Self::cold(gpus)?;
        warm_up(&machine);
        Some(machine)
    }

    fn cold(gpus: usize) -> Option<Self> {
        let cuda = EmulatedCuda::built()?;
        // More than CUDA says: a real one takes some for itself before it tells.
        let nvml = FakeNvml::new(&nvml::nvml_script(gpus, 1 << 30));
        Some(Self { cuda, nvml, gpus })
    }

    /// Makes a command's process find the GPUs, with what befalls them.
    fn lend(&self, command: &mut Command, befalls: &str) {
        self.cuda.lend(command, &format!("devices={};memory={MEMORY};{befalls}", self.gpus));
        command.env(Library::VARIABLE, self.nvml.path()).env("VIRNUCPRO_CACHE", cache());
    }

    /// What an undisturbed run leaves behind, on one GPU: the same as on any number.
    fn undisturbed(&self) -> &'static Outcome {
        static UNDISTURBED: OnceLock<Outcome> = OnceLock::new();
        UNDISTURBED.get_or_init(|| self.done(&job(r#"["cuda:0"]"#), "results", ""))
    }

    fn start(&self, job: &JobFolder, name: &str, befalls: &str) -> Running {
        let mut command = job.command_into(name);
        self.lend(&mut command, befalls);
        Running::start(&mut command)
    }

    fn run(&self, job: &JobFolder, name: &str, befalls: &str) -> Finished {
        self.start(job, name, befalls).finish()
    }

    #[track_caller]
    fn done(&self, job: &JobFolder, name: &str, befalls: &str) -> Outcome {
        self.run(job, name, befalls).expect(0);
        job.outcome(name)
    }
}

/// Compiles the kernels and times the products for all tests, which takes the time of many runs.
fn warm_up(machine: &GpuMachine) {
    static WARM: OnceLock<()> = OnceLock::new();
    WARM.get_or_init(|| {
        for precision in ["fp32", "fp16"] {
            let job = JobFolder::new(">a\nMKV\n")
                .set("devices.use", r#"["cuda:0"]"#)
                .set("model.precision", precision);
            let mut command = job.command_into("results");
            machine.lend(&mut command, "");
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    });
}

fn job(devices: &str) -> JobFolder {
    JobFolder::new(fasta(21, 60, 5..120))
        .set("output.segment_sequences", 16)
        .set("devices.use", devices)
        .set("packing.token_budget", 600)
}

/// Largest difference of a value, and the least cosine of a row.
fn compare(one: &Outcome, other: &Outcome) -> (f32, f32) {
    let (one, other) = (one.rows(), other.rows());
    assert_eq!(one.len(), other.len());
    let (mut difference, mut cosine) = (0.0f32, 1.0f32);
    for (a, b) in one.iter().zip(&other) {
        assert_eq!((a.index, &a.id), (b.index, &b.id));
        let dot =
            |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
        let (x, y) = (&a.embedding, &b.embedding);
        difference = x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(difference, f32::max);
        cosine = cosine.min((dot(x, y) / (dot(x, x) * dot(y, y)).sqrt()) as f32);
    }
    (difference, cosine)
}

#[test]
fn values_do_not_depend_on_the_size_of_batches() {
    let Some(machine) = GpuMachine::with(1) else { return };
    for tokens in [200, 384] {
        let job = job(r#"["cuda:0"]"#).set("packing.token_budget", tokens);
        machine
            .done(&job, "results", "")
            .assert_same(machine.undisturbed(), &format!("batches of {tokens} tokens"));
    }
}

#[test]
fn graphs_change_no_byte_and_their_failure_costs_no_batch() {
    let Some(machine) = GpuMachine::with(1) else { return };
    for (graphs, befalls, gives_up) in [
        ("on", "order=late;fail=capture@4:illegal_state", true),
        ("on", "seed=3", false),
        // A graph that is stopped takes the worker with it, and only that.
        ("on", "fail=graph@2:illegal_address:once=ONCE", false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let once = folder.path().join("once");
        let befalls = befalls.replace("ONCE", once.to_str().unwrap());
        let job = job(r#"["cuda:0"]"#).set("packing.token_budget", 200);
        let mut command = job.command_into("results");
        machine.lend(&mut command, &befalls);
        command.env("VIRNUCPRO_GRAPHS", graphs);
        let told = run(&mut command).expect(0);
        let outcome = job.outcome("results");
        outcome.assert_same(machine.undisturbed(), &befalls);
        assert_eq!(outcome.restarts() > 0, once.exists(), "{befalls}");
        assert_eq!(told.stderr.contains("CUDA graphs are no longer used"), gives_up, "{}", told.stderr);
    }
}

#[test]
fn a_gpu_computes_what_the_cpu_does() {
    let Some(machine) = GpuMachine::with(1) else { return };
    let on_cpu = job(r#"["cpu"]"#).done_into("results");
    let fp32 = machine.done(&job(r#"["cuda:0"]"#).set("model.precision", "fp32"), "results", "");
    let (difference, _) = compare(&on_cpu, &fp32);
    assert!(difference < 1e-4, "fp32 differs by {difference}");
    let auto = machine.undisturbed();
    assert_eq!(auto.run["identity"]["model.precision"], "fp16");
    assert_eq!(auto.run["devices"][0], "cuda:0");
    let (difference, cosine) = compare(&on_cpu, auto);
    assert!(cosine > 0.9999 && difference > 0.0, "fp16: cosine {cosine}, difference {difference}");
}

#[test]
fn auto_takes_every_gpu_and_any_number_gives_the_same_bytes() {
    let Some(machine) = GpuMachine::with(2) else { return };
    let one = machine.undisturbed();
    let all = machine.done(&job(r#""auto""#), "results", "seed=5;order=late");
    assert_eq!(all.run["devices"], serde_json::json!(["cuda:0", "cuda:1"]));
    assert_eq!(all.restarts(), 0, "each worker has the GPU that it was given");
    all.assert_same(one, "auto on two GPUs");
    let by_name = job(&format!(r#"["cuda:{}", "cuda:{}"]"#, nvml::uuid(1), nvml::pci(0)));
    let by_name = machine.done(&by_name, "results", "order=early");
    assert_eq!(by_name.restarts(), 0);
    by_name.assert_same(one, "by UUID and PCI id");
}

#[test]
fn a_worker_sees_its_own_gpu_alone() {
    let Some(machine) = GpuMachine::with(3) else { return };
    let job = job(r#"["cuda:1"]"#);
    let trace = job.at("trace");
    let mut command = job.command_into("results");
    machine.lend(&mut command, &format!("trace={}", trace.display()));
    // Number 1 of those that are left visible is GPU 0 of the machine.
    command.env("CUDA_VISIBLE_DEVICES", "2,0");
    run(&mut command).expect(0);
    let text = std::fs::read_to_string(trace).unwrap();
    let devices: std::collections::BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .filter(|gpu| gpu.parse::<u32>().is_ok())
        .collect();
    assert_eq!(devices.into_iter().collect::<Vec<_>>(), ["0"], "{}", &text[..text.len().min(500)]);
}

#[test]
fn a_gpu_that_fails_in_mid_run_is_used_again_by_a_new_process() {
    let Some(machine) = GpuMachine::with(2) else { return };
    let devices = r#"["cuda:0", "cuda:1"]"#;
    for (fault, word) in [
        ("fail=launch@50:illegal_address:device=1", "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("fail=launch@50:ecc_uncorrectable:device=0", "CUDA_ERROR_ECC_UNCORRECTABLE"),
        ("exit=launch@50:70:device=0", "its device failed and can only be used again by a new process"),
        ("abort=matmul@40:device=1", "worker ended: signal: 6"),
        ("fail=context@1:out_of_memory:device=0", "another process took the GPU's memory"),
    ] {
        let job = job(devices);
        let once = job.at("once");
        let befalls = format!("{fault};once={}", once.display());
        let finished = machine.run(&job, "results", &befalls).expect(0);
        assert!(once.exists(), "{fault} did not happen");
        finished.says([word, "device failed, restarting"]);
        let outcome = job.outcome("results");
        outcome.assert_same(machine.undisturbed(), fault);
        assert_eq!(outcome.restarts(), 1, "{fault}");
        assert!(outcome.failed_records().is_empty(), "{fault}: {:?}", outcome.failed_records());
    }
}

#[test]
fn a_worker_that_leaves_a_broken_device_runs_no_exit_handlers() {
    let Some(machine) = GpuMachine::with(1) else { return };
    let job = job(r#"["cuda:0"]"#);
    let (trace, once) = (job.at("trace"), job.at("once"));
    let befalls = format!("fail=launch@50:illegal_address;once={};trace={}", once.display(), trace.display());
    machine.run(&job, "results", &befalls).expect(0);
    assert_eq!(job.outcome("results").restarts(), 1);
    let text = std::fs::read_to_string(trace).unwrap();
    let of = |what: &str| -> Vec<&str> {
        let lines = text.lines().filter(|line| line.ends_with(what));
        lines.filter_map(|line| line.split(' ').next()).collect()
    };
    let (workers, handled) = (of("cuDevicePrimaryCtxRetain"), of("exit handler"));
    assert_eq!(workers.len(), 2, "{workers:?}");
    assert!(!handled.contains(&workers[0]), "the one whose device failed: {workers:?} {handled:?}");
    assert!(handled.contains(&workers[1]), "the one that ended in good order: {workers:?} {handled:?}");
}

#[test]
fn a_worker_whose_orchestrator_is_gone_runs_no_exit_handlers() {
    let Some(machine) = GpuMachine::with(1) else { return };
    let job = job(r#"["cuda:0"]"#);
    let (trace, sign) = (job.at("trace"), job.at("sign"));
    let befalls = format!("slow=launch@50+:2;once={};trace={}", sign.display(), trace.display());
    let mut running = machine.start(&job, "results", &befalls);
    // In the middle of its work, which goes slowly from here on.
    running.wait_until("a worker computes", |_| sign.exists());
    let workers = running.workers();
    running.signal(rustix::process::Signal::KILL);
    wait_until_gone(&workers);
    let text = std::fs::read_to_string(trace).unwrap();
    assert!(text.contains("cuDevicePrimaryCtxRetain") && !text.contains("exit handler"), "{text}");
}

#[test]
fn a_killed_worker_costs_nothing_but_time() {
    let Some(machine) = GpuMachine::with(2) else { return };
    let devices = r#"["cuda:0", "cuda:1"]"#;
    let job = job(devices);
    let sign = job.at("sign");
    let mut running = machine.start(&job, "results", &format!("slow=launch@50+:2;once={}", sign.display()));
    // In the middle of its work, which goes slowly from here on.
    running.wait_until("a worker computes", |_| sign.exists());
    let workers = running.workers();
    assert_eq!(workers.len(), 2);
    workers.iter().for_each(|worker| worker.kill());
    running.finish().expect(0).says(["signal: 9"]);
    let outcome = job.outcome("results");
    outcome.assert_same(machine.undisturbed(), "kill -9 of both workers");
    assert_eq!(outcome.restarts(), 2);
}

#[test]
fn memory_that_runs_short_makes_batches_smaller() {
    let Some(machine) = GpuMachine::with(1) else { return };
    let undisturbed = machine.undisturbed();
    let job = job(r#"["cuda:0"]"#);
    let finished = machine.run(&job, "results", "fail=matmul@40:alloc_failed").expect(0);
    finished.says(["out of memory", "batch split"]);
    let outcome = job.outcome("results");
    let (difference, cosine) = compare(&outcome, undisturbed);
    assert!(cosine > 0.99999, "cosine {cosine}, difference {difference}");
    assert!(outcome.failed_records().is_empty());
}

#[test]
fn what_is_missing_is_named_before_anything_begins() {
    let Some(machine) = GpuMachine::with(1) else { return };
    let folder = tempfile::tempdir().unwrap();
    for (devices, job) in [("auto", job(r#""auto""#)), ("cuda:0", job(r#"["cuda:0"]"#))] {
        let mut command = job.command_into("results");
        // The driver's management library alone, as in a container without the toolkit.
        command.env(Library::VARIABLE, machine.nvml.path());
        command.env("HOME", folder.path()).env("PATH", folder.path());
        command.env_remove("LD_LIBRARY_PATH").env_remove("VIRTUAL_ENV");
        let finished = run(&mut command);
        // Where CUDA is installed, its driver sees other GPUs, or none.
        if finished.code() != 2 {
            eprintln!("skipped: `{devices}` without libraries (CUDA is installed here)");
            continue;
        }
        finished.says([
            "what it needs is missing",
            "pip install nvidia-cublas",
            "pip install nvidia-cuda-nvrtc",
            "cpu",
        ]);
        assert!(!job.at("results").join("embeddings").exists());
    }
}

#[test]
fn libraries_in_the_folder_that_was_named_are_used_before_all_others() {
    let Some(machine) = GpuMachine::with(1) else { return };
    let job = job(r#"["cuda:0"]"#);
    let mut command = job.command_into("results");
    machine.lend(&mut command, "");
    let lent =
        command.get_envs().find(|(name, _)| *name == "LD_LIBRARY_PATH").and_then(|(_, path)| path).unwrap();
    let folder = std::env::split_paths(lent).next().unwrap();
    command.env_remove("LD_LIBRARY_PATH").env("VIRNUCPRO_CUDA", &folder);
    run(&mut command).expect(0);
    job.outcome("results").assert_same(machine.undisturbed(), "libraries by VIRNUCPRO_CUDA");
    let mut doctor = program(["doctor"]);
    machine.lend(&mut doctor, "");
    doctor.env_remove("LD_LIBRARY_PATH").env("VIRNUCPRO_CUDA", &folder);
    let told = run(&mut doctor).expect(0).stdout;
    assert!(told.contains(&format!("found: libnvrtc 13.0, {}/libnvrtc.so.13", folder.display())), "{told}");
}

#[test]
fn a_gpu_that_is_not_there_is_answered_with_those_that_are() {
    let Some(machine) = GpuMachine::with(2) else { return };
    let finished = machine.run(&job(r#"["cuda:5"]"#), "results", "").expect(2);
    finished.says(["cuda:5: this machine has 2 GPUs visible: 0 = Emulated GPU (GPU-e0000000-"]);
    let twice = job(&format!(r#"["cuda:0", "cuda:{}"]"#, nvml::uuid(0)));
    machine.run(&twice, "results", "").expect(2).says(["are the same GPU"]);
    let auto = job(r#""auto""#);
    let mut hidden = auto.command_into("results");
    machine.lend(&mut hidden, "");
    hidden.env("CUDA_VISIBLE_DEVICES", "");
    run(&mut hidden).expect(0).says(["hides every GPU"]);
}

#[test]
fn an_auto_job_goes_on_in_the_precision_it_began_with() {
    let Some(machine) = GpuMachine::with(1) else { return };
    let job = job(r#""auto""#);
    let begun = machine.done(&job, "results", "");
    assert_eq!(begun.run["identity"]["model.precision"], "fp16");
    // The machine of the next session has no GPU.
    job.run_into("results").expect(2).says(["begun in fp16, which `cpu` (fp32", "--fresh"]);
    let cpu = job.set("output.directory", "\"other\"");
    cpu.done_into("other");
    let again = machine.done(&cpu, "other", "");
    assert_eq!(again.run["identity"]["model.precision"], "fp32");
}

#[test]
fn doctor_says_what_was_found_and_what_a_job_would_compute_in() {
    let Some(machine) = GpuMachine::with(2) else { return };
    let mut command = program(["doctor"]);
    machine.lend(&mut command, "");
    let told = run(&mut command).expect(0).stdout;
    for words in
        ["found: libcuda 13.0, /", "found: libcublasLt 13.", "found: libnvrtc 13.", "computes in fp16"]
    {
        assert!(told.contains(words), "`{words}` is not in:\n{told}");
    }
    let mut command = program(["doctor", "--json"]);
    machine.lend(&mut command, "");
    let json: serde_json::Value = serde_json::from_str(&run(&mut command).expect(0).stdout).unwrap();
    assert_eq!(json["cuda"][0]["name"], "libcuda");
    assert_eq!(json["nvidia"]["Ok"]["gpus"][1]["Ok"]["auto_precision"]["Ok"], "fp16");
}
