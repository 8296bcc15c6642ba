//! KVM as an engine, with the *exits* clock: a position is the number of deterministic exits since boot.
//!
//! Nothing that reads host time or injects on its own is created in the kernel: no irqchip, no PIT, no
//! kvmclock, no irqfd, no ioeventfd. Interrupts come from the PIC of the machine model and are injected with
//! KVM_INTERRUPT, only at a deterministic exit whose guest has them enabled; an exit that opens an interrupt
//! window is never asked for, because on some KVMs it comes late (see docs/determinism.md).
//!
//! Counted: PIO, MMIO, HLT, MSR. Not counted, because they retire nothing: signals and host faults.

mod cpuid;
mod debug;
mod exit;
mod msr;
mod regs;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_interrupt, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, SyncReg, VcpuFd, VmFd};
use logchannel::Position;
use vmm_sys_util::ioctl::ioctl_with_ref;

use crate::engine::{
    BreakpointStyle, CpuState, DebugRun, DebugStop, Engine, EngineError, Kick, PositionClock, StopPrecision,
    VmEntry, VmExit,
};
use crate::memory::{GuestMemory, Ram};

pub use cpuid::{CPU_MODEL, host_cpu};

#[allow(missing_docs)]
mod abi {
    use kvm_bindings::{KVMIO, kvm_interrupt};
    use vmm_sys_util::ioctl_iow_nr;

    ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);
}

/// Three pages that Intel VMX needs below 4 GiB for real-mode guests; outside every window of the model.
const VMX_TSS_ADDRESS: usize = 0xfffb_d000;
const RAM_SLOT: u32 = 0;

fn ioctl<T>(call: &'static str, result: Result<T, kvm_ioctls::Error>) -> Result<T, EngineError> {
    result.map_err(|source| EngineError::Ioctl { call, source })
}

/// As `ioctl`, again when a signal has interrupted it before it did anything: making a VM or a vCPU may be.
fn ioctl_uninterrupted<T>(
    call: &'static str,
    make: impl Fn() -> Result<T, kvm_ioctls::Error>,
) -> Result<T, EngineError> {
    loop {
        match make() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return ioctl(call, result),
        }
    }
}

/// One vCPU of one virtual machine.
pub struct KvmEngine {
    vm: VmFd,
    vcpu: VcpuFd,
    exits: u64,
    /// The last exit was a triple fault. kvm_amd resets the vCPU then, other KVMs leave it as it was.
    shut_down: bool,
    region: kvm_userspace_memory_region,
    /// The exit that completing the last one came to. KVM takes some instructions in several steps: string
    /// I/O, and accesses to devices that are wider than eight bytes or cross a page. It counts when `run`
    /// hands it out, so that a completion moves no position.
    next: Option<VmExit>,
    /// An interrupt is queued for the next entry.
    injected: bool,
    /// The vCPU as KVM made it: a first state says nothing of MSRs and of the FPU.
    made: CpuState,
    /// RAM, for what a debugger's step leaves in it.
    memory: GuestMemory,
    /// What of the guest's registers is not its own while an exit is outstanding that a debugger ran to.
    armed: Option<debug::Armed>,
}

/// Whether this host's KVM can be opened and has what the engine needs.
pub fn usable() -> bool {
    open().is_ok()
}

fn open() -> Result<Kvm, EngineError> {
    let kvm = Kvm::new().map_err(EngineError::Open)?;
    for (cap, what) in [
        (Cap::UserMemory, "user memory regions"),
        (Cap::SyncRegs, "register access by KVM_CAP_SYNC_REGS"),
        (Cap::ImmediateExit, "immediate exits"),
        (Cap::Xsave, "XSAVE state access"),
        (Cap::VcpuEvents, "vCPU events"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(EngineError::Missing(what));
        }
    }
    Ok(kvm)
}

impl KvmEngine {
    /// Makes a virtual machine with one vCPU whose memory is `ram`.
    ///
    /// `ram` must outlive the engine: the machine that owns both drops the engine first.
    pub fn new(ram: &Ram) -> Result<Self, EngineError> {
        let kvm = open()?;
        let vm = ioctl_uninterrupted("KVM_CREATE_VM", || kvm.create_vm())?;
        if let Err(error) = vm.set_tss_address(VMX_TSS_ADDRESS) {
            tracing::debug!(%error, "KVM_SET_TSS_ADDR");
        }
        let region = kvm_userspace_memory_region {
            slot: RAM_SLOT,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: ram.bytes(),
            userspace_addr: ram.host_address(),
        };
        // SAFETY: the region is the whole mapping of `ram`, which outlives the VM (see above).
        ioctl("KVM_SET_USER_MEMORY_REGION", unsafe { vm.set_user_memory_region(region) })?;
        msr::trap_unknown(&vm);
        let mut vcpu = ioctl_uninterrupted("KVM_CREATE_VCPU", || vm.create_vcpu(0))?;
        cpuid::set(&kvm, &vcpu)?;
        vcpu.set_sync_valid_reg(SyncReg::Register);
        vcpu.set_sync_valid_reg(SyncReg::SystemRegister);
        let made = regs::save(&vcpu)?;
        Ok(Self {
            made,
            vm,
            vcpu,
            exits: 0,
            shut_down: false,
            region,
            next: None,
            injected: false,
            memory: ram.map().clone(),
            armed: None,
        })
    }

