//! Interrupts through the PICs, delivered at random positions: the timer, the serial port, the network card. The
//! guests are a few instructions each, so that all there is are interrupts and what they interrupt.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lockstep::machine::Machine;
use lockstep::memory::Ram;
use logchannel::{Event, EventKind, LogEntry, Output};
use replay::{ClockPolicy, Offer, Recorded, Recorder, Stop};

use crate::guest::{CODE, CPL0, DATA, Guest, assemble};
use crate::machine::{Kvm, State, kvm_or_skip};
use crate::replaying::{How, replay};
use crate::rng::Rng;
use crate::signals::in_the_rain;
use crate::worker::{Repeat, seeds};

const TIMER: u64 = 0x11_1000;
const SERIAL: u64 = 0x11_2000;
const CARD: u64 = 0x11_3000;
const PROTECTION: u64 = 0x11_4000;
/// Vectors of the two PICs.
const FIRST_VECTOR: u64 = 0x30;
const SECOND_VECTOR: u64 = 0x38;

/// Where the guest keeps: how many interrupts of each kind, a mix of where they hit, the card's last used index.
const TICKS: u64 = DATA;
const SERIAL_COUNT: u64 = DATA + 8;
const CARD_COUNT: u64 = DATA + 16;
const MIX: u64 = DATA + 24;
const LAST_USED: u64 = DATA + 32;
const FAULT_COUNT: u64 = DATA + 40;
const ROUNDS: u64 = DATA + 48;
/// #GP
const PROTECTION_VECTOR: u64 = 13;
/// No MSR of any machine.
const NO_MSR: u32 = 0x4000_1234;
/// What the guest writes to the card's registers: pairs of address and value, ended by zero.
const CARD_SETUP: u64 = DATA + 0x1000;
const RX_QUEUE: u64 = DATA + 0x1_0000;
const TX_QUEUE: u64 = DATA + 0x2_0000;
const BUFFERS: u64 = DATA + 0x3_0000;
const QUEUE_SIZE: u64 = 16;
const BUFFER_LEN: u64 = 2048;
const NET: u64 = devices::layout::VIRTIO_NET_BASE;

/// What the interrupts interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// `sti; hlt` again and again.
    Halt,
    /// Port writes at CPL0.
    Ports,
    /// Port writes at CPL0 with interrupts disabled most of the time.
    Windows,
    /// Much computing at CPL3 between port writes and MMIO.
    User,
    /// Reads of an MSR that does not exist: at its exit, an exception comes before any interrupt.
    Msr,
}

const WORKS: [Work; 5] = [Work::Halt, Work::Ports, Work::Windows, Work::User, Work::Msr];

fn outb(a: &mut CodeAssembler, port: u32, value: u32) -> Result<(), IcedError> {
    a.mov(edx, port)?;
    a.mov(eax, value)?;
    a.out(dx, al)
}

/// A handler around `body`: all registers saved, the place it interrupted mixed into `MIX`, EOI at the end.
fn handler(
    at: u64,
    counter: u64,
    second: bool,
    body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let saved = [rax, rcx, rdx, rbx, rsi, rdi, r8, r9];
    assemble(at, |a| {
        for register in saved {
            a.push(register)?;
        }
        a.mov(rbx, counter)?;
        a.inc(qword_ptr(rbx))?;
        // The interrupted RIP, and RAX as it was.
        a.mov(rax, qword_ptr(rsp + 8 * saved.len() as i32))?;
        a.add(rax, qword_ptr(rsp + 8 * (saved.len() as i32 - 1)))?;
        a.mov(rbx, MIX)?;
        a.mov(rcx, qword_ptr(rbx))?;
        a.rol(rcx, 7)?;
        a.xor(rcx, rax)?;
        a.mov(qword_ptr(rbx), rcx)?;
        body(a)?;
        if second {
            outb(a, 0xa0, 0x20)?;
        }
        outb(a, 0x20, 0x20)?;
        for register in saved.into_iter().rev() {
            a.pop(register)?;
        }
        a.iretq()
    })
}

