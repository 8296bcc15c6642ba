//! The timer against the 8254's datasheet, tick by tick.

use super::*;

const CONTROL: u16 = 3;

/// The first nanosecond of a tick.
fn at(tick: u64) -> u64 {
    tick_ns(tick)
}

/// Programs channel 0 (gate always high) at tick 0: low then high byte, binary.
fn channel_0(mode: u8, count: u16) -> Pit {
    let mut pit = Pit::new();
    pit.write(CONTROL, 0x30 | mode << 1, 0);
    let [low, high] = count.to_le_bytes();
    pit.write(0, low, 0);
    pit.write(0, high, 0);
    pit
}

fn outs(pit: &Pit, channel: usize, ticks: std::ops::Range<u64>) -> String {
    ticks.map(|tick| if pit.channels[channel].out(tick) { '-' } else { '_' }).collect()
}

fn read_16(pit: &mut Pit, channel: u16, tick: u64) -> u16 {
    let low = pit.read(channel, at(tick));
    u16::from_le_bytes([low, pit.read(channel, at(tick))])
}

#[test]
fn ticks_and_nanoseconds_agree() {
    for tick_number in (0..5_000).chain(1 << 40..(1 << 40) + 100) {
        assert_eq!(tick(tick_ns(tick_number)), tick_number);
        assert_eq!(tick(tick_ns(tick_number + 1) - 1), tick_number);
    }
    assert_eq!(tick(1_000_000_000), 1_193_182);
}

#[test]
fn mode_0_interrupts_on_terminal_count() {
    let mut pit = channel_0(0, 4);
    // OUT rises n + 1 clocks after the count was written.
    assert_eq!(outs(&pit, 0, 0..8), "_____---");
    assert_eq!(pit.next_rise_ns(), at(5));
    assert!(!pit.advance(at(4)));
    assert!(pit.advance(at(5)));
    assert!(pit.line());
    assert_eq!(pit.next_rise_ns(), u64::MAX);
    // It counts on, through zero.
    assert_eq!(read_16(&mut pit, 0, 6), 0xffff);
    // A new count starts again, with OUT low at once.
    pit.write(0, 9, at(10));
    assert!(!pit.line(), "the first byte of two lowers OUT");
    pit.write(0, 0, at(10));
    assert_eq!(pit.next_rise_ns(), at(20));
}

#[test]
fn mode_2_is_low_in_the_last_tick_of_each_period() {
    let mut pit = channel_0(2, 4);
    assert_eq!(outs(&pit, 0, 0..14), "----_---_---_-");
    let counters: Vec<u16> = (1..10).map(|tick| read_16(&mut pit, 0, tick)).collect();
    assert_eq!(counters, [4, 3, 2, 1, 4, 3, 2, 1, 4]);
    for period in 1..50 {
        assert_eq!(pit.next_rise_ns(), at(1 + 4 * period));
        assert!(pit.advance(pit.next_rise_ns()));
    }
    // Over several periods at once: one rise.
    assert!(pit.advance(at(1001)));
    assert_eq!(pit.next_rise_ns(), at(1005));
}

#[test]
fn mode_2_takes_a_new_count_at_the_end_of_the_period() {
    let mut pit = channel_0(2, 10);
    pit.write(0, 4, at(3));
    pit.write(0, 0, at(3));
    assert_eq!(pit.next_rise_ns(), at(11));
    assert!(pit.advance(at(11)));
    assert_eq!(pit.next_rise_ns(), at(15));
}

#[test]
fn mode_3_is_a_square_wave() {
    let mut pit = channel_0(3, 6);
    assert_eq!(outs(&pit, 0, 0..14), "----___---___-");
    let counters: Vec<u16> = (1..8).map(|tick| read_16(&mut pit, 0, tick)).collect();
    assert_eq!(counters, [6, 4, 2, 6, 4, 2, 6]);
    let mut pit = channel_0(3, 5);
    assert_eq!(outs(&pit, 0, 0..12), "----__---__-");
    let counters: Vec<u16> = (1..7).map(|tick| read_16(&mut pit, 0, tick)).collect();
    assert_eq!(counters, [4, 2, 0, 4, 2, 4]);
    assert_eq!(pit.next_rise_ns(), at(6));
}

#[test]
fn mode_4_strobes_once() {
    let mut pit = channel_0(4, 3);
    assert_eq!(outs(&pit, 0, 0..8), "----_---");
    assert_eq!(pit.next_rise_ns(), at(5));
    assert!(pit.advance(at(6)));
    assert_eq!(pit.next_rise_ns(), u64::MAX);
}

#[test]
fn count_0_is_the_full_range() {
    let pit = channel_0(2, 0);
    assert_eq!(pit.next_rise_ns(), at(1 + 65_536));
    let mut pit = Pit::new();
    pit.write(CONTROL, 0x35, 0);
    pit.write(0, 0, 0);
    pit.write(0, 0, 0);
    assert_eq!(pit.next_rise_ns(), at(1 + 10_000));
}

#[test]
fn bcd_counts_in_decimal() {
    let mut pit = Pit::new();
    pit.write(CONTROL, 0x31, 0);
    pit.write(0, 0x00, 0);
    pit.write(0, 0x10, 0);
    assert_eq!(pit.next_rise_ns(), at(1 + 1_000));
    assert_eq!(read_16(&mut pit, 0, 2), 0x0999);
    assert_eq!(read_16(&mut pit, 0, 1 + 1_001), 0x9999);
}

