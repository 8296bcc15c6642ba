//! Interrupts that wait for IRETQ, SYSRET, POPF, STI and what follows a shadow.

use iced_x86::code_asm::*;

use crate::guest::{Guest, IRQ};
use crate::run::{Event, check_at_every_count};

const EVENTS: [Event; 3] = [Event::Interrupt(IRQ), Event::Window, Event::Kick];

#[test]
fn interrupts_wait_for_what_lets_them_in() {
    let guest = Guest::new(0, &|a| {
        let mut top = a.create_label();
        a.mov(ecx, 3)?;
        a.mov(edx, ss)?;
        a.set_label(&mut top)?;
        a.cli()?;
        a.add(rax, rdx)?;
        a.sti()?;
        a.inc(rax)?;
        a.inc(rax)?;
        a.cli()?;
        a.mov(ss, edx)?;
        a.sti()?;
        a.push(rax)?;
        a.pop(rsi)?;
        a.pushfq()?;
        a.cli()?;
        a.sub(rax, rsi)?;
        a.popfq()?;
        a.sbb(rdi, rax)?;
        a.cli()?;
        a.sti()?;
        a.cli()?;
        a.push(0x202)?;
        a.popfq()?;
        a.sti()?;
        a.mov(ss, edx)?;
        a.inc(rbp)?;
        a.dec(ecx)?;
        a.jne(top)
    });
    check_at_every_count("CPL 0", &guest, &EVENTS);
}

#[test]
fn interrupts_wait_for_iretq() {
    for (cpl, code, data) in [(0, 0x08, 0x10), (1, 0x31, 0x39), (3, 0x2b, 0x23)] {
        let mut guest = Guest::new(0, &|a| {
            let (mut top, mut there) = (a.create_label(), a.create_label());
            a.mov(ecx, 3)?;
            a.set_label(&mut top)?;
            a.cli()?;
            a.mov(rdx, rsp)?;
            a.push(data)?;
            a.push(rdx)?;
            a.push(0x246)?;
            a.push(code)?;
            a.lea(rax, qword_ptr(there))?;
            a.push(rax)?;
            a.cmp(rax, rdx)?;
            a.iretq()?;
            a.set_label(&mut there)?;
            a.adc(rsi, rax)?;
            a.inc(rsi)?;
            a.dec(ecx)?;
            if cpl == 0 { a.jne(top) } else { a.nop() }
        });
        guest.state.rflags = 2;
        check_at_every_count(&format!("to CPL {cpl}"), &guest, &EVENTS);
    }
}

#[test]
fn interrupts_wait_for_sysret() {
    let mut guest = Guest::new(3, &|a| {
        let mut top = a.create_label();
        a.mov(ebp, 3)?;
        a.set_label(&mut top)?;
        a.add(rax, rdx)?;
        a.syscall()?;
        a.adc(rsi, rax)?;
        a.push(rcx)?;
        a.pop(rdi)?;
        a.dec(ebp)?;
        a.jne(top)
    });
    // IF is cleared on the way in, and is back with SYSRET.
    guest.state.msrs.sfmask = 0x4_0700;
    check_at_every_count("SYSCALL and SYSRET", &guest, &EVENTS);
}

/// User code that may: IOPL 3.
#[test]
fn user_code_lets_interrupts_in() {
    let mut guest = Guest::new(3, &|a| {
        let mut top = a.create_label();
        a.mov(ecx, 3)?;
        a.set_label(&mut top)?;
        a.cli()?;
        a.inc(rax)?;
        a.sti()?;
        a.inc(rax)?;
        a.pushfq()?;
        a.cli()?;
        a.popfq()?;
        a.dec(ecx)?;
        a.jne(top)
    });
    guest.state.rflags |= 3 << 12;
    check_at_every_count("IOPL 3", &guest, &EVENTS);
}
