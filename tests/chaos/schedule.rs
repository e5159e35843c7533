//! What a seed does to a run: its input, its sessions, and the faults of each.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use rustix::process::Signal;

use crate::damage::Damage;
use crate::input::{Input, InputEngine, TOKENS_MAX};
use crate::proteins::Random;
use crate::toll::Kind;

/// Sessions with faults; one without follows.
const DISTURBED_SESSIONS_MAX: u64 = 4;
/// Restarts that no session's faults use up.
const RESTARTS_PLENTY: u32 = 40;
/// Whether a session waits for room also for `run.json` and `failed.tsv` at its start and end. While it does not, the
/// limit on file sizes leaves room for them and strikes parts only.
const SMALL_FILES_MEET_LIMITS: bool = true;
/// Whether a device that fails every batch condemns no sequence even where another fault strikes that sequence on
/// the last working device. While it may, nothing else strikes batches in a session with such a device.
const A_BAD_DEVICE_NEVER_CONDEMNS: bool = true;
/// The shortest silence of a worker that counts as a hang, whatever the job says.
const HANG_MS: u64 = 1000;

/// What is done to the processes of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    KillOrchestrator,
    Signal(Signal),
    SuspendOrchestrator,
    ContinueOrchestrator,
    /// The number picks among the workers that live then.
    KillWorker(u64),
    SuspendWorker(u64),
    ContinueWorkers,
    /// Files may grow to this many bytes.
    LimitFiles(u64),
    LiftLimit,
}

/// An act and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    /// In thousandths of the time that an undisturbed run takes.
    permille: u64,
    /// And so much later.
    then_ms: u64,
    pub(crate) act: Act,
}

impl Planned {
    /// When, from the start of the session.
    pub(crate) fn moment(&self, usual: Duration) -> Duration {
        usual * self.permille as u32 / 1000 + Duration::from_millis(self.then_ms)
    }
}

/// One start of the program.
#[derive(Debug, Default)]
pub(crate) struct Session {
    /// Done to the folder before it.
    pub(crate) damage: Vec<Damage>,
    pub(crate) settings: Vec<(&'static str, String)>,
    /// For `VIRNUCPRO_SIM`, beside the input's poison.
    pub(crate) simulation: Vec<String>,
    /// For `VIRNUCPRO_FAULTS`.
    pub(crate) faults: String,
    pub(crate) acts: Vec<Planned>,
    /// Once standard input is stored, it is not given again.
    pub(crate) gives_nothing_again: bool,
    /// The next session starts while workers of this one may still be leaving.
    pub(crate) is_followed_at_once: bool,
    /// Kinds of fault in it that leave a trace in what the program says.
    pub(crate) kinds: Vec<Kind>,
}

/// What one seed does.
#[derive(Debug)]
pub(crate) struct Schedule {
    pub(crate) seed: u64,
    /// Position of the input.
    pub(crate) input: usize,
    input_name: &'static str,
    /// The last one is without faults, but the folder may have been damaged before it.
    pub(crate) sessions: Vec<Session>,
    /// `verify` is asked as well.
    pub(crate) verify: bool,
}

impl Schedule {
    /// Draws; the same for the same seed.
    pub(crate) fn draw(seed: u64, inputs: &[Input]) -> Self {
        let mut random = Random::new(seed.wrapping_mul(0x5851_f42d_4c95_7f2d));
        let on_cpu = random.within(0..8) == 0;
        let position = |engine| {
            let mut of_engine = (0..inputs.len()).filter(|&i| inputs[i].engine == engine);
            let count = of_engine.clone().count() as u64;
            of_engine.nth(random.within(0..count) as usize).unwrap()
        };
        let input = { position }(if on_cpu { InputEngine::Cpu } else { InputEngine::Simulated });
        let disturbed = random.within(0..DISTURBED_SESSIONS_MAX) + 1;
        let mut sessions: Vec<Session> =
            (0..disturbed).map(|_| Drawing::new(&mut random, &inputs[input]).session()).collect();
        sessions.push(Session::undisturbed());
        for session in sessions.iter_mut().skip(1) {
            while random.within(0..3) == 0 {
                session.damage.push(damage(&mut random));
            }
        }
        let verify = seed.is_multiple_of(10);
        Self { seed, input, input_name: inputs[input].name, sessions, verify }
    }
}

fn damage(random: &mut Random) -> Damage {
    let pick = random.next();
    match random.within(0..6) {
        0 => Damage::TruncatePart(pick),
        1 => Damage::FlipBitOfPart(pick),
        2 => Damage::DeletePart(pick),
        3 => Damage::StrayTemporaryFile(pick),
        _ => Damage::DeleteFailedList(pick),
    }
}

impl Session {
    /// A session without faults.
    pub(crate) fn undisturbed() -> Self {
        Self { simulation: vec!["latency_us_per_batch=1000".to_owned()], ..Self::default() }
    }
}

/// A session being drawn.
struct Drawing<'a> {
    random: &'a mut Random,
    input: &'a Input,
    session: Session,
    restarts_max: u32,
    /// Whether the program is to give up workers that are silent for [`HANG_MS`].
    watches: bool,
    /// Whether nothing else may fail a batch.
    spares_batches: bool,
}

