//! The devices, a row each: as many columns as there is room for, in the order of what matters.

use std::collections::VecDeque;

use actors::{DeviceState, DeviceView, Snapshot};
use ratatui::buffer::Buffer;
use ratatui::layout::{Alignment, Constraint, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Row, Table, Widget};

use super::Look;
use crate::dashboard::model::Model;
use crate::progress::grouped;

/// A column; the order is that of the screen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    Name,
    State,
    Rate,
    Spark,
    Busy,
    Memory,
    Utilisation,
    Temperature,
    Power,
    Budget,
    Restarts,
    Heartbeat,
    Error,
}

impl Column {
    const ALL: [Self; 13] = [
        Self::Name,
        Self::State,
        Self::Rate,
        Self::Spark,
        Self::Busy,
        Self::Memory,
        Self::Utilisation,
        Self::Temperature,
        Self::Power,
        Self::Budget,
        Self::Restarts,
        Self::Heartbeat,
        Self::Error,
    ];

    /// Those that go last when the screen gets narrower, first.
    const BY_WORTH: [Self; 13] = [
        Self::Name,
        Self::State,
        Self::Rate,
        Self::Busy,
        Self::Spark,
        Self::Memory,
        Self::Restarts,
        Self::Utilisation,
        Self::Temperature,
        Self::Power,
        Self::Budget,
        Self::Error,
        Self::Heartbeat,
    ];

    fn header(self) -> &'static str {
        match self {
            Self::Name => "device",
            Self::State => "state",
            Self::Rate => "tokens/s",
            Self::Spark => "lately",
            Self::Busy => "busy",
            Self::Memory => "memory",
            Self::Utilisation => "GPU",
            Self::Temperature => "temp",
            Self::Power => "power",
            Self::Budget => "budget",
            Self::Restarts => "restarts",
            Self::Heartbeat => "heard",
            Self::Error => "last error",
        }
    }

    fn width(self) -> u16 {
        match self {
            Self::Name => 9,
            Self::State | Self::Memory => 10,
            Self::Rate => 9,
            Self::Spark => 12,
            Self::Busy | Self::Utilisation => 6,
            Self::Temperature => 5,
            Self::Power | Self::Heartbeat => 7,
            Self::Budget => 7,
            Self::Restarts => 8,
            Self::Error => 18,
        }
    }

    fn is_figure(self) -> bool {
        !matches!(self, Self::Name | Self::State | Self::Spark | Self::Error)
    }

    /// The columns that fit.
    fn chosen(width: u16, gpus: bool) -> Vec<Self> {
        let of_gpus = [Self::Utilisation, Self::Temperature, Self::Power];
        let mut used = 0;
        let mut chosen: Vec<Self> = Vec::new();
        for column in Self::BY_WORTH {
            if (gpus || !of_gpus.contains(&column)) && used + column.width() < width {
                used += column.width() + 1;
                chosen.push(column);
            }
        }
        Self::ALL.into_iter().filter(|column| chosen.contains(column)).collect()
    }
}

/// The devices in a frame.
pub(super) fn draw(area: Rect, screen: &mut Buffer, model: &Model, snapshot: &Snapshot, look: Look) {
    let count = |state| snapshot.devices.iter().filter(|device| device.state == state).count();
    let title = format!(" {} of {} devices ready ", count(DeviceState::Ready), snapshot.devices.len());
    let block = look.block(&title);
    let inner = block.inner(area);
    block.render(area, screen);
    draw_plain(inner, screen, model, snapshot, look);
}

/// The devices, one a row.
pub(super) fn draw_plain(area: Rect, screen: &mut Buffer, model: &Model, snapshot: &Snapshot, look: Look) {
    if area.is_empty() {
        return;
    }
    let columns = Column::chosen(area.width, snapshot.devices.iter().any(|device| device.gpu.is_some()));
    let header = columns.iter().map(|column| aligned(*column, Span::raw(column.header())));
    let widths = columns.iter().map(|column| match column {
        Column::Error => Constraint::Min(column.width()),
        column => Constraint::Length(column.width()),
    });
    let room = usize::from(area.height.saturating_sub(1));
    let none = VecDeque::new();
    let rows = snapshot.devices.iter().enumerate().skip(first_shown(model, snapshot, room)).take(room).map(
        |(number, device)| {
            let history = model.device_histories.get(number).unwrap_or(&none);
            let marked = number == model.selected;
            let cells =
                columns.iter().map(|&column| aligned(column, cell(column, device, history, marked, look)));
            Row::new(cells)
        },
    );
    Table::new(rows, widths).header(Row::new(header).style(look.quiet())).render(area, screen);
}

