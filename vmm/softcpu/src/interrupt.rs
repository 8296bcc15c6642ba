//! Delivery of exceptions and interrupts through the 64-bit IDT (SDM vol. 3, 6.12.1, 6.14 and 6.15).
//!
//! ```text
//!  gate (16 bytes): offset 15–0 · selector · IST, type, DPL, P · offset 31–16 · offset 63–32
//!  frame: SS · RSP · RFLAGS · CS · RIP · error code
//! ```
//!
//! A delivery with all that goes wrong in it is one step. Tables and stacks outside RAM end in a shutdown: no
//! device answers for them.

use crate::cpu::Abort;
use crate::descriptor::{Descriptor, coded_selector, is_null};
use crate::exception::{Exception, Kind, is_canonical, vector};
use crate::flags;
use crate::mem::{ALIGNED, privilege};
use crate::state::{Seg, Segment};
use crate::{Cpu, Exit, Fault};

const INTERRUPT_GATE: u64 = 0xe;
const TRAP_GATE: u64 = 0xf;
/// Offset of RSP0 in the 64-bit TSS; of IST1 (SDM vol. 3, 7.7).
const TSS_RSP0: u64 = 4;
const TSS_IST1: u64 = 36;

struct Gate {
    offset: u64,
    selector: u16,
    ist: u64,
    masks: bool,
}

