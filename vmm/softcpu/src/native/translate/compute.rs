//! Instructions that stay in their block.

use iced_x86::{Instruction, MandatoryPrefix, Mnemonic, OpKind, Register};

use super::Translator;
use super::operands::{Address, Linear, Value, gpr, load_sized, sized};
use crate::decode::operand_bytes;
use crate::flags::CF;
use crate::native::emit::{Mem, Opcode, R12, R14, R15, RAX, RBP, RCX, RDX, Reg, cc};
use crate::native::form::{Place, Producer, is_high, place};
use crate::native::plan::{Step, moves};
use crate::native::routines::{field, spilled};

/// The parts of an instruction's encoding.
struct Encoding {
    opcode: Opcode,
    /// ModRM's reg field, where no operand is.
    digit: u8,
    immediate: ([u8; 8], usize),
}

/// What an instruction's fields have on the host.
struct Fields {
    has_modrm: bool,
    reg: Reg,
    rm: Option<Reg>,
    memory: Option<Mem>,
    opcode: Option<Reg>,
    /// For an operand in the r/m field that the host has no register for.
    scratch: Reg,
    /// Such an operand may be worked on where it is.
    in_place: bool,
    /// Results of registers that the host has no register for, and where they are.
    stores: [Option<(u8, Reg)>; 2],
}

impl Fields {
    fn new() -> Self {
        Self {
            has_modrm: false,
            reg: 0,
            rm: None,
            memory: None,
            opcode: None,
            scratch: R12,
            in_place: false,
            stores: [None; 2],
        }
    }
}

