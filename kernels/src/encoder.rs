//! The ESM-2 forward pass, written once over [`Ops`].
//!
//! Owns the prepared weights and the activations, which it allocates for the largest batch so far
//! and uses again. Engines call [`Encoder::run`], or [`Encoder::begin`] and [`Encoder::finish`] where
//! the device computes while the host does something else; nothing here depends on a device.

use crate::model::{LayerWeight, Model, ModelConfig, ModelError, Tensor, Weight};
use crate::ops::{Epilogue, LinearRows, Ops, PooledRows};
use crate::{Batch, Embeddings, EngineError, EngineOptions, Pooling, Progress};

/// One transformer layer's prepared weights.
struct Layer<O: Ops> {
    attention_norm: O::Norm,
    query_key_value: O::Linear,
    output: O::Linear,
    feed_forward_norm: O::Norm,
    expand: O::Linear,
    contract: O::Linear,
}

/// Activations of one batch; see [`workspace_floats_per_token`].
struct Workspace<O: Ops> {
    tokens: usize,
    /// The residual stream, [tokens, hidden].
    hidden: O::Activations,
    /// Output of a norm or of attention, [tokens, hidden].
    narrow: O::Activations,
    /// Queries, keys and values, then the feed-forward block's inside: [tokens, widest].
    wide: O::Activations,
}

/// A batch that has begun.
pub struct Pending<O: Ops> {
    /// Rows of each sequence.
    rows: Vec<usize>,
    /// `None`: the batch is empty.
    pooled: Option<O::Pooled>,
}

impl<O: Ops> Pending<O> {
    fn empty() -> Self {
        Self { rows: Vec::new(), pooled: None }
    }
}

/// Numbers held per token while a batch runs.
pub fn workspace_floats_per_token(config: &ModelConfig) -> usize {
    2 * config.hidden + wide(config)
}

/// Width that the queries, keys and values share with the feed-forward block's inside: the two
/// never live at the same time.
fn wide(config: &ModelConfig) -> usize {
    (3 * config.hidden).max(config.intermediate)
}

/// An ESM-2 encoder whose weights and activations live on one device.
pub struct Encoder<O: Ops> {
    ops: O,
    network: Network<O>,
    workspace: Option<Workspace<O>>,
}

/// What no batch changes: the prepared weights, and what was asked for.
struct Network<O: Ops> {
    config: ModelConfig,
    options: EngineOptions,
    table: O::Table,
    /// The layers up to the one asked for; later ones are never loaded.
    layers: Vec<Layer<O>>,
    /// Only when the last layer's output is asked for.
    final_norm: Option<O::Norm>,
}

/// A lane's activations grow by so many tokens.
const LANE_TOKENS_QUANTUM: usize = 256;

/// Operations and activations with which one more batch runs on an encoder's weights at the same time.
pub struct Lane<O: Ops> {
    ops: O,
    workspace: Option<Workspace<O>>,
}

impl<O: Ops> Lane<O> {
    /// A lane of its own for `ops`, which can read what the encoder's operations prepared.
    pub fn new(ops: O) -> Self {
        Self { ops, workspace: None }
    }
}

impl<O: Ops> Encoder<O> {
    /// Prepares `model`'s weights on the device behind `ops`.
    ///
    /// # Errors
    /// [`EngineError::Model`] when `options.layer` is beyond the model or a tensor cannot be read,
    /// and the device's own errors.
    pub fn load(mut ops: O, model: &Model, options: EngineOptions) -> Result<Self, EngineError> {
        let source = Source::new(model, &options)?;
        let table = source.table(&mut ops)?;
        let layers =
            (0..options.layer).map(|index| source.layer(&mut ops, index)).collect::<Result<_, _>>()?;
        let final_norm = source.final_norm(&mut ops)?;
        let config = model.config().clone();
        let network = Network { config, options, table, layers, final_norm };
        Ok(Self { ops, network, workspace: None })
    }

    /// The operations' implementation.
    pub fn ops(&self) -> &O {
        &self.ops
    }

    /// The same, to be changed.
    pub fn ops_mut(&mut self) -> &mut O {
        &mut self.ops
    }

