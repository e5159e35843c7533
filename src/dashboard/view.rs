//! Draws the model. Pure: the same model and size give the same screen.

use actors::{DeviceState, DeviceView, Snapshot};
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::{bar, border};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Gauge, Paragraph, Row, Sparkline, Table};

use super::model::Model;
use crate::progress::{duration, grouped};

/// What the terminal can show.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) colour: bool,
    pub(super) unicode: bool,
}

const ASCII_BORDER: border::Set<'_> = border::Set {
    top_left: "+",
    top_right: "+",
    bottom_left: "+",
    bottom_right: "+",
    vertical_left: "|",
    vertical_right: "|",
    horizontal_top: "-",
    horizontal_bottom: "-",
};

const ASCII_BARS: bar::Set<'_> = bar::Set {
    full: "#",
    seven_eighths: "#",
    three_quarters: "#",
    five_eighths: "+",
    half: "+",
    three_eighths: "-",
    one_quarter: "-",
    one_eighth: ".",
    empty: " ",
};

/// Colours that people who cannot tell red from green tell apart; the words say the same.
impl Look {
    fn style(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    fn good(self) -> Style {
        self.style(Color::Blue)
    }

    fn bad(self) -> Style {
        self.style(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    fn block(self, title: &str) -> Block<'_> {
        let set = if self.unicode { border::ROUNDED } else { ASCII_BORDER };
        Block::bordered().border_set(set).title(title)
    }
}

/// Draws the whole screen.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, look: Look) {
    let area = frame.area();
    let Some(snapshot) = &model.snapshot else {
        let words = if model.gone { "no job is running here" } else { "connecting …" };
        frame.render_widget(Paragraph::new(words).alignment(Alignment::Center), area);
        return;
    };
    // A low screen has no room for the chart, a very low one for anything but devices.
    let chart_rows = if area.height >= 30 {
        8
    } else if area.height >= 16 {
        5
    } else {
        0
    };
    let [title, progress, verdict, chart, devices, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Length(chart_rows),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(area);
    draw_title(frame, title, model, snapshot, look);
    draw_progress(frame, progress, snapshot, look);
    draw_verdict(frame, verdict, snapshot, look);
    if chart_rows > 0 {
        draw_chart(frame, chart, model, snapshot, look);
    }
    draw_devices(frame, devices, model, snapshot, look);
    draw_keys(frame, keys, model, look);
    if model.helping {
        draw_help(frame, area, look);
    }
}

fn draw_title(frame: &mut Frame<'_>, area: Rect, model: &Model, snapshot: &Snapshot, look: Look) {
    let (state, style) = if model.gone {
        ("ended", look.bad())
    } else if snapshot.stopping {
        ("stopping", look.bad())
    } else if snapshot.disk_full {
        ("writing is paused", look.bad())
    } else if snapshot.paused {
        ("paused", look.bad())
    } else if snapshot.devices.iter().all(|device| device.state == DeviceState::Loading) {
        ("loading", look.good())
    } else {
        ("running", look.good())
    };
    let left = match snapshot.remaining_s().filter(|_| !model.gone) {
        Some(seconds) => format!(", about {} left", duration(seconds)),
        None => String::new(),
    };
    let line = Line::from(vec![
        Span::styled(format!("{state} "), style.add_modifier(Modifier::BOLD)),
        Span::raw(format!("{} after {}{left}", model.folder, duration(snapshot.elapsed_s))),
    ]);
    frame.render_widget(line, area);
}

fn draw_progress(frame: &mut Frame<'_>, area: Rect, snapshot: &Snapshot, look: Look) {
    let done = snapshot.residues_resumed + snapshot.residues_computed();
    let ratio = match snapshot.residues_total {
        0 => 0.0,
        total => (done as f64 / total as f64).clamp(0.0, 1.0),
    };
    let label = format!(
        "{:.1} %  {} of {} records committed",
        100.0 * ratio,
        grouped(snapshot.records_committed),
        grouped(snapshot.records_total)
    );
    let gauge = Gauge::default().ratio(ratio).label(label).gauge_style(look.good()).use_unicode(look.unicode);
    frame.render_widget(gauge, area);
}

/// One plain sentence: what the run waits for.
fn verdict(snapshot: &Snapshot) -> &'static str {
    let any = |state| snapshot.devices.iter().any(|device| device.state == state);
    if snapshot.disk_full {
        "writing is paused: the log says what is in the way"
    } else if snapshot.stopping {
        "what can be finished in the grace time is finished"
    } else if snapshot.paused {
        "paused from outside: devices get no batches"
    } else if !any(DeviceState::Ready) {
        "no device is ready"
    } else if snapshot.batches_queued == 0 && snapshot.slots_free > 0 {
        "devices wait for batches: reading or writing holds them up, or the end is near"
    } else {
        "the devices set the pace"
    }
}

fn draw_verdict(frame: &mut Frame<'_>, area: Rect, snapshot: &Snapshot, look: Look) {
    let fill = &snapshot.fill;
    let mut counts = vec![Span::raw(format!(
        "{} batches, {:.1} % full; {} waiting, {} slots free",
        grouped(fill.batches),
        100.0 * fill.mean(),
        snapshot.batches_queued,
        snapshot.slots_free
    ))];
    if snapshot.restarts > 0 {
        counts.push(Span::styled(format!("; restarts: {}", snapshot.restarts), look.bad()));
    }
    if snapshot.failed > 0 {
        counts.push(Span::styled(format!("; records failed: {}", grouped(snapshot.failed)), look.bad()));
    }
    let lines = vec![Line::raw(verdict(snapshot)), Line::from(counts)];
    frame.render_widget(Paragraph::new(lines), area);
}

fn draw_chart(frame: &mut Frame<'_>, area: Rect, model: &Model, snapshot: &Snapshot, look: Look) {
    let title = format!(
        " {} tokens/s now, {} on the whole ",
        grouped(snapshot.tokens_per_s_now as u64),
        grouped(snapshot.tokens_per_s as u64)
    );
    let block = look.block(&title);
    let width = block.inner(area).width as usize;
    let points: Vec<u64> = model.history.iter().rev().take(width).rev().copied().collect();
    let bars = if look.unicode { bar::NINE_LEVELS } else { ASCII_BARS };
    frame
        .render_widget(Sparkline::default().data(points).bar_set(bars).style(look.good()).block(block), area);
}

fn draw_devices(frame: &mut Frame<'_>, area: Rect, model: &Model, snapshot: &Snapshot, look: Look) {
    let all: u64 = snapshot.devices.iter().map(|device| device.tokens).sum();
    let wide = area.width >= 100;
    let row = |device: &DeviceView| {
        let (state, style) = match device.state {
            DeviceState::Ready => ("ready", look.good()),
            DeviceState::Loading => ("loading", Style::new()),
            DeviceState::Waiting => ("restarting", look.bad()),
            DeviceState::Retired => ("retired", look.bad()),
            DeviceState::Stopped => ("stopped", Style::new()),
        };
        let share = if all == 0 { 0.0 } else { 100.0 * device.tokens as f64 / all as f64 };
        let cores = device.cpu_cores.map_or("N/A".to_owned(), |cores| format!("{cores:.1}"));
        let memory = device.resident_bytes.map_or("N/A".to_owned(), |bytes| format!("{} MiB", bytes >> 20));
        let mut cells = vec![
            Span::raw(device.name.clone()),
            Span::styled(state, style),
            Span::raw(device.generation.to_string()),
            Span::raw(format!("{share:.0} %")),
            Span::raw(cores),
            Span::raw(memory),
        ];
        if wide {
            cells.push(Span::raw(device.last_error.clone().unwrap_or_default()));
        }
        Row::new(cells)
    };
    let mut header = vec!["device", "state", "restarts", "share", "cores", "memory"];
    let mut widths = vec![
        Constraint::Min(10),
        Constraint::Length(10),
        Constraint::Length(8),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(10),
    ];
    if wide {
        header.push("last error");
        widths[0] = Constraint::Length(16);
        widths.push(Constraint::Min(20));
    }
    let block = look.block(" devices ");
    let room = usize::from(block.inner(area).height.saturating_sub(1));
    // As far down as asked, but never past the last screenful.
    let first = model.first_device.min(snapshot.devices.len().saturating_sub(room.max(1)));
    let rows = snapshot.devices.iter().skip(first).take(room).map(row);
    let header = Row::new(header).style(Style::new().add_modifier(Modifier::BOLD));
    frame.render_widget(Table::new(rows, widths).header(header).block(block), area);
}

fn draw_keys(frame: &mut Frame<'_>, area: Rect, model: &Model, look: Look) {
    let line = if model.confirming_stop {
        Line::styled(
            "stop the job? It goes on later by the same command.  y yes  any other key no",
            look.bad(),
        )
    } else if let Some(message) = &model.message {
        Line::styled(message.clone(), look.bad())
    } else if model.gone {
        Line::raw("the job has ended  q quit")
    } else {
        Line::raw("q quit view  p pause/resume  s stop  up/down devices  ? help")
    };
    frame.render_widget(line, area);
}

fn draw_help(frame: &mut Frame<'_>, area: Rect, look: Look) {
    let lines = [
        "q, Esc   leave; the job goes on",
        "p        pause: devices get no more batches; again: go on",
        "s, y     stop the job: what is committed stays",
        "up, down scroll the devices",
        "",
        "full     share of the token budget that batches use",
        "waiting  batches that no device has taken yet",
        "slots    free places in devices; many, and none waiting:",
        "         reading or writing is too slow",
        "share    part of all tokens that the device computed",
    ];
    let (width, height) = (62.min(area.width), (lines.len() as u16 + 2).min(area.height));
    let place =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines.map(Line::raw).to_vec()).block(look.block(" help ")), place);
}

