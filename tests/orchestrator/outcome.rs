//! What a run left in its result folder, to be compared with what another run left.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use actors::part::PartReader;
use serde_json::Value;

use crate::process::{program, run};

/// A result folder at one moment.
pub(crate) struct Outcome {
    /// Every file beside the parts, too: a temporary file left behind would be one more.
    pub(crate) parts: BTreeMap<String, Vec<u8>>,
    pub(crate) failed: String,
    pub(crate) run: Value,
}

/// One row of a part.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) index: u64,
    pub(crate) id: String,
    pub(crate) length: u32,
    pub(crate) embedding: Vec<f32>,
}

impl Outcome {
    /// Reads the result folder of a run that has ended.
    #[track_caller]
    pub(crate) fn read(folder: &Path) -> Self {
        let entries = fs::read_dir(folder.join("embeddings")).unwrap();
        let parts = entries
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
            .collect();
        Self {
            parts,
            failed: fs::read_to_string(folder.join("failed.tsv")).unwrap(),
            run: manifest(folder).unwrap(),
        }
    }

    /// Fails the test unless both results are equal: every byte of every part, the failed records,
    /// the segments and the totals.
    #[track_caller]
    pub(crate) fn assert_same(&self, other: &Self, what: &str) {
        let names = |outcome: &Self| outcome.parts.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(self), names(other), "{what}: files in embeddings/");
        for (name, bytes) in &self.parts {
            assert!(bytes == &other.parts[name], "{what}: `{name}` differs");
        }
        assert_eq!(self.failed, other.failed, "{what}: failed.tsv");
        for key in ["segments", "totals", "counts", "identity"] {
            assert_eq!(self.run[key], other.run[key], "{what}: {key} of run.json");
        }
        assert_eq!(self.run["status"], "done", "{what}");
    }

    /// Every row, in the order of the parts.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        // The result folder may be gone by now: the parts are read from where they are kept.
        let file = tempfile::NamedTempFile::new().unwrap();
        for bytes in self.parts.values() {
            fs::write(file.path(), bytes).unwrap();
            let mut part = PartReader::open(file.path()).unwrap();
            while let Some(row) = part.next_row().unwrap() {
                let (index, id, length) = (row.index, row.id.to_owned(), row.length);
                rows.push(Row { index, id, length, embedding: row.embedding.to_vec() });
            }
        }
        rows
    }

    /// The embeddings by id.
    pub(crate) fn by_id(&self) -> BTreeMap<String, Vec<f32>> {
        let rows = self.rows();
        let count = rows.len();
        let by_id: BTreeMap<_, _> = rows.into_iter().map(|row| (row.id, row.embedding)).collect();
        assert_eq!(by_id.len(), count, "an id occurs twice");
        by_id
    }

    /// The lines of `failed.tsv`, header left out, each as its columns.
    pub(crate) fn failed_records(&self) -> Vec<Vec<&str>> {
        let mut lines = self.failed.lines();
        assert_eq!(lines.next(), Some("index\tid\tfile\tline\tstage\treason"));
        lines.map(|line| line.split('\t').collect()).collect()
    }

    /// Worker restarts of the last session.
    pub(crate) fn restarts(&self) -> u64 {
        self.run["sessions"].as_array().unwrap().last().unwrap()["restarts"].as_u64().unwrap()
    }
}

/// The `run.json` of a result folder; `None` while there is none.
pub(crate) fn manifest(folder: &Path) -> Option<Value> {
    let text = fs::read(folder.join("run.json")).ok()?;
    Some(serde_json::from_slice(&text).unwrap())
}

/// How many segments a run has committed so far.
pub(crate) fn segments_committed(folder: &Path) -> usize {
    manifest(folder).map_or(0, |run| run["segments"].as_object().unwrap().len())
}

/// How many sequences the running session has computed so far.
pub(crate) fn computed_so_far(folder: &Path) -> u64 {
    let status = run(program(["status", "--json"]).arg(folder));
    let status: Value = serde_json::from_str(&status.stdout).unwrap_or_default();
    status["snapshot"]["sequences_computed"].as_u64().unwrap_or(0)
}

/// How many sequences a session took from the journal, by its last word on it.
pub(crate) fn taken_from_journal(stderr: &str) -> u64 {
    let line = stderr.lines().rfind(|line| line.contains("taken from the journal"));
    let count = line.and_then(|line| line.split("sequences=").nth(1)?.split_whitespace().next());
    count.map_or(0, |count| count.parse().unwrap())
}

/// Inode and time of change of every committed part: they stay while nobody writes it again.
pub(crate) fn committed_files(folder: &Path) -> BTreeMap<String, (u64, i64, i64)> {
    use std::os::unix::fs::MetadataExt;
    let Some(run) = manifest(folder) else { return BTreeMap::new() };
    let parts = run["segments"].as_object().unwrap().values().map(|entry| entry["part"].as_str().unwrap());
    parts
        .map(|part| {
            let metadata = fs::metadata(folder.join(part)).unwrap();
            (part.to_owned(), (metadata.ino(), metadata.mtime(), metadata.mtime_nsec()))
        })
        .collect()
}
