//! A second processor, with memory of its own, that interprets what the first one translates: `--jit check`.
//!
//! ```text
//!  answers, interrupts, device writes ──▶ first ── runs to a count ──▶ state, pages written ──┐
//!                  └────────────────────▶ second ─ to the same count ▶ state, pages written ──┴▶ equal?
//! ```
//!
//! Registers are compared after each block at first, and after each of the first blocks that follow a
//! translation; else after up to 65,536 instructions, as are the pages that either wrote. A page that a
//! device writes is copied whole, so a difference in it that was not compared before is not seen.

use logchannel::Position;
use softcpu::{Cpu, Exit};

use super::state;
use crate::engine::EngineError;
use crate::memory::{PAGE_BYTES, Ram};
use crate::random::Random;

/// Comparisons after one block each, at first.
const AT_FIRST: u32 = 1000;
/// The same after something was translated.
const AFTER_TRANSLATION: u32 = 4;
/// Steps between two comparisons later on, at most.
const SLICE: u64 = 1 << 16;
/// Steps of a block that is not decoded yet.
const UNKNOWN: u64 = 256;
/// Most differences told of one kind.
const MOST_TOLD: usize = 4;

/// The second processor.
pub struct Checker {
    cpu: Box<Cpu>,
    ram: Ram,
    /// What the first one's memory is, as in `SoftEngine::new`.
    theirs: *const u8,
    /// Comparisons to make after one block each.
    single: u32,
    translations: u64,
    /// Where pages were compared last.
    compared: u64,
    /// Pages that the first one wrote and nobody else was told of yet, a bit each.
    dirty: Vec<u64>,
    random: Random,
}

// SAFETY: the pointer leads to guest memory, which the machine's thread owns with the engine.
unsafe impl Send for Checker {}

impl Checker {
    /// Beside a processor whose memory is `ram`, which outlives it.
    pub fn new(ram: &Ram) -> Result<Self, EngineError> {
        let theirs = ram.host_address() as *const u8;
        let ram = Ram::new(ram.bytes()).map_err(EngineError::Memory)?;
        // SAFETY: the mapping is that long, nobody else accesses it, and it is dropped after the processor.
        let cpu = unsafe { Cpu::new(ram.host_address() as *mut u8, ram.bytes() as usize) };
        let dirty = vec![0; ram.pages().div_ceil(64)];
        let random = Random::new(1);
        Ok(Self { cpu, ram, theirs, single: AT_FIRST, translations: 0, compared: 0, dirty, random })
    }

    /// The second processor, which is to be told what the first one is told.
    pub fn cpu(&mut self) -> &mut Cpu {
        &mut self.cpu
    }

    #[cfg(test)]
    pub fn ram_for_tests(&mut self) -> &mut Ram {
        &mut self.ram
    }

    /// A page of the first one's memory.
    fn their_page(&self, number: usize) -> &[u8] {
        assert!(number < self.ram.pages());
        // SAFETY: the page is in a mapping as long as `ram`, which is alive, and nobody runs.
        unsafe { std::slice::from_raw_parts(self.theirs.wrapping_add(number * PAGE_BYTES), PAGE_BYTES) }
    }

    /// Somebody other than the processors wrote the first one's memory.
    pub fn ram_written(&mut self, address: u64, bytes: usize) {
        let end = address.saturating_add(bytes as u64).min(self.ram.bytes());
        for number in address as usize / PAGE_BYTES..(end as usize).div_ceil(PAGE_BYTES) {
            let page = self.their_page(number);
            if page != self.ram.page(number) {
                // SAFETY: as in `their_page`; it is another mapping than the one that is written.
                let page = unsafe { std::slice::from_raw_parts(page.as_ptr(), PAGE_BYTES) };
                self.ram.write(number * PAGE_BYTES, page);
            }
        }
        self.cpu.ram_written(address, bytes);
    }

    /// The first one was put elsewhere; its memory may be another.
    pub fn restore(&mut self, state: &softcpu::State, position: Position) {
        self.ram_written(0, self.ram.bytes() as usize);
        self.cpu.set_retired(position.count);
        self.cpu.set_state(state);
        self.cpu.take_dirty();
        self.compared = position.count;
    }

