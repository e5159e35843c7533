//! Embeddings of segments that are not complete yet, kept in `.state/journal-NNNNN` so that a session that
//! ends between two commits loses no more than the batches in flight.
//!
//! A part is written only when its segment is complete, which on slow devices takes hours. So the writer
//! actor hands what arrives to a [`Journal`] too, once a segment has been open for long or the run is being
//! stopped; a fast run never writes one. The reader reads it back when it comes to the segment again. The
//! file is appended to and never trusted further than its checksums reach:
//!
//! ```text
//! header   magic 8 bytes │ identity u128 │ content u128 │ hidden u32 │ sequences u32
//! frame    n u32 │ m u32 │ n sequence numbers u32 │ m values f32 │ xxh3 of the frame so far u64
//! ```
//!
//! Numbers are little-endian. `identity` is the job's, `content` the segment's sequences': a journal of
//! other ones is no use. It is not synced while the run goes on: `kill -9` loses nothing that was written,
//! a power cut at most the frames that had not reached the disk.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use xxhash_rust::xxh3::Xxh3;

use crate::bounds;
use crate::identity::SegmentId;
use crate::manifest::{Manifest, ResultFolder};
use crate::order::{AnswerTo, Refused};
use crate::part::{PartSchema, PendingFile};
use crate::segment::PreparedSegment;

const MAGIC: &[u8; 8] = b"VNOJRNL1";
const HEADER_BYTES: usize = 8 + 16 + 16 + 4 + 4;
/// Values of one frame when much is written at once: a torn frame is lost whole.
const FRAME_VALUES: usize = 1 << 20;

/// Whose journal a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    identity: u128,
    content: u128,
    hidden: u32,
    sequences: u32,
}

impl Header {
    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..24].copy_from_slice(&self.identity.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.content.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.hidden.to_le_bytes());
        bytes[44..].copy_from_slice(&self.sequences.to_le_bytes());
        bytes
    }
}

/// Where the journals of a run are, and whose they are.
#[derive(Clone, Debug)]
pub(crate) struct JournalPlace {
    folder: ResultFolder,
    identity: u128,
    schema: PartSchema,
}

/// What a journal holds of a segment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Recovered {
    /// Distinct sequences of the segment.
    pub(crate) sequences: Vec<u32>,
    /// Their rows, back to back.
    pub(crate) values: Vec<f32>,
    /// How far the file can be trusted; it is continued from there.
    pub(crate) trusted_bytes: u64,
}