/// Sends back every byte received.
fn serial_body(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut done) = (a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    a.mov(edx, 0x3fd)?;
    a.in_(al, dx)?;
    a.test(al, 1)?;
    a.jz(done)?;
    a.mov(edx, 0x3f8)?;
    a.in_(al, dx)?;
    a.out(dx, al)?;
    a.jmp(again)?;
    a.set_label(&mut done)?;
    a.nop()
}

/// Sends back every frame received, and gives its buffer to the card again.
fn card_body(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut done) = (a.create_label(), a.create_label());
    a.mov(rdi, NET)?;
    // InterruptStatus, InterruptACK
    a.mov(eax, dword_ptr(rdi + 0x60))?;
    a.mov(dword_ptr(rdi + 0x64), eax)?;
    a.set_label(&mut again)?;
    a.mov(rbx, LAST_USED)?;
    a.movzx(ecx, word_ptr(rbx))?;
    a.mov(rsi, RX_QUEUE + 0x2000)?;
    a.movzx(eax, word_ptr(rsi + 2))?;
    a.cmp(eax, ecx)?;
    a.je(done)?;
    a.and(ecx, QUEUE_SIZE as i32 - 1)?;
    a.mov(r8d, dword_ptr(rsi + rcx * 8 + 4))?;
    a.mov(r9d, dword_ptr(rsi + rcx * 8 + 8))?;
    // Transmit descriptor 0 is the very buffer.
    a.mov(eax, r8d)?;
    a.shl(rax, 11)?;
    a.add(rax, BUFFERS as i32)?;
    a.mov(rdx, TX_QUEUE)?;
    a.mov(qword_ptr(rdx), rax)?;
    a.mov(dword_ptr(rdx + 8), r9d)?;
    a.mov(rdx, TX_QUEUE + 0x1000)?;
    a.movzx(eax, word_ptr(rdx + 2))?;
    a.inc(eax)?;
    a.mov(word_ptr(rdx + 2), ax)?;
    // QueueNotify: the frame is out when this is done.
    a.mov(eax, 1)?;
    a.mov(dword_ptr(rdi + 0x50), eax)?;
    a.mov(rdx, RX_QUEUE + 0x1000)?;
    a.movzx(eax, word_ptr(rdx + 2))?;
    a.mov(ecx, eax)?;
    a.and(ecx, QUEUE_SIZE as i32 - 1)?;
    a.mov(word_ptr(rdx + rcx * 2 + 4), r8w)?;
    a.inc(eax)?;
    a.mov(word_ptr(rdx + 2), ax)?;
    a.inc(word_ptr(rbx))?;
    a.jmp(again)?;
    a.set_label(&mut done)?;
    a.nop()
}

/// Sets up PICs, timer at 1 kHz, serial port and card, then works.
fn program(work: Work) -> Vec<u8> {
    assemble(CODE, |a| {
        a.cli()?;
        for (port, value) in [
            (0x20, 0x11),
            (0x21, FIRST_VECTOR as u32),
            (0x21, 4),
            (0x21, 1),
            (0xa0, 0x11),
            (0xa1, SECOND_VECTOR as u32),
            (0xa1, 2),
            (0xa1, 1),
            // Open: timer, cascade, serial port; card.
            (0x21, 0xff & !(1 << 0 | 1 << 2 | 1 << 4)),
            (0xa1, 0xff & !(1 << 2)),
            // Rate generator, 1193 ticks of 1.193182 MHz.
            (0x43, 0x34),
            (0x40, 1193 & 0xff),
            (0x40, 1193 >> 8),
            // FIFO on, OUT2 on, interrupt for received bytes.
            (0x3fa, 1),
            (0x3fc, 8),
            (0x3f9, 1),
        ] {
            outb(a, port, value)?;
        }
        let (mut next, mut ready) = (a.create_label(), a.create_label());
        a.mov(rsi, CARD_SETUP)?;
        a.set_label(&mut next)?;
        a.mov(rdi, qword_ptr(rsi))?;
        a.test(rdi, rdi)?;
        a.jz(ready)?;
        a.mov(eax, dword_ptr(rsi + 8))?;
        a.mov(dword_ptr(rdi), eax)?;
        a.add(rsi, 16)?;
        a.jmp(next)?;
        a.set_label(&mut ready)?;
        a.mov(rbx, 0x9e37_79b9_7f4a_7c15u64)?;
        match work {
            Work::Halt => halt(a),
            Work::Ports => ports(a),
            Work::Windows => windows(a),
            Work::User => user(a),
            Work::Msr => msr(a),
        }
    })
}

