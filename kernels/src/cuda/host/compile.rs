//! The kernels, compiled for one GPU and loaded.

mod cache;

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaModule};
use cudarc::nvrtc::{Ptx, result, sys};

use super::device::Gpu;
use super::error::{CudaError, During};
use super::libraries::{self, CudaLibrary};
use crate::Precision;
use crate::cuda::{COMPILE_OPTIONS, Kernel, Number, Source};
use cache::Cache;

pub use cache::CacheWarning;
pub(super) use cache::folder;

/// Every kernel for one head width, loaded on one GPU.
#[derive(Debug)]
pub struct Modules {
    modules: HashMap<Source, Arc<CudaModule>>,
    warning: Option<CacheWarning>,
}

impl Modules {
    /// Compiles the kernels for `gpu`, or takes them from the cache on disk, and loads them.
    ///
    /// `numbers`: those that will be computed with; one that the GPU is too old for is refused.
    ///
    /// # Errors
    /// If a kernel does not compile or load, or a number type is not for this GPU.
    pub fn load(gpu: &Gpu, numbers: &[Number], head_width: usize) -> Result<Self, CudaError> {
        for number in numbers {
            gpu.require(match number {
                Number::F32 => Precision::Fp32,
                Number::F16 => Precision::Fp16,
                Number::Bf16 => Precision::Bf16,
            })?;
        }
        libraries::open()?;
        let compiler = Compiler {
            architecture: gpu.architecture().to_owned(),
            version: libraries::version(CudaLibrary::Nvrtc).unwrap_or_default(),
        };
        let cache = Cache::from_environment();
        let mut modules = HashMap::new();
        let mut warning = None;
        for source in Source::ALL {
            // The width is only asked for where it changes the text: the other sources are shared by all models.
            let text = source.text((source == Source::Attention).then_some(head_width));
            let key = compiler.key(&text);
            let load = |code: Vec<u8>| gpu.context().load_module(Ptx::from_binary(code));
            if let Some(code) = cache.as_ref().and_then(|cache| cache.get(&key)) {
                // Code that the driver refuses although its digest is right is of a driver since replaced.
                if let Ok(module) = load(code) {
                    modules.insert(source, module);
                    continue;
                }
            }
            let code = compiler.compile(source, &text)?;
            if let Some(Err(error)) = cache.as_ref().map(|cache| cache.put(&key, &code)) {
                warning = warning.or(Some(error));
            }
            modules.insert(source, load(code).during("loading a kernel")?);
        }
        Ok(Self { modules, warning })
    }

    /// An entry point.
    ///
    /// # Errors
    /// If it is none of those loaded: attention of another head width.
    pub fn function(&self, kernel: Kernel) -> Result<CudaFunction, CudaError> {
        let name = kernel.name();
        let Some(module) = self.modules.get(&kernel.source()) else {
            return Err(CudaError::NotLoaded { name });
        };
        match module.load_function(&name) {
            Err(error) if error.0 == cudarc::driver::sys::CUresult::CUDA_ERROR_NOT_FOUND => {
                Err(CudaError::NotLoaded { name })
            }
            found => found.during("finding a kernel"),
        }
    }

    /// Why the kernels could not be kept for the next start, where they could not: the start is slower, no more.
    pub fn warning(&self) -> Option<&CacheWarning> {
        self.warning.as_ref()
    }
}

/// The run-time compiler, set to one architecture.
struct Compiler {
    architecture: String,
    version: (u32, u32),
}

impl Compiler {
    fn options(&self) -> Vec<String> {
        let mut options = vec![format!("--gpu-architecture={}", self.architecture)];
        options.extend(COMPILE_OPTIONS.map(str::to_owned));
        options
    }

    /// All that the code depends on.
    fn key(&self, text: &str) -> String {
        let (major, minor) = self.version;
        let options = self.options();
        let parts = [text, &options.join(" "), &self.architecture, &format!("NVRTC {major}.{minor}")];
        cache::key(&parts)
    }

