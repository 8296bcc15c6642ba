//! The two hosts of a pair as two network namespaces, the disk server in a third: the link between the hosts
//! goes down, so that entries, acks and heartbeats are lost together, while both still reach the disk server.
//!
//! ```text
//!   namespace A            namespace C              namespace B
//!   primary ── 10.99.0.1   bridge 10.99.0.3   10.99.0.2 ── backup
//!                  └──────── port   port ────────┘            ports isolated from each other: the cut
//! ```
//!
//! The network of the guest is a Unix socket, which every namespace reaches, and so do the clients.

use std::path::Path;
use std::process::{Command, Output};

use disk_server::client::DiskClient;
use disk_server::protocol::VmState;
use lockstep::io::control;
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::harness::{OTHER_LIVE, PATIENCE, Pair, Process, VM, scale, wait_until};
use crate::load::Load;

const DISK_SERVER: &str = "10.99.0.3:7411";
const CONNECTIONS: usize = 4;
const SOME: u64 = 200;

fn run(words: &str) -> Option<Output> {
    let words: Vec<&str> = words.split_whitespace().collect();
    Command::new(words[0]).args(&words[1..]).output().ok()
}

fn must(words: &str) {
    let output = run(words).unwrap_or_else(|| panic!("cannot run {words}"));
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Three namespaces, removed when dropped.
pub struct Hosts {
    names: [String; 3],
}

impl Hosts {
    /// None where this process may not make any.
    pub fn new(test: &str) -> Option<Self> {
        let id = std::process::id();
        let names = ["a", "b", "c"].map(|name| format!("lockstep-{id}-{name}"));
        let hosts = Self { names };
        let made = hosts
            .names
            .iter()
            .all(|name| run(&format!("ip netns add {name}")).is_some_and(|output| output.status.success()));
        let bridged = made && hosts.inside(2, "ip link add bridge0 type bridge");
        if !bridged || run("bridge -V").is_none() {
            eprintln!("SKIPPED {test}: network namespaces need root, iproute2 and a kernel with bridges");
            return None;
        }
        hosts.connect();
        Some(hosts)
    }

    fn inside(&self, host: usize, words: &str) -> bool {
        let output = run(&format!("ip netns exec {} {words}", self.names[host]));
        output.is_some_and(|output| output.status.success())
    }

    pub fn must(&self, host: usize, words: &str) {
        must(&format!("ip netns exec {} {words}", self.names[host]));
    }

    fn connect(&self) {
        let bridge = &self.names[2];
        self.must(2, "ip addr add 10.99.0.3/24 dev bridge0");
        self.must(2, "ip link set bridge0 up");
        self.must(2, "ip link set lo up");
        for host in [0, 1] {
            let port = format!("port{host}");
            self.must(host, &format!("ip link add eth0 type veth peer name {port} netns {bridge}"));
            self.must(host, &format!("ip addr add 10.99.0.{}/24 dev eth0", host + 1));
            self.must(host, "ip link set eth0 up");
            self.must(host, "ip link set lo up");
            self.must(2, &format!("ip link set {port} master bridge0 up"));
        }
    }

    /// Lets the two hosts reach each other, or not. Both always reach the third.
    fn link(&self, up: bool) {
        for host in [0, 1] {
            let isolated = if up { "off" } else { "on" };
            self.must(2, &format!("bridge link set dev port{host} isolated {isolated}"));
        }
    }

    /// Lets a host reach the disk server, or not. The hosts always reach each other.
    pub fn disk_link(&self, host: usize, up: bool) {
        let change = if up { "del" } else { "add" };
        self.must(host, &format!("ip route {change} blackhole 10.99.0.3/32"));
    }

    /// Has a host's TCP sockets hold little.
    pub fn small_buffers(&self, host: usize) {
        for which in ["rmem", "wmem"] {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &self.names[host], "sysctl", "-q", "-w"]);
            command.arg(format!("net.ipv4.tcp_{which}=4096 16384 65536"));
            assert!(command.status().is_ok_and(|status| status.success()), "{command:?}");
        }
    }

    fn spawn(&self, host: usize, directory: &Path, name: &str, arguments: &[&str]) -> Process {
        Process::spawn(directory, name, &["ip", "netns", "exec", &self.names[host]], arguments)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = run(&format!("ip netns del {name}"));
        }
    }
}

