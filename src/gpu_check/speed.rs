//! The speed table: each published size with seeded weights, on sequences of several lengths.

use std::path::Path;
use std::time::{Duration, Instant};

use kernels::model::Shape;
use kernels::{Batch, Embeddings, Engine, Model, ModelConfig, ModelPath, Pooling, Precision, Progress};

use super::device::{Device, KernelTimes};
use super::flow::stream;
use super::golden::{SEED, precision_name, words};
use super::report::{Cell, Event, Load, check, tell};
use super::sequences::{Lengths, Workload};
use super::watch::Watch;
use super::weights::{self, Stored};

/// What to measure, and for how long.
pub(super) struct Plan {
    pub(super) lengths: Vec<Lengths>,
    pub(super) precision: Precision,
    /// Of each cell, the warm-up before it apart.
    pub(super) duration: Duration,
    /// Tokens of a batch; `None`: as a run of its own would choose.
    pub(super) token_budget: Option<u32>,
    /// Rows, columns and depth of the products that the device's own speed is measured by.
    pub(super) product_size: usize,
}

/// Different batches of a cell: more than any cache holds, few enough to be made quickly.
const BATCHES: usize = 4;

/// As many for the lengths of real proteins, so that a GPU's batches hold all 1,000 of them.
const BATCHES_UNIPROT: usize = 16;

