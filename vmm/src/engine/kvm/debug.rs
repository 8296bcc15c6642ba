//! Stopping a guest for a debugger: single steps and breakpoints, without a trace in what the guest computes.
//!
//! A KVM on hardware virtualisation intercepts #DB and #BP (`KVM_SET_GUEST_DEBUG`) at every privilege level.
//! One without it beneath (`kvm_pvm`) runs CPL3 natively and delivers both to the *guest*, whatever was
//! asked; at CPL0, which it emulates, single-steps work and an INT3 is an instruction that it cannot execute.
//! There the guest gets an empty IDT while it runs under a debugger:
//!
//! ```text
//!  CPL3  #DB after RFLAGS.TF, or #BP at an INT3 ──▶ no gate ──▶ #DF ──▶ triple fault = KVM_EXIT_SHUTDOWN
//!        and every register is as at the exception: put the IDT back, RIP back onto the INT3, done
//! ```
//!
//! An exception of the guest's own comes out the same way: it is repeated with the guest's IDT and seen into
//! the first instruction of its handler, which is at CPL0, where single-steps work. Which of the two kinds a
//! KVM is, a virtual machine of one instruction tells before the first use.

use std::sync::OnceLock;

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_SW_BP, kvm_guest_debug,
};
use nix::sys::pthread::{Pthread, pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use vm_memory::{Bytes, GuestAddress};

use super::{KvmEngine, ioctl, regs};
use crate::boot;
use crate::debug::paging;
use crate::engine::state::{CpuState, Segment, TableRegister};
use crate::engine::{DebugRun, DebugStop, Engine, EngineError, Kick, VmEntry, VmExit};
use crate::memory::Ram;

/// RFLAGS.TF.
const TRAP: u64 = 1 << 8;
const INT3: u8 = 0xcc;
const DEBUG: u8 = 1;
const PUSHF: u8 = 0x9c;
/// Of `CpuState::gpr`.
const RSP: usize = 4;
/// What interrupts KVM_RUN. Its handler does nothing.
const KICK: Signal = Signal::SIGUSR1;

/// What a KVM does with #DB and #BP of a guest at CPL3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Traps {
    /// They come out as KVM_EXIT_DEBUG.
    Intercepted,
    /// They go to the guest's IDT.
    Delivered,
}

/// What the guest must not find in its registers once it runs without a debugger.
#[derive(Debug, Clone, Copy)]
pub(super) struct Armed {
    idt: TableRegister,
    dr6: u64,
}

impl Armed {
    /// Makes of the vCPU's registers the guest's.
    pub(super) fn hide(&self, state: &mut CpuState) {
        if state.idtr.base == self.idt.base && state.idtr.limit == 0 {
            state.idtr = self.idt;
        }
        state.rflags &= !TRAP;
        state.dr[4] = self.dr6;
        // What the trap flag queued; anything else queued is the guest's.
        if state.events.exception.is_some_and(|(vector, _)| vector == DEBUG) {
            state.events.exception = None;
        }
    }
}

/// How a run under a debugger ended, before anybody has looked why.
enum Ended {
    Exit(VmExit),
    /// KVM_EXIT_DEBUG.
    Trap,
}

fn cpl(state: &CpuState) -> u32 {
    state.segments[1].access >> 5 & 3
}

/// Makes a guest of one INT3 at CPL3, without an IDT, and sees what becomes of it.
fn probe() -> Result<Traps, EngineError> {
    const RAM_BYTES: u64 = 4 << 20;
    const CODE: u64 = 0x10_0000;
    let failed = |error: &dyn std::fmt::Display| EngineError::Failed(format!("debugging: {error}"));
    let ram = Ram::new(RAM_BYTES).map_err(|error| failed(&error))?;
    let mut first =
        boot::load_flat64(ram.map(), RAM_BYTES, &[INT3, INT3], CODE, "").map_err(|e| failed(&e))?;
    boot::open_to_users(ram.map()).map_err(|error| failed(&error))?;
    let user = |access| Segment { selector: 0x2b, base: 0, limit: u32::MAX, access };
    first.segments[..6].copy_from_slice(&[user(0xc0f3); 6]);
    first.segments[1] = Segment { selector: 0x33, ..user(0xa0fb) };
    let mut engine = KvmEngine::new(&ram)?;
    engine.restore(&first, logchannel::Position::at(0))?;
    engine.guest_debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP)?;
    loop {
        match engine.enter_debugged()? {
            Ended::Trap => return Ok(Traps::Intercepted),
            Ended::Exit(VmExit::Shutdown) => return Ok(Traps::Delivered),
            Ended::Exit(VmExit::Kicked) => {}
            Ended::Exit(other) => return Err(failed(&format!("INT3 at CPL3 came out as {other:?}"))),
        }
    }
}

