//! The actor beside a packer that is told when to answer.

use super::*;

const DEADLINE: Duration = Duration::from_secs(60);
const BATCH_TOKENS: u64 = 100;

/// Answers nobody until it is asked where it stands; from then on it has done one batch more with each answer.
struct SlowPacker;

struct SlowPackerState {
    work: WorkAccount,
    waiting: Vec<oneshot::Sender<Box<WorkAccount>>>,
    answers: bool,
}

impl SlowPackerState {
    fn answer(&mut self) {
        for answer in self.waiting.drain(..) {
            let at = Instant::now();
            self.work.lent(DeviceIndex(0), Duration::ZERO, at);
            self.work.completed(&BatchReport {
                device: DeviceIndex(0),
                sequences: 2,
                tokens: BATCH_TOKENS,
                residues: BATCH_TOKENS - 4,
                longest_tokens: 60,
                compute_us: 5,
                budget_tokens: 100,
                is_last: false,
                device_budget_tokens: 100,
                at,
            });
            let _ = answer.send(self.work.shown(at));
        }
    }
}

impl Actor for SlowPacker {
    type Msg = PackerMessage;
    type State = SlowPackerState;
    type Arguments = ();

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        (): (),
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(SlowPackerState { work: WorkAccount::new(1, Instant::now()), waiting: Vec::new(), answers: false })
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: PackerMessage,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            PackerMessage::ShowWork(answer) => state.waiting.push(answer),
            _ => state.answers = true,
        }
        assert!(state.waiting.len() <= 1, "asked again before it answered");
        if state.answers {
            state.answer();
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_busy_packer_delays_its_figures_and_nothing_else() {
    let (packer, _) = Actor::spawn(None, SlowPacker, ()).await.unwrap();
    let first = Snapshot { devices: vec![DeviceView::default()], ..Snapshot::default() };
    let (publisher, mut snapshots) = watch::channel(Arc::new(first.clone()));
    let arguments = TelemetryArguments { first, snapshots: publisher };
    let (telemetry, _) = Actor::spawn(None, Telemetry, arguments).await.unwrap();
    telemetry.cast(TelemetryMessage::Packer(packer.clone())).unwrap();
    telemetry.cast(TelemetryMessage::DiskFull(true)).unwrap();
    let mut shown = async |what: &str, wanted: &dyn Fn(&Snapshot) -> bool| {
        let found = tokio::time::timeout(DEADLINE, snapshots.wait_for(|snapshot| wanted(snapshot))).await;
        found.unwrap_or_else(|_| panic!("never shown: {what}")).unwrap().clone()
    };

    let unanswered = shown("what others say", &|snapshot| snapshot.disk_full).await;
    assert_eq!(unanswered.tokens_computed, 0);
    let later = |snapshot: &Snapshot| snapshot.elapsed_s > unanswered.elapsed_s;
    assert_eq!(shown("another snapshot", &later).await.tokens_computed, 0);

    packer.cast(PackerMessage::WhereDoesItStand).unwrap();
    let answered = shown("the packer's figures", &|snapshot| snapshot.tokens_computed > 0).await;
    assert_eq!(answered.devices[0].tokens, answered.tokens_computed);
    assert_eq!(answered.sequences_computed * BATCH_TOKENS, 2 * answered.tokens_computed);

    // The last snapshot has what was done since the one before.
    telemetry.stop_and_wait(None, Some(DEADLINE)).await.unwrap();
    assert!(snapshots.borrow().tokens_computed > answered.tokens_computed);

    // Without a packer there are snapshots all the same.
    packer.stop_and_wait(None, Some(DEADLINE)).await.unwrap();
    let (publisher, mut snapshots) = watch::channel(Arc::default());
    let arguments = TelemetryArguments { first: Snapshot::default(), snapshots: publisher };
    let (telemetry, _) = Actor::spawn(None, Telemetry, arguments).await.unwrap();
    telemetry.cast(TelemetryMessage::Packer(packer)).unwrap();
    tokio::time::timeout(DEADLINE, snapshots.changed()).await.unwrap().unwrap();
    telemetry.stop(None);
}
