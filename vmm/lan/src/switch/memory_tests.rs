//! What the switch remembers for a failover.

use smoltcp::wire::TcpControl;

use super::*;
use crate::packet::{Mac, gratuitous_arp};
use crate::packet::{tcp_segment, tests::tcp_frame, tests::tcp_frame_between};
use std::net::Ipv4Addr;

const OLD: PortId = PortId(1);
const NEW: PortId = PortId(2);

fn sent(memory: &mut Memory, frame: &[u8]) -> usize {
    let mut repeated = 0;
    memory.sent(0, Some(OLD), frame, tcp_segment(frame).as_ref(), &mut |_| repeated += 1);
    repeated
}

/// The station's segment on the connection of `tcp_frame`.
fn reply(control: TcpControl, seq: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
    let ends = [(Ipv4Addr::new(10, 77, 0, 2), 6379), (Ipv4Addr::new(10, 77, 0, 1), 4000)];
    tcp_frame_between([Mac([4; 6]), Mac([2; 6])], ends, control, seq, Some(ack), payload)
}

fn received(memory: &mut Memory, frame: &[u8]) {
    memory.received(&tcp_segment(frame).unwrap());
}

fn redelivered(memory: &mut Memory) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let count = memory.redeliver(1000, NEW, &mut |frame| frames.push(frame.to_vec()));
    assert_eq!(count, frames.len() as u64);
    frames
}

#[test]
fn what_is_not_acknowledged_is_delivered_again_with_a_probe_and_four_acks() {
    let mut memory = Memory::new(MemoryLimits::default());
    let segments: Vec<Vec<u8>> =
        (0..3).map(|i| tcp_frame(TcpControl::None, 100 + 10 * i, Some(7), &[i as u8; 10])).collect();
    for segment in &segments {
        assert_eq!(sent(&mut memory, segment), 0);
    }
    received(&mut memory, &reply(TcpControl::None, 7, 110, b""));
    let frames = redelivered(&mut memory);
    assert_eq!(frames[..2], segments[1..]);
    let bare: Vec<_> =
        frames[2..].iter().map(|f| tcp_segment(f).unwrap()).map(|s| (s.seq, s.end, s.ack)).collect();
    assert_eq!(
        bare,
        [
            (129, 129, Some(7)),
            (130, 130, Some(7)),
            (130, 130, Some(7)),
            (130, 130, Some(7)),
            (130, 130, Some(7))
        ]
    );
    let again = redelivered(&mut memory);
    assert_eq!(again.len(), 5, "segments are delivered to a port once");
}

#[test]
fn an_acknowledged_or_closed_or_reset_flow_costs_nothing() {
    let mut memory = Memory::new(MemoryLimits::default());
    sent(&mut memory, &tcp_frame(TcpControl::Syn, 99, None, b""));
    sent(&mut memory, &tcp_frame(TcpControl::Psh, 100, Some(7), b"0123456789"));
    assert!(memory.byte_len() > 0);
    received(&mut memory, &reply(TcpControl::Fin, 7, 110, b""));
    assert_eq!(memory.byte_len(), 0);
    sent(&mut memory, &tcp_frame(TcpControl::Fin, 110, Some(8), b""));
    received(&mut memory, &reply(TcpControl::None, 8, 111, b""));
    assert!(redelivered(&mut memory).is_empty(), "both directions ended");
    sent(&mut memory, &tcp_frame(TcpControl::None, 111, Some(8), b""));
    assert!(redelivered(&mut memory).is_empty(), "a bare ACK makes no flow");

    sent(&mut memory, &tcp_frame(TcpControl::Syn, 99, None, b""));
    received(&mut memory, &reply(TcpControl::Rst, 7, 100, b""));
    assert!(redelivered(&mut memory).is_empty() && memory.byte_len() == 0);
}

