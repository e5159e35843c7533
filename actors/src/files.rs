//! The operations on files that a commit is made of, one function each.
//!
//! Parts, lists of failed records, the manifest and every removal go through here, so that a test can end
//! the process right after any of them and can see their order (point `file-operation`, see
//! [`crate::fault`]). What is done when, is the caller's; nothing here is retried or undone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use crate::fault;

/// Creates `path`, empty; an older file of that name is emptied.
///
/// # Errors
/// Those of the file system.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path)?;
    fault::file_operation("create", &[path]);
    Ok(file)
}

/// Opens `path` for reading and writing as it is, or creates it.
///
/// # Errors
/// Those of the file system.
pub(crate) fn open_or_create(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
    fault::file_operation("create", &[path]);
    Ok(file)
}

/// Opens a regular file for reading. Anything else under its name is refused: a pipe would make its reader
/// wait for ever.
///
/// # Errors
/// Those of the file system; [`io::ErrorKind::InvalidInput`] if it is not a regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    // Opening a pipe must not wait either; for a file the flag means nothing.
    let flags = rustix::fs::OFlags::NONBLOCK.bits();
    let file = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

/// Reads the text of a regular file.
///
/// # Errors
/// As [`open_regular`]; [`io::ErrorKind::InvalidData`] if it is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    io::read_to_string(open_regular(path)?)
}

/// Writes once to a file, perhaps less than all; `path` is its name.
///
/// # Errors
/// Those of the file system.
pub(crate) fn write(mut file: &File, path: &Path, bytes: &[u8]) -> io::Result<usize> {
    let written = file.write(bytes)?;
    fault::file_operation("write", &[path]);
    Ok(written)
}

/// Brings a file's content to disk; `path` is its name.
///
/// # Errors
/// Those of the file system, late ones of earlier writes among them.
pub(crate) fn sync(file: &File, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    fault::file_operation("sync", &[path]);
    Ok(())
}

/// Gives a file its name at once, in place of an older file of that name.
///
/// # Errors
/// Those of the file system.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    fault::file_operation("rename", &[from, to]);
    Ok(())
}

/// Brings the names in the folder of `path` to disk.
///
/// # Errors
/// Those of the file system.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = folder_of(path);
    File::open(folder)?.sync_all()?;
    fault::file_operation("sync-folder", &[folder]);
    Ok(())
}

/// Deletes a file; one that is gone already is no error.
///
/// # Errors
/// Those of the file system.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => fault::file_operation("remove", &[path]),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Creates a folder and those above it that are missing, each safely on disk where the system can do it.
///
/// # Errors
/// Those of the file system.
pub fn create_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        create_folder(above)?;
    }
    match fs::create_dir(path) {
        Ok(()) => fault::file_operation("create-folder", &[path]),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(error),
    }
    // Some folders may be written to, yet not opened; losing an empty folder to a power cut costs nothing.
    let _ = sync_folder_of(path);
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_created_with_those_above_them_and_may_exist() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b/c");
        create_folder(&deep).unwrap();
        create_folder(&deep).unwrap();
        assert!(deep.is_dir());
        let occupied = folder.path().join("occupied");
        fs::write(&occupied, "").unwrap();
        assert!(create_folder(&occupied).is_err());
        assert!(create_folder(&occupied.join("below")).is_err());
    }

    #[test]
    fn only_regular_files_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [pipe.as_path(), folder.path(), Path::new("/dev/zero")] {
            assert_eq!(open_regular(path).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{path:?}");
        }
        let file = folder.path().join("file");
        fs::write(&file, "text").unwrap();
        assert_eq!(read_text(&file).unwrap(), "text");
    }

    #[test]
    fn removing_what_is_gone_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "").unwrap();
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(remove(folder.path()).is_err(), "a folder is no file");
    }
}
