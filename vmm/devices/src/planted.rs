//! Mistakes that tests plant in the devices of one half of a pair: what digests are to find.

use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::virtio::Segment;

/// Bytes that a stale buffer keeps.
const SECTOR_BYTES: u32 = 512;

/// Which mistakes are planted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Planted {
    /// The ACPI timer tells this time, nanoseconds, instead of the virtual clock's.
    pub host_clock: Option<fn() -> u64>,
    /// Of what a read of the disk brings, the last sector does not reach the guest's memory: what was in the
    /// buffer before stays.
    pub stale_dma: bool,
}

impl Planted {
    /// The time that the ACPI timer tells.
    pub(crate) fn timer_ns(&self, now_ns: u64) -> u64 {
        self.host_clock.map_or(now_ns, |host_ns| host_ns())
    }

    /// The last sector of a request's buffers, before it completes.
    pub(crate) fn stale_sector<M: GuestMemory>(
        &self,
        mem: &M,
        buffers: &[Segment],
    ) -> Option<(GuestAddress, Vec<u8>)> {
        // What is shorter, or left over, is for the status.
        let last = buffers.iter().rev().find(|buffer| self.stale_dma && buffer.len >= SECTOR_BYTES)?;
        let end = last.address.checked_add(u64::from(last.len - last.len % SECTOR_BYTES))?;
        let at = GuestAddress(end - u64::from(SECTOR_BYTES));
        let mut bytes = vec![0; SECTOR_BYTES as usize];
        mem.read_slice(&mut bytes, at).ok()?;
        Some((at, bytes))
    }
}

/// Makes a sector what it was before its request completed.
pub(crate) fn put_back<M: GuestMemory>(mem: &M, stale: Option<(GuestAddress, Vec<u8>)>) {
    if let Some((at, bytes)) = stale {
        // It was read from there.
        let _ = mem.write_slice(&bytes, at);
    }
}

impl crate::Devices {
    /// Plants mistakes, instead of those planted before.
    pub fn plant(&mut self, planted: Planted) {
        self.planted = planted;
    }
}