#[test]
fn modes_6_and_7_are_2_and_3() {
    assert_eq!(channel_0(6, 4).channels, channel_0(2, 4).channels);
    assert_eq!(channel_0(7, 4).channels, channel_0(3, 4).channels);
}

#[test]
fn single_byte_accesses() {
    let mut pit = Pit::new();
    pit.write(CONTROL, 0x14, 0); // low byte only
    pit.write(0, 200, 0);
    assert_eq!(pit.next_rise_ns(), at(201));
    assert_eq!(pit.read(0, at(2)), 199);
    assert_eq!(pit.read(0, at(3)), 198);
    pit.write(CONTROL, 0x24, 0); // high byte only
    pit.write(0, 2, 0);
    assert_eq!(pit.next_rise_ns(), at(513));
    assert_eq!(pit.read(0, at(2)), 1);
}

#[test]
fn latch_holds_the_count_until_it_is_read() {
    let mut pit = channel_0(2, 1000);
    pit.write(CONTROL, 0x00, at(11));
    pit.write(CONTROL, 0x00, at(500)); // ignored: one is held already
    assert_eq!(read_16(&mut pit, 0, 600), 990);
    assert_eq!(read_16(&mut pit, 0, 601), 400);
}

#[test]
fn read_back_latches_status_and_count() {
    let mut pit = channel_0(3, 1000);
    pit.write(CONTROL, 0xc2, 0);
    // Status first: OUT high, count not loaded yet, both bytes, mode 3.
    assert_eq!(pit.read(0, 0), 0x80 | 0x40 | 0x30 | 0x06);
    let _count = read_16(&mut pit, 0, 0);
    pit.write(CONTROL, 0xe2, at(600)); // status only
    assert_eq!(pit.read(0, at(900)), 0x30 | 0x06, "OUT low in the second half, count loaded");
    pit.write(CONTROL, 0xd2, at(101)); // count only
    assert_eq!(read_16(&mut pit, 0, 700), 800);
    // Channels not chosen hold nothing.
    pit.write(CONTROL, 0xe4, at(900));
    assert_eq!(pit.channels[0].latched_status, None);
    assert!(pit.channels[1].latched_status.is_some());
}

#[test]
fn the_control_register_cannot_be_read() {
    assert_eq!(channel_0(2, 4).read(CONTROL, 0), 0xff);
}

fn channel_2(mode: u8, count: u16) -> Pit {
    let mut pit = Pit::new();
    pit.write(CONTROL, 0xb0 | mode << 1, 0);
    let [low, high] = count.to_le_bytes();
    pit.write(2, low, 0);
    pit.write(2, high, 0);
    pit
}

#[test]
fn gate_pauses_modes_0_and_4() {
    let mut pit = channel_2(0, 10);
    assert_eq!(pit.read_port_b(at(50)) & 0x21, 0, "gate low: nothing counts");
    pit.write_port_b(1, at(100));
    assert!(!pit.channels[2].out(109));
    pit.write_port_b(0, at(105));
    assert!(!pit.channels[2].out(500));
    pit.write_port_b(1, at(1000));
    assert!(!pit.channels[2].out(1004));
    assert_eq!(pit.read_port_b(at(1005)) & 0x21, 0x21);
}

#[test]
fn gate_restarts_modes_2_and_3_and_holds_out_high() {
    let mut pit = channel_2(3, 10);
    pit.write_port_b(1, at(100));
    assert_eq!(outs(&pit, 2, 100..112), "------_____-");
    pit.write_port_b(0, at(107));
    assert!(pit.channels[2].out(108));
    pit.write_port_b(1, at(203));
    assert_eq!(outs(&pit, 2, 203..215), "------_____-");
}

#[test]
fn gate_triggers_modes_1_and_5() {
    let mut pit = channel_2(1, 3);
    assert_eq!(outs(&pit, 2, 0..5), "-----");
    pit.write_port_b(1, at(10));
    assert_eq!(outs(&pit, 2, 11..16), "___--");
    // The next trigger uses what was written in between.
    pit.write(2, 5, at(12));
    pit.write(2, 0, at(12));
    assert_eq!(outs(&pit, 2, 11..16), "___--");
    pit.write_port_b(0, at(20));
    pit.write_port_b(1, at(21));
    assert_eq!(outs(&pit, 2, 22..29), "_____--");

    let mut pit = channel_2(5, 3);
    pit.write_port_b(1, at(10));
    assert_eq!(outs(&pit, 2, 11..17), "---_--");
}

#[test]
fn port_b_toggles_refresh_and_keeps_the_speaker() {
    let mut pit = Pit::new();
    pit.write_port_b(0x02, 0);
    let first = pit.read_port_b(0);
    let second = pit.read_port_b(0);
    assert_eq!(first ^ second, 0x10);
    assert_eq!(first & 0x03, 0x02);
}

#[test]
fn channel_1_runs_by_itself() {
    let mut pit = Pit::new();
    pit.write(CONTROL, 0x54, 0);
    pit.write(1, 18, 0);
    assert_eq!(pit.read(1, at(2)), 17);
    assert_eq!(pit.next_rise_ns(), u64::MAX, "only channel 0 interrupts");
}

#[test]
fn the_end_of_time_does_not_overflow() {
    for mode in 0..6 {
        let mut pit = channel_0(mode, 0xffff);
        pit.advance(u64::MAX - 1);
        pit.write(0, 1, u64::MAX);
        pit.write(0, 1, u64::MAX);
        pit.advance(u64::MAX);
        pit.read(0, u64::MAX);
        pit.write_port_b(1, u64::MAX);
    }
}
