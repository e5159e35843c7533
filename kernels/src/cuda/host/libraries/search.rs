//! Where a CUDA library may lie, best place first.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::CudaLibrary;
use crate::cuda::support::OLDEST_FOR_13;
use crate::nvml::{Capability, DRIVER_FOLDERS};

/// Environment variable that names folders with CUDA libraries, separated by `:`; those in them are used before all
/// others. NVIDIA's wheels of CUDA 12 have a folder for each library.
pub(super) const FOLDER_VARIABLE: &str = "VIRNUCPRO_CUDA";

/// Places to look in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Search {
    /// The folders that the user named, best first.
    preferred: Vec<PathBuf>,
    /// Folders that the system's loader does not look in, best first.
    folders: Vec<PathBuf>,
}

impl Search {
    /// The places of this machine, by its environment variables.
    pub(super) fn from_environment() -> Self {
        Self::new(&|name| std::env::var_os(name), Path::new("/"))
    }

    /// `root`: where `/usr` is, for tests.
    fn new(variable: &dyn Fn(&str) -> Option<OsString>, root: &Path) -> Self {
        let absolute = |path: PathBuf| std::path::absolute(&path).unwrap_or(path);
        let folder =
            |name: &str| variable(name).filter(|path| !path.is_empty()).map(|path| absolute(path.into()));
        let list = |name: &str| {
            let value = variable(name).unwrap_or_default();
            let paths = std::env::split_paths(&value).filter(|path| !path.as_os_str().is_empty());
            paths.map(absolute).collect::<Vec<_>>()
        };
        let preferred = list(FOLDER_VARIABLE);
        let mut folders = Vec::new();
        for toolkit in ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(folder) {
            folders.extend(toolkit_folders(&toolkit));
        }
        let local = root.join("usr/local");
        for toolkit in [local.join("cuda"), root.join("opt/cuda")] {
            folders.extend(toolkit_folders(&toolkit));
        }
        for toolkit in matching(&local, "cuda-") {
            folders.extend(toolkit_folders(&toolkit));
        }
        let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(folder);
        // An environment is often entered by PATH alone. Its `python3` is a link to the system's Python, whose folder
        // has no wheels: the link's own place counts.
        let of_path = list("PATH").into_iter().filter(|folder| folder.join("python3").is_file());
        let of_path = of_path.filter_map(|folder| folder.parent().map(Path::to_path_buf));
        let users = folder("HOME").map(|home| home.join(".local"));
        let usual = [root.join("opt/conda"), local.clone(), root.join("usr")];
        let prefixes: Vec<PathBuf> = environments.chain(of_path).chain(users).chain(usual).collect();
        for prefix in &prefixes {
            folders.extend(wheel_folders(&prefix.join("lib")));
        }
        // Packages of conda's own lie beside its other libraries.
        let of_conda = prefixes.iter().filter(|prefix| prefix.join("conda-meta").is_dir());
        folders.extend(folder("CONDA_PREFIX").iter().chain(of_conda).map(|prefix| prefix.join("lib")));
        // The driver's library alone.
        folders.extend(DRIVER_FOLDERS.map(|folder| root.join(folder)));
        let mut seen = HashSet::new();
        folders.retain(|folder| folder.is_dir() && seen.insert(folder.clone()));
        Self { preferred, folders }
    }

    /// Files to try for a library, best first; bare names stand for the loader's own search.
    pub(super) fn candidates(&self, names: &[String]) -> Vec<PathBuf> {
        let within = |folder: &PathBuf| {
            let folder = folder.clone();
            names.iter().map(move |name| folder.join(name)).filter(|file| file.is_file())
        };
        let mut files: Vec<PathBuf> = self.preferred.iter().flat_map(within).collect();
        files.extend(names.iter().map(PathBuf::from));
        files.extend(self.folders.iter().flat_map(within));
        files
    }

    /// Whether the user asked for this file, where the loader might know another one.
    pub(super) fn is_preferred(&self, file: &Path) -> bool {
        self.preferred.iter().any(|folder| file.starts_with(folder))
    }
}

