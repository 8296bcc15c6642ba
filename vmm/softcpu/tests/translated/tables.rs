//! Page tables that change under what was cached of them: a processor that runs on is as one that forgets all
//! its translations before each step.

use iced_x86::code_asm::*;

use crate::guest::may_fault;
use crate::guest::{
    CODE, CODE_AT, DATA, DATA_AT, FREE, Guest, KERNEL, PAGE, STACK, STACK_AT, TABLES, WRITABLE,
};
use crate::run::{Ended, INTERPRETED, MOST, Machine, check, difference, run};

/// Where the tables of the region of `DATA` show as well.
const ALIAS: u64 = DATA + (1 << 30);

fn forgetful(guest: &Guest) -> Ended {
    let mut machine = Machine::new(guest, None);
    while machine.cpu.retired() < MOST && machine.run(machine.cpu.retired() + 1) {
        let state = machine.cpu.state();
        machine.cpu.set_state(&state);
    }
    machine.ended()
}

fn assert_coherent(name: &str, guest: &Guest) {
    check(name, guest);
    let (expected, found) = (forgetful(guest), run(guest, INTERPRETED, MOST, &[]));
    if let Some(text) = difference(&expected, &found) {
        panic!("{name}: forgetful | not: {text}");
    }
}

/// Twelve rounds that look, change an entry, look, and change it back. R8 leads to the entry.
fn rounds(entry: u64, values: [u64; 2], look: &dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Guest {
    let mut guest = Guest::new(0, &|a| {
        let mut top = a.create_label();
        a.mov(r8, KERNEL + entry)?;
        a.mov(r9, values[0])?;
        a.mov(r10, values[1])?;
        a.mov(r13d, 12)?;
        a.set_label(&mut top)?;
        look(a)?;
        a.mov(qword_ptr(r8), r10)?;
        look(a)?;
        a.mov(qword_ptr(r8), r9)?;
        look(a)?;
        a.dec(r13d)?;
        a.jne(top)
    });
    guest.state.gpr[4] = STACK + PAGE + 0x800;
    guest
}

fn look_at_data(a: &mut CodeAssembler) -> Result<(), IcedError> {
    may_fault!(a,
        a.add(rsi, qword_ptr(rbx + 8));
        a.mov(qword_ptr(rbx + 16), rsi);
        a.xor(qword_ptr(rbx + 24), rsi);
        a.lea(rdi, qword_ptr(rbx + 0xffc));
        a.add(rax, qword_ptr(rdi));
    );
    Ok(())
}

fn look_at_stack(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(rsi)?;
    a.add(rsi, qword_ptr(rsp + 16))?;
    a.pop(rdi)?;
    a.add(rsi, rdi)
}

fn look_at_code(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut back = a.create_label();
    a.lea(r12, qword_ptr(back))?;
    a.mov(rdx, CODE + PAGE + 0x100)?;
    a.jmp(rdx)?;
    a.set_label(&mut back)?;
    a.add(rsi, rax)
}

#[test]
fn a_page_moves() {
    for bits in [WRITABLE, WRITABLE | 0x60, 5, 0] {
        let values = [DATA_AT | WRITABLE, (DATA_AT + 2 * PAGE) | bits];
        let mut guest = rounds(0, values, &look_at_data);
        let entry = guest.entry(DATA);
        guest = rounds(entry, values, &look_at_data);
        assert_coherent(&format!("bits {bits:#x}"), &guest);
    }
}

#[test]
fn a_page_of_the_stack_moves() {
    let values = [(STACK_AT + PAGE) | WRITABLE, (DATA_AT + PAGE) | WRITABLE];
    let entry = Guest::new(0, &|_| Ok(())).entry(STACK + PAGE);
    assert_coherent("stack", &rounds(entry, values, &look_at_stack));
}

#[test]
fn a_page_of_code_moves() {
    let values = [(CODE_AT + PAGE) | WRITABLE, FREE | WRITABLE];
    let entry = Guest::new(0, &|_| Ok(())).entry(CODE + PAGE);
    let mut guest = rounds(entry, values, &look_at_code);
    // MOV EAX, imm; JMP R12
    guest.write(CODE_AT + PAGE + 0x100, &[0xb8, 1, 2, 3, 4, 0x41, 0xff, 0xe4]);
    guest.write(FREE + 0x100, &[0xb8, 5, 6, 7, 8, 0x41, 0xff, 0xe4]);
    assert_coherent("code", &guest);
}

/// One table of pages for two regions: both change.
#[test]
fn a_page_of_two_places_moves() {
    let look: &dyn Fn(&mut CodeAssembler) -> Result<(), IcedError> = &|a| {
        look_at_data(a)?;
        a.mov(r11, ALIAS)?;
        a.add(rsi, qword_ptr(r11 + 8))?;
        a.mov(qword_ptr(r11 + 32), rsi)
    };
    let values = [DATA_AT | WRITABLE, (DATA_AT + 2 * PAGE) | WRITABLE];
    let entry = Guest::new(0, &|_| Ok(())).entry(DATA);
    let mut guest = rounds(entry, values, look);
    // Another directory whose entry leads to the same table.
    let table = entry & !(PAGE - 1);
    let directory = guest.entry(ALIAS) & !(PAGE - 1);
    let pages = guest.word(TABLES) & 0xf_f000;
    let aliases = guest.word(pages + (ALIAS >> 30 & 511) * 8) & 0xf_f000;
    assert_ne!(directory, aliases);
    guest.set_word(aliases + (ALIAS >> 21 & 511) * 8, table | WRITABLE);
    assert_coherent("alias", &guest);
}

/// The entry of a first table changes, and of a directory: all below is another.
#[test]
fn tables_move() {
    let mut plain = Guest::new(0, &|_| Ok(()));
    let table = plain.entry(DATA) & !(PAGE - 1);
    let pages = plain.word(TABLES) & 0xf_f000;
    let directory = plain.word(pages) & 0xf_f000;
    let [others, other_directory, other_table] = [1, 2, 3].map(|page| FREE + page * PAGE);
    let lead = [
        (TABLES, pages | 7, others | 7),
        (pages, directory | 7, other_directory | 7),
        (directory + 3 * 8, table | 7, other_table | 7),
    ];
    for (entry, before, after) in lead {
        for bits in [0, 0x20] {
            let mut guest = rounds(entry, [before | bits, after | bits], &|a| {
                look_at_data(a)?;
                look_at_stack(a)?;
                look_at_code(a)
            });
            guest.write(CODE_AT + PAGE + 0x100, &[0xb8, 1, 2, 3, 4, 0x41, 0xff, 0xe4]);
            guest.set_word(others, other_directory | 7);
            let code = guest.word(directory + 2 * 8);
            guest.set_word(other_directory + 2 * 8, code);
            guest.set_word(other_directory + 3 * 8, other_table | 7);
            for page in 0..3 {
                guest.set_word(other_table + page * 8, (DATA_AT + (page + 1) * PAGE) | WRITABLE);
            }
            assert_coherent(&format!("{entry:#x}, bits {bits:#x}"), &guest);
        }
    }
}

/// The global flush of a guest, and what it then finds.
#[test]
fn global_pages_are_flushed() {
    let values = [DATA_AT | WRITABLE, (DATA_AT + 2 * PAGE) | WRITABLE];
    let entry = Guest::new(0, &|_| Ok(())).entry(DATA);
    let guest = rounds(entry, values, &|a| {
        a.mov(rdx, cr4)?;
        a.xor(edx, 0x80)?;
        a.mov(cr4, rdx)?;
        look_at_data(a)
    });
    assert_coherent("PGE", &guest);
}
