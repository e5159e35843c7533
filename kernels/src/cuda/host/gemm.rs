//! Matrix products by cuBLASLt, with an algorithm chosen once for each shape.
//!
//! The library's own choice is an estimate; timing its best candidates on the device finds what is faster. That is
//! done at start-up, at the tokens of a full batch, and kept on disk ([`super::plans`]).
//!
//! The same algorithm then computes batches of any size: another one might add up in another order, and values must
//! not depend on the batch that a sequence is in. Small batches pay for that, a little. Algorithms that split the
//! inner dimension over several blocks are left out where there are others.

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::path::Path;
use std::ptr;
use std::sync::Arc;

use cudarc::cublaslt::{result, sys};
use cudarc::driver::CudaStream;

use super::buffer::DeviceBytes;
use super::device::Gpu;
use super::error::{CudaError, During};
use super::libraries::{self, CudaLibrary};
use super::memory::WORKSPACE_BYTES;
use super::plans::{Choice, Fused, Plans, Product, Shape};
use super::time::Stopwatch;
use crate::cuda::Number;

/// Candidates that are timed for a shape: beyond the library's first few none was found faster by its users.
const CANDIDATES: usize = 8;

/// Measurements of a candidate; their median counts.
const REPEATS: usize = 5;

/// A measurement takes at least so long, if need be by several runs: single ones of a small model are shorter than
/// the clock is exact.
const LONG_ENOUGH_US: f32 = 300.0;
const RUNS_MAX: f32 = 16.0;

/// A candidate that took so many times the best one's time at first is not measured.
const HOPELESS: f32 = 1.5;

/// A run that takes so long is measured once: the clock is exact enough, and five of them take too long.
const LONG_US: f32 = 20_000.0;

/// Time for measuring one product's candidates; the library's order counts for those that are left. Only fp32 on large
/// models takes so long, where candidates differ little.
const TUNE_MAX_US: f32 = 400_000.0;

/// Part of the best one's time that a later candidate must stay below.
const CLEARLY: f32 = 0.98;

fn data_type(number: Number) -> sys::cudaDataType {
    match number {
        Number::F32 => sys::cudaDataType::CUDA_R_32F,
        Number::F16 => sys::cudaDataType::CUDA_R_16F,
        Number::Bf16 => sys::cudaDataType::CUDA_R_16BF,
    }
}

/// What a product does besides multiplying, with its bias.
#[derive(Debug)]
pub(super) struct Descriptor {
    raw: sys::cublasLtMatmulDesc_t,
    fused: Fused,
    out: Number,
}

// SAFETY: the library's descriptors are plain memory, not bound to a thread.
unsafe impl Send for Descriptor {}
// SAFETY: nothing is changed through a shared one.
unsafe impl Sync for Descriptor {}

impl Descriptor {
    /// `bias`: [outputs] of type `out` on the device, alive as long as products run; unused for
    /// [`Fused::Nothing`].
    pub(super) fn new(fused: Fused, out: Number, bias: u64) -> Result<Self, CudaError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let doing = "describing a matrix product";
        // True f32 for f32 factors: TF32 would be another compute type.
        let raw = result::create_matmul_desc(
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cudaDataType::CUDA_R_32F,
        )
        .during(doing)?;
        let descriptor = Self { raw, fused, out };
        descriptor.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &1i32)?;
        if fused != Fused::Nothing {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            descriptor.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            descriptor.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
            descriptor.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &(data_type(out) as i32))?;
        }
        Ok(descriptor)
    }

    fn set<V>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &V) -> Result<(), CudaError> {
        let value = ptr::from_ref(value).cast::<c_void>();
        // SAFETY: the descriptor is alive; the library copies as many bytes as the value has.
        unsafe { result::set_matmul_desc_attribute(self.raw, attribute, value, size_of::<V>()) }
            .during("describing a matrix product")
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once; the library has read it at each call.
        let _ = unsafe { result::destroy_matmul_desc(self.raw) };
    }
}

/// A matrix as the library sees it, by columns.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(number: Number, rows: usize, columns: usize) -> Result<Self, CudaError> {
        result::create_matrix_layout(data_type(number), rows as u64, columns as u64, rows as i64)
            .during("describing a matrix")
            .map(Self)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// All that a product of one shape needs.
struct Plan {
    weight: Layout,
    x: Layout,
    out: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Plan {
    fn new(shape: Shape, algorithm: [u64; 8]) -> Result<Self, CudaError> {
        Ok(Self {
            weight: Layout::new(shape.number, shape.inputs, shape.outputs)?,
            x: Layout::new(shape.number, shape.inputs, shape.rows)?,
            out: Layout::new(shape.out, shape.outputs, shape.rows)?,
            algorithm: sys::cublasLtMatmulAlgo_t { data: algorithm },
        })
    }
}

/// Places of a product's operands on the device, all aligned to 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operands {
    /// [rows, inputs].
    pub(super) x: u64,
    /// [outputs, inputs].
    pub(super) weight: u64,
    /// [rows, outputs].
    pub(super) out: u64,
}

