//! What was found: told by a step's process line by line, gathered and printed by the command.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Passed,
    Failed,
    /// It could not be made here; the detail says why.
    Skipped,
    /// Not begun, or cut off, for want of time or by an interrupt: nothing is known.
    #[serde(rename = "not run")]
    NotRun,
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Finding {
    pub(super) what: String,
    pub(super) verdict: Verdict,
    pub(super) detail: String,
    pub(super) seconds: f64,
}

/// Getting a model onto the device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Load {
    pub(super) size: String,
    pub(super) engine: String,
    pub(super) precision: String,
    pub(super) parameters: u64,
    pub(super) weights_bytes: u64,
    pub(super) token_budget: u32,
    /// Making the weights and writing them: no part of a real run.
    pub(super) generate_s: f64,
    /// From the call that opens the weights, warm in memory, to a device that is ready.
    pub(super) load_s: f64,
    /// From the same moment to the first batch's embeddings.
    pub(super) first_batch_s: f64,
    /// The same at the first start ever, which compiles kernels and times products.
    pub(super) cold_first_batch_s: f64,
    /// Whether batches are started as CUDA graphs; `None` where there are none.
    pub(super) graphs: Option<bool>,
    /// Time with graphs as a part of that without; `None` where it was not measured.
    pub(super) graph_ratio: Option<f32>,
    /// The device's own matrix products of `product_size`³ in the same process, TFLOP/s.
    pub(super) product_size: usize,
    pub(super) product_peak_tflops: Option<f64>,
}

/// The speed of one model on sequences of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Cell {
    pub(super) size: String,
    pub(super) lengths: String,
    pub(super) batches: u64,
    pub(super) tokens_per_batch: f64,
    pub(super) seconds: f64,
    /// BOS and EOS included.
    pub(super) tokens_per_s: f64,
    pub(super) sequences_per_s: f64,
    /// Of the network's own operations; nothing that is computed besides counts.
    pub(super) tflops: f64,
    /// Against the GPU's published dense peak; `None` for a GPU that is not in the table.
    pub(super) share_of_nominal: Option<f64>,
    /// Against the products measured in the same process.
    pub(super) share_of_products: Option<f64>,
    pub(super) busy_percent: Option<f64>,
    pub(super) clock_mhz: Option<f64>,
    pub(super) power_w: Option<f64>,
    pub(super) slowed_by: Vec<String>,
    pub(super) memory_peak_bytes: Option<u64>,
    /// Milliseconds of a batch by kind of kernel.
    pub(super) kernels_ms: Vec<(String, f64)>,
}

/// What a step's process says, one line of JSON each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Event {
    Fact {
        name: String,
        value: String,
    },
    /// The device cannot be used: nothing can be checked.
    Refused {
        text: String,
        hints: Vec<String>,
    },
    Finding(Finding),
    Load(Load),
    Cell(Cell),
}

/// Says events on standard output, where the command reads them.
pub(super) fn tell(event: &Event) {
    if let Ok(line) = serde_json::to_string(event) {
        // Without its reader the process is of no use and is ended by it or with it.
        let _ = crate::stdout::print(&format!("{line}\n"));
    }
}

/// Makes one check; a panic is a failure like any other.
pub(super) fn check(what: &str, body: impl FnOnce() -> Result<String, String>) -> bool {
    let began = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|panic| Err(format!("panicked: {}", actors::panic_message(&*panic))));
    let (verdict, detail) = match result {
        Ok(detail) => (Verdict::Passed, detail),
        Err(detail) => (Verdict::Failed, detail),
    };
    let seconds = began.elapsed().as_secs_f64();
    tell(&Event::Finding(Finding { what: what.to_owned(), verdict, detail, seconds }));
    verdict == Verdict::Passed
}

/// Says that a check was not made.
pub(super) fn skip(what: &str, why: impl Into<String>) {
    let finding =
        Finding { what: what.to_owned(), verdict: Verdict::Skipped, detail: why.into(), seconds: 0.0 };
    tell(&Event::Finding(finding));
}

/// Everything that was found.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) facts: Vec<(String, String)>,
    pub(super) findings: Vec<Finding>,
    pub(super) loads: Vec<Load>,
    pub(super) cells: Vec<Cell>,
}

