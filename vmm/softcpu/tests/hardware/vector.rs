//! A vector of a form: the instruction's registers, memory and control words, with every address that it can
//! reach in the test's own pages, or where neither the host process nor the guest has anything.

use crate::encode::{Encoded, Shape, bit_offset_register, encode};
use crate::forms::{Form, Prefix, is_stack, is_string};
use crate::state::{DATA, PAGE, Stop, User, Vector, data_offset};
use crate::values::Random;
use iced_x86::{Mnemonic, Mnemonic as M, OpKind, Register};

/// Vectors with seeds that differ in these bits only have the same instruction.
const SAME_INSTRUCTION: u64 = 3;

/// Arithmetic flags; DF; AC.
const ARITHMETIC: u64 = 0x8d5;
const DIRECTION: u64 = 1 << 10;
const ALIGNMENT: u64 = 1 << 18;

/// Of the lower half of the linear addresses.
const END: u64 = 0x8000_0000_0000;

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

/// The vector of `form` for `seed`: a function of these two alone.
pub fn make(form: &Form, seed: u64, bases: bool) -> (Encoded, Vector) {
    let encoded = encode(form, &mut Random::new(seed & !SAME_INSTRUCTION), bases);
    let mut random = Random::new(seed.rotate_left(32) ^ 0x5bd1_e995);
    let mut maker = Maker { form, encoded: &encoded, user: User::default(), patches: Vec::new() };
    maker.registers(&mut random);
    maker.dividend(&mut random);
    maker.addresses(&mut random);
    maker.operands(&mut random);
    let stop = if form.whole || matches!(form.code.mnemonic(), Mnemonic::Pushf | Mnemonic::Pushfq) {
        Stop::Breakpoint
    } else {
        Stop::Step
    };
    let Maker { user, patches, .. } = maker;
    let vector = Vector { code: encoded.bytes.clone(), user, patches, stop };
    (encoded, vector)
}

/// An address for an operand of `size` bytes: mostly present, sometimes at each kind of edge.
pub fn target(random: &mut Random, size: u64, low: bool) -> u64 {
    let page = |n: u64| DATA + n * PAGE;
    // So that the operand begins 0 to `size` bytes before a page.
    let crossing = |random: &mut Random, n: u64| page(n) - random.below(size + 1);
    match random.below(32) {
        0..10 => page(1) + 0x100 + random.below(0x180) * 16,
        10..18 => page(1) + 0x100 + random.below(0x1800),
        18..21 => crossing(random, 2),
        21..24 => crossing(random, 3),
        24 => crossing(random, 1),
        25 | 26 => crossing(random, 5),
        27 => crossing(random, 6),
        28 => page(5) + random.below(0xe00),
        29 => page(random.pick(&[0, 3, 7])) + random.below(0xe00),
        _ if low => 0xf000_0000 + random.below(0x100_0000),
        30 => 0x3000_0000_0000 + random.below(0x1000_0000_0000),
        _ if random.one_in(8) => END - random.below(size + 1),
        _ => END + random.below(0x7fff_0000_0000_0000),
    }
}

/// Instructions whose operand is transferred in parts, in an order that each CPU chooses.
pub fn in_parts(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        M::Fldenv | M::Frstor | M::Fxrstor | M::Fxrstor64 | M::Fnstenv | M::Fnsave | M::Fxsave | M::Fxsave64
    )
}

/// Where each CPU has its own order or way of checking alignment.
fn any_alignment(mnemonic: Mnemonic) -> bool {
    in_parts(mnemonic)
        || matches!(mnemonic, M::Maskmovdqu | M::Maskmovq | M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq)
}

/// Whether a data byte is there and can be written.
fn data_writable(address: u64) -> bool {
    data_offset(address).is_some() && address.wrapping_sub(DATA) / PAGE != 5
}

struct Maker<'a> {
    form: &'a Form,
    encoded: &'a Encoded,
    user: User,
    patches: Vec<(u64, Vec<u8>)>,
}

