//! Tests of addresses.

use super::*;

#[test]
fn both_families_and_names_are_addresses() {
    for (text, host, port) in [
        ("127.0.0.1:7700", "127.0.0.1", 7700),
        ("[::1]:7700", "::1", 7700),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("[::ffff:10.0.0.1]:65535", "::ffff:10.0.0.1", 65535),
        ("host-b.example.org:0", "host-b.example.org", 0),
    ] {
        assert_eq!(split(text).unwrap(), (host, port));
        assert_eq!(listen(text).unwrap(), text);
        assert_eq!(peer(text).is_ok(), port != 0, "{text}");
    }
    assert_eq!(resolve("[::1]:9").unwrap(), ["[::1]:9".parse().unwrap()]);
    assert_eq!(resolve("127.0.0.1:9").unwrap(), ["127.0.0.1:9".parse().unwrap()]);
}

/// The loopback interface has a number: what the kernel needs to reach a link-local address.
#[test]
fn a_link_local_address_keeps_its_interface() {
    let found = resolve("[fe80::1%lo]:9").unwrap();
    let SocketAddr::V6(address) = found[0] else { panic!("{found:?}") };
    assert_ne!(address.scope_id(), 0);
}

#[test]
fn what_is_no_address_is_refused_with_the_reason() {
    for (text, why) in [
        ("nonsense", "no port"),
        ("", "no port"),
        (":7700", "no host"),
        ("::1:7700", "needs brackets"),
        ("[::1:7700", "not closed"),
        ("[::1]", "no number"),
        ("[::1]:", "not 0 to 65535"),
        ("[host]:1", "no IPv6 address"),
        ("[fe80::1%]:1", "no IPv6 address"),
        ("[fe80::1%a b]:1", "no IPv6 address"),
        ("host:port", "no number"),
        ("host:+1", "no number"),
        ("host:65536", "not 0 to 65535"),
        ("ho st:1", "no name"),
        ("ho\u{1b}[2Jst:1", "no name"),
        ("tcp://host:1", "needs brackets"),
    ] {
        let error = split(text).unwrap_err().to_string();
        assert!(error.contains(why), "{text:?}: {error}");
        assert!(!error.contains('\u{1b}'), "{error:?}");
        assert_eq!(resolve(text).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{text:?}");
    }
    assert!(peer("host:0").unwrap_err().to_string().contains("port 0"));
    assert!(split(&"x".repeat(1 << 20)).unwrap_err().to_string().len() < 500);
}
