//! The MMIO transport, version 2 (virtio 1.2, 4.2), and the part of device initialisation that all devices
//! share (3.1): feature negotiation, device status, queue set-up, interrupt status.
//!
//! ```text
//!  status:  0 ─▶ ACKNOWLEDGE ─▶ DRIVER ─▶ FEATURES_OK ─▶ DRIVER_OK ──broken queue──▶ +DEVICE_NEEDS_RESET
//!           ▲                              (refused if                                       │
//!           └──────── write of 0           the features                                      │
//!           └──────────────────────────── are not ours)  ◀───────────────────────────────────┘
//! ```
//!
//! Registers are 32 bits wide and aligned; other accesses to them read as all ones and write nothing.

use serde::{Deserialize, Serialize};
use tracing::warn;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestMemory;

use super::ring::{Broken, Part, Ring};
use crate::layout::VIRTQUEUE_SIZE;

/// "virt", the first register of every device.
const MAGIC: u32 = 0x7472_6976;
/// The transport's version.
const VERSION: u32 = 2;
/// "LKSP", the vendor.
const VENDOR: u32 = 0x5053_4b4c;
/// How many break-downs of a device the host's log tells of.
const BREAK_DOWNS_TOLD: u64 = 4;
/// Where the device's own configuration begins in its window.
const CONFIG: u64 = reg::VIRTIO_MMIO_CONFIG as u64;

/// Feature bits that every device offers.
pub(crate) const COMMON_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// What distinguishes one device from another here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    pub name: &'static str,
    pub device_id: u32,
    pub features: u64,
}

/// What the device has to do after a register was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    /// The guest notified the device of this queue.
    Notify(u32),
    /// The guest reset the device; transport and queues are reset already.
    Reset,
}

/// The registers, but for those of the queues.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Transport {
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    interrupt_status: u32,
    /// How often the device broke down since power-on.
    break_downs: u64,
}

impl Transport {
    /// The registers after a reset of the machine.
    pub(crate) fn after_reset(&self) -> Self {
        Self { break_downs: self.break_downs, ..Self::default() }
    }

