//! A shell on a TCP connection, as over telnet: its host dies in the middle of a loop, and it goes on.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use guest_images::cache::Cache;
use lockstep::cluster::{Cluster, Part};

use crate::machine::BUSYBOX;
use crate::support::{case, one_live_copy, shut_down, until, wait_alone, wait_replicating};

const PORT: u16 = 23;
/// What the loop counts to, and where the primary is killed.
const COUNT: u64 = 400;
const KILL_AT: u64 = 150;

#[test]
fn a_shell_over_tcp_survives_a_failover() {
    case("a_shell_over_tcp_survives_a_failover", &BUSYBOX, interrupted_session);
}

fn interrupted_session(directory: &Path) -> anyhow::Result<()> {
    let mut options = BUSYBOX.options(directory);
    let command_line = Cache::new(None)?.find("busybox")?.manifest.command_line;
    options.vm_options.extend(["--cmdline".into(), format!("{command_line} session={PORT}")]);
    options.guest_port = PORT;
    options.answers = |port| Session::open(port)?.has_prompt();
    let mut cluster = Cluster::start(options, |_| {})?;
    wait_replicating(&mut cluster, 1)?;

    let mut session = Session::open(cluster.port())?;
    session.wait_for("a prompt", |text| text.contains("# "))?;
    session.send("x=42; mkdir -p /tmp/deep; cd /tmp/deep; echo shell $$ in $PWD\r\n")?;
    let shell = session.wait_for_line("the shell's number", |line| {
        line.strip_prefix("shell ")?.strip_suffix(" in /tmp/deep")?.parse::<u64>().ok()
    })?;
    // What is typed while the loop runs is not to be shown among its lines.
    session.send(&format!(
        "stty -echo; i=0; while [ $i -lt {COUNT} ]; do i=$((i+1)); echo tick $i $x; usleep 2000; done; \
         stty echo; echo counted $i\r\n"
    ))?;
    session.wait_for_line("the middle of the loop", |line| (tick(line)? == KILL_AT).then_some(()))?;
    cluster.kill(Part::Primary)?;
    session.send("echo typed at $i by $$ in $PWD with $x\r\n")?;
    let told = session.wait_for_line("what was typed meanwhile", |line| {
        line.strip_prefix("typed at ")?.starts_with(|c: char| c.is_ascii_digit()).then(|| line.to_string())
    })?;
    ensure!(told == format!("typed at {COUNT} by {shell} in /tmp/deep with 42"), "{told:?}");
    let ticks: Vec<u64> = session.text().lines().filter_map(tick).collect();
    ensure!(ticks == (1..=COUNT).collect::<Vec<_>>(), "not every number once: {ticks:?}");

    wait_alone(&mut cluster, Part::Backup)?;
    session.send("exit\r\n")?;
    session.wait_for_end()?;
    one_live_copy(&mut cluster, Part::Backup, 2)?;
    shut_down(&mut cluster, Part::Backup, false)
}

/// The number of a line of the loop.
fn tick(line: &str) -> Option<u64> {
    line.strip_prefix("tick ")?.strip_suffix(" 42")?.parse().ok()
}

/// One connection to the guest's telnetd.
struct Session {
    stream: TcpStream,
    bytes: Vec<u8>,
    ended: bool,
}

impl Session {
    fn open(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(Self { stream, bytes: Vec::new(), ended: false })
    }

    fn send(&mut self, text: &str) -> std::io::Result<()> {
        self.stream.write_all(text.as_bytes())
    }

    /// Takes what has come, or waits a moment for it.
    fn receive(&mut self) -> std::io::Result<()> {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.ended = true,
            Ok(count) => self.bytes.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Whether the shell asks for a command, before anything takes a moment too long.
    fn has_prompt(&mut self) -> std::io::Result<bool> {
        while !self.text().contains("# ") {
            let before = self.bytes.len();
            self.receive()?;
            if self.bytes.len() == before {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What was said, without telnet's commands (RFC 854: IAC, WILL to DONT, an option) and carriage returns.
    fn text(&self) -> String {
        const IAC: u8 = 255;
        let mut text = Vec::new();
        let mut rest = self.bytes.as_slice();
        while let Some((&byte, after)) = rest.split_first() {
            rest = match (byte, after) {
                (IAC, [251..=254, _, after @ ..]) => after,
                (b'\r', _) => after,
                _ => {
                    text.push(byte);
                    after
                }
            };
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    fn wait_for(&mut self, what: &str, found: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let waited = until(what, || {
            ensure!(!self.ended, "the connection ended");
            self.receive()?;
            Ok(found(&self.text()))
        });
        waited.with_context(|| self.text())
    }

    /// Waits for a whole line in which `found` finds something; that.
    fn wait_for_line<T>(&mut self, what: &str, found: impl Fn(&str) -> Option<T>) -> anyhow::Result<T> {
        let whole = |text: &str| text.rsplit_once('\n').map_or(0, |(whole, _)| whole.len());
        let find = |text: &str| text[..whole(text)].lines().find_map(&found);
        self.wait_for(what, |text| find(text).is_some())?;
        find(&self.text()).context("it was found")
    }

    /// The guest ends the connection.
    fn wait_for_end(&mut self) -> anyhow::Result<()> {
        until("the session to end", || {
            self.receive()?;
            Ok(self.ended)
        })
    }
}
