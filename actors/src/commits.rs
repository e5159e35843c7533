//! `.state/commits`: the segments that were committed since `run.json` was last written whole.
//!
//! The writer's thread commits through [`Commits`]; whoever reads a manifest gets both as one. A run of many
//! segments would spend more time on writing `run.json` anew at each commit than on the commits themselves: so
//! it does that ever more rarely, and what a commit costs does not grow with the number of segments. The file
//! names the `run.json` that it goes on from by its digest. With any other it means nothing, so that replacing
//! `run.json` is still all that it takes to begin anew, whoever does it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

use crate::files;
use crate::identity::SegmentId;
use crate::manifest::{BYTES_MAX, Manifest, ManifestError, ResultFolder, SegmentEntry};

/// With fewer segments `run.json` is written at each commit: it is small then, and people read it.
const SEGMENTS_MIN: usize = 32;
/// Of the segments that are committed, one in so many may be missing from `run.json`: a commit then costs as much as
/// writing that many entries, however many there are.
const ENTRIES_PER_COMMIT: usize = 16;
/// Begins the first line; the digest of `run.json` ends it.
const TITLE: &str = "virnucpro-commits 1 ";

/// What a commit adds to the manifest; a line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Commit {
    pub(crate) segment: u32,
    pub(crate) entry: SegmentEntry,
    /// Of devices that get less than the job's budget.
    pub(crate) device_token_budgets: BTreeMap<String, u32>,
    /// How long the session has been going on.
    pub(crate) elapsed_s: f64,
}

impl Commit {
    fn apply(self, manifest: &mut Manifest) {
        manifest.device_token_budgets = self.device_token_budgets;
        if let Some(session) = manifest.sessions.last_mut() {
            session.elapsed_s = self.elapsed_s;
        }
        manifest.commit(SegmentId(self.segment), self.entry);
    }
}

/// A manifest, and how far the disk has it.
pub(crate) struct Commits {
    folder: ResultFolder,
    manifest: Manifest,
    /// Digest of `run.json`, where that and the file beside it have everything; else it is written whole next.
    base: Option<u128>,
    file: Option<File>,
    /// Commits since `run.json` was written.
    appended: usize,
}

impl Commits {
    /// Goes on from a manifest, whatever the disk has of it.
    pub(crate) fn new(folder: ResultFolder, manifest: Manifest) -> Self {
        Self { folder, manifest, base: None, file: None, appended: 0 }
    }

    /// The manifest with everything that was committed.
    pub(crate) fn into_manifest(self) -> Manifest {
        self.manifest
    }

    /// Commits a segment: on return it counts, whatever happens next.
    ///
    /// # Errors
    /// [`ManifestError::Io`], [`ManifestError::TooLarge`]; the segment is not committed then, and may be tried again.
    pub(crate) fn commit(&mut self, commit: Commit) -> Result<(), ManifestError> {
        let segments = self.manifest.segments.len();
        let appended_max = if segments < SEGMENTS_MIN { 0 } else { segments / ENTRIES_PER_COMMIT };
        if let Some(base) = self.base.take()
            && self.appended < appended_max
            // Whatever is in the way there, a whole `run.json` does without; nothing can be appended to what may end in
            // half a line.
            && self.append(base, &commit).is_ok()
        {
            (self.base, self.appended) = (Some(base), self.appended + 1);
            commit.apply(&mut self.manifest);
            return Ok(());
        }
        let segment = SegmentId(commit.segment);
        let budgets_before = self.manifest.device_token_budgets.clone();
        commit.apply(&mut self.manifest);
        (self.file, self.appended) = (None, 0);
        match self.manifest.write_whole(&self.folder) {
            Ok(digest) => self.base = Some(digest),
            Err(error) => {
                self.manifest.revoke(segment);
                self.manifest.device_token_budgets = budgets_before;
                return Err(error);
            }
        }
        Ok(())
    }

