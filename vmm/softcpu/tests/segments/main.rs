//! Segmentation in compatibility mode against the CPU of this host: one instruction, in random segments of
//! an LDT, on both: bases, limits, types, null selectors, expand-down, D/B and granularity; where it ends and
//! how, registers, flags and memory.
//!
//! | variable | meaning |
//! |---|---|
//! | `LOCKSTEP_SEGMENTS` | cases (5000) |
//! | `LOCKSTEP_SEED` | only the case of this seed |
#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests cast small numbers of their own"
)]

mod case;
#[path = "../hardware/frame.rs"]
#[allow(dead_code, reason = "the test of all instructions needs more of it")]
mod frame;
#[path = "../hardware/guest.rs"]
mod guest;
mod native;
mod soft;
#[path = "../hardware/values.rs"]
#[allow(dead_code, reason = "the test of all instructions needs more of it")]
mod values;

use case::{Case, End, Outcome, REGIONS};
use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter};
use native::Native;
use soft::Soft;
use std::collections::BTreeMap;
use std::fmt::Write;
use values::Random;

/// TF, by which the host stops; RF, which is its frame's.
const STOPPING_FLAGS: u32 = 1 << 8 | 1 << 16;

/// Whether this host's processor is Intel's, as the model is: in which order an instruction that faults half
/// way makes its accesses is each maker's own.
fn is_intel() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

fn assembly(case: &Case) -> String {
    let bits = if case.segments[0].big { 32 } else { 16 };
    let insn = Decoder::with_ip(bits, &case.code, case.eip.into(), DecoderOptions::NONE).decode();
    let mut text = String::new();
    GasFormatter::new().format(&insn, &mut text);
    text
}

fn differences(case: &Case, host: (&Outcome, &[Vec<u8>]), soft: (&Outcome, &[Vec<u8>])) -> String {
    let mut out = String::new();
    let ((h, host_memory), (s, soft_memory)) = (host, soft);
    // FSTP of 80 bits is two accesses there, of eight and two bytes.
    if case.is_long_store() && [h.end, s.end] != [End::Retired; 2] {
        return out;
    }
    // POPA that faults on the way: which registers are loaded by then is the processor's own order.
    let popa = case.code.last() == Some(&0x61) && h.end != End::Retired;
    if h.end != s.end {
        let _ = writeln!(out, "    end: {:x?} | {:x?}", h.end, s.end);
    }
    let ignored = STOPPING_FLAGS | if h.end == End::Retired { case.undefined } else { 0 };
    let pairs = [("eip", h.eip, s.eip), ("flags", h.flags & !ignored, s.flags & !ignored)];
    let names = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"];
    let registers = (0..8).filter(|n| !popa || *n == 4).map(|n| (names[n], h.gpr[n], s.gpr[n]));
    for (name, h, s) in registers.chain(pairs).filter(|(_, h, s)| h != s) {
        let _ = writeln!(out, "    {name}: {h:x} | {s:x}");
    }
    for (n, (at, _)) in REGIONS.iter().enumerate() {
        let bytes = host_memory[n].iter().zip(&soft_memory[n]).enumerate().filter(|(_, (h, s))| h != s);
        for (offset, (h, s)) in bytes.take(16) {
            let _ = writeln!(out, "    [{:x}]: {h:02x} | {s:02x}", at + offset as u64);
        }
    }
    out
}

#[test]
fn segments_are_checked_as_the_host_does() {
    let Some(mut native) = Native::new() else {
        println!("SKIPPED: this kernel has no modify_ldt");
        return;
    };
    let mut soft = Soft::new();
    let mut random = Random::new(0x5e61);
    let base: Vec<Vec<u8>> =
        REGIONS.iter().map(|(_, bytes)| (0..*bytes).map(|_| random.bits() as u8).collect()).collect();
    let only = number("LOCKSTEP_SEED");
    let count = number("LOCKSTEP_SEGMENTS").unwrap_or(5000);
    let seeds = only.map_or(0..count, |seed| seed..seed + 1);
    let (mut found, mut mismatches) = (String::new(), 0);
    let mut ends = BTreeMap::<String, u64>::new();
    for seed in seeds {
        let case = case::make(seed);
        let mut host_memory = base.clone();
        case.place(&mut host_memory);
        let mut soft_memory = host_memory.clone();
        let host = native.run(&case, &mut host_memory);
        let ours = soft.run(&case, &mut soft_memory);
        let end = match host.end {
            End::Retired => "retired".to_string(),
            End::Fault(vector, ..) => format!("vector {vector}"),
        };
        *ends.entry(end).or_default() += 1;
        let text = differences(&case, (&host, &host_memory), (&ours, &soft_memory));
        if !text.is_empty() {
            mismatches += 1;
            if mismatches <= 12 {
                let _ = writeln!(
                    found,
                    "{}  {:02x?}, host {:x?} | softcpu {:x?}\n{text}    {case:x?}\n    LOCKSTEP_SEED={seed}",
                    assembly(&case),
                    case.code,
                    host.end,
                    ours.end
                );
            }
        }
    }
    println!("cases by how they end: {ends:?}");
    if !found.is_empty() && !is_intel() {
        println!(
            "SKIPPED segments: {mismatches} cases differ; they are pinned on Intel's processors\n{found}"
        );
        return;
    }
    assert!(found.is_empty(), "{mismatches} cases differ from the host:\n{found}");
    let all_kinds = only.is_some()
        || count < 1000
        || ["retired", "vector 12", "vector 13", "vector 14"]
            .iter()
            .all(|kind| ends.get(*kind).is_some_and(|cases| *cases > 20));
    assert!(all_kinds, "a kind of end is missing: {ends:?}");
}
