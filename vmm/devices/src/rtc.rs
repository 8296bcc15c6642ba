//! The real-time clock and CMOS RAM: an MC146818A (Motorola datasheet) with the century at 0x32 and the
//! memory sizes where a PC's firmware leaves them.
//!
//! The time is the wall clock at power-on plus the virtual clock plus what the guest adjusted; nothing
//! counts. While SET holds the clock, its ten bytes are plain memory. The divider never stops.
//!
//! ```text
//!  A  UIP | divider | rate      time bytes are stable while UIP is low; it rises 244 µs before each second
//!  B  SET | PIE AIE UIE | SQWE | DM | 24/12 | DSE
//!  C  IRQF | PF AF UF           cleared by reading; IRQF, the interrupt line: a flag and its enable are set
//!  D  VRT
//! ```

use serde::{Deserialize, Serialize};

use crate::calendar::{DAY_S, DateTime};

const NS_PER_S: i128 = 1_000_000_000;
/// The crystal.
const TICKS_PER_S: u128 = 32_768;
/// How long before a second ends UIP rises.
const UIP_NS: i128 = 244_000;

const REG_A: u8 = 0x0a;
const REG_B: u8 = 0x0b;
const REG_C: u8 = 0x0c;
const REG_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;
const A_UIP: u8 = 1 << 7;
const B_SET: u8 = 1 << 7;
const B_SQWE: u8 = 1 << 3;
const B_BINARY: u8 = 1 << 2;
const B_24H: u8 = 1 << 1;
const C_IRQF: u8 = 1 << 7;
/// The enables in B have the places of their flags in C.
const PERIODIC: u8 = 1 << 6;
const ALARM: u8 = 1 << 5;
const UPDATE: u8 = 1 << 4;
const D_VRT: u8 = 1 << 7;
const HOUR_PM: u8 = 1 << 7;
/// Alarm bytes from here on match everything.
const DONT_CARE: u8 = 0xc0;

/// The time bytes: second, minute, hour, weekday, day, month, year, century, as the registers hold them.
type Image = [u8; 8];

/// The clock and its RAM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rtc {
    index: u8,
    ram: [[u8; 16]; 8],
    a: u8,
    b: u8,
    flags: u8,
    /// Second, minute, hour.
    alarm: [u8; 3],
    wall_base_ns: u64,
    adjust_s: i64,
    /// The time bytes while SET holds the clock.
    held: Option<Image>,
    /// Up to when the flags are known.
    known_ns: u64,
    /// When an interrupt is due; `u64::MAX` for never.
    next_ns: u64,
}

impl Rtc {
    pub(crate) fn new(wall_base_ns: u64, memory_bytes: u64) -> Self {
        let mut rtc = Self {
            index: 0,
            ram: [[0; 16]; 8],
            a: 0x26,
            b: B_24H,
            flags: 0,
            alarm: [0; 3],
            wall_base_ns,
            adjust_s: 0,
            held: None,
            known_ns: 0,
            next_ns: u64::MAX,
        };
        let clamp = |value: u64| (value.min(0xffff) as u16).to_le_bytes();
        let [base, extended] = [clamp(640), clamp((memory_bytes >> 10).saturating_sub(1024))];
        let above_16m = clamp((memory_bytes >> 16).saturating_sub(256));
        for (index, value) in [
            (0x15, base[0]),
            (0x16, base[1]),
            (0x17, extended[0]),
            (0x18, extended[1]),
            (0x30, extended[0]),
            (0x31, extended[1]),
            (0x34, above_16m[0]),
            (0x35, above_16m[1]),
        ] {
            *rtc.cell(index) = value;
        }
        rtc
    }

    /// The RESET pin (datasheet, "RESET"): interrupts are off and their flags clear. Time, alarm and RAM are
    /// the battery's.
    pub(crate) fn reset(&mut self, now_ns: u64) {
        self.index = 0;
        self.b &= !(PERIODIC | ALARM | UPDATE | B_SQWE);
        self.flags = 0;
        self.known_ns = now_ns;
        self.schedule(now_ns);
    }

    /// The level of the interrupt line.
    pub(crate) fn line(&self) -> bool {
        self.flags & self.b & (PERIODIC | ALARM | UPDATE) != 0
    }

    /// Virtual time of the next interrupt; `u64::MAX` for never.
    pub(crate) fn next_ns(&self) -> u64 {
        self.next_ns
    }

    /// Takes note of the time.
    pub(crate) fn advance(&mut self, now_ns: u64) {
        self.update_flags(now_ns);
        self.schedule(now_ns);
    }

    /// Whether the register that a data access would reach depends on time.
    pub(crate) fn at_time_register(&self) -> bool {
        self.index <= REG_C || self.index == CENTURY
    }

