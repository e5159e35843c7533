//! fair-esm's `.pt` checkpoints, read without executing their pickle.
//!
//! The tensors come from `pytorch-reader`. The network's arguments lie in an `argparse.Namespace`,
//! which that reader skips like every object it does not know; the two values that no tensor shape
//! tells (heads, token dropout) are read from the pickle's bytes as the integer or boolean that
//! follows their key.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use pytorch_reader::PytorchReader;

use super::config::LAYERS_MAX;
use super::tensor::{Bytes, StoredTensor};
use super::{LayerWeight, ModelConfig, ModelError, Weight, archive};

/// `torch.save` writes the pickle first; ESM-2's largest is under 200 kB.
const PICKLE_SEARCH_BYTES_MAX: usize = 4 << 20;

/// Learned positions, and a norm before the layers: what ESM-2, with its rotary positions, has not.
const ESM1_PARTS: [&str; 2] = ["embed_positions", "emb_layer_norm_before"];

/// A fair-esm checkpoint with its tensors found by their part.
#[derive(Debug)]
pub(super) struct Checkpoint {
    path: PathBuf,
    tensors: HashMap<Weight, StoredTensor>,
    layers: usize,
    /// Pairs of rotated values per head, where the checkpoint stores the rotary frequencies.
    rotary_pairs: Option<usize>,
}

impl Checkpoint {
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        if !path.is_file() {
            return Err(ModelError::read(path, std::io::ErrorKind::NotFound.into()));
        }
        let bad = |problem: String| ModelError::Config { path: path.to_owned(), problem };
        let file = Bytes::map(path)?;
        archive::check(file.as_slice()).map_err(bad)?;
        let reader = PytorchReader::with_top_level_key(path, "model")
            .map_err(|source| ModelError::Checkpoint { path: path.to_owned(), source: source.into() })?;
        let mut tensors = HashMap::new();
        let mut layers = 0;
        let mut bytes_left = file.as_slice().len();
        let mut rotary_pairs = None;
        for (name, tensor) in reader.into_tensors() {
            // As fair-esm's own loader does.
            let bare = name
                .strip_prefix("encoder.sentence_encoder.")
                .or_else(|| name.strip_prefix("encoder."))
                .unwrap_or(&name);
            if bare == "layers.0.self_attn.rot_emb.inv_freq" {
                rotary_pairs = tensor.shape().first().copied();
            }
            // ESM-1b and ESM-1v name everything else alike, and would give numbers without meaning.
            if let Some(part) = ESM1_PARTS.into_iter().find(|part| bare.starts_with(part)) {
                return Err(ModelError::NotEsm2 {
                    path: path.to_owned(),
                    problem: format!("it has `{part}` (tensor `{name}`), as ESM-1 models have"),
                });
            }
            let Some(weight) = Weight::from_fair_esm(bare) else { continue };
            if let Weight::Layer(index, _) = weight {
                if index >= LAYERS_MAX {
                    return Err(bad(format!("tensor `{name}` belongs to a layer beyond {LAYERS_MAX}")));
                }
                layers = layers.max(index + 1);
            }
            // A view can repeat few stored numbers many times; weights have each of theirs in the file.
            let bytes = tensor.byte_len();
            let Some(left) = bytes_left.checked_sub(bytes) else {
                return Err(bad(format!(
                    "tensor `{name}` takes {bytes} bytes, more than the file has for it"
                )));
            };
            bytes_left = left;
            // Which of the two would be taken is not ours to guess.
            if tensors.insert(weight, StoredTensor::from_checkpoint(path, tensor)).is_some() {
                return Err(bad(format!("tensor `{name}` is there twice, with another prefix")));
            }
        }
        if tensors.is_empty() {
            return Err(ModelError::NotEsm2 {
                path: path.to_owned(),
                problem: "no tensor under its key `model` has a fair-esm ESM-2 name".into(),
            });
        }
        Ok(Self { path: path.to_owned(), tensors, layers, rotary_pairs })
    }

    /// The network's shape, from tensor shapes and the checkpoint's arguments.
    pub(super) fn config(&self) -> Result<ModelConfig, ModelError> {
        let extents = |weight: Weight| match self.tensors.get(&weight).map(StoredTensor::shape) {
            Some(&[rows, columns]) => Ok((rows, columns)),
            Some(found) => Err(ModelError::NotEsm2 {
                path: self.path.clone(),
                problem: format!("tensor `{}` has {} dimensions, expected 2", weight.name(), found.len()),
            }),
            None => Err(ModelError::MissingTensor { path: self.path.clone(), tensor: weight.name() }),
        };
        let (vocab, hidden) = extents(Weight::Embedding)?;
        let (intermediate, _) = extents(Weight::Layer(0, LayerWeight::Expand))?;
        let arguments = Arguments::find(&self.path)?;
        let from_rotary = self.rotary_pairs.filter(|&pairs| pairs > 0).map(|pairs| hidden / 2 / pairs);
        let Some(heads) = arguments.heads.or(from_rotary) else {
            return Err(ModelError::Config {
                path: self.path.clone(),
                problem: "neither its arguments nor a rotary tensor tell the number of attention heads"
                    .into(),
            });
        };
        let config = ModelConfig {
            layers: self.layers,
            hidden,
            heads,
            intermediate,
            vocab,
            // fair-esm has it in code, not in the checkpoint.
            layer_norm_eps: 1e-5,
            token_dropout: arguments.token_dropout.unwrap_or(true),
        };
        config.check(&self.path)?;
        Ok(config)
    }

    pub(super) fn into_tensors(self) -> HashMap<Weight, StoredTensor> {
        self.tensors
    }
}

