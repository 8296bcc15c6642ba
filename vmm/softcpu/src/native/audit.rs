//! Reads translated code as the host's processor will, and refuses what could reach beyond guest memory: in
//! builds with debug assertions, and where a test asks for it, for every block.
//!
//! All ways through both parts of a block are followed, with what R12 and R14 have on each. Memory operands
//! may only be fields of the frame, slots of the jump cache, or sums with an addend that a check left in R14
//! which was for as many bytes, and for a store if it is one. Branches lead into the block, to routines, and
//! where the jump cache says.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};

use super::frame::Frame;
use super::groups::GROUPS;
use super::plan::RANGE;
use super::routines::{Routines, field, group};

/// Of an access that was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Right {
    bytes: usize,
    write: bool,
}

/// What R14 has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Addend {
    No,
    /// The address of the last of so many bytes, or its page.
    Last(usize),
    Of(Right),
    /// Of the stack's page.
    Stack,
}

/// What R12 has the address of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    No,
    /// Of the jump cache.
    Jump,
    /// The offset of code; its address.
    Offset,
    Code,
    /// Of one of the TLB's tables, not compared yet.
    Entry {
        write: bool,
    },
    /// The same, just compared with the access's page.
    Compared(Right),
    /// They are equal.
    Hit(Right),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    r14: Addend,
    slot: Slot,
    /// What the frame has of groups of accesses.
    groups: [Option<Right>; GROUPS],
}

const NOTHING: Known = Known { r14: Addend::No, slot: Slot::No, groups: [None; GROUPS] };

impl Known {
    /// What is known where two ways meet.
    fn meet(self, other: Self) -> Self {
        Self {
            r14: if self.r14 == other.r14 { self.r14 } else { Addend::No },
            slot: if self.slot == other.slot { self.slot } else { Slot::No },
            groups: std::array::from_fn(|n| self.groups[n].filter(|of| other.groups[n] == Some(*of))),
        }
    }
}

/// A block's code at its offsets in code memory.
pub struct Parts<'a> {
    pub hot: (&'a [u8], u32),
    pub cold: (&'a [u8], u32),
    /// Offsets in code memory at which it is entered, beside its start.
    pub entries: Vec<u32>,
    /// What follows calls, and where the block is entered again if they leave.
    pub retries: Vec<(u32, u32)>,
}

struct Audit<'a> {
    routines: &'a Routines,
    retries: &'a [(u32, u32)],
    code: Vec<Instruction>,
    known: Vec<Option<Known>>,
    factory: InstructionInfoFactory,
}

/// Checks a block. What is wrong with it, if anything is.
pub fn audit(parts: &Parts, routines: &Routines) -> Result<(), String> {
    let mut code = Vec::new();
    for (bytes, at) in [parts.hot, parts.cold] {
        code.extend(&mut Decoder::with_ip(64, bytes, u64::from(at), DecoderOptions::NONE));
    }
    let known = vec![None; code.len()];
    let mut audit =
        Audit { routines, retries: &parts.retries, code, known, factory: InstructionInfoFactory::new() };
    let start = parts.hot.1;
    audit.follow(parts.entries.iter().copied().chain([start]).map(u64::from))
}

