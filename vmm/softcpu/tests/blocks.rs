//! Blocks against single steps: what is fused, linked, left out or done many at once must not show, at any
//! count. Each program is run in one go to every count of steps, interpreted and translated, and step by step
//! from a fresh state each time, which decodes each instruction by itself.

use iced_x86::code_asm::*;
use softcpu::{Cpu, Exit, State};

const RAM: usize = 1 << 20;
const CODE: u64 = 0x1f80;
const DATA: u64 = 0x8000;

/// What may not be told from single steps: interpreted blocks, and blocks translated at their first run.
const TRANSLATIONS: [Option<u32>; 2] = [None, Some(1)];

struct Machine {
    ram: Vec<u64>,
    cpu: Box<Cpu>,
}

impl Machine {
    /// 64-bit code without paging; `bits` 32 for compatibility mode, in a code segment at `base`.
    fn new(code: &[u8], bits: u32, base: u64, translation: Option<u32>) -> Self {
        let mut ram: Vec<u64> = (0..RAM as u64 / 8).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        let host = ram.as_mut_ptr().cast::<u8>();
        // SAFETY: the code is shorter than RAM from there on.
        unsafe { code.as_ptr().copy_to_nonoverlapping(host.wrapping_add(CODE as usize), code.len()) };
        // SAFETY: the vector outlives the processor and is not touched while it runs.
        let mut cpu = unsafe { Cpu::new(host, RAM) };
        assert!(cpu.set_translation(translation), "the host lets code be executed");
        let mut state = State { rip: CODE, cr0: 0x33, cr4: 0x620, efer: 0x500, ..State::default() };
        for segment in &mut state.segments[..6] {
            (segment.access, segment.limit) = (0xc093, u32::MAX);
        }
        state.segments[1].access = if bits == 64 { 0xa09b } else { 0xc09b };
        state.segments[1].base = base;
        state.rip = CODE.wrapping_sub(base) & if bits == 64 { u64::MAX } else { 0xffff_ffff };
        state.gpr[4] = 0x7000;
        cpu.set_state(&state);
        Self { ram, cpu }
    }

    fn digest(&self) -> u64 {
        self.ram.iter().fold(0, |hash, word| (hash ^ word).wrapping_mul(0x100_0000_01b3).rotate_left(5))
    }
}

