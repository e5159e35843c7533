//! Sequence tokens, model weights and the engines that turn batches into embeddings.

pub mod alphabet;
mod batch;
#[cfg(feature = "burn")]
pub mod burn;
pub mod cpu;
pub mod cuda;
pub mod device;
pub mod encoder;
mod engine;
pub mod model;
pub mod nvml;
pub mod ops;
pub mod sim;

pub use batch::Batch;
pub use engine::{
    Embeddings, Engine, EngineDescription, EngineError, EngineOptions, Pooling, Precision, Progress,
};
pub use model::{Model, ModelConfig, ModelError, ModelPath};
pub use sim::{SimEngine, SimProgram};
