//! minikv's commands, by their replies.

use minikv_core::glob;
use minikv_core::resp::MAX_BULK_LEN;
use minikv_core::{Client, Progress};
use proptest::prelude::*;

mod support;
use support::{LIMITS, Session, boot, resp, run, settle};

fn check(cases: &[(&str, &str)]) {
    let mut session = Session::new();
    for (line, expected) in cases {
        assert_eq!(&session.ask(line), expected, "{line}");
    }
}

#[test]
fn strings() {
    check(&[
        ("GET a", "$-1\r\n"),
        ("SET a 1", "+OK\r\n"),
        ("get a", "$1\r\n1\r\n"),
        ("SET a 2 NX", "$-1\r\n"),
        ("SET b 2 XX", "$-1\r\n"),
        ("SET a 2 XX GET", "$1\r\n1\r\n"),
        ("SET n 9 NX GET", "$-1\r\n"),
        ("GET n", "$1\r\n9\r\n"),
        ("SET a 3 NX XX", "-ERR syntax error\r\n"),
        ("SET a 3 KEEPTTL", "+OK\r\n"),
        ("SET a 3 EX 10", "-ERR minikv keeps keys until they are deleted: expiry is not supported\r\n"),
        ("GETSET a 4", "$1\r\n3\r\n"),
        ("SETNX a 5", ":0\r\n"),
        ("SETNX c 5", ":1\r\n"),
        ("INCR a", ":5\r\n"),
        ("DECR a", ":4\r\n"),
        ("INCRBY a -10", ":-6\r\n"),
        ("DECRBY a -10", ":4\r\n"),
        ("INCRBY a x", "-ERR value is not an integer or out of range\r\n"),
        ("SET big 9223372036854775807", "+OK\r\n"),
        ("INCR big", "-ERR increment or decrement would overflow\r\n"),
        ("DECRBY a -9223372036854775808", "-ERR decrement would overflow\r\n"),
        ("APPEND s hello", ":5\r\n"),
        ("APPEND s !", ":6\r\n"),
        ("INCR s", "-ERR value is not an integer or out of range\r\n"),
        ("STRLEN s", ":6\r\n"),
        ("STRLEN none", ":0\r\n"),
        ("GETRANGE s 1 3", "$3\r\nell\r\n"),
        ("GETRANGE s -3 -1", "$3\r\nlo!\r\n"),
        ("GETRANGE s 4 1", "$0\r\n\r\n"),
        ("GETRANGE none 0 -1", "$0\r\n\r\n"),
        ("MSET x 1 y 2 x 3", "+OK\r\n"),
        ("MGET x y none", "*3\r\n$1\r\n3\r\n$1\r\n2\r\n$-1\r\n"),
        ("MSET x 1 y", "-ERR wrong number of arguments for 'mset' command\r\n"),
        ("MSETNX x 1 new 2", ":0\r\n"),
        ("GETDEL x", "$1\r\n3\r\n"),
        ("GETDEL x", "$-1\r\n"),
    ]);
}

#[test]
fn keys() {
    check(&[
        ("MSET k1 a k2 b other c", "+OK\r\n"),
        ("EXISTS k1 k1 none", ":2\r\n"),
        ("DBSIZE", ":3\r\n"),
        ("TYPE k1", "+string\r\n"),
        ("TYPE none", "+none\r\n"),
        ("TTL k1", ":-1\r\n"),
        ("TTL none", ":-2\r\n"),
        ("DEL k1 k1 none", ":1\r\n"),
        ("KEYS k*", "*1\r\n$2\r\nk2\r\n"),
        ("SCAN x", "-ERR invalid cursor\r\n"),
        ("SCAN 0 COUNT", "-ERR syntax error\r\n"),
        ("SCAN 0 COUNT 0", "-ERR syntax error\r\n"),
        ("SCAN 0 MATCH k? COUNT 100", "*2\r\n$1\r\n0\r\n*1\r\n$2\r\nk2\r\n"),
        ("FLUSHALL NOW", "-ERR syntax error\r\n"),
        ("FLUSHALL ASYNC", "+OK\r\n"),
        ("DBSIZE", ":0\r\n"),
        ("KEYS *", "*0\r\n"),
    ]);
}

