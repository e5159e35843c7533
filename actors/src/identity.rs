//! The names of things that must not be mixed up: segments, batches, devices' generations.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Number of a segment, counted from 0 in input order; also the number of its output part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SegmentId(pub u32);

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:05}", self.0)
    }
}

/// Number of a batch, unique within a run; halves of a split batch get numbers of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BatchId(pub u64);

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Position of a device in the run's device list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceIndex(pub usize);

/// How often a device's worker was started, from 0. Answers of an older generation are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Generation(pub u32);

impl Generation {
    /// The generation that follows this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// One worker process: a device and which start of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Worker {
    /// The device.
    pub device: DeviceIndex,
    /// Which start of it.
    pub generation: Generation,
}
