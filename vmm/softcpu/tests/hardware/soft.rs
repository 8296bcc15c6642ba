//! Runs one instruction in the software CPU, as user code of a small guest (`guest`) whose code and data lie
//! at the same linear addresses as in the host process.
//!
//! ```text
//! linear                      physical
//! CODE, 2 pages        user   0x2_0000, 0x2_2000      (not adjacent, so that crossings are translated)
//! DATA, 8 pages        user   0x3_0000 - 0x2000 * n   (3 of them absent, one read-only)
//! ```

use crate::guest::{FREE, Guest};
use crate::state::{CODE, CODE_BYTES, DATA, DATA_BYTES, End, Outcome, PAGE, PAGES, Stop, User, Vector};
use softcpu::{Exit, Segment};

const CODE_AT: [u64; 2] = [FREE, FREE + 0x2000];

/// The software CPU as an executor.
pub struct Soft {
    guest: Guest,
    base: Vec<u8>,
    data: Vec<u8>,
}

/// Physical address of a data page.
fn data_at(page: u64) -> u64 {
    FREE + 0x1_0000 - 0x2000 * page
}

impl Soft {
    /// A guest whose data pages hold `base`; `selectors` are the host's of user code and data, and of FS
    /// and GS none.
    pub fn new(base: &[u8], (code, data): (u16, u16)) -> Self {
        let mut guest = Guest::new();
        for (n, at) in (0..).zip(CODE_AT) {
            guest.map_user(CODE + n * PAGE, at, true);
        }
        for (slot, (page, writable)) in PAGES.iter().enumerate() {
            guest.map_user(DATA + page * PAGE, data_at(*page), *writable);
            guest.write(data_at(*page), &base[slot * PAGE as usize..][..PAGE as usize]);
        }
        let flat = |selector, access| Segment { selector, base: 0, limit: u32::MAX, access };
        guest.state.segments[1] = flat(code, 0xa0fb);
        guest.state.segments[2] = flat(data, 0xc0f3);
        guest.state.segments[4] = flat(0, 0xc0f3);
        guest.state.segments[5] = flat(0, 0xc0f3);
        Self { guest, base: base.to_vec(), data: vec![0; DATA_BYTES] }
    }

    /// Every block is translated before it runs.
    pub fn translate(&mut self) {
        assert!(self.guest.cpu.set_translation(Some(1)), "the host lets code be executed");
    }

    /// How many blocks were translated.
    pub fn translations(&self) -> u64 {
        self.guest.cpu.statistics().translations
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
        let start = self.guest.cpu.retired();
        let budget = if vector.stop == Stop::Step { 1 } else { 0x4000 };
        let exit = self.guest.cpu.run(start + budget);
        let outcome = self.outcome(vector, &exit);
        for (slot, (page, _)) in PAGES.iter().enumerate() {
            let bytes = self.guest.read(data_at(*page), PAGE as usize).to_vec();
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
            self.guest.write(page + at % PAGE, &rest[..count]);
            rest = &rest[count..];
            at += count as u64;
        }
    }

    fn load(&mut self, user: &User) {
        let state = &mut self.guest.state;
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
        self.guest.cpu.set_state(state);
    }

    fn outcome(&self, vector: &Vector, exit: &Exit) -> Outcome {
        let state = self.guest.cpu.state();
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
        let Some(taken) = self.guest.taken(&state) else {
            let end = match (exit, vector.stop) {
                (Exit::Reached, Stop::Step) => End::Retired,
                _ => End::Lost,
            };
            return Outcome { end, user };
        };
        if !taken.in_place {
            return Outcome { end: End::Lost, user };
        }
        (user.rip, user.rflags, user.gpr[4]) = (taken.rip, taken.rflags, taken.rsp);
        let number = taken.vector;
        let cr2 = if number == 14 { state.cr2 } else { 0 };
        let mut end = End::Fault { vector: number, error: taken.error, cr2 };
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
                self.guest.write(data_at(*page), &bytes);
            }
        }
    }
}
