//! The parts that tensors play in the forward pass, and their names in each file format.

use std::collections::HashMap;
use std::path::Path;

use super::tensor::StoredTensor;
use super::{ModelConfig, ModelError};

/// The part a tensor plays in the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Weight {
    /// Token embeddings, [vocab, hidden].
    Embedding,
    /// Scale of the norm after the last layer, [hidden].
    FinalNormScale,
    /// Shift of the norm after the last layer, [hidden].
    FinalNormShift,
    /// A weight of one layer.
    Layer(usize, LayerWeight),
}

/// The part a tensor plays in its layer. Matrices are [outputs, inputs].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerWeight {
    /// Scale of the norm before attention, [hidden].
    AttentionNormScale,
    /// Shift of the norm before attention, [hidden].
    AttentionNormShift,
    /// Query projection, [hidden, hidden].
    Query,
    /// Its bias, [hidden].
    QueryBias,
    /// Key projection, [hidden, hidden].
    Key,
    /// Its bias, [hidden].
    KeyBias,
    /// Value projection, [hidden, hidden].
    Value,
    /// Its bias, [hidden].
    ValueBias,
    /// Projection of the attended values, [hidden, hidden].
    Output,
    /// Its bias, [hidden].
    OutputBias,
    /// Scale of the norm before the feed-forward block, [hidden].
    FeedForwardNormScale,
    /// Shift of the norm before the feed-forward block, [hidden].
    FeedForwardNormShift,
    /// First feed-forward projection, [intermediate, hidden].
    Expand,
    /// Its bias, [intermediate].
    ExpandBias,
    /// Second feed-forward projection, [hidden, intermediate].
    Contract,
    /// Its bias, [hidden].
    ContractBias,
}

/// Each layer weight with its Hugging Face and its fair-esm name inside the layer.
const LAYER_NAMES: [(LayerWeight, &str, &str); 16] = [
    (LayerWeight::AttentionNormScale, "attention.LayerNorm.weight", "self_attn_layer_norm.weight"),
    (LayerWeight::AttentionNormShift, "attention.LayerNorm.bias", "self_attn_layer_norm.bias"),
    (LayerWeight::Query, "attention.self.query.weight", "self_attn.q_proj.weight"),
    (LayerWeight::QueryBias, "attention.self.query.bias", "self_attn.q_proj.bias"),
    (LayerWeight::Key, "attention.self.key.weight", "self_attn.k_proj.weight"),
    (LayerWeight::KeyBias, "attention.self.key.bias", "self_attn.k_proj.bias"),
    (LayerWeight::Value, "attention.self.value.weight", "self_attn.v_proj.weight"),
    (LayerWeight::ValueBias, "attention.self.value.bias", "self_attn.v_proj.bias"),
    (LayerWeight::Output, "attention.output.dense.weight", "self_attn.out_proj.weight"),
    (LayerWeight::OutputBias, "attention.output.dense.bias", "self_attn.out_proj.bias"),
    (LayerWeight::FeedForwardNormScale, "LayerNorm.weight", "final_layer_norm.weight"),
    (LayerWeight::FeedForwardNormShift, "LayerNorm.bias", "final_layer_norm.bias"),
    (LayerWeight::Expand, "intermediate.dense.weight", "fc1.weight"),
    (LayerWeight::ExpandBias, "intermediate.dense.bias", "fc1.bias"),
    (LayerWeight::Contract, "output.dense.weight", "fc2.weight"),
    (LayerWeight::ContractBias, "output.dense.bias", "fc2.bias"),
];

/// Weights outside the layers with their names in both formats.
const OTHER_NAMES: [(Weight, &str, &str); 3] = [
    (Weight::Embedding, "embeddings.word_embeddings.weight", "embed_tokens.weight"),
    (Weight::FinalNormScale, "encoder.emb_layer_norm_after.weight", "emb_layer_norm_after.weight"),
    (Weight::FinalNormShift, "encoder.emb_layer_norm_after.bias", "emb_layer_norm_after.bias"),
];

impl Weight {
    /// The weight's name in a Hugging Face file, for errors.
    pub(crate) fn name(self) -> String {
        match self {
            Weight::Layer(index, part) => {
                let (_, name, _) =
                    LAYER_NAMES.iter().find(|(weight, ..)| *weight == part).expect("the table is complete");
                format!("esm.encoder.layer.{index}.{name}")
            }
            Weight::Embedding | Weight::FinalNormScale | Weight::FinalNormShift => {
                let (_, name, _) =
                    OTHER_NAMES.iter().find(|(weight, ..)| *weight == self).expect("the table is complete");
                format!("esm.{name}")
            }
        }
    }