/// What the checkpoint says of the network besides its tensors.
#[derive(Debug, Default, PartialEq)]
struct Arguments {
    heads: Option<usize>,
    token_dropout: Option<bool>,
}

impl Arguments {
    fn find(path: &Path) -> Result<Self, ModelError> {
        let bytes = Bytes::map(path)?;
        let bytes = bytes.as_slice();
        Ok(Self::scan(&bytes[..bytes.len().min(PICKLE_SEARCH_BYTES_MAX)]))
    }

    fn scan(pickle: &[u8]) -> Self {
        let heads = value_after(pickle, "encoder_attention_heads").and_then(integer);
        let token_dropout = value_after(pickle, "token_dropout").and_then(|value| match value.first() {
            Some(0x88) => Some(true),
            Some(0x89) => Some(false),
            _ => None,
        });
        Self { heads, token_dropout }
    }
}

/// The pickle's bytes after the string `key` and its memo entry.
fn value_after<'a>(pickle: &'a [u8], key: &str) -> Option<&'a [u8]> {
    // BINUNICODE: `X`, length, text. The length keeps a longer key with the same ending apart.
    let mut needle = vec![b'X'];
    needle.extend_from_slice(&u32::try_from(key.len()).ok()?.to_le_bytes());
    needle.extend_from_slice(key.as_bytes());
    let at = pickle.windows(needle.len()).position(|window| window == needle)?;
    let rest = &pickle[at + needle.len()..];
    match rest.first()? {
        b'q' => rest.get(2..), // BINPUT, one byte of memo index
        b'r' => rest.get(5..), // LONG_BINPUT, four
        _ => Some(rest),
    }
}

/// The non-negative integer that a pickle value starts with.
fn integer(value: &[u8]) -> Option<usize> {
    match (value.first()?, &value[1..]) {
        (b'K', rest) => rest.first().map(|&byte| usize::from(byte)),
        (b'M', rest) => rest.first_chunk().map(|&bytes| usize::from(u16::from_le_bytes(bytes))),
        (b'J', rest) => rest.first_chunk().and_then(|&bytes| usize::try_from(i32::from_le_bytes(bytes)).ok()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_in_every_integer_form() {
        for (value, heads) in
            [(&b"K\x14"[..], Some(20)), (b"M\x14\x01", Some(276)), (b"J\x14\0\0\0", Some(20)), (b"N", None)]
        {
            for memo in [&b""[..], b"q\x05", b"r\x05\0\0\0"] {
                let mut pickle = b"\x80\x02}X\x17\0\0\0encoder_attention_heads".to_vec();
                pickle.extend_from_slice(memo);
                pickle.extend_from_slice(value);
                assert_eq!(Arguments::scan(&pickle).heads, heads, "{pickle:?}");
            }
        }
    }

    #[test]
    fn a_cut_pickle_tells_nothing() {
        let pickle = b"\x80\x02}X\x17\0\0\0encoder_attention_headsq\x05K\x14";
        for length in 0..pickle.len() {
            assert_eq!(Arguments::scan(&pickle[..length]), Arguments::default(), "{length}");
        }
    }
}
