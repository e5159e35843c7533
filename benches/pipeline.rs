//! The whole orchestration with simulated devices: sequences per second, and peak memory against input size.
//!
//! `cargo bench --bench pipeline -- [counts=20000,200000,2000000] [devices=4] [hidden=320]`. Each run is the
//! real binary on a made-up FASTA of open reading frames of 50 to 170 residues. Memory is the peak
//! resident set of the orchestrator process (`VmHWM`); it must not grow with the input.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let mut counts = vec![20_000, 200_000, 2_000_000];
    let (mut devices, mut hidden) = (4, 320);
    for argument in std::env::args().skip(1).filter(|argument| argument != "--bench") {
        match argument.split_once('=') {
            Some(("counts", value)) => counts = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
            Some(("devices", value)) => devices = value.parse()?,
            Some(("hidden", value)) => hidden = value.parse()?,
            _ => return Err(format!("unknown argument `{argument}`").into()),
        }
    }
    let folder = std::env::temp_dir().join(format!("virnucpro-orch-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = counts.iter().try_for_each(|&count| run(&folder, count, devices, hidden));
    std::fs::remove_dir_all(&folder)?;
    result
}

fn run(folder: &Path, count: u64, devices: u32, hidden: usize) -> Result<(), Box<dyn Error>> {
    let residues = write_fasta(&folder.join("orfs.fasta"), count)?;
    let job = folder.join("job.toml");
    std::fs::write(
        &job,
        format!(
            "input.fasta = \"orfs.fasta\"\noutput.directory = \"results\"\ndevices.use = \"sim:{devices}\"\n"
        ),
    )?;
    let began = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_virnucpro-orch"))
        .arg("run")
        .arg(&job)
        .env("VIRNUCPRO_SIM", format!("hidden={hidden}"))
        .stderr(Stdio::null())
        .spawn()?;
    let mut peak_kib = 0;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        peak_kib = peak_kib.max(resident_peak_kib(child.id()).unwrap_or(0));
        std::thread::sleep(Duration::from_millis(5));
    };
    let seconds = began.elapsed().as_secs_f64();
    if !status.success() {
        return Err(format!("the run ended with {status}").into());
    }
    let bytes: u64 = std::fs::read_dir(folder.join("results/embeddings"))?
        .map(|entry| Ok(entry?.metadata()?.len()))
        .sum::<Result<u64, std::io::Error>>()?;
    println!(
        "{count} sequences, {residues} residues, sim:{devices}, width {hidden}: {seconds:.1} s, {:.0} sequences/s, {:.0} tokens/s, {:.0} MB written, orchestrator peak {} MiB",
        count as f64 / seconds,
        (residues + 2 * count) as f64 / seconds,
        bytes as f64 / 1e6,
        peak_kib / 1024
    );
    std::fs::remove_dir_all(folder.join("results"))?;
    Ok(())
}

fn resident_peak_kib(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Writes `count` random proteins of 50 to 170 residues; returns their residues.
fn write_fasta(path: &Path, count: u64) -> std::io::Result<u64> {
    let mut out = BufWriter::new(File::create(path)?);
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let mut residues = 0;
    let mut sequence = Vec::new();
    for number in 0..count {
        sequence.clear();
        sequence.extend((0..50 + random() % 121).map(|_| b"LAGVSERTIDPKQNFYMHWC"[(random() % 20) as usize]));
        residues += sequence.len() as u64;
        writeln!(out, ">orf_{number}")?;
        out.write_all(&sequence)?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(residues)
}
