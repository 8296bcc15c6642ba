//! Code that changes: by itself, by other mappings, by devices, by page tables; code across pages (SDM vol.
//! 3, 11.6).

use iced_x86::code_asm::*;
use lockstep::engine::{VmEntry, VmExit};

use crate::cases::{At, Case};
use crate::hosts::hosts;
use crate::machine::{Finish, Machine, run};
use crate::mapper::Mapper;
use crate::scaffold::*;

const BASE: u64 = 1 << 39;
const ALL: u64 = P | RW | US | A | D;

/// MOV EAX, n; RET.
fn answer(n: u8) -> [u8; 6] {
    [0xb8, n, 0, 0, 0, 0xc3]
}

fn changing(cpl: u8) -> Vec<Case> {
    let code = if cpl == 0 { KERNEL_CODE } else { USER_CODE };
    let function = code + 0x800;
    let case = |name: &str| Case::at_level(name, cpl).gpr(RBX, function).poke(function, answer(1));
    let alias = |case: Case| {
        let mut tables = Mapper::new();
        tables.map(BASE, function & !0xfff, 1, [ALL; 4]);
        let mut case = case;
        case.writes.extend(tables.writes);
        case.gpr(RDI, BASE + (function & 0xfff))
    };
    let stack = if cpl == 0 { KERNEL_STACK } else { USER_STACK };
    vec![
        case("the next instruction is changed")
            .probe(|a| {
                let mut next = a.create_label();
                a.lea(rdx, ptr(next))?;
                a.mov(byte_ptr(rdx + 1), 7)?;
                a.set_label(&mut next)?;
                a.mov(al, 3)
            })
            .done()
            .leaves(RAX, 7),
        case("an instruction further on in the block")
            .probe(|a| {
                let mut next = a.create_label();
                a.inc(ecx)?;
                a.lea(rdx, ptr(next))?;
                a.mov(byte_ptr(rdx + 1), 7)?;
                a.inc(ecx)?;
                a.inc(ecx)?;
                a.set_label(&mut next)?;
                a.mov(al, 3)
            })
            .done()
            .leaves(RAX, 7)
            .leaves(RCX, 3),
        case("a loop that changes its own body")
            .gpr(RCX, 5)
            .probe(|a| {
                let mut again = a.create_label();
                a.lea(rsi, ptr(again))?;
                a.set_label(&mut again)?;
                a.add(edx, 1)?;
                a.inc(byte_ptr(rsi + 2))?;
                a.dec(ecx)?;
                a.jnz(again)
            })
            .done()
            .leaves(RDX, 1 + 2 + 3 + 4 + 5),
        case("a function changed between calls")
            .probe(|a| {
                a.call(rbx)?;
                a.mov(esi, eax)?;
                a.mov(byte_ptr(rbx + 1), 2)?;
                a.call(rbx)
            })
            .done()
            .leaves(RSI, 1)
            .leaves(RAX, 2),
        alias(case("a function changed through another mapping"))
            .probe(|a| {
                a.call(rbx)?;
                a.mov(esi, eax)?;
                a.mov(byte_ptr(rdi + 1), 2)?;
                a.call(rbx)
            })
            .done()
            .leaves(RSI, 1)
            .leaves(RAX, 2),
        case("a function copied over by REP MOVSB")
            .gpr(RSI, function + 0x100)
            .gpr(RDI, function)
            .gpr(RCX, 6)
            .poke(function + 0x100, answer(9))
            .probe(|a| {
                a.call(rbx)?;
                a.rep().movsb()?;
                a.call(rbx)
            })
            .done()
            .leaves(RAX, 9),
        case("a function changed by a read-modify-write of a qword")
            .probe(|a| {
                a.call(rbx)?;
                a.add(qword_ptr(rbx), 0x400)?;
                a.call(rbx)
            })
            .done()
            .leaves(RAX, 5),
        case("a function changed by XCHG, LOCK XADD and an SSE store")
            .probe(|a| {
                a.call(rbx)?;
                a.mov(cl, 3)?;
                a.xchg(byte_ptr(rbx + 1), cl)?;
                a.call(rbx)?;
                a.mov(esi, eax)?;
                a.mov(cl, 3)?;
                a.lock().xadd(byte_ptr(rbx + 1), cl)?;
                a.call(rbx)
            })
            .done()
            .leaves(RSI, 3)
            .leaves(RAX, 6),
        case("code pushed onto the stack")
            .probe(|a| {
                a.mov(rax, u64::from_le_bytes([0xb8, 4, 0, 0, 0, 0xc3, 0x90, 0x90]))?;
                a.push(rax)?;
                a.call(rsp)?;
                a.mov(esi, eax)?;
                a.pop(rcx)?;
                a.mov(rax, u64::from_le_bytes([0xb8, 5, 0, 0, 0, 0xc3, 0x90, 0x90]))?;
                a.push(rax)?;
                a.call(rsp)
            })
            .done()
            .leaves(RSI, 4)
            .leaves(RAX, 5)
            .leaves(RSP, stack - 8),
        across(case("an instruction across two pages that are not neighbours"))
            .probe(|a| a.call(rdi))
            .done()
            .leaves(RAX, 0x0403_0201),
        across(case("its second page is changed"))
            .probe(|a| {
                a.call(rdi)?;
                a.mov(esi, eax)?;
                a.mov(byte_ptr(rdi + 4), 9)?;
                a.call(rdi)
            })
            .done()
            .leaves(RSI, 0x0403_0201)
            .leaves(RAX, 0x0903_0201),
        across(case("its first page is changed"))
            .probe(|a| {
                a.call(rdi)?;
                a.mov(esi, eax)?;
                a.mov(byte_ptr(rdi + 1), 9)?;
                a.call(rdi)
            })
            .done()
            .leaves(RSI, 0x0403_0201)
            .leaves(RAX, 0x0403_0209),
        across(case("it becomes one that ends before its second page"))
            .probe(|a| {
                a.call(rdi)?;
                a.mov(esi, eax)?;
                a.mov(word_ptr(rdi), 0x09b0)?;
                a.mov(byte_ptr(rdi + 2), 0xc3u32 as i32)?;
                a.call(rdi)?;
                a.call(rdi)
            })
            .done()
            .leaves(RSI, 0x0403_0201)
            .leaves(RAX, 0x0403_0209),
        across(case("jump into the middle of an instruction"))
            .probe(|a| {
                a.call(rdi)?;
                a.lea(rdx, ptr(rbx + 1))?;
                a.mov(dword_ptr(rbx), 0xc3c0_ffb8u32 as i32)?;
                a.mov(byte_ptr(rbx + 4), 0xc3u32 as i32)?;
                a.call(rdx)
            })
            .done()
            .leaves(RAX, 0x0403_0202),
    ]
}

