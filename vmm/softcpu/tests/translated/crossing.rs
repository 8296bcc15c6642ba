//! Instructions that cross a page's end, between translated blocks.

use iced_x86::code_asm::*;

use crate::guest::{CODE, DATA, Guest, PAGE, assemble};
use crate::run::{check, check_at_every_count};

const KINDS: usize = 8;
const UNMASKING: usize = 7;

fn start(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(r13d, 6)?;
    a.mov(rbx, DATA)?;
    a.lea(r14, qword_ptr(rbx + 0x200))?;
    a.mov(dword_ptr(rbx + 0x40), 0x1f80)
}

/// What is to be MXCSR has all exceptions masked until the code was translated, and then none.
fn mask_at_first(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(eax, 0x1f80)?;
    a.xor(edx, edx)?;
    a.cmp(r13d, 4)?;
    a.cmovb(eax, edx)?;
    a.mov(dword_ptr(rbx + 0x40), eax)
}

/// A loop with an instruction of a kind that begins `before` bytes before the end of the first page.
fn around(a: &mut CodeAssembler, kind: usize, before: usize) -> Result<(), IcedError> {
    /// Bytes of the jump below, and of the instructions in the loop that come before.
    const JUMP: usize = 5;
    const LOOP: usize = 22;
    let (mut top, mut behind) = (a.create_label(), a.create_label());
    let length = assemble(CODE, &start).len() + JUMP;
    let fill = PAGE as usize - before - length - LOOP;
    start(a)?;
    a.db(&[0xe9])?;
    a.dd(&[fill as u32])?;
    a.db(&vec![0x90; fill])?;
    a.set_label(&mut top)?;
    a.lea(r15, qword_ptr(behind))?;
    a.add(eax, 0x1234_5678)?;
    a.lea(rsi, qword_ptr(rbx + 8))?;
    a.mov(ecx, 5)?;
    a.nop()?;
    match kind {
        0 => a.adc(dword_ptr(rbx + 0x120), 0x1122_3344)?,
        1 => a.db(&[0xe8, 0, 0, 0, 0])?,
        // Five times.
        2 => a.db(&[0x66, 0xf3, 0x48, 0xa4])?,
        3 => a.cmovb(rdx, qword_ptr(rbx + rcx * 8 + 0x120))?,
        // There is no page.
        4 => a.mov(byte_ptr(r14 + 0x1234_5678), al)?,
        5 => a.jb(behind)?,
        6 => a.bts(qword_ptr(rbx + 0x120), rax)?,
        _ => a.ldmxcsr(dword_ptr(rbx + 0x40))?,
    }
    a.divps(xmm0, xmm1)?;
    a.sbb(rdx, rax)?;
    a.set_label(&mut behind)?;
    a.adc(rdi, qword_ptr(rbx))?;
    if kind == UNMASKING {
        mask_at_first(a)?;
    }
    a.dec(r13d)?;
    a.jne(top)
}

#[test]
fn instructions_cross_a_pages_end() {
    for kind in 0..KINDS {
        for before in 0..10 {
            let guest = Guest::new(3, &|a| around(a, kind, before));
            check(&format!("kind {kind}, {before} bytes before"), &guest);
        }
    }
}

#[test]
fn crossing_instructions_stop_at_any_count() {
    for kind in 0..KINDS {
        check_at_every_count(&format!("kind {kind}"), &Guest::new(3, &|a| around(a, kind, 2)), &[]);
    }
}

/// The last instruction of a block that unmasks exceptions is followed by one that raises one.
#[test]
fn what_a_blocks_last_instruction_unmasks_is_raised() {
    for count in 0..64 {
        let guest = Guest::new(3, &|a| {
            let (mut top, mut behind) = (a.create_label(), a.create_label());
            start(a)?;
            a.set_label(&mut top)?;
            a.lea(r15, qword_ptr(behind))?;
            for _ in 0..count {
                a.inc(rax)?;
            }
            a.ldmxcsr(dword_ptr(rbx + 0x40))?;
            a.divps(xmm0, xmm1)?;
            a.mulps(xmm2, xmm3)?;
            a.set_label(&mut behind)?;
            mask_at_first(a)?;
            a.dec(r13d)?;
            a.jne(top)
        });
        check(&format!("{count} instructions before"), &guest);
    }
}
