//! The device that is checked.

use kernels::cpu::{self, CpuEngine};
use kernels::{Batch, Engine, EngineError, EngineOptions, Model, ModelConfig, Pooling, Precision};

/// An opened device.
pub(super) enum Device {
    /// No GPU: the checks themselves are tried on it.
    Cpu { threads: usize },
}

impl Device {
    /// Opens the device of this name.
    ///
    /// # Errors
    /// What is missing, and what can be done.
    pub(super) fn open(name: &str) -> Result<Self, Refusal> {
        match name {
            "cpu" => Ok(Self::Cpu { threads: std::thread::available_parallelism().map_or(1, usize::from) }),
            _ => Err(Refusal { text: format!("device `{name}` cannot be used"), hints: Vec::new() }),
        }
    }

    /// As in `devices.use`.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Cpu { .. } => "cpu".to_owned(),
        }
    }

    /// What it is, line by line.
    pub(super) fn facts(&self) -> Vec<(String, String)> {
        match self {
            Self::Cpu { threads } => {
                let text = format!("the CPU ({}, {threads} threads): no GPU is checked", cpu::instructions());
                vec![("device".to_owned(), text)]
            }
        }
    }

    /// # Errors
    /// Why not.
    pub(super) fn supports(&self, precision: Precision) -> Result<(), String> {
        match (self, precision) {
            (Self::Cpu { .. }, Precision::Fp32) => Ok(()),
            (Self::Cpu { .. }, Precision::Fp16 | Precision::Bf16) => {
                Err("the CPU engine computes in fp32 only".to_owned())
            }
        }
    }

    pub(super) fn load(
        &self,
        model: &Model,
        pooling: Pooling,
        precision: Precision,
    ) -> Result<Box<dyn Engine>, EngineError> {
        let options = |threads| EngineOptions { layer: model.config().layers, pooling, precision, threads };
        match self {
            Self::Cpu { threads } => Ok(Box::new(CpuEngine::load(model, options(*threads))?)),
        }
    }

    /// Tokens of a batch as a run would choose them.
    pub(super) fn token_budget(&self, config: &ModelConfig, engine: &dyn Engine) -> u32 {
        let suits = match self {
            Self::Cpu { threads } => cpu::token_budget_auto(config, *threads),
        };
        engine.description().token_budget.map_or(suits, |fits| fits.min(suits))
    }

    /// The GPU as the driver's management library knows it.
    pub(super) fn uuid(&self) -> Option<String> {
        match self {
            Self::Cpu { .. } => None,
        }
    }

    pub(super) fn gpu_name(&self) -> Option<&str> {
        match self {
            Self::Cpu { .. } => None,
        }
    }

    /// The device's own speed in products of 8192³; `None` where that says nothing.
    ///
    /// # Errors
    /// If the device fails.
    pub(super) fn product_peak_tflops(&self, _precision: Precision) -> Result<Option<f64>, String> {
        match self {
            Self::Cpu { .. } => Ok(None),
        }
    }

    /// Milliseconds of `batch` by kind of kernel; empty where they cannot be told apart.
    ///
    /// # Errors
    /// If the device fails.
    pub(super) fn kernel_times(
        &self,
        _engine: &mut dyn Engine,
        _batch: &Batch,
    ) -> Result<Vec<(String, f64)>, String> {
        match self {
            Self::Cpu { .. } => Ok(Vec::new()),
        }
    }
}

/// Why a device cannot be opened.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) text: String,
    pub(super) hints: Vec<String>,
}
