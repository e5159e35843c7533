//! The dashboard in a terminal: it opens, obeys, gives the terminal back however it ends, and never costs the run
//! anything.

use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::job::JobFolder;
use crate::process::{is_suspended, program, run, without_settings};
use crate::proteins::fasta;
use crate::terminal::Terminal;

/// A second of work or more, until it is stopped if a test has keys to press.
fn job(sequences: usize) -> JobFolder {
    JobFolder::new(fasta(141, sequences, 20..200))
        .simulating("latency_us_per_batch=40000")
        .set("telemetry.progress", "auto")
}

fn short() -> JobFolder {
    job(400)
}

fn long() -> JobFolder {
    job(30_000)
}

fn start(job: &JobFolder) -> Terminal {
    let mut terminal = Terminal::start(&mut job.command_into("results"), 80, 24);
    terminal.wait_for("tokens/s");
    assert!(terminal.is_full());
    terminal
}

/// Ends a run by Ctrl-C, in order.
#[track_caller]
fn interrupt(terminal: Terminal) {
    terminal.press("\x03");
    let after = terminal.finish(75);
    assert!(after.contains("stopped by SIGINT") && after.contains("to go on: virnucpro-orch run"), "{after}");
}

#[test]
fn a_run_opens_it_and_the_summary_follows_on_the_restored_screen() {
    let job = short();
    let undisturbed = short().set("telemetry.progress", "none").simulating("").done_into("undisturbed");
    let mut terminal = start(&job);
    terminal.wait_for("of 400 records committed");
    let after = terminal.finish(0);
    assert!(after.contains("done") && after.contains("sequences  400"), "{after}");
    job.outcome("results").assert_same(&undisturbed, "under a dashboard");
}

#[test]
fn keys_pause_show_and_go_back() {
    let job = long();
    let mut terminal = start(&job);
    terminal.press("p");
    terminal.wait_for("paused");
    terminal.wait_for("p go on");
    terminal.press("p");
    terminal.wait_for("p pause");
    terminal.press("?");
    terminal.wait_for("help: any key closes it");
    terminal.press("x");
    terminal.wait_until("help is closed", |terminal| !terminal.screen().contains("any key"));
    terminal.press("\x1b[B\r");
    terminal.wait_for("sim:1 (2 of 2)");
    terminal.wait_for("last error");
    terminal.press("\x1b");
    terminal.wait_until("back", |terminal| !terminal.screen().contains("last error"));
    terminal.press("e/segment");
    terminal.wait_for("with \"segment\"");
    terminal.press("\r\x1b");
    terminal.press("c");
    terminal.wait_until("an answer", |terminal| !terminal.screen().contains("q quit"));
    interrupt(terminal);
}

#[test]
fn a_device_is_retired_and_taken_back_by_keys() {
    let job = long();
    let mut terminal = start(&job);
    terminal.press("jr");
    terminal.wait_for("retire a device?");
    terminal.press("y");
    terminal.wait_for("retired");
    terminal.wait_for("degraded");
    terminal.press("r");
    terminal.wait_for("sim:1 is retired already: a takes it back");
    assert!(!terminal.screen().contains("retire a device?"));
    terminal.press("a");
    terminal.wait_for("take a device back?");
    terminal.press("y");
    terminal.wait_until("it works again", |terminal| !terminal.screen().contains("degraded"));
    interrupt(terminal);
}

#[test]
fn stopping_asks_and_ends_in_order() {
    let job = long();
    let mut terminal = start(&job);
    terminal.press("s");
    terminal.wait_for("stop the job?");
    terminal.press("n");
    terminal.wait_until("no", |terminal| !terminal.screen().contains("stop the job?"));
    terminal.press("sy");
    let after = terminal.finish(75);
    assert!(after.contains("stopped by the dashboard") && after.contains("to go on"), "{after}");
}

#[test]
fn a_pasted_text_is_no_keys() {
    let job = long();
    let mut terminal = start(&job);
    assert!(terminal.text().contains("\x1b[?2004h"), "the terminal is asked to mark what is pasted");
    // Letter by letter it would stop the job, and here answer the question.
    terminal.paste("sy\nqs\n");
    terminal.press("s");
    terminal.wait_for("stop the job?");
    terminal.paste("y");
    terminal.press("n/");
    terminal.wait_for("Enter keeps it");
    terminal.paste("sy\tpasted\nsecond line");
    terminal.wait_for("/sypasted_");
    terminal.press("\x1b");
    // The same in the dashboard of another shell, of which leaving is `q`.
    let mut top = Terminal::start(program(["top"]).arg(job.at("results")), 80, 24);
    top.wait_for("records committed");
    top.paste("qsy");
    top.press("?");
    top.wait_for("help: any key closes it");
    top.press("xq");
    top.finish(0);
    terminal.wait_for("q quit");
    assert!(!job.log_of("results").contains("stopping"));
    interrupt(terminal);
}

