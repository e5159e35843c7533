//! The dashboard: what `run` shows on a terminal, and `top` of a job that runs anywhere on this machine.
//!
//! A loop of events, update and draw ([`ui`], [`model`], [`view`]) on a thread of its own. It reads snapshots and
//! passes wishes on; it never decides anything about the job, and the terminal ([`screen`]) is restored however it
//! ends.

mod keys;
mod live;
mod model;
#[cfg(test)]
mod picture;
#[cfg(test)]
mod scenes;
pub(crate) mod screen;
mod top;
mod ui;
mod view;

pub(crate) use live::{Ending, show};
pub(crate) use top::top;
