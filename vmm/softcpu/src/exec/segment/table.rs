//! Descriptor tables and questions about descriptors: LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT, STR, LAR, LSL,
//! VERR, VERW, ARPL.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::selector_operand;
use crate::cpu::mode;
use crate::decode::{Builder, Lowered, gpr, operand_bytes};
use crate::descriptor::{Descriptor, coded_selector, is_null, null_segment, system};
use crate::exception::{Exception, is_canonical, vector};
use crate::op::{Handler, Op, next};
use crate::state::{Seg, Table};
use crate::word::Word;
use crate::{Cpu, Fault, or_abort};

/// What LAR shows of a descriptor's second doubleword.
const LAR_MASK: u64 = 0x00f0_ff00;

impl Cpu {
    fn read_table(&mut self, op: &Op) -> Result<Table, Fault> {
        self.must_be_supervisor()?;
        let at = self.address(op);
        let limit = self.read(at)?;
        let base = if self.mode & mode::LONG != 0 {
            self.read::<u64>(at.wrapping_add(2))?
        } else {
            // With 16-bit operands the base has 24 bits.
            u64::from(self.read::<u32>(at.wrapping_add(2))?) & op.imm
        };
        if !is_canonical(base) {
            return self.raise(Exception::gp(0));
        }
        Ok(Table { base, limit })
    }

    fn write_table(&mut self, op: &Op, table: Table) -> Result<(), Fault> {
        let mut bytes = [0; 10];
        bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
        bytes[2..].copy_from_slice(&table.base.to_le_bytes());
        let count = if self.mode & mode::LONG != 0 { 10 } else { 6 };
        self.write_bytes(self.address(op), &bytes[..count])
    }

    fn load_ldt(&mut self, selector: u16) -> Result<(), Fault> {
        self.must_be_supervisor()?;
        let loaded = if is_null(selector) {
            null_segment(selector)
        } else {
            let descriptor = self.system_descriptor(selector, system::LDT)?;
            self.system_segment(selector, descriptor)?
        };
        self.segments[Seg::Ldtr as usize] = loaded;
        Ok(())
    }

    fn load_task(&mut self, selector: u16) -> Result<(), Fault> {
        self.must_be_supervisor()?;
        if is_null(selector) {
            return self.raise(Exception::gp(0));
        }
        let descriptor = self.system_descriptor(selector, system::TSS_AVAILABLE)?;
        let mut loaded = self.system_segment(selector, descriptor)?;
        let busy = system::TSS_BUSY & !system::TSS_AVAILABLE;
        self.mark(descriptor, busy)?;
        loaded.access |= u32::from(busy);
        self.segments[Seg::Tr as usize] = loaded;
        Ok(())
    }

    /// A present system descriptor of type `kind` in the GDT.
    fn system_descriptor(&mut self, selector: u16, kind: u8) -> Result<Descriptor, Fault> {
        let code = coded_selector(selector);
        if selector & 4 != 0 {
            return self.raise(Exception::gp(code));
        }
        let descriptor = self.descriptor_or(selector, vector::GP, 0)?;
        if descriptor.is_segment() || descriptor.kind() != kind {
            return self.raise(Exception::gp(code));
        }
        if !descriptor.is_present() {
            return self.raise(Exception::coded(vector::NP, code));
        }
        Ok(descriptor)
    }

    /// The descriptor of `selector` if this privilege may see it and `visible` says so of its kind.
    fn visible(
        &mut self,
        selector: u16,
        visible: impl Fn(Descriptor) -> bool,
    ) -> Result<Option<Descriptor>, Fault> {
        if is_null(selector) {
            return Ok(None);
        }
        let (cpl, rpl) = (self.cpl, (selector & 3) as u8);
        let descriptor = self.descriptor(selector)?;
        Ok(descriptor.filter(|d| visible(*d) && (d.is_conforming() || rpl.max(cpl) <= d.dpl())))
    }
}

