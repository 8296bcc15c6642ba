//! The invariants of DESIGN section 8, checked by somebody who sees every process and the disk server at
//! once.

use std::collections::{BTreeMap, BTreeSet};

use disk_server::test_and_set::{Claimant, Holding};
use logchannel::{Generation, Output, OutputKind, Seq};

/// What a process relies on when it lets an output go.
#[derive(Debug, Clone, Copy)]
pub struct Warrant {
    /// The process.
    pub claimant: Claimant,
    /// Its generation.
    pub generation: Generation,
    /// It holds its generation alone.
    pub alone: bool,
    /// What its backup really holds, if it ever had one.
    pub backup_received: Option<Seq>,
}

/// Watches everything.
#[derive(Debug, Default)]
pub struct Oracle {
    holding: Holding,
    grants: BTreeMap<Generation, Claimant>,
    /// Every output that went into the world, by its entry.
    released: BTreeMap<Seq, (OutputKind, [u8; 8])>,
    /// Where the history of a generation continues the one before.
    forks: BTreeMap<Generation, Seq>,
    lines: BTreeSet<u64>,
    /// Looks away.
    blind: bool,
}

impl Oracle {
    /// An oracle; a blind one only counts console lines.
    pub fn new(blind: bool) -> Self {
        Self { blind, ..Self::default() }
    }

    /// The disk server's state, after each step. One generation has one holder, and none is skipped or taken
    /// back.
    pub fn holding(&mut self, holding: Holding) -> Result<(), String> {
        if holding == self.holding {
            return Ok(());
        }
        if holding.generation != self.holding.generation + 1 {
            return Err(format!(
                "generation went from {} to {}",
                self.holding.generation, holding.generation
            ));
        }
        let Some(holder) = holding.holder else { return Err("a generation without holder".into()) };
        if self.grants.insert(holding.generation, holder).is_some() {
            return Err(format!("generation {} was granted twice", holding.generation));
        }
        self.holding = holding;
        Ok(())
    }

    /// The process is live alone: only with the current generation.
    pub fn alone(&self, claimant: Claimant, generation: Generation) -> Result<(), String> {
        match self.blind || self.holding.generation == generation && self.holding.holder == Some(claimant) {
            true => Ok(()),
            false => Err(format!(
                "process {claimant} is live alone under generation {generation}; {:?} holds generation {}",
                self.holding.holder, self.holding.generation
            )),
        }
    }

    /// A process goes live and continues the history after entry `seq`.
    pub fn went_live(&mut self, claimant: Claimant, generation: Generation, seq: Seq) -> Result<(), String> {
        self.alone(claimant, generation)?;
        if self.blind {
            return Ok(());
        }
        if let Some((last, _)) = self.released.last_key_value().filter(|(last, _)| **last > seq) {
            return Err(format!(
                "goes live after entry {seq}, but the output of entry {last} is in the world"
            ));
        }
        self.forks.insert(generation, seq);
        Ok(())
    }

    /// An output goes into the world.
    pub fn release(&mut self, warrant: Warrant, seq: Seq, output: &Output) -> Result<(), String> {
        if let Output::Console(bytes) = output {
            let text = String::from_utf8_lossy(bytes);
            self.lines.extend(text.split(' ').next().and_then(|ticks| ticks.parse::<u64>().ok()));
        }
        if self.blind {
            return Ok(());
        }
        let Warrant { claimant, generation, alone, backup_received } = warrant;
        match (alone, backup_received) {
            (true, _) => self.alone(claimant, generation)?,
            (false, Some(received)) if seq <= received => {}
            (false, received) => {
                return Err(format!(
                    "process {claimant} lets go the output of entry {seq}; its backup holds {received:?}"
                ));
            }
        }
        for (later, fork) in self.forks.range(generation + 1..) {
            if seq > *fork {
                return Err(format!(
                    "the output of entry {seq} under generation {generation} is not in the history of \
                     generation {later}, which continues after entry {fork}"
                ));
            }
        }
        let what = (output.kind(), output.digest());
        if *self.released.entry(seq).or_insert(what) != what {
            return Err(format!("two different outputs for entry {seq} are in the world"));
        }
        Ok(())
    }

    /// Every console line of the guest came out: outputs are delivered at least once.
    pub fn lines_are_complete(&self, every: u64) -> Result<(), String> {
        let last = self.lines.last().copied().unwrap_or(0);
        match (1..=last / every).find(|i| !self.lines.contains(&(i * every))) {
            None => Ok(()),
            Some(i) => Err(format!("the console line of tick {} of {last} never came out", i * every)),
        }
    }
}
