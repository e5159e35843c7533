//! A simulated device: deterministic vectors, programmable time, programmable faults.
//!
//! It stands beside the real engines in every build, so that orchestration is tested against lost
//! devices, hangs and poisoned batches on any machine. A programme is one line of text; the worker
//! takes it from its environment. Nothing here computes embeddings of anything.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::{Batch, Embeddings, Engine, EngineDescription, EngineError, EngineOptions, Pooling, Progress};

/// What a simulated device does; parsed from `key=value` settings separated by `;`.
///
/// | setting | meaning |
/// |---|---|
/// | `hidden=64` | width of an embedding |
/// | `latency_us_per_batch=200` | time of a batch, whatever its size |
/// | `latency_ns_per_token=10` | time of each token |
/// | `load_ms=50` | time to load |
/// | `oom_above_tokens=8000` | larger batches are out of memory |
/// | `memory_tokens=9000` | memory that so many tokens fill; a larger batch is out of memory |
/// | `fault=KIND@CONDITIONS` | a [`Fault`]; may repeat |
/// | `slow=4@CONDITIONS` | multiplies the time of matching batches; may repeat |
/// | `crash_rate=0.01` | share of batches that end the process, decided by `seed` |
/// | `seed=1` | seed of `crash_rate` |
///
/// `CONDITIONS` are `device:1,generation:0,batch:3,ordinal:17,exact:false`, each optional, all of which
/// must hold; with none, `@` may be left out. `batch` counts the batches one engine has run, from 0;
/// `exact` tells batches that are repeated in fp32 from the others.
#[derive(Clone, Debug, PartialEq)]
pub struct SimProgram {
    hidden: usize,
    latency_us_per_batch: u64,
    latency_ns_per_token: u64,
    load_ms: u64,
    oom_above_tokens: Option<usize>,
    memory_tokens: Option<usize>,
    faults: Vec<Fault>,
    slow: Vec<(f64, Conditions)>,
    crash_rate: f64,
    seed: u64,
}

/// A fault and when it strikes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    kind: FaultKind,
    conditions: Conditions,
}

/// What a fault does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FaultKind {
    /// The engine panics.
    Panic,
    /// The process exits with code 1, as a driver's fatal error handler would.
    Exit,
    /// The process aborts, as by a crash in native code.
    Abort,
    /// The batch never ends and ticks no progress.
    Hang,
    /// The matching sequences come out non-finite.
    Nan,
    /// The batch is out of memory, whatever its size.
    Oom,
    /// The batch fails; the engine stays usable.
    Error,
    /// The device is lost; every later batch fails as well.
    Lost,
    /// Loading fails.
    LoadFail,
    /// Loading never ends.
    LoadHang,
}

const FAULT_KINDS: [(&str, FaultKind); 11] = [
    ("panic", FaultKind::Panic),
    ("exit", FaultKind::Exit),
    ("abort", FaultKind::Abort),
    // A poisoned sequence: whichever batch has it ends the process.
    ("crash", FaultKind::Abort),
    ("hang", FaultKind::Hang),
    ("nan", FaultKind::Nan),
    ("oom", FaultKind::Oom),
    ("error", FaultKind::Error),
    ("lost", FaultKind::Lost),
    ("load-fail", FaultKind::LoadFail),
    ("load-hang", FaultKind::LoadHang),
];

/// When a fault strikes: every condition that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Conditions {
    device: Option<u32>,
    generation: Option<u32>,
    batch: Option<u64>,
    ordinal: Option<u64>,
    exact: Option<bool>,
}

impl Conditions {
    fn hold(&self, device: u32, generation: u32, batch: u64, ordinals: &[u64], exact: bool) -> bool {
        self.hold_at_load(device, generation)
            && self.batch.is_none_or(|wanted| wanted == batch)
            && self.ordinal.is_none_or(|wanted| ordinals.contains(&wanted))
            && self.exact.is_none_or(|wanted| wanted == exact)
    }

    fn hold_at_load(&self, device: u32, generation: u32) -> bool {
        self.device.is_none_or(|wanted| wanted == device)
            && self.generation.is_none_or(|wanted| wanted == generation)
    }
}

/// Why a programme could not be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("simulation programme: {problem} in `{setting}`")]
pub struct SimProgramError {
    /// The setting at fault.
    pub setting: String,
    /// What is wrong and what is allowed.
    pub problem: String,
}

