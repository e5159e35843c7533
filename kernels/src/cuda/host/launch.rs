//! Launches of kernels with their arguments.

use std::ffi::c_void;

use cudarc::driver::{CudaFunction, CudaStream, result};

use super::error::{CudaError, During};
use crate::cuda::Launch;

/// One argument of a kernel; its signature is in its source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// A place on the device.
    Pointer(u64),
    /// `int`.
    Int(i32),
    /// `long long`.
    Long(i64),
    /// `float`.
    Float(f32),
}

/// Arguments of a kernel: attention has eight.
const ARGS_MAX: usize = 12;

/// Starts a kernel. One without blocks is not started: the driver would refuse it.
pub(super) fn launch(
    stream: &CudaStream,
    function: &CudaFunction,
    launch: Launch,
    args: &[Arg],
) -> Result<(), CudaError> {
    if launch.grid.contains(&0) {
        return Ok(());
    }
    if args.len() > ARGS_MAX {
        let code = cudarc::driver::sys::CUresult::CUDA_ERROR_INVALID_VALUE;
        return Err(CudaError::Driver { doing: "starting a kernel with more arguments than any has", code });
    }
    let mut values = [0u64; ARGS_MAX];
    let mut pointers = [std::ptr::null_mut::<c_void>(); ARGS_MAX];
    for ((value, pointer), arg) in values.iter_mut().zip(&mut pointers).zip(args) {
        // A pointer to the word is one to a narrower value, too: devices and their hosts are little-endian.
        *value = match *arg {
            Arg::Pointer(at) => at,
            Arg::Int(number) => u64::from(number as u32),
            Arg::Long(number) => number as u64,
            Arg::Float(number) => u64::from(number.to_bits()),
        };
        *pointer = std::ptr::from_mut(value).cast();
    }
    let [x, y, z] = launch.grid;
    let [threads_x, threads_y, threads_z] = launch.block;
    // SAFETY: the function is of a module that is loaded; its arguments are those of its signature, and the driver
    // copies them before it returns. That the places outlive the kernel is the buffers' affair: they wait when dropped.
    unsafe {
        result::launch_kernel(
            function.cu_function(),
            (x, y, z),
            (threads_x, threads_y, threads_z),
            launch.shared_bytes,
            stream.cu_stream(),
            &mut pointers[..args.len()],
        )
    }
    .during("starting a kernel")
}
