//! The management library's answers, read from a library that is really loaded: the tests' own.

#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../../tests/fake_nvml/fake.rs"]
mod fake;

use fake::{FakeNvml, TWO_GPUS};
use kernels::Precision;
use kernels::nvml::{Capability, GpuProcess, GpuSample, Library, Nvml, NvmlError, XidTally, inventory};

fn open(fake: &FakeNvml) -> Nvml {
    Nvml::open(&Library::At(fake.path())).unwrap()
}

fn refused(script: &str) -> NvmlError {
    Nvml::open(&Library::At(FakeNvml::new(script).path())).unwrap_err()
}

#[test]
fn a_gpu_tells_everything_it_knows() {
    let fake = FakeNvml::new(TWO_GPUS);
    let nvml = open(&fake);
    assert_eq!(nvml.driver().version.as_deref(), Some("580.82.07"));
    assert_eq!(nvml.driver().cuda, Some((13, 0)));
    let mut gpu = nvml.gpu("0").unwrap();
    let identity = gpu.identity().clone();
    assert_eq!(identity.name.as_deref(), Some("NVIDIA H100 80GB HBM3"));
    assert_eq!(identity.uuid.as_deref(), Some("GPU-8f6d5a1e-0000-1111-2222-333344445555"));
    assert_eq!(identity.pci_bus_id.as_deref(), Some("00000000:3B:00.0"));
    assert_eq!(identity.capability, Some(Capability { major: 9, minor: 0 }));
    assert_eq!(identity.mig, Some(false));
    let expected = GpuSample {
        busy_percent: Some(87),
        memory_busy_percent: Some(42),
        memory_total_bytes: Some(80_000_000_000),
        memory_free_bytes: Some(6_000_000_000),
        memory_used_bytes: Some(70_000_000_000),
        memory_share: Some(0.925),
        temperature_c: Some(61),
        power_w: Some(412.5),
        power_limit_w: Some(700.0),
        clock_sm_mhz: Some(1980),
        clock_memory_mhz: Some(2619),
        throttled_by: Some(vec!["power limit".to_owned(), "temperature".to_owned()]),
        pcie_received_bytes_per_s: Some(2_500_000_000),
        pcie_sent_bytes_per_s: Some(120_000_000),
        ecc: Some(true),
        ecc_corrected: Some(7),
        ecc_uncorrected: Some(0),
        ecc_corrected_lifetime: Some(1234),
        ecc_uncorrected_lifetime: Some(1),
        xid: None,
        processes: Some(vec![
            GpuProcess { process: 4711, memory_bytes: Some(60_000_000_000) },
            GpuProcess { process: 4712, memory_bytes: None },
        ]),
    };
    assert_eq!(gpu.sample().unwrap(), expected);
}

#[test]
fn what_a_driver_does_not_tell_is_absent_and_nothing_else() {
    let fake = FakeNvml::new(TWO_GPUS);
    let nvml = open(&fake);
    let mut gpu = nvml.gpu("1").unwrap();
    assert_eq!((gpu.identity().name.as_deref(), gpu.identity().mig), (Some("Tesla T4"), None));
    assert_eq!(gpu.sample().unwrap(), GpuSample::default());
    fake.answers(&format!(
        "{TWO_GPUS}\n1.temperature 33\n1.power !999\n1.busy !4\n1.throttle 0\n1.processes"
    ));
    let told = GpuSample { temperature_c: Some(33), throttled_by: Some(vec![]), ..GpuSample::default() };
    assert_eq!(gpu.sample().unwrap(), told);
}

#[test]
fn samples_follow_the_gpu() {
    let fake = FakeNvml::new("count 1\n0.temperature 40\n0.limit 250000");
    let nvml = open(&fake);
    let mut gpu = nvml.gpu("0").unwrap();
    let before = gpu.sample().unwrap();
    // Where no limit is enforced by the hardware, the set one is told.
    assert_eq!((before.temperature_c, before.power_limit_w), (Some(40), Some(250.0)));
    fake.answers("count 1\n0.temperature 83\n0.throttle 0x1ff");
    let after = gpu.sample().unwrap();
    assert_eq!((after.temperature_c, after.power_limit_w), (Some(83), None));
    assert_eq!(after.throttled_by.unwrap().len(), 9);
    assert_eq!(after.memory_share, None);
}