    /// The part that a tensor of a Hugging Face file plays; `None` for those not needed, such as
    /// the language-model head.
    ///
    /// Models saved without a head lack the prefix `esm.`; newer transformers save layer norms as
    /// `gamma` and `beta`, and one key with a literal `*`.
    pub(crate) fn from_hugging_face(name: &str) -> Option<Self> {
        let name = name.strip_prefix("esm.").unwrap_or(name);
        let renamed;
        let name = match name.rsplit_once('.') {
            Some((stem, "gamma")) => {
                renamed = format!("{stem}.weight");
                &renamed
            }
            Some((stem, "beta")) => {
                renamed = format!("{stem}.bias");
                &renamed
            }
            _ => name,
        };
        if let Some((weight, ..)) = OTHER_NAMES.iter().find(|(_, hugging_face, _)| *hugging_face == name) {
            return Some(*weight);
        }
        let (index, part) = name.strip_prefix("encoder.layer.")?.split_once('.')?;
        let index = index.parse().ok()?;
        let (part, ..) = LAYER_NAMES.iter().find(|(_, hugging_face, _)| *hugging_face == part)?;
        Some(Weight::Layer(index, *part))
    }

    /// The part that a tensor of a fair-esm checkpoint plays, its prefix already stripped.
    pub(crate) fn from_fair_esm(name: &str) -> Option<Self> {
        if let Some((weight, ..)) = OTHER_NAMES.iter().find(|(_, _, fair_esm)| *fair_esm == name) {
            return Some(*weight);
        }
        let (index, part) = name.strip_prefix("layers.")?.split_once('.')?;
        let index = index.parse().ok()?;
        let (part, ..) = LAYER_NAMES.iter().find(|(_, _, fair_esm)| *fair_esm == part)?;
        Some(Weight::Layer(index, *part))
    }

    /// Shape that `config` asks for.
    fn shape(self, config: &ModelConfig) -> Vec<usize> {
        let (hidden, intermediate) = (config.hidden, config.intermediate);
        match self {
            Weight::Embedding => vec![config.vocab, hidden],
            Weight::FinalNormScale | Weight::FinalNormShift => vec![hidden],
            Weight::Layer(_, part) => match part {
                LayerWeight::Query | LayerWeight::Key | LayerWeight::Value | LayerWeight::Output => {
                    vec![hidden, hidden]
                }
                LayerWeight::Expand => vec![intermediate, hidden],
                LayerWeight::Contract => vec![hidden, intermediate],
                LayerWeight::ExpandBias => vec![intermediate],
                LayerWeight::AttentionNormScale
                | LayerWeight::AttentionNormShift
                | LayerWeight::QueryBias
                | LayerWeight::KeyBias
                | LayerWeight::ValueBias
                | LayerWeight::OutputBias
                | LayerWeight::FeedForwardNormScale
                | LayerWeight::FeedForwardNormShift
                | LayerWeight::ContractBias => vec![hidden],
            },
        }
    }

    /// Every weight of a model with `layers` layers.
    fn all(layers: usize) -> impl Iterator<Item = Weight> {
        let others = OTHER_NAMES.iter().map(|(weight, ..)| *weight);
        others.chain(
            (0..layers)
                .flat_map(|index| LAYER_NAMES.iter().map(move |(part, ..)| Weight::Layer(index, *part))),
        )
    }
}

/// Keeps the tensors that `config` asks for; `path` names the file in which one is missing.
pub(super) fn select(
    config: &ModelConfig,
    path: &Path,
    mut found: HashMap<Weight, StoredTensor>,
) -> Result<HashMap<Weight, StoredTensor>, ModelError> {
    // More layers than configured: the configuration belongs to another model, and leaving the
    // rest out would give plausible, wrong embeddings.
    if found.contains_key(&Weight::Layer(config.layers, LayerWeight::Query)) {
        return Err(ModelError::Config {
            path: path.to_owned(),
            problem: format!("it has more than the {} layers of its configuration", config.layers),
        });
    }
    let mut selected = HashMap::with_capacity(found.len());
    for weight in Weight::all(config.layers) {
        let Some(tensor) = found.remove(&weight) else {
            return Err(ModelError::MissingTensor { path: path.to_owned(), tensor: weight.name() });
        };
        tensor.check(&weight.shape(config))?;
        selected.insert(weight, tensor);
    }
    Ok(selected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_weight_are_recognised_in_every_form() {
        for weight in Weight::all(12) {
            let name = weight.name();
            assert_eq!(Weight::from_hugging_face(&name), Some(weight), "{name}");
            let bare = name.strip_prefix("esm.").unwrap();
            assert_eq!(Weight::from_hugging_face(bare), Some(weight), "{bare}");
        }
        assert_eq!(
            Weight::from_hugging_face("esm.encoder.layer.3.LayerNorm.gamma"),
            Some(Weight::Layer(3, LayerWeight::FeedForwardNormScale))
        );
        assert_eq!(
            Weight::from_fair_esm("layers.3.final_layer_norm.bias"),
            Some(Weight::Layer(3, LayerWeight::FeedForwardNormShift))
        );
    }

    #[test]
    fn other_tensors_play_no_part() {
        for name in [
            "lm_head.dense.weight",
            "esm.encoder.layer.*.attention.self.rotary_embeddings.inv_freq",
            "esm.encoder.layer.-1.LayerNorm.weight",
            "esm.embeddings.position_embeddings.weight",
            "",
        ] {
            assert_eq!(Weight::from_hugging_face(name), None, "{name}");
        }
    }
}
