//! The lock of a result folder: one run at a time, on one machine or on several that share a disk.
//!
//! First means is the system's file lock, which ends with the process. Some network file systems keep such
//! locks to one machine or refuse them. Therefore the locked file also says who owns it, a thread writes it
//! again every [`REFRESH`], and who comes later judges the owner by that (see [`judge`]). A run that finds
//! its lock in other hands ends at once: a crash costs nothing that is committed, two writers might.
//!
//! A run that ends in order leaves the file empty, or its [`LastWord`] where `run.json` could not take that.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use actors::manifest::{ResultFolder, RunStatus};
use actors::{bounds, files};
use serde::{Deserialize, Serialize};

use crate::failure::Exit;

/// Time between two signs of life of an owner.
const REFRESH: Duration = Duration::from_secs(30);
/// Age of the last sign of life from which an owner elsewhere counts as dead: several were missed.
const DEAD_AFTER: Duration = Duration::from_secs(120);
/// How long the lock of a dead owner may still be held: by its children, which leave when it is gone.
const DEAD_HOLDS_MAX: Duration = Duration::from_secs(2);
/// Pause between two looks for a sign of life of an owner elsewhere.
const LIFE_POLL: Duration = Duration::from_secs(1);
/// Pause between two looks at such a lock.
const DEAD_POLL: Duration = Duration::from_millis(10);
/// Longest record that is read; ours take a few hundred bytes.
const RECORD_BYTES_MAX: u64 = 4096;
/// Longest reason of a last word, letters: with that it is shorter than a record may be, however it is escaped.
const REASON_CHARS_MAX: usize = 600;
/// Linux' number for a file system without lock service, for which the library has no name.
const ENOLCK: i32 = 37;

/// Who owns a lock, as the file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    /// Host name, for people.
    host: String,
    /// Random number of the machine's boot; empty where the system has none.
    boot_id: String,
    /// Which set of process numbers `pid` belongs to: containers on one machine have sets of their own.
    pid_namespace: String,
    pid: u32,
    /// Start of the process in clock ticks since boot: process numbers are used again.
    start_ticks: u64,
    /// When the run began, seconds since 1970 by its own clock.
    started_unix_s: u64,
    /// Version of the program.
    version: String,
    /// Whether it holds the system's lock as well.
    locked: bool,
}

impl Owner {
    /// This process.
    fn this(locked: bool) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let pid = std::process::id();
        Self {
            host: read("/proc/sys/kernel/hostname"),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            pid_namespace: namespace.display().to_string(),
            pid,
            start_ticks: start_ticks(pid).unwrap_or(0),
            started_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            locked,
        }
    }

    fn to_record(&self) -> Vec<u8> {
        let mut record = serde_json::to_vec(self).expect("an owner is plain data");
        record.push(b'\n');
        record
    }

    /// The owner in words.
    fn described(&self) -> String {
        let Self { host, pid, started_unix_s, .. } = self;
        format!("process {pid} on host `{}`, since {}", actors::shown(host), utc(*started_unix_s))
    }

    /// Whether it and `other` run on one machine since one boot.
    fn shares_machine_with(&self, other: &Self) -> bool {
        self.boot_id == other.boot_id && (!self.boot_id.is_empty() || self.host == other.host)
    }
}

/// How a run ended that could not write it into `run.json`, as on a full disk. It stands in place of the owner: what a file
/// holds already can be overwritten where there is no room for more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastWord {
    pub(crate) ended: RunStatus,
    pub(crate) reason: Option<String>,
}

impl LastWord {
    fn to_record(&self) -> Vec<u8> {
        let shortened = Self {
            ended: self.ended,
            reason: self.reason.as_ref().map(|reason| reason.chars().take(REASON_CHARS_MAX).collect()),
        };
        let mut record = serde_json::to_vec(&shortened).expect("a last word is plain data");
        record.push(b'\n');
        record
    }

    fn in_record(record: &[u8]) -> Option<Self> {
        serde_json::from_slice(record).ok()
    }
}

