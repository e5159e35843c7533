//! Why a model could not be opened.

use std::path::{Path, PathBuf};

/// Why a model could not be opened; every variant names the file.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file is absent or unreadable.
    #[error("failed to read `{}`", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A folder without weights.
    #[error(
        "no `model.safetensors` and no `model.safetensors.index.json` in `{}`{}",
        folder.display(),
        if *pytorch_bin {
            "; its `pytorch_model.bin` is not read: save the model with `safe_serialization=True`"
        } else {
            ""
        }
    )]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// Whether it has weights in the older pickle form.
        pytorch_bin: bool,
    },
    /// Safetensors without their configuration.
    #[error("`{}` needs `{}` beside it: copy it from the model's repository", weights.display(), config.display())]
    ConfigAbsent {
        /// The weight file.
        weights: PathBuf,
        /// The configuration that is absent.
        config: PathBuf,
    },
    /// A JSON file that does not parse.
    #[error("`{}` is not the JSON expected", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it stopped to parse.
        source: serde_json::Error,
    },
    /// A configuration that makes no sense.
    #[error("`{}` cannot be used: {problem}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong, and with which value.
        problem: String,
    },
    /// A model of another family.
    #[error("`{}` is not an ESM-2 model: {problem}", path.display())]
    NotEsm2 {
        /// The file.
        path: PathBuf,
        /// Which property differs.
        problem: String,
    },
    /// A damaged or truncated safetensors file.
    #[error("`{}` is not a complete safetensors file; fetch it again", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        source: safetensors::SafeTensorError,
    },
    /// A damaged or foreign checkpoint.
    #[error("`{}` is not a readable fair-esm checkpoint", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A tensor that the forward pass needs is not in the file.
    #[error("`{}` has no tensor `{tensor}`", path.display())]
    MissingTensor {
        /// The first weight file.
        path: PathBuf,
        /// The tensor's Hugging Face name.
        tensor: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor `{tensor}` in `{}` has shape {found:?}, expected {expected:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor's name in that file.
        tensor: String,
        /// What the configuration asks for.
        expected: Vec<usize>,
        /// What the file has.
        found: Vec<usize>,
    },
    /// A tensor's numbers have a type that is not read.
    #[error("tensor `{tensor}` in `{}` is {found}; F32, F16 and BF16 are read", path.display())]
    StoredType {
        /// The file.
        path: PathBuf,
        /// The tensor's name in that file.
        tensor: String,
        /// Its type there.
        found: String,
    },
    /// Not `organisation/name`.
    #[error("`{name}` is not a model name: write `organisation/name`, such as `facebook/esm2_t6_8M_UR50D`")]
    HubName {
        /// What was given.
        name: String,
    },
    /// A model that is in no local cache.
    #[error(
        "model `{name}` is not in a local cache; looked at {}; get it with `hf download {name}`, or name a folder instead",
        looked_at.iter().map(|path| format!("`{}`", path.display())).collect::<Vec<_>>().join(", ")
    )]
    NotInCache {
        /// The model asked for.
        name: String,
        /// Every place where it could have been.
        looked_at: Vec<PathBuf>,
    },
}

impl ModelError {
    pub(crate) fn read(path: &Path, source: std::io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }
}
