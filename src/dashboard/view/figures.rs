//! The figures of the whole run: title, gauge, verdict, throughput, how full batches are.

use actors::packing::FILL_STEPS;
use actors::{DeviceState, PreparingStep, PreparingView, Snapshot, Tier};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Sparkline, Widget, Wrap};

use super::Look;
use crate::dashboard::model::{Model, Standing};
use crate::progress::{duration, grouped};

/// Batches below this share of their budget are counted as badly filled, as the packer's reports do.
const FILL_POOR: usize = FILL_STEPS * 80 / 100;

/// How it stands, since when, for how long.
pub(super) fn draw_title(area: Rect, screen: &mut Buffer, model: &Model, snapshot: &Snapshot, look: Look) {
    let standing = Standing::of(model);
    let style = match standing {
        Standing::Connecting
        | Standing::Preparing
        | Standing::Loading
        | Standing::Running
        | Standing::Done => look.good(),
        Standing::Degraded
        | Standing::Starved
        | Standing::Paused
        | Standing::Stopping
        | Standing::Stopped => look.warning(),
        Standing::WritingPaused
        | Standing::AllLost
        | Standing::Failed
        | Standing::Silent
        | Standing::Gone => look.bad(),
    };
    let dash = look.dash();
    let mut spans = vec![Span::styled(standing.words(), style.patch(look.strong()))];
    let goes_on = model.ended.is_none() && !matches!(standing, Standing::AllLost | Standing::Silent);
    let time = match snapshot.remaining.filter(|_| goes_on) {
        // A range is worth its room only where it says something.
        Some(left) if left.high_s > 1.2 * left.low_s && area.width >= 76 => format!(
            "{}, about {} left ({} to {})",
            duration(snapshot.elapsed_s),
            duration(left.seconds),
            duration(left.low_s),
            duration(left.high_s)
        ),
        Some(left) if area.width < 60 => {
            format!("{}, {} left", duration(snapshot.elapsed_s), duration(left.seconds))
        }
        Some(left) => format!("{}, about {} left", duration(snapshot.elapsed_s), duration(left.seconds)),
        None => duration(snapshot.elapsed_s),
    };
    spans.push(Span::raw(format!("{dash}{time}")));
    spans.push(Span::styled(format!("{dash}{}", model.folder), look.quiet()));
    if area.width >= 110 && !snapshot.job.model.is_empty() {
        let job = &snapshot.job;
        spans.push(Span::styled(
            format!("{dash}{} {} {}", job.model, job.precision, job.pooling),
            look.quiet(),
        ));
        spans.push(Span::styled(format!("{dash}{}", job.host), look.quiet()));
    }
    Line::from(spans).render(area, screen);
}

/// How far it is, by residues; before that, by the bytes of the input.
pub(super) fn draw_gauge(area: Rect, screen: &mut Buffer, snapshot: &Snapshot, look: Look) {
    let share = match snapshot.preparing {
        Some(PreparingView { bytes_total: 0, .. }) => 0.0,
        Some(PreparingView { bytes_read, bytes_total, .. }) => {
            (bytes_read as f64 / bytes_total as f64).clamp(0.0, 1.0)
        }
        None => snapshot.done_share(),
    };
    let (committed, total) = (grouped(snapshot.records_committed), grouped(snapshot.records_total));
    let label = if let Some(PreparingView { step: PreparingStep::StoringInput, bytes_read, .. }) =
        snapshot.preparing
    {
        // How many will come nobody knows.
        format!(" {} bytes of standard input stored", grouped(bytes_read))
    } else if snapshot.preparing.is_some() {
        format!(" {:5.1} % of the input read", 100.0 * share)
    } else if area.width >= 72 {
        format!(" {:5.1} %  {committed} of {total} records committed", 100.0 * share)
    } else {
        format!(" {:5.1} %", 100.0 * share)
    };
    let width = usize::from(area.width).saturating_sub(label.chars().count());
    let spans = vec![Span::styled(look.meter(share, width), look.good()), Span::raw(label)];
    Line::from(spans).render(area, screen);
}

/// Rows that the verdict takes on a screen of this size.
pub(super) fn sentence_rows(model: &Model, snapshot: &Snapshot, area: Rect) -> u16 {
    let letters = sentence(model, snapshot, Look { colour: false, unicode: false }).width();
    match area.height {
        0..4 => 0,
        20.. if letters > usize::from(area.width) => 2,
        _ => 1,
    }
}

/// The verdict in one plain sentence, and what went wrong so far.
pub(super) fn draw_sentence(area: Rect, screen: &mut Buffer, model: &Model, snapshot: &Snapshot, look: Look) {
    Paragraph::new(sentence(model, snapshot, look)).wrap(Wrap { trim: true }).render(area, screen);
}

fn sentence(model: &Model, snapshot: &Snapshot, look: Look) -> Line<'static> {
    let mut spans = vec![Span::styled(verdict(model, snapshot), tier_style(snapshot.bottleneck.tier, look))];
    let mut trouble = |count: u64, one: &str, many: &str| {
        if count > 0 {
            let what = if count == 1 { one } else { many };
            spans.push(Span::styled(format!("{}{} {what}", look.dash(), grouped(count)), look.warning()));
        }
    };
    trouble(snapshot.restarts, "restart", "restarts");
    trouble(snapshot.failed, "record failed", "records failed");
    Line::from(spans)
}

fn tier_style(tier: Tier, look: Look) -> Style {
    match tier {
        Tier::Unknown | Tier::Good => Style::new(),
        Tier::Mild | Tier::Critical => look.warning(),
    }
}

