//! Who is live: what the halves say of themselves, against what the disk server knows.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::site::{A, B, Site, pause, until};

/// A half that has nothing to say for so long is stuck.
const ANSWER: Duration = Duration::from_secs(10);
/// Exit code of a copy that another one replaced.
const OTHER_LIVE: i32 = 3;
/// Exit code of a backup that never had the whole machine.
const NEVER_JOINED: i32 = 1;

/// What a half is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// It does not answer, or waits for a primary.
    Silent,
    /// A backup, and its state.
    Backup(String),
    /// A live copy: its state and generation.
    Live(String, u64),
}

/// How it looks once nothing changes any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// One live copy and its backup.
    Pair,
    /// One live copy alone: which half.
    Alone(usize),
    /// No half is left.
    Ended,
}

/// Asks a process for its status, on its control socket.
pub fn ask(control: &Path, patience: Duration) -> anyhow::Result<Value> {
    let mut stream = UnixStream::connect(control)?;
    stream.set_read_timeout(Some(patience))?;
    writeln!(stream, "status")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

impl Site {
    /// The halves as they are now.
    pub fn views(&mut self) -> anyhow::Result<Vec<View>> {
        self.reap()?;
        let text =
            |status: &Value, path: &str| status.pointer(path).and_then(Value::as_str).map(str::to_string);
        let view = |status: &Value| match (text(status, "/live/state"), text(status, "/backup/state")) {
            (Some(state), _) => View::Live(state, status["live"]["generation"].as_u64().unwrap_or(0)),
            (None, Some(state)) => View::Backup(state),
            (None, None) => View::Silent,
        };
        let asked = self.halves.iter().filter(|half| !half.stopped);
        let asked = asked.map(|half| ask(&half.control, ANSWER).map_or(View::Silent, |status| view(&status)));
        let mut found = asked.collect::<Vec<_>>().into_iter();
        let all = self.halves.iter();
        Ok(all
            .map(|half| if half.stopped { View::Silent } else { found.next().unwrap_or(View::Silent) })
            .collect())
    }

    /// The half that says it is live, under the highest generation.
    pub fn live(&mut self) -> anyhow::Result<Option<usize>> {
        let views = self.views()?;
        let live = views.iter().enumerate().filter_map(|(index, view)| match view {
            View::Live(_, generation) => Some((*generation, index)),
            _ => None,
        });
        Ok(live.max().map(|(_, index)| index))
    }

    /// Whether this is a pair with all that belongs to it.
    pub fn is_pair(&mut self) -> anyhow::Result<bool> {
        Ok(self.look()?.is_some_and(|settled| settled == Settled::Pair))
    }

    /// How it looks, if nothing is on its way to something else. Two copies that are both live under the
    /// generation of the disk server are an error.
    pub fn look(&mut self) -> anyhow::Result<Option<Settled>> {
        let views = self.views()?;
        let Some(holding) = self.holding() else { return Ok(None) };
        // A backup that no primary has begun with is nothing yet; after a primary that died it waits again.
        let waits = |index: &usize| match &views[*index] {
            View::Backup(state) => matches!(state.as_str(), "Waiting" | "Reserved"),
            _ => self.halves[*index].stale,
        };
        let own: Vec<usize> = (0..views.len()).filter(|index| !waits(index)).collect();
        if own.is_empty() {
            return Ok(Some(Settled::Ended));
        }
        let current = |index: &usize| match &views[*index] {
            View::Live(state, generation) => {
                *generation == holding.holding.generation && matches!(state.as_str(), "Alone" | "Replicating")
            }
            _ => false,
        };
        let live: Vec<usize> = own.iter().copied().filter(current).collect();
        ensure!(live.len() < 2, "two live copies: {views:?} under generation {}", holding.holding.generation);
        let [live] = live[..] else { return Ok(None) };
        let is_alone = views[live] == View::Live("Alone".into(), holding.holding.generation);
        let others: Vec<usize> = own.into_iter().filter(|index| *index != live).collect();
        Ok(match others[..] {
            [] if is_alone => Some(Settled::Alone(live)),
            [other] if !is_alone && views[other] == View::Backup("Following".into()) => Some(Settled::Pair),
            _ => None,
        })
    }

    /// Waits until nothing changes any more, and looks at the exit codes of those that ended.
    pub fn settle(&mut self, may_end: bool) -> anyhow::Result<Settled> {
        let mut views = Vec::new();
        let settled = until("one live copy, with or without a backup", || {
            views = self.views()?;
            self.look()
        });
        let settled =
            settled.with_context(|| format!("the halves are {views:?}, ended: {:?}", self.ended))?;
        for (name, code) in std::mem::take(&mut self.ended) {
            let fits = match code {
                Some(OTHER_LIVE) => true,
                Some(NEVER_JOINED) => may_end,
                // By a signal: a fault of ours that was meant to end it.
                None => true,
                Some(_) => false,
            };
            ensure!(fits, "{name} ended with exit code {code:?}");
        }
        ensure!(settled != Settled::Ended || may_end, "the service ended: no half is left");
        Ok(settled)
    }

    /// What an operator does until there is redundancy again.
    pub fn protect(&mut self) -> anyhow::Result<()> {
        let mut said = String::new();
        let protected = until("redundancy", || {
            match self.settle(true)? {
                Settled::Pair => return Ok(Some(())),
                Settled::Ended => bail!("the service ended while redundancy was restored: {said}"),
                Settled::Alone(live) => {
                    let live = self.leave_only(live)?;
                    let host = if self.halves[live].host == A { B } else { A };
                    let backup = self.start_backup(host)?;
                    let listen = self.halves[backup].listen.clone().context("a backup listens")?;
                    let output = self.replicate(live, &listen)?.wait_with_output()?;
                    if !output.status.success() {
                        said = String::from_utf8_lossy(&output.stderr).trim().to_string();
                        // It may have ended by itself.
                        if let Some(at) =
                            self.halves.iter().position(|half| half.listen.as_ref() == Some(&listen))
                        {
                            self.kill(at)?;
                        }
                        pause(Duration::from_millis(200));
                    }
                }
            }
            Ok(None)
        });
        protected.with_context(|| format!("unprotected; replicate said {said:?}"))
    }

    /// Ends all halves but one; its new index.
    fn leave_only(&mut self, half: usize) -> anyhow::Result<usize> {
        self.halves.swap(0, half);
        while self.halves.len() > 1 {
            self.kill(1)?;
        }
        Ok(0)
    }

    /// Ends what was started as somebody's stale command.
    pub fn dismiss_stale(&mut self) -> anyhow::Result<()> {
        while let Some(stale) = self.halves.iter().position(|half| half.stale) {
            self.kill(stale)?;
        }
        Ok(())
    }
}
