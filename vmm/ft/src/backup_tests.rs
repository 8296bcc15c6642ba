//! The backup's side of the protocol, event by event.

use logchannel::{DiskOp, DiskRequest, Output};

use super::*;
use crate::PrimaryState;

const MS: u64 = 1_000_000;

type Action = BackupAction<Output>;
type Event = BackupEvent<Output>;

fn net(byte: u8) -> Output {
    Output::Net(vec![byte])
}

fn disk(id: u64) -> Output {
    Output::Disk(DiskRequest { id, op: DiskOp::Flush })
}

struct Driver {
    backup: Backup<Output>,
    now_ns: u64,
}

impl Driver {
    fn new() -> Self {
        Self { backup: Backup::new(Config::new(88), 0), now_ns: 0 }
    }

    fn following() -> Self {
        let mut driver = Self::new();
        driver.step(Event::Joined { generation: 5, seq: 0, outstanding: Vec::new() });
        driver
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        self.backup.step(self.now_ns, event, &mut actions);
        actions
    }

    fn receive(&mut self, up_to: Seq, released: Seq) -> Vec<Action> {
        self.step(Event::Received { up_to, released, reads: Vec::new() })
    }

    fn receive_reads(&mut self, up_to: Seq, reads: &[Seq]) -> Vec<Action> {
        self.step(Event::Received { up_to, released: 0, reads: reads.to_vec() })
    }

    fn fetch(&mut self, seq: Seq) -> Vec<Action> {
        self.step(Event::Fetched { seq })
    }

    fn execute(&mut self, output: Option<Output>) -> Vec<Action> {
        let seq = self.backup.executed() + 1;
        self.step(Event::Executed { seq, output, completed: None })
    }

    fn complete(&mut self, id: u64) -> Vec<Action> {
        let seq = self.backup.executed() + 1;
        self.step(Event::Executed { seq, output: None, completed: Some(id) })
    }

    fn tick_at(&mut self, now_ns: u64) -> Vec<Action> {
        self.now_ns = now_ns;
        self.step(Event::Tick)
    }

    fn answer(&mut self, answer: ClaimAnswer) -> Vec<Action> {
        self.step(Event::ClaimAnswer { expect: 5, answer })
    }

    fn win(&mut self) -> Vec<Action> {
        self.step(Event::ChannelBroken);
        self.answer(ClaimAnswer::Won { generation: 6 })
    }
}

const CLAIM: Action = BackupAction::Claim { expect: 5, claimant: 88 };

#[test]
fn entries_are_acked_on_receipt_not_on_execution() {
    let mut driver = Driver::following();
    assert_eq!(driver.receive(3, 0), [BackupAction::SendAck { received: 3, executed: 0 }]);
    assert_eq!(driver.execute(None), []);
    let tick = driver.tick_at(0);
    assert!(tick.contains(&BackupAction::SendAck { received: 3, executed: 1 }), "{tick:?}");
    assert_eq!(driver.tick_at(1), [], "nothing new");
}

#[test]
fn it_goes_live_only_with_the_claim_won_and_everything_executed() {
    let mut driver = Driver::following();
    driver.receive(3, 0);
    driver.execute(Some(net(1)));
    assert_eq!(driver.step(Event::ChannelBroken), [BackupAction::CloseChannel, CLAIM]);
    assert_eq!(driver.execute(Some(net(2))), []);
    assert_eq!(driver.answer(ClaimAnswer::Won { generation: 6 }), []);
    assert_eq!(driver.backup.state(), BackupState::Draining);
    let resend = vec![(1, net(1)), (2, net(2)), (3, net(3))];
    assert_eq!(driver.execute(Some(net(3))), [BackupAction::GoLive { generation: 6, resend }]);
    let primary = driver.backup.into_primary();
    assert_eq!((primary.state(), primary.generation(), primary.appended()), (PrimaryState::Alone, 6, 3));
}

