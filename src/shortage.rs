//! What the system refuses a process for want of: open files, threads, memory; and which limit to raise.
//!
//! Such a refusal meets whatever comes first, a lock, a log, a worker. The error then names a file that is not at
//! fault, so that what helps is told here, for all of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

/// What to do where an error ends in a shortage of open files or memory; `line`: the error with its causes.
pub(crate) fn remedy(line: &str) -> Option<String> {
    use rustix::io::Errno;
    let is = |errno: Errno| line.contains(&format!("(os error {})", errno.raw_os_error()));
    if is(Errno::MFILE) {
        return Some(of_open_files());
    }
    if is(Errno::NFILE) {
        return Some(
            "no program on this machine may open more files now: raise fs.file-max, or end some".to_owned(),
        );
    }
    // The same number means many a thing; of a process or thread to be started only this.
    let starts_nothing = is(Errno::AGAIN) && line.contains("could not be started");
    (is(Errno::NOMEM) || starts_nothing).then(of_threads_or_memory)
}

/// Open files of a run, about, beside those of its devices.
const FILES_OF_RUN: u64 = 32;
/// Open files of a device, about.
const FILES_OF_DEVICE: u64 = 8;

fn of_open_files() -> String {
    let limit = match getrlimit(Resource::Nofile).current {
        Some(limit) => format!("this process may have {limit} files open"),
        None => "this process may have no more files open".to_owned(),
    };
    format!(
        "{limit}: raise that limit, as by `ulimit -n 1024`; a run takes about {FILES_OF_RUN}, and {FILES_OF_DEVICE} more \
         for each device"
    )
}

/// What to do beforehand, where a run on so many devices may come to want for open files.
pub(crate) fn of_open_files_for(devices: usize) -> Option<String> {
    let wanted = FILES_OF_RUN + FILES_OF_DEVICE * devices as u64;
    getrlimit(Resource::Nofile).current.is_some_and(|limit| limit < wanted).then(of_open_files)
}

/// What to do where no more threads or memory may be had: names the limit that is reached.
pub(crate) fn of_threads_or_memory() -> String {
    // A thread takes its stack at least, and the allocator more where it can.
    let is_near = |used: u64, limit: u64| used + NEAR_BYTES > limit || used > limit / 2;
    for (resource, used, option) in [(Resource::As, "VmSize:", "-v"), (Resource::Data, "VmData:", "-d")] {
        let limit = getrlimit(resource).current;
        if let Some(limit) = limit.filter(|&limit| memory_of(used).is_none_or(|used| is_near(used, limit))) {
            let kib = limit >> 10;
            return format!(
                "the memory of this process is limited to {kib} KiB: raise that limit (`ulimit {option}`), or the memory \
                 of the job"
            );
        }
    }
    match getrlimit(Resource::Nproc).current {
        Some(limit) => format!(
            "the threads and processes of this user are limited to {limit} (`ulimit -u`), those of a job or container \
             perhaps to fewer (pids.max): raise that, or end some"
        ),
        None => "raise the memory of the job or container, or its number of processes (pids.max)".to_owned(),
    }
}

/// So near to its limit a process gets no more threads. Those that were tried may be gone by now, and what the allocator
/// kept for each: half of the limit counts, too.
const NEAR_BYTES: u64 = 64 << 20;

/// Memory that this process has asked for, used or not, of the kind so named in its status, bytes.
fn memory_of(kind: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let text = status.lines().find_map(|line| line.strip_prefix(kind))?;
    text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Whether so many threads can be had at once: tokio's runtime cannot do without, and hangs where it gets only some.
///
/// # Errors
/// That of the system.
pub(crate) fn has_threads(wanted: usize) -> std::io::Result<()> {
    let all_tried = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let tried = (0..wanted).try_for_each(|_| {
            let wait = || {
                while !all_tried.load(Ordering::Acquire) {
                    std::thread::park_timeout(Duration::from_millis(1));
                }
            };
            std::thread::Builder::new().spawn_scoped(scope, wait).map(drop)
        });
        all_tried.store(true, Ordering::Release);
        tried
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_told_by_its_number_and_nothing_else_is() {
        let told = remedy("failed to keep `lock`: Too many open files (os error 24)").unwrap();
        assert!(told.contains("files open") && told.contains("ulimit -n"), "{told}");
        let told = remedy("out of memory: Cannot allocate memory (os error 12)").unwrap();
        assert!(told.contains("memory of") || told.contains("ulimit -u"), "{told}");
        for kind in ["VmSize:", "VmData:"] {
            assert!(memory_of(kind).is_none_or(|bytes| bytes > 1 << 20), "{kind}");
        }
        let lost = "all devices were lost: sim:0: worker could not be started: no (os error 11)";
        assert!(remedy(lost).is_some());
        assert_eq!(remedy("failed to lock `lock`: Resource temporarily unavailable (os error 11)"), None);
        assert_eq!(remedy("failed to keep `lock`: Permission denied (os error 13)"), None);
        assert_eq!(remedy("os error 240: (os error 240)"), None);
    }

    #[test]
    fn open_files_that_many_devices_will_want_for_are_told_beforehand() {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        assert_eq!(of_open_files_for(1).is_some(), limit < 40);
        assert_eq!(of_open_files_for(1 << 40).is_some(), limit < 8 << 40);
    }

    #[test]
    fn threads_that_are_tried_end() {
        has_threads(3).unwrap();
    }
}
