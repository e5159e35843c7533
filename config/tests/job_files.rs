//! One job file per mistake, with the report it gets beside it; and valid ones, with the job they make.
//!
//! Comments at a file's head set its surroundings: `# --set model.layer=3` and `# env NAME=value`. Run with
//! BLESS=1 to write the expected texts, then read the difference.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use config::{ConfigError, Job, Surroundings, from_text};
use miette::{GraphicalReportHandler, GraphicalTheme};

const CRATE: &str = env!("CARGO_MANIFEST_DIR");

/// Loads a fixture, named relative to the crate's folder.
fn load(fixture: &Path) -> Result<Job, ConfigError> {
    let text = fs::read_to_string(Path::new(CRATE).join(fixture)).unwrap();
    let mut overrides = Vec::new();
    let mut variables: BTreeMap<String, String> =
        [("HOME", "/home/ada"), ("SCRATCH", "/scratch"), ("CONFIG", CRATE)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    for line in text.lines() {
        if let Some(typed) = line.strip_prefix("# --set ") {
            overrides.push(typed.to_owned());
        } else if let Some((name, value)) = line.strip_prefix("# env ").and_then(|line| line.split_once('='))
        {
            variables.insert(name.to_owned(), value.to_owned());
        }
    }
    from_text(&text, fixture, &overrides, &Surroundings { current_folder: CRATE.into(), variables })
}

fn render(error: &ConfigError) -> String {
    let mut report = String::new();
    // Wide enough that no line is wrapped: where it would be depends on the machine's paths.
    GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor())
        .with_width(1_000)
        .with_links(false)
        .render_report(&mut report, error)
        .unwrap();
    let lines: Vec<&str> = report.lines().map(str::trim_end).collect();
    lines.join("\n").trim_matches('\n').replace(CRATE, "<config>") + "\n"
}

fn fixtures(folder: &str) -> Vec<PathBuf> {
    let mut fixtures: Vec<PathBuf> = fs::read_dir(Path::new(CRATE).join(folder))
        .unwrap()
        .map(|entry| PathBuf::from(folder).join(entry.unwrap().file_name()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    fixtures.sort();
    assert!(!fixtures.is_empty(), "no fixture in {folder}");
    fixtures
}

/// Compares with the text beside the fixture; returns whether it differs.
fn differs(fixture: &Path, actual: &str) -> bool {
    let expected_file = Path::new(CRATE).join(fixture).with_extension("txt");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&expected_file, actual).unwrap();
        return false;
    }
    let expected = fs::read_to_string(&expected_file).unwrap_or_default();
    if expected != actual {
        println!("{}:\n--- expected\n{expected}\n--- actual\n{actual}", fixture.display());
    }
    expected != actual
}

#[test]
fn every_mistake_is_reported_at_its_place() {
    let mut wrong = Vec::new();
    for fixture in fixtures("tests/invalid") {
        let error = match load(&fixture) {
            Err(error) => error,
            Ok(_) => panic!("{} was accepted", fixture.display()),
        };
        for mistake in error.mistakes() {
            // An explanation without a way out is half a report; syntax has the parser's words.
            let syntax = matches!(mistake.fault, config::Fault::Syntax { .. });
            assert!(syntax || mistake.help.is_some(), "{}: no help: {mistake}", fixture.display());
            let text = mistake.to_string();
            assert!(!text.ends_with('.') && !text.starts_with(char::is_uppercase), "{text}");
        }
        if differs(&fixture, &render(&error)) {
            wrong.push(fixture);
        }
    }
    assert!(wrong.is_empty(), "reports differ from the expected: {wrong:?}");
}

#[test]
fn every_expected_report_has_its_job_file() {
    for folder in ["tests/invalid", "tests/valid"] {
        for entry in fs::read_dir(Path::new(CRATE).join(folder)).unwrap() {
            let path = entry.unwrap().path();
            assert!(path.with_extension("toml").is_file(), "{} is left over", path.display());
        }
    }
}

#[test]
fn valid_job_files_make_the_expected_jobs() {
    let mut wrong = Vec::new();
    for fixture in fixtures("tests/valid") {
        let job = match load(&fixture) {
            Ok(job) => job,
            Err(error) => panic!("{}: {}", fixture.display(), render(&error)),
        };
        let toml = job.to_toml().unwrap();
        if differs(&fixture, &toml.replace(CRATE, "<config>")) {
            wrong.push(fixture);
        }
    }
    assert!(wrong.is_empty(), "jobs differ from the expected: {wrong:?}");
}

#[test]
fn written_jobs_read_back_the_same() {
    for fixture in fixtures("tests/valid") {
        let mut job = load(&fixture).unwrap();
        // What a folder holds beside its files is told of the folder, not of the files that stand for it.
        job.notes.clear();
        let again = from_text(&job.to_toml().unwrap(), &job.file, &[], &Surroundings::default()).unwrap();
        assert_eq!(again, job, "{}", fixture.display());
    }
}
