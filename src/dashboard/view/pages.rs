//! What is not the overview: a device, help, questions, the line of keys, and the time before a snapshot.

use actors::{DeviceView, EventView, GpuView, Snapshot};
use ratatui::buffer::Buffer;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Paragraph, Widget, Wrap};

use super::Look;
use super::devices::{state, state_words};
use super::{events, figures, middle};
use crate::dashboard::model::{Home, Model, Question, Standing};
use crate::progress::{duration, grouped};

/// Before the first snapshot.
pub(super) fn draw_without_snapshot(area: Rect, screen: &mut Buffer, model: &Model, look: Look) {
    let words = match &model.ended {
        Some(_) => format!("no job is running in {}; q quits", model.folder),
        None => format!("connecting to {} {}", model.folder, look.ellipsis()),
    };
    Paragraph::new(words).alignment(Alignment::Center).wrap(Wrap { trim: true }).render(area, screen);
}

/// Everything about the marked device.
pub(super) fn draw_device(area: Rect, screen: &mut Buffer, model: &Model, snapshot: &Snapshot, look: Look) {
    let Some(device) = snapshot.devices.get(model.selected) else {
        Line::raw("no device").render(area, screen);
        return;
    };
    let number = model.selected + 1;
    let title = format!(" {} ({number} of {}) ", device.name, snapshot.devices.len());
    let block = look.block(&title);
    let inner = block.inner(area);
    block.render(area, screen);
    let facts = facts(device, snapshot);
    let chart_rows = if inner.height as usize >= facts.len() + 6 { 4 } else { 0 };
    let [above, chart, below] = Layout::vertical([
        Constraint::Length(facts.len() as u16),
        Constraint::Length(chart_rows),
        Constraint::Min(0),
    ])
    .areas(inner);
    let lines: Vec<Line<'_>> = facts
        .iter()
        .map(|(name, value)| {
            let style =
                if *name == "state" { state(device.state, look) } else { ratatui::style::Style::new() };
            Line::from(vec![
                Span::styled(format!("{name:<13}"), look.quiet()),
                Span::styled(value.as_str(), style),
            ])
        })
        .collect();
    Paragraph::new(lines).render(above, screen);
    if let Some(history) = model.device_histories.get(model.selected) {
        figures::draw_bars(chart, screen, &figures::latest(history, chart.width), look);
    }
    let all = model.events();
    let about = |event: &&EventView| event.device.as_deref() == Some(device.name.as_str());
    let own: Vec<&EventView> = all.into_iter().filter(about).collect();
    events::draw_lines(below, screen, &own, model.scrolled, look);
}

fn facts(device: &DeviceView, snapshot: &Snapshot) -> Vec<(&'static str, String)> {
    let all: u64 = snapshot.devices.iter().map(|device| device.tokens).sum();
    let share = if all == 0 { 0.0 } else { 100.0 * device.tokens as f64 / all as f64 };
    let mut facts = vec![
        ("state", format!("{}, start {} of its worker", state_words(device.state), device.generation + 1)),
        (
            "speed",
            format!(
                "{} tokens/s, busy {}",
                grouped(device.tokens_per_s_now as u64),
                percent(device.busy_share_now)
            ),
        ),
        (
            "done",
            format!(
                "{} tokens, {share:.0} % of all, {} in the engine",
                grouped(device.tokens),
                duration(device.compute_s)
            ),
        ),
        (
            "budget",
            format!(
                "{} of {} tokens at once",
                grouped(u64::from(device.token_budget)),
                grouped(u64::from(snapshot.job.token_budget))
            ),
        ),
        ("worker", worker(device)),
    ];
    if let Some(gpu) = &device.gpu {
        facts.extend(gpu_facts(gpu));
    }
    facts.push(("last error", device.last_error.clone().unwrap_or_else(|| "none".to_owned())));
    facts
}

/// What is known of the process.
fn worker(device: &DeviceView) -> String {
    let mut words = vec![format!("{} restarts", device.restarts)];
    words.extend(device.resident_bytes.map(|bytes| format!("{} MiB", bytes >> 20)));
    words.extend(device.cpu_cores.map(|cores| format!("{cores:.1} cores")));
    words.push(match device.heartbeat_age_s {
        Some(age) => format!("heard of {age:.1} s ago"),
        None => "not there now".to_owned(),
    });
    words.join(", ")
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "not known".to_owned(), |share| format!("{:.0} %", 100.0 * share))
}