fn halt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.sti()?;
    a.hlt()?;
    a.cli()?;
    a.inc(rbx)?;
    a.jmp(again)
}

fn ports(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.sti()?;
    a.set_label(&mut again)?;
    a.rol(rbx, 5)?;
    a.add(rax, rbx)?;
    a.out(0x80, al)?;
    a.jmp(again)
}

fn windows(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.cli()?;
    a.rol(rbx, 5)?;
    a.out(0x80, al)?;
    a.add(rax, rbx)?;
    a.out(0x80, al)?;
    // The first exit after STI lies in its shadow.
    a.sti()?;
    a.out(0x80, al)?;
    a.out(0x80, al)?;
    a.jmp(again)
}

fn user(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut inner) = (a.create_label(), a.create_label());
    a.mov(rcx, rsp)?;
    a.push(0x2b)?;
    a.push(rcx)?;
    a.push(0x202)?;
    a.push(0x33)?;
    a.lea(rax, qword_ptr(again))?;
    a.push(rax)?;
    a.iretq()?;
    a.set_label(&mut again)?;
    a.mov(ecx, 20_000)?;
    a.set_label(&mut inner)?;
    a.imul_3(rax, rbx, 0x0123_4567)?;
    a.xor(rbx, rax)?;
    a.rol(rbx, 13)?;
    a.movq(xmm0, rbx)?;
    a.paddq(xmm1, xmm0)?;
    a.dec(ecx)?;
    a.jnz(inner)?;
    a.mov(edx, 0x80)?;
    a.out(dx, eax)?;
    a.mov(rdi, NET)?;
    a.mov(eax, dword_ptr(rdi + 0x70))?;
    a.add(rbx, rax)?;
    a.jmp(again)
}

fn msr(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(rsi, ROUNDS)?;
    a.sti()?;
    a.set_label(&mut again)?;
    a.inc(qword_ptr(rsi))?;
    a.mov(ecx, NO_MSR)?;
    a.rdmsr()?;
    a.rol(rbx, 5)?;
    a.out(0x80, al)?;
    a.jmp(again)
}

/// Goes on behind the RDMSR.
fn protection_handler() -> Vec<u8> {
    assemble(PROTECTION, |a| {
        a.push(rax)?;
        a.mov(rax, FAULT_COUNT)?;
        a.inc(qword_ptr(rax))?;
        a.pop(rax)?;
        a.add(rsp, 8)?;
        a.add(qword_ptr(rsp), 2)?;
        a.iretq()
    })
}

/// What the guest writes to bring up the card (virtio 1.2, 3.1 and 4.2.3).
fn card_setup() -> Vec<(u64, u64)> {
    let mut out = vec![(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 0xb)];
    for (number, queue) in [(0, RX_QUEUE), (1, TX_QUEUE)] {
        out.extend([(0x30, number), (0x38, QUEUE_SIZE)]);
        for (register, part) in [(0x80, 0), (0x90, 0x1000), (0xa0, 0x2000)] {
            out.extend([(register, queue + part), (register + 4, 0)]);
        }
        out.push((0x44, 1));
    }
    out.push((0x70, 0xf));
    out.into_iter().map(|(register, value)| (NET + register, value)).collect()
}