/// MOV EAX, 0x04030201; RET at RDI, so that two of its bytes are in a second page, which lies elsewhere.
fn across(case: Case) -> Case {
    let mut tables = Mapper::new();
    tables.map(BASE, FRAMES, 1, [ALL; 4]);
    tables.map(BASE + 0x1000, FRAMES + 0x8000, 1, [ALL; 4]);
    let mut case = case;
    case.writes.extend(tables.writes);
    case.gpr(RDI, BASE + 0xffd).poke(FRAMES + 0xffd, [0xb8, 1, 2]).poke(FRAMES + 0x8000, [3, 4, 0xc3])
}

/// Code at another place in memory by a change of page tables.
fn remapped() -> Vec<Case> {
    let mut tables = Mapper::new();
    tables.map(BASE, FRAMES, 1, [P | RW | A | D; 4]);
    let entry = tables.at(BASE, 1);
    let case = |name: &str| {
        let mut case =
            Case::kernel(name).gpr(RBX, BASE).gpr(RDI, entry).gpr(RDX, FRAMES + 0x1000 + (P | RW | A | D));
        case.writes.extend(tables.writes.iter().cloned());
        case.poke(FRAMES, answer(1)).poke(FRAMES + 0x1000, answer(2))
    };
    let other_root = MORE_TABLES + 0x8_0000;
    let with_root = |case: Case| {
        let mut other = Mapper::new();
        other.map(BASE, FRAMES, 1, [P | RW | A | D; 4]);
        // A second tree: PML4 and three tables of its own.
        let mut case = case.poke64(other_root, PDPT | P | RW | US | A);
        let next = |n: u64| (other_root + n * 0x1000) | P | RW | A | D;
        case = case
            .poke64(other_root + 8, next(1))
            .poke64(other_root + 0x1000, next(2))
            .poke64(other_root + 0x2000, next(3));
        case.poke64(other_root + 0x3000, (FRAMES + 0x1000) | P | RW | A | D).gpr(RDX, other_root)
    };
    vec![
        case("the page of a function is replaced, INVLPG")
            .probe(|a| {
                a.call(rbx)?;
                a.mov(esi, eax)?;
                a.mov(qword_ptr(rdi), rdx)?;
                a.invlpg(ptr(rbx))?;
                a.call(rbx)
            })
            .done()
            .leaves(RSI, 1)
            .leaves(RAX, 2),
        with_root(case("other tables, other code at the same address"))
            .probe(|a| {
                a.call(rbx)?;
                a.mov(esi, eax)?;
                a.mov(rcx, cr3)?;
                a.mov(cr3, rdx)?;
                a.call(rbx)?;
                a.mov(r8d, eax)?;
                a.mov(cr3, rcx)?;
                a.call(rbx)
            })
            .done()
            .leaves(RSI, 1)
            .leaves(8, 2)
            .leaves(RAX, 1),
        case("code that becomes NX")
            .probe(|a| {
                a.call(rbx)?;
                a.bts(qword_ptr(rdi), 63)?;
                a.invlpg(ptr(rbx))?;
                a.call(rbx)
            })
            .page_fault_at(0x11, BASE, At::Address(BASE)),
    ]
}

#[test]
fn changed_code_is_what_runs() {
    run("changing_code", [changing(0), changing(3), remapped()].into_iter().flatten().collect());
}

#[test]
fn code_that_a_device_writes_is_what_runs() {
    for host in hosts("device_writes") {
        for cpl in [0, 3] {
            let function = if cpl == 0 { KERNEL_CODE } else { USER_CODE } + 0x800;
            let case = Case::at_level("code written by a device", cpl)
                .gpr(RBX, function)
                .poke(function, answer(0))
                .probe(|a| {
                    let mut again = a.create_label();
                    a.set_label(&mut again)?;
                    a.call(rbx)?;
                    a.add(ecx, eax)?;
                    a.out(0x80, al)?;
                    a.cmp(eax, 20)?;
                    a.jne(again)
                });
            let mut machine = Machine::of(host, &case).expect("starts");
            for n in 0..20u8 {
                assert_eq!(
                    machine.run(VmEntry::Resume),
                    VmExit::PioWrite { port: 0x80, size: 1, value: n.into() }
                );
                machine.ram.write(function as usize, &answer(n + 1));
            }
            assert!(matches!(machine.run(VmEntry::Resume), VmExit::PioWrite { port: 0x80, .. }));
            let outcome = machine.play(0, true);
            assert_eq!(
                (outcome.finish, outcome.state.gpr[RCX]),
                (Finish::Done, (0..=20).sum()),
                "{}",
                host.engine()
            );
        }
    }
}
