//! The status flags: what is kept of them for whoever may look, and how they are brought back.

use iced_x86::OpKind;

use super::Translator;
use super::operands::{Value, load_sized};
use crate::decode::operand_bytes;
use crate::flags::STATUS;
use crate::native::emit::{Mem, Opcode, R12, RAX, cc};
use crate::native::flags::{kind, overlay};
use crate::native::form::Producer;
use crate::native::plan::Step;
use crate::native::routines::{field, restore_kind};

impl Translator<'_> {
    /// Brings back what the instruction reads. False if that would lose R14, which is needed.
    pub(super) fn bring_flags(&mut self, reads: u64, memory: bool) -> bool {
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
            // They may be kept in another way now.
            self.kept = None;
        }
        self.valid = STATUS;
        true
    }

    /// What must be kept of the flags before the instruction changes its operands. R12 is lost.
    pub(super) fn before(&mut self, step: &Step, memory: Option<Mem>) {
        use Producer as P;
        let bytes = operand_bytes(&step.insn, 0);
        match step.producer {
            P::Sub | P::Add | P::Adc | P::Sbb | P::Test => {
                self.keep_operands(step, memory, bytes);
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

    /// Both operands. One in memory is loaded once, to R12, where the instruction finds it.
    fn keep_operands(&mut self, step: &Step, memory: Option<Mem>, bytes: usize) {
        let in_memory = u32::from(step.insn.op0_kind() != OpKind::Memory);
        let source = memory.filter(|_| step.written >> in_memory & 1 == 0 && step.access.is_some());
        let other = self.value(step, 1 - in_memory, memory);
        let fields = [field!(a), field!(b)];
        let (of_memory, of_other) = (fields[in_memory as usize], fields[1 - in_memory as usize]);
        match (source, &other) {
            (Some(source), Value::Register(_) | Value::Constant(_)) => {
                load_sized(&mut self.out.hot, R12, source, bytes);
                self.out.hot.store(of_memory, R12);
                self.keep(of_other, &other, bytes);
                self.loaded = true;
            }
            _ => {
                let (a, b) = (self.value(step, 0, memory), self.value(step, 1, memory));
                self.keep(field!(a), &a, bytes);
                self.keep(field!(b), &b, bytes);
            }
        }
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
        let of = match step.producer {
            P::None | P::Double | P::RotateCl | P::ShiftCl(_) => return,
            #[cfg(feature = "planted-faults")]
            P::Sub if self.mistake == Some(crate::planted::Mistake::LostFlag) => return,
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
        if self.kept != Some(of) {
            self.out.hot.store_constant(field!(kind), of as i32);
        }
        self.kept = Some(of);
    }

    pub(super) fn lay_over(&mut self, of: u32) {
        self.out.hot.store32_constant(field!(overlay), of as i32);
        self.kept = None;
    }
}