#[test]
fn after_detaching_the_job_goes_on_and_top_shows_it_again() {
    let job = long();
    let mut terminal = start(&job);
    terminal.press("q");
    terminal.wait_for("virnucpro-orch top results");
    terminal.press("n");
    terminal.wait_until("stayed", |terminal| !terminal.screen().contains("leave?"));
    terminal.press("qd");
    terminal.wait_until("the dashboard is gone", |terminal| !terminal.is_full());
    terminal.wait_for("shows it again");
    terminal.wait_for("running   [");
    assert!(terminal.is_restored());

    let mut top = Terminal::start(program(["top"]).arg(job.at("results")), 110, 36);
    top.wait_for("2 of 2 devices ready");
    let mut second = Terminal::start(program(["top"]).arg(job.at("results")), 80, 24);
    second.wait_for("records committed");
    top.press("p");
    second.wait_for("paused");
    top.press("q");
    top.finish(0);
    second.press("p");
    second.wait_for("p pause");
    terminal.press("\x03");
    terminal.finish(75);
    second.wait_for("stopped by SIGINT");
    second.press("q");
    second.finish(0);
}

#[test]
fn a_panic_of_an_actor_does_not_touch_the_screen() {
    let job = short();
    let mut command = job.command_into("results");
    let mut terminal = Terminal::start(command.env("VIRNUCPRO_FAULTS", "inference:9=panic"), 100, 30);
    terminal.wait_for("fault on purpose at inference");
    assert!(terminal.is_full());
    let whole = {
        terminal.wait_for("of 400 records committed");
        let text = terminal.text();
        terminal.finish(0);
        text
    };
    assert!(!whole.contains("thread '"), "{whole}");
    let log = std::fs::read_to_string(job.at("results/run.log")).unwrap();
    assert!(log.contains("panicked: fault on purpose at inference"), "{log}");
}

#[test]
fn a_panic_that_ends_the_run_is_told_on_the_restored_screen() {
    let job = short();
    let mut command = job.command_into("results");
    let terminal = Terminal::start(command.env("VIRNUCPRO_FAULTS", "packer:20=panic"), 80, 24);
    let after = terminal.finish(75);
    assert!(after.contains("the packer failed: ") && after.contains("to go on"), "{after}");
}

#[test]
fn a_panic_of_the_dashboard_costs_only_itself() {
    let job = short();
    let mut command = job.command_into("results");
    let terminal = Terminal::start(command.env("VIRNUCPRO_FAULTS", "dashboard:3=panic"), 80, 24);
    let after = terminal.finish(0);
    assert!(after.contains("fault on purpose at dashboard 3"), "{after}");
    assert!(after.contains("the dashboard failed; the job goes on") && after.contains("done"), "{after}");
}

#[test]
fn signals_end_it_as_they_end_a_run_without_it() {
    for (signal, name) in [(Signal::TERM, "SIGTERM"), (Signal::INT, "SIGINT"), (Signal::HUP, "SIGHUP")] {
        let job = long();
        let terminal = start(&job);
        terminal.signal(signal);
        let after = terminal.finish(75);
        assert!(after.contains(&format!("stopped by {name}")), "{after}");
    }
}

#[test]
fn a_second_interrupt_leaves_at_once_and_restores() {
    let job = long().simulating("latency_us_per_batch=3000000").set("restart.shutdown_grace_ms", 60_000);
    let mut terminal = start(&job);
    terminal.press("\x03");
    terminal.wait_for("stopping");
    // At once it would be the first one still.
    std::thread::sleep(Duration::from_millis(300));
    terminal.press("\x03");
    let after = terminal.finish(130);
    assert!(after.contains("second signal (SIGINT)"), "{after}");
    let log = std::fs::read_to_string(job.at("results/run.log")).unwrap();
    let last = log.lines().last().unwrap();
    for words in
        ["second signal: leaving at once", "signal=\"SIGINT\"", "records=30000", "Left behind", "report"]
    {
        assert!(last.contains(words), "{words} is not in: {last}");
    }
}

