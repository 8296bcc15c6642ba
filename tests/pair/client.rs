//! A small client of the Redis protocol: one connection, one command at a time.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;

use crate::harness::PATIENCE;

/// What the guest answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK` and the like.
    Status(String),
    /// An error of the command; the connection is good.
    Error(String),
    /// A number.
    Integer(i64),
    /// A value, or none.
    Bulk(Option<Vec<u8>>),
}

/// One connection to the guest, through the network's forward.
pub struct Client {
    stream: BufReader<TcpStream>,
}

fn broken(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

impl Client {
    /// Connects to the host port that leads to the guest.
    pub fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Adds one to a number; its new value.
    pub fn incr(&mut self, key: &str) -> io::Result<i64> {
        match self.command(&[b"INCR", key.as_bytes()])? {
            Reply::Integer(value) => Ok(value),
            other => Err(broken(format!("INCR answered {other:?}"))),
        }
    }

    /// Sets a key.
    pub fn set(&mut self, key: &str, value: &str) -> io::Result<()> {
        match self.command(&[b"SET", key.as_bytes(), value.as_bytes()])? {
            Reply::Status(status) if status == "OK" => Ok(()),
            other => Err(broken(format!("SET answered {other:?}"))),
        }
    }

    /// The value of a key.
    pub fn get(&mut self, key: &str) -> io::Result<Option<String>> {
        match self.command(&[b"GET", key.as_bytes()])? {
            Reply::Bulk(value) => Ok(value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())),
            other => Err(broken(format!("GET answered {other:?}"))),
        }
    }

    /// The value of a key that holds a number; 0 if there is none.
    pub fn number(&mut self, key: &str) -> io::Result<i64> {
        let Some(value) = self.get(key)? else { return Ok(0) };
        value.parse().map_err(|_| broken(format!("{key} holds {value:?}, no number")))
    }

    /// Asks the guest to power off. No answer comes, nor does the connection end: there is nobody to end it.
    pub fn shutdown(mut self) -> io::Result<()> {
        self.send(&[b"SHUTDOWN"])
    }

    /// Has the guest reset its machine. No answer comes.
    pub fn restart(mut self) -> io::Result<()> {
        self.send(&[b"DEBUG", b"RESTART"])
    }

    /// A handle that ends the connection from elsewhere.
    pub fn closer(&self) -> io::Result<TcpStream> {
        self.stream.get_ref().try_clone()
    }

    /// Sends one command and waits for its answer.
    pub fn command(&mut self, words: &[&[u8]]) -> io::Result<Reply> {
        self.send(words)?;
        self.reply()
    }

    /// Sends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    fn send(&mut self, words: &[&[u8]]) -> io::Result<()> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        }
        self.raw(&request)
    }

    /// The next answer.
    pub fn reply(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end_matches(['\r', '\n']);
        let number = |text: &str| text.parse::<i64>().map_err(|_| broken(format!("not a number: {text:?}")));
        let (kind, text) = (line.get(..1).unwrap_or_default(), line.get(1..).unwrap_or_default());
        match kind {
            "+" => Ok(Reply::Status(text.to_string())),
            "-" => Ok(Reply::Error(text.to_string())),
            ":" => Ok(Reply::Integer(number(text)?)),
            "$" => match number(text)? {
                -1 => Ok(Reply::Bulk(None)),
                length => {
                    let length = usize::try_from(length).map_err(|_| broken(line.to_string()))?;
                    let mut value = vec![0; length + 2];
                    self.stream.read_exact(&mut value)?;
                    value.truncate(length);
                    Ok(Reply::Bulk(Some(value)))
                }
            },
            _ => Err(broken(format!("not an answer: {line:?}"))),
        }
    }
}
