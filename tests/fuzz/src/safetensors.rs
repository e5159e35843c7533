//! Weights in Hugging Face layout. Byte 0 chooses what the rest is: the weights, the configuration or the index
//! of shards; the others are sound.

use std::collections::BTreeMap;

use ::safetensors::tensor::{Dtype, TensorView};
use kernels::model::{LayerWeight, Weight};
use kernels::{Model, ModelPath};

/// The shape that the sound parts have.
pub(crate) const HIDDEN: usize = 4;
pub(crate) const INTERMEDIATE: usize = 8;
/// Tokens of the alphabet.
pub(crate) const VOCAB: usize = 33;

const CONFIG: &str = r#"{"model_type": "esm", "position_embedding_type": "rotary", "vocab_size": 33,
"num_hidden_layers": 1, "hidden_size": 4, "num_attention_heads": 2, "intermediate_size": 8}"#;

const INDEX: &str = r#"{"weight_map": {"a": "model-00001-of-00002.safetensors"}}"#;

/// Opens a model; every weight of one that opens can be read.
pub fn enter(bytes: &[u8]) -> bool {
    let [kind, rest @ ..] = bytes else { return false };
    let folder = super::folder_with("unrelated", b"");
    let put = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.path().join(name), bytes).expect("temporary files can be written");
    };
    match kind % 3 {
        0 => {
            put("config.json", CONFIG.as_bytes());
            put("model.safetensors", rest);
        }
        1 => {
            put("config.json", rest);
            put("model.safetensors", &weights(1));
        }
        _ => {
            put("config.json", CONFIG.as_bytes());
            put("model.safetensors.index.json", rest);
            put("model-00001-of-00002.safetensors", &weights(1));
        }
    }
    read_all(&ModelPath::Folder(folder.path().to_owned()))
}

/// Opens the model at `path` and reads every weight; says whether all of them are there.
pub(crate) fn read_all(path: &ModelPath) -> bool {
    match Model::open(path) {
        Ok(model) => {
            let config = model.config();
            let mut parameters = 0;
            for layer in 0..config.layers {
                for part in LAYER_WEIGHTS {
                    parameters += numbers(&model, Weight::Layer(layer, part));
                }
            }
            for weight in [Weight::Embedding, Weight::FinalNormScale, Weight::FinalNormShift] {
                parameters += numbers(&model, weight);
            }
            parameters as u64 == config.parameters()
        }
        Err(error) => {
            assert!(!actors::error_chain(&error).is_empty());
            false
        }
    }
}

/// How many numbers a weight holds: as many as its shape says. 0 where its bytes are damaged.
fn numbers(model: &Model, weight: Weight) -> usize {
    let Ok(tensor) = model.tensor(weight) else { return 0 };
    let count = tensor.to_f32().len();
    assert_eq!(count, tensor.shape.iter().product::<usize>());
    count
}

const LAYER_WEIGHTS: [LayerWeight; 16] = [
    LayerWeight::AttentionNormScale,
    LayerWeight::AttentionNormShift,
    LayerWeight::Query,
    LayerWeight::QueryBias,
    LayerWeight::Key,
    LayerWeight::KeyBias,
    LayerWeight::Value,
    LayerWeight::ValueBias,
    LayerWeight::Output,
    LayerWeight::OutputBias,
    LayerWeight::FeedForwardNormScale,
    LayerWeight::FeedForwardNormShift,
    LayerWeight::Expand,
    LayerWeight::ExpandBias,
    LayerWeight::Contract,
    LayerWeight::ContractBias,
];

/// Names and shapes of every weight, as a Hugging Face file has them.
fn shapes(layers: usize) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::from([
        ("esm.embeddings.word_embeddings.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("esm.encoder.emb_layer_norm_after.weight".to_owned(), vec![HIDDEN]),
        ("esm.encoder.emb_layer_norm_after.bias".to_owned(), vec![HIDDEN]),
    ]);
    for layer in 0..layers {
        let mut put = |name: &str, shape: &[usize]| {
            shapes.insert(format!("esm.encoder.layer.{layer}.{name}"), shape.to_vec());
        };
        for name in
            ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
        {
            put(&format!("{name}.weight"), &[HIDDEN, HIDDEN]);
            put(&format!("{name}.bias"), &[HIDDEN]);
        }
        for name in ["attention.LayerNorm", "LayerNorm"] {
            put(&format!("{name}.weight"), &[HIDDEN]);
            put(&format!("{name}.bias"), &[HIDDEN]);
        }
        put("intermediate.dense.weight", &[INTERMEDIATE, HIDDEN]);
        put("intermediate.dense.bias", &[INTERMEDIATE]);
        put("output.dense.weight", &[HIDDEN, INTERMEDIATE]);
        put("output.dense.bias", &[HIDDEN]);
    }
    shapes
}

/// A sound file of f16 weights.
fn weights(layers: usize) -> Vec<u8> {
    let zeros = vec![0; 2 * VOCAB * HIDDEN];
    let views = shapes(layers).into_iter().map(|(name, shape)| {
        let bytes = 2 * shape.iter().product::<usize>();
        (name, TensorView::new(Dtype::F16, shape, &zeros[..bytes]).expect("the size fits"))
    });
    ::safetensors::serialize(views, None).expect("the views are sound")
}

/// Seeds: sound files of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let seed = |kind: u8, rest: &[u8]| [&[kind][..], rest].concat();
    vec![
        seed(0, &weights(1)),
        seed(0, &weights(2)),
        seed(0, b"\x02\0\0\0\0\0\0\0{}"),
        seed(1, CONFIG.as_bytes()),
        seed(2, INDEX.as_bytes()),
        seed(2, br#"{"metadata": {}, "weight_map": {"a": "../../etc/passwd"}}"#),
    ]
}
