//! What the comparison with the host's processor does not reach: modes that refuse instructions, 32-bit code,
//! device registers as operands, MXCSR around `run`. Compatibility mode, handlers in 64-bit mode.

use iced_x86::code_asm::*;

use crate::exec::sse_control;
use crate::{Cpu, Exit, Segment, State};

const RAM: usize = 0x10000;
const GDT: u64 = 0x500;
const IDT: u64 = 0x800;
/// A handler of one HLT for each vector.
const HANDLERS: u64 = 0x1000;
const CODE: u64 = 0x2000;
const DATA: u64 = 0x4000;
const STACK: u64 = 0x8000;
/// Page tables that map 4 GiB to themselves.
const TABLES: u64 = 0x9000;
/// Beyond RAM.
const DEVICE: u32 = 0xd000_0000;

const CR0_PG_NE_PE: u64 = 0x8000_0021;
const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_PAE: u64 = 1 << 5;
const CR4_OSXMMEXCPT: u64 = 1 << 10;

struct Machine {
    cpu: Box<Cpu>,
    ram: Vec<u64>,
    state: State,
}

impl Machine {
    /// With `code` at EIP.
    fn new(code: impl FnOnce(&mut CodeAssembler)) -> Self {
        let mut assembler = CodeAssembler::new(32).unwrap();
        code(&mut assembler);
        let code = assembler.assemble(CODE).unwrap();
        let mut ram = vec![0u64; RAM / 8];
        // SAFETY: the vector lives as long as the processor, and is accessed between runs only.
        let cpu = unsafe { Cpu::new(ram.as_mut_ptr().cast(), RAM) };
        let mut machine = Self { cpu, ram, state: State::default() };
        machine.put(GDT + 8, &0x00cf_9b00_0000_ffffu64.to_le_bytes());
        machine.put(GDT + 16, &0x00cf_9300_0000_ffffu64.to_le_bytes());
        machine.put(GDT + 24, &0x00af_9b00_0000_ffffu64.to_le_bytes());
        machine.put(TABLES, &(TABLES + 0x1003).to_le_bytes());
        for gigabyte in 0..4u64 {
            machine.put(TABLES + 0x1000 + 8 * gigabyte, &(gigabyte << 30 | 0x83).to_le_bytes());
        }
        for vector in 0..32 {
            let gate = (HANDLERS + 16 * vector) | 24 << 16 | 0x8e00 << 32;
            machine.put(IDT + 16 * vector, &gate.to_le_bytes());
            machine.put(HANDLERS + 16 * vector, &[0xf4]);
        }
        machine.put(CODE, &code);
        machine.put(CODE + code.len() as u64, &[0xf4]);
        let state = &mut machine.state;
        let flat = |selector, access| Segment { selector, base: 0, limit: u32::MAX, access };
        state.segments[..6].fill(flat(16, 0xc093));
        state.segments[1] = flat(8, 0xc09b);
        (state.gdtr.base, state.gdtr.limit) = (GDT, 31);
        (state.idtr.base, state.idtr.limit) = (IDT, 0x1ff);
        (state.cr0, state.cr4) = (CR0_PG_NE_PE, CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT);
        (state.cr3, state.efer) = (TABLES, 0x500);
        (state.rip, state.gpr[4]) = (CODE, STACK);
        machine
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        let start = at as usize;
        for (n, byte) in bytes.iter().enumerate() {
            let word = &mut self.ram[(start + n) / 8];
            let shift = 8 * ((start + n) % 8);
            *word = *word & !(0xff << shift) | u64::from(*byte) << shift;
        }
    }

    fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        std::array::from_fn(|n| (self.ram[(at as usize + n) / 8] >> (8 * ((at as usize + n) % 8))) as u8)
    }

    /// Starts from `self.state`, runs to a HLT, and says the exception whose handler it is in.
    fn run(&mut self) -> Option<u8> {
        self.cpu.set_state(&self.state);
        assert_eq!(self.cpu.run(1000), Exit::Hlt);
        self.state = self.cpu.state();
        let handler = self.state.rip.wrapping_sub(HANDLERS + 1);
        (handler < 0x200).then_some((handler / 16) as u8)
    }
}

