//! The command `gpu-check`: everything that can only be checked where a GPU is, in one go.
//!
//! Each step is a process of its own: a GPU that failed in one fails no other. A step says its events on
//! standard output; this process prints them as they come and all of them together, as Markdown, at the end,
//! which is when everything is done, the time of `--within` is over, or the command is interrupted. The report
//! as JSON is written anew with each event, so that even a killed command leaves what it had found.

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
use kernels::model::Shape;

pub(crate) use sequences::Lengths;

use crate::cli::GpuCheckArguments;
use crate::failure::{Exit, Failure};
use device::Device;
use report::{Event, Finding, Report, Verdict, tell};

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
    weights::shape(text).map(|shape| shape.name.to_owned()).ok_or_else(|| {
        let names: Vec<&str> = weights::shapes().map(|shape| shape.name).collect();
        format!("known sizes are {}", names.join(", "))
    })
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
        return arguments.sizes.iter().filter_map(|name| weights::shape(name)).collect();
    }
    let names: &[&str] =
        if arguments.device == "cpu" { &["tiny"] } else { &["8M", "35M", "150M", "650M", "3B"] };
    names.iter().filter_map(|name| weights::shape(name)).collect()
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
    let folder = arguments.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = folder.as_path();
    if part == Part::KilledWorker {
        recovery::killed_worker(&arguments.device, arguments.tokens, scratch);
        return Ok(Exit::Done);
    }
    let device = match Device::open(&arguments.device) {
        Ok(device) => device,
        Err(refusal) => {
            tell(&Event::Refused { text: refusal.text, hints: refusal.hints });
            return Ok(Exit::Failed);
        }
    };
    let sizes = sizes(arguments);
    let smallest = sizes.first().copied().unwrap_or(weights::TINY);
    match part {
        // Above, before the device was opened.
        Part::KilledWorker => {}
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
            let tokens_max = arguments.tokens.map_or(usize::MAX, |tokens| tokens as usize);
            golden::golden(
                &device,
                &std::iter::once(weights::TINY).chain(sizes).collect::<Vec<_>>(),
                tokens_max,
                scratch,
            );
        }
        Part::OutOfMemory => faults::out_of_memory(&device, smallest, scratch),
        Part::Sticky => faults::sticky(&device, smallest, scratch),
        Part::Fresh => faults::fresh(&device, smallest, scratch),
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

/// Cells of the speed table that say most, the first first: all of them come before the others.
const TELLING: [(&str, usize); 4] = [("3B", 102), ("3B", 166), ("650M", 102), ("8M", 102)];

/// What one process is to do.
#[derive(Debug, PartialEq)]
struct Work {
    part: Part,
    sizes: Vec<Shape>,
    lengths: Vec<Lengths>,
}

impl Work {
    /// Processes of the speed table: neighbours of one size share one.
    fn speed(sizes: &[Shape], lengths: &[Lengths]) -> Vec<Self> {
        let cells = sizes.iter().flat_map(|&shape| lengths.iter().map(move |&length| (shape, length)));
        let rank = |&(shape, length): &(Shape, Lengths)| {
            let telling =
                TELLING.iter().position(|&(size, of)| shape.name == size && length == Lengths::Equal(of));
            telling.unwrap_or(TELLING.len())
        };
        let mut cells: Vec<(Shape, Lengths)> = cells.collect();
        cells.sort_by_key(rank);
        let mut works: Vec<Self> = Vec::new();
        for (shape, length) in cells {
            match works.last_mut() {
                Some(work) if work.sizes == [shape] => work.lengths.push(length),
                _ => works.push(Self { part: Part::Speed, sizes: vec![shape], lengths: vec![length] }),
            }
        }
        works
    }

    /// In what is said of the process as a whole.
    fn name(&self) -> String {
        match (self.part, &self.sizes[..]) {
            (Part::Speed, [shape]) => format!("{} {}", self.part.name(), shape.name),
            _ => self.part.name(),
        }
    }

