//! Commands on the server and the connection.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write;

use super::{Answer, COMMANDS, Call, Command, NOT_INTEGER, SYNTAX, find, wrong_arity};
use crate::database::{Outcome, Stop};
use crate::glob;
use crate::reply;
use crate::resp::{MAX_BULK_LEN, parse_integer};

/// The Redis version whose answers these are.
const REDIS_VERSION: &str = "7.0.15";

pub(super) fn ping(call: &mut Call<'_, '_>) -> Answer {
    match call.request.len() {
        1 => reply::status(call.out, "PONG"),
        2 => return echo(call),
        _ => return Err(wrong_arity("ping")),
    }
    Ok(Outcome::Done)
}

pub(super) fn echo(call: &mut Call<'_, '_>) -> Answer {
    call.reserve(reply::bulk_len(call.arg(1).len()))?;
    reply::bulk(call.out, call.arg(1));
    Ok(Outcome::Done)
}

pub(super) fn quit(call: &mut Call<'_, '_>) -> Answer {
    reply::ok(call.out);
    Ok(Outcome::Close)
}

pub(super) fn select(call: &mut Call<'_, '_>) -> Answer {
    match parse_integer(call.arg(1)) {
        Some(0) => reply::ok(call.out),
        Some(_) => return Err("ERR DB index is out of range".into()),
        None => return Err(NOT_INTEGER.into()),
    }
    Ok(Outcome::Done)
}

pub(super) fn auth(_: &mut Call<'_, '_>) -> Answer {
    Err("ERR AUTH <password> called without any password configured for the default user. \
         Are you sure your configuration is correct?"
        .into())
}

pub(super) fn hello(call: &mut Call<'_, '_>) -> Answer {
    if call.request.len() > 1 {
        match parse_integer(call.arg(1)) {
            Some(2) => {}
            Some(_) => return Err("NOPROTO unsupported protocol version".into()),
            None => return Err("ERR Protocol version is not an integer or out of range".into()),
        }
    }
    let mut at = 2;
    let mut name = None;
    while at < call.request.len() {
        match call.arg(at).to_ascii_uppercase().as_slice() {
            b"SETNAME" if at + 1 < call.request.len() => name = Some(call.arg(at + 1)),
            b"AUTH" if at + 2 < call.request.len() => return auth(call),
            _ => {
                let mut text = Vec::from(*b"ERR Syntax error in HELLO option '");
                text.extend_from_slice(&call.arg(at)[..call.arg(at).len().min(128)]);
                text.push(b'\'');
                return Err(Stop::Error(text.into()));
            }
        }
        at += 2;
    }
    if let Some(name) = name {
        set_name(call, name)?;
    }
    reply::array(call.out, 14);
    for (field, value) in [("server", "redis"), ("version", REDIS_VERSION)] {
        reply::bulk(call.out, field.as_bytes());
        reply::bulk(call.out, value.as_bytes());
    }
    reply::bulk(call.out, b"proto");
    reply::integer(call.out, 2);
    reply::bulk(call.out, b"id");
    reply::integer(call.out, call.session.id as i64);
    for (field, value) in [("mode", "standalone"), ("role", "master")] {
        reply::bulk(call.out, field.as_bytes());
        reply::bulk(call.out, value.as_bytes());
    }
    reply::bulk(call.out, b"modules");
    reply::array(call.out, 0);
    Ok(Outcome::Done)
}

fn set_name(call: &mut Call<'_, '_>, name: &[u8]) -> Result<(), Stop> {
    if name.len() > 256 || !name.iter().all(|byte| (b'!'..=b'~').contains(byte)) {
        return Err("ERR Client names cannot contain spaces, newlines or special characters.".into());
    }
    call.session.name = name.to_vec();
    Ok(())
}

pub(super) fn client(call: &mut Call<'_, '_>) -> Answer {
    let given = call.request.len();
    match (call.arg(1).to_ascii_uppercase().as_slice(), given) {
        (b"ID", 2) => reply::integer(call.out, call.session.id as i64),
        (b"GETNAME", 2) if call.session.name.is_empty() => reply::nil(call.out),
        (b"GETNAME", 2) => reply::bulk(call.out, &call.session.name),
        (b"SETNAME", 3) => {
            set_name(call, call.arg(2))?;
            reply::ok(call.out);
        }
        (b"SETINFO", 4) | (b"NO-EVICT" | b"NO-TOUCH", 3) => reply::ok(call.out),
        (name @ (b"ID" | b"GETNAME" | b"SETNAME" | b"SETINFO" | b"NO-EVICT" | b"NO-TOUCH"), _) => {
            let name = String::from_utf8_lossy(name).to_ascii_lowercase();
            return Err(wrong_arity(&format!("client|{name}")));
        }
        _ => return Err(call.unknown_subcommand()),
    }
    Ok(Outcome::Done)
}

