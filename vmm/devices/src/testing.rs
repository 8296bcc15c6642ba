//! A guest for tests: RAM, the virtio driver's side of a queue, and shorthand for port and MMIO accesses.

use virtio_bindings::virtio_mmio as reg;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::layout::{VIRTIO_BLK_BASE, VIRTIO_CONSOLE_BASE, VIRTIO_NET_BASE, VIRTIO_RNG_BASE};
use crate::{Devices, DevicesConfig};

/// Guest memory of the tests, with the dirty-page tracking that the machine uses left out.
pub(crate) type Ram = GuestMemoryMmap<()>;

/// Bytes of RAM in the tests.
pub(crate) const RAM_BYTES: u64 = 4 << 20;
/// Bytes of the disk in the tests.
pub(crate) const DISK_BYTES: u64 = 8 << 20;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) fn ram() -> Ram {
    Ram::from_ranges(&[(GuestAddress(0), RAM_BYTES as usize)]).unwrap()
}

pub(crate) fn config() -> DevicesConfig {
    DevicesConfig {
        disk_bytes: DISK_BYTES,
        // 2026-11-20 12:34:56 UTC and a quarter
        wall_base_ns: 1_795_178_096_250_000_000,
        memory_bytes: RAM_BYTES,
        ..DevicesConfig::default()
    }
}

pub(crate) fn devices() -> Devices {
    Devices::new(&config())
}

/// Devices and their RAM.
pub(crate) struct Guest {
    pub devices: Devices,
    pub ram: Ram,
}

impl Guest {
    pub(crate) fn new() -> Self {
        Self { devices: devices(), ram: ram() }
    }

    pub(crate) fn inb(&mut self, port: u16) -> u8 {
        let mut data = [0];
        self.devices.pio_read(&self.ram, port, &mut data);
        data[0]
    }

