//! The last words of a run: what was done, how fast, and where it is.

use std::path::Path;

use actors::Snapshot;
use actors::manifest::{Manifest, ResultFolder};

use crate::progress::{duration, grouped};

/// Says how a finished run went, on standard error.
pub(crate) fn print(folder: &ResultFolder, manifest: &Manifest, snapshot: &Snapshot) {
    let totals = &manifest.totals;
    let counts = &manifest.counts;
    let line = |name: &str, text: String| crate::stderr::say(format_args!("  {name:<10} {text}"));
    crate::stderr::say(format_args!("done"));
    let resumed = match snapshot.records_resumed {
        0 => String::new(),
        resumed => format!(" ({} from earlier sessions)", grouped(resumed)),
    };
    let residues = grouped(totals.residues);
    line("sequences", format!("{}, {residues} residues{resumed}", grouped(totals.rows)));
    line(
        "speed",
        format!(
            "{} tokens/s ({} tokens in {})",
            grouped(snapshot.tokens_per_s as u64),
            grouped(snapshot.tokens_computed),
            duration(snapshot.elapsed_s)
        ),
    );
    let fill = &snapshot.fill;
    line(
        "batches",
        format!(
            "{}, {:.1} % full, {:.1} % padding avoided",
            grouped(fill.batches),
            100.0 * fill.mean(),
            100.0 * fill.padding_avoided()
        ),
    );
    if snapshot.restarts > 0 {
        line("restarts", snapshot.restarts.to_string());
    }
    if counts.truncated > 0 {
        line(
            "truncated",
            format!("{} sequences (column `length` exceeds max_residues)", grouped(counts.truncated)),
        );
    }
    if counts.pooled_first > 0 {
        line("pooled", format!("{} sequences over their first max_residues", grouped(counts.pooled_first)));
    }
    let cleaned = [
        (counts.unknown_letters, "unknown letters as <unk>"),
        (counts.stops_removed, "trailing * removed"),
        (counts.gap_letters_removed, "gap letters removed"),
        (counts.lower_case_letters, "lower-case letters"),
    ];
    let cleaned: Vec<String> = cleaned
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{} {what}", grouped(*count)))
        .collect();
    if !cleaned.is_empty() {
        line("letters", cleaned.join(", "));
    }
    line("failed", failed(folder, totals.failed));
    line("result", shown(&folder.embeddings()));
}

fn failed(folder: &ResultFolder, failed: u64) -> String {
    match failed {
        0 => "0".to_owned(),
        failed => format!("{}, listed in {}", grouped(failed), shown(&folder.failed())),
    }
}

/// A path as short as it can be typed here.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}
