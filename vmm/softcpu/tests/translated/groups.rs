//! Accesses that one check covers, registers that have those of others, flags that are not stored.

use iced_x86::code_asm::*;

use crate::flags::PRODUCERS;
use crate::guest::{CODE, CODE_AT, DATA, DATA_AT, FREE, Guest, IRQ, PAGE, READ_ONLY, WRITABLE, may_fault};
use crate::memory::taken;
use crate::run::{Event, check, check_at_every_count};

/// What a second page can be: the data that follow, the same but read-only, missing, page of the code itself.
const SECOND: [(&str, Option<(u64, u64)>); 4] = [
    ("writable", Some((FREE, WRITABLE))),
    ("read-only", Some((FREE, READ_ONLY))),
    ("missing", None),
    ("code", Some((CODE_AT + PAGE, WRITABLE))),
];

/// A guest whose data go on with such a page.
fn with_second(guest: &mut Guest, second: Option<(u64, u64)>) {
    match second {
        Some((physical, bits)) => guest.map(DATA + PAGE, physical, bits),
        None => guest.map(DATA + PAGE, 0, 0),
    }
}

#[test]
fn groups_at_the_end_of_a_page() {
    for (name, second) in SECOND {
        for offset in (0..0x60).step_by(4) {
            let mut guest = Guest::new(3, &|a| {
                let mut top = a.create_label();
                // The second page of code is code.
                a.call(CODE + PAGE + 0x800)?;
                a.mov(ecx, 3)?;
                a.mov(rbx, DATA + PAGE - 0x50 + offset)?;
                a.set_label(&mut top)?;
                may_fault!(a,
                    a.mov(rax, qword_ptr(rbx));
                    a.add(qword_ptr(rbx + 8), rax);
                    a.mov(r9d, dword_ptr(rbx + 0x10));
                    a.cmp(byte_ptr(rbx + 0x1f), 3);
                    a.adc(r10, qword_ptr(rbx - 8));
                    a.inc(word_ptr(rbx + 0x12));
                    a.push(qword_ptr(rbx + 0x14));
                    a.pop(rsi);
                    a.mov(rdi, qword_ptr(rbx + rcx * 8 - 0x20));
                    a.mov(qword_ptr(rbx + rcx * 8 + 0x18), rdi);
                    a.xchg(qword_ptr(rbx + 4), r9);
                    a.movups(xmm1, xmmword_ptr(rbx + 2));
                    a.bsf(r11, qword_ptr(rbx + 0x18));
                    a.mov(rbx, qword_ptr(rbx + 0x20));
                );
                a.mov(rbx, DATA + PAGE - 0x50 + offset)?;
                a.dec(ecx)?;
                a.jne(top)
            });
            guest.write(CODE_AT + PAGE + 0x800, &[0xc3]);
            with_second(&mut guest, second);
            guest.write(DATA_AT + PAGE - 0x40, &(0..0x40).collect::<Vec<u8>>());
            let ended = check(&format!("{name} page, offset {offset:#x}"), &guest);
            if second.is_none() && offset >= 0x50 {
                assert!(taken(&ended, 14) >= 3, "{name} page, offset {offset:#x}");
            }
        }
    }
}

/// Accesses whose address looks alike, but whose registers changed in between: to pages that lie elsewhere.
#[test]
fn groups_end_where_their_registers_change() {
    let movers: &[Writer] = &[
        |a| a.add(rbx, PAGE as i32),
        |a| a.lea(rbx, qword_ptr(rbx + PAGE as i32)),
        |a| a.xchg(rbx, rdx),
        |a| a.mov(ebx, edx),
        |a| a.mov(bx, dx),
        |a| a.cmovne(rbx, rdx),
        |a| {
            a.push(rdx)?;
            a.pop(rbx)
        },
        |a| a.mov(rbx, qword_ptr(rbx + 0x10)),
        |a| a.xadd(rbx, rsi),
        |a| a.add(rsi, PAGE as i32),
        |a| {
            a.mov(rax, rsi)?;
            a.shl(rax, 32)?;
            a.shrd(rsi, rbx, 9)?;
            a.mov(esi, PAGE as i32)
        },
        |a| a.bswap(rsi),
        |a| a.movzx(esi, word_ptr(rbx + 0x18)),
    ];
    for (number, mover) in movers.iter().enumerate() {
        let mut guest = Guest::new(3, &|a| {
            let mut top = a.create_label();
            a.mov(edi, 4)?;
            a.set_label(&mut top)?;
            a.mov(rbx, DATA)?;
            a.mov(rdx, DATA + PAGE)?;
            a.mov(esi, PAGE as i32)?;
            a.test(rbx, rbx)?;
            may_fault!(a,
                a.mov(r8, qword_ptr(rbx + 8));
                a.add(r9, qword_ptr(rbx + rsi - 0x1000 + 0x20));
                mover(a);
                a.add(r8, qword_ptr(rbx + 0x28));
                a.mov(qword_ptr(rbx + rsi - 0x1000 + 0x30), r8);
                a.add(qword_ptr(rbx + 0x38), r9);
            );
            a.dec(edi)?;
            a.jne(top)
        });
        guest.map(DATA + PAGE, FREE + PAGE, WRITABLE);
        guest.map(DATA + 2 * PAGE, FREE, WRITABLE);
        guest.set_word(DATA_AT + 0x10, DATA + PAGE);
        guest.set_word(DATA_AT + 0x18, 0x2000);
        check(&format!("mover {number}"), &guest);
    }
}

