//! RESP2, the Redis protocol: commands out, replies in.

/// Longest reply a client takes, bytes.
pub const MAX_REPLY: usize = 8 << 20;

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`
    Simple(String),
    /// `-ERR …`
    Error(String),
    /// `:1`
    Integer(i64),
    /// `$3…`, or nil.
    Bulk(Option<Vec<u8>>),
    /// `*2…`, or nil.
    Array(Option<Vec<Reply>>),
}

/// Bytes that are no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server's answer is no RESP: {0}")]
pub struct RespError(String);

/// Appends a command.
pub fn command(words: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// The reply at the beginning of `bytes` and its length, if it is whole.
pub fn parse(bytes: &[u8]) -> Result<Option<(Reply, usize)>, RespError> {
    parse_nested(bytes, 0)
}

fn parse_nested(bytes: &[u8], depth: u32) -> Result<Option<(Reply, usize)>, RespError> {
    const MAX_DEPTH: u32 = 8;
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return match bytes.len() > MAX_REPLY || bytes.first().is_some_and(|b| !b"+-:$*".contains(b)) {
            true => Err(RespError(format!(
                "it begins with {:?}",
                String::from_utf8_lossy(&bytes[..bytes.len().min(32)])
            ))),
            false => Ok(None),
        };
    };
    let line = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let after = end + 2;
    let bad = || RespError(format!("line {line:?}"));
    let rest = line.get(1..).unwrap_or_default();
    let number = || rest.parse::<i64>().map_err(|_| bad());
    match bytes[0] {
        b'+' => Ok(Some((Reply::Simple(rest.into()), after))),
        b'-' => Ok(Some((Reply::Error(rest.into()), after))),
        b':' => Ok(Some((Reply::Integer(number()?), after))),
        b'$' => {
            let Ok(len) = usize::try_from(number()?) else { return Ok(Some((Reply::Bulk(None), after))) };
            if len > MAX_REPLY {
                return Err(bad());
            }
            let content = bytes.get(after..after + len);
            let whole = content.filter(|_| bytes.len() >= after + len + 2);
            Ok(whole.map(|content| (Reply::Bulk(Some(content.to_vec())), after + len + 2)))
        }
        b'*' if depth < MAX_DEPTH => {
            let Ok(len) = usize::try_from(number()?) else { return Ok(Some((Reply::Array(None), after))) };
            let (mut items, mut at) = (Vec::new(), after);
            for _ in 0..len {
                let Some((item, used)) = parse_nested(&bytes[at..], depth + 1)? else { return Ok(None) };
                items.push(item);
                at += used;
            }
            Ok(Some((Reply::Array(Some(items)), at)))
        }
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_found_at_any_split() {
        let stream = b"+OK\r\n-ERR no\r\n:-7\r\n$3\r\nabc\r\n$-1\r\n*2\r\n:1\r\n$0\r\n\r\n";
        let expected = [
            Reply::Simple("OK".into()),
            Reply::Error("ERR no".into()),
            Reply::Integer(-7),
            Reply::Bulk(Some(b"abc".to_vec())),
            Reply::Bulk(None),
            Reply::Array(Some(vec![Reply::Integer(1), Reply::Bulk(Some(Vec::new()))])),
        ];
        let (mut at, mut end, mut found) = (0, 0, Vec::new());
        while end < stream.len() {
            end += 1;
            while let Some((reply, used)) = parse(&stream[at..end]).expect("valid") {
                found.push(reply);
                at += used;
            }
        }
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_no_reply_is_an_error() {
        for bytes in [&b"hello"[..], b"$x\r\n", b":one\r\n", b"!\r\n", b"$99999999999\r\n"] {
            assert!(parse(bytes).is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_command_is_an_array_of_bulk_strings() {
        let mut out = Vec::new();
        command(&[b"SET", b"k", b"v\r\n"], &mut out);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\nv\r\n\r\n");
    }
}
