//! The orchestration of a run: reader, packer, devices, writer and their supervisor.

pub mod bounds;
pub mod budget;
pub mod commits;
pub mod failed;
pub mod fasta;
pub mod fault;
pub mod files;
mod hands;
pub mod identity;
mod inference;
mod journal;
mod launch;
pub mod ledger;
pub mod manifest;
mod monitor;
mod obstacle;
mod order;
mod packer;
pub mod packing;
pub mod part;
pub mod protocol;
mod reader;
pub mod restart;
mod run;
pub mod segment;
mod shown;
mod supervisor;
mod telemetry;
mod thread;
mod watchdog;
mod writer;

pub use inference::WorkerCommand;
pub use obstacle::write_when_possible;
pub use order::Refused;
pub use run::{Run, RunEnd, RunPlan, Stopper};
pub use shown::{Shown, acts, shown};
pub use supervisor::{DevicePlan, Outcome, StopReason};
pub use telemetry::{
    Bottleneck, DeviceState, DeviceView, EventLevel, EventView, GpuView, JobView, PreparingStep,
    PreparingView, Remaining, SNAPSHOT_VERSION, Snapshot, Stage, StageView, Tier, Waits,
};
pub use thread::panic_message;
pub use writer::WriteError;

/// An error and its causes in one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