/// A loop over two pages, the second of each kind, with registers that the host has none for.
#[test]
fn loops_with_the_registers_of_others() {
    for (number, (name, second)) in SECOND.into_iter().enumerate() {
        let mut guest = Guest::new(3, &|a| {
            let mut top = a.create_label();
            a.mov(r8, DATA + PAGE - 0x28)?;
            a.mov(r9d, 7)?;
            a.mov(r11, 0x1234_5678_9abc_def0_u64)?;
            a.set_label(&mut top)?;
            may_fault!(a,
                a.add(r10, r9);
                a.mov(rdx, qword_ptr(r8));
                a.rol(r11, 9);
                a.xor(r11, rdx);
                a.mov(dword_ptr(r8 + 4), r11d);
                a.sub(r10d, r11d);
                a.sbb(r9b, 1);
                a.imul_2(r10, r11);
                a.add(dword_ptr(r8 + 8), r10d);
            );
            a.add(r8, 8)?;
            a.add(ecx, 1)?;
            a.cmp(ecx, 9)?;
            a.jb(top)
        });
        guest.state.gpr[1] = 0;
        with_second(&mut guest, second);
        check_at_every_count(name, &guest, &[[Event::Interrupt(IRQ), Event::Kick][number % 2]]);
    }
}

type Writer = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// What changes operands or results of a producer.
const WRITERS: &[Writer] = &[
    |a| a.mov(eax, 5),
    |a| a.mov(al, 1),
    |a| a.mov(dh, ah),
    |a| a.xchg(rax, rdx),
    |a| a.xchg(qword_ptr(rbx + 0x30), r9),
    |a| a.lea(rdx, qword_ptr(rax + 1)),
    |a| {
        a.push(rbx)?;
        a.pop(rdx)
    },
    |a| a.cqo(),
    |a| a.cdqe(),
    |a| {
        a.mov(r8, r9)?;
        a.mov(r10d, 1)?;
        a.mov(r11w, ax)
    },
    |a| a.not(rdx),
    |a| a.bswap(rax),
    |a| a.cmovb(rax, rbx),
    |a| a.seto(al),
    |a| a.inc(rax),
    |a| a.rol(rdx, 1),
    |a| a.shl(eax, cl),
    |a| a.bts(rax, 3),
    |a| a.movmskps(edx, xmm1),
    |a| a.movsx(rdx, ax),
];

/// A fault shows the flags that there were before it.
#[test]
fn flags_outlive_what_they_came_from() {
    for (name, producer) in PRODUCERS {
        let guest = Guest::new(3, &|a| {
            let mut top = a.create_label();
            a.mov(esi, 2)?;
            a.set_label(&mut top)?;
            for writer in WRITERS {
                a.mov(rax, 0x8000_0000_7fff_ff80_u64)?;
                a.mov(rdx, 0x7fff_ffff_8000_0081_u64)?;
                a.mov(ecx, 3)?;
                producer(a)?;
                may_fault!(a, a.mov(rdi, qword_ptr(0x10)););
                writer(a)?;
                may_fault!(a, a.mov(rdi, qword_ptr(0x18)););
                producer(a)?;
                writer(a)?;
                a.pushfq()?;
                a.pop(rbp)?;
            }
            a.dec(esi)?;
            a.jne(top)
        });
        check(name, &guest);
    }
}
