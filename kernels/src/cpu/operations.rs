//! The forward pass's operations on the CPU.
//!
//! Splits the work of each operation over the engine's own threads; the arithmetic is in the
//! neighbouring modules.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use pulp::Arch;
use rayon::ThreadPool;
use rayon::prelude::*;

use super::attention::{Attend, Scratch, Target};
use super::brain::{self, BrainLinear, Line};
use super::buffer::Buffer;
use super::integer::{self, IntegerLinear};
use super::norm::{Norm, Normalise};
use super::pooling::pool;
use super::product::{Multiplier, PackedLinear, ROW_QUANTUM};
use super::rotary::Rotary;
use super::split;
use crate::alphabet::MASK;
use crate::model::Tensor;
use crate::ops::{Epilogue, LinearRows, Ops, PooledRows, dropout_scale};
use crate::{Batch, EngineError, Pooling, Precision, Progress};

/// Most rows that one task of a row-wise operation takes. Every task streams the weights once, but its own rows
/// and two panels of weights have to stay in the second-level cache: at 1,280 columns 96 or 128 rows ran 1 to 4 %
/// faster than 192, and those 5 to 10 % faster than 384.
const BLOCK_ROWS_MAX: usize = 16 * ROW_QUANTUM;

/// In bf16 and int8: bytes of activations that one task of a product reads, and the fewest and most rows of it. The
/// results of more rows would leave the second-level cache while they are written (256 against 512 rows of the
/// 8M model's widest product: 930 against 800 GFLOP/s).
const BRAIN_BLOCK_BYTES: usize = 1 << 20;
const BRAIN_ROWS: Range<usize> = 128..256;

/// In f32 on tiles: bytes of split activations that one task of a product has at a time, and the fewest and most rows
/// of it. Weights are split once for all rows of a task, but twice or thrice as many bytes, though they would fit the
/// second-level cache, took a tenth to a third longer beside another hyperthread.
const SPLIT_BLOCK_BYTES: usize = 1 << 19;
const SPLIT_ROWS: Range<usize> = 128..384;

/// Sequences up to this length are attended by one task for all heads.
const WHOLE_TOKENS_MAX: usize = 512;
/// Query rows of one task of a longer sequence, so that several threads share a single protein.
const QUERY_ROWS: usize = 1_024;
/// Least tasks of attention for each thread, where heads suffice: they take unequal times.
const TASKS_PER_THREAD: usize = 2;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    static BRAIN_SCRATCH: RefCell<brain::Scratch> = RefCell::default();
    /// Sums of a product in bf16.
    static SUMS: RefCell<Buffer> = RefCell::default();
    static INTEGER_SCRATCH: RefCell<integer::Scratch> = RefCell::default();
    static SPLIT_SCRATCH: RefCell<split::Scratch> = RefCell::default();
}

/// What computes, beside [`Arch`].
#[derive(Clone, Copy)]
struct Kernels {
    /// What computes in bf16; `None`: activations are in f32.
    brain: Option<brain::Kernel>,
    /// What multiplies in int8; `None`: products are in the precision of the activations.
    integer: Option<integer::Kernel>,
    /// What multiplies f32 numbers on tiles; `None`: vectors do.
    split: Option<split::Kernel>,
}

impl Kernels {
    /// Those of this machine, with vectors for f32.
    fn of(precision: Precision) -> Self {
        let (brain, integer) = match precision {
            Precision::Fp32 | Precision::Fp16 => (None, None),
            Precision::Bf16 => (brain::Kernel::detect(), None),
            Precision::Int8 => (brain::Kernel::detect(), integer::Kernel::detect()),
        };
        Self { brain, integer, split: None }
    }

    /// Whether products take whole tiles of rows.
    fn tiles(self) -> bool {
        self.brain.is_some() || self.integer.is_some() || self.split.is_some()
    }

    /// How activations are kept between products.
    fn form(self) -> integer::Form {
        if self.brain.is_some() { integer::Form::Lines } else { integer::Form::Rows }
    }
}