/// The algorithm of a product.
#[derive(Clone, Copy)]
struct Chosen {
    algorithm: [u64; 8],
    rows: usize,
    /// Whether it was timed: then operands have at least so many rows.
    timed: bool,
}

struct Handle(sys::cublasLtHandle_t);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

/// The products of one device.
pub(super) struct Gemm {
    handle: Handle,
    workspace: DeviceBytes,
    stored: Plans,
    plans: HashMap<Shape, Plan>,
    /// The algorithm of each product, whatever its rows, and the rows that it was chosen at.
    chosen: HashMap<Product, Chosen>,
    /// Rows of a full batch.
    rows_full: usize,
    unwritten: bool,
}

// SAFETY: the library's handle and descriptors are not bound to a thread, and this value is used by one at a time.
unsafe impl Send for Gemm {}

impl Gemm {
    /// `folder`: where choices are kept.
    pub(super) fn new(gpu: &Gpu, stream: &Arc<CudaStream>, folder: Option<&Path>) -> Result<Self, CudaError> {
        libraries::open()?;
        let handle = Handle(result::create_handle().during("starting cuBLASLt")?);
        let workspace = DeviceBytes::new(stream, WORKSPACE_BYTES as usize)?;
        let version = |library| {
            let (major, minor) = libraries::version(library).unwrap_or_default();
            format!("{major}.{minor}")
        };
        // SAFETY: the library was opened, and this function of it found.
        let library = unsafe { sys::cublasLtGetVersion() }.to_string();
        let driver = version(CudaLibrary::Driver);
        let device = [gpu.name(), &gpu.capability().to_string(), &driver, &library];
        let stored = Plans::read(folder, &device);
        Ok(Self {
            handle,
            workspace,
            stored,
            plans: HashMap::new(),
            chosen: HashMap::new(),
            rows_full: 0,
            unwritten: false,
        })
    }

    /// Says how many rows a full batch has: algorithms are chosen for that.
    pub(super) fn set_rows_full(&mut self, rows: usize) {
        self.rows_full = rows;
    }

    /// Lets one process at a time time products, and takes what another has found meanwhile; held until dropped.
    ///
    /// Two GPUs of a kind must not choose differently because both started at once.
    pub(super) fn alone(&mut self) -> Option<std::fs::File> {
        let lock = self.stored.lock();
        self.stored.read_again();
        lock
    }

    /// Starts `out = x · weightᵀ`, then what `descriptor` adds.
    pub(super) fn run(
        &mut self,
        stream: &CudaStream,
        shape: Shape,
        descriptor: &Descriptor,
        operands: Operands,
    ) -> Result<(), CudaError> {
        debug_assert!(descriptor.fused == shape.fused && descriptor.out == shape.out);
        if !self.plans.contains_key(&shape) {
            let plan = self.plan(shape, descriptor)?;
            self.plans.insert(shape, plan);
        }
        let result = self.multiply(stream, &self.plans[&shape], descriptor, operands);
        match (result, self.chosen.get(&shape.product()).copied()) {
            // What the library accepted when it was asked it may still refuse to run.
            (Err(error), Some(chosen)) if error.is_refusal() => {
                let plan = self.instead(shape, chosen, descriptor)?;
                self.multiply(stream, &plan, descriptor, operands)?;
                self.plans.insert(shape, plan);
                Ok(())
            }
            (result, _) => result,
        }
    }

    /// Takes the algorithm that an earlier start found for a shape; false if there is none that fits.
    pub(super) fn recall(&mut self, shape: Shape, descriptor: &Descriptor) -> Result<bool, CudaError> {
        let Some(choice) = self.stored.get(&shape) else { return Ok(false) };
        let plan = Plan::new(shape, choice.algorithm)?;
        if !self.fits(&plan, descriptor) {
            return Ok(false);
        }
        self.choose(shape, plan);
        Ok(true)
    }

    fn choose(&mut self, shape: Shape, plan: Plan) {
        let chosen = Chosen { algorithm: plan.algorithm.data, rows: shape.rows, timed: true };
        self.chosen.insert(shape.product(), chosen);
        self.plans.insert(shape, plan);
    }

