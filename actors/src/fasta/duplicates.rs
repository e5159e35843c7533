//! The search for repeated ids: exact, in bounded memory, for any number of records.
//!
//! The survey inserts every id. Only 64-bit hashes are kept: in memory while they are few, in bucket files
//! once they are many. Equal hashes are but a suspicion; [`resolve`] reads the input again and compares the
//! ids themselves. It decides nothing about what a repeated id means.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::{DuplicateId, InputError, Place};
use super::stream::{Item, RecordStream};

/// Hashes held in memory before they go to disk: 8 MiB, more than most inputs ever need.
const IN_MEMORY_MAX: usize = 1 << 20;

/// Bucket files: 100 million ids make 12 MiB each, sorted one at a time.
const BUCKETS: usize = 64;

/// Write buffer of one bucket, bytes; all of them take 4 MiB.
const BUCKET_BUFFER_BYTES: usize = 64 << 10;

/// Suspected hashes looked at in one pass over the input: bounds the ids that the pass holds.
const SUSPECTS_MAX: usize = 1 << 16;

/// Duplicates told in one error: enough to see the pattern.
const DUPLICATES_TOLD_MAX: usize = 10;

/// What turns an id into 64 bits; tests pass a weak one to force collisions.
pub(super) type IdHash = fn(&[u8]) -> u64;

/// The hashes of all ids of the input.
pub(super) struct IdHashes {
    hash: IdHash,
    in_memory_max: usize,
    memory: Vec<u64>,
    buckets: Option<Vec<Bucket>>,
    scratch: PathBuf,
}

/// Hashes that occur more than once.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Suspects {
    /// At most [`SUSPECTS_MAX`] of them, those before the asked position left out.
    pub(super) hashes: Vec<u64>,
    /// How many records have the hash of another record and are not the first with it, over all hashes.
    pub(super) repeats: u64,
}

impl IdHashes {
    /// Starts an empty search; `scratch` holds the bucket files, if any, and is made when needed.
    pub(super) fn new(scratch: &Path, hash: IdHash) -> IdHashes {
        IdHashes::with_memory(scratch, hash, IN_MEMORY_MAX)
    }

    fn with_memory(scratch: &Path, hash: IdHash, in_memory_max: usize) -> IdHashes {
        IdHashes { hash, in_memory_max, memory: Vec::new(), buckets: None, scratch: scratch.to_owned() }
    }

    /// Adds the id of one record.
    ///
    /// # Errors
    /// [`InputError::Scratch`].
    pub(super) fn insert(&mut self, id: &str) -> Result<(), InputError> {
        let hash = (self.hash)(id.as_bytes());
        self.insert_hash(hash).map_err(|source| InputError::Scratch { path: self.scratch.clone(), source })
    }

    fn insert_hash(&mut self, hash: u64) -> io::Result<()> {
        if let Some(buckets) = &mut self.buckets {
            return buckets[bucket_of(hash)].push(hash);
        }
        if self.memory.len() < self.in_memory_max {
            self.memory.push(hash);
            return Ok(());
        }
        fs::create_dir_all(&self.scratch)?;
        let mut buckets =
            (0..BUCKETS).map(|_| Bucket::create(&self.scratch)).collect::<io::Result<Vec<_>>>()?;
        for hash in std::mem::take(&mut self.memory).into_iter().chain([hash]) {
            buckets[bucket_of(hash)].push(hash)?;
        }
        self.buckets = Some(buckets);
        Ok(())
    }

    /// The hashes that occur more than once, the first `skip` of them left out.
    ///
    /// # Errors
    /// [`InputError::Scratch`].
    pub(super) fn suspects(&mut self, skip: u64) -> Result<Suspects, InputError> {
        let mut suspects = Suspects::default();
        let mut seen = 0;
        match &mut self.buckets {
            None => {
                self.memory.sort_unstable();
                collect_repeats(&self.memory, skip, &mut seen, &mut suspects);
            }
            Some(buckets) => {
                for bucket in buckets {
                    let mut hashes = bucket
                        .read()
                        .map_err(|source| InputError::Scratch { path: self.scratch.clone(), source })?;
                    hashes.sort_unstable();
                    collect_repeats(&hashes, skip, &mut seen, &mut suspects);
                }
            }
        }
        Ok(suspects)
    }