#[cfg(test)]
mod tests {
    use actors::packing::Fill;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use actors::Remaining;

    use super::super::model::Event;
    use super::*;

    const PLAIN: Look = Look { colour: true, unicode: true };

    fn device(number: usize, state: DeviceState) -> DeviceView {
        DeviceView {
            name: format!("sim:{number}"),
            state,
            generation: 0,
            tokens: 1000,
            compute_s: 1.0,
            cpu_cores: Some(0.5),
            gpu: None,
            token_budget: 16_384,
            tokens_per_s_now: 0.0,
            busy_share_now: None,
            restarts: 0,
            heartbeat_age_s: None,
            resident_bytes: Some(200 << 20),
            last_error: None,
        }
    }

    fn running(devices: usize) -> Snapshot {
        Snapshot {
            version: actors::SNAPSHOT_VERSION,
            remaining: Some(Remaining { seconds: 225.0, low_s: 200.0, high_s: 260.0 }),
            elapsed_s: 75.0,
            records_total: 20_000,
            residues_total: 1_000_000,
            sequences_computed: 5_000,
            tokens_computed: 260_000,
            tokens_per_s_now: 3_600.0,
            tokens_per_s: 3_466.0,
            records_committed: 4_096,
            residues_committed: 204_800,
            segments_committed: 4,
            fill: Fill {
                batches: 16,
                tokens: 260_000,
                capacity_tokens: 262_144,
                padded_tokens: 300_000,
                ..Fill::default()
            },
            batches_queued: 12,
            devices: (0..devices).map(|number| device(number, DeviceState::Ready)).collect(),
            ..Snapshot::default()
        }
    }

