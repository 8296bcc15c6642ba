//! The switch: learning, flooding, moving.

use std::net::Ipv4Addr;

use proptest::prelude::*;
use smoltcp::wire::TcpControl;

use super::*;
use crate::packet::gratuitous_arp;
use crate::packet::tests::tcp_frame_between;

const INNER: Mac = Mac([2, 0, 0, 0, 0, 1]);
const GUEST: Mac = Mac([2, 0, 0, 0, 0, 2]);
const OTHER: Mac = Mac([2, 0, 0, 0, 0, 3]);
const INSIDE: PortId = PortId(0);
const A: PortId = PortId(1);
const B: PortId = PortId(2);
const SECOND: u64 = 1_000_000_000;

fn switch() -> Switch {
    let mut switch = Switch::new(SwitchLimits::default(), INNER, INSIDE);
    switch.add_port(A);
    switch.add_port(B);
    switch
}

fn frame(destination: Mac, source: Mac) -> Vec<u8> {
    [&destination.0[..], &source.0, &[0x88, 0xb5], &[0; 46]].concat()
}

fn input(switch: &mut Switch, now_ns: u64, from: PortId, frame: &[u8]) -> (Vec<PortId>, Option<Announced>) {
    let mut out = Vec::new();
    let announced = switch.input(now_ns, from, frame, &mut |port, _| out.push(port));
    (out, announced)
}

#[test]
fn unknown_and_group_destinations_are_flooded_and_learned_ones_are_not() {
    let mut switch = switch();
    assert_eq!(input(&mut switch, 0, A, &frame(OTHER, GUEST)).0, [INSIDE, B]);
    assert_eq!(input(&mut switch, 0, B, &frame(GUEST, OTHER)).0, [A]);
    assert_eq!(input(&mut switch, 0, A, &frame(OTHER, GUEST)).0, [B]);
    assert_eq!(input(&mut switch, 0, A, &frame(Mac::BROADCAST, GUEST)).0, [INSIDE, B]);
    assert_eq!(input(&mut switch, 0, A, &frame(GUEST, OTHER)).0, [], "moved, and its own port");
    assert_eq!(input(&mut switch, 0, B, &frame(INNER, GUEST)).0, [INSIDE]);
    assert_eq!(switch.counters().moves, 2);
}

#[test]
fn forged_sources_are_dropped() {
    let mut switch = switch();
    assert_eq!(input(&mut switch, 0, A, &frame(OTHER, INNER)).0, []);
    assert_eq!(input(&mut switch, 0, A, &frame(OTHER, Mac::BROADCAST)).0, []);
    assert_eq!(input(&mut switch, 0, A, &[0; 13]).0, []);
    assert_eq!(switch.counters().filtered, 2);
    assert_eq!(input(&mut switch, 0, B, &frame(INNER, GUEST)).0, [INSIDE]);
}

#[test]
fn silent_stations_are_forgotten() {
    let mut switch = switch();
    input(&mut switch, 0, A, &frame(OTHER, GUEST));
    assert_eq!(input(&mut switch, 300 * SECOND, INSIDE, &frame(GUEST, INNER)).0, [A]);
    assert_eq!(input(&mut switch, 301 * SECOND, INSIDE, &frame(GUEST, INNER)).0, [A, B]);
    let limits = SwitchLimits { stations: 2, ..SwitchLimits::default() };
    let mut switch = Switch::new(limits, INNER, INSIDE);
    switch.add_port(A);
    for i in 0..5 {
        input(&mut switch, i, A, &frame(INNER, Mac([2, 0, 0, 0, 1, i as u8])));
    }
    let known: Vec<Mac> = switch.stations_on(Some(A)).collect();
    assert_eq!(known, [Mac([2, 0, 0, 0, 1, 3]), Mac([2, 0, 0, 0, 1, 4])]);
}

