//! The instruction at a vCPU's RIP, for people: page walk in guest memory (Intel SDM vol. 3, 4.5), then
//! iced-x86.

use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter};

use crate::engine::CpuState;

const PRESENT: u64 = 1;
const HUGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PAGING: u64 = 1 << 31;
const LONG_MODE_ACTIVE: u64 = 1 << 10;
const LONGEST: usize = 15;

/// The guest physical address behind a linear one: with 4-level paging, or without paging.
pub fn translate(cpu: &CpuState, ram: &[u8], linear: u64) -> Option<u64> {
    if cpu.cr[0] & PAGING == 0 {
        return Some(linear);
    }
    if cpu.efer & LONG_MODE_ACTIVE == 0 {
        return None;
    }
    let mut table = cpu.cr[2] & ADDRESS;
    for level in (0..4).rev() {
        let shift = 12 + 9 * level;
        let at = usize::try_from(table + (linear >> shift & 0x1ff) * 8).ok()?;
        let entry = u64::from_le_bytes(ram.get(at..at + 8)?.try_into().expect("eight bytes"));
        if entry & PRESENT == 0 {
            return None;
        }
        let leaf = level == 0 || (entry & HUGE != 0 && level < 3);
        if leaf {
            let offset = (1 << shift) - 1;
            return Some(entry & ADDRESS & !offset | linear & offset);
        }
        table = entry & ADDRESS;
    }
    None
}

/// Reads bytes at a linear address, as far as they are mapped to RAM.
pub fn read_linear(cpu: &CpuState, ram: &[u8], linear: u64, len: usize) -> Vec<u8> {
    let byte = |at: u64| {
        let gpa = usize::try_from(translate(cpu, ram, at)?).ok()?;
        ram.get(gpa).copied()
    };
    (0..len as u64).map_while(|offset| byte(linear.wrapping_add(offset))).collect()
}

/// The next instruction of a vCPU: address, bytes, mnemonic.
pub fn next_instruction(cpu: &CpuState, ram: &[u8]) -> String {
    const LONG: u32 = 1 << 13;
    const WIDE: u32 = 1 << 14;
    let code = &cpu.segments[1];
    let bitness = match code.access {
        access if access & LONG != 0 => 64,
        access if access & WIDE != 0 => 32,
        _ => 16,
    };
    let linear = if bitness == 64 { cpu.rip } else { code.base.wrapping_add(cpu.rip) };
    let bytes = read_linear(cpu, ram, linear, LONGEST);
    if bytes.is_empty() {
        return format!("{:#x}: not mapped to RAM", cpu.rip);
    }
    let instruction = Decoder::with_ip(bitness, &bytes, cpu.rip, DecoderOptions::NONE).decode();
    let mut text = String::new();
    GasFormatter::new().format(&instruction, &mut text);
    let len = instruction.len().clamp(1, bytes.len());
    let hex: Vec<String> = bytes[..len].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{:#x}: {}  {text}", cpu.rip, hex.join(" "))
}

#[cfg(test)]
#[path = "disassemble_tests.rs"]
mod tests;
