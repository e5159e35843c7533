//! Compiles every CUDA source for real architectures, which needs no GPU and no driver.
//!
//! A real architecture makes NVRTC run the assembler, so that a wrong instruction, too much shared
//! memory or registers spilled to memory show here. `NVRTC_LIBRARY` names the library; `.ci/nvrtc`
//! installs one. This says nothing of what the kernels compute: their twins do (`cuda_twins.rs`),
//! and the checks on a GPU.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::Write;
use std::path::{Path, PathBuf};

use kernels::cuda::{COMPILE_OPTIONS, Kernel, Launch, Number, Source};
use libloading::Library;

/// The three that continuous integration promises, and the oldest that CUDA 13 compiles for.
const ARCHITECTURES: [&str; 4] = ["sm_75", "sm_80", "sm_90a", "sm_100"];

/// Bytes of registers that a kernel may store to memory and read back.
fn spill_bytes_max(kernel: Kernel) -> u32 {
    match kernel {
        // A few numbers that the loop over keys does not change. Without them a multiprocessor would have room for two
        // thread blocks in place of three.
        Kernel::Attention { number, head_width: 64 }
        | Kernel::AttentionRotated { number, head_width: 64 }
            if number != Number::F32 =>
        {
            40
        }
        _ => 0,
    }
}

/// Static shared memory of a block, and registers of a multiprocessor, on every architecture.
const SHARED_BYTES_MAX: u32 = 48 << 10;
const REGISTERS: u32 = 64 << 10;

/// What the assembler says of one kernel.
#[derive(Debug, Default, PartialEq)]
struct Usage {
    registers: u32,
    stack_bytes: u32,
    spill_store_bytes: u32,
    spill_load_bytes: u32,
    shared_bytes: u32,
}

/// NVRTC, loaded from the path in `NVRTC_LIBRARY`.
struct Nvrtc {
    library: Library,
    /// Kept open: NVRTC asks for its built-in declarations by bare name, which succeeds if they are
    /// loaded already, wherever they lie.
    _builtins: Vec<Library>,
}

impl Nvrtc {
    /// `None`, with a line on standard error, when no library is named.
    fn load() -> Option<Self> {
        let Some(path) = std::env::var_os("NVRTC_LIBRARY").filter(|path| !path.is_empty()) else {
            // Past the test harness, which would hide it: a skipped check is never silent.
            let line = b"skipped: compiling the CUDA sources (set NVRTC_LIBRARY to libnvrtc.so; \
                `source .ci/nvrtc` installs it and does so)\n";
            std::io::stderr().write_all(line).unwrap();
            return None;
        };
        let path = PathBuf::from(path);
        let mut builtins = Vec::new();
        for entry in std::fs::read_dir(path.parent().unwrap_or(Path::new("."))).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("libnvrtc-builtins.so") {
                // SAFETY: NVIDIA's library of declarations; loading it runs nothing of ours.
                builtins.push(unsafe { Library::new(entry.path()) }.unwrap());
            }
        }
        // SAFETY: as above, for the compiler itself.
        let library = unsafe { Library::new(&path) }
            .unwrap_or_else(|error| panic!("failed to load NVRTC_LIBRARY `{}`: {error}", path.display()));
        Some(Self { library, _builtins: builtins })
    }

    /// Calls `function` with arguments given as a function type.
    fn symbol<T>(&self, name: &str) -> libloading::Symbol<'_, T> {
        // SAFETY: the callers' types are those of nvrtc.h, the same since CUDA 8 (cubin: 11.1).
        unsafe { self.library.get(name.as_bytes()) }.unwrap()
    }

    /// Compiles `text`; the compiler's log if it succeeds.
    fn compile(&self, text: &str, file: &str, architecture: &str) -> Result<String, String> {
        type Program = *mut c_void;
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
        type Text = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
        type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;

        let source = CString::new(text).unwrap();
        let name = CString::new(file).unwrap();
        let mut options = vec![
            CString::new(format!("--gpu-architecture={architecture}")).unwrap(),
            c"--ptxas-options=-v".to_owned(),
        ];
        options.extend(COMPILE_OPTIONS.map(|option| CString::new(option).unwrap()));
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let no_headers = std::ptr::null();
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: strings end in NUL and outlive the calls; the log's memory has the size asked for.
        unsafe {
            let created = self.symbol::<Create>("nvrtcCreateProgram")(
                &mut program,
                source.as_ptr(),
                name.as_ptr(),
                0,
                no_headers,
                no_headers,
            );
            assert_eq!(created, 0, "nvrtcCreateProgram");
            let compiled = self.symbol::<Compile>("nvrtcCompileProgram")(
                program,
                options.len() as c_int,
                options.as_ptr(),
            );
            let mut size = 0;
            assert_eq!(self.symbol::<Size>("nvrtcGetProgramLogSize")(program, &mut size), 0);
            let mut log = vec![0u8; size.max(1)];
            assert_eq!(self.symbol::<Text>("nvrtcGetProgramLog")(program, log.as_mut_ptr().cast()), 0);
            let log = CStr::from_bytes_until_nul(&log).unwrap().to_string_lossy().into_owned();
            let mut code_bytes = 0;
            if compiled == 0 {
                assert_eq!(self.symbol::<Size>("nvrtcGetCUBINSize")(program, &mut code_bytes), 0);
            }
            self.symbol::<Destroy>("nvrtcDestroyProgram")(&mut program);
            if compiled == 0 && code_bytes > 0 { Ok(log) } else { Err(log) }
        }
    }
}

