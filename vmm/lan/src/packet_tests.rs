//! Packets: what is built, and what is read out of them.

use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpRepr, Ipv4Repr, TcpControl, TcpRepr};

use super::*;

const GUEST: Mac = Mac([0x52, 0x4c, 0x4b, 0, 0, 2]);
const IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// A frame with the TCP segment of this shape, from 10.77.0.1:4000 to 10.77.0.2:6379.
pub(crate) fn tcp_frame(control: TcpControl, seq: u32, ack: Option<u32>, payload: &[u8]) -> Vec<u8> {
    tcp_frame_between(
        [Mac([2; 6]), GUEST],
        [(Ipv4Addr::new(10, 77, 0, 1), 4000), (IP, 6379)],
        control,
        seq,
        ack,
        payload,
    )
}

/// A frame with the TCP segment of this shape; addresses are source, then destination.
pub(crate) fn tcp_frame_between(
    macs: [Mac; 2],
    ends: [(Ipv4Addr, u16); 2],
    control: TcpControl,
    seq: u32,
    ack: Option<u32>,
    payload: &[u8],
) -> Vec<u8> {
    let [(source, src_port), (destination, dst_port)] = ends;
    let tcp = TcpRepr {
        src_port,
        dst_port,
        control,
        seq_number: TcpSeqNumber(seq as i32),
        ack_number: ack.map(|a| TcpSeqNumber(a as i32)),
        window_len: 5000,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let ip = Ipv4Repr {
        src_addr: source,
        dst_addr: destination,
        next_header: IpProtocol::Tcp,
        payload_len: tcp.buffer_len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; ETHERNET_LEN + ip.buffer_len() + tcp.buffer_len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    frame.set_src_addr(EthernetAddress(macs[0].0));
    frame.set_dst_addr(EthernetAddress(macs[1].0));
    frame.set_ethertype(EthernetProtocol::Ipv4);
    let caps = ChecksumCapabilities::default();
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet, &caps);
    let addresses = IpRepr::Ipv4(ip);
    let mut segment = TcpPacket::new_unchecked(packet.payload_mut());
    tcp.emit(&mut segment, &addresses.src_addr(), &addresses.dst_addr(), &caps);
    bytes
}

#[test]
fn macs_print_as_they_parse() {
    assert_eq!("52:4c:4b:00:00:02".parse::<Mac>().unwrap(), GUEST);
    assert_eq!(GUEST.to_string(), "52:4c:4b:00:00:02");
    for text in ["", "52:4c:4b:00:00", "52:4c:4b:00:00:02:03", "52:4c:4b:00:00:g2", "+2:4c:4b:00:00:2"] {
        assert!(text.parse::<Mac>().is_err(), "{text:?}");
    }
    assert!(Mac::BROADCAST.is_multicast() && !GUEST.is_multicast());
}

#[test]
fn a_gratuitous_arp_is_an_announcement_and_other_arp_is_not() {
    let frame = gratuitous_arp(GUEST, IP);
    assert_eq!(announcement(&frame), Some(Announcement { mac: GUEST, ip: IP }));
    assert_eq!(addresses(&frame), Some((Mac::BROADCAST, GUEST)));
    let other = Announcement { mac: Mac([2; 6]), ip: Ipv4Addr::new(10, 77, 0, 1) };
    assert_eq!(announcement(&arp_request(other, IP)), None);
    assert_eq!(announcement(&arp_reply(other, Announcement { mac: GUEST, ip: IP })), None);
    let mut forged = frame;
    forged[6] ^= 4;
    assert_eq!(announcement(&forged), None, "somebody else's announcement");
    assert_eq!(announcement(&frame[..41]), None);
}

#[test]
fn segments_are_read() {
    let frame = tcp_frame(TcpControl::Fin, u32::MAX - 1, Some(7), b"abc");
    let segment = tcp_segment(&frame).unwrap();
    assert_eq!((segment.seq, segment.end, segment.ack), (u32::MAX - 1, 2, Some(7)));
    assert!(segment.fin && !segment.syn && !segment.rst);
    assert_eq!(segment.headers.len(), frame.len() - 3);
    assert!(seq_at_or_after(segment.end, segment.seq) && !seq_at_or_after(segment.seq, segment.end));
    assert_eq!(segment.flow.reversed().reversed(), segment.flow);
}

#[test]
fn a_bare_ack_repeats_acknowledgement_and_window() {
    let frame = tcp_frame(TcpControl::Psh, 100, Some(7), b"abcd");
    let ack = bare_ack(tcp_segment(&frame).unwrap().headers, 104).unwrap();
    let segment = tcp_segment(&ack).unwrap();
    assert_eq!((segment.seq, segment.end, segment.ack, segment.psh), (104, 104, Some(7), false));
    let eth = EthernetFrame::new_checked(&ack[..]).unwrap();
    let ip = Ipv4Packet::new_checked(eth.payload()).unwrap();
    assert!(ip.verify_checksum());
    let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
    assert!(tcp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
    assert_eq!(tcp.window_len(), 5000);
}

proptest! {
    #[test]
    fn damaged_frames_are_read_without_panic(
        at in 0usize..60, value: u8, cut in 0usize..60, syn: bool,
    ) {
        let control = if syn { TcpControl::Syn } else { TcpControl::None };
        let mut frame = tcp_frame(control, 1, Some(2), b"payload");
        frame[at] = value;
        for bytes in [&frame[..], &frame[..cut]] {
            let _ = announcement(bytes);
            if let Some(segment) = tcp_segment(bytes) {
                let _ = bare_ack(segment.headers, segment.end);
            }
        }
        let mut arp = gratuitous_arp(GUEST, IP);
        arp[at % 42] = value;
        let _ = announcement(&arp);
    }
}
