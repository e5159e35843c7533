//! What the dashboard knows, and what a key or a snapshot changes in it. No terminal, no job: values only.

use std::collections::VecDeque;
use std::sync::Arc;

use actors::manifest::RunStatus;
use actors::{DeviceState, DeviceView, EventLevel, EventView, Snapshot, bounds};

use super::keys::Key;
use crate::control::Request;
use crate::logging::LogLine;

/// Points of a chart: at four snapshots a second, two and a half minutes.
const HISTORY_MAX: usize = 600;
/// Longest text to search for.
const SEARCH_MAX: usize = 100;
/// How long something that was said stays, seconds.
const MESSAGE_S: f64 = 5.0;
/// Events that Page Up and Page Down move over.
const PAGE: usize = 10;

/// Something that happened.
pub(super) enum Event {
    Snapshot(Arc<Snapshot>),
    /// For so many seconds there has been no snapshot, although the job is there.
    Silent(u64),
    /// Lines of the log that the snapshot does not tell.
    Logged(Vec<LogLine>),
    /// The job sends no more.
    Ended(Ended),
    Key(Key),
    /// A wish was passed on, or not.
    Asked(Request, Result<Option<String>, String>),
}

/// How the job ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ended {
    /// What `run.json` says; `None` if it says nothing, or that the job runs, which it does not.
    pub(super) status: Option<RunStatus>,
    pub(super) reason: Option<String>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// Close the dashboard; the job goes on.
    Leave,
    Ask(Request),
}

/// Where the dashboard runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// In the job's own process, in the foreground of its terminal. `outlives`: a closed terminal does not end it.
    Job { outlives: bool },
    /// Anywhere else: leaving concerns nobody.
    Elsewhere,
}

/// What fills the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    Overview,
    Device,
    Events,
}

/// What must be answered before anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Quit,
    Stop,
    /// Of the device of this name.
    Retire(String),
    Readmit(String),
}

/// The dashboard's state.
pub(super) struct Model {
    pub(super) home: Home,
    /// The result folder, as typed.
    pub(super) folder: String,
    pub(super) snapshot: Option<Arc<Snapshot>>,
    /// Tokens per second, oldest first.
    pub(super) history: VecDeque<u64>,
    /// The same for each device.
    pub(super) device_histories: Vec<VecDeque<u64>>,
    pub(super) ended: Option<Ended>,
    /// Seconds since the last snapshot, where one is overdue.
    pub(super) silent_s: Option<u64>,
    pub(super) page: Page,
    pub(super) helping: bool,
    pub(super) question: Option<Question>,
    /// The device that is marked, by its place.
    pub(super) selected: usize,
    logged: VecDeque<EventView>,
    /// Events below it are left out.
    pub(super) level: EventLevel,
    /// Only events with this text are shown.
    pub(super) search: String,
    /// Whether keys are letters of `search`.
    pub(super) searching: bool,
    /// Events between the last and the lowest one shown.
    pub(super) scrolled: usize,
    /// The latest thing to say.
    pub(super) message: Option<String>,
    /// When it was said, in the session's time.
    said_at_s: f64,
}

impl Model {
    pub(super) fn new(home: Home, folder: String) -> Self {
        Self {
            home,
            folder,
            snapshot: None,
            history: VecDeque::new(),
            device_histories: Vec::new(),
            ended: None,
            silent_s: None,
            page: Page::Overview,
            helping: false,
            question: None,
            selected: 0,
            logged: VecDeque::new(),
            level: EventLevel::Info,
            search: String::new(),
            searching: false,
            scrolled: 0,
            message: None,
            said_at_s: 0.0,
        }
    }

    /// Takes an event in.
    pub(super) fn update(&mut self, event: Event) -> Action {
        match event {
            Event::Snapshot(snapshot) => self.took(snapshot),
            Event::Silent(seconds) => self.silent_s = Some(seconds),
            Event::Logged(lines) => {
                let at_s = self.elapsed_s();
                for LogLine { level, device, text } in lines {
                    self.logged.push_back(EventView { number: 0, at_s, level, device, text });
                }
                let surplus = self.logged.len().saturating_sub(bounds::LOG_LINES);
                self.logged.drain(..surplus);
            }
            Event::Ended(ended) => {
                self.ended = Some(ended);
                self.question = None;
            }
            Event::Asked(request, asked) => {
                self.message = match asked {
                    Ok(Some(words)) => Some(words),
                    Ok(None) => done(&request).map(str::to_owned),
                    Err(error) => Some(error),
                };
                self.said_at_s = self.elapsed_s();
            }
            Event::Key(key) => return self.pressed(key),
        }
        Action::Nothing
    }

