//! The input files that the items of `input.fasta` stand for: files, patterns, folders, standard input.
//!
//! It looks for files and checks that they can be opened; it reads none. What is in them is the reader's.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use glob::{MatchOptions, Pattern};

use crate::job::InputSource;
use crate::limits::{INPUT_FILES_MAX, NAMES_COMPARED_MAX};
use crate::mistake::{Fault, Objection};
use crate::suggestion::nearest;

const FASTA_ENDINGS: [&str; 5] = [".fa", ".fasta", ".faa", ".fas", ".fna"];
const COMPRESSED_ENDINGS: [&str; 4] = ["", ".gz", ".bgz", ".zst"];

impl fmt::Display for InputSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InputSource::Stdin => f.write_str("-"),
            InputSource::File(path) => path.display().fmt(f),
        }
    }
}

/// What one item stands for.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Sorted by name.
    pub(crate) sources: Vec<InputSource>,
    /// What stands beside them and is not read, in one sentence.
    pub(crate) left_out: Option<String>,
}

impl From<Vec<InputSource>> for Found {
    fn from(sources: Vec<InputSource>) -> Self {
        Self { sources, left_out: None }
    }
}

/// Finds what one item stands for. `folder`: what relative paths start from.
pub(crate) fn find(item: &str, folder: &Path) -> Result<Found, Objection> {
    if item == "-" {
        return Ok(vec![InputSource::Stdin].into());
    }
    let path = clean(folder, item);
    // A name that exists is that file, even if it could be read as a pattern.
    match fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => in_folder(path),
        Ok(metadata) => {
            // Opening a pipe would take its data or wait for its writer.
            if metadata.is_file() {
                File::open(&path).map_err(|error| unusable(&path, &error))?;
            }
            Ok(vec![InputSource::File(path)].into())
        }
        Err(_) if path.is_symlink() => Err(unfollowed(&path)),
        Err(_) if item.contains(['*', '?', '[']) => matching(item, folder).map(Found::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(no_such_file(path, item, folder)),
        Err(error) => Err(unusable(&path, &error)),
    }
}

/// Makes a typed path absolute and resolves its `.` and `..`.
///
/// A `..` after a symbolic link leads to the parent of the link's target, as it does for the system.
pub(crate) fn clean(folder: &Path, typed: impl AsRef<Path>) -> PathBuf {
    let mut path = PathBuf::new();
    for component in folder.join(typed).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                if path.is_symlink()
                    && let Ok(target) = path.canonicalize()
                {
                    path = target;
                }
                path.pop();
            }
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => path.push(component),
        }
    }
    path
}

