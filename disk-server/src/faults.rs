//! Deliberate crashes and failing disks, for fault-injection tests. Nothing here does anything unless the
//! command line asks for it.

use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SLOW_WRITE: Duration = Duration::from_millis(5);

/// A named point in the life of a request at which the process can be made to abort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashPoint {
    /// A claim was decided, nothing of it was written.
    BeforeRecord,
    /// Half of the new generation record was written.
    MidRecord,
    /// The new record is durable under its second name, not yet the VM's record.
    BeforePublish,
    /// The new record is the VM's record, but the directory was not yet made durable.
    AfterPublish,
    /// The record is durable, the claimant was not answered.
    AfterRecord,
    /// A disk's state is about to change.
    BeforeContent,
    /// A disk's state has changed, the directory was not yet made durable.
    AfterContent,
    /// Half of a write's bytes are in the file.
    MidWrite,
    /// A write is in the file, not yet made durable.
    BeforeSync,
    /// A write is finished, its answer not yet sent.
    BeforeAnswer,
}

impl CrashPoint {
    /// Every point, with the name the command line gives it.
    pub const ALL: [(CrashPoint, &'static str); 10] = [
        (CrashPoint::BeforeRecord, "before-record"),
        (CrashPoint::MidRecord, "mid-record"),
        (CrashPoint::BeforePublish, "before-publish"),
        (CrashPoint::AfterPublish, "after-publish"),
        (CrashPoint::AfterRecord, "after-record-before-answer"),
        (CrashPoint::BeforeContent, "before-content"),
        (CrashPoint::AfterContent, "after-content"),
        (CrashPoint::MidWrite, "mid-write"),
        (CrashPoint::BeforeSync, "before-sync"),
        (CrashPoint::BeforeAnswer, "before-answer-of-write"),
    ];
}

/// Abort at the `nth` passage of a point (`POINT` or `POINT:N`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashAt {
    /// Where.
    pub point: CrashPoint,
    /// At which passage, counted from 1.
    pub nth: u64,
}

impl FromStr for CrashAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, nth) = match text.split_once(':') {
            None => (text, 1),
            Some((name, nth)) => (name, nth.parse().map_err(|e| format!("{nth}: {e}"))?),
        };
        let known = CrashPoint::ALL.iter().find(|(_, known)| *known == name);
        match known {
            Some((point, _)) if nth > 0 => Ok(Self { point: *point, nth }),
            Some(_) => Err("passages are counted from 1".into()),
            None => {
                let names: Vec<_> = CrashPoint::ALL.iter().map(|(_, name)| *name).collect();
                Err(format!("no crash point {name}; there are: {}", names.join(", ")))
            }
        }
    }
}

/// A lasting fault of all disks of one VM (`KIND=VM`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Each write takes a few milliseconds more, after its generation was checked.
    SlowWrite(String),
    /// Writes never finish.
    StallWrite(String),
    /// Making writes durable never finishes.
    StallSync(String),
    /// Making writes durable fails with EIO.
    FailSync(String),
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("slow-write", vm)) => Ok(Fault::SlowWrite(vm.into())),
            Some(("stall-write", vm)) => Ok(Fault::StallWrite(vm.into())),
            Some(("stall-sync", vm)) => Ok(Fault::StallSync(vm.into())),
            Some(("fail-sync", vm)) => Ok(Fault::FailSync(vm.into())),
            _ => Err("expected slow-write=VM, stall-write=VM, stall-sync=VM or fail-sync=VM".into()),
        }
    }
}

/// The faults this process was asked for.
#[derive(Debug, Default)]
pub struct Faults {
    crash: Option<CrashAt>,
    passed: AtomicU64,
    lasting: Vec<Fault>,
}

impl Faults {
    /// Exactly these faults.
    pub fn new(crash: Option<CrashAt>, lasting: Vec<Fault>) -> Self {
        Self { crash, passed: AtomicU64::new(0), lasting }
    }

    /// Whether the process is to abort at this passage of `point`; counts the passage.
    pub(crate) fn due(&self, point: CrashPoint) -> bool {
        match self.crash {
            Some(crash) if crash.point == point => {
                self.passed.fetch_add(1, Ordering::Relaxed) + 1 == crash.nth
            }
            _ => false,
        }
    }

    /// Aborts the process if that is due at this passage of `point`.
    pub(crate) fn reach(&self, point: CrashPoint) {
        if self.due(point) {
            std::process::abort();
        }
    }

    /// Delays a write of this VM, if so asked: for ever if its writes stall.
    pub(crate) fn delay_write(&self, vm: &str) {
        for fault in &self.lasting {
            match fault {
                Fault::SlowWrite(name) if name == vm => std::thread::sleep(SLOW_WRITE),
                Fault::StallWrite(name) if name == vm => {
                    tracing::info!(vm, "fault injection: a write stalls");
                    park_forever()
                }
                _ => {}
            }
        }
    }

    /// What to say instead of making a write of this VM durable, if anything.
    pub(crate) fn on_sync(&self, vm: &str) -> std::io::Result<()> {
        for fault in &self.lasting {
            match fault {
                Fault::StallSync(name) if name == vm => park_forever(),
                Fault::FailSync(name) if name == vm => {
                    return Err(std::io::Error::from_raw_os_error(nix::libc::EIO));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn park_forever() -> ! {
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_points_and_faults() {
        for (point, name) in CrashPoint::ALL {
            assert_eq!(name.parse(), Ok(CrashAt { point, nth: 1 }));
            assert_eq!(format!("{name}:7").parse(), Ok(CrashAt { point, nth: 7 }));
        }
        for wrong in ["", "before", "mid-write:0", "mid-write:x", "mid-write:"] {
            assert!(wrong.parse::<CrashAt>().is_err(), "{wrong}");
        }
        assert_eq!("stall-sync=a".parse(), Ok(Fault::StallSync("a".into())));
        assert!("stall-sync".parse::<Fault>().is_err());
    }

    #[test]
    fn only_the_nth_passage_is_due() {
        let faults = Faults::new(Some("mid-write:2".parse().unwrap()), Vec::new());
        assert!(!faults.due(CrashPoint::BeforeSync));
        let passages: Vec<_> = (0..4).map(|_| faults.due(CrashPoint::MidWrite)).collect();
        assert_eq!(passages, [false, true, false, false]);
    }
}