impl JournalPlace {
    /// `identity`: every setting that changes values, as in `run.json`.
    pub(crate) fn new<'a>(
        folder: ResultFolder,
        identity: impl IntoIterator<Item = (&'a String, &'a String)>,
        schema: PartSchema,
    ) -> Self {
        let mut hash = Xxh3::new();
        for (key, value) in identity {
            hash.update(format!("{key}={value}\n").as_bytes());
        }
        Self { folder, identity: hash.digest128(), schema }
    }

    fn path(&self, segment: SegmentId) -> PathBuf {
        self.folder.journal_of(segment)
    }

    /// Deletes the journals of those segments that are committed.
    fn remove_committed(&self, segments: &[SegmentId]) {
        if segments.is_empty() {
            return;
        }
        // What cannot be read or removed now is at the next start.
        let Ok(Some(manifest)) = Manifest::read(&self.folder) else { return };
        for segment in segments.iter().filter(|segment| manifest.segments.contains_key(&segment.0)) {
            let _ = crate::files::remove(&self.path(*segment));
        }
    }

    fn header(&self, prepared: &PreparedSegment) -> Header {
        Header {
            identity: self.identity,
            content: prepared.digest(),
            hidden: self.schema.hidden as u32,
            sequences: prepared.sequence_count() as u32,
        }
    }

    /// Values that a sequence takes.
    fn width(&self, prepared: &PreparedSegment, sequence: u32) -> usize {
        let rows =
            if self.schema.per_residue { prepared.record_with(sequence).pooled_residues as usize } else { 1 };
        rows * self.schema.hidden
    }

    /// Reads what an earlier session left of a segment; nothing where there is no journal or another one's.
    pub(crate) fn recover(&self, prepared: &PreparedSegment) -> Recovered {
        let path = self.path(prepared.segment.id);
        match self.read(&path, prepared) {
            Ok(recovered) => recovered,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Recovered::default(),
            Err(error) => {
                tracing::warn!(journal = %path.display(), %error, "journal cannot be read: its batches are computed again");
                Recovered::default()
            }
        }
    }

    fn read(&self, path: &Path, prepared: &PreparedSegment) -> io::Result<Recovered> {
        let mut file = File::open(path)?;
        let mut left = file.metadata()?.len();
        let mut header = [0; HEADER_BYTES];
        let mut recovered = Recovered::default();
        if left < HEADER_BYTES as u64 {
            return Ok(recovered);
        }
        file.read_exact(&mut header)?;
        left -= HEADER_BYTES as u64;
        if header != self.header(prepared).to_bytes() {
            return Ok(recovered);
        }
        recovered.trusted_bytes = HEADER_BYTES as u64;
        let mut seen = vec![false; prepared.sequence_count()];
        while let Some(frame) = read_frame(&mut file, &mut left)? {
            let known = |sequence: &u32| seen.get(*sequence as usize).is_some_and(|seen| !seen);
            let fits = frame.sequences.iter().all(known);
            let wanted = || frame.sequences.iter().map(|&s| self.width(prepared, s)).sum::<usize>();
            if !fits || wanted() != frame.values.len() {
                break;
            }
            for &sequence in &frame.sequences {
                seen[sequence as usize] = true;
            }
            recovered.sequences.extend(frame.sequences);
            recovered.values.extend(frame.values);
            recovered.trusted_bytes += frame.bytes;
        }
        Ok(recovered)
    }
}

struct Frame {
    sequences: Vec<u32>,
    values: Vec<f32>,
    bytes: u64,
}

/// Reads a frame; `None` where the file ends, is torn, or was damaged. `left`: bytes after the position.
fn read_frame(file: &mut impl Read, left: &mut u64) -> io::Result<Option<Frame>> {
    let mut prefix = [0; 8];
    if *left < 16 {
        return Ok(None);
    }
    file.read_exact(&mut prefix)?;
    let [a, b, c, d, e, f, g, h] = prefix;
    let counts = [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])];
    let bytes = 16 + 4 * counts.map(u64::from).iter().sum::<u64>();
    if bytes > *left {
        return Ok(None);
    }
    *left -= bytes;
    let mut sequences = vec![0u32; counts[0] as usize];
    let mut values = vec![0f32; counts[1] as usize];
    file.read_exact(bytemuck::cast_slice_mut(&mut sequences))?;
    file.read_exact(bytemuck::cast_slice_mut(&mut values))?;
    let mut checksum = [0; 8];
    file.read_exact(&mut checksum)?;
    let is_whole = u64::from_le_bytes(checksum) == checksum_of(&prefix, &sequences, &values);
    Ok(is_whole.then_some(Frame { sequences, values, bytes }))
}

fn checksum_of(prefix: &[u8; 8], sequences: &[u32], values: &[f32]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(prefix);
    hash.update(bytemuck::cast_slice(sequences));
    hash.update(bytemuck::cast_slice(values));
    hash.digest()
}

fn write_frame(file: &mut impl Write, sequences: &[u32], values: &[f32]) -> io::Result<()> {
    let mut prefix = [0; 8];
    prefix[..4].copy_from_slice(&(sequences.len() as u32).to_le_bytes());
    prefix[4..].copy_from_slice(&(values.len() as u32).to_le_bytes());
    let checksum = checksum_of(&prefix, sequences, values);
    file.write_all(&prefix)?;
    file.write_all(bytemuck::cast_slice(sequences))?;
    file.write_all(bytemuck::cast_slice(values))?;
    file.write_all(&checksum.to_le_bytes())
}

