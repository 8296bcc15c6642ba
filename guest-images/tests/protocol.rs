//! The protocol parser of minikv: however a stream is cut, the same requests; whatever comes, no panic and
//! bounded memory.

use minikv_core::resp::{MAX_ARGS, MAX_BULK_LEN, MAX_REQUEST_LEN, Parser, parse_integer};
use proptest::collection::vec;
use proptest::prelude::*;

mod support;
use support::resp;

type Requests = Vec<Vec<Vec<u8>>>;

/// Feeds `bytes` in pieces of these lengths, in turn; returns the requests, and the error if there was one.
fn parse(bytes: &[u8], pieces: &[usize]) -> (Requests, Option<String>) {
    let mut parser = Parser::new();
    let mut requests = Vec::new();
    let mut rest = bytes;
    let mut pieces = pieces.iter().cycle();
    loop {
        match parser.request() {
            Err(error) => return (requests, Some(error.0)),
            Ok(Some(request)) => {
                assert!(!request.is_empty());
                requests.push(request.args(0).map(<[u8]>::to_vec).collect());
                parser.consume();
            }
            Ok(None) if rest.is_empty() => return (requests, None),
            Ok(None) => {
                let len = (*pieces.next().expect("a cycle")).clamp(1, rest.len()).min(parser.room());
                assert!(len > 0, "a parser that needs more takes more");
                assert!(parser.feed(&rest[..len]));
                rest = &rest[len..];
                assert!(parser.memory() < 4 * MAX_REQUEST_LEN);
            }
        }
    }
}

fn whole(bytes: &[u8]) -> (Requests, Option<String>) {
    parse(bytes, &[usize::MAX])
}

proptest! {
    #[test]
    fn cuts_do_not_matter(
        requests in vec(vec(vec(any::<u8>(), 0..40), 1..6), 1..6),
        pieces in vec(1usize..20, 1..5),
    ) {
        let mut stream = Vec::new();
        for request in &requests {
            stream.extend(resp(&request.iter().map(Vec::as_slice).collect::<Vec<_>>()));
        }
        let (parsed, error) = parse(&stream, &pieces);
        prop_assert_eq!(error, None);
        prop_assert_eq!(parsed, requests);
    }

    #[test]
    fn anything_is_parsed_alike_however_cut(
        bytes in vec(prop_oneof![
            4 => prop::sample::select(b"*$\r\n0123456789-".to_vec()),
            1 => any::<u8>(),
            1 => prop::sample::select(b"\"'\\ x".to_vec()),
        ], 0..200),
        pieces in vec(1usize..9, 1..4),
    ) {
        prop_assert_eq!(parse(&bytes, &pieces), whole(&bytes));
    }

    #[test]
    fn integers_are_those_that_print_alike(value in any::<i64>(), junk in "[-+ 0-9a]{0,21}") {
        prop_assert_eq!(parse_integer(value.to_string().as_bytes()), Some(value));
        let parsed = parse_integer(junk.as_bytes());
        let printed = junk.parse::<i64>().ok().filter(|value| value.to_string() == junk);
        prop_assert_eq!(parsed, printed);
    }
}

fn words(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

#[test]
fn inline_commands_are_split_as_redis_does() {
    let cases: [(&[u8], Vec<Vec<u8>>); 6] = [
        (b"PING\r\n", words(&["PING"])),
        (b"  set\ta  1 \n", words(&["set", "a", "1"])),
        (b"set a \"x y\\n\\x41\\\"\"\r\n", words(&["set", "a", "x y\nA\""])),
        (b"set a 'x\\'y\\n'\r\n", words(&["set", "a", "x'y\\n"])),
        (b"set a \"\"\r\n", words(&["set", "a", ""])),
        (b"\r\n\r\nPING\r\n", words(&["PING"])),
    ];
    for (line, expected) in cases {
        assert_eq!(whole(line), (vec![expected], None), "{}", line.escape_ascii());
    }
    for line in [&b"set a \"x\r\n"[..], b"set a \"x\"y\r\n", b"set 'a\r\n"] {
        let error = whole(line).1;
        assert_eq!(error.as_deref(), Some("Protocol error: unbalanced quotes in request"));
    }
}

#[test]
fn broken_streams_are_named_as_redis_names_them() {
    let cases: [(&[u8], &str); 7] = [
        (b"*x\r\n", "Protocol error: invalid multibulk length"),
        (b"*99999999\r\n", "Protocol error: invalid multibulk length"),
        (b"*1\r\n:5\r\n", "Protocol error: expected '$', got ':'"),
        (b"*1\r\n$-1\r\n", "Protocol error: invalid bulk length"),
        (b"*1\r\n$x\r\n", "Protocol error: invalid bulk length"),
        (b"*1\r\n$1048577\r\n", "Protocol error: invalid bulk length"),
        (b"*2\r\n$1048576\r\n", ""),
    ];
    for (bytes, expected) in cases {
        let error = whole(bytes).1.unwrap_or_default();
        assert!(error.starts_with(expected) && error.is_empty() == expected.is_empty(), "{error}");
    }
    let endless = vec![b'x'; 70 << 10];
    assert_eq!(whole(&endless).1.as_deref(), Some("Protocol error: too big inline request"));
    assert_eq!(whole(b"*0\r\n*-1\r\nPING\r\n").0, vec![words(&["PING"])]);
}

#[test]
fn limits_hold() {
    let largest = vec![7u8; MAX_BULK_LEN];
    assert_eq!(parse(&resp(&[&largest]), &[1460]).0.len(), 1);
    assert!(parse(&resp(&[&largest, &largest]), &[1460]).1.expect("too long").contains("request exceeds"));
    let many = vec![&b""[..]; MAX_ARGS];
    assert_eq!(whole(&resp(&many)).0[0].len(), MAX_ARGS);
    let longer = vec![&b"0123456789"[..]; MAX_ARGS + 1];
    assert!(whole(&resp(&longer)).1.is_some());
    let long = vec![&[b'x'; 100][..]; 12_000];
    assert!(whole(&resp(&long)).1.expect("too long").contains("request exceeds"));
}
