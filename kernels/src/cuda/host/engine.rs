//! The CUDA engine: a model on one GPU, several batches under way.

use std::collections::VecDeque;
use std::io::Write;
use std::time::{Duration, Instant};

use super::compile::Modules;
use super::device::Gpu;
use super::error::{CudaError, short_of_memory};
use super::graphs::{GraphUse, Graphs, WORTHWHILE, Wanted};
use super::memory::{MemoryPlan, Numbers};
use super::ops::CudaOps;
use super::profile::Profile;
use super::slots::SLOTS;
use crate::cuda::{Number, ROTARY_HEAD_WIDTHS};
use crate::encoder::{Encoder, Pending};
use crate::{
    Batch, Embeddings, Engine, EngineDescription, EngineError, EngineOptions, Model, Precision, Progress,
};

/// Longest time of a layer's products at which graphs are tried. What they save is the gaps between a layer's eight
/// kernels, some 2 µs each at most, and less than a fiftieth is not worth them.
const PRODUCTS_MAX_US: f32 = 1_000.0;

/// Batches between two looks at the clock.
const IN_A_ROW: usize = 4;

/// Measurements with graphs and without, of which the medians count: until they have taken long enough.
const ROUNDS_MIN: usize = 3;
const ROUNDS_MAX: usize = 7;
const ROUNDS_ENOUGH: Duration = Duration::from_millis(250);

/// Between two looks at the memory in use: asking the driver takes it as long as a small model's batch takes the GPU.
const MEMORY_INTERVAL: Duration = Duration::from_secs(1);

/// The share of the device's memory that is in use.
#[derive(Default)]
struct MemoryShare {
    looked: Option<Instant>,
    now: f32,
    /// Since it was asked for.
    most: f32,
}

/// A model on a GPU.
pub struct CudaEngine {
    // Dropped in this order: batches under way, then what they compute with.
    begun: VecDeque<Pending<CudaOps>>,
    encoder: Encoder<CudaOps>,
    gpu: Gpu,
    model: Model,
    options: EngineOptions,
    description: EngineDescription,
    warnings: Vec<String>,
    memory: MemoryShare,
    /// Time with graphs as a part of that without.
    graph_ratio: Option<f32>,
    /// What comes up is told by whoever loads the engine.
    loading: bool,
    /// Why the device is unusable.
    failed: Option<String>,
}

impl CudaEngine {
    /// Puts `model` on `gpu`.
    ///
    /// # Errors
    /// [`EngineError::Model`] when the GPU is too old for `options.precision`, the model does not fit its free memory
    /// or cannot be read, or a layer beyond it is asked for; the device's own errors.
    pub fn load(gpu: Gpu, model: &Model, options: EngineOptions) -> Result<Self, EngineError> {
        let config = model.config();
        let numbers = Numbers::of(options.precision);
        let at_load = CudaError::into_load_error;
        gpu.require(options.precision).map_err(at_load)?;
        if !ROTARY_HEAD_WIDTHS.contains(&config.head_width()) {
            return Err(EngineError::Model(format!(
                "model `{}` has heads {} wide, and the CUDA engine computes attention for widths of {:?}: use the CPU \
                 engine (`devices.use = [\"cpu\"]`)",
                model.name(),
                config.head_width(),
                ROTARY_HEAD_WIDTHS
            )));
        }
        let wanted = Wanted::from_environment().map_err(EngineError::Model)?;
        let mut warnings = Vec::new();
        let modules =
            Modules::load(&gpu, &[numbers.inside, Number::F32], config.head_width()).map_err(at_load)?;
        warnings.extend(modules.warning().map(ToString::to_string));
        let memory = gpu.memory().map_err(at_load)?;
        let plan = MemoryPlan::new(
            config,
            options.layer.min(config.layers),
            options.pooling,
            numbers,
            (memory.free, memory.total),
            gpu.multiprocessors(),
        )
        .map_err(|error| EngineError::Model(format!("{}: {error}", gpu.name())))?;
        let mut ops = CudaOps::new(&gpu, modules, numbers, config.head_width()).map_err(at_load)?;
        ops.set_token_budget(plan.token_budget);
        let mut encoder = Encoder::load(ops, model, options.clone()).map_err(short_of_memory)?;
        encoder.ops_mut().finish_uploads().map_err(short_of_memory)?;
        encoder.reserve(plan.token_budget).map_err(short_of_memory)?;
        let description = EngineDescription {
            name: format!("cuda ({}, {})", gpu.name(), name(options.precision)),
            hidden: config.hidden,
            weights_bytes: plan.weights_bytes,
            bytes_per_token: plan.bytes_per_token,
            token_budget: Some(u32::try_from(plan.token_budget).unwrap_or(u32::MAX)),
            slots: SLOTS as u32,
        };
        let mut engine = Self {
            begun: VecDeque::new(),
            encoder,
            gpu,
            model: model.clone(),
            options,
            description,
            warnings,
            memory: MemoryShare::default(),
            graph_ratio: None,
            loading: true,
            failed: None,
        };
        engine.tune(plan.token_budget).map_err(short_of_memory)?;
        engine.choose_graphs(wanted, plan.token_budget).map_err(short_of_memory)?;
        engine.warnings.extend(engine.encoder.ops_mut().take_warnings());
        engine.look_at_memory();
        engine.loading = false;
        Ok(engine)
    }