/// What is known of the owner that a lock file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Lives,
    Dead,
    /// Only its last sign of life tells.
    OutOfSight,
}

/// Judges the `owner` that a lock file names, seen from `here`.
///
/// `here.locked`: we hold the system's lock now. `lives`: whether its process runs here, if that can be told.
fn judge(owner: &Owner, here: &Owner, lives: Option<bool>) -> Verdict {
    if !owner.shares_machine_with(here) {
        // We may both hold the system's lock, each on its own machine.
        return Verdict::OutOfSight;
    }
    match lives {
        Some(true) if owner.pid_namespace == here.pid_namespace => Verdict::Lives,
        Some(false) if owner.pid_namespace == here.pid_namespace => Verdict::Dead,
        // One machine has one table of locks: it would still be in it.
        _ if owner.locked && here.locked => Verdict::Dead,
        _ => Verdict::OutOfSight,
    }
}

/// Why a lock was not taken.
#[derive(Debug)]
pub(super) enum LockError {
    /// Another run has it: who, in words, and what to do.
    Held { owner: String, hint: String },
    /// The file cannot be used.
    Io { operation: &'static str, path: PathBuf, error: io::Error },
}

/// Whether the system's lock was got.
enum SystemLock {
    Got,
    Taken,
    /// This file system has none.
    Unsupported,
}

fn system_lock(file: &File) -> io::Result<SystemLock> {
    match file.try_lock() {
        Ok(()) => Ok(SystemLock::Got),
        Err(TryLockError::WouldBlock) => Ok(SystemLock::Taken),
        Err(TryLockError::Error(error))
            if error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(ENOLCK) =>
        {
            Ok(SystemLock::Unsupported)
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// A lock that is held while this value lives.
pub(super) struct Lock {
    file: File,
    record: Vec<u8>,
    /// Closed to end the thread.
    stop: Option<flume::Sender<()>>,
    keeper: Option<JoinHandle<()>>,
    /// What to leave in the file.
    last_word: Option<LastWord>,
    /// The dead owner it was taken from, in words.
    pub(super) taken_from: Option<String>,
}

impl Lock {
    /// Takes the lock whose file is `path`.
    pub(super) fn take(path: &Path) -> Result<Self, LockError> {
        Self::take_with(path, system_lock, REFRESH, end_at_once)
    }

    fn take_with(
        path: &Path,
        system_lock: impl Fn(&File) -> io::Result<SystemLock>,
        refresh: Duration,
        on_lost: impl FnOnce(&str) + Send + 'static,
    ) -> Result<Self, LockError> {
        let failed = |operation| {
            let path = path.to_owned();
            move |error| LockError::Io { operation, path, error }
        };
        let mut options = File::options();
        let file = options.create(true).truncate(false).read(true).write(true).open(path);
        let file = file.map_err(failed("open"))?;
        let began = Instant::now();
        let (got, found, owner) = loop {
            let got = system_lock(&file).map_err(failed("lock"))?;
            let found = read_record(&file).map_err(failed("read"))?;
            let owner: Option<Owner> = serde_json::from_slice(&found).ok();
            let is_dead = |owner: &Owner| {
                let here = Owner::this(false);
                owner.shares_machine_with(&here)
                    && owner.pid_namespace == here.pid_namespace
                    && lives(owner.pid, owner.start_ticks) == Some(false)
            };
            // A child that a killed run was just starting holds the lock until it becomes a worker.
            let passes = matches!(got, SystemLock::Taken) && owner.as_ref().is_some_and(is_dead);
            if !passes || began.elapsed() > DEAD_HOLDS_MAX {
                break (got, found, owner);
            }
            std::thread::sleep(DEAD_POLL);
        };
        let described = || match &owner {
            Some(owner) => owner.described(),
            None if found.is_empty() => "its lock does not say which".to_owned(),
            // Anybody may have written it.
            None => actors::shown(String::from_utf8_lossy(&found).trim()).to_string(),
        };
        let here = Owner::this(matches!(got, SystemLock::Got));
        let wait = "wait for it, stop it, or choose another output.directory";
        let held = |hint: String| LockError::Held { owner: described(), hint };
        let mut taken_from = None;
        match got {
            SystemLock::Taken => return Err(held(wait.to_owned())),
            SystemLock::Got | SystemLock::Unsupported
                if !found.is_empty() && LastWord::in_record(&found).is_none() =>
            {
                let verdict = match &owner {
                    Some(owner) => judge(owner, &here, lives(owner.pid, owner.start_ticks)),
                    // Of an earlier version, or torn by a power cut: the system's lock decides, if it can.
                    None if here.locked => Verdict::Dead,
                    None => Verdict::OutOfSight,
                };
                match verdict {
                    Verdict::Lives => return Err(held(wait.to_owned())),
                    Verdict::Dead => {}
                    Verdict::OutOfSight => {
                        if gives_sign_of_life(&file, path, &described()).map_err(failed("watch"))? {
                            return Err(held(wait.to_owned()));
                        }
                    }
                }
                taken_from = Some(described());
            }
            SystemLock::Got | SystemLock::Unsupported => {}
        }
        let record = here.to_record();
        write_record(&file, &record).map_err(failed("write"))?;
        let (stop, stopped) = flume::bounded(bounds::LOCK_WORDS);
        let keeper = {
            let (path, record) = (path.to_owned(), record.clone());
            let file = file.try_clone().map_err(failed("keep"))?;
            let keep = move || {
                if let Some(lost) = keep(&file, &path, &record, refresh, &stopped) {
                    on_lost(&lost);
                }
            };
            std::thread::Builder::new().name("lock".to_owned()).spawn(keep).map_err(failed("keep"))?
        };
        if let Ok(file) = file.try_clone() {
            *own_lock() = Some((file, record.clone()));
        }
        Ok(Self { file, record, stop: Some(stop), keeper: Some(keeper), last_word: None, taken_from })
    }

    /// Leaves this in the file when it is given back.
    pub(super) fn leave(&mut self, last_word: LastWord) {
        self.last_word = Some(last_word);
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
        give_back(&self.file, &self.record, self.last_word.as_ref());
        *own_lock() = None;
    }
}

/// The lock of this process, for an end that drops nothing.
fn own_lock() -> MutexGuard<'static, Option<(File, Vec<u8>)>> {
    static HELD: Mutex<Option<(File, Vec<u8>)>> = Mutex::new(None);
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives the lock of this process back, if it has one: right before an exit in the middle of things.
pub(crate) fn give_lock_back() {
    if let Some((file, record)) = own_lock().take() {
        give_back(&file, &record, None);
    }
}

/// Who has the lock of a folder, as its file says.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    pub(crate) process: u32,
    pub(crate) host: String,
    /// When its run began, seconds since 1970 by its own clock.
    pub(crate) started_unix_s: u64,
}

/// Who has the lock of a folder, as its file says.
pub(crate) fn owner(folder: &ResultFolder) -> Option<Holder> {
    let record = read_record(&files::open_regular(&folder.lock()).ok()?).ok()?;
    let Owner { pid, host, started_unix_s, .. } = serde_json::from_slice(&record).ok()?;
    Some(Holder { process: pid, host, started_unix_s })
}

/// How the last run in a folder ended, where `run.json` could not take that.
pub(crate) fn last_word(folder: &ResultFolder) -> Option<LastWord> {
    LastWord::in_record(&read_record(&files::open_regular(&folder.lock()).ok()?).ok()?)
}

/// Whether who has the lock of a folder runs on this machine; `None` where that cannot be told from here.
pub(crate) fn owner_lives(folder: &ResultFolder) -> Option<bool> {
    let record = read_record(&files::open_regular(&folder.lock()).ok()?).ok()?;
    if record.is_empty() || LastWord::in_record(&record).is_some() {
        return Some(false);
    }
    runs_here(&serde_json::from_slice(&record).ok()?)
}

/// Whether an owner runs on this machine; `None` where that cannot be told from here.
fn runs_here(owner: &Owner) -> Option<bool> {
    let here = Owner::this(false);
    let in_sight = owner.shares_machine_with(&here) && owner.pid_namespace == here.pid_namespace;
    in_sight.then(|| lives(owner.pid, owner.start_ticks))?
}

/// Who is at work in a folder, in words, as its lock tells who only looks: one elsewhere by its latest sign of life.
pub(crate) fn at_work(folder: &ResultFolder) -> Option<String> {
    let file = files::open_regular(&folder.lock()).ok()?;
    let owner: Owner = serde_json::from_slice(&read_record(&file).ok()?).ok()?;
    let works = runs_here(&owner).unwrap_or_else(|| {
        let written = file.metadata().and_then(|metadata| metadata.modified());
        // A stamp from the future is one of this moment.
        written.is_ok_and(|written| written.elapsed().unwrap_or_default() < DEAD_AFTER)
    });
    works.then(|| owner.described())
}

/// An empty file has no owner, nor has one with a last word; one that cannot be emptied names a process that is about to
/// end.
fn give_back(file: &File, record: &[u8], last_word: Option<&LastWord>) {
    if !read_record(file).is_ok_and(|found| found == record) {
        return;
    }
    let written = last_word.is_some_and(|word| {
        let word = word.to_record();
        // Cut only behind what is written: what is given up first may be gone for good.
        file.write_all_at(&word, 0).and_then(|()| file.set_len(word.len() as u64)).is_ok()
    });
    if !written {
        let _ = file.set_len(0);
    }
}

/// The thread's life: a sign of life now and then, until told to stop. Returns why, if the lock was lost.
fn keep(
    file: &File,
    path: &Path,
    record: &[u8],
    refresh: Duration,
    stopped: &flume::Receiver<()>,
) -> Option<String> {
    while stopped.recv_timeout(refresh) == Err(flume::RecvTimeoutError::Timeout) {
        // Opened by name: the folder may have been removed, and another run may have made it again.
        match File::open(path).and_then(|now| read_record(&now)) {
            Ok(found) if found == record => {}
            Ok(found) => {
                let owner = serde_json::from_slice::<Owner>(&found);
                let owner = owner.map_or_else(|_| "nobody".to_owned(), |owner| owner.described());
                return Some(format!("its owner is now {owner}"));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Some("it was removed".to_owned());
            }
            // A server that is away for a while: nobody else can take the lock from it either.
            Err(_) => continue,
        }
        // The same bytes again, so that nobody ever reads half a record; the disk's clock stamps them. What
        // fails now is tried again in time, and a disk that refuses it all along serves nobody.
        let _ = file.write_all_at(record, 0).and_then(|()| file.sync_data());
    }
    None
}

/// Ends the program as a crash would; the next run goes on from the last commit.
fn end_at_once(lost: &str) {
    tracing::error!(lost, "the lock of the result folder was lost");
    crate::dashboard::screen::give_back();
    crate::stderr::say(format_args!(
        "error: the lock of the result folder was lost: {lost}\n\
         hint: what is committed stays; make sure that only one run uses the folder, then run the same \
         command again"
    ));
    crate::logging::flush();
    std::process::exit(Exit::Resumable as i32);
}

fn read_record(mut file: &File) -> io::Result<Vec<u8>> {
    use std::io::Seek;
    let mut record = Vec::new();
    file.rewind()?;
    file.take(RECORD_BYTES_MAX).read_to_end(&mut record)?;
    Ok(record)
}

fn write_record(file: &File, record: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all_at(record, 0)?;
    file.sync_data()
}

/// Waits for a sign of life of an owner elsewhere, until it counts as dead. A job that was requeued after its
/// machine died goes on by itself that way.
fn gives_sign_of_life(file: &File, path: &Path, owner: &str) -> io::Result<bool> {
    let written = file.metadata()?.modified()?;
    let mut told = false;
    loop {
        let age = age(file, path)?;
        if file.metadata()?.modified()? != written {
            return Ok(true);
        }
        let Some(left) = DEAD_AFTER.checked_sub(age).filter(|left| !left.is_zero()) else {
            return Ok(false);
        };
        if !std::mem::replace(&mut told, true) {
            crate::stderr::say(format_args!(
                "the folder was left locked by {owner}: waiting up to {} s for a sign of life",
                left.as_secs().max(1)
            ));
        }
        std::thread::sleep(left.min(LIFE_POLL));
    }
}

/// Time since `file` was written, by the clock of the file system itself: those of two machines differ.
fn age(file: &File, path: &Path) -> io::Result<Duration> {
    let probe = path.with_file_name(format!(".lock-clock-{}", std::process::id()));
    let now = File::create(&probe).and_then(|probe| {
        probe.write_all_at(b".", 0)?;
        probe.sync_data()?;
        probe.metadata()?.modified()
    });
    let _ = fs::remove_file(&probe);
    let written = file.metadata()?.modified()?;
    // A stamp from the future is a sign of life of this moment.
    Ok(now?.duration_since(written).unwrap_or_default())
}

/// Whether the process `pid` that began at `start_ticks` runs here; `None` where that cannot be told.
fn lives(pid: u32, start_ticks: u64) -> Option<bool> {
    self::start_ticks(std::process::id())?;
    Some(self::start_ticks(pid) == Some(start_ticks))
}

/// Start of a process in clock ticks since boot; `None` if there is none, or only its remains.
fn start_ticks(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the command, may hold spaces and parentheses: fields are counted after it.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    if matches!(field(3)?, "Z" | "X") {
        return None;
    }
    field(22)?.parse().ok()
}

/// Seconds since 1970 as `2026-11-21 17:52:18 UTC`.
pub(crate) fn utc(unix_s: u64) -> String {
    let (mut days, seconds) = (unix_s / 86_400, unix_s % 86_400);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    // A record may say anything: the year is bounded.
    while year < 9999 && days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year}-{month:02}-{:02} {hour:02}:{minute:02}:{second:02} UTC", days + 1)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn here() -> Owner {
        Owner { started_unix_s: 1_795_283_538, ..Owner::this(true) }
    }

    /// An owner on another machine.
    fn elsewhere() -> Owner {
        let boot_id = "0f0f0f0f-0000-4000-8000-000000000000".to_owned();
        Owner { host: "node17".to_owned(), boot_id, pid: 4711, ..here() }
    }

    fn lock_file(content: &[u8], age: Duration) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        fs::write(&path, content).unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(SystemTime::now() - age).unwrap();
        (folder, path)
    }

