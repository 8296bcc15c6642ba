//! RDMSR, WRMSR, SWAPGS, RDTSC, RDTSCP, RDPMC (SDM vol. 4; vol. 3, 17.17).
//!
//! The time-stamp counter is the position plus an offset: reading it takes no input. MSRs outside the model
//! are the machine's to answer.

use iced_x86::{Instruction, Mnemonic};

use crate::control::CR4_TSD;
use crate::decode::{Builder, Lowered};
use crate::exception::{Exception, is_canonical, raise_at};
use crate::op::{Handler, Op, next};
use crate::state::Seg;
use crate::{Cpu, Exit, Fault, or_abort};

const RAX: u8 = 0;
const RCX: u8 = 8;
const RDX: u8 = 16;

/// Numbers of the model's MSRs.
mod number {
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const PAT: u32 = 0x277;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SFMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
}

/// IA32_MISC_ENABLE: fast strings; what a guest may change of it.
const MISC_ENABLE_WRITABLE: u64 = 1;

impl Cpu {
    /// The time-stamp counter at an op.
    fn time_stamp(&self, op: &Op) -> u64 {
        (self.retired + u64::from(op.number)).wrapping_add_signed(self.tsc_offset)
    }

    fn read_msr(&mut self, op: &Op, index: u32) -> Result<u64, Fault> {
        Ok(match index {
            number::TSC => self.time_stamp(op),
            number::PLATFORM_ID | number::BIOS_SIGN_ID => 0,
            number::TSC_ADJUST => self.msrs.tsc_adjust,
            number::SYSENTER_CS => self.msrs.sysenter_cs,
            number::SYSENTER_ESP => self.msrs.sysenter_esp,
            number::SYSENTER_EIP => self.msrs.sysenter_eip,
            number::MISC_ENABLE => self.msrs.misc_enable,
            number::PAT => self.msrs.pat,
            number::EFER => self.efer,
            number::STAR => self.msrs.star,
            number::LSTAR => self.msrs.lstar,
            number::CSTAR => self.msrs.cstar,
            number::SFMASK => self.msrs.sfmask,
            number::FS_BASE => self.segments[Seg::Fs as usize].base,
            number::GS_BASE => self.segments[Seg::Gs as usize].base,
            number::KERNEL_GS_BASE => self.msrs.kernel_gs_base,
            number::TSC_AUX => self.msrs.tsc_aux,
            _ => return self.ask(Exit::MsrRead { index }),
        })
    }

    fn write_msr(&mut self, op: &Op, index: u32, value: u64) -> Result<(), Fault> {
        let refused = match index {
            number::SYSENTER_ESP
            | number::SYSENTER_EIP
            | number::LSTAR
            | number::CSTAR
            | number::FS_BASE
            | number::GS_BASE
            | number::KERNEL_GS_BASE => !is_canonical(value),
            number::PAT => value.to_le_bytes().iter().any(|kind| !matches!(kind, 0 | 1 | 4..=7)),
            number::SFMASK | number::TSC_AUX => value >> 32 != 0,
            number::MISC_ENABLE => (value ^ self.msrs.misc_enable) & !MISC_ENABLE_WRITABLE != 0,
            number::PLATFORM_ID => true,
            _ => false,
        };
        if refused {
            return self.raise(Exception::gp(0));
        }
        match index {
            number::TSC => self.set_time_stamp(self.time_stamp(op), value),
            number::TSC_ADJUST => {
                let now = self.time_stamp(op);
                let later = value.wrapping_sub(self.msrs.tsc_adjust);
                self.set_time_stamp(now, now.wrapping_add(later));
            }
            number::BIOS_SIGN_ID => {}
            number::SYSENTER_CS => self.msrs.sysenter_cs = value,
            number::SYSENTER_ESP => self.msrs.sysenter_esp = value,
            number::SYSENTER_EIP => self.msrs.sysenter_eip = value,
            number::MISC_ENABLE => self.msrs.misc_enable = value,
            number::PAT => self.msrs.pat = value,
            number::EFER => return self.write_efer(value),
            number::STAR => self.msrs.star = value,
            number::LSTAR => self.msrs.lstar = value,
            number::CSTAR => self.msrs.cstar = value,
            number::SFMASK => self.msrs.sfmask = value,
            number::FS_BASE => self.set_base(Seg::Fs, value),
            number::GS_BASE => self.set_base(Seg::Gs, value),
            number::KERNEL_GS_BASE => self.msrs.kernel_gs_base = value,
            number::TSC_AUX => self.msrs.tsc_aux = value,
            _ => return self.ask(Exit::MsrWrite { index, value }).map(|_| ()),
        }
        Ok(())
    }