fn lgdt(cpu: &mut Cpu, op: &Op) {
    cpu.gdtr = or_abort!(cpu, op, cpu.read_table(op));
    next(cpu, op)
}

fn lidt(cpu: &mut Cpu, op: &Op) {
    cpu.idtr = or_abort!(cpu, op, cpu.read_table(op));
    next(cpu, op)
}

fn sgdt(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.write_table(op, cpu.gdtr));
    next(cpu, op)
}

fn sidt(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.write_table(op, cpu.idtr));
    next(cpu, op)
}

fn lldt<const MEM: bool>(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.must_be_supervisor());
    let selector = or_abort!(cpu, op, selector_operand::<MEM>(cpu, op));
    or_abort!(cpu, op, cpu.load_ldt(selector));
    next(cpu, op)
}

fn ltr<const MEM: bool>(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.must_be_supervisor());
    let selector = or_abort!(cpu, op, selector_operand::<MEM>(cpu, op));
    or_abort!(cpu, op, cpu.load_task(selector));
    next(cpu, op)
}

/// SLDT and STR: `imm` is the register.
fn store_r<W: Word>(cpu: &mut Cpu, op: &Op) {
    let selector = cpu.segments[op.imm as usize % 8].selector;
    cpu.set_reg(op.dst, W::of(selector.into()));
    next(cpu, op)
}

fn store_m(cpu: &mut Cpu, op: &Op) {
    let selector = cpu.segments[op.imm as usize % 8].selector;
    or_abort!(cpu, op, cpu.write(cpu.address(op), selector));
    next(cpu, op)
}

fn set_zf(cpu: &mut Cpu, zf: bool) {
    let rflags = cpu.rflags() & !crate::flags::ZF;
    cpu.set_rflags(rflags | if zf { crate::flags::ZF } else { 0 });
}

/// LAR: `imm` is the operand size.
fn lar<const MEM: bool>(cpu: &mut Cpu, op: &Op) {
    let selector = or_abort!(cpu, op, selector_operand::<MEM>(cpu, op));
    let kinds = [system::LDT, system::TSS_AVAILABLE, system::TSS_BUSY, system::CALL_GATE];
    let shows = |d: Descriptor| d.is_segment() || kinds.contains(&d.kind());
    let found = or_abort!(cpu, op, cpu.visible(selector, shows));
    if let Some(descriptor) = found {
        set_sized(cpu, op, descriptor.low >> 32 & LAR_MASK);
    }
    set_zf(cpu, found.is_some());
    next(cpu, op)
}

/// LSL: `imm` is the operand size.
fn lsl<const MEM: bool>(cpu: &mut Cpu, op: &Op) {
    let selector = or_abort!(cpu, op, selector_operand::<MEM>(cpu, op));
    let kinds = [system::LDT, system::TSS_AVAILABLE, system::TSS_BUSY];
    let shows = |d: Descriptor| d.is_segment() || kinds.contains(&d.kind());
    let found = or_abort!(cpu, op, cpu.visible(selector, shows));
    if let Some(descriptor) = found {
        set_sized(cpu, op, descriptor.limit().into());
    }
    set_zf(cpu, found.is_some());
    next(cpu, op)
}

fn set_sized(cpu: &mut Cpu, op: &Op, value: u64) {
    match op.imm {
        2 => cpu.set_reg(op.dst, value as u16),
        4 => cpu.set_reg(op.dst, value as u32),
        _ => cpu.set_reg(op.dst, value),
    }
}

fn verify<const MEM: bool, const WRITE: bool>(cpu: &mut Cpu, op: &Op) {
    let selector = or_abort!(cpu, op, selector_operand::<MEM>(cpu, op));
    let shows = |d: Descriptor| if WRITE { d.is_writable() } else { d.is_readable() };
    let found = or_abort!(cpu, op, cpu.visible(selector, shows));
    set_zf(cpu, found.is_some());
    next(cpu, op)
}

