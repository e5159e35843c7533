//! `run.json`: what a result folder holds, what it was made from, and which segments are committed.
//!
//! The writer rewrites it after each part; a part that it does not name does not count. Start-up reads
//! it to resume. Everything that changes values is in `identity`: a run with another identity must
//! never add to this folder.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fasta::{FileDigest, InputCounts};
use crate::identity::SegmentId;
use crate::part::{self, PartChecksum, PartError, PendingFile};

/// Version of the file's layout.
pub const FORMAT: u32 = 1;

/// What happened to the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunStatus {
    /// Going on, or killed without a word.
    Running,
    /// Every record is committed or listed in `failed.tsv`.
    Done,
    /// Stopped before the end; the same command goes on.
    Stopped,
    /// Ended by an error; after mending it the same command goes on.
    Failed,
}

/// The content of `run.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of the program that wrote it.
    pub version: String,
    /// What happened to the run.
    pub status: RunStatus,
    /// Why it is not done, for people.
    pub reason: Option<String>,
    /// Every setting that changes values, with the digests of model and inputs.
    pub identity: BTreeMap<String, String>,
    /// The resolved job.
    pub job: serde_json::Value,
    /// Inputs as they were read.
    pub input: Vec<FileDigest>,
    /// What was read and what cleaning changed.
    pub counts: InputCounts,
    /// The model's name and shape.
    pub model: ModelEntry,
    /// Devices of the latest session.
    pub devices: Vec<String>,
    /// Tokens per batch in the latest session.
    pub token_budget: u32,
    /// Devices that ran short of memory: the tokens per batch that they get, as of the last commit.
    #[serde(default)]
    pub device_token_budgets: BTreeMap<String, u32>,
    /// Each start of the program on this folder.
    pub sessions: Vec<Session>,
    /// Totals over the committed segments.
    pub totals: Totals,
    /// Committed segments, by number.
    pub segments: BTreeMap<u32, SegmentEntry>,
}

/// The model's name and shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelEntry {
    /// As given in the job.
    pub source: String,
    /// Digest of the weights, `sim` for simulated devices.
    pub sha256: String,
    /// Transformer layers.
    pub layers: usize,
    /// Width of an embedding.
    pub hidden: usize,
}

/// One start of the program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Start, seconds since 1970.
    pub started_unix_s: u64,
    /// How long it ran, as of the last commit or the end.
    pub elapsed_s: f64,
    /// Tokens computed.
    pub tokens: u64,
    /// Worker restarts.
    pub restarts: u64,
}

/// Totals over the committed segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Input records.
    pub records: u64,
    /// Rows written: one per embedded record.
    pub rows: u64,
    /// Records listed in `failed.tsv`.
    pub failed: u64,
    /// Residues of the rows.
    pub residues: u64,
}

/// A committed segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentEntry {
    /// Ordinal of its first record.
    pub first_index: u64,
    /// Input records, failed ones counted.
    pub records: u64,
    /// Rows of its part.
    pub rows: u64,
    /// Records listed in `failed.tsv`.
    pub failed: u64,
    /// Residues of its rows.
    pub residues: u64,
    /// Its part, relative to the result folder.
    pub part: String,
    /// Size of the part.
    pub bytes: u64,
    /// SHA-256 of the part.
    pub sha256: String,
}

/// What is wrong with a manifest or with what it names.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It cannot be read or written.
    #[error("failed to {operation} `{}`", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is no manifest.
    #[error("`{}` is not a run manifest", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// It comes from a program with another layout.
    #[error("`{}` has layout {found}, this program writes layout {FORMAT}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: u32,
    },
}

/// What is wrong with a committed part.
#[derive(Debug, thiserror::Error)]
pub enum PartFault {
    /// It cannot be read as a part.
    #[error(transparent)]
    Unreadable(#[from] PartError),
    /// Its bytes are not those that were committed.
    #[error("`{part}` is not the file that was committed: SHA-256 {found}, expected {expected}")]
    Checksum {
        /// The part.
        part: String,
        /// Digest of the file.
        found: String,
        /// Digest in the manifest.
        expected: String,
    },
    /// It holds another number of rows than committed.
    #[error("`{part}` holds {found} rows, expected {expected}")]
    Rows {
        /// The part.
        part: String,
        /// Rows in the footer.
        found: u64,
        /// Rows in the manifest.
        expected: u64,
    },
}

/// Paths inside a result folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResultFolder(pub PathBuf);

impl ResultFolder {
    /// `run.json`.
    pub fn manifest(&self) -> PathBuf {
        self.0.join("run.json")
    }

