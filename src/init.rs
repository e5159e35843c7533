//! The command `init`: a commented job file to start from, or the demonstration.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::cli::InitArguments;
use crate::failure::{Exit, Failure};

/// Where the demo job in the repository puts its results.
const DEMO_RESULTS: &str = "../../results/demo";

pub(crate) fn init(arguments: &InitArguments) -> Result<Exit, Failure> {
    let folder = &arguments.folder;
    std::fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
    // In the repository the demo's results go outside the source folder; here they go beside the job.
    let demo_job = config::demo::JOB.replace(DEMO_RESULTS, "results");
    let job = if arguments.demo { demo_job.as_str() } else { config::template() };
    let mut files = vec![("job.toml", job), ("job.schema.json", config::SCHEMA)];
    if arguments.demo {
        files.push(("proteins.fasta", config::demo::PROTEINS));
    }
    for (name, text) in files {
        write(&folder.join(name), text, arguments.force)?;
    }
    let job = folder.join("job.toml");
    if arguments.demo {
        crate::stderr::say(format_args!("next: virnucpro-orch run {}", job.display()));
    } else {
        crate::stderr::say(format_args!("next: edit {0}, then: virnucpro-orch plan {0}", job.display()));
    }
    Ok(Exit::Done)
}

fn write(path: &Path, text: &str, force: bool) -> Result<(), Failure> {
    let mut options = File::options();
    options.write(true);
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    match options.open(path).and_then(|mut file| file.write_all(text.as_bytes())) {
        Ok(()) => crate::stdout::print(&format!("{}\n", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let text = format!("`{}` exists", path.display());
            Err(Failure::new(Exit::Usage, text).hint("--force overwrites it"))
        }
        Err(error) => Err(failed(path, &error)),
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("failed to write `{}`: {error}", path.display()))
}
