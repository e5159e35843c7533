//! How fast one core is at this moment: for each line of standard input one line with the GFLOP/s that a product in
//! bf16 (in fp32 where the machine has no bf16) reached within some ten milliseconds, by the clock on the wall: a virtual
//! machine's CPU time is too short when its host takes processors away.
//!
//! `taskset -c 0 cargo run -p kernels --example core_speed`. What runs on the other hardware thread of the core slows
//! AMX to a third, which no load average of a virtual machine shows. benches/cpu_turns.py starts one for each core.

use std::borrow::Cow;
use std::io::BufRead;
use std::time::Instant;

use kernels::cpu::CpuOps;
use kernels::model::{StoredType, Tensor};
use kernels::ops::{Epilogue, LinearRows, Ops};
use kernels::{Batch, Precision};

/// Rows, inputs and outputs of the product: all of it stays in the second-level cache.
const TOKENS: usize = 192;
const WIDTH: usize = 512;
/// Time of a look in seconds.
const LOOK: f64 = 0.01;

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
        let (start, mut products) = (Instant::now(), 0_u32);
        let taken = loop {
            ops.apply(&layout, &x, &linear, Epilogue::Bias, &mut out)?;
            products += 1;
            let taken = start.elapsed().as_secs_f64();
            if taken > LOOK {
                break taken;
            }
        };
        let flops = 2.0 * (TOKENS * WIDTH * WIDTH) as f64;
        println!("{:.1}", flops * f64::from(products) / taken / 1e9);
    }
    Ok(())
}