/// Names that the library's file may have, best first.
///
/// A driver of CUDA 12 runs no library of CUDA 13, the other way round all is well. Without a version come links of
/// development packages, whose version only opening them would tell.
pub(super) fn file_names(library: CudaLibrary, driver_major: Option<u32>) -> Vec<String> {
    let stem = library.stem();
    let versions: &[&str] = match library {
        CudaLibrary::Driver => &[".1", ""],
        CudaLibrary::BlasLt | CudaLibrary::Nvrtc => match driver_major {
            Some(..=12) => &[".12", ""],
            Some(_) | None => &[".13", ".12", ""],
        },
    };
    let name = |version: &&str| match *version {
        "" => format!("lib{stem}.so"),
        version => format!("lib{stem}.so{version}"),
    };
    versions.iter().map(name).collect()
}

/// Lists of names, each of which is looked for everywhere before the next one is.
///
/// `oldest`: the oldest GPU of this machine that CUDA 12 supports. Where CUDA 13 dropped it, libraries of CUDA 12 come
/// before all others, wherever they are; without them those of CUDA 13 still serve the machine's other GPUs.
pub(super) fn name_lists(
    library: CudaLibrary,
    driver_major: Option<u32>,
    oldest: Option<Capability>,
) -> Vec<Vec<String>> {
    let all = file_names(library, driver_major);
    let dropped = library != CudaLibrary::Driver && oldest.is_some_and(|oldest| oldest < OLDEST_FOR_13);
    let first = all.iter().filter(|name| dropped && name.ends_with(".12")).cloned().collect::<Vec<_>>();
    [first, all].into_iter().filter(|names| !names.is_empty()).collect()
}

/// Where the libraries of a toolkit are.
fn toolkit_folders(toolkit: &Path) -> [PathBuf; 3] {
    let target = format!("targets/{}-linux/lib", std::env::consts::ARCH);
    [toolkit.join("lib64"), toolkit.join("lib"), toolkit.join(target)]
}

/// Where wheels of NVIDIA's have their libraries, below a `lib` folder with Python versions.
fn wheel_folders(lib: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for python in matching(lib, "python3") {
        for packages in ["site-packages", "dist-packages"] {
            for wheel in matching(&python.join(packages).join("nvidia"), "") {
                folders.push(wheel.join("lib"));
            }
        }
    }
    folders
}

