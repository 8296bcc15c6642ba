//! Kinds of vectors that chance might leave out are among those that are made.

use crate::encode::Encoded;
use crate::forms::{Form, Prefix, all};
use crate::state::Vector;
use crate::vector::make;
use std::collections::{BTreeMap, BTreeSet};

const SEEDS: u64 = 4000;

/// Vectors of the form with this name.
fn vectors(name: &str) -> impl Iterator<Item = (Encoded, Vector)> {
    let form = all().0.into_iter().find(|form| form.name() == name);
    let form: Form = form.unwrap_or_else(|| panic!("no form {name}"));
    (0..SEEDS).map(move |seed| make(&form, seed * 4, true))
}

fn is_rex(byte: u8) -> bool {
    byte & 0xf0 == 0x40
}

/// Prefixes, with REX, up to the opcode.
fn prefixes(bytes: &[u8]) -> &[u8] {
    let legacy = |byte: u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
    let count = bytes.iter().take_while(|byte| legacy(**byte) || is_rex(**byte)).count();
    &bytes[..count]
}

#[test]
fn prefixes_come_in_every_order_and_where_they_are_ignored() {
    let mut orders = BTreeSet::new();
    for (encoded, _) in vectors("lock Add_rm16_r16 mem") {
        let legacy: Vec<u8> =
            prefixes(&encoded.bytes).iter().copied().filter(|byte| !is_rex(*byte)).collect();
        let kinds: BTreeSet<u8> = legacy.iter().copied().collect();
        if legacy.len() == 3 && kinds.is_superset(&[0x66, 0x67, 0xf0].into()) {
            orders.insert(legacy);
        }
    }
    assert_eq!(orders.len(), 6, "{orders:x?}");
    for name in ["Add_rm32_r32 reg", "Push_r64", "Addps_xmm_xmmm128 reg", "Fadd_st0_sti", "Imul_r64_rm64 reg"]
    {
        let mut counts = BTreeMap::<&str, u32>::new();
        for (encoded, _) in vectors(name) {
            let all = prefixes(&encoded.bytes);
            let inner = all.len().saturating_sub(1);
            let twice = all.iter().collect::<BTreeSet<_>>().len() < all.len();
            for (kind, is) in [
                ("address size", all.contains(&0x67)),
                ("REX before another", all[..inner].iter().any(|byte| is_rex(*byte))),
                ("the same twice", twice),
            ] {
                *counts.entry(kind).or_default() += u32::from(is);
            }
        }
        assert!(counts.values().all(|count| *count > 0), "{name}: {counts:?}");
    }
}

#[test]
fn counts_of_zero_have_both_address_sizes() {
    for form in all().0.iter().filter(|form| crate::forms::is_string(form.code)) {
        if form.prefix == Prefix::None {
            continue;
        }
        let mut counts = [0u32; 4];
        for (encoded, vector) in (0..1000).map(|seed| make(form, seed * 4, true)) {
            let rcx = vector.user.gpr[1];
            if encoded.short && rcx as u32 == 0 {
                counts[if rcx == 0 { 0 } else { 1 }] += 1;
            } else if !encoded.short && rcx as u32 == 0 {
                counts[if rcx == 0 { 2 } else { 3 }] += 1;
            }
        }
        assert!(counts[1] > 0 && counts[2] > 0, "{}: {counts:?}", form.name());
    }
    for (name, bits) in
        [("Loop_rel8_64_RCX", 64), ("Loop_rel8_64_ECX", 32), ("Jrcxz_rel8_64", 64), ("Jecxz_rel8_64", 32)]
    {
        let zero = |vector: &Vector| vector.user.gpr[1] << (64 - bits) == 0;
        let count = vectors(name).filter(|(_, vector)| zero(vector)).count();
        assert!(count > 20, "{name}: {count}");
    }
}

/// Of a division by a register: dividend and divisor.
fn division(encoded: &Encoded, vector: &Vector, bits: u32, signed: bool) -> (i128, i128) {
    let register = encoded.instruction.op0_register();
    let gpr = |number: usize| u128::from(vector.user.gpr[number]) & (u128::MAX >> (128 - bits));
    let high = matches!(
        register,
        iced_x86::Register::AH | iced_x86::Register::CH | iced_x86::Register::DH | iced_x86::Register::BH
    );
    let number = register.full_register().number();
    let divisor = if high { u128::from(vector.user.gpr[number] >> 8 & 0xff) } else { gpr(number) };
    let dividend = if bits == 8 { u128::from(vector.user.gpr[0] & 0xffff) } else { gpr(2) << bits | gpr(0) };
    let extend = |value: u128, bits: u32| {
        let unused = 128 - bits;
        if signed { (value << unused).cast_signed() >> unused } else { value.cast_signed() }
    };
    (extend(dividend, 2 * bits), extend(divisor, bits))
}

#[test]
fn divisions_reach_both_ends_and_one_beyond() {
    for bits in [8u32, 16, 32, 64] {
        for signed in [false, true] {
            let name = format!("{}_rm{bits} reg", if signed { "Idiv" } else { "Div" });
            let top = 1i128 << if signed { bits - 1 } else { bits };
            let bottom = if signed { -top } else { 0 };
            let mut counts = BTreeMap::<&str, u32>::new();
            for (encoded, vector) in vectors(&name) {
                let (dividend, divisor) = division(&encoded, &vector, bits, signed);
                // Dividends of 128 bits without a sign may be beyond i128: not at an end.
                if divisor == 0 || dividend < 0 && !signed {
                    continue;
                }
                let (quotient, rest) = (dividend / divisor, dividend % divisor);
                let full = rest.abs() == divisor.abs() - 1;
                let mut count = |kind, is: bool| *counts.entry(kind).or_default() += u32::from(is);
                count("the highest quotient", quotient == top - 1);
                count("and the largest rest", quotient == top - 1 && full && rest != 0);
                count("one beyond", quotient == top);
                if signed {
                    count("the lowest quotient", quotient == bottom);
                    count("with the largest rest", quotient == bottom && full && rest != 0);
                    count("one below", quotient == bottom - 1);
                }
            }
            assert!(counts.values().all(|count| *count > 2), "{name}: {counts:?}");
        }
    }
}

#[test]
fn the_forms_are_as_many_as_the_documentation_says() {
    let text = include_str!("../../../../docs/instruction-set.md");
    let (forms, _) = all();
    let count = format!("{},{:03} forms", forms.len() / 1000, forms.len() % 1000);
    assert!(text.contains(&count), "docs/instruction-set.md: there are {count}");
}
