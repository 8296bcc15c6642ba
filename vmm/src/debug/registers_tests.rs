//! Tests of the registers on their way to GDB and back.

use super::*;
use crate::engine::state::Segment;

fn cpu() -> CpuState {
    let mut cpu = CpuState {
        gpr: std::array::from_fn(|i| 0x1000 + i as u64),
        rip: 0xffff_ffff_8100_0000,
        rflags: 0x246,
        cr: [0x8005_0033, 0xdead, 0x1000, 0x20, 3],
        efer: 0xd01,
        msrs: vec![(KERNEL_GS_BASE, 0x77)],
        xsave: (0..832u32).map(|byte| byte as u8).collect(),
        ..CpuState::default()
    };
    cpu.segments[1] = Segment { selector: 0x10, ..Segment::default() };
    cpu.segments[FS].base = 0x5555;
    cpu.segments[GS].base = 0x6666;
    cpu.xsave[..2].copy_from_slice(&0x37fu16.to_le_bytes());
    cpu.xsave[2..8].copy_from_slice(&[0, 0x38, 0x80, 0, 0, 0]);
    cpu.xsave[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    cpu
}

#[test]
fn registers_go_over_the_wire_and_back() {
    let before = cpu();
    let wire = to_wire(&before);
    let mut bytes = Vec::new();
    wire.gdb_serialize(|byte| bytes.push(byte.expect("every register is known")));
    assert_eq!(bytes.len(), CORE_BYTES + 9 * 8);
    let mut back = WireRegisters::default();
    back.gdb_deserialize(&bytes).expect("the same length");
    assert_eq!(back, wire);
    let mut after = before.clone();
    from_wire(&mut after, &back);
    assert_eq!(after.diff(&before), Vec::<String>::new());
    assert!(back.gdb_deserialize(&bytes[1..]).is_err());
}

#[test]
fn registers_are_where_gdb_expects_them() {
    let wire = to_wire(&cpu());
    let regs = wire.core.regs;
    // RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP.
    assert_eq!(regs[..8], [0x1000, 0x1003, 0x1001, 0x1002, 0x1006, 0x1007, 0x1005, 0x1004]);
    assert_eq!(wire.core.segments.cs, 0x10);
    assert_eq!(wire.bases, [0x5555, 0x6666]);
    assert_eq!(wire.system, [0x77, 0x8005_0033, 0xdead, 0x1000, 0x20, 3, 0xd01]);
    assert_eq!(wire.core.xmm[0].to_le_bytes()[0], 160);
}

#[test]
fn tags_are_translated() {
    let (zero, one, nan): (F80, F80, F80) =
        ([0; 10], [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f], [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0x7f]);
    // TOP is 5: ST0 to ST2 are the registers 5 to 7.
    let st = [zero, one, nan, one, one, one, one, one];
    let full = full_tags(0b1110_0000, 5 << 11, &st);
    assert_eq!(full, 0b10_00_01_11_11_11_11_11);
    assert_eq!(abridged_tags(full), 0b1110_0000);
}

#[test]
fn what_a_debugger_must_not_change_stays() {
    let before = cpu();
    let mut wire = to_wire(&before);
    wire.system = [0; 7];
    wire.core.segments.cs = 0x33;
    wire.core.eflags = 0;
    let mut after = before.clone();
    from_wire(&mut after, &wire);
    assert_eq!((after.cr, after.efer, after.segments), (before.cr, before.efer, before.segments));
    assert_eq!(after.rflags, 2);
    let mut bare = CpuState::default();
    from_wire(&mut bare, &to_wire(&CpuState::default()));
    assert!(bare.xsave.is_empty());
}