    fn append(&mut self, base: u128, commit: &Commit) -> io::Result<()> {
        let path = self.folder.commits();
        let json = serde_json::to_vec(commit).expect("a commit is plain data");
        let line = line(base, &json);
        if let Some(file) = &self.file {
            write_all(file, &path, &line)?;
            return files::sync(file, &path);
        }
        let file = files::create(&path)?;
        write_all(&file, &path, &[title(base).as_bytes(), &line].concat())?;
        files::sync(&file, &path)?;
        files::sync_folder_of(&path)?;
        self.file = Some(file);
        Ok(())
    }
}

/// The digest that names a `run.json`.
pub fn digest_of(run_json: &[u8]) -> u128 {
    xxh3_128(run_json)
}

/// Adds to a manifest what was committed since it was written; says whether the file beside it goes on from it.
///
/// What is no file, and what follows a line that is damaged or commits a segment again, counts for nothing: those segments
/// are computed again, and [`problem`] tells a run of it.
///
/// # Errors
/// [`ManifestError::Io`].
pub(crate) fn follow(
    folder: &ResultFolder,
    base: u128,
    manifest: &mut Manifest,
) -> Result<bool, ManifestError> {
    let bytes = match read(folder) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => {
            return Ok(false);
        }
        Err(source) => return Err(ManifestError::Io { operation: "read", path: folder.commits(), source }),
    };
    let Some(commits) = parse(&bytes, base) else { return Ok(false) };
    for commit in commits {
        if manifest.segments.contains_key(&commit.segment) {
            break;
        }
        commit.apply(manifest);
    }
    Ok(true)
}

/// What is wrong with the file, where segments are lost by it that a manifest just read might have had.
///
/// For a run that is about to go on: while one is at work, the file may well go on from another manifest. A line that a
/// crash cut short is nothing wrong, nor is a file left behind whose segments are all in `run.json`.
pub fn problem(folder: &ResultFolder, manifest: &Manifest) -> Option<String> {
    let bytes = match read(folder) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(error.to_string()),
    };
    let mut lines = bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let Some(title) = lines.next() else {
        let torn = bytes.len() < TITLE.len() + 33;
        return (!torn).then(|| "it is no list of commits".to_owned());
    };
    let base = str::from_utf8(title).ok().and_then(|title| title.strip_prefix(TITLE));
    let Some(base) = base.and_then(|base| u128::from_str_radix(base.trim_end(), 16).ok()) else {
        return Some("it is no list of commits".to_owned());
    };
    let mut lost = 0;
    for (index, line) in lines.enumerate() {
        match from_line(base, line) {
            Some(commit) => lost += usize::from(!manifest.segments.contains_key(&commit.segment)),
            None => return Some(format!("line {} is damaged", index + 2)),
        }
    }
    (lost > 0).then(|| format!("it goes on from another `run.json`, which lacks {lost} of its segments"))
}

