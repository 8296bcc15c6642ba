//! Handing over, event by event, on both sides.

use logchannel::Output;

use crate::{
    Backup, BackupAction, BackupEvent, BackupState, ClaimAnswer, Config, HaltReason, Heartbeat, Primary,
    PrimaryAction, PrimaryEvent, PrimaryState, Suspicion,
};

const MS: u64 = 1_000_000;
/// Of `Config::new`.
const DISK_TIMEOUT_NS: u64 = 1_000 * MS;
const SUSPECT_AFTER_NS: u64 = 250 * MS;

fn net(byte: u8) -> Output {
    Output::Net(vec![byte])
}

struct Old {
    primary: Primary<Output>,
    now_ns: u64,
    beats: u64,
}

impl Old {
    fn new() -> Self {
        let mut old = Self { primary: Primary::alone(Config::new(77), 5, 0, 0), now_ns: 0, beats: 0 };
        old.step(PrimaryEvent::BackupJoined { seq: 0 });
        old
    }

    fn step(&mut self, event: PrimaryEvent<Output>) -> Vec<PrimaryAction<Output>> {
        let mut actions = Vec::new();
        self.primary.step(self.now_ns, event, &mut actions);
        let noise = |action: &PrimaryAction<Output>| {
            matches!(action, PrimaryAction::SendHeartbeat(_) | PrimaryAction::Throttle { .. })
        };
        actions.retain(|action| !noise(action));
        actions
    }

    fn append(&mut self, output: Option<Output>) -> Vec<PrimaryAction<Output>> {
        let seq = self.primary.appended() + 1;
        self.step(PrimaryEvent::Appended { seq, output, bytes: 10 })
    }

    /// Time passes, with the backup heard from.
    fn pass(&mut self, ns: u64) -> Vec<PrimaryAction<Output>> {
        let (end_ns, mut actions) = (self.now_ns + ns, Vec::new());
        while self.now_ns < end_ns {
            self.now_ns = end_ns.min(self.now_ns + 20 * MS);
            self.beats += 1;
            let beat = Heartbeat { generation: 5, number: self.beats };
            self.step(PrimaryEvent::Heartbeat(beat));
            actions.extend(self.step(PrimaryEvent::Tick));
        }
        actions
    }

    /// Time passes in silence.
    fn silence(&mut self, ns: u64) -> Vec<PrimaryAction<Output>> {
        self.now_ns += ns;
        self.step(PrimaryEvent::Tick)
    }

    fn hand_over(&mut self) {
        assert_eq!(self.step(PrimaryEvent::HandOver), [PrimaryAction::StopForHandOver]);
        assert!(self.primary.may_append(), "the entry itself is still to come");
        assert!(self.primary.hand_over_requested());
        self.append(None);
        self.step(PrimaryEvent::HandedOver);
        assert_eq!(self.primary.state(), PrimaryState::HandingOver);
        assert!(!self.primary.may_append() && !self.primary.hand_over_requested());
    }
}

#[test]
fn a_disk_server_that_answers_only_the_backup_leads_to_a_hand_over() {
    let mut old = Old::new();
    old.pass(DISK_TIMEOUT_NS / 2);
    let at_ns = old.now_ns;
    assert_eq!(old.step(PrimaryEvent::DiskAnswered { at_ns }), []);
    assert_eq!(old.pass(DISK_TIMEOUT_NS), []);
    assert_eq!(old.pass(20 * MS), [PrimaryAction::AskDisk { number: 1 }]);
    // No, and later no answer: asked again after a while, not at once.
    old.step(PrimaryEvent::DiskReach { number: 1, reaches: false });
    assert_eq!(old.pass(DISK_TIMEOUT_NS), []);
    assert_eq!(old.pass(20 * MS), [PrimaryAction::AskDisk { number: 2 }]);
    // An old answer is none.
    old.step(PrimaryEvent::DiskReach { number: 1, reaches: true });
    assert_eq!(old.pass(DISK_TIMEOUT_NS / 2), []);
    old.step(PrimaryEvent::DiskReach { number: 2, reaches: true });
    assert_eq!(old.pass(SUSPECT_AFTER_NS), []);
    assert_eq!(old.pass(20 * MS), [PrimaryAction::StopForHandOver]);
    assert_eq!(old.pass(DISK_TIMEOUT_NS), [], "once");
}

