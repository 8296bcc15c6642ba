//! What every process of Lockstep shares in its dealings with the host: Unix sockets that replace nothing but
//! what is dead, files that only their owner reads, a log that nobody else can fill, errors that say each
//! thing once.
#![forbid(unsafe_code)]

pub mod errors;
pub mod files;
pub mod limit;
pub mod log;
pub mod log_writer;
pub mod unix_socket;
