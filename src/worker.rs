//! The worker process of one device: loads an engine, runs batches, answers over the socket on its
//! standard input.
//!
//! Three threads: this one reads the socket, one owns the engine, one writes the socket and the
//! heartbeats. When the orchestrator's end closes, the process leaves at once, whatever the engine does.

use std::collections::VecDeque;
use std::io::BufReader;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use actors::bounds;
use actors::identity::BatchId;
use actors::protocol::{
    Assignment, EXIT_DEVICE_FAILED, EXIT_PANICKED, EngineChoice, FromWorker, HEARTBEAT_INTERVAL_MS,
    PAYLOAD_FLOATS_MAX, ToWorker, VERSION, WeightsChoice, read_frame, write_frame,
};
use kernels::cpu::CpuEngine;
use kernels::{Embeddings, Engine, EngineError, Model, Progress, SimEngine, SimProgram};

use crate::failure::{Exit, Failure};

/// A batch on its way to the engine thread.
struct Lent {
    batch: BatchId,
    sequences: kernels::Batch,
    exact: bool,
}

/// An answer on its way to the socket thread.
enum Answer {
    Message(FromWorker, Vec<f32>),
    /// Leave with this status once everything before is written.
    Leave(i32),
}

/// Runs the worker until the orchestrator closes the socket.
pub(crate) fn worker() -> Result<Exit, Failure> {
    crate::logging::start_in_worker();
    leave_signals_to_the_orchestrator().map_err(|error| Failure::because(Exit::Failed, &error))?;
    let not_a_socket = |error: std::io::Error| {
        Failure::new(Exit::Usage, format!("`worker` is started by `run`, not by hand: {error}"))
    };
    let socket = std::io::stdin().as_fd().try_clone_to_owned().map_err(not_a_socket)?;
    let socket = UnixStream::from(socket);
    socket.peer_addr().map_err(not_a_socket)?;
    let writing = socket.try_clone().map_err(not_a_socket)?;
    let mut reading = BufReader::new(socket);

    let assignment = match read_frame::<ToWorker>(&mut reading) {
        Ok(Some((ToWorker::Load(assignment), _))) if assignment.version == VERSION => assignment,
        Ok(Some((ToWorker::Load(_), _))) => {
            let text = "the orchestrator speaks another version of the protocol";
            return Err(Failure::new(Exit::Failed, text));
        }
        Ok(Some(_) | None) => return Ok(Exit::Done),
        Err(error) => return Err(Failure::because(Exit::Failed, &error)),
    };

    // From here to the engine: batches the orchestrator lent, at most SLOTS_MAX. Closing it ends the engine
    // thread.
    let (batches, lent) = flume::bounded(bounds::SLOTS_MAX);
    // From the engine to the socket: at most one answer per slot, and the last word.
    let (answers, outgoing) = flume::bounded(bounds::ANSWERS);
    let progress = Progress::default();
    // From the socket back to the engine: one for each answer written, of which there is never more than one.
    let (written, confirmed) = flume::bounded(bounds::CONFIRMATIONS);
    let engine_progress = progress.clone();
    let engine_thread =
        spawn("engine", move || run_engine(assignment, &lent, &answers, &confirmed, &engine_progress))?;
    let socket_thread = spawn("socket", move || write_answers(writing, &outgoing, &written, &progress))?;

    loop {
        match read_frame::<ToWorker>(&mut reading) {
            Ok(Some((ToWorker::Run { batch, sequences, exact }, _))) => {
                if batches.send(Lent { batch, sequences, exact }).is_err() {
                    break;
                }
            }
            Ok(Some((ToWorker::Shutdown, _))) => break,
            Ok(Some((ToWorker::Load(_), _))) => tracing::warn!("a second model was asked for and ignored"),
            // The orchestrator is gone: nobody wants the rest, and an engine thread cannot be stopped.
            Ok(None) | Err(_) => leave(Exit::Done as i32),
        }
    }
    drop(batches);
    let _ = engine_thread.join();
    let _ = socket_thread.join();
    Ok(Exit::Done)
}