    pub(crate) fn inl(&mut self, port: u16) -> u32 {
        let mut data = [0; 4];
        self.devices.pio_read(&self.ram, port, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn outb(&mut self, port: u16, value: u8) {
        self.devices.pio_write(&self.ram, port, &[value]);
    }

    pub(crate) fn outl(&mut self, port: u16, value: u32) {
        self.devices.pio_write(&self.ram, port, &value.to_le_bytes());
    }

    pub(crate) fn readl(&mut self, address: u64) -> u32 {
        let mut data = [0; 4];
        self.devices.mmio_read(&self.ram, address, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn writel(&mut self, address: u64, value: u32) {
        self.devices.mmio_write(&self.ram, address, &value.to_le_bytes());
    }

    pub(crate) fn read_u64(&self, address: u64) -> u64 {
        self.ram.read_obj(GuestAddress(address)).unwrap()
    }

    pub(crate) fn write_u64(&self, address: u64, value: u64) {
        self.ram.write_obj(value, GuestAddress(address)).unwrap();
    }

    pub(crate) fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ram.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    pub(crate) fn poke(&self, address: u64, data: &[u8]) {
        self.ram.write_slice(data, GuestAddress(address)).unwrap();
    }

    /// The bytes that a digest of the devices covers.
    pub(crate) fn digest(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.devices.digest_bytes(&mut |part| bytes.extend_from_slice(part));
        bytes
    }

    pub(crate) fn reg(&mut self, device: u64, register: u32) -> u32 {
        self.readl(device + u64::from(register))
    }

    pub(crate) fn set_reg(&mut self, device: u64, register: u32, value: u32) {
        self.writel(device + u64::from(register), value);
    }

    /// Resets a device and negotiates `features` up to FEATURES_OK.
    pub(crate) fn negotiate(&mut self, device: u64, features: u64) {
        self.set_reg(device, reg::VIRTIO_MMIO_STATUS, 0);
        self.set_reg(device, reg::VIRTIO_MMIO_STATUS, 3);
        for half in [0, 1] {
            self.set_reg(device, reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, half);
            let bits = (features >> (32 * half)) as u32;
            self.set_reg(device, reg::VIRTIO_MMIO_DRIVER_FEATURES, bits);
        }
        self.set_reg(device, reg::VIRTIO_MMIO_STATUS, 3 | 8);
    }

    /// Sets a queue up at `base`, ready.
    pub(crate) fn add_queue(&mut self, device: u64, index: u32, size: u16, base: u64) -> Driver {
        let queue = Driver::at(base, size);
        self.set_reg(device, reg::VIRTIO_MMIO_QUEUE_SEL, index);
        self.set_reg(device, reg::VIRTIO_MMIO_QUEUE_NUM, u32::from(size));
        for (low, address) in [
            (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, queue.base),
            (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, queue.available()),
            (reg::VIRTIO_MMIO_QUEUE_USED_LOW, queue.used_ring()),
        ] {
            self.set_reg(device, low, address as u32);
            self.set_reg(device, low + 4, (address >> 32) as u32);
        }
        self.set_reg(device, reg::VIRTIO_MMIO_QUEUE_READY, 1);
        queue
    }

    pub(crate) fn driver_ok(&mut self, device: u64) {
        self.set_reg(device, reg::VIRTIO_MMIO_STATUS, 3 | 8 | 4);
    }

    /// virtio-net with both queues of 16 entries: receive, transmit.
    pub(crate) fn start_net(&mut self, features: u64) -> [Driver; 2] {
        self.negotiate(VIRTIO_NET_BASE, features);
        let rx = self.add_queue(VIRTIO_NET_BASE, 0, 16, 0x10_0000);
        let tx = self.add_queue(VIRTIO_NET_BASE, 1, 16, 0x11_0000);
        self.driver_ok(VIRTIO_NET_BASE);
        [rx, tx]
    }

    /// virtio-blk with a queue of 16 entries.
    pub(crate) fn start_blk(&mut self, features: u64) -> Driver {
        self.negotiate(VIRTIO_BLK_BASE, features);
        let queue = self.add_queue(VIRTIO_BLK_BASE, 0, 16, 0x12_0000);
        self.driver_ok(VIRTIO_BLK_BASE);
        queue
    }

    /// virtio-rng with a queue of 16 entries.
    pub(crate) fn start_rng(&mut self, features: u64) -> Driver {
        self.negotiate(VIRTIO_RNG_BASE, features);
        let queue = self.add_queue(VIRTIO_RNG_BASE, 0, 16, 0x13_0000);
        self.driver_ok(VIRTIO_RNG_BASE);
        queue
    }

    /// virtio-console with both queues of 16 entries: receive, transmit.
    pub(crate) fn start_console(&mut self, features: u64) -> [Driver; 2] {
        self.negotiate(VIRTIO_CONSOLE_BASE, features);
        let rx = self.add_queue(VIRTIO_CONSOLE_BASE, 0, 16, 0x14_0000);
        let tx = self.add_queue(VIRTIO_CONSOLE_BASE, 1, 16, 0x15_0000);
        self.driver_ok(VIRTIO_CONSOLE_BASE);
        [rx, tx]
    }
}

/// The driver's side of a split virtqueue: table, available ring and used ring, one page apart.
pub(crate) struct Driver {
    pub size: u16,
    pub base: u64,
    next_desc: u16,
    avail: u16,
    used: u16,
}

impl Driver {
    /// An empty queue, or an indirect table, at `base`.
    pub(crate) fn at(base: u64, size: u16) -> Self {
        Self { size, base, next_desc: 0, avail: 0, used: 0 }
    }

    pub(crate) fn available(&self) -> u64 {
        self.base + 0x1000
    }

    pub(crate) fn used_ring(&self) -> u64 {
        self.base + 0x2000
    }

    pub(crate) fn set_descriptor(
        &self,
        ram: &Ram,
        index: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let at = self.base + 16 * u64::from(index);
        ram.write_obj(address, GuestAddress(at)).unwrap();
        ram.write_obj(len, GuestAddress(at + 8)).unwrap();
        ram.write_obj(flags, GuestAddress(at + 12)).unwrap();
        ram.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Makes a chain of (address, length, flags) available; its head.
    pub(crate) fn add(&mut self, ram: &Ram, buffers: &[(u64, u32, u16)]) -> u16 {
        let head = self.next_desc;
        for (position, &(address, len, flags)) in buffers.iter().enumerate() {
            let index = self.next_desc;
            self.next_desc = (self.next_desc + 1) % self.size;
            let chained = if position + 1 < buffers.len() { NEXT } else { 0 };
            self.set_descriptor(ram, index, address, len, flags | chained, self.next_desc);
        }
        self.offer(ram, head);
        head
    }

    /// Puts a head into the available ring.
    pub(crate) fn offer(&mut self, ram: &Ram, head: u16) {
        let slot = self.available() + 4 + 2 * u64::from(self.avail % self.size);
        ram.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        ram.write_obj(self.avail, GuestAddress(self.available() + 2)).unwrap();
    }

    /// The next (head, length) that the device returned.
    pub(crate) fn take_used(&mut self, ram: &Ram) -> Option<(u32, u32)> {
        let index: u16 = ram.read_obj(GuestAddress(self.used_ring() + 2)).unwrap();
        if index == self.used {
            return None;
        }
        let slot = self.used_ring() + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        let id = ram.read_obj(GuestAddress(slot)).unwrap();
        Some((id, ram.read_obj(GuestAddress(slot + 4)).unwrap()))
    }

    /// Sets the flags of the available ring (1: no interrupts).
    pub(crate) fn set_flags(&self, ram: &Ram, flags: u16) {
        ram.write_obj(flags, GuestAddress(self.available())).unwrap();
    }

    /// Sets `used_event`: an interrupt is wanted once the used index passes it.
    pub(crate) fn set_used_event(&self, ram: &Ram, index: u16) {
        let at = self.available() + 4 + 2 * u64::from(self.size);
        ram.write_obj(index, GuestAddress(at)).unwrap();
    }

    /// `avail_event` as the device wrote it.
    pub(crate) fn avail_event(&self, ram: &Ram) -> u16 {
        let at = self.used_ring() + 4 + 8 * u64::from(self.size);
        ram.read_obj(GuestAddress(at)).unwrap()
    }
}