#[test]
fn with_everything_executed_it_goes_live_at_once() {
    let mut driver = Driver::following();
    driver.receive(1, 0);
    driver.execute(Some(net(1)));
    let resend = vec![(1, net(1))];
    assert_eq!(driver.win(), [BackupAction::GoLive { generation: 6, resend }]);
}

#[test]
fn outputs_reported_as_gone_are_not_sent_again() {
    let mut driver = Driver::following();
    driver.receive(4, 0);
    (1..=3).for_each(|i| drop(driver.execute(Some(net(i)))));
    driver.receive(4, 2);
    assert_eq!(driver.backup.kept(), 1);
    driver.receive(4, 4);
    assert_eq!(driver.execute(Some(net(4))), [], "gone before it was executed here");
    assert_eq!(driver.win(), [BackupAction::GoLive { generation: 6, resend: Vec::new() }]);
}

#[test]
fn requests_are_kept_until_they_are_completed() {
    let mut driver = Driver::following();
    driver.receive(3, 0);
    driver.execute(Some(disk(11)));
    driver.execute(Some(net(2)));
    driver.execute(Some(disk(12)));
    driver.receive(4, 3);
    assert_eq!(driver.backup.kept(), 2);
    driver.complete(11);
    assert_eq!(driver.win(), [BackupAction::GoLive { generation: 6, resend: vec![(3, disk(12))] }]);
}

#[test]
fn requests_in_flight_when_it_joined_are_repeated_too() {
    let mut driver = Driver::new();
    let outstanding = vec![(7, disk(1)), (9, disk(2))];
    assert_eq!(driver.step(Event::Joined { generation: 5, seq: 10, outstanding }), []);
    assert_eq!((driver.backup.received(), driver.backup.executed()), (10, 10));
    driver.receive(11, 10);
    driver.complete(1);
    assert_eq!(driver.win(), [BackupAction::GoLive { generation: 6, resend: vec![(9, disk(2))] }]);
}

#[test]
fn whoever_never_joined_does_not_go_live() {
    let mut driver = Driver::new();
    assert_eq!(driver.receive(5, 0), []);
    assert_eq!(driver.tick_at(1 << 40), []);
    let reason = HaltReason::NeverJoined;
    assert_eq!(driver.step(Event::ChannelBroken), [BackupAction::Halt { reason }]);
    assert_eq!(driver.answer(ClaimAnswer::Won { generation: 6 }), []);
}

#[test]
fn a_description_of_the_machine_that_cannot_be_is_refused() {
    for (generation, outstanding) in [
        (0, Vec::new()),
        (5, vec![(11, disk(1))]),
        (5, vec![(3, net(1))]),
        (5, vec![(4, disk(1)), (4, disk(2))]),
    ] {
        let mut driver = Driver::new();
        let actions = driver.step(Event::Joined { generation, seq: 10, outstanding });
        assert_eq!(actions, [BackupAction::Halt { reason: HaltReason::NeverJoined }]);
    }
}

#[test]
fn once_the_primary_is_given_up_nothing_is_acked() {
    let mut driver = Driver::following();
    driver.receive(1, 0);
    driver.execute(None);
    driver.step(Event::ChannelBroken);
    assert_eq!(driver.receive(9, 0), []);
    assert_eq!(driver.backup.received(), 1);
    let won = driver.answer(ClaimAnswer::Won { generation: 6 });
    assert_eq!(won, [BackupAction::GoLive { generation: 6, resend: Vec::new() }]);
}

#[test]
fn it_asks_again_until_there_is_an_answer_and_halts_when_it_lost() {
    let mut driver = Driver::following();
    driver.step(Event::ChannelBroken);
    assert_eq!(driver.answer(ClaimAnswer::Unreachable), []);
    assert_eq!(driver.tick_at(99 * MS), []);
    assert_eq!(driver.tick_at(100 * MS), [CLAIM]);
    let reason = HaltReason::Lost { generation: 6, holder: 77 };
    let lost = ClaimAnswer::Lost { generation: 6, holder: 77 };
    assert_eq!(driver.answer(lost), [BackupAction::Halt { reason }]);
    assert_eq!(driver.answer(ClaimAnswer::Won { generation: 6 }), []);
}