impl Translator<'_> {
    pub(super) fn copy(&mut self, step: &Step) {
        let carried = matches!(step.producer, Producer::Inc | Producer::Dec) && step.seen;
        if step.producer.is_partial() && step.seen && !carried {
            self.settle();
        }
        if step.producer == Producer::Bit && step.seen && self.kept.is_none() {
            // One overlay does not go over another.
            self.out.hot.rm(Opcode::one(0x83, false), 7, field!(overlay));
            self.out.hot.byte(0);
            self.valid = 0;
            self.interpret(Some(cc::NE));
            self.retry = self.out.hot.here();
        }
        if self.moves_unseen(step) {
            return;
        }
        let adds_carry = matches!(step.producer, Producer::Adc | Producer::Sbb) && step.is_checked();
        if step.operand.is_some() {
            // Where it lies is found without loss of flags, but they are not brought back without loss of it.
            self.bring_flags(step.reads, false);
        }
        if carried || adds_carry {
            // The check of an access loses it.
            self.bring_flags(CF, false);
            if step.access.is_some() {
                self.set_carry(field!(value));
                // An access that is tried again has no flags.
                self.retry = self.out.hot.here();
            }
        }
        let memory = self.access(step);
        if adds_carry {
            self.out.hot.test_bit(field!(value));
            self.valid |= CF;
        }
        if !self.bring_flags(step.reads, memory.is_some()) {
            return self.interpret(None);
        }
        if let Producer::ShiftCl(of) = step.producer
            && step.seen
        {
            return self.shift_by_cl(step, memory, of);
        }
        if step.seen {
            self.before(step, memory);
        } else if step.producer != Producer::None {
            (self.kept, self.pending) = (None, None);
        }
        self.emit(step, memory, None);
        self.loaded = false;
        // The register of RSP has moved with it.
        let by = moves(step).unwrap_or(0);
        self.rsp = self.rsp.wrapping_add(by);
        self.flushed = self.flushed.wrapping_add(by);
        self.valid = step.producer.valid(self.valid, step.bits());
        if step.seen {
            self.after(step, memory);
        }
    }

    /// ADD and SUB of a constant and RSP whose flags nobody sees.
    pub(super) fn moves_unseen(&mut self, step: &Step) -> bool {
        let insn = &step.insn;
        let plain = !step.seen
            && !step.used
            && insn.op_count() == 2
            && insn.op0_kind() == OpKind::Register
            && insn.op0_register() == Register::RSP
            && !matches!(insn.op1_kind(), OpKind::Register | OpKind::Memory);
        let by = match step.producer {
            Producer::Add if plain => insn.immediate(1) as i32,
            Producer::Sub if plain && insn.mnemonic() == Mnemonic::Sub => {
                (insn.immediate(1) as i32).wrapping_neg()
            }
            _ => return false,
        };
        self.hot().advance(R15, by);
        self.rsp = self.rsp.wrapping_add(by);
        self.flushed = self.flushed.wrapping_add(by);
        self.valid = 0;
        true
    }

    /// A count of zero leaves the flags.
    pub(super) fn shift_by_cl(&mut self, step: &Step, memory: Option<Mem>, of: u32) {
        let bytes = operand_bytes(&step.insn, 0);
        let hot = &mut self.out.hot;
        // test cl, mask
        hot.rr(Opcode::one(0xf6, false), 0, RCX);
        hot.byte(if bytes == 8 { 63 } else { 31 });
        let none = hot.skip(cc::E);
        let a = self.value(step, 0, memory);
        self.keep(field!(a), &a, bytes);
        self.out.hot.store(field!(b), RCX);
        self.out.hot.store_constant(field!(kind), (of | bytes.trailing_zeros()) as i32);
        self.out.hot.land(none);
        self.emit(step, memory, None);
        (self.kept, self.kind, self.valid) = (None, None, 0);
    }

    /// The instruction itself. `opcode` replaces its own.
    pub(super) fn emit(&mut self, step: &Step, memory: Option<Mem>, opcode: Option<Opcode>) {
        let insn = &step.insn;
        let mut encoding = encoding(step, &self.bytes[step.start..step.end]);
        if let Some(opcode) = opcode {
            encoding.opcode = Opcode { wide: encoding.opcode.wide, ..opcode };
        }
        let turned = self.turns(step, &encoding.opcode);
        if turned {
            encoding.opcode.bytes[0] ^= 2;
        }
        let mut op = encoding.opcode;
        let mut fields = Fields { reg: encoding.digit, memory, ..Fields::new() };
        if self.loaded {
            (fields.rm, fields.scratch) = (Some(R12), R14);
        }
        let place = |number: u32| match place(insn, number) {
            Place::Reg if turned => Place::Rm,
            Place::Rm if turned => Place::Reg,
            at => at,
        };
        let in_reg = (0..insn.op_count()).find(|number| place(*number) == Place::Reg);
        if in_reg.is_some_and(|number| self.is_spilled(insn, number)) {
            fields.scratch = R14;
        }
        fields.in_place = op.length == 1 && step.producer != Producer::Bit;
        for number in 0..insn.op_count() {
            let at = place(number);
            if at == Place::Other {
                continue;
            }
            fields.has_modrm |= at != Place::Opcode;
            if insn.op_kind(number) == OpKind::Register {
                let byte = self.assign(step, number, at, &mut fields);
                op.rex |= byte;
            }
        }
        let hot = &mut self.out.hot;
        match (fields.has_modrm, fields.rm, fields.memory, fields.opcode) {
            (true, Some(rm), _, _) => hot.rr(op, fields.reg, rm),
            (true, None, Some(memory), _) => hot.rm(op, fields.reg, memory),
            (false, _, _, Some(register)) => hot.opcode_register(op, register),
            _ => hot.plain(op),
        }
        let (bytes, count) = encoding.immediate;
        hot.bytes.extend_from_slice(&bytes[..count]);
        for (guest, scratch) in fields.stores.into_iter().flatten() {
            hot.store(spilled(guest), scratch);
        }
    }

    /// Says which register of the host an operand has, and loads it there if need be. The result is whether
    /// it is a low byte that only a REX prefix names.
    fn assign(&mut self, step: &Step, number: u32, at: Place, fields: &mut Fields) -> bool {
        let register = step.insn.op_register(number);
        let (read, written) = (step.read >> number & 1 != 0, step.written >> number & 1 != 0);
        let mut host = register.number() as u8;
        let mut byte = false;
        if register.is_gpr() {
            let guest = register.full_register().number() as u8;
            host = match self.map[usize::from(guest)] {
                _ if is_high(register) => guest + 4,
                Some(host) => host,
                // In memory, a bit's number would reach beyond the operand; and a result of 32 bits clears
                // what is above it.
                None if at == Place::Rm
                    && (!written && step.producer != Producer::Bit
                        || fields.in_place && register.size() != 4) =>
                {
                    fields.memory = Some(spilled(guest));
                    return false;
                }
                None => {
                    let scratch = if at == Place::Rm { fields.scratch } else { R12 };
                    if read || register.size() < 4 {
                        self.out.hot.load(scratch, spilled(guest));
                    }
                    self.addend &= scratch != R14;
                    if written {
                        fields.stores[usize::from(at == Place::Rm)] = Some((guest, scratch));
                    }
                    scratch
                }
            };
            byte = register.size() == 1 && !is_high(register) && host >= 4;
        }
        match at {
            Place::Reg => fields.reg = host,
            Place::Rm => fields.rm = Some(host),
            _ => fields.opcode = Some(host),
        }
        byte
    }

    pub(super) fn lea(&mut self, step: &Step) {
        let insn = &step.insn;
        let wide = insn.op0_register().size() == 8;
        let guest = insn.op0_register().full_register().number() as u8;
        let to = self.map[usize::from(guest)].unwrap_or(R12);
        let ea = Address::of(&{
            let mut plain = *insn;
            plain.set_segment_prefix(Register::None);
            plain
        });
        let stack = guest == 4 && wide && insn.memory_base() == Register::RSP && ea.index.is_none();
        if stack {
            self.hot().advance(R15, ea.disp);
            self.rsp = self.rsp.wrapping_add(ea.disp);
            self.flushed = self.rsp;
            return;
        }
        if let Some(constant) = ea.constant {
            self.hot().constant(to, if wide { constant } else { constant & 0xffff_ffff });
        } else {
            let mut mem = Mem { base: None, index: None, disp: ea.disp };
            if let Some((index, scale)) = ea.index {
                mem.index = Some((self.source(index, R14), scale));
            }
            if let Some(base) = ea.base {
                mem.base = Some(self.source(base, R12));
            }
            self.hot().rm(Opcode::one(0x8d, wide), to, mem);
        }
        if self.map[usize::from(guest)].is_none() {
            self.hot().store(spilled(guest), to);
        }
    }

    /// XCHG: in memory it would lock the bus.
    pub(super) fn exchange(&mut self, step: &Step) {
        let insn = &step.insn;
        let memory = self.access(step);
        let Some(memory) = memory else {
            let (Some(a), Some(b)) = (gpr(insn.op0_register()), gpr(insn.op1_register())) else {
                return self.interpret(None);
            };
            if is_high(insn.op0_register()) || is_high(insn.op1_register()) {
                return self.interpret(None);
            }
            let bytes = insn.op0_register().size();
            let (x, y) = (self.source(a, R12), self.source(b, R14));
            let op = sized(0x86, bytes);
            self.hot().rr(op, x, y);
            for (guest, host) in [(a, x), (b, y)] {
                if self.map[usize::from(guest)].is_none() {
                    self.hot().store(spilled(guest), host);
                }
            }
            return;
        };
        let number = u32::from(insn.op0_kind() == OpKind::Memory);
        let register = insn.op_register(number);
        let bytes = register.size();
        let Some(guest) = gpr(register) else { return self.interpret(None) };
        match self.map[usize::from(guest)] {
            Some(host) => {
                let hot = &mut self.out.hot;
                load_sized(hot, R12, memory, bytes);
                hot.rm(sized(0x88, bytes), host, memory);
                // mov host, r12: of a byte or word, what is above it stays
                hot.rr(sized(0x8a, bytes), host, R12);
            }
            None => {
                let hot = &mut self.out.hot;
                hot.load(R12, spilled(guest));
                hot.rm(sized(0x86, bytes), R12, memory);
                hot.store(spilled(guest), R12);
            }
        }
    }

    /// BSF, BSR: of zero, the destination stays.
    pub(super) fn scan(&mut self, step: &Step) {
        let insn = &step.insn;
        let bytes = insn.op0_register().size();
        let memory = self.access(step);
        if step.seen {
            let source = self.value(step, 1, memory);
            match (bytes, &source) {
                (8, source) => self.keep(field!(a), source, 8),
                (_, source) => {
                    let hot = &mut self.out.hot;
                    match *source {
                        Value::Register(from) if bytes == 4 => hot.rr(Opcode::one(0x8b, false), R12, from),
                        Value::Register(from) => hot.rr(Opcode::two(0xb7, false), R12, from),
                        Value::Memory(from) => load_sized(hot, R12, from, bytes),
                        _ => {}
                    }
                    hot.store(field!(a), R12);
                }
            }
        }
        let source = self.value(step, 1, memory);
        let hot = &mut self.out.hot;
        match source {
            Value::Register(from) => hot.rr(sized(0x84, bytes), from, from),
            Value::Memory(from) => {
                hot.rm(Opcode { bytes: [0x83, 0, 0], ..sized(0x82, bytes) }, 7, from);
                hot.byte(0);
            }
            _ => {}
        }
        let none = hot.skip(cc::E);
        let forward = matches!(insn.mnemonic(), Mnemonic::Bsf | Mnemonic::Tzcnt);
        let opcode = Opcode {
            prefix: (bytes == 2).then_some(0x66),
            ..Opcode::two(if forward { 0xbc } else { 0xbd }, bytes == 8)
        };
        // The destination is written only if there is a bit.
        let mut plain = *step;
        plain.read |= 1;
        self.emit(&plain, memory, Some(opcode));
        self.out.hot.land(none);
        self.valid = crate::flags::ZF;
        (self.kept, self.pending) = (None, None);
        if step.seen {
            self.after(step, memory);
        }
    }

    /// DIV and IDIV of words, where no error can come of it.
    pub(super) fn divide(&mut self, step: &Step) {
        let insn = &step.insn;
        let memory = self.access(step);
        let wide = step.bits() == 64;
        let divisor = self.value(step, 0, memory);
        let hot = &mut self.out.hot;
        self.valid = 0;
        if insn.mnemonic() == Mnemonic::Div {
            match divisor {
                Value::Register(from) => hot.rr(Opcode::one(0x3b, wide), RDX, from),
                Value::Memory(from) => hot.rm(Opcode::one(0x3b, wide), RDX, from),
                _ => {}
            }
            self.interpret(Some(cc::AE));
        } else {
            hot.rr(Opcode::one(0x8b, wide), R12, RAX);
            hot.shift(7, wide, R12, if wide { 63 } else { 31 });
            hot.rr(Opcode::one(0x3b, wide), R12, RDX);
            self.interpret(Some(cc::NE));
            let hot = &mut self.out.hot;
            match divisor {
                Value::Register(from) => hot.rm(Opcode::one(0x8d, wide), R12, Mem::base(from, 1)),
                Value::Memory(from) => {
                    hot.rm(Opcode::one(0x8b, wide), R12, from);
                    hot.rm(Opcode::one(0x8d, wide), R12, Mem::base(R12, 1));
                }
                _ => {}
            }
            hot.arithmetic(7, wide, R12, 2);
            self.interpret(Some(cc::B));
        }
        self.emit(step, memory, None);
        self.valid = 0;
    }

    pub(super) fn push(&mut self, step: &Step) {
        let insn = &step.insn;
        let from = match insn.op0_kind() {
            OpKind::Register => self.register(insn.op0_register()),
            OpKind::Memory => {
                let Some(memory) = self.access(step) else { return self.interpret(None) };
                self.addend = false;
                self.out.hot.load(R12, memory);
                if step.stack.is_none() {
                    self.out.hot.store(field!(value), R12);
                    Value::Memory(field!(value))
                } else {
                    Value::Register(R12)
                }
            }
            _ => Value::Constant(insn.immediate(0) as i32),
        };
        let to = self.stack(step, -8, true);
        self.keep(to, &from, 8);
        self.move_stack(step, -8);
    }

    pub(super) fn pop(&mut self, step: &Step) {
        let Some(guest) = gpr(step.insn.op0_register()) else { return self.interpret(None) };
        let from = self.stack(step, 0, false);
        if guest == 4 {
            self.out.hot.load(R15, from);
            self.flushed = self.rsp;
            return;
        }
        let to = self.map[usize::from(guest)].unwrap_or(R12);
        self.out.hot.load(to, from);
        if self.map[usize::from(guest)].is_none() {
            self.out.hot.store(spilled(guest), to);
        }
        self.move_stack(step, 8);
    }

    pub(super) fn leave(&mut self) {
        self.check(Linear::Frame, 8, false, false);
        let hot = &mut self.out.hot;
        hot.load(R12, Mem::sum(RBP, R14, 0));
        hot.lea(R15, Mem::base(RBP, 8));
        hot.mov(RBP, R12);
        self.flushed = self.rsp;
    }

    /// Whether an operand is a register that the host has none for.
    fn is_spilled(&self, insn: &Instruction, number: u32) -> bool {
        insn.op_kind(number) == OpKind::Register
            && gpr(insn.op_register(number)).is_some_and(|guest| self.map[usize::from(guest)].is_none())
    }

    /// Whether an operation on two registers is encoded the other way round (opcodes 00 to 3B, 88 and 89), so
    /// that a source which is in memory can be taken from there.
    fn turns(&self, step: &Step, opcode: &Opcode) -> bool {
        let byte = opcode.bytes[0];
        let has_both = byte < 0x40 && byte & 7 < 2 || byte & 0xfe == 0x88;
        let insn = &step.insn;
        opcode.length == 1 && has_both && insn.op0_kind() == OpKind::Register && self.is_spilled(insn, 1)
    }
}