fn traps() -> Result<Traps, EngineError> {
    static TRAPS: OnceLock<Traps> = OnceLock::new();
    match TRAPS.get() {
        Some(traps) => Ok(*traps),
        None => Ok(*TRAPS.get_or_init(|| probe().unwrap_or(Traps::Intercepted))),
    }
}

impl KvmEngine {
    fn guest_debug(&self, control: u32) -> Result<(), EngineError> {
        let debug = kvm_guest_debug { control, ..Default::default() };
        ioctl("KVM_SET_GUEST_DEBUG", self.vcpu.set_guest_debug(&debug))
    }

    /// One KVM_RUN that may end by KVM_EXIT_DEBUG.
    fn enter_debugged(&mut self) -> Result<Ended, EngineError> {
        let ran = match self.vcpu.run() {
            Ok(_) => true,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => false,
            Err(source) => return Err(EngineError::Ioctl { call: "KVM_RUN", source }),
        };
        if !ran {
            return Ok(Ended::Exit(VmExit::Kicked));
        }
        if self.vcpu.get_kvm_run().exit_reason == KVM_EXIT_DEBUG {
            return Ok(Ended::Trap);
        }
        Ok(Ended::Exit(super::exit::read(&mut self.vcpu)?))
    }

    /// As above, single-stepped by KVM.
    fn enter_stepped(&mut self) -> Result<Ended, EngineError> {
        self.guest_debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP)?;
        let ended = self.enter_debugged();
        self.guest_debug(0)?;
        ended
    }

    fn arm(&mut self, mut state: CpuState, trap: bool) -> Result<(), EngineError> {
        self.armed = Some(Armed { idt: state.idtr, dr6: state.dr[4] });
        state.idtr.limit = 0;
        if trap {
            state.rflags |= TRAP;
        }
        regs::restore(&mut self.vcpu, &state)
    }

    /// Gives the guest its own registers back; the last exit is completed.
    pub(super) fn disarm(&mut self) -> Result<(), EngineError> {
        let Some(armed) = self.armed.take() else { return Ok(()) };
        let mut state = regs::save(&self.vcpu)?;
        armed.hide(&mut state);
        regs::restore(&mut self.vcpu, &state)
    }

    /// The state after a triple fault, as at the exception that led to it.
    fn after_shutdown(&mut self) -> Result<CpuState, EngineError> {
        let armed = self.armed.take().expect("a shutdown is looked at only while armed");
        let mut state = regs::save(&self.vcpu)?;
        state.idtr = armed.idt;
        state.rflags &= !TRAP;
        state.events.exception = None;
        let stepped = state.dr[4] & (1 << 14) != 0;
        tracing::trace!(rip = format_args!("{:#x}", state.rip), stepped, "shutdown under a debugger");
        state.dr[4] = armed.dr6;
        regs::restore(&mut self.vcpu, &state)?;
        Ok(state)
    }

    fn exited(&mut self, exit: VmExit) -> DebugStop {
        if exit != VmExit::Kicked {
            self.exits += 1;
        }
        self.shut_down = exit == VmExit::Shutdown;
        DebugStop::Exit(exit)
    }

    /// Executes one instruction at CPL0, or takes the exception that the next one raises, or the interrupt
    /// that is queued: KVM steps there.
    fn step_by_kvm(&mut self) -> Result<DebugStop, EngineError> {
        Ok(match self.enter_stepped()? {
            Ended::Trap => DebugStop::Stepped,
            Ended::Exit(exit) => self.exited(exit),
        })
    }

    /// Executes one instruction, without a trace of the trap flag that may have done it.
    fn step(&mut self) -> Result<DebugStop, EngineError> {
        let before = regs::save(&self.vcpu)?;
        let stop = self.step_once(&before)?;
        if stop == DebugStop::Stepped && before.rflags & TRAP == 0 && self.pushes_flags(&before) {
            let after = regs::save(&self.vcpu)?;
            // The flags' second byte holds TF as its lowest bit.
            let place = paging::translate(&after, &self.memory, after.gpr[RSP].wrapping_add(1));
            if let Some(place) = place.map(GuestAddress)
                && let Ok(byte) = self.memory.read_obj::<u8>(place)
            {
                let written = self.memory.write_obj(byte & !1, place);
                written.map_err(|error| EngineError::Failed(format!("debugging: {error}")))?;
            }
        }
        Ok(stop)
    }

    /// Whether the next instruction is a PUSHF.
    fn pushes_flags(&self, state: &CpuState) -> bool {
        let mut bytes = [0; 4];
        let rip = state.rip.wrapping_add(state.segments[1].base);
        let read = paging::read(state, &self.memory, rip, &mut bytes);
        let prefix = |byte: &u8| *byte == 0x66 || (0x40..0x50).contains(byte);
        bytes[..read].iter().find(|byte| !prefix(byte)) == Some(&PUSHF)
    }

    fn step_once(&mut self, before: &CpuState) -> Result<DebugStop, EngineError> {
        let queued = std::mem::take(&mut self.injected);
        if cpl(before) == 0 || queued || traps()? == Traps::Intercepted {
            return self.step_by_kvm();
        }
        self.arm(before.clone(), true)?;
        match self.enter_debugged()? {
            Ended::Trap => {
                self.disarm()?;
                Ok(DebugStop::Stepped)
            }
            Ended::Exit(VmExit::Shutdown) => {
                let after = self.after_shutdown()?;
                if after.rip != before.rip || after.gpr != before.gpr {
                    return Ok(DebugStop::Stepped);
                }
                // Nothing moved: the instruction faulted, and its handler has the next word.
                self.step_by_kvm()
            }
            Ended::Exit(VmExit::Kicked) => {
                self.disarm()?;
                Ok(DebugStop::Exit(VmExit::Kicked))
            }
            // Disarmed when it is completed.
            Ended::Exit(exit) => Ok(self.exited(exit)),
        }
    }

    fn run_to_breakpoint(&mut self, ask: DebugRun<'_>) -> Result<DebugStop, EngineError> {
        let delivered = traps()? == Traps::Delivered;
        loop {
            if std::mem::take(&mut self.injected) && delivered {
                match self.step_by_kvm()? {
                    DebugStop::Stepped => {}
                    stop => return Ok(stop),
                }
            }
            if delivered {
                let state = regs::save(&self.vcpu)?;
                self.arm(state, false)?;
            } else {
                self.guest_debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP)?;
            }
            let ended = self.enter_debugged();
            if !delivered {
                self.guest_debug(0)?;
            }
            match ended? {
                Ended::Trap => {
                    self.disarm()?;
                    return Ok(DebugStop::Breakpoint);
                }
                Ended::Exit(VmExit::Kicked) => {
                    self.disarm()?;
                    return Ok(DebugStop::Exit(VmExit::Kicked));
                }
                // An INT3 that KVM should have emulated.
                Ended::Exit(VmExit::Unsupported(what)) => {
                    self.disarm()?;
                    if ask.breakpoints.contains(&self.rip()?) {
                        return Ok(DebugStop::Breakpoint);
                    }
                    return Ok(self.exited(VmExit::Unsupported(what)));
                }
                Ended::Exit(VmExit::Shutdown) if delivered => {
                    let mut state = self.after_shutdown()?;
                    let breakpoint = state.rip.wrapping_sub(1);
                    if ask.breakpoints.contains(&breakpoint) {
                        state.rip = breakpoint;
                        regs::restore(&mut self.vcpu, &state)?;
                        return Ok(DebugStop::Breakpoint);
                    }
                    match self.step_by_kvm()? {
                        DebugStop::Stepped => {}
                        stop => return Ok(stop),
                    }
                }
                Ended::Exit(exit) => return Ok(self.exited(exit)),
            }
        }
    }

    /// See `Engine::run_debug`.
    pub(super) fn debugged(&mut self, entry: VmEntry, ask: DebugRun<'_>) -> Result<DebugStop, EngineError> {
        if let Some(exit) = self.next.take() {
            assert_eq!(entry, VmEntry::Resume, "the last exit was answered when it was completed");
            return Ok(self.exited(exit));
        }
        if !ask.step && ask.breakpoints.is_empty() {
            self.disarm_completed(entry)?;
            self.injected = false;
            let exit = self.enter()?;
            return Ok(self.exited(exit));
        }
        self.complete(entry)?;
        if let Some(exit) = self.next.take() {
            return Ok(self.exited(exit));
        }
        if ask.step { self.step() } else { self.run_to_breakpoint(ask) }
    }

    /// Answers the last exit; completes it where that is needed to disarm.
    fn disarm_completed(&mut self, entry: VmEntry) -> Result<(), EngineError> {
        match self.armed {
            Some(_) => self.complete(entry),
            None => {
                super::exit::answer(&mut self.vcpu, entry);
                Ok(())
            }
        }
    }
}

extern "C" fn nothing(_: libc::c_int) {}

/// Interrupts the KVM_RUN of the calling thread. A kick that comes just before KVM_RUN is lost: repeat it.
pub(super) fn kicker() -> Option<Kick> {
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, so it may run at any point of any thread.
    unsafe { sigaction(KICK, &action) }.ok()?;
    let thread: Pthread = pthread_self();
    Some(Box::new(move || {
        let _ = pthread_kill(thread, KICK);
    }))
}
