//! Faults on purpose: named points of the orchestrator at which a test makes it fail.
//!
//! A programme in the environment variable [`VARIABLE`] names them; without it a point costs one look at
//! a static. Simulated devices have faults of their own, see [`kernels::sim`]. Nothing here is used by
//! anything but tests, through the real executable.

use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Environment variable that holds the programme: `POINT:NUMBER=KIND`, separated by `;`.
///
/// `packer:5=panic;file-operation:17=abort`: the packer panics at its sixth message, and the process
/// aborts right after the eighteenth operation on files. Kinds are `panic` and `abort`; numbers count from 0.
pub const VARIABLE: &str = "VIRNUCPRO_FAULTS";

/// What happens at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Panic,
    Abort,
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
            _ => return Err(wrong()),
        };
        let number = number.trim().parse().map_err(|_| wrong())?;
        Ok(Self { point: point.trim().to_owned(), number, kind, passed: AtomicU64::new(0) })
    }
}

fn parse(programme: &str) -> Result<Vec<Fault>, String> {
    programme.split(';').filter(|text| !text.trim().is_empty()).map(|text| text.trim().parse()).collect()
}

/// Passes a point: fails here if the programme says so.
///
/// # Panics
/// On purpose, and for a programme that cannot be understood.
pub(crate) fn point(name: &str) {
    static PROGRAMME: OnceLock<Vec<Fault>> = OnceLock::new();
    let programme = PROGRAMME.get_or_init(|| {
        let text = std::env::var(VARIABLE).unwrap_or_default();
        #[expect(clippy::panic, reason = "a test with a misspelt fault must not pass")]
        parse(&text).unwrap_or_else(|error| panic!("{VARIABLE}: {error}"))
    });
    for fault in programme.iter().filter(|fault| fault.point == name) {
        if fault.passed.fetch_add(1, Ordering::Relaxed) == fault.number {
            match fault.kind {
                #[expect(clippy::panic, reason = "the fault is a panic")]
                Kind::Panic => panic!("fault on purpose at {name} {}", fault.number),
                Kind::Abort => std::process::abort(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programmes_are_read_and_misspelt_ones_refused() {
        let faults = parse("packer:5=panic; file-operation:17=abort").unwrap();
        let read: Vec<_> = faults.iter().map(|f| (f.point.as_str(), f.number, f.kind)).collect();
        assert_eq!(read, [("packer", 5, Kind::Panic), ("file-operation", 17, Kind::Abort)]);
        assert!(parse("").unwrap().is_empty());
        for wrong in ["packer", "packer:5", "packer:x=panic", "packer:5=explode", "packer=panic"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
