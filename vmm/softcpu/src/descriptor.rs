//! Descriptors in GDT and LDT (SDM vol. 3, 3.4.5, 3.5, 5.8.3.1 and 7.2.3).
//!
//! ```text
//! bits  0–15 limit   16–39 base   40–43 type  44 S  45–46 DPL  47 P  48–51 limit
//!      52 AVL  53 L  54 D/B  55 G  56–63 base ; 64–95 base 63–32 of a system descriptor
//! ```

use crate::exception::{Exception, is_canonical, vector};
use crate::state::{Seg, Segment};
use crate::{Cpu, Fault};

const CODE: u64 = 8 << 40;
const CONFORMING: u64 = 4 << 40;
/// Of data: writable. Of code: readable.
const WRITABLE: u64 = 2 << 40;
const ACCESSED: u64 = 1 << 40;
const CODE_OR_DATA: u64 = 1 << 44;
const PRESENT: u64 = 1 << 47;
const LONG: u64 = 1 << 53;
const BIG: u64 = 1 << 54;
const GRANULARITY: u64 = 1 << 55;

/// System descriptor types in IA-32e mode.
pub mod system {
    /// LDT.
    pub const LDT: u8 = 2;
    /// Available 64-bit TSS.
    pub const TSS_AVAILABLE: u8 = 9;
    /// Busy 64-bit TSS.
    pub const TSS_BUSY: u8 = 11;
    /// 64-bit call gate.
    pub const CALL_GATE: u8 = 12;
}

/// An error code that names a selector.
pub const fn coded_selector(selector: u16) -> u32 {
    (selector & !3) as u32
}

/// A null selector, of whatever RPL.
pub const fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// A descriptor and where it is.
#[derive(Debug, Clone, Copy)]
pub struct Descriptor {
    /// Its first eight bytes.
    pub low: u64,
    /// Linear address.
    pub at: u64,
}

impl Descriptor {
    /// Code or data, not a system descriptor.
    pub fn is_segment(self) -> bool {
        self.low & CODE_OR_DATA != 0
    }

    /// Bits of the type field.
    pub fn kind(self) -> u8 {
        (self.low >> 40 & 15) as u8
    }

    /// A code segment.
    pub fn is_code(self) -> bool {
        self.is_segment() && self.low & CODE != 0
    }

    /// A conforming code segment.
    pub fn is_conforming(self) -> bool {
        self.is_code() && self.low & CONFORMING != 0
    }

    /// A data segment, or code that may be read.
    pub fn is_readable(self) -> bool {
        self.is_segment() && (self.low & CODE == 0 || self.low & WRITABLE != 0)
    }

    /// A data segment that may be written.
    pub fn is_writable(self) -> bool {
        self.is_segment() && self.low & (CODE | WRITABLE) == WRITABLE
    }

    /// Present.
    pub fn is_present(self) -> bool {
        self.low & PRESENT != 0
    }

    /// 64-bit code.
    pub fn is_long(self) -> bool {
        self.low & LONG != 0
    }

    /// D/B.
    pub fn is_big(self) -> bool {
        self.low & BIG != 0
    }

    /// Descriptor privilege level.
    pub fn dpl(self) -> u8 {
        (self.low >> 45 & 3) as u8
    }

    /// Limit in bytes.
    pub fn limit(self) -> u32 {
        let limit = (self.low & 0xffff | self.low >> 32 & 0xf_0000) as u32;
        if self.low & GRANULARITY != 0 { limit << 12 | 0xfff } else { limit }
    }

    /// Access rights as `Segment::access` has them.
    pub fn access(self) -> u32 {
        (self.low >> 40) as u32 & 0xf0ff
    }

    /// The segment register that it loads, marked as accessed.
    pub fn segment(self, selector: u16) -> Segment {
        let base = self.low >> 16 & 0xff_ffff | self.low >> 32 & 0xff00_0000;
        let accessed = u32::from(self.is_segment());
        Segment { selector, base, limit: self.limit(), access: self.access() | accessed }
    }
}

