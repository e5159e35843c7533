//! Speed of the CPU engine's operations in fp32, and of its products in bf16 and int8 where the machine has them,
//! on one thread, and a guard against losing it.
//!
//! `cargo bench -p kernels` prints a line per operation and shape, then compares, within this one run, what
//! the operations reach with the peak of multiply-adds of the same core; it fails if one has fallen far
//! behind. `cargo bench -p kernels -- FILTER` measures some; the guard runs in any case.

use std::borrow::Cow;
use std::hint::black_box;
use std::process::ExitCode;

use criterion::{Criterion, Throughput};
use kernels::cpu::CpuOps;
use kernels::model::{Shape, StoredType, Tensor};
use kernels::ops::{Epilogue, LinearRows, Ops};
use kernels::{Batch, EngineError, Precision, Progress};
use pulp::{Arch, Simd, WithSimd};
use rustix::time::{ClockId, clock_gettime};

/// Rows of a product, and tokens of everything else.
const TOKENS: usize = 768;
/// Tokens of a sequence: the mean of a reading frame's translation.
const SEQUENCE_TOKENS: usize = 128;
/// The published sizes that are measured.
const SIZES: [Shape; 3] = [Shape::PUBLISHED[0], Shape::PUBLISHED[2], Shape::PUBLISHED[3]];

/// Least share of the peak that a product has to reach, in percent. Alone on its core it reaches 85 to 95,
/// beside another hardware thread 55 to 75.
const PRODUCT_PERCENT_MIN: f64 = 45.0;
/// Most time that attention and a layer norm may take, in percent of the same layer's products.
const ATTENTION_PERCENT_MAX: f64 = 40.0;
const NORM_PERCENT_MAX: f64 = 4.0;
/// In bf16, at the largest width: least share, in percent, that a product has to reach of the peak of `vdpbf16ps`,
/// and with AMX, whose own peak is sixteen times that of multiply-adds in f32, of the latter.
const DOT_PERCENT_MIN: f64 = 45.0;
const AMX_PERCENT_MIN: f64 = 200.0;
/// In int8, at the largest width: least speed of the products that are integers where the machine has bf16, in
/// percent of theirs in bf16.
const INTEGER_PERCENT_MIN: f64 = 90.0;
/// In fp32 on tiles, at the largest width: least speed of products in percent of theirs in bf16, of which each is six.
const SPLIT_PERCENT_MIN: f64 = 12.0;
/// Rounds of the guard; each measures everything once, and the best of each counts.
const ROUNDS: usize = 40;

/// Everything that one width needs.
struct Bench {
    ops: CpuOps,
    layout: <CpuOps as Ops>::Layout,
    hidden: usize,
    heads: usize,
}

type Activations = <CpuOps as Ops>::Activations;
type Linear = <CpuOps as Ops>::Linear;

impl Bench {
    fn new(Shape { hidden, heads, .. }: Shape, precision: Precision) -> Result<Self, EngineError> {
        let mut ops = CpuOps::new(hidden / heads, 1, precision)?;
        let mut batch = Batch::default();
        for ordinal in 0..TOKENS / SEQUENCE_TOKENS {
            let residues = vec![b'A'; SEQUENCE_TOKENS - 2];
            batch.push(ordinal as u64, &residues, residues.len() as u32);
        }
        let layout = ops.layout(&batch)?;
        Ok(Self { ops, layout, hidden, heads })
    }

    fn linear(&mut self, inputs: usize, outputs: usize) -> Result<Linear, EngineError> {
        let (shape, bias_shape) = ([outputs, inputs], [outputs]);
        let (weight, bias) = (tensor(&shape), tensor(&bias_shape));
        self.ops.linear(&[LinearRows { weight, bias }])
    }

    fn activations(&mut self, width: usize) -> Result<Activations, EngineError> {
        self.ops.activations(TOKENS, width)
    }

    /// What a product's results are written to.
    fn results(&mut self, epilogue: Epilogue, width: usize) -> Result<Activations, EngineError> {
        match epilogue {
            Epilogue::Bias | Epilogue::Gelu => self.ops.activations(TOKENS, width),
            Epilogue::Residual => self.ops.residual(TOKENS, width),
        }
    }

