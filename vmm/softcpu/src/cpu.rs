//! The processor: its registers, and the loop that runs blocks of decoded instructions.
//!
//! Time is counted in *steps*: a retired instruction, one iteration of a REP string instruction, or the
//! delivery of one exception or interrupt. No two states of a run share a count, so a count names a state.
//!
//! ```text
//!  run ─▶ limit = min(until, now + SLICE) ─▶ block at RIP ─▶ ops … ─▶ next block … ─▶ back at the limit,
//!   ▲                                                                        on an abort, or to look up
//!   └── deliver exception · redo one instruction alone · exit ◀──────────────┘
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::breakpoint::Breakpoints;
use crate::cache::CodeCache;
use crate::debug::Debug;
use crate::exception::Exception;
use crate::flags::{self, Lazy};
use crate::jit::Jit;
use crate::mem::Tlb;
use crate::native::Native;
use crate::op::{Op, REGISTERS};
use crate::ram::GuestRam;
use crate::state::{Fpu, Msrs, Seg, Segment, Shadow, State, Table};
use crate::watch::Watch;
use crate::word::Word;
use crate::{Exit, Fault};

/// Steps between two looks at what comes from outside.
pub(crate) const SLICE: u64 = 4096;

/// Why a block was left before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Abort {
    /// It was not.
    #[default]
    None,
    /// The instruction raised an exception.
    Exception(Exception),
    /// The instruction needs an answer from outside, and is then executed again.
    Exit(Exit),
    /// The instruction changes code or page tables and must be executed by itself.
    Alone,
    /// The instruction was completed, and the machine is to stop after it.
    After(Exit),
}

/// What of the machine's mode decides how code is decoded.
pub mod mode {
    /// 64-bit code.
    pub const LONG: u32 = 1;
    /// Compatibility mode with 32-bit operands (CS.D); else 16-bit.
    pub const BIG: u32 = 2;
    /// SSE instructions are #UD (CR0.EM, CR4.OSFXSR).
    pub const NO_SSE: u32 = 4;
    /// x87, MMX and SSE instructions are #NM (CR0.TS).
    pub const TASK_SWITCHED: u32 = 8;
    /// x87 instructions are #NM, MMX instructions #UD (CR0.EM).
    pub const EMULATION: u32 = 16;
    /// FWAIT is #NM too (CR0.TS and CR0.MP).
    pub const MONITORED: u32 = 32;
    /// Accesses through ES are checked; the bits for CS, SS, DS, FS, GS follow. In compatibility mode only.
    pub const CHECKED: u32 = 64;
    /// Where the number of the code segment begins, eight bits; 0 in 64-bit mode.
    pub const CODE_NUMBER: u32 = 12;
}

