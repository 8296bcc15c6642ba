//! Commands on keys, and on all of them.

use alloc::vec::Vec;

use super::{Answer, Call, NO_EXPIRY, NOT_INTEGER, SYNTAX};
use crate::database::{Outcome, Stop};
use crate::glob;
use crate::log::Op;
use crate::reply;
use crate::resp::parse_integer;

/// Most keys that one SCAN looks at, whatever COUNT says.
const MAX_SCAN_COUNT: i64 = 10_000;

pub(super) fn del(call: &mut Call<'_, '_>) -> Answer {
    let mut there: Vec<&[u8]> = Vec::new();
    there.try_reserve_exact(call.request.len()).map_err(|_| crate::store::OutOfMemory)?;
    there.extend(call.request.args(1).filter(|key| call.db.store.get(key).is_some()));
    there.sort_unstable();
    there.dedup();
    if !there.is_empty() {
        let mut ops = Vec::new();
        ops.try_reserve_exact(there.len()).map_err(|_| crate::store::OutOfMemory)?;
        ops.extend(there.iter().map(|key| Op::Delete(key)));
        call.db.write(&ops)?;
    }
    reply::integer(call.out, there.len() as i64);
    Ok(Outcome::Done)
}

pub(super) fn exists(call: &mut Call<'_, '_>) -> Answer {
    let count = call.request.args(1).filter(|key| call.db.store.get(key).is_some()).count();
    reply::integer(call.out, count as i64);
    Ok(Outcome::Done)
}

pub(super) fn dbsize(call: &mut Call<'_, '_>) -> Answer {
    reply::integer(call.out, call.db.store.len() as i64);
    Ok(Outcome::Done)
}

pub(super) fn flush(call: &mut Call<'_, '_>) -> Answer {
    let mode = call.arg(1).to_ascii_uppercase();
    if call.request.len() > 2 || !matches!(mode.as_slice(), b"" | b"ASYNC" | b"SYNC") {
        return Err(SYNTAX.into());
    }
    if !call.db.store.is_empty() {
        call.db.write(&[Op::Clear])?;
    }
    reply::ok(call.out);
    Ok(Outcome::Done)
}

pub(super) fn type_of(call: &mut Call<'_, '_>) -> Answer {
    let exists = call.db.store.get(call.arg(1)).is_some();
    reply::status(call.out, if exists { "string" } else { "none" });
    Ok(Outcome::Done)
}

pub(super) fn ttl(call: &mut Call<'_, '_>) -> Answer {
    let exists = call.db.store.get(call.arg(1)).is_some();
    reply::integer(call.out, if exists { -1 } else { -2 });
    Ok(Outcome::Done)
}

pub(super) fn persist(call: &mut Call<'_, '_>) -> Answer {
    reply::integer(call.out, 0);
    Ok(Outcome::Done)
}

pub(super) fn no_expiry(_: &mut Call<'_, '_>) -> Answer {
    Err(NO_EXPIRY.into())
}

pub(super) fn keys(call: &mut Call<'_, '_>) -> Answer {
    let pattern = call.arg(1);
    let (mut count, mut len) = (0, 0);
    for (key, _) in call.db.store.iter().filter(|(key, _)| glob::matches(pattern, key)) {
        count += 1;
        len += reply::bulk_len(key.len());
    }
    call.reserve(len + 32)?;
    reply::array(call.out, count);
    for (key, _) in call.db.store.iter().filter(|(key, _)| glob::matches(pattern, key)) {
        reply::bulk(call.out, key);
    }
    Ok(Outcome::Done)
}

struct ScanOptions<'b> {
    pattern: &'b [u8],
    count: usize,
    strings: bool,
}

fn scan_options<'b>(call: &Call<'_, 'b>) -> Result<ScanOptions<'b>, Stop> {
    let mut options = ScanOptions { pattern: b"*", count: 10, strings: true };
    let mut at = 2;
    while at < call.request.len() {
        if at + 1 == call.request.len() {
            return Err(SYNTAX.into());
        }
        let value = call.arg(at + 1);
        match call.arg(at).to_ascii_uppercase().as_slice() {
            b"MATCH" => options.pattern = value,
            b"COUNT" => {
                let count = parse_integer(value).ok_or(NOT_INTEGER)?;
                if count < 1 {
                    return Err(SYNTAX.into());
                }
                options.count = count.min(MAX_SCAN_COUNT) as usize;
            }
            b"TYPE" => options.strings = value.eq_ignore_ascii_case(b"string"),
            _ => return Err(SYNTAX.into()),
        }
        at += 2;
    }
    Ok(options)
}

pub(super) fn scan(call: &mut Call<'_, '_>) -> Answer {
    let cursor = core::str::from_utf8(call.arg(1)).ok().and_then(|text| text.parse().ok());
    let cursor: u64 = cursor.ok_or("ERR invalid cursor")?;
    let options = scan_options(call)?;
    let (mut count, mut len) = (0, 0);
    let wanted = |key: &[u8]| options.strings && glob::matches(options.pattern, key);
    let next = call.db.store.scan(cursor, options.count, |key| {
        if wanted(key) {
            count += 1;
            len += reply::bulk_len(key.len());
        }
    });
    call.reserve(len + 64)?;
    let mut text = Vec::new();
    reply::decimal(&mut text, next as i64);
    reply::array(call.out, 2);
    reply::bulk(call.out, &text);
    reply::array(call.out, count);
    let out = &mut *call.out;
    call.db.store.scan(cursor, options.count, |key| {
        if wanted(key) {
            reply::bulk(out, key);
        }
    });
    Ok(Outcome::Done)
}
