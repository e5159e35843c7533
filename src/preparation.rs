//! From a job to what a run needs: model, devices, input survey. `plan` and `run` share it.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use actors::DevicePlan;
use actors::fasta::{FileStamp, InputError, Source, Survey, survey};
use actors::manifest::{Manifest, ResultFolder};
use actors::packing::PackingPlan;
use actors::part::PartSchema;
use actors::protocol::{EngineChoice, WeightsChoice};
use actors::segment::SegmentLimits;
use config::{InputSource, Job, Layer, ModelSource};
use kernels::{EngineOptions, Model, ModelConfig, ModelPath, Pooling, Precision, SimProgram};

use crate::devices::{self, Chosen, ChosenGpu, Machine};
use crate::failure::{Exit, Failure};

/// Environment variable with the programme of simulated devices; see `kernels::SimProgram`.
pub(crate) const SIM_PROGRAM_VARIABLE: &str = "VIRNUCPRO_SIM";

/// Tokens per batch of simulated devices when the job leaves it open.
const SIM_TOKEN_BUDGET: u32 = 16_384;

/// Tokens per batch of a GPU whose driver does not tell its memory.
const GPU_TOKEN_BUDGET: u32 = 16_384;

/// What computes, resolved: which weights on which devices.
pub(crate) struct Compute {
    pub(crate) model: ModelFacts,
    pub(crate) devices: Vec<DevicePlan>,
    pub(crate) pooling: Pooling,
    pub(crate) precision: Precision,
    pub(crate) layer: usize,
    pub(crate) packing: PackingPlan,
    pub(crate) limits: SegmentLimits,
    /// What the operator should know about inputs and devices that are not used.
    pub(crate) notes: Vec<String>,
}

impl Compute {
    /// The shape of the result.
    pub(crate) fn part_schema(&self, job: &Job) -> PartSchema {
        let per_residue = self.pooling == Pooling::None;
        PartSchema { hidden: self.model.hidden, float: job.output.float, per_residue }
    }
}

/// The model, without its weights.
pub(crate) struct ModelFacts {
    /// As given in the job.
    pub(crate) source: String,
    pub(crate) layers: usize,
    pub(crate) hidden: usize,
    /// `None` for simulated devices.
    pub(crate) opened: Option<Model>,
}

impl ModelFacts {
    /// Digest of the weights, `sim` for simulated devices.
    ///
    /// # Errors
    /// If the weights cannot be read.
    pub(crate) fn sha256(&self) -> Result<String, Failure> {
        match &self.opened {
            Some(model) => model.sha256().map_err(|error| Failure::because(Exit::Failed, &error)),
            None => Ok("sim".to_owned()),
        }
    }

    pub(crate) fn config(&self) -> Option<&ModelConfig> {
        self.opened.as_ref().map(Model::config)
    }
}

