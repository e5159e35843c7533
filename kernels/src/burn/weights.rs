//! The model's weights as tensors of a burn backend, in f32.

use burn_tensor::backend::Backend;
use burn_tensor::{Tensor, TensorData};

use crate::EngineError;
use crate::encoder::chain;
use crate::model::{LayerWeight, Model, Weight};

/// Scale and shift of a layer norm, each [1, width].
pub(super) struct Norm<B: Backend> {
    pub(super) scale: Tensor<B, 2>,
    pub(super) shift: Tensor<B, 2>,
}

/// A linear layer: weight [outputs, inputs], bias [1, outputs].
pub(super) struct Linear<B: Backend> {
    pub(super) weight: Tensor<B, 2>,
    pub(super) bias: Tensor<B, 2>,
}

/// One transformer layer.
pub(super) struct Layer<B: Backend> {
    pub(super) attention_norm: Norm<B>,
    pub(super) query: Linear<B>,
    pub(super) key: Linear<B>,
    pub(super) value: Linear<B>,
    pub(super) output: Linear<B>,
    pub(super) feed_forward_norm: Norm<B>,
    pub(super) expand: Linear<B>,
    pub(super) contract: Linear<B>,
}

/// All weights up to the layer asked for.
pub(super) struct Weights<B: Backend> {
    /// [vocab, hidden].
    pub(super) embedding: Tensor<B, 2>,
    pub(super) layers: Vec<Layer<B>>,
    /// Only when the last layer's output is asked for.
    pub(super) final_norm: Option<Norm<B>>,
    pub(super) bytes: u64,
}

impl<B: Backend> Weights<B> {
    /// Copies `model`'s first `layers` layers to `device`.
    ///
    /// # Errors
    /// [`EngineError::Model`] when the model has fewer layers or a tensor cannot be read.
    pub(super) fn load(model: &Model, layers: usize, device: &B::Device) -> Result<Self, EngineError> {
        let last = model.config().layers;
        if layers > last {
            return Err(EngineError::Model(format!(
                "layer {layers} was asked for, but model `{}` has layers 0 to {last}",
                model.name()
            )));
        }
        let mut loading = Loading::<B> { model, device, bytes: 0 };
        let embedding = loading.matrix(Weight::Embedding)?;
        let layers_loaded = (0..layers).map(|index| loading.layer(index)).collect::<Result<_, _>>()?;
        let final_norm = match layers == last {
            true => Some(loading.norm(Weight::FinalNormScale, Weight::FinalNormShift)?),
            false => None,
        };
        Ok(Self { embedding, layers: layers_loaded, final_norm, bytes: loading.bytes })
    }
}

struct Loading<'a, B: Backend> {
    model: &'a Model,
    device: &'a B::Device,
    bytes: u64,
}

impl<B: Backend> Loading<'_, B> {
    /// A tensor of one or two extents; one becomes a single row.
    fn matrix(&mut self, weight: Weight) -> Result<Tensor<B, 2>, EngineError> {
        let tensor = self.model.tensor(weight).map_err(|error| EngineError::Model(chain(&error)))?;
        let values = tensor.to_f32();
        self.model.release(weight);
        self.bytes += 4 * values.len() as u64;
        let columns = tensor.shape.last().copied().unwrap_or(1);
        let rows = values.len() / columns.max(1);
        Ok(Tensor::from_data(TensorData::new(values, [rows, columns]), self.device))
    }

    fn norm(&mut self, scale: Weight, shift: Weight) -> Result<Norm<B>, EngineError> {
        Ok(Norm { scale: self.matrix(scale)?, shift: self.matrix(shift)? })
    }

    fn layer(&mut self, index: usize) -> Result<Layer<B>, EngineError> {
        use LayerWeight as W;
        let part = |part: LayerWeight| Weight::Layer(index, part);
        let mut linear = |weight, bias| {
            Ok::<_, EngineError>(Linear {
                weight: self.matrix(part(weight))?,
                bias: self.matrix(part(bias))?,
            })
        };
        let query = linear(W::Query, W::QueryBias)?;
        let key = linear(W::Key, W::KeyBias)?;
        let value = linear(W::Value, W::ValueBias)?;
        let output = linear(W::Output, W::OutputBias)?;
        let expand = linear(W::Expand, W::ExpandBias)?;
        let contract = linear(W::Contract, W::ContractBias)?;
        let attention_norm = self.norm(part(W::AttentionNormScale), part(W::AttentionNormShift))?;
        let feed_forward_norm = self.norm(part(W::FeedForwardNormScale), part(W::FeedForwardNormShift))?;
        Ok(Layer { attention_norm, query, key, value, output, feed_forward_norm, expand, contract })
    }
}
