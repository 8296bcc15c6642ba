//! Tests of the boot tables.

use std::process::Command;

use linux_loader::loader::bootparam::boot_params as BootParams;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::Ram;

const RAM_BYTES: u64 = 64 << 20;

fn ram() -> Ram {
    Ram::new(RAM_BYTES).expect("64 MiB")
}

fn zero_page(ram: &Ram) -> BootParams {
    ram.map().read_obj(GuestAddress(BOOT_PARAMS)).expect("in RAM")
}

/// A bzImage of boot protocol 2.15 whose protected-mode part is `len` bytes.
fn bzimage(len: usize, init_size: u32) -> Vec<u8> {
    let mut image = vec![0; 1024 + len];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x211] = 1;
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    image[0x236] = 1;
    image[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&init_size.to_le_bytes());
    for (index, byte) in image[1024..].iter_mut().enumerate() {
        *byte = index as u8;
    }
    image
}

fn start(ram: &Ram, kernel: &[u8], initrd: Option<&[u8]>) -> Result<CpuState, BootError> {
    load(ram.map(), ram.bytes(), &GuestFiles { kernel, initrd, command_line: "quiet" })
}

#[test]
fn a_bzimage_starts_at_its_64_bit_entry() {
    let ram = ram();
    let state = start(&ram, &bzimage(4096, 1 << 20), None).expect("it loads");
    assert_eq!(state.rip, 0x100_0200);
    assert_eq!(state.gpr[6], BOOT_PARAMS);
    assert_eq!(ram.as_slice()[0x100_0000 + 5], 5);
    let params = zero_page(&ram);
    let (version, loader, line) = (params.hdr.version, params.hdr.type_of_loader, params.hdr.cmd_line_ptr);
    assert_eq!((version, loader, u64::from(line)), (0x20f, 0xff, COMMAND_LINE));
    assert_eq!(&ram.as_slice()[COMMAND_LINE as usize..][..6], b"quiet\0");
}

