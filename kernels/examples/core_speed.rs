//! How fast one core is at this moment: for each line of standard input one line with the GFLOP/s of CPU time that a
//! product in bf16 (in fp32 where the machine has no bf16) reached within some ten milliseconds.
//!
//! `taskset -c 0 cargo run -p kernels --example core_speed`. What runs on the other hardware thread of the core slows
//! AMX to a third, which no load average of a virtual machine shows. benches/cpu_turns.py starts one for each core.

use std::borrow::Cow;
use std::io::BufRead;

use kernels::cpu::CpuOps;
use kernels::model::{StoredType, Tensor};
use kernels::ops::{Epilogue, LinearRows, Ops};
use kernels::{Batch, Precision};
use rustix::time::{ClockId, clock_gettime};

/// Rows, inputs and outputs of the product: all of it stays in the second-level cache.
const TOKENS: usize = 192;
const WIDTH: usize = 512;
/// CPU time of a look in seconds.
const LOOK: f64 = 0.01;

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let precision = match kernels::cpu::bf16_instructions() {
        Some(_) => Precision::Bf16,
        None => Precision::Fp32,
    };
    let mut ops = CpuOps::new(32, 1, precision)?;
    let mut batch = Batch::default();
    let residues = vec![b'A'; TOKENS - 2];
    batch.push(0, &residues, residues.len() as u32);
    let layout = ops.layout(&batch)?;
    let ones = |numbers: usize| Cow::Owned(1.0_f32.to_le_bytes().repeat(numbers));
    let weight = Tensor { stored: StoredType::F32, shape: &[WIDTH, WIDTH], bytes: ones(WIDTH * WIDTH) };
    let bias = Tensor { stored: StoredType::F32, shape: &[WIDTH], bytes: ones(WIDTH) };
    let linear = ops.linear(&[LinearRows { weight, bias }])?;
    let x = ops.activations(TOKENS, WIDTH)?;
    let mut out = ops.activations(TOKENS, WIDTH)?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let (start, mut products) = (cpu_seconds(), 0_u32);
        let taken = loop {
            ops.apply(&layout, &x, &linear, Epilogue::Bias, &mut out)?;
            products += 1;
            let taken = cpu_seconds() - start;
            if taken > LOOK {
                break taken;
            }
        };
        let flops = 2.0 * (TOKENS * WIDTH * WIDTH) as f64;
        println!("{:.1}", flops * f64::from(products) / taken / 1e9);
    }
    Ok(())
}
