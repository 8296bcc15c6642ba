//! Tests of the meter, with times as they would be looked at.

use super::*;

const MS: u64 = 1_000_000;

fn run(meter: &Meter, looks: std::ops::Range<u64>, per_look: u64) {
    for look in looks {
        meter.look(look * 100 * MS);
        let position = meter.position.load(Ordering::Relaxed);
        meter.note(position + per_look, || Some(Statistics { native_instructions: 7, ..Default::default() }));
    }
}

fn status(meter: &Meter, now_ms: u64) -> GuestStatus {
    meter.status(now_ms * MS, PositionClock::Instructions).expect("there is a machine")
}

#[test]
fn the_rate_is_that_of_the_last_second() {
    let meter = Meter::default();
    assert_eq!(meter.status(0, PositionClock::Exits), None, "no machine yet");
    meter.moved_to(5_000_000_000);
    assert_eq!(status(&meter, 0).per_second, 0.0);
    run(&meter, 0..50, 10_000_000);
    let busy = status(&meter, 5000);
    assert_eq!((busy.position, busy.clock), (5_500_000_000, "instructions"));
    assert!((busy.mips.expect("instructions") - 100.0).abs() < 1e-6, "{busy:?}");
    // It idles: nothing is noted, the looks go on.
    (50..62).for_each(|look| meter.look(look * 100 * MS));
    assert_eq!(status(&meter, 6200).per_second, 0.0);
}

#[test]
fn a_jump_is_no_speed_and_nothing_that_was_executed() {
    let meter = Meter::default();
    meter.set_execution(Some(Execution { jit: Jit::Check, untranslated: None }));
    meter.moved_to(0);
    run(&meter, 0..10, 1);
    meter.moved_to(1 << 40);
    meter.look(1000 * MS);
    let moved = status(&meter, 1001);
    assert_eq!((moved.position, moved.per_second), (1 << 40, 0.0));
    run(&meter, 11..15, 1);
    let translator = status(&meter, 1500).translator.expect("statistics");
    let share = translator.native_share;
    assert_eq!((translator.jit, translator.untranslated), ("check", None));
    assert!((share - 0.5).abs() < 1e-9, "7 of the 14 that ran: {share}");
}

#[test]
fn exits_are_no_instructions() {
    let meter = Meter::default();
    meter.moved_to(0);
    meter.look(0);
    meter.note(500, || None);
    let status = meter.status(1000 * MS, PositionClock::Exits).expect("there is a machine");
    assert_eq!((status.per_second, status.mips, status.translator), (500.0, None, None));
}