#[test]
fn a_disk_server_that_comes_back_is_no_reason() {
    let mut old = Old::new();
    assert_eq!(old.pass(DISK_TIMEOUT_NS + 20 * MS), [PrimaryAction::AskDisk { number: 1 }]);
    old.step(PrimaryEvent::DiskReach { number: 1, reaches: true });
    old.pass(SUSPECT_AFTER_NS / 2);
    let at_ns = old.now_ns;
    old.step(PrimaryEvent::DiskAnswered { at_ns });
    assert_eq!(old.pass(SUSPECT_AFTER_NS * 2), []);
    // A time that has not come yet is not believed.
    old.step(PrimaryEvent::DiskAnswered { at_ns: u64::MAX });
    assert_eq!(old.pass(DISK_TIMEOUT_NS + 20 * MS), [PrimaryAction::AskDisk { number: 2 }]);
}

#[test]
fn after_the_last_entry_acks_count_and_nothing_runs() {
    let mut old = Old::new();
    old.append(Some(net(1)));
    old.hand_over();
    assert_eq!(old.step(PrimaryEvent::HandOver), [], "once");
    let released = old.step(PrimaryEvent::Acked { received: 2, executed: 0 });
    assert_eq!(released, [PrimaryAction::Release { seq: 1, output: net(1) }]);
    // It is heard, and gets on.
    for executed in [1, 2] {
        old.pass(1_900 * MS);
        old.step(PrimaryEvent::Acked { received: 2, executed });
        assert_eq!(old.primary.state(), PrimaryState::HandingOver);
    }
    // It closes the channel, and claims: it is left the time of a suspicion.
    assert_eq!(old.step(PrimaryEvent::ChannelBroken), [PrimaryAction::CloseChannel]);
    assert_eq!(old.step(PrimaryEvent::ChannelBroken), []);
    assert_eq!(old.silence(SUSPECT_AFTER_NS), []);
    let claim = PrimaryAction::Claim { expect: 5, claimant: 77 };
    assert_eq!(old.silence(1), [PrimaryAction::CloseChannel, claim]);
    assert!(!old.primary.may_append(), "it claims, and does not run meanwhile");
    let lost = ClaimAnswer::Lost { generation: 6, holder: 88 };
    old.step(PrimaryEvent::ClaimAnswer { expect: 5, answer: lost });
    let reason = HaltReason::Lost { generation: 6, holder: 88 };
    assert_eq!(old.primary.state(), PrimaryState::Halted(reason));
}

#[test]
fn a_backup_that_does_not_go_on_is_no_end() {
    let mut old = Old::new();
    old.hand_over();
    assert_eq!(old.silence(SUSPECT_AFTER_NS + 1).len(), 2);
    assert!(!old.primary.may_append());
    let won = ClaimAnswer::Won { generation: 6 };
    assert_eq!(
        old.step(PrimaryEvent::ClaimAnswer { expect: 5, answer: won }),
        [PrimaryAction::GoLive { generation: 6 }]
    );
    assert!(old.primary.may_append());
    assert_eq!(old.append(Some(net(2))), [PrimaryAction::Release { seq: 2, output: net(2) }]);
}

#[test]
fn a_backup_that_is_heard_and_does_not_get_on_is_given_up() {
    for received in [0, 1] {
        let mut old = Old::new();
        old.hand_over();
        old.step(PrimaryEvent::Acked { received, executed: 0 });
        let actions = old.pass(2_040 * MS);
        assert!(actions.contains(&PrimaryAction::Claim { expect: 5, claimant: 77 }), "{actions:?}");
        assert_eq!(old.primary.state(), PrimaryState::Claiming(Suspicion::AcksStalled));
    }
}

