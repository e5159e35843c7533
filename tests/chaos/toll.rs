//! What really struck: a fault that was drawn but came too late is not counted.

use std::collections::BTreeMap;
use std::fmt;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    OrchestratorKilled,
    OrchestratorSuspended,
    OrchestratorAborted,
    SupervisorPanicked,
    ReaderPanicked,
    ReaderThreadPanicked,
    MonitorPanicked,
    PackerPanicked,
    WriterPanicked,
    WriterThreadPanicked,
    TelemetryPanicked,
    InferencePanicked,
    Sigterm,
    Sigint,
    Sighup,
    Sigusr1,
    SecondSignal,
    WorkerKilled,
    WorkerSuspended,
    WorkerSuspendedForLong,
    DiskFull,
    EnginePanic,
    EngineExit,
    EngineAbort,
    EngineHang,
    EngineNan,
    EngineOom,
    EngineError,
    EngineLost,
    LoadFails,
    LoadHangs,
    CrashRate,
    Slow,
    OomAboveTokens,
    AllDevicesLost,
    PartTruncated,
    PartFlipped,
    PartDeleted,
    StrayTemporaryFile,
    FailedListDeleted,
}

impl Kind {
    pub(crate) const ALL: [Self; 40] = [
        Self::OrchestratorKilled,
        Self::OrchestratorSuspended,
        Self::OrchestratorAborted,
        Self::SupervisorPanicked,
        Self::ReaderPanicked,
        Self::ReaderThreadPanicked,
        Self::MonitorPanicked,
        Self::PackerPanicked,
        Self::WriterPanicked,
        Self::WriterThreadPanicked,
        Self::TelemetryPanicked,
        Self::InferencePanicked,
        Self::Sigterm,
        Self::Sigint,
        Self::Sighup,
        Self::Sigusr1,
        Self::SecondSignal,
        Self::WorkerKilled,
        Self::WorkerSuspended,
        Self::WorkerSuspendedForLong,
        Self::DiskFull,
        Self::EnginePanic,
        Self::EngineExit,
        Self::EngineAbort,
        Self::EngineHang,
        Self::EngineNan,
        Self::EngineOom,
        Self::EngineError,
        Self::EngineLost,
        Self::LoadFails,
        Self::LoadHangs,
        Self::CrashRate,
        Self::Slow,
        Self::OomAboveTokens,
        Self::AllDevicesLost,
        Self::PartTruncated,
        Self::PartFlipped,
        Self::PartDeleted,
        Self::StrayTemporaryFile,
        Self::FailedListDeleted,
    ];

    /// What standard error says where a fault of this kind struck; none for those that the harness sees itself.
    pub(crate) fn evidence(self) -> Option<&'static str> {
        Some(match self {
            Self::SupervisorPanicked => "fault on purpose at supervisor ",
            Self::ReaderPanicked => "fault on purpose at reader ",
            Self::ReaderThreadPanicked => "fault on purpose at reader-thread ",
            Self::MonitorPanicked => "fault on purpose at monitor ",
            Self::PackerPanicked => "fault on purpose at packer ",
            Self::WriterPanicked => "fault on purpose at writer ",
            Self::WriterThreadPanicked => "fault on purpose at writer-thread ",
            Self::TelemetryPanicked => "fault on purpose at telemetry ",
            Self::InferencePanicked => "fault on purpose at inference ",
            Self::WorkerSuspendedForLong | Self::EngineHang => "no progress for",
            Self::DiskFull => ": writing is paused, ",
            Self::EnginePanic => "simulated panic",
            Self::EngineExit => "exit status: 1",
            Self::EngineAbort | Self::CrashRate => "SIGABRT",
            Self::EngineNan => "non-finite",
            Self::EngineOom | Self::OomAboveTokens => "out of memory",
            Self::EngineError => "simulated failure",
            Self::EngineLost => "is lost",
            Self::LoadFails => "failed to load",
            Self::LoadHangs => "model not loaded for",
            // A slow device leaves no trace but its start.
            Self::Slow => "ready device",
            Self::AllDevicesLost => "all devices were lost",
            Self::OrchestratorKilled
            | Self::OrchestratorSuspended
            | Self::OrchestratorAborted
            | Self::Sigterm
            | Self::Sigint
            | Self::Sighup
            | Self::Sigusr1
            | Self::SecondSignal
            | Self::WorkerKilled
            | Self::WorkerSuspended
            | Self::PartTruncated
            | Self::PartFlipped
            | Self::PartDeleted
            | Self::StrayTemporaryFile
            | Self::FailedListDeleted => return None,
        })
    }
}

/// What happened in some trials.
#[derive(Default)]
pub(crate) struct Toll {
    pub(crate) seeds: u64,
    pub(crate) sessions: u64,
    struck: BTreeMap<Kind, u64>,
}

impl Toll {
    /// Counts a fault.
    pub(crate) fn count(&mut self, kind: Kind) {
        *self.struck.entry(kind).or_default() += 1;
    }

    /// Adds what happened in other trials.
    pub(crate) fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.sessions += other.sessions;
        for (&kind, times) in &other.struck {
            *self.struck.entry(kind).or_default() += times;
        }
    }

    /// Whether there were too few of a kind.
    pub(crate) fn lacks(&self, least: u64) -> bool {
        !self.rarer_than(least).is_empty()
    }

    /// Kinds of which there were too few.
    pub(crate) fn rarer_than(&self, least: u64) -> Vec<Kind> {
        let rare = |kind: &Kind| self.struck.get(kind).is_none_or(|&times| times < least);
        Kind::ALL.into_iter().filter(rare).collect()
    }
}

impl fmt::Display for Toll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: u64 = self.struck.values().sum();
        write!(f, "{} seeds, {} sessions, {faults} faults:", self.seeds, self.sessions)?;
        for (kind, times) in &self.struck {
            write!(f, " {kind:?} {times}")?;
        }
        Ok(())
    }
}
