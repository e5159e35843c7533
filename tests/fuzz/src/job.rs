//! Job files: the text, then the texts of `--set`, apart by NUL.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use config::{Surroundings, from_text};

/// A folder with the files that the seeds name, never written to.
static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| {
    let folder = super::folder_with("proteins.fasta", b">a\nMKV\n");
    std::fs::write(folder.path().join("b.faa"), b">b\nM\n").expect("temporary files can be written");
    folder
});

/// Loads a job; one that loads survives being written out, and an error can be drawn.
pub fn enter(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    // A pattern of many folders walks the disk of whoever fuzzes: its time is the disk's, not ours.
    if text.matches(['*', '?', '[']).count() > 8 && text.contains('/')
        || text.contains("**")
        || text.contains("/*")
    {
        return false;
    }
    let mut parts = text.split('\0');
    let text = parts.next().unwrap_or_default();
    let overrides: Vec<String> = parts.map(str::to_owned).collect();
    let variables = BTreeMap::from([("HOME".to_owned(), "/home/ada".to_owned())]);
    let around = Surroundings { current_folder: FOLDER.path().to_owned(), variables };
    match from_text(text, Path::new("job.toml"), &overrides, &around) {
        Ok(job) => {
            let written = job.to_toml().expect("a job can be written");
            let again = from_text(&written, Path::new("job.toml"), &[], &around);
            assert_eq!(again.expect("a written job loads"), job, "{written}");
            true
        }
        // Drawing a report cuts the text at its spans.
        Err(error) => {
            assert!(!format!("{:?}", miette::Report::new(error)).is_empty());
            false
        }
    }
}

/// Seeds: the fixtures of the job file tests.
pub fn seeds(repository: &Path) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> = ["valid", "invalid"]
        .iter()
        .flat_map(|folder| {
            std::fs::read_dir(repository.join("config/tests").join(folder)).expect("fixtures exist")
        })
        .map(|entry| entry.expect("fixtures can be listed").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "toml"))
        .collect();
    files.sort();
    let mut seeds: Vec<Vec<u8>> =
        files.iter().map(|path| std::fs::read(path).expect("fixtures can be read")).collect();
    let smallest = "input.fasta = \"proteins.fasta\"\noutput.directory = \"results\"\n";
    seeds.push(smallest.as_bytes().to_vec());
    seeds.push(
        format!("{smallest}\0model.layer=3\0devices.use=[\"cpu\", \"sim:2\"]\0input.fasta=b.faa")
            .into_bytes(),
    );
    seeds.push(config::template().as_bytes().to_vec());
    seeds
}
