//! What a user of the command line meets: help, options that are refused, files that are made, and a log that
//! nobody floods. Real processes, without a pair.

mod flood;
mod help;
mod modes;
mod process;
mod refusals;
