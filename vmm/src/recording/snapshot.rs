//! States of a session kept in memory, so that going back does not always begin at a checkpoint of the file.
//!
//! Pages that two neighbouring snapshots have in common are held once. How many snapshots there may be is
//! bounded; the one in the densest place goes first.

use std::sync::Arc;

use logchannel::Seq;
use twox_hash::XxHash3_128;

use crate::machine::MachineState;
use crate::memory::{PAGE_BYTES, Ram};

/// Most snapshots held.
const MOST: usize = 24;

type Page = Arc<[u8; PAGE_BYTES]>;

/// A machine as it was after an entry.
#[derive(Debug)]
pub struct Snapshot {
    /// The last entry executed.
    pub seq: Seq,
    /// Everything but the memory.
    pub state: MachineState,
    hashes: Vec<u128>,
    pages: Vec<Page>,
}

impl Snapshot {
    /// Makes `ram` what it was.
    pub fn load_memory(&self, ram: &mut Ram) {
        for (number, page) in self.pages.iter().enumerate() {
            if ram.page(number) != page.as_slice() {
                ram.write(number * PAGE_BYTES, page.as_slice());
            }
        }
    }
}

/// Snapshots of one session, by position.
#[derive(Debug, Default)]
pub struct Snapshots {
    taken: Vec<Snapshot>,
}

impl Snapshots {
    /// The last one at or before a position.
    pub fn before(&self, count: u64) -> Option<&Snapshot> {
        self.taken[..self.taken.partition_point(|taken| taken.state.at.count <= count)].last()
    }

    /// Keeps the machine as it is, unless there is one of this place.
    pub fn take(&mut self, seq: Seq, state: MachineState, ram: &Ram) {
        let count = state.at.count;
        let place = self.taken.partition_point(|taken| taken.state.at.count < count);
        if self.taken.get(place).is_some_and(|taken| taken.state.at.count == count) {
            return;
        }
        let known = place.checked_sub(1).or((!self.taken.is_empty()).then_some(0));
        let known = known.map(|index| &self.taken[index]);
        let (mut hashes, mut pages) = (Vec::with_capacity(ram.pages()), Vec::with_capacity(ram.pages()));
        for number in 0..ram.pages() {
            let hash = XxHash3_128::oneshot(ram.page(number));
            let shared = known.filter(|known| known.hashes[number] == hash).map(|known| &known.pages[number]);
            pages.push(shared.cloned().unwrap_or_else(|| {
                Arc::new(ram.page(number).try_into().expect("a page has PAGE_BYTES bytes"))
            }));
            hashes.push(hash);
        }
        self.taken.insert(place, Snapshot { seq, state, hashes, pages });
        self.thin_out();
    }

    fn thin_out(&mut self) {
        while self.taken.len() > MOST {
            let gap = |i: usize| self.taken[i + 1].state.at.count - self.taken[i - 1].state.at.count;
            let densest = (1..self.taken.len() - 1).min_by_key(|i| gap(*i)).expect("more than two");
            self.taken.remove(densest);
        }
    }
}
