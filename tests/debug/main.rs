//! Looking into a guest: Debian's own gdb against `lockstep run --gdb`, and what a debugger leaves behind,
//! which is nothing.

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
