//! What a debugger leaves behind that only looks: nothing. The same run with and without one, in process,
//! ends in the same digest at the same position.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;

use lockstep::boot;
use lockstep::debug::symbols::Symbols;
use lockstep::debug::{Address, DebugArgs, Debugging};
use lockstep::engine::{AnyEngine, EngineKind};
use lockstep::machine::Machine;
use lockstep::memory::Ram;
use logchannel::{Event, MachineDigest, Position};
use replay::{ClockPolicy, Machine as _, Recorder, Stop};

use crate::guest::engines;
use crate::support::{PATIENCE, wait_until};

const RAM_BYTES: u64 = 12 << 20;
const DISK_BYTES: u64 = 4 << 20;
/// Inputs that the guest gets, one whenever it waits.
const INPUTS: usize = 8;

fn machine(kind: EngineKind, debugging: &Debugging) -> Machine<AnyEngine> {
    let ram = Ram::new(RAM_BYTES).expect("guest memory");
    let line = guest_images::MINIKV_COMMAND_LINE;
    let first = boot::load_elf64(ram.map(), RAM_BYTES, guest_images::MINIKV, line).expect("minikv loads");
    let engine = debugging.wrap(kind.create(&ram).expect("an engine"), &ram).expect("it can be debugged");
    let config =
        devices::DevicesConfig { disk_bytes: DISK_BYTES, memory_bytes: RAM_BYTES, ..Default::default() };
    Machine::new(engine, ram, &config, &first).expect("a machine")
}

/// Boots minikv and gives it ARP requests and disk completions; where it is then, and its fingerprint.
pub fn run(kind: EngineKind, debugging: &Debugging) -> (Position, MachineDigest) {
    let mut recorder = Recorder::new(machine(kind, debugging), ClockPolicy::Virtual, 0);
    let (mut out, mut given) = (Vec::new(), 0);
    while given < INPUTS {
        let stop = recorder.advance(&mut out).expect("runs");
        let outputs: Vec<_> = out.drain(..).filter_map(|recorded| recorded.output).collect();
        for output in outputs {
            if let logchannel::Output::Disk(request) = output {
                let bytes = match &request.op {
                    logchannel::DiskOp::Read { len, .. } => vec![0; *len as usize],
                    _ => Vec::new(),
                };
                let done =
                    Event::DiskDone { request: request.id, status: logchannel::DiskStatus::Ok, data: bytes };
                let _ = recorder.offer(done, &mut out).expect("an input");
            }
        }
        if matches!(stop, Stop::Waiting { .. }) && recorder.stop() != Stop::Ready {
            let _ = recorder.offer(Event::NetRx(arp(given as u8)), &mut out).expect("an input");
            given += 1;
        }
        assert!(!matches!(stop, Stop::Ended(_)), "{stop:?}");
    }
    let mut machine = recorder.into_machine();
    (machine.position(), machine.digest().expect("a digest"))
}

/// Who has 10.77.0.2? Tell 10.77.0.1.
fn arp(n: u8) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([0x52, 0x4c, 0x4b, 0, 1, n, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend([0x52, 0x4c, 0x4b, 0, 1, n, 10, 77, 0, 1, 0, 0, 0, 0, 0, 0, 10, 77, 0, 2]);
    frame.resize(60, 0);
    frame
}

/// A debugger's side of the protocol.
struct Remote(UnixStream);

impl Remote {
    fn connect(path: &Path) -> Self {
        let mut stream = None;
        wait_until("the debugger's socket", || {
            stream = UnixStream::connect(path).ok();
            stream.is_some()
        });
        let stream = stream.expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self(stream)
    }

    fn send(&mut self, packet: &str) {
        let sum = packet.bytes().fold(0u8, u8::wrapping_add);
        self.0.write_all(format!("${packet}#{sum:02x}").as_bytes()).expect("it takes a packet");
    }

    fn answer(&mut self) -> String {
        let mut byte = [0];
        let mut next = || {
            self.0.read_exact(&mut byte).expect("an answer");
            byte[0]
        };
        while next() != b'$' {}
        let mut text = Vec::new();
        loop {
            match next() {
                b'#' => break,
                // Run-length encoding.
                b'*' => text.resize(text.len() + usize::from(next() - 29), *text.last().expect("a run")),
                other => text.push(other),
            }
        }
        let _checksum = [next(), next()];
        self.0.write_all(b"+").expect("it takes an ack");
        String::from_utf8_lossy(&text).into_owned()
    }

    fn ask(&mut self, packet: &str) -> String {
        self.send(packet);
        self.answer()
    }
}

/// A debugger that looks at everything, stops often, steps, and leaves.
fn look(path: &Path, breakpoints: &[u64], stops: usize) -> JoinHandle<Vec<String>> {
    let (path, breakpoints) = (path.to_path_buf(), breakpoints.to_vec());
    std::thread::Builder::new()
        .spawn(move || {
            let mut remote = Remote::connect(&path);
            let mut seen = vec![remote.ask("?")];
            for address in &breakpoints {
                assert_eq!(remote.ask(&format!("Z0,{address:x},1")), "OK");
            }
            for stop in 0..stops {
                seen.push(remote.ask("c"));
                assert!(remote.ask("g").len() > 500);
                // With its own breakpoint inside, and a place where nothing is.
                assert!(!remote.ask(&format!("m{:x},40", breakpoints[0])).starts_with("cc"));
                assert!(remote.ask("m7fff00000000,8").starts_with('E'));
                assert!(remote.ask("M7fff00000000,1:00").starts_with('E'));
                for _ in 0..stop % 5 {
                    seen.push(remote.ask("s"));
                }
            }
            assert_eq!(remote.ask("D"), "OK");
            seen
        })
        .expect("a thread")
}

fn looking_changes_nothing(kind: EngineKind) {
    let directory = tempfile::TempDir::new().expect("a directory");
    let path = directory.path().join("gdb.sock");
    let alone = run(kind, &Debugging::default());
    assert_eq!(run(kind, &Debugging::default()), alone, "the run itself is not reproducible");
    let args = DebugArgs { gdb: Some(Address::Unix(path.clone())), ..DebugArgs::default() };
    let debugging = Debugging::new(&args, guest_images::MINIKV, false).expect("it listens");
    let symbols = Symbols::of_file(guest_images::MINIKV).expect("symbols");
    let address = |name: &str| symbols.address(name).unwrap_or_else(|| panic!("no {name}"));
    let breakpoints = [address("memcpy"), address("minikv::disk::Disk::serve")];
    let debugger = look(&path, &breakpoints, 60);
    let looked_at = run(kind, &debugging);
    let seen = debugger.join().expect("the debugger saw what it should");
    assert_eq!(looked_at, alone, "a debugger that only looks changed the run");
    assert!(seen.iter().filter(|stop| stop.contains("swbreak")).count() > 30, "{seen:?}");
    println!("{kind}: {} stops, position {}, digest {}", seen.len(), alone.0, alone.1);
}

#[test]
fn a_debugger_that_only_looks_changes_nothing() {
    engines("a debugger that only looks changes nothing").into_iter().for_each(looking_changes_nothing);
}
