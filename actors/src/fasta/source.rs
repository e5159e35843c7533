//! `SourceReader`: one input opened, decompressed and digested.
//!
//! The record reader pulls plain bytes from it; the stream asks it for the digest at the end. What a file is
//! follows from its first bytes, never from its name. It knows nothing of FASTA, and it never takes a
//! compressed file that ends early for a whole one.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::{InputError, TAR};

/// What tells, without reading it, whether a file is still the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    bytes: u64,
    modified_ns: i128,
    /// Device and inode.
    place: (u64, u64),
}

impl FileStamp {
    /// Stamps the file at `path`.
    ///
    /// # Errors
    /// If it is gone.
    pub fn of(path: &Path) -> io::Result<FileStamp> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(path)?;
        let modified_ns = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
        Ok(FileStamp { bytes: metadata.len(), modified_ns, place: (metadata.dev(), metadata.ino()) })
    }
}

/// One input: the file that is opened and the name it goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    path: PathBuf,
    label: String,
}

impl Source {
    /// A FASTA file, named by its path.
    pub fn file(path: impl Into<PathBuf>) -> Source {
        let path = path.into();
        let label = path.display().to_string();
        Source { path, label }
    }

    /// Standard input, kept at `path` by [`super::spool_stdin`].
    pub fn spooled_stdin(path: impl Into<PathBuf>) -> Source {
        Source { path: path.into(), label: "-".to_owned() }
    }

    /// The file that is opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name in messages and digests: the path, or `-` for standard input.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// What tells, without reading it, whether the file was replaced or written to.
    ///
    /// # Errors
    /// If the file is gone.
    pub fn stamp(&self) -> io::Result<FileStamp> {
        FileStamp::of(&self.path)
    }

    /// Checks that it is a file that can be read twice; returns its size in bytes.
    ///
    /// # Errors
    /// [`InputError::Open`], [`InputError::NotAFile`].
    pub(super) fn size_bytes(&self) -> Result<u64, InputError> {
        let metadata = std::fs::metadata(&self.path)
            .map_err(|source| InputError::Open { file: self.label.clone(), source })?;
        if !metadata.is_file() {
            return Err(InputError::NotAFile { file: self.label.clone() });
        }
        Ok(metadata.len())
    }

    /// Opens it for reading from the start.
    ///
    /// # Errors
    /// [`InputError::Open`]; [`InputError::UnsupportedCompression`] and the others of [`SourceReader::new`].
    pub(super) fn open(&self) -> Result<SourceReader, InputError> {
        let file =
            File::open(&self.path).map_err(|source| InputError::Open { file: self.label.clone(), source })?;
        SourceReader::new(self.label.clone(), Box::new(file))
    }
}

/// What one input was, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// The input as named in the job, `-` for standard input.
    pub path: String,
    /// Size as stored (compressed, if it is).
    pub bytes: u64,
    /// SHA-256 of the bytes as stored, lower-case hexadecimal.
    pub sha256: String,
}

/// One opened input.
pub(super) struct SourceReader {
    label: String,
    bgzip: bool,
    decoder: Decoder,
}

type Raw = BufReader<DigestingReader>;