#[test]
fn gpus_are_found_by_index_uuid_and_pci_id() {
    let fake = FakeNvml::new(TWO_GPUS);
    let nvml = open(&fake);
    for name in
        ["1", "GPU-00000000-aaaa-bbbb-cccc-dddddddddddd", "00000000:AF:00.0", "0000:af:00.0", "af:00.0"]
    {
        assert_eq!(nvml.gpu(name).unwrap().identity().name.as_deref(), Some("Tesla T4"), "{name}");
    }
    for name in ["2", "99999999999", "GPU-8f6d5a1e", "0000:01:00.0", "nonsense", "\0"] {
        let error = nvml.gpu(name).unwrap_err();
        assert!(!error.is_loss() && error.to_string().contains(name), "{name}: {error}");
    }
}

#[test]
fn a_lost_gpu_is_an_error_of_its_own_and_leaves_the_others_alone() {
    let fake = FakeNvml::new(TWO_GPUS);
    let nvml = open(&fake);
    let (mut lost, mut other) = (nvml.gpu("1").unwrap(), nvml.gpu("0").unwrap());
    fake.answers(&format!("{TWO_GPUS}\n1 !15"));
    let error = lost.sample().unwrap_err();
    assert!(
        error.is_loss() && error.to_string().starts_with("GPU `1` is lost: it has fallen off"),
        "{error}"
    );
    assert!(other.sample().unwrap().temperature_c.is_some());
    let gpus = nvml.gpus().unwrap();
    assert_eq!(gpus.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false]);
    assert!(gpus[1].as_ref().unwrap_err().is_loss());
    // Noticed by any one question, however late.
    fake.answers(&format!("{TWO_GPUS}\n1.processes !16"));
    assert!(lost.sample().unwrap_err().to_string().contains("must be reset"));
    fake.answers(TWO_GPUS);
    assert!(lost.sample().is_ok());
}

#[test]
fn critical_errors_are_counted_once_each() {
    let fake = FakeNvml::new(TWO_GPUS);
    let nvml = open(&fake);
    let mut gpu = nvml.gpu("0").unwrap();
    gpu.watch_xid();
    assert_eq!(gpu.sample().unwrap().xid, Some(XidTally { count: 0, last: None }));
    fake.answers(&format!("{TWO_GPUS}\n0.xid 31 79"));
    assert_eq!(gpu.sample().unwrap().xid, Some(XidTally { count: 2, last: Some(79) }));
    assert_eq!(gpu.sample().unwrap().xid, Some(XidTally { count: 2, last: Some(79) }));
    fake.answers(&format!("{TWO_GPUS}\n0.xid 31 79 999"));
    assert_eq!(gpu.sample().unwrap().xid, Some(XidTally { count: 3, last: None }));
    assert!(kernels::nvml::xid_meaning(79).unwrap().contains("fallen off the bus"));
    // The error that takes the GPU away is told, though the sample fails.
    fake.answers(&format!("{TWO_GPUS}\n0.xid 31 79 999 79\n0.busy !15"));
    assert!(gpu.sample().unwrap_err().is_loss());
    assert_eq!(gpu.xid(), Some(XidTally { count: 4, last: Some(79) }));
    // A driver without events.
    drop(gpu);
    fake.answers(&TWO_GPUS.replace("events 0", "events !3"));
    let mut gpu = nvml.gpu("0").unwrap();
    gpu.watch_xid();
    assert_eq!(gpu.sample().unwrap().xid, None);
}

#[test]
fn an_old_driver_tells_what_it_can() {
    let fake = FakeNvml::new(&format!("{TWO_GPUS}\nold"));
    let nvml = open(&fake);
    let sample = nvml.gpu("0").unwrap().sample().unwrap();
    assert_eq!(
        (sample.memory_used_bytes, sample.memory_free_bytes),
        (Some(74_000_000_000), Some(6_000_000_000))
    );
    assert_eq!((sample.memory_share, sample.processes), (Some(0.925), None));
}