    /// Whether queues are serviced: between DRIVER_OK and a reset or a broken queue.
    pub(crate) fn running(&self) -> bool {
        self.status & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET) == VIRTIO_CONFIG_S_DRIVER_OK
    }

    /// Whether a feature was negotiated, by its bit number.
    pub(crate) fn negotiated(&self, bit: u32) -> bool {
        self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 && self.driver_features >> bit & 1 != 0
    }

    /// The level of the device's interrupt line.
    pub(crate) fn line(&self) -> bool {
        self.interrupt_status != 0
    }

    /// Buffers were used, and the guest wants to be told.
    pub(crate) fn interrupt_used(&mut self) {
        self.interrupt_status |= reg::VIRTIO_MMIO_INT_VRING;
    }

    /// A queue is unusable: nothing happens any more until the guest resets the device (2.1.2).
    pub(crate) fn break_down(&mut self, identity: &Identity, reason: Broken) {
        // A guest that breaks its queues again and again does not get to fill the host's log.
        self.break_downs += 1;
        if self.break_downs <= BREAK_DOWNS_TOLD {
            warn!(device = identity.name, %reason, "the guest broke a virtqueue: DEVICE_NEEDS_RESET");
        }
        self.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        self.interrupt_status |= reg::VIRTIO_MMIO_INT_CONFIG;
    }

    /// Reads the window of a device at `offset`.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "an offset below CONFIG; features are shown by halves"
    )]
    pub(crate) fn read(
        &self,
        identity: &Identity,
        rings: &[&Ring],
        config: &[u8],
        offset: u64,
        data: &mut [u8],
    ) {
        data.fill(0xff);
        if offset >= CONFIG {
            let start = usize::try_from(offset - CONFIG).unwrap_or(usize::MAX);
            for (index, byte) in data.iter_mut().enumerate() {
                *byte = start.checked_add(index).and_then(|at| config.get(at)).copied().unwrap_or(0);
            }
        } else if let (Ok(data), 0) = (<&mut [u8; 4]>::try_from(data), offset % 4) {
            *data = self.register(identity, rings, offset as u32).to_le_bytes();
        }
    }

    #[allow(
        clippy::cast_possible_truncation,
        reason = "an offset below CONFIG; features are shown by halves"
    )]
    fn register(&self, identity: &Identity, rings: &[&Ring], offset: u32) -> u32 {
        let ring = rings.get(self.queue_sel as usize);
        match offset {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => identity.device_id,
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => match self.device_features_sel {
                0 => identity.features as u32,
                1 => (identity.features >> 32) as u32,
                _ => 0,
            },
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => ring.map_or(0, |_| u32::from(VIRTQUEUE_SIZE)),
            reg::VIRTIO_MMIO_QUEUE_READY => ring.map_or(0, |ring| u32::from(ring.ready())),
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt_status,
            reg::VIRTIO_MMIO_STATUS => self.status,
            // No configuration ever changes.
            reg::VIRTIO_MMIO_CONFIG_GENERATION => 0,
            // No shared memory regions: length and base are all ones. Write-only registers: likewise.
            _ => u32::MAX,
        }
    }

    /// Writes the window of a device at `offset`.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "an offset below CONFIG; features are shown by halves"
    )]
    pub(crate) fn write<M: GuestMemory>(
        &mut self,
        mem: &M,
        identity: &Identity,
        rings: &mut [&mut Ring],
        offset: u64,
        data: &[u8],
    ) -> Effect {
        // Of the configurations here nothing can be written.
        let Ok(data) = <[u8; 4]>::try_from(data) else { return Effect::None };
        if !offset.is_multiple_of(4) || offset >= CONFIG {
            return Effect::None;
        }
        let value = u32::from_le_bytes(data);
        match offset as u32 {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => self.write_features(value),
            reg::VIRTIO_MMIO_QUEUE_SEL => self.queue_sel = value,
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => return Effect::Notify(value),
            reg::VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt_status &= !value,
            reg::VIRTIO_MMIO_STATUS => return self.write_status(identity, rings, value),
            register => self.write_queue(mem, rings, register, value),
        }
        Effect::None
    }

    fn write_features(&mut self, value: u32) {
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return;
        }
        let shift = match self.driver_features_sel {
            0 => 0,
            1 => 32,
            _ => return,
        };
        self.driver_features &= !(0xffff_ffff << shift);
        self.driver_features |= u64::from(value) << shift;
    }

    fn write_status(&mut self, identity: &Identity, rings: &mut [&mut Ring], value: u32) -> Effect {
        if value == 0 {
            *self = self.after_reset();
            for ring in rings {
                ring.reset();
            }
            return Effect::Reset;
        }
        let before = self.status;
        // A driver must not clear bits but by reset (2.1.1), and NEEDS_RESET is the device's own.
        self.status |= value & 0xff & !VIRTIO_CONFIG_S_NEEDS_RESET;
        let features_ok = self.driver_features & !identity.features == 0
            && self.driver_features >> VIRTIO_F_VERSION_1 & 1 != 0;
        if before & VIRTIO_CONFIG_S_FEATURES_OK == 0 && !features_ok {
            self.status &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            self.status &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        if before & VIRTIO_CONFIG_S_FEATURES_OK == 0 && self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            let event_idx = self.negotiated(VIRTIO_RING_F_EVENT_IDX);
            for ring in rings {
                ring.set_event_idx(event_idx);
            }
        }
        Effect::None
    }

    fn write_queue<M: GuestMemory>(&mut self, mem: &M, rings: &mut [&mut Ring], register: u32, value: u32) {
        let Some(ring) = rings.get_mut(self.queue_sel as usize) else { return };
        if register == reg::VIRTIO_MMIO_QUEUE_READY {
            return if value & 1 != 0 { ring.enable(mem) } else { ring.disable() };
        }
        // A driver must not touch a queue that is ready (4.2.2.2).
        if ring.ready() {
            return;
        }
        match register {
            reg::VIRTIO_MMIO_QUEUE_NUM => ring.set_size(value),
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => ring.set_address(Part::Descriptors, false, value),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => ring.set_address(Part::Descriptors, true, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => ring.set_address(Part::Available, false, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => ring.set_address(Part::Available, true, value),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => ring.set_address(Part::Used, false, value),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => ring.set_address(Part::Used, true, value),
            _ => {}
        }
    }
}

#[cfg(test)]
#[path = "mmio_tests.rs"]
mod tests;
