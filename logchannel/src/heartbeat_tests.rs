use proptest::prelude::*;

use super::*;

fn beat(sequence: u64) -> Heartbeat {
    let vm = vm_hash("shop");
    Heartbeat { vm, generation: 4, role: Role::Backup, claimant: 22, sequence, received: 90, executed: 80 }
}

fn monitor() -> PeerMonitor {
    PeerMonitor::new(vm_hash("shop"), 4, 11, 22, 100, 1000)
}

#[test]
fn every_flipped_bit_is_refused() {
    let good = beat(7).encode();
    assert!(good.len() <= 80);
    for bit in 0..good.len() * 8 {
        let mut bad = good;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Heartbeat::decode(&bad).is_err(), "bit {bit}");
    }
}

#[test]
fn each_fault_has_its_own_error() {
    let good = beat(7).encode();
    assert_eq!(Heartbeat::decode(&good[..67]), Err(HeartbeatError::Length(67)));
    assert_eq!(Heartbeat::decode(&[&good[..], &[0]].concat()), Err(HeartbeatError::Length(69)));
    let with = |change: fn(&mut [u8; HEARTBEAT_LEN])| {
        let mut bytes = good;
        change(&mut bytes);
        let crc = crc32fast::hash(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        Heartbeat::decode(&bytes).unwrap_err()
    };
    assert_eq!(with(|bytes| bytes[0] = b'X'), HeartbeatError::Magic(*b"XKHB"));
    assert_eq!(with(|bytes| bytes[4] = 9), HeartbeatError::Version { found: 9 });
    assert_eq!(with(|bytes| bytes[6] = 3), HeartbeatError::Fields { role: 3, zero: 0 });
    assert_eq!(with(|bytes| bytes[7] = 1), HeartbeatError::Fields { role: 2, zero: 1 });
}

#[test]
fn silence_makes_a_peer_suspect_and_any_sign_of_life_clears_it() {
    let mut monitor = monitor();
    assert!(!monitor.suspect(1099));
    assert!(monitor.suspect(1100));
    monitor.on_heartbeat(&beat(1), 1050).unwrap();
    assert_eq!((monitor.suspect(1149), monitor.suspect(1150)), (false, true));
    monitor.heard(1120);
    assert_eq!((monitor.suspect(1219), monitor.deadline_ns()), (false, 1220));
    monitor.heard(1100);
    assert_eq!(monitor.silent_ns(1220), 100, "an earlier sign does not count back");
    assert!(!monitor.suspect(0), "a time before it is no reason");
}

#[test]
fn only_the_peers_latest_counts() {
    let mut monitor = monitor();
    monitor.on_heartbeat(&beat(5), 1010).unwrap();
    let mut ignored = |heartbeat| monitor.on_heartbeat(&heartbeat, 1090).unwrap_err();
    assert_eq!(ignored(beat(5)), Ignored::OldSequence(5));
    assert_eq!(ignored(beat(4)), Ignored::OldSequence(4));
    assert_eq!(ignored(Heartbeat { vm: 1, ..beat(6) }), Ignored::OtherVm);
    assert_eq!(ignored(Heartbeat { claimant: 11, ..beat(6) }), Ignored::Own);
    assert_eq!(ignored(Heartbeat { claimant: 33, ..beat(6) }), Ignored::Stranger);
    assert_eq!(ignored(Heartbeat { generation: 3, ..beat(6) }), Ignored::OldGeneration(3));
    assert!(monitor.suspect(1110), "none of them kept the peer alive");
    monitor.on_heartbeat(&Heartbeat { generation: 5, ..beat(6) }, 1110).unwrap();
    monitor.set_generation(5);
    assert_eq!(monitor.on_heartbeat(&beat(7), 1120), Err(Ignored::OldGeneration(4)));
}

proptest! {
    #[test]
    fn any_heartbeat_round_trips(
        words in any::<[u64; 5]>(),
        claimant in any::<u128>(),
        primary in any::<bool>(),
    ) {
        let [vm, generation, sequence, received, executed] = words;
        let role = if primary { Role::Primary } else { Role::Backup };
        let heartbeat = Heartbeat { vm, generation, role, claimant, sequence, received, executed };
        prop_assert_eq!(Heartbeat::decode(&heartbeat.encode()), Ok(heartbeat));
    }

    #[test]
    fn random_datagrams_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(Heartbeat::decode(&bytes).is_err());
    }
}