    /// The index register cannot be read back.
    pub(crate) fn write_index(&mut self, value: u8) {
        // Bit 7 masks NMIs, of which there are none.
        self.index = value & 0x7f;
    }

    pub(crate) fn read_data(&mut self, now_ns: u64) -> u8 {
        match self.index {
            1 => self.alarm[0],
            3 => self.alarm[1],
            5 => self.alarm[2],
            REG_A => self.a | if self.update_in_progress(now_ns) { A_UIP } else { 0 },
            REG_B => self.b,
            REG_C => {
                self.update_flags(now_ns);
                let flags = self.flags | if self.line() { C_IRQF } else { 0 };
                self.flags = 0;
                self.schedule(now_ns);
                flags
            }
            REG_D => D_VRT,
            index => match place(index) {
                Some(place) => self.image(now_ns)[place],
                None => *self.cell(index),
            },
        }
    }

    pub(crate) fn write_data(&mut self, value: u8, now_ns: u64) {
        self.update_flags(now_ns);
        match self.index {
            1 => self.alarm[0] = value,
            3 => self.alarm[1] = value,
            5 => self.alarm[2] = value,
            REG_A => self.a = value & !A_UIP,
            REG_B => self.write_b(value, now_ns),
            REG_C | REG_D => {}
            index => match place(index) {
                Some(place) => {
                    let mut image = self.image(now_ns);
                    image[place] = value;
                    self.set_image(image, now_ns);
                }
                None => *self.cell(index) = value,
            },
        }
        self.schedule(now_ns);
    }

    fn cell(&mut self, index: u8) -> &mut u8 {
        &mut self.ram[usize::from(index >> 4 & 7)][usize::from(index & 15)]
    }

    fn write_b(&mut self, value: u8, now_ns: u64) {
        let was_held = self.b & B_SET != 0;
        let held = value & B_SET != 0;
        let image = self.image(now_ns);
        // Setting SET clears UIE.
        self.b = if held { value & !UPDATE } else { value };
        if held && !was_held {
            self.held = Some(image);
        } else if was_held && !held {
            self.held = None;
            self.set_image(image, now_ns);
        }
    }

    /// Nanoseconds since 1970 on this clock.
    fn time_ns(&self, now_ns: u64) -> i128 {
        i128::from(self.wall_base_ns) + i128::from(now_ns) + i128::from(self.adjust_s) * NS_PER_S
    }

    #[allow(clippy::cast_possible_truncation, reason = "nanoseconds of 64 bits are far fewer seconds")]
    fn time_s(&self, now_ns: u64) -> i64 {
        self.time_ns(now_ns).div_euclid(NS_PER_S) as i64
    }

    /// The virtual time at which this clock shows a second first.
    fn instant_of(&self, second: i64) -> u64 {
        let ns = i128::from(second) * NS_PER_S
            - i128::from(self.wall_base_ns)
            - i128::from(self.adjust_s) * NS_PER_S;
        u64::try_from(ns).unwrap_or(if ns < 0 { 0 } else { u64::MAX })
    }

    fn update_in_progress(&self, now_ns: u64) -> bool {
        self.held.is_none() && self.time_ns(now_ns).rem_euclid(NS_PER_S) >= NS_PER_S - UIP_NS
    }

    fn image(&self, now_ns: u64) -> Image {
        if let Some(held) = self.held {
            return held;
        }
        let time = DateTime::from_unix(self.time_s(now_ns));
        let hour = match (self.b & B_24H != 0, time.hour) {
            (true, hour) => self.encode(hour),
            (false, hour @ 0..12) => self.encode(if hour == 0 { 12 } else { hour }),
            (false, hour) => self.encode(if hour == 12 { 12 } else { hour - 12 }) | HOUR_PM,
        };
        [
            self.encode(time.second),
            self.encode(time.minute),
            hour,
            self.encode(time.weekday()),
            self.encode(time.day),
            self.encode(time.month),
            self.encode(time.year.rem_euclid(100)),
            self.encode(time.year.div_euclid(100)),
        ]
    }

