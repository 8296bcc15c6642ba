//! One x87 instruction on the host's unit: the guest's state in, the instruction, the state out.
//!
//! So every result, flag, tag and stack fault is the hardware's (transcendental functions differ between
//! makers: who runs a pair compares the two hosts').

use std::arch::asm;

use crate::exec::sse_control;
use crate::state::Fpu;

/// An FXSAVE area (SDM vol. 1, 10.5.1).
#[repr(C, align(16))]
pub struct Image {
    cw: u16,
    sw: u16,
    tag: u8,
    zero: u8,
    fop: u16,
    fip: u64,
    fdp: u64,
    mxcsr: u32,
    mask: u32,
    st: [[u8; 16]; 8],
    rest: [u8; 352],
}

impl Image {
    /// The area that describes `fpu`.
    pub fn new(fpu: &Fpu) -> Self {
        let mut image = Self {
            cw: fpu.cw,
            sw: fpu.sw,
            tag: fpu.tag,
            zero: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            mxcsr: sse_control::read(),
            mask: 0,
            st: [[0; 16]; 8],
            rest: [0; 352],
        };
        for (slot, value) in image.st.iter_mut().zip(&fpu.st) {
            slot[..10].copy_from_slice(value);
        }
        image
    }

    /// Takes over what the instruction left, pointers and opcode excepted.
    pub fn store(&self, fpu: &mut Fpu) {
        (fpu.cw, fpu.sw, fpu.tag) = (self.cw, self.sw, self.tag);
        for (value, slot) in fpu.st.iter_mut().zip(&self.st) {
            value.copy_from_slice(&slot[..10]);
        }
    }
}

/// Executes an instruction without memory operand: status flags in and out.
pub type RegisterForm = fn(&mut Image, u64) -> u64;
/// Executes an instruction on a memory operand of at most 108 bytes.
pub type MemoryForm = fn(&mut Image, &mut [u8; 108]);

fn register_form<const A: u8, const B: u8>(image: &mut Image, status: u64) -> u64 {
    let mut flags = status & crate::flags::STATUS;
    // SAFETY: the two bytes are an x87 instruction on registers, all of which are declared; the area is 512
    // bytes, aligned, with a valid MXCSR; FNINIT leaves the unit as the ABI wants it.
    unsafe {
        asm!(
            "fxrstor64 [{image}]", "push {flags}", "popfq", ".byte {a}, {b}", "pushfq", "pop {flags}",
            "fxsave64 [{image}]", "fninit",
            a = const A, b = const B, image = in(reg) std::ptr::from_mut(image), flags = inout(reg) flags,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
            out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _, out("st(0)") _, out("st(1)") _,
            out("st(2)") _, out("st(3)") _, out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
    }
    flags & crate::flags::STATUS
}

/// With modrm for [rdi]; `P` is a prefix: 0x66, or 0x3e (DS, without effect).
fn memory_form<const P: u8, const A: u8, const REG: u8>(image: &mut Image, operand: &mut [u8; 108]) {
    // SAFETY: the bytes are an x87 instruction on at most 108 bytes at RDI; the rest as in `register_form`.
    unsafe {
        asm!(
            "fxrstor64 [{image}]", ".byte {p}, {a}, ({reg} << 3) | 7", "fxsave64 [{image}]", "fninit",
            p = const P, a = const A, reg = const REG, image = in(reg) std::ptr::from_mut(image),
            in("rdi") operand.as_mut_ptr(),
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
            out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _, out("st(0)") _, out("st(1)") _,
            out("st(2)") _, out("st(3)") _, out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
    }
}

macro_rules! register_row {
    ($a:literal) => {
        [
            register_form::<$a, 192>,
            register_form::<$a, 193>,
            register_form::<$a, 194>,
            register_form::<$a, 195>,
            register_form::<$a, 196>,
            register_form::<$a, 197>,
            register_form::<$a, 198>,
            register_form::<$a, 199>,
            register_form::<$a, 200>,
            register_form::<$a, 201>,
            register_form::<$a, 202>,
            register_form::<$a, 203>,
            register_form::<$a, 204>,
            register_form::<$a, 205>,
            register_form::<$a, 206>,
            register_form::<$a, 207>,
            register_form::<$a, 208>,
            register_form::<$a, 209>,
            register_form::<$a, 210>,
            register_form::<$a, 211>,
            register_form::<$a, 212>,
            register_form::<$a, 213>,
            register_form::<$a, 214>,
            register_form::<$a, 215>,
            register_form::<$a, 216>,
            register_form::<$a, 217>,
            register_form::<$a, 218>,
            register_form::<$a, 219>,
            register_form::<$a, 220>,
            register_form::<$a, 221>,
            register_form::<$a, 222>,
            register_form::<$a, 223>,
            register_form::<$a, 224>,
            register_form::<$a, 225>,
            register_form::<$a, 226>,
            register_form::<$a, 227>,
            register_form::<$a, 228>,
            register_form::<$a, 229>,
            register_form::<$a, 230>,
            register_form::<$a, 231>,
            register_form::<$a, 232>,
            register_form::<$a, 233>,
            register_form::<$a, 234>,
            register_form::<$a, 235>,
            register_form::<$a, 236>,
            register_form::<$a, 237>,
            register_form::<$a, 238>,
            register_form::<$a, 239>,
            register_form::<$a, 240>,
            register_form::<$a, 241>,
            register_form::<$a, 242>,
            register_form::<$a, 243>,
            register_form::<$a, 244>,
            register_form::<$a, 245>,
            register_form::<$a, 246>,
            register_form::<$a, 247>,
            register_form::<$a, 248>,
            register_form::<$a, 249>,
            register_form::<$a, 250>,
            register_form::<$a, 251>,
            register_form::<$a, 252>,
            register_form::<$a, 253>,
            register_form::<$a, 254>,
            register_form::<$a, 255>,
        ]
    };
}

macro_rules! memory_row {
    ($p:literal, $a:literal) => {
        [
            memory_form::<$p, $a, 0>,
            memory_form::<$p, $a, 1>,
            memory_form::<$p, $a, 2>,
            memory_form::<$p, $a, 3>,
            memory_form::<$p, $a, 4>,
            memory_form::<$p, $a, 5>,
            memory_form::<$p, $a, 6>,
            memory_form::<$p, $a, 7>,
        ]
    };
}

/// By first byte minus 0xd8 and second byte minus 0xc0.
pub static REGISTER_FORMS: [[RegisterForm; 64]; 8] = [
    register_row!(0xd8),
    register_row!(0xd9),
    register_row!(0xda),
    register_row!(0xdb),
    register_row!(0xdc),
    register_row!(0xdd),
    register_row!(0xde),
    register_row!(0xdf),
];

/// By first byte minus 0xd8 and the register field of modrm.
pub static MEMORY_FORMS: [[MemoryForm; 8]; 8] = [
    memory_row!(0x3e, 0xd8),
    memory_row!(0x3e, 0xd9),
    memory_row!(0x3e, 0xda),
    memory_row!(0x3e, 0xdb),
    memory_row!(0x3e, 0xdc),
    memory_row!(0x3e, 0xdd),
    memory_row!(0x3e, 0xde),
    memory_row!(0x3e, 0xdf),
];

/// The same with 16-bit operand size, which FLDENV, FNSTENV, FRSTOR and FNSAVE look at.
pub static SHORT_FORMS: [[MemoryForm; 8]; 2] = [memory_row!(0x66, 0xd9), memory_row!(0x66, 0xdd)];
