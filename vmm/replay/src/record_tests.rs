//! The recorder, on a small deterministic machine.

use logchannel::Event;

use super::*;
use crate::small_machine::{Op, Reply, Request, SmallMachine};
use crate::test_driver::{Host, entries, record};

fn idle(policy: ClockPolicy) -> (Recorder<SmallMachine>, Vec<Recorded>) {
    let mut recorder = Recorder::new(SmallMachine::new(), policy, 1_000);
    let mut log = Vec::new();
    while recorder.advance(&mut log).unwrap() == Stop::Ready {}
    (recorder, log)
}

fn request(op: Op) -> Event {
    Event::NetRx(Request { client: 1, number: 1, key: 0, op }.encode())
}

#[test]
fn sequence_and_positions_go_up_and_outputs_carry_their_content() {
    let log = record(7, 3_000);
    assert!(log.len() > 1_000, "{} entries", log.len());
    for (i, recorded) in log.iter().enumerate() {
        assert_eq!(recorded.entry.seq, i as u64 + 1);
        if let Event::Output { kind, digest } = recorded.entry.event {
            let output = recorded.output.as_ref().expect("the content");
            assert_eq!((output.kind(), output.digest()), (kind, digest));
        } else {
            assert_eq!(recorded.output, None);
        }
    }
    assert!(log.windows(2).all(|w| w[0].entry.at.count <= w[1].entry.at.count));
}

#[test]
fn the_same_host_makes_the_same_log() {
    assert_eq!(entries(&record(3, 500)), entries(&record(3, 500)));
    assert_ne!(entries(&record(3, 500)), entries(&record(4, 500)));
}

#[test]
fn an_idle_guest_logs_only_its_deadlines() {
    let (mut recorder, mut log) = idle(ClockPolicy::default());
    assert!(log.is_empty());
    let deadline = recorder.host_deadline_ns().expect("waits for its tick");
    assert!(!recorder.clock(deadline - 1, &mut log).unwrap());
    assert!(log.is_empty(), "19 ms without an entry");
    assert!(recorder.clock(deadline, &mut log).unwrap());
    assert_eq!(log.len(), 1);
    assert_eq!(log[0].entry.event, Event::Clock { now_ns: deadline - 1_000 });
    recorder.advance(&mut log).unwrap();
    assert_eq!(recorder.host_deadline_ns(), Some(deadline + 20_000_000), "its next tick");
    assert_eq!(log.len(), 1);
}

#[test]
fn a_running_guest_gets_the_time_when_it_is_behind_by_more_than_the_bound() {
    let mut recorder = Recorder::new(SmallMachine::new(), ClockPolicy::Host { bound_ns: 100 }, 1_000);
    let mut log = Vec::new();
    assert!(!recorder.clock(1_100, &mut log).unwrap());
    assert!(recorder.clock(1_101, &mut log).unwrap());
    assert_eq!(log[0].entry.event, Event::Clock { now_ns: 101 });
    assert!(!recorder.clock(500, &mut log).unwrap(), "never backwards");
    assert_eq!(recorder.machine().now_ns(), 101);
}

/// A guest that runs, half a millisecond before its timer is due.
fn shortly_before_its_timer() -> (Recorder<SmallMachine>, Vec<Recorded>) {
    let mut recorder = Recorder::new(SmallMachine::new(), ClockPolicy::default(), 0);
    let mut log = Vec::new();
    assert!(recorder.clock(19_500_000, &mut log).unwrap());
    log.clear();
    (recorder, log)
}

#[test]
fn a_running_guest_gets_the_time_when_a_timer_is_due() {
    let (mut recorder, mut log) = shortly_before_its_timer();
    assert!(!recorder.clock(19_999_999, &mut log).unwrap(), "behind by less than the bound");
    assert!(recorder.clock(20_000_500, &mut log).unwrap());
    assert_eq!(log[0].entry.event, Event::Clock { now_ns: 20_000_500 });
    assert!(!recorder.clock(20_900_000, &mut log).unwrap(), "one entry for one timer");
    recorder.advance(&mut log).unwrap();
    assert_eq!(names(&log), ["Clock"]);
}

