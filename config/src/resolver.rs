//! Turns a [`JobFile`] into a [`Job`]: expands, resolves, checks limits, and collects every mistake it finds.
//!
//! The decoder has already refused unknown keys, wrong types and unknown words.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use crate::device;
use crate::document::{Document, Place};
use crate::expansion::{expand_home, expand_variables};
use crate::inputs::{self, clean};
use crate::job::{
    Device, DeviceChoice, Devices, Input, InputSource, Job, Layer, Model, ModelSource, Output, Packing,
    Restart, Telemetry,
};
use crate::job_file::{Count, JobFile, LayerTyped};
use crate::limits::{self, Limit};
use crate::mistake::{Fault, Mistake, Objection};
use crate::model_source;
use crate::surroundings::Surroundings;

/// Resolves a decoded job file. `file`: absolute path of the job file.
pub(crate) fn resolve(
    file: PathBuf,
    typed: &JobFile,
    document: &Document,
    around: &Surroundings,
) -> Result<Job, Vec<Mistake>> {
    let mut resolver = Resolver { typed, document, around, notes: Vec::new(), mistakes: Vec::new() };
    // Each part is looked at before any is given up, so that all mistakes are reported at once.
    let input = resolver.input();
    let model = resolver.model();
    let packing = resolver.packing();
    let output = resolver.output();
    let devices = resolver.devices();
    let restart = resolver.restart();
    let telemetry = resolver.telemetry();
    match (input, model, packing, output, devices, restart, telemetry) {
        (
            Some(input),
            Some(model),
            Some(packing),
            Some(output),
            Some(devices),
            Some(restart),
            Some(telemetry),
        ) if resolver.mistakes.is_empty() => Ok(Job {
            file,
            input,
            model,
            packing,
            output,
            devices,
            restart,
            telemetry,
            notes: resolver.notes,
        }),
        _ => Err(resolver.mistakes),
    }
}

/// A method returns `None` once it has noted a mistake.
struct Resolver<'j> {
    typed: &'j JobFile,
    document: &'j Document,
    around: &'j Surroundings,
    notes: Vec<String>,
    mistakes: Vec<Mistake>,
}