/// What the thread is told.
enum Entry {
    /// A segment's journal begins, or goes on from this byte; 0: anew.
    Begin { segment: SegmentId, header: Header, trusted_bytes: u64, lost: Lost },
    /// Embeddings of these sequences, with the values that each takes.
    Append { segment: SegmentId, sequences: Vec<u32>, widths: Vec<usize>, values: Vec<f32> },
    /// The segment is committed.
    End(SegmentId),
    /// Write these anew, bring all to disk, and say so in these words.
    Checkpoint { lacking: Vec<(Unfinished, Lost)>, words: String, answer: AnswerTo },
}

/// Set by the thread when something of a journal could not be written: nothing more is, until it is written anew.
type Lost = Arc<AtomicBool>;

/// What the journal of a segment has, as far as the actor told the thread.
#[derive(Default)]
struct Kept {
    /// Whether the thread took its beginning.
    begun: bool,
    /// Sequences that the thread took, or that the file held before.
    sequences: usize,
    lost: Lost,
}

impl Kept {
    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed)
    }
}

/// The journals of the open segments, and the thread that writes them.
pub(crate) struct Journal {
    place: JournalPlace,
    /// Sent by the writer actor, received by the thread; bound [`bounds::JOURNAL_BATCHES`]. Closing it ends the thread.
    entries: Option<flume::Sender<Entry>>,
    thread: Option<JoinHandle<()>>,
    /// Of segments that are not committed, as far as they have one.
    kept: HashMap<SegmentId, Kept>,
    /// Committed segments whose end found no room in the queue.
    ended_later: Vec<SegmentId>,
}

impl Journal {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(crate) fn start(
        place: JournalPlace,
        on_panic: impl FnOnce(String) + Send + 'static,
    ) -> io::Result<Self> {
        let (entries, received) = flume::bounded(bounds::JOURNAL_BATCHES);
        let folder = place.clone();
        let thread = crate::thread::spawn_watched("journal", move || keep(&folder, &received), on_panic)?;
        Ok(Self {
            place,
            entries: Some(entries),
            thread: Some(thread),
            kept: HashMap::new(),
            ended_later: Vec::new(),
        })
    }

    /// Notes that a segment has a journal already, good up to there.
    pub(crate) fn continue_from(&mut self, prepared: &PreparedSegment, trusted_bytes: u64) {
        self.begin(prepared, trusted_bytes);
    }

    /// Notes how many sequences the journal of a segment held before.
    pub(crate) fn recovered(&mut self, segment: SegmentId, sequences: usize) {
        if let Some(kept) = self.kept.get_mut(&segment).filter(|kept| kept.begun) {
            kept.sequences += sequences;
        }
    }

    /// How many sequences of a segment are kept: none where something could not be written, since nobody knows
    /// what is behind a torn frame.
    pub(crate) fn kept(&self, segment: SegmentId) -> usize {
        self.kept.get(&segment).filter(|kept| !kept.is_lost()).map_or(0, |kept| kept.sequences)
    }

    /// Whether a segment's journal is begun.
    pub(crate) fn keeps(&self, segment: SegmentId) -> bool {
        self.kept.get(&segment).is_some_and(|kept| kept.begun)
    }

    fn begin(&mut self, prepared: &PreparedSegment, trusted_bytes: u64) -> bool {
        let segment = prepared.segment.id;
        let (header, lost) = (self.place.header(prepared), Lost::default());
        let begun = self.send(Entry::Begin { segment, header, trusted_bytes, lost: lost.clone() });
        self.kept.insert(segment, Kept { begun, sequences: 0, lost });
        begun
    }