#[test]
fn server() {
    check(&[
        ("PING", "+PONG\r\n"),
        ("PING hi", "$2\r\nhi\r\n"),
        ("ECHO hi", "$2\r\nhi\r\n"),
        ("GET", "-ERR wrong number of arguments for 'get' command\r\n"),
        ("NOPE a b", "-ERR unknown command 'NOPE', with args beginning with: 'a' 'b' \r\n"),
        ("SELECT 0", "+OK\r\n"),
        ("SELECT 1", "-ERR DB index is out of range\r\n"),
        ("CONFIG GET save", "*2\r\n$4\r\nsave\r\n$0\r\n\r\n"),
        ("CONFIG GET appendonly", "*2\r\n$10\r\nappendonly\r\n$2\r\nno\r\n"),
        ("CONFIG NOPE", "-ERR unknown subcommand 'NOPE'. Try CONFIG HELP.\r\n"),
        ("CLIENT ID", ":1\r\n"),
        ("CLIENT SETNAME me", "+OK\r\n"),
        ("CLIENT GETNAME", "$2\r\nme\r\n"),
        ("CLIENT SETINFO LIB-NAME x", "+OK\r\n"),
        ("CLIENT SETINFO", "-ERR wrong number of arguments for 'client|setinfo' command\r\n"),
        ("HELLO 3", "-NOPROTO unsupported protocol version\r\n"),
        ("TIME", "*2\r\n$10\r\n1700000001\r\n$6\r\n500000\r\n"),
        ("COMMAND DOCS", "*0\r\n"),
        ("COMMAND INFO nope", "*1\r\n*-1\r\n"),
        ("COMMAND INFO get", "*1\r\n*6\r\n$3\r\nget\r\n:2\r\n*2\r\n+readonly\r\n+fast\r\n:1\r\n:1\r\n:1\r\n"),
        ("DEBUG SPIN -1", "-ERR value is not an integer or out of range\r\n"),
        ("DEBUG SPIN 0", ":0\r\n"),
        ("DEBUG RESTART NOW", "-ERR wrong number of arguments for 'debug|restart' command\r\n"),
        ("BGREWRITEAOF", "-ERR there is no disk, hence no append only file\r\n"),
    ]);
}

#[test]
fn every_command_is_found_in_any_case() {
    let mut session = Session::new();
    let list = session.ask("COMMAND LIST");
    let names: Vec<&str> = list.split("\r\n").skip(1).filter(|word| !word.starts_with('$')).collect();
    assert_eq!(session.ask("COMMAND COUNT"), format!(":{}\r\n", names.len() - 1));
    for name in names.into_iter().filter(|name| !name.is_empty() && *name != "shutdown" && *name != "quit") {
        let reply = session.ask(&name.to_ascii_uppercase());
        assert!(!reply.starts_with("-ERR unknown command"), "{name}: {reply}");
    }
}

#[test]
fn info_and_hello_tell_clients_what_they_look_for() {
    let mut session = Session::new();
    session.ask("SET a 1");
    let info = session.ask("INFO");
    for part in ["redis_version:7.", "connected_clients:0", "used_memory:", "db0:keys=1,", "exits:0"] {
        assert!(info.contains(part), "{part} in {info}");
    }
    assert!(!session.ask("INFO memory").contains("redis_version"));
    assert!(session.ask("HELLO").starts_with("*14\r\n$6\r\nserver\r\n$5\r\nredis\r\n"));
}

#[test]
fn spinning_gives_the_same_answer_however_it_is_cut() {
    let mut session = Session::new();
    let once = session.ask("DEBUG SPIN 450000");
    assert_eq!(session.ask("DEBUG SPIN 450000"), once);
    assert_ne!(session.ask("DEBUG SPIN 450001"), once);
}

#[test]
fn a_scan_returns_every_key_that_stays() {
    let mut session = Session::new();
    for index in 0..500 {
        session.ask(&format!("SET key:{index} x"));
    }
    let mut cursor = "0".to_string();
    let mut found = Vec::new();
    let mut rounds = 0;
    loop {
        let reply = session.ask(&format!("SCAN {cursor} MATCH key:* COUNT 7"));
        let words: Vec<&str> = reply.split("\r\n").collect();
        cursor = words[2].to_string();
        found.extend(words[4..].iter().filter(|word| word.starts_with("key:")).map(|word| word.to_string()));
        // Others come and go meanwhile.
        session.ask(&format!("SET new:{rounds} x"));
        session.ask(&format!("DEL new:{}", rounds / 2));
        rounds += 1;
        if cursor == "0" {
            break;
        }
    }
    found.sort();
    let before = found.len();
    found.dedup();
    assert_eq!((found.len(), before), (500, 500));
}

#[test]
fn memory_has_a_limit_and_says_so() {
    let mut session = Session::new();
    let value = "v".repeat(900_000);
    let mut stored = 0;
    let refused = loop {
        match session.ask(&format!("SET key:{stored} {value}")).as_str() {
            "+OK\r\n" => stored += 1,
            other => break other.to_string(),
        }
    };
    assert_eq!(refused, "-OOM command not allowed when used memory > 'maxmemory'.\r\n");
    assert!((30..=LIMITS.max_memory / 900_000).contains(&stored), "{stored}");
    assert_eq!(session.ask("SET key:0 small"), "+OK\r\n");
    assert_eq!(session.ask("DEL key:1 key:2"), ":2\r\n");
    assert_eq!(session.ask(&format!("SET key:1 {value}")), "+OK\r\n");
    assert!(session.db.store().used_memory() <= LIMITS.max_memory);
}

#[test]
fn values_have_a_limit() {
    let mut session = Session::new();
    let half = "v".repeat(MAX_BULK_LEN / 2);
    assert_eq!(session.ask(&format!("APPEND a {half}")), format!(":{}\r\n", half.len()));
    assert_eq!(session.ask(&format!("APPEND a {half}")), format!(":{MAX_BULK_LEN}\r\n"));
    assert!(session.ask("APPEND a x").starts_with("-ERR string exceeds maximum allowed size"));
    let keys = ["a"; 10].join(" ");
    assert!(session.ask(&format!("MGET {keys}")).starts_with("-ERR the reply would exceed"));
}