enum Decoder {
    Plain(DigestingReader),
    Gzip(Box<GzipMembers>),
    Zstd(zstd::stream::read::Decoder<'static, Raw>),
}

/// Read size of compressed data, bytes: large enough that system calls do not show, small beside a batch.
const RAW_BUFFER_BYTES: usize = 128 << 10;

/// Largest zstd window, as a power of two: 128 MiB, what `zstd -d` takes without being told more. The window is
/// the memory that a file may ask for; beyond it everything streams, so nothing grows with what comes out.
const WINDOW_LOG_MAX: u32 = 27;

/// Bytes that tell a format: bgzip's mark, the longest, lies in bytes 12 and 13 of the gzip header.
const MAGIC_BYTES: usize = 14;

/// The empty block that ends every whole bgzip file (SAM specification, section 4.1.2), without the zeros that end
/// it: behind them there may be more.
const BGZIP_END: [u8; 19] =
    [0x1f, 0x8b, 0x08, 0x04, 0, 0, 0, 0, 0, 0xff, 0x06, 0, 0x42, 0x43, 0x02, 0, 0x1b, 0, 0x03];

impl SourceReader {
    /// Recognises the format of `raw` and prepares to decompress it. `label`: the name in messages.
    ///
    /// # Errors
    /// [`InputError::Read`], [`InputError::UnsupportedCompression`]; [`InputError::Truncated`] for a file
    /// without a byte whose name says that it is compressed.
    pub(super) fn new(label: String, mut raw: Box<dyn Read + Send>) -> Result<SourceReader, InputError> {
        let mut magic = Vec::with_capacity(MAGIC_BYTES);
        if let Err(source) = raw.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut magic) {
            return Err(InputError::Read { file: label, bytes: 0, source });
        }
        if let Some(format) = refused_format(&magic) {
            return Err(InputError::UnsupportedCompression { file: label, format });
        }
        if magic.is_empty()
            && let Some(format) = compression_by_name(&label)
        {
            return Err(InputError::Truncated { file: label, format, bytes: 0 });
        }
        let bgzip = is_bgzip(&magic);
        let format = recognise(&magic);
        let raw = DigestingReader::new(magic, raw);
        let decoder = match format {
            Format::Plain => Decoder::Plain(raw),
            Format::Gzip => {
                let raw = BufReader::with_capacity(RAW_BUFFER_BYTES, raw);
                Decoder::Gzip(Box::new(GzipMembers::new(raw)))
            }
            Format::Zstd => {
                let raw = BufReader::with_capacity(RAW_BUFFER_BYTES, raw);
                let decoder = zstd::stream::read::Decoder::with_buffer(raw).and_then(|mut decoder| {
                    decoder.window_log_max(WINDOW_LOG_MAX)?;
                    Ok(decoder)
                });
                match decoder {
                    Ok(decoder) => Decoder::Zstd(decoder),
                    Err(source) => return Err(InputError::Read { file: label, bytes: 0, source }),
                }
            }
        };
        Ok(SourceReader { label, bgzip, decoder })
    }

    /// The name in messages.
    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// Bytes of the file as stored, read so far.
    pub(super) fn bytes_read(&self) -> u64 {
        self.raw().bytes
    }

    /// Reads decompressed bytes; 0 only at the proven end of the input.
    ///
    /// # Errors
    /// [`InputError::Read`], [`InputError::Truncated`], [`InputError::Corrupt`].
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, InputError> {
        loop {
            let outcome = match &mut self.decoder {
                Decoder::Plain(raw) => raw.read(buffer),
                Decoder::Gzip(decoder) => decoder.read(buffer),
                Decoder::Zstd(decoder) => decoder.read(buffer),
            };
            match outcome {
                Ok(0) if !buffer.is_empty() => return self.check_end().map(|()| 0),
                Ok(read) => return Ok(read),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.explain(error)),
            }
        }
    }

    /// The digest of the whole file; call it after [`SourceReader::read`] returned 0.
    pub(super) fn digest(&self) -> FileDigest {
        let raw = self.raw();
        let sha256 = raw.sha256.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        FileDigest { path: self.label.clone(), bytes: raw.bytes, sha256 }
    }

    fn raw(&self) -> &DigestingReader {
        match &self.decoder {
            Decoder::Plain(raw) => raw,
            Decoder::Gzip(members) => members.raw().get_ref(),
            Decoder::Zstd(decoder) => decoder.get_ref().get_ref(),
        }
    }

    /// A bgzip file cut between two blocks is a whole gzip file; only its missing last block tells. That the zeros
    /// of that block are there, the decoder has seen.
    fn check_end(&self) -> Result<(), InputError> {
        let raw = self.raw();
        if self.bgzip && raw.tail.bytes != BGZIP_END {
            return Err(InputError::Truncated {
                file: self.label.clone(),
                format: "bgzip",
                bytes: raw.bytes,
            });
        }
        Ok(())
    }

    /// Tells a failing disk from a damaged file: both arrive as the decoder's error.
    fn explain(&self, source: io::Error) -> InputError {
        let raw = self.raw();
        let file = self.label.clone();
        let bytes = raw.bytes;
        let format = match &self.decoder {
            _ if raw.failed => return InputError::Read { file, bytes, source },
            Decoder::Plain(_) => return InputError::Read { file, bytes, source },
            Decoder::Gzip(members) => match members.followed {
                None => "gzip",
                Some(behind) => {
                    let (format, bytes) = ("gzip", bytes - members.raw().buffer().len() as u64);
                    return match behind {
                        Behind::Member => InputError::TrailingBytes { file, format, bytes },
                        Behind::Padding => InputError::BehindPadding { file, format, bytes },
                    };
                }
            },
            Decoder::Zstd(_) => "zstd",
        };
        if source.kind() == io::ErrorKind::UnexpectedEof {
            InputError::Truncated { file, format, bytes }
        } else {
            InputError::Corrupt { file, format, bytes, source }
        }
    }
}

