//! Messages of the disk protocol, right and wrong ones.

use proptest::prelude::*;

use super::*;

#[test]
fn names() {
    let long = "x".repeat(MAX_NAME);
    for good in ["a", "db-1", "A_b.c", "root.img", "x..y", &long] {
        assert!(is_name(good), "{good}");
    }
    let longer = "x".repeat(MAX_NAME + 1);
    for bad in ["", ".", "..", ".hidden", "../x", "a/b", "/etc", "a\0", "a b", "ä", "a\n", &longer] {
        assert!(!is_name(bad), "{bad}");
    }
}

/// Bytes of version 2, by hand: they change only together with `PROTOCOL_VERSION`.
#[test]
fn layout_of_version_2_is_fixed() {
    let mut bytes = Vec::new();
    let body = RequestBody::Write { disk: 2, generation: 3, offset: 512, durable: true };
    encode(&Request { tag: 1, body }, b"data", &mut bytes).unwrap();
    assert_eq!(bytes, [8, 0, 1, 4, 2, 3, 251, 0, 2, 1, b'd', b'a', b't', b'a']);
    encode(&Answer { tag: 1, body: AnswerBody::Won { generation: 4 } }, &[], &mut bytes).unwrap();
    assert_eq!(bytes, [3, 0, 1, 1, 4]);
    let body = RequestBody::TestAndSet { vm: "v".into(), expect: 3, claimant: 5, purpose: Purpose::Start };
    encode(&Request { tag: 1, body }, &[], &mut bytes).unwrap();
    assert_eq!(bytes, [7, 0, 1, 1, 1, b'v', 3, 5, 1]);
    let body = RequestBody::BeginFill { disk: 2, generation: 3, bytes: 512 };
    encode(&Request { tag: 1, body }, &[], &mut bytes).unwrap();
    assert_eq!(bytes, [7, 0, 1, 7, 2, 3, 251, 0, 2]);
    let holding = Holding { generation: 3, holder: Some(5) };
    let state = VmState { holding, holder_connected: false, ended: false, may_return_ms: 9 };
    let opened = Opened { disk: 2, bytes: 16, state, content: Content::Filling };
    encode(&Answer { tag: 1, body: AnswerBody::Opened(opened) }, &[], &mut bytes).unwrap();
    assert_eq!(bytes, [11, 0, 1, 0, 2, 16, 3, 1, 5, 0, 0, 9, 1]);
}

#[test]
fn data_only_behind_writes() {
    let mut bytes = Vec::new();
    encode(&Request { tag: 1, body: RequestBody::Status }, b"x", &mut bytes).unwrap();
    assert!(matches!(decode_request(KIND_REQUEST, &bytes), Err(MessageError::Data(1))));
    assert!(matches!(decode_request(KIND_ANSWER, &bytes), Err(MessageError::Kind(KIND_ANSWER))));
}

fn body() -> impl Strategy<Value = RequestBody> {
    let open = ("[a-z]{1,64}", "[a-z]{1,64}", any::<Option<u64>>(), any::<u128>()).prop_map(
        |(vm, disk, create_bytes, claimant)| RequestBody::Open { vm, disk, create_bytes, claimant },
    );
    let claim = ("[a-z]{1,64}", any::<u64>(), any::<u128>(), any::<bool>()).prop_map(
        |(vm, expect, claimant, start)| {
            let purpose = if start { Purpose::Start } else { Purpose::Failover };
            RequestBody::TestAndSet { vm, expect, claimant, purpose }
        },
    );
    let read = (any::<u32>(), any::<u64>(), any::<u64>(), any::<u32>())
        .prop_map(|(disk, generation, offset, len)| RequestBody::Read { disk, generation, offset, len });
    prop_oneof![open, claim, read, Just(RequestBody::Status)]
}

proptest! {
    #[test]
    fn round_trip(tag: u64, body in body()) {
        let request = Request { tag, body };
        let mut bytes = Vec::new();
        encode(&request, &[], &mut bytes).unwrap();
        prop_assert_eq!(decode_request(KIND_REQUEST, &bytes).unwrap(), (request, &[][..]));
    }

    #[test]
    fn garbage_is_an_error_or_a_message(kind in 0u8..4, bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode_request(kind, &bytes);
        let _ = decode::<Answer>(&bytes);
    }
}
