//! What a run leaves for people and machines to read afterwards: `report.html`, `report.json`, `telemetry.jsonl`,
//! the last words on standard error, and how they look in a real browser.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::job::JobFolder;
use crate::outcome::segments_committed;
use crate::process::{PROGRAM, Running, program, run, without_settings};
use crate::proteins::fasta;

/// Several segments, a second or two of work.
const SLOW: &str = "latency_us_per_batch=40000";

fn job() -> JobFolder {
    JobFolder::new(fasta(401, 400, 20..200)).simulating(SLOW)
}

fn json_of(folder: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(folder.join("report.json")).unwrap()).unwrap()
}

fn page_of(folder: &Path) -> String {
    fs::read_to_string(folder.join("report.html")).unwrap()
}

/// The recorded lines, each of which must be one; the last may be torn.
fn lines_of(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join("telemetry.jsonl")).unwrap();
    let whole = text.rsplit_once('\n').unwrap().0;
    whole.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Fails the test unless the page has all its parts, says the sentence, and needs nothing from elsewhere.
#[track_caller]
fn assert_whole(folder: &Path) {
    let (page, json) = (page_of(folder), json_of(folder));
    assert_eq!((json["version"].as_u64(), json["generator"].as_str()), (Some(1), Some("virnucpro-orch")));
    for heading in [
        "Throughput, tokens/s",
        "Devices: share of the time that they computed",
        "Sequence lengths, residues",
        "Batches by how full they are, %",
        "Stages: what they did with their time",
        "Warnings and errors",
        "Sessions",
        "What ran",
        "Configuration",
    ] {
        assert_eq!(page.matches(&format!("<h2>{heading}</h2>")).count(), 1, "{heading}");
    }
    for outside in
        ["<script", "<link", "<img", "<iframe", "@import", "url(", "src=", "href=", "http://", "https://"]
    {
        assert!(!page.contains(outside), "{outside} in the page");
    }
    for element in ["section", "table", "svg", "tr", "td", "pre"] {
        let opened =
            page.matches(&format!("<{element}>")).count() + page.matches(&format!("<{element} ")).count();
        assert_eq!(opened, page.matches(&format!("</{element}>")).count(), "{element}");
    }
    let sentence = json["result"]["sentence"].as_str().unwrap();
    assert!(page.contains(&escaped(sentence)), "{sentence}");
    let sha256 = json["job"]["input"][0]["sha256"].as_str().unwrap();
    assert!(page.contains(sha256));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[test]
fn a_finished_run_is_reported_with_its_figures() {
    let job = job();
    let outcome = job.done_into("results");
    let results = job.at("results");
    assert_whole(&results);
    let report = json_of(&results);
    assert_eq!(report["result"]["status"], "done");
    assert_eq!(report["result"]["sentence"], "Done: each of 400 records has its embedding.");
    assert_eq!(report["result"]["command"], Value::Null);
    let figures = &report["figures"];
    assert_eq!(figures["rows"], 400);
    assert_eq!(figures["residues"], outcome.run["counts"]["residues"]);
    assert_eq!(figures["tokens_computed"], outcome.run["sessions"][0]["tokens"]);
    // What is drawn adds up to what was computed.
    let timeline = &report["timeline"];
    let steps = timeline["tokens_per_s"].as_array().unwrap();
    let drawn: f64 =
        steps.iter().map(|rate| rate.as_f64().unwrap()).sum::<f64>() * timeline["step_s"].as_f64().unwrap();
    let computed = figures["tokens_computed"].as_f64().unwrap();
    assert!((drawn / computed - 1.0).abs() < 1e-6, "{drawn} of {computed}");
    assert_eq!(timeline["devices_busy"].as_object().unwrap().len(), 2);
    let lengths = report["lengths"].as_array().unwrap();
    let sequences: u64 = lengths.iter().map(|bin| bin["sequences"].as_u64().unwrap()).sum();
    assert_eq!(sequences, 400);
    let fill = &report["fill"];
    let batches: u64 = fill["histogram"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(Some(batches), fill["batches"].as_u64());
    // What the last snapshot says of the stages is what the report says.
    let snapshot: Value =
        serde_json::from_str(&fs::read_to_string(results.join(".state/snapshot.json")).unwrap()).unwrap();
    let names = |stages: &Value| {
        stages.as_array().unwrap().iter().map(|stage| stage["stage"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&report["stages"]), names(&snapshot["stages"]));
    assert_eq!(report["bottleneck"], snapshot["bottleneck"]);
}

#[test]
fn every_end_is_reported_and_says_how_to_go_on() {
    type End = fn(&JobFolder, &mut Running) -> i32;
    let stopped: End = |_, running| {
        running.signal(Signal::TERM);
        75
    };
    let input_changed: End = |job, _| {
        let text = fs::read_to_string(job.at("proteins.fasta")).unwrap();
        job.write("proteins.fasta", text.replace('A', "W"));
        5
    };
    // Each: how it is made to end, status, words of the sentence.
    let ends: [(&str, End, &str, &str); 2] = [
        ("stopped", stopped, "stopped", "Stopped (stopped by SIGTERM"),
        ("input changed", input_changed, "failed", "has changed while the run was going on"),
    ];
    for (what, end, status, words) in ends {
        let job = job();
        let results = job.at("results");
        let mut running = job.start_into("results");
        running.wait_until("a segment is committed", |_| segments_committed(&results) > 0);
        let code = end(&job, &mut running);
        let finished = running.finish().expect(code).says(["so far\n  committed "]);
        assert_whole(&results);
        let report = json_of(&results);
        assert_eq!(report["result"]["status"], status, "{what}");
        let sentence = report["result"]["sentence"].as_str().unwrap();
        assert!(sentence.contains(words), "{what}: {sentence}");
        let command = report["result"]["command"].as_str().unwrap();
        assert!(finished.stderr.contains(command), "{what}: {command} is not in\n{}", finished.stderr);
        assert!(page_of(&results).contains(&escaped(command)), "{what}");
        assert_eq!(lines_of(&results).last().unwrap()["status"], status, "{what}");
    }
}

#[test]
fn a_run_that_lost_all_its_devices_is_reported() {
    let job = job()
        .simulating("fault=panic@device:0;fault=panic@device:1")
        .set("restart.restarts_per_device_max", 1);
    let finished = job.run_into("results");
    let finished = finished.expect(75).says(["all devices were lost"]);
    let results = job.at("results");
    assert_whole(&results);
    let report = json_of(&results);
    assert_eq!(report["result"]["status"], "stopped");
    assert!(report["result"]["reason"].as_str().unwrap().starts_with("all devices were lost"), "{report}");
    assert!(report["figures"]["restarts"].as_u64().unwrap() >= 2, "{}", finished.stderr);
    let devices = report["devices"].as_array().unwrap();
    assert!(
        devices.iter().all(|device| device["last_error"].as_str().unwrap().contains("panic")),
        "{devices:?}"
    );
}

#[test]
fn what_comes_from_outside_is_text_on_the_page() {
    let hostile = "<script>alert('x')</script>&\"<!--";
    let mut text = fasta(402, 20, 20..60);
    text += &format!(">{hostile}\nMKVLAAGG\n");
    let job = JobFolder::new(text).simulating("fault=nan@ordinal:20");
    let name = "<b>results & \"more\"";
    job.run_into(name).expect(3);
    let results = job.at(name);
    assert_whole(&results);
    let page = page_of(&results);
    assert!(page.contains(&escaped("<script>alert('x')</script>&\"<!--")), "{page}");
    assert!(page.contains("&lt;b&gt;results &amp; &quot;more&quot;"), "{page}");
    assert!(!page.contains("<b>results") && !page.contains("<!--"), "{page}");
    let report = json_of(&results);
    assert_eq!(report["failed"]["total"], 1);
    assert_eq!(report["failed"]["first"][0]["id"], hostile);
}

#[test]
fn a_long_list_of_failed_records_is_cut_and_the_rest_named() {
    let mut text = fasta(403, 30, 20..60);
    for number in 0..150 {
        text += &format!(">bad{number}\nM1K\n");
    }
    let job = JobFolder::new(text).set("input.on_bad_record", "skip");
    job.run_into("results").expect(3);
    let results = job.at("results");
    let report = json_of(&results);
    assert_eq!(report["failed"]["total"], 150);
    assert_eq!(report["failed"]["first"].as_array().unwrap().len(), 100);
    assert_eq!(report["failed"]["first"][99]["id"], "bad99");
    let page = page_of(&results);
    assert!(page.contains("The first 100 of 150; all are in <code>failed.tsv</code>."), "{page}");
}

#[test]
fn the_report_of_a_killed_run_is_made_from_what_it_left() {
    let job = job();
    let results = job.at("results");
    let mut running = job.start_into("results");
    running.wait_until("a segment is committed", |_| segments_committed(&results) > 0);
    running.kill();
    assert!(!results.join("report.html").exists());
    // Killed in the middle of a line.
    let mut file = fs::File::options().append(true).open(results.join("telemetry.jsonl")).unwrap();
    file.write_all(b"{\"version\":1,\"session\":1,\"at_s\":0.5,\"kind\":\"sam").unwrap();
    let report = |folder: &Path| run(program(["report"]).arg(folder));
    let finished = report(&results).expect(0);
    assert_eq!(finished.stdout.trim_end(), results.join("report.html").to_str().unwrap());
    assert_whole(&results);
    let killed = json_of(&results);
    assert_eq!(killed["result"]["status"], "killed");
    assert!(
        killed["result"]["sentence"].as_str().unwrap().starts_with("Not finished: the program was killed")
    );
    assert!(killed["result"]["command"].as_str().unwrap().starts_with("virnucpro-orch run job.toml --set"));
    assert!(killed["figures"]["records_committed"].as_u64().unwrap() > 0);

    // The next session goes on in the same file, which keeps both.
    let job = job.simulating("");
    job.run_into("results").expect(0);
    let whole = json_of(&results);
    assert_eq!(whole["result"]["status"], "done");
    assert_eq!(whole["sessions"].as_array().unwrap().len(), 2);
    assert_eq!(whole["timeline"]["sessions_start_s"].as_array().unwrap().len(), 2);
    let sessions: Vec<u64> = fs::read_to_string(results.join("telemetry.jsonl"))
        .unwrap()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["kind"] == "session")
        .map(|line| line["session"].as_u64().unwrap())
        .collect();
    assert_eq!(sessions, [1, 2]);

    // The report of what is there is always the same; a fresh start forgets all of it.
    let before = page_of(&results);
    report(&results).expect(0);
    assert_eq!(page_of(&results), before);
    run(job.command_into("results").arg("--fresh")).expect(0);
    assert!(lines_of(&results).iter().all(|line| line["session"] == 1));
    report(&job.at("elsewhere")).expect(2).says(["elsewhere` does not exist"]);
}

#[test]
fn samples_come_with_time_and_each_is_complete() {
    let job = JobFolder::new(fasta(404, 400, 20..200)).simulating("latency_us_per_batch=150000");
    job.run_into("results").expect(0);
    let lines = lines_of(&job.at("results"));
    assert_eq!(lines[0]["kind"], "session");
    assert_eq!(lines[0]["records_total"], 400);
    assert!(lines[0]["configuration"].as_str().unwrap().contains("segment_sequences = 64"));
    let samples: Vec<&Value> = lines.iter().filter(|line| line["kind"] == "sample").collect();
    assert!(samples.len() >= 4, "{}", samples.len());
    for pair in samples.windows(2) {
        assert!(pair[0]["at_s"].as_f64() < pair[1]["at_s"].as_f64());
        assert!(pair[0]["tokens"].as_u64() <= pair[1]["tokens"].as_u64());
    }
    let last = samples[samples.len() - 1];
    assert_eq!(last["records_committed"], 400);
    assert_eq!(last["devices"].as_array().unwrap().len(), 2);
    let unix_s = last["unix_s"].as_f64().unwrap();
    assert!(
        (unix_s - last["at_s"].as_f64().unwrap() - lines[0]["job"]["started_unix_s"].as_f64().unwrap()).abs()
            < 0.01
    );
    assert_eq!(lines[lines.len() - 1]["kind"], "end");
    assert!(lines.iter().all(|line| line["version"] == 1));
}

#[test]
fn what_cannot_be_written_costs_a_warning_and_nothing_else() {
    let undisturbed = job().simulating("").done_into("undisturbed");
    let job = job();
    let results = job.at("results");
    // Names that are taken, in a folder that is ours.
    for name in [".state", "telemetry.jsonl", "report.json"] {
        fs::create_dir_all(results.join(name)).unwrap();
    }
    fs::write(results.join("report.html"), "<p>somebody's own</p>").unwrap();
    let finished = job.run_into("results").expect(0);
    for (words, times) in
        [("how the run goes over time cannot be recorded", 1), ("the report cannot be written", 1)]
    {
        assert_eq!(finished.stderr.matches(words).count(), times, "{words}:\n{}", finished.stderr);
    }
    job.outcome("results").assert_same(&undisturbed, "nothing recorded");
    assert_eq!(page_of(&results), "<p>somebody's own</p>");
    run(program(["report"]).arg(&results)).expect(1).says(["a file that is no report is in its place"]);
    // In a folder that is not ours nothing is taken for granted.
    let job = job.simulating("");
    job.write("foreign/report.html", "<p>somebody's own</p>");
    job.run_into("foreign").expect(2).says(["report.html` exists and is not of an earlier run"]);
}

#[test]
fn under_json_every_line_on_standard_error_is_json() {
    let stopped = |job: JobFolder| {
        let results = job.at("results");
        let mut running = job.start_into("results");
        running.wait_until("a segment is committed", |_| segments_committed(&results) > 0);
        running.signal(Signal::TERM);
        running.finish().expect(75)
    };
    let json = || job().set("telemetry.log_format", "json");
    let done = json().run_into("results").expect(0);
    let stopped = stopped(json());
    for finished in [&done, &stopped] {
        let lines: Vec<Value> = finished
            .stderr
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect();
        assert!(lines.iter().all(|line| line["timestamp"].is_string() && line["level"].is_string()));
        let summary = lines.iter().find(|line| line["fields"]["message"] == "summary").unwrap();
        assert!(summary["fields"]["tokens"].as_u64().unwrap() > 0, "{summary}");
    }
    let last: Value = serde_json::from_str(stopped.stderr.lines().last().unwrap()).unwrap();
    assert_eq!((last["level"].as_str(), last["fields"]["exit_code"].as_u64()), (Some("ERROR"), Some(75)));
    assert!(last["fields"]["hints"][0].as_str().unwrap().contains("to go on: virnucpro-orch run"), "{last}");
}

#[test]
fn lines_for_the_journal_begin_with_their_priority() {
    let job = job().simulating("fault=nan@ordinal:3");
    // As systemd does: the variable names the device and inode that standard error leads to.
    let script = "JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command
        .args(["-c", script, PROGRAM])
        .args(job.command_into("results").get_args())
        .current_dir(job.path());
    without_settings(&mut command);
    let finished = run(command.env("VIRNUCPRO_SIM", "fault=nan@ordinal:3")).expect(3);
    let log: Vec<&str> = finished.stderr.lines().take_while(|line| *line != "done").collect();
    assert!(log.len() > 5 && log.iter().all(|line| line.starts_with('<')), "{log:#?}");
    for (priority, words) in
        [("<6>", "INFO starting"), ("<4>", "WARN batch failed"), ("<3>", "ERROR sequence quarantined")]
    {
        let line =
            log.iter().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{words}: {log:#?}"));
        assert!(line.starts_with(priority) && !line.contains('\u{1b}'), "{line}");
    }
    // Named, but not where standard error leads: lines are as ever.
    let mut elsewhere = job.command_into("again");
    let finished = run(elsewhere.env("JOURNAL_STREAM", "1:1")).expect(3);
    assert!(finished.stderr.starts_with("20"), "{}", finished.stderr);
}

/// The browser to look with, if there is one.
fn chromium() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("CHROMIUM") {
        return Some(named.into());
    }
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let folders: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    let found = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    let found = found.into_iter().find(|path| path.is_file());
    if found.is_none() {
        println!("skipped: no Chromium in PATH or CHROMIUM (Debian: apt-get install chromium)");
    }
    found
}

/// Opens a page in a browser of its own; returns what the browser says.
fn browse(browser: &Path, page: &Path, arguments: &[String]) -> String {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new(browser);
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr", "--v=0"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(arguments)
        .arg(format!("file://{}", page.display()));
    run(&mut command).expect(0).stderr
}

/// Pixels of a PNG as browsers write it: 8 bits, RGB or RGBA, not interlaced.
struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<[u8; 3]>,
}

impl Picture {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        assert_eq!(&bytes[..8], b"\x89PNG\r\n\x1a\n");
        let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        let (width, height) = (number(16), number(20));
        let channels = match bytes[25] {
            2 => 3,
            6 => 4,
            other => panic!("colour type {other}"),
        };
        assert_eq!((bytes[24], bytes[28]), (8, 0), "8 bits, not interlaced");
        let (mut at, mut data) = (8, Vec::new());
        while at < bytes.len() {
            let length = number(at);
            if &bytes[at + 4..at + 8] == b"IDAT" {
                data.extend_from_slice(&bytes[at + 8..at + 8 + length]);
            }
            at += 12 + length;
        }
        let mut raw = Vec::new();
        flate2::read::ZlibDecoder::new(&*data).read_to_end(&mut raw).unwrap();
        let stride = width * channels;
        let mut before = vec![0u8; stride];
        let mut pixels = Vec::new();
        for line in raw.chunks(stride + 1) {
            let mut now = line[1..].to_vec();
            for i in 0..stride {
                let left = if i >= channels { now[i - channels] } else { 0 };
                let (up, corner) = (before[i], if i >= channels { before[i - channels] } else { 0 });
                let predicted = match line[0] {
                    0 => 0,
                    1 => left,
                    2 => up,
                    3 => ((u16::from(left) + u16::from(up)) / 2) as u8,
                    4 => {
                        let [a, b, c] = [left, up, corner].map(i16::from);
                        let [pa, pb, pc] = [(b - c).abs(), (a - c).abs(), (a + b - 2 * c).abs()];
                        if pa <= pb && pa <= pc {
                            left
                        } else if pb <= pc {
                            up
                        } else {
                            corner
                        }
                    }
                    other => panic!("filter {other}"),
                };
                now[i] = now[i].wrapping_add(predicted);
            }
            pixels.extend(now.chunks(channels).map(|pixel| [pixel[0], pixel[1], pixel[2]]));
            before = now;
        }
        Self { width, height, pixels }
    }

    /// Mean brightness, 0..=255.
    fn brightness(&self) -> f64 {
        let sum: u64 = self.pixels.iter().flatten().map(|&value| u64::from(value)).sum();
        sum as f64 / (3 * self.pixels.len()) as f64
    }

    fn colours(&self) -> usize {
        self.pixels.iter().collect::<std::collections::BTreeSet<_>>().len()
    }

    /// Share of the pixels that are about this colour.
    fn share_of(&self, colour: [u8; 3]) -> f64 {
        let near = |pixel: &&[u8; 3]| pixel.iter().zip(colour).all(|(&a, b)| a.abs_diff(b) < 12);
        self.pixels.iter().filter(near).count() as f64 / self.pixels.len() as f64
    }
}

