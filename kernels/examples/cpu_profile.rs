//! Time of loading and of each class of operations of the CPU engine, and its speed.
//!
//! `cargo run -p kernels --example cpu_profile -- MODEL FASTA [threads=1] [repeats=5] [tokens=2048]
//! [precision=bf16] [tiles=false] [limit=64]`, where MODEL is a Hugging Face folder; without tiles, fp32 is
//! multiply-adds. The dev profile optimises `kernels`, so no
//! release build is needed. Times are the process's CPU time, for each call the least of the repeats: on a shared
//! machine the clock on the wall says little. Each operation runs on the whole batch: the shares by thread
//! (`kernels/src/cpu/shares.rs`) are left out.

use std::path::PathBuf;

use kernels::cpu::CpuOps;
use kernels::encoder::Encoder;
use kernels::model::Tensor;
use kernels::ops::{Epilogue, LinearRows, Ops, PooledRows};
use kernels::{Batch, EngineError, EngineOptions, Model, ModelPath, Pooling, Precision, Progress};
use rustix::time::{ClockId, clock_gettime};

/// Seconds of CPU time that this process has taken.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

const CLASSES: [&str; 8] = [
    "embed",
    "norm",
    "QKV product",
    "attention",
    "out product",
    "fc1 + GELU",
    "fc2 product",
    "final norm, pool",
];

/// Operations that add up their CPU time per class.
struct Timed {
    ops: CpuOps,
    /// Class and least CPU time of every call of one pass, in order.
    calls: Vec<(usize, f64)>,
    next: usize,
    products: usize,
}

impl Timed {
    fn time<T>(&mut self, class: usize, run: impl FnOnce(&mut CpuOps) -> T) -> T {
        let start = cpu_seconds();
        let result = run(&mut self.ops);
        let seconds = cpu_seconds() - start;
        match self.calls.get_mut(self.next) {
            Some((_, least)) => *least = least.min(seconds),
            None => self.calls.push((class, seconds)),
        }
        self.next += 1;
        result
    }
}

impl Ops for Timed {
    type Activations = <CpuOps as Ops>::Activations;
    type Pooled = <CpuOps as Ops>::Pooled;
    type Layout = <CpuOps as Ops>::Layout;
    type Table = <CpuOps as Ops>::Table;
    type Norm = <CpuOps as Ops>::Norm;
    type Linear = <CpuOps as Ops>::Linear;