/// Ends the process at once, with what it holds of a device.
///
/// Without the exit handlers of the driver's libraries: while another thread is inside them, or after the device
/// failed, those may crash or wait, and the next worker needs the memory. Of our own there is nothing to write: lines
/// of the log go to standard error one by one, unbuffered.
fn leave(status: i32) -> ! {
    // SAFETY: the signature of POSIX, for any status; it touches no memory of the process.
    unsafe extern "C" {
        safe fn _exit(status: i32) -> !;
    }
    _exit(status)
}

/// Clusters signal every process of a job; only the orchestrator decides what a signal means. A worker
/// leaves when its socket closes.
fn leave_signals_to_the_orchestrator() -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
    let seen = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM, SIGUSR1] {
        signal_hook::flag::register(signal, seen.clone())?;
    }
    Ok(())
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<std::thread::JoinHandle<()>, Failure> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|error| Failure::because(Exit::Failed, &error))
}

fn run_engine(
    assignment: Assignment,
    lent: &flume::Receiver<Lent>,
    answers: &flume::Sender<Answer>,
    confirmed: &flume::Receiver<()>,
    progress: &Progress,
) {
    // No batch is begun before it is said that the last one is done: a crash in between would be held against
    // a batch that was. The embeddings themselves travel while the next batch computes.
    let say = |message, values| {
        let _ = answers.send(Answer::Message(message, values));
        let _ = confirmed.recv();
    };
    let engine = match caught(|| load(&assignment)) {
        Ok(engine) => engine,
        Err(Failed { error, status }) => {
            say(FromWorker::LoadFailed(error), Vec::new());
            let _ = answers.send(Answer::Leave(status.unwrap_or(Exit::Failed as i32)));
            return;
        }
    };
    say(FromWorker::Ready { version: VERSION, description: engine.description().clone() }, Vec::new());
    let depth = engine.depth().max(1);
    let mut pipeline = Pipeline {
        engine,
        depth,
        floats_max: PAYLOAD_FLOATS_MAX,
        begun: VecDeque::new(),
        busy_since: Instant::now(),
    };
    while let Some(done) = pipeline.next(lent, progress) {
        match done {
            Done::Computed { batch, compute_us, values } => {
                let memory = pipeline.engine.memory_in_use();
                say(FromWorker::Completed { batch, compute_us, memory }, values);
            }
            Done::Failed { batch, error, status } => {
                say(FromWorker::Failed { batch, error }, Vec::new());
                if let Some(status) = status {
                    let _ = answers.send(Answer::Leave(status));
                    // Its destructors would call a device that answers no more.
                    std::mem::forget(pipeline);
                    return;
                }
            }
        }
    }
}

/// An engine and the batches that it has begun.
struct Pipeline {
    engine: Box<dyn Engine>,
    depth: usize,
    /// Most numbers of one answer.
    floats_max: usize,
    /// Oldest first.
    begun: VecDeque<BatchId>,
    /// Since when the oldest of them has the device to itself.
    busy_since: Instant,
}

/// What became of a batch.
enum Done {
    Computed {
        batch: BatchId,
        compute_us: u64,
        values: Vec<f32>,
    },
    /// `status`: the engine is unusable, leave with this.
    Failed {
        batch: BatchId,
        error: EngineError,
        status: Option<i32>,
    },
}

impl Pipeline {
    /// Begins as many batches as the engine holds and waits for the oldest; waits for a batch only while it has none.
    /// `None`: there are none, and none will come.
    fn next(&mut self, lent: &flume::Receiver<Lent>, progress: &Progress) -> Option<Done> {
        while self.begun.len() < self.depth {
            let next = if self.begun.is_empty() { lent.recv().ok() } else { lent.try_recv().ok() };
            let Some(lent) = next else { break };
            progress.tick();
            if self.depth == 1 {
                return Some(self.run(&lent, progress));
            }
            let Lent { batch, sequences, exact } = lent;
            let began = Instant::now();
            if let Err(failed) = caught(|| self.engine.begin(&sequences, exact, progress)) {
                return Some(self.failed(batch, failed));
            }
            if self.begun.is_empty() {
                self.busy_since = began;
            }
            self.begun.push_back(batch);
        }
        (!self.begun.is_empty()).then(|| self.finish(progress))
    }

