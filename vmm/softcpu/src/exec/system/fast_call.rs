//! SYSCALL, SYSRET, SYSENTER, SYSEXIT (SDM vol. 2; vol. 3, 5.8.7 and 5.8.8).
//!
//! Where vendors differ this is Intel's behaviour: SYSCALL and SYSRET are #UD outside 64-bit mode, and SYSRET
//! to a non-canonical address is #GP at CPL 0.

use iced_x86::{Code, Instruction, Mnemonic};

use crate::control::EFER_SCE;
use crate::cpu::mode;
use crate::decode::{Builder, Lowered};
use crate::exception::{Exception, is_canonical, raise_at};
use crate::flags;
use crate::op::{Handler, Op};
use crate::state::{Seg, Segment};
use crate::{Cpu, or_abort};

/// Present code, execute/read, accessed, DPL 0, flat; without L and D.
const CODE: u32 = 0x809b;
/// Present data, read/write, accessed, DPL 0, flat, B.
const DATA: u32 = 0xc093;
/// RFLAGS that SYSRET takes from R11.
const SYSRET_FLAGS: u64 = 0x3c_7fd7;

fn flat_code(selector: u64, cpl: u8, long: bool) -> Segment {
    let kind = if long { Segment::LONG } else { Segment::BIG };
    let access = CODE | kind | u32::from(cpl) << 5;
    Segment { selector: selector as u16 & !3 | u16::from(cpl), base: 0, limit: u32::MAX, access }
}

fn flat_data(selector: u64, cpl: u8) -> Segment {
    let access = DATA | u32::from(cpl) << 5;
    Segment { selector: selector as u16 & !3 | u16::from(cpl), base: 0, limit: u32::MAX, access }
}

impl Cpu {
    /// Enters flat segments at privilege `cpl` and goes on at `target`.
    fn enter_flat(&mut self, op: &Op, code: Segment, stack: Segment, target: u64) {
        self.segments[Seg::Cs as usize] = code;
        self.segments[Seg::Ss as usize] = stack;
        self.update_mode();
        self.rip = target;
        self.retired += u64::from(op.number) + 1;
        // Whether a single-step trap follows is for the new RFLAGS.TF to say.
        self.debug.step = self.system_flags & flags::TF != 0;
    }
}

fn syscall(cpu: &mut Cpu, op: &Op) {
    if cpu.efer & EFER_SCE == 0 || cpu.mode & mode::LONG == 0 {
        return raise_at(cpu, op, Exception::ud());
    }
    let rflags = cpu.rflags() & !flags::RF;
    cpu.regs[1] = cpu.rip.wrapping_add(u64::from(op.following().ip));
    cpu.regs[11] = rflags;
    cpu.set_rflags(rflags & !cpu.msrs.sfmask);
    let selector = cpu.msrs.star >> 32;
    let target = cpu.msrs.lstar;
    cpu.enter_flat(op, flat_code(selector, 0, true), flat_data((selector & 0xfffc) + 8, 0), target)
}

fn sysret<const LONG: bool>(cpu: &mut Cpu, op: &Op) {
    if cpu.efer & EFER_SCE == 0 || cpu.mode & mode::LONG == 0 {
        return raise_at(cpu, op, Exception::ud());
    }
    let target = if LONG { cpu.regs[1] } else { cpu.regs[1] & 0xffff_ffff };
    if cpu.cpl != 0 || !is_canonical(target) {
        return raise_at(cpu, op, Exception::gp(0));
    }
    if cpu.regs[11] & flags::TF != 0 {
        // The trap follows at once, unlike after POPF: only an instruction by itself has one.
        or_abort!(cpu, op, cpu.must_be_alone());
    }
    cpu.set_rflags(cpu.regs[11] & SYSRET_FLAGS);
    let selector = cpu.msrs.star >> 48;
    let code = flat_code(selector + if LONG { 16 } else { 0 }, 3, LONG);
    cpu.enter_flat(op, code, flat_data(selector + 8, 3), target)
}

fn sysenter(cpu: &mut Cpu, op: &Op) {
    let selector = cpu.msrs.sysenter_cs & 0xfffc;
    if selector == 0 {
        return raise_at(cpu, op, Exception::gp(0));
    }
    let long = cpu.is_long_mode();
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    let target = cpu.msrs.sysenter_eip & mask;
    cpu.regs[4] = cpu.msrs.sysenter_esp & mask;
    cpu.system_flags &= !(flags::IF | flags::RF | flags::VM);
    cpu.enter_flat(op, flat_code(selector, 0, long), flat_data(selector + 8, 0), target)
}

fn sysexit<const LONG: bool>(cpu: &mut Cpu, op: &Op) {
    let selector = cpu.msrs.sysenter_cs & 0xfffc;
    let mask = if LONG { u64::MAX } else { 0xffff_ffff };
    let (target, stack) = (cpu.regs[2] & mask, cpu.regs[1] & mask);
    if cpu.cpl != 0 || selector == 0 || !is_canonical(target) || !is_canonical(stack) {
        return raise_at(cpu, op, Exception::gp(0));
    }
    let first = selector + if LONG { 32 } else { 16 };
    cpu.regs[4] = stack;
    cpu.enter_flat(op, flat_code(first, 3, LONG), flat_data(first + 8, 3), target)
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let run: Handler = match (insn.mnemonic(), insn.code()) {
        (Mnemonic::Syscall, _) => syscall,
        (_, Code::Sysretq) => sysret::<true>,
        (_, Code::Sysretd) => sysret::<false>,
        (Mnemonic::Sysenter, _) => sysenter,
        (_, Code::Sysexitq) => sysexit::<true>,
        (_, Code::Sysexitd) => sysexit::<false>,
        _ => return Lowered::Unknown,
    };
    builder.push(Op::new(run));
    Lowered::Ends
}
