//! Who holds which batch, what is done, and what becomes of a batch that failed.
//!
//! Pure: the packer actor owns it and carries out its verdicts. A dead actor's mailbox is discarded
//! silently, so leases live here and nowhere else. Invariant: each sequence of an open segment is in
//! exactly one of: a pending batch, a leased batch, done, quarantined; or its segment is paused.

use std::collections::{BTreeMap, BTreeSet};

use kernels::EngineError;

use crate::budget::{PRESSURE_MAX, TokenBudget};
use crate::identity::{BatchId, DeviceIndex, SegmentId, Worker};

/// A batch on loan to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The batch.
    pub batch: BatchId,
    /// Its segment.
    pub segment: SegmentId,
    /// The segment's sequences in it; none in a trial, which only tells that the worker is alive.
    pub sequences: Vec<u32>,
    /// Whether it shall run in fp32, whatever the job's precision: it overflowed before.
    pub exact: bool,
    /// Tokens that its device was allowed at once when it was lent.
    pub budget_tokens: u32,
    /// Whether it is of the end of the input, for which there was not enough left to fill it.
    pub is_last: bool,
}

/// A completed batch.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// Time in the engine.
    pub compute_us: u64,
    /// Share of the device's memory in use at its fullest, 0..=1, where the device tells.
    pub memory: Option<f32>,
}

/// What became of a batch that was not completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It will be leased again.
    Requeued {
        /// The batch.
        batch: BatchId,
        /// Failures held against it so far.
        attempts: u32,
    },
    /// Its sequences were given to smaller batches.
    Split {
        /// The batch that is no more.
        batch: BatchId,
        /// What it became.
        into: Vec<BatchId>,
    },
    /// Its only sequence failed too often and is set aside.
    Quarantined {
        /// Its segment.
        segment: SegmentId,
        /// The sequence.
        sequence: u32,
        /// The last failure.
        reason: String,
    },
    /// The worker failed a trial that any device can do: start it again.
    Unfit {
        /// What it said.
        reason: String,
    },
    /// The device gets fewer tokens at once.
    Reduced {
        /// Its budget from now on.
        tokens: u32,
    },
}

/// Failures in a row, whatever the batches, after which a device must pass a trial before it gets more.
const DOUBT_AFTER: u32 = 4;
/// Failures of a lone sequence on each of two devices, where there are two, before it is set aside.
const SAYS_NEEDED: u32 = 2;
/// At the end of the input, no batch is cut below this part of the budget to share out the rest: smaller
/// ones keep no device busy.
const TAIL_PART_MIN: u32 = 8;
/// Weight of the latest batch in a device's speed.
const SPEED_WEIGHT: f64 = 0.3;

/// An answer for a batch that this worker does not hold: it comes from an earlier life of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale;

/// Where in a segment's queue a batch stands; lower goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    /// Lost through no fault of its own.
    Innocent,
    Fresh,
    /// Failed before: after the others, so that the device makes progress in between.
    Suspect,
}

#[derive(Debug)]
struct BatchEntry {
    segment: SegmentId,
    sequences: Vec<u32>,
    tokens: u64,
    attempts: u32,
    /// To be run in fp32.
    exact: bool,
    turn: Turn,
    /// It took a worker with it while its sequence stood alone.
    lethal: bool,
    /// How often its sequence failed on each device while it stood alone.
    failed_on: BTreeMap<DeviceIndex, u32>,
    holder: Option<Worker>,
    /// Its holder has computed it; the embeddings are on their way.
    computed: bool,
    /// Order of leasing: a worker runs its leases in this order.
    leased_at: u64,
    /// As in the latest [`Lease`] of it.
    budget_tokens: u32,
    is_last: bool,
}

#[derive(Debug)]
struct SegmentEntry {
    token_counts: Vec<u32>,
    settled: Vec<bool>,
    unsettled: usize,
    /// Nothing more of it is lent in this run.
    paused: bool,
}

/// What is known of a device.
#[derive(Debug)]
struct DeviceEntry {
    budget: TokenBudget,
    /// Batches that its workers could not complete since the last one that they did.
    failures_in_a_row: u32,
    /// Tokens per microsecond; `None` before its first batch.
    speed: Option<f64>,
    /// Tokens of the batches it holds.
    held_tokens: u64,
}

/// The ledger of one run.
#[derive(Debug)]
pub struct Ledger {
    attempts_max: u32,
    token_budget: u32,
    batches_made: u64,
    leases_made: u64,
    batches: BTreeMap<BatchId, BatchEntry>,
    pending: BTreeSet<(SegmentId, Turn, BatchId)>,
    pending_tokens: u64,
    segments: BTreeMap<SegmentId, SegmentEntry>,
    /// Workers that have answered a batch, one way or another; at most one per device.
    answered: BTreeSet<Worker>,
    /// Devices that are not retired; one that is loading or pausing will answer or be retired.
    expected: BTreeSet<DeviceIndex>,
    devices: BTreeMap<DeviceIndex, DeviceEntry>,
    /// Whether no further segment will be opened: what is left is shared out by speed.
    is_last: bool,
}

impl Ledger {
    /// `attempts_max`: failures of one batch before it is halved, or its only sequence quarantined.
    /// `token_budget`: most tokens of a batch of several sequences on a healthy device.
    pub fn new(attempts_max: u32, token_budget: u32) -> Self {
        Self {
            attempts_max: attempts_max.max(1),
            token_budget,
            batches_made: 0,
            leases_made: 0,
            batches: BTreeMap::new(),
            pending: BTreeSet::new(),
            pending_tokens: 0,
            segments: BTreeMap::new(),
            answered: BTreeSet::new(),
            expected: BTreeSet::new(),
            devices: BTreeMap::new(),
            is_last: false,
        }
    }

    /// Says that the run has this device: a sequence is condemned only by two of them, where there are two.
    ///
    /// `remembered_tokens`: its token budget at the end of an earlier session.
    pub fn expect_device(&mut self, device: DeviceIndex, remembered_tokens: Option<u32>) {
        self.expected.insert(device);
        let entry = self.device(device);
        if let Some(tokens) = remembered_tokens {
            entry.budget = entry.budget.remembered(tokens);
        }
    }

    /// Says that a device never has room for more than so many tokens; returns its budget if that changes it.
    pub fn limit_device(&mut self, device: DeviceIndex, tokens: u32) -> Option<u32> {
        let full = self.token_budget.min(tokens);
        let budget = &mut self.device(device).budget;
        let before = budget.tokens();
        budget.limit(full);
        Some(budget.tokens()).filter(|&tokens| tokens != before)
    }