impl Report {
    /// Takes an event and returns the line that says it to people.
    pub(super) fn add(&mut self, event: Event) -> String {
        match event {
            Event::Fact { name, value } => {
                let line = format!("{name:<10} {value}");
                self.facts.push((name, value));
                line
            }
            Event::Refused { text, .. } => text,
            Event::Finding(finding) => {
                let verdict = match finding.verdict {
                    Verdict::Passed => "passed",
                    Verdict::Failed => "FAILED",
                    Verdict::Skipped => "skipped",
                    Verdict::NotRun => "NOT RUN",
                };
                let line =
                    format!("{verdict:<10} {}: {} ({:.1} s)", finding.what, finding.detail, finding.seconds);
                self.findings.push(finding);
                line
            }
            Event::Load(load) => {
                let line = format!(
                    "loaded     {} in {}: {:.2} s, first batch after {:.2} s",
                    load.size, load.precision, load.load_s, load.first_batch_s
                );
                // A size can be loaded a second time for what is left of it; only the first start was a cold one.
                if !self.loads.iter().any(|known| known.size == load.size) {
                    self.loads.push(load);
                }
                line
            }
            Event::Cell(cell) => {
                let line = format!(
                    "speed      {} {}: {} tokens/s, {} of the nominal peak, busy {}",
                    cell.size,
                    cell.lengths,
                    thousands(cell.tokens_per_s),
                    percent(cell.share_of_nominal),
                    told(cell.busy_percent, |busy| format!("{busy:.0} %")),
                );
                self.cells.push(cell);
                line
            }
        }
    }

