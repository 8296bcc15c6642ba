//! Runs one instruction in the software CPU, as user code of a small guest whose code and data lie at the
//! same linear addresses as in the host process.
//!
//! ```text
//! linear                      physical
//! CODE, 2 pages        user   0x2_0000, 0x2_2000      (not adjacent, so that crossings are translated)
//! DATA, 8 pages        user   0x3_0000 - 0x2000 * n   (3 of them absent, one read-only)
//! KERNEL + physical    system GDT, IDT, TSS, handlers (one HLT a vector), stack
//! ```

use crate::state::{CODE, CODE_BYTES, DATA, DATA_BYTES, End, Outcome, PAGE, PAGES, Stop, User, Vector};
use softcpu::{Cpu, Exit, Segment, State};
use std::ptr;

const RAM: usize = 0x20_0000;
const KERNEL: u64 = 0xffff_8000_0000_0000;
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const HANDLERS: u64 = 0x4000;
/// Bytes of each handler.
const HANDLER: u64 = 16;
const STACK_TOP: u64 = 0x6000;
const TABLES: u64 = 0x8000;
const CODE_AT: [u64; 2] = [0x2_0000, 0x2_2000];
const KERNEL_CODE: u16 = 0x08;

/// Vectors that push an error code.
const WITH_ERROR: [u8; 7] = [8, 10, 11, 12, 13, 14, 17];

/// The software CPU as an executor.
pub struct Soft {
    cpu: Box<Cpu>,
    ram: *mut u8,
    state: State,
    base: Vec<u8>,
    data: Vec<u8>,
}

/// Physical address of a data page.
fn data_at(page: u64) -> u64 {
    0x3_0000 - 0x2000 * page
}

impl Soft {
    /// A guest whose data pages hold `base`; `selectors` are the host's of user code and data, and of FS
    /// and GS none.
    pub fn new(base: &[u8], selectors: (u16, u16)) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, which replaces none.
        let ram = unsafe { libc::mmap(ptr::null_mut(), RAM, access, flags, -1, 0) };
        assert_ne!(ram, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        let ram: *mut u8 = ram.cast();
        // SAFETY: `ram` is a mapping of RAM bytes, never unmapped, used by this thread only.
        let cpu = unsafe { Cpu::new(ram, RAM) };
        let mut soft =
            Self { cpu, ram, state: State::default(), base: base.to_vec(), data: vec![0; DATA_BYTES] };
        soft.tables();
        soft.handlers();
        for (slot, (page, _)) in PAGES.iter().enumerate() {
            soft.write(data_at(*page), &base[slot * PAGE as usize..][..PAGE as usize]);
        }
        soft.state = soft.cpu.state();
        soft.registers(selectors);
        soft
    }

    fn write(&mut self, physical: u64, bytes: &[u8]) {
        assert!(physical as usize + bytes.len() <= RAM);
        // SAFETY: the end lies in the mapping, as asserted.
        let to = unsafe { self.ram.add(physical as usize) };
        // SAFETY: as above; the CPU does not run now.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        self.cpu.ram_written(physical, bytes.len());
    }

