//! Ways out of a block.

use super::operands::Value;
use super::{Edge, Translator};
use crate::exec::condition;
use crate::native::emit::{Code, Opcode, R12, R13, R14, Target, cc};
use crate::native::form::Form;
use crate::native::frame::exit;
use crate::native::plan::Step;
use crate::native::routines::{field, look_up};
use crate::ram::PAGE;

impl Translator<'_> {
    /// Steps that are not taken.
    pub(super) fn uncount(&mut self, steps: usize) {
        self.out.hot.advance(R13, steps as i32);
    }

    pub(super) fn conditional(&mut self, step: &Step) {
        self.flush();
        self.settle();
        self.bring_flags(step.reads, false);
        let Some(condition) = condition::code(&step.insn) else { return self.interpret(None) };
        let target = step.insn.near_branch_target();
        let left = self.count - self.number - 1;
        if left == 0 && self.is_near(target) {
            if target != self.rip {
                self.give_back();
            }
            let number = self.edge_number();
            let place = self.out.hot.here() + 2;
            let to = self.near_target(target, number);
            self.out.hot.jcc(condition, to);
            self.out.edges.push(Edge { jump: place, guard: None });
            return;
        }
        #[cfg(feature = "planted-faults")]
        let left = left + usize::from(self.mistake == Some(crate::planted::Mistake::MiscountedEdge));
        let (guests, start) = (self.guests, self.start);
        self.taken.push(Taken { place: self.out.hot.here() + 2, left, target, guests, start });
        self.out.hot.jcc(condition, Target::Hot(0));
    }

    /// Branches out of the block's middle lead on from behind its end: the other part would often be neither
    /// in the host's caches nor in its TLB.
    pub(super) fn finish_taken(&mut self) {
        for Taken { place, left, target, guests, start } in std::mem::take(&mut self.taken) {
            let here = self.out.hot.here();
            for (at, to) in &mut self.out.hot.fixups {
                if *at == place {
                    *to = Target::Hot(here);
                }
            }
            self.uncount(left);
            (self.guests, self.start) = (guests, start);
            self.go(target);
        }
    }

    pub(super) fn jump(&mut self, step: &Step) {
        let target = step.insn.near_branch_target();
        self.settle();
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

    pub(super) fn indirect(&mut self, step: &Step) {
        let call = step.form == Form::CallIndirect;
        self.settle();
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
            #[cfg(feature = "planted-faults")]
            if self.mistake == Some(crate::planted::Mistake::EarlyPush) {
                let to = self.stack(step, -8, true);
                self.out.hot.store(to, R13);
                self.out.hot.load(R14, field!(value));
                self.addend = false;
            }
            let hot = &mut self.out.hot;
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

    pub(super) fn ret(&mut self, step: &Step) {
        let popped = step.insn.stack_pointer_increment();
        self.settle();
        let from = self.stack(step, 0, false);
        self.out.hot.load(R14, from);
        self.addend = false;
        self.rsp += popped;
        self.finish_indirect(popped as u32);
    }

    pub(super) fn finish_indirect(&mut self, popped: u32) {
        self.flush();
        self.give_back();
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
    pub(super) fn is_near(&self, target: u64) -> bool {
        target / PAGE == self.rip / PAGE
    }

    pub(super) fn edge_number(&self) -> usize {
        self.numbers.edges + self.out.edges.len()
    }

    /// Where a branch to the same page leads until it is linked.
    pub(super) fn near_target(&mut self, target: u64, number: usize) -> Target {
        if target == self.rip {
            return Target::Hot(self.start);
        }
        Target::Cold(self.link_stub(target, number))
    }

    pub(super) fn link_stub(&mut self, target: u64, number: usize) -> usize {
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
    pub(super) fn go(&mut self, target: u64) {
        if target != self.rip {
            self.give_back();
        }
        let number = self.edge_number();
        if !self.is_near(target) {
            let guard = guard(&mut self.out.hot);
            let stub = self.link_stub(target, number);
            return self.finish_guard(target, guard, stub);
        }
        let place = self.out.hot.here() + 1;
        let to = self.near_target(target, number);
        self.out.hot.jmp(to);
        self.out.edges.push(Edge { jump: place, guard: None });
    }

    /// Where a guarded branch goes that does not lead on.
    fn finish_guard(&mut self, target: u64, guard: Guard, stub: usize) {
        let cold = &mut self.out.cold;
        let find = cold.here();
        // sub dword [relink], 1: now and then it is linked anew
        cold.rm(Opcode::one(0x83, false), 5, field!(relink));
        cold.byte(1);
        cold.jcc(cc::B, Target::Cold(stub));
        cold.constant(R14, target);
        look_up(cold);
        cold.jmp(Target::Cold(stub));
        for (place, target) in &mut self.out.hot.fixups {
            if *place == guard.differs || *place == guard.jump {
                *target = Target::Cold(stub);
            }
        }
        let Guard { id, differs, jump } = guard;
        self.out.edges.push(Edge { jump, guard: Some((id, differs, find)) });
    }
}

/// A branch out of the block's middle: the place of its displacement, and how many steps it does not take.
pub struct Taken<'a> {
    place: usize,
    left: usize,
    target: u64,
    /// Of the translator, there.
    guests: &'a [(u8, u8)],
    start: usize,
}

/// Places of a branch to another page.
struct Guard {
    id: usize,
    differs: usize,
    jump: usize,
}

/// A branch that is yet to be linked, if it is still to be taken where it leads.
fn guard(code: &mut Code) -> Guard {
    // cmp dword [id], 0: no block's
    code.rm(Opcode::one(0x81, false), 7, field!(id));
    let id = code.here();
    code.dword(0);
    let differs = code.here() + 2;
    code.jcc(cc::NE, Target::Cold(0));
    let jump = code.here() + 1;
    code.jmp(Target::Cold(0));
    Guard { id, differs, jump }
}
