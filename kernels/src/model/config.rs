//! The shape of an ESM-2 network, read from `config.json` or derived from a checkpoint.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ModelError;
use crate::alphabet::VOCAB;

/// The published models have at most 48 layers of width 5,120 and 20,480 inside: a configuration
/// beyond these limits is damaged, and sizes derived within them cannot overflow, nor can a sum of that many products
/// in int8.
pub(super) const LAYERS_MAX: usize = 1_000;
const WIDTH_MAX: usize = 1 << 17;

/// The shape of an ESM-2 network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream and of an embedding.
    pub hidden: usize,
    /// Attention heads; each is `hidden / heads` wide.
    pub heads: usize,
    /// Width inside the feed-forward block.
    pub intermediate: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Added to the variance by every layer norm.
    pub layer_norm_eps: f32,
    /// Whether token embeddings are scaled as if 12 % of the tokens were masked in training.
    pub token_dropout: bool,
}

impl ModelConfig {
    /// Width of one attention head.
    pub fn head_width(&self) -> usize {
        self.hidden / self.heads
    }

    /// Parameters of the encoder: what the forward pass reads, without language-model head.
    pub fn parameters(&self) -> u64 {
        let (hidden, intermediate) = (self.hidden as u64, self.intermediate as u64);
        let attention = 4 * (hidden * hidden + hidden);
        let feed_forward = 2 * hidden * intermediate + intermediate + hidden;
        let norms = 4 * hidden;
        self.layers as u64 * (attention + feed_forward + norms) + self.vocab as u64 * hidden + 2 * hidden
    }

    /// Floating-point operations of one token in a sequence of `sequence_tokens`.
    pub fn flops_per_token(&self, sequence_tokens: usize) -> u64 {
        let (hidden, intermediate) = (self.hidden as u64, self.intermediate as u64);
        let products = 8 * hidden * hidden + 4 * hidden * intermediate;
        self.layers as u64 * (products + 4 * sequence_tokens as u64 * hidden)
    }

    /// Reads a Hugging Face `config.json`; `path` names it in errors.
    pub(crate) fn from_hugging_face(json: &[u8], path: &Path) -> Result<Self, ModelError> {
        #[derive(Deserialize)]
        struct Raw {
            model_type: Option<String>,
            position_embedding_type: Option<String>,
            emb_layer_norm_before: Option<bool>,
            is_folding_model: Option<bool>,
            hidden_act: Option<String>,
            vocab_size: Option<usize>,
            num_hidden_layers: Option<usize>,
            hidden_size: Option<usize>,
            num_attention_heads: Option<usize>,
            intermediate_size: Option<usize>,
            layer_norm_eps: Option<f32>,
            token_dropout: Option<bool>,
        }
        let raw: Raw = serde_json::from_slice(json)
            .map_err(|source| ModelError::Json { path: path.to_owned(), source })?;
        let not_esm2 = |problem: String| ModelError::NotEsm2 { path: path.to_owned(), problem };
        let required = |field: &str, value: Option<usize>| {
            value.ok_or_else(|| ModelError::Config {
                path: path.to_owned(),
                problem: format!("`{field}` is absent"),
            })
        };

        match raw.model_type.as_deref() {
            Some("esm") => {}
            Some(other) => return Err(not_esm2(format!("`model_type` is `{other}`, expected `esm`"))),
            None => return Err(not_esm2("`model_type` is absent, expected `esm`".into())),
        }
        // ESM-1b is `esm` as well: it differs by learned positions and by a norm before the layers.
        match raw.position_embedding_type.as_deref() {
            Some("rotary") => {}
            Some(other) => {
                return Err(not_esm2(format!("`position_embedding_type` is `{other}`, expected `rotary`")));
            }
            None => return Err(not_esm2("`position_embedding_type` is absent, expected `rotary`".into())),
        }
        if raw.emb_layer_norm_before == Some(true) {
            return Err(not_esm2("`emb_layer_norm_before` is true".into()));
        }
        if raw.is_folding_model == Some(true) {
            return Err(not_esm2("`is_folding_model` is true (ESMFold)".into()));
        }
        if let Some(other) = raw.hidden_act.as_deref().filter(|&name| name != "gelu") {
            return Err(not_esm2(format!("`hidden_act` is `{other}`, expected `gelu`")));
        }
        let config = Self {
            layers: required("num_hidden_layers", raw.num_hidden_layers)?,
            hidden: required("hidden_size", raw.hidden_size)?,
            heads: required("num_attention_heads", raw.num_attention_heads)?,
            intermediate: required("intermediate_size", raw.intermediate_size)?,
            vocab: required("vocab_size", raw.vocab_size)?,
            // What is absent has the default of transformers' `EsmConfig`, which leaves defaults out when it writes.
            layer_norm_eps: raw.layer_norm_eps.unwrap_or(1e-12),
            token_dropout: raw.token_dropout.unwrap_or(false),
        };
        config.check(path)?;
        Ok(config)
    }

    /// Refuses shapes that no ESM-2 has; `path` names their origin.
    pub(crate) fn check(&self, path: &Path) -> Result<(), ModelError> {
        let not_esm2 = |problem: String| Err(ModelError::NotEsm2 { path: path.to_owned(), problem });
        let bad = |problem: String| Err(ModelError::Config { path: path.to_owned(), problem });
        if self.vocab != VOCAB {
            return not_esm2(format!("its vocabulary has {} tokens, expected {VOCAB}", self.vocab));
        }
        if self.layers == 0 || self.layers > LAYERS_MAX {
            return bad(format!("{} layers, expected 1 to {LAYERS_MAX}", self.layers));
        }
        for (what, width) in [("hidden", self.hidden), ("intermediate", self.intermediate)] {
            if width == 0 || width > WIDTH_MAX {
                return bad(format!("{what} width {width}, expected 1 to {WIDTH_MAX}"));
            }
        }
        if self.heads == 0 || !self.hidden.is_multiple_of(self.heads) {
            return bad(format!("hidden width {} is not a multiple of {} heads", self.hidden, self.heads));
        }
        if !self.head_width().is_multiple_of(2) {
            return bad(format!("head width {} is odd: rotary positions need pairs", self.head_width()));
        }
        if !(self.layer_norm_eps > 0.0 && self.layer_norm_eps < 1.0) {
            return bad(format!("`layer_norm_eps` is {}", self.layer_norm_eps));
        }
        Ok(())
    }
}
