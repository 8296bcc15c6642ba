//! The devices of the machine model `pc`, as pure state machines.
//!
//! A device here owns no clock, thread, socket or random source. Everything that reaches it comes from the
//! guest (port and MMIO accesses, memory) or as an `Event` of the log through `Devices::apply`; everything
//! that leaves it is an interrupt line, guest memory, or an `Output` that the machine takes and releases by
//! the Output Rule. So two copies that see the same accesses and events are equal bit for bit, which
//! `Devices::digest_bytes` lets a replica check.
//!
//! ```text
//!        port and MMIO accesses        events of the log
//!                  │                         │
//!                  ▼                         ▼
//!   ┌───────────────────────────────────────────────────┐
//!   │ bus    event port · virtio net, blk, rng, console │──▶ outputs, in the order they were made
//!   │        UART · PIT · RTC · power                   │
//!   │                  │ lines                          │──▶ guest memory (DMA)
//!   │                  ▼                                │
//!   │               PIC pair                            │──▶ INTR, vector
//!   └───────────────────────────────────────────────────┘
//! ```
//!
//! Guest memory is an argument of every call that may touch it and is never kept. Whatever a guest does is
//! answered as hardware would (all ones, a status bit, `DEVICE_NEEDS_RESET`), with bounded work; an `Err` of
//! this crate means that the monitor itself is wrong.
#![cfg_attr(
    not(test),
    warn(
        clippy::cast_lossless,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
    )
)]
#![forbid(unsafe_code)]

mod bus;
mod bytes;
mod calendar;
mod clock;
mod event_port;
mod machine;
mod pci;
mod pic;
mod pit;
#[cfg(feature = "planted-faults")]
mod planted;
mod power;
mod reset;
mod rtc;
mod state;
mod uart;
mod virtio;

pub mod layout;

#[cfg(test)]
mod testing;

pub use machine::{ApplyError, ConsoleInput, Devices, DevicesConfig};
#[cfg(feature = "planted-faults")]
pub use planted::Planted;
pub use power::Ending;
pub use state::{DevicesState, RestoreError, STATE_VERSION};

pub use event_port::Wait;
