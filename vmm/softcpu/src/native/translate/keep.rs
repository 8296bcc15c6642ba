//! The status flags: what is kept of them for whoever may look, and how they are brought back.

use iced_x86::OpKind;

use super::Translator;
use super::operands::{Value, gpr};
use crate::decode::operand_bytes;
use crate::flags::STATUS;
use crate::native::emit::{Mem, Opcode, R12, RAX, RSP, cc};
use crate::native::flags::{Part, Recipe, kind, overlay};
use crate::native::form::Producer;
use crate::native::plan::Step;
use crate::native::routines::{field, restore_kind, spilled};

impl Translator<'_> {
    /// Brings back what the instruction reads. False if that would lose R14, which is needed.
    pub(super) fn bring_flags(&mut self, reads: u64, memory: bool) -> bool {
        if reads & !self.valid == 0 {
            return true;
        }
        self.settle();
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
            // They may be kept in another way now.
            (self.kept, self.kind) = (None, None);
        }
        self.valid = STATUS;
        true
    }

    /// Stores what the flags follow from. R12 is lost.
    pub(super) fn settle(&mut self) {
        let Some(recipe) = self.pending.take() else { return };
        let hot = &mut self.out.hot;
        for (part, field) in [(recipe.a, field!(a)), (recipe.b, field!(b))] {
            match part {
                Part::Stored => {}
                Part::Constant(value) => hot.store_constant(field, value),
                Part::Register(guest) => match self.map[usize::from(guest)] {
                    Some(host) => hot.store(field, host),
                    None => {
                        hot.load(R12, spilled(guest));
                        hot.store(field, R12);
                    }
                },
            }
        }
        if self.kind != Some(recipe.kind) {
            hot.store_constant(field!(kind), recipe.kind as i32);
        }
        (self.kept, self.kind) = (Some(recipe.kind), Some(recipe.kind));
    }

    /// What must be kept of the flags before the instruction changes its operands. R12 is lost.
    pub(super) fn before(&mut self, step: &Step, memory: Option<Mem>) {
        use Producer as P;
        let bytes = operand_bytes(&step.insn, 0);
        self.parts = (Part::Stored, Part::Stored);
        match step.producer {
            P::Sub | P::Add | P::Test => self.keep_operands(step, memory, bytes),
            P::Adc | P::Sbb => {
                let (a, b) = (self.value(step, 0, memory), self.value(step, 1, memory));
                self.keep(field!(a), &a, bytes);
                self.keep(field!(b), &b, bytes);
                self.set_carry(field!(carry));
            }
            P::Neg => {
                let b = self.value(step, 0, memory);
                self.parts.0 = Part::Constant(0);
                self.keep(field!(b), &b, bytes);
            }
            P::Inc | P::Dec if memory.is_some() => {
                self.keep(field!(carry), &Value::Memory(field!(value)), 1);
            }
            P::Inc | P::Dec => self.set_carry(field!(carry)),
            P::Shift(_, count) => {
                let a = self.value(step, 0, memory);
                self.keep(field!(a), &a, bytes);
                self.parts.1 = Part::Constant(i32::from(count));
            }
            P::CompareExchange => {
                let b = self.value(step, 0, memory);
                self.keep(field!(a), &Value::Register(RAX), bytes);
                self.keep(field!(b), &b, bytes);
            }
            _ => {}
        }
    }

    /// Both operands, as far as they cannot be had afterwards. One in memory is loaded once, to R12, where
    /// the instruction finds it.
    fn keep_operands(&mut self, step: &Step, memory: Option<Mem>, bytes: usize) {
        let insn = &step.insn;
        let of = |number: u32| match insn.op_kind(number) {
            OpKind::Register => {
                gpr(insn.op_register(number)).filter(|guest| *guest != RSP).map(Part::Register)
            }
            OpKind::Memory => None,
            _ => Some(Part::Constant(insn.immediate(number) as i32)),
        };
        let fields = [field!(a), field!(b)];
        let mut parts = [of(0), of(1)];
        if parts[0] == parts[1] && step.written & 1 != 0 || step.written & 2 != 0 {
            // Of the result alone they do not follow.
            parts = [None; 2];
        }
        let in_memory = usize::from(insn.op0_kind() != OpKind::Memory);
        for number in [in_memory, 1 - in_memory] {
            if parts[number].is_some() {
                continue;
            }
            let value = self.value(step, number as u32, memory);
            self.keep(fields[number], &value, bytes);
            let other = self.value(step, 1 - number as u32, memory);
            self.loaded = matches!(value, Value::Memory(_))
                && step.access.is_some()
                && insn.op_kind(number as u32) == OpKind::Memory
                && step.written >> number & 1 == 0
                && parts[1 - number].is_some()
                && matches!(other, Value::Register(_) | Value::Constant(_));
        }
        self.parts = (parts[0].unwrap_or(Part::Stored), parts[1].unwrap_or(Part::Stored));
    }

    /// SETB.
    pub(super) fn set_carry(&mut self, field: Mem) {
        self.out.hot.rm(Opcode::two(0x90 | cc::B, false), 0, field);
    }

    /// What must be kept of the flags after it. R12 is lost, and nothing else.
    pub(super) fn after(&mut self, step: &Step, memory: Option<Mem>) {
        use Producer as P;
        let bytes = operand_bytes(&step.insn, 0);
        let width = bytes.trailing_zeros();
        let (mut a, b) = self.parts;
        let replaced = matches!(a, Part::Register(_)) && step.written & 1 != 0;
        let of = match step.producer {
            P::None | P::Double | P::RotateCl | P::ShiftCl(_) => return,
            #[cfg(feature = "planted-faults")]
            P::Sub if self.mistake == Some(crate::planted::Mistake::LostFlag) => {
                return self.pending = None;
            }
            P::Sub if replaced => kind::DIFFERENCE,
            P::Add if replaced => kind::SUM,
            P::Sub | P::Neg | P::CompareExchange => kind::SUB,
            P::Add => kind::ADD,
            P::Adc => kind::ADC,
            P::Sbb => kind::SBB,
            P::Test => kind::TEST,
            P::Shift(of, _) => of,
            P::Logic => {
                a = self.result(step, memory, bytes);
                kind::LOGIC
            }
            P::Inc | P::Dec => {
                a = self.result(step, memory, bytes);
                if step.producer == P::Inc { kind::INC } else { kind::DEC }
            }
            P::Multiply | P::MultiplyTo => {
                self.set_carry(field!(carry));
                a = match step.producer {
                    P::Multiply => Part::Register(RAX),
                    _ => self.result(step, None, bytes),
                };
                kind::MUL
            }
            P::Count => {
                a = self.result(step, None, bytes);
                return self.follow(kind::ZERO, a, Part::Stored);
            }
            P::Scan => return self.follow(kind::ZERO, Part::Stored, Part::Stored),
            P::Raw => {
                let hot = &mut self.out.hot;
                hot.mov(R12, RAX);
                // lahf; seto al
                hot.byte(0x9f);
                hot.rr(Opcode::two(0x90, false), 0, RAX);
                hot.store(field!(a), RAX);
                hot.mov(RAX, R12);
                return self.follow(kind::RAW, Part::Stored, Part::Stored);
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
        self.follow(of | width, a, b);
    }

    /// Operand 0, which is a result.
    fn result(&mut self, step: &Step, memory: Option<Mem>, bytes: usize) -> Part {
        if step.insn.op0_kind() == OpKind::Register
            && let Some(guest) = gpr(step.insn.op0_register()).filter(|guest| *guest != RSP)
        {
            return Part::Register(guest);
        }
        let result = self.value(step, 0, memory);
        self.keep(field!(a), &result, bytes);
        Part::Stored
    }

    fn follow(&mut self, kind: u32, a: Part, b: Part) {
        (self.pending, self.kept) = (Some(Recipe { kind, a, b }), None);
    }

    pub(super) fn lay_over(&mut self, of: u32) {
        self.out.hot.store32_constant(field!(overlay), of as i32);
        (self.kept, self.kind) = (None, None);
    }
}
