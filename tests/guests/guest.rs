//! One guest in a process of its own, whose console the test holds both ends of.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guest_images::cache::Cache;
use lockstep::cluster::{Cluster, ClusterOptions, DIE_WITH_PARENT};
use lockstep::io::clock::HostClock;
use tempfile::TempDir;

/// The command.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_lockstep");
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(300);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Guests run one after the other: each keeps a core busy while it boots.
static TURN: Mutex<()> = Mutex::new(());

/// Disk server and network for a guest.
pub struct World {
    cluster: Cluster,
    directory: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    /// What the guest needs, its image among it; none, said loudly, where that cannot be had.
    pub fn new(image: &str) -> Option<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        if !Cache::new(None).and_then(|cache| cache.find(image)).is_ok_and(|guest| !guest.is_outdated()) {
            let built =
                Command::new(PROGRAM).args(["guest", "build", image]).output().expect("lockstep starts");
            if !built.status.success() {
                let why = String::from_utf8_lossy(&built.stderr);
                println!("SKIPPED: no guest image {image}, and it cannot be built here: {}", why.trim());
                return None;
            }
        }
        let directory = tempfile::tempdir().expect("a directory");
        let options = ClusterOptions::new(PROGRAM, directory.path());
        let cluster = Cluster::start_services(options, |_| {}).expect("disk server and network");
        Some(Self { cluster, directory, _turn: turn })
    }

    /// Runs `lockstep stop` on the control socket `name`; its exit code and what it said.
    pub fn stop(&self, name: &str, options: &[&str]) -> (i32, String) {
        let output = Command::new(PROGRAM).arg("stop").args(options).arg(self.path(name)).output();
        let output = output.expect("lockstep starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().expect("not killed"), said)
    }

    /// Where a file of this name is, for the guest's options.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What is on a disk of the virtual machine vm0, which is off: read from the disk server's file, as its
    /// generation is held no more.
    pub fn disk(&self, name: &str) -> Vec<u8> {
        let file = self.directory.path().join("disks/vms/vm0/disks").join(format!("{name}.img"));
        std::fs::read(file).expect("the disk")
    }

    /// Gives the guest's redis a command; the answer's text.
    pub fn redis(&self, words: &[&str]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.cluster.port())).expect("the network's port");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        stream.write_all(request.as_bytes()).expect("sent");
        let mut line = read_line(&mut stream);
        if line.starts_with('$') {
            line = read_line(&mut stream);
        }
        line
    }
}

fn read_line(stream: &mut TcpStream) -> String {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while !line.ends_with(b"\r\n") {
        stream.read_exact(&mut byte).expect("an answer");
        line.push(byte[0]);
    }
    String::from_utf8_lossy(&line).trim_end().to_string()
}

/// A running guest.
pub struct Guest {
    child: Child,
    input: ChildStdin,
    /// Everything that it and its monitor said.
    said: Arc<Mutex<Vec<u8>>>,
}

impl Guest {
    /// Starts one, its console input from here.
    pub fn start(world: &World, image: &str, options: &[&str]) -> Self {
        Self::start_as(world, image, options, |_| {})
    }

    /// The same; `prepare` changes how the process is started.
    pub fn start_as(
        world: &World,
        image: &str,
        options: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let mut command = Command::new(PROGRAM);
        command.args(["run", "--engine", "soft", "--guest", image, "--console-input", "stdin"]);
        command.args(["--disk-server", world.cluster.disk_address(), "--net", &world.cluster.network()]);
        command.args(options).env(DIE_WITH_PARENT, "1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        prepare(&mut command);
        let mut child = command.spawn().expect("lockstep starts");
        let said = Arc::new(Mutex::new(Vec::new()));
        listen(child.stdout.take().expect("piped"), said.clone());
        listen(child.stderr.take().expect("piped"), said.clone());
        let input = child.stdin.take().expect("piped");
        Self { child, input, said }
    }

    /// Everything said so far.
    pub fn transcript(&self) -> String {
        String::from_utf8_lossy(&self.said.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Whether `text` was said.
    pub fn said(&self, text: &str) -> bool {
        self.transcript().contains(text)
    }

    /// Waits until `text` was said.
    pub fn expect(&mut self, text: &str) {
        self.wait(text, |guest| guest.said(text));
    }

    /// Types a command and waits for a text that is in its output and not in the command.
    pub fn run(&mut self, command: &str, answer: &str) {
        assert!(!command.contains(answer), "the echo would answer");
        self.type_in(&format!("{command}\n"));
        self.expect(answer);
    }

    /// Types.
    pub fn type_in(&mut self, text: &str) {
        self.input.write_all(text.as_bytes()).expect("the console takes input");
        self.input.flush().expect("the console takes input");
    }

    /// Waits for the process' end, and for `last` among its words.
    pub fn ends(&mut self, last: &str) {
        self.wait("the end", |guest| guest.child.try_wait().expect("a child").is_some());
        self.expect(last);
    }

    /// Pulls the plug.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child");
        self.child.wait().expect("a child");
    }

    /// How it ended, if it did.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.try_wait().expect("a child").and_then(|status| status.code())
    }

    /// Waits until `done`.
    pub fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = HostClock.now_ns() + PATIENCE.as_nanos() as u64;
        while !done(self) {
            let over = HostClock.now_ns() > end;
            assert!(!over, "waited {} s for {what:?}:\n{}", PATIENCE.as_secs(), self.transcript());
            // tidy: allow(sleep) between two looks
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Collects what comes from a stream.
fn listen(mut stream: impl Read + Send + 'static, said: Arc<Mutex<Vec<u8>>>) {
    let collect = move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            said.lock().unwrap_or_else(PoisonError::into_inner).extend(&buffer[..count]);
        }
    };
    std::thread::Builder::new().spawn(collect).expect("a thread");
}
