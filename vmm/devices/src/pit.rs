//! The interval timer: an 8254 (Intel 8254 datasheet, 231164) at 1.193182 MHz, with port B of the PC (0x61).
//!
//! Nothing counts here: a channel keeps the tick at which its count was loaded, and counter, OUT and the
//! next rise of OUT are functions of the virtual clock.
//!
//! ```text
//!  mode 0  ‾‾\______________/‾‾‾‾‾   rises after n ticks, once            (interrupt on terminal count)
//!  mode 1  ‾‾‾‾\_________/‾‾‾‾‾‾‾‾   low for n ticks after the gate rises (one-shot)
//!  mode 2  ‾‾‾‾‾‾‾‾‾\_/‾‾‾‾‾‾‾‾\_/   low in the last of every n ticks      (rate generator)
//!  mode 3  ‾‾‾‾‾\____/‾‾‾‾‾\____/‾   high (n+1)/2, low n/2 of every n     (square wave)
//!  mode 4  ‾‾‾‾‾‾‾‾‾‾‾‾\_/‾‾‾‾‾‾‾‾   low for one tick after n, once       (software strobe)
//!  mode 5  as mode 4, started by the gate's rise                          (hardware strobe)
//! ```
//!
//! A count written is loaded by the next tick; in modes 2 and 3 a running channel ends its period first. When
//! the clock jumps over several rises of channel 0, one interrupt remains, as when a CPU is late.

use serde::{Deserialize, Serialize};

/// Ticks per second.
const TICKS_PER_S: u128 = 1_193_182;
const NS_PER_S: u128 = 1_000_000_000;

/// Whether and since when a channel counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Run {
    /// No count written yet, or the gate has not triggered the one-shot.
    Idle,
    /// The count is, or will be, loaded at this tick.
    Since(u64),
    /// The gate went low after so many ticks.
    Paused(u64),
}

/// One counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Channel {
    mode: u8,
    bcd: bool,
    /// Which bytes an access moves: 1 low, 2 high, 3 low then high.
    access: u8,
    /// As written: 0 stands for the full range.
    count: u16,
    /// Count to be used from that tick on.
    next_count: Option<(u16, u64)>,
    run: Run,
    gate: bool,
    written_low: Option<u8>,
    read_high: bool,
    latched: Option<u16>,
    latched_status: Option<u8>,
}

