//! The bytes of host instructions (SDM vol. 2, chapter 2): what the translator adds around those it copies.

/// A general register of the host, by number.
pub type Reg = u8;

pub const RAX: Reg = 0;
pub const RCX: Reg = 1;
pub const RDX: Reg = 2;
pub const RSP: Reg = 4;
pub const RBP: Reg = 5;
pub const R12: Reg = 12;
pub const R13: Reg = 13;
pub const R14: Reg = 14;
pub const R15: Reg = 15;

/// A memory operand of the host.
#[derive(Debug, Clone, Copy)]
pub struct Mem {
    pub base: Option<Reg>,
    /// Register and log 2 of its factor. Not RSP.
    pub index: Option<(Reg, u8)>,
    pub disp: i32,
}

impl Mem {
    pub const fn base(base: Reg, disp: i32) -> Self {
        Self { base: Some(base), index: None, disp }
    }

    pub const fn sum(base: Reg, index: Reg, disp: i32) -> Self {
        Self { base: Some(base), index: Some((index, 0)), disp }
    }
}

/// What comes before the operands of an instruction.
#[derive(Debug, Clone, Copy, Default)]
pub struct Opcode {
    /// 66, F2 or F3.
    pub prefix: Option<u8>,
    pub wide: bool,
    /// A REX prefix even if it says nothing: for SPL, BPL, SIL, DIL.
    pub rex: bool,
    pub bytes: [u8; 3],
    pub length: u8,
}

impl Opcode {
    /// A one-byte opcode; `wide` for 64-bit operands.
    pub const fn one(byte: u8, wide: bool) -> Self {
        Self { prefix: None, wide, rex: false, bytes: [byte, 0, 0], length: 1 }
    }

    /// 0F and a byte.
    pub const fn two(byte: u8, wide: bool) -> Self {
        Self { prefix: None, wide, rex: false, bytes: [0x0f, byte, 0], length: 2 }
    }
}

/// Conditions as encoded in Jcc.
pub mod cc {
    pub const B: u8 = 2;
    pub const AE: u8 = 3;
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const A: u8 = 7;
}

/// Where a branch of the host leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// An offset in the main part.
    Hot(usize),
    /// An offset in the part that is rarely executed.
    Cold(usize),
    /// Anywhere in code memory, as an offset from its start.
    Code(u32),
}

/// A piece of code being made, with branches that are resolved when it is placed.
#[derive(Debug, Default)]
pub struct Code {
    pub bytes: Vec<u8>,
    /// Places of 32-bit displacements, each relative to its own end.
    pub fixups: Vec<(usize, Target)>,
}

impl Code {
    /// Offset of what comes next.
    pub fn here(&self) -> usize {
        self.bytes.len()
    }

