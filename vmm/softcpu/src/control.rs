//! What follows from control registers, segments and privilege for decoding and translation.

use crate::Cpu;
use crate::cpu::mode;
use crate::state::{Seg, Segment};

const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR4_OSFXSR: u64 = 1 << 9;
const EFER_LMA: u64 = 1 << 10;

impl Cpu {
    /// Derives CPL, mode, bases and address space after any of CR0, CR3, CR4, EFER, CS, a data segment or
    /// RFLAGS.AC changed. The block being executed must end.
    pub(crate) fn update_mode(&mut self) {
        let cs = self.segments[Seg::Cs as usize];
        self.cpl = (cs.selector & 3) as u8;
        let mut mode = if self.efer & EFER_LMA != 0 && cs.access & Segment::LONG != 0 {
            mode::LONG
        } else if cs.access & Segment::BIG != 0 {
            mode::BIG
        } else {
            0
        };
        if self.cr0 & CR0_EM != 0 {
            mode |= mode::EMULATION | mode::NO_SSE;
        }
        if self.cr4 & CR4_OSFXSR == 0 {
            mode |= mode::NO_SSE;
        }
        if self.cr0 & CR0_TS != 0 {
            mode |= mode::TASK_SWITCHED;
        }
        self.mode = mode;
        for seg in [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
            let flat = mode & mode::LONG != 0 && !matches!(seg, Seg::Fs | Seg::Gs);
            let number = seg as usize;
            self.bases[number] = if flat { 0 } else { self.segments[number].base };
        }
        self.update_space();
    }
}