/// ARPL: raises the RPL of a selector to that of the register `imm`.
fn arpl<const MEM: bool>(cpu: &mut Cpu, op: &Op) {
    let selector = or_abort!(cpu, op, selector_operand::<MEM>(cpu, op));
    let rpl = cpu.reg::<u16>(op.imm as u8) & 3;
    let raised = selector & 3 < rpl;
    if raised {
        let selector = selector & !3 | rpl;
        if MEM {
            or_abort!(cpu, op, cpu.write(cpu.address(op), selector));
        } else {
            cpu.set_reg(op.src, selector);
        }
    }
    set_zf(cpu, raised);
    next(cpu, op)
}

fn lower_arpl(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let in_memory = insn.op0_kind() == OpKind::Memory;
    let mut op = Op::new(if in_memory { arpl::<true> } else { arpl::<false> });
    op.src = gpr(insn.op0_register()).unwrap_or_default();
    op.imm = gpr(insn.op1_register()).unwrap_or_default().into();
    if in_memory {
        builder.memory(&mut op, insn);
    }
    builder.push(op);
    Lowered::Continues
}

/// Handlers for a selector operand in a register and in memory.
fn by_selector(mnemonic: Mnemonic) -> Option<[Handler; 2]> {
    Some(match mnemonic {
        Mnemonic::Lldt => [lldt::<false>, lldt::<true>],
        Mnemonic::Ltr => [ltr::<false>, ltr::<true>],
        Mnemonic::Lar => [lar::<false>, lar::<true>],
        Mnemonic::Lsl => [lsl::<false>, lsl::<true>],
        Mnemonic::Verr => [verify::<false, false>, verify::<true, false>],
        Mnemonic::Verw => [verify::<false, true>, verify::<true, true>],
        _ => return None,
    })
}

fn lower_table(builder: &mut Builder, insn: &Instruction, run: Handler) -> Lowered {
    use iced_x86::Code as C;
    let mut op = Op::new(run);
    let narrow = matches!(insn.code(), C::Lgdt_m1632_16 | C::Lidt_m1632_16);
    op.imm = if narrow { 0xff_ffff } else { u64::MAX };
    builder.memory(&mut op, insn);
    builder.push(op);
    Lowered::Continues
}

fn lower_store(builder: &mut Builder, insn: &Instruction, seg: Seg) -> Lowered {
    let in_memory = insn.op0_kind() == OpKind::Memory;
    let mut op = Op::new(match operand_bytes(insn, 0) {
        _ if in_memory => store_m,
        2 => store_r::<u16>,
        4 => store_r::<u32>,
        _ => store_r::<u64>,
    });
    op.imm = seg as u64;
    op.dst = gpr(insn.op0_register()).unwrap_or_default();
    if in_memory {
        builder.memory(&mut op, insn);
    }
    builder.push(op);
    Lowered::Continues
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    match insn.mnemonic() {
        Mnemonic::Lgdt => return lower_table(builder, insn, lgdt),
        Mnemonic::Lidt => return lower_table(builder, insn, lidt),
        Mnemonic::Sgdt => return lower_table(builder, insn, sgdt),
        Mnemonic::Sidt => return lower_table(builder, insn, sidt),
        Mnemonic::Sldt => return lower_store(builder, insn, Seg::Ldtr),
        Mnemonic::Arpl => return lower_arpl(builder, insn),
        Mnemonic::Str => return lower_store(builder, insn, Seg::Tr),
        _ => {}
    }
    let Some(handlers) = by_selector(insn.mnemonic()) else { return Lowered::Unknown };
    let from = insn.op_count() - 1;
    let in_memory = insn.op_kind(from) == OpKind::Memory;
    let mut op = Op::new(handlers[usize::from(in_memory)]);
    op.src = gpr(insn.op_register(from)).unwrap_or_default();
    op.dst = gpr(insn.op0_register()).unwrap_or_default();
    op.imm = insn.op0_register().size() as u64;
    if in_memory {
        builder.memory(&mut op, insn);
    }
    builder.push(op);
    Lowered::Continues
}