    pub(super) fn count(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == verdict).count()
    }

    /// The report as Markdown, ready to be kept.
    pub(super) fn markdown(&self) -> String {
        let mut text = String::from("# gpu-check\n\n| | |\n|---|---|\n");
        for (name, value) in &self.facts {
            row(&mut text, [name.clone(), value.clone()]);
        }
        let [passed, failed, skipped, not_run] =
            [Verdict::Passed, Verdict::Failed, Verdict::Skipped, Verdict::NotRun]
                .map(|verdict| self.count(verdict));
        if !self.findings.is_empty() {
            let _ = write!(text, "\n## Checks: {passed} passed, {failed} failed, {skipped} skipped");
            if not_run > 0 {
                let _ = write!(text, ", {not_run} not run\n\n**Incomplete**: what was not run did not pass.");
            }
            text += "\n\n";
            text += "| check | verdict | detail | s |\n|---|---|---|---:|\n";
            for finding in &self.findings {
                let verdict = match finding.verdict {
                    Verdict::Passed => "passed",
                    Verdict::Failed => "**failed**",
                    Verdict::Skipped => "skipped",
                    Verdict::NotRun => "**not run**",
                };
                row(
                    &mut text,
                    [
                        finding.what.clone(),
                        verdict.to_owned(),
                        finding.detail.clone(),
                        format!("{:.1}", finding.seconds),
                    ],
                );
            }
        }
        if !self.cells.is_empty() {
            text += "\n## Speed\n\nTokens count BOS and EOS. TFLOP/s: layers · (24 d² + 4 L d) per token. Shares: of the GPU's published dense peak, and of large products measured in the same process. Sustained after a warm-up; first batch: from opening weights that are in the page cache.\n\n";
            text += "| model | residues | tokens/s | sequences/s | TFLOP/s | of nominal | of products | busy | tokens per batch | MHz | W | memory GiB | slowed by |\n|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|\n";
            for cell in &self.cells {
                row(
                    &mut text,
                    [
                        cell.size.clone(),
                        cell.lengths.clone(),
                        thousands(cell.tokens_per_s),
                        thousands(cell.sequences_per_s),
                        format!("{:.1}", cell.tflops),
                        percent(cell.share_of_nominal),
                        percent(cell.share_of_products),
                        told(cell.busy_percent, |busy| format!("{busy:.0} %")),
                        thousands(cell.tokens_per_batch),
                        told(cell.clock_mhz, |clock| format!("{clock:.0}")),
                        told(cell.power_w, |power| format!("{power:.0}")),
                        told(cell.memory_peak_bytes, |bytes| format!("{:.1}", gibibytes(bytes))),
                        cell.slowed_by.join(" + "),
                    ],
                );
            }
            text += "\n| model | precision | parameters | weights GiB | token budget | load s | first batch s | at the first start s | CUDA graphs, time with / without | products TFLOP/s | weights made in s |\n|---|---|---:|---:|---:|---:|---:|---:|---|---:|---:|\n";
            for load in &self.loads {
                row(
                    &mut text,
                    [
                        load.size.clone(),
                        load.precision.clone(),
                        thousands(load.parameters as f64),
                        format!("{:.2}", gibibytes(load.weights_bytes)),
                        thousands(f64::from(load.token_budget)),
                        format!("{:.2}", load.load_s),
                        format!("{:.2}", load.first_batch_s),
                        format!("{:.2}", load.cold_first_batch_s),
                        told(load.graphs, |used| {
                            let used = if used { "used" } else { "not used" };
                            match load.graph_ratio {
                                Some(ratio) => format!("{used}, {ratio:.3}"),
                                None => format!("{used}, not measured"),
                            }
                        }),
                        told(load.product_peak_tflops, |peak| format!("{peak:.0} ({}³)", load.product_size)),
                        format!("{:.1}", load.generate_s),
                    ],
                );
            }
            self.kernel_times(&mut text);
        }
        text
    }

    fn kernel_times(&self, text: &mut String) {
        let mut kinds: Vec<&str> = Vec::new();
        for (kind, _) in self.cells.iter().flat_map(|cell| &cell.kernels_ms) {
            if !kinds.contains(&kind.as_str()) {
                kinds.push(kind);
            }
        }
        if kinds.is_empty() {
            return;
        }
        *text += "\nMilliseconds of a batch by kind of kernel, each timed by events in a run of its own:\n\n";
        row(text, ["model", "residues"].into_iter().chain(kinds.iter().copied()).map(str::to_owned));
        *text += &format!("|---|---|{}\n", "---:|".repeat(kinds.len()));
        for cell in self.cells.iter().filter(|cell| !cell.kernels_ms.is_empty()) {
            let total: f64 = cell.kernels_ms.iter().map(|(_, ms)| ms).sum();
            let times = kinds.iter().map(|kind| {
                let time = cell.kernels_ms.iter().find(|(name, _)| name == kind).map(|&(_, ms)| ms);
                told(time, |ms| format!("{ms:.2} ({:.0} %)", 100.0 * ms / total.max(f64::MIN_POSITIVE)))
            });
            row(text, [cell.size.clone(), cell.lengths.clone()].into_iter().chain(times));
        }
    }
}

fn row(text: &mut String, columns: impl IntoIterator<Item = String>) {
    for column in columns {
        let _ = write!(text, "| {} ", column.replace('|', "\\|").replace('\n', " "));
    }
    *text += "|\n";
}

fn told<T>(fact: Option<T>, words: impl FnOnce(T) -> String) -> String {
    fact.map_or_else(|| "N/A".to_owned(), words)
}

fn percent(share: Option<f64>) -> String {
    told(share, |share| format!("{:.1} %", 100.0 * share))
}

fn gibibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1u32 << 30)
}

