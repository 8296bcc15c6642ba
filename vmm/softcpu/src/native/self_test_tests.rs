//! What every host has to reproduce, and what the self-test costs.

use std::collections::BTreeSet;

use super::*;

/// Digest of what every form that is copied leaves, and of our definitions of flags that the manuals leave
/// undefined. It is the same on every host: where it is not, the host's processor computes otherwise, and the
/// samples say where. It changes with the allow-list.
const FULL: u64 = 0xbc6c_78e1_1d63_a9c3;

/// A digest of each form, to compare with another host's.
fn by_form(made: &Comparison) -> String {
    let samples = made.program.samples.iter();
    let line = |sample: &super::super::samples::Sample| {
        let of_set = |set: &Vec<u8>| set[sample.results.clone()].to_vec();
        let results = made.interpreted.iter().map(of_set).collect();
        format!("{:016x} {:?}: {}\n", digest(&results), sample.code, sample.text)
    };
    samples.map(line).collect()
}

#[test]
fn results_of_all_forms_are_the_same_on_every_host() {
    let full = Comparison::new(Extent::Full, SETS);
    let brief = Comparison::new(Extent::Brief, BRIEF_SETS);
    for (name, made, pinned) in [("full", &full, FULL), ("brief", &brief, PINNED)] {
        assert_eq!(made.differing(), [], "{name}");
        assert!(made.is_equal(), "{name}");
        // What sees flags, and what sets MXCSR, is interpreted.
        assert!(made.native > 0.85, "{name}: {} was executed as the host's", made.native);
        let found = digest(&made.interpreted);
        println!("{name}: {} samples, {:.3} as the host's", made.program.samples.len(), made.native);
        assert_eq!(found, pinned, "{name}: {found:#018x}\n{}", by_form(made));
    }
    let forms = |made: &Comparison| made.program.samples.iter().map(|s| s.code).collect::<BTreeSet<_>>();
    assert_eq!(forms(&full), forms(&brief), "each is tested at the start");
    assert!(forms(&full).len() > 600, "{} forms", forms(&full).len());
}

/// It is part of every start.
#[test]
fn a_brief_test_is_brief() {
    let program = program(CODE as u64, Extent::Brief);
    assert!(program.bytes.len() < 24 << 10 && program.results < 24 << 10, "{}", program.bytes.len());
}

#[test]
fn this_host_refuses_no_form() {
    let found = found();
    assert!(found.refused.is_empty() && !found.astray, "{found:?}");
}

/// Made nothing of, with the brief program's flags, they do what they would.
const UNTAKEN: [Code; 6] = [
    Code::Ja_rel8_64,
    Code::Jl_rel8_64,
    Code::Cmova_r16_rm16,
    Code::Cmova_r64_rm64,
    Code::Cmovl_r16_rm16,
    Code::Cmovl_r64_rm64,
];
/// What the program itself is made of.
const USED: usize = 12;

/// Each form in turn is made nothing of, and refused; alone, unless the program itself needs it.
#[test]
fn a_form_that_does_nothing_is_refused() {
    let samples = program(CODE as u64, Extent::Brief).samples;
    let forms: BTreeSet<Code> = samples.iter().map(|sample| sample.code).collect();
    let differing = |code: Code, extent, sets| {
        let made = Comparison::prepared(extent, sets, |cpu| cpu.odd_form = Some(code));
        (!made.is_equal()).then(|| made.differing().into_iter().collect::<BTreeSet<_>>())
    };
    let (mut missed, mut others) = (Vec::new(), Vec::new());
    for code in forms.iter().copied() {
        match differing(code, Extent::Brief, BRIEF_SETS) {
            None => missed.push(code),
            Some(found) if found != BTreeSet::from([code]) => others.push((code, found.len())),
            Some(_) => {}
        }
    }
    assert_eq!(missed, UNTAKEN);
    assert!(others.len() <= USED, "{others:?}");
    for code in UNTAKEN {
        assert_eq!(differing(code, Extent::Full, SETS), Some(BTreeSet::from([code])));
    }
}
