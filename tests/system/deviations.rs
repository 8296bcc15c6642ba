//! Known deviations: where a kind of host does not do what the manuals say. The cases have what is right, and
//! the software CPU does it; a host that differs is described here (or at its case, by `Case::not_on`) and
//! fails nothing.
//!
//! An entry is looked up by the kind of KVM and the processor's vendor. Its cases run all the same: one that
//! holds `Always` and of which no case differs any more is reported, to be deleted. What differs and is not
//! here fails the test, with the line to add.

use crate::hosts::{Host, Vendor};

/// Whether a deviation shows whenever its cases run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// On every host of this kind.
    Always,
    /// It depends on the processor's model, its microcode, the kernel, or chance.
    Sometimes,
}

/// One entry.
pub struct Deviation {
    /// How KVM is made.
    pub host: Host,
    /// Whose processor; none: any.
    pub vendor: Option<Vendor>,
    pub subject: &'static str,
    /// A part of the names of its cases.
    pub case: &'static str,
    /// What the host does.
    pub shows: &'static str,
    /// What it must do, and where that is said.
    pub right: &'static str,
    /// Where it was seen.
    pub seen: &'static str,
    pub holds: Holds,
}

const PVM_INTEL: &str = "kvm_pvm of Linux 6.18 on a Xeon of the generation of Sapphire Rapids";
const QEMU_AMD: &str = "kvm_amd of Debian 12's cloud kernel in QEMU 7.2 (-cpu max)";
const MANUALS: &str = "as the case says";

/// Seen on `kvm_pvm`, whose emulator executes CPL0.
const fn pvm(
    subject: &'static str,
    case: &'static str,
    shows: &'static str,
    right: &'static str,
) -> Deviation {
    let (host, vendor, holds) = (Host::Pvm, Some(Vendor::Intel), Holds::Always);
    Deviation { host, vendor, subject, case, shows, right, seen: PVM_INTEL, holds }
}

/// The same, only on some processors.
const fn some(deviation: Deviation) -> Deviation {
    Deviation { holds: Holds::Sometimes, ..deviation }
}

/// Seen on an AMD processor, of whatever KVM.
const fn amd(
    host: Host,
    subject: &'static str,
    case: &'static str,
    shows: &'static str,
    right: &'static str,
) -> Deviation {
    let (vendor, holds, seen) = (Some(Vendor::Amd), Holds::Sometimes, "AMD's processors: APM vol. 2, 13.1.4");
    Deviation { host, vendor, subject, case, shows, right, seen, holds }
}

/// Seen in QEMU's software emulation of a processor (`tests/nested`): its faults, not KVM's.
const fn emulated(subject: &'static str, case: &'static str, shows: &'static str) -> Deviation {
    let (host, holds) = (Host::Emulated, Holds::Always);
    Deviation { host, vendor: None, subject, case, shows, right: MANUALS, seen: QEMU_AMD, holds }
}

const RF_CLEAR: &str = "RF is clear in the frame of a trap between iterations";
const RF_SET: &str = "it is set: SDM vol. 3, 17.3.1.1";

const FLAGS_KEPT: &str = "a fault leaves the flags of the last iteration";
const FLAGS_RESTORED: &str = "those from before the instruction: SDM vol. 2, REP";
const HALVES_KEPT: &str = "upper halves are kept";
const HALVES_CLEARED: &str = "as Intel's processors zero-extend them";