    /// With less time left it is not begun: nothing of it would be done.
    fn least(&self, arguments: &GpuCheckArguments) -> Duration {
        const BEGINNING: Duration = Duration::from_secs(1);
        /// Making weights and loading them twice, by 10⁹ parameters.
        const LOADING: Duration = Duration::from_secs(8);
        match self.part {
            Part::Facts => Duration::ZERO,
            Part::Kernels
            | Part::Golden
            | Part::OutOfMemory
            | Part::Sticky
            | Part::Fresh
            | Part::KilledWorker => BEGINNING,
            Part::Soak => BEGINNING + arguments.soak_seconds,
            Part::Speed => {
                let parameters = |shape: &Shape| (12 * shape.layers * shape.hidden * shape.hidden) as f64;
                let loading = LOADING.mul_f64(self.sizes.iter().map(parameters).sum::<f64>() / 1e9);
                BEGINNING + loading + arguments.seconds + arguments.seconds / 3
            }
        }
    }

    /// Generous: it is for what hangs, which a lost GPU's processes do.
    fn deadline(&self, arguments: &GpuCheckArguments) -> Duration {
        let more = match self.part {
            Part::Facts
            | Part::Kernels
            | Part::Golden
            | Part::OutOfMemory
            | Part::Sticky
            | Part::Fresh
            | Part::KilledWorker => Duration::ZERO,
            Part::Soak => 2 * arguments.soak_seconds,
            Part::Speed => self.lengths.len() as u32 * (2 * arguments.seconds + Duration::from_secs(20)),
        };
        Duration::from_secs(300) + more
    }
}

/// All that is asked for, in the order in which it is done.
fn works(arguments: &GpuCheckArguments) -> Vec<Work> {
    let (sizes, lengths) = (sizes(arguments), lengths(arguments));
    let wanted = |step| arguments.only.is_empty() || arguments.only.contains(&step);
    let checks = [
        (Step::Kernels, &[Part::Kernels][..]),
        (Step::Golden, &[Part::Golden]),
        (Step::Recovery, &[Part::OutOfMemory, Part::Sticky, Part::Fresh, Part::KilledWorker]),
        (Step::Soak, &[Part::Soak]),
    ];
    let parts = checks.into_iter().filter(|&(step, _)| wanted(step)).flat_map(|(_, parts)| parts);
    let checks = parts.map(|&part| Work { part, sizes: sizes.clone(), lengths: lengths.clone() });
    let speed = if wanted(Step::Speed) { Work::speed(&sizes, &lengths) } else { Vec::new() };
    checks.chain(speed).collect()
}

/// Runs the command.
pub(crate) fn gpu_check(arguments: &GpuCheckArguments) -> Result<Exit, Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, interrupted.clone())
            .map_err(|error| Failure::because(Exit::Failed, &error))?;
    }
    let scratch = Scratch::make(arguments.scratch.as_deref())?;
    let mut gathering = Gathering {
        report: Report::default(),
        refusal: None,
        interrupted,
        began: Instant::now(),
        arguments,
        scratch: &scratch.0,
        kept: None,
    };
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

    gathering.run(&Work { part: Part::Facts, sizes: sizes(arguments), lengths: lengths(arguments) });
    if let Some((text, hints)) = gathering.refusal.take() {
        let failure = Failure::new(Exit::Usage, text);
        return Err(hints.into_iter().fold(failure, Failure::hint));
    }
    // Ten minutes are too long to learn only then that it cannot be written.
    gathering.kept = Some(Kept::new(arguments.json.as_deref()));
    gathering.keep(false)?;
    for work in works(arguments) {
        gathering.run(&work);
    }
    gathering.take(Event::Fact {
        name: "took".to_owned(),
        value: format!("{:.0} s", gathering.began.elapsed().as_secs_f64()),
    });

    let kept = gathering.keep(true);
    crate::stdout::print(&gathering.report.markdown())?;
    kept?;
    let [failed, not_run] = [Verdict::Failed, Verdict::NotRun].map(|verdict| gathering.report.count(verdict));
    if gathering.interrupted() {
        return Err(Failure::new(Exit::Interrupted, "interrupted: the report is not complete"));
    }
    if not_run > 0 {
        crate::stderr::say(format_args!("incomplete: {not_run} not run, which is no pass"));
    }
    Ok(match (failed, not_run) {
        (0, 0) => Exit::Done,
        (0, _) => Exit::Incomplete,
        _ => Exit::Failed,
    })
}

