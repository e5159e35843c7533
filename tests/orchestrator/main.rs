//! The program from the outside: every test here runs the real executable, as an operator does, and looks
//! only at what an operator sees: exit code, output, result folder, processes.
//!
//! One target, so that the program is linked against once. [`job`] makes a job in a folder of its own,
//! [`process`] runs it and never waits for ever, [`outcome`] compares what it left behind.

#![expect(clippy::unwrap_used, reason = "tests")]

mod attach;
mod bounds;
mod burn;
mod changed;
mod commands;
mod configuration;
mod crash;
mod cuda;
mod demo;
mod devices;
mod disk;
#[path = "../../kernels/tests/emulation/nvml.rs"]
mod emulated_nvml;
#[path = "../../kernels/tests/emulation/mod.rs"]
mod emulation;
mod export;
mod faults;
mod golden;
mod gpu_check;
mod http;
mod input;
mod job;
mod journal;
mod kill;
mod lock;
mod memory;
mod metrics;
mod nvidia;
mod outcome;
mod panics;
mod poison;
mod process;
mod proteins;
mod report;
mod resume;
mod shortage;
mod stopping;
mod suspended;
mod telemetry;
mod terminal;
mod terminal_dashboard;
mod unread;
mod verify;