/// The members of a gzip file, read as one; zeros that pad its end are no part of it, as for `gzip`.
struct GzipMembers {
    /// `None` once the last member has ended.
    member: Option<GzDecoder<Raw>>,
    ended: Option<Raw>,
    /// Behind what something stands that is not read.
    followed: Option<Behind>,
}

/// What something stands behind that is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behind {
    /// The last member; it is no other.
    Member,
    /// The zeros that end the file; it may be anything.
    Padding,
}

impl GzipMembers {
    fn new(raw: Raw) -> Self {
        Self { member: Some(GzDecoder::new(raw)), ended: None, followed: None }
    }

    fn raw(&self) -> &Raw {
        let raw = self.member.as_ref().map(GzDecoder::get_ref).or(self.ended.as_ref());
        raw.expect("the bytes are with the member or, behind the last one, here")
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(member) = &mut self.member {
                match member.read(buffer)? {
                    0 if !buffer.is_empty() => self.ended = self.member.take().map(GzDecoder::into_inner),
                    read => return Ok(read),
                }
            }
            let Some(raw) = &mut self.ended else { return Ok(0) };
            match raw.fill_buf()? {
                [] => return Ok(0),
                // Half a header is enough: what comes of it is a truncated or a damaged member.
                [0x1f, ..] => self.member = self.ended.take().map(GzDecoder::new),
                [0, ..] => skip_zeros(raw).inspect_err(|error| {
                    self.followed = (error.kind() == io::ErrorKind::InvalidData).then_some(Behind::Padding);
                })?,
                _ => {
                    self.followed = Some(Behind::Member);
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
        }
    }
}

/// Reads zeros to the end of a file.
///
/// # Errors
/// If there is anything else, which is then next; those of the file.
fn skip_zeros(raw: &mut Raw) -> io::Result<()> {
    loop {
        let buffered = raw.fill_buf()?;
        let zeros = buffered.iter().take_while(|&&byte| byte == 0).count();
        let is_all = zeros == buffered.len();
        raw.consume(zeros);
        match (is_all, zeros) {
            (true, 0) => return Ok(()),
            (true, _) => {}
            (false, _) => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// What the first bytes say, of what is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Plain,
    Gzip,
    Zstd,
}

fn recognise(magic: &[u8]) -> Format {
    match magic {
        [0x1f, 0x8b, ..] => Format::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Format::Zstd,
        // A skippable frame: some tools open a zstd file with one.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Format::Zstd,
        _ => Format::Plain,
    }
}

/// What packed data begins with these unpacked bytes: the input was packed twice, or is an archive.
pub(super) fn still_packed(unpacked: &[u8]) -> Option<&'static str> {
    // POSIX.1-1988, section 10.1.1: a mark in the header of the first file, behind its name and numbers.
    const TAR_MARK_AT: usize = 257;
    let is_tar = |(header, mark): (&[u8], &[u8])| header.contains(&0) && mark.starts_with(b"ustar");
    match recognise(unpacked) {
        Format::Gzip => Some("gzip"),
        Format::Zstd => Some("zstd"),
        // Residues may spell anything, but there is no zero among them.
        Format::Plain if unpacked.split_at_checked(TAR_MARK_AT).is_some_and(is_tar) => Some(TAR),
        Format::Plain => refused_format(unpacked),
    }
}

/// Formats that are known and refused.
fn refused_format(magic: &[u8]) -> Option<&'static str> {
    match magic {
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Some("bzip2"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some("xz"),
        [b'P', b'K', 3, 4, ..] => Some("zip"),
        [b'L', b'Z', b'I', b'P', ..] => Some("lzip"),
        [0x04, 0x22, 0x4d, 0x18, ..] => Some("lz4"),
        [b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c, ..] => Some("7z"),
        [0x1f, 0x9d, ..] => Some("compress (.Z)"),
        _ => None,
    }
}

/// Whether a gzip header carries bgzip's extra field (`BC`).
fn is_bgzip(magic: &[u8]) -> bool {
    matches!(magic, [0x1f, 0x8b, 0x08, flags, ..] if flags & 4 != 0) && magic.get(12..14) == Some(b"BC")
}

/// An empty file has no content to tell; here alone the name counts, since compressors never write nothing.
fn compression_by_name(label: &str) -> Option<&'static str> {
    match Path::new(label).extension()?.to_str()? {
        "gz" | "bgz" => Some("gzip"),
        "zst" => Some("zstd"),
        _ => None,
    }
}

/// The last bytes of a stream up to the last that is not zero.
#[derive(Default)]
struct Tail {
    bytes: [u8; BGZIP_END.len()],
    /// Zeros behind them, as far as they matter.
    zeros: usize,
}

impl Tail {
    fn follow(&mut self, new: &[u8]) {
        let length = self.bytes.len();
        let Some(last) = new.iter().rposition(|&byte| byte != 0) else {
            self.zeros = (self.zeros + new.len()).min(length);
            return;
        };
        let kept = &new[(last + 1).saturating_sub(length)..=last];
        self.shift((self.zeros + kept.len()).min(length));
        self.bytes[length - kept.len()..].copy_from_slice(kept);
        self.zeros = (new.len() - last - 1).min(length);
    }

