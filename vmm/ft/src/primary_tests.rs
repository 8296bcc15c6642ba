//! The primary's side of the protocol, event by event.

use logchannel::Output;

use super::*;

const MS: u64 = 1_000_000;

type Action = PrimaryAction<Output>;
type Event = PrimaryEvent<Output>;

fn net(byte: u8) -> Output {
    Output::Net(vec![byte])
}

struct Driver {
    primary: Primary<Output>,
    now_ns: u64,
}

impl Driver {
    fn alone() -> Self {
        Self { primary: Primary::alone(Config::new(77), 5, 0, 0), now_ns: 0 }
    }

    fn paired() -> Self {
        let mut driver = Self::alone();
        assert_eq!(driver.step(Event::BackupJoined { seq: 0 }), []);
        driver
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(77);
        change(&mut config);
        let mut driver = Self { primary: Primary::alone(config, 5, 0, 0), now_ns: 0 };
        driver.step(Event::BackupJoined { seq: 0 });
        driver
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        self.primary.step(self.now_ns, event, &mut actions);
        actions
    }

    fn append(&mut self, output: Option<Output>) -> Vec<Action> {
        let seq = self.primary.appended() + 1;
        self.step(Event::Appended { seq, output, bytes: 10 })
    }

    fn ack(&mut self, received: Seq, executed: Seq) -> Vec<Action> {
        self.step(Event::Acked { received, executed })
    }

    fn tick_at(&mut self, now_ns: u64) -> Vec<Action> {
        self.now_ns = now_ns;
        self.step(Event::Tick)
    }

    fn answer(&mut self, answer: ClaimAnswer) -> Vec<Action> {
        self.step(Event::ClaimAnswer { expect: 5, answer })
    }
}

fn released(actions: &[Action]) -> Vec<Seq> {
    let seq = |action: &Action| match action {
        PrimaryAction::Release { seq, .. } => Some(*seq),
        _ => None,
    };
    actions.iter().filter_map(seq).collect()
}

const CLAIM: Action = PrimaryAction::Claim { expect: 5, claimant: 77 };

#[test]
fn alone_lets_outputs_go_at_once() {
    let mut driver = Driver::alone();
    assert_eq!(driver.append(None), []);
    assert_eq!(driver.append(Some(net(1))), [PrimaryAction::Release { seq: 2, output: net(1) }]);
    assert_eq!(driver.primary.released(), 2);
}

#[test]
fn an_output_waits_for_the_ack_of_its_own_entry() {
    let mut driver = Driver::paired();
    driver.append(None);
    assert_eq!(driver.append(Some(net(1))), []);
    driver.append(Some(net(2)));
    assert_eq!(driver.ack(1, 0), []);
    assert_eq!(driver.ack(2, 0), [PrimaryAction::Release { seq: 2, output: net(1) }]);
    assert_eq!(driver.ack(2, 2), []);
    assert_eq!(driver.ack(3, 2), [PrimaryAction::Release { seq: 3, output: net(2) }]);
    assert_eq!((driver.primary.released(), driver.primary.gated()), (3, 0));
}

#[test]
fn while_claiming_nothing_goes_and_after_winning_everything() {
    let mut driver = Driver::paired();
    driver.append(Some(net(1)));
    driver.append(Some(net(2)));
    assert_eq!(driver.step(Event::ChannelBroken), [PrimaryAction::CloseChannel, CLAIM]);
    assert_eq!(driver.ack(2, 2), [], "an ack that comes late");
    assert_eq!(driver.append(Some(net(3))), []);
    assert_eq!(driver.answer(ClaimAnswer::Unreachable), []);
    assert_eq!(driver.tick_at(99 * MS), []);
    assert_eq!(driver.tick_at(100 * MS), [CLAIM], "asks again");
    let actions = driver.answer(ClaimAnswer::Won { generation: 6 });
    assert_eq!(actions[0], PrimaryAction::GoLive { generation: 6 }, "before the releases");
    assert_eq!(released(&actions), [1, 2, 3]);
    assert_eq!((driver.primary.state(), driver.primary.generation()), (PrimaryState::Alone, 6));
    assert_eq!(driver.answer(ClaimAnswer::Lost { generation: 7, holder: 1 }), [], "a late answer");
}

