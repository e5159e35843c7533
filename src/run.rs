//! The command `run`: prepares a job, starts or resumes it, and sees it to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use actors::failed::{self, Stage};
use actors::fasta::{FileDigest, FileStamp, InputError};
use actors::identity::SegmentId;
use actors::manifest::{
    FORMAT, Manifest, ModelEntry, PartFault, ResultFolder, RunStatus, SegmentEntry, Session, Totals,
};
use actors::restart::RestartPolicy;
use actors::{
    JobView, Outcome, PreparingStep, Run, RunEnd, RunPlan, Snapshot, StopReason, WorkerCommand, WriteError,
};
use config::{InputSource, Job};

use crate::cli::RunArguments;
use crate::control::Control;
use crate::dashboard::screen::GiveBack;
use crate::failure::{Exit, Failure};
use crate::metrics::Metrics;
use crate::preparation::{self, Compute};
use crate::progress::Display;
use crate::recorder::{Host, Recorder, SessionStart};
use crate::report::Ending;
use crate::result_folder::{LastWord, LockedFolder, warn_of_foreign_files};
use crate::signals::Target;
use crate::{identity, logging, progress, report, shortage, signals, summary};

/// Threads for actors, sockets, timers and signals, beside `main`.
const WORKER_THREADS: usize = 2;
/// Threads that a run has at least: those, the ones named in docs/ARCHITECTURE.md, and some that tokio blocks. Not too few:
/// where memory is limited, what is tried must be more than what comes.
const THREADS_MIN: usize = 22;

/// What to say when results vanish under a run.
const FOLDER_GONE: &str = "something removed or changed files of the result; what is gone is computed again";

