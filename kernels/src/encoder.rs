//! The ESM-2 forward pass, written once over [`Ops`].
//!
//! Owns the prepared weights and the activations, which it allocates for the largest batch so far
//! and uses again. Engines call [`Encoder::run`]; nothing here depends on a device.

use crate::model::{LayerWeight, Model, ModelConfig, ModelError, Weight};
use crate::ops::{Epilogue, LinearRows, Ops};
use crate::{Batch, Embeddings, EngineError, EngineOptions, Progress};

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
    config: ModelConfig,
    options: EngineOptions,
    table: O::Table,
    /// The layers up to the one asked for; later ones are never loaded.
    layers: Vec<Layer<O>>,
    /// Only when the last layer's output is asked for.
    final_norm: Option<O::Norm>,
    workspace: Option<Workspace<O>>,
}

impl<O: Ops> Encoder<O> {
    /// Prepares `model`'s weights on the device behind `ops`.
    ///
    /// # Errors
    /// [`EngineError::Model`] when `options.layer` is beyond the model or a tensor cannot be read,
    /// and the device's own errors.
    pub fn load(mut ops: O, model: &Model, options: EngineOptions) -> Result<Self, EngineError> {
        let config = model.config().clone();
        if options.layer > config.layers {
            return Err(EngineError::Model(format!(
                "layer {} was asked for, but model `{}` has layers 0 to {}",
                options.layer,
                model.name(),
                config.layers
            )));
        }
        let get = |weight: Weight| model.tensor(weight).map_err(|error| EngineError::Model(chain(&error)));
        let eps = config.layer_norm_eps;
        let table = ops.table(&get(Weight::Embedding)?)?;
        let mut layers = Vec::with_capacity(options.layer);
        for index in 0..options.layer {
            let part = |part: LayerWeight| get(Weight::Layer(index, part));
            let rows = |weight: LayerWeight, bias: LayerWeight| {
                Ok::<_, EngineError>(LinearRows { weight: part(weight)?, bias: part(bias)? })
            };
            use LayerWeight as W;
            layers.push(Layer {
                attention_norm: ops.norm(
                    &part(W::AttentionNormScale)?,
                    &part(W::AttentionNormShift)?,
                    eps,
                )?,
                query_key_value: ops.linear(&[
                    rows(W::Query, W::QueryBias)?,
                    rows(W::Key, W::KeyBias)?,
                    rows(W::Value, W::ValueBias)?,
                ])?,
                output: ops.linear(&[rows(W::Output, W::OutputBias)?])?,
                feed_forward_norm: ops.norm(
                    &part(W::FeedForwardNormScale)?,
                    &part(W::FeedForwardNormShift)?,
                    eps,
                )?,
                expand: ops.linear(&[rows(W::Expand, W::ExpandBias)?])?,
                contract: ops.linear(&[rows(W::Contract, W::ContractBias)?])?,
            });
        }
        let final_norm = if options.layer == config.layers {
            Some(ops.norm(&get(Weight::FinalNormScale)?, &get(Weight::FinalNormShift)?, eps)?)
        } else {
            None
        };
        Ok(Self { ops, config, options, table, layers, final_norm, workspace: None })
    }

    /// The operations' implementation.
    pub fn ops(&self) -> &O {
        &self.ops
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
        batch.check(self.config.vocab).map_err(EngineError::Batch)?;
        let hidden_width = self.config.hidden;
        if batch.is_empty() {
            return Ok(Embeddings { hidden: hidden_width, values: Vec::new() });
        }
        self.reserve(batch.token_count())?;
        let Self { ops, config, options, table, layers, final_norm, workspace } = self;
        let Some(Workspace { hidden, narrow, wide, .. }) = workspace.as_mut() else {
            return Err(EngineError::Device("activations were not allocated".into()));
        };

        let layout = ops.layout(batch)?;
        ops.embed(&layout, table, config.token_dropout, hidden)?;
        progress.tick();
        for layer in layers.iter() {
            ops.layer_norm(&layout, hidden, &layer.attention_norm, narrow)?;
            ops.apply(&layout, narrow, &layer.query_key_value, Epilogue::Bias, wide)?;
            progress.tick();
            ops.attention(&layout, wide, config.heads, progress, narrow)?;
            ops.apply(&layout, narrow, &layer.output, Epilogue::Residual, hidden)?;
            progress.tick();
            ops.layer_norm(&layout, hidden, &layer.feed_forward_norm, narrow)?;
            ops.apply(&layout, narrow, &layer.expand, Epilogue::Gelu, wide)?;
            progress.tick();
            ops.apply(&layout, wide, &layer.contract, Epilogue::Residual, hidden)?;
            progress.tick();
        }
        let last = match final_norm {
            Some(norm) => {
                ops.layer_norm(&layout, hidden, norm, narrow)?;
                narrow
            }
            None => hidden,
        };
        let values = ops.pool(&layout, last, hidden_width, options.pooling)?;
        progress.tick();

        let mut sequences = Vec::new();
        let mut rest = values.as_slice();
        for index in 0..batch.len() {
            let (rows, after) = rest.split_at(batch.rows(index, options.pooling) * hidden_width);
            if !rows.iter().all(|value| value.is_finite()) {
                sequences.push(index as u32);
            }
            rest = after;
        }
        if !sequences.is_empty() {
            return Err(EngineError::NonFinite { sequences });
        }
        Ok(Embeddings { hidden: hidden_width, values })
    }

    /// Makes room for `tokens` rows.
    fn reserve(&mut self, tokens: usize) -> Result<(), EngineError> {
        if self.workspace.as_ref().is_some_and(|workspace| workspace.tokens >= tokens) {
            return Ok(());
        }
        // The old activations go first: both at once might not fit.
        self.workspace = None;
        self.workspace = Some(Workspace {
            tokens,
            hidden: self.ops.activations(tokens, self.config.hidden)?,
            narrow: self.ops.activations(tokens, self.config.hidden)?,
            wide: self.ops.activations(tokens, wide(&self.config))?,
        });
        Ok(())
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
