//! What exits, with which data, and how the answer gets back.

use iced_x86::code_asm::*;
use lockstep::engine::{Engine, EngineKind, VmEntry, VmExit};
use logchannel::Position;

use crate::guest::{CODE, CPL0, CPL3, DATA, Guest, MMIO, assemble, engines};

#[test]
fn pio_of_every_size_exits_with_its_value_and_takes_its_answer() {
    for kind in engines("pio") {
        let code = assemble(CODE, |a| {
            a.mov(edx, 0x4c50)?;
            a.mov(eax, 0x1122_3344)?;
            a.out(dx, eax)?;
            a.out(dx, ax)?;
            a.out(dx, al)?;
            a.in_(eax, dx)?;
            a.mov(ebx, eax)?;
            a.in_(ax, dx)?;
            a.in_(al, dx)?;
            a.out(dx, eax)
        });
        for cpl in [CPL0, CPL3] {
            let mut guest = Guest::new(kind, cpl, &code, &[]);
            let port = 0x4c50;
            assert_eq!(guest.resume(), VmExit::PioWrite { port, size: 4, value: 0x1122_3344 });
            assert_eq!(guest.resume(), VmExit::PioWrite { port, size: 2, value: 0x3344 });
            assert_eq!(guest.resume(), VmExit::PioWrite { port, size: 1, value: 0x44 });
            assert_eq!(guest.resume(), VmExit::PioRead { port, size: 4 });
            assert_eq!(guest.run(VmEntry::Value(0xaabb_ccdd)), VmExit::PioRead { port, size: 2 });
            assert_eq!(guest.run(VmEntry::Value(0x5566)), VmExit::PioRead { port, size: 1 });
            assert_eq!(
                guest.run(VmEntry::Value(0x77)),
                VmExit::PioWrite { port, size: 4, value: 0xaabb_5577 }
            );
            if kind == EngineKind::Kvm {
                assert_eq!(guest.engine.position(), Position::at(7), "every exit counts once");
            }
            assert_eq!(guest.state().gpr[3], 0xaabb_ccdd, "RBX");
        }
    }
}

#[test]
fn mmio_of_every_size_exits_with_its_value_and_takes_its_answer() {
    for kind in engines("mmio") {
        let code = assemble(CODE, |a| {
            a.mov(rdi, MMIO)?;
            a.mov(rax, 0x1122_3344_5566_7788u64)?;
            a.mov(qword_ptr(rdi), rax)?;
            a.mov(dword_ptr(rdi + 8), eax)?;
            a.mov(word_ptr(rdi + 16), ax)?;
            a.mov(byte_ptr(rdi + 24), al)?;
            a.mov(ebx, dword_ptr(rdi + 4))?;
            a.movzx(ecx, byte_ptr(rdi + 5))?;
            a.mov(dword_ptr(rdi), ebx)
        });
        for cpl in [CPL0, CPL3] {
            let mut guest = Guest::new(kind, cpl, &code, &[]);
            let value = 0x1122_3344_5566_7788;
            assert_eq!(guest.resume(), VmExit::MmioWrite { address: MMIO, size: 8, value });
            assert_eq!(
                guest.resume(),
                VmExit::MmioWrite { address: MMIO + 8, size: 4, value: value & 0xffff_ffff }
            );
            assert_eq!(
                guest.resume(),
                VmExit::MmioWrite { address: MMIO + 16, size: 2, value: value & 0xffff }
            );
            assert_eq!(
                guest.resume(),
                VmExit::MmioWrite { address: MMIO + 24, size: 1, value: value & 0xff }
            );
            assert_eq!(guest.resume(), VmExit::MmioRead { address: MMIO + 4, size: 4 });
            assert_eq!(
                guest.run(VmEntry::Value(0xdead_beef)),
                VmExit::MmioRead { address: MMIO + 5, size: 1 }
            );
            let last = guest.run(VmEntry::Value(0x99));
            assert_eq!(last, VmExit::MmioWrite { address: MMIO, size: 4, value: 0xdead_beef });
            assert_eq!(guest.state().gpr[1], 0x99, "RCX");
        }
    }
}

#[test]
fn string_io_moves_every_element() {
    for kind in engines("string io") {
        let code = assemble(CODE, |a| {
            a.mov(edx, 0x3f8)?;
            a.mov(rsi, DATA)?;
            a.mov(ecx, 8)?;
            a.rep().outsb()?;
            a.hlt()
        });
        let mut guest = Guest::new(kind, CPL0, &code, &[]);
        guest.ram.write(DATA as usize, b"lockstep");
        let mut seen = Vec::new();
        loop {
            match guest.resume() {
                VmExit::PioWrite { port: 0x3f8, size: 1, value } => seen.push(value as u8),
                VmExit::PioWriteString { port: 0x3f8, size: 1, data } => seen.extend(data),
                VmExit::Hlt => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(seen, b"lockstep");
    }
}

#[test]
fn hlt_exits_and_tells_whether_interrupts_are_enabled() {
    for kind in engines("hlt") {
        let code = assemble(CODE, |a| {
            a.hlt()?;
            a.cli()?;
            a.hlt()
        });
        let mut guest = Guest::new(kind, CPL0, &code, &[]);
        assert_eq!(guest.resume(), VmExit::Hlt);
        assert!(guest.engine.interrupts_enabled() && guest.engine.interruptible());
        assert_eq!(guest.resume(), VmExit::Hlt);
        assert!(!guest.engine.interrupts_enabled() && !guest.engine.interruptible());
    }
}

#[test]
fn a_triple_fault_is_an_exit_and_no_error() {
    for kind in engines("triple fault") {
        let code = assemble(CODE, |a| a.ud2());
        let mut guest = Guest::new(kind, CPL0, &code, &[]);
        let mut state = guest.first.clone();
        state.idtr.limit = 0;
        guest.engine.restore(&state, Position::at(0)).expect("restores");
        assert_eq!(guest.resume(), VmExit::Shutdown);
    }
}
