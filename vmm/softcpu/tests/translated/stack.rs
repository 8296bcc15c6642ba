//! The stack wherever RSP can lead, and whatever its pages are.

use iced_x86::code_asm::*;

use crate::guest::{CODE, CODE_AT, FREE, Guest, KERNEL, PAGE, STACK, STACK_AT, WRITABLE, may_fault};
use crate::run::check;

/// What uses the stack, in blocks that check it once.
fn stack_work(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut top, mut end, mut function) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(r14, rsp)?;
    a.mov(ecx, 3)?;
    a.set_label(&mut top)?;
    for form in 0..8 {
        let mut behind = a.create_label();
        a.lea(r15, qword_ptr(behind))?;
        match form {
            0 => {
                a.push(rax)?;
                a.push(rbx)?;
                a.pop(rsi)?;
                a.pop(rdi)?;
            }
            1 => a.call(function)?,
            2 => {
                a.mov(rax, qword_ptr(rsp + 8))?;
                a.add(qword_ptr(rsp - 8), rax)?;
                a.mov(dword_ptr(rsp - 4), 7)?;
            }
            3 => {
                a.sub(rsp, 0x1800)?;
                a.mov(qword_ptr(rsp + 8), rax)?;
                a.mov(qword_ptr(rsp + 0x17f8), rax)?;
                a.add(rsp, 0x1800)?;
            }
            4 => {
                a.push(rsp)?;
                a.pop(rdx)?;
                a.push(qword_ptr(rsp + 8))?;
                a.pop(qword_ptr(rsp + 8))?;
            }
            5 => {
                a.pushfq()?;
                a.pop(r8)?;
            }
            6 => {
                a.pop(rsp)?;
                a.nop()?;
            }
            _ => {
                a.inc(rax)?;
                a.and(rsp, -16)?;
                a.push(rax)?;
                a.movups(xmmword_ptr(rsp - 24), xmm1)?;
            }
        }
        a.set_label(&mut behind)?;
        a.add(rbp, rsp)?;
        a.mov(rsp, r14)?;
    }
    a.dec(ecx)?;
    a.jne(top)?;
    a.jmp(end)?;
    a.set_label(&mut function)?;
    a.add(rax, qword_ptr(rsp))?;
    a.ret()?;
    a.set_label(&mut end)?;
    a.nop()
}

#[test]
fn rsp_leads_anywhere() {
    let ends = [0, 1 << 47, 1 << 63, 0u64.wrapping_sub(1 << 47), 1 << 32, KERNEL + FREE + 2 * PAGE];
    let pages = [STACK, STACK + PAGE, STACK + 2 * PAGE];
    for end in ends.into_iter().chain(pages) {
        for by in [-16i64, -9, -8, -7, -4, -1, 0, 1, 4, 8, 15] {
            for cpl in [0, 3] {
                let mut guest = Guest::new(cpl, &stack_work);
                guest.state.gpr[4] = end.wrapping_add_signed(by);
                check(&format!("RSP {:#x}, CPL {cpl}", guest.state.gpr[4]), &guest);
            }
        }
    }
}

/// Frames of more than a page, of which the guest touches both ends, or one.
#[test]
fn frames_are_longer_than_pages() {
    for bytes in [0x1000, 0x1008, 0xff8, 0x1ff0, 0x10000] {
        for cpl in [0, 3] {
            let mut guest = Guest::new(cpl, &|a| {
                let (mut top, mut end) = (a.create_label(), a.create_label());
                a.mov(r14, rsp)?;
                a.mov(ecx, 3)?;
                a.set_label(&mut top)?;
                a.lea(r15, qword_ptr(end))?;
                a.push(rax)?;
                a.sub(rsp, bytes)?;
                a.mov(qword_ptr(rsp), rcx)?;
                a.mov(qword_ptr(rsp + bytes - 8), rax)?;
                a.push(rbx)?;
                a.pop(rdx)?;
                a.add(rsp, bytes)?;
                a.pop(rsi)?;
                a.set_label(&mut end)?;
                a.add(rax, rsp)?;
                a.mov(rsp, r14)?;
                a.dec(ecx)?;
                a.jne(top)
            });
            guest.state.gpr[4] = STACK + 2 * PAGE - 8;
            check(&format!("frames of {bytes:#x}, CPL {cpl}"), &guest);
        }
    }
}