/// What a second exception makes of the first (SDM vol. 3, table 6-5).
#[derive(PartialEq, Eq, Clone, Copy)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(event: &Exception) -> Class {
    if !matches!(event.kind, Kind::Fault) {
        return Class::Benign;
    }
    match event.vector {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::PageFault,
        vector::DF => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// What is delivered when `second` came up while `first` was being delivered; `None` for a shutdown.
fn escalate(first: &Exception, second: Exception) -> Option<Exception> {
    match (class(first), class(&second)) {
        (Class::DoubleFault, Class::Contributory | Class::PageFault) => None,
        (Class::Contributory, Class::Contributory)
        | (Class::PageFault, Class::Contributory | Class::PageFault) => Some(Exception::coded(vector::DF, 0)),
        _ => Some(second),
    }
}

/// EXT, the bit of error codes that says that no INT n was the cause.
fn ext(event: &Exception) -> u32 {
    u32::from(!matches!(event.kind, Kind::Software(_)))
}

impl Cpu {
    /// Delivers an external interrupt, as one step.
    pub(crate) fn deliver_interrupt(&mut self, vector: u8) {
        self.deliver(Exception::interrupt(vector, Kind::External));
    }

    /// Delivers an exception, as one step.
    pub(crate) fn deliver(&mut self, exception: Exception) {
        self.retired += 1;
        let alone = std::mem::replace(&mut self.alone, true);
        let mut event = self.settled(exception);
        if event.kind == Kind::Fault {
            // Of iterations before this one; the frame of a fault has it in any case.
            self.system_flags &= !flags::RF;
        }
        loop {
            self.note(&event);
            if self.enter_handler(&event).is_ok() {
                break;
            }
            let next = match std::mem::take(&mut self.abort) {
                Abort::Exception(second) => escalate(&event, second),
                _ => None,
            };
            match next {
                Some(next) => event = next,
                None => {
                    self.abort = Abort::After(Exit::Shutdown);
                    break;
                }
            }
        }
        self.alone = alone;
        self.answers.clear();
        self.answered = 0;
    }

    /// An access to a non-canonical address becomes #SS or #GP.
    fn settled(&mut self, event: Exception) -> Exception {
        if event.vector == vector::GP && event.detail != 0 && self.is_through_stack(event.detail) {
            return Exception::coded(vector::SS, 0);
        }
        event
    }

    /// Whether the instruction at RIP reaches `address` through SS: implicitly, or based on RSP or RBP.
    fn is_through_stack(&mut self, address: u64) -> bool {
        use iced_x86::{OpKind, Register};
        let Some(insn) = self.instruction_at_rip() else { return false };
        let operand = (0..insn.op_count()).find(|number| insn.op_kind(*number) == OpKind::Memory);
        let Some(operand) = operand else { return insn.is_stack_instruction() };
        let of_operand = insn.virtual_address(operand, 0, |register, _, _| {
            if register.is_segment_register() {
                return Some(self.base(crate::decode::segment(register)));
            }
            let full = register.full_register();
            full.is_gpr().then(|| self.regs[full.number()])
        });
        let near = of_operand.is_none_or(|start| address.wrapping_sub(start) < 4096);
        if insn.is_stack_instruction() && !near {
            return true;
        }
        if self.mode & crate::cpu::mode::LONG == 0 {
            return insn.memory_segment() == Register::SS;
        }
        // In 64-bit mode prefixes for ES, CS, SS and DS are ignored.
        let based = matches!(insn.memory_base().full_register(), Register::RSP | Register::RBP);
        based && !matches!(insn.memory_segment(), Register::FS | Register::GS)
    }

    /// What an exception leaves in registers, whether or not its handler is reached.
    fn note(&mut self, event: &Exception) {
        match event.vector {
            vector::PF if event.kind == Kind::Fault => self.cr2 = event.detail,
            vector::DB if matches!(event.kind, Kind::Fault | Kind::Trap) => self.note_debug(event.detail),
            _ => {}
        }
    }

    fn enter_handler(&mut self, event: &Exception) -> Result<(), Fault> {
        let ext = ext(event);
        let gate = self.gate(event, ext)?;
        let (code, cpl) = self.handler_code(gate.selector, ext)?;
        let top = self.handler_stack(gate.ist, cpl, ext)?;
        let frame = self.push_frame(event, cpl, top, ext)?;
        if !is_canonical(gate.offset) {
            return self.raise(Exception::gp(ext));
        }
        self.mark_accessed(code)?;
        if cpl != self.cpl {
            self.segments[Seg::Ss as usize] = null_stack(cpl);
        }
        self.segments[Seg::Cs as usize] = code.segment(gate.selector & !3 | u16::from(cpl));
        self.regs[4] = frame;
        self.rip = gate.offset;
        self.system_flags &= !(flags::TF | flags::NT | flags::RF | flags::VM);
        if gate.masks {
            self.system_flags &= !flags::IF;
        }
        self.update_mode();
        Ok(())
    }

    fn gate(&mut self, event: &Exception, ext: u32) -> Result<Gate, Fault> {
        let code = u32::from(event.vector) << 3 | 2 | ext;
        let offset = u64::from(event.vector) * 16;
        if offset + 15 > u64::from(self.idtr.limit) {
            return self.raise(Exception::gp(code));
        }
        let at = self.idtr.base.wrapping_add(offset);
        let low = self.read_system::<u64>(at)?;
        let high = self.read_system::<u64>(at.wrapping_add(8))?;
        let kind = low >> 40 & 0x1f;
        if kind != INTERRUPT_GATE && kind != TRAP_GATE {
            return self.raise(Exception::gp(code));
        }
        if matches!(event.kind, Kind::Software(_)) && ((low >> 45 & 3) as u8) < self.cpl {
            return self.raise(Exception::gp(code));
        }
        if low & 1 << 47 == 0 {
            return self.raise(Exception::coded(vector::NP, code));
        }
        Ok(Gate {
            offset: low & 0xffff | low >> 32 & 0xffff_0000 | high << 32,
            selector: (low >> 16) as u16,
            ist: low >> 32 & 7,
            masks: kind == INTERRUPT_GATE,
        })
    }

    /// The handler's code segment and privilege.
    pub(crate) fn handler_code(&mut self, selector: u16, ext: u32) -> Result<(Descriptor, u8), Fault> {
        if is_null(selector) {
            return self.raise(Exception::gp(ext));
        }
        let code = coded_selector(selector) | ext;
        let descriptor = self.descriptor_or(selector, vector::GP, ext)?;
        if !descriptor.is_code()
            || descriptor.dpl() > self.cpl
            || !descriptor.is_long()
            || descriptor.is_big()
        {
            return self.raise(Exception::gp(code));
        }
        if !descriptor.is_present() {
            return self.raise(Exception::coded(vector::NP, code));
        }
        let cpl = if descriptor.is_conforming() { self.cpl } else { descriptor.dpl() };
        Ok((descriptor, cpl))
    }

    /// Where the frame goes: the top of the interrupt stack, of the inner stack, or RSP; aligned.
    fn handler_stack(&mut self, ist: u64, cpl: u8, ext: u32) -> Result<u64, Fault> {
        let rsp = if ist != 0 {
            self.stack_in_tss(TSS_IST1 + 8 * (ist - 1), ext)?
        } else if cpl != self.cpl {
            self.inner_stack(cpl, ext)?
        } else {
            self.regs[4]
        };
        Ok(rsp & !15)
    }

    /// The stack pointer for `cpl` in the TSS.
    pub(crate) fn inner_stack(&mut self, cpl: u8, ext: u32) -> Result<u64, Fault> {
        self.stack_in_tss(TSS_RSP0 + 8 * u64::from(cpl), ext)
    }

    fn stack_in_tss(&mut self, offset: u64, ext: u32) -> Result<u64, Fault> {
        let tr = self.segments[Seg::Tr as usize];
        if offset + 7 > u64::from(tr.limit) {
            return self.raise(Exception::coded(vector::TS, coded_selector(tr.selector) | ext));
        }
        let rsp = self.read_system(tr.base.wrapping_add(offset))?;
        if !is_canonical(rsp) {
            return self.raise(Exception::coded(vector::SS, ext));
        }
        Ok(rsp)
    }

    /// Pushes the frame; the result is the new RSP.
    fn push_frame(&mut self, event: &Exception, cpl: u8, top: u64, ext: u32) -> Result<u64, Fault> {
        let mut rflags = self.rflags();
        let breakpoint = event.vector == vector::DB && event.detail & 15 != 0;
        if event.kind == Kind::Fault && !breakpoint {
            rflags |= flags::RF;
        }
        let rip = match event.kind {
            Kind::Software(length) | Kind::Privileged(length) => self.rip.wrapping_add(u64::from(length)),
            _ => self.rip,
        };
        let rip = if self.mode & crate::cpu::mode::LONG == 0 { rip & 0xffff_ffff } else { rip };
        let selector = |seg: Seg| u64::from(self.segments[seg as usize].selector);
        let error = u64::from(event.error.unwrap_or(0));
        let words = [selector(Seg::Ss), self.regs[4], rflags, selector(Seg::Cs), rip, error];
        let count = if event.error.is_some() { 6 } else { 5 };
        self.push_words(cpl, top, &words[..count], ext)
    }

    /// Pushes words onto the stack of privilege `cpl` below `top`, all or none; the result is the new top.
    pub(crate) fn push_words(&mut self, cpl: u8, top: u64, words: &[u64], ext: u32) -> Result<u64, Fault> {
        let bytes = 8 * words.len() as u64;
        let bottom = top.wrapping_sub(bytes);
        if !is_canonical(bottom) || !is_canonical(top.wrapping_sub(1)) {
            return self.raise(Exception::coded(vector::SS, ext));
        }
        let space = self.space;
        self.space = space & !(3 | ALIGNED) | if cpl == 3 { privilege::USER } else { privilege::IMPLICIT };
        let mut done = self.check_write(bottom, bytes);
        if done.is_err() && matches!(self.abort, Abort::Exception(_)) {
            // The words are pushed from the top down: CR2 names the first that cannot be.
            done = (1..=words.len() as u64)
                .try_for_each(|number| self.check_write(top.wrapping_sub(8 * number), 8));
        }
        for (number, word) in words.iter().enumerate() {
            let to = top.wrapping_sub(8 * (number as u64 + 1));
            done = done.and_then(|()| self.write(to, *word));
        }
        self.restore_privilege(space);
        done.map(|()| bottom)
    }
}

/// SS after a change to an inner privilege.
pub fn null_stack(cpl: u8) -> Segment {
    let access = Segment::UNUSABLE | u32::from(cpl) << 5;
    Segment { selector: u16::from(cpl), base: 0, limit: 0, access }
}
