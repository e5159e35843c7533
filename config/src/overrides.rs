//! Values typed outside the job file: `--set key=value` and environment variables.
//!
//! A value that is TOML as a whole is taken as TOML, anything else as a bare word: `--set model.layer=3`,
//! `--set 'devices.use=["cpu"]'`, `--set input.fasta=a.fasta`. Relative paths resolve against the current
//! folder, as a shell's do, not against the job file's. A key given twice: the last one holds. `--set` wins
//! over the environment, the environment over the job file.

use std::sync::Arc;

use crate::decoder::allowed_words;
use crate::document::{Document, Source};
use crate::mistake::{Fault, Mistake, Objection};
use crate::schema::keys;
use crate::suggestion::nearest;
use crate::surroundings::Surroundings;

/// `VIRNUCPRO_ORCH_MODEL_LAYER` sets `model.layer`.
pub(crate) const VARIABLE_PREFIX: &str = "VIRNUCPRO_ORCH_";
const FLAG: &str = "--set ";

/// Applies the environment's variables to a document.
pub(crate) fn apply_environment(document: &mut Document, around: &Surroundings) -> Result<(), Box<Mistake>> {
    let known: Vec<(String, String)> =
        keys().into_iter().map(|key| (key.to_uppercase().replace('.', "_"), key)).collect();
    for (variable, value) in &around.variables {
        let Some(name) = variable.strip_prefix(VARIABLE_PREFIX) else { continue };
        let source = Source {
            name: "environment".to_owned(),
            text: Arc::from(format!("{variable}={value}")),
            folder: around.current_folder.clone(),
        };
        let variable_span = 0..variable.len();
        if let Some((_, key)) = known.iter().find(|(known_name, _)| known_name == name) {
            let value_span = variable.len() + 1..source.text.len();
            document.set(key, source, variable_span, value_span)?;
        } else {
            // Nothing else uses the prefix: what is meant must not be left out without a word.
            return Err(source.mistake(variable_span, unknown_variable(variable, name, &known)));
        }
    }
    Ok(())
}

fn unknown_variable(variable: &str, name: &str, known: &[(String, String)]) -> Objection {
    let help = match nearest(name, known.iter().map(|(known_name, _)| known_name.as_str())) {
        Some(near) => format!("did you mean `{VARIABLE_PREFIX}{near}`?"),
        None => format!("{VARIABLE_PREFIX}MODEL_LAYER, for instance, sets `model.layer`"),
    };
    Objection::new(Fault::UnknownKey { key: variable.to_owned() }, "names no key of a job file").help(help)
}

/// Applies the values of `--set`, in order.
pub(crate) fn apply_flags(
    document: &mut Document,
    overrides: &[String],
    around: &Surroundings,
) -> Result<(), Box<Mistake>> {
    overrides.iter().try_for_each(|typed| apply_flag(document, typed, around))
}

fn apply_flag(document: &mut Document, typed: &str, around: &Surroundings) -> Result<(), Box<Mistake>> {
    let source = Source {
        name: "command line".to_owned(),
        text: Arc::from(format!("{FLAG}{typed}")),
        folder: around.current_folder.clone(),
    };
    let Some((key, _)) = typed.split_once('=') else {
        let objection = Objection::new(Fault::NoValue { typed: typed.to_owned() }, "no `=` here")
            .help("write --set key=value, for instance --set model.layer=3");
        return Err(source.mistake(FLAG.len()..source.text.len(), objection));
    };
    let value_start = FLAG.len() + key.len() + 1;
    let key_start = FLAG.len() + (key.len() - key.trim_start().len());
    let key = key.trim();
    let key_span = key_start..key_start + key.len();
    let known = keys();
    if !known.iter().any(|known| known == key) {
        return Err(source.mistake(key_span, unknown_flag_key(key, &known)));
    }
    let value_span = value_start..source.text.len();
    document.set(key, source, key_span, value_span)
}

fn unknown_flag_key(key: &str, known: &[String]) -> Objection {
    let objection = |label: &str| Objection::new(Fault::UnknownKey { key: key.to_owned() }, label);
    let of_table = |table: &str| -> Vec<&str> {
        known.iter().map(String::as_str).filter(|known| table_of(known) == table).collect()
    };
    let below = of_table(key);
    if !below.is_empty() {
        return objection("a whole table cannot be set").help(allowed_words(&below));
    }
    let last = key.rsplit('.').next();
    let near = nearest(key, known.iter().map(String::as_str))
        .or_else(|| known.iter().map(String::as_str).find(|known| known.rsplit('.').next() == last));
    if let Some(near) = near {
        return objection("no such key").help(format!("did you mean `--set {near}=…`?"));
    }
    let mut allowed = of_table(table_of(key));
    if allowed.is_empty() {
        allowed = known.iter().map(|known| table_of(known)).collect();
        allowed.dedup();
        return objection("no such table").help(allowed_words(&allowed));
    }
    objection("no such key").help(allowed_words(&allowed))
}

/// Returns what stands before the first dot.
fn table_of(key: &str) -> &str {
    key.split('.').next().unwrap_or(key)
}