    /// Sets the time; the weekday follows from the date. The fraction of the second goes on.
    fn set_image(&mut self, image: Image, now_ns: u64) {
        if let Some(held) = &mut self.held {
            *held = image;
            return;
        }
        let time = DateTime {
            second: self.decode(image[0]),
            minute: self.decode(image[1]),
            hour: self.decode_hour(image[2]),
            day: self.decode(image[4]),
            month: self.decode(image[5]),
            year: self.decode(image[7]) * 100 + self.decode(image[6]),
        };
        self.adjust_s += time.to_unix() - self.time_s(now_ns);
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a register has 8 bits, and what it shows less than 100"
    )]
    fn encode(&self, value: i64) -> u8 {
        let value = value as u8;
        if self.b & B_BINARY != 0 { value } else { ((value / 10 % 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> i64 {
        let (high, low) = (i64::from(value >> 4), i64::from(value & 0xf));
        if self.b & B_BINARY != 0 { i64::from(value) } else { high * 10 + low }
    }

    fn decode_hour(&self, value: u8) -> i64 {
        if self.b & B_24H != 0 {
            return self.decode(value);
        }
        let afternoon = if value & HOUR_PM != 0 { 12 } else { 0 };
        self.decode(value & !HOUR_PM) % 12 + afternoon
    }

    /// Sets the flags of what happened since they were last known.
    fn update_flags(&mut self, now_ns: u64) {
        let before = self.known_ns;
        self.known_ns = now_ns;
        if let Some(shift) = self.period_shift()
            && ticks(now_ns) >> shift > ticks(before) >> shift
        {
            self.flags |= PERIODIC;
        }
        let (old, new) = (self.time_s(before), self.time_s(now_ns));
        if self.held.is_some() || new <= old {
            return;
        }
        self.flags |= UPDATE;
        if self.flags & ALARM == 0 && self.next_alarm_s(old).is_some_and(|at| at <= new) {
            self.flags |= ALARM;
        }
    }

    /// Finds when the line rises next. A line that is high stays so until C is read.
    fn schedule(&mut self, now_ns: u64) {
        self.next_ns = u64::MAX;
        if self.line() {
            return;
        }
        if self.b & PERIODIC != 0
            && let Some(shift) = self.period_shift()
        {
            self.next_ns = tick_ns(((ticks(now_ns) >> shift) + 1) << shift);
        }
        if self.held.is_some() {
            return;
        }
        let second = self.time_s(now_ns);
        if self.b & UPDATE != 0 {
            self.next_ns = self.next_ns.min(self.instant_of(second + 1));
        }
        if self.b & ALARM != 0
            && let Some(at) = self.next_alarm_s(second)
        {
            self.next_ns = self.next_ns.min(self.instant_of(at));
        }
    }

    /// The binary logarithm of the crystal ticks in a period.
    fn period_shift(&self) -> Option<u32> {
        match self.a & 0xf {
            0 => None,
            // The two lowest rates repeat others.
            rate @ 1..=2 => Some(u32::from(rate) + 6),
            rate => Some(u32::from(rate) - 1),
        }
    }

    /// The first second after `after` that the alarm matches.
    fn next_alarm_s(&self, after: i64) -> Option<i64> {
        let wanted = |raw: u8, value: i64, range: i64| match raw {
            DONT_CARE.. => Some(None),
            _ => (0..range).contains(&value).then_some(Some(value)),
        };
        let second = wanted(self.alarm[0], self.decode(self.alarm[0]), 60)?;
        let minute = wanted(self.alarm[1], self.decode(self.alarm[1]), 60)?;
        let hour = wanted(self.alarm[2], self.decode_hour(self.alarm[2]), 24)?;
        let fits = |wanted: Option<i64>, value: i64| wanted.is_none_or(|wanted| wanted == value);
        let start = after + 1;
        let (day, of_day) = (start.div_euclid(DAY_S), start.rem_euclid(DAY_S));
        for (day, from) in [(day, of_day), (day + 1, 0)] {
            for h in (from / 3_600..24).filter(|&h| fits(hour, h)) {
                for m in (0..60).filter(|&m| fits(minute, m) && h * 3_600 + m * 60 + 59 >= from) {
                    let minute_start = h * 3_600 + m * 60;
                    let mut seconds = (0..60).filter(|&s| fits(second, s) && minute_start + s >= from);
                    if let Some(s) = seconds.next() {
                        return Some(day * DAY_S + minute_start + s);
                    }
                }
            }
        }
        None
    }
}

/// Where in an `Image` a register is.
fn place(index: u8) -> Option<usize> {
    match index {
        0 => Some(0),
        2 => Some(1),
        4 => Some(2),
        6..=9 => Some(usize::from(index) - 3),
        CENTURY => Some(7),
        _ => None,
    }
}

/// Ticks of the crystal since power-on.
#[allow(clippy::cast_possible_truncation, reason = "a nanosecond is less than a tick")]
fn ticks(now_ns: u64) -> u64 {
    (u128::from(now_ns) * TICKS_PER_S / NS_PER_S as u128) as u64
}

/// The first nanosecond of a tick.
fn tick_ns(tick: u64) -> u64 {
    u64::try_from((u128::from(tick) * NS_PER_S as u128).div_ceil(TICKS_PER_S)).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "rtc_tests.rs"]
mod tests;
