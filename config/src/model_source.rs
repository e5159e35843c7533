//! `model.source`: which of the ways to name a model was meant.
//!
//! It looks whether files and folders exist and opens none of them.

use std::fmt;
use std::path::Path;

use crate::inputs::clean;
use crate::job::ModelSource;
use crate::mistake::{Fault, Objection};
use crate::suggestion::nearest;

const KEY: &str = "model.source";
const ALLOWED: &str = "allowed: \"demo\", a folder in Hugging Face layout, a .safetensors file, a fair-esm .pt file, \
                       or a hub name such as \"facebook/esm2_t33_650M_UR50D\"";

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelSource::Demo => f.write_str("demo"),
            ModelSource::Folder(path) | ModelSource::Safetensors(path) | ModelSource::FairEsm(path) => {
                path.display().fmt(f)
            }
            ModelSource::Hub(name) => f.write_str(name),
        }
    }
}

/// Decides what the expanded text means. `typed`: before expansion; `folder`: what relative paths start from.
pub(crate) fn parse(typed: &str, expanded: &str, folder: &Path) -> Result<ModelSource, Objection> {
    if expanded == "demo" {
        return Ok(ModelSource::Demo);
    }
    let path = clean(folder, expanded);
    if path.is_dir() {
        return Ok(ModelSource::Folder(path));
    }
    let ending = |ending: &str| expanded.to_ascii_lowercase().ends_with(ending);
    if ending(".safetensors") || ending(".pt") {
        if !path.is_file() {
            return Err(Objection::new(Fault::NoSuchFile { path }, "no such file").help(format!(
                "relative paths start from {}; a folder or a hub name would do too",
                folder.display()
            )));
        }
        return Ok(if ending(".pt") { ModelSource::FairEsm(path) } else { ModelSource::Safetensors(path) });
    }
    let unknown = |label: &str| {
        Objection::new(Fault::UnknownValue { key: KEY.to_owned(), value: expanded.to_owned() }, label)
    };
    if path.is_file() {
        return Err(unknown("this file is neither .safetensors nor .pt").help(ALLOWED));
    }
    if is_hub_name(expanded) {
        return Ok(ModelSource::Hub(expanded.to_owned()));
    }
    let looks_like_path = typed.starts_with(['.', '/', '~'])
        || expanded.starts_with('/')
        || expanded.ends_with('/')
        || expanded.matches('/').count() > 1;
    if looks_like_path {
        return Err(Objection::new(Fault::NoSuchFolder { path }, "no such folder").help(ALLOWED));
    }
    Err(match nearest(expanded, ["demo"]) {
        Some(near) => unknown("not a model").help(format!("{ALLOWED}; did you mean `{near}`?")),
        None => unknown("not a model").help(ALLOWED),
    })
}

/// `organisation/name` of letters, digits, `-`, `_` and `.`, neither part beginning with a dot.
fn is_hub_name(text: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    text.split_once('/').is_some_and(|(organisation, name)| part(organisation) && part(name))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn each_way_to_name_a_model_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("facebook/local")).unwrap();
        for file in ["a.safetensors", "b.pt", "C.PT", "notes.txt"] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        let source = |typed: &str| parse(typed, typed, folder.path());
        let at = |name: &str| folder.path().join(name);
        assert_eq!(source("demo").unwrap(), ModelSource::Demo);
        assert_eq!(source("a.safetensors").unwrap(), ModelSource::Safetensors(at("a.safetensors")));
        assert_eq!(source("./b.pt").unwrap(), ModelSource::FairEsm(at("b.pt")));
        assert_eq!(source("C.PT").unwrap(), ModelSource::FairEsm(at("C.PT")));
        assert_eq!(source("facebook").unwrap(), ModelSource::Folder(at("facebook")));
        // A folder that exists wins over a hub name that is spelt alike.
        assert_eq!(source("facebook/local").unwrap(), ModelSource::Folder(at("facebook/local")));
        let hub = "facebook/esm2_t33_650M_UR50D";
        assert_eq!(source(hub).unwrap(), ModelSource::Hub(hub.to_owned()));
        for typed in ["./x", "../gone/x", "/x/y", "~/x", "a/b/c", "models/"] {
            assert!(matches!(source(typed).unwrap_err().fault, Fault::NoSuchFolder { .. }), "{typed}");
        }
        for typed in ["gone.safetensors", "gone.pt", "org/gone.pt"] {
            assert!(matches!(source(typed).unwrap_err().fault, Fault::NoSuchFile { .. }), "{typed}");
        }
        for typed in ["esm2", "notes.txt", "a b/c", "org/.hidden"] {
            assert!(matches!(source(typed).unwrap_err().fault, Fault::UnknownValue { .. }), "{typed}");
        }
        assert!(source("dmeo").unwrap_err().help.unwrap().ends_with("did you mean `demo`?"));
    }
}
