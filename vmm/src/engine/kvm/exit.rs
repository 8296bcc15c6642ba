//! `kvm_run` to `VmExit`, and `VmEntry` back into `kvm_run`.

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_IO_IN,
    KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR,
    kvm_run,
};
use kvm_ioctls::VcpuFd;

use crate::engine::{EngineError, VmEntry, VmExit};

/// The shared page, to look at.
pub fn run_page(vcpu: &VcpuFd) -> &kvm_run {
    let vcpu: *const VcpuFd = vcpu;
    // SAFETY: get_kvm_run takes &mut self only to hand out &mut; the page is mapped as long as the VcpuFd
    // lives, the kernel writes it only during KVM_RUN, and a shared borrow of the VcpuFd excludes that.
    unsafe { (*vcpu.cast_mut()).get_kvm_run() }
}

/// The data area of a PIO exit.
fn pio_data(vcpu: &mut VcpuFd) -> (kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_4, &mut [u8]) {
    let run = vcpu.get_kvm_run();
    // SAFETY: the exit reason is KVM_EXIT_IO, so `io` is the valid member of the union.
    let io = unsafe { run.__bindgen_anon_1.io };
    let run: *mut kvm_run = run;
    let len = io.count as usize * usize::from(io.size);
    // SAFETY: the kernel puts the data area at this offset inside the mapping that starts at `run`.
    let data = unsafe { run.cast::<u8>().add(io.data_offset as usize) };
    // SAFETY: the area is `len` bytes long and nothing else refers to it while the borrow of the vCPU lasts.
    let data = unsafe { std::slice::from_raw_parts_mut(data, len) };
    (io, data)
}

fn word(bytes: &[u8]) -> u64 {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(wide)
}

/// What the vCPU stopped for.
pub fn read(vcpu: &mut VcpuFd) -> Result<VmExit, EngineError> {
    let run = vcpu.get_kvm_run();
    Ok(match run.exit_reason {
        KVM_EXIT_IO => {
            let (io, data) = pio_data(vcpu);
            let (port, size) = (io.port, io.size);
            match (u32::from(io.direction) == KVM_EXIT_IO_IN, io.count) {
                (true, 1) => VmExit::PioRead { port, size },
                (true, _) => VmExit::PioReadString { port, size, len: data.len() },
                (false, 1) => VmExit::PioWrite { port, size, value: word(data) as u32 },
                (false, _) => VmExit::PioWriteString { port, size, data: data.to_vec() },
            }
        }
        KVM_EXIT_MMIO => {
            // SAFETY: the exit reason says that `mmio` is the valid member of the union.
            let mmio = unsafe { run.__bindgen_anon_1.mmio };
            let (address, size) = (mmio.phys_addr, mmio.len.min(8) as u8);
            match mmio.is_write {
                0 => VmExit::MmioRead { address, size },
                _ => VmExit::MmioWrite { address, size, value: word(&mmio.data[..usize::from(size)]) },
            }
        }
        KVM_EXIT_HLT => VmExit::Hlt,
        KVM_EXIT_X86_RDMSR | KVM_EXIT_X86_WRMSR => {
            // SAFETY: the exit reason says that `msr` is the valid member of the union.
            let msr = unsafe { run.__bindgen_anon_1.msr };
            match run.exit_reason {
                KVM_EXIT_X86_RDMSR => VmExit::MsrRead { index: msr.index },
                _ => VmExit::MsrWrite { index: msr.index, value: msr.data },
            }
        }
        KVM_EXIT_SHUTDOWN => VmExit::Shutdown,
        KVM_EXIT_INTR | KVM_EXIT_IRQ_WINDOW_OPEN => VmExit::Kicked,
        KVM_EXIT_INTERNAL_ERROR => {
            // SAFETY: the exit reason says that `internal` is the valid member of the union.
            let internal = unsafe { run.__bindgen_anon_1.internal };
            let words = &internal.data[..(internal.ndata as usize).min(internal.data.len())];
            let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
            VmExit::Unsupported(format!(
                "an instruction that this KVM cannot execute, at RIP {rip:#x} (internal error {}, \
                 data {words:x?})",
                internal.suberror
            ))
        }
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: the exit reason says that `fail_entry` is the valid member of the union.
            let fail = unsafe { run.__bindgen_anon_1.fail_entry };
            let reason = fail.hardware_entry_failure_reason;
            return Err(EngineError::Failed(format!(
                "the hardware refused to enter the guest, reason {reason:#x}"
            )));
        }
        other => return Err(EngineError::Failed(format!("exit reason {other}"))),
    })
}

/// Puts the answer to the last exit where the next KVM_RUN finds it.
pub fn answer(vcpu: &mut VcpuFd, entry: VmEntry) {
    let reason = vcpu.get_kvm_run().exit_reason;
    match entry {
        VmEntry::Resume => {}
        VmEntry::Value(value) if reason == KVM_EXIT_MMIO => {
            vcpu.get_kvm_run().__bindgen_anon_1.mmio.data = value.to_le_bytes();
        }
        VmEntry::Value(value) => {
            assert_eq!(reason, KVM_EXIT_IO, "a value answers PIO or MMIO");
            let data = pio_data(vcpu).1;
            data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
        }
        VmEntry::Bytes(bytes) => {
            assert_eq!(reason, KVM_EXIT_IO, "bytes answer PIO");
            pio_data(vcpu).1.copy_from_slice(&bytes);
        }
        VmEntry::Msr(value) => {
            let msr = &mut vcpu.get_kvm_run().__bindgen_anon_1;
            // SAFETY: the machine answers an MSR exit with an MSR entry, so `msr` is the valid member.
            let msr = unsafe { &mut msr.msr };
            msr.error = u8::from(value.is_none());
            msr.data = value.unwrap_or(msr.data);
        }
    }
}
