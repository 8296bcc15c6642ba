//! The image of minikv: where it loads, and which instructions it holds.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

const MIB: u64 = 1 << 20;

fn field(bytes: &[u8], at: u64, len: usize) -> u64 {
    let mut value = [0; 8];
    value[..len].copy_from_slice(&bytes[at as usize..at as usize + len]);
    u64::from_le_bytes(value)
}

struct Section {
    name: String,
    address: u64,
    bytes: &'static [u8],
}

/// The sections of the image that are code.
fn code_sections() -> Vec<Section> {
    let elf = guest_images::MINIKV;
    let headers = field(elf, 40, 8);
    let (entry_len, count, names) = (field(elf, 58, 2), field(elf, 60, 2), field(elf, 62, 2));
    let header = |index: u64| headers + index * entry_len;
    let strings = field(elf, header(names) + 24, 8);
    let mut sections = Vec::new();
    for at in (0..count).map(header) {
        const EXECUTABLE: u64 = 4;
        if field(elf, at + 8, 8) & EXECUTABLE == 0 {
            continue;
        }
        let name = elf[(strings + field(elf, at, 4)) as usize..].split(|&byte| byte == 0).next();
        let (offset, len) = (field(elf, at + 24, 8) as usize, field(elf, at + 32, 8) as usize);
        sections.push(Section {
            name: String::from_utf8_lossy(name.expect("a name")).into_owned(),
            address: field(elf, at + 16, 8),
            bytes: &elf[offset..offset + len],
        });
    }
    sections
}

fn instructions(section: &Section) -> impl Iterator<Item = Instruction> + use<'_> {
    let mut decoder = Decoder::with_ip(64, section.bytes, section.address, DecoderOptions::NONE);
    std::iter::from_fn(move || decoder.can_decode().then(|| decoder.decode()))
}

#[test]
fn segments_load_where_the_boot_protocol_allows() {
    let elf = guest_images::MINIKV;
    assert_eq!(&elf[..5], b"\x7fELF\x02");
    let entry = field(elf, 24, 8);
    let (headers, entry_len, count) = (field(elf, 32, 8), field(elf, 54, 2), field(elf, 56, 2));
    let mut loads = 0;
    for at in (0..count).map(|index| headers + index * entry_len) {
        const LOAD: u64 = 1;
        const TLS: u64 = 7;
        const DYNAMIC: u64 = 2;
        let kind = field(elf, at, 4);
        assert!(kind != TLS && kind != DYNAMIC, "there is nobody to make sense of segment kind {kind}");
        if kind == LOAD {
            let (address, physical) = (field(elf, at + 16, 8), field(elf, at + 24, 8));
            assert_eq!(address, physical, "everything is mapped one to one");
            assert!(physical >= MIB && physical + field(elf, at + 40, 8) <= 16 * MIB);
            loads += 1;
        }
    }
    assert!(loads >= 3);
    assert!(entry >= MIB);
}

#[test]
fn the_digest_is_that_of_the_image() {
    assert_eq!(guest_images::minikv_digest(), *blake3::hash(guest_images::MINIKV).as_bytes());
}

/// What every KVM emulates at CPL0, also one without hardware virtualisation: see docs on determinism.
#[rustfmt::skip]
const CPL0: &[&str] = &[
    "Add", "And", "Cld", "Cli", "Cmp", "Dec", "Hlt", "Iretq", "Ja", "Jae", "Jbe", "Je", "Jmp", "Jne",
    "Lea", "Lgdt", "Lidt", "Ltr", "Mov", "Movzx", "Nop", "Or", "Out", "Push", "Test", "Xchg",
];

/// What depends on more than the guest's inputs, or needs more than CPL3. (INT3 is what a linker fills gaps
/// with.)
#[rustfmt::skip]
const FORBIDDEN: &[&str] = &[
    "Cpuid", "Int", "Into", "Monitor", "Mwait", "Rdfsbase", "Rdgsbase", "Rdmsr", "Rdpid", "Rdpmc",
    "Rdrand", "Rdseed", "Rdtsc", "Rdtscp", "Sgdt", "Sidt", "Sldt", "Smsw", "Str", "Syscall", "Sysenter",
    "Sysexit", "Sysretq", "Tpause", "Umwait", "Vmcall", "Vmmcall", "Wrmsr", "Xbegin", "Xgetbv",
];

fn among(list: &[&str], mnemonic: Mnemonic) -> bool {
    list.contains(&format!("{mnemonic:?}").as_str())
}

#[test]
fn cpl0_keeps_to_the_instructions_that_every_kvm_emulates() {
    let sections = code_sections();
    let section = sections.iter().find(|section| section.name == ".text.cpl0").expect("a CPL0 section");
    let mut count = 0;
    for instruction in instructions(section) {
        let at = instruction.ip();
        assert!(among(CPL0, instruction.mnemonic()), "{at:#x}: {instruction:?}");
        for operand in 0..instruction.op_count() {
            if instruction.op_kind(operand) == OpKind::Register {
                let register = instruction.op_register(operand);
                let plain = register.is_gpr() || register.is_segment_register() || register.is_cr();
                assert!(plain, "{at:#x}: {instruction:?} uses {register:?}");
            }
        }
        // Padding between the stubs; a real exchange has no business here.
        if instruction.mnemonic() == Mnemonic::Xchg {
            assert_eq!(
                (instruction.op0_register(), instruction.op1_register()),
                (Register::AX, Register::AX)
            );
        }
        count += 1;
    }
    assert!((100..400).contains(&count), "{count} instructions: it was to be small");
}

#[test]
fn no_instruction_asks_what_is_no_function_of_the_guests_inputs() {
    let mut count = 0;
    for section in code_sections() {
        for instruction in instructions(&section) {
            let forbidden = among(FORBIDDEN, instruction.mnemonic());
            assert!(!forbidden, "{} {:#x}: {instruction:?}", section.name, instruction.ip());
            let avx = instruction.encoding() != iced_x86::EncodingKind::Legacy;
            assert!(!avx, "{} {:#x}: {instruction:?} is more than x86-64", section.name, instruction.ip());
            assert_ne!(instruction.code(), Code::INVALID, "{} {:#x}", section.name, instruction.ip());
            count += 1;
        }
    }
    assert!(count > 10_000, "{count} instructions: where is the rest?");
}