/// Pushes change code that was executed, and code that is next.
#[test]
fn the_stack_is_code() {
    for cpl in [0, 1, 3] {
        let guest = Guest::new(cpl, &|a| {
            let (mut top, mut changed, mut behind) = (a.create_label(), a.create_label(), a.create_label());
            a.mov(ecx, 6)?;
            a.mov(r14, rsp)?;
            // MOV ESI, imm; three NOPs: the immediate is what changes.
            a.mov(rdx, 0x9090_9000_0000_01be_u64)?;
            a.set_label(&mut top)?;
            a.lea(rsp, qword_ptr(behind))?;
            a.add(rdx, 0x100)?;
            a.push(rdx)?;
            a.set_label(&mut changed)?;
            a.mov(esi, 0x1122_3344)?;
            a.nop()?;
            a.nop()?;
            a.nop()?;
            a.set_label(&mut behind)?;
            a.add(rdi, rsi)?;
            a.mov(rsp, r14)?;
            a.push(rdi)?;
            a.dec(ecx)?;
            a.jne(top)
        });
        let ended = check(&format!("CPL {cpl}"), &guest);
        assert_ne!(ended.state.gpr[6], 0x1122_3344);
    }
}

/// The stack's page, at hand from pushes, is decoded as code by a jump that uses no stack; then pushed to.
#[test]
fn the_stack_becomes_code() {
    for cpl in [0, 3] {
        let guest = Guest::new(cpl, &|a| {
            let (mut top, mut back) = (a.create_label(), a.create_label());
            a.mov(ecx, 8)?;
            a.lea(rbp, qword_ptr(back))?;
            // INC RSI; JMP RBP; and other numbers behind.
            a.mov(rdx, 0x9090_e5ff_c6ff_4890_u64)?;
            a.mov(r12, 0x9090_e5ff_c7ff_4890_u64)?;
            a.set_label(&mut top)?;
            a.push(rdx)?;
            a.mov(rax, rsp)?;
            a.jmp(rax)?;
            a.set_label(&mut back)?;
            a.add(rsp, 8)?;
            a.xchg(rdx, r12)?;
            a.dec(ecx)?;
            a.jne(top)
        });
        let ended = check(&format!("CPL {cpl}"), &guest);
        let start = guest.state.gpr;
        assert_eq!(ended.state.gpr[6], start[6].wrapping_add(4), "CPL {cpl}");
        assert_eq!(ended.state.gpr[7], start[7].wrapping_add(4), "CPL {cpl}");
    }
}