    /// Finds the fastest algorithm for a shape by timing. `operands` are overwritten.
    pub(super) fn tune(
        &mut self,
        stream: &CudaStream,
        shape: Shape,
        descriptor: &Descriptor,
        operands: Operands,
    ) -> Result<(), CudaError> {
        let mut plan = Plan::new(shape, [0; 8])?;
        let mut best: Option<Choice> = None;
        let stopwatch = Stopwatch::new(stream)?;
        let mut spent_us = 0.0;
        for algorithm in self.candidates(&plan, descriptor, CANDIDATES)? {
            if best.is_some() && spent_us > TUNE_MAX_US {
                break;
            }
            plan.algorithm = algorithm;
            let fastest = best.map(|best| best.microseconds);
            let product = (&plan, descriptor, operands);
            let microseconds = match self.time(stream, &stopwatch, product, fastest, &mut spent_us) {
                Ok(Some(microseconds)) => microseconds,
                Err(error) if error.is_sticky() => return Err(error),
                // A candidate that does not run after all is none.
                Ok(None) | Err(_) => continue,
            };
            // The library's order counts unless another is clearly faster: noise must not choose.
            if fastest.is_none_or(|fastest| microseconds < CLEARLY * fastest) {
                best = Some(Choice { algorithm: algorithm.data, microseconds });
            }
        }
        let best = best.ok_or(CudaError::Blas {
            doing: "timing matrix products",
            status: sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
        })?;
        plan.algorithm.data = best.algorithm;
        self.choose(shape, plan);
        self.stored.put(&shape, best);
        self.unwritten = true;
        Ok(())
    }

    /// Whether an earlier start has timed a shape.
    pub(super) fn is_stored(&self, shape: &Shape) -> bool {
        self.stored.get(shape).is_some()
    }

    /// Median time of a shape's product, in microseconds, once it was tuned.
    pub(super) fn microseconds(&self, shape: &Shape) -> Option<f32> {
        self.stored.get(shape).map(|choice| choice.microseconds)
    }

    /// Keeps new choices for the next start.
    pub(super) fn keep(&mut self) -> std::io::Result<()> {
        if std::mem::take(&mut self.unwritten) { self.stored.write() } else { Ok(()) }
    }

    fn plan(&mut self, shape: Shape, descriptor: &Descriptor) -> Result<Plan, CudaError> {
        let known = self.chosen.get(&shape.product()).copied();
        let chosen = match known {
            Some(chosen) => chosen,
            None => {
                let rows = self.rows_full.max(1);
                let algorithm = self.estimate(Shape { rows, ..shape }, descriptor)?;
                let chosen = Chosen { algorithm, rows, timed: false };
                self.chosen.insert(shape.product(), chosen);
                chosen
            }
        };
        let plan = Plan::new(shape, chosen.algorithm)?;
        if self.fits(&plan, descriptor) {
            return Ok(plan);
        }
        self.instead(shape, chosen, descriptor)
    }

    /// For rows with which the chosen algorithm does not run.
    fn instead(&self, shape: Shape, chosen: Chosen, descriptor: &Descriptor) -> Result<Plan, CudaError> {
        if chosen.timed && shape.rows < chosen.rows {
            // Rows beyond the batch's are computed in vain, so that the others have the bits they always have.
            return Plan::new(Shape { rows: chosen.rows, ..shape }, chosen.algorithm);
        }
        Plan::new(shape, self.estimate(shape, descriptor)?)
    }

    /// The library's first estimate.
    fn estimate(&self, shape: Shape, descriptor: &Descriptor) -> Result<[u64; 8], CudaError> {
        let plan = Plan::new(shape, [0; 8])?;
        let first = self.candidates(&plan, descriptor, 1)?.into_iter().next();
        let first = first.ok_or(CudaError::Blas {
            doing: "looking for an algorithm for a matrix product",
            status: sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
        })?;
        Ok(first.data)
    }

    /// Whether the library runs this plan's algorithm for its shape.
    fn fits(&self, plan: &Plan, descriptor: &Descriptor) -> bool {
        let mut found = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        // SAFETY: handle and descriptors are alive. The library checks the algorithm's words before it uses them.
        let status = unsafe {
            sys::cublasLtMatmulAlgoCheck(
                self.handle.0,
                descriptor.raw,
                plan.weight.0,
                plan.x.0,
                plan.out.0,
                plan.out.0,
                &plan.algorithm,
                found.as_mut_ptr(),
            )
        };
        // SAFETY: zeros are valid, and on success the library has written it.
        let found = unsafe { found.assume_init() };
        status.result().is_ok() && found.workspaceSize <= self.workspace.len()
    }