    /// Says that a device was given up.
    pub fn retire_device(&mut self, device: DeviceIndex) {
        self.expected.remove(&device);
    }

    /// Says that a retired device is tried again: it must pass a trial before it gets sequences.
    pub fn readmit_device(&mut self, device: DeviceIndex) {
        self.expected.insert(device);
        self.device(device).failures_in_a_row = DOUBT_AFTER;
    }

    /// Tokens that a device is allowed at once.
    pub fn budget_of(&self, device: DeviceIndex) -> u32 {
        self.devices.get(&device).map_or(self.token_budget, |entry| entry.budget.tokens())
    }

    /// Says that no further segment will be opened.
    pub fn expect_no_more(&mut self) {
        self.is_last = true;
    }

    /// Token budgets of the devices that ran short of memory, for a later session.
    pub fn reduced_budgets(&self) -> impl Iterator<Item = (DeviceIndex, u32)> + '_ {
        self.devices.iter().filter_map(|(&device, entry)| Some((device, entry.budget.to_remember()?)))
    }

    /// Takes on a segment of sequences of `token_counts` tokens, packed into `batches`. A sequence that is
    /// in no batch is settled already.
    pub fn open_segment(&mut self, segment: SegmentId, token_counts: Vec<u32>, batches: Vec<Vec<u32>>) {
        let mut settled = vec![true; token_counts.len()];
        for &sequence in batches.iter().flatten() {
            settled[sequence as usize] = false;
        }
        let unsettled = settled.iter().filter(|settled| !**settled).count();
        let entry = SegmentEntry { token_counts, settled, unsettled, paused: false };
        let previous = self.segments.insert(segment, entry);
        assert!(previous.is_none(), "segment {segment} opened twice");
        for sequences in batches {
            self.add(NewBatch::of(segment, sequences, Turn::Fresh));
        }
    }

    /// Forgets a segment whose sequences are all settled.
    pub fn close_segment(&mut self, segment: SegmentId) {
        let entry = self.segments.remove(&segment);
        assert!(
            entry.is_some_and(|entry| entry.unsettled == 0),
            "segment {segment} closed before it was done"
        );
    }

    /// Whether every sequence of an open segment is done or quarantined.
    pub fn is_settled(&self, segment: SegmentId) -> bool {
        self.segments.get(&segment).is_some_and(|entry| entry.unsettled == 0)
    }

    /// Lends nothing more of a segment in this run; what is lent already may still be completed, and is forgotten
    /// where it is not.
    pub fn pause_segment(&mut self, segment: SegmentId) {
        if let Some(entry) = self.segments.get_mut(&segment) {
            entry.paused = true;
        }
        let paused: Vec<_> = self.pending.iter().filter(|&&(of, _, _)| of == segment).copied().collect();
        for key in paused {
            self.pending.remove(&key);
            let entry = self.batches.remove(&key.2).expect("a pending batch is in the ledger");
            self.pending_tokens -= entry.tokens;
        }
    }

    /// Lends the next batch, oldest segment first, cut to what the device may have at once.
    ///
    /// A device that is dying fails whatever it gets. So a lone sequence that took a worker with it is lent
    /// only to a worker that has answered another batch, and a device that failed [`DOUBT_AFTER`] batches in
    /// a row gets no sequence at all, until it has answered a trial.
    pub fn lease(&mut self, worker: Worker) -> Option<Lease> {
        let first = *self.pending.first()?;
        let alive = self.answered.contains(&worker);
        let is_doubted = self.device(worker.device).failures_in_a_row >= DOUBT_AFTER;
        let limit = self.lease_limit(worker.device)?;
        let suits = |batch: &BatchId| {
            let entry = &self.batches[batch];
            (alive || !entry.lethal)
                && !(self.has_spoken(&entry.failed_on, worker.device) && self.is_undecided(&entry.failed_on))
        };
        let next = self.pending.iter().find(|(_, _, batch)| suits(batch)).filter(|_| !is_doubted).copied();
        let batch = match next {
            Some(key @ (_, _, batch)) => {
                self.pending.remove(&key);
                self.pending_tokens -= self.batches[&batch].tokens;
                self.cut(batch, limit);
                batch
            }
            // Another device is the judge of all that is left.
            None if alive && !is_doubted => return None,
            // What it holds will prove it.
            None if self.batches.values().any(|entry| entry.holder == Some(worker)) => return None,
            None => self.add_trial(first.0),
        };
        let budget_tokens = self.devices[&worker.device].budget.tokens();
        // Cut short so that all devices end together, or the very last.
        let is_last = self.is_last && (limit < u64::from(budget_tokens) || self.pending.is_empty());
        let entry = self.batches.get_mut(&batch).expect("a pending batch is in the ledger");
        (entry.budget_tokens, entry.is_last) = (budget_tokens, is_last);
        entry.holder = Some(worker);
        entry.leased_at = self.leases_made;
        self.leases_made += 1;
        let lease = Lease {
            batch,
            segment: entry.segment,
            sequences: entry.sequences.clone(),
            exact: entry.exact,
            budget_tokens,
            is_last,
        };
        let tokens = entry.tokens;
        self.device(worker.device).held_tokens += tokens;
        Some(lease)
    }

    /// Most tokens of the next batch of a device; `None`: it has enough.
    ///
    /// That is its budget, and towards the end of the input no more than its share, by speed, of what is
    /// left: so no device is still busy when all others are done.
    fn lease_limit(&self, device: DeviceIndex) -> Option<u64> {
        let own = &self.devices[&device];
        let budget = u64::from(own.budget.tokens());
        let live = || self.expected.iter().filter_map(|device| self.devices.get(device));
        let known: Vec<f64> = live().filter_map(|entry| entry.speed).collect();
        if !self.is_last || self.expected.len() < 2 || known.is_empty() {
            return Some(budget);
        }
        let mean = known.iter().sum::<f64>() / known.len() as f64;
        let speed = |entry: &DeviceEntry| entry.speed.unwrap_or(mean);
        let left = self.pending_tokens + live().map(|entry| entry.held_tokens).sum::<u64>();
        let share = left as f64 * speed(own) / live().map(speed).sum::<f64>();
        let more = (share as u64).saturating_sub(own.held_tokens);
        let least = u64::from((self.token_budget / TAIL_PART_MIN).max(1));
        if more < least && own.held_tokens > 0 { None } else { Some(budget.min(more.max(least))) }
    }

    /// Leaves in a batch what fits into `limit` tokens, and at least one sequence; the rest waits anew.
    fn cut(&mut self, batch: BatchId, limit: u64) {
        let entry = self.batches.get_mut(&batch).expect("the batch is in the ledger");
        if entry.tokens <= limit || entry.sequences.len() < 2 {
            return;
        }
        let counts = &self.segments[&entry.segment].token_counts;
        let (mut kept, mut rest, mut tokens) = (Vec::new(), Vec::new(), 0);
        for sequence in std::mem::take(&mut entry.sequences) {
            let more = u64::from(counts[sequence as usize]);
            if kept.is_empty() || tokens + more <= limit {
                tokens += more;
                kept.push(sequence);
            } else {
                rest.push(sequence);
            }
        }
        entry.sequences = kept;
        entry.tokens = tokens;
        if !rest.is_empty() {
            let rest = NewBatch {
                segment: entry.segment,
                sequences: rest,
                attempts: entry.attempts,
                turn: entry.turn,
                exact: entry.exact,
            };
            self.add(rest);
        }
    }

    /// Notes that a batch is computed and only its embeddings have still to arrive: if they never do, it is not
    /// to blame.
    pub fn computed(&mut self, worker: Worker, batch: BatchId) {
        if let Some(entry) = self.batches.get_mut(&batch).filter(|entry| entry.holder == Some(worker)) {
            entry.computed = true;
        }
    }

    /// Settles a batch whose embeddings arrived; the second value is what it means for its device.
    ///
    /// # Errors
    /// [`Stale`] if `worker` does not hold it: the embeddings must be dropped.
    pub fn complete(
        &mut self,
        worker: Worker,
        batch: BatchId,
        completion: Completion,
    ) -> Result<(Lease, Option<Verdict>), Stale> {
        let entry = self.take_from(worker, batch)?;
        self.answered.insert(worker);
        for &sequence in &entry.sequences {
            self.settle(entry.segment, sequence);
        }
        let device = self.device(worker.device);
        device.failures_in_a_row = 0;
        let mut verdict = None;
        if !entry.sequences.is_empty() {
            let now = entry.tokens as f64 / completion.compute_us.max(1) as f64;
            device.speed = Some(device.speed.map_or(now, |before| before + SPEED_WEIGHT * (now - before)));
            let tokens = u32::try_from(entry.tokens).unwrap_or(u32::MAX);
            match completion.memory {
                Some(share) if share >= PRESSURE_MAX && entry.sequences.len() > 1 => {
                    verdict = device.reduce(|budget| budget.pressed(tokens, share));
                }
                Some(_) | None => device.budget.completed(tokens),
            }
        }
        let BatchEntry { segment, sequences, exact, budget_tokens, is_last, .. } = entry;
        Ok((Lease { batch, segment, sequences, exact, budget_tokens, is_last }, verdict))
    }

    /// Decides about a batch that its worker could not complete.
    ///
    /// # Errors
    /// [`Stale`] if `worker` does not hold it.
    pub fn fail(
        &mut self,
        worker: Worker,
        batch: BatchId,
        error: &EngineError,
    ) -> Result<Vec<Verdict>, Stale> {
        let entry = self.take_from(worker, batch)?;
        if entry.sequences.is_empty() {
            return Ok(vec![Verdict::Unfit { reason: error.to_string() }]);
        }
        self.answered.insert(worker);
        let device = self.device(worker.device);
        device.failures_in_a_row += 1;
        let mut verdicts = Vec::new();
        if matches!(error, EngineError::OutOfMemory { .. }) && entry.sequences.len() > 1 {
            let tokens = u32::try_from(entry.tokens).unwrap_or(u32::MAX);
            verdicts.extend(device.reduce(|budget| budget.out_of_memory(tokens)));
        }
        verdicts.extend(self.judge(worker, batch, entry, error));
        Ok(verdicts)
    }

    /// Takes back everything a dead worker held. The batch it was running, the oldest lease that was not yet
    /// computed, is held against that batch; the others were done or only waiting.
    pub fn lose(&mut self, worker: Worker, reason: &str) -> Vec<Verdict> {
        let mut held: Vec<BatchId> =
            self.batches.iter().filter(|(_, e)| e.holder == Some(worker)).map(|(&batch, _)| batch).collect();
        held.sort_by_key(|batch| self.batches[batch].leased_at);
        self.answered.remove(&worker);
        self.device(worker.device).failures_in_a_row = 0;
        let error = EngineError::Device(reason.to_owned());
        let mut verdicts = Vec::new();
        let running = held.iter().copied().find(|batch| !self.batches[batch].computed);
        for batch in held {
            let entry = self.take_from(worker, batch).expect("the worker holds it");
            if Some(batch) == running {
                verdicts.extend(self.judge(worker, batch, entry, &error));
            } else {
                verdicts.extend(self.acquit(batch, entry));
            }
        }
        verdicts
    }

    /// Takes back a batch that its worker never got.
    ///
    /// # Errors
    /// [`Stale`] if `worker` does not hold it.
    pub fn hand_back(&mut self, worker: Worker, batch: BatchId) -> Result<Option<Verdict>, Stale> {
        let entry = self.take_from(worker, batch)?;
        Ok(self.acquit(batch, entry))
    }

    /// Batches on loan, longest held first: number, worker, segment.
    pub fn held(&self) -> Vec<(BatchId, Worker, SegmentId)> {
        let held = self.batches.iter().filter_map(|(&batch, entry)| Some((batch, entry.holder?, entry)));
        let mut held: Vec<_> = held.collect();
        held.sort_by_key(|(_, _, entry)| entry.leased_at);
        held.into_iter().map(|(batch, worker, entry)| (batch, worker, entry.segment)).collect()
    }

    /// Number of batches on loan.
    pub fn lent_len(&self) -> usize {
        self.batches.len() - self.pending.len()
    }

    /// Batches waiting for a device.
    pub fn pending_len(&self) -> usize {
        self.pending.len()
    }

    /// Open segments, oldest first, each with its sequences that are not yet settled.
    pub fn open_segments(&self) -> impl Iterator<Item = (SegmentId, Vec<u32>)> + '_ {
        self.segments.iter().map(|(&segment, entry)| {
            let unsettled = (0..entry.settled.len() as u32).filter(|&s| !entry.settled[s as usize]).collect();
            (segment, unsettled)
        })
    }

    /// Whether a device has said often enough that a sequence cannot be computed. Once may be the device's
    /// own fault, above all when it dies.
    fn has_spoken(&self, failed_on: &BTreeMap<DeviceIndex, u32>, device: DeviceIndex) -> bool {
        failed_on.get(&device).is_some_and(|&times| times >= SAYS_NEEDED.min(self.attempts_max))
    }

    /// Whether a second device must be heard, and there is one: a single bad device condemns nothing.
    fn is_undecided(&self, failed_on: &BTreeMap<DeviceIndex, u32>) -> bool {
        let spoken = failed_on.keys().filter(|device| self.has_spoken(failed_on, **device)).count();
        spoken < 2 && self.expected.iter().any(|device| !self.has_spoken(failed_on, *device))
    }

    fn judge(
        &mut self,
        worker: Worker,
        batch: BatchId,
        mut entry: BatchEntry,
        error: &EngineError,
    ) -> Vec<Verdict> {
        if entry.sequences.is_empty() {
            // A trial: nothing is lost.
            return Vec::new();
        }
        let alone = entry.sequences.len() == 1;
        entry.lethal |= alone && matches!(error, EngineError::Device(_));
        if alone {
            *entry.failed_on.entry(worker.device).or_insert(0) += 1;
        }
        match error {
            EngineError::OutOfMemory { .. } if !alone => return vec![self.halve(batch, entry, 0)],
            EngineError::NonFinite { sequences } if !(sequences.is_empty() || (alone && entry.exact)) => {
                return vec![self.set_apart(batch, entry, sequences)];
            }
            EngineError::OutOfMemory { .. }
            | EngineError::NonFinite { .. }
            | EngineError::Batch(_)
            | EngineError::Device(_)
            | EngineError::Model(_) => {}
        }
        entry.attempts += 1;
        let undecided = alone && self.is_undecided(&entry.failed_on);
        if entry.attempts < self.attempts_max || undecided {
            let attempts = entry.attempts;
            self.requeue(batch, entry, Turn::Suspect);
            vec![Verdict::Requeued { batch, attempts }]
        } else if alone {
            let (segment, sequence) = (entry.segment, entry.sequences[0]);
            self.settle(segment, sequence);
            vec![Verdict::Quarantined { segment, sequence, reason: error.to_string() }]
        } else {
            // The whole batch has had its tries: a half that fails is halved again at once.
            vec![self.halve(batch, entry, self.attempts_max - 1)]
        }
    }

    /// Lends a batch again that is not to blame; a trial is none.
    fn acquit(&mut self, batch: BatchId, entry: BatchEntry) -> Option<Verdict> {
        if entry.sequences.is_empty() {
            return None;
        }
        let attempts = entry.attempts;
        let turn = if attempts == 0 { Turn::Innocent } else { Turn::Suspect };
        self.requeue(batch, entry, turn);
        Some(Verdict::Requeued { batch, attempts })
    }

    fn halve(&mut self, batch: BatchId, entry: BatchEntry, attempts: u32) -> Verdict {
        let BatchEntry { segment, exact, sequences: mut left, .. } = entry;
        let right = left.split_off(left.len() / 2);
        let into = [left, right].map(|sequences| {
            // A sequence that stands alone gets all its tries: only then is it to blame.
            let attempts = if sequences.len() == 1 { 0 } else { attempts };
            self.add(NewBatch { segment, sequences, attempts, turn: Turn::Suspect, exact })
        });
        Verdict::Split { batch, into: into.to_vec() }
    }

    /// The finite sequences again as they were; the others together in fp32, and if that was fp32 already,
    /// each alone.
    fn set_apart(&mut self, batch: BatchId, entry: BatchEntry, bad: &[u32]) -> Verdict {
        let BatchEntry { segment, exact, attempts, sequences, .. } = entry;
        let is_bad = |position: usize| bad.contains(&(position as u32));
        let (bad, good): (Vec<usize>, Vec<usize>) = (0..sequences.len()).partition(|&p| is_bad(p));
        let named = |positions: Vec<usize>| positions.into_iter().map(|p| sequences[p]).collect::<Vec<_>>();
        let (bad, good) = (named(bad), named(good));
        let mut into = Vec::new();
        if !good.is_empty() {
            let turn = Turn::Innocent;
            into.push(self.add(NewBatch { segment, sequences: good, attempts, turn, exact }));
        }
        let bad: Vec<Vec<u32>> =
            if exact { bad.into_iter().map(|sequence| vec![sequence]).collect() } else { vec![bad] };
        for sequences in bad {
            let turn = Turn::Suspect;
            into.push(self.add(NewBatch { segment, sequences, attempts: 0, turn, exact: true }));
        }
        Verdict::Split { batch, into }
    }

    fn add(&mut self, new: NewBatch) -> BatchId {
        let NewBatch { segment, sequences, attempts, turn, exact } = new;
        let batch = BatchId(self.batches_made);
        self.batches_made += 1;
        let counts = &self.segments[&segment].token_counts;
        let tokens = sequences.iter().map(|&sequence| u64::from(counts[sequence as usize])).sum();
        let entry = BatchEntry {
            segment,
            sequences,
            tokens,
            attempts,
            exact,
            turn,
            lethal: false,
            failed_on: BTreeMap::new(),
            holder: None,
            computed: false,
            leased_at: 0,
            budget_tokens: 0,
            is_last: false,
        };
        self.requeue(batch, entry, turn);
        batch
    }

    /// A batch without sequences, never pending: it is lent at once.
    fn add_trial(&mut self, segment: SegmentId) -> BatchId {
        let batch = self.add(NewBatch::of(segment, Vec::new(), Turn::Fresh));
        self.pending.remove(&(segment, Turn::Fresh, batch));
        batch
    }

    fn device(&mut self, device: DeviceIndex) -> &mut DeviceEntry {
        let budget = TokenBudget::new(self.token_budget);
        self.devices.entry(device).or_insert(DeviceEntry {
            budget,
            failures_in_a_row: 0,
            speed: None,
            held_tokens: 0,
        })
    }

    /// Lets a batch wait for a device; one of a paused segment waits for another run.
    fn requeue(&mut self, batch: BatchId, mut entry: BatchEntry, turn: Turn) {
        if self.segments[&entry.segment].paused {
            return;
        }
        entry.turn = turn;
        entry.holder = None;
        entry.computed = false;
        self.pending_tokens += entry.tokens;
        self.pending.insert((entry.segment, turn, batch));
        self.batches.insert(batch, entry);
    }

    fn take_from(&mut self, worker: Worker, batch: BatchId) -> Result<BatchEntry, Stale> {
        match self.batches.get(&batch) {
            Some(entry) if entry.holder == Some(worker) => {
                let entry = self.batches.remove(&batch).expect("just found");
                self.device(worker.device).held_tokens -= entry.tokens;
                Ok(entry)
            }
            Some(_) | None => Err(Stale),
        }
    }

    fn settle(&mut self, segment: SegmentId, sequence: u32) {
        let entry = self.segments.get_mut(&segment).expect("a batch's segment is open");
        let settled = &mut entry.settled[sequence as usize];
        assert!(!*settled, "sequence {sequence} of segment {segment} was settled twice");
        *settled = true;
        entry.unsettled -= 1;
    }
}

