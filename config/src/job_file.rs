//! `JobFile`: a job file as it was typed. Nothing in it is checked beyond its types; [`crate::Job`] is what is
//! true.
//!
//! The doc comments of its fields are the descriptions that editors show (through the JSON schema), so they
//! speak to the person who writes a job. A job written out again is a `JobFile` made from a [`Job`].

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::expansion::escape;
use crate::job::{
    Alphabet, Device, DeviceChoice, DuplicateIds, Float, Format, Gaps, Job, Layer, LogFormat, OnBadRecord,
    Pooling, Precision, ProgressDisplay, TooLong,
};
use crate::limits::{self, Limit};

/// A virnucpro-orch job. Only `input.fasta` and `output.directory` have no default. Relative paths resolve
/// against this file's folder; `~`, `${VAR}` and `${VAR:-default}` are expanded.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "virnucpro-orch job")]
pub struct JobFile {
    /// What to read.
    pub input: InputTable,
    /// What to compute with.
    #[serde(default)]
    pub model: ModelTable,
    /// How to form batches.
    #[serde(default)]
    pub packing: PackingTable,
    /// Where results go.
    pub output: OutputTable,
    /// Where to compute.
    #[serde(default)]
    pub devices: DevicesTable,
    /// What to do about failures.
    #[serde(default)]
    pub restart: RestartTable,
    /// What to tell the operator.
    #[serde(default)]
    pub telemetry: TelemetryTable,
}

/// What to read.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InputTable {
    /// FASTA files, patterns (`data/*.faa`), folders, or "-" for standard input; read in this order. Compressed
    /// files (.gz, .bgz, .zst) are recognised by their content.
    pub fasta: OneOrMore,
    /// What the letters are.
    #[serde(default)]
    pub alphabet: Alphabet,
    /// What a malformed record does.
    #[serde(default)]
    pub on_bad_record: OnBadRecord,
    /// What a repeated id does.
    #[serde(default)]
    pub duplicate_ids: DuplicateIds,
    /// Sequences of more residues follow `too_long`; 0: no limit.
    #[serde(default)]
    #[schemars(range(min = limits::MAX_RESIDUES.min, max = limits::MAX_RESIDUES.max))]
    pub max_residues: i64,
    /// What becomes of sequences longer than `max_residues`.
    #[serde(default)]
    pub too_long: TooLong,
    /// What becomes of the gap letters `-` and `.`.
    #[serde(default)]
    pub gaps: Gaps,
    /// A record of more bytes, header and sequence lines together, stops the run, whatever `on_bad_record` says.
    #[serde(default = "max_record_bytes_default")]
    #[schemars(range(min = limits::MAX_RECORD_BYTES.min, max = limits::MAX_RECORD_BYTES.max))]
    pub max_record_bytes: i64,
}

fn max_record_bytes_default() -> i64 {
    64 << 20
}

/// What to compute with.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelTable {
    /// "demo" (the small model inside the program), a folder in Hugging Face layout, a .safetensors file, a
    /// fair-esm .pt checkpoint, or a name such as "facebook/esm2_t33_650M_UR50D", taken from the local hub cache.
    pub source: String,
    /// Which hidden state: "last", or 0 (the embedding) to the number of layers.
    #[schemars(schema_with = "layer_schema")]
    pub layer: LayerTyped,
    /// How residues become one vector.
    pub pooling: Pooling,
    /// Arithmetic.
    pub precision: Precision,
}

/// How to form batches.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PackingTable {
    /// Tokens per batch; "auto": chosen for the devices.
    #[schemars(schema_with = "token_budget_schema")]
    pub token_budget: Count,
    /// Sequences looked at together when packing.
    #[schemars(range(min = limits::BUFFER_SEQUENCES.min, max = limits::BUFFER_SEQUENCES.max))]
    pub buffer_sequences: i64,
}

