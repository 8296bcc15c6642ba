//! Guests of a few instructions that take interrupts through the PICs, from the timer, the serial port and
//! the network card, and otherwise do what is to be interrupted.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lockstep::machine::Machine;
use lockstep::memory::Ram;

use crate::guest::{CODE, CPL0, DATA, Guest, assemble};
use crate::machine::{State, Vm, guest};

const TIMER: u64 = 0x11_1000;
const SERIAL: u64 = 0x11_2000;
const CARD: u64 = 0x11_3000;
const PROTECTION: u64 = 0x11_4000;
/// Vectors of the two PICs.
const FIRST_VECTOR: u64 = 0x30;
const SECOND_VECTOR: u64 = 0x38;

/// Where the guest keeps: how many interrupts of each kind, a mix of where they hit, the card's last used
/// index.
pub const TICKS: u64 = DATA;
pub const SERIAL_COUNT: u64 = DATA + 8;
pub const CARD_COUNT: u64 = DATA + 16;
const MIX: u64 = DATA + 24;
const LAST_USED: u64 = DATA + 32;
pub const FAULT_COUNT: u64 = DATA + 40;
pub const ROUNDS: u64 = DATA + 48;
/// #GP
const PROTECTION_VECTOR: u64 = 13;
/// No MSR of any machine.
const NO_MSR: u32 = 0x4000_1234;
/// What the guest writes to the card's registers: pairs of address and value, ended by zero.
const CARD_SETUP: u64 = DATA + 0x1000;
const RX_QUEUE: u64 = DATA + 0x1_0000;
const TX_QUEUE: u64 = DATA + 0x2_0000;
const BUFFERS: u64 = DATA + 0x3_0000;
pub const QUEUE_SIZE: u64 = 16;
const BUFFER_LEN: u64 = 2048;
const NET: u64 = devices::layout::VIRTIO_NET_BASE;

/// What the interrupts interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
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

pub const WORKS: [Work; 5] = [Work::Halt, Work::Ports, Work::Windows, Work::User, Work::Msr];

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

/// The machine, before the guest's first instruction.
pub fn machine(work: Work) -> Vm {
    let Guest { engine, mut ram, mut first } = guest(CPL0, &program(work), &[]);
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

/// A word of the guest's.
pub fn counter(state: &State, at: u64) -> u64 {
    u64::from_le_bytes(state.ram[at as usize..][..8].try_into().expect("eight bytes"))
}
