//! Paging: who may do what to which page, error codes and CR2, reserved bits, accessed and dirty bits (SDM
//! vol. 3, 4.6 to 4.8).

use iced_x86::code_asm::*;

use crate::cases::{At, Case};
use crate::hosts::Host;
use crate::machine::{run, run_in_one};
use crate::mapper::Mapper;
use crate::scaffold::*;

/// Error code bits (SDM vol. 3, figure 4-12).
const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;
const RESERVED: u64 = 8;
const FETCH: u64 = 16;

const ALL: u64 = P | RW | US | A | D;
const BASE: u64 = 1 << 39;
const NO_GIB_PAGES: &str = "the CPU model of KVM has no pages of 1 GiB";
const SIZES: [u64; 3] = [1 << 12, 1 << 21, 1 << 30];
/// Writes go here in the page, so that the code at its start stays.
const WRITE_OFFSET: u64 = 0x800;

/// A kind of access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    Fetch,
}

use Access::{Fetch, Read, Write};

const ACCESSES: [Access; 3] = [Read, Write, Fetch];

/// The mode that decides beside the page.
#[derive(Clone, Copy)]
struct Mode {
    cpl: u8,
    wp: bool,
    smep: bool,
    smap: bool,
    ac: bool,
}

impl Mode {
    fn all() -> impl Iterator<Item = Mode> {
        (0..32u8).map(|n| {
            let bit = |i: u8| n >> i & 1 == 1;
            Mode { cpl: if bit(0) { 3 } else { 0 }, wp: bit(1), smep: bit(2), smap: bit(3), ac: bit(4) }
        })
    }

    fn name(self) -> String {
        let named = [(self.wp, " WP"), (self.smep, " SMEP"), (self.smap, " SMAP"), (self.ac, " AC")];
        let on: String = named.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        format!("CPL{}{on}", self.cpl)
    }

    /// The error code of `access` to a present page with these rights, if it faults (SDM vol. 3, 4.6.1).
    fn fault(self, access: Access, user: bool, write: bool, nx: bool) -> Option<u64> {
        let reachable = !user || !self.smap || self.ac;
        let allowed = match (self.cpl, access) {
            (3, Read) => user,
            (3, Write) => user && write,
            (3, Fetch) => user && !nx,
            (_, Fetch) => !nx && (!user || !self.smep),
            (_, Read) => reachable,
            (_, Write) => reachable && (write || !self.wp),
        };
        (!allowed).then(|| PRESENT | self.error(access))
    }

    fn error(self, access: Access) -> u64 {
        let kind = [0, WRITE, FETCH][access as usize];
        kind | if self.cpl == 3 { USER } else { 0 }
    }
}

/// The code of every case: one piece per kind of access, at both levels.
fn snippets() -> Vec<(u64, Vec<u8>)> {
    let mut out = vec![(FRAMES, vec![0xe6, DONE_PORT as u8])];
    for base in [KERNEL_CODE, USER_CODE] {
        for access in ACCESSES {
            let at = snippet(base, access);
            let code = assemble(64, at, |a| {
                match access {
                    Read => a.mov(al, byte_ptr(rbx))?,
                    Write => a.mov(byte_ptr(rbx), al)?,
                    Fetch => a.jmp(rbx)?,
                }
                a.out(i32::from(DONE_PORT), al)
            });
            out.push((at, code));
        }
    }
    out
}

fn snippet(base: u64, access: Access) -> u64 {
    base + access as u64 * 64
}