    /// Sets the counter, now at `old`, to `new`; IA32_TSC_ADJUST moves with it (SDM vol. 3, 17.17.3).
    fn set_time_stamp(&mut self, old: u64, new: u64) {
        let later = new.wrapping_sub(old);
        self.tsc_offset = self.tsc_offset.wrapping_add(later as i64);
        self.msrs.tsc_adjust = self.msrs.tsc_adjust.wrapping_add(later);
    }

    fn set_base(&mut self, seg: Seg, base: u64) {
        self.segments[seg as usize].base = base;
        self.bases[seg as usize] = base;
    }
}

fn set_pair(cpu: &mut Cpu, value: u64) {
    cpu.set_reg(RAX, value as u32);
    cpu.set_reg(RDX, (value >> 32) as u32);
}

fn rdmsr(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.must_be_supervisor());
    let value = or_abort!(cpu, op, cpu.read_msr(op, cpu.reg::<u32>(RCX)));
    set_pair(cpu, value);
    cpu.end(op)
}

fn wrmsr(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.must_be_supervisor());
    let value = u64::from(cpu.reg::<u32>(RDX)) << 32 | u64::from(cpu.reg::<u32>(RAX));
    or_abort!(cpu, op, cpu.write_msr(op, cpu.reg::<u32>(RCX), value));
    cpu.end(op)
}

fn rdtsc<const AUX: bool>(cpu: &mut Cpu, op: &Op) {
    if cpu.cr4 & CR4_TSD != 0 && cpu.cpl != 0 {
        return raise_at(cpu, op, Exception::gp(0));
    }
    let now = cpu.time_stamp(op);
    set_pair(cpu, now);
    if AUX {
        cpu.set_reg(RCX, cpu.msrs.tsc_aux as u32);
    }
    next(cpu, op)
}

/// There are no performance counters: CPUID has no leaf 10.
fn rdpmc(cpu: &mut Cpu, op: &Op) {
    raise_at(cpu, op, Exception::gp(0))
}

fn swapgs(cpu: &mut Cpu, op: &Op) {
    or_abort!(cpu, op, cpu.must_be_supervisor());
    let base = cpu.segments[Seg::Gs as usize].base;
    let kernel = std::mem::replace(&mut cpu.msrs.kernel_gs_base, base);
    cpu.set_base(Seg::Gs, kernel);
    next(cpu, op)
}

pub fn lower(builder: &mut Builder, insn: &Instruction) -> Lowered {
    let (run, lowered): (Handler, Lowered) = match insn.mnemonic() {
        Mnemonic::Rdmsr => (rdmsr, Lowered::Ends),
        Mnemonic::Wrmsr => (wrmsr, Lowered::Ends),
        Mnemonic::Rdtsc => (rdtsc::<false>, Lowered::Continues),
        Mnemonic::Rdtscp => (rdtsc::<true>, Lowered::Continues),
        Mnemonic::Rdpmc => (rdpmc, Lowered::Ends),
        Mnemonic::Swapgs => (swapgs, Lowered::Continues),
        _ => return Lowered::Unknown,
    };
    builder.push(Op::new(run));
    lowered
}
