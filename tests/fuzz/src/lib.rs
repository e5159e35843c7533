//! Every door through which bytes from outside come in, each as one function over a byte slice.
//!
//! The fuzz targets call them with invented bytes, `tests/doors` with the corpus and every former finding, so
//! that both always test the same thing. A function returns for any bytes, whether they were taken as sound; it
//! panics where a promise is broken.

pub mod checkpoint;
pub mod commits;
pub mod fasta;
pub mod frames;
pub mod job;
pub mod manifest;
pub mod part;
pub mod safetensors;

/// One door: takes bytes and says whether they were sound.
pub type Door = fn(&[u8]) -> bool;

/// Every door by the name of its target and of its folders in `corpus` and `regressions`.
pub const DOORS: [(&str, Door); 8] = [
    ("checkpoint", checkpoint::enter),
    ("commits", commits::enter),
    ("fasta", fasta::enter),
    ("frames", frames::enter),
    ("job", job::enter),
    ("manifest", manifest::enter),
    ("part", part::enter),
    ("safetensors", safetensors::enter),
];

/// A new folder that holds `name` with `bytes`.
fn folder_with(name: &str, bytes: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folders can be made");
    std::fs::write(folder.path().join(name), bytes).expect("temporary files can be written");
    folder
}
