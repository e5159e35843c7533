//! Loading a job: the one way in. Reads the file, then parse, override, decode, resolve.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use crate::decoder::decode;
use crate::document::{Document, Source};
use crate::inputs::clean;
use crate::job::Job;
use crate::job_file::JobFile;
use crate::limits::JOB_FILE_BYTES_MAX;
use crate::mistake::ConfigError;
use crate::overrides::{apply_environment, apply_flags};
use crate::resolver::resolve;
use crate::surroundings::Surroundings;

/// Loads a job file with the `key=value` texts of `--set`, in the surroundings of this process.
///
/// Precedence: a later override, an earlier one, the environment (`VIRNUCPRO_ORCH_MODEL_LAYER` for
/// `model.layer`), the file, the default. Relative paths resolve against the job file's folder; those in
/// overrides and in the environment against the current folder.
///
/// # Errors
/// The file cannot be read, is not TOML, or says something that cannot be done; the error points at it.
pub fn load(path: &Path, overrides: &[String]) -> Result<Job, ConfigError> {
    let around = Surroundings::of_process()?;
    let unreadable = |source: io::Error| ConfigError::Unreadable {
        path: path.to_owned(),
        help: match source.kind() {
            io::ErrorKind::NotFound => Some("`virnucpro-orch init` writes one".to_owned()),
            io::ErrorKind::IsADirectory => Some("name the file in it, for instance job.toml".to_owned()),
            io::ErrorKind::InvalidData => Some("a job file is UTF-8 text".to_owned()),
            io::ErrorKind::FileTooLarge => {
                Some("is it a job file? many inputs are better named by a folder or a pattern".to_owned())
            }
            _ => None,
        },
        source,
    };
    let text = read(path).map_err(unreadable)?;
    from_text(&text, path, overrides, &around)
}

