//! Reads a [`Document`] into a [`JobFile`] through serde, keeping for every error its place, its key and the
//! allowed words as values, where the `toml` crate's own deserialiser keeps one sentence.
//!
//! It refuses unknown keys, wrong types and unknown words; limits and paths are the resolver's.

use std::fmt;

use serde::Deserialize;
use serde::de::value::{StrDeserializer, StringDeserializer};
use serde::de::{self, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

use crate::document::{Document, Entry, Node, Place, Value};
use crate::job_file::JobFile;
use crate::mistake::{Fault, Mistake, Objection};
use crate::schema::keys;
use crate::suggestion::nearest;

/// Decodes a whole job file.
pub(crate) fn decode(document: &Document) -> Result<JobFile, Box<Mistake>> {
    let decoder = Decoder { node: document.root(), key: String::new() };
    JobFile::deserialize(decoder).map_err(|error| error.into_mistake(document))
}

/// What serde says against a value.
#[derive(Debug)]
enum Refusal {
    UnknownKey { key: String, allowed: &'static [&'static str] },
    UnknownWord { word: String, allowed: &'static [&'static str] },
    Missing { field: &'static str },
    WrongType { expected: String },
    Custom(String),
}

/// A refusal, and from the decoder on its way up the place and the key.
#[derive(Debug)]
struct DecodeError {
    refusal: Refusal,
    at: Option<(Place, String, String)>,
}

impl DecodeError {
    fn new(refusal: Refusal) -> Self {
        Self { refusal, at: None }
    }

    /// Notes where it happened, unless a value further down already has.
    fn at(mut self, place: &Place, key: &str, found: impl FnOnce() -> String) -> Self {
        self.at.get_or_insert_with(|| (place.clone(), key.to_owned(), found()));
        self
    }

    fn into_mistake(self, document: &Document) -> Box<Mistake> {
        let (place, key, found) =
            self.at.unwrap_or_else(|| (document.end_of_file(), String::new(), String::new()));
        let objection = match self.refusal {
            Refusal::UnknownKey { key: typed, allowed } => {
                unknown_key(&join(&key, &typed), &typed, &key, allowed)
            }
            Refusal::UnknownWord { word, allowed } => unknown_word(&key, &word, allowed),
            Refusal::Missing { field } => {
                let missing = join(&key, field);
                let place = if key.is_empty() { document.end_of_file() } else { place };
                return document.mistake(&place, missing_key(&missing));
            }
            Refusal::WrongType { expected } => Objection::new(Fault::WrongType { key, found }, "wrong type")
                .help(format!("allowed: {expected}")),
            Refusal::Custom(reason) => {
                Objection::new(Fault::WrongType { key, found }, "not understood").help(reason)
            }
        };
        document.mistake(&place, objection)
    }
}

/// Words the objection to a key that does not exist. `typed`: as it stands in the text; `table`: the table it
/// stands in, empty at the top.
fn unknown_key(key: &str, typed: &str, table: &str, allowed: &[&str]) -> Objection {
    let known = keys();
    let elsewhere = known.iter().find(|known| {
        known.rsplit_once('.').is_some_and(|(known_table, last)| last == typed && known_table != table)
    });
    let near = nearest(typed, allowed.iter().copied());
    let help = match (elsewhere, near) {
        (Some(elsewhere), _) => format!("did you mean `{elsewhere}`?"),
        (None, Some(near)) => format!("{}; did you mean `{near}`?", allowed_words(allowed)),
        (None, None) => allowed_words(allowed),
    };
    let label = match (elsewhere, table.is_empty()) {
        (Some(elsewhere), _) => {
            let (home, _) = elsewhere.rsplit_once('.').unwrap_or(("", elsewhere));
            format!("belongs in [{home}]")
        }
        (None, true) => "no such table".to_owned(),
        (None, false) => format!("not a key of [{table}]"),
    };
    Objection::new(Fault::UnknownKey { key: key.to_owned() }, label).help(help)
}

fn unknown_word(key: &str, word: &str, allowed: &'static [&'static str]) -> Objection {
    let mut help = allowed_words(allowed);
    let words = allowed.iter().copied().filter(|word| !is_description(word));
    if let Some(near) = nearest(word, words) {
        help.push_str(&format!("; did you mean `{near}`?"));
    } else if word.trim().parse::<i64>().is_ok() && allowed.iter().any(|word| is_description(word)) {
        help.push_str("; write the number without quotes");
    } else if key == "input.alphabet" && ["nucleotide", "nucleotides", "dna", "rna"].contains(&word) {
        help.push_str("; nucleotide input is not read yet: translate it to proteins first");
    }
    let fault = Fault::UnknownValue { key: key.to_owned(), value: word.to_owned() };
    Objection::new(fault, "not an allowed value").help(help)
}

