//! What the audit refuses: code that the translator never makes.

use super::*;
use crate::native::emit::{Code, Mem, Opcode, R12, R13, R14, R15, RAX, RSP, Target, cc};
use crate::native::routines::{look_up, probe, test_alignment};

const HOT: u32 = 0x1_0000;
const COLD: u32 = 0x2_0000;

fn routines() -> Routines {
    let numbers = |first: u32| std::array::from_fn(|n| first + 0x40 * n as u32);
    Routines {
        enter: 0x40,
        leave: 0x100,
        load_vectors: 0x200,
        find: 0x300,
        restore: 0x400,
        stack: 0x900,
        reads: numbers(0x1000),
        writes: numbers(0x2000),
        group: 0x500,
    }
}

/// The bytes of a part, with its branches resolved.
fn placed(code: &Code, at: u32) -> Vec<u8> {
    let mut bytes = code.bytes.clone();
    for (place, target) in &code.fixups {
        let target = match *target {
            Target::Hot(offset) => HOT + offset as u32,
            Target::Cold(offset) => COLD + offset as u32,
            Target::Code(offset) => offset,
        };
        let from = at + *place as u32 + 4;
        bytes[*place..place + 4].copy_from_slice(&target.wrapping_sub(from).to_le_bytes());
    }
    bytes
}

/// What the audit says of code that ends with `leave`.
fn audited(make: impl FnOnce(&mut Code, &mut Code)) -> Result<(), String> {
    let (mut hot, mut cold) = (Code::default(), Code::default());
    make(&mut hot, &mut cold);
    hot.jmp(Target::Code(routines().leave));
    let (hot, cold) = (placed(&hot, HOT), placed(&cold, COLD));
    audit(
        &Parts { hot: (&hot, HOT), cold: (&cold, COLD), entries: Vec::new(), retries: Vec::new() },
        &routines(),
    )
}

#[track_caller]
fn assert_refused(make: impl FnOnce(&mut Code)) {
    assert!(audited(|hot, _| make(hot)).is_err());
}

fn check(hot: &mut Code, number: usize, write: bool) {
    let routines = routines();
    hot.call(Target::Code(if write { routines.writes[number] } else { routines.reads[number] }));
}

/// A check as part of the block, whose misses `miss` handles.
fn inline(hot: &mut Code, miss: Target, bytes: u32, write: bool) {
    hot.store(field!(address), R12);
    test_alignment(hot);
    hot.jcc(cc::NE, miss);
    probe(hot, bytes, write, |field| field);
    hot.jcc(cc::NE, miss);
    hot.load(R14, Mem::base(R12, 8));
}

const DATA: Mem = Mem::sum(RAX, R14, 16);

#[test]
fn what_was_checked_may_be_accessed() {
    audited(|hot, _| {
        check(hot, 3, true);
        hot.load(RAX, DATA);
        hot.store(DATA, RAX);
        hot.store32_constant(Mem::base(R14, 0), 7);
        hot.load(R14, field!(addend));
        hot.store(Mem::sum(R15, R14, -8), RAX);
        hot.store(field!(value), RAX);
        look_up(hot);
    })
    .expect("the translator makes that");
    audited(|hot, cold| {
        inline(hot, Target::Cold(0), 8, true);
        let back = hot.here();
        hot.store(DATA, RAX);
        cold.load(R12, field!(address));
        cold.call(Target::Code(routines().writes[3]));
        cold.jmp(Target::Hot(back));
    })
    .expect("a check as part of the block");
}

#[test]
fn what_was_not_checked_may_not() {
    assert_refused(|hot| hot.load(RAX, DATA));
    assert_refused(|hot| hot.load(RAX, Mem::base(RAX, 0)));
    assert_refused(|hot| {
        hot.load(R14, Mem::base(RSP, field!(addend).disp + 8));
        hot.store(DATA, RAX);
    });
    // More than was checked, a store after the check of a load, a scaled addend, an addend that is gone.
    assert_refused(|hot| {
        check(hot, 2, true);
        hot.store(DATA, RAX);
    });
    assert_refused(|hot| {
        check(hot, 3, false);
        hot.store(DATA, RAX);
    });
    assert_refused(|hot| {
        check(hot, 3, true);
        hot.load(RAX, Mem { base: Some(RAX), index: Some((R14, 1)), disp: 0 });
    });
    assert_refused(|hot| {
        check(hot, 3, true);
        hot.load(R14, field!(value));
        hot.store(DATA, RAX);
    });
    assert_refused(|hot| {
        check(hot, 3, true);
        hot.call(Target::Code(routines().restore));
        hot.store(DATA, RAX);
    });
}

#[test]
fn a_way_around_the_check_is_found() {
    // The miss goes on as if it were none.
    assert!(
        audited(|hot, cold| {
            inline(hot, Target::Cold(0), 8, true);
            let back = hot.here();
            hot.store(DATA, RAX);
            cold.jmp(Target::Hot(back));
        })
        .is_err()
    );
    // It has another access checked.
    assert!(
        audited(|hot, cold| {
            inline(hot, Target::Cold(0), 8, true);
            let back = hot.here();
            hot.store(DATA, RAX);
            cold.call(Target::Code(routines().reads[3]));
            cold.jmp(Target::Hot(back));
        })
        .is_err()
    );
    // The entry is not compared.
    assert_refused(|hot| {
        probe(hot, 8, true, |field| field);
        hot.load(R14, Mem::base(R12, 8));
        hot.store(DATA, RAX);
    });
    assert_refused(|hot| {
        probe(hot, 8, false, |field| field);
        let over = hot.skip(cc::NE);
        hot.load(R14, Mem::base(R12, 8));
        hot.store(DATA, RAX);
        hot.land(over);
    });
}

#[test]
fn neither_the_frame_nor_the_block_is_left() {
    let end = size_of::<Frame>() as i32;
    audited(|hot, _| hot.store(Mem::base(RSP, end - 8), RAX)).expect("its last field");
    assert_refused(|hot| hot.store(Mem::base(RSP, end - 7), RAX));
    assert_refused(|hot| hot.store(Mem::base(RSP, -8), RAX));
    assert_refused(|hot| hot.store(Mem::sum(RSP, RAX, 0), RAX));
    assert_refused(|hot| hot.advance(RSP, 8));
    // push rax; ret; jmp r13; movsb; bt [rsp], eax; syscall; a call of the middle of a routine; ud2 behind
    assert_refused(|hot| hot.byte(0x50));
    assert_refused(|hot| hot.byte(0xc3));
    assert_refused(|hot| hot.rr(Opcode::one(0xff, false), 4, R13));
    assert_refused(|hot| hot.byte(0xa4));
    assert_refused(|hot| hot.rm(Opcode::two(0xa3, true), RAX, Mem::base(RSP, 0)));
    assert_refused(|hot| hot.bytes.extend([0x0f, 0x05]));
    assert_refused(|hot| hot.call(Target::Code(routines().reads[3] + 1)));
    assert_refused(|hot| hot.jmp(Target::Code(routines().enter)));
    assert_refused(|hot| hot.jcc(cc::E, Target::Hot(1)));
    assert!(audited(|_, cold| cold.mov(RAX, R13)).is_err(), "it goes on behind the cold part");
}