fn gpu_facts(gpu: &GpuView) -> Vec<(&'static str, String)> {
    let identity = &gpu.identity;
    let words = |text: &Option<String>| text.clone().unwrap_or_else(|| "not known".to_owned());
    let mut facts = vec![("GPU", format!("{}, {}", words(&identity.name), words(&identity.uuid)))];
    let Some(sample) = &gpu.sample else {
        facts.push(("", "lost, or the driver cannot be asked".to_owned()));
        return facts;
    };
    let number = |value: Option<u64>, unit: &str| match value {
        Some(value) => format!("{}{unit}", grouped(value)),
        None => format!("-{unit}"),
    };
    let mib = |bytes: Option<u64>| bytes.map(|bytes| bytes >> 20);
    let watt = |value: Option<f64>| value.map(|value| value.round() as u64);
    facts.push((
        "",
        format!(
            "busy {}, memory {} of {}, {}, {} of {}, clock {}",
            number(sample.busy_percent.map(u64::from), " %"),
            number(mib(sample.memory_used_bytes), ""),
            number(mib(sample.memory_total_bytes), " MiB"),
            number(sample.temperature_c.map(u64::from), " C"),
            number(watt(sample.power_w), ""),
            number(watt(sample.power_limit_w), " W"),
            number(sample.clock_sm_mhz.map(u64::from), " MHz"),
        ),
    ));
    let slowed = sample.throttled_by.as_ref().filter(|reasons| !reasons.is_empty());
    let errors = sample.xid.as_ref().map(|xid| xid.count);
    facts.push((
        "",
        format!(
            "slowed by {}; memory errors {} corrected, {} not; critical errors {}",
            slowed.map_or_else(|| "nothing".to_owned(), |reasons| reasons.join(", ")),
            number(sample.ecc_corrected, ""),
            number(sample.ecc_uncorrected, ""),
            number(errors, ""),
        ),
    ));
    facts
}

/// What can be pressed, or what was last said.
pub(super) fn draw_keys(area: Rect, screen: &mut Buffer, model: &Model, look: Look) {
    let width = usize::from(area.width);
    let line = if model.searching {
        Line::styled(search_line(&model.search, width, look), look.strong())
    } else if let Some(message) = &model.message {
        Line::styled(whole_words(message, width, look), look.warning())
    } else if model.ended.is_some() {
        Line::raw(whole_items(&[(2, "the job has ended"), (0, "q quit"), (1, "? help")], "   ", width))
    } else {
        let paused = Standing::of(model) == Standing::Paused;
        let pause = if paused { "p go on" } else { "p pause" };
        let items = [
            (0, "q quit"),
            (2, pause),
            (3, "s stop"),
            (8, "c checkpoint"),
            (8, "r retire"),
            (8, "a take back"),
            (4, "Enter device"),
            (5, "e events"),
            (6, "/ search"),
            (7, "f filter"),
            (1, "? help"),
        ];
        Line::raw(whole_items(&items, "  ", width))
    };
    line.render(area, screen);
}

/// As many of the items as there is room for, none of them cut; each with its rank: the lowest stay longest,
/// those of one rank together.
fn whole_items(items: &[(u8, &str)], between: &str, width: usize) -> String {
    let with_rank_to = |rank: u8| {
        let words: Vec<&str> =
            items.iter().filter(|(its, _)| *its <= rank).map(|&(_, words)| words).collect();
        words.join(between)
    };
    let mut ranks: Vec<u8> = items.iter().map(|&(rank, _)| rank).collect();
    ranks.sort_unstable();
    let fits = |text: &String| text.chars().count() <= width;
    ranks.into_iter().map(with_rank_to).take_while(fits).last().unwrap_or_default()
}

/// The beginning of a text, up to the end of a word, with a mark where something is left out.
fn whole_words(text: &str, width: usize, look: Look) -> String {
    if Line::raw(text).width() <= width {
        return text.to_owned();
    }
    let mark = look.ellipsis();
    let room = width.saturating_sub(mark.chars().count() + 1);
    let mut kept = String::new();
    for word in text.split(' ') {
        let longer = if kept.is_empty() { word.to_owned() } else { format!("{kept} {word}") };
        if Line::raw(longer.as_str()).width() > room {
            break;
        }
        kept = longer;
    }
    if kept.is_empty() { text.chars().take(width).collect() } else { format!("{kept} {mark}") }
}