/// Where the report is kept as JSON while it grows.
struct Kept<'a> {
    path: Option<&'a Path>,
    /// A pipe or a terminal can be told once only.
    replaceable: bool,
}

impl<'a> Kept<'a> {
    fn new(path: Option<&'a Path>) -> Self {
        let file = path.map(Path::symlink_metadata).and_then(Result::ok);
        Self { path, replaceable: file.is_none_or(|file| file.is_file()) }
    }

    fn write(&self, report: &Report, finally: bool) -> Result<(), Failure> {
        let Some(path) = self.path.filter(|_| self.replaceable || finally) else { return Ok(()) };
        let text =
            serde_json::to_string_pretty(report).map_err(|error| Failure::because(Exit::Failed, &error))?;
        let written = if self.replaceable {
            // At once: a process killed while it writes leaves the report before.
            let temporary = actors::part::temporary_path(path);
            let replaced = std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, path));
            if replaced.is_err() {
                let _ = std::fs::remove_file(&temporary);
            }
            replaced
        } else {
            std::fs::write(path, text)
        };
        written.map_err(|error| {
            Failure::new(Exit::Failed, format!("failed to write `{}`: {error}", path.display()))
        })
    }
}

/// The report while it grows.
struct Gathering<'a> {
    report: Report,
    /// Why the device cannot be used, and what can be done.
    refusal: Option<(String, Vec<String>)>,
    interrupted: Arc<AtomicBool>,
    began: Instant,
    arguments: &'a GpuCheckArguments,
    scratch: &'a Path,
    /// `None` until it is known that the device can be used.
    kept: Option<Kept<'a>>,
}

/// How a part's process came to its end.
enum End {
    ByItself(ExitStatus),
    Hung,
    CutOff(String),
}

