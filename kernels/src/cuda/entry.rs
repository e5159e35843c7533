//! The engine's door for a program that may have been built without it.

use crate::{Engine, EngineError, EngineOptions, Model, ModelConfig, Pooling, Precision};

/// An engine, and what its operator should know of how it came about.
pub type Loaded = (Box<dyn Engine>, Vec<String>);

/// Loads the engine on the only GPU that this process sees.
///
/// `uuid`: its UUID as the driver's management library tells it; another GPU is refused.
///
/// # Errors
/// If libraries are missing, the GPU cannot be opened, or the model does not fit it.
#[cfg(feature = "cuda")]
pub fn load(uuid: Option<&str>, model: &Model, options: EngineOptions) -> Result<Loaded, EngineError> {
    let gpu = super::host::Gpu::open("cuda:0").map_err(super::host::CudaError::into_load_error)?;
    let bare = |uuid: &str| uuid.split_once('-').map(|(_, uuid)| uuid.to_ascii_lowercase());
    // Instances of drivers before 470 are named by their GPU and two numbers: CUDA's name for them is another.
    let comparable = uuid.filter(|uuid| !uuid.contains('/'));
    if let Some(expected) = comparable.filter(|expected| bare(expected) != bare(gpu.uuid())) {
        return Err(EngineError::Device(format!(
            "CUDA shows the GPU {} in place of {expected}: is CUDA_VISIBLE_DEVICES set by a wrapper?",
            gpu.uuid()
        )));
    }
    let engine = super::CudaEngine::load(gpu, model, options)?;
    let warnings = engine.warnings().to_vec();
    Ok((Box::new(engine), warnings))
}

/// Refuses: this build has no such engine.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub fn load(_uuid: Option<&str>, _model: &Model, _options: EngineOptions) -> Result<Loaded, EngineError> {
    Err(EngineError::Model("the CUDA engine is not part of this build".to_owned()))
}

/// Most tokens of a batch on a GPU with so much memory, free and in all, nothing of the model being there yet.
///
/// `layer`: the hidden state asked for; later layers are not loaded.
///
/// # Errors
/// If the model does not fit, in words.
#[cfg(feature = "cuda")]
pub fn token_budget(
    config: &ModelConfig,
    layer: usize,
    pooling: Pooling,
    precision: Precision,
    memory: (u64, u64),
    multiprocessors: Option<u32>,
) -> Result<u32, String> {
    use super::host::memory::{MemoryPlan, Numbers};
    let numbers = Numbers::of(precision);
    let layers = layer.min(config.layers);
    // Where their number is not known, whole tiles are good enough.
    let multiprocessors = multiprocessors.unwrap_or(0);
    MemoryPlan::new(config, layers, pooling, numbers, memory, multiprocessors)
        .map(|plan| u32::try_from(plan.token_budget).unwrap_or(u32::MAX))
        .map_err(|error| error.to_string())
}

/// Refuses: this build has no such engine.
///
/// # Errors
/// Always.
#[cfg(not(feature = "cuda"))]
pub fn token_budget(
    _config: &ModelConfig,
    _layer: usize,
    _pooling: Pooling,
    _precision: Precision,
    _memory: (u64, u64),
    _multiprocessors: Option<u32>,
) -> Result<u32, String> {
    Err("the CUDA engine is not part of this build".to_owned())
}