    fn took(&mut self, snapshot: Arc<Snapshot>) {
        remember(&mut self.history, snapshot.tokens_per_s_now);
        self.device_histories.resize_with(snapshot.devices.len(), VecDeque::new);
        for (history, device) in self.device_histories.iter_mut().zip(&snapshot.devices) {
            remember(history, device.tokens_per_s_now);
        }
        self.selected = self.selected.min(snapshot.devices.len().saturating_sub(1));
        self.snapshot = Some(snapshot);
        self.silent_s = None;
        if self.elapsed_s() > self.said_at_s + MESSAGE_S {
            self.message = None;
        }
    }

    fn elapsed_s(&self) -> f64 {
        self.snapshot.as_ref().map_or(0.0, |snapshot| snapshot.elapsed_s)
    }

    fn pressed(&mut self, key: Key) -> Action {
        if self.searching {
            self.message = None;
            self.searched(key);
            return Action::Nothing;
        }
        if matches!(key, Key::Pasted(_)) {
            // Nobody means a text as an answer, let alone as keys.
            return Action::Nothing;
        }
        self.message = None;
        if let Some(question) = self.question.take() {
            return self.answered(question, key);
        }
        if std::mem::take(&mut self.helping) {
            return Action::Nothing;
        }
        let last_device =
            self.snapshot.as_ref().map_or(0, |snapshot| snapshot.devices.len()).saturating_sub(1);
        match key {
            Key::Char('q') if self.home == Home::Elsewhere || self.ended.is_some() => return Action::Leave,
            Key::Char('q') => self.question = Some(Question::Quit),
            Key::Char('?' | 'h') => self.helping = true,
            Key::Down | Key::Char('j') => self.selected = (self.selected + 1).min(last_device),
            Key::Up | Key::Char('k') => self.selected = self.selected.saturating_sub(1),
            Key::Home => self.selected = 0,
            Key::End => self.selected = last_device,
            Key::PageUp => self.scrolled = (self.scrolled + PAGE).min(self.events().len().saturating_sub(1)),
            Key::PageDown => self.scrolled = self.scrolled.saturating_sub(PAGE),
            Key::Enter if self.page == Page::Overview => self.page = Page::Device,
            Key::Char('e') => {
                self.page = if self.page == Page::Events { Page::Overview } else { Page::Events };
            }
            Key::Esc if self.page != Page::Overview => self.page = Page::Overview,
            Key::Esc => self.search.clear(),
            Key::Char('/') => (self.searching, self.scrolled) = (true, 0),
            Key::Char('f') => {
                self.scrolled = 0;
                self.level = match self.level {
                    EventLevel::Info => EventLevel::Warning,
                    EventLevel::Warning => EventLevel::Error,
                    EventLevel::Error => EventLevel::Info,
                };
            }
            Key::Char(letter) if self.ended.is_none() => return self.wished(letter),
            Key::Enter | Key::Backspace | Key::Char(_) | Key::Pasted(_) => {}
        }
        Action::Nothing
    }

    /// Keys that concern the job.
    fn wished(&mut self, letter: char) -> Action {
        match letter {
            'p' => {
                let paused = self.snapshot.as_ref().is_some_and(|snapshot| snapshot.paused);
                return Action::Ask(if paused { Request::Resume } else { Request::Pause });
            }
            's' => self.question = Some(Question::Stop),
            'c' => {
                self.message = Some("what is computed of open segments is brought to disk".to_owned());
                self.said_at_s = self.elapsed_s();
                return Action::Ask(Request::Checkpoint);
            }
            'r' => match self.marked() {
                Some(DeviceView { name, state: DeviceState::Retired, last_error, .. }) => {
                    let why = last_error.as_ref().map_or(String::new(), |error| format!(" ({error})"));
                    self.message = Some(format!("{name} is retired already: a takes it back{why}"));
                    self.said_at_s = self.elapsed_s();
                }
                device => self.question = device.map(|device| Question::Retire(device.name.clone())),
            },
            'a' => self.question = self.marked().map(|device| Question::Readmit(device.name.clone())),
            _ => {}
        }
        Action::Nothing
    }

