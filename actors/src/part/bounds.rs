//! What a part may ask of its reader, checked before the decoder sees it.
//!
//! `parquet` believes a page: before it unpacks one it reserves what the page says, up to 2 GiB (`decode_page` in
//! 60.1), and a few bytes of levels can stand for a billion values. A part has one form, that of the writer beside
//! this file; whatever promises more than a part can hold is damaged. It decodes no value.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use parquet::basic::Compression;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};

use super::PartSchema;
use super::writer::{ROW_BYTES_MAX, ROW_GROUP_BYTES_MAX, ROW_GROUP_ROWS_MAX};

/// Bytes of a footer. A row group takes about a kilobyte of it, so this describes a terabyte of embeddings; parsed
/// it takes some ten times as much.
const FOOTER_BYTES_MAX: u64 = 16 << 20;
/// Row groups of a part: at most one for each row of the longest segment, 1 Mi, when rows are huge; far fewer
/// fit into a footer.
const ROW_GROUPS_MAX: usize = 65_536;
/// Bytes of a page header, with the least and the greatest id of the page.
const PAGE_HEADER_BYTES_MAX: usize = 16 << 10;
/// Bytes of a page of floats, unpacked: one row of the largest size, and its levels.
const FLOAT_PAGE_BYTES_MAX: u64 = (ROW_BYTES_MAX + ROW_BYTES_MAX / 4) as u64;
/// Bytes of any other page, unpacked: the ids of a row group take half of it at most.
const OTHER_PAGE_BYTES_MAX: u64 = 64 << 20;
/// The most that four bytes of zstd unpack to: a block of one repeated byte (RFC 8878, 3.1.1.2).
const ZSTD_BLOCK_BYTES_MAX: u64 = 128 << 10;
/// Structures within structures in a page header; the format has two.
const NESTING_MAX: u32 = 8;

const DATA_PAGE: i64 = 0;
const PLAIN: i64 = 0;
const DELTA_BINARY_PACKED: i64 = 5;
const BYTE_STREAM_SPLIT: i64 = 9;

/// Columns of a part; the last one holds the floats.
const COLUMNS: usize = 4;
const FLOATS: usize = 3;

/// A length or count that is out of bounds, in words; or the file cannot be read.
pub(super) enum Excess {
    Found(String),
    Unreadable(io::Error),
}

impl From<String> for Excess {
    fn from(found: String) -> Self {
        Self::Found(found)
    }
}

/// Checks the length of the footer, before it is read.
pub(super) fn check_footer_length(file: &File) -> Result<(), Excess> {
    let file_bytes = file.metadata().map_err(Excess::Unreadable)?.len();
    // What is shorter or has no mark is told better by the decoder.
    let Some(tail_at) = file_bytes.checked_sub(8) else { return Ok(()) };
    let mut length = [0; 4];
    file.read_exact_at(&mut length, tail_at).map_err(Excess::Unreadable)?;
    let footer_bytes = u64::from(u32::from_le_bytes(length));
    if (FOOTER_BYTES_MAX + 1..=tail_at).contains(&footer_bytes) {
        return Err(format!("its footer has {footer_bytes} bytes, more than {FOOTER_BYTES_MAX}").into());
    }
    Ok(())
}

/// Checks the counts of the footer against each other and against the size of the file.
pub(super) fn check_footer(
    file: &File,
    metadata: &ParquetMetaData,
    schema: &PartSchema,
) -> Result<(), Excess> {
    let file_bytes = file.metadata().map_err(Excess::Unreadable)?.len();
    let groups = metadata.row_groups();
    if groups.len() > ROW_GROUPS_MAX {
        return Err(format!("it has {} row groups, more than {ROW_GROUPS_MAX}", groups.len()).into());
    }
    let mut rows = 0i64;
    for (number, group) in groups.iter().enumerate() {
        rows = rows.saturating_add(group.num_rows());
        check_group(group, schema, file_bytes).map_err(|reason| format!("row group {number}: {reason}"))?;
    }
    let promised = metadata.file_metadata().num_rows();
    if rows != promised {
        return Err(format!("its row groups hold {rows} rows of {promised}").into());
    }
    Ok(())
}