/// The CPU's implementation of [`Ops`].
pub struct CpuOps {
    arch: Arch,
    kernels: Kernels,
    pool: Arc<ThreadPool>,
    rotary: Rotary,
    /// Tasks of attention, whose memory every layer uses again.
    tasks: Vec<AttentionTask>,
    /// Whether other batches are computed on the same threads at the same time.
    shared: bool,
    head_width: usize,
    weights_bytes: u64,
}

impl CpuOps {
    /// Starts `threads` threads for a model with heads of `head_width`.
    ///
    /// In fp32, `VIRNUCPRO_FP32_TILES=off` leaves AMX aside.
    ///
    /// # Errors
    /// [`EngineError::Device`] when the threads cannot be started, [`EngineError::Model`] for a precision that
    /// this machine lacks.
    pub fn new(head_width: usize, threads: usize, precision: Precision) -> Result<Self, EngineError> {
        super::check_precision(precision).map_err(EngineError::Model)?;
        let split = split::Kernel::wanted().map_err(EngineError::Model)?;
        let kernels = Kernels { split, ..Kernels::of(precision) };
        Self::with_kernels(Arch::new(), kernels, head_width, threads)
    }

    /// As [`CpuOps::new`], but products in f32 are multiply-adds even where tiles are faster: to compare them.
    ///
    /// # Errors
    /// As of [`CpuOps::new`].
    pub fn without_tiles(
        head_width: usize,
        threads: usize,
        precision: Precision,
    ) -> Result<Self, EngineError> {
        super::check_precision(precision).map_err(EngineError::Model)?;
        Self::with_kernels(Arch::new(), Kernels::of(precision), head_width, threads)
    }

