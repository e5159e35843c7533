//! `Job`: a job file after validation. What is true, as opposed to what was typed ([`crate::JobFile`]).
//!
//! Every path is absolute, every limit resolved; nothing validates a `Job` again.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A validated job.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Job {
    /// The job file it came from.
    pub file: PathBuf,
    /// What to read.
    pub input: Input,
    /// What to compute with.
    pub model: Model,
    /// How to form batches.
    pub packing: Packing,
    /// Where results go.
    pub output: Output,
    /// Where to compute.
    pub devices: Devices,
    /// What to do about failures.
    pub restart: Restart,
    /// What to tell the operator.
    pub telemetry: Telemetry,
    /// What the operator should know of what the job file stands for, one sentence each.
    #[serde(skip)]
    pub notes: Vec<String>,
}

/// What to read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Input {
    /// Input files in reading order, globs and folders expanded (sorted by name).
    pub fasta: Vec<InputSource>,
    /// What the letters are.
    pub alphabet: Alphabet,
    /// What a malformed record does.
    pub on_bad_record: OnBadRecord,
    /// What a repeated id does.
    pub duplicate_ids: DuplicateIds,
    /// Longer sequences follow `too_long`; `None`: no limit.
    pub max_residues: Option<NonZeroU32>,
    /// What becomes of longer sequences.
    pub too_long: TooLong,
    /// What becomes of `-` and `.`.
    pub gaps: Gaps,
    /// A record of more bytes (header and sequence lines) is an error.
    pub max_record_bytes: u64,
}

/// One input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum InputSource {
    /// Standard input.
    Stdin,
    /// A FASTA file, plain or compressed.
    File(PathBuf),
}

/// What the letters of the input are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Alphabet {
    /// Amino acids.
    #[default]
    Protein,
    /// Decided from the first records.
    Auto,
}

/// What a malformed record does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnBadRecord {
    /// Stops the run before anything is computed.
    #[default]
    Stop,
    /// Is listed in `failed.tsv`; the run goes on.
    Skip,
}

/// What a repeated id does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DuplicateIds {
    /// Stops the run before anything is computed.
    #[default]
    Stop,
    /// Is kept; `index` tells the rows apart.
    Keep,
}

/// What becomes of a sequence longer than `max_residues`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TooLong {
    /// Cut to the first `max_residues`.
    #[default]
    Truncate,
    /// Run whole, pool the first `max_residues`.
    PoolFirst,
    /// Stops the run.
    Stop,
    /// Is listed in `failed.tsv`.
    Skip,
}

/// What becomes of gap letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Gaps {
    /// Kept: they are tokens of the vocabulary.
    #[default]
    Keep,
    /// Removed before tokenising.
    Remove,
}

/// What to compute with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Model {
    /// Where the weights are.
    pub source: ModelSource,
    /// Which hidden state.
    pub layer: Layer,
    /// How residues become one vector.
    pub pooling: Pooling,
    /// Arithmetic.
    pub precision: Precision,
}

/// Where the weights are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelSource {
    /// The demonstration model inside the program.
    Demo,
    /// A folder in Hugging Face layout.
    Folder(PathBuf),
    /// One `.safetensors` file, its `config.json` beside it.
    Safetensors(PathBuf),
    /// A fair-esm `.pt` checkpoint.
    FairEsm(PathBuf),
    /// `organisation/name`, looked up in the local hub cache.
    Hub(String),
}

/// Which hidden state is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// After the last layer and the final layer norm.
    Last,
    /// 0 (embedding) to the number of layers.
    Index(usize),
}

/// How residues become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// Mean over residues.
    #[default]
    Mean,
    /// The BOS token's vector.
    Bos,
    /// Maximum over residues.
    Max,
    /// One vector per residue.
    None,
}

/// Arithmetic asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// The device's best exact-enough choice.
    #[default]
    Auto,
    /// 32-bit.
    Fp32,
    /// bfloat16.
    Bf16,
    /// float16.
    Fp16,
    /// 8-bit integers, on CPUs; only by name.
    Int8,
}

/// How to form batches.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Packing {
    /// Tokens per batch; `None`: chosen for the devices.
    pub token_budget: Option<NonZeroU32>,
    /// Sequences looked at together when packing.
    pub buffer_sequences: usize,
}

/// Where results go.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Output {
    /// Result folder.
    pub directory: PathBuf,
    /// File format.
    pub format: Format,
    /// Sequences per output part, the unit of commit.
    pub segment_sequences: u32,
    /// Stored number type.
    pub float: Float,
    /// A segment that has been open for so long is kept in a journal as well, milliseconds.
    pub journal_ms: u64,
}

/// File format of the embeddings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Apache Parquet parts.
    #[default]
    Parquet,
}

/// Stored number type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Float {
    /// 32-bit.
    #[default]
    F32,
    /// 16-bit.
    F16,
}

/// Where to compute.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Devices {
    /// Which devices.
    pub choice: DeviceChoice,
    /// CPU threads of the `cpu` device; `None`: one for each core that the process may use.
    pub threads: Option<NonZeroU32>,
}

/// Which devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceChoice {
    /// The best found on this machine.
    Auto,
    /// These, `sim:n` expanded to n devices.
    Listed(Vec<Device>),
}

/// One device as named in a job.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Device {
    /// The CPU engine.
    Cpu,
    /// An NVIDIA GPU by index, UUID or PCI id, as typed after `cuda:`.
    Cuda(String),
    /// The burn engine on the CPU.
    BurnCpu,
    /// The burn engine on the NVIDIA GPU with this index.
    BurnCuda(u16),
    /// Simulated device number n, from 0.
    Sim(u32),
}

/// What to do about failures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Restart {
    /// First pause before a failed device is started again, milliseconds.
    pub backoff_ms_min: u64,
    /// Longest such pause, milliseconds.
    pub backoff_ms_max: u64,
    /// Tries of one batch before it is halved.
    pub attempts_per_batch_max: u32,
    /// Restarts of one device without progress before it is retired.
    pub restarts_per_device_max: u32,
    /// A worker that makes no progress for so long is killed, milliseconds.
    pub hang_ms: u64,
    /// A model that is not loaded after so long is a failed start, milliseconds.
    pub load_ms_max: u64,
    /// A retired device is tried again after so long, milliseconds; 0: never.
    pub readmit_ms: u64,
    /// A run without progress for so long says what holds it up, milliseconds.
    pub stall_ms: u64,
    /// Time to commit what is in flight after the first stop signal, milliseconds.
    pub shutdown_grace_ms: u64,
}

/// What to tell the operator.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Telemetry {
    /// Progress display.
    pub progress: ProgressDisplay,
    /// Log filter, `tracing` syntax.
    pub log: String,
    /// Log format.
    pub log_format: LogFormat,
    /// Where metrics are served over HTTP; `None`: nowhere.
    pub prometheus: Option<SocketAddr>,
}

/// Progress display.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ProgressDisplay {
    /// On a terminal the dashboard, or a bar where only standard error is one; else lines.
    #[default]
    Auto,
    /// The dashboard: needs a terminal.
    Dashboard,
    /// One key=value line per interval.
    Lines,
    /// Nothing.
    None,
}

/// Log format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}
