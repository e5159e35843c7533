//! One stored tensor: where its bytes are, and their conversion to `f32`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{Mmap, UncheckedAdvice};
use safetensors::{Dtype, SafeTensors};

use super::{ModelError, Weight};

/// Number type in which a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// 32-bit float.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl StoredType {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A view of one tensor's little-endian bytes.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    /// Number type of the bytes.
    pub stored: StoredType,
    /// Extents, outermost first.
    pub shape: &'a [usize],
    /// The numbers, row-major, in the file's byte order (little-endian).
    pub bytes: Cow<'a, [u8]>,
}

impl Tensor<'_> {
    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.stored.bytes()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The numbers as `f32`, converted one by one: exact for every stored type.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut numbers = vec![0.0; self.len()];
        self.read(0, &mut numbers);
        numbers
    }

    /// Converts the numbers from the `first` on into `out`: exact for every stored type.
    ///
    /// # Panics
    /// When there are not as many.
    pub fn read(&self, first: usize, out: &mut [f32]) {
        let size = self.stored.bytes();
        let bytes = &self.bytes[first * size..][..out.len() * size];
        match self.stored {
            StoredType::F32 => {
                for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *out = f32::from_le_bytes(bytes);
                }
            }
            StoredType::F16 => {
                for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = half::f16::from_le_bytes(bytes).to_f32();
                }
            }
            StoredType::Bf16 => {
                for (out, &bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *out = half::bf16::from_le_bytes(bytes).to_f32();
                }
            }
        }
    }
}

/// A weight file's bytes.
#[derive(Clone, Debug)]
pub(super) enum Bytes {
    /// Inside the program.
    Static(&'static [u8]),
    /// A mapped file.
    Mapped(Arc<Mmap>),
}

impl Bytes {
    pub(super) fn map(path: &Path) -> Result<Self, ModelError> {
        // Opening a pipe would wait for its writer, and a device has no size.
        if !path.is_file() {
            let kind = if path.exists() { ErrorKind::InvalidInput } else { ErrorKind::NotFound };
            return Err(ModelError::read(path, kind.into()));
        }
        let file = File::open(path).map_err(|source| ModelError::read(path, source))?;
        // SAFETY: the map is read-only and private to this process. Weight files are not written
        // while a model is open; truncating one under a running job would end the worker with
        // SIGBUS, which its supervisor handles like any other crash.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| ModelError::read(path, source))?;
        Ok(Self::Mapped(Arc::new(map)))
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Static(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }

    /// Lets go of the memory behind the pages that hold `range`, if it is a file's: its pages count as this
    /// process's for as long as they are mapped.
    ///
    /// They stay in the system's cache. What is read again, or shares a page with what is, comes back from there.
    fn release(&self, range: &Range<usize>) {
        match self {
            Self::Static(_) => {}
            Self::Mapped(map) => {
                // SAFETY: a read-only map of a file has no pages of its own that could be lost: whoever reads
                // there again, now or later, finds the bytes of the file, as before.
                let released = unsafe {
                    map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
                };
                // Refused where the process has locked its memory; then that is what was wanted.
                drop(released);
            }
        }
    }
}

/// Where a tensor's bytes come from.
#[derive(Clone, Debug)]
enum Origin {
    /// A range of a weight file.
    Range(Bytes, Range<usize>),
    /// An entry of a checkpoint, read when asked for.
    Checkpoint(pytorch_reader::Tensor),
}

/// A tensor as found in a file, nothing checked but its place.
#[derive(Clone, Debug)]
pub(super) struct StoredTensor {
    path: PathBuf,
    name: String,
    /// `None`: a type that is not read, named beside it.
    stored: Result<StoredType, String>,
    shape: Vec<usize>,
    origin: Origin,
}

impl StoredTensor {
    pub(super) fn from_checkpoint(path: &Path, tensor: pytorch_reader::Tensor) -> Self {
        use pytorch_reader::DType;
        let stored = match tensor.dtype() {
            DType::F32 => Ok(StoredType::F32),
            DType::F16 => Ok(StoredType::F16),
            DType::BF16 => Ok(StoredType::Bf16),
            other => Err(format!("{other:?}")),
        };
        Self {
            path: path.to_owned(),
            name: tensor.name.clone(),
            stored,
            shape: tensor.shape().to_vec(),
            origin: Origin::Checkpoint(tensor),
        }
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Refuses another shape than `expected` and number types that are not read.
    pub(super) fn check(&self, expected: &[usize]) -> Result<(), ModelError> {
        if self.shape != expected {
            return Err(ModelError::Shape {
                path: self.path.clone(),
                tensor: self.name.clone(),
                expected: expected.to_vec(),
                found: self.shape.clone(),
            });
        }
        self.stored_type().map(drop)
    }

    fn stored_type(&self) -> Result<StoredType, ModelError> {
        self.stored.clone().map_err(|found| ModelError::StoredType {
            path: self.path.clone(),
            tensor: self.name.clone(),
            found,
        })
    }

    pub(super) fn view(&self) -> Result<Tensor<'_>, ModelError> {
        let bytes = match &self.origin {
            Origin::Range(bytes, range) => Cow::Borrowed(&bytes.as_slice()[range.clone()]),
            Origin::Checkpoint(tensor) => Cow::Owned(tensor.read().map_err(|source| {
                ModelError::Checkpoint { path: self.path.clone(), source: source.into() }
            })?),
        };
        Ok(Tensor { stored: self.stored_type()?, shape: &self.shape, bytes })
    }

