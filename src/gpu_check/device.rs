//! The device that is checked, and models on it.

use std::ops::{Deref, DerefMut};

use kernels::cpu::{self, CpuEngine};
use kernels::cuda::Number;
use kernels::cuda::host::bench::Bench;
use kernels::cuda::host::{CudaEngine, CudaError, Gpu, GraphUse, WorkClass, libraries};
use kernels::nvml::{Library, Nvml};
use kernels::{Batch, Engine, EngineError, EngineOptions, Model, ModelConfig, Pooling, Precision};

/// An opened device.
pub(super) enum Device {
    /// No GPU: the checks themselves are tried on it.
    Cpu {
        threads: usize,
    },
    Cuda {
        gpu: Gpu,
    },
}

/// Why a device cannot be opened.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) text: String,
    pub(super) hints: Vec<String>,
}

impl Device {
    /// Opens the device of this name.
    ///
    /// # Errors
    /// What is missing, and what can be done.
    pub(super) fn open(name: &str) -> Result<Self, Refusal> {
        if name == "cpu" {
            return Ok(Self::Cpu { threads: cpu::threads_auto() });
        }
        if !name.starts_with("cuda:") {
            let hints = vec!["write cuda:0, cuda:GPU-8f6d5a1e-… or cuda:0000:3b:00.0".to_owned()];
            return Err(Refusal { text: format!("`{name}` is no GPU"), hints });
        }
        match Gpu::open(name) {
            Ok(gpu) => Ok(Self::Cuda { gpu }),
            Err(CudaError::Libraries(errors)) => Err(Refusal {
                text: format!("device `{name}` cannot be used: libraries of NVIDIA are missing"),
                hints: errors.iter().map(ToString::to_string).collect(),
            }),
            Err(error) => Err(Refusal {
                text: format!("device `{name}` cannot be used: {}", actors::error_chain(&error)),
                hints: vec!["`virnucpro-orch doctor` shows what this machine has".to_owned()],
            }),
        }
    }

    pub(super) fn gpu(&self) -> Option<&Gpu> {
        match self {
            Self::Cpu { .. } => None,
            Self::Cuda { gpu } => Some(gpu),
        }
    }

    /// What it is and what it is used through, one fact each.
    pub(super) fn facts(&self) -> Vec<(&'static str, String)> {
        let gpu = match self {
            Self::Cpu { threads } => {
                let text =
                    format!("the CPU ({}, {threads} threads): no GPU is checked", cpu::fp32_instructions());
                return vec![("device", text)];
            }
            Self::Cuda { gpu } => gpu,
        };
        let memory = gpu.memory().map_or_else(
            |error| error.to_string(),
            |memory| {
                let gibibytes = |bytes: u64| bytes as f64 / f64::from(1u32 << 30);
                format!("{:.1} of {:.1} GiB free", gibibytes(memory.free), gibibytes(memory.total))
            },
        );
        let mut facts = vec![
            ("device", gpu.name().to_owned()),
            (
                "kind",
                format!(
                    "compute capability {}, {} multiprocessors, kernels for {}, {}, PCI {}",
                    gpu.capability(),
                    gpu.multiprocessors(),
                    gpu.architecture(),
                    gpu.uuid(),
                    gpu.pci_bus_id()
                ),
            ),
            ("memory", memory),
        ];
        match Nvml::open(&Library::from_environment()) {
            Ok(nvml) => {
                let driver = nvml.driver().version.unwrap_or_else(|| "of unknown version".to_owned());
                facts.push(("driver", driver));
            }
            Err(error) => facts.push(("driver", format!("not told, nor busy time: {error}"))),
        }
        facts.extend(libraries::probe().into_iter().map(|library| match library {
            Ok(library) => ("library", library.to_string()),
            Err(error) => ("library", error.to_string()),
        }));
        if let Ok(visible) = std::env::var("CUDA_VISIBLE_DEVICES") {
            facts.push(("visible", format!("CUDA_VISIBLE_DEVICES={visible}")));
        }
        facts
    }

    /// # Errors
    /// Why not.
    pub(super) fn supports(&self, precision: Precision) -> Result<(), String> {
        match (self, precision) {
            (Self::Cpu { .. }, Precision::Fp32) => Ok(()),
            (Self::Cpu { .. }, Precision::Fp16 | Precision::Bf16 | Precision::Int8) => {
                Err("the CPU is checked in fp32 only".to_owned())
            }
            (Self::Cuda { gpu }, precision) => gpu.require(precision).map_err(|error| error.to_string()),
        }
    }

