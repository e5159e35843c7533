//! ESM-2 weights on disk: where they are, what shape they have, one view per tensor.
//!
//! Engines ask a [`Model`] for its configuration and for each weight by its role; no engine knows
//! file formats. Weights stay in the mapped file until an engine converts them and says so: then their
//! pages are released. Nothing here downloads, and no checkpoint's pickle is executed.

mod archive;
mod checkpoint;
mod config;
mod error;
pub mod hub;
mod published;
mod tensor;
mod weight;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use config::ModelConfig;
pub use error::ModelError;
pub use published::Shape;
pub use tensor::{StoredType, Tensor};
pub use weight::{LayerWeight, Weight};

use checkpoint::Checkpoint;
use tensor::{Bytes, StoredTensor};

/// Where weights are to be found.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ModelPath {
    /// A folder in Hugging Face layout: `config.json` and safetensors, sharded or not.
    Folder(PathBuf),
    /// One `.safetensors` file with its `config.json` beside it.
    Safetensors(PathBuf),
    /// A fair-esm `.pt` checkpoint.
    FairEsm(PathBuf),
    /// `organisation/name`, looked up in the local caches; see [`hub`].
    Hub(String),
}

/// Bytes of a `config.json`: a published one has a thousand.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Bytes of a `model.safetensors.index.json`: the largest ESM-2's has a hundred thousand.
const INDEX_BYTES_MAX: u64 = 16 << 20;

/// Shards of a model: the largest ESM-2 has a dozen; each is mapped while the model is open.
const SHARDS_MAX: usize = 1_024;

/// An ESM-2 model: its configuration and a view of every weight.
///
/// Every tensor the forward pass needs was found with the right shape when this value exists.
#[derive(Clone, Debug)]
pub struct Model {
    config: ModelConfig,
    name: String,
    files: Vec<PathBuf>,
    embedded: Option<&'static [u8]>,
    tensors: HashMap<Weight, StoredTensor>,
}

impl Model {
    /// Opens the weights at `path`.
    ///
    /// # Errors
    /// When a file is absent, unreadable, damaged or not ESM-2, or a tensor is missing or has
    /// another shape than the configuration says; the error names file and tensor.
    pub fn open(path: &ModelPath) -> Result<Self, ModelError> {
        match path {
            ModelPath::Folder(folder) => Self::open_folder(folder),
            ModelPath::Safetensors(file) => {
                let config_path = file.with_file_name("config.json");
                if !file.is_file() {
                    return Err(ModelError::read(file, std::io::ErrorKind::NotFound.into()));
                }
                if !config_path.is_file() {
                    return Err(ModelError::ConfigAbsent { weights: file.clone(), config: config_path });
                }
                Self::open_safetensors(&config_path, vec![file.clone()])
            }
            ModelPath::FairEsm(file) => Self::open_fair_esm(file),
            // The caches hold folders and checkpoints, so this goes one step deep.
            ModelPath::Hub(name) => Self::open(&hub::resolve(name)?),
        }
    }

