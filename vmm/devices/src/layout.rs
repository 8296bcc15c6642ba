//! Every address, port and interrupt number of the machine model `pc`.
//!
//! ```text
//!  guest physical memory                        ports
//!  0000_0000  RAM, 64 MiB unless told           020-021 0a0-0a1  PIC pair      4d0-4d1 ELCR
//!  d000_0000  virtio-net    4 KiB               040-043 061      PIT, port B
//!  d000_1000  virtio-blk    4 KiB               064              reset (write fe)
//!  d000_2000  virtio-rng    4 KiB               070-071          CMOS, RTC
//!  d000_3000  virtio-console 4 KiB              080              POST code, ignored
//!                                               3f8-3ff          UART
//!                                               600-603          ACPI PM1a events
//!                                               604              ACPI PM1a control
//!                                               608              ACPI timer
//!                                               cf8 cfc-cff      PCI address, PCI data
//!                                               cf9              reset control
//!                                               4c50-4c5b        event port
//! ```

/// RAM of a guest whose configuration does not say, in bytes.
pub const DEFAULT_MEMORY_BYTES: u64 = 64 << 20;
/// Most RAM a guest can have: it must end below the MMIO windows.
pub const MAX_MEMORY_BYTES: u64 = 3 << 30;
/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;

/// Where the boot loader puts the GDT.
pub const BOOT_GDT: u64 = 0x500;
/// Where the boot loader puts Linux's `boot_params`; RSI points here.
pub const BOOT_PARAMS: u64 = 0x7000;
/// First byte of the boot page tables.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// First byte after the boot page tables.
pub const BOOT_PAGE_TABLES_END: u64 = 0x1_0000;
/// Where the boot loader puts the kernel command line.
pub const BOOT_COMMAND_LINE: u64 = 0x2_0000;
/// Guest images load here or higher.
pub const GUEST_LOAD_MIN: u64 = 0x10_0000;

/// Size of each virtio-mmio window.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// virtio-net.
pub const VIRTIO_NET_BASE: u64 = 0xd000_0000;
/// virtio-blk.
pub const VIRTIO_BLK_BASE: u64 = 0xd000_1000;
/// virtio-rng.
pub const VIRTIO_RNG_BASE: u64 = 0xd000_2000;
/// virtio-console.
pub const VIRTIO_CONSOLE_BASE: u64 = 0xd000_3000;
/// Most entries of each virtqueue.
pub const VIRTQUEUE_SIZE: u16 = 256;

/// First PIC, command port; its data port follows.
pub const PIC1_PORT: u16 = 0x20;
/// Second PIC, command port; its data port follows.
pub const PIC2_PORT: u16 = 0xa0;
/// Edge/level control of the first PIC; the second's follows.
pub const ELCR_PORT: u16 = 0x4d0;
/// PIT channel 0; channels 1 and 2 and the control word follow.
pub const PIT_PORT: u16 = 0x40;
/// Port B of the PC: gate and output of PIT channel 2.
pub const PORT_B: u16 = 0x61;
/// Keyboard controller command port: of it only the reset pulse exists.
pub const KEYBOARD_COMMAND_PORT: u16 = 0x64;
/// The command at `KEYBOARD_COMMAND_PORT` that resets.
pub const KEYBOARD_RESET: u8 = 0xfe;
/// CMOS index; its data port follows.
pub const CMOS_PORT: u16 = 0x70;
/// POST codes: written by firmware and as a delay, ignored.
pub const POST_PORT: u16 = 0x80;
/// UART 16550, eight registers.
pub const UART_PORT: u16 = 0x3f8;
/// ACPI PM1a event block: status and enable, 16 bits each.
pub const PM1A_EVENT_PORT: u16 = 0x600;
/// ACPI PM1a control block, 16 bits.
pub const PM1A_CONTROL_PORT: u16 = 0x604;
/// ACPI power management timer, 32 bits.
pub const PM_TIMER_PORT: u16 = 0x608;
/// SLP_EN in PM1a control: power off.
pub const PM1A_SLP_EN: u16 = 1 << 13;
/// PCI's configuration address, 32 bits.
pub const PCI_ADDRESS_PORT: u16 = 0xcf8;
/// PCI's configuration data, 32 bits of any width.
pub const PCI_DATA_PORT: u16 = 0xcfc;
/// Reset control register.
pub const RESET_PORT: u16 = 0xcf9;
/// The bit at `RESET_PORT` that resets.
pub const RESET_CPU: u8 = 1 << 2;

