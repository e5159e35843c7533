//! What the dashboard knows, and what a key or a snapshot changes in it. No terminal, no job: values only.

use std::collections::VecDeque;

use actors::Snapshot;
use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::control::Request;

/// Points of the throughput chart: at four snapshots a second, two and a half minutes.
const HISTORY_MAX: usize = 600;

/// Something that happened.
pub(super) enum Event {
    Snapshot(Box<Snapshot>),
    /// The job sends no more: it has ended, or was killed.
    Gone,
    Key(KeyEvent),
    /// A wish was passed on, or not.
    Asked(Result<Request, String>),
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    Leave,
    Ask(Request),
}

/// The dashboard's state.
#[derive(Default)]
pub(super) struct Model {
    /// The result folder, as typed.
    pub(super) folder: String,
    pub(super) snapshot: Option<Box<Snapshot>>,
    /// Tokens per second, oldest first.
    pub(super) history: VecDeque<u64>,
    pub(super) gone: bool,
    pub(super) helping: bool,
    /// `s` was pressed: `y` stops the job.
    pub(super) confirming_stop: bool,
    /// First device of the table.
    pub(super) first_device: usize,
    /// The latest thing to say.
    pub(super) message: Option<String>,
}

impl Model {
    pub(super) fn new(folder: String) -> Self {
        Self { folder, ..Self::default() }
    }

    /// Takes an event in.
    pub(super) fn update(&mut self, event: Event) -> Action {
        match event {
            Event::Snapshot(snapshot) => {
                self.history.push_back(snapshot.tokens_per_s_now as u64);
                if self.history.len() > HISTORY_MAX {
                    self.history.pop_front();
                }
                self.snapshot = Some(snapshot);
                Action::Nothing
            }
            Event::Gone => {
                self.gone = true;
                self.confirming_stop = false;
                Action::Nothing
            }
            Event::Asked(asked) => {
                self.message = Some(match asked {
                    Ok(Request::Stop) => "the job was asked to stop".to_owned(),
                    Ok(Request::Pause) => "the job was asked to pause".to_owned(),
                    Ok(Request::Resume) => "the job was asked to go on".to_owned(),
                    Ok(Request::Retire { device }) => format!("{device} was asked to leave"),
                    Ok(Request::Readmit { device }) => format!("{device} is tried again"),
                    Ok(Request::Checkpoint) => "what is computed is on disk".to_owned(),
                    Ok(Request::Status | Request::Watch) => return Action::Nothing,
                    Err(error) => error,
                });
                Action::Nothing
            }
            Event::Key(key) if key.kind == KeyEventKind::Press => self.pressed(key),
            Event::Key(_) => Action::Nothing,
        }
    }

    fn pressed(&mut self, key: KeyEvent) -> Action {
        self.message = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Action::Leave;
        }
        if std::mem::take(&mut self.helping) {
            return Action::Nothing;
        }
        if std::mem::take(&mut self.confirming_stop) {
            return if key.code == KeyCode::Char('y') { Action::Ask(Request::Stop) } else { Action::Nothing };
        }
        let devices = self.snapshot.as_ref().map_or(0, |snapshot| snapshot.devices.len());
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Action::Leave,
            KeyCode::Char('?') | KeyCode::Char('h') => self.helping = true,
            KeyCode::Down | KeyCode::Char('j') => {
                self.first_device = (self.first_device + 1).min(devices.saturating_sub(1));
            }
            KeyCode::Up | KeyCode::Char('k') => self.first_device = self.first_device.saturating_sub(1),
            KeyCode::Char('p') if !self.gone => {
                let paused = self.snapshot.as_ref().is_some_and(|snapshot| snapshot.paused);
                return Action::Ask(if paused { Request::Resume } else { Request::Pause });
            }
            KeyCode::Char('s') if !self.gone => self.confirming_stop = true,
            _ => {}
        }
        Action::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(model: &mut Model, key: char) -> Action {
        model.update(Event::Key(KeyEvent::new(KeyCode::Char(key), KeyModifiers::NONE)))
    }

    #[test]
    fn stopping_asks_first() {
        let mut model = Model::new("results".to_owned());
        assert_eq!(press(&mut model, 's'), Action::Nothing);
        assert_eq!(press(&mut model, 'n'), Action::Nothing);
        assert_eq!(press(&mut model, 'y'), Action::Nothing);
        press(&mut model, 's');
        assert_eq!(press(&mut model, 'y'), Action::Ask(Request::Stop));
    }

    #[test]
    fn pause_and_resume_share_a_key_and_a_job_that_is_gone_is_asked_nothing() {
        let mut model = Model::new("results".to_owned());
        assert_eq!(press(&mut model, 'p'), Action::Ask(Request::Pause));
        let paused = Snapshot { paused: true, ..Snapshot::default() };
        model.update(Event::Snapshot(Box::new(paused)));
        assert_eq!(press(&mut model, 'p'), Action::Ask(Request::Resume));
        model.update(Event::Gone);
        assert_eq!(press(&mut model, 'p'), Action::Nothing);
        assert_eq!(press(&mut model, 'q'), Action::Leave);
    }

    #[test]
    fn the_history_is_bounded() {
        let mut model = Model::new("results".to_owned());
        for _ in 0..2 * HISTORY_MAX {
            model.update(Event::Snapshot(Box::default()));
        }
        assert_eq!(model.history.len(), HISTORY_MAX);
    }
}