#[test]
fn timers_that_are_due_all_the_time_make_few_entries() {
    let (mut recorder, mut log) = shortly_before_its_timer();
    // Due at once after an entry: the guest's own execution gets there soon.
    recorder.anchor_virtual_ns += 490_000;
    recorder.machine.apply(&Event::Clock { now_ns: 19_990_000 }).unwrap();
    assert!(!recorder.clock(19_519_999, &mut log).unwrap());
    assert!(recorder.clock(19_520_000, &mut log).unwrap());
}

#[test]
fn a_slice_ends_about_where_a_timer_is_due() {
    let (mut recorder, mut log) = shortly_before_its_timer();
    // 10 counts a nanosecond, told in many looks.
    for look in 1..100 {
        recorder.pace.look(19_500_000 + look * 1_000, look * 10_000, true);
    }
    let slice = |recorder: &mut Recorder<SmallMachine>, log: &mut Vec<Recorded>| {
        recorder.advance(log).unwrap();
        recorder.machine.last_slice
    };
    let far = slice(&mut recorder, &mut log);
    assert!((3_500_000..6_000_000).contains(&far), "{far} counts for half a millisecond");
    recorder.guest = Guest::Runs;
    recorder.target_ns = 19_990_000;
    let near = slice(&mut recorder, &mut log);
    assert!((70_000..120_000).contains(&near), "{near} counts for 10 us");
    let mut skipping = Recorder::new(SmallMachine::new(), ClockPolicy::Virtual, 0);
    assert_eq!(slice(&mut skipping, &mut log), u64::MAX, "nothing of the host");
}

#[test]
fn an_input_to_a_waiting_guest_brings_the_time() {
    let (mut recorder, mut log) = idle(ClockPolicy::default());
    recorder.clock(6_001_000, &mut log).unwrap();
    assert!(log.is_empty());
    assert_eq!(recorder.offer(request(Op::Get), &mut log).unwrap(), Offer::Applied);
    let names: Vec<_> = log.iter().map(|r| r.entry.event.name()).collect();
    assert_eq!(names, ["Clock", "NetRx"]);
    assert_eq!(recorder.machine().now_ns(), 6_000_000);
}

#[test]
fn a_virtual_clock_skips_idle_time_and_ignores_the_host() {
    let (mut recorder, mut log) = idle(ClockPolicy::Virtual);
    assert_eq!(recorder.host_deadline_ns(), Some(0));
    assert!(recorder.clock(1, &mut log).unwrap());
    assert_eq!(log[0].entry.event, Event::Clock { now_ns: 20_000_000 });
    assert!(!recorder.clock(u64::MAX, &mut log).unwrap(), "a running guest sees no host time");
}

#[test]
fn a_refused_input_comes_back_and_is_not_logged() {
    let (mut recorder, mut log) = idle(ClockPolicy::default());
    let done = Event::DiskDone { request: 99, status: logchannel::DiskStatus::Ok, data: Vec::new() };
    assert_eq!(recorder.offer(done.clone(), &mut log).unwrap(), Offer::Refused(done));
    assert!(log.is_empty());
}

#[test]
fn the_end_of_a_guest_closes_the_log_with_a_digest() {
    let (mut recorder, mut log) = idle(ClockPolicy::default());
    assert_eq!(recorder.offer(request(Op::PowerOff), &mut log).unwrap(), Offer::Applied);
    while recorder.advance(&mut log).unwrap() == Stop::Ready {}
    assert_eq!(recorder.ending(), Some(&Ending::PowerOff(0)));
    assert!(matches!(log.last().unwrap().entry.event, Event::Digest(_)));
    let length = log.len();
    assert_eq!(recorder.advance(&mut log).unwrap(), Stop::Ended(Ending::PowerOff(0)));
    assert!(matches!(recorder.offer(request(Op::Get), &mut log).unwrap(), Offer::Refused(_)));
    assert!(!recorder.clock(u64::MAX, &mut log).unwrap());
    recorder.shutdown(&mut log).unwrap();
    assert_eq!(log.len(), length);
    recorder.go_live(3, &mut log);
    assert_eq!(log.len(), length + 1);
}

