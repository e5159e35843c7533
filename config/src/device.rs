//! The devices of `devices.use`: how they are typed and how they are shown.
//!
//! A typed `sim:8` is eight devices, a shown `sim:3` is the device numbered 3. Whether a device exists is found
//! out when it is opened, never here.

use std::fmt;

use crate::decoder::allowed_words;
use crate::job::Device;
use crate::limits;
use crate::mistake::{Fault, Objection};
use crate::suggestion::nearest;

const KEY: &str = "devices.use";
const ALLOWED: [&str; 6] = ["auto", "cpu", "cuda:0", "burn-cpu", "burn-cuda:0", "sim:8"];

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(which) => write!(f, "cuda:{which}"),
            Device::BurnCpu => f.write_str("burn-cpu"),
            Device::BurnCuda(index) => write!(f, "burn-cuda:{index}"),
            Device::Sim(number) => write!(f, "sim:{number}"),
        }
    }
}

/// Reads one item of `devices.use` other than "auto"; `sim:n` gives n devices.
pub(crate) fn parse(typed: &str) -> Result<Vec<Device>, Objection> {
    let (kind, which) = match typed.split_once(':') {
        Some((kind, which)) => (kind, Some(which)),
        None => (typed, None),
    };
    match (kind, which) {
        ("cpu", None) => Ok(vec![Device::Cpu]),
        ("cuda", Some(which)) => match gpu_name(which) {
            Some(name) => Ok(vec![Device::Cuda(name)]),
            None => Err(unknown(typed, "not a GPU's index, UUID or PCI id")
                .help("write cuda:0, cuda:GPU-8f6d5a1e-… or cuda:0000:3b:00.0, as nvidia-smi shows them")),
        },
        ("burn-cpu", None) => Ok(vec![Device::BurnCpu]),
        ("burn-cuda", Some(which)) => {
            match gpu_index(which) {
                Some(index) => Ok(vec![Device::BurnCuda(index)]),
                None => Err(unknown(typed, "not a GPU's index")
                    .help("write burn-cuda:0; burn knows GPUs by index only")),
            }
        }
        ("sim", Some(count)) => simulated(typed, count),
        _ => Err(unknown(typed, "no such device").help(help(kind, which))),
    }
}

fn simulated(typed: &str, count: &str) -> Result<Vec<Device>, Objection> {
    let limit = limits::SIMULATED_DEVICES;
    let label = format!("sim takes {limit} devices");
    let Ok(number) = count.parse::<u32>() else {
        return Err(unknown(typed, label).help("sim:8 stands for eight simulated devices, sim:0 to sim:7"));
    };
    if !(limit.min..=limit.max).contains(&i64::from(number)) {
        return Err(Objection::new(
            Fault::OutOfRange { key: KEY.to_owned(), value: format!("{typed:?}") },
            label,
        )
        .help("sim:8 stands for eight simulated devices, sim:0 to sim:7"));
    }
    Ok((0..number).map(Device::Sim).collect())
}

fn gpu_index(which: &str) -> Option<u16> {
    // 1,000 GPUs in a machine is beyond any; a longer number is a mistyped id.
    let index = which.parse::<u16>().ok()?;
    (index < 1_000 && which.bytes().all(|b| b.is_ascii_digit())).then_some(index)
}

/// Accepts an index, a UUID (`GPU-…`, `MIG-…`) or a PCI id (`[domain:]bus:device.function`).
fn gpu_name(which: &str) -> Option<String> {
    if let Some(index) = gpu_index(which) {
        return Some(index.to_string());
    }
    let hexadecimal = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    let uuid = ["GPU-", "MIG-"].iter().find_map(|prefix| which.strip_prefix(prefix));
    if let Some(uuid) = uuid {
        return uuid.split('-').all(hexadecimal).then(|| which.to_owned());
    }
    let (bus_and_device, function) = which.rsplit_once('.')?;
    let parts: Vec<&str> = bus_and_device.split(':').collect();
    let well_formed =
        matches!(parts.len(), 2 | 3) && parts.iter().all(|part| hexadecimal(part)) && hexadecimal(function);
    well_formed.then(|| which.to_owned())
}

