//! The forward pass's operations on a GPU.
//!
//! Every operation only enqueues. One stream computes, one copies inputs to the device, one copies results from it;
//! events order them, and the host waits for nothing but the results it takes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{CudaEvent, CudaFunction, CudaStream};

use super::buffer::DeviceBytes;
use super::compile::{self, Modules};
use super::device::Gpu;
use super::error::{CudaError, During};
use super::gemm::{Descriptor, Gemm, Operands};
use super::graphs::{Graph, Graphs, Key, Next, Size, Step};
use super::launch::{Arg, launch};
use super::memory::{self, Numbers};
use super::plans::{Fused, Shape};
use super::profile::{Profile, Recorder, WorkClass};
use super::slots::{Input, InputLayout, Outputs, SLOTS, Slot};
use super::time::Stopwatch;
use super::upload::Uploader;
use crate::cuda::twin::PoolMode;
use crate::cuda::{Kernel, Launch, Number, ROTATED_BEYOND, attention_scale, rotary_angles};
use crate::model::Tensor;
use crate::ops::{Epilogue, LinearRows, Ops, PooledRows};
use crate::{Batch, EngineError, Pooling, Progress};

/// Between two looks at an event: a hundredth of a small model's batch.
const POLL_INTERVAL: Duration = Duration::from_micros(50);

/// Rotary positions that there are from the start: ESM-2's own limit.
const POSITIONS_MIN: usize = 1_024;

/// The GPU's implementation of [`Ops`].
pub(super) struct CudaOps {
    computing: Arc<CudaStream>,
    copying_in: Arc<CudaStream>,
    copying_out: Arc<CudaStream>,
    /// `None`: every kernel is started by itself. Ends before the code that it starts.
    graphs: Option<Graphs<Graph>>,
    /// The work of the batch that is being handed over, where there are graphs.
    work: Option<Vec<Step>>,
    modules: Modules,
    functions: HashMap<Kernel, CudaFunction>,
    gemm: Gemm,
    /// Products onto a residual stream that the library does not have with a bias, by the type of their factors.
    apart: HashMap<Number, Apart>,
    head_width: usize,
    /// Types of what is prepared and allocated from now on.
    numbers: Numbers,
    /// Those that the engine was made for.
    numbers_usual: Numbers,
    token_budget: usize,
    /// Rows of a full batch.
    rows_full: usize,
    rotary: Option<Rotary>,
    slots: Vec<Slot>,
    next: usize,
    /// Pooled rows and, after them, a flag per sequence; copied away before the next batch writes its own.
    rows: Option<DeviceBytes>,
    /// The slot whose rows were copied last.
    copied: Option<usize>,
    /// Free places of the host for results.
    outputs: Outputs,
    uploader: Option<Uploader>,
    recorder: Option<Recorder>,
    /// What is not as it should be, though all goes on; taken by [`CudaOps::take_warnings`].
    warnings: Vec<String>,
}

/// How a product onto a residual stream is computed by parts.
struct Apart {
    product: Descriptor,
    /// [rows of a full batch, outputs].
    result: Option<DeviceBytes>,
}

impl Drop for CudaOps {
    fn drop(&mut self) {
        // Kernels under way still need their code. A device that failed answers at once.
        let _ = self.settle(0);
    }
}

/// Cosines, then sines, [positions, head width / 2] each.
struct Rotary {
    angles: DeviceBytes,
    positions: usize,
    sines: u64,
}

/// Memory for activations, [rows, width].
pub(super) struct Activations {
    memory: DeviceBytes,
    /// Type of what it holds now.
    number: Number,
}

/// A batch on the device.
pub(super) struct Layout {
    slot: usize,
    input: u64,
    parts: InputLayout,
    tokens: usize,
    sequences: usize,
    /// Tokens of the longest sequence.
    longest: usize,
    /// The batch's own, of which pooling takes no more.
    tiles: usize,
    /// Those that blocks are started for.
    tiles_started: usize,
    /// Rows that products compute.
    rows: usize,
    /// Rows that everything else computes: the tokens, or as many as the products where a graph is to fit the next
    /// batch, too.
    rows_started: usize,
    /// Rows that leave the device, for each way of pooling them.
    pooled: [usize; 2],
}

impl Layout {
    fn part(&self, offset: usize) -> Arg {
        Arg::Pointer(self.input + offset as u64)
    }
}

/// Token embeddings, [vocab, hidden].
pub(super) struct Table {
    values: DeviceBytes,
    number: Number,
    hidden: usize,
}

/// Scale, then shift, f32.
pub(super) struct Norm {
    scale: DeviceBytes,
    shift: DeviceBytes,
    out: Number,
    width: usize,
    eps: f32,
}

