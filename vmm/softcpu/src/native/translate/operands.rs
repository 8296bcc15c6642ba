//! Registers and memory: what the host has of an instruction's operands.

use iced_x86::{Instruction, OpKind, Register};

use super::{Call, Translator};
use crate::native::emit::{Code, Mem, Opcode, R12, R14, R15, RBP, Reg, Target, cc};
use crate::native::form::is_high;
use crate::native::groups::Group;
use crate::native::plan::Step;
use crate::native::routines::{access_number, field, group, probe, spilled, test_alignment};

/// Where an access begins.
#[derive(Debug, Clone, Copy)]
pub enum Linear<'a> {
    /// The operand in memory.
    Operand(&'a Instruction),
    /// At a distance from RSP, as its register has it.
    Stack(i32),
    /// At RBP.
    Frame,
}

/// Operands of an instruction as the host has them.
pub enum Value {
    Register(Reg),
    /// AH, CH, DH, BH, by their number as they are encoded.
    High(Reg),
    Memory(Mem),
    Constant(i32),
}

impl Translator<'_> {
    pub(super) fn value(&mut self, step: &Step, number: u32, memory: Option<Mem>) -> Value {
        match step.insn.op_kind(number) {
            OpKind::Register => self.register(step.insn.op_register(number)),
            OpKind::Memory => Value::Memory(memory.unwrap_or(Mem::base(R14, 0))),
            _ => Value::Constant(step.insn.immediate(number) as i32),
        }
    }

    /// Stores a value of some bytes to a field; what is above it there does not count. R12 is lost.
    pub(super) fn keep(&mut self, field: Mem, value: &Value, bytes: usize) {
        let hot = &mut self.out.hot;
        match *value {
            Value::Register(from) => hot.store(field, from),
            Value::High(from) => hot.rm(Opcode::one(0x88, false), from, field),
            Value::Constant(value) => hot.store_constant(field, value),
            Value::Memory(from) => {
                load_sized(hot, R12, from, bytes);
                hot.store(field, R12);
            }
        }
    }

    /// The linear address of an access, in R12. R14 is lost.
    fn address(&mut self, of: Linear, cold: bool) {
        let hot = if cold { &mut self.out.cold } else { &mut self.out.hot };
        let insn = match of {
            Linear::Stack(from_rsp) => return hot.lea(R12, Mem::base(R15, from_rsp)),
            Linear::Frame => return hot.mov(R12, self.map[usize::from(RBP)].unwrap_or(RBP)),
            Linear::Operand(insn) => insn,
        };
        let ea = Address::of(insn);
        if let Some(constant) = ea.constant {
            hot.constant(R12, constant);
        } else {
            let mut mem = Mem { base: None, index: None, disp: ea.disp };
            match ea.index.map(|(index, scale)| (index, self.map[usize::from(index)], scale)) {
                Some((_, Some(host), scale)) => mem.index = Some((host, scale)),
                Some((guest, None, scale)) => {
                    hot.load(R12, spilled(guest));
                    mem.index = Some((R12, scale));
                }
                None => {}
            }
            match ea.base.map(|base| (base, self.map[usize::from(base)])) {
                Some((_, Some(host))) => mem.base = Some(host),
                Some((guest, None)) => {
                    hot.load(R14, spilled(guest));
                    mem.base = Some(R14);
                }
                None => {}
            }
            hot.lea(R12, mem);
        }
        if let Some(base) = ea.segment {
            // add r12, [base]
            hot.rm(Opcode::one(0x03, true), R12, base);
        }
    }

    /// The memory operand whose addend is in R14, for the host. R12 is lost, and no flag.
    pub(super) fn operand(&mut self, insn: &Instruction) -> Mem {
        let hot = &mut self.out.hot;
        let ea = Address::of(insn);
        if let Some(base) = ea.segment {
            hot.load(R12, base);
            hot.lea(R14, Mem::sum(R14, R12, 0));
        }
        if let Some(constant) = ea.constant {
            hot.constant(R12, constant);
            hot.lea(R14, Mem::sum(R14, R12, 0));
            return Mem::base(R14, 0);
        }
        let mut mem = Mem::base(R14, ea.disp);
        match ea.base.map(|base| (base, self.map[usize::from(base)])) {
            Some((_, Some(host))) => (mem.base, mem.index) = (Some(host), Some((R14, 0))),
            Some((guest, None)) => {
                hot.load(R12, spilled(guest));
                hot.lea(R14, Mem::sum(R14, R12, 0));
            }
            None => {}
        }
        let Some((index, scale)) = ea.index else { return mem };
        let index = match self.map[usize::from(index)] {
            Some(host) => host,
            None => {
                hot.load(R12, spilled(index));
                R12
            }
        };
        if mem.index.is_none() && index != R12 {
            mem.index = Some((index, scale));
        } else {
            hot.lea(R14, Mem { base: Some(R14), index: Some((index, scale)), disp: 0 });
        }
        mem
    }

    /// Checks an access; R14 becomes the addend. R12 is lost.
    pub(super) fn check(&mut self, of: Linear, bytes: u32, aligned: bool, write: bool) {
        self.address(of, false);
        let number = access_number(bytes, aligned);
        let routine = if write { self.routines.writes[number] } else { self.routines.reads[number] };
        self.addend = false;
        self.valid = 0;
        if !self.inline {
            return self.call(routine);
        }
        // A miss tries again from its address on, by the routine.
        let stub = Target::Cold(self.out.cold.here());
        let hot = &mut self.out.hot;
        if aligned {
            test_alignment(hot);
            hot.jcc(cc::NE, stub);
        }
        probe(hot, bytes, write, |field| field);
        hot.jcc(cc::NE, stub);
        hot.load(R14, Mem::base(R12, 8));
        let back = hot.here();
        self.address(of, true);
        let cold = &mut self.out.cold;
        cold.call(Target::Code(routine));
        let (after, retry) = (cold.here(), self.retry);
        cold.jmp(Target::Hot(back));
        let (number, flags) = (self.number as u8, self.pending);
        self.out.calls.push(Call { after: (true, after), retry, number, flags, group: None });
    }

    /// Checks all accesses of a group; R14 becomes the addend. R12 is lost.
    fn check_group(&mut self, step: &Step, number: usize) {
        let Group { low, bytes, write, .. } = self.groups[number];
        self.address(Linear::Operand(&step.insn), false);
        (self.addend, self.valid) = (false, 0);
        let stub = Target::Cold(self.out.cold.here());
        let hot = &mut self.out.hot;
        hot.advance(R12, low);
        probe(hot, bytes, write, |field| field);
        hot.jcc(cc::NE, stub);
        hot.load(R14, Mem::base(R12, 8));
        hot.store(group(number), R14);
        self.address(Linear::Operand(&step.insn), true);
        let cold = &mut self.out.cold;
        cold.call(Target::Code(self.routines.group));
        let after = (true, cold.here());
        // It does not return.
        cold.byte(0xcc);
        let (place, flags) = (self.number as u8, self.pending);
        let group = Some(number);
        self.out.calls.push(Call { after, retry: self.retry, number: place, flags, group });
    }

    pub(super) fn call(&mut self, routine: u32) {
        self.out.hot.call(Target::Code(routine));
        let (after, retry) = (self.out.hot.here(), self.retry);
        let (number, flags) = (self.number as u8, self.pending);
        self.out.calls.push(Call { after: (false, after), retry, number, flags, group: None });
    }

    /// The explicit memory operand, once it may be accessed.
    pub(super) fn access(&mut self, step: &Step) -> Option<Mem> {
        let access = step.access?;
        if let Some(offset) = step.operand {
            return Some(self.on_stack(offset));
        }
        match step.group {
            Some((number, true)) => self.check_group(step, number),
            Some((number, false)) => {
                self.out.hot.load(R14, group(number));
                self.addend = false;
            }
            None => self.check(Linear::Operand(&step.insn), access.bytes, access.aligned, access.write),
        }
        Some(self.operand(&step.insn))
    }

    /// Bytes of the stack that the block's check covers.
    pub(super) fn on_stack(&mut self, offset: i32) -> Mem {
        if !self.addend {
            self.out.hot.load(R14, field!(addend));
            self.addend = true;
        }
        Mem::sum(R15, R14, offset - self.flushed)
    }

    /// Eight bytes at a distance from RSP, for a push or pop.
    pub(super) fn stack(&mut self, step: &Step, from_rsp: i32, write: bool) -> Mem {
        if let Some(offset) = step.stack {
            return self.on_stack(offset);
        }
        self.check(Linear::Stack(from_rsp), 8, false, write);
        Mem::sum(R15, R14, from_rsp)
    }

    /// RSP moves, now or, where nobody can see it, later.
    pub(super) fn move_stack(&mut self, step: &Step, by: i32) {
        self.rsp += by;
        if step.stack.is_none() {
            self.flush();
        }
    }

    pub(super) fn register(&self, register: Register) -> Value {
        let guest = register.full_register().number() as u8;
        match self.map[usize::from(guest)] {
            _ if is_high(register) => Value::High(guest + 4),
            Some(host) => Value::Register(host),
            None => Value::Memory(spilled(guest)),
        }
    }

    /// A guest register's value in one of the host's: its own, or `scratch`.
    pub(super) fn source(&mut self, guest: u8, scratch: Reg) -> Reg {
        match self.map[usize::from(guest)] {
            Some(host) => host,
            None => {
                self.out.hot.load(scratch, spilled(guest));
                if scratch == R14 {
                    self.addend = false;
                }
                scratch
            }
        }
    }
}