    /// What is not as it should be, though the engine works: for the log. What comes up after loading is also said on
    /// standard error when it does.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether batches are started as CUDA graphs, and what was measured.
    pub fn graphs(&self) -> GraphUse {
        GraphUse { used: self.encoder.ops().has_graphs(), ratio: self.graph_ratio }
    }

    /// The GPU.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Runs `batch` alone and tells how long the device took over which kind of work.
    ///
    /// # Errors
    /// As of [`Engine::run`].
    pub fn profile(&mut self, batch: &Batch) -> Result<Profile, EngineError> {
        if !self.begun.is_empty() {
            return Err(EngineError::Batch("a batch is profiled while others compute".into()));
        }
        self.encoder.ops_mut().record();
        let run = self.run(batch, &Progress::default());
        // The rows are here, but nobody has waited for the end of the copy of the input.
        self.encoder.ops_mut().settle(batch.token_count())?;
        let profile = self.encoder.ops_mut().recorded();
        run?;
        match profile {
            Some(profile) => profile.map_err(|error| error.into_engine_error(batch.token_count())),
            None => Ok(Profile::default()),
        }
    }

    /// Chooses algorithms for products: those of an earlier start, or the fastest by timing.
    ///
    /// Timed after a made-up batch, so that activations look like a protein's: on zeros the hardware runs faster than
    /// on real numbers.
    fn tune(&mut self, budget: usize) -> Result<(), EngineError> {
        let rows = super::memory::rows(budget, budget);
        self.encoder.ops_mut().set_rows_full(rows);
        if self.recall(rows, budget)? {
            return Ok(());
        }
        let _alone = self.encoder.ops_mut().time_alone();
        if self.recall(rows, budget)? {
            return Ok(());
        }
        self.begin(&warm_up(budget), false, &Progress::default())?;
        match self.finish(&Progress::default()) {
            // What the weights make of nonsense is not the question.
            Ok(_) | Err(EngineError::NonFinite { .. }) => {}
            Err(error) => return Err(error),
        }
        self.encoder.visit_products(budget, |ops, x, linear, epilogue, out| {
            ops.tune(rows, x, linear, epilogue, out)
        })?;
        // Adding up residual sums many times over may have made infinities.
        self.encoder.visit_products(budget, |ops, x, _, _, out| {
            ops.clear(x)?;
            ops.clear(out)
        })?;
        if let Some(reason) = self.encoder.ops_mut().keep_plans() {
            self.warnings.push(format!(
                "timings of matrix products cannot be kept ({reason}), so that every start repeats them: set \
                 VIRNUCPRO_CACHE to a folder that can be written"
            ));
        }
        self.encoder.ops_mut().settle(0)
    }

    /// Takes the algorithms of an earlier start; false if one is missing.
    fn recall(&mut self, rows: usize, budget: usize) -> Result<bool, EngineError> {
        let mut known = true;
        self.encoder.visit_products(budget, |ops, _, linear, epilogue, _| {
            known &= ops.recall(rows, linear, epilogue)?;
            Ok(())
        })?;
        Ok(known)
    }

