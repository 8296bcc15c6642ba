//! Files that are not kernels are refused by the name of what they are.

use super::*;

fn elf(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut image = guest_images::MINIKV.to_vec();
    change(&mut image);
    image
}

fn refused(image: &[u8]) -> String {
    check(image).expect_err("it is not a kernel").to_string()
}

/// The header of a bzImage of this protocol version, and something behind it.
fn bzimage(version: u16, flags: u16) -> Vec<u8> {
    let mut image = vec![0; 4096];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&version.to_le_bytes());
    image[0x236..0x238].copy_from_slice(&flags.to_le_bytes());
    image
}

#[test]
fn kernels_pass() {
    check(guest_images::MINIKV).expect("minikv");
    check(&bzimage(0x20f, 1)).expect("a bzImage");
    check(&bzimage(0x20c, 1)).expect("the oldest that tells of its 64-bit entry");
    // An EFI stub makes a PE file of it.
    let mut image = bzimage(0x20f, 1);
    image[..2].copy_from_slice(b"MZ");
    check(&image).expect("a bzImage with an EFI stub");
}

#[test]
fn programs_are_not_kernels() {
    let program = std::fs::read("/proc/self/exe").expect("this program");
    let text = refused(&program);
    assert!(text.contains("a program for an operating system"), "{text}");
    for (kind, word) in [(3_u32, "dynamic linker"), (7, "thread-local"), (0x6474_e552, "relocation")] {
        let at = u64_at(guest_images::MINIKV, 32) as usize;
        let text = refused(&elf(|image| image[at..at + 4].copy_from_slice(&kind.to_le_bytes())));
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn elf_files_of_other_kinds_are_named() {
    let word =
        |at: usize, value: u16| elf(move |image| image[at..at + 2].copy_from_slice(&value.to_le_bytes()));
    for (image, name) in [
        (elf(|image| image[4] = 1), "32 bits"),
        (elf(|image| image[5] = 2), "big-endian"),
        (word(18, 183), "machine 183"),
        (word(18, 3), "machine 3"),
        (word(16, 3), "position-independent"),
        (word(16, 1), "kernel module"),
        (word(16, 4), "core dump"),
        (word(16, 77), "type 77"),
        (word(56, 0), "without program headers"),
        (word(54, 32), "unknown size"),
        (word(56, u16::MAX), "cut short"),
        (elf(|image| image[32..40].fill(0xff)), "cut short"),
        (elf(|image| image.truncate(40)), "cut short"),
        (elf(|image| image.truncate(100)), "cut short"),
        (elf(|image| image.truncate(10_000)), "cut short"),
    ] {
        let text = refused(&image);
        assert!(text.contains(name), "{name}: {text}");
    }
}

#[test]
fn other_files_are_named() {
    for (image, name) in [
        (Vec::new(), "empty"),
        (b"\x7fEL".to_vec(), "cut short"),
        (vec![0; 5000], "zeros"),
        (vec![7; 5000], "neither an ELF file nor"),
        ([b"MZ".to_vec(), vec![0; 5000]].concat(), "(PE)"),
        (b"\x1f\x8b\x08".to_vec(), "gunzip"),
        (b"\xfd7zXZ\0".to_vec(), "unxz"),
        (b"\x28\xb5\x2f\xfd".to_vec(), "unzstd"),
        (b"QFI\xfb".to_vec(), "--disk-image"),
        (b"070701".to_vec(), "--initrd"),
        (b"#!/bin/sh".to_vec(), "script"),
        (bzimage(0x204, 0), "boot protocol 2.04"),
        (bzimage(0x20b, 1), "boot protocol 2.11"),
        (bzimage(0x20f, 0), "64-bit entry"),
        (bzimage(0x20f, 1)[..0x210].to_vec(), "cut short"),
        (bzimage(0x20f, 1)[..0x300].to_vec(), "cut short"),
    ] {
        let text = refused(&image);
        assert!(text.contains(name), "{name}: {text}");
    }
}

/// Whatever the bytes, the answer is an answer.
#[test]
fn damaged_headers_never_panic() {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize
    };
    for whole in [guest_images::MINIKV[..2000].to_vec(), bzimage(0x20f, 1)] {
        for _ in 0..20_000 {
            let mut image = whole.clone();
            for _ in 0..=next() % 4 {
                let at = next() % 0x280;
                image[at] = next() as u8;
            }
            image.truncate(next() % 2000);
            let _ = check(&image);
        }
    }
}