/// Number of a general register that is not AH or its like.
pub fn gpr(register: Register) -> Option<u8> {
    (register.is_gpr() && !is_high(register)).then(|| register.full_register().number() as u8)
}

/// An opcode by operand size: `byte` is that for bytes, the next that for others.
pub fn sized(byte: u8, bytes: usize) -> Opcode {
    Opcode {
        prefix: (bytes == 2).then_some(0x66),
        rex: true,
        ..Opcode::one(byte | u8::from(bytes > 1), bytes == 8)
    }
}

/// Loads a value, zero-extended.
pub fn load_sized(code: &mut Code, to: Reg, from: Mem, bytes: usize) {
    match bytes {
        1 => code.rm(Opcode::two(0xb6, false), to, from),
        2 => code.rm(Opcode::two(0xb7, false), to, from),
        4 => code.load32(to, from),
        _ => code.load(to, from),
    }
}

/// The parts of a memory operand.
pub struct Address {
    pub constant: Option<u64>,
    pub base: Option<u8>,
    pub index: Option<(u8, u8)>,
    pub disp: i32,
    /// Where the segment's base is, of FS and GS.
    pub segment: Option<Mem>,
}

impl Address {
    pub fn of(insn: &Instruction) -> Self {
        let bases = field!(bases);
        let segment = match insn.memory_segment() {
            Register::FS => Some(bases),
            Register::GS => Some(Mem { disp: bases.disp + 8, ..bases }),
            _ => None,
        };
        let register = |register: Register| (register != Register::None).then(|| register.number() as u8);
        if insn.is_ip_rel_memory_operand() {
            let constant = Some(insn.ip_rel_memory_address());
            return Self { constant, base: None, index: None, disp: 0, segment };
        }
        Self {
            constant: None,
            base: register(insn.memory_base()),
            index: register(insn.memory_index())
                .map(|index| (index, insn.memory_index_scale().trailing_zeros() as u8)),
            disp: insn.memory_displacement64() as i32,
            segment,
        }
    }
}