#[test]
fn the_page_looks_right_in_a_browser() {
    let Some(browser) = chromium() else { return };
    let job =
        JobFolder::new(fasta(405, 300, 20..200)).simulating("latency_us_per_batch=30000;fault=nan@ordinal:7");
    job.run_into("results").expect(3);
    let page = job.at("results/report.html");
    // Size, forced scheme, brightness that it must have, colour of the charts.
    let looks = [
        ("light", "1120,1500", "preferredColorScheme=1", 200.0..255.0, [0x0b, 0x6f, 0xb8]),
        ("dark", "1120,1500", "preferredColorScheme=0", 0.0..80.0, [0x58, 0xb1, 0xf2]),
        // A4 at 96 dots per inch.
        ("paper", "794,1123", "preferredColorScheme=1", 200.0..255.0, [0x0b, 0x6f, 0xb8]),
        ("phone", "500,1600", "preferredColorScheme=1", 200.0..255.0, [0x0b, 0x6f, 0xb8]),
    ];
    for (name, size, scheme, brightness, accent) in looks {
        let picture = job.at(&format!("{name}.png"));
        let arguments = [
            format!("--window-size={size}"),
            format!("--blink-settings={scheme}"),
            format!("--screenshot={}", picture.display()),
        ];
        let said = browse(&browser, &page, &arguments);
        assert!(!said.contains("CONSOLE"), "{name}: {said}");
        if let Some(kept) = std::env::var_os("KEEP_SCREENSHOTS") {
            fs::copy(&picture, Path::new(&kept).join(format!("report-{name}.png"))).unwrap();
        }
        let picture = Picture::read(&picture);
        assert_eq!(format!("{},{}", picture.width, picture.height), size, "{name}");
        assert!(picture.colours() > 50, "{name}: {} colours", picture.colours());
        assert!(brightness.contains(&picture.brightness()), "{name}: {}", picture.brightness());
        assert!(picture.share_of(accent) > 0.005, "{name}: {}", picture.share_of(accent));
    }
    // On paper: some pages, not one endless or none.
    let pdf = job.at("report.pdf");
    browse(
        &browser,
        &page,
        &["--no-pdf-header-footer".to_owned(), format!("--print-to-pdf={}", pdf.display())],
    );
    let pdf = String::from_utf8_lossy(&fs::read(&pdf).unwrap()).into_owned();
    let pages = pdf.matches("/Type /Page\n").count();
    assert!(pdf.starts_with("%PDF") && (1..=5).contains(&pages), "{pages} pages");
}

#[test]
fn a_browser_that_finds_a_fault_on_a_page_is_heard() {
    // That the test above can fail: what it looks for in the browser's words is there when it should be.
    let Some(browser) = chromium() else { return };
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("faulty.html");
    fs::write(&page, "<script>console.error('a fault')</script>").unwrap();
    let picture = folder.path().join("faulty.png");
    let said = browse(&browser, &page, &[format!("--screenshot={}", picture.display())]);
    assert!(said.contains("CONSOLE") && said.contains("a fault"), "{said}");
    assert!(Picture::read(&picture).colours() <= 2);
}