    /// Runs both to `until`, or to the first one's exit.
    pub fn run(&mut self, first: &mut Cpu, until: u64) -> Result<Exit, EngineError> {
        loop {
            let from = first.retired();
            let exit = first.run(until.min(from.saturating_add(self.slice(first))));
            self.follow(first, exit, from)?;
            if exit != Exit::Reached || first.retired() >= until {
                return Ok(exit);
            }
        }
    }

    /// How many steps to the next comparison.
    fn slice(&mut self, first: &Cpu) -> u64 {
        let translations = first.statistics().translations;
        if translations != std::mem::replace(&mut self.translations, translations) {
            self.single = self.single.max(AFTER_TRANSLATION);
        }
        // At first nothing is translated, and there is nothing to compare.
        if self.single > 0 && translations > 0 {
            self.single -= 1;
            return first.known_block().unwrap_or(UNKNOWN);
        }
        1 + self.random.below(SLICE)
    }

    /// Brings the second one to where the first one is, and compares.
    fn follow(&mut self, first: &mut Cpu, exit: Exit, from: u64) -> Result<(), EngineError> {
        let end = first.retired();
        let stopped = matches!(exit, Exit::Reached | Exit::Kicked | Exit::Breakpoint | Exit::Watched);
        // Other exits come before the count is looked at, or before their instruction.
        let (until, expected) = if stopped { (end, Exit::Reached) } else { (end.saturating_add(1), exit) };
        let second = self.cpu.run(until);
        let mut told = Vec::new();
        if (second, self.cpu.retired()) != (expected, end) {
            told.push(format!(
                "{expected:x?} at position {end} -> {second:x?} at position {}",
                self.cpu.retired()
            ));
        }
        let (ours, theirs) = (self.cpu.state(), first.state());
        if ours != theirs {
            let (theirs, ours) = (state::to_engine(&theirs, end), state::to_engine(&ours, end));
            let lines = theirs.diff(&ours);
            told.extend(lines.into_iter().take(MOST_TOLD).map(|line| format!("register {line}")));
            if told.is_empty() {
                told.push("the processor's other state".into());
            }
        }
        if !told.is_empty() || end.saturating_sub(self.compared) >= SLICE {
            told.extend(self.differing_pages(first));
        }
        if told.is_empty() {
            return Ok(());
        }
        let rip = first.rip();
        Err(EngineError::Differs(format!(
            "position {end}, RIP {rip:#x} (equal at position {from}), translated -> interpreted: {}",
            told.join("; ")
        )))
    }

    /// Pages that one of them wrote since the last time, and that differ.
    fn differing_pages(&mut self, first: &mut Cpu) -> Vec<String> {
        self.compared = first.retired();
        let (theirs, ours) = (first.take_dirty(), self.cpu.take_dirty());
        let mut told = Vec::new();
        for (word, (theirs, ours)) in theirs.iter().zip(ours).enumerate() {
            self.dirty[word] |= theirs;
            let mut either = theirs | ours;
            while either != 0 {
                let number = word * 64 + either.trailing_zeros() as usize;
                either &= either - 1;
                let pair = self.their_page(number).iter().zip(self.ram.page(number));
                let Some((offset, (a, b))) = pair.enumerate().find(|(_, (a, b))| a != b) else { continue };
                if told.len() < MOST_TOLD {
                    let address = number * PAGE_BYTES + offset;
                    told.push(format!("memory from {address:#x} on {a:02x} -> {b:02x}"));
                }
            }
        }
        told
    }

    /// What `Cpu::take_dirty` of the first one would be without the second.
    pub fn take_dirty(&mut self, first: &mut Cpu) -> Result<Vec<u64>, EngineError> {
        let differing = self.differing_pages(first);
        if !differing.is_empty() {
            let position = first.retired();
            let told = format!("position {position}, translated -> interpreted: {}", differing.join("; "));
            return Err(EngineError::Differs(told));
        }
        let words = self.dirty.len();
        Ok(std::mem::replace(&mut self.dirty, vec![0; words]))
    }
}
