//! SETcc and CMOVcc.

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::Cpu;
use crate::decode::{Builder, Lowered, gpr, operand_bytes};
use crate::op::{Op, next};
use crate::or_abort;
use crate::word::Word;

/// A handler for each condition: `by_condition!(code, handler, Type, …)`, the condition as const parameter.
#[macro_export]
#[doc(hidden)]
macro_rules! by_condition {
    ($code:expr, $f:ident $(, $g:ty)*) => {
        match $code {
            0 => $f::<$($g,)* 0> as $crate::op::Handler,
            1 => $f::<$($g,)* 1>,
            2 => $f::<$($g,)* 2>,
            3 => $f::<$($g,)* 3>,
            4 => $f::<$($g,)* 4>,
            5 => $f::<$($g,)* 5>,
            6 => $f::<$($g,)* 6>,
            7 => $f::<$($g,)* 7>,
            8 => $f::<$($g,)* 8>,
            9 => $f::<$($g,)* 9>,
            10 => $f::<$($g,)* 10>,
            11 => $f::<$($g,)* 11>,
            12 => $f::<$($g,)* 12>,
            13 => $f::<$($g,)* 13>,
            14 => $f::<$($g,)* 14>,
            _ => $f::<$($g,)* 15>,
        }
    };
}

/// The condition's code as encoded (SDM vol. 1, appendix B), if the instruction has one.
pub fn code(insn: &Instruction) -> Option<u8> {
    use iced_x86::ConditionCode as C;
    Some(match insn.condition_code() {
        C::None => return None,
        C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        C::g => 15,
    })
}

fn set_r<const CODE: u8>(cpu: &mut Cpu, op: &Op) {
    let value = u8::from(cpu.flags.condition::<CODE>());
    cpu.set_reg(op.dst, value);
    next(cpu, op)
}

fn set_m<const CODE: u8>(cpu: &mut Cpu, op: &Op) {
    let value = u8::from(cpu.flags.condition::<CODE>());
    or_abort!(cpu, op, cpu.write(cpu.address(op), value));
    next(cpu, op)
}

fn move_r<W: Word, const CODE: u8>(cpu: &mut Cpu, op: &Op) {
    let value = if cpu.flags.condition::<CODE>() { cpu.reg::<W>(op.src) } else { cpu.reg::<W>(op.dst) };
    cpu.set_reg(op.dst, value);
    next(cpu, op)
}

fn move_m<W: Word, const CODE: u8>(cpu: &mut Cpu, op: &Op) {
    let read = or_abort!(cpu, op, cpu.read::<W>(cpu.address(op)));
    let value = if cpu.flags.condition::<CODE>() { read } else { cpu.reg::<W>(op.dst) };
    cpu.set_reg(op.dst, value);
    next(cpu, op)
}

fn is_set(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Seto
            | M::Setno
            | M::Setb
            | M::Setae
            | M::Sete
            | M::Setne
            | M::Setbe
            | M::Seta
            | M::Sets
            | M::Setns
            | M::Setp
            | M::Setnp
            | M::Setl
            | M::Setge
            | M::Setle
            | M::Setg
    )
}

fn is_move(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Cmovo
            | M::Cmovno
            | M::Cmovb
            | M::Cmovae
            | M::Cmove
            | M::Cmovne
            | M::Cmovbe
            | M::Cmova
            | M::Cmovs
            | M::Cmovns
            | M::Cmovp
            | M::Cmovnp
            | M::Cmovl
            | M::Cmovge
            | M::Cmovle
            | M::Cmovg
    )
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let (set, mov) = (is_set(insn.mnemonic()), is_move(insn.mnemonic()));
    let Some(code) = code(insn).filter(|_| set || mov) else { return Lowered::Unknown };
    let bytes = operand_bytes(insn, 0);
    let in_memory = insn.op_kind(u32::from(mov)) == OpKind::Memory;
    let mut op = Op::new(match (set, in_memory, bytes) {
        (true, false, _) => by_condition!(code, set_r),
        (true, true, _) => by_condition!(code, set_m),
        (_, false, 2) => by_condition!(code, move_r, u16),
        (_, false, 4) => by_condition!(code, move_r, u32),
        (_, false, _) => by_condition!(code, move_r, u64),
        (_, true, 2) => by_condition!(code, move_m, u16),
        (_, true, 4) => by_condition!(code, move_m, u32),
        (_, true, _) => by_condition!(code, move_m, u64),
    });
    if insn.op0_kind() == OpKind::Register {
        op.dst = gpr(insn.op0_register()).unwrap_or_default();
    }
    if in_memory {
        builder.memory(&mut op, insn);
    } else if mov {
        op.src = gpr(insn.op1_register()).unwrap_or_default();
    }
    builder.push(op);
    Lowered::Continues
}