fn check_group(group: &RowGroupMetaData, schema: &PartSchema, file_bytes: u64) -> Result<(), String> {
    let rows = group.num_rows();
    if !(0..=ROW_GROUP_ROWS_MAX as i64).contains(&rows) {
        return Err(format!("{rows} rows, more than {ROW_GROUP_ROWS_MAX}"));
    }
    if group.num_columns() != COLUMNS {
        return Err(format!("{} columns, not {COLUMNS}", group.num_columns()));
    }
    for (number, chunk) in group.columns().iter().enumerate() {
        let name = chunk.column_descr().name();
        let values = u64::try_from(chunk.num_values()).unwrap_or(u64::MAX);
        let values_max = if number == FLOATS { values_max(rows as u64, schema) } else { rows as u64 };
        if values > values_max {
            return Err(format!("column `{name}` has {values} values, more than {values_max}"));
        }
        let Some(Range { start: _, end }) = range_of(chunk) else {
            return Err(format!("column `{name}` lies nowhere in the file"));
        };
        if end > file_bytes {
            return Err(format!("column `{name}` ends at byte {end} of {file_bytes}"));
        }
        if !matches!(chunk.compression(), Compression::ZSTD(_) | Compression::UNCOMPRESSED) {
            return Err(format!("column `{name}` is packed with {}", chunk.compression()));
        }
    }
    Ok(())
}

/// Returns how many floats, and rows without any, a group of `rows` holds at most.
fn values_max(rows: u64, schema: &PartSchema) -> u64 {
    let bytes_max = if rows > 1 { ROW_GROUP_BYTES_MAX } else { ROW_BYTES_MAX };
    (bytes_max / schema.value_bytes()) as u64 + rows
}

/// Bytes of the file, the end excluded.
struct Range {
    start: u64,
    end: u64,
}

/// Returns where the pages of a column are, or `None` for what no writer of parts writes.
fn range_of(chunk: &ColumnChunkMetaData) -> Option<Range> {
    if chunk.dictionary_page_offset().is_some() {
        return None;
    }
    let start = u64::try_from(chunk.data_page_offset()).ok()?;
    let end = start.checked_add(u64::try_from(chunk.compressed_size()).ok()?)?;
    Some(Range { start, end })
}

/// Checks the header of every page. The footer was checked before.
pub(super) fn check_pages(
    file: &File,
    metadata: &ParquetMetaData,
    schema: &PartSchema,
) -> Result<(), Excess> {
    for (number, group) in metadata.row_groups().iter().enumerate() {
        for (column, chunk) in group.columns().iter().enumerate() {
            check_chunk(file, chunk, column, group.num_rows(), schema).map_err(|excess| match excess {
                Excess::Found(reason) => {
                    let name = chunk.column_descr().name();
                    Excess::Found(format!("row group {number}, column `{name}`: {reason}"))
                }
                unreadable @ Excess::Unreadable(_) => unreadable,
            })?;
        }
    }
    Ok(())
}

fn check_chunk(
    file: &File,
    chunk: &ColumnChunkMetaData,
    column: usize,
    rows: i64,
    schema: &PartSchema,
) -> Result<(), Excess> {
    let Some(Range { start, end }) = range_of(chunk) else { return Ok(()) };
    let mut at = start;
    let mut values = 0i64;
    while at < end {
        let mut window = vec![0; (end - at).min(PAGE_HEADER_BYTES_MAX as u64) as usize];
        file.read_exact_at(&mut window, at).map_err(Excess::Unreadable)?;
        let Some((page, header_bytes)) = PageHeader::parse(&window) else {
            return Err(format!("the page at byte {at} has no sound header").into());
        };
        let body_at = at + header_bytes as u64;
        let check = || -> Result<u64, String> {
            let stored = u64::try_from(page.stored_bytes).ok().filter(|&stored| stored <= end - body_at);
            let stored =
                stored.ok_or_else(|| format!("{} bytes reach beyond its column", page.stored_bytes))?;
            page.check(column, stored, chunk.compression(), rows, schema)?;
            Ok(stored)
        };
        let stored = check().map_err(|reason| format!("the page at byte {at}: {reason}"))?;
        values = values.saturating_add(page.values);
        at = body_at + stored;
    }
    if values != chunk.num_values() {
        return Err(format!("its pages hold {values} values of {}", chunk.num_values()).into());
    }
    Ok(())
}

/// What a page says of itself.
#[derive(Debug, Default, PartialEq)]
struct PageHeader {
    kind: i64,
    unpacked_bytes: i64,
    stored_bytes: i64,
    values: i64,
    encoding: i64,
}

