//! The stages of the pipeline: what waits before each, and how it spends its time.

use actors::{Snapshot, Stage, StageView};
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Row, Table, Widget};

use super::Look;

/// Letters of a queue's meter.
const QUEUE_WIDTH: usize = 8;
/// Letters of a stage's time, where there is room, and the fewest that still say something.
const TIME_WIDTH: u16 = 16;
const TIME_WIDTH_MIN: u16 = 6;
/// Letters of a stage's name, of its queue with the numbers, of its three shares, and of its waits.
const NAME_WIDTH: u16 = 9;
const NUMBERS_WIDTH: u16 = QUEUE_WIDTH as u16 + 9;
const SHARE_WIDTH: u16 = 7;
const WAITS_WIDTH: u16 = 15;

/// The stages in a frame.
pub(super) fn draw(area: Rect, screen: &mut Buffer, snapshot: &Snapshot, look: Look) {
    let arrow = look.arrow();
    let title = format!(" read {arrow} pack {arrow} compute {arrow} write ");
    let block = look.block(&title);
    let inner = block.inner(area);
    block.render(area, screen);
    draw_plain(inner, screen, snapshot, look);
}

/// The stages, one a row.
pub(super) fn draw_plain(area: Rect, screen: &mut Buffer, snapshot: &Snapshot, look: Look) {
    if area.is_empty() {
        return;
    }
    if snapshot.stages.is_empty() {
        Line::styled("no figures of the stages yet", look.quiet()).render(area, screen);
        return;
    }
    let waits = area.width >= 76;
    let time_width = time_width(area.width, waits);
    let time = time_width > 0;
    let mut header = vec![Cell::from("  stage"), Cell::from("waiting")];
    let mut widths = vec![Constraint::Length(NAME_WIDTH), Constraint::Length(NUMBERS_WIDTH)];
    if time {
        header.push(Cell::from("its time"));
        widths.push(Constraint::Length(time_width));
    }
    header.extend(["busy", "starved", "blocked"].map(|name| Cell::from(format!("{name:>7}"))));
    widths.extend([Constraint::Length(SHARE_WIDTH); 3]);
    if waits {
        header.push(Cell::from("waits p50 / p95"));
        widths.push(Constraint::Min(WAITS_WIDTH));
    }
    let rows = snapshot.stages.iter().map(|stage| {
        let blamed = snapshot.bottleneck.stage == Some(stage.stage);
        let mut cells = vec![name(stage, blamed, look), queue(stage, look)];
        if time {
            let (busy, starved, blocked) = (stage.busy_share, stage.starved_share, stage.blocked_share);
            cells.push(Line::from(look.shares(busy, starved, blocked, usize::from(time_width))).into());
        }
        let shares = [stage.busy_share, stage.starved_share, stage.blocked_share];
        cells.extend(shares.map(|share| Cell::from(format!("{:>5.0} %", 100.0 * share))));
        if waits && stage.waits.count > 0 {
            cells.push(Cell::from(format!("{} / {}", short(stage.waits.p50_ms), short(stage.waits.p95_ms))));
        }
        Row::new(cells)
    });
    Table::new(rows, widths).header(Row::new(header).style(look.quiet())).render(area, screen);
}

/// Letters left for a stage's time: numbers are never cut for it, as half a number is another one.
fn time_width(area_width: u16, waits: bool) -> u16 {
    // One letter lies between two columns.
    let others = NAME_WIDTH + NUMBERS_WIDTH + 3 * SHARE_WIDTH + 5 + if waits { WAITS_WIDTH + 1 } else { 0 };
    match area_width.saturating_sub(others) {
        ..TIME_WIDTH_MIN => 0,
        width => width.min(TIME_WIDTH),
    }
}

fn name(stage: &StageView, blamed: bool, look: Look) -> Cell<'static> {
    let name = stage.stage.name();
    if blamed {
        // That the devices set the pace is as it should be.
        let style = if stage.stage == Stage::Compute { look.strong() } else { look.warning() };
        Span::styled(format!("{} {name}", look.mark()), style).into()
    } else {
        Cell::from(format!("  {name}"))
    }
}

fn queue(stage: &StageView, look: Look) -> Cell<'static> {
    let share = if stage.capacity == 0 { 0.0 } else { stage.queued as f64 / stage.capacity as f64 };
    let style = if share >= 1.0 { look.warning() } else { look.good() };
    let numbers = format!(" {}/{}", stage.queued, stage.capacity);
    let meter_width = usize::from(NUMBERS_WIDTH).saturating_sub(numbers.len()).min(QUEUE_WIDTH);
    Line::from(vec![Span::styled(look.meter(share, meter_width), style), Span::raw(numbers)]).into()
}

/// Milliseconds in few letters.
fn short(milliseconds: f64) -> String {
    match milliseconds {
        ..0.095 => "0 ms".to_owned(),
        ..9.95 => format!("{milliseconds:.1} ms"),
        ..999.5 => format!("{milliseconds:.0} ms"),
        _ => format!("{:.1} s", milliseconds / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn waits_are_short_in_every_size() {
        assert_eq!(
            [0.01, 0.3, 12.4, 999.4, 1234.0, f64::NAN].map(short),
            ["0 ms", "0.3 ms", "12 ms", "999 ms", "1.2 s", "NaN s"]
        );
    }
}
