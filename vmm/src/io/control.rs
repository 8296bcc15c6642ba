//! The control socket: a Unix stream socket; each line is a request, each answer one line of JSON.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

const MAX_REQUEST: u64 = 256;
/// For requests that wait for another host.
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(5);

/// Binds the socket, for this user alone; one that a dead process left behind is replaced.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    let (listener, _) = host::unix_socket::bind(path).context("--control")?;
    Ok(listener)
}

/// Answers requests, one connection after the other, until the process ends.
pub fn serve(listener: &UnixListener, answer: impl Fn(&str) -> String) {
    for stream in listener.incoming() {
        let result = stream.and_then(|stream| serve_one(&stream, &answer));
        if let Err(error) = result {
            tracing::debug!(%error, "control socket");
        }
    }
}

fn serve_one(stream: &UnixStream, answer: impl Fn(&str) -> String) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_REQUEST)).read_line(&mut line)?;
    let mut stream = stream;
    writeln!(stream, "{}", answer(line.trim()))
}

/// Asks the process behind `path`.
pub fn ask(path: &Path, request: &str) -> anyhow::Result<String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
        writeln!(stream, "{request}")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line)
    };
    ask().with_context(|| {
        format!("nobody answers on {}: is the process running, with --control?", path.display())
    })
}
