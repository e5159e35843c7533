//! The harness itself: what it must refuse, it refuses.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use actors::part::{PartReader, PartRow, PartSchema, write_part};
use rustix::process::Signal;

use crate::input::{Input, InputEngine};
use crate::schedule::Schedule;
use crate::session::{self, Deadlines, End, Ended, Expectation};
use crate::toll::{Kind, Toll};
use crate::trial::{Trial, committed};
use crate::watching;

/// An input with rejected records and poison sequences.
fn input() -> Input {
    Input::all().into_iter().find(|input| input.name == "nan-and-rejected").unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn edit(path: &Path, change: impl FnOnce(&str) -> String) {
    let text = fs::read_to_string(path).unwrap();
    let changed = change(&text);
    assert_ne!(text, changed, "{}", path.display());
    fs::write(path, changed).unwrap();
}

/// Writes a part again without its last row, whole and readable.
fn drop_last_row(path: &Path) {
    let mut part = PartReader::open(path).unwrap();
    let mut rows = Vec::new();
    while let Some(row) = part.next_row().unwrap() {
        rows.push((row.index, row.id.to_owned(), row.length, row.embedding.to_vec()));
    }
    rows.pop().unwrap();
    let rows = rows.iter().map(|(index, id, length, embedding)| PartRow {
        index: *index,
        id,
        length: *length,
        embedding,
    });
    let schema = PartSchema { hidden: 64, float: config::Float::F32, per_residue: false };
    write_part(path, &schema, &Default::default(), rows).unwrap();
}

#[test]
fn a_result_that_is_wrong_in_any_way_is_refused() {
    let input = input();
    let undisturbed = input.undisturbed();
    let whole = input.job.at("undisturbed-0");
    let folder = input.job.at("spoilt");
    let judge = |spoil: &dyn Fn(&Path)| {
        let _ = fs::remove_dir_all(&folder);
        copy(&whole, &folder);
        let before = committed(&folder);
        spoil(&folder);
        let mut trial = Trial::new(&input, "spoilt");
        (trial.check(&before), trial.finish(false))
    };
    assert_eq!(judge(&|_| {}), (Ok(()), Ok(())));

    let part = "embeddings/part-00002.parquet";
    type Spoil = Box<dyn Fn(&Path)>;
    let only_in_the_end: [(&str, Spoil, &str); 6] = [
        (
            "a temporary file",
            Box::new(|folder| fs::write(folder.join(".state/.failed-00001.tsv.tmp"), "").unwrap()),
            "temporary files are left",
        ),
        (
            "a failed record left out",
            Box::new(|folder| {
                edit(&folder.join("failed.tsv"), |text| {
                    let kept = text.lines().filter(|line| !line.starts_with("42\t"));
                    kept.map(|line| format!("{line}\n")).collect()
                });
            }),
            "failed.tsv lists",
        ),
        (
            "no reason",
            Box::new(|folder| {
                edit(&folder.join("failed.tsv"), |text| {
                    let (before, line) = text.trim_end().rsplit_once('\n').unwrap();
                    format!("{before}\n{}\t\n", line.rsplit_once('\t').unwrap().0)
                });
            }),
            "failed.tsv lists",
        ),
        (
            "a total",
            Box::new(|folder| {
                edit(&folder.join("run.json"), |text| text.replace("\"rows\": 110", "\"rows\": 111"));
            }),
            "totals of run.json",
        ),
        (
            "the status",
            Box::new(|folder| {
                edit(&folder.join("run.json"), |text| text.replace("\"done\"", "\"running\""));
            }),
            "the status is \"running\"",
        ),
        (
            "what was counted",
            Box::new(|folder| {
                edit(&folder.join("run.json"), |text| text.replace("\"rejected\": 5", "\"rejected\": 4"));
            }),
            "counts of run.json",
        ),
    ];
    for (what, spoil, says) in only_in_the_end {
        let (after_a_session, in_the_end) = judge(&*spoil);
        assert_eq!(after_a_session, Ok(()), "{what}");
        assert!(in_the_end.as_ref().is_err_and(|text| text.contains(says)), "{what}: {in_the_end:?}");
    }

    let at_once: [(&str, Spoil, &str); 5] = [
        (
            "a flipped bit",
            Box::new(move |folder| {
                let mut bytes = fs::read(folder.join(part)).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                fs::write(folder.join(part), bytes).unwrap();
            }),
            "`part-00002.parquet` differs from byte",
        ),
        (
            "a row left out",
            Box::new(move |folder| drop_last_row(&folder.join(part))),
            "`part-00002.parquet` differs from byte",
        ),
        (
            "a part deleted",
            Box::new(move |folder| fs::remove_file(folder.join(part)).unwrap()),
            "`part-00002.parquet` is missing",
        ),
        (
            "a part too many",
            Box::new(move |folder| {
                fs::copy(folder.join(part), folder.join("embeddings/part-00009.parquet")).unwrap();
            }),
            "`part-00009.parquet` should not be there",
        ),
        (
            "parts exchanged",
            Box::new(move |folder| {
                fs::copy(folder.join(part), folder.join("embeddings/part-00001.parquet")).unwrap();
            }),
            "`part-00001.parquet` differs from byte",
        ),
    ];
    for (what, spoil, says) in at_once {
        let (after_a_session, in_the_end) = judge(&*spoil);
        assert!(after_a_session.is_err(), "{what}");
        assert!(in_the_end.as_ref().is_err_and(|text| text.contains(says)), "{what}: {in_the_end:?}");
    }
    assert_eq!(undisturbed.exit_code, 3);
}

#[test]
fn a_commit_that_was_taken_back_is_refused() {
    let input = input();
    input.undisturbed();
    let folder = input.job.at("undisturbed-0");
    let mut before = committed(&folder);
    assert_eq!(before.len(), 5);
    before.insert("part-00005.parquet".to_owned());
    let refused = Trial::new(&input, "undisturbed-0").check(&before).unwrap_err();
    assert!(refused.contains("committed before, no longer: [\"part-00005.parquet\"]"), "{refused}");
}

#[test]
fn a_session_that_hangs_is_refused_and_ended() {
    let input = input();
    let stderr = input.job.at("hang.stderr");
    let mut command = input.job.command_into("hang");
    command.env("VIRNUCPRO_SIM", "fault=load-hang").stdin(Stdio::null());
    let deadlines = Deadlines { end: Duration::from_millis(700), leave: None };
    let refused = session::run(&mut command, &[], Duration::from_millis(100), &stderr, deadlines);
    assert_eq!(refused.err().as_deref(), Some("it has not ended after 700ms"));
    // Killed ones take a moment to be gone.
    while !watching::living(&stderr.display().to_string()).is_empty() {
        std::thread::yield_now();
    }
}

#[test]
fn a_worker_that_is_left_behind_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let stderr = folder.path().join("stderr");
    let mut command = Command::new("sh");
    command.args(["-c", "sleep 60 & exit 0"]);
    let deadlines = Deadlines { end: Duration::from_secs(30), leave: Some(Duration::from_millis(100)) };
    let refused =
        session::run(&mut command, &[], Duration::from_millis(100), &stderr, deadlines).err().unwrap();
    assert!(refused.starts_with("workers outlive their orchestrator"), "{refused}");
}