impl Default for SimProgram {
    fn default() -> Self {
        Self {
            hidden: 64,
            latency_us_per_batch: 0,
            latency_ns_per_token: 0,
            load_ms: 0,
            oom_above_tokens: None,
            memory_tokens: None,
            faults: Vec::new(),
            slow: Vec::new(),
            crash_rate: 0.0,
            seed: 0,
        }
    }
}

impl SimProgram {
    /// Widest embedding: far above any model, far below what would exhaust memory by a typo.
    const HIDDEN_MAX: usize = 65_536;

    /// Parses a programme; the empty text is a device without latency or faults.
    ///
    /// # Errors
    /// Names the setting that is wrong and what is allowed there.
    pub fn parse(text: &str) -> Result<Self, SimProgramError> {
        let mut program = Self::default();
        for setting in text.split(';').map(str::trim).filter(|setting| !setting.is_empty()) {
            program
                .set(setting)
                .map_err(|problem| SimProgramError { setting: setting.to_owned(), problem })?;
        }
        Ok(program)
    }

    /// Width of the embeddings.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    fn set(&mut self, setting: &str) -> Result<(), String> {
        let (key, value) = setting.split_once('=').ok_or("no `=`")?;
        let (key, value) = (key.trim(), value.trim());
        match key {
            "hidden" => {
                self.hidden = number(value)?;
                if self.hidden == 0 || self.hidden > Self::HIDDEN_MAX {
                    return Err(format!("hidden must be 1 to {}", Self::HIDDEN_MAX));
                }
            }
            "latency_us_per_batch" => self.latency_us_per_batch = number(value)?,
            "latency_ns_per_token" => self.latency_ns_per_token = number(value)?,
            "load_ms" => self.load_ms = number(value)?,
            "oom_above_tokens" => self.oom_above_tokens = Some(number(value)?),
            "memory_tokens" => {
                self.memory_tokens = Some(number(value)?);
                if self.memory_tokens == Some(0) {
                    return Err("a device has some memory".into());
                }
            }
            "seed" => self.seed = number(value)?,
            "crash_rate" => {
                self.crash_rate = number(value)?;
                if !(0.0..=1.0).contains(&self.crash_rate) {
                    return Err("a rate must be 0 to 1".into());
                }
            }
            "fault" => {
                let (name, conditions) = value.split_once('@').unwrap_or((value, ""));
                let Some((_, kind)) = FAULT_KINDS.iter().find(|(known, _)| *known == name) else {
                    let known: Vec<_> = FAULT_KINDS.iter().map(|(name, _)| *name).collect();
                    return Err(format!("unknown fault `{name}` (known: {})", known.join(", ")));
                };
                let conditions = conditions_of(conditions)?;
                let at_load = matches!(kind, FaultKind::LoadFail | FaultKind::LoadHang);
                let of_a_batch =
                    conditions.batch.is_some() || conditions.ordinal.is_some() || conditions.exact.is_some();
                if at_load && of_a_batch {
                    return Err(format!(
                        "`{name}` strikes before any batch: only device and generation apply"
                    ));
                }
                self.faults.push(Fault { kind: *kind, conditions });
            }
            "slow" => {
                let (factor, conditions) = value.split_once('@').unwrap_or((value, ""));
                let factor: f64 = number(factor)?;
                if !(factor.is_finite() && factor >= 0.0) {
                    return Err("a factor must be finite and not negative".into());
                }
                self.slow.push((factor, conditions_of(conditions)?));
            }
            _ => {
                return Err(format!(
                    "unknown setting `{key}` (known: hidden, latency_us_per_batch, latency_ns_per_token, \
                     load_ms, oom_above_tokens, memory_tokens, fault, slow, crash_rate, seed)"
                ));
            }
        }
        Ok(())
    }
}

fn number<T: FromStr<Err: fmt::Display>>(text: &str) -> Result<T, String> {
    text.trim().parse().map_err(|error| format!("`{text}` is not a number that fits: {error}"))
}