#[test]
fn a_station_that_moves_gets_what_it_missed_when_it_announces_itself() {
    let mut switch = switch();
    let ip = Ipv4Addr::new(10, 77, 0, 2);
    let ends = [(Ipv4Addr::new(10, 77, 0, 1), 50_000), (ip, 6379)];
    let syn = tcp_frame_between([INNER, GUEST], ends, TcpControl::Syn, 1, None, b"");
    let (_, announced) = input(&mut switch, 0, A, &gratuitous_arp(GUEST, ip));
    assert_eq!(announced.map(|a| a.moved), Some(false));
    assert_eq!(input(&mut switch, 0, INSIDE, &frame(GUEST, INNER)).0, [A]);
    assert_eq!(input(&mut switch, 0, INSIDE, &syn).0, [A]);
    switch.remove_port(1, A);
    assert_eq!(input(&mut switch, 2, INSIDE, &frame(GUEST, INNER)).0, [], "held");
    assert_eq!(switch.counters().held, 1);
    assert_eq!(input(&mut switch, 3, B, &frame(INNER, GUEST)).0, [INSIDE], "moves, is not announced yet");
    let (out, announced) = input(&mut switch, 4, B, &gratuitous_arp(GUEST, ip));
    assert_eq!(out, [B, B, B, INSIDE]);
    let announced = announced.unwrap();
    assert!(announced.moved && announced.who.mac == GUEST && announced.who.ip == ip);
    let (out, announced) = input(&mut switch, 5, B, &gratuitous_arp(GUEST, ip));
    assert_eq!((out, announced.map(|a| a.moved)), (vec![INSIDE], Some(false)), "only once");
    assert_eq!(switch.counters().redelivered, 3);
}

#[test]
fn a_primary_that_was_replaced_does_not_take_its_guest_back() {
    let mut switch = switch();
    let ip = Ipv4Addr::new(10, 77, 0, 2);
    input(&mut switch, 0, A, &frame(INNER, GUEST));
    input(&mut switch, 1, B, &gratuitous_arp(GUEST, ip));
    // What it had released before it was paused is forwarded; the guest stays where it is.
    assert_eq!(input(&mut switch, 2, A, &frame(INNER, GUEST)).0, [INSIDE]);
    assert_eq!(input(&mut switch, 3, INSIDE, &frame(GUEST, INNER)).0, [B]);
    assert_eq!((switch.counters().moves, switch.counters().outdated), (1, 1));
    // An announcement, or the end of the newer port, moves it all the same.
    assert!(input(&mut switch, 4, A, &gratuitous_arp(GUEST, ip)).1.unwrap().moved);
    assert_eq!(input(&mut switch, 5, INSIDE, &frame(GUEST, INNER)).0, [A]);
    input(&mut switch, 6, B, &gratuitous_arp(GUEST, ip));
    switch.remove_port(7, B);
    input(&mut switch, 8, A, &frame(INNER, GUEST));
    assert_eq!(switch.stations_on(Some(A)).collect::<Vec<_>>(), [GUEST]);
}

#[test]
fn an_orphan_is_forgotten_after_its_time() {
    let mut switch = switch();
    input(&mut switch, 0, A, &frame(INNER, GUEST));
    switch.remove_port(SECOND, A);
    assert_eq!(switch.stations_on(None).collect::<Vec<_>>(), [GUEST]);
    assert_eq!(input(&mut switch, 121 * SECOND, INSIDE, &frame(GUEST, INNER)).0, []);
    assert_eq!(input(&mut switch, 122 * SECOND, INSIDE, &frame(GUEST, INNER)).0, [B]);
}

proptest! {
    #[test]
    fn frames_never_return_to_their_port_and_reach_every_port_once(
        steps in proptest::collection::vec((0u64..4, 0u8..5, 0u8..5, 0u64..4), 1..200),
    ) {
        let mut switch = Switch::new(SwitchLimits { stations: 3, ..SwitchLimits::default() }, INNER, INSIDE);
        (1..4).for_each(|p| switch.add_port(PortId(p)));
        let mac = |i: u8| if i == 0 { Mac::BROADCAST } else { Mac([2, 0, 0, 0, 0, i]) };
        for (port, destination, source, wait) in steps {
            let frame = frame(mac(destination), mac(source));
            let (out, _) = input(&mut switch, wait * 100 * SECOND, PortId(port), &frame);
            prop_assert!(!out.contains(&PortId(port)));
            prop_assert!(out.windows(2).all(|w| w[0] < w[1]), "{:?}", out);
            prop_assert!(switch.stations.len() <= 3);
        }
    }
}