    fn model(snapshot: Snapshot) -> Model {
        let mut model = Model::new("results/demo".to_owned());
        for step in 0..60 {
            let tokens_per_s_now = 1000.0 + f64::from(step % 20) * 150.0;
            model.update(Event::Snapshot(Box::new(Snapshot { tokens_per_s_now, ..snapshot.clone() })));
        }
        model.update(Event::Snapshot(Box::new(snapshot)));
        model
    }

    fn screen(model: &Model, width: u16, height: u16, look: Look) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model, look)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn running_on_an_ordinary_terminal() {
        insta::assert_snapshot!(screen(&model(running(4)), 80, 24, PLAIN));
    }

    #[test]
    fn degraded_on_a_wide_terminal() {
        let mut snapshot = running(4);
        snapshot.devices[1] = DeviceView {
            generation: 8,
            last_error: Some("no progress for 300.2 s, worker killed".to_owned()),
            ..device(1, DeviceState::Retired)
        };
        snapshot.devices[2] =
            DeviceView { generation: 1, cpu_cores: None, ..device(2, DeviceState::Waiting) };
        (snapshot.restarts, snapshot.failed) = (9, 3);
        insta::assert_snapshot!(screen(&model(snapshot), 120, 32, PLAIN));
    }

    #[test]
    fn sixteen_devices_without_unicode() {
        let mut model = model(running(16));
        model.first_device = 9;
        insta::assert_snapshot!(screen(&model, 80, 24, Look { colour: false, unicode: false }));
    }

    #[test]
    fn every_state_has_its_sentence() {
        let paused = Snapshot { paused: true, ..running(2) };
        let starved = Snapshot { batches_queued: 0, slots_free: 3, ..running(2) };
        let mut loading = running(2);
        loading.devices = (0..2).map(|number| device(number, DeviceState::Loading)).collect();
        let mut lost = running(2);
        lost.devices = (0..2).map(|number| device(number, DeviceState::Retired)).collect();
        for (snapshot, sentence) in [
            (running(2), "the devices set the pace"),
            (paused, "paused from outside"),
            (starved, "devices wait for batches"),
            (loading, "no device is ready"),
            (lost, "no device is ready"),
            (Snapshot { disk_full: true, ..running(2) }, "writing is paused: the log"),
            (Snapshot { stopping: true, ..running(2) }, "in the grace time"),
        ] {
            let screen = screen(&model(snapshot), 80, 24, PLAIN);
            assert!(screen.contains(sentence), "{sentence}:\n{screen}");
        }
        let mut ended = model(running(2));
        ended.update(Event::Gone);
        assert!(screen(&ended, 80, 24, PLAIN).contains("the job has ended"));
        let empty = Model::new("results".to_owned());
        assert!(screen(&empty, 80, 24, PLAIN).contains("connecting"));
    }

    #[test]
    fn no_size_is_too_small() {
        let mut with_help = model(running(16));
        with_help.helping = true;
        for width in [1, 2, 7, 20, 61, 80, 300] {
            for height in [1, 2, 3, 5, 9, 16, 30, 100] {
                for model in [&model(running(16)), &model(Snapshot::default()), &with_help] {
                    screen(model, width, height, PLAIN);
                }
            }
        }
    }
}