#[test]
fn a_shutdown_from_outside_ends_the_log() {
    let (mut recorder, mut log) = idle(ClockPolicy::default());
    recorder.shutdown(&mut log).unwrap();
    let names: Vec<_> = log.iter().map(|r| r.entry.event.name()).collect();
    assert_eq!(names, ["Digest", "Shutdown"]);
    assert_eq!(recorder.advance(&mut log).unwrap(), Stop::Ended(Ending::Shutdown));
}

#[test]
#[should_panic(expected = "Digest is no input")]
fn only_inputs_are_offered() {
    let (mut recorder, mut log) = idle(ClockPolicy::default());
    let _ = recorder.offer(Event::Digest(Default::default()), &mut log);
}

#[test]
fn a_repeated_request_gets_the_same_reply_and_changes_nothing() {
    let mut host = Host::new(1, ClockPolicy::default());
    let ask = request(Op::Get);
    for _ in 0..2 {
        while matches!(host.recorder.offer(ask.clone(), &mut host.log).unwrap(), Offer::Refused(_)) {}
        while host.recorder.advance(&mut host.log).unwrap() == Stop::Ready {}
    }
    let replies: Vec<_> = host
        .log
        .iter()
        .filter_map(|recorded| match &recorded.output {
            Some(Output::Net(frame)) => Reply::decode(frame),
            _ => None,
        })
        .collect();
    assert_eq!(replies.len(), 2);
    assert_eq!(replies[0], replies[1]);
}

fn names(log: &[Recorded]) -> Vec<&'static str> {
    log.iter().map(|recorded| recorded.entry.event.name()).collect()
}

#[test]
fn a_reset_is_logged_with_the_state_that_the_guest_starts_again_in() {
    let (mut recorder, mut log) = idle(ClockPolicy::default());
    assert_eq!(recorder.offer(request(Op::Reset), &mut log).unwrap(), Offer::Applied);
    while !log.iter().any(|recorded| recorded.entry.event == Event::Reset) {
        assert_eq!(recorder.advance(&mut log).unwrap(), Stop::Ready);
    }
    assert_eq!(names(&log), ["NetRx", "Reset", "Digest"]);
    assert_eq!(log[1].entry.at, recorder.machine().position());
    assert_eq!(log[2].entry.at, log[1].entry.at);
    assert_eq!(recorder.ending(), None);
    while recorder.advance(&mut log).unwrap() == Stop::Ready {}
    assert_eq!(log.len(), 3, "said once");
}

#[test]
fn a_guest_is_held_in_reset_until_its_disk_is_idle() {
    let (mut recorder, mut log) = idle(ClockPolicy::default());
    assert_eq!(recorder.offer(request(Op::Set(7)), &mut log).unwrap(), Offer::Applied);
    while recorder.advance(&mut log).unwrap() == Stop::Ready {}
    let reset = Event::NetRx(Request { client: 2, number: 1, key: 1, op: Op::Reset }.encode());
    assert_eq!(recorder.offer(reset, &mut log).unwrap(), Offer::Applied);
    while recorder.advance(&mut log).unwrap() == Stop::Ready {}
    assert_eq!(names(&log)[names(&log).len() - 2..], ["Reset", "Digest"]);
    assert_eq!(recorder.stop(), Stop::Waiting { deadline_ns: None });
    assert!(!recorder.clock(9_000_000_000, &mut log).unwrap(), "no time wakes it");
    let done = Event::DiskDone { request: 1, status: logchannel::DiskStatus::Ok, data: Vec::new() };
    assert_eq!(recorder.offer(done, &mut log).unwrap(), Offer::Applied);
    let before = recorder.machine().position();
    recorder.advance(&mut log).unwrap();
    assert!(recorder.machine().position().count > before.count, "it runs again");
    assert!(!names(&log)[names(&log).len() - 2..].contains(&"Output"), "nobody waits for that write");
}