/// Weights of a linear layer, [outputs, inputs], and what its products do with the bias.
pub(super) struct Linear {
    weight: DeviceBytes,
    _biases: Vec<DeviceBytes>,
    bias: Arc<Descriptor>,
    residual: Arc<Descriptor>,
    /// The bias in the residual stream's type.
    bias_residual: u64,
    numbers: Numbers,
    inputs: usize,
    outputs: usize,
}

/// Rows on their way to the host.
#[derive(Debug)]
pub(super) struct Pooled {
    slot: usize,
    rows_bytes: usize,
    sequences: usize,
    tokens: usize,
}

/// What a call that failed means for a batch of so many tokens.
fn of(tokens: usize) -> impl Fn(CudaError) -> EngineError {
    move |error| error.into_engine_error(tokens)
}

impl CudaOps {
    pub(super) fn new(
        gpu: &Gpu,
        modules: Modules,
        numbers: Numbers,
        head_width: usize,
    ) -> Result<Self, CudaError> {
        let context = gpu.context();
        // SAFETY: all that several streams use is ordered by the events of this module and of `slots`; buffers wait
        // for the computing stream when dropped. The bindings' own tracking would record two events per operand.
        unsafe { context.disable_event_tracking() };
        let stream = || context.new_stream().during("making a stream");
        let (computing, copying_in, copying_out) = (stream()?, stream()?, stream()?);
        let gemm = Gemm::new(gpu, &computing, compile::folder().as_deref())?;
        let slots = (0..SLOTS).map(|_| Slot::new(context)).collect::<Result<_, _>>()?;
        Ok(Self {
            computing,
            copying_in,
            copying_out,
            graphs: None,
            work: None,
            modules,
            functions: HashMap::new(),
            gemm,
            apart: HashMap::new(),
            head_width,
            numbers,
            numbers_usual: numbers,
            token_budget: memory::TOKENS_MAX,
            rows_full: 0,
            rotary: None,
            slots,
            next: 0,
            rows: None,
            copied: None,
            outputs: Outputs::default(),
            uploader: None,
            recorder: None,
            warnings: Vec::new(),
        })
    }

    pub(super) fn set_token_budget(&mut self, tokens: usize) {
        self.token_budget = tokens;
    }

    /// Sets the types of what is prepared and allocated from now on; returns those before.
    pub(super) fn set_numbers(&mut self, numbers: Numbers) -> Numbers {
        std::mem::replace(&mut self.numbers, numbers)
    }

    /// Waits until the weights that were prepared are on the device, and gives back what that took.
    pub(super) fn finish_uploads(&mut self) -> Result<(), EngineError> {
        let Some(uploader) = self.uploader.take() else { return Ok(()) };
        if uploader.finish().map_err(of(0))? {
            return Err(EngineError::Model(format!(
                "weights are too large for {}: set model.precision to \"bf16\" or \"fp32\"",
                self.numbers.inside
            )));
        }
        Ok(())
    }

    /// Waits for all that was enqueued, and forgets what was not finished: a batch failed half-way.
    pub(super) fn settle(&mut self, tokens: usize) -> Result<(), EngineError> {
        self.uploader = None;
        self.work = None;
        for stream in [&self.copying_in, &self.computing, &self.copying_out] {
            stream.synchronize().during("waiting for the GPU").map_err(of(tokens))?;
        }
        Ok(())
    }

    /// Says how many rows a full batch has; see [`Gemm::set_rows_full`].
    pub(super) fn set_rows_full(&mut self, rows: usize) {
        self.gemm.set_rows_full(rows);
        self.rows_full = rows;
    }

    /// Uses these graphs from now on, or none; returns those before.
    pub(super) fn replace_graphs(&mut self, graphs: Option<Graphs<Graph>>) -> Option<Graphs<Graph>> {
        std::mem::replace(&mut self.graphs, graphs)
    }

    /// Whether batches are started as graphs.
    pub(super) fn has_graphs(&self) -> bool {
        self.graphs.is_some()
    }

    /// A clock of what the device computes.
    pub(super) fn stopwatch(&self) -> Result<Stopwatch, CudaError> {
        Stopwatch::new(&self.computing)
    }

    /// The stream that computes.
    pub(super) fn computing(&self) -> &CudaStream {
        &self.computing
    }

    /// What was noticed since this was asked for.
    pub(super) fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Median time of this layer's product with `rows` rows, once it was timed.
    pub(super) fn product_microseconds(
        &self,
        rows: usize,
        linear: &Linear,
        epilogue: Epilogue,
    ) -> Option<f32> {
        let (shape, _) = product(rows, linear, epilogue);
        let shape = if self.is_apart(shape) { apart(shape) } else { shape };
        self.gemm.microseconds(&shape)
    }

