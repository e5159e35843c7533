//! One GPU: who it is, and the handle that samples are read through.

use nvml_wrapper::error::NvmlError as Cause;
use nvml_wrapper::{Device, EventSet, bitmasks::event::EventTypes};
use serde::{Deserialize, Serialize};

use super::error::{NvmlError, loss};
use super::sample::{GpuSample, XidTally};
use crate::Precision;

/// What a GPU is called and can do; each `None` where the driver does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuIdentity {
    /// The model, such as `NVIDIA H100 80GB HBM3`.
    pub name: Option<String>,
    /// Its UUID, `GPU-…` or `MIG-…`.
    pub uuid: Option<String>,
    /// Where it is plugged in: `domain:bus:device.function`.
    pub pci_bus_id: Option<String>,
    /// Its compute capability.
    pub capability: Option<Capability>,
    /// Whether it is divided into instances (MIG).
    pub mig: Option<bool>,
}

/// The compute capability of a GPU: its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Capability {
    /// 9 in 9.0.
    pub major: u32,
    /// 0 in 9.0.
    pub minor: u32,
}

impl Capability {
    /// Whether matrix units of this generation compute in `precision`: fp16 from 7.0 on, bf16 from 8.0 on.
    pub fn supports(self, precision: Precision) -> bool {
        match precision {
            Precision::Fp32 => true,
            Precision::Fp16 => self.major >= 7,
            Precision::Bf16 => self.major >= 8,
            // The GPU engine has no such products.
            Precision::Int8 => false,
        }
    }
}

impl std::fmt::Display for Capability {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A GPU of an open [`super::Nvml`].
#[derive(Debug)]
pub struct Gpu<'nvml> {
    device: Device<'nvml>,
    /// As it was asked for.
    asked: String,
    identity: GpuIdentity,
    /// Critical errors of this GPU alone; `None` where they are not asked for or not to be had.
    events: Option<EventSet<'nvml>>,
    xid: XidTally,
}

impl<'nvml> Gpu<'nvml> {
    pub(super) fn read(device: Device<'nvml>, asked: &str) -> Result<Self, NvmlError> {
        let mut questions = Questions::new(&device);
        let identity = GpuIdentity {
            name: questions.ask(Device::name),
            uuid: questions.ask(Device::uuid),
            pci_bus_id: questions.ask(Device::pci_info).map(|pci| pci.bus_id),
            capability: questions.ask(Device::cuda_compute_capability).and_then(|capability| {
                let part = |number| u32::try_from(number).ok();
                Some(Capability { major: part(capability.major)?, minor: part(capability.minor)? })
            }),
            mig: questions.ask(Device::mig_mode).map(|mode| mode.current != 0),
        };
        questions.finish(asked)?;
        Ok(Self { device, asked: asked.to_owned(), identity, events: None, xid: XidTally::default() })
    }

    /// The driver's handle.
    pub(super) fn device(&self) -> &Device<'nvml> {
        &self.device
    }

    /// Who it is; read once.
    pub fn identity(&self) -> &GpuIdentity {
        &self.identity
    }

    /// Counts critical errors (Xid) from now on, where the driver tells of them.
    pub fn watch_xid(&mut self) {
        let set = self.device.nvml().create_event_set().ok();
        self.events =
            set.and_then(|set| self.device.register_events(EventTypes::CRITICAL_XID_ERROR, set).ok());
    }

    /// Critical errors that were told so far, by a sample that failed too; `None` where none are told.
    pub fn xid(&self) -> Option<XidTally> {
        self.events.as_ref().map(|_| self.xid)
    }

    /// How it fares now. Takes some 50 ms, of which the PCIe counters measure for 40.
    ///
    /// # Errors
    /// If the GPU is lost. Anything else that the driver does not tell is absent from the sample.
    pub fn sample(&mut self) -> Result<GpuSample, NvmlError> {
        let mut questions = Questions::new(&self.device);
        if let Some(events) = &self.events {
            // The thread would otherwise stay here for as long as a broken driver delivers events.
            const EVENTS_MAX: u32 = 64;
            for _ in 0..EVENTS_MAX {
                let Some(event) = questions.ask(|_| events.wait(0)) else { break };
                self.xid.add(event.event_data);
            }
        }
        let sample = GpuSample { xid: self.xid(), ..GpuSample::read(&mut questions) };
        questions.finish(&self.asked)?;
        Ok(sample)
    }
}

/// Asks one GPU, and stops asking once it is lost: each call to a lost GPU may take seconds.
pub(super) struct Questions<'gpu, 'nvml> {
    device: &'gpu Device<'nvml>,
    lost: Option<Cause>,
}

impl<'gpu, 'nvml> Questions<'gpu, 'nvml> {
    pub(super) fn new(device: &'gpu Device<'nvml>) -> Self {
        Self { device, lost: None }
    }

    /// The answer, where there is one.
    pub(super) fn ask<T>(&mut self, question: impl FnOnce(&Device<'nvml>) -> Result<T, Cause>) -> Option<T> {
        if self.lost.is_some() {
            return None;
        }
        match question(self.device) {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.lost = loss(&error).map(|_| error);
                None
            }
        }
    }

    fn finish(self, asked: &str) -> Result<(), NvmlError> {
        self.lost.map_or(Ok(()), |error| Err(NvmlError::of_gpu(asked, &error)))
    }
}