/// What the run waits for, or how it ended.
fn verdict(model: &Model, snapshot: &Snapshot) -> String {
    if let Some(reason) = model.ended.as_ref().and_then(|ended| ended.reason.as_ref()) {
        return reason.clone();
    }
    let count = |state| snapshot.devices.iter().filter(|device| device.state == state).count();
    match Standing::of(model) {
        Standing::Preparing => {
            let step = snapshot.preparing.unwrap_or_default().step;
            format!("{}: nothing is computed before that is done", step.words())
        }
        Standing::Connecting | Standing::Loading => "devices load the model".to_owned(),
        Standing::Paused => "devices get no batches until somebody lets them go on".to_owned(),
        Standing::WritingPaused => "writing is paused: the log says what is in the way".to_owned(),
        Standing::Stopping => "what can be finished in the grace time is finished".to_owned(),
        Standing::AllLost => "no device is left; what is committed stays".to_owned(),
        Standing::Done => "everything is computed and committed".to_owned(),
        Standing::Stopped | Standing::Failed => "what is committed stays".to_owned(),
        Standing::Silent => format!(
            "nothing heard for {}: process {} on {} is suspended (`fg` or `kill -CONT` lets it go on) or stuck",
            duration(model.silent_s.unwrap_or_default() as f64),
            snapshot.job.process,
            snapshot.job.host
        ),
        Standing::Gone => "the job is not running any more; the same command goes on".to_owned(),
        Standing::Degraded if count(DeviceState::Ready) == 0 => {
            "no device is ready; failed ones are started again".to_owned()
        }
        Standing::Degraded | Standing::Running | Standing::Starved => match &snapshot.bottleneck.sentence {
            said if !said.is_empty() => said.clone(),
            _ if count(DeviceState::Ready) == 0 => "no device is ready".to_owned(),
            _ if snapshot.batches_queued == 0 && snapshot.slots_free > 0 => {
                "devices wait for batches: reading or writing holds them up, or the end is near".to_owned()
            }
            _ => "the devices set the pace".to_owned(),
        },
    }
}

fn throughput(snapshot: &Snapshot, width: u16) -> String {
    let tokens = grouped(snapshot.tokens_per_s_now as u64);
    if width < 60 {
        return format!("{tokens} tokens/s");
    }
    format!(
        "{tokens} tokens/s now, {} on the whole, {} sequences/s",
        grouped(snapshot.tokens_per_s as u64),
        grouped(snapshot.sequences_per_s_now as u64)
    )
}

/// Throughput over the last minutes.
pub(super) fn draw_chart(area: Rect, screen: &mut Buffer, model: &Model, snapshot: &Snapshot, look: Look) {
    let title = format!(" {} ", throughput(snapshot, area.width));
    let block = look.block(&title);
    let inner = block.inner(area);
    block.render(area, screen);
    draw_bars(inner, screen, &latest(&model.history, inner.width), look);
}

/// The same without a frame.
pub(super) fn draw_chart_plain(
    area: Rect,
    screen: &mut Buffer,
    model: &Model,
    snapshot: &Snapshot,
    look: Look,
) {
    let [title, chart] = super::events::under_a_title(area);
    Line::styled(throughput(snapshot, area.width), look.strong()).render(title, screen);
    draw_bars(chart, screen, &latest(&model.history, chart.width), look);
}

/// The newest values on the right.
pub(super) fn latest(history: &std::collections::VecDeque<u64>, width: u16) -> Vec<u64> {
    let width = usize::from(width);
    let mut points = vec![0; width.saturating_sub(history.len())];
    points.extend(history.iter().skip(history.len().saturating_sub(width)));
    points
}

pub(super) fn draw_bars(area: Rect, screen: &mut Buffer, points: &[u64], look: Look) {
    Sparkline::default().data(points).bar_set(look.bars()).style(look.good()).render(area, screen);
}

/// How full batches are: a bar for each twentieth of the budget.
pub(super) fn draw_histogram(area: Rect, screen: &mut Buffer, snapshot: &Snapshot, look: Look) {
    let fill = &snapshot.fill;
    let poor: u64 = fill.histogram[..FILL_POOR].iter().sum();
    let share = if fill.batches == 0 { 0.0 } else { 100.0 * poor as f64 / fill.batches as f64 };
    let title = match fill.batches {
        0 => " no batch yet ".to_owned(),
        _ => format!(" batches {:.1} % full ", 100.0 * fill.mean()),
    };
    let block = look.block(&title);
    let inner = block.inner(area);
    block.render(area, screen);
    if inner.height < 3 || usize::from(inner.width) < FILL_STEPS {
        return;
    }
    let step = usize::from(inner.width) / FILL_STEPS;
    let width = (step * FILL_STEPS) as u16;
    let bars = Rect { width, height: inner.height - 2, ..inner };
    let points: Vec<u64> = fill.histogram.iter().flat_map(|&count| vec![count; step]).collect();
    draw_bars(bars, screen, &points, look);
    let axis = Rect { y: inner.bottom() - 2, height: 1, width, ..inner };
    let ends = usize::from(width).saturating_sub(1);
    Paragraph::new(format!("0{:>half$}{:>rest$}", "50", "100 %", half = ends / 2, rest = ends - ends / 2))
        .style(look.quiet())
        .render(axis, screen);
    let words = format!("{} batches, {share:.0} % below 80 %", grouped(fill.batches));
    Line::raw(words).render(Rect { y: inner.bottom() - 1, height: 1, ..inner }, screen);
}
