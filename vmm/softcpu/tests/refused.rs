//! A form that leaves something else when translated is refused by the self-test, and no guest meets it.

use std::fmt::Debug;

use iced_x86::code_asm::*;
use softcpu::{Cpu, Exit, Mistake, State};

const RAM: usize = 1 << 20;
const CODE: u64 = 0x1000;

/// Runs 64-bit code without paging to its end.
fn run(translation: Option<u32>) -> (impl Debug + PartialEq, u64) {
    let mut assembler = CodeAssembler::new(64).expect("a known size");
    let build = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(ecx, 1000)?;
        a.set_label(&mut again)?;
        a.movd(xmm1, ecx)?;
        a.pmaddwd(xmm1, xmm1)?;
        a.paddd(xmm0, xmm1)?;
        a.bswap(rdx)?;
        a.add(rdx, rcx)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.hlt()
    };
    build(&mut assembler).expect("valid operands");
    let code = assembler.assemble(CODE).expect("branches in reach");
    let mut ram = vec![0; RAM];
    ram[CODE as usize..][..code.len()].copy_from_slice(&code);
    // SAFETY: the vector outlives the processor and is not touched while it runs.
    let mut cpu = unsafe { Cpu::new(ram.as_mut_ptr(), RAM) };
    let mut state = State { rip: CODE, cr0: 0x33, cr4: 0x620, efer: 0x500, ..State::default() };
    for segment in &mut state.segments[..6] {
        (segment.access, segment.limit) = (0xc093, u32::MAX);
    }
    state.segments[1].access = 0xa09b;
    cpu.set_state(&state);
    assert!(cpu.set_translation(translation), "the host lets code be executed");
    assert_eq!(cpu.run(u64::MAX), Exit::Hlt);
    ((cpu.retired(), cpu.state()), cpu.statistics().native_instructions)
}

/// It is the only test of its process: what is planted stays.
#[test]
fn a_form_that_differs_translated_is_interpreted() {
    assert!(!softcpu::plant_odd_form("No_such_form"));
    assert!(softcpu::plant_odd_form("Pmaddwd_xmm_xmmm128"));
    let (expected, _) = run(None);
    let (found, native) = run(Some(1));
    assert_eq!(found, expected);
    // Of seven instructions all but that one.
    assert_eq!(native, 1 + 6 * 1000);
    let test = softcpu::self_test().expect("the host lets code be executed");
    assert_eq!(test.refused, ["Pmaddwd_xmm_xmmm128"]);
    assert_eq!(test.digest, test.pinned, "what is interpreted is right");
    assert_eq!(Mistake::named("odd-form"), None, "it is no mistake that acts from a position on");
}
