//! A software x86-64 processor: every instruction counted, every input at an exact count, no hardware
//! support.
//!
//! `Cpu` is a pure function of its state and of RAM: run from the same state to the same count, it is in the
//! same state again, wherever it stopped on the way and whatever its caches held. It owns no clock and no
//! random source; its time-stamp counter is its position.
//!
//! ```text
//!  bytes ─ decode ─▶ blocks of ops (cache) ─▶ exec/* ─▶ registers, flags (lazy), mem (software TLB ─ paging)
//! ```
#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "registers, operands and results are parts of each other: what a cast loses is the meaning"
)]

mod access;
mod arena;
mod breakpoint;
mod bulk;
mod cache;
pub mod caches;
mod control;
mod cpu;
mod debug;
mod decode;
mod descriptor;
mod exception;
mod exec;
mod flags;
mod interrupt;
mod jit;
mod mem;
mod native;
mod op;
mod paging;
#[cfg(feature = "planted-faults")]
mod planted;
mod ram;
mod segmentation;
mod state;
mod statistics;
mod tables;
mod watch;
mod word;

pub use cpu::{Cpu, Kicker};
pub use jit::{Jit, SelfTest, self_test, untranslatable};
pub use native::THRESHOLD;
pub use paging::PHYSICAL_BITS;
#[cfg(feature = "planted-faults")]
pub use planted::{Mistake, plant_odd_form};
pub use state::{Fpu, GPR_NAMES, Msrs, SEGMENT_NAMES, Seg, Segment, Shadow, State, Table};
pub use statistics::Statistics;

/// The instruction did not complete; `Cpu` knows why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault;

/// Why the processor stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The count asked for was reached.
    Reached,
    /// A kick came.
    Kicked,
    /// An external interrupt can be taken here, as `request_window` asked.
    Window,
    /// HLT was executed.
    Hlt,
    /// IN of `size` bytes from `port`; to be answered.
    PioRead {
        /// The port.
        port: u16,
        /// 1, 2 or 4.
        size: u8,
    },
    /// OUT to `port`; to be answered, with anything.
    PioWrite {
        /// The port.
        port: u16,
        /// 1, 2 or 4.
        size: u8,
        /// The value.
        value: u32,
    },
    /// Load from an address beyond RAM; to be answered.
    MmioRead {
        /// Guest physical address.
        address: u64,
        /// 1, 2, 4 or 8.
        size: u8,
    },
    /// Store to an address beyond RAM; to be answered, with anything.
    MmioWrite {
        /// Guest physical address.
        address: u64,
        /// 1, 2, 4 or 8.
        size: u8,
        /// The value.
        value: u64,
    },
    /// RDMSR of a register outside the model; to be answered or refused.
    MsrRead {
        /// The MSR.
        index: u32,
    },
    /// WRMSR of a register outside the model; to be answered or refused.
    MsrWrite {
        /// The MSR.
        index: u32,
        /// The value.
        value: u64,
    },
    /// The next instruction is at a breakpoint, and breakpoints are obeyed.
    Breakpoint,
    /// The last step stored to bytes that are watched, or changed where linear addresses lead.
    Watched,
    /// Triple fault.
    Shutdown,
}
