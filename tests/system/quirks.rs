//! Where QEMU's processor (`tests/nested` runs kvm_amd in it) is known not to do what the manuals say. Its
//! KVM is tested with everything else.

use crate::hosts::Host;

/// Subject, part of the case's name, what QEMU does.
const EMULATED: [(&str, &str, &str); 46] = [
    ("addresses", "#SS", "non-canonical addresses are #GP, whatever the segment"),
    ("addresses", "JMP to", "the fault is at the target"),
    ("addresses", "CALL to", "the fault is at the target"),
    ("addresses", "RET to", "the fault is at the target"),
    ("call_gates", "conforming code", "CS gets no RPL"),
    ("control_registers", "CR0: bit", "upper halves are dropped"),
    ("control_registers", "CR4: bit 32", "upper halves are dropped"),
    ("debug_registers", "DR6 of ones", "reserved bits are kept"),
    ("debug_registers", "DR7's reserved bits", "reserved bits are kept"),
    ("far_jumps", "beyond its limit", "the limit's #GP has an error code"),
    ("far_jumps", "L and D both set", "it is not checked"),
    ("far_returns", "not canonical", "the fault is at the target"),
    ("floating_point", "LDMXCSR", "reserved bits are not checked"),
    ("floating_point", "next x87 instruction", "only FWAIT reports"),
    ("floating_point", "MMX with CR0.TS", "EMMS is not checked"),
    ("floating_point", "DIVPS", "SSE exceptions do not exist"),
    ("floating_point", "OSXMMEXCPT", "SSE exceptions do not exist"),
    ("frames", "IST1 at CPL0", "an IST makes SS null"),
    ("frames", "IST7", "an IST makes SS null"),
    ("frames", "unaligned IST", "an IST makes SS null"),
    ("identity", "MONITOR", "it is executed"),
    ("iret", "absent stack", "it is #NP"),
    ("iret", "not canonical", "the fault is at the target"),
    ("msrs", "not canonical", "it is not checked"),
    ("nested", "its gate absent: #NP", "vectors count double in error codes"),
    ("nested", "INT3", "vectors count double in error codes"),
    ("nested", "on an IST", "an IST makes SS null, EXT is missing"),
    ("nxe", "NX without NXE", "reserved bits are told without P"),
    ("queries", "16-bit", "16-bit types exist"),
    ("reserved", "PS in", "reserved bits are told without P"),
    ("reserved", "bit ", "reserved bits are told without P"),
    ("reserved", "beyond the physical", "reserved bits are told without P"),
    ("return", "", "RF stays"),
    ("software_interrupts", "gate of DPL 0", "vectors count double in error codes"),
    ("software_interrupts", "absent gate", "vectors count double in error codes"),
    ("software_interrupts", "limit", "vectors count double in error codes"),
    ("software_interrupts", "INT n by ", "vectors count double in error codes"),
    ("software_interrupts", "INT1", "it is #UD"),
    ("special_loads", "MOV SS, null", "the RPL is not checked"),
    ("string_io", "INSB to a missing page", "the port is read first"),
    ("system_calls", "SYSCALL", "CF is lost"),
    ("system_calls", "SYSRET clears", "RF stays"),
    ("system_loads", "LGDT of", "it is not checked"),
    ("system_loads", "LIDT of", "it is not checked"),
    ("system_loads", "LTR of a", "it is not checked"),
    ("two_pages", "", "a read-modify-write faults by its read, an IST makes SS null"),
];

/// Why `host` cannot be held to a case.
pub fn of(host: Host, subject: &str, name: &str) -> Option<&'static str> {
    let known = EMULATED.iter().filter(|_| host == Host::Emulated);
    let mut fitting = known.filter(|(of, part, _)| *of == subject && name.contains(part));
    fitting.next().map(|(_, _, why)| *why)
}
