//! What every process of Lockstep shares in its dealings with the host: Unix sockets that replace nothing but
//! what is dead, files that only their owner reads, a log that nobody else can fill, errors that say each
//! thing once.
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

pub mod errors;
pub mod files;
pub mod limit;
pub mod log;
pub mod log_writer;
pub mod unix_socket;