    fn take(path: &Path) -> Result<Lock, LockError> {
        Lock::take_with(path, system_lock, REFRESH, |_| {})
    }

    fn take_without_system_lock(path: &Path) -> Result<Lock, LockError> {
        Lock::take_with(path, |_| Ok(SystemLock::Unsupported), REFRESH, |_| {})
    }

    #[track_caller]
    fn refused(taken: Result<Lock, LockError>) -> String {
        match taken {
            Err(LockError::Held { owner, hint }) => format!("{owner}; {hint}"),
            Err(error) => panic!("{error:?}"),
            Ok(_) => panic!("the lock was taken"),
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_owner_is_judged_by_its_process_where_that_can_be_seen() {
        use Verdict::{Dead, Lives, OutOfSight};
        let unlocked = |owner: Owner| Owner { locked: false, ..owner };
        // On this machine the process decides.
        for ours in [here(), unlocked(here())] {
            for theirs in [here(), unlocked(here())] {
                assert_eq!(judge(&theirs, &ours, Some(true)), Lives);
                assert_eq!(judge(&theirs, &ours, Some(false)), Dead);
            }
        }
        // In another container on it process numbers say nothing, but the table of locks is the same.
        let container = Owner { pid_namespace: "pid:[1]".to_owned(), host: "box".to_owned(), ..here() };
        for lives in [None, Some(true), Some(false)] {
            assert_eq!(judge(&container, &here(), lives), Dead);
            assert_eq!(judge(&container, &unlocked(here()), lives), OutOfSight);
            assert_eq!(judge(&unlocked(container.clone()), &here(), lives), OutOfSight);
        }
        // On another machine nothing that is seen here says anything.
        for lives in [None, Some(true), Some(false)] {
            assert_eq!(judge(&elsewhere(), &here(), lives), OutOfSight);
        }
        // A system that does not number its boots: the host's name tells machines apart.
        let unnumbered = |owner: Owner| Owner { boot_id: String::new(), ..owner };
        assert_eq!(judge(&unnumbered(elsewhere()), &unnumbered(here()), None), OutOfSight);
        assert_eq!(judge(&unnumbered(here()), &unnumbered(here()), None), Dead);
    }

    #[test]
    fn a_lock_names_its_owner_and_keeps_others_out_until_it_is_dropped() {
        let (_folder, path) = lock_file(b"", Duration::ZERO);
        let lock = take(&path).unwrap();
        assert_eq!(lock.taken_from, None);
        let owner: Owner = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!((owner.pid, owner.locked), (std::process::id(), true));
        assert!(lives(owner.pid, owner.start_ticks).is_none_or(|lives| lives));
        let words = refused(take(&path));
        assert!(
            words.starts_with(&format!("process {} on host `{}`, since 20", owner.pid, owner.host)),
            "{words}"
        );
        // One that gets no lock from the system judges by the process, which lives.
        refused(take_without_system_lock(&path));
        drop(lock);
        assert_eq!(fs::read(&path).unwrap(), b"");
        assert_eq!(take(&path).unwrap().taken_from, None);
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "the probe of the clock is gone"
        );
    }

    #[test]
    fn a_run_without_a_system_lock_is_respected_by_one_with() {
        let (_folder, path) = lock_file(b"", Duration::ZERO);
        let lock = take_without_system_lock(&path).unwrap();
        refused(take(&path));
        refused(take_without_system_lock(&path));
        drop(lock);
        take(&path).unwrap();
    }

    #[test]
    fn a_dead_owner_is_replaced_and_named() {
        for take in [take, take_without_system_lock] {
            // A process number that was used again, or is not in use; however fresh its sign of life is.
            for dead in [Owner { start_ticks: 1, ..here() }, Owner { pid: u32::MAX, ..here() }] {
                let (_folder, path) = lock_file(&dead.to_record(), Duration::ZERO);
                let lock = take(&path).unwrap();
                assert_eq!(lock.taken_from, Some(dead.described()));
                let owner: Owner = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
                assert_eq!(owner.pid, std::process::id());
            }
        }
    }

    #[test]
    fn a_last_word_stays_with_a_lock_that_is_free() {
        let (_temporary, path) = lock_file(b"", Duration::ZERO);
        let folder = ResultFolder(path.parent().unwrap().join("results"));
        fs::create_dir_all(folder.state()).unwrap();
        let path = folder.lock();
        for reason in [Some("stopped by SIGTERM".to_owned()), Some("\u{1}\u{202e}".repeat(1000)), None] {
            let mut lock = take(&path).unwrap();
            assert_eq!((last_word(&folder), owner(&folder).unwrap().process), (None, std::process::id()));
            lock.leave(LastWord { ended: RunStatus::Stopped, reason: reason.clone() });
            drop(lock);
            let left = last_word(&folder).unwrap();
            assert_eq!(left.ended, RunStatus::Stopped);
            assert!(reason.unwrap_or_default().starts_with(&left.reason.unwrap_or_default()));
            assert_eq!((owner_lives(&folder), owner(&folder).is_none()), (Some(false), true));
            // Nobody is waited for, nor taken for dead.
            assert_eq!(take_without_system_lock(&path).unwrap().taken_from, None);
            assert_eq!(last_word(&folder), None);
        }
    }

    /// Runs `work` while somebody renews the time of the file.
    fn with_signs_of_life<T>(path: &Path, work: impl FnOnce() -> T) -> T {
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    let file = File::options().write(true).open(path).unwrap();
                    file.set_modified(SystemTime::now() - 30 * SECOND).unwrap();
                    std::thread::sleep(Duration::from_millis(100));
                }
            });
            let result = work();
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            result
        })
    }

    #[test]
    fn an_owner_elsewhere_is_respected_for_two_minutes() {
        for take in [take, take_without_system_lock] {
            let record = elsewhere().to_record();
            let (_folder, path) = lock_file(&record, DEAD_AFTER - 60 * SECOND);
            let words = refused(with_signs_of_life(&path, || take(&path)));
            assert!(words.contains("process 4711 on host `node17`"), "{words}");
            assert_eq!(fs::read(&path).unwrap(), record, "a refused run changes nothing");
            // Silent for long already, or for long enough while one waits.
            for age in [DEAD_AFTER + SECOND, DEAD_AFTER - SECOND] {
                let (_folder, path) = lock_file(&record, age);
                assert_eq!(take(&path).unwrap().taken_from, Some(elsewhere().described()));
            }
        }
    }

    #[test]
    fn an_unreadable_record_counts_only_without_a_system_lock() {
        for content in [&b"process 17\n"[..], b"{\"host\":", &[0xff; 10_000]] {
            let (_folder, path) = lock_file(content, SECOND);
            refused(with_signs_of_life(&path, || take_without_system_lock(&path)));
            take(&path).unwrap();
            let (_folder, path) = lock_file(content, DEAD_AFTER + SECOND);
            take_without_system_lock(&path).unwrap();
        }
    }

    #[test]
    fn the_owner_gives_signs_of_life() {
        let (_folder, path) = lock_file(b"", Duration::ZERO);
        let lock = Lock::take_with(&path, system_lock, Duration::from_millis(5), |_| {}).unwrap();
        let long_ago = SystemTime::now() - 1000 * SECOND;
        lock.file.set_modified(long_ago).unwrap();
        while fs::metadata(&path).unwrap().modified().unwrap() == long_ago {
            std::thread::yield_now();
        }
        assert_eq!(fs::read(&path).unwrap(), lock.record);
    }

    #[test]
    fn a_lost_lock_is_noticed_and_not_given_back() {
        type Loss = fn(&Path);
        let losses: [(Loss, &str); 3] = [
            (
                |path| {
                    fs::write(path.with_extension("new"), elsewhere().to_record()).unwrap();
                    fs::rename(path.with_extension("new"), path).unwrap();
                },
                "now process 4711 on host `node17`",
            ),
            (|path| fs::remove_file(path).unwrap(), "it was removed"),
            (|path| fs::write(path, "").unwrap(), "nobody"),
        ];
        for (lose, expected) in losses {
            let (_folder, path) = lock_file(b"", Duration::ZERO);
            let (sender, receiver) = mpsc::channel();
            let on_lost = move |lost: &str| sender.send(lost.to_owned()).unwrap();
            let lock = Lock::take_with(&path, system_lock, Duration::from_millis(5), on_lost).unwrap();
            lose(&path);
            let lost = receiver.recv().unwrap();
            assert!(lost.contains(expected), "{lost}");
            let left = fs::read(&path).ok();
            drop(lock);
            assert_eq!(fs::read(&path).ok(), left, "the new owner's record stays");
        }
    }

    #[test]
    fn times_read_well() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_868_799), "2000-02-29 23:59:59 UTC");
        assert_eq!(utc(951_868_800), "2000-03-01 00:00:00 UTC");
        assert_eq!(utc(1_795_283_538), "2026-11-21 17:52:18 UTC");
        assert_eq!(utc(4_107_542_400), "2100-03-01 00:00:00 UTC");
        assert_eq!(utc(1_798_761_599), "2026-12-31 23:59:59 UTC");
        assert!(utc(u64::MAX).starts_with("9999-12-"));
    }
}