    /// Keeps the embeddings of these sequences; begins the journal if need be.
    pub(crate) fn append(&mut self, prepared: &PreparedSegment, sequences: &[u32], values: &[f32]) {
        let segment = prepared.segment.id;
        if !self.keeps(segment) && !self.begin(prepared, 0) {
            return;
        }
        if self.kept.get(&segment).is_some_and(Kept::is_lost) {
            return;
        }
        let widths = sequences.iter().map(|&sequence| self.place.width(prepared, sequence)).collect();
        let (count, sequences, values) = (sequences.len(), sequences.to_vec(), values.to_vec());
        if self.send(Entry::Append { segment, sequences, widths, values }) {
            self.kept.entry(segment).or_default().sequences += count;
        }
    }

    /// The segment is committed: its journal goes.
    pub(crate) fn end(&mut self, segment: SegmentId) {
        if self.kept.remove(&segment).is_some() {
            self.ended_later.push(segment);
        }
        let ended = std::mem::take(&mut self.ended_later);
        self.ended_later = ended.into_iter().filter(|&segment| !self.send(Entry::End(segment))).collect();
    }

    /// Whether the next entry finds room: nobody else sends.
    pub(crate) fn has_room(&self) -> bool {
        self.entries.as_ref().is_some_and(|entries| !entries.is_full())
    }

    /// Writes these segments' journals anew and brings all journals to disk; the thread says so.
    pub(crate) fn checkpoint(&mut self, lacking: Vec<Unfinished>, words: String, answer: AnswerTo) {
        let lacking: Vec<_> = lacking.into_iter().map(|one| (one, Lost::default())).collect();
        let kept = |(one, lost): &(Unfinished, Lost)| {
            let kept = Kept { begun: true, sequences: one.sequences.len(), lost: lost.clone() };
            (one.prepared.segment.id, kept)
        };
        let kept: Vec<_> = lacking.iter().map(kept).collect();
        // Without room the answer is dropped, which says that nothing was done.
        if self.send(Entry::Checkpoint { lacking, words, answer }) {
            self.kept.extend(kept);
        }
    }

    /// Whether the thread took it.
    fn send(&self, entry: Entry) -> bool {
        self.entries.as_ref().is_some_and(|entries| entries.try_send(entry).is_ok())
    }

    /// Lets the thread write what it has, and syncs: what is kept then is known.
    pub(crate) async fn close(&mut self) {
        self.entries = None;
        crate::thread::join(self.thread.take()).await;
    }

    /// What follows on [`Self::close`]: the session is over and there is time for what found no room in the queue, or
    /// on the disk. The journals of `unfinished` segments are written anew, whole.
    ///
    /// A segment that is not `open` any more was perhaps committed too late for the actor to hear of it: the disk
    /// knows, and its journal goes.
    pub(crate) async fn stop(&mut self, unfinished: Vec<Unfinished>, open: &HashSet<SegmentId>) {
        let place = self.place.clone();
        let sealed: Vec<SegmentId> = self.kept.keys().copied().filter(|one| !open.contains(one)).collect();
        let write_all = move || {
            place.remove_committed(&sealed);
            for one in &unfinished {
                if let Err(error) = one.write(&place) {
                    let segment = one.prepared.segment.id;
                    tracing::warn!(%segment, %error, "journal is not whole: what it lacks is computed again");
                }
            }
        };
        let _ = tokio::task::spawn_blocking(write_all).await;
        for segment in std::mem::take(&mut self.ended_later) {
            // What cannot be removed now is at the next start, which knows that the segment is committed.
            let _ = crate::files::remove(&self.place.path(segment));
        }
    }
}

/// A segment that the end of a session leaves unfinished, and of which the journal lacks something.
pub(crate) struct Unfinished {
    pub(crate) prepared: Arc<PreparedSegment>,
    pub(crate) sequences: Vec<u32>,
    /// Their rows, back to back.
    pub(crate) values: Vec<f32>,
}

impl Unfinished {
    fn write(&self, place: &JournalPlace) -> io::Result<()> {
        let segment = self.prepared.segment.id;
        let widths: Vec<usize> = self.sequences.iter().map(|&s| place.width(&self.prepared, s)).collect();
        let pending = PendingFile::create(&place.path(segment))?;
        let mut file = &pending;
        file.write_all(&place.header(&self.prepared).to_bytes())?;
        append(&mut file, &self.sequences, &widths, &self.values)?;
        pending.commit()
    }
}