fn describe(out: &mut Vec<u8>, command: &Command) {
    reply::array(out, 6);
    reply::bulk(out, command.name.as_bytes());
    reply::integer(out, i64::from(command.arity));
    reply::array(out, command.flags.split(' ').count());
    for flag in command.flags.split(' ') {
        reply::status(out, flag);
    }
    for number in command.keys {
        reply::integer(out, number);
    }
}

pub(super) fn command(call: &mut Call<'_, '_>) -> Answer {
    match (call.arg(1).to_ascii_uppercase().as_slice(), call.request.len()) {
        (_, 1) | (b"INFO", 2) => {
            reply::array(call.out, COMMANDS.len());
            COMMANDS.iter().for_each(|command| describe(call.out, command));
        }
        (b"COUNT", 2) => reply::integer(call.out, COMMANDS.len() as i64),
        (b"LIST", 2) => {
            reply::array(call.out, COMMANDS.len());
            COMMANDS.iter().for_each(|command| reply::bulk(call.out, command.name.as_bytes()));
        }
        (b"DOCS", _) => reply::array(call.out, 0),
        (b"INFO", count) => {
            call.reserve(count * 256)?;
            reply::array(call.out, count - 2);
            for name in call.request.args(2) {
                match find(name) {
                    Some(command) => describe(call.out, command),
                    None => call.out.extend_from_slice(b"*-1\r\n"),
                }
            }
        }
        _ => return Err(call.unknown_subcommand()),
    }
    Ok(Outcome::Done)
}

pub(super) fn config(call: &mut Call<'_, '_>) -> Answer {
    match (call.arg(1).to_ascii_uppercase().as_slice(), call.request.len()) {
        (b"GET", 3..) => {
            let settings = settings(call);
            let asked = |name: &str| call.request.args(2).any(|glob| glob::matches(glob, name.as_bytes()));
            let found: Vec<_> = settings.iter().filter(|(name, _)| asked(name)).collect();
            reply::array(call.out, found.len() * 2);
            for (name, value) in found {
                reply::bulk(call.out, name.as_bytes());
                reply::bulk(call.out, value.as_bytes());
            }
        }
        (b"GET", _) => return Err(wrong_arity("config|get")),
        (b"SET", 4..) => {
            let mut text = Vec::from(*b"ERR Unknown option or number of arguments for CONFIG SET - '");
            text.extend_from_slice(&call.arg(2)[..call.arg(2).len().min(128)]);
            text.push(b'\'');
            return Err(Stop::Error(text.into()));
        }
        (b"RESETSTAT", 2) => {
            call.db.stats = Default::default();
            reply::ok(call.out);
        }
        _ => return Err(call.unknown_subcommand()),
    }
    Ok(Outcome::Done)
}

