//! Guests that show a mistake of the translator, each by what they do; their number varies where and how
//! often.

use iced_x86::code_asm::*;
use softcpu::Mistake;

use crate::guest::{AC, CODE, CODE_AT, DATA, Guest, PAGE, STACK, may_fault};

/// Something before that moves and changes everything behind.
fn vary(a: &mut CodeAssembler, number: u32) -> Result<(), IcedError> {
    for _ in 0..number {
        a.inc(rbp)?;
    }
    a.imul_3(rax, rax, number as i32 * 2 + 3)?;
    a.nops_with_size(number as usize)
}

/// Code of another page that the guest rewrites after some rounds.
fn rewritten(number: u32) -> Guest {
    let target = CODE + PAGE + 0x100 + u64::from(number) * 8;
    let mut guest = Guest::new(if number.is_multiple_of(2) { 3 } else { 0 }, &|a| {
        let (mut top, mut back) = (a.create_label(), a.create_label());
        vary(a, number)?;
        a.mov(ecx, 12)?;
        a.lea(r12, qword_ptr(back))?;
        a.mov(r8, target + 1)?;
        a.set_label(&mut top)?;
        a.jmp(target)?;
        a.set_label(&mut back)?;
        a.add(rdi, rsi)?;
        let mut not_yet = a.create_label();
        a.cmp(ecx, 3 + number as i32 % 4)?;
        a.jne(not_yet)?;
        a.mov(dword_ptr(r8), eax)?;
        a.set_label(&mut not_yet)?;
        a.dec(ecx)?;
        a.jne(top)
    });
    // MOV ESI, imm; JMP R12
    guest.write(CODE_AT + target - CODE, &[0xbe, 1, 2, 3, 4, 0x41, 0xff, 0xe4]);
    guest
}

/// Code that is pushed, executed and pushed again.
fn pushed_code(number: u32) -> Guest {
    Guest::new(if number.is_multiple_of(2) { 0 } else { 3 }, &|a| {
        let (mut top, mut back) = (a.create_label(), a.create_label());
        vary(a, number)?;
        a.mov(ecx, 10 + number)?;
        a.lea(rbp, qword_ptr(back))?;
        a.mov(rdx, 0x9090_e5ff_c6ff_4890_u64)?;
        a.mov(r12, 0x9090_e5ff_c7ff_4890_u64)?;
        a.set_label(&mut top)?;
        a.push(rdx)?;
        a.mov(rax, rsp)?;
        // If code was dropped by that, these have the page at hand again.
        for _ in 0..3 {
            let mut block = a.create_label();
            a.jmp(block)?;
            a.set_label(&mut block)?;
            a.push(0)?;
            a.pop(rsi)?;
        }
        a.jmp(rax)?;
        a.set_label(&mut back)?;
        a.add(rsp, 8)?;
        a.xchg(rdx, r12)?;
        a.dec(ecx)?;
        a.jne(top)
    })
}

fn compared(number: u32) -> Guest {
    Guest::new(3, &|a| {
        let mut top = a.create_label();
        vary(a, number)?;
        a.mov(ecx, 4)?;
        a.set_label(&mut top)?;
        a.sub(rax, rdx)?;
        a.mov(rsi, qword_ptr(rbx + number * 8))?;
        a.cmp(rax, rsi)?;
        a.pushfq()?;
        a.pop(r9)?;
        a.add(rdi, r9)?;
        a.add(rdx, rsi)?;
        a.dec(ecx)?;
        a.jne(top)
    })
}

/// Flags that only the next block looks at.
fn seen_behind(number: u32) -> Guest {
    Guest::new(if number.is_multiple_of(2) { 0 } else { 3 }, &|a| {
        let (mut top, mut behind) = (a.create_label(), a.create_label());
        vary(a, number)?;
        a.mov(ecx, 4)?;
        a.set_label(&mut top)?;
        a.add(rax, rdx)?;
        a.imul_3(rdx, rax, 0x343)?;
        a.add(rsi, rax)?;
        a.jmp(behind)?;
        a.set_label(&mut behind)?;
        a.pushfq()?;
        a.pop(r9)?;
        a.add(rdi, r9)?;
        a.dec(ecx)?;
        a.jne(top)
    })
}