/// Reads a whole job file, but no endless one.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(JOB_FILE_BYTES_MAX + 1).read_to_string(&mut text);
    // What is cut in the middle of a letter is no UTF-8 either: the size comes first.
    if text.len() as u64 > JOB_FILE_BYTES_MAX || fs::metadata(path)?.len() > JOB_FILE_BYTES_MAX {
        let text = format!("it is larger than {JOB_FILE_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    read.map(|_| text)
}

/// Loads a job from the text of a job file. `path`: where it stands, absolute or below the current folder.
///
/// # Errors
/// As [`load`], but for reading the file.
pub fn from_text(
    text: &str,
    path: &Path,
    overrides: &[String],
    around: &Surroundings,
) -> Result<Job, ConfigError> {
    let name = path.display().to_string();
    let file = clean(&around.current_folder, path);
    if file.to_str().is_none() {
        // A job is written out as text, which cannot hold every name the system allows.
        return Err(ConfigError::Unreadable {
            path: file,
            help: Some("rename it, or the folder above it that is not".to_owned()),
            source: io::Error::new(io::ErrorKind::InvalidInput, "its name is not UTF-8"),
        });
    }
    let folder = file.parent().unwrap_or(&file).to_owned();
    let mut document = Document::parse(Source { name: name.clone(), text: Arc::from(text), folder })?;
    apply_environment(&mut document, around)?;
    apply_flags(&mut document, overrides, around)?;
    let typed = decode(&document)?;
    resolve(file, &typed, &document, around).map_err(|mistakes| ConfigError::from_mistakes(&name, mistakes))
}

impl Job {
    /// Writes the job out as a job file in which every key is typed. Read again, it gives the same job but for
    /// the name of its file and the notes.
    ///
    /// # Errors
    /// None for a job that was loaded: the type is that of the TOML writer.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(&JobFile::from(self))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;
    use crate::job::{DeviceChoice, InputSource, Layer, ModelSource};
    use crate::limits::MISTAKES_MAX;
    use crate::{Fault, demo, keys, template};

    /// A folder with one protein file, as current folder, and no variables.
    fn folder() -> (tempfile::TempDir, Surroundings) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("proteins.fasta"), ">a\nMKV\n").unwrap();
        let around = Surroundings { current_folder: folder.path().to_owned(), variables: BTreeMap::new() };
        (folder, around)
    }

    const SMALLEST: &str = "input.fasta = \"proteins.fasta\"\noutput.directory = \"results\"\n";

    /// Removes the `#` before commented keys and leaves prose alone.
    fn uncommented(template: &str) -> String {
        let line = |line: &str| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => format!("{rest}\n"),
            _ => format!("{line}\n"),
        };
        template.lines().map(line).collect()
    }

    #[test]
    fn template_shows_every_key_at_its_default() {
        let (_folder, around) = folder();
        let job = |text: &str| from_text(text, Path::new("job.toml"), &[], &around).unwrap();
        let all = uncommented(template());
        let table: toml::Table = all.parse().unwrap();
        for key in keys() {
            let (section, last) = key.split_once('.').unwrap();
            assert!(table[section].as_table().unwrap().contains_key(last), "{key} is not in the template");
        }
        assert_eq!(job(&all), job(SMALLEST));
        assert_eq!(job(template()), job(SMALLEST));
        assert_eq!(template().lines().next(), Some("#:schema ./job.schema.json"));
    }

    #[test]
    fn demo_job_reads_its_proteins_and_writes_to_the_clones_results() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/job.toml");
        let job = from_text(demo::JOB, &file, &[], &Surroundings::default()).unwrap();
        assert_eq!(job.input.fasta, [InputSource::File(file.with_file_name("proteins.fasta"))]);
        assert_eq!(job.model.source, ModelSource::Demo);
        let clone = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        assert_eq!(job.output.directory, clone.join("results/demo"));
        assert_eq!(job.devices.choice, DeviceChoice::Auto);
    }

    #[test]
    fn later_overrides_win_over_earlier_environment_file_and_default() {
        let (_folder, mut around) = folder();
        let layer = |text: &str, overrides: &[&str], around: &Surroundings| {
            let overrides: Vec<String> = overrides.iter().map(|&typed| typed.to_owned()).collect();
            from_text(text, Path::new("job.toml"), &overrides, around).unwrap().model.layer
        };
        let typed = format!("{SMALLEST}model.layer = 1\n");
        assert_eq!(layer(SMALLEST, &[], &around), Layer::Last);
        assert_eq!(layer(&typed, &[], &around), Layer::Index(1));
        around.variables.insert("VIRNUCPRO_ORCH_MODEL_LAYER".to_owned(), "2".to_owned());
        assert_eq!(layer(&typed, &[], &around), Layer::Index(2));
        assert_eq!(layer(&typed, &["model.layer=3"], &around), Layer::Index(3));
        assert_eq!(layer(&typed, &["model.layer=3", " model.layer = 4 "], &around), Layer::Index(4));
        assert_eq!(layer(&typed, &["model.layer=last"], &around), Layer::Last);
        assert_eq!(layer(&typed, &["model.layer=\"last\""], &around), Layer::Last);
    }

    #[test]
    fn paths_start_from_where_they_were_typed() {
        let (folder, mut around) = folder();
        let job_folder = folder.path().join("jobs");
        fs::create_dir(&job_folder).unwrap();
        fs::write(job_folder.join("other.fasta"), ">b\nM\n").unwrap();
        let text = "input.fasta = \"other.fasta\"\noutput.directory = \"results\"\n";
        let job = |overrides: &[String], around: &Surroundings| {
            from_text(text, Path::new("jobs/job.toml"), overrides, around).unwrap()
        };
        let plain = job(&[], &around);
        assert_eq!(plain.file, job_folder.join("job.toml"));
        assert_eq!(plain.input.fasta, [InputSource::File(job_folder.join("other.fasta"))]);
        assert_eq!(plain.output.directory, job_folder.join("results"));
        let set = job(&["input.fasta=proteins.fasta".to_owned()], &around);
        assert_eq!(set.input.fasta, [InputSource::File(folder.path().join("proteins.fasta"))]);
        assert_eq!(set.output.directory, job_folder.join("results"));
        around.variables.insert("VIRNUCPRO_ORCH_OUTPUT_DIRECTORY".to_owned(), "out".to_owned());
        assert_eq!(job(&[], &around).output.directory, folder.path().join("out"));
    }

    #[test]
    fn bare_words_stand_for_text_and_lists() {
        let (folder, around) = folder();
        let job =
            |typed: &str| from_text(SMALLEST, Path::new("job.toml"), &[typed.to_owned()], &around).unwrap();
        let directory = |typed: &str| {
            let directory = job(&format!("output.directory={typed}")).output.directory;
            directory.strip_prefix(folder.path()).unwrap().to_str().unwrap().to_owned()
        };
        assert_eq!(directory("runs/first"), "runs/first");
        assert_eq!(directory("\"runs/first\""), "runs/first");
        assert_eq!(directory("2026"), "2026");
        assert_eq!(directory("007"), "007");
        assert_eq!(directory("1.50"), "1.50");
        assert_eq!(directory("2026-01-01"), "2026-01-01");
        assert_eq!(directory("true"), "true");
        assert_eq!(directory("5#1"), "5#1");
        assert_eq!(directory("a=b"), "a=b");
        assert_eq!(directory("größe"), "größe");
        let devices = |typed: &str| job(&format!("devices.use={typed}")).devices.choice;
        assert_eq!(devices("auto"), DeviceChoice::Auto);
        assert_eq!(devices("sim:2"), devices("[\"sim:2\"]"));
        let read = |typed: &str| job(&format!("input.fasta={typed}")).input.fasta;
        assert_eq!(read("-"), [InputSource::Stdin]);
        assert_eq!(read("[p]*.fasta"), read("proteins.fasta"));
        assert_eq!(job("telemetry.log=warn,actors=debug").telemetry.log, "warn,actors=debug");
    }

    #[test]
    fn byte_order_mark_and_crlf_are_read() {
        let (_folder, around) = folder();
        let job = |text: &str| from_text(text, Path::new("job.toml"), &[], &around);
        let windows = format!("\u{feff}{}", SMALLEST.replace('\n', "\r\n"));
        assert_eq!(job(&windows).unwrap(), job(SMALLEST).unwrap());
        // The mark takes three bytes: spans must count them.
        let error = job(&windows.replace("results", "")).unwrap_err();
        assert_eq!(error.mistakes()[0].pointed_at(), "\"\"");
    }

    #[test]
    fn job_files_have_a_bounded_size() {
        let (folder, _) = folder();
        let path = folder.path().join("job.toml");
        fs::write(&path, [b"#", vec![b' '; JOB_FILE_BYTES_MAX as usize - 1].as_slice()].concat()).unwrap();
        assert!(matches!(load(&path, &[]), Err(ConfigError::Mistake(_) | ConfigError::Mistakes { .. })));
        // Cut at the limit, the last letter would not be UTF-8.
        fs::write(&path, "é".repeat(JOB_FILE_BYTES_MAX as usize / 2 + 1)).unwrap();
        let endless = Path::new("/dev/zero");
        for path in [path.as_path(), endless] {
            let ConfigError::Unreadable { source, help, .. } = load(path, &[]).unwrap_err() else { panic!() };
            assert_eq!(source.to_string(), "it is larger than 4194304 bytes");
            assert!(help.is_some());
        }
    }

    #[test]
    fn many_mistakes_are_reported_in_part() {
        let (_folder, around) = folder();
        for (key, other) in [("input.fasta", "devices.use"), ("devices.use", "input.fasta")] {
            let list = "\"gone\", ".repeat(if key == "input.fasta" { 50_000 } else { 1_000 });
            let other = if other == "input.fasta" { "input.fasta = \"proteins.fasta\"" } else { "" };
            let text = format!("{key} = [{list}]\n{other}\noutput.directory = \"results\" # no line end");
            let error = from_text(&text, Path::new("job.toml"), &[], &around).unwrap_err();
            assert_eq!(error.mistakes().len(), MISTAKES_MAX, "{key}");
        }
    }

    #[test]
    fn lists_have_a_bounded_length() {
        let (_folder, around) = folder();
        let error = |text: &str| from_text(text, Path::new("job.toml"), &[], &around).unwrap_err();
        let devices = "\"cuda:0\", ".repeat(1_025);
        let error_of_devices = error(&format!("{SMALLEST}devices.use = [{devices}]"));
        assert_eq!(error_of_devices.to_string(), "`devices.use`: a list of 1025 items, more than 1024");
        let inputs = "\"a\", ".repeat(100_001);
        let error_of_inputs = error(&format!("input.fasta = [{inputs}]\noutput.directory = \"results\"\n"));
        assert_eq!(error_of_inputs.to_string(), "`input.fasta`: a list of 100001 items, more than 100000");
    }

    #[test]
    fn all_mistakes_of_a_job_are_reported_at_once() {
        let (_folder, around) = folder();
        let text = "input.fasta = [\"gone.fasta\", \"lost.fasta\"]\noutput.directory = \"\"\n\
                    packing.token_budget = 1\ndevices.use = [\"tpu\", \"cpu:1\"]\n";
        let error = from_text(text, Path::new("job.toml"), &[], &around).unwrap_err();
        let places: Vec<&str> = error.mistakes().iter().map(|mistake| mistake.pointed_at()).collect();
        assert_eq!(places, ["\"gone.fasta\"", "\"lost.fasta\"", "1", "\"\"", "\"tpu\"", "\"cpu:1\""]);
        assert_eq!(error.to_string(), "6 mistakes in job `job.toml`");
    }

    #[cfg(unix)]
    #[test]
    fn one_file_by_two_names_is_listed_twice() {
        let (folder, around) = folder();
        std::os::unix::fs::symlink("proteins.fasta", folder.path().join("link.fasta")).unwrap();
        let text = "input.fasta = [\"proteins.fasta\", \"link.fasta\"]\noutput.directory = \"results\"\n";
        let error = from_text(text, Path::new("job.toml"), &[], &around).unwrap_err();
        assert!(matches!(error.mistakes()[0].fault, Fault::Twice { .. }), "{error}");
        assert_eq!(error.mistakes()[0].pointed_at(), "\"link.fasta\"");
    }

    #[cfg(unix)]
    #[test]
    fn names_that_are_not_utf8_are_refused() {
        use std::os::unix::ffi::OsStrExt;
        let (folder, around) = folder();
        let name = std::ffi::OsStr::from_bytes(b"x\xff.fasta");
        if fs::write(folder.path().join(name), ">a\nM\n").is_err() {
            println!("skipped: this file system takes UTF-8 names only");
            return;
        }
        for item in [".", "*.fasta"] {
            let text = format!("input.fasta = \"{item}\"\noutput.directory = \"results\"\n");
            let error = from_text(&text, Path::new("job.toml"), &[], &around).unwrap_err();
            assert!(matches!(error.mistakes()[0].fault, Fault::Unusable { .. }), "{item}: {error}");
        }
    }

    #[test]
    fn names_that_look_like_variables_survive_being_written() {
        let (folder, around) = folder();
        fs::write(folder.path().join("${x}[1]*.fasta"), ">a\nM\n").unwrap();
        let text = "input.fasta = \"$${x}[1]*.fasta\"\noutput.directory = \"results\"\n";
        let job = from_text(text, Path::new("job.toml"), &[], &around).unwrap();
        let again = from_text(&job.to_toml().unwrap(), Path::new("job.toml"), &[], &around).unwrap();
        assert_eq!(again, job);
        assert_eq!(job.input.fasta, [InputSource::File(folder.path().join("${x}[1]*.fasta"))]);
    }

    #[cfg(unix)]
    #[test]
    fn job_files_whose_name_is_not_utf8_are_refused() {
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(std::ffi::OsStr::from_bytes(b"x\xff/job.toml"));
        let error = from_text(SMALLEST, path, &[], &folder().1).unwrap_err();
        assert!(matches!(error, ConfigError::Unreadable { .. }), "{error}");
    }

    #[test]
    fn damaged_jobs_are_reported_and_never_panic() {
        let (_folder, around) = folder();
        let text = uncommented(template());
        let report = |text: &str, overrides: &[String]| {
            if let Err(error) = from_text(text, Path::new("job.toml"), overrides, &around) {
                // Drawing a report cuts the text at its spans: a span inside a letter would show here.
                let report = format!("{:?}", miette::Report::new(error));
                assert!(!report.is_empty());
            }
        };
        let letters: Vec<(usize, char)> = text.char_indices().collect();
        // Every 7th place of each kind keeps the test short and still meets every line.
        for (index, (at, letter)) in letters.iter().enumerate().filter(|(index, _)| index % 7 == 0) {
            report(&text[..*at], &[]);
            let damage = ["", "é", "\"", "[", "${", "\0", "\u{feff}", "\r", "𝄞=", "#"][index / 7 % 10];
            let damaged = format!("{}{damage}{}", &text[..*at], &text[at + letter.len_utf8()..]);
            report(&damaged, &[]);
        }
        let deep = "[".repeat(100_000);
        report(&format!("a = {deep}"), &[]);
        let dotted = "a.".repeat(10_000);
        for line in [format!("{dotted}a = 1"), format!("[{dotted}a]"), format!("a = {{ {dotted}a = 1 }}")] {
            report(&line, &[]);
            report(SMALLEST, &[format!("model.layer={line}")]);
        }
        // A mistake on every line.
        report(&"=\n".repeat(100_000), &[]);
        for typed in [
            "",
            "=",
            "é=é",
            "input.fasta",
            "input.fasta=\"é",
            "input.fasta=${é",
            "input.fasta=[\"é\", 1]",
            ".=.",
            "model.layer.x=1",
            "model.layer=\n",
            "model.layer=1\n2",
            " = ",
            "𝄞",
            "devices.use=sim:é",
            "devices.use=cuda:é",
            "output.directory=\0",
            "model.source=𝄞/𝄞",
            "input.fasta=[é]*[",
        ] {
            report(SMALLEST, &[typed.to_owned()]);
            report("é", &[typed.to_owned()]);
        }
        report(SMALLEST, &[format!("model.layer={deep}")]);
    }

    #[test]
    fn unreadable_job_files_are_named_with_a_way_out() {
        let (folder, _) = folder();
        let help = |path: PathBuf| match load(&path, &[]) {
            Err(ConfigError::Unreadable { help, path: named, .. }) => {
                assert_eq!(named, path);
                help.unwrap()
            }
            other => panic!("{other:?}"),
        };
        assert!(help(folder.path().join("job.toml")).contains("init"));
        assert!(help(folder.path().to_owned()).contains("job.toml"));
        let latin = folder.path().join("latin.toml");
        fs::write(&latin, b"# Gr\xf6\xdfe\n").unwrap();
        assert!(help(latin).contains("UTF-8"));
    }
}