/// Runs a job to its end.
pub(crate) fn run(arguments: &RunArguments) -> Result<Exit, Failure> {
    let mut job = config::load(&arguments.job.job, &arguments.job.overrides)?;
    job.telemetry.progress = arguments.progress.map_or(job.telemetry.progress, Into::into);
    // However this ends, a panic of this thread included.
    let _restored = GiveBack;
    crate::stderr::start().map_err(|error| no_more_threads(&error))?;
    shortage::has_threads(THREADS_MIN).map_err(|error| no_more_threads(&error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()
        .map_err(|error| Failure::because(Exit::Failed, &error))?;
    let result = runtime.block_on(run_job(&job, arguments));
    // A blocked thread, such as one that reads a pipe, must not hold up the exit.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result
}

async fn run_job(job: &Job, arguments: &RunArguments) -> Result<Exit, Failure> {
    let target = Target::default();
    signals::listen(target.clone()).map_err(|error| Failure::because(Exit::Failed, &error))?;
    logging::check(&job.telemetry)?;
    let display = Display::choose(&job.telemetry)?;
    let compute = preparation::compute(job, arguments.fresh)?;
    let mut locked = LockedFolder::open(&job.output.directory)?;
    logging::start(&job.telemetry, &locked.folder.log(), display)?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), job = %job.file.display(), "starting");
    locked.log_takeover();
    if let Some(remedy) = shortage::of_open_files_for(compute.devices.len()) {
        tracing::warn!("too few open files for this run: {remedy}");
    }
    for note in &compute.notes {
        tracing::warn!("{note}");
    }
    if job.model.source == config::ModelSource::Demo && compute.model.opened.is_some() {
        tracing::warn!("the demo model shows that everything works; it is not fit for biology");
    }

    let started_unix_s = unix_s();
    target.prepare(job_view(job, &compute, started_unix_s), locked.folder.socket());
    let mut control = Control::listen(&locked.folder, target.clone());
    let folder = locked.folder.clone();
    let fresh = arguments.fresh;
    let (job_copy, compute, surveyed) = {
        let (job, target) = (job.clone(), target.clone());
        tokio::task::spawn_blocking(move || {
            let surveyed = survey(&job, &compute, &folder, display.has_bar(), &target);
            (job, compute, surveyed)
        })
        .await
        .map_err(|error| Failure::because(Exit::Failed, &error))?
    };
    let job = &job_copy;
    let Surveyed { mut sources, stamps, survey, model_sha256 } = match surveyed {
        Ok(surveyed) => surveyed,
        Err(failure) => {
            tracing::error!(error = failure.line(), "the input cannot be used");
            return Err(failure);
        }
    };
    target.prepares(PreparingStep::CheckingResult);
    if fresh {
        // Only now: bad input or weights must not cost the earlier result, nor the standard input that it was made of.
        // The input first: after a kill in between nothing would tell that what is kept is that of the earlier result.
        keep_input(&locked.folder, &mut sources)?;
        locked.clear()?;
    }
    let identity = identity::identity(job, &compute, &model_sha256, &survey.files);
    let mut manifest = match Manifest::read(&locked.folder).map_err(|error| {
        Failure::because(Exit::Failed, &error).hint("--fresh deletes the earlier result and starts again")
    })? {
        Some(manifest) => {
            if let Some(problem) = actors::commits::problem(&locked.folder, &manifest) {
                let file = locked.folder.commits();
                tracing::warn!(
                    file = %file.display(),
                    problem,
                    "segments that only this file names are computed again"
                );
            }
            check_kept_input(&locked.folder, &sources, &manifest, &identity)?;
            let mut manifest = resume(&locked, manifest, &identity, arguments.retry_failed)?;
            if keep_input(&locked.folder, &mut sources)? {
                let file = locked.folder.spooled_stdin();
                tracing::warn!(file = %file.display(), "what was kept of standard input was damaged and is replaced");
            }
            // The same contents, perhaps elsewhere.
            (manifest.input, manifest.counts) = (survey.files, survey.counts);
            manifest
        }
        None => {
            if locked.has_parts()? {
                let text = format!("`{}` holds parts but no run.json", locked.folder.embeddings().display());
                return Err(Failure::new(Exit::Usage, text)
                    .hint("choose another output.directory, or delete the parts with --fresh"));
            }
            first_manifest(job, &compute, &model_sha256, identity, survey.files, survey.counts)
        }
    };
    if manifest.status == RunStatus::Done && is_complete(&manifest) {
        // `verify` sends here: what can be put right without computing is.
        locked.remove_uncommitted(&manifest)?;
        write_failed(&locked.folder, &manifest).map_err(|error| Failure::because(Exit::Failed, &error))?;
        warn_of_foreign_files(&locked.folder);
        let failed = match manifest.totals.failed {
            0 => String::new(),
            failed => format!(
                "; {failed} of its records failed: failed.tsv says why, and --retry-failed tries again those that no \
                 device could compute"
            ),
        };
        let folder = job.output.directory.display();
        crate::stderr::say(format_args!("nothing to do: `{folder}` is complete{failed}"));
        return Ok(finished(&manifest));
    }
    manifest.status = RunStatus::Running;
    manifest.reason = None;
    manifest.version = env!("CARGO_PKG_VERSION").to_owned();
    manifest.job = serde_json::to_value(job).map_err(|error| Failure::because(Exit::Failed, &error))?;
    manifest.devices = compute.devices.iter().map(|device| device.name.clone()).collect();
    if manifest.token_budget != compute.packing.token_budget {
        manifest.device_token_budgets.clear();
    }
    manifest.token_budget = compute.packing.token_budget;
    let started_unix_s = unix_s();
    manifest.sessions.push(Session { started_unix_s, elapsed_s: 0.0, tokens: 0, restarts: 0 });
    // First, since it may make the room that the manifest needs.
    locked.remove_temporary()?;
    // A stop before it is written ends the program; one that comes later waits for the run.
    target.begins();
    let begun = actors::write_when_possible(
        &locked.folder.0,
        || target.is_awaited(),
        |_| (),
        || manifest.write(&locked.folder),
    );
    if begun.map_err(|error| Failure::because(Exit::Failed, &error))?.is_none() {
        target.end_before_run();
    }

    let earlier: BTreeSet<u32> = manifest.segments.keys().copied().collect();
    let session = u32::try_from(manifest.sessions.len()).unwrap_or(u32::MAX);
    let session_start = SessionStart {
        job: job_view(job, &compute, started_unix_s),
        host: Host::here(&host_name()),
        command: same_command(arguments),
        working_folder: std::env::current_dir()
            .map_or_else(|_| String::new(), |path| path.display().to_string()),
        configuration: job.to_toml().unwrap_or_default(),
        records_total: manifest.counts.records,
        residues_total: manifest.counts.residues,
        records_resumed: manifest.totals.records,
        lengths: survey.lengths,
    };
    let before = manifest.clone();
    // What the manifest on disk names is never deleted: only now.
    let started = match locked.remove_uncommitted(&manifest) {
        Ok(()) => Run::start(run_plan(job, &compute, &locked.folder, sources, stamps, manifest))
            .await
            .map_err(|error| cannot_start(&*error)),
        Err(failure) => Err(failure),
    };
    let run = started.map_err(|failure| never_began(&mut locked, before, failure))?;
    target.set(run.stopper(), run.snapshots());
    let shown = summary::shown(&job.output.directory);
    let display = tokio::spawn(progress::show(display, shown, run.stopper(), run.snapshots()));
    control.keep(&locked.folder, run.snapshots());
    let metrics = Metrics::serve(job.telemetry.prometheus, run.snapshots()).await;
    let recorder = Recorder::start(&locked.folder, session, session_start, run.snapshots());
    let end = run.ended().await;
    drop(metrics);
    control.close(&end.snapshot, &locked.folder);
    let _ = display.await;
    let snapshot = end.snapshot.clone();
    let Conclusion { manifest, result, unwritten } =
        conclude(arguments, &locked.folder, &compute, job, &earlier, end, &target);
    let (status, reason) = ending(&result);
    if let Some(why) = unwritten {
        let reason = reason.as_deref().unwrap_or("everything is committed");
        locked.leave(LastWord { ended: status, reason: Some(format!("{reason}; run.json lacks it: {why}")) });
    }
    tell_the_end(&locked.folder, recorder, &manifest, &snapshot, status, reason);
    result
}

