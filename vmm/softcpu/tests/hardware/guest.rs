//! The guest in which the software CPU runs one instruction of user code.
//!
//! ```text
//! linear                      physical
//! KERNEL + physical    system GDT, IDT, TSS, handlers (one HLT a vector), stack
//! each test's          user   each test's, from FREE on
//! ```

use softcpu::{Cpu, Segment, State};
use std::ptr;

const RAM: usize = 0x20_0000;
const KERNEL: u64 = 0xffff_8000_0000_0000;
const PAGE: u64 = 0x1000;
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const HANDLERS: u64 = 0x4000;
/// Bytes of each handler.
const HANDLER: u64 = 16;
const STACK_TOP: u64 = 0x6000;
const TABLES: u64 = 0x8000;
/// The first physical address that the tables leave free.
pub const FREE: u64 = 0x2_0000;
const KERNEL_CODE: u16 = 0x08;
/// Vectors that push an error code.
const WITH_ERROR: [u8; 7] = [8, 10, 11, 12, 13, 14, 17];

/// The software CPU, its RAM, and the state from which each run starts.
pub struct Guest {
    pub cpu: Box<Cpu>,
    pub state: State,
    ram: *mut u8,
    /// The next page for a table.
    next: u64,
}

/// An exception that was taken, as its frame says.
pub struct Taken {
    pub vector: u8,
    pub error: u32,
    pub rip: u64,
    pub rflags: u64,
    pub rsp: u64,
    /// Its frame is where it must be.
    pub in_place: bool,
}

impl Guest {
    /// A guest that has no user pages yet.
    pub fn new() -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, which replaces none.
        let ram = unsafe { libc::mmap(ptr::null_mut(), RAM, access, flags, -1, 0) };
        assert_ne!(ram, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        let ram: *mut u8 = ram.cast();
        // SAFETY: `ram` is a mapping of RAM bytes, never unmapped, used by this thread only.
        let cpu = unsafe { Cpu::new(ram, RAM) };
        let state = cpu.state();
        let mut guest = Self { cpu, state, ram, next: TABLES + PAGE };
        for n in 0..TABLES / PAGE {
            guest.map(KERNEL + n * PAGE, n * PAGE, 0x3);
        }
        guest.handlers();
        guest.registers();
        guest
    }

    /// Writes physical memory.
    pub fn write(&mut self, physical: u64, bytes: &[u8]) {
        assert!(physical as usize + bytes.len() <= RAM);
        // SAFETY: the end lies in the mapping, as asserted.
        let to = unsafe { self.ram.add(physical as usize) };
        // SAFETY: as above; the CPU does not run now.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        self.cpu.ram_written(physical, bytes.len());
    }

    /// Physical memory.
    pub fn read(&self, physical: u64, count: usize) -> &[u8] {
        assert!(physical as usize + count <= RAM);
        // SAFETY: the end lies in the mapping, as asserted.
        let from = unsafe { self.ram.add(physical as usize) };
        // SAFETY: as above; the CPU does not run now.
        unsafe { std::slice::from_raw_parts(from, count) }
    }

    fn read_u64(&self, physical: u64) -> u64 {
        u64::from_le_bytes(self.read(physical, 8).try_into().expect("eight bytes"))
    }

    fn write_u64(&mut self, physical: u64, value: u64) {
        self.write(physical, &value.to_le_bytes());
    }

    /// Maps a user page.
    pub fn map_user(&mut self, linear: u64, physical: u64, writable: bool) {
        self.map(linear, physical, if writable { 0x7 } else { 0x5 });
    }

    /// Four-level page tables, one after the other from TABLES.
    fn map(&mut self, linear: u64, physical: u64, bits: u64) {
        let mut table = TABLES;
        for shift in [39, 30, 21] {
            let entry = table + ((linear >> shift) & 511) * 8;
            if self.read_u64(entry) == 0 {
                assert!(self.next < FREE);
                self.write_u64(entry, self.next | 0x7);
                self.next += PAGE;
            }
            table = self.read_u64(entry) & !0xfff;
        }
        self.write_u64(table + ((linear >> 12) & 511) * 8, physical | bits);
    }

    /// GDT, IDT, TSS, and a HLT for each vector.
    fn handlers(&mut self) {
        self.write_u64(GDT + u64::from(KERNEL_CODE), 0x00af_9b00_0000_ffff);
        self.write_u64(GDT + 0x10, 0x00cf_9300_0000_ffff);
        for vector in 0..256 {
            let at = KERNEL + HANDLERS + vector * HANDLER;
            let gate =
                (at & 0xffff) | (u64::from(KERNEL_CODE) << 16) | (0xee << 40) | ((at >> 16 & 0xffff) << 48);
            self.write_u64(IDT + vector * 16, gate);
            self.write_u64(IDT + vector * 16 + 8, at >> 32);
            self.write(HANDLERS + vector * HANDLER, &[0xf4; HANDLER as usize]);
        }
        self.write_u64(TSS + 4, KERNEL + STACK_TOP);
        // No I/O bitmap: it would begin beyond the limit.
        self.write(TSS + 0x66, &0x68u16.to_le_bytes());
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

    /// The exception in whose handler the processor is.
    pub fn taken(&self, state: &State) -> Option<Taken> {
        let handlers = KERNEL + HANDLERS;
        if !(handlers..handlers + 256 * HANDLER).contains(&state.rip) {
            return None;
        }
        let vector = ((state.rip - handlers) / HANDLER) as u8;
        let with_error = WITH_ERROR.contains(&vector);
        let mut frame = STACK_TOP - if with_error { 48 } else { 40 };
        let in_place = state.gpr[4] == KERNEL + frame;
        let mut error = 0;
        if with_error {
            error = self.read_u64(frame) as u32;
            frame += 8;
        }
        let [rip, rflags, rsp] = [0, 16, 24].map(|n| self.read_u64(frame + n));
        Some(Taken { vector, error, rip, rflags, rsp, in_place })
    }
}