    /// The instructions that multiply in f32.
    pub(super) fn fp32_instructions(&self) -> &'static str {
        self.kernels.split.map_or_else(super::instructions, split::Kernel::name)
    }

    fn with_kernels(
        arch: Arch,
        kernels: Kernels,
        head_width: usize,
        threads: usize,
    ) -> Result<Self, EngineError> {
        let pool = super::threads::start(threads)
            .map_err(|error| EngineError::Device(format!("failed to start {threads} threads: {error}")))?;
        Ok(Self::on(Arc::new(pool), arch, kernels, head_width))
    }

    fn on(pool: Arc<ThreadPool>, arch: Arch, kernels: Kernels, head_width: usize) -> Self {
        let rotary = Rotary::new(head_width);
        Self { arch, kernels, pool, rotary, tasks: Vec::new(), shared: false, head_width, weights_bytes: 0 }
    }

    /// The same operations on the same threads, for another batch at the same time.
    pub(super) fn beside(&self) -> Self {
        let ops = Self::on(Arc::clone(&self.pool), self.arch, self.kernels, self.head_width);
        Self { shared: true, ..ops }
    }

    /// The engine's threads.
    pub(super) fn threads(&self) -> &ThreadPool {
        &self.pool
    }

    /// Rows of one task when `rows` are shared out evenly among the threads.
    fn block_rows(&self, rows: usize) -> usize {
        let threads = self.pool.current_num_threads();
        let tasks = rows.div_ceil(BLOCK_ROWS_MAX).next_multiple_of(threads);
        rows.div_ceil(tasks).next_multiple_of(ROW_QUANTUM)
    }

    /// Rows of one task of a product in bf16 or int8 with `inputs`: as many as leave the second-level cache room for
    /// the weights that pass by.
    fn brain_block_rows(&self, rows: usize, inputs: usize) -> usize {
        let most = (BRAIN_BLOCK_BYTES / (2 * inputs)).clamp(BRAIN_ROWS.start, BRAIN_ROWS.end);
        self.tile_block_rows(rows, most)
    }

    /// The same of a product in f32 on tiles.
    fn split_block_rows(&self, rows: usize, inputs: usize) -> usize {
        let most = SPLIT_BLOCK_BYTES / split::row_bytes(inputs);
        self.tile_block_rows(rows, most.clamp(SPLIT_ROWS.start, SPLIT_ROWS.end))
    }

    fn tile_block_rows(&self, rows: usize, most: usize) -> usize {
        let threads = self.pool.current_num_threads();
        let tasks = rows.div_ceil(most).next_multiple_of(threads);
        rows.div_ceil(tasks).next_multiple_of(brain::TILE_ROWS)
    }

    fn apply_brain(
        &self,
        layout: &Layout,
        x: &Activations,
        linear: &BrainLinear,
        epilogue: Epilogue,
        out: &mut Activations,
    ) {
        let (inputs, outputs) = (brain::lines(linear.inputs()), brain::lines(linear.outputs()));
        let width = linear.outputs();
        let block = self.brain_block_rows(layout.rows, linear.inputs());
        let x = &x.lines()[..layout.rows * inputs];
        let apply = |x, mut out| {
            SUMS.with_borrow_mut(|sums| linear.apply(x, epilogue, sums, &mut out));
        };
        self.pool.install(|| {
            let x = x.par_chunks(block * inputs);
            match epilogue {
                Epilogue::Bias | Epilogue::Gelu => {
                    let out = &mut out.lines_mut()[..layout.rows * outputs];
                    let out = out.par_chunks_mut(block * outputs).map(brain::Output::Lines);
                    x.zip(out).for_each(|(x, out)| apply(x, out));
                }
                Epilogue::Residual => {
                    let out = &mut out.0.as_mut_slice()[..layout.rows * width];
                    let out = out.par_chunks_mut(block * width).map(brain::Output::Residual);
                    x.zip(out).for_each(|(x, out)| apply(x, out));
                }
            }
        });
    }

    fn apply_integer(
        &self,
        layout: &Layout,
        x: &Activations,
        linear: &IntegerLinear,
        epilogue: Epilogue,
        out: &mut Activations,
    ) {
        use integer::{Form, Input, Output};
        let (inputs, outputs, rows) = (linear.inputs(), linear.outputs(), layout.rows);
        let block = self.brain_block_rows(rows, inputs);
        let form = self.kernels.form();
        let apply = |(x, mut out): (Input<'_>, Output<'_>)| {
            INTEGER_SCRATCH.with_borrow_mut(|scratch| linear.apply(&x, epilogue, scratch, &mut out));
        };
        self.pool.install(|| {
            let blocks = (0..rows.div_ceil(block)).into_par_iter().map(|index| {
                let rows = index * block..rows.min((index + 1) * block);
                match form {
                    Form::Lines => {
                        let width = brain::lines(inputs);
                        Input::Lines(&x.lines()[rows.start * width..rows.end * width])
                    }
                    Form::Rows => Input::Rows(&x.0.as_slice()[rows.start * inputs..rows.end * inputs]),
                }
            });
            match (epilogue, form) {
                (Epilogue::Residual, _) => {
                    let out = out.0.as_mut_slice()[..rows * outputs].par_chunks_mut(block * outputs);
                    blocks.zip(out.map(Output::Residual)).for_each(apply);
                }
                (Epilogue::Bias | Epilogue::Gelu, Form::Lines) => {
                    let width = brain::lines(outputs);
                    let out = out.lines_mut()[..rows * width].par_chunks_mut(block * width);
                    blocks.zip(out.map(Output::Lines)).for_each(apply);
                }
                (Epilogue::Bias | Epilogue::Gelu, Form::Rows) => {
                    let out = out.0.as_mut_slice()[..rows * outputs].par_chunks_mut(block * outputs);
                    blocks.zip(out.map(Output::Rows)).for_each(apply);
                }
            }
        });
    }

    /// Rows that operations compute for so many tokens: whole tiles.
    fn padded_rows(&self, tokens: usize) -> usize {
        tokens.next_multiple_of(if self.kernels.tiles() { brain::TILE_ROWS } else { ROW_QUANTUM })
    }

    fn allocate(tokens: usize, numbers: usize) -> Result<Activations, EngineError> {
        Buffer::zeroed(numbers).map(Activations).ok_or(EngineError::OutOfMemory { tokens })
    }

    /// Bytes held by the prepared weights.
    pub fn weights_bytes(&self) -> u64 {
        self.weights_bytes
    }
}

