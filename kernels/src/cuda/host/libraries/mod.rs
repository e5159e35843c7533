//! NVIDIA's libraries: the driver's, cuBLASLt and the run-time compiler, found before the first call into CUDA.
//!
//! The bindings (cudarc) load a library by a fixed list of names at the first call and panic when none of them
//! opens, or when a function is missing. So each library is opened here first and kept open: the loader answers
//! the bindings' later request with what is open already. That they really get the same one, and that every
//! function that the engine calls is there, is checked here too.

mod alias;
mod search;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;

use super::CudaError;
use crate::cuda::support::OLDEST;
use crate::nvml::{self, Capability, Nvml};
use search::Search;

/// One of NVIDIA's libraries that the engine calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CudaLibrary {
    /// The driver's own, `libcuda`.
    Driver,
    /// Matrix products, `libcublasLt`.
    BlasLt,
    /// The run-time compiler, `libnvrtc`.
    Nvrtc,
}

impl CudaLibrary {
    /// Every library, the driver's first: its version decides which of the others fits.
    pub const ALL: [Self; 3] = [Self::Driver, Self::BlasLt, Self::Nvrtc];

    /// Its name between `lib` and `.so`.
    pub fn stem(self) -> &'static str {
        match self {
            Self::Driver => "cuda",
            Self::BlasLt => "cublasLt",
            Self::Nvrtc => "nvrtc",
        }
    }

    /// How to get it, for people.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Driver => {
                "it comes with the NVIDIA driver, 525 or later (Debian: libcuda1; Ubuntu: libnvidia-compute-<driver \
                 version>), and into a container with `--gpus all`"
            }
            Self::BlasLt => {
                "get it by `pip install nvidia-cublas` (CUDA 12: nvidia-cublas-cu12) or from the CUDA toolkit's \
                 packages (Debian, Ubuntu: libcublas-13-0), and name its folder in VIRNUCPRO_CUDA or LD_LIBRARY_PATH \
                 if it is not found there"
            }
            Self::Nvrtc => {
                "get it by `pip install nvidia-cuda-nvrtc` (CUDA 12: nvidia-cuda-nvrtc-cu12) or from the CUDA \
                 toolkit's packages (Debian, Ubuntu: cuda-nvrtc-13-0), and name its folder in VIRNUCPRO_CUDA or \
                 LD_LIBRARY_PATH if it is not found there"
            }
        }
    }

    /// A function that tells its version, there in every version.
    fn version_function(self) -> &'static str {
        match self {
            Self::Driver => "cuDriverGetVersion",
            Self::BlasLt => "cublasLtGetVersion",
            Self::Nvrtc => "nvrtcVersion",
        }
    }

    /// Every function that is called, by us or by the bindings in our name: one that is missing would be a panic.
    fn functions(self) -> &'static [&'static str] {
        match self {
            Self::Driver => &[
                "cuInit",
                "cuDriverGetVersion",
                "cuGetErrorName",
                "cuGetErrorString",
                "cuDeviceGetCount",
                "cuDeviceGet",
                "cuDeviceGetName",
                "cuDeviceGetUuid_v2",
                "cuDeviceGetPCIBusId",
                "cuDeviceGetAttribute",
                "cuDevicePrimaryCtxRetain",
                "cuDevicePrimaryCtxRelease_v2",
                "cuCtxGetCurrent",
                "cuCtxSetCurrent",
                "cuCtxSynchronize",
                "cuMemGetInfo_v2",
                "cuMemAlloc_v2",
                "cuMemFree_v2",
                "cuMemHostAlloc",
                "cuMemFreeHost",
                "cuMemcpyHtoDAsync_v2",
                "cuMemcpyDtoHAsync_v2",
                "cuMemcpyDtoDAsync_v2",
                "cuMemsetD8Async",
                "cuModuleLoadData",
                "cuModuleUnload",
                "cuModuleGetFunction",
                "cuFuncGetAttribute",
                "cuLaunchKernel",
                "cuStreamCreate",
                "cuStreamDestroy_v2",
                "cuStreamSynchronize",
                "cuStreamWaitEvent",
                "cuEventCreate",
                "cuEventDestroy_v2",
                "cuEventRecord",
                "cuEventQuery",
                "cuEventSynchronize",
            ],
            Self::BlasLt => &[
                "cublasLtGetVersion",
                "cublasLtCreate",
                "cublasLtDestroy",
                "cublasLtMatmul",
                "cublasLtMatmulDescCreate",
                "cublasLtMatmulDescDestroy",
                "cublasLtMatmulDescSetAttribute",
                "cublasLtMatrixLayoutCreate",
                "cublasLtMatrixLayoutDestroy",
                "cublasLtMatrixLayoutSetAttribute",
                "cublasLtMatmulPreferenceCreate",
                "cublasLtMatmulPreferenceDestroy",
                "cublasLtMatmulPreferenceSetAttribute",
                "cublasLtMatmulAlgoGetHeuristic",
                "cublasLtMatmulAlgoCheck",
            ],
            Self::Nvrtc => &[
                "nvrtcVersion",
                "nvrtcCreateProgram",
                "nvrtcDestroyProgram",
                "nvrtcCompileProgram",
                "nvrtcGetProgramLog",
                "nvrtcGetProgramLogSize",
                "nvrtcGetCUBIN",
                "nvrtcGetCUBINSize",
            ],
        }
    }
}

