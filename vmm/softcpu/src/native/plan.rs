//! What is known of a block before any code is made: which accesses lie at a known distance from its first
//! RSP, and whose flags somebody could see.

use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, InstructionInfoOptions, OpAccess, OpKind,
    Register,
};

use super::emit::RSP;
use super::form::{Form, Producer, classify, has_xmm, may_be_misaligned, reads};
use super::groups::{self, Group};
use super::routines::HOST;
use crate::decode::operand_bytes;

/// Most bytes that one check covers: a wider range would cross a page's end too often.
pub const RANGE: i32 = 512;

/// What one check may cover.
#[derive(Debug, Clone, Copy)]
pub struct Covers {
    pub stack: bool,
    pub groups: bool,
}

/// An explicit operand in memory.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    pub bytes: u32,
    pub write: bool,
    /// To a multiple of 16.
    pub aligned: bool,
}

/// An instruction of the block.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub insn: Instruction,
    /// Where it begins and ends, in bytes from the block's start.
    pub start: usize,
    pub end: usize,
    pub form: Form,
    pub producer: Producer,
    /// Flags that it reads.
    pub reads: u64,
    /// Where its immediate is among its bytes, and how long it is.
    pub immediate: (usize, usize),
    /// Operands that are written, a bit each; and read.
    pub written: u8,
    pub read: u8,
    pub access: Option<Access>,
    /// Where its explicit operand lies, from the block's first RSP, if the block's check covers it.
    pub operand: Option<i32>,
    /// The same of what it pushes or pops.
    pub stack: Option<i32>,
    /// The group of its explicit operand, and whether it is the first there.
    pub group: Option<(usize, bool)>,
    /// Somebody could see the flags that it leaves.
    pub seen: bool,
    /// Somebody could see the flags that there are after it, its own or earlier ones.
    pub live: bool,
    /// General registers that it may write, a bit each; and that it names or takes.
    pub changes: u16,
    pub touches: u16,
    /// Somebody in the block reads them.
    pub used: bool,
}

impl Step {
    /// Size of operand 0 in bits.
    pub fn bits(&self) -> u32 {
        8 * operand_bytes(&self.insn, 0) as u32
    }

    /// Pushes or pops.
    fn moves_stack(&self) -> bool {
        use Form as F;
        matches!(self.form, F::Push | F::Pop | F::Call | F::CallIndirect | F::Return)
    }

    /// An access that is checked by itself, which destroys flags, and where the block can end.
    pub fn is_checked(&self) -> bool {
        let covered = self.operand.is_some() || matches!(self.group, Some((_, false)));
        let operand = self.access.is_some() && !covered;
        operand || self.moves_stack() && self.stack.is_none() || self.form == Form::Leave
    }

    /// The block can end before or at this instruction.
    fn can_leave(&self) -> bool {
        use Form as F;
        let ends = matches!(
            self.form,
            F::Interpret
                | F::Divide
                | F::Jump
                | F::Conditional
                | F::Call
                | F::CallIndirect
                | F::JumpIndirect
                | F::Return
                | F::Repeat
        );
        ends || self.is_checked()
    }

    /// Whether its flags cannot be kept for somebody to see.
    fn cannot_be_seen(&self) -> bool {
        matches!(self.producer, Producer::Double | Producer::RotateCl)
    }
}

/// A block before translation.
#[derive(Debug, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// Instructions that it counts.
    pub count: usize,
    /// Guest registers that get the host's register of another, which the block does not name, and those
    /// others.
    pub guests: Vec<(u8, u8)>,
    /// The bytes of the stack, from the first RSP on, that one check covers.
    pub stack: Option<(i32, i32)>,
    pub groups: Vec<Group>,
    /// It has SSE instructions.
    pub vectors: bool,
}

impl Plan {
    /// Bytes up to the end of its last instruction.
    #[cfg(any(debug_assertions, feature = "planted-faults"))]
    pub fn end(&self) -> usize {
        self.steps.last().map_or(0, |step| step.end)
    }

    /// The flags that are left at the end are not kept.
    #[cfg(feature = "planted-faults")]
    pub fn lose_last_flags(&mut self) {
        let last = self.steps.iter_mut().rev().find(|step| step.producer != Producer::None);
        last.into_iter().for_each(|step| step.seen = false);
    }

    /// Gives guest registers that the host has none for those of others, if they are named so often, or in a
    /// loop, which gives them back once, at its end.
    pub fn find_guests(&mut self, least: usize) {
        let interpreted = |step: &Step| matches!(step.form, Form::Interpret | Form::Repeat);
        if self.steps.iter().any(interpreted) {
            return;
        }
        let uses = |guest: u8| self.steps.iter().filter(|step| step.touches >> guest & 1 != 0).count();
        let homeless = || (0..16).filter(|guest| HOST[usize::from(*guest)].is_none());
        let mut wanted: Vec<u8> = homeless().filter(|guest| uses(*guest) > 0).collect();
        wanted.sort_by_key(|guest| usize::MAX - uses(*guest));
        let others =
            (0..16).filter(|other| *other != RSP && HOST[usize::from(*other)].is_some() && uses(*other) == 0);
        let guests: Vec<(u8, u8)> = wanted.into_iter().zip(others).collect();
        let loops = self.steps.last().is_some_and(|step| {
            step.form == Form::Conditional && step.insn.near_branch_target() == self.steps[0].insn.ip()
        });
        let worth = |(guest, _): &(u8, u8)| loops || uses(*guest) >= least;
        self.guests = guests.into_iter().take_while(worth).collect();
    }
}