#[test]
fn whoever_lost_halts_for_good() {
    let mut driver = Driver::paired();
    driver.append(Some(net(1)));
    driver.step(Event::ChannelBroken);
    let reason = HaltReason::Lost { generation: 6, holder: 3 };
    let lost = driver.answer(ClaimAnswer::Lost { generation: 6, holder: 3 });
    assert_eq!(lost, [PrimaryAction::Halt { reason: reason.clone() }]);
    assert_eq!(driver.answer(ClaimAnswer::Won { generation: 6 }), []);
    assert_eq!(driver.tick_at(1 << 40), []);
    assert_eq!(driver.primary.state(), PrimaryState::Halted(reason));
    assert!(!driver.primary.may_append());
}

#[test]
fn a_silent_backup_is_given_up_and_heartbeats_and_acks_prevent_it() {
    let mut driver = Driver::paired();
    assert!(!driver.tick_at(250 * MS).contains(&CLAIM));
    driver.step(Event::Heartbeat(Heartbeat { generation: 5, number: 0 }));
    assert!(!driver.tick_at(500 * MS).contains(&CLAIM));
    driver.ack(0, 0);
    assert!(!driver.tick_at(750 * MS).contains(&CLAIM));
    driver.step(Event::Heartbeat(Heartbeat { generation: 5, number: 0 }));
    assert!(driver.tick_at(751 * MS).contains(&CLAIM), "a repeated heartbeat is none");
    assert_eq!(driver.primary.state(), PrimaryState::Claiming(Suspicion::Silent));
}

#[test]
fn heartbeats_without_acks_do_not_help_for_long() {
    let mut driver = Driver::paired();
    driver.append(None);
    for number in 0..=100 {
        driver.step(Event::Heartbeat(Heartbeat { generation: 5, number }));
        assert!(!driver.tick_at(number * 20 * MS).contains(&CLAIM), "at {} ms", number * 20);
    }
    driver.step(Event::Heartbeat(Heartbeat { generation: 5, number: 101 }));
    assert!(driver.tick_at(2_001 * MS).contains(&CLAIM));
    assert_eq!(driver.primary.state(), PrimaryState::Claiming(Suspicion::AcksStalled));
}

#[test]
fn heartbeats_go_out_and_releases_are_reported() {
    let mut driver = Driver::paired();
    let beat = |number| PrimaryAction::SendHeartbeat(Heartbeat { generation: 5, number });
    assert_eq!(driver.tick_at(0), [beat(0)]);
    driver.append(Some(net(1)));
    driver.ack(1, 1);
    assert_eq!(driver.tick_at(19 * MS), []);
    assert_eq!(driver.tick_at(20 * MS), [beat(1), PrimaryAction::SendReleased { up_to: 1 }]);
    assert_eq!(driver.tick_at(40 * MS), [beat(2)]);
}

#[test]
fn acks_that_cannot_be_end_the_pairing_and_release_nothing() {
    for (received, executed) in [(3, 0), (1, 2), (u64::MAX, 0)] {
        let mut driver = Driver::paired();
        driver.append(Some(net(1)));
        driver.append(Some(net(2)));
        assert_eq!(driver.ack(received, executed), [PrimaryAction::CloseChannel, CLAIM]);
    }
}

#[test]
fn old_acks_change_nothing() {
    let mut driver = Driver::paired();
    (0..3).for_each(|i| drop(driver.append(Some(net(i)))));
    assert_eq!(released(&driver.ack(3, 2)), [1, 2, 3]);
    assert_eq!(driver.ack(1, 1), []);
    assert_eq!((driver.primary.acked(), driver.primary.released()), (Some(3), 3));
}

#[test]
fn a_newer_generation_at_the_disk_halts_unless_it_may_be_our_own_claim() {
    let mut driver = Driver::paired();
    assert_eq!(driver.step(Event::Fenced { generation: 5 }), [], "an old request of ours");
    driver.step(Event::ChannelBroken);
    assert_eq!(driver.step(Event::Fenced { generation: 6 }), [], "perhaps our claim");
    driver.answer(ClaimAnswer::Won { generation: 6 });
    assert_eq!(driver.step(Event::Fenced { generation: 6 }), []);
    let reason = HaltReason::Fenced { generation: 7 };
    assert_eq!(driver.step(Event::Fenced { generation: 7 }), [PrimaryAction::Halt { reason }]);

    let mut driver = Driver::paired();
    let reason = HaltReason::Fenced { generation: 6 };
    let actions = driver.step(Event::Fenced { generation: 6 });
    assert_eq!(actions, [PrimaryAction::CloseChannel, PrimaryAction::Halt { reason }]);
}

