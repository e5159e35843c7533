//! What a person asks of a running job beside stopping and pausing it; answered in words.
//!
//! The supervisor carries an order out or passes it on with its answer; whoever drops the answer says by that
//! that nothing was done.

use std::time::Duration;

use tokio::sync::oneshot;

/// How long the run may take to answer an order about a device: it only begins what is asked.
pub(crate) const DEVICE_ORDER_MAX: Duration = Duration::from_secs(4);
/// How long a checkpoint may take: some hundred megabytes on a disk that others use as well.
pub(crate) const CHECKPOINT_MAX: Duration = Duration::from_secs(50);

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Give this device no more batches and let its worker go once it has finished those it holds.
    Retire(String),
    /// Try this device again, which was retired.
    Readmit(String),
    /// Keep what is computed of open segments in their journals, synced.
    Checkpoint,
}

/// Why an order is not carried out: in words, with what to do instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// What was done, in words, or why not.
pub(crate) type Answer = Result<String, Refused>;

/// Where the answer goes. Whoever asked may have left, which is no error.
pub(crate) type AnswerTo = oneshot::Sender<Answer>;