/// A count with its thousands apart.
fn thousands(count: f64) -> String {
    let digits = format!("{count:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A moment as `2026-11-21 21:15 UTC`.
pub(super) fn date(unix_s: u64) -> String {
    let (days, seconds) = (unix_s / 86_400, unix_s % 86_400);
    // Years that begin in March, so that a leap day is the last; source: Hinnant, "chrono-compatible
    // low-level date algorithms".
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3_600, seconds % 3_600 / 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (unix_s, expected) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_795_295_700, "2026-11-21 21:15 UTC"),
            (4_107_542_399, "2100-02-28 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(date(unix_s), expected);
        }
    }

    #[test]
    fn counts_have_their_thousands_apart() {
        let counts = [0.0, 12.0, 999.6, 123_456.0, 1_234_567.0, -123_456.0];
        assert_eq!(counts.map(thousands), ["0", "12", "1,000", "123,456", "1,234,567", "-123,456"]);
    }

    #[test]
    fn events_survive_the_way_to_the_command() {
        let cell = Cell {
            size: "8M".into(),
            lengths: "102".into(),
            tokens_per_s: 8_000_000.4,
            tflops: 125.25,
            share_of_nominal: Some(0.127),
            kernels_ms: vec![("products".into(), 1.5), ("attention".into(), 0.5)],
            ..Cell::default()
        };
        let finding = Finding {
            what: "leak".into(),
            verdict: Verdict::Failed,
            detail: "row 3 | moved".into(),
            seconds: 1.0,
        };
        let events = [
            Event::Fact { name: "device".into(), value: "NVIDIA H100".into() },
            Event::Finding(finding),
            Event::Cell(cell),
        ];
        let mut report = Report::default();
        for event in events {
            let line = serde_json::to_string(&event).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
            report.add(event);
        }
        assert_eq!(report.count(Verdict::Failed), 1);
        let text = report.markdown();
        assert!(!text.contains("not run"), "{text}");
        for words in [
            "| device | NVIDIA H100 |",
            "0 passed, 1 failed, 0 skipped",
            "| leak | **failed** | row 3 \\| moved | 1.0 |",
            "| 8M | 102 | 8,000,000 | 0 | 125.2 | 12.7 % | N/A |",
            "| model | residues | products | attention |\n|---|---|---:|---:|\n| 8M | 102 | 1.50 (75 %) | 0.50 (25 %) |",
        ] {
            assert!(text.contains(words), "`{words}` is not in:\n{text}");
        }
    }

    #[test]
    fn what_was_not_run_is_said_to_be_no_pass() {
        let mut report = Report::default();
        let verdict = Verdict::NotRun;
        let finding = Finding { what: "soak".into(), verdict, detail: "no time".into(), seconds: 0.0 };
        let line = serde_json::to_string(&finding).unwrap();
        assert!(line.contains("\"not run\""), "{line}");
        assert_eq!(report.add(Event::Finding(finding)), "NOT RUN    soak: no time (0.0 s)");
        let text = report.markdown();
        for words in
            ["0 passed, 0 failed, 0 skipped, 1 not run", "**Incomplete**", "| soak | **not run** | no time |"]
        {
            assert!(text.contains(words), "`{words}` is not in:\n{text}");
        }
    }

    #[test]
    fn the_first_load_of_a_size_is_the_one_that_counts() {
        let load = |size: &str, load_s| Load {
            size: size.into(),
            engine: "test".into(),
            precision: "fp16".into(),
            parameters: 1,
            weights_bytes: 2,
            token_budget: 100,
            generate_s: 0.0,
            load_s,
            first_batch_s: 0.0,
            cold_first_batch_s: 0.0,
            graphs: None,
            graph_ratio: None,
            product_size: 64,
            product_peak_tflops: None,
        };
        let mut report = Report::default();
        for load in [load("3B", 1.0), load("8M", 2.0), load("3B", 3.0)] {
            report.add(Event::Load(load));
        }
        assert_eq!(report.loads, [load("3B", 1.0), load("8M", 2.0)]);

        // Whether graphs were used is said with what was measured.
        for (graphs, graph_ratio, words) in [
            (Some(true), Some(0.9312), "| used, 0.931 |"),
            (Some(false), Some(0.995), "| not used, 0.995 |"),
            (Some(false), None, "| not used, not measured |"),
            (None, None, "| 0.00 | N/A |"),
        ] {
            let mut report = Report::default();
            report.add(Event::Load(Load { graphs, graph_ratio, ..load("8M", 1.0) }));
            report.add(Event::Cell(Cell { size: "8M".into(), ..Cell::default() }));
            assert!(report.markdown().contains(words), "`{words}` is not in:\n{}", report.markdown());
        }
    }

    #[test]
    fn a_panic_is_a_failed_check() {
        assert!(check("passes", || Ok("fine".into())));
        assert!(!check("fails", || Err("not fine".into())));
        assert!(!check("panics", || panic!("on purpose")));
    }
}