    /// The library's best estimates for a plan's shape.
    fn candidates(
        &self,
        plan: &Plan,
        descriptor: &Descriptor,
        most: usize,
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, CudaError> {
        let whole = self.estimates(plan, descriptor, most, true);
        match whole {
            // Better sums in parts than none at all.
            Ok(found) if found.is_empty() => self.estimates(plan, descriptor, most, false),
            Err(CudaError::Blas { status: sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED, .. }) => {
                self.estimates(plan, descriptor, most, false)
            }
            found => found,
        }
    }

    /// `whole_sums`: none that splits the inner dimension.
    fn estimates(
        &self,
        plan: &Plan,
        descriptor: &Descriptor,
        most: usize,
        whole_sums: bool,
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, CudaError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let doing = "looking for an algorithm for a matrix product";
        let preference = Preference(result::create_matmul_pref().during(doing)?);
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &self.workspace.len())?;
        if whole_sums {
            let scheme = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE as u32;
            preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &scheme)?;
        }
        let mut found = vec![MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed(); most];
        let mut count = 0;
        // SAFETY: handle and descriptors are alive; the library writes at most as many results as it is told.
        unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle.0,
                descriptor.raw,
                plan.weight.0,
                plan.x.0,
                plan.out.0,
                plan.out.0,
                preference.0,
                most as i32,
                found.as_mut_ptr().cast(),
                &mut count,
            )
        }
        .result()
        .during(doing)?;
        let count = usize::try_from(count).unwrap_or(0).min(most);
        Ok(found[..count]
            .iter()
            // SAFETY: zeros are valid, and the library has written these.
            .map(|found| unsafe { found.assume_init() })
            .filter(|found| found.state.result().is_ok() && found.workspaceSize <= self.workspace.len())
            .map(|found| found.algo)
            .collect())
    }

    /// Median time of a product in microseconds; `None` if it is clearly slower than `best`. What all runs take is added
    /// to `spent_us`.
    fn time(
        &self,
        stream: &CudaStream,
        stopwatch: &Stopwatch,
        (plan, descriptor, operands): (&Plan, &Descriptor, Operands),
        best: Option<f32>,
        spent_us: &mut f32,
    ) -> Result<Option<f32>, CudaError> {
        let multiply = || self.multiply(stream, plan, descriptor, operands);
        // The first run loads the code.
        multiply()?;
        let once = stopwatch.microseconds(stream, multiply)?;
        *spent_us += 2.0 * once;
        if best.is_some_and(|best| once > HOPELESS * best) {
            return Ok(None);
        }
        if once > LONG_US {
            return Ok(Some(once));
        }
        let runs = (LONG_ENOUGH_US / once.max(1.0)).ceil().clamp(1.0, RUNS_MAX) as usize;
        let mut times = [0.0; REPEATS];
        for time in &mut times {
            let together = stopwatch.microseconds(stream, || (0..runs).try_for_each(|_| multiply()))?;
            *time = together / runs as f32;
            *spent_us += together;
        }
        times.sort_by(f32::total_cmp);
        Ok(Some(times[REPEATS / 2]))
    }

    /// Row-major [rows, n] is the library's column-major [n, rows]: `outᵀ = weight · xᵀ`, of which the weight lies
    /// transposed.
    fn multiply(
        &self,
        stream: &CudaStream,
        plan: &Plan,
        descriptor: &Descriptor,
        operands: Operands,
    ) -> Result<(), CudaError> {
        let one = 1.0f32;
        let beta = if descriptor.fused == Fused::Residual { 1.0f32 } else { 0.0 };
        let place = |pointer: u64| pointer as usize as *const c_void;
        // SAFETY: handle, descriptors and algorithm are alive and made for each other; the operands have the shape's
        // size, and outlive the product since buffers wait when dropped. The factors' pointers are read before the
        // call returns.
        unsafe {
            result::matmul(
                self.handle.0,
                descriptor.raw,
                ptr::from_ref(&one).cast(),
                ptr::from_ref(&beta).cast(),
                place(operands.weight),
                plan.weight.0,
                place(operands.x),
                plan.x.0,
                place(operands.out),
                plan.out.0,
                place(operands.out).cast_mut(),
                plan.out.0,
                &plan.algorithm,
                place(self.workspace.pointer()).cast_mut(),
                self.workspace.len(),
                stream.cu_stream().cast(),
            )
        }
        .map_err(|error| self.what_failed(stream, error))
    }
}

impl Gemm {
    /// The library answers alike when one start was refused and when the device has failed: the device tells.
    fn what_failed(&self, stream: &CudaStream, error: result::CublasError) -> CudaError {
        use sys::cublasStatus_t as Status;
        let doing = "a matrix product";
        let unclear =
            matches!(error.0, Status::CUBLAS_STATUS_EXECUTION_FAILED | Status::CUBLAS_STATUS_INTERNAL_ERROR);
        if !unclear {
            return CudaError::Blas { doing, status: error.0 };
        }
        match stream.synchronize().during(doing) {
            Ok(()) => CudaError::Refused { doing, status: error.0 },
            Err(failed) => failed,
        }
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn set<V>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &V,
    ) -> Result<(), CudaError> {
        let value = ptr::from_ref(value).cast::<c_void>();
        // SAFETY: the preference is alive; the library copies as many bytes as the value has.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, value, size_of::<V>()) }
            .during("looking for an algorithm for a matrix product")
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