/// Reads the assembler's remarks: usage by kernel.
fn usages(log: &str) -> BTreeMap<String, Usage> {
    /// The number before `unit`.
    fn number(line: &str, unit: &str) -> Option<u32> {
        line[..line.find(unit)?].rsplit([' ', ',']).find(|word| !word.is_empty())?.parse().ok()
    }
    let mut usages = BTreeMap::new();
    let mut current = String::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            current = rest.split('\'').next().unwrap().to_owned();
            usages.insert(current.clone(), Usage::default());
        }
        let Some(usage) = usages.get_mut(&current) else { continue };
        if let Some(stack) = number(line, " bytes stack frame") {
            usage.stack_bytes = stack;
            usage.spill_store_bytes = number(line, " bytes spill stores").unwrap();
            usage.spill_load_bytes = number(line, " bytes spill loads").unwrap();
        }
        if let Some(registers) = number(line, " registers") {
            usage.registers = registers;
            usage.shared_bytes = number(line, " bytes smem").unwrap_or(0);
        }
    }
    usages
}

/// Threads that the kernel is launched with at most.
fn threads(kernel: Kernel) -> u32 {
    let launch = match kernel {
        Kernel::Embed { .. } | Kernel::Gather(_) | Kernel::RotateKeys { .. } => Launch::per_tile(1),
        Kernel::LayerNorm { .. } | Kernel::LayerNormWide { .. } => Launch::layer_norm(1),
        Kernel::Attention { number, .. } | Kernel::AttentionRotated { number, .. } => {
            Launch::attention(number, 1, 1)
        }
        Kernel::Gelu(_) | Kernel::Convert { .. } => Launch::per_number(1),
        Kernel::Bias(_) | Kernel::BiasGelu(_) | Kernel::BiasResidual { .. } => Launch::per_row(1, 1 << 20),
        Kernel::Pool(_) => Launch::pool(1, 1),
    };
    launch.block.iter().product()
}

