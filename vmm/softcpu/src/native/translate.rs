//! From a plan to code of the host.

use iced_x86::{Instruction, MandatoryPrefix, Mnemonic, OpKind, Register};

use super::emit::{Code, Mem, Opcode, R12, R13, R14, R15, RAX, RCX, RDX, Reg, Target, cc};
use super::flags::{kind, overlay};
use super::form::{Form, Place, Producer, is_high, place};
use super::frame::exit;
use super::plan::{Plan, Step, moves};
use super::routines::{HOST, Routines, access_number, field, look_up, restore_kind, spilled};
use crate::decode::operand_bytes;
use crate::exec::condition;
use crate::flags::{CF, STATUS};
use crate::ram::PAGE;

/// Where translated code can be left for the interpreter.
#[derive(Debug, Clone, Copy)]
pub struct Site {
    /// Number of the instruction.
    pub number: u8,
    /// What a RET added to RSP.
    pub popped: u32,
    /// Where it goes on when the instruction was interpreted, in the main part.
    pub resume: Option<usize>,
}

/// A call of a routine that can leave.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Offset in the main part of what follows the call, and of where the instruction begins.
    pub after: usize,
    pub retry: usize,
    pub number: u8,
}

/// A branch to another block: places of what is changed when it is linked, from the start of a part.
#[derive(Debug, Clone, Copy)]
pub struct Edge {
    /// The displacement, and whether it is in the cold part.
    pub jump: (bool, usize),
    /// For one to another page, in the cold part: the constant that `Frame::id` is compared with, the
    /// displacement of the branch that is taken when it differs, and where that goes once it is linked.
    pub guard: Option<(usize, usize, usize)>,
}

/// A translated block, not placed yet.
#[derive(Debug, Default)]
pub struct Draft {
    pub hot: Code,
    pub cold: Code,
    pub sites: Vec<Site>,
    pub calls: Vec<Call>,
    pub edges: Vec<Edge>,
}

/// How many of each there are already.
#[derive(Debug, Clone, Copy)]
pub struct Numbers {
    pub sites: usize,
    pub edges: usize,
}

/// Operands of an instruction as the host has them.
enum Value {
    Register(Reg),
    /// AH, CH, DH, BH, by their number as they are encoded.
    High(Reg),
    Memory(Mem),
    Constant(i32),
}

pub struct Translator<'a> {
    out: Draft,
    numbers: Numbers,
    routines: &'a Routines,
    bytes: &'a [u8],
    rip: u64,
    /// Instructions of the block.
    count: usize,
    /// RSP, from the block's first, as the guest has it; and as its register has it.
    rsp: i32,
    flushed: i32,
    /// R14 has the stack's addend.
    addend: bool,
    /// Flags that the host has.
    valid: u64,
    /// How the frame has the flags, if that is known and there is no overlay.
    kept: Option<u32>,
    /// Where the instruction begins.
    retry: usize,
    number: usize,
    ended: bool,
    site: Option<usize>,
}

/// The parts of an instruction's encoding.
struct Encoding {
    opcode: Opcode,
    /// ModRM's reg field, where no operand is.
    digit: u8,
    immediate: ([u8; 8], usize),
}

impl<'a> Translator<'a> {
    pub fn new(routines: &'a Routines, numbers: Numbers, bytes: &'a [u8], rip: u64, count: usize) -> Self {
        Self {
            out: Draft::default(),
            numbers,
            routines,
            bytes,
            rip,
            count,
            rsp: 0,
            flushed: 0,
            addend: false,
            valid: 0,
            kept: None,
            retry: 0,
            number: 0,
            ended: false,
            site: None,
        }
    }

    /// Makes the block's code.
    pub fn translate(mut self, plan: &Plan) -> Draft {
        self.entry(plan);
        for (number, step) in plan.steps.iter().enumerate() {
            self.number = number;
            self.site = None;
            self.step(step);
            if self.ended {
                return self.out;
            }
        }
        self.number = plan.steps.len() - 1;
        self.flush();
        let following = self.rip.wrapping_add(plan.steps[self.number].end as u64);
        self.go(following);
        self.out
    }

