//! The ESM-2 forward pass over burn's tensors, one row per token of the packed batch.

use burn_tensor::backend::Backend;
use burn_tensor::{Int, Tensor, TensorData, activation};

use super::attention::Layout;
use super::product::Products;
use super::weights::{Linear, Norm, Weights};
use crate::alphabet::MASK;
use crate::model::{Model, ModelConfig};
use crate::{Batch, EngineError, Progress};

/// A network on a device.
pub(super) struct Network<B: Backend> {
    config: ModelConfig,
    weights: Weights<B>,
    device: B::Device,
}

/// Cosine and sine of each token's rotary angles, [tokens, 1, head width / 2] each.
struct Angles<B: Backend> {
    cosines: Tensor<B, 3>,
    sines: Tensor<B, 3>,
}

impl<B: Backend> Network<B> {
    /// Prepares the layers of `model` up to `layer`.
    ///
    /// # Errors
    /// Those of [`Weights::load`].
    pub(super) fn load(model: &Model, layer: usize, device: B::Device) -> Result<Self, EngineError> {
        let weights = Weights::load(model, layer, &device)?;
        Ok(Self { config: model.config().clone(), weights, device })
    }

    pub(super) fn weights_bytes(&self) -> u64 {
        self.weights.bytes
    }

    pub(super) fn vocab(&self) -> usize {
        self.config.vocab
    }

    /// The hidden states of the layer asked for, row-major [tokens, hidden].
    ///
    /// # Errors
    /// [`EngineError::Device`] when the backend fails.
    pub(super) fn run(
        &self,
        batch: &Batch,
        products: Products,
        progress: &Progress,
    ) -> Result<Vec<f32>, EngineError> {
        let Self { config, weights, device } = self;
        let eps = config.layer_norm_eps;
        let layout = Layout::new(batch, config.heads, device);
        let angles = self.angles(batch);
        let mut hidden = self.embed(batch);
        progress.tick();
        for layer in &weights.layers {
            let x = normalise(hidden.clone(), &layer.attention_norm, eps);
            let heads = |linear| {
                let [tokens, _] = x.dims();
                apply(x.clone(), linear, products).reshape([tokens, config.heads, config.head_width()])
            };
            let scale = 1.0 / (config.head_width() as f64).sqrt();
            let query = angles.rotate(heads(&layer.query)).mul_scalar(scale);
            let key = angles.rotate(heads(&layer.key));
            let value = heads(&layer.value);
            progress.tick();
            let attended = layout.attend(query, key, value, products, progress);
            hidden = hidden + apply(attended, &layer.output, products);
            progress.tick();

            let x = normalise(hidden.clone(), &layer.feed_forward_norm, eps);
            // The exact GELU: burn's other one, by name, is the approximation with tanh.
            let x = activation::gelu(apply(x, &layer.expand, products));
            progress.tick();
            hidden = hidden + apply(x, &layer.contract, products);
            progress.tick();
        }
        if let Some(norm) = &weights.final_norm {
            hidden = normalise(hidden, norm, eps);
        }
        let failed = |error: String| EngineError::Device(format!("burn failed: {error}"));
        let data = hidden.try_into_data().map_err(|error| failed(error.to_string()))?;
        progress.tick();
        data.into_vec::<f32>().map_err(|error| failed(format!("results are not f32: {error:?}")))
    }

    /// Token embeddings, [tokens, hidden]. With token dropout, those of `<mask>` are zero, and each sequence is
    /// scaled by 0.88 over its share of other tokens.
    fn embed(&self, batch: &Batch) -> Tensor<B, 2> {
        let mut scales = Vec::with_capacity(batch.token_count());
        for index in 0..batch.len() {
            let tokens = batch.sequence(index);
            let masked = tokens.iter().filter(|&&token| token == MASK).count() as f64;
            let scale = (1.0 - 0.15 * 0.8) / (1.0 - masked / tokens.len() as f64);
            scales.extend(tokens.iter().map(|&token| match self.config.token_dropout {
                true if token == MASK => 0.0,
                true => scale as f32,
                false => 1.0,
            }));
        }
        let tokens = batch.token_count();
        let ids: Vec<i32> = batch.tokens.iter().map(|&token| i32::from(token)).collect();
        let ids = Tensor::<B, 1, Int>::from_ints(TensorData::new(ids, [tokens]), &self.device);
        let scales = Tensor::<B, 2>::from_data(TensorData::new(scales, [tokens, 1]), &self.device);
        self.weights.embedding.clone().select(0, ids) * scales
    }

    /// The angle of pair i at a position is position · 10000^(-2 i / head width), the frequency rounded to f32 as the
    /// reference does.
    fn angles(&self, batch: &Batch) -> Angles<B> {
        let pairs = self.config.head_width() / 2;
        let frequencies: Vec<f64> = (0..pairs)
            .map(|pair| {
                let exponent = pair as f32 * 2.0 / self.config.head_width() as f32;
                f64::from(1.0 / 10_000f64.powf(f64::from(exponent)) as f32)
            })
            .collect();
        let table = |function: fn(f64) -> f64| {
            let positions = batch.max_seqlen();
            let values: Vec<f32> = (0..positions)
                .flat_map(|position| frequencies.iter().map(move |f| function(position as f64 * f) as f32))
                .collect();
            Tensor::<B, 2>::from_data(TensorData::new(values, [positions, pairs]), &self.device)
        };
        // Positions begin at 0 in each sequence.
        let positions: Vec<i32> =
            (0..batch.len()).flat_map(|index| 0..batch.sequence(index).len() as i32).collect();
        let tokens = positions.len();
        let positions = Tensor::<B, 1, Int>::from_ints(TensorData::new(positions, [tokens]), &self.device);
        let of_tokens = |table: Tensor<B, 2>| table.select(0, positions.clone()).reshape([tokens, 1, pairs]);
        Angles { cosines: of_tokens(table(f64::cos)), sines: of_tokens(table(f64::sin)) }
    }
}

impl<B: Backend> Angles<B> {
    /// Rotates the two halves of every head of `x` [tokens, heads, head width] against each other.
    fn rotate(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let pairs = x.dims()[2] / 2;
        let (first, second) = (x.clone().narrow(2, 0, pairs), x.narrow(2, pairs, pairs));
        let (cosines, sines) = (self.cosines.clone(), self.sines.clone());
        let turned = first.clone() * cosines.clone() - second.clone() * sines.clone();
        Tensor::cat(vec![turned, second * cosines + first * sines], 2)
    }
}

/// Normalises each row of `x` [tokens, hidden].
fn normalise<B: Backend>(x: Tensor<B, 2>, norm: &Norm<B>, eps: f32) -> Tensor<B, 2> {
    let centred = x.clone() - x.mean_dim(1);
    let variance = (centred.clone() * centred.clone()).mean_dim(1);
    centred / (variance + eps).sqrt() * norm.scale.clone() + norm.shift.clone()
}

/// `x` [tokens, inputs] through a linear layer: [tokens, outputs].
fn apply<B: Backend>(x: Tensor<B, 2>, linear: &Linear<B>, products: Products) -> Tensor<B, 2> {
    products.of(x, linear.weight.clone().transpose()) + linear.bias.clone()
}
