//! The control socket: a Unix stream socket; a connection brings one request, a line, and gets one line of
//! JSON.
//!
//! Clients are served side by side, so that one whose answer takes long keeps nobody else waiting. Each has
//! so much time and so many bytes for its request; past so many clients, the next is told that it is one too
//! many.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;

use crate::io::clock::HostClock;

/// Longest request, in bytes, with its end.
const MAX_REQUEST: usize = 256;
/// Most clients at once.
const MAX_CLIENTS: usize = 32;
/// For requests that wait for another host.
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);
/// How long a client may take to say its request, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts to accept when the host has no room for another connection.
const NO_ROOM: Duration = Duration::from_millis(50);

/// Binds the socket, for this user alone; one that a dead process left behind is replaced.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    let (listener, _) = host::unix_socket::bind(path).context("--control")?;
    Ok(listener)
}

/// An error, as an answer.
pub fn error(text: impl Into<String>) -> String {
    serde_json::json!({ "error": text.into() }).to_string()
}

/// A client's place, free again when dropped.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Answers requests until the process ends.
pub fn serve(listener: &UnixListener, answer: impl Fn(&str) -> String + Send + Sync + 'static) {
    let (answer, clients) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, "control socket");
                std::thread::sleep(NO_ROOM);
                continue;
            }
        };
        let others = clients.fetch_add(1, Ordering::AcqRel);
        let place = Place(clients.clone());
        if others >= MAX_CLIENTS {
            let busy = error(format!("{MAX_CLIENTS} clients are asking already: ask again"));
            let _ = stream.set_nonblocking(true).and_then(|()| writeln!(&stream, "{busy}"));
            continue;
        }
        let answer = answer.clone();
        let serve = move || {
            let _place = place;
            if let Err(error) = serve_one(&stream, &*answer) {
                tracing::debug!(%error, "control socket");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("control-client".into()).spawn(serve) {
            tracing::debug!(%error, "control socket");
        }
    }
}

fn serve_one(mut stream: &UnixStream, answer: &dyn Fn(&str) -> String) -> std::io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let answer = match read_request(stream)? {
        Ok(request) => answer(request.trim()),
        Err(wrong) => error(wrong),
    };
    writeln!(stream, "{answer}")
}

/// The request, or what is wrong with it.
fn read_request(mut stream: &UnixStream) -> std::io::Result<Result<String, String>> {
    let end = HostClock.now_ns() + PATIENCE.as_nanos() as u64;
    let (mut bytes, mut chunk) = (Vec::new(), [0; MAX_REQUEST]);
    loop {
        let left = end.saturating_sub(HostClock.now_ns());
        if left == 0 {
            return Ok(Err(format!("no request came within {} s", PATIENCE.as_secs())));
        }
        stream.set_read_timeout(Some(Duration::from_nanos(left)))?;
        let count = match stream.read(&mut chunk) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        bytes.extend_from_slice(&chunk[..count]);
        let line = bytes.iter().position(|&byte| byte == b'\n');
        if line.unwrap_or(bytes.len()) >= MAX_REQUEST {
            return Ok(Err(format!("a request has at most {} bytes", MAX_REQUEST - 1)));
        }
        if let Some(length) = line.or((count == 0).then_some(bytes.len())) {
            bytes.truncate(length);
            return Ok(String::from_utf8(bytes).map_err(|_| "the request is not UTF-8".into()));
        }
    }
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
