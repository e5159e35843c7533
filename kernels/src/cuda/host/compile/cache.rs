//! Compiled kernels on disk, for the next start.
//!
//! A file is a digest and the code. It is written under a name of its own and renamed, so that any number of
//! processes may write the same one at once, and one that is damaged counts as absent.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

/// Environment variable that names the folder, in place of the one in the user's cache.
const FOLDER_VARIABLE: &str = "VIRNUCPRO_CACHE";

/// Begins each file; the number is that of this format.
const MAGIC: &[u8; 8] = b"vncubin1";

/// Bytes of a digest.
const DIGEST: usize = 32;

/// Files that are kept: kernels of one model are six, of some 100 KB each. Older ones make room.
const FILES_MAX: usize = 256;

/// A temporary file of this age is of a process that was killed while it wrote.
const UNFINISHED_AGE_MAX: Duration = Duration::from_secs(3600);

/// Where compiled kernels are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cache {
    folder: PathBuf,
}

/// Why kernels could not be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "compiled kernels cannot be kept in `{}` ({reason}), so that every start compiles them anew: set VIRNUCPRO_CACHE to \
     a folder that can be written", folder.display()
)]
pub struct CacheWarning {
    /// The folder.
    pub folder: PathBuf,
    /// What the system said.
    pub reason: String,
}

/// The folder where files for the next start are kept; `None` where none is known.
pub(in crate::cuda::host) fn folder() -> Option<PathBuf> {
    Cache::from_environment().map(|cache| cache.folder)
}

impl Cache {
    /// The folder of `VIRNUCPRO_CACHE`, or the user's; `None` where neither is known.
    pub(super) fn from_environment() -> Option<Self> {
        let folder =
            |name: &str| Some(PathBuf::from(std::env::var_os(name).filter(|path| !path.is_empty())?));
        // The specification of these variables has relative paths ignored.
        let base = folder("XDG_CACHE_HOME").filter(|path| path.is_absolute());
        let base = base.or_else(|| folder("HOME").map(|home| home.join(".cache")));
        let folder = folder(FOLDER_VARIABLE).or_else(|| base.map(|base| base.join("virnucpro-orch")))?;
        Some(Self { folder: folder.join("kernels") })
    }

    /// The code kept under this key; `None` where there is none, or it is damaged.
    pub(super) fn get(&self, key: &str) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.file(key)).ok()?;
        let header = MAGIC.len() + DIGEST;
        let (magic, rest) = bytes.split_at_checked(MAGIC.len())?;
        let (digest, code) = rest.split_at_checked(DIGEST)?;
        if magic != MAGIC || digest != digest_of(key, code).as_slice() {
            return None;
        }
        bytes.drain(..header);
        Some(bytes)
    }

    /// Keeps code under this key.
    pub(super) fn put(&self, key: &str, code: &[u8]) -> Result<(), CacheWarning> {
        self.write(key, code)
            .map_err(|error| CacheWarning { folder: self.folder.clone(), reason: error.to_string() })
    }

    fn write(&self, key: &str, code: &[u8]) -> std::io::Result<()> {
        static WRITES: AtomicU32 = AtomicU32::new(0);
        fs::create_dir_all(&self.folder)?;
        let number = WRITES.fetch_add(1, Ordering::Relaxed);
        let temporary = self.folder.join(format!(".{key}.{}.{number}", std::process::id()));
        let written = fs::File::create(&temporary).and_then(|mut file| {
            file.write_all(MAGIC)?;
            file.write_all(&digest_of(key, code))?;
            file.write_all(code)?;
            // Not synced: after a power cut the digest tells.
            fs::rename(&temporary, self.file(key))
        });
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        self.make_room();
        written
    }

    fn file(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.cubin"))
    }

    /// Removes the oldest files; one that another process removes, or needs again, costs a compilation at most.
    fn make_room(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let ours = |path: &Path| path.extension().is_some_and(|extension| extension == "cubin");
        let age =
            |path: &Path| path.metadata().and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let files = entries.filter_map(|entry| Some(entry.ok()?.path())).map(|path| (age(&path), path));
        let (mut kept, unfinished): (Vec<_>, Vec<_>) = files.partition(|(_, path)| ours(path));
        kept.sort();
        let surplus = kept.len().saturating_sub(FILES_MAX);
        let left_behind = unfinished.iter().filter(|(age, path)| {
            let temporary = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            temporary && age.elapsed().is_ok_and(|age| age > UNFINISHED_AGE_MAX)
        });
        for (_, path) in kept[..surplus].iter().chain(left_behind) {
            let _ = fs::remove_file(path);
        }
    }
}

