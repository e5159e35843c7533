//! The JSON schema of job files, made from [`JobFile`], for editors; and the list of keys taken from it.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use crate::job_file::JobFile;

/// The schema as published: `job.schema.json` beside a job file. A test keeps it equal to [`schema`].
pub const SCHEMA: &str = include_str!("../job.schema.json");

/// Generates the schema of job files: JSON Schema draft 7, the newest that taplo reads in full, without
/// references, since draft 7 ignores what stands beside one.
pub fn schema() -> String {
    format!("{:#}\n", schema_value())
}

/// Returns every key of a job file, dotted and sorted: `devices.threads`, ….
pub fn keys() -> Vec<String> {
    let schema = schema_value();
    let properties = |table: &Value| -> Vec<(String, Value)> {
        table["properties"].as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    properties(&schema)
        .iter()
        .flat_map(|(table, value)| {
            properties(value).into_iter().map(move |(key, _)| format!("{table}.{key}"))
        })
        .collect()
}

fn schema_value() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<JobFile>().to_value();
    // Another crate of the build may have serde_json keep the order of insertion.
    schema.sort_all_objects();
    join_lines(&mut schema);
    schema
}

/// Undoes the line breaks of doc comments, which editors would show.
fn join_lines(value: &mut Value) {
    match value {
        Value::String(text) => *text = text.replace('\n', " "),
        Value::Array(items) => items.iter_mut().for_each(join_lines),
        Value::Object(entries) => entries.values_mut().for_each(join_lines),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn committed_schema_is_the_generated_one() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/job.schema.json");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(file, schema()).unwrap();
            return;
        }
        assert!(SCHEMA == schema(), "job.schema.json is stale: run the tests of `config` with BLESS=1");
    }

    #[test]
    fn every_key_and_word_is_described() {
        let schema = schema_value();
        assert_eq!(schema["required"], serde_json::json!(["input", "output"]));
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["properties"]["input"]["required"], serde_json::json!(["fasta"]));
        assert_eq!(keys().len(), 34);
        for key in keys() {
            let (table, last) = key.split_once('.').unwrap();
            let described = &schema["properties"][table]["properties"][last]["description"];
            assert!(described.is_string(), "{key} has no description");
        }
    }
}
