//! External interrupts, their shadows, HLT, and who may change IF and IOPL (SDM vol. 3, 6.8; vol. 2, POPF,
//! STI, CLI).

use iced_x86::code_asm::*;
use lockstep::engine::{StopPrecision, VmEntry, VmExit};
use logchannel::Position;

use crate::cases::{At, Case};
use crate::hosts::{Host, hosts};
use crate::machine::{Machine, run};
use crate::scaffold::*;

const IOPL_QUIRK: &str = "IOPL has no effect at CPL3";

fn flags() -> Vec<Case> {
    let user = |name: &str, iopl: u64| {
        let case = Case::user(format!("{name} at CPL3, IOPL {iopl}")).with(move |s| s.rflags |= iopl << 12);
        case.not_on_if(iopl == 3, Host::Pvm, IOPL_QUIRK)
    };
    let kernel = |name: &str| Case::kernel(name);
    let popf = |case: Case, value: u64| {
        case.prelude(move |a| {
            a.mov(rax, value)?;
            a.push(rax)
        })
        .probe(|a| a.popfq())
    };
    let all = 0x7f_7fd7 & !TF;
    vec![
        user("CLI", 3).with(|s| s.rflags |= IF).probe(|a| a.cli()).done().flags(IF, 0),
        user("STI", 3).probe(|a| a.sti()).done().flags(IF, IF),
        user("CLI", 2).with(|s| s.rflags |= IF).probe(|a| a.cli()).faults(13, 0),
        kernel("STI, CLI")
            .probe(|a| {
                a.sti()?;
                a.cli()
            })
            .done()
            .flags(IF, 0),
        popf(user("POPF keeps IF and IOPL", 0), all)
            .done()
            .flags(IF | IOPL3, 0)
            .flags(ID | AC | NT | DF | CF, ID | AC | NT | DF | CF)
            .undefined(NT)
            .not_always_on(Host::Pvm, "the host's flags leak"),
        popf(user("POPF changes IF, keeps IOPL", 3), IF | 2).done().flags(IF | IOPL3, IF | IOPL3),
        popf(kernel("POPF changes IF and IOPL"), all)
            .done()
            .flags(0x3f_7fd7, 0x24_7fd7 & !TF)
            .not_always_on(Host::Pvm, "IOPL stays 0"),
        popf(kernel("POPF: RF is cleared, VM, VIF, VIP stay"), 0x1b_0002).done().flags(0x1b_0000, 0),
        kernel("PUSHF: RF and VM are pushed as zeros")
            .with(|s| s.rflags |= RF | ID)
            .probe(|a| {
                a.pushfq()?;
                a.pop(rax)
            })
            .done()
            .leaves(RAX, ID | 2),
        kernel("POPFW keeps the upper half")
            .with(|s| s.rflags |= ID)
            .prelude(|a| a.push(CF as i32 | 2))
            .probe(|a| {
                a.popf()?;
                a.pop(ax)
            })
            .done()
            .flags(ID | CF, ID | CF),
        kernel("SAHF and LAHF")
            .gpr(RAX, 0xff00)
            .probe(|a| {
                a.sahf()?;
                a.mov(ah, 0)?;
                a.lahf()
            })
            .done()
            .leaves(RAX, 0xd700),
        kernel("HLT")
            .with(|s| s.rflags |= IF)
            .probe(|a| a.hlt())
            .ends(crate::machine::Finish::Halted(KERNEL_CODE + 1)),
    ]
}

#[test]
fn flags_change_as_the_level_allows() {
    run("flags", flags());
}

/// Injects vector 0x31 at the exit of an OUT.
#[test]
fn an_external_interrupt_pushes_the_next_instruction() {
    for host in hosts("external") {
        for (cpl, ist) in [(0u8, 0u64), (0, 2), (3, 0), (3, 2)] {
            let case = Case::at_level("external interrupt", cpl)
                .with(|s| s.rflags |= IF | CF)
                .poke(gate_at(0x31), usual_gate(0x31, 0, ist))
                .probe(|a| {
                    a.out(0x80, al)?;
                    a.nop()
                });
            let mut machine = Machine::of(host, &case).expect("starts");
            assert!(matches!(machine.run(VmEntry::Resume), VmExit::PioWrite { port: 0x80, .. }));
            assert!(machine.engine.interruptible());
            machine.engine.inject(0x31).expect("injects");
            let outcome = machine.play(1, true);
            let event = &outcome.events[0];
            assert_eq!((event.vector, event.error), (0x31, None));
            assert_eq!(event.rip, case.address(At::Probe(1)), "{} CPL{cpl}", host.engine());
            assert_eq!(event.rflags & (IF | CF | RF), IF | CF);
            assert_eq!(event.state.rflags & IF, 0);
            let top = match (ist, cpl) {
                (2, _) => IST1 + 0x400,
                (_, 0) => KERNEL_STACK,
                _ => RSP0,
            };
            assert_eq!(event.state.gpr[RSP], top - 40, "{} CPL{cpl} IST{ist}", host.engine());
            assert_eq!(outcome.finish, crate::machine::Finish::Done);
        }
    }
}

