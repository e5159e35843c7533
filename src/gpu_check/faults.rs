//! Faults of the GPU itself, provoked on purpose.

use std::path::Path;

use kernels::cuda::host::bench::Bench;
use kernels::cuda::host::{Arg, Gpu};
use kernels::cuda::{Kernel, Launch, Number};
use kernels::model::Shape;
use kernels::{Batch, EngineError, Pooling, Precision, Progress};

use super::agreement::bits;
use super::device::{Device, Loaded};
use super::golden::{SEED, words};
use super::random::Random;
use super::report::{check, skip};
use super::weights::{self, Stored};

/// A batch of `tokens` tokens at least, in sequences of up to 1,022 residues.
fn batch_of(tokens: usize) -> Batch {
    const RESIDUES: usize = 1_022;
    let residues = Random::new(SEED).protein(RESIDUES);
    let mut batch = Batch::default();
    while batch.token_count() < tokens {
        let left = (tokens - batch.token_count()).saturating_sub(2).clamp(1, RESIDUES);
        batch.push(batch.len() as u64, &residues[..left], left as u32);
    }
    batch
}

fn loaded(device: &Device, shape: Shape, scratch: &Path) -> Result<Loaded, String> {
    let folder = scratch.join(format!("faults-{}", shape.name));
    let model = weights::model(folder, shape, SEED, Stored::F32)?;
    let precision = if device.supports(Precision::Fp16).is_ok() { Precision::Fp16 } else { Precision::Fp32 };
    device.load(&model, Pooling::Mean, precision).map_err(words)
}

/// Makes a check of an engine for which the device must be a GPU.
fn check_on_gpu(
    what: &str,
    device: &Device,
    shape: Shape,
    scratch: &Path,
    body: impl FnOnce(&Gpu, Loaded) -> Result<String, String>,
) {
    match device.gpu() {
        Some(gpu) => {
            check(what, || body(gpu, loaded(device, shape, scratch)?));
        }
        None => skip(what, "needs a GPU"),
    }
}

/// A batch beyond the memory that is free must be refused as such, and cost nothing but itself.
pub(super) fn out_of_memory(device: &Device, shape: Shape, scratch: &Path) {
    const WHAT: &str = "recovery: a batch beyond the device's memory";
    check_on_gpu(WHAT, device, shape, scratch, |gpu, mut engine| {
        let progress = Progress::default();
        let small = batch_of(300);
        let before = engine.run(&small, &progress).map_err(words)?.values;
        let memory = gpu.memory().map_err(|error| error.to_string())?;
        // What is free, what the engine holds for its budget, and a quarter more.
        let held = u64::from(engine.description().token_budget.unwrap_or(0));
        let tokens = (memory.free / engine.description().bytes_per_token.max(1) + held) * 5 / 4;
        let large = batch_of(tokens as usize);
        match engine.run(&large, &progress) {
            Err(EngineError::OutOfMemory { tokens }) if tokens == large.token_count() => {}
            Err(error) => return Err(format!("a batch of {tokens} tokens is refused with: {error}")),
            Ok(_) => {
                return Err(format!("a batch of {tokens} tokens is computed in {} bytes", memory.free));
            }
        }
        let after = engine.run(&small, &progress).map_err(words)?.values;
        if bits(&after) != bits(&before) {
            return Err("afterwards the same batch gives other bits than before".to_owned());
        }
        Ok(format!("{tokens} tokens are refused as out of memory; afterwards the engine works, bit for bit"))
    });
}

/// An engine must say that its device is unusable after a kernel of the same process has failed.
///
/// For a process of its own: it cannot use the GPU afterwards.
pub(super) fn sticky(device: &Device, shape: Shape, scratch: &Path) {
    const WHAT: &str = "recovery: a kernel that writes out of bounds";
    check_on_gpu(WHAT, device, shape, scratch, |gpu, mut engine| {
        let progress = Progress::default();
        let batch = batch_of(300);
        engine.run(&batch, &progress).map_err(words)?;
        let fault = write_out_of_bounds(gpu)?;
        match engine.run(&batch, &progress) {
            Err(EngineError::Device(text)) => {
                match engine.run(&batch, &progress) {
                    Err(EngineError::Device(_)) => {}
                    other => return Err(format!("the batch after that ends with {other:?}")),
                }
                Ok(format!("the kernel: {fault}; the engine: device failed: {text}"))
            }
            Err(error) => Err(format!("the kernel: {fault}; the engine, of another kind: {error:?}")),
            Ok(_) => Err(format!("the kernel: {fault}; the engine goes on as if nothing had happened")),
        }
    });
}

/// Runs a kernel on memory that is nobody's; returns what the driver says.
fn write_out_of_bounds(gpu: &Gpu) -> Result<String, String> {
    /// No allocation is near: the first pages of every address space are empty.
    const NOWHERE: u64 = 4_096;
    const NUMBERS: usize = 1_024;
    let bench = Bench::open(gpu, &[Number::F32], 16).map_err(|error| error.to_string())?;
    let args = [Arg::Pointer(NOWHERE), Arg::Long(NUMBERS as i64)];
    let launched = bench.launch(Kernel::Gelu(Number::F32), Launch::per_number(NUMBERS), &args);
    match launched.and_then(|()| bench.synchronize()) {
        Err(error) if error.is_sticky() => Ok(error.to_string()),
        Err(error) => Err(format!("a kernel that writes out of bounds fails with: {error}")),
        Ok(()) => Err("a kernel that writes out of bounds is said to have succeeded".to_owned()),
    }
}

/// A process that begins after another one's fault finds the GPU as if nothing had been.
pub(super) fn fresh(device: &Device, shape: Shape, scratch: &Path) {
    check("recovery: the next process after that", || {
        let mut engine = loaded(device, shape, scratch)?;
        engine.run(&batch_of(300), &Progress::default()).map_err(words)?;
        Ok("it loads a model and computes".to_owned())
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_have_the_tokens_asked_for() {
        for tokens in [1, 3, 300, 1_024, 1_025, 5_000] {
            let batch = batch_of(tokens);
            batch.check(33).unwrap();
            assert!((tokens..tokens + 3).contains(&batch.token_count()), "{tokens}");
        }
    }
}