    /// Finds real duplicates among the suspects; `stream` opens the input anew for each pass.
    ///
    /// Returns the first of them in input order (of the first [`SUSPECTS_MAX`] suspects that hold any) and the
    /// number of records that repeat an id, which counts by hash. Empty: every id is unique.
    ///
    /// # Errors
    /// [`InputError::Scratch`] and what the stream returns.
    pub(super) fn duplicates(
        &mut self,
        stream: impl Fn() -> Result<RecordStream, InputError>,
    ) -> Result<(Vec<DuplicateId>, u64), InputError> {
        let mut examined = 0;
        loop {
            let Suspects { hashes, repeats } = self.suspects(examined)?;
            if hashes.is_empty() {
                return Ok((Vec::new(), 0));
            }
            let duplicates = resolve(stream()?, &hashes, self.hash)?;
            if !duplicates.is_empty() {
                return Ok((duplicates, repeats));
            }
            examined += hashes.len() as u64;
        }
    }
}

/// Appends the values that occur more than once in `sorted`; `seen` numbers them across calls.
fn collect_repeats(sorted: &[u64], skip: u64, seen: &mut u64, suspects: &mut Suspects) {
    for equal in sorted.chunk_by(|a, b| a == b) {
        if equal.len() < 2 {
            continue;
        }
        suspects.repeats += equal.len() as u64 - 1;
        if *seen >= skip && suspects.hashes.len() < SUSPECTS_MAX {
            suspects.hashes.push(equal[0]);
        }
        *seen += 1;
    }
}

/// Compares the ids behind suspected hashes; returns the first duplicates in input order.
fn resolve(stream: RecordStream, suspects: &[u64], hash: IdHash) -> Result<Vec<DuplicateId>, InputError> {
    let mut stream = stream;
    let mut first_of: HashMap<u64, Vec<(String, Place)>> =
        suspects.iter().map(|&hash| (hash, Vec::new())).collect();
    let mut duplicates = Vec::new();
    while let Some(item) = stream.next() {
        let Item::Record(record) = item? else { continue };
        let Some(known) = first_of.get_mut(&hash(record.id.as_bytes())) else { continue };
        let place = Place { file: stream.label(record.file).to_owned(), line: record.line };
        match known.iter().find(|(id, _)| *id == record.id) {
            None => known.push((record.id, place)),
            Some((_, first)) => {
                duplicates.push(DuplicateId { id: record.id, first: first.clone(), again: place });
                if duplicates.len() == DUPLICATES_TOLD_MAX {
                    break;
                }
            }
        }
    }
    Ok(duplicates)
}

/// The bucket of a hash: its top bits.
fn bucket_of(hash: u64) -> usize {
    (hash >> (u64::BITS - BUCKETS.ilog2())) as usize
}

/// One scratch file of hashes, little-endian.
struct Bucket {
    file: File,
    unwritten: Vec<u8>,
    hashes: u64,
}

/// Tells the bucket files of one process apart.
static NEXT_BUCKET: AtomicU64 = AtomicU64::new(0);

impl Bucket {
    /// Makes a file without a name: a killed run leaves nothing behind.
    fn create(scratch: &Path) -> io::Result<Bucket> {
        let number = NEXT_BUCKET.fetch_add(1, Ordering::Relaxed);
        let path = scratch.join(format!("id-hashes-{}-{number}.tmp", std::process::id()));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        fs::remove_file(&path)?;
        Ok(Bucket { file, unwritten: Vec::with_capacity(BUCKET_BUFFER_BYTES), hashes: 0 })
    }

    fn push(&mut self, hash: u64) -> io::Result<()> {
        if self.unwritten.len() + size_of::<u64>() > BUCKET_BUFFER_BYTES {
            self.flush()?;
        }
        self.unwritten.extend_from_slice(&hash.to_le_bytes());
        self.hashes += 1;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all(&self.unwritten)?;
        self.unwritten.clear();
        Ok(())
    }