/// Resolves model and devices of a job; opens the weights' headers, not the weights.
///
/// `fresh`: an earlier result of this job does not matter.
pub(crate) fn compute(job: &Job, fresh: bool) -> Result<Compute, Failure> {
    let devices::Selection { devices, notes: of_devices } =
        devices::select(&job.devices.choice, Machine::look)?;
    let mut notes = [job.notes.clone(), of_devices].concat();
    let simulated = devices.iter().filter(|device| matches!(device, Chosen::Sim(_))).count();
    if simulated != 0 && simulated != devices.len() {
        let text = "simulated and real devices cannot work on one job: their results differ";
        return Err(Failure::new(Exit::Usage, text).hint("set devices.use to one kind"));
    }
    if devices.iter().any(|device| matches!(device, Chosen::Cpu)) {
        kernels::cpu::check_environment().map_err(|text| {
            Failure::new(Exit::Usage, text)
                .hint("it comes from the environment: unset it to let the engine choose")
        })?;
    }
    let threads = threads(job);
    let pooling = match job.model.pooling {
        config::Pooling::Mean => Pooling::Mean,
        config::Pooling::Bos => Pooling::Bos,
        config::Pooling::Max => Pooling::Max,
        config::Pooling::None => Pooling::None,
    };
    let (model, weights, program) = if simulated == 0 {
        let (opened, weights) = open_model(&job.model.source)?;
        let (layers, hidden) = (opened.config().layers, opened.config().hidden);
        let source = job.model.source.to_string();
        (ModelFacts { source, layers, hidden, opened: Some(opened) }, Some(weights), String::new())
    } else {
        let program = std::env::var(SIM_PROGRAM_VARIABLE).unwrap_or_default();
        let parsed = SimProgram::parse(&program).map_err(|error| {
            Failure::because(Exit::Usage, &error).hint(format!("it comes from {SIM_PROGRAM_VARIABLE}"))
        })?;
        let model = ModelFacts { source: "sim".to_owned(), layers: 0, hidden: parsed.hidden(), opened: None };
        (model, None, program)
    };
    let earlier = if fresh { None } else { earlier_precision(job) };
    let precision = devices::precision(job.model.precision, &devices, earlier)?;
    let layer = match job.model.layer {
        Layer::Last => model.layers,
        Layer::Index(layer) if layer <= model.layers || simulated != 0 => layer,
        Layer::Index(layer) => {
            let text = format!("model.layer = {layer}: `{}` has layers 0 to {}", model.source, model.layers);
            return Err(Failure::new(Exit::Usage, text).hint("0 is the embedding, \"last\" the usual choice"));
        }
    };
    let options = EngineOptions { layer, pooling, precision, threads };
    let room = |device: &Chosen| match (device, model.config()) {
        (Chosen::Gpu(gpu), Some(config)) => gpu_tokens(gpu, config, layer, pooling, precision),
        (Chosen::Cpu | Chosen::Burn(_), Some(config)) => Ok(kernels::cpu::token_budget_auto(config, threads)),
        (Chosen::Cpu | Chosen::Burn(_) | Chosen::Sim(_) | Chosen::Gpu(_), _) => Ok(SIM_TOKEN_BUDGET),
    };
    let is_auto = job.devices.choice == config::DeviceChoice::Auto;
    let devices = with_room(devices, room, is_auto, &mut notes)?;
    let rooms: Vec<u32> = devices.iter().map(|&(_, tokens)| tokens).collect();
    let typed = job.packing.token_budget.map(NonZeroU32::get);
    let token_budget = typed.unwrap_or_else(|| common_budget(&rooms));
    let devices = devices
        .into_iter()
        .map(|(device, room)| {
            let weights = || weights.clone().expect("real devices have weights");
            let (gpu, environment) = match &device {
                Chosen::Gpu(gpu) => (Some(gpu.which()), gpu.environment()),
                Chosen::Cpu | Chosen::Sim(_) | Chosen::Burn(_) => (None, Vec::new()),
            };
            DevicePlan {
                name: device.to_string(),
                options: options.clone(),
                gpu,
                environment,
                // What was typed is meant for every device; a GPU's worker still says what it has room for.
                tokens_max: typed.is_none().then_some(room).filter(|&room| room < token_budget),
                engine: match device {
                    Chosen::Sim(device) => EngineChoice::Sim { device, program: program.clone() },
                    Chosen::Cpu => EngineChoice::Cpu { weights: weights() },
                    Chosen::Burn(gpu) => EngineChoice::Burn { gpu, weights: weights() },
                    Chosen::Gpu(gpu) => {
                        EngineChoice::Cuda { weights: weights(), uuid: gpu.installed.identity.uuid }
                    }
                },
            }
        })
        .collect();
    let limits = SegmentLimits::new(job.output.segment_sequences, model.hidden, pooling);
    let packing = PackingPlan { token_budget, window_sequences: job.packing.buffer_sequences };
    Ok(Compute { model, devices, pooling, precision, layer, packing, limits, notes })
}