/// Branches out of the middle of blocks.
fn branches(number: u32) -> Guest {
    Guest::new(if number.is_multiple_of(2) { 3 } else { 0 }, &|a| {
        let (mut top, mut out) = (a.create_label(), a.create_label());
        vary(a, number)?;
        a.mov(ecx, 20 + number)?;
        a.set_label(&mut top)?;
        a.add(rax, rcx)?;
        a.cmp(ecx, 3)?;
        a.je(out)?;
        a.inc(rsi)?;
        a.dec(ecx)?;
        a.jmp(top)?;
        a.nops_with_size(0x1000)?;
        a.set_label(&mut out)?;
        a.add(rdi, rax)
    })
}

fn flushed(number: u32) -> Guest {
    Guest::new(if number.is_multiple_of(2) { 3 } else { 0 }, &|a| {
        vary(a, number)?;
        may_fault!(a,
            a.clflush(byte_ptr(rbx + number * 64));
            a.clflush(byte_ptr(rbx + 0x4000 + number * 64));
        );
        a.add(rdi, rax)
    })
}

/// A load that faults before a push to a page that nothing has touched.
fn untouched_stack(number: u32) -> Guest {
    let mut guest = Guest::new(3, &|a| {
        let mut end = a.create_label();
        vary(a, number)?;
        a.lea(r15, qword_ptr(end))?;
        let mut block = a.create_label();
        a.jmp(block)?;
        a.set_label(&mut block)?;
        a.add(rax, qword_ptr(rbx + 0x4000))?;
        a.push(rax)?;
        a.set_label(&mut end)?;
        a.inc(rdi)
    });
    guest.state.gpr[4] = STACK + PAGE + 0x100 + u64::from(number) * 16;
    guest
}

fn misaligned_stack(number: u32) -> Guest {
    let mut guest = Guest::new(3, &|a| {
        vary(a, number)?;
        misaligned_pushes(a)
    });
    guest.state.cr0 |= 1 << 18;
    guest
}

/// Calls to where no RIP can be.
fn calls_to_nowhere(number: u32) -> Guest {
    Guest::new(3, &|a| {
        vary(a, number)?;
        let mut warm = a.create_label();
        a.push(rax)?;
        a.pop(rsi)?;
        a.jmp(warm)?;
        a.set_label(&mut warm)?;
        a.mov(rdx, (1u64 << 47) + u64::from(number))?;
        may_fault!(a, a.call(rdx););
        a.add(rdi, DATA as i32)
    })
}

/// The guests of a mistake, by number.
pub fn guests(mistake: Mistake) -> fn(u32) -> Guest {
    match mistake {
        Mistake::StaleEdge => rewritten,
        Mistake::StaleStackPage => pushed_code,
        Mistake::LostFlag => compared,
        Mistake::LostEdgeFlag => seen_behind,
        Mistake::MiscountedEdge => branches,
        Mistake::LostClflush => flushed,
        Mistake::WalkingCheck => untouched_stack,
        Mistake::StackKeptOverAc => misaligned_stack,
        Mistake::EarlyPush => calls_to_nowhere,
    }
}

/// Rounds of pushes to a stack that is not aligned, AC set in every other.
pub fn misaligned_pushes(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut top, mut behind) = (a.create_label(), a.create_label());
    a.mov(ecx, 16)?;
    a.mov(r14, rsp)?;
    a.set_label(&mut top)?;
    a.pushfq()?;
    a.xor(qword_ptr(rsp), AC as i32)?;
    a.popfq()?;
    a.lea(r15, qword_ptr(behind))?;
    a.lea(rsp, qword_ptr(r14 - 12))?;
    let mut apart = a.create_label();
    a.jmp(apart)?;
    a.set_label(&mut apart)?;
    a.push(rcx)?;
    a.pop(rdx)?;
    a.add(rsi, rdx)?;
    a.set_label(&mut behind)?;
    a.mov(rsp, r14)?;
    a.dec(ecx)?;
    a.jne(top)
}
