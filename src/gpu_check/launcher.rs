//! Single kernels on the GPU.

use std::collections::HashMap;

use kernels::Precision;
use kernels::cuda::host::bench::Bench;
use kernels::cuda::host::{Arg, CudaError, Gpu};
use kernels::cuda::{Kernel, Launch, Number, ROTARY_HEAD_WIDTHS};

use super::twins::{Argument, Launcher};

/// A GPU that runs one kernel at a time; the kernels for each head width are compiled once.
pub(super) struct OneByOne {
    gpu: Gpu,
    benches: HashMap<usize, Bench>,
}

impl OneByOne {
    pub(super) fn new(gpu: Gpu) -> Self {
        Self { gpu, benches: HashMap::new() }
    }

    fn bench(&mut self, head_width: usize) -> Result<&Bench, CudaError> {
        if !self.benches.contains_key(&head_width) {
            let numbers: Vec<Number> = Number::ALL
                .into_iter()
                .filter(|&number| self.gpu.require(precision(number)).is_ok())
                .collect();
            self.benches.insert(head_width, Bench::open(&self.gpu, &numbers, head_width)?);
        }
        Ok(&self.benches[&head_width])
    }

    fn run(&mut self, kernel: Kernel, launch: Launch, arguments: Vec<Argument<'_>>) -> Result<(), CudaError> {
        // Heads of any width serve kernels other than attention.
        let bench = self.bench(kernel.head_width().unwrap_or(ROTARY_HEAD_WIDTHS[0]))?;
        let mut args = Vec::new();
        // Kept until the kernel is done.
        let mut inputs = Vec::new();
        let mut outputs = Vec::new();
        for argument in arguments {
            args.push(match argument {
                Argument::Read(bytes) => {
                    let memory = bench.upload(&bytes)?;
                    let pointer = memory.pointer();
                    inputs.push(memory);
                    Arg::Pointer(pointer)
                }
                Argument::Write(bytes) => {
                    let memory = bench.upload(bytes)?;
                    let pointer = memory.pointer();
                    outputs.push((memory, bytes));
                    Arg::Pointer(pointer)
                }
                Argument::Int(number) => Arg::Int(number),
                Argument::Long(number) => Arg::Long(number),
                Argument::Float(number) => Arg::Float(number),
            });
        }
        bench.launch(kernel, launch, &args)?;
        for (memory, bytes) in outputs {
            *bytes = bench.download(&memory)?;
        }
        bench.synchronize()
    }
}

fn precision(number: Number) -> Precision {
    match number {
        Number::F32 => Precision::Fp32,
        Number::F16 => Precision::Fp16,
        Number::Bf16 => Precision::Bf16,
    }
}

impl Launcher for OneByOne {
    fn launch(&mut self, kernel: Kernel, launch: Launch, arguments: Vec<Argument<'_>>) -> Result<(), String> {
        self.run(kernel, launch, arguments)
            .map_err(|error| format!("{}: {}", kernel.name(), actors::error_chain(&error)))
    }

    fn supports(&self, number: Number) -> Result<(), String> {
        self.gpu.require(precision(number)).map_err(|error| error.to_string())
    }

    fn attention_units(&self) -> f32 {
        // Before 8.0 nothing is rounded in between, which the twin does.
        if self.gpu.capability().major < 8 { 8.0 } else { 2.0 }
    }
}
