//! A management library for tests without a GPU: `nvml.c`, compiled here, scripted by a file beside it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A library in a folder of its own, so that tests do not share its state.
pub(crate) struct FakeNvml {
    folder: tempfile::TempDir,
}

impl FakeNvml {
    /// A driver that gives these answers; `nvml.c` says how they are written. The line `old` makes it one that
    /// lacks the functions which came with 510.
    pub(crate) fn new(script: &str) -> Self {
        let fake = Self { folder: tempfile::tempdir().unwrap() };
        let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
        compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]);
        compiler.args(script.lines().any(|line| line.trim() == "old").then_some("-DOLD"));
        compiler.arg("-o").arg(fake.path()).arg(source()).arg("-ldl");
        let told = compiler.output().expect("these tests need a C compiler: install gcc or clang, or set CC");
        assert!(told.status.success(), "{compiler:?}\n{}", String::from_utf8_lossy(&told.stderr));
        fake.answers(script);
        fake
    }

    /// Gives other answers from now on, all at once.
    pub(crate) fn answers(&self, script: &str) {
        let lines: Vec<&str> = script.lines().map(str::trim).collect();
        let (written, used) = (self.folder.path().join("next"), self.path().with_extension("so.script"));
        std::fs::write(&written, lines.join("\n") + "\n").unwrap();
        std::fs::rename(written, used).unwrap();
    }

    /// The library's file.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("libnvidia-ml.so")
    }
}

/// The source, from whichever crate the tests are of.
fn source() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = [root.to_owned(), root.join("..")].map(|root| root.join("tests/fake_nvml/nvml.c"));
    here.into_iter().find(|source| source.exists()).expect("tests/fake_nvml/nvml.c")
}

/// Two GPUs of different models; the second tells as little as a driver may.
pub(crate) const TWO_GPUS: &str = "driver 580.82.07
    cuda 13000
    count 2
    0.name NVIDIA H100 80GB HBM3
    0.uuid GPU-8f6d5a1e-0000-1111-2222-333344445555
    0.pci 00000000:3B:00.0
    0.capability 9.0
    0.mig 0
    0.busy 87 42
    0.memory 80000000000 70000000000 4000000000
    0.temperature 61
    0.power 412500
    0.limit_enforced 700000
    0.clock_sm 1980
    0.clock_memory 2619
    0.throttle 0x24
    0.pcie_received 2500000
    0.pcie_sent 120000
    0.ecc 1
    0.ecc_errors 7 0 1234 1
    0.processes 4711:60000000000 4712:-
    events 0
    1.name Tesla T4
    1.uuid GPU-00000000-aaaa-bbbb-cccc-dddddddddddd
    1.pci 00000000:AF:00.0
    1.capability 7.5";
