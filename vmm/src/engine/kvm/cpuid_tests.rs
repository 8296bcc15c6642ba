//! The CPU model that KVM is given.

use super::*;

fn host(vendor: &[u8; 12]) -> Vec<kvm_cpuid_entry2> {
    let word = |n: usize| u32::from_le_bytes(vendor[4 * n..][..4].try_into().unwrap());
    let any = [u32::MAX; 4];
    let mut leaves = vec![entry(0, None, [0x16, word(0), word(2), word(1)]), entry(1, None, any)];
    leaves.extend((0..4).map(|n| entry(4, Some(n), any)));
    leaves.extend((0x8000_0000..0x8000_0009).map(|n| entry(n, None, any)));
    leaves
}

fn values(all: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<[u32; 4]> {
    let found: Vec<_> =
        all.iter().filter(|entry| (entry.function, entry.index) == (function, index)).collect();
    assert!(found.len() < 2, "leaf {function:#x}.{index} is there {} times", found.len());
    found.first().map(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
}

#[test]
fn caches_are_the_models_on_every_host() {
    let intel = leaves(&host(b"GenuineIntel"));
    for subleaf in 0..=4 {
        assert_eq!(values(&intel, 4, subleaf), Some(caches::parameters(subleaf)));
    }
    assert_eq!(values(&intel, 4, 4), Some([0; 4]), "the list ends");
    assert_eq!(values(&intel, 2, 0), Some(caches::DESCRIPTORS));
    assert_eq!(values(&intel, 0x8000_0006, 0), Some(caches::second_level()));
    let amd = leaves(&host(b"AuthenticAMD"));
    assert_eq!(values(&amd, 4, 0), None);
    // 32 KiB of eight ways for data and for instructions; 1 MiB and 16 MiB of sixteen ways.
    assert_eq!(values(&amd, 0x8000_0005, 0), Some([0, 0, 0x2008_0140, 0x2008_0140]));
    assert_eq!(values(&amd, 0x8000_0006, 0), Some([0, 0, 0x0400_8140, 0x0080_8140]));
}
