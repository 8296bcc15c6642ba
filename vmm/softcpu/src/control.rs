//! Control registers: what may be written to them (SDM vol. 3, 2.5), and what follows from them, segments and
//! privilege for decoding and translation.
//!
//! The model has long mode only: leaving it (CR0.PG = 0) is #GP.

use crate::cpu::mode;
use crate::exception::Exception;
use crate::paging::{CR4_WALKED, PHYSICAL_BITS};
use crate::state::{Seg, Segment};
use crate::{Cpu, Fault};

const CR0_PE: u64 = 1;
const CR0_MP: u64 = 1 << 1;
const CR0_EM: u64 = 1 << 2;
const CR0_TS: u64 = 1 << 3;
const CR0_ET: u64 = 1 << 4;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
/// PE, MP, EM, TS, ET, NE, WP, AM, NW, CD, PG.
const CR0_KNOWN: u64 = 0xe005_003f;
const CR4_PAE: u64 = 1 << 5;
const CR4_OSFXSR: u64 = 1 << 9;
/// TSD, PSE, PAE, PGE, OSFXSR, OSXMMEXCPT, SMEP, SMAP.
const CR4_KNOWN: u64 = 1 << 2 | 1 << 4 | CR4_PAE | 1 << 7 | CR4_OSFXSR | 1 << 10 | 1 << 20 | 1 << 21;
/// CR4.TSD: RDTSC at CPL 0 only.
pub const CR4_TSD: u64 = 1 << 2;
/// EFER.SCE: SYSCALL and SYSRET.
pub const EFER_SCE: u64 = 1;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;

impl Cpu {
    /// EFER.LMA: IA-32e mode, 64-bit or compatibility.
    pub(crate) fn is_long_mode(&self) -> bool {
        self.efer & EFER_LMA != 0
    }

    /// #GP unless CPL is 0.
    pub(crate) fn must_be_supervisor(&mut self) -> Result<(), Fault> {
        if self.cpl == 0 { Ok(()) } else { self.raise(Exception::gp(0)) }
    }

    /// MOV to CR0, CR2, CR3, CR4 or CR8. The block being executed must end.
    pub(crate) fn write_control(&mut self, number: u8, value: u64) -> Result<(), Fault> {
        match number {
            0 => self.write_cr0(value),
            2 => {
                self.cr2 = value;
                Ok(())
            }
            3 if value >> PHYSICAL_BITS != 0 => self.raise(Exception::gp(0)),
            3 => {
                self.cr3 = value;
                self.update_space();
                Ok(())
            }
            4 => self.write_cr4(value),
            _ if value > 15 => self.raise(Exception::gp(0)),
            _ => {
                self.cr8 = value;
                Ok(())
            }
        }
    }

    pub(crate) fn write_cr0(&mut self, value: u64) -> Result<(), Fault> {
        let paged = value & CR0_PG != 0;
        let bad = value >> 32 != 0
            || paged && value & CR0_PE == 0
            || value & (CR0_NW | CR0_CD) == CR0_NW
            || !paged && self.is_long_mode();
        if bad {
            return self.raise(Exception::gp(0));
        }
        let enters = paged && self.cr0 & CR0_PG == 0;
        if enters && self.efer & EFER_LME != 0 {
            if self.cr4 & CR4_PAE == 0 || self.segments[Seg::Cs as usize].access & Segment::LONG != 0 {
                return self.raise(Exception::gp(0));
            }
            self.efer |= EFER_LMA;
        }
        self.cr0 = value & CR0_KNOWN | CR0_ET;
        self.flush_translations();
        self.update_mode();
        Ok(())
    }

    fn write_cr4(&mut self, value: u64) -> Result<(), Fault> {
        if value & !CR4_KNOWN != 0 || value & CR4_PAE == 0 && self.is_long_mode() {
            return self.raise(Exception::gp(0));
        }
        // A guest changes PGE to flush what is cached, which here it never sees.
        let walked = (self.cr4 ^ value) & CR4_WALKED != 0;
        self.cr4 = value;
        if walked {
            self.flush_translations();
        }
        self.update_mode();
        Ok(())
    }

    /// WRMSR of IA32_EFER. The block being executed must end.
    pub(crate) fn write_efer(&mut self, value: u64) -> Result<(), Fault> {
        let known = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
        let paged = self.cr0 & CR0_PG != 0;
        if value & !known != 0 || paged && (value ^ self.efer) & EFER_LME != 0 {
            return self.raise(Exception::gp(0));
        }
        self.efer = value & !EFER_LMA | self.efer & EFER_LMA;
        self.flush_translations();
        self.update_mode();
        Ok(())
    }

    /// CLTS. The block being executed must end.
    pub(crate) fn clear_task_switched(&mut self) {
        self.cr0 &= !CR0_TS;
        self.update_mode();
    }

    /// Derives CPL, mode, bases and address space after any of CR0, CR3, CR4, EFER, CS, a data segment, DR7
    /// or RFLAGS.AC changed. The block being executed must end.
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
            mode |= mode::TASK_SWITCHED | if self.cr0 & CR0_MP != 0 { mode::MONITORED } else { 0 };
        }
        if mode & mode::LONG == 0 {
            mode |= self.segmentation();
        }
        self.mode = mode;
        for seg in [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
            let flat = mode & mode::LONG != 0 && !matches!(seg, Seg::Fs | Seg::Gs);
            let number = seg as usize;
            self.bases[number] = if flat { 0 } else { self.segments[number].base };
        }
        self.update_breakpoints();
        self.update_space();
    }
}
