//! The command `plan`: what a job would do, from its input and the model's shape alone.

use actors::bounds::SEGMENTS_OPEN_MAX;
use actors::fasta::{RecordStream, Survey};
use actors::packing::{Fill, pack};
use actors::segment::{PreparedSegment, SegmentCutter};
use config::Job;
use kernels::{Pooling, Precision};
use serde::Serialize;

use crate::cli::PlanArguments;
use crate::failure::{Exit, Failure};
use crate::preparation::{self, Compute};
use crate::progress::{Display, grouped};

/// What a job would do.
#[derive(Serialize)]
struct Plan {
    survey: Survey,
    model: PlannedModel,
    devices: Vec<String>,
    precision: &'static str,
    token_budget: u32,
    /// Records whose sequence is computed: equal ones within a segment count once.
    sequences_computed: u64,
    segments: u64,
    fill: Fill,
    fill_mean: f64,
    padding_avoided: f64,
    memory: Memory,
    /// Multiplications and additions of the whole job, each counted as one.
    operations: Option<f64>,
    output_bytes: u64,
}

#[derive(Serialize)]
struct PlannedModel {
    source: String,
    layers: usize,
    hidden: usize,
    parameters: Option<u64>,
}

/// Estimates, bytes.
#[derive(Serialize)]
struct Memory {
    worker_weights: u64,
    worker_activations: u64,
    orchestrator_results: u64,
}

pub(crate) fn plan(arguments: &PlanArguments) -> Result<Exit, Failure> {
    let job = config::load(&arguments.job.job, &arguments.job.overrides)?;
    if arguments.print_job {
        let text = job.to_toml().map_err(|error| Failure::because(Exit::Failed, &error))?;
        crate::stdout::print(&text)?;
        return Ok(Exit::Done);
    }
    let compute = preparation::compute(&job, false)?;
    for note in &compute.notes {
        crate::stderr::say(format_args!("warning: {note}"));
    }
    let scratch = scratch_folder()?;
    let plan = make(&job, compute, &scratch.0)?;
    if arguments.json {
        let text =
            serde_json::to_string_pretty(&plan).map_err(|error| Failure::because(Exit::Failed, &error))?;
        crate::stdout::print(&format!("{text}\n"))?;
    } else {
        crate::stdout::print(&describe(&plan))?;
    }
    Ok(Exit::Done)
}

/// A folder of this process, deleted with it.
struct Scratch(std::path::PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is in the system's folder for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn scratch_folder() -> Result<Scratch, Failure> {
    let path = std::env::temp_dir().join(format!("virnucpro-orch-plan-{}", std::process::id()));
    std::fs::create_dir_all(&path).map_err(|error| {
        Failure::new(Exit::Failed, format!("failed to create `{}`: {error}", path.display()))
    })?;
    Ok(Scratch(path))
}

fn make(job: &Job, compute: Compute, scratch: &std::path::Path) -> Result<Plan, Failure> {
    let bar = Display::choose(&job.telemetry).is_ok_and(Display::has_bar);
    let sources = preparation::sources(job, &scratch.join("stdin.fasta"), false, bar, &|_| ())?;
    let row_residues_max = compute.part_schema(job).residues_max();
    let survey = preparation::survey_input(job, &sources, row_residues_max, scratch, bar, &|_, _| ())?;
    let Compute { model, devices, pooling, packing, limits, precision, .. } = compute;

    let mut fill = Fill::default();
    let (mut segments, mut sequences_computed, mut rows, mut rows_open) = (0, 0, 0, 0);
    let mut operations = 0.0;
    let mut batch_tokens_max = 0;
    let stream = RecordStream::open(&job.input, &sources)?.with_row_residues_max(row_residues_max);
    let mut cutter = SegmentCutter::new(stream, limits);
    while let Some(segment) = cutter.next_segment(&|| false)? {
        let prepared = PreparedSegment::new(segment);
        let token_counts = prepared.token_counts();
        let batches = pack(&token_counts, packing);
        fill.add_all(&batches, &token_counts, packing.token_budget);
        let tokens =
            |batch: &Vec<u32>| batch.iter().map(|&s| u64::from(token_counts[s as usize])).sum::<u64>();
        batch_tokens_max = batches.iter().map(tokens).max().unwrap_or(0).max(batch_tokens_max);
        if let Some(config) = model.config() {
            let of = |&tokens: &u32| f64::from(tokens) * config.flops_per_token(tokens as usize) as f64;
            operations += token_counts.iter().map(of).sum::<f64>();
        }
        let segment_rows: u64 = match pooling {
            Pooling::None => {
                prepared.segment.records.iter().map(|record| u64::from(record.pooled_residues)).sum()
            }
            Pooling::Mean | Pooling::Bos | Pooling::Max => prepared.segment.records.len() as u64,
        };
        rows += segment_rows;
        rows_open = rows_open.max(segment_rows);
        segments += 1;
        sequences_computed += prepared.sequence_count() as u64;
    }
    let float_bytes = match job.output.float {
        config::Float::F32 => 4,
        config::Float::F16 => 2,
    };
    let config = model.config();
    // Quarters of a byte per weight, and bytes per number of an activation.
    let (weight_quarters, activation_bytes) = match precision {
        Precision::Fp32 => (16, 4),
        Precision::Fp16 | Precision::Bf16 => (8, 2),
        // Where the processor has bf16, activations and queries', keys' and values' weights, a quarter of all, are
        // in that.
        Precision::Int8 if kernels::cpu::bf16_instructions().is_some() => (5, 2),
        Precision::Int8 => (4, 4),
    };
    Ok(Plan {
        memory: Memory {
            worker_weights: config.map_or(0, |config| weight_quarters * config.parameters() / 4),
            worker_activations: config.map_or(0, |config| {
                kernels::cpu::bytes_per_token(config) * batch_tokens_max / 4 * activation_bytes
            }),
            orchestrator_results: rows_open
                * model.hidden as u64
                * 4
                * SEGMENTS_OPEN_MAX.min(segments) as u64,
        },
        operations: config.map(|_| operations),
        model: PlannedModel {
            parameters: config.map(kernels::ModelConfig::parameters),
            source: model.source.clone(),
            layers: model.layers,
            hidden: model.hidden,
        },
        devices: devices.into_iter().map(|device| device.name).collect(),
        precision: crate::identity::precision(precision),
        token_budget: packing.token_budget,
        sequences_computed,
        segments: segments as u64,
        fill_mean: fill.mean(),
        padding_avoided: fill.padding_avoided(),
        fill,
        output_bytes: rows * model.hidden as u64 * float_bytes,
        survey,
    })
}

