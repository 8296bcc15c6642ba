//! Accesses that must not be done, or only in part.

use iced_x86::code_asm::*;

use crate::guest::{
    AC, CODE, CODE_AT, DATA, DATA_AT, Guest, KERNEL, PAGE, READ_ONLY, SUMS_AT, WRITABLE, may_fault,
};
use crate::run::{Ended, check};

const SMAP: u64 = 1 << 21;
const AM: u64 = 1 << 18;

/// How often a handler ran.
pub fn taken(ended: &Ended, vector: u64) -> u64 {
    let at = (SUMS_AT + 8 * (16 + vector)) as usize;
    u64::from_le_bytes(ended.ram[at..at + 8].try_into().expect("eight bytes"))
}

/// CPL, CR4.SMAP and RFLAGS.AC: every space there is.
fn spaces() -> impl Iterator<Item = (u8, u64, u64)> {
    [0, 1, 3].into_iter().flat_map(|cpl| {
        [(0, 0), (SMAP, 0), (SMAP, AC), (0, AC)].into_iter().map(move |(smap, ac)| (cpl, smap, ac))
    })
}

#[test]
fn misaligned_vectors_fault_at_every_offset() {
    for (cpl, smap, ac) in spaces() {
        for offset in 0..16 {
            let mut guest = Guest::new(cpl, &|a| {
                let mut top = a.create_label();
                a.mov(ecx, 3)?;
                a.lea(r9, qword_ptr(rbx + 0x100))?;
                a.lea(rbp, qword_ptr(rbx + 0xff0))?;
                a.mov(r12, rsp)?;
                a.set_label(&mut top)?;
                may_fault!(a,
                    a.movaps(xmm0, xmmword_ptr(rbx));
                    a.movaps(xmmword_ptr(rbx + 0x20), xmm1);
                    a.paddd(xmm2, xmmword_ptr(r9 + 16));
                    a.movntdq(xmmword_ptr(r9 + 0x40), xmm2);
                    a.movups(xmm3, xmmword_ptr(rbp));
                    a.movdqa(xmmword_ptr(rbp), xmm3);
                );
                a.lea(rsp, qword_ptr(rsp + offset))?;
                may_fault!(a,
                    a.movaps(xmm4, xmmword_ptr(rsp + 0x40));
                    a.movups(xmm5, xmmword_ptr(rsp + 0x48));
                    a.movaps(xmmword_ptr(rsp - 0x40), xmm4);
                    a.mulps(xmm5, xmmword_ptr(rsp));
                );
                a.mov(rsp, r12)?;
                a.dec(ecx)?;
                a.jne(top)
            });
            let base = if cpl == 3 { DATA } else { KERNEL + DATA_AT };
            if cpl != 3 {
                guest.state.gpr[4] = KERNEL + DATA_AT + 0x2800;
            }
            guest.state.gpr[3] = base + offset as u64;
            guest.state.cr4 |= smap;
            guest.state.cr0 |= AM;
            guest.state.rflags |= ac;
            let name = format!("CPL {cpl}, SMAP {smap:x}, AC {ac:x}, offset {offset}");
            let ended = check(&name, &guest);
            if offset == 0 {
                // Nothing is misaligned but what AC asks for.
                assert_eq!(taken(&ended, 13), 0, "{name}");
            } else {
                assert!(taken(&ended, 13) + taken(&ended, 17) >= 3 * 8, "{name}");
            }
        }
    }
}

/// Bits far from their operand, also with operands in registers that the host has none for.
#[test]
fn bits_are_where_their_offset_says() {
    let far = [0, 1, 63, 64, -1, -64, 32767, -32768, 0x7fff_ffff, -0x8000_0000, 1 << 40, -1 << 40];
    let further = [1 << 60, -1 << 60, i64::MAX, i64::MIN, (1 << 47) * 8 - 1, 0x4000 * 8 - 1, 0x4000 * 8];
    for offset in far.into_iter().chain(further) {
        for cpl in [0, 3] {
            let guest = Guest::new(cpl, &|a| {
                let mut top = a.create_label();
                a.mov(ebp, 2)?;
                a.mov(rdx, offset)?;
                a.mov(r8, rbx)?;
                a.mov(r11, rdx)?;
                a.lea(r9, qword_ptr(rbx + 0x1008))?;
                a.set_label(&mut top)?;
                may_fault!(a,
                    a.bts(qword_ptr(rbx), rdx);
                    a.btr(qword_ptr(r8 + 0x1000), r11);
                    a.btc(dword_ptr(r9), edx);
                    a.bt(word_ptr(r9 + 6), dx);
                    a.bts(word_ptr(rbx + 0xffe), dx);
                    a.btc(dword_ptr(r8 + 0xffe), r11d);
                    a.bt(qword_ptr(rsp + 8), r11);
                    a.bts(qword_ptr(rsp - 8), rdx);
                    a.bts(rax, rdx);
                    a.btc(r10, r11);
                );
                a.adc(rsi, rax)?;
                a.dec(ebp)?;
                a.jne(top)
            });
            check(&format!("offset {offset:#x}, CPL {cpl}"), &guest);
        }
    }
}