    pub(super) fn load(
        &self,
        model: &Model,
        pooling: Pooling,
        precision: Precision,
    ) -> Result<Loaded, EngineError> {
        let options = |threads| EngineOptions { layer: model.config().layers, pooling, precision, threads };
        match self {
            Self::Cpu { threads } => Ok(Loaded::Cpu(Box::new(CpuEngine::load(model, options(*threads))?))),
            Self::Cuda { gpu } => {
                let engine = CudaEngine::load(gpu.clone(), model, options(1))?;
                for warning in engine.warnings() {
                    crate::stderr::say(format_args!("warning    {warning}"));
                }
                Ok(Loaded::Cuda(Box::new(engine)))
            }
        }
    }

    /// Tokens of a batch as a run would choose them.
    pub(super) fn token_budget(&self, config: &ModelConfig, engine: &dyn Engine) -> u32 {
        let suits = match self {
            Self::Cpu { threads } => cpu::token_budget_auto(config, *threads),
            Self::Cuda { .. } => u32::MAX,
        };
        engine.description().token_budget.map_or(suits, |fits| fits.min(suits))
    }

    /// The GPU as the driver's management library knows it.
    pub(super) fn uuid(&self) -> Option<String> {
        self.gpu().map(|gpu| gpu.uuid().to_owned())
    }

    /// Memory in use, by whoever.
    pub(super) fn memory_used_bytes(&self) -> Option<u64> {
        let memory = self.gpu()?.memory().ok()?;
        Some(memory.total.saturating_sub(memory.free))
    }

    /// The device's own speed in 16-bit products of `size`³, TFLOP/s; `None` where that says nothing.
    ///
    /// # Errors
    /// If the device fails.
    pub(super) fn product_peak(&self, precision: Precision, size: usize) -> Result<Option<f64>, String> {
        match self {
            Self::Cuda { gpu } if precision != Precision::Fp32 => {
                let bench = Bench::open(gpu, &[Number::F16], 16).map_err(|error| error.to_string())?;
                bench.product_peak(size).map(Some).map_err(|error| error.to_string())
            }
            Self::Cpu { .. } | Self::Cuda { .. } => Ok(None),
        }
    }
}

/// A model on the device.
pub(super) enum Loaded {
    Cpu(Box<CpuEngine>),
    Cuda(Box<CudaEngine>),
}

impl Deref for Loaded {
    type Target = dyn Engine;

    fn deref(&self) -> &(dyn Engine + 'static) {
        match self {
            Self::Cpu(engine) => engine.as_ref(),
            Self::Cuda(engine) => engine.as_ref(),
        }
    }
}

impl DerefMut for Loaded {
    fn deref_mut(&mut self) -> &mut (dyn Engine + 'static) {
        match self {
            Self::Cpu(engine) => engine.as_mut(),
            Self::Cuda(engine) => engine.as_mut(),
        }
    }
}

/// Where the time of one batch goes on the device.
#[derive(Default)]
pub(super) struct KernelTimes {
    /// Milliseconds from the first kernel to the last; 0 where it is not told.
    pub(super) total_ms: f64,
    /// Milliseconds by kind of work.
    pub(super) kinds_ms: Vec<(String, f64)>,
}

impl Loaded {
    /// Whether batches are started as CUDA graphs; `None` for a device that knows none.
    pub(super) fn graphs(&self) -> Option<GraphUse> {
        match self {
            Self::Cpu(_) => None,
            Self::Cuda(engine) => Some(engine.graphs()),
        }
    }

    /// Times one batch, run alone, by the device's own clock.
    ///
    /// # Errors
    /// If the engine fails.
    pub(super) fn kernel_times(&mut self, batch: &Batch) -> Result<KernelTimes, EngineError> {
        let Self::Cuda(engine) = self else { return Ok(KernelTimes::default()) };
        let profile = engine.profile(batch)?;
        let milliseconds = |microseconds: f32| f64::from(microseconds) / 1e3;
        let name = |class| match class {
            WorkClass::Product => "products",
            WorkClass::Attention => "attention",
            WorkClass::Norm => "norms",
            WorkClass::Gelu => "GELU",
            WorkClass::Embed => "embedding",
            WorkClass::Pool => "pooling",
            WorkClass::Copy => "copies",
        };
        let kinds = profile.microseconds.iter();
        Ok(KernelTimes {
            total_ms: milliseconds(profile.total_microseconds),
            kinds_ms: kinds.map(|&(class, time)| (name(class).to_owned(), milliseconds(time))).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_gpu_is_refused() {
        for name in ["gpu:0", "", "sim:1", "cuda"] {
            let Err(refusal) = Device::open(name) else { panic!("`{name}` was opened") };
            assert!(refusal.text.contains(name) && !refusal.hints.is_empty());
        }
    }
}
