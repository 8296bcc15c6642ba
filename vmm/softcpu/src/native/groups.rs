//! Accesses at known distances from each other: the first one's check covers them all.

use iced_x86::Register;

use super::form::Form;
use super::plan::{Access, RANGE, Step, moves};

/// Most groups of a block.
pub const GROUPS: usize = 4;

#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// The first byte, from that of the first access.
    pub low: i32,
    pub bytes: u32,
    /// One of them writes.
    pub write: bool,
    /// The first access.
    pub first: Access,
}

/// What an address is made of, but for a constant: base, index and its factor.
type Parts = (Register, Register, u32);

/// Finds them, and says so in the steps.
pub fn find(steps: &mut [Step]) -> Vec<Group> {
    let mut groups = Vec::new();
    steps.iter_mut().for_each(|step| step.group = None);
    for first in 0..steps.len() {
        if groups.len() == GROUPS {
            break;
        }
        let Some((group, others)) = begin(steps, first) else { continue };
        others.iter().for_each(|other| steps[*other].group = Some((groups.len(), false)));
        steps[first].group = Some((groups.len(), true));
        groups.push(group);
    }
    groups
}

/// The parts of an explicit operand's address, and the constant, from the block's start if RIP is the base.
fn address(step: &Step, start: u64) -> Option<(Parts, i64, Access)> {
    let insn = &step.insn;
    let access = step.access?;
    let segment = matches!(insn.memory_segment(), Register::FS | Register::GS);
    if step.operand.is_some() || step.group.is_some() || access.aligned || segment {
        return None;
    }
    if insn.is_ip_rel_memory_operand() {
        let distance = insn.ip_rel_memory_address().wrapping_sub(start) as i64;
        return Some(((Register::RIP, Register::None, 1), distance, access));
    }
    let parts = (insn.memory_base(), insn.memory_index(), insn.memory_index_scale());
    Some((parts, i64::from(insn.memory_displacement64() as i32), access))
}

/// The group that begins at a step, if it has more than that, and the numbers of the others.
fn begin(steps: &[Step], first: usize) -> Option<(Group, Vec<usize>)> {
    let start = steps[0].insn.ip();
    let (parts, from, access) = address(&steps[first], start)?;
    let (mut low, mut high, mut write) = (0, i64::from(access.bytes), access.write);
    let mut others = Vec::new();
    for (number, step) in steps.iter().enumerate().skip(first) {
        if number > first
            && let Some((same, at, access)) = address(step, start)
            && same == parts
        {
            let wider = (low.min(at - from), high.max(at - from + i64::from(access.bytes)));
            if wider.1 - wider.0 <= i64::from(RANGE) {
                (low, high) = wider;
                write |= access.write;
                others.push(number);
            }
        }
        if changes(step, parts) {
            break;
        }
    }
    let group = Group { low: low as i32, bytes: (high - low) as u32, write, first: access };
    (!others.is_empty()).then_some((group, others))
}

/// Whether the same parts give another address after a step.
fn changes(step: &Step, (base, index, _): Parts) -> bool {
    let bit = |register: Register| match register.is_gpr() {
        true => 1u16 << register.full_register().number(),
        false => 0,
    };
    let named = bit(base) | bit(index);
    let moved = named & bit(Register::RSP) != 0 && moves(step) != Some(0);
    step.changes & named != 0 || moved || matches!(step.form, Form::Interpret | Form::Repeat)
}
