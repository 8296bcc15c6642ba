//! A root disk is filled once, and right, whoever dies on the way.
//!
//! LOCKSTEP_FILL_KILLS says how often somebody is killed (default 12), LOCKSTEP_FILL_STARTS how often a
//! machine is started (default 4), LOCKSTEP_FILL_MIB how large its disk is (default 4096).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use load::random::Random;
use lockstep::io::control;
use tempfile::TempDir;

use crate::harness::{Process, wait_until};

const MIB: u64 = 1 << 20;
/// What the guest, minikv, may write itself.
const OF_THE_GUEST: u64 = MIB;
/// Odd, so that the last sector is padded.
const IMAGE_BYTES: u64 = 24 * MIB + 777;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// An image whose first part is zero, as that of btrfs is, and whose rest no other number has.
fn image(path: &Path, number: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(IMAGE_BYTES).unwrap()];
    let mut random = Random::new(number);
    for part in bytes[usize::try_from(2 * MIB).unwrap()..].chunks_mut(8) {
        let value = (random.below(u64::MAX) | 1).to_le_bytes();
        part.copy_from_slice(&value[..part.len()]);
    }
    std::fs::write(path, &bytes).unwrap();
    bytes
}

struct Site {
    directory: TempDir,
}

impl Site {
    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn disk_server(&self) -> (Process, String) {
        let data = self.path("data");
        let words = ["disk-server", "--listen", "127.0.0.1:0", "--data", &data, "--grace", "0"];
        let mut server = Process::spawn(self.directory.path(), "disk-server", &[], &words);
        let address = server.wait_for_line("disk-server listening on ");
        (server, address)
    }

    /// Starts a machine whose disk is at the disk server `address`, or which keeps it itself.
    fn machine(&self, address: Option<&str>, disk: &str, mib: u64, more: &[&str]) -> Process {
        let (data, mib) = (self.path("data"), mib.to_string());
        let store = match address {
            Some(address) => ["--disk-server", address],
            None => ["--data", &data],
        };
        let socket = self.path("machine.sock");
        let words =
            ["run", "--console-input", "none", "--control", &socket, "--disk", disk, "--disk-size", &mib];
        Process::spawn(self.directory.path(), "machine", &[], &[&words[..], &store, more].concat())
    }

    fn disk(&self, disk: &str) -> PathBuf {
        self.directory.path().join(format!("data/vms/vm0/disks/{disk}.img"))
    }

    /// What the disk's record says: 0 new, 1 filling, 2 filled.
    fn state(&self, disk: &str) -> Option<u8> {
        std::fs::read(self.disk(disk).with_extension("state")).ok()?.get(6).copied()
    }

    /// Whether the process `pid` is past the filling, and runs its guest.
    fn is_up(&self, pid: u32) -> bool {
        let answer = control::ask(Path::new(&self.path("machine.sock")), "status").unwrap_or_default();
        let status: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
        status["pid"] == pid && status.pointer("/live/generation").is_some()
    }
}

fn run_until(process: &mut Process, what: &str, mut done: impl FnMut() -> bool) {
    wait_until(what, || {
        assert!(process.runs(), "{}", process.output());
        done()
    });
}

/// The sizes that were filled at every start, and images that begin with zeros.
#[test]
fn a_machine_that_is_started_again_finds_its_disk_as_it_left_it() {
    let (starts, mib) = (number("LOCKSTEP_FILL_STARTS", 4), number("LOCKSTEP_FILL_MIB", 4096));
    let site = Site { directory: TempDir::new().unwrap() };
    let source = site.path("image");
    let mut expected = image(Path::new(&source), 1);
    let (_server, address) = site.disk_server();
    for start in 0..starts {
        let mut machine = site.machine(Some(&address), "root", mib, &["--disk-image", &source]);
        let pid = machine.pid();
        run_until(&mut machine, "the machine to run", || site.is_up(pid));
        assert_eq!(site.state("root"), Some(2));
        assert_eq!(
            machine.output().contains("a new disk"),
            start == 0,
            "start {start}: {}",
            machine.output()
        );
        machine.kill();
        let disk = File::options().read(true).write(true).open(site.disk("root")).unwrap();
        let mut found = vec![0; expected.len()];
        disk.read_exact_at(&mut found, 0).unwrap();
        let from = usize::try_from(OF_THE_GUEST).unwrap();
        assert!(found[from..] == expected[from..], "start {start}: the disk is not as it was left");
        // What a guest would write.
        let at = 3 * MIB + start * 512;
        disk.write_all_at(&[0; 512], at).unwrap();
        expected[usize::try_from(at).unwrap()..][..512].fill(0);
    }
}