    /// Opens weights held in memory, such as a model inside the program.
    ///
    /// `config_json`: a Hugging Face `config.json`. `weights`: a safetensors file.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn from_bytes(config_json: &'static [u8], weights: &'static [u8]) -> Result<Self, ModelError> {
        let path = Path::new("embedded model");
        let config = ModelConfig::from_hugging_face(config_json, path)?;
        let mut found = HashMap::new();
        tensor::index_safetensors(path, &Bytes::Static(weights), &mut found)?;
        let tensors = weight::select(&config, path, found)?;
        Ok(Self {
            config,
            name: "embedded model".into(),
            files: Vec::new(),
            embedded: Some(weights),
            tensors,
        })
    }

    fn open_folder(folder: &Path) -> Result<Self, ModelError> {
        let config_path = folder.join("config.json");
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        if !folder.is_dir() {
            return Err(ModelError::read(folder, std::io::ErrorKind::NotFound.into()));
        }
        let files = if single.is_file() {
            vec![single]
        } else if index.is_file() {
            shards(&index)?
        } else {
            return Err(ModelError::NoWeights {
                folder: folder.to_owned(),
                pytorch_bin: folder.join("pytorch_model.bin").is_file(),
            });
        };
        if !config_path.is_file() {
            return Err(ModelError::ConfigAbsent { weights: files[0].clone(), config: config_path });
        }
        Self::open_safetensors(&config_path, files)
    }

    fn open_safetensors(config_path: &Path, files: Vec<PathBuf>) -> Result<Self, ModelError> {
        let json = read_at_most(config_path, CONFIG_BYTES_MAX)?;
        let config = ModelConfig::from_hugging_face(&json, config_path)?;
        let mut found = HashMap::new();
        for file in &files {
            let bytes = Bytes::map(file)?;
            tensor::index_safetensors(file, &bytes, &mut found)?;
        }
        let tensors = weight::select(&config, &files[0], found)?;
        let name = config_path.parent().unwrap_or(config_path).display().to_string();
        Ok(Self { config, name, files, embedded: None, tensors })
    }

    fn open_fair_esm(file: &Path) -> Result<Self, ModelError> {
        let checkpoint = Checkpoint::open(file)?;
        let config = checkpoint.config()?;
        let tensors = weight::select(&config, file, checkpoint.into_tensors())?;
        Ok(Self {
            config,
            name: file.display().to_string(),
            files: vec![file.to_owned()],
            embedded: None,
            tensors,
        })
    }

    /// Shape of the network.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Folder or file the model came from, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Weight files in shard order; empty for a model inside the program.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// The tensor that plays `weight`'s part, its shape already checked.
    ///
    /// # Errors
    /// When a checkpoint's bytes cannot be read, or a layer beyond the model is asked for.
    pub fn tensor(&self, weight: Weight) -> Result<Tensor<'_>, ModelError> {
        match self.tensors.get(&weight) {
            Some(stored) => stored.view(),
            None => Err(ModelError::MissingTensor {
                path: self.files.first().cloned().unwrap_or_else(|| PathBuf::from("embedded model")),
                tensor: weight.name(),
            }),
        }
    }

    /// Says that `weight` is not read again soon: the memory of its part of a mapped file is given back.
    ///
    /// Its views stay valid; reading them again costs what reading them first did with the file in the system's
    /// cache.
    pub fn release(&self, weight: Weight) {
        if let Some(stored) = self.tensors.get(&weight) {
            stored.release();
        }
    }

    /// SHA-256 of the weight files' bytes, one after the other in shard order, as hexadecimal.
    ///
    /// # Errors
    /// When a file cannot be read to its end.
    pub fn sha256(&self) -> Result<String, ModelError> {
        const CHUNK_BYTES: usize = 1 << 20;
        let mut hasher = Sha256::new();
        if let Some(bytes) = self.embedded {
            hasher.update(bytes);
        }
        let mut chunk = vec![0; CHUNK_BYTES];
        for path in &self.files {
            let mut file = File::open(path).map_err(|source| ModelError::read(path, source))?;
            loop {
                match file.read(&mut chunk) {
                    Ok(0) => break,
                    Ok(read) => hasher.update(&chunk[..read]),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(source) => return Err(ModelError::read(path, source)),
                }
            }
        }
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Reads a whole file of at most `bytes_max`.
fn read_at_most(path: &Path, bytes_max: u64) -> Result<Vec<u8>, ModelError> {
    let failed = |source| ModelError::read(path, source);
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(bytes_max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > bytes_max {
        let problem = format!("it is larger than {bytes_max} bytes");
        return Err(ModelError::Config { path: path.to_owned(), problem });
    }
    Ok(bytes)
}

/// The shard files that `index` (a `model.safetensors.index.json`) names, sorted.
fn shards(index: &Path) -> Result<Vec<PathBuf>, ModelError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let json = read_at_most(index, INDEX_BYTES_MAX)?;
    let parsed: Index = serde_json::from_slice(&json)
        .map_err(|source| ModelError::Json { path: index.to_owned(), source })?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return Err(ModelError::Config { path: index.to_owned(), problem: "it names no shard".into() });
    }
    if names.len() > SHARDS_MAX {
        let problem = format!("it names {} shards, more than {SHARDS_MAX}", names.len());
        return Err(ModelError::Config { path: index.to_owned(), problem });
    }
    // A shard lies beside its index: a path in the index could make us read any file.
    if let Some(name) = names.iter().find(|name| Path::new(name).file_name() != Some(name.as_ref())) {
        return Err(ModelError::Config {
            path: index.to_owned(),
            problem: format!("shard `{name}` is not a plain file name"),
        });
    }
    Ok(names.iter().map(|name| index.with_file_name(name)).collect())
}
