//! The filling of one disk with an image, and who may use the disk meanwhile (content.rs has the states).
//!
//! A request holds the state while it is executed, and a change of the state holds it alone. Once a disk
//! is filled nothing changes any more, and requests do not even look.
//!
//! Invariants: a disk whose durable state is `New` holds nothing that a guest wrote; one that is `Filling` is
//! used only by the connection that fills it; one that is `Filled` never becomes anything else.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Release};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::content;
use crate::faults::Faults;
use crate::protocol::Content;
use crate::record_file::ReplaceError;
use crate::seat::Number;

/// Why a request does not fit the state of the disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FillError {
    #[error(
        "it is being filled from an image, or that was cut short: start the machine with its image \
         (--guest or --disk-image), or give it another --disk"
    )]
    Filling,
    #[error("it holds a machine's data already, and is never filled again")]
    Filled,
    #[error("it is not being filled by this connection")]
    NotFilling,
    #[error("its state is unknown ({0}): check the storage, then restart the disk server")]
    Unknown(String),
    #[error("cannot record its state: {0}")]
    Record(std::io::Error),
    #[error("cannot empty it: {0}")]
    Clear(std::io::Error),
}

#[derive(Debug)]
struct State {
    content: Content,
    filler: Option<Number>,
    /// Why nothing can be said about the durable state, if so.
    unknown: Option<String>,
}

/// What one disk holds.
#[derive(Debug)]
pub(crate) struct Fill {
    dir: PathBuf,
    disk: String,
    faults: Arc<Faults>,
    filled: AtomicBool,
    state: RwLock<State>,
}

impl Fill {
    /// Of `disk`, whose record in `dir` says `content`.
    pub(crate) fn new(dir: PathBuf, disk: &str, content: Content, faults: Arc<Faults>) -> Self {
        let filled = AtomicBool::new(content == Content::Filled);
        let state = RwLock::new(State { content, filler: None, unknown: None });
        Self { dir, disk: disk.into(), faults, filled, state }
    }

    pub(crate) fn content(&self) -> Content {
        self.read().content
    }

    /// Runs a read of connection `who`.
    pub(crate) fn reading<T, E: From<FillError>>(
        &self,
        who: Number,
        action: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        if self.filled.load(Acquire) {
            return action();
        }
        let state = self.read();
        usable(&state, who)?;
        action()
    }

    /// Runs a write of connection `who`; the first one of a guest makes a new disk a filled one.
    pub(crate) fn writing<T, E: From<FillError>>(
        &self,
        who: Number,
        action: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        if !self.filled.load(Acquire) {
            let mut state = self.write();
            usable(&state, who)?;
            if state.content == Content::New {
                self.put(&mut state, Content::Filled)?;
            }
            if state.content == Content::Filling {
                // Alone, so that nobody begins anew while this write is on its way.
                return action();
            }
        }
        action()
    }

    /// Connection `who` begins to fill the disk; `clear` empties it if an earlier filling was cut short.
    pub(crate) fn begin(
        &self,
        who: Number,
        clear: impl FnOnce() -> std::io::Result<()>,
    ) -> Result<(), FillError> {
        let mut state = self.write();
        known(&state)?;
        match state.content {
            Content::Filled => return Err(FillError::Filled),
            Content::Filling => {
                state.filler = None;
                clear().map_err(FillError::Clear)?;
            }
            Content::New => self.put(&mut state, Content::Filling)?,
        }
        state.filler = Some(who);
        Ok(())
    }

    /// Connection `who` has written everything, and `commit` makes it durable.
    pub(crate) fn end<E: From<FillError>>(
        &self,
        who: Number,
        commit: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut state = self.write();
        known(&state)?;
        if state.content != Content::Filling || state.filler != Some(who) {
            return Err(FillError::NotFilling.into());
        }
        commit()?;
        self.put(&mut state, Content::Filled)?;
        Ok(())
    }

    fn put(&self, state: &mut State, next: Content) -> Result<(), FillError> {
        match content::replace(&self.dir, &self.disk, next, &self.faults) {
            Ok(()) => {}
            Err(ReplaceError::Unchanged(error)) => return Err(FillError::Record(error)),
            Err(error @ ReplaceError::Uncertain(_)) => {
                tracing::error!(disk = %self.disk, %error, "disk out of service");
                state.unknown = Some(error.to_string());
                known(state)?;
            }
        }
        state.content = next;
        self.filled.store(next == Content::Filled, Release);
        Ok(())
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn known(state: &State) -> Result<(), FillError> {
    state.unknown.clone().map_or(Ok(()), |reason| Err(FillError::Unknown(reason)))
}

fn usable(state: &State, who: Number) -> Result<(), FillError> {
    known(state)?;
    if state.content == Content::Filling && state.filler != Some(who) {
        return Err(FillError::Filling);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(dir: &tempfile::TempDir) -> Fill {
        content::create(dir.path(), "d").unwrap();
        Fill::new(dir.path().into(), "d", Content::New, Arc::default())
    }

    fn ok() -> Result<(), FillError> {
        Ok(())
    }

    #[test]
    fn a_disk_is_filled_once() {
        let dir = tempfile::tempdir().unwrap();
        let fill = fill(&dir);
        assert!(matches!(fill.end(1, ok), Err(FillError::NotFilling)));
        fill.begin(1, || panic!("nothing to clear")).unwrap();
        fill.writing(1, ok).unwrap();
        assert!(matches!(fill.writing(2, ok), Err(FillError::Filling)));
        assert!(matches!(fill.reading(2, ok), Err(FillError::Filling)));
        let mut cleared = 0;
        let clear = || {
            cleared += 1;
            Ok(())
        };
        fill.begin(2, clear).unwrap();
        assert_eq!(cleared, 1, "begun anew");
        assert!(matches!(fill.writing(1, ok), Err(FillError::Filling)), "the first filler comes too late");
        assert!(matches!(fill.end(1, ok), Err(FillError::NotFilling)));
        fill.end(2, ok).unwrap();
        assert_eq!(fill.content(), Content::Filled);
        assert!(matches!(fill.begin(2, || panic!("it is full")), Err(FillError::Filled)));
        fill.writing(1, ok).unwrap();
    }

    #[test]
    fn the_first_write_of_a_guest_makes_a_new_disk_a_filled_one() {
        let dir = tempfile::tempdir().unwrap();
        let fill = fill(&dir);
        fill.reading(1, ok).unwrap();
        assert_eq!(fill.content(), Content::New);
        fill.writing(1, ok).unwrap();
        assert!(matches!(fill.begin(1, || panic!("in use")), Err(FillError::Filled)));
        let record = std::fs::read(dir.path().join("d.state")).unwrap();
        assert_eq!(record[6], 2, "durable");
    }

    #[test]
    fn a_filling_whose_end_cannot_be_recorded_has_not_ended() {
        let dir = tempfile::tempdir().unwrap();
        let fill = fill(&dir);
        fill.begin(1, || Ok(())).unwrap();
        let failed: Result<(), FillError> = fill.end(1, || Err(FillError::NotFilling));
        assert!(failed.is_err());
        assert_eq!(fill.content(), Content::Filling);
        std::fs::remove_dir_all(dir.path()).unwrap();
        assert!(matches!(fill.end(1, ok), Err(FillError::Record(_))));
        assert_eq!(fill.content(), Content::Filling);
    }
}
