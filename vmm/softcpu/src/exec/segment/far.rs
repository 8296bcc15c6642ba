//! Far JMP, CALL and RET, with 64-bit call gates (SDM vol. 2, JMP, CALL, RET; vol. 3, 5.8).

use iced_x86::{Code, Instruction, OpKind};

use crate::decode::{Builder, Lowered};
use crate::descriptor::{Descriptor, coded_selector, is_null, null_segment, system};
use crate::exception::{Exception, is_canonical, vector};
use crate::interrupt::null_stack;
use crate::op::{Handler, Op, abort};
use crate::state::{Seg, Segment};
use crate::word::Word;
use crate::{Cpu, Fault, or_abort};

/// Where a far transfer leads.
struct Far {
    code: Segment,
    rip: u64,
    /// Through a gate to an inner privilege: its stack.
    stack: Option<u64>,
    /// Through a gate: the frame is made of 64-bit words.
    gate: bool,
}

/// Where a return leads.
pub struct Return {
    /// Selector of the code segment.
    pub cs: u16,
    /// Instruction pointer.
    pub rip: u64,
    /// SS and RSP, when they were popped.
    pub stack: Option<(u16, u64)>,
}

/// A return that was checked.
pub struct Checked {
    code: Segment,
    rip: u64,
    stack: Option<(Segment, u64)>,
}

impl Cpu {
    /// Goes on at `target`, after everything else was loaded.
    pub(crate) fn arrive(&mut self, op: &Op, target: u64) {
        self.update_mode();
        self.rip = target;
        self.retired += u64::from(op.number) + 1;
    }

    /// Whether RIP may be `rip` in code segment `code`.
    fn check_target(&mut self, code: &Segment, rip: u64) -> Result<(), Fault> {
        let long = self.is_long_mode() && code.access & Segment::LONG != 0;
        if if long { is_canonical(rip) } else { rip <= u64::from(code.limit) } {
            return Ok(());
        }
        self.raise(Exception::gp(0))
    }

    fn check_code(&mut self, selector: u16, descriptor: Descriptor, allowed: bool) -> Result<(), Fault> {
        let code = coded_selector(selector);
        let both = self.is_long_mode() && descriptor.is_long() && descriptor.is_big();
        if !descriptor.is_code() || !allowed || both {
            return self.raise(Exception::gp(code));
        }
        if !descriptor.is_present() {
            return self.raise(Exception::coded(vector::NP, code));
        }
        Ok(())
    }

    fn far_target(&mut self, selector: u16, rip: u64, call: bool) -> Result<Far, Fault> {
        if is_null(selector) {
            return self.raise(Exception::gp(0));
        }
        let descriptor = self.descriptor_or(selector, vector::GP, 0)?;
        if !descriptor.is_segment() {
            return self.gate_target(selector, descriptor, call);
        }
        let allowed = if descriptor.is_conforming() {
            descriptor.dpl() <= self.cpl
        } else {
            (selector & 3) as u8 <= self.cpl && descriptor.dpl() == self.cpl
        };
        self.check_code(selector, descriptor, allowed)?;
        let code = descriptor.segment(selector & !3 | u16::from(self.cpl));
        self.check_target(&code, rip)?;
        self.mark_accessed(descriptor)?;
        Ok(Far { code, rip, stack: None, gate: false })
    }

    fn gate_target(&mut self, selector: u16, gate: Descriptor, call: bool) -> Result<Far, Fault> {
        let code = coded_selector(selector);
        let rpl = (selector & 3) as u8;
        if gate.kind() != system::CALL_GATE || gate.dpl() < self.cpl.max(rpl) {
            return self.raise(Exception::gp(code));
        }
        if !gate.is_present() {
            return self.raise(Exception::coded(vector::NP, code));
        }
        let high = self.second_half(selector)?;
        if high >> 40 & 0x1f != 0 {
            return self.raise(Exception::gp(code));
        }
        let rip = gate.low & 0xffff | gate.low >> 32 & 0xffff_0000 | high << 32;
        let target = (gate.low >> 16) as u16;
        let (descriptor, cpl) = self.handler_code(target, 0)?;
        if !call && cpl != self.cpl {
            return self.raise(Exception::gp(coded_selector(target)));
        }
        if !is_canonical(rip) {
            return self.raise(Exception::gp(0));
        }
        let stack = if cpl == self.cpl { None } else { Some(self.inner_stack(cpl, 0)?) };
        self.mark_accessed(descriptor)?;
        let code = descriptor.segment(target & !3 | u16::from(cpl));
        Ok(Far { code, rip, stack, gate: true })
    }

