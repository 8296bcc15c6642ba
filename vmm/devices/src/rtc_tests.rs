//! The clock against the MC146818A's datasheet.

use super::*;

const S: u64 = 1_000_000_000;
/// 2026-11-20 12:34:56 UTC, a Friday, and a quarter of a second.
const BASE: u64 = 1_795_178_096_250_000_000;

fn rtc() -> Rtc {
    Rtc::new(BASE, 64 << 20)
}

fn read(rtc: &mut Rtc, index: u8, now_ns: u64) -> u8 {
    rtc.write_index(index);
    rtc.read_data(now_ns)
}

fn write(rtc: &mut Rtc, index: u8, value: u8, now_ns: u64) {
    rtc.write_index(index);
    rtc.write_data(value, now_ns);
}

fn time(rtc: &mut Rtc, now_ns: u64) -> [u8; 8] {
    [0, 2, 4, 6, 7, 8, 9, 0x32].map(|index| read(rtc, index, now_ns))
}

#[test]
fn tells_the_time_in_bcd_and_binary() {
    let mut rtc = rtc();
    assert_eq!(time(&mut rtc, 0), [0x56, 0x34, 0x12, 0x06, 0x20, 0x11, 0x26, 0x20]);
    assert_eq!(time(&mut rtc, 3 * S + S * 3 / 4), [0x00, 0x35, 0x12, 0x06, 0x20, 0x11, 0x26, 0x20]);
    write(&mut rtc, REG_B, B_24H | B_BINARY, 0);
    assert_eq!(time(&mut rtc, 0), [56, 34, 12, 6, 20, 11, 26, 20]);
}

#[test]
fn tells_the_time_in_12_hours() {
    let mut rtc = rtc();
    write(&mut rtc, REG_B, 0, 0);
    let hour = |rtc: &mut Rtc, hours: u64| read(rtc, 4, hours * 3600 * S);
    assert_eq!(hour(&mut rtc, 0), 0x92, "noon is 12 PM");
    assert_eq!(hour(&mut rtc, 1), 0x81);
    assert_eq!(hour(&mut rtc, 11), 0x91);
    assert_eq!(hour(&mut rtc, 12), 0x12, "midnight is 12 AM");
    assert_eq!(hour(&mut rtc, 13), 0x01);
    write(&mut rtc, 4, 0x92, 0);
    assert_eq!(rtc.image(0)[2], 0x92);
    write(&mut rtc, REG_B, B_24H, 0);
    assert_eq!(read(&mut rtc, 4, 0), 0x12);
}

#[test]
fn setting_holds_the_clock() {
    let mut rtc = rtc();
    write(&mut rtc, REG_B, B_24H | B_SET, S);
    assert_eq!(read(&mut rtc, 0, 100 * S), 0x57, "held");
    for (index, value) in
        [(0, 0x58), (2, 0x59), (4, 0x23), (6, 0x01), (7, 0x29), (8, 0x02), (9, 0x24), (0x32, 0x20)]
    {
        write(&mut rtc, index, value, 100 * S);
        assert_eq!(read(&mut rtc, index, 100 * S), value);
    }
    write(&mut rtc, REG_B, B_24H, 100 * S);
    // 2024-02-29 was a Thursday.
    assert_eq!(time(&mut rtc, 100 * S), [0x58, 0x59, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20]);
    assert_eq!(time(&mut rtc, 102 * S), [0x00, 0x00, 0x00, 0x06, 0x01, 0x03, 0x24, 0x20]);
}

#[test]
fn setting_one_byte_of_a_running_clock() {
    let mut rtc = rtc();
    write(&mut rtc, 2, 0x10, 0);
    assert_eq!(time(&mut rtc, 0)[..3], [0x56, 0x10, 0x12]);
}

#[test]
fn any_bytes_are_some_time() {
    for binary in [0, B_BINARY] {
        for hours in [0, B_24H] {
            let mut rtc = rtc();
            write(&mut rtc, REG_B, binary | hours, 0);
            for value in [0xff, 0x00, 0x99, 0xaa] {
                for index in [0, 2, 4, 6, 7, 8, 9, 0x32] {
                    write(&mut rtc, index, value, u64::MAX);
                    time(&mut rtc, u64::MAX);
                }
            }
        }
    }
}

#[test]
fn update_in_progress_rises_before_each_second() {
    let mut rtc = rtc();
    let second_ends = S * 3 / 4;
    assert_eq!(read(&mut rtc, REG_A, second_ends - 300_000) & A_UIP, 0);
    assert_eq!(read(&mut rtc, REG_A, second_ends - 244_000) & A_UIP, A_UIP);
    assert_eq!(read(&mut rtc, REG_A, second_ends - 1) & A_UIP, A_UIP);
    assert_eq!(read(&mut rtc, REG_A, second_ends), 0x26);
    write(&mut rtc, REG_B, B_24H | B_SET, 0);
    assert_eq!(read(&mut rtc, REG_A, second_ends - 1) & A_UIP, 0);
}

#[test]
fn update_ended_interrupts_each_second() {
    let mut rtc = rtc();
    write(&mut rtc, REG_B, B_24H | UPDATE, 0);
    assert_eq!(rtc.next_ns(), S * 3 / 4);
    rtc.advance(S * 3 / 4 - 1);
    assert!(!rtc.line());
    rtc.advance(S * 3 / 4);
    assert!(rtc.line());
    assert_eq!(rtc.next_ns(), u64::MAX, "high until C is read");
    assert_eq!(read(&mut rtc, REG_C, S) & !PERIODIC, C_IRQF | UPDATE);
    assert!(!rtc.line());
    assert_eq!(read(&mut rtc, REG_C, S), 0);
    assert_eq!(rtc.next_ns(), S + S * 3 / 4);
    // SET stops updates and clears their enable.
    write(&mut rtc, REG_B, B_24H | B_SET | UPDATE, S);
    assert_eq!(read(&mut rtc, REG_B, S), B_24H | B_SET);
    assert_eq!(rtc.next_ns(), u64::MAX);
}