/// Two operands, of which either cannot be accessed: no table has a bit more than the interpreter sets.
#[test]
fn second_accesses_fault() {
    let bits = [WRITABLE, READ_ONLY, 0];
    for (cpl, data, stack) in
        [0, 3].into_iter().flat_map(|cpl| bits.map(|data| bits.map(|stack| (cpl, data, stack)))).flatten()
    {
        let program: &dyn Fn(&mut CodeAssembler) -> Result<(), IcedError> = &|a| {
            let mut top = a.create_label();
            a.lea(r13, qword_ptr(rbx + 0x200))?;
            a.lea(rdi, qword_ptr(rbx + 0x1000))?;
            a.lea(r14, qword_ptr(rsp))?;
            a.mov(edx, 2)?;
            a.set_label(&mut top)?;
            for reset in 0..8 {
                a.mov(rsp, r14)?;
                a.lea(rbp, qword_ptr(rsp + 8))?;
                a.lea(rsi, qword_ptr(rbx + 0x40))?;
                let mut behind = a.create_label();
                a.lea(r15, qword_ptr(behind))?;
                match reset {
                    0 => a.push(qword_ptr(rbx + 0x10))?,
                    1 => a.pop(qword_ptr(rdi + 0x18))?,
                    2 => a.call(qword_ptr(r13))?,
                    3 => a.xchg(qword_ptr(rbx), rax)?,
                    4 => a.leave()?,
                    5 => a.movsq()?,
                    6 => a.add(qword_ptr(rdi + 0xffc), rax)?,
                    _ => a.push(qword_ptr(rsp + 0x20))?,
                }
                a.set_label(&mut behind)?;
                a.nop()?;
                a.lea(rdi, qword_ptr(rbx + 0x1000))?;
            }
            a.dec(edx)?;
            a.jne(top)?;
            a.nop()
        };
        let mut guest = Guest::new(cpl, program);
        // INC RAX; MOV RCX, [RSP]; JMP RCX
        guest.write(CODE_AT + 0x1800, &[0x48, 0xff, 0xc0, 0x48, 0x8b, 0x0c, 0x24, 0xff, 0xe1]);
        guest.set_word(DATA_AT + 0x200, CODE + 0x1800);
        for (linear, bits) in [(DATA, data), (DATA + PAGE, stack), (guest.state.gpr[4] & !0xfff, stack)] {
            let entry = guest.entry(linear);
            let word = guest.word(entry) & !7 | bits;
            guest.set_word(entry, word);
        }
        check(&format!("CPL {cpl}, first {data}, second {stack}"), &guest);
    }
}

#[test]
fn clflush_faults_as_a_load_does() {
    for cpl in [0, 3] {
        let mut guest = Guest::new(cpl, &|a| {
            let mut top = a.create_label();
            a.mov(ecx, 3)?;
            a.mov(r8, 1u64 << 47)?;
            a.set_label(&mut top)?;
            may_fault!(a,
                a.clflush(byte_ptr(rbx));
                a.clflush(byte_ptr(rbx + 0x1fff));
                a.clflush(byte_ptr(rbx + 0x4000));
                a.clflush(byte_ptr(r8));
            );
            a.dec(ecx)?;
            a.jne(top)
        });
        let entry = guest.entry(DATA + PAGE);
        guest.set_word(entry, 0);
        let ended = check(&format!("CPL {cpl}"), &guest);
        assert_eq!((taken(&ended, 14), taken(&ended, 13)), (6, 3));
    }
}

/// A target that no RIP can have: nothing was pushed, RSP has not moved.
#[test]
fn branches_lead_to_canonical_addresses() {
    for cpl in [0, 1, 3] {
        for target in [1 << 47, u64::MAX >> 1, 1 << 63, !(1 << 47), CODE, DATA + 0x9000] {
            let guest = Guest::new(cpl, &|a| {
                let mut top = a.create_label();
                a.mov(ecx, 3)?;
                a.mov(r14, rsp)?;
                a.mov(rdx, target)?;
                a.mov(r10, target)?;
                a.mov(qword_ptr(rbx + 8), rdx)?;
                a.set_label(&mut top)?;
                for form in 0..6 {
                    let mut behind = a.create_label();
                    a.lea(r15, qword_ptr(behind))?;
                    if target != CODE {
                        match form {
                            0 => a.call(rdx)?,
                            1 => a.call(qword_ptr(rbx + 8))?,
                            2 => a.call(r10)?,
                            3 => a.jmp(rdx)?,
                            4 => {
                                a.push(rdx)?;
                                a.ret()?;
                            }
                            _ => {
                                a.push(r10)?;
                                a.ret_1(16)?;
                            }
                        }
                    }
                    a.set_label(&mut behind)?;
                    a.add(rsi, rsp)?;
                    a.mov(rsp, r14)?;
                }
                a.dec(ecx)?;
                a.jne(top)
            });
            check(&format!("CPL {cpl}, target {target:#x}"), &guest);
        }
    }
}
