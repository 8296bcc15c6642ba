//! A guest that prints without end: it fills no disk, and a pipe that nobody reads holds up nothing but
//! itself.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::harness::{Pair, Process, wait_until};
use crate::namespaces::state;

/// A static 64-bit ELF file that prints letters at the serial port for ever.
fn chatterer(directory: &Path) -> PathBuf {
    const ADDRESS: u64 = 0x10_0000;
    // mov dx, 0x3f8; mov al, 'x'; out dx, al; jmp to the out
    let code = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xeb, 0xfd];
    let headers = 64 + 56;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([2u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    elf.extend(1u32.to_le_bytes());
    elf.extend([ADDRESS, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    elf.extend(0u32.to_le_bytes());
    elf.extend([64u16, 56, 1, 64, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    elf.extend([1u32, 5].iter().flat_map(|word| word.to_le_bytes()));
    let len = code.len() as u64;
    elf.extend([headers as u64, ADDRESS, ADDRESS, len, len, 1].iter().flat_map(|word| word.to_le_bytes()));
    assert_eq!(elf.len(), headers);
    elf.extend(code);
    let path = directory.join("chatterer");
    std::fs::write(&path, elf).unwrap();
    path
}

fn dropped(directory: &Path, name: &str) -> Option<u64> {
    state(directory, name).pointer("/live/egress/console_dropped")?.as_u64()
}

#[test]
fn a_guest_that_prints_without_end_is_held_to_its_rate() {
    let Some(pair) = Pair::services("a_guest_that_prints", |_| {}) else { return };
    let directory = pair.directory();
    let [kernel, console, socket] =
        [chatterer(directory), directory.join("console"), directory.join("chatterer.sock")]
            .map(|path| path.display().to_string());
    let machine = ["run", "--disk-server", pair.disk_address(), "--kernel", &kernel, "--disk-size", "16"];
    let more = ["--console", &console, "--console-rate", "1", "--control", &socket, "--engine", "soft"];
    let mut run = pair.spawn("chatterer", &[&machine[..], &more].concat());
    wait_until("output to be dropped", || {
        assert!(run.runs(), "{}", run.output());
        dropped(directory, "chatterer") > Some(100_000)
    });
    let end = pair.spawn("stop", &["stop", "--force", &socket]).exit_code();
    assert_eq!((end, run.exit_code()), (0, 0), "{}", run.output());
    let text = std::fs::read_to_string(&console).unwrap();
    let printed = text.bytes().filter(|byte| *byte == b'x').count();
    assert!(printed >= 1000, "{printed} bytes");
    assert!(text.contains("bytes of console output are missing here: see --console-rate"), "{text}");
}

#[test]
fn a_console_pipe_that_nobody_reads_is_no_failover() {
    let Some(pair) = Pair::services("a_console_pipe", |_| {}) else { return };
    let directory = pair.directory();
    let kernel = chatterer(directory).display().to_string();
    let sockets = ["quiet-primary", "quiet-backup"].map(|name| directory.join(format!("{name}.sock")));
    let [primary_socket, backup_socket] = sockets.map(|path| path.display().to_string());
    let machine = [
        &["--disk-server", pair.disk_address(), "--kernel", &kernel, "--disk-size", "16"][..],
        &["--console-rate", "0", "--engine", "soft", "--control"],
    ]
    .concat();
    let backup = [&["backup", "--listen", "127.0.0.1:0"][..], &machine, &[&backup_socket]].concat();
    let mut backup = pair.spawn("quiet-backup", &backup);
    let address = backup.wait_for_line("backup listening on ");
    let primary = [&["primary", "--backup", &address][..], &machine, &[&primary_socket]].concat();
    let mut primary = Process::spawn_to(directory, "quiet-primary", &[], &primary, Some(Stdio::piped()));
    wait_until("the pipe and the queue behind it to be full", || {
        assert!(primary.runs() && backup.runs(), "{}\n{}", primary.output(), backup.output());
        dropped(directory, "quiet-primary") > Some(0)
    });
    // It goes on, and so does the pair.
    let before = dropped(directory, "quiet-primary");
    wait_until("more to be printed", || dropped(directory, "quiet-primary") > before);
    assert_eq!(state(directory, "quiet-primary")["live"]["state"], "Replicating");
    assert_eq!(state(directory, "quiet-backup")["backup"]["state"], "Following");
}
