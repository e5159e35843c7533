//! The SHA-256 of a file's bytes: what the ledger keeps of a part and what `sha256sum` can confirm.
//!
//! Written parts are hashed while they are written; this module also hashes them from disk.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::Path;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use super::PartError;
use crate::files;

/// Bytes read at a time; large enough that system calls do not show beside hashing.
const READ_BYTES: usize = 1 << 20;

/// SHA-256 of a part's bytes, shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PartChecksum([u8; 32]);

impl PartChecksum {
    /// Returns the digest's 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for PartChecksum {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for PartChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PartChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PartChecksum({self})")
    }
}

/// Text that is not a SHA-256 digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a SHA-256 digest of 64 hexadecimal digits")]
pub struct ParseChecksumError(String);

impl FromStr for PartChecksum {
    type Err = ParseChecksumError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || ParseChecksumError(text.to_owned());
        // `from_str_radix` would take a sign, hence the check of every byte.
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(malformed());
        }
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| malformed())?;
        }
        Ok(Self(bytes))
    }
}

/// Hashes the file at `path`, reading it in pieces.
///
/// # Errors
/// [`PartError::Read`] when the file cannot be opened or read.
pub fn checksum(path: &Path) -> Result<PartChecksum, PartError> {
    let failed = |source| PartError::Read { path: path.to_owned(), source };
    let mut file = files::open_regular(path).map_err(failed)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(PartChecksum(hasher.finalize().into())),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// A writer that counts and hashes what reaches the writer below it.
#[derive(Debug)]
pub(super) struct HashingWriter<W> {
    inner: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W: Write> HashingWriter<W> {
    pub(super) fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), bytes: 0 }
    }

    /// Returns how many bytes the writer below took, and their digest.
    pub(super) fn finish(self) -> (u64, PartChecksum) {
        (self.bytes, PartChecksum(self.hasher.finalize().into()))
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_the_published_sha256() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, b"abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let published = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(checksum(&path).unwrap().to_string(), published);
        assert_eq!(published.parse::<PartChecksum>().unwrap(), checksum(&path).unwrap());
    }

    #[test]
    fn malformed_digests_are_refused() {
        let signed = format!("+{}", "0".repeat(63));
        for text in ["", "ab", &"g".repeat(64), &signed, &"é".repeat(32)] {
            assert!(text.parse::<PartChecksum>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = checksum(Path::new("nowhere/part-00000.parquet")).unwrap_err();
        assert_eq!(error.to_string(), "failed to read `nowhere/part-00000.parquet`");
    }
}