fn missing_key(key: &str) -> Objection {
    let help = match key {
        "input" | "input.fasta" => "name the sequences: fasta = [\"proteins.fasta\"] in [input]",
        "output" | "output.directory" => "name the result folder: directory = \"results\" in [output]",
        _ => "it has no default",
    };
    let label = match key.rsplit_once('.') {
        Some((table, last)) => format!("[{table}] needs `{last}`"),
        None => format!("the job needs a table [{key}]"),
    };
    Objection::new(Fault::Missing { key: key.to_owned() }, label).help(help)
}

/// Lists what is allowed. A word with a space describes rather than spells and stands without backticks.
pub(crate) fn allowed_words(words: &[&str]) -> String {
    let shown: Vec<String> = words
        .iter()
        .map(|word| if is_description(word) { (*word).to_owned() } else { format!("`{word}`") })
        .collect();
    format!("allowed: {}", shown.join(", "))
}

fn is_description(word: &str) -> bool {
    word.contains(' ')
}

fn join(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.refusal)
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Refusal::Custom(message.to_string()))
    }

    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        // serde speaks of Rust.
        let expected = expected.to_string();
        let expected = match expected.as_str() {
            "i64" => "a whole number".to_owned(),
            "a string" => "text in quotes".to_owned(),
            _ => expected,
        };
        Self::new(Refusal::WrongType { expected })
    }

    fn invalid_value(unexpected: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn unknown_variant(word: &str, allowed: &'static [&'static str]) -> Self {
        Self::new(Refusal::UnknownWord { word: word.to_owned(), allowed })
    }

    fn unknown_field(key: &str, allowed: &'static [&'static str]) -> Self {
        Self::new(Refusal::UnknownKey { key: key.to_owned(), allowed })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Refusal::Missing { field })
    }
}

/// One value and its dotted key.
struct Decoder<'d> {
    node: &'d Node,
    key: String,
}

impl<'d> Decoder<'d> {
    fn located(&self, error: DecodeError) -> DecodeError {
        error.at(&self.node.place, &self.key, || self.node.in_words())
    }

    fn text(&self) -> Option<&'d str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            _ => self.node.bare_word.as_deref(),
        }
    }
}

impl<'de> de::Deserializer<'de> for Decoder<'_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let result = match &self.node.value {
            Value::Text(text) => visitor.visit_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(boolean) => visitor.visit_bool(*boolean),
            Value::Other(_) => Err(de::Error::invalid_type(de::Unexpected::Other("value"), &visitor)),
            Value::List(items) => visitor.visit_seq(Items { items: items.iter(), key: &self.key }),
            Value::Table(entries) => {
                visitor.visit_map(Entries { entries: entries.iter(), next: None, key: &self.key })
            }
        };
        result.map_err(|error| self.located(error))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.text() {
            Some(text) => visitor.visit_str(text).map_err(|error| self.located(error)),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let result = match self.text() {
            Some(text) => {
                let word: StrDeserializer<'_, DecodeError> = text.into_deserializer();
                visitor.visit_enum(word)
            }
            None => {
                let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
                let expected = match quoted.as_slice() {
                    [only] => only.clone(),
                    _ => format!("one of {}", quoted.join(", ")),
                };
                Err(DecodeError::new(Refusal::WrongType { expected }))
            }
        };
        result.map_err(|error| self.located(error))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        // Derived visitors also take a list as the fields in their order, which no one would type on purpose.
        match &self.node.value {
            Value::Table(_) => self.deserialize_any(visitor),
            _ => {
                let expected = "a table".to_owned();
                Err(self.located(DecodeError::new(Refusal::WrongType { expected })))
            }
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map identifier ignored_any
    }
}

struct Items<'d> {
    items: std::slice::Iter<'d, Node>,
    key: &'d str,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        self.items.next().map(|node| seed.deserialize(Decoder { node, key: self.key.to_owned() })).transpose()
    }
}

struct Entries<'d> {
    entries: std::slice::Iter<'d, Entry>,
    /// The entry whose key was read last and whose value is due.
    next: Option<&'d Entry>,
    key: &'d str,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DecodeError> {
        self.next = self.entries.next();
        let Some(entry) = self.next else {
            return Ok(None);
        };
        let key: StringDeserializer<DecodeError> = entry.key.clone().into_deserializer();
        seed.deserialize(key)
            .map(Some)
            .map_err(|error| error.at(&entry.key_place, self.key, || entry.key.clone()))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DecodeError> {
        match self.next.take() {
            Some(entry) => seed.deserialize(Decoder { node: &entry.node, key: join(self.key, &entry.key) }),
            None => Err(de::Error::custom("a value was asked for before its key")),
        }
    }
}