#[test]
fn periodic_interrupt_has_the_chosen_rate() {
    for (rate, hertz) in [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)] {
        let mut rtc = rtc();
        write(&mut rtc, REG_A, 0x20 | rate, 0);
        write(&mut rtc, REG_B, B_24H | PERIODIC, 0);
        let (mut count, mut now) = (0, 0);
        while rtc.next_ns() <= S {
            now = rtc.next_ns();
            rtc.advance(now);
            assert!(rtc.line());
            assert_eq!(read(&mut rtc, REG_C, now) & (C_IRQF | PERIODIC), C_IRQF | PERIODIC);
            count += 1;
        }
        assert_eq!(count, hertz, "rate {rate}");
        assert_eq!(now, S);
    }
    let mut rtc = rtc();
    write(&mut rtc, REG_A, 0x20, 0);
    write(&mut rtc, REG_B, B_24H | PERIODIC, 0);
    assert_eq!(rtc.next_ns(), u64::MAX, "rate 0 is off");
}

#[test]
fn flags_without_enables_are_seen_by_polling() {
    let mut rtc = rtc();
    assert_eq!(rtc.next_ns(), u64::MAX);
    assert_eq!(read(&mut rtc, REG_C, S), PERIODIC | UPDATE);
    assert_eq!(read(&mut rtc, REG_C, S), 0);
    // Enabling an interrupt whose flag is up raises the line.
    rtc.advance(2 * S);
    write(&mut rtc, REG_B, B_24H | UPDATE, 2 * S);
    assert!(rtc.line());
}

#[test]
fn alarm_matches_hour_minute_second() {
    for (alarm, seconds) in [
        // 12:34:56 now
        ([0x58, 0x34, 0x12], 2),
        ([0x56, 0x34, 0x12], 86_400),
        ([0x00, 0x00, 0x00], 86_400 - (12 * 3600 + 34 * 60 + 56)),
        ([0x55, 0xff, 0xff], 59),
        ([0x10, 0x20, 0xc0], 45 * 60 + 14),
        ([0xff, 0xff, 0xff], 1),
        ([0xff, 0x34, 0x12], 1),
        ([0xff, 0x00, 0x13], 25 * 60 + 4),
    ] {
        let mut rtc = rtc();
        for (index, value) in [1, 3, 5].into_iter().zip(alarm) {
            write(&mut rtc, index, value, 0);
            assert_eq!(read(&mut rtc, index, 0), value);
        }
        write(&mut rtc, REG_B, B_24H | ALARM, 0);
        let at = seconds * S - S / 4;
        assert_eq!(rtc.next_ns(), at, "{alarm:02x?}");
        rtc.advance(at - 1);
        assert!(!rtc.line());
        rtc.advance(at);
        assert!(rtc.line());
        assert_eq!(read(&mut rtc, REG_C, at) & (C_IRQF | ALARM), C_IRQF | ALARM);
    }
}

#[test]
fn an_alarm_in_12_hours() {
    let mut rtc = rtc();
    write(&mut rtc, REG_B, ALARM, 0);
    for (index, value) in [(1, 0x00), (3, 0x00), (5, 0x81)] {
        write(&mut rtc, index, value, 0);
    }
    assert_eq!(rtc.next_ns(), (25 * 60 + 4) * S - S / 4, "1 PM");
}

#[test]
fn an_alarm_that_no_time_matches_never_comes() {
    let mut rtc = rtc();
    for (index, value) in [(1, 0x75), (3, 0xff), (5, 0xff)] {
        write(&mut rtc, index, value, 0);
    }
    write(&mut rtc, REG_B, B_24H | ALARM, 0);
    assert_eq!(rtc.next_ns(), u64::MAX);
}

#[test]
fn an_alarm_that_a_jump_of_the_clock_passes_is_not_lost() {
    let mut rtc = rtc();
    for (index, value) in [(1, 0x00), (3, 0x00), (5, 0x15)] {
        write(&mut rtc, index, value, 0);
    }
    rtc.advance(86_400 * S);
    assert_eq!(read(&mut rtc, REG_C, 86_400 * S) & ALARM, ALARM);
}

#[test]
fn cmos_holds_memory_sizes_and_what_is_written() {
    let mut rtc = rtc();
    let word = |rtc: &mut Rtc, index| u16::from_le_bytes([read(rtc, index, 0), read(rtc, index + 1, 0)]);
    assert_eq!(word(&mut rtc, 0x15), 640);
    assert_eq!(word(&mut rtc, 0x17), 63 << 10);
    assert_eq!(word(&mut rtc, 0x30), 63 << 10);
    assert_eq!(word(&mut rtc, 0x34), 48 << 4);
    assert_eq!(read(&mut rtc, REG_D, 0), D_VRT);
    write(&mut rtc, 0x80 | 0x40, 0xa5, 0);
    assert_eq!(read(&mut rtc, 0x40, 0), 0xa5);
    write(&mut rtc, 0x7f, 0x5a, 0);
    assert_eq!(read(&mut rtc, 0x7f, 0), 0x5a);
    // C and D are for reading.
    write(&mut rtc, REG_D, 0, 0);
    assert_eq!(read(&mut rtc, REG_D, 0), D_VRT);
}