impl std::fmt::Display for CudaLibrary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Driver => "the CUDA driver (libcuda)",
            Self::BlasLt => "cuBLASLt (libcublasLt)",
            Self::Nvrtc => "the CUDA run-time compiler (libnvrtc)",
        })
    }
}

/// A library that was found, is complete and stays open for the life of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundLibrary {
    /// Which one.
    pub library: CudaLibrary,
    /// Its file; `None` where the system does not tell.
    pub path: Option<PathBuf>,
    /// Major and minor version: of the newest CUDA that the driver runs, or the library's own.
    pub version: (u32, u32),
}

impl std::fmt::Display for FoundLibrary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor) = self.version;
        match &self.path {
            Some(path) => write!(f, "{} {major}.{minor}, {}", self.library, path.display()),
            None => write!(f, "{} {major}.{minor}", self.library),
        }
    }
}

/// Why a library cannot be used, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LibraryError {
    /// It is nowhere.
    #[error("{library} is not found: {}", library.remedy())]
    Missing {
        /// Which one.
        library: CudaLibrary,
    },
    /// There is such a file, and it does not load.
    #[error("{library} does not load from `{file}` ({reason}): {}", library.remedy())]
    Unusable {
        /// Which one.
        library: CudaLibrary,
        /// The file, as it was asked for.
        file: String,
        /// What the loader said.
        reason: String,
    },
    /// It lacks a function that the engine calls.
    #[error("{library} in `{file}` is too old, it lacks `{function}`: install CUDA 12 or later; {}", library.remedy())]
    TooOld {
        /// Which one.
        library: CudaLibrary,
        /// Where it is.
        file: String,
        /// What is missing.
        function: &'static str,
    },
    /// The process would use another one than was found.
    #[error(
        "{library} was found in `{file}`, but the system's loader insists on `{other}`: name the folder of the one that \
         you want in LD_LIBRARY_PATH, before all others"
    )]
    Shadowed {
        /// Which one.
        library: CudaLibrary,
        /// Where it was found.
        file: String,
        /// What the loader finds under the same name.
        other: String,
    },
}

impl LibraryError {
    /// The library at fault.
    pub fn library(&self) -> CudaLibrary {
        match self {
            Self::Missing { library }
            | Self::Unusable { library, .. }
            | Self::TooOld { library, .. }
            | Self::Shadowed { library, .. } => *library,
        }
    }
}

