//! Linear to physical as the guest's page tables say (Intel SDM vol. 3, 4.5), for a debugger: no access
//! check, nothing marked accessed, and nothing but RAM read. Tables are guest memory, so every address is
//! checked.

use std::ops::Range;

use vm_memory::{Bytes, GuestAddress};

use crate::engine::CpuState;
use crate::memory::GuestMemory;

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const CR0_PG: u64 = 1 << 31;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;
const PAGE: u64 = 4096;

/// Where a linear address is in guest physical memory; `None` where nothing is mapped.
///
/// Knows long mode and no paging at all. The legacy modes, which 64-bit kernels pass through in a few
/// instructions, are not translated.
pub fn translate(cpu: &CpuState, memory: &GuestMemory, linear: u64) -> Option<u64> {
    walk(cpu, memory, linear, |_| {})
}

/// The same; `passed` is told the address of each entry of the tables that was read.
fn walk(cpu: &CpuState, memory: &GuestMemory, linear: u64, mut passed: impl FnMut(u64)) -> Option<u64> {
    let [cr0, _, cr3, cr4, _] = cpu.cr;
    if cr0 & CR0_PG == 0 {
        return (linear <= u64::from(u32::MAX)).then_some(linear);
    }
    if cpu.efer & EFER_LMA == 0 {
        return None;
    }
    let levels = if cr4 & CR4_LA57 != 0 { 5 } else { 4 };
    let unused = 64 - (12 + 9 * levels);
    if (linear << unused) as i64 >> unused != linear as i64 {
        return None;
    }
    let mut table = cr3 & ADDRESS;
    for level in (0..levels).rev() {
        let shift = 12 + 9 * level;
        let at = table + (linear >> shift & 511) * 8;
        passed(at);
        let entry: u64 = memory.read_obj(GuestAddress(at)).ok()?;
        if entry & PRESENT == 0 {
            return None;
        }
        if level == 0 || (level <= 2 && entry & LARGE != 0) {
            let offset = (1 << shift) - 1;
            return Some(entry & ADDRESS & !offset | linear & offset);
        }
        table = entry & ADDRESS;
    }
    None
}

/// Splits a range of linear addresses at page ends and hands each part to `each` with its physical address
/// and its range within `len`. Stops where nothing is mapped or `each` says no; how many bytes were done.
pub fn parts(
    cpu: &CpuState,
    memory: &GuestMemory,
    linear: u64,
    len: usize,
    mut each: impl FnMut(u64, std::ops::Range<usize>) -> bool,
) -> usize {
    let mut done = 0;
    while done < len {
        let Some(at) = linear.checked_add(done as u64) else { break };
        let here = ((PAGE - at % PAGE) as usize).min(len - done);
        match translate(cpu, memory, at) {
            Some(physical) if each(physical, done..done + here) => done += here,
            _ => break,
        }
    }
    done
}

/// Reads what is mapped of a range of linear addresses; how many bytes.
pub fn read(cpu: &CpuState, memory: &GuestMemory, linear: u64, into: &mut [u8]) -> usize {
    let len = into.len();
    parts(cpu, memory, linear, len, |physical, range| {
        memory.read_slice(&mut into[range], GuestAddress(physical)).is_ok()
    })
}

/// Adds what `read` depends on, of `len` bytes at a linear address: where they are, and the entries of page
/// tables that say so, or that nothing is mapped there.
pub fn places(cpu: &CpuState, memory: &GuestMemory, linear: u64, len: usize, to: &mut Vec<Range<u64>>) {
    let mut done = 0;
    while done < len {
        let Some(at) = linear.checked_add(done as u64) else { break };
        let here = ((PAGE - at % PAGE) as usize).min(len - done);
        match walk(cpu, memory, at, |entry| to.push(entry..entry + 8)) {
            Some(physical) => to.push(physical..physical + here as u64),
            None => break,
        }
        done += here;
    }
}

#[cfg(test)]
#[path = "paging_tests.rs"]
mod tests;
