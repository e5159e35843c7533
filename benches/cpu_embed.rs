//! Residues per second of the CPU engine.
//!
//! `cargo bench --bench cpu_embed -- MODEL FASTA [threads=2] [repeats=5] [budgets=512,1024,…]
//! [precisions=fp32,bf16,int8]`, where MODEL is a Hugging Face folder. One line per precision and token budget: the
//! best of the repeats, since other work on the machine only ever slows it. With one precision and one budget the
//! last line is `{"compute_s": …}`, the time without loading.
//!
//! With `passes=stdin`, one precision and one budget it says `READY {}` once loaded, and then computes all batches once for
//! each line `run` that it reads and says `DONE {"s": …, "cpu_s": …}`: for benches/cpu_turns.py, which lets programs take turns.

use std::io::{BufRead, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use kernels::cpu::CpuEngine;
use kernels::{Batch, Engine, EngineError, EngineOptions, Model, ModelPath, Pooling, Precision, Progress};
use rustix::time::{ClockId, clock_gettime};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cpu_embed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut positional = Vec::new();
    let (mut threads, mut repeats, mut by_line) = (2, 5, false);
    let mut budgets = vec![256, 512, 1024, 2048, 4096, 8192, 16384];
    let mut precisions = vec![Precision::Fp32];
    // `cargo bench` adds `--bench`.
    for argument in std::env::args().skip(1).filter(|argument| argument != "--bench") {
        match argument.split_once('=') {
            Some(("threads", value)) => threads = value.parse()?,
            Some(("repeats", value)) => repeats = value.parse()?,
            Some(("passes", "stdin")) => by_line = true,
            Some(("budgets", value)) => {
                budgets = value.split(',').map(str::parse).collect::<Result<_, _>>()?
            }
            Some(("precisions", value)) => {
                precisions = value
                    .split(',')
                    .map(|name| match name {
                        "fp32" => Ok(Precision::Fp32),
                        "bf16" => Ok(Precision::Bf16),
                        "int8" => Ok(Precision::Int8),
                        _ => Err(format!("precision `{name}` is none of fp32, bf16 and int8")),
                    })
                    .collect::<Result<_, _>>()?;
            }
            _ => positional.push(PathBuf::from(argument)),
        }
    }
    let [model, fasta] = positional.as_slice() else {
        eprintln!("skipped: give a model folder and a FASTA file after `--`");
        return Ok(());
    };
    let sequences = read(fasta)?;
    let model = Model::open(&ModelPath::Folder(model.clone()))?;
    let config = model.config().clone();
    let mut engines = Vec::new();
    for precision in precisions {
        let options = EngineOptions { layer: config.layers, pooling: Pooling::Mean, precision, threads };
        engines.push(CpuEngine::load(&model, options)?);
    }
    if by_line {
        let ([engine], [budget]) = (&mut engines[..], &budgets[..]) else {
            return Err("passes=stdin takes one precision and one budget".into());
        };
        return passes(engine, &pack(&sequences, *budget));
    }
    let residues: usize = sequences.iter().map(Vec::len).sum();
    let tokens = residues + 2 * sequences.len();
    let flops: u64 =
        sequences.iter().map(|s| (s.len() as u64 + 2) * config.flops_per_token(s.len() + 2)).sum();
    println!(
        "{} layers of {}, {}: {} sequences, {tokens} tokens, best of {repeats}",
        config.layers,
        config.hidden,
        fasta.display(),
        sequences.len()
    );
    let plan: Vec<_> = budgets.iter().map(|&budget| (budget, pack(&sequences, budget))).collect();
    let mut best = vec![vec![f64::INFINITY; plan.len()]; engines.len()];
    // Budgets and precisions take turns, so that a busy spell of the machine does not hit one of them alone.
    for _ in 0..repeats {
        for (index, (_, batches)) in plan.iter().enumerate() {
            for (engine, best) in engines.iter_mut().zip(&mut best) {
                let start = Instant::now();
                for batch in batches {
                    std::hint::black_box(engine.run(batch, &Progress::default())?);
                }
                best[index] = best[index].min(start.elapsed().as_secs_f64());
            }
        }
    }
    for (engine, best) in engines.iter().zip(&best) {
        println!("{}", engine.description().name);
        for ((budget, batches), seconds) in plan.iter().zip(best) {
            println!(
                "budget {budget:6}  {:4} batches  {:9.0} residues/s  {:9.0} tokens/s  {:7.1} GFLOP/s",
                batches.len(),
                residues as f64 / seconds,
                tokens as f64 / seconds,
                flops as f64 / seconds / 1e9
            );
        }
    }
    // For programs that time this one beside others.
    if let [[seconds]] = best.iter().map(Vec::as_slice).collect::<Vec<_>>()[..] {
        println!("{{\"compute_s\": {seconds}}}");
    }
    Ok(())
}

/// Seconds of CPU time that this process has taken.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// Computes all batches once for each line `run` of standard input, after one pass that is not told.
fn passes(engine: &mut CpuEngine, batches: &[Batch]) -> Result<(), Box<dyn std::error::Error>> {
    let mut pass = || {
        let (start, cpu) = (Instant::now(), cpu_seconds());
        for batch in batches {
            std::hint::black_box(engine.run(batch, &Progress::default())?);
        }
        Ok::<_, EngineError>((start.elapsed().as_secs_f64(), cpu_seconds() - cpu))
    };
    pass()?;
    println!("READY {{}}");
    for line in std::io::stdin().lock().lines() {
        if line? != "run" {
            break;
        }
        let (seconds, cpu_seconds) = pass()?;
        println!("DONE {{\"s\": {seconds}, \"cpu_s\": {cpu_seconds}}}");
    }
    Ok(())
}

/// The sequences of a plain FASTA file, empty records left out.
fn read(path: &PathBuf) -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error>> {
    let mut text = String::new();
    std::fs::File::open(path)?.read_to_string(&mut text)?;
    let records = text.split('>').filter(|record| !record.trim().is_empty());
    let sequences = records.map(|record| record.lines().skip(1).flat_map(str::bytes).collect::<Vec<u8>>());
    Ok(sequences.filter(|residues| !residues.is_empty()).collect())
}

/// Batches of at most `budget` tokens, or of one sequence, in input order.
fn pack(sequences: &[Vec<u8>], budget: usize) -> Vec<Batch> {
    let mut batches = vec![Batch::default()];
    for (ordinal, residues) in (0..).zip(sequences) {
        if let Some(last) = batches.last()
            && !last.is_empty()
            && last.token_count() + residues.len() + 2 > budget
        {
            batches.push(Batch::default());
        }
        if let Some(last) = batches.last_mut() {
            last.push(ordinal, residues, residues.len() as u32);
        }
    }
    batches
}