impl Audit<'_> {
    fn follow(&mut self, entries: impl Iterator<Item = u64>) -> Result<(), String> {
        let mut open = Vec::new();
        for entry in entries {
            let number = self.number(entry)?;
            self.reach(number, NOTHING, &mut open);
        }
        loop {
            while let Some(number) = open.pop() {
                let before = self.known[number].unwrap_or(NOTHING);
                self.step(number, before, &mut open)?;
            }
            // Whatever leads there, nothing is known.
            match self.known.iter().position(Option::is_none) {
                Some(number) => self.reach(number, NOTHING, &mut open),
                None => return Ok(()),
            }
        }
    }

    /// The instruction that begins at an offset.
    fn number(&self, offset: u64) -> Result<usize, String> {
        let found = self.code.iter().position(|insn| insn.ip() == offset);
        found.ok_or_else(|| format!("no instruction begins at {offset:#x}"))
    }

    fn reach(&mut self, number: usize, known: Known, open: &mut Vec<usize>) {
        let known_so_far = &mut self.known[number];
        let together = known_so_far.map_or(known, |so_far| so_far.meet(known));
        if *known_so_far != Some(together) {
            *known_so_far = Some(together);
            open.push(number);
        }
    }

    fn step(&mut self, number: usize, before: Known, open: &mut Vec<usize>) -> Result<(), String> {
        let insn = self.code[number];
        if insn.is_invalid() {
            return Err(format!("not an instruction at {:#x}", insn.ip()));
        }
        self.check(&insn, before)
            .map_err(|what| format!("{insn} at {:#x}: {what}, {before:?}", insn.ip()))?;
        let next = number + 1;
        let falls = |audit: &mut Self, known, open: &mut Vec<usize>| match audit.code.get(next) {
            Some(following) if following.ip() == insn.next_ip() => {
                audit.reach(next, known, open);
                Ok(())
            }
            _ => Err(format!("{insn} at {:#x} goes on behind its part", insn.ip())),
        };
        match insn.flow_control() {
            FlowControl::Next => {
                let after = self.after(&insn, before);
                falls(self, after, open)
            }
            FlowControl::ConditionalBranch => {
                let target = self.number(insn.near_branch_target())?;
                self.reach(target, Known { slot: Slot::No, ..before }, open);
                let slot = match before.slot {
                    Slot::Compared(right) if insn.condition_code() == iced_x86::ConditionCode::ne => {
                        Slot::Hit(right)
                    }
                    Slot::Compared(right) => Slot::Entry { write: right.write },
                    slot => slot,
                };
                falls(self, Known { slot, ..before }, open)
            }
            FlowControl::UnconditionalBranch => {
                let target = insn.near_branch_target();
                if target == u64::from(self.routines.leave) {
                    return Ok(());
                }
                let target = self.number(target)?;
                self.reach(target, before, open);
                Ok(())
            }
            FlowControl::Call => {
                // What groups there are stay there.
                let retry = self.retries.iter().find(|(after, _)| u64::from(*after) == insn.next_ip());
                if let Some((_, retry)) = retry {
                    let retry = self.number(u64::from(*retry))?;
                    self.reach(retry, Known { groups: before.groups, ..NOTHING }, open);
                }
                if insn.near_branch_target() == u64::from(self.routines.group) {
                    return Ok(());
                }
                let known = self.called(insn.near_branch_target())?;
                falls(self, Known { groups: before.groups, ..known }, open)
            }
            // Behind a call that does not return.
            FlowControl::Interrupt if insn.code() == Code::Int3 => Ok(()),
            FlowControl::IndirectBranch if before.slot == Slot::Code => Ok(()),
            _ => Err(format!("{insn} at {:#x} leads anywhere", insn.ip())),
        }
    }

    /// What is known after a routine.
    fn called(&self, target: u64) -> Result<Known, String> {
        let routines = self.routines;
        let bytes = [1, 2, 4, 8, 16, 16];
        for (write, checks) in [(false, routines.reads), (true, routines.writes)] {
            if let Some(number) = checks.iter().position(|check| u64::from(*check) == target) {
                let right = Right { bytes: bytes[number], write };
                return Ok(Known { r14: Addend::Of(right), ..NOTHING });
            }
        }
        let others = [routines.restore, routines.load_vectors, routines.stack].map(u64::from);
        if others.contains(&target) { Ok(NOTHING) } else { Err(format!("a call of {target:#x}")) }
    }

    /// Whether an instruction may be executed.
    fn check(&mut self, insn: &Instruction, known: Known) -> Result<(), String> {
        let call = insn.code() == Code::Call_rel32_64;
        if !call && self.writes(insn, Register::RSP) {
            return Err("it moves the frame".into());
        }
        if insn.is_privileged() {
            return Err("it is the kernel's".into());
        }
        let memory = (0..insn.op_count()).any(|number| insn.op_kind(number) == OpKind::Memory);
        let info = self.factory.info(insn);
        let accesses = || info.used_memory().iter().filter(|used| used.access() != OpAccess::NoMemAccess);
        let explicit = |used: &iced_x86::UsedMemory| {
            memory && used.base() == insn.memory_base() && used.index() == insn.memory_index()
        };
        if !call && !accesses().all(explicit) {
            return Err("it reaches memory by itself".into());
        }
        let stores = accesses().any(|used| !matches!(used.access(), OpAccess::Read | OpAccess::CondRead));
        let right = Right { bytes: insn.memory_size().size(), write: stores };
        if memory && insn.mnemonic() != Mnemonic::Lea && !is_allowed(insn, right, known) {
            return Err(format!("it reaches anywhere, {right:?}"));
        }
        Ok(())
    }

    fn writes(&mut self, insn: &Instruction, register: Register) -> bool {
        self.factory.info(insn).used_registers().iter().any(|used| {
            used.register().is_gpr()
                && used.register().full_register() == register
                && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None)
        })
    }

    /// What is known after an instruction that goes on with the next.
    fn after(&mut self, insn: &Instruction, before: Known) -> Known {
        let mut after = before;
        if let Slot::Compared(right) = before.slot
            && insn.rflags_modified() != 0
        {
            after.slot = Slot::Entry { write: right.write };
        }
        if insn.mnemonic() == Mnemonic::Cmp
            && let (Slot::Entry { write }, Addend::Last(bytes)) = (before.slot, before.r14)
            && insn.op0_register() == Register::R14
            && insn.memory_base() == Register::R12
        {
            after.slot = Slot::Compared(Right { bytes, write });
        }
        for (number, known) in after.groups.iter_mut().enumerate() {
            if is_field(insn, group(number)) && insn.op0_kind() == OpKind::Memory {
                *known = match before.r14 {
                    Addend::Of(right) if insn.op1_register() == Register::R14 => Some(right),
                    _ => None,
                };
            }
        }
        if self.writes(insn, Register::R12) {
            after.slot = slot_after(insn, before.slot);
        }
        if self.writes(insn, Register::R14) {
            after.r14 = addend_after(insn, before);
        }
        after
    }
}

