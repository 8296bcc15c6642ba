//! Options of commands that run a guest on the software engine: how it executes. No guest can tell.

use clap::{Args, ValueEnum};
use softcpu::Jit;

use crate::cli::headings::MACHINE;
use crate::engine::EngineOptions;

/// What `--jit` takes; each is what `Jit` says of it.
#[allow(missing_docs, reason = "clap would take them into the help, and that would take twice the lines")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum JitChoice {
    #[default]
    On,
    Off,
    Check,
}

impl From<JitChoice> for Jit {
    fn from(choice: JitChoice) -> Self {
        match choice {
            JitChoice::On => Jit::On,
            JitChoice::Off => Jit::Off,
            JitChoice::Check => Jit::Check,
        }
    }
}

/// How the software engine executes; the halves of a pair may choose differently.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct TranslatorArgs {
    /// Whether the software engine translates the guest's code into the host's, where it can; `check` does
    /// both on two processors that are compared. It changes speed alone: the halves of a pair, and a
    /// recording and its replay, may differ.
    #[arg(
        long,
        help_heading = MACHINE,
        value_enum,
        default_value_t = JitChoice::On,
        env = "LOCKSTEP_JIT",
        value_name = "HOW"
    )]
    pub jit: JitChoice,
    /// List translated code in /tmp/perf-PID.map, where `perf report` looks for names.
    #[arg(long, help_heading = MACHINE)]
    pub perf_map: bool,
}

impl TranslatorArgs {
    /// As an engine is told.
    pub fn options(self) -> EngineOptions {
        EngineOptions { jit: self.jit.into(), perf_map: self.perf_map }
    }
}