    /// Runs until something happens that the guest did.
    fn enter(&mut self) -> Result<VmExit, EngineError> {
        match self.vcpu.run() {
            Ok(_) => exit::read(&mut self.vcpu),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Ok(VmExit::Kicked),
            Err(source) => Err(EngineError::Ioctl { call: "KVM_RUN", source }),
        }
    }
}

impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn clock(&self) -> PositionClock {
        PositionClock::Exits
    }

    fn stops(&self) -> StopPrecision {
        StopPrecision::AtExits
    }

    fn position(&self) -> Position {
        Position::at(self.exits)
    }

    fn run(&mut self, entry: VmEntry, _until: Option<Position>) -> Result<VmExit, EngineError> {
        if self.shut_down {
            return Err(EngineError::Failed(
                "it has shut down by a triple fault: restore a state first".into(),
            ));
        }
        let exit = match self.next.take() {
            Some(exit) => {
                assert_eq!(entry, VmEntry::Resume, "the last exit was answered when it was completed");
                exit
            }
            None => {
                if self.armed.is_some() {
                    self.complete(entry)?;
                    return self.run(VmEntry::Resume, _until);
                }
                self.injected = false;
                exit::answer(&mut self.vcpu, entry);
                loop {
                    match self.enter()? {
                        VmExit::Kicked => {}
                        exit => break exit,
                    }
                }
            }
        };
        self.exits += 1;
        self.shut_down = exit == VmExit::Shutdown;
        Ok(exit)
    }

    fn interruptible(&self) -> bool {
        let run = exit::run_page(&self.vcpu);
        run.if_flag != 0 && run.ready_for_interrupt_injection != 0
    }

    fn interrupts_enabled(&self) -> bool {
        exit::run_page(&self.vcpu).if_flag != 0
    }

    fn inject(&mut self, vector: u8) -> Result<(), EngineError> {
        let interrupt = kvm_interrupt { irq: u32::from(vector) };
        // SAFETY: the file is a vCPU's, and the ioctl reads one kvm_interrupt.
        let result = unsafe { ioctl_with_ref(&self.vcpu, abi::KVM_INTERRUPT(), &interrupt) };
        if result < 0 {
            return ioctl("KVM_INTERRUPT", Err(kvm_ioctls::Error::last()));
        }
        self.injected = true;
        Ok(())
    }

    fn complete(&mut self, entry: VmEntry) -> Result<(), EngineError> {
        if self.next.is_some() {
            assert_eq!(entry, VmEntry::Resume, "the last exit was answered when it was completed");
            return Ok(());
        }
        exit::answer(&mut self.vcpu, entry);
        self.vcpu.set_kvm_immediate_exit(1);
        let result = self.enter();
        self.vcpu.set_kvm_immediate_exit(0);
        match result? {
            VmExit::Kicked => self.disarm()?,
            further => self.next = Some(further),
        }
        Ok(())
    }

    fn debug_kicker(&self) -> Option<Kick> {
        debug::kicker()
    }

    fn run_debug(
        &mut self,
        entry: VmEntry,
        _until: Option<Position>,
        ask: DebugRun<'_>,
    ) -> Result<DebugStop, EngineError> {
        self.debugged(entry, ask)
    }

    fn breakpoint_style(&self) -> BreakpointStyle {
        BreakpointStyle::Patched
    }

    fn rip(&mut self) -> Result<u64, EngineError> {
        Ok(ioctl("KVM_GET_REGS", self.vcpu.get_regs())?.rip)
    }

    fn between_instructions(&self) -> bool {
        self.next.is_none()
    }

    fn save(&mut self) -> Result<CpuState, EngineError> {
        let mut state = regs::save(&self.vcpu)?;
        if let Some(armed) = &self.armed {
            armed.hide(&mut state);
        }
        Ok(state)
    }

    fn restore(&mut self, state: &CpuState, position: Position) -> Result<(), EngineError> {
        regs::restore(&mut self.vcpu, state)?;
        self.next = None;
        self.armed = None;
        self.injected = state.events.interrupt.is_some();
        self.exits = position.count;
        self.shut_down = false;
        Ok(())
    }

    fn power_on(&mut self, first: &CpuState, position: Position) -> Result<(), EngineError> {
        let mut state = first.clone();
        if state.msrs.is_empty() {
            state.msrs.clone_from(&self.made.msrs);
        }
        if state.xsave.is_empty() {
            state.xsave.clone_from(&self.made.xsave);
        }
        state.xcr0 = self.made.xcr0;
        self.restore(&state, position)
    }

    fn track_dirty_pages(&mut self, on: bool) -> Result<(), EngineError> {
        self.region.flags = if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        // SAFETY: the same mapping as in `new`; only its flags change.
        ioctl("KVM_SET_USER_MEMORY_REGION", unsafe { self.vm.set_user_memory_region(self.region) })
    }

    fn take_dirty_pages(&mut self) -> Result<Vec<u64>, EngineError> {
        ioctl("KVM_GET_DIRTY_LOG", self.vm.get_dirty_log(RAM_SLOT, self.region.memory_size as usize))
    }
}
