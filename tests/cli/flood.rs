//! A guest that makes the host complain as fast as it can does not get to fill the host's log.

use iced_x86::code_asm::{CodeAssembler, dword_ptr, ecx, rbx};

use crate::process::{Process, command, disk_server};

/// Rounds of the guest, each with something to complain about.
const ROUNDS: i32 = 100_000;
/// Most that the process may say meanwhile; without limits it would be 15 MB.
const BYTES: usize = 128 << 10;
const ENTRY: u64 = 0x10_0000;
const NETWORK_CARD: u64 = 0xd000_0000;

/// A kernel of this code alone.
fn elf(code: &[u8]) -> Vec<u8> {
    const CODE_AT: u64 = 0x1000;
    let mut image = vec![0; CODE_AT as usize];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    for (at, value) in [(16, 2_u16), (18, 62), (20, 1), (52, 64), (54, 56), (56, 1), (58, 64)] {
        put(at, &value.to_le_bytes());
    }
    put(24, &ENTRY.to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(64, &[1, 0, 0, 0, 7, 0, 0, 0]);
    let len = code.len() as u64;
    for (index, value) in [CODE_AT, ENTRY, ENTRY, len, len, 0x1000].into_iter().enumerate() {
        put(72 + 8 * index, &value.to_le_bytes());
    }
    image.extend_from_slice(code);
    image
}

/// Sets up a queue outside memory again and again, then stops for good.
fn hostile() -> Vec<u8> {
    let program = || -> Result<Vec<u8>, iced_x86::IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let mut again = a.create_label();
        a.mov(rbx, NETWORK_CARD)?;
        a.mov(ecx, ROUNDS)?;
        a.set_label(&mut again)?;
        // QueueSel, QueueNum, QueueDriverLow, QueueDescHigh, QueueReady: a table behind the end of memory.
        for (register, value) in [(0x30, 0), (0x38, 8), (0x90, 0x20_0000), (0x84, 1), (0x44, 1)] {
            a.mov(dword_ptr(rbx + register), value)?;
        }
        a.dec(ecx)?;
        a.jnz(again)?;
        a.cli()?;
        a.hlt()?;
        a.assemble(ENTRY)
    };
    program().expect("valid code")
}

#[test]
fn bad_queue_set_ups_leave_few_lines_and_a_count() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_server, address) = disk_server(directory.path());
    let kernel = directory.path().join("hostile");
    std::fs::write(&kernel, elf(&hostile())).expect("a kernel");
    for level in ["warn", "debug", "trace"] {
        let kernel = kernel.display().to_string();
        let words = [
            "run",
            "--engine",
            "soft",
            "--kernel",
            &kernel,
            "--disk-server",
            &address,
            "--disk-size",
            "1",
            "--vm",
            level,
            "--clock",
            "virtual",
        ];
        let mut command = command(&words);
        command.env("LOCKSTEP_LOG", level);
        let mut machine = Process::start(directory.path(), level, command);
        let status = machine.end();
        let text = machine.output();
        assert_eq!(status.code(), Some(6), "the guest stops for good:\n{}", &text[..text.len().min(4000)]);
        assert!(text.len() < BYTES, "{} bytes at level {level}", text.len());
        assert!(text.contains("not accessible"), "the first ones are said:\n{text}");
        let left_out: u64 = text
            .lines()
            .filter_map(|line| {
                line.split_once(" more lines from virtio_queue")?.0.rsplit(' ').next()?.parse().ok()
            })
            .max()
            .unwrap_or(0);
        let told: u64 = text
            .lines()
            .filter_map(|line| line.split_once("left_out=")?.1.split(' ').next()?.parse::<u64>().ok())
            .sum();
        assert!(left_out + told > ROUNDS as u64 / 2, "the others are counted: {left_out}, {told}:\n{text}");
    }
}