/// A batch that is about to enter the ledger.
struct NewBatch {
    segment: SegmentId,
    sequences: Vec<u32>,
    attempts: u32,
    turn: Turn,
    exact: bool,
}

impl NewBatch {
    fn of(segment: SegmentId, sequences: Vec<u32>, turn: Turn) -> Self {
        Self { segment, sequences, attempts: 0, turn, exact: false }
    }
}

impl DeviceEntry {
    /// Changes the budget; says so if it shrank.
    fn reduce(&mut self, change: impl FnOnce(&mut TokenBudget)) -> Option<Verdict> {
        let before = self.budget.tokens();
        change(&mut self.budget);
        let tokens = self.budget.tokens();
        (tokens < before).then_some(Verdict::Reduced { tokens })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::Generation;

    const SEGMENT: SegmentId = SegmentId(0);
    const BUDGET: u32 = 1000;
    const DONE: Completion = Completion { compute_us: 100, memory: None };

    fn worker(device: usize, generation: u32) -> Worker {
        Worker { device: DeviceIndex(device), generation: Generation(generation) }
    }

    #[test]
    fn lost_device_requeues_its_leases_and_blames_only_the_oldest() {
        let mut ledger = Ledger::new(3, BUDGET);
        ledger.open_segment(SEGMENT, vec![10; 4], vec![vec![0, 1], vec![2], vec![3]]);
        let first = ledger.lease(worker(0, 0)).unwrap();
        let second = ledger.lease(worker(0, 0)).unwrap();
        let verdicts = ledger.lose(worker(0, 0), "killed by signal 9");
        assert_eq!(
            verdicts,
            [
                Verdict::Requeued { batch: first.batch, attempts: 1 },
                Verdict::Requeued { batch: second.batch, attempts: 0 }
            ]
        );
        // The innocent one goes first, the suspect last.
        let order: Vec<_> =
            std::iter::from_fn(|| ledger.lease(worker(1, 0))).map(|lease| lease.batch).collect();
        assert_eq!(order, [second.batch, BatchId(2), first.batch]);
    }

    #[test]
    fn what_fails_of_a_paused_segment_is_lent_no_more() {
        let mut ledger = Ledger::new(1, BUDGET);
        ledger.open_segment(
            SEGMENT,
            vec![10; 9],
            vec![vec![0, 1], vec![2, 3], vec![4, 5], vec![6], vec![7, 8]],
        );
        let [lost, waiting, split, apart]: [Lease; 4] =
            std::array::from_fn(|_| ledger.lease(worker(0, 0)).unwrap());
        ledger.pause_segment(SEGMENT);
        assert_eq!((ledger.pending_len(), ledger.lent_len()), (0, 4));
        ledger.fail(worker(0, 0), split.batch, &EngineError::Batch("bad".into())).unwrap();
        let verdicts = ledger.fail(worker(0, 0), apart.batch, &EngineError::NonFinite { sequences: vec![0] });
        assert!(matches!(verdicts.unwrap()[..], [Verdict::Split { .. }]));
        ledger.lose(worker(0, 0), "unplugged");
        assert_eq!((ledger.pending_len(), ledger.lent_len(), ledger.pending_tokens), (0, 0, 0));
        assert_eq!(ledger.lease(worker(0, 1)), None);
        for batch in [lost.batch, waiting.batch] {
            assert_eq!(ledger.complete(worker(0, 0), batch, DONE).unwrap_err(), Stale);
        }
        // It is all left for the next run.
        assert_eq!(ledger.open_segments().next().unwrap().1.len(), 9);
    }

    #[test]
    fn a_computed_batch_is_not_to_blame_for_the_end_of_its_worker() {
        let mut ledger = Ledger::new(1, BUDGET);
        ledger.open_segment(SEGMENT, vec![10; 3], vec![vec![0], vec![1], vec![2]]);
        let done = ledger.lease(worker(0, 0)).unwrap();
        let running = ledger.lease(worker(0, 0)).unwrap();
        ledger.computed(worker(0, 0), done.batch);
        // Nobody else's word counts.
        ledger.computed(worker(1, 0), running.batch);
        let verdicts = ledger.lose(worker(0, 0), "unplugged");
        assert_eq!(verdicts[0], Verdict::Requeued { batch: done.batch, attempts: 0 });
        assert!(matches!(verdicts[1], Verdict::Quarantined { sequence: 1, .. }), "{verdicts:?}");
    }

    #[test]
    fn a_batch_that_is_handed_back_is_not_to_blame() {
        let mut ledger = Ledger::new(1, BUDGET);
        ledger.open_segment(SEGMENT, vec![10; 2], vec![vec![0], vec![1]]);
        let one = ledger.lease(worker(0, 0)).unwrap();
        let handed_back = ledger.hand_back(worker(0, 0), one.batch);
        assert_eq!(handed_back, Ok(Some(Verdict::Requeued { batch: one.batch, attempts: 0 })));
        assert_eq!(ledger.hand_back(worker(0, 0), one.batch), Err(Stale));
        assert_eq!(ledger.lose(worker(0, 0), "unplugged"), []);
        assert_eq!(ledger.lease(worker(0, 1)).unwrap(), one);
        // A trial is not lent again.
        ledger.readmit_device(DeviceIndex(1));
        let trial = ledger.lease(worker(1, 0)).unwrap();
        assert_eq!(ledger.hand_back(worker(1, 0), trial.batch), Ok(None));
        assert_eq!((ledger.pending_len(), ledger.lent_len()), (1, 1));
    }

    #[test]
    fn a_device_with_less_memory_is_lent_smaller_batches() {
        let mut ledger = Ledger::new(3, BUDGET);
        ledger.open_segment(SEGMENT, vec![300; 6], vec![vec![0, 1, 2], vec![3, 4, 5]]);
        assert_eq!(ledger.limit_device(DeviceIndex(0), 700), Some(700));
        assert_eq!(ledger.limit_device(DeviceIndex(0), 700), None);
        assert_eq!(ledger.lease(worker(0, 0)).unwrap().sequences, [0, 1]);
        assert_eq!(ledger.lease(worker(1, 0)).unwrap().sequences, [3, 4, 5]);
        // More than the job's budget is never lent, and a limit is no shortage to be remembered.
        assert_eq!(ledger.limit_device(DeviceIndex(0), 5000), Some(BUDGET));
        assert_eq!(ledger.reduced_budgets().count(), 0);
    }

    #[test]
    fn an_old_generation_cannot_complete_a_batch() {
        let mut ledger = Ledger::new(3, BUDGET);
        ledger.open_segment(SEGMENT, vec![10; 2], vec![vec![0, 1]]);
        let lease = ledger.lease(worker(0, 0)).unwrap();
        ledger.lose(worker(0, 0), "hung");
        let again = ledger.lease(worker(0, 1)).unwrap();
        assert_eq!(again.batch, lease.batch);
        assert_eq!(ledger.complete(worker(0, 0), lease.batch, DONE).unwrap_err(), Stale);
        assert!(ledger.complete(worker(0, 1), lease.batch, DONE).is_ok());
        assert_eq!(ledger.complete(worker(0, 1), lease.batch, DONE).unwrap_err(), Stale);
        assert!(ledger.is_settled(SEGMENT));
    }

    #[test]
    fn a_device_that_only_dies_speaks_against_no_sequence() {
        let mut ledger = Ledger::new(3, BUDGET);
        ledger.open_segment(SEGMENT, vec![10; 3], vec![vec![0], vec![1], vec![2]]);
        let mut lent = Vec::new();
        for generation in 0..20 {
            lent.push(ledger.lease(worker(0, generation)).unwrap().sequences);
            let verdicts = ledger.lose(worker(0, generation), "lost");
            let quarantined = |verdict: &Verdict| matches!(verdict, Verdict::Quarantined { .. });
            assert!(!verdicts.iter().any(quarantined), "{verdicts:?}");
        }
        // Each once, then trials alone.
        assert_eq!(lent[..4], [vec![0], vec![1], vec![2], vec![]]);
        assert!(lent[3..].iter().all(Vec::is_empty));
        // A device that works gets one trial, then the sequences.
        let trial = ledger.lease(worker(1, 0)).unwrap();
        assert!(trial.sequences.is_empty());
        assert_eq!(ledger.lease(worker(1, 0)), None);
        ledger.complete(worker(1, 0), trial.batch, DONE).unwrap();
        for sequence in 0..3 {
            let lease = ledger.lease(worker(1, 0)).unwrap();
            assert_eq!(lease.sequences, [sequence]);
            ledger.complete(worker(1, 0), lease.batch, DONE).unwrap();
        }
        assert!(ledger.is_settled(SEGMENT));
        ledger.close_segment(SEGMENT);
    }

    #[test]
    fn non_finite_sequences_are_set_apart_at_once() {
        let mut ledger = Ledger::new(2, BUDGET);
        ledger.open_segment(SEGMENT, vec![10; 3], vec![vec![0, 1, 2]]);
        let lease = ledger.lease(worker(0, 0)).unwrap();
        let error = EngineError::NonFinite { sequences: vec![1] };
        let verdicts = ledger.fail(worker(0, 0), lease.batch, &error).unwrap();
        assert!(matches!(&verdicts[0], Verdict::Split { into, .. } if into.len() == 2), "{verdicts:?}");
        assert_eq!(ledger.lease(worker(0, 0)).unwrap().sequences, [0, 2]);
        assert_eq!(ledger.lease(worker(0, 0)).unwrap().sequences, [1]);
    }

    #[test]
    fn one_bad_device_condemns_no_sequence() {
        let mut ledger = Ledger::new(2, BUDGET);
        ledger.open_segment(SEGMENT, vec![10; 9], (0..9).map(|sequence| vec![sequence]).collect());
        let (bad, good) = (worker(0, 0), worker(1, 0));
        // The good device is still loading while the bad one fails all it gets.
        ledger.expect_device(DeviceIndex(0), None);
        ledger.expect_device(DeviceIndex(1), None);
        let mut tries = 0;
        'bad: while let Some(lease) = ledger.lease(bad) {
            let error = EngineError::OutOfMemory { tokens: 3 };
            for verdict in ledger.fail(bad, lease.batch, &error).unwrap() {
                match verdict {
                    Verdict::Requeued { .. } => tries += 1,
                    // A trial: the device is found out before it has tried everything.
                    Verdict::Unfit { .. } => {
                        ledger.lose(bad, "unfit");
                        ledger.retire_device(bad.device);
                        break 'bad;
                    }
                    verdict => panic!("{verdict:?}"),
                }
            }
        }
        assert_eq!(tries, DOUBT_AFTER);
        while let Some(lease) = ledger.lease(good) {
            ledger.complete(good, lease.batch, DONE).unwrap();
        }
        assert!(ledger.is_settled(SEGMENT));
    }