#[test]
fn it_is_suspended_and_comes_back() {
    let job = long();
    let mut terminal = start(&job);
    for (times, way) in ["key", "signal"].into_iter().enumerate() {
        if way == "key" {
            terminal.press("\x1a");
        } else {
            terminal.signal(Signal::TSTP);
        }
        let id = terminal.id();
        terminal.wait_until("suspended", |_| is_suspended(id));
        terminal.wait_until("the screen is left", |terminal| !terminal.is_full());
        terminal.assert_restored();
        terminal.signal(Signal::CONT);
        terminal.wait_until("back", |terminal| terminal.is_full() && terminal.times_taken() == times + 2);
        terminal.wait_for("tokens/s");
    }
    // Not even a stop that nobody can prepare for.
    terminal.signal(Signal::STOP);
    let id = terminal.id();
    terminal.wait_until("stopped", |_| is_suspended(id));
    terminal.signal(Signal::CONT);
    terminal.press("?");
    terminal.wait_for("help: any key closes it");
    interrupt(terminal);
}

#[test]
fn in_the_background_it_waits_until_the_terminal_is_its_own_again() {
    for way in ["key", "signal"] {
        let job = long();
        let mut command = Command::new("sh");
        let script = "set -m; \"$0\" \"$@\"; bg %1; sleep 1; echo; echo in front again; fg %1";
        command.args(["-c", script, crate::process::PROGRAM]);
        command.args(job.command_into("results").get_args()).current_dir(job.path());
        without_settings(&mut command);
        command.env("VIRNUCPRO_SIM", "latency_us_per_batch=40000");
        let mut terminal = Terminal::start(&mut command, 80, 24);
        terminal.wait_for("tokens/s");
        if way == "key" {
            terminal.press("\x1a");
        } else {
            // Leaves no time to give anything back.
            terminal.workers()[0].signal(Signal::STOP);
        }
        terminal.wait_until("in front again", |terminal| terminal.text().contains("in front again"));
        let text = terminal.text();
        let before = text.split("in front again").next().unwrap();
        let taken = before.matches("\x1b[?1049h").count();
        assert_eq!(taken, 1, "it took the terminal from the background:\n{before}");
        terminal.wait_until("back", |terminal| terminal.is_full() && terminal.times_taken() == 2);
        interrupt(terminal);
    }
}

#[test]
fn it_follows_the_size_of_the_terminal() {
    let job = long();
    let mut terminal = start(&job);
    terminal.resize(150, 40);
    terminal.wait_for("2 of 2 devices ready");
    terminal.resize(40, 10);
    terminal.wait_until("small", |terminal| !terminal.screen().contains("devices ready"));
    terminal.wait_for("q quit");
    terminal.resize(1, 1);
    std::thread::sleep(Duration::from_millis(400));
    terminal.resize(80, 24);
    terminal.wait_for("tokens/s");
    interrupt(terminal);
}

#[test]
fn terminals_of_a_letter_or_no_size_are_endured() {
    for (columns, rows) in [(1, 1), (7, 2), (0, 0)] {
        let job = short();
        let terminal = Terminal::start(&mut job.command_into("results"), columns.max(1), rows.max(1));
        if columns == 0 {
            // What a terminal over a serial line says.
            terminal.without_size();
        }
        terminal.finish(0);
    }
}

#[test]
fn a_worker_that_is_killed_is_told_and_nothing_more() {
    let job = long();
    let mut terminal = start(&job);
    terminal.wait_until("workers", |terminal| terminal.workers().len() == 2);
    terminal.workers()[0].kill();
    terminal.wait_for("1 restart");
    assert!(terminal.is_full());
    interrupt(terminal);
}

#[test]
fn a_closed_window_stops_the_run_unless_it_was_told_to_outlive_it() {
    let job = long();
    let mut terminal = start(&job);
    terminal.hang_up();
    assert_eq!(terminal.exit_code(), Some(75));
    let manifest = crate::outcome::manifest(&job.at("results")).unwrap();
    assert_eq!(manifest["reason"], "stopped by SIGHUP");

    let job = short();
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", crate::process::PROGRAM]);
    command.args(job.command_into("results").get_args()).current_dir(job.path());
    without_settings(&mut command);
    command.env("VIRNUCPRO_SIM", "latency_us_per_batch=40000");
    let mut terminal = Terminal::start(&mut command, 80, 24);
    terminal.wait_for("tokens/s");
    terminal.hang_up();
    assert_eq!(terminal.exit_code(), Some(0));
    job.outcome("results");
}