    fn hot(&mut self) -> &mut Code {
        &mut self.out.hot
    }

    /// Counts the block, and looks whether what it needs is at hand.
    fn entry(&mut self, plan: &Plan) {
        let count = self.count as i32;
        self.out.hot.arithmetic(5, true, R13, count);
        let stub = self.out.cold.here();
        self.out.hot.jcc(cc::B, Target::Cold(stub));
        let (rip, leave) = (self.rip, self.routines.leave);
        let cold = &mut self.out.cold;
        cold.advance(R13, count);
        cold.constant(R14, rip);
        cold.store(field!(rip), R14);
        cold.store32_constant(field!(exit), exit::LIMIT as i32);
        cold.jmp(Target::Code(leave));
        if plan.vectors {
            self.out.hot.rm(Opcode::one(0x83, false), 7, field!(vectors));
            self.out.hot.byte(0);
            let stub = self.out.cold.here();
            self.out.hot.jcc(cc::E, Target::Cold(stub));
            let back = self.out.hot.here();
            self.out.cold.call(Target::Code(self.routines.load_vectors));
            self.out.cold.jmp(Target::Hot(back));
        }
        if let Some((low, high)) = plan.stack {
            let hot = &mut self.out.hot;
            hot.lea(R14, Mem::base(R15, low));
            hot.rm(Opcode::one(0x33, true), R14, field!(page));
            hot.rm(Opcode::one(0x0b, true), R14, field!(none));
            hot.arithmetic(7, true, R14, PAGE as i32 - (high - low));
            let stub = self.out.cold.here();
            hot.jcc(cc::A, Target::Cold(stub));
            let site = self.site_number(0);
            let cold = &mut self.out.cold;
            cold.advance(R13, count);
            cold.store_constant(field!(argument), site as i32);
            cold.store32_constant(field!(exit), exit::STACK as i32);
            cold.jmp(Target::Code(leave));
        }
    }

    fn site_number(&mut self, popped: u32) -> usize {
        if let Some(site) = self.site.filter(|_| popped == 0) {
            return site;
        }
        let site = self.numbers.sites + self.out.sites.len();
        self.out.sites.push(Site { number: self.number as u8, popped, resume: None });
        if popped == 0 {
            self.site = Some(site);
        }
        site
    }

    /// Leaves to have this instruction interpreted, under a condition or always.
    fn interpret(&mut self, condition: Option<u8>) {
        self.flush();
        let stub = self.out.cold.here();
        match condition {
            Some(condition) => self.out.hot.jcc(condition, Target::Cold(stub)),
            None => {
                self.out.hot.jmp(Target::Cold(stub));
                self.ended = true;
            }
        }
        let site = self.site_number(0);
        let leave = self.routines.leave;
        let cold = &mut self.out.cold;
        cold.store_constant(field!(argument), site as i32);
        cold.store32_constant(field!(exit), exit::INTERPRET as i32);
        cold.jmp(Target::Code(leave));
    }

    /// Has this instruction interpreted, and goes on behind it.
    fn step_over(&mut self) {
        self.interpret(None);
        let site = self.site_number(0) - self.numbers.sites;
        if self.number + 1 < self.count {
            self.ended = false;
            self.out.sites[site].resume = Some(self.out.hot.here());
            (self.valid, self.kept, self.addend) = (0, None, false);
            self.flushed = self.rsp;
        }
    }

    /// RSP's register becomes RSP.
    fn flush(&mut self) {
        let by = self.rsp - self.flushed;
        self.flushed = self.rsp;
        self.hot().advance(R15, by);
    }

