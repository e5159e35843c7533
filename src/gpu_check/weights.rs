//! Seeded weights in the published shapes, made on the spot: a machine to check has no internet.
//!
//! Every number is a function of seed, tensor name and index alone. Their sizes are those of trained
//! weights, so that activations stay finite and do the same work. The golden values of `tests/golden`
//! were computed from the same weights.

use std::fs::File;
use std::io;
use std::iter;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use half::f16;
use half::slice::HalfFloatSliceExt;
use kernels::model::Shape;
use kernels::{Model, ModelPath};
use serde_json::json;

use super::random::{GOLDEN_RATIO, mix};

/// Nobody's model: it makes checks quick.
pub(super) const TINY: Shape =
    Shape { name: "tiny", published: "esm2_tiny", layers: 2, hidden: 64, heads: 4 };

/// All that weights can be made for, smallest first.
pub(super) fn shapes() -> impl Iterator<Item = Shape> {
    iter::once(TINY).chain(Shape::PUBLISHED)
}

/// The shape of this name, in upper or lower case.
pub(super) fn shape(name: &str) -> Option<Shape> {
    shapes().find(|shape| shape.name.eq_ignore_ascii_case(name))
}

/// How the numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    F32,
    /// As 3B and 15B are published.
    F16,
}

impl Stored {
    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// What a tensor's numbers are like.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// So small that `layer_norm_eps` shows in layer 0.
    Embedding,
    Matrix,
    /// Of queries and keys: attention that has something to choose from.
    Choosing,
    /// Near 1, with a few channels that stand out, as in trained models.
    NormScale,
    Bias,
}

struct Tensor {
    name: String,
    extents: Vec<usize>,
    kind: Kind,
}

impl Tensor {
    fn numbers(&self) -> usize {
        self.extents.iter().product()
    }
}

fn tensors(shape: Shape) -> Vec<Tensor> {
    let (width, inside) = (shape.hidden, 4 * shape.hidden);
    let mut all = Vec::new();
    let mut add = |name: String, extents: &[usize], kind: Kind| {
        all.push(Tensor { name: format!("esm.{name}"), extents: extents.to_vec(), kind });
    };
    add("embeddings.word_embeddings.weight".into(), &[33, width], Kind::Embedding);
    for layer in 0..shape.layers {
        let mut add = |name: &str, extents: &[usize], kind: Kind| {
            add(format!("encoder.layer.{layer}.{name}"), extents, kind);
        };
        add("attention.LayerNorm.weight", &[width], Kind::NormScale);
        add("attention.LayerNorm.bias", &[width], Kind::Bias);
        for (part, kind) in [("query", Kind::Choosing), ("key", Kind::Choosing), ("value", Kind::Matrix)] {
            add(&format!("attention.self.{part}.weight"), &[width, width], kind);
            add(&format!("attention.self.{part}.bias"), &[width], Kind::Bias);
        }
        add("attention.output.dense.weight", &[width, width], Kind::Matrix);
        add("attention.output.dense.bias", &[width], Kind::Bias);
        add("LayerNorm.weight", &[width], Kind::NormScale);
        add("LayerNorm.bias", &[width], Kind::Bias);
        add("intermediate.dense.weight", &[inside, width], Kind::Matrix);
        add("intermediate.dense.bias", &[inside], Kind::Bias);
        add("output.dense.weight", &[width, inside], Kind::Matrix);
        add("output.dense.bias", &[width], Kind::Bias);
    }
    add("encoder.emb_layer_norm_after.weight".into(), &[width], Kind::NormScale);
    add("encoder.emb_layer_norm_after.bias".into(), &[width], Kind::Bias);
    all
}

/// The numbers `first..` of a tensor, approximately normal: sums of four 16-bit numbers.
///
/// Integers and one rounding of each of three f64 operations, so that every machine gets the same.
fn fill(seed: u64, tensor: &Tensor, first: usize, out: &mut [f32]) {
    let (deviation, mean) = match tensor.kind {
        Kind::Embedding => (0.08, 0.0),
        Kind::Bias => (0.05, 0.0),
        Kind::NormScale => (0.1, 1.0),
        Kind::Matrix => (1.0 / (tensor.extents[1] as f64).sqrt(), 0.0),
        Kind::Choosing => (1.25 / (tensor.extents[1] as f64).sqrt(), 0.0),
    };
    // The deviation of the sum of four numbers below 2^16.
    let scale = deviation / ((f64::from(u32::MAX)) / 3.0).sqrt();
    let start = mix(fnv1a(&tensor.name) ^ seed.wrapping_mul(GOLDEN_RATIO));
    let mut counter = start.wrapping_add((first as u64).wrapping_mul(GOLDEN_RATIO));
    for value in out.iter_mut() {
        counter = counter.wrapping_add(GOLDEN_RATIO);
        let z = mix(counter);
        let sum = (z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48);
        *value = (mean + scale * (sum as i64 - 131_070) as f64) as f32;
    }
    if let Kind::NormScale = tensor.kind {
        for (index, value) in out.iter_mut().enumerate() {
            if (first + index) % 53 == 7 {
                *value *= 3.0;
            }
        }
    }
}

fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// A Hugging Face `config.json` of the shape.
fn config_json(shape: Shape) -> String {
    json!({
        "_name_or_path": format!("facebook/{}", shape.published), "architectures": ["EsmForMaskedLM"],
        "attention_probs_dropout_prob": 0.0, "emb_layer_norm_before": false, "esmfold_config": null,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "hidden_size": shape.hidden,
        "initializer_range": 0.02, "intermediate_size": 4 * shape.hidden, "is_folding_model": false,
        "layer_norm_eps": 1e-5, "mask_token_id": 32, "max_position_embeddings": 1026, "model_type": "esm",
        "num_attention_heads": shape.heads, "num_hidden_layers": shape.layers, "pad_token_id": 1,
        "position_embedding_type": "rotary", "token_dropout": true, "use_cache": true,
        "vocab_list": null, "vocab_size": 33
    })
    .to_string()
}

/// Writes `config.json` and `model.safetensors` into `folder`, on all threads.
///
/// # Errors
/// If they cannot be written, such as for want of room.
pub(super) fn write(folder: &Path, shape: Shape, seed: u64, stored: Stored) -> io::Result<PathBuf> {
    /// Numbers that a thread makes and writes at a time.
    const CHUNK: usize = 1 << 20;
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("config.json"), config_json(shape))?;
    let tensors = tensors(shape);
    let mut header = serde_json::Map::new();
    let mut end = 0;
    // Where each tensor begins, and which of its numbers are one thread's at a time.
    let mut chunks = Vec::new();
    for (index, tensor) in tensors.iter().enumerate() {
        let begin = end;
        end += tensor.numbers() * stored.bytes();
        let dtype = match stored {
            Stored::F32 => "F32",
            Stored::F16 => "F16",
        };
        let entry = json!({ "dtype": dtype, "shape": tensor.extents, "data_offsets": [begin, end] });
        header.insert(tensor.name.clone(), entry);
        for first in (0..tensor.numbers()).step_by(CHUNK) {
            chunks.push((index, first, begin + first * stored.bytes()));
        }
    }
    let mut header = serde_json::Value::Object(header).to_string();
    // The format's own alignment of the data.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let data = 8 + header.len();

    let path = folder.join("model.safetensors");
    let file = File::create(&path)?;
    file.write_all_at(&(header.len() as u64).to_le_bytes(), 0)?;
    file.write_all_at(header.as_bytes(), 8)?;
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let work = || {
        let mut numbers = vec![0.0; CHUNK];
        let mut bytes = Vec::new();
        while let Some(&(index, first, at)) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let tensor = &tensors[index];
            let numbers = &mut numbers[..CHUNK.min(tensor.numbers() - first)];
            fill(seed, tensor, first, numbers);
            bytes.clear();
            match stored {
                Stored::F32 => bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes())),
                Stored::F16 => {
                    let mut halves = vec![f16::ZERO; numbers.len()];
                    halves.convert_from_f32_slice(numbers);
                    bytes.extend(halves.iter().flat_map(|number| number.to_le_bytes()));
                }
            }
            if let Err(error) = file.write_all_at(&bytes, (data + at) as u64) {
                let mut failure = failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                failure.get_or_insert(error);
                next.store(chunks.len(), Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(chunks.len());
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    match failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(path),
    }
}

/// Makes weights as [`write`] does, and opens them.
///
/// # Errors
/// What failed, with the folder.
pub(super) fn model(folder: PathBuf, shape: Shape, seed: u64, stored: Stored) -> Result<Model, String> {
    write(&folder, shape, seed, stored)
        .map_err(|error| format!("failed to write `{}`: {error}", folder.display()))?;
    Model::open(&ModelPath::Folder(folder)).map_err(|error| actors::error_chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data of a safetensors file by tensor.
    fn read(path: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
        let bytes = std::fs::read(path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        file.iter().map(|(name, view)| (name.to_owned(), view.data().to_vec())).collect()
    }

    fn assert_made_like(shape: &str, path: &Path) {
        let folder = tempfile::tempdir().unwrap();
        let ours = read(&write(folder.path(), super::shape(shape).unwrap(), 1, Stored::F32).unwrap());
        let theirs = read(path);
        for (name, bytes) in &ours {
            assert!(bytes == &theirs[name], "{shape}: {name}");
        }
        assert!(ours.len() > 30);
    }

    #[test]
    fn weights_are_those_of_the_golden_values() {
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny/model.safetensors");
        assert_made_like("tiny", &tiny);
        match std::env::var_os("GOLDEN_DIR") {
            Some(folder) => assert_made_like("8M", &Path::new(&folder).join("8m/model.safetensors")),
            None => eprintln!("skipped: 8M weights (set GOLDEN_DIR to the folder that has `8m/`)"),
        }
    }

    #[test]
    fn half_precision_is_the_same_rounded() {
        let folder = tempfile::tempdir().unwrap();
        let shape = TINY;
        let wide = read(&write(&folder.path().join("wide"), shape, 7, Stored::F32).unwrap());
        let narrow = read(&write(&folder.path().join("narrow"), shape, 7, Stored::F16).unwrap());
        for (name, bytes) in &wide {
            let wide = bytes.as_chunks::<4>().0.iter().map(|&bytes| f16::from_f32(f32::from_le_bytes(bytes)));
            let narrow = narrow[name].as_chunks::<2>().0.iter().map(|&bytes| f16::from_le_bytes(bytes));
            assert!(wide.eq(narrow), "{name}");
        }
    }

    #[test]
    fn weights_are_all_that_the_shape_has() {
        for shape in shapes() {
            let count: usize = tensors(shape).iter().map(Tensor::numbers).sum();
            assert_eq!(shape.config().parameters(), count as u64, "{}", shape.name);
        }
    }

    #[test]
    fn no_room_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "").unwrap();
        let shape = TINY;
        assert!(write(&folder.path().join("file"), shape, 1, Stored::F16).is_err());
    }
}