#[test]
fn the_memory_map_leaves_the_acpi_tables_out() {
    let ram = ram();
    start(&ram, guest_images::MINIKV, None).expect("it loads");
    let params = zero_page(&ram);
    let entries = params.e820_entries;
    let map: Vec<(u64, u64, u32)> =
        params.e820_table[..usize::from(entries)].iter().map(|e| (e.addr, e.size, e.r#type)).collect();
    assert_eq!(map, [(0, 0x9_fc00, 1), (0xe_0000, 0x2_0000, 2), (0x10_0000, RAM_BYTES - 0x10_0000, 1)]);
    let rsdp = params.acpi_rsdp_addr;
    assert_eq!(&ram.as_slice()[rsdp as usize..][..8], b"RSD PTR ");
}

#[test]
fn the_initial_ram_disk_lies_at_the_end_of_ram() {
    let ram = ram();
    let data = vec![7; 5000];
    start(&ram, &bzimage(4096, 1 << 20), Some(&data)).expect("it loads");
    let params = zero_page(&ram);
    let (at, size) = (params.hdr.ramdisk_image, params.hdr.ramdisk_size);
    assert_eq!((u64::from(at), size), (RAM_BYTES - 8192, 5000));
    assert_eq!(&ram.as_slice()[at as usize..][..5000], data);
}

#[test]
fn what_does_not_fit_is_refused_with_sizes() {
    let ram = ram();
    let error = start(&ram, &bzimage(4096, 60 << 20), None).expect_err("too large");
    assert!(matches!(error, BootError::NoRoom { start: 0x100_0000, need: 60, have: 64 }), "{error}");
    let disk = vec![0; 50 << 20];
    let error = start(&ram, &bzimage(4096, 1 << 20), Some(&disk)).expect_err("too large");
    assert!(matches!(error, BootError::Initrd { initrd: 50, kernel_end: 0x110_0000, have: 64 }), "{error}");
}

#[test]
fn a_kernel_without_a_64_bit_entry_is_refused() {
    let mut image = bzimage(4096, 1 << 20);
    image[0x236] = 0;
    let error = start(&ram(), &image, None).expect_err("no entry");
    assert!(matches!(error, BootError::Kernel(ImageError::NoEntry64)), "{error}");
}

#[test]
fn damaged_images_are_refused() {
    let whole = bzimage(4096, 1 << 20);
    for len in [0, 4, 0x1f0, 0x206, 0x258, 0x25f, 1023] {
        assert!(start(&ram(), &whole[..len], None).is_err(), "{len} bytes");
    }
    let mut image = whole;
    image[0x258..0x260].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(start(&ram(), &image, None).is_err(), "it prefers to be outside RAM");
}

/// One byte more than the kernel takes is refused, and not one less; the line is there with its end.
fn assert_command_line_limit(kernel: &[u8], max: usize) {
    let start = |len: usize| {
        let ram = ram();
        let line = "x".repeat(len);
        let files = GuestFiles { kernel, initrd: None, command_line: &line };
        load(ram.map(), ram.bytes(), &files).map(|_| ram)
    };
    for len in [0, 1, max - 1, max] {
        let ram = start(len).unwrap_or_else(|error| panic!("{len} bytes: {error}"));
        let line = &ram.as_slice()[COMMAND_LINE as usize..][..len + 1];
        assert!(line[..len].iter().all(|&byte| byte == b'x') && line[len] == 0, "{len} bytes");
    }
    for len in [max + 1, max + 2, 4096, 100_000] {
        let error = start(len).map(|_| ()).expect_err("too long");
        assert!(
            matches!(error, BootError::CommandLine { len: l, max: m } if (l, m) == (len, max)),
            "{error}"
        );
        assert!(error.to_string().contains(&max.to_string()), "{error}");
    }
}

#[test]
fn the_longest_command_line_is_the_kernels() {
    assert_command_line_limit(guest_images::MINIKV, 2047);
    for (told, max) in [(2047_u32, 2047), (0, 255), (255, 255), (4095, 4095), (4096, 4095), (u32::MAX, 4095)]
    {
        let mut kernel = bzimage(4096, 1 << 20);
        kernel[0x238..0x23c].copy_from_slice(&told.to_le_bytes());
        assert_command_line_limit(&kernel, max);
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
}

#[test]
fn acpi_tables_are_linked_and_sum_to_zero() {
    let tables = acpi_tables();
    let bytes = &tables.bytes;
    assert!(tables.start + bytes.len() as u64 <= HIGH_RAM_START);
    assert_eq!((sum(&bytes[..20]), sum(&bytes[..36])), (0, 0), "RSDP");
    let offset = |address: usize| address - tables.start as usize;
    let table = |at: usize, name: &[u8; 4]| {
        let len = u32_at(bytes, at + 4);
        assert_eq!(&bytes[at..at + 4], name);
        assert_eq!(sum(&bytes[at..at + len]), 0, "{}", String::from_utf8_lossy(name));
        &bytes[at..at + len]
    };
    let xsdt = table(offset(u32_at(bytes, 24)), b"XSDT");
    assert_eq!(xsdt.len(), 36 + 8, "one entry");
    let fadt = table(offset(u32_at(xsdt, 36)), b"FACP");
    // Table 5.10: bit 4 says that there is no power button in fixed hardware, bit 5 no sleep button.
    assert_eq!(u32_at(fadt, 112) & 0b11_0000, 0b10_0000);
    let facs = u32_at(fadt, 36);
    assert_eq!((facs % 64, &bytes[offset(facs)..][..4]), (0, &b"FACS"[..]));
    let dsdt = offset(u32_at(fadt, 40));
    assert_eq!((dsdt, u32_at(fadt, 140)), (tables.dsdt, u32_at(fadt, 40)), "old and new field agree");
    let dsdt = table(dsdt, b"DSDT");
    assert_eq!(tables.dsdt + dsdt.len(), bytes.len(), "the DSDT is the last table");
}

/// Debian's acpica-tools: the AML compiles back to what was meant, without a remark.
#[test]
fn iasl_understands_the_dsdt() {
    if Command::new("iasl").arg("-v").output().is_err() {
        println!("SKIPPED: iasl is not here (package acpica-tools)");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let tables = acpi_tables();
    std::fs::write(directory.path().join("dsdt.aml"), &tables.bytes[tables.dsdt..]).expect("written");
    let iasl = |arguments: &[&str]| {
        let output =
            Command::new("iasl").args(arguments).current_dir(directory.path()).output().expect("iasl");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(output.status.success(), "{text}");
        text
    };
    iasl(&["-d", "dsdt.aml"]);
    let source = std::fs::read_to_string(directory.path().join("dsdt.dsl")).expect("disassembled");
    for name in ["LNRO0005", "PNP0501", "PNP0B00", "PNP0100", "\\_S5"] {
        assert!(source.contains(name), "{name} is missing:\n{source}");
    }
    let told = iasl(&["-p", "again", "dsdt.dsl"]);
    assert!(told.contains("0 Errors, 0 Warnings"), "{told}");
}