impl Channel {
    /// As firmware leaves it: a square wave that nobody started, OUT high.
    fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            bcd: false,
            access: 3,
            count: 0,
            next_count: None,
            run: Run::Idle,
            gate,
            written_low: None,
            read_high: false,
            latched: None,
            latched_status: None,
        }
    }

    fn periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    fn modulus(&self) -> u64 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    /// The count in ticks, 2 at least in the periodic modes, where 1 is illegal.
    fn ticks(&self, count: u16) -> u64 {
        let value = if self.bcd { from_bcd(count) } else { u64::from(count) };
        let value = if value == 0 { self.modulus() } else { value };
        if self.periodic() { value.max(2) } else { value }
    }

    /// Moves past the end of a period at which a new count was due.
    fn settle(&mut self, now: u64) {
        if let Some((count, at)) = self.next_count
            && now >= at
        {
            self.count = count;
            self.run = Run::Since(at);
            self.next_count = None;
        }
    }

    /// Ticks since the count was loaded; none while idle or not loaded yet.
    fn elapsed(&self, now: u64) -> Option<u64> {
        match self.run {
            Run::Idle => None,
            Run::Since(start) => now.checked_sub(start),
            Run::Paused(elapsed) => Some(elapsed),
        }
    }

    fn out(&self, now: u64) -> bool {
        let n = self.ticks(self.count);
        let gate_stops = self.periodic() && !self.gate;
        match (self.mode, self.elapsed(now)) {
            (0, elapsed) => elapsed.is_some_and(|e| e >= n),
            (1, elapsed) => elapsed.is_none_or(|e| e >= n),
            (_, None) => true,
            _ if gate_stops => true,
            (2, Some(e)) => e % n != n - 1,
            (3, Some(e)) => e % n < n.div_ceil(2),
            (_, Some(e)) => e != n,
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "the counter has 16 bits: 0x10000 reads as 0")]
    fn counter(&self, now: u64) -> u16 {
        let n = self.ticks(self.count);
        let e = self.elapsed(now).unwrap_or(0);
        let value = match self.mode {
            2 => n - e % n,
            // Counts down by two, in each half; an odd count spends its extra tick in the first half.
            3 => {
                let half = n.div_ceil(2);
                let at = e % n;
                let step = if at < half { at } else { at - half };
                (n & !1).saturating_sub(2 * step)
            }
            _ => {
                let modulus = self.modulus();
                (n + modulus - e % modulus) % modulus
            }
        };
        let value = value % self.modulus();
        if self.bcd { to_bcd(value) } else { value as u16 }
    }

    /// The next tick after `now` at which OUT rises.
    fn next_rise(&self, now: u64) -> Option<u64> {
        let n = self.ticks(self.count);
        let Run::Since(start) = self.run else { return None };
        match self.mode {
            2 | 3 if !self.gate => None,
            2 | 3 => {
                let periods = now.checked_sub(start).map_or(1, |e| e / n + 1);
                start.checked_add(periods.checked_mul(n)?)
            }
            0 | 1 => start.checked_add(n).filter(|&rise| rise > now),
            _ => start.checked_add(n + 1).filter(|&rise| rise > now),
        }
    }

    fn write_control(&mut self, value: u8) {
        self.mode = match value >> 1 & 7 {
            // The highest bit does not matter in modes 2 and 3.
            mode @ 6..=7 => mode - 4,
            mode => mode,
        };
        self.bcd = value & 1 != 0;
        self.access = value >> 4 & 3;
        self.run = Run::Idle;
        self.next_count = None;
        self.written_low = None;
        self.read_high = false;
        self.latched = None;
        self.latched_status = None;
    }

    fn write(&mut self, value: u8, now: u64) {
        let count = match (self.access, self.written_low) {
            (1, _) => u16::from(value),
            (2, _) => u16::from(value) << 8,
            (_, None) => {
                self.written_low = Some(value);
                // In mode 0 the first byte stops the counting and lowers OUT.
                if self.mode == 0 {
                    self.run = Run::Idle;
                }
                return;
            }
            (_, Some(low)) => {
                self.written_low = None;
                u16::from_le_bytes([low, value])
            }
        };
        self.load(count, now);
    }

    fn load(&mut self, count: u16, now: u64) {
        let next_tick = now.saturating_add(1);
        match (self.mode, self.run) {
            (2 | 3, Run::Since(start)) if now >= start => {
                let n = self.ticks(self.count);
                let end = start.saturating_add(((now - start) / n + 1).saturating_mul(n));
                self.next_count = Some((count, end));
            }
            // The running one-shot or strobe is not affected; the next trigger uses the new count.
            (1 | 5, Run::Since(_)) => self.next_count = Some((count, u64::MAX)),
            (1 | 5, _) => self.count = count,
            _ => {
                self.count = count;
                self.run = if self.gate { Run::Since(next_tick) } else { Run::Paused(0) };
            }
        }
    }

    fn set_gate(&mut self, gate: bool, now: u64) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        let next_tick = now.saturating_add(1);
        match (self.mode, gate, self.run) {
            (0 | 2 | 3 | 4, false, Run::Since(_)) => {
                self.run = Run::Paused(self.elapsed(now).unwrap_or(0));
            }
            (0 | 4, true, Run::Paused(elapsed)) => self.run = Run::Since(now.saturating_sub(elapsed)),
            // The rise triggers, and loads what was written last.
            (2 | 3, true, Run::Paused(_)) | (1 | 5, true, _) => {
                if let Some((count, _)) = self.next_count.take() {
                    self.count = count;
                }
                self.run = Run::Since(next_tick);
            }
            _ => {}
        }
    }

    fn latch_count(&mut self, now: u64) {
        if self.latched.is_none() {
            self.latched = Some(self.counter(now));
        }
    }

    fn latch_status(&mut self, now: u64) {
        if self.latched_status.is_none() {
            let null_count = self.elapsed(now).is_none() || self.next_count.is_some();
            self.latched_status = Some(
                u8::from(self.out(now)) << 7
                    | u8::from(null_count) << 6
                    | self.access << 4
                    | self.mode << 1
                    | u8::from(self.bcd),
            );
        }
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.counter(now)).to_le_bytes();
        match self.access {
            1 => {
                self.latched = None;
                low
            }
            2 => {
                self.latched = None;
                high
            }
            _ if self.read_high => {
                self.read_high = false;
                self.latched = None;
                high
            }
            _ => {
                self.read_high = true;
                low
            }
        }
    }
}