/// A software x86-64 processor. RAM belongs to its maker.
#[repr(C)]
pub struct Cpu {
    /// Of the block's start, while a block runs.
    pub(crate) rip: u64,
    /// Steps done, up to the block's start while a block runs.
    pub(crate) retired: u64,
    /// No block starts that would pass this count.
    pub(crate) limit: u64,
    pub(crate) flags: Lazy,
    /// RFLAGS without the status flags.
    pub(crate) system_flags: u64,
    /// Address space and privilege of translations: low bits of their tags.
    pub(crate) space: u64,
    /// What of the jump cache is valid.
    pub(crate) jump_key: u64,
    /// The register file. It and what is before are near the start, where addresses are short.
    pub(crate) regs: [u64; REGISTERS],
    /// The instruction runs by itself and may change code and page tables.
    pub(crate) alone: bool,
    pub(crate) abort: Abort,
    /// Bases that addresses get: in 64-bit mode zero for all but FS and GS; for LDTR and TR always zero.
    pub(crate) bases: [u64; 8],
    pub(crate) cpl: u8,
    pub(crate) mode: u32,
    pub(crate) shadow: Shadow,
    pub(crate) xmm: [u128; 16],
    pub(crate) mxcsr: u32,
    pub(crate) fpu: Fpu,
    pub(crate) segments: [Segment; 8],
    pub(crate) gdtr: Table,
    pub(crate) idtr: Table,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) cr8: u64,
    pub(crate) efer: u64,
    pub(crate) dr: [u64; 6],
    pub(crate) debug: Debug,
    /// Instructions are executed one by one: DR7 has breakpoints that are not on data.
    pub(crate) breaks_at_code: bool,
    pub(crate) msrs: Msrs,
    pub(crate) tsc_offset: i64,
    /// Queued external interrupt.
    pub(crate) interrupt: Option<u8>,
    pub(crate) window: bool,
    /// Answers to the exits of the instruction being executed, and how many it has used.
    pub(crate) answers: Vec<u64>,
    pub(crate) answered: usize,
    /// What the last read that found no entry in the TLB read.
    pub(crate) loaded: u128,
    pub(crate) ram: GuestRam,
    pub(crate) tlb: Tlb,
    pub(crate) cache: CodeCache,
    pub(crate) breakpoints: Breakpoints,
    pub(crate) watch: Watch,
    pub(crate) jit: Jit,
    pub(crate) perf_map: bool,
    /// Why nothing is translated although it should be.
    pub(crate) untranslated: Option<String>,
    /// The translator, when it is on.
    pub(crate) native: Option<Box<Native>>,
    /// First op of a block that asks to be translated, or null.
    pub(crate) wanted: *const Op,
    /// The last op of `decode_single` was reached.
    pub(crate) resumed: bool,
    /// Where the run ends.
    pub(crate) until: u64,
    /// Base and limit of the code segments that have a number in the mode, by number less one.
    pub(crate) code_segments: Vec<(u64, u32)>,
    kick: Arc<AtomicBool>,
    #[cfg(feature = "planted-faults")]
    pub(crate) stale: crate::planted::StaleCode,
    #[cfg(feature = "planted-faults")]
    pub(crate) mistake: Option<(crate::planted::Mistake, u64)>,
    #[cfg(feature = "planted-faults")]
    pub(crate) odd_form: Option<iced_x86::Code>,
}

// SAFETY: the pointers inside lead to RAM, whose owner keeps others away during `run`, and to blocks that
// belong to this value alone.
unsafe impl Send for Cpu {}

/// Makes a running processor stop, from any thread.
#[derive(Debug, Clone)]
pub struct Kicker(Arc<AtomicBool>);