/// Where results go.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OutputTable {
    /// Result folder, made when missing.
    pub directory: String,
    /// File format of the embeddings.
    #[serde(default)]
    pub format: Format,
    /// Sequences per output part, the unit of commit.
    #[serde(default = "segment_sequences_default")]
    #[schemars(range(min = limits::SEGMENT_SEQUENCES.min, max = limits::SEGMENT_SEQUENCES.max))]
    pub segment_sequences: i64,
    /// Stored number type.
    #[serde(default)]
    pub float: Float,
    /// A segment that has been open for so long is kept in a journal as well, milliseconds: the most work that
    /// a killed run loses.
    #[serde(default = "journal_ms_default")]
    #[schemars(range(min = limits::JOURNAL_MS.min, max = limits::JOURNAL_MS.max))]
    pub journal_ms: i64,
}

fn journal_ms_default() -> i64 {
    30_000
}

fn segment_sequences_default() -> i64 {
    16_384
}

/// Where to compute.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DevicesTable {
    /// "auto" (every NVIDIA GPU, else the CPU), or a list of "cpu", "cuda:0" (index, UUID or PCI id) and
    /// "sim:8" (eight simulated devices). "burn-cpu" and "burn-cuda:0" need a build with those features.
    pub r#use: OneOrMore,
    /// Threads of the cpu device; "auto": one for each core that the process may use.
    #[schemars(schema_with = "threads_schema")]
    pub threads: Count,
}

/// What to do about failures.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RestartTable {
    /// First pause before a failed device is started again, milliseconds. It doubles with each failure.
    #[schemars(range(min = limits::BACKOFF_MS.min, max = limits::BACKOFF_MS.max))]
    pub backoff_ms_min: i64,
    /// Longest such pause, milliseconds.
    #[schemars(range(min = limits::BACKOFF_MS.min, max = limits::BACKOFF_MS.max))]
    pub backoff_ms_max: i64,
    /// Tries of one batch before it is halved to find the sequence that breaks it.
    #[schemars(range(min = limits::ATTEMPTS_PER_BATCH.min, max = limits::ATTEMPTS_PER_BATCH.max))]
    pub attempts_per_batch_max: i64,
    /// Restarts of one device without progress before it is retired.
    #[schemars(range(min = limits::RESTARTS_PER_DEVICE.min, max = limits::RESTARTS_PER_DEVICE.max))]
    pub restarts_per_device_max: i64,
    /// A worker that makes no progress for so long is killed, milliseconds.
    #[schemars(range(min = limits::HANG_MS.min, max = limits::HANG_MS.max))]
    pub hang_ms: i64,
    /// A model that is not loaded after so long is a failed start, milliseconds.
    #[schemars(range(min = limits::LOAD_MS.min, max = limits::LOAD_MS.max))]
    pub load_ms_max: i64,
    /// A retired device is tried again after so long, milliseconds; 0: never.
    #[schemars(range(min = limits::READMIT_MS.min, max = limits::READMIT_MS.max))]
    pub readmit_ms: i64,
    /// A run without progress for so long says what holds it up, milliseconds.
    #[schemars(range(min = limits::STALL_MS.min, max = limits::STALL_MS.max))]
    pub stall_ms: i64,
    /// Time to commit what is in flight after the first stop signal, milliseconds.
    #[schemars(range(min = limits::SHUTDOWN_GRACE_MS.min, max = limits::SHUTDOWN_GRACE_MS.max))]
    pub shutdown_grace_ms: i64,
}

/// What to tell the operator.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryTable {
    /// Progress display, on standard error.
    pub progress: ProgressDisplay,
    /// Log filter: "warn", "info", "debug", or per module as in "info,actors=debug".
    #[schemars(length(min = 1))]
    pub log: String,
    /// Log format, on standard error.
    pub log_format: LogFormat,
    /// Where Prometheus may read metrics over HTTP, as in "127.0.0.1:9464"; "off": nowhere. At an address other than
    /// of this machine itself anyone who reaches it can read them.
    #[schemars(length(min = 1))]
    pub prometheus: String,
}