    /// Runs one batch up to the layer asked for, ticking `progress` after every operation.
    ///
    /// Layers before the last give the residual stream as it is; the last one passes the final
    /// layer norm.
    ///
    /// # Errors
    /// [`EngineError::Batch`] for a batch that contradicts itself, [`EngineError::NonFinite`] with
    /// the sequences whose embeddings hold NaN or infinity, and the device's own errors.
    pub fn run(&mut self, batch: &Batch, progress: &Progress) -> Result<Embeddings, EngineError> {
        let pending = self.begin(batch, progress)?;
        self.finish(pending, progress)
    }

    /// Hands one batch to the device, ticking `progress` after every operation.
    ///
    /// # Errors
    /// As of [`Encoder::run`], but for those that only the result shows.
    pub fn begin(&mut self, batch: &Batch, progress: &Progress) -> Result<Pending<O>, EngineError> {
        let Self { ops, network, workspace } = self;
        network.begin(ops, workspace, batch, progress)
    }

    /// Waits for a batch that has begun.
    ///
    /// # Errors
    /// [`EngineError::NonFinite`] with the sequences whose embeddings hold NaN or infinity, and the
    /// device's own errors.
    pub fn finish(&mut self, pending: Pending<O>, progress: &Progress) -> Result<Embeddings, EngineError> {
        self.network.finish(&mut self.ops, pending, progress)
    }

    /// As [`Encoder::run`], in `lane`: other threads may do the same in other lanes.
    ///
    /// # Errors
    /// As of [`Encoder::run`].
    pub fn run_in(
        &self,
        lane: &mut Lane<O>,
        batch: &Batch,
        progress: &Progress,
    ) -> Result<Embeddings, EngineError> {
        let Lane { ops, workspace } = lane;
        // Room for a few tokens more: batches of about one size shall not each make new activations.
        let tokens = batch.token_count().next_multiple_of(LANE_TOKENS_QUANTUM);
        self.network.reserve(ops, workspace, tokens)?;
        let pending = self.network.begin(ops, workspace, batch, progress)?;
        self.network.finish(ops, pending, progress)
    }

    /// As [`Encoder::begin`], with `model`'s weights prepared anew by operations that have since been told
    /// to compute otherwise: one layer at a time, so that hardly more memory is needed than for the largest
    /// layer. Nothing of it is kept.
    ///
    /// # Errors
    /// As of [`Encoder::load`] and [`Encoder::begin`].
    pub fn begin_streamed(
        &mut self,
        model: &Model,
        batch: &Batch,
        progress: &Progress,
    ) -> Result<Pending<O>, EngineError> {
        let Self { ops, network: Network { config, options, .. }, .. } = self;
        batch.check(config.vocab).map_err(EngineError::Batch)?;
        if batch.is_empty() {
            return Ok(Pending::empty());
        }
        let source = Source::new(model, options)?;
        let mut workspace = Workspace::new(ops, config, batch.token_count())?;
        let table = source.table(ops)?;
        let layout = ops.layout(batch)?;
        ops.embed(&layout, &table, config.token_dropout, &mut workspace.hidden)?;
        progress.tick();
        for index in 0..options.layer {
            source.layer(ops, index)?.run(ops, config, &layout, &mut workspace, progress)?;
        }
        let final_norm = source.final_norm(ops)?;
        workspace.pool(ops, config, &layout, final_norm.as_ref(), options.pooling, batch, progress)
    }

    /// Calls `visit` with each matrix product of a layer, on activations of `tokens` rows: input, weights,
    /// what follows, output. Nothing, if no layer is loaded.
    ///
    /// # Errors
    /// Those of `visit`, and the device's own when the activations do not fit.
    pub fn visit_products(
        &mut self,
        tokens: usize,
        mut visit: impl FnMut(
            &mut O,
            &O::Activations,
            &O::Linear,
            Epilogue,
            &mut O::Activations,
        ) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        self.reserve(tokens)?;
        let (Some(layer), Some(workspace)) = (self.network.layers.first(), self.workspace.as_mut()) else {
            return Ok(());
        };
        let Workspace { hidden, narrow, wide, .. } = workspace;
        let ops = &mut self.ops;
        visit(ops, narrow, &layer.query_key_value, Epilogue::Bias, wide)?;
        visit(ops, narrow, &layer.output, Epilogue::Residual, hidden)?;
        visit(ops, narrow, &layer.expand, Epilogue::Gelu, wide)?;
        visit(ops, wide, &layer.contract, Epilogue::Residual, hidden)
    }

