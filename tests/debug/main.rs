//! Looking into a guest: Debian's own gdb against `lockstep run --gdb`, and what a debugger leaves behind,
//! which is nothing.
#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests cast small numbers of their own"
)]

mod backwards;
mod gdb;
#[path = "../engine/guest.rs"]
#[allow(dead_code)]
mod guest;
mod kernel;
mod looking;
mod stepping;
mod support;
mod tracing;
