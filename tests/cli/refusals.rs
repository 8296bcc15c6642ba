//! Command lines that cannot work are refused with what is wrong, said once, and nothing is harmed.

use std::path::Path;

use crate::process::{Process, command, disk_server, run};

/// Messages of the host that a chain of causes must not repeat.
const HOST: [&str; 8] = [
    "No such file or directory",
    "Permission denied",
    "Connection refused",
    "File exists",
    "Is a directory",
    "Address already in use",
    "Not a directory",
    "Invalid argument",
];

/// Nothing of any length is said twice.
fn assert_said_once(text: &str) {
    for message in HOST {
        assert!(text.matches(message).count() <= 1, "{message:?} is repeated: {text}");
    }
    for line in text.lines() {
        let parts: Vec<&str> = line.split(": ").map(str::trim).filter(|part| part.len() >= 8).collect();
        for (index, part) in parts.iter().enumerate() {
            assert!(!parts[index + 1..].contains(part), "{part:?} is repeated: {line}");
        }
    }
}

/// It fails with this exit code, says all of `needles`, and each thing once.
fn assert_refused(words: &[&str], code: i32, needles: &[&str]) {
    let (actual, text) = run(words);
    assert_eq!(actual, code, "{words:?}: {text}");
    for needle in needles {
        assert!(text.contains(needle), "{words:?} says {needle:?}: {text}");
    }
    assert_said_once(&text);
}

#[test]
fn what_is_not_a_kernel_is_refused_before_anything_starts() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        path.display().to_string()
    };
    let program = std::fs::read(env!("CARGO_BIN_EXE_lockstep")).expect("a program");
    let here = directory.path().display().to_string();
    for (path, needle) in [
        (file("empty", b""), "the file is empty"),
        (
            file("text", &b"not a kernel, but long enough to be one, were it not for its words".repeat(9)),
            "neither an ELF",
        ),
        (file("program", &program), "a program for an operating system"),
        (file("pe", &[b"MZ".to_vec(), vec![0; 9000]].concat()), "PE"),
        (file("packed", b"\x1f\x8b\x08\x00"), "gunzip"),
        ("/dev/zero".into(), "is a device"),
        (here, "is a directory"),
        ("/nonexistent/kernel".into(), "No such file"),
    ] {
        assert_refused(&["run", "--kernel", &path], 1, &["--kernel", &path, needle]);
    }
    assert_refused(&["run", "--initrd", "/dev/zero"], 1, &["--initrd /dev/zero is a device"]);
    let qcow2 = file("disk.qcow2", b"QFI\xfb\x00\x00\x00\x03");
    assert_refused(&["run", "--disk-image", &qcow2], 1, &["qcow2", "qemu-img convert -O raw", &qcow2]);
    assert_refused(&["record", "-o", "/dev/null", "--disk-image", "/nonexistent"], 1, &["No such file"]);
}

