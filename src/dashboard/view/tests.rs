//! Screens, as text: every layout and state. `BLESS`ed by `INSTA_UPDATE=always`.

use std::sync::Arc;

use actors::manifest::RunStatus;
use actors::{DeviceState, EventLevel, GpuView, PreparingStep, PreparingView, Snapshot};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::super::keys::Key;
use super::super::model::{Ended, Event, Home, Model};
use super::super::scenes::{all_lost, degraded, device, loading, model, model_at, running, starved};
use super::*;

const COLOUR: Look = Look { colour: true, unicode: true };

fn screen(model: &Model, width: u16, height: u16, look: Look) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame.area(), frame.buffer_mut(), model, look)).unwrap();
    terminal.backend().to_string()
}

fn press(model: &mut Model, keys: &str) {
    for key in keys.chars() {
        model.update(Event::Key(match key {
            '\n' => Key::Enter,
            '<' => Key::Esc,
            'v' => Key::Down,
            letter => Key::Char(letter),
        }));
    }
}

fn ended(snapshot: Snapshot, status: RunStatus, reason: Option<&str>) -> Model {
    let mut model = model_at(Home::Elsewhere, snapshot);
    model.update(Event::Ended(Ended { status: Some(status), reason: reason.map(str::to_owned) }));
    model
}

/// A GPU that is hot and nearly full.
fn with_gpus(mut snapshot: Snapshot) -> Snapshot {
    for (number, device) in snapshot.devices.iter_mut().enumerate() {
        device.name = format!("cuda:{number}");
        let sample = kernels::nvml::GpuSample {
            busy_percent: Some(97),
            memory_total_bytes: Some(80 << 30),
            memory_used_bytes: Some((60 + 5 * number as u64) << 30),
            memory_share: Some(0.75 + 0.0625 * number as f32),
            temperature_c: Some(71),
            power_w: Some(612.4),
            power_limit_w: Some(700.0),
            clock_sm_mhz: Some(1755),
            throttled_by: Some(vec!["power cap".to_owned()]),
            ecc_corrected: Some(2),
            ecc_uncorrected: Some(0),
            ..kernels::nvml::GpuSample::default()
        };
        let identity = kernels::nvml::GpuIdentity {
            name: Some("NVIDIA H100 80GB HBM3".to_owned()),
            uuid: Some(format!("GPU-{number}")),
            ..kernels::nvml::GpuIdentity::default()
        };
        device.gpu = Some(GpuView { identity, sample: Some(sample) });
    }
    snapshot
}

#[test]
fn loading_compact() {
    insta::assert_snapshot!(screen(&model(loading()), 80, 24, COLOUR));
}

#[test]
fn batches_are_not_called_full_before_there_is_one() {
    let storing = PreparingView {
        step: PreparingStep::StoringInput,
        bytes_read: 1_234_567,
        ..PreparingView::default()
    };
    let storing = Snapshot { preparing: Some(storing), ..Snapshot::default() };
    for (snapshot, words) in [
        (loading(), "0.0 %  0 of 20,000 records committed"),
        (storing, "1,234,567 bytes of standard input stored"),
    ] {
        let shown = screen(&model(snapshot), 110, 36, COLOUR);
        assert!(shown.contains("no batch yet") && !shown.contains("% full"), "{shown}");
        assert!(shown.contains(words), "{words}: {shown}");
    }
    assert!(screen(&model(running(4)), 110, 36, COLOUR).contains(" % full "));
}

#[test]
fn running_compact() {
    insta::assert_snapshot!(screen(&model(running(4)), 80, 24, COLOUR));
}

#[test]
fn running_small() {
    insta::assert_snapshot!(screen(&model(running(4)), 40, 10, COLOUR));
}

#[test]
fn running_normal() {
    insta::assert_snapshot!(screen(&model(running(4)), 110, 36, COLOUR));
}

#[test]
fn running_wide_with_gpus() {
    insta::assert_snapshot!(screen(&model(with_gpus(running(4))), 170, 44, COLOUR));
}

#[test]
fn degraded_normal() {
    insta::assert_snapshot!(screen(&model(degraded()), 120, 36, COLOUR));
}

#[test]
fn starved_compact() {
    insta::assert_snapshot!(screen(&model(starved()), 80, 24, COLOUR));
}

#[test]
fn paused_compact() {
    insta::assert_snapshot!(screen(&model(Snapshot { paused: true, ..running(4) }), 80, 24, COLOUR));
}

#[test]
fn all_lost_compact() {
    insta::assert_snapshot!(screen(&model(all_lost()), 80, 24, COLOUR));
}

#[test]
fn done_compact() {
    insta::assert_snapshot!(screen(&ended(running(2), RunStatus::Done, None), 80, 24, COLOUR));
}

#[test]
fn failed_compact() {
    let reason = "failed to write `results/run.json`: permission denied";
    insta::assert_snapshot!(screen(&ended(degraded(), RunStatus::Failed, Some(reason)), 80, 24, COLOUR));
}

