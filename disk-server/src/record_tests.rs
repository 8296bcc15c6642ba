//! The generation record: round trips and damage.

use proptest::prelude::*;

use super::*;

/// A record of version 1, as it lies on disks: it must stay readable.
const SAMPLE: &str = "4c4b4752010001000700000000000000efcdab8967452301efcdab8967452301\
    03646231000000000000000000000000000000000000000000000000000000000000000000000000\
    0000000000000000000000000000000000000000000000000000000000000000000000000000000000\
    00000000000000000000000000";

fn sample() -> Holding {
    Holding { generation: 7, holder: Some(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef) }
}

#[test]
fn layout_of_version_1_is_fixed() {
    let bytes = encode("db1", &sample());
    let hex: String = bytes[..CRC].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, SAMPLE[..CRC * 2]);
    assert_eq!(u32::from_le_bytes(bytes[CRC..].try_into().unwrap()), 0xa484_18b0);
}

#[test]
fn other_vms_and_versions_are_refused() {
    let bytes = encode("db1", &sample());
    assert_eq!(decode("db1", &bytes), Ok(sample()));
    assert_eq!(decode("db2", &bytes), Err(RecordError::Foreign));
    assert_eq!(decode("db1", &bytes[..100]), Err(RecordError::Length(100)));
    assert_eq!(decode("db1", &[0; RECORD_LEN]), Err(RecordError::Magic([0; 4])));
    let mut newer = bytes;
    newer[4] = 2;
    assert_eq!(decode("db1", &newer), Err(RecordError::Version(2)));
}

#[test]
fn a_holder_of_nothing_is_refused() {
    let mut bytes = encode("db1", &Holding::default());
    bytes[8] = 3;
    let sum = crc32fast::hash(&bytes[..CRC]);
    bytes[CRC..].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(decode("db1", &bytes), Err(RecordError::Foreign));
}

proptest! {
    #[test]
    fn round_trip(name in "[A-Za-z0-9_.-]{1,64}", generation in 1u64.., holder: u128) {
        let holding = Holding { generation, holder: Some(holder) };
        prop_assert_eq!(decode(&name, &encode(&name, &holding)), Ok(holding));
    }

    #[test]
    fn any_changed_bit_is_seen(bit in 0usize..RECORD_LEN * 8) {
        let mut bytes = encode("db1", &sample());
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(decode("db1", &bytes).is_err());
    }

    #[test]
    fn a_torn_record_is_seen(cut in 1usize..RECORD_LEN) {
        let old = encode("db1", &Holding { generation: 6, holder: Some(9) });
        let mut bytes = encode("db1", &sample());
        bytes[cut..].copy_from_slice(&old[cut..]);
        let whole = bytes == old || bytes == encode("db1", &sample());
        prop_assert!(whole || decode("db1", &bytes).is_err());
    }
}
