//! What happened, the latest lowest.

use actors::{EventLevel, EventView};
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Widget};

use super::Look;
use crate::dashboard::model::Model;
use crate::progress::duration;

/// The events in a frame.
pub(super) fn draw(area: Rect, screen: &mut Buffer, model: &Model, look: Look) {
    let title = format!(" {} ", title(model));
    let block = look.block(&title);
    let inner = block.inner(area);
    block.render(area, screen);
    draw_lines(inner, screen, &model.events(), model.scrolled, look);
}

/// The events under a title.
pub(super) fn draw_plain(area: Rect, screen: &mut Buffer, model: &Model, look: Look) {
    let [above, below] = under_a_title(area);
    Line::styled(title(model), look.strong()).render(above, screen);
    draw_lines(below, screen, &model.events(), model.scrolled, look);
}

/// A line, and what is below it.
pub(super) fn under_a_title(area: Rect) -> [Rect; 2] {
    Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area)
}

fn title(model: &Model) -> String {
    let mut title = match model.level {
        EventLevel::Info => "events".to_owned(),
        EventLevel::Warning => "events: warnings and errors".to_owned(),
        EventLevel::Error => "events: errors".to_owned(),
    };
    if !model.search.is_empty() {
        title += &format!(" with \"{}\"", model.search);
    }
    if model.scrolled > 0 {
        title += &format!(", {} newer below", model.scrolled);
    }
    title
}

/// The latest of `events` that there is room for.
pub(super) fn draw_lines(
    area: Rect,
    screen: &mut Buffer,
    events: &[&EventView],
    scrolled: usize,
    look: Look,
) {
    let end = events.len().saturating_sub(scrolled);
    let start = end.saturating_sub(usize::from(area.height));
    let lines: Vec<Line<'_>> = events[start..end].iter().map(|event| line(event, look)).collect();
    Paragraph::new(lines).render(area, screen);
}

fn line<'a>(event: &'a EventView, look: Look) -> Line<'a> {
    let (mark, style) = match event.level {
        EventLevel::Info => ("    ", Style::new()),
        EventLevel::Warning => ("warn", look.warning()),
        EventLevel::Error => ("ERR ", look.bad()),
    };
    let mut spans = vec![
        Span::styled(format!("{:>11} ", duration(event.at_s)), look.quiet()),
        Span::styled(mark, style),
        Span::raw(" "),
    ];
    if let Some(device) = &event.device {
        spans.push(Span::styled(format!("{device} "), look.strong()));
    }
    spans.push(Span::raw(event.text.as_str()));
    Line::from(spans)
}