/// Writes down that a session ended before it began.
fn never_began(locked: &mut LockedFolder, mut manifest: Manifest, failure: Failure) -> Failure {
    (manifest.status, manifest.reason) = (RunStatus::Failed, Some(failure.line()));
    if manifest.write(&locked.folder).is_err() {
        locked.leave(LastWord { ended: manifest.status, reason: manifest.reason });
    }
    failure
}

/// How a result goes down in files.
fn ending(result: &Result<Exit, Failure>) -> (RunStatus, Option<String>) {
    match result {
        Ok(_) => (RunStatus::Done, None),
        Err(failure) if failure.exit == Exit::Resumable => (RunStatus::Stopped, Some(failure.line())),
        Err(failure) => (RunStatus::Failed, Some(failure.line())),
    }
}

/// Records, reports and says how a run ended; nothing of it changes how it did.
fn tell_the_end(
    folder: &ResultFolder,
    recorder: Recorder,
    manifest: &Manifest,
    snapshot: &Arc<Snapshot>,
    status: RunStatus,
    reason: Option<String>,
) {
    let ending = match status {
        RunStatus::Running => Ending::Running,
        RunStatus::Done => Ending::Done,
        RunStatus::Stopped => Ending::Stopped,
        RunStatus::Failed => Ending::Failed,
    };
    recorder.close(snapshot, status, reason.clone());
    report::write_at_end(folder, manifest, snapshot, ending, reason);
    // Who reads slowly, too, gets the last words whole.
    logging::flush();
    if status == RunStatus::Done {
        summary::print_done(folder, manifest, snapshot);
    } else {
        summary::print_ended(snapshot);
    }
}

