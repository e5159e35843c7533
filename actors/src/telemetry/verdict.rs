//! Which stage holds the others up, and what a person may do: a sentence about the last ten seconds.
//!
//! Devices are what a run is paid for, so the question is why they do not compute. Time in which a device that is
//! ready does not is counted by its cause while it passes; the largest cause names the stage.

use std::time::Duration;

use super::snapshot::{Bottleneck, Stage, Tier};

/// Devices that compute so much of the time are used well.
const GOOD_MIN: f64 = 0.8;
/// Devices that compute less of the time are used badly.
const MILD_MIN: f64 = 0.5;
/// Nothing is said before so many batches are done …
const BATCHES_MIN: u64 = 10;
/// … unless so much time has passed since the first.
const TIME_MIN: Duration = Duration::from_secs(10);

/// What a verdict is about.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Situation {
    pub(super) disk_full: bool,
    pub(super) stopping: bool,
    pub(super) paused: bool,
    /// It was paused, or the disk was full, within the time that shares are of.
    pub(super) has_just_gone_on: bool,
    /// The input is read and every batch is lent.
    pub(super) is_tail: bool,
    pub(super) devices_ready: usize,
    pub(super) batches: u64,
    /// Since the first batch was lent.
    pub(super) working: Duration,
    /// Mean over devices that are ready.
    pub(super) utilisation: Option<f64>,
    /// Time that devices without a batch waited, by cause, as shares of the time of all that are ready.
    pub(super) idle: Idle,
    /// Shares of the time that reader, packer and writer worked.
    pub(super) read_busy: f64,
    pub(super) pack_busy: f64,
    pub(super) write_busy: f64,
}

/// What devices without a batch waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Idle {
    /// A segment that is being read.
    pub(super) read: f64,
    /// The packer: there was work to lend, or to pack.
    pub(super) pack: f64,
    /// A segment that is complete and not yet committed.
    pub(super) write: f64,
    /// Other devices: all that may be open is lent.
    pub(super) devices: f64,
}

/// Judges a situation.
pub(super) fn verdict(situation: &Situation) -> Bottleneck {
    let silent = |sentence: &str| Bottleneck {
        utilisation: situation.utilisation,
        sentence: sentence.to_owned(),
        ..Bottleneck::default()
    };
    if situation.disk_full {
        return silent("writing is paused until the disk takes data again: the log says why");
    }
    if situation.stopping {
        return silent("the job is being stopped");
    }
    if situation.paused {
        return silent("the job is paused: devices get no batches until it is resumed");
    }
    if situation.is_tail {
        return silent("the input is read and every batch is lent: the last ones are being finished");
    }
    if situation.has_just_gone_on {
        return silent("the job has just gone on: too early to tell");
    }
    let Some(utilisation) = situation.utilisation.filter(|_| situation.devices_ready > 0) else {
        return silent("no device is ready yet");
    };
    if situation.batches < BATCHES_MIN && situation.working < TIME_MIN {
        return silent("too early to tell");
    }
    let tier = match utilisation {
        GOOD_MIN.. => Tier::Good,
        MILD_MIN.. => Tier::Mild,
        _ => Tier::Critical,
    };
    let (stage, sentence) = match tier {
        Tier::Good => {
            let percent = percent(utilisation);
            let sentence = format!(
                "devices compute {percent} of the time and set the pace: only more or faster ones would help"
            );
            (Stage::Compute, sentence)
        }
        Tier::Mild | Tier::Critical | Tier::Unknown => blame(situation, utilisation),
    };
    Bottleneck { stage: Some(stage), tier, utilisation: Some(utilisation), sentence }
}