    /// One device that fails every batch holding a poison sequence, in the way that `poison` says.
    fn run_to_the_end(
        sequences: u32,
        poison: &BTreeSet<u32>,
        attempts_max: u32,
        crash: bool,
    ) -> (BTreeSet<u32>, usize) {
        let mut ledger = Ledger::new(attempts_max, BUDGET);
        let batches = (0..sequences).collect::<Vec<_>>().chunks(7).map(<[u32]>::to_vec).collect();
        ledger.open_segment(SEGMENT, vec![10; sequences as usize], batches);
        let mut quarantined = BTreeSet::new();
        let mut failures = 0;
        let mut generation = 0;
        while let Some(lease) = ledger.lease(worker(0, generation)) {
            let verdicts = if !lease.sequences.iter().any(|s| poison.contains(s)) {
                ledger.complete(worker(0, generation), lease.batch, DONE).unwrap();
                continue;
            } else if crash {
                generation += 1;
                ledger.lose(worker(0, generation - 1), "crash")
            } else {
                ledger.fail(worker(0, generation), lease.batch, &EngineError::Batch("bad".into())).unwrap()
            };
            failures += 1;
            for verdict in verdicts {
                if let Verdict::Quarantined { sequence, .. } = verdict {
                    quarantined.insert(sequence);
                }
            }
        }
        assert!(ledger.is_settled(SEGMENT) || sequences == 0);
        (quarantined, failures)
    }