    /// Makes room for batches of `tokens`, if there is not enough yet.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`] when there is none; the next batch then allocates what it needs.
    pub fn reserve(&mut self, tokens: usize) -> Result<(), EngineError> {
        self.network.reserve(&mut self.ops, &mut self.workspace, tokens).map(|_| ())
    }
}

impl<O: Ops> Network<O> {
    fn reserve<'a>(
        &self,
        ops: &mut O,
        workspace: &'a mut Option<Workspace<O>>,
        tokens: usize,
    ) -> Result<&'a mut Workspace<O>, EngineError> {
        // The old activations go first: both at once might not fit.
        let kept = workspace.take().filter(|workspace| workspace.tokens >= tokens);
        let made = match kept {
            Some(workspace) => workspace,
            None => Workspace::new(ops, &self.config, tokens)?,
        };
        Ok(workspace.insert(made))
    }

    fn begin(
        &self,
        ops: &mut O,
        workspace: &mut Option<Workspace<O>>,
        batch: &Batch,
        progress: &Progress,
    ) -> Result<Pending<O>, EngineError> {
        let Self { config, options, table, layers, final_norm } = self;
        batch.check(config.vocab).map_err(EngineError::Batch)?;
        if batch.is_empty() {
            return Ok(Pending::empty());
        }
        let workspace = self.reserve(ops, workspace, batch.token_count())?;
        let layout = ops.layout(batch)?;
        ops.embed(&layout, table, config.token_dropout, &mut workspace.hidden)?;
        progress.tick();
        for layer in layers {
            layer.run(ops, config, &layout, workspace, progress)?;
        }
        workspace.pool(ops, config, &layout, final_norm.as_ref(), options.pooling, batch, progress)
    }

    fn finish(
        &self,
        ops: &mut O,
        pending: Pending<O>,
        progress: &Progress,
    ) -> Result<Embeddings, EngineError> {
        let hidden = self.config.hidden;
        let Some(pooled) = pending.pooled else {
            return Ok(Embeddings { hidden, values: Vec::new() });
        };
        let PooledRows { values, non_finite } = ops.wait(pooled, progress)?;
        let sequences = non_finite.unwrap_or_else(|| {
            let mut rest = values.as_slice();
            let mut sequences = Vec::new();
            for (index, &rows) in pending.rows.iter().enumerate() {
                let (rows, after) = rest.split_at(rows * hidden);
                if !rows.iter().all(|value| value.is_finite()) {
                    sequences.push(index as u32);
                }
                rest = after;
            }
            sequences
        });
        if !sequences.is_empty() {
            return Err(EngineError::NonFinite { sequences });
        }
        Ok(Embeddings { hidden, values })
    }
}

impl<O: Ops> Layer<O> {
    fn run(
        &self,
        ops: &mut O,
        config: &ModelConfig,
        layout: &O::Layout,
        workspace: &mut Workspace<O>,
        progress: &Progress,
    ) -> Result<(), EngineError> {
        let Workspace { hidden, narrow, wide, .. } = workspace;
        ops.layer_norm(layout, hidden, &self.attention_norm, narrow)?;
        ops.apply(layout, narrow, &self.query_key_value, Epilogue::Bias, wide)?;
        progress.tick();
        ops.attention(layout, wide, config.heads, progress, narrow)?;
        ops.apply(layout, narrow, &self.output, Epilogue::Residual, hidden)?;
        progress.tick();
        ops.layer_norm(layout, hidden, &self.feed_forward_norm, narrow)?;
        ops.apply(layout, narrow, &self.expand, Epilogue::Gelu, wide)?;
        progress.tick();
        ops.apply(layout, wide, &self.contract, Epilogue::Residual, hidden)?;
        progress.tick();
        Ok(())
    }
}

impl<O: Ops> Workspace<O> {
    fn new(ops: &mut O, config: &ModelConfig, tokens: usize) -> Result<Self, EngineError> {
        Ok(Self {
            tokens,
            hidden: ops.residual(tokens, config.hidden)?,
            narrow: ops.activations(tokens, config.hidden)?,
            wide: ops.activations(tokens, wide(config))?,
        })
    }