/// The precision in which the result that the job goes on with was begun. What cannot be read is for those to
/// report who need it.
fn earlier_precision(job: &Job) -> Option<Precision> {
    let manifest = Manifest::read(&ResultFolder(job.output.directory.clone())).ok()??;
    let name = manifest.identity.get("model.precision")?;
    let all = [Precision::Fp32, Precision::Fp16, Precision::Bf16, Precision::Int8];
    all.into_iter().find(|&precision| crate::identity::precision(precision) == name)
}

/// Tokens of a batch that a GPU has room for beside the model, as far as its driver tells.
fn gpu_tokens(
    gpu: &ChosenGpu,
    config: &ModelConfig,
    layer: usize,
    pooling: Pooling,
    precision: Precision,
) -> Result<u32, String> {
    /// What CUDA itself takes once it is used: a context with its libraries.
    const CONTEXT_BYTES: u64 = 600 << 20;
    // A driver that does not tell is an old one or of a small board: the worker finds out.
    let Some((free, total)) = gpu.installed.memory else { return Ok(GPU_TOKEN_BUDGET) };
    let memory = (free.saturating_sub(CONTEXT_BYTES), total);
    kernels::cuda::token_budget(config, layer, pooling, precision, memory, gpu.installed.multiprocessors)
}

/// Each device with the tokens that it has room for. `auto` leaves out a GPU that the model does not fit.
fn with_room(
    devices: Vec<Chosen>,
    room: impl Fn(&Chosen) -> Result<u32, String>,
    is_auto: bool,
    notes: &mut Vec<String>,
) -> Result<Vec<(Chosen, u32)>, Failure> {
    let mut fitting = Vec::new();
    let mut first = None;
    for device in devices {
        match room(&device) {
            Ok(tokens) => fitting.push((device, tokens)),
            Err(reason) => {
                let text = format!("{device} is not used: {reason}");
                first.get_or_insert_with(|| Failure::new(Exit::Usage, format!("{device}: {reason}")));
                notes.push(text);
            }
        }
    }
    match first {
        Some(failure) if !is_auto || fitting.is_empty() => Err(failure),
        Some(_) | None => Ok(fitting),
    }
}

/// The tokens of a batch that suit devices with room for so many each: the least of those that are not small
/// beside the greatest. A batch that is cut for a smaller device leaves another one badly filled; a device that has
/// not half of what others have is worth that.
fn common_budget(rooms: &[u32]) -> u32 {
    let greatest = rooms.iter().copied().max().unwrap_or(SIM_TOKEN_BUDGET);
    rooms.iter().copied().filter(|&room| room >= greatest.div_ceil(2)).min().unwrap_or(greatest)
}

/// CPU threads of the `cpu` device: as set, else one for each core that this process may use.
fn threads(job: &Job) -> usize {
    match job.devices.threads {
        Some(threads) => threads.get() as usize,
        None => kernels::cpu::threads_auto(),
    }
}

fn open_model(source: &ModelSource) -> Result<(Model, WeightsChoice), Failure> {
    let failed = |error: kernels::ModelError| {
        Failure::because(Exit::Usage, &error).hint("model.source names the weights; see README, Real weights")
    };
    let path = match source {
        ModelSource::Demo => {
            let model =
                Model::from_bytes(config::demo::CONFIG_JSON, config::demo::WEIGHTS).map_err(failed)?;
            return Ok((model, WeightsChoice::Demo));
        }
        ModelSource::Folder(path) => ModelPath::Folder(path.clone()),
        ModelSource::Safetensors(path) => ModelPath::Safetensors(path.clone()),
        ModelSource::FairEsm(path) => ModelPath::FairEsm(path.clone()),
        ModelSource::Hub(name) => kernels::model::hub::resolve(name).map_err(failed)?,
    };
    let model = Model::open(&path).map_err(failed)?;
    let stamps = weight_stamps(&model).map_err(|error| {
        Failure::new(Exit::Failed, format!("failed to look at `{}`: {error}", model.name()))
    })?;
    let config = model.config().clone();
    Ok((model, WeightsChoice::Path { path, config, stamps }))
}

