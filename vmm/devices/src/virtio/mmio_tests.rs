//! The transport as a driver sees it.

use super::*;
use crate::layout::{VIRTIO_BLK_BASE, VIRTIO_NET_BASE};
use crate::testing::*;

const V1: u64 = 1 << VIRTIO_F_VERSION_1;
const STATUS: u32 = reg::VIRTIO_MMIO_STATUS;

#[test]
fn identification() {
    let mut guest = Guest::new();
    for (device, id) in [(VIRTIO_NET_BASE, 1), (VIRTIO_BLK_BASE, 2)] {
        assert_eq!(guest.reg(device, reg::VIRTIO_MMIO_MAGIC_VALUE), u32::from_le_bytes(*b"virt"));
        assert_eq!(guest.reg(device, reg::VIRTIO_MMIO_VERSION), 2);
        assert_eq!(guest.reg(device, reg::VIRTIO_MMIO_DEVICE_ID), id);
        assert_eq!(guest.reg(device, reg::VIRTIO_MMIO_VENDOR_ID), VENDOR);
        assert_eq!(guest.reg(device, reg::VIRTIO_MMIO_CONFIG_GENERATION), 0);
        assert_eq!(guest.reg(device, reg::VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    }
}

fn offered(guest: &mut Guest, device: u64) -> u64 {
    (0..4).fold(0, |all, half| {
        guest.set_reg(device, reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, half);
        let bits = u64::from(guest.reg(device, reg::VIRTIO_MMIO_DEVICE_FEATURES));
        assert!(half < 2 || bits == 0);
        all | bits << (32 * (half & 1))
    })
}

#[test]
fn features_offered() {
    let mut guest = Guest::new();
    let common = 1 << 32 | 1 << 29 | 1 << 28;
    assert_eq!(offered(&mut guest, VIRTIO_NET_BASE), common | 1 << 5 | 1 << 16);
    assert_eq!(offered(&mut guest, VIRTIO_BLK_BASE), common | 1 << 1 | 1 << 2 | 1 << 6 | 1 << 9);
}

#[test]
fn features_that_are_not_offered_are_refused() {
    let mut guest = Guest::new();
    for (features, accepted) in [
        (V1, true),
        (V1 | 1 << 5, true),
        // A legacy driver, MRG_RXBUF, RING_RESET.
        (0, false),
        (V1 | 1 << 15, false),
        (V1 | 1 << 40, false),
    ] {
        guest.negotiate(VIRTIO_NET_BASE, features);
        let expected = if accepted { 3 | 8 } else { 3 };
        assert_eq!(guest.reg(VIRTIO_NET_BASE, STATUS), expected, "{features:#x}");
        guest.driver_ok(VIRTIO_NET_BASE);
        let expected = if accepted { 3 | 8 | 4 } else { 3 };
        assert_eq!(guest.reg(VIRTIO_NET_BASE, STATUS), expected, "{features:#x}");
    }
}

#[test]
fn features_are_fixed_once_accepted() {
    let mut guest = Guest::new();
    guest.negotiate(VIRTIO_NET_BASE, V1);
    guest.set_reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
    guest.set_reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_DRIVER_FEATURES, 1 << VIRTIO_RING_F_EVENT_IDX);
    guest.driver_ok(VIRTIO_NET_BASE);
    assert_eq!(guest.reg(VIRTIO_NET_BASE, STATUS), 3 | 8 | 4);
    assert!(!guest.devices.parts.net.transport().negotiated(VIRTIO_RING_F_EVENT_IDX));
}

#[test]
fn status_bits_are_cleared_by_reset_only() {
    let mut guest = Guest::new();
    guest.negotiate(VIRTIO_NET_BASE, V1);
    guest.set_reg(VIRTIO_NET_BASE, STATUS, 1);
    assert_eq!(guest.reg(VIRTIO_NET_BASE, STATUS), 3 | 8);
    guest.set_reg(VIRTIO_NET_BASE, STATUS, 64);
    assert_eq!(guest.reg(VIRTIO_NET_BASE, STATUS), 3 | 8, "NEEDS_RESET is the device's");
    guest.set_reg(VIRTIO_NET_BASE, STATUS, 128);
    assert_eq!(guest.reg(VIRTIO_NET_BASE, STATUS), 3 | 8 | 128);
    guest.set_reg(VIRTIO_NET_BASE, STATUS, 0);
    assert_eq!(guest.reg(VIRTIO_NET_BASE, STATUS), 0);
}

#[test]
fn reset_forgets_queues() {
    let mut guest = Guest::new();
    guest.start_net(V1);
    for queue in 0..2 {
        guest.set_reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_QUEUE_SEL, queue);
        assert_eq!(guest.reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_QUEUE_READY), 1);
    }
    let mut fresh = Guest::new();
    guest.set_reg(VIRTIO_NET_BASE, STATUS, 0);
    assert_eq!(guest.digest(), {
        fresh.start_net(V1);
        fresh.set_reg(VIRTIO_NET_BASE, STATUS, 0);
        fresh.digest()
    });
    guest.set_reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(guest.reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_QUEUE_READY), 0);
}

