//! fair-esm checkpoints. Byte 0 chooses what the rest is: a file as it lies on disk, or its pickle alone, which
//! is put into a sound archive here: an invented archive would hardly ever have the right checksums.

use std::sync::LazyLock;

use kernels::ModelPath;

use super::safetensors::{HIDDEN, INTERMEDIATE, VOCAB, read_all};

/// Opens a checkpoint; every weight of one that opens can be read.
pub fn enter(bytes: &[u8]) -> bool {
    let [kind, rest @ ..] = bytes else { return false };
    let folder = match kind % 2 {
        0 => super::folder_with("model.pt", rest),
        _ => super::folder_with("model.pt", &archive(rest)),
    };
    read_all(&ModelPath::FairEsm(folder.path().join("model.pt")))
}

/// Opens the checkpoint made of `pickle`; returns the error as text.
pub fn error_of(pickle: &[u8]) -> Option<String> {
    let folder = super::folder_with("model.pt", &archive(pickle));
    let opened = kernels::Model::open(&ModelPath::FairEsm(folder.path().join("model.pt")));
    opened.err().map(|error| actors::error_chain(&error))
}

/// Storages in the archive, enough for two layers.
const STORAGES: usize = 40;
/// Bytes of each, as many as the largest tensor takes in f32.
const STORAGE_BYTES: usize = VOCAB * HIDDEN * 4;

/// An archive of stored entries, as `torch.save` writes it.
#[derive(Clone, Default)]
struct Archive {
    entries: Vec<u8>,
    directory: Vec<u8>,
    count: u16,
}

impl Archive {
    fn add(&mut self, name: &str, bytes: &[u8]) {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        let size = (bytes.len() as u32).to_le_bytes();
        let name_bytes = (name.len() as u16).to_le_bytes();
        // Version, flags, method, time, date; checksum, both sizes; lengths of name and extra field.
        let described = [
            &[20, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
            &crc.sum().to_le_bytes(),
            &size,
            &size,
            &name_bytes,
            &[0, 0],
        ];
        let described = described.concat();
        let offset = (self.entries.len() as u32).to_le_bytes();
        self.entries.extend([&b"PK\x03\x04"[..], &described, name.as_bytes(), bytes].concat());
        // Comment length, disk, attributes; offset of the entry.
        let rest = [&[0; 10][..], &offset, name.as_bytes()].concat();
        self.directory.extend([&b"PK\x01\x02\x14\0"[..], &described, &rest].concat());
        self.count += 1;
    }

    fn finish(self) -> Vec<u8> {
        let count = self.count.to_le_bytes();
        let directory_bytes = (self.directory.len() as u32).to_le_bytes();
        let directory_at = (self.entries.len() as u32).to_le_bytes();
        let end =
            [&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &directory_bytes, &directory_at, &[0, 0]].concat();
        [self.entries, self.directory, end].concat()
    }
}

/// Everything but the pickle, the same in each archive.
static SOUND: LazyLock<Archive> = LazyLock::new(|| {
    let mut archive = Archive::default();
    archive.add("m/version", b"3\n");
    archive.add("m/byteorder", b"little");
    for number in 0..STORAGES {
        archive.add(&format!("m/data/{number}"), &[0; STORAGE_BYTES]);
    }
    archive
});

fn archive(pickle: &[u8]) -> Vec<u8> {
    let mut archive = SOUND.clone();
    archive.add("m/data.pkl", pickle);
    archive.finish()
}

/// Names and shapes of the weights of a checkpoint.
fn shapes() -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![
        ("embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("emb_layer_norm_after.weight".to_owned(), vec![HIDDEN]),
        ("emb_layer_norm_after.bias".to_owned(), vec![HIDDEN]),
        ("layers.0.self_attn.rot_emb.inv_freq".to_owned(), vec![1]),
        ("layers.0.fc1.weight".to_owned(), vec![INTERMEDIATE, HIDDEN]),
        ("layers.0.fc1.bias".to_owned(), vec![INTERMEDIATE]),
        ("layers.0.fc2.weight".to_owned(), vec![HIDDEN, INTERMEDIATE]),
        ("layers.0.fc2.bias".to_owned(), vec![HIDDEN]),
    ];
    for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
        shapes.push((format!("layers.0.self_attn.{name}.weight"), vec![HIDDEN, HIDDEN]));
        shapes.push((format!("layers.0.self_attn.{name}.bias"), vec![HIDDEN]));
    }
    for name in ["self_attn_layer_norm", "final_layer_norm"] {
        shapes.push((format!("layers.0.{name}.weight"), vec![HIDDEN]));
        shapes.push((format!("layers.0.{name}.bias"), vec![HIDDEN]));
    }
    shapes
}

/// The pickle of a one-layer model, as `torch.save` writes it but for its memo.
pub fn pickle(with_arguments: bool) -> Vec<u8> {
    let text = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let tuple = |numbers: &[usize]| {
        let numbers: Vec<u8> = numbers.iter().flat_map(|&number| [b'K', number as u8]).collect();
        [&b"("[..], &numbers, b"t"].concat()
    };
    let mut pickle = b"\x80\x02}(".to_vec();
    if with_arguments {
        pickle.extend([text("args"), b"cargparse\nNamespace\n)\x81}(".to_vec()].concat());
        pickle.extend([text("encoder_attention_heads"), b"K\x02".to_vec()].concat());
        pickle.extend([text("token_dropout"), b"\x88ub".to_vec()].concat());
    }
    pickle.extend([text("model"), b"ccollections\nOrderedDict\n)R(".to_vec()].concat());
    for (number, (name, shape)) in shapes().into_iter().enumerate() {
        let numel = shape.iter().product::<usize>() as u16;
        let strides: &[usize] = if shape.len() == 2 { &[shape[1], 1] } else { &[1] };
        pickle.extend([text(&format!("encoder.sentence_encoder.{name}"))].concat());
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        pickle.extend(
            [text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text(&number.to_string())].concat(),
        );
        pickle.extend([text("cpu"), [&b"M"[..], &numel.to_le_bytes(), b"tQK\0"].concat()].concat());
        pickle.extend(
            [tuple(&shape), tuple(strides), b"\x89ccollections\nOrderedDict\n)RtR".to_vec()].concat(),
        );
    }
    pickle.extend(b"uu.");
    pickle
}

/// Seeds: sound checkpoints with and without arguments, the older containers' marks.
pub fn seeds() -> Vec<Vec<u8>> {
    let seed = |kind: u8, rest: &[u8]| [&[kind][..], rest].concat();
    let mut small = Archive::default();
    small.add("m/data.pkl", &pickle(true));
    vec![
        seed(1, &pickle(true)),
        seed(1, &pickle(false)),
        seed(0, &small.finish()),
        // The magic number of the stream that torch wrote before 1.6.
        seed(0, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}."),
        seed(0, &pickle(true)),
    ]
}