    /// Runs a batch in an engine that runs one at a time.
    fn run(&mut self, lent: &Lent, progress: &Progress) -> Done {
        let &Lent { batch, ref sequences, exact } = lent;
        let began = Instant::now();
        let ran = caught(|| match exact {
            true => self.engine.run_exact(sequences, progress),
            false => self.engine.run(sequences, progress),
        });
        match ran {
            Ok(Embeddings { values, .. }) => self.computed(batch, began.elapsed().as_micros() as u64, values),
            Err(failed) => self.failed(batch, failed),
        }
    }

    /// Waits for the oldest batch.
    fn finish(&mut self, progress: &Progress) -> Done {
        let batch = *self.begun.front().expect("a batch has begun");
        match caught(|| self.engine.finish(progress)) {
            Ok(Embeddings { values, .. }) => {
                self.begun.pop_front();
                // A batch's time begins with the end of the one before: what is counted twice would be no speed.
                let now = Instant::now();
                let compute_us = (now - self.busy_since).as_micros() as u64;
                self.busy_since = now;
                self.computed(batch, compute_us, values)
            }
            Err(failed) => {
                let done = self.failed(batch, failed);
                self.begun.pop_front();
                self.busy_since = Instant::now();
                done
            }
        }
    }

    /// What cannot be said in one answer is a batch that failed: its halves can.
    fn computed(&self, batch: BatchId, compute_us: u64, values: Vec<f32>) -> Done {
        let (floats, floats_max) = (values.len(), self.floats_max);
        if floats > floats_max {
            let text = format!("{floats} numbers do not fit into one answer, which holds {floats_max}");
            return Done::Failed { batch, error: EngineError::Batch(text), status: None };
        }
        Done::Computed { batch, compute_us, values }
    }

    /// A device that fails says so at any later call: the batch at fault is the one that was running, the oldest.
    fn failed(&self, batch: BatchId, failed: Failed) -> Done {
        let Failed { error, status } = failed;
        let batch = match &error {
            EngineError::Device(_) => self.begun.front().copied().unwrap_or(batch),
            EngineError::OutOfMemory { .. }
            | EngineError::NonFinite { .. }
            | EngineError::Batch(_)
            | EngineError::Model(_) => batch,
        };
        Done::Failed { batch, error, status }
    }
}

/// An error of the engine; `status`: it is unusable, the process must leave with this.
struct Failed {
    error: EngineError,
    status: Option<i32>,
}

/// Runs `work`; a panic makes the engine unusable.
fn caught<T>(work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, Failed> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            let status = matches!(error, EngineError::Device(_)).then_some(EXIT_DEVICE_FAILED);
            Err(Failed { error, status })
        }
        Err(panic) => {
            let error =
                EngineError::Device(format!("the engine panicked: {}", actors::panic_message(&*panic)));
            Err(Failed { error, status: Some(EXIT_PANICKED) })
        }
    }
}

fn load(assignment: &Assignment) -> Result<Box<dyn Engine>, EngineError> {
    let options = assignment.options.clone();
    match &assignment.engine {
        EngineChoice::Cpu { weights } => Ok(Box::new(CpuEngine::load(&open(weights)?, options)?)),
        EngineChoice::Cuda { weights, uuid } => {
            let (engine, warnings) = kernels::cuda::load(uuid.as_deref(), &open(weights)?, options)?;
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            Ok(engine)
        }
        EngineChoice::Burn { gpu, weights } => load_burn(*gpu, &open(weights)?, options),
        EngineChoice::Sim { device, program } => {
            let program =
                SimProgram::parse(program).map_err(|error| EngineError::Model(error.to_string()))?;
            let generation = assignment.worker.generation.0;
            Ok(Box::new(SimEngine::load(program, *device, generation, options)?))
        }
    }
}