    pub fn byte(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub fn dword(&mut self, value: i32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn start(&mut self, op: Opcode, rex: u8) {
        if let Some(prefix) = op.prefix {
            self.byte(prefix);
        }
        let rex = rex | u8::from(op.wide) << 3;
        if rex != 0 || op.rex {
            self.byte(0x40 | rex);
        }
        self.bytes.extend_from_slice(&op.bytes[..usize::from(op.length)]);
    }

    /// An instruction with two registers: `reg` and `rm` are fields of its ModRM byte.
    pub fn rr(&mut self, op: Opcode, reg: Reg, rm: Reg) {
        self.start(op, reg >> 3 << 2 | rm >> 3);
        self.byte(0xc0 | (reg & 7) << 3 | rm & 7);
    }

    /// An instruction whose register is in the opcode's low three bits.
    pub fn opcode_register(&mut self, mut op: Opcode, register: Reg) {
        let last = usize::from(op.length) - 1;
        op.bytes[last] = op.bytes[last] & !7 | register & 7;
        self.start(op, register >> 3);
    }

    /// An instruction without ModRM.
    pub fn plain(&mut self, op: Opcode) {
        self.start(op, 0);
    }

    /// An instruction with a memory operand.
    pub fn rm(&mut self, op: Opcode, reg: Reg, mem: Mem) {
        let index = mem.index.map_or(0, |(index, _)| index >> 3);
        self.start(op, reg >> 3 << 2 | index << 1 | mem.base.map_or(0, |base| base >> 3));
        let reg = (reg & 7) << 3;
        let Some(base) = mem.base else {
            let (index, scale) = mem.index.unwrap_or((RSP, 0));
            self.byte(reg | 4);
            self.byte(scale << 6 | (index & 7) << 3 | 5);
            return self.dword(mem.disp);
        };
        let short = i8::try_from(mem.disp).ok();
        let mode = match short {
            Some(0) if base & 7 != 5 => 0,
            Some(_) => 0x40,
            None => 0x80,
        };
        match mem.index {
            Some((index, scale)) => {
                self.byte(mode | reg | 4);
                self.byte(scale << 6 | (index & 7) << 3 | base & 7);
            }
            None if base & 7 == 4 => {
                self.byte(mode | reg | 4);
                self.byte(0x20 | base & 7);
            }
            None => self.byte(mode | reg | base & 7),
        }
        match (mode, short) {
            (0, _) => {}
            (_, Some(short)) => self.byte(short as u8),
            (_, None) => self.dword(mem.disp),
        }
    }

    /// MOV of 64 bits between registers.
    pub fn mov(&mut self, to: Reg, from: Reg) {
        self.rr(Opcode::one(0x8b, true), to, from);
    }

    /// MOV of 64 bits from memory.
    pub fn load(&mut self, to: Reg, mem: Mem) {
        self.rm(Opcode::one(0x8b, true), to, mem);
    }

    /// MOV of 32 bits from memory.
    pub fn load32(&mut self, to: Reg, mem: Mem) {
        self.rm(Opcode::one(0x8b, false), to, mem);
    }

    /// MOV of 64 bits to memory.
    pub fn store(&mut self, mem: Mem, from: Reg) {
        self.rm(Opcode::one(0x89, true), from, mem);
    }

    /// MOV of a sign-extended constant to 64 bits of memory.
    pub fn store_constant(&mut self, mem: Mem, value: i32) {
        self.rm(Opcode::one(0xc7, true), 0, mem);
        self.dword(value);
    }

    /// MOV of a constant to 32 bits of memory.
    pub fn store32_constant(&mut self, mem: Mem, value: i32) {
        self.rm(Opcode::one(0xc7, false), 0, mem);
        self.dword(value);
    }

    /// MOV of a constant, in the shortest form.
    pub fn constant(&mut self, to: Reg, value: u64) {
        if let Ok(short) = u32::try_from(value) {
            self.opcode_register(Opcode::one(0xb8, false), to);
            self.dword(short as i32);
        } else if let Ok(short) = i32::try_from(value as i64) {
            self.rr(Opcode::one(0xc7, true), 0, to);
            self.dword(short);
        } else {
            self.opcode_register(Opcode::one(0xb8, true), to);
            self.bytes.extend_from_slice(&value.to_le_bytes());
        }
    }

    pub fn lea(&mut self, to: Reg, mem: Mem) {
        self.rm(Opcode::one(0x8d, true), to, mem);
    }

    /// Adds a constant without touching flags.
    pub fn advance(&mut self, register: Reg, by: i32) {
        if by != 0 {
            self.lea(register, Mem::base(register, by));
        }
    }

    /// An instruction of the group 80–83 (`number`: ADD 0, OR 1, AND 4, SUB 5, XOR 6, CMP 7) with a constant.
    pub fn arithmetic(&mut self, number: u8, wide: bool, register: Reg, value: i32) {
        if let Ok(short) = i8::try_from(value) {
            self.rr(Opcode::one(0x83, wide), number, register);
            self.byte(short as u8);
        } else {
            self.rr(Opcode::one(0x81, wide), number, register);
            self.dword(value);
        }
    }

    /// A shift of the group C1 (SHL 4, SHR 5, SAR 7) by a constant.
    pub fn shift(&mut self, number: u8, wide: bool, register: Reg, count: u8) {
        self.rr(Opcode::one(0xc1, wide), number, register);
        self.byte(count);
    }

    /// BT: CF becomes bit 0 of 32 bits in memory.
    pub fn test_bit(&mut self, mem: Mem) {
        self.rm(Opcode::two(0xba, false), 4, mem);
        self.byte(0);
    }

    /// JMP.
    pub fn jmp(&mut self, target: Target) {
        self.byte(0xe9);
        self.branch(target);
    }

    /// Jcc.
    pub fn jcc(&mut self, condition: u8, target: Target) {
        self.byte(0x0f);
        self.byte(0x80 | condition);
        self.branch(target);
    }

    /// CALL.
    pub fn call(&mut self, target: Target) {
        self.byte(0xe8);
        self.branch(target);
    }

    fn branch(&mut self, target: Target) {
        self.fixups.push((self.here(), target));
        self.dword(0);
    }

    /// A short Jcc over what follows, until `land`.
    pub fn skip(&mut self, condition: u8) -> usize {
        self.byte(0x70 | condition);
        self.byte(0);
        self.here()
    }

    /// Where a `skip` leads.
    pub fn land(&mut self, from: usize) {
        let distance = self.here() - from;
        assert!(distance < 128, "a short branch over {distance} bytes");
        self.bytes[from - 1] = distance as u8;
    }
}
