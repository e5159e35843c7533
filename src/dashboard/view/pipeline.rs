//! The stages of the pipeline: what waits before each, and how it spends its time.

use actors::{Snapshot, Stage, StageView};
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Row, Table, Widget};

use super::Look;

/// Letters of a queue's meter.
const QUEUE_WIDTH: usize = 8;
/// Letters of a stage's time.
const TIME_WIDTH: usize = 16;

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
    let (time, waits) = (area.width >= 52, area.width >= 72);
    let mut header = vec![Cell::from("  stage"), Cell::from("waiting")];
    let mut widths = vec![Constraint::Length(9), Constraint::Length(QUEUE_WIDTH as u16 + 9)];
    if time {
        header.push(Cell::from("its time"));
        widths.push(Constraint::Length(TIME_WIDTH as u16));
    }
    header.extend(["busy", "starved", "blocked"].map(|name| Cell::from(format!("{name:>7}"))));
    widths.extend([Constraint::Length(7); 3]);
    if waits {
        header.push(Cell::from("waits p50 / p95"));
        widths.push(Constraint::Min(15));
    }
    let rows = snapshot.stages.iter().map(|stage| {
        let blamed = snapshot.bottleneck.stage == Some(stage.stage);
        let mut cells = vec![name(stage, blamed, look), queue(stage, look)];
        if time {
            let (busy, starved, blocked) = (stage.busy_share, stage.starved_share, stage.blocked_share);
            cells.push(Line::from(look.shares(busy, starved, blocked, TIME_WIDTH)).into());
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
    Line::from(vec![
        Span::styled(look.meter(share, QUEUE_WIDTH), style),
        Span::raw(format!(" {}/{}", stage.queued, stage.capacity)),
    ])
    .into()
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
