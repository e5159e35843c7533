//! Finds published models in the caches that other tools keep on this machine.
//!
//! Reads the hub's cache layout (`models--org--name/refs/main` names a commit, whose files lie in
//! `snapshots/<commit>`) and torch's checkpoint folder. Never touches the network.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{ModelError, ModelPath};

/// Bytes of a file that names a commit, of 40 letters.
const REF_BYTES_MAX: u64 = 4_096;

/// Finds `organisation/name` in the local caches of this user.
///
/// Looks at `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`; then at
/// `TORCH_HOME/hub/checkpoints`, else `~/.cache/torch/hub/checkpoints`, for `<name>.pt`.
///
/// # Errors
/// When the name has another form or no cache holds the model; the error lists every place.
pub fn resolve(name: &str) -> Result<ModelPath, ModelError> {
    resolve_with(name, |variable| std::env::var_os(variable).filter(|value| !value.is_empty()))
}

/// [`resolve`] with the environment given, so that tests need not change the process's.
fn resolve_with(name: &str, variable: impl Fn(&str) -> Option<OsString>) -> Result<ModelPath, ModelError> {
    let (organisation, model) = match name.split_once('/') {
        Some((organisation, model)) if is_plain(organisation) && is_plain(model) => (organisation, model),
        _ => return Err(ModelError::HubName { name: name.to_owned() }),
    };
    let home_cache = || {
        variable("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache")))
    };
    let hub = variable("HF_HUB_CACHE")
        .map(PathBuf::from)
        .or_else(|| variable("HF_HOME").map(|home| Path::new(&home).join("hub")))
        .or_else(|| home_cache().map(|cache| cache.join("huggingface").join("hub")));
    let torch = variable("TORCH_HOME")
        .map(PathBuf::from)
        .or_else(|| home_cache().map(|cache| cache.join("torch")))
        .map(|torch| torch.join("hub").join("checkpoints"));

    let mut looked_at = Vec::new();
    if let Some(hub) = hub {
        let repository = hub.join(format!("models--{organisation}--{model}"));
        if let Ok(commit) = super::read_at_most(&repository.join("refs").join("main"), REF_BYTES_MAX) {
            let commit = String::from_utf8_lossy(&commit);
            let commit = commit.trim();
            let snapshot = repository.join("snapshots").join(commit);
            if is_plain(commit) && snapshot.is_dir() {
                return Ok(ModelPath::Folder(snapshot));
            }
        }
        looked_at.push(repository);
    }
    if let Some(torch) = torch {
        let checkpoint = torch.join(format!("{model}.pt"));
        if checkpoint.is_file() {
            return Ok(ModelPath::FairEsm(checkpoint));
        }
        looked_at.push(checkpoint);
    }
    Err(ModelError::NotInCache { name: name.to_owned(), looked_at })
}

/// Whether `part` can be one path component and nothing else.
fn is_plain(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('.')
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_snapshot_that_main_names_is_found() {
        let cache = tempfile::tempdir().unwrap();
        let repository = cache.path().join("models--facebook--esm2_t6_8M_UR50D");
        for commit in ["aaaa", "bbbb"] {
            std::fs::create_dir_all(repository.join("snapshots").join(commit)).unwrap();
        }
        std::fs::create_dir_all(repository.join("refs")).unwrap();
        std::fs::write(repository.join("refs/main"), "bbbb\n").unwrap();
        let environment = |name: &str| (name == "HF_HUB_CACHE").then(|| cache.path().into());
        assert_eq!(
            resolve_with("facebook/esm2_t6_8M_UR50D", environment).unwrap(),
            ModelPath::Folder(repository.join("snapshots/bbbb"))
        );
    }

    #[test]
    fn a_torch_checkpoint_is_the_fallback() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(".cache/torch/hub/checkpoints");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("esm2_t6_8M_UR50D.pt"), "").unwrap();
        let environment = |name: &str| (name == "HOME").then(|| home.path().into());
        assert_eq!(
            resolve_with("facebook/esm2_t6_8M_UR50D", environment).unwrap(),
            ModelPath::FairEsm(folder.join("esm2_t6_8M_UR50D.pt"))
        );
    }

    #[test]
    fn absence_lists_every_place_and_says_what_to_do() {
        let environment = |name: &str| (name == "HF_HOME" || name == "TORCH_HOME").then(|| "/nowhere".into());
        let error = resolve_with("facebook/esm2_t6_8M_UR50D", environment).unwrap_err().to_string();
        assert!(error.contains("/nowhere/hub/models--facebook--esm2_t6_8M_UR50D"), "{error}");
        assert!(error.contains("/nowhere/hub/checkpoints/esm2_t6_8M_UR50D.pt"), "{error}");
        assert!(error.contains("hf download facebook/esm2_t6_8M_UR50D"), "{error}");
    }

    #[test]
    fn names_that_could_leave_the_cache_are_refused() {
        for name in ["", "esm2", "a/b/c", "../x", "a/..", "a/", "/a", "a/b c"] {
            assert!(matches!(resolve_with(name, |_| None), Err(ModelError::HubName { .. })), "{name}");
        }
    }
}
