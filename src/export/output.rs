//! One file of an export while it is written: buffered, under a temporary name, renamed when whole.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use actors::part::PendingFile;
use config::Float;
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::ExportError;

/// Bytes gathered before they are written.
const BUFFER_BYTES: usize = 1 << 20;

/// A file of an export.
pub(super) struct Output {
    path: PathBuf,
    pending: PendingFile,
    buffer: Vec<u8>,
    halves: Vec<f16>,
}

impl Output {
    /// Creates `name` in `folder`; an existing one is refused unless `force`, and so is one that another export writes.
    pub(super) fn create(folder: &Path, name: &str, force: bool) -> Result<Self, ExportError> {
        let path = folder.join(name);
        let pending = PendingFile::create_alone(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::WouldBlock => ExportError::Busy { path: path.clone() },
            _ => ExportError::Write { path: path.clone(), source },
        })?;
        // Only now: another export may just have given it its name.
        if !force && path.symlink_metadata().is_ok() {
            return Err(ExportError::Exists { path });
        }
        Ok(Self { path, pending, buffer: Vec::new(), halves: Vec::new() })
    }

    /// Returns the name that the file will have.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the name that the file has until it is whole.
    pub(super) fn temporary_path(&self) -> &Path {
        self.pending.temporary_path()
    }

    /// Appends bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.buffer.extend_from_slice(bytes);
        self.spill()
    }

    /// Appends floats in little-endian order. Values that came from f16 storage are f16 again, unchanged.
    pub(super) fn push_floats(&mut self, values: &[f32], float: Float) -> Result<(), ExportError> {
        match float {
            Float::F32 => self.buffer.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Float::F16 => {
                self.halves.resize(values.len(), f16::ZERO);
                self.halves.convert_from_f32_slice(values);
                self.buffer.extend(self.halves.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
        self.spill()
    }

    /// Writes bytes at a place of their own, apart from what is appended.
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), ExportError> {
        self.pending.file().write_all_at(bytes, offset).map_err(|source| self.failed(source))
    }

    /// Moves the place where bytes are appended.
    pub(super) fn append_from(&mut self, offset: u64) -> Result<(), ExportError> {
        use std::io::{Seek, SeekFrom};
        self.flush()?;
        self.pending.file().seek(SeekFrom::Start(offset)).map_err(|source| self.failed(source))?;
        Ok(())
    }

    /// Completes the file and gives it its name, which is returned.
    pub(super) fn commit(mut self) -> Result<PathBuf, ExportError> {
        self.flush()?;
        let Self { path, pending, .. } = self;
        match pending.commit() {
            Ok(()) => Ok(path),
            Err(source) => Err(ExportError::Write { path, source }),
        }
    }

    fn spill(&mut self) -> Result<(), ExportError> {
        if self.buffer.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), ExportError> {
        self.pending.file().write_all(&self.buffer).map_err(|source| self.failed(source))?;
        self.buffer.clear();
        Ok(())
    }

    fn failed(&self, source: std::io::Error) -> ExportError {
        ExportError::Write { path: self.path.clone(), source }
    }
}
