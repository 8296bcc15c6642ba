//! Tests of translations on page tables made by hand.

use super::*;
use crate::memory::Ram;

const PML4: u64 = 0x1_0000;

fn long_mode() -> CpuState {
    CpuState { cr: [CR0_PG | 1, 0, PML4, 0x20, 0], efer: 0x500, ..CpuState::default() }
}

/// Maps a 4 KiB, a 2 MiB and a 1 GiB page in the upper half.
fn tables(ram: &mut Ram) {
    let mut put = |at: u64, value: u64| ram.write(at as usize, &value.to_le_bytes());
    put(PML4 + 511 * 8, 0x1_1003);
    put(0x1_1000, 0x1_2003);
    put(0x1_1000 + 8, 1 << 63 | 0x4000_0083);
    put(0x1_2000, 0x1_3003);
    put(0x1_2000 + 8, 0x20_0083);
    put(0x1_3000 + 5 * 8, 0x30_5001);
}

#[test]
fn pages_of_every_size_are_found() {
    let mut ram = Ram::new(4 << 20).expect("memory");
    tables(&mut ram);
    let at = |linear: u64| translate(&long_mode(), ram.map(), linear);
    let base = 0xffff_ff80_0000_0000u64;
    assert_eq!(at(base + 0x5123), Some(0x30_5123));
    assert_eq!(at(base + 0x20_4567), Some(0x20_4567));
    assert_eq!(at(base + 0x4000_0000 + 0x1234_5678), Some(0x4000_0000 + 0x1234_5678));
    assert_eq!(at(base + 0x6000), None);
    assert_eq!(at(0x5000), None);
}

#[test]
fn addresses_that_are_not_canonical_are_not_mapped() {
    let mut ram = Ram::new(4 << 20).expect("memory");
    tables(&mut ram);
    assert_eq!(translate(&long_mode(), ram.map(), 0x0000_ff80_0000_5000), None);
    assert_eq!(translate(&long_mode(), ram.map(), 0x7fff_ff80_0000_5000), None);
}

#[test]
fn tables_outside_memory_map_nothing() {
    let ram = Ram::new(4 << 20).expect("memory");
    let mut cpu = long_mode();
    cpu.cr[2] = 0x000f_ffff_ffff_f000;
    assert_eq!(translate(&cpu, ram.map(), 0), None);
}

#[test]
fn without_paging_linear_is_physical() {
    let ram = Ram::new(4 << 20).expect("memory");
    let cpu = CpuState::default();
    assert_eq!(translate(&cpu, ram.map(), 0x1234), Some(0x1234));
    assert_eq!(translate(&cpu, ram.map(), 1 << 32), None);
}

#[test]
fn a_read_goes_as_far_as_memory_is_mapped() {
    let mut ram = Ram::new(4 << 20).expect("memory");
    tables(&mut ram);
    ram.write(0x30_5ff0, &[7; 16]);
    let mut bytes = [0; 32];
    let done = read(&long_mode(), ram.map(), 0xffff_ff80_0000_5ff0, &mut bytes);
    assert_eq!(done, 16);
    assert_eq!(bytes[..16], [7; 16]);
    assert_eq!(read(&long_mode(), ram.map(), u64::MAX - 3, &mut bytes), 0);
}