    /// Lets go of the memory through which views are read.
    pub(super) fn release(&self) {
        match &self.origin {
            Origin::Range(bytes, range) => bytes.release(range),
            // Its views own their bytes.
            Origin::Checkpoint(_) => {}
        }
    }
}

/// Bytes of a safetensors header: the largest ESM-2's has a hundred thousand. Parsed it takes some ten times
/// as much; `safetensors` itself takes 100 MB.
const HEADER_BYTES_MAX: u64 = 16 << 20;

/// Tensors of one file: the largest ESM-2 has about a thousand in all.
const TENSORS_MAX: usize = 65_536;

/// Adds to `found` the tensors of one safetensors file that play a part in the forward pass.
pub(super) fn index_safetensors(
    path: &Path,
    bytes: &Bytes,
    found: &mut HashMap<Weight, StoredTensor>,
) -> Result<(), ModelError> {
    let data = bytes.as_slice();
    let bad = |problem: String| ModelError::Config { path: path.to_owned(), problem };
    // A length beyond the file's end is told as what it is: no safetensors file, or one cut off.
    if let Some(&length) = data.first_chunk::<8>() {
        let header_bytes = u64::from_le_bytes(length);
        if (HEADER_BYTES_MAX + 1..data.len() as u64).contains(&header_bytes) {
            return Err(bad(format!("its header has {header_bytes} bytes, more than {HEADER_BYTES_MAX}")));
        }
    }
    // Checks that header and tensors fill the file, without a gap or overlap, and that no size overflows.
    let parsed = SafeTensors::deserialize(data)
        .map_err(|source| ModelError::Safetensors { path: path.to_owned(), source })?;
    if parsed.len() > TENSORS_MAX {
        return Err(bad(format!("it holds {} tensors, more than {TENSORS_MAX}", parsed.len())));
    }
    for (name, view) in parsed.iter() {
        let Some(weight) = Weight::from_hugging_face(name) else { continue };
        let stored = match view.dtype() {
            Dtype::F32 => Ok(StoredType::F32),
            Dtype::F16 => Ok(StoredType::F16),
            Dtype::BF16 => Ok(StoredType::Bf16),
            other => Err(format!("{other:?}")),
        };
        // The view borrows from `data`: its offset there is what outlives the parsed header.
        let start = view.data().as_ptr() as usize - data.as_ptr() as usize;
        let tensor = StoredTensor {
            path: path.to_owned(),
            name: name.to_owned(),
            stored,
            shape: view.shape().to_vec(),
            origin: Origin::Range(bytes.clone(), start..start + view.data().len()),
        };
        if let Some(earlier) = found.insert(weight, tensor) {
            let (name_before, path_before) = (earlier.name, earlier.path.display());
            return Err(bad(format!("tensor `{name}` repeats `{name_before}` of `{path_before}`")));
        }
    }
    Ok(())
}
