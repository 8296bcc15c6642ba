//! What a user of the command line meets: help, options that are refused, files that are made, and a log that
//! nobody floods. Real processes, without a pair.
#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests cast small numbers of their own"
)]

mod flood;
mod help;
mod modes;
mod process;
mod refusals;
