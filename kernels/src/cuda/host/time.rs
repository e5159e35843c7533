//! Time on the device, measured by its own events.

use std::sync::OnceLock;

use cudarc::driver::{CudaEvent, CudaStream, sys};

use super::error::{CudaError, During};
use super::libraries::{self, CudaLibrary};

/// An event that knows when it passed.
pub(super) fn timed_event(stream: &CudaStream) -> Result<CudaEvent, CudaError> {
    stream.context().new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).during("making an event")
}

/// Time between two events that have passed, in microseconds.
pub(super) fn microseconds_between(start: &CudaEvent, end: &CudaEvent) -> Result<f32, CudaError> {
    type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;
    static ELAPSED: OnceLock<Option<Elapsed>> = OnceLock::new();
    let doing = "taking the time between events";
    // The bindings call a variant that drivers before CUDA 12.8 do not have.
    let elapsed = ELAPSED.get_or_init(|| {
        // SAFETY: the signature of cuda.h, the same for both.
        unsafe {
            libraries::optional(CudaLibrary::Driver, "cuEventElapsedTime_v2")
                .or_else(|| libraries::optional(CudaLibrary::Driver, "cuEventElapsedTime"))
        }
    });
    let Some(elapsed) = elapsed else {
        return Err(CudaError::Driver { doing, code: sys::CUresult::CUDA_ERROR_NOT_FOUND });
    };
    let mut milliseconds = 0.0;
    // SAFETY: both events are alive, and were made to keep the time.
    unsafe { elapsed(&mut milliseconds, start.cu_event(), end.cu_event()) }.result().during(doing)?;
    Ok(1e3 * milliseconds)
}

/// Times what is started on one stream.
pub(super) struct Stopwatch {
    start: CudaEvent,
    end: CudaEvent,
}

impl Stopwatch {
    pub(super) fn new(stream: &CudaStream) -> Result<Self, CudaError> {
        Ok(Self { start: timed_event(stream)?, end: timed_event(stream)? })
    }

    /// Starts the time once `stream` has come so far.
    pub(super) fn start(&self, stream: &CudaStream) -> Result<(), CudaError> {
        self.start.record(stream).during("recording an event")
    }

    /// Stops it once `stream` has come so far.
    pub(super) fn stop(&self, stream: &CudaStream) -> Result<(), CudaError> {
        self.end.record(stream).during("recording an event")
    }

    /// Waits for the stop, and tells how long the device took.
    pub(super) fn read(&self) -> Result<f32, CudaError> {
        self.end.synchronize().during("waiting for an event")?;
        microseconds_between(&self.start, &self.end)
    }

    /// Starts `work` on `stream`, waits for it, and tells how long the device took.
    pub(super) fn microseconds(
        &self,
        stream: &CudaStream,
        work: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<f32, CudaError> {
        self.start(stream)?;
        work()?;
        self.stop(stream)?;
        self.read()
    }
}
