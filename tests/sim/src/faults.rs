//! What goes wrong in a run: chosen from the seed, a different mixture in each run, so that rare combinations
//! come up (swarm testing, Groce et al. 2012).

use crate::network::{Node, Time, Weather};
use crate::random::Random;

const US: Time = 1_000;
const MS: Time = 1_000_000;

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process on this host dies, after it has carried out `after` more effects.
    Crash {
        /// Which host.
        host: usize,
        /// How many effects.
        after: u64,
        /// The whole host: its peer hears nothing of it.
        silently: bool,
    },
    /// The process on this host stops as by SIGSTOP, after `after` more effects.
    Pause {
        /// Which host.
        host: usize,
        /// How many effects.
        after: u64,
        /// For how long.
        ns: Time,
        /// Its clock stops too, as when a whole machine is suspended.
        clock_stops: bool,
    },
    /// Nothing passes between two nodes.
    Partition {
        /// One.
        from: Node,
        /// The other.
        to: Node,
        /// In both directions.
        both_ways: bool,
        /// For how long.
        ns: Time,
    },
    /// The logging channel breaks at any byte, both ways.
    BreakChannel,
    /// A bit of the logging channel is flipped.
    DamageChannel,
    /// The disk server dies and comes back.
    DiskCrash {
        /// For how long.
        ns: Time,
    },
    /// The disk server dies after it has recorded the next grant, before it answers.
    DiskCrashAfterRecord,
    /// The process on this host executes slowly.
    Slow {
        /// Which host.
        host: usize,
        /// Times as long.
        times: u64,
    },
    /// A bit of the state of the backup's machine flips.
    FlipBit {
        /// Which.
        bit: u32,
    },
    /// The primary, and nobody else, loses the disk server.
    PrimaryLosesDisk {
        /// For how long.
        ns: Time,
    },
    /// The backup's heartbeats and the primary's are lost.
    Heartbeats {
        /// For how long.
        ns: Time,
    },
}

/// What a run is like.
#[derive(Debug, Clone)]
pub struct Plan {
    /// When what goes wrong.
    pub faults: Vec<(Time, Fault)>,
    /// The network.
    pub weather: Weather,
    /// When faults end.
    pub safety_ns: Time,
    /// Heartbeats get lost, in permille.
    pub heartbeat_loss: u64,
    /// Backups execute this many times as slowly.
    pub backup_slow: u64,
    /// The guest is switched off at the end.
    pub power_off: bool,
    /// The guest is switched off at this time, among the faults.
    pub early_power_off: Option<Time>,
    /// How long a host stays without process before a new backup is started on it.
    pub restart_ns: Time,
}

impl Plan {
    /// The plan of a run.
    pub fn new(random: &mut Random) -> Self {
        let safety_ns = random.between(200, 700) * MS;
        if random.chance(60) {
            return Self::primary_loses_disk(random);
        }
        let kinds = random.any() & 0x1ff | 1 << random.below(9);
        let count = [0, 1, 1, 2, 2, 3, 4, 6][random.below(8) as usize];
        let mut faults = Vec::new();
        let mut crashes = 0;
        while faults.len() < count {
            let kind = random.below(9);
            if kinds & (1 << kind) == 0 {
                continue;
            }
            let fault = Self::fault(kind, random);
            crashes += u32::from(matches!(fault, Fault::Crash { .. }));
            let at = random.below(safety_ns);
            if !matches!(fault, Fault::Crash { .. }) || crashes <= 2 {
                faults.push((at, fault));
            } else {
                faults.push((at, Fault::BreakChannel));
            }
        }
        Self {
            faults,
            weather: Self::weather(random),
            safety_ns,
            heartbeat_loss: [0, 0, 50, 300, 700][random.below(5) as usize],
            backup_slow: [1, 1, 20, 100][random.below(4) as usize],
            power_off: random.chance(250),
            early_power_off: random.chance(50).then(|| random.below(safety_ns)),
            restart_ns: random.between(30, 200) * MS,
        }
    }

    /// Nothing else goes wrong: the pair must serve again long before the disk server is back.
    fn primary_loses_disk(random: &mut Random) -> Self {
        let (at, ns) = (random.between(100, 400) * MS, 1_200 * MS);
        let weather = Weather { loss: 0, repeated: 0, late: 0, ..Self::weather(random) };
        Self {
            faults: vec![(at, Fault::PrimaryLosesDisk { ns })],
            weather,
            safety_ns: at + ns,
            heartbeat_loss: 0,
            backup_slow: 1,
            power_off: random.chance(250),
            early_power_off: None,
            restart_ns: random.between(30, 200) * MS,
        }
    }

    fn weather(random: &mut Random) -> Weather {
        let delay_min_ns = random.between(20, 100) * US;
        Weather {
            loss: [0, 0, 5, 50, 200][random.below(5) as usize],
            repeated: [0, 0, 20, 200][random.below(4) as usize],
            late: [0, 0, 10, 100][random.below(4) as usize],
            delay_min_ns,
            delay_max_ns: delay_min_ns + [50, 200, 3_000][random.below(3) as usize] * US,
            late_max_ns: random.between(5, 250) * MS,
        }
    }

    fn fault(kind: u64, random: &mut Random) -> Fault {
        let host = random.below(2) as usize;
        let after = [0, random.below(4), random.below(30)][random.below(3) as usize];
        let ns = [random.between(1, 40), random.between(60, 400)][random.below(2) as usize] * MS;
        match kind {
            0 => Fault::Crash { host, after, silently: random.chance(300) },
            1 => Fault::Pause { host, after, ns, clock_stops: random.chance(500) },
            2 => {
                let from = Node::ALL[random.below(4) as usize];
                let others: Vec<Node> = Node::ALL.into_iter().filter(|node| *node != from).collect();
                let to = others[random.below(3) as usize];
                Fault::Partition { from, to, both_ways: random.chance(700), ns }
            }
            3 if random.chance(200) => Fault::DamageChannel,
            3 => Fault::BreakChannel,
            4 => Fault::DiskCrash { ns },
            5 => Fault::DiskCrashAfterRecord,
            6 if random.chance(250) => Fault::FlipBit { bit: random.below(64) as u32 },
            6 => Fault::Slow { host, times: [3, 20, 100][random.below(3) as usize] },
            7 => Fault::Heartbeats { ns },
            _ => Fault::PrimaryLosesDisk { ns: random.between(200, 600) * MS },
        }
    }
}