/// A journal as the thread has it.
struct Writing {
    /// `None` once something could not be written: after a torn frame nothing can be read, so the file is left as it is.
    file: Option<File>,
    lost: Lost,
}

impl Writing {
    fn lose(&mut self) {
        self.file = None;
        self.lost.store(true, Ordering::Relaxed);
    }
}

/// The thread's life.
fn keep(place: &JournalPlace, entries: &flume::Receiver<Entry>) {
    let mut journals: HashMap<SegmentId, Writing> = HashMap::new();
    while let Ok(entry) = entries.recv() {
        let (segment, done) = match entry {
            Entry::Begin { segment, header, trusted_bytes, lost } => {
                let opened = open(&place.path(segment), header, trusted_bytes);
                let journal = journals.entry(segment).insert_entry(Writing { file: None, lost }).into_mut();
                (segment, opened.map(|file| journal.file = Some(file)))
            }
            Entry::Append { segment, sequences, widths, values } => {
                let file = journals.get_mut(&segment).and_then(|journal| journal.file.as_mut());
                (segment, file.map_or(Ok(()), |file| append(file, &sequences, &widths, &values)))
            }
            Entry::End(segment) => {
                journals.remove(&segment);
                (segment, crate::files::remove(&place.path(segment)))
            }
            Entry::Checkpoint { lacking, words, answer } => {
                let done = checkpoint(place, &mut journals, lacking);
                let _ = answer.send(done.map(|()| words));
                continue;
            }
        };
        if let Err(error) = done {
            if let Some(journal) = journals.get_mut(&segment) {
                journal.lose();
            }
            tracing::warn!(%segment, %error, "journal is not kept: after a crash its batches are computed again");
        }
    }
    for (segment, mut journal) in journals {
        if let Some(Err(error)) = journal.file.as_ref().map(File::sync_data) {
            journal.lose();
            tracing::warn!(%segment, %error, "journal did not reach the disk");
        }
    }
}

/// Writes anew what journals lack, and brings all of them to disk; one that fails does not hold up the others.
fn checkpoint(
    place: &JournalPlace,
    journals: &mut HashMap<SegmentId, Writing>,
    lacking: Vec<(Unfinished, Lost)>,
) -> Result<(), Refused> {
    let mut failed: Option<(SegmentId, io::Error)> = None;
    for (one, lost) in lacking {
        let segment = one.prepared.segment.id;
        // The old file has another inode from now on.
        let mut journal = Writing { file: None, lost };
        let reopened = one.write(place).and_then(|()| {
            let path = place.path(segment);
            let length = std::fs::metadata(&path)?.len();
            open(&path, place.header(&one.prepared), length)
        });
        match reopened {
            Ok(file) => journal.file = Some(file),
            Err(error) => {
                journal.lose();
                failed.get_or_insert((segment, error));
            }
        }
        journals.insert(segment, journal);
    }
    for (&segment, journal) in journals.iter_mut() {
        let synced = match &journal.file {
            Some(file) => file.sync_data().and_then(|()| crate::files::sync_folder_of(&place.path(segment))),
            // The actor did not know of it when it asked.
            None => Err(io::Error::other("it failed a moment ago; ask again")),
        };
        if let Err(error) = synced {
            journal.lose();
            failed.get_or_insert((segment, error));
        }
    }
    match failed {
        None => Ok(()),
        Some((segment, error)) => {
            Err(Refused(format!("the journal of segment {segment} could not be written: {error}")))
        }
    }
}

fn open(path: &Path, header: Header, trusted_bytes: u64) -> io::Result<File> {
    let mut file = OpenOptions::new().create(true).truncate(trusted_bytes == 0).write(true).open(path)?;
    if trusted_bytes == 0 {
        file.write_all(&header.to_bytes())?;
    } else {
        file.set_len(trusted_bytes)?;
        file.seek(SeekFrom::Start(trusted_bytes))?;
    }
    Ok(file)
}