    /// The marked device.
    fn marked(&self) -> Option<&DeviceView> {
        self.snapshot.as_ref()?.devices.get(self.selected)
    }

    fn answered(&mut self, question: Question, key: Key) -> Action {
        match (question, key) {
            (Question::Quit, Key::Char('s')) | (Question::Stop, Key::Char('y')) => Action::Ask(Request::Stop),
            (Question::Quit, Key::Char('d')) => Action::Leave,
            (Question::Retire(device), Key::Char('y')) => Action::Ask(Request::Retire { device }),
            (Question::Readmit(device), Key::Char('y')) => Action::Ask(Request::Readmit { device }),
            (Question::Quit | Question::Stop | Question::Retire(_) | Question::Readmit(_), _) => {
                Action::Nothing
            }
        }
    }

    fn searched(&mut self, key: Key) {
        match key {
            Key::Char(letter) if self.search.chars().count() < SEARCH_MAX => self.search.push(letter),
            Key::Pasted(text) => {
                let room = SEARCH_MAX.saturating_sub(self.search.chars().count());
                self.search.extend(text.chars().take(room));
            }
            Key::Backspace => drop(self.search.pop()),
            Key::Enter => self.searching = false,
            Key::Esc => {
                self.search.clear();
                self.searching = false;
            }
            _ => {}
        }
    }

    /// The events that pass the filter, oldest first.
    pub(super) fn events(&self) -> Vec<&EventView> {
        let told = self.snapshot.iter().flat_map(|snapshot| &snapshot.events);
        let mut events: Vec<&EventView> =
            told.chain(&self.logged).filter(|event| self.passes(event)).collect();
        events.sort_by(|one, other| one.at_s.total_cmp(&other.at_s));
        events
    }

    fn passes(&self, event: &EventView) -> bool {
        let search = self.search.to_lowercase();
        let has = |text: &str| text.to_lowercase().contains(&search);
        event.level >= self.level && (has(&event.text) || event.device.as_deref().is_some_and(has))
    }
}

/// What a wish that was passed on means; `None` where the screen shows it by itself.
fn done(request: &Request) -> Option<&'static str> {
    match request {
        Request::Stop => Some("the job was asked to stop"),
        Request::Pause => Some("the job was asked to pause: what runs is completed"),
        Request::Resume => Some("the job was asked to go on"),
        Request::Checkpoint | Request::Retire { .. } | Request::Readmit { .. } => Some("done"),
        Request::Status | Request::Watch => None,
    }
}

fn remember(history: &mut VecDeque<u64>, rate: f64) {
    history.push_back(rate as u64);
    if history.len() > HISTORY_MAX {
        history.pop_front();
    }
}

/// How a job stands, in the words of every page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Connecting,
    /// Nothing is computed yet.
    Preparing,
    Loading,
    Running,
    /// It goes on with less than all its devices.
    Degraded,
    /// Devices wait for work.
    Starved,
    Paused,
    WritingPaused,
    Stopping,
    AllLost,
    Done,
    Stopped,
    Failed,
    /// It is there and says nothing: suspended, or stuck.
    Silent,
    /// It ended without a word: killed, or the machine went down.
    Gone,
}

impl Standing {
    pub(super) fn of(model: &Model) -> Self {
        if let Some(ended) = &model.ended {
            return match ended.status {
                Some(RunStatus::Done) => Self::Done,
                Some(RunStatus::Stopped) => Self::Stopped,
                Some(RunStatus::Failed) => Self::Failed,
                Some(RunStatus::Running) | None => Self::Gone,
            };
        }
        let Some(snapshot) = &model.snapshot else { return Self::Connecting };
        if model.silent_s.is_some() {
            return Self::Silent;
        }
        if snapshot.preparing.is_some() {
            return Self::Preparing;
        }
        let count = |wanted: &[DeviceState]| {
            snapshot.devices.iter().filter(|device| wanted.contains(&device.state)).count()
        };
        let bad = count(&[DeviceState::Retired, DeviceState::Waiting]);
        if !snapshot.devices.is_empty() && count(&[DeviceState::Retired]) == snapshot.devices.len() {
            Self::AllLost
        } else if snapshot.stopping {
            Self::Stopping
        } else if snapshot.disk_full {
            Self::WritingPaused
        } else if snapshot.paused {
            Self::Paused
        } else if snapshot.sequences_computed == 0 && count(&[DeviceState::Ready]) == 0 && bad == 0 {
            Self::Loading
        } else if bad > 0 {
            Self::Degraded
        } else if is_starved(snapshot) {
            Self::Starved
        } else {
            Self::Running
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Preparing => "preparing",
            Self::Loading => "loading",
            Self::Running => "running",
            Self::Degraded => "degraded",
            Self::Starved => "starved",
            Self::Paused => "paused",
            Self::WritingPaused => "writing is paused",
            Self::Stopping => "stopping",
            Self::AllLost => "all devices lost",
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
            Self::Silent => "no answer",
            Self::Gone => "ended",
        }
    }
}