impl PageHeader {
    fn check(
        &self,
        column: usize,
        stored: u64,
        compression: Compression,
        rows: i64,
        schema: &PartSchema,
    ) -> Result<(), String> {
        if self.kind != DATA_PAGE {
            return Err(format!("it is of type {}, not a page of values", self.kind));
        }
        let encodings: &[i64] = match column {
            FLOATS => &[PLAIN, BYTE_STREAM_SPLIT],
            1 => &[PLAIN],
            _ => &[PLAIN, DELTA_BINARY_PACKED],
        };
        if !encodings.contains(&self.encoding) {
            return Err(format!("encoding {} is not that of a part", self.encoding));
        }
        let unpacked = self.unpacked_bytes;
        let of_type = if column == FLOATS { FLOAT_PAGE_BYTES_MAX } else { OTHER_PAGE_BYTES_MAX };
        let of_zstd = (stored / 4 + 1) * ZSTD_BLOCK_BYTES_MAX;
        let unpacked_max = match compression {
            Compression::UNCOMPRESSED => stored.min(of_type),
            _ => of_zstd.min(of_type),
        };
        if !u64::try_from(unpacked).is_ok_and(|unpacked| unpacked <= unpacked_max) {
            return Err(format!("{unpacked} bytes when unpacked, more than {unpacked_max}"));
        }
        // Levels can repeat without end; a float takes its bytes, and a row without any is one value.
        let values_max = if column == FLOATS { unpacked / schema.value_bytes() as i64 + rows } else { rows };
        if !(0..=values_max).contains(&self.values) {
            return Err(format!("{} values, more than {values_max}", self.values));
        }
        Ok(())
    }

    /// Parses a header at the start of `bytes` (Thrift's compact protocol); returns its length too.
    fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let mut page = Self { kind: -1, values: -1, encoding: -1, ..Self::default() };
        let mut thrift = Thrift { rest: bytes };
        let mut field = 0;
        while let Some((number, kind)) = thrift.field(field)? {
            field = number;
            match (number, kind) {
                (1, I32) => page.kind = thrift.integer()?,
                (2, I32) => page.unpacked_bytes = thrift.integer()?,
                (3, I32) => page.stored_bytes = thrift.integer()?,
                // The header of a data page of version 1, which the writer writes.
                (5, STRUCT) => {
                    let mut inner = 0;
                    while let Some((number, kind)) = thrift.field(inner)? {
                        inner = number;
                        match (number, kind) {
                            (1, I32) => page.values = thrift.integer()?,
                            (2, I32) => page.encoding = thrift.integer()?,
                            _ => thrift.skip(kind, NESTING_MAX)?,
                        }
                    }
                }
                _ => thrift.skip(kind, NESTING_MAX)?,
            }
        }
        Some((page, bytes.len() - thrift.rest.len()))
    }
}

const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I16: u8 = 4;
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;

/// Thrift's compact protocol; `None` from any method: it is not that, or it ends early.
struct Thrift<'a> {
    rest: &'a [u8],
}

