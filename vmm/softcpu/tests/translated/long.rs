//! Long runs: the host's stack does not grow, and warm caches are as good as cold ones.

use std::hash::{DefaultHasher, Hash, Hasher};

use iced_x86::code_asm::*;

use crate::guest::{CODE, CODE_AT, FREE, Guest, PAGE, WRITABLE, may_fault};
use crate::run::{Machine, difference};

fn steps() -> u64 {
    let steps = std::env::var("LOCKSTEP_LONG_STEPS");
    steps.map_or(200_000, |steps| steps.parse().expect("LOCKSTEP_LONG_STEPS: a number"))
}

fn digest(machine: &Machine) -> u64 {
    let mut hasher = DefaultHasher::new();
    machine.ram.hash(&mut hasher);
    format!("{:?}", machine.cpu.state()).hash(&mut hasher);
    machine.cpu.retired().hash(&mut hasher);
    hasher.finish()
}

/// Repeated instructions in a loop, each of which leaves translated code and comes back.
#[test]
fn repetitions_without_end() {
    let guest = Guest::new(3, &|a| {
        let mut top = a.create_label();
        a.cld()?;
        a.set_label(&mut top)?;
        a.lea(rdi, qword_ptr(rbx + 0x1ff0))?;
        a.mov(ecx, 9)?;
        a.rep().stosd()?;
        a.lea(rsi, qword_ptr(rbx + 8))?;
        a.mov(ecx, 3)?;
        a.rep().movsb()?;
        a.mov(ecx, 2)?;
        a.repe().cmpsb()?;
        a.xor(ecx, ecx)?;
        a.rep().movsq()?;
        a.adc(rax, rsi)?;
        a.push(rax)?;
        a.pop(rdx)?;
        a.jmp(top)
    });
    let (mut reference, mut translated) = (Machine::new(&guest, None), Machine::new(&guest, Some(1)));
    for part in 1..=10 {
        let until = steps() / 10 * part;
        assert!(reference.run(until) && translated.run(until));
        let text = difference(&reference.ended(), &translated.ended());
        assert!(text.is_none(), "after {until}: {}", text.unwrap_or_default());
    }
    // Nor does it grow in one go.
    let mut at_once = Machine::new(&guest, Some(1));
    assert!(at_once.run(reference.cpu.retired()));
    assert_eq!(digest(&at_once), digest(&reference));
}

/// Calls, faults, code that changes itself, vectors, tables that change.
fn mixed() -> Guest {
    const WINDOW: u64 = CODE + (1 << 30);
    let mut guest = Guest::new(3, &|a| {
        let (mut top, mut function, mut inner) = (a.create_label(), a.create_label(), a.create_label());
        let mut over = a.create_label();
        a.mov(r14, rsp)?;
        a.jmp(over)?;
        a.set_label(&mut function)?;
        a.push(rbp)?;
        a.mov(rbp, rsp)?;
        a.sub(rsp, 0x30)?;
        a.mov(qword_ptr(rbp - 8), rdi)?;
        a.xor(rax, qword_ptr(rbp - 8))?;
        a.movups(xmmword_ptr(rsp), xmm1)?;
        a.paddq(xmm1, xmm0)?;
        a.leave()?;
        a.ret()?;
        a.set_label(&mut over)?;
        a.mov(r9, WINDOW + 0x1800)?;
        a.mov(r8, rbx)?;
        a.set_label(&mut top)?;
        a.mov(ecx, 20)?;
        a.set_label(&mut inner)?;
        a.mov(edx, ecx)?;
        a.imul_3(rax, rax, 0x343f)?;
        a.add(rax, rdx)?;
        a.mov(rdi, rax)?;
        a.shr(rdi, 5)?;
        a.and(edi, 0xff8)?;
        a.adc(qword_ptr(r8 + rdi), rax)?;
        a.call(function)?;
        a.dec(ecx)?;
        a.jne(inner)?;
        may_fault!(a,
            a.mov(rax, qword_ptr(rbx + 0x9000));
            a.movaps(xmm2, xmmword_ptr(r8 + 8));
            a.div(r13);
        );
        // MOV ESI, imm; JMP R12: the immediate changes.
        a.mov(dword_ptr(r9 + 1), eax)?;
        let mut behind = a.create_label();
        a.lea(r12, qword_ptr(behind))?;
        a.jmp(r9)?;
        a.set_label(&mut behind)?;
        a.add(rsi, rax)?;
        a.xor(qword_ptr(rbx + 0x3000), rsi)?;
        a.mov(rsp, r14)?;
        a.xor(r13d, r13d)?;
        a.jmp(top)
    });
    for page in 0..2 {
        guest.map(WINDOW + page * PAGE, CODE_AT + page * PAGE, WRITABLE);
    }
    guest.write(CODE_AT + 0x1800, &[0xbe, 0, 0, 0, 0, 0x41, 0xff, 0xe4]);
    assert!(FREE < guest.ram.len() as u64);
    guest
}

/// A processor that goes on, and new ones that get its state and RAM, every 1,000 steps.
#[test]
fn cold_caches_are_as_good_as_warm_ones() {
    let guest = mixed();
    let mut reference = Machine::new(&guest, None);
    let mut warm = Machine::new(&guest, Some(1));
    let mut set = Machine::new(&guest, Some(2));
    for part in 1..=steps() / 1000 {
        let mut copy = guest.clone();
        copy.ram.copy_from_slice(&warm.ram);
        copy.state = warm.cpu.state();
        let mut cold = Machine::new(&copy, Some(1));
        cold.cpu.set_retired(warm.cpu.retired());
        let state = set.cpu.state();
        set.cpu.set_state(&state);
        for machine in [&mut reference, &mut warm, &mut set, &mut cold] {
            assert!(machine.run(part * 1000));
        }
        let expected = digest(&reference);
        for (name, machine) in [("warm", &warm), ("set", &set), ("cold", &cold)] {
            if digest(machine) != expected {
                let text = difference(&reference.ended(), &machine.ended()).unwrap_or_default();
                panic!("{name} after {}: {text}", part * 1000);
            }
        }
    }
}