#[test]
fn queues_that_do_not_exist() {
    let mut guest = Guest::new();
    guest.negotiate(VIRTIO_BLK_BASE, V1);
    assert_eq!(guest.reg(VIRTIO_BLK_BASE, reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 256);
    for queue in [1, 2, u32::MAX] {
        guest.add_queue(VIRTIO_BLK_BASE, queue, 16, 0x10_0000);
        assert_eq!(guest.reg(VIRTIO_BLK_BASE, reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        assert_eq!(guest.reg(VIRTIO_BLK_BASE, reg::VIRTIO_MMIO_QUEUE_READY), 0);
        guest.set_reg(VIRTIO_BLK_BASE, reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue);
    }
}

#[test]
fn queues_outside_ram_or_without_addresses_do_not_become_ready() {
    let mut guest = Guest::new();
    for base in [RAM_BYTES - 0x2000, RAM_BYTES, VIRTIO_NET_BASE, u64::MAX << 14] {
        guest.negotiate(VIRTIO_NET_BASE, V1);
        guest.add_queue(VIRTIO_NET_BASE, 0, 16, base);
        assert_eq!(guest.reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_QUEUE_READY), 0, "{base:#x}");
    }
    guest.negotiate(VIRTIO_NET_BASE, V1);
    guest.set_reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_QUEUE_SEL, 0);
    guest.set_reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(guest.reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_QUEUE_READY), 0);
}

#[test]
fn bad_sizes_and_misaligned_addresses_are_ignored() {
    let mut guest = Guest::new();
    guest.negotiate(VIRTIO_NET_BASE, V1);
    guest.set_reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_QUEUE_NUM, 32);
    let before = guest.digest();
    for size in [0, 3, 512, 0x1_0020, u32::MAX] {
        guest.set_reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_QUEUE_NUM, size);
    }
    guest.set_reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1008);
    guest.set_reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x1001);
    guest.set_reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_QUEUE_USED_LOW, 0x1002);
    assert_eq!(guest.digest(), before);
}

#[test]
fn a_ready_queue_cannot_be_changed() {
    let mut guest = Guest::new();
    guest.start_net(V1);
    let before = guest.digest();
    for register in [
        reg::VIRTIO_MMIO_QUEUE_NUM,
        reg::VIRTIO_MMIO_QUEUE_DESC_LOW,
        reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
        reg::VIRTIO_MMIO_QUEUE_USED_LOW,
    ] {
        guest.set_reg(VIRTIO_NET_BASE, register, 0x40);
    }
    assert_eq!(guest.digest(), before);
    guest.set_reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(guest.reg(VIRTIO_NET_BASE, reg::VIRTIO_MMIO_QUEUE_READY), 0);
}

#[test]
fn registers_are_32_bits_wide_and_aligned() {
    let mut guest = Guest::new();
    for (address, size) in [(0, 1), (0, 2), (0, 8), (2, 4), (1, 4)] {
        let mut data = [0; 8];
        guest.devices.mmio_read(&guest.ram, VIRTIO_NET_BASE + address, &mut data[..size]);
        assert_eq!(data[..size], [0xff; 8][..size]);
        let before = guest.digest();
        guest.devices.mmio_write(
            &guest.ram,
            VIRTIO_NET_BASE + 0x70 + address,
            &[3, 0, 0, 0, 0, 0, 0, 0][..size],
        );
        assert_eq!(guest.digest(), before);
    }
}

#[test]
fn configuration_is_read_at_any_width_and_not_written() {
    let mut guest = Guest::new();
    let mut mac = [0; 6];
    for (index, byte) in mac.iter_mut().enumerate() {
        let mut data = [0];
        guest.devices.mmio_read(&guest.ram, VIRTIO_NET_BASE + 0x100 + index as u64, &mut data);
        *byte = data[0];
    }
    assert_eq!(mac, config().mac);
    let mut status = [0; 2];
    guest.devices.mmio_read(&guest.ram, VIRTIO_NET_BASE + 0x106, &mut status);
    assert_eq!(status, [1, 0], "the link is up");
    let mut capacity = [0; 8];
    guest.devices.mmio_read(&guest.ram, VIRTIO_BLK_BASE + 0x100, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), DISK_BYTES / 512);
    let words: Vec<u32> = [8, 12, 20, 24].map(|at| guest.readl(VIRTIO_BLK_BASE + 0x100 + at)).into();
    assert_eq!(words, [4096, 254, 512, 0], "size_max, seg_max, blk_size, nothing");
    let mut end = [1; 8];
    guest.devices.mmio_read(&guest.ram, VIRTIO_BLK_BASE + 0xffc, &mut end);
    assert_eq!(end, [0; 8]);
    let before = guest.digest();
    guest.writel(VIRTIO_NET_BASE + 0x100, 0);
    assert_eq!(guest.digest(), before);
}