fn help(kind: &str, which: Option<&str>) -> String {
    let folded = kind.to_ascii_lowercase();
    let meant = match folded.as_str() {
        "gpu" | "nvidia" | "cuda" => Some("cuda"),
        "simulated" | "simulator" => Some("sim"),
        "burn" => Some("burn-cpu"),
        _ => nearest(kind, ["auto", "cpu", "cuda", "burn-cpu", "burn-cuda", "sim"]),
    };
    let mut help = allowed_words(&ALLOWED);
    match (meant, which.filter(|which| which.bytes().all(|b| b.is_ascii_digit()) && !which.is_empty())) {
        (Some(word @ ("auto" | "cpu" | "burn-cpu")), _) => {
            help.push_str(&format!("; did you mean `{word}`?"))
        }
        (Some(word), Some(which)) => help.push_str(&format!("; did you mean `{word}:{which}`?")),
        (Some("sim"), None) => help.push_str("; did you mean `sim:8`?"),
        (Some(word), None) => help.push_str(&format!("; did you mean `{word}:0`?")),
        (None, _) => {}
    }
    help
}

fn unknown(typed: &str, label: impl Into<String>) -> Objection {
    Objection::new(Fault::UnknownValue { key: KEY.to_owned(), value: typed.to_owned() }, label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_shown_as_they_are_named() {
        let shown: Vec<String> =
            [Device::Cpu, Device::Cuda("0".into()), Device::BurnCpu, Device::BurnCuda(2), Device::Sim(3)]
                .iter()
                .map(ToString::to_string)
                .collect();
        assert_eq!(shown, ["cpu", "cuda:0", "burn-cpu", "burn-cuda:2", "sim:3"]);
    }

    #[test]
    fn every_form_is_read() {
        let cuda = |which: &str| vec![Device::Cuda(which.to_owned())];
        assert_eq!(parse("cpu").unwrap(), [Device::Cpu]);
        assert_eq!(parse("cuda:0").unwrap(), cuda("0"));
        assert_eq!(parse("cuda:007").unwrap(), cuda("7"));
        let uuid = "GPU-8f6d5a1e-1c2b-4d3e-9f00-a1b2c3d4e5f6";
        assert_eq!(parse(&format!("cuda:{uuid}")).unwrap(), cuda(uuid));
        assert_eq!(parse("cuda:0000:3b:00.0").unwrap(), cuda("0000:3b:00.0"));
        assert_eq!(parse("cuda:3B:00.0").unwrap(), cuda("3B:00.0"));
        assert_eq!(parse("burn-cpu").unwrap(), [Device::BurnCpu]);
        assert_eq!(parse("burn-cuda:07").unwrap(), [Device::BurnCuda(7)]);
        assert_eq!(parse("sim:2").unwrap(), [Device::Sim(0), Device::Sim(1)]);
        assert_eq!(parse("sim:64").unwrap().len(), 64);
    }

    #[test]
    fn malformed_devices_are_refused_with_the_nearest_form() {
        for (typed, hint) in [
            ("gpu:1", "did you mean `cuda:1`?"),
            ("GPU", "did you mean `cuda:0`?"),
            ("cuda", "did you mean `cuda:0`?"),
            ("CPU", "did you mean `cpu`?"),
            ("cpu:0", "did you mean `cpu`?"),
            ("sim", "did you mean `sim:8`?"),
            ("cdua:3", "did you mean `cuda:3`?"),
            ("burn", "did you mean `burn-cpu`?"),
            ("burn-cpu:0", "did you mean `burn-cpu`?"),
            ("burn-cuda", "did you mean `burn-cuda:0`?"),
            ("burn_cuda:1", "did you mean `burn-cuda:1`?"),
        ] {
            let objection = parse(typed).unwrap_err();
            assert!(matches!(objection.fault, Fault::UnknownValue { .. }), "{typed}");
            assert!(objection.help.as_deref().unwrap().contains(hint), "{typed}: {:?}", objection.help);
        }
        for typed in [
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:x",
            "cuda:GPU-",
            "cuda:1.2.3",
            "burn-cuda:",
            "burn-cuda:GPU-8f",
            "burn-cuda:+1",
            "burn-cuda:1000",
            "sim:",
            "sim:x",
            "tpu",
        ] {
            assert!(matches!(parse(typed).unwrap_err().fault, Fault::UnknownValue { .. }), "{typed}");
        }
        for typed in ["sim:0", "sim:65"] {
            assert!(matches!(parse(typed).unwrap_err().fault, Fault::OutOfRange { .. }), "{typed}");
        }
    }
}
