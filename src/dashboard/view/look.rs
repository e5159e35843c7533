//! What the terminal can show: colours, letters, and the small drawings made of them.

use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::{bar, border};
use ratatui::text::Span;
use ratatui::widgets::Block;

/// What the terminal can show.
#[derive(Clone, Copy, Debug)]
pub(in crate::dashboard) struct Look {
    pub(in crate::dashboard) colour: bool,
    pub(in crate::dashboard) unicode: bool,
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

const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const ASCII_LEVELS: [char; 8] = ['.', '.', ':', ':', '-', '=', '+', '#'];

/// Cyan, yellow and magenta: three that people who cannot tell red from green tell apart. Words, marks and
/// weight say the same, for those who see no colour at all.
impl Look {
    /// What this terminal shows, by the environment.
    pub(in crate::dashboard) fn of_environment() -> Self {
        let variable = |name| std::env::var(name).unwrap_or_default();
        let colour = variable("NO_COLOR").is_empty() && variable("TERM") != "dumb";
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].map(variable).into_iter().find(|value| !value.is_empty());
        let unicode = locale.is_none_or(|locale| {
            let locale = locale.to_ascii_lowercase();
            locale.contains("utf-8") || locale.contains("utf8")
        });
        Self { colour, unicode }
    }

    fn style(self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    pub(super) fn good(self) -> Style {
        self.style(Color::Cyan)
    }

    pub(super) fn warning(self) -> Style {
        self.style(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    pub(super) fn bad(self) -> Style {
        self.style(Color::Magenta).add_modifier(Modifier::BOLD | Modifier::UNDERLINED)
    }

    /// What stands behind the figures.
    pub(super) fn quiet(self) -> Style {
        self.style(Color::DarkGray)
    }

    pub(super) fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub(super) fn block(self, title: &str) -> Block<'_> {
        let set = if self.unicode { border::ROUNDED } else { ASCII_BORDER };
        Block::bordered().border_set(set).border_style(self.quiet()).title(Span::styled(title, self.strong()))
    }

    pub(super) fn bars(self) -> bar::Set<'static> {
        if self.unicode { bar::NINE_LEVELS } else { ASCII_BARS }
    }

    /// A dash between parts of a line.
    pub(super) fn dash(self) -> &'static str {
        if self.unicode { " · " } else { " - " }
    }

    pub(super) fn arrow(self) -> &'static str {
        if self.unicode { "→" } else { "->" }
    }

    /// The mark of a line that is chosen or to blame.
    pub(super) fn mark(self) -> &'static str {
        if self.unicode { "▶" } else { ">" }
    }

    /// What stands for something that goes on.
    pub(super) fn ellipsis(self) -> &'static str {
        if self.unicode { "…" } else { "..." }
    }

    /// A meter of `width` letters, filled by a share.
    pub(super) fn meter(self, share: f64, width: usize) -> String {
        let full = share_of(share, width);
        let (on, off) = if self.unicode { ("█", "░") } else { ("#", ".") };
        on.repeat(full) + &off.repeat(width - full)
    }

    /// How a stage spends its time: busy, starved and blocked as parts of `width` letters.
    pub(super) fn shares(self, busy: f64, starved: f64, blocked: f64, width: usize) -> Vec<Span<'static>> {
        let busy_width = share_of(busy, width);
        let starved_width = share_of(busy + starved, width).max(busy_width) - busy_width;
        let blocked_width = share_of(blocked, width - busy_width - starved_width);
        let rest = width - busy_width - starved_width - blocked_width;
        let (busy, starved, blocked) = if self.unicode { ("█", "░", "▓") } else { ("#", ".", "!") };
        vec![
            Span::styled(busy.repeat(busy_width), self.good()),
            Span::styled(starved.repeat(starved_width), self.quiet()),
            Span::styled(blocked.repeat(blocked_width), self.warning()),
            Span::raw(" ".repeat(rest)),
        ]
    }

    /// The latest values as a line of bars, the newest on the right.
    pub(super) fn spark<'a>(self, values: impl DoubleEndedIterator<Item = &'a u64>, width: usize) -> String {
        let mut latest: Vec<u64> = values.rev().take(width).copied().collect();
        latest.reverse();
        let most = latest.iter().copied().max().unwrap_or(0);
        let levels = if self.unicode { LEVELS } else { ASCII_LEVELS };
        let bars = latest.iter().map(|&value| match (value * 7).checked_div(most) {
            Some(level) if value > 0 => levels[level as usize],
            _ => ' ',
        });
        " ".repeat(width - latest.len()) + &bars.collect::<String>()
    }
}

/// The part of `width` that a share takes, whatever the share is.
fn share_of(share: f64, width: usize) -> usize {
    ((share.clamp(0.0, 1.0) * width as f64).round() as usize).min(width)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Look = Look { colour: true, unicode: true };

    #[test]
    fn drawings_have_their_width_whatever_the_figures() {
        for share in [-1.0, 0.0, 0.3, 1.0, 7.0, f64::NAN, f64::INFINITY] {
            assert_eq!(LOOK.meter(share, 9).chars().count(), 9);
            for other in [0.0, 0.5, 2.0, f64::NAN] {
                let spans = LOOK.shares(share, other, share, 9);
                let letters: usize = spans.iter().map(|span| span.content.chars().count()).sum();
                assert_eq!(letters, 9, "{share} {other}");
            }
        }
        for values in [&[][..], &[0, 0], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], &[u64::MAX / 8]] {
            assert_eq!(LOOK.spark(values.iter(), 4).chars().count(), 4, "{values:?}");
        }
        assert_eq!(LOOK.spark([0, 1, 8].iter(), 4), "  ▁█");
    }
}