#[test]
fn a_pipeline_that_nobody_reads_is_not_executed_further() {
    let mut session = Session::new();
    session.ask(&format!("SET a {}", "v".repeat(40_000)));
    let pipeline = resp(&[b"GET", b"a"]).repeat(100);
    assert!(session.client.feed(&pipeline));
    assert_eq!(run(&mut session.db, &mut session.client), Progress::Full);
    assert!(session.client.waiting() < 200_000);
    let mut replies = 0;
    loop {
        let len = session.client.ready(u64::MAX).len();
        if len == 0 {
            break;
        }
        replies += len;
        session.client.sent(len.min(30_000));
        replies -= len - len.min(30_000);
        run(&mut session.db, &mut session.client);
    }
    assert_eq!(replies, 100 * (40_000 + 10));
}

#[test]
fn nobody_sees_what_is_not_durable() {
    let mut disk = vec![0; 1 << 20];
    let mut db = boot(&mut disk).expect("an empty disk");
    let (mut writer, mut reader) = (Client::new(1), Client::new(2));
    assert!(reader.feed(&resp(&[b"GET", b"a"])) && writer.feed(&resp(&[b"PING"])));
    run(&mut db, &mut reader);
    run(&mut db, &mut writer);
    assert!(!reader.ready(db.durable()).is_empty() && !writer.ready(db.durable()).is_empty());
    reader.sent(5);
    writer.sent(7);

    assert!(writer.feed(&resp(&[b"SET", b"a", b"1"])) && reader.feed(&resp(&[b"GET", b"a"])));
    run(&mut db, &mut writer);
    run(&mut db, &mut reader);
    assert!(writer.ready(db.durable()).is_empty() && reader.ready(db.durable()).is_empty());
    let first = db.next_write().expect("a batch");
    assert!(db.next_write().is_none(), "one write at a time");
    // What is executed while a batch is under way waits for the next one.
    assert!(writer.feed(&resp(&[b"SET", b"a", b"2"])));
    run(&mut db, &mut writer);
    db.write_done(first);
    assert_eq!(writer.ready(db.durable()), b"+OK\r\n");
    assert_eq!(reader.ready(db.durable()), b"$1\r\n1\r\n");
    writer.sent(5);
    assert!(writer.ready(db.durable()).is_empty());
    settle(&mut db, &mut disk);
    assert_eq!(writer.ready(db.durable()), b"+OK\r\n");
}

/// The obvious way to match, exponential as it is.
fn slow_match(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', rest @ ..] => (0..=text.len()).any(|skip| slow_match(rest, &text[skip..])),
        [b'?', rest @ ..] => !text.is_empty() && slow_match(rest, &text[1..]),
        [b'[', a, b'-', b, b']', rest @ ..] => {
            text.first().is_some_and(|c| (a.min(b)..=a.max(b)).contains(&c)) && slow_match(rest, &text[1..])
        }
        [literal, rest @ ..] => text.first() == Some(literal) && slow_match(rest, &text[1..]),
    }
}

proptest! {
    #[test]
    fn globs_match_as_they_should(pattern in "([abc*?]|\\[[abc]-[abc]\\]){0,6}", text in "[abc]{0,8}") {
        let expected = slow_match(pattern.as_bytes(), text.as_bytes());
        prop_assert_eq!(glob::matches(pattern.as_bytes(), text.as_bytes()), expected);
    }

    #[test]
    fn globs_never_panic(
        pattern in prop::collection::vec(prop::sample::select(b"*?[]^-\\ab".to_vec()), 0..12),
        text in "[ab\\-\\]]{0,6}",
    ) {
        glob::matches(&pattern, text.as_bytes());
    }
}

#[test]
fn globs_with_classes_and_escapes() {
    for (pattern, text, expected) in [
        ("h[^e]llo", "hallo", true),
        ("h[^e]llo", "hello", false),
        ("a\\*b", "a*b", true),
        ("a\\*b", "axb", false),
        ("[\\]]", "]", true),
        ("[ab", "a", true),
        ("*", "", true),
        ("a", "", false),
    ] {
        assert_eq!(glob::matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
    }
}

#[test]
fn configuration_is_read_from_the_command_line() {
    use minikv_core::Config;
    assert_eq!(Config::parse(""), Ok(Config::default()));
    let parsed = Config::parse("quiet ip=192.168.1.9/16 gw=192.168.0.1 port=7000 console=ttyS0");
    let expected = Config { ip: [192, 168, 1, 9], prefix: 16, gateway: [192, 168, 0, 1], port: 7000 };
    assert_eq!(parsed, Ok(expected));
    for wrong in ["ip=1.2.3.4", "ip=1.2.3/8", "ip=1.2.3.4/33", "gw=x", "port=0", "port=65536"] {
        assert!(Config::parse(wrong).is_err_and(|error| error.contains(wrong)), "{wrong}");
    }
}
