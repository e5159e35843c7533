//! The demonstration inside the program: a small real model, 300 real proteins and the job that joins them.
//!
//! The model loader reads the weights from here when `model.source` is `"demo"`; the command line writes the
//! job and the proteins into a folder. Nothing here is ever downloaded.

/// The demo model's `config.json`, Hugging Face layout.
pub const CONFIG_JSON: &[u8] = include_bytes!("../demo/model/config.json");

/// The demo model's `model.safetensors`, f32.
pub const WEIGHTS: &[u8] = include_bytes!("../demo/model/model.safetensors");

/// The demo job file.
pub const JOB: &str = include_str!("../demo/job.toml");

/// The demo proteins, FASTA.
pub const PROTEINS: &str = include_str!("../demo/proteins.fasta");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn proteins_have_unique_ids_and_bounded_lengths() {
        let mut ids = BTreeSet::new();
        for record in PROTEINS.split('>').skip(1) {
            let (header, sequence) = record.split_once('\n').unwrap();
            assert!(ids.insert(header.split_whitespace().next().unwrap()), "{header} twice");
            assert!(sequence.lines().all(|line| line.len() <= 60), "{header}");
            let residues = sequence.replace('\n', "");
            assert!((1..=600).contains(&residues.len()), "{header}");
            assert!(residues.bytes().all(|letter| letter.is_ascii_uppercase()), "{header}");
        }
        assert_eq!(ids.len(), 300);
    }

    #[test]
    fn weights_are_a_safetensors_file() {
        let header_bytes = u64::from_le_bytes(WEIGHTS[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&WEIGHTS[8..8 + header_bytes]).unwrap();
        assert!(header.get("esm.embeddings.word_embeddings.weight").is_some(), "{header}");
        let config: serde_json::Value = serde_json::from_slice(CONFIG_JSON).unwrap();
        assert_eq!(config["model_type"], "esm");
    }
}
