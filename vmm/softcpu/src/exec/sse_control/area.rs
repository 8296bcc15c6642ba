//! FXSAVE and FXRSTOR (SDM vol. 1, 10.5):
//!
//! ```text
//!   0 FCW  2 FSW  4 FTW  5 0  6 FOP  8 FIP (32 bits and CS; REX.W: 64)  16 FDP (32 bits and DS; REX.W: 64)
//!  24 MXCSR  28 MXCSR_MASK  32 ST0–ST7, 16 bytes each  160 XMM0–XMM7  288 XMM8–XMM15 (64-bit mode)
//! 416 reserved and, from 464, the system's: left alone
//! ```
//!
//! CS and DS of the x87 pointers are saved as zero, as processors do that have deprecated them.

use super::MXCSR_MASK;
use crate::cpu::mode;
use crate::op::{Op, next};
use crate::state::Fpu;
use crate::{Cpu, Fault, or_abort};

const MXCSR: usize = 24;
const REGISTERS: usize = 160;
/// Bytes that FXSAVE writes.
const WRITTEN: usize = 416;
/// Bytes that must be there.
const AREA: u64 = 512;
/// Bits 13–15, 7 are reserved and bit 6 is always set.
const FCW_BITS: u16 = 0x1f3f;
const FCW_ONE: u16 = 0x40;
/// Exception flags of FSW, masks of FCW.
const EXCEPTIONS: u16 = 0x3f;
/// FSW: error summary and busy.
const SUMMARY: u16 = 0x8080;

type Area = [u8; WRITTEN];

fn put(area: &mut Area, at: usize, bytes: &[u8]) {
    area[at..at + bytes.len()].copy_from_slice(bytes);
}

fn get<const N: usize>(area: &Area, at: usize) -> [u8; N] {
    std::array::from_fn(|n| area[at + n])
}

/// How many XMM registers the mode has.
fn registers(cpu: &Cpu) -> usize {
    if cpu.mode & mode::LONG != 0 { 16 } else { 8 }
}

fn image(cpu: &Cpu, wide: bool) -> Area {
    let mut area = [0; WRITTEN];
    let fpu = &cpu.fpu;
    put(&mut area, 0, &fpu.cw.to_le_bytes());
    put(&mut area, 2, &fpu.sw.to_le_bytes());
    area[4] = fpu.tag;
    put(&mut area, 6, &fpu.fop.to_le_bytes());
    let pointer = if wide { u64::MAX } else { 0xffff_ffff };
    put(&mut area, 8, &(fpu.fip & pointer).to_le_bytes());
    put(&mut area, 16, &(fpu.fdp & pointer).to_le_bytes());
    put(&mut area, MXCSR, &cpu.current_mxcsr().to_le_bytes());
    put(&mut area, MXCSR + 4, &MXCSR_MASK.to_le_bytes());
    for (number, st) in fpu.st.iter().enumerate() {
        put(&mut area, 32 + 16 * number, st);
    }
    for (number, xmm) in cpu.xmm.iter().enumerate() {
        put(&mut area, REGISTERS + 16 * number, &xmm.to_le_bytes());
    }
    area
}

#[inline(never)]
fn save(cpu: &mut Cpu, address: u64, wide: bool) -> Result<(), Fault> {
    cpu.check_canonical(address, AREA)?;
    let address = cpu.aligned(address)?;
    // The last byte first, as processors do: it is the address of the page fault.
    cpu.check_write(address.wrapping_add(AREA - 1), 1)?;
    cpu.check_write(address, AREA)?;
    let area = image(cpu, wide);
    let length = REGISTERS + 16 * registers(cpu);
    for at in (0..length).step_by(16) {
        cpu.write(address.wrapping_add(at as u64), u128::from_le_bytes(get(&area, at)))?;
    }
    Ok(())
}

fn fpu(area: &Area, wide: bool) -> Fpu {
    let pointer = if wide { u64::MAX } else { 0xffff_ffff };
    let cw = u16::from_le_bytes(get(area, 0)) & FCW_BITS | FCW_ONE;
    let sw = u16::from_le_bytes(get(area, 2)) & !SUMMARY;
    Fpu {
        cw,
        sw: if sw & !cw & EXCEPTIONS != 0 { sw | SUMMARY } else { sw },
        tag: area[4],
        fop: u16::from_le_bytes(get(area, 6)) & 0x7ff,
        fip: u64::from_le_bytes(get(area, 8)) & pointer,
        fdp: u64::from_le_bytes(get(area, 16)) & pointer,
        st: std::array::from_fn(|number| get(area, 32 + 16 * number)),
    }
}

#[inline(never)]
fn restore(cpu: &mut Cpu, address: u64, wide: bool) -> Result<(), Fault> {
    cpu.check_canonical(address, AREA)?;
    let address = cpu.aligned(address)?;
    cpu.read::<u8>(address.wrapping_add(AREA - 1))?;
    let mut area = [0; WRITTEN];
    for at in (0..AREA as usize).step_by(16) {
        let bytes = cpu.read::<u128>(address.wrapping_add(at as u64))?.to_le_bytes();
        if at < WRITTEN {
            put(&mut area, at, &bytes);
        }
    }
    cpu.load_mxcsr(u32::from_le_bytes(get(&area, MXCSR)))?;
    cpu.fpu = fpu(&area, wide);
    for number in 0..registers(cpu) {
        cpu.xmm[number] = u128::from_le_bytes(get(&area, REGISTERS + 16 * number));
    }
    Ok(())
}

pub fn fxsave<const WIDE: bool>(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, save(cpu, cpu.address(op), WIDE));
    next(cpu, op)
}

pub fn fxrstor<const WIDE: bool>(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, restore(cpu, cpu.address(op), WIDE));
    next(cpu, op)
}
