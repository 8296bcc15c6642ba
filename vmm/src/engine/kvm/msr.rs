//! MSRs: those of the CPU model are KVM's, every other one exits, and the machine answers it with #GP.

use kvm_bindings::{KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, kvm_enable_cap};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

/// IA32_SYSENTER_CS, _ESP, _EIP.
const SYSENTER: u32 = 0x174;
/// IA32_PAT.
const PAT: u32 = 0x277;
/// IA32_EFER, STAR, LSTAR, CSTAR, FMASK.
const EFER: u32 = 0xc000_0080;
/// FS.base, GS.base, KERNEL_GS_BASE.
const FS_BASE: u32 = 0xc000_0100;

/// The MSRs that belong to the vCPU's saved state. EFER, FS.base and GS.base are in other parts of it.
pub const SAVED: [u32; 9] =
    [SYSENTER, SYSENTER + 1, SYSENTER + 2, PAT, EFER + 1, EFER + 2, EFER + 3, EFER + 4, FS_BASE + 2];

/// Makes every MSR outside the model exit to the machine. A KVM without the filter answers them itself (most
/// of them with #GP); `doctor` says so.
pub fn trap_unknown(vm: &VmFd) {
    let cap = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        args: [u64::from(KVM_MSR_EXIT_REASON_FILTER), 0, 0, 0],
        ..Default::default()
    };
    if let Err(error) = vm.enable_cap(&cap) {
        tracing::debug!(%error, "KVM_CAP_X86_USER_SPACE_MSR");
        return;
    }
    let allow = |base: u32, count: u32| (base, count);
    let ranges = [allow(SYSENTER, 3), allow(PAT, 1), allow(EFER, 5), allow(FS_BASE, 3)];
    let all = [0xffu8];
    let ranges: Vec<MsrFilterRange<'_>> = ranges
        .iter()
        .map(|&(base, msr_count)| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base,
            msr_count,
            bitmap: &all,
        })
        .collect();
    if let Err(error) = vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges) {
        tracing::debug!(%error, "KVM_X86_SET_MSR_FILTER");
    }
}
