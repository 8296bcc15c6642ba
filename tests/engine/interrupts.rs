//! External interrupts: delivered where asked, once each, with the stack switched through the TSS.

use iced_x86::code_asm::*;
use lockstep::engine::{Engine, VmExit};

use crate::guest::{CODE, CPL0, CPL3, DATA, Guest, HANDLER, VECTOR, assemble, engines};

const TRIES: u64 = 5_000;

/// Counts at DATA and returns.
fn handler() -> Vec<u8> {
    assemble(HANDLER, |a| {
        a.push(rax)?;
        a.mov(rax, DATA)?;
        a.inc(qword_ptr(rax))?;
        a.pop(rax)?;
        a.iretq()
    })
}

fn count(guest: &Guest) -> u64 {
    u64::from_le_bytes(
        guest.ram.as_slice()[DATA as usize..DATA as usize + 8].try_into().expect("eight bytes"),
    )
}

#[test]
fn every_interrupt_at_a_pio_exit_is_taken_once() {
    for kind in engines("interrupts at PIO exits") {
        let code = assemble(CODE, |a| {
            let mut again = a.create_label();
            a.mov(edx, 0x4c50)?;
            a.set_label(&mut again)?;
            a.inc(ebx)?;
            a.out(dx, eax)?;
            a.jmp(again)
        });
        for cpl in [CPL0, CPL3] {
            let mut guest = Guest::new(kind, cpl, &code, &handler());
            for n in 0..TRIES {
                assert!(matches!(guest.resume(), VmExit::PioWrite { port: 0x4c50, .. }));
                assert_eq!(count(&guest), n, "the last one was handled before the next exit");
                assert!(guest.engine.interruptible());
                guest.engine.inject(VECTOR).expect("injects");
            }
        }
    }
}

#[test]
fn an_interrupt_wakes_a_halted_guest_and_it_goes_on_after_the_hlt() {
    for kind in engines("interrupts at HLT") {
        let code = assemble(CODE, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.sti()?;
            a.hlt()?;
            a.cli()?;
            a.inc(ebx)?;
            a.jmp(again)
        });
        let mut guest = Guest::new(kind, CPL0, &code, &handler());
        for n in 0..TRIES {
            assert_eq!(guest.resume(), VmExit::Hlt);
            assert_eq!(count(&guest), n);
            assert!(guest.engine.interruptible());
            guest.engine.inject(VECTOR).expect("injects");
        }
        assert_eq!(guest.state().gpr[3], TRIES - 1, "RBX counts the HLTs left");
    }
}

#[test]
fn no_interrupt_is_offered_while_they_are_disabled() {
    for kind in engines("interrupts disabled") {
        let code = assemble(CODE, |a| {
            a.cli()?;
            a.out(0x80, al)?;
            a.sti()?;
            a.nop()?;
            a.out(0x80, al)
        });
        let mut guest = Guest::new(kind, CPL0, &code, &handler());
        assert!(matches!(guest.resume(), VmExit::PioWrite { .. }));
        assert!(!guest.engine.interruptible());
        assert!(matches!(guest.resume(), VmExit::PioWrite { .. }));
        assert!(guest.engine.interruptible());
    }
}
