//! Who holds which batch, what is done, and what becomes of a batch that failed.
//!
//! Pure: the packer actor owns it and carries out its verdicts. A dead actor's mailbox is discarded
//! silently, so leases live here and nowhere else. Invariant: each sequence of an open segment is in
//! exactly one of: a pending batch, a leased batch, done, quarantined.

use std::collections::{BTreeMap, BTreeSet};

use kernels::EngineError;

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
}

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
    attempts: u32,
    turn: Turn,
    /// It took a worker with it while its sequence stood alone.
    lethal: bool,
    /// Devices on which its sequence failed while it stood alone.
    failed_on: BTreeSet<DeviceIndex>,
    holder: Option<Worker>,
    /// Order of leasing: a worker runs its leases in this order.
    leased_at: u64,
}

#[derive(Debug)]
struct SegmentEntry {
    settled: Vec<bool>,
    unsettled: usize,
}

/// The ledger of one run.
#[derive(Debug)]
pub struct Ledger {
    attempts_max: u32,
    batches_made: u64,
    leases_made: u64,
    batches: BTreeMap<BatchId, BatchEntry>,
    pending: BTreeSet<(SegmentId, Turn, BatchId)>,
    segments: BTreeMap<SegmentId, SegmentEntry>,
    /// Workers that have answered a batch, one way or another; at most one per device.
    answered: BTreeSet<Worker>,
    /// Devices that are not retired; one that is loading or pausing will answer or be retired.
    devices: BTreeSet<DeviceIndex>,
}

impl Ledger {
    /// `attempts_max`: failures of one batch before it is halved, or its only sequence quarantined.
    pub fn new(attempts_max: u32) -> Self {
        Self {
            attempts_max: attempts_max.max(1),
            batches_made: 0,
            leases_made: 0,
            batches: BTreeMap::new(),
            pending: BTreeSet::new(),
            segments: BTreeMap::new(),
            answered: BTreeSet::new(),
            devices: BTreeSet::new(),
        }
    }

    /// Says which devices the run has: a sequence is condemned only by two of them, where there are two.
    pub fn expect_devices(&mut self, devices: impl IntoIterator<Item = DeviceIndex>) {
        self.devices = devices.into_iter().collect();
    }

    /// Says that a device was given up.
    pub fn retire_device(&mut self, device: DeviceIndex) {
        self.devices.remove(&device);
    }