    /// Lets this process alone time products; see [`Gemm::alone`].
    pub(super) fn time_alone(&mut self) -> Option<std::fs::File> {
        self.gemm.alone()
    }

    /// Whether an earlier start has timed products of `rows` rows of this layer; see [`Gemm::recall`].
    pub(super) fn recall(
        &mut self,
        rows: usize,
        linear: &Linear,
        epilogue: Epilogue,
    ) -> Result<bool, EngineError> {
        let (shape, descriptor) = product(rows, linear, epilogue);
        if self.gemm.recall(shape, descriptor).map_err(of(rows))? {
            return Ok(true);
        }
        if shape.fused != Fused::Residual || !self.gemm.is_stored(&apart(shape)) {
            return Ok(false);
        }
        // An earlier start has found that the library does not have it.
        self.set_apart(shape).map_err(of(rows))?;
        let Some(Apart { product, .. }) = self.apart.get(&shape.number) else { return Ok(false) };
        self.gemm.recall(apart(shape), product).map_err(of(rows))
    }

    /// Times matrix products of `rows` rows with this layer's weights; see [`Gemm::tune`].
    pub(super) fn tune(
        &mut self,
        rows: usize,
        x: &Activations,
        linear: &Linear,
        epilogue: Epilogue,
        out: &Activations,
    ) -> Result<(), EngineError> {
        let (shape, descriptor) = product(rows, linear, epilogue);
        let operands = operands(x, linear, out);
        if !self.is_apart(shape) {
            match self.gemm.tune(&self.computing, shape, descriptor, operands) {
                Err(error) if shape.fused == Fused::Residual && error.is_unsupported() => {
                    self.set_apart(shape).map_err(of(rows))?;
                }
                tuned => return tuned.map_err(of(rows)),
            }
        }
        let result = self.reserve_apart(shape).map_err(of(rows))?;
        let Some(Apart { product, .. }) = self.apart.get(&shape.number) else { return Ok(()) };
        let operands = Operands { out: result, ..operands };
        self.gemm.tune(&self.computing, apart(shape), product, operands).map_err(of(rows))
    }

    fn is_apart(&self, shape: Shape) -> bool {
        shape.fused == Fused::Residual && self.apart.contains_key(&shape.number)
    }

    /// From now on, products like this one are added to the residual stream by a kernel.
    fn set_apart(&mut self, shape: Shape) -> Result<(), CudaError> {
        if self.is_apart(shape) {
            return Ok(());
        }
        let product = Descriptor::new(Fused::Nothing, shape.number, 0)?;
        self.apart.insert(shape.number, Apart { product, result: None });
        self.warnings.push(format!(
            "this cuBLASLt has no {} product that adds to what is there with a bias: a kernel adds both, which takes \
             a little longer; a newer cuBLASLt may have it",
            shape.number
        ));
        Ok(())
    }

    /// Room for the result of such a product.
    fn reserve_apart(&mut self, shape: Shape) -> Result<u64, CudaError> {
        // An algorithm may compute the rows of a full batch, whatever the batch has.
        let bytes = shape.rows.max(self.rows_full) * shape.outputs * shape.number.bytes();
        let Some(Apart { result, .. }) = self.apart.get_mut(&shape.number) else { return Ok(0) };
        if result.as_ref().is_none_or(|result| result.len() < bytes) {
            // Others of them may have been captured.
            if let Some(graphs) = &mut self.graphs {
                graphs.end_all();
            }
            *result = None;
            *result = Some(DeviceBytes::new(&self.computing, bytes)?);
        }
        Ok(result.as_ref().map_or(0, DeviceBytes::pointer))
    }

    /// Starts a product, by parts where the library does not have it in one.
    fn multiply(
        &mut self,
        shape: Shape,
        descriptor: &Descriptor,
        operands: Operands,
        bias: u64,
    ) -> Result<(), CudaError> {
        if !self.is_apart(shape) {
            match self.gemm.run(&self.computing, shape, descriptor, operands) {
                Err(error) if shape.fused == Fused::Residual && error.is_unsupported() => {
                    self.set_apart(shape)?;
                }
                started => return started,
            }
        }
        let result = self.reserve_apart(shape)?;
        if let Some(Apart { product, .. }) = self.apart.get(&shape.number) {
            self.gemm.run(&self.computing, apart(shape), product, Operands { out: result, ..operands })?;
        }
        let kernel = Kernel::BiasResidual { product: shape.number, residual: shape.out };
        let args = [
            Arg::Pointer(result),
            Arg::Pointer(bias),
            Arg::Pointer(operands.out),
            Arg::Int(shape.outputs as i32),
        ];
        self.start(kernel, Launch::per_row(shape.rows, shape.outputs), &args)
    }

