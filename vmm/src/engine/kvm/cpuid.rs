//! The CPU model `x86-64-v1`: one set of CPUID leaves for every host that lets them be set.
//!
//! Hidden: everything whose result or effect depends on hidden host state (TSC deadline, RDRAND, RDSEED,
//! XSAVE variants, performance counters, KVM's paravirtual leaves, the local APIC) and whatever x86-64-v1
//! lacks.

use std::arch::x86_64::{__cpuid, __cpuid_count};

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Kvm, VcpuFd};
use softcpu::caches;
use twox_hash::XxHash3_64;

use crate::engine::EngineError;

/// Name and version of the CPU model in configuration and handshake. Version 2 has caches; version 3
/// is that of the software CPU, which changed what it defines.
pub const CPU_MODEL: &str = "x86-64-v1/3";

/// Leaf 1 EDX: FPU, PSE, TSC, MSR, PAE, MCE, CX8, PGE, MCA, CMOV, PAT, PSE-36, CLFSH, MMX, FXSR, SSE, SSE2.
const LEAF1_EDX: u32 = 0x0783_e17b | 1 << 24 | 1 << 25 | 1 << 26;
/// Leaf 1 ECX: CX16 alone.
const LEAF1_ECX: u32 = 1 << 13;
/// Leaf 0x8000_0001 EDX: SYSCALL, NX, long mode, and what mirrors leaf 1.
const EXTENDED_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 29 | 0x0183_e17b;
/// Leaf 0x8000_0001 ECX: LAHF in long mode.
const EXTENDED_ECX: u32 = 1;

fn masked(mut entry: kvm_cpuid_entry2) -> Option<kvm_cpuid_entry2> {
    match entry.function {
        0 => entry.eax = 7,
        1 => {
            // No APIC id, no logical processor count; CLFLUSH line of 64 bytes.
            entry.ebx = 8 << 8;
            entry.ecx &= LEAF1_ECX;
            entry.edx &= LEAF1_EDX;
        }
        7 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0000 => entry.eax = 0x8000_0008,
        0x8000_0001 => {
            entry.ecx &= EXTENDED_ECX;
            entry.edx &= EXTENDED_EDX;
        }
        0x8000_0002..=0x8000_0004 => {
            let name = b"Lockstep x86-64-v1 virtual processor\0\0\0\0\0\0\0\0\0\0\0\0";
            let part = &name[(entry.function - 0x8000_0002) as usize * 16..][..16];
            let word = |i: usize| u32::from_le_bytes(part[i * 4..i * 4 + 4].try_into().expect("four bytes"));
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (word(0), word(1), word(2), word(3));
        }
        0x8000_0008 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (48 << 8 | 40, 0, 0, 0),
        _ => return None,
    }
    (entry.index == 0 || entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0).then_some(entry)
}

fn entry(function: u32, index: Option<u32>, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    let flags = index.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
    let index = index.unwrap_or(0);
    kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..kvm_cpuid_entry2::default() }
}

/// The same caches on every host, where processors of its vendor have them.
fn cache_leaves(of_intel: bool) -> Vec<kvm_cpuid_entry2> {
    if !of_intel {
        return vec![
            entry(0x8000_0005, None, caches::first_level_of_amd()),
            entry(0x8000_0006, None, caches::outer_levels_of_amd()),
        ];
    }
    let mut leaves = vec![entry(2, None, caches::DESCRIPTORS)];
    leaves.extend((0..=4).map(|subleaf| entry(4, Some(subleaf), caches::parameters(subleaf))));
    leaves.push(entry(0x8000_0006, None, caches::second_level()));
    leaves
}

/// The model's leaves on a host that supports these.
fn leaves(supported: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
    // ECX of leaf 0 ends the vendor's name: "ntel".
    let of_intel =
        supported.iter().any(|entry| entry.function == 0 && entry.ecx == u32::from_le_bytes(*b"ntel"));
    let mut all: Vec<_> = supported.iter().copied().filter_map(masked).collect();
    all.extend(cache_leaves(of_intel));
    all
}

/// Sets the model's leaves. On a KVM that ignores them the guest sees the host's: the handshake compares
/// hosts.
pub fn set(kvm: &Kvm, vcpu: &VcpuFd) -> Result<(), EngineError> {
    let supported = super::ioctl("KVM_GET_SUPPORTED_CPUID", kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES))?;
    let entries = leaves(supported.as_slice());
    let leaves =
        CpuId::from_entries(&entries).map_err(|_| EngineError::Missing("room for the CPUID leaves"))?;
    super::ioctl("KVM_SET_CPUID2", vcpu.set_cpuid2(&leaves))
}

/// What this host's CPU is, for the handshake: a pair on different CPUs is refused. Vendor, family, model and
/// stepping as in leaf 1 EAX, microcode revision, and a digest of the feature leaves.
pub fn host_cpu() -> String {
    let vendor = __cpuid(0);
    let name: Vec<u8> = [vendor.ebx, vendor.edx, vendor.ecx].iter().flat_map(|w| w.to_le_bytes()).collect();
    let signature = __cpuid(1);
    let leaf7 = __cpuid_count(7, 0);
    let extended = __cpuid(0x8000_0001);
    // The APIC id in leaf 1 EBX and OSXSAVE in ECX are the processor's and the system's of the moment.
    let words = [
        signature.ecx & !(1 << 27),
        signature.edx,
        leaf7.ebx,
        leaf7.ecx,
        leaf7.edx,
        extended.ecx,
        extended.edx,
    ];
    let features: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let microcode =
        text.lines().find(|line| line.starts_with("microcode")).and_then(|line| line.split(": ").nth(1));
    format!(
        "{} {:#x} microcode {} features {:016x}",
        String::from_utf8_lossy(&name),
        signature.eax,
        microcode.unwrap_or("unknown"),
        XxHash3_64::oneshot(&features)
    )
}

#[cfg(test)]
#[path = "cpuid_tests.rs"]
mod tests;