#[test]
fn control_registers_refuse_instructions() {
    type Code = fn(&mut CodeAssembler);
    let sse: Code = |a| a.paddb(xmm1, xmm2).unwrap();
    let mmx: Code = |a| a.paddb(mm1, mm2).unwrap();
    let both: Code = |a| a.cvtpi2ps(xmm1, mm2).unwrap();
    let mxcsr: Code = |a| a.stmxcsr(dword_ptr(DATA as i32)).unwrap();
    let fxsave: Code = |a| a.fxsave(ptr(DATA as i32)).unwrap();
    let movnti: Code = |a| a.movnti(dword_ptr(DATA as i32), eax).unwrap();
    let (ud, nm) = (Some(6), Some(7));
    // CR0 bits, OSFXSR, and what each does.
    for (bits, fxsr, outcomes) in [
        (0, true, [None; 6]),
        (CR0_TS, true, [nm, nm, nm, nm, nm, None]),
        (CR0_EM, true, [ud, ud, ud, ud, ud, None]),
        (CR0_EM | CR0_TS, true, [ud, ud, ud, ud, ud, None]),
        (0, false, [ud, None, ud, ud, None, None]),
        (CR0_TS, false, [ud, nm, ud, ud, nm, None]),
    ] {
        for (code, outcome) in [sse, mmx, both, mxcsr, fxsave, movnti].into_iter().zip(outcomes) {
            let mut machine = Machine::new(code);
            machine.state.cr0 |= bits;
            machine.state.cr4 = CR4_PAE | if fxsr { CR4_OSFXSR } else { 0 };
            assert_eq!(machine.run(), outcome, "cr0 {bits:#x}, OSFXSR {fxsr}");
        }
    }
}

#[test]
fn what_is_not_in_the_model_is_undefined() {
    for bytes in [
        &[0x0f, 0x01, 0xc8][..],               // monitor
        &[0x0f, 0x01, 0xc9],                   // mwait
        &[0xc5, 0xf8, 0x58, 0xc1],             // vaddps
        &[0x66, 0x0f, 0x3a, 0x44, 0xc1, 0],    // pclmulqdq
        &[0x66, 0x0f, 0x38, 0xdc, 0xc1],       // aesenc
        &[0x0f, 0x0f, 0xc1, 0x9e],             // pfadd
        &[0xf2, 0x0f, 0x2b, 0x05, 0, 0, 0, 0], // movntsd
        &[0x66, 0x0f, 0x78, 0xc0, 1, 2],       // extrq
    ] {
        for bits in [0, CR0_TS] {
            let mut machine = Machine::new(|a| a.db(bytes).unwrap());
            machine.state.cr0 |= bits;
            assert_eq!(machine.run(), Some(6), "{bytes:02x?}");
        }
    }
}

#[test]
fn unmasked_exceptions_are_invalid_opcodes_without_osxmmexcpt() {
    for (bits, outcome) in [(CR4_OSFXSR | CR4_OSXMMEXCPT, 19), (CR4_OSFXSR, 6)] {
        let mut machine = Machine::new(|a| a.divss(xmm0, xmm1).unwrap());
        machine.state.cr4 = CR4_PAE | bits;
        machine.state.mxcsr = 0x1d80;
        machine.state.xmm[0] = 0x3f80_0000;
        assert_eq!(machine.run(), Some(outcome));
        assert_eq!(machine.state.mxcsr, 0x1d84, "ZE");
        assert_eq!(machine.state.xmm[0], 0x3f80_0000, "the destination stays");
    }
}

#[test]
fn sticky_flags_are_seen_by_the_guest_and_the_state_not_by_the_host() {
    let mut machine = Machine::new(|a| {
        a.divss(xmm0, xmm1).unwrap();
        a.stmxcsr(dword_ptr(DATA as i32)).unwrap();
        a.ldmxcsr(dword_ptr(DATA as i32 + 4)).unwrap();
        a.addss(xmm2, xmm3).unwrap();
    });
    machine.put(DATA + 4, &0xff80u32.to_le_bytes());
    machine.state.xmm[0] = 0x3f80_0000;
    (machine.state.xmm[2], machine.state.xmm[3]) = (0x3f80_0000, 0x3300_0000);
    let host = sse_control::read();
    assert_eq!(machine.run(), None);
    assert_eq!(sse_control::read(), host);
    assert_eq!(u32::from_le_bytes(machine.get(DATA)), 0x1f84, "ZE");
    assert_eq!(machine.state.mxcsr, 0xffa0, "PE alone");
    assert_eq!(machine.state.xmm[2], 0x3f80_0000, "rounded towards zero");
    assert_eq!(machine.state.xmm[0], 0x7f80_0000, "infinity");
}

#[test]
fn reserved_bits_of_mxcsr_are_refused() {
    let mut machine = Machine::new(|a| a.ldmxcsr(dword_ptr(DATA as i32)).unwrap());
    machine.put(DATA, &0x1_1f80u32.to_le_bytes());
    assert_eq!(machine.run(), Some(13));
    assert_eq!(machine.state.mxcsr, 0x1f80);
}

