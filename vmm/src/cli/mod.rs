//! The commands, one file each.

pub mod backup;
pub mod bench;
pub mod data;
pub mod demo;
pub mod disk_server;
pub mod diverge;
pub mod doctor;
pub mod guest;
pub mod headings;
pub mod lan;
pub mod log;
pub mod primary;
pub mod record;
pub mod replay;
pub mod replicate;
pub mod run;
pub mod status;
pub mod stop;
pub mod translator;
pub mod verify;

use ::disk_server::{ServerError, StoreError};
use ::replay::Ending;
use ft::HaltReason;

use crate::engine::EngineError;
use crate::pair::host::{OtherCopyLive, ProcessEnd};
use crate::pair::live::LiveEnd;

/// Another copy holds the generation: this one halted.
pub const EXIT_OTHER_LIVE: u8 = 3;
/// The backup diverged from the log.
pub const EXIT_DIVERGED: u8 = 4;
/// No KVM that works.
pub const EXIT_NO_KVM: u8 = 5;
/// The guest cannot run on.
pub const EXIT_GUEST_STUCK: u8 = 6;
/// The guest did not obey its power button in time (`lockstep stop`).
pub const EXIT_NOT_OBEYED: u8 = 8;

/// What the exit codes mean, for `--help`.
pub const EXIT_CODES: &str = "Exit codes:
  0  the guest powered off (or its own exit status), or the pair ended together
  1  something failed; standard error says what and what to do
  2  wrong command line
  3  another copy of the machine is live: this one halted, or did not start
  4  the backup diverged; standard error names the report
  5  --engine kvm was asked for, and this host has none that works (see lockstep doctor)
  6  the guest can never run again by its own doing, or reset itself again and again (--reset-limit)";

/// The exit code of an error.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let no_kvm = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref::<EngineError>(), Some(EngineError::Open(_) | EngineError::Missing(_)))
    };
    let other_live = |cause: &(dyn std::error::Error + 'static)| {
        let runs = |error: &ServerError| matches!(error, ServerError::Store(StoreError::MachineRuns { .. }));
        cause.is::<OtherCopyLive>() || cause.downcast_ref().is_some_and(runs)
    };
    match () {
        () if error.chain().any(no_kvm) => EXIT_NO_KVM,
        () if error.chain().any(other_live) => EXIT_OTHER_LIVE,
        () => 1,
    }
}

/// Says how a process' part in a machine ended; the exit code.
pub fn conclude(end: &ProcessEnd) -> u8 {
    let halted = |reason: &HaltReason, ending: Option<&Ending>| {
        eprintln!("lockstep: halted: {reason}");
        match reason {
            HaltReason::GuestEnded => match ending {
                Some(ending @ (Ending::Stuck(_) | Ending::ResetLoop { .. })) => {
                    eprintln!("lockstep: {ending}");
                    EXIT_GUEST_STUCK
                }
                _ => 0,
            },
            HaltReason::Lost { .. } | HaltReason::Fenced { .. } => EXIT_OTHER_LIVE,
            HaltReason::Diverged => EXIT_DIVERGED,
            HaltReason::NeverJoined | HaltReason::CannotRead => 1,
        }
    };
    match end {
        ProcessEnd::Backup(reason, ending) => halted(reason, ending.as_ref()),
        ProcessEnd::Live(LiveEnd::Halted(reason)) => halted(reason, None),
        ProcessEnd::Live(LiveEnd::Guest { ending, last }) => {
            eprintln!("lockstep: {ending}");
            if let Some((position, digest)) = last {
                eprintln!("lockstep: the same inputs end at position {position} with digest {digest}");
            }
            match ending {
                Ending::PowerOff(status) => *status,
                Ending::Reset | Ending::Shutdown => 0,
                Ending::Stuck(_) | Ending::ResetLoop { .. } => EXIT_GUEST_STUCK,
            }
        }
    }
}
