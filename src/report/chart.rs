//! Charts as inline SVG: scalable, printable, coloured by the page's style, readable without any script.

use maud::{Markup, html};

use super::timeline::Timeline;

/// Width of a drawing; the page scales it.
const WIDTH: f64 = 860.0;
/// Room for the labels left of a plot.
const LEFT: f64 = 58.0;
/// Room right of a plot.
const RIGHT: f64 = 12.0;
/// Room above a plot: half a label, large as in a narrow drawing.
const TOP: f64 = 14.0;
/// Room for the labels below a plot.
const BOTTOM: f64 = 26.0;
/// Shares of a heat strip are told apart in so many steps: neighbours of the same colour are drawn as one.
const HEAT_STEPS: f64 = 20.0;

/// Where values lie in a drawing.
struct Frame {
    left: f64,
    width: f64,
    height: f64,
    x_max: f64,
    y_max: f64,
}

impl Frame {
    fn x(&self, value: f64) -> f64 {
        self.left + (value / self.x_max).clamp(0.0, 1.0) * (WIDTH - self.left - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let plot = self.height - TOP - BOTTOM;
        TOP + plot * (1.0 - (value / self.y_max).clamp(0.0, 1.0))
    }

    fn bottom(&self) -> f64 {
        self.height - BOTTOM
    }
}

/// A coordinate with one decimal: a tenth of a pixel.
fn c(number: f64) -> String {
    let text = format!("{number:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

/// Tokens per second over the time of all sessions.
pub(super) fn throughput(timeline: &Timeline) -> Markup {
    let fastest = timeline.tokens_per_s.iter().copied().fold(0.0, f64::max);
    let ticks = ticks(fastest, 4);
    let y_max = ticks.last().copied().unwrap_or(1.0).max(fastest).max(1e-9);
    let frame = Frame { left: LEFT, width: WIDTH, height: 210.0, x_max: timeline.total_s, y_max };
    let mut line = String::new();
    for (step, &rate) in timeline.tokens_per_s.iter().enumerate() {
        let y = c(frame.y(rate));
        let (from, to) = (step as f64 * timeline.step_s, (step + 1) as f64 * timeline.step_s);
        let first = if step == 0 { "M" } else { "L" };
        line += &format!("{first}{} {y}H{}", c(frame.x(from)), c(frame.x(to)));
    }
    let area = format!("{line}V{0}H{1}Z", c(frame.bottom()), c(frame.x(0.0)));
    drawing(
        &frame,
        "tokens per second over time",
        html! {
            (y_axis(&frame, &ticks, short))
            (time_axis(&frame, timeline))
            path class="area" d=(area) {}
            path class="line" d=(line) {}
            (session_marks(&frame, timeline))
        },
    )
}

/// Share of the time that each device computed, as one strip per device.
pub(super) fn utilisation(timeline: &Timeline) -> Markup {
    const ROW: f64 = 20.0;
    const LABELS: f64 = 96.0;
    let rows = timeline.devices_busy.len() as f64;
    let height = TOP + rows * ROW + BOTTOM;
    let frame = Frame { left: LABELS, width: WIDTH, height, x_max: timeline.total_s, y_max: 1.0 };
    drawing(
        &frame,
        "share of the time that devices computed",
        html! {
            @for (row, (name, shares)) in timeline.devices_busy.iter().enumerate() {
                @let y = TOP + row as f64 * ROW;
                text class="label" x=(c(LABELS - 8.0)) y=(c(y + 13.5)) text-anchor="end" { (clipped(name, 13)) }
                rect class="strip" x=(c(LABELS)) y=(c(y + 2.0)) width=(c(WIDTH - LABELS - RIGHT)) height=(c(ROW - 4.0)) {}
                @for (from, to, share) in runs(shares) {
                    @let (x, end) = (frame.x(from as f64 * timeline.step_s), frame.x(to as f64 * timeline.step_s));
                    rect class="heat" x=(c(x)) y=(c(y + 2.0)) width=(c(end - x)) height=(c(ROW - 4.0))
                        fill-opacity=(format!("{share:.2}")) {
                        title { (name) ": " (percent(share)) }
                    }
                }
            }
            (time_axis(&frame, timeline))
            (session_marks(&frame, timeline))
        },
    )
}

/// Neighbouring steps of about the same share: first step, step behind the last, share. Those at 0 are left out.
fn runs(shares: &[f64]) -> Vec<(usize, usize, f64)> {
    let mut runs: Vec<(usize, usize, f64)> = Vec::new();
    for (step, share) in shares.iter().enumerate() {
        let share = (share * HEAT_STEPS).round() / HEAT_STEPS;
        match runs.last_mut() {
            Some(run) if run.2 == share => run.1 = step + 1,
            _ => runs.push((step, step + 1, share)),
        }
    }
    runs.retain(|run| run.2 > 0.0);
    runs
}

/// One bar of a histogram.
pub(super) struct Bar {
    /// Where it begins, below the axis.
    pub(super) label: String,
    /// What it tells when pointed at.
    pub(super) title: String,
    pub(super) value: u64,
    /// Whether it is one to look at.
    pub(super) marked: bool,
}

/// Bars side by side; every so many of them are labelled.
pub(super) fn bars(what: &str, bars: &[Bar], label_each: usize) -> Markup {
    let most = bars.iter().map(|bar| bar.value).max().unwrap_or(0) as f64;
    let ticks: Vec<f64> = ticks(most, 4).into_iter().filter(|tick| tick.fract() == 0.0).collect();
    let y_max = ticks.last().copied().unwrap_or(1.0).max(most).max(1.0);
    let frame = Frame { left: LEFT, width: WIDTH, height: 250.0, x_max: bars.len() as f64, y_max };
    drawing(
        &frame,
        what,
        html! {
            (y_axis(&frame, &ticks, short))
            @for (number, bar) in bars.iter().enumerate() {
                @let (x, end) = (frame.x(number as f64), frame.x(number as f64 + 1.0));
                @let gap = ((end - x) * 0.12).min(3.0);
                @let y = frame.y(bar.value as f64);
                @if bar.value > 0 {
                    // What is there can be seen, however little it is.
                    @let y = y.min(frame.bottom() - 1.0);
                    rect class=(if bar.marked { "bar marked" } else { "bar" }) x=(c(x + gap)) y=(c(y))
                        width=(c(end - x - 2.0 * gap)) height=(c(frame.bottom() - y)) {
                        title { (bar.title) }
                    }
                }
                @if number % label_each.max(1) == 0 {
                    text class="label" x=(c(x)) y=(c(frame.bottom() + 17.0)) text-anchor="middle" { (bar.label) }
                }
            }
            line class="axis" x1=(c(LEFT)) x2=(c(WIDTH - RIGHT)) y1=(c(frame.bottom())) y2=(c(frame.bottom())) {}
        },
    )
}

/// Shares of one whole in a row: what a stage did with its time.
pub(super) fn shares(parts: &[(&str, f64)]) -> Markup {
    const HEIGHT: f64 = 16.0;
    const LENGTH: f64 = 300.0;
    let mut x = 0.0;
    let placed: Vec<(&str, f64, f64, f64)> = parts
        .iter()
        .map(|&(class, share)| {
            let from = x;
            let width = (share.clamp(0.0, 1.0) * LENGTH).min(LENGTH - from);
            x += width;
            (class, share, from, width)
        })
        .collect();
    html! {
        svg class="shares" viewBox=(format!("0 0 {LENGTH} {HEIGHT}")) preserveAspectRatio="none" role="img"
            aria-label=(parts.iter().map(|(class, share)| format!("{class} {}", percent(*share))).collect::<Vec<_>>().join(", ")) {
            rect class="strip" x="0" y="0" width=(c(LENGTH)) height=(c(HEIGHT)) {}
            @for (class, share, from, width) in placed {
                @if width > 0.0 {
                    rect class=(class) x=(c(from)) y="0" width=(c(width)) height=(c(HEIGHT)) {
                        title { (class) ": " (percent(share)) }
                    }
                }
            }
        }
    }
}

fn drawing(frame: &Frame, what: &str, content: Markup) -> Markup {
    html! {
        svg class="chart" viewBox=(format!("0 0 {} {}", c(frame.width), c(frame.height))) role="img" aria-label=(what) {
            (content)
        }
    }
}

fn y_axis(frame: &Frame, ticks: &[f64], label: impl Fn(f64) -> String) -> Markup {
    html! {
        @for &tick in ticks {
            @let y = frame.y(tick);
            line class="grid" x1=(c(frame.left)) x2=(c(WIDTH - RIGHT)) y1=(c(y)) y2=(c(y)) {}
            text class="label" x=(c(frame.left - 8.0)) y=(c(y + 4.0)) text-anchor="end" { (label(tick)) }
        }
    }
}

fn time_axis(frame: &Frame, timeline: &Timeline) -> Markup {
    let ticks = time_ticks(timeline.total_s);
    let bottom = frame.bottom();
    html! {
        line class="axis" x1=(c(frame.left)) x2=(c(WIDTH - RIGHT)) y1=(c(bottom)) y2=(c(bottom)) {}
        @for tick in ticks {
            @let x = frame.x(tick);
            line class="axis" x1=(c(x)) x2=(c(x)) y1=(c(bottom)) y2=(c(bottom + 4.0)) {}
            text class="label" x=(c(x)) y=(c(bottom + 17.0)) text-anchor="middle" { (time(tick)) }
        }
    }
}

/// Where a session begins, but the first.
fn session_marks(frame: &Frame, timeline: &Timeline) -> Markup {
    html! {
        @for (number, &start) in timeline.sessions_start_s.iter().enumerate().skip(1) {
            @let x = frame.x(start);
            line class="session" x1=(c(x)) x2=(c(x)) y1=(c(TOP)) y2=(c(frame.bottom())) {
                title { "session " (number + 1) " begins" }
            }
        }
    }
}

/// Round numbers from 0 to at least `most`, about `wanted` of them beside 0.
fn ticks(most: f64, wanted: usize) -> Vec<f64> {
    if most <= 0.0 || !most.is_finite() {
        return vec![0.0];
    }
    let rough = most / wanted as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power);
    let step = step.into_iter().find(|&step| step >= rough * 0.999).unwrap_or(10.0 * power);
    let count = (most / step * 0.999).ceil() as usize;
    (0..=count).map(|number| number as f64 * step).collect()
}

/// Moments to label on an axis of so many seconds.
fn time_ticks(total_s: f64) -> Vec<f64> {
    const STEPS_S: [f64; 22] = [
        0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0,
        7200.0, 10_800.0, 21_600.0, 43_200.0, 86_400.0, 172_800.0,
    ];
    const LABELS_MAX: f64 = 9.0;
    if total_s <= 0.0 || !total_s.is_finite() {
        return vec![0.0];
    }
    let fits = |step: &f64| total_s / step <= LABELS_MAX;
    // Beyond weeks, whole weeks.
    let week = 604_800.0;
    let step = STEPS_S.into_iter().find(fits).unwrap_or((total_s / week / LABELS_MAX).ceil() * week);
    (0..=(total_s / step) as usize).map(|number| number as f64 * step).collect()
}

/// A moment on an axis: `90 s`, `5 min`, `1.5 h`, `2 d`.
fn time(seconds: f64) -> String {
    let number = |value: f64| {
        let text = format!("{value:.1}");
        text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
    };
    match seconds {
        s if s < 120.0 => format!("{} s", number(s)),
        s if s < 7200.0 => format!("{} min", number(s / 60.0)),
        s if s < 172_800.0 => format!("{} h", number(s / 3600.0)),
        s => format!("{} d", number(s / 86_400.0)),
    }
}

/// A number as short as an axis needs it: `950`, `12k`, `3.5M`.
pub(super) fn short(value: f64) -> String {
    let (value, unit) = match value {
        v if v >= 999.5e9 => (v / 1e12, "T"),
        v if v >= 999.5e6 => (v / 1e9, "G"),
        v if v >= 999.5e3 => (v / 1e6, "M"),
        v if v >= 1e4 => (v / 1e3, "k"),
        v => (v, ""),
    };
    let text = if value >= 100.0 { format!("{value:.0}") } else { c(value) };
    text + unit
}

/// A share as `97 %`; small ones with a digit more.
pub(super) fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    if percent > 0.0 && percent < 9.95 { format!("{percent:.1} %") } else { format!("{percent:.0} %") }
}

/// The end of a name that is too long for its place.
fn clipped(name: &str, max: usize) -> String {
    let count = name.chars().count();
    if count <= max {
        return name.to_owned();
    }
    std::iter::once('…').chain(name.chars().skip(count + 1 - max)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline() -> Timeline {
        Timeline {
            step_s: 10.0,
            total_s: 40.0,
            sessions_start_s: vec![0.0, 20.0],
            tokens_per_s: vec![0.0, 1500.0, 4000.0, 2000.0],
            devices_busy: [("sim:0".to_owned(), vec![0.0, 0.5, 0.5, 1.0])].into(),
        }
    }

    #[test]
    fn the_throughput_is_drawn_where_it_belongs() {
        let svg = throughput(&timeline()).into_string();
        // From 58 to 848 across, from 184 (0) up to 14 (4,000).
        assert!(
            svg.contains(r#"class="line" d="M58 184H255.5L255.5 120.2H453L453 14H650.5L650.5 99H848""#),
            "{svg}"
        );
        assert!(svg.contains("V184H58Z"), "{svg}");
        for text in [">4000<", ">0<", ">10 s<", ">40 s<"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        // The second session begins in the middle.
        assert!(svg.contains(r#"<line class="session" x1="453" x2="453""#), "{svg}");
    }

    #[test]
    fn neighbours_of_the_same_share_are_one_cell() {
        let svg = utilisation(&timeline()).into_string();
        assert_eq!(svg.matches(r#"class="heat""#).count(), 2, "{svg}");
        assert!(svg.contains(r#"x="284" y="16" width="376" height="16" fill-opacity="0.50""#), "{svg}");
        assert!(svg.contains(r#"x="660" y="16" width="188" height="16" fill-opacity="1.00""#), "{svg}");
    }

    #[test]
    fn bars_reach_as_high_as_their_value() {
        let bar = |value, marked| Bar { label: "l".to_owned(), title: "t".to_owned(), value, marked };
        let svg = bars("b", &[bar(100, false), bar(0, false), bar(50, true), bar(1, false)], 2).into_string();
        assert_eq!(svg.matches("<rect").count(), 3, "{svg}");
        assert!(svg.contains(r#"class="bar" x="61" y="14" width="191.5" height="210""#), "{svg}");
        assert!(svg.contains(r#"class="bar marked" x="456" y="119" width="191.5" height="105""#), "{svg}");
        assert_eq!(svg.matches(r#">l<"#).count(), 2, "{svg}");
    }

    #[test]
    fn ticks_are_round_and_reach_the_top() {
        assert_eq!(ticks(4000.0, 4), [0.0, 1000.0, 2000.0, 3000.0, 4000.0]);
        assert_eq!(ticks(7.3, 4), [0.0, 2.0, 4.0, 6.0, 8.0]);
        assert_eq!(ticks(0.0, 4), [0.0]);
        assert_eq!(ticks(f64::INFINITY, 4), [0.0]);
        assert_eq!(time_ticks(7.0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        for total_s in [0.4, 3.0, 100.0, 4000.0, 90_000.0, 604_800.0, 1e8] {
            let count = time_ticks(total_s).len();
            assert!((2..=10).contains(&count), "{total_s}: {count}");
        }
    }

    #[test]
    fn numbers_and_times_are_short() {
        assert_eq!(
            [0.0, 2.5, 950.0, 9999.0, 12_000.0, 12_340.0, 999_900.0, 3.5e6, 2e12].map(short),
            ["0", "2.5", "950", "9999", "12k", "12.3k", "1M", "3.5M", "2T"]
        );
        assert_eq!(
            [0.5, 90.0, 300.0, 5400.0, 9000.0, 172_800.0].map(time),
            ["0.5 s", "90 s", "5 min", "90 min", "2.5 h", "2 d"]
        );
        assert_eq!([0.0, 0.004, 0.5, 1.0].map(percent), ["0 %", "0.4 %", "50 %", "100 %"]);
        assert_eq!(clipped("cuda:GPU-0123456789", 13), "…U-0123456789");
    }
}
