//! `run.json` of a result folder, and the check of the parts that it names.

use actors::manifest::{Manifest, ResultFolder};

/// Reads a manifest; one that reads can be written and reads the same.
pub fn enter(bytes: &[u8]) -> bool {
    let folder = super::folder_with("run.json", bytes);
    let folder = ResultFolder(folder.path().to_owned());
    match Manifest::read(&folder) {
        Ok(Some(manifest)) => {
            for entry in manifest.segments.values() {
                // Nothing that it names exists, unless it names something outside its folder.
                assert!(entry.check(&folder).is_err());
            }
            manifest.write(&folder).expect("the folder can be written");
            let again = Manifest::read(&folder).expect("it was just written").expect("it was just written");
            assert_eq!(again, manifest);
            true
        }
        Ok(None) => panic!("the file is there"),
        Err(error) => {
            assert!(!actors::error_chain(&error).is_empty());
            false
        }
    }
}

/// Seeds: a manifest of each status.
pub fn seeds() -> Vec<Vec<u8>> {
    ["running", "done", "stopped", "failed"]
        .map(|status| SOUND.replace("STATUS", status).into_bytes())
        .to_vec()
}

const SOUND: &str = r#"{"format": 1, "version": "0.1.0", "status": "STATUS", "reason": null,
"identity": {"model": "demo", "layer": "3"}, "job": {"input": {"fasta": ["a.fasta"]}},
"input": [{"path": "a.fasta", "bytes": 10, "sha256": "00"}],
"counts": {"records": 2, "rejected": 1, "residues": 5, "truncated": 0, "pooled_first": 0, "unknown_letters": 0,
"gap_letters_removed": 0, "stops_removed": 0, "lower_case_letters": 0},
"model": {"source": "demo", "sha256": "00", "layers": 3, "hidden": 64}, "devices": ["cpu"], "token_budget": 4096,
"sessions": [{"started_unix_s": 1, "elapsed_s": 0.5, "tokens": 9, "restarts": 0}],
"totals": {"records": 2, "rows": 1, "failed": 1, "residues": 5},
"segments": {"0": {"first_index": 0, "records": 2, "rows": 1, "failed": 1, "residues": 5,
"part": "embeddings/part-00000.parquet", "bytes": 100, "sha256": "00"}}}
"#;