/// Decodes `count` instructions.
pub fn plan(
    bytes: &[u8],
    rip: u64,
    count: usize,
    sse: bool,
    covers: Covers,
    factory: &mut InstructionInfoFactory,
) -> Plan {
    let mut plan = Plan { count, ..Plan::default() };
    let mut decoder = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE);
    for _ in 0..count {
        let start = decoder.position();
        let insn = decoder.decode();
        let end = decoder.position();
        let (form, producer) = classify(&insn, sse);
        plan.vectors |= form == Form::Copy && has_xmm(&insn);
        let mut step = Step {
            insn,
            start,
            end,
            form,
            producer,
            reads: if form == Form::Interpret { 0 } else { reads(&insn) },
            immediate: (0, 0),
            written: 0,
            read: 0,
            access: None,
            operand: None,
            stack: None,
            group: None,
            seen: false,
            live: true,
            changes: 0,
            touches: 0,
            used: false,
        };
        if form == Form::Repeat {
            plan.steps.push(step);
            break;
        }
        let offsets = decoder.get_constant_offsets(&insn);
        if offsets.has_immediate() {
            step.immediate = (offsets.immediate_offset(), offsets.immediate_size());
        }
        note_accesses(&mut step, factory);
        let loops = step.form == Form::Conditional && insn.near_branch_target() == rip;
        plan.steps.push(step);
        if loops {
            // What follows a loop is another block.
            plan.count = plan.steps.len();
            break;
        }
    }
    if covers.stack {
        find_stack(&mut plan);
    }
    find_seen(&mut plan, covers.groups);
    plan
}

/// Which operands are read and written.
fn note_accesses(step: &mut Step, factory: &mut InstructionInfoFactory) {
    use OpAccess as A;
    let insn = &step.insn;
    let info = factory.info_options(insn, InstructionInfoOptions::NO_REGISTER_USAGE);
    let mut memory = None;
    for number in 0..insn.op_count().min(4) {
        let (read, written) = match info.op_access(number) {
            A::Read | A::CondRead => (true, false),
            A::Write => (false, true),
            A::None | A::NoMemAccess => (false, false),
            A::CondWrite | A::ReadWrite | A::ReadCondWrite => (true, true),
        };
        step.read |= u8::from(read) << number;
        step.written |= u8::from(written) << number;
        if insn.op_kind(number) == OpKind::Memory {
            memory = Some(written);
        }
    }
    // An operation on one register and itself may do without its value, but not with two different ones.
    if insn.op_count() >= 2
        && insn.op0_kind() == OpKind::Register
        && insn.op1_kind() == OpKind::Register
        && insn.op0_register() == insn.op1_register()
    {
        step.read |= 3;
    }
    (step.changes, step.touches) = registers(step);
    if matches!(step.form, Form::Lea | Form::Nothing | Form::Interpret) {
        return;
    }
    step.access = memory.map(|write| {
        let bytes = insn.memory_size().size() as u32;
        Access { bytes, write, aligned: bytes == 16 && !may_be_misaligned(insn) }
    });
}

/// General registers that an instruction may write; and all that it names or takes.
fn registers(step: &Step) -> (u16, u16) {
    use iced_x86::Mnemonic as M;
    const RAX: u16 = 1;
    const RCX: u16 = 2;
    const RDX: u16 = 4;
    const RBP: u16 = 32;
    let insn = &step.insn;
    let mut changes = match insn.mnemonic() {
        M::Mul | M::Imul | M::Div | M::Idiv | M::Cwd | M::Cdq | M::Cqo => RAX | RDX,
        M::Cbw | M::Cwde | M::Cdqe | M::Cmpxchg => RAX,
        M::Pcmpistri | M::Pcmpestri => RCX,
        M::Leave => RBP,
        _ => 0,
    };
    let mut touches = match insn.mnemonic() {
        M::Pcmpestri | M::Pcmpestrm => RAX | RDX,
        _ => changes,
    };
    let bit = |register: Register| match register.is_gpr() {
        true => 1 << register.full_register().number(),
        false => 0,
    };
    for number in 0..insn.op_count() {
        match insn.op_kind(number) {
            OpKind::Register => {
                let named = bit(insn.op_register(number));
                touches |= named;
                if step.written >> number & 1 != 0 {
                    changes |= named;
                }
            }
            OpKind::Memory => touches |= bit(insn.memory_base()) | bit(insn.memory_index()),
            _ => {}
        }
    }
    (changes, touches | changes)
}

