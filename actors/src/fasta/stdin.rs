//! Standard input kept as a file, so that survey, run and resume see the same bytes.
//!
//! The caller names the file and hands over the reader; the bytes are stored as they come, compressed or
//! not. It looks at none of them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use super::error::InputError;
use super::source::Source;

/// Bytes copied at a time.
const COPY_BYTES: usize = 256 << 10;

/// Stores everything that `input` yields at `path`, which then stands for standard input.
///
/// The file appears under its name only when it is whole and on disk: it is written beside it with
/// `.partial` appended, synced and renamed. Input without a byte makes an empty file. `told` hears now and then how many
/// bytes are stored.
///
/// # Errors
/// [`InputError::Read`] if the pipe fails, [`InputError::Spool`] if the disk does; a partial file is removed. A
/// full disk is waited for, as long as it takes: what was read from the pipe is nowhere else.
pub fn spool_stdin(input: &mut dyn Read, path: &Path, told: &dyn Fn(u64)) -> Result<Source, InputError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let stored = store(input, path, partial, told);
    if stored.is_err() {
        // The first error is the one to tell; a second partial file would be overwritten anyway.
        let _ = fs::remove_file(partial);
    }
    stored.map(|()| Source::spooled_stdin(path))
}

fn store(input: &mut dyn Read, path: &Path, partial: &Path, told: &dyn Fn(u64)) -> Result<(), InputError> {
    let spool = |source| InputError::Spool { path: path.to_owned(), source };
    let mut file = File::create(partial).map_err(spool)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut bytes = 0;
    loop {
        match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                append(&mut file, &buffer[..read], path).map_err(spool)?;
                bytes += read as u64;
                told(bytes);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(InputError::Read { file: "-".to_owned(), bytes, source }),
        }
    }
    file.sync_all().map_err(spool)?;
    fs::rename(partial, path).map_err(spool)?;
    // The rename itself is safe only once its folder is on disk.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(spool)
}

/// Writes all of `bytes`, waiting while the disk has no room.
fn append(file: &mut File, bytes: &[u8], path: &Path) -> io::Result<()> {
    let mut left = bytes;
    crate::obstacle::write_when_possible(
        path,
        || false,
        |_| (),
        || {
            while !left.is_empty() {
                match file.write(left) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(written) => left = &left[written..],
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        },
    )
    .map(drop)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    struct FailsAfter(&'static [u8]);

    impl Read for FailsAfter {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Err(io::Error::other("the other end is gone"));
            }
            self.0.read(buffer)
        }
    }

    #[test]
    fn what_comes_in_is_stored_byte_for_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stdin.fasta");
        for content in [&b""[..], b">a\nMK", &[0x1f, 0x8b, 0, 255]] {
            let told = Cell::new(0);
            let source = spool_stdin(&mut &content[..], &path, &|bytes| told.set(bytes)).unwrap();
            assert_eq!(told.get(), content.len() as u64);
            assert_eq!(fs::read(&path).unwrap(), content);
            assert_eq!((source.path(), source.label()), (path.as_path(), "-"));
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_failing_pipe_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stdin.fasta");
        let error = spool_stdin(&mut FailsAfter(b">a\nMK"), &path, &|_| ()).unwrap_err();
        assert!(matches!(error, InputError::Read { bytes: 5, .. }), "{error:?}");
        assert!(!error.is_bad_input());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing/stdin.fasta");
        let error = spool_stdin(&mut &b">a\nMK"[..], &path, &|_| ()).unwrap_err();
        assert!(error.to_string().contains("missing/stdin.fasta"), "{error}");
        assert!(error.hint().is_some());
    }
}