#[test]
fn help_compact() {
    let mut model = model(running(4));
    press(&mut model, "?");
    insta::assert_snapshot!(screen(&model, 80, 24, COLOUR));
}

#[test]
fn leaving_asks() {
    let mut model = model(running(4));
    press(&mut model, "q");
    insta::assert_snapshot!(screen(&model, 80, 24, COLOUR));
}

#[test]
fn a_device_in_detail() {
    let mut model = model(with_gpus(degraded()));
    press(&mut model, "vv\n");
    insta::assert_snapshot!(screen(&model, 100, 30, COLOUR));
}

#[test]
fn a_search_for_events() {
    let mut model = model(degraded());
    press(&mut model, "e/sim:2");
    insta::assert_snapshot!(screen(&model, 80, 24, COLOUR));
}

#[test]
fn sixteen_devices_compact() {
    let mut model = model(running(16));
    press(&mut model, "vvvvvvvvv");
    insta::assert_snapshot!(screen(&model, 80, 24, COLOUR));
}

#[test]
fn sixteen_devices_wide() {
    insta::assert_snapshot!(screen(&model(with_gpus(running(16))), 160, 50, COLOUR));
}

#[test]
fn degraded_ascii() {
    let look = Look { colour: false, unicode: false };
    let mut model = model(degraded());
    for keys in ["", "e", "<?", "xq", "n\n"] {
        press(&mut model, keys);
        for (width, height) in [(40, 10), (80, 24), (120, 36), (170, 44)] {
            let screen = screen(&model, width, height, look);
            assert!(screen.is_ascii(), "{keys:?}:\n{screen}");
        }
    }
    press(&mut model, "<");
    insta::assert_snapshot!(screen(&model, 100, 32, look));
}

/// The cells that have a colour of their own.
fn coloured(model: &Model, look: Look) -> usize {
    let area = Rect::new(0, 0, 110, 36);
    let mut buffer = Buffer::empty(area);
    draw(area, &mut buffer, model, look);
    let plain = ratatui::style::Color::Reset;
    buffer.content().iter().filter(|cell| cell.fg != plain || cell.bg != plain).count()
}

#[test]
fn no_color_means_none() {
    let model = model(degraded());
    assert!(coloured(&model, COLOUR) > 100);
    assert_eq!(coloured(&model, Look { colour: false, ..COLOUR }), 0);
    // What colour says, words and weight say too.
    let with = screen(&model, 110, 36, COLOUR);
    assert_eq!(with, screen(&model, 110, 36, Look { colour: false, ..COLOUR }));
}

#[test]
fn every_state_has_its_word_and_its_sentence() {
    let lost_one = {
        let mut snapshot = running(2);
        snapshot.devices = (0..2).map(|number| device(number, DeviceState::Waiting)).collect();
        snapshot
    };
    for (snapshot, word, sentence) in [
        (
            Snapshot { preparing: Some(actors::PreparingView::default()), ..Snapshot::default() },
            "preparing",
            "reading the input: nothing is computed before",
        ),
        (loading(), "loading", "devices load the model"),
        (running(2), "running", "the devices set the pace"),
        (degraded(), "degraded", "the devices set the pace"),
        (lost_one, "degraded", "no device is ready"),
        (starved(), "starved", "reading holds the others up"),
        (Snapshot { paused: true, ..running(2) }, "paused", "until somebody lets them go on"),
        (Snapshot { disk_full: true, ..running(2) }, "writing is paused", "the log says what is in the way"),
        (Snapshot { stopping: true, ..running(2) }, "stopping", "in the grace time"),
        (all_lost(), "all devices lost", "no device is left"),
    ] {
        let screen = screen(&model(snapshot), 80, 24, COLOUR);
        assert!(screen.starts_with(&format!("\"{word} ")), "{word}:\n{screen}");
        assert!(screen.contains(sentence), "{sentence}:\n{screen}");
    }
    for (status, word) in [
        (Some(RunStatus::Done), "done "),
        (Some(RunStatus::Stopped), "stopped "),
        (Some(RunStatus::Failed), "failed "),
        (Some(RunStatus::Running), "ended "),
        (None, "ended "),
    ] {
        let mut model = model_at(Home::Elsewhere, running(2));
        model.update(Event::Ended(Ended { status, reason: None }));
        let screen = screen(&model, 80, 24, COLOUR);
        assert!(screen.starts_with(&format!("\"{word}")), "{word}:\n{screen}");
    }
    let empty = Model::new(Home::Elsewhere, "results".to_owned());
    assert!(screen(&empty, 80, 24, COLOUR).contains("connecting to results"));
}