const KNOWN: &[Deviation] = &[
    pvm("msrs", "CSTAR, not canonical", "no #GP", "#GP(0): SDM vol. 2, WRMSR"),
    pvm("msrs", "FS.base, not canonical", "no #GP", "#GP(0): SDM vol. 2, WRMSR"),
    pvm("system_loads", "LGDT of a non-canonical base", "no #GP", "#GP(0): SDM vol. 2, LGDT"),
    pvm("system_loads", "LIDT of a non-canonical base", "no #GP", "#GP(0): SDM vol. 2, LIDT"),
    // A processor without RTM agrees.
    some(pvm(
        "debug_registers",
        "DR6 of zeros",
        "0xfffe0ff0: bit 16 can be cleared, as the processor has RTM",
        "0xffff0ff0: the CPU model has neither RTM nor bus-lock detection (SDM vol. 3, 17.2.3)",
    )),
    amd(Host::KvmAmd, "stepping", "each iteration of REP", RF_CLEAR, RF_SET),
    amd(Host::KvmAmd, "breakpoints", "REP STOSB stops after", RF_CLEAR, RF_SET),
    amd(Host::KvmAmd, "breakpoints", "at a REP whose handler sets RF", RF_CLEAR, RF_SET),
    amd(Host::KvmAmd, "rep_faults", "REP CMPS", FLAGS_KEPT, FLAGS_RESTORED),
    amd(Host::KvmAmd, "rep_faults", "REP SCAS", FLAGS_KEPT, FLAGS_RESTORED),
    amd(Host::KvmAmd, "rep_counts", "with 32-bit addresses, 0 times", HALVES_KEPT, HALVES_CLEARED),
    amd(Host::Pvm, "rep_faults", "REP CMPS", FLAGS_KEPT, FLAGS_RESTORED),
    amd(Host::Pvm, "rep_faults", "REP SCAS", FLAGS_KEPT, FLAGS_RESTORED),
    amd(Host::Pvm, "rep_counts", "with 32-bit addresses, 0 times", HALVES_KEPT, HALVES_CLEARED),
    amd(Host::Pvm, "stepping", "each iteration of REP", RF_CLEAR, RF_SET),
    amd(Host::Pvm, "msrs", "not canonical", "some are not checked", "#GP(0): SDM vol. 2, WRMSR"),
    amd(Host::Pvm, "system_loads", "of a non-canonical base", "no #GP", "#GP(0): SDM vol. 2, LGDT"),
    emulated("addresses", "#SS", "non-canonical addresses are #GP, whatever the segment"),
    emulated("addresses", "JMP to", "the fault is at the target"),
    emulated("addresses", "CALL to", "the fault is at the target"),
    emulated("addresses", "RET to", "the fault is at the target"),
    emulated("call_gates", "conforming code", "CS gets no RPL"),
    emulated("control_registers", "CR0: bit", "upper halves are dropped"),
    emulated("control_registers", "CR4: bit 32", "upper halves are dropped"),
    emulated("debug_registers", "DR6 of ones", "reserved bits are kept"),
    emulated("debug_registers", "DR7's reserved bits", "reserved bits are kept"),
    emulated("far_jumps", "beyond its limit", "the limit's #GP has an error code"),
    emulated("far_jumps", "L and D both set", "it is not checked"),
    emulated("far_returns", "not canonical", "the fault is at the target"),
    emulated("floating_point", "LDMXCSR", "reserved bits are not checked"),
    emulated("floating_point", "next x87 instruction", "only FWAIT reports"),
    emulated("floating_point", "MMX with CR0.TS", "EMMS is not checked"),
    emulated("floating_point", "DIVPS", "SSE exceptions do not exist"),
    emulated("floating_point", "OSXMMEXCPT", "SSE exceptions do not exist"),
    emulated("frames", "IST1 at CPL0", "an IST makes SS null"),
    emulated("frames", "IST7", "an IST makes SS null"),
    emulated("frames", "unaligned IST", "an IST makes SS null"),
    emulated("identity", "MONITOR", "it is executed"),
    emulated("rep_faults", "REP CMPS", FLAGS_KEPT),
    emulated("rep_faults", "REP SCAS", FLAGS_KEPT),
    emulated("rep_counts", "with 32-bit addresses, 0 times", HALVES_KEPT),
    emulated("iret", "to compatibility mode", "the upper half of RSP is lost"),
    emulated("iret", "absent stack", "it is #NP"),
    emulated("iret", "not canonical", "the fault is at the target"),
    emulated("msrs", "not canonical", "it is not checked"),
    emulated("nested", "its gate absent: #NP", "vectors count double in error codes"),
    emulated("nested", "INT3", "vectors count double in error codes"),
    emulated("nested", "on an IST", "an IST makes SS null, EXT is missing"),
    emulated("nxe", "NX without NXE", "reserved bits are told without P"),
    emulated("queries", "16-bit", "16-bit types exist"),
    emulated("reserved", "PS in", "reserved bits are told without P"),
    emulated("reserved", "bit ", "reserved bits are told without P"),
    emulated("reserved", "beyond the physical", "reserved bits are told without P"),
    emulated("return", "", "RF stays"),
    emulated("software_interrupts", "gate of DPL 0", "vectors count double in error codes"),
    emulated("software_interrupts", "absent gate", "vectors count double in error codes"),
    emulated("software_interrupts", "limit", "vectors count double in error codes"),
    emulated("software_interrupts", "INT n by ", "vectors count double in error codes"),
    emulated("software_interrupts", "INT1", "it is #UD"),
    emulated("special_loads", "MOV SS, null", "the RPL is not checked"),
    emulated("string_io", "INSB to a missing page", "the port is read first"),
    emulated("system_calls", "SYSCALL", "CF is lost"),
    emulated("system_calls", "SYSRET clears", "RF stays"),
    emulated("system_loads", "LGDT of", "it is not checked"),
    emulated("system_loads", "LIDT of", "it is not checked"),
    emulated("system_loads", "LTR of a", "it is not checked"),
    emulated("two_pages", "", "a read-modify-write faults by its read, an IST makes SS null"),
];

/// The entry for a case, and its number.
pub fn of(host: Host, vendor: Vendor, subject: &str, name: &str) -> Option<(usize, &'static Deviation)> {
    KNOWN.iter().enumerate().find(|(_, known)| {
        known.host == host
            && known.vendor.is_none_or(|of| of == vendor)
            && known.subject == subject
            && name.contains(known.case)
    })
}

/// The line for a deviation that is not known.
pub fn line(host: Host, vendor: Vendor, subject: &str, name: &str, shows: &str) -> String {
    format!(
        "Deviation {{ host: Host::{host:?}, vendor: Some(Vendor::{vendor:?}), subject: {subject:?}, case: \
         {name:?}, shows: {shows:?}, right: \"…\", seen: \"…\", holds: Holds::Always }},"
    )
}
