//! Instructions of extensions that the CPU model has not: #UD, each.

use crate::forms::FEATURES;
use crate::soft::Soft;
use crate::state::{CODE, DATA, DATA_BYTES, End, PAGE, Stop, User, Vector};
use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions, Instruction, OpCodeTableKind};
use std::collections::BTreeSet;

/// Features that the model has, whose instructions are the system's, or come from the host's tables.
const OF_THE_SYSTEM: [CpuidFeature; 8] = [
    CpuidFeature::CPUID,
    CpuidFeature::TSC,
    CpuidFeature::RDTSCP,
    CpuidFeature::RDPMC,
    CpuidFeature::SEP,
    CpuidFeature::SYSCALL,
    CpuidFeature::SMAP,
    CpuidFeature::INTEL286_ONLY,
];

/// What a processor without the extension takes for another instruction: reserved NOPs, and prefixes that
/// change nothing there (SDM vol. 2, each instruction's page).
fn is_another(code: Code) -> bool {
    let name = format!("{code:?}");
    let op = code.op_code();
    let nops = op.table() == OpCodeTableKind::T0F && matches!(op.op_code(), 0x0d | 0x18..=0x1f);
    let without_prefix = ["Tzcnt", "Lzcnt", "Wbnoinvd"].iter().any(|start| name.starts_with(start));
    nops || without_prefix
}

fn is_supported(code: Code) -> bool {
    let has = |feature| FEATURES.contains(feature) || OF_THE_SYSTEM.contains(feature);
    code.cpuid_features().iter().all(has)
}

/// All opcodes of all tables, behind each prefix that may be part of one, with registers and with memory.
fn candidates() -> impl Iterator<Item = Vec<u8>> {
    let legacy = [&[][..], &[0x66], &[0xf2], &[0xf3]].into_iter().flat_map(|prefix| {
        [&[][..], &[0x48]].into_iter().flat_map(move |rex| {
            [&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]]
                .into_iter()
                .map(move |escape| [prefix, rex, escape].concat())
        })
    });
    let mut vex = Vec::new();
    for last in 0..4u8 {
        vex.push(vec![0xc5, 0xf8 | last]);
        for map in 1..8u8 {
            for w in [0, 0x80] {
                for long in [0, 4] {
                    vex.push(vec![0xc4, 0xe0 | map, w | 0x78 | long | last]);
                }
                for (long, mask) in [(0, 0), (0x20, 0), (0x40, 1)] {
                    vex.push(vec![0x62, 0xf0 | map, w | 0x7c | last, 8 | long | mask]);
                }
            }
        }
    }
    legacy.chain(vex).flat_map(|start| {
        (0..=255u8).flat_map(move |opcode| {
            let start = start.clone();
            (0..16u8).map(move |modrm| {
                let modrm = if modrm < 8 { 0xc1 | modrm << 3 } else { 0x01 | (modrm - 8) << 3 };
                [&start[..], &[opcode, modrm, 0, 0, 0, 0, 0, 0, 0, 0]].concat()
            })
        })
    })
}

#[test]
fn what_is_not_advertised_is_an_invalid_opcode() {
    let mut soft = Soft::new(&vec![0; DATA_BYTES], (0x33, 0x2b));
    let user = User {
        gpr: [DATA + PAGE + 0x800; 16],
        rip: CODE + 0x100,
        cw: 0x37f,
        mxcsr: 0x1f80,
        ..User::default()
    };
    let (mut tried, mut wrong) = (BTreeSet::new(), BTreeSet::new());
    for bytes in candidates() {
        let insn: Instruction = Decoder::with_ip(64, &bytes, user.rip, DecoderOptions::NONE).decode();
        let code = insn.code();
        if code == Code::INVALID || is_supported(code) || is_another(code) {
            continue;
        }
        tried.insert(format!("{code:?}"));
        let code_bytes = bytes[..insn.len().min(bytes.len())].to_vec();
        let vector = Vector { code: code_bytes, user: user.clone(), patches: Vec::new(), stop: Stop::Step };
        let outcome = soft.run(&vector);
        soft.restore();
        if !matches!(outcome.end, End::Fault { vector: 6, .. }) || outcome.user.rip != user.rip {
            wrong.insert(format!("{code:?} {:x?}: {:x?}", vector.code, outcome.end));
        }
    }
    println!("{} codes of other extensions", tried.len());
    assert!(tried.len() > 1500, "{}", tried.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
}
