//! What happened lately: a bounded list, in which what happens often does not push out what happens once.

use std::collections::{HashMap, VecDeque};

use super::snapshot::{EventLevel, EventView};
use crate::bounds::EVENTS_KEPT;

/// So many events of a frequent kind are told one by one, later ones only at each power of two.
const EACH_TOLD_MAX: u64 = 20;

/// Something that an operator must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Happening {
    pub(crate) level: EventLevel,
    /// The device that it is about.
    pub(crate) device: Option<String>,
    /// In one line.
    pub(crate) text: String,
    /// The name of its kind, if it may happen often.
    pub(crate) kind: Option<&'static str>,
}

impl Happening {
    pub(crate) fn new(level: EventLevel, text: impl Into<String>) -> Self {
        Self { level, device: None, text: text.into(), kind: None }
    }

    pub(crate) fn of_device(level: EventLevel, device: impl Into<String>, text: impl Into<String>) -> Self {
        Self { device: Some(device.into()), ..Self::new(level, text) }
    }

    /// It may happen often: its kind, in the plural.
    pub(crate) fn often(self, kind: &'static str) -> Self {
        Self { kind: Some(kind), ..self }
    }
}

/// The latest events of a session.
#[derive(Clone, Debug, Default)]
pub(super) struct Events {
    pub(super) latest: VecDeque<EventView>,
    told: u64,
    /// How often each frequent kind happened.
    counts: HashMap<&'static str, u64>,
}

impl Events {
    pub(super) fn add(&mut self, at_s: f64, happening: Happening) {
        let Happening { level, device, mut text, kind } = happening;
        if let Some(kind) = kind {
            let count = self.counts.entry(kind).or_default();
            *count += 1;
            if *count > EACH_TOLD_MAX {
                if !count.is_power_of_two() {
                    return;
                }
                text += &format!(" ({count} {kind} so far; the log has each)");
            }
        }
        if self.latest.len() == EVENTS_KEPT {
            self.latest.pop_front();
        }
        // A line is a line, whatever a worker says.
        let text = text.replace(['\n', '\r'], " ");
        self.latest.push_back(EventView { number: self.told, at_s, level, device, text });
        self.told += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_bounded_and_its_numbers_go_on() {
        let mut events = Events::default();
        for number in 0..EVENTS_KEPT + 50 {
            events.add(0.5, Happening::new(EventLevel::Info, format!("{number}\nand more")));
        }
        assert_eq!(events.latest.len(), EVENTS_KEPT);
        assert_eq!(events.latest[0].number, 50);
        assert_eq!(events.latest[0].text, "50 and more");
    }

    #[test]
    fn what_happens_often_leaves_room_for_the_rest() {
        let mut events = Events::default();
        events.add(1.0, Happening::of_device(EventLevel::Error, "sim:0", "retired"));
        for _ in 0..10_000 {
            let split = Happening::of_device(EventLevel::Warning, "sim:1", "batch split");
            events.add(2.0, split.often("splits"));
        }
        assert_eq!(events.latest[0].text, "retired");
        // Twenty, then 32, 64 … 8192.
        assert_eq!(events.latest.len(), 1 + 20 + 9);
        assert_eq!(events.latest.back().unwrap().text, "batch split (8192 splits so far; the log has each)");
    }
}