    fn table(&mut self, values: &Tensor<'_>) -> Result<Self::Table, EngineError> {
        self.ops.table(values)
    }
    fn norm(&mut self, scale: &Tensor<'_>, shift: &Tensor<'_>, eps: f32) -> Result<Self::Norm, EngineError> {
        self.ops.norm(scale, shift, eps)
    }
    fn linear(&mut self, parts: &[LinearRows<'_>]) -> Result<Self::Linear, EngineError> {
        self.ops.linear(parts)
    }
    fn activations(&mut self, tokens: usize, width: usize) -> Result<Self::Activations, EngineError> {
        self.ops.activations(tokens, width)
    }
    fn residual(&mut self, tokens: usize, width: usize) -> Result<Self::Activations, EngineError> {
        self.ops.residual(tokens, width)
    }
    fn layout(&mut self, batch: &Batch) -> Result<Self::Layout, EngineError> {
        self.products = 0;
        self.ops.layout(batch)
    }
    fn embed(
        &mut self,
        layout: &Self::Layout,
        table: &Self::Table,
        token_dropout: bool,
        out: &mut Self::Activations,
    ) -> Result<(), EngineError> {
        self.time(0, |ops| ops.embed(layout, table, token_dropout, out))
    }
    fn layer_norm(
        &mut self,
        layout: &Self::Layout,
        x: &Self::Activations,
        norm: &Self::Norm,
        out: &mut Self::Activations,
    ) -> Result<(), EngineError> {
        self.time(1, |ops| ops.layer_norm(layout, x, norm, out))
    }
    fn final_norm(
        &mut self,
        layout: &Self::Layout,
        x: &Self::Activations,
        norm: &Self::Norm,
        out: &mut Self::Activations,
    ) -> Result<(), EngineError> {
        self.time(7, |ops| ops.final_norm(layout, x, norm, out))
    }
    fn apply(
        &mut self,
        layout: &Self::Layout,
        x: &Self::Activations,
        linear: &Self::Linear,
        epilogue: Epilogue,
        out: &mut Self::Activations,
    ) -> Result<(), EngineError> {
        // A layer's products in turn: queries, keys and values; attention's output; the feed-forward block.
        let class = [2, 4, 5, 6][self.products % 4];
        self.products += 1;
        self.time(class, |ops| ops.apply(layout, x, linear, epilogue, out))
    }
    fn attention(
        &mut self,
        layout: &Self::Layout,
        qkv: &Self::Activations,
        heads: usize,
        progress: &Progress,
        out: &mut Self::Activations,
    ) -> Result<(), EngineError> {
        self.time(3, |ops| ops.attention(layout, qkv, heads, progress, out))
    }
    fn pool(
        &mut self,
        layout: &Self::Layout,
        x: &Self::Activations,
        hidden: usize,
        pooling: Pooling,
    ) -> Result<Self::Pooled, EngineError> {
        self.time(7, |ops| ops.pool(layout, x, hidden, pooling))
    }
    fn wait(&mut self, pooled: Self::Pooled, progress: &Progress) -> Result<PooledRows, EngineError> {
        self.ops.wait(pooled, progress)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut positional = Vec::new();
    let (mut threads, mut repeats, mut tokens_max, mut limit) = (1, 5, 2048, 64);
    let mut tiles = true;
    let mut precision = Precision::Bf16;
    for argument in std::env::args().skip(1) {
        match argument.split_once('=') {
            Some(("threads", value)) => threads = value.parse()?,
            Some(("repeats", value)) => repeats = value.parse()?,
            Some(("tokens", value)) => tokens_max = value.parse()?,
            Some(("limit", value)) => limit = value.parse()?,
            Some(("tiles", value)) => tiles = value.parse()?,
            Some(("precision", "fp32")) => precision = Precision::Fp32,
            Some(("precision", "bf16")) => precision = Precision::Bf16,
            Some(("precision", "int8")) => precision = Precision::Int8,
            _ => positional.push(PathBuf::from(argument)),
        }
    }
    let [model, fasta] = positional.as_slice() else {
        return Err("give a model folder and a FASTA file".into());
    };
    let text = std::fs::read_to_string(fasta)?;
    let sequences: Vec<Vec<u8>> = text
        .split('>')
        .map(|record| record.lines().skip(1).flat_map(str::bytes).collect::<Vec<u8>>())
        .filter(|residues| !residues.is_empty())
        .take(limit)
        .collect();
    let (clock, start) = (std::time::Instant::now(), cpu_seconds());
    let model = Model::open(&ModelPath::Folder(model.clone()))?;
    let config = model.config().clone();
    let new_ops = if tiles { CpuOps::new } else { CpuOps::without_tiles };
    let ops = new_ops(config.head_width(), threads, precision)?;
    let timed = Timed { ops, calls: Vec::new(), next: 0, products: 0 };
    let options = EngineOptions { layer: config.layers, pooling: Pooling::Mean, precision, threads };
    let mut encoder = Encoder::load(timed, &model, options)?;
    println!(
        "loaded in {:.2} s, {:.2} s of CPU time, on {threads} threads",
        clock.elapsed().as_secs_f64(),
        cpu_seconds() - start
    );
    let mut batches = vec![Batch::default()];
    for (ordinal, residues) in (0..).zip(&sequences) {
        if batches
            .last()
            .is_some_and(|last| !last.is_empty() && last.token_count() + residues.len() + 2 > tokens_max)
        {
            batches.push(Batch::default());
        }
        if let Some(last) = batches.last_mut() {
            last.push(ordinal, residues, residues.len() as u32);
        }
    }
    let tokens: usize = batches.iter().map(Batch::token_count).sum();
    let flops: u64 =
        sequences.iter().map(|s| (s.len() as u64 + 2) * config.flops_per_token(s.len() + 2)).sum();
    let mut wall = f64::INFINITY;
    for _ in 0..=repeats {
        encoder.ops_mut().next = 0;
        let clock = std::time::Instant::now();
        for batch in &batches {
            std::hint::black_box(encoder.run(batch, &Progress::default())?);
        }
        wall = wall.min(clock.elapsed().as_secs_f64());
    }
    let mut least = [0.0; CLASSES.len()];
    for (class, seconds) in &encoder.ops().calls {
        least[*class] += seconds;
    }
    let whole: f64 = least.iter().sum();
    println!("{} layers of {}, {tokens} tokens, {} batches", config.layers, config.hidden, batches.len());
    for (name, seconds) in CLASSES.iter().zip(least) {
        let per_token = seconds / tokens as f64 * 1e9 / config.layers as f64;
        println!(
            "{name:18} {:8.2} ms {:5.1} %  {per_token:8.0} ns per token and layer",
            1e3 * seconds,
            100.0 * seconds / whole
        );
    }
    println!(
        "whole {:8.2} ms of CPU time: {:.0} tokens/s and {:.0} GFLOP/s per core; on the wall {:.0} tokens/s, {:.0} GFLOP/s",
        1e3 * whole,
        tokens as f64 / whole,
        flops as f64 / whole / 1e9,
        tokens as f64 / wall,
        flops as f64 / wall / 1e9
    );
    Ok(())
}