/// What is searched for, its end in any case, and what ends the search where there is room.
fn search_line(search: &str, width: usize, look: Look) -> String {
    let whole = format!("/{search}_");
    let length = whole.chars().count();
    if length > width {
        let mark = look.ellipsis();
        let room = width.saturating_sub(2 + mark.chars().count());
        let end: String = search.chars().skip(search.chars().count().saturating_sub(room)).collect();
        return format!("/{mark}{end}_");
    }
    whole_items(&[(0, &whole), (1, "Enter keeps it, Esc clears it")], "   ", width)
}

/// Width of the help with its frame.
const HELP_WIDTH: u16 = 68;

/// The keys, and what the figures mean where there is room for it.
pub(super) fn draw_help(area: Rect, screen: &mut Buffer, look: Look) {
    let lines = [
        "q        leave; asks first where the job runs in this terminal",
        "p        pause: devices get no more batches; again: go on",
        "s        stop the job (asks); the same command goes on later",
        "c        checkpoint: bring what is computed to disk now",
        "r  a     retire the marked device, take it back (both ask)",
        "up down  mark a device (j k); Enter: all about it; Esc: back",
        "e        events on the whole screen; Page Up, Page Down",
        "f  /     events by level; events with a text, Esc clears it",
        "Ctrl-C   as a signal: stops in order, a second time at once",
        "Ctrl-Z   suspends; fg comes back",
        "",
        "busy     share of time that a stage or device works",
        "starved  ... that it waits for the stages before it",
        "blocked  ... that it waits for the stages after it",
        "waits    how long half and 95 % of its pieces took to come",
        "budget   tokens a device gets at once; less when memory is short",
        "restarts starts of a worker beyond the first",
        "a mark   at a stage: it holds the others up",
    ];
    let small = [
        "q leave  p pause, go on  s stop",
        "c checkpoint  r retire  a take back",
        "up down mark  Enter all about it",
        "Esc back  e events  f by their level",
        "/ events with a text, Esc clears it",
        "Ctrl-C stops in order, twice: at once",
        "Ctrl-Z suspends; fg comes back",
    ];
    let lines = if area.width < HELP_WIDTH || area.height < 12 { &small[..] } else { &lines[..] };
    let place = middle(area, HELP_WIDTH, lines.len() as u16 + 2);
    Clear.render(place, screen);
    Paragraph::new(lines.iter().map(|&line| Line::raw(line)).collect::<Vec<_>>())
        .block(look.block(" help: any key closes it "))
        .render(place, screen);
}

/// A question in the middle of the screen.
pub(super) fn draw_question(area: Rect, screen: &mut Buffer, model: &Model, question: &Question, look: Look) {
    let (title, lines) = match question {
        Question::Quit => (" leave? ", quit_lines(model)),
        Question::Stop => (
            " stop the job? ",
            vec![
                "What is committed stays; the same command goes on later.".to_owned(),
                String::new(),
                "y          stop it".to_owned(),
                "other key  no".to_owned(),
            ],
        ),
        Question::Retire(device) => (
            " retire a device? ",
            vec![
                format!("{device} finishes what it holds and gets no more;"),
                "the job goes on with the others. `a` takes it back.".to_owned(),
                String::new(),
                "y          retire it".to_owned(),
                "other key  no".to_owned(),
            ],
        ),
        Question::Readmit(device) => (
            " take a device back? ",
            vec![
                format!("{device} is started again and must pass a trial first."),
                String::new(),
                "y          try it".to_owned(),
                "other key  no".to_owned(),
            ],
        ),
    };
    let text: Vec<Line<'_>> = lines.iter().map(|line| Line::raw(line.as_str())).collect();
    let width = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0) as u16 + 4;
    let paragraph = Paragraph::new(text).wrap(Wrap { trim: false });
    let height = lines.len() as u16 + 2;
    // A narrow screen breaks lines: give them more rows.
    let height = if width > area.width { height.saturating_mul(2) } else { height };
    let place = middle(area, width.min(area.width), height);
    Clear.render(place, screen);
    paragraph.block(look.block(title)).render(place, screen);
}

fn quit_lines(model: &Model) -> Vec<String> {
    let outlives = matches!(model.home, Home::Job { outlives: true });
    let closing = if outlives {
        "The job also goes on when this terminal is closed."
    } else {
        "Closing this terminal stops the job; the same command goes on later."
    };
    vec![
        "s          stop the job: what is committed stays".to_owned(),
        "d          detach: the job goes on here without the dashboard;".to_owned(),
        format!("           virnucpro-orch top {} shows it again", model.folder),
        "other key  stay".to_owned(),
        String::new(),
        closing.to_owned(),
    ]
}
