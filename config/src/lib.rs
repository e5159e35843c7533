//! Job files: what was typed, checked and resolved into what is true.

mod job;

pub use job::*;
