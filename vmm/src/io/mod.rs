//! The real world: clock, sockets, threads. Nothing above this module reads host time or starts a thread.

pub mod clock;