    proptest! {
        #[test]
        fn exactly_the_poison_sequences_are_quarantined(
            sequences in 1u32..60,
            poison in prop::collection::btree_set(0u32..60, 0..5),
            attempts_max in 1u32..4,
            crash: bool,
        ) {
            let poison: BTreeSet<u32> = poison.into_iter().filter(|&s| s < sequences).collect();
            let (quarantined, failures) = run_to_the_end(sequences, &poison, attempts_max, crash);
            prop_assert_eq!(&quarantined, &poison);
            // Whole batch, then three halvings of at most 7 sequences, then alone.
            prop_assert!(failures <= poison.len() * (2 * attempts_max as usize + 3));
        }

        #[test]
        fn any_interleaving_settles_every_sequence_once(
            token_counts in prop::collection::vec(3u32..120, 1..60),
            actions in prop::collection::vec((0usize..3, 0u8..10), 0..400),
            last_at in 0usize..400,
        ) {
            const BUDGET: u32 = 100;
            let mut ledger = Ledger::new(3, BUDGET);
            for device in 0..3 {
                ledger.expect_device(DeviceIndex(device), None);
            }
            let plan = crate::packing::PackingPlan { token_budget: BUDGET, window_sequences: 20 };
            ledger.open_segment(SEGMENT, token_counts.clone(), crate::packing::pack(&token_counts, plan));
            let mut generations = [0u32; 3];
            let mut held: Vec<Vec<Lease>> = vec![Vec::new(); 3];
            let mut settled = vec![0u32; token_counts.len()];
            let apply = |verdicts: Vec<Verdict>, settled: &mut Vec<u32>| {
                let mut unfit = false;
                for verdict in verdicts {
                    match verdict {
                        Verdict::Quarantined { sequence, .. } => settled[sequence as usize] += 1,
                        Verdict::Unfit { .. } => unfit = true,
                        Verdict::Requeued { .. } | Verdict::Split { .. } | Verdict::Reduced { .. } => {}
                    }
                }
                unfit
            };
            let tokens = |lease: &Lease| lease.sequences.iter().map(|&s| token_counts[s as usize]).sum::<u32>();
            // Random faults, then every device is taken back and works to the end.
            let finish = (0..3).cycle().take(4000).map(|device| (device, u8::MAX));
            for (step, (device, action)) in actions.into_iter().chain(finish).enumerate() {
                let holder = worker(device, generations[device]);
                if step == last_at {
                    ledger.expect_no_more();
                }
                let mut lost = action == 5;
                match action {
                    0 | 1 => {
                        if let Some(lease) = ledger.lease(holder) {
                            prop_assert!(lease.sequences.len() < 2 || tokens(&lease) <= BUDGET);
                            held[device].push(lease);
                        }
                    }
                    2 | 6 if !held[device].is_empty() => {
                        let lease = held[device].remove(0);
                        let memory = (action == 6).then_some(0.95);
                        let completion = Completion { compute_us: 10, memory };
                        let (lease, _) = ledger.complete(holder, lease.batch, completion).unwrap();
                        for s in lease.sequences {
                            settled[s as usize] += 1;
                        }
                    }
                    3 | 4 | 7 if !held[device].is_empty() => {
                        let lease = held[device].remove(0);
                        let error = match action {
                            3 => EngineError::OutOfMemory { tokens: 1 },
                            4 => EngineError::Batch(String::new()),
                            _ => EngineError::NonFinite { sequences: vec![0] },
                        };
                        lost = apply(ledger.fail(holder, lease.batch, &error).unwrap(), &mut settled);
                    }
                    8 => ledger.retire_device(DeviceIndex(device)),
                    9 => ledger.readmit_device(DeviceIndex(device)),
                    u8::MAX => {
                        if step % 3 == device {
                            ledger.expect_device(DeviceIndex(device), None);
                        }
                        if held[device].is_empty() && let Some(lease) = ledger.lease(holder) {
                            held[device].push(lease);
                        }
                        for lease in std::mem::take(&mut held[device]) {
                            for s in ledger.complete(holder, lease.batch, DONE).unwrap().0.sequences {
                                settled[s as usize] += 1;
                            }
                        }
                    }
                    _ => {}
                }
                if lost {
                    apply(ledger.lose(holder, "gone"), &mut settled);
                    for lease in held[device].drain(..) {
                        prop_assert_eq!(ledger.complete(holder, lease.batch, DONE).unwrap_err(), Stale);
                    }
                    generations[device] += 1;
                }
                // The totals are kept, not counted anew each time: they must stay true.
                let pending = ledger.batches.values().filter(|entry| entry.holder.is_none());
                prop_assert_eq!(ledger.pending_tokens, pending.map(|entry| entry.tokens).sum::<u64>());
                for (index, entry) in &ledger.devices {
                    let own = ledger.batches.values().filter(|e| e.holder.is_some_and(|w| w.device == *index));
                    prop_assert_eq!(entry.held_tokens, own.map(|entry| entry.tokens).sum::<u64>());
                }
            }
            prop_assert!(ledger.is_settled(SEGMENT), "{ledger:?}");
            prop_assert!(settled.iter().all(|&times| times == 1), "{settled:?}");
            ledger.close_segment(SEGMENT);
        }
    }