    /// Keeps what was found by timing; why it could not be kept, if so.
    pub(super) fn keep_plans(&mut self) -> Option<String> {
        self.gemm.keep().err().map(|error| error.to_string())
    }

    /// Sets activations to zero. Rows beyond a batch are computed in vain from what lies there; zeros are harmless.
    pub(super) fn clear(&mut self, activations: &Activations) -> Result<(), EngineError> {
        activations.memory.zero(activations.memory.len()).map_err(of(0))
    }

    /// Records the times of the next batch.
    pub(super) fn record(&mut self) {
        self.recorder = Some(Recorder::default());
    }

    /// The times recorded, once that batch is done.
    pub(super) fn recorded(&mut self) -> Option<Result<Profile, CudaError>> {
        self.recorder.take().map(|recorder| recorder.profile())
    }

    fn begin_span(&self) -> Result<Option<CudaEvent>, CudaError> {
        self.recorder.as_ref().map(|_| Recorder::begin(&self.computing)).transpose()
    }

    fn end_span(&mut self, class: WorkClass, begin: Option<CudaEvent>) -> Result<(), CudaError> {
        match (&mut self.recorder, begin) {
            (Some(recorder), Some(begin)) => recorder.end(class, begin, &self.computing),
            _ => Ok(()),
        }
    }

    fn launch(
        &mut self,
        class: WorkClass,
        kernel: Kernel,
        geometry: Launch,
        args: &[Arg],
    ) -> Result<(), CudaError> {
        if let Some(work) = &mut self.work {
            work.push(Step::Kernel { kernel, geometry, args: args.to_vec() });
            return Ok(());
        }
        let begin = self.begin_span()?;
        self.start(kernel, geometry, args)?;
        self.end_span(class, begin)
    }