    fn apply(
        &mut self,
        x: &Activations,
        linear: &Linear,
        epilogue: Epilogue,
        out: &mut Activations,
    ) -> Result<(), EngineError> {
        self.ops.apply(&self.layout, x, linear, epilogue, out)
    }

    fn attention(&mut self, qkv: &Activations, out: &mut Activations) -> Result<(), EngineError> {
        self.ops.attention(&self.layout, qkv, self.heads, &Progress::default(), out)
    }
}

/// Small numbers of both signs.
fn tensor(shape: &[usize]) -> Tensor<'_> {
    let len = shape.iter().product::<usize>();
    let bytes = (0..len).flat_map(|i| ((i * 7 % 23) as f32 * 0.01 - 0.11).to_le_bytes()).collect();
    Tensor { stored: StoredType::F32, shape, bytes: Cow::Owned(bytes) }
}

fn flops(inputs: usize, outputs: usize) -> f64 {
    2.0 * (TOKENS * inputs * outputs) as f64
}

/// The precisions of this machine, and what their products are called.
fn precisions() -> impl Iterator<Item = (Precision, &'static str)> {
    [(Precision::Fp32, "product"), (Precision::Bf16, "product in bf16"), (Precision::Int8, "product in int8")]
        .into_iter()
        .filter(|(precision, _)| kernels::cpu::check_precision(*precision).is_ok())
}

fn measure_products(criterion: &mut Criterion, precision: Precision, name: &str) -> Result<(), EngineError> {
    // Query, key and value at once; then what is around GELU.
    let products =
        SIZES.map(|Shape { hidden, .. }| [(hidden, 3 * hidden), (hidden, 4 * hidden), (4 * hidden, hidden)]);
    for (inputs, outputs) in products.into_iter().flatten() {
        let mut bench = Bench::new(SIZES[0], precision)?;
        let linear = bench.linear(inputs, outputs)?;
        let x = bench.activations(inputs)?;
        let mut group = criterion.benchmark_group(name);
        // Elements are floating-point operations.
        group.throughput(Throughput::Elements(flops(inputs, outputs) as u64)).sample_size(10);
        for epilogue in [Epilogue::Bias, Epilogue::Gelu, Epilogue::Residual] {
            let mut out = bench.results(epilogue, outputs)?;
            let id = format!("{inputs}x{outputs} {epilogue:?}");
            group.bench_function(id, |bencher| {
                bencher.iter(|| bench.apply(black_box(&x), &linear, epilogue, &mut out));
            });
        }
    }
    Ok(())
}

fn measure(criterion: &mut Criterion) -> Result<(), EngineError> {
    for (precision, name) in precisions() {
        measure_products(criterion, precision, name)?;
    }
    for size in SIZES {
        let Shape { hidden, heads, .. } = size;
        let mut bench = Bench::new(size, Precision::Fp32)?;
        let (qkv, mut out) = (bench.activations(3 * hidden)?, bench.activations(hidden)?);
        let mut group = criterion.benchmark_group("attention");
        group.throughput(Throughput::Elements(TOKENS as u64)).sample_size(10);
        group.bench_function(format!("{hidden} in {heads} heads"), |bencher| {
            bencher.iter(|| bench.attention(black_box(&qkv), &mut out));
        });
        drop(group);
        let shape = [hidden];
        let norm = bench.ops.norm(&tensor(&shape), &tensor(&shape), 1e-5)?;
        let x = bench.activations(hidden)?;
        let mut group = criterion.benchmark_group("layer norm");
        group.throughput(Throughput::Elements(TOKENS as u64)).sample_size(10);
        group.bench_function(hidden.to_string(), |bencher| {
            bencher.iter(|| bench.ops.layer_norm(&bench.layout, black_box(&x), &norm, &mut out));
        });
    }
    Ok(())
}

/// Independent multiply-adds, as many as hide their latency.
struct Peak(usize);

impl WithSimd for Peak {
    type Output = f64;
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        const CHAINS: usize = 12;
        let (x, y) = (simd.splat_f32s(black_box(0.999)), simd.splat_f32s(black_box(0.001)));
        let mut sums = [y; CHAINS];
        let start = cpu_seconds();
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = simd.mul_add_e_f32s(*sum, x, y);
            }
        }
        let seconds = cpu_seconds() - start;
        for sum in sums {
            black_box(simd.reduce_sum_f32s(sum));
        }
        (2 * CHAINS * S::F32_LANES * self.0) as f64 / seconds
    }
}