/// Activations, [tokens rounded up, width]; the rounding keeps every tile full.
///
/// In bf16 those between two operations hold [`Line`]s; the residual stream and the final norm are f32.
pub struct Activations(Buffer);

impl Activations {
    fn lines(&self) -> &[Line] {
        bytemuck::cast_slice(self.0.as_slice())
    }

    fn lines_mut(&mut self) -> &mut [Line] {
        bytemuck::cast_slice_mut(self.0.as_mut_slice())
    }
}

/// A sequence of the batch, and which of its heads and query rows to attend.
type AttentionTask = (usize, Range<usize>, Range<usize>);

/// A batch's shape.
pub struct Layout {
    batch: Batch,
    /// Rows that operations compute: the tokens, rounded up to full tiles.
    rows: usize,
}

/// Token embeddings, [vocab, hidden].
pub struct Table {
    values: Vec<f32>,
    hidden: usize,
}

/// A prepared layer norm.
pub struct CpuNorm(Norm);

/// A prepared linear layer.
pub struct CpuLinear(Product);

enum Product {
    /// In f32.
    Full(PackedLinear),
    /// In bf16.
    Brain(BrainLinear),
    /// In int8.
    Integer(IntegerLinear),
}

impl Ops for CpuOps {
    type Activations = Activations;
    type Pooled = Vec<f32>;
    type Layout = Layout;
    type Table = Table;
    type Norm = CpuNorm;
    type Linear = CpuLinear;

    fn table(&mut self, values: &Tensor<'_>) -> Result<Table, EngineError> {
        let hidden = values.shape.last().copied().unwrap_or(0);
        let values = values.to_f32();
        self.weights_bytes += 4 * values.len() as u64;
        Ok(Table { values, hidden })
    }

    fn norm(&mut self, scale: &Tensor<'_>, shift: &Tensor<'_>, eps: f32) -> Result<CpuNorm, EngineError> {
        let norm = Norm { scale: scale.to_f32(), shift: shift.to_f32(), eps };
        self.weights_bytes += 8 * norm.scale.len() as u64;
        Ok(CpuNorm(norm))
    }