fn open(weights: &WeightsChoice) -> Result<Model, EngineError> {
    let failed = |error: kernels::ModelError| EngineError::Model(actors::error_chain(&error));
    match weights {
        WeightsChoice::Demo => {
            Model::from_bytes(config::demo::CONFIG_JSON, config::demo::WEIGHTS).map_err(failed)
        }
        WeightsChoice::Path { path, config, stamps } => {
            let model = Model::open(path).map_err(failed)?;
            let now = crate::preparation::weight_stamps(&model);
            if model.config() != config || now.as_ref().ok() != Some(stamps) {
                let text = format!("`{}` has changed since the run began", model.name());
                return Err(EngineError::Model(text));
            }
            Ok(model)
        }
    }
}

fn write_answers(
    mut socket: UnixStream,
    outgoing: &flume::Receiver<Answer>,
    written: &flume::Sender<()>,
    progress: &Progress,
) {
    loop {
        let (message, values) = match outgoing.recv_timeout(Duration::from_millis(HEARTBEAT_INTERVAL_MS)) {
            Ok(Answer::Message(message, values)) => (message, values),
            Ok(Answer::Leave(status)) => leave(status),
            Err(flume::RecvTimeoutError::Timeout) => {
                (FromWorker::Heartbeat { ticks: progress.ticks() }, Vec::new())
            }
            Err(flume::RecvTimeoutError::Disconnected) => return,
        };
        let said = match message {
            FromWorker::Completed { batch, .. } => {
                write_frame(&mut socket, &FromWorker::Computed { batch }, &[]).and_then(|()| {
                    let _ = written.send(());
                    write_frame(&mut socket, &message, &values)
                })
            }
            FromWorker::Heartbeat { .. } => write_frame(&mut socket, &message, &values),
            _ => write_frame(&mut socket, &message, &values).map(|()| {
                let _ = written.send(());
            }),
        };
        if said.is_err() {
            // The orchestrator is gone; the reading thread notices as well and leaves.
            return;
        }
    }
}

#[cfg(feature = "burn")]
fn load_burn(
    gpu: Option<u16>,
    model: &Model,
    options: kernels::EngineOptions,
) -> Result<Box<dyn Engine>, EngineError> {
    match gpu {
        None => kernels::burn::load_cpu(model, options),
        #[cfg(feature = "burn-cuda")]
        Some(index) => kernels::burn::load_cuda(model, options, index),
        #[cfg(not(feature = "burn-cuda"))]
        Some(_) => Err(EngineError::Model("burn-cuda is not part of this build".into())),
    }
}

#[cfg(not(feature = "burn"))]
fn load_burn(_: Option<u16>, _: &Model, _: kernels::EngineOptions) -> Result<Box<dyn Engine>, EngineError> {
    Err(EngineError::Model("the burn engine is not part of this build".into()))
}

#[cfg(test)]
mod tests {
    use kernels::{Batch, EngineOptions, Pooling, Precision};

    use super::*;

    #[test]
    fn an_answer_that_is_too_long_is_a_failed_batch_and_the_worker_goes_on() {
        let options =
            EngineOptions { layer: 0, pooling: Pooling::Mean, precision: Precision::Fp32, threads: 1 };
        let engine = SimEngine::load(SimProgram::parse("hidden=4").unwrap(), 0, 0, options).unwrap();
        let mut pipeline = Pipeline {
            engine: Box::new(engine),
            depth: 1,
            floats_max: 4,
            begun: VecDeque::new(),
            busy_since: Instant::now(),
        };
        let (batches, lent) = flume::bounded(bounds::SLOTS_MAX);
        for count in [2, 1] {
            let mut sequences = Batch::default();
            (0..count).for_each(|ordinal| sequences.push(ordinal, b"MKV", 3));
            batches.send(Lent { batch: BatchId(count), sequences, exact: false }).unwrap();
        }
        let mut next = || pipeline.next(&lent, &Progress::default());
        assert!(
            matches!(next(), Some(Done::Failed { batch: BatchId(2), error: EngineError::Batch(text), status: None })
            if text.starts_with("8 numbers do not fit"))
        );
        assert!(
            matches!(next(), Some(Done::Computed { batch: BatchId(1), values, .. }) if values.len() == 4)
        );
    }
}