/// A Linux that this host's KVM would reset at once, with exit code 0.
#[test]
fn an_engine_that_cannot_run_the_guest_is_refused_with_the_reason() {
    if !lockstep::cli::doctor::emulates_cpl0() {
        eprintln!("SKIPPED: no KVM here, or one that runs guest code at CPL0 at the host's speed");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let mut kernel = vec![0; 4096];
    for (at, bytes) in [(0x1f1, &[1][..]), (0x202, b"HdrS"), (0x206, &[0x0f, 0x02]), (0x236, &[1])] {
        kernel[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let path = directory.path().join("bzImage");
    std::fs::write(&path, kernel).expect("a kernel");
    let path = path.display().to_string();
    assert_refused(&["run", "--engine", "kvm", "--kernel", &path], 5, &["emulates", "--engine soft"]);
}

#[test]
fn sizes_have_units_and_bounds() {
    for (option, value, code, needle) in [
        ("--memory", "-5", 2, "negative"),
        ("--memory", "99999999999999999999", 2, "too large"),
        ("--memory", "2X", 2, "unit"),
        ("--memory", "1.5G", 2, "1536M"),
        ("--memory", "3", 1, "from 4M to 3G"),
        ("--memory", "4G", 1, "from 4M to 3G"),
        ("--disk-size", "0", 1, "from 1M to 1T"),
        ("--disk-size", "2T", 1, "from 1M to 1T"),
        ("--disk-size", "-1G", 2, "negative"),
        ("--mac", "01:00:00:00:00:01", 2, "group address"),
        ("--net", "::1:7800", 2, "[::1]:7800"),
        ("--gdb", "here", 2, "HOST:PORT"),
    ] {
        assert_refused(&["run", option, value], code, &[option, needle]);
    }
}

#[test]
fn guests_that_are_not_there_are_answered_with_those_that_are() {
    let directory = tempfile::tempdir().expect("a directory");
    let cache = directory.path().display().to_string();
    let needles = ["postgres", "minikv", "busybox", "redis", "lockstep guest build", "--kernel"];
    assert_refused(&["run", "--cache", &cache, "--guest", "postgres"], 1, &needles);
    let needles = ["lockstep guest build busybox", "minikv"];
    assert_refused(&["run", "--cache", &cache, "--guest", "busybox"], 1, &needles);
    assert_refused(&["run", "--cache", &cache, "--guest", "nginx-rt"], 1, &["lockstep guest build nginx-rt"]);
    let known = "busybox, cpubench, redis, nginx, programs, each also with -generic or -rt";
    let needles = ["no recipe \"busybox-cloud\"", known];
    assert_refused(&["guest", "--cache", &cache, "build", "busybox-cloud"], 1, &needles);
}

#[test]
fn nothing_but_a_dead_socket_is_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let (_server, address) = disk_server(directory.path());
    let precious = directory.path().join("precious.txt");
    std::fs::write(&precious, b"precious").expect("a file");
    let path = precious.display().to_string();
    let unix = format!("unix:{path}");
    let machine = ["run", "--engine", "soft", "--disk-server", &address, "--disk-size", "16"];
    let with = |more: &[&'static str], last: &str| {
        let words: Vec<String> =
            more.iter().map(|word| (*word).to_owned()).chain([last.to_owned()]).collect();
        words
    };
    for words in [
        machine.iter().map(|word| (*word).to_owned()).chain(with(&["--control"], &path)).collect::<Vec<_>>(),
        machine.iter().map(|word| (*word).to_owned()).chain(with(&["--gdb"], &unix)).collect(),
        with(&["lan", "--listen"], &unix),
    ] {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        assert_refused(&words, 1, &[&path, "not a socket"]);
        assert_eq!(std::fs::read(&precious).expect("it is there"), b"precious");
    }
    served_sockets_are_left_alone(directory.path());
}

fn served_sockets_are_left_alone(directory: &Path) {
    let path = directory.join("lan.sock").display().to_string();
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a dead socket"));
    let unix = format!("unix:{path}");
    let mut first = Process::start(directory, "lan", command(&["lan", "--listen", &unix]));
    first.wait_for("lan listening on ");
    assert_refused(&["lan", "--listen", &unix], 1, &[&path, "another process listens"]);
    first.interrupt();
    first.end();
    assert!(!Path::new(&path).exists(), "a socket is removed by its owner");
}

#[test]
fn causes_are_said_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = |name: &str| directory.path().join(name).display().to_string();
    let (_server, address) = disk_server(directory.path());
    std::fs::write(at("file"), b"not a recording, but long enough to hold the head of one".repeat(9))
        .expect("a file");
    let busy = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let busy = busy.local_addr().expect("an address").to_string();
    let forward = format!("{busy}=10.77.0.2:80");
    let (file, missing, inside) = (at("file"), at("missing/x"), at("file/x"));
    let soft = ["--engine", "soft", "--disk-size", "16", "--disk-server", &address];
    let on_soft =
        |words: &[&str]| words.iter().chain(&soft).map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let plain = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    for words in [
        on_soft(&["run", "--net", "127.0.0.1:1"]),
        on_soft(&["run", "--net", "unix:/nonexistent/lan.sock"]),
        on_soft(&["run", "--net", "tap:nosuchtap0"]),
        on_soft(&["run", "--console", &missing]),
        on_soft(&["run", "--control", &missing]),
        on_soft(&["run", "--gdb", "unix:/nonexistent/gdb.sock"]),
        on_soft(&["run", "--gdb", &busy]),
        on_soft(&["run", "--trace-from", "1", "--trace-file", &inside]),
        on_soft(&["run", "--trace-from", "1", "--symbols", &missing]),
        on_soft(&["run", "--record", &file]),
        on_soft(&["record", "-o", &inside]),
        plain(&["run", "--engine", "soft", "--disk-server", "127.0.0.1:1"]),
        plain(&["lan", "--listen", &busy]),
        plain(&["lan", "--listen", "127.0.0.1:0", "--forward", &forward]),
        plain(&["lan", "--listen", "unix:/nonexistent/lan.sock"]),
        plain(&["lan", "--listen", "127.0.0.1:0", "--max-connections", "0"]),
        plain(&["replay", &missing]),
        plain(&["replay", &file]),
        plain(&["verify", &missing]),
        plain(&["verify", &file]),
        plain(&["log", &missing]),
        plain(&["log", &file]),
        plain(&["diverge", &missing, &file]),
        plain(&["status", &missing]),
        plain(&["guest", "build", "nosuchguest"]),
        plain(&["guest", "path", "nosuchguest"]),
        plain(&["disk-server", "--data", &inside, "--listen", "127.0.0.1:0"]),
        plain(&["disk-server", "--data", &at("data"), "--listen", &busy]),
    ] {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (code, text) = run(&words);
        assert!(code > 0 && !text.is_empty(), "{words:?} ends with {code}: {text}");
        assert_said_once(&text);
        assert!(!text.contains("panicked"), "{words:?}: {text}");
    }
}