/// kill -9 of the machine's process, of the disk server, of both in one, while the disk is being filled.
#[test]
fn whoever_is_killed_while_it_is_filled_a_disk_is_filled_once_and_right() {
    let (kills, mut random) = (number("LOCKSTEP_FILL_KILLS", 12), Random::new(1));
    let (mut cut, mut disks) = (0, 0);
    let site = Site { directory: TempDir::new().unwrap() };
    let source = site.path("image");
    while cut < kills {
        disks += 1;
        let disk = format!("disk{disks}");
        let mut expected = image(Path::new(&source), disks);
        // Cut short a few times, then let it end.
        for round in 0..1 + random.below(4) {
            cut += u64::from(cut_short(&site, &disk, &source, (disks + round) % 3, &mut random));
            if site.state(&disk) != Some(2) {
                // Whatever was copied of the last image must not be seen through this one.
                expected = image(Path::new(&source), 1000 * disks + round);
            }
        }
        let (_server, address) = site.disk_server();
        let mut machine = site.machine(Some(&address), &disk, 32, &["--disk-image", &source]);
        let pid = machine.pid();
        run_until(&mut machine, "the machine to run", || site.is_up(pid));
        machine.kill();
        assert_eq!(site.state(&disk), Some(2));
        let found = std::fs::read(site.disk(&disk)).unwrap();
        let from = usize::try_from(OF_THE_GUEST).unwrap();
        assert!(found[from..expected.len()] == expected[from..], "{disk} does not hold its image");
        assert!(found[expected.len()..].iter().all(|byte| *byte == 0), "{disk}: something behind the image");
        std::fs::remove_file(site.disk(&disk)).unwrap();
    }
    println!("{cut} of {kills} kills cut a filling short, {disks} disks");
}

/// Starts a machine and kills something at a random moment of the filling; whether that cut it short.
fn cut_short(site: &Site, disk: &str, source: &str, what: u64, random: &mut Random) -> bool {
    let (mut server, address) = match what {
        0 | 1 => site.disk_server(),
        _ => return cut_short_in_one(site, disk, source, random),
    };
    let mut machine = site.machine(Some(&address), disk, 32, &["--disk-image", source]);
    let pid = machine.pid();
    run_until(&mut machine, "the filling to begin", || site.state(disk) >= Some(1));
    pause(random);
    let filled = site.state(disk) == Some(2);
    match what {
        0 => machine.kill(),
        _ => {
            server.kill();
            if !filled {
                wait_until("the machine to end, or to run", || !machine.runs() || site.is_up(pid));
            }
        }
    }
    site.state(disk) != Some(2)
}

/// The machine keeps its disk itself: both die at once.
fn cut_short_in_one(site: &Site, disk: &str, source: &str, random: &mut Random) -> bool {
    let mut machine = site.machine(None, disk, 32, &["--disk-image", source, "--take-over"]);
    run_until(&mut machine, "the filling to begin", || site.state(disk) >= Some(1));
    pause(random);
    machine.kill();
    site.state(disk) != Some(2)
}

fn pause(random: &mut Random) {
    // tidy: allow(sleep) a moment of the plan
    std::thread::sleep(Duration::from_micros(random.below(60_000)));
}
