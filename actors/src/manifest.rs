//! `run.json`: what a result folder holds, what it was made from, and which segments are committed.
//!
//! The writer rewrites it after each part, or, where there are many, keeps the latest commits beside it
//! ([`crate::commits`]); a part that neither names does not count. Start-up reads both to resume. Everything that changes values is in `identity`: a run with another identity must
//! never add to this folder.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::commits;
use crate::fasta::{FileDigest, InputCounts};
use crate::files;
use crate::identity::SegmentId;
use crate::part::{self, PartChecksum, PartError, PendingFile};

/// Version of the file's layout.
pub const FORMAT: u32 = 1;

/// Size of the file at most. A segment takes under 500 bytes and an input file about as many, so half a
/// million of either fit; with more, writing it anew at each commit would take longer than the commits.
/// Something larger under its name is none of ours and must not fill the memory.
pub const BYTES_MAX: u64 = 256 << 20;

/// How often it is read again because it was replaced meanwhile.
const READS_MAX: usize = 8;

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
    /// It contradicts itself: nobody knows what is committed.
    #[error("`{}` contradicts itself: {reason}", path.display())]
    Inconsistent {
        /// The file.
        path: PathBuf,
        /// Where.
        reason: String,
    },
    /// It is, or would become, larger than [`BYTES_MAX`].
    #[error("`{}` takes {bytes} bytes or more, at most {BYTES_MAX} are allowed: make fewer, larger segments", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size, as far as it was read.
        bytes: u64,
    },
}

