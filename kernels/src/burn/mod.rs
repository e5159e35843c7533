//! The burn engine: the ESM-2 forward pass once more, over the tensors of the crate `burn`.
//!
//! Written from the network's definition and the model's weights alone. It shares neither operations nor forward
//! pass with the other engines, so that it can check them, and it runs wherever burn does: on the CPU (`burn-flex`)
//! and on NVIDIA GPUs (`burn-cuda`). It is not the fast path, and its last bits depend on the batch: see
//! `docs/adr/0010-burn-engine.md`.

mod attention;
#[cfg(feature = "burn-cuda")]
mod cuda;
mod forward;
mod pooling;
mod product;
mod weights;

use burn_flex::{Flex, FlexDevice};
use burn_tensor::backend::Backend;
use rayon::{ThreadPool, ThreadPoolBuilder};

use self::forward::Network;
use self::product::Products;
use crate::cpu::memory::MemoryGauge;
use crate::model::Model;
use crate::{Batch, Embeddings, Engine, EngineDescription, EngineError, EngineOptions, Precision, Progress};

#[cfg(feature = "burn-cuda")]
pub use cuda::{check as check_cuda, load as load_cuda};

/// Prepares `model` on the CPU, for `options.threads` threads of its own.
///
/// # Errors
/// [`EngineError::Model`] for a layer beyond the model or a tensor that cannot be read, [`EngineError::Device`]
/// when the threads cannot be started.
pub fn load_cpu(model: &Model, options: EngineOptions) -> Result<Box<dyn Engine>, EngineError> {
    let threads = options.threads.max(1);
    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("burn-engine-{index}"))
        .build()
        .map_err(|error| EngineError::Device(format!("failed to start {threads} threads: {error}")))?;
    let name = format!("burn (flex, {threads} {})", if threads == 1 { "thread" } else { "threads" });
    let mut engine = BurnEngine::<Flex>::load(model, options, FlexDevice, Products::Plain, name)?;
    engine.pool = Some(pool);
    engine.memory = Some(MemoryGauge::new());
    Ok(Box::new(engine))
}

/// A model on one of burn's backends.
struct BurnEngine<B: Backend> {
    network: Network<B>,
    options: EngineOptions,
    /// How products are computed in the precision asked for, and how in fp32.
    products: Products,
    exact: Products,
    /// Threads that the backend's own loops run on; `None` for those of a device.
    pool: Option<ThreadPool>,
    memory: Option<MemoryGauge>,
    description: EngineDescription,
}

/// Why int8 is refused.
const NO_INT8: &str = "the burn engine computes in fp32, fp16 or bf16, not in int8: set `precision = \"fp32\"`, or \
                       name other devices";

impl<B: Backend> BurnEngine<B> {
    /// `exact`: how this backend's matrix products are those of fp32.
    fn load(
        model: &Model,
        options: EngineOptions,
        device: B::Device,
        exact: Products,
        name: String,
    ) -> Result<Self, EngineError> {
        let products = match options.precision {
            Precision::Fp32 => exact,
            Precision::Bf16 => Products::Bf16,
            Precision::Fp16 => Products::Fp16,
            Precision::Int8 => return Err(EngineError::Model(NO_INT8.to_owned())),
        };
        let network = Network::load(model, options.layer, device)?;
        let config = model.config();
        // The feed-forward block is the widest place: its input, the residual stream, and three times its inside,
        // since burn keeps what an operation reads until it is done.
        let floats_per_token = 2 * config.hidden + 3 * config.intermediate;
        let description = EngineDescription {
            name,
            hidden: config.hidden,
            weights_bytes: network.weights_bytes(),
            bytes_per_token: 4 * floats_per_token as u64,
            token_budget: None,
            slots: 2,
        };
        Ok(Self { network, options, products, exact, pool: None, memory: None, description })
    }

    fn compute(
        &self,
        batch: &Batch,
        products: Products,
        progress: &Progress,
    ) -> Result<Embeddings, EngineError> {
        batch.check(self.network.vocab()).map_err(EngineError::Batch)?;
        let hidden = self.description.hidden;
        if batch.is_empty() {
            return Ok(Embeddings { hidden, values: Vec::new() });
        }
        let states = match &self.pool {
            Some(pool) => pool.install(|| self.network.run(batch, products, progress)),
            None => self.network.run(batch, products, progress),
        }?;
        let (mut values, mut sequences) = (Vec::new(), Vec::new());
        for index in 0..batch.len() {
            let limits =
                batch.cu_seqlens[index] as usize * hidden..batch.cu_seqlens[index + 1] as usize * hidden;
            let residues = batch.pooled_residues[index] as usize;
            let began = values.len();
            pooling::pool_into(self.options.pooling, &states[limits], hidden, residues, &mut values);
            if !values[began..].iter().all(|value| value.is_finite()) {
                sequences.push(index as u32);
            }
        }
        progress.tick();
        if !sequences.is_empty() {
            return Err(EngineError::NonFinite { sequences });
        }
        Ok(Embeddings { hidden, values })
    }
}

impl<B: Backend> Engine for BurnEngine<B> {
    fn description(&self) -> &EngineDescription {
        &self.description
    }

    fn run(&mut self, batch: &Batch, progress: &Progress) -> Result<Embeddings, EngineError> {
        self.compute(batch, self.products, progress)
    }

    fn run_exact(&mut self, batch: &Batch, progress: &Progress) -> Result<Embeddings, EngineError> {
        self.compute(batch, self.exact, progress)
    }

    fn memory_in_use(&mut self) -> Option<f32> {
        self.memory.as_mut()?.share()
    }
}
