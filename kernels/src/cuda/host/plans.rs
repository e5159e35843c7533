//! Which of cuBLASLt's algorithms was fastest for which product, kept on disk for the next start.
//!
//! One file for each kind of GPU and version of the libraries. It is replaced as a whole, and one that is damaged
//! counts as absent: the search is repeated.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::cuda::Number;

/// Longest wait for another process that times products: longer than that takes for the largest model.
const LOCK_MAX: Duration = Duration::from_secs(60);
const LOCK_POLL: Duration = Duration::from_millis(50);

/// What follows a product inside the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum Fused {
    /// Nothing.
    Nothing,
    /// The bias is added.
    Bias,
    /// The bias is added, and both to what was there.
    Residual,
}

/// A product, `[rows, inputs] · [outputs, inputs]ᵀ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) rows: usize,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    /// Type of both factors.
    pub(super) number: Number,
    /// Type of result and bias.
    pub(super) out: Number,
    pub(super) fused: Fused,
}

/// Rows from which on all batches of a GPU's full size take the same algorithm. Between two starts, and between two
/// GPUs of a kind, the memory that is free differs a little, and with it a full batch.
const MANY_ROWS: usize = 4_096;

impl Shape {
    /// What it is whatever its rows.
    pub(super) fn product(&self) -> Product {
        let Self { outputs, inputs, number, out, fused, .. } = *self;
        Product { outputs, inputs, number, out, fused }
    }

    /// Its name in the file.
    fn key(&self) -> String {
        let Self { rows, outputs, inputs, number, out, fused } = self;
        let rows = if *rows >= MANY_ROWS { "many" } else { "few" };
        format!("{rows} x {outputs} x {inputs} {number} {out} {fused:?}")
    }
}

/// A product of any number of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Product {
    outputs: usize,
    inputs: usize,
    number: Number,
    out: Number,
    fused: Fused,
}

/// A chosen algorithm, in cuBLASLt's own words.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Choice {
    pub(super) algorithm: [u64; 8],
    /// Median time of the product.
    pub(super) microseconds: f32,
}

/// The choices for one kind of GPU.
#[derive(Debug)]
pub(super) struct Plans {
    /// `None`: no folder is known, so choices last as long as the process.
    file: Option<PathBuf>,
    choices: BTreeMap<String, Choice>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    digest: String,
    choices: BTreeMap<String, Choice>,
}

impl Plans {
    /// Reads the choices for `device`: all that they depend on, such as GPU, driver and library.
    pub(super) fn read(folder: Option<&Path>, device: &[&str]) -> Self {
        let file = folder.map(|folder| folder.join(format!("{}.plans", digest(device))));
        let choices = file.as_deref().and_then(stored).unwrap_or_default();
        Self { file, choices }
    }

    /// Reads what other processes have written meanwhile.
    pub(super) fn read_again(&mut self) {
        let read = self.file.as_deref().and_then(stored);
        for (key, choice) in read.into_iter().flatten() {
            self.choices.insert(key, choice);
        }
    }