    fn read(&self, physical: u64, count: usize) -> &[u8] {
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

    /// Four-level page tables, one after the other from TABLES.
    fn tables(&mut self) {
        let mut next = TABLES + PAGE;
        for n in 0..TABLES / PAGE {
            self.map(KERNEL + n * PAGE, n * PAGE, 0x3, &mut next);
        }
        for (n, at) in (0..).zip(CODE_AT) {
            self.map(CODE + n * PAGE, at, 0x7, &mut next);
        }
        for (page, writable) in PAGES {
            self.map(DATA + page * PAGE, data_at(page), if writable { 0x7 } else { 0x5 }, &mut next);
        }
        assert!(next <= CODE_AT[0]);
    }

    fn map(&mut self, linear: u64, physical: u64, bits: u64, next: &mut u64) {
        let mut table = TABLES;
        for shift in [39, 30, 21] {
            let entry = table + ((linear >> shift) & 511) * 8;
            if self.read_u64(entry) == 0 {
                self.write_u64(entry, *next | 0x7);
                *next += PAGE;
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

    fn registers(&mut self, (code, data): (u16, u16)) {
        let state = &mut self.state;
        let flat = |selector, access| Segment { selector, base: 0, limit: u32::MAX, access };
        let none = Segment { selector: 0, base: 0, limit: 0, access: 1 << 16 };
        state.segments = [none; 8];
        state.segments[1] = flat(code, 0xa0fb);
        state.segments[2] = flat(data, 0xc0f3);
        state.segments[4] = flat(0, 0xc0f3);
        state.segments[5] = flat(0, 0xc0f3);
        state.segments[7] = Segment { selector: 0x18, base: KERNEL + TSS, limit: 0x67, access: 0x8b };
        state.gdtr.base = KERNEL + GDT;
        state.gdtr.limit = 0xff;
        state.idtr.base = KERNEL + IDT;
        state.idtr.limit = 0xfff;
        // PG, AM, WP, NE, ET, MP, PE; PAE, PGE, OSFXSR, OSXMMEXCPT; NXE, LMA, LME, SCE.
        state.cr0 = 0x8005_0033;
        state.cr3 = TABLES;
        state.cr4 = 0x6a0;
        state.efer = 0xd01;
    }

    /// Runs `vector`; the data bytes stay as it leaves them until `restore`.
    pub fn run(&mut self, vector: &Vector) -> Outcome {
        let mut code = vector.code.clone();
        code.push(0xcc);
        code.truncate(CODE_BYTES - (vector.user.rip - CODE) as usize);
        self.write_linear(vector.user.rip, &code);
        for (at, bytes) in &vector.patches {
            self.write_linear(*at, bytes);
        }
        self.load(&vector.user);
        let start = self.cpu.retired();
        let budget = if vector.stop == Stop::Step { 1 } else { 0x4000 };
        let exit = self.cpu.run(start + budget);
        let outcome = self.outcome(vector, &exit);
        for (slot, (page, _)) in PAGES.iter().enumerate() {
            let bytes = self.read(data_at(*page), PAGE as usize).to_vec();
            self.data[slot * PAGE as usize..][..PAGE as usize].copy_from_slice(&bytes);
        }
        outcome
    }

    /// Writes where code or data lies, page by page.
    fn write_linear(&mut self, linear: u64, bytes: &[u8]) {
        let mut at = linear;
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = rest.len().min((PAGE - at % PAGE) as usize);
            let page = if (CODE..CODE + CODE_BYTES as u64).contains(&at) {
                CODE_AT[((at - CODE) / PAGE) as usize]
            } else {
                data_at((at - DATA) / PAGE)
            };
            self.write(page + at % PAGE, &rest[..count]);
            rest = &rest[count..];
            at += count as u64;
        }
    }

    fn load(&mut self, user: &User) {
        let state = &mut self.state;
        state.gpr = user.gpr;
        state.rip = user.rip;
        state.rflags = user.rflags | 0x202;
        state.segments[4].base = user.fs_base;
        state.segments[5].base = user.gs_base;
        state.fpu.cw = user.cw;
        state.fpu.sw = user.sw;
        state.fpu.tag = user.tag;
        state.fpu.st = user.st;
        state.xmm = user.xmm;
        state.mxcsr = user.mxcsr;
        self.cpu.set_state(state);
    }

    fn outcome(&self, vector: &Vector, exit: &Exit) -> Outcome {
        let state = self.cpu.state();
        let mut user = User {
            gpr: state.gpr,
            rip: state.rip,
            rflags: state.rflags,
            fs_base: state.segments[4].base,
            gs_base: state.segments[5].base,
            cw: state.fpu.cw,
            sw: state.fpu.sw,
            tag: state.fpu.tag,
            st: state.fpu.st,
            xmm: state.xmm,
            mxcsr: state.mxcsr,
        };
        let handlers = KERNEL + HANDLERS;
        let handled = (handlers..handlers + 256 * HANDLER).contains(&state.rip);
        if !handled {
            let end = match (exit, vector.stop) {
                (Exit::Reached, Stop::Step) => End::Retired,
                _ => End::Lost,
            };
            return Outcome { end, user };
        }
        let number = ((state.rip - handlers) / HANDLER) as u8;
        let with_error = WITH_ERROR.contains(&number);
        let mut frame = STACK_TOP - if with_error { 48 } else { 40 };
        if state.gpr[4] != KERNEL + frame {
            return Outcome { end: End::Lost, user };
        }
        let mut error = 0;
        if with_error {
            error = self.read_u64(frame) as u32;
            frame += 8;
        }
        let [rip, _, rflags, rsp, _] = [0, 8, 16, 24, 32].map(|n| self.read_u64(frame + n));
        (user.rip, user.rflags, user.gpr[4]) = (rip, rflags, rsp);
        let cr2 = if number == 14 { state.cr2 } else { 0 };
        let mut end = End::Fault { vector: number, error, cr2 };
        if number == 3 && vector.stop == Stop::Breakpoint {
            user.rip -= 1;
            end = End::Retired;
        }
        Outcome { end, user }
    }

    /// The data bytes after the last run.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Puts the usual data bytes back.
    pub fn restore(&mut self) {
        for (slot, (page, _)) in PAGES.iter().enumerate() {
            let range = slot * PAGE as usize..(slot + 1) * PAGE as usize;
            if self.data[range.clone()] != self.base[range.clone()] {
                let bytes = self.base[range].to_vec();
                self.write(data_at(*page), &bytes);
            }
        }
    }
}
