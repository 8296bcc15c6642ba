//! BT, BTS, BTR, BTC, BSF, BSR, POPCNT, BSWAP, MOVBE.

use iced_x86::Instruction;

use crate::decode::{Builder, Lowered};

pub fn lower(_builder: &mut Builder, _insn: &Instruction) -> Lowered {
    Lowered::Unknown
}
