//! Flags that somebody looks at: at every count, behind each instruction that makes them.

use iced_x86::code_asm::*;

use crate::guest::{CODE, CODE_AT, Guest, IRQ, assemble};
use crate::run::{Event, check_at_every_count};

pub type Producer = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// By name, each with what it keeps of the flags before it.
pub const PRODUCERS: &[(&str, Producer)] = &[
    ("add", |a| a.add(rax, rdx)),
    ("add m", |a| a.add(dword_ptr(rbx + 8), eax)),
    ("adc", |a| a.adc(ax, dx)),
    ("adc m", |a| a.adc(qword_ptr(rbx), rdx)),
    ("sub", |a| a.sub(r8b, dl)),
    ("sbb", |a| a.sbb(r10, rax)),
    ("sbb m", |a| a.sbb(byte_ptr(rbx + 3), al)),
    ("cmp", |a| a.cmp(rdx, rax)),
    ("cmp m", |a| a.cmp(qword_ptr(rsp + 8), rax)),
    ("neg", |a| a.neg(edx)),
    ("and", |a| a.and(ah, dl)),
    ("or", |a| a.or(rax, 1)),
    ("xor", |a| a.xor(edx, edx)),
    ("test", |a| a.test(r9, r9)),
    ("inc", |a| a.inc(eax)),
    ("inc m", |a| a.inc(qword_ptr(rbx + 0x10))),
    ("dec", |a| a.dec(r11)),
    ("dec m", |a| a.dec(byte_ptr(rbx))),
    ("shl 1", |a| a.shl(rax, 1)),
    ("shl 5", |a| a.shl(r8d, 5)),
    ("shl cl", |a| a.shl(rax, cl)),
    ("shr m", |a| a.shr(dword_ptr(rbx), 3)),
    ("shr cl", |a| a.shr(dx, cl)),
    ("sar", |a| a.sar(rdx, 7)),
    ("sar cl", |a| a.sar(dl, cl)),
    ("rol", |a| a.rol(rax, 1)),
    ("rol 9", |a| a.rol(r10, 9)),
    ("ror", |a| a.ror(edx, 3)),
    ("ror cl", |a| a.ror(rdx, cl)),
    ("rcl", |a| a.rcl(rdx, 1)),
    ("rcr", |a| a.rcr(eax, 3)),
    ("shld", |a| a.shld(rax, rdx, 9)),
    ("shrd", |a| a.shrd(eax, edx, cl)),
    ("mul", |a| a.mul(rdx)),
    ("imul", |a| a.imul_2(rax, rdx)),
    ("imul 3", |a| a.imul_3(r8d, eax, 77)),
    ("bsf", |a| a.bsf(rax, rdx)),
    ("bsr 0", |a| a.bsr(rax, r13)),
    ("popcnt", |a| a.popcnt(rax, rdx)),
    ("bt", |a| a.bt(rax, 3)),
    ("bts", |a| a.bts(rax, rdx)),
    ("btc", |a| a.btc(r9d, 11)),
    ("btr m", |a| a.btr(dword_ptr(rbx), 7)),
    ("cmpxchg", |a| a.cmpxchg(qword_ptr(rbx + 0x18), rdx)),
    ("xadd", |a| a.xadd(rax, rdx)),
    ("cmc", |a| a.cmc()),
    ("stc", |a| a.stc()),
    ("clc", |a| a.clc()),
    ("sahf", |a| a.sahf()),
    ("comisd", |a| a.comisd(xmm0, xmm1)),
    ("ucomiss m", |a| a.ucomiss(xmm2, dword_ptr(rbx + 0x20))),
    ("ptest", |a| a.ptest(xmm3, xmm4)),
    ("div", |a| {
        a.xor(edx, edx)?;
        a.div(rcx)
    }),
];

/// What reads flags behind them, or writes them without a look.
const FOLLOWERS: &[Producer] = &[
    |a| a.cmp(rbx, 5),
    |a| a.adc(rsi, 0),
    |a| a.inc(rsi),
    |a| a.setbe(dil),
    |a| a.cmovp(rsi, rbx),
    |a| a.mov(rsi, qword_ptr(rbx + 0x40)),
    |a| a.push(rax),
];

/// Where the code is that is rewritten.
const TARGET: u64 = CODE + 0x1100;

/// Two rounds; between them the target of the edge behind the producer is rewritten.
fn guest(cpl: u8, producer: Producer, follower: Producer) -> Guest {
    // CMP looks at no flags; PUSHFQ, POP does. Both lead back by R12.
    let before = assemble(TARGET, &|a| {
        a.cmp(eax, 0x1234)?;
        a.jmp(r12)
    });
    let after = assemble(TARGET, &|a| {
        a.pushfq()?;
        a.pop(rbp)?;
        a.jmp(r12)
    });
    let mut padded = after.clone();
    padded.resize(8, 0x90);
    let after = u64::from_le_bytes(padded.try_into().expect("eight bytes"));
    let mut guest = Guest::new(cpl, &|a| {
        let (mut top, mut back) = (a.create_label(), a.create_label());
        a.mov(ecx, 3)?;
        a.lea(r12, qword_ptr(back))?;
        a.xor(r13d, r13d)?;
        a.set_label(&mut top)?;
        a.mov(rax, 0x8000_0000_7fff_ff80_u64)?;
        a.mov(rdx, 0x7fff_ffff_8000_0081_u64)?;
        producer(a)?;
        follower(a)?;
        producer(a)?;
        a.jmp(TARGET)?;
        a.set_label(&mut back)?;
        a.add(rdi, rbp)?;
        a.mov(rsp, crate::guest::STACK_TOP)?;
        a.mov(rsi, after)?;
        a.mov(rax, TARGET)?;
        a.cmp(ecx, 2)?;
        let mut not_yet = a.create_label();
        a.jne(not_yet)?;
        a.mov(qword_ptr(rax), rsi)?;
        a.set_label(&mut not_yet)?;
        a.dec(ecx)?;
        a.jne(top)
    });
    guest.write(CODE_AT + TARGET - CODE, &before);
    guest
}

#[test]
fn flags_are_there_at_every_count() {
    for (number, (name, producer)) in PRODUCERS.iter().enumerate() {
        let follower = number % FOLLOWERS.len();
        let cpl = if number % 2 == 0 { 3 } else { 0 };
        let guest = guest(cpl, *producer, FOLLOWERS[follower]);
        let event = [Event::Interrupt(IRQ), Event::Kick, Event::Window][number % 3];
        check_at_every_count(&format!("{name}, follower {follower}"), &guest, &[event]);
    }
}

/// Every producer with every follower, stopped at every count on the way of one run.
#[test]
fn flags_are_there_for_every_reader() {
    for (name, producer) in PRODUCERS {
        for (number, follower) in FOLLOWERS.iter().enumerate() {
            crate::run::check(&format!("{name}, follower {number}"), &guest(3, *producer, *follower));
        }
    }
}