#[test]
fn every_source_compiles_for_every_architecture_without_spills() {
    let Some(nvrtc) = Nvrtc::load() else { return };
    let mut table = String::new();
    let mut wrong = Vec::new();
    for source in Source::ALL {
        let kernels: BTreeMap<String, Kernel> = Kernel::all()
            .into_iter()
            .filter(|kernel| kernel.source() == source)
            .map(|kernel| (kernel.name(), kernel))
            .collect();
        // Attention takes the compiler half a minute for each.
        let logs = std::thread::scope(|scope| {
            let nvrtc = &nvrtc;
            let compile = |architecture| nvrtc.compile(&source.text(None), source.file(), architecture);
            ARCHITECTURES
                .map(|architecture| scope.spawn(move || compile(architecture)))
                .map(|compiling| compiling.join().unwrap())
        });
        for (architecture, log) in ARCHITECTURES.into_iter().zip(logs) {
            let log = log.unwrap_or_else(|log| panic!("{} for {architecture}:\n{log}", source.file()));
            for line in log.lines().filter(|line| line.contains("warning")) {
                wrong.push(format!("{architecture}: {line}"));
            }
            let usages = usages(&log);
            assert!(
                usages.keys().eq(kernels.keys()),
                "{} defines {:?}, but the list has {:?}",
                source.file(),
                usages.keys(),
                kernels.keys()
            );
            for (name, usage) in usages {
                let spilled = usage.spill_store_bytes.max(usage.spill_load_bytes).max(usage.stack_bytes);
                if spilled > spill_bytes_max(kernels[&name]) {
                    wrong.push(format!("{name} spills for {architecture}: {usage:?}"));
                }
                // Registers are handed out to warps in eights.
                let registers = usage.registers.next_multiple_of(8) * threads(kernels[&name]);
                if usage.registers == 0 || registers > REGISTERS || usage.shared_bytes > SHARED_BYTES_MAX {
                    wrong.push(format!("{name} cannot be launched on {architecture}: {usage:?}"));
                }
                table.push_str(&format!(
                    "{name:24} {architecture:7} {:4} registers {:6} bytes shared {:3} spilled\n",
                    usage.registers, usage.shared_bytes, spilled
                ));
            }
        }
    }
    print!("{table}");
    assert!(wrong.is_empty(), "{}\n{table}", wrong.join("\n"));
}

#[test]
fn attention_compiles_for_one_head_width_alone() {
    let Some(nvrtc) = Nvrtc::load() else { return };
    let log = nvrtc.compile(&Source::Attention.text(Some(24)), "attention.cu", "sm_80").unwrap();
    let names: Vec<String> = usages(&log).into_keys().collect();
    let mut expected: Vec<String> = Kernel::all()
        .into_iter()
        .filter(|kernel| kernel.source() == Source::Attention && kernel.name().ends_with("_24"))
        .map(Kernel::name)
        .collect();
    expected.sort();
    assert_eq!(expected.len(), 7);
    assert_eq!(names, expected);
}

#[test]
fn a_wrong_instruction_is_found() {
    let Some(nvrtc) = Nvrtc::load() else { return };
    let text = Source::Embed.text(None).replace("cvt.rn.f16.f32", "cvt.rn.f16.f31");
    let log = nvrtc.compile(&text, "embed.cu", "sm_90a").unwrap_err();
    assert!(log.contains("f31"), "{log}");
}

#[test]
fn the_assemblers_remarks_are_read() {
    let log = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'pool_f32' for 'sm_90a'
ptxas info    : Function properties for pool_f32
    24 bytes stack frame, 20 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 4096 bytes smem
ptxas info    : Compile time = 21.134 ms
ptxas info    : Compiling entry function 'gather_f32' for 'sm_90a'
ptxas info    : Function properties for gather_f32
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 30 registers, used 0 barriers
";
    let usages = usages(log);
    let expected = Usage {
        registers: 32,
        stack_bytes: 24,
        spill_store_bytes: 20,
        spill_load_bytes: 16,
        shared_bytes: 4096,
    };
    assert_eq!(usages["pool_f32"], expected);
    assert_eq!(usages["gather_f32"], Usage { registers: 30, ..Usage::default() });
}
