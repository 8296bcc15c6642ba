//! CPUID: the CPU model `x86-64-v2`, version 3. A bit is set exactly when the thing is implemented.
//!
//! Vendor, family, model and stepping are those of an Intel processor that executes in order and speculates
//! on nothing, as this one does: so a kernel leaves its mitigations out, and takes the frequency of the
//! time-stamp counter from leaf 15h. The hypervisor bit keeps it from looking for microcode; the brand string
//! says the truth.

use iced_x86::{Instruction, Mnemonic};

use crate::Cpu;
use crate::caches;
use crate::decode::{Builder, Lowered};
use crate::op::{Op, next};
use crate::paging::PHYSICAL_BITS;

const RAX: u8 = 0;
const RCX: u8 = 8;

/// Family 6, model 1Ch, stepping 10.
const SIGNATURE: u32 = 0x0001_06ca;
/// CLFLUSH size in bits 15–8, in units of eight bytes.
const CLFLUSH_SIZE: u32 = 8 << 8;
/// SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, MOVBE, POPCNT, hypervisor.
const FEATURES_1_ECX: u32 = 1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 22 | 1 << 23 | 1 << 31;
/// FPU, PSE, TSC, MSR, PAE, CX8, SEP, PGE, CMOV, PAT, CLFSH, MMX, FXSR, SSE, SSE2.
const FEATURES_1_EDX: u32 = 1
    | 1 << 3
    | 1 << 4
    | 1 << 5
    | 1 << 6
    | 1 << 8
    | 1 << 11
    | 1 << 13
    | 1 << 15
    | 1 << 16
    | 1 << 19
    | 1 << 23
    | 1 << 24
    | 1 << 25
    | 1 << 26;
/// IA32_TSC_ADJUST, SMEP, SMAP.
const FEATURES_7_EBX: u32 = 1 << 1 | 1 << 7 | 1 << 20;
/// LAHF and SAHF in 64-bit mode.
const FEATURES_EXTENDED_ECX: u32 = 1;
/// SYSCALL, NX, 1 GiB pages, RDTSCP, 64-bit mode.
const FEATURES_EXTENDED_EDX: u32 = 1 << 11 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 29;
/// The time-stamp counter runs at a constant rate.
const INVARIANT_TSC: u32 = 1 << 8;
const LINEAR_BITS: u32 = 48;
const BRAND: &[u8; 48] = b"Lockstep software processor, x86-64-v2\0\0\0\0\0\0\0\0\0\0";
const VENDOR: &[u8; 12] = b"GenuineIntel";
const HYPERVISOR: &[u8; 12] = b"LockstepSoft";
/// Crystal and counter frequency: a nanosecond is one step.
const CRYSTAL_HZ: u32 = 25_000_000;
const FREQUENCY_MHZ: u32 = 1000;
const BASIC_LEAVES: u32 = 0x16;
const EXTENDED_LEAVES: u32 = 0x8000_0008;

fn word(bytes: &[u8], number: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[4 * number..4 * number + 4]);
    u32::from_le_bytes(out)
}

/// EAX, EBX, ECX, EDX of a leaf. Leaves beyond the last basic one read as that one (SDM vol. 2, CPUID).
fn leaf(leaf: u32, subleaf: u32) -> [u32; 4] {
    match leaf {
        0 => [BASIC_LEAVES, word(VENDOR, 0), word(VENDOR, 2), word(VENDOR, 1)],
        1 => [SIGNATURE, CLFLUSH_SIZE, FEATURES_1_ECX, FEATURES_1_EDX],
        2 => caches::DESCRIPTORS,
        4 => caches::parameters(subleaf),
        7 if subleaf == 0 => [0, FEATURES_7_EBX, 0, 0],
        0x15 => [1, FREQUENCY_MHZ * 1_000_000 / CRYSTAL_HZ, CRYSTAL_HZ, 0],
        0x16 => [FREQUENCY_MHZ, FREQUENCY_MHZ, CRYSTAL_HZ / 1_000_000, 0],
        0x4000_0000 => [0x4000_0000, word(HYPERVISOR, 0), word(HYPERVISOR, 1), word(HYPERVISOR, 2)],
        0x8000_0000 => [EXTENDED_LEAVES, 0, 0, 0],
        0x8000_0001 => [0, 0, FEATURES_EXTENDED_ECX, FEATURES_EXTENDED_EDX],
        0x8000_0002..=0x8000_0004 => {
            let part = (leaf - 0x8000_0002) as usize * 4;
            [word(BRAND, part), word(BRAND, part + 1), word(BRAND, part + 2), word(BRAND, part + 3)]
        }
        // Reserved, in a processor of Intel's.
        0x8000_0005 => [0; 4],
        0x8000_0006 => caches::second_level(),
        0x8000_0007 => [0, 0, 0, INVARIANT_TSC],
        0x8000_0008 => [LINEAR_BITS << 8 | PHYSICAL_BITS, 0, 0, 0],
        number if number <= BASIC_LEAVES || number >> 28 == 4 => [0; 4],
        _ => self::leaf(BASIC_LEAVES, 0),
    }
}

fn cpuid(cpu: &mut Cpu, op: &Op) {
    let values = leaf(cpu.reg(RAX), cpu.reg(RCX));
    for (register, value) in [0, 3, 1, 2].into_iter().zip(values) {
        cpu.regs[register] = value.into();
    }
    next(cpu, op)
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    if insn.mnemonic() != Mnemonic::Cpuid {
        return Lowered::Unknown;
    }
    builder.push(Op::new(cpuid));
    Lowered::Continues
}

#[cfg(test)]
#[path = "cpuid_tests.rs"]
mod tests;