    fn start(&mut self, kernel: Kernel, geometry: Launch, args: &[Arg]) -> Result<(), CudaError> {
        let function = match self.functions.entry(kernel) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(self.modules.function(kernel)?),
        };
        launch(&self.computing, function, geometry, args)
    }

    /// Starts what was listed of a batch: by its graph, if there is one or is to be one, or each step by itself.
    fn start_work(&mut self, layout: &Layout) -> Result<(), CudaError> {
        let Some(work) = self.work.take() else { return Ok(()) };
        let size =
            Size { rows: layout.rows, tiles: layout.tiles_started, long: layout.longest > ROTATED_BEYOND };
        let key = Key { slot: layout.slot, size };
        let started = match self.graphs.as_mut().map(|graphs| graphs.next(key, &work)) {
            None | Some(Next::Run) => None,
            Some(Next::Launch) => Some(self.replay(key)),
            Some(Next::Capture) => Some(self.capture(key, &work).and_then(|()| self.replay(key))),
        };
        match started {
            Some(Ok(())) => return Ok(()),
            Some(Err(error)) if error.is_sticky() => return Err(error),
            // Nothing of it has been started.
            Some(Err(error)) => {
                self.graphs = None;
                self.warnings.push(format!(
                    "CUDA graphs are no longer used ({error}): kernels are started one by one, as with \
                     VIRNUCPRO_GRAPHS=off"
                ));
            }
            None => {}
        }
        work.iter().try_for_each(|step| self.step(step, Some(layout.slot)))
    }

    fn capture(&mut self, key: Key, work: &[Step]) -> Result<(), CudaError> {
        let computing = self.computing.clone();
        let graph = Graph::capture(&computing, || work.iter().try_for_each(|step| self.step(step, None)))?;
        if let Some(graphs) = &mut self.graphs {
            graphs.keep(key, graph, work.to_vec());
        }
        Ok(())
    }

    fn replay(&mut self, key: Key) -> Result<(), CudaError> {
        match self.graphs.as_mut().and_then(|graphs| graphs.used(key)) {
            Some(graph) => graph.launch(),
            // Ended while it was captured: something grew.
            None => Err(CudaError::Driver {
                doing: "starting a CUDA graph",
                code: cudarc::driver::sys::CUresult::CUDA_ERROR_INVALID_HANDLE,
            }),
        }
    }

    /// Starts one step; `slot` is told of layers, if there is one.
    fn step(&mut self, step: &Step, slot: Option<usize>) -> Result<(), CudaError> {
        match step {
            Step::Kernel { kernel, geometry, args } => self.start(*kernel, *geometry, args),
            Step::Product { shape, descriptor, operands, bias } => {
                self.multiply(*shape, descriptor, *operands, *bias)
            }
            Step::Layer => match slot {
                Some(slot) => self.slots[slot].record_layer(&self.computing),
                None => Ok(()),
            },
        }
    }

    /// Ends all graphs: a place that they refer to is about to move.
    fn end_graphs(&mut self) {
        if let Some(graphs) = &mut self.graphs {
            graphs.end_all();
        }
    }

    fn upload(&mut self, parts: &[&Tensor<'_>], to: Number) -> Result<DeviceBytes, EngineError> {
        let uploader = match &mut self.uploader {
            Some(uploader) => uploader,
            none => none.insert(Uploader::new(&self.copying_in, &self.computing).map_err(of(0))?),
        };
        uploader.upload(&self.modules, parts, to).map_err(of(0))
    }

    /// Makes rotary angles for at least so many positions.
    fn reserve_positions(&mut self, positions: usize) -> Result<(), CudaError> {
        if self.rotary.as_ref().is_some_and(|rotary| rotary.positions >= positions) {
            return Ok(());
        }
        let positions = positions.max(POSITIONS_MIN).next_power_of_two();
        let (cosines, sines) = rotary_angles(self.head_width, positions);
        let bytes: Vec<u8> = cosines.iter().chain(&sines).flat_map(|angle| angle.to_le_bytes()).collect();
        self.end_graphs();
        // Batches under way use the old ones; dropping those waits for them.
        self.rotary = None;
        let angles = DeviceBytes::new(&self.computing, bytes.len())?;
        upload_now(&self.computing, &bytes, &angles)?;
        let sines = angles.pointer() + (4 * cosines.len()) as u64;
        self.rotary = Some(Rotary { angles, positions, sines });
        Ok(())
    }

    fn allocate(&mut self, tokens: usize, width: usize, number: Number) -> Result<Activations, EngineError> {
        let bytes = memory::rows(tokens, self.token_budget) * width * number.bytes();
        // An exact run's are its own.
        if self.numbers == self.numbers_usual {
            self.end_graphs();
        }
        let memory = DeviceBytes::zeroed(&self.computing, bytes).map_err(of(tokens))?;
        Ok(Activations { memory, number })
    }

    fn normalise(
        &mut self,
        layout: &Layout,
        x: &Activations,
        norm: &Norm,
        to: Number,
        out: &mut Activations,
    ) -> Result<(), EngineError> {
        let args = [
            Arg::Pointer(x.memory.pointer()),
            Arg::Pointer(norm.scale.pointer()),
            Arg::Pointer(norm.shift.pointer()),
            Arg::Pointer(out.memory.pointer()),
            Arg::Int(layout.rows_started as i32),
            Arg::Int(norm.width as i32),
            Arg::Float(norm.eps),
        ];
        out.number = to;
        let kernel = Kernel::layer_norm(x.number, to, norm.width);
        self.launch(WorkClass::Norm, kernel, Launch::layer_norm(layout.rows_started), &args)
            .map_err(of(layout.tokens))
    }
}

/// Copies to the device and waits. Only for what is rare: the host's memory is not pinned.
pub(super) fn upload_now(stream: &CudaStream, bytes: &[u8], to: &DeviceBytes) -> Result<(), CudaError> {
    debug_assert!(bytes.len() <= to.len());
    // SAFETY: the place has room, and the bytes stay as they are until the stream has passed.
    unsafe { cudarc::driver::result::memcpy_htod_async(to.pointer(), bytes, stream.cu_stream()) }
        .during("copying to the GPU")?;
    stream.synchronize().during("copying to the GPU")
}

fn product(rows: usize, linear: &Linear, epilogue: Epilogue) -> (Shape, &Arc<Descriptor>) {
    let (fused, out, descriptor) = match epilogue {
        Epilogue::Bias | Epilogue::Gelu => (Fused::Bias, linear.numbers.inside, &linear.bias),
        Epilogue::Residual => (Fused::Residual, linear.numbers.residual, &linear.residual),
    };
    let Linear { inputs, outputs, numbers, .. } = *linear;
    (Shape { rows, outputs, inputs, number: numbers.inside, out, fused }, descriptor)
}

/// The product alone of one that is added to a residual stream.
fn apart(shape: Shape) -> Shape {
    Shape { out: shape.number, fused: Fused::Nothing, ..shape }
}

fn operands(x: &Activations, linear: &Linear, out: &Activations) -> Operands {
    Operands { x: x.memory.pointer(), weight: linear.weight.pointer(), out: out.memory.pointer() }
}