/// What tells whether a model's weight files are still the same.
///
/// # Errors
/// If one of them is gone.
pub(crate) fn weight_stamps(model: &Model) -> std::io::Result<Vec<FileStamp>> {
    model.files().iter().map(|file| FileStamp::of(file)).collect()
}

/// The inputs of a job as files; standard input is kept at `kept` first.
///
/// `unclaimed`: no result refers to what was kept, which what is piped in replaces. `stored`: hears how many of its bytes are kept.
///
/// # Errors
/// If standard input cannot be read or kept.
pub(crate) fn sources(
    job: &Job,
    kept: &Path,
    unclaimed: bool,
    bar: bool,
    stored: &dyn Fn(u64),
) -> Result<Vec<Source>, InputError> {
    let mut sources = Vec::new();
    for source in &job.input.fasta {
        sources.push(match source {
            InputSource::File(path) => Source::file(path),
            InputSource::Stdin => {
                let progress = crate::progress::storing_bar(bar);
                let kept = keep_stdin(kept, unclaimed, &|bytes| {
                    progress.set_position(bytes);
                    stored(bytes);
                });
                progress.finish_and_clear();
                kept?
            }
        });
    }
    Ok(sources)
}

/// Where standard input is that has not all arrived, beside where it will be kept. Left behind by a run that ended
/// meanwhile, it says so.
pub(crate) fn arriving_stdin(kept: &Path) -> PathBuf {
    kept.with_file_name("stdin-new.fasta.partial")
}

/// Where standard input is that is not what was kept, beside that.
pub(crate) fn arrived_stdin(kept: &Path) -> PathBuf {
    kept.with_file_name("stdin-new.fasta")
}

/// Keeps standard input at `kept`, without ever losing what an earlier run kept there.
///
/// Nothing piped in (a terminal, `</dev/null` of a batch job) means: the input is what was kept; an earlier run that was
/// stopped before all had arrived kept nothing. Other
/// content stays beside it, unless it is `unclaimed`; the run is then refused as another job, or with `--fresh` takes it
/// once it is found to be good.
fn keep_stdin(kept: &Path, unclaimed: bool, stored: &dyn Fn(u64)) -> Result<Source, InputError> {
    use std::io::IsTerminal;
    let stdin = std::io::stdin();
    if stdin.is_terminal() && kept.is_file() {
        return Ok(Source::spooled_stdin(kept));
    }
    if !kept.is_file() && is_closed(&stdin) {
        return Err(InputError::StdinClosed);
    }
    let arriving = arrived_stdin(kept);
    let partial = arriving_stdin(kept);
    let was_cut_short = partial.is_file();
    let arrived = actors::fasta::spool_stdin(&mut stdin.lock(), &arriving, stored)?;
    let spool = |source| InputError::Spool { path: kept.to_owned(), source };
    let nothing = std::fs::metadata(&arriving).map_err(spool)?.len() == 0;
    if nothing && was_cut_short && !kept.is_file() {
        // The mark stays, however often it is tried.
        std::fs::rename(&arriving, &partial).map_err(spool)?;
        return Err(InputError::StdinCutShort);
    }
    if kept.is_file() {
        if nothing || same_content(&arriving, kept).map_err(spool)? {
            std::fs::remove_file(&arriving).map_err(spool)?;
            return Ok(Source::spooled_stdin(kept));
        }
        if !unclaimed {
            return Ok(arrived);
        }
    }
    std::fs::rename(&arriving, kept).map_err(spool)?;
    // Segments are committed from now on that only these bytes can complete: the name must outlive a power cut.
    actors::files::sync_folder_of(kept).map_err(spool)?;
    Ok(Source::spooled_stdin(kept))
}