    #[test]
    fn a_device_that_ran_out_of_memory_gets_smaller_batches_and_the_others_do_not() {
        let mut ledger = Ledger::new(3, BUDGET);
        let batches = (0..12).map(|batch| (batch * 10..batch * 10 + 10).collect()).collect();
        ledger.open_segment(SEGMENT, vec![100; 120], batches);
        let lease = ledger.lease(worker(0, 0)).unwrap();
        assert_eq!(lease.sequences.len(), 10);
        let error = EngineError::OutOfMemory { tokens: 1000 };
        let verdicts = ledger.fail(worker(0, 0), lease.batch, &error).unwrap();
        assert!(matches!(verdicts[0], Verdict::Reduced { tokens: 500 }), "{verdicts:?}");
        assert_eq!(ledger.lease(worker(0, 0)).unwrap().sequences.len(), 5);
        assert_eq!(ledger.lease(worker(1, 0)).unwrap().sequences.len(), 10);
        assert_eq!(ledger.reduced_budgets().collect::<Vec<_>>(), [(DeviceIndex(0), 500)]);
    }

    #[test]
    fn memory_pressure_shrinks_the_budget_before_anything_fails() {
        let mut ledger = Ledger::new(3, BUDGET);
        ledger.open_segment(SEGMENT, vec![100; 20], vec![(0..10).collect(), (10..20).collect()]);
        let lease = ledger.lease(worker(0, 0)).unwrap();
        let full = Completion { compute_us: 10, memory: Some(0.93) };
        let (_, verdict) = ledger.complete(worker(0, 0), lease.batch, full).unwrap();
        assert_eq!(verdict, Some(Verdict::Reduced { tokens: 800 }));
        assert_eq!(ledger.lease(worker(0, 0)).unwrap().sequences.len(), 8);
    }