    /// All its hashes, in insertion order.
    fn read(&mut self) -> io::Result<Vec<u64>> {
        self.flush()?;
        self.file.rewind()?;
        let mut hashes = Vec::with_capacity(self.hashes as usize);
        let mut block = vec![0; BUCKET_BUFFER_BYTES];
        let mut left = self.hashes as usize * size_of::<u64>();
        while left > 0 {
            let block = &mut block[..left.min(BUCKET_BUFFER_BYTES)];
            self.file.read_exact(block)?;
            left -= block.len();
            let (words, _) = block.as_chunks();
            hashes.extend(words.iter().map(|&word| u64::from_le_bytes(word)));
        }
        Ok(hashes)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn identity(id: &[u8]) -> u64 {
        std::str::from_utf8(id).unwrap().parse().unwrap()
    }

    /// Spreads small numbers over the buckets.
    fn spread(number: u64) -> u64 {
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn inserted(numbers: &[u64], in_memory_max: usize, scratch: &Path) -> IdHashes {
        let mut hashes = IdHashes::with_memory(scratch, identity, in_memory_max);
        for &number in numbers {
            hashes.insert(&spread(number).to_string()).unwrap();
        }
        hashes
    }

    #[test]
    fn bucket_files_have_no_name_left() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("ids");
        let numbers: Vec<u64> = (0..200_000).collect();
        let mut hashes = inserted(&numbers, 1000, &folder);
        assert!(hashes.buckets.is_some());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        assert_eq!(hashes.suspects(0).unwrap(), Suspects::default());
    }

    #[test]
    fn buckets_return_all_they_took() {
        let scratch = tempfile::tempdir().unwrap();
        let mut bucket = Bucket::create(scratch.path()).unwrap();
        let numbers: Vec<u64> = (0..100_000).map(spread).collect();
        for &number in &numbers {
            bucket.push(number).unwrap();
        }
        assert_eq!(bucket.read().unwrap(), numbers);
        assert_eq!(bucket.read().unwrap(), numbers);
    }

    #[test]
    fn more_suspects_than_one_pass_holds_come_in_rounds() {
        let scratch = tempfile::tempdir().unwrap();
        let distinct = SUSPECTS_MAX as u64 + 10;
        let numbers: Vec<u64> = (0..distinct).chain(0..distinct).collect();
        let mut hashes = inserted(&numbers, 1000, scratch.path());
        let first = hashes.suspects(0).unwrap();
        assert_eq!((first.hashes.len(), first.repeats), (SUSPECTS_MAX, distinct));
        let rest = hashes.suspects(SUSPECTS_MAX as u64).unwrap();
        assert_eq!((rest.hashes.len(), rest.repeats), (10, distinct));
        assert!(rest.hashes.iter().all(|hash| !first.hashes.contains(hash)));
        assert!(hashes.suspects(distinct).unwrap().hashes.is_empty());
    }

    #[test]
    fn a_scratch_folder_that_cannot_be_made_is_named() {
        let scratch = tempfile::NamedTempFile::new().unwrap();
        let mut hashes = IdHashes::with_memory(&scratch.path().join("x"), identity, 0);
        let error = hashes.insert("1").unwrap_err();
        assert!(matches!(error, InputError::Scratch { .. }), "{error:?}");
        assert!(!error.is_bad_input());
    }

    proptest! {
        #[test]
        fn suspects_on_disk_and_in_memory_match_a_plain_count(
            numbers in prop::collection::vec(0_u64..200, 0..300),
            in_memory_max in 0_usize..400,
        ) {
            let scratch = tempfile::tempdir().unwrap();
            let suspects = inserted(&numbers, in_memory_max, scratch.path()).suspects(0).unwrap();
            let mut count_of = BTreeMap::new();
            for &number in &numbers {
                *count_of.entry(spread(number)).or_insert(0_u64) += 1;
            }
            count_of.retain(|_, count| *count > 1);
            prop_assert_eq!(suspects.repeats, count_of.values().map(|count| count - 1).sum::<u64>());
            prop_assert_eq!(suspects.hashes, count_of.into_keys().collect::<Vec<_>>());
        }
    }
}
