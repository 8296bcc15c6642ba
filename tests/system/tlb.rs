//! Cached translations: what must be forgotten when (SDM vol. 3, 4.10.4), and changes of mode that take
//! effect at once.

use iced_x86::code_asm::*;

use crate::cases::{At, Case};
use crate::machine::run;
use crate::mapper::Mapper;
use crate::scaffold::*;

const ALL: u64 = P | RW | A | D;
const PAGE: u64 = 1 << 39;
/// A handler that makes the page present.
const PAGE_FAULT_HANDLER: u64 = KERNEL_CODE + 0x800;
const OTHER: u64 = FRAMES + 0x20_0000;

/// Code at CPL0 with the page at RBX, its leaf entry at RDI; both frames hold a word that names them.
fn case(name: &str, level: u32, leaf: u64) -> Case {
    let mut tables = Mapper::new();
    let mut flags = [ALL | US; 4];
    flags[4 - level as usize] = leaf;
    tables.map(PAGE, FRAMES, level, flags);
    let entry = tables.at(PAGE, level);
    let mut case = Case::kernel(name).gpr(RBX, PAGE).gpr(RDI, entry);
    case.writes.extend(tables.writes);
    let size = if level > 1 { PS } else { 0 };
    case.poke64(FRAMES, 1).poke64(OTHER, 2).gpr(RDX, OTHER | leaf | size)
}

type Step = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;

fn reload_cr3(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    a.mov(rcx, cr3)?;
    a.mov(cr3, rcx)
}

fn toggle_pge(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    a.mov(rcx, cr4)?;
    a.xor(rcx, CR4_PGE as i32)?;
    a.mov(cr4, rcx)?;
    a.xor(rcx, CR4_PGE as i32)?;
    a.mov(cr4, rcx)
}

fn forgetting() -> Vec<Case> {
    let invlpg: Step = |a| a.invlpg(ptr(rbx));
    let invlpg_inside: Step = |a| a.invlpg(ptr(rbx + 0x1_2345));
    let steps: [(&str, u32, u64, Step); 8] = [
        ("INVLPG of a 4 KiB page", 1, ALL, invlpg),
        ("INVLPG of a 2 MiB page", 2, ALL, invlpg),
        ("INVLPG inside a 2 MiB page", 2, ALL, invlpg_inside),
        ("INVLPG of a global page", 1, ALL | G, invlpg),
        ("MOV to CR3", 1, ALL, reload_cr3),
        ("MOV to CR3, 2 MiB", 2, ALL, reload_cr3),
        ("CR4.PGE off and on, global page", 1, ALL | G, toggle_pge),
        ("CR4.PGE off and on", 1, ALL, toggle_pge),
    ];
    let forgets = |(name, level, leaf, step): (&str, u32, u64, Step)| {
        case(&format!("{name} forgets the translation"), level, leaf)
            .probe(|a| {
                a.mov(rsi, qword_ptr(rbx))?;
                a.mov(qword_ptr(rdi), rdx)?;
                step(a)?;
                a.mov(rax, qword_ptr(rbx))
            })
            .done()
            .leaves(RSI, 1)
            .leaves(RAX, 2)
    };
    steps.into_iter().map(forgets).collect()
}

/// More changes than a TLB that tells flushes by numbers has numbers.
fn many_changes() -> Case {
    const TIMES: u64 = 2000;
    case("two thousand changes of a translation are all seen", 1, ALL)
        .gpr(8, FRAMES | ALL)
        .gpr(RCX, TIMES)
        .gpr(RAX, 0)
        .probe(|a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.mov(qword_ptr(rdi), rdx)?;
            a.invlpg(ptr(rbx))?;
            a.add(rax, qword_ptr(rbx))?;
            a.xchg(rdx, r8)?;
            a.dec(rcx)?;
            a.jnz(again)
        })
        .done()
        .leaves(RAX, TIMES / 2 * 3)
}

