//! Whether this program, on this machine, can use NVIDIA GPUs.

use serde::Serialize;

use crate::nvml::{Capability, GpuIdentity};

/// Whether NVIDIA GPUs can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CudaSupport {
    /// This build has no CUDA engine.
    NotBuilt,
    /// It has one; these are the libraries that it calls.
    Built(Vec<CudaLibraryReport>),
}

/// One of NVIDIA's libraries: found, or what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CudaLibraryReport {
    /// Its name: `libcuda`.
    pub name: String,
    /// Its file.
    pub path: Option<String>,
    /// Major and minor version; of the driver, that of the newest CUDA that it runs.
    pub version: Option<(u32, u32)>,
    /// Why it cannot be used, and how to get it; `None` if it can.
    pub problem: Option<String>,
}

impl CudaSupport {
    /// Looks for the libraries. Opens them, but creates nothing on any GPU.
    #[cfg(feature = "cuda")]
    pub fn probe() -> Self {
        use super::host::{CudaLibrary, libraries};
        let report = |(library, found): (CudaLibrary, _)| {
            let name = format!("lib{}", library.stem());
            match found {
                Ok(libraries::FoundLibrary { path, version, .. }) => CudaLibraryReport {
                    name,
                    path: path.map(|path| path.display().to_string()),
                    version: Some(version),
                    problem: None,
                },
                Err(error) => {
                    let problem = Some(libraries::LibraryError::to_string(&error));
                    CudaLibraryReport { name, path: None, version: None, problem }
                }
            }
        };
        Self::Built(CudaLibrary::ALL.into_iter().zip(libraries::probe()).map(report).collect())
    }

    /// This build looks for nothing.
    #[cfg(not(feature = "cuda"))]
    pub fn probe() -> Self {
        Self::NotBuilt
    }

    /// Why no GPU can be used, each reason with what to do; empty where nothing is amiss.
    pub fn problems(&self) -> Vec<String> {
        match self {
            Self::NotBuilt => vec![
                "the CUDA engine is not part of this build: build with the default features of Cargo"
                    .to_owned(),
            ],
            Self::Built(libraries) => {
                libraries.iter().filter_map(|library| library.problem.clone()).collect()
            }
        }
    }

    /// Why this GPU cannot be used although others might.
    pub fn objection(&self, gpu: &GpuIdentity) -> Option<String> {
        let Self::Built(libraries) = self else { return None };
        let capability = gpu.capability?;
        if capability < OLDEST {
            return Some(format!("compute capability {capability} is too old, {OLDEST} is needed"));
        }
        let dropped = |library: &&CudaLibraryReport| {
            matches!(library.name.as_str(), "libnvrtc" | "libcublasLt")
                && library.version.is_some_and(|(major, _)| major >= 13)
        };
        let library = libraries.iter().find(dropped).filter(|_| capability < OLDEST_FOR_13)?;
        let (major, minor) = library.version.unwrap_or_default();
        Some(format!(
            "compute capability {capability} is too old for the {} {major}.{minor} found here, which needs \
             {OLDEST_FOR_13}: {GET_12}",
            library.name
        ))
    }
}

/// How a GPU that CUDA 13 dropped is used.
pub(super) const GET_12: &str = "get the libraries of CUDA 12 (`pip install nvidia-cuda-nvrtc-cu12 \
    nvidia-cublas-cu12`), and name their folders, separated by `:`, in VIRNUCPRO_CUDA if they are not found then";

/// The oldest that CUDA 12 compiles for.
pub(super) const OLDEST: Capability = Capability { major: 5, minor: 0 };
/// The oldest that CUDA 13 compiles for.
pub(super) const OLDEST_FOR_13: Capability = Capability { major: 7, minor: 5 };

#[cfg(test)]
mod tests {
    use super::*;

    fn both(blas: (u32, u32), nvrtc: (u32, u32)) -> CudaSupport {
        let report = |name: &str, version| CudaLibraryReport {
            name: name.to_owned(),
            path: None,
            version: Some(version),
            problem: None,
        };
        // The driver's version is no hindrance: that of CUDA 13 runs libraries of 12.
        let driver = report("libcuda", (13, 0));
        CudaSupport::Built(vec![driver, report("libcublasLt", blas), report("libnvrtc", nvrtc)])
    }

    fn support(nvrtc: (u32, u32)) -> CudaSupport {
        both((12, 9), nvrtc)
    }

    #[test]
    fn gpus_that_the_compiler_does_not_know_are_objected_to() {
        let gpu = |major, minor| GpuIdentity {
            capability: Some(Capability { major, minor }),
            ..Default::default()
        };
        let refused = support((13, 0)).objection(&gpu(7, 0)).unwrap();
        for words in
            ["7.0 is too old for the libnvrtc 13.0", "needs 7.5", "nvidia-cublas-cu12", "VIRNUCPRO_CUDA"]
        {
            assert!(refused.contains(words), "`{words}` is not in: {refused}");
        }
        let refused = both((13, 1), (12, 9)).objection(&gpu(7, 0)).unwrap();
        assert!(refused.contains("too old for the libcublasLt 13.1"), "{refused}");
        assert_eq!(support((12, 9)).objection(&gpu(7, 0)), None);
        assert_eq!(support((13, 0)).objection(&gpu(7, 5)), None);
        assert!(support((12, 0)).objection(&gpu(3, 7)).is_some());
        assert_eq!(support((13, 0)).objection(&GpuIdentity::default()), None);
    }

    #[test]
    fn what_is_missing_is_said_with_how_to_get_it() {
        assert!(CudaSupport::NotBuilt.problems()[0].contains("not part of this build"));
        assert!(support((13, 0)).problems().is_empty());
        if let CudaSupport::Built(libraries) = CudaSupport::probe() {
            assert_eq!(libraries.len(), 3);
            for library in libraries {
                assert_ne!(library.problem.is_some(), library.version.is_some(), "{library:?}");
            }
        }
    }
}