/// Event port: identity (read) and commands (write), 32 bits.
pub const EVENT_PORT: u16 = 0x4c50;
/// Event port: page frame number of the shared page, 32 bits, write only.
pub const EVENT_PAGE_PORT: u16 = 0x4c54;
/// Event port: ends the machine with the exit status written, 8 bits.
pub const EVENT_EXIT_PORT: u16 = 0x4c58;
/// What a 32-bit read of `EVENT_PORT` returns: "LKS" and version 1.
pub const EVENT_IDENTITY: u32 = 0x4c4b_5301;
/// Command: service all virtqueues and go on.
pub const EVENT_POLL: u32 = 0;
/// Command: service all virtqueues and wait for an input or the deadline in the shared page.
pub const EVENT_WAIT: u32 = 1;
/// Shared page: virtual time, nanoseconds since power-on (device writes).
pub const SHARED_NOW_NS: u64 = 0x00;
/// Shared page: Unix time at power-on, nanoseconds (device writes).
pub const SHARED_WALL_BASE_NS: u64 = 0x08;
/// Shared page: virtual time at which a WAIT ends, `u64::MAX` for never (guest writes).
pub const SHARED_WAKE_AT_NS: u64 = 0x10;
/// Shared page: how many inputs were applied (device writes).
pub const SHARED_INPUTS_APPLIED: u64 = 0x18;
/// Shared page: how many inputs the guest has taken note of (guest writes).
pub const SHARED_INPUTS_SEEN: u64 = 0x20;
/// Shared page: 1 while the power button's status (PWRBTN_STS in PM1a status) is set (device writes).
pub const SHARED_POWER_BUTTON: u64 = 0x28;

/// PIT channel 0.
pub const PIT_IRQ: u8 = 0;
/// Input of the first PIC that the second one's output drives.
pub const CASCADE_IRQ: u8 = 2;
/// UART.
pub const UART_IRQ: u8 = 4;
/// virtio-console.
pub const VIRTIO_CONSOLE_IRQ: u8 = 5;
/// RTC.
pub const RTC_IRQ: u8 = 8;
/// ACPI's system control interrupt: the power button.
pub const SCI_IRQ: u8 = 9;
/// virtio-net.
pub const VIRTIO_NET_IRQ: u8 = 10;
/// virtio-blk.
pub const VIRTIO_BLK_IRQ: u8 = 11;
/// virtio-rng.
pub const VIRTIO_RNG_IRQ: u8 = 12;

/// How far a guest's read of time advances the virtual clock (about what an ISA bus cycle takes): time stands
/// still between `Clock` events, but no two reads see the same instant.
pub const TIME_READ_STEP_NS: u64 = 1_000;
/// Largest Ethernet frame a guest may send: 1500 bytes behind a header of 14.
pub const MAX_TX_FRAME: usize = 1514;
/// Largest Ethernet frame handed to a guest: as above with a VLAN tag.
pub const MAX_RX_FRAME: usize = 1518;
/// Smallest Ethernet frame: its header.
pub const MIN_FRAME: usize = 14;
/// MAC address of a guest whose configuration does not say.
pub const DEFAULT_GUEST_MAC: [u8; 6] = [0x52, 0x4c, 0x4b, 0x00, 0x00, 0x02];
/// Bytes of a disk sector, the unit of virtio-blk.
pub const SECTOR_BYTES: u64 = 512;
/// Most data of one disk request.
pub const MAX_DISK_REQUEST_BYTES: u64 = 1 << 20;
/// While requests with this much data are in flight, no further one is taken from the guest.
pub const MAX_DISK_IN_FLIGHT_BYTES: u64 = 4 << 20;
/// While so many requests are in flight, no further one is taken from the guest.
pub const MAX_DISK_IN_FLIGHT: usize = VIRTQUEUE_SIZE as usize;