/// The peak of `vdpbf16ps`; `None` on processors without it.
fn dot_peak(rounds: usize) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512bf16") && std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has the instructions.
        return Some(unsafe { dot_products(rounds) });
    }
    let _ = rounds;
    None
}

/// As many independent products of pairs in bf16 as hide their latency; returns their operations per second.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn dot_products(rounds: usize) -> f64 {
    use std::arch::x86_64::{_mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
    const CHAINS: usize = 12;
    let x = _mm512_set1_ps(black_box(0.001));
    let x = _mm512_cvtne2ps_pbh(x, x);
    let mut sums = [_mm512_set1_ps(black_box(0.001)); CHAINS];
    let start = cpu_seconds();
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, x, x);
        }
    }
    let seconds = cpu_seconds() - start;
    for sum in sums {
        black_box(_mm512_reduce_add_ps(sum));
    }
    (64 * CHAINS * rounds) as f64 / seconds
}

/// Time that the process has had on a processor: other work on the machine hardly lengthens it.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

/// Seconds of one call.
fn time(call: impl FnOnce() -> Result<(), EngineError>) -> Result<f64, EngineError> {
    let start = cpu_seconds();
    call()?;
    Ok(cpu_seconds() - start)
}

/// Compares the operations of the 8M model's layer with the peak; says what has fallen behind.
fn guard() -> Result<Vec<String>, EngineError> {
    let mut bench = Bench::new(SIZES[0], Precision::Fp32)?;
    let hidden = bench.hidden;
    let shapes = [(hidden, 3 * hidden), (hidden, hidden), (hidden, 4 * hidden), (4 * hidden, hidden)];
    let mut products = Vec::new();
    for (inputs, outputs) in shapes {
        let linear = bench.linear(inputs, outputs)?;
        products.push((linear, bench.activations(inputs)?, bench.activations(outputs)?));
    }
    let (qkv, mut out) = (bench.activations(3 * hidden)?, bench.activations(hidden)?);
    let shape = [hidden];
    let norm = bench.ops.norm(&tensor(&shape), &tensor(&shape), 1e-5)?;
    let x = bench.activations(hidden)?;

    let mut peak = 0.0f64;
    let mut best = [f64::INFINITY; 4];
    let (mut attention, mut normalisation) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..ROUNDS {
        peak = peak.max(Arch::new().dispatch(Peak(200_000)));
        for ((linear, x, out), best) in products.iter_mut().zip(&mut best) {
            *best = best.min(time(|| bench.apply(x, linear, Epilogue::Bias, out))?);
        }
        attention = attention.min(time(|| bench.attention(&qkv, &mut out))?);
        normalisation = normalisation.min(time(|| bench.ops.layer_norm(&bench.layout, &x, &norm, &mut out))?);
    }
    let mut behind = Vec::new();
    println!("\npeak of multiply-adds: {:.1} GFLOP/s", peak / 1e9);
    for ((inputs, outputs), seconds) in shapes.into_iter().zip(best) {
        let percent = 100.0 * flops(inputs, outputs) / seconds / peak;
        println!("product {inputs}x{outputs}: {percent:.0} % of it");
        if percent < PRODUCT_PERCENT_MIN {
            behind.push(format!("product {inputs}x{outputs} below {PRODUCT_PERCENT_MIN} % of the peak"));
        }
    }
    let layer: f64 = best.iter().sum();
    for (name, seconds, most) in
        [("attention", attention, ATTENTION_PERCENT_MAX), ("layer norm", normalisation, NORM_PERCENT_MAX)]
    {
        let percent = 100.0 * seconds / layer;
        println!("{name}: {percent:.1} % of the time of a layer's products");
        if percent > most {
            behind.push(format!("{name} above {most} % of the products' time"));
        }
    }
    Ok(behind)
}

/// The products that int8 has in integers, at the largest width, in one precision, and the best time of each.
struct Products {
    bench: Bench,
    /// Inputs, outputs, what follows.
    kinds: [(usize, usize, Epilogue); 3],
    layers: Vec<(Linear, Activations, Activations)>,
    best: [f64; 3],
}