/// An access to the page at `linear` in `mode`, with its error code if it must fault.
fn access_case(name: String, mode: Mode, access: Access, linear: u64, fault: Option<u64>) -> Case {
    let address = linear + if access == Write { WRITE_OFFSET } else { 0 };
    let code = snippet(if mode.cpl == 3 { USER_CODE } else { KERNEL_CODE }, access);
    let mut case = if mode.cpl == 3 { Case::user(name) } else { Case::kernel(name) };
    case.state.rip = code;
    case.state.gpr[RBX] = address;
    let mut set = |on: bool, register: usize, bit: u64| {
        case.state.cr[register] = case.state.cr[register] & !bit | if on { bit } else { 0 };
    };
    set(mode.wp, 0, CR0_WP);
    set(mode.smep, 3, CR4_SMEP);
    set(mode.smap, 3, CR4_SMAP);
    set(false, 0, CR0_AM);
    case.state.rflags |= if mode.ac { AC } else { 0 };
    let at = At::Address(if access == Fetch { address } else { code });
    match fault {
        Some(error) => case.page_fault_at(error, address, at),
        None => case.done(),
    }
}

#[test]
fn every_access_to_every_kind_of_page_is_allowed_or_not_as_the_manual_says() {
    let mut tables = Mapper::new();
    let mut cases = Vec::new();
    for (level, size) in (1..=3).zip(SIZES) {
        for rights in 0..8u64 {
            let (user, write, nx) = (rights & 1 != 0, rights & 2 != 0, rights & 4 != 0);
            let leaf =
                P | A | D | if user { US } else { 0 } | if write { RW } else { 0 } | if nx { NX } else { 0 };
            let mut flags = [ALL; 4];
            flags[4 - level as usize] = leaf;
            // The pages of a size have their table to themselves, but the first of it.
            let linear = (u64::from(level) << 39) + (rights + 1) * size;
            let physical = if level == 3 { 0 } else { FRAMES };
            tables.map(linear, physical, level, flags);
            let target = linear + if level == 3 { FRAMES } else { 0 };
            for (mode, access) in Mode::all().flat_map(|mode| ACCESSES.map(|access| (mode, access))) {
                let page = format!(
                    "{}{}{}",
                    ["S", "U"][usize::from(user)],
                    ["R", "W"][usize::from(write)],
                    ["X", "-"][usize::from(nx)]
                );
                let name = format!("{access:?} of a {page} page of {size:#x} bytes, {}", mode.name());
                let case = access_case(name, mode, access, target, mode.fault(access, user, write, nx));
                cases.push(if level == 3 { case.not_on_kvm(NO_GIB_PAGES) } else { case });
            }
        }
    }
    let mut writes = snippets();
    writes.extend(tables.writes);
    run_in_one("permissions", &writes, cases);
}

#[test]
fn rights_are_those_of_all_levels_together() {
    let mut tables = Mapper::new();
    let mut cases = Vec::new();
    let restrictions = [("supervisor", US), ("read-only", RW), ("NX", NX)];
    for level in 2..=4usize {
        for (n, (what, bit)) in restrictions.iter().enumerate() {
            let mut flags = [ALL; 4];
            flags[4 - level] ^= bit;
            let linear = (8 + level as u64 * 4 + n as u64) << 39;
            tables.map(linear, FRAMES, 1, flags);
            for (mode, access) in Mode::all().flat_map(|mode| ACCESSES.map(|access| (mode, access))) {
                let name = format!("{access:?} below a {what} entry of level {level}, {}", mode.name());
                let fault = mode.fault(access, *bit != US, *bit != RW, *bit == NX);
                cases.push(access_case(name, mode, access, linear, fault));
            }
        }
    }
    let mut writes = snippets();
    writes.extend(tables.writes);
    run_in_one("levels", &writes, cases);
}

const PLAIN: Mode = Mode { cpl: 0, wp: true, smep: false, smap: false, ac: false };
const PLAIN_USER: Mode = Mode { cpl: 3, ..PLAIN };