/// The stack's page, at hand from pushes, becomes a page table by a load elsewhere; then an entry is pushed.
#[test]
fn the_stack_becomes_a_table() {
    const WINDOW: u64 = 0x7000_0000;
    for cpl in [0, 3] {
        for flush in [false, true] {
            let mut guest = Guest::new(cpl, &|a| {
                let (mut top, mut next) = (a.create_label(), a.create_label());
                a.mov(ecx, 8)?;
                a.mov(r8, rbx)?;
                a.mov(r9, WINDOW + 2 * PAGE)?;
                a.mov(rdx, FREE | WRITABLE)?;
                a.mov(r12, (FREE + PAGE) | WRITABLE)?;
                a.set_label(&mut top)?;
                let mut first = a.create_label();
                a.mov(rsp, STACK + PAGE + 0x18)?;
                a.jmp(first)?;
                a.set_label(&mut first)?;
                // The entry, and that before it.
                a.push(rdx)?;
                a.push(rdx)?;
                // If that was to a table in use, it is one no longer. Rounds before have linked what follows.
                a.cmp(ecx, 3)?;
                a.cmovbe(r8, r9)?;
                for _ in 0..4 {
                    let mut block = a.create_label();
                    a.jmp(block)?;
                    a.set_label(&mut block)?;
                    a.push(0)?;
                    a.pop(rsi)?;
                }
                a.jmp(next)?;
                a.set_label(&mut next)?;
                a.mov(rax, qword_ptr(r8))?;
                a.xchg(rdx, r12)?;
                let mut other = a.create_label();
                a.jmp(other)?;
                a.set_label(&mut other)?;
                a.mov(rsp, STACK + PAGE + 0x18)?;
                let mut pushes = a.create_label();
                a.jmp(pushes)?;
                a.set_label(&mut pushes)?;
                a.push(rdx)?;
                a.mov(rsi, qword_ptr(r8))?;
                a.add(rdi, rsi)?;
                a.add(rdi, rax)?;
                if flush && cpl == 0 {
                    a.mov(rax, cr3)?;
                    a.mov(cr3, rax)?;
                }
                a.dec(ecx)?;
                a.jne(top)
            });
            // The window's last table is the second page of the stack.
            let entry = guest.entry(WINDOW);
            let table = entry & !0xfff;
            let parent = (0x8000..CODE_AT).step_by(8).find(|at| guest.word(*at) == table | 7);
            guest.set_word(parent.expect("the table's entry"), (STACK_AT + PAGE) | 7);
            guest.ram[(STACK_AT + PAGE) as usize..][..PAGE as usize].fill(0);
            guest.set_word(FREE, 0x1111);
            guest.set_word(FREE + PAGE, 0x2222);
            check(&format!("CPL {cpl}, flush {flush}"), &guest);
        }
    }
}

/// One page is stack, code and page table.
#[test]
fn the_stack_is_code_and_table() {
    for cpl in [0, 3] {
        let mut guest = Guest::new(cpl, &|a| {
            let mut top = a.create_label();
            a.mov(ecx, 4)?;
            a.set_label(&mut top)?;
            a.mov(rsp, CODE + 0x2ff8)?;
            a.push(rcx)?;
            a.push(0)?;
            a.mov(rax, qword_ptr(rbx))?;
            a.mov(rdx, CODE + 0x2000 + 0x100)?;
            a.call(rdx)?;
            a.dec(ecx)?;
            a.jne(top)
        });
        // The third page of the code is its own last table; a function lies where no entry is used.
        let entry = guest.entry(CODE);
        let table = entry & !0xfff;
        guest.map(CODE + 2 * PAGE, table, WRITABLE);
        // ADD RSI, [RSP]; PUSH RSI; POP RDI; RET
        guest.write(table + 0x100, &[0x48, 0x03, 0x34, 0x24, 0x56, 0x5f, 0xc3]);
        check(&format!("CPL {cpl}"), &guest);
    }
}

#[test]
fn faults_in_the_middle_of_a_group() {
    for cpl in [0, 3] {
        for at in [STACK + 8, STACK + PAGE + 8, STACK + PAGE] {
            let mut guest = Guest::new(cpl, &|a| {
                let mut top = a.create_label();
                a.mov(ecx, 3)?;
                a.mov(r14, rsp)?;
                a.set_label(&mut top)?;
                may_fault!(a,
                    a.push(rax);
                    a.mov(rdx, qword_ptr(rbx + 0x8000));
                    a.push(rdx);
                    a.div(rsi);
                );
                a.xor(esi, esi)?;
                a.mov(rsp, r14)?;
                a.dec(ecx)?;
                a.jne(top)
            });
            guest.state.gpr[4] = at;
            let entry = guest.entry(STACK);
            guest.set_word(entry, 0);
            check(&format!("CPL {cpl}, RSP {at:#x}"), &guest);
        }
    }
}
