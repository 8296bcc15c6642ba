//! Runs the blocks of a document, one after the other.
//!
//! | block | what is done |
//! |---|---|
//! | `sh` | the commands, on each host that `on` names; their exit code must be 0, or `code` |
//! | `sh start=NAME` | started, and left running under this name |
//! | `sh ends=NAME` | that one is ended before, as with Ctrl-C |
//! | `sh until=WORD` | repeated until a line of what it says has this word |
//! | `sh type=LINES` | these lines are typed, commas between |
//! | `sh keys=ctrl-]` | on a terminal, where that key is pressed once the guest's shell asks for a command |
//! | `text of=NAME` | each line is among what NAME says, but for numbers; with `code`, NAME ends with it |
//! | `text` | an example |
//!
//! `guest=NAME` makes a block one of that guest only. Addresses are as in the document: hosts are network
//! namespaces. Directories are replaced by temporary ones.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use lockstep::cluster::DIE_WITH_PARENT;
use lockstep::io::clock::HostClock;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::document::{Block, root, shape};
use crate::hosts::Hosts;

/// The `lockstep` binary.
const PROGRAM: &str = env!("CARGO_BIN_EXE_lockstep");
/// Longest wait for anything, and longest run of a command: a guest that boots on a slow host.
const PATIENCE: Duration = Duration::from_secs(300);
/// Directories that commands name.
const DIRECTORIES: [&str; 2] = ["/var/lib/lockstep", "/run/lockstep"];
/// Set where the program is to be built and installed as the documents say: it takes minutes.
const INSTALL: &str = "LOCKSTEP_TUTORIAL_INSTALL";
/// Where the program is built and installed: this host, in the repository.
const BUILD: &str = "build";

/// What a start is told as long as the disk server has not seen that a process has ended: it is tried again.
const HELD: &str = "is live elsewhere";