fn read(folder: &ResultFolder) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    files::open_regular(&folder.commits())?.take(BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The commits up to the first line that is not whole: what follows one never counted. `None` if the file goes on
/// from another `run.json`.
fn parse(bytes: &[u8], base: u128) -> Option<Vec<Commit>> {
    let mut lines = bytes.split_inclusive(|&byte| byte == b'\n');
    (lines.next()? == title(base).as_bytes()).then(|| lines.map_while(|line| from_line(base, line)).collect())
}

/// The first line of a file that goes on from the `run.json` of this digest.
pub fn title(base: u128) -> String {
    format!("{TITLE}{base:032x}\n")
}

/// Another line of such a file: a checksum, seeded by what the file goes on from, a blank, and the JSON of a commit.
pub fn line(base: u128, json: &[u8]) -> Vec<u8> {
    let checksum = format!("{:016x} ", checksum(base, json));
    [checksum.as_bytes(), json, b"\n"].concat()
}

fn from_line(base: u128, line: &[u8]) -> Option<Commit> {
    let (digits, json) = line.strip_suffix(b"\n")?.split_at_checked(17)?;
    let expected = format!("{:016x} ", checksum(base, json));
    (digits == expected.as_bytes()).then(|| serde_json::from_slice(json).ok())?
}

fn checksum(base: u128, json: &[u8]) -> u64 {
    xxh3_64_with_seed(json, base as u64)
}

fn write_all(file: &File, path: &Path, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match files::write(file, path, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::{empty, entry};

    fn commit(segment: u32) -> Commit {
        Commit {
            segment,
            entry: entry(segment, 5, u64::from(segment % 3), 50),
            device_token_budgets: BTreeMap::from([("sim:0".to_owned(), 1_000 + segment)]),
            elapsed_s: f64::from(segment),
        }
    }

    fn folder() -> (tempfile::TempDir, ResultFolder) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = ResultFolder(temporary.path().to_owned());
        std::fs::create_dir(folder.state()).unwrap();
        (temporary, folder)
    }

    #[test]
    fn every_commit_can_be_read_at_once_and_few_write_everything_anew() {
        let (_temporary, folder) = folder();
        let mut commits = Commits::new(folder.clone(), empty());
        let (mut bytes_of_run_json, mut whole) = (0, 0);
        let total = 400;
        for segment in 0..total {
            commits.commit(commit(segment)).unwrap();
            let read = Manifest::read(&folder).unwrap().unwrap();
            assert_eq!(read, commits.manifest, "after segment {segment}");
            let bytes = std::fs::metadata(folder.manifest()).unwrap().len();
            whole += usize::from(bytes != bytes_of_run_json);
            bytes_of_run_json = bytes;
            if (segment as usize) < SEGMENTS_MIN {
                assert_eq!(whole, segment as usize + 1, "few segments are all in `run.json`");
            }
        }
        // After that, one whole manifest for each sixteenth more.
        let rarely = (f64::from(total) / SEGMENTS_MIN as f64).ln() * 17.0;
        assert!(whole - SEGMENTS_MIN <= rarely as usize, "{whole}");
        assert!(folder.commits().exists());
        commits.into_manifest().write(&folder).unwrap();
        assert!(!folder.commits().exists());
        assert_eq!(Manifest::read(&folder).unwrap().unwrap().segments.len(), total as usize);
    }

    /// A folder whose `run.json` lacks the last commits; both, and the bytes of the file that has them.
    fn with_some_appended() -> (tempfile::TempDir, ResultFolder, Manifest, Vec<u8>) {
        let (temporary, folder) = folder();
        let mut commits = Commits::new(folder.clone(), empty());
        let mut segment = 0;
        while commits.appended < 3 {
            commits.commit(commit(segment)).unwrap();
            segment += 1;
        }
        let bytes = std::fs::read(folder.commits()).unwrap();
        (temporary, folder, commits.into_manifest(), bytes)
    }

    #[test]
    fn a_torn_or_damaged_file_gives_the_commits_before() {
        let (_temporary, folder, whole, bytes) = with_some_appended();
        let lines: Vec<usize> =
            bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
        assert_eq!(lines.len(), 4, "a title and three commits");
        let committed = |bytes: &[u8]| {
            std::fs::write(folder.commits(), bytes).unwrap();
            Manifest::read(&folder).unwrap().unwrap().segments.len()
        };
        let before = whole.segments.len() - 3;
        for cut in 0..=bytes.len() {
            let lines_whole = lines[1..].iter().filter(|&&end| end <= cut).count();
            assert_eq!(committed(&bytes[..cut]), before + lines_whole, "cut at {cut}");
        }
        for position in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[position] ^= 0x10;
            let lines_whole = lines.iter().filter(|&&end| end <= position).count().saturating_sub(1);
            assert_eq!(committed(&damaged), before + lines_whole, "damaged at {position}");
        }
    }

    #[test]
    fn what_goes_on_from_another_manifest_means_nothing() {
        let (_temporary, folder, mut whole, bytes) = with_some_appended();
        assert_eq!(Manifest::read(&folder).unwrap().unwrap(), whole);
        whole.revoke(SegmentId(0));
        whole.write(&folder).unwrap();
        assert!(!folder.commits().exists());
        // As after a crash between the two.
        std::fs::write(folder.commits(), bytes).unwrap();
        assert_eq!(Manifest::read(&folder).unwrap().unwrap(), whole);
    }

    #[test]
    fn a_segment_counts_once_and_absurd_numbers_are_refused() {
        let (_temporary, folder, whole, bytes) = with_some_appended();
        let text = String::from_utf8(bytes).unwrap();
        let last = text.lines().last().unwrap();
        std::fs::write(folder.commits(), format!("{text}{last}\n")).unwrap();
        assert_eq!(Manifest::read(&folder).unwrap().unwrap(), whole);
        // Numbers that no run has are refused as in `run.json`.
        let base = digest_of(&std::fs::read(folder.manifest()).unwrap());
        let mut absurd = commit(9_999);
        (absurd.entry.residues, absurd.entry.rows) = (u64::MAX, u64::MAX);
        let absurd = line(base, &serde_json::to_vec(&absurd).unwrap());
        std::fs::write(folder.commits(), [title(base).as_bytes(), &absurd].concat()).unwrap();
        assert!(matches!(Manifest::read(&folder), Err(ManifestError::Inconsistent { .. })));
    }

    #[test]
    fn a_run_is_told_what_it_loses() {
        let (_temporary, folder, whole, bytes) = with_some_appended();
        let told = |bytes: &[u8]| {
            std::fs::write(folder.commits(), bytes).unwrap();
            problem(&folder, &Manifest::read(&folder).unwrap().unwrap())
        };
        let title = bytes.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        // Cut by a crash, wherever.
        for cut in 0..=bytes.len() {
            assert_eq!(told(&bytes[..cut]), None, "cut at {cut}");
        }
        let mut damaged = bytes.clone();
        damaged[title + 30] ^= 1;
        assert_eq!(told(&damaged).unwrap(), "line 2 is damaged");
        assert_eq!(told(&[7; 500]).unwrap(), "it is no list of commits");
        assert_eq!(told(b"something else\n").unwrap(), "it is no list of commits");
        // Left behind by a crash after `run.json` was written whole, and beside an older one.
        let older = std::fs::read(folder.manifest()).unwrap();
        whole.write(&folder).unwrap();
        assert_eq!(told(&bytes), None);
        std::fs::write(folder.manifest(), [&older[..], b"\n"].concat()).unwrap();
        assert!(told(&bytes).unwrap().ends_with("lacks 3 of its segments"));
        std::fs::remove_file(folder.commits()).unwrap();
        std::fs::create_dir(folder.commits()).unwrap();
        let read = Manifest::read(&folder).unwrap().unwrap();
        assert!(problem(&folder, &read).unwrap().contains("not a regular file"));
    }

    #[test]
    fn what_is_in_the_way_of_the_file_costs_no_commit() {
        let (_temporary, folder, whole, _) = with_some_appended();
        let mut commits = Commits::new(folder.clone(), whole);
        let next = commits.manifest.segments.len() as u32;
        commits.commit(commit(next)).unwrap();
        // The first commit of a session writes `run.json`, the second would append.
        std::fs::create_dir(folder.commits()).unwrap();
        for segment in next + 1..next + 4 {
            commits.commit(commit(segment)).unwrap();
            assert_eq!(Manifest::read(&folder).unwrap().unwrap(), commits.manifest);
        }
        std::fs::remove_dir(folder.commits()).unwrap();
        commits.commit(commit(next + 4)).unwrap();
        assert!(folder.commits().is_file());
        assert_eq!(Manifest::read(&folder).unwrap().unwrap(), commits.manifest);
    }
}
