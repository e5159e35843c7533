//! `.state/commits`, the segments that a sound `run.json` does not have yet.
//!
//! The first byte says what the others are: the file as it lies there (`f`), or anything else: the JSON of its lines,
//! which get their first line and their checksums here, so that something of them is read at all.

use actors::commits;
use actors::manifest::{Manifest, ManifestError, ResultFolder};

/// Reads both as one manifest. It has all of `run.json`, can be written and reads the same; what a run is told of the list
/// is no more than what it lost.
pub fn enter(bytes: &[u8]) -> bool {
    let Some((&kind, content)) = bytes.split_first() else { return false };
    let run_json = run_json();
    let list = if kind == b'f' { content.to_vec() } else { with_checksums(&run_json, content) };
    let folder = super::folder_with("run.json", &run_json);
    let folder = ResultFolder(folder.path().to_owned());
    let before = Manifest::read(&folder).expect("it is sound").expect("it is there");
    std::fs::create_dir(folder.state()).expect("the folder can be written");
    std::fs::write(folder.commits(), &list).expect("the folder can be written");
    let manifest = match Manifest::read(&folder) {
        Ok(manifest) => manifest.expect("it is there"),
        Err(error) => {
            // Sound by its checksum, and yet no list that the program can have written.
            assert!(matches!(error, ManifestError::Inconsistent { .. }), "{}", actors::error_chain(&error));
            return false;
        }
    };
    for (number, entry) in &before.segments {
        assert_eq!(manifest.segments.get(number), Some(entry), "what `run.json` says stays");
    }
    let told = commits::problem(&folder, &manifest);
    assert!(told.is_none_or(|told| !told.is_empty()));
    manifest.write(&folder).expect("the folder can be written");
    assert!(!folder.commits().exists(), "it is in `run.json` now");
    let again = Manifest::read(&folder).expect("it was just written").expect("it was just written");
    let grown = manifest.segments.len() > before.segments.len();
    assert_eq!(without_times(again), without_times(manifest));
    grown
}

/// A time may lose its last bit as text.
fn without_times(mut manifest: Manifest) -> Manifest {
    manifest.sessions.iter_mut().for_each(|session| session.elapsed_s = 0.0);
    manifest
}

fn run_json() -> Vec<u8> {
    super::manifest::seeds().swap_remove(0)
}

fn with_checksums(run_json: &[u8], json: &[u8]) -> Vec<u8> {
    let base = commits::digest_of(run_json);
    let mut list = commits::title(base).into_bytes();
    for line in json.split(|&byte| byte == b'\n') {
        list.extend(commits::line(base, line));
    }
    list
}

/// Seeds: lists that go on from `run.json`, that were cut, that commit a segment twice or contradict themselves.
pub fn seeds() -> Vec<Vec<u8>> {
    let line = |segment: u32, first: u32| {
        LINE.replace("SEGMENT", &segment.to_string())
            .replace("FIRST", &first.to_string())
            .replace("PART", &format!("embeddings/part-{segment:05}.parquet"))
    };
    let two = format!("{}\n{}", line(1, 2), line(2, 5));
    let file = with_checksums(&run_json(), two.as_bytes());
    vec![
        [b"l", two.as_bytes()].concat(),
        [b"f", &*file].concat(),
        [b"f", &file[..file.len() - 20]].concat(),
        [b"f", &file[..40]].concat(),
        format!("l{}\n{}\n{}", line(1, 2), line(1, 2), line(0, 0)).into_bytes(),
        format!("l{}\n{}", line(1, 2), line(2, 4)).into_bytes(),
        b"l{\"segment\":1}\n".to_vec(),
        b"fvirnucpro-commits 2 00000000000000000000000000000000\n".to_vec(),
    ]
}

const LINE: &str = r#"{"segment":SEGMENT,"entry":{"first_index":FIRST,"records":3,"rows":3,"failed":0,"residues":9,"part":"PART","bytes":100,"sha256":"11"},"device_token_budgets":{"cpu":1000},"elapsed_s":1.5}"#;