/// Whether nobody can have meant anything to come from standard input. Where it is closed, the start of every Rust
/// program opens `/dev/null` in its place, for reading and writing, and `nohup` opens that for writing alone; who means
/// an empty input opens it for reading.
fn is_closed(stdin: &std::io::Stdin) -> bool {
    use std::os::unix::fs::MetadataExt;
    let null = std::fs::metadata("/dev/null").map(|null| null.rdev());
    let is_null = rustix::fs::fstat(stdin).is_ok_and(|stdin| null.is_ok_and(|null| null == stdin.st_rdev));
    let mode = rustix::fs::fcntl_getfl(stdin).map(|flags| flags & rustix::fs::OFlags::RWMODE);
    match mode {
        Ok(rustix::fs::OFlags::WRONLY) | Err(_) => true,
        Ok(rustix::fs::OFlags::RDWR) => is_null,
        Ok(_) => false,
    }
}

fn same_content(one: &Path, other: &Path) -> std::io::Result<bool> {
    use std::fs::File;
    use std::io::{BufRead, BufReader};
    let (mut one, mut other) = (BufReader::new(File::open(one)?), BufReader::new(File::open(other)?));
    loop {
        let (ours, theirs) = (one.fill_buf()?, other.fill_buf()?);
        let common = ours.len().min(theirs.len());
        if common == 0 {
            return Ok(ours.is_empty() && theirs.is_empty());
        }
        if ours[..common] != theirs[..common] {
            return Ok(false);
        }
        one.consume(common);
        other.consume(common);
    }
}

/// Reads the whole input once, with a bar on a terminal. `row_residues_max`: see [`PartSchema::residues_max`]. `told`: hears how many bytes of how many are read.
///
/// # Errors
/// Everything that is wrong with the input.
pub(crate) fn survey_input(
    job: &Job,
    sources: &[Source],
    row_residues_max: u32,
    scratch: &Path,
    bar: bool,
    told: &dyn Fn(u64, u64),
) -> Result<Survey, InputError> {
    let progress = crate::progress::survey_bar(bar);
    let result = survey(&job.input, sources, row_residues_max, scratch, &|read, total| {
        progress.set_length(total);
        progress.set_position(read);
        told(read, total);
    });
    progress.finish_and_clear();
    if let Ok(survey) = &result {
        warn_of_empty(survey);
    }
    result
}

/// Warns of empty inputs among others: what was to be in them may be missing. One that is alone is told with the result.
fn warn_of_empty(survey: &Survey) {
    let mut empty = survey.files.iter().filter(|file| file.bytes == 0);
    if survey.files.len() > 1
        && let Some(first) = empty.next()
    {
        tracing::warn!(inputs = empty.count() + 1, first = first.path, "empty inputs hold no records");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_suit_all_devices_but_those_far_too_small() {
        assert_eq!(common_budget(&[33_792]), 33_792);
        assert_eq!(common_budget(&[33_792, 27_648, 32_768]), 27_648);
        assert_eq!(common_budget(&[33_792, 2_048]), 33_792);
        assert_eq!(common_budget(&[4_096, 4_096]), 4_096);
    }

    #[test]
    fn auto_leaves_out_a_device_that_the_model_does_not_fit() {
        let room = |device: &Chosen| match device {
            Chosen::Sim(0) => Err("the model does not fit".to_owned()),
            _ => Ok(100),
        };
        let devices = || vec![Chosen::Sim(0), Chosen::Sim(1)];
        let mut notes = Vec::new();
        assert_eq!(with_room(devices(), room, true, &mut notes).unwrap(), [(Chosen::Sim(1), 100)]);
        assert_eq!(notes, ["sim:0 is not used: the model does not fit"]);
        let refused = with_room(devices(), room, false, &mut notes).unwrap_err();
        assert_eq!(refused.line(), "sim:0: the model does not fit");
        assert!(with_room(vec![Chosen::Sim(0)], room, true, &mut notes).is_err());
    }
}