    /// Waits until no other process times products of this kind of GPU, though not for ever; `None` where that
    /// cannot be told.
    pub(super) fn lock(&self) -> Option<fs::File> {
        let file = self.file.as_ref()?.with_extension("lock");
        fs::create_dir_all(file.parent()?).ok()?;
        let lock = fs::File::options().create(true).append(true).open(file).ok()?;
        let until = Instant::now() + LOCK_MAX;
        loop {
            match lock.try_lock() {
                Ok(()) => return Some(lock),
                Err(fs::TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(LOCK_POLL),
                Err(_) => return None,
            }
        }
    }

    pub(super) fn get(&self, shape: &Shape) -> Option<Choice> {
        self.choices.get(&shape.key()).copied()
    }

    pub(super) fn put(&mut self, shape: &Shape, choice: Choice) {
        self.choices.insert(shape.key(), choice);
    }

    /// Writes all choices. What another process has written meanwhile is lost, and searched for again.
    pub(super) fn write(&self) -> std::io::Result<()> {
        let (Some(file), Some(digest)) = (&self.file, digest_of(&self.choices)) else { return Ok(()) };
        let json = serde_json::to_vec(&Stored { digest, choices: self.choices.clone() })?;
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        let temporary = file.with_extension(format!("plans.{}", std::process::id()));
        let written = fs::File::create(&temporary).and_then(|mut to| {
            to.write_all(&json)?;
            // Not synced: after a power cut the digest tells.
            fs::rename(&temporary, file)
        });
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

/// The choices in a file; `None` if it is absent or damaged.
fn stored(file: &Path) -> Option<BTreeMap<String, Choice>> {
    let stored: Stored = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    (stored.digest == digest_of(&stored.choices)?).then_some(stored.choices)
}

fn digest(parts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part.as_bytes());
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest_of(choices: &BTreeMap<String, Choice>) -> Option<String> {
    Some(digest(&[&serde_json::to_string(choices).ok()?]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(rows: usize) -> Shape {
        let (number, out) = (Number::F16, Number::F32);
        Shape { rows, outputs: 20, inputs: 30, number, out, fused: Fused::Residual }
    }

    const CHOICE: Choice = Choice { algorithm: [1, u64::MAX, 3, 4, 5, 6, 7, 8], microseconds: 12.375 };

    #[test]
    fn a_choice_is_found_again_by_its_shape_on_its_device() {
        let folder = tempfile::tempdir().unwrap();
        let device = ["NVIDIA H100", "9.0", "13.0", "130100"];
        let mut plans = Plans::read(Some(folder.path()), &device);
        assert_eq!(plans.get(&shape(128)), None);
        plans.put(&shape(128), CHOICE);
        plans.write().unwrap();
        let again = Plans::read(Some(folder.path()), &device);
        assert_eq!(again.get(&shape(128)), Some(CHOICE));
        assert_eq!(again.get(&shape(256)), Some(CHOICE), "the same, whatever the rows");
        assert_eq!(again.get(&shape(33_792)), None, "but of a GPU with much more memory");
        for other in [
            Shape { outputs: 21, ..shape(128) },
            Shape { inputs: 31, ..shape(128) },
            Shape { number: Number::Bf16, ..shape(128) },
            Shape { out: Number::F16, ..shape(128) },
            Shape { fused: Fused::Bias, ..shape(128) },
        ] {
            assert_eq!(again.get(&other), None, "{other:?}");
        }
        let elsewhere = Plans::read(Some(folder.path()), &["NVIDIA H100", "9.0", "13.0", "130200"]);
        assert_eq!(elsewhere.get(&shape(128)), None);
        let names = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(names, 1, "no temporary file is left");
    }

    #[test]
    fn a_damaged_file_counts_as_absent_and_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let mut plans = Plans::read(Some(folder.path()), &["a"]);
        plans.put(&shape(128), CHOICE);
        plans.write().unwrap();
        let file = plans.file.clone().unwrap();
        let whole = fs::read(&file).unwrap();
        for place in 0..whole.len() {
            fs::write(&file, &whole[..place]).unwrap();
            assert_eq!(Plans::read(Some(folder.path()), &["a"]).get(&shape(128)), None, "{place} bytes");
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            fs::write(&file, &damaged).unwrap();
            let read = Plans::read(Some(folder.path()), &["a"]);
            assert_eq!(read.get(&shape(128)), None, "byte {place}");
        }
        plans.write().unwrap();
        assert_eq!(Plans::read(Some(folder.path()), &["a"]).get(&shape(128)), Some(CHOICE));
    }

    #[test]
    fn one_process_at_a_time_times_and_the_next_finds_what_it_has_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Plans::read(Some(folder.path()), &["a"]);
        let mut second = Plans::read(Some(folder.path()), &["a"]);
        let held = first.lock().unwrap();
        let waiting = std::thread::spawn(move || {
            let lock = second.lock();
            second.read_again();
            (lock.is_some(), second.get(&shape(128)))
        });
        std::thread::sleep(2 * LOCK_POLL);
        assert!(!waiting.is_finished());
        first.put(&shape(128), CHOICE);
        first.write().unwrap();
        drop(held);
        assert_eq!(waiting.join().unwrap(), (true, Some(CHOICE)));
    }

    #[test]
    fn without_a_folder_choices_last_as_long_as_the_process() {
        let mut plans = Plans::read(None, &["a"]);
        plans.put(&shape(128), CHOICE);
        plans.write().unwrap();
        assert_eq!(plans.get(&shape(128)), Some(CHOICE));
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), b"in the folder's place").unwrap();
        let mut plans = Plans::read(Some(&folder.path().join("file")), &["a"]);
        plans.put(&shape(128), CHOICE);
        assert!(plans.write().is_err());
    }
}
