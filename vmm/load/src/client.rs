//! One connection to a server that speaks RESP. It never reconnects: whether a connection survives is what
//! the load is there to find out.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::resp::{self, Reply, RespError};

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The socket failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The server closed it.
    #[error("the connection was closed")]
    Closed,
    /// The server sent no RESP.
    #[error(transparent)]
    Resp(#[from] RespError),
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
}

impl Client {
    /// Connects, with Nagle's algorithm off.
    pub async fn connect(address: SocketAddr) -> Result<Self, ClientError> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(64 << 10), start: 0 })
    }

    /// Sends commands that are encoded already.
    pub async fn send(&mut self, commands: &[u8]) -> Result<(), ClientError> {
        Ok(self.stream.write_all(commands).await?)
    }

    /// The next reply.
    pub async fn receive(&mut self) -> Result<Reply, ClientError> {
        loop {
            if let Some((reply, used)) = resp::parse(&self.buffer[self.start..])? {
                self.start += used;
                if self.start == self.buffer.len() {
                    self.buffer.clear();
                    self.start = 0;
                }
                return Ok(reply);
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(ClientError::Closed);
            }
        }
    }

    /// One command, one reply.
    pub async fn call(&mut self, words: &[&[u8]]) -> Result<Reply, ClientError> {
        let mut out = Vec::new();
        resp::command(words, &mut out);
        self.send(&out).await?;
        self.receive().await
    }

    /// The stream in two halves, for sending at a pace of its own.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }
}
