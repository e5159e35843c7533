//! The command `gpu-check`: everything that can only be checked where a GPU is, in one go.
//!
//! Each step is a process of its own: a GPU that failed in one fails no other, and whatever happens the
//! report is written. A step says its events on standard output; this process prints them as they come and
//! all of them together, as Markdown, at the end.

mod agreement;
mod device;
mod faults;
mod flow;
mod golden;
mod launcher;
mod random;
mod recovery;
mod report;
mod sequences;
mod soak;
mod speed;
mod twins;
mod watch;
mod weights;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use kernels::Precision;

pub(crate) use sequences::Lengths;

use crate::cli::GpuCheckArguments;
use crate::failure::{Exit, Failure};
use device::Device;
use report::{Event, Finding, Report, Verdict, tell};
use weights::{SHAPES, Shape};

/// What is checked and measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Step {
    /// Each kernel against the same computation on the CPU
    Kernels,
    /// Embeddings against golden values; packed = alone; nothing leaks between sequences
    Golden,
    /// Out of memory, a failing kernel, a process killed in a run
    Recovery,
    /// Random batches for a while, the same bits each time
    Soak,
    /// The speed table
    Speed,
}

/// What a process started by this command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    Facts,
    Kernels,
    Golden,
    OutOfMemory,
    Sticky,
    Fresh,
    KilledWorker,
    Soak,
    Speed,
}

impl Part {
    /// As it is asked for.
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Arithmetic of the speed table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arithmetic {
    Fp16,
    Bf16,
    Fp32,
}

impl From<Arithmetic> for Precision {
    fn from(arithmetic: Arithmetic) -> Self {
        match arithmetic {
            Arithmetic::Fp16 => Self::Fp16,
            Arithmetic::Bf16 => Self::Bf16,
            Arithmetic::Fp32 => Self::Fp32,
        }
    }
}

/// The length of a measurement that anybody wants.
const SECONDS_MAX: f64 = 86_400.0;

/// Reads a model size of `--sizes`.
pub(crate) fn parse_size(text: &str) -> Result<String, String> {
    let names = SHAPES.map(|shape| shape.name).join(", ");
    Shape::of(text).map(|shape| shape.name.to_owned()).ok_or_else(|| format!("known sizes are {names}"))
}

/// Reads a length of `--lengths`.
pub(crate) fn parse_lengths(text: &str) -> Result<Lengths, String> {
    text.parse()
}

/// Reads a time of `--seconds`.
pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..=SECONDS_MAX).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        Ok(_) | Err(_) => Err(format!("expected a number of seconds, 0.01 to {SECONDS_MAX}")),
    }
}

/// The sizes asked for, or those worth having on the device.
fn sizes(arguments: &GpuCheckArguments) -> Vec<Shape> {
    if !arguments.sizes.is_empty() {
        return arguments.sizes.iter().filter_map(|name| Shape::of(name)).collect();
    }
    let names: &[&str] =
        if arguments.device == "cpu" { &["tiny"] } else { &["8M", "35M", "150M", "650M", "3B"] };
    names.iter().filter_map(|name| Shape::of(name)).collect()
}

fn lengths(arguments: &GpuCheckArguments) -> Vec<Lengths> {
    if arguments.lengths.is_empty() {
        [51, 102, 166, 400, 1024].map(Lengths::Equal).into_iter().chain([Lengths::Uniprot]).collect()
    } else {
        arguments.lengths.clone()
    }
}