#[test]
fn missing_entries_and_reserved_bits_fault_at_every_level() {
    let mut tables = Mapper::new();
    let mut cases = Vec::new();
    let high = 1 << 51;
    // Size of the page, level of the odd entry, what is odd there.
    let mut odd = vec![
        (1, 4, PS, "PS in the PML4 entry"),
        (2, 2, 1 << 13, "bit 13 of a 2 MiB page"),
        (2, 2, 1 << 20, "bit 20 of a 2 MiB page"),
        (3, 3, 1 << 13, "bit 13 of a 1 GiB page"),
        (3, 3, 1 << 29, "bit 29 of a 1 GiB page"),
    ];
    for (size, level) in [(1, 1), (1, 2), (1, 3), (1, 4), (2, 2), (2, 3), (3, 3), (3, 4)] {
        odd.push((size, level, P, "an entry that is not present"));
        odd.push((size, level, high, "an address beyond the physical ones"));
    }
    for (n, (size, level, bit, what)) in odd.into_iter().enumerate() {
        let mut flags = [ALL; 4];
        flags[4 - level] ^= bit;
        let linear = (8 + n as u64) << 39;
        tables.map(linear, 0, size, flags);
        let kind = if bit == P { 0 } else { PRESENT | RESERVED };
        for (mode, access) in [PLAIN, PLAIN_USER].into_iter().flat_map(|m| ACCESSES.map(|a| (m, a))) {
            let name = format!("{access:?} by {what}, level {level}, page of level {size}, {}", mode.name());
            cases.push(access_case(name, mode, access, linear, Some(kind | mode.error(access))));
        }
    }
    let mut writes = snippets();
    writes.extend(tables.writes);
    run_in_one("reserved", &writes, cases);
}

#[test]
fn without_efer_nxe_bit_63_is_reserved_and_fetches_are_not_told() {
    let mut tables = Mapper::new();
    tables.map(BASE, FRAMES, 1, [ALL, ALL, ALL, ALL | NX]);
    tables.map(BASE + 0x1000, FRAMES, 1, [ALL, ALL, ALL, 0]);
    let mut cases = Vec::new();
    for (mode, access) in [PLAIN, PLAIN_USER].into_iter().flat_map(|m| ACCESSES.map(|a| (m, a))) {
        let error = mode.error(access) & !FETCH;
        for (linear, kind, what) in
            [(BASE, PRESENT | RESERVED, "NX without NXE"), (BASE + 0x1000, 0, "no page, without NXE")]
        {
            let name = format!("{access:?}: {what}, {}", mode.name());
            let case = access_case(name, mode, access, linear, Some(kind | error));
            cases.push(case.with(|s| s.efer &= !0x800).not_always_on(Host::Pvm, "EFER.NXE cannot be off"));
        }
    }
    let mut writes = snippets();
    writes.extend(tables.writes);
    run_in_one("nxe", &writes, cases);
}

/// A case at CPL3 or 0 with pages of its own.
fn with_tables(case: Case, tables: Mapper) -> Case {
    let mut case = case;
    case.writes.extend(tables.writes);
    case.gpr(RBX, BASE)
}