/// Takes an instruction's bytes apart. Prefixes become those that its form asks for.
fn encoding(step: &Step, raw: &[u8]) -> Encoding {
    let mut rex = 0;
    let mut at = 0;
    loop {
        match raw[at] {
            0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 => rex = 0,
            0x40..=0x4f => rex = raw[at],
            _ => break,
        }
        at += 1;
    }
    let length = match (raw[at], raw.get(at + 1)) {
        (0x0f, Some(0x38 | 0x3a)) => 3,
        (0x0f, _) => 2,
        _ => 1,
    };
    let mut bytes = [0; 3];
    bytes[..length].copy_from_slice(&raw[at..at + length]);
    let code = step.insn.op_code();
    let prefix = match code.mandatory_prefix() {
        MandatoryPrefix::P66 => Some(0x66),
        MandatoryPrefix::PF3 => Some(0xf3),
        MandatoryPrefix::PF2 => Some(0xf2),
        _ if code.operand_size() == 16 => Some(0x66),
        _ => None,
    };
    let digit = raw.get(at + length).map_or(0, |modrm| modrm >> 3 & 7);
    let mut immediate = ([0; 8], 0);
    let (from, size) = step.immediate;
    immediate.0[..size].copy_from_slice(&raw[from..from + size]);
    immediate.1 = size;
    let opcode = Opcode { prefix, wide: rex & 8 != 0, rex: false, bytes, length: length as u8 };
    Encoding { opcode, digit, immediate }
}