#[test]
fn whoever_is_fenced_while_handing_over_halts() {
    let mut old = Old::new();
    old.hand_over();
    old.step(PrimaryEvent::Fenced { generation: 6 });
    assert_eq!(old.primary.state(), PrimaryState::Halted(HaltReason::Fenced { generation: 6 }));
}

#[test]
#[should_panic(expected = "after the guest was handed over")]
fn nothing_is_appended_after_the_last_entry() {
    let mut old = Old::new();
    old.hand_over();
    old.append(None);
}

#[test]
fn without_a_backup_or_a_guest_nothing_is_handed_over() {
    let mut alone = Old { primary: Primary::alone(Config::new(77), 5, 0, 0), now_ns: 0, beats: 0 };
    assert_eq!(alone.step(PrimaryEvent::HandOver), []);
    assert_eq!(alone.silence(10 * DISK_TIMEOUT_NS), []);
    // The backup is lost between the request and the entry: it is one like any other.
    let mut old = Old::new();
    old.step(PrimaryEvent::HandOver);
    old.step(PrimaryEvent::ChannelBroken);
    assert!(!old.primary.hand_over_requested());
    old.append(None);
    old.step(PrimaryEvent::HandedOver);
    assert!(old.primary.may_append());
}

struct Successor {
    backup: Backup<Output>,
    now_ns: u64,
}

impl Successor {
    fn new() -> Self {
        let mut successor = Self { backup: Backup::new(Config::new(88), 0), now_ns: 0 };
        successor.step(BackupEvent::Joined { generation: 5, seq: 0, outstanding: Vec::new() });
        successor
    }

    fn step(&mut self, event: BackupEvent<Output>) -> Vec<BackupAction<Output>> {
        let mut actions = Vec::new();
        self.backup.step(self.now_ns, event, &mut actions);
        actions.retain(|action| !matches!(action, BackupAction::SendHeartbeat(_)));
        actions
    }

    fn execute(&mut self) -> Vec<BackupAction<Output>> {
        let seq = self.backup.executed() + 1;
        self.step(BackupEvent::Executed { seq, output: None, completed: None })
    }
}

#[test]
fn a_backup_executes_the_rest_and_claims() {
    let mut successor = Successor::new();
    successor.step(BackupEvent::Received { up_to: 2, released: 0, reads: Vec::new() });
    assert_eq!(successor.step(BackupEvent::HandOver { last: 2 }), []);
    assert_eq!(successor.execute(), []);
    let claim = BackupAction::Claim { expect: 5, claimant: 88 };
    assert_eq!(successor.execute(), [BackupAction::CloseChannel, claim]);
    assert_eq!(successor.backup.state(), BackupState::Claiming(Suspicion::HandedOver));
    let won = ClaimAnswer::Won { generation: 6 };
    let live = successor.step(BackupEvent::ClaimAnswer { expect: 5, answer: won });
    assert_eq!(live, [BackupAction::GoLive { generation: 6, resend: Vec::new() }]);
}

#[test]
fn a_backup_says_what_it_found_since_it_was_asked() {
    let mut successor = Successor::new();
    assert_eq!(successor.step(BackupEvent::DiskAnswered), []);
    assert_eq!(successor.step(BackupEvent::AskedForDisk { number: 3 }), [BackupAction::QueryDisk]);
    let yes = BackupAction::SendDiskReach { number: 3, reaches: true };
    assert_eq!(successor.step(BackupEvent::DiskAnswered), [yes]);
    assert_eq!(successor.step(BackupEvent::DiskAnswered), [], "once");
    successor.step(BackupEvent::AskedForDisk { number: 4 });
    successor.now_ns = DISK_TIMEOUT_NS + 1;
    successor.step(BackupEvent::Received { up_to: 0, released: 0, reads: Vec::new() });
    let no = BackupAction::SendDiskReach { number: 4, reaches: false };
    assert_eq!(successor.step(BackupEvent::Tick), [no]);
}
