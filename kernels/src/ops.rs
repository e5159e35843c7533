//! The operations that the ESM-2 forward pass is made of, on packed batches.
//!
//! [`crate::encoder`] is written once over this trait; each kind of device implements it. An
//! implementation owns its memory and its threads or streams and knows nothing of layers.

use crate::alphabet::MASK;
use crate::model::Tensor;
use crate::{Batch, EngineError, Pooling, Progress};

/// What a linear layer does with its products before they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// `out = x·Wᵀ + b`.
    Bias,
    /// `out = gelu(x·Wᵀ + b)` with the exact, erf-based GELU.
    Gelu,
    /// `out += x·Wᵀ + b`.
    Residual,
}

/// Rows of a linear layer: several are stacked into one product (query, key and value).
#[derive(Debug)]
pub struct LinearRows<'a> {
    /// [outputs, inputs].
    pub weight: Tensor<'a>,
    /// [outputs].
    pub bias: Tensor<'a>,
}

/// What a batch comes to, on the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PooledRows {
    /// Row-major [rows, hidden].
    pub values: Vec<f32>,
    /// Sequences whose rows hold NaN or infinity; `None` where the device has not looked.
    pub non_finite: Option<Vec<u32>>,
}

/// The factor by which token dropout scales a sequence's embeddings.
///
/// The network was trained with 12 % of its tokens masked: `0.88 / (1 - masked share)`.
pub fn dropout_scale(tokens: &[u8]) -> f32 {
    let masked = tokens.iter().filter(|&&token| token == MASK).count();
    (0.88 / (1.0 - masked as f64 / tokens.len() as f64)) as f32
}

/// The operations of an ESM-2 encoder on one device.
///
/// Activations are row-major [tokens, width], one row per token of the packed batch, no padding
/// between sequences. Calls may return before the device has finished, except [`Ops::wait`].
pub trait Ops {
    /// Memory for activations, at least [tokens, width].
    type Activations;
    /// Rows on their way to the host.
    type Pooled;
    /// A batch's tokens and sequence limits, where the device can read them.
    type Layout;
    /// The token embeddings.
    type Table;
    /// Scale and shift of a layer norm.
    type Norm;
    /// Weights of a linear layer in the device's own order.
    type Linear;

    /// Prepares the token embeddings, [vocab, hidden].
    ///
    /// # Errors
    /// When device memory is short.
    fn table(&mut self, values: &Tensor<'_>) -> Result<Self::Table, EngineError>;

    /// Prepares a layer norm from its scale and shift, each [width].
    ///
    /// # Errors
    /// When device memory is short.
    fn norm(&mut self, scale: &Tensor<'_>, shift: &Tensor<'_>, eps: f32) -> Result<Self::Norm, EngineError>;

    /// Prepares a linear layer whose outputs are those of `parts`, one after the other.
    ///
    /// # Errors
    /// When device memory is short.
    fn linear(&mut self, parts: &[LinearRows<'_>]) -> Result<Self::Linear, EngineError>;

    /// Allocates activations of `tokens` rows.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`] when they do not fit.
    fn activations(&mut self, tokens: usize, width: usize) -> Result<Self::Activations, EngineError>;

    /// Allocates the residual stream, which a device may keep in more digits than other activations.
    ///
    /// # Errors
    /// [`EngineError::OutOfMemory`] when it does not fit.
    fn residual(&mut self, tokens: usize, width: usize) -> Result<Self::Activations, EngineError> {
        self.activations(tokens, width)
    }

    /// Makes `batch` known to the device.
    ///
    /// # Errors
    /// When the device fails.
    fn layout(&mut self, batch: &Batch) -> Result<Self::Layout, EngineError>;

    /// Looks up token embeddings; `out` becomes [tokens, hidden].
    ///
    /// With `token_dropout`, rows of `<mask>` become zero and each sequence is scaled by its [`dropout_scale`].
    ///
    /// # Errors
    /// When the device fails.
    fn embed(
        &mut self,
        layout: &Self::Layout,
        table: &Self::Table,
        token_dropout: bool,
        out: &mut Self::Activations,
    ) -> Result<(), EngineError>;

    /// Normalises each row of `x` [tokens, hidden] into `out` [tokens, hidden].
    ///
    /// # Errors
    /// When the device fails.
    fn layer_norm(
        &mut self,
        layout: &Self::Layout,
        x: &Self::Activations,
        norm: &Self::Norm,
        out: &mut Self::Activations,
    ) -> Result<(), EngineError>;

    /// As [`Ops::layer_norm`], for rows that are pooled next: a device may keep them in more digits.
    ///
    /// `out` has room for the widest activations.
    ///
    /// # Errors
    /// When the device fails.
    fn final_norm(
        &mut self,
        layout: &Self::Layout,
        x: &Self::Activations,
        norm: &Self::Norm,
        out: &mut Self::Activations,
    ) -> Result<(), EngineError> {
        self.layer_norm(layout, x, norm, out)
    }

    /// Applies a linear layer: `x` [tokens, inputs] to `out` [tokens, outputs].
    ///
    /// # Errors
    /// When the device fails.
    fn apply(
        &mut self,
        layout: &Self::Layout,
        x: &Self::Activations,
        linear: &Self::Linear,
        epilogue: Epilogue,
        out: &mut Self::Activations,
    ) -> Result<(), EngineError>;

    /// Attends within each sequence: `qkv` [tokens, 3·hidden] to `out` [tokens, hidden].
    ///
    /// A row of `qkv` holds all heads' queries, then keys, then values, as they left the linear
    /// layer: this applies rotary positions (rotate-half, f32, from 0 in each sequence) to
    /// queries and keys and the scale `head width ^ -0.5`, once, to the queries. Ticks `progress`
    /// while long sequences run.
    ///
    /// # Errors
    /// When the device fails.
    fn attention(
        &mut self,
        layout: &Self::Layout,
        qkv: &Self::Activations,
        heads: usize,
        progress: &Progress,
        out: &mut Self::Activations,
    ) -> Result<(), EngineError>;

    /// Pools `x` [tokens, hidden]; the rows leave the device by themselves.
    ///
    /// # Errors
    /// When the device fails.
    fn pool(
        &mut self,
        layout: &Self::Layout,
        x: &Self::Activations,
        hidden: usize,
        pooling: Pooling,
    ) -> Result<Self::Pooled, EngineError>;

    /// Waits for pooled rows. Ticks `progress` only when the device has got further.
    ///
    /// # Errors
    /// When the device fails.
    fn wait(&mut self, pooled: Self::Pooled, progress: &Progress) -> Result<PooledRows, EngineError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_tokens_weigh_on_the_others() {
        assert_eq!(dropout_scale(&[0, 5, 6, 2]), 0.88);
        assert_eq!(dropout_scale(&[0, MASK, 6, 2]), (0.88f64 / 0.75) as f32);
    }
}
