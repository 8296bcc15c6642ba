//! Kernels out of a bzImage made here.

use super::*;

/// A bzImage with `payload` 16 bytes into its protected-mode part.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    const SECTORS: usize = 3;
    let mut image = vec![0; (SECTORS + 1) * 512 + 16];
    image[SETUP_SECTS_AT] = SECTORS as u8;
    image[HEADER_MAGIC_AT..HEADER_MAGIC_AT + 4].copy_from_slice(HEADER_MAGIC);
    image[VERSION_AT..VERSION_AT + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[PAYLOAD_OFFSET_AT..PAYLOAD_OFFSET_AT + 4].copy_from_slice(&16_u32.to_le_bytes());
    image[PAYLOAD_LENGTH_AT..PAYLOAD_LENGTH_AT + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend(payload);
    image.extend([0xcc; 100]);
    image
}

fn packed(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).expect("in memory")
}

#[test]
fn the_elf_file_comes_out_of_a_bzimage() {
    let elf = b"\x7fELF and so on".repeat(100);
    let image = bzimage(&packed(&elf));
    assert!(is_bzimage(&image) && !is_elf(&image));
    assert_eq!(vmlinux(&image).expect("whole"), elf);
    assert_eq!(vmlinux(&elf).expect("an ELF file already"), elf);
}

#[test]
fn what_is_no_kernel_is_refused() {
    assert!(matches!(vmlinux(b"hello"), Err(KernelError::Unknown)));
    assert!(matches!(vmlinux(&bzimage(&packed(b"hello"))), Err(KernelError::NoElf)));
    assert!(matches!(vmlinux(&bzimage(b"hello")), Err(KernelError::Unpack(_))));
    let mut old = bzimage(&packed(b"\x7fELF"));
    old[VERSION_AT] = 7;
    old[VERSION_AT + 1] = 2;
    assert!(matches!(vmlinux(&old), Err(KernelError::TooOld(0x207))));
}

#[test]
fn headers_that_point_outside_the_file_are_refused() {
    let image = bzimage(&packed(b"\x7fELF"));
    for (at, value) in
        [(PAYLOAD_OFFSET_AT, u32::MAX), (PAYLOAD_LENGTH_AT, u32::MAX), (PAYLOAD_LENGTH_AT, 5000)]
    {
        let mut image = image.clone();
        image[at..at + 4].copy_from_slice(&value.to_le_bytes());
        assert!(matches!(vmlinux(&image), Err(KernelError::Payload)));
    }
    for len in [0x205, 0x207, 0x24a] {
        assert!(vmlinux(&image[..len]).is_err(), "{len} bytes");
    }
}