/// What loading a null selector leaves in a segment register.
pub fn null_segment(selector: u16) -> Segment {
    Segment { selector, base: 0, limit: 0, access: Segment::UNUSABLE }
}

impl Cpu {
    /// Linear address of the descriptor of `selector`, or `None` when `bytes` bytes of it are beyond the
    /// table.
    fn descriptor_address(&self, selector: u16, bytes: u64) -> Option<u64> {
        let ldtr = &self.segments[Seg::Ldtr as usize];
        let (base, limit) = if selector & 4 == 0 {
            (self.gdtr.base, u64::from(self.gdtr.limit))
        } else if ldtr.access & Segment::PRESENT != 0 && ldtr.access & Segment::UNUSABLE == 0 {
            (ldtr.base, u64::from(ldtr.limit))
        } else {
            return None;
        };
        let offset = u64::from(selector & !7);
        (offset + bytes - 1 <= limit).then(|| base.wrapping_add(offset))
    }

    /// The descriptor of a selector that is not null, or `None` beyond the table.
    pub(crate) fn descriptor(&mut self, selector: u16) -> Result<Option<Descriptor>, Fault> {
        let Some(at) = self.descriptor_address(selector, 8) else { return Ok(None) };
        Ok(Some(Descriptor { low: self.read_system(at)?, at }))
    }

    /// The same; beyond the table is the fault `vector` with the selector as error code and `ext` in it.
    pub(crate) fn descriptor_or(&mut self, selector: u16, vector: u8, ext: u32) -> Result<Descriptor, Fault> {
        match self.descriptor(selector)? {
            Some(descriptor) => Ok(descriptor),
            None => self.raise(Exception::coded(vector, coded_selector(selector) | ext)),
        }
    }

    /// The second half of a system descriptor.
    pub(crate) fn second_half(&mut self, selector: u16) -> Result<u64, Fault> {
        match self.descriptor_address(selector, 16) {
            Some(at) => self.read_system(at.wrapping_add(8)),
            None => self.raise(Exception::gp(coded_selector(selector))),
        }
    }

    /// The register that a system descriptor of 16 bytes loads.
    pub(crate) fn system_segment(&mut self, selector: u16, low: Descriptor) -> Result<Segment, Fault> {
        let mut segment = low.segment(selector);
        if self.is_long_mode() {
            let high = self.second_half(selector)?;
            segment.base |= high << 32;
            if high >> 40 & 0x1f != 0 || !is_canonical(segment.base) {
                return self.raise(Exception::gp(coded_selector(selector)));
            }
        }
        Ok(segment)
    }

    /// Sets bits of a descriptor's type, as the processor does when it loads it.
    pub(crate) fn mark(&mut self, descriptor: Descriptor, bits: u8) -> Result<(), Fault> {
        let access = (descriptor.low >> 40) as u8;
        if access & bits == bits {
            return Ok(());
        }
        self.write_system(descriptor.at.wrapping_add(5), access | bits)
    }

    /// Sets the accessed bit of a code or data descriptor.
    pub(crate) fn mark_accessed(&mut self, descriptor: Descriptor) -> Result<(), Fault> {
        self.mark(descriptor, (ACCESSED >> 40) as u8)
    }

    /// Checks a stack segment for privilege `cpl` (SDM vol. 2, MOV): the descriptor, or #GP, #TS or #SS.
    pub(crate) fn stack_segment(
        &mut self,
        selector: u16,
        cpl: u8,
        descriptor: Descriptor,
    ) -> Result<Segment, Fault> {
        let code = coded_selector(selector);
        if (selector & 3) as u8 != cpl || !descriptor.is_writable() || descriptor.dpl() != cpl {
            return self.raise(Exception::gp(code));
        }
        if !descriptor.is_present() {
            return self.raise(Exception::coded(vector::SS, code));
        }
        Ok(descriptor.segment(selector))
    }
}