#[test]
fn a_16_byte_operand_in_a_device_is_two_exits_and_no_effect_before_both() {
    let mut machine = Machine::new(|a| {
        a.paddq(xmm0, xmmword_ptr(eax)).unwrap();
        a.movups(xmmword_ptr(eax + 4), xmm0).unwrap();
    });
    machine.state.gpr[0] = u64::from(DEVICE);
    machine.state.xmm[0] = 5 << 64 | 3;
    machine.cpu.set_state(&machine.state);
    let device = u64::from(DEVICE);
    let cpu = &mut machine.cpu;
    assert_eq!(cpu.run(1000), Exit::MmioRead { address: device, size: 8 });
    cpu.answer(10);
    assert_eq!(cpu.run(1000), Exit::MmioRead { address: device + 8, size: 8 });
    assert_eq!((cpu.state().xmm[0], cpu.retired()), (5 << 64 | 3, 0));
    cpu.answer(20);
    assert_eq!(cpu.run(1000), Exit::MmioWrite { address: device + 4, size: 4, value: 13 });
    assert_eq!((cpu.state().xmm[0], cpu.retired()), (25 << 64 | 13, 1));
    cpu.answer(0);
    assert_eq!(cpu.run(1000), Exit::MmioWrite { address: device + 8, size: 8, value: 25 << 32 });
    cpu.answer(0);
    assert_eq!(cpu.run(1000), Exit::MmioWrite { address: device + 16, size: 4, value: 0 });
    cpu.answer(0);
    assert_eq!(cpu.run(1000), Exit::Hlt);
}

#[test]
fn fxsave_of_32_bit_code_leaves_the_upper_registers() {
    let mut machine = Machine::new(|a| {
        a.fxsave(ptr(DATA as i32)).unwrap();
        a.fninit().unwrap();
        a.xorps(xmm1, xmm1).unwrap();
        a.fxrstor(ptr(DATA as i32)).unwrap();
    });
    machine.put(DATA, &[0xcc; 512]);
    let state = &mut machine.state;
    state.fpu.cw = 0x37f;
    (state.fpu.sw, state.fpu.tag, state.fpu.fop) = (0x3800, 0x80, 0x123);
    (state.fpu.fip, state.fpu.fdp) = (0x1234_5678, 0x8765_4321);
    state.fpu.st[0] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
    state.xmm = std::array::from_fn(|n| 0x0101 * (n as u128 + 1));
    let before = state.clone();
    assert_eq!(machine.run(), None);
    assert_eq!(machine.state.fpu, before.fpu);
    assert_eq!(machine.state.xmm, before.xmm);
    let area = machine.get::<512>(DATA);
    assert_eq!(&area[..8], &[0x7f, 3, 0, 0x38, 0x80, 0, 0x23, 1]);
    assert_eq!(&area[8..24], &[0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0, 0x21, 0x43, 0x65, 0x87, 0, 0, 0, 0]);
    assert_eq!(&area[24..32], &[0x80, 0x1f, 0, 0, 0xff, 0xff, 0, 0]);
    assert_eq!(&area[32..48], &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 0, 0, 0, 0, 0]);
    assert_eq!(&area[272..276], &[8, 8, 0, 0], "XMM7");
    assert_eq!(&area[288..], &[0xcc; 224]);
}

#[test]
fn maskmov_uses_the_address_size_and_the_segment() {
    let mut machine = Machine::new(|a| {
        a.db(&[0x64, 0x66, 0x0f, 0xf7, 0xc1]).unwrap(); // maskmovdqu xmm0, xmm1 in FS
        a.db(&[0x67, 0x0f, 0xf7, 0xd3]).unwrap(); // maskmovq mm2, mm3 with DI
    });
    machine.state.segments[4].base = 0x100;
    machine.state.gpr[7] = DATA;
    machine.state.xmm[0] = u128::from_le_bytes(std::array::from_fn(|n| n as u8 + 1));
    machine.state.xmm[1] = 0x80 << 120 | 0x80;
    machine.state.fpu.st[2] = [7; 10];
    machine.state.fpu.st[3] = [0, 0x80, 0, 0, 0, 0, 0, 0x7f, 0, 0];
    assert_eq!(machine.run(), None);
    let bytes = machine.get::<16>(DATA + 0x100);
    assert_eq!(bytes, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16]);
    assert_eq!(machine.get::<8>(DATA), [0, 7, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn mmx_waits_for_x87_exceptions_and_emms_empties() {
    let mut machine = Machine::new(|a| a.paddb(mm0, mm1).unwrap());
    machine.state.fpu.sw = 0x8081;
    machine.state.fpu.cw = 0x37e;
    assert_eq!(machine.run(), Some(16));
    let mut machine = Machine::new(|a| {
        a.pcmpeqd(mm0, mm0).unwrap();
        a.emms().unwrap();
    });
    machine.state.fpu.sw = 0x3000;
    machine.state.fpu.st[2] = [3; 10];
    assert_eq!(machine.run(), None);
    let fpu = machine.state.fpu;
    assert_eq!((fpu.sw, fpu.tag), (0, 0));
    assert_eq!(fpu.st[0], [0xff; 10], "MM0, which was ST2 of TOP 6");
    assert_eq!(fpu.st[2], [0; 10]);
}
