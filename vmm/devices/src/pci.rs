//! PCI's configuration mechanism 1 (PCI Local Bus 3.0, 3.2.2.3.2) with nothing behind it but a host bridge:
//! what a kernel looks for before it believes that there is a PCI bus, which then is empty.
//!
//! ```text
//!  0cf8  address, 32 bits:  enable 31 | bus 23-16 | device 15-11 | function 10-8 | register 7-2
//!  0cfc  data of that register; all ones where no function is
//! ```
//!
//! Narrower accesses do not reach the address; the reset control register lives among them, at 0xcf9.

use serde::{Deserialize, Serialize};

const ENABLE: u32 = 1 << 31;
/// The address' bits that exist.
const ADDRESS_MASK: u32 = 0x80ff_fffc;
/// Identity of the host bridge: Intel's, for virtual machines.
const BRIDGE_IDENTITY: u32 = 0x0d57_8086;
/// Class 06 (bridge), subclass 00 (host), revision 0.
const BRIDGE_CLASS: u32 = 0x0600_0000;

/// The mechanism's one register.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pci {
    address: u32,
}

impl Pci {
    pub(crate) fn address(&self) -> u32 {
        self.address
    }

    pub(crate) fn write_address(&mut self, value: u32) {
        self.address = value & ADDRESS_MASK;
    }

    /// One byte of the register that the address names. Nothing behind it can be written.
    pub(crate) fn read_data(&self, byte: u16) -> u8 {
        if self.address & ENABLE == 0 || self.address & 0x00ff_ff00 != 0 {
            return 0xff;
        }
        let register = match self.address & 0xfc {
            0x00 => BRIDGE_IDENTITY,
            0x08 => BRIDGE_CLASS,
            _ => 0,
        };
        register.to_le_bytes()[usize::from(byte & 3)]
    }
}