fn until<T>(what: &str, mut done: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let end = HostClock.now_ns() + PATIENCE.as_nanos() as u64;
    loop {
        if let Some(found) = done()? {
            return Ok(found);
        }
        ensure!(HostClock.now_ns() < end, "waited {} s for {what}", PATIENCE.as_secs());
        // tidy: allow(sleep) between two looks
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A command under way, in a process group of its own; ended when dropped, with all that it started.
struct Started {
    child: Child,
    log: PathBuf,
    host: String,
    text: String,
}

impl Started {
    fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Waits for its end: the exit code, of a signal as a shell says it.
    fn code(&mut self) -> anyhow::Result<i32> {
        let status = until("a command to end", || Ok(self.child.try_wait()?));
        let status = status.with_context(|| self.said())?;
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
    }

    /// As Ctrl-C does it: it ends well, or by that signal.
    fn interrupt(&mut self) -> anyhow::Result<()> {
        if self.child.try_wait()?.is_none() {
            kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT)?;
        }
        let code = self.code()?;
        ensure!(matches!(code, 0 | 130), "it ended with {code}:\n{}", self.said());
        Ok(())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Who reads the document, and where.
pub struct Runner {
    started: BTreeMap<String, Started>,
    hosts: Hosts,
    names: Vec<&'static str>,
    /// Parts of commands that are others here.
    pub instead: Vec<(String, String)>,
    guest: &'static str,
    commands: u32,
    // Removed last.
    directory: TempDir,
}

impl Runner {
    /// Hosts with these names; the first is where a block without `on` runs.
    pub fn new(hosts: Hosts, names: &[&'static str], guest: &'static str) -> anyhow::Result<Self> {
        let directory = TempDir::new()?;
        for name in names {
            for path in DIRECTORIES {
                let parent = directory.path().join(format!("{name}{path}"));
                std::fs::create_dir_all(parent.parent().context("a path with a parent")?)?;
            }
        }
        std::fs::create_dir(directory.path().join(BUILD))?;
        let names = names.to_vec();
        let started = BTreeMap::new();
        Ok(Self { started, hosts, names, instead: Vec::new(), guest, commands: 0, directory })
    }

    /// Where the commands of a host run.
    pub fn home(&self, host: &str) -> PathBuf {
        self.directory.path().join(host)
    }

    /// What a command that was started has said so far.
    pub fn said(&self, name: &str) -> anyhow::Result<String> {
        Ok(self.named(name)?.said())
    }

    fn named(&self, name: &str) -> anyhow::Result<&Started> {
        self.started.get(name).with_context(|| format!("nothing was started as {name:?}"))
    }

    /// All blocks.
    pub fn run(&mut self, blocks: &[Block]) -> anyhow::Result<()> {
        for block in blocks {
            if block.word("guest").is_none_or(|guest| guest == self.guest) {
                self.block(block).with_context(|| format!("{}:\n{}", block.place, block.text))?;
            }
        }
        Ok(())
    }

    fn block(&mut self, block: &Block) -> anyhow::Result<()> {
        if block.language == "text" {
            return block.word("of").map_or(Ok(()), |name| self.compare(block, name));
        }
        if let Some(name) = block.word("ends") {
            let mut ended = self.started.remove(name).with_context(|| format!("{name:?} was not started"))?;
            ended.interrupt()?;
        }
        let mut hosts = block.list("on");
        if hosts.is_empty() {
            hosts.push(self.names[0]);
        }
        for host in hosts {
            match block.word("start") {
                Some(name) => {
                    let started = self.spawn(host, &block.text, Stdio::null())?;
                    self.started.insert(name.into(), started);
                }
                None => self.commands(block, host)?,
            }
        }
        Ok(())
    }

    /// Commands to their end.
    fn commands(&mut self, block: &Block, host: &str) -> anyhow::Result<()> {
        if host == BUILD && std::env::var_os(INSTALL).is_none() {
            eprintln!("SKIPPED {}: {INSTALL} is not set: installing builds the program anew", block.place);
            return Ok(());
        }
        let due = block.code()?;
        until("the command to do what it should", || {
            let (code, said) = match block.word("keys") {
                Some("ctrl-]") => self.on_terminal(host, &block.text)?,
                Some(other) => bail!("no key {other:?} is known"),
                None => self.once(host, block)?,
            };
            if code != due && said.contains(HELD) {
                return Ok(None);
            }
            match block.word("until") {
                Some(word) if code != due || !has_word(&said, word) => Ok(None),
                _ => {
                    ensure!(code == due, "exit code {code}, {due} is due:\n{said}");
                    Ok(Some(()))
                }
            }
        })
    }

    fn once(&mut self, host: &str, block: &Block) -> anyhow::Result<(i32, String)> {
        let lines = block.list("type");
        let typed = if lines.is_empty() { Stdio::null() } else { Stdio::piped() };
        let mut command = self.spawn(host, &block.text, typed)?;
        if let Some(mut keyboard) = command.child.stdin.take() {
            for line in lines {
                writeln!(keyboard, "{line}")?;
            }
        }
        Ok((command.code()?, command.said()))
    }

    /// Commands on a terminal, and Ctrl-] when a shell has said what it says before a command.
    fn on_terminal(&mut self, host: &str, text: &str) -> anyhow::Result<(i32, String)> {
        let script = self.home(host).join("terminal.sh");
        std::fs::write(&script, self.replaced(host, text))?;
        let line = format!("script -qec 'bash -eu {}' /dev/null", script.display());
        let mut command = self.spawn(host, &line, Stdio::piped())?;
        let mut keyboard = command.child.stdin.take().context("a keyboard")?;
        until("the guest's shell", || {
            let said = command.said();
            ensure!(command.child.try_wait()?.is_none(), "it ended:\n{said}");
            Ok(["~ # ", "/ # "].iter().any(|prompt| said.contains(prompt)).then_some(()))
        })?;
        keyboard.write_all(b"\x1d")?;
        Ok((command.code()?, command.said()))
    }

    fn replaced(&self, host: &str, text: &str) -> String {
        let mut text = text.to_string();
        for (what, instead) in &self.instead {
            text = text.replace(what, instead);
        }
        for path in DIRECTORIES {
            text = text.replace(path, &format!("{}{path}", self.home(host).display()));
        }
        text
    }

    fn spawn(&mut self, host: &str, text: &str, stdin: Stdio) -> anyhow::Result<Started> {
        self.commands += 1;
        let (host, text) = (host.to_string(), text.to_string());
        let commands = self.replaced(&host, &text);
        let log = self.directory.path().join(format!("{}-{host}.log", self.commands));
        let file = std::fs::File::create(&log)?;
        let is_one = commands.trim().lines().count() == 1 && !commands.contains(['|', ';']);
        // So that a signal, and the exit code, are those of the command.
        let commands = if is_one { format!("exec {commands}") } else { commands };
        let mut command = if host == BUILD {
            let mut command = Command::new("bash");
            command.current_dir(root()).env("CARGO_NET_OFFLINE", "true");
            command.env("CARGO_INSTALL_ROOT", self.home(BUILD));
            // What tests run is built with other features, in the folder of theirs.
            command.env("CARGO_TARGET_DIR", root().join("target/installed"));
            command
        } else {
            let index = self.names.iter().position(|name| *name == host);
            let index = index.with_context(|| format!("there is no host {host}"))?;
            let prefix = self.hosts.prefix(index);
            let mut command = Command::new(prefix[0]);
            command.args(&prefix[1..]).arg("bash").current_dir(self.home(&host));
            command.env("PATH", self.path()?).env(DIE_WITH_PARENT, "1");
            command.env("XDG_DATA_HOME", self.home(&host));
            command
        };
        command.args(["-euo", "pipefail", "-c", &commands]);
        command.stdin(stdin).stdout(file.try_clone()?).stderr(file).process_group(0);
        Ok(Started { child: command.spawn()?, log, host, text })
    }

    /// The program first that the document has installed, then the one that was built for tests.
    fn path(&self) -> anyhow::Result<std::ffi::OsString> {
        let built = std::path::Path::new(PROGRAM).parent().context("a folder")?;
        let places = [self.home(BUILD).join("bin"), built.to_path_buf()];
        let before = std::env::var_os("PATH").unwrap_or_default();
        Ok(std::env::join_paths(places.into_iter().chain(std::env::split_paths(&before)))?)
    }

    fn compare(&mut self, block: &Block, name: &str) -> anyhow::Result<()> {
        for line in block.text.lines() {
            let due = shape(line);
            let what = format!("{name} to say {line:?}");
            let waited = until(&what, || {
                let said = self.said(name)?;
                if said.lines().any(|line| shape(line).contains(&due)) {
                    return Ok(Some(()));
                }
                let started = self.started.get_mut(name).context("it was started")?;
                if started.child.try_wait()?.is_some() {
                    ensure!(said.contains(HELD), "{name} ended:\n{said}");
                    let (host, text) = (started.host.clone(), started.text.clone());
                    let again = self.spawn(&host, &text, Stdio::null())?;
                    self.started.insert(name.into(), again);
                }
                Ok(None)
            });
            waited.with_context(|| self.said(name).unwrap_or_default())?;
        }
        if block.word("code").is_some() {
            let started = self.started.get_mut(name).context("it was started")?;
            let (code, due) = (started.code()?, block.code()?);
            ensure!(code == due, "{name} ended with {code}, not {due}:\n{}", started.said());
        }
        Ok(())
    }
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphanumeric()).any(|found| found == word)
}