impl Kicker {
    /// `run` returns `Exit::Kicked` at the next boundary it looks, or when it is next called.
    pub fn kick(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Cpu {
    /// A processor with `bytes` of RAM from guest physical address 0, in `State::default()`.
    ///
    /// # Safety
    /// `ram` is a mapping of `bytes` readable and writable bytes that outlives the processor, and nobody else
    /// accesses it during `run`.
    pub unsafe fn new(ram: *mut u8, bytes: usize) -> Box<Self> {
        // SAFETY: by the caller's contract.
        let ram = unsafe { GuestRam::new(ram, bytes) };
        let (tlb, cache) = (Tlb::new(ram.pages()), CodeCache::new(ram.pages()));
        let mut cpu = Box::new(Self {
            regs: [0; REGISTERS],
            rip: 0,
            retired: 0,
            limit: 0,
            flags: Lazy::default(),
            system_flags: 2,
            space: 0,
            jump_key: 0,
            alone: false,
            abort: Abort::None,
            bases: [0; 8],
            cpl: 0,
            mode: 0,
            shadow: Shadow::None,
            xmm: [0; 16],
            mxcsr: 0x1f80,
            fpu: Fpu::default(),
            segments: [Segment::default(); 8],
            gdtr: Table::default(),
            idtr: Table::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            efer: 0,
            dr: [0; 6],
            debug: Debug::default(),
            breaks_at_code: false,
            msrs: Msrs::default(),
            tsc_offset: 0,
            interrupt: None,
            window: false,
            answers: Vec::new(),
            answered: 0,
            loaded: 0,
            ram,
            tlb,
            cache,
            breakpoints: Breakpoints::default(),
            watch: Watch::default(),
            jit: Jit::Off,
            perf_map: false,
            untranslated: None,
            native: None,
            wanted: std::ptr::null(),
            resumed: false,
            until: 0,
            code_segments: Vec::new(),
            kick: Arc::default(),
            #[cfg(feature = "planted-faults")]
            stale: crate::planted::StaleCode::default(),
            #[cfg(feature = "planted-faults")]
            mistake: None,
            #[cfg(feature = "planted-faults")]
            odd_form: crate::planted::odd_form(),
        });
        cpu.set_state(&State::default());
        cpu
    }

    /// The whole architectural state.
    pub fn state(&self) -> State {
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.regs[..16]);
        State {
            gpr,
            rip: self.rip,
            rflags: self.rflags(),
            segments: self.segments,
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            cr8: self.cr8,
            efer: self.efer,
            dr: self.dr,
            msrs: self.msrs,
            fpu: self.fpu,
            xmm: self.xmm,
            mxcsr: self.mxcsr,
            shadow: self.shadow,
            interrupt: self.interrupt,
            tsc_offset: self.tsc_offset,
        }
    }

    /// Sets the whole architectural state. Everything derived from it is derived anew.
    pub fn set_state(&mut self, state: &State) {
        self.regs[..16].copy_from_slice(&state.gpr);
        self.rip = state.rip;
        self.set_rflags(state.rflags);
        self.segments = state.segments;
        self.gdtr = state.gdtr;
        self.idtr = state.idtr;
        self.cr0 = state.cr0;
        self.cr2 = state.cr2;
        self.cr3 = state.cr3;
        self.cr4 = state.cr4;
        self.cr8 = state.cr8;
        self.efer = state.efer;
        self.dr = state.dr;
        self.msrs = state.msrs;
        self.fpu = state.fpu;
        self.xmm = state.xmm;
        self.mxcsr = state.mxcsr;
        self.shadow = state.shadow;
        self.interrupt = state.interrupt;
        self.tsc_offset = state.tsc_offset;
        self.abort = Abort::None;
        self.answers.clear();
        self.answered = 0;
        self.flush_translations();
        self.update_mode();
    }

    /// Steps since power-on: the position.
    pub fn retired(&self) -> u64 {
        self.retired
    }

    /// Sets the position.
    pub fn set_retired(&mut self, count: u64) {
        self.retired = count;
    }

    /// The time-stamp counter goes on by `ns` although nothing retires.
    pub fn skip_time(&mut self, ns: u64) {
        self.tsc_offset = self.tsc_offset.wrapping_add_unsigned(ns);
    }

    /// A handle to stop `run` from another thread.
    pub fn kicker(&self) -> Kicker {
        Kicker(self.kick.clone())
    }

    /// RIP.
    pub fn rip(&self) -> u64 {
        self.rip
    }

    /// RFLAGS.
    pub fn rflags(&self) -> u64 {
        self.system_flags | self.flags.rflags()
    }

    pub(crate) fn set_rflags(&mut self, rflags: u64) {
        self.flags = Lazy::from_rflags(rflags);
        self.system_flags = rflags & !flags::STATUS | 2;
    }

    /// Whether an external interrupt would be taken before the next instruction.
    pub fn interruptible(&self) -> bool {
        self.interrupts_enabled() && self.shadow == Shadow::None && self.interrupt.is_none()
    }

    /// Whether RFLAGS.IF is set.
    pub fn interrupts_enabled(&self) -> bool {
        self.system_flags & flags::IF != 0
    }

    /// Queues an external interrupt: it is delivered before the next instruction, as one step.
    pub fn inject(&mut self, vector: u8) {
        self.interrupt = Some(vector);
    }

    /// Whether `run` is to stop where an interrupt can be taken.
    pub fn request_window(&mut self, on: bool) {
        self.window = on;
    }

    /// Answers the last exit: the value that a PioRead, MmioRead or MsrRead asked for (anything for writes).
    /// The instruction is executed again and finds it.
    pub fn answer(&mut self, value: u64) {
        self.answers.push(value);
    }

    /// Answers the last exit, an MSR access, with #GP.
    pub fn refuse(&mut self) {
        self.answers.clear();
        self.abort = Abort::Exception(Exception::gp(0));
    }

    /// Runs until `until` steps are done in total, or an exit.
    pub fn run(&mut self, until: u64) -> Exit {
        let host = crate::exec::sse_control::enter(self);
        let exit = self.run_blocks(until);
        crate::exec::sse_control::leave(self, host);
        exit
    }

    fn run_blocks(&mut self, until: u64) -> Exit {
        loop {
            if let Some(exit) = self.before_block(until) {
                return exit;
            }
            let breakpoint = self.breakpoints.has(self.rip);
            if breakpoint && self.breakpoints.are_obeyed() {
                return Exit::Breakpoint;
            }
            let special = !self.answers.is_empty()
                || self.shadow != Shadow::None
                || self.is_resumed_or_traced()
                || breakpoint;
            if special {
                self.run_special(until, breakpoint);
            } else {
                self.run_block(until);
            }
            match std::mem::take(&mut self.abort) {
                Abort::None => {}
                Abort::Alone => self.run_alone(),
                Abort::Exit(exit) => {
                    self.answered = 0;
                    return exit;
                }
                other => self.abort = other,
            }
        }
    }

    /// What comes first at an instruction boundary.
    fn before_block(&mut self, until: u64) -> Option<Exit> {
        match std::mem::take(&mut self.abort) {
            Abort::None | Abort::Alone => {}
            Abort::Exception(exception) => {
                self.finish_with(exception);
                // Which may have shut the machine down, wherever the run is to end.
                return self.before_block(until);
            }
            Abort::Exit(exit) => {
                self.answered = 0;
                return Some(exit);
            }
            Abort::After(exit) => return Some(exit),
        }
        if self.is_watched_change() {
            self.obey_watched(true);
            return Some(Exit::Watched);
        }
        if self.retired >= until {
            return Some(Exit::Reached);
        }
        if !self.answers.is_empty() {
            return None;
        }
        if self.kick.load(Ordering::Relaxed) && self.kick.swap(false, Ordering::Acquire) {
            return Some(Exit::Kicked);
        }
        if let Some(vector) =
            self.interrupt.filter(|_| self.interrupts_enabled() && self.shadow == Shadow::None)
        {
            self.interrupt = None;
            self.deliver_interrupt(vector);
            return self.before_block(until);
        }
        if self.window && self.interruptible() {
            return Some(Exit::Window);
        }
        None
    }

    /// The instruction ended in an exception: one step, at which it is delivered.
    fn finish_with(&mut self, exception: Exception) {
        self.answers.clear();
        self.answered = 0;
        self.shadow = Shadow::None;
        self.deliver(exception);
    }

    /// Runs blocks from RIP on.
    #[inline(always)]
    fn run_block(&mut self, until: u64) {
        self.until = until;
        self.limit = until.min(self.retired + SLICE);
        match self.block_at_rip() {
            Ok(Some(first)) if self.retired + self.cache.count(first) <= self.limit => {
                self.enter(first);
            }
            Ok(Some(_)) => self.run_part(self.limit - self.retired),
            Ok(None) => self.run_crossing(),
            Err(Fault) => {}
        }
        if !self.wanted.is_null() {
            self.translate_wanted();
        }
    }

    /// Runs the next instruction by itself, or, when RF or a shadow that nobody waits for is all that there
    /// is, blocks: the first instruction clears them.
    #[inline(never)]
    fn run_special(&mut self, until: u64, breakpoint: bool) {
        let expected = self.window || self.interrupt.is_some();
        let awaited = self.shadow == Shadow::Watched || self.shadow != Shadow::None && expected;
        if awaited || !self.answers.is_empty() || self.is_traced() || breakpoint {
            return self.run_alone();
        }
        let before = self.retired;
        let (shadow, resumed) = (self.shadow, self.system_flags & flags::RF);
        self.shadow = Shadow::None;
        self.system_flags &= !flags::RF;
        self.run_block(until);
        // An instruction that is yet to be completed keeps them.
        if self.retired == before && !matches!(self.abort, Abort::Exception(_)) {
            (self.shadow, self.system_flags) = (shadow, self.system_flags | resumed);
        }
    }

    /// Runs one instruction outside of any block.
    fn run_alone(&mut self) {
        let shadow = std::mem::take(&mut self.shadow);
        let before = self.retired;
        let traced = self.before_traced(shadow);
        if !traced {
            return;
        }
        self.alone = true;
        self.limit = self.retired + 1;
        self.run_part(1);
        self.alone = false;
        if self.retired != before {
            self.answers.clear();
            self.answered = 0;
            self.after_traced();
        } else if matches!(self.abort, Abort::Exit(_)) {
            self.shadow = shadow;
            self.undo_traced();
        }
    }

    /// Runs at most `count` instructions from RIP, decoded for this once.
    fn run_part(&mut self, count: u64) {
        if let Ok(ops) = self.decode_part(count) {
            self.enter(ops.as_ptr());
            self.wrap_rip();
            self.cache.keep_scratch(ops);
        }
    }

    #[inline(always)]
    pub(crate) fn enter(&mut self, first: *const Op) {
        // SAFETY: the op is the first of a block, which is alive: blocks are dropped only by writes to their
        // page, and those happen outside of blocks.
        let op = unsafe { &*first };
        (op.run)(self, op)
    }

    /// Reads a general register.
    #[inline(always)]
    pub(crate) fn reg<W: Word>(&self, offset: u8) -> W {
        // SAFETY: eight bytes at any u8 offset are inside the register file.
        unsafe {
            self.regs.as_ptr().cast::<u8>().wrapping_add(usize::from(offset)).cast::<W>().read_unaligned()
        }
    }

    /// Writes a general register.
    #[inline(always)]
    pub(crate) fn set_reg<W: Word>(&mut self, offset: u8, value: W) {
        // SAFETY: eight bytes at any u8 offset are inside the register file.
        unsafe { value.put(self.regs.as_mut_ptr().cast::<u8>().wrapping_add(usize::from(offset))) }
    }

    /// The effective address of an op's memory operand.
    #[inline(always)]
    pub(crate) fn address(&self, op: &Op) -> u64 {
        let base = self.reg::<u64>(op.base);
        let index = self.reg::<u64>(op.index) << (op.scale & 3);
        base.wrapping_add(index).wrapping_add(op.disp.get())
    }

    /// Raises an exception: the instruction ends without effect.
    #[cold]
    pub(crate) fn raise<T>(&mut self, exception: Exception) -> Result<T, Fault> {
        self.abort = Abort::Exception(exception);
        Err(Fault)
    }

    /// The answer to an exit of this instruction, or the exit.
    #[cold]
    pub(crate) fn ask(&mut self, exit: Exit) -> Result<u64, Fault> {
        if let Some(&answer) = self.answers.get(self.answered) {
            self.answered += 1;
            return Ok(answer);
        }
        self.abort = Abort::Exit(exit);
        Err(Fault)
    }

    /// Goes on at `target`; `op` is the last instruction of the block.
    #[inline(always)]
    pub(crate) fn jump(&mut self, op: &Op, target: u64) {
        self.rip = target;
        self.retired += u64::from(op.number) + 1;
        if let Some(first) = self.cached_block(target) {
            (first.run)(self, first)
        }
    }

    /// Ends the block after `op`: RIP is the next instruction's, and the run loop looks at everything anew.
    pub(crate) fn end(&mut self, op: &Op) {
        self.rip = self.rip.wrapping_add(u64::from(op.following().ip));
        self.retired += u64::from(op.number) + 1;
    }

    /// As `end`, and then the processor stops with `exit`.
    pub(crate) fn end_with(&mut self, op: &Op, exit: Exit) {
        self.end(op);
        self.abort = Abort::After(exit);
    }

    /// Base of a segment, as addresses get it.
    pub(crate) fn base(&self, segment: Seg) -> u64 {
        self.bases[segment as usize]
    }
}