#[test]
fn where_it_does_not_belong_it_stays_away() {
    // In the background, where taking the terminal would stop the run.
    let job = short();
    let mut command = Command::new("sh");
    command.args(["-c", "set -m; \"$0\" \"$@\" & wait $!", crate::process::PROGRAM]);
    command.args(job.command_into("results").get_args()).current_dir(job.path());
    without_settings(&mut command);
    let terminal = Terminal::start(command.env("VIRNUCPRO_SIM", "latency_us_per_batch=10000"), 80, 24);
    let text = terminal.finish(0);
    assert!(!text.contains("\x1b[?1049h") && text.contains("done"), "{text}");
    // Without a terminal for it.
    let mut command = job.command_into("elsewhere");
    run(command.args(["--progress", "dashboard"])).expect(2).says(["needs a terminal", "virnucpro-orch top"]);
    // Asked for less.
    for progress in ["lines", "none"] {
        let job = short();
        let mut command = job.command_into("results");
        let terminal = Terminal::start(command.args(["--progress", progress]), 80, 24);
        let text = terminal.finish(0);
        assert!(!text.contains("\x1b[?1049h") && text.contains("done"), "{text}");
    }
    // On a terminal that cannot be drawn on, where nothing but plain text may be printed.
    for (term, progress) in [("dumb", "lines"), ("dumb", "auto"), ("", "auto")] {
        let job = short();
        let mut command = job.command_into("results");
        command.args(["--progress", progress]).env("TERM", term);
        let text = Terminal::start(&mut command, 80, 24).finish(0);
        assert!(!text.contains('\u{1b}') && text.contains("done"), "TERM={term} {progress}: {text:?}");
        assert!(text.contains("segment committed"), "lines, not a bar: {text}");
    }
    let job = short();
    let mut command = job.command_into("results");
    command.args(["--progress", "dashboard"]).env("TERM", "dumb");
    let text = Terminal::start(&mut command, 80, 24).finish(2);
    assert!(text.contains("TERM is `dumb`") && text.contains("auto"), "{text}");
    for (term, why) in [("dumb", "TERM is `dumb`"), ("", "TERM is not set")] {
        let mut top = program(["top"]);
        let text = Terminal::start(top.arg(job.path()).env("TERM", term), 80, 24).finish(2);
        assert!(text.contains(why) && text.contains("virnucpro-orch status"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
    // Flaws of the input are told on the ordinary screen.
    let job = JobFolder::new(">one\nMK1\n").set("telemetry.progress", "auto");
    let text = Terminal::start(&mut job.command_into("results"), 80, 24).finish(5);
    assert!(!text.contains("\x1b[?1049h") && text.contains("line 2"), "{text}");
}

/// Processor time of a thread, in ticks of the system's clock.
fn ticks(process: u32, thread: &str) -> Option<u64> {
    for entry in std::fs::read_dir(format!("/proc/{process}/task")).ok()?.flatten() {
        let text = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let (name, fields) = text.split_once('(')?.1.rsplit_once(") ")?;
        if name == thread {
            let fields: Vec<&str> = fields.split_whitespace().collect();
            return Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?);
        }
    }
    None
}

#[test]
fn it_costs_next_to_nothing() {
    let job = long().set("devices.use", r#"["sim:8"]"#).simulating("latency_us_per_batch=400000");
    let mut terminal = Terminal::start(&mut job.command_into("results"), 160, 45);
    terminal.wait_for("8 of 8 devices ready");
    let (before, began) = (ticks(terminal.id(), "dashboard").unwrap(), Instant::now());
    std::thread::sleep(Duration::from_secs(5));
    let used = ticks(terminal.id(), "dashboard").unwrap() - before;
    let share = used as f64 / rustix::param::clock_ticks_per_second() as f64 / began.elapsed().as_secs_f64();
    // 2 % of a core where it is compiled for speed; here it is not, and others may use the core's other half.
    let most = if cfg!(debug_assertions) { 0.25 } else { 0.03 };
    assert!(share < most, "{:.1} % of a core", 100.0 * share);
    println!("{:.1} % of a core", 100.0 * share);
    interrupt(terminal);
}
