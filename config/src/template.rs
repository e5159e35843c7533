//! The commented job file that `init` writes.

/// Returns a job file with every key at its default; keys that may stay away are commented out as `#key = …`.
pub fn template() -> &'static str {
    include_str!("../template.toml")
}