fn offset(field: super::emit::Mem) -> u64 {
    field.disp as u64
}

/// Whether the operand in memory is that field.
fn is_field(insn: &Instruction, field: super::emit::Mem) -> bool {
    insn.memory_base() == Register::RSP
        && insn.memory_index() == Register::None
        && insn.memory_displacement64() == offset(field)
}

/// What R12 has after an instruction that writes it: `add r12, [table]` ends the search for a slot.
fn slot_after(insn: &Instruction, before: Slot) -> Slot {
    let adds = insn.mnemonic() == Mnemonic::Add && insn.op0_register() == Register::R12;
    let loads = insn.mnemonic() == Mnemonic::Mov && insn.op0_register() == Register::R12D;
    match before {
        _ if adds && is_field(insn, field!(jumps)) => Slot::Jump,
        _ if adds && is_field(insn, field!(reads)) => Slot::Entry { write: false },
        _ if adds && is_field(insn, field!(writes)) => Slot::Entry { write: true },
        Slot::Offset if adds && is_field(insn, field!(code)) => Slot::Code,
        Slot::Jump if loads && insn.memory_base() == Register::R12 => Slot::Offset,
        _ => Slot::No,
    }
}

/// What R14 has after an instruction that writes it.
fn addend_after(insn: &Instruction, before: Known) -> Addend {
    let of_entry = insn.memory_base() == Register::R12 && insn.memory_index() == Register::None;
    let reach = insn.memory_displacement64() as usize;
    match (insn.mnemonic(), before.slot, before.r14) {
        _ if insn.op0_register() != Register::R14 => Addend::No,
        (Mnemonic::Mov, _, _) if is_field(insn, field!(addend)) => Addend::Stack,
        (Mnemonic::Mov, _, _) if group_of(insn).is_some() => {
            group_of(insn).and_then(|number| before.groups[number]).map_or(Addend::No, Addend::Of)
        }
        (Mnemonic::Mov, Slot::Hit(right), _) if of_entry => Addend::Of(right),
        (Mnemonic::Lea, _, _) if of_entry && reach < RANGE as usize => Addend::Last(reach + 1),
        // Its page, and the space.
        (Mnemonic::And | Mnemonic::Or, _, Addend::Last(bytes)) => Addend::Last(bytes),
        // The rest of the address.
        (Mnemonic::Add, _, of @ (Addend::Of(_) | Addend::Stack)) => of,
        (Mnemonic::Lea, _, of @ (Addend::Of(_) | Addend::Stack)) if insn.memory_base() == Register::R14 => of,
        _ => Addend::No,
    }
}

/// The group whose addend the field of the frame is.
fn group_of(insn: &Instruction) -> Option<usize> {
    (0..GROUPS).find(|number| is_field(insn, group(*number)))
}

fn is_allowed(insn: &Instruction, right: Right, known: Known) -> bool {
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let reach = insn.memory_displacement64() as i64;
    let bits = matches!(insn.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && insn.op1_kind() == OpKind::Register;
    if bits {
        return false;
    }
    if base == Register::RSP && index == Register::None {
        let end = reach + right.bytes as i64;
        return reach >= 0 && end <= size_of::<Frame>() as i64;
    }
    if base == Register::R12 && index == Register::None {
        let compares = insn.mnemonic() == Mnemonic::Cmp;
        return match known.slot {
            Slot::Jump => !right.write && (0..=16 - right.bytes as i64).contains(&reach),
            Slot::Entry { .. } => compares && reach == 0,
            Slot::Hit(_) => !right.write && reach == 8 && right.bytes == 8,
            _ => false,
        };
    }
    let by_addend = base == Register::R14 || index == Register::R14 && insn.memory_index_scale() == 1;
    by_addend
        && match known.r14 {
            Addend::Stack => true,
            Addend::Of(checked) => right.bytes <= checked.bytes && (!right.write || checked.write),
            Addend::No | Addend::Last(_) => false,
        }
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
