//! Faults on purpose: named points of the orchestrator at which a test makes it fail.
//!
//! A programme in the environment variable [`VARIABLE`] names them; without it a point costs one look at
//! a static. Simulated devices have faults of their own, see [`kernels::sim`]. Nothing here is used by
//! anything but tests, through the real executable.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Environment variable that holds the programme: `POINT:NUMBER=KIND`, separated by `;`.
///
/// `packer:5=panic;file-operation:17=abort`: the packer panics at its sixth message, and the process
/// aborts right after the eighteenth operation on files. Kinds are `panic` and `abort`; numbers count from 0.
/// `writer-thread:3=delay-200` holds the point up for 200 ms, from its fourth passing on; only threads may be held up.
/// `file-trace=PATH` appends a line to PATH for each operation on files: what, then the names, by tabs.
/// `telemetry=off` tells telemetry nothing: a benchmark measures what it costs.
pub const VARIABLE: &str = "VIRNUCPRO_FAULTS";

/// What happens at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Panic,
    Abort,
    /// From then on.
    Delay(Duration),
}

#[derive(Debug)]
struct Fault {
    point: String,
    number: u64,
    kind: Kind,
    passed: AtomicU64,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a fault like `packer:5=panic`");
        let (place, kind) = text.split_once('=').ok_or_else(wrong)?;
        let (point, number) = place.split_once(':').ok_or_else(wrong)?;
        let kind = match kind.trim() {
            "panic" => Kind::Panic,
            "abort" => Kind::Abort,
            other => {
                let ms = other.strip_prefix("delay-").and_then(|ms| ms.parse().ok());
                Kind::Delay(Duration::from_millis(ms.ok_or_else(wrong)?))
            }
        };
        let number = number.trim().parse().map_err(|_| wrong())?;
        Ok(Self { point: point.trim().to_owned(), number, kind, passed: AtomicU64::new(0) })
    }
}

/// All that the variable asks for.
#[derive(Debug, Default)]
struct Programme {
    faults: Vec<Fault>,
    trace: Option<File>,
    without_telemetry: bool,
}

fn parse(text: &str) -> Result<Programme, String> {
    let mut programme = Programme::default();
    for text in text.split(';').map(str::trim).filter(|text| !text.is_empty()) {
        if text == "telemetry=off" {
            programme.without_telemetry = true;
            continue;
        }
        match text.strip_prefix("file-trace=") {
            Some(path) => {
                let file = File::options().create(true).append(true).open(path);
                programme.trace = Some(file.map_err(|error| format!("`{path}`: {error}"))?);
            }
            None => programme.faults.push(text.parse()?),
        }
    }
    Ok(programme)
}

fn programme() -> &'static Programme {
    static PROGRAMME: OnceLock<Programme> = OnceLock::new();
    PROGRAMME.get_or_init(|| {
        let text = std::env::var(VARIABLE).unwrap_or_default();
        #[expect(clippy::panic, reason = "a test with a misspelt fault must not pass")]
        parse(&text).unwrap_or_else(|error| panic!("{VARIABLE}: {error}"))
    })
}

/// Passes a point: fails here if the programme says so.
///
/// # Panics
/// On purpose, and for a programme that cannot be understood.
pub fn point(name: &str) {
    for fault in programme().faults.iter().filter(|fault| fault.point == name) {
        let passed = fault.passed.fetch_add(1, Ordering::Relaxed);
        if let Kind::Delay(delay) = fault.kind
            && passed >= fault.number
        {
            std::thread::sleep(delay);
        } else if passed == fault.number {
            match fault.kind {
                #[expect(clippy::panic, reason = "the fault is a panic")]
                Kind::Panic => panic!("fault on purpose at {name} {}", fault.number),
                Kind::Abort => std::process::abort(),
                Kind::Delay(_) => {}
            }
        }
    }
}

/// Whether telemetry is told anything.
pub(crate) fn telemetry_is_on() -> bool {
    !programme().without_telemetry
}

/// Passes the point `file-operation` after `operation` on the files `paths`.
///
/// # Panics
/// As [`point`], and if the trace cannot be written.
pub(crate) fn file_operation(operation: &str, paths: &[&Path]) {
    if let Some(mut trace) = programme().trace.as_ref() {
        let names = paths.iter().map(|path| format!("\t{}", path.display())).collect::<String>();
        // In one call, so that lines of two threads do not mix.
        trace.write_all(format!("{operation}{names}\n").as_bytes()).expect("the trace is a test's own file");
    }
    point("file-operation");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programmes_are_read_and_misspelt_ones_refused() {
        let programme = parse("packer:5=panic; file-operation:17=abort").unwrap();
        let read: Vec<_> = programme.faults.iter().map(|f| (f.point.as_str(), f.number, f.kind)).collect();
        assert_eq!(read, [("packer", 5, Kind::Panic), ("file-operation", 17, Kind::Abort)]);
        let slow = parse("writer-thread:0=delay-20;telemetry=off").unwrap();
        assert_eq!(slow.faults[0].kind, Kind::Delay(Duration::from_millis(20)));
        assert!(slow.without_telemetry && !programme.without_telemetry);
        assert!(parse("").unwrap().faults.is_empty());
        for wrong in [
            "packer",
            "packer:5",
            "packer:x=panic",
            "packer:5=explode",
            "packer:5=delay-x",
            "packer=panic",
            "file-trace=/",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
