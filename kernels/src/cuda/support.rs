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
        let compiler = libraries.iter().find(|library| library.name == "libnvrtc")?.version?;
        (compiler.0 >= 13 && capability < OLDEST_FOR_13).then(|| {
            format!(
                "compute capability {capability} is too old for the NVRTC {}.{} found here, which needs {OLDEST_FOR_13}: \
                 install that of CUDA 12 (`pip install nvidia-cuda-nvrtc-cu12 nvidia-cublas-cu12`)",
                compiler.0, compiler.1
            )
        })
    }
}

/// The oldest that CUDA 12 compiles for.
const OLDEST: Capability = Capability { major: 5, minor: 0 };
/// The oldest that CUDA 13 compiles for.
const OLDEST_FOR_13: Capability = Capability { major: 7, minor: 5 };

#[cfg(test)]
mod tests {
    use super::*;

    fn support(nvrtc: (u32, u32)) -> CudaSupport {
        CudaSupport::Built(vec![CudaLibraryReport {
            name: "libnvrtc".to_owned(),
            path: None,
            version: Some(nvrtc),
            problem: None,
        }])
    }

    #[test]
    fn gpus_that_the_compiler_does_not_know_are_objected_to() {
        let gpu = |major, minor| GpuIdentity {
            capability: Some(Capability { major, minor }),
            ..Default::default()
        };
        let refused = support((13, 0)).objection(&gpu(7, 0)).unwrap();
        assert!(refused.contains("7.0") && refused.contains("cu12"), "{refused}");
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