/// Dense 16-bit products with 32-bit sums, TFLOP/s as NVIDIA publishes them, by a part of the GPU's name.
/// The first that fits counts.
const NOMINAL_TFLOPS: [(&str, f64); 27] = [
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("H200 NVL", 835.0),
    ("H200", 989.0),
    ("GH200", 989.0),
    ("H800 PCIe", 756.0),
    ("H800", 989.0),
    ("H20", 148.0),
    ("GB200", 2_500.0),
    ("B200", 2_250.0),
    ("B100", 1_750.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("A30", 165.0),
    ("A40", 149.7),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("RTX A6000", 154.8),
    ("RTX 6000 Ada", 364.2),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
    ("V100", 125.0),
    ("T4", 65.0),
];

fn nominal_tflops(gpu: &str, precision: Precision) -> Option<f64> {
    // In fp32 no tensor core takes part: another peak, of no interest here.
    (precision != Precision::Fp32)
        .then(|| NOMINAL_TFLOPS.iter().find(|(part, _)| gpu.contains(part)).map(|&(_, tflops)| tflops))
        .flatten()
}

/// Operations of the network for all sequences of `batch`, in 10¹².
fn teraflops(config: &ModelConfig, batch: &Batch) -> f64 {
    let tokens = batch.cu_seqlens.windows(2).map(|limits| (limits[1] - limits[0]) as usize);
    tokens.map(|tokens| tokens as f64 * config.flops_per_token(tokens) as f64).sum::<f64>() / 1e12
}

/// Measures one size; each cell is a check, too: it fails if the engine does.
///
/// `peers`: a folder that keeps weights, sequences and embeddings for the comparison with others.
pub(super) fn speed(device: &Device, shape: Shape, plan: &Plan, scratch: &Path, peers: Option<&Path>) {
    let folder = peers.unwrap_or(scratch).join(shape.name);
    let mut ready = None;
    check(&format!("speed {}: load", shape.name), || {
        let product_peak_tflops = device.product_peak(plan.precision, plan.product_size)?;
        let began = Instant::now();
        // Halves even where they are widened again: both sides of a comparison read the same file.
        let stored = if plan.precision == Precision::Fp32 { Stored::F32 } else { Stored::F16 };
        weights::write(&folder, shape, SEED, stored)
            .map_err(|error| format!("failed to write `{}`: {error}", folder.display()))?;
        let generate_s = began.elapsed().as_secs_f64();

        // Twice: what the first start compiles and times is kept for all later ones.
        let mut cold_first_batch_s = None;
        let (engine, config, token_budget, load_s, first_batch_s) = loop {
            let began = Instant::now();
            let model = Model::open(&ModelPath::Folder(folder.clone()))
                .map_err(|error| actors::error_chain(&error))?;
            let mut engine = device.load(&model, Pooling::Mean, plan.precision).map_err(words)?;
            let load_s = began.elapsed().as_secs_f64();
            let fits = device.token_budget(model.config(), &*engine);
            let token_budget = plan.token_budget.unwrap_or(fits);
            let first = Workload::new(Lengths::Equal(102), SEED, token_budget, 1);
            engine.run(&first.batches[0], &Progress::default()).map_err(words)?;
            let first_batch_s = began.elapsed().as_secs_f64();
            if cold_first_batch_s.is_some() {
                break (engine, model.config().clone(), token_budget, load_s, first_batch_s);
            }
            cold_first_batch_s = Some(first_batch_s);
        };
        let cold_first_batch_s = cold_first_batch_s.unwrap_or(first_batch_s);

        tell(&Event::Load(Load {
            size: shape.name.to_owned(),
            engine: engine.description().name.clone(),
            precision: precision_name(plan.precision).to_owned(),
            parameters: config.parameters(),
            weights_bytes: engine.description().weights_bytes,
            token_budget,
            generate_s,
            load_s,
            first_batch_s,
            cold_first_batch_s,
            graphs: engine.graphs().map(|graphs| graphs.used),
            graph_ratio: engine.graphs().and_then(|graphs| graphs.ratio),
            product_size: plan.product_size,
            product_peak_tflops,
        }));
        ready = Some((engine, config, token_budget, product_peak_tflops));
        Ok(format!("first batch {first_batch_s:.2} s after the call that opens the weights"))
    });
    if let Some((mut engine, config, token_budget, products)) = ready {
        let watch = Watch::start(device.uuid());
        for &lengths in &plan.lengths {
            check(&format!("speed {} {lengths}", shape.name), || {
                let seed = SEED ^ (shape.hidden as u64) << 32;
                let batches = match lengths {
                    Lengths::Equal(_) => BATCHES,
                    Lengths::Uniprot => BATCHES_UNIPROT,
                };
                let workload = Workload::new(lengths, seed, token_budget, batches);
                let (mut cell, total) = measure(&mut *engine, &config, &workload, plan.duration, &watch)?;
                cell.size = shape.name.to_owned();
                cell.lengths = lengths.to_string();
                cell.share_of_nominal = device
                    .gpu()
                    .and_then(|gpu| nominal_tflops(gpu.name(), plan.precision))
                    .map(|peak| cell.tflops / peak);
                cell.share_of_products = products.map(|peak| cell.tflops / peak);
                cell.memory_peak_bytes = cell.memory_peak_bytes.or_else(|| device.memory_used_bytes());
                let mut times = KernelTimes::default();
                if device.gpu().is_some() {
                    check(&format!("speed {} {lengths}: time by kind of kernel", shape.name), || {
                        times = engine.kernel_times(workload.full_batches()[0]).map_err(words)?;
                        Ok(format!("{:.2} ms a batch", times.total_ms))
                    });
                }
                if cell.busy_percent.is_none() && times.total_ms > 0.0 {
                    // Without a management library: the share of the time that kernels alone would take.
                    let busy_s = times.total_ms / 1e3 * cell.batches as f64;
                    cell.busy_percent = Some((100.0 * busy_s / cell.seconds).min(100.0));
                }
                cell.kernels_ms = times.kinds_ms;
                let detail = format!("{} batches, {total} tokens in {:.1} s", cell.batches, cell.seconds);
                tell(&Event::Cell(cell));
                if peers.is_some() {
                    keep(&mut *engine, &workload, &folder, lengths)?;
                }
                Ok(detail)
            });
        }
    }
    if peers.is_none() {
        // 3B takes 6 GB: no two sizes need to be there at once.
        let _ = std::fs::remove_dir_all(&folder);
    }
}

/// Sustained speed over the workload's full batches, and the tokens computed.
fn measure(
    engine: &mut dyn Engine,
    config: &ModelConfig,
    workload: &Workload,
    duration: Duration,
    watch: &Watch,
) -> Result<(Cell, u64), String> {
    let batches = workload.full_batches();
    // Twice each, so that plans are chosen, graphs captured and clocks up, and for a third of the time at least.
    run_for(engine, &batches, duration / 3, 2 * batches.len())?;
    watch.begin();
    let began = Instant::now();
    let runs = run_for(engine, &batches, duration, 1)?;
    let seconds = began.elapsed().as_secs_f64();
    let seen = watch.seen();

    let of = |number: &dyn Fn(&Batch) -> f64| -> f64 {
        (0..runs).map(|run| number(batches[run % batches.len()])).sum::<f64>()
    };
    let tokens = of(&|batch| batch.token_count() as f64);
    let cell = Cell {
        batches: runs as u64,
        tokens_per_batch: tokens / runs as f64,
        seconds,
        tokens_per_s: tokens / seconds,
        sequences_per_s: of(&|batch| batch.len() as f64) / seconds,
        tflops: of(&|batch| teraflops(config, batch)) / seconds,
        busy_percent: seen.busy_percent,
        clock_mhz: seen.clock_mhz,
        power_w: seen.power_w,
        slowed_by: seen.slowed_by,
        memory_peak_bytes: seen.memory_peak_bytes,
        ..Cell::default()
    };
    Ok((cell, tokens as u64))
}

/// Runs batches in turn until the time is over and at least so many are done; returns how many.
fn run_for(
    engine: &mut dyn Engine,
    batches: &[&Batch],
    duration: Duration,
    runs_min: usize,
) -> Result<usize, String> {
    let began = Instant::now();
    let (mut begun, mut done) = (0, 0);
    let next = || {
        let goes_on = begun < runs_min || began.elapsed() < duration;
        let batch = goes_on.then(|| batches[begun % batches.len()]);
        begun += 1;
        batch
    };
    stream(engine, next, |_, Embeddings { values, .. }| {
        std::hint::black_box(values);
        done += 1;
        Ok(())
    })
    .map_err(words)?;
    Ok(done)
}

/// Writes the sequences and their embeddings beside the weights.
fn keep(engine: &mut dyn Engine, workload: &Workload, folder: &Path, lengths: Lengths) -> Result<(), String> {
    let hidden = engine.description().hidden;
    let mut values = vec![0.0f32; workload.sequences.len() * hidden];
    let mut left = workload.batches.iter();
    stream(
        engine,
        || left.next(),
        |batch, embeddings| {
            for (&ordinal, row) in batch.ordinals.iter().zip(embeddings.values.chunks_exact(hidden)) {
                values[ordinal as usize * hidden..][..hidden].copy_from_slice(row);
            }
            Ok(())
        },
    )
    .map_err(words)?;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let files = [
        (format!("{lengths}.fasta"), workload.fasta().into_bytes()),
        // [sequences, hidden], little-endian f32.
        (format!("{lengths}.f32"), bytes),
    ];
    for (name, bytes) in files {
        let path = folder.join(name);
        std::fs::write(&path, bytes)
            .map_err(|error| format!("failed to write `{}`: {error}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_that_of_the_gpu_named() {
        for (gpu, expected) in [
            ("NVIDIA H100 80GB HBM3", Some(989.0)),
            ("NVIDIA H100 PCIe", Some(756.0)),
            ("NVIDIA H200", Some(989.0)),
            ("NVIDIA H20", Some(148.0)),
            ("NVIDIA GH200 480GB", Some(989.0)),
            ("NVIDIA A100-SXM4-80GB", Some(312.0)),
            ("NVIDIA A10G", Some(70.0)),
            ("NVIDIA L40S", Some(362.0)),
            ("NVIDIA L4", Some(121.0)),
            ("NVIDIA GeForce RTX 4090", Some(165.2)),
            ("Tesla T4", Some(65.0)),
            ("Graphics Device", None),
        ] {
            assert_eq!(nominal_tflops(gpu, Precision::Fp16), expected, "{gpu}");
        }
        assert_eq!(nominal_tflops("NVIDIA H100 80GB HBM3", Precision::Fp32), None);
    }

    #[test]
    fn operations_are_those_of_the_design() {
        // 3B: 5.709 GFLOP per token at 128 tokens.
        let config = Shape::published("3B").unwrap().config();
        let workload = Workload::new(Lengths::Equal(126), 1, 1_280, 1);
        let per_token = teraflops(&config, &workload.batches[0]) * 1e12 / 1_280.0;
        assert_eq!((per_token / 1e6) as u64, 5_709);
    }
}
