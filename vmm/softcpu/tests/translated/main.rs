//! Translated code against the interpreter, on guests made to break it: each program runs interpreted, and
//! translated from the first run of each block on, in one go and with stops, kicks and interrupts at every
//! count. State, RAM with the bits of all page tables, exits and counts must be the same, and every page that
//! changed is among those that the processor says it wrote.
//!
//! | variable | meaning |
//! |---|---|
//! | `LOCKSTEP_LONG_STEPS` | steps of the long runs (200000) |

mod crossing;
mod flags;
mod groups;
mod guest;
mod interrupts;
mod long;
mod memory;
mod mistakes;
mod planted;
mod privilege;
mod run;
mod stack;
mod tables;