fn conditions_of(text: &str) -> Result<Conditions, String> {
    let mut conditions = Conditions::default();
    for condition in text.split(',').map(str::trim).filter(|condition| !condition.is_empty()) {
        let (name, value) =
            condition.split_once(':').ok_or_else(|| format!("no `:` in condition `{condition}`"))?;
        let given = match name.trim() {
            "device" => conditions.device.replace(number(value)?).is_some(),
            "generation" => conditions.generation.replace(number(value)?).is_some(),
            "batch" => conditions.batch.replace(number(value)?).is_some(),
            "ordinal" => conditions.ordinal.replace(number(value)?).is_some(),
            "exact" => {
                let exact = value.trim().parse().map_err(|_| format!("`{value}` is not true or false"))?;
                conditions.exact.replace(exact).is_some()
            }
            _ => {
                return Err(format!(
                    "unknown condition `{name}` (known: device, generation, batch, ordinal, exact)"
                ));
            }
        };
        if given {
            return Err(format!("condition `{name}` is given twice"));
        }
    }
    Ok(conditions)
}

/// A simulated device.
#[derive(Debug)]
pub struct SimEngine {
    program: SimProgram,
    device: u32,
    generation: u32,
    pooling: Pooling,
    description: EngineDescription,
    batches: u64,
    lost: bool,
    /// Tokens of the latest batch.
    tokens: usize,
}

impl SimEngine {
    /// Loads simulated device `device_index` for the `generation`th time.
    ///
    /// # Errors
    /// [`EngineError::Device`] when the programme says that loading fails.
    pub fn load(
        program: SimProgram,
        device_index: u32,
        generation: u32,
        options: EngineOptions,
    ) -> Result<Self, EngineError> {
        std::thread::sleep(Duration::from_millis(program.load_ms));
        for fault in &program.faults {
            if !fault.conditions.hold_at_load(device_index, generation) {
                continue;
            }
            match fault.kind {
                FaultKind::LoadFail => {
                    return Err(EngineError::Device(format!(
                        "simulated device {device_index} failed to load"
                    )));
                }
                FaultKind::LoadHang => hang(),
                FaultKind::Panic
                | FaultKind::Exit
                | FaultKind::Abort
                | FaultKind::Hang
                | FaultKind::Nan
                | FaultKind::Oom
                | FaultKind::Error
                | FaultKind::Lost => {}
            }
        }
        let description = EngineDescription {
            name: format!("simulated device {device_index}"),
            hidden: program.hidden,
            weights_bytes: 0,
            bytes_per_token: 4 * program.hidden as u64,
            token_budget: None,
            slots: 2,
        };
        Ok(Self {
            program,
            device: device_index,
            generation,
            pooling: options.pooling,
            description,
            batches: 0,
            lost: false,
            tokens: 0,
        })
    }

    /// Carries out the faults that strike `batch`, the `number`th of this engine.
    fn strike(&mut self, batch: &Batch, number: u64, exact: bool) -> Result<(), EngineError> {
        let crash = self.program.crash_rate > 0.0
            && unit(mix(&[self.program.seed, self.device.into(), self.generation.into(), number]))
                < self.program.crash_rate;
        if crash {
            std::process::abort();
        }
        let mut non_finite = Vec::new();
        for fault in &self.program.faults {
            if !fault.conditions.hold(self.device, self.generation, number, &batch.ordinals, exact) {
                continue;
            }
            match fault.kind {
                #[expect(clippy::panic, reason = "the simulated fault is a panic")]
                FaultKind::Panic => panic!("simulated panic on device {}, batch {number}", self.device),
                FaultKind::Exit => std::process::exit(1),
                FaultKind::Abort => std::process::abort(),
                FaultKind::Hang => hang(),
                FaultKind::Oom => return Err(EngineError::OutOfMemory { tokens: batch.token_count() }),
                FaultKind::Error => {
                    return Err(EngineError::Batch(format!("simulated failure of batch {number}")));
                }
                FaultKind::Lost => self.lost = true,
                FaultKind::Nan => {
                    let positions = batch.ordinals.iter().zip(0u32..);
                    non_finite.extend(
                        positions
                            .filter(|(ordinal, _)| {
                                fault.conditions.ordinal.is_none_or(|wanted| wanted == **ordinal)
                            })
                            .map(|(_, position)| position),
                    );
                }
                FaultKind::LoadFail | FaultKind::LoadHang => {}
            }
        }
        if self.lost {
            return Err(EngineError::Device(format!("simulated device {} is lost", self.device)));
        }
        if !non_finite.is_empty() {
            non_finite.sort_unstable();
            non_finite.dedup();
            return Err(EngineError::NonFinite { sequences: non_finite });
        }
        Ok(())
    }