/// Names the largest cause of the time that devices do not compute.
fn blame(situation: &Situation, utilisation: f64) -> (Stage, String) {
    let Idle { read, pack, write, devices } = situation.idle;
    // What is left, devices held batches and did not compute: these travelled.
    let travel = (1.0 - utilisation - read - pack - write - devices).max(0.0);
    let compute = percent(utilisation);
    let causes = [
        (
            read,
            Stage::Read,
            format!(
                "wait for input: reading works {} of the time; put the FASTA on a fast local disk, or decompress it before",
                percent(situation.read_busy)
            ),
        ),
        (
            write,
            Stage::Write,
            format!(
                "wait for the writer, which works {} of the time; put output.directory on a faster disk",
                percent(situation.write_busy)
            ),
        ),
        (
            pack,
            Stage::Pack,
            format!(
                "wait for the packer, which works {} of the time; a larger packing.token_budget makes fewer batches",
                percent(situation.pack_busy)
            ),
        ),
        (
            devices,
            Stage::Compute,
            "wait for each other: what may be open at once is too little work for all; raise output.segment_sequences"
                .to_owned(),
        ),
        (
            travel,
            Stage::Pack,
            "hold batches that are still on their way; a larger packing.token_budget makes fewer and longer ones"
                .to_owned(),
        ),
    ];
    let worst = causes.into_iter().max_by(|a, b| a.0.total_cmp(&b.0));
    let (_, stage, why) = worst.expect("there are five causes");
    (stage, format!("devices compute only {compute} of the time and {why}"))
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn working(utilisation: f64) -> Situation {
        Situation {
            devices_ready: 2,
            batches: 100,
            working: Duration::from_secs(60),
            utilisation: Some(utilisation),
            ..Situation::default()
        }
    }

    #[test]
    fn tiers_end_at_80_and_50_percent() {
        for (utilisation, tier) in [
            (0.99, Tier::Good),
            (0.8, Tier::Good),
            (0.79, Tier::Mild),
            (0.5, Tier::Mild),
            (0.49, Tier::Critical),
            (0.0, Tier::Critical),
        ] {
            assert_eq!(verdict(&working(utilisation)).tier, tier, "{utilisation}");
        }
    }

    #[test]
    fn the_largest_cause_names_the_stage() {
        let idle = |read, pack, write, devices| Idle { read, pack, write, devices };
        for (idle, stage, words) in [
            (idle(0.5, 0.1, 0.0, 0.1), Stage::Read, "wait for input"),
            (idle(0.1, 0.1, 0.5, 0.0), Stage::Write, "wait for the writer"),
            (idle(0.1, 0.5, 0.0, 0.0), Stage::Pack, "wait for the packer"),
            (idle(0.1, 0.0, 0.1, 0.5), Stage::Compute, "wait for each other"),
            (idle(0.0, 0.1, 0.0, 0.0), Stage::Pack, "on their way"),
        ] {
            let said = verdict(&Situation { idle, ..working(0.2) });
            assert_eq!(said.stage, Some(stage), "{said:?}");
            assert!(said.sentence.starts_with("devices compute only 20 % of the time"), "{}", said.sentence);
            assert!(said.sentence.contains(words), "{}", said.sentence);
        }
        assert_eq!(verdict(&working(0.9)).stage, Some(Stage::Compute));
    }

    #[test]
    fn nothing_is_said_while_the_run_is_not_itself() {
        let usual = working(0.1);
        for (situation, words) in [
            (Situation { disk_full: true, stopping: true, ..usual }, "writing is paused"),
            (Situation { stopping: true, paused: true, ..usual }, "stopped"),
            (Situation { paused: true, ..usual }, "paused"),
            (Situation { has_just_gone_on: true, ..usual }, "just gone on"),
            (Situation { is_tail: true, ..usual }, "the last ones"),
            (Situation { utilisation: None, devices_ready: 0, ..usual }, "no device is ready"),
            (Situation { batches: 9, working: Duration::from_secs(9), ..usual }, "too early"),
        ] {
            let said = verdict(&situation);
            assert_eq!((said.stage, said.tier), (None, Tier::Unknown), "{situation:?}");
            assert!(said.sentence.contains(words), "{}", said.sentence);
        }
        // Ten seconds or ten batches are enough.
        assert!(verdict(&Situation { batches: 1, ..usual }).stage.is_some());
        assert!(verdict(&Situation { working: Duration::ZERO, ..usual }).stage.is_some());
    }
}
