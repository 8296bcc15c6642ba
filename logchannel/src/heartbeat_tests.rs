//! Heartbeats: round trips and datagrams that are none.

use proptest::prelude::*;

use super::*;

fn beat(sequence: u64) -> Heartbeat {
    let vm = vm_hash("shop");
    Heartbeat { vm, generation: 4, role: Role::Backup, claimant: 22, sequence }
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
    assert_eq!(Heartbeat::decode(&good[..51]), Err(HeartbeatError::Length(51)));
    assert_eq!(Heartbeat::decode(&[&good[..], &[0]].concat()), Err(HeartbeatError::Length(53)));
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

proptest! {
    #[test]
    fn any_heartbeat_round_trips(
        words in any::<[u64; 3]>(),
        claimant in any::<u128>(),
        primary in any::<bool>(),
    ) {
        let [vm, generation, sequence] = words;
        let role = if primary { Role::Primary } else { Role::Backup };
        let heartbeat = Heartbeat { vm, generation, role, claimant, sequence };
        prop_assert_eq!(Heartbeat::decode(&heartbeat.encode()), Ok(heartbeat));
    }

    #[test]
    fn random_datagrams_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(Heartbeat::decode(&bytes).is_err());
    }
}
