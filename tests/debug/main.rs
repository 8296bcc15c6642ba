//! experiment
#[path = "../engine/guest.rs"]
#[allow(dead_code)]
mod guest;
use guest::*;
use iced_x86::code_asm::*;
use kvm_bindings::*;
use lockstep::engine::{Engine, VmEntry};

fn debug(g: &mut Guest, control: u32) {
    let d = kvm_guest_debug { control, ..Default::default() };
    println!("set {control:#x}: {:?}", g.engine.vcpu_mut().set_guest_debug(&d));
}
fn go(g: &mut Guest) {
    let v = g.engine.vcpu_mut();
    let r = format!("{:?}", v.run().map(|e| format!("{e:?}")));
    let run = v.get_kvm_run();
    let reason = run.exit_reason;
    let dbg = unsafe { run.__bindgen_anon_1.debug.arch };
    let regs = v.get_regs().unwrap();
    println!("  {} reason {reason} exc {} pc {:x} dr6 {:x} | rip {:x} rflags {:x} rax {:x} rcx {:x}", &r[..r.len().min(60)], dbg.exception, dbg.pc, dbg.dr6, regs.rip, regs.rflags, regs.rax, regs.rcx);
}
#[test]
fn exp() {
    for cpl in [CPL0, CPL3] {
        let code = assemble(CODE, |a| {
            a.mov(eax, 1)?; // 5
            a.nop()?; // 5..6
            a.inc(eax)?; //6..8
            a.inc(ecx)?;
            a.pushfq()?;
            a.pop(rcx)?;
            a.mov(edx, 0x80)?;
            a.out(dx, al)?;
            a.inc(eax)?;
            a.inc(eax)?;
            a.inc(eax)?;
            let mut l = a.create_label();
            a.set_label(&mut l)?;
            a.nop()?;
            a.jmp(l)
        });
        println!("== cpl {cpl} single step");
        let mut g = Guest::new(cpl, &code, &[]);
        debug(&mut g, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP);
        for _ in 0..12 { if cpl == 0 { go(&mut g) } }
        println!("== cpl {cpl} TF + single step");
        let mut g = Guest::new(cpl, &code, &[]);
        debug(&mut g, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP);
        let mut r = g.engine.vcpu_mut().get_regs().unwrap();
        r.rflags |= 0x100;
        g.engine.vcpu_mut().set_regs(&r).unwrap();
        for _ in 0..3 { go(&mut g) }
        println!("== cpl {cpl} sw bp");
        let mut g = Guest::new(cpl, &code, &[]);
        g.ram.write(CODE as usize + 6, &[0xcc]);
        debug(&mut g, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP);
        go(&mut g);
        println!("== cpl {cpl} hw bp");
        let mut g = Guest::new(cpl, &code, &[]);
        g.ram.write(CODE as usize + 30, &[0xcc]);
        let mut d = kvm_guest_debug { control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_USE_SW_BP, ..Default::default() };
        d.arch.debugreg[0] = CODE + 6;
        d.arch.debugreg[7] = 0x403;
        println!("{:?}", g.engine.vcpu_mut().set_guest_debug(&d));
        go(&mut g);
        go(&mut g);
    }
    let _ = VmEntry::Resume;
}
