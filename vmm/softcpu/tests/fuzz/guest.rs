//! A random guest: RAM between two guard regions, tables, code that is partly valid, and a start state in one
//! of the modes.

use crate::encode;
use crate::forms::{self, Form};
use crate::state::{CODE, DATA, PAGE, PAGES};
use crate::values::Random;
use softcpu::{Segment, State};
use std::ptr;

/// Bytes of guest RAM.
pub const RAM: usize = 0x4_0000;
/// Bytes of each guard region.
const GUARD: usize = 1 << 32;
/// Linear address at which the supervisor sees all RAM.
pub const KERNEL: u64 = 0xffff_8000_0000_0000;
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const HANDLERS: u64 = 0x4000;
const STACK_TOP: u64 = 0x6000;
const TABLES: u64 = 0x8000;
/// Where page tables end and code begins.
const TABLES_END: u64 = 0x2_0000;
const KERNEL_CODE_AT: u64 = 0x2_8000;
const CODE_AT: [u64; 2] = [0x2_0000, 0x2_2000];

/// Selectors, and their descriptors from GDT + 8 on.
const DESCRIPTORS: [u64; 8] = [
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    // The TSS, in two parts; a call gate that nothing may use.
    0x8000_8900_3000_0067,
    0x0000_0000_ffff_8000,
    0x0000_8c00_0008_0000,
];

/// Pages of RAM with unmapped memory on both sides: an access outside ends the process.
pub struct Ram {
    at: *mut u8,
}