    /// How long `batch` takes.
    fn latency(&self, batch: &Batch, number: u64, exact: bool) -> Duration {
        let SimProgram { latency_us_per_batch, latency_ns_per_token, slow, .. } = &self.program;
        let per_token = latency_ns_per_token.saturating_mul(batch.token_count() as u64);
        let base = Duration::from_micros(*latency_us_per_batch) + Duration::from_nanos(per_token);
        let factor: f64 = slow
            .iter()
            .filter(|(_, conditions)| {
                conditions.hold(self.device, self.generation, number, &batch.ordinals, exact)
            })
            .map(|(factor, _)| factor)
            .product();
        Duration::try_from_secs_f64(base.as_secs_f64() * factor).unwrap_or(Duration::MAX)
    }
}

impl Engine for SimEngine {
    fn description(&self) -> &EngineDescription {
        &self.description
    }

    fn run(&mut self, batch: &Batch, progress: &Progress) -> Result<Embeddings, EngineError> {
        self.run_as(batch, progress, false)
    }

    fn run_exact(&mut self, batch: &Batch, progress: &Progress) -> Result<Embeddings, EngineError> {
        self.run_as(batch, progress, true)
    }

    fn memory_in_use(&mut self) -> Option<f32> {
        self.program.memory_tokens.map(|all| self.tokens as f32 / all as f32)
    }
}

impl SimEngine {
    fn run_as(&mut self, batch: &Batch, progress: &Progress, exact: bool) -> Result<Embeddings, EngineError> {
        /// A slow batch still shows progress this often; only a hang does not.
        const TICK: Duration = Duration::from_millis(20);
        let number = self.batches;
        self.batches += 1;
        batch.check(crate::alphabet::VOCAB).map_err(EngineError::Batch)?;
        if self.lost {
            return Err(EngineError::Device(format!("simulated device {} is lost", self.device)));
        }
        self.tokens = batch.token_count();
        let room = [self.program.oom_above_tokens, self.program.memory_tokens];
        if room.into_iter().flatten().any(|limit| self.tokens > limit) {
            return Err(EngineError::OutOfMemory { tokens: self.tokens });
        }
        self.strike(batch, number, exact)?;
        // The latency is that of the whole batch, the vectors included, and does not add up the delays of
        // the system's timer.
        let latency = self.latency(batch, number, exact);
        let began = Instant::now();
        let hidden = self.program.hidden;
        let rows: usize = (0..batch.len()).map(|index| batch.rows(index, self.pooling)).sum();
        let mut values = Vec::with_capacity(rows * hidden);
        for index in 0..batch.len() {
            for row in 0..batch.rows(index, self.pooling) {
                vector(batch.sequence(index), batch.pooled_residues[index], row as u64, hidden, &mut values);
            }
        }
        progress.tick();
        while let Some(left) = latency.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
            std::thread::sleep(left.min(TICK));
            progress.tick();
        }
        Ok(Embeddings { hidden, values })
    }
}

/// Sleeps for ever.
fn hang() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(3_600));
    }
}

/// Appends the vector of row `row` of a sequence: `hidden` values in [-1, 1) that depend on its
/// tokens and on how many residues are pooled, and on nothing else.
fn vector(tokens: &[u8], pooled_residues: u32, row: u64, hidden: usize, values: &mut Vec<f32>) {
    let mut state = mix(&[u64::from(pooled_residues), row, tokens.len() as u64]);
    for &token in tokens {
        state = mix(&[state, u64::from(token)]);
    }
    // SplitMix64: a counter and its finaliser, so that a device without latency costs next to nothing.
    values.extend((0..hidden).map(|_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let upper = (finalise(state) >> 40) as u32;
        upper as f32 / (1 << 23) as f32 - 1.0
    }));
}

/// Hashes a few numbers (the finaliser of SplitMix64 after each), alike on every machine.
fn mix(numbers: &[u64]) -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for number in numbers {
        state = finalise(state.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ number);
    }
    state
}

