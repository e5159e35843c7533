//! What was typed, as a tree in which every value knows the text and the place it came from.
//!
//! The parser fills it from the job file, overrides replace single values in it, the decoder reads it into a
//! [`crate::JobFile`] and the resolver asks it where a doubtful value stands. It knows TOML, not jobs.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::mistake::{Fault, Mistake, Objection};

/// A job file with its overrides.
pub(crate) struct Document {
    /// First the job file, then each override in rising precedence.
    sources: Vec<Source>,
    root: Node,
}

/// A text that values come from.
pub(crate) struct Source {
    /// Shown above the text in a report.
    pub(crate) name: String,
    pub(crate) text: Arc<str>,
    /// Absolute; relative paths in the text resolve against it.
    pub(crate) folder: PathBuf,
}

/// Where something stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index among the document's sources.
    source: usize,
    /// Bytes of its text.
    span: Range<usize>,
}

/// A value at its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
    /// The value as text, where a bare word may stand for text (`--set output.directory=2026`).
    pub(crate) bare_word: Option<String>,
}

/// A TOML value.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    /// Dates, and integers beyond 64 bits: no key takes them.
    Other(String),
    List(Vec<Node>),
    Table(Vec<Entry>),
}

/// A key of a table with its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_place: Place,
    pub(crate) node: Node,
}

/// Text of which all mistakes are gathered, bytes. A file that is no job file has one in every line, each with a
/// message of its own: of a longer text the parser keeps what it met first.
const RECOVERED_BYTES_MAX: usize = 64 << 10;

impl Document {
    /// Parses the job file.
    pub(crate) fn parse(source: Source) -> Result<Self, Box<Mistake>> {
        let text = Arc::clone(&source.text);
        let parsed = if text.len() > RECOVERED_BYTES_MAX {
            DeTable::parse(&text)
        } else {
            let (table, errors) = DeTable::parse_recoverable(&text);
            // The parser goes on after a mistake and meets others that follow from it: the first one counts.
            errors
                .into_iter()
                .min_by_key(|error| error.span().map_or(0, |span| span.start))
                .map_or(Ok(table), Err)
        };
        let table = parsed.map_err(|error| syntax_mistake(&source, &error, 0))?;
        let root = Node {
            place: Place { source: 0, span: table.span() },
            value: table_value(table.into_inner(), 0, 0),
            bare_word: None,
        };
        Ok(Self { sources: vec![source], root })
    }

    /// Replaces the value of a dotted key by one from `source`, whose bytes `key_span` name the key and
    /// `value_span` the value.
    pub(crate) fn set(
        &mut self,
        key: &str,
        source: Source,
        key_span: Range<usize>,
        value_span: Range<usize>,
    ) -> Result<(), Box<Mistake>> {
        let number = self.sources.len();
        let node = override_node(&source, number, value_span)?;
        let key_place = Place { source: number, span: key_span };
        self.sources.push(source);
        let segments: Vec<&str> = key.split('.').collect();
        insert(&mut self.root, &segments, &key_place, node);
        Ok(())
    }

    pub(crate) fn root(&self) -> &Node {
        &self.root
    }

    /// Returns the value of a dotted key, if it was typed.
    pub(crate) fn node(&self, key: &str) -> Option<&Node> {
        key.split('.').try_fold(&self.root, |node, segment| match &node.value {
            Value::Table(entries) => {
                entries.iter().find(|entry| entry.key == segment).map(|entry| &entry.node)
            }
            _ => None,
        })
    }

    /// Returns where the value of a key stands; for a key that was not typed, where it could be added.
    pub(crate) fn place(&self, key: &str) -> Place {
        let parent = key.rsplit_once('.').and_then(|(parent, _)| self.node(parent));
        match (self.node(key), parent) {
            (Some(node), _) => node.place.clone(),
            (None, Some(parent)) => parent.place.clone(),
            (None, None) => self.end_of_file(),
        }
    }

    /// Returns where item `index` of a list stands; a single value counts as a list of one.
    pub(crate) fn item_place(&self, key: &str, index: usize) -> Place {
        match self.node(key).map(|node| &node.value) {
            Some(Value::List(items)) => {
                items.get(index).map_or_else(|| self.place(key), |item| item.place.clone())
            }
            _ => self.place(key),
        }
    }

    /// Returns the end of the job file, where a missing table would be added.
    pub(crate) fn end_of_file(&self) -> Place {
        let end = self.sources[0].text.trim_end().len();
        Place { source: 0, span: end..end }
    }

    /// Returns the text that a place lies in.
    pub(crate) fn source(&self, place: &Place) -> &Source {
        &self.sources[place.source]
    }

    /// Puts an objection at its place.
    pub(crate) fn mistake(&self, place: &Place, objection: Objection) -> Box<Mistake> {
        self.source(place).mistake(place.span.clone(), objection)
    }
}