#[test]
fn an_end_that_nothing_explains_is_refused() {
    let exit = |code: i32| ExitStatus::from_raw(code << 8);
    let by = |signal: Signal| ExitStatus::from_raw(signal.as_raw());
    let judge = |status, stderr: &str, struck: &[Kind], signals: &[Signal], planned: &[Kind]| {
        let (struck, signals) = (struck.to_vec(), signals.to_vec());
        let ended = Ended { status, stderr: stderr.to_owned(), struck, signals };
        session::judge(&ended, &Expectation { exit_code: 3, planned })
    };
    assert_eq!(judge(exit(3), "", &[], &[], &[]), Ok(End::Done));
    let (term, int) = (Signal::TERM, Signal::INT);
    for (status, stderr, struck, signals, planned) in [
        (exit(75), "", &[][..], &[term][..], &[][..]),
        (exit(75), "writer thread panicked: fault on purpose at writer-thread 1", &[], &[], &[]),
        (exit(75), "all devices were lost", &[], &[], &[Kind::AllDevicesLost]),
        (exit(130), "", &[], &[term, int], &[]),
        (by(Signal::KILL), "", &[Kind::OrchestratorKilled], &[], &[]),
        (by(Signal::ABORT), "", &[], &[], &[Kind::OrchestratorAborted]),
        (by(int), "", &[], &[int], &[]),
    ] {
        assert_eq!(judge(status, stderr, struck, signals, planned), Ok(End::Cut), "{status}, {stderr}");
        // The same end is refused where nothing was done.
        let unexplained = judge(status, "", &[], &[], &[]);
        assert!(unexplained.is_err(), "{status}: {unexplained:?}");
    }
    for code in [0, 1, 2, 4, 5, 101] {
        assert!(judge(exit(code), "", &[], &[term, int], &[Kind::AllDevicesLost]).is_err(), "{code}");
    }
    assert!(judge(exit(130), "", &[], &[term], &[]).is_err());
    let own = "thread 'reader' (7) panicked at actors/src/reader.rs:90:5:";
    assert!(judge(exit(3), own, &[], &[], &[]).is_err_and(|text| text.contains(own)));
    let injected = "thread 'engine' (7) panicked at kernels/src/sim.rs:300:5:";
    assert_eq!(judge(exit(3), injected, &[], &[], &[]), Ok(End::Done));
}

#[test]
fn a_seed_always_draws_the_same_and_every_kind_must_strike() {
    let inputs = Input::all();
    let drawn = |seed| Schedule::draw(seed, &inputs).to_string();
    assert_eq!(drawn(17), drawn(17));
    assert_ne!(drawn(17), drawn(18));
    let on_cpu = |seed: &u64| inputs[Schedule::draw(*seed, &inputs).input].engine == InputEngine::Cpu;
    let on_cpu = (0..200).filter(on_cpu).count();
    assert!((15..40).contains(&on_cpu), "{on_cpu} of 200 on the real engine");

    let mut toll = Toll::default();
    assert_eq!(toll.rarer_than(1), Kind::ALL);
    toll.count(Kind::DiskFull);
    toll.count(Kind::DiskFull);
    assert!(!toll.rarer_than(2).contains(&Kind::DiskFull) && toll.rarer_than(3).contains(&Kind::DiskFull));
}
