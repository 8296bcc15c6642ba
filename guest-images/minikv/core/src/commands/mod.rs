//! The commands: their table, and how a request finds its entry.

mod keys;
mod server;
mod strings;

use alloc::format;
use alloc::vec::Vec;

use crate::database::{Database, Environment, MAX_REPLY_LEN, Outcome, Session, Stop};
use crate::resp::Request;

/// One command under way.
pub(crate) struct Call<'a, 'b> {
    pub db: &'a mut Database,
    pub request: Request<'b>,
    pub session: &'a mut Session,
    pub env: &'a Environment,
    pub out: &'a mut Vec<u8>,
}

pub(crate) type Answer = Result<Outcome, Stop>;

pub(crate) const SYNTAX: &str = "ERR syntax error";
pub(crate) const NOT_INTEGER: &str = "ERR value is not an integer or out of range";
pub(crate) const NO_EXPIRY: &str = "ERR minikv keeps keys until they are deleted: expiry is not supported";

impl<'b> Call<'_, 'b> {
    /// Argument `index`; 0 is the command's name.
    pub fn arg(&self, index: usize) -> &'b [u8] {
        self.request.arg(index)
    }

    /// Makes sure that a reply of `len` bytes fits.
    pub fn reserve(&mut self, len: usize) -> Result<(), Stop> {
        if len > MAX_REPLY_LEN {
            return Err(format!("ERR the reply would exceed {MAX_REPLY_LEN} bytes; ask for less").into());
        }
        self.out.try_reserve(len).map_err(|_| crate::store::OutOfMemory.into())
    }

    /// The error of a subcommand that does not exist.
    pub fn unknown_subcommand(&self) -> Stop {
        let mut text = Vec::from(*b"ERR unknown subcommand '");
        text.extend_from_slice(&self.arg(1)[..self.arg(1).len().min(128)]);
        text.extend_from_slice(b"'. Try ");
        text.extend(self.arg(0).iter().map(u8::to_ascii_uppercase));
        text.extend_from_slice(b" HELP.");
        Stop::Error(text.into())
    }
}

/// What COMMAND says of a command, and the function that runs it.
pub(crate) struct Command {
    pub name: &'static str,
    /// Number of arguments with the name; negative: at least so many.
    pub arity: i32,
    /// `write`, `readonly`, `fast`, …, separated by spaces.
    pub flags: &'static str,
    /// First key, last key (negative: from the end), step.
    pub keys: [i64; 3],
    pub run: fn(&mut Call<'_, '_>) -> Answer,
}

const fn entry(
    name: &'static str,
    arity: i32,
    flags: &'static str,
    keys: [i64; 3],
    run: fn(&mut Call<'_, '_>) -> Answer,
) -> Command {
    Command { name, arity, flags, keys, run }
}

const NO_KEY: [i64; 3] = [0, 0, 0];
const ONE_KEY: [i64; 3] = [1, 1, 1];
const ALL_KEYS: [i64; 3] = [1, -1, 1];
const KEY_VALUES: [i64; 3] = [1, -1, 2];

