//! Single-step and debug registers (SDM vol. 3, 17.2 and 17.3).
//!
//! While there are steps or breakpoints on instructions to look for, instructions are executed one by one. Of
//! data breakpoints the pages are left out of the software TLB, so that every access to them comes past
//! `watch_access`, and an instruction that hits one is executed alone. An instruction and the trap after it
//! are one step. Data breakpoints that MOV SS or POP SS hit wait in DR6 for the end of the next instruction.
//! Where reality is richer: I/O breakpoints are not offered (CR4.DE is reserved), and what waits is lost when
//! that next instruction is INT n or ends in an exception.

use crate::exception::{Exception, Kind};
use crate::flags;
use crate::state::Shadow;
use crate::{Cpu, Fault};

const DR7_ENABLED: u64 = 0xff;
/// DR6: breakpoints that were hit.
const DR6_HITS: u64 = 15;
const DR7_GD: u64 = 1 << 13;
const DR6_BD: u64 = 1 << 13;
const DR6_BS: u64 = 1 << 14;

/// What is known of the one instruction being traced.
#[derive(Debug, Clone, Copy, Default)]
pub struct Debug {
    /// A single-step trap follows it.
    pub step: bool,
    /// It loaded SS: no trap follows it.
    pub inhibit: bool,
    /// RF was set before it.
    resumed: bool,
    /// Data breakpoints that it hit, as bits of DR6.
    hits: u64,
}

/// What a breakpoint looks for: DR7.R/W.
#[derive(PartialEq, Eq, Clone, Copy)]
enum Condition {
    Execution,
    Write,
    Io,
    Access,
}

struct Breakpoint {
    condition: Condition,
    start: u64,
    bytes: u64,
}

impl Cpu {
    /// Whether instructions must be executed one by one. RF alone asks for nothing.
    #[inline(always)]
    pub(crate) fn is_traced(&self) -> bool {
        self.system_flags & flags::TF != 0 || self.breaks_at_code
    }

    /// Whether the next instruction is not just the first of a block.
    #[inline(always)]
    pub(crate) fn is_resumed_or_traced(&self) -> bool {
        self.system_flags & (flags::TF | flags::RF) != 0 || self.breaks_at_code
    }

    fn breakpoint(&self, number: usize) -> Option<Breakpoint> {
        if self.dr[5] >> (2 * number) & 3 == 0 {
            return None;
        }
        let fields = self.dr[5] >> (16 + 4 * number);
        let condition = match fields & 3 {
            0 => Condition::Execution,
            1 => Condition::Write,
            2 => Condition::Io,
            _ => Condition::Access,
        };
        let bytes = match fields >> 2 & 3 {
            0 => 1,
            1 => 2,
            2 => 8,
            _ => 4,
        };
        Some(Breakpoint { condition, start: self.dr[number] & !(bytes - 1), bytes })
    }

    /// The enabled breakpoints that `wanted` accepts, as bits of DR6.
    fn breakpoints(&self, wanted: impl Fn(&Breakpoint) -> bool) -> u64 {
        (0..4).filter(|n| self.breakpoint(*n).is_some_and(|b| wanted(&b))).fold(0, |bits, n| bits | 1 << n)
    }

    /// Derives what is looked for from DR7.
    pub(crate) fn update_breakpoints(&mut self) {
        let on = self.dr[5] & DR7_ENABLED != 0;
        let of_data = |b: &Breakpoint| matches!(b.condition, Condition::Write | Condition::Access);
        self.tlb.guarded = on && self.breakpoints(of_data) != 0;
        self.breaks_at_code = on && self.breakpoints(|b| !of_data(b)) != 0;
    }

    /// Whether translations of the page of a linear address are not to be cached.
    #[cold]
    pub(crate) fn guards_page(&self, address: u64) -> bool {
        let page = |address: u64| address / crate::ram::PAGE;
        self.breakpoints(|b| page(b.start) == page(address)) != 0
    }

    /// What comes before an instruction executed by itself; false when it is not to be executed.
    pub(crate) fn before_traced(&mut self, shadow: Shadow) -> bool {
        let resumed = self.system_flags & flags::RF != 0;
        let step = self.system_flags & flags::TF != 0;
        let hits = if shadow == Shadow::Watched { self.dr[4] & DR6_HITS } else { 0 };
        self.debug = Debug { step, resumed, hits, ..Debug::default() };
        self.system_flags &= !flags::RF;
        if resumed || matches!(shadow, Shadow::Stack | Shadow::Watched) || self.dr[5] & DR7_ENABLED == 0 {
            return true;
        }
        let at = self.code_linear(self.rip);
        let hits = self.breakpoints(|b| b.condition == Condition::Execution && b.start == at);
        if hits == 0 {
            return true;
        }
        let _ = self.raise::<()>(Exception::debug(hits, Kind::Fault));
        false
    }

    /// The instruction waits for an answer and is then executed again.
    pub(crate) fn undo_traced(&mut self) {
        if self.debug.resumed {
            self.system_flags |= flags::RF;
        }
    }

    /// What comes after an instruction executed by itself.
    pub(crate) fn after_traced(&mut self) {
        let conditions = self.debug.hits | if self.debug.step { DR6_BS } else { 0 };
        if self.debug.inhibit && self.debug.hits != 0 {
            self.note_hits(self.debug.hits);
            self.shadow = Shadow::Watched;
        }
        if conditions == 0 || self.debug.inhibit {
            return;
        }
        self.retired -= 1;
        let _ = self.raise::<()>(Exception::debug(conditions, Kind::Trap));
    }

    /// Looks at a data access while data breakpoints are set.
    #[cold]
    pub(crate) fn watch_access(&mut self, address: u64, size: u64, write: bool) -> Result<(), Fault> {
        let hits = self.hits(address, size, write);
        if hits != 0 {
            self.must_be_alone()?;
            self.debug.hits |= hits;
        }
        Ok(())
    }

    /// Looks whether a store that is about to be made hits any, before the instruction has any effect.
    #[cold]
    pub(crate) fn watch_coming_store(&mut self, address: u64, size: u64) -> Result<(), Fault> {
        if self.hits(address, size, true) == 0 { Ok(()) } else { self.must_be_alone() }
    }

    fn hits(&self, address: u64, size: u64, write: bool) -> u64 {
        if self.space & 3 == crate::mem::privilege::IMPLICIT {
            return 0;
        }
        let last = address.wrapping_add(size - 1);
        self.breakpoints(|b| {
            let wanted = b.condition == Condition::Access || b.condition == Condition::Write && write;
            wanted && address <= b.start.wrapping_add(b.bytes - 1) && b.start <= last
        })
    }

    /// A debug exception is delivered.
    pub(crate) fn note_debug(&mut self, conditions: u64) {
        self.note_hits(conditions);
        self.dr[5] &= !DR7_GD;
    }

    fn note_hits(&mut self, conditions: u64) {
        self.dr[4] = self.dr[4] & !DR6_HITS | conditions;
    }

    /// DR7.GD guards the debug registers: #DB.
    pub(crate) fn guard_debug_registers(&mut self) -> Result<(), Fault> {
        if self.dr[5] & DR7_GD != 0 {
            return self.raise(Exception::debug(DR6_BD, Kind::Fault));
        }
        Ok(())
    }
}