impl Gathering<'_> {
    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Writes what was found until now.
    fn keep(&self, finally: bool) -> Result<(), Failure> {
        self.kept.as_ref().map_or(Ok(()), |kept| kept.write(&self.report, finally))
    }

    /// Notes an event and says it.
    fn take(&mut self, event: Event) {
        if let Event::Refused { text, hints } = event {
            self.refusal = Some((text, hints));
        } else {
            crate::stderr::say(self.report.add(event));
            // A disk that is full now may not be at the end, where it is an error.
            let _ = self.keep(false);
        }
    }

    /// Runs one part in a process of its own; its failure is a finding and stops nothing else.
    fn run(&mut self, work: &Work) {
        let within = self.arguments.within;
        let left = within.saturating_sub(self.began.elapsed());
        if self.interrupted() {
            return self.not_run(work, "interrupted before it began", 0.0);
        }
        if left < work.least(self.arguments) {
            let why = format!(
                "not begun: {:.0} of the {:.0} s of --within were left",
                left.as_secs_f64(),
                within.as_secs_f64()
            );
            return self.not_run(work, &why, 0.0);
        }
        let began = Instant::now();
        let failure = match self.follow(work) {
            Ok(End::ByItself(status)) if status.success() => None,
            Ok(End::ByItself(status)) => Some(format!("the process of this step ended with {status}")),
            Ok(End::Hung) => {
                Some(format!("ended after {} s without an end", work.deadline(self.arguments).as_secs()))
            }
            Ok(End::CutOff(why)) => return self.not_run(work, &why, began.elapsed().as_secs_f64()),
            Err(failure) => Some(failure.line()),
        };
        // That of the facts ends the command; later it is a finding like any other.
        let refusal = if work.part == Part::Facts { None } else { self.refusal.take() };
        let refusal = refusal.map(|(text, hints)| [vec![text], hints].concat().join("; "));
        if let Some(detail) = refusal.or(failure)
            && self.refusal.is_none()
        {
            let seconds = began.elapsed().as_secs_f64();
            let finding = Finding { what: work.name(), verdict: Verdict::Failed, detail, seconds };
            self.take(Event::Finding(finding));
        }
    }

    /// Starts a part's process and takes its events until its end.
    fn follow(&mut self, work: &Work) -> Result<End, Failure> {
        let mut process = PartProcess::start(work, self.arguments, self.scratch)?;
        let within = self.arguments.within;
        loop {
            let ended = process.ended()?;
            for event in process.take_events() {
                self.take(event);
            }
            // First: an interrupt from a terminal ends the part's process, too.
            if self.interrupted() {
                return Ok(End::CutOff("interrupted".to_owned()));
            }
            if let Some(status) = ended {
                return Ok(End::ByItself(status));
            }
            if process.began.elapsed() > work.deadline(self.arguments) {
                return Ok(End::Hung);
            }
            if self.began.elapsed() > within {
                return Ok(End::CutOff(format!(
                    "cut off: the {:.0} s of --within were over",
                    within.as_secs_f64()
                )));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Says that a part was not run, or not to its end: of the speed table each cell that was not told.
    fn not_run(&mut self, work: &Work, why: &str, seconds: f64) {
        let owed = match work.part {
            Part::Speed => work.lengths.iter().map(|length| format!("{} {length}", work.name())).collect(),
            _ => vec![work.name()],
        };
        for what in owed {
            if !self.report.findings.iter().any(|finding| finding.what == what) {
                let detail = why.to_owned();
                self.take(Event::Finding(Finding { what, verdict: Verdict::NotRun, detail, seconds }));
            }
        }
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
}

impl PartProcess {
    fn start(work: &Work, arguments: &GpuCheckArguments, scratch: &Path) -> Result<Self, Failure> {
        let failed =
            |error: std::io::Error| Failure::new(Exit::Failed, format!("failed to start a step: {error}"));
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(["gpu-check-part", &work.part.name(), "--device", &arguments.device]);
        command.arg("--scratch").arg(scratch);
        let Work { sizes, lengths, .. } = work;
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
        Ok(Self { child, events, reader, began: Instant::now() })
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
        // A run that a part has started would outlive it, and keep the GPU.
        let run = recovery::child_of(self.child.id());
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(run) = run {
            let _ = rustix::process::kill_process(run, rustix::process::Signal::KILL);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_telling_cells_come_first_and_none_is_lost() {
        let sizes = ["8M", "35M", "650M", "3B"].map(|name| weights::shape(name).unwrap());
        let lengths = [51, 102, 166].map(Lengths::Equal);
        let works = Work::speed(&sizes, &lengths);
        let order: Vec<String> = works
            .iter()
            .map(|work| {
                let lengths: Vec<String> = work.lengths.iter().map(ToString::to_string).collect();
                format!("{}: {}", work.name(), lengths.join(" "))
            })
            .collect();
        let expected = [
            "speed 3B: 102 166",
            "speed 650M: 102",
            "speed 8M: 102 51 166",
            "speed 35M: 51 102 166",
            "speed 650M: 51 166",
            "speed 3B: 51",
        ];
        assert_eq!(order, expected);
        assert_eq!(Work::speed(&sizes[..1], &[Lengths::Uniprot]).len(), 1);
    }

    #[test]
    fn a_report_is_replaced_at_once_or_told_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let kept = Kept::new(Some(&path));
        for finally in [false, true] {
            kept.write(&Report::default(), finally).unwrap();
            assert!(std::fs::read_to_string(&path).unwrap().contains("findings"));
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("elsewhere", &link).unwrap();
        let kept = Kept::new(Some(&link));
        kept.write(&Report::default(), false).unwrap();
        assert!(!folder.path().join("elsewhere").exists());
        kept.write(&Report::default(), true).unwrap();
        assert!(folder.path().join("elsewhere").exists());
        let nowhere = folder.path().join("no/report.json");
        let failure = Kept::new(Some(&nowhere)).write(&Report::default(), false).unwrap_err();
        assert!(failure.line().contains("no/report.json"), "{}", failure.line());
    }
}