impl<'a> Drawing<'a> {
    fn new(random: &'a mut Random, input: &'a Input) -> Self {
        Self {
            random,
            input,
            session: Session::default(),
            restarts_max: RESTARTS_PLENTY,
            watches: false,
            spares_batches: false,
        }
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.random.within(0..n) == 0
    }

    fn session(mut self) -> Session {
        let latency = [2000, 5000, 10_000][self.random.within(0..3) as usize];
        self.session.simulation.push(format!("latency_us_per_batch={latency}"));
        let budget = [200, 300, 600][self.random.within(0..3) as usize];
        self.set("packing.token_budget", budget);
        let grace = [0, 100, 800][self.random.within(0..3) as usize];
        self.set("restart.shutdown_grace_ms", grace);
        if self.input.engine == InputEngine::Simulated {
            self.engine_faults();
        }
        if self.one_in(2) {
            self.point();
        }
        for _ in 0..self.random.within(0..3) {
            self.act();
        }
        if self.session.acts.is_empty() && self.session.kinds.is_empty() {
            self.kill_orchestrator();
        }
        if self.input.is_wide && !self.one_in(3) {
            self.full_disk(24 * 1024..40 * 1024);
        } else if SMALL_FILES_MEET_LIMITS && self.one_in(5) {
            self.full_disk(0..8 * 1024);
        }
        self.session.gives_nothing_again = self.one_in(2);
        self.session.is_followed_at_once = self.one_in(2);
        if self.input.engine == InputEngine::Simulated && self.one_in(4) {
            // Two at least: a lasting fault of one must leave one that works.
            let devices = self.random.within(2..7);
            self.set("devices.use", format!(r#"["sim:{devices}"]"#));
        }
        self.set("restart.restarts_per_device_max", self.restarts_max);
        if self.watches {
            self.set("restart.hang_ms", HANG_MS);
        }
        self.session
    }

    fn set(&mut self, key: &'static str, value: impl fmt::Display) {
        self.session.settings.push((key, value.to_string()));
    }

    fn has(&self, kind: Kind) -> bool {
        self.session.kinds.contains(&kind)
    }

    /// Adds to the programme, unless another kind in it leaves the same trace.
    fn simulate(&mut self, kind: Kind, text: String) {
        let evidence = kind.evidence();
        if !self.session.kinds.iter().any(|other| other.evidence() == evidence) {
            self.session.simulation.push(text);
            self.session.kinds.push(kind);
        }
    }

    fn engine_faults(&mut self) {
        if !self.input.is_lethal && self.one_in(12) {
            // Nothing works: the session ends as soon as it is known.
            let fault = ["fault=exit@batch:0", "fault=load-fail", "fault=lost"];
            let fault = fault[self.random.within(0..3) as usize];
            self.restarts_max = 2;
            self.simulate(Kind::AllDevicesLost, fault.to_owned());
            return;
        }
        if self.one_in(10) {
            self.lasting_fault();
        }
        if self.spares_batches {
            return;
        }
        for _ in 0..self.random.within(0..3) {
            self.passing_fault();
        }
        if self.one_in(8) {
            let (rate, seed) = (self.random.within(5..20), self.random.within(0..1000));
            self.simulate(Kind::CrashRate, format!("crash_rate=0.{rate:02};seed={seed}"));
        }
        if self.one_in(12) {
            let (factor, device) = (self.random.within(2..8), self.random.within(0..4));
            self.simulate(Kind::Slow, format!("slow={factor}@device:{device}"));
        }
        if self.one_in(8) {
            let limit = self.random.within(TOKENS_MAX..300);
            self.simulate(Kind::OomAboveTokens, format!("oom_above_tokens={limit}"));
        }
        if self.one_in(12) {
            let device = self.random.within(0..4);
            self.simulate(Kind::LoadFails, format!("fault=load-fail@device:{device},generation:0"));
        }
        if self.one_in(12) {
            self.set("restart.load_ms_max", 1200);
            // One alone is noticed only if the others leave it work for so long.
            let device = if self.one_in(3) { "device:2," } else { "" };
            self.simulate(Kind::LoadHangs, format!("fault=load-hang@{device}generation:0"));
        }
    }

    /// Strikes once, whatever the batch.
    fn passing_fault(&mut self) {
        const KINDS: [(Kind, &str); 7] = [
            (Kind::EnginePanic, "panic"),
            (Kind::EngineExit, "exit"),
            (Kind::EngineAbort, "abort"),
            (Kind::EngineNan, "nan"),
            (Kind::EngineOom, "oom"),
            (Kind::EngineError, "error"),
            (Kind::EngineLost, "lost"),
        ];
        let (kind, name) = if self.one_in(6) {
            self.watches = true;
            (Kind::EngineHang, "hang")
        } else {
            KINDS[self.random.within(0..KINDS.len() as u64) as usize]
        };
        let (device, batch) = (self.random.within(0..4), self.random.within(0..4));
        let generation = u64::from(self.one_in(8));
        self.simulate(kind, format!("fault={name}@device:{device},generation:{generation},batch:{batch}"));
    }

    /// One device is broken for the whole session; the others do its work.
    fn lasting_fault(&mut self) {
        let mild = [(Kind::EngineNan, "nan"), (Kind::EngineOom, "oom"), (Kind::EngineError, "error")];
        let lethal = [(Kind::EngineExit, "exit"), (Kind::EngineLost, "lost"), (Kind::LoadFails, "load-fail")];
        let (kind, name) = if self.input.is_lethal || self.one_in(2) {
            self.spares_batches = !A_BAD_DEVICE_NEVER_CONDEMNS;
            mild[self.random.within(0..3) as usize]
        } else {
            lethal[self.random.within(0..3) as usize]
        };
        let device = self.random.within(0..4);
        self.simulate(kind, format!("fault={name}@device:{device}"));
    }

    /// A point of the orchestrator at which it fails.
    fn point(&mut self) {
        if self.one_in(6) {
            let number = self.random.within(0..60);
            self.session.faults = format!("file-operation:{number}=abort");
            self.session.kinds.push(Kind::OrchestratorAborted);
            return;
        }
        const POINTS: [(Kind, &str, u64); 13] = [
            (Kind::SupervisorPanicked, "supervisor", 8),
            (Kind::SupervisorPanicked, "supervisor", 30),
            (Kind::ReaderPanicked, "reader", 6),
            (Kind::ReaderThreadPanicked, "reader-thread", 6),
            // Once per worker at its start, then once a second.
            (Kind::MonitorPanicked, "monitor", 2),
            (Kind::MonitorPanicked, "monitor", 4),
            (Kind::PackerPanicked, "packer", 40),
            (Kind::WriterPanicked, "writer", 12),
            (Kind::WriterPanicked, "writer", 24),
            // The writer is reached late, and other faults are often quicker.
            (Kind::WriterThreadPanicked, "writer-thread", 2),
            (Kind::WriterThreadPanicked, "writer-thread", 4),
            (Kind::TelemetryPanicked, "telemetry", 80),
            (Kind::InferencePanicked, "inference", 60),
        ];
        let (kind, name, until) = POINTS[self.random.within(0..POINTS.len() as u64) as usize];
        if kind == Kind::InferencePanicked && self.spares_batches {
            return;
        }
        let number = self.random.within(0..until);
        if self.one_in(4) {
            self.session.faults = format!("{name}:{number}=abort");
            self.session.kinds.push(Kind::OrchestratorAborted);
        } else {
            self.session.faults = format!("{name}:{number}=panic");
            self.session.kinds.push(kind);
        }
    }

    fn act(&mut self) {
        match self.random.within(0..20) {
            0..3 => self.kill_orchestrator(),
            3..7 | 13..17 if self.spares_batches => {}
            3..7 => {
                let permille = self.random.within(0..1000);
                // Perhaps all at once.
                for _ in 0..[1, 1, 1, 2, 4][self.random.within(0..5) as usize] {
                    let pick = self.random.next();
                    self.plan_at(permille, 0, Act::KillWorker(pick));
                }
            }
            7..13 => self.signals(),
            13..14 => {
                let (pick, pause) = (self.random.next(), self.random.within(20..200));
                let permille = self.plan(0, Act::SuspendWorker(pick));
                self.plan_at(permille, pause, Act::ContinueWorkers);
            }
            14..17 => {
                if !self.has(Kind::EngineHang) {
                    let (pick, pause) = (self.random.next(), HANG_MS + 1500);
                    self.watches = true;
                    self.session.kinds.push(Kind::WorkerSuspendedForLong);
                    let permille = self.plan(0, Act::SuspendWorker(pick));
                    self.plan_at(permille, pause, Act::ContinueWorkers);
                }
            }
            _ => {
                let pause = match self.random.within(0..12) {
                    0 => 3400,
                    1 => 1500,
                    _ => self.random.within(20..300),
                };
                let permille = self.plan(0, Act::SuspendOrchestrator);
                self.plan_at(permille, pause, Act::ContinueOrchestrator);
            }
        }
    }

    fn kill_orchestrator(&mut self) {
        self.plan(0, Act::KillOrchestrator);
    }

    fn signals(&mut self) {
        const SIGNALS: [Signal; 4] = [Signal::TERM, Signal::INT, Signal::HUP, Signal::USR1];
        let first = SIGNALS[self.random.within(0..4) as usize];
        let permille = self.plan(0, Act::Signal(first));
        if self.one_in(2) {
            let (second, pause) = (SIGNALS[self.random.within(0..4) as usize], self.random.within(0..60));
            self.plan_at(permille, pause, Act::Signal(second));
        }
    }

    /// No room for files of this size, for a while.
    fn full_disk(&mut self, bytes: Range<u64>) {
        self.session.kinds.push(Kind::DiskFull);
        let bytes = self.random.within(bytes);
        let permille = self.plan(0, Act::LimitFiles(bytes));
        if self.one_in(3) {
            let (ends, pause) = (self.one_in(2), self.random.within(100..500));
            let end = if ends { Act::KillOrchestrator } else { Act::Signal(Signal::TERM) };
            self.plan_at(permille, pause, end);
        }
        // In the end there always is room again, lest the session never ends.
        let pause = self.random.within(500..1500);
        self.plan_at(permille, pause, Act::LiftLimit);
    }

    fn plan(&mut self, then_ms: u64, act: Act) -> u64 {
        let permille = self.random.within(0..1000);
        self.plan_at(permille, then_ms, act);
        permille
    }

    fn plan_at(&mut self, permille: u64, then_ms: u64, act: Act) {
        self.session.acts.push(Planned { permille, then_ms, act });
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, input {}:", self.seed, self.input_name)?;
        for (number, session) in self.sessions.iter().enumerate() {
            let Session { damage, settings, simulation, faults, acts, .. } = session;
            writeln!(f, "  session {number}")?;
            for damage in damage {
                writeln!(f, "    before: {damage:?}")?;
            }
            for (key, value) in settings {
                writeln!(f, "    --set {key}={value}")?;
            }
            writeln!(f, "    VIRNUCPRO_SIM={}", simulation.join(";"))?;
            if !faults.is_empty() {
                writeln!(f, "    VIRNUCPRO_FAULTS={faults}")?;
            }
            for Planned { permille, then_ms, act } in acts {
                writeln!(f, "    at {permille} thousandths of the usual time + {then_ms} ms: {act:?}")?;
            }
            if session.gives_nothing_again {
                writeln!(f, "    nothing on standard input once it is stored")?;
            }
            if session.is_followed_at_once {
                writeln!(f, "    the next one starts at once")?;
            }
        }
        Ok(())
    }
}
