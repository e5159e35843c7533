//! Sequence tokens, model weights and the engines that turn batches into embeddings.

pub mod alphabet;
mod batch;
mod engine;

pub use batch::Batch;
pub use engine::{Embeddings, Engine, EngineDescription, EngineError, EngineOptions, Pooling, Precision, Progress};