impl Products {
    fn new(precision: Precision) -> Result<Self, EngineError> {
        let [.., size] = SIZES;
        let mut bench = Bench::new(size, precision)?;
        let (hidden, wide) = (bench.hidden, 4 * bench.hidden);
        // Attention's output, then the feed-forward block.
        let kinds = [
            (hidden, hidden, Epilogue::Residual),
            (hidden, wide, Epilogue::Gelu),
            (wide, hidden, Epilogue::Residual),
        ];
        let mut layers = Vec::new();
        for (inputs, outputs, epilogue) in kinds {
            let linear = bench.linear(inputs, outputs)?;
            layers.push((linear, bench.activations(inputs)?, bench.results(epilogue, outputs)?));
        }
        Ok(Self { bench, kinds, layers, best: [f64::INFINITY; 3] })
    }

    fn round(&mut self) -> Result<(), EngineError> {
        for (((linear, x, out), (_, _, epilogue)), best) in
            self.layers.iter_mut().zip(self.kinds).zip(&mut self.best)
        {
            *best = best.min(time(|| self.bench.apply(x, linear, epilogue, out))?);
        }
        Ok(())
    }
}

/// Compares products in bf16 with the peak of this machine, and those in int8 and in fp32 on tiles with them; says what
/// has fallen behind.
fn guard_rounded() -> Result<Vec<String>, EngineError> {
    let mut behind = Vec::new();
    let Some(instructions) = kernels::cpu::bf16_instructions() else { return Ok(behind) };
    let mut brain = Products::new(Precision::Bf16)?;
    let mut integer = match kernels::cpu::int8_instructions() {
        Some(_) => Some(Products::new(Precision::Int8)?),
        None => None,
    };
    let mut split = match kernels::cpu::fp32_instructions().contains("AMX") {
        true => Some(Products::new(Precision::Fp32)?),
        false => None,
    };
    let (mut peak, mut dot) = (0.0f64, 0.0f64);
    for _ in 0..ROUNDS {
        peak = peak.max(Arch::new().dispatch(Peak(200_000)));
        dot = dot.max(dot_peak(200_000).unwrap_or(0.0));
        brain.round()?;
        for products in [&mut integer, &mut split].into_iter().flatten() {
            products.round()?;
        }
    }
    println!("\npeak in bf16 without tiles: {:.1} GFLOP/s", dot / 1e9);
    // Against a peak rather than the products in f32, which have instructions of their own to gain from.
    let (peak, least, of) = match instructions {
        "AMX" => (peak, AMX_PERCENT_MIN, "of multiply-adds in f32"),
        _ => (dot, DOT_PERCENT_MIN, "in bf16"),
    };
    for ((inputs, outputs, _), seconds) in brain.kinds.into_iter().zip(brain.best) {
        let percent = 100.0 * flops(inputs, outputs) / seconds / peak;
        println!("product in bf16 {inputs}x{outputs}: {percent:.0} % of the peak {of}");
        if percent < least {
            behind.push(format!("product in bf16 {inputs}x{outputs} below {least} % of the peak {of}"));
        }
    }
    let others = [("int8", integer, INTEGER_PERCENT_MIN), ("fp32 on tiles", split, SPLIT_PERCENT_MIN)];
    for (name, products, least) in others {
        let Some(products) = products else { continue };
        for ((kind, of), own) in brain.kinds.into_iter().zip(brain.best).zip(products.best) {
            println!("product in {name} {}x{}: {:.0} % of bf16's speed", kind.0, kind.1, 100.0 * of / own);
        }
        let layer = |products: &Products| products.best.iter().sum::<f64>();
        let percent = 100.0 * layer(&brain) / layer(&products);
        println!("products in {name} of a layer: {percent:.0} % of bf16's speed");
        if percent < least {
            behind.push(format!("products in {name} below {least} % of bf16's speed"));
        }
    }
    Ok(behind)
}

fn main() -> ExitCode {
    let mut criterion = Criterion::default().configure_from_args();
    let behind = measure(&mut criterion).and_then(|()| {
        criterion.final_summary();
        Ok([guard()?, guard_rounded()?].concat())
    });
    match behind {
        Ok(behind) if behind.is_empty() => ExitCode::SUCCESS,
        Ok(behind) => {
            for line in behind {
                eprintln!("operations: {line}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("operations: {error}");
            ExitCode::FAILURE
        }
    }
}
