//! Hosts as network namespaces, with cables between them: for tests of pairs on more than one host.
//!
//! A namespace of its own holds the bridges that stand for the networks. Everything is removed when dropped.
#![allow(dead_code)]

use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, ensure};
use nix::sched::{CloneFlags, setns};

/// Routing table of what a cut swallows.
const SWALLOWED: u32 = 100;
/// First preference of a rule that cuts: before all others but the local table.
const FIRST_RULE: u32 = 100;

static MADE: AtomicU32 = AtomicU32::new(0);

/// What a cut is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// Every packet.
    All,
    /// Heartbeats.
    Udp,
    /// Logging channel, disk requests.
    Tcp,
}

/// The hosts.
pub struct Hosts {
    id: String,
    names: Vec<String>,
    /// Host and preference of each rule that cuts something.
    cuts: Vec<(usize, u32)>,
    next_rule: u32,
}

/// Runs a command; what it said if it failed.
pub fn run(words: &str) -> anyhow::Result<Output> {
    let words: Vec<&str> = words.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output = output.with_context(|| format!("cannot run {}", words[0]))?;
    ensure!(
        output.status.success(),
        "{}: {}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(output)
}

impl Hosts {
    /// Namespaces with these names and no network yet. Fails where this process may not make any.
    pub fn new(names: &[&str]) -> anyhow::Result<Self> {
        let id = format!("lockstep-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let mut hosts = Self { id, names: Vec::new(), cuts: Vec::new(), next_rule: FIRST_RULE };
        for name in names.iter().chain(&["net"]) {
            let name = format!("{}-{name}", hosts.id);
            run(&format!("ip netns add {name}")).context("network namespaces need root and iproute2")?;
            hosts.names.push(name);
        }
        for host in 0..hosts.names.len() {
            hosts.ip(host, "link set lo up")?;
        }
        Ok(hosts)
    }

    fn switch(&self) -> usize {
        self.names.len() - 1
    }

    /// A network: a bridge in the namespace of its own.
    pub fn network(&self, name: &str) -> anyhow::Result<()> {
        self.ip(self.switch(), &format!("link add {name} type bridge"))?;
        self.ip(self.switch(), &format!("link set {name} up"))
    }

    /// A network card of a host, plugged into a network.
    pub fn cable(&self, host: usize, device: &str, network: &str) -> anyhow::Result<()> {
        let (switch, port) = (&self.names[self.switch()], format!("p{host}-{device}"));
        self.ip(host, &format!("link add {device} type veth peer name {port} netns {switch}"))?;
        self.ip(self.switch(), &format!("link set {port} master {network} up"))?;
        self.ip(host, &format!("link set {device} up"))
    }

    /// `ip` for one host.
    pub fn ip(&self, host: usize, words: &str) -> anyhow::Result<()> {
        run(&format!("ip -n {} {words}", self.names[host])).map(drop)
    }

    /// What goes before a command to run it on a host.
    pub fn prefix(&self, host: usize) -> [&str; 4] {
        ["ip", "netns", "exec", &self.names[host]]
    }

    /// Makes cuts possible on a host: what one swallows goes out where nobody listens, without an error for
    /// whoever sent it. `peers` are the addresses that may be cut off.
    pub fn prepare_cuts(&self, host: usize, peers: &[&str]) -> anyhow::Result<()> {
        self.ip(host, "link add sink type veth peer name sink-end")?;
        self.ip(host, "link set sink up")?;
        self.ip(host, "link set sink-end up")?;
        self.ip(host, &format!("route add default dev sink table {SWALLOWED}"))?;
        for peer in peers {
            self.ip(host, &format!("neigh replace {peer} lladdr 02:00:00:00:00:99 dev sink nud permanent"))?;
        }
        Ok(())
    }

    /// Swallows what a host sends to an address from now on.
    pub fn cut(&mut self, host: usize, to: &str, traffic: Traffic) -> anyhow::Result<()> {
        let protocol = match traffic {
            Traffic::All => "",
            Traffic::Udp => "ipproto udp",
            Traffic::Tcp => "ipproto tcp",
        };
        let rule = self.next_rule;
        self.next_rule += 1;
        self.ip(host, &format!("rule add pref {rule} to {to}/32 {protocol} table {SWALLOWED}"))?;
        self.cuts.push((host, rule));
        Ok(())
    }

    /// Ends all cuts.
    pub fn heal(&mut self) -> anyhow::Result<()> {
        for (host, rule) in std::mem::take(&mut self.cuts) {
            self.ip(host, &format!("rule del pref {rule}"))?;
        }
        Ok(())
    }

    /// Does something in a host's network: sockets made there stay there.
    pub fn inside<T: Send>(
        &self,
        host: usize,
        body: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.names[host]))?;
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")?;
                body()
            });
            inside.join().map_err(|_| anyhow::anyhow!("a panic in a network namespace"))?
        })
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = run(&format!("ip netns del {name}"));
        }
    }
}