/// A library held open.
struct Open {
    found: FoundLibrary,
    library: Library,
    /// Held for the loader's sake alone: what the library opens by bare name, and the names it goes by.
    _companions: Vec<Library>,
}

type Opened = [Result<Open, LibraryError>; 3];

/// Libraries are looked for once in a process: the bindings could not be given another one later.
fn opened() -> &'static Opened {
    static OPENED: OnceLock<Opened> = OnceLock::new();
    OPENED.get_or_init(|| {
        let mut driver_major = None;
        let mut oldest = None;
        let search = Search::from_environment();
        CudaLibrary::ALL.map(|library| {
            let open = find(&search, library, driver_major, oldest);
            if let (CudaLibrary::Driver, Ok(open)) = (library, &open) {
                driver_major = Some(open.found.version.0);
                oldest = oldest_gpu();
            }
            open
        })
    })
}

/// Compute capability of the machine's oldest GPU among those that CUDA 12 supports; `None` where nobody tells.
///
/// Of all GPUs, whatever is hidden from this process: each process of a job must come to the same libraries. Asked of
/// the management library, since CUDA itself must not start in processes that are no workers.
fn oldest_gpu() -> Option<Capability> {
    let nvml = Nvml::open(&nvml::Library::from_environment()).ok()?;
    let gpus = nvml.gpus().ok()?;
    let capabilities = gpus.into_iter().filter_map(|gpu| gpu.ok()?.identity().capability);
    capabilities.filter(|&capability| capability >= OLDEST).min()
}

/// Every library, or why it cannot be used; opens them, but calls nothing that touches a device.
pub fn probe() -> Vec<Result<FoundLibrary, LibraryError>> {
    let found = |open: &Result<Open, LibraryError>| match open {
        Ok(open) => Ok(open.found.clone()),
        Err(error) => Err(error.clone()),
    };
    opened().iter().map(found).collect()
}

/// Opens all libraries, before the first call into any of them.
///
/// # Errors
/// If one is missing or unusable, all those that are: they are installed at once, too.
pub fn open() -> Result<(), CudaError> {
    let errors: Vec<LibraryError> = probe().into_iter().filter_map(Result::err).collect();
    if errors.is_empty() { Ok(()) } else { Err(CudaError::Libraries(errors)) }
}

/// The version of a library that was found.
pub(super) fn version(library: CudaLibrary) -> Option<(u32, u32)> {
    let position = CudaLibrary::ALL.iter().position(|&one| one == library)?;
    opened()[position].as_ref().ok().map(|open| open.found.version)
}

/// Runs `call` with a function of a library that not every version has; `None` where this one does not.
///
/// # Safety
/// `F` must be the function's type.
pub(super) unsafe fn optional<F: Copy>(library: CudaLibrary, name: &str) -> Option<F> {
    let position = CudaLibrary::ALL.iter().position(|&one| one == library)?;
    let open = opened()[position].as_ref().ok()?;
    // SAFETY: the caller vouches for the type; the library stays open for the life of the process.
    unsafe { open.library.get::<F>(name.as_bytes()) }.ok().map(|function| *function)
}

fn find(
    search: &Search,
    library: CudaLibrary,
    driver_major: Option<u32>,
    oldest: Option<Capability>,
) -> Result<Open, LibraryError> {
    let lists = search::name_lists(library, driver_major, oldest);
    let mut refused = None;
    for file in lists.iter().flat_map(|names| search.candidates(names)) {
        let mut companions = Vec::new();
        if library == CudaLibrary::Nvrtc {
            companions.extend(builtins(&file));
        }
        match load(&file) {
            Ok(loaded) => match accept(library, &file, loaded, companions, search.is_preferred(&file)) {
                Ok(open) => return Ok(open),
                Err(error) => refused = refused.or(Some(error)),
            },
            // A bare name that the loader does not know is no finding, a file that is there and does not load is.
            Err(reason) if file.is_absolute() => {
                let file = file.display().to_string();
                refused = refused.or(Some(LibraryError::Unusable { library, file, reason }));
            }
            Err(_) => {}
        }
    }
    Err(refused.unwrap_or(LibraryError::Missing { library }))
}

