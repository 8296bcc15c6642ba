//! How a copy that is alone gets a backup, seen from outside: one attempt at a time, and what became of the
//! last.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// Where an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttemptState {
    /// The backup is greeted.
    Connecting,
    /// The machine is copied while it runs.
    Transferring,
    /// The backup has it and follows.
    Done,
    /// It came to nothing: the live copy is alone as before.
    Failed,
}

/// The last attempt, for `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplicationStatus {
    /// Counts the attempts of this process, from 1.
    pub attempt: u64,
    /// Where the backup listens.
    pub to: String,
    /// How far it is.
    pub state: AttemptState,
    /// Bytes of state sent.
    pub bytes: u64,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The attempts of a process.
#[derive(Debug, Default)]
pub struct Replication {
    last: Mutex<Option<ReplicationStatus>>,
}

/// An attempt under way. It ends when this is dropped, as a failure unless it was said to be done.
#[derive(Debug)]
pub struct Attempt {
    shared: Arc<Replication>,
    number: u64,
}

impl Replication {
    fn lock(&self) -> MutexGuard<'_, Option<ReplicationStatus>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts an attempt, unless one is under way: then where to.
    pub fn attempt(self: &Arc<Self>, to: &str) -> Result<Attempt, String> {
        let mut last = self.lock();
        if let Some(running) = &*last
            && matches!(running.state, AttemptState::Connecting | AttemptState::Transferring)
        {
            return Err(running.to.clone());
        }
        let number = last.as_ref().map_or(0, |last| last.attempt) + 1;
        let state = AttemptState::Connecting;
        *last = Some(ReplicationStatus { attempt: number, to: to.to_owned(), state, bytes: 0, error: None });
        Ok(Attempt { shared: self.clone(), number })
    }

    /// The last attempt, if there was one.
    pub fn status(&self) -> Option<ReplicationStatus> {
        self.lock().clone()
    }
}

impl Attempt {
    /// Its number.
    pub fn number(&self) -> u64 {
        self.number
    }

    fn change(&self, change: impl FnOnce(&mut ReplicationStatus)) {
        if let Some(last) = self.shared.lock().as_mut().filter(|last| last.attempt == self.number) {
            change(last);
        }
    }

    /// The transfer has begun.
    pub fn transferring(&self) {
        self.change(|last| last.state = AttemptState::Transferring);
    }

    /// So many bytes more were sent.
    pub fn sent(&self, bytes: usize) {
        self.change(|last| last.bytes += bytes as u64);
    }

    /// It fails, and why.
    pub fn fail(&self, error: &anyhow::Error) {
        self.change(|last| (last.state, last.error) = (AttemptState::Failed, Some(format!("{error:#}"))));
    }

    /// The backup follows.
    pub fn done(self) {
        self.change(|last| last.state = AttemptState::Done);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.change(|last| {
            if matches!(last.state, AttemptState::Connecting | AttemptState::Transferring) {
                last.state = AttemptState::Failed;
                last.error = Some("given up; the live copy's standard error says why".into());
            }
        });
    }
}

#[cfg(test)]
#[path = "replication_tests.rs"]
mod tests;
