//! The command `top`: a live view of a job that runs anywhere on this machine.
//!
//! A loop of events, update and draw ([`model`], [`view`]); a thread reads the job's snapshots. Leaving it
//! never touches the job, and the terminal is restored however it ends.

mod model;
mod view;

use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use actors::bounds;
use actors::manifest::ResultFolder;
use crossterm::event::Event as TerminalEvent;

use self::model::{Action, Event, Model};
use self::view::Look;
use crate::attach;
use crate::cli::FolderArguments;
use crate::control::{Answer, Request};
use crate::failure::{Exit, Failure};

/// Longest wait for a key: the screen is drawn at most ten times a second.
const POLL: Duration = Duration::from_millis(100);
/// Longest line of a job: a snapshot takes some hundred bytes for each device.
const LINE_BYTES_MAX: u64 = 16 << 20;

/// Shows a running job until the user leaves.
pub(crate) fn top(arguments: &FolderArguments) -> Result<Exit, Failure> {
    let shown = arguments.folder.display().to_string();
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(Failure::new(Exit::Usage, "`top` needs a terminal")
            .hint(format!("virnucpro-orch status {shown} prints the same once")));
    }
    let folder = ResultFolder(arguments.folder.clone());
    let Some(stream) = attach::open(&folder, &Request::Watch)? else {
        return Err(attach::no_job(&arguments.folder));
    };
    let left = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, left.clone())
            .map_err(|error| Failure::because(Exit::Failed, &error))?;
    }
    let (events, received) = flume::bounded(bounds::DASHBOARD_EVENTS);
    // Not joined: it reads until the job or this process ends.
    std::thread::Builder::new()
        .name("snapshots".to_owned())
        .spawn(move || {
            let mut lines = BufReader::new(stream);
            loop {
                let mut line = String::new();
                let read = (&mut lines).take(LINE_BYTES_MAX).read_line(&mut line);
                let event = match (read, serde_json::from_str(&line)) {
                    (Ok(1..), Ok(Answer::Snapshot(snapshot))) => Event::Snapshot(snapshot),
                    _ => Event::Gone,
                };
                let is_last = matches!(event, Event::Gone);
                if events.send(event).is_err() || is_last {
                    return;
                }
            }
        })
        .map_err(|error| Failure::because(Exit::Failed, &error))?;
    let result = show(Model::new(shown), &folder, &received, &left);
    result.map_err(|error| Failure::new(Exit::Failed, format!("the terminal cannot be used: {error}")))?;
    Ok(Exit::Done)
}

fn show(
    mut model: Model,
    folder: &ResultFolder,
    events: &flume::Receiver<Event>,
    left: &AtomicBool,
) -> std::io::Result<()> {
    let look = look();
    let mut terminal = Screen::open()?;
    let mut drawn_at: Option<Instant> = None;
    let mut stale = true;
    while !left.load(Ordering::Relaxed) {
        if stale && drawn_at.is_none_or(|at| at.elapsed() >= POLL) {
            terminal.0.draw(|frame| view::draw(frame, &model, look))?;
            (drawn_at, stale) = (Some(Instant::now()), false);
        }
        let mut happened: Vec<Event> = events.try_iter().collect();
        if crossterm::event::poll(POLL)? {
            match crossterm::event::read()? {
                TerminalEvent::Key(key) => happened.push(Event::Key(key)),
                TerminalEvent::Resize(_, _) => stale = true,
                _ => {}
            }
        }
        for event in happened {
            stale = true;
            match model.update(event) {
                Action::Nothing => {}
                Action::Leave => return Ok(()),
                Action::Ask(request) => {
                    let asked = attach::ask_for(&folder.0, &request).map_err(|failure| failure.line());
                    model.update(Event::Asked(asked.map(|_| request)));
                }
            }
        }
    }
    Ok(())
}

/// The terminal in full-screen mode; given back as it was when dropped, after a panic too.
struct Screen(ratatui::DefaultTerminal);

impl Screen {
    fn open() -> std::io::Result<Self> {
        ratatui::try_init().map(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn look() -> Look {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let colour = variable("NO_COLOR").is_empty() && variable("TERM") != "dumb";
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].map(variable).into_iter().find(|value| !value.is_empty());
    let unicode = locale.is_none_or(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    });
    Look { colour, unicode }
}
