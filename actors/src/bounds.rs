//! How much may wait where: the bound of every queue of the program, in one place.
//!
//! Actors' mailboxes have no bound of their own; what is in them is bounded by credit instead: a device asks
//! for a batch when it has a free slot (at most [`SLOTS_MAX`]), the packer asks for a segment when fewer than
//! [`SEGMENTS_OPEN_MAX`] are open, and everything else is an answer to one of these, a signal, or a timer.
//! A test walks the sources and finds each channel here.

/// Segments read but not yet committed: one being written, one being computed, one so that devices do not
/// wait at the boundary. More would only cost memory.
pub const SEGMENTS_OPEN_MAX: usize = 3;

/// Most batches that a worker may hold; its engine says how many it wants. Two are enough where one runs at a
/// time: one running, one waiting, so that the engine never idles while the previous result travels. A GPU has a
/// third on its way to it.
pub const SLOTS_MAX: usize = 3;

/// Frames on their way to a worker: `Load`, one `Run` for each slot, `Shutdown`. Never full.
pub const FRAMES: usize = SLOTS_MAX + 2;

/// Answers on their way from a worker's engine to its socket: one for each slot, one about loading, and the
/// last word. Never full.
pub const ANSWERS: usize = SLOTS_MAX + 2;

/// Confirmations that an answer was written: the engine waits for each before its next batch.
pub const CONFIRMATIONS: usize = 1;

/// Segments asked of the reader's thread: never more than may be open.
pub const SEGMENTS_ASKED: usize = SEGMENTS_OPEN_MAX;

/// Complete segments on their way to the writer's thread: never more than may be open.
pub const SEGMENTS_SEALED: usize = SEGMENTS_OPEN_MAX;

/// Threads that encode complete segments: as many as can be complete while one more is being computed.
pub const PART_ENCODERS: usize = SEGMENTS_OPEN_MAX - 1;

/// Encoded parts on their way from an encoder to the writer's thread, which waits for each by itself.
pub const PARTS_ENCODED: usize = 1;

/// Batches on their way to the journal. What finds no room is not kept, only computed again after a crash: a
/// slow disk must not slow the run, nor fill the memory.
pub const JOURNAL_BATCHES: usize = 4;

/// Signals not yet acted upon: the first two count, more than one of each kind change nothing.
pub const SIGNALS: usize = 4;

/// Viewers of one run at once; more are turned away.
pub const VIEWERS: usize = 64;

/// Texts on their way to standard error, and as many to `run.log`: what is logged and finds no room is left out and
/// counted. Enough for three hours of lines of a run, and for its busiest moment.
pub const TEXTS: usize = 1024;

/// Log lines that a dashboard has not taken yet, and those that it keeps; older ones are in `run.log`.
pub const LOG_LINES: usize = 300;

/// Answers on their way to a dashboard: as many as keys are pressed before the first is answered.
pub const DASHBOARD_ANSWERS: usize = 8;

/// Words to the thread that watches a GPU: that it shall end, said by closing.
pub const MONITOR_WORDS: usize = 1;

/// Words to the thread that keeps the lock: that it shall end.
pub const LOCK_WORDS: usize = 1;

/// Events of a run that are remembered: what an operator who looks in once a day can read.
pub const EVENTS_KEPT: usize = 200;

/// Waits of each stage that are remembered, for their percentiles.
pub const RECENT_WAITS: usize = 512;

/// Words to the thread that records a run over time: how the run ended.
pub const RECORDER_WORDS: usize = 1;

/// Readers of metrics at once; more are turned away. A Prometheus server is one, and asks every few seconds.
pub const SCRAPERS: usize = 16;
