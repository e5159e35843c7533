//! NVIDIA GPUs as an operator meets them: what `doctor` says of them, with a management library of our own.

#[path = "../fake_nvml/fake.rs"]
pub(crate) mod fake;

use std::path::Path;

use fake::{FakeNvml, TWO_GPUS};
use kernels::nvml::Library;
use serde_json::Value;

use crate::process::{program, run};

/// What `doctor` prints where this is the driver's library.
fn doctor(library: &Path, arguments: &[&str]) -> String {
    let mut command = program(["doctor"].iter().chain(arguments));
    command.env(Library::VARIABLE, library).env_remove("CUDA_VISIBLE_DEVICES");
    run(&mut command).expect(0).stdout
}

#[track_caller]
fn assert_says(text: &str, wanted: &[&str]) {
    for words in wanted {
        assert!(text.contains(words), "`{words}` is not in:\n{text}");
    }
}

#[test]
fn doctor_shows_each_gpu_and_what_it_does_not_tell() {
    let fake = FakeNvml::new(TWO_GPUS);
    let told = doctor(&fake.path(), &[]);
    assert_says(
        &told,
        &[
            "nvidia     driver 580.82.07, CUDA 13.0, 2 GPUs\n",
            "gpu 0      NVIDIA H100 80GB HBM3, compute capability 9.0 (fp32, fp16, bf16), GPU-8f6d5a1e-",
            "PCI 00000000:3B:00.0, MIG off\n",
            "memory 65.2 of 74.5 GiB in use (92 % taken), busy 87 %, memory busy 42 %, temperature 61 °C, 412 of 700 W",
            "clock 1980 MHz, memory clock 2619 MHz, slowed by power limit + temperature, PCIe in 2500 MB/s, out 120 MB/s",
            "ECC on (0 errors uncorrected since the driver was loaded), processes 2\n",
            "gpu 1      Tesla T4, compute capability 7.5 (fp32, fp16), GPU-00000000-",
            "MIG N/A\n",
            "memory N/A of N/A GiB in use (N/A taken), busy N/A, memory busy N/A, temperature N/A, N/A of N/A W",
            "slowed by N/A, PCIe in N/A, out N/A, ECC N/A",
            "cuda       ",
            "libcublasLt",
        ],
    );
    let json: Value = serde_json::from_str(&doctor(&fake.path(), &["--json"])).unwrap();
    let gpus = &json["nvidia"]["Ok"]["gpus"];
    assert_eq!(gpus[0]["Ok"]["sample"]["power_w"], 412.5);
    assert_eq!(gpus[0]["Ok"]["identity"]["pci_bus_id"], "00000000:3B:00.0");
    assert!(gpus[1]["Ok"]["sample"]["power_w"].is_null());
}

#[test]
fn doctor_names_a_lost_gpu_and_shows_the_others() {
    let fake = FakeNvml::new(&format!("{TWO_GPUS}\n0 !15"));
    let told = doctor(&fake.path(), &[]);
    assert_says(
        &told,
        &["gpu 0      GPU `0` is lost: it has fallen off the bus", "dmesg", "gpu 1      Tesla T4"],
    );
}

#[test]
fn doctor_says_what_is_missing_and_how_to_get_it() {
    let missing = doctor(Path::new("/nowhere/libnvidia-ml.so.1"), &[]);
    assert_says(
        &missing,
        &["the NVIDIA management library (/nowhere/libnvidia-ml.so.1) is not found", "Ubuntu: libn"],
    );
    let cases = [
        ("init !9", "modprobe nvidia"),
        ("init !18", "different versions, as after an update: restart the machine"),
        ("driver 470.57.02\ncuda 11040\ncount 1", "driver 470.57.02, CUDA 11.4, 1 GPU; too old for CUDA 12"),
        ("count 0", "driver N/A, CUDA N/A, no GPU visible: start a container with `--gpus all`"),
    ];
    for (script, words) in cases {
        assert_says(&doctor(&FakeNvml::new(script).path(), &[]), &[words]);
    }
}

#[test]
fn doctor_reports_which_gpus_are_hidden() {
    let fake = FakeNvml::new(TWO_GPUS);
    let mut command = program(["doctor"]);
    command.env(Library::VARIABLE, fake.path()).env("CUDA_VISIBLE_DEVICES", "1");
    assert_says(
        &run(&mut command).expect(0).stdout,
        &["CUDA_VISIBLE_DEVICES=1 hides the other GPUs from CUDA"],
    );
}
