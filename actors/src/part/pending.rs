//! A file that is complete under its own name or absent: written beside it, synced, then renamed.
//!
//! Parts and exports are written through it. It never decides what to write, nor overwrites anything
//! before the new content is safe on disk.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::files;

/// Returns the name under which `destination` is written before it is complete: `.NAME.tmp` beside it.
///
/// The dot matters: pyarrow and pandas, given a whole folder of parts, skip what a killed process left
/// behind under such a name, and so does `*.parquet`.
pub fn temporary_path(destination: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(destination.file_name().unwrap_or_default());
    name.push(".tmp");
    destination.with_file_name(name)
}

fn named(destination: &Path) -> io::Result<PathBuf> {
    if destination.file_name().is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"));
    }
    Ok(temporary_path(destination))
}

/// A file under its temporary name; removed when dropped before [`PendingFile::commit`].
#[derive(Debug)]
pub struct PendingFile {
    file: File,
    temporary: PathBuf,
    destination: PathBuf,
    renamed: bool,
}

impl PendingFile {
    /// Creates the temporary file of `destination`, emptying one that a killed process left.
    ///
    /// # Errors
    /// When the folder is missing or not writable, or `destination` names no file.
    pub fn create(destination: &Path) -> io::Result<Self> {
        let temporary = named(destination)?;
        let file = files::create(&temporary)?;
        Ok(Self { file, temporary, destination: destination.to_owned(), renamed: false })
    }

    /// As [`PendingFile::create`], for a name that several processes may want to write: one of them at a time may.
    /// Where the file system has no locks, nobody is kept out.
    ///
    /// # Errors
    /// Also [`io::ErrorKind::WouldBlock`] while another process writes it.
    pub fn create_alone(destination: &Path) -> io::Result<Self> {
        let temporary = named(destination)?;
        loop {
            // Nothing is emptied before it is known to be nobody's.
            let file = files::open_or_create(&temporary)?;
            if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            // Between opening and locking another one may have given the file its name, or removed it. Each turn of
            // this loop is the end of another one.
            let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
            let opened = place(file.metadata()?);
            if fs::metadata(&temporary).is_ok_and(|named| place(named) == opened) {
                file.set_len(0)?;
                return Ok(Self { file, temporary, destination: destination.to_owned(), renamed: false });
            }
        }
    }

    /// Returns the open file, empty at first, for who writes at places of their own choice.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the temporary name, for a library that opens files by name. It must keep the inode.
    pub fn temporary_path(&self) -> &Path {
        &self.temporary
    }

    /// Syncs the content, gives the file its name, and syncs the folder, so that neither a crash nor a
    /// power cut can leave the name with other content.
    ///
    /// # Errors
    /// When syncing or renaming fails. Before the rename the temporary file is removed; when only the
    /// folder's sync fails, the complete file stays under its name.
    pub fn commit(mut self) -> io::Result<()> {
        files::sync(&self.file, &self.temporary)?;
        files::rename(&self.temporary, &self.destination)?;
        self.renamed = true;
        files::sync_folder_of(&self.destination)
    }
}

impl Write for &PendingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        files::write(&self.file, &self.temporary, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if !self.renamed {
            // Nothing more can be done about a failure here; the name tells that the file is no result.
            let _ = files::remove(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn commit_gives_the_name_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part-00000.parquet");
        let pending = PendingFile::create(&path).unwrap();
        (&pending).write_all(b"rows").unwrap();
        assert!(!path.exists());
        pending.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"rows");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn dropping_removes_the_temporary_file_and_keeps_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part-00000.parquet");
        fs::write(&path, b"old").unwrap();
        let pending = PendingFile::create(&path).unwrap();
        (&pending).write_all(b"half a ro").unwrap();
        drop(pending);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_process_left_is_emptied() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part-00000.parquet");
        fs::write(temporary_path(&path), b"a longer left-over").unwrap();
        let pending = PendingFile::create(&path).unwrap();
        (&pending).write_all(b"new").unwrap();
        pending.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn one_of_several_writers_has_the_file_and_the_others_spoil_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("embeddings.tsv");
        fs::write(temporary_path(&path), b"a longer left-over").unwrap();
        let first = PendingFile::create_alone(&path).unwrap();
        (&first).write_all(b"first").unwrap();
        for _ in 0..2 {
            let refused = PendingFile::create_alone(&path).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        }
        first.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        let second = PendingFile::create_alone(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        drop(second);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    /// Whoever opens the temporary file right before it gets its name must not empty what has it then.
    #[test]
    fn writers_at_once_leave_the_whole_file_of_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("embeddings.tsv");
        std::thread::scope(|scope| {
            for writer in 0..4_u8 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..200 {
                        match PendingFile::create_alone(path) {
                            Ok(pending) => {
                                (&pending).write_all(&vec![b'a' + writer; 1000]).unwrap();
                                pending.commit().unwrap();
                            }
                            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                        }
                        if let Ok(content) = fs::read(path) {
                            assert!(content.len() == 1000 && content.iter().all(|&byte| byte == content[0]));
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn a_path_without_a_name_is_refused() {
        assert_eq!(PendingFile::create(Path::new("..")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn the_temporary_name_is_hidden() {
        assert_eq!(temporary_path(Path::new("a/part-1.parquet")), Path::new("a/.part-1.parquet.tmp"));
    }
}
