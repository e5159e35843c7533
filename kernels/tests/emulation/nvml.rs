//! The emulated GPUs as the management library sees them.
//!
//! A process gets both with `EmulatedCuda::lend` for CUDA and, for NVML, a
//! `FakeNvml::new(&nvml_script(gpus, bytes))` (tests/fake_nvml/fake.rs) whose path it finds in the variable
//! `kernels::nvml::Library::VARIABLE`.

use std::fmt::Write;

/// UUID of a GPU, counted without regard to `CUDA_VISIBLE_DEVICES`.
pub(crate) fn uuid(gpu: usize) -> String {
    format!("GPU-e0000000-cafe-4000-8000-{gpu:012x}")
}

/// PCI id of a GPU, as the management library writes it.
pub(crate) fn pci(gpu: usize) -> String {
    format!("00000000:{:02X}:00.0", 0x10 + gpu)
}

/// A script for the fake management library: `gpus` GPUs of 9.0 with so many bytes each.
///
/// Further lines may follow; the last answer to a question counts.
pub(crate) fn nvml_script(gpus: usize, bytes: u64) -> String {
    let mut script = format!("driver 580.82.07\ncuda 13000\ncount {gpus}\nevents 0\n");
    for gpu in 0..gpus {
        let (uuid, pci) = (uuid(gpu), pci(gpu));
        let _ = write!(
            script,
            "{gpu}.name Emulated GPU\n{gpu}.uuid {uuid}\n{gpu}.pci {pci}\n{gpu}.capability 9.0\n{gpu}.mig 0\n{gpu}.memory {bytes} 0 0\n{gpu}.processes\n",
        );
    }
    script
}
