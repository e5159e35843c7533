//! Tests that call CUDA themselves: libraries and scripts are a process's own, so each test gets one.

use std::process::{Command, Output};

use crate::emulation::EmulatedCuda;

const CHILD: &str = "VIRNUCPRO_EMULATED_CUDA_TEST";

/// Which process this is, and what became of the other.
pub(crate) enum Process {
    /// The one with an emulated CUDA.
    Own,
    /// The one that was started first; the other has ended so, with standard output and error as text.
    First(Output, String),
    /// There is no other: no C++ compiler was found.
    Skipped,
}

/// Runs the test of that name, whose first line this is, in a process with an emulated CUDA.
pub(crate) fn started(test: &str, script: &str) -> Process {
    if std::env::var_os(CHILD).is_some_and(|child| child == test) {
        return Process::Own;
    }
    let Some(cuda) = EmulatedCuda::built() else { return Process::Skipped };
    let mut command = Command::new(std::env::current_exe().expect("the test's own path"));
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, test);
    cuda.lend(&mut command, script);
    let output = command.output().expect("the test started again");
    let text =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat();
    Process::First(output, text)
}

/// As [`started`], for a test that passes in that process: true there, false where the test is over.
#[track_caller]
pub(crate) fn alone(test: &str, script: &str) -> bool {
    match started(test, script) {
        Process::Own => true,
        Process::Skipped => false,
        Process::First(output, text) => {
            let passed = output.status.success() && text.contains("1 passed");
            assert!(passed, "{test} with `{script}`: {}\n{text}", output.status);
            false
        }
    }
}
