//! No queue without a bound and no wait without an end, as far as the sources can tell.

use std::fs;
use std::path::{Path, PathBuf};

/// Every source file of the program, without its tests.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders: Vec<PathBuf> =
        ["src", "actors/src", "kernels/src", "config/src"].map(|folder| root.join(folder)).into();
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let program = text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned();
                sources.push((path, program));
            }
        }
    }
    assert!(sources.len() > 60, "{} files", sources.len());
    sources
}

/// Lines of code that mention `text`, comments left out.
fn mentions<'a>(sources: &'a [(PathBuf, String)], text: &'a str) -> Vec<(String, &'a str)> {
    let lines = sources.iter().flat_map(|(path, source)| {
        source.lines().enumerate().map(move |(number, line)| (path, number + 1, line.trim()))
    });
    lines
        .filter(|(_, _, line)| !line.starts_with("//") && line.contains(text))
        .map(|(path, number, line)| (format!("{}:{number}", path.display()), line))
        .collect()
}

#[test]
fn every_channel_has_its_bound_in_one_place() {
    let sources = sources();
    let mut found = 0;
    for constructor in ["flume::bounded", "mpsc::channel", "sync_channel"] {
        for (place, line) in mentions(&sources, constructor) {
            assert!(line.contains("(bounds::"), "{place}: the bound is not in bounds.rs: {line}");
            found += 1;
        }
    }
    let bounds =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("actors/src/bounds.rs")).unwrap();
    let constants: Vec<&str> =
        bounds.lines().filter_map(|line| line.strip_prefix("pub const ")?.split(':').next()).collect();
    assert!(found >= 8 && constants.len() > found, "{found} channels, {constants:?}");
    for constant in constants {
        // The credits are used by name where they are counted.
        let used = mentions(&sources, constant).iter().any(|(place, _)| !place.contains("bounds.rs"));
        assert!(used, "{constant} bounds nothing");
    }
}

#[test]
fn nothing_unbounded_and_no_call_without_a_time_limit() {
    let sources = sources();
    for forbidden in
        ["unbounded", "broadcast::", ".call(", "call!(", "stop_and_wait(None, None)", "recv_async"]
    {
        let found = mentions(&sources, forbidden);
        assert!(found.is_empty(), "{forbidden}: {found:?}");
    }
}

#[test]
fn no_deadline_looks_at_the_wall_clock() {
    // It steps; only the time of a run's start, of a report, and signs of life in files are told by it.
    let sources = sources();
    let found = mentions(&sources, "SystemTime::now");
    let known = ["src/run.rs", "src/result_folder/lock.rs", "src/gpu_check/mod.rs"];
    for (place, line) in &found {
        assert!(known.iter().any(|known| place.contains(known)), "{place}: {line}");
    }
    assert_eq!(found.len(), 3, "{found:?}");
}