    #[test]
    fn overflowing_sequences_run_again_in_fp32_and_then_alone() {
        let mut ledger = Ledger::new(1, BUDGET);
        ledger.open_segment(SEGMENT, vec![10; 4], vec![vec![0, 1, 2, 3]]);
        let one = worker(0, 0);
        let overflow = |sequences| EngineError::NonFinite { sequences };
        let first = ledger.lease(one).unwrap();
        assert!(!first.exact);
        ledger.fail(one, first.batch, &overflow(vec![1, 3])).unwrap();
        let good = ledger.lease(one).unwrap();
        assert_eq!((good.sequences.as_slice(), good.exact), ([0, 2].as_slice(), false));
        ledger.complete(one, good.batch, DONE).unwrap();
        let again = ledger.lease(one).unwrap();
        assert_eq!((again.sequences.as_slice(), again.exact), ([1, 3].as_slice(), true));
        ledger.fail(one, again.batch, &overflow(vec![0, 1])).unwrap();
        for sequence in [1, 3] {
            let alone = ledger.lease(one).unwrap();
            assert_eq!((alone.sequences.as_slice(), alone.exact), ([sequence].as_slice(), true));
            let verdicts = ledger.fail(one, alone.batch, &overflow(vec![0])).unwrap();
            assert!(matches!(verdicts[..], [Verdict::Quarantined { .. }]), "{verdicts:?}");
        }
        assert!(ledger.is_settled(SEGMENT));
    }