/// What is wrong with a committed part.
#[derive(Debug, thiserror::Error)]
pub enum PartFault {
    /// It cannot be read as a part.
    #[error(transparent)]
    Unreadable(#[from] PartError),
    /// It is shorter or longer than what was committed.
    #[error("`{part}` holds {found} bytes, expected {expected}")]
    Size {
        /// The part.
        part: String,
        /// Bytes of the file.
        found: u64,
        /// Bytes in the manifest.
        expected: u64,
    },
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
    /// Its segment's list of failed records is not the one that was committed.
    #[error("`{}` does not list the {expected} failed records of its segment: {reason}", path.display())]
    FailedList {
        /// The list.
        path: PathBuf,
        /// Failed records in the manifest.
        expected: u64,
        /// What is wrong.
        reason: String,
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

    /// The embeddings of a segment that is not complete yet.
    pub fn journal_of(&self, segment: SegmentId) -> PathBuf {
        self.state().join(format!("journal-{segment}"))
    }

    /// Segments committed since `run.json` was last written whole.
    pub fn commits(&self) -> PathBuf {
        self.state().join("commits")
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

    /// Where a running program answers questions.
    pub fn socket(&self) -> PathBuf {
        self.state().join("control.sock")
    }

    /// The latest snapshot of a run.
    pub fn snapshot(&self) -> PathBuf {
        self.state().join("snapshot.json")
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
        // A run that goes on may replace the manifest between the reading of it and of what it has committed since.
        for _ in 0..READS_MAX {
            if let Some(manifest) = Self::read_once(folder)? {
                return Ok(manifest);
            }
        }
        let source = std::io::Error::other("it is replaced faster than it can be read");
        Err(ManifestError::Io { operation: "read", path: folder.manifest(), source })
    }

    /// [`Manifest::read`]; `None` if the manifest was replaced meanwhile.
    fn read_once(folder: &ResultFolder) -> Result<Option<Option<Self>>, ManifestError> {
        let path = folder.manifest();
        let failed = |source| ManifestError::Io { operation: "read", path: path.clone(), source };
        let mut text = Vec::new();
        let file = match files::open_regular(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Some(None)),
            Err(error) => return Err(failed(error)),
        };
        // One byte more than allowed tells that there is more.
        (&file).take(BYTES_MAX + 1).read_to_end(&mut text).map_err(failed)?;
        if text.len() as u64 > BYTES_MAX {
            return Err(ManifestError::TooLarge { path, bytes: text.len() as u64 });
        }
        #[derive(Deserialize)]
        struct FormatOnly {
            format: u32,
        }
        let malformed = |source| ManifestError::Malformed { path: path.clone(), source };
        let FormatOnly { format } = serde_json::from_slice(&text).map_err(malformed)?;
        if format != FORMAT {
            return Err(ManifestError::Format { path, found: format });
        }
        let mut manifest: Self = serde_json::from_slice(&text).map_err(malformed)?;
        let is_followed = commits::follow(folder, commits::digest_of(&text), &mut manifest)?;
        if let Some(reason) = manifest.contradiction() {
            return Err(ManifestError::Inconsistent { path, reason });
        }
        // While the file is open nothing else can have its inode.
        let is_same = is_followed
            || match (file.metadata(), std::fs::metadata(&path)) {
                (Ok(read), Ok(now)) => (read.dev(), read.ino()) == (now.dev(), now.ino()),
                _ => true,
            };
        Ok(is_same.then_some(Some(manifest)))
    }

    /// What is impossible in it: the sign of an edit by hand or of a damaged file that is still JSON.
    fn contradiction(&self) -> Option<String> {
        let mut end = 0;
        let mut totals = Totals::default();
        for (&number, entry) in &self.segments {
            let segment = SegmentId(number);
            if entry.part != ResultFolder::part_name(segment) {
                return Some(format!("segment {segment} names the part `{}`", entry.part));
            }
            let records = entry.rows.checked_add(entry.failed);
            if records != Some(entry.records) {
                return Some(format!(
                    "segment {segment} has {} records, not its rows and failed",
                    entry.records
                ));
            }
            if entry.first_index < end {
                return Some(format!("segment {segment} begins before the end of the one before it"));
            }
            let Some(next) = entry.first_index.checked_add(entry.records) else {
                return Some(format!("segment {segment} ends beyond all numbers"));
            };
            end = next;
            totals.records += entry.records;
            totals.rows += entry.rows;
            totals.failed += entry.failed;
            let Some(residues) = totals.residues.checked_add(entry.residues) else {
                return Some(format!("segment {segment} has too many residues"));
            };
            totals.residues = residues;
        }
        (totals != self.totals).then(|| "its totals are not those of its segments".to_owned())
    }

    /// Replaces the manifest of a result folder at once and for good.
    ///
    /// # Errors
    /// [`ManifestError::Io`], [`ManifestError::TooLarge`].
    pub fn write(&self, folder: &ResultFolder) -> Result<(), ManifestError> {
        self.write_whole(folder).map(|_| ())
    }

    /// [`Manifest::write`]; returns the digest of what was written.
    pub(crate) fn write_whole(&self, folder: &ResultFolder) -> Result<u128, ManifestError> {
        let path = folder.manifest();
        let text = serde_json::to_vec_pretty(self).expect("a manifest is plain data");
        if text.len() as u64 > BYTES_MAX {
            // It could not be read again.
            return Err(ManifestError::TooLarge { path, bytes: text.len() as u64 });
        }
        write_whole(&path, &text).map_err(|source| ManifestError::Io { operation: "write", path, source })?;
        // It goes on from the manifest before: left behind, it means nothing.
        let _ = files::remove(&folder.commits());
        Ok(commits::digest_of(&text))
    }

    /// Adds a committed segment.
    pub fn commit(&mut self, segment: SegmentId, entry: SegmentEntry) {
        // What was read is held against the segments afterwards.
        self.totals.records = self.totals.records.saturating_add(entry.records);
        self.totals.rows = self.totals.rows.saturating_add(entry.rows);
        self.totals.failed = self.totals.failed.saturating_add(entry.failed);
        self.totals.residues = self.totals.residues.saturating_add(entry.residues);
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
    /// Checks the part against the manifest: readable footer, row count, checksum; and, if records of the
    /// segment failed, that their list is there and whole.
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
        self.check_failed_list(folder)
    }

    /// Checks that the part is there and as large as committed, without reading it.
    ///
    /// # Errors
    /// [`PartFault::Size`]; [`PartFault::Unreadable`] if it is gone.
    pub fn check_size(&self, folder: &ResultFolder) -> Result<(), PartFault> {
        let path = folder.0.join(&self.part);
        let found = match std::fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(source) => return Err(PartError::Read { path, source }.into()),
        };
        if found != self.bytes {
            return Err(PartFault::Size { part: self.part.clone(), found, expected: self.bytes });
        }
        Ok(())
    }

    /// Checks that the list of the segment's failed records is there and whole, if any failed.
    ///
    /// # Errors
    /// [`PartFault::FailedList`].
    pub fn check_failed_list(&self, folder: &ResultFolder) -> Result<(), PartFault> {
        if self.failed == 0 {
            return Ok(());
        }
        let number =
            self.part.strip_prefix("embeddings/part-").and_then(|rest| rest.strip_suffix(".parquet"));
        let Some(number) = number.and_then(|number| number.parse().ok()) else { return Ok(()) };
        let path = folder.failed_of(SegmentId(number));
        let wrong =
            |reason: String| PartFault::FailedList { path: path.clone(), expected: self.failed, reason };
        let text = match files::read_text(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(wrong("it is gone".to_owned()));
            }
            Err(error) => return Err(wrong(error.to_string())),
        };
        if !text.ends_with('\n') || text.lines().count() as u64 != self.failed {
            return Err(wrong(format!("it holds {} lines", text.lines().count())));
        }
        let records = self.first_index..self.first_index + self.records;
        let mut next = records.start;
        for line in text.lines() {
            let index = line.split_once('\t').and_then(|(index, _)| index.parse::<u64>().ok());
            match index.filter(|index| (next..records.end).contains(index)) {
                Some(index) => next = index + 1,
                None => return Err(wrong(format!("`{line}` is none of them"))),
            }
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

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn empty() -> Manifest {
        Manifest {
            format: FORMAT,
            version: "1.2.3".to_owned(),
            status: RunStatus::Running,
            reason: None,
            identity: BTreeMap::from([("model.sha256".to_owned(), "sim".to_owned())]),
            job: serde_json::json!({ "devices": ["sim:0"] }),
            input: vec![FileDigest { path: "a \" b\t.fasta".to_owned(), bytes: 7, sha256: "0".repeat(64) }],
            counts: InputCounts::default(),
            model: ModelEntry { source: "sim".to_owned(), sha256: "sim".to_owned(), layers: 0, hidden: 64 },
            devices: vec!["sim:0".to_owned()],
            token_budget: 1000,
            device_token_budgets: BTreeMap::new(),
            sessions: Vec::new(),
            totals: Totals::default(),
            segments: BTreeMap::new(),
        }
    }

    /// A segment of at most 1,000 records, in its place in the input.
    pub(crate) fn entry(segment: u32, rows: u64, failed: u64, residues: u64) -> SegmentEntry {
        SegmentEntry {
            first_index: 1_000 * u64::from(segment),
            records: rows + failed,
            rows,
            failed,
            residues,
            part: ResultFolder::part_name(SegmentId(segment)),
            bytes: residues,
            sha256: "f".repeat(64),
        }
    }

    /// What can happen to a manifest.
    #[derive(Clone, Debug)]
    enum Step {
        Commit {
            segment: u32,
            rows: u64,
            failed: u64,
            residues: u64,
        },
        Revoke(u32),
        SessionBegins {
            started_unix_s: u64,
            elapsed_ms: u64,
        },
        Ends(RunStatus, Option<String>),
        Write,
        /// The process dies: what is in memory is lost, and the next one reads.
        Crash,
    }

    fn step() -> impl Strategy<Value = Step> {
        let segment = || 0..12u32;
        let status = prop::sample::select(vec![
            RunStatus::Running,
            RunStatus::Done,
            RunStatus::Stopped,
            RunStatus::Failed,
        ]);
        prop_oneof![
            4 => (segment(), 0..500u64, 0..500u64, 0..u64::from(u32::MAX))
                .prop_map(|(segment, rows, failed, residues)| Step::Commit { segment, rows, failed, residues }),
            2 => segment().prop_map(Step::Revoke),
            1 => (any::<u32>(), any::<u32>()).prop_map(|(started, elapsed)| Step::SessionBegins {
                started_unix_s: started.into(),
                elapsed_ms: elapsed.into(),
            }),
            1 => (status, prop::option::of(".*")).prop_map(|(status, reason)| Step::Ends(status, reason)),
            3 => Just(Step::Write),
            2 => Just(Step::Crash),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn totals_are_the_sums_and_what_is_read_is_what_was_written(steps in prop::collection::vec(step(), 0..40)) {
            let folder = tempfile::tempdir().unwrap();
            let folder = ResultFolder(folder.path().to_owned());
            let mut manifest = empty();
            // The model: rows, failed and residues of each committed segment, in memory and on disk.
            let mut committed: BTreeMap<u32, (u64, u64, u64)> = BTreeMap::new();
            let mut written = None;
            for step in steps {
                match step {
                    Step::Commit { segment, rows, failed, residues } => {
                        if committed.insert(segment, (rows, failed, residues)).is_some() {
                            manifest.revoke(SegmentId(segment));
                        }
                        manifest.commit(SegmentId(segment), entry(segment, rows, failed, residues));
                    }
                    Step::Revoke(segment) => {
                        committed.remove(&segment);
                        manifest.revoke(SegmentId(segment));
                    }
                    Step::SessionBegins { started_unix_s, elapsed_ms } => manifest.sessions.push(Session {
                        started_unix_s,
                        elapsed_s: elapsed_ms as f64 / 1000.0,
                        tokens: elapsed_ms,
                        restarts: 0,
                    }),
                    Step::Ends(status, reason) => (manifest.status, manifest.reason) = (status, reason),
                    Step::Write => {
                        manifest.write(&folder).unwrap();
                        written = Some((manifest.clone(), committed.clone()));
                    }
                    Step::Crash => {
                        let read = Manifest::read(&folder).unwrap();
                        prop_assert_eq!(read.as_ref(), written.as_ref().map(|(manifest, _)| manifest));
                        manifest = read.unwrap_or_else(empty);
                        committed = written.as_ref().map(|(_, model)| model.clone()).unwrap_or_default();
                    }
                }
                let sum = |of: fn(&(u64, u64, u64)) -> u64| committed.values().map(of).sum::<u64>();
                let totals = Totals {
                    records: sum(|(rows, failed, _)| rows + failed),
                    rows: sum(|(rows, ..)| *rows),
                    failed: sum(|(_, failed, _)| *failed),
                    residues: sum(|(.., residues)| *residues),
                };
                prop_assert_eq!(manifest.totals, totals);
                prop_assert_eq!(manifest.segments.keys().collect::<Vec<_>>(), committed.keys().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let folder = ResultFolder(folder.path().to_owned());
        let mut whole = empty();
        whole.commit(SegmentId(0), entry(0, 5, 0, 50));
        whole.commit(SegmentId(1), entry(1, 6, 1, 60));
        assert_eq!(whole.contradiction(), None);
        type Edit = fn(&mut Manifest);
        let edits: [(Edit, &str); 6] = [
            (
                |m| m.segments.get_mut(&1).unwrap().part = ResultFolder::part_name(SegmentId(0)),
                "names the part",
            ),
            (|m| m.segments.get_mut(&1).unwrap().part = "../elsewhere".to_owned(), "names the part"),
            (|m| m.segments.get_mut(&1).unwrap().rows = 7, "has 7 records"),
            (|m| m.segments.get_mut(&1).unwrap().first_index = 4, "begins before"),
            (|m| m.segments.get_mut(&1).unwrap().first_index = u64::MAX, "beyond all numbers"),
            (|m| m.totals.residues += 1, "totals"),
        ];
        for (edit, expected) in edits {
            let mut edited = whole.clone();
            edit(&mut edited);
            std::fs::write(folder.manifest(), serde_json::to_vec(&edited).unwrap()).unwrap();
            let error = Manifest::read(&folder).unwrap_err().to_string();
            assert!(error.contains("contradicts itself") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_file_larger_than_any_manifest_is_not_read_into_memory() {
        let folder = tempfile::tempdir().unwrap();
        let folder = ResultFolder(folder.path().to_owned());
        // Sparse: it takes no room.
        std::fs::File::create(folder.manifest()).unwrap().set_len(BYTES_MAX * 1000).unwrap();
        let error = Manifest::read(&folder).unwrap_err();
        assert!(matches!(error, ManifestError::TooLarge { .. }), "{error}");
    }

    #[test]
    fn an_entry_takes_less_room_than_the_limit_counts_on() {
        let widest = SegmentEntry {
            first_index: u64::MAX,
            records: u64::MAX,
            rows: u64::MAX,
            failed: u64::MAX,
            residues: u64::MAX,
            part: ResultFolder::part_name(SegmentId(u32::MAX)),
            bytes: u64::MAX,
            sha256: "f".repeat(64),
        };
        let mut manifest = empty();
        let before = serde_json::to_vec_pretty(&manifest).unwrap().len();
        manifest.segments.insert(u32::MAX, widest);
        let grown = serde_json::to_vec_pretty(&manifest).unwrap().len() - before;
        assert!(grown < 500, "{grown}");
    }

    #[test]
    fn a_damaged_list_of_failed_records_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let folder = ResultFolder(folder.path().to_owned());
        std::fs::create_dir(folder.state()).unwrap();
        let list = folder.failed_of(SegmentId(3));
        let entry = entry(3, 10, 2, 0);
        let whole = "3004\ta\tf\t1\tinput\twhy\n3011\tb\tf\t9\tcompute\twhy\n";
        std::fs::write(&list, whole).unwrap();
        entry.check_failed_list(&folder).unwrap();
        let damaged = [
            &whole[..whole.len() - 1],
            &whole[..20],
            "",
            &whole.replace("3011", "3012"),
            &whole.replace("3004", "2999"),
            &whole.replace("3011", "3004"),
            &whole.replace("3011", "x"),
        ];
        for text in damaged {
            std::fs::write(&list, text).unwrap();
            let fault = entry.check_failed_list(&folder).unwrap_err();
            assert!(fault.to_string().contains("2 failed records"), "{fault}");
        }
        std::fs::write(&list, [0xff, b'\n', b'\n']).unwrap();
        assert!(entry.check_failed_list(&folder).is_err());
        std::fs::remove_file(&list).unwrap();
        let fault = entry.check_failed_list(&folder).unwrap_err();
        assert!(fault.to_string().ends_with("it is gone"), "{fault}");
        self::entry(3, 10, 0, 0).check_failed_list(&folder).unwrap();
    }

    #[test]
    fn a_part_that_is_gone_or_cut_short_is_told_by_its_size() {
        let folder = tempfile::tempdir().unwrap();
        let folder = ResultFolder(folder.path().to_owned());
        std::fs::create_dir(folder.embeddings()).unwrap();
        let entry = entry(2, 10, 0, 40);
        let gone = entry.check_size(&folder).unwrap_err();
        assert!(matches!(gone, PartFault::Unreadable(PartError::Read { .. })), "{gone}");
        for (bytes, whole) in [(39, false), (41, false), (40, true)] {
            std::fs::write(folder.0.join(&entry.part), vec![0; bytes]).unwrap();
            assert_eq!(entry.check_size(&folder).is_ok(), whole, "{bytes} bytes");
        }
    }
}
