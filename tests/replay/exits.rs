//! Digests at every exit, also at those that KVM completes in several steps: string instructions, and
//! accesses to devices that are wider than eight bytes or cross a page.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lockstep::machine::Machine;
use replay::{ClockPolicy, Recorder, Stop};

use crate::guest::{CODE, CPL0, CPL3, DATA, Guest, MMIO, assemble};
use crate::machine::{State, Vm, guest, on_engines};
use crate::replaying::{How, replay};

type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;

fn strings(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edx, 0x3f8)?;
    a.mov(rsi, DATA)?;
    a.mov(rdi, DATA + 0x1000)?;
    a.mov(ecx, 40)?;
    a.rep().outsb()?;
    a.mov(edx, 0x60)?;
    a.mov(ecx, 40)?;
    a.rep().insb()?;
    a.mov(edx, 0x3f8)?;
    a.mov(ecx, 8)?;
    a.rep().outsd()
}

fn wide_stores(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rdi, MMIO + 0x5000)?;
    a.movups(xmmword_ptr(rdi), xmm0)?;
    a.movups(xmmword_ptr(rdi + 0x100), xmm0)?;
    // Crosses from one page to the next.
    a.mov(qword_ptr(rdi + 0xffc), rax)
}

fn wide_loads(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rdi, MMIO + 0x5000)?;
    a.movups(xmm1, xmmword_ptr(rdi))?;
    a.mov(rax, qword_ptr(rdi + 0xffc))?;
    a.mov(rsi, DATA)?;
    a.movups(xmmword_ptr(rsi), xmm1)
}

const PROGRAMS: [(&str, Program); 3] =
    [("string instructions", strings), ("wide stores", wide_stores), ("wide loads", wide_loads)];

fn machine(cpl: u8, program: Program) -> Vm {
    let code = assemble(CODE, |a| {
        a.mov(rsi, DATA)?;
        a.movups(xmm0, xmmword_ptr(rsi))?;
        program(a)?;
        a.mov(edx, u32::from(devices::layout::EVENT_EXIT_PORT))?;
        a.mov(eax, 7)?;
        a.out(dx, al)
    });
    let Guest { engine, mut ram, first } = guest(cpl, &code, &[]);
    let data: Vec<u8> = (0..64).map(|byte| byte * 3 + 1).collect();
    ram.write(DATA as usize, &data);
    Machine::new(engine, ram, &devices::DevicesConfig::default(), &first).expect("a machine")
}

#[test]
fn a_digest_at_every_exit_changes_nothing() {
    on_engines("digests at every exit", || {
        for (name, program) in PROGRAMS {
            for cpl in [CPL0, CPL3] {
                let run = |digests: bool| {
                    let mut recorder = Recorder::new(machine(cpl, program), ClockPolicy::Virtual, 0);
                    let mut out = Vec::new();
                    while recorder.advance(&mut out).unwrap_or_else(|e| panic!("{name}: {e}")) == Stop::Ready
                    {
                        if digests {
                            recorder.digest(&mut out).unwrap_or_else(|e| panic!("{name} at CPL{cpl}: {e}"));
                        }
                    }
                    let ending = recorder.ending().cloned();
                    let log: Vec<_> = out.into_iter().map(|recorded| recorded.entry).collect();
                    (log, ending, State::of(&mut recorder.into_machine()))
                };
                let ((log, ending, last), (plain, plain_ending, plain_last)) = (run(true), run(false));
                eprintln!(
                    "{name} at CPL{cpl}: {} positions, {ending:?}",
                    log.last().map_or(0, |entry| entry.at.count)
                );
                assert_eq!(ending, plain_ending, "{name} at CPL{cpl}");
                assert_eq!(last.diff(&plain_last), Vec::<String>::new(), "{name} at CPL{cpl}");
                assert_eq!(log.last().map(|entry| entry.at), plain.last().map(|entry| entry.at), "{name}");
                for log in [&log, &plain] {
                    for how in [How::Whole, How::Observed] {
                        let mut replay = replay(log, machine(cpl, program), how)
                            .unwrap_or_else(|divergence| panic!("{name} at CPL{cpl}, {how:?}: {divergence}"));
                        assert_eq!(
                            replay.state().diff(&last),
                            Vec::<String>::new(),
                            "{name} at CPL{cpl}, {how:?}"
                        );
                    }
                }
            }
        }
    });
}
