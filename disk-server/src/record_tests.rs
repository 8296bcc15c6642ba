//! The generation record: round trips and damage.

use proptest::prelude::*;

use super::*;

/// A record of version 1, as it lies on disks: it must stay readable.
const SAMPLE: &str = "4c4b4752010001000700000000000000efcdab8967452301efcdab8967452301\
    03646231000000000000000000000000000000000000000000000000000000000000000000000000\
    0000000000000000000000000000000000000000000000000000000000000000000000000000000000\
    00000000000000000000000000";

fn held(generation: u64, holder: u128, tenure: Tenure) -> Ownership {
    Ownership { holding: Holding { generation, holder: Some(holder) }, tenure }
}

fn sample() -> Ownership {
    held(7, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef, Tenure::MayReturn)
}

fn sample_bytes(hex: &str, crc: u32) -> Vec<u8> {
    let bytes = (0..CRC).map(|at| u8::from_str_radix(&hex[at * 2..at * 2 + 2], 16).unwrap());
    bytes.chain(crc.to_le_bytes()).collect()
}

#[test]
fn a_record_of_version_1_is_read_and_its_holder_may_return() {
    assert_eq!(decode("db1", &sample_bytes(SAMPLE, 0xa484_18b0)), Ok(sample()));
    // What only version 2 can say is damage in version 1.
    let mut bytes = encode_version("db1", &held(7, 1, Tenure::Released), 1);
    assert_eq!(decode("db1", &bytes), Err(RecordError::Foreign));
    bytes = encode_version("db1", &held(7, 1, Tenure::Released), 2);
    assert_eq!(decode("db1", &bytes), Ok(held(7, 1, Tenure::Released)));
}

#[test]
fn layout_of_version_2_is_fixed() {
    let bytes = encode("db1", &held(7, sample().holding.holder.unwrap(), Tenure::Released));
    let mut expected = sample_bytes(SAMPLE, 0);
    (expected[4], expected[6]) = (2, 3);
    assert_eq!(bytes[..CRC], expected[..CRC]);
    assert_eq!(u32::from_le_bytes(bytes[CRC..].try_into().unwrap()), crc32fast::hash(&bytes[..CRC]));
}

#[test]
fn other_vms_and_versions_are_refused() {
    let bytes = encode("db1", &sample());
    assert_eq!(decode("db1", &bytes), Ok(sample()));
    assert_eq!(decode("db2", &bytes), Err(RecordError::Foreign));
    assert_eq!(decode("db1", &bytes[..100]), Err(RecordError::Length(100)));
    assert_eq!(decode("db1", &[0; RECORD_LEN]), Err(RecordError::Magic([0; 4])));
    let mut newer = bytes;
    newer[4] = 3;
    assert_eq!(decode("db1", &newer), Err(RecordError::Version(3)));
}

#[test]
fn a_holder_of_nothing_is_refused() {
    let mut bytes = encode("db1", &Ownership::default());
    bytes[8] = 3;
    let sum = crc32fast::hash(&bytes[..CRC]);
    bytes[CRC..].copy_from_slice(&sum.to_le_bytes());
    assert_eq!(decode("db1", &bytes), Err(RecordError::Foreign));
}

proptest! {
    #[test]
    fn round_trip(name in "[A-Za-z0-9_.-]{1,64}", generation in 1u64.., holder: u128, code in 0usize..3) {
        let tenure = [Tenure::MayReturn, Tenure::Local, Tenure::Released][code];
        let ownership = held(generation, holder, tenure);
        prop_assert_eq!(decode(&name, &encode(&name, &ownership)), Ok(ownership));
    }

    #[test]
    fn any_changed_bit_is_seen(bit in 0usize..RECORD_LEN * 8) {
        let mut bytes = encode("db1", &sample());
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(decode("db1", &bytes).is_err());
    }

    #[test]
    fn a_torn_record_is_seen(cut in 1usize..RECORD_LEN) {
        let old = encode("db1", &held(6, 9, Tenure::Local));
        let mut bytes = encode("db1", &sample());
        bytes[cut..].copy_from_slice(&old[cut..]);
        let whole = bytes == old || bytes == encode("db1", &sample());
        prop_assert!(whole || decode("db1", &bytes).is_err());
    }
}