impl Default for ModelTable {
    fn default() -> Self {
        Self {
            source: "demo".to_owned(),
            layer: LayerTyped::Last,
            pooling: Pooling::default(),
            precision: Precision::default(),
        }
    }
}

impl Default for PackingTable {
    fn default() -> Self {
        Self { token_budget: Count::Auto, buffer_sequences: 2_000 }
    }
}

impl Default for DevicesTable {
    fn default() -> Self {
        Self { r#use: OneOrMore::One("auto".to_owned()), threads: Count::Auto }
    }
}

impl Default for RestartTable {
    fn default() -> Self {
        Self {
            backoff_ms_min: 500,
            backoff_ms_max: 60_000,
            attempts_per_batch_max: 3,
            restarts_per_device_max: 8,
            hang_ms: 300_000,
            load_ms_max: 600_000,
            readmit_ms: 600_000,
            stall_ms: 60_000,
            shutdown_grace_ms: 10_000,
        }
    }
}

impl Default for TelemetryTable {
    fn default() -> Self {
        Self {
            progress: ProgressDisplay::default(),
            log: "info".to_owned(),
            log_format: LogFormat::default(),
            prometheus: "off".to_owned(),
        }
    }
}

/// A number, or "auto".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Chosen by the program.
    Auto,
    /// As typed.
    Number(i64),
}

/// A layer's number, or "last".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerTyped {
    /// After the last layer and the final layer norm.
    Last,
    /// As typed.
    Number(i64),
}

/// One text, or a list of texts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum OneOrMore {
    /// `"a"`.
    One(String),
    /// `["a", "b"]`.
    More(Vec<String>),
}

impl OneOrMore {
    /// Returns the texts; one text is a list of one.
    pub fn as_slice(&self) -> &[String] {
        match self {
            OneOrMore::One(text) => std::slice::from_ref(text),
            OneOrMore::More(texts) => texts,
        }
    }
}

/// Takes one word or a whole number; the word yields `None`.
struct WordOrNumber {
    /// The word, then what the number is.
    allowed: &'static [&'static str; 2],
}

impl Visitor<'_> for WordOrNumber {
    type Value = Option<i64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [word, number] = self.allowed;
        write!(f, "{word:?} or {number}")
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Some(number))
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<Self::Value, E> {
        if word == self.allowed[0] { Ok(None) } else { Err(E::unknown_variant(word, self.allowed)) }
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let allowed = &["auto", "a whole number"];
        Ok(deserializer.deserialize_any(WordOrNumber { allowed })?.map_or(Count::Auto, Count::Number))
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Count::Auto => serializer.serialize_str("auto"),
            Count::Number(number) => serializer.serialize_i64(*number),
        }
    }
}

impl<'de> Deserialize<'de> for LayerTyped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let allowed = &["last", "a layer's number"];
        let number = deserializer.deserialize_any(WordOrNumber { allowed })?;
        Ok(number.map_or(LayerTyped::Last, LayerTyped::Number))
    }
}

impl Serialize for LayerTyped {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            LayerTyped::Last => serializer.serialize_str("last"),
            LayerTyped::Number(number) => serializer.serialize_i64(*number),
        }
    }
}

impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;

        impl<'de> Visitor<'de> for Texts {
            type Value = OneOrMore;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMore, E> {
                Ok(OneOrMore::One(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<OneOrMore, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = items.next_element()? {
                    texts.push(text);
                }
                Ok(OneOrMore::More(texts))
            }
        }

        // A bare word of `--set` may look like a number (`input.fasta=7`): ask for text first.
        deserializer.deserialize_str(Texts)
    }
}

impl JsonSchema for OneOrMore {
    fn schema_name() -> Cow<'static, str> {
        "OneOrMore".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "string", "minLength": 1 },
                { "type": "array", "items": { "type": "string", "minLength": 1 }, "minItems": 1 },
            ],
        })
    }
}