#[test]
fn accessed_and_dirty_bits_are_set_exactly_when_used() {
    let mut cases = Vec::new();
    for (level, cpl) in (1..=3).flat_map(|level| [(level, 0), (level, 3)]) {
        let case = |name: &str, dirty: bool| {
            let mut tables = Mapper::new();
            tables.map(BASE, 0, level, [P | RW | US; 4]);
            let entries: Vec<u64> = (level..=4).map(|l| tables.at(BASE, l)).collect();
            let case = Case::at_level(format!("{name}, page of level {level}"), cpl);
            let mut case = with_tables(case, tables).gpr(RBX, BASE + if level == 3 { FRAMES } else { 0 });
            for (n, at) in entries.into_iter().enumerate() {
                let want = if n == 0 && dirty { A | D } else { A };
                case = case.value(format!("A and D of level {}", level + n as u32), want, move |_, ram| {
                    crate::cases::word(ram, at) & (A | D)
                });
            }
            if level == 3 { case.not_on_kvm(NO_GIB_PAGES) } else { case }
        };
        cases.push(case("read", false).probe(|a| a.mov(al, byte_ptr(rbx))).done());
        cases.push(case("write", true).probe(|a| a.mov(byte_ptr(rbx), al)).done());
        cases.push(
            case("read, then write", true)
                .probe(|a| {
                    a.mov(al, byte_ptr(rbx))?;
                    a.mov(byte_ptr(rbx), al)
                })
                .done(),
        );
        cases.push(case("read-modify-write", true).probe(|a| a.add(dword_ptr(rbx), 1)).done());
        cases.push(
            case("a CMPXCHG that fails", true)
                .gpr(RAX, 77)
                .probe(|a| a.lock().cmpxchg(qword_ptr(rbx), rcx))
                .done(),
        );
        cases
            .push(case("PUSH", true).prelude(|a| a.lea(rsp, ptr(rbx + 0x100))).probe(|a| a.push(rax)).done());
        cases.push(
            case("PREFETCH and LEA touch nothing", false)
                .value("read", 0, |_, _| 0)
                .probe(|a| {
                    a.lea(rax, ptr(rbx))?;
                    a.mov(al, byte_ptr(rbx))
                })
                .done(),
        );
    }
    // A write that is refused leaves the page clean.
    for cpl in [0, 3] {
        let mut tables = Mapper::new();
        tables.map(BASE, FRAMES, 1, [P | RW | US | A, P | RW | US | A, P | RW | US | A, P | US | A]);
        let leaf = tables.at(BASE, 1);
        let case = Case::at_level("a refused write leaves the page clean", cpl);
        let error = PRESENT | WRITE | if cpl == 3 { USER } else { 0 };
        cases.push(
            with_tables(case, tables).probe(|a| a.mov(byte_ptr(rbx), al)).page_fault(error, BASE).value(
                "D",
                0,
                move |_, ram| crate::cases::word(ram, leaf) & D,
            ),
        );
    }
    run("accessed_dirty", cases);
}

#[test]
fn an_operand_across_two_pages_faults_before_anything_is_written() {
    let mut cases = Vec::new();
    for (cpl, missing) in [(0, 0), (0, 1), (3, 0), (3, 1)] {
        let case = |name: &str| {
            let mut tables = Mapper::new();
            for page in 0..2u64 {
                let leaf = if page == missing { 0 } else { ALL };
                tables.map(BASE + page * 0x1000, FRAMES + page * 0x1000, 1, [ALL, ALL, ALL, leaf]);
            }
            let case = Case::at_level(format!("{name}, page {missing} of the two missing"), cpl);
            with_tables(case, tables).gpr(RBX, BASE + 0xffd).gpr(RAX, 0x1122_3344_5566_7788)
        };
        let user = if cpl == 3 { USER } else { 0 };
        // The first byte that faults: of the operand, or of the second page.
        let first = if missing == 0 { BASE + 0xffd } else { BASE + 0x1000 };
        let clean = |case: Case| {
            let case = if cpl == 0 {
                case.not_on(Host::Pvm, "KVM's emulator writes the first page, then faults")
            } else {
                case
            };
            case.memory(FRAMES + 0xff8, 0).memory(FRAMES + 0x1000, 0)
        };
        cases.push(case("load").probe(|a| a.mov(rax, qword_ptr(rbx))).page_fault(user, first));
        cases
            .push(clean(case("store").probe(|a| a.mov(qword_ptr(rbx), rax)).page_fault(user | WRITE, first)));
        cases.push(clean(
            case("read-modify-write").probe(|a| a.add(qword_ptr(rbx), rax)).page_fault(user | WRITE, first),
        ));
        cases.push(clean(
            case("PUSH")
                .prelude(|a| a.lea(rsp, ptr(rbx + 8)))
                .probe(|a| a.push(rax))
                .poke(gate_at(14), usual_gate(14, 0, 1))
                .page_fault(user | WRITE, first),
        ));
        // An instruction across the two pages: its first bytes are MOV r64, imm64.
        let fetch =
            case("fetch").poke(FRAMES + 0xffd, [0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 0xe6, DONE_PORT as u8]);
        cases.push(fetch.probe(|a| a.jmp(rbx)).page_fault_at(user | FETCH, first, At::Address(BASE + 0xffd)));
    }
    run("two_pages", cases);
}