/// The timer chip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pit {
    channels: [Channel; 3],
    speaker: bool,
    /// Toggles with each read of port B, as the refresh request does with time.
    refresh: bool,
    /// OUT of channel 0 as of the last change or advance.
    line: bool,
    /// When OUT of channel 0 rises next; `u64::MAX` for never.
    next_rise_ns: u64,
}

impl Pit {
    pub(crate) fn new() -> Self {
        Self {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            speaker: false,
            refresh: false,
            line: true,
            next_rise_ns: u64::MAX,
        }
    }

    /// OUT of channel 0.
    pub(crate) fn line(&self) -> bool {
        self.line
    }

    /// Virtual time of the next interrupt; `u64::MAX` for never.
    pub(crate) fn next_rise_ns(&self) -> u64 {
        self.next_rise_ns
    }

    /// Takes note of the time, after `next_rise_ns` or a write has passed; true if OUT of channel 0 rose
    /// since.
    pub(crate) fn advance(&mut self, now_ns: u64) -> bool {
        let rose = now_ns >= self.next_rise_ns;
        self.refresh_line(now_ns);
        rose
    }

    fn refresh_line(&mut self, now_ns: u64) {
        let now = tick(now_ns);
        let channel = &mut self.channels[0];
        channel.settle(now);
        self.line = channel.out(now);
        self.next_rise_ns = channel.next_rise(now).map_or(u64::MAX, tick_ns);
    }

    /// Reads channel 0, 1 or 2. The control register (3) cannot be read.
    pub(crate) fn read(&mut self, register: u16, now_ns: u64) -> u8 {
        let now = tick(now_ns);
        match self.channels.get_mut(usize::from(register)) {
            Some(channel) => {
                channel.settle(now);
                channel.read(now)
            }
            None => 0xff,
        }
    }

    pub(crate) fn write(&mut self, register: u16, value: u8, now_ns: u64) {
        let now = tick(now_ns);
        self.channels.iter_mut().for_each(|channel| channel.settle(now));
        match self.channels.get_mut(usize::from(register)) {
            Some(channel) => channel.write(value, now),
            None => self.write_control(value, now),
        }
        self.refresh_line(now_ns);
    }

    fn write_control(&mut self, value: u8, now: u64) {
        let select = usize::from(value >> 6);
        match self.channels.get_mut(select) {
            Some(channel) if value & 0x30 == 0 => channel.latch_count(now),
            Some(channel) => channel.write_control(value),
            None => self.read_back(value, now),
        }
    }

    /// Read-back: bit 5 low latches counts, bit 4 low status, bits 1 to 3 choose channels.
    fn read_back(&mut self, value: u8, now: u64) {
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if value & (2 << index) == 0 {
                continue;
            }
            if value & 0x20 == 0 {
                channel.latch_count(now);
            }
            if value & 0x10 == 0 {
                channel.latch_status(now);
            }
        }
    }

    /// Port B: gate of channel 2, speaker, refresh toggle, OUT of channel 2.
    pub(crate) fn read_port_b(&mut self, now_ns: u64) -> u8 {
        let now = tick(now_ns);
        self.refresh = !self.refresh;
        let channel = &mut self.channels[2];
        channel.settle(now);
        u8::from(channel.gate)
            | u8::from(self.speaker) << 1
            | u8::from(self.refresh) << 4
            | u8::from(channel.out(now)) << 5
    }

    pub(crate) fn write_port_b(&mut self, value: u8, now_ns: u64) {
        let now = tick(now_ns);
        self.speaker = value & 2 != 0;
        self.channels[2].settle(now);
        self.channels[2].set_gate(value & 1 != 0, now);
    }
}

/// Ticks since power-on.
#[allow(clippy::cast_possible_truncation, reason = "a nanosecond is less than a tick")]
fn tick(now_ns: u64) -> u64 {
    (u128::from(now_ns) * TICKS_PER_S / NS_PER_S) as u64
}

/// The first nanosecond of a tick.
fn tick_ns(tick: u64) -> u64 {
    u64::try_from((u128::from(tick) * NS_PER_S).div_ceil(TICKS_PER_S)).unwrap_or(u64::MAX)
}

fn from_bcd(value: u16) -> u64 {
    (0..4).rev().fold(0, |sum, digit| sum * 10 + u64::from(value >> (4 * digit) & 0xf))
}

fn to_bcd(value: u64) -> u16 {
    let digit = |power: u64| (value / power % 10) as u16;
    digit(1) | digit(10) << 4 | digit(100) << 8 | digit(1000) << 12
}

#[cfg(test)]
#[path = "pit_tests.rs"]
mod tests;
