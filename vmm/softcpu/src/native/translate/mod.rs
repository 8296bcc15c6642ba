//! From a plan to code of the host.

mod compute;
mod keep;
mod leave;
mod operands;

use iced_x86::{OpKind, Register};

use super::emit::{Code, Mem, Opcode, R12, R13, R14, R15, Reg, Target, cc};
use super::flags::{Part, Recipe};
use super::form::Form;
use super::frame::exit;
use super::groups::Group;
use super::plan::{Plan, Step};
use super::routines::{HOST, Routines, field, parked, spilled};
#[cfg(feature = "planted-faults")]
use crate::planted::Mistake;
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
    /// Flags that the frame does not have yet.
    pub flags: Option<Recipe>,
}

/// A call of a routine that can leave.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Offset of what follows the call, and whether that is in the cold part.
    pub after: (bool, usize),
    /// Offset in the main part of where the instruction is tried again.
    pub retry: usize,
    pub number: u8,
    /// Flags that the frame does not have yet.
    pub flags: Option<Recipe>,
    /// Whose first access it checks.
    pub group: Option<usize>,
}

/// A branch to another block: places of what is changed when it is linked, from the start of the main part.
#[derive(Debug, Clone, Copy)]
pub struct Edge {
    /// The displacement.
    pub jump: usize,
    /// For one to another page: the constant that `Frame::id` is compared with, the
    /// displacement of the branch that is taken when it differs; and where that goes once it is linked, in
    /// the cold part.
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

pub struct Translator<'a> {
    out: Draft,
    numbers: Numbers,
    routines: &'a Routines,
    /// The host's register for each guest register that has one now.
    map: [Option<Reg>; 16],
    /// Guest registers that have another's instead of a place in the frame, and those others.
    guests: &'a [(u8, u8)],
    groups: &'a [Group],
    /// Where the block begins again.
    start: usize,
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
    /// What the flags follow from, if the frame does not have them.
    pending: Option<Recipe>,
    /// The operands of the instruction, for its recipe.
    parts: (Part, Part),
    /// `Frame::kind`, if it is known and there is no overlay.
    kind: Option<u32>,
    /// Where the instruction begins.
    retry: usize,
    number: usize,
    ended: bool,
    /// Checks of accesses are part of the block.
    inline: bool,
    /// The operand in memory is in R12.
    loaded: bool,
    site: Option<usize>,
    taken: Vec<leave::Taken<'a>>,
    #[cfg(feature = "planted-faults")]
    mistake: Option<Mistake>,
}

impl<'a> Translator<'a> {
    /// `hot` code is longer, and faster where the host has it in its caches.
    pub fn new(routines: &'a Routines, numbers: Numbers, bytes: &'a [u8], rip: u64, hot: bool) -> Self {
        Self {
            out: Draft::default(),
            numbers,
            routines,
            map: HOST,
            guests: &[],
            groups: &[],
            start: 0,
            bytes,
            rip,
            count: 0,
            rsp: 0,
            flushed: 0,
            addend: false,
            valid: 0,
            kept: None,
            pending: None,
            parts: (Part::Stored, Part::Stored),
            kind: None,
            retry: 0,
            number: 0,
            ended: false,
            inline: hot,
            loaded: false,
            site: None,
            taken: Vec::new(),
            #[cfg(feature = "planted-faults")]
            mistake: None,
        }
    }

    /// It makes a mistake.
    #[cfg(feature = "planted-faults")]
    pub fn planted(self, mistake: Option<(Mistake, u64)>) -> Self {
        Self { mistake: mistake.map(|(mistake, _)| mistake), ..self }
    }

    /// Makes the block's code.
    pub fn translate(mut self, plan: &'a Plan) -> Draft {
        (self.count, self.guests, self.groups) = (plan.count, &plan.guests, &plan.groups);
        self.take_in();
        self.entry(plan);
        for (number, step) in plan.steps.iter().enumerate() {
            self.number = number;
            self.site = None;
            self.step(step);
            if self.ended {
                break;
            }
        }
        if !self.ended {
            self.number = plan.steps.len() - 1;
            self.flush();
            self.settle();
            let following = self.rip.wrapping_add(plan.steps[self.number].end as u64);
            self.go(following);
        }
        self.finish_taken();
        self.out
    }

    fn hot(&mut self) -> &mut Code {
        &mut self.out.hot
    }

    /// Gives guest registers the host's registers of others.
    fn take_in(&mut self) {
        for (number, (guest, other)) in self.guests.iter().enumerate() {
            let Some(host) = std::mem::take(&mut self.map[usize::from(*other)]) else { continue };
            self.out.hot.store(parked(number), host);
            self.out.hot.load(host, spilled(*guest));
            self.map[usize::from(*guest)] = Some(host);
        }
        self.start = self.out.hot.here();
    }

    /// Every guest register is where others expect it.
    fn give_back(&mut self) {
        give_back(&mut self.out.hot, self.guests);
        (self.guests, self.map, self.start) = (&[], HOST, 0);
    }

    /// Counts the block, and looks whether what it needs is at hand.
    fn entry(&mut self, plan: &Plan) {
        let count = self.count as i32;
        self.out.hot.arithmetic(5, true, R13, count);
        let stub = self.out.cold.here();
        self.out.hot.jcc(cc::B, Target::Cold(stub));
        let (rip, leave) = (self.rip, self.routines.leave);
        let site = self.site_number(0);
        give_back(&mut self.out.cold, self.guests);
        let cold = &mut self.out.cold;
        cold.advance(R13, count);
        cold.store_constant(field!(argument), site as i32);
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
            let check = hot.here();
            hot.lea(R14, Mem::base(R15, low));
            hot.rm(Opcode::one(0x33, true), R14, field!(page));
            hot.rm(Opcode::one(0x0b, true), R14, field!(none));
            hot.arithmetic(7, true, R14, PAGE as i32 - (high - low));
            let stub = self.out.cold.here();
            hot.jcc(cc::A, Target::Cold(stub));
            let site = self.site_number(0);
            let routine = self.routines.stack;
            let cold = &mut self.out.cold;
            cold.lea(R12, Mem::base(R15, low));
            cold.lea(R14, Mem::base(R15, high - 1));
            cold.call(Target::Code(routine));
            cold.jcc(cc::E, Target::Hot(check));
            give_back(cold, self.guests);
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
        let (number, flags) = (self.number as u8, self.pending);
        self.out.sites.push(Site { number, popped, resume: None, flags });
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
        give_back(&mut self.out.cold, self.guests);
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
            (self.pending, self.kind) = (None, None);
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
        if step.is_checked() {
            // When it is tried again, R14 has something else.
            self.addend = false;
        }
        let changed = self.pending.is_some_and(|recipe| recipe.registers() & step.changes != 0);
        if changed && step.live && !step.producer.is_full() {
            self.settle();
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
                self.settle();
                self.uncount(self.count - self.number);
                let target = self.rip.wrapping_add(step.start as u64);
                self.go(target);
                self.ended = true;
            }
        }
        if !step.live {
            self.pending = None;
        }
    }
}

/// Leaves no flag or register else changed.
fn give_back(code: &mut Code, guests: &[(u8, u8)]) {
    for (number, (guest, other)) in guests.iter().enumerate() {
        let Some(host) = HOST[usize::from(*other)] else { continue };
        code.store(spilled(*guest), host);
        code.load(host, parked(number));
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