#[test]
fn a_backup_that_diverged_says_so_and_never_claims() {
    let mut driver = Driver::following();
    driver.receive(2, 0);
    let reason = HaltReason::Diverged;
    let actions = driver.step(Event::Diverged);
    let left = BackupAction::SendLeft { reason: reason.clone() };
    let halt = BackupAction::Halt { reason: reason.clone() };
    assert_eq!(actions, [left, BackupAction::CloseChannel, halt]);
    assert_eq!(driver.step(Event::ChannelBroken), []);
    assert_eq!(driver.tick_at(1 << 40), []);

    let mut driver = Driver::following();
    driver.receive(2, 0);
    driver.win();
    assert_eq!(driver.step(Event::Diverged), [BackupAction::Halt { reason }], "also with the claim won");
}

#[test]
fn goodbye_ends_the_backup_after_the_last_entry() {
    let mut driver = Driver::following();
    driver.receive(2, 0);
    driver.execute(None);
    assert_eq!(driver.step(Event::Goodbye { last: 2 }), []);
    assert_eq!(driver.step(Event::ChannelBroken), [], "no claim");
    assert_eq!(driver.tick_at(1 << 40), [], "no claim either");
    assert_eq!(driver.execute(None), [BackupAction::Halt { reason: HaltReason::GuestEnded }]);
}

#[test]
fn goodbye_at_another_entry_is_ignored() {
    let mut driver = Driver::following();
    driver.receive(2, 0);
    driver.step(Event::Goodbye { last: 3 });
    assert_eq!(driver.step(Event::ChannelBroken), [BackupAction::CloseChannel, CLAIM]);
}

#[test]
fn a_silent_primary_is_given_up_and_entries_and_heartbeats_prevent_it() {
    let mut driver = Driver::following();
    assert!(!driver.tick_at(250 * MS).contains(&CLAIM));
    driver.step(Event::Heartbeat(Heartbeat { generation: 5, number: 3 }));
    assert!(!driver.tick_at(500 * MS).contains(&CLAIM));
    driver.receive(0, 0);
    assert!(!driver.tick_at(750 * MS).contains(&CLAIM));
    driver.step(Event::Heartbeat(Heartbeat { generation: 4, number: 4 }));
    assert!(driver.tick_at(751 * MS).contains(&CLAIM));
}

#[test]
fn a_primary_that_broke_the_output_rule_is_given_up() {
    let mut driver = Driver::following();
    driver.receive(2, 0);
    let actions = driver.receive(5, 4);
    assert_eq!(actions, [BackupAction::CloseChannel, CLAIM], "entry 4 was not acked");
    assert_eq!(driver.backup.state(), BackupState::Claiming(Suspicion::Misbehaves));
}

#[test]
fn a_primary_that_never_reports_releases_is_given_up() {
    let mut config = Config::new(88);
    config.max_kept_bytes = 3 * net(0).bytes();
    let mut driver = Driver { backup: Backup::new(config, 0), now_ns: 0 };
    driver.step(Event::Joined { generation: 5, seq: 0, outstanding: Vec::new() });
    driver.receive(4, 0);
    (0..3).for_each(|i| assert_eq!(driver.execute(Some(net(i))), []));
    assert_eq!(driver.execute(Some(net(3))), [BackupAction::CloseChannel, CLAIM]);
}

#[test]
#[should_panic(expected = "3 executed, 2 received")]
fn nothing_is_executed_that_was_not_received() {
    let mut driver = Driver::following();
    driver.receive(2, 0);
    (0..3).for_each(|_| drop(driver.execute(None)));
}