fn changes() -> Vec<Case> {
    vec![
        case("a page that becomes present needs no INVLPG", 1, 0)
            .gpr(RDX, FRAMES | ALL)
            .poke(gate_at(14), gate(14, KERNEL_CS, PAGE_FAULT_HANDLER, 0, 0))
            .poke(
                PAGE_FAULT_HANDLER,
                assemble(64, PAGE_FAULT_HANDLER, |a| {
                    a.mov(qword_ptr(rdi), rdx)?;
                    a.inc(rcx)?;
                    a.lea(rsp, ptr(rsp + 8))?;
                    a.iretq()
                }),
            )
            .probe(|a| {
                a.mov(rax, qword_ptr(rbx))?;
                a.mov(rsi, qword_ptr(rbx))
            })
            .done()
            .leaves(RCX, 1)
            .leaves(RAX, 1)
            .leaves(RSI, 1),
        case("an entry above that changes, with INVLPG", 1, ALL)
            .probe(|a| {
                a.mov(rsi, qword_ptr(rbx))?;
                // Its page directory entry becomes a 2 MiB page to the other frame.
                a.mov(qword_ptr(r8), rdx)?;
                a.invlpg(ptr(rbx))?;
                a.mov(rax, qword_ptr(rbx))
            })
            .gpr(RDX, OTHER | ALL | PS)
            .gpr(8, directory_entry())
            .done()
            .leaves(RSI, 1)
            .leaves(RAX, 2),
        case("a write right given needs no INVLPG but for a #PF at most", 1, P | A | D)
            .probe(|a| {
                a.mov(rsi, qword_ptr(rbx))?;
                a.or(qword_ptr(rdi), RW as i32)?;
                a.invlpg(ptr(rbx))?;
                a.mov(qword_ptr(rbx), rdx)
            })
            .gpr(RDX, 7)
            .done()
            .memory(FRAMES, 7),
        case("a write right taken, with INVLPG", 1, ALL)
            .probe(|a| {
                a.mov(qword_ptr(rbx), rsi)?;
                a.and(qword_ptr(rdi), !(RW as i32))?;
                a.invlpg(ptr(rbx))?;
                a.mov(qword_ptr(rbx), rdx)
            })
            .page_fault_at(3, PAGE, At::Probe(3)),
        case("CR0.WP set takes effect at once", 1, P | A | D)
            .with(|s| s.cr[0] &= !CR0_WP)
            .probe(|a| {
                a.mov(qword_ptr(rbx), rsi)?;
                a.mov(rax, cr0)?;
                a.or(rax, CR0_WP as i32)?;
                a.mov(cr0, rax)?;
                a.mov(qword_ptr(rbx), rsi)
            })
            .page_fault_at(3, PAGE, At::Probe(4)),
        case("CR0.WP cleared takes effect at once", 1, P | A | D)
            .probe(|a| {
                a.mov(rsi, qword_ptr(rbx))?;
                a.mov(rax, cr0)?;
                a.and(rax, !(CR0_WP as i32))?;
                a.mov(cr0, rax)?;
                a.mov(qword_ptr(rbx), rdx)
            })
            .gpr(RDX, 9)
            .done()
            .memory(FRAMES, 9),
        case("CR4.SMAP, STAC and CLAC take effect at once", 1, ALL | US)
            .with(|s| s.cr[3] |= CR4_SMAP)
            .probe(|a| {
                a.stac()?;
                a.mov(rsi, qword_ptr(rbx))?;
                a.clac()?;
                a.mov(rax, qword_ptr(rbx))
            })
            .page_fault_at(1, PAGE, At::Probe(3)),
        case("CR4.SMEP takes effect at once", 1, ALL | US)
            .probe(|a| {
                a.mov(dword_ptr(rbx), 0xc3)?;
                a.call(rbx)?;
                a.mov(rax, cr4)?;
                a.or(rax, CR4_SMEP as i32)?;
                a.mov(cr4, rax)?;
                a.call(rbx)
            })
            .page_fault_at(0x11, PAGE, At::Address(PAGE))
            .not_on_kvm("the CPU model of KVM has no SMEP"),
        case("MOV to CR3 with other tables", 1, ALL)
            .poke64(MORE_TABLES + 0x8_0000, PDPT | P | RW | A)
            .gpr(RDX, MORE_TABLES + 0x8_0000)
            .probe(|a| {
                a.mov(rsi, qword_ptr(rbx))?;
                a.mov(cr3, rdx)?;
                a.mov(rax, qword_ptr(rbx))
            })
            .page_fault_at(0, PAGE, At::Probe(2)),
    ]
}

/// Where the page directory entry of `PAGE` is in the tables of `case`.
fn directory_entry() -> u64 {
    let mut tables = Mapper::new();
    tables.map(PAGE, FRAMES, 1, [ALL; 4]);
    tables.at(PAGE, 2)
}

#[test]
fn translations_are_forgotten_when_they_must_be() {
    run("forgetting", forgetting().into_iter().chain([many_changes()]).collect());
}

#[test]
fn changes_of_tables_and_modes_take_effect() {
    run("changes", changes());
}
