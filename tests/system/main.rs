//! The architecture beyond the user-level instructions, on every engine: paging, exceptions, descriptors,
//! control transfers, debug traps, interrupts. One test body per subject; each case says what the manuals say
//! it must do (Intel SDM vol. 3, AMD APM vol. 2), and engines that run the same case must end in the same
//! state.
//!
//! A case that this host's KVM cannot run is skipped, loudly and counted, with the reason.
#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests cast small numbers of their own"
)]

mod cases;
mod code;
mod compat;
mod control;
mod debug;
mod delivery;
mod exceptions;
mod hosts;
mod interrupts;
mod machine;
mod mapper;
mod paging;
mod ports;
mod quirks;
mod scaffold;
mod segments;
mod strings;
mod tlb;
mod transfers;
