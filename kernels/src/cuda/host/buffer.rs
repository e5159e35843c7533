//! Memory on the device, and memory of the host that the device copies from and to.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, result};

use super::error::{CudaError, During};

/// Memory on the device.
///
/// Dropped, it waits for the stream first: kernels under way may still use it. So it is kept from batch to batch.
#[derive(Debug)]
pub struct DeviceBytes {
    pointer: u64,
    bytes: usize,
    stream: Arc<CudaStream>,
}

impl DeviceBytes {
    /// Allocates memory for work on `stream`; its contents are not defined.
    ///
    /// # Errors
    /// If there is not so much.
    pub fn new(stream: &Arc<CudaStream>, bytes: usize) -> Result<Self, CudaError> {
        stream.context().bind_to_thread().during("allocating memory of the GPU")?;
        // SAFETY: the context is current. An empty allocation would be an error.
        let pointer = unsafe { result::malloc_sync(bytes.max(1)) }.during("allocating memory of the GPU")?;
        Ok(Self { pointer, bytes, stream: stream.clone() })
    }

    /// As [`DeviceBytes::new`], all zero once the stream has come so far.
    ///
    /// # Errors
    /// If there is not so much.
    pub fn zeroed(stream: &Arc<CudaStream>, bytes: usize) -> Result<Self, CudaError> {
        let memory = Self::new(stream, bytes)?;
        memory.zero(bytes)?;
        Ok(memory)
    }

    /// Sets the first `bytes` to zero, in the stream's order.
    ///
    /// # Errors
    /// If the device fails.
    pub fn zero(&self, bytes: usize) -> Result<(), CudaError> {
        let bytes = bytes.min(self.bytes);
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the bytes lie inside the allocation, which outlives the stream's work (see `drop`).
        unsafe { result::memset_d8_async(self.pointer, 0, bytes, self.stream.cu_stream()) }
            .during("clearing memory of the GPU")
    }

    /// Where it is, for kernels.
    pub fn pointer(&self) -> u64 {
        self.pointer
    }

    /// Its size.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl Drop for DeviceBytes {
    fn drop(&mut self) {
        // A failure here is sticky and shows at the next call, too.
        let _ = self.stream.synchronize();
        // SAFETY: allocated by `new`, freed once; nothing under way uses it any more.
        let _ = unsafe { result::free_sync(self.pointer) };
    }
}

/// Memory of the host that stays in place, so that the device copies while the host does something else.
///
/// Cached as any other: write-combined memory would be slow to read results from.
#[derive(Debug)]
pub(super) struct PinnedBytes {
    pointer: *mut u8,
    bytes: usize,
    context: Arc<CudaContext>,
}

// SAFETY: the memory belongs to this value alone, and CUDA's allocations are not bound to a thread.
unsafe impl Send for PinnedBytes {}

impl PinnedBytes {
    pub(super) fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self, CudaError> {
        context.bind_to_thread().during("allocating pinned memory")?;
        // SAFETY: the context is current.
        let pointer = unsafe { result::malloc_host(bytes.max(1), 0) }
            .during("allocating memory that the GPU copies from and to")?
            .cast::<u8>();
        // SAFETY: freshly allocated with so many bytes; zeros make them initialised.
        unsafe { pointer.write_bytes(0, bytes.max(1)) };
        Ok(Self { pointer, bytes, context: context.clone() })
    }

    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// The bytes, while the device copies nothing to them.
    pub(super) fn as_slice(&self) -> &[u8] {
        // SAFETY: so many bytes were allocated and initialised.
        unsafe { std::slice::from_raw_parts(self.pointer, self.bytes) }
    }

    /// The bytes, while the device copies nothing from or to them.
    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: so many bytes were allocated and initialised, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.bytes) }
    }

    /// Starts to copy the first `bytes` to `to`. They must stay as they are until the stream has passed this.
    pub(super) fn upload(&self, bytes: usize, to: u64, stream: &CudaStream) -> Result<(), CudaError> {
        // SAFETY: callers hand over a place with room for the bytes and change them only after an event.
        unsafe { result::memcpy_htod_async(to, &self.as_slice()[..bytes], stream.cu_stream()) }
            .during("copying to the GPU")
    }

    /// Starts to copy `bytes` from `from` to `offset`. They are not there until the stream has passed this.
    pub(super) fn download(
        &mut self,
        offset: usize,
        from: u64,
        bytes: usize,
        stream: &CudaStream,
    ) -> Result<(), CudaError> {
        let to = &mut self.as_mut_slice()[offset..offset + bytes];
        // SAFETY: callers hand over a place with so many bytes and read them only after an event.
        unsafe { result::memcpy_dtoh_async(to, from, stream.cu_stream()) }.during("copying from the GPU")
    }
}

impl Drop for PinnedBytes {
    fn drop(&mut self) {
        // A copy under way would otherwise write to memory that is no longer ours.
        let _ = self.context.synchronize();
        // SAFETY: allocated by `new`, freed once; no copy is under way.
        let _ = unsafe { result::free_host(self.pointer.cast()) };
    }
}