/// Does what one process of the command does, and says its events.
pub(crate) fn part_of_it(part: Part, arguments: &GpuCheckArguments) -> Result<Exit, Failure> {
    let device = match Device::open(&arguments.device) {
        Ok(device) => device,
        Err(refusal) => {
            tell(&Event::Refused { text: refusal.text, hints: refusal.hints });
            return Ok(Exit::Failed);
        }
    };
    let folder = arguments.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = folder.as_path();
    let sizes = sizes(arguments);
    let smallest = sizes.first().copied().unwrap_or(SHAPES[0]);
    match part {
        Part::Facts => {
            for (name, value) in device.facts() {
                tell(&Event::Fact { name: name.to_owned(), value });
            }
        }
        Part::Kernels => match device.gpu() {
            Some(gpu) => {
                // Twins are slow; these shapes take them seconds.
                let tokens_max = arguments.tokens.map_or(1_500, |tokens| tokens as usize);
                let effort =
                    twins::Effort { rounds: if arguments.tokens.is_some() { 1 } else { 3 }, tokens_max };
                twins::kernels(&mut launcher::OneByOne::new(gpu.clone()), effort, golden::SEED);
            }
            None => report::skip("kernels", "needs a GPU"),
        },
        Part::Golden => {
            let tiny = Shape::of("tiny").into_iter();
            let tokens_max = arguments.tokens.map_or(usize::MAX, |tokens| tokens as usize);
            golden::golden(&device, &tiny.chain(sizes).collect::<Vec<_>>(), tokens_max, scratch);
        }
        Part::OutOfMemory => faults::out_of_memory(&device, smallest, scratch),
        Part::Sticky => faults::sticky(&device, smallest, scratch),
        Part::Fresh => faults::fresh(&device, smallest, scratch),
        Part::KilledWorker => recovery::killed_worker(&device, scratch),
        Part::Soak => {
            // Large enough to keep a GPU busy, small enough for many batches.
            let medium = sizes.iter().copied().find(|shape| shape.name == "150M");
            let tokens_max = arguments
                .tokens
                .map_or(if device.gpu().is_some() { 20_000 } else { 300 }, |tokens| tokens as usize);
            let shape = medium.unwrap_or(smallest);
            soak::soak(&device, shape, arguments.soak_seconds, tokens_max, scratch);
        }
        Part::Speed => {
            let precision = match arguments.precision {
                Some(arithmetic) => arithmetic.into(),
                None if device.supports(Precision::Fp16).is_ok() => Precision::Fp16,
                None => Precision::Fp32,
            };
            let plan = speed::Plan {
                lengths: lengths(arguments),
                precision,
                duration: arguments.seconds,
                token_budget: arguments.tokens,
                product_size: arguments.product_size,
            };
            for shape in sizes {
                speed::speed(&device, shape, &plan, scratch, arguments.peers_out.as_deref());
            }
        }
    }
    Ok(Exit::Done)
}

/// Runs the command.
pub(crate) fn gpu_check(arguments: &GpuCheckArguments) -> Result<Exit, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, interrupted.clone())
            .map_err(|error| Failure::because(Exit::Failed, &error))?;
    }
    let scratch = Scratch::make(arguments.scratch.as_deref())?;
    let mut gathering = Gathering { report: Report::default(), refusal: None, interrupted };
    let began = Instant::now();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let command: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    for (name, value) in [
        ("program", format!("{} (commit {})", env!("CARGO_PKG_VERSION"), env!("VIRNUCPRO_COMMIT"))),
        ("date", report::date(now)),
        ("command", format!("virnucpro-orch {}", command.join(" "))),
    ] {
        gathering.take(Event::Fact { name: name.to_owned(), value });
    }

    gathering.run(Part::Facts, arguments, None, &scratch.0)?;
    let wanted = |step| arguments.only.is_empty() || arguments.only.contains(&step);
    for (step, parts) in [
        (Step::Kernels, &[Part::Kernels][..]),
        (Step::Golden, &[Part::Golden]),
        (Step::Recovery, &[Part::OutOfMemory, Part::Sticky, Part::Fresh, Part::KilledWorker]),
        (Step::Soak, &[Part::Soak]),
    ] {
        for &part in parts.iter().filter(|_| wanted(step)) {
            gathering.run(part, arguments, None, &scratch.0)?;
        }
    }
    if wanted(Step::Speed) {
        for shape in sizes(arguments) {
            gathering.run(Part::Speed, arguments, Some(shape), &scratch.0)?;
        }
    }
    gathering.take(Event::Fact {
        name: "took".to_owned(),
        value: format!("{:.0} s", began.elapsed().as_secs_f64()),
    });

    let report = gathering.report;
    if let Some(path) = &arguments.json {
        let text =
            serde_json::to_string_pretty(&report).map_err(|error| Failure::because(Exit::Failed, &error))?;
        std::fs::write(path, text).map_err(|error| {
            Failure::new(Exit::Failed, format!("failed to write `{}`: {error}", path.display()))
        })?;
    }
    crate::stdout::print(&report.markdown())?;
    Ok(if report.count(Verdict::Failed) == 0 { Exit::Done } else { Exit::Failed })
}

/// The report while it grows.
struct Gathering {
    report: Report,
    refusal: Option<Failure>,
    interrupted: Arc<AtomicBool>,
}

impl Gathering {
    /// Notes an event and says it.
    fn take(&mut self, event: Event) {
        if let Event::Refused { text, hints } = event {
            let failure = Failure::new(Exit::Usage, text);
            self.refusal = Some(hints.into_iter().fold(failure, Failure::hint));
        } else {
            crate::stderr::say(self.report.add(event));
        }
    }

