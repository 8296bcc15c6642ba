//! The Redis serialization protocol, version 2, as servers read it: arrays of bulk strings, and inline
//! commands.
//!
//! The parser is incremental: it keeps its place in a request that is still arriving, so a request costs time
//! linear in its length however it is cut into segments. Its memory is bounded by `MAX_REQUEST_LEN` and
//! `MAX_ARGS`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Longest bulk string, hence longest key and longest value, in bytes.
pub const MAX_BULK_LEN: usize = 1 << 20;
/// Longest request, in bytes as they arrive.
pub const MAX_REQUEST_LEN: usize = MAX_BULK_LEN + (64 << 10);
/// Most arguments of a request, the command's name included.
pub const MAX_ARGS: usize = 1 << 16;
/// Longest inline command, and longest line of a header, in bytes (Redis: PROTO_INLINE_MAX_SIZE).
pub const MAX_LINE_LEN: usize = 64 << 10;
/// How much of what follows a request is read ahead: more than the longest line, so that one that is too long
/// is seen.
const READ_AHEAD: usize = MAX_LINE_LEN + 1024;
/// Capacity above which an emptied buffer is given back.
const KEEP_CAPACITY: usize = 16 << 10;

/// The stream is no RESP (or exceeds a limit): the text goes to the client after `-ERR `, then the connection
/// closes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProtocolError(pub String);

fn error<T>(text: &str) -> Result<T, ProtocolError> {
    Err(ProtocolError(format!("Protocol error: {text}")))
}

/// One request: the command's name and its arguments.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    bytes: &'a [u8],
    ranges: &'a [(u32, u32)],
}

impl<'a> Request<'a> {
    /// How many arguments, the name included; never 0.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there is no argument, which the parser never returns.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Argument `index`; empty if there is none.
    pub fn arg(&self, index: usize) -> &'a [u8] {
        match self.ranges.get(index) {
            Some(&(start, end)) => &self.bytes[start as usize..end as usize],
            None => &[],
        }
    }

    /// The arguments from `first` on.
    pub fn args(self, first: usize) -> impl Iterator<Item = &'a [u8]> {
        (first..self.len()).map(move |index| self.arg(index))
    }

    /// Bytes of all arguments together.
    pub fn weight(&self) -> usize {
        self.ranges.iter().map(|&(start, end)| (end - start) as usize).sum()
    }
}

/// Where in a request the parser stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before a request.
    Start,
    /// In an array, before the header of a bulk string; this many are missing.
    Header(usize),
    /// In an array, before the content of a bulk string of this length; this many are missing, it included.
    Content(usize, usize),
    /// A whole request is there.
    Whole,
}