    fn far_call<W: Word>(&mut self, op: &Op, selector: u16, rip: u64) -> Result<Far, Fault> {
        let far = self.far_target(selector, rip, true)?;
        let back = self.rip.wrapping_add(u64::from(op.following().ip));
        let cs = u64::from(self.segments[Seg::Cs as usize].selector);
        let before = self.regs[4];
        match far.stack {
            Some(top) => {
                let cpl = (far.code.selector & 3) as u8;
                let ss = u64::from(self.segments[Seg::Ss as usize].selector);
                self.regs[4] = self.push_words(cpl, top, &[ss, before, cs, back], 0)?;
                self.segments[Seg::Ss as usize] = null_stack(cpl);
            }
            None if far.gate => self.regs[4] = self.push_words(self.cpl, before, &[cs, back], 0)?,
            None => {
                self.check_stack(2, W::BYTES)?;
                let pushed = self.push(W::of(cs)).and_then(|()| self.push(W::of(back)));
                if pushed.is_err() {
                    self.regs[4] = before;
                    return Err(Fault);
                }
            }
        }
        Ok(far)
    }

    /// Checks where a far RET or an IRET leads, before anything changes but accessed bits.
    pub(crate) fn check_return(&mut self, to: &Return) -> Result<Checked, Fault> {
        if is_null(to.cs) {
            return self.raise(Exception::gp(0));
        }
        let cpl = (to.cs & 3) as u8;
        let descriptor = self.descriptor_or(to.cs, vector::GP, 0)?;
        let dpl = descriptor.dpl();
        let fits = if descriptor.is_conforming() { dpl <= cpl } else { dpl == cpl };
        self.check_code(to.cs, descriptor, cpl >= self.cpl && fits)?;
        let code = descriptor.segment(to.cs);
        let stack = match to.stack {
            Some((selector, rsp)) => Some((self.return_stack(selector, &code)?, rsp)),
            None => None,
        };
        self.check_target(&code, to.rip)?;
        self.mark_accessed(descriptor)?;
        Ok(Checked { code, rip: to.rip, stack })
    }

    fn return_stack(&mut self, selector: u16, code: &Segment) -> Result<Segment, Fault> {
        let cpl = (code.selector & 3) as u8;
        if is_null(selector) {
            let allowed = code.access & Segment::LONG != 0 && cpl != 3 && (selector & 3) as u8 == cpl;
            return if allowed { Ok(null_stack(cpl)) } else { self.raise(Exception::gp(0)) };
        }
        let descriptor = self.descriptor_or(selector, vector::GP, 0)?;
        let loaded = self.stack_segment(selector, cpl, descriptor)?;
        self.mark_accessed(descriptor)?;
        Ok(loaded)
    }

    /// Makes a checked return; `release` bytes of the outer stack are dropped.
    pub(crate) fn make_return(&mut self, op: &Op, to: &Checked, release: u64) {
        let outer = (to.code.selector & 3) as u8 > self.cpl;
        self.segments[Seg::Cs as usize] = to.code;
        if let Some((segment, rsp)) = to.stack {
            self.segments[Seg::Ss as usize] = segment;
            self.regs[4] = rsp.wrapping_add(release);
        }
        self.arrive(op, to.rip);
        if outer {
            self.drop_inner_segments();
            self.update_mode();
        }
    }

    /// Data segments that the outer privilege may not use become null, and null selectors 0 (SDM vol. 2,
    /// IRET). The bases of FS and GS stay, as they do in a processor of Intel's.
    fn drop_inner_segments(&mut self) {
        for seg in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
            let segment = &mut self.segments[seg as usize];
            let conforming = segment.access & 0x1c == 0x1c;
            let usable = segment.access & Segment::UNUSABLE == 0;
            let forbidden = usable && !conforming && segment.dpl() < self.cpl;
            if forbidden || is_null(segment.selector) {
                let base = if matches!(seg, Seg::Fs | Seg::Gs) { segment.base } else { 0 };
                *segment = Segment { base, ..null_segment(0) };
            }
        }
    }
}