/// Runs to the HLT step by step, and to each `every`-th of the counts on the way in one go.
fn check(bits: u32, every: u64, build: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> State {
    let mut assembler = CodeAssembler::new(bits).expect("a known size");
    build(&mut assembler).and_then(|()| assembler.hlt()).expect("valid operands");
    let code = assembler.assemble(CODE).expect("branches in reach");
    check_at(bits, 0, every, &code)
}

/// The same of code in a segment at `base`.
fn check_at(bits: u32, base: u64, every: u64, code: &[u8]) -> State {
    let mut stepped = Machine::new(code, bits, base, None);
    let mut whole = TRANSLATIONS.map(|translation| Machine::new(code, bits, base, translation));
    loop {
        let state = stepped.cpu.state();
        stepped.cpu.set_state(&state);
        let exit = stepped.cpu.run(stepped.cpu.retired() + 1);
        let count = stepped.cpu.retired();
        assert!(matches!(exit, Exit::Reached | Exit::Hlt), "{exit:?} after {count}: {:x?}", state);
        if exit == Exit::Hlt || count.is_multiple_of(every) {
            for (translation, whole) in TRANSLATIONS.into_iter().zip(&mut whole) {
                let place = format!("{count} steps, translation {translation:?}");
                let mut once = Machine::new(code, bits, base, translation);
                once.cpu.run(count);
                assert_eq!(once.cpu.state(), stepped.cpu.state(), "after {place}, in one go");
                whole.cpu.run(count);
                assert_eq!(whole.cpu.state(), stepped.cpu.state(), "after {place}, in {every}s");
                assert_eq!(once.digest(), stepped.digest(), "RAM after {place}, in one go");
                assert_eq!(whole.digest(), stepped.digest(), "RAM after {place}, in {every}s");
            }
        }
        if exit == Exit::Hlt {
            return stepped.cpu.state();
        }
    }
}

macro_rules! conditions {
    ($a:ident, $compare:expr, $($jump:ident)*) => {$(
        let mut over = $a.create_label();
        $compare?;
        $a.$jump(over)?;
        $a.inc(r15)?;
        $a.set_label(&mut over)?;
        $a.rol(r15, 1)?;
    )*};
}

#[test]
fn comparisons_fuse_with_every_condition() {
    let state = check(64, 7, |a| {
        let mut top = a.create_label();
        a.mov(rcx, 24u64)?;
        a.mov(rbx, DATA)?;
        a.set_label(&mut top)?;
        a.mov(rax, qword_ptr(rbx + rcx * 8))?;
        conditions!(a, a.cmp(al, cl), jo jno jb jae je jne jbe ja js jns jp jnp jl jge jle jg);
        conditions!(a, a.cmp(rax, qword_ptr(rbx)), jo jno jb jae je jne jbe ja js jns jp jnp jl jge jle jg);
        conditions!(a, a.cmp(dword_ptr(rbx + 4), -3), jo jb je jbe ja js jp jl jge jle jg);
        conditions!(a, a.test(eax, eax), jo jb je jbe ja js jp jl jge jle jg);
        conditions!(a, a.test(byte_ptr(rbx), 9), je jne js jp);
        conditions!(a, a.and(eax, 0x30), je jne);
        a.pushfq()?;
        a.pop(rdx)?;
        a.add(r15, rdx)?;
        a.add(rbx, 8)?;
        a.dec(rcx)?;
        a.jne(top)
    });
    assert_eq!(state.gpr[1], 0);
}

#[test]
fn flags_that_are_seen_are_there() {
    check(64, 1, |a| {
        a.mov(rax, 0x7fff_ffff_ffff_fff9u64)?;
        a.mov(ebx, 0x1234_5678)?;
        a.mov(rsi, DATA)?;
        for _ in 0..6 {
            a.add(rax, 3)?;
            a.lea(rdx, qword_ptr(rax + rbx * 4))?;
            a.xor(ebx, eax)?;
            a.pushfq()?;
            a.sub(rdx, rbx)?;
            a.adc(rax, rdx)?;
            a.mov(ecx, ebx)?;
            a.ror(ecx, 7)?;
            a.pushfq()?;
            a.shl(ecx, 3)?;
            a.inc(ecx)?;
            a.add(ecx, dword_ptr(rsi))?;
            a.dec(rcx)?;
            a.pushfq()?;
            a.or(rcx, rax)?;
            a.shr(rdx, 1)?;
            a.sbb(rbx, rdx)?;
            a.mov(qword_ptr(rsi), rbx)?;
            a.shl(edx, 0)?;
            a.pushfq()?;
        }
        Ok(())
    });
}

/// Repeated instructions: two overlaps each way, page boundaries, both directions, wrapping 32-bit addresses.
#[test]
fn repetitions_stop_at_any_count() {
    for (from, to) in [(0x8000u64, 0x9ff0u64), (0x8000, 0x8003), (0x8003, 0x8000), (0x8ff1, 0xa008)] {
        for down in [false, true] {
            check(64, 61, |a| {
                if down {
                    a.std()?
                } else {
                    a.cld()?
                }
                a.mov(rsi, from + 0x200)?;
                a.mov(rdi, to + 0x200)?;
                a.mov(ecx, 0x90)?;
                a.rep().movsb()?;
                a.mov(ecx, 0x41)?;
                a.rep().movsq()?;
                a.mov(eax, 0x1234_5678)?;
                a.mov(ecx, 0x70)?;
                a.rep().stosd()?;
                a.lea(rdi, qword_ptr(rsi + if down { 8 } else { -8 }))?;
                a.mov(ecx, 0x60)?;
                a.repe().cmpsb()?;
                a.mov(al, 0x15)?;
                a.mov(ecx, 0x300)?;
                a.repne().scasb()?;
                a.xor(ecx, ecx)?;
                a.rep().movsb()?;
                a.pushfq()
            });
        }
    }
}

#[test]
fn repetitions_in_compatibility_mode() {
    let state = check(32, 13, |a| {
        a.cld()?;
        a.mov(esi, 0x8000)?;
        a.mov(edi, 0x8ffe)?;
        a.mov(ecx, 0x50)?;
        a.rep().movsd()?;
        a.pushad()?;
        a.mov(ecx, 0x30)?;
        a.rep().stosw()?;
        a.popad()?;
        a.dec(ecx)
    });
    assert_eq!(state.gpr[1], 0xffff_ffff);
    assert_eq!(state.gpr[7], 0x8ffe + 0x140);
}

/// Calls and jumps across the page boundary that follows `CODE`, and inside both pages.
#[test]
fn branches_link_inside_pages_only() {
    let state = check(64, 11, |a| {
        let (mut top, mut far, mut near, mut done) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.mov(ecx, 40)?;
        a.set_label(&mut top)?;
        a.call(far)?;
        a.call(near)?;
        a.sub(ecx, 1)?;
        a.jne(top)?;
        a.jmp(done)?;
        a.set_label(&mut near)?;
        a.add(rax, 1)?;
        a.ret()?;
        for _ in 0..128 {
            a.nop()?;
        }
        a.set_label(&mut far)?;
        a.add(rax, rcx)?;
        a.ret()?;
        a.set_label(&mut done)?;
        a.nop()
    });
    assert_eq!(state.gpr[0], 40 * 41 / 2 + 40);
}

/// Calls and loops over the end of a page, in segments that begin anywhere.
#[test]
fn code_segments_have_bases() {
    let build = |at: u64| {
        let mut a = CodeAssembler::new(32).expect("32 bits");
        let mut build = || {
            let (mut top, mut function) = (a.create_label(), a.create_label());
            a.mov(ecx, 9)?;
            a.set_label(&mut top)?;
            a.call(function)?;
            a.nops_with_size(0x70)?;
            a.dec(ecx)?;
            a.jne(top)?;
            a.hlt()?;
            a.set_label(&mut function)?;
            a.add(eax, ecx)?;
            a.ret()
        };
        build().expect("valid operands");
        a.assemble(at).expect("branches in reach")
    };
    for base in [0, 1, 0x80, 0x345, 0x1000, 0x1f80] {
        let state = check_at(32, base, 5, &build(CODE - base));
        assert_eq!((state.gpr[0], state.gpr[1]), (45, 0), "base {base:#x}");
    }
}

/// EIP goes from 4 GiB - 1 on to 0, between instructions and within one.
#[test]
fn eip_has_32_bits() {
    for inside in 0..5 {
        let before = 0x30 - inside;
        let mut code = vec![0x43; before];
        code.extend([0xb8, 1, 2, 3, 4]);
        code.extend([0x43; 8]);
        code.push(0xf4);
        let state = check_at(32, CODE + 0x30, 3, &code);
        assert_eq!((state.gpr[0], state.gpr[3]), (0x0403_0201, before as u64 + 8));
        assert_eq!(state.rip, 5 - inside as u64 + 9);
    }
}

/// One processor sees more code segments than blocks are kept apart for, and each several times.
#[test]
fn code_segments_without_number() {
    // MOV EAX, imm; JMP +0; HLT: what is decoded depends on the base alone.
    let code = [0xb8, 7, 0, 0, 0, 0xeb, 0, 0xe8, 0, 0, 0, 0, 0xf4];
    let mut machine = Machine::new(&code, 32, 0, None);
    let start = machine.cpu.state();
    for round in 0..3 {
        for base in 0..400 {
            let mut state = start.clone();
            state.segments[1].base = base;
            state.rip = CODE - base;
            machine.cpu.set_state(&state);
            let count = machine.cpu.retired();
            assert_eq!(machine.cpu.run(u64::MAX), Exit::Hlt);
            assert_eq!(machine.cpu.retired() - count, 4, "round {round}, base {base}");
            let pushed = machine.ram[0x6ff8 / 8] >> 32;
            assert_eq!(pushed, CODE - base + 12, "the pushed EIP, round {round}, base {base}");
        }
    }
}

/// The limit of the code segment: of what is executed, and of where branches lead.
#[test]
fn code_ends_at_the_limit() {
    let code = [0x43, 0x43, 0x43, 0x43, 0x43, 0x43];
    for limit in 0..5u64 {
        let mut machine = Machine::new(&code, 32, 0, None);
        let mut state = machine.cpu.state();
        state.segments[1].limit = (CODE + limit) as u32;
        machine.cpu.set_state(&state);
        // The first #GP finds no table of handlers: a triple fault.
        assert_eq!(machine.cpu.run(100), Exit::Shutdown);
        assert_eq!(machine.cpu.state().gpr[3], limit + 1, "instructions below the limit");
        assert_eq!(machine.cpu.state().rip, CODE + limit + 1);
    }
}
