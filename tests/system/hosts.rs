//! The engines of this machine, and what kind of KVM it has.

use std::arch::x86_64::__cpuid;
use std::path::Path;

use lockstep::engine::{AnyEngine, EngineError, EngineKind};
use lockstep::memory::Ram;

/// What runs a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// `kvm_intel` on a processor with VMX.
    KvmIntel,
    /// `kvm_amd` on a processor with SVM.
    KvmAmd,
    /// KVM inside QEMU's software emulation of a processor: its faults are QEMU's.
    Emulated,
    /// `kvm_pvm`: no virtualisation beneath; CPL0 is interpreted by KVM's own emulator.
    Pvm,
    /// The software CPU.
    Soft,
}

/// Who made the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    Intel,
    Amd,
    Other,
}

/// Who made this host's.
pub fn vendor() -> Vendor {
    let leaf = __cpuid(0);
    match [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).as_flattened() {
        b"GenuineIntel" => Vendor::Intel,
        b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
        _ => Vendor::Other,
    }
}

impl Host {
    /// Every kind of KVM.
    pub const KVM: [Host; 4] = [Host::KvmIntel, Host::KvmAmd, Host::Emulated, Host::Pvm];

    /// The name of its engine.
    pub fn engine(self) -> &'static str {
        if self == Host::Soft { "soft" } else { "kvm" }
    }

    /// Makes an engine.
    pub fn make(self, ram: &Ram) -> Result<AnyEngine, EngineError> {
        let kind = if self == Host::Soft { EngineKind::Soft } else { EngineKind::Kvm };
        kind.create(ram)
    }
}

fn kvm() -> Option<Host> {
    let usable = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !usable {
        return None;
    }
    let hypervisor = __cpuid(0x4000_0000);
    let name = [hypervisor.ebx, hypervisor.ecx, hypervisor.edx].map(u32::to_le_bytes);
    Some(if name == [*b"TCGT", *b"CGTC", *b"GTCG"] {
        Host::Emulated
    } else if Path::new("/sys/module/kvm_pvm").exists() {
        Host::Pvm
    } else if vendor() == Vendor::Intel {
        Host::KvmIntel
    } else {
        Host::KvmAmd
    })
}

/// The engines to test. `LOCKSTEP_SYSTEM_ENGINE` names one.
pub fn hosts(subject: &str) -> Vec<Host> {
    let mut all = vec![Host::Soft];
    match kvm() {
        Some(host) => all.push(host),
        None => eprintln!("SKIPPED {subject} on kvm, every case: no usable /dev/kvm on this machine"),
    }
    if let Ok(only) = std::env::var("LOCKSTEP_SYSTEM_ENGINE") {
        all.retain(|host| host.engine() == only);
    }
    all
}