    #[test]
    fn a_readmitted_device_proves_itself_first() {
        let mut ledger = Ledger::new(3, BUDGET);
        ledger.open_segment(SEGMENT, vec![10; 2], vec![vec![0], vec![1]]);
        ledger.retire_device(DeviceIndex(0));
        ledger.readmit_device(DeviceIndex(0));
        let trial = ledger.lease(worker(0, 5)).unwrap();
        assert!(trial.sequences.is_empty());
        assert_eq!(ledger.lease(worker(0, 5)), None);
        ledger.complete(worker(0, 5), trial.batch, DONE).unwrap();
        assert_eq!(ledger.lease(worker(0, 5)).unwrap().sequences, [0]);
    }

    #[test]
    fn a_bad_device_and_a_single_crash_elsewhere_condemn_nothing() {
        let mut ledger = Ledger::new(3, BUDGET);
        for device in 0..2 {
            ledger.expect_device(DeviceIndex(device), None);
        }
        ledger.open_segment(SEGMENT, vec![10; 1], vec![vec![0]]);
        let (bad, good) = (worker(0, 0), worker(1, 0));
        let overflow = EngineError::NonFinite { sequences: vec![0] };
        // In fp32 from then on.
        let lease = ledger.lease(bad).unwrap();
        ledger.fail(bad, lease.batch, &overflow).unwrap();
        let lease = ledger.lease(good).unwrap();
        ledger.lose(good, "unplugged");
        assert_eq!(lease.sequences, [0]);
        // The bad device asks again and again; it is heard twice, then no more.
        for _ in 0..2 {
            let lease = ledger.lease(bad).unwrap();
            let verdicts = ledger.fail(bad, lease.batch, &overflow).unwrap();
            assert!(matches!(verdicts[..], [Verdict::Requeued { .. }]), "{verdicts:?}");
        }
        assert_eq!(ledger.lease(bad), None);
        let good = worker(1, 1);
        let trial = ledger.lease(good).unwrap();
        assert!(trial.sequences.is_empty(), "it died with this sequence before");
        ledger.complete(good, trial.batch, DONE).unwrap();
        let lease = ledger.lease(good).unwrap();
        ledger.complete(good, lease.batch, DONE).unwrap();
        assert!(ledger.is_settled(SEGMENT));
    }

    /// Works through 40 equal batches on devices of these speeds, tokens per microsecond; returns the time
    /// when the last is done and the time of a perfect division.
    fn simulate(speeds: &[f64]) -> (f64, f64) {
        const SEQUENCES: u32 = 4000;
        let mut ledger = Ledger::new(3, BUDGET);
        for device in 0..speeds.len() {
            ledger.expect_device(DeviceIndex(device), None);
        }
        let batches = (0..SEQUENCES).collect::<Vec<_>>().chunks(10).map(<[u32]>::to_vec).collect();
        ledger.open_segment(SEGMENT, vec![100; SEQUENCES as usize], batches);
        ledger.expect_no_more();
        let mut held: Vec<std::collections::VecDeque<Lease>> = vec![Default::default(); speeds.len()];
        // When each device is done with the batch it runs.
        let mut done_at = vec![f64::INFINITY; speeds.len()];
        let (mut now, mut began) = (0.0, vec![0.0; speeds.len()]);
        loop {
            for device in 0..speeds.len() {
                while held[device].len() < 2
                    && let Some(lease) = ledger.lease(worker(device, 0))
                {
                    held[device].push_back(lease);
                }
                if done_at[device].is_infinite()
                    && let Some(lease) = held[device].front()
                {
                    began[device] = now;
                    done_at[device] = now + lease.sequences.len() as f64 * 100.0 / speeds[device];
                }
            }
            let next = (0..speeds.len()).min_by(|&a, &b| done_at[a].total_cmp(&done_at[b])).unwrap();
            if done_at[next].is_infinite() {
                break;
            }
            now = done_at[next];
            done_at[next] = f64::INFINITY;
            let lease = held[next].pop_front().unwrap();
            let completion = Completion { compute_us: (now - began[next]) as u64, memory: None };
            ledger.complete(worker(next, 0), lease.batch, completion).unwrap();
        }
        assert!(ledger.is_settled(SEGMENT));
        (now, f64::from(SEQUENCES) * 100.0 / speeds.iter().sum::<f64>())
    }

    #[test]
    fn the_slowest_device_does_not_hold_up_the_end() {
        for speeds in [vec![4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 1.0], vec![1.0; 8], vec![10.0, 1.0], vec![1.0]]
        {
            let (time, ideal) = simulate(&speeds);
            assert!(time < ideal * 1.03, "{speeds:?}: {time} against {ideal}");
        }
    }
}
