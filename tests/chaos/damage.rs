//! What happens to a result folder between two sessions.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::outcome::manifest;
use crate::toll::Kind;

/// Whether a session deletes temporary files beside those of parts that it does not write again. While it does not,
/// such files are not put there.
const EVERY_TEMPORARY_FILE_IS_DELETED: bool = true;

/// A change to a result folder; the number picks among what is there.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Damage {
    TruncatePart(u64),
    FlipBitOfPart(u64),
    DeletePart(u64),
    StrayTemporaryFile(u64),
    DeleteFailedList(u64),
}

impl Damage {
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::TruncatePart(_) => Kind::PartTruncated,
            Self::FlipBitOfPart(_) => Kind::PartFlipped,
            Self::DeletePart(_) => Kind::PartDeleted,
            Self::StrayTemporaryFile(_) => Kind::StrayTemporaryFile,
            Self::DeleteFailedList(_) => Kind::FailedListDeleted,
        }
    }

    /// Changes the folder; the name of the part that must be computed again, empty if none need be. `None`
    /// where there is nothing to change.
    pub(crate) fn strike(self, folder: &Path) -> Option<String> {
        let run = manifest(folder)?;
        let segments = run["segments"].as_object().unwrap();
        let entries: Vec<_> = segments.iter().collect();
        let part_of = |pick: u64| {
            let (_, entry) = entries.get(pick as usize % entries.len().max(1))?;
            let part = entry["part"].as_str().unwrap();
            let path = folder.join(part);
            let bytes = fs::read(&path).ok().filter(|bytes| !bytes.is_empty())?;
            Some((part.strip_prefix("embeddings/").unwrap().to_owned(), path, bytes))
        };
        match self {
            Self::TruncatePart(pick) => {
                let (part, path, bytes) = part_of(pick)?;
                fs::write(path, &bytes[..(pick >> 16) as usize % bytes.len()]).unwrap();
                Some(part)
            }
            Self::FlipBitOfPart(pick) => {
                let (part, path, mut bytes) = part_of(pick)?;
                let position = (pick >> 16) as usize % bytes.len();
                bytes[position] ^= 1 << (pick >> 60 & 7);
                fs::write(path, bytes).unwrap();
                Some(part)
            }
            Self::DeletePart(pick) => {
                let (part, path, _) = part_of(pick)?;
                fs::remove_file(path).unwrap();
                Some(part)
            }
            Self::StrayTemporaryFile(pick) => {
                fs::write(stray(folder, pick, &run)?, "half of it").unwrap();
                Some(String::new())
            }
            Self::DeleteFailedList(pick) => {
                let lists: Vec<(PathBuf, &str)> = entries
                    .iter()
                    .map(|(number, entry)| {
                        let number: u32 = number.parse().unwrap();
                        let list = folder.join(format!(".state/failed-{number:05}.tsv"));
                        (list, entry["part"].as_str().unwrap())
                    })
                    .filter(|(list, _)| list.exists())
                    .collect();
                let (list, part) = lists.get(pick as usize % lists.len().max(1))?;
                fs::remove_file(list).unwrap();
                Some(part.strip_prefix("embeddings/").unwrap().to_owned())
            }
        }
    }
}

/// A name that the program gives while it writes a file; `None` where that file will not be written again.
fn stray(folder: &Path, pick: u64, run: &Value) -> Option<PathBuf> {
    let segments = run["segments"].as_object().unwrap();
    let segment = (pick >> 16) as usize % (segments.len() + 1);
    let name = match pick % 4 {
        0 if run["status"] == "done" && !EVERY_TEMPORARY_FILE_IS_DELETED => return None,
        0 => ".run.json.tmp".to_owned(),
        1 => ".failed.tsv.tmp".to_owned(),
        2 if EVERY_TEMPORARY_FILE_IS_DELETED => format!(".state/.failed-{segment:05}.tsv.tmp"),
        _ => format!("embeddings/.part-{segment:05}.parquet.tmp"),
    };
    Some(folder.join(name))
}