/// What a process says of itself; nothing if it does not answer.
pub fn state(directory: &Path, name: &str) -> Value {
    let text = control::ask(&directory.join(format!("{name}.sock")), "status").unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

#[test]
fn the_link_between_the_hosts_goes_down_and_one_copy_goes_on() {
    let test = "the_link_between_the_hosts_goes_down";
    for _ in 0..scale() {
        // Only its network is used, and its turn.
        let Some(pair) = Pair::services(test, |_| {}) else { return };
        let Some(hosts) = Hosts::new(test) else { return };
        one_round(&pair, &hosts);
    }
}

/// A pair in two namespaces, with its disk server in the third.
pub struct FarPair {
    pub disks: Process,
    pub backup: Process,
    pub primary: Process,
}

impl FarPair {
    /// Starts all three; the guest answers at the port of `pair`, whose network it uses.
    pub fn start(pair: &Pair, hosts: &Hosts) -> Self {
        Self::start_with(pair, hosts, &[])
    }

    /// The same, with more options of the primary.
    pub fn start_with(pair: &Pair, hosts: &Hosts, more: &[&str]) -> Self {
        let directory = pair.directory();
        let (data, network) = (directory.join("far-disks").display().to_string(), pair.network());
        let sockets = ["far-primary", "far-backup"].map(|name| directory.join(format!("{name}.sock")));
        let [primary_socket, backup_socket] = sockets.map(|path| path.display().to_string());
        let disk_server = ["disk-server", "--listen", DISK_SERVER, "--data", &data];
        let mut disks = hosts.spawn(2, directory, "far-disk-server", &disk_server);
        disks.wait_for_line("disk-server listening on ");
        let machine = [
            &["--disk-server", DISK_SERVER, "--net", &network, "--disk-size", "64"][..],
            &["--memory", "128", "--control"],
        ]
        .concat();
        let backup = [&["backup", "--listen", "10.99.0.2:7700"][..], &machine, &[&backup_socket]].concat();
        let mut backup = hosts.spawn(1, directory, "far-backup", &backup);
        backup.wait_for_line("backup listening on ");
        let primary = ["primary", "--backup", "10.99.0.2:7700"];
        let primary = [&primary[..], &machine, &[&primary_socket], more].concat();
        let mut primary = hosts.spawn(0, directory, "far-primary", &primary);
        wait_until("the pair to be one", || {
            assert!(primary.runs(), "{}", primary.output());
            state(directory, "far-primary")["live"]["state"] == "Replicating"
        });
        wait_until("the guest to answer", || lockstep::cluster::ping(pair.port()).unwrap_or(false));
        Self { disks, backup, primary }
    }
}

fn one_round(pair: &Pair, hosts: &Hosts) {
    let directory = pair.directory();
    let FarPair { mut backup, mut primary, disks: _disks } = FarPair::start(pair, hosts);
    let load = Load::start(pair.port(), CONNECTIONS);
    load.wait_for(SOME);

    hosts.link(false);
    wait_until("one half to end", || !primary.runs() || !backup.runs());
    let (loser, winner, name) = match primary.runs() {
        true => (&mut backup, &mut primary, "far-primary"),
        false => (&mut primary, &mut backup, "far-backup"),
    };
    assert_eq!(loser.exit_code(), OTHER_LIVE, "{}", loser.output());
    load.wait_for(SOME);
    let status = state(directory, name);
    assert_eq!((&status["live"]["state"], &status["live"]["generation"]), (&"Alone".into(), &2.into()));
    // The link is back, and nobody comes back with it.
    hosts.link(true);
    load.wait_for(SOME);
    load.stop().assert_unbroken().check(pair.port());
    assert!(winner.runs());
    // Nothing broke: silence alone told.
    assert!(winner.output().contains("Silent"), "{}", winner.output());
    let state = holding(hosts);
    assert_eq!((state.holding.generation, state.holder_connected), (2, true));
}

/// The disk server answers the backup and not the primary: the backup goes on, and clients notice a pause.
#[test]
fn a_primary_cut_off_from_the_disk_server_hands_over() {
    let test = "a_primary_cut_off_from_the_disk_server";
    let Some(pair) = Pair::services(test, |_| {}) else { return };
    let Some(hosts) = Hosts::new(test) else { return };
    let directory = pair.directory();
    let recording = directory.join("handed-over.lkl").display().to_string();
    let mut far = FarPair::start_with(&pair, &hosts, &["--record", &recording]);
    let load = Load::start(pair.port(), CONNECTIONS);
    load.wait_for(SOME);

    hosts.disk_link(0, false);
    wait_until("the backup to be live", || {
        assert!(far.backup.runs() && far.primary.runs(), "{}", far.backup.output());
        state(directory, "far-backup")["live"]["state"] == "Alone"
    });
    load.wait_for(SOME);
    assert_eq!(holding(&hosts).holding.generation, 2);
    // The old primary knows that it is cut off, and stands still.
    wait_until("the old primary to say so", || {
        state(directory, "far-primary")["disk_server"]["answers"] == false
    });
    let status = state(directory, "far-primary");
    let stands = status["live"]["state"].as_str().unwrap_or_default();
    assert!(stands == "HandingOver" || stands.starts_with("Claiming"), "{status}");
    let appended = status["live"]["appended"].clone();
    load.wait_for(SOME);
    let status = state(directory, "far-primary");
    assert_eq!(status["live"]["appended"], appended, "it runs past the entry at which it handed over");

    hosts.disk_link(0, true);
    assert_eq!(far.primary.exit_code(), OTHER_LIVE, "{}", far.primary.output());
    load.wait_for(SOME);
    load.stop().assert_unbroken().check(pair.port());
    assert!(far.backup.output().contains("HandedOver"), "{}", far.backup.output());
    // Its recording ends where it handed over, as a whole one.
    let mut dump = pair.spawn("dump", &["log", "dump", &recording]);
    assert_eq!(dump.exit_code(), 0, "{}", dump.output());
    let lines = dump.output();
    let last = lines.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    assert!(last.contains("HandOver"), "{last}");
    let mut verify = pair.spawn("verify", &["verify", &recording]);
    assert_eq!(verify.exit_code(), 0, "{}", verify.output());
}

/// What the disk server in the third namespace knows of the machine.
pub fn holding(hosts: &Hosts) -> VmState {
    let namespace = std::fs::File::open(format!("/var/run/netns/{}", hosts.names[2])).unwrap();
    std::thread::scope(|scope| {
        let ask = scope.spawn(|| {
            // This thread alone goes there, and ends there.
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            DiskClient::connect(DISK_SERVER, PATIENCE).unwrap().query(VM).unwrap()
        });
        ask.join().unwrap()
    })
}