/// Cuts the bytes of one connection into requests.
#[derive(Debug)]
pub struct Parser {
    buffer: Vec<u8>,
    /// Where the request that is being read begins.
    start: usize,
    /// How far the buffer is understood.
    at: usize,
    /// Up to where no line end was found.
    searched: usize,
    state: State,
    ranges: Vec<(u32, u32)>,
    /// Unquoted arguments of an inline command, where quoting made them differ from the buffer.
    unquoted: Option<Vec<u8>>,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// A parser at the beginning of a stream.
    pub const fn new() -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            at: 0,
            searched: 0,
            state: State::Start,
            ranges: Vec::new(),
            unquoted: None,
        }
    }

    /// How many bytes it would take now: the rest of the bulk string that is arriving, and some read ahead.
    pub fn room(&self) -> usize {
        let pending = self.buffer.len() - self.at;
        let needed = match self.state {
            State::Content(len, _) => len + 2,
            _ => 0,
        };
        (needed + READ_AHEAD).saturating_sub(pending)
    }

    /// Adds bytes as they arrived. False if there is no memory for them; nothing is added then.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        if self.start > 0 {
            self.discard_before_start();
        }
        let missing = match self.state {
            State::Content(len, _) => (len + 2).saturating_sub(self.buffer.len() - self.at),
            _ => 0,
        };
        if self.buffer.capacity() - self.buffer.len() < bytes.len()
            && self.buffer.try_reserve(bytes.len().max(missing)).is_err()
        {
            return false;
        }
        self.buffer.extend_from_slice(bytes);
        true
    }

    fn discard_before_start(&mut self) {
        let start = self.start;
        self.buffer.drain(..start);
        self.at -= start;
        self.searched = self.searched.saturating_sub(start);
        for range in &mut self.ranges {
            range.0 -= start as u32;
            range.1 -= start as u32;
        }
        self.start = 0;
        if self.buffer.is_empty() && self.buffer.capacity() > KEEP_CAPACITY {
            self.buffer = Vec::new();
        }
    }

    /// The request that is next, once it is there whole; the same one until `consume`. After an error the
    /// stream is lost.
    pub fn request(&mut self) -> Result<Option<Request<'_>>, ProtocolError> {
        while self.state != State::Whole {
            let advanced = match self.state {
                State::Start => self.start_of_request()?,
                State::Header(missing) => self.bulk_header(missing)?,
                State::Content(len, missing) => self.bulk_content(len, missing)?,
                State::Whole => true,
            };
            if self.at - self.start > MAX_REQUEST_LEN {
                return error(&format!("request exceeds {MAX_REQUEST_LEN} bytes"));
            }
            if !advanced {
                return Ok(None);
            }
        }
        let bytes = self.unquoted.as_deref().unwrap_or(&self.buffer);
        Ok(Some(Request { bytes, ranges: &self.ranges }))
    }

    /// Goes past the request that `request` returned.
    pub fn consume(&mut self) {
        assert_eq!(self.state, State::Whole, "no request to go past");
        self.state = State::Start;
        self.start = self.at;
        self.searched = self.at;
        self.unquoted = None;
        self.ranges.clear();
        if self.ranges.capacity() > KEEP_CAPACITY / 8 {
            self.ranges = Vec::new();
        }
        if self.start == self.buffer.len() {
            self.discard_before_start();
        }
    }

    /// Bytes of memory it holds.
    pub fn memory(&self) -> usize {
        self.buffer.capacity()
            + self.ranges.capacity() * 8
            + self.unquoted.as_ref().map_or(0, |bytes| bytes.capacity())
    }

    /// The line at `at`, without its end, and moves past it. `too_long` is said of a line that does not end.
    fn line(&mut self, too_long: &str) -> Result<Option<(usize, usize)>, ProtocolError> {
        let from = self.searched.max(self.at);
        let Some(found) = self.buffer[from..].iter().position(|&byte| byte == b'\n') else {
            self.searched = self.buffer.len();
            if self.buffer.len() - self.at > MAX_LINE_LEN {
                return error(too_long);
            }
            return Ok(None);
        };
        let newline = from + found;
        let start = self.at;
        let end = if newline > start && self.buffer[newline - 1] == b'\r' { newline - 1 } else { newline };
        if end - start > MAX_LINE_LEN {
            return error(too_long);
        }
        self.at = newline + 1;
        self.searched = self.at;
        Ok(Some((start, end)))
    }

    fn start_of_request(&mut self) -> Result<bool, ProtocolError> {
        self.start = self.at;
        match self.buffer.get(self.at) {
            None => Ok(false),
            Some(b'*') => self.array_header(),
            Some(_) => self.inline(),
        }
    }

    fn array_header(&mut self) -> Result<bool, ProtocolError> {
        let Some((start, end)) = self.line("too big mbulk count string")? else { return Ok(false) };
        let Some(count) = parse_integer(&self.buffer[start + 1..end]) else {
            return error("invalid multibulk length");
        };
        if count > MAX_ARGS as i64 {
            return error(&format!("invalid multibulk length (at most {MAX_ARGS})"));
        }
        self.ranges.clear();
        // An empty array is no request: Redis goes past it silently.
        self.state = if count <= 0 { State::Start } else { State::Header(count as usize) };
        Ok(true)
    }

    fn bulk_header(&mut self, missing: usize) -> Result<bool, ProtocolError> {
        let Some(&first) = self.buffer.get(self.at) else { return Ok(false) };
        let Some((start, end)) = self.line("too big bulk count string")? else { return Ok(false) };
        if first != b'$' {
            return error(&format!("expected '$', got '{}'", char::from(first).escape_default()));
        }
        match parse_integer(&self.buffer[start + 1..end]) {
            Some(len @ 0..) if len as usize <= MAX_BULK_LEN => {
                if self.at - self.start + len as usize + 2 > MAX_REQUEST_LEN {
                    return error(&format!("request exceeds {MAX_REQUEST_LEN} bytes"));
                }
                self.state = State::Content(len as usize, missing);
                Ok(true)
            }
            _ => error(&format!("invalid bulk length (at most {MAX_BULK_LEN} bytes)")),
        }
    }

    fn bulk_content(&mut self, len: usize, missing: usize) -> Result<bool, ProtocolError> {
        // Redis does not look at the two bytes after the content; neither do we.
        if self.buffer.len() - self.at < len + 2 {
            return Ok(false);
        }
        self.ranges.push((self.at as u32, (self.at + len) as u32));
        self.at += len + 2;
        self.searched = self.at;
        self.state = if missing == 1 { State::Whole } else { State::Header(missing - 1) };
        Ok(true)
    }

    fn inline(&mut self) -> Result<bool, ProtocolError> {
        let Some((start, end)) = self.line("too big inline request")? else { return Ok(false) };
        let mut unquoted = Vec::new();
        self.ranges.clear();
        if split_inline(&self.buffer[start..end], &mut unquoted, &mut self.ranges).is_none() {
            return error("unbalanced quotes in request");
        }
        if !self.ranges.is_empty() {
            self.unquoted = Some(unquoted);
            self.state = State::Whole;
        }
        Ok(true)
    }
}