#[test]
fn lag_is_measured() {
    let mut driver = Driver::following();
    driver.receive(4, 0);
    driver.now_ns = 30 * MS;
    driver.execute(None);
    assert_eq!(driver.backup.lag(), ExecutionLag { entries: 3, ns: 30 * MS });
}

const fn acked(received: Seq) -> Action {
    BackupAction::SendAck { received, executed: 0 }
}

#[test]
fn an_entry_is_acked_only_with_its_data_and_that_of_all_before_it() {
    let mut driver = Driver::following();
    assert_eq!(driver.receive_reads(5, &[3, 5]), [acked(2)]);
    assert_eq!(driver.receive_reads(7, &[]), [], "nothing new is whole");
    assert_eq!(driver.fetch(5), []);
    assert_eq!(driver.backup.received(), 2);
    assert_eq!(driver.fetch(3), [acked(7)]);
    assert_eq!(driver.fetch(3), [], "told twice");
    assert_eq!(driver.receive_reads(8, &[8]), []);
    assert_eq!(driver.fetch(8), [acked(8)]);
}

#[test]
fn what_is_not_whole_when_the_primary_is_lost_is_lost_with_it() {
    let mut driver = Driver::following();
    driver.receive_reads(6, &[4]);
    (1..=3).for_each(|_| drop(driver.execute(None)));
    assert_eq!(driver.step(Event::ChannelBroken), [BackupAction::CloseChannel, CLAIM]);
    assert_eq!(driver.fetch(4), [], "too late: nothing is acked any more");
    assert_eq!(driver.backup.received(), 3);
    let live = BackupAction::GoLive { generation: 6, resend: Vec::new() };
    assert_eq!(driver.answer(ClaimAnswer::Won { generation: 6 }), [live]);
    assert_eq!(driver.backup.into_primary().appended(), 3, "the log goes on after what was acked");
}

#[test]
fn a_backup_that_cannot_read_the_disk_leaves_before_it_is_given_up() {
    let config = Config::new(88);
    assert!(config.read_timeout_ns < config.ack_timeout_ns);
    let mut driver = Driver::following();
    driver.now_ns = 10 * MS;
    driver.receive_reads(2, &[1, 2]);
    driver.now_ns = 20 * MS;
    driver.fetch(1);
    let leave_at_ns = 10 * MS + config.read_timeout_ns;
    let beats = |now_ns| Heartbeat { generation: 5, number: now_ns };
    for now_ns in (20 * MS..leave_at_ns).step_by(MS as usize) {
        driver.now_ns = now_ns;
        driver.step(Event::Heartbeat(beats(now_ns)));
        assert!(driver.backup.next_tick_ns() <= leave_at_ns);
        let actions = driver.step(Event::Tick);
        assert!(!actions.iter().any(|action| matches!(action, BackupAction::Halt { .. })), "{actions:?}");
    }
    let reason = HaltReason::CannotRead;
    let left = BackupAction::SendLeft { reason: reason.clone() };
    let halt = BackupAction::Halt { reason: reason.clone() };
    assert_eq!(driver.tick_at(leave_at_ns), [left, BackupAction::CloseChannel, halt]);
    assert_eq!(driver.backup.state(), BackupState::Halted(reason));
    assert_eq!(driver.step(Event::ChannelBroken), [], "it never claims");
}

#[test]
#[should_panic(expected = "reads [2] of entries 3..=4")]
fn an_entry_waits_for_its_data_from_its_arrival_on() {
    let mut driver = Driver::following();
    driver.receive(2, 0);
    driver.receive_reads(4, &[2]);
}

#[test]
#[should_panic(expected = "entry 3 executed, 2 received")]
fn nothing_is_executed_without_its_data() {
    let mut driver = Driver::following();
    driver.receive_reads(3, &[3]);
    (1..=3).for_each(|_| drop(driver.execute(None)));
}