fn machine(work: Work) -> Kvm {
    let Guest { engine, mut ram, mut first } = Guest::new(CPL0, &program(work), &[]);
    let put = |ram: &mut Ram, at: u64, bytes: &[u8]| ram.write(at as usize, bytes);
    for (at, code) in [
        (TIMER, handler(TIMER, TICKS, false, |_| Ok(()))),
        (SERIAL, handler(SERIAL, SERIAL_COUNT, false, serial_body)),
        (CARD, handler(CARD, CARD_COUNT, true, card_body)),
        (PROTECTION, protection_handler()),
    ] {
        put(&mut ram, at, &code);
    }
    let vectors = [
        (PROTECTION_VECTOR, PROTECTION),
        (FIRST_VECTOR, TIMER),
        (FIRST_VECTOR + 4, SERIAL),
        (SECOND_VECTOR + 2, CARD),
    ];
    for (vector, at) in vectors {
        let gate = (at & 0xffff) | 0x10 << 16 | 0x8e00 << 32 | (at >> 16 & 0xffff) << 48;
        put(&mut ram, first.idtr.base + vector * 16, &gate.to_le_bytes());
    }
    for (index, (address, value)) in card_setup().into_iter().enumerate() {
        put(&mut ram, CARD_SETUP + 16 * index as u64, &address.to_le_bytes());
        put(&mut ram, CARD_SETUP + 16 * index as u64 + 8, &value.to_le_bytes());
    }
    for index in 0..QUEUE_SIZE {
        let descriptor = RX_QUEUE + 16 * index;
        put(&mut ram, descriptor, &(BUFFERS + BUFFER_LEN * index).to_le_bytes());
        put(&mut ram, descriptor + 8, &(BUFFER_LEN | 2 << 32).to_le_bytes());
        put(&mut ram, RX_QUEUE + 0x1000 + 4 + 2 * index, &(index as u16).to_le_bytes());
    }
    put(&mut ram, RX_QUEUE + 0x1000 + 2, &(QUEUE_SIZE as u16).to_le_bytes());
    // The transmit queue: no interrupt, and every entry of its ring is descriptor 0.
    put(&mut ram, TX_QUEUE + 0x1000, &1u16.to_le_bytes());
    first.rflags &= !0x200;
    Machine::new(engine, ram, &devices::DevicesConfig::default(), &first).expect("a machine")
}

struct Run {
    log: Vec<LogEntry>,
    outputs: Vec<Output>,
    /// What was sent to the guest and accepted.
    frames: Vec<Vec<u8>>,
    console: Vec<u8>,
    last: State,
}

fn counter(state: &State, at: u64) -> u64 {
    u64::from_le_bytes(state.ram[at as usize..][..8].try_into().expect("eight bytes"))
}

/// Lets random inputs in at random stops.
fn record(seed: u64, work: Work, digests: bool) -> Run {
    let (mut rng, mut digest_rng) = (Rng::new(seed, 10 + work as u64), Rng::new(seed, 20));
    let policy = ClockPolicy::Host { bound_ns: *rng.pick(&[10_000, 300_000, 2_000_000]) };
    let mut recorder = Recorder::new(machine(work), policy, 0);
    let mut out: Vec<Recorded> = Vec::new();
    let (mut frames, mut console, mut host_ns) = (Vec::new(), Vec::new(), 0);
    for _ in 0..rng.within(500, 1_500) {
        let stop = recorder.advance(&mut out).expect("the guest runs");
        assert!(!matches!(stop, Stop::Ended(_)), "{stop:?}");
        host_ns += rng.below(*rng.clone().pick(&[1_000, 50_000, 1_500_000]));
        if rng.chance(300) {
            recorder.clock(host_ns, &mut out).expect("the clock");
        }
        if rng.chance(40) {
            let len = rng.within(1, 16) as usize;
            let bytes = rng.bytes(len);
            let offer = recorder.offer(Event::ConsoleRx(bytes.clone()), &mut out).expect("console input");
            if offer == Offer::Applied {
                console.extend(bytes);
            }
        }
        if rng.chance(40) {
            let len = rng.within(14, 1514) as usize;
            let frame = rng.bytes(len);
            let offer = recorder.offer(Event::NetRx(frame.clone()), &mut out).expect("a frame");
            if offer == Offer::Applied {
                frames.push(frame);
            }
        }
        if digest_rng.chance(60) && digests {
            recorder.digest(&mut out).expect("a digest");
        }
    }
    recorder.shutdown(&mut out).expect("a last digest");
    let outputs = out.iter().filter_map(|recorded| recorded.output.clone()).collect();
    let log = out.into_iter().map(|recorded| recorded.entry).collect();
    Run { log, outputs, frames, console, last: State::of(&mut recorder.into_machine()) }
}

