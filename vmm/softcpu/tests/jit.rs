//! What the translator says of itself: its counts are right, and where the host lets nothing be executed, it
//! says so and everything is interpreted.

use iced_x86::code_asm::*;
use softcpu::{Cpu, Exit, Jit, State};

const RAM: usize = 1 << 20;
const CODE: u64 = 0x1000;

struct Machine {
    ram: Vec<u8>,
    cpu: Box<Cpu>,
}

/// 64-bit code without paging.
fn machine(build: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Machine {
    let mut assembler = CodeAssembler::new(64).expect("a known size");
    build(&mut assembler).and_then(|()| assembler.hlt()).expect("valid operands");
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
    (state.gpr[3], state.gpr[4]) = (0x8000, 0x7000);
    cpu.set_state(&state);
    Machine { ram, cpu }
}

/// A loop of four instructions, one of which is never translated (XLATB).
fn a_loop(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(ecx, 100_000)?;
    a.set_label(&mut again)?;
    a.inc(edx)?;
    a.xlatb()?;
    a.dec(ecx)?;
    a.jne(again)
}

#[test]
fn instructions_executed_natively_are_counted() {
    let mut machine = machine(a_loop);
    let cpu = &mut machine.cpu;
    assert!(cpu.set_translation(Some(1)));
    assert_eq!(cpu.run(u64::MAX), Exit::Hlt);
    assert_eq!(cpu.retired(), 400_002);
    // All but HLT and each XLATB.
    assert_eq!(cpu.statistics().native_instructions, 300_001);
    // However often it stops.
    let mut stopped = self::machine(a_loop);
    let cpu = &mut stopped.cpu;
    assert!(cpu.set_translation(Some(1)));
    let mut until = 0;
    while cpu.run(until) != Exit::Hlt {
        until += 997;
    }
    let often = cpu.statistics().native_instructions;
    // The block at which it stops is interpreted, before and after.
    assert!((300_001 - 400_000 / 997 * 8..=300_001).contains(&often), "{often}");
}

#[test]
fn blocks_that_are_dropped_are_no_more() {
    let mut machine = machine(a_loop);
    let cpu = &mut machine.cpu;
    assert!(cpu.set_translation(Some(1)));
    assert_eq!(cpu.run(1000), Exit::Reached);
    let before = cpu.statistics();
    assert!(before.blocks > 0 && before.bytes > 0 && before.translating_ns > 0, "{before:?}");
    assert_eq!(before.translations, before.blocks + before.invalidations, "{before:?}");
    machine.ram[CODE as usize + 0x80] = 1;
    cpu.ram_written(CODE, 0x1000);
    let dropped = cpu.statistics();
    assert_eq!((dropped.blocks, dropped.invalidations), (0, before.translations), "{dropped:?}");
    assert_eq!(cpu.run(2000), Exit::Reached);
    let after = cpu.statistics();
    assert_eq!(after.translations, after.blocks + after.invalidations);
    assert!(after.blocks > 0 && after.translations > before.translations, "{after:?}");
}

#[test]
fn an_interpreter_counts_nothing() {
    let mut machine = machine(a_loop);
    machine.cpu.set_jit(Jit::Off);
    assert_eq!(machine.cpu.run(u64::MAX), Exit::Hlt);
    assert_eq!(machine.cpu.statistics(), softcpu::Statistics::default());
    assert_eq!((machine.cpu.jit(), machine.cpu.untranslated()), (Jit::Off, None));
}