impl Maker<'_> {
    fn registers(&mut self, random: &mut Random) {
        let user = &mut self.user;
        user.rip = self.encoded.at;
        user.gpr = std::array::from_fn(|_| random.integer());
        user.xmm = std::array::from_fn(|_| random.vector());
        user.st = std::array::from_fn(|_| random.extended());
        user.rflags = random.bits() & ARITHMETIC;
        let string = is_string(self.form.code);
        if random.one_in(if string { 3 } else { 8 }) {
            user.rflags |= DIRECTION;
        }
        if random.one_in(32) && !any_alignment(self.form.code.mnemonic()) {
            user.rflags |= ALIGNMENT;
        }
        user.cw = 0x40
            | (random.bits() as u16 & 0x1f00)
            | if random.one_in(3) { random.bits() as u16 & 0x3f } else { 0x3f };
        // Exceptions that wait to be reported, rarely: they stop every x87 instruction.
        let mut flags = random.bits() as u16 & 0x7f;
        if !random.one_in(10) {
            flags &= user.cw & 0x3f | 0x40;
        }
        if random.one_in(2) {
            flags = 0;
        }
        let summary = if flags & 0x3f & !user.cw != 0 { 0x8080 } else { 0 };
        user.sw = flags | summary | (random.bits() as u16 & 0x7f00);
        user.tag = match random.below(8) {
            0..4 => 0xff,
            4 => 0,
            _ => random.bits() as u8,
        };
        let masks = if random.one_in(3) { random.bits() as u32 & 0x1f80 } else { 0x1f80 };
        user.mxcsr = masks | (random.bits() as u32 & if random.one_in(2) { 0x6000 } else { 0x603f });
        if random.one_in(4) {
            user.mxcsr |= random.bits() as u32 & 0x8040;
        }
    }

    /// A dividend whose quotient fits more often than that of uniform bits.
    fn dividend(&mut self, random: &mut Random) {
        if !matches!(self.form.code.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) {
            return;
        }
        let gpr = &mut self.user.gpr;
        match random.below(4) {
            0 => gpr[RDX] = 0,
            1 => gpr[RDX] = ((gpr[RAX] as i64) >> 63) as u64,
            2 => gpr[RDX] = random.below(100),
            _ => gpr[RAX] = i64::from(gpr[RAX] as i8) as u64,
        }
    }

    /// Bytes of the explicit memory operand.
    fn operand_size(&self) -> u64 {
        (self.encoded.instruction.memory_size().size() as u64).clamp(1, 512)
    }

    /// An address for the operand.
    fn target(&self, random: &mut Random, low: bool) -> u64 {
        let size = self.operand_size();
        loop {
            let at = target(random, size, low);
            let here = match self.form.code.mnemonic() {
                // Whether bytes that are not stored can fault is the CPU's choice.
                Mnemonic::Maskmovdqu | Mnemonic::Maskmovq => {
                    data_writable(at) && data_writable(at + size - 1)
                }
                // Transferred in parts: the first to fault is the CPU's choice.
                _ if size == 10 || in_parts(self.form.code.mnemonic()) => at + size <= END || at > END,
                _ => true,
            };
            if here {
                return at;
            }
        }
    }

    fn addresses(&mut self, random: &mut Random) {
        let instruction = &self.encoded.instruction;
        let code = self.form.code;
        let low = self.encoded.short;
        let segment = self.segment_base(random);
        let put = |maker: &mut Self, register: usize, address: u64, segment: u64, random: &mut Random| {
            let offset = address.wrapping_sub(segment);
            maker.user.gpr[register] =
                if low { (random.bits() << 32) | (offset & 0xffff_ffff) } else { offset };
        };
        if is_stack(code) {
            self.user.gpr[RSP] = target(random, 8, false);
            self.patch(self.user.gpr[RSP], 8, random);
        }
        if matches!(code.mnemonic(), Mnemonic::Leave | Mnemonic::Enter) {
            self.user.gpr[RBP] = target(random, 8, false);
        }
        if code.mnemonic() == Mnemonic::Ret {
            self.return_address(random);
        }
        let writes = !matches!(code.mnemonic(), M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq);
        for n in 0..instruction.op_count() {
            let (register, segment) = match instruction.op_kind(n) {
                OpKind::MemorySegRSI | OpKind::MemorySegESI => (RSI, segment),
                OpKind::MemoryESRDI | OpKind::MemoryESEDI => (RDI, 0),
                OpKind::MemorySegRDI | OpKind::MemorySegEDI => (RDI, segment),
                _ => continue,
            };
            let at = loop {
                // Which of the two operands of CMPS is read first is the CPU's choice: the second is there.
                let at = self.target(random, low);
                let second = n == 1 && instruction.is_string_instruction() && !writes;
                if !second || data_writable(at) && data_writable(at + self.operand_size() - 1) {
                    break at;
                }
            };
            put(self, register, at, segment, random);
            self.patch(at, self.operand_size(), random);
        }
        if code.mnemonic() == Mnemonic::Xlatb {
            let at = target(random, 1, low);
            let offset = at.wrapping_sub(self.user.gpr[RAX] & 0xff);
            put(self, RBX, offset, segment, random);
            self.patch(at, 1, random);
        }
        if let Some(shape) = self.encoded.shape {
            self.explicit(shape, segment, random);
        }
        self.repeat_count(random);
    }

    /// Bases of FS and GS where the instruction uses them: the base of the segment used.
    fn segment_base(&mut self, random: &mut Random) -> u64 {
        let prefix = self.encoded.instruction.segment_prefix();
        if !matches!(prefix, Register::FS | Register::GS) {
            return 0;
        }
        // An address that is part of the instruction stays near the pages.
        let fixed = self.encoded.shape.is_some_and(|shape| shape.fixed);
        let most = if fixed { 0x2000 } else { 0x1fff_0000 };
        let (base, other) = (1 + random.below(most), 1 + random.below(most));
        let fs = prefix == Register::FS;
        (self.user.fs_base, self.user.gs_base) = if fs { (base, other) } else { (other, base) };
        base
    }

    /// Registers of an explicit memory operand.
    fn explicit(&mut self, shape: Shape, segment: u64, random: &mut Random) {
        let size = self.operand_size();
        let low = self.encoded.short;
        let bits = if low { 0xffff_ffff } else { u64::MAX };
        if shape.fixed {
            let address = shape.displacement as u64 & bits;
            self.patch(address.wrapping_add(segment), size, random);
            self.small_bit_offset(random);
            return;
        }
        let at = self.target(random, low);
        let offset = at.wrapping_sub(segment).wrapping_sub(self.bit_offset(shape));
        let from_displacement = offset.wrapping_sub(shape.displacement as u64);
        let garbage = if low { random.bits() << 32 } else { 0 };
        match (shape.base, shape.index) {
            (Some(base), index) => {
                let scaled = index.map_or(0, |n| self.user.gpr[n].wrapping_mul(shape.scale.into()));
                self.user.gpr[base] = (from_displacement.wrapping_sub(scaled) & bits) | garbage;
            }
            (None, Some(index)) => {
                let scaled = from_displacement & bits;
                self.user.gpr[index] = (((scaled as i64) / i64::from(shape.scale)) as u64 & bits) | garbage;
            }
            (None, None) => {}
        }
        // Without a base the address is a multiple of the scale, and so not quite the target.
        let at = match shape.index.filter(|_| shape.base.is_none()) {
            Some(index) => {
                let scaled = self.user.gpr[index].wrapping_mul(shape.scale.into());
                (scaled.wrapping_add(shape.displacement as u64) & bits).wrapping_add(segment)
            }
            None => at,
        };
        self.patch(at, size, random);
    }

    /// How far the bit offset register moves the operand of BT, BTS, BTR and BTC.
    fn bit_offset(&mut self, shape: Shape) -> u64 {
        let Some((register, width)) = bit_offset_register(&self.encoded.instruction) else { return 0 };
        if shape.base.is_none() {
            self.user.gpr[register] %= 1024;
            return 0;
        }
        let value = self.user.gpr[register];
        let signed = match width {
            16 => i64::from(value as i16),
            32 => i64::from(value as i32),
            _ => value as i64,
        };
        (signed.div_euclid(width) * (width / 8)) as u64
    }

    fn small_bit_offset(&mut self, random: &mut Random) {
        if let Some((register, _)) = bit_offset_register(&self.encoded.instruction) {
            let bits = random.below(64);
            self.user.gpr[register] = if random.one_in(2) { bits } else { bits.wrapping_neg() };
        }
    }

    fn return_address(&mut self, random: &mut Random) {
        let address = match random.below(8) {
            0 => random.bits(),
            _ => random.below(0x7fff_ffff_f000),
        };
        self.patches.clear();
        self.patch_with(self.user.gpr[RSP], address.to_le_bytes().to_vec());
    }

    fn repeat_count(&mut self, random: &mut Random) {
        let counted = matches!(
            self.form.code.mnemonic(),
            M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz
        );
        if counted && random.one_in(2) {
            let above = random.integer() << 32;
            self.user.gpr[RCX] = random.pick(&[0, 1, 2, u64::MAX, above, above | 1]);
        }
        if self.form.prefix != Prefix::None && is_string(self.form.code) {
            let count = match random.below(8) {
                0 => random.pick(&[0, 1, 2]),
                1 => random.integer(),
                2..5 => random.below(300),
                _ => random.below(20),
            };
            self.user.gpr[RCX] = match (self.encoded.short, random.one_in(2)) {
                (true, true) => (random.bits() << 32) | (count & 0xffff_ffff),
                _ => count,
            };
        }
    }

    /// Random bytes for an operand, as far as it lies in writable pages.
    fn patch(&mut self, at: u64, size: u64, random: &mut Random) {
        let bytes = self.operand_bytes(size, random);
        self.patch_with(at, bytes);
    }

    fn patch_with(&mut self, at: u64, bytes: Vec<u8>) {
        for (n, byte) in bytes.into_iter().enumerate() {
            let address = at.wrapping_add(n as u64);
            if !data_writable(address) {
                continue;
            }
            match self.patches.last_mut() {
                Some((from, run)) if *from + run.len() as u64 == address => run.push(byte),
                _ => self.patches.push((address, vec![byte])),
            }
        }
    }

    fn operand_bytes(&self, size: u64, random: &mut Random) -> Vec<u8> {
        let mut bytes = random.bytes(size as usize);
        let control = |random: &mut Random| (random.bits() as u32 & 0xffff).to_le_bytes();
        match self.form.code.mnemonic() {
            // Reserved bits in a few cases only; bit 17 is one vendor's.
            Mnemonic::Ldmxcsr if !random.one_in(8) => bytes.copy_from_slice(&control(random)),
            Mnemonic::Ldmxcsr => bytes[2] &= !2,
            Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => {
                bytes[26] &= !2;
                if !random.one_in(8) {
                    bytes[24..28].copy_from_slice(&control(random));
                }
            }
            _ => {}
        }
        bytes
    }

    /// Values that a uniform choice would hardly ever hit.
    fn operands(&mut self, random: &mut Random) {
        match self.form.code.mnemonic() {
            Mnemonic::Div | Mnemonic::Idiv if random.one_in(2) => self.quotient(random),
            Mnemonic::Cmpxchg if random.one_in(2) => {
                let accumulator = self.user.gpr[RAX].to_le_bytes();
                match self.encoded.instruction.op0_register() {
                    Register::None => self.overwrite(&accumulator),
                    register => self.user.gpr[register.full_register().number()] = self.user.gpr[RAX],
                }
            }
            Mnemonic::Cmpxchg8b if random.one_in(2) => {
                let low = (self.user.gpr[RDX] << 32) | (self.user.gpr[RAX] & 0xffff_ffff);
                self.overwrite(&low.to_le_bytes());
            }
            Mnemonic::Cmpxchg16b if random.one_in(2) => {
                let [low, high] = [self.user.gpr[RAX], self.user.gpr[RDX]].map(u64::to_le_bytes);
                self.overwrite(&[low, high].concat());
            }
            Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq
                if self.form.prefix != Prefix::None && random.one_in(2) =>
            {
                let all = self.user.gpr[RAX].to_le_bytes();
                let element = &all[..self.operand_size() as usize];
                self.fill(self.user.gpr[RDI], &element.repeat(128 / element.len()));
            }
            Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq
                if self.form.prefix != Prefix::None && random.one_in(2) =>
            {
                let same = random.bytes(1).repeat(128);
                let base = self.user.fs_base.max(self.user.gs_base);
                self.fill(self.user.gpr[RDI], &same);
                if base == 0 {
                    self.fill(self.user.gpr[RSI], &same);
                }
            }
            _ => {}
        }
    }

    /// A dividend whose quotient is at the end of what fits, or just beyond.
    fn quotient(&mut self, random: &mut Random) {
        let instruction = &self.encoded.instruction;
        let register = instruction.op0_register();
        let used = [register, instruction.memory_base(), instruction.memory_index()];
        if used.iter().any(|used| matches!(used.full_register(), Register::RAX | Register::RDX)) {
            return;
        }
        let bytes = if register == Register::None { self.operand_size() as usize } else { register.size() };
        let bits = 8 * bytes as u32;
        let high_byte = matches!(register, Register::CH | Register::BH);
        let value = match register {
            Register::None => random.integer(),
            other if high_byte => self.user.gpr[other.full_register().number()] >> 8,
            other => self.user.gpr[other.full_register().number()],
        };
        if register == Register::None {
            self.overwrite(&value.to_le_bytes()[..bytes]);
        }
        let signed = self.form.code.mnemonic() == Mnemonic::Idiv;
        let unused = 128 - bits;
        let divisor = if signed {
            ((i128::from(value) << unused) >> unused) as u128
        } else {
            u128::from(value) << unused >> unused
        };
        let top = 1u128 << if signed { bits - 1 } else { bits };
        let low = if signed { top.wrapping_neg() } else { 0 };
        let ends = [top - 1, top, top.wrapping_sub(2), low, low.wrapping_sub(1), low + 1, 0, 1];
        let quotient = ends[random.below(ends.len() as u64) as usize];
        let size = if signed { (divisor as i128).unsigned_abs() } else { divisor };
        let most = u64::try_from(size).unwrap_or(u64::MAX).max(1) - 1;
        let rest = match random.below(4) {
            0 => 0,
            1 => most.into(),
            _ => u128::from(random.below(most.max(1))),
        };
        let product = quotient.wrapping_mul(divisor);
        let down = signed && (product as i128) < 0;
        let dividend = if down { product.wrapping_sub(rest) } else { product.wrapping_add(rest) };
        let gpr = &mut self.user.gpr;
        if bits == 8 {
            gpr[RAX] = gpr[RAX] & !0xffff | dividend as u64 & 0xffff;
        } else {
            let part = u64::MAX >> (64 - bits);
            gpr[RAX] = gpr[RAX] & !part | dividend as u64 & part;
            gpr[RDX] = gpr[RDX] & !part | (dividend >> bits) as u64 & part;
        }
    }

    /// Puts `bytes` where the memory operand is.
    fn overwrite(&mut self, bytes: &[u8]) {
        if let Some((at, _)) = self.patches.last() {
            let at = *at;
            let size = self.operand_size() as usize;
            self.patches.clear();
            self.patch_with(at, bytes[..size.min(bytes.len())].to_vec());
        }
    }

    /// Bytes on both sides of an address.
    fn fill(&mut self, at: u64, bytes: &[u8]) {
        let at = if self.encoded.short { at & 0xffff_ffff } else { at };
        self.patch_with(at.wrapping_sub(bytes.len() as u64 / 2), bytes.to_vec());
    }
}