fn settings(call: &Call<'_, '_>) -> [(&'static str, String); 9] {
    let logged = call.db.journal.is_some();
    [
        ("appendfsync", "always".to_string()),
        ("appendonly", if logged { "yes" } else { "no" }.to_string()),
        ("databases", "1".to_string()),
        ("maxclients", call.db.limits.max_clients.to_string()),
        ("maxmemory", call.db.limits.max_memory.to_string()),
        ("maxmemory-policy", "noeviction".to_string()),
        ("port", call.db.config.port.to_string()),
        ("proto-max-bulk-len", MAX_BULK_LEN.to_string()),
        ("save", String::new()),
    ]
}

pub(super) fn time(call: &mut Call<'_, '_>) -> Answer {
    let now_us = call.env.wall_base_ns.saturating_add(call.env.now_ns) / 1000;
    reply::array(call.out, 2);
    reply::bulk(call.out, (now_us / 1_000_000).to_string().as_bytes());
    reply::bulk(call.out, (now_us % 1_000_000).to_string().as_bytes());
    Ok(Outcome::Done)
}

pub(super) fn shutdown(call: &mut Call<'_, '_>) -> Answer {
    for word in call.request.args(1) {
        if !matches!(word.to_ascii_uppercase().as_slice(), b"SAVE" | b"NOSAVE" | b"NOW" | b"FORCE") {
            return Err(SYNTAX.into());
        }
    }
    Ok(Outcome::Shutdown)
}

pub(super) fn debug(call: &mut Call<'_, '_>) -> Answer {
    match (call.arg(1).to_ascii_uppercase().as_slice(), call.request.len()) {
        (b"SPIN", 3) => match parse_integer(call.arg(2)) {
            Some(rounds @ 0..) => Ok(Outcome::Spin(rounds as u64)),
            _ => Err(NOT_INTEGER.into()),
        },
        (b"RESTART", 2) => Ok(Outcome::Restart),
        (b"RESTART", _) => Err(wrong_arity("debug|restart")),
        (b"SPIN", _) => Err(wrong_arity("debug|spin")),
        _ => Err(call.unknown_subcommand()),
    }
}

pub(super) fn bgrewriteaof(call: &mut Call<'_, '_>) -> Answer {
    let Some(journal) = &mut call.db.journal else {
        return Err("ERR there is no disk, hence no append only file".into());
    };
    journal.compact();
    reply::status(call.out, "Background append only file rewriting started");
    Ok(Outcome::Done)
}

type Section = fn(&Call<'_, '_>, &mut reply::Text<'_>) -> core::fmt::Result;

pub(super) fn info(call: &mut Call<'_, '_>) -> Answer {
    let mut text = Vec::new();
    let sections: [(&str, Section); 6] = [
        ("Server", info_server),
        ("Clients", info_clients),
        ("Memory", info_memory),
        ("Persistence", info_persistence),
        ("Stats", info_stats),
        ("Keyspace", info_keyspace),
    ];
    let all = [&b"all"[..], b"everything", b"default"];
    let asked = |name: &str| {
        let given = |word: &[u8]| {
            word.eq_ignore_ascii_case(name.as_bytes()) || all.iter().any(|all| word.eq_ignore_ascii_case(all))
        };
        call.request.len() == 1 || call.request.args(1).any(given)
    };
    for (name, section) in sections.into_iter().filter(|(name, _)| asked(name)) {
        let mut text = reply::Text(&mut text);
        let separator = if text.0.is_empty() { "" } else { "\r\n" };
        let written = write!(text, "{separator}# {name}\r\n").and_then(|()| section(call, &mut text));
        written.expect("a vector takes any text");
    }
    reply::bulk(call.out, &text);
    Ok(Outcome::Done)
}

fn info_server(call: &Call<'_, '_>, text: &mut reply::Text<'_>) -> core::fmt::Result {
    write!(
        text,
        "redis_version:{REDIS_VERSION}\r\nredis_mode:standalone\r\nserver_name:minikv\r\n\
         minikv_version:{}\r\narch_bits:64\r\ntcp_port:{}\r\nuptime_in_seconds:{}\r\n",
        env!("CARGO_PKG_VERSION"),
        call.db.config.port,
        call.env.now_ns / 1_000_000_000,
    )
}

fn info_clients(call: &Call<'_, '_>, text: &mut reply::Text<'_>) -> core::fmt::Result {
    let (clients, max) = (call.env.clients, call.db.limits.max_clients);
    write!(text, "connected_clients:{clients}\r\nmaxclients:{max}\r\n")
}

fn info_memory(call: &Call<'_, '_>, text: &mut reply::Text<'_>) -> core::fmt::Result {
    write!(
        text,
        "used_memory:{}\r\nmaxmemory:{}\r\nmaxmemory_policy:noeviction\r\n\
         heap_used:{}\r\nheap_size:{}\r\n",
        call.db.store.used_memory(),
        call.db.limits.max_memory,
        call.env.heap_used,
        call.env.heap_len,
    )
}

fn info_persistence(call: &Call<'_, '_>, text: &mut reply::Text<'_>) -> core::fmt::Result {
    let Some(journal) = &call.db.journal else { return write!(text, "aof_enabled:0\r\n") };
    write!(
        text,
        "aof_enabled:1\r\naof_current_size:{}\r\naof_max_size:{}\r\naof_written_bytes:{}\r\n\
         aof_rewrites:{}\r\naof_epoch:{}\r\naof_durable_seq:{}\r\naof_write_retries:{}\r\n",
        journal.used_len(),
        journal.half_len(),
        journal.written(),
        journal.compactions(),
        journal.epoch(),
        journal.durable_seq(),
        call.db.stats.disk_retries,
    )
}

fn info_stats(call: &Call<'_, '_>, text: &mut reply::Text<'_>) -> core::fmt::Result {
    let stats = &call.db.stats;
    write!(
        text,
        "total_connections_received:{}\r\ntotal_commands_processed:{}\r\nrejected_connections:{}\r\n\
         evicted_clients:{}\r\nkeyspace_hits:{}\r\nkeyspace_misses:{}\r\nexits:{}\r\n",
        stats.connections,
        stats.commands,
        stats.rejected_connections,
        stats.evicted_clients,
        stats.hits,
        stats.misses,
        call.env.exits,
    )
}

fn info_keyspace(call: &Call<'_, '_>, text: &mut reply::Text<'_>) -> core::fmt::Result {
    match call.db.store.len() {
        0 => Ok(()),
        keys => write!(text, "db0:keys={keys},expires=0,avg_ttl=0\r\n"),
    }
}
