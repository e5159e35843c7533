//! Weight files that are damaged, foreign or stored in another number type.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use kernels::cpu::CpuEngine;
use kernels::model::{LayerWeight, Weight};
use kernels::{
    Batch, Engine, EngineError, EngineOptions, Model, ModelError, ModelPath, Pooling, Precision, Progress,
};
use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests/golden/tiny")
}

/// A stored tensor: type, shape, bytes.
type Stored = (Dtype, Vec<usize>, Vec<u8>);

fn tiny_tensors() -> HashMap<String, Stored> {
    let bytes = std::fs::read(tiny().join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .map(|(name, view)| (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect()
}

fn write(path: &Path, tensors: &HashMap<String, Stored>) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A folder with tiny's configuration and the given tensors.
fn folder(tensors: &HashMap<String, Stored>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(tiny().join("config.json"), folder.path().join("config.json")).unwrap();
    write(&folder.path().join("model.safetensors"), tensors);
    folder
}

fn open(folder: &Path) -> Result<Model, ModelError> {
    Model::open(&ModelPath::Folder(folder.to_owned()))
}

/// The whole error, sources included.
fn text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

fn embed(model: &Model) -> Vec<f32> {
    let options = EngineOptions {
        layer: model.config().layers,
        pooling: Pooling::Mean,
        precision: Precision::Fp32,
        threads: 1,
    };
    let mut batch = Batch::default();
    batch.push(0, b"MKVLAWGRNDC", 11);
    CpuEngine::load(model, options).unwrap().run(&batch, &Progress::default()).unwrap().values
}

#[test]
fn a_missing_tensor_is_named() {
    let mut tensors = tiny_tensors();
    tensors.remove("esm.encoder.layer.1.attention.self.value.bias").unwrap();
    let folder = folder(&tensors);
    let error = text(&open(folder.path()).unwrap_err());
    assert!(error.contains("`esm.encoder.layer.1.attention.self.value.bias`"), "{error}");
    assert!(error.contains("model.safetensors"), "{error}");
}

#[test]
fn a_wrong_shape_is_named_with_what_was_expected() {
    let mut tensors = tiny_tensors();
    let (_, shape, _) = tensors.get_mut("esm.encoder.layer.0.intermediate.dense.weight").unwrap();
    *shape = vec![64, 256];
    let folder = folder(&tensors);
    let error = text(&open(folder.path()).unwrap_err());
    assert!(error.contains("`esm.encoder.layer.0.intermediate.dense.weight`"), "{error}");
    assert!(error.contains("[64, 256], expected [256, 64]"), "{error}");
}

#[test]
fn another_number_type_is_refused() {
    let mut tensors = tiny_tensors();
    let (dtype, shape, bytes) = tensors.get_mut("esm.encoder.layer.0.LayerNorm.bias").unwrap();
    (*dtype, *bytes) = (Dtype::F64, vec![0; 8 * shape[0]]);
    let folder = folder(&tensors);
    let error = text(&open(folder.path()).unwrap_err());
    assert!(error.contains("F64; F32, F16 and BF16 are read"), "{error}");
}

#[test]
fn a_truncated_file_is_an_error_at_every_length() {
    let whole = std::fs::read(tiny().join("model.safetensors")).unwrap();
    let folder = folder(&tiny_tensors());
    let file = folder.path().join("model.safetensors");
    for length in [0, 1, 7, 8, 9, 100, 1_000, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&file, &whole[..length]).unwrap();
        let error = text(&open(folder.path()).unwrap_err());
        assert!(error.contains("model.safetensors"), "{length}: {error}");
    }
    std::fs::write(&file, b"<html>404 Not Found</html>, and some more text").unwrap();
    assert!(matches!(open(folder.path()), Err(ModelError::Safetensors { .. })));
}

#[test]
fn a_truncated_checkpoint_is_an_error_at_every_length() {
    let whole = std::fs::read(tiny().join("esm2_tiny.pt")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("esm2_cut.pt");
    for length in [0, 1, 4, 100, 5_000, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&file, &whole[..length]).unwrap();
        let error = text(&Model::open(&ModelPath::FairEsm(file.clone())).unwrap_err());
        assert!(error.contains("esm2_cut.pt"), "{length}: {error}");
    }
}

#[test]
fn a_checkpoint_of_something_else_is_not_an_empty_model() {
    // A contact head beside the weights: it opens, and has nothing that a model needs.
    let file = tiny().join("esm2_tiny-contact-regression.pt");
    let error = Model::open(&ModelPath::FairEsm(file)).unwrap_err();
    assert!(matches!(error, ModelError::NotEsm2 { .. } | ModelError::Checkpoint { .. }), "{}", text(&error));
}

/// The checksum of ZIP archives.
fn crc32(bytes: &[u8]) -> u32 {
    let turn = |sum: u32, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 };
    !bytes.iter().fold(!0, |sum, &byte| (0..8).fold(sum ^ u32::from(byte), turn))
}

#[test]
fn a_checkpoint_of_esm1_is_refused() {
    let mut bytes = std::fs::read(tiny().join("esm2_tiny.pt")).unwrap();
    // A tensor that nothing needs gets a name of ESM-1b, as long as its own.
    let (own, other) = (b"encoder.lm_head.layer_norm.weight", b"encoder.emb_layer_norm_before._33");
    let find =
        |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).position(|window| window == part).unwrap();
    let pickle = find(&bytes, b"\x80\x02")..find(&bytes, b"PK\x07\x08");
    let old_sum = crc32(&bytes[pickle.clone()]).to_le_bytes();
    let at = find(&bytes, own);
    bytes[at..at + own.len()].copy_from_slice(other);
    // Once behind the pickle, once in the archive's directory.
    let sum = crc32(&bytes[pickle]).to_le_bytes();
    for _ in 0..2 {
        let at = find(&bytes, &old_sum);
        bytes[at..at + 4].copy_from_slice(&sum);
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("esm1b.pt");
    std::fs::write(&file, bytes).unwrap();
    let error = Model::open(&ModelPath::FairEsm(file)).unwrap_err();
    assert!(matches!(error, ModelError::NotEsm2 { .. }), "{}", text(&error));
    assert!(text(&error).contains("`emb_layer_norm_before`"), "{}", text(&error));
}

#[test]
fn other_models_are_refused_by_their_configuration() {
    let folder = folder(&tiny_tensors());
    let path = folder.path().join("config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    for (from, to, expected) in [
        ("\"model_type\": \"esm\"", "\"model_type\": \"bert\"", "`model_type` is `bert`"),
        ("\"rotary\"", "\"absolute\"", "`position_embedding_type` is `absolute`"),
        ("\"emb_layer_norm_before\": false", "\"emb_layer_norm_before\": true", "`emb_layer_norm_before`"),
        ("\"vocab_size\": 33", "\"vocab_size\": 64", "64 tokens, expected 33"),
        ("\"num_attention_heads\": 4", "\"num_attention_heads\": 5", "not a multiple of 5 heads"),
        ("\"num_attention_heads\": 4", "\"num_attention_heads\": 0", "not a multiple of 0 heads"),
        ("\"num_attention_heads\": 4", "\"num_attention_heads\": 64", "head width 1 is odd"),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", "more than the 1 layers"),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "no tensor `esm.encoder.layer.2."),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 99999999", "expected 1 to"),
        ("\"hidden_size\": 64", "\"hidden_size\": null", "`hidden_size` is absent"),
        ("\"hidden_size\": 64", "\"hidden_size\": -1", "not the JSON expected"),
        ("\"hidden_act\": \"gelu\"", "\"hidden_act\": \"relu\"", "`hidden_act` is `relu`"),
    ] {
        assert!(config.contains(from), "{from}");
        std::fs::write(&path, config.replace(from, to)).unwrap();
        let error = text(&open(folder.path()).unwrap_err());
        assert!(error.contains(expected), "{to}: {error}");
    }
    std::fs::remove_file(&path).unwrap();
    let error = text(&open(folder.path()).unwrap_err());
    assert!(error.contains("config.json` beside it"), "{error}");
}

#[test]
fn absent_files_are_named() {
    for path in [
        ModelPath::Folder("/nowhere/model".into()),
        ModelPath::Safetensors("/nowhere/model.safetensors".into()),
        ModelPath::FairEsm("/nowhere/model.pt".into()),
    ] {
        let error = text(&Model::open(&path).unwrap_err());
        assert!(error.contains("/nowhere/model"), "{error}");
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(open(empty.path()), Err(ModelError::NoWeights { pytorch_bin: false, .. })));
    std::fs::write(empty.path().join("pytorch_model.bin"), "").unwrap();
    let error = text(&open(empty.path()).unwrap_err());
    assert!(error.contains("safe_serialization=True"), "{error}");
}

#[test]
fn shards_are_one_model() {
    let tensors = tiny_tensors();
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(tiny().join("config.json"), folder.path().join("config.json")).unwrap();
    let (first, second): (HashMap<_, _>, HashMap<_, _>) =
        tensors.into_iter().partition(|(name, _)| name.contains("layer.0"));
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut weight_map = HashMap::new();
    for (name, tensors) in names.iter().zip([&first, &second]) {
        write(&folder.path().join(name), tensors);
        weight_map.extend(tensors.keys().map(|tensor| (tensor.clone(), *name)));
    }
    let index = folder.path().join("model.safetensors.index.json");
    std::fs::write(&index, serde_json::json!({ "weight_map": weight_map }).to_string()).unwrap();
    let sharded = open(folder.path()).unwrap();
    assert_eq!(sharded.files(), names.map(|name| folder.path().join(name)));
    let whole = open(&tiny()).unwrap();
    assert_eq!(embed(&sharded), embed(&whole));
    assert_ne!(sharded.sha256().unwrap(), whole.sha256().unwrap());

    std::fs::remove_file(folder.path().join(names[1])).unwrap();
    let error = text(&open(folder.path()).unwrap_err());
    assert!(error.contains(names[1]), "{error}");

    std::fs::write(&index, r#"{"weight_map": {"a": "../../etc/passwd"}}"#).unwrap();
    let error = text(&open(folder.path()).unwrap_err());
    assert!(error.contains("not a plain file name"), "{error}");
}

#[test]
fn files_beyond_any_model_are_refused_before_they_are_parsed() {
    let folder = folder(&tiny_tensors());
    let problem = |name: &str, bytes: &[u8], expected: &str| {
        let path = folder.path().join(name);
        let before = std::fs::read(&path).ok();
        std::fs::write(&path, bytes).unwrap();
        let error = text(&open(folder.path()).unwrap_err());
        assert!(error.contains(expected) && error.contains(name), "{expected}: {error}");
        if let Some(before) = before {
            std::fs::write(&path, before).unwrap();
        }
    };
    let config = std::fs::read(tiny().join("config.json")).unwrap();
    problem("config.json", &[config, vec![b' '; 1 << 20]].concat(), "larger than 1048576 bytes");

    let header_bytes = (16 << 20) + 1;
    let long_header = [&(header_bytes as u64).to_le_bytes()[..], &vec![b' '; header_bytes]].concat();
    problem("model.safetensors", &long_header, "header has 16777217 bytes, more than 16777216");
    let empty = |number| format!("\"{number}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}");
    let header = format!("{{{}}}", (0..65_537).map(empty).collect::<Vec<_>>().join(","));
    let many = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    problem("model.safetensors", &many, "65537 tensors, more than 65536");

    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let weight_map: HashMap<_, _> =
        (0..1_025).map(|number| (number.to_string(), number.to_string())).collect();
    let index = serde_json::json!({ "weight_map": weight_map }).to_string();
    problem("model.safetensors.index.json", index.as_bytes(), "1025 shards, more than 1024");
    problem("model.safetensors.index.json", &vec![b' '; (16 << 20) + 1], "larger than 16777216 bytes");
}

#[test]
fn a_shard_that_is_no_file_is_refused() {
    let folder = folder(&tiny_tensors());
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let index = r#"{"weight_map": {"a": "pipe"}}"#;
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    // Opening it would wait for a writer for ever.
    let made = std::process::Command::new("mkfifo").arg(folder.path().join("pipe")).status().unwrap();
    assert!(made.success());
    let error = text(&open(folder.path()).unwrap_err());
    assert!(error.contains("pipe`"), "{error}");
}

#[test]
fn sizes_that_overflow_are_refused() {
    let folder = folder(&tiny_tensors());
    let name = "esm.embeddings.word_embeddings.weight";
    for (shape, end) in [
        ("[4294967296,4294967296]", "0"),
        ("[9223372036854775807,2]", "8"),
        ("[1,1]", "18446744073709551615"),
        ("[33,64]", "8448"),
    ] {
        let header =
            format!("{{\"{name}\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[0,{end}]}}}}");
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 8]].concat();
        std::fs::write(folder.path().join("model.safetensors"), file).unwrap();
        assert!(matches!(open(folder.path()), Err(ModelError::Safetensors { .. })), "{shape}");
    }
}

#[test]
fn half_precision_weights_are_their_exact_values() {
    for dtype in [Dtype::F16, Dtype::BF16] {
        // The same rounded numbers, once stored in 16 bits and once in 32.
        let (mut narrow, mut wide) = (tiny_tensors(), tiny_tensors());
        for (name, (stored, _, bytes)) in &mut narrow {
            *stored = dtype;
            let (_, _, wide_bytes) = wide.get_mut(name).unwrap();
            let (numbers, _) = bytes.as_chunks::<4>();
            let rounded = numbers.iter().map(|&number| {
                let number = f32::from_le_bytes(number);
                match dtype {
                    Dtype::F16 => {
                        let half = half::f16::from_f32(number);
                        (half.to_le_bytes(), half.to_f32())
                    }
                    _ => {
                        let half = half::bf16::from_f32(number);
                        (half.to_le_bytes(), half.to_f32())
                    }
                }
            });
            let (halves, floats): (Vec<_>, Vec<_>) = rounded.unzip();
            *bytes = halves.concat();
            *wide_bytes = floats.iter().flat_map(|number| number.to_le_bytes()).collect();
        }
        let (narrow, wide) = (folder(&narrow), folder(&wide));
        let model = open(narrow.path()).unwrap();
        assert_eq!(model.tensor(Weight::Layer(0, LayerWeight::Query)).unwrap().bytes.len(), 2 * 64 * 64);
        assert_eq!(embed(&model), embed(&open(wide.path()).unwrap()), "{dtype:?}");
        assert_ne!(embed(&model), embed(&open(&tiny()).unwrap()), "{dtype:?}");
    }
}

#[test]
fn rotary_frequencies_are_those_of_published_files() {
    // The engine computes them; a checkpoint's own must be the same numbers, bit for bit.
    let tensors = tiny_tensors();
    let (_, _, bytes) = &tensors["esm.rotary_embeddings.inv_freq"];
    let (numbers, _) = bytes.as_chunks::<4>();
    let stored: Vec<f32> = numbers.iter().map(|&number| f32::from_le_bytes(number)).collect();
    assert_eq!(kernels::cpu::rotary_frequencies(16), stored);
}

#[test]
fn what_the_engine_cannot_do_is_said_at_load() {
    let model = open(&tiny()).unwrap();
    let options = EngineOptions { layer: 2, pooling: Pooling::Mean, precision: Precision::Fp32, threads: 1 };
    for (options, expected) in [
        (EngineOptions { precision: Precision::Fp16, ..options.clone() }, "fp32, bf16 or int8, not in fp16"),
        (EngineOptions { layer: 3, ..options }, "layers 0 to 2"),
    ] {
        let Err(EngineError::Model(error)) = CpuEngine::load(&model, options).map(drop) else {
            panic!("loaded");
        };
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn poisoned_weights_are_reported_by_sequence() {
    // An infinite embedding of W: only sequences that have it come out non-finite.
    let mut tensors = tiny_tensors();
    let (_, _, bytes) = tensors.get_mut("esm.embeddings.word_embeddings.weight").unwrap();
    let token = usize::from(kernels::alphabet::token(b'W'));
    bytes[token * 64 * 4..][..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let folder = folder(&tensors);
    let model = open(folder.path()).unwrap();
    for pooling in [Pooling::Mean, Pooling::Max, Pooling::None, Pooling::Bos] {
        let options = EngineOptions { layer: 2, pooling, precision: Precision::Fp32, threads: 2 };
        let mut engine = CpuEngine::load(&model, options).unwrap();
        let mut batch = Batch::default();
        for (ordinal, residues) in ["MKV", "MWV", "LLLL", "W"].iter().enumerate() {
            batch.push(ordinal as u64, residues.as_bytes(), residues.len() as u32);
        }
        let error = engine.run(&batch, &Progress::default()).unwrap_err();
        assert_eq!(error, EngineError::NonFinite { sequences: vec![1, 3] }, "{pooling:?}");
        // The engine goes on, and nothing of the poison is left.
        let mut clean = Batch::default();
        clean.push(0, b"MKV", 3);
        assert!(engine.run(&clean, &Progress::default()).is_ok());
    }
}

#[test]
fn a_digest_is_that_of_the_file() {
    let folder = folder(&tiny_tensors());
    std::fs::write(folder.path().join("other.txt"), "ignored").unwrap();
    let model =
        Model::open(&ModelPath::Safetensors(tiny().join("model.published-keys.safetensors"))).unwrap();
    let bytes = std::fs::read(&model.files()[0]).unwrap();
    use sha2::Digest;
    let expected: String = sha2::Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(model.sha256().unwrap(), expected);
}