/// The files of a folder that have names of FASTA files; folders in it are not looked into.
fn in_folder(folder: PathBuf) -> Result<Found, Objection> {
    let mut files = Vec::new();
    let mut others = Vec::new();
    for entry in fs::read_dir(&folder).map_err(|error| unusable(&folder, &error))? {
        let path = entry.map_err(|error| unusable(&folder, &error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Hidden files are not data: editors and file managers leave `._x.fasta`.
        if name.starts_with('.') {
            continue;
        }
        // A link's target counts.
        let is_folder = fs::metadata(&path).map(|metadata| metadata.is_dir());
        match is_folder {
            Ok(false) if is_fasta_name(&name) => files.push(path),
            Err(_) if is_fasta_name(&name) => return Err(unfollowed(&path)),
            Ok(true) => others.push(format!("{name}/")),
            Ok(false) | Err(_) => others.push(name.into_owned()),
        }
        check_count(files.len(), &folder.to_string_lossy())?;
    }
    if files.is_empty() {
        return Err(Objection::new(Fault::NoFastaInFolder { path: folder }, "no FASTA file in it").help(
            "looked for .fa, .fasta, .faa, .fas and .fna, plain or with .gz, .bgz or .zst; \
             for other names use a pattern such as \"folder/*.txt\"",
        ));
    }
    files.sort();
    Ok(Found {
        sources: files.into_iter().map(InputSource::File).collect(),
        left_out: left_out(&folder, others),
    })
}

/// Says which of the names in a folder are left out, those first that look most like data.
fn left_out(folder: &Path, mut names: Vec<String>) -> Option<String> {
    const NAMES_TOLD_MAX: usize = 5;
    if names.is_empty() {
        return None;
    }
    let has_ending = |name: &str| {
        let name = name.to_ascii_lowercase();
        FASTA_ENDINGS.iter().any(|ending| name.contains(ending))
    };
    names.sort_by_cached_key(|name| (!has_ending(name), name.clone()));
    let told = names.iter().take(NAMES_TOLD_MAX).map(|name| format!("`{}`", name.escape_debug()));
    let mut told = told.collect::<Vec<_>>().join(", ");
    if names.len() > NAMES_TOLD_MAX {
        told += &format!(" and {} more", names.len() - NAMES_TOLD_MAX);
    }
    let folder = folder.display();
    Some(format!("not read in folder `{folder}`, for their names are not those of FASTA files: {told}"))
}

/// Ends a search that finds ever more.
fn check_count(files: usize, item: &str) -> Result<(), Objection> {
    if files <= INPUT_FILES_MAX {
        return Ok(());
    }
    let what = format!("`{item}` stands for {files} files");
    let fault = Fault::TooMany { key: "input.fasta".to_owned(), what, max: INPUT_FILES_MAX };
    Err(Objection::new(fault, "too many files").help("join small files, or divide the job"))
}

fn is_fasta_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    !name.starts_with('.')
        && COMPRESSED_ENDINGS.iter().any(|compressed| {
            name.strip_suffix(compressed)
                .is_some_and(|stem| FASTA_ENDINGS.iter().any(|ending| stem.ends_with(ending)))
        })
}

fn matching(item: &str, folder: &Path) -> Result<Vec<InputSource>, Objection> {
    // The folder is a name, not a pattern: `run[1]/` above the job file must not match `run1/`.
    let pattern = if Path::new(item).is_absolute() {
        item.to_owned()
    } else {
        format!("{}/{item}", Pattern::escape(&folder.to_string_lossy()))
    };
    // glob's own `require_literal_leading_dot` panics on names that are not UTF-8: see `is_hidden_match`.
    let options = MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: false,
    };
    let paths = glob::glob_with(&pattern, options).map_err(|error| {
        let fault = Fault::MalformedPattern { pattern: item.to_owned(), reason: error.msg.to_owned() };
        Objection::new(fault, "cannot be read as a pattern")
            .help("* and ** match any names, ? one letter, [ab] one of several; [[] is a literal [")
    })?;
    let mut files = BTreeSet::new();
    for path in paths {
        let path = path.map_err(|error| unusable(error.path(), error.error()))?;
        if !is_hidden_match(&path, item, folder) && !path.is_dir() {
            fs::metadata(&path).map_err(|_| unfollowed(&path))?;
            files.insert(clean(folder, path));
            check_count(files.len(), item)?;
        }
    }
    if files.is_empty() {
        let pattern = folder.join(item).to_string_lossy().into_owned();
        return Err(Objection::new(Fault::NoMatch { pattern }, "matches no file")
            .help(format!("relative patterns start from {}", folder.display())));
    }
    files.extend(unnameable_siblings(&files, item)?);
    Ok(files.into_iter().map(InputSource::File).collect())
}

