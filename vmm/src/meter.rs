//! How fast a guest gets on, for `status`: the thread that runs it notes where it is, another one looks ten
//! times a second, and whoever asks is told the rate of the last second.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use softcpu::{Jit, Statistics};

use crate::engine::{Execution, PositionClock};
use crate::io::clock::HostClock;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Looks that are kept: the oldest is a second old.
const LOOKS: usize = 11;
/// Nowhere: there is no machine yet.
const NOWHERE: u64 = u64::MAX;

/// Where a guest is, and how fast it gets on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GuestStatus {
    /// Its position.
    pub position: u64,
    /// What positions count.
    pub clock: &'static str,
    /// Positions a second, over the last second.
    pub per_second: f64,
    /// Millions of instructions a second, where positions count instructions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mips: Option<f64>,
    /// What the engine's translator does, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub translator: Option<TranslatorStatus>,
}

/// Numbers of a translator, since this process has the machine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TranslatorStatus {
    /// What `--jit` says: `on`, `off` or `check`.
    pub jit: &'static str,
    /// Why the guest's code is interpreted although it was to be translated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub untranslated: Option<String>,
    /// Translated blocks that there are.
    pub blocks: u64,
    /// Bytes of their code.
    pub bytes: u64,
    /// Blocks translated.
    pub translations: u64,
    /// Blocks dropped.
    pub invalidations: u64,
    /// Time spent translating, nanoseconds.
    pub translating_ns: u64,
    /// Share of the instructions executed here that were executed as translated code, 0 to 1.
    pub native_share: f64,
}

impl TranslatorStatus {
    fn new(execution: &Execution, statistics: Statistics, executed: u64) -> Self {
        let Statistics { blocks, bytes, translations, invalidations, translating_ns, native_instructions } =
            statistics;
        let native_share = native_instructions as f64 / executed.max(1) as f64;
        let jit = match execution.jit {
            Jit::On => "on",
            Jit::Off => "off",
            Jit::Check => "check",
        };
        let untranslated = execution.untranslated.clone();
        Self { jit, untranslated, blocks, bytes, translations, invalidations, translating_ns, native_share }
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// Host time and position, oldest first.
    looks: VecDeque<(u64, u64)>,
    statistics: Option<Statistics>,
    execution: Option<Execution>,
    /// Where the guest was put last, and what it had executed here before that.
    from: u64,
    executed: u64,
}

/// What one machine's threads share.
#[derive(Debug)]
pub struct Meter {
    position: AtomicU64,
    /// Statistics are wanted at the next opportunity.
    asked: AtomicBool,
    inner: Mutex<Inner>,
}

impl Default for Meter {
    fn default() -> Self {
        Self { position: AtomicU64::new(NOWHERE), asked: AtomicBool::new(true), inner: Mutex::default() }
    }
}

impl Meter {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest has come to `position` by running.
    #[inline]
    pub fn note(&self, position: u64, statistics: impl FnOnce() -> Option<Statistics>) {
        self.position.store(position, Ordering::Relaxed);
        if self.asked.load(Ordering::Relaxed) {
            self.asked.store(false, Ordering::Relaxed);
            self.lock().statistics = statistics();
        }
    }

    /// The guest was put at `position`, by whatever means but running.
    pub fn moved_to(&self, position: u64) {
        let mut inner = self.lock();
        let before = self.position.swap(position, Ordering::Relaxed);
        if before != NOWHERE {
            inner.executed += before.saturating_sub(inner.from);
        }
        inner.from = position;
        inner.looks.clear();
    }

    /// How its engine executes.
    pub fn set_execution(&self, execution: Option<Execution>) {
        self.lock().execution = execution;
    }

    fn look(&self, now_ns: u64) {
        let mut inner = self.lock();
        self.asked.store(true, Ordering::Relaxed);
        let position = self.position.load(Ordering::Relaxed);
        if position == NOWHERE {
            return;
        }
        inner.looks.push_back((now_ns, position));
        if inner.looks.len() > LOOKS {
            inner.looks.pop_front();
        }
    }

    /// Looks ten times a second, for ever.
    pub fn keep_looking(&self) {
        loop {
            self.look(HostClock.now_ns());
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// What there is to say, once there is a machine.
    pub fn status(&self, now_ns: u64, clock: PositionClock) -> Option<GuestStatus> {
        let inner = self.lock();
        let position = self.position.load(Ordering::Relaxed);
        if position == NOWHERE {
            return None;
        }
        let (since_ns, then) = inner.looks.front().copied().unwrap_or((now_ns, position));
        let seconds = now_ns.saturating_sub(since_ns).max(1) as f64 / 1e9;
        let per_second = position.saturating_sub(then) as f64 / seconds;
        let executed = inner.executed + position.saturating_sub(inner.from);
        Some(GuestStatus {
            position,
            clock: clock.name(),
            per_second,
            mips: (clock == PositionClock::Instructions).then_some(per_second / 1e6),
            translator: inner.execution.as_ref().map(|execution| {
                TranslatorStatus::new(execution, inner.statistics.unwrap_or_default(), executed)
            }),
        })
    }
}

#[cfg(test)]
#[path = "meter_tests.rs"]
mod tests;