fn describe(plan: &Plan) -> String {
    let mut lines = String::new();
    let mut line = |name: &str, text: String| lines += &format!("{name:<12} {text}\n");
    let Survey { files, counts, longest, lengths, first_rejected, .. } = &plan.survey;
    for file in files {
        line("input", format!("{} ({} bytes)", file.path, grouped(file.bytes)));
    }
    line(
        "records",
        format!(
            "{}, {} residues, {} rejected, {} equal to another of their segment",
            grouped(counts.records),
            grouped(counts.residues),
            grouped(counts.rejected),
            grouped(counts.accepted() - plan.sequences_computed)
        ),
    );
    for rejected in first_rejected {
        line(
            "  rejected",
            format!(
                "{}:{} `{}`: {}",
                rejected.file,
                rejected.line,
                actors::shown(&rejected.id),
                rejected.reason
            ),
        );
    }
    if let Some(longest) = longest {
        line("longest", format!("{} residues (`{}`)", grouped(longest.residues), actors::shown(&longest.id)));
    }
    line("lengths", String::new());
    let most = lengths.bins.iter().map(|bin| bin.sequences).max().unwrap_or(1).max(1);
    for bin in &lengths.bins {
        let bar = "#".repeat((bin.sequences * 40).div_ceil(most) as usize);
        let range = format!("{:>6}-{:<6}", bin.residues_min, bin.residues_max);
        line(&range, format!("{:>10}  {bar}", grouped(bin.sequences)));
    }
    let model = &plan.model;
    let parameters = model.parameters.map_or(String::new(), |p| format!(", {} parameters", grouped(p)));
    line("model", format!("{}: {} layers, width {}{parameters}", model.source, model.layers, model.hidden));
    line("devices", format!("{} in {}", plan.devices.join(", "), plan.precision));
    line(
        "batches",
        format!(
            "{} of at most {} tokens, {:.2} % full, {:.1} % padding avoided",
            grouped(plan.fill.batches),
            grouped(plan.token_budget.into()),
            100.0 * plan.fill_mean,
            100.0 * plan.padding_avoided
        ),
    );
    if let Some(operations) = plan.operations {
        line("work", format!("{:.3} TFLOP: {:.0} s at 100 GFLOP/s", operations / 1e12, operations / 1e11));
    }
    let mebibytes = |bytes: u64| grouped(bytes.div_ceil(1 << 20));
    line(
        "memory",
        format!(
            "per worker {} MiB weights + {} MiB activations; results in assembly up to {} MiB",
            mebibytes(plan.memory.worker_weights),
            mebibytes(plan.memory.worker_activations),
            mebibytes(plan.memory.orchestrator_results)
        ),
    );
    let parts = grouped(plan.segments.max(1));
    line(
        "output",
        format!("{parts} parts, {} MiB of numbers before compression", mebibytes(plan.output_bytes)),
    );
    lines
}