    fn step(&mut self, step: &Step) {
        let defers = matches!(
            step.form,
            Form::Copy
                | Form::Nothing
                | Form::Lea
                | Form::Exchange
                | Form::BitScan
                | Form::Push
                | Form::Pop
                | Form::Call
                | Form::Return
        );
        if !defers || uses_rsp(step) || step.is_checked() {
            self.flush();
        }
        self.retry = self.out.hot.here();
        match step.form {
            Form::Interpret => self.step_over(),
            Form::Nothing => {}
            Form::Copy => self.copy(step),
            Form::Lea => self.lea(step),
            Form::Exchange => self.exchange(step),
            Form::BitScan => self.scan(step),
            Form::Divide => self.divide(step),
            Form::Push => self.push(step),
            Form::Pop => self.pop(step),
            Form::Leave => self.leave(),
            Form::Jump | Form::Call => self.jump(step),
            Form::Conditional => self.conditional(step),
            Form::JumpIndirect | Form::CallIndirect => self.indirect(step),
            Form::Return => self.ret(step),
            Form::Repeat if self.number == 0 => self.interpret(None),
            Form::Repeat => {
                self.flush();
                self.give_back(self.count - self.number);
                let target = self.rip.wrapping_add(step.start as u64);
                self.go(target);
                self.ended = true;
            }
        }
    }

    // Registers and memory.

    fn value(&mut self, step: &Step, number: u32, memory: Option<Mem>) -> Value {
        match step.insn.op_kind(number) {
            OpKind::Register => register(step.insn.op_register(number)),
            OpKind::Memory => Value::Memory(memory.unwrap_or(Mem::base(R14, 0))),
            _ => Value::Constant(step.insn.immediate(number) as i32),
        }
    }

