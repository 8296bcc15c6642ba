//! CPUID as guests read it.

use super::*;

#[test]
fn the_brand_string_ends_within_its_leaves() {
    let bytes: Vec<u8> = (0x8000_0002..=0x8000_0004u32)
        .flat_map(|number| leaf(number, 0))
        .flat_map(u32::to_le_bytes)
        .collect();
    assert!(bytes.starts_with(b"Lockstep"));
    assert_eq!(bytes.last(), Some(&0));
}

#[test]
fn the_counter_runs_at_one_gigahertz() {
    let [denominator, numerator, crystal, _] = leaf(0x15, 0);
    assert_eq!(u64::from(crystal) * u64::from(numerator) / u64::from(denominator), 1_000_000_000);
    assert_eq!(leaf(0x9000_0000, 0), leaf(0x16, 0), "a leaf that is not there reads as the last basic one");
}

#[test]
fn every_leaf_below_the_highest_is_its_own() {
    let last = leaf(BASIC_LEAVES, 0);
    let [basic, ..] = leaf(0, 0);
    let [extended, ..] = leaf(0x8000_0000, 0);
    for number in (0..basic).chain(0x8000_0000..=extended) {
        assert_ne!(leaf(number, 0), last, "leaf {number:#x}");
    }
    for number in [0x8000_0005, 0x8000_0006] {
        assert_eq!(leaf(number, 0), [0; 4], "no caches in leaf {number:#x}");
    }
}
