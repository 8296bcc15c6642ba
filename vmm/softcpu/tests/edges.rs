//! Operands across the end of RAM, part of them a device's: however many exits an instruction takes, it has
//! its effect once. Each instruction runs at every offset around that end, and beside it on a processor with
//! more RAM, where nothing exits: registers, memory and the count of steps must be the same.

use std::sync::LazyLock;

use iced_x86::code_asm::*;
use softcpu::{Cpu, Exit, State};

/// RAM of the processor under test; what lies behind is a device of `DEVICE` bytes.
const RAM: u64 = 1 << 20;
const DEVICE: u64 = 0x1000;
const CODE: u64 = 0x4000;

struct Machine {
    memory: Vec<u64>,
    cpu: Box<Cpu>,
    device: Vec<u8>,
}

/// What memory and device hold at first.
fn content(address: u64) -> u8 {
    (address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

impl Machine {
    fn new(ram: u64, code: &[u8], change: &dyn Fn(&mut State)) -> Self {
        static CONTENT: LazyLock<Vec<u64>> = LazyLock::new(|| {
            let word = |n: u64| u64::from_le_bytes(std::array::from_fn(|byte| content(n * 8 + byte as u64)));
            (0..(RAM + DEVICE) / 8).map(word).collect()
        });
        let mut memory = CONTENT[..ram as usize / 8].to_vec();
        let host = memory.as_mut_ptr().cast::<u8>();
        // SAFETY: the code is shorter than RAM from there on.
        unsafe { code.as_ptr().copy_to_nonoverlapping(host.wrapping_add(CODE as usize), code.len()) };
        // SAFETY: the vector outlives the processor and is not touched while it runs.
        let cpu = unsafe { Cpu::new(host, ram as usize) };
        let device = (RAM..RAM + DEVICE).map(content).collect();
        let mut machine = Self { memory, cpu, device };
        let mut state = State { rip: CODE, cr0: 0x33, cr4: 0x620, efer: 0x500, ..State::default() };
        for segment in &mut state.segments[..6] {
            (segment.access, segment.limit) = (0xc093, u32::MAX);
        }
        state.segments[1].access = 0xa09b;
        state.gpr = std::array::from_fn(|n| 0x0123_4567_89ab_cdef_u64.rotate_left(7 * n as u32));
        state.gpr[4] = 0x7000;
        change(&mut state);
        machine.cpu.set_state(&state);
        machine
    }

    /// Byte `address` of memory or device.
    fn byte(&self, address: u64) -> u8 {
        match self.memory.get(address as usize / 8) {
            Some(word) => word.to_le_bytes()[address as usize % 8],
            None => self.device[(address - RAM) as usize],
        }
    }

    /// Runs to the HLT; the result is how many exits it took.
    fn run(&mut self) -> usize {
        for exits in 0..10_000 {
            match self.cpu.run(1_000_000) {
                Exit::Hlt => return exits,
                Exit::MmioRead { address, size } => {
                    let at = (address - RAM) as usize;
                    let mut value = [0; 8];
                    value[..usize::from(size)].copy_from_slice(&self.device[at..at + usize::from(size)]);
                    self.cpu.answer(u64::from_le_bytes(value));
                }
                Exit::MmioWrite { address, size, value } => {
                    let (at, size) = ((address - RAM) as usize, usize::from(size));
                    self.device[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
                    self.cpu.answer(0);
                }
                other => panic!("{other:?} at {:x}", self.cpu.rip()),
            }
        }
        panic!("it does not end");
    }
}

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Runs `program` with `registers` at every address from which `bytes` bytes reach behind the end of RAM.
fn check(name: &str, bytes: u64, registers: &[usize], program: Program) {
    for offset in 0..=bytes {
        check_at(name, offset, RAM - offset, registers, program);
    }
}

fn check_at(name: &str, offset: u64, at: u64, registers: &[usize], program: Program) {
    let mut assembler = CodeAssembler::new(64).expect("a known size");
    program(&mut assembler).and_then(|()| assembler.hlt()).expect("valid operands");
    let code = assembler.assemble(CODE).expect("in reach");
    let change = |state: &mut State| {
        for register in registers {
            state.gpr[*register] = at;
        }
    };
    let mut split = Machine::new(RAM, &code, &change);
    let mut whole = Machine::new(RAM + DEVICE, &code, &change);
    let exits = split.run();
    assert_eq!(whole.run(), 0);
    let place = format!("{name}, {offset} bytes before the end of RAM, {exits} exits");
    assert_eq!(whole.cpu.state().diff(&split.cpu.state()), Vec::<String>::new(), "{place}");
    assert_eq!(whole.cpu.retired(), split.cpu.retired(), "{place}");
    for address in RAM - 0x800..RAM + 0x800 {
        assert_eq!(split.byte(address), whole.byte(address), "{place}: byte {address:x}");
    }
}

const RBX: usize = 3;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

#[test]
fn what_reads_and_writes_is_done_once() {
    check("ADD", 8, &[RBX], |a| a.add(qword_ptr(rbx), rdx));
    check("ADC of 4", 4, &[RBX], |a| {
        a.stc()?;
        a.adc(dword_ptr(rbx), edx)
    });
    check("ADD of 2", 2, &[RBX], |a| a.add(word_ptr(rbx), dx));
    check("INC", 8, &[RBX], |a| a.inc(qword_ptr(rbx)));
    check("NEG", 8, &[RBX], |a| a.neg(qword_ptr(rbx)));
    check("NOT", 8, &[RBX], |a| a.not(qword_ptr(rbx)));
    check("XOR of an immediate", 8, &[RBX], |a| a.xor(qword_ptr(rbx), 0x55));
    check("ROL by CL", 8, &[RBX], |a| a.rol(qword_ptr(rbx), cl));
    check("RCL by CL", 8, &[RBX], |a| {
        a.stc()?;
        a.rcl(qword_ptr(rbx), cl)
    });
    check("SHRD", 8, &[RBX], |a| a.shrd(qword_ptr(rbx), rdx, 5));
    check("BTC", 8, &[RBX], |a| {
        a.mov(edx, 9)?;
        a.btc(qword_ptr(rbx), rdx)
    });
    check("XCHG", 8, &[RBX], |a| a.xchg(qword_ptr(rbx), rdx));
    check("XADD", 8, &[RBX], |a| a.lock().xadd(qword_ptr(rbx), rdx));
    check("CMPXCHG that fails", 8, &[RBX], |a| a.lock().cmpxchg(qword_ptr(rbx), rdx));
    check("CMPXCHG that succeeds", 8, &[RBX], |a| {
        a.mov(rax, qword_ptr(rbx))?;
        a.lock().cmpxchg(qword_ptr(rbx), rdx)
    });
    check("CMPXCHG8B", 8, &[RBX, RDI], |a| {
        a.mov(eax, dword_ptr(rdi))?;
        a.mov(edx, dword_ptr(rdi + 4))?;
        a.lock().cmpxchg8b(qword_ptr(rdi))
    });
}

#[test]
fn what_uses_the_stack_is_done_once() {
    check("PUSH", 8, &[RBX, RSP], |a| {
        a.add(rsp, 8)?;
        a.push(rdx)
    });
    check("PUSH m onto itself", 16, &[RBX, RSP], |a| {
        a.add(rsp, 8)?;
        a.push(qword_ptr(rsp - 4))
    });
    check("POP m onto itself", 16, &[RSP], |a| a.pop(qword_ptr(rsp - 3)));
    check("CALL", 8, &[RSP], |a| {
        let mut next = a.create_label();
        a.add(rsp, 8)?;
        a.call(next)?;
        a.set_label(&mut next)?;
        a.zero_bytes()
    });
    check("PUSHF", 8, &[RSP], |a| {
        a.add(rsp, 8)?;
        a.pushfq()
    });
    check("ENTER 0, 0", 8, &[RSP, RBP], |a| {
        a.add(rsp, 8)?;
        a.enter(0, 0)
    });
    check("ENTER with frames that it overwrites", 96, &[RSP, RBP], |a| {
        a.add(rsp, 100)?;
        a.add(rbp, 97)?;
        a.enter(16, 6)
    });
    check("LEAVE", 8, &[RBP], |a| a.leave());
}

#[test]
fn what_stores_is_done_once() {
    check("MOVDQU", 16, &[RBX], |a| {
        a.movq(xmm1, rdx)?;
        a.movdqu(xmmword_ptr(rbx), xmm1)
    });
    check("MASKMOVDQU", 16, &[RDI], |a| {
        a.movdqu(xmm1, xmmword_ptr(rdi - 16))?;
        a.maskmovdqu(xmm1, xmm1)
    });
    check("FSTP of 10", 10, &[RBX], |a| {
        a.fldpi()?;
        a.fstp(tword_ptr(rbx))
    });
    check("FISTP", 8, &[RBX], |a| {
        a.fldpi()?;
        a.fistp(qword_ptr(rbx))
    });
    check("FNSAVE", 108, &[RBX], |a| {
        a.fldpi()?;
        a.fnsave(ptr(rbx))
    });
    for offset in (0..=512).step_by(16) {
        check_at("FXSAVE", offset, RAM - offset, &[RBX], |a| a.fxsave(ptr(rbx)));
    }
    check("SGDT", 10, &[RBX], |a| a.sgdt(ptr(rbx)));
    check("MOVBE", 8, &[RBX], |a| a.movbe(qword_ptr(rbx), rdx));
}

#[test]
fn strings_are_done_once() {
    let counted: [(&str, Program); 6] = [
        ("REP MOVSQ onto itself", |a| {
            a.lea(rdi, qword_ptr(rsi + 3))?;
            a.mov(ecx, 4)?;
            a.rep().movsq()
        }),
        ("REP MOVSQ onto itself, down", |a| {
            a.lea(rdi, qword_ptr(rsi - 5))?;
            a.mov(ecx, 4)?;
            a.std()?;
            a.rep().movsq()
        }),
        ("REP STOSQ", |a| {
            a.mov(ecx, 4)?;
            a.rep().stosq()
        }),
        ("REPE CMPSQ", |a| {
            a.mov(ecx, 4)?;
            a.repe().cmpsq()
        }),
        ("REPNE SCASQ", |a| {
            a.mov(ecx, 4)?;
            a.repne().scasq()
        }),
        ("LODSQ", |a| a.lodsq()),
    ];
    for (name, program) in counted {
        check(name, 40, &[RSI, RDI], program);
    }
}