    fn linear(&mut self, parts: &[LinearRows<'_>]) -> Result<CpuLinear, EngineError> {
        let inputs = parts.first().and_then(|part| part.weight.shape.last().copied()).unwrap_or(0);
        let (arch, pool) = (self.arch, &self.pool);
        // Queries, keys and values stay in bf16, where the processor has it: what is lost on the way to the
        // scores weighs most. Least pooled cosine of the tiny golden model without this 0.9986 (a protein of
        // three residues), with it 0.9998.
        let stacked = parts.len() > 1;
        let packed = pool.install(|| match self.kernels {
            Kernels { integer: Some(kernel), brain, .. } if brain.is_none() || !stacked => {
                IntegerLinear::pack(kernel, self.kernels.form(), parts, inputs).map(Product::Integer)
            }
            Kernels { brain: Some(kernel), .. } => {
                BrainLinear::pack(kernel, parts, inputs).map(Product::Brain)
            }
            Kernels { brain: None, split, .. } => {
                let multiplier = split.map_or(Multiplier::Vectors(arch), Multiplier::Split);
                PackedLinear::pack(parts, inputs, multiplier).map(Product::Full)
            }
        });
        let packed = packed.ok_or_else(|| EngineError::Device("not enough memory for the weights".into()))?;
        self.weights_bytes += match &packed {
            Product::Full(linear) => linear.bytes(),
            Product::Brain(linear) => linear.bytes(),
            Product::Integer(linear) => linear.bytes(),
        };
        Ok(CpuLinear(packed))
    }

    fn activations(&mut self, tokens: usize, width: usize) -> Result<Activations, EngineError> {
        let rows = self.padded_rows(tokens);
        Self::allocate(
            tokens,
            match self.kernels.brain {
                None => rows * width,
                Some(_) => rows * brain::lines(width) * (size_of::<Line>() / size_of::<f32>()),
            },
        )
    }

    fn residual(&mut self, tokens: usize, width: usize) -> Result<Activations, EngineError> {
        Self::allocate(tokens, self.padded_rows(tokens) * width)
    }

    fn layout(&mut self, batch: &Batch) -> Result<Layout, EngineError> {
        self.rotary.reserve(batch.max_seqlen());
        Ok(Layout { batch: batch.clone(), rows: self.padded_rows(batch.token_count()) })
    }

    fn embed(
        &mut self,
        layout: &Layout,
        table: &Table,
        token_dropout: bool,
        out: &mut Activations,
    ) -> Result<(), EngineError> {
        let Layout { batch, rows } = layout;
        let hidden = table.hidden;
        let out = &mut out.0.as_mut_slice()[..rows * hidden];
        let mut tail = out;
        for index in 0..batch.len() {
            let tokens = batch.sequence(index);
            let scale = if token_dropout { dropout_scale(tokens) } else { 1.0 };
            let (target, rest) = tail.split_at_mut(tokens.len() * hidden);
            for (row, &token) in target.chunks_exact_mut(hidden).zip(tokens) {
                if token_dropout && token == MASK {
                    row.fill(0.0);
                    continue;
                }
                let embedding = &table.values[usize::from(token) * hidden..][..hidden];
                for (value, embedding) in row.iter_mut().zip(embedding) {
                    *value = embedding * scale;
                }
            }
            tail = rest;
        }
        // Rows that only fill tiles: zero, so that no earlier batch's infinities linger there.
        tail.fill(0.0);
        Ok(())
    }

    fn layer_norm(
        &mut self,
        layout: &Layout,
        x: &Activations,
        norm: &CpuNorm,
        out: &mut Activations,
    ) -> Result<(), EngineError> {
        let Some(kernel) = self.kernels.brain else { return self.final_norm(layout, x, norm, out) };
        let norm = &norm.0;
        let width = norm.scale.len();
        let x = &x.0.as_slice()[..layout.rows * width];
        let out = &mut out.lines_mut()[..layout.rows * brain::lines(width)];
        let block = self.brain_block_rows(layout.rows, width);
        self.pool.install(|| {
            x.par_chunks(block * width)
                .zip(out.par_chunks_mut(block * brain::lines(width)))
                .for_each(|(x, out)| kernel.normalise(norm, x, out));
        });
        Ok(())
    }

    fn final_norm(
        &mut self,
        layout: &Layout,
        x: &Activations,
        norm: &CpuNorm,
        out: &mut Activations,
    ) -> Result<(), EngineError> {
        let (arch, norm) = (self.arch, &norm.0);
        let width = norm.scale.len();
        let x = &x.0.as_slice()[..layout.rows * width];
        let out = &mut out.0.as_mut_slice()[..layout.rows * width];
        let block = self.block_rows(layout.rows);
        self.pool.install(|| {
            x.par_chunks(block * width)
                .zip(out.par_chunks_mut(block * width))
                .for_each(|(x, out)| arch.dispatch(Normalise { norm, x, out }));
        });
        Ok(())
    }

    fn apply(
        &mut self,
        layout: &Layout,
        x: &Activations,
        linear: &CpuLinear,
        epilogue: Epilogue,
        out: &mut Activations,
    ) -> Result<(), EngineError> {
        let linear = match &linear.0 {
            Product::Full(linear) => linear,
            Product::Brain(linear) => {
                self.apply_brain(layout, x, linear, epilogue, out);
                return Ok(());
            }
            Product::Integer(linear) => {
                self.apply_integer(layout, x, linear, epilogue, out);
                return Ok(());
            }
        };
        let (inputs, outputs) = (linear.inputs(), linear.outputs());
        let x = &x.0.as_slice()[..layout.rows * inputs];
        let out = &mut out.0.as_mut_slice()[..layout.rows * outputs];
        let block = match self.kernels.split {
            None => self.block_rows(layout.rows),
            Some(_) => self.split_block_rows(layout.rows, inputs),
        };
        self.pool.install(|| {
            x.par_chunks(block * inputs).zip(out.par_chunks_mut(block * outputs)).for_each(|(x, out)| {
                SPLIT_SCRATCH.with_borrow_mut(|scratch| linear.apply(x, epilogue, scratch, out));
            });
        });
        Ok(())
    }

    fn attention(
        &mut self,
        layout: &Layout,
        qkv: &Activations,
        heads: usize,
        progress: &Progress,
        out: &mut Activations,
    ) -> Result<(), EngineError> {
        let (arch, rotary, head_width) = (self.arch, &self.rotary, self.head_width);
        let hidden = heads * head_width;
        let batch = &layout.batch;
        let tasks = &mut self.tasks;
        tasks.clear();
        // Few sequences are divided by their heads, so that no thread is without one.
        let parts = match self.shared {
            true => 1,
            false => (TASKS_PER_THREAD * self.pool.current_num_threads()).div_ceil(batch.len()),
        };
        let heads_at_once = heads.div_ceil(parts);
        for index in 0..batch.len() {
            let tokens = batch.sequence(index).len();
            if tokens <= WHOLE_TOKENS_MAX {
                for head in (0..heads).step_by(heads_at_once) {
                    tasks.push((index, head..heads.min(head + heads_at_once), 0..tokens));
                }
                continue;
            }
            for head in 0..heads {
                for first in (0..tokens).step_by(QUERY_ROWS) {
                    tasks.push((index, head..head + 1, first..tokens.min(first + QUERY_ROWS)));
                }
            }
        }
        if let Some(kernel) = self.kernels.brain {
            let qkv = qkv.lines();
            let out = brain::Target::new(&mut out.lines_mut()[..layout.rows * brain::lines(hidden)], hidden);
            self.pool.install(|| {
                tasks.par_drain(..).with_max_len(1).for_each(|(index, heads, rows)| {
                    let sequence = batch.cu_seqlens[index] as usize..batch.cu_seqlens[index + 1] as usize;
                    BRAIN_SCRATCH.with_borrow_mut(|scratch| {
                        let attend = brain::Attend {
                            kernel,
                            qkv,
                            sequence,
                            hidden,
                            head_width,
                            heads,
                            rows,
                            rotary,
                            scratch,
                            out,
                        };
                        attend.run();
                    });
                    progress.tick();
                });
            });
            return Ok(());
        }
        let qkv = qkv.0.as_slice();
        let out = Target::new(&mut out.0.as_mut_slice()[..batch.token_count() * hidden]);
        self.pool.install(|| {
            tasks.par_drain(..).with_max_len(1).for_each(|(index, heads, rows)| {
                let sequence = batch.cu_seqlens[index] as usize..batch.cu_seqlens[index + 1] as usize;
                SCRATCH.with_borrow_mut(|scratch| {
                    arch.dispatch(Attend {
                        qkv: &qkv[sequence.start * 3 * hidden..sequence.end * 3 * hidden],
                        hidden,
                        head_width,
                        heads,
                        rows,
                        rotary,
                        scratch,
                        out: out.starting_at(sequence.start, hidden),
                    });
                });
                progress.tick();
            });
        });
        Ok(())
    }

    fn pool(
        &mut self,
        layout: &Layout,
        x: &Activations,
        hidden: usize,
        pooling: Pooling,
    ) -> Result<Vec<f32>, EngineError> {
        let batch = &layout.batch;
        let x = x.0.as_slice();
        let rows: usize = (0..batch.len()).map(|index| batch.rows(index, pooling)).sum();
        let mut values = Vec::new();
        values
            .try_reserve_exact(rows * hidden)
            .map_err(|_| EngineError::OutOfMemory { tokens: batch.token_count() })?;
        values.resize(rows * hidden, 0.0);
        let mut tasks = Vec::with_capacity(batch.len());
        let mut rest = values.as_mut_slice();
        for index in 0..batch.len() {
            let (out, after) = rest.split_at_mut(batch.rows(index, pooling) * hidden);
            tasks.push((index, out));
            rest = after;
        }
        self.pool.install(|| {
            tasks.into_par_iter().for_each(|(index, out)| {
                let tokens = batch.cu_seqlens[index] as usize..batch.cu_seqlens[index + 1] as usize;
                let residues = batch.pooled_residues[index] as usize;
                pool(pooling, &x[tokens.start * hidden..tokens.end * hidden], hidden, residues, out);
            });
        });
        Ok(values)
    }

    fn wait(&mut self, values: Vec<f32>, _progress: &Progress) -> Result<PooledRows, EngineError> {
        Ok(PooledRows { values, non_finite: None })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::product::lanes;
    use super::*;
    use crate::encoder::Encoder;
    use crate::{EngineOptions, Model, ModelPath, Precision};

    #[test]
    fn every_kind_of_vector_instructions_gives_the_same_embedding() {
        let mut kinds = vec![(Arch::Scalar, None), (Arch::new(), None)];
        #[cfg(target_arch = "x86_64")]
        kinds.extend(pulp::x86::V3::try_new().map(|instructions| (Arch::V3(instructions), None)));
        kinds.extend(split::Kernel::detect().map(|kernel| (Arch::new(), Some(kernel))));

        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests/golden/tiny");
        let model = Model::open(&ModelPath::Folder(folder)).unwrap();
        let mut batch = Batch::default();
        for (ordinal, length) in [1usize, 7, 31, 64, 600].into_iter().enumerate() {
            let residues: Vec<u8> =
                b"MKVLAWGRNDCQEHIPFSTYX".iter().copied().cycle().skip(ordinal).take(length).collect();
            batch.push(ordinal as u64, &residues, length as u32);
        }
        let mut results = Vec::new();
        for (arch, split) in kinds {
            let kernels = Kernels { split, ..Kernels::of(Precision::Fp32) };
            let ops = CpuOps::with_kernels(arch, kernels, model.config().head_width(), 2).unwrap();
            let options = EngineOptions {
                layer: model.config().layers,
                pooling: Pooling::None,
                precision: Precision::Fp32,
                threads: 2,
            };
            let mut encoder = Encoder::load(ops, &model, options).unwrap();
            results.push(((lanes(arch), split), encoder.run(&batch, &Progress::default()).unwrap().values));
        }
        for (kind, values) in &results[1..] {
            let error = values.iter().zip(&results[0].1).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error < 2e-5, "{kind:?}: {error}");
        }
    }

    #[test]
    fn integers_go_with_activations_in_either_form() {
        // Processors without bfloat16 keep activations in f32: this machine's may be another kind.
        let Some(kernel) = integer::Kernel::detect() else { return };
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests/golden/tiny");
        let model = Model::open(&ModelPath::Folder(folder)).unwrap();
        let hidden = model.config().hidden;
        let mut batch = Batch::default();
        for (ordinal, length) in [1usize, 3, 7, 31, 64, 600].into_iter().enumerate() {
            let residues: Vec<u8> =
                b"MKVLAWGRNDCQEHIPFSTYX".iter().copied().cycle().skip(ordinal).take(length).collect();
            batch.push(ordinal as u64, &residues, length as u32);
        }
        let embed = |kernels: Kernels, batch: &Batch, threads: usize| {
            let ops =
                CpuOps::with_kernels(Arch::new(), kernels, model.config().head_width(), threads).unwrap();
            let options = EngineOptions {
                layer: model.config().layers,
                pooling: Pooling::Mean,
                precision: Precision::Int8,
                threads,
            };
            let mut encoder = Encoder::load(ops, &model, options).unwrap();
            encoder.run(batch, &Progress::default()).unwrap().values
        };
        let exact = embed(Kernels::of(Precision::Fp32), &batch, 1);
        for brain in [None, brain::Kernel::detect()] {
            let kernels = Kernels { brain, ..Kernels::of(Precision::Int8) };
            assert_eq!(kernels.integer, Some(kernel));
            let values = embed(kernels, &batch, 2);
            assert_eq!(values, embed(kernels, &batch, 1), "{brain:?}");
            for (index, (row, exact)) in values.chunks(hidden).zip(exact.chunks(hidden)).enumerate() {
                let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
                let cosine = product(row, exact) / (product(row, row) * product(exact, exact)).sqrt();
                assert!(cosine > 0.999, "{brain:?}, sequence {index}: cosine {cosine}");
                let mut alone = Batch::default();
                alone.push_tokens(0, batch.sequence(index), batch.pooled_residues[index]);
                assert_eq!(row, embed(kernels, &alone, 2), "{brain:?}, sequence {index}");
            }
        }
    }

    #[test]
    fn odd_shapes_are_multiplied_exactly_enough() {
        // Inner dimensions beyond one block and not a multiple of the unrolled steps; outputs that
        // end inside a vector.
        let tensor = |shape: &'static [usize], seed: usize| {
            let len = shape.iter().product::<usize>();
            let bytes =
                (0..len).flat_map(|i| (((i * 7 + seed) % 23) as f32 * 0.1 - 1.1).to_le_bytes()).collect();
            Tensor { stored: crate::model::StoredType::F32, shape, bytes: std::borrow::Cow::Owned(bytes) }
        };
        for (weight_shape, bias_shape) in
            [(&[5usize, 3][..], &[5usize][..]), (&[33, 770], &[33]), (&[47, 1_601], &[47]), (&[1, 1], &[1])]
        {
            let (outputs, inputs) = (weight_shape[0], weight_shape[1]);
            let (weight, bias) = (tensor(weight_shape, 1), tensor(bias_shape, 5));
            let (weights, biases) = (weight.to_f32(), bias.to_f32());
            let mut ops = CpuOps::new(2, 2, Precision::Fp32).unwrap();
            let linear = ops.linear(&[LinearRows { weight, bias }]).unwrap();
            let mut batch = Batch::default();
            batch.push(0, &[b'M'; 48], 48);
            let layout = ops.layout(&batch).unwrap();
            let mut x = ops.activations(50, inputs).unwrap();
            for (index, value) in x.0.as_mut_slice().iter_mut().enumerate() {
                *value = (index % 11) as f32 * 0.2 - 1.0;
            }
            for epilogue in [Epilogue::Bias, Epilogue::Gelu, Epilogue::Residual] {
                let mut out = ops.activations(50, outputs).unwrap();
                out.0.as_mut_slice().fill(3.0);
                ops.apply(&layout, &x, &linear, epilogue, &mut out).unwrap();
                for row in 0..50 {
                    for column in 0..outputs {
                        let products = (0..inputs).map(|i| {
                            f64::from(x.0.as_slice()[row * inputs + i])
                                * f64::from(weights[column * inputs + i])
                        });
                        let sum = products.sum::<f64>() + f64::from(biases[column]);
                        let expected = match epilogue {
                            Epilogue::Bias => sum,
                            Epilogue::Gelu => 0.5 * sum * libm::erfc(-sum / std::f64::consts::SQRT_2),
                            Epilogue::Residual => sum + 3.0,
                        };
                        let got = f64::from(out.0.as_slice()[row * outputs + column]);
                        assert!(
                            (got - expected).abs() < 1e-3,
                            "{outputs}x{inputs} {epilogue:?} [{row}, {column}]: {got}, expected {expected}"
                        );
                    }
                }
            }
        }
    }
}
