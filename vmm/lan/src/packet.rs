//! The little that the switch reads of frames: Ethernet addresses, ARP announcements, TCP headers.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress,
    IpProtocol, Ipv4Packet, TcpPacket, TcpSeqNumber,
};

use crate::wire::is_frame_len;

/// Bytes of an Ethernet header.
pub const ETHERNET_LEN: usize = 14;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Everybody.
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// Whether it names a group (broadcast included).
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text is no Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no Ethernet address: write six bytes in hexadecimal, as 52:4c:4b:00:00:02")]
pub struct MacError(String);

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let bad = || MacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Mac(bytes)) }
    }
}

/// Destination and source of a frame; `None` if it is shorter than an Ethernet header.
pub fn addresses(frame: &[u8]) -> Option<(Mac, Mac)> {
    let header = frame.first_chunk::<ETHERNET_LEN>()?;
    let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, ..] = *header;
    Some((Mac([d0, d1, d2, d3, d4, d5]), Mac([s0, s1, s2, s3, s4, s5])))
}

/// A station's claim that an IPv4 address is at its MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    /// The station.
    pub mac: Mac,
    /// The address.
    pub ip: Ipv4Addr,
}

fn arp(destination: Mac, repr: ArpRepr, source: Mac) -> [u8; 42] {
    let mut bytes = [0; 42];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_dst_addr(EthernetAddress(destination.0));
    frame.set_src_addr(EthernetAddress(source.0));
    frame.set_ethertype(EthernetProtocol::Arp);
    repr.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    bytes
}

/// The frame by which a new primary announces its guest's address (an ARP announcement, RFC 5227 section
/// 2.3): every switch on the way learns the MAC's new port from it.
pub fn gratuitous_arp(mac: Mac, ip: Ipv4Addr) -> [u8; 42] {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(mac.0),
        source_protocol_addr: ip,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: ip,
    };
    arp(Mac::BROADCAST, repr, mac)
}

/// An ARP reply that tells `to` where `of` is.
pub(crate) fn arp_reply(to: Announcement, of: Announcement) -> [u8; 42] {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(of.mac.0),
        source_protocol_addr: of.ip,
        target_hardware_addr: EthernetAddress(to.mac.0),
        target_protocol_addr: to.ip,
    };
    arp(to.mac, repr, of.mac)
}

/// An ARP request by `from` for the station that has `ip`.
pub(crate) fn arp_request(from: Announcement, ip: Ipv4Addr) -> [u8; 42] {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(from.mac.0),
        source_protocol_addr: from.ip,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: ip,
    };
    arp(Mac::BROADCAST, repr, from.mac)
}

/// Whether the frame is an ARP announcement (a request or reply of a station about its own address) by the
/// very station that sends it.
pub fn announcement(frame: &[u8]) -> Option<Announcement> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    if frame.ethertype() != EthernetProtocol::Arp {
        return None;
    }
    let packet = ArpPacket::new_checked(frame.payload()).ok()?;
    let ArpRepr::EthernetIpv4 { source_hardware_addr, source_protocol_addr, target_protocol_addr, .. } =
        ArpRepr::parse(&packet).ok()?
    else {
        return None;
    };
    let own = source_hardware_addr == frame.src_addr() && source_protocol_addr == target_protocol_addr;
    (own && !source_protocol_addr.is_unspecified())
        .then_some(Announcement { mac: Mac(source_hardware_addr.0), ip: source_protocol_addr })
}

/// One direction of a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Sender.
    pub source: (Ipv4Addr, u16),
    /// Receiver.
    pub destination: (Ipv4Addr, u16),
}

impl Flow {
    /// The other direction.
    pub fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source }
    }
}

/// What the switch reads of a TCP segment over IPv4.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// Which connection, which direction.
    pub flow: Flow,
    /// First sequence number.
    pub seq: u32,
    /// The sequence number after its last: SYN and FIN count one each.
    pub end: u32,
    /// What it acknowledges, if it does.
    pub ack: Option<u32>,
    /// SYN flag.
    pub syn: bool,
    /// FIN flag.
    pub fin: bool,
    /// RST flag.
    pub rst: bool,
    /// PSH flag.
    pub psh: bool,
    /// Ethernet, IP and TCP headers with their options.
    pub headers: &'a [u8],
}

/// The TCP segment in an untagged, unfragmented IPv4 frame.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sequence numbers are modulo 2^32, and their order is the difference's sign"
)]
pub fn tcp_segment(bytes: &[u8]) -> Option<Segment<'_>> {
    let frame = EthernetFrame::new_checked(bytes).ok()?;
    if frame.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let ip = Ipv4Packet::new_checked(frame.payload()).ok()?;
    if ip.version() != 4
        || ip.next_header() != IpProtocol::Tcp
        || ip.more_frags()
        || ip.frag_offset() != 0
        || ip.header_len() < 20
    {
        return None;
    }
    let (ip_len, source, destination) = (usize::from(ip.header_len()), ip.src_addr(), ip.dst_addr());
    let tcp = TcpPacket::new_checked(ip.payload()).ok()?;
    let headers_len = ETHERNET_LEN + ip_len + usize::from(tcp.header_len());
    let seq = tcp.seq_number().0 as u32;
    Some(Segment {
        flow: Flow { source: (source, tcp.src_port()), destination: (destination, tcp.dst_port()) },
        seq,
        end: seq.wrapping_add(tcp.segment_len() as u32),
        ack: tcp.ack().then(|| tcp.ack_number().0 as u32),
        syn: tcp.syn(),
        fin: tcp.fin(),
        rst: tcp.rst(),
        psh: tcp.psh(),
        headers: bytes.get(..headers_len)?,
    })
}

/// Whether sequence number `a` is at or after `b`, modulo 2^32.
#[allow(
    clippy::cast_possible_wrap,
    reason = "sequence numbers are modulo 2^32, and their order is the difference's sign"
)]
pub fn seq_at_or_after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) as i32 >= 0
}

/// A segment without payload that repeats the acknowledgement and window of an earlier one, given by its
/// `headers` (as in `Segment`), at sequence number `seq`.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "the length of a frame; sequence numbers are modulo 2^32"
)]
pub fn bare_ack(headers: &[u8], seq: u32) -> Option<Vec<u8>> {
    if !is_frame_len(headers.len()) {
        return None;
    }
    let mut bytes = headers.to_vec();
    let mut ip = Ipv4Packet::new_unchecked(bytes.get_mut(ETHERNET_LEN..)?);
    ip.set_total_len((headers.len() - ETHERNET_LEN) as u16);
    ip.check_len().ok()?;
    let (source, destination) = (IpAddress::Ipv4(ip.src_addr()), IpAddress::Ipv4(ip.dst_addr()));
    ip.fill_checksum();
    let mut tcp = TcpPacket::new_unchecked(ip.payload_mut());
    tcp.check_len().ok()?;
    tcp.set_seq_number(TcpSeqNumber(seq as i32));
    tcp.clear_flags();
    tcp.set_ack(true);
    tcp.fill_checksum(&source, &destination);
    Some(bytes)
}

#[cfg(test)]
#[path = "packet_tests.rs"]
pub(crate) mod tests;