/// The marked device is always among those shown.
fn first_shown(model: &Model, snapshot: &Snapshot, room: usize) -> usize {
    let last = snapshot.devices.len().saturating_sub(room);
    model.selected.saturating_sub(room / 2).min(last)
}

fn aligned(column: Column, span: Span<'_>) -> Cell<'_> {
    let alignment = if column.is_figure() { Alignment::Right } else { Alignment::Left };
    Line::from(span).alignment(alignment).into()
}

fn cell<'a>(
    column: Column,
    device: &'a DeviceView,
    history: &VecDeque<u64>,
    marked: bool,
    look: Look,
) -> Span<'a> {
    let sample = device.gpu.as_ref().and_then(|gpu| gpu.sample.as_ref());
    let figure = |value: Option<String>| Span::raw(value.unwrap_or_else(|| "-".to_owned()));
    match column {
        Column::Name if marked => Span::styled(
            format!("{}{}", look.mark(), device.name),
            Style::new().add_modifier(Modifier::REVERSED),
        ),
        Column::Name => Span::raw(format!(" {}", device.name)),
        Column::State => Span::styled(state_words(device.state), state(device.state, look)),
        Column::Rate => Span::raw(grouped(device.tokens_per_s_now as u64)),
        Column::Spark => Span::styled(look.spark(history.iter(), usize::from(column.width())), look.good()),
        Column::Busy => figure(device.busy_share_now.map(|share| format!("{:.0} %", 100.0 * share))),
        Column::Memory => memory(device, look),
        Column::Utilisation => {
            figure(sample.and_then(|sample| sample.busy_percent).map(|busy| format!("{busy} %")))
        }
        Column::Temperature => {
            figure(sample.and_then(|sample| sample.temperature_c).map(|celsius| format!("{celsius} C")))
        }
        Column::Power => figure(sample.and_then(|sample| sample.power_w).map(|watt| format!("{watt:.0} W"))),
        Column::Budget => Span::raw(grouped(u64::from(device.token_budget))),
        Column::Restarts if device.restarts > 0 => Span::styled(device.restarts.to_string(), look.warning()),
        Column::Restarts => Span::raw("0"),
        Column::Heartbeat => figure(device.heartbeat_age_s.map(|age| format!("{age:.1} s"))),
        Column::Error => Span::raw(device.last_error.as_deref().unwrap_or_default()),
    }
}

/// What a device is doing, in one word.
pub(super) fn state_words(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Ready => "ready",
        DeviceState::Loading => "loading",
        DeviceState::Waiting => "restarting",
        DeviceState::Retired => "retired",
        DeviceState::Stopped => "stopped",
    }
}

/// Its colour.
pub(super) fn state(state: DeviceState, look: Look) -> Style {
    match state {
        DeviceState::Ready => look.good(),
        DeviceState::Waiting => look.warning(),
        DeviceState::Retired => look.bad(),
        DeviceState::Loading | DeviceState::Stopped => Style::new(),
    }
}

/// Memory of the GPU where there is one, else of the worker; marked from 90 % on.
fn memory(device: &DeviceView, look: Look) -> Span<'static> {
    const GIB: f64 = (1u64 << 30) as f64;
    let sample = device.gpu.as_ref().and_then(|gpu| gpu.sample.as_ref());
    if let Some((used, total)) = sample.and_then(|it| it.memory_used_bytes.zip(it.memory_total_bytes)) {
        let text = format!("{:.0}/{:.0} GiB", used as f64 / GIB, total as f64 / GIB);
        let short = sample.and_then(|it| it.memory_share).is_some_and(|share| share >= 0.9);
        return Span::styled(text, if short { look.warning() } else { Style::new() });
    }
    match device.resident_bytes {
        Some(bytes) if bytes >= 10 << 30 => Span::raw(format!("{:.0} GiB", bytes as f64 / GIB)),
        Some(bytes) => Span::raw(format!("{} MiB", bytes >> 20)),
        None => Span::raw("-"),
    }
}