    /// Takes on a segment of `sequences` sequences, packed into `batches`.
    pub fn open_segment(&mut self, segment: SegmentId, sequences: usize, batches: Vec<Vec<u32>>) {
        let entry = SegmentEntry { settled: vec![false; sequences], unsettled: sequences };
        let previous = self.segments.insert(segment, entry);
        assert!(previous.is_none(), "segment {segment} opened twice");
        for sequences in batches {
            self.add(segment, sequences, 0, Turn::Fresh);
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

    /// Drops a segment whose work is given up for this run; answers for its batches become stale.
    pub fn forget_segment(&mut self, segment: SegmentId) {
        self.pending.retain(|&(of, _, _)| of != segment);
        self.batches.retain(|_, entry| entry.segment != segment);
        self.segments.remove(&segment);
    }

    /// Lends the next batch, oldest segment first.
    ///
    /// A device that is dying fails whatever it gets. So a lone sequence that took a worker with it is lent
    /// only to a worker that has answered another batch; where nothing else is left, that batch is a trial.
    pub fn lease(&mut self, worker: Worker) -> Option<Lease> {
        let first = *self.pending.first()?;
        let alive = self.answered.contains(&worker);
        let suits = |batch: &BatchId| {
            let entry = &self.batches[batch];
            (alive || !entry.lethal)
                && !(entry.failed_on.contains(&worker.device) && self.another_could(&entry.failed_on))
        };
        let next = self.pending.iter().find(|(_, _, batch)| suits(batch)).copied();
        let (segment, batch) = match next {
            Some(key @ (segment, _, batch)) => {
                self.pending.remove(&key);
                (segment, batch)
            }
            // Another device is the judge of all that is left.
            None if alive => return None,
            // What it holds will prove it.
            None if self.batches.values().any(|entry| entry.holder == Some(worker)) => return None,
            None => (first.0, self.add_trial(first.0)),
        };
        let entry = self.batches.get_mut(&batch).expect("a pending batch is in the ledger");
        entry.holder = Some(worker);
        entry.leased_at = self.leases_made;
        self.leases_made += 1;
        Some(Lease { batch, segment, sequences: entry.sequences.clone() })
    }

    /// Settles a batch whose embeddings arrived.
    ///
    /// # Errors
    /// [`Stale`] if `worker` does not hold it: the embeddings must be dropped.
    pub fn complete(&mut self, worker: Worker, batch: BatchId) -> Result<Lease, Stale> {
        let entry = self.take_from(worker, batch)?;
        self.answered.insert(worker);
        for &sequence in &entry.sequences {
            self.settle(entry.segment, sequence);
        }
        Ok(Lease { batch, segment: entry.segment, sequences: entry.sequences })
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
        self.answered.insert(worker);
        Ok(self.judge(worker, batch, entry, error))
    }

    /// Takes back everything a dead worker held. The batch it was running, its oldest lease, is held
    /// against that batch; the others were only waiting.
    pub fn lose(&mut self, worker: Worker, reason: &str) -> Vec<Verdict> {
        let mut held: Vec<BatchId> =
            self.batches.iter().filter(|(_, e)| e.holder == Some(worker)).map(|(&batch, _)| batch).collect();
        held.sort_by_key(|batch| self.batches[batch].leased_at);
        self.answered.remove(&worker);
        let error = EngineError::Device(reason.to_owned());
        let mut verdicts = Vec::new();
        for (position, batch) in held.into_iter().enumerate() {
            let entry = self.take_from(worker, batch).expect("the worker holds it");
            if position == 0 {
                verdicts.extend(self.judge(worker, batch, entry, &error));
            } else if !entry.sequences.is_empty() {
                let attempts = entry.attempts;
                let turn = if attempts == 0 { Turn::Innocent } else { Turn::Suspect };
                self.requeue(batch, entry, turn);
                verdicts.push(Verdict::Requeued { batch, attempts });
            }
        }
        verdicts
    }

    /// Batches waiting for a device.
    pub fn pending_len(&self) -> usize {
        self.pending.len()
    }

    /// Batches on loan.
    pub fn leased_len(&self) -> usize {
        self.batches.values().filter(|entry| entry.holder.is_some()).count()
    }

    /// Open segments, oldest first, each with its sequences that are not yet settled.
    pub fn open_segments(&self) -> impl Iterator<Item = (SegmentId, Vec<u32>)> + '_ {
        self.segments.iter().map(|(&segment, entry)| {
            let unsettled = (0..entry.settled.len() as u32).filter(|&s| !entry.settled[s as usize]).collect();
            (segment, unsettled)
        })
    }

    /// Whether there is a device on which it has not failed yet.
    fn another_could(&self, failed_on: &BTreeSet<DeviceIndex>) -> bool {
        self.devices.iter().any(|device| !failed_on.contains(device))
    }

    fn judge(
        &mut self,
        worker: Worker,
        batch: BatchId,
        mut entry: BatchEntry,
        error: &EngineError,
    ) -> Vec<Verdict> {
        if entry.sequences.is_empty() {
            // A trial: whatever became of it, nothing is lost.
            return Vec::new();
        }
        let alone = entry.sequences.len() == 1;
        entry.lethal |= alone && matches!(error, EngineError::Device(_));
        if alone {
            entry.failed_on.insert(worker.device);
        }
        match error {
            EngineError::OutOfMemory { .. } if !alone => return vec![self.halve(batch, entry, 0)],
            EngineError::NonFinite { sequences } if !alone && !sequences.is_empty() => {
                return vec![self.set_apart(batch, entry, sequences)];
            }
            EngineError::OutOfMemory { .. }
            | EngineError::NonFinite { .. }
            | EngineError::Batch(_)
            | EngineError::Device(_)
            | EngineError::Model(_) => {}
        }
        entry.attempts += 1;
        // One bad device condemns nothing: a second one judges, where there is one.
        let undecided = alone && entry.failed_on.len() == 1 && self.another_could(&entry.failed_on);
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

    fn halve(&mut self, batch: BatchId, entry: BatchEntry, attempts: u32) -> Verdict {
        let mut left = entry.sequences;
        let right = left.split_off(left.len() / 2);
        let into = [left, right].map(|half| {
            // A sequence that stands alone gets all its tries: only then is it to blame.
            let attempts = if half.len() == 1 { 0 } else { attempts };
            self.add(entry.segment, half, attempts, Turn::Suspect)
        });
        Verdict::Split { batch, into: into.to_vec() }
    }

    fn set_apart(&mut self, batch: BatchId, entry: BatchEntry, bad: &[u32]) -> Verdict {
        let is_bad = |position: usize| bad.contains(&(position as u32));
        let mut into = Vec::new();
        let good: Vec<u32> =
            (0..entry.sequences.len()).filter(|&p| !is_bad(p)).map(|p| entry.sequences[p]).collect();
        if !good.is_empty() {
            into.push(self.add(entry.segment, good, entry.attempts, Turn::Innocent));
        }
        for position in (0..entry.sequences.len()).filter(|&p| is_bad(p)) {
            into.push(self.add(entry.segment, vec![entry.sequences[position]], 0, Turn::Suspect));
        }
        Verdict::Split { batch, into }
    }

    fn add(&mut self, segment: SegmentId, sequences: Vec<u32>, attempts: u32, turn: Turn) -> BatchId {
        let batch = BatchId(self.batches_made);
        self.batches_made += 1;
        let entry = BatchEntry {
            segment,
            sequences,
            attempts,
            turn,
            lethal: false,
            failed_on: BTreeSet::new(),
            holder: None,
            leased_at: 0,
        };
        self.requeue(batch, entry, turn);
        batch
    }

    /// A batch without sequences, never pending: it is lent at once.
    fn add_trial(&mut self, segment: SegmentId) -> BatchId {
        let batch = self.add(segment, Vec::new(), 0, Turn::Fresh);
        self.pending.remove(&(segment, Turn::Fresh, batch));
        batch
    }

    fn requeue(&mut self, batch: BatchId, mut entry: BatchEntry, turn: Turn) {
        entry.turn = turn;
        entry.holder = None;
        self.pending.insert((entry.segment, turn, batch));
        self.batches.insert(batch, entry);
    }

    fn take_from(&mut self, worker: Worker, batch: BatchId) -> Result<BatchEntry, Stale> {
        match self.batches.get(&batch) {
            Some(entry) if entry.holder == Some(worker) => {
                Ok(self.batches.remove(&batch).expect("just found"))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::Generation;

    const SEGMENT: SegmentId = SegmentId(0);

    fn worker(device: usize, generation: u32) -> Worker {
        Worker { device: DeviceIndex(device), generation: Generation(generation) }
    }

    #[test]
    fn lost_device_requeues_its_leases_and_blames_only_the_oldest() {
        let mut ledger = Ledger::new(3);
        ledger.open_segment(SEGMENT, 4, vec![vec![0, 1], vec![2], vec![3]]);
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
    fn an_old_generation_cannot_complete_a_batch() {
        let mut ledger = Ledger::new(3);
        ledger.open_segment(SEGMENT, 2, vec![vec![0, 1]]);
        let lease = ledger.lease(worker(0, 0)).unwrap();
        ledger.lose(worker(0, 0), "hung");
        let again = ledger.lease(worker(0, 1)).unwrap();
        assert_eq!(again.batch, lease.batch);
        assert_eq!(ledger.complete(worker(0, 0), lease.batch), Err(Stale));
        assert!(ledger.complete(worker(0, 1), lease.batch).is_ok());
        assert_eq!(ledger.complete(worker(0, 1), lease.batch), Err(Stale));
        assert!(ledger.is_settled(SEGMENT));
    }

    #[test]
    fn a_device_that_only_dies_speaks_against_no_sequence() {
        let mut ledger = Ledger::new(3);
        ledger.open_segment(SEGMENT, 3, vec![vec![0], vec![1], vec![2]]);
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
        ledger.complete(worker(1, 0), trial.batch).unwrap();
        for sequence in 0..3 {
            let lease = ledger.lease(worker(1, 0)).unwrap();
            assert_eq!(lease.sequences, [sequence]);
            ledger.complete(worker(1, 0), lease.batch).unwrap();
        }
        assert!(ledger.is_settled(SEGMENT));
        ledger.close_segment(SEGMENT);
    }

    #[test]
    fn non_finite_sequences_are_set_apart_at_once() {
        let mut ledger = Ledger::new(2);
        ledger.open_segment(SEGMENT, 3, vec![vec![0, 1, 2]]);
        let lease = ledger.lease(worker(0, 0)).unwrap();
        let error = EngineError::NonFinite { sequences: vec![1] };
        let verdicts = ledger.fail(worker(0, 0), lease.batch, &error).unwrap();
        assert!(matches!(&verdicts[0], Verdict::Split { into, .. } if into.len() == 2), "{verdicts:?}");
        assert_eq!(ledger.lease(worker(0, 0)).unwrap().sequences, [0, 2]);
        assert_eq!(ledger.lease(worker(0, 0)).unwrap().sequences, [1]);
    }

    #[test]
    fn one_bad_device_condemns_no_sequence() {
        let mut ledger = Ledger::new(2);
        ledger.open_segment(SEGMENT, 9, (0..9).map(|sequence| vec![sequence]).collect());
        let (bad, good) = (worker(0, 0), worker(1, 0));
        // The good device is still loading while the bad one fails all it gets.
        ledger.expect_devices([DeviceIndex(0), DeviceIndex(1)]);
        while let Some(lease) = ledger.lease(bad) {
            let error = EngineError::OutOfMemory { tokens: 3 };
            for verdict in ledger.fail(bad, lease.batch, &error).unwrap() {
                assert!(matches!(verdict, Verdict::Requeued { .. }), "{verdict:?}");
            }
        }
        while let Some(lease) = ledger.lease(good) {
            ledger.complete(good, lease.batch).unwrap();
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
        let mut ledger = Ledger::new(attempts_max);
        let batches = (0..sequences).collect::<Vec<_>>().chunks(7).map(<[u32]>::to_vec).collect();
        ledger.open_segment(SEGMENT, sequences as usize, batches);
        let mut quarantined = BTreeSet::new();
        let mut failures = 0;
        let mut generation = 0;
        while let Some(lease) = ledger.lease(worker(0, generation)) {
            let verdicts = if !lease.sequences.iter().any(|s| poison.contains(s)) {
                ledger.complete(worker(0, generation), lease.batch).unwrap();
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
            actions in prop::collection::vec((0usize..3, 0u8..6), 0..400),
        ) {
            let mut ledger = Ledger::new(3);
            ledger.open_segment(SEGMENT, 40, (0..40).collect::<Vec<u32>>().chunks(6).map(<[u32]>::to_vec).collect());
            let mut generations = [0u32; 3];
            let mut held: Vec<Vec<Lease>> = vec![Vec::new(); 3];
            let mut settled = vec![0u32; 40];
            let apply = |verdicts: Vec<Verdict>, settled: &mut Vec<u32>| for verdict in verdicts {
                if let Verdict::Quarantined { sequence, .. } = verdict { settled[sequence as usize] += 1; }
            };
            // Random faults, then every device works to the end.
            let finish = (0..3).cycle().take(2000).map(|device| (device, 9));
            for (device, action) in actions.into_iter().chain(finish) {
                let holder = worker(device, generations[device]);
                match action {
                    0 | 1 => if let Some(lease) = ledger.lease(holder) { held[device].push(lease) },
                    2 => if !held[device].is_empty() {
                        let lease = held[device].remove(0);
                        for s in ledger.complete(holder, lease.batch).unwrap().sequences { settled[s as usize] += 1; }
                    },
                    3 => if !held[device].is_empty() {
                        let lease = held[device].remove(0);
                        apply(ledger.fail(holder, lease.batch, &EngineError::OutOfMemory { tokens: 1 }).unwrap(), &mut settled);
                    },
                    4 => if !held[device].is_empty() {
                        let lease = held[device].remove(0);
                        apply(ledger.fail(holder, lease.batch, &EngineError::Batch(String::new())).unwrap(), &mut settled);
                    },
                    5 => {
                        apply(ledger.lose(holder, "gone"), &mut settled);
                        for lease in held[device].drain(..) { prop_assert_eq!(ledger.complete(holder, lease.batch), Err(Stale)); }
                        generations[device] += 1;
                    }
                    _ => {
                        if held[device].is_empty() && let Some(lease) = ledger.lease(holder) { held[device].push(lease) }
                        for lease in std::mem::take(&mut held[device]) {
                            for s in ledger.complete(holder, lease.batch).unwrap().sequences { settled[s as usize] += 1; }
                        }
                    }
                }
            }
            prop_assert!(ledger.is_settled(SEGMENT));
            prop_assert!(settled.iter().all(|&times| times == 1), "{settled:?}");
            ledger.close_segment(SEGMENT);
        }
    }
}
