//! Files with what a guest or a user wrote are their owner's.

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;

use crate::process::{Process, command, disk_server, wait_until};

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).expect("it is there").permissions().mode() & 0o7777
}

/// Everything below `directory`.
fn below(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory").flatten() {
        if entry.file_type().expect("a type").is_dir() {
            all.extend(below(&entry.path()));
        }
        all.push(entry.path());
    }
    all
}

#[test]
fn recordings_consoles_traces_sockets_and_disks_are_their_owners() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_server, address) = disk_server(directory.path());
    let made = directory.path().join("made");
    std::fs::create_dir(&made).expect("a directory");
    let at = |name: &str| made.join(name).display().to_string();
    std::fs::write(at("shared.txt"), b"").expect("a file");
    std::fs::set_permissions(at("shared.txt"), std::fs::Permissions::from_mode(0o640)).expect("a mode");
    for (vm, console) in [("first", at("console.txt")), ("second", at("shared.txt"))] {
        let record = at(&format!("{vm}.lkr"));
        let (control, trace) = (at(&format!("{vm}.sock")), at(&format!("{vm}.trace")));
        let words = [
            "run",
            "--engine",
            "soft",
            "--vm",
            vm,
            "--disk-server",
            &address,
            "--disk-size",
            "16",
            "--record",
            &record,
            "--console",
            &console,
            "--control",
            &control,
            "--trace-from",
            "10",
            "--trace-to",
            "20",
            "--trace-file",
            &trace,
        ];
        let mut machine = Process::start(directory.path(), vm, command(&words));
        wait_until("the console", || std::fs::metadata(&console).is_ok_and(|file| file.len() > 0));
        machine.interrupt();
        assert!(machine.end().success(), "{}", machine.output());
    }
    assert_eq!(mode(Path::new(&at("shared.txt"))), 0o640, "what exists keeps its mode");
    let files = below(&made).into_iter().chain(below(&directory.path().join("disks")));
    let mut seen = 0;
    for path in files.filter(|path| !path.ends_with("shared.txt")) {
        let kind = std::fs::symlink_metadata(&path).expect("it is there").file_type();
        let expected = if kind.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode(&path), expected, "{}", path.display());
        seen += usize::from(kind.is_file()) + usize::from(kind.is_socket());
    }
    assert!(seen >= 7, "{seen} files and sockets");
}
