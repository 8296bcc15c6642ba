//! A guest of the software processor's tests as a kernel that `lockstep` boots.
//!
//! ```text
//!  ELF, at 2 MiB: start ─▶ tables of its own ─▶ copies RAM to 0 ─▶ STUB, where the guest's tables have it
//!  STUB: the guest's tables, control registers, MSRs, GDT, IDT, TSS, segments, registers ─▶ IRETQ
//! ```
//!
//! Where the guest's last interrupt halts, the machine is switched off.

use iced_x86::code_asm::*;

use crate::guest::{CODE_AT, FREE, Guest, KERNEL, PAGE, RAM, assemble};

const START: u64 = 0x20_0000;
const TABLES: u64 = START + 0x1000;
const RAM_AT: u64 = START + 0x4000;
/// In the guest's RAM: code, and what it loads.
const STUB: u64 = FREE;
const LOADED: u64 = FREE + PAGE;
/// In the guest's GDT: its tests have no descriptor for the TSS.
const TSS: u64 = 0x48;
/// ACPI's PM1a control, and SLP_EN there.
const POWER: (u32, u32) = (0x604, 1 << 13);
/// Where its HLT is.
const HALTS_AT: u64 = 0x4000 + 0x41 * 64;

/// Makes an ELF file of a guest.
pub fn kernel(guest: &Guest) -> Vec<u8> {
    let mut guest = guest.clone();
    let system = guest.state.segments[7];
    let gdt = guest.state.gdtr.base - KERNEL;
    let low = u64::from(system.limit) | (system.base & 0xff_ffff) << 16 | 0x89 << 40;
    guest.set_word(gdt + TSS, low | (system.base >> 24 & 0xff) << 56);
    guest.set_word(gdt + TSS + 8, system.base >> 32);
    let off = assemble(KERNEL + HALTS_AT, &|a| {
        a.mov(edx, POWER.0)?;
        a.mov(eax, POWER.1)?;
        a.out(dx, ax)?;
        a.hlt()
    });
    guest.write(HALTS_AT, &off);
    data(&mut guest);
    let stub = stub(&guest);
    assert!(stub.len() < PAGE as usize && CODE_AT < STUB);
    guest.write(STUB, &stub);

    let mut image = start();
    image.resize((RAM_AT - START) as usize, 0);
    // PML4, with the lowest and the guest's first gigabyte; PDPT; a directory of large pages.
    let entries = (0..512).map(|n| (0x2000 + 8 * n, n << 21 | 0xe3));
    for (at, entry) in
        [(0, TABLES + 0x1003), (0x800, TABLES + 0x1003), (0x1000, TABLES + 0x2003)].into_iter().chain(entries)
    {
        let at = (TABLES - START + at) as usize;
        image[at..at + 8].copy_from_slice(&entry.to_le_bytes());
    }
    image.extend(&guest.ram);
    elf(&image)
}

/// 64-bit code with the lowest memory mapped to itself.
fn start() -> Vec<u8> {
    assemble(START, &|a| {
        a.mov(rax, TABLES)?;
        a.mov(cr3, rax)?;
        a.mov(rsi, RAM_AT)?;
        a.xor(edi, edi)?;
        a.mov(ecx, RAM as u32 / 8)?;
        a.cld()?;
        a.rep().movsq()?;
        a.mov(rax, KERNEL + STUB)?;
        a.jmp(rax)
    })
}

/// Pseudo-descriptors of GDT and IDT, XMM registers, IRETQ's frame, general registers.
fn data(guest: &mut Guest) {
    let state = guest.state.clone();
    for (at, table) in [(0, state.gdtr), (16, state.idtr)] {
        guest.write(LOADED + at, &table.limit.to_le_bytes());
        guest.write(LOADED + at + 2, &table.base.to_le_bytes());
    }
    for (n, xmm) in (0..).zip(state.xmm) {
        guest.write(LOADED + 0x100 + 16 * n, &xmm.to_le_bytes());
    }
    let selector = |number: usize| u64::from(state.segments[number].selector);
    let frame = [state.rip, selector(1), state.rflags, state.gpr[4], selector(2)];
    for (n, word) in (0..).zip(frame) {
        guest.set_word(LOADED + 0x200 + 8 * n, word);
    }
    for (n, word) in (0..).zip(state.gpr) {
        guest.set_word(LOADED + 0x300 + 8 * n, word);
    }
}

fn stub(guest: &Guest) -> Vec<u8> {
    let state = &guest.state;
    let registers = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
    let vectors = [
        xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14, xmm15,
    ];
    assemble(KERNEL + STUB, &|a| {
        a.mov(rax, state.cr3)?;
        a.mov(cr3, rax)?;
        for (msr, value) in [
            (0xc000_0080u32, state.efer),
            (0xc000_0081, state.msrs.star),
            (0xc000_0082, state.msrs.lstar),
            (0xc000_0084, state.msrs.sfmask),
        ] {
            a.mov(ecx, msr)?;
            a.mov(eax, value as u32)?;
            a.mov(edx, (value >> 32) as u32)?;
            a.wrmsr()?;
        }
        a.mov(rax, state.cr4)?;
        a.mov(cr4, rax)?;
        a.mov(rax, state.cr0)?;
        a.mov(cr0, rax)?;
        a.mov(r15, KERNEL + LOADED)?;
        a.lgdt(tbyte_ptr(r15))?;
        a.lidt(tbyte_ptr(r15 + 16))?;
        a.mov(eax, TSS as u32)?;
        a.ltr(ax)?;
        a.mov(eax, u32::from(state.segments[3].selector))?;
        for segment in [ds, es, fs, gs] {
            a.mov(segment, eax)?;
        }
        for (n, register) in vectors.into_iter().enumerate() {
            a.movups(register, xmmword_ptr(r15 + 0x100 + 16 * n))?;
        }
        a.lea(rsp, qword_ptr(r15 + 0x200))?;
        for (n, register) in registers.into_iter().enumerate().filter(|(n, _)| *n != 4) {
            a.mov(register, qword_ptr(r15 + 0x300 + 8 * n))?;
        }
        a.iretq()
    })
}

/// An executable of one segment, loaded at `START` and begun there.
fn elf(image: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2u16, 62] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    for word in [START, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [1u32, 7] {
        file.extend(word.to_le_bytes());
    }
    let bytes = image.len() as u64;
    for word in [HEADERS, START, START, bytes, bytes, PAGE] {
        file.extend(word.to_le_bytes());
    }
    file.extend(image);
    file
}
