//! Fill and speed of packing.
//!
//! `cargo bench --bench packing -- [FASTA …] [budget=16384] [window=2000] [repeats=5]`; without a FASTA,
//! the demo proteins. Speed is the median of the repeats.

use std::error::Error;
use std::time::Instant;

use actors::fasta::{RecordStream, Source};
use actors::packing::{Fill, PackingPlan, pack};
use actors::segment::{PreparedSegment, SegmentCutter, SegmentLimits};

fn main() -> Result<(), Box<dyn Error>> {
    let mut plan = PackingPlan { token_budget: 16_384, window_sequences: 2000 };
    let mut repeats = 5;
    let mut files = Vec::new();
    // `cargo bench` adds `--bench`.
    for argument in std::env::args().skip(1).filter(|argument| argument != "--bench") {
        match argument.split_once('=') {
            Some(("budget", value)) => plan.token_budget = value.parse()?,
            Some(("window", value)) => plan.window_sequences = value.parse()?,
            Some(("repeats", value)) => repeats = value.parse()?,
            _ => files.push(argument),
        }
    }
    if files.is_empty() {
        files.push(format!("{}/config/demo/proteins.fasta", env!("CARGO_MANIFEST_DIR")));
    }
    for file in files {
        let segments = token_counts(&file)?;
        let mut seconds = Vec::new();
        let mut fill = Fill::default();
        for _ in 0..repeats {
            let began = Instant::now();
            fill = Fill::default();
            for counts in &segments {
                fill.add_all(&pack(counts, plan), counts, plan.token_budget);
            }
            seconds.push(began.elapsed().as_secs_f64());
        }
        seconds.sort_by(f64::total_cmp);
        let sequences: usize = segments.iter().map(Vec::len).sum();
        println!(
            "{file}: {sequences} sequences in {} segments, {} batches of {} tokens, fill {:.3} %, padding avoided {:.1} %, {:.0} sequences/s",
            segments.len(),
            fill.batches,
            plan.token_budget,
            100.0 * fill.mean(),
            100.0 * fill.padding_avoided(),
            sequences as f64 / seconds[seconds.len() / 2]
        );
    }
    Ok(())
}

/// Token counts of the distinct sequences of each segment, as a run has them.
fn token_counts(file: &str) -> Result<Vec<Vec<u32>>, Box<dyn Error>> {
    let job =
        format!("input.fasta = {file:?}\noutput.directory = \"unused\"\ninput.duplicate_ids = \"keep\"\n");
    let path = std::env::current_dir()?.join("packing-bench.toml");
    let job = config::from_text(&job, &path, &[], &config::Surroundings::of_process()?)?;
    let stream = RecordStream::open(&job.input, &[Source::file(file)])?;
    let limits = SegmentLimits::new(job.output.segment_sequences, 320, kernels::Pooling::Mean);
    let mut cutter = SegmentCutter::new(stream, limits);
    let mut segments = Vec::new();
    while let Some(segment) = cutter.next_segment(&|| false)? {
        let prepared = PreparedSegment::new(segment);
        segments.push(prepared.token_counts());
    }
    Ok(segments)
}
