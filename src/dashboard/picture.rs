//! The README's picture: the dashboard of a real run with faults on purpose, drawn from the snapshots that were
//! recorded of it (`tests/data/dashboard.jsonl`), as SVG.
//!
//! `BLESS=1 cargo test -p virnucpro-orch dashboard::picture` writes it anew.

use std::fmt::Write;
use std::sync::Arc;

use ratatui::buffer::{Buffer, Cell};
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier};

use super::model::{Event, Home, Model};
use super::view::{self, Look};
use crate::control::Answer;

/// Size of the terminal in the picture.
const SIZE: Rect = Rect { x: 0, y: 0, width: 112, height: 38 };
/// Size of a letter, in units of the picture.
const LETTER: (f64, f64) = (8.4, 17.0);
const MARGIN: f64 = 16.0;
/// The bar of the window.
const BAR: f64 = 30.0;
const PAPER: &str = "#fbfaf7";
const INK: &str = "#24292f";

/// A picture of a screen: letters as text, a light window around it.
fn svg(screen: &Buffer, title: &str) -> String {
    let (width, height) = (f64::from(screen.area.width) * LETTER.0, f64::from(screen.area.height) * LETTER.1);
    let (full_width, full_height) = (width + 2.0 * MARGIN, height + 2.0 * MARGIN + BAR);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {full_width:.1} {full_height:.1}\" \
         font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" font-size=\"14\">\n\
         <title>{title}</title>\n\
         <rect x=\"0.5\" y=\"0.5\" width=\"{:.1}\" height=\"{:.1}\" rx=\"9\" fill=\"{PAPER}\" stroke=\"#d0d0c8\"/>\n\
         <path d=\"M0.5 {BAR} H{:.1}\" stroke=\"#d0d0c8\"/>\n",
        full_width - 1.0,
        full_height - 1.0,
        full_width - 0.5,
    );
    for (place, colour) in [(20, "#e8a0a0"), (38, "#ead28e"), (56, "#a3cfa8")] {
        let _ = writeln!(svg, "<circle cx=\"{place}\" cy=\"15\" r=\"5.5\" fill=\"{colour}\"/>");
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"20\" text-anchor=\"middle\" fill=\"#777\">{title}</text>",
        full_width / 2.0
    );
    for y in 0..screen.area.height {
        let cells: Vec<&Cell> = (0..screen.area.width).map(|x| &screen[(x, y)]).collect();
        let mut start = 0;
        while start < cells.len() {
            let same = |cell: &&&Cell| look_of(cell) == look_of(cells[start]);
            let length = cells[start..].iter().take_while(same).count();
            let text: String = cells[start..start + length].iter().map(|cell| cell.symbol()).collect();
            write_run(&mut svg, start, y, length, &text, cells[start]);
            start += length;
        }
    }
    svg + "</svg>\n"
}

fn look_of(cell: &Cell) -> (Color, Color, Modifier) {
    (cell.fg, cell.bg, cell.modifier)
}

/// Letters of one look.
fn write_run(svg: &mut String, x: usize, y: u16, length: usize, text: &str, cell: &Cell) {
    let (left, top) = (MARGIN + x as f64 * LETTER.0, BAR + MARGIN + f64::from(y) * LETTER.1);
    let width = length as f64 * LETTER.0;
    let (mut ink, mut paper) = (colour(cell.fg, INK), colour(cell.bg, PAPER));
    if cell.modifier.contains(Modifier::REVERSED) {
        std::mem::swap(&mut ink, &mut paper);
    }
    if paper != PAPER {
        let height = LETTER.1;
        let _ = writeln!(
            svg,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{paper}\"/>"
        );
    }
    if text.trim().is_empty() {
        return;
    }
    let mut style = String::new();
    if cell.modifier.contains(Modifier::BOLD) {
        style += " font-weight=\"bold\"";
    }
    if cell.modifier.contains(Modifier::UNDERLINED) {
        style += " text-decoration=\"underline\"";
    }
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let base = top + 13.0;
    // The width is stated, so that every font keeps the columns.
    let _ = writeln!(
        svg,
        "<text x=\"{left:.1}\" y=\"{base:.1}\" textLength=\"{width:.1}\" lengthAdjust=\"spacingAndGlyphs\" \
         xml:space=\"preserve\" fill=\"{ink}\"{style}>{text}</text>"
    );
}

/// Colours of Okabe and Ito, darkened for a light window.
fn colour(colour: Color, otherwise: &'static str) -> &'static str {
    match colour {
        Color::Cyan => "#0072b2",
        Color::Yellow => "#b06f00",
        Color::Magenta => "#a03b74",
        Color::DarkGray => "#8a8a86",
        _ => otherwise,
    }
}

/// The dashboard at the end of the recording.
fn recorded() -> Model {
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/dashboard.jsonl")).unwrap();
    let mut model = Model::new(Home::Elsewhere, "results/faults".to_owned());
    for line in text.lines() {
        match serde_json::from_str(line).unwrap() {
            Answer::Snapshot(snapshot) => model.update(Event::Snapshot(Arc::from(snapshot))),
            other => panic!("{other:?} is no snapshot"),
        };
    }
    model
}

#[test]
fn the_committed_picture_is_the_drawn_one() {
    let model = recorded();
    let mut screen = Buffer::empty(SIZE);
    view::draw(SIZE, &mut screen, &model, Look { colour: true, unicode: true });
    let drawn = svg(&screen, "virnucpro-orch top results/faults");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/images/dashboard.svg");
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(std::path::Path::new(file).parent().unwrap()).unwrap();
        std::fs::write(file, &drawn).unwrap();
        return;
    }
    let committed = std::fs::read_to_string(file).unwrap();
    assert!(committed == drawn, "docs/images/dashboard.svg is stale: run this test with BLESS=1");
}

#[test]
fn a_picture_has_every_letter_and_no_markup_of_the_screen() {
    let mut screen = Buffer::empty(Rect::new(0, 0, 20, 1));
    screen.set_string(0, 0, "<b>&\"x\"", ratatui::style::Style::new().fg(Color::Cyan));
    let svg = svg(&screen, "title");
    assert!(svg.contains("&lt;b&gt;&amp;\"x\"</text>") && svg.contains("#0072b2"), "{svg}");
    assert!(!svg.contains("<b>"));
}