    /// Decides whether batches are started as graphs: where they are small enough for it to matter, by timing full
    /// batches in a row both ways.
    fn choose_graphs(&mut self, wanted: Wanted, budget: usize) -> Result<(), EngineError> {
        let graphs = || Some(Graphs::new());
        match wanted {
            Wanted::Off => return Ok(()),
            Wanted::On => {
                self.encoder.ops_mut().replace_graphs(graphs());
                return Ok(());
            }
            Wanted::Auto => {}
        }
        let rows = super::memory::rows(budget, budget);
        let mut products = None;
        self.encoder.visit_products(budget, |ops, _, linear, epilogue, _| {
            if let Some(one) = ops.product_microseconds(rows, linear, epilogue) {
                *products.get_or_insert(0.0) += one;
            }
            Ok(())
        })?;
        // Without a layer there is nothing to gain.
        if products.is_none_or(|products: f32| products > PRODUCTS_MAX_US) {
            return Ok(());
        }
        let batch = warm_up(budget);
        self.encoder.ops_mut().replace_graphs(graphs());
        // The first is of a new size, and then each slot gets its graph.
        self.in_a_row(&batch)?;
        let (mut plain, mut replayed) = (Vec::new(), Vec::new());
        let began = Instant::now();
        while plain.len() < ROUNDS_MIN || (plain.len() < ROUNDS_MAX && began.elapsed() < ROUNDS_ENOUGH) {
            if !self.encoder.ops().has_graphs() {
                // They failed, which a warning says.
                return Ok(());
            }
            replayed.push(self.in_a_row(&batch)?);
            let graphs = self.encoder.ops_mut().replace_graphs(None);
            let time = self.in_a_row(&batch);
            self.encoder.ops_mut().replace_graphs(graphs);
            plain.push(time?);
        }
        let ratio = median(&mut replayed) / median(&mut plain).max(f32::MIN_POSITIVE);
        self.graph_ratio = Some(ratio);
        if ratio > WORTHWHILE {
            self.encoder.ops_mut().replace_graphs(None);
        }
        Ok(())
    }