#[test]
fn no_size_is_too_small_on_any_page() {
    let strange = {
        let mut snapshot = with_gpus(running(3));
        snapshot.devices[0].busy_share_now = Some(f64::NAN);
        snapshot.devices[1].name = "a name\u{7}\u{1b}[31m of \u{1f9ec} letters ".repeat(20);
        snapshot.tokens_per_s_now = f64::INFINITY;
        snapshot.elapsed_s = f64::MAX;
        for stage in &mut snapshot.stages {
            (stage.capacity, stage.busy_share, stage.blocked_share) = (0, 3.0, f64::NAN);
        }
        snapshot
    };
    let searching = {
        let mut model = model(degraded());
        press(&mut model, "/out of");
        model.level = EventLevel::Error;
        model
    };
    let empty = model(Snapshot::default());
    let everywhere = |model: &Model| {
        for width in [1, 2, 7, 39, 61, 80, 100, 150] {
            for height in [1, 2, 3, 4, 5, 10, 16, 31, 60] {
                screen(model, width, height, COLOUR);
            }
        }
    };
    for model in [&searching, &empty, &model(strange)] {
        everywhere(model);
    }
    let mut model = model(running(16));
    for keys in ["", "?", "<q", "<s", "<r", "<\n", "<e"] {
        press(&mut model, keys);
        everywhere(&model);
    }
}

#[test]
fn a_small_screen_still_says_what_matters() {
    let screen = screen(&model(degraded()), 40, 10, COLOUR);
    for text in ["degraded", "sim:1", "retired", "q quit"] {
        assert!(screen.contains(text), "{text}:\n{screen}");
    }
}

#[test]
fn the_line_of_keys_is_cut_between_its_items_only() {
    let mut paused = model(Snapshot { paused: true, ..running(2) });
    let running = model(running(2));
    let ended = ended(super::super::scenes::running(2), RunStatus::Done, None);
    let known = [
        "q quit",
        "p pause",
        "p go on",
        "s stop",
        "c checkpoint",
        "r retire",
        "a take back",
        "Enter device",
        "e events",
        "/ search",
        "f filter",
        "? help",
        "the job has ended",
    ];
    let last_line = |model: &Model, width: u16| {
        let screen = screen(model, width, 24, COLOUR);
        screen.lines().last().unwrap().trim_matches('"').trim_end().to_owned()
    };
    for model in [&running, &paused, &ended] {
        for width in 6..130 {
            let line = last_line(model, width);
            let items = line.split("  ").map(str::trim).filter(|item| !item.is_empty());
            assert!(items.clone().all(|item| known.contains(&item)), "{width}: {line}");
            assert!(line.contains("q quit"), "{width}: {line}");
        }
    }
    assert_eq!(last_line(&running, 40), "q quit  p pause  s stop  ? help");
    // What is said is cut between words, and says that it goes on.
    paused.message =
        Some("sim:1 is retired already: a takes it back (the worker ended by signal 9)".to_owned());
    let line = last_line(&paused, 60);
    assert_eq!(line, "sim:1 is retired already: a takes it back (the worker …");
    press(&mut paused, &format!("/{}", "long".repeat(30)));
    let line = last_line(&paused, 60);
    assert!(line.starts_with("/…") && line.ends_with("long_"), "{line}");
}

#[test]
fn later_snapshots_reach_the_screen() {
    let mut model = model(running(2));
    assert!(screen(&model, 80, 24, COLOUR).contains("4,096 of 20,000"));
    model.update(Event::Snapshot(Arc::new(Snapshot { records_committed: 5_120, ..running(2) })));
    assert!(screen(&model, 80, 24, COLOUR).contains("5,120 of 20,000"));
}

#[test]
fn numbers_of_a_queue_are_never_cut() {
    let mut snapshot = running(2);
    for stage in &mut snapshot.stages {
        (stage.queued, stage.capacity) = (1_120, 1_141);
    }
    let model = model(snapshot);
    for width in 52..120 {
        let screen = screen(&model, width, 24, COLOUR);
        assert_eq!(screen.matches("1120/1141 ").count(), 4, "{width}:\n{screen}");
    }
}

#[test]
fn help_is_whole_on_the_smallest_screen() {
    let mut model = model(running(2));
    press(&mut model, "?");
    let screen = screen(&model, 40, 10, COLOUR);
    for text in
        ["s stop ", "a take back", "all about it", "by their level", "clears it", "at once ", "fg comes back"]
    {
        assert!(screen.contains(text), "{text}:\n{screen}");
    }
}

#[test]
fn a_job_that_says_nothing_is_not_shown_as_running() {
    let mut model = model_at(Home::Elsewhere, running(2));
    model.update(Event::Silent(17));
    let silent = screen(&model, 80, 24, COLOUR);
    assert!(silent.starts_with("\"no answer "), "{silent}");
    assert!(silent.contains("nothing heard for 17 s"), "{silent}");
    assert!(!silent.contains(" left"), "{silent}");
    model.update(Event::Snapshot(Arc::new(running(2))));
    assert!(screen(&model, 80, 24, COLOUR).starts_with("\"running "));
}