#[test]
fn a_lost_syn_is_delivered_again_alone() {
    let mut memory = Memory::new(MemoryLimits::default());
    let syn = tcp_frame(TcpControl::Syn, 99, None, b"");
    sent(&mut memory, &syn);
    assert_eq!(redelivered(&mut memory), [syn]);
}

#[test]
fn lost_segments_of_the_station_are_asked_for_one_by_one() {
    let mut memory = Memory::new(MemoryLimits::default());
    sent(&mut memory, &tcp_frame(TcpControl::Psh, 100, Some(1000), b"request"));
    received(&mut memory, &reply(TcpControl::None, 1000, 107, b""));
    assert_eq!(redelivered(&mut memory).len(), 5);
    for round in 0..5 {
        let start = 1000 + 10 * round;
        received(&mut memory, &reply(TcpControl::None, start, 107, &[0; 10]));
        let ack = tcp_frame(TcpControl::None, 107, Some(start + 10), b"");
        assert_eq!(sent(&mut memory, &ack), 4, "round {round}");
        assert_eq!(sent(&mut memory, &ack), 0, "asked once");
    }
    received(&mut memory, &reply(TcpControl::Psh, 1050, 107, &[0; 10]));
    assert_eq!(sent(&mut memory, &tcp_frame(TcpControl::None, 107, Some(1060), b"")), 0, "that was the last");
}

#[test]
fn a_station_that_streams_again_is_left_alone() {
    let mut memory = Memory::new(MemoryLimits::default());
    sent(&mut memory, &tcp_frame(TcpControl::Psh, 100, Some(1000), b"request"));
    redelivered(&mut memory);
    received(&mut memory, &reply(TcpControl::None, 1000, 107, &[0; 10]));
    received(&mut memory, &reply(TcpControl::None, 1010, 107, &[0; 10]));
    assert_eq!(sent(&mut memory, &tcp_frame(TcpControl::None, 107, Some(1020), b"")), 0);
}

#[test]
fn other_frames_are_kept_a_short_time_and_few() {
    let limits = MemoryLimits { others: 3, other_age_ns: 100, ..MemoryLimits::default() };
    let mut memory = Memory::new(limits);
    let frame = |i: u8| gratuitous_arp(Mac([2, 0, 0, 0, 0, i]), Ipv4Addr::new(10, 77, 0, i));
    for i in 0..5 {
        memory.sent(u64::from(i) * 10, Some(OLD), &frame(i), None, &mut |_| ());
    }
    let mut seen = Vec::new();
    memory.redeliver(135, NEW, &mut |f| seen.push(f.to_vec()));
    assert_eq!(seen, [frame(4).to_vec()], "the others are too old");
    assert_eq!(memory.byte_len(), 3 * 42);
}

#[test]
fn limits_hold_and_the_least_used_flow_goes_first() {
    let limits = MemoryLimits { flows: 2, bytes: 3000, ..MemoryLimits::default() };
    let mut memory = Memory::new(limits);
    let frame = |port: u16, seq: u32| {
        let ends = [(Ipv4Addr::new(10, 77, 0, 1), port), (Ipv4Addr::new(10, 77, 0, 2), 6379)];
        tcp_frame_between([Mac([2; 6]), Mac([4; 6])], ends, TcpControl::None, seq, Some(1), &[0; 900])
    };
    sent(&mut memory, &frame(1, 0));
    sent(&mut memory, &frame(2, 0));
    sent(&mut memory, &frame(1, 900));
    sent(&mut memory, &frame(3, 0));
    assert_eq!(memory.forgotten(), 1, "flow 2");
    sent(&mut memory, &frame(1, 1800));
    assert_eq!(memory.forgotten(), 2, "flow 3");
    assert!(memory.byte_len() <= 3000);
    let ports: Vec<u16> =
        redelivered(&mut memory).iter().map(|f| tcp_segment(f).unwrap().flow.source.1).collect();
    assert_eq!(ports, [1; 8]);
}