fn load(file: &Path) -> Result<Library, String> {
    // SAFETY: NVIDIA's libraries, or those the user names in their place; loading runs their initialisers, which
    // any program that links them runs too.
    unsafe { Library::new(file) }.map_err(|error| error.to_string())
}

/// NVRTC asks for its built-in declarations by bare name, which succeeds if they are open already.
fn builtins(nvrtc: &Path) -> Vec<Library> {
    let Some(folder) = nvrtc.parent().filter(|_| nvrtc.is_absolute()) else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libnvrtc-builtins.so")
    });
    files.sort();
    files.iter().filter_map(|file| load(file).ok()).collect()
}

/// Checks a loaded library and makes the bindings use it.
fn accept(
    library: CudaLibrary,
    file: &Path,
    loaded: Library,
    mut companions: Vec<Library>,
    preferred: bool,
) -> Result<Open, LibraryError> {
    let path = path_of(&loaded, library.version_function()).or_else(|| Some(file.to_path_buf()));
    let shown = path.as_deref().unwrap_or(file).display().to_string();
    for &function in library.functions() {
        if address(&loaded, function).is_none() {
            return Err(LibraryError::TooOld { library, file: shown, function });
        }
    }
    // SAFETY: the function is there and has the signature that `version_of` gives it.
    let version = unsafe { version_of(library, &loaded) }.ok_or_else(|| LibraryError::Unusable {
        library,
        file: shown.clone(),
        reason: "it does not tell its version".to_owned(),
    })?;
    if version.0 < VERSION_MAJOR_MIN {
        let function = library.version_function();
        return Err(LibraryError::TooOld { library, file: shown, function });
    }
    let ours = address(&loaded, library.version_function());
    let is_ours = |other: &Library| address(other, library.version_function()) == ours;
    let alias = || path.as_deref().and_then(|path| alias::load(library, path));
    // What the user named is set against whatever the loader knows; anything else usually is what it knows, and a
    // file that it does not know is found by the name inside it.
    if preferred {
        companions.extend(alias());
    }
    let mut other = taken_by_bindings(library);
    if !preferred && !other.as_ref().is_some_and(is_ours) {
        drop(other.take());
        companions.extend(alias());
        other = taken_by_bindings(library);
    }
    if !other.as_ref().is_some_and(is_ours) {
        let other = other.and_then(|other| path_of(&other, library.version_function()));
        let other =
            other.map_or_else(|| "nothing of that name".to_owned(), |path| path.display().to_string());
        return Err(LibraryError::Shadowed { library, file: shown, other });
    }
    companions.extend(other);
    Ok(Open { found: FoundLibrary { library, path, version }, library: loaded, _companions: companions })
}

/// CUDA 12 is the oldest whose functions and libraries the engine was written for.
const VERSION_MAJOR_MIN: u32 = 12;

/// What the bindings will open: the same names in the same order.
fn taken_by_bindings(library: CudaLibrary) -> Option<Library> {
    cudarc::get_lib_name_candidates(library.stem()).iter().find_map(|name| load(Path::new(name)).ok())
}

fn address(library: &Library, function: &str) -> Option<usize> {
    // SAFETY: only the address is looked at, nothing is called through this type.
    let symbol = unsafe { library.get::<unsafe extern "C" fn()>(function.as_bytes()) }.ok()?;
    Some(*symbol as usize)
}

/// The file that a loaded function is mapped from.
fn path_of(library: &Library, function: &str) -> Option<PathBuf> {
    let address = address(library, function)?;
    mapped_file(&std::fs::read_to_string("/proc/self/maps").ok()?, address)
}