    /// Runs one part in a process of its own; its failure is a finding and stops nothing else.
    ///
    /// # Errors
    /// If the device cannot be used at all, no process can be started, or the operator has had enough.
    fn run(
        &mut self,
        part: Part,
        arguments: &GpuCheckArguments,
        shape: Option<Shape>,
        scratch: &Path,
    ) -> Result<(), Failure> {
        let what = shape.map_or_else(|| part.name(), |shape| format!("{} {}", part.name(), shape.name));
        let mut process = PartProcess::start(part, arguments, shape, scratch)?;
        let status = loop {
            let ended = process.ended()?;
            for event in process.take_events() {
                self.take(event);
            }
            if let Some(status) = ended {
                break Ok(status);
            }
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(Failure::new(Exit::Interrupted, "interrupted"));
            }
            if process.began.elapsed() > process.deadline {
                break Err(format!("ended after {} s without an end", process.deadline.as_secs()));
            }
            std::thread::sleep(POLL);
        };
        if let Some(refusal) = self.refusal.take() {
            return Err(refusal);
        }
        let failure = match status {
            Ok(status) if status.success() => None,
            Ok(status) => Some(format!("the process of this step ended with {status}")),
            Err(text) => Some(text),
        };
        if let Some(detail) = failure {
            let seconds = process.began.elapsed().as_secs_f64();
            self.take(Event::Finding(Finding { what, verdict: Verdict::Failed, detail, seconds }));
        }
        Ok(())
    }
}

/// Time between two looks at a process.
const POLL: Duration = Duration::from_millis(20);

/// The process of one part; killed when dropped.
struct PartProcess {
    child: Child,
    events: Arc<Mutex<Vec<Event>>>,
    /// Reads the process's events; ends with them.
    reader: Option<std::thread::JoinHandle<()>>,
    began: Instant,
    deadline: Duration,
}

impl PartProcess {
    fn start(
        part: Part,
        arguments: &GpuCheckArguments,
        shape: Option<Shape>,
        scratch: &Path,
    ) -> Result<Self, Failure> {
        let failed =
            |error: std::io::Error| Failure::new(Exit::Failed, format!("failed to start a step: {error}"));
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(["gpu-check-part", &part.name(), "--device", &arguments.device]);
        command.arg("--scratch").arg(scratch);
        let sizes = shape.map_or_else(|| sizes(arguments), |shape| vec![shape]);
        let lengths = lengths(arguments);
        let list = |items: Vec<String>| items.join(",");
        command.args(["--sizes", &list(sizes.iter().map(|shape| shape.name.to_owned()).collect())]);
        command.args(["--lengths", &list(lengths.iter().map(ToString::to_string).collect())]);
        command.args(["--seconds", &arguments.seconds.as_secs_f64().to_string()]);
        command.args(["--soak-seconds", &arguments.soak_seconds.as_secs_f64().to_string()]);
        command.args(["--product-size", &arguments.product_size.to_string()]);
        if let Some(tokens) = arguments.tokens {
            command.args(["--tokens", &tokens.to_string()]);
        }
        if let Some(arithmetic) = arguments.precision {
            let name = golden::precision_name(arithmetic.into());
            command.args(["--precision", name]);
        }
        if let Some(folder) = &arguments.peers_out {
            command.arg("--peers-out").arg(folder);
        }
        // Generous: a deadline is for what hangs, which a lost GPU's processes do.
        let cells = (sizes.len() * lengths.len()) as u32;
        let deadline = Duration::from_secs(300)
            + match part {
                Part::Facts
                | Part::Kernels
                | Part::Golden
                | Part::OutOfMemory
                | Part::Sticky
                | Part::Fresh
                | Part::KilledWorker => Duration::ZERO,
                Part::Soak => 2 * arguments.soak_seconds,
                Part::Speed => cells * (2 * arguments.seconds + Duration::from_secs(20)),
            };
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let events = Arc::new(Mutex::new(Vec::new()));
        let reader = child.stdout.take().map(|pipe| {
            let events = events.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    let event = serde_json::from_str(&line)
                        .unwrap_or_else(|_| Event::Fact { name: "unexpected".to_owned(), value: line });
                    events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
                }
            })
        });
        Ok(Self { child, events, reader, began: Instant::now(), deadline })
    }

    /// How it ended, once it has and everything that it said is there.
    fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        let status = self.child.try_wait().map_err(|error| Failure::because(Exit::Failed, &error))?;
        if status.is_some()
            && let Some(reader) = self.reader.take()
        {
            let _ = reader.join();
        }
        Ok(status)
    }

    fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for PartProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder for weights and results on the way; deleted when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn make(given: Option<&Path>) -> Result<Self, Failure> {
        let parent = given.map_or_else(std::env::temp_dir, Path::to_owned);
        let folder = parent.join(format!("virnucpro-gpu-check-{}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(|error| {
            let text = format!("failed to make `{}`: {error}", folder.display());
            Failure::new(Exit::Failed, text).hint("--scratch names another folder; 3B needs 6 GB there")
        })?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