impl Ram {
    pub fn new() -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, which replaces none.
        let guard = unsafe { libc::mmap(ptr::null_mut(), 2 * GUARD + RAM, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(guard, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        // SAFETY: the mapping is longer than that.
        let at = unsafe { guard.cast::<u8>().add(GUARD) };
        // SAFETY: these pages are in the mapping.
        let done = unsafe { libc::mprotect(at.cast(), RAM, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(done, 0, "mprotect: {}", std::io::Error::last_os_error());
        Self { at }
    }

    /// The first byte.
    pub fn start(&self) -> *mut u8 {
        self.at
    }

    /// All bytes; the processor must not run.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the pages are readable and writable, this value's alone, and borrowed with it.
        unsafe { std::slice::from_raw_parts_mut(self.at, RAM) }
    }
}

/// RAM and registers at the start of a case.
#[derive(Clone)]
pub struct Guest {
    pub ram: Vec<u8>,
    pub state: State,
}

/// The guest of a seed.
pub fn guest(seed: u64, forms: &[Form]) -> Guest {
    let mut random = Random::new(seed);
    let mut ram = vec![0; RAM];
    for chunk in ram[TABLES_END as usize..].chunks_exact_mut(8) {
        chunk.copy_from_slice(&random.integer().to_le_bytes());
    }
    let mut guest = Guest { ram, state: State::default() };
    guest.descriptors(&mut random);
    if random.one_in(4) {
        guest.random_tables(&mut random);
    } else {
        guest.tables(&mut random);
    }
    for at in [CODE_AT[0], CODE_AT[1], KERNEL_CODE_AT] {
        guest.code(at, &mut random, forms);
    }
    guest.registers(&mut random);
    guest
}

impl Guest {
    fn write(&mut self, at: u64, bytes: &[u8]) {
        self.ram[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn write_u64(&mut self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    fn descriptors(&mut self, random: &mut Random) {
        for (n, descriptor) in (1..).zip(DESCRIPTORS) {
            self.write_u64(GDT + n * 8, descriptor);
        }
        for n in 16..64 {
            let entry = DESCRIPTORS[random.below(8) as usize] ^ (1 << random.below(64));
            self.write_u64(GDT + n * 8, entry);
        }
        for vector in 0..256 {
            let at = KERNEL + HANDLERS + vector * 16;
            let stack = if random.one_in(8) { random.below(8) } else { 0 };
            let kind = if random.one_in(16) { random.below(256) } else { 0xee };
            let gate =
                (at & 0xffff) | (8 << 16) | (stack << 32) | (kind << 40) | (((at >> 16) & 0xffff) << 48);
            self.write_u64(IDT + vector * 16, gate);
            self.write_u64(IDT + vector * 16 + 8, at >> 32);
            // Drops the error code, steps over some bytes of the instruction, returns.
            let error = matches!(vector, 8 | 10..=14 | 17);
            let skip = 1 + random.below(4) as u8;
            let mut handler = if error { vec![0x48, 0x83, 0xc4, 8] } else { Vec::new() };
            handler.extend([0x48, 0x83, 0x04, 0x24, skip, 0x48, 0xcf]);
            self.write(HANDLERS + vector * 16, &handler);
        }
        for n in 0..10 {
            self.write_u64(TSS + 4 + n * 8, KERNEL + STACK_TOP - n * 0x100);
        }
        self.write(TSS + 0x66, &0x68u16.to_le_bytes());
    }

    /// Sensible tables, some entries of which are then changed.
    fn tables(&mut self, random: &mut Random) {
        let mut next = TABLES + PAGE;
        for n in 0..RAM as u64 / PAGE {
            self.map(KERNEL + n * PAGE, n * PAGE, 0x3, &mut next);
        }
        for (n, at) in (0..).zip(CODE_AT) {
            self.map(CODE + n * PAGE, at, 0x7, &mut next);
        }
        for (page, writable) in PAGES {
            let bits = if writable { 0x7 } else { 0x5 };
            self.map(DATA + page * PAGE, 0x3_0000 + page * PAGE, bits, &mut next);
        }
        // A device's registers, beyond RAM.
        self.map(DATA + 3 * PAGE, 0x1_0000_0000, 0x7, &mut next);
        assert!(next <= TABLES_END);
        if random.one_in(2) {
            for _ in 0..random.below(8) {
                let at = TABLES + random.below((next - TABLES) / 8) * 8;
                let entry = random_entry(random);
                self.write_u64(at, entry);
            }
        }
    }

    fn map(&mut self, linear: u64, physical: u64, bits: u64, next: &mut u64) {
        let mut table = TABLES;
        for shift in [39, 30, 21] {
            let at = (table + ((linear >> shift) & 511) * 8) as usize;
            let entry = u64::from_le_bytes(self.ram[at..at + 8].try_into().expect("eight bytes"));
            table = entry & !0xfff;
            if entry == 0 {
                self.write_u64(at as u64, *next | 0x7);
                table = *next;
                *next += PAGE;
            }
        }
        self.write_u64(table + ((linear >> 12) & 511) * 8, physical | bits);
    }

    fn random_tables(&mut self, random: &mut Random) {
        for at in (TABLES..TABLES_END).step_by(8) {
            let entry = random_entry(random);
            self.write_u64(at, entry);
        }
    }

    /// A page of instructions, most of them valid.
    fn code(&mut self, at: u64, random: &mut Random, forms: &[Form]) {
        let mut code = Vec::new();
        while code.len() < PAGE as usize {
            match random.below(12) {
                0 => code.extend(random.bits().to_le_bytes()),
                // A loop, of as many rounds as RCX says or none taken; a jump back.
                3 if random.one_in(2) => {
                    let back = (random.below(120) as i8).wrapping_neg() - 2;
                    let opcode = random.pick(&[0xe2, 0xe1, 0x75, 0x72, 0xeb]);
                    code.extend([0x48, 0xff, 0xc9, opcode, back as u8]);
                }
                1 | 2 => code.extend(SYSTEM[random.below(SYSTEM.len() as u64) as usize]),
                _ => {
                    let form = forms[random.below(forms.len() as u64) as usize];
                    code.extend(encode::encode(&form, random, true).bytes);
                }
            }
        }
        code.truncate(PAGE as usize);
        if random.one_in(3) {
            for _ in 0..random.below(200) {
                code[random.below(PAGE) as usize] ^= 1 << random.below(8);
            }
        }
        self.write(at, &code);
    }

    fn registers(&mut self, random: &mut Random) {
        let state = &mut self.state;
        state.gpr = std::array::from_fn(|_| match random.below(4) {
            0 => random.integer(),
            1 => KERNEL + random.below(RAM as u64),
            _ => DATA + random.below(7 * PAGE),
        });
        state.gpr[4] = DATA + PAGE + random.below(PAGE / 8) * 8;
        state.rflags = 0x202 | (random.bits() & 0xcd5);
        if random.one_in(8) {
            state.rflags ^= random.bits() & 0x3f_7300;
        }
        state.xmm = std::array::from_fn(|_| random.vector());
        state.mxcsr = if random.one_in(2) { 0x1f80 } else { random.bits() as u32 & 0xffff };
        state.fpu.st = std::array::from_fn(|_| random.extended());
        state.fpu.tag = random.bits() as u8;
        state.fpu.sw = random.bits() as u16 & 0x3800;
        state.fpu.cw = if random.one_in(2) { 0x37f } else { 0x340 | random.bits() as u16 & 0xf3f };
        // PG, AM, WP, NE, ET, MP, PE; PAE, PGE, OSFXSR, OSXMMEXCPT; NXE, LMA, LME, SCE.
        state.cr0 = 0x8005_0033;
        state.cr3 = TABLES;
        state.cr4 = 0x6a0 | if random.one_in(4) { random.bits() & 0x30_0000 } else { 0 };
        state.efer = 0xd01;
        state.gdtr.base = KERNEL + GDT;
        state.gdtr.limit = 0x1ff;
        state.idtr.base = KERNEL + IDT;
        state.idtr.limit = 0xfff;
        state.msrs.star = 0x0013_0008 << 32;
        state.msrs.lstar = KERNEL + KERNEL_CODE_AT;
        state.msrs.sfmask = random.bits() & 0x47700;
        let flat = |selector, access| Segment { selector, base: 0, limit: u32::MAX, access };
        let tss = Segment { selector: 0x30, base: KERNEL + TSS, limit: 0x67, access: 0x8b };
        // 64-bit user, compatibility-mode user, supervisor.
        let (code, data) = match random.below(3) {
            0 => (flat(0x2b, 0xa0fb), flat(0x23, 0xc0f3)),
            1 => (flat(0x1b, 0xc0fb), flat(0x23, 0xc0f3)),
            _ => (flat(0x08, 0xa09b), flat(0x10, 0xc093)),
        };
        state.segments = [data, code, data, data, data, data, Segment::default(), tss];
        state.segments[6].access = 1 << 16;
        state.segments[4].base = random.below(0x2000);
        state.segments[5].base = random.below(0x2000);
        let supervisor = code.selector & 3 == 0;
        state.rip = if supervisor && random.one_in(2) { KERNEL + KERNEL_CODE_AT } else { CODE };
        state.rip += random.below(PAGE - 16);
        if code.selector == 0x1b && random.one_in(2) {
            segmented(state, random);
        }
        if random.one_in(16) {
            // Anything: what a hostile peer could send as a state.
            for _ in 0..random.below(6) {
                let bit = 1 << random.below(64);
                let at = random.below(8) as usize;
                match random.below(8) {
                    0 => state.cr0 ^= bit,
                    1 => state.cr4 ^= bit,
                    2 => state.efer ^= bit,
                    3 => state.cr3 ^= bit,
                    4 => state.rip ^= bit,
                    5 => state.segments[at].access ^= bit as u32,
                    6 => state.segments[at].base ^= bit,
                    _ => state.rflags ^= bit,
                }
            }
        }
    }
}

/// Compatibility mode with segments that are not flat: bases, limits at which something lies, all types.
fn segmented(state: &mut State, random: &mut Random) {
    let base = if random.one_in(2) { random.below(1 << 32) } else { random.below(0x4000) };
    let code = &mut state.segments[1];
    code.base = base;
    state.rip = state.rip.wrapping_sub(base) & 0xffff_ffff;
    if random.one_in(2) {
        code.limit = (state.rip + random.below(0x1000)).min(0xffff_ffff) as u32;
    }
    if random.one_in(4) {
        code.access &= !Segment::BIG;
    }
    for place in [0, 2, 3, 4, 5] {
        let segment = &mut state.segments[place];
        if random.one_in(2) {
            segment.base = random.below(0x4000).wrapping_sub(0x2000) & 0xffff_ffff;
        }
        if random.one_in(2) {
            segment.limit = (DATA + random.below(8 * PAGE)) as u32;
        }
        if random.one_in(4) {
            segment.access ^= random.pick(&[2, 4, 8, Segment::BIG, Segment::UNUSABLE]);
        }
    }
}

/// A page table entry: present in most cases, to RAM in most, with any of the other bits.
fn random_entry(random: &mut Random) -> u64 {
    let page = match random.below(16) {
        0 => random.bits() & 0x000f_ffff_ffff_f000,
        1 => 0x1_0000_0000 + random.below(16) * PAGE,
        2..8 => TABLES + random.below((TABLES_END - TABLES) / PAGE) * PAGE,
        _ => random.below(RAM as u64 / PAGE) * PAGE,
    };
    let large = if random.one_in(8) { 0x80 } else { 0 };
    let bits = random.bits() & 0x166 | 0x7 & !(u64::from(random.one_in(8))) | large;
    let high = if random.one_in(32) { 1 << 63 } else { 0 };
    page | bits | high
}

/// Instructions of the system level, and what user code may not do.
const SYSTEM: [&[u8]; 50] = [
    &[0x0f, 0x20, 0xc0],                                              // mov rax, cr0
    &[0x0f, 0x22, 0xc0],                                              // mov cr0, rax
    &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8],                            // mov rax, cr3; mov cr3, rax
    &[0x0f, 0x22, 0xdb],                                              // mov cr3, rbx
    &[0x0f, 0x20, 0xe0, 0x48, 0x35, 0x80, 0, 0, 0, 0x0f, 0x22, 0xe0], // cr4 ^= PGE
    &[0x44, 0x0f, 0x22, 0xc0],                                        // mov cr8, rax
    &[0x0f, 0x23, 0xf8],                                              // mov dr7, rax
    &[0x0f, 0x23, 0xc1],                                              // mov dr0, rcx
    &[0x0f, 0x21, 0xf2],                                              // mov rdx, dr6
    &[0x0f, 0x01, 0x38],                                              // invlpg [rax]
    &[0x0f, 0x01, 0x16],                                              // lgdt [rsi]
    &[0x0f, 0x01, 0x1f],                                              // lidt [rdi]
    &[0x0f, 0x01, 0x06],                                              // sgdt [rsi]
    &[0x0f, 0x01, 0x0f],                                              // sidt [rdi]
    &[0x0f, 0x00, 0xd8],                                              // ltr ax
    &[0x0f, 0x00, 0xd1],                                              // lldt cx
    &[0x0f, 0x00, 0xc8],                                              // str eax
    &[0x0f, 0x01, 0xe0],                                              // smsw eax
    &[0x0f, 0x01, 0xf0],                                              // lmsw ax
    &[0x0f, 0x01, 0xf8],                                              // swapgs
    &[0x0f, 0x06],                                                    // clts
    &[0x0f, 0x08],                                                    // invd
    &[0x0f, 0x09],                                                    // wbinvd
    &[0x0f, 0x02, 0xc1],                                              // lar eax, ecx
    &[0x0f, 0x03, 0xc1],                                              // lsl eax, ecx
    &[0x0f, 0x00, 0xe1],                                              // verr cx
    &[0x0f, 0x05],                                                    // syscall
    &[0x48, 0x0f, 0x07],                                              // sysretq
    &[0x0f, 0x07],                                                    // sysretl
    &[0x48, 0xcf],                                                    // iretq
    &[0x48, 0xcb],                                                    // retfq
    &[0xb9, 0x82, 0, 0, 0xc0, 0x0f, 0x32],                            // mov ecx, LSTAR; rdmsr
    &[0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32, 0x0f, 0x30],                // EFER: rdmsr; wrmsr
    &[0x0f, 0x30],                                                    // wrmsr
    &[0x0f, 0x32],                                                    // rdmsr
    &[0x0f, 0xa2],                                                    // cpuid
    &[0x0f, 0x31],                                                    // rdtsc
    &[0x0f, 0x01, 0xf9],                                              // rdtscp
    &[0xcd, 0x80],                                                    // int 0x80
    &[0xcc],                                                          // int3
    &[0xf1],                                                          // int1
    &[0xf4],                                                          // hlt
    &[0xfb],                                                          // sti
    &[0xfa],                                                          // cli
    &[0xed],                                                          // in eax, dx
    &[0xee],                                                          // out dx, al
    &[0xf3, 0x6c],                                                    // rep insb
    &[0xf3, 0x6f],                                                    // rep outsd
    &[0x8e, 0xd0],                                                    // mov ss, eax
    &[0x9d, 0x0f, 0x01, 0xca],                                        // popfq; clac
];

/// The forms that code is made of.
pub fn all_forms() -> Vec<Form> {
    forms::all().0
}