fn finalise(mut state: u64) -> u64 {
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// A number in [0, 1) from the upper 53 bits of a hash.
fn unit(hash: u64) -> f64 {
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Precision;

    fn load(program: &str, device: u32, generation: u32) -> Result<SimEngine, EngineError> {
        let options =
            EngineOptions { layer: 0, pooling: Pooling::Mean, precision: Precision::Fp32, threads: 1 };
        SimEngine::load(SimProgram::parse(program).unwrap(), device, generation, options)
    }

    fn batch(sequences: &[(u64, &str)]) -> Batch {
        let mut batch = Batch::default();
        for (ordinal, residues) in sequences {
            batch.push(*ordinal, residues.as_bytes(), residues.len() as u32);
        }
        batch
    }

    fn run(engine: &mut SimEngine, batch: &Batch) -> Result<Embeddings, EngineError> {
        engine.run(batch, &Progress::default())
    }

    #[test]
    fn a_row_depends_on_its_sequence_only() {
        let both = run(&mut load("", 0, 0).unwrap(), &batch(&[(1, "MKV"), (2, "LAG")])).unwrap();
        let other =
            run(&mut load("", 3, 7).unwrap(), &batch(&[(9, "LAG"), (4, "WWWW"), (5, "MKV")])).unwrap();
        assert_eq!(both.hidden, 64);
        assert_eq!(both.values[..64], other.values[128..]);
        assert_eq!(both.values[64..], other.values[..64]);
        assert_ne!(both.values[..64], both.values[64..]);
        assert!(both.values.iter().all(|value| (-1.0..1.0).contains(value)));
    }

    #[test]
    fn the_pooled_length_is_part_of_the_vector() {
        let mut all = Batch::default();
        all.push(1, b"MKVL", 4);
        all.push(2, b"MKVL", 2);
        let result = run(&mut load("hidden=8", 0, 0).unwrap(), &all).unwrap();
        assert_ne!(result.values[..8], result.values[8..]);
    }

    #[test]
    fn values_never_change() {
        // Results of earlier versions may be compared with: a new hash would break them.
        let one = batch(&[(1, "MKV")]);
        let result = run(&mut load("hidden=3", 0, 0).unwrap(), &one).unwrap();
        assert_eq!(result.values, VALUES_OF_MKV);
        assert_eq!(run(&mut load("hidden=3;seed=9", 0, 0).unwrap(), &one).unwrap(), result);
    }

    const VALUES_OF_MKV: [f32; 3] = [0.487_062_8, -0.472_53, 0.923_172_35];

    #[test]
    fn faults_strike_where_all_conditions_hold() {
        let mut engine = load("fault=error@device:1,generation:0,batch:1", 1, 0).unwrap();
        let one = batch(&[(5, "MKV")]);
        assert!(run(&mut engine, &one).is_ok());
        assert!(matches!(run(&mut engine, &one), Err(EngineError::Batch(_))));
        assert!(run(&mut engine, &one).is_ok());
        for (device, generation) in [(0, 0), (1, 1)] {
            let mut engine = load("fault=error@device:1,generation:0,batch:1", device, generation).unwrap();
            assert!(run(&mut engine, &one).is_ok() && run(&mut engine, &one).is_ok());
        }
    }

    #[test]
    fn faults_by_ordinal_follow_the_sequence() {
        let mut engine =
            load("fault=nan@ordinal:17;fault=nan@ordinal:19;fault=oom@ordinal:99", 0, 0).unwrap();
        let three = batch(&[(17, "MKV"), (18, "LAG"), (19, "MMM")]);
        assert_eq!(run(&mut engine, &three), Err(EngineError::NonFinite { sequences: vec![0, 2] }));
        assert!(run(&mut engine, &batch(&[(18, "LAG")])).is_ok());
        let poisoned = batch(&[(99, "LAG")]);
        assert_eq!(run(&mut engine, &poisoned), Err(EngineError::OutOfMemory { tokens: 5 }));
    }

    #[test]
    fn a_lost_device_stays_lost() {
        let mut engine = load("fault=lost@batch:0", 0, 0).unwrap();
        for _ in 0..2 {
            assert!(matches!(run(&mut engine, &batch(&[(1, "MKV")])), Err(EngineError::Device(_))));
        }
    }

    #[test]
    #[should_panic(expected = "simulated panic on device 2, batch 0")]
    fn a_panic_is_a_panic() {
        let _ = run(&mut load("fault=panic", 2, 0).unwrap(), &batch(&[(1, "MKV")]));
    }

    #[test]
    fn loading_fails_when_told() {
        assert!(matches!(load("fault=load-fail@device:1,generation:0", 1, 0), Err(EngineError::Device(_))));
        assert!(load("fault=load-fail@device:1,generation:0", 1, 1).is_ok());
    }

    #[test]
    fn large_batches_are_out_of_memory() {
        let mut engine = load("oom_above_tokens=5", 0, 0).unwrap();
        assert!(run(&mut engine, &batch(&[(1, "MKV")])).is_ok());
        let two = batch(&[(1, "MKV"), (2, "LAG")]);
        assert_eq!(run(&mut engine, &two), Err(EngineError::OutOfMemory { tokens: 10 }));
    }

    #[test]
    fn latency_counts_batches_tokens_and_slowness() {
        let engine =
            load("latency_us_per_batch=200;latency_ns_per_token=10;slow=4@device:2;slow=2@batch:1", 2, 0)
                .unwrap();
        let five = batch(&[(1, "MKV")]);
        assert_eq!(engine.latency(&five, 0, false), Duration::from_nanos(4 * 200_050));
        assert_eq!(engine.latency(&five, 1, false), Duration::from_nanos(8 * 200_050));
    }

    #[test]
    fn the_crash_rate_is_met_and_repeats() {
        let crashes = |seed: u64| {
            (0..100_000).filter(|&number| unit(mix(&[seed, 1, 0, number])) < 0.01).collect::<Vec<u64>>()
        };
        assert!((900..1_100).contains(&crashes(3).len()), "{}", crashes(3).len());
        assert_eq!(crashes(3), crashes(3));
        assert_ne!(crashes(3), crashes(4));
    }

    #[test]
    fn bad_programmes_say_what_is_allowed() {
        for (program, expected) in [
            ("speed=3", "unknown setting `speed`"),
            ("hidden", "no `=`"),
            ("hidden=0", "1 to 65536"),
            ("hidden=many", "`many` is not a number"),
            ("fault=explode", "known: panic, exit"),
            ("fault=panic@gpu:1", "known: device, generation"),
            ("fault=panic@device", "no `:`"),
            ("fault=panic@device:1,device:2", "given twice"),
            ("fault=load-fail@batch:1", "before any batch"),
            ("crash_rate=2", "0 to 1"),
            ("slow=-1", "not negative"),
        ] {
            let error = SimProgram::parse(program).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(program), "{error}");
        }
    }

    #[test]
    fn the_documented_programme_parses() {
        let program = SimProgram::parse(
            "hidden=64; latency_us_per_batch=200; latency_ns_per_token=10; oom_above_tokens=8000; \
             fault=panic@device:1,generation:0,batch:3; fault=exit@batch:9; fault=hang@ordinal:4; fault=abort@device:7; \
             fault=nan@ordinal:17; fault=crash@ordinal:18; fault=error@ordinal:19; fault=load-hang@device:3; \
             slow=4@device:2; seed=5; crash_rate=0.01;",
        )
        .unwrap();
        assert_eq!(program.faults.len(), 8);
        assert_eq!(program.hidden(), 64);
        assert_eq!(SimProgram::parse(""), Ok(SimProgram::default()));
    }

    #[test]
    fn memory_and_repetitions_in_fp32_are_simulated() {
        let mut engine = load("memory_tokens=10;fault=nan@exact:false,ordinal:1", 0, 0).unwrap();
        let batch_of_five = batch(&[(7, "MKV")]);
        run(&mut engine, &batch_of_five).unwrap();
        assert_eq!(engine.memory_in_use(), Some(0.5));
        let large = batch(&[(7, "MKVMKVMKV")]);
        assert_eq!(run(&mut engine, &large), Err(EngineError::OutOfMemory { tokens: 11 }));
        let overflowing = batch(&[(1, "MKV")]);
        assert!(matches!(run(&mut engine, &overflowing), Err(EngineError::NonFinite { .. })));
        let exact = engine.run_exact(&overflowing, &Progress::default()).unwrap();
        assert_eq!(exact, run(&mut engine, &batch_of_five).unwrap());
        assert!(SimProgram::parse("fault=load-fail@exact:true").is_err());
        assert!(SimProgram::parse("memory_tokens=0").is_err());
    }
}