    /// The parts.
    pub fn embeddings(&self) -> PathBuf {
        self.0.join("embeddings")
    }

    /// Name of a segment's part, relative to the folder.
    pub fn part_name(segment: SegmentId) -> String {
        format!("embeddings/part-{segment}.parquet")
    }

    /// What the program keeps for itself: the records that failed in each segment, spooled input.
    pub fn state(&self) -> PathBuf {
        self.0.join(".state")
    }

    /// The failed records of one segment, without header line.
    pub fn failed_of(&self, segment: SegmentId) -> PathBuf {
        self.state().join(format!("failed-{segment}.tsv"))
    }

    /// Standard input, kept to be read again.
    pub fn spooled_stdin(&self) -> PathBuf {
        self.state().join("stdin.fasta")
    }

    /// All failed records.
    pub fn failed(&self) -> PathBuf {
        self.0.join("failed.tsv")
    }

    /// The log.
    pub fn log(&self) -> PathBuf {
        self.0.join("run.log")
    }

    /// The lock that keeps a second run out.
    pub fn lock(&self) -> PathBuf {
        self.state().join("lock")
    }
}

impl Manifest {
    /// Reads the manifest of a result folder; `None` where there is none.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn read(folder: &ResultFolder) -> Result<Option<Self>, ManifestError> {
        let path = folder.manifest();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ManifestError::Io { operation: "read", path, source }),
        };
        #[derive(Deserialize)]
        struct FormatOnly {
            format: u32,
        }
        let malformed = |source| ManifestError::Malformed { path: path.clone(), source };
        let FormatOnly { format } = serde_json::from_slice(&text).map_err(malformed)?;
        if format != FORMAT {
            return Err(ManifestError::Format { path, found: format });
        }
        serde_json::from_slice(&text).map_err(malformed).map(Some)
    }

    /// Replaces the manifest of a result folder at once and for good.
    ///
    /// # Errors
    /// [`ManifestError::Io`].
    pub fn write(&self, folder: &ResultFolder) -> Result<(), ManifestError> {
        let path = folder.manifest();
        let text = serde_json::to_vec_pretty(self).expect("a manifest is plain data");
        write_whole(&path, &text).map_err(|source| ManifestError::Io { operation: "write", path, source })
    }

    /// Adds a committed segment.
    pub fn commit(&mut self, segment: SegmentId, entry: SegmentEntry) {
        self.totals.records += entry.records;
        self.totals.rows += entry.rows;
        self.totals.failed += entry.failed;
        self.totals.residues += entry.residues;
        let previous = self.segments.insert(segment.0, entry);
        assert!(previous.is_none(), "segment {segment} was committed twice");
    }

    /// Takes back a segment whose part turned out bad.
    pub fn revoke(&mut self, segment: SegmentId) {
        if let Some(entry) = self.segments.remove(&segment.0) {
            self.totals.records -= entry.records;
            self.totals.rows -= entry.rows;
            self.totals.failed -= entry.failed;
            self.totals.residues -= entry.residues;
        }
    }

    /// The identities that differ: key, value here, value there.
    pub fn differences<'a>(
        &'a self,
        other: &'a BTreeMap<String, String>,
    ) -> Vec<(&'a str, &'a str, &'a str)> {
        let absent = "(absent)";
        let mut keys: Vec<&String> = self.identity.keys().chain(other.keys()).collect();
        keys.sort();
        keys.dedup();
        keys.into_iter()
            .map(|key| {
                let value = |of: &'a BTreeMap<String, String>| of.get(key).map_or(absent, String::as_str);
                (key.as_str(), value(&self.identity), value(other))
            })
            .filter(|(_, here, there)| here != there)
            .collect()
    }
}

impl SegmentEntry {
    /// Checks the part against the manifest: readable footer, row count, checksum.
    ///
    /// # Errors
    /// See [`PartFault`].
    pub fn check(&self, folder: &ResultFolder) -> Result<(), PartFault> {
        let path = folder.0.join(&self.part);
        let footer = part::read_footer(&path)?;
        if footer.rows != self.rows {
            return Err(PartFault::Rows { part: self.part.clone(), found: footer.rows, expected: self.rows });
        }
        let found: PartChecksum = part::checksum(&path)?;
        let found = found.to_string();
        if found != self.sha256 {
            return Err(PartFault::Checksum {
                part: self.part.clone(),
                found,
                expected: self.sha256.clone(),
            });
        }
        Ok(())
    }
}

/// Writes a whole file under a temporary name, syncs and renames it.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let pending = PendingFile::create(path)?;
    (&pending).write_all(bytes)?;
    pending.commit()
}