    fn compile(&self, source: Source, text: &str) -> Result<Vec<u8>, CudaError> {
        let nul = |_| CudaError::Nvrtc {
            doing: "handing a source to NVRTC",
            status: sys::nvrtcResult::NVRTC_ERROR_INVALID_INPUT,
        };
        let text = CString::new(text).map_err(nul)?;
        let file = CString::new(source.file()).map_err(nul)?;
        let program = result::create_program(&text, Some(&file)).during("handing a source to NVRTC")?;
        let program = Program(program);
        // SAFETY: the program is alive until `Program` is dropped, and so are the texts that it may refer to.
        match unsafe { result::compile_program(program.0, &self.options()) } {
            Ok(()) => program.code(),
            Err(result::NvrtcError(status)) => {
                let log = program.log();
                // Out of memory, or the declarations that NVRTC brings along are missing.
                if status != sys::nvrtcResult::NVRTC_ERROR_COMPILATION && log.is_empty() {
                    return Err(CudaError::Nvrtc { doing: "compiling a kernel", status });
                }
                Err(CudaError::Compile {
                    file: source.file(),
                    architecture: self.architecture.clone(),
                    version: self.version,
                    log: if log.is_empty() { format!("{status:?}") } else { log },
                })
            }
        }
    }
}

/// A source in the compiler's hands.
struct Program(sys::nvrtcProgram);

impl Program {
    fn log(&self) -> String {
        // SAFETY: the program is alive.
        let log = unsafe { result::get_program_log(self.0) }.unwrap_or_default();
        let log: Vec<u8> = log.into_iter().map(|byte| byte as u8).take_while(|&byte| byte != 0).collect();
        String::from_utf8_lossy(&log).trim_end().to_owned()
    }

    fn code(&self) -> Result<Vec<u8>, CudaError> {
        let doing = "taking a kernel from NVRTC";
        let mut size = 0;
        // SAFETY: the program is alive; the memory has the size asked for.
        unsafe {
            sys::nvrtcGetCUBINSize(self.0, &mut size).result().during(doing)?;
            let mut code = vec![0u8; size];
            sys::nvrtcGetCUBIN(self.0, code.as_mut_ptr().cast()).result().during(doing)?;
            Ok(code)
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: dropped once, never used again. A failure would leak the compiler's memory, no more.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiler(architecture: &str) -> Option<Compiler> {
        match libraries::version(CudaLibrary::Nvrtc) {
            Some(version) => Some(Compiler { architecture: architecture.to_owned(), version }),
            None => {
                use std::io::Write;
                // Past the test harness, which would hide it: a skipped check is never silent.
                let line = b"skipped: compiling through the bindings (set VIRNUCPRO_CUDA to a folder with libnvrtc)\n";
                std::io::stderr().write_all(line).unwrap();
                None
            }
        }
    }

    #[test]
    fn kernels_compile_to_code_through_the_library_that_was_found() {
        let Some(compiler) = compiler("sm_90a") else { return };
        let code = compiler.compile(Source::Pool, &Source::Pool.text(None)).unwrap();
        assert!(code.len() > 1000);
    }

    #[test]
    fn a_source_that_does_not_compile_comes_with_the_compilers_words() {
        let Some(compiler) = compiler("sm_80") else { return };
        let error =
            compiler.compile(Source::Pool, "extern \"C\" __global__ void f() { unheard_of(); }").unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("pool.cu does not compile for sm_80 with NVRTC 1"), "{text}");
        assert!(text.contains("unheard_of"), "{text}");
    }

    #[test]
    fn code_is_known_by_all_that_it_depends_on() {
        let compiler =
            |architecture: &str, version| Compiler { architecture: architecture.to_owned(), version };
        let key = compiler("sm_80", (13, 0)).key("text");
        assert_eq!(key, compiler("sm_80", (13, 0)).key("text"));
        assert_ne!(key, compiler("sm_90a", (13, 0)).key("text"));
        assert_ne!(key, compiler("sm_80", (13, 1)).key("text"));
        assert_ne!(key, compiler("sm_80", (13, 0)).key("other text"));
    }
}