/// The guest sent back what it was sent, and nothing else: all but what was still under way at the end.
fn check_echoes(run: &Run) {
    let (mut frames, mut console) = (Vec::new(), Vec::new());
    for output in &run.outputs {
        match output {
            Output::Net(frame) => frames.push(frame.clone()),
            Output::Console(bytes) => console.extend_from_slice(bytes),
            Output::Disk(_) => panic!("there is no disk"),
        }
    }
    assert!(run.frames.starts_with(&frames), "frames come back in order");
    assert!(run.frames.len() - frames.len() <= QUEUE_SIZE as usize);
    assert!(run.console.starts_with(&console), "bytes come back in order");
    // A FIFO that was not read, and a line that was not ended.
    assert!(run.console.len() - console.len() <= 16 + 256);
}

fn assert_replays(run: &Run, work: Work, how: How) {
    let mut replay =
        replay(&run.log, machine(work), how).unwrap_or_else(|divergence| panic!("{how:?}: {divergence}"));
    assert!(replay.outputs == run.outputs, "{how:?}: outputs differ");
    assert_eq!(replay.state().diff(&run.last), Vec::<String>::new(), "{how:?}");
}

#[test]
fn interrupts_at_random_positions_replay_exactly() {
    if !kvm_or_skip("interrupts") {
        return;
    }
    for work in WORKS {
        let (mut ticks, mut serial, mut card) = (0, 0, 0);
        for seed in seeds() {
            let mut repeat = Repeat::new("interrupts::interrupts_at_random_positions_replay_exactly", seed);
            let run = record(seed, work, true);
            repeat.log.clone_from(&run.log);
            check_echoes(&run);
            let (rounds, faults) = (counter(&run.last, ROUNDS), counter(&run.last, FAULT_COUNT));
            assert!(rounds - faults <= 1, "{work:?}: {faults} exceptions in {rounds} rounds");
            ticks += counter(&run.last, TICKS);
            serial += counter(&run.last, SERIAL_COUNT);
            card += counter(&run.last, CARD_COUNT);
            assert_replays(&run, work, How::Whole);
            match seed % 3 {
                0 => assert_replays(&run, work, How::Observed),
                1 => assert_replays(&run, work, How::Batches(seed)),
                _ => {
                    let (wet, _) = in_the_rain(|| record(seed, work, true));
                    assert!(wet.log == run.log, "{work:?}: signals change the run");
                }
            }
        }
        eprintln!("{work:?}: {ticks} timer, {serial} serial, {card} card interrupts");
        assert!(ticks > 0 && serial > 0 && card > 0, "{work:?}: every kind of interrupt was taken");
    }
}

/// A digest completes the exit at which it is taken, but must not open or close the door for an interrupt there.
#[test]
fn digests_do_not_move_interrupts() {
    if !kvm_or_skip("digests and interrupts") {
        return;
    }
    for work in WORKS {
        for seed in seeds().into_iter().step_by(2) {
            let _repeat = Repeat::new("interrupts::digests_do_not_move_interrupts", seed);
            let entries = |run: &Run| {
                let all = run.log.iter().filter(|entry| entry.event.kind() != EventKind::Digest);
                all.map(|entry| (entry.at, entry.event.clone())).collect::<Vec<_>>()
            };
            let (with, without) = (record(seed, work, true), record(seed, work, false));
            let (a, b) = (entries(&with), entries(&without));
            let differs = a.iter().zip(&b).find(|(a, b)| a != b);
            assert_eq!(differs, None, "{work:?}: the first entry that differs");
            assert_eq!(with.last.diff(&without.last), Vec::<String>::new(), "{work:?}");
        }
    }
}