/// How far an instruction moves RSP, if that is known.
pub fn moves(step: &Step) -> Option<i32> {
    use iced_x86::Mnemonic as M;
    let insn = &step.insn;
    match step.form {
        Form::Pop if insn.op0_register() == Register::RSP => return None,
        Form::Leave | Form::Interpret => return None,
        _ if step.moves_stack() => return Some(insn.stack_pointer_increment()),
        Form::Lea if insn.op0_register() == Register::RSP => {
            let plain = insn.memory_base() == Register::RSP && insn.memory_index() == Register::None;
            return i32::try_from(insn.memory_displacement64() as i64).ok().filter(|_| plain);
        }
        _ => {}
    }
    let written = |number: u32| {
        step.written >> number & 1 != 0
            && insn.op_kind(number) == OpKind::Register
            && insn.op_register(number).full_register() == Register::RSP
    };
    if !(0..insn.op_count()).any(written) {
        return Some(0);
    }
    if insn.op0_register() != Register::RSP || matches!(insn.op1_kind(), OpKind::Register | OpKind::Memory) {
        return None;
    }
    let by = i32::try_from(insn.immediate(1) as i64).ok()?;
    match insn.mnemonic() {
        M::Add => Some(by),
        M::Sub => by.checked_neg(),
        _ => None,
    }
}

/// Finds the accesses at a known distance from the first RSP.
fn find_stack(plan: &mut Plan) {
    let mut at = Some(0i32);
    let mut range: Option<(i32, i32)> = None;
    let mut cover = |offset: i32, bytes: i32| {
        let (low, high) = range.unwrap_or((offset, offset + bytes));
        let wider = (low.min(offset), high.max(offset + bytes));
        let fits = wider.1 - wider.0 <= RANGE;
        if fits {
            range = Some(wider);
        }
        fits
    };
    for step in &mut plan.steps {
        let Some(rsp) = at else { break };
        let insn = &step.insn;
        if let Some(access) = step.access.filter(|access| !access.aligned)
            && insn.memory_base() == Register::RSP
            && insn.memory_index() == Register::None
            && !matches!(insn.memory_segment(), Register::FS | Register::GS)
        {
            let offset = i64::from(rsp) + insn.memory_displacement64() as i64;
            step.operand = i32::try_from(offset)
                .ok()
                .filter(|o| o.unsigned_abs() < 1 << 20 && cover(*o, access.bytes as i32));
        }
        if step.moves_stack() {
            let down = matches!(step.form, Form::Push | Form::Call | Form::CallIndirect);
            let offset = if down { rsp - 8 } else { rsp };
            step.stack = Some(offset).filter(|offset| cover(*offset, 8));
        }
        at = moves(step).and_then(|by| rsp.checked_add(by)).filter(|at| at.unsigned_abs() < 1 << 20);
    }
    plan.stack = range;
}

/// Finds whose flags somebody could see; what cannot be kept for that is interpreted.
fn find_seen(plan: &mut Plan, grouped: bool) {
    loop {
        if grouped {
            plan.groups = groups::find(&mut plan.steps);
        }
        let steps = &mut plan.steps;
        let unmet = forward(steps);
        backward(steps, &unmet);
        let Some(number) = steps.iter().position(|step| step.seen && step.cannot_be_seen()) else { return };
        (steps[number].form, steps[number].producer) = (Form::Interpret, Producer::None);
        (steps[number].reads, steps[number].access) = (0, None);
    }
}

/// Which steps read flags that the host will not have.
fn forward(steps: &mut [Step]) -> Vec<bool> {
    let mut valid = 0;
    let mut unmet = vec![false; steps.len()];
    let mut producer: Option<usize> = None;
    for number in 0..steps.len() {
        let step = &steps[number];
        if step.is_checked() || matches!(step.form, Form::Divide | Form::Interpret) {
            valid = 0;
        }
        let (reads, kind, bits) = (step.reads, step.producer, step.bits());
        if reads & !valid != 0 {
            unmet[number] = true;
            valid = crate::flags::STATUS;
        }
        if reads != 0
            && let Some(producer) = producer
        {
            steps[producer].used = true;
        }
        valid = kind.valid(valid, bits);
        if kind != Producer::None {
            // One that keeps some of the flags before it uses them.
            if !kind.is_full()
                && let Some(before) = producer
            {
                steps[before].used = true;
            }
            producer = Some(number);
        }
    }
    unmet
}

fn backward(steps: &mut [Step], unmet: &[bool]) {
    let mut seen = true;
    for (step, unmet) in steps.iter_mut().zip(unmet).rev() {
        step.seen = false;
        step.live = seen;
        if step.producer != Producer::None {
            step.seen = seen;
            if step.producer.is_full() {
                seen = false;
            }
        }
        if step.can_leave() || *unmet {
            seen = true;
        }
    }
}