/// The far pointer of an op: in memory, or its immediate (selector in bits 32–47).
fn pointer<const MEM: bool, W: Word>(cpu: &mut Cpu, op: &Op) -> Result<(u16, u64), Fault> {
    if !MEM {
        return Ok(((op.imm >> 32) as u16, op.imm & 0xffff_ffff));
    }
    let at = cpu.address(op);
    let rip = cpu.read::<W>(at)?.zext();
    Ok((cpu.read(at.wrapping_add(W::BYTES))?, rip))
}

fn jmp<const MEM: bool, W: Word>(cpu: &mut Cpu, op: &Op) {
    let (selector, rip) = or_abort!(cpu, op, pointer::<MEM, W>(cpu, op));
    let far = or_abort!(cpu, op, cpu.far_target(selector, rip, false));
    cpu.segments[Seg::Cs as usize] = far.code;
    cpu.arrive(op, far.rip)
}

fn call<const MEM: bool, W: Word>(cpu: &mut Cpu, op: &Op) {
    let (selector, rip) = or_abort!(cpu, op, pointer::<MEM, W>(cpu, op));
    let far = or_abort!(cpu, op, cpu.far_call::<W>(op, selector, rip));
    cpu.segments[Seg::Cs as usize] = far.code;
    cpu.arrive(op, far.rip)
}

/// RETF; `imm` bytes of arguments are released.
fn ret<W: Word>(cpu: &mut Cpu, op: &Op) {
    let Ok((to, outer)) = popped::<W>(cpu, op.imm) else { return abort(cpu, op) };
    let checked = or_abort!(cpu, op, cpu.check_return(&to));
    if !outer {
        cpu.set_stack(cpu.regs[4].wrapping_add(2 * W::BYTES + op.imm));
    }
    cpu.make_return(op, &checked, op.imm)
}

fn popped<W: Word>(cpu: &mut Cpu, release: u64) -> Result<(Return, bool), Fault> {
    let rip = cpu.peek::<W>(0)?.zext();
    let cs = cpu.peek::<W>(W::BYTES)?.zext() as u16;
    let outer = (cs & 3) as u8 > cpu.cpl;
    let stack = if outer {
        let at = 2 * W::BYTES + release;
        let rsp = cpu.peek::<W>(at)?.zext();
        Some((cpu.peek::<W>(at + W::BYTES)?.zext() as u16, rsp))
    } else {
        None
    };
    Ok((Return { cs, rip, stack }, outer))
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let run: Handler = match insn.code() {
        Code::Jmp_m1616 => jmp::<true, u16>,
        Code::Jmp_m1632 => jmp::<true, u32>,
        Code::Jmp_m1664 => jmp::<true, u64>,
        Code::Jmp_ptr1616 => jmp::<false, u16>,
        Code::Jmp_ptr1632 => jmp::<false, u32>,
        Code::Call_m1616 => call::<true, u16>,
        Code::Call_m1632 => call::<true, u32>,
        Code::Call_m1664 => call::<true, u64>,
        Code::Call_ptr1616 => call::<false, u16>,
        Code::Call_ptr1632 => call::<false, u32>,
        Code::Retfw | Code::Retfw_imm16 => ret::<u16>,
        Code::Retfd | Code::Retfd_imm16 => ret::<u32>,
        Code::Retfq | Code::Retfq_imm16 => ret::<u64>,
        _ => return Lowered::Unknown,
    };
    let mut op = Op::new(run);
    match insn.op0_kind() {
        _ if insn.op_count() == 0 => {}
        OpKind::Memory => builder.memory(&mut op, insn),
        OpKind::FarBranch16 => {
            op.imm = u64::from(insn.far_branch_selector()) << 32 | u64::from(insn.far_branch16());
        }
        OpKind::FarBranch32 => {
            op.imm = u64::from(insn.far_branch_selector()) << 32 | u64::from(insn.far_branch32());
        }
        _ => op.imm = u64::from(insn.immediate16()),
    }
    builder.push(op);
    Lowered::Ends
}
