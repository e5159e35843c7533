//! Loading a model takes the memory of its packed weights, and not that of its files besides.
//!
//! Alone in its process: the most memory that a process has had is counted for all of its threads.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use kernels::cpu::CpuEngine;
use kernels::{Batch, Engine, EngineOptions, Model, ModelPath, Pooling, Precision, Progress};

const LAYERS: usize = 8;
const HIDDEN: usize = 512;
const VOCAB: usize = 33;
const SHARDS: usize = 2;

/// Tensors of a shard: the embedding and the final norm are in the first, the layers divided.
fn tensors(shard: usize) -> Vec<(String, Vec<usize>)> {
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[usize]| tensors.push((name, shape.to_vec()));
    if shard == 0 {
        add("esm.embeddings.word_embeddings.weight".into(), &[VOCAB, HIDDEN]);
        for part in ["weight", "bias"] {
            add(format!("esm.encoder.emb_layer_norm_after.{part}"), &[HIDDEN]);
        }
    }
    for layer in (0..LAYERS).filter(|layer| layer % SHARDS == shard) {
        let mut linear = |name: &str, inputs: usize, outputs: usize| {
            add(format!("esm.encoder.layer.{layer}.{name}.weight"), &[outputs, inputs]);
            add(format!("esm.encoder.layer.{layer}.{name}.bias"), &[outputs]);
        };
        for name in ["query", "key", "value"] {
            linear(&format!("attention.self.{name}"), HIDDEN, HIDDEN);
        }
        linear("attention.output.dense", HIDDEN, HIDDEN);
        linear("intermediate.dense", HIDDEN, 4 * HIDDEN);
        linear("output.dense", 4 * HIDDEN, HIDDEN);
        for norm in ["attention.LayerNorm", "LayerNorm"] {
            for part in ["weight", "bias"] {
                add(format!("esm.encoder.layer.{layer}.{norm}.{part}"), &[HIDDEN]);
            }
        }
    }
    tensors
}

/// Writes a sharded model of small numbers, a tensor at a time; returns the bytes of its tensors.
fn write_model(folder: &Path) -> u64 {
    let config = format!(
        r#"{{"model_type": "esm", "num_hidden_layers": {LAYERS}, "hidden_size": {HIDDEN},
        "num_attention_heads": 16, "intermediate_size": {}, "vocab_size": {VOCAB}, "layer_norm_eps": 1e-5,
        "token_dropout": true, "position_embedding_type": "rotary", "emb_layer_norm_before": false}}"#,
        4 * HIDDEN
    );
    fs::write(folder.join("config.json"), config).unwrap();
    let (mut all, mut map) = (0, Vec::new());
    for shard in 0..SHARDS {
        let name = format!("model-{shard}.safetensors");
        let (mut header, mut end) = (Vec::new(), 0);
        for (tensor, shape) in tensors(shard) {
            let start = end;
            end += 4 * shape.iter().product::<usize>();
            header.push(format!(
                r#""{tensor}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
            ));
            map.push(format!(r#""{tensor}":"{name}""#));
        }
        let header = format!("{{{}}}", header.join(","));
        let mut file = BufWriter::new(File::create(folder.join(&name)).unwrap());
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        for number in 0..end / 4 {
            file.write_all(&((number * 7 % 23) as f32 * 0.002 - 0.022).to_le_bytes()).unwrap();
        }
        file.flush().unwrap();
        all += end as u64;
    }
    fs::write(
        folder.join("model.safetensors.index.json"),
        format!(r#"{{"weight_map":{{{}}}}}"#, map.join(",")),
    )
    .unwrap();
    all
}

/// A line of `/proc/self/status`, in bytes.
fn status(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() * 1024
}

/// Bytes in memory of this process's maps of files in `folder`.
fn resident(folder: &Path) -> u64 {
    let text = fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut bytes, mut inside) = (0, false);
    for line in text.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if !first.ends_with(':') {
            inside = line.contains(folder.to_str().unwrap());
        } else if inside && first == "Rss:" {
            let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
            bytes += 1024 * kib;
        }
    }
    bytes
}

#[test]
fn what_is_packed_leaves_the_files_behind() {
    let folder = tempfile::tempdir().unwrap();
    let file_bytes = write_model(folder.path());
    let model = Model::open(&ModelPath::Folder(folder.path().to_owned())).unwrap();
    let options = |precision| EngineOptions { layer: LAYERS, pooling: Pooling::Mean, precision, threads: 2 };
    let mut batch = Batch::default();
    batch.push(0, b"MKVLAWGRNDC", 11);
    let mut first = None;
    for precision in [Precision::Fp32, Precision::Bf16, Precision::Int8, Precision::Fp32] {
        if kernels::cpu::check_precision(precision).is_err() {
            continue;
        }
        // The most memory so far begins anew with what is taken now.
        fs::write("/proc/self/clear_refs", "5").unwrap();
        let before = status("VmRSS");
        let mut engine = CpuEngine::load(&model, options(precision)).unwrap();
        // Less than none where memory that an earlier engine left to the allocator is used again.
        let most = status("VmHWM").saturating_sub(before);
        let weights = engine.description().weights_bytes;
        // A layer's largest tensor is a twenty-fifth of the files.
        assert!(
            most < weights + file_bytes / 4,
            "{precision:?}: {most} bytes for {weights} of weights from files of {file_bytes}"
        );
        let resident = resident(folder.path());
        assert!(resident < file_bytes / 8, "{precision:?}: {resident} of {file_bytes} bytes are in memory");
        // What was released is read again from the files.
        let values = engine.run(&batch, &Progress::default()).unwrap().values;
        if precision == Precision::Fp32 {
            assert_eq!(*first.get_or_insert_with(|| values.clone()), values);
        }
    }
}
