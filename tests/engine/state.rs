//! Save and restore of all vCPU state: into another virtual machine, at many stops, with SSE and x87 in use.

use iced_x86::code_asm::*;
use lockstep::engine::{Engine, VmEntry, VmExit};

use crate::guest::{CODE, CPL3, DATA, Guest, assemble, engines};

/// Mixes integer, SSE and x87 registers and memory without end, with an exit now and then.
pub fn mixer() -> Vec<u8> {
    assemble(CODE, |a| {
        let (mut again, mut inner) = (a.create_label(), a.create_label());
        a.mov(edx, 0x4c50)?;
        a.mov(rdi, DATA)?;
        a.mov(rax, 0x9e37_79b9_7f4a_7c15u64)?;
        a.fld1()?;
        a.set_label(&mut again)?;
        a.mov(ecx, 50)?;
        a.set_label(&mut inner)?;
        a.imul_3(rbx, rax, 0x0123_4567)?;
        a.xor(rax, rbx)?;
        a.rol(rax, 13)?;
        a.add(r8, rax)?;
        a.lea(r9, qword_ptr(r9 + r8 * 2 + 7))?;
        a.movq(xmm0, rax)?;
        a.paddq(xmm1, xmm0)?;
        a.pxor(xmm2, xmm1)?;
        a.mulsd(xmm3, xmm0)?;
        a.fld(st0)?;
        a.fadd_2(st0, st1)?;
        a.fstp(st1)?;
        a.mov(esi, eax)?;
        a.and(esi, 0xfff8)?;
        a.mov(qword_ptr(rdi + rsi), r9)?;
        a.movdqu(xmmword_ptr(rdi + rsi + 0x1_0000), xmm2)?;
        a.dec(ecx)?;
        a.jnz(inner)?;
        a.out(dx, eax)?;
        a.jmp(again)
    })
}

#[test]
fn a_guest_moved_to_another_vm_at_any_stop_goes_on_as_if_nothing_happened() {
    for kind in engines("save and restore") {
        let code = mixer();
        let mut straight = Guest::new(kind, CPL3, &code, &[]);
        let mut moved = Guest::new(kind, CPL3, &code, &[]);
        for stop in 1..=60u64 {
            let exit = straight.resume();
            assert!(matches!(exit, VmExit::PioWrite { .. }));
            assert_eq!(moved.resume(), exit, "stop {stop}");
            let (here, there) = (straight.state(), moved.state());
            assert_eq!(there.diff(&here), Vec::<String>::new(), "stop {stop}");
            let mut next = Guest::new(kind, CPL3, &code, &[]);
            let bytes = moved.ram.as_slice().to_vec();
            next.ram.write(0, &bytes);
            next.engine.restore(&there, moved.engine.position()).expect("restores");
            assert_eq!(
                next.engine.save().expect("saves").diff(&there),
                Vec::<String>::new(),
                "what was set is there"
            );
            moved = next;
        }
        assert_eq!(straight.ram.digest(None), moved.ram.digest(None));
    }
}

#[test]
fn completing_an_exit_twice_changes_nothing() {
    for kind in engines("completion") {
        let mut guest = Guest::new(kind, CPL3, &mixer(), &[]);
        for _ in 0..10 {
            guest.resume();
            let once = guest.state();
            guest.engine.complete(VmEntry::Resume).expect("completes");
            assert_eq!(guest.engine.save().expect("saves").diff(&once), Vec::<String>::new());
        }
    }
}
