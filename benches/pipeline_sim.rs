//! The orchestration alone, with simulated devices: is anything but the devices ever the bottleneck?
//!
//! `cargo bench --bench pipeline_sim -- [reading] [throughput] [scaling] [tail] [memory] [telemetry] [sequences=N]
//! [repeats=3] [devices=PROGRAMME]`; without a name, all of them. But for `reading`, each run is the real binary on
//! made-up FASTA, results committed as Parquet. Figures are medians of the repeats; memory is the peak resident set of
//! the orchestrator process (`VmHWM`), processor time that of all its threads, workers not counted (`/proc`, in steps
//! of 10 ms). `devices` is what simulated devices do in `telemetry`, such as `latency_ns_per_token=2000`.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use actors::fasta::{RecordStream, Source};
use actors::packing::{PackingPlan, pack};
use actors::segment::{PreparedSegment, SegmentCutter, SegmentLimits};
use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Width of an embedding: that of ESM-2 8M.
const HIDDEN: usize = 320;
const TOKEN_BUDGET: u32 = 16_384;

fn main() -> Result<()> {
    let mut chosen = Vec::new();
    let (mut repeats, mut sequences, mut devices) = (3, None, String::new());
    // `cargo bench` adds `--bench`.
    for argument in std::env::args().skip(1).filter(|argument| argument != "--bench") {
        match argument.split_once('=') {
            Some(("repeats", value)) => repeats = value.parse()?,
            Some(("sequences", value)) => sequences = Some(value.parse()?),
            // The programme has `=` of its own.
            Some(("devices", value)) => devices = value.to_owned(),
            None => chosen.push(argument),
            Some(_) => return Err(format!("unknown argument `{argument}`").into()),
        }
    }
    let folder = std::env::temp_dir().join(format!("virnucpro-orch-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let bench = Bench { folder: folder.clone(), repeats, sequences, devices };
    let wanted = |name: &str| chosen.is_empty() || chosen.iter().any(|chosen| chosen == name);
    let result = (|| {
        for (name, run) in [
            ("reading", Bench::reading as fn(&Bench) -> Result<()>),
            ("throughput", Bench::throughput),
            ("scaling", Bench::scaling),
            ("tail", Bench::tail),
            ("memory", Bench::memory),
            ("telemetry", Bench::telemetry),
        ] {
            if wanted(name) {
                run(&bench)?;
            }
        }
        Ok(())
    })();
    std::fs::remove_dir_all(&folder)?;
    result
}

struct Bench {
    folder: PathBuf,
    repeats: usize,
    sequences: Option<u64>,
    /// What simulated devices do where the benchmark leaves it open.
    devices: String,
}

/// One run of the binary.
struct Measured {
    seconds: f64,
    /// Processor time of the orchestrator.
    processor_seconds: f64,
    /// From the first worker that was ready to the end.
    working_seconds: f64,
    /// Batches computed.
    batches: u64,
    written_bytes: u64,
    peak_mib: u64,
}

impl Bench {
    /// Reading, preparing and packing, without actors.
    fn reading(&self) -> Result<()> {
        let count = self.sequences.unwrap_or(1_000_000);
        let file = self.fasta(count, 50, 50)?;
        let seconds = self.median(|| {
            let began = Instant::now();
            let job = "input.fasta = \"orfs.fasta\"\noutput.directory = \"unused\"\n";
            let surroundings = config::Surroundings::of_process()?;
            let job = config::from_text(job, &self.folder.join("job.toml"), &[], &surroundings)?;
            let stream = RecordStream::open(&job.input, &[Source::file(&file)])?;
            let limits = SegmentLimits::new(job.output.segment_sequences, HIDDEN, kernels::Pooling::Mean);
            let plan =
                PackingPlan { token_budget: TOKEN_BUDGET, window_sequences: job.packing.buffer_sequences };
            let mut cutter = SegmentCutter::new(stream, limits);
            let mut packed = 0;
            while let Some(segment) = cutter.next_segment(&|| false)? {
                let counts = PreparedSegment::new(segment).token_counts();
                packed += pack(&counts, plan).iter().map(Vec::len).sum::<usize>();
            }
            // Made-up sequences of 50 residues are all different.
            assert_eq!(packed as u64, count);
            Ok(began.elapsed().as_secs_f64())
        })?;
        println!(
            "reading and packing alone: {count} sequences of 50 residues, {:.0} sequences/s",
            count as f64 / seconds
        );
        Ok(())
    }

    /// Devices that cost nothing: what reading, packing, processes, sockets and writing can do together.
    fn throughput(&self) -> Result<()> {
        let count = self.sequences.unwrap_or(1_000_000);
        self.fasta(count, 50, 50)?;
        let runs = (0..self.repeats.max(1)).map(|_| self.run("sim:2", "")).collect::<Result<Vec<_>>>()?;
        let seconds = median_of(runs.iter().map(|run| run.seconds).collect());
        let processor_seconds = median_of(runs.iter().map(|run| run.processor_seconds).collect());
        let (written, raw) = (runs[0].written_bytes, count * HIDDEN as u64 * 4);
        println!(
            "devices without latency: {count} sequences of 50 residues, sim:2, width {HIDDEN}: {:.0} sequences/s end to end, {:.1} µs of processor time a sequence, {:.0} MB committed, {:.2} of the raw size",
            count as f64 / seconds,
            1e6 * processor_seconds / count as f64,
            written as f64 / 1e6,
            written as f64 / raw as f64
        );
        Ok(())
    }

    /// Eight devices of fixed latency: how near to eight times one device.
    fn scaling(&self) -> Result<()> {
        let latency_us_per_batch = 100_000;
        let count = self.sequences.unwrap_or(1_000_000);
        self.fasta(count, 50, 50)?;
        let mut batches = 0;
        let share = self.median(|| {
            let run = self.run("sim:8", &format!("latency_us_per_batch={latency_us_per_batch}"))?;
            batches = run.batches;
            let ideal = run.batches as f64 * f64::from(latency_us_per_batch) / 1e6 / 8.0;
            Ok(ideal / run.working_seconds)
        })?;
        println!(
            "eight devices of 100 ms a batch: {batches} batches, devices busy {:.1} % of the time, start and end included",
            100.0 * share
        );
        Ok(())
    }

    /// Eight devices, one of them four times slower: does it hold up the end?
    fn tail(&self) -> Result<()> {
        let latency_ns_per_token = 6_000;
        let count = self.sequences.unwrap_or(100_000);
        let residues = self.fasta_residues(count, 50, 170)?;
        let tokens = residues + 2 * count;
        let ideal = tokens as f64 * f64::from(latency_ns_per_token) / 1e9 / 7.25;
        let program = format!("latency_ns_per_token={latency_ns_per_token};slow=4@device:0");
        let seconds = self.median(|| Ok(self.run("sim:8", &program)?.working_seconds))?;
        let batch = f64::from(TOKEN_BUDGET) * f64::from(latency_ns_per_token) / 1e9;
        println!(
            "eight devices, one four times slower: {tokens} tokens in {seconds:.2} s, ideal {ideal:.2} s; the end takes {:.0} % of the slow device's {:.2} s for one full batch",
            100.0 * (seconds - ideal) / (4.0 * batch),
            4.0 * batch
        );
        Ok(())
    }

    /// Peak memory against the size of the input.
    fn memory(&self) -> Result<()> {
        let counts = self.sequences.map_or(vec![20_000, 200_000, 5_000_000], |count| vec![count]);
        for count in counts {
            self.fasta(count, 50, 50)?;
            let run = self.run("sim:2", "")?;
            println!(
                "memory: {count} sequences of 50 residues: orchestrator peak {} MiB, {:.1} s, {:.0} sequences/s",
                run.peak_mib,
                run.seconds,
                count as f64 / run.seconds
            );
        }
        Ok(())
    }

    /// What telemetry costs: runs with it and without it, by turns. Where nothing else costs anything, unless told
    /// otherwise.
    fn telemetry(&self) -> Result<()> {
        let count = self.sequences.unwrap_or(1_000_000);
        self.fasta(count, 50, 50)?;
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for turn in 0..self.repeats.max(1) {
            // Whoever comes second finds warm files: each is second as often.
            for is_on in [turn % 2 == 0, turn % 2 != 0] {
                let faults = if is_on { "" } else { "telemetry=off" };
                let run = self.run_under("sim:2", &self.devices, faults)?;
                if is_on { &mut with } else { &mut without }.push(run);
            }
        }
        let devices = match self.devices.as_str() {
            "" => "devices without latency".to_owned(),
            programme => format!("devices of {programme}"),
        };
        println!("telemetry: {count} sequences of 50 residues on {devices}, medians of {}:", with.len());
        type Figure = fn(&Measured) -> f64;
        let figures: [(&str, Figure); 2] =
            [("processor time", |run| run.processor_seconds), ("time", |run| run.seconds)];
        for (what, of) in figures {
            let median = |runs: &[Measured]| median_of(runs.iter().map(of).collect());
            let (with, without) = (median(&with), median(&without));
            println!(
                "  {what}: {with:.3} s with, {without:.3} s without: it costs {:.2} %",
                100.0 * (with / without - 1.0)
            );
        }
        Ok(())
    }

    fn median(&self, mut measure: impl FnMut() -> Result<f64>) -> Result<f64> {
        Ok(median_of((0..self.repeats.max(1)).map(|_| measure()).collect::<Result<Vec<_>>>()?))
    }

    fn run(&self, devices: &str, program: &str) -> Result<Measured> {
        self.run_under(devices, program, "")
    }

    fn run_under(&self, devices: &str, program: &str, faults: &str) -> Result<Measured> {
        let job = self.folder.join("job.toml");
        let text = format!(
            "input.fasta = \"orfs.fasta\"\noutput.directory = \"results\"\ndevices.use = \"{devices}\"\npacking.token_budget = {TOKEN_BUDGET}\n[telemetry]\nprogress = \"none\"\n"
        );
        std::fs::write(&job, text)?;
        let (results, said) = (self.folder.join("results"), self.folder.join("stderr"));
        let began = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_virnucpro-orch"))
            .arg("run")
            .arg(&job)
            .env("VIRNUCPRO_SIM", format!("hidden={HIDDEN};{program}"))
            .env("VIRNUCPRO_FAULTS", faults)
            .stderr(Stdio::from(File::create(&said)?))
            .spawn()?;
        let log = results.join("run.log");
        let (mut peak_kib, mut ready) = (0, None);
        let (status, processor_seconds) = loop {
            // It is not reaped before its last figures are read.
            if has_ended(&child)? {
                let processor_seconds =
                    processor_seconds(child.id()).ok_or("no processor time in `/proc`")?;
                break (child.wait()?, processor_seconds);
            }
            peak_kib = peak_kib.max(resident_peak_kib(child.id()).unwrap_or(0));
            if ready.is_none() && std::fs::read_to_string(&log).is_ok_and(|log| log.contains(" ready ")) {
                ready = Some(Instant::now());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let seconds = began.elapsed().as_secs_f64();
        let working_seconds = ready.map_or(seconds, |ready| ready.elapsed().as_secs_f64());
        if !status.success() {
            return Err(format!("the run ended with {status}").into());
        }
        let written_bytes = std::fs::read_dir(results.join("embeddings"))?
            .map(|entry| Ok(entry?.metadata()?.len()))
            .sum::<std::io::Result<u64>>()?;
        std::fs::remove_dir_all(results)?;
        // The summary: `  batches    1,637, 98.1 % full, …`.
        let said = std::fs::read_to_string(said)?;
        let batches =
            said.lines().find_map(|line| line.trim().strip_prefix("batches ")?.trim().split(", ").next());
        let batches = batches.ok_or("no batches in the summary")?.replace(',', "").parse()?;
        let peak_mib = peak_kib / 1024;
        Ok(Measured { seconds, processor_seconds, working_seconds, batches, written_bytes, peak_mib })
    }

    fn fasta(&self, count: u64, shortest: u64, longest: u64) -> Result<PathBuf> {
        self.fasta_residues(count, shortest, longest)?;
        Ok(self.folder.join("orfs.fasta"))
    }

    /// Writes random proteins; returns their residues.
    fn fasta_residues(&self, count: u64, shortest: u64, longest: u64) -> Result<u64> {
        Ok(write_fasta(&self.folder.join("orfs.fasta"), count, shortest, longest)?)
    }
}

fn median_of(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn has_ended(child: &Child) -> Result<bool> {
    let process = Pid::from_child(child);
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(waitid(WaitId::Pid(process), look)?.is_some())
}

/// Processor time of all threads of a process so far, those that have ended included.
fn processor_seconds(process: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // User and system time are fields 14 and 15; the second may hold spaces.
    let mut ticks = stat.rsplit_once(')')?.1.split_whitespace().skip(11).map(str::parse::<u64>);
    let (user, system) = (ticks.next()?.ok()?, ticks.next()?.ok()?);
    Some((user + system) as f64 / clock_ticks_per_second() as f64)
}

fn resident_peak_kib(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn write_fasta(path: &Path, count: u64, shortest: u64, longest: u64) -> std::io::Result<u64> {
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
        let length = shortest + random() % (longest - shortest + 1);
        sequence.extend((0..length).map(|_| b"LAGVSERTIDPKQNFYMHWC"[(random() % 20) as usize]));
        residues += sequence.len() as u64;
        writeln!(out, ">orf_{number}")?;
        out.write_all(&sequence)?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(residues)
}
