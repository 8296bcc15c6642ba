//! Runs one instruction in the software CPU, as code at CPL3 of a small 64-bit guest whose memory lies at the
//! same linear addresses as in the host process.

use crate::case::{Case, End, Outcome, PAGE, REGIONS, SEGMENTS};
use softcpu::{Cpu, Segment, State};
use std::ptr;

const RAM: usize = 0x10_0000;
const KERNEL: u64 = 0xffff_8000_0000_0000;
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const HANDLERS: u64 = 0x4000;
/// Bytes of each handler.
const HANDLER: u64 = 16;
const STACK_TOP: u64 = 0x6000;
const TABLES: u64 = 0x8000;
/// Where the first region is; the others follow.
const MEMORY: u64 = 0x4_0000;
const KERNEL_CODE: u16 = 0x08;
/// Vectors that push an error code.
const WITH_ERROR: [u8; 7] = [8, 10, 11, 12, 13, 14, 17];
/// Numbers of `Case::segments` in `State::segments`: CS, SS, DS, ES, GS.
const PLACES: [usize; SEGMENTS] = [1, 2, 3, 0, 5];

/// The software CPU as an executor.
pub struct Soft {
    cpu: Box<Cpu>,
    ram: *mut u8,
    state: State,
}

impl Soft {
    /// A guest.
    pub fn new() -> Self {
        let (flags, access) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new mapping, which replaces none.
        let ram = unsafe { libc::mmap(ptr::null_mut(), RAM, access, flags, -1, 0) };
        assert_ne!(ram, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        let ram: *mut u8 = ram.cast();
        // SAFETY: `ram` is a mapping of RAM bytes, never unmapped, used by this thread only.
        let cpu = unsafe { Cpu::new(ram, RAM) };
        let mut soft = Self { cpu, ram, state: State::default() };
        soft.tables();
        soft.handlers();
        soft.registers();
        soft
    }

    fn bytes(&mut self, physical: u64, count: usize) -> &mut [u8] {
        assert!(physical as usize + count <= RAM);
        // SAFETY: the end lies in the mapping, as asserted.
        let from = unsafe { self.ram.add(physical as usize) };
        // SAFETY: as above; the CPU does not run now.
        unsafe { std::slice::from_raw_parts_mut(from, count) }
    }

    fn put(&mut self, physical: u64, value: u64) {
        self.bytes(physical, 8).copy_from_slice(&value.to_le_bytes());
    }

    fn word(&mut self, physical: u64) -> u64 {
        u64::from_le_bytes(self.bytes(physical, 8).try_into().expect("eight bytes"))
    }

    /// Four-level page tables, one after the other from TABLES.
    fn tables(&mut self) {
        let mut next = TABLES + PAGE;
        for n in 0..TABLES / PAGE {
            self.map(KERNEL + n * PAGE, n * PAGE, 0x3, &mut next);
        }
        let mut physical = MEMORY;
        for (at, bytes) in REGIONS {
            for linear in (at..at + bytes as u64).step_by(PAGE as usize) {
                self.map(linear, physical, 0x7, &mut next);
                physical += PAGE;
            }
        }
        assert!(next <= MEMORY);
    }

    fn map(&mut self, linear: u64, physical: u64, bits: u64, next: &mut u64) {
        let mut table = TABLES;
        for shift in [39, 30, 21] {
            let entry = table + ((linear >> shift) & 511) * 8;
            if self.word(entry) == 0 {
                self.put(entry, *next | 0x7);
                *next += PAGE;
            }
            table = self.word(entry) & !0xfff;
        }
        self.put(table + ((linear >> 12) & 511) * 8, physical | bits);
    }

    /// GDT, IDT, TSS, and a HLT for each vector.
    fn handlers(&mut self) {
        self.put(GDT + u64::from(KERNEL_CODE), 0x00af_9b00_0000_ffff);
        for vector in 0..256 {
            let at = KERNEL + HANDLERS + vector * HANDLER;
            let gate =
                (at & 0xffff) | (u64::from(KERNEL_CODE) << 16) | (0xee << 40) | ((at >> 16 & 0xffff) << 48);
            self.put(IDT + vector * 16, gate);
            self.put(IDT + vector * 16 + 8, at >> 32);
        }
        self.bytes(HANDLERS, 256 * HANDLER as usize).fill(0xf4);
        self.put(TSS + 4, KERNEL + STACK_TOP);
        self.bytes(TSS + 0x66, 2).copy_from_slice(&0x68u16.to_le_bytes());
    }

    fn registers(&mut self) {
        let state = &mut self.state;
        let none = Segment { selector: 0, base: 0, limit: 0, access: 1 << 16 };
        state.segments = [none; 8];
        state.segments[7] = Segment { selector: 0x18, base: KERNEL + TSS, limit: 0x67, access: 0x8b };
        (state.gdtr.base, state.gdtr.limit) = (KERNEL + GDT, 0xff);
        (state.idtr.base, state.idtr.limit) = (KERNEL + IDT, 0xfff);
        // PG, AM, WP, NE, ET, MP, PE; PAE, PGE, OSFXSR, OSXMMEXCPT; NXE, LMA, LME, SCE.
        state.cr0 = 0x8005_0033;
        state.cr3 = TABLES;
        state.cr4 = 0x6a0;
        state.efer = 0xd01;
    }

    /// Runs a case on `memory`, whose bytes of all regions are then as it leaves them.
    pub fn run(&mut self, case: &Case, memory: &mut [Vec<u8>]) -> Outcome {
        let mut physical = MEMORY;
        for bytes in memory.iter() {
            self.bytes(physical, bytes.len()).copy_from_slice(bytes);
            physical += bytes.len() as u64;
        }
        self.cpu.ram_written(MEMORY, (physical - MEMORY) as usize);
        let mut state = self.state.clone();
        for (n, place) in PLACES.into_iter().enumerate() {
            if !case.segments[n].null {
                state.segments[place] = Segment {
                    selector: case.selector(n),
                    base: case.segments[n].base.into(),
                    limit: case.segments[n].bytes(),
                    access: case.segments[n].access(),
                };
            }
        }
        for (register, value) in state.gpr.iter_mut().zip(case.gpr) {
            *register = value.into();
        }
        state.rip = case.eip.into();
        state.rflags = u64::from(case.flags) | 0x202;
        self.cpu.set_state(&state);
        let start = self.cpu.retired();
        self.cpu.run(start + 1);
        let outcome = self.outcome();
        let mut physical = MEMORY;
        for bytes in memory {
            let count = bytes.len();
            bytes.copy_from_slice(self.bytes(physical, count));
            physical += bytes.len() as u64;
        }
        outcome
    }

    fn outcome(&mut self) -> Outcome {
        let state = self.cpu.state();
        let mut gpr: [u32; 8] = std::array::from_fn(|n| state.gpr[n] as u32);
        let handlers = KERNEL + HANDLERS;
        if !(handlers..handlers + 256 * HANDLER).contains(&state.rip) {
            assert!(state.rip >> 32 == 0, "EIP is {:#x}", state.rip);
            return Outcome { end: End::Retired, gpr, eip: state.rip as u32, flags: state.rflags as u32 };
        }
        let vector = ((state.rip - handlers) / HANDLER) as u8;
        let mut frame = state.gpr[4] - KERNEL;
        let mut error = 0;
        if WITH_ERROR.contains(&vector) {
            error = self.word(frame) as u32;
            frame += 8;
        }
        let [rip, rflags, rsp] = [0, 16, 24].map(|n| self.word(frame + n));
        gpr[4] = rsp as u32;
        let cr2 = if vector == 14 { state.cr2 as u32 } else { 0 };
        Outcome { end: End::Fault(vector, error, cr2), gpr, eip: rip as u32, flags: rflags as u32 }
    }
}