    /// Makes room at the end, filled with zeros.
    fn shift(&mut self, count: usize) {
        self.bytes.rotate_left(count);
        let at = self.bytes.len() - count;
        self.bytes[at..].fill(0);
    }
}

/// The stored bytes on their way to the decoder: counted, digested, the last of them remembered.
struct DigestingReader {
    stored: io::Chain<Cursor<Vec<u8>>, Box<dyn Read + Send>>,
    sha256: Sha256,
    bytes: u64,
    tail: Tail,
    failed: bool,
}

impl DigestingReader {
    fn new(magic: Vec<u8>, rest: Box<dyn Read + Send>) -> DigestingReader {
        DigestingReader {
            stored: Cursor::new(magic).chain(rest),
            sha256: Sha256::new(),
            bytes: 0,
            tail: Tail::default(),
            failed: false,
        }
    }
}

impl Read for DigestingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.stored.read(buffer) {
            Ok(read) => {
                let new = &buffer[..read];
                self.sha256.update(new);
                self.bytes += read as u64;
                self.tail.follow(new);
                Ok(read)
            }
            Err(error) => {
                self.failed = error.kind() != io::ErrorKind::Interrupted;
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn text() -> Vec<u8> {
        (0..400).flat_map(|n| format!(">p{n} some protein\nMKVLAAGIVG{n}\n").into_bytes()).collect()
    }

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd_with_checksum(content: &[u8]) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    /// bgzip's layout: gzip members with a `BC` field that tells their size, and an empty one at the end.
    fn bgzip(content: &[u8], block_bytes: usize) -> (Vec<u8>, Vec<usize>) {
        let mut file = Vec::new();
        let mut ends = Vec::new();
        for block in content.chunks(block_bytes) {
            let mut header = flate2::GzBuilder::new().extra(b"BC\x02\0\0\0".to_vec());
            header = header.mtime(0);
            let mut encoder = header.write(Vec::new(), Compression::default());
            encoder.write_all(block).unwrap();
            let mut member = encoder.finish().unwrap();
            let size = (member.len() as u16 - 1).to_le_bytes();
            member[16..18].copy_from_slice(&size);
            file.extend(member);
            ends.push(file.len());
        }
        file.extend(BGZIP_END);
        file.extend([0; 9]);
        (file, ends)
    }

    /// Reads everything; `Err` as soon as the source says so.
    fn read_named(label: &str, stored: &[u8]) -> Result<(Vec<u8>, FileDigest), InputError> {
        let mut reader = SourceReader::new(label.to_owned(), Box::new(Cursor::new(stored.to_vec())))?;
        let mut content = Vec::new();
        let mut piece = vec![0; 1000];
        loop {
            match reader.read(&mut piece)? {
                0 => return Ok((content, reader.digest())),
                read => content.extend_from_slice(&piece[..read]),
            }
        }
    }

    fn read(stored: &[u8]) -> Result<(Vec<u8>, FileDigest), InputError> {
        read_named("in.fasta", stored)
    }

    #[test]
    fn the_digest_covers_the_stored_bytes() {
        let (content, digest) = read(b"abc").unwrap();
        assert_eq!(content, b"abc");
        // FIPS 180-2, appendix B.1.
        assert_eq!(digest.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!((digest.bytes, digest.path.as_str()), (3, "in.fasta"));
        let (_, empty) = read(b"").unwrap();
        assert_eq!(empty.sha256, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");

        for stored in [gzip(&text()), zstd_with_checksum(&text()), bgzip(&text(), 1000).0] {
            let (content, digest) = read(&stored).unwrap();
            assert_eq!(content, text());
            assert_eq!(digest.bytes, stored.len() as u64);
            let (_, of_stored) = read(&[&b" "[..], &stored].concat()).unwrap();
            assert_ne!(digest.sha256, of_stored.sha256);
            let expected: String = Sha256::digest(&stored).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(digest.sha256, expected);
        }
    }

    #[test]
    fn several_members_and_frames_read_as_one() {
        let (first, second) = (b">a\nMK\n".as_slice(), b">b\nLA\n".as_slice());
        let both = [first, second].concat();
        assert_eq!(read(&[gzip(first), gzip(second)].concat()).unwrap().0, both);
        assert_eq!(read(&[gzip(first), gzip(b""), gzip(second)].concat()).unwrap().0, both);
        let frames = [zstd_with_checksum(first), zstd_with_checksum(second)].concat();
        assert_eq!(read(&frames).unwrap().0, both);
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &frames].concat();
        assert_eq!(read(&skippable).unwrap().0, both);
        assert_eq!(read(&gzip(b"")).unwrap().0, b"");
        assert_eq!(read(&zstd_with_checksum(b"")).unwrap().0, b"");
        assert_eq!(read(&bgzip(b"", 1).0).unwrap().0, b"");
    }

    #[test]
    fn a_file_cut_anywhere_never_reads_as_a_whole_one() {
        let content = text();
        for (format, stored) in [
            ("gzip", gzip(&content)),
            ("zstd", zstd_with_checksum(&content)),
            ("zstd", zstd::stream::encode_all(content.as_slice(), 3).unwrap()),
        ] {
            let magic = if format == "gzip" { 2 } else { 4 };
            // Shorter than its magic, the file is plain text that starts with no `>`: the record reader's case.
            for length in magic..stored.len() {
                match read(&stored[..length]) {
                    Err(InputError::Truncated { file, format: named, bytes }) => {
                        assert_eq!((file.as_str(), named, bytes), ("in.fasta", format, length as u64));
                    }
                    other => panic!("{format} cut to {length} of {} bytes: {other:?}", stored.len()),
                }
            }
            assert_eq!(read(&stored).unwrap().0, content);
        }
    }

    #[test]
    fn a_second_member_cut_inside_is_noticed() {
        let content = text();
        for one in [gzip(&content), zstd_with_checksum(&content)] {
            let both = [one.clone(), one.clone()].concat();
            for length in one.len() + 1..both.len() {
                let error = read(&both[..length]).unwrap_err();
                assert!(error.is_bad_input(), "cut to {length}: {error:?}");
                assert!(error.hint().is_some());
            }
        }
    }

    #[test]
    fn bgzip_cut_between_blocks_is_noticed() {
        let (stored, ends) = bgzip(&text(), 1000);
        assert!(ends.len() > 5);
        for &end in &ends {
            let error = read(&stored[..end]).unwrap_err();
            assert!(matches!(error, InputError::Truncated { format: "bgzip", .. }), "{error:?}");
        }
        for length in 2..stored.len() {
            assert!(read(&stored[..length]).is_err(), "cut to {length}");
            // Nor do zeros in place of what is missing make it whole.
            let missing = stored.len() - length;
            if stored[length..].iter().any(|&byte| byte != 0) {
                assert!(
                    read(&[&stored[..length], &vec![0; missing]].concat()).is_err(),
                    "zeros from {length}"
                );
            }
        }
        // Two whole bgzip files, one behind the other, end as one does.
        assert_eq!(read(&[stored.clone(), stored].concat()).unwrap().0, [text(), text()].concat());
    }

    #[test]
    fn the_tail_of_a_stream_leaves_out_its_zeros_however_it_is_cut() {
        let pieces: [&[u8]; 4] = [&[1; 30], &[0, 0, 2, 0], &[0; 40], &[3, 0, 0]];
        let whole = pieces.concat();
        for end in 0..=whole.len() {
            let last = whole[..end].iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
            let padded = [&[0; BGZIP_END.len()], &whole[..last]].concat();
            for size in [1, 2, 7, 19, 20, 100] {
                let mut tail = Tail::default();
                whole[..end].chunks(size).for_each(|piece| tail.follow(piece));
                assert_eq!(tail.bytes, padded[last..], "{end} bytes by {size}");
            }
        }
    }

    #[test]
    fn trailing_bytes_and_flipped_bits_are_errors() {
        let content = text();
        for stored in [gzip(&content), zstd_with_checksum(&content), bgzip(&content, 1000).0] {
            let padded = [&[0, 0], &*gzip(b"MK")].concat();
            for tail in [&b"x"[..], b"garbage behind the end", &[0; 4], &[0; 512], &[0, 0, 7], &padded] {
                let gzip = stored[..2] == [0x1f, 0x8b];
                let outcome = read(&[&stored, tail].concat());
                if gzip && tail.iter().all(|&byte| byte == 0) {
                    // Padded to whole blocks, as on a tape.
                    assert_eq!(outcome.unwrap().0, content);
                    continue;
                }
                let error = outcome.unwrap_err();
                assert!(error.is_bad_input(), "{error:?}");
                assert!(error.to_string().contains("in.fasta"), "{error}");
                if gzip {
                    assert!(error.hint().is_some());
                    match error {
                        InputError::TrailingBytes { bytes, .. } if tail[0] != 0 => {
                            assert_eq!(bytes, stored.len() as u64);
                        }
                        // As for `gzip`, be it another member that follows them.
                        InputError::BehindPadding { bytes, .. } if tail[0] == 0 => {
                            assert_eq!(bytes, stored.len() as u64 + 2);
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
            let mut flipped = stored.clone();
            let middle = stored.len() / 2;
            flipped[middle] ^= 0x10;
            assert!(read(&flipped).unwrap_err().is_bad_input());
        }
    }

    #[test]
    fn other_compressions_are_refused_by_name() {
        let cases: [(&[u8], &str); 7] = [
            (b"BZh91AY&SY", "bzip2"),
            (b"\xfd7zXZ\0\0", "xz"),
            (b"PK\x03\x04\x14", "zip"),
            (b"LZIP\x01", "lzip"),
            (b"\x04\x22\x4d\x18", "lz4"),
            (b"7z\xbc\xaf\x27\x1c", "7z"),
            (b"\x1f\x9d\x90", "compress (.Z)"),
        ];
        for (magic, name) in cases {
            match read(magic).unwrap_err() {
                error @ InputError::UnsupportedCompression { format, .. } => {
                    assert_eq!(format, name);
                    assert!(error.hint().unwrap().contains(name));
                }
                other => panic!("{other:?}"),
            }
        }
        // Text is text, whatever it starts with.
        assert_eq!(read(b"BZh").unwrap().0, b"BZh");
    }

    #[test]
    fn an_empty_file_named_as_compressed_is_truncated() {
        for name in ["x/in.fasta.gz", "in.bgz", "in.faa.zst"] {
            let error = read_named(name, b"").unwrap_err();
            assert!(matches!(error, InputError::Truncated { bytes: 0, .. }), "{error:?}");
        }
        assert!(read_named("in.fasta", b"").is_ok());
        assert!(read_named("-", b"").is_ok());
    }

    #[test]
    fn a_window_beyond_the_limit_is_explained() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(30).unwrap();
        encoder.write_all(&text()).unwrap();
        let error = read(&encoder.finish().unwrap()).unwrap_err();
        assert!(matches!(error, InputError::Corrupt { .. }), "{error:?}");
        assert!(error.hint().unwrap().contains("large window"), "{:?} {error:?}", error.hint());
    }

    #[test]
    fn a_failing_disk_is_no_bad_input() {
        struct FailsAfter(Cursor<Vec<u8>>);
        impl Read for FailsAfter {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                match self.0.read(buffer)? {
                    0 => Err(io::Error::other("the disk is gone")),
                    read => Ok(read),
                }
            }
        }
        for stored in [text(), gzip(&text()), zstd_with_checksum(&text())] {
            let raw = Box::new(FailsAfter(Cursor::new(stored[..stored.len() / 2].to_vec())));
            let mut reader = SourceReader::new("in.fasta".to_owned(), raw).unwrap();
            let mut piece = vec![0; 1000];
            let error = loop {
                match reader.read(&mut piece) {
                    Ok(0) => panic!("ended"),
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, InputError::Read { .. }), "{error:?}");
            assert!(!error.is_bad_input());
        }
    }

    #[test]
    fn only_files_that_can_be_read_twice_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let error = Source::file(folder.path()).size_bytes().unwrap_err();
        assert!(matches!(error, InputError::NotAFile { .. }), "{error:?}");
        assert!(error.hint().unwrap().contains("`-`"));
        let error = Source::file(folder.path().join("missing.fasta")).size_bytes().unwrap_err();
        assert!(matches!(error, InputError::Open { .. }), "{error:?}");
        assert!(error.to_string().contains("missing.fasta"));
    }
}