#[test]
fn every_way_not_to_start_says_what_to_do() {
    let missing = Nvml::open(&Library::At("/nowhere/libnvidia-ml.so.1".into())).unwrap_err().to_string();
    for words in
        ["/nowhere/libnvidia-ml.so.1", "Debian: libnvidia-ml1", "Ubuntu", "RHEL", "container", "--gpus all"]
    {
        assert!(missing.contains(words), "{missing}");
    }
    assert!(!missing.contains('\n') && !missing.contains(". "), "not one sentence: {missing}");
    assert!(refused("init !9").to_string().contains("modprobe nvidia"));
    assert!(refused("init !18").to_string().contains("restart the machine"));
    assert!(refused("init !4").to_string().contains("/dev/nvidia"));
    assert!(refused("init !13").to_string().contains("too old"));
    let unknown = refused("init !999").to_string();
    assert!(unknown.contains("libnvidia-ml.so") && unknown.contains("internal driver error"), "{unknown}");
    // Found, but no library.
    let text = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(text.path(), "not a library").unwrap();
    let error = Nvml::open(&Library::At(text.path().to_owned())).unwrap_err();
    assert!(matches!(error, NvmlError::LibraryUnusable { .. }), "{error}");
    // A library, but not this one.
    let other = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let libc = other.split_whitespace().find(|word| word.starts_with('/') && word.contains("libc.so"));
    if let Some(libc) = libc {
        let error = Nvml::open(&Library::At(libc.into())).unwrap_err();
        assert!(matches!(error, NvmlError::LibraryTooOld { .. }), "{error}");
    }
}

#[test]
fn a_driver_that_cannot_count_is_an_error_and_none_is_none() {
    let fake = FakeNvml::new("count !999");
    assert!(open(&fake).gpus().unwrap_err().to_string().contains("nvidia-smi"));
    fake.answers("count 0");
    let nvml = open(&fake);
    assert!(nvml.gpus().unwrap().is_empty());
    assert_eq!(nvml.driver(), kernels::nvml::Driver::default());
}

#[test]
fn the_driver_of_this_machine_answers_if_there_is_one() {
    let nvml = match Nvml::open(&Library::Installed) {
        Ok(nvml) => nvml,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    assert!(nvml.driver().version.is_some());
    for gpu in nvml.gpus().unwrap() {
        let mut gpu = gpu.unwrap();
        gpu.watch_xid();
        let sample = gpu.sample().unwrap();
        eprintln!("{:?}\n{:?}\n{sample:?}", nvml.driver(), gpu.identity());
        let uuid = gpu.identity().uuid.clone().unwrap();
        assert_eq!(nvml.gpu(&uuid).unwrap().identity(), gpu.identity());
        let bus_id = gpu.identity().pci_bus_id.clone().unwrap();
        assert_eq!(nvml.gpu(&bus_id).unwrap().identity(), gpu.identity());
        assert!(sample.memory_share.is_none_or(|share| (0.0..=1.0).contains(&share)));
    }
}

#[test]
fn precisions_follow_the_generation() {
    let supported = |major, minor| {
        [Precision::Fp32, Precision::Fp16, Precision::Bf16]
            .map(|precision| Capability { major, minor }.supports(precision))
    };
    assert_eq!(supported(6, 1), [true, false, false]);
    assert_eq!(supported(7, 5), [true, true, false]);
    assert_eq!(supported(8, 0), [true; 3]);
    assert_eq!(supported(9, 0), [true; 3]);
    assert!(!Capability { major: 12, minor: 0 }.supports(Precision::Int8), "the GPU engine has no int8");
}

#[test]
fn the_inventory_has_every_gpu_in_its_place() {
    let fake = FakeNvml::new(TWO_GPUS);
    let gpus = inventory(&Library::At(fake.path())).unwrap();
    let first = gpus[0].as_ref().unwrap();
    assert_eq!((first.index, first.memory), (0, Some((6_000_000_000, 80_000_000_000))));
    assert_eq!(first.identity.capability, Some(Capability { major: 9, minor: 0 }));
    assert!(first.instances.is_empty());
    // What the driver does not tell is unknown, not zero.
    let second = gpus[1].as_ref().unwrap();
    assert_eq!((second.index, second.memory, second.multiprocessors), (1, None, None));
    fake.answers(&format!("{TWO_GPUS}\n0 !15"));
    let gpus = inventory(&Library::At(fake.path())).unwrap();
    assert!(gpus[0].as_ref().unwrap_err().is_loss() && gpus[1].is_ok());
}