/// A decimal integer, as Redis' string2ll takes it: no plus sign, no spaces, no leading zeros.
pub fn parse_integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [] => return None,
        [b'0'] => return if negative { None } else { Some(0) },
        [b'0', ..] => return None,
        _ => {}
    }
    let mut value: i64 = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        let digit = i64::from(digit - b'0');
        value = value.checked_mul(10)?;
        value = if negative { value.checked_sub(digit)? } else { value.checked_add(digit)? };
    }
    Some(value)
}

/// Splits a line into arguments with the quoting of Redis' sdssplitargs. None if the quotes do not balance.
fn split_inline(line: &[u8], out: &mut Vec<u8>, ranges: &mut Vec<(u32, u32)>) -> Option<()> {
    let mut rest = line;
    loop {
        while let [first, tail @ ..] = rest {
            if !is_space(*first) {
                break;
            }
            rest = tail;
        }
        if rest.is_empty() {
            return Some(());
        }
        if ranges.len() == MAX_ARGS {
            return None;
        }
        let start = out.len();
        rest = one_argument(rest, out)?;
        ranges.push((start as u32, out.len() as u32));
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c)
}

/// Appends the first argument of `rest` to `out`; returns what follows it.
fn one_argument<'a>(mut rest: &'a [u8], out: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        match rest {
            [] | [0, ..] => return Some(&[]),
            [byte, ..] if is_space(*byte) => return Some(rest),
            [quote @ (b'"' | b'\''), tail @ ..] => {
                rest = quoted(*quote, tail, out)?;
                // A closing quote ends the argument.
                return match rest {
                    [] => Some(rest),
                    [byte, ..] if is_space(*byte) => Some(rest),
                    _ => None,
                };
            }
            [byte, tail @ ..] => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
}

fn quoted<'a>(quote: u8, mut rest: &'a [u8], out: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        match rest {
            [] => return None,
            [b'\\', b'x', high, low, tail @ ..]
                if quote == b'"' && high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
                out.push(digit(*high) << 4 | digit(*low));
                rest = tail;
            }
            [b'\\', escaped, tail @ ..] if quote == b'"' => {
                out.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                rest = tail;
            }
            [b'\\', b'\'', tail @ ..] if quote == b'\'' => {
                out.push(b'\'');
                rest = tail;
            }
            [byte, tail @ ..] if *byte == quote => return Some(tail),
            [byte, tail @ ..] => {
                out.push(*byte);
                rest = tail;
            }
        }
    }
}