/// A name for all that some code was made of: parts differ, so do names.
pub(super) fn key(parts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part.as_bytes());
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The key is part of it: a file under another's name is damaged.
fn digest_of(key: &str, code: &[u8]) -> [u8; DIGEST] {
    let mut digest = Sha256::new();
    digest.update(key.as_bytes());
    digest.update(code);
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(folder: &Path) -> Cache {
        Cache { folder: folder.join("kernels") }
    }

    #[test]
    fn what_was_kept_is_found_again_under_its_key_alone() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        let (one, other) = (key(&["a", "bc"]), key(&["ab", "c"]));
        assert_ne!(one, other);
        assert_eq!(cache.get(&one), None);
        cache.put(&one, b"code").unwrap();
        assert_eq!(cache.get(&one).as_deref(), Some(&b"code"[..]));
        assert_eq!(cache.get(&other), None);
        fs::copy(cache.file(&one), cache.file(&other)).unwrap();
        assert_eq!(cache.get(&other), None, "code of another key");
    }

    #[test]
    fn a_damaged_or_truncated_file_counts_as_absent_and_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        let key = key(&["a"]);
        cache.put(&key, b"some code").unwrap();
        let whole = fs::read(cache.file(&key)).unwrap();
        for length in 0..whole.len() {
            fs::write(cache.file(&key), &whole[..length]).unwrap();
            assert_eq!(cache.get(&key), None, "{length} bytes");
            let mut damaged = whole.clone();
            damaged[length] ^= 1;
            fs::write(cache.file(&key), &damaged).unwrap();
            assert_eq!(cache.get(&key), None, "byte {length}");
        }
        cache.put(&key, b"some code").unwrap();
        assert_eq!(cache.get(&key).as_deref(), Some(&b"some code"[..]));
    }

    #[test]
    fn many_may_write_and_read_the_same_code_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        let key = key(&["a"]);
        let code = vec![7; 100_000];
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        cache.put(&key, &code).unwrap();
                        assert!(cache.get(&key).as_ref() == Some(&code));
                    }
                });
            }
        });
        let names = fs::read_dir(&cache.folder).unwrap().count();
        assert_eq!(names, 1, "no temporary file is left");
    }

    #[test]
    fn the_oldest_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        for number in 0..FILES_MAX + 3 {
            let key = key(&[&number.to_string()]);
            cache.put(&key, b"code").unwrap();
            let age = SystemTime::UNIX_EPOCH + Duration::from_secs(number as u64);
            if let Ok(file) = fs::File::options().append(true).open(cache.file(&key)) {
                file.set_modified(age).unwrap();
            }
        }
        cache.make_room();
        assert_eq!(fs::read_dir(&cache.folder).unwrap().count(), FILES_MAX);
        assert_eq!(cache.get(&key(&["2"])), None);
        assert!(cache.get(&key(&[&(FILES_MAX + 2).to_string()])).is_some());
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_is_being_written_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        cache.put("key", b"code").unwrap();
        let (left, new) = (cache.folder.join(".key.1.0"), cache.folder.join(".key.2.0"));
        fs::write(&new, b"").unwrap();
        fs::File::create(&left).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        cache.make_room();
        assert!(!left.exists() && new.exists());
        assert!(cache.get("key").is_some());
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_a_warning() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("kernels"), b"a file in its place").unwrap();
        let warning = cache(folder.path()).put("key", b"code").unwrap_err();
        assert!(warning.to_string().contains("VIRNUCPRO_CACHE"), "{warning}");
        assert_eq!(cache(folder.path()).get("key"), None);
    }
}