/// Whether devices stand idle for more than half of the time, and not because one is loading.
fn is_starved(snapshot: &Snapshot) -> bool {
    use actors::{Stage, Tier};
    snapshot.bottleneck.tier == Tier::Critical
        && matches!(snapshot.bottleneck.stage, Some(Stage::Read | Stage::Pack | Stage::Write))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: Home = Home::Job { outlives: false };

    fn model(home: Home) -> Model {
        let mut model = Model::new(home, "results".to_owned());
        model.update(Event::Snapshot(Arc::default()));
        model
    }

    fn press(model: &mut Model, key: char) -> Action {
        model.update(Event::Key(Key::Char(key)))
    }

    #[test]
    fn stopping_asks_first() {
        let mut model = model(HOME);
        assert_eq!(press(&mut model, 's'), Action::Nothing);
        assert_eq!(press(&mut model, 'n'), Action::Nothing);
        assert_eq!(press(&mut model, 'y'), Action::Nothing);
        press(&mut model, 's');
        assert_eq!(press(&mut model, 'y'), Action::Ask(Request::Stop));
    }

    #[test]
    fn quitting_asks_where_the_job_is_at_home_and_nowhere_else() {
        let mut guest = model(Home::Elsewhere);
        assert_eq!(press(&mut guest, 'q'), Action::Leave);
        let mut own = model(HOME);
        for (answer, action) in
            [('n', Action::Nothing), ('d', Action::Leave), ('s', Action::Ask(Request::Stop))]
        {
            assert_eq!(press(&mut own, 'q'), Action::Nothing);
            assert_eq!(own.question, Some(Question::Quit));
            assert_eq!(press(&mut own, answer), action);
            assert_eq!(own.question, None);
        }
    }

    #[test]
    fn a_device_is_sent_away_and_taken_back_by_name_after_a_question() {
        let mut model = model(HOME);
        assert_eq!(press(&mut model, 'r'), Action::Nothing);
        assert_eq!(model.question, None, "there is no device");
        model.update(Event::Snapshot(Arc::new(super::super::scenes::running(3))));
        model.update(Event::Key(Key::Down));
        press(&mut model, 'r');
        assert_eq!(press(&mut model, 'x'), Action::Nothing);
        press(&mut model, 'r');
        let device = "sim:1".to_owned();
        assert_eq!(press(&mut model, 'y'), Action::Ask(Request::Retire { device: device.clone() }));
        press(&mut model, 'a');
        assert_eq!(press(&mut model, 'y'), Action::Ask(Request::Readmit { device }));
        assert_eq!(press(&mut model, 'c'), Action::Ask(Request::Checkpoint));
        model.update(Event::Asked(Request::Checkpoint, Ok(Some("2 segments kept".to_owned()))));
        assert_eq!(model.message.as_deref(), Some("2 segments kept"));
        model.update(Event::Asked(Request::Checkpoint, Err("the run is ending".to_owned())));
        assert_eq!(model.message.as_deref(), Some("the run is ending"));
        let later = Snapshot { elapsed_s: 75.0 + 2.0 * MESSAGE_S, ..super::super::scenes::running(3) };
        model.update(Event::Snapshot(Arc::new(later)));
        assert_eq!(model.message, None, "it gives way to the keys again");
    }

    #[test]
    fn a_device_that_is_retired_already_is_not_asked_about() {
        let mut model = model(HOME);
        let mut snapshot = super::super::scenes::running(3);
        snapshot.devices[0].state = DeviceState::Retired;
        snapshot.devices[0].last_error = Some("worker ended".to_owned());
        model.update(Event::Snapshot(Arc::new(snapshot)));
        assert_eq!(press(&mut model, 'r'), Action::Nothing);
        assert_eq!(model.question, None);
        assert_eq!(
            model.message.as_deref(),
            Some("sim:0 is retired already: a takes it back (worker ended)")
        );
        assert_eq!(press(&mut model, 'y'), Action::Nothing);
        press(&mut model, 'a');
        assert_eq!(press(&mut model, 'y'), Action::Ask(Request::Readmit { device: "sim:0".to_owned() }));
    }

    #[test]
    fn pause_and_resume_share_a_key_and_a_job_that_is_gone_is_asked_nothing() {
        let mut model = model(HOME);
        assert_eq!(press(&mut model, 'p'), Action::Ask(Request::Pause));
        let paused = Snapshot { paused: true, ..Snapshot::default() };
        model.update(Event::Snapshot(Arc::new(paused)));
        assert_eq!(press(&mut model, 'p'), Action::Ask(Request::Resume));
        press(&mut model, 's');
        model.update(Event::Ended(Ended::default()));
        assert_eq!(press(&mut model, 'y'), Action::Nothing);
        assert_eq!(press(&mut model, 'p'), Action::Nothing);
        assert_eq!(press(&mut model, 's'), Action::Nothing);
        assert_eq!(model.question, None);
        assert_eq!(press(&mut model, 'q'), Action::Leave);
    }

    #[test]
    fn a_search_takes_every_letter_until_it_is_ended() {
        let mut model = model(HOME);
        let line =
            |level, text: &str| LogLine { level, device: Some("sim:3".to_owned()), text: text.to_owned() };
        model.update(Event::Logged(vec![
            line(EventLevel::Info, "ready"),
            line(EventLevel::Error, "Quarantined qsp"),
        ]));
        assert_eq!(model.events().len(), 2);
        press(&mut model, '/');
        for letter in "qsp".chars() {
            assert_eq!(press(&mut model, letter), Action::Nothing);
        }
        assert_eq!((model.search.as_str(), model.events().len()), ("qsp", 1));
        model.update(Event::Key(Key::Enter));
        model.update(Event::Key(Key::Esc));
        assert_eq!(model.events().len(), 2);
        press(&mut model, 'f');
        assert_eq!(model.events().len(), 1);
        press(&mut model, '/');
        for letter in "SIM:3".chars() {
            press(&mut model, letter);
        }
        assert_eq!(model.events().len(), 1, "devices are searched as well");
        press(&mut model, '!');
        assert_eq!(model.events().len(), 0);
        model.update(Event::Key(Key::Backspace));
        assert_eq!(model.events().len(), 1);
    }

    #[test]
    fn a_pasted_text_is_no_keys_but_may_be_searched_for() {
        let mut model = model(HOME);
        let pasted = |text: &str| Event::Key(Key::Pasted(text.to_owned()));
        press(&mut model, 's');
        assert_eq!(model.update(pasted("y")), Action::Nothing);
        assert_eq!(model.question, Some(Question::Stop), "it still waits for an answer");
        press(&mut model, 'n');
        press(&mut model, '/');
        press(&mut model, 'a');
        assert_eq!(model.update(pasted("sy p")), Action::Nothing);
        assert_eq!(model.search, "asy p");
        model.update(pasted(&"x".repeat(2 * SEARCH_MAX)));
        assert_eq!(model.search.len(), SEARCH_MAX);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut model = model(HOME);
        let line = LogLine { level: EventLevel::Info, device: None, text: "again".to_owned() };
        for _ in 0..2 * HISTORY_MAX {
            model.update(Event::Snapshot(Arc::default()));
            model.update(Event::Logged(vec![line.clone()]));
        }
        assert_eq!((model.history.len(), model.events().len()), (HISTORY_MAX, bounds::LOG_LINES));
        press(&mut model, '/');
        for _ in 0..2 * SEARCH_MAX {
            press(&mut model, 'x');
        }
        assert_eq!(model.search.len(), SEARCH_MAX);
    }

    #[test]
    fn the_marked_device_is_one_of_those_that_there_are() {
        let mut model = model(HOME);
        for key in [Key::Down, Key::End, Key::Up, Key::Home, Key::PageUp, Key::PageDown, Key::Enter] {
            model.update(Event::Key(key));
            assert_eq!(model.selected, 0);
        }
        assert_eq!(model.page, Page::Device);
        model.update(Event::Key(Key::Esc));
        assert_eq!(model.page, Page::Overview);
    }
}