impl Source {
    pub(crate) fn mistake(&self, span: Range<usize>, objection: Objection) -> Box<Mistake> {
        Box::new(Mistake::new(&self.name, &self.text, span, objection))
    }
}

impl Node {
    /// Names what was typed, in words.
    pub(crate) fn in_words(&self) -> String {
        match &self.value {
            Value::Text(text) => format!("the text {text:?}"),
            Value::Integer(number) => format!("the number {number}"),
            Value::Float(number) => format!("the number {number:?}"),
            Value::Boolean(boolean) => format!("the boolean {boolean}"),
            Value::Other(text) => format!("`{text}`"),
            Value::List(_) => "a list".to_owned(),
            Value::Table(_) => "a table".to_owned(),
        }
    }
}

fn syntax_mistake(source: &Source, error: &toml::de::Error, offset: usize) -> Box<Mistake> {
    let span = error.span().map_or(0..0, |span| span.start + offset..span.end + offset);
    // The parser's message may go on with what it expected on further lines.
    let mut lines = error.message().lines();
    let reason = lines.next().unwrap_or("unreadable").to_owned();
    let expected: Vec<&str> = lines.collect();
    let mut objection = Objection::new(Fault::Syntax { reason }, "here");
    if !expected.is_empty() {
        objection = objection.help(expected.join("; "));
    }
    source.mistake(span, objection)
}

/// Reads the value of an override: TOML if it is TOML as a whole, else a bare word.
fn override_node(source: &Source, number: usize, span: Range<usize>) -> Result<Node, Box<Mistake>> {
    let typed = &source.text[span.clone()];
    let trimmed = typed.trim();
    let start = span.start + (typed.len() - typed.trim_start().len());
    let bare = |value| Node {
        place: Place { source: number, span: start..start + trimmed.len() },
        value,
        bare_word: None,
    };
    match DeValue::parse(trimmed) {
        // `5 # five` is TOML with a comment, yet in a shell it is one word.
        Ok(value) if value.span() == (0..trimmed.len()) => {
            let mut read = node(value, number, start);
            read.bare_word = match &read.value {
                Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Other(_) => {
                    Some(trimmed.to_owned())
                }
                Value::Text(_) | Value::List(_) | Value::Table(_) => None,
            };
            Ok(read)
        }
        // A quote, or a list of quoted words, was meant as TOML: `[ab]*.fasta` was not.
        Err(error) if ["\"", "'", "[\"", "['"].iter().any(|quote| trimmed.starts_with(quote)) => {
            Err(syntax_mistake(source, &error, start))
        }
        Ok(_) | Err(_) => Ok(bare(Value::Text(trimmed.to_owned()))),
    }
}

/// Inserts a value below `parent`, making tables on the way. A value that stands where a table belongs is left
/// for the decoder to refuse.
fn insert(parent: &mut Node, segments: &[&str], key_place: &Place, node: Node) {
    let (Value::Table(entries), [segment, rest @ ..]) = (&mut parent.value, segments) else {
        return;
    };
    let found = entries.iter().position(|entry| entry.key == *segment);
    let entry = match found {
        Some(position) => &mut entries[position],
        None => {
            entries.push(Entry {
                key: (*segment).to_owned(),
                key_place: key_place.clone(),
                node: Node { place: key_place.clone(), value: Value::Table(Vec::new()), bare_word: None },
            });
            let last = entries.len() - 1;
            &mut entries[last]
        }
    };
    if rest.is_empty() {
        entry.key_place = key_place.clone();
        entry.node = node;
    } else {
        insert(&mut entry.node, rest, key_place, node);
    }
}

fn node(value: Spanned<DeValue<'_>>, source: usize, offset: usize) -> Node {
    let span = value.span();
    let place = Place { source, span: span.start + offset..span.end + offset };
    let value = match value.into_inner() {
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Other(integer.to_string()),
        },
        DeValue::Float(float) => match float.as_str().parse() {
            Ok(number) => Value::Float(number),
            Err(_) => Value::Other(float.to_string()),
        },
        DeValue::Boolean(boolean) => Value::Boolean(boolean),
        DeValue::Datetime(date) => Value::Other(date.to_string()),
        DeValue::Array(items) => {
            Value::List(items.into_iter().map(|item| node(item, source, offset)).collect())
        }
        DeValue::Table(table) => table_value(table, source, offset),
    };
    Node { place, value, bare_word: None }
}

fn table_value(table: DeTable<'_>, source: usize, offset: usize) -> Value {
    let mut entries: Vec<Entry> = table
        .into_iter()
        .map(|(key, value)| {
            let span = key.span();
            Entry {
                key_place: Place { source, span: span.start + offset..span.end + offset },
                key: key.into_inner().into_owned(),
                node: node(value, source, offset),
            }
        })
        .collect();
    // The parser sorts by name; mistakes are reported in the order of the text.
    entries.sort_by_key(|entry| entry.key_place.span.start);
    Value::Table(entries)
}