/// Tells whether a wildcard matched a name with a leading dot, which it does not in a shell.
fn is_hidden_match(path: &Path, item: &str, folder: &Path) -> bool {
    let is_literal = |part: &Component<'_>| !part.as_os_str().to_string_lossy().contains(['*', '?', '[']);
    let is_dotted = |part: Component<'_>| matches!(part, Component::Normal(name) if name.to_string_lossy().starts_with('.'));
    let literal: PathBuf = Path::new(item).components().take_while(is_literal).collect();
    let asked_for = Path::new(item).components().skip_while(is_literal).any(is_dotted);
    let matched = path.strip_prefix(folder.join(literal)).unwrap_or(path);
    !asked_for && matched.components().any(is_dotted)
}

/// Finds files beside the matched ones that the pattern would match but for a name that is not UTF-8: glob
/// passes them over, and nothing may be passed over in silence.
fn unnameable_siblings(files: &BTreeSet<PathBuf>, item: &str) -> Result<Vec<PathBuf>, Objection> {
    let Some(pattern) = item.rsplit('/').next().and_then(|last| Pattern::new(last).ok()) else {
        return Ok(Vec::new());
    };
    let folders: BTreeSet<&Path> = files.iter().filter_map(|file| file.parent()).collect();
    let mut unnameable = Vec::new();
    for folder in folders {
        for entry in fs::read_dir(folder).map_err(|error| unusable(folder, &error))? {
            let entry = entry.map_err(|error| unusable(folder, &error))?;
            let name = entry.file_name();
            if name.to_str().is_none() && pattern.matches(&name.to_string_lossy()) {
                unnameable.push(entry.path());
            }
        }
    }
    Ok(unnameable)
}

fn no_such_file(path: PathBuf, item: &str, folder: &Path) -> Objection {
    let near = path.parent().and_then(|parent| fs::read_dir(parent).ok()).and_then(|entries| {
        let names: Vec<String> = entries
            .flatten()
            .take(NAMES_COMPARED_MAX)
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        let wanted = path.file_name()?.to_string_lossy();
        nearest(&wanted, names.iter().map(String::as_str)).map(str::to_owned)
    });
    let help = match near {
        Some(near) => format!("did you mean `{near}`, in the same folder?"),
        None if Path::new(item).is_absolute() => "check the path".to_owned(),
        None => format!("relative paths start from {}", folder.display()),
    };
    Objection::new(Fault::NoSuchFile { path }, "no such file or folder").help(help)
}

/// For a path that is there and leads nowhere: a link to what is gone, or to what may not be looked at.
fn unfollowed(path: &Path) -> Objection {
    match (fs::metadata(path), fs::read_link(path)) {
        (Err(error), Ok(target)) if error.kind() == io::ErrorKind::NotFound => {
            let fault = Fault::DanglingLink { path: path.to_owned(), target };
            Objection::new(fault, "a link that leads nowhere")
                .help("bring back what it led to, or take the link away")
        }
        (Err(error), _) => unusable(path, &error),
        (Ok(_), _) => unusable(path, &io::ErrorKind::NotFound.into()),
    }
}

fn unusable(path: &Path, error: &io::Error) -> Objection {
    let reason = error.to_string().to_lowercase();
    Objection::new(Fault::Unusable { path: path.to_owned(), reason }, "cannot be read")
        .help("check the permissions of the file and of the folders above it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_of(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, ">a\nM\n").unwrap();
        }
        folder
    }

    /// Names relative to the folder.
    fn found(item: &str, folder: &tempfile::TempDir) -> Vec<String> {
        find(item, folder.path())
            .unwrap()
            .sources
            .into_iter()
            .map(|source| match source {
                InputSource::Stdin => "-".to_owned(),
                InputSource::File(path) => path.strip_prefix(folder.path()).unwrap().display().to_string(),
            })
            .collect()
    }

    #[test]
    fn folders_give_their_fasta_files_sorted() {
        let folder = folder_of(&[
            "d/b.fasta",
            "d/a.fa",
            "d/c.faa.gz",
            "d/d.fas.zst",
            "d/e.FNA.BGZ",
            "d/notes.txt",
            "d/x.gz",
            "d/._a.fasta",
            "d/deeper/z.fasta",
            "d/folder.fasta/y.fa",
        ]);
        assert_eq!(found("d", &folder), ["d/a.fa", "d/b.fasta", "d/c.faa.gz", "d/d.fas.zst", "d/e.FNA.BGZ"]);
        assert_eq!(found("d/../d/", &folder).len(), 5);
    }

    #[test]
    fn what_is_left_out_of_a_folder_is_named() {
        let folder = folder_of(&["d/a.fa", "d/._a.fasta", "d/b.txt", "d/deeper/z.fasta", "d/z.fasta.xz"]);
        let left_out = || find("d", folder.path()).unwrap().left_out.unwrap();
        assert!(
            left_out().ends_with("not those of FASTA files: `z.fasta.xz`, `b.txt`, `deeper/`"),
            "{}",
            left_out()
        );
        for number in 0..10 {
            fs::write(folder.path().join(format!("d/{number}.pep")), "").unwrap();
        }
        assert!(
            left_out().ends_with(": `z.fasta.xz`, `0.pep`, `1.pep`, `2.pep`, `3.pep` and 8 more"),
            "{}",
            left_out()
        );
        assert!(left_out().contains(&folder.path().join("d").display().to_string()));
        let folder = folder_of(&["d/a.fa", "d/.hidden"]);
        assert_eq!(find("d", folder.path()).unwrap().left_out, None);
    }

    #[cfg(unix)]
    #[test]
    fn links_that_lead_nowhere_are_refused_however_they_are_named() {
        let folder = folder_of(&["d/a.fa"]);
        let link = folder.path().join("d/b.fasta");
        std::os::unix::fs::symlink("gone.fasta", &link).unwrap();
        for item in ["d", "d/*.fasta", "d/*", "d/b.fasta"] {
            let objection = find(item, folder.path()).unwrap_err();
            let target = PathBuf::from("gone.fasta");
            assert_eq!(objection.fault, Fault::DanglingLink { path: link.clone(), target }, "{item}");
            assert!(!objection.help.unwrap().contains("did you mean"));
        }
        assert_eq!(found("d/*.fa", &folder), ["d/a.fa"]);
        // One under another name is left out of the folder like other files.
        fs::rename(&link, folder.path().join("d/notes")).unwrap();
        assert!(find("d", folder.path()).unwrap().left_out.unwrap().ends_with("`notes`"));
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_among_the_files_is_no_reason_to_leave_it_out() {
        let folder = folder_of(&["d/a.fa"]);
        let made = std::process::Command::new("mkfifo").arg(folder.path().join("d/b.fasta")).status();
        assert!(made.unwrap().success());
        // Whoever reads the input refuses it.
        assert_eq!(found("d", &folder), ["d/a.fa", "d/b.fasta"]);
    }

    #[test]
    fn folders_without_fasta_are_refused() {
        let folder = folder_of(&["d/notes.txt"]);
        let fault = find("d", folder.path()).unwrap_err().fault;
        assert_eq!(fault, Fault::NoFastaInFolder { path: folder.path().join("d") });
    }

    #[test]
    fn patterns_match_files_sorted_and_no_hidden_ones() {
        let folder = folder_of(&["b.faa", "a.faa", ".c.faa", ".git/g.faa", "sub/d.faa", "e.faa/f"]);
        assert_eq!(found("*.faa", &folder), ["a.faa", "b.faa"]);
        assert_eq!(found("**/*.faa", &folder), ["a.faa", "b.faa", "sub/d.faa"]);
        assert_eq!(found("[ab].faa", &folder), ["a.faa", "b.faa"]);
        assert_eq!(found(".*.faa", &folder), [".c.faa"]);
        assert_eq!(found("./sub/../?.faa", &folder), ["a.faa", "b.faa"]);
        assert!(matches!(find("*.fna", folder.path()).unwrap_err().fault, Fault::NoMatch { .. }));
        assert!(matches!(find("a***", folder.path()).unwrap_err().fault, Fault::MalformedPattern { .. }));
    }

    #[test]
    fn brackets_in_names_and_in_folders_above_are_literal() {
        let folder = folder_of(&["run[1]/x[2].fasta", "run[1]/y.fasta", "run1/z.fasta"]);
        let inside = folder.path().join("run[1]");
        assert_eq!(
            find("x[2].fasta", &inside).unwrap().sources,
            [InputSource::File(inside.join("x[2].fasta"))]
        );
        assert_eq!(find("?.fasta", &inside).unwrap().sources, [InputSource::File(inside.join("y.fasta"))]);
    }

    #[test]
    fn missing_files_name_the_nearest() {
        let folder = folder_of(&["proteins.fasta"]);
        let objection = find("protein.fasta", folder.path()).unwrap_err();
        assert_eq!(objection.fault, Fault::NoSuchFile { path: folder.path().join("protein.fasta") });
        assert_eq!(objection.help.unwrap(), "did you mean `proteins.fasta`, in the same folder?");
    }

    #[test]
    fn a_search_ends_at_the_limit() {
        assert!(check_count(INPUT_FILES_MAX, "*.fa").is_ok());
        let fault = check_count(INPUT_FILES_MAX + 1, "*.fa").unwrap_err().fault.to_string();
        assert_eq!(fault, "`input.fasta`: `*.fa` stands for 100001 files, more than 100000");
    }

    #[test]
    fn standard_input_is_a_dash() {
        assert_eq!(find("-", Path::new("/")).unwrap().sources, [InputSource::Stdin]);
    }

    #[cfg(unix)]
    #[test]
    fn parent_of_a_link_is_the_parent_of_its_target() {
        let folder = folder_of(&["deep/er/a.fasta", "deep/b.fasta", "b.fasta"]);
        let root = folder.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(root.join("deep/er"), root.join("link")).unwrap();
        assert_eq!(clean(&root, "link/../b.fasta"), root.join("deep/b.fasta"));
        assert_eq!(clean(&root, "link/a.fasta"), root.join("link/a.fasta"));
        assert_eq!(clean(&root, "gone/.././b.fasta"), root.join("b.fasta"));
        assert_eq!(clean(&root, "../../../../../../../x"), Path::new("/x"));
    }
}
