//! Single-step and debug registers (SDM vol. 3, 17.2 and 17.3).
//!
//! While there is anything to look for, instructions are executed one by one; data breakpoints switch the
//! software TLB off, so that every access comes past `watch_access`. An instruction and the trap after it are
//! one step. Data breakpoints that MOV SS or POP SS hit wait in DR6 for the end of the next instruction.
//! Where reality is richer: I/O breakpoints are not offered (CR4.DE is reserved), and what waits is lost when
//! that next instruction is INT n or ends in an exception.

use crate::Cpu;
use crate::exception::{Exception, Kind};
use crate::flags;
use crate::state::Shadow;

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
        self.system_flags & flags::TF != 0 || self.dr[5] & DR7_ENABLED != 0
    }

    /// Whether the next instruction is not just the first of a block.
    #[inline(always)]
    pub(crate) fn is_resumed_or_traced(&self) -> bool {
        self.system_flags & (flags::TF | flags::RF) != 0 || self.dr[5] & DR7_ENABLED != 0
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

    /// Whether accesses to data must be watched.
    pub(crate) fn watches_data(&self) -> bool {
        self.dr[5] & DR7_ENABLED != 0
            && self.breakpoints(|b| matches!(b.condition, Condition::Write | Condition::Access)) != 0
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
    pub(crate) fn watch_access(&mut self, address: u64, size: u64, write: bool) {
        if self.space & 3 == crate::mem::privilege::IMPLICIT {
            return;
        }
        let last = address.wrapping_add(size - 1);
        self.debug.hits |= self.breakpoints(|b| {
            let wanted = b.condition == Condition::Access || b.condition == Condition::Write && write;
            wanted && address <= b.start.wrapping_add(b.bytes - 1) && b.start <= last
        });
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
    pub(crate) fn guard_debug_registers(&mut self) -> Result<(), crate::Fault> {
        if self.dr[5] & DR7_GD != 0 {
            return self.raise(Exception::debug(DR6_BD, Kind::Fault));
        }
        Ok(())
    }
}
