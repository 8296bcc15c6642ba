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
    assert_eq!(leaf(0x8000_0005, 0), [0; 4], "reserved");
}

/// Level, kind and bytes of a cache in leaf 4 (SDM vol. 2, CPUID).
fn cache(subleaf: u32) -> (u32, u32, u32) {
    let [eax, ebx, ecx, _] = leaf(4, subleaf);
    let (ways, partitions, line) = ((ebx >> 22) + 1, (ebx >> 12 & 0x3ff) + 1, (ebx & 0xfff) + 1);
    (eax >> 5 & 7, eax & 31, ways * partitions * line * (ecx + 1))
}

#[test]
fn four_caches_of_one_processor() {
    let all = [0, 1, 2, 3].map(cache);
    assert_eq!(all, [(1, 1, 32 << 10), (1, 2, 32 << 10), (2, 3, 1 << 20), (3, 3, 16 << 20)]);
    for subleaf in 0..4 {
        let [eax, ebx, ..] = leaf(4, subleaf);
        assert_eq!(eax >> 14, 0, "shared with nobody, and one core");
        assert_eq!((ebx & 0xfff) + 1, (leaf(1, 0)[1] >> 8 & 0xff) * 8, "a line is what CLFLUSH flushes");
    }
    assert_eq!(leaf(1, 0)[3] >> 28 & 1, 0, "no HTT: one logical processor");
    assert_eq!(leaf(0xb, 0), [0; 4], "no topology beyond that");
    for subleaf in [4, 5, 1000, u32::MAX] {
        assert_eq!(leaf(4, subleaf), [0; 4], "no more caches");
    }
    assert_eq!(leaf(2, 0)[0] >> 8 & 0xff, 0xff, "leaf 2 points to leaf 4");
    let second = leaf(0x8000_0006, 0)[2];
    assert_eq!((second >> 16) << 10, cache(2).2, "the second level again");
}
