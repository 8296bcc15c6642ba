//! `boot_params`, the "zero page" (Documentation/arch/x86/zero-page.rst), as the 64-bit boot protocol asks.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params as BootParams, setup_header};

use super::{COMMAND_LINE, HIGH_RAM_START, acpi};

const LOW_RAM_END: u64 = 0x9_fc00;
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const LOADER_UNDEFINED: u8 = 0xff;

/// The parameters of a guest with `ram_bytes` of RAM; `header` is what a bzImage says about itself, `initrd`
/// where the initial RAM disk is, and its size.
#[allow(clippy::cast_possible_truncation, reason = "RAM ends below 4 GiB")]
pub(super) fn boot_params(
    ram_bytes: u64,
    header: Option<setup_header>,
    initrd: Option<(u64, u64)>,
    command_line_len: u32,
) -> BootParams {
    let mut params = BootParams::default();
    match header {
        Some(header) => params.hdr = header,
        None => {
            params.hdr.boot_flag = BOOT_FLAG;
            params.hdr.header = HEADER_MAGIC;
            params.hdr.cmdline_size = command_line_len;
        }
    }
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    if let Some((start, size)) = initrd {
        // RAM and its files end below 4 GiB.
        (params.hdr.ramdisk_image, params.hdr.ramdisk_size) = (start as u32, size as u32);
    }
    params.acpi_rsdp_addr = acpi::RSDP;
    let entry =
        |start: u64, end: u64, kind: u32| boot_e820_entry { addr: start, size: end - start, r#type: kind };
    params.e820_table[0] = entry(0, LOW_RAM_END, E820_RAM);
    params.e820_table[1] = entry(acpi::RSDP, HIGH_RAM_START, E820_RESERVED);
    params.e820_table[2] = entry(HIGH_RAM_START, ram_bytes, E820_RAM);
    params.e820_entries = 3;
    params
}