impl Thrift<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(byte)
    }

    fn take(&mut self, bytes: u64) -> Option<()> {
        self.rest = self.rest.get(usize::try_from(bytes).ok()?..)?;
        Some(())
    }

    fn unsigned(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn integer(&mut self) -> Option<i64> {
        let folded = self.unsigned()?;
        Some((folded >> 1) as i64 ^ -((folded & 1) as i64))
    }

    /// Reads the head of the next field: its number and type; the inner `None` ends the structure.
    fn field(&mut self, previous: i64) -> Option<Option<(i64, u8)>> {
        let head = self.byte()?;
        let kind = head & 0x0f;
        if head == 0 {
            return Some(None);
        }
        let number = match head >> 4 {
            0 => self.integer()?,
            difference => previous.checked_add(i64::from(difference))?,
        };
        Some(Some((number, kind)))
    }

    fn skip(&mut self, kind: u8, nesting: u32) -> Option<()> {
        let nesting = nesting.checked_sub(1)?;
        match kind {
            TRUE | FALSE => Some(()),
            BYTE => self.take(1),
            I16 | I32 | I64 => self.unsigned().map(drop),
            DOUBLE => self.take(8),
            BINARY => {
                let bytes = self.unsigned()?;
                self.take(bytes)
            }
            LIST | SET => {
                let head = self.byte()?;
                let items = match head >> 4 {
                    15 => self.unsigned()?,
                    few => u64::from(few),
                };
                (0..items).try_for_each(|_| self.skip_item(head & 0x0f, nesting))
            }
            MAP => {
                let items = self.unsigned()?;
                let kinds = if items == 0 { 0 } else { self.byte()? };
                (0..items).try_for_each(|_| {
                    self.skip_item(kinds >> 4, nesting)?;
                    self.skip_item(kinds & 0x0f, nesting)
                })
            }
            STRUCT => {
                let mut field = 0;
                while let Some((number, kind)) = self.field(field)? {
                    field = number;
                    self.skip(kind, nesting)?;
                }
                Some(())
            }
            _ => None,
        }
    }

    /// Skips an item of a list or map, where a boolean takes a byte as every item takes one at least: the bytes
    /// there are bound the loop.
    fn skip_item(&mut self, kind: u8, nesting: u32) -> Option<()> {
        if matches!(kind, TRUE | FALSE) { self.take(1) } else { self.skip(kind, nesting) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use config::Float;
    use parquet::file::reader::{FileReader, SerializedFileReader};

    use super::*;
    use crate::part::{PartRow, write_part};

    const SCHEMA: PartSchema = PartSchema { hidden: 2, float: Float::F32, per_residue: true };

    /// A part of three rows, its footer, and where the page of column `column` begins.
    fn part(folder: &std::path::Path, column: usize) -> (File, ParquetMetaData, u64) {
        let path = folder.join("part.parquet");
        let rows =
            (0..3).map(|index| PartRow { index, id: "p", length: 2, embedding: &[1.0, 2.0, 3.0, 4.0] });
        write_part(&path, &SCHEMA, &BTreeMap::new(), rows).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let metadata = SerializedFileReader::new(file.try_clone().unwrap()).unwrap().metadata().clone();
        let at = metadata.row_group(0).column(column).data_page_offset() as u64;
        (file, metadata, at)
    }

    fn found(check: Result<(), Excess>) -> String {
        match check {
            Err(Excess::Found(reason)) => reason,
            Err(Excess::Unreadable(error)) => panic!("{error}"),
            Ok(()) => "nothing".to_owned(),
        }
    }

    /// A page header as Thrift has it, `statistics` between its sizes and its end.
    fn header(kind: u8, unpacked: &[u8], values: &[u8], encoding: u8, statistics: &[u8]) -> Vec<u8> {
        let sizes = [&[0x15, kind, 0x15][..], unpacked, &[0x15, 0x02]].concat();
        let inner =
            [&[0x2c, 0x15][..], values, &[0x15, encoding, 0x15, 6, 0x15, 6], statistics, &[0]].concat();
        [sizes, inner, vec![0]].concat()
    }

    #[test]
    fn what_the_writer_writes_is_within_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let (file, metadata, _) = part(folder.path(), 0);
        assert_eq!(found(check_footer_length(&file)), "nothing");
        assert_eq!(found(check_footer(&file, &metadata, &SCHEMA)), "nothing");
        assert_eq!(found(check_pages(&file, &metadata, &SCHEMA)), "nothing");
    }

    #[test]
    fn page_headers_that_promise_too_much_are_refused() {
        let huge: &[u8] = &[0xfe, 0xff, 0xff, 0xff, 0x0f];
        // Statistics whose least value is to be 4 TiB long.
        let statistics = [&[0x1c, 0x18][..], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], &[0]].concat();
        let cases: [(usize, Vec<u8>, &str); 7] = [
            (1, header(0, &[4], &[6], 0, &statistics), "no sound header"),
            (1, header(4, &[4], &[6], 0, &[]), "it is of type 2, not a page of values"),
            (1, header(0, huge, &[6], 0, &[]), "2147483647 bytes when unpacked, more than 131072"),
            (3, header(0, &[4], huge, 0, &[]), "2147483647 values, more than 3"),
            (3, header(0, &[4], &[5], 0, &[]), "-3 values"),
            (0, header(0, &[4], &[8], 0, &[]), "4 values, more than 3"),
            (0, header(0, &[4], &[6], 16, &[]), "encoding 8 is not that of a part"),
        ];
        for (column, header, expected) in cases {
            let folder = tempfile::tempdir().unwrap();
            let (file, metadata, at) = part(folder.path(), column);
            file.write_all_at(&header, at).unwrap();
            let reason = found(check_pages(&file, &metadata, &SCHEMA));
            assert!(reason.starts_with("row group 0, column `"), "{reason}");
            assert!(reason.contains(expected), "{expected}: {reason}");
        }
    }

    #[test]
    fn a_footer_longer_than_any_is_refused_before_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sparse");
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        file.set_len(20 << 20).unwrap();
        file.write_all_at(&(17u32 << 20).to_le_bytes(), (20 << 20) - 8).unwrap();
        file.write_all_at(b"PAR1", (20 << 20) - 4).unwrap();
        assert_eq!(found(check_footer_length(&file)), "its footer has 17825792 bytes, more than 16777216");
    }

    #[test]
    fn structures_nested_without_end_are_refused() {
        let nested = [0x1c; 100_000];
        assert_eq!(PageHeader::parse(&nested), None);
        let lists = [&[0x19][..], &[0x19; 100_000]].concat();
        assert_eq!(PageHeader::parse(&lists), None);
        // A list of 2^60 structures in three bytes.
        let many = [0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0];
        assert_eq!(PageHeader::parse(&many), None);
    }
}
