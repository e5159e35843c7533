//! CUDA on the CPU: builds the libraries of this folder once and lends them to processes under test.
//!
//! `cuda.cpp`, `cublaslt.cpp` and `nvrtc.cpp` become libraries with the names of the real ones. A process that
//! finds them on its library path ([`EmulatedCuda::lend`]) takes them for CUDA; what its GPUs are like and what befalls
//! them, `script.hpp` describes. A test that calls CUDA itself does so in a process of its own (`alone.rs`).

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Libraries that answer as CUDA does, built for this machine.
pub(crate) struct EmulatedCuda {
    folder: PathBuf,
}

impl EmulatedCuda {
    /// `None`, with a line on standard error, where no suitable C++ compiler is found.
    pub(crate) fn built() -> Option<&'static Self> {
        static BUILT: OnceLock<Option<EmulatedCuda>> = OnceLock::new();
        BUILT.get_or_init(build).as_ref()
    }

    /// Makes the command's process find these libraries and read `script`.
    ///
    /// All GPUs of the script are visible to it, unless the variable for that is set afterwards. CUDA graphs are off,
    /// unless it is set so: measuring whether they are faster takes emulated GPUs long. The fake management
    /// library with the same GPUs is lent apart (`nvml.rs`).
    pub(crate) fn lend(&self, command: &mut Command, script: &str) {
        let mut path = OsString::from(&self.folder);
        if let Some(before) = std::env::var_os("LD_LIBRARY_PATH") {
            path.push(":");
            path.push(before);
        }
        command.env("LD_LIBRARY_PATH", path).env("VIRNUCPRO_EMULATED_CUDA", script);
        command.env_remove("CUDA_VISIBLE_DEVICES").env("VIRNUCPRO_GRAPHS", "off");
    }
}

/// The folder of the sources, from whichever crate the tests are of.
fn sources() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let here = ["tests/emulation", "kernels/tests/emulation"].map(|folder| root.join(folder));
    here.into_iter().find(|folder| folder.join("cuda.cpp").exists()).expect("kernels/tests/emulation")
}

fn build() -> Option<EmulatedCuda> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let version = Command::new(&compiler).arg("--version").output().ok().map(|output| output.stdout);
    let sources = sources();
    let mut hash = DefaultHasher::new();
    (&compiler, &version).hash(&mut hash);
    // The libraries use what this processor can do.
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    processor.lines().find(|line| line.starts_with("flags")).hash(&mut hash);
    for file in ["script.hpp", "device.hpp", "cuda.cpp", "cublaslt.cpp", "nvrtc.cpp"] {
        std::fs::read(sources.join(file)).expect("a source of the emulated CUDA").hash(&mut hash);
    }
    let all = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = all.join(format!("emulated-cuda-{:016x}", hash.finish()));
    if folder.join("libcublasLt.so.13").exists() {
        return Some(EmulatedCuda { folder });
    }
    let building =
        tempfile::Builder::new().prefix("emulated-cuda-").tempdir_in(all).expect("a folder to build in");
    if version.is_none() || !compiles(&compiler, building.path()) {
        // Past the test harness, which would hide it: a skipped check is never silent.
        let line = format!(
            "skipped: tests with an emulated CUDA (`{compiler}` does not compile C++17 with _Float16; Debian: apt-get install g++; or set CXX)\n"
        );
        let _ = std::io::stderr().write_all(line.as_bytes());
        return None;
    }
    let built = building.path();
    std::fs::copy(sources.join("device.hpp"), built.join("device.hpp")).expect("a copy of device.hpp");
    library(&compiler, &sources.join("cuda.cpp"), built, "libcuda.so.1", &["-O1", "-pthread"]);
    library(
        &compiler,
        &sources.join("nvrtc.cpp"),
        built,
        "libnvrtc.so.13",
        &["-O1", &format!("-DCOMPILER=\"{compiler}\"")],
    );
    let blas = ["-O3", "-march=native", "-Wl,-rpath,$ORIGIN", "-L", ".", "-l:libcuda.so.1"];
    library(&compiler, &sources.join("cublaslt.cpp"), built, "libcublasLt.so.13", &blas);
    // Another test may have been faster.
    if std::fs::rename(built, &folder).is_ok() {
        let _ = building.keep();
    }
    assert!(folder.join("libcublasLt.so.13").exists(), "{} cannot be created", folder.display());
    Some(EmulatedCuda { folder })
}

fn compiles(compiler: &str, folder: &Path) -> bool {
    let probe = "#include <ucontext.h>\n_Float16 x = 1;\nint main() { return int(x) - 1; }\n";
    std::fs::write(folder.join("probe.cpp"), probe).is_ok()
        && Command::new(compiler)
            .args(["-std=c++17", "-march=native", "-o", "probe", "probe.cpp"])
            .current_dir(folder)
            .output()
            .is_ok_and(|output| output.status.success())
}

/// Builds a library, and a link to it by the name that is looked for first.
fn library(compiler: &str, source: &Path, folder: &Path, name: &str, options: &[&str]) {
    let mut command = Command::new(compiler);
    command.args(["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden"]);
    command.arg(source).arg(format!("-Wl,-soname,{name}")).args(["-o", name]).args(options).arg("-ldl");
    let output = command.current_dir(folder).output().expect("a C++ compiler");
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    let short = name.rsplit_once('.').map_or(name, |(short, _)| short);
    std::os::unix::fs::symlink(name, folder.join(short)).expect("a link to a library");
}