/// Every command, sorted by name.
#[rustfmt::skip]
pub(crate) static COMMANDS: &[Command] = &[
    entry("append", 3, "write denyoom fast", ONE_KEY, strings::append),
    entry("auth", -2, "noscript loading stale fast no_auth", NO_KEY, server::auth),
    entry("bgrewriteaof", 1, "admin noscript", NO_KEY, server::bgrewriteaof),
    entry("client", -2, "admin noscript loading stale", NO_KEY, server::client),
    entry("command", -1, "loading stale", NO_KEY, server::command),
    entry("config", -2, "admin noscript loading stale", NO_KEY, server::config),
    entry("dbsize", 1, "readonly fast", NO_KEY, keys::dbsize),
    entry("debug", -2, "admin noscript loading stale", NO_KEY, server::debug),
    entry("decr", 2, "write denyoom fast", ONE_KEY, strings::decr),
    entry("decrby", 3, "write denyoom fast", ONE_KEY, strings::decrby),
    entry("del", -2, "write", ALL_KEYS, keys::del),
    entry("echo", 2, "fast", NO_KEY, server::echo),
    entry("exists", -2, "readonly fast", ALL_KEYS, keys::exists),
    entry("expire", -3, "write fast", ONE_KEY, keys::no_expiry),
    entry("flushall", -1, "write", NO_KEY, keys::flush),
    entry("flushdb", -1, "write", NO_KEY, keys::flush),
    entry("get", 2, "readonly fast", ONE_KEY, strings::get),
    entry("getdel", 2, "write fast", ONE_KEY, strings::getdel),
    entry("getrange", 4, "readonly", ONE_KEY, strings::getrange),
    entry("getset", 3, "write denyoom fast", ONE_KEY, strings::getset),
    entry("hello", -1, "noscript loading stale fast no_auth", NO_KEY, server::hello),
    entry("incr", 2, "write denyoom fast", ONE_KEY, strings::incr),
    entry("incrby", 3, "write denyoom fast", ONE_KEY, strings::incrby),
    entry("info", -1, "loading stale", NO_KEY, server::info),
    entry("keys", 2, "readonly", NO_KEY, keys::keys),
    entry("mget", -2, "readonly fast", ALL_KEYS, strings::mget),
    entry("mset", -3, "write denyoom", KEY_VALUES, strings::mset),
    entry("msetnx", -3, "write denyoom", KEY_VALUES, strings::msetnx),
    entry("persist", 2, "write fast", ONE_KEY, keys::persist),
    entry("pexpire", -3, "write fast", ONE_KEY, keys::no_expiry),
    entry("ping", -1, "fast", NO_KEY, server::ping),
    entry("psetex", 4, "write denyoom", ONE_KEY, keys::no_expiry),
    entry("pttl", 2, "readonly fast", ONE_KEY, keys::ttl),
    entry("quit", -1, "noscript loading stale fast no_auth", NO_KEY, server::quit),
    entry("scan", -2, "readonly", NO_KEY, keys::scan),
    entry("select", 2, "loading stale fast", NO_KEY, server::select),
    entry("set", -3, "write denyoom", ONE_KEY, strings::set),
    entry("setex", 4, "write denyoom", ONE_KEY, keys::no_expiry),
    entry("setnx", 3, "write denyoom fast", ONE_KEY, strings::setnx),
    entry("shutdown", -1, "admin noscript loading stale", NO_KEY, server::shutdown),
    entry("strlen", 2, "readonly fast", ONE_KEY, strings::strlen),
    entry("time", 1, "loading stale fast", NO_KEY, server::time),
    entry("touch", -2, "readonly fast", ALL_KEYS, keys::exists),
    entry("ttl", 2, "readonly fast", ONE_KEY, keys::ttl),
    entry("type", 2, "readonly fast", ONE_KEY, keys::type_of),
    entry("unlink", -2, "write fast", ALL_KEYS, keys::del),
];

/// The command of this name, in whatever case.
pub(crate) fn find(name: &[u8]) -> Option<&'static Command> {
    let order = |entry: &&Command| entry.name.bytes().cmp(name.iter().map(u8::to_ascii_lowercase));
    COMMANDS.binary_search_by(|entry| order(&entry)).ok().map(|index| &COMMANDS[index])
}

/// Runs the command that the request names.
pub(crate) fn dispatch(call: &mut Call<'_, '_>) -> Answer {
    let Some(command) = find(call.arg(0)) else { return Err(unknown_command(call.request)) };
    let given = call.request.len();
    let wanted = command.arity.unsigned_abs() as usize;
    if given < wanted || (command.arity > 0 && given != wanted) {
        return Err(wrong_arity(command.name));
    }
    (command.run)(call)
}

/// The error of a wrong number of arguments.
pub(crate) fn wrong_arity(name: &str) -> Stop {
    format!("ERR wrong number of arguments for '{name}' command").into()
}

fn unknown_command(request: Request<'_>) -> Stop {
    let mut text = Vec::from(*b"ERR unknown command '");
    text.extend_from_slice(&request.arg(0)[..request.arg(0).len().min(128)]);
    text.extend_from_slice(b"', with args beginning with: ");
    let start = text.len();
    for arg in request.args(1) {
        let room = 128usize.saturating_sub(text.len() - start);
        if room == 0 {
            break;
        }
        text.push(b'\'');
        text.extend_from_slice(&arg[..arg.len().min(room)]);
        text.extend_from_slice(b"' ");
    }
    Stop::Error(text.into())
}
