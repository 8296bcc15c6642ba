//! What a recording looks like as text.

use super::{next_instruction, translate};
use crate::boot;
use crate::memory::Ram;

#[test]
fn names_the_instruction_at_rip_through_the_page_tables() {
    let ram = Ram::new(8 << 20).expect("guest memory");
    // mov $0x1234,%eax
    let code = [0xb8, 0x34, 0x12, 0, 0];
    let mut cpu = boot::load_flat64(ram.map(), ram.bytes(), &code, 0x10_0000, "").expect("it loads");
    assert_eq!(next_instruction(&cpu, ram.as_slice()), "0x100000: b8 34 12 00 00  mov $0x1234,%eax");
    cpu.rip = 0x1234_5678_9abc;
    assert_eq!(next_instruction(&cpu, ram.as_slice()), "0x123456789abc: not mapped to RAM");
}

#[test]
fn a_walk_with_hostile_tables_ends() {
    let mut ram = Ram::new(8 << 20).expect("guest memory");
    let mut cpu = boot::load_flat64(ram.map(), ram.bytes(), &[0x90], 0x10_0000, "").expect("it loads");
    assert_eq!(translate(&cpu, ram.as_slice(), 0x10_0123), Some(0x10_0123));
    // A table that is its own parent, one beyond RAM, none at all.
    ram.write(0x9000, &(0x9000u64 | 3).to_le_bytes());
    assert!(translate(&cpu, ram.as_slice(), 0).is_some());
    ram.write(0x9000, &(0x000f_ffff_ffff_f003u64).to_le_bytes());
    assert_eq!(translate(&cpu, ram.as_slice(), 0), None);
    cpu.cr[2] = u64::MAX;
    assert_eq!(translate(&cpu, ram.as_slice(), u64::MAX), None);
}
