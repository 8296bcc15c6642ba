//! Code that is the same for two addresses, privileges or address spaces, and is not.

use iced_x86::code_asm::*;

use crate::guest::{AC, CODE, CODE_AT, DATA, FREE, Guest, IRQ, KERNEL, PAGE, TABLES, WRITABLE, may_fault};
use crate::memory::taken;
use crate::mistakes::misaligned_pushes;
use crate::run::{Event, INTERPRETED, MOST, Machine, check, check_at_every_count, difference, run};

const AM: u64 = 1 << 18;
const SMAP: u64 = 1 << 21;
const TSD: u64 = 1 << 2;

/// Instructions that do one thing or another by CPL, IOPL, TSD and AC.
fn sensitive(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut top = a.create_label();
    a.mov(ecx, 3)?;
    a.mov(r14, rsp)?;
    a.set_label(&mut top)?;
    may_fault!(a,
        a.cli();
        a.sti();
        a.rdtsc();
        a.pushfq();
        a.mov(qword_ptr(rbx + 3), rax);
        a.add(rsi, qword_ptr(rbx + 9));
        a.xor(qword_ptr(rsp), 0x4_0000);
        a.popfq();
        a.push(rax);
        a.mov(qword_ptr(rsp + 1), rdx);
        a.clac();
        a.mov(dword_ptr(rbx + 0x11), edx);
        a.stac();
        a.hlt();
        a.pushfq();
    );
    a.mov(rsp, r14)?;
    a.dec(ecx)?;
    a.jne(top)
}

/// On one processor, whose caches stay warm: every privilege at two addresses of one page.
#[test]
fn one_page_at_two_addresses() {
    const OTHER: u64 = CODE + (1 << 30);
    let mut guest = Guest::new(3, &sensitive);
    for page in 0..2 {
        guest.map(OTHER + page * PAGE, CODE_AT + page * PAGE, WRITABLE);
    }
    let mut reference = Machine::new(&guest, None);
    let mut translated = Machine::new(&guest, Some(1));
    for round in 0..2 {
        for case in 0..96u64 {
            let cpl = [0, 1, 3][case as usize % 3];
            guest.set_privilege(cpl);
            let bit = |number: u64, value: u64| if (case / 3) >> number & 1 != 0 { value } else { 0 };
            let mut state = guest.state.clone();
            state.rip = if round == 0 { CODE } else { OTHER };
            state.rip = if bit(0, 1) != 0 { OTHER } else { state.rip };
            state.rflags |= bit(1, 3 << 12) | bit(2, AC);
            state.cr4 |= bit(3, TSD) | bit(4, SMAP);
            state.cr0 |= AM;
            let place = format!("round {round}, case {case}, CPL {cpl}, RIP {:#x}", state.rip);
            for machine in [&mut reference, &mut translated] {
                machine.exits.clear();
                machine.cpu.set_state(&state);
                machine.run(machine.cpu.retired() + 400);
            }
            let text = difference(&reference.ended(), &translated.ended());
            assert!(text.is_none(), "{place}: {}", text.unwrap_or_default());
        }
    }
}

#[test]
fn sensitive_instructions_at_every_count() {
    for (cpl, iopl, more) in [(3, 0, 0), (3, 3, TSD), (1, 1, SMAP), (1, 0, TSD)] {
        let mut guest = Guest::new(cpl, &sensitive);
        guest.state.rflags |= iopl << 12;
        guest.state.cr4 |= more;
        guest.state.cr0 |= AM;
        check_at_every_count(&format!("CPL {cpl}, IOPL {iopl}, {more:x}"), &guest, &[Event::Interrupt(IRQ)]);
    }
}

/// User code sets and clears AC with a stack that is not aligned.
#[test]
fn the_stack_is_aligned_while_ac_asks_for_it() {
    let mut guest = Guest::new(3, &misaligned_pushes);
    guest.state.cr0 |= AM;
    let ended = check("AC", &guest);
    assert!(taken(&ended, 17) >= 8);
}

/// Two address spaces with equal upper halves: A bits come when each is walked, and not before; an entry
/// that one of them gets is not the other's.
#[test]
fn equal_upper_halves() {
    const OTHER: u64 = FREE + PAGE;
    for shared in [false, true] {
        let mut guest = Guest::new(0, &|a| {
            let (mut top, mut kernel) = (a.create_label(), a.create_label());
            a.mov(ecx, 8)?;
            a.mov(rbp, TABLES)?;
            a.mov(rdi, OTHER)?;
            a.mov(r8, KERNEL + DATA - DATA + FREE)?;
            a.mov(r9, KERNEL + OTHER)?;
            a.set_label(&mut top)?;
            a.mov(cr3, rbp)?;
            a.xchg(rbp, rdi)?;
            // Of the upper half.
            a.add(rax, qword_ptr(r8))?;
            a.push(rax)?;
            a.mov(rdx, KERNEL + CODE_AT + 0x1800)?;
            a.lea(r12, qword_ptr(kernel))?;
            a.jmp(rdx)?;
            a.set_label(&mut kernel)?;
            a.pop(rsi)?;
            a.add(rax, rsi)?;
            if shared {
                // An entry that is not present is written, in one of them, and taken away.
                a.xor(qword_ptr(r9 + 0x900), 0x10)?;
            }
            a.mov(rdx, qword_ptr(r9))?;
            a.add(rax, qword_ptr(r9 + 0x800))?;
            a.dec(ecx)?;
            a.jne(top)
        });
        let root = guest.ram[TABLES as usize..][..PAGE as usize].to_vec();
        guest.write(OTHER, &root);
        // ADD RAX, RCX; JMP R12
        guest.write(CODE_AT + 0x1800, &[0x48, 0x01, 0xc8, 0x41, 0xff, 0xe4]);
        let events = if shared { &[][..] } else { &[Event::Interrupt(IRQ)] };
        check_at_every_count(&format!("shared {shared}"), &guest, events);
        let ended = run(&guest, INTERPRETED, MOST, &[]);
        assert_ne!(ended.ram[OTHER as usize + 0x800] & 0x20, 0, "the entry was walked");
    }
}
