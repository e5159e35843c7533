//! Job files: what was typed ([`JobFile`]), checked and resolved into what is true ([`Job`]).

mod decoder;
pub mod demo;
mod device;
mod document;
mod expansion;
mod inputs;
mod job;
mod job_file;
mod limits;
mod load;
mod mistake;
mod model_source;
mod overrides;
mod resolver;
mod schema;
mod suggestion;
mod surroundings;
mod template;

pub use job::*;
pub use job_file::{
    Count, DevicesTable, InputTable, JobFile, LayerTyped, ModelTable, OneOrMore, OutputTable, PackingTable,
    RestartTable, TelemetryTable,
};
pub use load::{from_text, load};
pub use mistake::{ConfigError, Fault, Mistake};
pub use schema::{SCHEMA, keys, schema};
pub use surroundings::Surroundings;
pub use template::template;