#[test]
fn hlt_is_left_by_an_interrupt_with_the_next_instruction_on_the_stack() {
    for host in hosts("hlt") {
        let case = Case::kernel("HLT and an interrupt").probe(|a| {
            a.sti()?;
            a.hlt()?;
            a.nop()
        });
        let mut machine = Machine::of(host, &case).expect("starts");
        assert_eq!(machine.run(VmEntry::Resume), VmExit::Hlt);
        assert!(machine.engine.interruptible());
        machine.engine.inject(0x31).expect("injects");
        let outcome = machine.play(1, true);
        assert_eq!((outcome.events[0].vector, outcome.events[0].rip), (0x31, case.address(At::Probe(2))));
        assert_eq!(outcome.finish, crate::machine::Finish::Done);
    }
}

/// Steps through the probe and tells after each instruction whether an interrupt would be taken.
fn windows(host: Host, case: &Case, instructions: u64) -> Option<Vec<bool>> {
    let mut machine = Machine::of(host, case).expect("starts");
    if machine.engine.stops() != StopPrecision::Exact {
        eprintln!("SKIPPED shadows on {}: it stops only at exits", host.engine());
        return None;
    }
    let mut seen = Vec::new();
    for at in 1..=instructions {
        assert_eq!(
            machine.engine.run(VmEntry::Resume, Some(Position::at(at))).expect("runs"),
            VmExit::Reached
        );
        seen.push(machine.engine.interruptible());
    }
    Some(seen)
}

#[test]
fn sti_and_mov_ss_hold_interrupts_off_for_one_instruction() {
    let sti = Case::kernel("STI").probe(|a| {
        a.sti()?;
        a.nop()?;
        a.nop()
    });
    let sti_sti = Case::kernel("STI twice").probe(|a| {
        a.sti()?;
        a.sti()?;
        a.nop()
    });
    let sti_cli = Case::kernel("STI, CLI").probe(|a| {
        a.sti()?;
        a.cli()?;
        a.nop()
    });
    let enabled = |case: Case| case.with(|s| s.rflags |= IF).gpr(RAX, KERNEL_DS.into());
    let mov_ss = enabled(Case::kernel("MOV SS")).probe(|a| {
        a.mov(ss, ax)?;
        a.nop()?;
        a.nop()
    });
    let mov_ss_twice = enabled(Case::kernel("MOV SS twice")).probe(|a| {
        a.mov(ss, ax)?;
        a.mov(ss, ax)?;
        a.nop()
    });
    let mov_ds = enabled(Case::kernel("MOV DS")).probe(|a| {
        a.mov(ds, ax)?;
        a.nop()?;
        a.nop()
    });
    let popf = Case::kernel("POPF has no shadow").prelude(|_| Ok(())).probe(|a| {
        a.push(0x202)?;
        a.popfq()?;
        a.nop()
    });
    for host in hosts("shadows") {
        for (case, want) in [
            (&sti, [false, true, true]),
            // Only a STI that sets IF has a shadow (SDM vol. 2, STI).
            (&sti_sti, [false, true, true]),
            (&sti_cli, [false, false, false]),
            (&mov_ss, [false, true, true]),
            (&mov_ds, [true, true, true]),
            (&popf, [false, true, true]),
        ] {
            if let Some(seen) = windows(host, case, 3) {
                assert_eq!(seen, want, "{} on {}", case.name, host.engine());
            }
        }
        // Of two in a row only the first is sure to hold interrupts off (SDM vol. 3, 6.8.3).
        if let Some(seen) = windows(host, &mov_ss_twice, 3) {
            assert_eq!((seen[0], seen[2]), (false, true), "{} on {}", mov_ss_twice.name, host.engine());
        }
    }
}
