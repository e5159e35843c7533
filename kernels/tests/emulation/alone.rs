//! Tests that call CUDA themselves: libraries and scripts are a process's own, so each test gets one.

use std::process::Command;

use crate::emulation::EmulatedCuda;

const CHILD: &str = "VIRNUCPRO_EMULATED_CUDA_TEST";

/// Runs the test of that name, whose first line this is, in a process with an emulated CUDA: true in that process.
///
/// False, and the test is over, in the process that was started first.
#[track_caller]
pub(crate) fn alone(test: &str, script: &str) -> bool {
    if std::env::var_os(CHILD).is_some_and(|child| child == test) {
        return true;
    }
    let Some(cuda) = EmulatedCuda::built() else { return false };
    let mut command = Command::new(std::env::current_exe().expect("the test's own path"));
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, test);
    cuda.lend(&mut command, script);
    let output = command.output().expect("the test started again");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let passed = output.status.success() && text[0].contains("1 passed");
    assert!(passed, "{test} with `{script}`: {}\n{}{}", output.status, text[0], text[1]);
    false
}
