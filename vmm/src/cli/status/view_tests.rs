//! Tests of the view.

use serde_json::json;

use super::*;

/// A status with every part, each number as large as it gets and each text long and hostile.
fn extreme(state: &str) -> Value {
    let (most, long) = (u64::MAX, "x\u{1b}[2J".repeat(60));
    json!({
        "role": "primary", "vm": long, "pid": u32::MAX, "engine": "soft, clock instructions",
        "uptime_s": 1e12, "starting": long,
        "guest": {
            "position": most, "clock": long, "per_second": 1e18, "mips": 1e12,
            "translator": {
                "blocks": most, "bytes": most, "translations": most, "native_share": 1e9,
            },
        },
        "live": {
            "state": state, "generation": most, "appended": most, "acked": most, "released": most,
            "gated": most, "lag_entries": most, "lag_ns": most, "log_bytes": most,
            "digest": [most, { "memory": most }],
        },
        "backup": {
            "state": state, "generation": most, "received": most, "executed": most, "lag_ns": most,
            "outputs": most, "digests": most, "digest": [most, { "memory": most }],
            "disk_reads": { "reads": most, "bytes": most, "waiting": most },
        },
        "failover": {
            "suspected_ns": 0, "won_ns": most / 4, "replayed_ns": most / 2, "live_ns": most,
            "entries_left": most,
        },
        "replication": { "attempt": 1, "to": long, "state": "failed", "bytes": most, "error": long },
        "disk_server": { "address": long, "answers": false, "silent_s": 1e9 },
    })
}

/// A line without colours.
fn bare(line: &str) -> String {
    [GREEN, YELLOW, RED, RESET].iter().fold(line.to_owned(), |line, colour| line.replace(colour, ""))
}

#[test]
fn every_line_fits_80_columns_and_steers_no_terminal() {
    for state in ["Replicating", "Alone", "Waiting", "Joining", "Claiming(Silent)", &"Halted ".repeat(50)] {
        for colours in [false, true] {
            for line in (View { colours }).lines(&extreme(state), None) {
                let line = bare(&line);
                assert!(line.chars().count() <= 80, "{line}");
                assert!(!line.contains('\u{1b}') && !line.is_empty(), "{line:?}");
            }
        }
    }
    assert!(View { colours: false }.lines(&json!({}), None).iter().all(|line| line.chars().count() <= 80));
}

#[test]
fn colours_are_there_when_asked_for_only() {
    let status = extreme("Replicating");
    let has = |colours, what: &str| View { colours }.lines(&status, None).concat().contains(what);
    assert!(!has(false, "\u{1b}"));
    assert!(has(true, GREEN) && has(true, RED));
}

#[test]
fn a_silent_disk_server_is_told_with_what_it_means() {
    let status = json!({ "disk_server": { "address": "c:1", "answers": false, "silent_s": 34.2 } });
    let text = View { colours: false }.lines(&status, None).join("\n");
    assert!(text.contains("no answer for 34.2 s from the disk server c:1"), "{text}");
    assert!(text.contains("no failover is possible"), "{text}");
    for answers in [json!(true), json!(null)] {
        let status = json!({ "disk_server": { "address": "c:1", "answers": answers, "silent_s": 0.1 } });
        assert_eq!(View { colours: false }.lines(&status, None).len(), 1);
    }
}

#[test]
fn rates_are_since_the_look_before() {
    let at = |bytes: u64, uptime: f64| json!({ "uptime_s": uptime, "live": { "log_bytes": bytes } });
    let lines = View { colours: false }.lines(&at(3_000_000, 4.0), Some(&at(1_000_000, 2.0)));
    assert!(lines.iter().any(|line| line.contains("log 3000000 bytes, 8.000 Mbit/s")), "{lines:?}");
}

#[test]
fn a_guest_is_somewhere_and_has_a_speed() {
    let lines = |guest: Value| View { colours: false }.lines(&json!({ "guest": guest }), None);
    let soft =
        json!({ "position": 5_000_000_000u64, "clock": "instructions", "per_second": 61e6, "mips": 61.04 });
    assert!(lines(soft.clone()).contains(&"  position 5000000000 (instructions), 61.0 MIPS".to_string()));
    let kvm = json!({ "position": 12, "clock": "exits", "per_second": 3.4 });
    assert!(lines(kvm).contains(&"  position 12 (exits), 3 a second".to_string()));
    let mut translated = soft;
    translated["translator"] =
        json!({ "blocks": 9, "bytes": 3 << 19, "translations": 10, "native_share": 0.987 });
    let line = "  translated: 9 blocks, 1.5 MiB, 98.7 % of what was executed".to_string();
    assert!(lines(translated.clone()).contains(&line));
    translated["translator"] = json!({ "jit": "on", "translations": 0, "untranslated": "no POPCNT" });
    assert!(lines(translated.clone()).contains(&"  interpreted: no POPCNT".to_string()));
    translated["translator"] = json!({ "jit": "off", "translations": 0 });
    assert!(lines(translated).contains(&"  interpreted (--jit off)".to_string()));
}
