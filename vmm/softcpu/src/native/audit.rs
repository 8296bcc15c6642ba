//! Reads translated code as the host's processor will, and refuses what could reach beyond guest memory: in
//! builds with debug assertions, for every block.
//!
//! Memory operands may only be fields of the frame, slots of the jump cache, or sums with an addend that a
//! check left in R14.

use iced_x86::{
    Code, Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
};

use super::frame::Frame;
use super::groups::GROUPS;
use super::routines::{Routines, field, group};

/// What R14 has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Addend {
    No,
    /// Of an access that was checked, or of the stack.
    Yes,
}

/// What R12 has the address of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    No,
    /// Of the jump cache.
    Jump,
    /// Of the TLB, not compared yet.
    Entry,
    /// Of the TLB, which was compared with the access's page.
    Hit,
}

/// Checks the main part of a block, placed at the offset `at` of code memory, whose own calls lead to
/// `routines`, and which can be entered at `entries`.
pub fn audit(code: &[u8], at: u32, routines: &Routines, entries: &[usize]) -> Result<(), String> {
    let mut decoder = Decoder::with_ip(64, code, u64::from(at), DecoderOptions::NONE);
    let mut factory = InstructionInfoFactory::new();
    let (mut r14, mut slot) = (Addend::No, Slot::No);
    for insn in &mut decoder {
        if insn.is_invalid() {
            return Err(format!("not an instruction at {:#x}", insn.ip()));
        }
        if entries.contains(&((insn.ip() - u64::from(at)) as usize)) {
            r14 = Addend::No;
        }
        let memory = (0..insn.op_count()).any(|number| insn.op_kind(number) == OpKind::Memory);
        if memory && insn.mnemonic() != Mnemonic::Lea && !is_allowed(&insn, r14, slot) {
            return Err(format!("{insn} at {:#x} of the block at {at:#x}, with {r14:?}", insn.ip()));
        }
        let implicit = factory.info(&insn).used_memory().iter().any(|used| {
            used.access() != OpAccess::NoMemAccess
                && !(memory && used.base() == insn.memory_base() && used.index() == insn.memory_index())
        });
        let call = insn.code() == Code::Call_rel32_64;
        if implicit && !call {
            return Err(format!("{insn} reaches memory by itself"));
        }
        if call {
            let target = insn.near_branch_target() as u32;
            let checks = routines.reads.iter().chain(&routines.writes);
            r14 = if checks.into_iter().any(|check| *check == target) { Addend::Yes } else { Addend::No };
            slot = Slot::No;
            continue;
        }
        if writes(&mut factory, &insn, Register::R12) {
            slot = slot_after(&insn);
        } else if slot == Slot::Entry && insn.code() == Code::Jne_rel32_64 {
            slot = Slot::Hit;
        }
        if writes(&mut factory, &insn, Register::R14) {
            r14 = after(&insn, r14, slot);
        }
    }
    Ok(())
}

fn offset(field: super::emit::Mem) -> u64 {
    field.disp as u64
}

/// What R12 has after an instruction that writes it: `add r12, [table]` ends the search for a slot.
fn slot_after(insn: &Instruction) -> Slot {
    let field = insn.memory_displacement64();
    match insn.mnemonic() {
        Mnemonic::Add if insn.memory_base() != Register::RSP => Slot::No,
        Mnemonic::Add if field == offset(field!(jumps)) => Slot::Jump,
        Mnemonic::Add if field == offset(field!(reads)) || field == offset(field!(writes)) => Slot::Entry,
        _ => Slot::No,
    }
}

fn writes(factory: &mut InstructionInfoFactory, insn: &Instruction, register: Register) -> bool {
    factory.info(insn).used_registers().iter().any(|used| {
        used.register().is_gpr()
            && used.register().full_register() == register
            && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None)
    })
}

/// What R14 has after an instruction that writes it.
fn after(insn: &Instruction, before: Addend, slot: Slot) -> Addend {
    let of_frame = insn.memory_base() == Register::RSP && insn.memory_index() == Register::None;
    match insn.mnemonic() {
        Mnemonic::Mov if of_frame && insn.memory_displacement64() == offset(field!(addend)) => Addend::Yes,
        Mnemonic::Mov if of_frame && is_group(insn) => Addend::Yes,
        Mnemonic::Mov if insn.memory_base() == Register::R12 && slot == Slot::Hit => Addend::Yes,
        // The rest of the address.
        Mnemonic::Add if insn.op0_register() == Register::R14 => before,
        Mnemonic::Lea if insn.memory_base() == Register::R14 => before,
        _ => Addend::No,
    }
}

/// Whether the field of the frame is the addend of a group.
fn is_group(insn: &Instruction) -> bool {
    (0..GROUPS).any(|number| insn.memory_displacement64() == offset(group(number)))
}

fn is_allowed(insn: &Instruction, r14: Addend, slot: Slot) -> bool {
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let reach = insn.memory_displacement64() as i64;
    let bits = matches!(insn.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && insn.op1_kind() == OpKind::Register;
    if bits {
        return false;
    }
    if base == Register::RSP && index == Register::None {
        let end = reach + insn.memory_size().size() as i64;
        return reach >= 0 && end <= size_of::<Frame>() as i64;
    }
    if base == Register::R12 && index == Register::None {
        let compares = insn.mnemonic() == Mnemonic::Cmp;
        return match slot {
            Slot::No => false,
            Slot::Jump => (0..16).contains(&reach),
            Slot::Entry => compares && reach == 0,
            Slot::Hit => reach == 8,
        };
    }
    let addend = base == Register::R14 || index == Register::R14 && insn.memory_index_scale() == 1;
    addend && r14 == Addend::Yes
}