/// Says once, and as what it is, what the actors, which start one another, say one after the other as a panic.
fn cannot_start(error: &(dyn Error + 'static)) -> Failure {
    let root = std::iter::successors(Some(error), |&error| error.source()).last().unwrap_or(error);
    let kind = root.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    if !matches!(kind, Some(ErrorKind::WouldBlock | ErrorKind::OutOfMemory)) {
        return Failure::new(Exit::Failed, format!("the run cannot start: {root}"));
    }
    no_more_threads(root)
}

fn no_more_threads(error: &(dyn Error + 'static)) -> Failure {
    Failure::new(Exit::Failed, format!("the run cannot start: no more threads or memory may be had: {error}"))
        .hint(shortage::of_threads_or_memory())
}

/// What the input is.
struct Surveyed {
    sources: Vec<actors::fasta::Source>,
    stamps: Vec<FileStamp>,
    survey: actors::fasta::Survey,
    model_sha256: String,
}

fn survey(
    job: &Job,
    compute: &Compute,
    folder: &ResultFolder,
    bar: bool,
    target: &Target,
) -> Result<Surveyed, Failure> {
    // Without a manifest nothing refers to an input that was kept before.
    let unclaimed = folder.manifest().symlink_metadata().is_err();
    let kept = folder.spooled_stdin();
    if job.input.fasta.contains(&InputSource::Stdin) {
        target.stores(preparation::arriving_stdin(&kept));
    }
    let sources = preparation::sources(job, &kept, unclaimed, bar, &|bytes| target.has_read(bytes, 0))?;
    target.reads();
    let stamps: Vec<FileStamp> = sources
        .iter()
        .map(|source| {
            let file = source.label().to_owned();
            source.stamp().map_err(|source| InputError::Open { file, source })
        })
        .collect::<Result<_, _>>()?;
    let scratch = folder.state().join("scratch");
    let told = |read, total| {
        target.has_read(read, total);
        actors::fault::point("survey");
    };
    let row_residues_max = compute.part_schema(job).residues_max();
    let survey = preparation::survey_input(job, &sources, row_residues_max, &scratch, bar, &told)?;
    tracing::info!(
        files = survey.files.len(),
        records = survey.counts.records,
        residues = survey.counts.residues,
        rejected = survey.counts.rejected,
        "input read"
    );
    target.prepares(PreparingStep::ReadingWeights);
    Ok(Surveyed { sources, stamps, survey, model_sha256: compute.model.sha256()? })
}

/// Whether what an earlier session kept of standard input is what it had read, where nothing was piped in.
fn check_kept_input(
    folder: &ResultFolder,
    sources: &[actors::fasta::Source],
    manifest: &Manifest,
    identity: &BTreeMap<String, String>,
) -> Result<(), Failure> {
    let kept = folder.spooled_stdin();
    let Some(number) = sources.iter().position(|source| source.path() == kept) else { return Ok(()) };
    let key = identity::input_key(number);
    let differences = manifest.differences(identity);
    // With other inputs or settings it is another job.
    if differences.is_empty() || differences.iter().any(|(name, ..)| *name != key) {
        return Ok(());
    }
    let text = format!("`{}`, kept of standard input, is no longer what the job had read", kept.display());
    Err(Failure::new(Exit::Usage, text).hint(
        "pipe the same input in again: the result so far is kept, and it takes the place of the damaged file",
    ))
}

/// Lets standard input that arrived beside what was kept take its place; whether there was any.
fn keep_input(folder: &ResultFolder, sources: &mut [actors::fasta::Source]) -> Result<bool, Failure> {
    let kept = folder.spooled_stdin();
    let arrived = preparation::arrived_stdin(&kept);
    let Some(source) = sources.iter_mut().find(|source| source.path() == arrived) else { return Ok(false) };
    std::fs::rename(&arrived, &kept).and_then(|()| actors::files::sync_folder_of(&kept)).map_err(
        |source| Failure::because(Exit::Failed, &InputError::Spool { path: kept.clone(), source }),
    )?;
    *source = actors::fasta::Source::spooled_stdin(&kept);
    Ok(true)
}

/// Takes over what an earlier session committed, after checking every part of it.
///
/// `retry_failed`: segments in which records failed for want of a device that computes them are given up.
fn resume(
    locked: &LockedFolder,
    mut manifest: Manifest,
    identity: &BTreeMap<String, String>,
    retry_failed: bool,
) -> Result<Manifest, Failure> {
    let differences = manifest.differences(identity);
    if !differences.is_empty() {
        let text = format!("`{}` holds the result of another job", locked.folder.0.display());
        let mut failure = Failure::new(Exit::Usage, text);
        for (key, there, here) in differences {
            failure = failure.hint(format!("{key} was {there}, now {here}"));
        }
        return Err(
            failure.hint("choose another output.directory, or delete the earlier result with --fresh")
        );
    }
    let segments: Vec<(u32, SegmentEntry)> =
        manifest.segments.iter().map(|(&segment, entry)| (segment, entry.clone())).collect();
    for (segment, entry) in segments {
        let Err(fault) = entry.check(&locked.folder) else { continue };
        let problem = actors::error_chain(&fault);
        tracing::warn!(segment, problem, "committed part is damaged and will be computed again");
        manifest.revoke(SegmentId(segment));
        manifest.status = RunStatus::Running;
    }
    if retry_failed {
        revoke_failed(&locked.folder, &mut manifest)?;
    }
    if !manifest.segments.is_empty() {
        let (segments, records) = (manifest.segments.len(), manifest.totals.records);
        tracing::info!(segments, records, of = manifest.counts.records, "resuming");
    }
    Ok(manifest)
}

/// Takes back the segments that list records which no device could compute.
fn revoke_failed(folder: &ResultFolder, manifest: &mut Manifest) -> Result<(), Failure> {
    let listing = manifest.segments.iter().filter(|(_, entry)| entry.failed > 0);
    let segments: Vec<SegmentId> = listing.map(|(&segment, _)| SegmentId(segment)).collect();
    for segment in segments {
        let failed = failed::count_at(folder, segment, Stage::Compute).map_err(|error| {
            let path = folder.failed_of(segment);
            Failure::new(Exit::Failed, format!("failed to read `{}`: {error}", path.display()))
        })?;
        if failed > 0 {
            tracing::info!(%segment, failed, "records that failed are tried again with their segment");
            manifest.revoke(segment);
            manifest.status = RunStatus::Running;
        }
    }
    Ok(())
}

fn first_manifest(
    job: &Job,
    compute: &Compute,
    model_sha256: &str,
    identity: BTreeMap<String, String>,
    input: Vec<FileDigest>,
    counts: actors::fasta::InputCounts,
) -> Manifest {
    Manifest {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        status: RunStatus::Running,
        reason: None,
        identity,
        job: serde_json::to_value(job).unwrap_or_default(),
        input,
        counts,
        model: ModelEntry {
            source: compute.model.source.clone(),
            sha256: model_sha256.to_owned(),
            layers: compute.model.layers,
            hidden: compute.model.hidden,
        },
        devices: Vec::new(),
        token_budget: compute.packing.token_budget,
        device_token_budgets: BTreeMap::new(),
        sessions: Vec::new(),
        totals: Totals::default(),
        segments: BTreeMap::new(),
    }
}

fn run_plan(
    job: &Job,
    compute: &Compute,
    folder: &ResultFolder,
    sources: Vec<actors::fasta::Source>,
    stamps: Vec<FileStamp>,
    manifest: Manifest,
) -> RunPlan {
    let restart = &job.restart;
    let started_unix_s = manifest.sessions.last().map_or(0, |session| session.started_unix_s);
    RunPlan {
        job: job_view(job, compute, started_unix_s),
        input: job.input.clone(),
        sources,
        stamps,
        segment_limits: compute.limits,
        packing: compute.packing,
        attempts_per_batch_max: restart.attempts_per_batch_max,
        devices: compute.devices.clone(),
        worker_command: worker_command(),
        restart: RestartPolicy {
            backoff_min: Duration::from_millis(restart.backoff_ms_min),
            backoff_max: Duration::from_millis(restart.backoff_ms_max),
            restarts_max: restart.restarts_per_device_max,
        },
        readmit_after: Some(restart.readmit_ms).filter(|&ms| ms > 0).map(Duration::from_millis),
        stall_max: Duration::from_millis(restart.stall_ms),
        load_max: Duration::from_millis(restart.load_ms_max),
        hang_max: Duration::from_millis(restart.hang_ms),
        shutdown_grace: Duration::from_millis(restart.shutdown_grace_ms),
        folder: folder.clone(),
        journal_after: Duration::from_millis(job.output.journal_ms),
        schema: compute.part_schema(job),
        part_metadata: part_metadata(compute, &manifest.model.sha256),
        manifest,
    }
}

/// What displays say of the job.
fn job_view(job: &Job, compute: &Compute, started_unix_s: u64) -> JobView {
    JobView {
        file: job.file.display().to_string(),
        folder: job.output.directory.display().to_string(),
        model: compute.model.source.clone(),
        hidden: u32::try_from(compute.model.hidden).unwrap_or(u32::MAX),
        layers: u32::try_from(compute.model.layers).unwrap_or(u32::MAX),
        precision: identity::precision(compute.precision).to_owned(),
        pooling: identity::pooling(compute.pooling).to_owned(),
        token_budget: compute.packing.token_budget,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        host: host_name(),
        process: std::process::id(),
        started_unix_s,
    }
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// What the footer of each part says; nothing that depends on the machine or the time.
fn part_metadata(compute: &Compute, model_sha256: &str) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("virnucpro.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("virnucpro.model_sha256".to_owned(), model_sha256.to_owned()),
        ("virnucpro.layer".to_owned(), compute.layer.to_string()),
        ("virnucpro.pooling".to_owned(), identity::pooling(compute.pooling).to_owned()),
        ("virnucpro.precision".to_owned(), identity::precision(compute.precision).to_owned()),
    ])
}

/// This executable again. `/proc/self/exe` is this very program even after its file was replaced.
fn worker_command() -> WorkerCommand {
    let itself = std::path::Path::new("/proc/self/exe");
    let program = if itself.exists() {
        OsString::from(itself)
    } else {
        std::env::current_exe().map_or_else(|_| OsString::from("virnucpro-orch"), OsString::from)
    };
    WorkerCommand { program, arguments: vec!["worker".into()] }
}

/// The last state of the folder, and how the run went.
struct Conclusion {
    manifest: Manifest,
    result: Result<Exit, Failure>,
    /// Why `run.json` does not have all of it, if it does not.
    unwritten: Option<String>,
}

/// Writes the last state of the folder.
fn conclude(
    arguments: &RunArguments,
    folder: &ResultFolder,
    compute: &Compute,
    job: &Job,
    earlier: &BTreeSet<u32>,
    end: RunEnd,
    signals: &Target,
) -> Conclusion {
    let RunEnd { outcome, mut manifest, snapshot } = end;
    if let Some(session) = manifest.sessions.last_mut() {
        session.elapsed_s = snapshot.elapsed_s;
        session.tokens = snapshot.tokens_computed;
        session.restarts = snapshot.restarts;
    }
    // What a stop waited for may have been all that was left.
    let outcome = match outcome {
        Outcome::Stopped(_) if is_complete(&manifest) => Outcome::Finished,
        outcome => outcome,
    };
    // Whether what is written now says more than what the last commit left on disk.
    let mut matters = false;
    let mut input_changed = false;
    let wished = matches!(outcome, Outcome::Stopped(StopReason::Signal(_) | StopReason::Asked));
    let failure = match outcome {
        Outcome::Finished => {
            matters = true;
            if is_complete(&manifest) {
                lost_since_committed(folder, &mut manifest)
            } else {
                manifest.status = RunStatus::Failed;
                let text = format!(
                    "{} records were read, {} are accounted for: this is a bug, please report it",
                    manifest.counts.records, manifest.totals.records
                );
                Some(Failure::new(Exit::Failed, text))
            }
        }
        Outcome::Stopped(reason) => {
            manifest.status = RunStatus::Stopped;
            Some(Failure::because(Exit::Resumable, &reason))
        }
        Outcome::InputFailed(error) => {
            manifest.status = RunStatus::Failed;
            if matches!(error, InputError::Changed { .. }) {
                matters = true;
                input_changed = true;
                // What this session read may be of either content.
                let segments: Vec<u32> = manifest.segments.keys().copied().collect();
                for segment in segments.into_iter().filter(|segment| !earlier.contains(segment)) {
                    manifest.revoke(SegmentId(segment));
                }
            }
            Some(Failure::from(error))
        }
        Outcome::ModelUnusable(errors) => {
            manifest.status = RunStatus::Failed;
            let text = format!("the model cannot be used: {errors}");
            Some(
                Failure::new(Exit::Failed, text)
                    .hint("mend what is named; weights that are damaged have to be fetched again"),
            )
        }
        Outcome::WriteFailed(error) if error.is_folder_gone() => {
            manifest.status = RunStatus::Stopped;
            let failure = Failure::because(Exit::Resumable, &error);
            Some(failure.hint(FOLDER_GONE))
        }
        Outcome::WriteFailed(error) => {
            manifest.status = RunStatus::Failed;
            Some(Failure::because(Exit::Failed, &error))
        }
    };
    if let Some(failure) = &failure {
        // It is no error that a stop does what somebody wished for.
        if wished {
            tracing::warn!(error = failure.line(), "ended before the end");
        } else {
            tracing::error!(error = failure.line(), "ended before the end");
        }
    } else {
        manifest.status = RunStatus::Done;
    }
    manifest.reason = failure.as_ref().map(Failure::line);
    let mut write = || write_last_state(folder, compute, job, &mut manifest);
    let written = if matters {
        actors::write_when_possible(&folder.0, || signals.received().is_some(), |_| (), write)
    } else {
        write().map(Some)
    };
    let to_go_on = |failure: Failure| {
        let committed = progress::grouped(manifest.totals.records);
        let records = progress::grouped(manifest.counts.records);
        let command = same_command(arguments);
        if input_changed {
            // Another content is another job, which this folder refuses.
            return failure
                .hint(format!(
                    "{committed} of {records} records are committed; once the input is what it was, to go on: {command}"
                ))
                .hint(format!("to start again with the input as it is now: {command} --fresh"));
        }
        failure.hint(format!("{committed} of {records} records are committed; to go on: {command}"))
    };
    let unwritten = match &written {
        Ok(Some(())) => None,
        Ok(None) => Some("the end came while writing was paused".to_owned()),
        Err(error) => Some(actors::error_chain(error)),
    };
    let result = match (failure, written) {
        (None, Ok(Some(()))) => {
            tracing::info!(rows = manifest.totals.rows, failed = manifest.totals.failed, "done");
            warn_of_foreign_files(folder);
            Ok(finished(&manifest))
        }
        (None, Ok(None)) => {
            let signal = signals.received().unwrap_or("a signal");
            let text = format!("stopped by {signal} before the end of the run could be written down");
            Err(to_go_on(Failure::new(Exit::Resumable, text)))
        }
        (None, Err(error)) if error.is_folder_gone() => {
            let failure = Failure::because(Exit::Resumable, &error);
            Err(to_go_on(failure.hint(FOLDER_GONE)))
        }
        (None, Err(error)) => Err(Failure::because(Exit::Failed, &error)),
        (Some(failure), written) => {
            if let Err(error) = written {
                let error = actors::error_chain(&error);
                tracing::warn!(error, "the end of the session could not be written down");
            }
            Err(to_go_on(failure))
        }
    };
    Conclusion { manifest, result, unwritten }
}

/// Takes back what somebody deleted or cut short after it was committed, so that nothing is called done that
/// is not there. Parts are not read: what else may have happened to them is `verify`'s to find.
fn lost_since_committed(folder: &ResultFolder, manifest: &mut Manifest) -> Option<Failure> {
    let lost: Vec<(u32, PartFault)> = manifest
        .segments
        .iter()
        .filter_map(|(&segment, entry)| {
            let looked_at = entry.check_size(folder).and_then(|()| entry.check_failed_list(folder));
            looked_at.err().map(|fault| (segment, fault))
        })
        .collect();
    let (_, first) = lost.first()?;
    let failure = Failure::because(Exit::Resumable, first);
    for (segment, fault) in &lost {
        tracing::warn!(
            segment,
            problem = actors::error_chain(fault),
            "committed part was lost during the run"
        );
        manifest.revoke(SegmentId(*segment));
    }
    manifest.status = RunStatus::Stopped;
    Some(failure.hint(FOLDER_GONE))
}

/// Writes what only the end of a session writes.
fn write_last_state(
    folder: &ResultFolder,
    compute: &Compute,
    job: &Job,
    manifest: &mut Manifest,
) -> Result<(), WriteError> {
    if manifest.status == RunStatus::Done && manifest.segments.is_empty() {
        write_empty_part(folder, compute, job, manifest)?;
    }
    let listed = write_failed(folder, manifest);
    if manifest.status == RunStatus::Done {
        listed?;
        return Ok(manifest.write(folder)?);
    }
    // Only `done` promises the list, which may take far more room than the little that says how it ended.
    manifest.write(folder)?;
    listed
}

fn write_failed(folder: &ResultFolder, manifest: &Manifest) -> Result<(), WriteError> {
    failed::assemble(folder, manifest).map_err(|source| WriteError::Failed { path: folder.failed(), source })
}

fn write_empty_part(
    folder: &ResultFolder,
    compute: &Compute,
    job: &Job,
    manifest: &mut Manifest,
) -> Result<(), WriteError> {
    let segment = SegmentId(0);
    let part = ResultFolder::part_name(segment);
    let (schema, metadata) = (compute.part_schema(job), part_metadata(compute, &manifest.model.sha256));
    let summary = actors::part::write_part(&folder.0.join(&part), &schema, &metadata, [])?;
    tracing::warn!("the input holds no records: the result is an empty table");
    manifest.commit(
        segment,
        SegmentEntry {
            first_index: 0,
            records: 0,
            rows: 0,
            failed: 0,
            residues: 0,
            part,
            bytes: summary.bytes,
            sha256: summary.checksum.to_string(),
        },
    );
    Ok(())
}

fn is_complete(manifest: &Manifest) -> bool {
    let totals = &manifest.totals;
    totals.records == manifest.counts.records && totals.rows + totals.failed == totals.records
}

fn finished(manifest: &Manifest) -> Exit {
    if manifest.totals.failed > 0 { Exit::Rejected } else { Exit::Done }
}

/// A word as a shell takes it.
pub(crate) fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

fn same_command(arguments: &RunArguments) -> String {
    let mut command = format!("virnucpro-orch run {}", quoted(&arguments.job.job.to_string_lossy()));
    for key_value in &arguments.job.overrides {
        command += &format!(" --set {}", quoted(key_value));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("panicked during startup: {0}")]
    struct Nested(#[source] Box<dyn Error>);

    #[test]
    fn a_start_without_threads_is_told_once() {
        let nested = |kind: ErrorKind| Nested(Box::new(Nested(Box::new(std::io::Error::from(kind)))));
        for kind in [ErrorKind::WouldBlock, ErrorKind::OutOfMemory] {
            let failure = cannot_start(&nested(kind));
            assert_eq!(failure.exit, Exit::Failed);
            assert!(failure.line().starts_with("the run cannot start: no more threads or memory"));
            assert!(!failure.line().contains("panicked"), "{}", failure.line());
        }
        let failure = cannot_start(&nested(ErrorKind::NotFound));
        assert_eq!(failure.line(), "the run cannot start: entity not found");
    }
}
