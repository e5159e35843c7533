//! Faults of the device itself.

use std::path::Path;

use super::device::Device;
use super::report::skip;

pub(super) fn out_of_memory(device: &Device, scratch: &Path) {
    match device {
        Device::Cpu { .. } => skip("recovery: a batch beyond the device's memory", "needs a GPU"),
    }
    let _ = scratch;
}

pub(super) fn sticky(_device: &Device, _scratch: &Path) {}