fn word_or_number_schema(word: &str, limit: Limit) -> Schema {
    json_schema!({
        "anyOf": [
            { "const": word },
            { "type": "integer", "minimum": limit.min, "maximum": limit.max },
        ],
    })
}

fn layer_schema(_: &mut SchemaGenerator) -> Schema {
    word_or_number_schema("last", limits::LAYER)
}

fn token_budget_schema(_: &mut SchemaGenerator) -> Schema {
    word_or_number_schema("auto", limits::TOKEN_BUDGET)
}

fn threads_schema(_: &mut SchemaGenerator) -> Schema {
    word_or_number_schema("auto", limits::THREADS)
}

impl From<&Job> for JobFile {
    /// Writes out what is true so that it can be typed: read again, it gives the same job.
    fn from(job: &Job) -> Self {
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let count = |count: Option<std::num::NonZeroU32>| {
            count.map_or(Count::Auto, |n| Count::Number(n.get().into()))
        };
        let fasta = job.input.fasta.iter().map(|source| escape(&source.to_string()));
        JobFile {
            input: InputTable {
                fasta: OneOrMore::More(fasta.collect()),
                alphabet: job.input.alphabet,
                on_bad_record: job.input.on_bad_record,
                duplicate_ids: job.input.duplicate_ids,
                max_residues: job.input.max_residues.map_or(0, |n| n.get().into()),
                too_long: job.input.too_long,
                gaps: job.input.gaps,
                max_record_bytes: number(job.input.max_record_bytes),
            },
            model: ModelTable {
                source: escape(&job.model.source.to_string()),
                layer: match job.model.layer {
                    Layer::Last => LayerTyped::Last,
                    Layer::Index(index) => LayerTyped::Number(number(index as u64)),
                },
                pooling: job.model.pooling,
                precision: job.model.precision,
            },
            packing: PackingTable {
                token_budget: count(job.packing.token_budget),
                buffer_sequences: number(job.packing.buffer_sequences as u64),
            },
            output: OutputTable {
                directory: escape(&job.output.directory.to_string_lossy()),
                format: job.output.format,
                segment_sequences: job.output.segment_sequences.into(),
                float: job.output.float,
                journal_ms: number(job.output.journal_ms),
            },
            devices: DevicesTable {
                r#use: match &job.devices.choice {
                    DeviceChoice::Auto => OneOrMore::One("auto".to_owned()),
                    DeviceChoice::Listed(devices) => OneOrMore::More(typed_devices(devices)),
                },
                threads: count(job.devices.threads),
            },
            restart: RestartTable {
                backoff_ms_min: number(job.restart.backoff_ms_min),
                backoff_ms_max: number(job.restart.backoff_ms_max),
                attempts_per_batch_max: job.restart.attempts_per_batch_max.into(),
                restarts_per_device_max: job.restart.restarts_per_device_max.into(),
                hang_ms: number(job.restart.hang_ms),
                load_ms_max: number(job.restart.load_ms_max),
                readmit_ms: number(job.restart.readmit_ms),
                stall_ms: number(job.restart.stall_ms),
                shutdown_grace_ms: number(job.restart.shutdown_grace_ms),
            },
            telemetry: TelemetryTable {
                progress: job.telemetry.progress,
                log: escape(&job.telemetry.log),
                log_format: job.telemetry.log_format,
                prometheus: job
                    .telemetry
                    .prometheus
                    .map_or_else(|| "off".to_owned(), |address| address.to_string()),
            },
        }
    }
}

/// Writes devices as a job names them: the simulated ones, numbered from 0, as one `sim:n`.
fn typed_devices(devices: &[Device]) -> Vec<String> {
    let simulated = devices.iter().filter(|device| matches!(device, Device::Sim(_))).count();
    devices
        .iter()
        .filter_map(|device| match device {
            Device::Cpu | Device::Cuda(_) | Device::BurnCpu | Device::BurnCuda(_) => Some(device.to_string()),
            Device::Sim(0) => Some(format!("sim:{simulated}")),
            Device::Sim(_) => None,
        })
        .collect()
}
