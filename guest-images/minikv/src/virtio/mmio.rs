//! Registers of one virtio-mmio window (virtio 1.2, 4.2.2) and the initialisation every device needs (3.1.1).

use core::arch::asm;

use super::queue::Queue;

const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// VIRTIO_F_VERSION_1
const VERSION_1: u64 = 1 << 32;

const REG_MAGIC: usize = 0x000;
const REG_VERSION: usize = 0x004;
const REG_DEVICE_ID: usize = 0x008;
const REG_DEVICE_FEATURES: usize = 0x010;
const REG_DEVICE_FEATURES_SEL: usize = 0x014;
const REG_DRIVER_FEATURES: usize = 0x020;
const REG_DRIVER_FEATURES_SEL: usize = 0x024;
const REG_QUEUE_SEL: usize = 0x030;
const REG_QUEUE_NUM_MAX: usize = 0x034;
const REG_QUEUE_NUM: usize = 0x038;
const REG_QUEUE_READY: usize = 0x044;
const REG_STATUS: usize = 0x070;
const REG_QUEUE_DESC: usize = 0x080;
const REG_QUEUE_DRIVER: usize = 0x090;
const REG_QUEUE_DEVICE: usize = 0x0a0;
const REG_CONFIG: usize = 0x100;

const STATUS_ACKNOWLEDGE: u32 = 1;
const STATUS_DRIVER: u32 = 2;
const STATUS_DRIVER_OK: u32 = 4;
const STATUS_FEATURES_OK: u32 = 8;

/// A device's window.
#[derive(Clone, Copy)]
pub struct Window(usize);

impl Window {
    /// The device of kind `device_id` at `address`, reset, with those of the `wanted` features that it has
    /// accepted; `None` if there is no such device. Queues and `start` come next.
    pub fn open(address: usize, device_id: u32, wanted: u64) -> Option<(Self, u64)> {
        let window = Self(address);
        if window.read(REG_MAGIC) != MAGIC
            || window.read(REG_VERSION) != VERSION
            || window.read(REG_DEVICE_ID) != device_id
        {
            return None;
        }
        window.write(REG_STATUS, 0);
        window.write(REG_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
        let mut offered = 0;
        for half in 0..2 {
            window.write(REG_DEVICE_FEATURES_SEL, half);
            offered |= u64::from(window.read(REG_DEVICE_FEATURES)) << (32 * half);
        }
        let accepted = offered & (wanted | VERSION_1);
        for half in 0..2 {
            window.write(REG_DRIVER_FEATURES_SEL, half);
            window.write(REG_DRIVER_FEATURES, (accepted >> (32 * half)) as u32);
        }
        window.write(REG_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
        let kept = window.read(REG_STATUS) & STATUS_FEATURES_OK != 0;
        (kept && accepted & VERSION_1 != 0).then_some((window, accepted))
    }

    /// Gives the device queue `index`.
    pub fn add_queue(self, index: u32, queue: &Queue) {
        self.write(REG_QUEUE_SEL, index);
        let max = self.read(REG_QUEUE_NUM_MAX);
        assert!(max >= u32::from(queue.size()), "queue {index} has {max} entries, {} needed", queue.size());
        self.write(REG_QUEUE_NUM, u32::from(queue.size()));
        let registers = [REG_QUEUE_DESC, REG_QUEUE_DRIVER, REG_QUEUE_DEVICE];
        for (register, address) in registers.into_iter().zip(queue.addresses()) {
            self.write(register, address as u32);
            self.write(register + 4, (address as u64 >> 32) as u32);
        }
        self.write(REG_QUEUE_READY, 1);
    }

    /// The driver is ready: the device may serve its queues.
    pub fn start(self) {
        let status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK;
        self.write(REG_STATUS, status);
    }

    fn read(self, register: usize) -> u32 {
        let value;
        // SAFETY: the window is mapped, and reading a register changes no memory. A plain `mov`: other forms
        // of access might be more than a hypervisor decodes.
        unsafe {
            asm!("mov {:e}, dword ptr [{}]", out(reg) value, in(reg) self.0 + register,
                options(nostack, preserves_flags));
        }
        value
    }

    fn write(self, register: usize, value: u32) {
        // SAFETY: as `read`; a write makes the device touch only memory that its driver gave it.
        unsafe {
            asm!("mov dword ptr [{}], {:e}", in(reg) self.0 + register, in(reg) value,
                options(nostack, preserves_flags));
        }
    }

    /// Four bytes of the device's configuration.
    pub fn config32(self, offset: usize) -> u32 {
        self.read(REG_CONFIG + offset)
    }

    /// A byte of the device's configuration.
    pub fn config8(self, offset: usize) -> u8 {
        let value;
        // SAFETY: as `read`.
        unsafe {
            asm!("mov {}, byte ptr [{}]", out(reg_byte) value, in(reg) self.0 + REG_CONFIG + offset,
                options(nostack, preserves_flags));
        }
        value
    }
}