    /// Time of full batches in a row, as many begun as there may be, in microseconds: from the end of one more before
    /// them, so that what the host takes to begin the first does not count.
    fn in_a_row(&mut self, batch: &Batch) -> Result<f32, EngineError> {
        let failed = |error: CudaError| error.into_engine_error(0);
        let (progress, mut begun) = (Progress::default(), 0);
        let stopwatch = self.encoder.ops().stopwatch().map_err(failed)?;
        loop {
            while begun <= IN_A_ROW && self.begun.len() < SLOTS {
                self.begin(batch, false, &progress)?;
                if begun == 0 {
                    stopwatch.start(self.encoder.ops().computing()).map_err(failed)?;
                } else if begun == IN_A_ROW {
                    stopwatch.stop(self.encoder.ops().computing()).map_err(failed)?;
                }
                begun += 1;
            }
            if self.begun.is_empty() {
                return stopwatch.read().map_err(failed);
            }
            match self.finish(&progress) {
                // What the weights make of nonsense is not the question.
                Ok(_) | Err(EngineError::NonFinite { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Says what has come up since.
    fn say_warnings(&mut self) {
        for warning in self.encoder.ops_mut().take_warnings() {
            // A worker's standard error goes to the log, by the first word.
            let _ = writeln!(std::io::stderr(), "WARN {warning}");
            self.warnings.push(warning);
        }
    }

    fn enqueue(
        &mut self,
        batch: &Batch,
        exact: bool,
        progress: &Progress,
    ) -> Result<Pending<CudaOps>, EngineError> {
        if !exact || self.options.precision == Precision::Fp32 {
            return self.encoder.begin(batch, progress);
        }
        // Rare, so that it may wait: each layer's weights are freed once the device has used them.
        let numbers = self.encoder.ops_mut().set_numbers(Numbers::of(Precision::Fp32));
        let pending = self.encoder.begin_streamed(&self.model, batch, progress);
        let uploaded = self.encoder.ops_mut().finish_uploads();
        self.encoder.ops_mut().set_numbers(numbers);
        let pending = pending.map_err(|error| match error {
            // Weights that did not fit: fewer tokens leave them more room.
            EngineError::OutOfMemory { .. } => EngineError::OutOfMemory { tokens: batch.token_count() },
            error => error,
        })?;
        uploaded.map(|()| pending)
    }

    /// Remembers what ends the engine.
    fn noted<T>(&mut self, result: Result<T, EngineError>) -> Result<T, EngineError> {
        if let Err(EngineError::Device(reason)) = &result {
            self.failed = Some(reason.clone());
            self.begun.clear();
        }
        result
    }

    fn usable(&self) -> Result<(), EngineError> {
        match &self.failed {
            Some(reason) => Err(EngineError::Device(reason.clone())),
            None => self
                .gpu
                .context()
                .bind_to_thread()
                .map_err(|error| CudaError::from(error).into_engine_error(0)),
        }
    }

    fn look_at_memory(&mut self) {
        if let Ok(memory) = self.gpu.memory() {
            let used = memory.total.saturating_sub(memory.free) as f32 / memory.total.max(1) as f32;
            self.memory.now = used;
            self.memory.most = self.memory.most.max(used);
        }
        self.memory.looked = Some(Instant::now());
    }
}

impl Engine for CudaEngine {
    fn description(&self) -> &EngineDescription {
        &self.description
    }

    fn run(&mut self, batch: &Batch, progress: &Progress) -> Result<Embeddings, EngineError> {
        self.alone(batch, false, progress)
    }

    fn run_exact(&mut self, batch: &Batch, progress: &Progress) -> Result<Embeddings, EngineError> {
        self.alone(batch, true, progress)
    }

    fn depth(&self) -> usize {
        SLOTS
    }

    fn begin(&mut self, batch: &Batch, exact: bool, progress: &Progress) -> Result<(), EngineError> {
        self.usable()?;
        if self.begun.len() >= SLOTS {
            return Err(EngineError::Batch(format!("{SLOTS} batches have begun and not been finished")));
        }
        let pending = self.enqueue(batch, exact, progress).or_else(|error| {
            // What was enqueued of it may still use its slot.
            self.encoder.ops_mut().settle(batch.token_count())?;
            Err(error)
        });
        if !self.loading {
            self.say_warnings();
        }
        let pending = self.noted(pending)?;
        self.begun.push_back(pending);
        Ok(())
    }

    fn finish(&mut self, progress: &Progress) -> Result<Embeddings, EngineError> {
        self.usable()?;
        let Some(pending) = self.begun.pop_front() else {
            return Err(EngineError::Batch("no batch has begun".into()));
        };
        let result = self.encoder.finish(pending, progress);
        self.noted(result)
    }

    fn memory_in_use(&mut self) -> Option<f32> {
        self.usable().ok()?;
        if self.memory.looked.is_none_or(|looked| looked.elapsed() >= MEMORY_INTERVAL) {
            self.look_at_memory();
        }
        Some(std::mem::replace(&mut self.memory.most, self.memory.now))
    }
}

impl CudaEngine {
    fn alone(&mut self, batch: &Batch, exact: bool, progress: &Progress) -> Result<Embeddings, EngineError> {
        if !self.begun.is_empty() {
            return Err(EngineError::Batch("a batch is run alone while others compute".into()));
        }
        self.begin(batch, exact, progress)?;
        self.finish(progress)
    }
}

/// `times` is not empty.
fn median(times: &mut [f32]) -> f32 {
    times.sort_by(f32::total_cmp);
    times[times.len() / 2]
}

fn name(precision: Precision) -> &'static str {
    match precision {
        Precision::Fp32 => "fp32",
        Precision::Fp16 => "fp16",
        Precision::Bf16 => "bf16",
        Precision::Int8 => "int8",
    }
}

/// `tokens` tokens of made-up proteins.
fn warm_up(tokens: usize) -> Batch {
    const LENGTH: usize = 256;
    let mut batch = Batch::default();
    let mut state = 1u64;
    while batch.token_count() < tokens {
        let left = tokens - batch.token_count();
        // A remainder too short for a sequence goes to the one before it.
        let length = if left < 2 * LENGTH { left } else { LENGTH };
        if length < 3 {
            break;
        }
        let mut sequence = vec![0u8];
        sequence.extend((2..length).map(|_| {
            // Knuth's MMIX; the high bits are the good ones.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            4 + (state >> 33) as u8 % 20
        }));
        sequence.push(2);
        let residues = (length - 2) as u32;
        batch.push_tokens(batch.len() as u64, &sequence, residues);
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_made_up_batch_has_the_tokens_asked_for() {
        for tokens in [128, 255, 256, 300, 511, 512, 513, 1_024, 33_792] {
            let batch = warm_up(tokens);
            assert_eq!(batch.check(33), Ok(()));
            assert_eq!(batch.token_count(), tokens);
            assert!(batch.max_seqlen() < 512);
        }
    }
}