    /// Stores a value of some bytes to a field; what is above it there does not count. R12 is lost.
    fn keep(&mut self, field: Mem, value: &Value, bytes: usize) {
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

    /// The linear address of a memory operand, in R12. R14 is lost.
    fn address(&mut self, insn: &Instruction) {
        let hot = &mut self.out.hot;
        let ea = Address::of(insn);
        if let Some(constant) = ea.constant {
            hot.constant(R12, constant);
        } else {
            let mut mem = Mem { base: None, index: None, disp: ea.disp };
            match ea.index.map(|(index, scale)| (index, HOST[usize::from(index)], scale)) {
                Some((_, Some(host), scale)) => mem.index = Some((host, scale)),
                Some((guest, None, scale)) => {
                    hot.load(R12, spilled(guest));
                    mem.index = Some((R12, scale));
                }
                None => {}
            }
            match ea.base.map(|base| (base, HOST[usize::from(base)])) {
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

    /// The memory operand whose addend is in R14, for the host. R12 is lost.
    fn operand(&mut self, insn: &Instruction) -> Mem {
        let hot = &mut self.out.hot;
        let ea = Address::of(insn);
        if let Some(base) = ea.segment {
            hot.rm(Opcode::one(0x03, true), R14, base);
        }
        if let Some(constant) = ea.constant {
            hot.constant(R12, constant);
            hot.rr(Opcode::one(0x03, true), R14, R12);
            return Mem::base(R14, 0);
        }
        let mut mem = Mem::base(R14, ea.disp);
        match ea.base.map(|base| (base, HOST[usize::from(base)])) {
            Some((_, Some(host))) => (mem.base, mem.index) = (Some(host), Some((R14, 0))),
            Some((guest, None)) => hot.rm(Opcode::one(0x03, true), R14, spilled(guest)),
            None => {}
        }
        let Some((index, scale)) = ea.index else { return mem };
        let index = match HOST[usize::from(index)] {
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

    /// Checks an access to the linear address in R12; R14 becomes the addend.
    fn check(&mut self, bytes: u32, aligned: bool, write: bool) {
        let number = access_number(bytes, aligned);
        let routine = if write { self.routines.writes[number] } else { self.routines.reads[number] };
        self.call(routine);
        self.addend = false;
        self.valid = 0;
    }

    fn call(&mut self, routine: u32) {
        self.out.hot.call(Target::Code(routine));
        let (after, retry) = (self.out.hot.here(), self.retry);
        self.out.calls.push(Call { after, retry, number: self.number as u8 });
    }

    /// The explicit memory operand, once it may be accessed.
    fn access(&mut self, step: &Step) -> Option<Mem> {
        let access = step.access?;
        if let Some(offset) = step.operand {
            return Some(self.on_stack(offset));
        }
        self.address(&step.insn);
        self.check(access.bytes, access.aligned, access.write);
        Some(self.operand(&step.insn))
    }

    /// Bytes of the stack that the block's check covers.
    fn on_stack(&mut self, offset: i32) -> Mem {
        if !self.addend {
            self.out.hot.load(R14, field!(addend));
            self.addend = true;
        }
        Mem::sum(R15, R14, offset - self.flushed)
    }

    /// Eight bytes at a distance from RSP, for a push or pop.
    fn stack(&mut self, step: &Step, from_rsp: i32, write: bool) -> Mem {
        if let Some(offset) = step.stack {
            return self.on_stack(offset);
        }
        self.out.hot.lea(R12, Mem::base(R15, from_rsp));
        self.check(8, false, write);
        Mem::sum(R15, R14, from_rsp)
    }

    /// RSP moves, now or, where nobody can see it, later.
    fn move_stack(&mut self, step: &Step, by: i32) {
        self.rsp += by;
        if step.stack.is_none() {
            self.flush();
        }
    }

    // Flags.

    /// Brings back what the instruction reads. False if that would lose R14, which is needed.
    fn bring_flags(&mut self, reads: u64, memory: bool) -> bool {
        if reads & !self.valid == 0 {
            return true;
        }
        if !self.kept.is_some_and(|kept| restore_kind(&mut self.out.hot, kept, |field| field)) {
            if memory {
                return false;
            }
            self.flush();
            // What was done of the instruction is not done again.
            self.retry = self.out.hot.here();
            let routine = self.routines.restore;
            self.call(routine);
            self.addend = false;
        }
        self.valid = STATUS;
        true
    }

    /// What must be kept of the flags before the instruction changes its operands. R12 is lost.
    fn before(&mut self, step: &Step, memory: Option<Mem>) {
        use Producer as P;
        let bytes = operand_bytes(&step.insn, 0);
        match step.producer {
            P::Sub | P::Add | P::Adc | P::Sbb | P::Test => {
                let (a, b) = (self.value(step, 0, memory), self.value(step, 1, memory));
                self.keep(field!(a), &a, bytes);
                self.keep(field!(b), &b, bytes);
                if matches!(step.producer, P::Adc | P::Sbb) {
                    self.set_carry(field!(carry));
                }
            }
            P::Neg => {
                let b = self.value(step, 0, memory);
                self.keep(field!(a), &Value::Constant(0), bytes);
                self.keep(field!(b), &b, bytes);
            }
            P::Inc | P::Dec if memory.is_some() => {
                self.keep(field!(carry), &Value::Memory(field!(value)), 1);
            }
            P::Inc | P::Dec => self.set_carry(field!(carry)),
            P::Shift(_, count) => {
                let a = self.value(step, 0, memory);
                self.keep(field!(a), &a, bytes);
                self.keep(field!(b), &Value::Constant(i32::from(count)), bytes);
            }
            P::CompareExchange => {
                let b = self.value(step, 0, memory);
                self.keep(field!(a), &Value::Register(RAX), bytes);
                self.keep(field!(b), &b, bytes);
            }
            _ => {}
        }
    }

    /// SETB.
    fn set_carry(&mut self, field: Mem) {
        self.out.hot.rm(Opcode::two(0x90 | cc::B, false), 0, field);
    }

    /// What must be kept of the flags after it. R12 is lost, and nothing else.
    fn after(&mut self, step: &Step, memory: Option<Mem>) {
        use Producer as P;
        let bytes = operand_bytes(&step.insn, 0);
        let width = bytes.trailing_zeros();
        let of = match step.producer {
            P::None | P::Double | P::RotateCl | P::ShiftCl(_) => return,
            P::Sub | P::Neg | P::CompareExchange => kind::SUB | width,
            P::Add => kind::ADD | width,
            P::Adc => kind::ADC | width,
            P::Sbb => kind::SBB | width,
            P::Test => kind::TEST | width,
            P::Shift(of, _) => of | width,
            P::Logic | P::Inc | P::Dec => {
                let result = self.value(step, 0, memory);
                self.keep(field!(a), &result, bytes);
                width
                    | match step.producer {
                        P::Logic => kind::LOGIC,
                        P::Inc => kind::INC,
                        _ => kind::DEC,
                    }
            }
            P::Multiply | P::MultiplyTo => {
                self.set_carry(field!(carry));
                let low = if step.producer == P::Multiply {
                    Value::Register(RAX)
                } else {
                    self.value(step, 0, None)
                };
                self.keep(field!(a), &low, bytes);
                kind::MUL | width
            }
            P::Count => {
                let result = self.value(step, 0, None);
                self.keep(field!(a), &result, bytes);
                kind::ZERO
            }
            P::Scan => kind::ZERO,
            P::Raw => {
                let hot = &mut self.out.hot;
                hot.mov(R12, RAX);
                // lahf; seto al
                hot.byte(0x9f);
                hot.rr(Opcode::two(0x90, false), 0, RAX);
                hot.store(field!(a), RAX);
                hot.mov(RAX, R12);
                kind::RAW
            }
            P::Rotate(of, _) => {
                let result = self.value(step, 0, memory);
                self.keep(field!(rotated), &result, bytes);
                return self.lay_over(of | width);
            }
            P::Bit => {
                self.set_carry(field!(rotated));
                return self.lay_over(overlay::CARRY);
            }
        };
        self.out.hot.store_constant(field!(kind), of as i32);
        self.kept = Some(of);
    }

    fn lay_over(&mut self, of: u32) {
        self.out.hot.store32_constant(field!(overlay), of as i32);
        self.kept = None;
    }

    // Instructions.

    fn copy(&mut self, step: &Step) {
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
        let carried = matches!(step.producer, Producer::Inc | Producer::Dec) && step.seen;
        if carried {
            // The check of an access loses it.
            self.bring_flags(CF, false);
            if step.access.is_some() {
                self.set_carry(field!(value));
                // An access that is tried again has no flags.
                self.retry = self.out.hot.here();
            }
        }
        let memory = self.access(step);
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
        }
        self.emit(step, memory, None);
        // The register of RSP has moved with it.
        let by = moves(step).unwrap_or(0);
        self.rsp = self.rsp.wrapping_add(by);
        self.flushed = self.flushed.wrapping_add(by);
        self.valid = step.producer.valid(self.valid, step.bits());
        if step.seen {
            self.after(step, memory);
        } else if step.producer != Producer::None {
            self.kept = None;
        }
    }

    /// ADD and SUB of a constant and RSP whose flags nobody sees.
    fn moves_unseen(&mut self, step: &Step) -> bool {
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
    fn shift_by_cl(&mut self, step: &Step, memory: Option<Mem>, of: u32) {
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
        (self.kept, self.valid) = (None, 0);
    }

    /// The instruction itself. `opcode` replaces its own.
    fn emit(&mut self, step: &Step, memory: Option<Mem>, opcode: Option<Opcode>) {
        let raw = &self.bytes[step.start..step.end];
        let insn = &step.insn;
        let mut encoding = encoding(step, raw);
        if let Some(opcode) = opcode {
            encoding.opcode = Opcode { wide: encoding.opcode.wide, ..opcode };
        }
        let hot = &mut self.out.hot;
        let mut op = encoding.opcode;
        let mut has_modrm = false;
        let mut reg = encoding.digit;
        let mut rm: Option<Reg> = None;
        let mut rm_memory = memory;
        let mut in_opcode = None;
        // Results of registers that the host has no register for.
        let mut stores: [Option<(u8, Reg)>; 2] = [None; 2];
        for number in 0..insn.op_count() {
            let at = place(insn, number);
            if at == Place::Other {
                continue;
            }
            has_modrm |= at != Place::Opcode;
            if insn.op_kind(number) != OpKind::Register {
                continue;
            }
            let register = insn.op_register(number);
            let (read, written) = (step.read >> number & 1 != 0, step.written >> number & 1 != 0);
            let mut host = register.number() as u8;
            if register.is_gpr() {
                let guest = register.full_register().number() as u8;
                host = match HOST[usize::from(guest)] {
                    _ if is_high(register) => guest + 4,
                    Some(host) => host,
                    // In memory, a bit's number would reach beyond the operand.
                    None if at == Place::Rm && !written && step.producer != Producer::Bit => {
                        rm_memory = Some(spilled(guest));
                        continue;
                    }
                    None => {
                        let scratch = if at == Place::Rm { R14 } else { R12 };
                        if read || register.size() < 4 {
                            hot.load(scratch, spilled(guest));
                        }
                        if scratch == R14 {
                            self.addend = false;
                        }
                        if written {
                            stores[usize::from(scratch == R14)] = Some((guest, scratch));
                        }
                        scratch
                    }
                };
                op.rex |= register.size() == 1 && !is_high(register) && host >= 4;
            }
            match at {
                Place::Reg => reg = host,
                Place::Rm => rm = Some(host),
                _ => in_opcode = Some(host),
            }
        }
        match (has_modrm, rm, rm_memory, in_opcode) {
            (true, Some(rm), _, _) => hot.rr(op, reg, rm),
            (true, None, Some(memory), _) => hot.rm(op, reg, memory),
            (false, _, _, Some(register)) => hot.opcode_register(op, register),
            _ => hot.plain(op),
        }
        let (bytes, count) = encoding.immediate;
        hot.bytes.extend_from_slice(&bytes[..count]);
        for (guest, scratch) in stores.into_iter().flatten() {
            hot.store(spilled(guest), scratch);
        }
    }

    fn lea(&mut self, step: &Step) {
        let insn = &step.insn;
        let wide = insn.op0_register().size() == 8;
        let guest = insn.op0_register().full_register().number() as u8;
        let to = HOST[usize::from(guest)].unwrap_or(R12);
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
        if HOST[usize::from(guest)].is_none() {
            self.hot().store(spilled(guest), to);
        }
    }

    /// A guest register's value in one of the host's: its own, or `scratch`.
    fn source(&mut self, guest: u8, scratch: Reg) -> Reg {
        match HOST[usize::from(guest)] {
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

    /// XCHG: in memory it would lock the bus.
    fn exchange(&mut self, step: &Step) {
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
                if HOST[usize::from(guest)].is_none() {
                    self.hot().store(spilled(guest), host);
                }
            }
            return;
        };
        let number = u32::from(insn.op0_kind() == OpKind::Memory);
        let register = insn.op_register(number);
        let bytes = register.size();
        let Some(guest) = gpr(register) else { return self.interpret(None) };
        match HOST[usize::from(guest)] {
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
    fn scan(&mut self, step: &Step) {
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
        if step.seen {
            self.after(step, memory);
        }
    }

    /// DIV and IDIV of words, where no error can come of it.
    fn divide(&mut self, step: &Step) {
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

    fn push(&mut self, step: &Step) {
        let insn = &step.insn;
        let from = match insn.op0_kind() {
            OpKind::Register => register(insn.op0_register()),
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

    fn pop(&mut self, step: &Step) {
        let Some(guest) = gpr(step.insn.op0_register()) else { return self.interpret(None) };
        let from = self.stack(step, 0, false);
        if guest == 4 {
            self.out.hot.load(R15, from);
            self.flushed = self.rsp;
            return;
        }
        let to = HOST[usize::from(guest)].unwrap_or(R12);
        self.out.hot.load(to, from);
        if HOST[usize::from(guest)].is_none() {
            self.out.hot.store(spilled(guest), to);
        }
        self.move_stack(step, 8);
    }

    fn leave(&mut self) {
        const RBP: Reg = 5;
        self.out.hot.mov(R12, RBP);
        self.check(8, false, false);
        let hot = &mut self.out.hot;
        hot.load(R12, Mem::sum(RBP, R14, 0));
        hot.lea(R15, Mem::base(RBP, 8));
        hot.mov(RBP, R12);
        self.flushed = self.rsp;
    }

    // Ways out of the block.

    /// Steps that are not taken.
    fn give_back(&mut self, steps: usize) {
        self.out.hot.advance(R13, steps as i32);
    }

    fn conditional(&mut self, step: &Step) {
        self.flush();
        self.bring_flags(step.reads, false);
        let Some(condition) = condition::code(&step.insn) else { return self.interpret(None) };
        let target = step.insn.near_branch_target();
        let left = self.count - self.number - 1;
        if left == 0 && self.is_near(target) {
            let number = self.edge_number();
            let place = self.out.hot.here() + 2;
            let to = self.near_target(target, number);
            self.out.hot.jcc(condition, to);
            self.out.edges.push(Edge { jump: (false, place), guard: None });
            return;
        }
        let stub = self.out.cold.here();
        self.out.hot.jcc(condition, Target::Cold(stub));
        self.out.cold.advance(R13, left as i32);
        self.go_cold(target);
    }

    fn jump(&mut self, step: &Step) {
        let target = step.insn.near_branch_target();
        if step.form == Form::Call {
            let back = self.rip.wrapping_add(step.end as u64);
            let to = self.stack(step, -8, true);
            let hot = &mut self.out.hot;
            match i32::try_from(back as i64) {
                Ok(short) => hot.store_constant(to, short),
                Err(_) => {
                    hot.constant(R12, back);
                    hot.store(to, R12);
                }
            }
            self.move_stack(step, -8);
        }
        self.flush();
        self.go(target);
        self.ended = true;
    }

    fn indirect(&mut self, step: &Step) {
        let call = step.form == Form::CallIndirect;
        let memory = self.access(step);
        let target = self.value(step, 0, memory);
        self.valid = 0;
        self.addend = false;
        let hot = &mut self.out.hot;
        match target {
            Value::Register(from) => hot.mov(R14, from),
            Value::Memory(from) => hot.load(R14, from),
            _ => {}
        }
        if call {
            hot.store(field!(value), R14);
            // Canonical?
            hot.shift(7, true, R14, 47);
            hot.advance(R14, 1);
            hot.arithmetic(7, true, R14, 1);
            self.interpret(Some(cc::A));
            let back = self.rip.wrapping_add(step.end as u64);
            let to = self.stack(step, -8, true);
            let hot = &mut self.out.hot;
            hot.constant(R12, back);
            hot.store(to, R12);
            self.move_stack(step, -8);
            self.out.hot.load(R14, field!(value));
        }
        self.finish_indirect(0);
    }

    fn ret(&mut self, step: &Step) {
        let popped = step.insn.stack_pointer_increment();
        let from = self.stack(step, 0, false);
        self.out.hot.load(R14, from);
        self.addend = false;
        self.rsp += popped;
        self.finish_indirect(popped as u32);
    }

    fn finish_indirect(&mut self, popped: u32) {
        self.flush();
        look_up(&mut self.out.hot);
        let stub = self.out.cold.here();
        self.out.hot.jmp(Target::Cold(stub));
        let site = self.site_number(popped);
        let leave = self.routines.leave;
        let cold = &mut self.out.cold;
        cold.store_constant(field!(argument), site as i32);
        cold.store32_constant(field!(exit), exit::RETURN as i32);
        cold.jmp(Target::Code(leave));
        self.ended = true;
    }

    /// Whether a target lies in the block's page.
    fn is_near(&self, target: u64) -> bool {
        target / PAGE == self.rip / PAGE
    }

    fn edge_number(&self) -> usize {
        self.numbers.edges + self.out.edges.len()
    }

    /// Where a branch to the same page leads until it is linked.
    fn near_target(&mut self, target: u64, number: usize) -> Target {
        if target == self.rip {
            return Target::Hot(0);
        }
        Target::Cold(self.link_stub(target, number))
    }

    fn link_stub(&mut self, target: u64, number: usize) -> usize {
        let leave = self.routines.leave;
        let cold = &mut self.out.cold;
        let stub = cold.here();
        cold.constant(R14, target);
        cold.store(field!(rip), R14);
        cold.store_constant(field!(argument), number as i32);
        cold.store32_constant(field!(exit), exit::LINK as i32);
        cold.jmp(Target::Code(leave));
        stub
    }

    /// Goes to the block at `target`.
    fn go(&mut self, target: u64) {
        if !self.is_near(target) {
            let stub = self.out.cold.here();
            self.out.hot.jmp(Target::Cold(stub));
            return self.go_cold(target);
        }
        let number = self.edge_number();
        let place = self.out.hot.here() + 1;
        let to = self.near_target(target, number);
        self.out.hot.jmp(to);
        self.out.edges.push(Edge { jump: (false, place), guard: None });
    }

    /// The same, from the cold part.
    fn go_cold(&mut self, target: u64) {
        let number = self.edge_number();
        if self.is_near(target) {
            let place = self.out.cold.here() + 1;
            if target == self.rip {
                self.out.cold.jmp(Target::Hot(0));
            } else {
                let next = place + 4;
                self.out.cold.jmp(Target::Cold(next));
                self.link_stub(target, number);
            }
            self.out.edges.push(Edge { jump: (true, place), guard: None });
            return;
        }
        let cold = &mut self.out.cold;
        // cmp dword [id], 0: no block's
        cold.rm(Opcode::one(0x81, false), 7, field!(id));
        let id = cold.here();
        cold.dword(0);
        let differs = cold.here() + 2;
        cold.jcc(cc::NE, Target::Cold(0));
        let jump = cold.here() + 1;
        cold.jmp(Target::Cold(0));
        let stub = self.link_stub(target, number);
        let cold = &mut self.out.cold;
        let find = cold.here();
        // sub dword [relink], 1: now and then it is linked anew
        cold.rm(Opcode::one(0x83, false), 5, field!(relink));
        cold.byte(1);
        cold.jcc(cc::B, Target::Cold(stub));
        cold.constant(R14, target);
        look_up(cold);
        cold.jmp(Target::Cold(stub));
        for (place, target) in &mut cold.fixups {
            if *place == differs || *place == jump {
                *target = Target::Cold(stub);
            }
        }
        self.out.edges.push(Edge { jump: (true, jump), guard: Some((id, differs, find)) });
    }
}

/// Whether RSP is an operand, or a part of its address.
fn uses_rsp(step: &Step) -> bool {
    let insn = &step.insn;
    let is = |register: Register| register.is_gpr() && register.full_register() == Register::RSP;
    (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Register && is(insn.op_register(n)))
        || step.operand.is_none()
            && (0..insn.op_count()).any(|n| insn.op_kind(n) == OpKind::Memory)
            && (is(insn.memory_base()) || is(insn.memory_index()))
}

/// Number of a general register that is not AH or its like.
fn gpr(register: Register) -> Option<u8> {
    (register.is_gpr() && !is_high(register)).then(|| register.full_register().number() as u8)
}

fn register(register: Register) -> Value {
    let guest = register.full_register().number() as u8;
    match HOST[usize::from(guest)] {
        _ if is_high(register) => Value::High(guest + 4),
        Some(host) => Value::Register(host),
        None => Value::Memory(spilled(guest)),
    }
}

/// An opcode by operand size: `byte` is that for bytes, the next that for others.
fn sized(byte: u8, bytes: usize) -> Opcode {
    Opcode {
        prefix: (bytes == 2).then_some(0x66),
        rex: true,
        ..Opcode::one(byte | u8::from(bytes > 1), bytes == 8)
    }
}

/// Loads a value, zero-extended.
fn load_sized(code: &mut Code, to: Reg, from: Mem, bytes: usize) {
    match bytes {
        1 => code.rm(Opcode::two(0xb6, false), to, from),
        2 => code.rm(Opcode::two(0xb7, false), to, from),
        4 => code.load32(to, from),
        _ => code.load(to, from),
    }
}

/// The parts of a memory operand.
struct Address {
    constant: Option<u64>,
    base: Option<u8>,
    index: Option<(u8, u8)>,
    disp: i32,
    /// Where the segment's base is, of FS and GS.
    segment: Option<Mem>,
}

impl Address {
    fn of(insn: &Instruction) -> Self {
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