/// Appends one frame, or several if there is much.
fn append(file: &mut impl Write, sequences: &[u32], widths: &[usize], values: &[f32]) -> io::Result<()> {
    let (mut first, mut start, mut end) = (0, 0, 0);
    for (position, width) in widths.iter().enumerate() {
        end += width;
        if end - start >= FRAME_VALUES || position + 1 == widths.len() {
            write_frame(file, &sequences[first..=position], &values[start..end])?;
            (first, start) = (position + 1, end);
        }
    }
    Ok(())
}

/// A digest of a segment's sequences, in order.
pub(crate) fn digest_of<'a>(sequences: impl Iterator<Item = (&'a [u8], u32)>) -> u128 {
    let mut hash = Xxh3::new();
    for (residues, pooled) in sequences {
        hash.update(&(residues.len() as u64).to_le_bytes());
        hash.update(residues);
        hash.update(&pooled.to_le_bytes());
    }
    hash.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fasta::Record;
    use crate::segment::Segment;

    const HIDDEN: usize = 2;

    fn prepared(residues: &[&str]) -> PreparedSegment {
        let records = residues.iter().enumerate().map(|(ordinal, residues)| Record {
            ordinal: ordinal as u64,
            id: format!("r{ordinal}"),
            residues: (*residues).into(),
            pooled_residues: residues.len() as u32,
            residues_in_input: residues.len() as u32,
            file: 0,
            line: 1,
        });
        let segment =
            Segment { id: SegmentId(3), first_ordinal: 0, records: records.collect(), rejected: vec![] };
        PreparedSegment::new(segment)
    }

    fn place(folder: &Path, identity: &str) -> JournalPlace {
        std::fs::create_dir_all(folder.join(".state")).unwrap();
        let schema = PartSchema { hidden: HIDDEN, float: config::Float::F32, per_residue: false };
        let identity = [("model".to_owned(), identity.to_owned())];
        let pairs = identity.iter().map(|(key, value)| (key, value));
        JournalPlace::new(ResultFolder(folder.to_owned()), pairs, schema)
    }

    fn write(place: &JournalPlace, prepared: &PreparedSegment, from: u64, batches: &[(&[u32], &[f32])]) {
        let mut journal = Journal::start(place.clone(), |panic| panic!("{panic}")).unwrap();
        if from > 0 {
            journal.continue_from(prepared, from);
        }
        for (sequences, values) in batches {
            journal.append(prepared, sequences, values);
            // The queue is short: a test must not outrun the thread.
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(journal.close());
        runtime.block_on(journal.stop(Vec::new(), &HashSet::from([SegmentId(3)])));
    }

    #[test]
    fn what_was_kept_is_recovered_and_continued() {
        let folder = tempfile::tempdir().unwrap();
        let (place, prepared) = (place(folder.path(), "a"), prepared(&["MK", "AA", "GG"]));
        assert_eq!(place.recover(&prepared), Recovered::default());
        write(&place, &prepared, 0, &[(&[2], &[1.0, 2.0])]);
        let first = place.recover(&prepared);
        assert_eq!(
            (first.sequences.as_slice(), first.values.as_slice()),
            ([2].as_slice(), [1.0, 2.0].as_slice())
        );
        write(&place, &prepared, first.trusted_bytes, &[(&[0, 1], &[3.0, 4.0, 5.0, 6.0])]);
        let both = place.recover(&prepared);
        assert_eq!(both.sequences, [2, 0, 1]);
        assert_eq!(both.values, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }

    #[test]
    fn what_found_no_room_is_written_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let (place, prepared) = (place(folder.path(), "a"), Arc::new(prepared(&["MK", "AA", "GG"])));
        write(&place, &prepared, 0, &[(&[2], &[1.0, 2.0])]);
        let mut journal = Journal::start(place.clone(), |panic| panic!("{panic}")).unwrap();
        // From here on the queue takes nothing.
        journal.entries = Some(flume::bounded(0).0);
        journal.append(&prepared, &[0], &[3.0, 4.0]);
        assert_eq!(journal.kept(SegmentId(3)), 0);
        let (sequences, values) = (vec![0, 2], vec![3.0, 4.0, 1.0, 2.0]);
        let unfinished = Unfinished { prepared: prepared.clone(), sequences, values };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(journal.close());
        runtime.block_on(journal.stop(vec![unfinished], &HashSet::from([SegmentId(3)])));
        let recovered = place.recover(&prepared);
        assert_eq!((recovered.sequences, recovered.values), (vec![0, 2], vec![3.0, 4.0, 1.0, 2.0]));
    }

    #[test]
    fn what_could_not_be_written_is_not_said_to_be_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (place, prepared) = (place(folder.path(), "a"), prepared(&["MK", "AA", "GG"]));
        let mut journal = Journal::start(place.clone(), |panic| panic!("{panic}")).unwrap();
        // A folder in its place: it cannot be opened.
        std::fs::create_dir(place.path(SegmentId(3))).unwrap();
        journal.append(&prepared, &[2], &[1.0, 2.0]);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(journal.close());
        assert_eq!((journal.kept(SegmentId(3)), journal.keeps(SegmentId(3))), (0, true));
    }

    #[test]
    fn the_journal_of_a_segment_that_was_committed_unheard_goes_at_the_end() {
        use crate::manifest::tests::{empty, entry};
        let folder = tempfile::tempdir().unwrap();
        let (place, prepared) = (place(folder.path(), "a"), prepared(&["MK"]));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for is_committed in [false, true] {
            let mut journal = Journal::start(place.clone(), |panic| panic!("{panic}")).unwrap();
            journal.append(&prepared, &[0], &[1.0, 2.0]);
            let mut manifest = empty();
            if is_committed {
                manifest.commit(SegmentId(3), entry(3, 1, 0, 2));
            }
            manifest.write(&place.folder).unwrap();
            runtime.block_on(journal.close());
            runtime.block_on(journal.stop(Vec::new(), &HashSet::new()));
            assert_eq!(place.path(SegmentId(3)).exists(), !is_committed);
        }
    }

    #[test]
    fn another_job_or_other_sequences_recover_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (here, segment) = (place(folder.path(), "a"), prepared(&["MK", "AA"]));
        write(&here, &segment, 0, &[(&[0], &[1.0, 2.0])]);
        assert_eq!(here.recover(&segment).sequences, [0]);
        assert_eq!(place(folder.path(), "b").recover(&segment), Recovered::default());
        assert_eq!(here.recover(&prepared(&["MK", "AG"])), Recovered::default());
    }

    #[test]
    fn a_torn_or_damaged_journal_gives_the_frames_before() {
        let folder = tempfile::tempdir().unwrap();
        let (place, prepared) = (place(folder.path(), "a"), prepared(&["MK", "AA", "GG"]));
        write(&place, &prepared, 0, &[(&[0], &[1.0, 2.0]), (&[1], &[3.0, 4.0]), (&[2], &[5.0, 6.0])]);
        let path = place.path(SegmentId(3));
        let whole = std::fs::read(&path).unwrap();
        let frame = (whole.len() - HEADER_BYTES) / 3;
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let recovered = place.recover(&prepared);
            assert_eq!(recovered.sequences.len(), cut.saturating_sub(HEADER_BYTES) / frame, "cut at {cut}");
            assert!(recovered.trusted_bytes <= cut as u64);
        }
        for position in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[position] ^= 0x10;
            std::fs::write(&path, &damaged).unwrap();
            let recovered = place.recover(&prepared);
            assert!(recovered.sequences.len() < 3, "damaged at {position}");
            for (sequence, values) in recovered.sequences.iter().zip(recovered.values.chunks(HIDDEN)) {
                assert_eq!(values[0], *sequence as f32 * 2.0 + 1.0);
            }
        }
    }
}
