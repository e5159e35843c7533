//! Draws the model. Pure: the same model and size give the same screen.
//!
//! This file decides what is where; the others draw the parts.

mod devices;
mod events;
mod figures;
mod look;
mod pages;
mod pipeline;
#[cfg(test)]
mod tests;

use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};

pub(super) use self::look::Look;
use super::model::{Model, Page};

/// From here on there is room for the chart beside the figures of the pipeline.
const WIDE: u16 = 140;
/// From here on the parts have frames.
const NORMAL: (u16, u16) = (96, 30);

/// Draws the whole screen.
pub(super) fn draw(area: Rect, screen: &mut Buffer, model: &Model, look: Look) {
    let Some(snapshot) = &model.snapshot else {
        return pages::draw_without_snapshot(area, screen, model, look);
    };
    // What must not be missing comes first: how it stands, how far it is, what to press.
    let [title, gauge, sentence, body, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(u16::from(area.height >= 2)),
        Constraint::Length(figures::sentence_rows(model, snapshot, area)),
        Constraint::Min(0),
        Constraint::Length(u16::from(area.height >= 3)),
    ])
    .areas(area);
    figures::draw_title(title, screen, model, snapshot, look);
    figures::draw_gauge(gauge, screen, snapshot, look);
    figures::draw_sentence(sentence, screen, model, snapshot, look);
    match model.page {
        Page::Overview if body.width >= WIDE && area.height >= NORMAL.1 => {
            draw_wide(body, screen, model, look);
        }
        Page::Overview if area.width >= NORMAL.0 && area.height >= NORMAL.1 => {
            draw_normal(body, screen, model, look);
        }
        Page::Overview => draw_compact(body, screen, model, look),
        Page::Device => pages::draw_device(body, screen, model, snapshot, look),
        Page::Events => events::draw(body, screen, model, look),
    }
    pages::draw_keys(keys, screen, model, look);
    if model.helping {
        pages::draw_help(area, screen, look);
    }
    if let Some(question) = &model.question {
        pages::draw_question(area, screen, model, question, look);
    }
}

/// Two columns: the flow and its devices, figures and events.
fn draw_wide(area: Rect, screen: &mut Buffer, model: &Model, look: Look) {
    let Some(snapshot) = &model.snapshot else { return };
    let [left, right] = Layout::horizontal([Constraint::Fill(5), Constraint::Fill(3)]).areas(area);
    // What the devices leave makes the chart higher, up to a height that still reads as one.
    let devices_rows = (snapshot.devices.len() as u16).saturating_add(3);
    let chart_rows = left.height.saturating_sub(7).saturating_sub(devices_rows).clamp(7, 18);
    let [pipeline, chart, devices] =
        Layout::vertical([Constraint::Length(7), Constraint::Length(chart_rows), Constraint::Min(3)])
            .areas(left);
    let [histogram, events] = Layout::vertical([Constraint::Length(11), Constraint::Min(3)]).areas(right);
    pipeline::draw(pipeline, screen, snapshot, look);
    figures::draw_chart(chart, screen, model, snapshot, look);
    devices::draw(devices, screen, model, snapshot, look);
    figures::draw_histogram(histogram, screen, snapshot, look);
    events::draw(events, screen, model, look);
}

/// One part under the other, chart and histogram side by side.
fn draw_normal(area: Rect, screen: &mut Buffer, model: &Model, look: Look) {
    let Some(snapshot) = &model.snapshot else { return };
    let devices_rows = (snapshot.devices.len() as u16).saturating_add(3);
    let [pipeline, charts, devices, events] = Layout::vertical([
        Constraint::Length(7),
        Constraint::Length(7),
        // Of many devices some are shown, of the events always the latest.
        Constraint::Length(devices_rows.min(area.height.saturating_sub(19)).max(4)),
        Constraint::Min(3),
    ])
    .areas(area);
    let [chart, histogram] = Layout::horizontal([Constraint::Fill(2), Constraint::Fill(1)]).areas(charts);
    pipeline::draw(pipeline, screen, snapshot, look);
    figures::draw_chart(chart, screen, model, snapshot, look);
    figures::draw_histogram(histogram, screen, snapshot, look);
    devices::draw(devices, screen, model, snapshot, look);
    events::draw(events, screen, model, look);
}

/// No frames, and only what there is room for; the devices never go.
fn draw_compact(area: Rect, screen: &mut Buffer, model: &Model, look: Look) {
    let Some(snapshot) = &model.snapshot else { return };
    let pipeline_rows = if area.height >= 12 { 5 } else { 0 };
    let chart_rows = if area.height >= 19 { 3 } else { 0 };
    let left = area.height - pipeline_rows - chart_rows;
    let events_rows = if left >= 6 { (left / 3).max(3) } else { 0 };
    let devices_rows = (snapshot.devices.len() as u16).saturating_add(1).min(left - events_rows);
    let [pipeline, chart, devices, events] = Layout::vertical([
        Constraint::Length(pipeline_rows),
        Constraint::Length(chart_rows),
        Constraint::Length(devices_rows),
        Constraint::Min(events_rows),
    ])
    .areas(area);
    pipeline::draw_plain(pipeline, screen, snapshot, look);
    figures::draw_chart_plain(chart, screen, model, snapshot, look);
    devices::draw_plain(devices, screen, model, snapshot, look);
    if events.height >= 2 {
        events::draw_plain(events, screen, model, look);
    }
}

/// A place of at most this size in the middle.
fn middle(area: Rect, width: u16, height: u16) -> Rect {
    let (width, height) = (width.min(area.width), height.min(area.height));
    Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height }
}