    #[expect(clippy::too_many_arguments, reason = "what a batch ends with")]
    fn pool(
        &mut self,
        ops: &mut O,
        config: &ModelConfig,
        layout: &O::Layout,
        final_norm: Option<&O::Norm>,
        pooling: Pooling,
        batch: &Batch,
        progress: &Progress,
    ) -> Result<Pending<O>, EngineError> {
        let last = match final_norm {
            Some(norm) => {
                ops.final_norm(layout, &self.hidden, norm, &mut self.wide)?;
                &self.wide
            }
            None => &self.hidden,
        };
        let pooled = ops.pool(layout, last, config.hidden, pooling)?;
        progress.tick();
        let rows = (0..batch.len()).map(|index| batch.rows(index, pooling)).collect();
        Ok(Pending { rows, pooled: Some(pooled) })
    }
}

/// Weights as they are prepared, one part at a time.
struct Source<'a> {
    model: &'a Model,
    layers: usize,
}

impl<'a> Source<'a> {
    fn new(model: &'a Model, options: &EngineOptions) -> Result<Self, EngineError> {
        if options.layer > model.config().layers {
            return Err(EngineError::Model(format!(
                "layer {} was asked for, but model `{}` has layers 0 to {}",
                options.layer,
                model.name(),
                model.config().layers
            )));
        }
        Ok(Self { model, layers: options.layer })
    }

    fn get(&self, weight: Weight) -> Result<Tensor<'a>, EngineError> {
        self.model.tensor(weight).map_err(|error| EngineError::Model(chain(&error)))
    }

    fn table<O: Ops>(&self, ops: &mut O) -> Result<O::Table, EngineError> {
        let table = ops.table(&self.get(Weight::Embedding)?)?;
        self.release(&[Weight::Embedding]);
        Ok(table)
    }

    fn norm<O: Ops>(&self, ops: &mut O, scale: Weight, shift: Weight) -> Result<O::Norm, EngineError> {
        let eps = self.model.config().layer_norm_eps;
        let norm = ops.norm(&self.get(scale)?, &self.get(shift)?, eps)?;
        self.release(&[scale, shift]);
        Ok(norm)
    }

    /// A linear layer of weights and their biases, stacked.
    fn linear<O: Ops>(&self, ops: &mut O, parts: &[[Weight; 2]]) -> Result<O::Linear, EngineError> {
        let rows: Vec<_> = parts
            .iter()
            .map(|&[weight, bias]| {
                Ok::<_, EngineError>(LinearRows { weight: self.get(weight)?, bias: self.get(bias)? })
            })
            .collect::<Result<_, _>>()?;
        let linear = ops.linear(&rows)?;
        self.release(parts.as_flattened());
        Ok(linear)
    }

    /// Gives back the memory through which weights were read that are prepared now: else the whole file would stay
    /// beside what was made of it.
    fn release(&self, weights: &[Weight]) {
        for &weight in weights {
            self.model.release(weight);
        }
    }

    fn layer<O: Ops>(&self, ops: &mut O, index: usize) -> Result<Layer<O>, EngineError> {
        use LayerWeight as W;
        let part = |part: LayerWeight| Weight::Layer(index, part);
        let rows = |weight: LayerWeight, bias: LayerWeight| [part(weight), part(bias)];
        let query_key_value =
            [rows(W::Query, W::QueryBias), rows(W::Key, W::KeyBias), rows(W::Value, W::ValueBias)];
        Ok(Layer {
            attention_norm: self.norm(ops, part(W::AttentionNormScale), part(W::AttentionNormShift))?,
            query_key_value: self.linear(ops, &query_key_value)?,
            output: self.linear(ops, &[rows(W::Output, W::OutputBias)])?,
            feed_forward_norm: self.norm(
                ops,
                part(W::FeedForwardNormScale),
                part(W::FeedForwardNormShift),
            )?,
            expand: self.linear(ops, &[rows(W::Expand, W::ExpandBias)])?,
            contract: self.linear(ops, &[rows(W::Contract, W::ContractBias)])?,
        })
    }

    /// Only the last layer's output passes it.
    fn final_norm<O: Ops>(&self, ops: &mut O) -> Result<Option<O::Norm>, EngineError> {
        if self.layers < self.model.config().layers {
            return Ok(None);
        }
        self.norm(ops, Weight::FinalNormScale, Weight::FinalNormShift).map(Some)
    }
}

/// An error and its sources in one line: [`EngineError`] crosses a process boundary as text.
pub(crate) fn chain(error: &ModelError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