/// The file at `address` in the system's account of a process's memory.
fn mapped_file(maps: &str, address: usize) -> Option<PathBuf> {
    maps.lines().find_map(|line| {
        let (from, rest) = line.split_once('-')?;
        let (to, _) = rest.split_once(' ')?;
        let range = usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?;
        let file = line.get(line.find('/')?..)?;
        range.contains(&address).then(|| PathBuf::from(file))
    })
}

/// Asks a library for its version.
///
/// # Safety
/// The library must be the one of that name, NVIDIA's or one with its interface.
unsafe fn version_of(library: CudaLibrary, loaded: &Library) -> Option<(u32, u32)> {
    type DriverVersion = unsafe extern "C" fn(*mut i32) -> i32;
    type BlasLtVersion = unsafe extern "C" fn() -> usize;
    type NvrtcVersion = unsafe extern "C" fn(*mut i32, *mut i32) -> i32;
    let name = library.version_function().as_bytes();
    let number = |number: i32| u32::try_from(number).ok();
    match library {
        CudaLibrary::Driver => {
            let mut version = 0;
            // SAFETY: the signature of cuda.h; the driver needs no initialisation for this call.
            let status = unsafe { loaded.get::<DriverVersion>(name).ok()?(&mut version) };
            let version = number(version).filter(|_| status == 0)?;
            Some((version / 1000, version % 1000 / 10))
        }
        CudaLibrary::BlasLt => {
            // SAFETY: the signature of cublasLt.h.
            let version = unsafe { loaded.get::<BlasLtVersion>(name).ok()?() } as u64;
            // 130002 is 13.0.2, 120802 is 12.8.2; before 12 the factor was another, and is refused anyway.
            Some((u32::try_from(version / 10_000).ok()?, (version % 10_000 / 100) as u32))
        }
        CudaLibrary::Nvrtc => {
            let (mut major, mut minor) = (0, 0);
            // SAFETY: the signature of nvrtc.h.
            let status = unsafe { loaded.get::<NvrtcVersion>(name).ok()?(&mut major, &mut minor) };
            Some((number(major).filter(|_| status == 0)?, number(minor)?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_named_with_how_to_get_it() {
        for library in CudaLibrary::ALL {
            let text = LibraryError::Missing { library }.to_string();
            assert!(text.contains(&format!("lib{}", library.stem())), "{text}");
            assert!(text.contains("Debian"), "{text}");
        }
        for library in [CudaLibrary::BlasLt, CudaLibrary::Nvrtc] {
            let text = library.remedy();
            assert!(text.contains("pip install nvidia-c") && text.contains("VIRNUCPRO_CUDA"), "{text}");
        }
    }

    #[test]
    fn every_library_is_found_or_refused_and_never_a_panic() {
        let found = probe();
        assert_eq!(found.len(), CudaLibrary::ALL.len());
        for (library, found) in CudaLibrary::ALL.into_iter().zip(found) {
            match found {
                Ok(found) => assert!(found.library == library && found.version.0 >= VERSION_MAJOR_MIN),
                Err(error) => assert_eq!(error.library(), library),
            }
        }
    }

    #[test]
    fn the_file_of_an_address_is_read_from_the_systems_account() {
        let maps = "\
55d0-55d8 r--p 00000000 00:00 0 \n\
7f00-7f10 r-xp 00000000 08:01 42                         /usr/lib/my libs/libcuda.so.1\n\
7f10-7f20 r--p 00000000 08:01 43                         /usr/lib/libm.so.6\n";
        assert_eq!(mapped_file(maps, 0x7f0f), Some("/usr/lib/my libs/libcuda.so.1".into()));
        assert_eq!(mapped_file(maps, 0x7f10), Some("/usr/lib/libm.so.6".into()));
        assert_eq!(mapped_file(maps, 0x55d0), None);
        assert_eq!(mapped_file(maps, 0x1), None);
    }
}
