//! The processes of one session, found by a mark in their environment that they inherit.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The variable that holds the mark.
pub(crate) const MARK: &str = "CHAOS_SESSION";

/// Ids of living processes with this mark, ascending.
pub(crate) fn living(mark: &str) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    let mut ids: Vec<u32> = ids.filter(|&id| is_marked(id, mark)).collect();
    ids.sort_unstable();
    ids
}

/// A process that has ended has no environment, be it waited for or not.
fn is_marked(id: u32, mark: &str) -> bool {
    let Ok(environment) = fs::read(Path::new("/proc").join(id.to_string()).join("environ")) else {
        return false;
    };
    let wanted = format!("{MARK}={mark}");
    environment.split(|&byte| byte == 0).any(|variable| variable == wanted.as_bytes())
}

/// Signals a process that has this mark; whether it was still there. Ids are used again: the process is held
/// before it is looked at.
pub(crate) fn signal(id: u32, mark: &str, signal: Signal) -> bool {
    let Some(process) = Pid::from_raw(id as i32) else { return false };
    let Ok(held) = pidfd_open(process, PidfdFlags::empty()) else { return false };
    is_marked(id, mark) && pidfd_send_signal(held, signal).is_ok()
}