impl Ops for CudaOps {
    type Activations = Activations;
    type Pooled = Pooled;
    type Layout = Layout;
    type Table = Table;
    type Norm = Norm;
    type Linear = Linear;

    fn table(&mut self, values: &Tensor<'_>) -> Result<Table, EngineError> {
        let hidden = values.shape.last().copied().unwrap_or(0);
        let number = self.numbers.inside;
        Ok(Table { values: self.upload(&[values], number)?, number, hidden })
    }

    fn norm(&mut self, scale: &Tensor<'_>, shift: &Tensor<'_>, eps: f32) -> Result<Norm, EngineError> {
        let width = scale.shape.last().copied().unwrap_or(0);
        Ok(Norm {
            scale: self.upload(&[scale], Number::F32)?,
            shift: self.upload(&[shift], Number::F32)?,
            out: self.numbers.inside,
            width,
            eps,
        })
    }

    fn linear(&mut self, parts: &[LinearRows<'_>]) -> Result<Linear, EngineError> {
        let inputs = parts.first().and_then(|part| part.weight.shape.last().copied()).unwrap_or(0);
        let weights: Vec<_> = parts.iter().map(|part| &part.weight).collect();
        let biases: Vec<_> = parts.iter().map(|part| &part.bias).collect();
        let outputs = biases.iter().map(|bias| bias.shape.iter().product::<usize>()).sum();
        let numbers = self.numbers;
        let weight = self.upload(&weights, numbers.inside)?;
        // A product adds a bias of its result's type.
        let mut stored = vec![self.upload(&biases, numbers.inside)?];
        if numbers.residual != numbers.inside {
            stored.push(self.upload(&biases, numbers.residual)?);
        }
        let place = |index: usize| stored[index.min(stored.len() - 1)].pointer();
        let bias = Descriptor::new(Fused::Bias, numbers.inside, place(0)).map_err(of(0))?;
        let residual = Descriptor::new(Fused::Residual, numbers.residual, place(1)).map_err(of(0))?;
        let (bias, residual, bias_residual) = (Arc::new(bias), Arc::new(residual), place(1));
        Ok(Linear { weight, _biases: stored, bias, residual, bias_residual, numbers, inputs, outputs })
    }

    fn activations(&mut self, tokens: usize, width: usize) -> Result<Activations, EngineError> {
        self.allocate(tokens, width, self.numbers.inside)
    }

    fn residual(&mut self, tokens: usize, width: usize) -> Result<Activations, EngineError> {
        self.allocate(tokens, width, self.numbers.residual)
    }

    fn layout(&mut self, batch: &Batch) -> Result<Layout, EngineError> {
        let tokens = batch.token_count();
        self.reserve_positions(batch.max_seqlen()).map_err(of(tokens))?;
        let index = self.next;
        if self.slots[index].busy {
            return Err(EngineError::Batch(format!("{SLOTS} batches have begun and not been finished")));
        }
        // A profile times each kernel; an exact run's weights are gone after it.
        let usual = self.recorder.is_none() && self.numbers == self.numbers_usual;
        self.work = (usual && self.graphs.is_some()).then(Vec::new);
        let rows = memory::rows(tokens, self.token_budget);
        let input = Input::new(batch, self.work.is_some().then_some(rows));
        if self.slots[index].must_move(&input) {
            self.end_graphs();
        }
        let slot = &mut self.slots[index];
        let recorder = &mut self.recorder;
        let begin =
            recorder.as_ref().map(|_| Recorder::begin(&self.copying_in)).transpose().map_err(of(tokens))?;
        let place = slot.upload(&input, &self.copying_in, &self.computing).map_err(of(tokens))?;
        if let (Some(recorder), Some(begin)) = (recorder, begin) {
            recorder.end(WorkClass::Copy, begin, &self.copying_in).map_err(of(tokens))?;
        }
        Ok(Layout {
            slot: index,
            input: place,
            parts: input.layout,
            tokens,
            sequences: batch.len(),
            longest: batch.max_seqlen(),
            tiles: input.tiles(),
            tiles_started: input.tile_room(),
            rows,
            rows_started: if self.work.is_some() { rows } else { tokens },
            pooled: [batch.len(), batch.pooled_residues.iter().map(|&rows| rows as usize).sum()],
        })
    }

    fn embed(
        &mut self,
        layout: &Layout,
        table: &Table,
        token_dropout: bool,
        out: &mut Activations,
    ) -> Result<(), EngineError> {
        let args = [
            layout.part(layout.parts.tokens),
            layout.part(layout.parts.cu_seqlens),
            layout.part(layout.parts.tiles),
            Arg::Pointer(table.values.pointer()),
            Arg::Pointer(out.memory.pointer()),
            Arg::Int(table.hidden as i32),
            Arg::Int(token_dropout.into()),
        ];
        let kernel = Kernel::Embed { table: table.number, out: out.number };
        self.launch(WorkClass::Embed, kernel, Launch::per_tile(layout.tiles_started), &args)
            .map_err(of(layout.tokens))
    }

    fn layer_norm(
        &mut self,
        layout: &Layout,
        x: &Activations,
        norm: &Norm,
        out: &mut Activations,
    ) -> Result<(), EngineError> {
        self.normalise(layout, x, norm, norm.out, out)
    }

    /// In f32: it is pooled next, and `out`, three times as wide at least, has room for it.
    fn final_norm(
        &mut self,
        layout: &Layout,
        x: &Activations,
        norm: &Norm,
        out: &mut Activations,
    ) -> Result<(), EngineError> {
        self.normalise(layout, x, norm, Number::F32, out)
    }

    fn apply(
        &mut self,
        layout: &Layout,
        x: &Activations,
        linear: &Linear,
        epilogue: Epilogue,
        out: &mut Activations,
    ) -> Result<(), EngineError> {
        let of = of(layout.tokens);
        let (shape, descriptor) = product(layout.rows, linear, epilogue);
        out.number = shape.out;
        let (operands, bias) = (operands(x, linear, out), linear.bias_residual);
        if let Some(work) = &mut self.work {
            work.push(Step::Product { shape, descriptor: descriptor.clone(), operands, bias });
        } else {
            let begin = self.begin_span().map_err(&of)?;
            self.multiply(shape, descriptor, operands, bias).map_err(&of)?;
            self.end_span(WorkClass::Product, begin).map_err(&of)?;
        }
        match epilogue {
            Epilogue::Bias | Epilogue::Residual => Ok(()),
            Epilogue::Gelu => {
                // The library's own is the one with the hyperbolic tangent, up to 5e-4 away.
                let count = layout.rows_started * linear.outputs;
                let args = [Arg::Pointer(operands.out), Arg::Long(count as i64)];
                self.launch(WorkClass::Gelu, Kernel::Gelu(out.number), Launch::per_number(count), &args)
                    .map_err(of)
            }
        }
    }

    fn attention(
        &mut self,
        layout: &Layout,
        qkv: &Activations,
        heads: usize,
        _progress: &Progress,
        out: &mut Activations,
    ) -> Result<(), EngineError> {
        let of = of(layout.tokens);
        let (cosines, sines) = match &self.rotary {
            Some(rotary) => (rotary.angles.pointer(), rotary.sines),
            None => return Err(EngineError::Device("rotary angles were not made".into())),
        };
        let args = [
            Arg::Pointer(qkv.memory.pointer()),
            layout.part(layout.parts.cu_seqlens),
            layout.part(layout.parts.tiles),
            Arg::Pointer(cosines),
            Arg::Pointer(sines),
            Arg::Pointer(out.memory.pointer()),
            Arg::Int(heads as i32),
            Arg::Float(attention_scale(self.head_width)),
        ];
        out.number = qkv.number;
        let (rotate, kernel) = Kernel::attention(qkv.number, self.head_width, layout.longest);
        if let Some(rotate) = rotate {
            // The same arguments but for the result's place and the scale.
            let args = [args[0], args[1], args[2], args[3], args[4], args[6]];
            self.launch(WorkClass::Attention, rotate, Launch::per_tile(layout.tiles_started), &args)
                .map_err(&of)?;
        }
        let geometry = Launch::attention(qkv.number, layout.tiles_started, heads);
        self.launch(WorkClass::Attention, kernel, geometry, &args).map_err(&of)?;
        if let Some(work) = &mut self.work {
            work.push(Step::Layer);
            return Ok(());
        }
        self.slots[layout.slot].record_layer(&self.computing).map_err(of)
    }

    fn pool(
        &mut self,
        layout: &Layout,
        x: &Activations,
        hidden: usize,
        pooling: Pooling,
    ) -> Result<Pooled, EngineError> {
        let of = of(layout.tokens);
        self.start_work(layout).map_err(&of)?;
        let (rows, mode) = match pooling {
            Pooling::Mean => (layout.pooled[0], Some(PoolMode::Mean)),
            Pooling::Bos => (layout.pooled[0], Some(PoolMode::Bos)),
            Pooling::Max => (layout.pooled[0], Some(PoolMode::Max)),
            Pooling::None => (layout.pooled[1], None),
        };
        let rows_bytes = 4 * rows * hidden;
        let flags_bytes = 4 * layout.sequences;
        let bytes = rows_bytes + flags_bytes;
        if self.rows.as_ref().is_none_or(|rows| rows.len() < bytes) {
            // Rows of an earlier batch may still be under way from there.
            self.copying_out.synchronize().during("waiting for rows to be copied").map_err(&of)?;
            self.rows = None;
            let room = bytes + bytes / 4;
            self.rows = Some(DeviceBytes::new(&self.computing, room).map_err(&of)?);
        }
        let place = self.rows.as_ref().map_or(0, DeviceBytes::pointer);
        let flags = place + rows_bytes as u64;
        if let Some(copied) = self.copied {
            let done = &self.slots[copied].done;
            self.computing.wait(done).during("waiting for rows to be copied").map_err(&of)?;
        }
        // SAFETY: the flags lie behind the rows, in memory that outlives the stream's work.
        unsafe { cudarc::driver::result::memset_d8_async(flags, 0, flags_bytes, self.computing.cu_stream()) }
            .during("clearing flags")
            .map_err(&of)?;
        let (memory, cu_seqlens) = (Arg::Pointer(x.memory.pointer()), layout.part(layout.parts.cu_seqlens));
        let pooled = layout.part(layout.parts.pooled);
        let (out, flags, width) = (Arg::Pointer(place), Arg::Pointer(flags), Arg::Int(hidden as i32));
        match mode {
            Some(mode) => {
                let args = [memory, cu_seqlens, pooled, Arg::Int(mode as i32), out, flags, width];
                let geometry = Launch::pool(layout.sequences, hidden);
                self.launch(WorkClass::Pool, Kernel::Pool(x.number), geometry, &args)
            }
            None => {
                let (tiles, before) =
                    (layout.part(layout.parts.tiles), layout.part(layout.parts.rows_before));
                let args = [memory, cu_seqlens, tiles, pooled, before, out, flags, width];
                let geometry = Launch::per_tile(layout.tiles);
                self.launch(WorkClass::Pool, Kernel::Gather(x.number), geometry, &args)
            }
        }
        .map_err(&of)?;

        let slot = &mut self.slots[layout.slot];
        slot.pooled.record(&self.computing).during("recording an event").map_err(&of)?;
        self.copying_out.wait(&slot.pooled).during("waiting for pooled rows").map_err(&of)?;
        let begin = self.recorder.as_ref().map(|_| Recorder::begin(&self.copying_out));
        let begin = begin.transpose().map_err(&of)?;
        // One is left there by a batch that failed half-way.
        if let Some(left) = slot.output.take() {
            self.outputs.give(left);
        }
        let output = self.outputs.take(self.computing.context(), bytes).map_err(&of)?;
        let output = slot.output.insert(output);
        output.download(0, place, bytes, &self.copying_out).map_err(&of)?;
        if let (Some(recorder), Some(begin)) = (&mut self.recorder, begin) {
            recorder.end(WorkClass::Copy, begin, &self.copying_out).map_err(&of)?;
        }
        slot.done.record(&self.copying_out).during("recording an event").map_err(&of)?;
        slot.busy = true;
        self.copied = Some(layout.slot);
        self.next = (layout.slot + 1) % SLOTS;
        Ok(Pooled { slot: layout.slot, rows_bytes, sequences: layout.sequences, tokens: layout.tokens })
    }

    fn wait(&mut self, pooled: Pooled, progress: &Progress) -> Result<PooledRows, EngineError> {
        let of = of(pooled.tokens);
        let slot = &mut self.slots[pooled.slot];
        slot.busy = false;
        let mut passed = 0;
        // Polled, not waited for: a watchdog must see that layers pass, and that none does when the device hangs.
        loop {
            let done = slot.done.try_is_complete().during("waiting for a batch").map_err(&of)?;
            let now = slot.layers_passed(passed).map_err(&of)?;
            if now > passed || done {
                progress.tick();
                passed = now;
            }
            if done {
                break;
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        let Some(output) = slot.output.take() else {
            return Err(EngineError::Device("a batch's results have no place".into()));
        };
        let (rows, rest) = output.as_slice().split_at(pooled.rows_bytes);
        let values = rows.as_chunks::<4>().0.iter().map(|&raw| f32::from_le_bytes(raw)).collect();
        let flags = rest[..4 * pooled.sequences].as_chunks::<4>().0.iter();
        let flagged = flags.zip(0u32..).filter(|(flag, _)| **flag != [0; 4]);
        let non_finite = flagged.map(|(_, sequence)| sequence).collect();
        self.outputs.give(output);
        Ok(PooledRows { values, non_finite: Some(non_finite) })
    }
}