#[test]
fn full_buffers_stall_the_guest() {
    let mut driver = Driver::with(|config| config.max_unacked_entries = 3);
    (0..3).for_each(|_| {
        assert!(driver.primary.may_append());
        driver.append(None);
    });
    assert!(!driver.primary.may_append());
    driver.ack(1, 0);
    assert!(driver.primary.may_append());

    let mut driver = Driver::with(|config| config.max_unacked_bytes = 15);
    driver.append(None);
    assert!(driver.primary.may_append());
    driver.append(None);
    assert!(!driver.primary.may_append());

    let mut driver = Driver::with(|config| config.max_gated_bytes = 1);
    driver.append(Some(net(1)));
    assert!(!driver.primary.may_append());
    driver.step(Event::ChannelBroken);
    assert!(!driver.primary.may_append(), "still, while claiming");
    driver.answer(ClaimAnswer::Won { generation: 6 });
    assert!(driver.primary.may_append());

    let mut driver = Driver::with(|config| config.max_unexecuted_entries = 2);
    driver.append(None);
    driver.append(None);
    driver.ack(2, 0);
    assert!(!driver.primary.may_append(), "a backup that executes nothing");
    driver.ack(2, 1);
    assert!(driver.primary.may_append());
}

#[test]
fn a_backup_that_lags_slows_the_guest_and_its_end_lifts_that() {
    let mut driver = Driver::paired();
    let mut pauses = Vec::new();
    for step in 0..40u64 {
        driver.append(None);
        driver.ack(step + 1, 0);
        for action in driver.tick_at(step * 25 * MS) {
            if let PrimaryAction::Throttle { pause_ns } = action {
                pauses.push(pause_ns);
            }
        }
    }
    assert!(pauses.len() > 5 && pauses.is_sorted(), "{pauses:?}");
    assert!(driver.primary.lag().ns > 500 * MS);
    let actions = driver.step(Event::BackupLeft);
    assert_eq!(actions, [PrimaryAction::CloseChannel, CLAIM, PrimaryAction::Throttle { pause_ns: 0 }]);
}

#[test]
fn the_pair_ends_together_once_everything_has_gone() {
    let mut driver = Driver::paired();
    driver.append(Some(net(1)));
    driver.append(None);
    assert_eq!(driver.step(Event::GuestEnded), []);
    assert_eq!(released(&driver.ack(1, 0)), [1]);
    let reason = HaltReason::GuestEnded;
    let end = [PrimaryAction::SendGoodbye { last: 2 }, PrimaryAction::Halt { reason: reason.clone() }];
    assert_eq!(driver.ack(2, 0), end);

    let mut driver = Driver::alone();
    driver.append(Some(net(1)));
    assert_eq!(driver.step(Event::GuestEnded), [PrimaryAction::Halt { reason }]);
}

#[test]
fn an_end_while_claiming_waits_for_the_answer() {
    let mut driver = Driver::paired();
    driver.append(Some(net(1)));
    driver.step(Event::ChannelBroken);
    assert_eq!(driver.step(Event::GuestEnded), []);
    let actions = driver.answer(ClaimAnswer::Won { generation: 6 });
    assert_eq!(released(&actions), [1]);
    let reason = HaltReason::GuestEnded;
    assert_eq!(actions.last(), Some(&PrimaryAction::Halt { reason }));
}

#[test]
fn a_new_backup_may_join_a_primary_that_is_alone() {
    let mut driver = Driver::alone();
    driver.append(Some(net(1)));
    driver.step(Event::BackupJoined { seq: 1 });
    assert_eq!(driver.primary.state(), PrimaryState::Replicating);
    assert_eq!(driver.append(Some(net(2))), []);
    assert_eq!(released(&driver.ack(2, 1)), [2]);
    driver.step(Event::ChannelBroken);
    driver.answer(ClaimAnswer::Won { generation: 6 });
    driver.step(Event::BackupJoined { seq: 2 });
    driver.step(Event::Heartbeat(Heartbeat { generation: 5, number: 9 }));
    assert!(driver.tick_at(251 * MS).contains(&PrimaryAction::Claim { expect: 6, claimant: 77 }));
}

#[test]
fn a_clock_that_goes_back_does_no_harm() {
    let mut driver = Driver::paired();
    driver.tick_at(100 * MS);
    assert_eq!(driver.tick_at(3), []);
    driver.append(None);
    assert!(driver.primary.next_tick_ns() >= 100 * MS);
}