impl Resolver<'_> {
    fn input(&mut self) -> Option<Input> {
        let typed = &self.typed.input;
        let fasta = self.fasta();
        let max_residues = self.number::<u32>("input.max_residues", typed.max_residues, limits::MAX_RESIDUES);
        let max_record_bytes =
            self.number("input.max_record_bytes", typed.max_record_bytes, limits::MAX_RECORD_BYTES);
        Some(Input {
            fasta: fasta?,
            alphabet: typed.alphabet,
            on_bad_record: typed.on_bad_record,
            duplicate_ids: typed.duplicate_ids,
            max_residues: NonZeroU32::new(max_residues?),
            too_long: typed.too_long,
            gaps: typed.gaps,
            max_record_bytes: max_record_bytes?,
        })
    }

    fn fasta(&mut self) -> Option<Vec<InputSource>> {
        const KEY: &str = "input.fasta";
        let items = self.typed.input.fasta.as_slice();
        if items.is_empty() {
            self.object(
                &self.document.place(KEY),
                empty(KEY).help("name files, patterns or folders, or \"-\" for standard input"),
            );
            return None;
        }
        if items.len() > limits::INPUT_FILES_MAX {
            self.object(&self.document.place(KEY), too_many(KEY, items.len(), limits::INPUT_FILES_MAX));
            return None;
        }
        let mistakes_before = self.mistakes.len();
        let mut found = Vec::new();
        // The file itself, whatever its name: the name under which it was found first, and the number of that item.
        let mut listed: HashMap<PathBuf, (InputSource, usize)> = HashMap::new();
        for (index, item) in items.iter().enumerate() {
            if self.mistakes.len() == limits::MISTAKES_MAX {
                return None;
            }
            let place = self.document.item_place(KEY, index);
            let Some(expanded) = self.path_text(KEY, item, &place) else { continue };
            let sources = inputs::find(&expanded, &self.document.source(&place).folder);
            let Some(inputs::Found { sources, left_out }) = self.note(&place, sources) else { continue };
            self.notes.extend(left_out);
            for source in sources {
                let identity = match &source {
                    InputSource::Stdin => PathBuf::from("-"),
                    InputSource::File(path) => {
                        self.require_utf8(&place, path);
                        path.canonicalize().unwrap_or_else(|_| path.clone())
                    }
                };
                if let Some((first, of_item)) = listed.get(&identity) {
                    let what = match &source {
                        InputSource::Stdin => "standard input".to_owned(),
                        InputSource::File(path) => format!("file `{}`", path.display()),
                    };
                    let fault = Fault::Twice { key: KEY.to_owned(), what };
                    let help = if *of_item == index {
                        format!(
                            "`{first}` is the same file, one of them a link: take the link away, or name the files"
                        )
                    } else if *first == source {
                        format!("`{}` already stands for it: keep one of the two", items[*of_item])
                    } else {
                        format!(
                            "`{}` already stands for it, as `{first}`: keep one of the two",
                            items[*of_item]
                        )
                    };
                    self.object(&place, Objection::new(fault, "again here").help(help));
                    break;
                }
                listed.insert(identity, (source.clone(), index));
                found.push(source);
            }
            if found.len() > limits::INPUT_FILES_MAX {
                let what = format!("{} files up to here", found.len());
                let fault = Fault::TooMany { key: KEY.to_owned(), what, max: limits::INPUT_FILES_MAX };
                let help = "join small files, or divide the job";
                self.object(&place, Objection::new(fault, "too many files").help(help));
                return None;
            }
        }
        (self.mistakes.len() == mistakes_before).then_some(found)
    }

    fn model(&mut self) -> Option<Model> {
        const SOURCE: &str = "model.source";
        let typed = &self.typed.model;
        let place = self.document.place(SOURCE);
        let source = self.path_text(SOURCE, &typed.source, &place).and_then(|expanded| {
            let source = model_source::parse(&typed.source, &expanded, &self.document.source(&place).folder);
            self.note(&place, source)
        });
        if let Some(ModelSource::Folder(path) | ModelSource::Safetensors(path) | ModelSource::FairEsm(path)) =
            &source
        {
            self.require_utf8(&place, path);
        }
        let layer = match typed.layer {
            LayerTyped::Last => Some(Layer::Last),
            LayerTyped::Number(number) => self.number("model.layer", number, limits::LAYER).map(Layer::Index),
        };
        Some(Model { source: source?, layer: layer?, pooling: typed.pooling, precision: typed.precision })
    }

    fn packing(&mut self) -> Option<Packing> {
        let typed = &self.typed.packing;
        let token_budget = self.count("packing.token_budget", typed.token_budget, limits::TOKEN_BUDGET);
        let buffer_sequences =
            self.number("packing.buffer_sequences", typed.buffer_sequences, limits::BUFFER_SEQUENCES);
        Some(Packing { token_budget: token_budget?, buffer_sequences: buffer_sequences? })
    }

    fn output(&mut self) -> Option<Output> {
        const DIRECTORY: &str = "output.directory";
        let typed = &self.typed.output;
        let place = self.document.place(DIRECTORY);
        let directory = self
            .path_text(DIRECTORY, &typed.directory, &place)
            .map(|expanded| clean(&self.document.source(&place).folder, &expanded));
        if let Some(directory) = &directory {
            self.require_utf8(&place, directory);
            if directory.exists() && !directory.is_dir() {
                let fault = Fault::Unusable { path: directory.clone(), reason: "not a folder".to_owned() };
                self.object(
                    &place,
                    Objection::new(fault, "this is a file").help("name a folder; it is made when missing"),
                );
            }
        }
        let segment_sequences =
            self.number("output.segment_sequences", typed.segment_sequences, limits::SEGMENT_SEQUENCES);
        let journal_ms = self.number("output.journal_ms", typed.journal_ms, limits::JOURNAL_MS);
        Some(Output {
            directory: directory?,
            format: typed.format,
            segment_sequences: segment_sequences?,
            float: typed.float,
            journal_ms: journal_ms?,
        })
    }

    fn devices(&mut self) -> Option<Devices> {
        let typed = &self.typed.devices;
        let choice = self.device_choice();
        let threads = self.count("devices.threads", typed.threads, limits::THREADS);
        Some(Devices { choice: choice?, threads: threads? })
    }

    fn device_choice(&mut self) -> Option<DeviceChoice> {
        const KEY: &str = "devices.use";
        let items = self.typed.devices.r#use.as_slice();
        if items.is_empty() {
            let objection = empty(KEY).help("name devices, or write use = \"auto\"");
            self.object(&self.document.place(KEY), objection);
            return None;
        }
        if items.len() > limits::DEVICES_MAX {
            self.object(&self.document.place(KEY), too_many(KEY, items.len(), limits::DEVICES_MAX));
            return None;
        }
        let mistakes_before = self.mistakes.len();
        let mut devices: Vec<Device> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let place = self.document.item_place(KEY, index);
            let expanded = expand_variables(KEY, item, &self.around.variables);
            let Some(expanded) = self.note(&place, expanded) else { continue };
            if expanded == "auto" {
                if items.len() == 1 {
                    return Some(DeviceChoice::Auto);
                }
                let fault = Fault::UnknownValue { key: KEY.to_owned(), value: expanded };
                self.object(
                    &place,
                    Objection::new(fault, "\"auto\" stands alone")
                        .help("either use = \"auto\", or a list of devices"),
                );
                continue;
            }
            let Some(named) = self.note(&place, device::parse(&expanded)) else { continue };
            if let Some(again) = named.iter().find(|device| devices.contains(device)) {
                let fault = Fault::Twice { key: KEY.to_owned(), what: format!("device {again}") };
                let help = match again {
                    Device::Sim(_) => "simulated devices are numbered from 0: ask once for as many as needed",
                    Device::Cpu | Device::Cuda(_) | Device::BurnCpu | Device::BurnCuda(_) => {
                        "each device runs one worker: name it once"
                    }
                };
                self.object(&place, Objection::new(fault, "again here").help(help));
                continue;
            }
            devices.extend(named);
        }
        (self.mistakes.len() == mistakes_before).then_some(DeviceChoice::Listed(devices))
    }

    fn restart(&mut self) -> Option<Restart> {
        let typed = &self.typed.restart;
        let backoff_ms_min =
            self.number::<u64>("restart.backoff_ms_min", typed.backoff_ms_min, limits::BACKOFF_MS);
        let backoff_ms_max =
            self.number::<u64>("restart.backoff_ms_max", typed.backoff_ms_max, limits::BACKOFF_MS);
        if backoff_ms_min.zip(backoff_ms_max).is_some_and(|(min, max)| min > max) {
            self.object_to_backoff(typed.backoff_ms_min, typed.backoff_ms_max);
        }
        let attempts_per_batch_max = self.number(
            "restart.attempts_per_batch_max",
            typed.attempts_per_batch_max,
            limits::ATTEMPTS_PER_BATCH,
        );
        let restarts_per_device_max = self.number(
            "restart.restarts_per_device_max",
            typed.restarts_per_device_max,
            limits::RESTARTS_PER_DEVICE,
        );
        let hang_ms = self.number("restart.hang_ms", typed.hang_ms, limits::HANG_MS);
        let load_ms_max = self.number("restart.load_ms_max", typed.load_ms_max, limits::LOAD_MS);
        let readmit_ms = self.number("restart.readmit_ms", typed.readmit_ms, limits::READMIT_MS);
        let stall_ms = self.number("restart.stall_ms", typed.stall_ms, limits::STALL_MS);
        let shutdown_grace_ms =
            self.number("restart.shutdown_grace_ms", typed.shutdown_grace_ms, limits::SHUTDOWN_GRACE_MS);
        Some(Restart {
            backoff_ms_min: backoff_ms_min?,
            backoff_ms_max: backoff_ms_max?,
            attempts_per_batch_max: attempts_per_batch_max?,
            restarts_per_device_max: restarts_per_device_max?,
            hang_ms: hang_ms?,
            load_ms_max: load_ms_max?,
            readmit_ms: readmit_ms?,
            stall_ms: stall_ms?,
            shutdown_grace_ms: shutdown_grace_ms?,
        })
    }

    fn object_to_backoff(&mut self, min: i64, max: i64) {
        let (key, other) = ("restart.backoff_ms_min", "restart.backoff_ms_max");
        // One of the two may be a default: point at the one that was typed.
        let typed_key = if self.document.node(key).is_some() { key } else { other };
        let fault =
            Fault::Greater { key: key.to_owned(), value: min, other: other.to_owned(), other_value: max };
        self.object(
            &self.document.place(typed_key),
            Objection::new(fault, "the first pause is longer than the longest")
                .help("raise backoff_ms_max or lower backoff_ms_min"),
        );
    }

    fn telemetry(&mut self) -> Option<Telemetry> {
        const LOG: &str = "telemetry.log";
        let typed = &self.typed.telemetry;
        let place = self.document.place(LOG);
        let log = expand_variables(LOG, &typed.log, &self.around.variables);
        let log = self.note(&place, log)?;
        if log.trim().is_empty() {
            self.object(&place, empty(LOG).help("write \"info\", \"warn\" or \"off\""));
            return None;
        }
        let prometheus = self.address("telemetry.prometheus", &typed.prometheus)?;
        Some(Telemetry { progress: typed.progress, log, log_format: typed.log_format, prometheus })
    }

    /// The outer option is `None` after a mistake, the inner one for "off".
    fn address(&mut self, key: &str, typed: &str) -> Option<Option<SocketAddr>> {
        let place = self.document.place(key);
        let expanded = expand_variables(key, typed, &self.around.variables);
        let text = self.note(&place, expanded)?;
        let text = text.trim();
        if text == "off" {
            return Some(None);
        }
        // The one name that needs no look-up.
        let numbers = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
        let Ok(address) = numbers.as_deref().unwrap_or(text).parse() else {
            let fault = Fault::NotAnAddress { key: key.to_owned(), value: text.to_owned() };
            let objection = Objection::new(fault, "address and port belong here");
            self.object(
                &place,
                objection.help("write \"127.0.0.1:9464\" for readers on this machine, or \"off\""),
            );
            return None;
        };
        Some(Some(address))
    }

    /// Expands a text that names a path, or may.
    fn path_text(&mut self, key: &str, typed: &str, place: &Place) -> Option<String> {
        let variables = &self.around.variables;
        let expanded =
            expand_variables(key, typed, variables).and_then(|text| expand_home(key, text, variables));
        let expanded = self.note(place, expanded)?;
        if expanded.trim().is_empty() {
            self.object(place, empty(key).help("name a path; a variable in it may have expanded to nothing"));
            return None;
        }
        // The system would cut the name there, or refuse it with less to go by.
        if expanded.contains('\0') {
            let fault = Fault::Unusable {
                path: PathBuf::from(expanded.replace('\0', "\\0")),
                reason: "a path cannot hold a NUL".to_owned(),
            };
            self.object(place, Objection::new(fault, "holds a NUL").help("take the NUL out"));
            return None;
        }
        Some(expanded)
    }

    fn number<T: TryFrom<i64>>(&mut self, key: &str, typed: i64, limit: Limit) -> Option<T> {
        let number = if (limit.min..=limit.max).contains(&typed) { T::try_from(typed).ok() } else { None };
        if number.is_none() {
            let fault = Fault::OutOfRange { key: key.to_owned(), value: typed.to_string() };
            let objection = Objection::new(fault, "out of range").help(format!("allowed: {limit}"));
            self.object(&self.document.place(key), objection);
        }
        number
    }

    /// The outer option is `None` after a mistake, the inner one for "auto".
    fn count(&mut self, key: &str, typed: Count, limit: Limit) -> Option<Option<NonZeroU32>> {
        match typed {
            Count::Auto => Some(None),
            Count::Number(number) => self.number::<u32>(key, number, limit).map(NonZeroU32::new),
        }
    }

    /// A job is written out as text, which cannot hold every name the system allows.
    fn require_utf8(&mut self, place: &Place, path: &Path) {
        if path.to_str().is_none() {
            let fault = Fault::Unusable { path: path.to_owned(), reason: "its name is not UTF-8".to_owned() };
            self.object(place, Objection::new(fault, "stands for it").help("rename it, or link to it"));
        }
    }

    fn note<T>(&mut self, place: &Place, result: Result<T, Objection>) -> Option<T> {
        result.map_err(|objection| self.object(place, objection)).ok()
    }

    /// Notes a mistake. Beyond [`limits::MISTAKES_MAX`] none is kept: the job is refused anyway.
    fn object(&mut self, place: &Place, objection: Objection) {
        if self.mistakes.len() == limits::MISTAKES_MAX {
            return;
        }
        self.mistakes.push(*self.document.mistake(place, objection));
    }
}

fn too_many(key: &str, items: usize, max: usize) -> Objection {
    let fault = Fault::TooMany { key: key.to_owned(), what: format!("a list of {items} items"), max };
    Objection::new(fault, "too long a list")
}

fn empty(key: &str) -> Objection {
    Objection::new(Fault::Empty { key: key.to_owned() }, "nothing in it")
}
