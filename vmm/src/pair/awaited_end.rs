//! The end of this process' part in a machine, for `lockstep stop`, which waits for it.
//!
//! A process that ends takes its control socket with it. So one that was asked of late stays until it has
//! told.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use replay::Ending;
use serde::{Deserialize, Serialize};

use crate::io::clock::HostClock;
use crate::pair::host::ProcessEnd;
use crate::pair::live::LiveEnd;

/// Somebody asked so short a while ago that they will ask again.
const ASKS_AGAIN_NS: u64 = 1_000_000_000;
/// Longest that a process stays for them.
const STAY: Duration = Duration::from_secs(2);
/// For the answer to be written, after it was made.
const WRITE_ANSWER: Duration = Duration::from_millis(50);

/// How it ended, as `stop` wants to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// The machine is off: the guest switched it off, or it was powered off from outside.
    pub off: bool,
    /// In words.
    pub how: String,
}

impl From<&ProcessEnd> for End {
    fn from(end: &ProcessEnd) -> Self {
        let off = matches!(
            end,
            ProcessEnd::Live(LiveEnd::Guest { ending: Ending::PowerOff(_) | Ending::Shutdown, .. })
        );
        let how = match end {
            ProcessEnd::Live(LiveEnd::Guest { ending, .. }) => ending.to_string(),
            ProcessEnd::Live(LiveEnd::Halted(reason)) | ProcessEnd::Backup(reason, _) => {
                format!("this copy halted: {reason}")
            }
        };
        Self { off, how }
    }
}

#[derive(Debug, Default)]
struct State {
    end: Option<End>,
    asked_ns: Option<u64>,
    told: bool,
}

/// Whether it has ended, and who wants to know.
#[derive(Debug, Default)]
pub(super) struct AwaitedEnd {
    state: Mutex<State>,
    answered: Condvar,
}

impl AwaitedEnd {
    /// Somebody asks: the end, or `null`.
    pub(super) fn answer(&self, now_ns: u64) -> String {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked_ns = Some(now_ns);
        state.told = state.end.is_some();
        self.answered.notify_all();
        serde_json::json!({ "end": state.end }).to_string()
    }

    /// It has ended. Returns when whoever asked of late knows, or does not ask again.
    pub(super) fn tell(&self, end: &ProcessEnd) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.end = Some(end.into());
        let now_ns = HostClock.now_ns();
        if state.asked_ns.is_none_or(|asked_ns| now_ns.saturating_sub(asked_ns) > ASKS_AGAIN_NS) {
            return;
        }
        let waited = self.answered.wait_timeout_while(state, STAY, |state| !state.told);
        if waited.unwrap_or_else(PoisonError::into_inner).0.told {
            std::thread::sleep(WRITE_ANSWER);
        }
    }
}
