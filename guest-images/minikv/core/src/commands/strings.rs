//! Commands on the value of a key.

use alloc::vec::Vec;

use super::{Answer, Call, NO_EXPIRY, NOT_INTEGER, SYNTAX, wrong_arity};
use crate::database::{Outcome, Stop};
use crate::log::Op;
use crate::reply;
use crate::resp::{MAX_BULK_LEN, parse_integer};

impl Call<'_, '_> {
    fn count_read(&mut self, found: bool) {
        if found {
            self.db.stats.hits += 1;
        } else {
            self.db.stats.misses += 1;
        }
    }

    /// Answers with the value of `key`, or nil.
    fn answer_value(&mut self, key: &[u8]) -> Result<(), Stop> {
        let len = self.db.store.get(key).map_or(0, <[u8]>::len);
        self.reserve(reply::bulk_len(len))?;
        reply::bulk_or_nil(self.out, self.db.store.get(key));
        Ok(())
    }
}

pub(super) fn get(call: &mut Call<'_, '_>) -> Answer {
    let key = call.arg(1);
    call.count_read(call.db.store.get(key).is_some());
    call.answer_value(key)?;
    Ok(Outcome::Done)
}

#[derive(Default)]
struct SetOptions {
    only_new: bool,
    only_old: bool,
    get: bool,
}

fn set_options(call: &Call<'_, '_>) -> Result<SetOptions, Stop> {
    let mut options = SetOptions::default();
    for word in call.request.args(3) {
        match word.to_ascii_uppercase().as_slice() {
            b"NX" if !options.only_old => options.only_new = true,
            b"XX" if !options.only_new => options.only_old = true,
            b"GET" => options.get = true,
            b"KEEPTTL" => {}
            b"EX" | b"PX" | b"EXAT" | b"PXAT" => return Err(NO_EXPIRY.into()),
            _ => return Err(SYNTAX.into()),
        }
    }
    Ok(options)
}

pub(super) fn set(call: &mut Call<'_, '_>) -> Answer {
    let (key, value) = (call.arg(1), call.arg(2));
    let options = set_options(call)?;
    if options.get {
        call.answer_value(key)?;
    }
    let exists = call.db.store.get(key).is_some();
    let refused = (options.only_new && exists) || (options.only_old && !exists);
    if !refused {
        call.db.write(&[Op::Set(key, value)])?;
    }
    match (options.get, refused) {
        (true, _) => {}
        (false, true) => reply::nil(call.out),
        (false, false) => reply::ok(call.out),
    }
    Ok(Outcome::Done)
}

pub(super) fn setnx(call: &mut Call<'_, '_>) -> Answer {
    let key = call.arg(1);
    let exists = call.db.store.get(key).is_some();
    if !exists {
        call.db.write(&[Op::Set(key, call.arg(2))])?;
    }
    reply::integer(call.out, i64::from(!exists));
    Ok(Outcome::Done)
}

pub(super) fn getset(call: &mut Call<'_, '_>) -> Answer {
    let key = call.arg(1);
    call.answer_value(key)?;
    call.db.write(&[Op::Set(key, call.arg(2))])?;
    Ok(Outcome::Done)
}

pub(super) fn getdel(call: &mut Call<'_, '_>) -> Answer {
    let key = call.arg(1);
    call.answer_value(key)?;
    if call.db.store.get(key).is_some() {
        call.db.write(&[Op::Delete(key)])?;
    }
    Ok(Outcome::Done)
}

pub(super) fn strlen(call: &mut Call<'_, '_>) -> Answer {
    let value = call.db.store.get(call.arg(1));
    let (found, len) = (value.is_some(), value.map_or(0, <[u8]>::len));
    call.count_read(found);
    reply::integer(call.out, len as i64);
    Ok(Outcome::Done)
}

