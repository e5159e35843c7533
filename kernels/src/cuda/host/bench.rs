//! Single kernels and products on the device: for checks against twins and for the hardware's own speed.

use std::sync::Arc;

use cudarc::driver::{CudaStream, result};

use super::buffer::DeviceBytes;
use super::compile::Modules;
use super::device::Gpu;
use super::error::{CudaError, During};
use super::gemm::{Descriptor, Gemm, Operands};
use super::launch::{Arg, launch};
use super::ops::upload_now;
use super::plans::{Fused, Shape};
use super::time::Stopwatch;
use crate::cuda::{Kernel, Launch, Number};

/// The kernels for one head width on one GPU, called one at a time.
pub struct Bench {
    gpu: Gpu,
    stream: Arc<CudaStream>,
    modules: Modules,
}

impl Bench {
    /// Compiles and loads the kernels for heads of this width.
    ///
    /// `numbers`: those that will be computed with.
    ///
    /// # Errors
    /// If the GPU or its compiler fails, or it is too old for a number type.
    pub fn open(gpu: &Gpu, numbers: &[Number], head_width: usize) -> Result<Self, CudaError> {
        let modules = Modules::load(gpu, numbers, head_width)?;
        let stream = gpu.context().new_stream().during("making a stream")?;
        Ok(Self { gpu: gpu.clone(), stream, modules })
    }

    /// Puts bytes on the device.
    ///
    /// # Errors
    /// If there is no room, or the device fails.
    pub fn upload(&self, bytes: &[u8]) -> Result<DeviceBytes, CudaError> {
        let memory = DeviceBytes::new(&self.stream, bytes.len())?;
        upload_now(&self.stream, bytes, &memory)?;
        Ok(memory)
    }

    /// Memory of so many bytes, all zero.
    ///
    /// # Errors
    /// If there is no room, or the device fails.
    pub fn zeros(&self, bytes: usize) -> Result<DeviceBytes, CudaError> {
        DeviceBytes::zeroed(&self.stream, bytes)
    }

    /// Takes bytes from the device, after all that was launched.
    ///
    /// # Errors
    /// If the device fails, or a kernel did.
    pub fn download(&self, memory: &DeviceBytes) -> Result<Vec<u8>, CudaError> {
        self.gpu.context().bind_to_thread().during("copying from the GPU")?;
        let mut bytes = vec![0; memory.len()];
        // SAFETY: both sides have so many bytes; the host's are not touched before the stream has passed.
        unsafe { result::memcpy_dtoh_async(&mut bytes, memory.pointer(), self.stream.cu_stream()) }
            .during("copying from the GPU")?;
        self.synchronize()?;
        Ok(bytes)
    }

    /// Starts a kernel; its arguments are described in its source.
    ///
    /// # Errors
    /// If it is not among those loaded, or cannot be started.
    pub fn launch(&self, kernel: Kernel, geometry: Launch, args: &[Arg]) -> Result<(), CudaError> {
        self.gpu.context().bind_to_thread().during("starting a kernel")?;
        launch(&self.stream, &self.modules.function(kernel)?, geometry, args)
    }

    /// Waits for all that was launched.
    ///
    /// # Errors
    /// If a kernel failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize().during("waiting for the GPU")
    }

    /// Median time of a kernel over `repeats` runs after one to warm up, in microseconds.
    ///
    /// # Errors
    /// As of [`Bench::launch`], or if the kernel fails.
    pub fn time(
        &self,
        kernel: Kernel,
        geometry: Launch,
        args: &[Arg],
        repeats: usize,
    ) -> Result<f32, CudaError> {
        self.launch(kernel, geometry, args)?;
        let stopwatch = Stopwatch::new(&self.stream)?;
        let run = || stopwatch.microseconds(&self.stream, || self.launch(kernel, geometry, args));
        let mut times = (0..repeats.max(1)).map(|_| run()).collect::<Result<Vec<_>, _>>()?;
        times.sort_by(f32::total_cmp);
        Ok(times[times.len() / 2])
    }

    /// The best rate that matrix products of `size`³ in f16 reach here, in TFLOP/s: by random numbers, since zeros
    /// run faster.
    ///
    /// # Errors
    /// If the three matrices do not fit, or the device fails.
    pub fn product_peak(&self, size: usize) -> Result<f64, CudaError> {
        let operands = self.noise(size * size)?;
        let weight = self.noise(size * size)?;
        let out = self.zeros(2 * size * size)?;
        let mut gemm = Gemm::new(&self.gpu, &self.stream, None)?;
        let number = Number::F16;
        let shape =
            Shape { rows: size, outputs: size, inputs: size, number, out: number, fused: Fused::Nothing };
        let descriptor = Descriptor::new(Fused::Nothing, number, 0)?;
        let places = Operands { x: operands.pointer(), weight: weight.pointer(), out: out.pointer() };
        gemm.tune(&self.stream, shape, &descriptor, places)?;
        let microseconds = gemm.microseconds(&shape).unwrap_or(f32::INFINITY);
        Ok(2.0 * (size as f64).powi(3) / f64::from(microseconds) / 1e6)
    }

    /// The rate at which the device copies `bytes` to another place of its own, in GB/s read and written.
    ///
    /// # Errors
    /// If they do not fit twice, or the device fails.
    pub fn copy_rate(&self, bytes: usize) -> Result<f64, CudaError> {
        let (from, to) = (self.zeros(bytes)?, self.zeros(bytes)?);
        let stopwatch = Stopwatch::new(&self.stream)?;
        let copy = || {
            // SAFETY: both places have so many bytes and do not overlap.
            unsafe { result::memcpy_dtod_async(to.pointer(), from.pointer(), bytes, self.stream.cu_stream()) }
                .during("copying on the GPU")
        };
        copy()?;
        let mut times =
            (0..9).map(|_| stopwatch.microseconds(&self.stream, copy)).collect::<Result<Vec<_>, _>>()?;
        times.sort_by(f32::total_cmp);
        Ok(2.0 * bytes as f64 / f64::from(times[times.len() / 2]) / 1e3)
    }

    /// f16 numbers between -1 and 1.
    fn noise(&self, count: usize) -> Result<DeviceBytes, CudaError> {
        let mut state = 1u64;
        let numbers = (0..count).flat_map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let unit = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
            half::f16::from_f32(unit).to_le_bytes()
        });
        self.upload(&numbers.collect::<Vec<u8>>())
    }
}
