//! The caches that CPUID names: those of a common server, whatever the host has. Nothing is cached as they
//! say; the guest's libraries take from them how to copy.

/// A cache (SDM vol. 2, CPUID leaf 4).
struct Cache {
    /// 1: data, 2: instructions, 3: both.
    kind: u32,
    level: u32,
    ways: u32,
    sets: u32,
}

/// Bytes of a line in each of them.
const LINE: u32 = 64;
/// 32 KiB for data, 32 KiB for instructions, 1 MiB, 16 MiB.
const CACHES: [Cache; 4] = [
    Cache { kind: 1, level: 1, ways: 8, sets: 64 },
    Cache { kind: 2, level: 1, ways: 8, sets: 64 },
    Cache { kind: 3, level: 2, ways: 16, sets: 1024 },
    Cache { kind: 3, level: 3, ways: 16, sets: 16384 },
];
/// Of one processor alone: neither a core nor a thread shares it.
const SELF_INITIALIZING: u32 = 1 << 8;
/// Sixteen ways in leaf 8000_0006h (AMD APM vol. 3, E.4.5).
const SIXTEEN_WAYS: u32 = 8;

impl Cache {
    const fn kib(&self) -> u32 {
        self.ways * self.sets * LINE / 1024
    }
}

/// EAX, EBX, ECX, EDX of leaf 2: caches are in leaf 4 (descriptor FFh).
pub const DESCRIPTORS: [u32; 4] = [0x00ff_ff01, 0, 0, 0];

/// EAX, EBX, ECX, EDX of leaf 4: a cache each, then zeros.
pub fn parameters(subleaf: u32) -> [u32; 4] {
    let Some(cache) = CACHES.get(subleaf as usize) else { return [0; 4] };
    let geometry = (cache.ways - 1) << 22 | (LINE - 1);
    [SELF_INITIALIZING | cache.level << 5 | cache.kind, geometry, cache.sets - 1, 0]
}

/// Those of leaf 8000_0005h in a processor of AMD's; in one of Intel's it is reserved, all zero.
pub fn first_level_of_amd() -> [u32; 4] {
    let [data, code] = [0, 1].map(|n: usize| CACHES[n].kib() << 24 | CACHES[n].ways << 16 | 1 << 8 | LINE);
    [0, 0, data, code]
}

/// Those of leaf 8000_0006h in a processor of Intel's: the second level.
pub fn second_level() -> [u32; 4] {
    [0, 0, CACHES[2].kib() << 16 | SIXTEEN_WAYS << 12 | LINE, 0]
}

/// Those of leaf 8000_0006h in a processor of AMD's: the third level, in units of 512 KiB, as well.
pub fn outer_levels_of_amd() -> [u32; 4] {
    let [eax, ebx, second, _] = second_level();
    let second = second | 1 << 8;
    [eax, ebx, second, (CACHES[3].kib() / 512) << 18 | SIXTEEN_WAYS << 12 | 1 << 8 | LINE]
}