/// Folders whose names begin so, the newest version first.
fn matching(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<(Vec<u32>, PathBuf)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            let rest = name.to_str()?.strip_prefix(prefix)?;
            let numbers = rest.split(|letter: char| !letter.is_ascii_digit());
            Some((numbers.filter_map(|number| number.parse().ok()).collect(), entry.path()))
        })
        .collect();
    found.sort_by(|(a, path_a), (b, path_b)| b.cmp(a).then_with(|| path_a.cmp(path_b)));
    found.into_iter().map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;

    use super::*;

    fn touch(root: &Path, file: &str) -> PathBuf {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, b"").unwrap();
        path
    }

    fn search(root: &Path, variables: &[(&str, &Path)]) -> Search {
        let variables: HashMap<&str, OsString> =
            variables.iter().map(|(name, path)| (*name, path.as_os_str().to_owned())).collect();
        Search::new(&|name| variables.get(name).cloned(), root)
    }

    #[test]
    fn the_named_folder_comes_first_then_the_loader_then_known_places() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let named = touch(root, "named/libnvrtc.so.12");
        let home = touch(root, "toolkit/lib64/libnvrtc.so.13");
        let newest = touch(root, "usr/local/cuda-13.10/lib64/libnvrtc.so.13");
        let newer = touch(root, "usr/local/cuda-13.9/lib64/libnvrtc.so.13");
        let virtual_env = touch(root, "venv/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13");
        let own =
            touch(root, "home/.local/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12");
        let conda = touch(root, "conda/lib/libnvrtc.so.13");
        let search = search(
            root,
            &[
                ("VIRNUCPRO_CUDA", &root.join("named")),
                ("CUDA_HOME", &root.join("toolkit")),
                ("VIRTUAL_ENV", &root.join("venv")),
                ("CONDA_PREFIX", &root.join("conda")),
                ("HOME", &root.join("home")),
            ],
        );
        let names = file_names(CudaLibrary::Nvrtc, None);
        let bare = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"].map(PathBuf::from);
        let mut expected = vec![named.clone()];
        expected.extend(bare);
        expected.extend([home, newest, newer, virtual_env, own, conda]);
        assert_eq!(search.candidates(&names), expected);
        assert!(search.is_preferred(&named));
        assert!(!search.is_preferred(Path::new("libnvrtc.so.13")));
    }

    #[test]
    fn wheels_are_found_by_the_python_that_path_leads_to() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        touch(root, "usr/bin/python3.12");
        std::os::unix::fs::symlink("python3.12", root.join("usr/bin/python3")).unwrap();
        fs::create_dir_all(root.join("opt/torch/.venv/bin")).unwrap();
        let link = root.join("opt/torch/.venv/bin/python3");
        std::os::unix::fs::symlink(root.join("usr/bin/python3"), link).unwrap();
        let wheels = "lib/python3.12/site-packages/nvidia";
        let venv = touch(root, &format!("opt/torch/.venv/{wheels}/cuda_nvrtc/lib/libnvrtc.so.12"));
        let system = touch(root, "usr/lib/python3/dist-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12");
        let conda = touch(root, &format!("opt/conda/{wheels}/cu13/lib/libnvrtc.so.13"));
        touch(root, "opt/conda/conda-meta/history");
        let packaged = touch(root, "opt/conda/lib/libnvrtc.so.13");
        touch(root, &format!("other/{wheels}/cu13/lib/libnvrtc.so.13"));
        fs::create_dir_all(root.join("other/bin")).unwrap();
        let folders = ["other/bin", "opt/torch/.venv/bin", "usr/bin", "nowhere"];
        let path = std::env::join_paths(folders.map(|folder| root.join(folder))).unwrap();
        let search = search(root, &[("PATH", Path::new(&path))]);
        let found = search.candidates(&file_names(CudaLibrary::Nvrtc, None));
        assert_eq!(found[3..], [venv, system, conda, packaged]);
    }

    #[test]
    fn a_mounted_driver_is_found_where_the_loader_does_not_look() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let mounted = DRIVER_FOLDERS.map(|folder| touch(root, &format!("{folder}/libcuda.so.1")));
        let found = search(root, &[]).candidates(&file_names(CudaLibrary::Driver, None));
        assert_eq!(found[2..], mounted);
    }

    #[test]
    fn several_folders_may_be_named() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let blas = touch(root, "nvidia/cublas/lib/libcublasLt.so.12");
        let nvrtc = touch(root, "nvidia/cuda_nvrtc/lib/libnvrtc.so.12");
        let named = format!(":{}:{}:", blas.parent().unwrap().display(), nvrtc.parent().unwrap().display());
        let search = search(root, &[("VIRNUCPRO_CUDA", Path::new(&named))]);
        for (library, file) in [(CudaLibrary::BlasLt, blas), (CudaLibrary::Nvrtc, nvrtc)] {
            assert_eq!(search.candidates(&file_names(library, None))[0], file);
            assert!(search.is_preferred(&file));
        }
        assert!(!search.is_preferred(&root.join("nvidia/cudnn/lib/libcudnn.so.9")));
    }

    #[test]
    fn without_variables_only_the_loader_is_asked() {
        let root = tempfile::tempdir().unwrap();
        let search = search(root.path(), &[("VIRNUCPRO_CUDA", Path::new(""))]);
        assert_eq!(search, Search::default());
        let names = file_names(CudaLibrary::Driver, None);
        assert_eq!(search.candidates(&names), ["libcuda.so.1", "libcuda.so"].map(PathBuf::from));
    }

    #[test]
    fn a_driver_of_cuda_12_is_given_no_library_of_cuda_13() {
        let names = file_names(CudaLibrary::BlasLt, Some(12));
        assert_eq!(names, ["libcublasLt.so.12", "libcublasLt.so"]);
        assert_eq!(file_names(CudaLibrary::BlasLt, Some(13))[0], "libcublasLt.so.13");
    }

    #[test]
    fn for_a_gpu_that_cuda_13_dropped_libraries_of_cuda_12_come_first_wherever_they_are() {
        let lists = |library, major, minor| name_lists(library, Some(13), Some(Capability { major, minor }));
        let all = file_names(CudaLibrary::Nvrtc, Some(13));
        assert_eq!(all[0], "libnvrtc.so.13");
        assert_eq!(lists(CudaLibrary::Nvrtc, 7, 0), [vec!["libnvrtc.so.12".to_owned()], all.clone()]);
        assert_eq!(lists(CudaLibrary::Nvrtc, 7, 5), std::slice::from_ref(&all));
        assert_eq!(name_lists(CudaLibrary::Nvrtc, Some(13), None), [all]);
        let driver = file_names(CudaLibrary::Driver, None);
        assert_eq!(lists(CudaLibrary::Driver, 7, 0), [driver]);
    }
}