pub(super) fn getrange(call: &mut Call<'_, '_>) -> Answer {
    let (Some(start), Some(end)) = (parse_integer(call.arg(2)), parse_integer(call.arg(3))) else {
        return Err(NOT_INTEGER.into());
    };
    call.reserve(reply::bulk_len(MAX_BULK_LEN))?;
    let value = call.db.store.get(call.arg(1)).unwrap_or_default();
    let len = value.len() as i64;
    let backwards = start < 0 && end < 0 && start > end;
    let place = |index: i64| if index < 0 { index.saturating_add(len).max(0) } else { index };
    let (start, end) = (place(start), place(end).min(len - 1));
    let range = if backwards || start > end { &[] } else { &value[start as usize..=end as usize] };
    reply::bulk(call.out, range);
    Ok(Outcome::Done)
}

pub(super) fn append(call: &mut Call<'_, '_>) -> Answer {
    let (key, tail) = (call.arg(1), call.arg(2));
    let old_len = call.db.store.get(key).map_or(0, <[u8]>::len);
    let len = old_len + tail.len();
    if len > MAX_BULK_LEN {
        return Err("ERR string exceeds maximum allowed size (proto-max-bulk-len)".into());
    }
    if !tail.is_empty() || call.db.store.get(key).is_none() {
        call.db.write(&[Op::Append(key, tail)])?;
    }
    reply::integer(call.out, len as i64);
    Ok(Outcome::Done)
}

fn add(call: &mut Call<'_, '_>, delta: i64) -> Answer {
    let key = call.arg(1);
    let old = match call.db.store.get(key) {
        Some(value) => parse_integer(value).ok_or(NOT_INTEGER)?,
        None => 0,
    };
    let new = old.checked_add(delta).ok_or("ERR increment or decrement would overflow")?;
    let mut value = Vec::new();
    reply::decimal(&mut value, new);
    call.db.write(&[Op::Set(key, &value)])?;
    reply::integer(call.out, new);
    Ok(Outcome::Done)
}

pub(super) fn incr(call: &mut Call<'_, '_>) -> Answer {
    add(call, 1)
}

pub(super) fn decr(call: &mut Call<'_, '_>) -> Answer {
    add(call, -1)
}

pub(super) fn incrby(call: &mut Call<'_, '_>) -> Answer {
    let delta = parse_integer(call.arg(2)).ok_or(NOT_INTEGER)?;
    add(call, delta)
}

pub(super) fn decrby(call: &mut Call<'_, '_>) -> Answer {
    let delta = parse_integer(call.arg(2)).ok_or(NOT_INTEGER)?;
    let negated = delta.checked_neg().ok_or("ERR decrement would overflow")?;
    add(call, negated)
}

pub(super) fn mget(call: &mut Call<'_, '_>) -> Answer {
    let len = |key| reply::bulk_len(call.db.store.get(key).map_or(0, <[u8]>::len));
    let total = call.request.args(1).map(len).sum::<usize>();
    call.reserve(total + 32)?;
    reply::array(call.out, call.request.len() - 1);
    for key in call.request.args(1) {
        let value = call.db.store.get(key);
        reply::bulk_or_nil(call.out, value);
        call.count_read(call.db.store.get(key).is_some());
    }
    Ok(Outcome::Done)
}

fn pairs<'b>(call: &Call<'_, 'b>, name: &str) -> Result<Vec<Op<'b>>, Stop> {
    if call.request.len().is_multiple_of(2) {
        return Err(wrong_arity(name));
    }
    let mut ops = Vec::new();
    ops.try_reserve_exact(call.request.len() / 2).map_err(|_| crate::store::OutOfMemory)?;
    ops.extend((1..call.request.len()).step_by(2).map(|at| Op::Set(call.arg(at), call.arg(at + 1))));
    Ok(ops)
}

pub(super) fn mset(call: &mut Call<'_, '_>) -> Answer {
    let ops = pairs(call, "mset")?;
    call.db.write(&ops)?;
    reply::ok(call.out);
    Ok(Outcome::Done)
}

pub(super) fn msetnx(call: &mut Call<'_, '_>) -> Answer {
    let ops = pairs(call, "msetnx")?;
    let store = &call.db.store;
    let exists = ops.iter().any(|op| matches!(op, Op::Set(key, _) if store.get(key).is_some()));
    if !exists {
        call.db.write(&ops)?;
    }
    reply::integer(call.out, i64::from(!exists));
    Ok(Outcome::Done)
}
